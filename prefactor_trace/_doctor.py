"""What `prefactor-trace doctor` says.

Which settings hold and where they come from, who is there, whether our clocks agree, what waits, and which SDKs record
themselves.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
import warnings
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import orjson

from prefactor_trace import _inventory, _local, _spool, integrations
from prefactor_trace._settings import from_environment
from prefactor_trace._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefactor_trace._local import Destination
    from prefactor_trace._settings import Settings


# A run whose times are further off is hard to lay beside anything else. Whole seconds are all that HTTP's dates have.
_CLOCKS_MAY_DIFFER = 10.0


class Finding(NamedTuple):
    """One line of the doctor's.

    Attributes:
        about: What it is about.
        text: What was found.
        is_trouble: Whether something is wrong.
    """

    about: str
    text: str
    is_trouble: bool = False


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found. Never shows a token.

    Asks the destination, if there is one, and nobody else. An SDK is imported only if its source is not as expected.
    Changes nothing.
    """
    yield Finding(
        "version", f"prefactor_trace {__version__}, Python {platform.python_version()}, {platform.system()}"
    )
    for name, value, variable in from_environment(settings):  # what is not set is as the README says
        yield Finding(name, f"{value}   from {variable}")
    yield from _destination(settings)
    yield from _waiting(settings)
    yield from _sdks()


def _destination(settings: Settings) -> Iterator[Finding]:
    if settings.disabled:
        yield Finding("destination", "none: PREFACTOR_DISABLED is set", is_trouble=True)
        return
    destination = settings.destination or _local.find(settings.state_dir)
    if destination is None:
        text = (
            "none: PREFACTOR_API_TOKEN is not set and no local platform is running; records wait in the spool"
        )
        yield Finding("destination", text, is_trouble=True)
        return
    yield from _asked(destination, settings.request_timeout)


def _asked(destination: Destination, timeout: float) -> Iterator[Finding]:
    import anyio

    from prefactor_trace.http import (
        HttpClientConfig,
        PrefactorAuthError,
        PrefactorHttpClient,
        PrefactorHttpError,
    )

    config = HttpClientConfig(
        destination.url, destination.token, request_timeout=timeout, connect_timeout=timeout, max_retries=0
    )
    client = PrefactorHttpClient(config)

    async def ping() -> float:
        async with client:
            start = time.monotonic()
            await client.validate_token()
            return time.monotonic() - start

    try:
        seconds = anyio.run(ping)
        yield Finding("destination", f"{destination.url} takes the token, in {1_000 * seconds:.0f} ms")
    except PrefactorAuthError as error:
        yield Finding("destination", f"{destination.url} refuses the token ({error})", is_trouble=True)
    except (PrefactorHttpError, ValueError) as error:
        yield Finding("destination", f"{destination.url}: {error}", is_trouble=True)
    if client.server_time is not None:
        yield clocks(client.server_time, time.time())


def clocks(told: str, now: float) -> Finding:
    """Compare the header Date of an answer that came just *now* (Unix seconds) with our clock."""
    from email.utils import parsedate_to_datetime

    try:
        ahead = now - parsedate_to_datetime(told).timestamp()
    except (TypeError, ValueError, OverflowError):
        return Finding("clock", "the destination does not say what time it is")
    if abs(ahead) <= _CLOCKS_MAY_DIFFER:
        return Finding("clock", f"as the destination's, to within {max(1.0, abs(ahead)):.0f} s")
    how = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock",
        f"{abs(ahead):,.0f} s {how} the destination's: times of runs and steps will be off",
        is_trouble=True,
    )


def _waiting(settings: Settings) -> Iterator[Finding]:
    if not settings.spool or not _spool.is_possible:
        why = "PREFACTOR_SPOOL is off" if _spool.is_possible else "this system has no file locks"
        yield Finding("spool", f"none, {why}: records wait in memory, and are lost with their process")
        return
    holdings = _inventory.survey(settings.spool_dir)
    waiting = sum(each.records for each in holdings)
    size = sum(each.size for each in holdings)
    yield Finding("spool", f"{settings.spool_dir}: {waiting:,} records wait, {size:,} bytes")
    _, others = _inventory.waiting_for(settings.spool_dir, settings.destination_name)
    for whose, count in others.items():
        text = f"{count:,} records wait for {whose}, not for this destination"
        yield Finding("spool", text, is_trouble=True)
    for reason, count in _rejected(settings.spool_dir).items():
        yield Finding("rejected", f"{count:,} records, {reason}", is_trouble=True)


def _rejected(path: Path) -> Counter[str]:
    reasons: Counter[str] = Counter()
    try:
        with (path / _spool.LETTERS).open("rb") as file:
            for line in file:
                try:
                    reasons[str(orjson.loads(line)["reason"])] += 1
                except (orjson.JSONDecodeError, KeyError, TypeError):
                    reasons["not readable"] += 1
    except OSError:
        pass
    return reasons


def _sdks() -> Iterator[Finding]:
    with (
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
    ):  # what they have to say is not the answer
        warnings.simplefilter("ignore")
        found = integrations.examine()
    for each in found:
        claimed = integrations.claimed(each.name)
        if each.state == "missing":
            yield Finding(each.name, f"not installed; records {claimed}")
        else:
            # What is still waited for is optional: this version of the SDK has no such module.
            state = "recorded" if each.is_taken else each.state
            yield Finding(
                each.name, f"{state}: {each.detail}; records {claimed}", is_trouble=not each.is_taken
            )

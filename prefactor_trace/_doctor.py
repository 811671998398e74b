"""What `prefactor-trace doctor` says: which settings hold and where they come from, who is there, and what waits."""

from __future__ import annotations

import platform
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import orjson

from prefactor_trace import _inventory, _local, _spool
from prefactor_trace._settings import from_environment
from prefactor_trace._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefactor_trace._local import Destination
    from prefactor_trace._settings import Settings


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
    """Yield what is found. Asks the destination, if there is one; changes nothing, and never shows a token."""
    yield Finding(
        "version", f"prefactor_trace {__version__}, Python {platform.python_version()}, {platform.system()}"
    )
    for name, value, variable in from_environment(settings):  # what is not set is as the README says
        yield Finding(name, f"{value}   from {variable}")
    yield _destination(settings)
    yield from _waiting(settings)


def _destination(settings: Settings) -> Finding:
    if settings.disabled:
        return Finding("destination", "none: PREFACTOR_DISABLED is set", is_trouble=True)
    destination = settings.destination or _local.find(settings.state_dir)
    if destination is None:
        text = (
            "none: PREFACTOR_API_TOKEN is not set and no local platform is running; records wait in the spool"
        )
        return Finding("destination", text, is_trouble=True)
    return _asked(destination, settings.request_timeout)


def _asked(destination: Destination, timeout: float) -> Finding:
    import anyio

    from prefactor_trace.http import (
        HttpClientConfig,
        PrefactorAuthError,
        PrefactorHttpClient,
        PrefactorHttpError,
    )

    async def ping() -> float:
        config = HttpClientConfig(
            destination.url,
            destination.token,
            request_timeout=timeout,
            connect_timeout=timeout,
            max_retries=0,
        )
        async with PrefactorHttpClient(config) as client:
            start = time.monotonic()
            await client.validate_token()
            return time.monotonic() - start

    try:
        seconds = anyio.run(ping)
    except PrefactorAuthError as error:
        return Finding("destination", f"{destination.url} refuses the token ({error})", is_trouble=True)
    except (PrefactorHttpError, ValueError) as error:
        return Finding("destination", f"{destination.url}: {error}", is_trouble=True)
    return Finding("destination", f"{destination.url} takes the token, in {1_000 * seconds:.0f} ms")


def _waiting(settings: Settings) -> Iterator[Finding]:
    if not settings.spool or not _spool.is_possible:
        why = "PREFACTOR_SPOOL is off" if _spool.is_possible else "this system has no file locks"
        yield Finding("spool", f"none, {why}: records wait in memory, and are lost with their process")
        return
    holdings = _inventory.survey(settings.spool_dir)
    waiting = sum(each.records for each in holdings)
    size = sum(each.size for each in holdings)
    yield Finding("spool", f"{settings.spool_dir}: {waiting:,} records wait, {size:,} bytes")
    for each in holdings:
        if not each.is_alive and each.destination != settings.destination_name and each.records:
            whose = each.destination or "a newer version"
            yield Finding(
                "spool",
                f"{each.records:,} records wait for {whose}, not for this destination",
                is_trouble=True,
            )
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

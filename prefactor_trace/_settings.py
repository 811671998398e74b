"""Every knob: its default, unit, environment variable and reason. The only place that reads the environment.

Explicit arguments win over variables, variables over defaults; `PREFACTOR_DISABLED` wins over everything. A value
that cannot work is refused here, with an error that names the knob and never shows a secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefactor_trace._ids import is_pfid
from prefactor_trace._local import Destination
from prefactor_trace.errors import ConfigurationError
from prefactor_trace.http._protocol import is_loopback, is_sendable_token, proxy_for, root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DEFAULT_API_URL = "https://app.prefactorai.com"
_ON_ERROR = ("log", "raise")
_LEVELS = ("debug", "info", "warning", "error", "critical")


def _knob(default: Any, env: str, parse: Callable[[str], Any] = str, *, secret: bool = False) -> Any:
    return dataclasses.field(default=default, repr=not secret, metadata={"env": env, "parse": parse})


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is empty")
    return value.strip()


def _url(value: object) -> str:
    return root_of(_text(value))


def _token(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is empty")
    if not is_sendable_token(value):
        raise ValueError("contains a space, a newline or another character that no token has")
    return value


def _rate(value: object) -> float:
    return _number(value, 0.0, 1.0)


def _seconds(value: object) -> float:
    return _number(value, 0.0, 86_400.0)


def _number(value: object, low: float, high: float) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) else float("nan")
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ValueError(f"must be a number from {low:g} to {high:g}")
    return number


def _count(value: object) -> int:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= 2**31:
        raise ValueError("must be a whole number from 1")
    return int(text)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _redaction(value: object) -> Any:
    return value if callable(value) else _switch(value)


def _names(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in names):
        raise ValueError("must be names, or one text with commas between them")
    return tuple(name.strip() for name in names if name.strip())


def _level(value: object) -> str:
    return _one_of(value, _LEVELS)


def _on_error(value: object) -> str:
    return _one_of(value, _ON_ERROR)


def _one_of(value: object, words: tuple[str, ...]) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return word


def _path(value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError("is not a path")
    return Path(value).expanduser()


@dataclass(frozen=True)
class Settings:
    """All knobs, validated. Made by `resolve`."""

    # Where to
    api_url: str = _knob(_DEFAULT_API_URL, "PREFACTOR_API_URL", _url)
    """Root address of the API, without `/api/v1`."""
    api_token: str | None = _knob(None, "PREFACTOR_API_TOKEN", _token, secret=True)
    """Account or deployment token. None: the local platform, if one is running."""
    allow_http: bool = _knob(default=False, env="PREFACTOR_ALLOW_HTTP", parse=_switch)
    """Whether the token may go unencrypted to another machine."""
    # Who
    agent_id: str | None = _knob(None, "PREFACTOR_AGENT_ID", _text)
    """The agent's id; needed with an account token, left out with a deployment token."""
    agent_name: str = _knob("Agent", "PREFACTOR_AGENT_NAME", _text)
    """What people call the agent. Default as in the official SDK."""
    agent_version: str = _knob("v1.0.0", "PREFACTOR_AGENT_IDENTIFIER", _text)
    """The agent version's external identifier. Default as in the official SDK."""
    environment_id: str | None = _knob(None, "PREFACTOR_ENVIRONMENT_ID", _text)
    """The environment's id; needed with an account token."""
    # How much
    sample_rate: float = _knob(1.0, "PREFACTOR_SAMPLE_RATE", _rate)
    """Share of runs that are recorded, 0 to 1; a run is recorded whole or not at all."""
    capture_inputs: bool = _knob(default=True, env="PREFACTOR_CAPTURE_INPUTS", parse=_switch)
    """Whether payloads are recorded."""
    capture_outputs: bool = _knob(default=True, env="PREFACTOR_CAPTURE_OUTPUTS", parse=_switch)
    """Whether results are recorded."""
    max_input_length: int = _knob(10_000, "PREFACTOR_MAX_INPUT_LENGTH", _count)
    """Characters kept of each string in a payload. Default as in the official SDK."""
    max_output_length: int = _knob(10_000, "PREFACTOR_MAX_OUTPUT_LENGTH", _count)
    """Characters kept of each string in a result. Default as in the official SDK."""
    redact: Any = _knob(default=True, env="PREFACTOR_REDACT", parse=_redaction)  # noqa: RUF009 - a field
    """Whether secrets are taken out of what is recorded; in Python also a callable that has the last word."""
    redact_keys: tuple[str, ...] = _knob((), "PREFACTOR_REDACT_KEYS", _names)
    """Names of fields that are secret, besides the built-in ones; "-name" takes one out, "-*" all of them."""
    implicit_instances: bool = _knob(default=False, env="PREFACTOR_IMPLICIT_INSTANCES", parse=_switch)
    """Whether a span outside any instance opens one around itself, instead of running unrecorded."""
    disabled: bool = _knob(default=False, env="PREFACTOR_DISABLED", parse=_switch)
    """Records nothing, sends nothing."""
    on_error: str = _knob("log", "PREFACTOR_ON_ERROR", _on_error)
    """What a call that cannot work does, such as `record_quality` of what is not declared: `log` counts and logs it,
    `raise` raises UsageError. It is never about delivery."""
    # Delivery
    live_after: float = _knob(5.0, "PREFACTOR_LIVE_AFTER", _seconds)
    """Seconds after which a running span is shown before it ends."""
    batch_size: int = _knob(50, "PREFACTOR_BATCH_SIZE", _count)
    """Records in a request. The platform publishes no limit; 50 is the cautious assumption."""
    batch_delay: float = _knob(0.5, "PREFACTOR_BATCH_DELAY", _seconds)
    """Seconds a record waits for company."""
    buffer_bytes: int = _knob(64 * 1024 * 1024, "PREFACTOR_BUFFER_BYTES", _count)
    """Memory for records that wait."""
    request_timeout: float = _knob(10.0, "PREFACTOR_REQUEST_TIMEOUT", _seconds)
    """Seconds for one request, all included."""
    exit_timeout: float = _knob(2.0, "PREFACTOR_EXIT_TIMEOUT", _seconds)
    """Seconds that the end of the program may wait for delivery."""
    flush_on_sigterm: bool = _knob(default=False, env="PREFACTOR_FLUSH_ON_SIGTERM", parse=_switch)
    """Whether SIGTERM, where it would end the program at once, waits for delivery before it does."""
    # Surroundings
    log_level: str | None = _knob(None, "PREFACTOR_LOG_LEVEL", _level)
    """Level of the logger `prefactor_trace`. If set, and nobody has configured logging, it writes to stderr."""
    state_dir: Path = _knob(None, "PREFACTOR_STATE_DIR", _path)  # noqa: RUF009 - a field, like all the others
    """Folder for what outlives the process. Default: `prefactor` in the user's state folder."""
    spool: bool = _knob(default=True, env="PREFACTOR_SPOOL", parse=_switch)
    """Whether records are on disk as soon as they are recorded; otherwise they wait in memory alone."""
    spool_dir: Path = _knob(None, "PREFACTOR_SPOOL_DIR", _path)  # noqa: RUF009 - a field, like all the others
    """Folder of the spool. Default: `spool` in the state folder."""
    proxy: str | None = dataclasses.field(default=None, repr=False)
    """HTTP proxy, from the variables that all programs share (HTTPS_PROXY, NO_PROXY); never for loopback."""

    @property
    def destination(self) -> Destination | None:
        """Where records go if a token says so; None: to the local platform."""
        return None if self.api_token is None else Destination(self.api_url, self.api_token)

    @property
    def destination_name(self) -> str:
        """Names the destination without telling the token: what waits for one is never sent to another."""
        if self.api_token is None:
            return "local"
        return f"{self.api_url} {hashlib.sha256(self.api_token.encode()).hexdigest()[:16]}"


def resolve(arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings for *arguments* (None: not given) over *environ* (default: the process's).

    Raises ConfigurationError, naming the argument or variable, for a value that cannot work.
    """
    environ = os.environ if environ is None else environ
    unknown = set(arguments) - {knob.name for knob in dataclasses.fields(Settings) if knob.metadata}
    if unknown:
        raise ConfigurationError(f"there is no setting called {', '.join(sorted(unknown))}")
    if environ.get("PREFACTOR_DISABLED") and _switch_or_on(environ["PREFACTOR_DISABLED"]):
        state_dir = _default_state_dir(environ)
        return Settings(disabled=True, spool=False, state_dir=state_dir, spool_dir=state_dir / "spool")
    chosen: dict[str, Any] = {}
    for knob in dataclasses.fields(Settings):
        env = knob.metadata.get("env")
        if env is None:
            continue
        if arguments.get(knob.name) is not None:
            chosen[knob.name] = _parse(knob, arguments[knob.name], knob.name)
        elif environ.get(env):
            chosen[knob.name] = _parse(knob, environ[env], env)
    chosen.setdefault("state_dir", _default_state_dir(environ))
    chosen.setdefault("spool_dir", chosen["state_dir"] / "spool")
    settings = Settings(**chosen)
    _require_safe(settings)
    if settings.api_token is None:
        return settings
    return dataclasses.replace(settings, proxy=_proxy_for(settings.api_url))


def from_environment(settings: Settings) -> list[tuple[str, str, str]]:
    """Return the knobs that the environment sets, as name, value and variable; secrets are not shown."""
    set_ = [(knob, knob.metadata.get("env")) for knob in dataclasses.fields(Settings)]
    return [
        (knob.name, str(getattr(settings, knob.name)) if knob.repr else "***", variable)
        for knob, variable in set_
        if variable is not None and os.environ.get(variable)
    ]


def _parse(knob: dataclasses.Field[Any], value: object, source: str) -> Any:
    try:
        return knob.metadata["parse"](value)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a path below a home that nobody has
        # An address with an @ may hold a password, a query a token. `from None`: the cause may hold the value.
        shown = (
            ""
            if not knob.repr or any(sign in str(value) for sign in "@?#")
            else f" (got {str(value)[:80]!r})"
        )
        raise ConfigurationError(f"{source} {error}{shown}") from None


def _switch_or_on(value: str) -> bool:
    try:
        return _switch(value)
    except ValueError:
        return True  # whoever sets the off-switch, in whatever words, means off


def _require_safe(settings: Settings) -> None:
    exposed = settings.api_url.startswith("http://") and not is_loopback(settings.api_url)
    if settings.api_token is not None and exposed and not settings.allow_http:
        raise ConfigurationError(
            "PREFACTOR_API_URL is plain http to another machine, which would show the token to the network. "
            "Use https, or set PREFACTOR_ALLOW_HTTP=1 if that network is yours."
        )
    for name in ("agent_id", "environment_id"):
        if any(character in "\r\n\0" for character in getattr(settings, name) or ""):
            raise ConfigurationError(f"{name} contains a newline")


def partition_hint(settings: Settings) -> str | None:
    """Return a PFID of the account, if the settings name one."""
    return next(
        (each for each in (settings.agent_id, settings.environment_id) if each and is_pfid(each)), None
    )


def _proxy_for(url: str) -> str | None:
    # What finds it brings half of an HTTP client with it. Only these two systems have other places than variables.
    has_variable = any(name.lower().endswith("_proxy") for name in os.environ)
    if not has_variable and sys.platform not in ("darwin", "win32"):
        return None
    try:
        return proxy_for(url)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    if sys.platform == "win32":
        base = environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local"
    else:
        base = environ.get("XDG_STATE_HOME") or _home() / ".local" / "state"
    return Path(base) / "prefactor"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user without an entry: containers do that
        return Path(os.devnull)  # nothing is ever found below it, and what wants to write there says so


def apply_log_level(level: str | None) -> None:
    """Set the level of our logger; if nobody has configured logging, let it write to stderr."""
    if level is None:
        return
    logger = logging.getLogger("prefactor_trace")
    logger.setLevel(level.upper())
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)

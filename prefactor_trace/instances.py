"""Instances: one run of an agent, as what users hold and as the block that opens one."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import orjson

from prefactor_trace import _guard, _ids
from prefactor_trace._capture import trimmed
from prefactor_trace._context import Block, Scope, current
from prefactor_trace._decorate import decorate
from prefactor_trace._ending import ending_of
from prefactor_trace._peek import shorten
from prefactor_trace._quality import Mistake, Rating
from prefactor_trace._record import InstanceFinished, InstanceRegistered, InstanceStarted, QualityRecorded
from prefactor_trace._version import __version__
from prefactor_trace._worker import HEAVY
from prefactor_trace.errors import ConfigurationError, InstanceTerminated, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace._decorate import Decorated
    from prefactor_trace._record import FinalStatus
    from prefactor_trace._tracer import TracerCore
    from prefactor_trace._wrap import Open

__all__ = ["Instance", "InstanceBlock", "Purpose", "current_instance"]

F = TypeVar("F", bound="Decorated")
Purpose: TypeAlias = Literal["live", "smoke_test", "eval"]
InstanceStatus: TypeAlias = Literal["pending", "active", "complete", "failed", "cancelled", "terminated"]
_NOBODY = -1  # no process has this id
_MOST_TEXT = 10_000  # characters of a description, say
_SEARCH_SECONDS = 0.5  # of CPU at most, to find secrets in one of those: far more than it takes


class Instance(Scope):
    """One run of an agent. Made by `instance(...)`; entering the block registers and starts it.

    Attributes:
        own_id: The id that was made here and that records carry; see `id`.
        recording: False if the run is not recorded: sampled out, or tracing is disabled.
        started_at_ns: When it began: nanoseconds since the epoch; 0 before.
        clock: What `ticks_ns` said then. All times of the run are counted from there (see `_clock`).
        thread_id: The thread that began it.
        is_terminated: Whether the platform has terminated the run.
    """

    __slots__ = (
        "__weakref__",
        "_finished_at",
        "_pid",
        "_reason",
        "_status",
        "_tracer",
        "_wire_id",
        "call",
        "captures_inputs",
        "captures_outputs",
        "clock",
        "input_limits",
        "is_terminated",
        "new_id",
        "output_limits",
        "own_id",
        "put",
        "recording",
        "started_at_ns",
        "thread_id",
        "ticks_ns",
        "wire_id",
    )

    def __init__(self, tracer: TracerCore, id_: str, *, recording: bool) -> None:
        self._tracer = tracer
        self.own_id = id_
        self.call = getattr(current.get(), "call", None)
        # What every span needs stands here, one attribute away.
        self.put = tracer.put
        self.new_id = tracer.new_id
        self.ticks_ns = tracer.ticks_ns
        self.wire_id = tracer.wire_id
        self.captures_inputs = tracer.settings.capture_inputs
        self.captures_outputs = tracer.settings.capture_outputs
        self.input_limits = tracer.input_limits
        self.output_limits = tracer.output_limits
        self.recording = recording
        self._wire_id: str | None = None
        self._pid = os.getpid()
        self._status: InstanceStatus = "pending"
        self.started_at_ns = 0
        self.clock = 0
        self.thread_id = 0
        self._finished_at: int | None = None
        self.is_terminated = False
        self._reason: str | None = None

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self.status}>"

    @property
    def id(self) -> str:
        """The run's PFID, as the platform knows it.

        It is made here, and final from the start if the account's partition is known: from `agent_id`, or from an
        earlier answer. Otherwise its characters 10 to 16 are zeros until the platform has answered.
        """
        return self._wire_id or self._tracer.wire_id(self.own_id)

    @property
    def status(self) -> InstanceStatus:
        """Where the run stands, as far as this process knows."""
        return "terminated" if self.is_terminated else self._status

    @property
    def started_at(self) -> datetime | None:
        """When the run began, in UTC; of a run of another process, when it was joined here."""
        return _moment(self.started_at_ns or None)

    @property
    def finished_at(self) -> datetime | None:
        """When the run ended, in UTC; None while it is running."""
        return _moment(self._finished_at)

    @property
    def url(self) -> str | None:
        """The run's page in the local platform's viewer; None if records go elsewhere, or nowhere yet.

        The viewer lets a browser in that has once opened the address which `prefactor-trace serve` printed.
        """
        return self._tracer.viewer_url(self.id) if self.recording else None

    def check(self) -> None:
        """Raise InstanceTerminated if the platform has terminated the run."""
        if self.is_terminated:
            raise InstanceTerminated(self.id, self._reason)

    def record_quality(self, name: str, payload: object) -> None:
        """Rate the run: record *payload* under *name*, in place of what was recorded there before.

        May be called while the run is going on and after it has ended, as often as needed; the last payload of a name
        stays. Copied now; nothing here waits. A run that is not recorded is not rated either.

        Args:
            name: A `QualityType` of the schema that was given to `configure`.
            payload: What becomes a JSON object (a dict, a dataclass, a pydantic model), and fits the type's schema.
                None takes back what was recorded under the name.

        Raises:
            UsageError: With `on_error="raise"` only: the name is not declared, or the payload does not fit. Otherwise
                that is logged, counted in the ledger's notes, and nothing is recorded.
        """
        if not self.recording:
            return
        try:
            rating = self._tracer.qualities.rate(name, payload, self.output_limits)
            if isinstance(rating, Rating):
                fact = QualityRecorded(self.new_id(), self.own_id, *rating)
                self.put(fact, heavy=fact.size >= HEAVY)
        except Exception:
            _guard.failed("record a quality")
            return
        if isinstance(rating, Mistake):
            if self._tracer.settings.on_error == "raise":
                raise UsageError(rating.message)
            _guard.refused("record a quality", *rating)

    # -- its life ------------------------------------------------------------------------------------------

    def start(self, body: bytes) -> None:
        """Register and start the run. *body*: the register request."""
        self._begin()
        self.thread_id = threading.get_ident()
        if self.recording:
            self.put(InstanceRegistered(self.own_id, body, self._tracer.schema()))
            self.put(InstanceStarted(self.own_id, self.started_at_ns))

    def take_part(self) -> None:
        """Be a run that is another process's to register, start and finish."""
        self._begin()
        self._pid = _NOBODY

    def _begin(self) -> None:
        self.started_at_ns, self.clock = self._tracer.wall_ns(), self.ticks_ns()
        self._status = "active"
        if self.recording:
            self._tracer.listen(self.own_id, self)

    @property
    def tracer(self) -> TracerCore:
        """Where the run goes."""
        return self._tracer

    def returned(self, result: object) -> None:  # noqa: ARG002 - a run has no result
        """Finish the run as complete."""
        self._finish("complete")

    def raised(self, error: BaseException) -> None:
        """Finish the run as *error* says."""
        ending = ending_of(error)
        if ending == "terminated" and not self.is_terminated:
            ending = "failed"  # it was a run inside this one that the platform has terminated
        self._finish("complete" if ending == "abandoned" else ending)

    def abandoned(self, items: int) -> None:
        """Finish the run of a generator whose consumer went away."""
        self._finish("complete" if items else "cancelled")

    def _finish(self, ending: FinalStatus | Literal["terminated"]) -> None:
        # A forked child leaves the block too, but the run is its parent's to finish.
        if self._finished_at is not None or os.getpid() != self._pid:
            return
        try:
            self._finished_at = self.started_at_ns + self.ticks_ns() - self.clock
            self._status = ending
            # Over what the platform has terminated, nothing is finished.
            if self.recording and ending != "terminated" and not self.is_terminated:
                self.put(InstanceFinished(self.own_id, self._finished_at, ending))
        except RecursionError:  # the agent has used up the stack: it is finished at the end of the program
            self._finished_at = None
        except Exception:
            _guard.failed("finish an instance")

    # -- what the platform says ----------------------------------------------------------------------------

    def heard_terminated(self, reason: str | None) -> None:
        """Note that the platform has terminated the run."""
        self._reason = reason
        self.is_terminated = True

    def heard_renamed(self, wire_id: str) -> None:
        """Note the id that the platform uses."""
        self._wire_id = wire_id


class InstanceBlock(Block):
    """What `instance(...)` returns: a `with` block, an `async with` block and a decorator.

    Each entry, and each call of a decorated function, is a run of its own.
    """

    __slots__ = ("_options", "_tracer")

    def __init__(self, tracer: Callable[[], TracerCore], options: dict[str, Any]) -> None:
        super().__init__()
        self._tracer = tracer
        self._options = options

    def __enter__(self) -> Instance:
        """Begin a run and make it current."""
        run = open_instance(self._tracer(), self._options)
        self._enter(run)
        return run

    async def __aenter__(self) -> Instance:
        """Begin a run and make it current."""
        return self.__enter__()

    def __call__(self, target: F) -> F:
        """Return *target* with a run around each call; see `instance`.

        Raises:
            ConfigurationError: It cannot be called, or is a class.
        """
        decorated: F = decorate(target, self)
        return decorated

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without what is open: an object that was decorated is pickled together with this."""
        return InstanceBlock, (self._tracer, self._options)

    # -- as a decorator ------------------------------------------------------------------------------------

    def opener(self, function: Any) -> Open:  # noqa: ARG002 - all functions are run alike
        """Return what begins the run of each call of *function*."""

        def open_scope(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Instance:
            return open_instance(self._tracer(), self._options)

        return open_scope

    def over(self, inner: object) -> InstanceBlock | None:
        """Return the one decorator for two: what this one gives holds, the rest is as *inner* says."""
        if not isinstance(inner, InstanceBlock):
            return None
        given = {name: value for name, value in self._options.items() if value is not None}
        return InstanceBlock(self._tracer, {**inner._options, **given})  # noqa: SLF001 - one of our own

    def for_class(self, kind: type) -> None:
        """Refuse: which of its methods is the run, a class does not say."""
        raise ConfigurationError(
            f"{kind.__qualname__} is a class; put @instance on the method that runs the agent"
        )


def open_instance(tracer: TracerCore, options: dict[str, Any]) -> Instance:
    """Begin a run. Never raises; a run that cannot be recorded goes on unrecorded."""
    around = current_instance()
    # Whole runs are sampled: a sub-agent's run is recorded if the one around it is.
    is_outermost = around is None or around._tracer is not tracer  # noqa: SLF001 - one of our own
    recording = tracer.is_sampled() if is_outermost else around.recording  # type: ignore[union-attr]
    try:
        run = Instance(tracer, _given_id(options) or tracer.new_id(), recording=recording)
        run.start(_register_body(tracer, options) if recording else b"")
    except Exception:
        _guard.failed("start an instance")
        run = Instance(tracer, _ids.generate(), recording=False)
    return run


def join_instance(tracer: TracerCore, id_: str, *, recording: bool) -> Instance:
    """Return a run that another process has begun, to record into from here. Only its owner ever finishes it.

    Its times are counted from now, by this machine's clock.
    """
    run = Instance(tracer, id_, recording=recording and not tracer.settings.disabled)
    run.take_part()
    return run


def current_instance() -> Instance | None:
    """Return the run that this code is part of, None outside of any."""
    scope = current.get()
    if scope is None or type(scope) is Instance:
        return scope
    instance: Instance = scope.instance
    return instance


def _given_id(options: dict[str, Any]) -> str | None:
    given = options.get("id")
    if given is None:
        return None
    if type(given) is str and _ids.is_pfid(given):
        return given
    _guard.logger.warning("instance(id=...) takes a PFID of 32 characters; a new id is used instead")
    return None


def _register_body(tracer: TracerCore, options: dict[str, Any]) -> bytes:
    # Each text for itself, and to its end: what is put in place of a whole that takes too long is no registration, and
    # a run that is refused is lost with all its spans.
    redact = tracer.input_limits.redact.built_in

    def given(name: str, value: object) -> str | None:
        text = _text(name, value)
        return None if text is None else redact.text(text, seconds=_SEARCH_SECONDS)

    def chosen(name: str) -> str | None:
        return given(name, options.get(name)) or given(name, getattr(tracer.settings, name))

    def told(name: str) -> str | None:
        # Left out, as a marker would be no text, or the same for all runs. What says whose run it is has to be there.
        value = options.get(name)
        return None if value is None or redact.hides(name) else given(name, value)

    version = {
        "name": chosen("agent_name"),
        "external_identifier": chosen("agent_version"),
        "description": told("description"),
        "runtime_environment": _RUNTIME,
    }
    body = {
        "agent_id": chosen("agent_id"),
        "environment_id": chosen("environment_id"),
        "external_identifier": told("external_identifier"),
        "purpose": _purpose(options.get("purpose")),
        "agent_version": _without_none(version),
    }
    return trimmed(orjson.dumps(_without_none(body)))


def _text(name: str, value: Any) -> str | None:
    """Return what was given for *name* as text; what is none is left out, and said in the log."""
    if value is None:
        return None
    if type(value) in (str, int, float):
        with contextlib.suppress(ValueError):  # a number of more digits than Python writes
            if text := shorten(str(value), _MOST_TEXT):
                return text
    _guard.logger.warning("instance(%s=...) takes a text; the default is used instead", name)
    return None


def _purpose(value: object) -> object:
    if value is None or (type(value) is str and value in ("live", "smoke_test", "eval")):
        return value
    _guard.logger.warning("instance(purpose=...) is live, smoke_test or eval; the default is used instead")
    return None


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _moment(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else datetime.fromtimestamp(nanoseconds / 1e9, tz=timezone.utc)


# As the official SDK fills it in (API contract section 2.2).
_RUNTIME = {
    "agent_sdk": [],
    "os": sys.platform,
    "prefactor_sdk": [f"prefactor-trace@{__version__}"],
    "runtime": f"{platform.python_implementation().lower()}@{sys.version_info.major}.{sys.version_info.minor}",
}

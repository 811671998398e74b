"""Takes a run along to another process, on this machine or another: its code records steps of the same run.

What travels is a **handle**: the ids of a run and of the step to hang from, and whether the run is recorded. It says
nothing of tokens or addresses; whoever receives it records to its own destination, which must be of the same account.
The run stays its owner's: a process that joins never registers, starts or finishes it, it only adds steps.

In the headers of a request a handle is three entries of W3C `baggage`; what others have put there stays. A W3C
`traceparent` is written beside it, made from the same ids, for whoever reads only that; one of another tracer stays,
and none is ever read. Nothing is read from a carrier unless you call `extract`, because whoever may write there can
write into the run that it names: call it for requests of your own services only.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from prefactor_trace import _context, _guard, _ids
from prefactor_trace._context import Block, Scope, current
from prefactor_trace._tracer import tracer_of
from prefactor_trace.instances import Instance, current_instance, join_instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from prefactor_trace._tracer import TracerCore

__all__ = ["Handle", "current_handle", "extract", "inject", "join"]

C = TypeVar("C")

_BAGGAGE, _TRACEPARENT = "baggage", "traceparent"
_INSTANCE, _SPAN, _SAMPLED = "prefactor-instance-id", "prefactor-span-id", "prefactor-sampled"
_OURS = (_INSTANCE, _SPAN, _SAMPLED)
# What every participant has to pass on (W3C Baggage, section 3.3.2); more is neither written nor read.
_LONGEST_BAGGAGE = 8_192
_MOST_ENTRIES = 64
_TOO_LONG = 4 * _LONGEST_BAGGAGE
_LONGEST_NAME = 64
_MOST_HEADERS = 2_000
_WSGI = "http_"  # before the names of headers in a WSGI environ


class Handle(Block):
    """A place in a run, to record from elsewhere: small, and it pickles. False if it names no run.

    As a `with` or `async with` block, which give the `Instance` (None if it names no run), and as `span(parent=...)`.
    It can be entered many times, and in many tasks and threads at once. A handle that names no run changes nothing:
    the code goes on in whatever it was in. `str(handle)` is its text form, which `extract` reads.

    In the block `current_span` is None, since the step is open elsewhere, and `current_instance` is the run: its
    status is active as far as this process knows, and `check` raises once an answer to this process has said that the
    platform has terminated it.

    Attributes:
        instance_id: The run's PFID; empty if there is none.
        span_id: The PFID of the step that steps recorded here hang from. None: the run itself.
        recording: False if the run was sampled out; then nothing is recorded here either.
    """

    __slots__ = ("_tracer", "instance_id", "recording", "span_id")

    def __init__(self, instance_id: str = "", span_id: str | None = None, *, recording: bool = True) -> None:
        super().__init__()
        self.instance_id = instance_id
        self.span_id = span_id
        self.recording = recording
        self._tracer: TracerCore | None = None

    def __bool__(self) -> bool:
        return bool(self.instance_id)

    def __str__(self) -> str:
        return f"{self.instance_id}.{self.span_id or ''}.{int(self.recording)}" if self else ""

    def __repr__(self) -> str:
        return f"<Handle {self or '(no run)'}>"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if type(other) is Handle else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_text, (str(self),)

    def __enter__(self) -> Instance | None:
        """Make this code part of the run."""
        place = self.place()
        # What is entered must be told apart from the same handle entered elsewhere, so nothing is an object as well.
        self._enter(_Place(None, None) if place is None else place, as_current=place is not None)
        return None if place is None else place.instance

    async def __aenter__(self) -> Instance | None:
        """Make this code part of the run."""
        return self.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def place(self) -> _Place | None:
        """Return what spans can hang from; None if the handle names no run. Never raises."""
        if not self.instance_id:
            return None
        try:
            return _Place(self._run(), self.span_id)
        except Exception:
            _guard.failed("join a run")
            return None

    def _run(self) -> Instance:
        tracer = self._tracer or tracer_of(self.instance_id) or _context.default_tracer()
        with (
            _joining
        ):  # two threads that join at once must share one run, or only one hears of its termination
            run = tracer.listener(self.instance_id)
            if not isinstance(run, Instance):
                run = join_instance(tracer, self.instance_id, recording=self.recording)
        return run


class _Place(Scope):
    """A step, or the run itself, that is open elsewhere."""

    __slots__ = ("clock", "instance", "own_id", "started_at_ns")

    def __init__(self, instance: Instance | None, span_id: str | None) -> None:
        self.instance = instance
        self.own_id = span_id
        if instance is not None:
            self.started_at_ns, self.clock = instance.started_at_ns, instance.clock


_joining = threading.RLock()


def _begin_in_child() -> None:
    """After a fork, have a lock that nobody holds."""
    global _joining  # noqa: PLW0603 - once in each process
    _joining = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def current_handle() -> Handle:
    """Return a handle for this place in the current run; outside of any run, one that names no run."""
    handle = _current()
    if handle._tracer is not None:  # noqa: SLF001 - one of our own
        handle._tracer.expect_others()  # noqa: SLF001
    return handle


def _current() -> Handle:
    scope, run = current.get(), current_instance()
    if run is None or run.tracer.settings.disabled:
        return Handle()
    # What the platform has called by another name, only this process knows by the old one.
    is_same = _without_partition(run.id) == _without_partition(run.own_id)
    span_id = None if scope is run else scope.own_id
    if run.recording and span_id is not None and type(scope) is not _Place:
        run.tracer.show(span_id)
    handle = Handle(run.own_id if is_same else run.id, span_id, recording=run.recording)
    handle._tracer = run.tracer  # noqa: SLF001 - one of our own
    return handle


def _without_partition(pfid: str) -> str:
    return _ids.with_partition(pfid, _ids.NO_PARTITION)


def join(handle: Handle | str) -> None:
    """Make this thread part of a run for good: the initializer of a pool of processes or threads.

    `ProcessPoolExecutor(initializer=pt.join, initargs=(pt.current_handle(),))`, and the same for
    `multiprocessing.Pool`. Where a process is spawned, what `configure` was told must be told there as well, by an
    initializer of your own that then calls this. Never raises.
    """
    place = (handle if type(handle) is Handle else extract(handle)).place()
    if place is not None and place.instance is not None:
        current.set(place)
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            place.instance.tracer.end_as_child()


# -- carriers --------------------------------------------------------------------------------------------------


def inject(carrier: Any = None, *, environ: bool = False) -> Any:
    """Write the current place into *carrier*, and return it. Never raises.

    Writes the header `baggage`, keeping what others have in it, and `traceparent`, unless another tracer's is there.
    Outside of any run, and where tracing is disabled, it removes what an earlier call has left. If `baggage` is full
    (64 entries or 8,192 bytes), ours is left out.

    Args:
        carrier: What takes headers: a dict, a list of pairs, the header objects of httpx, requests and Starlette, the
            headers of a message. Texts are written as bytes if the first pair has bytes. A tuple, which cannot be
            changed, is returned as a new one. None: a new dict.
        environ: Write the names of environment variables, BAGGAGE and TRACEPARENT:
            `subprocess.run(command, env=pt.inject({**os.environ}, environ=True))`.
    """
    carrier = {} if carrier is None else carrier
    try:
        handle = current_handle() if environ else _current()
        headers = _Headers(carrier)
        before = headers.baggage()
        if headers.is_overfull:
            _guard.logger.warning("baggage is full; the run is not taken along")
            return carrier
        headers.write(_TRACEPARENT, _new_traceparent(headers, before, handle), upper=environ)
        headers.write(_BAGGAGE, _new_baggage(before, handle), upper=environ)
        return headers.result()
    except Exception as error:
        _guard.logger.warning(
            "inject() cannot write into a %s (%s); the run is not taken along",
            type(carrier).__name__,
            type(error).__name__,
        )
        return carrier


def extract(carrier: Any, *, tracer: TracerCore | None = None) -> Handle:
    """Return the handle in *carrier*, as `inject` has written it; one that names no run if there is none. Never raises.

    Whoever may write into the carrier can add steps to the run that it names: call this for requests of your own
    services only. An id of another account joins nothing: the platform does not know it there, and the steps are
    dropped after some minutes, and counted.

    Args:
        carrier: Headers in any shape that `inject` takes, names in any case; also ASGI's pairs of bytes, a WSGI
            environ, `os.environ`, a tuple of pairs, and the text form of a handle.
        tracer: Where to record. Default: where the run goes, if it is of this process; else the default tracer.
    """
    try:
        handle = (
            _read_text(carrier) if isinstance(carrier, str) else _read_entries(_Headers(carrier).baggage())
        )
    except Exception as error:
        _guard.logger.debug("extract() cannot read a %s (%s)", type(carrier).__name__, type(error).__name__)
        handle = Handle()
    handle._tracer = tracer  # noqa: SLF001 - one of our own
    return handle


def _read_text(text: str) -> Handle:
    """Read the text form of a handle."""
    parts = text.split(".", 3) if len(text) <= _LONGEST_BAGGAGE else []
    return _handle(*parts) if len(parts) == 3 else Handle()


def _read_entries(entries: list[str]) -> Handle:
    found = {}
    for entry in entries:
        name, _, value = entry.partition(";")[0].partition("=")
        if name.strip() in _OURS:
            found[name.strip()] = unquote(value.strip())
    return _handle(found.get(_INSTANCE, ""), found.get(_SPAN, ""), found.get(_SAMPLED, "1"))


def _handle(instance_id: str, span_id: str, sampled: str) -> Handle:
    if not _ids.is_pfid(instance_id):
        return Handle()
    # A step that cannot be told leaves the run.
    return Handle(instance_id, span_id if _ids.is_pfid(span_id) else None, recording=sampled != "0")


def _new_baggage(before: list[str], handle: Handle) -> str | None:
    others = [each for each in before if each.partition("=")[0].strip() not in _OURS]
    ours = []
    if handle:
        ours = [f"{_INSTANCE}={quote(handle.instance_id)}"]
        ours += [f"{_SPAN}={quote(handle.span_id)}"] if handle.span_id else []
        ours += [] if handle.recording else [f"{_SAMPLED}=0"]
    text = ",".join(others + ours)
    if ours and (len(text) > _LONGEST_BAGGAGE or len(others) + len(ours) > _MOST_ENTRIES):
        _guard.logger.warning("baggage is full (%d entries); the run is not taken along", len(others))
        text = ",".join(others)
    return text or None


def _new_traceparent(headers: _Headers, before: list[str], handle: Handle) -> str | None:
    """Return what is to stand there: another tracer's stays."""
    there = headers.get(_TRACEPARENT)
    earlier = _read_entries(before)
    is_ours = bool(earlier) and there is not None and there.strip() == _traceparent(earlier)
    return (_traceparent(handle) if handle else None) if there is None or is_ours else there


def _traceparent(handle: Handle) -> str | None:
    """Make a W3C traceparent; the same ids give the same one. None: the ids are all zeros, which it does not allow.

    The trace is the run's time and randomness, 128 bits; its partition may still be unknown, and is left out. The
    parent is the last 64 bits of the step's randomness, or of the run's.
    """
    time_and_randomness = _number(handle.instance_id[:10]) << 80 | _number(handle.instance_id[16:])
    parent = _number((handle.span_id or handle.instance_id)[16:]) & 0xFFFFFFFFFFFFFFFF
    if not time_and_randomness or not parent:
        return None
    return f"00-{time_and_randomness:032x}-{parent:016x}-{int(handle.recording):02x}"


def _number(text: str) -> int:
    number = 0
    for character in text:
        number = number << 5 | _ids.ALPHABET.index(character)
    return number


class _Header(NamedTuple):
    key: Any  # as it stands in the carrier
    name: str
    value: str | None  # None: no text, or too much of it


class _Headers:
    """The headers of ours in a carrier of any shape. Raises whatever the carrier does, or its not being one."""

    def __init__(self, carrier: Any) -> None:
        self._carrier = carrier
        self._is_list = isinstance(carrier, (list, tuple))
        self._pairs: Any = list(carrier) if isinstance(carrier, tuple) else carrier
        first = next(_pairs_in(carrier), ("", ""))
        self._has_bytes = isinstance(first[0], bytes), isinstance(first[1], bytes)
        self._shape = list if isinstance(first, list) else tuple
        self._found = [each for each in map(_header, _pairs_in(carrier)) if each is not None]
        self._baggage = [each for each in self._found if each.name == _BAGGAGE]
        sizes = [len(each.value) if each.value is not None else _TOO_LONG for each in self._baggage]
        self.is_overfull = sum(sizes) >= _TOO_LONG
        """Whether there is more baggage than anybody may send, or what is no text: it is left alone."""

    def get(self, name: str) -> str | None:
        """Return the first header called *name*."""
        return next((each.value for each in self._found if each.name == name), None)

    def baggage(self) -> list[str]:
        """Return the entries of all headers `baggage`."""
        text = "" if self.is_overfull else ",".join(each.value or "" for each in self._baggage)
        return [each.strip() for each in text.split(",") if each.strip()]

    def write(self, name: str, value: str | None, *, upper: bool) -> None:
        """Let *name* stand there once, with *value*. None: not at all."""
        keys = [each.key for each in self._found if each.name == name]
        if value == self.get(name) and len(keys) == (value is not None):
            return
        key = keys[0] if keys else self._text(name.upper() if upper else name, 0)
        text = None if value is None else self._text(value, 1)
        if self._is_list:
            self._pairs[:] = [each for each in self._pairs if _key_of(each) not in keys]
            if text is not None:
                self._pairs.append(self._shape((key, text)))
            return
        for each in dict.fromkeys(keys):
            del self._pairs[each]
        if text is not None:
            self._pairs[key] = text

    def result(self) -> Any:
        """Return the carrier as it is now."""
        return tuple(self._pairs) if isinstance(self._carrier, tuple) else self._carrier

    def _text(self, text: str, index: int) -> str | bytes:
        return text.encode("latin-1", "replace") if self._has_bytes[index] else text


def _pairs_in(carrier: Any) -> Iterator[Any]:
    """Yield the pairs of a carrier, those of a header that stands there twice included."""
    pairs: Any = carrier
    if not isinstance(carrier, (list, tuple)):
        pairs = (getattr(carrier, "multi_items", None) or carrier.items)()
    for pair in itertools.islice(pairs, _MOST_HEADERS):
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            yield pair


def _key_of(pair: Any) -> Any:
    return pair[0] if isinstance(pair, (list, tuple)) and pair else None


def _header(pair: Any) -> _Header | None:
    """Read a pair, if it is one of our two headers."""
    name = _as_text(pair[0], _LONGEST_NAME)
    name = None if name is None else name.lower().removeprefix(_WSGI)
    if name not in (_BAGGAGE, _TRACEPARENT):
        return None
    return _Header(pair[0], name, _as_text(pair[1], _TOO_LONG))


def _as_text(value: Any, longest: int) -> str | None:
    if not isinstance(value, (str, bytes)) or len(value) > longest:
        return None
    return value.decode("latin-1") if isinstance(value, bytes) else str.__str__(value)

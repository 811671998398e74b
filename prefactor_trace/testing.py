"""For the tests of people who trace: run code with recording in memory, and look at what was recorded.

    from prefactor_trace.testing import recording

    with recording() as recorded:
        with pt.instance():
            search("refund policy")
    assert recorded.tree() == "search complete"

With pytest, the fixture `traced` is such a recording for the length of a test (see `pytest_plugin`).

Everything runs as in production, up to where a batch would be sent: that is kept in memory. No thread, no network,
nothing on disk, nothing left behind: the default tracer before is the default tracer after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import sys
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import orjson

from prefactor_trace import _api, _context, _guard, _ids, _strands, _tracer
from prefactor_trace._api import Tracer, set_default
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Ledger,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._worker import Worker
from prefactor_trace.exporters import MemoryExporter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefactor_trace._record import Fact, FinalStatus
    from prefactor_trace._schema import Schema
    from prefactor_trace._strands import Begun, Strand
    from prefactor_trace._tracer import TracerCore
    from prefactor_trace.exporters import Exporter

__all__ = ["Clock", "RecordedInstance", "RecordedQuality", "RecordedSpan", "Recording", "recording"]

_Recorded: TypeAlias = "RecordedInstance | RecordedSpan"

_SHOWN = ("instances", "type", "inputs", "result", "error", "metadata", "token_usage")
_TIMINGS = ("time_to_first_item_ms", "time_to_first_token_ms")
_REPR_LENGTH = 200
_FLUSH_SECONDS = 10.0
_END_SECONDS = 1.0
_START_NS = 1_704_067_200_000_000_000  # 2024-01-01T00:00:00Z


class Clock:
    """The clock of a predictable recording. It begins at 2024-01-01T00:00:00Z, and stands still until it is moved."""

    def __init__(self) -> None:
        self._elapsed = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Clock {self.now.isoformat()}>"

    @property
    def now(self) -> datetime:
        """What the clock says, in UTC."""
        return datetime.fromtimestamp(self.wall_ns() / 1e9, tz=timezone.utc)

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass. Raises ValueError if they are negative."""
        if not seconds >= 0:
            raise ValueError(f"a clock goes forward only (got {seconds})")
        with self._lock:
            self._elapsed += round(seconds * 1e9)

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return _START_NS + self._elapsed

    def ticks_ns(self) -> int:
        """Return nanoseconds since the clock was made."""
        return self._elapsed


@dataclass(frozen=True, repr=False)
class RecordedInstance:
    """A run, as it was when it was asked for.

    Attributes:
        id: Its PFID.
        status: How it ended; None while it is open.
        registered: The request that registers it.
        started_at: Nanoseconds since the Unix epoch.
        finished_at: Likewise; None while it is open.
    """

    id: str
    status: FinalStatus | None
    registered: dict[str, Any]
    started_at: int
    finished_at: int | None
    _picture: _Picture = dataclasses.field(compare=False)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{_line(self, ())}>"

    @property
    def agent_name(self) -> str:
        """What people call the agent."""
        name: str = self.registered["agent_version"]["name"]
        return name

    @property
    def duration(self) -> float | None:
        """Seconds from start to end; None while it is open."""
        return _seconds(self.started_at, self.finished_at)

    @property
    def parent(self) -> RecordedInstance | RecordedSpan | None:
        """The step, or the run, in which this run of a sub-agent was opened; None if it was opened outside of any."""
        return self._picture.parent_of(self)

    @property
    def children(self) -> list[RecordedSpan]:
        """The steps directly in this run, in the order of `tree`."""
        return _only_spans(self._picture.below(self.id))

    @property
    def instances(self) -> list[RecordedInstance]:
        """The runs of sub-agents that were opened directly in this run, in the order of `tree`."""
        return _only_instances(self._picture.below(self.id))

    @property
    def spans(self) -> list[RecordedSpan]:
        """All steps of this run, without those of sub-agents, in the order they began."""
        return [each for each in self._picture.spans if each.instance_id == self.id]

    def span(self, name: str) -> RecordedSpan:
        """Return the one step of this run that is called *name*, or is of that type; see `Recording.span`."""
        __tracebackhide__ = True
        return _the_one(name, self.spans, f"in {self!r}", self.tree())

    def tree(self, *, show: str | Iterable[str] = ()) -> str:
        """Return the steps of this run as indented lines; see `Recording.tree`."""
        return _tree(self._picture, [self], show)


@dataclass(frozen=True, repr=False)
class RecordedSpan:
    """A step, as it was when it was asked for. What was not recorded is None.

    Attributes:
        id: Its PFID.
        instance_id: The PFID of its run.
        parent_id: The PFID of the step it was begun in; None if that is the run itself.
        type: Name of its type.
        name: What people read: the title, if it has one, else the type.
        status: How it ended; None while it is open.
        payload: What went in, a JSON object.
        result: What came out, a JSON object: `{"output": …}` if it was none.
        error: `error_type`, `message` and `stacktrace` of a failed step.
        metadata: What else is known, such as `items` of a generator, and `abandoned` if its consumer left.
        token_usage: Counts by name, of a model's call.
        started_at: Nanoseconds since the Unix epoch.
        finished_at: Likewise; None while it is open.
    """

    id: str
    instance_id: str
    parent_id: str | None
    type: str
    name: str
    status: FinalStatus | None
    payload: Any
    result: Any
    error: Any
    metadata: Any
    token_usage: Any
    started_at: int
    finished_at: int | None
    _picture: _Picture = dataclasses.field(compare=False)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        text = f"<span {_line(self, ('inputs', 'result', 'error', 'metadata'))}>"
        return text if len(text) <= _REPR_LENGTH else f"{text[:_REPR_LENGTH]}…>"

    @property
    def inputs(self) -> Any:
        """The payload, under its name on the wire."""
        return self.payload

    @property
    def duration(self) -> float | None:
        """Seconds from start to end; None while it is open."""
        return _seconds(self.started_at, self.finished_at)

    @property
    def instance(self) -> RecordedInstance | None:
        """The run it belongs to; None if that is not recorded here."""
        return self._picture.instance_of(self)

    @property
    def parent(self) -> RecordedSpan | None:
        """The step it was begun in; None if that is the run itself."""
        parent = self._picture.parent_of(self)
        return parent if isinstance(parent, RecordedSpan) else None

    @property
    def children(self) -> list[RecordedSpan]:
        """The steps directly in this one, in the order of `tree`."""
        return _only_spans(self._picture.below(self.id))

    @property
    def instances(self) -> list[RecordedInstance]:
        """The runs of sub-agents that were opened directly in this step, in the order of `tree`."""
        return _only_instances(self._picture.below(self.id))

    def span(self, name: str) -> RecordedSpan:
        """Return the one step within this one, however deep, that is called *name*; see `Recording.span`."""
        __tracebackhide__ = True
        return _the_one(name, self._picture.within(self), f"in {self!r}", self.tree())

    def tree(self, *, show: str | Iterable[str] = ()) -> str:
        """Return this step and those in it as indented lines; see `Recording.tree`."""
        return _tree(self._picture, [self], show)


class RecordedQuality(NamedTuple):
    """A rating of a run. *payload* is None where a rating was taken back."""

    instance_id: str
    name: str
    payload: dict[str, Any] | None


class Recording:
    """What has been recorded so far. Looking at it is possible at any time, from any thread, and after its end.

    Attributes:
        tracer: The default tracer at the beginning.
    """

    def __init__(self, tracer: Tracer, indoors: _Indoors) -> None:
        self.tracer = tracer
        self._indoors = indoors
        self._exporter = indoors.memory

    def __repr__(self) -> str:
        picture = self._indoors.picture()
        return f"<Recording: instances {len(picture.instances)}, spans {len(picture.spans)}>"

    def __str__(self) -> str:
        return self.tree()

    @property
    def instances(self) -> list[RecordedInstance]:
        """The runs, in the order they began."""
        return self._indoors.picture().instances

    @property
    def spans(self) -> list[RecordedSpan]:
        """The spans, those still open included, in the order they began."""
        return self._indoors.picture().spans

    @property
    def quality(self) -> list[RecordedQuality]:
        """The ratings of all runs, in the order they were recorded; the last one of a run and name is what stays."""
        return [
            RecordedQuality(each.instance_id, each.name, _parse(each.payload))
            for each in self._indoors.records()
            if isinstance(each, QualityRecorded)
        ]

    @property
    def ledger(self) -> Ledger:
        """The ledger of all that was recorded here, whatever tracer it came from."""
        return self._indoors.ledger()

    @property
    def clock(self) -> Clock:
        """The clock that all times come from. Raises RuntimeError unless the recording is predictable."""
        if self._indoors.clock is None:
            raise RuntimeError(
                "only a predictable recording has a clock of its own: "
                "use recording(predictable=True), or @pytest.mark.traced(predictable=True)"
            )
        return self._indoors.clock

    def instance(self, agent_name: str | None = None) -> RecordedInstance:
        """Return the one run that was recorded, or the one of the agent *agent_name*.

        Raises AssertionError if there is none, or several. The message shows the tree.
        """
        __tracebackhide__ = True
        picture = self._indoors.picture()
        found = [each for each in picture.instances if agent_name in (None, each.agent_name)]
        if len(found) == 1:
            return found[0]
        of_agent = "" if agent_name is None else f" of agent {agent_name!r}"
        count = "no instance" if not found else f"{len(found)} instances"
        tree = _tree(picture, picture.roots, ("instances",))
        raise AssertionError(f"{count}{of_agent}, where one was expected\n{_or_nothing(tree)}")

    def span(self, name: str) -> RecordedSpan:
        """Return the one span that is called *name*, or is of that type.

        Raises AssertionError if there is none, or several. The message shows the tree. Those of several runs, or
        below several steps, are found by `span` of an instance or of a span.
        """
        __tracebackhide__ = True
        picture = self._indoors.picture()
        return _the_one(name, picture.spans, "", _tree(picture, picture.roots, ()))

    def tree(self, *, show: str | Iterable[str] = ()) -> str:
        """Return the spans as indented lines of name and status (`running` while open), children below parents.

        What one thread or task began stands in that order. Where several were at work at once there is no order
        that would be the same tomorrow, so their steps stand together, sorted by name, status and contents. They
        are known to follow each other if they left for the other thread by different calls of `carry`, or if the
        second task was made after the first had ended; `spans` has all in the order they happened to begin.

        Args:
            show: What else to show, one or more of `inputs`, `result`, `error` (its type and message), `metadata`
                (without `time_to_first_item_ms` and `time_to_first_token_ms`), `token_usage`,
                `type` (of the span), as `name=JSON` behind the status; and `instances`: a line `[agent name] status`
                for each run, its spans below it. Otherwise runs have no lines, and the steps of a sub-agent stand
                below the step it ran in.

        Raises:
            ValueError: *show* names something else.
        """
        picture = self._indoors.picture()
        return _tree(picture, picture.roots, show)

    def clear(self) -> None:
        """Forget what has been recorded. What is still open stays, and the numbers of predictable ids go on."""
        self._indoors.clear()


@contextlib.contextmanager
def recording(
    *, predictable: bool = False, schema: Schema | None = None, **settings: Any
) -> Iterator[Recording]:
    """Record in memory for the length of the block, which begins outside of any run.

    The environment's PREFACTOR variables are not looked at. Tracers that the code in the block makes or configures,
    and those made before, have the settings they are given, and record here all the same: their URL, token,
    exporter and spool are not used. Runs that were open before go on where they were.
    Other processes are not reached.

    Args:
        predictable: Let ids count up from 1 (they are PFIDs all the same), and let all times come from `clock`,
            which stands still until it is moved. With several threads, which of them gets which id is open.
        schema: Span types to declare beside those of decorated functions.
        settings: As for `configure`, without `exporter`. They win over what the code in the block configures.

    Raises:
        ConfigurationError: A setting does not exist, or its value cannot work.
    """
    indoors = _Indoors(settings, Clock() if predictable else None)
    with indoors.entered():
        tracer = Tracer(schema=schema)
        before = set_default(tracer)
        try:
            yield Recording(tracer, indoors)
        finally:
            set_default(before)


# -- where it is kept --------------------------------------------------------------------------------------


class _Indoors:
    """Takes in all tracers there are, notes the facts they are told, and keeps what they would have sent."""

    def __init__(self, settings: dict[str, Any], clock: Clock | None) -> None:
        self.memory = MemoryExporter()
        self.exporter: Exporter = self.memory
        self.settings = settings
        self.clock = clock
        self._numbers = itertools.count(1)
        self._strands = _strands.Strands()
        self._workers: list[Worker] = []
        self._made: list[Tracer] = []
        self._begun: dict[str, Begun] = {}
        self._around: dict[str, str] = {}  # runs → the step or run they were opened in
        self._open: dict[str, SpanStarted] = {}
        self._cleared: set[str] = set()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Keep everything in memory for the length of the block, and put back what was before."""
        outer = _api.indoors
        others = [each for each in list(_tracer._alive) if each not in _in_memory]  # noqa: SLF001 - all there are
        before = [(each, dict(vars(each))) for each in others]
        place, scope = self._strands.enter(), _context.current.set(None)
        noted_departure, _context.noted_departure = _context.noted_departure, _strands.note_departure
        logger = logging.getLogger("prefactor_trace")
        level, handlers = logger.level, list(logger.handlers)
        try:
            for tracer in others:
                self._divert(tracer)
            _api.indoors = self
            yield
        finally:
            _api.indoors = outer
            for each in self._made:
                each.shutdown(_END_SECONDS)
            for tracer, parts in before:
                self._put_back(tracer, parts)
            _context.noted_departure = noted_departure
            _context.leave(scope, None)
            self._strands.leave(place)
            logger.setLevel(level)  # `log_level` sets both
            logger.handlers[:] = handlers

    def take_in(self, tracer: Tracer) -> None:
        """Keep what a new tracer records."""
        self._made.append(tracer)
        self._divert(tracer)

    def _divert(self, tracer: TracerCore) -> None:
        """Let *tracer* record here. All that a tracer is given, it has already: only where it leads is changed."""
        # Without a sender nothing leaves until somebody looks, so what waits must not be bounded.
        limits = tracer._worker._limits._replace(buffer_bytes=sys.maxsize)  # noqa: SLF001
        worker = Worker(limits, lambda: self.exporter, tracer._heard, threaded=False)  # noqa: SLF001
        self._workers.append(worker)

        def put(fact: Fact, *, heavy: bool = False) -> None:
            if not worker.is_closed:
                self._note(fact)
            worker.put(fact, heavy=heavy)

        parts: dict[str, Any] = {"_worker": worker, "put": put, "_is_over_http": False}
        if self.clock is not None:
            parts |= {"wall_ns": self.clock.wall_ns, "ticks_ns": self.clock.ticks_ns}
            parts["new_id"] = lambda: self._next_id(tracer._partition)  # noqa: SLF001
        vars(tracer).update(parts)
        _in_memory.add(tracer)

    def _put_back(self, tracer: TracerCore, parts: dict[str, Any]) -> None:
        vars(tracer)["_worker"].shutdown(_END_SECONDS)
        for name in ("_worker", "put", "_is_over_http", "wall_ns", "ticks_ns", "new_id"):
            vars(tracer).pop(name, None)
            if name in parts:
                vars(tracer)[name] = parts[name]
        _in_memory.discard(tracer)
        alive = _tracer._alive  # noqa: SLF001 - if it was shut down here, it goes on there
        if tracer not in alive:
            alive.append(tracer)

    def _next_id(self, partition: str) -> str:
        assert self.clock is not None
        milliseconds = self.clock.wall_ns() // 1_000_000
        return _ids.encode(milliseconds, 10) + partition + _ids.encode(next(self._numbers), 16)

    def _note(self, fact: Fact) -> None:
        if type(fact) is SpanStarted:
            self._begun[fact.id] = self._strands.begin()
            self._open[fact.id] = fact
        elif type(fact) is SpanEnded:
            self._open.pop(fact.id, None)
            begun = self._begun.get(fact.id)
            if begun is not None:
                self._strands.end(begun)
        elif type(fact) is InstanceRegistered:
            scope = _context.current.get()
            begun = self._strands.begin(anew=scope is None)
            self._begun.setdefault(fact.instance_id, begun)
            if scope is not None:
                self._around[fact.instance_id] = scope.own_id
            self._cleared.discard(fact.instance_id)

    # -- looking at it -------------------------------------------------------------------------------------

    def picture(self) -> _Picture:
        """Return what there is now."""
        records = self.records()
        picture = _Picture(self._begun, self._around, self._strands.home)
        ended = [each for each in records if type(each) is SpanRecord]
        known = {each.id for each in ended}
        still_open = [SpanRecord(each, None) for each in list(self._open.values()) if each.id not in known]
        spans = [_read(each, picture) for each in (*ended, *still_open) if each.id not in self._cleared]
        in_use = {each.instance_id for each in spans}
        runs = [each for each in _runs(records, picture) if each.id not in self._cleared or each.id in in_use]
        picture.take(runs, spans)
        return picture

    def clear(self) -> None:
        """Forget what has ended."""
        records = self.records()
        self._cleared |= {each.id for each in records if type(each) is SpanRecord}
        self._cleared |= {each.instance_id for each in records if type(each) is InstanceFinished}

    def ledger(self) -> Ledger:
        """Return the sum of all ledgers."""
        ledgers = [each.ledger for each in self._workers]
        dropped: Counter[str] = Counter()
        notes: Counter[str] = Counter(_guard.errors)
        for each in ledgers:
            dropped.update(each.dropped)
            notes.update(each.notes)
        created, delivered = sum(each.created for each in ledgers), sum(each.delivered for each in ledgers)
        pending = sum(each.pending for each in ledgers)
        return Ledger(created, delivered, dict(dropped), pending, dict(notes))

    def records(self) -> list[Any]:
        for worker in self._workers:
            worker.flush(_FLUSH_SECONDS)
        return self.memory.records


_in_memory: weakref.WeakSet[TracerCore] = weakref.WeakSet()
"""The tracers that some recording has taken in."""


# -- one moment of it --------------------------------------------------------------------------------------


class _Picture:
    """All that was recorded at one moment, and how it hangs together."""

    def __init__(self, begun: Mapping[str, Begun], around: Mapping[str, str], home: Strand) -> None:
        self.instances: list[RecordedInstance] = []
        self.spans: list[RecordedSpan] = []
        self._begun = dict(begun)
        self._around = dict(around)
        self._home = home
        self._by_id: dict[str, _Recorded] = {}
        self._below: dict[str | None, list[_Recorded]] | None = None

    def take(self, instances: list[RecordedInstance], spans: list[RecordedSpan]) -> None:
        """Fill in what is recorded."""
        self.instances, self.spans = sorted(instances, key=self._order), sorted(spans, key=self._order)
        self._by_id = {each.id: each for each in instances} | {each.id: each for each in spans}

    @property
    def roots(self) -> list[_Recorded]:
        """What was begun outside of everything, in the order of the tree."""
        return self.below(None)

    def below(self, id_: str | None) -> list[_Recorded]:
        """Return what hangs under *id_*, in the order of the tree."""
        if self._below is None:
            self._below = self._put_in_order()
        return self._below.get(id_, [])

    def within(self, span: RecordedSpan) -> list[RecordedSpan]:
        """Return the spans below *span*, however deep."""
        found: list[RecordedSpan] = []
        stack = list(reversed(self.below(span.id)))
        while stack:
            each = stack.pop()
            if isinstance(each, RecordedSpan):
                found.append(each)
            stack += reversed(self.below(each.id))
        return found

    def instance_of(self, span: RecordedSpan) -> RecordedInstance | None:
        """Return the run of *span*."""
        run = self._by_id.get(span.instance_id)
        return run if isinstance(run, RecordedInstance) else None

    def parent_of(self, each: _Recorded) -> _Recorded | None:
        """Return what *each* hangs under."""
        if isinstance(each, RecordedInstance):
            return self._by_id.get(self._around.get(each.id, ""))
        return self._by_id.get(each.parent_id or "") or self._by_id.get(each.instance_id)

    def _order(self, each: _Recorded) -> int:
        return self._begun[each.id].order

    def _put_in_order(self) -> dict[str | None, list[_Recorded]]:
        below: dict[str | None, list[_Recorded]] = {}
        texts: dict[str, _Text] = {}
        for each in self._by_id.values():
            parent = self.parent_of(each)
            below.setdefault(None if parent is None else parent.id, []).append(each)

        def ordered(items: list[_Recorded], around: Strand) -> list[_Recorded]:
            return _strands.in_order(
                items, around, lambda each: self._begun[each.id], lambda each: texts[each.id]
            )

        # What is begun within something is begun after it, so from the last to the first it is known what is below.
        for each in sorted(self._by_id.values(), key=self._order, reverse=True):
            children = below.get(each.id, [])
            if children:
                below[each.id] = children = ordered(children, self._begun[each.id].strand)
            texts[each.id] = _text_of(each, [texts[child.id] for child in children])
        below[None] = ordered(below.get(None, []), self._home)
        return below


class _Text(NamedTuple):
    """What siblings are sorted by: what a bare tree shows comes first, so that it never depends on the contents."""

    line: str
    size: int
    shape: str
    contents: str
    everything: str


def _text_of(each: _Recorded, below: list[_Text]) -> _Text:
    line, contents = _line(each, ()), _line(each, _SHOWN)
    shape = _digest(line, *(text.shape for text in below))
    everything = _digest(contents, *(text.everything for text in below))
    return _Text(line, 1 + sum(text.size for text in below), shape, contents, everything)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _runs(records: list[Any], picture: _Picture) -> list[RecordedInstance]:
    starts = {each.instance_id: each.at for each in records if type(each) is InstanceStarted}
    ends = {each.instance_id: each for each in records if type(each) is InstanceFinished}
    registered = {each.instance_id: each for each in reversed(records) if type(each) is InstanceRegistered}
    runs = []
    for id_, each in registered.items():
        end = ends.get(id_)
        runs.append(
            RecordedInstance(
                id=id_,
                status=end and end.status,
                registered=orjson.loads(each.body),
                started_at=starts.get(id_, 0),
                finished_at=end and end.at,
                _picture=picture,
            )
        )
    return runs


def _read(record: SpanRecord, picture: _Picture) -> RecordedSpan:
    started, ended = record.started, record.ended or _NOT_ENDED
    return RecordedSpan(
        id=started.id,
        instance_id=started.instance_id,
        parent_id=started.parent_id,
        type=started.schema_name,
        name=started.name,
        status=record.ended and ended.status,
        payload=_parse(started.payload if ended.payload is None else ended.payload),
        result=_parse(ended.result),
        error=_parse(ended.error),
        metadata=_parse(ended.metadata),
        token_usage=_parse(ended.usage),
        started_at=started.started_at,
        finished_at=record.ended and ended.finished_at,
        _picture=picture,
    )


_NOT_ENDED = SpanEnded("", "complete", 0)


def _parse(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


def _seconds(start: int, end: int | None) -> float | None:
    return None if end is None else (end - start) / 1e9


def _only_spans(items: list[_Recorded]) -> list[RecordedSpan]:
    return [each for each in items if isinstance(each, RecordedSpan)]


def _only_instances(items: list[_Recorded]) -> list[RecordedInstance]:
    return [each for each in items if isinstance(each, RecordedInstance)]


# -- in words ----------------------------------------------------------------------------------------------


def _tree(picture: _Picture, roots: Sequence[_Recorded], show: str | Iterable[str]) -> str:
    shown = (show,) if isinstance(show, str) else tuple(show)
    for word in shown:
        if word not in _SHOWN:
            raise ValueError(f"a tree cannot show {word!r}, only {', '.join(_SHOWN)}")
    lines = []
    stack = [(each, 0) for each in reversed(roots)]
    while stack:
        each, depth = stack.pop()
        if "instances" in shown or isinstance(each, RecordedSpan):
            lines.append("  " * depth + _line(each, shown))
            depth += 1
        stack += ((child, depth) for child in reversed(picture.below(each.id)))
    return "\n".join(lines)


def _line(each: _Recorded, shown: Iterable[str]) -> str:
    status = each.status or "running"
    if isinstance(each, RecordedInstance):
        return f"[{_printable(each.agent_name)}] {status}"
    values = {
        "type": each.type,
        "inputs": each.payload,
        "result": each.result,
        "error": each.error and f"{each.error.get('error_type')}: {each.error.get('message')}",
        "metadata": _repeatable(each.metadata),
        "token_usage": each.token_usage,
    }
    parts = [
        f"{word}={_json(value)}" for word, value in values.items() if word in shown and value is not None
    ]
    return " ".join([_printable(each.name), status, *parts])


def _repeatable(metadata: Any) -> Any:
    """Return *metadata* without what is another number each time, None if nothing is left."""
    if metadata is None:
        return None
    return {key: value for key, value in metadata.items() if key not in _TIMINGS} or None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _printable(name: str) -> str:
    """Return *name* as it fits into a line."""
    return name if name.isprintable() else _json(name)[1:-1]


def _the_one(name: str, spans: list[RecordedSpan], where: str, tree: str) -> RecordedSpan:
    __tracebackhide__ = True
    found = [each for each in spans if name in (each.name, each.type)]
    if len(found) == 1:
        return found[0]
    count = "no span is" if not found else f"{len(found)} spans are"
    hint = "" if found else _hint(name, spans)
    place = f" {where}" if where else ""
    raise AssertionError(f"{count} called {name!r}{place}, where one was expected{hint}\n{_or_nothing(tree)}")


def _hint(name: str, spans: list[RecordedSpan]) -> str:
    import difflib

    names = sorted({each.name for each in spans} | {each.type for each in spans})
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _or_nothing(tree: str) -> str:
    return tree or (
        "Nothing was recorded. Steps outside of any run are not, unless the test opens one, or asks for "
        "implicit_instances=True."
    )

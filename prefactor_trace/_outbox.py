"""Where records wait until the platform has them; decides what leaves, when, and what is given up.

Pure: the caller brings time (`now`: seconds of any monotonic clock) and randomness, and calls from one thread at
a time. In go facts (`put`) and outcomes (`resolve`); out come batches (`next`) and the ledger.

Theory of operation. A span lives in one of three places: *open* (it has begun, the platform does not know),
*announced* (it is still running and the platform has been told), *waiting* (all is known, to be sent). Instance
facts are waiting at once, and so is a quality, which may come when its run is over. A batch is cut from the front of what waits, and nothing leaves by being cut: records
leave when an outcome says that the platform has them, or never will. So a batch that failed is simply cut again.

The platform wants parents before children, but children end first. Therefore a batch that takes a child takes its
parent along: from further back if it is waiting, as an announcement if it is open still. A parent that was given
up is stepped over, so that its children hang from the next span above. An announcement whose fate is unknown is
repeated until it is known, even if the span has ended meanwhile: the platform may have it, and a second create
under the same id would be refused.

When more waits than one batch takes, the beginnings of the latest runs go ahead, as a part of every batch: so a run is
seen soon after it has begun, however much there is to catch up with. They may, because nothing of a run comes before
its beginning; all the rest leaves in the order in which it came.

A run may be another process's, and so may the span that ours hang from: a **stranger**. What comes to the platform
before the stranger does is refused, held, and tried again. A run that never comes is given up with all of its spans; a
span that never comes is stepped over.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace._record import (
    FINISH,
    OPEN,
    QUALITY,
    REGISTER,
    START,
    FinalStatus,
    InstanceFinished,
    InstanceRegistered,
    Ledger,
    Outcome,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from prefactor_trace._record import Fact, InstanceRecord, Record

    _Entry = tuple[int, float, Record, int]

# Waits between attempts while the platform is in trouble: full jitter below 1 s, 2 s, 4 s ... 30 s.
_BACKOFF_SECONDS = 1.0
_BACKOFF_CAP_SECONDS = 30.0
# No server may silence us for longer than this (OpenTelemetry has no cap, LangSmith hung on one hour).
_RETRY_AFTER_CAP_SECONDS = 900.0
# Spans given up are remembered as long as children may still arrive.
_LOST_PARENTS_KEPT = 10_000
# Runs that have ended are remembered as long as somebody may still rate them: it spares the platform a question.
_ENDED_KEPT = 1_000
# One request's bytes; the platform publishes no limit (API contract section 13, no. 2).
_BATCH_BYTES = 1_000_000
# More than this does not wait for the end of a burst: memory comes first.
_BURST_BYTES = 16 * 1024 * 1024
_INSTANCE_RECORD_SIZE = 700  # measured: 610
_RETURNED = 0  # the ticket of what was kept elsewhere before
# While there is much to catch up with, one new run for so many places in a batch goes ahead: its beginning costs two
# requests, and what is older must get on as well.
_PLACES_PER_NEW_RUN = 10
# After a failure a few records find out whether the platform takes any: then all may follow at once.
_PROBE_SIZE = 10
# Spans of a run that another process registers may be earlier than it: so often, and so long, they are tried again.
_STRANGER_SECONDS = (0.2, 1.0, 5.0, 30.0, 120.0, 300.0)
_STRANGER_TRIES_AT_END = 2  # if there is no disk on which they could wait for the next process
_STRANGERS_KEPT = 10_000
_NOT_HELD = (0.0, 0)
_RETURN_SECONDS = 0.01
_OTHERS_SECONDS = 0.5  # between two looks at what other processes have of a run
# A record over which the platform fails, while it takes others, is tried again after so long; then it is given up.
_STRIKE_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
# One over which it falls silent costs the time of a request each time, and is perhaps only slow: it is tried seldom,
# with room for others in between, and never given up for that.
_SILENT_STRIKE_SECONDS = (30.0, 60.0, 120.0, 300.0, 300.0, 300.0)
_FINISH_WAITS_FOR = 5  # so often a record is tried alone before its run's finish goes ahead of it
_HELD_KEPT_SECONDS = 600.0
_SEARCH_PAUSE_SECONDS = 0.2
_SEARCH_STEPS = 12
_NO_STRIKE = (0, 0, 0)
_TRIES_TOLD = 20
POISON = "refused: the platform fails over it"
_LEFT_OUT = b'{"$truncated":"buffer full"}'


class Send(NamedTuple):
    """Hand this batch to the exporter, then call `resolve`."""

    batch: tuple[Record, ...]


class Wait(NamedTuple):
    """Nothing to do for so many seconds (None: until something is put). *for_news*: a new fact may change that."""

    seconds: float | None
    for_news: bool = True


class Done(NamedTuple):
    """Closed, and nothing will come any more."""


class Strike(NamedTuple):
    """The platform has failed over a record that was sent alone.

    Attributes:
        identity: What the record is settled under.
        key: The record's key.
        strikes: How often, each after the platform had taken others.
        tries: How often in all.
    """

    identity: str
    key: str
    strikes: int
    tries: int


class Limits(NamedTuple):
    """How much waits, and for how long.

    Attributes:
        buffer_bytes: Memory for records. From seven eighths on, payloads and results are left out of further
            spans; when it is full, further spans are dropped.
        batch_size: Records in one batch.
        batch_delay: Seconds a record may wait for company.
        burst_delay: Seconds a full batch may wait, so that the sender does not compete with those who are recording
            a burst. 0 where only what has left is safe.
        live_after: Seconds after which an open span is announced, so that people see it running.
    """

    buffer_bytes: int = 64 * 1024 * 1024
    batch_size: int = 50
    batch_delay: float = 0.5
    burst_delay: float = 0.0
    live_after: float = 5.0


class Finishes(enum.Enum):
    """Finishes of runs."""

    NONE = enum.auto()
    RETURNED = enum.auto()
    """Those that were kept elsewhere, and have come back."""
    ALL = enum.auto()


class Outbox:
    """See the module's docstring. Methods never raise and never block."""

    def __init__(self, limits: Limits = Limits(), *, reports: bool = False) -> None:  # noqa: B008 - immutable
        self._limits = limits
        self._tight = limits.buffer_bytes * 7 // 8
        self._open: dict[str, tuple[float, SpanStarted]] = {}  # since when
        self._announced: dict[str, SpanStarted] = {}
        # Spans by their id, instance records by their key → ticket, since when, what, its size.
        self._waiting: dict[str, _Entry] = {}
        self._bytes = 0
        self._new: dict[str, None] = {}  # instances whose registration is waiting, and was never elsewhere
        self._running: set[str] = set()  # instances registered and not finished
        self._dead: dict[str, str] = {}  # instances the platform refused → why
        self._over: dict[
            str, str | None
        ] = {}  # instances that have ended here, the latest → why they were given up
        self._lost: dict[str, str | None] = {}  # spans given up → their parent
        self._strangers: dict[str, None] = {}  # spans of other processes, from which ours hang
        self._wanted: dict[str, None] = {}  # open spans from which another process hangs its own
        self._unsure: set[str] = set()  # spans whose announcement was tried, and perhaps heard
        self._known: set[str] = set()  # instances of which the platform knows through us
        # Not to be sent now, by key; or by run or parent span, if the platform does not know it yet → until when, tries.
        self._held: dict[str, tuple[float, int]] = {}
        self._cap = limits.batch_size  # less while it is being found out which record the platform fails over
        # How often something was taken, and how often a span was.
        self._successes = 0
        self._span_successes = 0
        self._strikes: dict[
            str, tuple[int, int, int]
        ] = {}  # failed alone → strikes, after which success, tries
        self._news_of_strikes: list[Strike] = []
        self._ticket = 0
        self._flush_ticket = 0
        self.held_finishes = Finishes.NONE
        """Which runs stay unfinished for now, because a part of them may be on its way back."""
        self.held_runs: Container[str] = ()
        """Those that do because another process may have a part of them."""
        self._is_returning = False
        self._returned = 0  # records that wait and were kept elsewhere before
        self._in_flight: tuple[Record, ...] = ()
        self._failures = 0
        self._not_before = 0.0
        self._silenced = False  # by the platform, with Retry-After
        self._reachable = True
        self._nowhere = False
        self._closing = False
        self._created = 0
        self._delivered = 0
        self._dropped: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._settled: list[tuple[str, str | None]] | None = [] if reports else None

    @property
    def size(self) -> int:
        """What the records in here weigh, in bytes."""
        return self._bytes

    @property
    def length(self) -> int:
        """How many records are waiting to be sent."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """How many of them need not wait for what may be on its way back."""
        if self.held_finishes is Finishes.NONE and not self.held_runs:
            return len(self._waiting)
        return sum(not self._is_finish_held(entry) for entry in self._waiting.values())

    def _is_finish_held(self, entry: _Entry) -> bool:
        if type(entry[2]) is not InstanceFinished:
            return False
        held = self.held_finishes
        is_held = held is Finishes.ALL or (held is Finishes.RETURNED and entry[0] == _RETURNED)
        return is_held or self._waits_for_others(entry)

    def _waits_for_others(self, entry: _Entry) -> bool:
        return type(entry[2]) is InstanceFinished and entry[2].instance_id in self.held_runs

    @property
    def is_empty(self) -> bool:
        """Whether nothing is waiting to be sent."""
        return not self._waiting

    @property
    def has_open(self) -> bool:
        """Whether a span has begun of which the platform is still to be told."""
        return bool(self._open)

    @property
    def is_nowhere(self) -> bool:
        """Whether there is no destination to reach."""
        return self._nowhere

    @property
    def is_in_trouble(self) -> bool:
        """Whether the last attempt has failed, so that more to send would only wait."""
        return self._failures > 0

    # -- in ------------------------------------------------------------------------------------------------

    def holds(self, span_id: str) -> bool:
        """Whether a span has begun in here, and not ended."""
        return span_id in self._open or span_id in self._announced

    def put_back(self, fact: Fact, now: float) -> None:
        """Take a fact that was recorded before and kept elsewhere: also after `close`."""
        closing, self._closing = self._closing, False
        self._is_returning = True
        self.put(fact, now)
        self._is_returning = False
        self._closing = closing

    def put(self, fact: Fact, now: float) -> None:
        """Take a fact."""
        # Span facts come by the thousand, so their two methods avoid every call they can.
        if type(fact) is SpanStarted:
            self._put_started(fact, now)
        elif type(fact) is SpanEnded:
            self._put_ended(fact, now)
        else:
            self._put_instance(fact, now)  # type: ignore[arg-type] # the two span facts are handled above

    def _put_started(self, started: SpanStarted, now: float) -> None:
        self._created += 1
        if self._closing or started.instance_id in self._dead:
            self._drop(started.id, self._dead.get(started.instance_id, "after_shutdown"))
            return
        size = started.size
        if self._bytes + size > self._tight and started.payload is not None:
            started = started._replace(payload=_LEFT_OUT)
            size = started.size
            self._notes["payload left out: buffer full"] += 1
        self._open[started.id] = (now, started)
        self._bytes += size
        parent_id = started.parent_id
        if parent_id is not None and parent_id not in self._open and parent_id not in self._announced:
            self._strangers[parent_id] = None
            _keep_latest(self._strangers, _STRANGERS_KEPT)

    def _put_ended(self, ended: SpanEnded, now: float) -> None:
        opened = self._open.pop(ended.id, None)
        started = opened[1] if opened else self._announced.pop(ended.id, None)
        if started is None:  # its start was given up, or belongs to the process we were forked from
            return
        record = SpanRecord(started, ended, opened is None)
        added = ended.size
        size = started.size + added
        self._bytes += added
        if self._bytes > self._tight:
            self._bytes -= size
            smaller = self._without_data(record)
            if smaller is None:
                self._lose(started, "overflow")
                return
            record, size = smaller, smaller.size
            self._bytes += size
        self._waiting[ended.id] = (self._next_ticket(), now, record, size)
        if self._is_returning:
            self._move_finish_back(started.instance_id)

    def _move_finish_back(self, instance_id: str) -> None:
        """After its finish a run takes nothing more, so that must stay the last of it."""
        key = instance_id + FINISH
        if key in self._waiting:
            self._waiting[key] = self._waiting.pop(key)

    def _next_ticket(self) -> int:
        if self._is_returning:  # it is older than everything that has a ticket
            self._returned += 1
            return _RETURNED
        self._ticket += 1
        return self._ticket

    def _put_instance(self, fact: InstanceRecord, now: float) -> None:
        self._created += 1
        if self._closing:
            # No more than counted: the finish that `close` has made up may be on its way, under the same key.
            self._dropped["after_shutdown"] += 1
            return
        instance_id = fact.instance_id
        size = _size_of(fact)
        reason = self._dead.get(instance_id)
        if type(fact) is InstanceFinished:
            self.leave(instance_id)
            self._dead.pop(instance_id, None)
        elif reason is None and type(fact) is InstanceRegistered:
            self._running.add(instance_id)
            self._over.pop(instance_id, None)
        elif reason is None and type(fact) is QualityRecorded:
            is_too_much = self._bytes + size > self._limits.buffer_bytes
            reason = self._over.get(instance_id) or ("overflow" if is_too_much else None)
        if reason is None and type(fact) is InstanceRegistered and self._bytes > self._limits.buffer_bytes:
            reason = self._dead[instance_id] = "overflow"  # the whole run: half of it would be of no use
            self._running.discard(instance_id)
        if reason is None and fact.key in self._waiting:
            self._dropped["same id twice"] += 1  # the first one goes on under this key
            return
        if reason is not None:
            self._drop(fact.key, reason)
            return
        self._waiting[fact.key] = (self._next_ticket(), now, fact, size)
        self._bytes += size
        if type(fact) is InstanceRegistered and not self._is_returning:
            self._new[instance_id] = None
        if self._is_returning and type(fact) is QualityRecorded:
            self._move_finish_back(instance_id)

    def _without_data(self, record: SpanRecord) -> SpanRecord | None:
        """Return *record* as it fits into a buffer that is getting tight: without its data, or None: not at all."""
        started, ended = record.started, record.ended
        smaller = record._replace(
            started=started._replace(payload=started.payload and _LEFT_OUT),
            ended=ended and ended._replace(payload=None, metadata=None, result=ended.result and _LEFT_OUT),
        )
        # A span the platform believes to be running must be finished in any case.
        if self._bytes + smaller.size > self._limits.buffer_bytes and not record.announced:
            return None
        self._notes["payload left out: buffer full"] += 1
        return smaller

    def know(self, instance_id: str) -> None:
        """Note that the platform has a run, which an earlier process has registered."""
        self._known.add(instance_id)

    def show(self, span_id: str) -> None:
        """Announce an open span without delay: another process is about to hang spans from it."""
        if span_id in self._open:
            self._wanted[span_id] = None

    def leave(self, instance_id: str) -> None:
        """Note that a run has ended, though its finish may not be here yet."""
        self._running.discard(instance_id)
        self._over[instance_id] = self._dead.get(instance_id)
        _keep_latest(self._over, _ENDED_KEPT)

    def suspect(self, span_id: str) -> None:
        """Note that the platform may have been told of a span while it was running, by an earlier process."""
        self._unsure.add(span_id)

    def recall(self, strike: Strike) -> None:
        """Note over what the platform has failed when an earlier process sent it."""
        seen = self._successes_for(strike.key)
        self._strikes[strike.key] = (strike.strikes, seen, strike.tries)

    # -- out -----------------------------------------------------------------------------------------------

    def next(self, now: float) -> Send | Wait | Done:
        """Cut the next batch, or say how long to wait. After a Send, call `resolve` before asking again."""
        if self._closing and (not self._waiting or not self._reachable):
            return Done()
        if self._not_before > now:
            return Wait(self._not_before - now, for_news=False)
        due = self._due(now)
        if due is None or due > 0:
            return Done() if self._is_in_vain(now) else Wait(due)
        self._in_flight = tuple(self._cut(now).values())
        if not self._in_flight:  # all that is due is held
            return Done() if self._is_in_vain(now) else Wait(self._until_something_goes(now))
        return Send(self._in_flight)

    def _is_in_vain(self, now: float) -> bool:
        """Whether the end waits only for what is on disk, and will not go in time.

        Because the platform has failed over it again and again, or another process may have something of the run.
        """
        if self._closing and all(map(self._waits_for_others, self._waiting.values())):
            return True
        if not self._closing or self._settled is None or self.held_finishes is not Finishes.NONE:
            return False
        held = [name for name, (until, _) in self._held.items() if until > now]
        return bool(held) and all(self._strikes.get(name, _NO_STRIKE)[0] > 1 for name in held)

    def _until_something_goes(self, now: float) -> float:
        """Seconds, when all that is due is held."""
        moments = [until for until, _ in self._held.values()]
        moments += [since + self._limits.live_after for since, _ in self._next_shown()]
        moments = [each for each in moments if each > now]
        if self.held_finishes is not Finishes.NONE:
            moments.append(now)
        return max(_RETURN_SECONDS, min(moments, default=now + self._limits.batch_delay) - now)

    def _due(self, now: float) -> float | None:
        """Seconds until there is something to send; None: nothing is in sight."""
        if self._held and not self._waiting and not self._open:
            self._held.clear()
        if self._wanted:
            self._wanted = {each: None for each in self._wanted if each in self._open}
            if self._wanted:
                return 0.0
        # While a run is going on, a span may begin at any moment without a word to us.
        times = [self._limits.live_after] if self._running else []
        if self._waiting:
            first = self._first_to_go(now)
            if first is None:
                times += [until - now for until, _ in self._held.values() if until > now]
                times += [_OTHERS_SECONDS] if self.held_runs else []
            else:
                ticket, since, _, _ = first
                if self._closing or ticket <= self._flush_ticket:
                    return 0.0
                times.append(since + self._delay - now)
        times += [since + self._limits.live_after - now for since, _ in self._next_shown()]
        return max(0.0, min(times)) if times else None

    @property
    def _delay(self) -> float:
        """Seconds that what waits may wait: for company, or for the end of the burst in which it came."""
        limits = self._limits
        if len(self._waiting) < limits.batch_size:
            return limits.batch_delay
        return 0.0 if self._bytes > _BURST_BYTES else min(limits.burst_delay, limits.batch_delay)

    def _first_to_go(self, now: float) -> _Entry | None:
        if self._held:
            self._held = {key: each for key, each in self._held.items() if each[0] > now - _HELD_KEPT_SECONDS}
        if not self._held and not self.held_runs:
            return next(iter(self._waiting.values()))
        able = (each for each in self._waiting.values() if not self._waits_for_others(each))
        return next((each for each in able if not self._is_held(each[2], now)), None)

    def _cut(self, now: float) -> dict[str, Record]:
        # After many failures in a row, a look at the other end: is it an outage, or are there many of them?
        is_lost = self._cap == 1 and self._failures > _SEARCH_STEPS
        return (self._cut_batch(now, from_the_end=True) if is_lost else {}) or self._cut_batch(now)

    def _cut_batch(self, now: float, *, from_the_end: bool = False) -> dict[str, Record]:
        batch: dict[str, Record] = {}
        places = min(self._cap, _PROBE_SIZE) if self._failures else self._cap
        size = 0
        passed_over: set[str] = set()  # instances whose own records are held: nothing of them may go
        unfinished: set[str] = set()  # instances of which something is held: their finish may not go
        unrated: set[tuple[str, str]] = (
            set()
        )  # instances and names: what was recorded later must stay the last
        suspect: list[Record] = []
        entries = reversed(self._waiting.items()) if from_the_end else self._in_turn()
        for key, entry in entries:
            _, _, record, record_size = entry
            instance_id = record.instance_id
            if from_the_end and not (type(record) is SpanRecord and self._is_registered(instance_id, batch)):
                continue
            if key in batch or instance_id in passed_over:
                continue
            if type(record) is InstanceFinished and (
                instance_id in unfinished or self._is_finish_held(entry)
            ):
                continue
            if type(record) is QualityRecorded and (instance_id, record.name) in unrated:
                continue
            line = self._line(record, batch)
            is_held = bool(self._held) and any(self._is_held(each, now) for each in line)
            is_suspect = bool(self._strikes) and any(each.key in self._strikes for each in line)
            if is_held or is_suspect:
                if type(record) is QualityRecorded:
                    unrated.add((instance_id, record.name))
                elif type(record) is not SpanRecord:
                    passed_over.add(instance_id)
                if self._tries(record) < _FINISH_WAITS_FOR:
                    unfinished.add(instance_id)
                if not is_held:
                    suspect = suspect or line
                continue
            size += record_size if len(line) == 1 else sum(map(_size_of, line))
            if batch and (len(batch) + len(line) > places or size > _BATCH_BYTES):
                break
            for each in line:
                batch[each.key] = each
            if record.key not in batch:
                break  # not the record itself is going, so nothing behind it may: it could be its run's finish
        if not batch and suspect:  # what the platform has failed over goes alone, and after all others
            return {each.key: each for each in suspect}
        wanted = [self._open[each][1] for each in self._wanted if each in self._open]
        for started in itertools.chain(wanted, self._overdue(now)):
            if len(batch) >= places:
                break
            if not self._is_registered(started.instance_id, batch):
                continue
            line = self._line(SpanRecord(started, None), batch)
            if not any(self._is_held(each, now) for each in line):
                batch.update((each.key, each) for each in line)
        return batch

    def _in_turn(self) -> Iterator[tuple[str, _Entry]]:
        """Yield what waits, the beginnings of new runs first; those a second time in their place."""
        if self._new and len(self._waiting) > self._cap:
            latest = list(itertools.islice(reversed(self._new), self._cap // _PLACES_PER_NEW_RUN))
            for instance_id in reversed(latest):
                for key in (instance_id + REGISTER, instance_id + START):
                    if key in self._waiting:
                        yield key, self._waiting[key]
        yield from self._waiting.items()

    def _overdue(self, now: float) -> Iterator[SpanStarted]:
        """Yield the spans that have been open for so long that they are shown."""
        for since, started in self._to_be_shown():
            if since + self._limits.live_after > now:
                return
            yield started

    def _next_shown(self) -> Iterator[tuple[float, SpanStarted]]:
        return itertools.islice(self._to_be_shown(), 1)

    def _to_be_shown(self) -> Iterator[tuple[float, SpanStarted]]:
        """Yield the open spans that are shown if they take long, with when they came; the oldest first."""
        return (each for each in self._open.values() if not each[1].quiet)

    def _line(self, record: Record, batch: dict[str, Record]) -> list[Record]:
        """Return *record* as it is to be sent, behind the parents that neither platform nor *batch* have yet."""
        if type(record) is not SpanRecord:
            return [record]
        line = [self._sendable(record)]
        parent = line[0].started.parent_id
        while parent is not None:
            above = self._unknown(parent)
            if above is None or above.key in batch:
                break
            line.append(self._sendable(above))
            parent = line[-1].started.parent_id
        line.reverse()
        return line[: self._cap]  # type: ignore[return-value] # deeper nesting goes in several batches

    def _unknown(self, span_id: str) -> SpanRecord | None:
        """Return what the platform must be sent to know the span; None if it knows it, or never will."""
        if span_id in self._open:
            return SpanRecord(self._open[span_id][1], None)
        waiting = self._waiting.get(span_id)
        if waiting is None or waiting[2].announced:  # type: ignore[union-attr] # under a span's id is a span
            return None
        return waiting[2]  # type: ignore[return-value]

    def _sendable(self, record: SpanRecord) -> SpanRecord:
        parent = record.started.parent_id
        if parent in self._lost:
            while parent in self._lost:
                parent = self._lost[parent]
            record = record._replace(started=record.started._replace(parent_id=parent))
        return record._replace(ended=None) if record.id in self._unsure and not record.announced else record

    def _tries(self, record: Record) -> int:
        return self._strikes.get(record.key, _NO_STRIKE)[2]

    def _is_held(self, record: Record, now: float) -> bool:
        names = [record.key, record.instance_id]
        if type(record) is SpanRecord and record.started.parent_id is not None:
            names.append(record.started.parent_id)
        return any(self._held.get(name, _NOT_HELD)[0] > now for name in names)

    def _is_registered(self, instance_id: str, batch: dict[str, Record]) -> bool:
        register = instance_id + REGISTER
        return register not in self._waiting or register in batch

    # -- what became of it ---------------------------------------------------------------------------------

    def resolve(self, outcome: Outcome, now: float, jitter: float) -> dict[str, str]:
        """Take the outcome of the batch that `next` handed out. *jitter*: a random number in [0, 1).

        Returns the records that were given up, by key, and why.
        """
        refused: dict[str, str] = {}
        sent, self._in_flight = self._in_flight, ()
        early = self._hold_strangers(sent, outcome, now)
        left: list[Record] = []
        for record in sent:
            if record.key in outcome.delivered:
                self._take_delivered(record)
            elif record.key in outcome.refused:
                if early.isdisjoint((record.instance_id, record.key.removesuffix(OPEN))):
                    refused[record.key] = outcome.refused[record.key]
                    self._take_refused(record, refused[record.key])
            else:
                left.append(record)
                if type(record) is SpanRecord and record.ended is None:
                    self._unsure.add(record.id)
        for instance_id, reason in outcome.dead.items():
            self.bury(instance_id, reason)
        self._running.difference_update(outcome.terminated)  # nothing is finished over what was terminated
        self._notes.update(outcome.notes)
        self._reachable = outcome.reachable or outcome.is_heard_to_fail
        self._nowhere = outcome.nowhere
        refused |= self._search_poison(sent, left, outcome, now)
        # What went wrong behind something that was taken is a new trouble: the platform is not away any more.
        if outcome.delivered:
            self._failures = 0
        # Without progress and without a word why, asking again at once would spin.
        if outcome.trouble is not None or not (outcome.delivered or outcome.refused or outcome.dead):
            self._not_before = now + self._pause(outcome, jitter)
            self._silenced = outcome.retry_after is not None
            self._failures += 1
        else:
            self._failures = 0
        return refused

    def _search_poison(
        self, sent: tuple[Record, ...], left: list[Record], outcome: Outcome, now: float
    ) -> dict[str, str]:
        """Find the record over which the platform fails, by ever smaller batches; hold it, or give it up.

        A failure counts against a record only if the platform has taken others since the last one, and against a span
        only if it has taken spans: in an outage everything fails, or all of a kind. So it may count on over many
        processes.
        """
        taken = outcome.delivered
        self._successes += bool(taken)
        self._span_successes += any(type(each) is SpanRecord and each.key in taken for each in sent)
        if not outcome.blames_batch or not left:
            if outcome.trouble is None:
                self._cap = min(self._cap * 2, self._limits.batch_size)
            return {}
        if len(left) > 1:
            self._cap = max(1, len(left) // 2)
            return {}
        record = left[0]
        before, seen, tries = self._strikes.get(record.key, _NO_STRIKE)
        successes = self._successes_for(record.key)
        strikes = before + (successes > seen)
        pauses = _STRIKE_SECONDS
        if outcome.is_silent:
            pauses = _SILENT_STRIKE_SECONDS
            strikes = min(strikes, len(pauses))
        self._strikes[record.key] = (strikes, successes, tries + 1)
        if strikes <= len(pauses):
            # Not with every attempt of a long outage.
            if self._settled is not None and (strikes != before or tries < _TRIES_TOLD):
                name = record.id if type(record) is SpanRecord else record.key
                self._news_of_strikes.append(Strike(name, record.key, strikes, tries + 1))
            self._held[record.key] = (now + pauses[max(0, strikes - 1)], strikes)
            return {}
        del self._strikes[record.key]
        self._held.pop(record.key, None)
        self._take_refused(record, POISON)
        if type(record) is InstanceRegistered:
            self.bury(record.instance_id, POISON)
        return {record.key: POISON}

    def _successes_for(self, key: str) -> int:
        """Return how often something was taken that says that the platform takes a record like this."""
        is_of_run = key.endswith((REGISTER, START, FINISH, QUALITY))
        return self._successes if is_of_run else self._span_successes

    def _pause(self, outcome: Outcome, jitter: float) -> float:
        if outcome.retry_after is not None:
            return min(outcome.retry_after, _RETRY_AFTER_CAP_SECONDS)
        if outcome.is_heard_to_fail and self._failures < _SEARCH_STEPS:
            return _SEARCH_PAUSE_SECONDS * jitter
        ceiling = min(_BACKOFF_SECONDS * 2.0 ** min(self._failures, 10), _BACKOFF_CAP_SECONDS)
        return ceiling * jitter

    def _hold_strangers(self, sent: tuple[Record, ...], outcome: Outcome, now: float) -> set[str]:
        """Hold spans that were refused because another process has yet to tell of their run, or of their parent.

        Returns their ids, and those of runs that are unknown as a whole.
        """
        # Who takes anything of a run knows the run.
        taken = [record for record in sent if record.key in outcome.delivered]
        early: set[str] = set()
        if not outcome.unknown:
            self._known.update(each.instance_id for each in taken)
            return early
        # A run that somebody else registers may have become known in the middle of the batch.
        known = self._known | {each.instance_id for each in taken if type(each) is InstanceRegistered}
        self._known.update(each.instance_id for each in taken)
        tries_before = {name: tries for name, (_, tries) in self._held.items()}
        for record in sent:
            if record.key not in outcome.unknown or not isinstance(record, (SpanRecord, QualityRecorded)):
                continue
            parent_id = record.started.parent_id if isinstance(record, SpanRecord) else None
            if parent_id in early:  # the platform was asked to hang it from what it does not know either
                early.add(record.id)
                continue
            is_run_known = record.instance_id in known
            if not (self._hangs_from_a_stranger(record) if is_run_known else self._may_yet_be_told(record)):
                continue
            name = parent_id if is_run_known and parent_id is not None else record.instance_id
            tries = tries_before.get(name, 0)
            if tries < self._patience:
                self._held[name] = (now + _STRANGER_SECONDS[tries], tries + 1)
            elif not self._step_over(parent_id):
                continue
            early |= {record.id} if is_run_known else {record.id, record.instance_id}
        return early

    def _hangs_from_a_stranger(self, record: SpanRecord | QualityRecorded) -> bool:
        if not isinstance(record, SpanRecord) or record.announced:
            return False
        return record.started.parent_id in self._strangers

    def _may_yet_be_told(self, record: SpanRecord | QualityRecorded) -> bool:
        """Whether another process may yet tell of its run: not of one that has ended here, and was rated then."""
        return isinstance(record, SpanRecord) or record.instance_id not in self._over

    @property
    def _patience(self) -> int:
        """How often what hangs from a stranger is tried again."""
        has_time = not self._closing or self._settled is not None
        return len(_STRANGER_SECONDS) if has_time else _STRANGER_TRIES_AT_END

    def _step_over(self, parent_id: str | None) -> bool:
        """Give up waiting for a span of another process. False: that was done before, or it is none."""
        if parent_id not in self._strangers:
            return False
        del self._strangers[parent_id]
        self._lost[parent_id] = None
        _keep_latest(self._lost, _LOST_PARENTS_KEPT)
        return True

    def _take_delivered(self, record: Record) -> None:
        if type(record) is SpanRecord and record.ended is None:
            self._announce(record)
            return
        key = record.id if type(record) is SpanRecord else record.key
        if type(record) is InstanceFinished:
            self._known.discard(record.instance_id)
        if self._forget(key):
            self._delivered += 1
            self._settle(key, None)

    def _announce(self, record: SpanRecord) -> None:
        """The platform knows the span as active: what is left to send, now or later, is its finish."""
        self._unsure.discard(record.id)
        if self._open.pop(record.id, None):
            self._announced[record.id] = record.started
        elif record.id in self._waiting:  # it ended while its announcement was on the way
            # The finish keeps its place: before the finish of its instance.
            ticket, since, ended, size = self._waiting[record.id]
            finish = ended._replace(announced=True)  # type: ignore[call-arg] # under a span's id is a span
            self._waiting[record.id] = (ticket, since, finish, size)

    def _take_refused(self, record: Record, reason: str) -> None:
        if type(record) is not SpanRecord:
            if self._forget(record.key):
                self._drop(record.key, reason)
            return
        # An announcement refused is the span refused: nothing in a later create would be better.
        opened = self._open.pop(record.id, None) if record.ended is None else None
        if opened:
            self._bytes -= record.started.size
        if opened or self._forget(record.id):
            self._lose(record.started, reason)

    def _forget(self, key: str) -> bool:
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return False
        if self._strikes:
            for name in (waiting[2].key, key + OPEN):  # it may have been tried while it was running
                self._strikes.pop(name, None)
                self._held.pop(name, None)
        if type(waiting[2]) is InstanceRegistered:
            self._new.pop(waiting[2].instance_id, None)
        self._bytes -= waiting[3]
        self._returned -= waiting[0] == 0
        return True

    def _lose(self, started: SpanStarted, reason: str) -> None:
        self._drop(started.id, reason)
        self._unsure.discard(started.id)
        self._lost[started.id] = started.parent_id
        _keep_latest(self._lost, _LOST_PARENTS_KEPT)

    def bury(self, instance_id: str, reason: str) -> None:
        """Drop all of an instance that is given up."""
        if instance_id in self._running:
            self._dead[instance_id] = reason
        elif instance_id in self._over:
            self._over[instance_id] = reason
        for key in [key for key, each in self._waiting.items() if each[2].instance_id == instance_id]:
            self._forget(key)
            self._drop(key, reason)
        for started in list(self._still_open()):
            if started.instance_id == instance_id:
                self._open.pop(started.id, None)
                self._announced.pop(started.id, None)
                self._bytes -= started.size
                self._drop(started.id, reason)

    def _still_open(self) -> Iterator[SpanStarted]:
        yield from (started for _, started in self._open.values())
        yield from self._announced.values()

    # -- flush, close, count -------------------------------------------------------------------------------

    def flush(self, now: float) -> int:
        """Let everything that waits now leave without delay. Return a ticket for `is_settled`."""
        self._flush_ticket = self._ticket
        if self._nowhere:  # look once more for a place to send to
            self._nowhere = False
            self._not_before = now
        return self._ticket

    def is_settled(self, ticket: int) -> bool:
        """Say whether everything that waited at *ticket* is delivered or dropped, or has nowhere to go."""
        if self._nowhere or not self._waiting:
            return True
        if self.held_runs:  # nobody waits for other processes
            # In one go: it is asked without the lock as well.
            return all(
                each[0] > ticket for each in list(self._waiting.values()) if not self._waits_for_others(each)
            )
        return not self._returned and next(iter(self._waiting.values()))[0] > ticket

    def close(self, now: float, at: int, *, but: Container[str] = ()) -> set[str]:
        """Take nothing more, and let everything leave at once. Return the ids of the spans and runs that this ends.

        What is still open cannot end any more: its spans and runs are recorded as failed, with the error type
        `Interrupted`. *at*: nanoseconds since the epoch. *but*: instances of which a part is somewhere else.
        """
        if self._closing:
            return set()
        spans = [each for each in self._still_open() if each.instance_id not in but]
        runs = sorted(each for each in self._running if each not in but)
        # Inner spans have begun later; ended in reverse, they wait in the order of a real end.
        for started in reversed(spans):
            self._put_ended(interrupted(started, at), now)
        for instance_id in runs:
            self._put_instance(InstanceFinished(instance_id, at, "failed"), now)
        self._closing = True
        # One more attempt, as soon as the platform has not asked for silence.
        self._reachable = True
        self._failures = 0
        if not self._silenced:
            self._not_before = now
        for key in self._strikes:
            self._held.pop(key, None)
        return {*(each.id for each in spans), *runs}

    def abandon(self, reason: str, *, but: Container[str] = ()) -> None:
        """Drop everything that is left. *but*: ids and keys of what is kept elsewhere, and stays pending."""
        for key in [*self._waiting, *self._open, *self._announced]:
            if key in but:
                continue
            started = self._announced.pop(key, None) or self._open.pop(key, (0.0, None))[1]
            if started is not None:
                self._bytes -= started.size
            self._forget(key)
            self._drop(key, reason)
        self._in_flight = ()

    def _drop(self, key: str, reason: str) -> None:
        self._dropped[reason] += 1
        self._settle(key, reason)

    def _settle(self, key: str, reason: str | None) -> None:
        if self._settled is not None:
            self._settled.append((key, reason))

    def take_settled(self) -> list[tuple[str, str | None]]:
        """Return what has been delivered (None) or dropped (why) since it was last asked, by id or key."""
        if not self._settled:
            return []
        settled, self._settled = self._settled, []
        return settled

    def take_strikes(self) -> list[Strike]:
        """Return over what the platform has failed since it was last asked."""
        strikes, self._news_of_strikes = self._news_of_strikes, []
        return strikes

    @property
    def ledger(self) -> Ledger:
        """The account so far; it always adds up."""
        pending = len(self._waiting) + len(self._open) + len(self._announced)
        return Ledger(self._created, self._delivered, dict(self._dropped), pending, dict(self._notes))


def _keep_latest(table: dict[str, Any], count: int) -> None:
    if len(table) > count:
        del table[next(iter(table))]


def _size_of(record: Record) -> int:
    return record.size if isinstance(record, (SpanRecord, QualityRecorded)) else _INSTANCE_RECORD_SIZE


def interrupted(started: SpanStarted, at: int) -> SpanEnded:
    """Return the end of a span whose program ended before it did."""
    error = (
        b'{"error_type":"Interrupted","message":"the program ended while this was running","stacktrace":""}'
    )
    status: FinalStatus = "failed"
    return SpanEnded(started.id, status, max(at, started.started_at), error=error)

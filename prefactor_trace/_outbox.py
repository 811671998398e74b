"""Where records wait until the platform has them; decides what leaves, when, and what is given up.

Pure: the caller brings time (`now`: seconds of any monotonic clock) and randomness, and calls from one thread at
a time. In go facts (`put`) and outcomes (`resolve`); out come batches (`next`) and the ledger.

Theory of operation. A span lives in one of three places: *open* (it has begun, the platform does not know),
*announced* (it is still running and the platform has been told), *waiting* (all is known, to be sent). Instance
facts are waiting at once. A batch is cut from the front of what waits, and nothing leaves by being cut: records
leave when an outcome says that the platform has them, or never will. So a batch that failed is simply cut again.

The platform wants parents before children, but children end first. Therefore a batch that takes a child takes its
parent along: from further back if it is waiting, as an announcement if it is open still. A parent that was given
up is stepped over, so that its children hang from the next span above. An announcement whose fate is unknown is
repeated until it is known, even if the span has ended meanwhile: the platform may have it, and a second create
under the same id would be refused.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace._record import (
    FinalStatus,
    InstanceFinished,
    InstanceRegistered,
    Ledger,
    Outcome,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefactor_trace._record import Fact, InstanceRecord, Record

# Waits between attempts while the platform is in trouble: full jitter below 1 s, 2 s, 4 s ... 30 s.
_BACKOFF_SECONDS = 1.0
_BACKOFF_CAP_SECONDS = 30.0
# No server may silence us for longer than this (OpenTelemetry has no cap, LangSmith hung on one hour).
_RETRY_AFTER_CAP_SECONDS = 900.0
# Spans given up are remembered as long as children may still arrive.
_LOST_PARENTS_KEPT = 10_000
# One request's bytes; the platform publishes no limit (API contract section 13, no. 2).
_BATCH_BYTES = 1_000_000
_INSTANCE_RECORD_SIZE = 700  # measured: 610
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


class Limits(NamedTuple):
    """How much waits, and for how long.

    Attributes:
        buffer_bytes: Memory for records. From seven eighths on, payloads and results are left out of further
            spans; when it is full, further spans are dropped.
        batch_size: Records in one batch.
        batch_delay: Seconds a record may wait for company.
        live_after: Seconds after which an open span is announced, so that people see it running.
    """

    buffer_bytes: int = 64 * 1024 * 1024
    batch_size: int = 50
    batch_delay: float = 0.5
    live_after: float = 5.0


class Outbox:
    """See the module's docstring. Methods never raise and never block."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - an immutable value
        self._limits = limits
        self._tight = limits.buffer_bytes * 7 // 8
        self._open: dict[str, tuple[float, SpanStarted]] = {}  # since when
        self._announced: dict[str, SpanStarted] = {}
        # Spans by their id, instance records by their key → ticket, since when, what, its size.
        self._waiting: dict[str, tuple[int, float, Record, int]] = {}
        self._bytes = 0
        self._running: set[str] = set()  # instances registered and not finished
        self._dead: dict[str, str] = {}  # instances the platform refused → why
        self._lost: dict[str, str | None] = {}  # spans given up → their parent
        self._unsure: set[str] = set()  # spans whose announcement was tried, and perhaps heard
        self._ticket = 0
        self._flush_ticket = 0
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

    # -- in ------------------------------------------------------------------------------------------------

    def put(self, fact: Fact, now: float) -> bool:
        """Take a fact. Return True if there is a full batch now."""
        # Span facts come by the thousand, so their two methods avoid every call they can.
        if type(fact) is SpanStarted:
            return self._put_started(fact, now)
        if type(fact) is SpanEnded:
            return self._put_ended(fact, now)
        return self._put_instance(fact, now)  # type: ignore[arg-type] # the two span facts are handled above

    def _put_started(self, started: SpanStarted, now: float) -> bool:
        self._created += 1
        if self._closing or started.instance_id in self._dead:
            self._count_dropped(self._dead.get(started.instance_id, "after_shutdown"))
            return False
        size = started.size
        if self._bytes + size > self._tight and started.payload is not None:
            started = started._replace(payload=_LEFT_OUT)
            size = started.size
            self._notes["payload left out: buffer full"] += 1
        self._open[started.id] = (now, started)
        self._bytes += size
        return False

    def _put_ended(self, ended: SpanEnded, now: float) -> bool:
        opened = self._open.pop(ended.id, None)
        started = opened[1] if opened else self._announced.pop(ended.id, None)
        if started is None:  # its start was given up, or belongs to the process we were forked from
            return False
        record = SpanRecord(started, ended, opened is None)
        added = ended.size
        size = started.size + added
        self._bytes += added
        if self._bytes > self._tight:
            self._bytes -= size
            smaller = self._without_data(record)
            if smaller is None:
                self._lose(started, "overflow")
                return False
            record, size = smaller, smaller.size
            self._bytes += size
        self._ticket += 1
        self._waiting[ended.id] = (self._ticket, now, record, size)
        return len(self._waiting) == self._limits.batch_size

    def _put_instance(self, fact: InstanceRecord, now: float) -> bool:
        self._created += 1
        instance_id = fact.instance_id
        reason = "after_shutdown" if self._closing else self._dead.get(instance_id)
        if type(fact) is InstanceFinished:
            self._running.discard(instance_id)
            self._dead.pop(instance_id, None)
        elif reason is None and type(fact) is InstanceRegistered:
            self._running.add(instance_id)
        if reason is None and type(fact) is InstanceRegistered and self._bytes > self._limits.buffer_bytes:
            reason = self._dead[instance_id] = "overflow"  # the whole run: half of it would be of no use
            self._running.discard(instance_id)
        if reason is None and fact.key in self._waiting:
            reason = "same id twice"
        if reason is not None:
            self._count_dropped(reason)
            return False
        self._ticket += 1
        self._waiting[fact.key] = (self._ticket, now, fact, _INSTANCE_RECORD_SIZE)
        self._bytes += _INSTANCE_RECORD_SIZE
        return len(self._waiting) == self._limits.batch_size

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

    # -- out -----------------------------------------------------------------------------------------------

    def next(self, now: float) -> Send | Wait | Done:
        """Cut the next batch, or say how long to wait. After a Send, call `resolve` before asking again."""
        if self._closing and (not self._waiting or not self._reachable):
            return Done()
        if self._not_before > now:
            return Wait(self._not_before - now, for_news=False)
        due = self._due(now)
        if due is None or due > 0:
            return Wait(due)
        self._in_flight = tuple(self._cut(now).values())
        return Send(self._in_flight)

    def _due(self, now: float) -> float | None:
        """Seconds until there is something to send; None: nothing is in sight."""
        # While a run is going on, a span may begin at any moment without a word to us.
        times = [self._limits.live_after] if self._running else []
        if self._waiting:
            ticket, since, _, _ = next(iter(self._waiting.values()))
            hurry = self._closing or ticket <= self._flush_ticket
            if hurry or len(self._waiting) >= self._limits.batch_size:
                return 0.0
            times.append(since + self._limits.batch_delay - now)
        if self._open:
            since, _ = next(iter(self._open.values()))
            times.append(since + self._limits.live_after - now)
        return max(0.0, min(times)) if times else None

    def _cut(self, now: float) -> dict[str, Record]:
        batch: dict[str, Record] = {}
        size = 0
        for key, (_, _, record, record_size) in self._waiting.items():
            if key in batch:
                continue
            line = self._line(record, batch)
            size += record_size if len(line) == 1 else sum(map(_size_of, line))
            if batch and (len(batch) + len(line) > self._limits.batch_size or size > _BATCH_BYTES):
                break
            for each in line:
                batch[each.key] = each
            if record.key not in batch:
                break  # not the record itself is going, so nothing behind it may: it could be its run's finish
        for since, started in self._open.values():
            if since + self._limits.live_after > now or len(batch) >= self._limits.batch_size:
                break
            if self._is_registered(started.instance_id, batch):
                batch.update((each.key, each) for each in self._line(SpanRecord(started, None), batch))
        return batch

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
        return line[: self._limits.batch_size]  # type: ignore[return-value] # deeper nesting goes in several batches

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

    def _is_registered(self, instance_id: str, batch: dict[str, Record]) -> bool:
        register = instance_id + "-register"
        return register not in self._waiting or register in batch

    # -- what became of it ---------------------------------------------------------------------------------

    def resolve(self, outcome: Outcome, now: float, jitter: float) -> None:
        """Take the outcome of the batch that `next` handed out. *jitter*: a random number in [0, 1)."""
        sent, self._in_flight = self._in_flight, ()
        for record in sent:
            if record.key in outcome.delivered:
                self._take_delivered(record)
            elif record.key in outcome.refused:
                self._take_refused(record, outcome.refused[record.key])
            elif type(record) is SpanRecord and record.ended is None:
                self._unsure.add(record.id)
        for instance_id, reason in outcome.dead.items():
            self._bury(instance_id, reason)
        self._running.difference_update(outcome.terminated)  # nothing is finished over what was terminated
        self._notes.update(outcome.notes)
        self._reachable = outcome.reachable
        self._nowhere = outcome.nowhere
        # Without progress and without a word why, asking again at once would spin.
        if outcome.trouble is not None or not (outcome.delivered or outcome.refused or outcome.dead):
            self._not_before = now + self._pause(outcome.retry_after, jitter)
            self._silenced = outcome.retry_after is not None
            self._failures += 1
        else:
            self._failures = 0

    def _pause(self, retry_after: float | None, jitter: float) -> float:
        if retry_after is not None:
            return min(retry_after, _RETRY_AFTER_CAP_SECONDS)
        ceiling = min(_BACKOFF_SECONDS * 2.0 ** min(self._failures, 10), _BACKOFF_CAP_SECONDS)
        return ceiling * jitter

    def _take_delivered(self, record: Record) -> None:
        if type(record) is SpanRecord and record.ended is None:
            self._announce(record)
        elif self._forget(record.id if type(record) is SpanRecord else record.key):
            self._delivered += 1

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
                self._count_dropped(reason)
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
        self._bytes -= waiting[3]
        return True

    def _lose(self, started: SpanStarted, reason: str) -> None:
        self._count_dropped(reason)
        self._unsure.discard(started.id)
        self._lost[started.id] = started.parent_id
        if len(self._lost) > _LOST_PARENTS_KEPT:
            del self._lost[next(iter(self._lost))]

    def _bury(self, instance_id: str, reason: str) -> None:
        """Drop all of an instance that the platform will never take."""
        if instance_id in self._running:
            self._dead[instance_id] = reason
        for key in [key for key, each in self._waiting.items() if each[2].instance_id == instance_id]:
            self._forget(key)
            self._count_dropped(reason)
        for started in list(self._still_open()):
            if started.instance_id == instance_id:
                self._open.pop(started.id, None)
                self._announced.pop(started.id, None)
                self._bytes -= started.size
                self._count_dropped(reason)

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
        return self._nowhere or not self._waiting or next(iter(self._waiting.values()))[0] > ticket

    def close(self, now: float, at: int) -> None:
        """Take nothing more, and let everything leave at once.

        What is still open cannot end any more: its spans and runs are recorded as failed, with the error type
        `Interrupted`. *at*: nanoseconds since the epoch.
        """
        if self._closing:
            return
        # Inner spans have begun later; ended in reverse, they wait in the order of a real end.
        for started in reversed(list(self._still_open())):
            self._put_ended(_interrupted(started, at), now)
        for instance_id in sorted(self._running):
            self._put_instance(InstanceFinished(instance_id, at, "failed"), now)
        self._closing = True
        # One more attempt, as soon as the platform has not asked for silence.
        self._reachable = True
        self._failures = 0
        if not self._silenced:
            self._not_before = now

    def abandon(self, reason: str) -> None:
        """Drop everything that is left."""
        for _ in range(len(self._waiting) + len(self._open) + len(self._announced)):
            self._count_dropped(reason)
        self._waiting.clear()
        self._open.clear()
        self._announced.clear()
        self._unsure.clear()
        self._in_flight = ()
        self._bytes = 0

    def _count_dropped(self, reason: str) -> None:
        self._dropped[reason] += 1

    @property
    def ledger(self) -> Ledger:
        """The account so far; it always adds up."""
        pending = len(self._waiting) + len(self._open) + len(self._announced)
        return Ledger(self._created, self._delivered, dict(self._dropped), pending, dict(self._notes))


def _size_of(record: Record) -> int:
    return record.size if type(record) is SpanRecord else _INSTANCE_RECORD_SIZE


def _interrupted(started: SpanStarted, at: int) -> SpanEnded:
    error = (
        b'{"error_type":"Interrupted","message":"the program ended while this was running","stacktrace":""}'
    )
    status: FinalStatus = "failed"
    return SpanEnded(started.id, status, max(at, started.started_at), error=error)

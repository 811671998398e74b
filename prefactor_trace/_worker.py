"""The thread around the outbox: facts come in on any thread, batches go out on one.

`put` never waits. It leaves the fact in an inbox (appending to a deque is atomic) from where the sender carries it over
to the outbox. Only while the sender is held up by the network, and the inbox fills, does the caller carry it over, if
nobody is there just then. So a destructor or a signal handler that records while its own thread is at the outbox cannot
deadlock, and no caller ever stands behind the network. Every wait for the lock has an end, because a signal can leave a
lock held for good.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections import Counter, deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace import _guard, _ids
from prefactor_trace._outbox import Done, Finishes, Limits, Outbox, Send, Wait
from prefactor_trace._record import (
    FINISH,
    QUALITY,
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Ledger,
    Outcome,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._shelf import Shelf
from prefactor_trace._wire import line_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefactor_trace._record import Fact
    from prefactor_trace._shelf import Home
    from prefactor_trace._spool import Found, Segment, Spool
    from prefactor_trace.exporters import Exporter

logger = logging.getLogger("prefactor_trace")
getpid = os.getpid

# The same loss is told once a minute at most.
_QUIET_SECONDS = 60.0
_KINDS_KEPT = 100
# So many facts wake the sender, who takes the interpreter from whoever recorded them: seldom, then, and for many.
# So many more it must be held up: 1,024 of up to 16 KB are 16 MiB beside the outbox.
_INBOX_LENGTH = 512
_INBOX_FULL = 1_024
HEAVY = 16 * 1024
"""Facts from this many bytes on are carried over at once, so that the inbox stays small."""
# The longest that anybody waits for the lock; it is held for milliseconds, unless a signal has left it held for good.
_LOCK_SECONDS = 0.5
# After a thread could not be started, recording goes on and the next try waits.
_THREAD_RETRY_SECONDS = 5.0
_AFTER_ERROR_SECONDS = 1.0
_WARM_SECONDS = 1.0
_FORK_WARNS = sys.version_info >= (3, 12)
# How long a fork waits at most for the sender to deliver what waits, and to end.
_REST_SECONDS = 0.1
# With a spool, so much is in memory at most: room for a burst while the platform takes records, little in an outage,
# so that what is new afterwards need not queue behind all the rest. What comes back from disk fills as much as that.
_ROOM_BYTES = 24 * 1024 * 1024
_ROOM_IN_TROUBLE_BYTES = 4 * 1024 * 1024
_ROOM_IN_TROUBLE_RECORDS = 1_000  # twenty full batches: seconds, also if the records are small
_ROOM_FOR_HELD_RECORDS = 3_000  # with those that wait for others; each batch passes over them
# Beyond the room there is a little for the beginnings of runs: they are to be seen, though their steps are on disk.
_ROOM_FOR_RUNS = 1 / 16
_LOADED_AT_ONCE = 500
# How often it is looked for what processes that have died left.
_ADOPT_SECONDS = 10.0
_QUOTA_SECONDS = 5.0
_READ_RETRY_SECONDS = 1.0
_FAMILY_SECONDS = 1.0


class _Bell:
    """Wakes the sender. Unlike an Event, a signal handler that has interrupted a ring may ring it again."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, seconds: float | None) -> None:
        """Wait for a ring, at most *seconds*."""
        with contextlib.suppress(queue.Empty):
            self._rings.get(timeout=None if seconds is None else min(seconds, threading.TIMEOUT_MAX))


class Worker:
    """Owns the outbox, the exporter and the sender thread of one destination.

    Args:
        limits: How much waits, and for how long.
        make_exporter: Makes what batches are handed to; called once in every process.
        heard: Called on the sender thread with every outcome, before the outbox takes it.
        make_spool: Makes what keeps facts on disk; called once in every process. None: they are in memory only.
        threaded: False sends only inside `flush` and `shutdown`, on the caller's thread.
    """

    def __init__(
        self,
        limits: Limits,
        make_exporter: Callable[[], Exporter],
        heard: Callable[[Outcome], None],
        *,
        make_spool: Callable[[], Spool] | None = None,
        threaded: bool = True,
    ) -> None:
        self._limits = limits
        self._make_exporter = make_exporter
        self._make_spool = make_spool
        self._heard = heard
        self._threaded = threaded
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._spool = self._make_spool() if self._make_spool else None
        self._write: Callable[[Fact], Home | None] | None = self._spool.write if self._spool else None
        self._shelf = Shelf()
        self._reading: _Reading | None = None
        self._half_here: set[str] = set()  # instances that come back from disk, perhaps not wholly yet
        self._taken_over: set[str] = set()  # instances of which another process may still have something
        self._has_family: bool | None = False  # whether one has; None: it is to be looked
        self._family_at = 0.0
        self._has_forked = False
        self._is_forking = False
        self._adopt_at = 0.0
        self._quota_at = 0.0
        self._read_at = 0.0
        self._room = min(self._limits.buffer_bytes, _ROOM_BYTES)
        self._room_in_trouble = min(self._room, _ROOM_IN_TROUBLE_BYTES)
        self._outbox = Outbox(self._limits, reports=self._spool is not None)
        self._exporter = self._make_exporter()
        self._inbox: deque[tuple[Fact, Home | None]] = deque()
        self._to_show: deque[str] = deque()
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._sending = threading.Lock()
        self._carrier: int | None = None
        self._bell = _Bell()
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._is_warm = threading.Event()
        self._starting = threading.Lock()
        self._thread_retry_at = 0.0
        self._stop_at: float | None = None
        self._stopped = False
        self._is_outlived = False  # by threads that still record when all has been sent
        self._over: set[str] = set()  # runs and spans that `close` has ended
        self._has_left_off = False
        self._quiet_until: dict[str, float] = {}
        self._trouble: str | None = None
        self._has_told_trouble = False
        self._told_dropped: Counter[str] = Counter()

    def begin_in_child(self) -> None:
        """Start afresh after a fork: what waits is the parent's to send, its locks and sockets are the parent's."""
        # Kept alive and untouched: closing an inherited connection could speak on the parent's socket.
        _inherited.append((self._exporter, self._lock, self._progress, self._bell, self._thread))
        if self._spool is not None:
            self._spool.forget()
        self._begin()

    def prepare_for_fork(self) -> None:
        """Let the sender finish what it is importing: a child would have half a module for good.

        Where Python warns of a fork beside other threads, also let the sender end, if it is soon without work. It
        begins again with the next fact: were it the end of the fork, Python would count it still.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._is_warm.wait(_WARM_SECONDS)
        outbox = self._outbox
        is_stuck = outbox.is_in_trouble and not outbox.is_nowhere
        if not _FORK_WARNS or is_stuck or self._stop_at is not None:
            return
        self._is_forking = True
        with self._locked(_REST_SECONDS) as mine:
            if mine:
                self._carry_over_locked()
                outbox.flush(time.monotonic())
        self._bell.ring()
        thread.join(_REST_SECONDS)

    def note_fork(self) -> None:
        """There is a child now, or another process that was told of a run, which may record into runs of ours."""
        self._has_forked = True
        self._is_forking = False

    @property
    def is_on_disk(self) -> bool:
        """Whether all that is put is on disk, so that another process can deliver it."""
        return self._spool is not None and not self._spool.failure

    # -- any thread ----------------------------------------------------------------------------------------

    def put(self, fact: Fact, *, heavy: bool = False) -> None:
        """Take a fact. Never waits for anybody. *heavy*: it has HEAVY bytes or more."""
        if getpid() != self._pid:  # forked by something that does not tell Python
            self.begin_in_child()
        write = self._write
        self._inbox.append((fact, None if write is None else write(fact)))
        # The beginning of a span is no reason to wake the sender: there is nothing to send yet.
        if self._asleep and type(fact) is not SpanStarted:
            self._asleep = False
            self._bell.ring()
        length = len(self._inbox)
        if length >= _INBOX_LENGTH or heavy:
            if length == _INBOX_LENGTH:
                self._bell.ring()
            if length >= _INBOX_FULL or heavy:
                self._carry_over()
        if self._thread is None and self._threaded:
            self._start_thread()

    def _write_late(self, fact: Fact) -> Home | None:
        """Keep what is recorded after `close`; but of a run that this has ended, the platform takes nothing more."""
        of = fact.id if type(fact) is SpanEnded else fact.instance_id  # type: ignore[union-attr] # all others have one
        if of not in self._over:
            return self._spool.write(fact)  # type: ignore[union-attr] # else there would be no `_write`
        if type(fact) is SpanStarted:
            self._over.add(fact.id)
        elif type(fact) is SpanEnded:
            self._over.discard(of)
        return None

    def show(self, span_id: str) -> None:
        """Announce an open span without delay. Never waits for anybody."""
        self._to_show.append(span_id)
        self._bell.ring()
        if self._thread is None and self._threaded:
            self._start_thread()

    def _carry_over(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._carrier = threading.get_ident()
                self._carry_over_locked()
            finally:
                self._carrier = None
                self._lock.release()

    def _carry_over_locked(self) -> None:
        now = time.monotonic()
        inbox, outbox, admit = self._inbox, self._outbox, self._shelf.admit
        # Facts come by the thousand: for most of them this is one comparison.
        plenty = 0 if outbox.is_in_trouble else self._room
        while inbox:
            fact, home = inbox.popleft()
            has_room = self._stop_at is None and (outbox.size < plenty or self._has_room(fact))
            if (
                home is None
                or admit(fact, home, has_room=has_room)
                # Only its beginning could not be written.
                or (type(fact) is SpanEnded and outbox.holds(fact.id))
            ):
                outbox.put(fact, now)
            elif type(fact) is InstanceFinished:
                outbox.leave(fact.instance_id)
            if self._has_forked and type(fact) is InstanceFinished:
                self._adopt_at = 0.0  # a child may have left something of this run
        while self._to_show:
            outbox.show(self._to_show.popleft())

    def _has_room(self, fact: Fact) -> bool:
        """Whether the outbox may have a new fact."""
        outbox = self._outbox
        room, length = self._room, 0
        if outbox.is_in_trouble and not (self._spool is not None and self._spool.is_small):
            room, length = self._room_in_trouble, outbox.length
        if outbox.size < room and length < _ROOM_IN_TROUBLE_RECORDS:
            return True
        most = min(room * (1 + _ROOM_FOR_RUNS), self._limits.buffer_bytes)
        return isinstance(fact, (InstanceRegistered, InstanceStarted)) and outbox.size < most

    def _start_thread(self) -> None:
        if (
            self._stopped
            or time.monotonic() < self._thread_retry_at
            or not self._starting.acquire(blocking=False)
        ):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="prefactor-trace", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:  # out of threads, or the interpreter is shutting down: `shutdown` will send
            self._thread_retry_at = time.monotonic() + _THREAD_RETRY_SECONDS
        finally:
            self._starting.release()

    @property
    def ledger(self) -> Ledger:
        """The account of everything put so far."""
        with self._locked(_LOCK_SECONDS) as mine:
            if mine:
                self._carry_over_locked()
            return self._account()

    def _account(self) -> Ledger:
        """The outbox's account, with what is on disk only."""
        ledger, shelf = self._outbox.ledger, self._shelf
        if self._spool is None:
            return ledger
        dropped = shelf.dropped + Counter(ledger.dropped)
        return ledger._replace(
            created=ledger.created + shelf.waiting + sum(shelf.dropped.values()),
            dropped=dict(dropped),
            pending=ledger.pending + shelf.waiting,
            notes={**ledger.notes, **self._spool.notes},
        )

    @contextlib.contextmanager
    def _locked(self, seconds: float) -> Iterator[bool]:
        """Hold the lock for the block, if it can be had within *seconds*; say whether it could."""
        # A signal handler or a destructor that has interrupted its own thread's carrying cannot wait for it.
        patience = 0.0 if self._carrier == threading.get_ident() else max(0.0, min(seconds, _LOCK_SECONDS))
        mine = self._lock.acquire(timeout=patience)
        try:
            yield mine
        finally:
            if mine:
                self._lock.release()

    def flush(self, timeout: float) -> Ledger:
        """Wait until everything recorded so far is delivered or dropped, at most *timeout* seconds."""
        deadline = time.monotonic() + timeout
        ticket = self.ask(timeout)
        if ticket is not None:
            self._drive(deadline, lambda: self.is_settled(ticket))
        return self.ledger

    def take_over(self, timeout: float) -> Ledger:
        """Deliver what processes that have died left, at most *timeout* seconds."""
        self._adopt_at = 0.0
        self._bell.ring()
        self._drive(time.monotonic() + timeout, self._has_taken_over)
        return self.ledger

    def leave_off(self) -> None:
        """Let `take_over` return after the batch that is on its way, for good. What becomes of that is not logged.

        Takes no lock, so it is never in vain. For one without a sender thread; who was taking over shuts it down.
        """
        self._has_left_off = True
        self._bell.ring()

    def _has_taken_over(self) -> bool:
        # Nobody waits for what other processes may have.
        is_sent = self._outbox.is_empty or (self._has_family is True and not self._outbox.ready)
        is_idle = self._reading is None and is_sent and not self._shelf.waiting
        is_over = self._has_left_off or self._stop_at is not None
        return is_over or (self._adopt_at > 0 and (is_idle or self._outbox.is_nowhere))

    def ask(self, timeout: float) -> int | None:
        """Let everything recorded so far leave at once. Return a ticket for `is_settled`; None: do not wait."""
        if threading.current_thread() is self._thread:  # the sender would wait for itself
            return None
        with self._locked(timeout) as mine:
            if not mine:
                return None
            self._carry_over_locked()
            ticket = self._outbox.flush(time.monotonic())
            self._adopt_at = 0.0
        self._bell.ring()
        if self._has_forked and self._thread is None and self._threaded:
            self._start_thread()
        return ticket

    def is_settled(self, ticket: int) -> bool:
        """Say whether everything that was recorded when *ticket* was given is delivered or dropped."""
        outbox = self._outbox
        return self._stopped or outbox.is_nowhere or (outbox.is_settled(ticket) and not self._has_deferred)

    @property
    def _has_deferred(self) -> bool:
        """Whether anything is on disk only: also the mere end of a span that is in memory."""
        is_reading = self._reading is not None and self._reading.segment is not None
        return (
            is_reading or bool(self._shelf.waiting) or (self._spool is not None and self._spool.has_deferred)
        )

    @property
    def is_threaded(self) -> bool:
        """Whether a thread is sending, so that waiting is enough."""
        return self._thread is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the sender has come to its end."""
        return self._stopped

    def shutdown(self, timeout: float) -> Ledger:
        """Send what can be sent within *timeout* seconds, give up the rest, and stop. Further facts are dropped."""
        deadline = time.monotonic() + timeout
        if self.close(deadline):
            self.wait_and_abandon(deadline)
        return self.ledger

    def wait_and_abandon(self, deadline: float) -> None:
        """After `close`: let the sender come to its end until *deadline*, and give up the rest."""
        self._drive(deadline, lambda: self._stopped)
        self.abandon()

    def close(self, deadline: float, left_open: Callable[[], set[str]] | None = None) -> bool:
        """Take nothing more, and let everything leave until *deadline* (monotonic).

        Args:
            deadline: When whatever has not left is given up.
            left_open: Given if others may go on recording: which runs may still be ended by somebody. If there is a
                disk, what they record is kept there, and those runs are left as they are, for the next process.

        Returns:
            False: It was closed before, or cannot be closed just now, from within a signal handler.
        """
        if self.is_closed or threading.current_thread() is self._thread:
            return False
        with self._locked(_LOCK_SECONDS) as mine:  # however little time there is, `close` must not be in vain
            if not mine:
                return False
            self._carry_over_locked()
            # Of these runs a part is on disk, or will be, and whoever brings it will end them.
            elsewhere = self._shelf.deferred | self._half_here
            self._is_outlived = left_open is not None
            if left_open is not None and self.is_on_disk:
                elsewhere |= left_open()  # only now: what is known of a run has been carried over
            self._over = self._outbox.close(time.monotonic(), time.time_ns(), but=elsewhere)
            if self._spool is not None:
                self._write = self._write_late if self._is_outlived else None
            if self._is_reading_others:
                self._reading = None  # what others have left is not worth waiting for
            self._adopt_at = 0.0
            self._stop_at = deadline
        self._bell.ring()
        return True

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been done."""
        return self._stop_at is not None

    def abandon(self) -> None:
        """Give up what has not left since `close`, and say so."""
        if self._spool is not None:
            self._spool.is_unattended = True
        with self._locked(_LOCK_SECONDS) as mine:
            self._stopped = True
            if mine:
                self._carry_over_locked()
                self._outbox.abandon("exit", but=self._shelf)
        if self._thread is None:
            # Whoever is sending without a thread comes to the end of it first; else files and sockets stay open.
            with self._turn(_LOCK_SECONDS) as mine:
                if mine:
                    self._close_spool()
                    self._close_exporter()
        ledger = self.ledger
        if lost := ledger.dropped.get("exit", 0):
            logger.warning("%d records could not be delivered before the end and are lost", lost)
        if ledger.pending:
            logger.info("%d records wait in the spool for the next process", ledger.pending)

    def _close_spool(self) -> None:
        spool = self._spool
        if spool is None:
            return
        for_good = not self._is_outlived
        spool.seal(for_good=for_good)
        self._note_quiet(spool)
        self._settle({})
        spool.close(for_good=for_good)

    def _note_quiet(self, spool: Spool) -> None:
        quiet = spool.note_quiet()
        with self._lock:
            self._carry_over_locked()
            for segment in quiet:  # nobody is writing into it, and everything in it has been carried over
                segment.is_noted = True

    def _close_exporter(self) -> None:
        try:
            self._exporter.close()
        except Exception as error:  # the user's exporter; there is nothing left to lose
            logger.warning("%s raised %s when closed", type(self._exporter).__name__, type(error).__name__)

    def _drive(self, deadline: float, is_done: Callable[[], bool]) -> None:
        """Let the sender work until *is_done* or *deadline*; without a thread, be the sender."""
        if self._thread is None:
            self._drive_inline(deadline, is_done)
            return
        with self._locked(deadline - time.monotonic()) as mine:
            while mine and not is_done():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._progress.wait(min(left, threading.TIMEOUT_MAX))

    def _drive_inline(self, deadline: float, is_done: Callable[[], bool]) -> None:
        while not is_done():
            left = deadline - time.monotonic()
            pause = self._step(max(0.0, left))
            if time.monotonic() >= deadline:
                return
            if isinstance(pause, Done):
                return
            if pause is not None:
                if pause.seconds is None or pause.seconds >= left:
                    return
                self._bell.wait(pause.seconds)

    # -- the sender thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # if it fails, so will the first batch, and say why
            getattr(self._exporter, "warm_up", _nothing)()
        self._is_warm.set()
        while True:
            try:
                pause = self._step(threading.TIMEOUT_MAX)
            except BaseException:  # whatever it is, and whosever, it must not silence the sender for good
                _guard.failed("send a batch")
                pause = Wait(_AFTER_ERROR_SECONDS)
            if pause is None:
                continue
            if isinstance(pause, Done):
                break
            if self._is_forking and self._ends_for_fork():
                return
            self._asleep = pause.for_news and (
                pause.seconds is None or pause.seconds > self._limits.batch_delay
            )
            came_meanwhile = self._asleep and self._inbox  # and whoever brought it may have seen us awake
            if not came_meanwhile:
                self._bell.wait(pause.seconds)
            self._asleep = False
        try:
            self._close_spool()  # before the program is let go
        except Exception:  # then the next process looks at it
            _guard.failed("close the spool")
        with self._progress:
            self._stopped = True
            self._progress.notify_all()
        self._close_exporter()

    def _ends_for_fork(self) -> bool:
        """Whether the sender is to end, because there is nothing to send: whoever brings something starts another."""
        if not self._starting.acquire(blocking=False):
            return False
        try:
            with self._lock:
                self._carry_over_locked()
                # A span that is open will have to be announced, for those that hang from it in other processes.
                is_at_rest = self._outbox.is_nowhere or not (self._outbox.ready or self._outbox.has_open)
                is_reading = self._reading is not None or self._has_deferred
                if not is_at_rest or is_reading or self._stop_at is not None:
                    return False
                self._thread = None
        finally:
            self._starting.release()
        if self._inbox or self._to_show:  # whoever brought it may have seen us here
            self._start_thread()
        return True

    def _step(self, patience: float) -> Wait | Done | None:
        """Send one batch if one is due, and return None; else return what to wait for."""
        # A flush without a thread, and the thread that has started meanwhile, take turns.
        with self._turn(patience) as mine:
            return self._step_alone() if mine else Wait(None)

    @contextlib.contextmanager
    def _turn(self, patience: float) -> Iterator[bool]:
        """Be the one who sends, for the block, if that is possible within *patience* seconds."""
        mine = self._sending.acquire(timeout=min(patience, threading.TIMEOUT_MAX))
        try:
            yield mine
        finally:
            if mine:
                self._sending.release()

    def _step_alone(self) -> Wait | Done | None:
        step = self._next_step()
        if isinstance(step, Send):
            self._send(step)
            return None
        return step

    def _next_step(self) -> Send | Wait | Done | None:
        """Ask the outbox what to do; None: ask again, something has come back from disk."""
        has_more = self._spool is not None and self._tend(self._spool)
        with self._lock:
            self._carry_over_locked()
            now = time.monotonic()
            self._hold_finishes(now)
            step = self._outbox.next(now)
            if not isinstance(step, Send) and not self._has_room_to_load():
                # What is held keeps out what it is held for.
                self._outbox.held_finishes, self._outbox.held_runs = Finishes.NONE, ()
                step = self._outbox.next(now)
                self._hold_finishes(now)
        if isinstance(step, Send):
            return step
        if has_more:
            return None
        if isinstance(step, Wait) and self._stop_at is not None:
            # Closing: waiting beyond the end is pointless.
            beyond = step.seconds is None or now + step.seconds >= self._stop_at
            return Done() if beyond else step
        if isinstance(step, Wait) and self._spool is not None and self._spool.has_deferred:
            again = max(0.01, self._read_at - now)
            return Wait(again if step.seconds is None else min(step.seconds, again), step.for_news)
        return step

    def _hold_finishes(self, now: float) -> None:
        """Let runs wait for what other processes may have left of them; ours, only if there may be any such thing."""
        is_about_to = self._adopt_at <= now and self._spool is not None
        if self._has_forked and (self._is_reading_others or is_about_to):
            held = Finishes.ALL
        else:
            is_open = self._is_reading_others or self._has_family is None
            held = Finishes.RETURNED if is_open else Finishes.NONE
        self._outbox.held_finishes = held
        self._outbox.held_runs = self._taken_over if self._has_family else ()

    def _has_room_to_load(self) -> bool:
        """Whether more may come back from disk."""
        outbox = self._outbox
        # Spans that are open keep their place until they end, and must not keep out what could leave meanwhile.
        room = self._limits.buffer_bytes // 2 if outbox.is_empty else self._room_in_trouble
        if outbox.size > room or outbox.length >= _ROOM_FOR_HELD_RECORDS:
            return False
        return outbox.ready < _ROOM_IN_TROUBLE_RECORDS

    def _send(self, step: Send) -> None:
        if self._spool is not None:
            self._spool.announce(self._announcements(step))
        outcome = self._export(step)
        self._heard(outcome)
        with self._lock:
            refused = self._outbox.resolve(outcome, time.monotonic(), _ids.randomness())
            for instance_id in outcome.terminated:
                self._shelf.unpin(instance_id)
            struck = [
                (home, strike)
                for strike in self._outbox.take_strikes()
                for home in self._shelf.homes_of(strike.identity)[:1]
            ]
        # Before anybody who waits for it is told, and without the lock: a handler may ask us for anything.
        self._tell(outcome)
        # Before it is settled: then it is not looked at again, whatever happens to us.
        if self._spool is not None:
            if outcome.partition is not None:
                self._spool.learn_account(outcome.partition)
            self._spool.note_strikes(struck)
            if refused:
                self._spool.reject(_letters(step, refused, outcome))
        self._settle(outcome.renamed)
        with self._progress:
            self._progress.notify_all()

    # -- the spool -----------------------------------------------------------------------------------------

    def _settle(self, renamed: dict[str, str]) -> None:
        """Write down what need not be sent again."""
        if self._spool is None:
            return
        with self._lock:
            settled = self._shelf.settle(self._outbox.take_settled())
            if self._half_here:
                self._half_here -= {each.key.removesuffix(FINISH) for each in settled}
        self._spool.settle(settled, renamed)

    def _announcements(self, step: Send) -> Iterator[tuple[Home, str]]:
        for record in step.batch:
            if type(record) is SpanRecord and record.ended is None:
                for home in self._shelf.homes_of(record.id)[:1]:
                    yield home, record.id

    def _tend(self, spool: Spool) -> bool:
        """Bring back from disk what there is room for. Return whether anything came."""
        spool.build_schemas()
        self._note_quiet(spool)
        self._keep_quota(spool)
        self._look_for_family(spool)
        with self._lock:
            has_room = not self._outbox.is_in_trouble and self._has_room_to_load()
        if not has_room:
            return False
        reading = self._reading or self._next_reading(spool)
        if reading is None:
            # The segment that has just been sealed can be read in a moment, when all threads have left it.
            return spool.has_deferred and time.monotonic() >= self._read_at
        found = list(itertools.islice(reading.facts, _LOADED_AT_ONCE))
        with self._lock:
            self._carry_over_locked()
            now = time.monotonic()
            for each in found:
                self._load(each, reading, now)
            if len(found) < _LOADED_AT_ONCE:
                self._end_reading(spool, reading)
            else:
                self._reading = reading
        return bool(found)

    @property
    def _is_reading_others(self) -> bool:
        """Whether what processes that have died left is coming back from disk."""
        return self._reading is not None and self._reading.segment is None

    def _look_for_family(self, spool: Spool) -> None:
        """Let runs that were taken over wait for what the children of their process have of them."""
        now = time.monotonic()
        if self._is_reading_others or self._has_family is False:
            return
        if self._has_family and now < self._family_at:
            return
        self._family_at = now + _FAMILY_SECONDS
        self._has_family = spool.has_family()
        if not self._has_family:
            self._taken_over = set()

    def _keep_quota(self, spool: Spool) -> None:
        now = time.monotonic()
        if now < self._quota_at:
            return
        self._quota_at = now + _QUOTA_SECONDS
        spool.look_after()
        for segment, records, lost in spool.sacrifice():
            with self._lock:
                # What is in memory is not lost with the file; but half a run is of no use, unless only a quality is gone.
                instances = {
                    instance_id
                    for key, instance_id in records
                    if not self._shelf.homes_of(key) and not key.endswith(QUALITY)
                }
                self._shelf.give_up(segment, "quota", instances, forget=True)
                for instance_id in instances:
                    self._outbox.bury(instance_id, "quota")
                self._shelf.dropped["quota"] += lost
                if not spool.has_deferred:
                    self._shelf.undefer()

    def _next_reading(self, spool: Spool) -> _Reading | None:
        now = time.monotonic()
        if spool.has_deferred and now >= self._read_at:
            segment = spool.next_deferred()
            if segment is None:
                return None
            facts = spool.read(segment)
            if facts is not None:
                return _Reading(facts, segment)
            self._read_at = now + _READ_RETRY_SECONDS
        if now < self._adopt_at:
            return None
        self._adopt_at = now + _ADOPT_SECONDS
        getattr(self._exporter, "recall_partition", _nothing)(spool.account)
        if spool.wants_account and (account := getattr(self._exporter, "account", None)) is not None:
            partition = account()
            if partition is not None:
                spool.learn_account(partition)
        # At the end of the program, only what its children have left is worth the time.
        return _Reading(spool.adopt(only_children=self._stop_at is not None), None)

    def _load(self, found: Found, reading: _Reading, now: float) -> None:
        fact, segment = found.fact, found.segment
        if found.is_known:
            instance_id: str = fact.instance_id  # type: ignore[union-attr] # of a run
            if type(fact) is InstanceFinished:
                self._shelf.unpin(instance_id)
            else:
                self._shelf.pin(instance_id, segment)
                self._outbox.know(instance_id)
            return
        take = self._shelf.load if reading.segment is not None else self._shelf.adopt
        if not take(fact, segment):
            return
        if not isinstance(fact, (SpanEnded, QualityRecorded)):
            self._half_here.add(fact.instance_id)
            if reading.segment is None:
                self._taken_over.add(fact.instance_id)
                self._has_family = None
        if found.is_suspect:
            self._outbox.suspect(fact.id)  # type: ignore[union-attr] # a span
        if found.strike is not None:
            self._outbox.recall(found.strike)
        self._outbox.put_back(fact, now)

    def _end_reading(self, spool: Spool, reading: _Reading) -> None:
        self._reading = None
        if reading.segment is not None:
            self._shelf.give_up(reading.segment, "damaged")  # what should have been in it and was not
            if not spool.has_deferred:
                self._shelf.undefer()

    def _export(self, step: Send) -> Outcome:
        try:
            return self._exporter.export(step.batch)
        except Exception as error:  # an exporter, ours or the user's, must not end the sender
            return Outcome(trouble=f"{type(self._exporter).__name__} raised {type(error).__name__}: {error}")

    def _tell(self, outcome: Outcome) -> None:
        """Log each trouble and its end, and what is lost: each at most once a minute."""
        if self._has_left_off:  # whoever wanted that is going, and the destination perhaps with them
            return
        trouble = outcome.trouble
        if trouble is not None and trouble != self._trouble:
            where = "memory" if self._spool is None or self._spool.failure else "the spool"
            self._has_told_trouble |= self._warn(trouble, "%s; records wait in %s", trouble, where)
        elif trouble is None and self._has_told_trouble:
            self._has_told_trouble = False
            logger.warning("the platform takes records again")
        self._trouble = trouble
        dropped = self._account().dropped
        lost = Counter(dropped) - self._told_dropped
        if lost and self._warn(
            "loss", "records dropped: %s", ", ".join(f"{lost[why]} {why}" for why in lost)
        ):
            self._told_dropped = Counter(dropped)

    def _warn(self, kind: str, message: str, *details: object) -> bool:
        """Log, unless something of this kind was logged within the last minute. Return whether it was."""
        now = time.monotonic()
        if self._quiet_until.get(kind, 0.0) > now:
            return False
        if len(self._quiet_until) > _KINDS_KEPT:
            self._quiet_until.clear()
        self._quiet_until[kind] = now + _QUIET_SECONDS
        logger.warning(message, *details)
        return True


def _nothing(*_: object) -> None:
    pass


def _letters(step: Send, refused: dict[str, str], outcome: Outcome) -> Iterator[bytes]:
    """Yield what was refused as lines of JSON: when, why, in the platform's words, and the record."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for record in step.batch:
        if record.key in refused:
            said = outcome.said.get(record.key) or outcome.trouble or ""
            why = {"at": at, "reason": refused[record.key], "said": said}
            line = (line_of(record) or orjson.dumps({"idempotency_key": record.key})).rstrip(b"\n")
            yield orjson.dumps({**why, "record": orjson.Fragment(line)}, option=orjson.OPT_APPEND_NEWLINE)


class _Reading:
    """What is coming back from disk. *segment*: one of our own; None: it is what others have left."""

    def __init__(self, facts: Iterator[Found], segment: Segment | None) -> None:
        self.facts = facts
        self.segment = segment


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_inherited: list[Any] = []


def _before() -> None:
    for worker in list(_workers):
        worker.prepare_for_fork()


def _after_in_parent() -> None:
    for worker in list(_workers):
        worker.note_fork()


def _begin_in_child() -> None:
    for worker in list(_workers):
        worker.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_begin_in_child, after_in_parent=_after_in_parent)

"""The thread around the outbox: facts come in on any thread, batches go out on one.

`put` never waits. It leaves the fact in an inbox (appending to a deque is atomic) from where the sender carries it over
to the outbox. Only while the sender is held up by the network, and the inbox fills, does the caller carry it over, if
nobody is there just then. So a destructor or a signal handler that records while its own thread is at the outbox cannot
deadlock, and no caller ever stands behind the network. Every wait for the lock has an end, because a signal can leave a
lock held for good.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from prefactor_trace import _guard, _ids
from prefactor_trace._outbox import Done, Limits, Outbox, Send, Wait
from prefactor_trace._record import Ledger, Outcome, SpanStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefactor_trace._record import Fact
    from prefactor_trace.exporters import Exporter

logger = logging.getLogger("prefactor_trace")

# The same loss is told once a minute at most.
_QUIET_SECONDS = 60.0
# So many facts wake the sender; so many more it must be held up: 1,024 of up to 16 KB are 16 MiB beside the outbox.
_INBOX_LENGTH = 32
_INBOX_FULL = 1_024
HEAVY = 16 * 1024
"""Facts from this many bytes on are carried over at once, so that the inbox stays small."""
# The longest that anybody waits for the lock; it is held for milliseconds, unless a signal has left it held for good.
_LOCK_SECONDS = 0.5
# After a thread could not be started, recording goes on and the next try waits.
_THREAD_RETRY_SECONDS = 5.0
_AFTER_ERROR_SECONDS = 1.0


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
        threaded: False sends only inside `flush` and `shutdown`, on the caller's thread.
    """

    def __init__(
        self,
        limits: Limits,
        make_exporter: Callable[[], Exporter],
        heard: Callable[[Outcome], None],
        *,
        threaded: bool = True,
    ) -> None:
        self._limits = limits
        self._make_exporter = make_exporter
        self._heard = heard
        self._threaded = threaded
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._outbox = Outbox(self._limits)
        self._exporter = self._make_exporter()
        self._inbox: deque[Fact] = deque()
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._sending = threading.Lock()
        self._carrier: int | None = None
        self._bell = _Bell()
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._thread_retry_at = 0.0
        self._stop_at: float | None = None
        self._stopped = False
        self._quiet_until: dict[str, float] = {}
        self._in_trouble = False

    def begin_in_child(self) -> None:
        """Start afresh after a fork: what waits is the parent's to send, its locks and sockets are the parent's."""
        # Kept alive and untouched: closing an inherited connection could speak on the parent's socket.
        _inherited.append((self._exporter, self._lock, self._progress, self._bell, self._thread))
        self._begin()

    # -- any thread ----------------------------------------------------------------------------------------

    def put(self, fact: Fact, *, heavy: bool = False) -> None:
        """Take a fact. Never waits for anybody. *heavy*: it has HEAVY bytes or more."""
        self._inbox.append(fact)
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
        inbox, outbox = self._inbox, self._outbox
        while inbox:
            outbox.put(inbox.popleft(), now)

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
            return self._outbox.ledger

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

    def ask(self, timeout: float) -> int | None:
        """Let everything recorded so far leave at once. Return a ticket for `is_settled`; None: do not wait."""
        if threading.current_thread() is self._thread:  # the sender would wait for itself
            return None
        with self._locked(timeout) as mine:
            if not mine:
                return None
            self._carry_over_locked()
            ticket = self._outbox.flush(time.monotonic())
        self._bell.ring()
        return ticket

    def is_settled(self, ticket: int) -> bool:
        """Say whether everything that was recorded when *ticket* was given is delivered or dropped."""
        return self._stopped or self._outbox.is_settled(ticket)

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

    def close(self, deadline: float) -> bool:
        """Take nothing more, and let everything leave until *deadline* (monotonic).

        False: it was closed before, or cannot be closed just now, from within a signal handler.
        """
        if self.is_closed or threading.current_thread() is self._thread:
            return False
        with self._locked(deadline - time.monotonic()) as mine:
            if not mine:
                return False
            self._carry_over_locked()
            self._outbox.close(time.monotonic(), time.time_ns())
            self._stop_at = deadline
        self._bell.ring()
        return True

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been done."""
        return self._stop_at is not None

    def abandon(self) -> None:
        """Give up what has not left since `close`, and say so."""
        with self._locked(_LOCK_SECONDS) as mine:
            self._stopped = True
            if mine:
                self._carry_over_locked()
                self._outbox.abandon("exit")
        if self._thread is None:
            self._close_exporter()
        lost = self.ledger.dropped.get("exit", 0)
        if lost:
            logger.warning("%d records could not be delivered before the end and are lost", lost)

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
            if isinstance(pause, Done):
                return
            if pause is not None:
                if pause.seconds is None or pause.seconds >= left:
                    return
                self._bell.wait(pause.seconds)

    # -- the sender thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
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
            self._asleep = pause.for_news and (
                pause.seconds is None or pause.seconds > self._limits.batch_delay
            )
            came_meanwhile = self._asleep and self._inbox  # and whoever brought it may have seen us awake
            if not came_meanwhile:
                self._bell.wait(pause.seconds)
            self._asleep = False
        with self._progress:
            self._stopped = True
            self._progress.notify_all()
        self._close_exporter()

    def _step(self, patience: float) -> Wait | Done | None:
        """Send one batch if one is due, and return None; else return what to wait for."""
        # A flush without a thread, and the thread that has started meanwhile, take turns.
        if not self._sending.acquire(timeout=min(patience, threading.TIMEOUT_MAX)):
            return Wait(None)
        try:
            return self._step_alone()
        finally:
            self._sending.release()

    def _step_alone(self) -> Wait | Done | None:
        with self._lock:
            self._carry_over_locked()
            now = time.monotonic()
            step = self._outbox.next(now)
            if self._stop_at is not None and isinstance(step, Wait):
                # Closing: waiting beyond the end is pointless.
                beyond = step.seconds is None or now + step.seconds >= self._stop_at
                return Done() if beyond else step
        if not isinstance(step, Send):
            return step
        outcome = self._export(step)
        # Before anybody who waits for it is told: what it says holds when a flush returns.
        self._tell(outcome)
        self._heard(outcome)
        with self._progress:
            self._outbox.resolve(outcome, time.monotonic(), _ids.randomness())
            self._progress.notify_all()
        return None

    def _export(self, step: Send) -> Outcome:
        try:
            return self._exporter.export(step.batch)
        except Exception as error:  # an exporter, ours or the user's, must not end the sender
            return Outcome(trouble=f"{type(self._exporter).__name__} raised {type(error).__name__}: {error}")

    def _tell(self, outcome: Outcome) -> None:
        """Log trouble once and its end once, and loss once a minute for each reason."""
        if outcome.trouble is not None:
            if not self._in_trouble:
                logger.warning("%s; records wait in memory", outcome.trouble)
            self._in_trouble = True
        elif self._in_trouble:
            self._in_trouble = False
            logger.warning("the platform takes records again")
        for reason in {*outcome.refused.values(), *outcome.dead.values()}:
            self._warn(reason, "records dropped, %s", reason)

    def _warn(self, kind: str, message: str, *details: object) -> None:
        now = time.monotonic()
        if self._quiet_until.get(kind, 0.0) <= now:
            self._quiet_until[kind] = now + _QUIET_SECONDS
            logger.warning(message, *details)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_inherited: list[Any] = []


def _begin_in_child() -> None:
    for worker in list(_workers):
        worker.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)

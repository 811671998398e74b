"""The thread around the outbox: facts come in on any thread, batches go out on one.

`put` never waits. It leaves the fact in an inbox (appending to a deque is atomic). Whoever finds the inbox filled, or
sends, carries it over to the outbox, unless somebody is there already. So a destructor that records while its own
thread is at the outbox cannot deadlock, and no caller ever stands behind the network.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from prefactor_trace import _guard, _ids
from prefactor_trace._outbox import Done, Limits, Outbox, Send, Wait
from prefactor_trace._record import Ledger, Outcome, SpanStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace._record import Fact
    from prefactor_trace.exporters import Exporter

logger = logging.getLogger("prefactor_trace")

# The same loss is told once a minute at most.
_QUIET_SECONDS = 60.0
# Facts are carried over to the outbox in lots: half the cost of one by one, and no more memory than 8 MiB.
_INBOX_LENGTH = 32
# After a thread could not be started, recording goes on and the next try waits.
_THREAD_RETRY_SECONDS = 5.0
_AFTER_ERROR_SECONDS = 1.0


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
        self._wake = threading.Event()
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
        _inherited.append((self._exporter, self._lock, self._progress, self._wake, self._thread))
        self._begin()

    # -- any thread ----------------------------------------------------------------------------------------

    def put(self, fact: Fact) -> None:
        """Take a fact. Never waits for anybody."""
        self._inbox.append(fact)
        # The beginning of a span is no reason to wake the sender: there is nothing to send yet.
        if self._asleep and type(fact) is not SpanStarted:
            self._asleep = False
            self._wake.set()
        if len(self._inbox) >= _INBOX_LENGTH and self._carry_over():
            self._wake.set()
        if self._thread is None and self._threaded:
            self._start_thread()

    def _carry_over(self) -> bool:
        full_batch = False
        # Asked again after letting go: a fact may have come while we held the lock and its owner could not.
        while len(self._inbox) >= _INBOX_LENGTH and self._lock.acquire(blocking=False):
            try:
                full_batch = self._carry_over_locked() or full_batch
            finally:
                self._lock.release()
        return full_batch

    def _carry_over_locked(self) -> bool:
        full_batch = False
        now = time.monotonic()
        inbox, outbox = self._inbox, self._outbox
        while inbox:
            full_batch = outbox.put(inbox.popleft(), now) or full_batch
        return full_batch

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
        with self._lock:
            self._carry_over_locked()
            return self._outbox.ledger

    def note(self, remark: str) -> None:
        """Add a remark to the ledger."""
        with self._lock:
            self._outbox.note(remark)

    def flush(self, timeout: float) -> Ledger:
        """Wait until everything recorded so far is delivered or dropped, at most *timeout* seconds."""
        if threading.current_thread() is self._thread:  # the sender would wait for itself
            return self.ledger
        deadline = time.monotonic() + timeout
        with self._lock:
            self._carry_over_locked()
            ticket = self._outbox.flush(time.monotonic())
        self._drive(deadline, lambda: self._stopped or self._outbox.is_settled(ticket))
        return self.ledger

    def shutdown(self, timeout: float) -> Ledger:
        """Send what can be sent within *timeout* seconds, give up the rest, and stop. Further facts are dropped."""
        if self._stopped or threading.current_thread() is self._thread:
            return self.ledger
        deadline = time.monotonic() + timeout
        with self._lock:
            self._carry_over_locked()
            self._outbox.close(time.monotonic(), time.time_ns())
            self._stop_at = deadline
        self._drive(deadline, lambda: self._stopped)
        with self._lock:
            self._stopped = True
            self._carry_over_locked()
            self._outbox.abandon("exit")
            if self._thread is None:
                self._exporter.close()
        lost = self.ledger.dropped.get("exit", 0)
        if lost:
            logger.warning("%d records could not be delivered before the end and are lost", lost)
        return self.ledger

    def _drive(self, deadline: float, is_done: Callable[[], bool]) -> None:
        """Let the sender work until *is_done* or *deadline*; without a thread, be the sender."""
        if self._thread is None:
            self._drive_inline(deadline, is_done)
            return
        self._wake.set()
        with self._progress:
            while not is_done():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._progress.wait(left)

    def _drive_inline(self, deadline: float, is_done: Callable[[], bool]) -> None:
        while not is_done():
            pause = self._step()
            if isinstance(pause, Done):
                return
            if pause is not None:
                left = deadline - time.monotonic()
                if pause.seconds is None or pause.seconds >= left:
                    return
                self._wake.wait(pause.seconds)

    # -- the sender thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                pause = self._step()
            except Exception:  # an error of ours must not silence the sender for good
                _guard.failed("send a batch")
                pause = Wait(_AFTER_ERROR_SECONDS)
            if pause is None:
                continue
            if isinstance(pause, Done):
                break
            self._asleep = pause.for_news and (
                pause.seconds is None or pause.seconds > self._limits.batch_delay
            )
            if not self._inbox:  # else a fact has come since we looked, and whoever brought it saw us awake
                self._wake.wait(pause.seconds)
            self._asleep = False
            self._wake.clear()
        with self._progress:
            self._stopped = True
            self._progress.notify_all()
        self._exporter.close()

    def _step(self) -> Wait | Done | None:
        """Send one batch if one is due, and return None; else return what to wait for."""
        with self._sending:  # a flush without a thread, and the thread that has started meanwhile, take turns
            return self._step_alone()

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

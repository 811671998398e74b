"""What belongs to one destination: its settings, its worker, and what its answers have told.

Instances hold their tracer and hand it facts; it hands them back what the platform says about them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from prefactor_trace import _clock, _context, _guard, _ids, _local, _schema, _spool
from prefactor_trace._capture import Limits as CaptureLimits
from prefactor_trace._outbox import Limits
from prefactor_trace._quality import Qualities
from prefactor_trace._redact import Redactor
from prefactor_trace._settings import apply_log_level, partition_hint
from prefactor_trace._worker import Worker
from prefactor_trace.http._protocol import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from prefactor_trace._local import Destination
    from prefactor_trace._record import Ledger, Outcome, Record
    from prefactor_trace._schema import Schema
    from prefactor_trace._settings import Settings
    from prefactor_trace.exporters import Exporter

# What is on disk is safe, so a burst of calls has the interpreter to itself for so long.
_BURST_SECONDS = 0.25


class Listener(Protocol):
    """What a tracer tells an instance, and asks it."""

    thread_id: int

    def heard_terminated(self, reason: str | None) -> None: ...

    def heard_renamed(self, wire_id: str) -> None: ...


class TracerCore:
    """See the module's docstring. Thread-safe.

    Args:
        settings: All knobs.
        exporter: Where batches go. None: to the destination of the settings, over HTTP.
        schema: Span types to declare beside those of decorated functions, kinds of rating, and the schema version's
            name.
        threaded: False sends only inside `flush` and `shutdown`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        exporter: Exporter | None = None,
        schema: Schema | None = None,
        threaded: bool = True,
    ) -> None:
        self.settings = settings
        hook = settings.redact if callable(settings.redact) else None
        redactor = Redactor(settings.redact_keys, hook, is_on=settings.redact is not False)
        self.input_limits = CaptureLimits(max_string=settings.max_input_length, redact=redactor)
        self.output_limits = CaptureLimits(max_string=settings.max_output_length, redact=redactor)
        self._extra_schema = schema or _schema.Schema()
        self.qualities = Qualities(self._extra_schema.quality)
        hint = partition_hint(settings)
        self._partition = _ids.partition_of(hint) if hint else _ids.NO_PARTITION
        self._is_partition_told = False
        self._listeners: weakref.WeakValueDictionary[str, Listener] = weakref.WeakValueDictionary()
        self._is_over_http = exporter is None
        make_exporter = self._http_exporter if exporter is None else lambda: _unrecorded(exporter)
        has_spool = self._is_over_http and settings.spool and _spool.is_possible
        limits = Limits(
            buffer_bytes=settings.buffer_bytes,
            batch_size=settings.batch_size,
            batch_delay=settings.batch_delay,
            burst_delay=_BURST_SECONDS if has_spool else 0.0,
            live_after=settings.live_after,
        )
        make_spool = self._new_spool if has_spool else None
        self._is_left_to_parent = False
        self._worker = Worker(limits, make_exporter, self._heard, make_spool=make_spool, threaded=threaded)
        self.put = self._worker.put  # one attribute away: every span calls it twice
        self.wall_ns = _clock.wall_ns
        self.ticks_ns = _clock.ticks_ns
        apply_log_level(settings.log_level)
        _alive.append(self)
        if settings.flush_on_sigterm and not settings.disabled:
            _flush_on_sigterm()

    # -- for instances and spans ---------------------------------------------------------------------------

    def new_id(self) -> str:
        """Make an id in the account's partition, as far as it is known."""
        return _ids.generate(self._partition)

    def wire_id(self, own_id: str) -> str:
        """Return *own_id* in the account's partition, if the platform has told it by now."""
        return _ids.with_partition(own_id, self._partition) if self._is_partition_told else own_id

    def is_sampled(self) -> bool:
        """Decide whether a new run is recorded."""
        rate = self.settings.sample_rate
        return not self.settings.disabled and (rate >= 1.0 or _ids.randomness() < rate)

    def schema(self) -> Schema:
        """Return the schema that an instance starting now declares."""
        extra = self._extra_schema
        return _schema.declared(extra.types, extra.external_identifier, extra.quality)

    def listen(self, instance_id: str, listener: Listener) -> None:
        """Tell *listener* what the platform says about the instance, for as long as it lives."""
        self._listeners[instance_id] = listener

    def listener(self, instance_id: str) -> Listener | None:
        """Return who listens about the instance, if anybody does."""
        return self._listeners.get(instance_id)

    def end_as_child(self) -> None:
        """Prepare for the end of a process that multiprocessing has started, and that joins a run of its parent.

        Its steps may hang from one that is still open there, and would have to wait for it. With a spool, the parent
        delivers what is left, as soon as this process has ended; without one, waiting is all that can be done.
        """
        self._is_left_to_parent = True
        util = sys.modules.get("multiprocessing.util")
        # Such a process may end without running `atexit`.
        if util is not None and not self._worker.is_on_disk:
            util.Finalize(None, self.shutdown, exitpriority=0)

    def show(self, span_id: str) -> None:
        """Let the platform know of an open span at once: another process is about to hang spans from it."""
        self._worker.show(span_id)

    def expect_others(self) -> None:
        """Look for what another process of this machine has left, whenever a run ends: one may be joining it."""
        self._worker.note_fork()

    def viewer_url(self, wire_id: str) -> str | None:
        """Return the run's page in the local platform's viewer; None if records go elsewhere."""
        destination = self._locate() if self._is_over_http else None
        if destination is None or not is_loopback(destination.url):
            return None
        return f"{destination.url}/instances/{wire_id}"

    # -- for users -----------------------------------------------------------------------------------------

    def stats(self) -> Ledger:
        """Return the ledger: created, delivered, dropped by reason, pending, notes. It always adds up."""
        ledger = self._worker.ledger
        return ledger._replace(notes={**ledger.notes, **_guard.errors})

    def flush(self, timeout: float = 10.0) -> Ledger:
        """Wait until everything recorded so far is delivered or dropped, at most *timeout* seconds.

        Returns the ledger; `pending` counts spans that are still open, and what the time was too short for.
        """
        self._worker.flush(timeout)
        return self.stats()

    def take_over(self, timeout: float) -> Ledger:
        """Deliver what processes that have ended left in the spool, at most *timeout* seconds."""
        self._worker.take_over(timeout)
        return self.stats()

    def leave_off(self) -> None:
        """Let `take_over`, on another thread, return after the batch that is on its way. Never waits."""
        self._worker.leave_off()

    def shutdown(self, timeout: float | None = None) -> Ledger:
        """Deliver what can be delivered within *timeout* seconds (default: `exit_timeout`) and stop.

        Runs and spans that are still open are recorded as failed, error type `Interrupted`. What is recorded
        afterwards is dropped, and counted as `after_shutdown`. Called by itself at the end of the program; then the
        runs that a daemon thread has begun stay open in the spool, for that thread to end or for the next process,
        and what such threads and exit handlers record afterwards, in these runs and in new ones, waits there as well.
        """
        self._worker.shutdown(self.settings.exit_timeout if timeout is None else timeout)
        if self._worker.is_closed and self in _alive:  # else the end of the program tries again
            _alive.remove(self)
        return self.stats()

    async def aflush(self, timeout: float = 10.0) -> Ledger:
        """Like `flush`, without holding up the event loop."""
        deadline = time.monotonic() + timeout
        ticket = self._worker.ask(timeout)
        if ticket is not None:
            if self._worker.is_threaded:
                await _until(lambda: self._worker.is_settled(ticket), deadline)
            else:
                self._worker.flush(timeout)
        return self.stats()

    async def ashutdown(self, timeout: float | None = None) -> Ledger:
        """Like `shutdown`, without holding up the event loop."""
        seconds = self.settings.exit_timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        if self._worker.is_threaded and self._worker.close(deadline):
            await _until(lambda: self._worker.is_stopped, deadline)
            self._worker.abandon()
        return self.shutdown(seconds)  # closed already, this only says what became of it

    # -- inside --------------------------------------------------------------------------------------------

    def _runs_elsewhere(self) -> set[str]:
        """Return the runs that other threads have begun, which may end them yet: daemon threads outlive this."""
        others = sys._current_frames().keys() - {threading.get_ident()}  # noqa: SLF001 - so it is documented
        return {key for key, each in list(self._listeners.items()) if each.thread_id in others}

    @property
    def _may_leave_at_once(self) -> bool:
        return self._is_left_to_parent and self._worker.is_on_disk

    def _http_exporter(self) -> Exporter:
        from prefactor_trace.exporters import HttpExporter

        return HttpExporter(self._locate, timeout=self.settings.request_timeout, proxy=self.settings.proxy)

    def _new_spool(self) -> _spool.Spool:
        return _spool.Spool(self.settings.spool_dir, self.settings.destination_name)

    def _locate(self) -> Destination | None:
        return self.settings.destination or _local.find(self.settings.state_dir)

    def _heard(self, outcome: Outcome) -> None:
        if outcome.partition is not None:
            self._partition = outcome.partition
            self._is_partition_told = True
        for instance_id, wire_id in outcome.renamed.items():
            if (listener := self._listeners.get(instance_id)) is not None:
                listener.heard_renamed(wire_id)
        for instance_id, reason in outcome.terminated.items():
            if (listener := self._listeners.get(instance_id)) is not None:
                listener.heard_terminated(reason)


class _Unrecorded:
    """An exporter of the user's. What it does itself is not recorded: it would have more to send for ever."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def export(self, batch: Sequence[Record], /) -> Outcome:
        token = _context.current.set(_context.nothing)
        try:
            return self._exporter.export(batch)
        finally:
            _context.current.reset(token)

    def close(self) -> None:
        self._exporter.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)  # such as `warm_up`, which not all have


def _unrecorded(exporter: Exporter) -> Exporter:
    """Return *exporter*, unrecorded, under its name: log lines tell it."""
    kind: type[_Unrecorded] = type(type(exporter).__name__, (_Unrecorded,), {})
    return kind(exporter)


def tracer_of(instance_id: str) -> TracerCore | None:
    """Return the tracer that a run of this process goes to; None: no such run is going on here."""
    return next((each for each in list(_alive) if each.listener(instance_id) is not None), None)


async def _until(is_done: Callable[[], bool], deadline: float) -> None:
    """Look again and again. No thread waits in our place: one that is waiting would hold up the program's end."""
    from anyio import sleep

    pause = 0.001
    while not is_done() and time.monotonic() < deadline:
        await sleep(pause)
        pause = min(pause * 2, 0.05)


# Those that may still have something to deliver when the program ends.
_alive: list[TracerCore] = []


@atexit.register
def _at_exit() -> None:
    """Let all tracers deliver at once, in the time of the most patient one."""
    try:
        deadline = time.monotonic() + max((each.settings.exit_timeout for each in _alive), default=0.0)
        leaving = [each for each in _alive if not each._may_leave_at_once]  # noqa: SLF001 - its own
        closed = [each._worker for each in leaving if each._worker.close(deadline, each._runs_elsewhere)]  # noqa: SLF001 - its own
        try:
            for worker in closed:
                worker.wait_and_abandon(deadline)
        except KeyboardInterrupt:  # somebody has no more patience
            for worker in closed:
                worker.abandon()
    except Exception:  # the program's end is not ours to disturb
        _guard.failed("shut down at exit")
    finally:
        if _is_interrupted():
            _remind_of_interrupt()


def _is_interrupted() -> bool:
    """Whether a KeyboardInterrupt that nobody caught is what ends the program, and not only a line at a prompt."""
    traceback = getattr(sys, "last_traceback", None)
    if getattr(sys, "last_type", None) is not KeyboardInterrupt or traceback is None:
        return False
    caller = traceback.tb_frame.f_back  # none, or ours: `prefactor_trace run` stands around the program
    is_outermost = caller is None or caller.f_globals.get("__package__") == __package__
    return is_outermost and not hasattr(sys, "ps1")


def _remind_of_interrupt() -> None:
    """Make Python remember that the program was interrupted, so that it dies of SIGINT and not with exit code 1.

    It forgets when any thread evaluates source text, as a module that makes a dataclass does while it is loaded; and it
    remembers when source text is left by a KeyboardInterrupt.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102 - a text of ours


def _flush_on_sigterm() -> None:
    """Deliver before SIGTERM ends the program, if nobody else has decided what it does."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    try:
        signal.signal(signal.SIGTERM, _flush_and_die)
    except ValueError:
        _guard.logger.warning("flush_on_sigterm has no effect: configure() was not called on the main thread")


def _flush_and_die(number: int, _frame: FrameType | None) -> None:
    _at_exit()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that whoever waits for the program sees what it died of

"""The worker: facts come in on any thread without waiting, batches go out on one, and the ledger adds up."""

from __future__ import annotations

import os
import threading
import time

import pytest

from prefactor_trace import _guard
from prefactor_trace._outbox import Limits
from prefactor_trace._record import Outcome, SpanEnded, SpanRecord, SpanStarted
from prefactor_trace._worker import Worker
from prefactor_trace.exporters import MemoryExporter

QUICK = Limits(batch_delay=0.01)


def step(name):
    """The two facts of a span."""
    return SpanStarted(name, "run", None, "t", name, 1, b"{}", True), SpanEnded(name, "complete", 2)


def put(worker, *names):
    for name in names:
        for fact in step(name):
            worker.put(fact)


class Gate:
    """An exporter that waits at a gate, and notes who came."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches = []
        self.threads = set()

    def export(self, batch):
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(10)
        self.batches.append(batch)
        return Outcome(delivered=frozenset(record.key for record in batch))

    def close(self):
        self.closed = True


@pytest.fixture
def make(request):
    """Make workers that are shut down after the test."""
    made = []

    def make(exporter, limits=QUICK, heard=lambda outcome: None, **options):
        made.append(Worker(limits, lambda: exporter, heard, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.shutdown(1.0)


def test_nothing_starts_before_the_first_fact(make):
    """No thread exists until there is something to send."""
    before = threading.active_count()
    make(MemoryExporter())
    assert threading.active_count() == before


def test_delivers_by_itself(make):
    """What is put is delivered without anybody asking, on one thread of ours."""
    gate = Gate()
    gate.open.set()
    worker = make(gate)
    put(worker, "a", "b")
    assert gate.entered.wait(5)
    assert worker.flush(5)[:4] == (2, 2, {}, 0)
    assert gate.threads == {"prefactor-trace"}


def test_putting_never_waits_for_the_network(make):
    """While the sender is stuck, ten thousand facts are taken, and the ledger knows them all."""
    gate = Gate()
    worker = make(gate)
    put(worker, "first")
    assert gate.entered.wait(5)
    started = time.perf_counter()
    put(worker, *(f"s{number}" for number in range(5_000)))
    assert time.perf_counter() - started < 2
    assert worker.ledger[:4] == (5_001, 0, {}, 5_001)
    gate.open.set()
    assert worker.flush(10)[:4] == (5_001, 5_001, {}, 0)


def test_flush_gives_up_in_time(make):
    """A flush ends at its deadline, with the ledger as it is then."""
    gate = Gate()
    worker = make(gate)
    put(worker, "a")
    started = time.perf_counter()
    ledger = worker.flush(0.2)
    assert 0.15 < time.perf_counter() - started < 1
    assert ledger.pending == 1
    gate.open.set()


def test_flush_from_the_sender_returns(make):
    """An exporter that flushes its own worker does not wait for itself."""

    class Recursive(MemoryExporter):
        def export(self, batch):
            self.ledger = worker.flush(10)
            return super().export(batch)

    exporter = Recursive()
    worker = make(exporter)
    put(worker, "a")
    assert worker.flush(5).delivered == 1
    assert exporter.ledger.pending == 1


def test_flush_with_nothing_to_do(make):
    """A flush of an idle worker returns at once, and starts nothing."""
    worker = make(MemoryExporter())
    started = time.perf_counter()
    worker.flush(10)
    assert time.perf_counter() - started < 0.1


def test_shutdown_delivers_and_stops(make):
    """What waits is delivered, the thread ends, and what comes later is dropped and counted."""
    exporter = Gate()
    exporter.open.set()
    worker = make(exporter, Limits(batch_delay=60))
    put(worker, "a")
    assert worker.shutdown(5)[:4] == (1, 1, {}, 0)
    put(worker, "b")
    assert worker.ledger[:4] == (2, 1, {"after_shutdown": 1}, 0)
    worker._thread.join(5)
    assert not worker._thread.is_alive()
    assert exporter.closed


def test_shutdown_counts_what_is_lost(make, caplog):
    """A sender that is stuck is left behind at the deadline; what it held is counted and said."""
    gate = Gate()
    worker = make(gate)
    put(worker, "a", "b")
    assert gate.entered.wait(5)
    started = time.perf_counter()
    ledger = worker.shutdown(0.2)
    assert time.perf_counter() - started < 1
    assert ledger[:4] == (2, 0, {"exit": 2}, 0)
    assert "2 records could not be delivered" in caplog.text
    gate.open.set()
    worker._thread.join(5)
    assert worker.ledger[:4] == (2, 0, {"exit": 2}, 0)


def test_shutdown_twice(make):
    """A second shutdown is nothing."""
    worker = make(MemoryExporter())
    put(worker, "a")
    worker.shutdown(5)
    assert worker.shutdown(5).delivered == 1


def test_inline(make):
    """Without a thread, flush and shutdown send on the caller's."""
    gate = Gate()
    gate.open.set()
    worker = make(gate, threaded=False)
    put(worker, "a")
    assert worker.flush(5).delivered == 1
    put(worker, "b")
    assert worker.shutdown(5).delivered == 2
    assert gate.threads == {"MainThread"}


def test_inline_retries_until_the_deadline(make):
    """Inline sending waits for the next attempt, as far as the time allows."""

    class Flaky(MemoryExporter):
        left = 2

        def export(self, batch):
            self.left -= 1
            return Outcome(trouble="busy", retry_after=0.01) if self.left >= 0 else super().export(batch)

    worker = make(Flaky(), threaded=False)
    put(worker, "a")
    assert worker.flush(5).delivered == 1


def test_an_exporter_that_raises(make, caplog, monkeypatch):
    """An exception of the exporter is trouble, said once; the batch is sent again."""
    monkeypatch.setattr("prefactor_trace._outbox._BACKOFF_SECONDS", 0.01)

    class Raising(MemoryExporter):
        left = 3

        def export(self, batch):
            self.left -= 1
            if self.left >= 0:
                raise OSError("disk")
            return super().export(batch)

    worker = make(Raising())
    put(worker, "a")
    assert worker.flush(20)[:4] == (1, 1, {}, 0)
    assert [record.message for record in caplog.records] == [
        "Raising raised OSError: disk; records wait in memory",
        "the platform takes records again",
    ]


def test_an_error_of_ours_does_not_silence_the_sender(make, monkeypatch):
    """An internal error is counted, and the sender goes on."""
    monkeypatch.setattr(_guard, "strict", False)
    monkeypatch.setattr("prefactor_trace._worker._AFTER_ERROR_SECONDS", 0.01)
    errors = iter([ZeroDivisionError()])

    def heard(outcome):
        for error in errors:
            raise error

    worker = make(MemoryExporter(), heard=heard)
    put(worker, "a")
    assert worker.flush(5).delivered == 1
    assert _guard.errors["internal error: send a batch"] == 1


def test_loss_is_said_once_a_minute(make, caplog):
    """A hundred refusals for one reason are one line."""

    class Refusing(MemoryExporter):
        def export(self, batch):
            return Outcome(refused={record.key: "refused: 422" for record in batch})

    worker = make(Refusing(), Limits(batch_size=5))
    put(worker, *(f"s{number}" for number in range(100)))
    assert worker.flush(5)[:4] == (100, 0, {"refused: 422": 100}, 0)
    assert [record.message for record in caplog.records] == ["records dropped, refused: 422"]


def test_a_lock_that_a_signal_left_held(make):
    """If an interrupt leaves the lock held for good, nobody who waits for us hangs."""
    worker = make(MemoryExporter(), threaded=False)
    put(worker, "a")
    worker._lock.acquire()
    started = time.perf_counter()
    worker.flush(0.1)
    assert time.perf_counter() - started < 4
    worker._lock.release()
    assert worker.flush(5).delivered == 1


def test_a_signal_handler_in_the_middle_of_carrying(make):
    """Whoever has interrupted its own thread at the outbox gets an answer at once, and the end comes later."""
    worker = make(MemoryExporter(), threaded=False)
    put(worker, "a")

    def interrupted(fact, now):
        started = time.perf_counter()
        worker.shutdown(5)
        seconds.append(time.perf_counter() - started)
        return original(fact, now)

    seconds = []
    original, worker._outbox.put = worker._outbox.put, interrupted
    worker._carry_over()
    worker._outbox.put = original

    assert max(seconds) < 0.3
    assert worker.shutdown(5)[:4] == (1, 1, {}, 0)


def test_an_exporter_that_cannot_be_closed(make, caplog):
    """An error in closing is said, and goes no further."""

    class Stuck(MemoryExporter):
        def close(self):
            raise OSError("disk gone")

    worker = make(Stuck())
    put(worker, "a")
    assert worker.shutdown(5).delivered == 1
    worker._thread.join(5)
    assert "Stuck raised OSError when closed" in caplog.text


def test_any_timeout(make):
    """A time for ever, or longer than a lock can wait, is a time like others."""
    worker = make(MemoryExporter())
    put(worker, "a")
    assert worker.flush(float("inf")).delivered == 1
    put(worker, "b")
    assert worker.flush(1e12).delivered == 2


def test_trouble_is_no_reason_to_work(make):
    """While the platform is in trouble, new facts do not wake the sender: it knows when to try again."""

    class Down(MemoryExporter):
        asked = 0

        def export(self, batch):
            return Outcome(trouble="down", retry_after=30)

    worker = make(Down())
    steps = []
    step, worker._step = worker._step, lambda patience: steps.append(1) or step(patience)
    put(worker, "first")
    worker.flush(0.2)
    before = len(steps)
    for number in range(200):
        put(worker, f"s{number}")
    assert worker.ledger.pending == 201
    assert len(steps) - before <= 10


def test_two_threads_that_flush_inline(make):
    """Without a sender thread, flushes of several threads take turns: nothing is sent twice."""
    exporter = MemoryExporter()
    worker = make(exporter, threaded=False)
    put(worker, *(f"s{number}" for number in range(2_000)))
    threads = [threading.Thread(target=worker.flush, args=(10,)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert worker.ledger[:4] == (2_000, 2_000, {}, 0)
    assert len(exporter.records) == 2_000


def test_many_threads(make):
    """Facts of many threads arrive whole: nothing lost, nothing twice."""
    exporter = MemoryExporter()
    worker = make(exporter, Limits(batch_delay=0.001))

    def work(thread):
        for number in range(500):
            put(worker, f"{thread}-{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert worker.flush(20)[:4] == (4_000, 4_000, {}, 0)
    assert len({record.id for record in exporter.records}) == 4_000


def test_recording_in_a_destructor_while_the_outbox_is_held(make):
    """A destructor that records while its own thread is at the outbox neither deadlocks nor is lost."""
    worker = make(MemoryExporter())

    with worker._lock:
        put(worker, *(f"s{number}" for number in range(100)))
    assert worker.flush(5).delivered == 100


def test_a_long_open_span_is_shown(make):
    """A span that is open for `live_after` seconds is announced, though nothing else happens."""
    seen = threading.Event()

    class Watching(MemoryExporter):
        def export(self, batch):
            if any(isinstance(record, SpanRecord) and record.ended is None for record in batch):
                seen.set()
            return super().export(batch)

    worker = make(Watching(), Limits(batch_delay=0.01, live_after=0.2))
    from prefactor_trace._record import InstanceRegistered
    from prefactor_trace._schema import Schema

    worker.put(InstanceRegistered("run", b"{}", Schema()))
    assert worker.flush(5).delivered == 1
    started, ended = step("a")
    worker.put(started)
    assert seen.wait(5)
    worker.put(ended)
    assert worker.flush(5)[:4] == (2, 2, {}, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own(make):
    """The child sends its own records and none of its parent's, over a new exporter, with locks of its own."""
    gate = Gate()
    made = []

    def make_exporter():
        made.append(Gate() if made else gate)
        made[-1].open.set()
        return made[-1]

    worker = Worker(Limits(batch_delay=60), make_exporter, lambda outcome: None)
    put(worker, "parent")
    with worker._lock:  # as another thread might hold it
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            put(worker, "child")
            ledger = worker.flush(5)
            sent = [record.id for batch in made[-1].batches for record in batch]
            os.write(writer, f"{ledger[:2]} {sent}".encode())
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reader, 1_000).decode()
    os.close(reader)
    os.close(writer)

    assert said == "(1, 1) ['child']"
    assert worker.shutdown(5)[:2] == (1, 1)
    assert [record.id for batch in gate.batches for record in batch] == ["parent"]

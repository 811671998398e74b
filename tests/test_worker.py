"""The worker: facts come in on any thread without waiting, batches go out on one, and the ledger adds up."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from children import Child, fork_in_c, in_child
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from patience import within

from prefactor_trace import _guard, _spool
from prefactor_trace._outbox import POISON, Limits
from prefactor_trace._record import (
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
from prefactor_trace._schema import Schema
from prefactor_trace._spool import Spool
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
    assert time.perf_counter() - started < within(2)
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
    assert 0.15 < time.perf_counter() - started < within(1)
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
    assert time.perf_counter() - started < within(0.1)


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
    assert time.perf_counter() - started < within(1)
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
            refused = {record.key: "refused: 422" for record in batch if isinstance(record, SpanRecord)}
            return Outcome(
                delivered=frozenset(record.key for record in batch) - refused.keys(), refused=refused
            )

    worker = make(Refusing(), Limits(batch_size=5))
    worker.put(InstanceRegistered("run", b"{}", Schema()))
    assert worker.flush(5).delivered == 1
    put(worker, *(f"s{number}" for number in range(100)))
    assert worker.flush(5)[:4] == (101, 1, {"refused: 422": 100}, 0)
    assert [record.message for record in caplog.records] == ["records dropped: 5 refused: 422"]


def test_a_lock_that_a_signal_left_held(make):
    """If an interrupt leaves the lock held for good, nobody who waits for us hangs."""
    worker = make(MemoryExporter(), threaded=False)
    put(worker, "a")
    worker._lock.acquire()
    started = time.perf_counter()
    worker.flush(0.1)
    assert time.perf_counter() - started < within(4)
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

    assert max(seconds) < within(0.3)
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

    def work():
        put(worker, "child")
        return [*worker.flush(5)[:2], *(record.id for batch in made[-1].batches for record in batch)]

    worker = Worker(Limits(batch_delay=60), make_exporter, lambda outcome: None)
    put(worker, "parent")
    with worker._lock:  # as another thread might hold it
        said = in_child(work)

    assert said == [1, 1, "child"]
    assert worker.shutdown(5)[:2] == (1, 1)
    assert [record.id for batch in gate.batches for record in batch] == ["parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_records_nothing(make):
    """It has nothing to send and nobody to wait for, though its parent was in the middle of it."""
    gate = Gate()
    worker = make(gate)
    put(worker, "parent")
    assert gate.entered.wait(5)  # the sender is waiting for the network

    def work():
        began = time.monotonic()
        ledgers = [worker.ledger, worker.flush(5), worker.shutdown(5)]
        return [*(each[:4] for each in ledgers), time.monotonic() - began < 2]

    said = in_child(work)
    gate.open.set()

    assert said == [*[[0, 0, {}, 0]] * 3, True]
    assert worker.shutdown(5)[:2] == (1, 1)


class TestRest:
    """Python warns of a fork beside other threads, and so the sender ends before one if there is nothing to send."""

    @pytest.fixture(autouse=True)
    def _warning_python(self, monkeypatch):
        monkeypatch.setattr("prefactor_trace._worker._FORK_WARNS", True)

    def test_ends_and_begins_again(self, make):
        """What waits is delivered first, without its delay; with the next fact there is a sender again."""
        exporter = MemoryExporter()
        worker = make(exporter, Limits(batch_delay=60))
        for round_ in range(3):
            put(worker, f"span-{round_}")
            thread = worker._thread
            worker.prepare_for_fork()
            assert not thread.is_alive()
            worker.note_fork()
            assert [each.id for each in exporter.records] == [f"span-{each}" for each in range(round_ + 1)]

        put(worker, "last")
        worker.flush(10)
        assert len(exporter.records) == 4
        assert worker.ledger == Ledger(created=4, delivered=4)

    def test_goes_on_if_it_is_busy(self, make):
        """A fork does not stand behind the network, and what is on its way arrives."""
        gate = Gate()
        worker = make(gate)
        put(worker, "a")
        assert gate.entered.wait(10)
        start = time.monotonic()
        worker.prepare_for_fork()
        assert time.monotonic() - start < within(0.5)
        worker.note_fork()
        assert worker._thread.is_alive()

        gate.open.set()
        assert worker.flush(10) == Ledger(created=1, delivered=1)

    def test_goes_on_if_a_span_is_open(self, make):
        """Children in other processes hang from it, so it has to be announced although nothing more is recorded."""
        exporter = MemoryExporter()
        worker = make(exporter, Limits(batch_delay=0.01, live_after=0.3))
        worker.put(step("a")[0])
        worker.prepare_for_fork()
        worker.note_fork()
        assert worker._thread.is_alive()

    def test_forks_and_facts_from_all_sides(self, make):
        """Whatever comes while the sender ends has a sender."""
        exporter = MemoryExporter()
        worker = make(exporter)
        is_over = threading.Event()

        def fork():
            while not is_over.is_set():
                worker.prepare_for_fork()
                worker.note_fork()

        def record(name):
            for number in range(200):
                put(worker, f"{name}-{number}")
                if number % 20 == 0:
                    deadline = time.monotonic() + 10
                    while worker.ledger.pending:  # nobody flushes: a sender must be there
                        assert time.monotonic() < deadline, worker.ledger
                        time.sleep(0.001)

        failed = []

        def guarded(name):
            try:
                record(name)
            except AssertionError as error:
                failed.append(error)

        threads = [threading.Thread(target=fork) for _ in range(2)]
        threads += [threading.Thread(target=guarded, args=(name,)) for name in "ab"]
        for each in threads:
            each.start()
        for each in threads[2:]:
            each.join(30)
        is_over.set()
        for each in threads[:2]:
            each.join(30)

        assert not failed
        assert worker.flush(10) == Ledger(created=400, delivered=400)
        assert len({each.id for each in exporter.records}) == len(exporter.records) == 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_that_python_was_not_told_of(make):
    """A child of a fork in C, of which no hook hears, sends its own records all the same, and none of its parent's."""
    gate = Gate()
    made = []

    def make_exporter():
        made.append(Gate() if made else gate)
        return made[-1]

    def work():
        put(worker, "child")
        made[-1].open.set()
        return [*worker.flush(5)[:2], *(record.id for batch in made[-1].batches for record in batch)]

    worker = Worker(Limits(batch_delay=60), make_exporter, lambda outcome: None, threaded=False)
    put(worker, "parent")
    said = in_child(work, fork=fork_in_c)
    gate.open.set()

    assert said == [1, 1, "child"]
    assert worker.shutdown(5)[:2] == (1, 1)
    assert [record.id for batch in gate.batches for record in batch] == ["parent"]


# -- with a spool ------------------------------------------------------------------------------------------


def registered(run="run"):
    return InstanceRegistered(run, b"{}", Schema())


def run_of(name, *, spans=1, size=2):
    """The facts of a whole run, in order."""
    facts = [registered(name), InstanceStarted(name, 1)]
    for number in range(spans):
        span = f"{name}-{number:03}"
        payload = b'"' + b"x" * (size - 2) + b'"'
        facts.append(SpanStarted(span, name, None, "t", span, 1, payload, True))
        facts.append(SpanEnded(span, "complete", 2))
    return [*facts, InstanceFinished(name, 3, "complete")]


def keys_of(*facts):
    """The records that the facts make."""
    return [each.id if isinstance(each, SpanStarted) else each.key for each in facts if is_record(each)]


def is_record(fact):
    return not isinstance(fact, SpanEnded)


def on_disk(folder):
    """What the segments in *folder* hold that is not settled, as facts."""
    facts = []
    for each in sorted(folder.glob("*.seg")):
        contents = _spool.Contents(each.read_bytes())
        facts += [
            fact
            for fact in contents.facts()
            if (fact.id if isinstance(fact, (SpanStarted, SpanEnded)) else fact.key) not in contents.settled
        ]
    return facts


class Everything:
    def __contains__(self, key):
        return True


class Site:
    """An exporter whose answers a test decides; it is what a platform is to the worker.

    Attributes:
        is_down: Whether it is in trouble.
        refuses: Keys that it refuses.
        poison: Keys over which it fails.
        nowhere: Whether there is no destination at all.
        stored: The keys of what it has taken, in order.
    """

    def __init__(self):
        self.is_down = False
        self.refuses = {}
        self.poison = set()
        self.nowhere = False
        self.stored = []
        self.closed = 0

    def export(self, batch):
        if self.nowhere:
            return Outcome(trouble="no destination", reachable=False, nowhere=True)
        if self.is_down:
            return Outcome(trouble="it is down", retry_after=0.01)
        delivered, refused = [], {}
        for each in batch:
            if each.key in self.poison:
                self.stored += delivered
                return Outcome(
                    delivered=frozenset(delivered),
                    trouble="the platform answered 500",
                    blames_batch=True,
                )
            if each.key in self.refuses:
                refused[each.key] = "refused: invalid"
            else:
                delivered.append(each.key)
        self.stored += delivered
        said = {key: self.refuses[key] for key in refused}
        unknown = frozenset(key for key in refused if self.refuses[key] == "404")
        return Outcome(delivered=frozenset(delivered), refused=refused, said=said, unknown=unknown)

    def close(self):
        self.closed += 1


def adds_up(ledger):
    return ledger.created == ledger.delivered + sum(ledger.dropped.values()) + ledger.pending


ROOM = 20_000


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def keep(make, folder, site, monkeypatch):
    """Make workers that keep facts on disk, with little room in memory."""
    monkeypatch.setattr("prefactor_trace._worker._ROOM_BYTES", ROOM)
    monkeypatch.setattr("prefactor_trace._worker._ROOM_IN_TROUBLE_BYTES", ROOM // 2)
    monkeypatch.setattr("prefactor_trace._worker._ADOPT_SECONDS", 0.05)
    monkeypatch.setattr("prefactor_trace._worker._QUOTA_SECONDS", 0.0)

    def keep(exporter=site, limits=QUICK, *, threaded=False, destination="http://x a", **options):
        return make(
            exporter,
            limits,
            make_spool=lambda: Spool(folder, destination, **options),
            threaded=threaded,
        )

    return keep


def put_all(worker, facts):
    for fact in facts:
        worker.put(fact)
        assert adds_up(worker.ledger)


class TestSpool:
    def test_facts_are_on_disk_before_put_returns(self, keep, folder):
        """Whatever happens to the process after `put`, the fact is in a file."""
        worker = keep(limits=Limits(batch_delay=60))
        for number, fact in enumerate(run_of("run", spans=3), 1):
            worker.put(fact)
            facts = on_disk(folder)
            assert len(facts) == number
            assert facts[-1] == fact or isinstance(fact, InstanceRegistered)

    @pytest.mark.parametrize("threaded", [False, True])
    def test_what_is_delivered_is_removed(self, keep, folder, site, threaded):
        """Delivered facts are settled on disk, and at the end their files are gone; nothing is sent twice."""
        worker = keep(threaded=threaded)
        facts = run_of("run", spans=20)
        put_all(worker, facts)
        assert worker.flush(5)[:4] == (23, 23, {}, 0)
        assert on_disk(folder) == []
        assert worker.shutdown(5)[:4] == (23, 23, {}, 0)
        if threaded:
            worker._thread.join(5)

        assert site.stored == keys_of(*facts)
        assert list(folder.iterdir()) == []
        assert site.closed == 1

    def test_files_that_are_full_go_as_soon_as_they_are_settled(self, keep, folder):
        """While the worker goes on, what is left on disk is little."""
        worker = keep(segment_bytes=3_000)
        most = 0
        for number in range(20):
            put_all(worker, run_of(f"run{number:02}", spans=10))
            worker.flush(5)
            most = max(most, len(list(folder.glob("*.seg"))))

        assert most <= 3
        assert worker.ledger[:4] == (260, 260, {}, 0)

    @pytest.mark.parametrize("threaded", [False, True])
    def test_an_outage(self, keep, site, folder, threaded):
        """In an outage, memory holds no more than the room; then all arrives once, each run in its order."""
        worker = keep(threaded=threaded, segment_bytes=10_000)
        site.is_down = True
        runs = [run_of(f"run{number:03}", spans=5, size=500) for number in range(60)]
        for facts in runs:
            put_all(worker, facts)
            assert worker._outbox.size <= ROOM + 3_000  # the room, one record, and the ends of what is in it
        worker.flush(0.05)
        assert worker.ledger[:4] == (480, 0, {}, 480)
        assert len(on_disk(folder)) == 60 * 13
        site.is_down = False
        ledger = worker.flush(20)

        assert ledger[:4] == (480, 480, {}, 0)
        assert sorted(site.stored) == sorted(keys_of(*(each for facts in runs for each in facts)))
        for facts in runs:
            wanted = keys_of(*facts)
            mine = set(wanted)
            assert [each for each in site.stored if each in mine] == wanted
        worker.shutdown(5)
        if threaded:
            worker._thread.join(5)
        assert list(folder.glob("*.seg")) == []

    def test_one_file(self, keep, site):
        """What waits in the file that is being written comes back as well, though nothing new is recorded."""
        worker = keep()
        site.is_down = True
        facts = [each for number in range(30) for each in run_of(f"run{number:02}", spans=3)]
        put_all(worker, facts)
        worker.flush(0.05)
        assert worker.ledger.pending == 30 * 6
        site.is_down = False

        assert worker.flush(5)[:4] == (180, 180, {}, 0)

    def test_what_waits_on_disk_comes_back_by_itself(self, keep, site):
        """After an outage, nobody has to flush, or to record anything new, for the rest to be delivered."""
        worker = keep(threaded=True)
        site.is_down = True
        put_all(worker, [each for number in range(30) for each in run_of(f"run{number:02}", spans=3)])
        deadline = time.monotonic() + 5
        site.is_down = False
        while worker.ledger.pending and time.monotonic() < deadline:
            threading.Event().wait(0.01)

        assert worker.ledger[:4] == (180, 180, {}, 0)

    def test_what_is_open_holds_up_nothing(self, keep, site):
        """Spans that are open for long may take more memory than what comes back finds: it comes back all the same."""
        worker = keep(limits=Limits(batch_delay=0.0, live_after=3_600))
        put_all(worker, run_of("long", spans=0)[:-1])
        opened = [
            SpanStarted(f"open{number}", "long", None, "t", "open", 1, b"x" * 4_000, True)
            for number in range(3)
        ]
        put_all(worker, opened)
        assert worker._outbox.size > ROOM // 2
        site.is_down = True
        put_all(worker, [each for number in range(30) for each in run_of(f"run{number:02}", spans=3)])
        worker.flush(0.05)
        site.is_down = False

        assert worker.flush(5).pending == len(opened)

    def test_a_mere_end_on_disk(self, keep, site):
        """A flush waits for the end of a span, too, when its beginning is back in memory already."""
        worker = keep(limits=Limits(batch_delay=0.0), segment_bytes=2_000)
        begun = SpanStarted("span", "run00", None, "t", "span", 1, b"x" * 1_500, True)
        put_all(worker, [each for number in range(20) for each in run_of(f"run{number:02}", spans=0)[:-1]])
        put_all(worker, [begun, SpanEnded("span", "complete", 2)])

        assert worker.flush(5)[:4] == (41, 41, {}, 0)

    def test_fresh_runs_pass_a_backlog(self, keep, site):
        """What is recorded after the outage does not stand behind all that has piled up on disk."""
        worker = keep(limits=Limits(batch_delay=0.01, batch_size=5), segment_bytes=10_000)
        site.is_down = True
        for number in range(100):
            put_all(worker, run_of(f"old{number:03}", spans=5, size=500))
        worker.flush(0.05)
        site.is_down = False
        while worker._outbox.is_in_trouble:  # until the next attempt finds that the outage is over
            pause = worker._step(1.0)
            worker._bell.wait((pause and pause.seconds) or 0.0)
        put_all(worker, run_of("fresh"))
        worker.flush(20)

        assert worker.ledger[:4] == (804, 804, {}, 0)
        assert site.stored.index("fresh-finish") < 200

    def test_a_run_is_seen_though_memory_is_full(self, keep, site):
        """A platform that is too slow shows a new run all the same, in the next batch; its steps come in their turn."""
        worker = keep(limits=Limits(batch_delay=0.01, batch_size=20), segment_bytes=10_000)
        old = run_of("old", spans=60, size=500)
        put_all(worker, old)
        assert worker._outbox.size > ROOM
        fresh = run_of("fresh", spans=5, size=500)
        put_all(worker, fresh)
        assert worker._outbox.size <= ROOM + 3_000
        while not site.stored:
            worker._step(1.0)
        assert "fresh-register" in site.stored

        assert worker.flush(20)[:4] == (71, 71, {}, 0)
        for facts in (old, fresh):
            wanted = keys_of(*facts)
            assert [each for each in site.stored if each in set(wanted)] == wanted

    def test_small_records_do_not_pile_up_in_an_outage(self, keep, site, monkeypatch):
        """What is in memory when it is over is sent within seconds, however small the records are."""
        monkeypatch.setattr("prefactor_trace._worker._ROOM_IN_TROUBLE_RECORDS", 30)
        monkeypatch.setattr("prefactor_trace._worker._ROOM_BYTES", 1_000_000)
        monkeypatch.setattr("prefactor_trace._worker._ROOM_IN_TROUBLE_BYTES", 1_000_000)
        worker = keep(limits=Limits(batch_delay=0.01, batch_size=5), segment_bytes=10_000)
        site.is_down = True
        put_all(worker, run_of("first"))
        worker.flush(0.05)
        for number in range(50):
            put_all(worker, run_of(f"run{number:03}", spans=5))
        longest = worker._outbox.length
        site.is_down = False
        ledger = worker.flush(20)

        assert longest < 30 + 2 * 50 + 5  # and the beginnings of the runs
        assert ledger[:4] == (404, 404, {}, 0)

    def test_leaving_off(self, keep, site, caplog):
        """Whoever takes over leaves off after the batch under way, though the lock is busy, and says nothing of it."""
        put_all(first := keep(limits=Limits(batch_delay=60)), run_of("run", spans=300))
        site.is_down = True
        first.shutdown(0.0)
        site.is_down = False
        caplog.clear()
        entered, go_on = threading.Event(), threading.Event()

        class Slow(Site):
            def export(self, batch):
                entered.set()
                go_on.wait(10)
                return Outcome(trouble="the platform is gone")

        second = keep(Slow())
        taking_over = threading.Thread(target=second.take_over, args=(60,))
        taking_over.start()
        assert entered.wait(10)
        with second._lock:
            second.leave_off()
        go_on.set()
        taking_over.join(5)
        assert not taking_over.is_alive()
        second.shutdown(0.0)
        assert [each.message for each in caplog.records if each.levelname == "WARNING"] == []

        assert keep().take_over(20)[:4] == (303, 303, {}, 0)

    def test_shutdown_leaves_on_disk_what_was_not_delivered(self, keep, site, folder, caplog):
        """At the end in an outage nothing is dropped: it is pending, and the next worker delivers it once, in order."""
        caplog.set_level("INFO")
        worker = keep(segment_bytes=5_000)
        site.is_down = True
        runs = [run_of(f"run{number:02}", spans=5, size=500) for number in range(30)]
        for facts in runs:
            put_all(worker, facts)
        ledger = worker.shutdown(0.2)
        assert ledger[:4] == (240, 0, {}, 240)
        assert site.stored == []
        assert "240 records wait in the spool" in caplog.text
        assert "lost" not in caplog.text

        site.is_down = False
        second = keep()
        assert second.take_over(20)[:4] == (240, 240, {}, 0)
        assert sorted(site.stored) == sorted(keys_of(*(each for facts in runs for each in facts)))
        for facts in runs:
            assert [each for each in site.stored if each in keys_of(*facts)] == keys_of(*facts)
        second.shutdown(5)
        assert list(folder.iterdir()) == []

    def test_what_comes_back_while_closing_is_delivered(self, keep, site):
        """If the platform is there again at the end, what waits on disk is delivered then, and not dropped."""
        worker = keep(segment_bytes=5_000)
        site.is_down = True
        for number in range(40):
            put_all(worker, run_of(f"run{number:02}", spans=5, size=500))
        worker.flush(0.05)
        site.is_down = False

        assert worker.shutdown(20)[:4] == (320, 320, {}, 0)
        assert len(set(site.stored)) == len(site.stored) == 320

    def test_runs_that_go_on_while_closing(self, keep, site):
        """A run of which a part waits on disk is ended when it has come back, at the latest by the next worker."""
        worker = keep(segment_bytes=5_000)
        site.is_down = True
        for number in range(30):
            put_all(worker, run_of(f"run{number:02}", spans=5, size=500)[:-1])
        put_all(worker, [SpanStarted("open", "run29", None, "t", "open", 1, b"{}", True)])
        worker.flush(0.05)
        site.is_down = False
        worker.shutdown(20)
        assert adds_up(worker.ledger)
        assert worker.ledger.dropped == {}
        second = keep()
        second.take_over(10)
        second.shutdown(10)

        assert {f"run{number:02}-finish" for number in range(30)} <= set(site.stored)
        assert len(site.stored) == len(set(site.stored))
        assert {"open", "open-end"} & set(site.stored)

    def test_a_run_recorded_through_an_outage(self, keep, site):
        """A run that begins before, and ends after an outage, arrives in its order."""
        worker = keep(segment_bytes=5_000)
        first, *facts, last = run_of("run", spans=100, size=500)
        put_all(worker, [first, *facts[:20]])
        worker.flush(5)
        site.is_down = True
        put_all(worker, facts[20:150])
        worker.flush(0.05)
        assert worker.ledger.pending > 50
        site.is_down = False
        put_all(worker, facts[150:180])
        worker.flush(10)
        put_all(worker, [*facts[180:], last])

        assert worker.flush(10)[:4] == (103, 103, {}, 0)
        assert site.stored == keys_of(first, *facts, last)

    def test_a_span_that_is_open_through_an_outage(self, keep, site):
        """It is told of once, and ended once, wherever its two ends are."""
        worker = keep(segment_bytes=5_000)
        site.is_down = True
        put_all(worker, [registered(), InstanceStarted("run", 1)])
        put_all(worker, [SpanStarted("outer", "run", None, "t", "outer", 1, b"{}", True)])
        for number in range(60):
            put_all(
                worker,
                [
                    SpanStarted(f"in{number}", "run", "outer", "t", "x", 1, b"x" * 500, True),
                    SpanEnded(f"in{number}", "complete", 2),
                ],
            )
        worker.flush(0.05)
        site.is_down = False
        worker.flush(5)
        put_all(worker, [SpanEnded("outer", "complete", 9), InstanceFinished("run", 10, "complete")])
        worker.flush(5)

        assert worker.ledger[:4] == (64, 64, {}, 0)
        assert site.stored[-2:] == ["outer-end", "run-finish"]
        assert site.stored.index("outer-open") < site.stored.index("in0")

    def test_flush_with_nowhere_to_go(self, keep, site):
        """Without a destination, a flush does not wait for what is on disk: it has nowhere to go either."""
        worker = keep()
        site.nowhere = True
        put_all(worker, [each for number in range(40) for each in run_of(f"run{number}", spans=3)])
        began = time.monotonic()
        ledger = worker.flush(3)

        assert time.monotonic() - began < within(1)
        assert ledger[:4] == (240, 0, {}, 240)

    def test_a_run_that_is_going_on_at_the_end_of_an_outage(self, keep, site, folder):
        """Its finish is made at the end, and not lost: the next worker tells the platform that it has failed."""
        worker = keep()
        put_all(worker, run_of("run")[:-1])
        worker.flush(5)
        site.is_down = True
        ledger = worker.shutdown(0.1)
        assert ledger.dropped == {}
        site.is_down = False
        keep().take_over(5)

        assert site.stored == ["run-register", "run-start", "run-000", "run-finish"]

    def test_qualities_through_an_outage(self, keep, site, folder):
        """Ratings of runs that are going on and of runs that are over arrive, in order, once; nothing is left."""
        site.is_down = True
        worker = keep()
        facts = [each for number in range(20) for each in run_of(f"r{number:03}", size=1_000)]
        put_all(worker, facts)
        late = [QualityRecorded(f"q{number:03}", "r000", "verdict", b"{}") for number in range(5)]
        put_all(worker, late[:3])
        worker.flush(0.05)
        site.is_down = False
        put_all(worker, late[3:])
        ledger = worker.flush(5)

        assert ledger[:4] == (len(keys_of(*facts, *late)), len(keys_of(*facts, *late)), {}, 0)
        stored = [each for each in site.stored if each.endswith("quality")]
        assert stored == keys_of(*late)
        assert site.stored.index("r000-register") < site.stored.index(stored[0])
        worker.shutdown(5)
        assert on_disk(folder) == []

    def test_a_quality_that_comes_back_alone(self, keep, site):
        """A rating of a run that is over is delivered by the next process, which remembers nothing of the run."""
        first = keep()
        put_all(first, [registered(), InstanceFinished("run", 1, "complete")])
        first.flush(5)
        site.is_down = True
        put_all(first, [QualityRecorded("q1", "run", "verdict", b"{}")])
        first.shutdown(0.02)
        site.is_down = False
        second = keep()
        ledger = second.take_over(5)

        assert ledger[:4] == (1, 1, {}, 0)
        assert site.stored[-1] == "q1-quality"
        assert second._half_here == set()

    def test_a_quality_that_the_quota_takes_does_not_take_its_run(self, keep, site, folder):
        """Without a rating a run is whole: the rating is counted, and the run goes on."""
        site.is_down = True
        worker = keep(segment_bytes=4_000, quota_bytes=100_000)
        put_all(worker, [registered("mine"), InstanceStarted("mine", 1)])
        put_all(worker, [each for number in range(8) for each in run_of(f"r{number}", size=3_000)])
        big = b'{"a":"%b"}' % (b"x" * 60_000)
        put_all(worker, [registered("r"), InstanceFinished("r", 1, "complete")])
        put_all(worker, [QualityRecorded("q1", "mine", "verdict", big)])
        worker.flush(0.02)
        put_all(worker, [each for number in range(30) for each in run_of(f"s{number}", size=3_000)])
        worker.flush(0.02)
        site.is_down = False
        put_all(worker, [InstanceFinished("mine", 9, "complete")])
        worker.flush(5)

        assert worker.ledger.dropped["quota"] > 1
        assert "q1-quality" not in site.stored
        assert {"mine-register", "mine-start", "mine-finish"} <= set(site.stored)
        assert worker.ledger.pending == 0


class TestLetters:
    def test_refused_records_are_kept_for_people(self, keep, site, folder):
        """What the platform refuses is in a file, with the reason and the platform's words; nothing else is."""
        worker = keep()
        site.refuses = {"run-001": '422 {"message":"no such type"}'}
        put_all(worker, run_of("run", spans=3))

        assert worker.flush(5)[:4] == (6, 5, {"refused: invalid": 1}, 0)
        (line,) = (folder / "rejected.jsonl").read_bytes().splitlines()
        letter = orjson.loads(line)
        assert letter["reason"] == "refused: invalid"
        assert letter["said"] == '422 {"message":"no such type"}'
        assert letter["at"].startswith("20")
        assert letter["record"]["idempotency_key"] == "run-001"
        assert letter["record"]["_type"] == "agent_spans/create"
        assert (folder / "rejected.jsonl").stat().st_mode & 0o777 == 0o600

    def test_a_letter_is_written_before_its_record_is_settled(self, keep, site, folder, monkeypatch):
        """Whoever is killed between the two is followed by somebody who writes it again, and not by nobody."""

        def die(*_):
            raise RuntimeError("killed")

        worker = keep()
        site.refuses = {"a": "422"}
        put(worker, "a")
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "settle", die)
            with pytest.raises(RuntimeError, match="killed"):
                worker.flush(5)

        (line,) = (folder / "rejected.jsonl").read_bytes().splitlines()
        assert orjson.loads(line)["record"]["idempotency_key"] == "a"

    def test_what_is_held_is_not_refused(self, keep, site, folder):
        """Spans of a run that is not known yet are neither dropped nor written off."""
        worker = keep()
        site.refuses = {"a": "404"}
        put(worker, "a")
        assert worker.flush(0.1)[:4] == (1, 0, {}, 1)
        assert not (folder / "rejected.jsonl").exists()
        site.refuses = {}
        assert worker.flush(5)[:4] == (1, 1, {}, 0)

    def test_what_is_held_at_the_end_stays_on_disk(self, keep, site, folder):
        """A held span is not lost with the process: the next one tries again."""
        worker = keep()
        site.refuses = {"a": "404"}
        put(worker, "a")
        worker.flush(0.05)
        assert worker.shutdown(0.1)[:4] == (1, 0, {}, 1)
        site.refuses = {}

        assert keep().take_over(5)[:4] == (1, 1, {}, 0)

    @pytest.mark.parametrize("is_answered", [True, False])
    def test_what_others_record_after_the_end(self, keep, site, is_answered):
        """It waits for the next process; but what belongs to a run that the end has called failed is counted as too late."""
        worker = keep()
        put_all(worker, run_of("mine")[:-1])
        begun, ended = step("open")
        worker.put(begun._replace(instance_id="mine"))
        site.is_down = not is_answered
        deadline = time.monotonic() + (5 if is_answered else 0.1)
        assert worker.close(deadline, set)
        worker.wait_and_abandon(deadline)
        before = worker.ledger
        assert (before.created, before.delivered) == (5, 5 * is_answered)

        put_all(worker, [ended, *run_of("mine", spans=2)[2:]])
        assert worker.ledger == before._replace(created=8, dropped={"after_shutdown": 3})
        put_all(worker, run_of("next", spans=2))
        assert worker.ledger[2:4] == ({"after_shutdown": 3}, before.pending + 5)
        worker._spool.forget()  # as if the process had ended
        site.is_down = False
        assert keep().take_over(5)[2:4] == ({}, 0)

        assert sorted(site.stored) == sorted(
            [*keys_of(*run_of("mine"), begun), *keys_of(*run_of("next", spans=2))]
        )

    def test_nothing_is_kept_after_a_shutdown(self, keep, folder):
        """What comes after `shutdown` is counted as too late, also while the sender cannot come to its end."""
        gate = Gate()
        worker = keep(gate, threaded=True)
        put_all(worker, run_of("run"))
        assert gate.entered.wait(5)
        assert worker.shutdown(0.05)[:4] == (4, 0, {}, 4)
        put_all(worker, run_of("late"))

        assert worker.ledger[:4] == (8, 0, {"after_shutdown": 4}, 4)
        assert {each.instance_id for each in on_disk(folder) if is_record(each)} == {"run"}
        gate.open.set()
        worker._thread.join(5)

    def test_poison_is_given_up_by_short_programs_together(self, keep, site, folder):
        """Each process tries a little, and leaves what it has found out to the next one; then it is written off."""
        site.poison = {"bad-001"}
        worker = keep()
        put_all(worker, run_of("bad", spans=3))
        for number in range(12):
            put_all(worker, run_of(f"own{number}", spans=1))
            worker.shutdown(2.0)
            if (folder / "rejected.jsonl").exists():
                break
            worker = keep()
            worker.take_over(0.05)

        assert 3 <= number <= 9
        (line,) = (folder / "rejected.jsonl").read_bytes().splitlines()
        assert orjson.loads(line)["record"]["idempotency_key"] == "bad-001"
        assert worker.ledger.dropped == {POISON: 1}
        assert worker.ledger.pending == 0
        assert {"bad-000", "bad-002", "bad-finish", f"own{number}-finish"} < set(site.stored)
        assert list(folder.glob("*.seg")) == []

    def test_no_outage_is_held_against_a_record(self, keep, site, folder):
        """Processes that find everything failing, one after the other, give nothing up; the next one delivers all."""
        site.poison = Everything()
        for number in range(10):
            worker = keep()
            worker.take_over(0.02)
            put_all(worker, run_of(f"own{number}", spans=1))
            worker.shutdown(0.05)
        site.poison = set()
        ledger = keep().take_over(10)

        assert ledger.dropped == {}
        assert len(site.stored) == len(set(site.stored)) == 40
        assert not (folder / "rejected.jsonl").exists()

    def test_poison_is_kept_for_people(self, keep, site, folder, monkeypatch):
        """A record over which the platform fails is written off with what the platform said."""
        monkeypatch.setattr("prefactor_trace._outbox._STRIKE_SECONDS", (0.01, 0.01, 0.01))
        monkeypatch.setattr("prefactor_trace._outbox._SEARCH_PAUSE_SECONDS", 0.001)
        worker = keep()
        site.poison = {"run-001"}
        put_all(worker, run_of("run", spans=3)[:-1])
        for number in range(6):
            put_all(worker, run_of(f"other{number}"))
            worker.flush(0.1)

        assert worker.ledger.dropped == {POISON: 1}
        lines = (folder / "rejected.jsonl").read_bytes().splitlines()
        assert [
            (letter["record"]["idempotency_key"], letter["reason"], letter["said"])
            for letter in map(orjson.loads, lines)
        ] == [("run-001", POISON, "the platform answered 500")]

    def test_nothing_refused_comes_back(self, keep, site):
        """A refusal is written down: the next worker does not ask again."""
        worker = keep()
        site.refuses = {"run-000": "422"}
        put_all(worker, run_of("run", spans=2)[:-1])
        worker.flush(5)
        worker.shutdown(5)
        site.refuses = {}
        second = keep()
        second.take_over(1)

        assert site.stored == ["run-register", "run-start", "run-001", "run-finish"]


class TestDisk:
    def test_without_a_disk_memory_is_as_before(self, keep, site, folder, caplog):
        """If the folder cannot be had, facts wait in memory, are delivered, and lost at the end as without a spool."""
        folder.write_text("not a folder")
        worker = keep(limits=Limits(batch_delay=0.01, buffer_bytes=200_000))
        put_all(worker, run_of("run", spans=20))
        assert worker.flush(5)[:4] == (23, 23, {}, 0)
        site.is_down = True
        put_all(worker, run_of("next", spans=20, size=500))
        assert worker._outbox.size > ROOM
        worker.flush(0.05)
        assert "records wait in memory" in caplog.text
        assert worker.shutdown(0.1)[:4] == (46, 23, {"exit": 23}, 0)
        assert folder.read_text() == "not a folder"

    def test_a_disk_that_fails_in_the_middle(self, keep, site, monkeypatch):
        """If the disk fills up in an outage, what is recorded then is in memory, and all arrives as it was recorded."""
        worker = keep()
        site.is_down = True
        begun = SpanStarted("last", "run", None, "t", "last", 1, b"{}", True)
        facts = run_of("run", spans=40, size=500)
        put_all(worker, facts[:-1])
        worker.flush(0.05)
        put_all(worker, [begun])
        monkeypatch.setattr("prefactor_trace._spool._write_all", full)
        put_all(worker, [SpanEnded("last", "complete", 9), facts[-1]])
        monkeypatch.undo()
        sent = []
        export = site.export
        site.export = lambda batch: sent.extend(batch) or export(batch)
        site.is_down = False
        worker.flush(10)
        worker.shutdown(5)

        ends = [
            each.ended.status
            for each in sent
            if isinstance(each, SpanRecord) and each.id == "last" and each.ended
        ]
        assert ends[-1:] == ["complete"]
        assert set(keys_of(*facts)) <= set(site.stored)

    def test_a_beginning_that_could_not_be_written(self, keep, site, folder):
        """A span of which only the end is on disk is delivered from memory, and leaves nothing behind."""
        worker = keep()
        put_all(worker, run_of("run", spans=0)[:-1])
        write, worker._write = worker._write, lambda fact: None
        worker.put(SpanStarted("span", "run", None, "t", "span", 1, b"{}", True))
        worker._write = write
        worker.put(SpanEnded("span", "complete", 2))
        worker.put(InstanceFinished("run", 9, "complete"))

        assert worker.flush(5)[:4] == (4, 4, {}, 0)
        worker.shutdown(5)
        assert site.stored == ["run-register", "run-start", "span", "run-finish"]
        assert list(folder.glob("*.seg")) == []

    def test_a_file_that_cannot_be_read_just_now(self, keep, site, monkeypatch):
        """If a file cannot be opened for a moment, what is in it is not given up."""
        worker = keep(segment_bytes=5_000)
        site.is_down = True
        facts = [each for number in range(30) for each in run_of(f"run{number}", spans=5, size=500)]
        put_all(worker, facts)
        worker.flush(0.05)
        site.is_down = False
        read, fails = _spool.Folder.read, iter([True])
        monkeypatch.setattr(
            _spool.Folder, "read", lambda self, segment: None if next(fails, False) else read(self, segment)
        )
        worker.flush(10)

        assert worker.ledger[:4] == (240, 240, {}, 0)

    def test_a_quota(self, keep, site, folder, caplog):
        """Beyond the quota the oldest runs go, whole, and are counted; what is left arrives whole, and in order."""
        worker = keep(segment_bytes=4_000, quota_bytes=30_000)
        site.is_down = True
        runs = [run_of(f"run{number:03}", spans=3, size=500) for number in range(60)]
        for facts in runs:
            put_all(worker, facts)
            worker.flush(0.011)
        assert sum(each.stat().st_size for each in folder.glob("*.seg")) <= 30_000 + 8_000
        lost = worker.ledger.dropped
        assert set(lost) == {"quota"}
        assert "quota" in caplog.text
        site.is_down = False
        ledger = worker.flush(10)

        assert ledger.created == 360
        assert ledger.pending == 0
        assert ledger.delivered == len(site.stored) == len(set(site.stored)) == 360 - ledger.dropped["quota"]
        arrived = {each.split("-")[0] for each in site.stored}
        for facts in runs:
            if keys_of(*facts)[0].split("-")[0] in arrived:
                assert [each for each in site.stored if each in keys_of(*facts)] == keys_of(*facts)

    @pytest.mark.parametrize("old", [40, 300], ids=["all in memory", "most on disk"])
    def test_the_oldest_go_first(self, keep, site, old):
        """Over the quota, what a dead process left goes before what is new, though it has been taken over already."""
        site.is_down = True
        first = keep(segment_bytes=4_000)
        for number in range(old):
            put_all(first, run_of(f"old{number:03}", spans=3, size=500))
        assert first.shutdown(0.05).pending == old * 6

        second = keep(segment_bytes=4_000, quota_bytes=old * 3_000)
        second.take_over(0.02)
        new = old // 2
        for number in range(new):
            put_all(second, run_of(f"new{number:03}", spans=3, size=500))
            second.flush(0.011)
        assert adds_up(second.ledger)
        site.is_down = False
        ledger = second.take_over(20)

        assert adds_up(ledger)
        assert (ledger.created, ledger.pending) == ((old + new) * 6, 0)
        assert ledger.delivered == len(site.stored) == len(set(site.stored))
        arrived = Counter(each.split("-")[0] for each in site.stored)
        assert {*arrived.values()} == {6}  # nothing of a run, or all of it
        assert [f"new{number:03}" in arrived for number in range(new)] == [True] * new

    def test_a_quota_at_the_end(self, keep, site):
        """What is pending at the end is what the next worker finds: nothing is pending that no file holds."""
        worker = keep(segment_bytes=4_000, quota_bytes=30_000)
        site.is_down = True
        for number in range(40):
            put_all(worker, run_of(f"run{number:03}", spans=3, size=500))
            worker.flush(0.011)
        ledger = worker.shutdown(0.1)
        assert adds_up(ledger)
        site.is_down = False
        second = keep()
        second.take_over(10)

        assert len(site.stored) == ledger.pending

    def test_another_destination_is_left_alone(self, keep, site):
        """What waits for somebody else is not sent."""
        site.is_down = True
        worker = keep(destination="http://y b")
        put_all(worker, run_of("run"))
        worker.shutdown(0.05)
        site.is_down = False
        second = keep()
        second.take_over(1)

        assert site.stored == []
        assert second.ledger.created == 0


def full(fd, data):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestOtherProcesses:
    def test_what_a_dead_process_was_at(self, keep, site, folder):
        """Its open spans and its run are ended as failed; what it has delivered is not sent again."""
        spool = Spool(folder, "http://x a")
        worker = keep(limits=Limits(batch_delay=60))
        worker._spool.forget()
        worker._spool = spool
        worker._write = spool.write
        put_all(worker, run_of("run", spans=2)[:-1])
        worker.flush(5)
        put_all(worker, [SpanStarted("open", "run", None, "t", "open", 1, b"{}", True)])
        spool.forget()  # it dies: the kernel lets go of its lock, and nothing is said
        worker._spool = None
        worker._write = None
        sent = []
        export = site.export
        site.export = lambda batch: sent.extend(batch) or export(batch)
        second = keep()

        assert second.take_over(5)[:4] == (2, 2, {}, 0)
        span, finish = sent
        assert (span.id, span.ended.status, b"Interrupted" in span.ended.error) == ("open", "failed", True)
        assert (finish.key, finish.status) == ("run-finish", "failed")

    @pytest.fixture
    def little_room(self, monkeypatch):
        """Let as little come back at a time as if there were a hundred times as many runs."""
        monkeypatch.setattr("prefactor_trace._worker._ROOM_IN_TROUBLE_RECORDS", 10)
        monkeypatch.setattr("prefactor_trace._worker._ROOM_FOR_HELD_RECORDS", 30)
        monkeypatch.setattr("prefactor_trace._worker._LOADED_AT_ONCE", 5)

    def test_many_runs_of_a_dead_process(self, keep, site, little_room):
        """However many they are, all arrive: that runs stay unfinished until all is read does not keep it from being read."""
        worker = keep()
        site.is_down = True
        facts = [fact for number in range(200) for fact in run_of(f"run{number:03}")]
        put_all(worker, facts)
        worker.shutdown(0)
        site.is_down = False
        second = keep(limits=Limits(batch_size=5, batch_delay=0.01))
        mine = run_of("mine")
        put_all(second, mine)

        assert second.take_over(10)[:4] == (804, 804, {}, 0)
        assert sorted(site.stored) == sorted(keys_of(*facts, *mine))
        for number in range(200):
            own = [key for key in site.stored if key.startswith(f"run{number:03}")]
            assert own == keys_of(*run_of(f"run{number:03}"))
        # Nothing of a run of our own can be with others, so it need not wait for that.
        assert site.stored.index("mine-finish") < 100

    def test_many_runs_of_a_process_that_has_forked(self, keep, site, little_room):
        """A child may have left a part of any of them; they are finished when that has been looked for."""
        worker = keep(limits=Limits(batch_size=5, batch_delay=0.01))
        worker.note_fork()
        for number in range(200):
            put_all(worker, run_of(f"run{number:03}"))

        assert worker.flush(10)[:4] == (800, 800, {}, 0)
        assert len(set(site.stored)) == 800

    def test_a_child_begins_anew(self, keep, site, folder):
        """After a fork, the child has a spool of its own, and nothing of its parent's; the parent goes on."""
        worker = keep(limits=Limits(batch_delay=60))
        put_all(worker, run_of("run", spans=3)[:-1])
        mine = worker._spool
        parent = {name: getattr(worker, name) for name in vars(worker)}
        parent_spool = dict(vars(mine))
        vars(mine)["_pen"] = None  # what `forget` lets go of is a copy in a child, but not here
        vars(mine)["_owner"] = None
        worker.begin_in_child()
        assert worker.ledger == Ledger()
        assert worker._spool is not mine
        put_all(worker, step("child"))
        assert worker.flush(5)[:4] == (1, 1, {}, 0)
        assert worker.shutdown(1)[:4] == (1, 1, {}, 0)
        assert site.stored == ["child"]
        vars(worker).update(parent)
        vars(mine).update(parent_spool)

        assert worker.flush(5)[:4] == (5, 5, {}, 0)
        assert site.stored[1:] == ["run-register", "run-start", "run-000", "run-001", "run-002"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_that_ends_without_a_word(self, keep, site):
        """What a forked child recorded before `os._exit` is delivered by its parent at the end, once."""
        worker = keep(limits=Limits(batch_delay=60))
        put_all(worker, run_of("run", spans=2)[:-1])
        worker.flush(5)
        child = os.fork()
        if child == 0:
            put(worker, "child")
            os._exit(0)
        os.waitpid(child, 0)
        ledger = worker.shutdown(5)

        assert site.stored.count("child") == 1
        assert adds_up(ledger)
        assert ledger.pending == 0


def wait_until(is_so):
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < within(20)
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestFamily:
    """What another process may have of a run that was taken over is waited for, and nobody waits with it."""

    @pytest.fixture
    def child(self, folder):
        """Let a process record a run and die; a child of it, which lives, has something in the spool as well."""

        def work():
            spool = Spool(folder, "http://x a")
            for fact in run_of("run"):
                spool.write(fact)

            def in_it():
                spool.forget()
                Spool(folder, "http://x a").write(InstanceStarted("other", 1))
                return os.getpid()

            return Child(in_it).said

        parent = Child(work)
        parent.kill()
        yield parent.said
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent.said, signal.SIGKILL)

    def test_the_finish_waits(self, keep, site, child):
        """All but the finish goes; a flush and the end of the program do not wait for that, and it stays on disk."""
        worker = keep(threaded=True)
        put(worker, "own")
        wait_until(lambda: sorted(site.stored) == ["own", "run-000", "run-register", "run-start"])
        began = time.monotonic()
        assert worker.flush(30).pending == 1
        ledger = worker.shutdown(30)
        assert time.monotonic() - began < within(10)
        assert ledger[1:] == (4, {}, 1, {})

        os.kill(child, signal.SIGKILL)
        last = keep()
        wait_until(
            lambda: last.take_over(1) and "run-finish" in site.stored
        )  # the kernel has to let go of its lock
        assert {*site.stored[4:]} == {"other-start", "run-finish"}

    def test_until_the_child_is_gone(self, keep, site, child):
        """When the child's files are dealt with, the run is finished."""
        worker = keep(threaded=True)
        put(worker, "own")
        wait_until(lambda: "run-000" in site.stored)
        assert "run-finish" not in site.stored
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: "run-finish" in site.stored)
        assert site.stored.index("other-start") < site.stored.index("run-finish")
        assert worker.shutdown(5).pending == 0


class Spooled(RuleBasedStateMachine):
    """Any runs and spans, a platform that comes and goes, workers that end and are followed by others."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("prefactor_trace._worker._ROOM_BYTES", 8_000)
        self.patch.setattr("prefactor_trace._worker._ROOM_IN_TROUBLE_BYTES", 4_000)
        self.patch.setattr("prefactor_trace._worker._ADOPT_SECONDS", 0.0)
        self.folder = Path(tempfile.mkdtemp()) / "spool"
        self.site = Site()
        self.numbers = itertools.count(1)
        self.runs = {}
        self.over = []  # runs that have ended
        self.rated = {}  # run → keys of its qualities, in order
        self.told = []  # keys of all records that were recorded
        self.begin()

    def begin(self):
        self.worker = Worker(
            Limits(batch_delay=0.0, batch_size=7),
            lambda: self.site,
            lambda outcome: None,
            make_spool=lambda: Spool(self.folder, "http://x a", segment_bytes=2_000),
            threaded=False,
        )

    def put(self, fact):
        self.worker.put(fact)
        if is_record(fact):
            self.told.append(fact.id if isinstance(fact, SpanStarted) else fact.key)

    @rule()
    def begin_run(self):
        run = f"run{next(self.numbers):05}"
        self.runs[run] = []
        self.put(registered(run))
        self.put(InstanceStarted(run, 1))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), size=st.sampled_from([10, 1_000, 3_000]))
    def begin_span(self, data, size):
        run = data.draw(st.sampled_from(sorted(self.runs)))
        span = f"span{next(self.numbers):05}"
        parent = data.draw(st.sampled_from([None, *self.runs[run]]))
        self.runs[run].append(span)
        self.put(SpanStarted(span, run, parent, "t", span, 1, b"x" * size, True))

    @precondition(lambda self: any(self.runs.values()))
    @rule(data=st.data())
    def end_span(self, data):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.runs.items()) if spans]))
        self.put(SpanEnded(self.runs[run].pop(), "complete", 2))

    @precondition(lambda self: self.runs or self.over)
    @rule(data=st.data(), size=st.sampled_from([10, 3_000]))
    def rate(self, data, size):
        run = data.draw(st.sampled_from(sorted({*self.runs, *self.over})))
        self.put(QualityRecorded(f"q{next(self.numbers):05}", run, "verdict", b"x" * size))
        self.rated.setdefault(run, []).append(self.told[-1])

    @precondition(lambda self: any(not spans for spans in self.runs.values()))
    @rule(data=st.data())
    def end_run(self, data):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.runs.items()) if not spans]))
        del self.runs[run]
        self.over.append(run)
        self.put(InstanceFinished(run, 9, "complete"))

    @rule()
    def come_and_go(self):
        self.site.is_down = not self.site.is_down

    @rule()
    def flush(self):
        ledger = self.worker.flush(0.02 if self.site.is_down else 5.0)
        if not self.site.is_down:
            assert ledger.pending == sum(map(len, self.runs.values()))

    @rule()
    def follow(self):
        self.runs.clear()
        self.over.clear()
        self.worker.shutdown(0.02 if self.site.is_down else 5.0)
        self.begin()

    @invariant()
    def it_adds_up(self):
        ledger = self.worker.ledger
        assert adds_up(ledger)
        assert ledger.dropped == {}
        # That a span is running may be told again by the next process, under the same key.
        once = [key for key in self.site.stored if not key.endswith("-open")]
        assert len(once) == len(set(once))

    def teardown(self):
        self.site.is_down = False
        self.worker.shutdown(5.0)
        self.begin()
        self.worker.take_over(5.0)
        self.worker.shutdown(5.0)
        self.patch.undo()
        stored = {each.removesuffix("-end") for each in self.site.stored}
        assert set(self.told) <= stored
        for run in {each.removesuffix("-register") for each in self.told if each.endswith("-register")}:
            assert f"{run}-finish" in stored
        for run, keys in self.rated.items():
            places = [self.site.stored.index(each) for each in [f"{run}-register", *keys]]
            assert places == sorted(places)
        assert list(self.folder.glob("*.seg")) == []
        shutil.rmtree(self.folder.parent)


TestSpooled = Spooled.TestCase
TestSpooled.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

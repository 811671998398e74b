"""The outbox: every record delivered or counted, in order, once; whatever the platform does and however long."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefactor_trace._outbox import Done, Limits, Outbox, Send, Wait
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Outcome,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._schema import Schema


def registered(run="run"):
    return InstanceRegistered(run, b"{}", Schema())


def started(span, parent=None, run="run", payload=b"{}"):
    return SpanStarted(span, run, parent, "type", span, 1_000, payload, True)


def ended(span, **parts):
    return SpanEnded(span, "complete", 2_000, **parts)


def keys(step):
    assert isinstance(step, Send)
    return [record.key for record in step.batch]


def put(outbox, *facts, now=0.0):
    for fact in facts:
        outbox.put(fact, now)


def deliver(outbox, now=0.0):
    """Deliver everything that is due; return the keys in the order they went."""
    went = []
    while isinstance(step := outbox.next(now), Send):
        went += keys(step)
        outbox.resolve(Outcome(delivered=frozenset(keys(step))), now, 0.5)
    return went


def adds_up(ledger):
    return ledger.created == ledger.delivered + sum(ledger.dropped.values()) + ledger.pending


class TestLeaving:
    def test_nothing_is_due_at_first(self):
        """An empty outbox waits for a fact, not for a time."""
        assert Outbox().next(0.0) == Wait(None)

    def test_a_record_waits_for_company(self):
        """A lone record leaves after `batch_delay`, not before."""
        outbox = Outbox(Limits(batch_delay=0.5))
        put(outbox, started("a"), ended("a"), now=10.0)

        assert outbox.next(10.2) == Wait(pytest.approx(0.3))
        assert keys(outbox.next(10.5)) == ["a"]

    def test_a_full_batch_leaves_at_once(self):
        """`batch_size` records do not wait, and `put` says so once."""
        outbox = Outbox(Limits(batch_size=2))
        put(outbox, started("a"), started("b"))

        assert [outbox.put(ended("a"), 0.0), outbox.put(ended("b"), 0.0)] == [False, True]
        assert keys(outbox.next(0.0)) == ["a", "b"]

    def test_flush_leaves_at_once(self):
        """A flush sends what waits now; what comes later waits for its own company."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        ticket = outbox.flush(0.0)
        put(outbox, started("b"), ended("b"))

        assert not outbox.is_settled(ticket)
        assert deliver(outbox) == ["a", "b"]
        assert outbox.is_settled(ticket)

    def test_a_batch_is_bounded_in_bytes(self):
        """Big records leave in several requests of about a megabyte."""
        outbox = Outbox()
        for name in "abcdef":
            put(outbox, started(name, payload=b"x" * 250_000), ended(name))
        outbox.flush(0.0)

        assert keys(outbox.next(0.0)) == ["a", "b", "c"]

    def test_parents_go_before_children(self):
        """Children end first, but the platform hears of their parents first."""
        outbox = Outbox()
        put(outbox, started("a"), started("b", "a"), started("c", "b"), ended("c"), ended("b"), ended("a"))
        outbox.flush(0.0)

        assert deliver(outbox) == ["a", "b", "c"]

    def test_a_waiting_parent_is_taken_along(self):
        """A parent further back comes forward into its child's batch, and is sent once."""
        outbox = Outbox(Limits(batch_size=2))
        put(outbox, started("a"), started("b", "a"), started("c", "a"), ended("b"), ended("c"), ended("a"))
        outbox.flush(0.0)

        assert keys(outbox.next(0.0)) == ["a", "b"]
        outbox.resolve(Outcome(delivered=frozenset("ab")), 0.0, 0.5)
        assert deliver(outbox) == ["c"]

    def test_nesting_deeper_than_a_batch(self):
        """A chain of parents longer than a batch goes in several, top first."""
        outbox = Outbox(Limits(batch_size=3))
        names = [f"s{number}" for number in range(8)]
        for name, parent in zip(names, [None, *names], strict=False):
            put(outbox, started(name, parent))
        put(outbox, ended(names[-1]))
        outbox.flush(0.0)

        assert deliver(outbox) == [f"{name}-open" for name in names[:-1]] + [names[-1]]


class TestAnnouncing:
    def test_an_open_parent_is_announced(self):
        """A child that must go takes its open parent along as active; the parent is finished by a second call."""
        outbox = Outbox()
        put(outbox, started("a"), started("b", "a"), ended("b"))
        outbox.flush(0.0)
        assert deliver(outbox) == ["a-open", "b"]

        put(outbox, ended("a", result=b"{}"))
        outbox.flush(0.0)
        step = outbox.next(0.0)

        assert step.batch == (SpanRecord(started("a"), ended("a", result=b"{}"), announced=True),)

    def test_a_known_parent_is_not_taken_along(self):
        """The finish of a parent that was announced keeps its place, behind the children that ended before it."""
        outbox = Outbox()
        put(outbox, started("a"), started("b", "a"), ended("b"))
        outbox.flush(0.0)
        deliver(outbox)
        put(outbox, started("c", "a"), ended("c"), ended("a"))
        outbox.flush(0.0)

        assert deliver(outbox) == ["c", "a-end"]

    def test_an_old_open_span_is_announced(self):
        """A span open for `live_after` seconds is shown, though nobody waits for it."""
        outbox = Outbox(Limits(live_after=5.0))
        put(outbox, started("a"), now=1.0)

        assert outbox.next(2.0) == Wait(pytest.approx(4.0))
        assert keys(outbox.next(6.0)) == ["a-open"]
        outbox.resolve(Outcome(delivered=frozenset({"a-open"})), 6.0, 0.5)
        assert outbox.next(6.0) == Wait(None)

    def test_not_before_its_run(self):
        """A span is not shown while its run's registration is still waiting for a later batch."""
        outbox = Outbox(Limits(live_after=1.0))
        for name in "xyz":
            put(outbox, started(name, payload=b"x" * 400_000), ended(name))
        put(outbox, registered("late"), started("a", run="late"))

        assert keys(outbox.next(9.0)) == ["x", "y"]

    def test_a_short_span_is_never_announced(self):
        """One create per finished span: no second call for a span that ends in time."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)

        assert deliver(outbox, now=100.0) == ["a"]

    def test_ended_while_its_announcement_was_on_the_way(self):
        """The announcement counts, what is left is the finish, and it still goes before its run's finish."""
        outbox = Outbox(Limits(live_after=1.0))
        put(outbox, started("a"))
        step = outbox.next(1.0)
        put(outbox, ended("a"), InstanceFinished("run", 3_000, "complete"))
        outbox.resolve(Outcome(delivered=frozenset(keys(step))), 1.0, 0.5)
        outbox.flush(0.0)

        assert deliver(outbox, 1.0) == ["a-end", "run-finish"]
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_an_announcement_of_unknown_fate_is_repeated(self):
        """After a lost answer the platform may know the span as active: it is announced again, then finished."""
        outbox = Outbox(Limits(live_after=1.0))
        put(outbox, started("a"))
        outbox.next(1.0)
        outbox.resolve(Outcome(trouble="the answer was lost"), 1.0, 0.0)
        put(outbox, ended("a"), InstanceFinished("run", 3_000, "complete"))
        outbox.flush(0.0)

        assert deliver(outbox, 2.0) == ["a-open", "a-end", "run-finish"]

    def test_a_refused_announcement_drops_the_span(self):
        """It is counted once, asked for never again, and its end is no second record."""
        outbox = Outbox(Limits(live_after=1.0))
        put(outbox, started("a"), started("b", "a"))
        outbox.next(1.0)
        outbox.resolve(Outcome(refused={"a-open": "refused: 422"}), 1.0, 0.5)
        put(outbox, ended("b"), ended("a"))
        outbox.flush(0.0)
        step = outbox.next(1.0)

        assert [record.started.parent_id for record in step.batch] == [None]
        assert outbox.ledger[:4] == (2, 0, {"refused: 422": 1}, 1)


class TestRefusal:
    def test_a_refused_record_is_counted_alone(self):
        """Its neighbours are delivered, and its children hang from the next span above."""
        outbox = Outbox(Limits(batch_size=2))
        put(outbox, started("a"), started("b", "a"), started("c", "b"), ended("c"), ended("b"), ended("a"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(delivered=frozenset("a"), refused={"b": "refused: 422"}), 0.0, 0.5)
        step = outbox.next(0.0)

        assert [(record.id, record.started.parent_id) for record in step.batch] == [("c", "a")]
        assert outbox.ledger[:4] == (3, 1, {"refused: 422": 1}, 1)

    def test_a_dead_instance_takes_all_its_records(self):
        """What waits, what is open and what is still to come of it are dropped and counted; others go on."""
        outbox = Outbox()
        put(
            outbox,
            registered(),
            started("a"),
            started("b"),
            ended("b"),
            started("z", run="other"),
            ended("z"),
        )
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(refused={"run-register": "no"}, dead={"run": "instance no"}), 0.0, 0.5)
        put(outbox, ended("a"), started("c"), ended("c"), InstanceFinished("run", 3, "complete"))

        assert deliver(outbox) == ["z"]
        assert outbox.ledger == (6, 1, {"no": 1, "instance no": 4}, 0, {})

    def test_the_same_id_twice(self):
        """Two runs under one id are one run too many: the second one's records are counted as dropped."""
        outbox = Outbox()
        put(outbox, registered(), InstanceStarted("run", 1), registered(), InstanceStarted("run", 1))
        outbox.flush(0.0)

        assert deliver(outbox) == ["run-register", "run-start"]
        assert outbox.ledger[:4] == (4, 2, {"same id twice": 2}, 0)
        assert outbox._bytes == 0


class TestTrouble:
    def test_backoff_grows_with_full_jitter(self):
        """Waits are below 1, 2, 4 ... 30 seconds, and start anew after a success."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        now, waits = 0.0, []
        for _ in range(8):
            assert isinstance(outbox.next(now), Send)
            outbox.resolve(Outcome(trouble="busy"), now, 0.5)
            waits.append(outbox.next(now).seconds)
            now += waits[-1]

        assert waits == [pytest.approx(each) for each in (0.5, 1, 2, 4, 8, 15, 15, 15)]
        outbox.next(now)
        outbox.resolve(Outcome(delivered=frozenset("a")), now, 0.5)
        put(outbox, started("b"), ended("b"), now=now)
        outbox.flush(0.0)
        outbox.next(now)
        outbox.resolve(Outcome(trouble="busy"), now, 0.5)
        assert outbox.next(now) == Wait(pytest.approx(0.5), for_news=False)

    @pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (0.0, None), (3_600.0, 900.0), (1e12, 900.0)])
    def test_retry_after_is_obeyed_up_to_15_minutes(self, asked, waited):
        """The platform may ask for silence, but not for hours of it."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(trouble="busy", retry_after=asked), 0.0, 0.9)
        step = outbox.next(0.0)

        assert step == (Wait(waited, for_news=False) if waited else Send(step.batch))

    def test_an_empty_outcome_does_not_spin(self):
        """An exporter that settles nothing and says nothing is asked again after a pause."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(), 0.0, 0.5)

        assert outbox.next(0.0) == Wait(0.5, for_news=False)

    def test_an_outcome_about_strangers_changes_nothing(self):
        """Keys that were not in the batch are ignored."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"), started("b"), ended("b"))
        outbox.flush(0.0)
        step = outbox.next(0.0)
        outbox.resolve(Outcome(delivered=frozenset({"x", *keys(step)}), refused={"y": "no"}), 0.0, 0.5)

        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_nowhere_to_go(self):
        """With no destination a flush looks for one at once, and is over when there is none."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        for now in (0.0, 0.1):
            ticket = outbox.flush(now)
            assert not outbox.is_settled(ticket)
            assert isinstance(outbox.next(now), Send)
            outbox.resolve(Outcome(trouble="nowhere", reachable=False, nowhere=True), now, 0.9)
            assert outbox.is_settled(ticket)
            assert isinstance(outbox.next(now), Wait)


class TestFull:
    def test_payloads_are_left_out_first(self):
        """A buffer that is getting tight keeps the steps and leaves out their data, saying so."""
        outbox = Outbox(Limits(buffer_bytes=40_000))
        for number in range(7):
            put(outbox, started(f"s{number}", payload=b"x" * 5_000), ended(f"s{number}", result=b"y" * 5_000))
        outbox.flush(0.0)
        records = outbox.next(0.0).batch

        assert len(records) == 7
        assert records[0].started.payload == b"x" * 5_000
        assert records[-1].started.payload == records[-1].ended.result == b'{"$truncated":"buffer full"}'
        assert outbox.ledger.notes["payload left out: buffer full"] >= 4

    def test_then_spans_are_dropped_and_counted(self):
        """When even that is too much, further spans are dropped, by name of the reason, and memory stays bounded."""
        outbox = Outbox(Limits(buffer_bytes=100_000))
        for number in range(1_000):
            put(outbox, started(f"s{number}"), ended(f"s{number}"))
        ledger = outbox.ledger

        assert ledger.dropped["overflow"] > 800
        assert adds_up(ledger)
        assert outbox._bytes <= 100_000

    def test_runs_are_dropped_whole(self):
        """A run that begins when the buffer is full is dropped whole, and counted; memory stays bounded."""
        outbox = Outbox(Limits(buffer_bytes=50_000))
        for number in range(1_000):
            run = f"run{number}"
            put(
                outbox,
                registered(run),
                InstanceStarted(run, 1),
                started(f"s{number}", run=run),
                ended(f"s{number}"),
            )
            put(outbox, InstanceFinished(run, 2, "complete"))
        ledger = outbox.ledger

        assert adds_up(ledger)
        assert ledger.created == 4_000
        assert outbox._bytes <= 55_000
        assert not outbox._dead

    def test_room_comes_back(self):
        """What is delivered makes room to the last byte."""
        outbox = Outbox(Limits(buffer_bytes=100_000))
        for number in range(1_000):
            put(outbox, started(f"s{number}"), ended(f"s{number}"))
        outbox.flush(0.0)
        deliver(outbox)

        assert outbox._bytes == 0


class TestClosing:
    def test_what_is_open_is_recorded_as_interrupted(self):
        """Open spans and runs end as failed, inner ones first, and leave at once."""
        outbox = Outbox()
        put(outbox, registered(), InstanceStarted("run", 1), started("a"), started("b", "a"))
        outbox.close(0.0, 5_000)
        records = outbox.next(0.0).batch

        assert [record.key for record in records] == ["run-register", "run-start", "a", "b", "run-finish"]
        assert [records[2].ended.status, records[4].status] == ["failed", "failed"]
        assert b'"Interrupted"' in records[3].ended.error

    def test_what_was_terminated_is_not_finished(self):
        """Nothing is finished over the platform's state, not at the end either."""
        outbox = Outbox()
        put(outbox, registered(), InstanceStarted("run", 1))
        outbox.flush(0.0)
        step = outbox.next(0.0)
        outbox.resolve(Outcome(delivered=frozenset(keys(step)), terminated={"run": "policy"}), 0.0, 0.5)
        outbox.close(0.0, 5_000)

        assert outbox.next(0.0) == Done()
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_done_when_all_is_delivered(self):
        """A closed outbox is done when nothing waits, and what comes after is dropped and counted."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.close(0.0, 5_000)
        assert deliver(outbox) == ["a"]
        put(outbox, started("b"), ended("b"), registered())

        assert outbox.next(0.0) == Done()
        assert outbox.ledger[:4] == (3, 1, {"after_shutdown": 2}, 0)

    def test_one_last_attempt_though_it_was_failing(self):
        """Closing tries once more at once, and gives up if nobody answers."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(trouble="refused", reachable=False), 0.0, 0.9)
        outbox.close(0.0, 5_000)

        assert isinstance(outbox.next(0.0), Send)
        outbox.resolve(Outcome(trouble="refused", reachable=False), 0.0, 0.9)
        assert outbox.next(0.0) == Done()

    def test_a_silence_asked_for_is_kept(self):
        """Retry-After holds while closing, too: the shell sees that it is longer than it will wait."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(trouble="busy", retry_after=60.0), 0.0, 0.9)
        outbox.close(1.0, 5_000)

        assert outbox.next(1.0) == Wait(59.0, for_news=False)

    def test_abandoning_counts_the_rest(self):
        """What could not leave is dropped by the reason given; a late outcome changes nothing."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"), started("b"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.abandon("exit")
        outbox.resolve(Outcome(delivered=frozenset("a")), 0.0, 0.5)

        assert outbox.ledger[:4] == (2, 0, {"exit": 2}, 0)


class Lifetimes(RuleBasedStateMachine):
    """Random lives of runs and spans against a platform of random temper."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(Limits(buffer_bytes=60_000, batch_size=5, batch_delay=0.5, live_after=2.0))
        self.numbers = itertools.count(
            1
        )  # its own, with names that sort: the same draws must mean the same again
        self.now = 0.0
        self.closed = False
        self.runs = {}  # open run → its open spans, outermost first
        self.born = set()
        self.spans_known = {}  # what the platform has stored: span → "active" or "final"
        self.registered, self.started, self.finished = set(), set(), set()
        self.batch = ()

    # -- the program

    @rule(tight=st.booleans())
    def begin_run(self, tight):
        run = f"run{next(self.numbers):05}"
        self.runs[run] = []
        put(self.outbox, registered(run), InstanceStarted(run, 1), now=self.now)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), size=st.sampled_from([0, 10, 3_000, 20_000]))
    def begin_span(self, data, size):
        run = data.draw(st.sampled_from(sorted(self.runs)))
        parent = data.draw(st.sampled_from([None, *self.runs[run]]))
        span = f"span{next(self.numbers):05}"
        self.runs[run].append(span)
        self.born.add(span)
        put(self.outbox, started(span, parent, run, b"x" * size), now=self.now)

    @precondition(lambda self: any(self.runs.values()))
    @rule(data=st.data(), size=st.sampled_from([0, 10, 3_000]))
    def end_span(self, data, size):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.runs.items()) if spans]))
        span = data.draw(st.sampled_from(self.runs[run]))
        self.runs[run].remove(span)
        put(self.outbox, ended(span, result=b"y" * size), now=self.now)

    @precondition(lambda self: any(not spans for spans in self.runs.values()))
    @rule(data=st.data())
    def end_run(self, data):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.runs.items()) if not spans]))
        del self.runs[run]
        put(self.outbox, InstanceFinished(run, 9, "complete"), now=self.now)

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 40.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def flush(self):
        self.outbox.flush(self.now)

    @rule()
    def close(self):
        self.closed = True
        self.runs.clear()
        self.outbox.close(self.now, 10_000)

    # -- the sender and the platform

    @precondition(lambda self: not self.batch)
    @rule()
    def cut(self):
        step = self.outbox.next(self.now)
        if isinstance(step, Send):
            assert step.batch
            assert len({record.key for record in step.batch}) == len(step.batch)
            self.batch = step.batch
        elif isinstance(step, Wait) and step.seconds is not None:
            assert step.seconds > 0

    @precondition(lambda self: self.batch)
    @rule(data=st.data(), jitter=st.floats(0, 0.999))
    def answer(self, data, jitter):
        """Take a prefix of the batch, refuse some of it, lose the answer to some, then stop in trouble or not."""
        taken = data.draw(st.integers(0, len(self.batch)))
        delivered, refused, dead = set(), {}, {}
        for record in self.batch[:taken]:
            word = data.draw(st.sampled_from(["take", "take", "take", "refuse", "lose"]))
            if word == "refuse":
                refused[record.key] = "refused"
                if isinstance(record, InstanceRegistered):
                    dead[record.instance_id] = "dead"
            else:
                lost_parent = isinstance(record, SpanRecord) and record.started.parent_id in refused
                if record.instance_id in dead or lost_parent:
                    continue
                self.store(record, again=word == "lose")
                if word == "take":
                    delivered.add(record.key)
                else:
                    break
        self.batch = ()
        trouble = None if len(delivered) + len(refused) > 0 else "trouble"
        self.outbox.resolve(
            Outcome(delivered=frozenset(delivered), refused=refused, dead=dead, trouble=trouble),
            self.now,
            jitter,
        )

    def store(self, record, again):
        """Be the platform: check the order, and store."""
        run = record.instance_id
        if isinstance(record, InstanceRegistered):
            self.registered.add(run)
        elif isinstance(record, InstanceStarted):
            assert run in self.registered
            self.started.add(run)
        elif isinstance(record, InstanceFinished):
            assert run in self.registered
            self.finished.add(run)
        else:
            assert run in self.registered, "a span before its run"
            assert run not in self.finished, "a span after its run has finished"
            parent = record.started.parent_id
            assert parent is None or parent in self.spans_known, "a child before its parent"
            state = self.spans_known.get(record.id)
            if record.announced:
                assert state in ("active", "final")
            elif record.ended is None:
                assert state in (None, "active"), "announced after its end"
            else:
                assert state in (None, "final"), "created again under the same id"
            self.spans_known[record.id] = "active" if record.ended is None else "final"

    # -- always

    @invariant()
    def it_adds_up(self):
        ledger = self.outbox.ledger
        assert adds_up(ledger)
        assert ledger.pending >= 0

    @invariant()
    def memory_is_bounded(self):
        # What is open or announced cannot be dropped, only emptied; it is bounded by the program itself.
        open_ = len(self.outbox._open) + len(self.outbox._announced)
        instance_records = sum(not isinstance(each[2], SpanRecord) for each in self.outbox._waiting.values())
        assert 0 <= self.outbox._bytes <= 60_000 + 1_200 * (open_ + instance_records + 5)

    def teardown(self):
        """In the end a platform in good temper gets everything that was not dropped, and the ledger says so."""
        if self.batch:
            self.outbox.resolve(Outcome(trouble="the last answer was lost"), self.now, 0.5)
            self.batch = ()
        self.outbox.close(self.now, 10_000)
        for _ in range(2_000):
            step = self.outbox.next(self.now)
            if isinstance(step, Done):
                break
            if isinstance(step, Wait):
                self.now += step.seconds
                continue
            for record in step.batch:
                self.store(record, again=False)
            self.outbox.resolve(Outcome(delivered=frozenset(keys(step))), self.now, 0.5)
        ledger = self.outbox.ledger
        assert ledger.pending == 0
        assert adds_up(ledger)
        assert self.outbox._bytes == 0
        assert not [span for span, state in self.spans_known.items() if state == "active"], (
            "left active for ever"
        )


TestLifetimes = Lifetimes.TestCase
TestLifetimes.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)

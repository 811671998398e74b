"""The outbox: every record delivered or counted, in order, once; whatever the platform does and however long."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefactor_trace._outbox import POISON, Done, Limits, Outbox, Send, Strike, Wait
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Outcome,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._schema import Schema


def registered(run="run"):
    return InstanceRegistered(run, b"{}", Schema())


def started(span, parent=None, run="run", payload=b"{}"):
    return SpanStarted(span, run, parent, "type", span, 1_000, payload, True)


def begun(run="run"):
    return InstanceStarted(run, 1_000)


def rated(number, run="run", name="verdict", payload=b"{}"):
    return QualityRecorded(f"q{number:05}", run, name, payload)


def finished(run="run"):
    return InstanceFinished(run, 3_000, "complete")


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
        """`batch_size` records do not wait."""
        outbox = Outbox(Limits(batch_size=2))
        put(outbox, started("a"), started("b"), ended("a"))
        assert outbox.next(0.0) == Wait(pytest.approx(0.5))
        put(outbox, ended("b"))

        assert keys(outbox.next(0.0)) == ["a", "b"]

    def test_a_burst_has_its_time(self):
        """With `burst_delay`, a full batch waits for so long: not longer, and never longer than a single record."""
        outbox = Outbox(Limits(batch_size=2, burst_delay=0.05))
        put(outbox, started("a"), started("b"), ended("a"), ended("b"), now=10.0)
        assert outbox.next(10.02) == Wait(pytest.approx(0.03))
        assert keys(outbox.next(10.05)) == ["a", "b"]

        hasty = Outbox(Limits(batch_size=2, batch_delay=0.01, burst_delay=0.05))
        put(hasty, started("a"), started("b"), ended("a"), ended("b"), now=10.0)
        assert hasty.next(10.0) == Wait(pytest.approx(0.01))

    def test_a_burst_of_megabytes_leaves_at_once(self):
        """Memory comes first: more than 16 MiB do not wait for the burst to be over."""
        outbox = Outbox(Limits(batch_size=2, burst_delay=0.05))
        put(outbox, started("a"), ended("a"), now=10.0)
        put(outbox, started("b", payload=b"x" * 17_000_000), ended("b"), now=10.0)

        assert keys(outbox.next(10.0)) == ["a"]

    @pytest.mark.parametrize(
        "hurry", [lambda outbox: outbox.flush(10.0), lambda outbox: outbox.close(10.0, 0)]
    )
    def test_no_burst_holds_up_a_flush(self, hurry):
        """Whoever waits for the records does not wait for the end of a burst as well."""
        outbox = Outbox(Limits(batch_size=2, burst_delay=0.05))
        put(outbox, started("a"), started("b"), ended("a"), ended("b"), now=10.0)
        hurry(outbox)

        assert keys(outbox.next(10.0)) == ["a", "b"]

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


class TestNewRuns:
    """While more waits than a batch takes, the beginnings of the latest runs go ahead."""

    def backlog(self, spans=300, **limits):
        outbox = Outbox(Limits(**limits))
        put(outbox, registered("old"), begun("old"))
        for number in range(spans):
            put(outbox, started(f"o{number:03}", run="old"), ended(f"o{number:03}"))
        return outbox

    def test_go_ahead(self):
        """A run that begins behind a backlog is in the next batch; all that was there before keeps its order."""
        outbox = self.backlog()
        put(outbox, registered("new"), begun("new"), started("n", run="new"), ended("n"), finished("new"))
        old = ["old-register", "old-start", *(f"o{number:03}" for number in range(300))]
        first = keys(outbox.next(1.0))
        assert first[:4] == ["old-register", "old-start", "new-register", "new-start"]
        assert first[4:] == old[2:48]
        assert deliver(outbox, 1.0) == [*first, *old[48:], "n", "new-finish"]

    def test_leave_room_for_the_rest(self):
        """However many runs begin, four fifths of a batch are for what was there before, and nothing starves."""
        outbox = self.backlog()
        went, runs = [], 0
        while "o299" not in went:
            for _ in range(20):
                runs += 1
                put(outbox, registered(f"r{runs:05}"), begun(f"r{runs:05}"))
            batch = keys(outbox.next(1.0))
            assert len(batch) == 50
            assert sum(key.startswith("r") for key in batch) <= 10 or batch[-1] > "o299"
            assert f"r{runs:05}-register" in batch
            went += batch
            outbox.resolve(Outcome(delivered=frozenset(batch)), 1.0, 0.5)
        assert len(went) <= 50 * (300 // 40 + 2)

    def test_one_that_is_refused_or_held_keeps_its_place(self):
        """A new run whose start failed goes on in order: nothing of a run leaves before its beginning."""
        outbox = self.backlog()
        put(outbox, registered("new"), begun("new"), started("n", run="new"), ended("n"), finished("new"))
        batch = keys(outbox.next(1.0))
        outbox.resolve(Outcome(delivered=frozenset(batch) - {"new-start"}), 1.0, 0.5)
        went = deliver(outbox, 1.0)
        assert went.index("new-start") < went.index("n") < went.index("new-finish")
        assert adds_up(outbox.ledger)

    def test_what_comes_back_has_no_priority(self):
        """A run that was kept elsewhere is not new, and waits behind what is."""
        outbox = self.backlog()
        outbox.put_back(registered("back"), 0.0)
        put(outbox, registered("new"), begun("new"))
        went = deliver(outbox, 1.0)
        assert went.index("new-register") < 50 < went.index("back-register")


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

    def test_a_quiet_span_is_not_announced_by_time(self):
        """However long a model takes, its span goes out whole; others are announced as if it were not there."""
        outbox = Outbox(Limits(live_after=5.0))
        put(outbox, registered(), started("quiet")._replace(quiet=True))
        deliver(outbox, 1.0)
        assert outbox.next(100.0) == Wait(5.0)
        put(outbox, started("loud"), now=100.0)

        assert deliver(outbox, 106.0) == ["loud-open"]
        assert outbox.ledger.pending == 2
        put(outbox, ended("quiet"), now=107.0)
        assert deliver(outbox, 108.0) == ["quiet"]
        assert adds_up(outbox.ledger)

    def test_a_child_announces_a_quiet_span(self):
        """Parents go before children: a child that has ended must hang from something."""
        outbox = Outbox()
        put(outbox, started("quiet")._replace(quiet=True), started("child", "quiet"), ended("child"))
        assert deliver(outbox, 1.0) == ["quiet-open", "child"]
        put(outbox, ended("quiet", usage=b'{"total_tokens":3}'))

        assert deliver(outbox, 2.0) == ["quiet-end"]
        assert outbox.size == 0

    def test_a_quiet_span_is_open_for_other_processes(self):
        """It is held, no stranger to its children, and shown as soon as another process hangs its own from it."""
        outbox = Outbox(Limits(live_after=5.0))
        put(outbox, registered(), started("quiet")._replace(quiet=True), started("child", "quiet"))
        deliver(outbox, 1.0)
        outbox.show("quiet")

        assert outbox.holds("quiet")
        assert not outbox._strangers
        assert deliver(outbox, 1.0) == ["quiet-open"]
        assert outbox.holds("quiet")

    @pytest.mark.parametrize("end", ["refused", "buried", "abandoned", "closed"])
    def test_a_quiet_span_is_accounted_for(self, end):
        """However an open span is given up, nothing of it stays."""
        outbox = Outbox()
        put(outbox, registered(), started("quiet")._replace(quiet=True))
        if end == "refused":
            put(outbox, started("child", "quiet"), ended("child"))
            step = outbox.next(1.0)
            refused = {"quiet-open": "refused: bad"}
            delivered = frozenset(keys(step)) - {"quiet-open"}
            outbox.resolve(Outcome(delivered=delivered, refused=refused), 1.0, 0.5)
        elif end == "buried":
            outbox.bury("run", "refused")
        elif end == "abandoned":
            outbox.abandon("exit")
        else:
            outbox.close(1.0, 5)
            assert deliver(outbox, 1.0) == ["run-register", "quiet", "run-finish"]

        assert not outbox._open
        assert adds_up(outbox.ledger)

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
        outbox.know("run")
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
        outbox.know("run")
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
    def test_a_few_records_find_out_whether_it_is_over(self):
        """After a failure a batch is small, so that its answer comes soon; after a success all goes again."""
        outbox = Outbox()
        for number in range(200):
            put(outbox, started(f"s{number:03}"), ended(f"s{number:03}"))
        sizes, now = [], 0.0
        for outcome in ("down", "down", None, None, None):
            batch = keys(outbox.next(now))
            sizes.append(len(batch))
            delivered = frozenset() if outcome else frozenset(batch)
            outbox.resolve(Outcome(delivered=delivered, trouble=outcome), now, 0.0)

        assert sizes == [50, 10, 10, 50, 50]

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

    def test_a_batch_of_which_a_part_was_taken_starts_backoff_anew(self):
        """After an outage the platform is slow at first: who gets a part through need not wait 30 seconds more."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"), started("b"), ended("b"))
        outbox.flush(0.0)
        now = 0.0
        for _ in range(8):
            outbox.next(now)
            outbox.resolve(Outcome(trouble="down"), now, 0.5)
            now += outbox.next(now).seconds
        assert keys(outbox.next(now)) == ["a", "b"]
        outbox.resolve(Outcome(delivered=frozenset("a"), trouble="slow"), now, 0.5)

        assert outbox.next(now) == Wait(pytest.approx(0.5), for_news=False)
        now += 0.5
        assert keys(outbox.next(now)) == ["b"]
        outbox.resolve(Outcome(trouble="slow"), now, 0.5)
        assert outbox.next(now) == Wait(pytest.approx(1.0), for_news=False)

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


class TestComingBack:
    def test_what_comes_back_after_the_end_is_taken(self):
        """A fact that was kept elsewhere is no new one: `close` does not drop it; what is new is still dropped."""
        outbox = Outbox()
        outbox.close(0.0, 5_000)
        assert outbox.next(0.0) == Done()
        for fact in (
            registered(),
            started("a"),
            ended("a"),
            InstanceFinished("run", 3, "complete"),
        ):
            outbox.put_back(fact, 0.0)
        put(outbox, started("b"))

        assert deliver(outbox) == ["run-register", "a", "run-finish"]
        assert outbox.ledger[:4] == (4, 3, {"after_shutdown": 1}, 0)
        assert outbox.next(0.0) == Done()

    def test_what_was_perhaps_announced(self):
        """A span of which an earlier process may have told is announced again before it is finished."""
        outbox = Outbox()
        outbox.suspect("a")
        outbox.put_back(started("a"), 0.0)
        outbox.put_back(ended("a"), 0.0)
        outbox.flush(0.0)

        assert deliver(outbox) == ["a-open", "a-end"]

    def test_closing_leaves_alone_what_is_partly_elsewhere(self):
        """Of such a run nothing is ended: whoever brings the rest will. What waits of it leaves, others end."""
        outbox = Outbox()
        for run in ("half", "whole"):
            put(outbox, registered(run), started(f"{run} span", run=run))
        put(outbox, started("done", run="half"), ended("done"))
        outbox.close(0.0, 5_000, but={"half"})

        assert deliver(outbox) == ["half-register", "whole-register", "done", "whole span", "whole-finish"]
        assert outbox.next(0.0) == Done()
        assert outbox.ledger.pending == 1
        outbox.abandon("exit", but={"half span"})
        assert outbox.ledger[:4] == (6, 5, {}, 1)

    def test_a_run_that_ended_elsewhere_is_not_finished(self):
        """The finish of a run that was left is not made up at the end: it is somewhere, and will come."""
        outbox = Outbox()
        put(outbox, registered())
        outbox.leave("run")
        outbox.close(0.0, 5_000)

        assert deliver(outbox) == ["run-register"]

    def test_abandoning_spares_what_is_kept_elsewhere(self):
        """Waiting, open and announced records that are kept elsewhere stay pending; the others are lost."""
        outbox = Outbox(Limits(live_after=1.0), reports=True)
        put(outbox, *(started(f"{place} {fate}") for place in ("open", "told") for fate in ("kept", "lost")))
        outbox.next(1.0)
        outbox.resolve(Outcome(delivered=frozenset({"told kept-open", "told lost-open"})), 1.0, 0.5)
        for fate in ("kept", "lost"):
            put(outbox, started(f"late {fate}"), ended(f"late {fate}"))
        outbox.take_settled()
        outbox.abandon("exit", but={f"{place} kept" for place in ("open", "told", "late")})

        assert outbox.ledger[:4] == (6, 0, {"exit": 3}, 3)
        lost = {f"{place} lost" for place in ("open", "told", "late")}
        assert set(outbox.take_settled()) == {(each, "exit") for each in lost}


class TestReporting:
    def test_what_is_settled_is_told_once(self):
        """Delivered and dropped records are reported by id or key, with the reason; an announcement settles nothing."""
        outbox = Outbox(Limits(live_after=1.0), reports=True)
        put(outbox, registered(), started("a"), started("b"), ended("b"))
        step = outbox.next(1.0)
        assert keys(step) == ["run-register", "b", "a-open"]
        delivered = frozenset({"run-register", "a-open"})
        # The run is known by the same answer, so that the refusal is final.
        outbox.resolve(Outcome(delivered=delivered, refused={"b": "refused: 422"}), 1.0, 0.5)

        assert outbox.take_settled() == [("run-register", None), ("b", "refused: 422")]
        put(outbox, ended("a"))
        outbox.flush(2.0)
        assert deliver(outbox, 2.0) == ["a-end"]
        assert outbox.take_settled() == [("a", None)]
        assert outbox.take_settled() == []

    def test_nothing_is_collected_unasked(self):
        """Without anybody who asks, nothing piles up."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        deliver(outbox)

        assert outbox.take_settled() == []

    def test_all_that_is_dropped_is_told(self):
        """A full buffer, a dead run, the same id, the end of the program: each record dropped is reported once."""
        outbox = Outbox(Limits(buffer_bytes=8_000), reports=True)
        outbox.know("run")
        put(outbox, registered(), started("a"), started("b"), ended("b"))
        for number in range(20):
            put(outbox, started(f"s{number}"), ended(f"s{number}"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(refused={"run-register": "no"}, dead={"run": "instance no"}), 0.0, 0.5)
        outbox.close(0.0, 5_000)
        put(outbox, started("z", run="other"))

        told = outbox.take_settled()
        assert len(told) == len(dict(told)) == outbox.ledger.created == sum(outbox.ledger.dropped.values())

    def test_size(self):
        """The size is that of the payloads and of what is around them, and nothing is left of it in the end."""
        outbox = Outbox()
        assert (outbox.size, outbox.is_empty, outbox.is_in_trouble) == (0, True, False)
        put(outbox, started("a", payload=b"x" * 5_000))
        assert 5_000 < outbox.size < 6_500
        assert outbox.is_empty  # it cannot be sent yet
        put(outbox, ended("a"))
        assert not outbox.is_empty
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(trouble="busy"), 0.0, 0.5)
        assert outbox.is_in_trouble
        deliver(outbox, 10.0)
        assert (outbox.size, outbox.is_empty, outbox.is_in_trouble) == (0, True, False)


STRANGER_TIMES = [0.2, 1.2, 6.2, 36.2, 156.2, 456.2]  # seconds after the first refusal


def steps(outbox, until):
    """Wait as the outbox says, and yield what else it says to do, with the moment, until one."""
    now = 0.0
    for _ in range(200):
        step = outbox.next(now)
        if not isinstance(step, Wait):
            yield now, step
        elif step.seconds is None or now + step.seconds > until:
            return
        else:
            assert step.seconds > 0, "it spins"
            now += step.seconds


def refuse_strangers(outbox, until, *, known_from=math.inf, take=()):
    """Be a platform that does not know "far" until a moment. Return when its spans were tried, and what it took."""
    tries, took = [], []
    for now, step in steps(outbox, until):
        assert isinstance(step, Send)
        assert step.batch
        early = [each for each in step.batch if each.instance_id == "far" and now < known_from]
        if early:
            tries.append(round(now, 3))
        delivered = frozenset(each.key for each in step.batch if each not in early or each.key in take)
        took += [(round(now, 3), key) for key in keys(step) if key in delivered]
        refused = {each.key: "refused: not_found" for each in early if each.key not in delivered}
        outcome = Outcome(delivered=delivered, refused=refused, unknown=frozenset(refused))
        outbox.resolve(outcome, now, 0.5)
    return tries, took


class TestStrangers:
    def test_delivered_once_the_run_is_known(self):
        """Spans that came before their run, which another process registers, are tried again, and arrive."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), started("b", "a", run="far"), ended("b"), ended("a"))
        outbox.flush(0.0)
        tries, took = refuse_strangers(outbox, 1_000, known_from=2.0)

        assert tries == [0.0, 0.2, 1.2]
        assert took == [(6.2, "a"), (6.2, "b")]
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_a_run_that_becomes_known_between_two_spans(self):
        """Of one batch, the first may be refused and the second taken: the first is tried again all the same."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), ended("a"), started("b", run="far"), ended("b"))
        outbox.flush(0.0)
        assert keys(outbox.next(0.0)) == ["a", "b"]
        outcome = Outcome(
            delivered=frozenset({"b"}), refused={"a": "refused: not_found"}, unknown=frozenset({"a"})
        )
        assert outbox.resolve(outcome, 0.0, 0.5) == {}

        assert deliver(outbox, 0.3) == ["a"]
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_given_up_after_the_last_try(self):
        """If the run stays unknown, its spans are refused in the end, with the platform's reason, and counted."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), ended("a"))
        ticket = outbox.flush(0.0)
        tries, _ = refuse_strangers(outbox, 400.0)
        assert tries == [0.0, *STRANGER_TIMES[:-1]]
        assert not outbox.is_settled(ticket)
        assert outbox.ledger.pending == 1
        outbox.next(456.2)
        refused = outbox.resolve(
            Outcome(refused={"a": "refused: not_found"}, unknown=frozenset({"a"})), 456.2, 0.5
        )

        assert refused == {"a": "refused: not_found"}
        assert outbox.is_settled(ticket)
        assert outbox.ledger[:4] == (1, 0, {"refused: not_found": 1}, 0)

    def test_neighbours_go_on(self):
        """While the spans of a stranger are held, those of other runs leave, and so do their announcements."""
        outbox = Outbox(Limits(live_after=3.0))
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        assert refuse_strangers(outbox, 0.1) == ([0.0], [])
        put(outbox, registered(), started("b"), ended("b"), now=0.1)
        outbox.flush(0.1)
        assert keys(outbox.next(0.1)) == ["run-register", "b"]
        outbox.resolve(Outcome(delivered=frozenset({"run-register", "b"})), 0.1, 0.5)
        assert refuse_strangers(outbox, 40.0)[0] == [0.2, 1.2, 6.2, 36.2]

    def test_an_open_span_is_shown_while_others_are_held(self):
        """What is held does not keep an open span of another run from being announced in time."""
        outbox = Outbox(Limits(live_after=3.0))
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        refuse_strangers(outbox, 40.0)
        put(outbox, registered(), now=40.0)
        outbox.flush(40.0)
        assert deliver(outbox, 40.0) == ["run-register"]
        put(outbox, started("b"), now=40.0)

        assert outbox.next(40.0) == Wait(pytest.approx(3.0))
        assert keys(outbox.next(43.0)) == ["b-open"]

    def test_records_wait_for_company_while_others_are_held(self):
        """What is held is no reason to send what is new one by one."""
        outbox = Outbox(Limits(batch_delay=0.5))
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        refuse_strangers(outbox, 40.0)
        put(outbox, started("b"), ended("b"), now=41.0)

        assert outbox.next(41.0) == Wait(pytest.approx(0.5))

    def test_a_wrong_span_of_a_known_run_is_refused_at_once(self):
        """Where the run is known, by our own register or by an earlier process, a refusal is final."""
        outbox = Outbox()
        outbox.know("far")
        put(outbox, registered(), started("a"), started("b", run="far"), ended("a"), ended("b"))
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(delivered=frozenset({"run-register"})), 0.0, 0.5)
        outbox.next(0.0)

        assert outbox.resolve(Outcome(refused={"a": "no", "b": "no"}), 0.0, 0.5) == {"a": "no", "b": "no"}

    def test_a_wrong_span_does_not_hold_its_siblings(self):
        """If the platform takes another span of the run, the run is known: the refused one is wrong, and alone."""
        outbox = Outbox()
        put(outbox, *(each for name in "abc" for each in (started(name, run="far"), ended(name))))
        outbox.flush(0.0)
        outbox.next(0.0)
        outcome = Outcome(delivered=frozenset("ac"), refused={"b": "refused: validation_errors"})

        assert outbox.resolve(outcome, 0.0, 0.5) == {"b": "refused: validation_errors"}
        put(outbox, started("d", run="far"), ended("d"))
        outbox.flush(0.0)
        assert deliver(outbox) == ["d"]

    def test_the_finish_of_a_stranger_goes_last(self):
        """What else is here of the run waits with its spans: a finish must not overtake them."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        refuse_strangers(outbox, 0.1)
        put(outbox, InstanceFinished("far", 9, "complete"))
        outbox.flush(0.1)
        _, took = refuse_strangers(outbox, 1_000, known_from=1.0)

        assert [key for _, key in took] == ["a", "far-finish"]

    def test_an_announcement_of_a_stranger(self):
        """An open span of a run that is not known yet is held as well, and told of later."""
        outbox = Outbox(Limits(live_after=1.0))
        put(outbox, started("a", run="far"))
        step = outbox.next(1.0)
        outbox.resolve(
            Outcome(refused={"a-open": "refused: not_found"}, unknown=frozenset({"a-open"})), 1.0, 0.5
        )
        assert outbox.next(1.0) == Wait(pytest.approx(0.2))
        assert keys(outbox.next(1.2)) == keys(step)
        outbox.resolve(Outcome(delivered=frozenset({"a-open"})), 1.2, 0.5)
        put(outbox, ended("a"))
        outbox.flush(1.2)
        assert deliver(outbox, 1.2) == ["a-end"]

    def test_closing_does_not_spin(self):
        """At the end what is held is no exception: the shell hears how long it would have to wait."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        refuse_strangers(outbox, 40.0)
        outbox.close(40.0, 5_000)

        step = outbox.next(40.0)
        assert isinstance(step, Wait)
        assert step.seconds > 0.1


def refuse_orphans(outbox, until, *, known_from=math.inf, parent="p"):
    """Be a platform that knows the run "far", but not one span in it until a moment; what hangs from it is refused.

    Return when that was tried, and what was taken: when, what, and the parent it was given.
    """
    tries, took = [], []
    for now, step in steps(outbox, until):
        if isinstance(step, Done):
            break
        unknown = {parent} if now < known_from else set()
        refused = {}
        for each in step.batch:
            if each.started.parent_id in unknown:
                refused[each.key] = "refused: validation_errors"
                unknown.add(each.id)
        tries += [round(now, 3)] if refused else []
        delivered = {each.key: each.started.parent_id for each in step.batch if each.key not in refused}
        took += [(round(now, 3), key, above) for key, above in delivered.items()]
        outbox.resolve(Outcome(frozenset(delivered), refused, unknown=frozenset(refused)), now, 0.5)
    return tries, took


class TestSpansOfOthers:
    """A span may hang from one that is another process's, and come to the platform before it."""

    def known(self, *facts, **options):
        outbox = Outbox(**options)
        outbox.know("far")
        put(outbox, *facts)
        outbox.flush(0.0)
        return outbox

    def test_delivered_once_the_parent_is_known(self):
        """What hangs from a span that is not known yet is tried again, with all below it, and keeps its parent."""
        outbox = self.known(
            started("a", "p", run="far"), started("b", "a", run="far"), ended("b"), ended("a")
        )
        tries, took = refuse_orphans(outbox, 1_000, known_from=2.0)

        assert tries == [0.0, 0.2, 1.2]
        assert took == [(6.2, "a", "p"), (6.2, "b", "a")]
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    def test_neighbours_go_on(self):
        """Other spans of the same run are not held up."""
        outbox = self.known(started("a", "p", run="far"), ended("a"), started("b", run="far"), ended("b"))
        tries, took = refuse_orphans(outbox, 1_000, known_from=1.0)

        assert (tries, took) == ([0.0, 0.2], [(0.0, "b", None), (1.2, "a", "p")])

    def test_siblings_are_not_asked_for(self):
        """Once it has been refused to hang one span from it, others that come are held without being tried."""
        outbox = self.known(started("a", "p", run="far"), ended("a"))
        outbox.next(0.0)
        outbox.resolve(Outcome(refused={"a": "no"}, unknown=frozenset("a")), 0.0, 0.5)
        put(outbox, started("b", "p", run="far"), ended("b"))
        outbox.flush(0.0)

        assert outbox.next(0.0) == Wait(pytest.approx(0.2))

    def test_a_parent_that_never_comes(self):
        """After the last try its children hang from the run itself: better there than nowhere."""
        outbox = self.known(
            started("a", "p", run="far"), started("b", "a", run="far"), ended("b"), ended("a")
        )
        tries, took = refuse_orphans(outbox, 1_000)

        assert tries == [0.0, *STRANGER_TIMES]
        assert took == [(456.2, "a", None), (456.2, "b", "a")]
        assert outbox.ledger[:4] == (2, 2, {}, 0)

    @pytest.mark.parametrize(("has_spool", "expected"), [(False, [(1.2, "a", None)]), (True, [])])
    def test_at_the_end(self, has_spool, expected):
        """With no time left it is given up sooner, unless it can wait on disk for the next process."""
        outbox = self.known(started("a", "p", run="far"), ended("a"), reports=has_spool)
        outbox.close(0.0, 5_000)

        assert refuse_orphans(outbox, 2.0)[1] == expected

    def test_a_span_that_is_wrong_itself(self):
        """If the parent is our own, the refusal is about the span, and final; also if the parent was another's."""
        outbox = self.known(started("a", run="far"), started("b", "a", run="far"), ended("b"), ended("a"))
        outbox.next(0.0)
        outcome = Outcome(frozenset("a"), {"b": "refused: invalid"}, unknown=frozenset("b"))
        assert outbox.resolve(outcome, 0.0, 0.5) == {"b": "refused: invalid"}

        outbox = self.known(started("c", "p", run="far"), ended("c"))
        now, refused = 0.0, {}
        while not refused:
            step = outbox.next(now)
            if isinstance(step, Wait):
                now += step.seconds
                continue
            refused = outbox.resolve(
                Outcome(refused={"c": "refused: invalid"}, unknown=frozenset("c")), now, 0.5
            )
        assert (refused, round(now, 1)) == ({"c": "refused: invalid"}, 456.2)
        assert outbox.ledger[:4] == (1, 0, {"refused: invalid": 1}, 0)

    def test_an_open_span_is_shown(self):
        """A span from which another process is about to hang its own is announced at once, behind all above it."""
        outbox = Outbox(Limits(live_after=60.0))
        put(outbox, registered(), started("z"), started("a"), started("b", "a"), started("c", "b"))
        outbox.show("b")
        outbox.show("not ours")
        step = outbox.next(0.0)
        assert keys(step) == ["run-register", "a-open", "b-open"]
        outbox.resolve(Outcome(trouble="no", reachable=False), 0.0, 1.0)
        assert isinstance(outbox.next(0.5), Wait)
        assert deliver(outbox, 2.0) == ["run-register", "a-open", "b-open"]
        assert outbox.next(2.0) == Wait(pytest.approx(58.0))
        put(outbox, ended("c"), ended("b"), now=2.0)
        outbox.show("b")
        outbox.flush(2.0)
        assert deliver(outbox, 2.0) == ["c", "b-end"]

    def test_a_shown_span_that_has_ended(self):
        """If it ends before it was announced, it goes as usual, in one piece."""
        outbox = Outbox()
        put(outbox, started("a"))
        outbox.show("a")
        put(outbox, ended("a"))
        assert outbox.next(0.0) == Wait(pytest.approx(0.5))
        assert deliver(outbox, 0.5) == ["a"]

    def test_a_shown_span_that_is_held(self):
        """What must wait itself does not make the outbox spin."""
        outbox = Outbox()
        outbox.know("far")
        put(outbox, started("a", "p", run="far"))
        outbox.show("a")
        assert refuse_orphans(outbox, 40.0, known_from=2.0) == (
            [0.0, 0.2, 1.2],
            [(6.2, "a-open", "p")],
        )

    def test_an_announcement(self):
        """An open span is held as well, and told of later."""
        outbox = Outbox(Limits(live_after=1.0))
        outbox.know("far")
        put(outbox, started("a", "p", run="far"))
        assert refuse_orphans(outbox, 40.0, known_from=2.0) == ([1.0, 1.2], [(2.2, "a-open", "p")])
        put(outbox, ended("a"), now=40.0)
        outbox.flush(40.0)
        assert deliver(outbox, 40.0) == ["a-end"]


class TestQuality:
    def test_order(self):
        """A quality leaves behind what was recorded before it, and before the finish of its run."""
        outbox = Outbox(Limits(batch_size=2))
        put(outbox, registered(), InstanceStarted("run", 1), rated(1), started("a"), rated(2), ended("a"))
        put(outbox, finished())
        outbox.flush(0.0)

        went = deliver(outbox)

        assert went == ["run-register", "run-start", "q00001-quality", "q00002-quality", "a", "run-finish"]
        assert outbox.ledger[:4] == (6, 6, {}, 0)
        assert outbox.size == 0

    def test_after_the_end(self):
        """A run may be rated when it is over, also when its finish has been delivered."""
        outbox = Outbox()
        put(outbox, registered(), finished())
        outbox.flush(0.0)
        deliver(outbox)
        put(outbox, rated(1))
        outbox.flush(0.0)

        assert deliver(outbox) == ["q00001-quality"]

    def test_refused_alone(self):
        """A quality that the platform will not have is counted and handed back; its run and other ones go on."""
        outbox = Outbox()
        put(outbox, registered(), rated(1), rated(2), finished())
        outbox.flush(0.0)
        left = {"run-register", "q00002-quality", "run-finish"}
        refusal = Outcome(delivered=frozenset(left), refused={"q00001-quality": "refused: validation_errors"})
        outbox.next(0.0)

        assert outbox.resolve(refusal, 0.0, 0.5) == {"q00001-quality": "refused: validation_errors"}
        assert outbox.ledger[:4] == (4, 3, {"refused: validation_errors": 1}, 0)

    def test_poison(self):
        """The one over which the platform fails is given up; the spans and the finish of its run arrive."""
        outbox = Outbox()
        put(outbox, registered(), started("a"), ended("a"), rated(1), rated(2, name="tone"), finished())
        platform = Brittle(outbox, ["q00001-quality"])
        platform.feed(60)

        assert platform.given_up == ["q00001-quality"]
        assert {"run-register", "a", "q00002-quality", "run-finish"} <= set(platform.stored)
        assert outbox.ledger.dropped == {POISON: 1}

    def test_the_last_one_of_a_name_stays_the_last(self):
        """While one is held, a later one of the same name waits, and so does the finish; other names do not."""
        outbox = Outbox()
        put(
            outbox, registered(), rated(1), rated(2), rated(3, name="tone"), rated(4, run="other"), finished()
        )
        outbox.flush(0.0)
        platform = Brittle(outbox, ["q00001-quality"])
        platform.run(2.0)
        first = [each for each in platform.stored if not each.startswith("fresh")]
        assert first == ["run-register", "q00003-quality", "q00004-quality"]
        platform.poison.clear()
        platform.feed(30)

        rest = [each for each in platform.stored if each not in first and not each.startswith("fresh")]
        assert rest == ["q00001-quality", "q00002-quality", "run-finish"]

    def test_of_a_stranger(self):
        """A quality of a run that another process has yet to register is tried again, like its spans."""
        outbox = Outbox()
        put(outbox, rated(1, run="far"))
        outbox.flush(0.0)
        _, took = refuse_strangers(outbox, 1_000, known_from=1.0)

        assert [key for _, key in took] == ["q00001-quality"]

    def test_of_a_run_that_has_ended_here(self):
        """Of a run that is over, nobody else will register it: a platform that does not know it says so once."""
        outbox = Outbox()
        put(outbox, registered(), finished())
        outbox.flush(0.0)
        deliver(outbox)
        put(outbox, rated(1))
        outbox.flush(0.0)
        outbox.next(0.0)
        key = "q00001-quality"

        refused = outbox.resolve(Outcome(refused={key: "404"}, unknown=frozenset({key})), 0.0, 0.5)

        assert refused == {key: "404"}
        assert outbox.ledger[:4] == (3, 2, {"404": 1}, 0)

    @pytest.mark.parametrize("when", ["before its end", "after its end"])
    def test_of_a_run_that_was_refused(self, when):
        """Of a run that the platform would not have, a quality is not sent, however late it comes."""
        outbox = Outbox()
        put(outbox, registered())
        if when == "before its end":
            put(outbox, finished())
        outbox.flush(0.0)
        outbox.next(0.0)
        outbox.resolve(Outcome(refused={"run-register": "no"}, dead={"run": "instance no"}), 0.0, 0.5)
        if when == "after its end":
            put(outbox, finished())
        put(outbox, rated(1))

        assert outbox.is_empty
        assert outbox.ledger == (3, 0, {"no": 1, "instance no": 2}, 0, {})

    def test_of_a_run_under_an_id_that_was_refused_before(self):
        """A new run under the same id is another one, and may be rated."""
        outbox = Outbox()
        put(outbox, registered(), finished())
        outbox.bury("run", "instance no")
        put(outbox, registered(), rated(1), finished(), rated(2))
        outbox.flush(0.0)

        assert deliver(outbox) == ["run-register", "q00001-quality", "run-finish", "q00002-quality"]

    def test_what_is_remembered_of_ended_runs_is_bounded(self):
        """The latest ones are known; what is forgotten costs a question to the platform, and no memory."""
        outbox = Outbox()
        for number in range(3_000):
            put(outbox, registered(f"run{number}"), finished(f"run{number}"))

        assert len(outbox._over) == 1_000
        assert "run2999" in outbox._over

    def test_a_full_buffer(self):
        """A quality that does not fit into the memory is dropped whole: a part of it would not fit its schema."""
        outbox = Outbox(Limits(buffer_bytes=10_000))
        put(outbox, rated(1, payload=b"x" * 5_000), rated(2, payload=b"x" * 5_000), rated(3))

        assert outbox.ledger[:4] == (3, 0, {"overflow": 1}, 2)
        assert outbox.size <= 10_000
        outbox.flush(0.0)
        assert deliver(outbox) == ["q00001-quality", "q00003-quality"]
        assert outbox.size == 0

    def test_after_shutdown(self):
        """What comes too late is counted."""
        outbox = Outbox()
        outbox.close(0.0, 1)
        put(outbox, rated(1))

        assert outbox.ledger[:4] == (1, 0, {"after_shutdown": 1}, 0)

    def test_what_comes_back_goes_before_the_finish(self):
        """A quality that was kept elsewhere does not miss the finish of its run, which is here already."""
        outbox = Outbox(Limits(batch_size=1))
        put(outbox, registered(), finished())
        outbox.put_back(rated(1), 0.0)
        outbox.flush(0.0)

        assert deliver(outbox) == ["run-register", "q00001-quality", "run-finish"]

    def test_many_bytes(self):
        """Big ones leave in several requests of about a megabyte, like spans."""
        outbox = Outbox()
        put(outbox, *(rated(number, payload=b"x" * 250_000) for number in range(5)))
        outbox.flush(0.0)

        assert len(outbox.next(0.0).batch) == 3


class Brittle:
    """A platform that fails over certain records, as the wire tells it: first registers, then spans, then finishes.

    Attributes:
        stored: Keys of what it has taken, in order.
        failures: Batches over which it failed.
        batches: All batches.
        fresh: Those of them that held nothing but what `feed` has brought.
        given_up: Keys of what the outbox gave up, in order.
        is_down: Whether it fails over everything.
    """

    def __init__(self, outbox, poison=()):
        self.outbox = outbox
        self.poison = set(poison)
        self.now = 0.0
        self.stored = []
        self.failures = self.batches = self.fresh = 0
        self.given_up = []
        self.is_down = False

    def answer(self, step):
        assert step.batch
        self.batches += 1
        self.fresh += all(each.startswith("fresh") for each in keys(step))
        spans = [each for each in step.batch if isinstance(each, SpanRecord)]
        groups = [
            *([each] for each in step.batch if isinstance(each, (InstanceRegistered, InstanceStarted))),
            *([spans] if spans else []),  # in one request: all or none
            *([each] for each in step.batch if isinstance(each, QualityRecorded)),
            *([each] for each in step.batch if isinstance(each, InstanceFinished)),
        ]
        delivered, fails = [], False
        for group in groups:
            fails = self.is_down or any(self._is_poison(each) for each in group)
            if fails:
                break
            delivered += [each.key for each in group]
        self.stored += delivered
        self.failures += fails
        trouble = "the platform answered 500" if fails else None
        outcome = Outcome(delivered=frozenset(delivered), trouble=trouble, blames_batch=fails)
        refused = self.outbox.resolve(outcome, self.now, 0.5)
        assert set(refused.values()) <= {POISON}
        self.given_up += refused
        assert adds_up(self.outbox.ledger)

    def _is_poison(self, record):
        return not self.poison.isdisjoint({record.key, record.id if isinstance(record, SpanRecord) else None})

    def run(self, until):
        """Work until a moment, or until nothing is in sight."""
        while True:
            step = self.outbox.next(self.now)
            if isinstance(step, Send):
                self.answer(step)
            elif isinstance(step, Done) or step.seconds is None or self.now + step.seconds > until:
                self.now = until
                return
            else:
                assert step.seconds > 0, "it spins"
                self.now += step.seconds

    def feed(self, seconds):
        """Work for so long, while a good record comes in every second."""
        for number in range(seconds):
            span = f"fresh{int(self.now)}-{number:05}"
            put(self.outbox, started(span), ended(span), now=self.now)
            self.outbox.flush(self.now)
            self.run(self.now + 1)


class TestPoison:
    @pytest.mark.parametrize("place", [0, 1, 24, 48, 49])
    def test_one_in_fifty(self, place):
        """The record over which the platform fails is found, tried again thrice, and given up; all others arrive."""
        outbox = Outbox()
        names = [f"s{number:03}" for number in range(50)]
        put(outbox, registered(), *(each for name in names for each in (started(name), ended(name))))
        ticket = outbox.flush(0.0)
        platform = Brittle(outbox, [names[place]])
        platform.run(3.0)
        assert sorted(platform.stored) == ["run-register", *(each for each in names if each != names[place])]
        assert not outbox.is_settled(ticket)
        assert outbox.ledger.pending == 1
        platform.feed(60)

        assert platform.given_up == [names[place]]
        assert outbox.is_settled(ticket)
        assert outbox.ledger.dropped == {POISON: 1}

    @settings(max_examples=60, deadline=None)
    @given(st.data(), st.integers(1, 80), st.sampled_from([2, 8, 50]))
    def test_k_in_n(self, data, count, batch_size):
        """Whatever is poison: all the rest arrives once, each of them is given up once, in a bounded number of batches."""
        outbox = Outbox(Limits(batch_size=batch_size))
        names = [f"s{number:03}" for number in range(count)]
        poison = data.draw(st.sets(st.sampled_from(names), max_size=4))
        for place, name in enumerate(names):
            put(outbox, started(name, data.draw(st.sampled_from([None, *names[:place]]))))
        for name in data.draw(st.permutations(names)):
            put(outbox, ended(name))
        outbox.flush(0.0)
        platform = Brittle(outbox, poison)
        platform.feed(60 + 45 * len(poison))  # one below the other, they are found one after the other
        outbox.close(platform.now, 5_000)

        ours = [each for each in platform.stored if each.startswith("s")]
        assert sorted(ours) == sorted(set(names) - poison)
        assert sorted(platform.given_up) == sorted(poison)
        assert outbox.ledger.dropped == ({POISON: len(poison)} if poison else {})
        assert outbox.ledger.pending == 0
        assert not outbox._strikes
        assert not outbox._bytes
        # A line of parents that does not fit leaves a batch half full.
        whole = 2 * math.ceil(count / batch_size) + 1
        # Down to one record and up to whole batches again, perhaps once with its parents and once without; four tries.
        found = len(poison) * (4 * math.ceil(math.log2(batch_size)) + 20)
        assert platform.batches - platform.fresh <= whole + found

    @pytest.mark.parametrize("count", [5, 20])
    def test_many_in_a_row(self, count):
        """Records that are poison keep nobody behind them from leaving, however many stand in front."""
        outbox = Outbox()
        names = [f"s{number:03}" for number in range(60)]
        put(outbox, *(each for name in names for each in (started(name), ended(name))))
        platform = Brittle(outbox, names[:count])
        platform.feed(60)
        assert set(names[count:]) <= set(platform.stored)
        platform.feed(900)

        assert sorted(platform.given_up) == names[:count]
        assert outbox.ledger.pending == 0

    def test_a_poison_register_gives_up_its_run(self):
        """Without its register, a run cannot be told of: all of it is given up, and other runs are not."""
        outbox = Outbox()
        for run in ("good", "bad", "well"):
            put(outbox, registered(run), InstanceStarted(run, 1))
            put(outbox, started(f"{run} span", run=run), ended(f"{run} span"))
        platform = Brittle(outbox, ["bad-register"])
        platform.feed(120)
        put(outbox, started("bad late", run="bad"), ended("bad late"), InstanceFinished("bad", 9, "complete"))

        assert platform.given_up == ["bad-register"]
        assert outbox.ledger.dropped == {POISON: 5}
        assert {"good span", "well span"} < set(platform.stored)
        assert not [each for each in platform.stored if each.startswith("bad")]
        assert outbox.ledger.pending == 0

    @pytest.mark.parametrize("verb", ["start", "finish"])
    def test_a_poison_start_or_finish_is_given_up_alone(self, verb):
        """The spans of the run arrive nevertheless."""
        outbox = Outbox()
        put(outbox, registered("r"), InstanceStarted("r", 1), started("x", run="r"), ended("x"))
        put(outbox, InstanceFinished("r", 9, "complete"))
        platform = Brittle(outbox, [f"r-{verb}"])
        platform.feed(60)

        assert platform.given_up == [f"r-{verb}"]
        assert "x" in platform.stored
        assert outbox.ledger.dropped == {POISON: 1}
        assert outbox.ledger.pending == 0

    def test_nothing_is_given_up_in_an_outage(self):
        """If the platform fails over everything, it is not for the records: for a week, none is given up."""
        outbox = Outbox()
        for number in range(20):
            run = f"run{number}"
            put(outbox, registered(run), InstanceStarted(run, 1), started(f"s{number}", run=run))
            put(outbox, ended(f"s{number}"), InstanceFinished(run, 9, "complete"))
        platform = Brittle(outbox)
        platform.is_down = True
        platform.run(7 * 24 * 3_600.0)

        assert platform.given_up == []
        assert outbox.ledger[:4] == (80, 0, {}, 80)
        assert platform.batches <= 7 * 24 * 3_600 / 15 + 20  # jitter is one half: every 15 s in the mean
        platform.is_down = False
        platform.run(platform.now + 60)
        assert outbox.ledger[:4] == (80, 80, {}, 0)

    def test_nothing_is_given_up_over_an_outage_of_one_call(self):
        """If runs are taken and spans are not, for an hour, it is the call that fails, not each of the spans."""
        outbox = Outbox()
        platform = Brittle(outbox, [f"s{number:04}" for number in range(360)])
        for number in range(360):
            run, span = f"run{number}", f"s{number:04}"
            put(outbox, registered(run), started(span, run=run), ended(span), now=platform.now)
            outbox.flush(platform.now)
            platform.run(platform.now + 10)

        assert platform.given_up == []

    def test_alone_it_is_not_given_up(self):
        """Without any other record that is taken, nobody knows what is to blame; it is tried again, now and then."""
        outbox = Outbox()
        put(outbox, started("a"), ended("a"))
        outbox.flush(0.0)
        platform = Brittle(outbox, ["a"])
        platform.run(3_600.0)

        assert platform.given_up == []
        assert platform.batches <= 3_600 / 10 + 20

    def test_a_record_that_was_only_unlucky_arrives(self):
        """A record that the platform takes at last has no strikes left, and the batches grow again."""
        outbox = Outbox(Limits(batch_size=8))
        put(outbox, *(each for number in range(8) for each in (started(f"s{number}"), ended(f"s{number}"))))
        outbox.flush(0.0)
        platform = Brittle(outbox, ["s3"])
        platform.run(1.0)
        assert outbox.ledger.pending == 1
        platform.poison.clear()
        platform.feed(10)

        assert outbox.ledger.dropped == {}
        assert not outbox._strikes
        put(outbox, *(each for number in range(8) for each in (started(f"t{number}"), ended(f"t{number}"))))
        assert len(outbox.next(platform.now).batch) == 8

    def test_a_finish_does_not_overtake_what_is_held(self):
        """A run is not finished before its spans are settled: a span that comes later could be refused for it."""
        outbox = Outbox()
        put(outbox, registered("r"), started("x", run="r"), ended("x"), started("y", run="r"), ended("y"))
        put(outbox, InstanceFinished("r", 9, "complete"))
        outbox.flush(0.0)
        platform = Brittle(outbox, ["x"])
        platform.run(2.0)
        assert "y" in platform.stored
        platform.poison.clear()
        platform.feed(20)

        mine = [each for each in platform.stored if not each.startswith("fresh")]
        assert mine.index("x") < mine.index("r-finish")

    def test_one_that_breaks_the_connection_is_searched_for_at_the_end(self):
        """A platform that breaks off over one record is there: the others leave before the program ends."""
        outbox = Outbox(reports=True)
        names = [f"s{number:03}" for number in range(50)]
        put(outbox, *(each for name in names for each in (started(name), ended(name))))
        outbox.close(0.0, 5_000)
        now, stored = 0.0, []
        while not isinstance(step := outbox.next(now), Done) and now < 2.0:
            if isinstance(step, Wait):
                now += step.seconds
                continue
            sent = keys(step)
            breaks = "s007" in sent
            stored += [] if breaks else sent
            outcome = Outcome(trouble="ReadError", reachable=False, blames_batch=True)
            outbox.resolve(outcome if breaks else Outcome(frozenset(sent)), now, 0.5)

        assert sorted(stored) == [each for each in names if each != "s007"]

    def test_one_over_which_the_platform_falls_silent(self):
        """Its neighbours leave within minutes, by ordinary attempts; it is tried now and then, and never given up."""
        outbox = Outbox(reports=True)
        names = [f"s{number:03}" for number in range(50)]
        put(outbox, *(each for name in names for each in (started(name), ended(name))))
        silent = Outcome(trouble="no whole answer", reachable=False, blames_batch=True, is_silent=True)
        now, stored, tries = 0.0, [], []
        while now < 3_600.0:
            step = outbox.next(now)
            if isinstance(step, Wait):
                now += step.seconds if step.seconds is not None else 60.0
                continue
            sent = keys(step)
            if "s007" in sent:
                now += 10.0
                tries.append((now, len(sent)))
                outbox.resolve(silent, now, 0.5)
            else:
                stored += [(now, each) for each in sent]
                outbox.resolve(Outcome(frozenset(sent)), now, 0.5)

        assert sorted(each for _, each in stored) == [each for each in names if each != "s007"]
        assert max(at for at, _ in stored) < 300
        assert outbox.ledger.pending == 1
        assert len(outbox.take_strikes()) < 25 < len(tries)  # what is written down has an end
        assert {length for at, length in tries if at > 300} == {1}
        assert len([at for at, _ in tries if at > 300]) <= 3_300 / 60

    def test_strikes_are_counted_over_many_processes(self):
        """What one outbox knows the next one is told; after seven the record is given up, and its run finished."""
        strikes, lives = [], 0
        while strikes or not lives:
            outbox = Outbox(reports=True)
            for each in strikes:
                outbox.recall(each)
            put(
                outbox,
                registered("r"),
                started("bad", run="r"),
                ended("bad"),
                InstanceFinished("r", 9, "complete"),
            )
            put(outbox, registered("own"), started("good", run="own"), ended("good"))
            platform = Brittle(outbox, ["bad"])
            outbox.close(0.0, 5_000)
            platform.run(0.5)
            lives += 1
            strikes = list({each.key: each for each in [*strikes, *outbox.take_strikes()]}.values())
            assert {each.identity for each in strikes} <= {"bad"}
            if platform.given_up:
                break
            assert "good" in platform.stored

        assert platform.given_up == ["bad"]
        assert "r-finish" in platform.stored
        assert lives == 8  # at its first failure, nothing had been taken yet

    @pytest.mark.parametrize("taken", [0, 1])
    def test_no_strike_counts_in_an_outage(self, taken):
        """Where nothing is taken, or no span is, a process after the other may fail: nothing is given up."""
        strike = Strike("s", "s", 6, 6)
        for _ in range(20):
            outbox = Outbox(reports=True)
            outbox.recall(strike)
            put(outbox, registered("run"), started("s"), ended("s"), InstanceFinished("run", 9, "failed"))
            outbox.close(0.0, 5_000)
            platform = Brittle(outbox, ["s"])
            platform.is_down = not taken
            platform.run(2.0)
            assert platform.given_up == []
            strike = next((each for each in outbox.take_strikes() if each.key == "s"), strike)
        assert strike.strikes == 6
        assert strike.tries > 6 or not taken

    def test_the_end_does_not_wait_for_what_fails_again_and_again(self):
        """With a spool, one more try is made of it, after all others, and the rest is left to the next process."""
        outbox = Outbox(reports=True)
        outbox.recall(Strike("bad", "bad", 2, 2))
        put(outbox, started("bad"), ended("bad"), started("a"), ended("a"))
        outbox.close(0.0, 5_000)
        platform = Brittle(outbox, ["bad"])
        platform.run(0.2)

        assert platform.stored == ["a"]
        assert platform.failures == 1
        assert outbox.next(0.2) == Done()

    def test_an_announcement_that_is_held_is_not_taken_along(self):
        """A held open parent is not sent in front of its open children; it has its time to wait like all others."""
        outbox = Outbox(Limits(live_after=1.0))
        put(outbox, started("a"), started("b", "a"))
        fails = Outcome(trouble="the platform answered 500", blames_batch=True)
        assert keys(outbox.next(1.0)) == ["a-open", "b-open"]
        outbox.resolve(fails, 1.0, 0.0)
        assert keys(outbox.next(1.0)) == ["a-open"]
        outbox.resolve(fails, 1.0, 0.0)

        assert outbox.next(1.0) == Wait(pytest.approx(0.5))

    def test_a_strike_against_an_announcement_goes_with_its_span(self):
        """What was noted of a span while it was running is forgotten when the span is delivered."""
        outbox = Outbox(Limits(live_after=1.0), reports=True)
        put(outbox, started("a"))
        assert keys(outbox.next(1.0)) == ["a-open"]
        outbox.resolve(Outcome(trouble="the platform answered 500", blames_batch=True), 1.0, 0.0)
        put(outbox, ended("a"), now=2.0)
        outbox.flush(3.0)
        while isinstance(step := outbox.next(3.0), Send):
            outbox.resolve(Outcome(frozenset(keys(step))), 3.0, 0.0)

        assert outbox.ledger.pending == 0
        assert not outbox._strikes

    def test_whoever_is_told_to_wait_is_not_blamed(self):
        """Trouble that blames nobody leaves the size of the batches alone."""
        outbox = Outbox(Limits(batch_size=4))
        put(outbox, *(each for name in "abcd" for each in (started(name), ended(name))))
        step = outbox.next(0.0)
        outbox.resolve(Outcome(trouble="the platform answered 503"), 0.0, 0.0)

        assert outbox.next(0.0) == step

    def test_what_is_held_is_forgotten_in_the_end(self):
        """Of what is settled, nothing stays in memory."""
        outbox = Outbox()
        put(outbox, started("a", run="far"), ended("a"))
        outbox.flush(0.0)
        refuse_strangers(outbox, 1_000, known_from=2.0)
        put(outbox, started("x"), ended("x"))
        Brittle(outbox, ["x"]).feed(60)

        assert outbox.ledger.pending == 0
        assert not outbox._strikes
        assert not outbox._held


class Lifetimes(RuleBasedStateMachine):
    """Random lives of runs and spans against a platform of random temper."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(Limits(buffer_bytes=60_000, batch_size=5, batch_delay=0.5, live_after=2.0))
        # Its own, with names that sort: the same draws must mean the same again.
        self.numbers = itertools.count(1)
        self.now = 0.0
        self.closed = False
        self.runs = {}  # open run → its open spans, outermost first
        self.born = set()
        self.spans_known = {}  # what the platform has stored: span → "active" or "final"
        self.registered, self.started, self.finished = set(), set(), set()
        self.strangers = {}  # run of another process → its spans that are open here, outermost first
        self.poison = set()  # spans and qualities over which the platform fails
        self.over = set()  # runs that have ended
        self.late = set()  # qualities of those
        self.rated = {}  # run and name → the last quality that the platform has stored
        self.brought_back = []
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

    @precondition(lambda self: any(self.runs.values()))
    @rule(data=st.data())
    def poison_span(self, data):
        self.poison.add(
            data.draw(st.sampled_from([span for _, spans in sorted(self.runs.items()) for span in spans]))
        )

    @precondition(lambda self: self.runs or self.over)
    @rule(
        data=st.data(),
        name=st.sampled_from(["verdict", "tone"]),
        size=st.sampled_from([0, 3_000]),
        is_poison=st.sampled_from([False, False, False, True]),
    )
    def rate(self, data, name, size, is_poison):
        run = data.draw(st.sampled_from(sorted({*self.runs, *self.over, *self.strangers})))
        fact = rated(next(self.numbers), run, name, b"x" * size)
        if is_poison:
            self.poison.add(fact.id)
        if run in self.over:
            self.late.add(fact.id)
        put(self.outbox, fact, now=self.now)

    @precondition(lambda self: not self.closed)
    @rule()
    def meet_a_stranger(self):
        self.strangers[f"far{next(self.numbers):05}"] = []

    @precondition(lambda self: self.strangers and not self.closed)
    @rule(data=st.data())
    def begin_span_of_a_stranger(self, data):
        run = data.draw(st.sampled_from(sorted(self.strangers)))
        parent = data.draw(st.sampled_from([None, *self.strangers[run]]))
        span = f"span{next(self.numbers):05}"
        self.strangers[run].append(span)
        put(self.outbox, started(span, parent, run), now=self.now)

    @precondition(lambda self: any(self.strangers.values()))
    @rule(data=st.data())
    def end_span_of_a_stranger(self, data):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.strangers.items()) if spans]))
        put(self.outbox, ended(self.strangers[run].pop()), now=self.now)

    @precondition(lambda self: self.strangers)
    @rule(data=st.data())
    def a_stranger_is_registered(self, data):
        self.registered.add(data.draw(st.sampled_from(sorted(self.strangers))))

    @precondition(lambda self: self.closed)
    @rule(over=st.booleans())
    def bring_back(self, over):
        """What was kept elsewhere comes back, also after the end: a run, its span, and perhaps their ends."""
        run, span = f"run{next(self.numbers):05}", f"span{next(self.numbers):05}"
        facts = [registered(run), InstanceStarted(run, 1), started(span, None, run), ended(span)]
        facts += [rated(next(self.numbers), run), InstanceFinished(run, 9, "complete")]
        dropped = sum(self.outbox.ledger.dropped.values())
        pending = self.outbox.ledger.pending
        if self.outbox._bytes > 30_000:
            return
        for fact in facts if over else facts[:-1]:
            self.outbox.put_back(fact, self.now)
        assert sum(self.outbox.ledger.dropped.values()) == dropped
        assert self.outbox.ledger.pending == pending + (5 if over else 4)
        self.brought_back.append(span)

    @precondition(lambda self: any(not spans for spans in self.runs.values()))
    @rule(data=st.data())
    def end_run(self, data):
        run = data.draw(st.sampled_from([run for run, spans in sorted(self.runs.items()) if not spans]))
        del self.runs[run]
        self.over.add(run)
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
        self.over.update(self.runs)
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
        delivered, refused, dead, blames = set(), {}, {}, data.draw(st.booleans())
        unknown, missing = set(), set()  # keys; ids of spans that the platform did not take from this batch
        for record in self.batch[:taken]:
            has_id = isinstance(record, (SpanRecord, QualityRecorded))
            if has_id and record.id in self.poison:
                blames = True
                break
            is_early = has_id and record.instance_id not in self.registered
            if is_early and record.instance_id in self.strangers:
                refused[record.key] = "refused: not found"
                unknown.add(record.key)
                missing.add(record.id)
                continue
            word = data.draw(st.sampled_from(["take", "take", "take", "refuse", "lose"]))
            if word == "refuse":
                refused[record.key] = "refused"
                if isinstance(record, InstanceRegistered):
                    dead[record.instance_id] = "dead"
                elif isinstance(record, SpanRecord):
                    missing.add(record.id)
            else:
                lost_parent = isinstance(record, SpanRecord) and record.started.parent_id in missing
                if record.instance_id in dead or lost_parent:
                    missing.add(record.id if isinstance(record, SpanRecord) else None)
                    continue
                self.store(record, again=word == "lose")
                if word == "take":
                    delivered.add(record.key)
                else:
                    break
        self.answered, self.batch = self.batch, ()
        trouble = None if len(delivered) + len(refused) > 0 and not blames else "trouble"
        outcome = Outcome(
            delivered=frozenset(delivered),
            refused=refused,
            dead=dead,
            trouble=trouble,
            blames_batch=blames,
            unknown=frozenset(unknown),
        )
        given_up = self.outbox.resolve(outcome, self.now, jitter)
        assert set(given_up) <= {record.key for record in self.answered}
        assert {key for key, reason in given_up.items() if reason != POISON} <= refused.keys()

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
        elif isinstance(record, QualityRecorded):
            assert run in self.registered, "a quality before its run"
            assert run not in self.finished or record.id in self.late, "the finish has overtaken a quality"
            last = self.rated.get((run, record.name), "")
            assert record.id >= last, "a quality over a later one"
            self.rated[run, record.name] = record.id
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
        self.registered.update(self.strangers)
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

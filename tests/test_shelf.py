"""Which fact is where: nothing is handed out twice or forgotten, and a home goes when all in it is settled."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanStarted,
)
from prefactor_trace._schema import Schema
from prefactor_trace._shelf import Home, Settled, Shelf


def registered(run="run"):
    return InstanceRegistered(run, b"{}", Schema())


def began(run="run"):
    return InstanceStarted(run, 1)


def finished(run="run"):
    return InstanceFinished(run, 3, "complete")


def started(span, run="run"):
    return SpanStarted(span, run, None, "type", span, 1, b"{}", True)


def rated(number, run="run"):
    return QualityRecorded(f"q{number}", run, "verdict", b"{}")


def ended(span):
    return SpanEnded(span, "complete", 2)


def key_of(fact):
    return fact.id if isinstance(fact, (SpanStarted, SpanEnded)) else fact.key


def state_of(home):
    return home.unsettled, home.deferred, home.waiting


class TestAdmit:
    def test_with_room(self):
        """With room, the outbox has every fact as well, and its home holds on to it."""
        shelf, home = Shelf(), Home()

        took = [shelf.admit(each, home, has_room=True) for each in (registered(), started("a"), ended("a"))]

        assert [True] * 3 == took
        assert (3, 0, 0) == state_of(home)
        assert 0 == shelf.waiting
        assert set() == shelf.deferred

    def test_without_room(self):
        """Without room, facts wait on disk; a span counts once."""
        shelf, home = Shelf(), Home()

        took = [shelf.admit(each, home, has_room=False) for each in (registered(), started("a"), ended("a"))]

        assert [False] * 3 == took
        assert (3, 3, 2) == state_of(home)
        assert 2 == shelf.waiting
        assert {"run"} == shelf.deferred

    def test_a_run_stays_deferred(self):
        """After one fact of a run had no room, none overtakes it, though there is room; other runs go on."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=False)

        assert not shelf.admit(began(), home, has_room=True)
        assert not shelf.admit(finished(), home, has_room=True)
        assert shelf.admit(registered("other"), home, has_room=True)

    def test_the_end_goes_where_the_beginning_is(self):
        """The end of a span in memory is taken without room: it makes the span ready to leave."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(started("a"), first, has_room=True)

        assert shelf.admit(ended("a"), second, has_room=False)
        assert (first, second) == shelf.homes_of("a")

    def test_a_run_that_is_over_is_not_deferred(self):
        """Once its finish is on disk, nothing more of the run is to come."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=False)
        shelf.admit(finished(), home, has_room=False)

        assert set() == shelf.deferred
        assert 2 == shelf.waiting


class TestQuality:
    def test_with_room(self):
        """A quality of a run that goes on, or is over, is a fact like others: in the outbox, and at home."""
        shelf, home = Shelf(), Home()
        facts = [registered(), rated(1), finished(), rated(2)]

        assert [True] * 4 == [shelf.admit(each, home, has_room=True) for each in facts]
        assert (4, 0, 0) == state_of(home)
        shelf.settle(
            [("run-register", None), ("q1-quality", None), ("q2-quality", None), ("run-finish", None)]
        )
        assert (0, 0, 0) == state_of(home)

    def test_the_finish_does_not_overtake_it(self):
        """If a quality had no room, what the run records after it waits behind it."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=True)
        shelf.settle([("run-register", None)])

        assert not shelf.admit(rated(1), home, has_room=False)
        assert {"run"} == shelf.deferred
        assert not shelf.admit(finished(), home, has_room=True)
        assert set() == shelf.deferred

    def test_of_a_run_that_is_over_and_on_disk_only(self):
        """It does not leave before the registration of its run, and nothing is remembered for it."""
        shelf, home = Shelf(), Home()
        facts = [registered(), finished()]
        for each in facts:
            shelf.admit(each, home, has_room=False)

        assert not shelf.admit(rated(1), home, has_room=True)
        assert set() == shelf.deferred
        assert [True] * 3 == [shelf.load(each, home) for each in [*facts, rated(1)]]
        assert shelf.admit(rated(2), home, has_room=True)

    def test_the_order_of_a_run_that_is_over(self):
        """While one quality is on disk only, no later one of the same run goes ahead of it."""
        shelf, home = Shelf(), Home()
        for each in (registered(), finished()):
            shelf.admit(each, home, has_room=True)

        assert not shelf.admit(rated(1), home, has_room=False)
        assert not shelf.admit(rated(2), home, has_room=True)
        assert set() == shelf.deferred
        assert [True, True] == [shelf.load(each, home) for each in (rated(1), rated(2))]

    def test_a_fresh_run_passes_a_backlog(self):
        """A run that the outbox has need not wait for others that are on disk."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered("old"), home, has_room=False)
        shelf.admit(registered(), home, has_room=True)

        assert shelf.admit(rated(1), home, has_room=True)
        assert shelf.admit(finished(), home, has_room=True)

    def test_adopted(self):
        """What a dead process left comes once."""
        shelf, home = Shelf(), Home()

        assert [True, False] == [shelf.adopt(rated(1), home), shelf.adopt(rated(1), home)]
        shelf.settle([("q1-quality", "refused")])
        assert (0, 0, 0) == state_of(home)


class TestLoad:
    def test_what_was_deferred_comes_back(self):
        """What is read back goes to the outbox once, and is still unsettled."""
        shelf, home = Shelf(), Home()
        facts = [registered(), started("a"), ended("a")]
        for each in facts:
            shelf.admit(each, home, has_room=False)

        assert [True] * 3 == [shelf.load(each, home) for each in facts]
        assert (3, 0, 0) == state_of(home)
        assert 0 == shelf.waiting
        assert [False] * 3 == [shelf.load(each, home) for each in facts]
        assert (3, 0, 0) == state_of(home)

    def test_what_was_admitted_does_not_come_twice(self):
        """Facts of both sorts stand in one home; only those that waited are handed out."""
        shelf, home = Shelf(), Home()
        shelf.admit(started("a"), home, has_room=True)
        shelf.admit(started("b", "other"), home, has_room=False)
        shelf.admit(ended("a"), home, has_room=False)

        took = [shelf.load(each, home) for each in (started("a"), started("b", "other"), ended("a"))]

        assert [False, True, False] == took

    def test_undefer(self):
        """When all is back, new facts go the short way again."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=False)
        shelf.load(registered(), home)
        assert not shelf.admit(began(), home, has_room=True)
        shelf.load(began(), home)

        shelf.undefer()

        assert shelf.admit(started("a"), home, has_room=True)

    def test_an_end_without_its_beginning(self):
        """The end of a span that was given up need not be sent."""
        shelf, home = Shelf(), Home()
        shelf.admit(started("a"), home, has_room=True)
        shelf.settle([("a", "overflow")])
        shelf.admit(ended("a"), home, has_room=True)

        assert not shelf.load(ended("a"), home)
        assert (0, 0, 0) == state_of(home)


class TestSettle:
    def test_all_homes_of_a_record(self):
        """A span that began here and ended there is settled in both."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(started("a"), first, has_room=True)
        shelf.admit(ended("a"), second, has_room=True)

        assert [Settled(first, "a", None), Settled(second, "a", None)] == shelf.settle([("a", None)])
        assert [0, 0] == [first.unsettled, second.unsettled]
        assert [] == shelf.settle([("a", None), ("unheard of", "why")])

    def test_a_home_is_told_once(self):
        """Of a span that is in one home with both its facts, that is said once: it is written down for each."""
        shelf, home = Shelf(), Home()
        shelf.admit(started("a"), home, has_room=True)
        shelf.admit(ended("a"), home, has_room=True)

        assert [Settled(home, "a", None)] == shelf.settle([("a", None)])
        assert 0 == home.unsettled

    def test_a_registration_stays_until_the_finish(self):
        """The home of a run's registration stays as long as the run goes on."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=True)
        assert [Settled(first, "run-register", None)] == shelf.settle([("run-register", None)])
        assert 1 == first.unsettled

        shelf.admit(finished(), second, has_room=True)
        shelf.settle([("run-finish", None)])

        assert [0, 0] == [first.unsettled, second.unsettled]

    def test_a_registration_that_was_refused(self):
        """Of a run that the platform never took, nothing stays."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=True)

        assert [Settled(home, "run-register", "refused")] == shelf.settle([("run-register", "refused")])
        assert 0 == home.unsettled

    def test_a_run_that_was_terminated(self):
        """A run that the platform has ended needs no finish."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=True)
        shelf.settle([("run-register", None)])

        shelf.unpin("run")
        shelf.unpin("run")

        assert 0 == home.unsettled

    def test_keys(self):
        """What is on disk and in memory is known by its key until it is settled."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered(), home, has_room=True)
        shelf.admit(started("a"), home, has_room=True)
        shelf.admit(started("b"), home, has_room=False)

        assert [True, True, False] == [each in shelf for each in ("run-register", "a", "b")]
        shelf.settle([("a", None)])
        assert "a" not in shelf

    def test_the_finish_of_a_run_that_goes_on(self):
        """It is made again as long as the registration is on disk, whether or not the platform has that."""
        shelf, home = Shelf(), Home()
        assert "run-finish" not in shelf
        shelf.admit(registered(), home, has_room=True)
        assert "run-finish" in shelf
        shelf.settle([("run-register", None)])
        assert "run-finish" in shelf
        shelf.unpin("run")
        assert "run-finish" not in shelf


class TestAdopt:
    def test_a_run_of_a_dead_process(self):
        """What was left is handed out as if it had happened here."""
        shelf, home = Shelf(), Home()
        facts = [registered(), started("a"), ended("a"), finished()]

        assert [True] * 4 == [shelf.adopt(each, home) for each in facts]
        assert (4, 0, 0) == state_of(home)
        shelf.settle([("run-register", None), ("a", None), ("run-finish", None)])
        assert (0, 0, 0) == state_of(home)

    def test_recorded_twice(self):
        """A fact that stands there twice counts once; an end whose beginning is damaged is of no use."""
        shelf, home = Shelf(), Home()
        facts = [started("a"), started("a"), ended("a"), ended("a"), ended("b")]

        assert [True, False, True, False, False] == [shelf.adopt(each, home) for each in facts]
        assert 2 == home.unsettled

    def test_a_run_the_platform_knows(self):
        """A run that was registered by a dead process keeps its home until it is finished."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.pin("run", first)
        shelf.pin("run", second)
        assert [1, 0] == [first.unsettled, second.unsettled]

        shelf.adopt(finished(), second)
        shelf.settle([("run-finish", None)])

        assert [0, 0] == [first.unsettled, second.unsettled]


class TestGiveUp:
    def test_what_waits_in_a_home(self):
        """What will not come back is counted, once for each record; what is in memory goes on."""
        shelf, home = Shelf(), Home()
        shelf.admit(registered("other"), home, has_room=True)
        for each in (registered(), started("a"), ended("a")):
            shelf.admit(each, home, has_room=False)

        shelf.give_up(home, "quota", ["run"])

        assert {"quota": 2} == dict(shelf.dropped)
        assert (1, 0, 0) == state_of(home)
        assert 0 == shelf.waiting

    def test_the_rest_of_the_run(self):
        """Half a run is of no use: what comes of it later, or is read later, is given up for the same reason."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=False)
        shelf.admit(started("a"), second, has_room=False)
        shelf.admit(ended("a"), second, has_room=False)
        shelf.give_up(first, "quota", ["run"])

        assert not shelf.load(started("a"), second)
        assert not shelf.load(ended("a"), second)
        assert not shelf.admit(finished(), second, has_room=True)
        assert not shelf.load(finished(), second)
        assert {"quota": 3} == dict(shelf.dropped)
        assert (0, 0, 0) == state_of(second)
        assert set() == shelf.deferred

    def test_what_waits_elsewhere_when_the_run_ends(self):
        """That the run has ended meanwhile does not bring back what waited of it in other homes."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=False)
        shelf.admit(started("a"), second, has_room=False)
        shelf.give_up(first, "quota", ["run"])
        shelf.admit(finished(), second, has_room=True)

        assert [False, False] == [shelf.load(each, second) for each in (started("a"), finished())]
        assert {"quota": 3} == dict(shelf.dropped)
        assert (0, 0, 0) == state_of(second)

    def test_what_was_given_up_on_arrival_is_read(self):
        """What is given up when it comes stands in a home nevertheless; when that is read, it does not count again."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=False)
        shelf.give_up(first, "quota", ["run"])
        shelf.admit(began(), second, has_room=True)
        shelf.admit(registered("other"), second, has_room=False)

        assert [False, True] == [shelf.load(each, second) for each in (began(), registered("other"))]
        assert (1, 0, 0) == state_of(second)
        assert {"quota": 2} == dict(shelf.dropped)
        assert 0 == shelf.waiting

    def test_after_the_finish_the_id_is_free(self):
        """Nothing is remembered of a run that has come to its end."""
        shelf, home = Shelf(), Home()
        shelf.give_up(home, "quota", ["run"])
        shelf.admit(finished(), home, has_room=True)
        shelf.load(finished(), home)

        assert shelf.admit(registered(), home, has_room=True)

    def test_a_run_that_is_given_up_keeps_no_home(self):
        """When the finish of a run is given up, its registration has no reason to stay either."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=True)
        shelf.settle([("run-register", None)])
        shelf.admit(started("a"), second, has_room=False)
        shelf.give_up(second, "quota", ["run"])

        shelf.admit(finished(), second, has_room=True)
        shelf.load(finished(), second)

        assert [0, 0] == [first.unsettled, second.unsettled]

    def test_the_end_of_a_span_is_no_record_without_its_beginning(self):
        """What is in memory only is not said to be on disk, and the home of the rest can go."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(started("span"), first, has_room=True)
        shelf.admit(ended("span"), second, has_room=True)
        shelf.give_up(first, "quota", ["run"], forget=True)

        assert "span" not in shelf
        assert second.unsettled == 0
        assert shelf.settle([("span", "exit")]) == []

    def test_a_span_is_on_disk_as_long_as_its_beginning_is(self):
        """It would be told as interrupted."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(started("span"), first, has_room=True)
        shelf.admit(ended("span"), second, has_room=True)
        shelf.give_up(second, "quota", ["other"], forget=True)

        assert "span" in shelf
        assert shelf.homes_of("span") == (first,)

    def test_a_run_that_is_given_up_before_its_registration_is_delivered(self):
        """Nor if the registration is on its way when the finish is given up."""
        shelf, first, second = Shelf(), Home(), Home()
        shelf.admit(registered(), first, has_room=True)
        shelf.admit(started("a"), second, has_room=False)
        shelf.give_up(second, "quota", ["run"])
        shelf.admit(finished(), second, has_room=True)
        shelf.load(finished(), second)

        shelf.settle([("run-register", None)])

        assert [0, 0] == [first.unsettled, second.unsettled]


class Run:
    """A run of the model."""

    def __init__(self, name):
        self.name = name
        self.open = []
        self.is_doomed = False
        self.is_finished = False


class Lives(RuleBasedStateMachine):
    """Runs of any shape, homes of any number, room that comes and goes, a platform that takes or refuses."""

    def __init__(self):
        super().__init__()
        self.shelf = Shelf()
        self.names = (str(number) for number in itertools.count())
        self.homes = [Home()]
        self.contents = {self.homes[0]: []}  # home → facts, in order
        self.waiting = {self.homes[0]: []}  # home → facts in it that are on disk only
        self.unsettled = Counter()  # home → facts
        self.has_room = True
        self.runs = {}
        self.run_of = {}  # span → run
        self.held = {}  # key of a record in the outbox → its homes
        self.pins = {}  # run → home
        self.loose = {}  # the same, for runs that were given up: their homes may be held until the run's end, not longer
        self.deferred = set()
        self.gone = set()  # keys that are settled
        self.early = set()  # qualities recorded before the end of their run
        self.noted = set()  # home and key of what is noted as settled on disk
        self.handed = []
        self.told = 0
        self.dropped = 0  # by the shelf
        self.reading = None

    # -- the program tells

    def tell(self, fact):
        home, is_end = self.homes[-1], isinstance(fact, SpanEnded)
        run = self.run_of[fact.id] if is_end else self.runs[fact.instance_id]
        self.told += not is_end
        self.contents[home].append(fact)

        took = self.shelf.admit(fact, home, has_room=self.has_room)

        if is_end:
            assert took == (fact.id in self.held)
        elif run.is_doomed:
            assert not took
            if home.deferred == len(self.waiting[home]):  # given up on arrival, and not when it is read
                self.dropped += 1
                return
        elif isinstance(fact, QualityRecorded) and (run.is_finished or run not in self.going_on_here()):
            assert took == (self.has_room and run not in self.deferred and not any(self.waiting.values()))
        else:
            assert took == (self.has_room and run not in self.deferred)
        self.unsettled[home] += 1
        if took:
            self.hand(fact, home)
        else:
            self.waiting[home].append(fact)
            if not is_end and not (isinstance(fact, QualityRecorded) and run not in self.going_on_here()):
                self.deferred.add(run)
            if isinstance(fact, InstanceFinished):
                self.deferred.discard(run)

    def hand(self, fact, home):
        assert fact not in self.handed, "handed out twice"
        self.handed.append(fact)
        self.held.setdefault(key_of(fact), []).append(home)

    def unpin(self, run):
        home = self.pins.pop(run, None)
        if home is not None:
            self.unsettled[home] -= 1

    @rule(has_room=st.booleans())
    def room(self, has_room):
        self.has_room = has_room

    @rule()
    def new_home(self):
        home = Home()
        self.homes.append(home)
        self.contents[home] = []
        self.waiting[home] = []

    @rule()
    def begin_run(self):
        run = Run("run" + next(self.names))
        self.runs[run.name] = run
        self.tell(registered(run.name))
        self.tell(began(run.name))

    def going_on(self):
        return [each for each in self.runs.values() if not each.is_finished]

    def going_on_here(self):
        """Return the runs that the outbox has, and which have not ended."""
        return [each for each in self.going_on() if each in self.pins or each.name + "-register" in self.held]

    def rated_in_order(self):
        """Return the runs whose ratings must keep their place: of what has ended or was given up, any order will do."""
        return [
            each
            for each in self.going_on()
            if not each.is_doomed and (each.name + "-register" not in self.gone or each in self.pins)
        ]

    @precondition(lambda self: self.rated_in_order())
    @rule(data=st.data())
    def rate(self, data):
        run = data.draw(st.sampled_from(self.rated_in_order()))
        fact = rated(next(self.names), run.name)
        self.early.add(fact)
        self.tell(fact)

    @precondition(lambda self: self.going_on())
    @rule(data=st.data())
    def begin_span(self, data):
        run = data.draw(st.sampled_from(self.going_on()))
        span = "span" + next(self.names)
        self.run_of[span] = run
        run.open.append(span)
        self.tell(started(span, run.name))

    @precondition(lambda self: any(each.open for each in self.going_on()))
    @rule(data=st.data())
    def end_span(self, data):
        run = data.draw(st.sampled_from([each for each in self.going_on() if each.open]))
        span = data.draw(st.sampled_from(run.open))
        run.open.remove(span)
        self.tell(ended(span))

    @precondition(lambda self: self.going_on())
    @rule(data=st.data())
    def finish(self, data):
        self.finish_run(data.draw(st.sampled_from(self.going_on())))

    def finish_run(self, run):
        while run.open:
            self.tell(ended(run.open.pop()))
        run.is_finished = True
        self.tell(finished(run.name))

    # -- what was deferred comes back, some facts at a time

    @precondition(lambda self: self.reading or any(self.waiting.values()))
    @rule(count=st.integers(1, 6))
    def load(self, count):
        if self.reading is None:
            home = next(each for each in self.homes if self.waiting[each])
            if home is self.homes[-1]:
                self.new_home()
            # As the spool reads: what is settled, now or by the time it is reached, is passed over.
            self.reading = (
                home,
                (each for each in self.contents[home] if (home, key_of(each)) not in self.noted),
            )
        home, facts = self.reading
        some = list(itertools.islice(facts, count))
        for fact in some:
            self.load_one(fact, home)
        if len(some) < count:
            self.reading = None
            # An end whose beginning has been given up in the same home counts as settled, and is not read.
            left, self.waiting[home] = self.waiting[home], []
            assert all(isinstance(each, SpanEnded) and (home, each.id) in self.noted for each in left)
            self.unsettled[home] -= len(left)
            self.shelf.give_up(home, "damaged")
            if not any(self.waiting.values()):
                self.shelf.undefer()
                self.deferred.clear()

    def load_one(self, fact, home):
        is_end = isinstance(fact, SpanEnded)
        run = self.run_of[fact.id] if is_end else self.runs[fact.instance_id]

        took = self.shelf.load(fact, home)

        if fact not in self.waiting[home]:
            assert not took
            return
        self.waiting[home].remove(fact)
        is_wanted = fact.id in self.held if is_end else not run.is_doomed
        assert took == is_wanted
        if took:
            self.hand(fact, home)
            return
        self.unsettled[home] -= 1
        self.dropped += not is_end

    # -- the platform takes and refuses

    def can_settle(self):
        order = [key for key in self.held if not key.endswith("-finish")]
        return order + [
            key for key in self.held if key.endswith("-finish") and key[:-7] + "-register" in self.gone
        ]

    @precondition(lambda self: self.can_settle())
    @rule(data=st.data(), reason=st.sampled_from([None, None, "refused"]))
    def settle(self, data, reason):
        key = data.draw(st.sampled_from(self.can_settle()))
        if reason is None and key in self.run_of and ended(key) not in self.handed:
            reason = "refused"  # only a span that has ended can be done with otherwise
        self.settle_one(key, reason)

    def settle_one(self, key, reason):
        homes = self.held.pop(key)
        self.gone.add(key)

        told = [Settled(home, key, reason) for home in dict.fromkeys(homes)]
        pin = self.pins.get(self.runs.get(key.removesuffix("-finish"))) if key.endswith("-finish") else None
        if pin is not None and pin not in homes:  # the finish may be gone before its registration is
            told.append(Settled(pin, key, reason))
        assert told == self.shelf.settle([(key, reason)])

        for home in homes:
            self.unsettled[home] -= 1
            self.noted.add((home, key))
        run = self.runs.get(key.removesuffix("-register").removesuffix("-finish"))
        if key.endswith("-register") and reason is None:
            if run.is_doomed:
                self.loose[run] = homes[0]
            else:
                self.pins[run] = homes[0]
                self.unsettled[homes[0]] += 1
        if key.endswith("-finish"):
            self.unpin(run)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def terminate(self, data):
        run = data.draw(st.sampled_from(sorted(self.pins, key=lambda each: each.name)))
        self.shelf.unpin(run.name)
        self.unpin(run)

    # -- the quota

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def sacrifice(self):
        home = next(each for each in self.homes if self.waiting[each])
        if home is self.homes[-1] or (self.reading and self.reading[0] is home):
            return
        facts = [each for each in self.contents[home] if (home, key_of(each)) not in self.noted]
        names = {each.instance_id for each in facts if not isinstance(each, SpanEnded)}
        self.shelf.give_up(home, "quota", names)
        for run in (self.runs[name] for name in names):
            run.is_doomed = True
            if run in self.pins:
                self.loose[run] = self.pins[run]
                self.unpin(run)
        lost, self.waiting[home] = self.waiting[home], []
        self.contents[home] = []
        self.unsettled[home] -= len(lost)
        self.dropped += sum(not isinstance(each, SpanEnded) for each in lost)
        if not any(self.waiting.values()):
            self.shelf.undefer()
            self.deferred.clear()

    # -- the dead

    @rule(is_known=st.booleans(), is_finished=st.booleans(), spans=st.integers(0, 3))
    def adopt(self, is_known, is_finished, spans):
        run = Run("dead" + next(self.names))
        run.is_finished = True
        self.runs[run.name] = run
        home = Home()
        self.homes.insert(0, home)
        self.contents[home] = []
        self.waiting[home] = []
        facts = [] if is_known else [registered(run.name)]
        if is_known:
            self.gone.add(run.name + "-register")
            self.shelf.pin(run.name, home)
            self.pins[run] = home
            self.unsettled[home] += 1
        for _ in range(spans):
            span = "span" + next(self.names)
            self.run_of[span] = run
            facts += [started(span, run.name), ended(span)]
        facts.append(finished(run.name))
        for fact in facts:
            assert self.shelf.adopt(fact, home)
            assert not self.shelf.adopt(fact, home)
            self.told += not isinstance(fact, SpanEnded)
            self.unsettled[home] += 1
            self.hand(fact, home)

    # -- what holds at every moment

    @invariant()
    def homes_know_what_they_hold(self):
        held_in = Counter(self.loose.values())
        for home in self.homes:
            waiting = self.waiting[home]
            records = sum(not isinstance(each, SpanEnded) for each in waiting)

            assert (len(waiting), records) == (home.deferred, home.waiting)
            assert self.unsettled[home] <= home.unsettled <= self.unsettled[home] + held_in[home]
            assert min(state_of(home)) >= 0

    @invariant()
    def nothing_is_lost_in_the_account(self):
        waiting = sum(not isinstance(each, SpanEnded) for facts in self.waiting.values() for each in facts)
        handed = sum(not isinstance(each, SpanEnded) for each in self.handed)

        assert waiting == self.shelf.waiting
        assert self.dropped == sum(self.shelf.dropped.values())
        assert self.told == handed + waiting + self.dropped

    @invariant()
    def order_is_kept(self):
        """In each run: registered, started, spans as they began, finished; each span: its beginning before its end."""
        by_run, by_span = {}, {}
        for fact in self.handed:
            if isinstance(fact, SpanEnded):
                by_span[fact.id].append("ended")
            else:
                if isinstance(fact, SpanStarted):
                    by_span[fact.id] = ["started"]
                by_run.setdefault(fact.instance_id, []).append(fact)
        for facts in by_run.values():
            ranks = [self.rank(each) for each in facts if not isinstance(each, QualityRecorded)]
            assert ranks == sorted(ranks)
            qualities = [int(each.id[1:]) for each in facts if isinstance(each, QualityRecorded)]
            assert qualities == sorted(qualities)
            assert finished(facts[0].instance_id) not in facts or not self.early & {
                *facts[facts.index(finished(facts[0].instance_id)) :]
            }, "the finish has overtaken a quality"
            assert not qualities or ranks[0] == (0, 0) or facts[0].instance_id.startswith("dead")

    @staticmethod
    def rank(fact):
        if isinstance(fact, SpanStarted):
            return (2, int(fact.id.removeprefix("span")))
        return ((InstanceRegistered, InstanceStarted, SpanStarted, InstanceFinished).index(type(fact)), 0)

    def teardown(self):
        """When all has come to its end and is settled, no home is needed any more."""
        for run in self.going_on():
            self.finish_run(run)
        self.new_home()
        while self.reading or any(self.waiting.values()):
            self.load(100)
        while self.can_settle():
            self.settle_one(self.can_settle()[0], None)
        self.homes_know_what_they_hold()
        self.nothing_is_lost_in_the_account()
        self.order_is_kept()
        assert {} == self.held
        assert [0] * len(self.homes) == [each.unsettled for each in self.homes]
        assert 0 == self.shelf.waiting
        assert set() == self.shelf.deferred


Lives.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLives = Lives.TestCase

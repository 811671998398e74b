"""Which fact is where on disk, and which of them the outbox holds as well. Pure.

With a spool, every fact has a **home**: the segment that holds it. So nothing has to be given up for want of memory.
While the outbox has no room, the facts of a run are **deferred**: they live in their homes alone, and from then on all
facts of that run are, to keep its order. Nothing is remembered of a run that has ended; a quality may be recorded of it
all the same, and is deferred while anything is. They come back with `load`, home by home, when there is room again. What was
dropped or delivered is settled; a home of which everything is settled can go.

The registration of a run stays in its home until the run's finish is settled: if this process dies, whoever takes
over what it leaves must know that the run was going on.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace._record import (
    FINISH,
    REGISTER,
    START,
    InstanceFinished,
    QualityRecorded,
    SpanEnded,
    identity,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefactor_trace._record import Fact


class Home:
    """A place on disk.

    Attributes:
        unsettled: Facts in it that are neither delivered nor dropped.
        deferred: Those of them that are not in memory.
        waiting: The records among those: a span counts when it begins.
    """

    __slots__ = ("deferred", "unsettled", "waiting")

    def __init__(self) -> None:
        self.unsettled = 0
        self.deferred = 0
        self.waiting = 0


class Settled(NamedTuple):
    """What need not be sent again. *reason*: why it was dropped; None: it was delivered."""

    home: Home
    key: str
    reason: str | None


class Shelf:
    """See the module's docstring. One thread at a time; never raises."""

    def __init__(self) -> None:
        self._homes: dict[str, tuple[Home, ...]] = {}  # spans by id, instance facts by key
        self._pins: dict[str, Home] = {}  # instances that are registered and not finished
        self._deferred: set[str] = set()  # instances
        self._doomed: dict[str, str] = {}  # instances of which a part was given up → why
        self.waiting = 0
        """Records that are on disk only."""
        self.dropped: Counter[str] = Counter()
        """Those of them that were given up, by reason."""

    @property
    def deferred(self) -> set[str]:
        """The running instances whose facts are on disk only."""
        return self._deferred

    def __contains__(self, key: object) -> bool:
        """Whether a record, by id or key, is on disk, or will be made again from what is: the finish of a run."""
        if key in self._homes:
            return True
        if not isinstance(key, str) or not key.endswith(FINISH):
            return False
        instance_id = key.removesuffix(FINISH)
        return instance_id in self._pins or instance_id + REGISTER in self._homes

    def admit(self, fact: Fact, home: Home, *, has_room: bool) -> bool:
        """Note a new fact. Return whether the outbox is to have it."""
        home.unsettled += 1
        if type(fact) is SpanEnded:
            homes = self._homes.get(fact.id)
            if homes is None:  # it began on disk only, or has been given up, which `load` will find out
                home.deferred += 1
                return False
            self._homes[fact.id] = (*homes, home)
            return True
        instance_id: str = fact.instance_id  # type: ignore[union-attr] # all others have one
        is_going_on = type(fact) is not QualityRecorded or self._is_going_on(instance_id)
        if not is_going_on and self.waiting:
            has_room = False  # its run may have ended, and be on disk only
        if has_room and instance_id not in self._deferred and instance_id not in self._doomed:
            self._keep(fact, home)
            return True
        if type(fact) is InstanceFinished:
            self._deferred.discard(instance_id)
        elif is_going_on:
            self._deferred.add(instance_id)
        home.deferred += 1
        home.waiting += 1
        self.waiting += 1
        return False

    def _is_going_on(self, instance_id: str) -> bool:
        """Whether the outbox has a run, and its finish is still to come: that must not overtake what is deferred."""
        is_here = instance_id in self._pins or instance_id + REGISTER in self._homes
        return is_here and instance_id + FINISH not in self._homes

    def load(self, fact: Fact, home: Home) -> bool:
        """A deferred fact was read from *home*. Return whether the outbox is to have it; False: it has it, or need not."""
        key = identity(fact)
        homes = self._homes.get(key)
        if type(fact) is SpanEnded:
            if homes is None:  # its beginning was given up
                home.deferred -= 1
                home.unsettled -= 1
                return False
            if len(homes) > 1:
                return False
            self._homes[key] = (*homes, home)
        else:
            if homes is not None:
                return False
            home.waiting -= 1
            self.waiting -= 1
            if self._is_of_doomed(fact):
                home.deferred -= 1
                home.unsettled -= 1
                return False
            self._keep(fact, home)
        home.deferred -= 1
        return True

    def give_up(
        self, home: Home, reason: str, instances: Iterable[str] = (), *, forget: bool = False
    ) -> None:
        """What is still deferred in *home* will not come back.

        *instances*: the runs that lose a part by it. The rest of them is given up too, as it comes back: half a run
        is of no use. *forget*: the home is gone, and what is in memory is there alone.
        """
        for instance_id in instances:
            self._doomed[instance_id] = reason
            self.unpin(instance_id)
        if forget:
            self._homes = {key: left for key, homes in self._homes.items() if (left := _without(homes, home))}
        self.waiting -= home.waiting
        self.dropped[reason] += home.waiting
        home.unsettled -= home.deferred
        home.deferred = home.waiting = 0

    def adopt(self, fact: Fact, home: Home) -> bool:
        """A fact that a dead process left was read from *home*. Return whether the outbox is to have it."""
        key = identity(fact)
        homes = self._homes.get(key)
        if type(fact) is SpanEnded:
            if homes is None or len(homes) > 1:
                return False  # its beginning is damaged, or it was recorded twice
            self._homes[key] = (*homes, home)
        elif homes is not None or self._is_of_doomed(fact):
            return False
        else:
            self._keep(fact, home)
        home.unsettled += 1
        return True

    def _is_of_doomed(self, fact: Fact) -> bool:
        """Whether a run has lost a part, so that *fact* is given up as well."""
        instance_id: str = fact.instance_id  # type: ignore[union-attr] # the end of a span is asked for by another way
        if instance_id not in self._doomed:
            return False
        self.dropped[self._doomed[instance_id]] += 1
        if type(fact) is InstanceFinished and instance_id + REGISTER not in self._homes:
            del self._doomed[instance_id]  # that was the last of it
        return True

    def pin(self, instance_id: str, home: Home) -> None:
        """A dead process left a run that the platform knows, and that has not been finished."""
        if instance_id not in self._pins:
            home.unsettled += 1
            self._pins[instance_id] = home

    def undefer(self) -> None:
        """Everything that was deferred has been loaded: the outbox may have new facts of those runs as well."""
        self._deferred.clear()

    def settle(self, settled: Iterable[tuple[str, str | None]]) -> list[Settled]:
        """Take what the outbox has settled, and say in which homes it was, each home once."""
        found: list[Settled] = []
        for key, reason in settled:
            homes = self._homes.pop(key, ())
            # The two facts of a span are mostly in one home, which need not be told twice.
            is_one_home = len(homes) == 2 and homes[0] is homes[1]
            found += [Settled(home, key, reason) for home in (homes[:1] if is_one_home else homes)]
            if "-" not in key:  # a span, as most of them
                for home in homes:
                    home.unsettled -= 1
                continue
            pin = self._pins.get(key.removesuffix(FINISH).removesuffix(START))
            if pin is not None and pin not in homes:
                found.append(Settled(pin, key, reason))  # it may be gone before the run's registration is
            instance_id = key.removesuffix(REGISTER)
            if reason is None and instance_id != key and homes and instance_id not in self._doomed:
                self._pins[instance_id] = homes[0]
                homes = homes[1:]
            for home in homes:
                home.unsettled -= 1
            if key.endswith(FINISH):
                self.unpin(key.removesuffix(FINISH))
        return found

    def unpin(self, instance_id: str) -> None:
        """The run is over, or the platform has terminated it."""
        home = self._pins.pop(instance_id, None)
        if home is not None:
            home.unsettled -= 1

    def homes_of(self, key: str) -> tuple[Home, ...]:
        """Return where the facts of a record are."""
        return self._homes.get(key, ())

    def _keep(self, fact: Fact, home: Home) -> None:
        key = identity(fact)
        self._homes[key] = (*self._homes.get(key, ()), home)


def _without(homes: tuple[Home, ...], gone: Home) -> tuple[Home, ...]:
    """Return where a record still is when one of its homes is gone; the end of a span is none without its beginning."""
    if homes[0] is not gone:
        return homes if gone not in homes else homes[:1]
    for home in homes[1:]:
        home.unsettled -= home is not gone
    return ()

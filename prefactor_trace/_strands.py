"""Which thread or task began what, so that a test's tree stands in the same order whenever the test runs.

A **strand** is a thread or a task at work, from the moment it left another one. What one strand begins has an order.
What several strands do at once has none, whatever the clock says about a single run; such steps stand together, and
are sorted by what they hold. Two strands are known to follow each other if they left the strand around them at
different points of it, or if the task of the second was made after the first had ended.

Where a strand was left is kept in the context, which threads and tasks take along as a copy.
"""

from __future__ import annotations

import contextvars
import itertools
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

# Looking at all tasks whenever a step ends costs more than it tells, when there are many.
_TASKS_LOOKED_AT = 1_000


class Strand:
    """A thread or a task at work. *around*: the strand it left, after that one had begun its step *left_at*."""

    __slots__ = ("_owner", "_tasks_at_end", "around", "is_bare", "last", "left_at", "number", "stage")

    def __init__(self, number: int, owner: object, around: Strand | None, left_at: int) -> None:
        self.number = number
        self.around = around
        self.left_at = left_at
        self.last = left_at
        self.stage = 0
        """Of those that left at the same point: how often all so far had ended before the next was made."""
        self.is_bare = False
        """Whether it is a thread without a context from anywhere, such as those of a pool."""
        self._owner = weakref.ref(owner)
        self._tasks_at_end: weakref.WeakSet[Any] | None = None

    def belongs_to(self, owner: object) -> bool:
        """Say whether *owner* is the thread or task at work here."""
        return self._owner() is owner

    def note_end(self, tasks: weakref.WeakSet[Any] | None) -> None:
        """Note the *tasks* there are as a step of this strand ends."""
        self._tasks_at_end = tasks

    def had_ended_before(self, task: object) -> bool:
        """Say whether it is certain that *task* was made after all of this."""
        tasks = self._tasks_at_end
        owner: Any = self._owner()
        return (
            tasks is not None and task not in tasks and (owner is None or (_is_task(owner) and owner.done()))
        )


class Begun(NamedTuple):
    """When something began, counted from the start of the recording, and on which strand."""

    order: int
    strand: Strand


class Strands:
    """The strands of one recording. The one it is made on is *home*."""

    def __init__(self) -> None:
        self._orders = itertools.count(1)
        self._numbers = itertools.count(1)
        self._at_once: dict[tuple[Strand, int], list[Strand]] = {}
        self._is_looking = True
        self.home = Strand(0, _here(), None, 0)

    def enter(self) -> contextvars.Token[Any]:
        """Begin here; hand the token to `leave`."""
        return _place.set((self, self.home, 0))

    def leave(self, token: contextvars.Token[Any]) -> None:
        """End where `enter` was."""
        try:
            _place.reset(token)
        except ValueError:  # ended in another context, which keeps a place that no recording knows
            _place.set(None)

    def begin(self, *, anew: bool = False) -> Begun:
        """Note that something begins here. *anew*: it has nothing to do with what this thread did before."""
        here = _here()
        order = next(self._orders)
        book, strand, left_at = _place.get() or (None, self.home, 0)
        if book is not self:  # a bare thread, or a context of other origin
            strand = self._new(here, self.home, self.home.last)
            strand.is_bare = not _is_task(here) and not self.home.belongs_to(here)
        elif not strand.belongs_to(here):
            strand = self._new(here, strand, left_at)
        elif anew and strand.is_bare:
            strand = self._new(here, self.home, strand.left_at)
            strand.is_bare = True
        strand.last = order
        _place.set((self, strand, order))
        return Begun(order, strand)

    def end(self, begun: Begun) -> None:
        """Note that what *begun* said has ended."""
        if begun.strand is not self.home and self._is_looking:
            tasks = _tasks()
            begun.strand.note_end(tasks)
            self._is_looking = tasks is None or len(tasks) <= _TASKS_LOOKED_AT

    def _new(self, here: object, around: Strand, left_at: int) -> Strand:
        strand = Strand(next(self._numbers), here, around, left_at)
        at_once = self._at_once.setdefault((around, left_at), [])
        strand.stage = at_once[-1].stage if at_once else 0
        if at_once and _is_task(here) and all(each.had_ended_before(here) for each in at_once):
            at_once.clear()
            strand.stage += 1
        at_once.append(strand)
        return strand


def note_departure() -> None:
    """Note that a context is about to be copied: what leaves here now comes after what left before."""
    place = _place.get()
    if place is not None and place[1].belongs_to(_here()):
        book, strand, _ = place
        strand.last = next(book._orders)  # noqa: SLF001 - its own
        _place.set((book, strand, strand.last))


_place: contextvars.ContextVar[tuple[Strands, Strand, int] | None] = contextvars.ContextVar(
    "prefactor_trace_place", default=None
)


def _here() -> Any:
    """Return the task that is running, or else the thread."""
    for name, where in (("asyncio", ""), ("trio", "lowlevel")):
        module = sys.modules.get(name)  # looked up only among what is loaded
        try:
            task = getattr(module, where, module).current_task()  # type: ignore[union-attr]
        except (AttributeError, RuntimeError):
            continue
        if task is not None:
            return task
    return threading.current_thread()


def _is_task(owner: Any) -> bool:
    return hasattr(owner, "done")  # of asyncio; trio does not tell which tasks there are


def _tasks() -> weakref.WeakSet[Any] | None:
    try:
        return weakref.WeakSet(sys.modules["asyncio"].all_tasks())
    except (KeyError, AttributeError, RuntimeError):
        return None


# -- putting in order --------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """What one strand did of the things to be ordered.

    *left_at*: behind what of the strand around it stands; *is_elsewhere*: it is not that strand's own.
    """

    left_at: int
    is_elsewhere: bool
    stage: int
    first: int
    strand: Strand
    items: list[Any]


def in_order(
    items: Iterable[T], around: Strand, begun: Callable[[T], Begun], text: Callable[[T], Any]
) -> list[T]:
    """Return *items*, all begun within a step of *around*, in the order that does not change from run to run.

    *text*: what those are sorted by, of which nobody can say which came first.
    """
    groups: dict[Any, _Group] = {}
    for item in sorted(items, key=lambda each: begun(each).order):
        order, strand = begun(item)
        if strand is around:
            groups[order] = _Group(order, False, 0, order, strand, [item])
        elif strand in groups:
            groups[strand].items.append(item)
        else:
            groups[strand] = _Group(*_departure(strand, around, order), order, strand, [item])
    ordered: list[T] = []
    for _, cluster in itertools.groupby(
        sorted(groups.values(), key=lambda each: each[:4]), lambda each: each[:3]
    ):
        at_once = list(cluster)
        if len(at_once) > 1:
            at_once.sort(key=lambda group: ([text(each) for each in group.items], group.strand.number))
        ordered += (item for group in at_once for item in group.items)
    return ordered


def _departure(strand: Strand, around: Strand, order: int) -> tuple[int, bool, int]:
    """Return where *strand*, or that which it goes back to, left *around*; if it never did, it counts by time."""
    left: Strand | None = strand
    while left is not None and left.around is not around:
        left = left.around
    return (order, True, 0) if left is None else (left.left_at, True, left.stage)

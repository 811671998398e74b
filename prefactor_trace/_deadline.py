"""A limit on what looking at one value may take.

It is of this thread's CPU, so that waiting for the GIL or for the processor does not count. A few pauses between two looks
at the clock are forgiven: it is the garbage collector that has come by, or a virtual machine that was not given its
processor, which the thread's clock does not know.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_MOST_PAUSES = 3


class Deadline:
    """The end of *seconds* from now on, by the clocks *wall* and *cpu*."""

    __slots__ = ("_cpu", "_look_at", "_looked_at", "_pause", "_pauses", "_stop_at", "_wall")

    def __init__(
        self,
        seconds: float,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._pause = seconds / 2  # what takes as long between two looks is one
        self._wall = wall
        self._cpu = cpu
        self._looked_at = wall()
        self._look_at = self._looked_at + seconds
        self._stop_at = cpu() + seconds
        self._pauses = 0

    def is_over(self) -> bool:
        """Say whether the time is up. Once it is, it stays so."""
        now = self._wall()
        gap = now - self._looked_at
        if now < self._look_at and gap <= self._pause:
            # The time of the thread, 10 times as slow to ask for, cannot be over earlier.
            self._looked_at = now
            return False
        used = self._cpu()
        if gap > self._pause and self._pauses < _MOST_PAUSES:
            # As the pause began there was left at least what was left by the wall.
            until = used + (self._look_at - self._looked_at)
            if until - self._stop_at > self._pause:
                self._pauses += 1
                self._stop_at = until
        left = self._stop_at - used
        self._looked_at, self._look_at = now, now + left
        return left <= 0

    def without(self, work: Callable[[], _T]) -> _T:
        """Return what *work* returns; its time does not count."""
        cpu, wall = self._cpu(), self._wall()
        try:
            return work()
        finally:
            self._stop_at += self._cpu() - cpu
            elsewhere = self._wall() - wall
            self._look_at += elsewhere
            self._looked_at += elsewhere

"""A limit on what looking at one value may take.

It is of this thread's CPU, so that waiting for the GIL or for the processor does not count. A pause between two looks at
the clock is forgiven once: it is the garbage collector that has come by, or a class that is seen for the first time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Deadline:
    """The end of *seconds* from now on, by the clocks *wall* and *cpu*."""

    __slots__ = ("_cpu", "_has_paused", "_look_at", "_looked_at", "_seconds", "_stop_at", "_wall")

    def __init__(
        self,
        seconds: float,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._seconds = seconds
        self._wall = wall
        self._cpu = cpu
        self._looked_at = wall()
        self._look_at = self._looked_at + seconds
        self._stop_at = cpu() + seconds
        self._has_paused = False

    def is_over(self) -> bool:
        """Say whether the time is up. Once it is, it stays so."""
        now = self._wall()
        if now < self._look_at:  # the time of the thread, 10 times as slow to ask for, cannot be over earlier
            self._looked_at = now
            return False
        left = self._stop_at - self._cpu()
        if left <= 0 and not self._has_paused:
            self._has_paused = True
            if now - self._looked_at > self._seconds / 2:
                left = self._look_at - self._looked_at
                self._stop_at = self._cpu() + left
        self._looked_at, self._look_at = now, now + left
        return left <= 0

    def without(self, work: Callable[[], object]) -> object:
        """Return what *work* returns; its time does not count."""
        cpu, wall = self._cpu(), self._wall()
        try:
            return work()
        finally:
            self._stop_at += self._cpu() - cpu
            self._look_at += self._wall() - wall
            self._looked_at = self._wall()

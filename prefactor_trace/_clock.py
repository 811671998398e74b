"""The two clocks of a run: the wall's at its start, and from there on one that no one sets.

All times of a run are counted from the moment it started. So when the wall clock is set, or steps, no span ends
before it begins and no child begins before its parent. The counting goes on while the machine sleeps, or the rest
of a run that a closed laptop interrupted would be dated hours early.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

wall_ns: Callable[[], int] = time.time_ns
"""Nanoseconds since the Unix epoch."""


def _ticks() -> Callable[[], int]:
    if sys.platform == "linux":
        return functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":  # there it is the one that goes on; Python's own clocks stand still
        return functools.partial(time.clock_gettime_ns, time.CLOCK_MONOTONIC)
    return time.perf_counter_ns


ticks_ns: Callable[[], int] = _ticks()
"""Nanoseconds since some moment; the same one in all processes of the machine."""

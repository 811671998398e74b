"""Bounds of time in tests: they hold on a machine that is not busy, and stretch with what competes for its cores."""

from __future__ import annotations

import os


def within(seconds: float) -> float:
    """Return *seconds*, or more if more programs want to run than there are cores."""
    waiting = os.getloadavg()[0] if hasattr(os, "getloadavg") else 1.0
    return seconds * max(1.0, waiting / (os.cpu_count() or 1))

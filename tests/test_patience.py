"""Bounds of time stretch by what the machine takes away, and by no more."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from patience import Watch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")


def test_a_standstill_is_noted():
    """While everything is held up, and afterwards, it is known for how long."""
    began = time.monotonic()
    with Watch() as watch:
        os.kill(watch.pid, signal.SIGSTOP)
        while (lost := watch.stood_still(10)) < 0.5:
            require_soon(began)
        stopped = time.monotonic() - began
        assert lost < stopped

        os.kill(watch.pid, signal.SIGCONT)
        while watch.stood_still(0.1):  # it is over, and was longer ago than that
            require_soon(began)
        assert 0.4 < watch.stood_still(60) < time.monotonic() - began


def require_soon(began):
    assert time.monotonic() - began < 30
    time.sleep(0.01)

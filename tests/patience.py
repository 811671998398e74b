"""Bounds of time in tests: they hold on a machine that is not busy, and stretch with what keeps it from its work.

A program of its own, the *watch*, sleeps and wakes. When it wakes too late, everything has stood still: machines are
paused for seconds, and containers that have used up their share. `conftest` starts one for each process of tests.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import time

_TICK_SECONDS = 0.05
_LATE_SECONDS = 0.1  # a scheduler takes some of it; only what is more is a standstill
_MOMENT, _STANDSTILL = struct.Struct("d"), struct.Struct("dd")
# Its file begins with the moment it last woke; behind that come the standstills, each with its beginning and its end.
_WATCH = f"""
import os, struct, time
parent, before, end = os.getppid(), time.monotonic(), {_MOMENT.size}
while os.getppid() == parent:
    os.pwrite(1, struct.pack("d", before), 0)
    time.sleep({_TICK_SECONDS})
    now = time.monotonic()
    if now - before > {_TICK_SECONDS + _LATE_SECONDS}:
        end += os.pwrite(1, struct.pack("dd", before + {_TICK_SECONDS}, now), end)
    before = now
"""


class Watch:
    """Notes when the machine stands still. A context manager."""

    def __enter__(self) -> Watch:
        self._file = tempfile.TemporaryFile()
        self._program = subprocess.Popen([sys.executable, "-ISc", _WATCH], stdout=self._file)
        while not self._notes():
            time.sleep(0.01)
        return self

    def __exit__(self, *exc: object) -> None:
        self._program.kill()
        self._program.wait()
        self._file.close()

    @property
    def pid(self) -> int:
        """The number of its program."""
        return self._program.pid

    def stood_still(self, seconds: float) -> float:
        """Return for how long everything stood still while *seconds* of work were done, up to now."""
        notes, now = self._notes(), time.monotonic()
        late = now - _MOMENT.unpack_from(notes)[0] - _TICK_SECONDS
        lost = late if late > _LATE_SECONDS else 0.0
        for began, ended in reversed(list(_STANDSTILL.iter_unpack(notes[_MOMENT.size :]))):
            if ended < now - seconds - lost:
                break
            lost += ended - began
        return lost

    def _notes(self) -> bytes:
        assert self._program.poll() is None, "somebody has ended the watch"
        return os.pread(self._file.fileno(), 1 << 20, 0)


watch = Watch()


def within(seconds: float) -> float:
    """Return *seconds*, or more if more programs want to run than there are cores, or everything has stood still."""
    waiting = os.getloadavg()[0] if hasattr(os, "getloadavg") else 1.0
    return seconds * max(1.0, waiting / (os.cpu_count() or 1)) + watch.stood_still(seconds)

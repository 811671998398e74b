"""Forked processes for tests: what they come to is known, and none is left."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
import warnings

import orjson
import pytest


class Child:
    """A forked process that does *work*, reports what came of it, and stays until it is killed."""

    def __init__(self, work, *, patience=8, fork=None):
        reads, writes = os.pipe()
        with warnings.catch_warnings():  # that there are threads, if a debugger has one
            warnings.simplefilter("ignore")
            self.pid = (fork or os.fork)()
        if self.pid == 0:
            try:
                try:
                    answer = [None, work()]
                except BaseException as error:
                    answer = [repr(error), None]
                os.write(writes, orjson.dumps(answer) + b"\n")
                time.sleep(60)
            finally:
                os._exit(1)
        os.close(writes)
        try:
            if not select.select([reads], [], [], patience)[0]:
                pytest.fail("it hangs")
            with os.fdopen(reads, "rb", closefd=False) as pipe:
                error, self.said = orjson.loads(pipe.readline())
            assert error is None, error
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(reads)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def in_child(work, **options):
    """Do *work* in a process that is killed afterwards, and return what it returned."""
    child = Child(work, **options)
    child.kill()
    return child.said


def fork_in_c():
    """Fork as a library in C does, of which Python hears nothing.

    While no other thread has asked for the interpreter: the child would hand it over, and there nobody takes it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    time.sleep(0.01)  # who has asked gets it now
    try:
        return ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(before)

"""How a block ends: every row of the table, decided without running the exception's own code."""

from __future__ import annotations

import asyncio
import sys

import pytest
import trio

from prefactor_trace._ending import ending_of
from prefactor_trace.errors import InstanceTerminated

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


def trio_cancelled():
    """Return a real `trio.Cancelled`, which only trio can make."""
    caught = []

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except BaseException as error:
                caught.append(error)
                raise

    trio.run(main)
    return caught[0]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (None, "complete"),
        (SystemExit(), "complete"),
        (SystemExit(0), "complete"),
        (SystemExit(False), "complete"),
        (SystemExit(3), "failed"),
        (SystemExit("sorry"), "failed"),
        (ValueError("x"), "failed"),
        (type("Odd", (BaseException,), {})(), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "abandoned"),
        (InstanceTerminated("id"), "terminated"),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), KeyboardInterrupt()]), "cancelled"),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), ValueError()]), "failed"),
        (ExceptionGroup("g", [ExceptionGroup("h", [ValueError()])]), "failed"),
        (BaseExceptionGroup("g", [BaseExceptionGroup("h", [asyncio.CancelledError()])]), "cancelled"),
        (BaseExceptionGroup("g", [InstanceTerminated("id"), asyncio.CancelledError()]), "terminated"),
        (BaseExceptionGroup("g", [SystemExit(0)]), "complete"),
    ],
    ids=repr,
)
def test_table(error, ending):
    """The ending is the one in the table."""
    assert ending_of(error) == ending


def test_trio_cancelled():
    """Trio's own cancellation is a cancellation."""
    assert ending_of(trio_cancelled()) == "cancelled"


def test_runs_no_code_of_the_exception():
    """An exception that lies about its class, its exit code or its leaves is not asked."""
    asked = []

    class Liar(SystemExit):
        @property
        def __class__(self):
            asked.append("class")
            return KeyboardInterrupt

        @property
        def code(self):
            asked.append("code")
            return 0

    class Group(ExceptionGroup):
        @property
        def exceptions(self):
            asked.append("exceptions")
            return ()

    assert ending_of(Liar(7)) == "failed"
    assert ending_of(Group("g", [ValueError()])) == "failed"
    assert asked == []


def test_a_huge_group_is_bounded():
    """A group of a hundred thousand leaves is decided at once."""
    assert ending_of(ExceptionGroup("g", [ValueError()] * 100_000)) == "failed"

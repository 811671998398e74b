"""The texts that tell of an exception: its type, its message and its stack.

In comes an exception, with a function that makes text of an argument; out come three strings, each bounded.
The stack text has files, lines and functions but no source (reading it is slow and can run a loader), then the
members of a group and the causes, one line each. How arguments become the message is with the readers, since
exceptions are values too.

What keeps it safe: `__str__` and `__repr__` are never called, the exception's parts are read as its built-in
base has them, and every chain that could be long or turn in a circle is followed for a fixed number of steps.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from prefactor_trace._peek import clean, getter, shorten, type_name
from prefactor_trace._readers import MOST_MEMBERS, error_message, members

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from prefactor_trace._readers import Clear

_FIRST_FRAMES, _LAST_FRAMES, _MOST_FRAMES = 10, 20, 10_000
_MOST_CAUSES = 8
MOST_STACK = 8_000
"""Characters of the stack text."""


def describe_error(
    error: BaseException, read: Callable[[Any], str], longest: int, clear: Clear | None = None
) -> dict[str, str]:
    """Return `error_type`, `message` and `stacktrace` of *error*.

    Its arguments become text by *read*; those that are text go through *clear* before they are cut.
    """
    return {
        "error_type": type_name(type(error)),
        "message": shorten(error_message(error, read, clear), longest),
        "stacktrace": clean("\n".join(_stack_lines(error, clear))[:MOST_STACK]),
    }


def _stack_lines(error: BaseException, clear: Clear | None) -> list[str]:
    frames = _frames(error)
    lines = ["Traceback (most recent call last):", *frames] if frames else []
    members = [f"in the group: {_summary(one, clear)}" for one in _inmost_members(error)]
    return [*lines, _summary(error, clear), *members, *_cause_lines(error, clear)]


def _cause_lines(error: BaseException, clear: Clear | None) -> list[str]:
    """Describe what led to *error*, a line each, with the frame where it was raised."""
    lines: list[str] = []
    for word, before in _causes(error):
        place = [line.strip() for line in _frames(before)[-1:]]
        lines.append(f"{word}: {' | '.join([_summary(before, clear), *place])}")
    return lines


def related(error: BaseException) -> list[BaseException]:
    """Return all exceptions that the texts of *error* tell of, and those that it was raised in place of."""
    found = [error, *_inmost_members(error), *[before for _, before in _causes(error)]]
    before = getter(BaseException, "__context__")(
        error
    )  # it may be suppressed, and its message be part of this one
    for _ in range(_MOST_CAUSES):
        if before is None or any(before is one for one in found):
            break
        found.append(before)
        before = getter(BaseException, "__context__")(before)
    return found


def _causes(error: BaseException) -> list[tuple[str, BaseException]]:
    """Return what led to *error*, the last first, each with the words for it."""
    found: list[tuple[str, BaseException]] = []
    seen = [error]
    while len(seen) <= _MOST_CAUSES:
        word, before = _cause(seen[-1])
        if before is None or any(before is one for one in seen):
            break
        found.append((word, before))
        seen.append(before)
    return found


def _cause(error: BaseException) -> tuple[str, BaseException | None]:
    cause = getter(BaseException, "__cause__")(error)
    if cause is not None or getter(BaseException, "__suppress_context__")(error):
        return "caused by", cause
    return "while handling", getter(BaseException, "__context__")(error)


def _summary(error: BaseException, clear: Clear | None) -> str:
    message = shorten(error_message(error, clear=clear), 300)
    return f"{type_name(type(error))}: {' '.join(message.split())}"


def _frames(error: BaseException) -> list[str]:
    """Describe the first and the last frames of the traceback, a line each."""
    first: list[types.TracebackType] = []
    last: deque[types.TracebackType] = deque(maxlen=_LAST_FRAMES)
    traceback, count = getter(BaseException, "__traceback__")(error), 0
    while traceback is not None and count < _MOST_FRAMES:
        (first if count < _FIRST_FRAMES else last).append(traceback)
        traceback, count = traceback.tb_next, count + 1
    left_out = count - len(first) - len(last)
    gap = [f"  ... {left_out} more frames ..."] if left_out else []
    return [*map(_frame, first), *gap, *map(_frame, last)]


def _frame(traceback: types.TracebackType) -> str:
    code = traceback.tb_frame.f_code
    file = str.__getitem__(code.co_filename, slice(-120, None))
    name = str.__getitem__(getattr(code, "co_qualname", code.co_name), slice(-80, None))  # new in Python 3.11
    return f'  File "{file}", line {traceback.tb_lineno}, in {name}'


def _inmost_members(error: BaseException) -> list[BaseException]:
    """Return the first exceptions in the group *error*, instead of inner groups their members."""
    found: list[BaseException] = []
    waiting = members(error)
    for _ in range(100):  # also ends for groups inside groups inside groups
        if not waiting or len(found) == MOST_MEMBERS:
            break
        inner = members(waiting[0])
        found += [] if inner else waiting[:1]
        waiting[:1] = inner
    return found

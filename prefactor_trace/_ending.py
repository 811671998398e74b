"""How a block ends, from the exception that leaves it. Pure, and never runs the exception's own code.

| left by                                                                   | ending     |
|---------------------------------------------------------------------------|------------|
| nothing; `SystemExit` with code 0 or None                                 | complete   |
| any other exception; a group with at least one such                       | failed     |
| `asyncio.CancelledError`, `trio.Cancelled`, `KeyboardInterrupt`, a group of only these | cancelled |
| `GeneratorExit`: the consumer of a generator went away                    | abandoned  |
| `InstanceTerminated`                                                      | terminated |
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefactor_trace.errors import InstanceTerminated

if TYPE_CHECKING:
    from collections.abc import Iterator

Ending: TypeAlias = Literal["complete", "failed", "cancelled", "abandoned", "terminated"]

_GRAVEST_FIRST: tuple[Ending, ...] = ("failed", "terminated", "cancelled", "abandoned")
# Where the types live that may not be there: looked up only among what is loaded, so nothing is imported.
_CANCELLATIONS = (("asyncio", "CancelledError"), ("trio", "Cancelled"))
_GROUPS = (("builtins", "BaseExceptionGroup"), ("exceptiongroup", "BaseExceptionGroup"))


def ending_of(error: BaseException | None) -> Ending:
    """Say how the block that *error* leaves has ended."""
    if error is None:
        return "complete"
    endings = {_ending_of_leaf(leaf) for leaf in _leaves(error)}
    return next((ending for ending in _GRAVEST_FIRST if ending in endings), "complete")


def _ending_of_leaf(error: BaseException) -> Ending:
    # issubclass on the type, not isinstance: that would ask the object's own `__class__`.
    kind = type(error)
    if issubclass(kind, SystemExit):
        # The slot itself: a subclass may have put a property over it.
        code = SystemExit.__dict__["code"].__get__(error)
        is_number = type(code) is int or type(code) is bool
        return "complete" if code is None or (is_number and code == 0) else "failed"
    if issubclass(kind, (KeyboardInterrupt, *_loaded(_CANCELLATIONS))):
        return "cancelled"
    if issubclass(kind, GeneratorExit):
        return "abandoned"
    if issubclass(kind, InstanceTerminated):
        return "terminated"
    return "failed"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    groups = _loaded(_GROUPS)
    stack = [error]
    for _ in range(1_000):  # more leaves would not change the answer that matters
        if not stack:
            return
        each = stack.pop()
        kind = next((group for group in groups if issubclass(type(each), group)), None)
        if kind is None:
            yield each
        else:
            stack += kind.__dict__["exceptions"].__get__(each)


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[Any, ...]:
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return tuple(each for each in found if each is not None)

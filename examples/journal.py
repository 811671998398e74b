"""The agent's own account of what it did, kept without the tracing library, so that demo.py can compare the two."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

F = TypeVar("F", bound="Callable[..., Any]")


class Step(TypedDict):
    """One thing the agent did. *parent*: the number of the step it was part of."""

    number: int
    parent: int | None
    name: str
    inputs: dict[str, Any]
    status: str


class _Place(NamedTuple):
    journal: list[Step]
    inside: int | None


_numbers = itertools.count(1)
_place: ContextVar[_Place] = ContextVar("journal")


@contextmanager
def keeping() -> Iterator[list[Step]]:
    """Keep a journal of the steps in this block."""
    journal: list[Step] = []
    token = _place.set(_Place(journal, None))
    try:
        yield journal
    finally:
        _place.reset(token)


@contextmanager
def noting(name: str, inputs: dict[str, Any]) -> Iterator[None]:
    """Note a step: what it is called, what goes in, what it is part of, and how it ends."""
    journal, parent = _place.get()
    step = Step(number=next(_numbers), parent=parent, name=name, inputs=inputs, status="running")
    journal.append(step)
    token = _place.set(_Place(journal, step["number"]))
    try:
        yield
        step["status"] = "complete"
    except asyncio.CancelledError:
        step["status"] = "cancelled"
        raise
    except BaseException:
        step["status"] = "failed"
        raise
    finally:
        _place.reset(token)


def noted(function: F) -> F:
    """Note each call of *function* as a step."""
    signature = inspect.signature(function)

    def note(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        return noting(
            function.__qualname__, {name: given for name, given in arguments.items() if name != "self"}
        )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with note(*args, **kwargs):
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        with note(*args, **kwargs):
            return await function(*args, **kwargs)

    return call_async if inspect.iscoroutinefunction(function) else call  # type: ignore[return-value]

"""Chooses the wrapper for a function of any kind, and recognises what has one.

What the wrappers are, and promise, is in `_wrappers_importlib_bootstrap`.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefactor_trace._wrappers_importlib_bootstrap import (
    async_generator,
    coroutine,
    generator,
    is_wrapper,
    plain_function,
)

if TYPE_CHECKING:
    from prefactor_trace._wrappers_importlib_bootstrap import Open  # noqa: TC004 - others take it from here

    Kind: TypeAlias = Literal["async generator", "awaitable generator", "coroutine", "function", "generator"]

__all__ = ["Open", "async_generator", "generator", "opener_of", "wrap"]


def wrap(function: Any, open_scope: Open) -> Any:
    """Return a function with a scope around each call of *function*, anything that can be called.

    A plain function that returns a coroutine or a generator is over when it has returned it. *open_scope*: takes
    the arguments; None records nothing.
    """
    match kind_of(function):
        case "async generator":
            return async_generator(function, open_scope)
        case "coroutine":
            return coroutine(function, open_scope)
        case "awaitable generator":
            return types.coroutine(generator(function, open_scope, has_items=False))
        case "generator":
            return generator(function, open_scope, has_items=True)
    return plain_function(function, open_scope)


def kind_of(function: Any) -> Kind:
    """Say what a call of *function* gives; an "awaitable generator" yields to the event loop, and to no consumer.

    A partial is of the kind of what it calls, an object of the kind of its type's `__call__`.
    """
    try:
        while isinstance(function, functools.partial):
            function = function.func
        for each in (function, getattr(type(function), "__call__", None)):  # noqa: B004 - not asking whether
            if inspect.isasyncgenfunction(each):
                return "async generator"
            if inspect.iscoroutinefunction(each):
                return "coroutine"
            if inspect.isgeneratorfunction(each):
                flags = getattr(getattr(each, "__code__", None), "co_flags", 0)
                return "awaitable generator" if flags & inspect.CO_ITERABLE_COROUTINE else "generator"
    except Exception:  # noqa: S110 - an object may answer to the questions of `inspect` with anything
        pass
    return "function"


def is_stream(function: Any) -> bool:
    """Say whether *function* yields items to a consumer."""
    return kind_of(function) in ("generator", "async generator")


def opener_of(function: Any) -> Open | None:
    """Return the *open_scope* that *function*, a Python function, was wrapped with; None if it was not."""
    if not is_wrapper(function):
        return None
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    return next((cell.cell_contents for name, cell in free if name.rstrip("_") == "open_scope"), None)

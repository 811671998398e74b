"""Takes a function along into a thread, an executor or another task: it runs in the context it was carried from.

What a function leaves for later runs there as well: the body of a coroutine, and each step of a generator. Whoever
drives it, by whatever event loop, enters the context for a step and leaves it again; no task is made, and nothing
of it is seen outside.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefactor_trace import _context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

__all__ = ["carry"]

P = ParamSpec("P")
R = TypeVar("R")


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Return *function* as it should be handed to a thread or an executor: it runs in a copy of this context.

    The copy is taken now. Each call gets its own, so the result can be called many times and at once:
    `pool.map(carry(work), items)`. Coroutine functions, generator functions and asynchronous generator functions
    stay what they are: their bodies run in the copy, wherever they are awaited or iterated. A coroutine that a plain
    function returns is not looked at.
    """
    if _context.noted_departure is not None:
        _context.noted_departure()
    context = contextvars.copy_context()
    carried: Callable[P, R] = functools.wraps(function)(_kind_of(function)(function, context))
    return carried


def _kind_of(function: Any) -> Callable[[Any, contextvars.Context], Any]:
    """Return what makes a carried function of the same kind."""
    call = inspect.getattr_static(type(_without_partial(function)), "__call__", None)
    for each in (function, call):
        if inspect.isasyncgenfunction(each):
            return _async_generator
        if inspect.iscoroutinefunction(each):
            return _coroutine
        if inspect.isgeneratorfunction(each):
            return _generator
    return _function


def _without_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _function(function: Any, context: contextvars.Context) -> Any:
    def carried(*args: Any, **kwargs: Any) -> Any:
        return context.copy().run(function, *args, **kwargs)

    return carried


def _coroutine(function: Any, context: contextvars.Context) -> Any:
    async def carried(*args: Any, **kwargs: Any) -> Any:
        own = context.copy()
        return await _Inside(own, own.run(function, *args, **kwargs).__await__())

    return carried


def _generator(function: Any, context: contextvars.Context) -> Any:
    def carried(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        own = context.copy()
        return (yield from _steps(own, own.run(function, *args, **kwargs)))

    return carried


def _async_generator(function: Any, context: contextvars.Context) -> Any:
    async def carried(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        own = context.copy()
        generator = own.run(function, *args, **kwargs)
        step = generator.__anext__()
        try:
            while True:
                item = await _Inside(own, step.__await__())
                try:
                    step = generator.asend((yield item))
                except BaseException as error:
                    # A loop that ends closes all generators at once, ours and the one inside.
                    is_left = _context.is_exit(error)
                    if is_left and (generator.ag_running or generator.ag_frame is None):
                        raise
                    step = generator.athrow(error)
        except StopAsyncIteration:
            return
        except GeneratorExit:
            # Closed while it was waiting itself, it refuses to be closed now, and hears when it is collected.
            if not generator.ag_running:
                await _Inside(own, generator.aclose().__await__())
            raise

    return carried


class _Inside:
    """Awaits in a context: each step of *steps* runs there, and what it waits for is waited for outside."""

    __slots__ = ("_context", "_steps")

    def __init__(self, context: contextvars.Context, steps: Any) -> None:
        self._context = context
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return _steps(self._context, self._steps)


def _steps(context: contextvars.Context, generator: Any) -> Generator[Any, Any, Any]:
    """Be *generator*, with each step of it run in *context*."""
    step, value = generator.send, None
    try:
        while True:
            try:
                item = context.run(step, value)
            except StopIteration as stop:
                return stop.value
            try:
                step, value = generator.send, (yield item)
            except BaseException as error:
                step, value = generator.throw, error
    finally:
        value = None  # else this frame and the exception would keep each other

"""Puts a scope around a function of any kind, with all control flow in this one place.

Plain closures: they keep `inspect`, pickling and binding intact and cost the least of all mechanisms. The wrapped
function runs in the caller's task; its exceptions pass with one frame of ours in the traceback. Between two yields
of a generator the consumer's context is the consumer's own: what is current in the generator (its scope, or a block
it has entered) is put in place while it runs, and taken away when it yields.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from prefactor_trace._context import Scope, current, leave
from prefactor_trace._ending import ending_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    Open: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Scope | None]


def wrap(function: Any, open_scope: Open) -> Any:
    """Return *function* with a scope around each call. *open_scope*: takes the arguments; None records nothing."""
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(wrap(function.__func__, open_scope))
    if isinstance(function, property):
        wrapped = None if function.fget is None else wrap(function.fget, open_scope)
        return property(wrapped, function.fset, function.fdel, function.__doc__)
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, open_scope)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, open_scope)
    if inspect.isgeneratorfunction(function):
        return _generator(function, open_scope)
    return _function(function, open_scope)


def _function(function: Callable[..., Any], open_scope: Open) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_scope(args, kwargs)
        if scope is None:
            return function(*args, **kwargs)
        token = current.set(scope)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            current.reset(token)
            scope.raised(error)
            raise
        current.reset(token)
        scope.returned(result)
        return result

    return wrapper


def _coroutine(function: Callable[..., Any], open_scope: Open) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_scope(args, kwargs)
        if scope is None:
            return await function(*args, **kwargs)
        token = current.set(scope)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            leave(token, scope)
            scope.raised(error)
            raise
        leave(token, scope)
        scope.returned(result)
        return result

    return wrapper


def _generator(function: Callable[..., Any], open_scope: Open) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        scope = open_scope(args, kwargs)
        if scope is None:
            return (yield from function(*args, **kwargs))
        inside, items, value, is_left = scope, 0, None, False
        try:
            generator = function(*args, **kwargs)
            step = generator.send
            while True:
                token = current.set(inside)
                try:
                    item = step(value)
                finally:
                    inside = current.get()
                    leave(token, inside)
                items += 1
                try:
                    step, value = generator.send, (yield item)
                except BaseException as error:
                    step, value, is_left = generator.throw, error, type(error) is GeneratorExit
        except StopIteration as stop:
            scope.abandoned(items) if is_left else scope.returned(stop.value, items)
            return stop.value
        except GeneratorExit:
            scope.abandoned(items)
            raise
        except BaseException as error:
            scope.raised(error)
            raise
        finally:
            value = None

    return wrapper


def _async_generator(function: Callable[..., Any], open_scope: Open) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        # There is no `yield from` here, so an unrecorded call takes the same way with a scope that does nothing.
        scope = open_scope(args, kwargs) or _NOTHING
        inside = current.get() if scope is _NOTHING else scope
        items, thrown = 0, None
        try:
            generator = function(*args, **kwargs)
            step = generator.__anext__()
            while True:
                token = current.set(inside)
                try:
                    item = await step
                finally:
                    inside = current.get()
                    leave(token, inside)
                items += 1
                try:
                    step = generator.asend((yield item))
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step, thrown = generator.athrow(error), error
        except StopAsyncIteration:
            scope.returned(None, items)
        except GeneratorExit:
            try:
                token = current.set(inside)
                try:
                    # Closed while it was waiting itself, CPython has not told it, and refuses to close it now;
                    # it hears when it is collected.
                    if not generator.ag_running:
                        await generator.aclose()
                finally:
                    leave(token, current.get())
            except BaseException as error:
                scope.raised(error)
                raise
            scope.abandoned(items)
            raise
        except BaseException as error:
            # A task is cancelled where it waits, never at a yield: there it is a loop that ends and closes the
            # generators which their consumers have left.
            if error is thrown and ending_of(error) == "cancelled":
                scope.abandoned(items)
            else:
                scope.raised(error)
            raise
        finally:
            thrown = None  # else this frame and the exception would keep each other

    return wrapper


class _Nothing(Scope):
    """Stands for "not recorded"."""

    def returned(self, result: object, items: int | None = None) -> None:
        pass

    def raised(self, error: BaseException) -> None:
        pass

    def abandoned(self, items: int) -> None:
        pass


_NOTHING = _Nothing()

"""Puts a scope around a function of any kind, with all control flow in this one place.

Plain closures: they keep `inspect`, pickling and binding intact and cost the least of all mechanisms. The wrapped
function runs in the caller's task; its exceptions pass without a frame of ours in the traceback (in Python 3.10, with
one). Between two yields of a generator the consumer's context is the consumer's own: what is current in the generator (its scope, or a block
it has entered) is put in place while it runs, and taken away when it yields.

Each wrapper gets the parameters of its function in place of `*args, **kwargs`, and its globals, see `_parameters`. What
the wrappers need of us they take from the module `_context`, which they hold as `ours`: so `cloudpickle` can send a
wrapped function by value.

What can be told apart after all: the frame and code of a generator or coroutine object (`gi_frame`, `cr_code`, ...)
are the wrapper's, and `gi_yieldfrom` is None. A recursive function reaches the recursion limit in half the depth.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefactor_trace import _context
from prefactor_trace._parameters import adopt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from prefactor_trace._context import Scope

    Open: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Scope | None]
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
            return _coroutine(function, open_scope)
        case "awaitable generator":
            return types.coroutine(generator(function, open_scope, has_items=False))
        case "generator":
            return generator(function, open_scope, has_items=True)
    return _function(function, open_scope)


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
    if function.__code__.co_filename != _FILE:
        return None
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    return next((cell.cell_contents for name, cell in free if name.rstrip("_") == "open_scope"), None)


def _function(function: Callable[..., Any], open_scope: Open, ours: Any = _context) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_scope(args, kwargs)
        if scope is None:
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                ours.take_frame_off(error)
                raise
        token = ours.current.set(scope)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            ours.current.reset(token)
            ours.take_frame_off(error)
            scope.raised(error)
            raise
        ours.current.reset(token)
        scope.returned(result)
        return result

    return adopt(wrapper, function)


def _coroutine(function: Callable[..., Any], open_scope: Open, ours: Any = _context) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = open_scope(args, kwargs)
        if scope is None:
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                ours.take_frame_off(error)
                raise
        token = ours.current.set(scope)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            ours.leave(token, scope)
            ours.take_frame_off(error)
            scope.raised(error)
            raise
        ours.leave(token, scope)
        scope.returned(result)
        return result

    return adopt(wrapper, function)


def generator(
    function: Callable[..., Any], open_scope: Open, *, has_items: bool, ours: Any = _context
) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        # Not by `yield from`, which does not throw a GeneratorExit but closes: an unrecorded call takes the same way
        # with a scope that does nothing.
        scope = open_scope(args, kwargs) or ours.nothing
        # What goes through, on its way: in a variable this frame would keep it alive while it waits.
        passing: list[Any] = [None]
        current, items, is_left = ours.current, 0, False
        inside = current.get() if scope is ours.nothing else scope
        try:
            take = scope.stream() if has_items else ours.let_pass
            generator = function(*args, **kwargs)
            del args, kwargs  # it may live long and let go of them early
            send = step = generator.send
            while True:
                token = current.set(inside)
                try:
                    passing.append(step(passing.pop()))
                finally:
                    inside = current.get()
                    current.reset(token)
                items += 1
                take(passing[0])
                try:
                    passing.append((yield passing.pop()))
                    step, is_left = send, False
                except BaseException as error:
                    passing.append(ours.as_thrown(error))
                    step, is_left = generator.throw, ours.is_exit(error)
        except StopIteration as stop:
            scope.abandoned(items) if is_left else scope.returned(stop.value)
            return stop.value
        except BaseException as error:
            ours.take_frame_off(error)
            scope.abandoned(items) if ours.is_exit(error) else scope.raised(error)
            raise

    return adopt(wrapper, function)


def async_generator(function: Callable[..., Any], open_scope: Open, ours: Any = _context) -> Any:  # noqa: PLR0915 - its flow is one
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:  # noqa: PLR0915
        scope = open_scope(args, kwargs) or ours.nothing
        inside = ours.current.get() if scope is ours.nothing else scope
        passing: list[Any] = [None]
        current, items, thrown, is_left = ours.current, 0, None, False
        try:
            take = scope.stream()
            generator = function(*args, **kwargs)
            del args, kwargs
            step = ours.first_step(generator)
            while True:
                token = current.set(inside)
                try:
                    passing[0] = await step
                finally:
                    step, inside = None, current.get()
                    ours.leave(token, inside)
                items += 1
                take(passing[0])
                try:
                    step, is_left = generator.asend((yield passing.pop())), False
                    passing.append(None)
                except BaseException as error:
                    is_left = ours.is_exit(error)
                    # A loop that ends closes all generators at once, ours and the one inside.
                    if is_left and (generator.ag_running or generator.ag_frame is None):
                        raise
                    step, thrown = generator.athrow(ours.as_thrown(error)), error
                    passing.append(None)
        except StopAsyncIteration:
            scope.abandoned(items) if is_left else scope.returned(None)
        except GeneratorExit as exit_error:
            ours.take_frame_off(exit_error)
            try:
                token = ours.current.set(inside)
                try:
                    # Closed while it was waiting itself, CPython has not told it, and refuses to close it now;
                    # it hears when it is collected.
                    if not generator.ag_running:
                        await generator.aclose()
                finally:
                    ours.leave(token, ours.current.get())
            except BaseException as error:
                ours.take_frame_off(error)
                scope.raised(error)
                raise
            scope.abandoned(items)
            raise
        except BaseException as error:
            ours.take_frame_off(error)
            # A task is cancelled where it waits, never at a yield: there it is a loop that ends and closes the
            # generators which their consumers have left.
            if error is thrown and ours.is_cancellation(error):
                scope.abandoned(items)
            else:
                scope.raised(error)
            raise
        finally:
            thrown = None  # else this frame and the exception would keep each other

    return adopt(wrapper, function)


_FILE = wrap.__code__.co_filename

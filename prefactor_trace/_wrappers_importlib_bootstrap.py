"""Puts a scope around a function of any kind, with all control flow in this one place.

Plain closures: they keep `inspect`, pickling and binding intact and cost the least of all mechanisms. The wrapped
function runs in the caller's task; its exceptions pass without a frame of ours in the traceback (in Python 3.10, with
one: there, what is raised again keeps the traceback it was caught with). Between two yields of a generator the
consumer's context is the consumer's own: what is current in the generator (its scope, or a block it has entered) is put
in place while it runs, and taken away when it yields.

The name of this file is part of what it does. Where Python counts frames above a function, as for the `stacklevel` of
`warnings.warn` and, since Python 3.11, of `logging`, it leaves out those of files that have "importlib" and
"_bootstrap" in their name; it knows no other way. So a warning in a decorated function names the line that called it,
while debuggers and tracebacks find the source here as anywhere.

Each wrapper gets the parameters of its function in place of `*args, **kwargs`, and its globals, see `_parameters`. What
the wrappers need of us they take from the module `_context`, which they hold as `ours`: so `cloudpickle` can send a
wrapped function by value.

What can be told apart after all: the frame and code of a generator or coroutine object (`gi_frame`, `cr_code`, ...)
are the wrapper's, and `gi_yieldfrom` is none of the function's; what is thrown into a generator before it has begun
shows a line of ours. A recursive function reaches the recursion limit in half the depth.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from prefactor_trace import _context
from prefactor_trace._parameters import adopt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from typing import TypeAlias

    from prefactor_trace._context import Scope

    Open: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Scope | None]

__all__ = ["Open", "async_generator", "coroutine", "generator", "is_wrapper", "plain_function"]


def plain_function(function: Callable[..., Any], open_scope: Open, ours: Any = _context) -> Any:
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


def coroutine(function: Callable[..., Any], open_scope: Open, ours: Any = _context) -> Any:
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
    holds_nothing = ours.holds_nothing(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        # Not by `yield from`, which does not throw a GeneratorExit but closes: an unrecorded call takes the same way
        # with a scope that does nothing; the short one there is, until something is sent or thrown.
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
            if holds_nothing and scope is ours.nothing:
                try:
                    while (sent := (yield send(None))) is None:
                        pass
                    passing[0], sent = sent, None
                except BaseException as error:
                    if generator.gi_frame is None:  # it was not thrown in, but raised in there
                        raise
                    passing[0], step = ours.as_thrown(error), generator.throw
                    is_left = ours.is_exit(error)
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


def is_wrapper(function: Any) -> bool:
    """Say whether *function*, a Python function, was made here."""
    file: str = function.__code__.co_filename
    return file == _FILE


_FILE = is_wrapper.__code__.co_filename

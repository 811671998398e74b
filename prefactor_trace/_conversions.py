"""What users have said about their own types: `register_capture`, and calling their functions without harm.

The only code of the user that capturing a value runs, because they asked for it. It runs on the thread that
records, inside `convert`: whatever it raises stays there and is counted, and the value is recorded as the name of
its type.
"""

from __future__ import annotations

import dis
import inspect
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from prefactor_trace import _guard
from prefactor_trace._peek import bases_of, is_a, type_name
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register_capture"]

T = TypeVar("T")

FAILED = object()
"""What `convert` returns instead of a value."""

# By the id of the type, which is held here for as long as its id is. Single reads and writes of a dict are atomic.
functions: dict[int, tuple[type, Callable[[Any], object]]] = {}

_is_converting: ContextVar[bool] = ContextVar("prefactor_trace_is_converting", default=False)

# Proven to be plain by the C encoder, a million at a time; and `object`, which everything is.
_NOT_TO_REGISTER = (str, int, float, bool, type(None), list, tuple, dict, object)
_LONG_SECONDS = 0.01


def register_capture(kind: type[T], function: Callable[[T], object]) -> None:
    """Record values of *kind* as what *function* makes of them, instead of the way that is built in.

    Holds for the type and its subclasses, wherever such a value stands: as an argument, in a list, as a key, in an
    attribute of another object. If several types that a value is of are registered, the nearest base wins; a second
    function for a type replaces the first. Thread-safe; applies to what is captured from now on.

    Args:
        kind: The class. Not str, int, float, bool, NoneType, list, tuple, dict or object; their subclasses can be.
        function: Takes the value and returns what is recorded in its place: any value, captured in turn, within the
            same limits. It is called on the thread that records, can be called more than once for a value, and what
            it costs is not bounded. If it raises, even SystemExit, or returns the value itself, the value is
            recorded as `{"$type": "<type>"}`, and `stats().notes` counts it. While it runs, values of registered
            types that are captured in it are recorded so as well.

    Raises:
        ConfigurationError: *kind* is no class or one of those named above, or *function* cannot be called, or is
            a coroutine function.
    """
    if not is_a(kind, type):
        raise ConfigurationError(
            f"register_capture takes a class first, and was given a {type_name(type(kind))}"
        )
    if any(kind is one for one in _NOT_TO_REGISTER):
        raise ConfigurationError(
            f"register_capture cannot change how {type_name(kind)} is recorded; subclass it"
        )
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"register_capture({type_name(kind)}, ...) takes a function of one argument that is not asynchronous"
        )
    functions[id(kind)] = (kind, function)


def function_for(kind: type) -> Callable[[Any], object] | None:
    """Return the function that is registered for *kind*, or for the nearest of its bases."""
    for base in bases_of(kind):
        found = functions.get(id(base))
        if found is not None:
            return found[1]
    return None


def convert(function: Callable[[Any], object], value: object) -> object:
    """Return what *function* makes of *value*, or `FAILED`. Raises KeyboardInterrupt if the user has pressed Ctrl-C."""
    if _is_converting.get():  # it records a value itself, which could go on for ever
        return FAILED
    token = _is_converting.set(True)
    started = time.perf_counter()
    try:
        made = function(value)
        if made is value:
            _note(value, "returned the value itself")
            return FAILED
    except BaseException as error:
        if _is_signal(error):
            raise
        _note(value, f"raised {type_name(type(error))}")
        return FAILED
    else:
        if time.perf_counter() - started > _LONG_SECONDS:
            _note(value, "was slow")
        return made
    finally:
        _is_converting.reset(token)


def _note(value: object, event: str) -> None:
    """Count what a function did; log the first of its kind."""
    what = f"capture function for {type_name(type(value))} {event}"
    _guard.errors[what] += 1
    if _guard.errors[what] == 1:
        _guard.logger.warning("the %s; see register_capture", what)


def _is_signal(error: BaseException) -> bool:
    """Say whether *error* is a real Ctrl-C, and not raised by the function for reasons of its own."""
    if not is_a(error, KeyboardInterrupt):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return True
    import signal

    code = last.tb_frame.f_code
    handler = getattr(signal.getsignal(signal.SIGINT), "__code__", None)
    return code is handler or dis.opname[code.co_code[last.tb_lasti]] != "RAISE_VARARGS"

"""An opt-in patch: threads and thread pools of the program know which run and step they work for.

A thread belongs where it was started, a task of a pool where it was submitted. Only our own variable is set there,
and only for as long as it holds: other libraries' variables, such as the decimal context, stay as they would be, and
a pool's thread, which lives on, is left as it was found.

Threads that a library keeps for later work of anybody are not the run's in which they happened to be started.
"""

from __future__ import annotations

import functools
import threading
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from prefactor_trace._context import current, take_frame_off

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["carry_threads"]

# Packages whose threads live on and work for others, or for nobody in particular.
_KEEPERS = frozenset(
    {"concurrent", "multiprocessing", "logging", "asyncio", "anyio", "trio", "prefactor_trace"}
)
_SLOT = "_prefactor_trace_scope"


def carry_threads(enabled: bool = True) -> None:
    """Let every `threading.Thread` and `ThreadPoolExecutor` of the program carry the current run and step.

    Patches `Thread.start` and `ThreadPoolExecutor.submit` (and so `map`) for the whole process, where `carry` is for
    one function. False undoes it: both are what they were before. Calling it twice is the same as once.

    Not touched: threads that pools, event loops and logging keep for later work, `multiprocessing.pool.ThreadPool`,
    and tasks that are submitted outside of any run. A thread that outlives its run still belongs to it.
    """
    from concurrent.futures import ThreadPoolExecutor

    with _patching:
        for owner, name, make in (
            (threading.Thread, "start", _start),
            (threading.Thread, "_bootstrap_inner", _bootstrap),
            (ThreadPoolExecutor, "submit", _submit),
        ):
            patch = _patches.get(name) or _patches.setdefault(name, _Patch(owner, name, make))
            patch.put() if enabled else patch.take_away()


class _Patch:
    """One method that is replaced. Whoever has replaced it after us stays in place, and finds ours doing nothing."""

    def __init__(self, owner: type, name: str, make: Callable[[Callable[..., Any], _Patch], Any]) -> None:
        self._owner = owner
        self._name = name
        self._make = make
        self._ours: Any = None
        self._original: Any = None
        self.is_on = False

    def put(self) -> None:
        if self._ours is None:
            self._original = self._owner.__dict__[self._name]
            self._ours = functools.wraps(self._original)(self._make(self._original, self))
            setattr(self._owner, self._name, self._ours)
        self.is_on = True

    def take_away(self) -> None:
        self.is_on = False
        if self._ours is not None and self._owner.__dict__[self._name] is self._ours:
            setattr(self._owner, self._name, self._original)
            self._ours = self._original = None


_patches: dict[str, _Patch] = {}
_patching = threading.RLock()


def _start(original: Callable[..., None], patch: _Patch) -> Any:
    def start(self: threading.Thread) -> None:
        scope = current.get()
        if scope is None or not patch.is_on or _is_kept(self):
            return original(self)
        self.__dict__[_SLOT] = scope
        try:
            return original(self)
        finally:  # once it has started, the thread has taken it
            self.__dict__.pop(_SLOT, None)

    return start


def _bootstrap(original: Callable[..., Any], _patch: _Patch) -> Any:
    def _bootstrap_inner(self: threading.Thread) -> None:
        scope = self.__dict__.pop(_SLOT, None)
        if scope is not None:
            current.set(scope)  # in the thread's own context, which ends with it
        original(self)

    return _bootstrap_inner


def _submit(original: Callable[..., Any], patch: _Patch) -> Any:
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scope = current.get()
        if scope is None or not patch.is_on:
            return original(self, fn, *args, **kwargs)
        return original(self, _Task(fn, scope), *args, **kwargs)

    return submit


class _Task:
    """A function that runs in a scope, and leaves the thread as it was."""

    __slots__ = ("_function", "_scope")

    def __init__(self, function: Callable[..., Any], scope: object) -> None:
        self._function = function
        self._scope = scope

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        token = current.set(self._scope)
        try:
            return self._function(*args, **kwargs)
        except BaseException as error:
            take_frame_off(error)
            raise
        finally:
            current.reset(token)


def _is_kept(thread: threading.Thread) -> bool:
    """Whether the thread is one that a library keeps."""
    owner: Any = type(thread)
    if owner is threading.Thread:
        owner = thread.__dict__.get("_target")
        if type(owner) is MethodType:
            owner = owner.__func__
        if type(owner) is not FunctionType:  # a callable object of the user's: it is not asked anything
            return False
    module = owner.__module__
    return type(module) is str and module.partition(".")[0] in _KEEPERS

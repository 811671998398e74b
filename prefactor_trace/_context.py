"""The current instance and the current span, and how they travel to other threads.

One context variable holds the innermost open *scope*: an instance, or a span in it. It holds a small handle and
never inputs or outputs, because contexts are copied and live long. Tasks, task groups, `asyncio.to_thread` and
anyio's threads copy the context by themselves; for plain threads and executors there are `_carry` and `_threads`,
for other processes `propagation`.
"""

from __future__ import annotations

import contextvars
import opcode
import sys
import types
from typing import TYPE_CHECKING, Any

from prefactor_trace import _guard
from prefactor_trace._ending import ending_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Scope:
    """What can be current: a run, or a step in one. None of the methods raises."""

    __slots__ = ()
    hidden: tuple[str, ...] = ()
    """Texts that must not be recorded, in what errors say."""

    call: Any = None
    """The innermost call of another library that this is part of; see `integrations`."""

    def stream(self) -> Callable[[object], None]:
        """Begin to take the items of a generator; return what is told each as it is yielded."""
        return let_pass

    def returned(self, result: object) -> None:
        """End normally."""
        raise NotImplementedError

    def raised(self, error: BaseException) -> None:
        """End by *error*, as the table in `_ending` says."""
        raise NotImplementedError

    def abandoned(self, items: int) -> None:
        """End because the consumer of a generator went away after *items*."""
        raise NotImplementedError


def let_pass(_item: object) -> None:
    """Take an item and do nothing with it."""


class _Nothing(Scope):
    """Stands for "not recorded". Where it is current nothing is recorded, not even in a run of its own."""

    __slots__ = ()
    own_id = ""
    instance = None

    def returned(self, result: object) -> None:
        pass

    def raised(self, error: BaseException) -> None:
        pass

    def abandoned(self, items: int) -> None:
        pass


nothing = _Nothing()


NO_RESULT: Any = object()
"""What a block returns: nothing, where None would be a result."""

current: contextvars.ContextVar[Any] = contextvars.ContextVar("prefactor_trace", default=None)


def leave(token: contextvars.Token[Any], scope: object) -> None:
    """Make current again what was so before *scope* was entered; quietly if that was in another context."""
    try:
        current.reset(token)
    except ValueError:
        # Entered in one context and left in another: here it is ours to undo only if it came along.
        if current.get() is scope:
            old = token.old_value
            current.set(None if old is contextvars.Token.MISSING else old)


def is_exit(error: BaseException) -> bool:
    """Say whether *error* tells a generator that its consumer went away."""
    return type(error) is GeneratorExit


def is_cancellation(error: BaseException) -> bool:
    """Say whether *error* ends a scope as cancelled."""
    return ending_of(error) == "cancelled"


def as_thrown(error: BaseException) -> BaseException:
    """Return *error*, thrown into our frame, with the traceback it had before, to be thrown into the next one."""
    take_frame_off(error)
    return error


def holds_nothing(function: Any) -> bool:
    """Say whether a generator of *function* can hold no block open between two items: there is no `with` in it."""
    if type(function) is not types.FunctionType:
        return False
    code = function.__code__
    return _HOLDING.isdisjoint(code.co_code[::2]) and _HOLDERS.isdisjoint(code.co_names)


_HOLDING = frozenset(opcode.opmap[name] for name in ("WITH_EXCEPT_START", "GET_YIELD_FROM_ITER"))
_HOLDERS = frozenset(["__enter__", "enter_context"])


def first_step(generator: Any) -> Any:
    """Begin an asynchronous *generator* inside of one of ours, of which alone its event loop is told.

    A loop that ends closes all that it knows at once, and ours closes the one inside, which cannot be closed twice.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return generator.__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)


_traceback: Any = BaseException.__dict__["__traceback__"]  # whatever a class of the user's calls so


def take_frame_off(error: BaseException) -> None:
    """Let the traceback of *error* begin below the frame of ours that has caught it, and raises it again.

    Python 3.10 remembers the traceback by itself, and puts the frame back.
    """
    traceback = _traceback.__get__(error)
    if traceback is not None:
        _traceback.__set__(error, traceback.tb_next)


class Block:
    """The bookkeeping of a `with` block that opens a scope on entry. It may be entered again, and in many tasks."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        # Each time: the scope, what it made current (for a step that is not recorded: what was so), and the way back.
        self._entered: list[tuple[Scope, Any, contextvars.Token[Any]]] = []

    def _enter(self, scope: Scope, *, as_current: bool = True) -> None:
        here = scope if as_current else current.get()
        self._entered.append((scope, here, current.set(here)))

    def _leave(self) -> Scope:
        # The same block may be open in several tasks at once; ours is the one that is current here.
        here = current.get()
        entered = tuple(self._entered)  # other threads enter and leave meanwhile
        entry = next((each for each in reversed(entered) if each[1] is here), entered[-1])
        self._entered.remove(entry)
        scope, _, token = entry
        leave(token, scope)
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope = self._leave()
        if error is None:
            scope.returned(NO_RESULT)
        else:
            scope.raised(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def _no_tracer() -> Any:
    raise LookupError("there is no default tracer")


default_tracer: Callable[[], Any] = _no_tracer
"""Returns the default tracer of the process. `_api`, which has it, puts its own here."""


def no_implicit_instance() -> Any:
    """Open no instance for a span outside of any; say once that the span is not recorded."""
    global _said_outside  # noqa: PLW0603 - a note to self
    if not _said_outside:
        _said_outside = True
        _guard.logger.debug("a span outside of any instance is not recorded")


_said_outside = False
open_implicit: Callable[[], Any] = no_implicit_instance
"""Opens an instance for a span outside of any, or returns None. `_api`, which knows the default tracer, puts its own
here."""

noted_departure: Callable[[], None] | None = None
"""Called before a context is copied for another thread; set by `testing`, which puts in order what threads do."""

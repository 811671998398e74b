"""Spans: one step of a run, as what users hold, as a block and as a decorator.

This file is the hot path. Opening a span is: look at the current scope, turn the arguments into bytes, make an id,
hand over one fact; ending it is the same with the result. Nothing of the user's is kept, only bytes.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from prefactor_trace import _context, _guard
from prefactor_trace._arguments import Omit, arguments_of, choice_of, chosen_entries, marked_result, plain
from prefactor_trace._capture import capture, capture_exception, capture_object
from prefactor_trace._context import NO_RESULT, Block, Scope, current
from prefactor_trace._ending import ending_of
from prefactor_trace._record import SpanEnded, SpanStarted
from prefactor_trace._schema import SpanType, by_name, declare, of_program
from prefactor_trace._worker import HEAVY
from prefactor_trace._wrap import wrap
from prefactor_trace.instances import Instance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefactor_trace._arguments import Choice, Mark, PayloadOf
    from prefactor_trace._capture import Limits
    from prefactor_trace._record import FinalStatus

__all__ = ["Span", "SpanBlock", "current_span", "span"]

F = TypeVar("F", bound="Callable[..., Any]")

_NOT_GIVEN: Any = object()

# A NamedTuple's own constructor is a Python function around this one, and takes twice as long.
_fact: Any = tuple.__new__


class Span(Scope):
    """One step of a run. Made by `span(...)`; if it is not recorded, all its methods do nothing, quietly.

    Attributes:
        own_id: The id that was made here and that records carry; see `id`.
        instance: The run it belongs to; None if the span is not recorded.
        title: What people read; empty if the span is not recorded.
    """

    # Class attributes, so that opening a span sets only what is its own.
    own_id: str = ""
    instance: Instance | None = None
    started_at_ns: int = 0
    clock: int = 0
    keeps_payload: bool = True
    keeps_result: bool = True
    owns_instance: bool = False
    _ended: bool = False
    _status: FinalStatus | None = None
    _payload: bytes | None = None
    _result: bytes | None = None
    _error: bytes | None = None
    _metadata: bytes | None = None
    title: str = ""
    result_mark: Mark | None = None  # on the return annotation

    def __repr__(self) -> str:
        return f"<Span {self.id or '(not recorded)'}>"

    @property
    def id(self) -> str:
        """The span's PFID, as the platform knows it (see `Instance.id`); empty if the span is not recorded."""
        return "" if self.instance is None else self.instance.wire_id(self.own_id)

    def set_payload(self, payload: object) -> None:
        """Replace what went into the step. Copied now: later changes to *payload* are not seen."""
        if self.instance is not None and self.keeps_payload:
            self._payload = capture_object(payload, self.instance.input_limits, b"input", self.title)

    def set_result(self, result: object) -> None:
        """Set what came out of the step. Copied now; what is not an object is stored as `{"output": result}`."""
        if self.instance is not None and self.keeps_result:
            self._result = self._captured(result, self.instance.output_limits)

    def set_metadata(self, metadata: Mapping[str, object]) -> None:
        """Set what else is worth knowing about the step. Copied now; replaces what was set before."""
        if self.instance is not None:
            limits = self.instance.input_limits
            self._metadata = capture_object(metadata, limits, b"metadata", self.title)

    def fail(self, error: BaseException | str) -> None:
        """Let the step end as failed because of *error*, though no exception leaves the block."""
        if self.instance is not None:
            self._status = "failed"
            self._error = _captured_error(error, self.instance.output_limits, self.title)

    def cancel(self) -> None:
        """Let the step end as cancelled, unless an exception fails it."""
        if self.instance is not None:
            self._status = "cancelled"

    def _captured(self, result: object, limits: Limits) -> bytes:
        if self.result_mark is not None:
            result = marked_result(result, self.result_mark, limits)
        return capture_object(result, limits, b"output", self.title)

    # -- how it ends ---------------------------------------------------------------------------------------

    def returned(self, result: object, items: int | None = None) -> None:
        """End as complete, or as `fail` or `cancel` have said."""
        self._end("complete", None, result, items)

    def raised(self, error: BaseException) -> None:
        """End by *error*."""
        self._end(None, error)

    def abandoned(self, items: int) -> None:
        """End because the consumer of a generator went away after *items*."""
        self._end("complete" if items else "cancelled", None, NO_RESULT, items, abandoned=items > 0)

    def _end(
        self,
        status: FinalStatus | None,
        error: BaseException | None,
        result: object = NO_RESULT,
        items: int | None = None,
        *,
        abandoned: bool = False,
    ) -> None:
        instance = self.instance
        if instance is None or self._ended:
            return
        self._ended = True
        try:
            finished_at = self.started_at_ns + instance.ticks_ns() - self.clock
            if result is not NO_RESULT and self.keeps_result:
                self._result = self._captured(result, instance.output_limits)
            if error is not None:
                status, abandoned = self._status_by(error, instance)
            if items is not None or abandoned:
                self._metadata = _with_items(self._metadata, items, abandoned=abandoned)
            if error is None or status != "failed":
                status = self._status or status
            parts = (self._result, self._error, self._metadata, self._payload)
            fact = _fact(SpanEnded, (self.own_id, status or "complete", finished_at, *parts))
            if fact.size < HEAVY:
                instance.put(fact)
            else:
                instance.put(fact, heavy=True)
        except Exception:
            _guard.failed("end a span")
            # Better without its data than for ever open. Out of stack, say, this fails as well, and is the last try.
            with contextlib.suppress(Exception):
                instance.put(SpanEnded(self.own_id, status or "failed", self.started_at_ns))
        if self.owns_instance:
            instance.returned(None) if error is None else instance.raised(error)

    def _status_by(self, error: BaseException, instance: Instance) -> tuple[FinalStatus, bool]:
        ending = ending_of(error)
        if ending == "failed":
            self._error = _captured_error(error, instance.output_limits, self.title)
        if ending == "abandoned":
            return "complete", True
        # A step stopped by InstanceTerminated is cancelled; that its run was terminated, the platform knows.
        return ("cancelled" if ending == "terminated" else ending), False


_unrecorded = Span()


def current_span() -> Span | None:
    """Return the innermost open span of this code, None outside of any."""
    scope = current.get()
    return scope if type(scope) is Span else None


class SpanBlock(Block):
    """What `span(...)` returns: a `with` block, an `async with` block and a decorator."""

    __slots__ = ("_options", "_payload", "_title", "_type")

    def __init__(
        self, span_type: SpanType | str | None, title: str | None, payload: object, options: _Options
    ) -> None:
        super().__init__()
        self._type = span_type
        self._title = title
        self._payload = payload
        self._options = options

    def __enter__(self) -> Span:
        """Begin a step and make it current. Raises InstanceTerminated if the platform has stopped the run."""
        span_type = self._type if isinstance(self._type, SpanType) else by_name(self._type or "span")
        opener = _opener(span_type, self._title or span_type.name, self._given_payload, self._options)
        scope = opener((), {})
        self._enter(_unrecorded if scope is None else scope, as_current=scope is not None)
        return scope if isinstance(scope, Span) else _unrecorded

    async def __aenter__(self) -> Span:
        """Begin a step and make it current. Raises InstanceTerminated if the platform has stopped the run."""
        return self.__enter__()

    def __call__(self, function: F) -> F:
        """Return *function* with a step around each call, and declare its type."""
        given = self._type
        span_type = declare(given if isinstance(given, SpanType) else _type_of(function, given, self._title))
        name = self._title or span_type.name
        payload_of, result_mark = arguments_of(function, self._options.choice, name)
        if self._payload is not _NOT_GIVEN:
            payload_of = self._given_payload
        wrapped: F = wrap(function, _opener(span_type, name, payload_of, self._options, result_mark))
        return wrapped

    def _given_payload(self, _args: tuple[Any, ...], _kwargs: dict[str, Any], limits: Limits) -> bytes | None:
        if self._payload is _NOT_GIVEN:
            return None
        payload = chosen_entries(self._payload, self._options.choice)
        return capture_object(payload, limits, b"input", self._title or "")


class _Options(NamedTuple):
    """What a block and a decorator have in common. None: what the settings say, or what is current."""

    parent: Scope | None
    captures_inputs: bool | None
    captures_outputs: bool | None
    choice: Choice | None  # of the payload's entries


def _opener(
    span_type: SpanType,
    name: str,
    payload_of: PayloadOf,
    options: _Options,
    result_mark: Callable[[], Mark | None] | None = None,
) -> Callable[[tuple[Any, ...], dict[str, Any]], Span | Instance | None]:
    """Return a function that begins a span; it raises InstanceTerminated and nothing else.

    It returns None if nothing is recorded, and the instance if it has opened one of which nothing is.
    """
    type_name, envelope = span_type.name, span_type.envelope
    parent, captures_inputs, captures_outputs, _ = options
    has_title = name is not type_name

    def open_scope(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Span | Instance | None:
        outer: Any = current.get() if parent is None else parent
        owns_instance = outer is None
        if owns_instance:
            outer = _context.open_implicit()
            if outer is None:
                return None
        instance = outer if type(outer) is Instance else outer.instance
        if instance is None or not instance.recording:
            # A run that is not recorded is entered all the same: what is called from here is part of it.
            return outer if owns_instance else None
        if instance.is_terminated:
            instance.check()
        try:
            payload = None
            opened = Span()
            if instance.captures_inputs if captures_inputs is None else captures_inputs:
                payload = payload_of(args, kwargs, instance.input_limits)
            else:
                opened.keeps_payload = False
            opened.instance = instance
            opened.own_id = own_id = instance.new_id()
            if owns_instance:
                opened.owns_instance = True
            opened.keeps_result = instance.captures_outputs if captures_outputs is None else captures_outputs
            title = instance.input_limits.redact.built_in.text(name) if has_title else name
            opened.title = title
            if result_mark is not None and (mark := result_mark()) is not None:
                opened.result_mark = mark
                opened.keeps_result = opened.keeps_result and mark is not Omit
            opened.started_at_ns = started_at = outer.started_at_ns + instance.ticks_ns() - outer.clock
            outer_id = None if outer is instance else outer.own_id
            parts = (own_id, instance.own_id, outer_id, type_name, title, started_at, payload, envelope)
            if payload is None or len(payload) < HEAVY:
                instance.put(_fact(SpanStarted, parts))
            else:
                instance.put(_fact(SpanStarted, parts), heavy=True)
            # Read last, so that what recording costs is not part of the step's duration.
            opened.clock = instance.ticks_ns()
        except Exception:
            _guard.failed("start a span")
            return None
        return opened

    return open_scope


@overload
def span(function: F, /) -> F: ...
@overload
def span(
    type: str | SpanType | None = None,
    /,
    *,
    payload: object = ...,
    parent: Span | Instance | None = None,
    title: str | None = None,
    capture: str | Sequence[str] | None = None,
    capture_inputs: bool | None = None,
    capture_outputs: bool | None = None,
) -> SpanBlock: ...
def span(
    type: Any = None,
    /,
    *,
    payload: object = _NOT_GIVEN,
    parent: Span | Instance | None = None,
    title: str | None = None,
    capture: str | Sequence[str] | None = None,
    capture_inputs: bool | None = None,
    capture_outputs: bool | None = None,
) -> Any:
    """Record a step of the current run.

    As a bare decorator (`@span`), as a decorator with arguments (`@span("tool:search")`), as a `with` block and as
    an `async with` block, which give the open `Span`. Outside of any run the code runs untouched and unrecorded.

    Args:
        type: Name of the span type, or a `SpanType`. Default: the decorated function's qualified name; "span" for
            a block.
        payload: What goes into the step. Default for a decorated function: its arguments by name, without `self`.
        parent: The span or run to hang the step under. Default: what is current.
        title: What people read instead of the type's name.
        capture: Names of the arguments to record, "-name" for all but that; "all" or "none" of payload and result.
            For a block, entries of its `payload`. What the two below say counts more.
        capture_inputs: Whether the payload is recorded. Default: the setting of that name.
        capture_outputs: Whether the result is recorded. Default: the setting of that name.

    Raises:
        InstanceTerminated: As the step begins, if the platform has terminated the run.
    """
    options = _options(_known_parent(parent), capture, capture_inputs, capture_outputs)
    if type is None or issubclass(
        builtins.type(type), (str, SpanType)
    ):  # its type: isinstance would ask the object
        return SpanBlock(type, title, payload, options)
    return SpanBlock(None, title, payload, options)(type)


def _options(parent: Any, chosen: Any, inputs: bool | None, outputs: bool | None) -> _Options:
    if chosen is None:
        return _Options(parent, inputs, outputs, None)
    if chosen in ("all", "none"):
        wanted = chosen == "all"
        return _Options(
            parent, wanted if inputs is None else inputs, wanted if outputs is None else outputs, None
        )
    # Whoever names arguments wants them, whatever the setting says.
    choice = choice_of([chosen] if isinstance(chosen, str) else chosen)
    return _Options(parent, True if inputs is None else inputs, outputs, choice)


def _known_parent(parent: Any) -> Any:
    if parent is None or builtins.type(parent) in (Span, Instance):
        return parent
    _guard.logger.warning("span(parent=...) takes an open Span or Instance; what is current is used instead")
    return None


def _type_of(function: Any, name: str | None, title: str | None) -> SpanType:
    function = inspect.unwrap(plain(function))
    name = name or getattr(function, "__qualname__", None) or builtins.type(function).__name__
    lines = (getattr(function, "__doc__", None) or "").strip().splitlines()
    return of_program(name, title, lines[0] if lines else None)


def _captured_error(error: BaseException | str, limits: Limits, span: str) -> bytes:
    if issubclass(
        type(error), BaseException
    ):  # its type, because isinstance would ask a property of the user's
        return capture_exception(error, limits, span)  # type: ignore[arg-type] # the line above says so
    return capture({"error_type": "Error", "message": error, "stacktrace": ""}, limits, "error", span)


def _with_items(metadata: bytes | None, items: int | None, *, abandoned: bool) -> bytes:
    """Add to *metadata* what is known about a generator's consumer."""
    before = metadata or b"{}"
    facts = [b'"abandoned":true'] if abandoned and b'"abandoned":' not in before else []
    if items is not None and b'"items":' not in before:  # a name that the user has taken stays the user's
        facts.append(b'"items":%d' % items)
    return b"{" + b",".join([*([before[1:-1]] if before != b"{}" else []), *facts]) + b"}"

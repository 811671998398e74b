"""Spans: one step of a run, as what users hold, as a block and as a decorator.

This file is the hot path. Opening a span is: look at the current scope, turn the arguments into bytes, make an id,
hand over one fact; ending it is the same with the result. Nothing of the user's is kept, only bytes.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, overload

import orjson

from prefactor_trace import _context, _guard
from prefactor_trace._arguments import arguments_of, choice_of, chosen_entries, marked_result
from prefactor_trace._capture import capture, capture_exception, capture_object, cleared
from prefactor_trace._context import NO_RESULT, Block, Scope, current
from prefactor_trace._decorate import decorate
from prefactor_trace._ending import ending_of
from prefactor_trace._marks import Omit, Plan, Sensitive, ruled
from prefactor_trace._peek import shorten
from prefactor_trace._record import SpanEnded, SpanStarted
from prefactor_trace._schema import SpanType, by_name, declare, derived, is_about, of_block
from prefactor_trace._stream import Stream
from prefactor_trace._worker import HEAVY
from prefactor_trace._wrap import is_stream
from prefactor_trace.errors import ConfigurationError
from prefactor_trace.instances import Instance
from prefactor_trace.propagation import Handle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefactor_trace._arguments import Choice, PayloadOf
    from prefactor_trace._capture import Limits
    from prefactor_trace._decorate import Decorated
    from prefactor_trace._marks import Rule
    from prefactor_trace._record import FinalStatus
    from prefactor_trace._schema import DerivedType
    from prefactor_trace._wrap import Open
    from prefactor_trace.http.models.agent_instance import DataRisk

    _Fold: TypeAlias = Callable[[Any, Any], Any]

__all__ = ["Span", "SpanBlock", "current_span", "span"]

F = TypeVar("F", bound="Decorated")


class _NotGiven:
    """Stands for an argument that was left out; a class, because that stays the same when it is pickled."""


_NOT_GIVEN: Any = _NotGiven

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
    fold: _Fold | None = None
    _stream: Stream | None = None
    _ended: bool = False
    _status: FinalStatus | None = None
    _payload: bytes | None = None
    _result: bytes | None = None
    _error: bytes | None = None
    _metadata: bytes | None = None
    _usage: bytes | None = None
    title: str = ""
    result_mark: Rule | None = None  # on the return annotation

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
        """Set what came out of the step. Copied now; what is not an object is stored as `{"output": result}`.

        In a decorated generator it is recorded instead of what is yielded.
        """
        if self.instance is not None and self.keeps_result:
            self._result = self._captured(result, self.instance.output_limits)

    def set_metadata(self, metadata: Mapping[str, object]) -> None:
        """Set what else is worth knowing about the step. Copied now; replaces what was set before."""
        if self.instance is not None:
            limits = self.instance.input_limits
            self._metadata = capture_object(metadata, limits, b"metadata", self.title)

    def set_token_usage(self, usage: Mapping[str, int]) -> None:
        """Set what a model's call has used. Copied now; replaces what was set before.

        *usage*: counts by name. Other Prefactor tools read `prompt_tokens`, `completion_tokens` and `total_tokens`.
        """
        if self.instance is not None:
            self._usage = capture_object(usage, self.instance.input_limits, b"usage", self.title)

    def fail(self, error: BaseException | str) -> None:
        """Let the step end as failed because of *error*, though no exception leaves the block."""
        if self.instance is not None:
            self._status = "failed"
            self._error = _captured_error(error, self.instance.output_limits, self.title, self.hidden)

    def cancel(self) -> None:
        """Let the step end as cancelled, unless an exception fails it."""
        if self.instance is not None:
            self._status = "cancelled"

    def _captured(self, result: object, limits: Limits) -> bytes:
        if self.result_mark is not None:
            result = marked_result(result, self.result_mark)
        return capture_object(result, limits, b"output", self.title)

    # -- how it ends ---------------------------------------------------------------------------------------

    def stream(self) -> Callable[[object], None]:
        """Begin to take the items of a generator; return what is told each as it is yielded."""
        instance = self.instance
        assert instance is not None, "a span that is not recorded has no scope"
        rule = self._rule_of_items()
        keeps = self.keeps_result and (self.result_mark is None or rule is not None)
        limits = instance.output_limits if keeps else None
        self._stream = Stream(instance.ticks_ns, limits, self.fold, rule)
        add = self._stream.add
        return add if type(rule) is not Plan or self.fold is not None else lambda item: add(ruled(item, rule))

    def _rule_of_items(self) -> Plan | Sensitive | None:
        """Return what the return annotation says of the items, or of their fields; None also if it hides them."""
        rule = self.result_mark
        return rule.others if type(rule) is Plan else rule if type(rule) is Sensitive else None

    def _folded(self, stream: Stream, returned: object, instance: Instance) -> bytes | None:
        rule = self._rule_of_items()
        if (
            self.result_mark is not None and self.keeps_result and rule is None
        ):  # the items are what is marked
            return self._captured(None, instance.output_limits)
        if rule is not None and returned is not None:
            returned = ruled(returned, rule)
        return stream.result(returned, self.title)

    def returned(self, result: object) -> None:
        """End as complete, or as `fail` or `cancel` have said."""
        self._end("complete", None, result)

    def raised(self, error: BaseException) -> None:
        """End by *error*."""
        self._end(None, error)

    def abandoned(self, items: int) -> None:
        """End because the consumer of a generator went away after *items*."""
        self._end("complete" if items else "cancelled", None, NO_RESULT, abandoned=items > 0)

    def _end(
        self,
        status: FinalStatus | None,
        error: BaseException | None,
        result: object = NO_RESULT,
        *,
        abandoned: bool = False,
    ) -> None:
        instance = self.instance
        if instance is None or self._ended:
            return
        self._ended = True
        try:
            finished_at = self.started_at_ns + instance.ticks_ns() - self.clock
            stream = self._stream
            if stream is not None:
                if self._result is None:
                    self._result = self._folded(stream, None if result is NO_RESULT else result, instance)
            elif result is not NO_RESULT and self.keeps_result:
                self._result = self._captured(result, instance.output_limits)
            if error is not None:
                status, abandoned = self._status_by(error, instance)
            if stream is not None or abandoned:
                self._metadata = _with_items(self._metadata, stream, self.clock, abandoned=abandoned)
            if error is None or status != "failed":
                status = self._status or status
            parts = (self._result, self._error, self._metadata, self._payload, self._usage)
            fact = _fact(SpanEnded, (self.own_id, status or "complete", finished_at, *parts))
            if fact.size < HEAVY:
                instance.put(fact)
            else:
                instance.put(fact, heavy=True)
        except Exception as problem:
            try:  # better without its data than for ever open
                instance.put(SpanEnded(self.own_id, status or "failed", self.started_at_ns))
                if type(problem) is not RecursionError:
                    _guard.failed("end a span")
            except (
                RecursionError
            ):  # the agent has used up the stack: there is no room to do anything about it
                pass
        if self.owns_instance:
            instance.returned(None) if error is None else instance.raised(error)

    def _status_by(self, error: BaseException, instance: Instance) -> tuple[FinalStatus, bool]:
        ending = ending_of(error)
        if ending == "failed":
            self._error = _captured_error(error, instance.output_limits, self.title, self.hidden)
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

    __slots__ = ("_about", "_options", "_payload", "_title", "_type")

    def __init__(
        self,
        span_type: SpanType | str | None,
        title: str | None,
        payload: object,
        options: _Options,
        about: _About,
    ) -> None:
        super().__init__()
        self._about = about
        self._type = span_type
        self._title = None if title is None else _known_title(title)
        self._payload = payload
        self._options = options

    def __enter__(self) -> Span:
        """Begin a step and make it current. Raises InstanceTerminated if the platform has stopped the run."""
        span_type = self._type_of_block()
        opener = _opener(span_type, self._title or span_type.name, self._given_payload, self._options)
        scope = opener((), {})
        self._enter(_unrecorded if scope is None else scope, as_current=scope is not None)
        return scope if isinstance(scope, Span) else _unrecorded

    async def __aenter__(self) -> Span:
        """Begin a step and make it current. Raises InstanceTerminated if the platform has stopped the run."""
        return self.__enter__()

    def __call__(self, target: F) -> F:
        """Return *target* with a step around each call, and declare the step's type; see `span`.

        Raises:
            ConfigurationError: It cannot be called, or an option makes no sense for it.
        """
        decorated: F = decorate(target, self)
        return decorated

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without what is open: an object that was decorated is pickled together with this."""
        return SpanBlock, (self._type, self._title, self._payload, self._options, self._about)

    # -- as a decorator ------------------------------------------------------------------------------------

    def opener(self, function: Any) -> Open:
        """Return what begins the step of each call of *function*."""
        if self._options.fold is not None and not is_stream(function):
            raise ConfigurationError(
                "span(fold=...) is for generators; a function that yields nothing has no items"
            )
        span_type = declare(
            derived(
                function,
                self._type,
                title=self._title,
                template=self._about.template,
                data_risk=self._about.risk,
                has_payload=self._payload is not _NOT_GIVEN,
                has_gaps=self._options.choice is not None,
                has_fold=self._options.fold is not None,
            )
        )
        name = self._title or span_type.name
        payload_of, result_mark, hidden = arguments_of(function, self._options.choice, name)
        if self._payload is not _NOT_GIVEN:
            payload_of = self._given_payload
        return _opener(span_type, name, payload_of, self._options, result_mark=result_mark, hidden=hidden)

    def over(self, inner: object) -> SpanBlock | None:
        """Return the one decorator for two: what this one gives holds, the rest is as *inner* says."""
        if not isinstance(inner, SpanBlock):
            return None
        span_type, title, payload, options, about = inner.__reduce__()[1]
        return SpanBlock(
            span_type if self._type is None else self._type,
            title if self._title is None else self._title,
            payload if self._payload is _NOT_GIVEN else self._payload,
            _over(self._options, options),
            _over(self._about, about),
        )

    def for_class(self, kind: type) -> None:
        """Refuse what belongs to one step and not to all methods of a class."""
        of_one = (self._type, self._title, self._options.fold, self._options.choice, *self._about)
        if self._payload is not _NOT_GIVEN or any(each is not None for each in of_one):
            raise ConfigurationError(
                f"a type, title, template, risk, payload, choice of arguments or fold cannot be that of all methods of "
                f"{kind.__qualname__}; give them to @span on the methods"
            )

    def _type_of_block(self) -> SpanType | DerivedType:
        template, risk = self._about
        given = self._type or "span"
        if isinstance(given, SpanType):
            return declare(given)
        if template is None and risk is None:
            return by_name(given)
        return declare(of_block(given, template, risk))

    def _given_payload(self, _args: tuple[Any, ...], _kwargs: dict[str, Any], limits: Limits) -> bytes | None:
        if self._payload is _NOT_GIVEN:
            return None
        payload = chosen_entries(self._payload, self._options.choice)
        return capture_object(payload, limits, b"input", self._title or "")


class _Options(NamedTuple):
    """What a block and a decorator have in common. None: what the settings say, or what is current."""

    parent: Scope | None = None
    captures_inputs: bool | None = None
    captures_outputs: bool | None = None
    fold: _Fold | None = None
    choice: Choice | None = None  # of the payload's entries


class _About(NamedTuple):
    """What is said about the type, beside its name and title. None: nothing."""

    template: str | None = None
    risk: Mapping[str, Any] | DataRisk | None = None


def _over(ours: Any, theirs: Any) -> Any:
    """Return *ours*, a tuple with names, and where it says None, what *theirs* says."""
    return ours._make(other if own is None else own for own, other in zip(ours, theirs, strict=True))


def _opener(
    span_type: SpanType | DerivedType,
    name: str,
    payload_of: PayloadOf,
    options: _Options,
    *,
    result_mark: Callable[[], Rule | None] | None = None,
    hidden: Callable[[tuple[Any, ...], dict[str, Any]], tuple[str, ...]] | None = None,
    quiet: bool = False,
) -> Callable[[tuple[Any, ...], dict[str, Any]], Span | Instance | None]:
    """Return a function that begins a span; it raises InstanceTerminated and nothing else.

    It returns None if nothing is recorded, and the instance if it has opened one of which nothing is.
    *quiet*: see `SpanStarted`.
    """
    type_name, envelope = span_type.name, span_type.envelope
    parent, captures_inputs, captures_outputs, fold, _ = options
    has_title = name is not type_name

    def open_scope(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Span | Instance | None:
        outer: Any = _context.current.get() if parent is None else parent
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
            if outer.call is not None:
                opened.call = outer.call
            opened.own_id = own_id = instance.new_id()
            if owns_instance:
                opened.owns_instance = True
            opened.keeps_result = instance.captures_outputs if captures_outputs is None else captures_outputs
            if fold is not None:
                opened.fold = fold
            if hidden is not None or outer.hidden:
                opened.hidden = outer.hidden if hidden is None else (*outer.hidden, *hidden(args, kwargs))
            title = instance.input_limits.redact.built_in.text(name) if has_title else name
            opened.title = title
            if result_mark is not None and (mark := result_mark()) is not None:
                opened.result_mark = mark
                opened.keeps_result = opened.keeps_result and mark is not Omit
            opened.started_at_ns = started_at = outer.started_at_ns + instance.ticks_ns() - outer.clock
            outer_id = None if outer is instance else outer.own_id
            parts = (
                own_id,
                instance.own_id,
                outer_id,
                type_name,
                title,
                started_at,
                payload,
                envelope,
                quiet,
            )
            if payload is None or len(payload) < HEAVY:
                instance.put(_fact(SpanStarted, parts))
            else:
                instance.put(_fact(SpanStarted, parts), heavy=True)
            # Read last, so that what recording costs is not part of the step's duration.
            opened.clock = instance.ticks_ns()
        except RecursionError:  # the agent has used up the stack, as its own error will say
            return None
        except Exception:
            _guard.failed("start a span")
            return None
        return opened

    return open_scope


def open_quietly(
    span_type: SpanType, name: str, payload_of: Callable[[], object], parent: Scope | None = None
) -> Span | Instance | None:
    """Begin a step that is not shown before it has ended (see `SpanStarted`), without making it current.

    For integrations. Returns None if nothing is recorded, and the run if one was opened of which nothing is: whoever
    gets a scope ends it. *payload_of* is called only if the payload is wanted. Raises InstanceTerminated.
    """
    title = _known_title(name) or span_type.name

    def captured(_args: tuple[Any, ...], _kwargs: dict[str, Any], limits: Limits) -> bytes:
        return capture_object(payload_of(), limits, b"input", title)

    return _opener(declare(span_type), title, captured, _Options(parent), quiet=True)((), {})


@overload
def span(function: F, /) -> F: ...
@overload
def span(
    type: str | SpanType | None = None,
    /,
    *,
    payload: object = ...,
    parent: Span | Instance | Handle | None = None,
    title: str | None = None,
    capture: str | Sequence[str] | None = None,
    capture_inputs: bool | None = None,
    capture_outputs: bool | None = None,
    template: str | None = None,
    risk: Mapping[str, Any] | DataRisk | None = None,
    fold: Callable[[Any, Any], Any] | None = None,
) -> SpanBlock: ...
def span(
    type: Any = None,
    /,
    *,
    payload: object = _NOT_GIVEN,
    parent: Span | Instance | Handle | None = None,
    title: str | None = None,
    capture: str | Sequence[str] | None = None,
    capture_inputs: bool | None = None,
    capture_outputs: bool | None = None,
    template: str | None = None,
    risk: Mapping[str, Any] | DataRisk | None = None,
    fold: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Record a step of the current run.

    As a bare decorator (`@span`), as a decorator with arguments (`@span("tool:search")`), as a `with` block and as
    an `async with` block, which give the open `Span`. Outside of any run the code runs untouched and unrecorded.

    It decorates functions of every kind, methods (above or below `classmethod`, `staticmethod`, `property`), partials
    and other objects that can be called, and classes, of which it records the public methods in their own body;
    properties, inherited methods and those decorated already stay as they are. Decorated twice, a function is still
    one step: what the outer `span` gives holds, the rest is as the inner one says. A plain function that returns a
    coroutine or a generator is over as it returns.

    The step of a generator ends when its consumer is done with it. Its result are the items, as they were when they
    were yielded: strings joined, the size of all bytes, else the first 1,000 in a list. A return value stands beside
    them: `{"output": items, "returned": value}`. The metadata tell `items` and `time_to_first_item_ms`.

    Args:
        type: Name of the span type, or a `SpanType`. Default: the decorated function's qualified name; "span" for
            a block.
        payload: What goes into the step. Default for a decorated function: its arguments by name, without `self`.
        parent: The span or run to hang the step under. Default: what is current.
        title: What people read instead of the type's name; the first 1,000 characters.
        capture: Names of the arguments to record, "-name" for all but that; "all" or "none" of payload and result.
            For a block, entries of its `payload`. What the two below say counts more.
        capture_inputs: Whether the payload is recorded. Default: the setting of that name.
        capture_outputs: Whether the result is recorded. Default: the setting of that name.
        template: Liquid text for the type's one-line summary, as in `SpanType`, which goes before it.
        risk: What steps of this type do and with what data, as `data_risk` in `SpanType`, which goes before it.
        fold: Makes the result of a generator: `fold(so_far, item)` is called with each item as it is yielded and
            returns the next *so_far*, which is None at first. If it raises, it is not called again, and the metadata
            say so as `fold_error`. How much *so_far* grows is up to you.

    Raises:
        InstanceTerminated: As the step begins, if the platform has terminated the run.
        ConfigurationError: As a decorator, on what cannot be called or with an option that makes no sense there.
    """
    if fold is not None and not callable(fold):
        raise ConfigurationError("span(fold=...) takes a function of what is folded so far and the next item")
    options = _options(_known_parent(parent), capture, capture_inputs, capture_outputs, fold)
    about = _NOTHING_ABOUT if template is None and risk is None else _known_about(template, risk)
    # Its type: isinstance would ask the object.
    if type is None or issubclass(builtins.type(type), SpanType):
        return SpanBlock(type, title, payload, options, about)
    if issubclass(builtins.type(type), str):  # of a subclass as well, without its code
        return SpanBlock(str.__str__(type), title, payload, options, about)
    return SpanBlock(None, title, payload, options, about)(type)


_NOTHING_ABOUT = _About()


def _known_about(template: Any, risk: Any) -> _About:
    if is_about(template, risk):
        return _About(template, risk)
    _guard.logger.warning(
        "span(template=...) takes a text, span(risk=...) a DataRisk or its parts as an object; left out"
    )
    return _NOTHING_ABOUT


def _options(
    parent: Any, chosen: Any, inputs: bool | None, outputs: bool | None, fold: _Fold | None
) -> _Options:
    choice = None
    if chosen in ("all", "none"):
        wanted = chosen == "all"
        inputs, outputs = wanted if inputs is None else inputs, wanted if outputs is None else outputs
    elif chosen is not None:  # whoever names arguments wants them, whatever the setting says
        choice = choice_of([chosen] if isinstance(chosen, str) else chosen)
        inputs = True if inputs is None else inputs
    return _Options(parent, inputs, outputs, fold, choice)


_LONGEST_TITLE = 1_000  # characters
_ROOM_FOR_LENGTH = 40  # of them, for how long it was


def _known_title(title: Any) -> str | None:
    """Return *title* as records can have it: text without lone surrogates, of a bounded length."""
    if not issubclass(builtins.type(title), str):
        _guard.refused("take a title", "it is no text", "span(title=...) takes text; the type's is shown")
        return None
    known = shorten(title, _LONGEST_TITLE)
    return known if len(known) <= _LONGEST_TITLE else shorten(title, _LONGEST_TITLE - _ROOM_FOR_LENGTH)


def _known_parent(parent: Any) -> Any:
    if parent is None or builtins.type(parent) in (Span, Instance):
        return parent
    if builtins.type(parent) is Handle:
        return parent.place()
    _guard.logger.warning(
        "span(parent=...) takes an open Span, an Instance or a Handle; what is current is used instead"
    )
    return None


def _captured_error(error: BaseException | str, limits: Limits, span: str, hidden: tuple[str, ...]) -> bytes:
    # Its type, because isinstance would ask a property of the user's.
    if issubclass(type(error), BaseException):
        return capture_exception(error, limits, span, hidden)  # type: ignore[arg-type] # the line above says so
    if hidden and issubclass(type(error), str):
        error = cleared(str.__getitem__(error, slice(None)), hidden)  # type: ignore[index] # it is a text
    return capture({"error_type": "Error", "message": error, "stacktrace": ""}, limits, "error", span)


def _with_items(metadata: bytes | None, stream: Stream | None, began: int, *, abandoned: bool) -> bytes:
    """Add to *metadata* what is known about a generator and its consumer."""
    before = metadata or b"{}"
    facts = {b"abandoned": b"true"} if abandoned else {}
    if stream is not None:
        facts[b"items"] = b"%d" % stream.count
        if stream.count:
            facts[b"time_to_first_item_ms"] = b"%.3f" % ((stream.first_at - began) / 1e6)
        if stream.fold_error is not None:
            facts[b"fold_error"] = stream.fold_error
    # A name that the user has taken stays the user's.
    taken = orjson.loads(before)
    parts = [b'"%b":%b' % (name, fact) for name, fact in facts.items() if name.decode() not in taken]
    return b"{" + b",".join([*([before[1:-1]] if before != b"{}" else []), *parts]) + b"}"

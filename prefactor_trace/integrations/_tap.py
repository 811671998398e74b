"""What happens at a call of an SDK, with all control flow in this one place.

An integration says where the SDK is tapped and how its values are read, in data and pure functions. Everything else
is here: to open a span, to let the call go on as if nobody were watching, to see how it ends, and to end the span by
that. What the SDK returns is returned: no value of its own is replaced by one of ours.

Theory of operation. A `Tap` that *asks* opens a `Call` around a function. How the call ends depends on what comes back:

- a value: the reader takes it `whole`, and the call is over;
- a generator or coroutine: it goes on inside one of the same kind that passes everything through, both ways;
- an HTTP response, which another tap *hears*: its body is read already, or is observed while the user reads it, in
  whatever way the SDK offers. The user's own reading drives it; nothing is read ahead, and nothing is read twice. If
  the SDK gives out a stream object, its inner iterator is watched as well: it knows what the user has been given, and
  which exception the user sees;
- a stream object of the SDK whose own steps are tapped: what they give out is added, and how they end, ends the call.

Who ends a call first, ends it. A model's call inside a call (a framework's around an SDK's) takes the tokens: those
around it keep the structure, so the same tokens are never counted twice.

Whatever fails in here fails for the record only. After several failures in a row an integration switches itself off.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
import types
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from prefactor_trace import _context, _guard, _wrap
from prefactor_trace._context import NO_RESULT, current, leave
from prefactor_trace.integrations import _price
from prefactor_trace.integrations._answer import Answer
from prefactor_trace.spans import Span, open_quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefactor_trace._schema import SpanType

logger = logging.getLogger("prefactor_trace")

# So many calls in a row that could not be read: what is there is not what the integration was written for.
_FAILURES_BORNE = 5


class Reply(NamedTuple):
    """What is known of an answer, in the words of this library.

    Attributes:
        result: What came out, as a JSON object.
        usage: Token counts: `prompt_tokens`, `completion_tokens`, `total_tokens` and what else is given.
        metadata: What else is worth knowing.
        error: What went wrong, if the answer itself says so.
        is_whole: Whether the answer has come to its own end.
        priced_as: Provider and model to look the price up by; None: it has no price.
    """

    result: Mapping[str, Any] | None = None
    usage: Mapping[str, int] | None = None
    metadata: Mapping[str, Any] = {}
    error: str | None = None
    is_whole: bool = True
    priced_as: tuple[str, str] | None = None


class Reader(Protocol):
    """Reads what comes back of one call. One is made for each call."""

    has_token: bool
    """Whether anything of the answer itself was among what has been added."""

    def whole(self, value: Any, /) -> None:
        """Take an answer that comes in one piece."""

    def add(self, event: Any, /) -> None:
        """Take the next piece of an answer that comes as a stream."""

    def reply(self) -> Reply:
        """Return what is known so far."""


class Asked(NamedTuple):
    """What is known as a call begins. *inputs* is called at once, but only if somebody wants to know.

    *is_partial*: the inputs have parts that can be read only once, by the SDK: they are told with the response.
    *is_model*: what is called is a model, so the calls around it leave the tokens to it.
    """

    type: SpanType
    name: str
    inputs: Callable[[], Mapping[str, Any]]
    reader: Reader
    is_partial: bool = False
    is_model: bool = True


class Heard(NamedTuple):
    """An HTTP response (of `httpx` or `httpx2`) that the current call has had, and what it says about it.

    *inputs*: what was sent, for a call that was partial.
    """

    response: Any
    metadata: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, Any]]


class Tap(NamedTuple):
    """One function of an SDK, and the pure functions that read its calls. Each takes `args` and `kwargs`.

    Attributes:
        where: "package.module:Class.method" or "package.module:function"; see `_patch.place`.
        asks: Reads a call of it that is to be recorded; None for one that is not.
        hears: Finds the response that the call around it has had.
        failed: Reads what is worth knowing of an exception that has left the call.
        iterator: Attribute of a stream object of the SDK that holds the iterator behind it.
        stream: What it does with the stream object that it is a method of, and that a call has returned: it "gives"
            the next item, or "closes" it.
        is_optional: Not every version has it.
        wraps: Instead of all that: takes the function and the switch, and returns what stands in its place.
    """

    where: str
    asks: Callable[[tuple[Any, ...], dict[str, Any]], Asked | None] | None = None
    hears: Callable[[tuple[Any, ...], dict[str, Any]], Heard | None] | None = None
    failed: Callable[[BaseException], Mapping[str, Any]] | None = None
    iterator: str | None = None
    stream: Literal["gives", "closes"] | None = None
    is_optional: bool = False
    wraps: Callable[[Any, Switch], Any] | None = None


class Switch:
    """Whether the taps of one integration work, those that were placed at one time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_on = True
        self.has_given_up = False
        self._failures = 0

    def failed(self, what: str) -> None:
        """Count the exception being handled, which came of reading *what*; after several, switch off and say so."""
        self._failures += 1
        if self._failures >= _FAILURES_BORNE and self.is_on:
            self.is_on, self.has_given_up = False, True
            logger.warning(
                "%s: %d calls in a row could not be read, so its calls are not recorded any more",
                self.name,
                self._failures,
            )
        _guard.failed(f"read {what} of {self.name}")

    def succeeded(self) -> None:
        """Note a call that was read."""
        self._failures = 0


class Call:
    """One call on its way: its span, and what reads what comes back. None of the methods raises.

    Callbacks of a framework can drive one by hand: `open_call`, `enter` and `leave` around the inner work, `add` or
    `whole`, and in the end `ended`, `raised` or `abandoned`.
    """

    def __init__(self, scope: Any, asked: Asked, switch: Switch, tap: Tap | None) -> None:
        self.scope = scope
        self._reader: Any = asked.reader
        self._is_partial = asked.is_partial
        self._switch = switch
        self._tap = tap
        self._began = time.perf_counter_ns()
        self._first_token: int | None = None
        self.is_timed = True
        """Whether pieces are added as they come."""
        self._metadata: dict[str, Any] = {}
        self._answer: Answer | None = None
        self._response: Any = None
        self._is_read = False
        self._is_over = False
        self.has_failed = False
        """Whether a part of it could not be read."""
        self._items = 0
        self.items_given: int | None = None
        """How many pieces the user has been given, if that can be seen; what was received can be more."""
        self.is_inside = True
        """Whether the SDK is at work: what ends meanwhile is not the end the user sees."""
        self.is_outer = False
        """Whether there is a model's call inside it: then the tokens are that one's."""
        self._before: tuple[Any] | None = None
        self._outer: Call | None = scope.call
        scope.call = self  # and so of all that is opened inside
        outer = self._outer
        while asked.is_model and outer is not None and not outer.is_outer:
            outer.is_outer = True
            outer = outer._outer  # noqa: SLF001 - of the same class

    def enter(self) -> Any:
        """Make the call current; return what `leave` takes."""
        return current.set(self.scope)

    def leave(self, tokens: Any) -> None:
        """Make current again what was so before."""
        leave(tokens, self.scope)

    def become_current(self) -> None:
        """Make the call current until `step_back`, of which nothing is sure: neither the order nor the context."""
        here = current.get()
        if here is not self.scope:
            self._before = (here,)
            self.enter()

    def step_back(self) -> None:
        """Make current what was so before `become_current` and is still open, if this call is current here."""
        here: Any = current.get()
        while here is not None and (call := here.call) is not None and call.scope is here:
            if call._before is None or not (call is self or call._is_over):  # noqa: SLF001 - of the same class
                return
            (here,) = call._before  # noqa: SLF001
            current.set(here)

    @property
    def is_innermost(self) -> bool:
        """Whether no other call has become current inside it, here."""
        here = current.get()
        return here is not None and here.call is self

    def set_inputs(self, inputs: Callable[[], Mapping[str, Any]]) -> None:
        """Replace what went in, for a call of which it is known only later."""
        if type(self.scope) is Span:
            self.scope.set_payload(self._guarded(inputs) or {})

    def note(self, metadata: Mapping[str, Any]) -> None:
        """Keep *metadata* for the span."""
        self._metadata.update(metadata)

    def whole(self, value: Any) -> None:
        """Take an answer that came in one piece."""
        reader = self._reader
        if reader is not None:  # it is not over
            self._guarded(lambda: reader.whole(value))

    def add(self, event: Any) -> None:
        """Take the next piece of an answer."""
        reader = self._reader
        if reader is None:  # it is over
            return
        self._items += 1
        try:
            reader.add(event)
        except Exception:
            self.failed_to_read("an answer")
        if self.is_timed and self._first_token is None and reader.has_token:
            self._first_token = time.perf_counter_ns()

    def stream(self) -> Callable[[object], None]:
        """Return what takes each piece of a generator."""
        return self.add

    def returned(self, _value: object) -> None:
        """End: a generator has come to its own end."""
        self.ended()

    def ended(self, *, is_whole: bool = True) -> None:
        """End: the answer is here. *is_whole*: and it was read to its end."""
        self._end(lambda: self.scope.returned(NO_RESULT), is_whole=is_whole)

    def raised(self, error: BaseException) -> None:
        """End by *error*."""
        if self._tap is not None and self._tap.failed is not None and isinstance(error, Exception):
            self.note(self._guarded(self._tap.failed, error) or {})
        self._end(lambda: self.scope.raised(error), is_raised=True)

    def stopped(self, error: BaseException) -> None:
        """End by what a step of a stream has raised: that there are no more, or an error."""
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            self.ended()
        else:
            self.raised(error)

    def abandoned(self, _items: int = 0) -> None:
        """End because nobody wants the rest of the answer."""
        items = self._items if self.items_given is None else self.items_given
        self.note({"items": items})
        self._end(lambda: self.scope.abandoned(items), is_whole=False)

    # -- what comes back -----------------------------------------------------------------------------------

    def hears(self, switch: Switch) -> bool:
        """Say whether a response that the SDK of *switch* has now is the one to this call."""
        return self.is_inside and switch.name == self._switch.name and switch.is_on

    def hear(self, heard: Heard) -> None:
        """Watch the response that the call has had; of several, the last one counts."""
        response = heard.response
        self.note(heard.metadata)
        if self._is_partial and type(self.scope) is Span:
            self._is_partial = False
            self.scope.set_payload(heard.inputs())
        answer = self._answer = Answer(self)
        self._response = response
        self._is_read = response.is_closed
        if not self._is_read:
            if response.headers.get("content-encoding", "identity") != "identity":
                answer.unpack = _unpacker(response)
            response.stream = _observed(response.stream, self, answer)

    def settle(self, value: Any) -> Any:
        """Look at what the call has returned, and return it: ended, or with an end to be seen later."""
        try:
            return self._settled(value)
        except Exception:
            self.failed_to_read("a result")
            self.ended()
            return value
        finally:
            self.is_inside = False

    def _settled(self, value: Any) -> Any:
        if self._answer is not None:
            self._settle_answer(self._answer, value)
            return value
        if inspect.isgenerator(value):
            return _passed(_passing, value, self)
        if inspect.isasyncgen(value):
            return _passed(_passing_async, value, self)
        if _gives(type(value)):
            vars(value)[_HOLD] = _Hold(self)
            return value
        self.whole(value)
        self.ended()
        return value

    def _settle_answer(self, answer: Answer, value: Any) -> None:
        response, self._response = self._response, None
        if answer.is_over:
            self.ended()
            return
        name = self._tap.iterator if self._tap is not None else None
        iterator = (
            getattr(value, name, None) if name and getattr(value, "response", None) is response else None
        )
        if iterator is not None:
            # A stream object of the SDK: what it gives out, and how it ends, is what the user sees.
            setattr(value, name, _watched(iterator, self))  # type: ignore[arg-type]
            self.items_given = 0
        if self._is_read:  # so there is nothing to observe
            self.is_timed = False
            answer.feed(response.content)
            if iterator is None:
                answer.close()
                self.ended()

    def body_stopped(self, answer: Answer, error: BaseException) -> None:
        """Hear that the observed body has come to its end, or that reading it has failed."""
        answer.is_over = isinstance(error, (StopIteration, StopAsyncIteration))
        if answer is self._answer and not self.is_inside:
            self.stopped(error)

    def body_closed(self, answer: Answer) -> None:
        """Hear that the observed body was closed, or is gone."""
        if answer is self._answer and not self.is_inside and not self._is_over:
            # The end of the answer may be in it without having been asked for: some SDKs stop at the last event.
            self._guarded(answer.close)
            self.ended() if self._reply().is_whole else self.abandoned()

    def dropped(self) -> None:
        """Hear that nobody can read the stream any more: who had it whole from the start, never closes its body."""
        self.is_inside = False
        if self._answer is not None:
            self.body_closed(self._answer)
        elif not self._is_over:
            self.ended() if self._reply().is_whole else self.abandoned()

    # -- inside --------------------------------------------------------------------------------------------

    def _end(self, end: Callable[[], None], *, is_whole: bool = True, is_raised: bool = False) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            if type(self.scope) is Span and self.scope.instance is not None:
                if self._answer is not None:
                    self._answer.close()
                self._tell(self.scope, self._reply(), is_whole=is_whole, is_raised=is_raised)
        except Exception:
            self.failed_to_read("an answer")
        if not self.has_failed:
            self._switch.succeeded()
        end()
        # Contexts live long: those of a kept connection, say. What was answered must not.
        self._reader = self._answer = None

    def _tell(self, span: Span, reply: Reply, *, is_whole: bool, is_raised: bool) -> None:
        metadata = {**self._metadata, **reply.metadata}
        if self._first_token is not None:
            metadata["time_to_first_token_ms"] = round((self._first_token - self._began) / 1e6, 3)
        trouble = reply.error or (self._answer.trouble if self._answer is not None else None)
        # That a call has failed before there was an answer says all.
        is_begun = reply.result is not None or not (is_raised or trouble or self.has_failed)
        if is_whole and is_begun and not reply.is_whole:
            metadata["incomplete"] = True
        if reply.result is not None:
            span.set_result(reply.result)
        if reply.usage and not self.is_outer:
            span.set_token_usage(reply.usage)
            cost = _price.cost(reply.priced_as, reply.usage)
            if cost is not None:
                metadata["cost"] = cost
        if metadata:
            span.set_metadata(metadata)
        if trouble is not None:
            span.fail(trouble)

    def _reply(self) -> Reply:
        reader = self._reader
        return (self._guarded(reader.reply) if reader is not None else None) or Reply(is_whole=False)

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception:
            self.failed_to_read("an answer")
            return None

    @property
    def awaits_token(self) -> bool:
        """Whether nothing of the answer itself has come yet."""
        return self.is_timed and self._first_token is None

    def failed_to_read(self, what: str) -> None:
        """Count the exception being handled, which came of reading *what* of the call."""
        if self.has_failed:  # once a call: it is calls that are counted
            return
        self.has_failed = True
        self._switch.failed(what)


def open_call(asked: Asked, switch: Switch, tap: Tap | None = None, parent: Any = None) -> Call | None:
    """Begin a span for a call; None if it is not recorded. Raises InstanceTerminated, and nothing else."""
    unread: list[str] = []

    def inputs() -> Mapping[str, Any]:
        try:
            return asked.inputs()
        except Exception:
            unread.append("a request")
            switch.failed("a request")
            return {}

    scope = open_quietly(asked.type, asked.name, inputs, parent)
    if scope is None:
        return None
    call = Call(scope, asked, switch, tap)
    call.has_failed = bool(unread)
    return call


# -- around functions --------------------------------------------------------------------------------------


def tapped(function: Callable[..., Any], tap: Tap, switch: Switch) -> Any:
    """Return *function*, of an SDK, with *tap* at it."""
    if tap.wraps is not None:
        return tap.wraps(function, switch)
    if tap.hears is not None:
        return _hearing(function, tap.hears, switch)
    if tap.stream == "closes":
        return _closing(function)
    if tap.stream == "gives":
        return (_async_giving if inspect.iscoroutinefunction(function) else _giving)(function)
    if inspect.iscoroutinefunction(function):
        return _coroutine_function(function, tap, switch)
    return _function(function, tap, switch)


def _asked(tap: Tap, switch: Switch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if not switch.is_on:
        return None
    try:
        asked = tap.asks(args, kwargs)  # type: ignore[misc] # it is no tap that hears
    except Exception:
        switch.failed("a call")
        return None
    return None if asked is None else open_call(asked, switch, tap)


def _function(function: Callable[..., Any], tap: Tap, switch: Switch) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = _asked(tap, switch, args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        tokens = call.enter()
        try:
            value = function(*args, **kwargs)
        except BaseException as error:
            call.leave(tokens)
            call.raised(error)
            raise
        call.leave(tokens)
        return _awaited(value, call) if inspect.iscoroutine(value) else call.settle(value)

    return wrapper


def _coroutine_function(function: Callable[..., Any], tap: Tap, switch: Switch) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = _asked(tap, switch, args, kwargs)
        if call is None:
            return await function(*args, **kwargs)
        return await _awaited(function(*args, **kwargs), call)

    return wrapper


async def _awaited(coroutine: Any, call: Call) -> Any:
    tokens = call.enter()
    try:
        value = await coroutine
    except BaseException as error:
        call.leave(tokens)
        call.raised(error)
        raise
    call.leave(tokens)
    return call.settle(value)


def _hearing(function: Callable[..., Any], hears: Any, switch: Switch) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = current.get()
        call = None if scope is None else scope.call
        if call is not None and call.hears(switch):
            try:
                heard = hears(args, kwargs)
                if heard is not None:
                    call.hear(heard)
            except Exception:
                call.failed_to_read("a response")
        return function(*args, **kwargs)

    return wrapper  # of a coroutine function, too: what it returns is the same coroutine


# -- around what comes back --------------------------------------------------------------------------------


class _Watched:
    """The iterator behind a stream object of an SDK, watched. It has no hold on the stream, so makes no cycle."""

    def __init__(self, inner: Any, call: Call, step: Callable[[], Any]) -> None:
        self._inner = inner
        self._call = call
        self._next = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __del__(self) -> None:
        self._call.dropped()


class _Items(_Watched):
    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        call = self._call
        call.is_inside = True
        try:
            item = self._next()
        except BaseException as error:
            call.stopped(error)
            raise
        finally:
            call.is_inside = False
        call.items_given += 1  # type: ignore[operator] # a number since there are items
        return item


class _AsyncItems(_Watched):
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        call = self._call
        call.is_inside = True
        try:
            item = await self._next()
        except BaseException as error:
            call.stopped(error)
            raise
        finally:
            call.is_inside = False
        call.items_given += 1  # type: ignore[operator] # a number since there are items
        return item


def _watched(iterator: Any, call: Call) -> _Watched:
    if hasattr(iterator, "__anext__"):
        return _AsyncItems(iterator, call, iterator.__anext__)
    return _Items(iterator, call, iterator.__next__)


# Where a stream object of an SDK holds its call, if its steps are tapped.
_HOLD = "_prefactor_trace_call"


class _Hold:
    """A call in its stream object: it goes when that goes."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call.dropped()


def _held(stream: Any) -> Call | None:
    """Return the call that has returned *stream*, if it is recorded."""
    hold = getattr(stream, "__dict__", {}).get(_HOLD)
    return None if hold is None else hold.call


def _gives(kind: type) -> bool:
    """Say whether the steps of a stream object are tapped."""
    return any(
        getattr(getattr(kind, name, None), "gives_to_a_call", False) for name in ("__next__", "__anext__")
    )


def _giving(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapper(stream: Any) -> Any:
        call = _held(stream)
        if call is None or call.is_inside:  # one step may go by another
            return function(stream)
        tokens = call.enter()
        call.is_inside = True
        try:
            item = function(stream)
        except BaseException as error:
            call.stopped(error)
            raise
        finally:
            call.is_inside = False
            call.leave(tokens)
        call.add(item)
        return item

    wrapper.gives_to_a_call = True  # type: ignore[attr-defined]
    return wrapper


def _async_giving(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    async def wrapper(stream: Any) -> Any:
        call = _held(stream)
        if call is None or call.is_inside:  # one step may go by another
            return await function(stream)
        tokens = call.enter()
        call.is_inside = True
        try:
            item = await function(stream)
        except BaseException as error:
            call.stopped(error)
            raise
        finally:
            call.is_inside = False
            call.leave(tokens)
        call.add(item)
        return item

    wrapper.gives_to_a_call = True  # type: ignore[attr-defined]
    return wrapper


def _closing(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapper(stream: Any, *args: Any, **kwargs: Any) -> Any:
        call = _held(stream)
        if call is not None:
            call.dropped()
        return function(stream, *args, **kwargs)

    return wrapper  # of a coroutine function, too: what it returns is the same coroutine


class _Body:
    """The byte stream of a response, as it is, with somebody who sees what the user reads."""

    _inner: Any = None
    _call: Any = None
    _seen: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Any:
        return _Bytes(self._inner.__iter__(), self._call, self._seen)

    def __aiter__(self) -> Any:
        return _AsyncBytes(self._inner.__aiter__(), self._call, self._seen)

    def close(self) -> None:
        self._call.body_closed(self._seen)
        self._inner.close()

    async def aclose(self) -> None:
        self._call.body_closed(self._seen)
        await self._inner.aclose()

    def __del__(self) -> None:
        if self._call is not None:  # nobody has to close a response, or to read it
            self._call.body_closed(self._seen)


class _Bytes:
    def __init__(self, inner: Any, call: Call, answer: Answer) -> None:
        self._call, self._answer = call, answer
        self._next, self._feed = inner.__next__, answer.feed

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        try:
            data = self._next()
        except BaseException as error:
            self._call.body_stopped(self._answer, error)
            raise
        self._feed(data)
        return data


class _AsyncBytes:
    def __init__(self, inner: Any, call: Call, answer: Answer) -> None:
        self._call, self._answer = call, answer
        self._next, self._feed = inner.__anext__, answer.feed

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        try:
            data = await self._next()
        except BaseException as error:
            self._call.body_stopped(self._answer, error)
            raise
        self._feed(data)
        return data


@functools.lru_cache(maxsize=32)
def _body_class(bases: tuple[type, ...]) -> type:
    return type("ObservedBody", (_Body, *bases), {})


def _observed(stream: Any, call: Call, answer: Answer) -> Any:
    """Return *stream* watched, of the same abstract kinds: a response asks its stream for them."""
    kinds = ("SyncByteStream", "AsyncByteStream")
    bases = tuple(each for each in type(stream).__mro__ if each.__name__ in kinds)
    kind: Any = _body_class(bases)
    body = kind.__new__(kind)
    body._inner, body._call, body._seen = stream, call, answer  # noqa: SLF001 - being made
    return body


def _unpacker(response: Any) -> Callable[[bytes], bytes]:
    """Return what unpacks all of the body, by the HTTP library's own means: it knows which packings it can undo."""
    kind, packing = type(response), response.headers["content-encoding"]

    def unpack(data: bytes) -> bytes:
        unpacked: bytes = kind(200, headers={"content-encoding": packing}, content=data).content
        return unpacked

    return unpack


def _given(inner: Any, _call: Call) -> Any:
    return inner


def _its_call(args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return args[1]


class _Current:
    """The variable of `_context`, in which a call is its span."""

    get = staticmethod(current.get)
    reset = staticmethod(current.reset)

    def set(self, inside: Any) -> Any:
        return current.set(inside.scope if type(inside) is Call else inside)


_ours = types.SimpleNamespace(**{**vars(_context), "current": _Current()})
# A generator of an SDK's, inside one of the same kind that passes everything through, both ways.
_passing = _wrap.generator(_given, _its_call, has_items=True, ours=_ours)
_passing_async = _wrap.async_generator(_given, _its_call, ours=_ours)


def _passed(make: Any, inner: Any, call: Call) -> Any:
    outer = make(inner, call)
    outer.__name__, outer.__qualname__ = inner.__name__, inner.__qualname__
    return outer

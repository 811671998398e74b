"""Pydantic AI: runs of agents, requests to models, tools, outputs and their retries; sync, async and streams.

The ways it offers are not taken. `Agent.instrument_all` holds one setting for all, which is the user's, and takes providers of
OpenTelemetry; its capabilities belong to one agent or one run, are seen by the others, and change which way the run takes.
So four methods are tapped that every way of running an agent goes through. The user's `Instrumentation`, Logfire's
too, works beside that and tells us nothing.

A request leaves tokens, cost and contents to the call of an SDK inside it that is recorded (`openai`, `anthropic`, …); if
there is none, they are the request's.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace.integrations._span_types import TEXT, step_type, tool_type
from prefactor_trace.integrations._tap import Asked, Reply, Tap, open_call
from prefactor_trace.integrations._values import count, counts, present, some_dict, some_list, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prefactor_trace._schema import SpanType
    from prefactor_trace.integrations._tap import Call, Switch

REQUIRES = "pydantic-ai-slim>=1.107,<3"


def _type(kind: str, title: str, description: str, template: str, **properties: Any) -> SpanType:
    return step_type(f"pydantic-ai:{kind}", title, description, template, properties)


AGENT = _type(
    "agent",
    "Agent",
    "An agent's run.",
    "{{ inputs.agent }} {{ output | truncate: 160 }}",
    agent=TEXT,
    prompt={},
    model=TEXT,
)
REQUEST = _type(
    "request",
    "Model request",
    "A request to a model.",
    "{{ inputs.model }} {{ text | truncate: 160 }}",
    model=TEXT,
    request={"type": "array"},
)
TOOL = tool_type("pydantic-ai:tool")
OUTPUT = _type(
    "output",
    "Output",
    "The output of an agent is checked and made.",
    "{{ output | truncate: 160 }} ",
    tool=TEXT,
    arguments={},
)
TYPES = (AGENT, REQUEST, TOOL, OUTPUT)


class _Held:
    """Holds what is to be said when a call is over."""

    has_token = False

    def __init__(self) -> None:
        self._reply = Reply()

    def whole(self, reply: Reply) -> None:
        self._reply = reply

    def add(self, event: Any) -> None:
        """Nothing here comes in pieces."""

    def reply(self) -> Reply:
        return self._reply


class _Asks(NamedTuple):
    """What is known as something begins."""

    type: SpanType
    name: str
    inputs: Callable[[], Mapping[str, Any]]


def _open(asks: Callable[[], _Asks | None], switch: Switch) -> Call | None:
    """Begin a span; None if it is not recorded. Raises InstanceTerminated, and nothing else."""
    if not switch.is_on:
        return None
    try:
        found = asks()
    except Exception:
        switch.failed("a call")
        return None
    if found is None:
        return None
    asked = Asked(found.type, found.name[:200], found.inputs, _Held(), is_model=found.type is REQUEST)
    return open_call(asked, switch)


def _tell(call: Call, reply: Callable[[], Reply]) -> None:
    try:
        call.whole(reply())
    except Exception:
        call.failed_to_read("an answer")


# -- agents ------------------------------------------------------------------------------------------------


def _run_asked(agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Asks:
    name = text(agent.name) or "agent"
    prompt = args[0] if args else kwargs.get("user_prompt")
    model = kwargs.get("model") or agent.model
    inputs = present(agent=name, prompt=prompt, model=model if type(model) is str else _model_name(model))
    return _Asks(AGENT, f"agent {name}", lambda: inputs)


def _model_name(model: Any) -> str:
    """Return what the model is called, without asking one of the user's own."""
    if type(model).__module__.startswith("pydantic_ai."):
        return text(model.model_name)
    return "" if model is None else type(model).__name__


def _run_told(run: Any) -> Reply:
    result = run.result
    if result is None:
        return Reply(metadata={"incomplete": True})
    return Reply({"output": result.output})


def _iter(function: Any, switch: Switch) -> Any:
    """Return `Agent.iter`, which all the other ways to run an agent call, with a span around its block."""

    @contextlib.asynccontextmanager
    async def around(manager: Any, asks: Callable[[], _Asks | None]) -> AsyncIterator[Any]:
        call = _open(asks, switch)
        if call is None:
            async with manager as run:
                yield run
            return
        call.become_current()
        try:
            async with manager as run:
                yield run
        except BaseException as error:
            call.step_back()
            call.raised(error)
            raise
        call.step_back()
        _tell(call, lambda: _run_told(run))
        call.ended()

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(function(self, *args, **kwargs), lambda: _run_asked(self, args, kwargs))

    return wrapper


# -- requests ----------------------------------------------------------------------------------------------


def _request_asked(node: Any, ctx: Any) -> _Asks | None:
    if vars(node).get("_result") is not None:  # streamed already
        return None
    model = _model_name(ctx.deps.model)

    def inputs() -> dict[str, Any]:
        request = vars(node.request)
        parts = list(map(_part, some_list(list(request.get("parts") or ()))))
        before = len(ctx.state.message_history)
        return present(
            model=model, instructions=request.get("instructions"), request=parts, messages_before=before
        )

    return _Asks(REQUEST, f"request {model}", inputs)


def _part(part: Any) -> dict[str, Any]:
    fields = vars(part)
    return present(kind=fields.get("part_kind"), tool=fields.get("tool_name"), content=fields.get("content"))


def _request_ends(call: Call, node: Any) -> None:
    """Tell what the model has said, or only which one it was if a call inside has told it."""
    response = vars(node).get("model_response")
    if response is None:  # a hook has sent the run back to the model
        return
    fields = vars(response)
    model = text(fields.get("model_name"))
    if call.is_outer:
        call.set_inputs(lambda: present(model=model))
        call.whole(Reply())
        return
    provider = text(fields.get("provider_name"))
    usage = vars(fields["usage"])
    call.whole(
        Reply(
            _said([vars(part) for part in fields["parts"]], fields),
            _usage(usage),
            present(
                provider=provider,
                model=model,
                response_id=fields.get("provider_response_id"),
                details=usage.get("details"),
            ),
            priced_as=(provider, model) if provider and model else None,
        )
    )


def _said(parts: list[dict[str, Any]], response: Mapping[str, Any]) -> dict[str, Any]:
    def of(kind: str) -> list[dict[str, Any]]:
        return [part for part in parts if part.get("part_kind") == kind]

    calls = [
        present(id=part.get("tool_call_id"), name=part.get("tool_name")) | {"arguments": part.get("args")}
        for part in of("tool-call")
    ]
    others = [part for part in parts if part.get("part_kind") not in ("text", "thinking", "tool-call")]
    return {
        "text": "".join(text(part.get("content")) for part in of("text")),
        **present(
            reasoning="\n".join(text(part.get("content")) for part in of("thinking")),
            tool_calls=calls,
            other_output=others,
            finish_reason=response.get("finish_reason"),
        ),
    }


def _usage(usage: Mapping[str, Any]) -> dict[str, int] | None:
    into, out = count(usage.get("input_tokens")) or 0, count(usage.get("output_tokens")) or 0
    if not into and not out:
        return None
    more = {name: usage.get(name) or None for name in ("cache_read_tokens", "cache_write_tokens")}
    reasoning = some_dict(usage.get("details")).get("reasoning_tokens") or None
    return counts(
        prompt_tokens=into, completion_tokens=out, total_tokens=into + out, **more, reasoning_tokens=reasoning
    )


def _request(function: Any, switch: Switch) -> Any:
    """Return `ModelRequestNode.run` with a span around each call that makes a request."""

    @functools.wraps(function)
    async def wrapper(self: Any, ctx: Any) -> Any:
        call = _open(lambda: _request_asked(self, ctx), switch)
        if call is None:
            return await function(self, ctx)
        call.become_current()
        try:
            node = await function(self, ctx)
        except BaseException as error:
            call.step_back()
            call.raised(error)
            raise
        call.step_back()
        with _reading(call):
            _request_ends(call, node)
        call.ended()
        return node

    return wrapper


@contextlib.contextmanager
def _reading(call: Call) -> Any:
    try:
        yield
    except Exception:
        call.failed_to_read("an answer")


def _stream(function: Any, switch: Switch) -> Any:
    """Return `ModelRequestNode.stream` with a span from its opening to its end.

    It is current while the SDK opens and closes the stream, and not in the block, where the user's own steps are.
    """

    @contextlib.asynccontextmanager
    async def around(manager: Any, node: Any, asks: Callable[[], _Asks | None]) -> AsyncIterator[Any]:
        call = _open(asks, switch)
        if call is None:
            async with manager as stream:
                yield stream
            return
        try:
            async with _Current(call, manager) as stream:
                _watch(stream, call)
                yield stream
        except BaseException as error:
            _stream_ends(call, node)
            call.raised(error)
            raise
        _stream_ends(call, node)
        call.ended()

    @functools.wraps(function)
    def wrapper(self: Any, ctx: Any) -> Any:
        return around(function(self, ctx), self, lambda: _request_asked(self, ctx))

    return wrapper


def _watch(stream: Any, call: Call) -> None:
    """Let *call* be current at each step of the events behind *stream*: with the first one the SDK may ask the model."""
    with _reading(call):
        raw = stream._raw_stream_response  # noqa: SLF001 - it has no other name
        events = raw._get_event_iterator  # noqa: SLF001 - what a model's stream must have
        raw._get_event_iterator = lambda: _stepwise(events(), call)  # noqa: SLF001


async def _stepwise(events: Any, call: Call) -> AsyncIterator[Any]:
    try:
        while True:
            call.become_current()
            try:
                event = await events.__anext__()
            except StopAsyncIteration:
                return
            finally:
                call.step_back()
            yield event
    finally:
        if hasattr(events, "aclose"):
            await events.aclose()


def _stream_ends(call: Call, node: Any) -> None:
    with _reading(call):
        result = vars(node).get("_result")
        if result is not None:
            _request_ends(call, result)


class _Current:
    """A context manager of the SDK, around whose entry and exit a call is current."""

    def __init__(self, call: Call, manager: Any) -> None:
        self._call, self._manager = call, manager

    async def __aenter__(self) -> Any:
        self._call.become_current()
        try:
            return await self._manager.__aenter__()
        finally:
            self._call.step_back()

    async def __aexit__(self, *error: object) -> Any:
        self._call.become_current()
        try:
            return await self._manager.__aexit__(*error)
        finally:
            self._call.step_back()


# -- tools and outputs -------------------------------------------------------------------------------------

# What a tool raises to be answered from outside of the run: nothing has gone wrong.
_DEFERRED = ("CallDeferred", "ApprovalRequired")


def _call_asked(span_type: SpanType, verb: str, tool_call: Any) -> _Asks:
    name = text(tool_call.tool_name)
    inputs = {"tool": name, "arguments": _parsed(tool_call.args)}
    return _Asks(span_type, f"{verb} {name}", lambda: inputs)


def _parsed(arguments: Any) -> Any:
    """Return what the model has written as arguments, which may be no JSON."""
    try:
        return orjson.loads(arguments)
    except (orjson.JSONDecodeError, TypeError):
        return arguments


def _tool_asked(_manager: Any, validated: Any, **_options: Any) -> _Asks:
    return _call_asked(TOOL, "tool", validated.call)


def _output_asked(_manager: Any, validated: Any, **_options: Any) -> _Asks | None:
    if vars(validated.ctx).get("partial_output"):  # a stream that is not over
        return None
    return _call_asked(OUTPUT, "output", validated.call)


def _text_asked(_node: Any, ctx: Any, given: Any, processor: Any) -> _Asks | None:
    if type(processor).__name__ == "TextOutputProcessor" and not ctx.deps.output_validators:
        return None  # a text that is taken as it is
    return _Asks(OUTPUT, "output", lambda: {"text": given})


def _around(asks: Any, told: Callable[[Any], Reply]) -> Callable[[Any, Switch], Any]:
    """Return what puts a span around a coroutine function."""

    def wrap(function: Any, switch: Switch) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = _open(lambda: asks(*args, **kwargs), switch)
            if call is None:
                return await function(*args, **kwargs)
            call.become_current()
            try:
                value = await function(*args, **kwargs)
            except BaseException as error:
                call.step_back()
                if type(error).__name__ in _DEFERRED:
                    call.whole(Reply({"deferred": type(error).__name__}))
                    call.ended()
                else:
                    call.raised(error)
                raise
            call.step_back()
            _tell(call, lambda: told(value))
            call.ended()
            return value

        return wrapper

    return wrap


def _output_told(value: Any) -> Reply:
    return Reply({"output": value})


def _text_told(node: Any) -> Reply:
    final = vars(vars(node).get("data") or _Held()).get("output")
    return Reply({"output": final})


def _validated(function: Any, switch: Switch) -> Any:
    """Return `validate_output_tool_call`, with a span for what is not valid; what is, is made next."""

    def refused(tool_call: Any, error: BaseException) -> None:
        call = _open(lambda: _call_asked(OUTPUT, "output", tool_call), switch)
        if call is not None:
            call.raised(error)

    @functools.wraps(function)
    async def wrapper(self: Any, tool_call: Any, **options: Any) -> Any:
        if options.get("allow_partial"):
            return await function(self, tool_call, **options)
        try:
            validated = await function(self, tool_call, **options)
        except Exception as error:
            refused(tool_call, error)
            raise
        found = vars(validated).get("validation_error")
        if found is not None:
            refused(tool_call, found)
        return validated

    return wrapper


_TOOLS = "pydantic_ai.tool_manager:ToolManager"
_GRAPH = "pydantic_ai._agent_graph"
TAPS = (
    Tap("pydantic_ai.agent:Agent.iter", wraps=_iter),
    Tap(f"{_GRAPH}:ModelRequestNode.run", wraps=_request),
    Tap(f"{_GRAPH}:ModelRequestNode.stream", wraps=_stream),
    Tap(f"{_TOOLS}.execute_tool_call", wraps=_around(_tool_asked, _output_told)),
    Tap(f"{_TOOLS}.validate_output_tool_call", wraps=_validated),
    Tap(f"{_TOOLS}.execute_output_tool_call", wraps=_around(_output_asked, _output_told)),
    Tap(f"{_GRAPH}:CallToolsNode._handle_text_response", wraps=_around(_text_asked, _text_told)),
)

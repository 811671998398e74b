"""OpenAI's Agents SDK: workflows, agents, turns, tools, handoffs, guardrails and what else it traces.

It is its official `TracingProcessor`, beside those that the user has: where they send to stays as it is. What the SDK
makes current, is current here, so a step of the user's own hangs under the tool that makes it, and a call of the SDK
`openai` under the agent's generation; it then has the contents, the tokens and the cost, and the generation has not.

What is switched off there is switched off here: with `set_tracing_disabled(True)`, `OPENAI_AGENTS_DISABLE_TRACING=1` or
`RunConfig(tracing_disabled=True)` the SDK tells nobody anything, so no agent and no tool is recorded; the calls of
`openai` are. With `trace_include_sensitive_data=False` it keeps contents to itself; again, what `openai` records is another
matter: see `configure(capture_inputs=..., capture_outputs=...)`.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace.errors import InstanceTerminated
from prefactor_trace.integrations import _patch
from prefactor_trace.integrations._span_types import TEXT, step_type, tool_type
from prefactor_trace.integrations._tap import Asked, Reply, open_call
from prefactor_trace.integrations._values import of_base64, present, some_dict, text, without_media
from prefactor_trace.integrations.openai import ENDPOINTS, token_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prefactor_trace._schema import SpanType
    from prefactor_trace.integrations._tap import Call, Switch

REQUIRES = "openai-agents>=0.3,<1"
MODULE = "agents.tracing"  # the name `agents` alone is also that of many programs' own package

# What the SDK keeps of an answer has the form that OpenAI's has.
_Chat, _Response = ENDPOINTS["/chat/completions"].reader, ENDPOINTS["/responses"].reader


def _type(kind: str, title: str, description: str, template: str, **properties: Any) -> SpanType:
    return step_type(f"openai-agents:{kind}", title, description, template, properties)


WORKFLOW = _type(
    "workflow", "Workflow", "A trace of the Agents SDK.", "{{ inputs.workflow }} ", workflow=TEXT
)
AGENT = _type("agent", "Agent", "An agent at work.", "{{ inputs.agent }} ", agent=TEXT, tools={}, handoffs={})
TOOL = tool_type("openai-agents:tool")
HANDOFF = _type(
    "handoff",
    "Handoff",
    "An agent hands over to another.",
    "{{ inputs.from_agent }} → {{ inputs.to_agent }} ",
    from_agent=TEXT,
    to_agent=TEXT,
)
GUARDRAIL = _type(
    "guardrail",
    "Guardrail",
    "A check of what goes in or comes out.",
    "{{ inputs.guardrail }}{% if triggered %} has stopped the run{% endif %} ",
    guardrail=TEXT,
)
GENERATION = _type(
    "generation",
    "Generation",
    "A model's turn.",
    "{{ inputs.model }} {{ text | truncate: 160 }}",
    model=TEXT,
    input={},
)
LIST_TOOLS = _type(
    "list_tools", "MCP tools", "Which tools a server has.", "{{ tools | join: ', ' }} ", server=TEXT
)
STEP = _type("step", "Step", "A step of the SDK, or of the program's own.", "{{ name }} ", name=TEXT)
TYPES = (WORKFLOW, AGENT, TOOL, HANDOFF, GUARDRAIL, GENERATION, LIST_TOOLS, STEP)


# -- what is told of each kind -----------------------------------------------------------------------------


class _Told(NamedTuple):
    """What a span of the SDK has to tell when it is over. *is_whole*: it has an answer."""

    inputs: dict[str, Any]
    result: Mapping[str, Any] | None = None
    usage: Mapping[str, int] | None = None
    metadata: Mapping[str, Any] = {}
    is_whole: bool = True
    priced_as: tuple[str, str] | None = None


def _agent(data: Any) -> _Told:
    more = present(handoffs=data.handoffs, tools=data.tools, output_type=data.output_type)
    return _Told({"agent": data.name, **more})


def _task(data: Any) -> _Told:
    return _Told({"name": data.name}, metadata=present(usage=data.usage))


def _turn(data: Any) -> _Told:
    return _Told({"agent": data.agent_name, "turn": data.turn}, metadata=present(usage=data.usage))


def _function(data: Any) -> _Told:
    result = None if data.output is None else {"output": data.output}
    inputs = {"tool": data.name, **present(arguments=_parsed(data.input))}
    return _Told(inputs, result, metadata=present(mcp=data.mcp_data))


def _parsed(arguments: Any) -> Any:
    """Return what the model has written as the arguments of a tool, which may be no JSON."""
    try:
        return orjson.loads(arguments)
    except (orjson.JSONDecodeError, TypeError):
        return arguments


def _handoff(data: Any) -> _Told:
    return _Told(present(from_agent=data.from_agent, to_agent=data.to_agent))


def _guardrail(data: Any) -> _Told:
    return _Told({"guardrail": data.name}, {"triggered": data.triggered})


def _mcp_tools(data: Any) -> _Told:
    return _Told(present(server=data.server), None if data.result is None else {"tools": data.result})


def _generation(data: Any) -> _Told:
    output = data.output or []
    usage = some_dict(data.usage)
    if len(output) == 1 and some_dict(output[0]).get("object") == "response":  # that of a stream
        reader: Any = _Response()
        reader.whole(output[0])
    else:
        reader = _Chat()
        reader.whole({"choices": [{"message": message} for message in output]})
    parameters = some_dict(data.model_config)
    at_openai = "api.openai.com" in str(parameters.get("base_url"))
    return _Told(
        _asked_of(
            data.model, data.input, {name: parameters[name] for name in parameters if parameters[name]}
        ),
        reader.reply().result,
        token_usage(usage),
        present(model=data.model, provider_usage=usage),
        is_whole=bool(output),
        priced_as=("openai", data.model) if at_openai and data.model else None,
    )


def _response(data: Any) -> _Told:
    reader = _Response()
    if data.response is not None:
        reader.whole(data.response)
    found = reader.reply()
    model = found.metadata.get("model")
    usage = found.usage or token_usage(some_dict(getattr(data, "usage", None)))
    inputs = _asked_of(model, data.input, {})
    return _Told(
        inputs, found.result, usage, found.metadata, found.is_whole, found.priced_as if model else None
    )


def _asked_of(model: Any, given: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    return present(model=model, input=without_media(given), parameters=parameters)


def _custom(data: Any) -> _Told:
    return _Told({"name": data.name, **present(data=data.data)})


def _transcription(data: Any) -> _Told:
    audio = of_base64(text(data.input), text(data.input_format) or "audio")
    return _Told(
        {"name": "transcription", "audio": audio},
        present(text=data.output),
        metadata=present(model=data.model),
    )


def _speech(data: Any) -> _Told:
    audio = of_base64(text(data.output), text(data.output_format) or "audio")
    return _Told({"name": "speech", "text": data.input}, {"audio": audio}, metadata=present(model=data.model))


def _speech_group(data: Any) -> _Told:
    return _Told({"name": "speech", **present(text=data.input)})


def _unknown(data: Any) -> _Told:
    """Tell what a kind that is not known here would export, if it is the SDK's."""
    ours = type(data).__module__.startswith("agents.")
    return _Told({"name": text(data.type), **(some_dict(data.export()) if ours else {})})


class _Kind(NamedTuple):
    """How spans of one kind are recorded. *verb*, and what is in the field *named*, are the span's name."""

    type: SpanType
    verb: str
    named: str | None
    told: Callable[[Any], _Told]


_KINDS = {
    "agent": _Kind(AGENT, "agent", "name", _agent),
    "task": _Kind(STEP, "run", "name", _task),
    "turn": _Kind(STEP, "turn", "turn", _turn),
    "function": _Kind(TOOL, "tool", "name", _function),
    "handoff": _Kind(HANDOFF, "handoff", None, _handoff),
    "guardrail": _Kind(GUARDRAIL, "guardrail", "name", _guardrail),
    "mcp_tools": _Kind(LIST_TOOLS, "list tools", None, _mcp_tools),
    "generation": _Kind(GENERATION, "generate", "model", _generation),
    "response": _Kind(GENERATION, "generate", None, _response),
    "custom": _Kind(STEP, "", "name", _custom),
    "transcription": _Kind(STEP, "transcription", None, _transcription),
    "speech": _Kind(STEP, "speech", None, _speech),
    "speech_group": _Kind(STEP, "speech", None, _speech_group),
}
_UNKNOWN = _Kind(STEP, "step", None, _unknown)


class _Reader:
    """Holds what a span of the SDK has told."""

    has_token = False

    def __init__(self) -> None:
        self.told: _Told | None = None
        self.error: str | None = None
        self.is_outer = False

    def whole(self, told: _Told) -> None:
        self.told = told

    def add(self, event: Any) -> None:
        """No span is told in pieces."""

    def reply(self) -> Reply:
        told = self.told
        if told is None:
            return Reply(error=self.error)
        if self.is_outer:
            return Reply(error=self.error, metadata=present(model=told.metadata.get("model")))
        return Reply(told.result, told.usage, told.metadata, self.error, priced_as=told.priced_as)


def _error(error: Any) -> str | None:
    """Return what the SDK says of an error that it has not raised, or not yet."""
    if not error:
        return None
    message, about = text(error.get("message")), some_dict(error.get("data")).get("error")
    return ": ".join(filter(None, (message, text(about)))) or "the SDK says that it failed"


# -- the processor -----------------------------------------------------------------------------------------

# So many traces can be open at a time. One that never ends is the fault of the program, and must not fill the memory.
_MOST_OPEN = 10_000
_ROOT = ""


class _Step(NamedTuple):
    """A trace or a span of the SDK that is open. *handled*: the exception that was being handled as it began."""

    call: Call
    reader: _Reader
    span: Any
    kind: _Kind | None
    handled: int


class _Recorder:
    """A `TracingProcessor`. None of its methods raises."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._open: dict[str, dict[str, _Step]] = {}  # by trace, then by span
        self.remove: Callable[[], None] | None = None  # when the last trace has ended

    def on_trace_start(self, trace: Any) -> None:
        self._guarded(self._trace_starts, trace)

    def on_trace_end(self, trace: Any) -> None:
        self._guarded(self._trace_ends, trace.trace_id)

    def on_span_start(self, span: Any) -> None:
        self._guarded(self._span_starts, span)

    def on_span_end(self, span: Any) -> None:
        self._guarded(self._span_ends, span)

    def shutdown(self, timeout: float | None = None) -> None:
        """Leave it: what is open at the exit, the tracer closes."""

    def force_flush(self) -> None:
        """Leave it: the SDK means its own exporter."""

    def _guarded(self, act: Callable[[Any], None], what: Any) -> None:
        try:
            act(what)
        except InstanceTerminated:
            pass  # the SDK lets nothing out of here; the next call of a model, or step of the user's, stops the run
        except Exception:
            self._switch.failed("a span")

    def _trace_starts(self, trace: Any) -> None:
        if not self._switch.is_on:
            return
        while len(self._open) >= _MOST_OPEN:
            self._trace_ends(next(iter(self._open)))
        name = text(trace.name)
        told = _Told(
            {"workflow": name},
            metadata=present(
                trace_id=trace.trace_id,
                group_id=getattr(trace, "group_id", None),
                metadata=getattr(trace, "metadata", None),
            ),
        )
        self._begin(trace, trace.trace_id, _ROOT, WORKFLOW, name or "workflow", told=told)

    def _span_starts(self, span: Any) -> None:
        if not self._switch.is_on:
            return
        data = span.span_data
        kind = _KINDS.get(data.type, _UNKNOWN)
        named = getattr(data, kind.named) if kind.named else None
        name = " ".join(str(each) for each in (kind.verb, named) if type(each) in (str, int) and each != "")
        others = self._open.get(span.trace_id, {})
        parent = others.get(span.parent_id or _ROOT) or others.get(_ROOT)
        self._begin(span, span.trace_id, span.span_id, kind.type, name, kind=kind, parent=parent)

    def _begin(
        self,
        span: Any,
        trace_id: str,
        span_id: str,
        span_type: SpanType,
        name: str,
        *,
        told: _Told | None = None,
        kind: _Kind | None = None,
        parent: _Step | None = None,
    ) -> None:
        reader = _Reader()
        reader.told = told
        inputs = told.inputs if told is not None else {}
        asked = Asked(span_type, name[:200], lambda: inputs, reader, is_model=span_type is GENERATION)
        # What is current inside the parent is nearer: a step of the user's own, say, that runs an agent.
        scope = None if parent is None or parent.call.is_innermost else parent.call.scope
        call = open_call(asked, self._switch, parent=scope)
        if call is None:
            return
        handled = id(sys.exc_info()[1])
        self._open.setdefault(trace_id, {})[span_id] = _Step(call, reader, span, kind, handled)
        if _is_made_current():
            call.become_current()

    def _span_ends(self, span: Any) -> None:
        steps = self._open.get(span.trace_id, {})
        step = steps.pop(span.span_id, None)
        if step is not None:
            step.call.step_back()
            self._end(step, sys.exc_info()[1])
        if not steps:
            self._forget(span.trace_id)

    def _trace_ends(self, trace_id: str) -> None:
        steps = self._open.get(trace_id, {})
        root = steps.pop(_ROOT, None)
        for step in reversed(list(steps.values())):  # nobody will end them any more
            step.call.step_back()
            self._end(step, None, is_left=True)
        if root is not None:
            root.call.step_back()
            self._end(root, sys.exc_info()[1])
        self._forget(trace_id)

    def _forget(self, trace_id: str) -> None:
        self._open.pop(trace_id, None)
        if not self._open and self.remove is not None:
            self.remove()

    def is_idle(self) -> bool:
        """Say whether no trace is open."""
        return not self._open

    def _end(self, step: _Step, error: BaseException | None, *, is_left: bool = False) -> None:
        call, reader, kind = step.call, step.reader, step.kind
        if kind is not None:
            reader.error = _error(step.span.error)
            reader.is_outer = kind.type is GENERATION and call.is_outer
            try:
                reader.told = told = kind.told(step.span.span_data)
                call.set_inputs(
                    lambda: present(model=told.inputs.get("model")) if reader.is_outer else told.inputs
                )
            except Exception:
                call.failed_to_read("a span")
        is_whole = reader.told is not None and reader.told.is_whole
        if is_left:
            call.abandoned()
        elif error is None or id(error) == step.handled or (isinstance(error, GeneratorExit) and is_whole):
            call.ended()
        elif isinstance(error, GeneratorExit):
            call.abandoned()
        else:
            call.raised(error)


def _is_made_current() -> bool:
    """Say whether the SDK makes what it starts here current: a processor is not told.

    `start(mark_as_current=...)` of the trace or span is a few frames above.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - the public way reads source files
    for _ in range(10):
        if frame.f_code.co_name == "start" and "mark_as_current" in frame.f_code.co_varnames:
            return bool(frame.f_locals.get("mark_as_current"))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return True


_SET_PROCESSORS = f"{MODULE}.provider:DefaultTraceProvider.set_processors"
NEEDS = (f"{MODULE}:add_trace_processor", f"{MODULE}:TracingProcessor", _SET_PROCESSORS)


def start(switch: Switch) -> Callable[[], bool]:
    """Add the processor; return what takes it away, when the last trace has ended that is open by then.

    What it returns says, as `Patch.undo` does, whether it could take the patch away, and may be called until it could.
    """
    tracing = sys.modules[MODULE]
    if not hasattr(tracing, "add_trace_processor"):
        raise RuntimeError(f"{MODULE} is not the module of the Agents SDK")
    recorder = _Recorder(switch)
    # `set_trace_processors` is how users stop the export to OpenAI; this one is not among those they have set.
    patch = _patch.place(_SET_PROCESSORS, _keeping(recorder, switch))
    tracing.TracingProcessor.register(_Recorder)
    tracing.add_trace_processor(recorder)

    def undo() -> bool:
        if recorder.is_idle():
            _remove(recorder)
        else:
            recorder.remove = functools.partial(_remove, recorder)
        return patch.undo()

    return undo


def _keeping(recorder: _Recorder, switch: Switch) -> Callable[[Any], Any]:
    def wrap(set_processors: Any) -> Any:
        @functools.wraps(set_processors)
        def wrapper(self: Any, processors: Iterable[Any]) -> Any:
            return set_processors(self, [*processors, recorder] if switch.is_on else processors)

        return wrapper

    return wrap


def _remove(recorder: _Recorder) -> None:
    """Take *recorder* out of the processors, for which the SDK has no function."""
    several = sys.modules[MODULE].get_trace_provider()._multi_processor  # noqa: SLF001 - see above
    with several._lock:  # noqa: SLF001
        several._processors = tuple(each for each in several._processors if each is not recorder)  # noqa: SLF001

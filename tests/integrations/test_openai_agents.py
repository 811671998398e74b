"""The Agents SDK: runs are the same with and without us, and the record has the SDK's own tree."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import json
import subprocess
import sys
import textwrap

import pytest

import prefactor_trace as pt
from prefactor_trace import _guard

from .differential import same
from .scripted import Bench

agents = pytest.importorskip("agents.tracing") and pytest.importorskip("agents")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

MODEL = "gpt-4o"
USED = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
PARIS = json.dumps({"city": "Paris"})
WEATHER = ("get_weather", PARIS)


@pytest.fixture(autouse=True)
def sdk(nothing_unread):
    """No export to OpenAI."""
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)
    yield
    agents.set_trace_processors([])


class Told(agents.TracingProcessor):
    """A processor of the user's."""

    def __init__(self):
        self.spans = []

    def on_trace_start(self, trace):
        pass

    def on_trace_end(self, trace):
        pass

    def on_span_start(self, span):
        pass

    def on_span_end(self, span):
        self.spans.append(span.span_data.type)

    def shutdown(self):
        pass

    def force_flush(self):
        pass


# -- programs, after the SDK's tutorial --------------------------------------------------------------------


@pt.span
def station(city):
    return f"It is sunny in {city}."


@agents.function_tool
def get_weather(city: str) -> str:
    """How the weather is."""
    return station(city)


@agents.function_tool
async def get_weather_later(city: str) -> str:
    """How the weather is."""
    await asyncio.sleep(0)
    return station(city)


@agents.function_tool
def broken(city: str) -> str:
    """A tool that fails."""
    raise ValueError(f"no station in {city}")


class City(pydantic.BaseModel):
    city: str


@agents.input_guardrail
async def no_homework(context, agent, given):
    return agents.GuardrailFunctionOutput(output_info={}, tripwire_triggered="homework" in str(given))


class Programs(Bench):
    """Each asks agents of this SDK."""

    parts = ("model", "agent", "ask")

    def model(self):
        kind = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}[self.api]
        return kind(model=MODEL, openai_client=self.client())

    def agent(self, **options):
        fields = {"name": "Assistant", "instructions": "Be short.", "model": self.model(), **options}
        return agents.Agent(**fields)

    async def ask(self, turns, given="hello", **options):
        self.provider.turns = list(turns)
        result = await agents.Runner.run(self.agent(**options), given)
        return result.final_output, result.to_input_list(), result.last_agent.name

    async def hello(self):
        return await self.ask(["It is fine."])

    async def tool(self):
        return await self.ask([WEATHER, "Sunny."], tools=[get_weather])

    async def tool_later(self):
        return await self.ask([("get_weather_later", PARIS), "Sunny."], tools=[get_weather_later])

    async def broken_tool(self):
        return await self.ask([("broken", PARIS), "Sorry."], tools=[broken])

    async def structured(self):
        return await self.ask([PARIS], output_type=City)

    async def handoff(self):
        spanish = self.agent(name="Spanish")
        turns = [("transfer_to_spanish", "{}"), "Hola."]
        return await self.ask(turns, name="Triage", handoffs=[spanish])

    async def as_tool(self):
        self.provider.turns = [("translate", json.dumps({"input": "hi"})), "Hola.", "Done."]
        tool = self.agent(name="Spanish").as_tool(tool_name="translate", tool_description="")
        result = await agents.Runner.run(self.agent(tools=[tool]), "hello")
        return result.final_output

    async def guarded(self):
        return await self.ask(["It is fine."], input_guardrails=[no_homework])

    async def tripped(self):
        return await self.ask(["It is fine."], "my homework", input_guardrails=[no_homework])

    async def refused(self):
        return await self.ask([500])

    async def too_long(self):
        return await self.ask([WEATHER] * 12, tools=[get_weather])

    async def traced_by_hand(self):
        with agents.trace("Jokes", group_id="g"):
            with agents.custom_span("thinking", {"about": "it"}):
                station("Rome")
            return await self.hello(), await self.hello()

    async def stream(self):
        self.provider.turns = [WEATHER, "It is sunny."]
        result = agents.Runner.run_streamed(self.agent(tools=[get_weather]), "hello")
        events = [event async for event in result.stream_events()]
        return [event.type for event in events], result.final_output

    async def left_early(self):
        self.provider.turns = [WEATHER, "It is sunny."]
        result = agents.Runner.run_streamed(self.agent(tools=[get_weather]), "hello")
        async for event in result.stream_events():
            result.cancel()
            return event.type


PROGRAMS = Programs.programs()


IN_BOTH = ("hello", "tool", "refused", "stream", "left_early")


@pytest.mark.parametrize(
    ("name", "api"), [(name, "chat") for name in PROGRAMS] + [(name, "responses") for name in IN_BOTH]
)
def test_a_program_is_the_same(name, api, scripted, recorded):
    """Results, histories, events, exceptions and what the provider is asked; tokens are those of the provider."""
    bench = Programs(scripted, api)
    if name == "left_early":  # how far it gets is a matter of time
        pt.instrument("openai_agents", "openai")
        with pt.instance():
            bench.run(name)
    else:
        same(lambda: bench.outcome(name), "openai_agents", "openai")

    tree = recorded.tree()
    assert tree.startswith("Agent workflow" if name != "traced_by_hand" else "Jokes")
    assert len([line for line in tree.splitlines() if not line.startswith(" ")]) == 1
    spans = {span.type for span in recorded.spans if span.token_usage}
    assert spans <= {f"openai:{'chat' if api == 'chat' else 'responses'}"}
    assert "sk-secret" not in repr(recorded.spans)


def traced(recorded, scripted, program, api="chat", names=("openai_agents", "openai")):
    pt.instrument(*names)
    with pt.instance():
        bench = Programs(scripted, api)
        bench.run(program)
    return recorded.tree()


def structure(recorded):
    """Return the tree without what only some versions have: the SDK's runs and turns, and what stands for each."""
    spans = {span.id: span for span in recorded.spans}
    hidden = ("run ", "turn ")

    def path(span):
        parent = spans.get(span.parent_id)
        above = path(parent) if parent is not None else ()
        return above if span.name.startswith(hidden) else (*above, f"{span.name} {span.status}")

    return [
        "  " * (len(path(span)) - 1) + path(span)[-1]
        for span in recorded.spans
        if not span.name.startswith(hidden)
    ]


def test_a_tool_is_a_branch(scripted, recorded):
    """What the user's own code records inside a tool hangs under the tool; a model's call under the generation."""
    traced(recorded, scripted, "tool")

    assert structure(recorded) == [
        "Agent workflow complete",
        "  agent Assistant complete",
        "    generate gpt-4o complete",
        "      chat gpt-4o complete",
        "    tool get_weather complete",
        "      station complete",
        "    generate gpt-4o complete",
        "      chat gpt-4o complete",
    ]
    tool = next(span for span in recorded.spans if span.type == "openai-agents:tool")
    assert tool.payload == {"tool": "get_weather", "arguments": {"city": "Paris"}}
    assert tool.result == {"output": "It is sunny in Paris."}
    agent = next(span for span in recorded.spans if span.type == "openai-agents:agent")
    assert agent.payload == {"agent": "Assistant", "tools": ["get_weather"], "output_type": "str"}


def test_a_handoff_is_a_branch(scripted, recorded):
    """Both agents, and the handoff between them."""
    traced(recorded, scripted, "handoff")

    handoff = next(span for span in recorded.spans if span.type == "openai-agents:handoff")
    assert handoff.payload == {"from_agent": "Triage", "to_agent": "Spanish"}
    names = [span.name for span in recorded.spans if span.type == "openai-agents:agent"]
    assert names == ["agent Triage", "agent Spanish"]


def test_an_agent_in_a_tool_hangs_under_it(scripted, recorded):
    """Agents as tools are a tree."""
    traced(recorded, scripted, "as_tool")

    lines = structure(recorded)
    at = lines.index("    tool translate complete")
    assert lines[at + 1] == "      agent Spanish complete"


def test_a_tool_that_failed_has_failed(scripted, recorded):
    """Though the SDK tells the model, and goes on."""
    traced(recorded, scripted, "broken_tool")

    tool = next(span for span in recorded.spans if span.type == "openai-agents:tool")
    assert tool.status == "failed"
    assert tool.error["message"].startswith("Error running tool")
    assert recorded.spans[0].status == "complete"


def test_a_guardrail_says_whether_it_triggered(scripted, recorded):
    """And what it has stopped has failed by its exception."""
    with pytest.raises(agents.InputGuardrailTripwireTriggered):
        traced(recorded, scripted, "tripped")

    guardrail = next(span for span in recorded.spans if span.type == "openai-agents:guardrail")
    assert (guardrail.status, guardrail.result) == ("complete", {"triggered": True})
    root = recorded.spans[0]
    assert root.status == "failed"
    assert root.error["error_type"].endswith("InputGuardrailTripwireTriggered")


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("program", ["tool", "stream"])
def test_without_openai_the_generation_has_the_tokens(program, api, scripted, recorded):
    """Its own contents, too, which it else leaves to the call inside it."""
    traced(recorded, scripted, program, api, names=["openai_agents"])

    first, second = (span for span in recorded.spans if span.type == "openai-agents:generation")
    if api == "responses" or program == "tool":  # without `include_usage` a stream of chat has no counts
        counted = {name: second.token_usage[name] for name in USED}
        assert counted == USED
    assert first.result["tool_calls"][0]["name"] == "get_weather"
    assert second.result["text"].rstrip(".").endswith("unny")
    assert "hello" in json.dumps(first.payload["input"])


def test_with_openai_the_generation_is_structure(scripted, recorded):
    """Neither tokens nor contents twice."""
    traced(recorded, scripted, "tool", "responses")

    spans = [span for span in recorded.spans if span.type == "openai-agents:generation"]
    assert [span.token_usage for span in spans] == [None, None]
    assert [span.result for span in spans] == [None, None]
    assert [span.payload for span in spans] == [{"model": MODEL}] * 2


def test_processors_of_the_user_stay(scripted, recorded):
    """Those before and those after; ours is not among those that `set_trace_processors` replaces."""
    bench = Programs(scripted)
    before, after = Told(), Told()
    agents.add_trace_processor(before)
    pt.instrument("openai_agents")
    agents.add_trace_processor(after)
    with pt.instance():
        bench.run("hello")
        agents.set_trace_processors([after])
        bench.run("hello")

    assert before.spans == after.spans[: len(before.spans)] != []
    assert len(after.spans) == 2 * len(before.spans)
    assert recorded.tree().count("agent Assistant complete") == 2
    processors = agents.tracing.get_trace_provider()._multi_processor
    assert len(processors._processors) == 2
    pt.uninstrument()
    assert processors._processors == (after,)


@pytest.mark.parametrize("how", ["globally", "run"])
def test_what_the_sdk_does_not_trace_is_not_recorded(how, scripted, recorded):
    """Nothing comes of the agents; the calls of `openai` are recorded as ever."""
    scripted.turns = ["Fine."]
    agents.set_tracing_disabled(how == "globally")
    config = agents.RunConfig(tracing_disabled=how == "run")
    pt.instrument("openai_agents", "openai")
    with pt.instance():
        bench = Programs(scripted)
        bench.finish(agents.Runner.run(bench.agent(), "hello", run_config=config))

    assert recorded.tree() == "chat gpt-4o complete"


def test_contents_that_the_sdk_keeps_to_itself_are_not_ours(scripted, recorded):
    """Its own setting holds for its own spans."""
    scripted.turns = [WEATHER, "Fine."]
    config = agents.RunConfig(trace_include_sensitive_data=False)
    pt.instrument("openai_agents")
    with pt.instance():
        bench = Programs(scripted)
        bench.finish(agents.Runner.run(bench.agent(tools=[get_weather]), "a secret", run_config=config))

    spans = [span for span in recorded.spans if span.type.startswith("openai-agents:")]
    assert "a secret" not in repr(spans)
    assert "Paris" not in repr(spans)


def test_a_cancelled_run_is_cancelled(scripted, recorded):
    """From the call of the model up to the workflow."""
    bench = Programs(scripted)

    async def program():
        scripted.turns = [{"hold": "It is fine."}]
        result = agents.Runner.run_streamed(bench.agent(), "hello")
        reading = asyncio.create_task(anext(result.stream_events()))
        await asyncio.to_thread(scripted.released_first.wait, 10)
        task = getattr(result, "run_loop_task", None) or result._run_impl_task
        task.cancel()
        scripted.release.set()
        await asyncio.wait([task, reading])
        reading.exception()

    pt.instrument("openai_agents", "openai")
    with pt.instance():
        bench.finish(program())

    assert {span.status for span in recorded.spans} == {"cancelled"}
    assert {"openai-agents:workflow", "openai:chat"} < {span.type for span in recorded.spans}


def test_what_is_never_ended_is_closed_with_its_trace(recorded):
    """As cancelled, with all it holds; what is ended late is not ended twice."""
    pt.instrument("openai_agents")
    with pt.instance():
        with agents.trace("Work"):
            span = agents.custom_span("forgotten")
            span.start(mark_as_current=True)
            station("Rome")
        assert pt.current_span() is None
        span.finish()

    assert recorded.tree() == "Work complete\n  forgotten cancelled\n    station complete"


def test_what_is_not_made_current_is_not(recorded):
    """A span of the SDK that is started by hand is nobody's parent, unless the program says so."""
    pt.instrument("openai_agents")
    with pt.instance(), agents.trace("Work"):
        span = agents.custom_span("beside")
        span.start()
        station("Rome")
        span.finish()
        station("Oslo")

    assert recorded.tree().splitlines() == [
        "Work complete",
        "  beside complete",
        "  station complete",
        "  station complete",
    ]


def test_any_order_of_ends_leaves_the_right_one_current(recorded):
    """One that is ended while another is open inside it does not come back."""
    pt.instrument("openai_agents")
    with pt.instance(), agents.trace("Work") as trace:
        first = agents.custom_span("first", parent=trace)
        first.start(mark_as_current=True)
        second = agents.custom_span("second", parent=trace)
        second.start(mark_as_current=True)
        first.finish()
        station("in second")
        second.finish()
        station("in work")

    parents = {span.id: span.name for span in recorded.spans}
    stations = [span for span in recorded.spans if span.name == "station"]
    assert [parents[span.parent_id] for span in stations] == ["second", "Work"]


def test_a_step_of_the_users_between_two_agents_stays_between(scripted, recorded):
    """An agent that is run by a step of the user's hangs under that, not beside it."""

    @pt.span("middle")
    async def middle():
        return await bench.hello()

    async def program():
        with agents.trace("Work"):
            await middle()

    bench = Programs(scripted)
    pt.instrument("openai_agents")
    with pt.instance():
        bench.finish(program())

    assert structure(recorded)[:3] == ["Work complete", "  middle complete", "    agent Assistant complete"]


def test_a_patch_of_others_over_ours_stays(recorded):
    """Ours goes when theirs is gone, and adds nothing to the processors until then."""
    owner = agents.tracing.provider.DefaultTraceProvider
    original = vars(owner)["set_processors"]
    pt.instrument("openai_agents")
    ours = vars(owner)["set_processors"]

    def theirs(self, processors):
        return ours(self, processors)

    owner.set_processors = theirs
    pt.uninstrument()
    assert vars(owner)["set_processors"] is theirs
    agents.set_trace_processors([])
    assert agents.tracing.get_trace_provider()._multi_processor._processors == ()
    owner.set_processors = ours
    pt.uninstrument()
    assert vars(owner)["set_processors"] is original


def test_a_trace_that_is_open_as_the_taps_go_is_recorded_to_its_end(recorded):
    """And then the processor is gone."""
    pt.instrument("openai_agents")
    with pt.instance(), agents.trace("Work"):
        with agents.custom_span("inner"):
            pt.uninstrument()
        with agents.custom_span("later"):
            pass

    assert recorded.tree() == "Work complete\n  inner complete"
    assert agents.tracing.get_trace_provider()._multi_processor._processors == ()


def test_outside_of_a_run_nothing_is_recorded(scripted, recorded):
    """And nothing is kept of it."""
    bench = Programs(scripted)
    pt.instrument("openai_agents", "openai")
    bench.run("tool")

    assert recorded.spans == []
    (recorder,) = agents.tracing.get_trace_provider()._multi_processor._processors
    gc.collect()
    assert recorder.is_idle()


def test_runs_at_once_keep_apart(scripted, recorded):
    """Each under its own step."""

    @pt.span
    async def branch(number):
        with agents.trace(f"Work {number}"), agents.custom_span("inner"):
            await asyncio.sleep(0)
            station(number)

    async def program():
        await asyncio.gather(*map(branch, range(3)))

    pt.instrument("openai_agents")
    with pt.instance():
        asyncio.run(program())

    spans = {span.id: span for span in recorded.spans}
    leaves = [span for span in recorded.spans if span.name == "station"]
    assert len(leaves) == 3
    for leaf in leaves:
        work = spans[spans[leaf.parent_id].parent_id]
        assert work.name == f"Work {leaf.payload['city']}"
        assert spans[work.parent_id].name.endswith("branch")


def test_an_sdk_that_is_imported_later_is_told(recorded):
    """The processor is added in the middle of the SDK's own import, beside the one that exports."""
    program = """
        import sys
        import prefactor_trace as pt
        print(pt.instrument("openai_agents")["openai_agents"].state, "agents" in sys.modules)
        import agents
        print(pt.integrations.report()["openai_agents"].state)
        print(*(type(each).__name__ for each in agents.tracing.get_trace_provider()._multi_processor._processors))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == ["waiting False", "on", "BatchTraceProcessor _Recorder"]


def test_traces_that_never_end_are_bounded(recorded, monkeypatch):
    """The oldest are closed, so that they do not fill the memory."""
    from prefactor_trace.integrations import openai_agents

    monkeypatch.setattr(openai_agents, "_MOST_OPEN", 3)
    pt.instrument("openai_agents")
    with pt.instance():
        traces = [agents.trace(f"Work {number}") for number in range(5)]
        for trace in traces:
            trace.start()
        states = [line.rpartition(" ")[2] for line in recorded.tree().splitlines()]
        assert states == ["complete", "complete", "running", "running", "running"]
        for trace in traces:
            trace.finish()

    assert len(recorded.spans) == 5


def test_what_cannot_be_read_does_no_harm(scripted, recorded, monkeypatch):
    """The run is the same; the span is there, and knows less."""
    from prefactor_trace.integrations import openai_agents

    def told(data):
        raise KeyError(data)

    kind = openai_agents._KINDS["function"]._replace(told=told)
    monkeypatch.setitem(openai_agents._KINDS, "function", kind)
    failures = []
    monkeypatch.setattr(_guard, "failed", failures.append)
    traced(recorded, scripted, "tool")

    assert "tool get_weather complete" in recorded.tree()
    assert failures == ["read a span of openai_agents"]


def test_a_terminated_run_comes_to_an_end(scripted, recorded):
    """The SDK lets nothing out of a processor; the next call of the model stops the run."""
    bench = Programs(scripted)
    pt.instrument("openai_agents", "openai")
    with pytest.raises(pt.InstanceTerminated), pt.instance() as instance:
        instance.heard_terminated("too dear")
        bench.run("hello")

    assert scripted.requests == []


def test_the_tools_of_an_mcp_server_are_a_branch(scripted, recorded):
    """The SDK's tool, and the server's inside it."""
    pytest.importorskip("mcp")
    pytest.importorskip("uvicorn")
    mcp = pytest.importorskip("agents.mcp")
    from .mcp_server import OverHttp

    bench, http = Programs(scripted), OverHttp()

    async def program():
        async with mcp.MCPServerStreamableHttp(params={"url": http.url}, name="station") as server:
            with pt.instance():
                return await bench.ask([("weather", PARIS), "Sunny."], mcp_servers=[server])

    pt.instrument("openai_agents", "mcp")
    try:
        bench.finish(program())
    finally:
        http.close()

    lines = [line.strip() for line in structure(recorded)]
    at = lines.index("tool weather complete")
    assert lines[at + 1] == "tool weather complete"
    assert [span.type for span in recorded.spans if span.name == "tool weather"] == [
        "openai-agents:tool",
        "mcp:tool",
    ]
    listed = next(span for span in recorded.spans if span.type == "openai-agents:list_tools")
    assert "weather" in listed.result["tools"]


def test_every_kind_of_span_is_told(recorded):
    """Those of the voice pipeline, with audio as its digest; and those that are not known here."""

    class Own(agents.CustomSpanData):
        type = "own"

    audio = base64.b64encode(b"sound" * 20).decode()
    pt.instrument("openai_agents")
    with pt.instance(), agents.trace("Work"):
        with agents.speech_group_span("two words"):
            with agents.transcription_span("whisper", audio, "pcm", "two words"):
                pass
            with agents.speech_span("tts", "two words", audio, "pcm"):
                pass
        with agents.custom_span("mine", {"number": 1}):
            pass
        provider = agents.tracing.get_trace_provider()
        with provider.create_span(Own("theirs", {"secret": 1})):
            pass

    told = {span.name: (span.payload, span.result) for span in recorded.spans}
    sound = {"$bytes": 100, "sha256": hashlib.sha256(b"sound" * 20).hexdigest()[:16], "media": "pcm"}
    assert told["transcription"] == ({"name": "transcription", "audio": sound}, {"text": "two words"})
    speeches = [span for span in recorded.spans if span.name == "speech"]
    assert [span.result for span in speeches] == [None, {"audio": sound}]
    assert told["mine"] == ({"name": "mine", "data": {"number": 1}}, None)
    assert told["step"] == ({"name": "own"}, None)

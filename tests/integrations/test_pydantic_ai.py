"""Pydantic AI: runs are the same with and without us, and the record tells agents, requests, tools and outputs."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest

import prefactor_trace as pt
from prefactor_trace import _guard

from .differential import same
from .scripted import Bench

ai = pytest.importorskip("pydantic_ai")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
from pydantic_ai.models.function import FunctionModel  # noqa: E402 - not without the SDK
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

pytestmark = pytest.mark.usefixtures("nothing_unread")

MODEL = "gpt-4o"
PARIS = json.dumps({"city": "Paris"})
WEATHER = ("get_weather", PARIS)
FINAL = ("final_result", PARIS)


@pt.span
def station(city):
    return f"It is sunny in {city}."


class City(pydantic.BaseModel):
    city: str


class Programs(Bench):
    """Each asks agents of this SDK."""

    parts = ("model", "agent")

    def model(self):
        kind = OpenAIChatModel if self.api == "chat" else OpenAIResponsesModel
        return kind(MODEL, provider=OpenAIProvider(openai_client=self.client()))

    def agent(self, turns, tools=(), **options):
        self.provider.turns = list(turns)
        return ai.Agent(self.model(), name="helper", tools=list(tools), **options)

    async def hello(self):
        return (await self.agent(["It is fine."]).run("hello")).output

    async def tool(self):
        result = await self.agent([WEATHER, "Sunny."], [get_weather]).run("hello")
        return result.output, [type(message) for message in result.all_messages()], result.usage

    async def structured(self):
        return (await self.agent([FINAL], output_type=City).run("hello")).output

    async def structured_again(self):
        return (await self.agent([("final_result", "{}"), FINAL], output_type=City).run("hello")).output

    async def tool_again(self):
        turns = [("get_weather", "{}"), ("picky", PARIS), "Sunny."]
        return (await self.agent(turns, [get_weather, picky], retries=2).run("hello")).output

    async def tool_fails(self):
        return await self.agent([("broken", PARIS)], [broken]).run("hello")

    async def tool_in_vain(self):
        return await self.agent([("picky", PARIS)] * 3, [always]).run("hello")

    async def output_checked(self):
        agent = self.agent(["No.", "Yes."])

        @agent.output_validator
        def check(output: str) -> str:
            if output != "Yes.":
                raise ai.ModelRetry("say yes")
            return output

        return (await agent.run("hello")).output

    async def delegation(self):
        inner = ai.Agent(self.model(), name="inner")

        async def delegate(city: str) -> str:
            """Ask another agent."""
            return (await inner.run(city)).output

        agent = self.agent([("delegate", PARIS), "Inner says.", "Done."], [delegate])
        return (await agent.run("hello")).output

    async def stream_text(self):
        async with self.agent(["It is very fine."]).run_stream("hello") as result:
            chunks = [text async for text in result.stream_text(delta=True, debounce_by=None)]
            station("Rome")
            return chunks

    async def stream_structured(self):
        async with self.agent([FINAL], output_type=City).run_stream("hello") as result:
            return [each async for each in result.stream_output(debounce_by=None)]

    async def stream_tool(self):
        async with self.agent([WEATHER, "Sunny."], [get_weather]).run_stream("hello") as result:
            return await result.get_output()

    async def stream_left(self):
        async with self.agent(["It is very fine."]).run_stream("hello") as result:
            async for text in result.stream_text(debounce_by=None):
                return text

    async def by_hand(self):
        nodes = []
        async with self.agent([WEATHER, "Sunny."], [get_weather]).iter("hello") as run:
            async for node in run:
                nodes.append(type(node).__name__)
        return nodes, run.result.output

    async def by_hand_streamed(self):
        agent = self.agent([WEATHER, "Sunny."], [get_weather])
        events = []
        async with agent.iter("hello") as run:
            async for node in run:
                if agent.is_model_request_node(node) or agent.is_call_tools_node(node):
                    async with node.stream(run.ctx) as stream:
                        events += [type(event).__name__ async for event in stream]
        return events, run.result.output

    async def by_hand_left(self):
        async with self.agent([WEATHER, "Sunny."], [get_weather]).iter("hello") as run:
            async for node in run:
                if type(node).__name__ == "CallToolsNode":
                    break
        return run.result

    async def refused(self):
        return await self.agent([500]).run("hello")

    async def limited(self):
        limits = ai.UsageLimits(request_limit=1)
        return await self.agent([WEATHER, "Sunny."], [get_weather]).run("hello", usage_limits=limits)


def get_weather(city: str) -> str:
    """How the weather is."""
    return station(city)


def broken(city: str) -> str:
    """A tool that fails."""
    raise ValueError(f"no station in {city}")


def picky(city: str) -> str:
    """A tool that wants to be asked twice."""
    raise ai.ModelRetry(f"{city} is no city")


def always(city: str) -> str:
    """A tool that is never content."""
    raise ai.ModelRetry(f"{city} is no city")


always.__name__ = "picky"
PROGRAMS = Programs.programs()
IN_BOTH = ("hello", "tool", "stream_text", "by_hand_streamed")


@pytest.fixture
def loop():
    """The event loop that synchronous runs find, and would else open and leave open."""
    found = asyncio.new_event_loop()
    asyncio.set_event_loop(found)
    yield
    asyncio.set_event_loop(None)
    found.close()


@pytest.mark.parametrize(
    ("name", "api"), [(name, "chat") for name in PROGRAMS] + [(name, "responses") for name in IN_BOTH]
)
def test_a_program_is_the_same(name, api, scripted, recorded):
    """Results, messages, events, exceptions and requests; one tree; tokens once, and as many as the provider says."""
    bench = Programs(scripted, api)
    same(lambda: bench.outcome(name), "pydantic_ai", "openai")

    tree = recorded.tree()
    assert len([line for line in tree.splitlines() if not line.startswith(" ")]) == 1, tree
    assert {span.type for span in recorded.spans if span.token_usage} <= {
        "openai:chat" if api == "chat" else "openai:responses"
    }
    types = {span.id: span.type for span in recorded.spans}
    calls = [span for span in recorded.spans if span.type.startswith("openai:")]
    assert [types[span.parent_id] for span in calls] == ["pydantic-ai:request"] * len(calls), tree
    assert len(calls) == len(scripted.requests)
    assert "sk-secret" not in repr(recorded.spans)


def traced(recorded, scripted, program, api="chat", names=("pydantic_ai", "openai")):
    bench = Programs(scripted, api)
    pt.instrument(*names)
    with pt.instance():
        bench.run(program)
    return recorded.tree()


def test_a_run_is_a_tree(scripted, recorded):
    """What the user's own code records inside a tool hangs under the tool; a model's call under the request."""
    tree = traced(recorded, scripted, "tool")

    assert tree.splitlines() == [
        "agent helper complete",
        "  request gpt-4o complete",
        "    chat gpt-4o complete",
        "  tool get_weather complete",
        "    station complete",
        "  request gpt-4o complete",
        "    chat gpt-4o complete",
    ]
    agent, tool = (
        next(each for each in recorded.spans if each.name.startswith(name)) for name in ("agent", "tool")
    )
    assert agent.payload == {"agent": "helper", "prompt": "hello", "model": MODEL}
    assert agent.result == {"output": "Sunny."}
    assert tool.payload == {"tool": "get_weather", "arguments": {"city": "Paris"}}
    assert tool.result == {"output": "It is sunny in Paris."}
    requests = [span for span in recorded.spans if span.type == "pydantic-ai:request"]
    assert [(span.token_usage, span.result) for span in requests] == [(None, None)] * 2


def test_an_agent_in_a_tool_hangs_under_it(scripted, recorded):
    """Delegation is a tree."""
    tree = traced(recorded, scripted, "delegation")

    assert "  tool delegate complete\n    agent inner complete\n      request gpt-4o" in tree


def test_retries_are_told(scripted, recorded):
    """Arguments that are not valid, a tool that wants others, an output that is none: each has failed, and why."""
    tree = traced(recorded, scripted, "structured_again")
    assert "  output final_result failed\n" in tree
    assert "  output final_result complete" in tree
    refused, made = (span for span in recorded.spans if span.type == "pydantic-ai:output")
    assert "Field required" in refused.error["message"] or "missing" in refused.error["message"]
    assert made.result == {"output": {"city": "Paris"}} or made.result == {"city": "Paris"}


def test_tools_that_are_asked_again_are_told(scripted, recorded):
    """Both kinds of it."""
    tree = traced(recorded, scripted, "tool_again")

    assert "  tool get_weather failed\n" in tree
    assert "  tool picky failed\n" in tree
    assert tree.startswith("agent helper complete")


def test_outputs_that_are_checked_are_told(scripted, recorded):
    """A text goes through the validators of the agent."""
    traced(recorded, scripted, "output_checked")

    outputs = [span for span in recorded.spans if span.type == "pydantic-ai:output"]
    assert [span.status for span in outputs] == ["failed", "complete"]
    assert [span.payload for span in outputs] == [{"text": "No."}, {"text": "Yes."}]


def test_a_tool_that_raises_fails_the_run(scripted, recorded):
    """The same exception on each level."""
    bench = Programs(scripted)
    pt.instrument("pydantic_ai")
    with pt.instance(), pytest.raises(ValueError, match="no station"):
        bench.run("tool_fails")

    failed = [span for span in recorded.spans if span.status == "failed"]
    assert [span.name for span in failed] == ["agent helper", "tool broken"]
    assert {span.error["message"] for span in failed} == {"no station in Paris"}


@pytest.mark.parametrize("program", ["tool", "stream_tool", "by_hand_streamed"])
def test_without_the_sdk_the_request_has_the_tokens(program, scripted, recorded):
    """And what the model has said."""
    traced(recorded, scripted, program, "responses", names=["pydantic_ai"])

    first, second = (span for span in recorded.spans if span.type == "pydantic-ai:request")
    expected = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    assert {name: second.token_usage[name] for name in expected} == expected
    assert second.token_usage["cache_read_tokens"] == 4
    assert first.result["tool_calls"][0]["name"] == "get_weather"
    assert second.result["text"] == "Sunny."
    assert first.payload["request"][-1] == {"kind": "user-prompt", "content": "hello"}
    assert "usd" in second.metadata.get("cost", {"usd": 0})


def test_in_the_block_of_a_stream_the_users_steps_are_the_agents(scripted, recorded):
    """The request is over only when the stream is, and nobody's parent until then."""
    tree = traced(recorded, scripted, "stream_text")

    assert "\n  station complete" in tree


def test_a_run_that_is_left_early_says_so(scripted, recorded):
    """It has no result, and it has not failed."""
    traced(recorded, scripted, "by_hand_left")

    agent = recorded.spans[0]
    assert (agent.status, agent.metadata) == ("complete", {"incomplete": True})


def test_sync_runs_are_recorded(loop, recorded):
    """Also under a step of the user's."""

    def answer(messages, info):
        return ai.ModelResponse(parts=[ai.TextPart("fine")])

    @pt.span("outer")
    def outer():
        return ai.Agent(FunctionModel(answer), name="helper").run_sync("hello").output

    pt.instrument("pydantic_ai")
    with pt.instance():
        assert outer() == "fine"

    tree = re.sub(r"request \S+", "request x", recorded.tree())
    assert tree == "outer complete\n  agent helper complete\n    request x complete"


def test_a_cancelled_run_is_cancelled(scripted, recorded):
    """On each level."""
    bench = Programs(scripted)

    async def program():
        agent = bench.agent([{"hold": "It is fine."}])

        async def read():
            async with agent.run_stream("hello") as result:
                await result.get_output()

        task = asyncio.create_task(read())
        await asyncio.to_thread(scripted.released_first.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        scripted.release.set()
        assert task.cancelled()
        assert pt.current_span() is None

    pt.instrument("pydantic_ai", "openai")
    with pt.instance():
        bench.finish(program())

    assert {span.status for span in recorded.spans} == {"cancelled"}
    assert len(recorded.spans) == 3


def test_spans_of_opentelemetry_are_not_ours(scripted, recorded):
    """The SDK's own instrumentation works beside ours, and ours is the same with and without it."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = memory.InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    without = traced(recorded, scripted, "tool")
    try:
        from pydantic_ai.models.instrumented import InstrumentationSettings

        ai.Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
        both = traced(recorded, scripted, "tool")
    finally:
        ai.Agent.instrument_all(False)

    assert len(exporter.get_finished_spans()) >= 4
    assert both == f"{without}\n{without}"


def test_an_agent_learns_its_name_as_ever(loop, recorded):
    """From the caller's variable, which it looks for in frames."""
    found = []
    for is_traced in (False, True):
        if is_traced:
            pt.instrument("pydantic_ai")
        with pt.instance():
            capital_agent = ai.Agent(FunctionModel(lambda *_: ai.ModelResponse(parts=[ai.TextPart("fine")])))
            capital_agent.run_sync("hello")
            found.append(capital_agent.name)

    assert found == ["capital_agent"] * 2
    assert recorded.spans[0].name == "agent capital_agent"


def test_uninstrument_restores_the_methods(recorded):
    """Every one is the very same again."""
    from prefactor_trace.integrations.pydantic_ai import TAPS

    def functions():
        found = []
        for tap in TAPS:
            module, _, path = tap.where.partition(":")
            owner, name = path.split(".")
            found.append(vars(getattr(sys.modules[module], owner))[name])
        return found

    before = functions()
    assert pt.instrument("pydantic_ai")["pydantic_ai"].state == "on"
    assert not any(new is old for new, old in zip(functions(), before, strict=True))
    pt.uninstrument()
    assert all(new is old for new, old in zip(functions(), before, strict=True))


@pytest.mark.parametrize("at", range(7))
def test_a_tap_of_others_over_ours_stays(recorded, at):
    """Ours goes when theirs is gone, and does nothing until then."""
    from prefactor_trace.integrations.pydantic_ai import TAPS

    module, _, path = TAPS[at].where.partition(":")
    owner_name, name = path.split(".")
    owner = getattr(sys.modules[module], owner_name)
    original = vars(owner)[name]
    pt.instrument("pydantic_ai")
    ours = vars(owner)[name]

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    setattr(owner, name, theirs)
    pt.uninstrument()
    assert vars(owner)[name] is theirs
    setattr(owner, name, ours)
    pt.uninstrument()
    assert vars(owner)[name] is original


def test_what_cannot_be_read_does_no_harm(scripted, recorded, monkeypatch):
    """The run is the same; the span is there, and knows less."""
    from prefactor_trace.integrations import pydantic_ai

    def unread(*_):
        raise KeyError

    failures = []
    monkeypatch.setattr(_guard, "failed", failures.append)
    monkeypatch.setattr(pydantic_ai, "_request_ends", unread)
    monkeypatch.setattr(pydantic_ai, "_run_told", unread)
    bench = Programs(scripted)
    same(lambda: bench.outcome("stream_tool"), "pydantic_ai")

    assert recorded.tree().splitlines()[:2] == ["agent helper complete", "  request gpt-4o complete"]
    assert failures == ["read an answer of pydantic_ai"] * 3


def test_a_terminated_run_comes_to_an_end(scripted, recorded):
    """Before the model is asked."""
    bench = Programs(scripted)
    pt.instrument("pydantic_ai")
    with pytest.raises(pt.InstanceTerminated), pt.instance() as instance:
        instance.heard_terminated("too dear")
        bench.run("hello")

    assert scripted.requests == []

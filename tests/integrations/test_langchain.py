"""LangChain and LangGraph: programs do the same as without us, and every run is a span in LangChain's own tree."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import copy
import gc
import operator
import pickle
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest

import prefactor_trace as pt
from prefactor_trace._context import current
from prefactor_trace.integrations import _langchain_values, langchain
from prefactor_trace.testing import recording

pytest.importorskip("langchain_core")
pytest.importorskip("langgraph")

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM, FakeStreamingListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import ToolException, tool
from langchain_core.tracers.context import _configure_hooks, collect_runs
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

openai = pytest.importorskip("openai")
langchain_openai = pytest.importorskip("langchain_openai")
pytest.importorskip("numpy")  # LangChain's store of vectors needs it
agents = pytest.importorskip("langchain.agents")

USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
# Below Python 3.11 asyncio cannot run a task in a given context.
in_tasks = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.create_task has no context before 3.11"
)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever a test does: no run stays open, and nothing stays current."""
    yield
    assert not langchain._runs
    assert current.get() is None
    assert langchain._placed.get() is None
    assert langchain._stage.get() is None


@pytest.fixture
def run(recorded):
    """An instance in which LangChain, but no SDK, is recorded."""
    pt.instrument("langchain")
    with pt.instance():
        yield recorded


@pytest.fixture
def run_with_sdk(recorded):
    """An instance in which OpenAI's SDK is recorded, too."""
    pt.instrument("langchain", "openai")
    with pt.instance():
        yield recorded


# Nothing here is encrypted, and to load what clients trust takes half a second.
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CLIENTS: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def client():
    """One HTTP client for all models."""
    with openai.DefaultHttpxClient(verify=TRUST) as CLIENTS["http_client"]:
        yield
    CLIENTS.clear()


def run_async(main):
    """Run the coroutine, with an asynchronous client for it: that belongs to one event loop."""

    async def with_client():
        async with openai.DefaultAsyncHttpxClient(verify=TRUST) as CLIENTS["http_async_client"]:
            try:
                return await main
            finally:
                del CLIENTS["http_async_client"]

    return asyncio.run(with_client())


def options_for(provider):
    return {"base_url": f"{provider.url}/v1", "api_key": "sk-secret", "max_retries": 0, **CLIENTS}


def chat_openai(provider, **options):
    return langchain_openai.ChatOpenAI(model="gpt-4o", **options_for(provider), **options)


def embeddings(provider):
    return langchain_openai.OpenAIEmbeddings(check_embedding_ctx_length=False, **options_for(provider))


class Fake(GenericFakeChatModel):
    """A chat model that says what it is given, and takes tools."""

    def bind_tools(self, tools, **kwargs):
        return self


def fake(*messages):
    return Fake(messages=iter(messages))


def says(text, **more):
    return AIMessage(content=text, usage_metadata=USAGE, **more)


def calls_weather(city="Paris"):
    return AIMessage(content="", tool_calls=[{"name": "weather", "args": {"city": city}, "id": "call_1"}])


@pt.span
def look_up(city):
    return f"sunny in {city}"


@tool
def weather(city: str) -> str:
    """How is the weather?"""
    return look_up(city)


class State(TypedDict):
    said: Annotated[list, operator.add]


def graph_of(**nodes):
    """Return the graph of *nodes*, one after another."""
    builder = StateGraph(State)
    before = START
    for name, function in nodes.items():
        builder.add_node(name, function)
        builder.add_edge(before, name)
        before = name
    builder.add_edge(before, END)
    return builder


def by_name(recorded, name):
    return next(each for each in recorded.spans if each.name == name)


def tree(recorded):
    """The tree without the edges of an agent, which older versions call in runs of their own."""
    return "\n".join(line for line in recorded.tree().splitlines() if "_to_" not in line)


def seen_by_all():
    return [type(pt.current_span()).__name__, langchain._stage.get(), langchain._placed.get()]


# -- the same with and without -----------------------------------------------------------------------------


def ask(provider):
    return chat_openai(provider).invoke("How is the weather?")


def stream(provider):
    return list(chat_openai(provider, stream_usage=True).stream("How is the weather?"))


def left_early(provider):
    found = chat_openai(provider).stream("How?")
    first = [type(found).__name__, next(found)]
    found.close()
    return first


def chain(provider):
    prompt = ChatPromptTemplate.from_messages([("system", "Be short."), ("user", "{question}")])
    parts = prompt | chat_openai(provider) | StrOutputParser()
    question = {"question": "How?"}
    return [parts.invoke(question), list(parts.stream(question)), parts.batch([question, question])]


def agent(provider):
    found = agents.create_agent(chat_openai(provider), [weather], system_prompt="Help.")
    return [m.model_dump(exclude={"id"}) for m in found.invoke({"messages": [("user", "How?")]})["messages"]]


def agent_stream(provider):
    found = agents.create_agent(chat_openai(provider), [weather])
    asked = {"messages": [("user", "How?")]}
    return [mode for mode, _ in found.stream(asked, stream_mode=["updates", "messages", "values"])]


def parallel(provider):
    parts = RunnableParallel(
        one=RunnableLambda(look_up), two=chat_openai(provider), all=RunnablePassthrough()
    )
    found = parts.invoke("Paris")
    return [found["one"], found["two"].content, found["all"]]


def rag(provider):
    store = InMemoryVectorStore(embeddings(provider))
    store.add_texts(["sunny", "rainy"], metadatas=[{"n": 1}, {"n": 2}])
    prompt = ChatPromptTemplate.from_template("{context}: {question}")
    found = store.as_retriever(search_kwargs={"k": 1}) | (lambda documents: documents[0].page_content)
    context = {"context": found, "question": RunnablePassthrough()}
    return (context | prompt | chat_openai(provider) | StrOutputParser()).invoke("How?")


def structured(provider):
    schema = {
        "title": "City",
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    return chat_openai(provider).with_structured_output(schema, method="json_schema").invoke("Where?")


def fallback(provider):
    def breaks(_):
        raise KeyError("no")

    return RunnableLambda(breaks).with_fallbacks([chat_openai(provider)]).invoke("How?").content


def retry(provider):
    provider.faults[:] = [500]
    return (
        chat_openai(provider)
        .with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        .invoke("How?")
        .content
    )


def refused(provider):
    provider.faults[:] = [429]
    return chat_openai(provider).invoke("How?")


def broken_stream(provider):
    provider.faults[:] = ["disconnect"]
    return list(chat_openai(provider).stream("How?"))


def bad_tool(provider):
    @tool
    def breaks(city: str) -> str:
        """Break."""
        raise ZeroDivisionError(city)

    return breaks.invoke({"city": "Paris"})


def wrong_arguments(provider):
    return weather.invoke({"town": 1})


def handled_tool(provider):
    @tool
    def breaks(city: str) -> str:
        """Break."""
        raise ToolException(city)

    breaks.handle_tool_error = True
    return breaks.invoke({"city": "Paris"})


def loops(provider):
    builder = StateGraph(State)
    builder.add_node("again", lambda state: {"said": [1]})
    builder.add_edge(START, "again")
    builder.add_edge("again", "again")
    return builder.compile().invoke({"said": []}, {"recursion_limit": 3})


def text_model(provider):
    model = FakeListLLM(responses=["a", "b"])
    return [
        model.invoke("x"),
        model.batch(["x", "y"]),
        list(FakeStreamingListLLM(responses=["abc"]).stream("x")),
    ]


def in_async(program):
    return lambda provider: run_async(program(provider))


@in_async
async def async_agent(provider):
    found = agents.create_agent(chat_openai(provider), [weather])
    messages = (await found.ainvoke({"messages": [("user", "How?")]}))["messages"]
    return [m.model_dump(exclude={"id"}) for m in messages]


@in_async
async def async_stream(provider):
    parts = ChatPromptTemplate.from_template("{q}") | chat_openai(provider) | StrOutputParser()
    return [each async for each in parts.astream({"q": "How?"})], await parts.abatch([{"q": "a"}, {"q": "b"}])


@in_async
async def events(provider):
    parts = ChatPromptTemplate.from_template("{q}") | chat_openai(provider) | StrOutputParser()
    return [
        (each["event"], each["name"], len(each["parent_ids"]))
        async for each in parts.astream_events({"q": "How?"})
    ]


@in_async
async def async_rag(provider):
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=4))
    await store.aadd_texts(["sunny", "rainy"])
    return [each.page_content for each in await store.as_retriever().ainvoke("How?")]


@in_async
async def async_text_model(provider):
    model = FakeListLLM(responses=["a", "b"])
    return [
        await model.ainvoke("x"),
        [each async for each in FakeStreamingListLLM(responses=["abc"]).astream("x")],
    ]


PROGRAMS = {
    name: program
    for name, program in globals().copy().items()
    if callable(program)
    and getattr(program, "__module__", None) == __name__
    and getattr(program, "__code__", None) is not None
    and program.__code__.co_varnames[:1] == ("provider",)
    and name not in ("chat_openai", "embeddings", "options_for")
}


def exact(value):
    """Return *value* with its exact types, without the ids that LangChain draws by lot."""
    if isinstance(value, (AIMessage, AIMessageChunk)):
        return type(value), value.model_dump(exclude={"id"})
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    return type(value), value


def outcome(program, provider):
    provider.faults.clear()
    provider.requests.clear()
    try:
        found = exact(program(provider))
    except Exception as error:
        found = type(error), str(error), type(error.__cause__), type(error.__context__)
    return found, sorted(body for _, _, body in provider.requests)


def test_there_are_programs():
    assert len(PROGRAMS) > 20


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same(name, provider, recorded):
    """What it returns, raises and asks the provider is equal, in a run and outside of any."""
    program = PROGRAMS[name]
    without = outcome(program, provider)
    pt.instrument("langchain", "openai")
    assert without == outcome(program, provider)
    with pt.instance():
        assert without == outcome(program, provider)
        assert pt.current_span() is None
    assert recorded.spans
    assert 0 == recorded.ledger.pending
    pt.uninstrument()
    assert without == outcome(program, provider)


# -- trees -------------------------------------------------------------------------------------------------


def test_an_agent(provider, run_with_sdk):
    """The user's own steps hang under the tool, the SDK's under the model; the SDK's have the tokens."""
    agent(provider)
    assert tree(run_with_sdk) == textwrap.dedent("""\
        LangGraph complete
          model complete
            ChatOpenAI complete
              chat gpt-4o complete
          tools complete
            weather complete
              look_up complete
          model complete
            ChatOpenAI complete
              chat gpt-4o complete""")
    assert {each.type for each in run_with_sdk.spans if each.token_usage} == {"openai:chat"}
    found = by_name(run_with_sdk, "weather")
    assert found.type == "langchain:tool"
    assert found.payload == {"city": "Paris"}
    assert found.result["content"] == "sunny in Paris"
    assert found.result["tool_call_id"] == "call_1" == found.metadata.get("tool_call_id", "call_1")
    node = by_name(run_with_sdk, "tools")
    assert node.type == "langgraph:node"
    assert node.metadata["step"] == 2


@in_tasks
def test_an_asynchronous_agent(provider, run_with_sdk):
    async_agent(provider)
    assert tree(run_with_sdk).splitlines()[3:8] == [
        "      chat gpt-4o complete",
        "  tools complete",
        "    weather complete",
        "      look_up complete",
        "  model complete",
    ]


def test_a_graph_with_parallel_nodes(provider, run_with_sdk):
    """Nodes of a step run in threads of their own; each step hangs where it belongs."""
    meet = threading.Barrier(2)

    def branch(name):
        def node(state):
            meet.wait(5)
            return {"said": [look_up(name)]}

        return node

    builder = StateGraph(State)
    builder.add_node("begin", lambda state: {"said": []})
    builder.add_node("left", branch("left"))
    builder.add_node("right", branch("right"))
    builder.add_edge(START, "begin")
    builder.add_conditional_edges("begin", lambda state: ["left", "right"], ["left", "right"])
    builder.compile(name="fork").invoke({"said": []})
    spans = {each.id: each for each in run_with_sdk.spans}
    parents = {
        (each.payload or {}).get("city", each.name): spans[each.parent_id].name
        for each in spans.values()
        if each.parent_id
    }
    assert parents["begin"] == "fork"
    assert {
        each.payload["city"]: spans[each.parent_id].name for each in spans.values() if each.name == "look_up"
    } == {
        "left": "left",
        "right": "right",
    }


def test_a_subgraph_and_commands(run):
    """A command to the graph above is no failure; what is sent to a node is recorded as data."""

    def hand_over(state):
        return Command(goto="end", update={"said": ["over"]}, graph=Command.PARENT)

    inner = graph_of(hand_over=hand_over).compile(name="inner")
    builder = StateGraph(State)
    builder.add_node("sub", inner)
    builder.add_node("end", lambda state: {"said": ["end"]})
    builder.add_edge(START, "sub")
    assert builder.compile(name="outer").invoke({"said": []}) == {"said": ["over", "end"]}
    assert {each.status for each in run.spans} == {"complete"}
    left = by_name(run, "hand_over")
    assert left.metadata["control_flow"] == "ParentCommand"
    assert left.metadata["said"][0]["update"] == {"said": ["over"]}


def test_sends(run):
    """Each is a step of its own; which of them is the first to begin is up to their threads."""
    builder = StateGraph(State)
    builder.add_node("work", lambda state: {"said": [state["item"]]})
    builder.add_conditional_edges(
        START, lambda state: [Send("work", {"item": n}) for n in range(3)], ["work"]
    )
    assert builder.compile().invoke({"said": []}) == {"said": [0, 1, 2]}
    assert sorted(each.payload["item"] for each in run.spans if each.name == "work") == [0, 1, 2]


def test_retrieval(provider, run_with_sdk):
    """The SDK's embeddings hang under the retriever, and the documents are data."""
    rag(provider)
    found = by_name(run_with_sdk, "VectorStoreRetriever")
    assert found.type == "langchain:retriever"
    assert found.payload == {"query": "How?"}
    (document,) = found.result["documents"]
    assert document["page_content"] in ("sunny", "rainy")
    assert document["metadata"]["n"] in (1, 2)
    inside = [each.type for each in run_with_sdk.spans if each.parent_id == found.id]
    assert inside == ["openai:embeddings"]


def test_a_chain_in_a_sequence_in_threads(run):
    """What `batch` and RunnableParallel do in threads hangs under their own runs."""
    parts = RunnableLambda(look_up, name="first") | RunnableParallel(
        one=RunnableLambda(look_up, name="one"), two=RunnableLambda(look_up, name="two")
    )
    parts.batch(["a", "b", "c"])
    for each in run.spans:
        if each.name == "look_up":
            parent = next(span for span in run.spans if span.id == each.parent_id)
            assert parent.name in ("first", "one", "two")
            assert parent.payload == {"input": each.payload["city"]}
    assert len([each for each in run.spans if each.parent_id is None]) == 3


def test_a_run_in_a_step_of_the_users_in_a_tool(run):
    """The innermost of what is open is the parent, whoever has opened it."""

    @pt.span("think")
    def think(text):
        return fake(says("ok")).invoke(text).content

    @tool
    def thinks(text: str) -> str:
        """Think."""
        return think(text)

    with pt.span("mine"):
        thinks.invoke({"text": "a"})
    assert run.tree().split() == "mine complete thinks complete think complete Fake complete".split()
    depths = [len(line) - len(line.lstrip()) for line in run.tree().splitlines()]
    assert depths == [0, 2, 4, 6]


def test_an_agent_as_a_tool_with_a_run_of_its_own(recorded):
    pt.instrument("langchain")

    @tool
    def helper(text: str) -> str:
        """Ask a helper."""
        with pt.instance(agent_name="helper"):
            return fake(says("ok")).invoke(text).content

    with pt.instance(agent_name="boss"):
        helper.invoke({"text": "a"})
    boss, other = recorded.instances
    assert [(each.name, each.instance_id) for each in recorded.spans] == [
        ("helper", boss.id),
        ("Fake", other.id),
    ]


def test_in_threads_without_a_context(run):
    """A thread that has copied no context knows nothing of ours; the config that was handed on does."""

    def node(state, config: RunnableConfig):
        inner = RunnableLambda(lambda x: x, name="inner")
        with ThreadPoolExecutor(1) as pool:
            return {"said": [pool.submit(contextvars.Context().run, inner.invoke, 1, config).result()]}

    graph_of(node=node).compile(name="graph").invoke({"said": []})
    assert [line.split()[0] for line in run.tree().splitlines()] == ["graph", "node", "inner"]
    assert run.tree().splitlines()[-1].startswith("    ")


def test_what_goes_into_a_stream(run):
    """LangChain tells it as the stream ends."""
    parts = RunnableLambda(look_up, name="first") | RunnableLambda(look_up, name="second")
    list(parts.stream("Paris"))
    given = {each.name: each.payload for each in run.spans if each.type == "langchain:chain"}
    assert given["first"] == {"input": "Paris"}
    assert given["second"] == {"input": "sunny in Paris"}


def test_many_at_once(run):
    """Ten threads, each with its own tree, under the run that they were started in."""
    parts = RunnableLambda(look_up, name="outer") | RunnableLambda(look_up, name="inner")

    def work(n):
        for _ in range(5):
            parts.invoke(str(n))

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, n)) for n in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    spans = {each.id: each for each in run.spans}
    assert len(spans) == 10 * 5 * 5
    for each in spans.values():
        if each.name == "look_up":
            assert spans[each.parent_id].payload == {"input": each.payload["city"]}


def test_hidden_runs_are_left_out(run):
    """What they hold hangs one level higher."""

    class Hidden(RunnableLambda):
        def invoke(self, value, config=None, **kwargs):
            return super().invoke(value, {**(config or {}), "tags": ["langsmith:hidden"]}, **kwargs)

    shown = RunnableLambda(look_up, name="shown")
    inside = Hidden(lambda x: [shown.with_config(tags=[]).invoke(x), look_up(x)][0])
    assert RunnableLambda(inside.invoke, name="outer").invoke("a") == "sunny in a"
    assert Hidden(look_up).invoke("b") == "sunny in b"
    lines = [line.removesuffix(" complete") for line in run.tree().splitlines()]
    assert lines == [
        "outer",
        "  look_up",
        "  look_up",
        "look_up",
    ]  # a config's tags hold for what is inside, too


# -- what is current ---------------------------------------------------------------------------------------


def test_between_two_items_the_context_is_the_consumers(provider, run_with_sdk):
    model = chat_openai(provider)
    parts = RunnableLambda(lambda x: x) | model
    for found in (model.stream("a"), parts.stream("a"), FakeStreamingListLLM(responses=["abc"]).stream("a")):
        for _ in found:
            with pt.span("mine"):
                pass
    assert {each.parent_id for each in run_with_sdk.spans if each.name == "mine"} == {None}


@in_tasks
def test_between_two_items_of_an_asynchronous_stream_too(provider, run_with_sdk):
    async def consume(found):
        async for _ in found:
            with pt.span("mine"):
                pass

    async def main():
        model = chat_openai(provider)
        await consume(model.astream("a"))
        await consume((RunnableLambda(lambda x: x) | model).astream("a"))
        await consume(graph_of(node=lambda s: {"said": [1]}).compile().astream({"said": []}))
        await consume(FakeStreamingListLLM(responses=["abc"]).astream("a"))

    run_async(main())
    mine = [each for each in run_with_sdk.spans if each.name == "mine"]
    assert len(mine) > 10
    assert {each.parent_id for each in mine} == {None}
    chats = [each for each in run_with_sdk.spans if each.type == "langchain:chat"]
    sdk = [each for each in run_with_sdk.spans if each.type == "openai:chat"]
    assert [each.parent_id for each in sdk] == [each.id for each in chats]


def test_a_stream_read_in_other_contexts(run):
    """Each item is taken in a context of its own, as web servers do; nothing leaks, and nothing is said."""
    found = fake(says("a b c")).stream("x")
    seen = []

    def take():
        try:
            next(found)
        except StopIteration:
            return False
        seen.append(seen_by_all())
        return True

    while contextvars.copy_context().run(take):
        pass
    assert len(seen) > 3
    assert {tuple(each) for each in seen} == {("NoneType", None, None)}
    assert run.tree() == "Fake complete"


def test_a_stream_left_early(provider, run_with_sdk):
    """It is complete, and says that its consumer went away."""
    found = chat_openai(provider).stream("a")
    next(found)
    found.close()
    chat = by_name(run_with_sdk, "ChatOpenAI")
    assert chat.status == "complete"
    assert chat.metadata["abandoned"] is True
    graph = graph_of(one=lambda s: {"said": [1]}, two=lambda s: {"said": [2]}).compile().stream({"said": []})
    next(graph)
    graph.close()
    assert by_name(run_with_sdk, "LangGraph").metadata["abandoned"] is True


def test_an_asynchronous_stream_left_early(provider, run_with_sdk):
    async def main():
        graph = graph_of(one=lambda s: {"said": [1]}, two=lambda s: {"said": [2]}).compile()
        for found in (chat_openai(provider).astream("a"), graph.astream({"said": []})):
            await anext(found)
            await found.aclose()

    run_async(main())
    assert by_name(run_with_sdk, "ChatOpenAI").metadata["abandoned"] is True
    assert by_name(run_with_sdk, "LangGraph").metadata["abandoned"] is True


def test_a_chain_whose_stream_is_left_early(run):
    """LangChain ends only the chain: the model in it was not cancelled, either, but left."""
    found = (fake(says("a b c")) | StrOutputParser()).stream("x")
    next(each for each in found if each)
    found.close()
    assert {each.status for each in run.spans} == {"complete"}
    for name in ("Fake", "StrOutputParser"):
        assert by_name(run, name).metadata["abandoned"] is True


def test_an_asynchronous_stream_that_nobody_closes(run):
    """The event loop closes it as it ends, and has nothing to complain of."""
    complaints = []
    kept = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        kept.append(fake(says("a b c")).astream("x"))
        await anext(kept[0])

    run_async(main())
    assert not complaints
    assert by_name(run, "Fake").metadata["abandoned"] is True


def test_a_stream_dropped(run):
    found = fake(says("a b c")).stream("x")
    next(found)
    del found
    gc.collect()
    assert by_name(run, "Fake").status == "complete"


# -- how runs end ------------------------------------------------------------------------------------------


def test_errors(provider, run_with_sdk):
    for program in (bad_tool, broken_stream, refused):
        with pytest.raises(Exception) as refusal:
            program(provider)
    tool_, broken, _, chat, _ = run_with_sdk.spans
    assert (tool_.name, tool_.status, tool_.error["error_type"]) == ("breaks", "failed", "ZeroDivisionError")
    assert (chat.status, chat.error["error_type"].split(".")[-1]) == (
        "failed",
        type(refusal.value).__qualname__,
    )
    assert broken.status == "failed"
    assert broken.result["text"].startswith("It is")


def test_fallbacks_and_retries(provider, run):
    fallback(provider)
    retry(provider)
    leaves = [each for each in run.spans if each.name == "breaks" or each.type == "langchain:chat"]
    statuses = [(each.name, each.status) for each in leaves]
    assert statuses == [
        ("breaks", "failed"),
        ("ChatOpenAI", "complete"),
        ("ChatOpenAI", "failed"),
        ("ChatOpenAI", "complete"),
    ]
    assert run.spans[-1].metadata["tags"] == ["retry:attempt:2"]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_tried_hangs_under_its_fallbacks(is_async, run):
    """Although LangChain names the run around all of it as the parent; what comes after is beside it."""

    def breaks(_):
        raise KeyError("no")

    tried = RunnableLambda(breaks).with_fallbacks([fake(says("a")).with_fallbacks([fake(says("b"))])])
    chain = RunnableLambda(str, name="before") | tried | RunnableLambda(str, name="after")
    run_async(chain.ainvoke("x")) if is_async else chain.invoke("x")
    lines = [line for line in run.tree().splitlines() if "str " not in line]
    assert lines == [
        "RunnableSequence complete",
        "  before complete",
        "  RunnableWithFallbacks complete",
        "    breaks failed",
        "    RunnableWithFallbacks complete",
        "      Fake complete",
        "  after complete",
    ]


def test_an_interrupt_is_no_failure(run):
    def ask_human(state):
        return {"said": [interrupt({"really": "?"})]}

    graph = graph_of(ask_human=ask_human).compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t-1"}}
    graph.invoke({"said": []}, config)
    assert graph.invoke(Command(resume="yes"), config) == {"said": ["yes"]}
    assert {each.status for each in run.spans} == {"complete"}
    first, second = [each for each in run.spans if each.name == "ask_human"]
    assert first.metadata["control_flow"] == "GraphInterrupt"
    assert first.metadata["said"][0][0]["value"] == {"really": "?"}
    assert first.metadata["metadata"] == {"thread_id": "t-1"}
    assert "control_flow" not in second.metadata
    resumed = [each for each in run.spans if each.name == "LangGraph"][1]
    assert resumed.payload["resume"] == "yes"


def test_an_interrupt_in_a_tool(run):
    @tool
    def confirm(text: str) -> str:
        """Ask."""
        return interrupt(text)

    call = AIMessage(content="", tool_calls=[{"name": "confirm", "args": {"text": "?"}, "id": "1"}])
    found = agents.create_agent(fake(call, says("done")), [confirm], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t-1"}}
    found.invoke({"messages": [("user", "a")]}, config)
    found.invoke(Command(resume="yes"), config)
    assert {each.status for each in run.spans} == {"complete"}
    assert [each.metadata.get("control_flow") for each in run.spans if each.name == "confirm"] == [
        "GraphInterrupt",
        None,
    ]


class Slow:
    """Things that never come to an end, and say when they have begun."""

    def __init__(self):
        self.begun = asyncio.Event()

    async def wait(self):
        self.begun.set()
        await asyncio.Event().wait()

    def tool(self):
        @tool
        async def waits(text: str) -> str:
            """Wait."""
            await self.wait()

        return waits.ainvoke({"text": "a"})

    def model(self):
        slow = self

        class Waits(Fake):
            async def _agenerate(self, *args, **kwargs):
                await slow.wait()

        return Waits(messages=iter(())).ainvoke("a")

    def stream(self):
        slow = self

        class Waits(Fake):
            async def _astream(self, *args, **kwargs):
                await slow.wait()
                yield

        async def consume():
            async for _ in Waits(messages=iter(())).astream("a"):
                pass

        return consume()

    def retriever(self):
        slow = self

        class Waits(BaseRetriever):
            def _get_relevant_documents(self, query, *, run_manager):
                raise NotImplementedError

            async def _aget_relevant_documents(self, query, *, run_manager):
                await slow.wait()

        return Waits().ainvoke("a")

    def chain(self):
        return RunnableLambda(lambda x: x).pipe(RunnableLambda(self._wait)).ainvoke("a")

    async def _wait(self, _):
        await self.wait()

    def graph(self):
        async def node(state):
            await self.wait()

        return graph_of(node=node).compile().ainvoke({"said": []})


@pytest.mark.parametrize("kind", ["tool", "model", "stream", "retriever", "chain", "graph"])
def test_what_is_cancelled_ends_as_cancelled(kind, run):
    """Also where LangChain calls nobody: no span stays open, and what goes on is not confused."""

    async def main():
        slow = Slow()
        task = asyncio.ensure_future(getattr(slow, kind)())
        await slow.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(5):  # a callback may be on its way in a task of its own
            await asyncio.sleep(0)
        assert not langchain._runs

    run_async(main())
    assert {each.status for each in run.spans if each.name != "RunnableLambda"} == {"cancelled"}
    assert run.ledger.pending == 0


def test_what_nobody_ends_ends_with_its_root(run):
    """A run that is still open as the outermost one ends is cancelled."""
    begun = threading.Event()
    release = threading.Event()
    left = []

    def hang(_):
        begun.set()
        release.wait(10)

    def outer(_, config: RunnableConfig):
        inner = RunnableLambda(hang, name="inner")
        left.append(threading.Thread(target=inner.invoke, args=(1, config)))
        left[0].start()
        begun.wait(10)

    RunnableLambda(outer, name="outer").invoke(1)
    found = {each.name: each.status for each in run.spans}
    release.set()
    left[0].join()
    assert found == {"outer": "complete", "inner": "cancelled"}
    assert {each.name: each.status for each in run.spans} == found


def test_a_terminated_run_stops_the_agent(recorded):
    """InstanceTerminated is the one thing of ours that gets out."""
    pt.instrument("langchain")
    done = []
    with pytest.raises(pt.InstanceTerminated), pt.instance() as instance:

        def first(state):
            instance.heard_terminated("enough")
            return {"said": [1]}

        graph_of(first=first, second=lambda s: done.append(1)).compile().invoke({"said": []})
    assert not done
    assert [each.name for each in recorded.spans] == ["LangGraph", "first"]


# -- models ------------------------------------------------------------------------------------------------


def test_tokens_are_here_if_nobody_else_has_them(provider, run):
    """With LangChain alone the chat's span has tokens and cost; counted once, they are the provider's."""
    chat_openai(provider).invoke("a")
    list(chat_openai(provider, stream_usage=True).stream("a"))
    asked, streamed = run.spans
    tokens = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    assert (
        asked.token_usage == {**tokens, "cache_read_tokens": 4, "reasoning_tokens": 2} == streamed.token_usage
    )
    if pytest.importorskip("genai_prices"):
        assert asked.metadata["cost"]["usd"] > 0
    assert asked.metadata["provider"] == "openai"
    assert asked.metadata["model"] == "gpt-4o"
    assert asked.payload["model"] == "gpt-4o"
    assert asked.payload["messages"] == [{"role": "user", "content": "a"}]
    assert asked.result == {"text": "It is sunny in Paris.", "finish_reason": "stop"}
    assert streamed.result == asked.result
    assert streamed.metadata["time_to_first_token_ms"] > 0
    assert "sk-secret" not in repr(run.spans)


@pytest.mark.parametrize("way", ["invoke", "stream", "events"])
def test_tokens_are_counted_once(way, provider, run_with_sdk):
    """With the SDK recorded, its span alone has them, whichever way LangChain calls it."""

    async def main():
        model = chat_openai(provider, stream_usage=True)
        if way == "invoke":
            await model.ainvoke("a")
        elif way == "stream":
            [each async for each in model.astream("a")]
        else:
            [each async for each in model.astream_events("a")]

    model = chat_openai(provider, stream_usage=True)
    if way == "invoke":
        model.invoke("a")
        model.batch(["a", "b"])
    elif way == "stream":
        list(model.stream("a"))
    run_async(main())
    assert {each.type for each in run_with_sdk.spans if each.token_usage} == {"openai:chat"}
    total = sum(each.token_usage["total_tokens"] for each in run_with_sdk.spans if each.token_usage)
    assert total == 18 * len(provider.requests)
    chats = {each.id for each in run_with_sdk.spans if each.type == "langchain:chat"}
    assert {each.parent_id for each in run_with_sdk.spans if each.type == "openai:chat"} == chats


def test_protocol_streams(provider, run_with_sdk):
    """The newest way to stream counts once, too."""
    model = chat_openai(provider, stream_usage=True)
    try:
        found = model.stream_events("a", version="v3")
    except (AttributeError, TypeError, NotImplementedError, ValueError):
        pytest.skip("this version has no such stream")
    assert "".join(found.text) == "It is sunny in Paris."
    chat, sdk = run_with_sdk.spans
    assert (chat.type, sdk.type, sdk.parent_id) == ("langchain:chat", "openai:chat", chat.id)
    assert chat.token_usage is None


def test_tool_calls_and_parameters(run):
    model = fake(calls_weather())
    model.bind_tools([weather]).invoke([SystemMessage("Help."), HumanMessage("How?")], stop=["\n"])
    (found,) = run.spans
    assert found.payload["messages"] == [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": "How?"},
    ]
    assert found.payload["parameters"] == {"stop": ["\n"]}
    assert found.result["tool_calls"] == [{"id": "call_1", "name": "weather", "arguments": {"city": "Paris"}}]


def test_a_cached_answer_has_used_nothing(provider, run):
    model = chat_openai(provider, cache=InMemoryCache())
    for _ in range(2):
        model.invoke("a")
    first, second = run.spans
    assert first.token_usage["total_tokens"] == 18
    assert second.token_usage is None
    assert second.metadata["cached"] is True
    assert len(provider.requests) == 1


def test_many_prompts_to_a_text_model(run):
    """They may be one call of the provider, which tells its tokens once."""

    class Counted(FakeListLLM):
        def _generate(self, prompts, *args, **kwargs):
            found = super()._generate(prompts, *args, **kwargs)
            found.llm_output = {
                "token_usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            }
            return found

    Counted(responses=["a", "b"]).generate(["x", "y"])
    assert [each.payload["prompt"] for each in run.spans] == ["x", "y"]
    assert [each.result["text"] for each in run.spans] == ["a", "b"]
    assert [each.token_usage and each.token_usage["total_tokens"] for each in run.spans] == [3, None]


def test_several_choices_tell_their_tokens_once(provider, run):
    chat_openai(provider, n=2).generate([[HumanMessage("a")]])
    (found,) = run.spans
    assert found.token_usage["total_tokens"] == 18
    assert len(found.result["choices"]) == 2


# -- plain data --------------------------------------------------------------------------------------------


def test_messages_are_plain_data():
    image = base64.b64encode(bytes(1000)).decode()
    value = {
        "messages": [
            HumanMessage(
                [{"type": "image", "base64": image, "mime_type": "image/png"}, {"type": "text", "text": "?"}]
            ),
            calls_weather(),
            ToolMessage("no", tool_call_id="1", status="error", name="weather"),
            AIMessageChunk("a"),
        ],
        "found": (Document("text", metadata={"n": 1}, id="d"), [Document("bare")]),
    }
    found = _langchain_values.plain(value)
    picture = found["messages"][0]["content"][0]["base64"]
    assert (picture["$bytes"], picture["media"]) == (1000, "image/png")
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "name": "weather", "arguments": {"city": "Paris"}}],
        },
        {"role": "tool", "content": "no", "name": "weather", "tool_call_id": "1", "status": "error"},
        {"role": "assistant", "content": "a"},
    ]
    assert found["found"] == [
        {"page_content": "text", "id": "d", "metadata": {"n": 1}},
        [{"page_content": "bare"}],
    ]


def test_a_large_state_is_bounded():
    """What is large is left to capture, which cuts it: the walk itself stays short."""
    began = time.thread_time()
    value: Any = [[HumanMessage("a")] * 10] * 10_000
    assert _langchain_values.plain({"messages": value})["messages"] is value
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    _langchain_values.plain(deep)
    cycle: dict = {}
    cycle["self"] = cycle
    _langchain_values.plain(cycle)
    assert time.thread_time() - began < 0.5


def test_no_code_of_the_users_is_run(run):
    """Neither properties, nor comparisons, nor `__repr__` of what goes through."""

    class Rude:
        def trap(self, *args):
            raise AssertionError("code of the user's was run")

        __getattr__ = __eq__ = __repr__ = __iter__ = __len__ = __bool__ = __reduce__ = trap
        __hash__ = None

    class Own(HumanMessage):
        @property
        def text(self):
            raise AssertionError("a property was asked")

    rude = Rude()
    step = RunnableLambda(lambda x: x, name="step")
    assert step.invoke({"x": rude, "m": Own("hi")})["x"] is rude
    assert step.invoke(rude) is rude
    graph_of(node=lambda state: {"said": [rude]}).compile().invoke({"said": []})
    first = run.spans[0]
    assert first.payload["m"] == {"role": "user", "content": "hi"}
    assert first.status == "complete"


def test_captures_follow_the_settings():
    with recording(capture_inputs=False, capture_outputs=False) as recorded:
        pt.instrument("langchain")
        with pt.instance():
            graph_of(
                node=lambda state: {"said": [fake(says("secret")).invoke("secret").content]}
            ).compile().invoke({"said": ["secret"]})
        assert len(recorded.spans) == 3
        assert "secret" not in repr(recorded.spans)
        pt.uninstrument()


# -- on and off --------------------------------------------------------------------------------------------


def test_outside_of_a_run_nothing_is_recorded(recorded, provider):
    pt.instrument("langchain", "openai")
    agent(provider)
    assert recorded.spans == []
    assert recorded.instances == []


def test_an_implicit_run():
    with recording(implicit_instances=True) as recorded:
        pt.instrument("langchain")
        graph_of(node=lambda state: {"said": [look_up("a")]}).compile().invoke({"said": []})
        assert [line.split()[0] for line in recorded.tree().splitlines()] == ["LangGraph", "node", "look_up"]
        (instance,) = recorded.instances
        assert instance.status == "complete"
        pt.uninstrument()


def functions():
    """Return all that is replaced, as it stands."""
    found = []
    for tap in langchain.TAPS:
        module, _, path = tap.where.partition(":")
        owner: Any = sys.modules.get(module)
        *owners, name = path.split(".")
        for each in owners:
            owner = getattr(owner, each)
        found.append(vars(owner).get(name))
    return [*found, list(_configure_hooks)]


def test_uninstrument_restores_identity():
    before = functions()
    pt.instrument("langchain")
    between = functions()
    assert all(each is not other for each, other in zip(before, between, strict=True) if each is not None)
    assert pt.instrument("langchain")["langchain"].state == "on"
    pt.uninstrument("langchain")
    assert before == functions()
    assert all(each is other for each, other in zip(before[:-1], functions()[:-1], strict=True))


def test_what_is_open_is_recorded_to_its_end(recorded):
    """Uninstrumented in the middle: nothing begins any more, what has begun ends."""
    pt.instrument("langchain")

    def node(state):
        pt.uninstrument("langchain")
        return {"said": [fake(says("a")).invoke("x").content]}

    with pt.instance():
        graph_of(node=node).compile().invoke({"said": []})
    assert recorded.tree() == "LangGraph complete\n  node complete"


class Heard(BaseCallbackHandler):
    """Another's handler; it notes what it hears."""

    def __init__(self):
        self.heard = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args, **kwargs: object.__getattribute__(self, "heard").append(name)
        return object.__getattribute__(self, name)


class Inline(Heard):
    run_inline = True


class Awaited(AsyncCallbackHandler):
    def __init__(self):
        self.heard = []

    async def on_llm_start(self, *args, **kwargs):
        self.heard.append("on_llm_start")

    async def on_chat_model_start(self, *args, **kwargs):
        self.heard.append("on_chat_model_start")

    async def on_llm_end(self, *args, **kwargs):
        self.heard.append("on_llm_end")


@pytest.mark.parametrize("kind", [Heard, Inline, Awaited])
def test_the_handlers_of_others_hear_the_same(kind, recorded):
    def heard():
        handler = kind()
        config = {"callbacks": [handler]}

        async def main():
            await FakeListLLM(responses=["a"]).ainvoke("x", config)
            await fake(says("a")).ainvoke("x", config)
            [each async for each in FakeStreamingListLLM(responses=["ab"]).astream("x", config)]

        FakeListLLM(responses=["a"]).invoke("x", config)
        graph_of(node=lambda s: {"said": [1]}).compile().invoke({"said": []}, config)
        run_async(main())
        return handler.heard

    without = heard()
    pt.instrument("langchain")
    with pt.instance():
        assert without == heard()
    assert len(recorded.spans) == 6


# What langchain-core 1.0 calls of pydantic is deprecated.
@pytest.mark.filterwarnings("ignore:The `copy` method is deprecated")
def test_the_tracers_of_others_collect_the_same(run):
    with collect_runs() as collected:
        weather.invoke({"city": "a"})
    assert [(each.name, each.error) for each in collected.traced_runs] == [("weather", None)]


def test_a_config_with_our_handler_is_copied_and_pickled(run):
    """Programs copy configs, and send them to other processes."""
    seen = []

    def node(_, config: RunnableConfig):
        (ours,) = config["callbacks"].handlers
        seen.append(
            (copy.copy(ours) is ours, copy.deepcopy(ours) is ours, type(pickle.loads(pickle.dumps(ours))))
        )

    RunnableLambda(node).invoke(1)
    assert seen == [(True, True, BaseCallbackHandler)]


def test_what_cannot_be_read_is_borne(run, monkeypatch, caplog):
    """The program goes on; after several in a row the integration switches itself off and says so."""
    monkeypatch.setattr("prefactor_trace._guard.strict", False)

    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(langchain, "plain", broken)
    for n in range(10):
        assert RunnableLambda(lambda x: x).invoke(n) == n
    assert "langchain_core" not in {each.name.split(".")[0] for each in caplog.records}
    assert pt.integrations.report()["langchain"].state == "gave up"


def test_failures_must_be_in_a_row(run, monkeypatch):
    monkeypatch.setattr("prefactor_trace._guard.strict", False)
    real = langchain.plain
    for n in range(20):
        monkeypatch.setattr(langchain, "plain", None if n % 2 else real)
        RunnableLambda(lambda x: x).invoke(n)
    assert pt.integrations.report()["langchain"].state == "on"
    assert {each.status for each in run.spans} == {"complete"}
    assert len(run.spans) == 20


def test_an_end_that_fails_is_an_end(run, monkeypatch):
    """Better a span without its data than one that is open for ever."""
    monkeypatch.setattr("prefactor_trace._guard.strict", False)
    monkeypatch.setattr(langchain, "_steering", None)
    with pytest.raises(ZeroDivisionError):
        RunnableLambda(lambda x: x / 0).invoke(1)
    assert [each.status for each in run.spans] == ["complete"]


def test_a_hook_that_fails_is_borne(run, monkeypatch, caplog):
    """Whatever of ours raises, LangChain neither sees nor logs it."""
    monkeypatch.setattr("prefactor_trace._guard.strict", False)
    for name in ("_new", "_end"):
        with monkeypatch.context() as patch:
            owner = langchain._Callbacks if name == "_new" else langchain

            def broken(*_args, **_kwargs):
                raise RuntimeError("ours")

            patch.setattr(owner, name, broken)
            assert (RunnableLambda(lambda x: x) | fake(says("a"))).invoke("x").content == "a"
        langchain._runs.clear()
    assert not [each for each in caplog.records if each.name.startswith("langchain")]


PROGRAM = """
import prefactor_trace as pt
from prefactor_trace.testing import recording

assert pt.instrument("langchain")["langchain"].state == "waiting"
import sys
assert "langchain_core" not in sys.modules

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

@pt.span
def inner(): return 1

class Model(GenericFakeChatModel):
    def _stream(self, *args, **kwargs):
        inner()
        yield from super()._stream(*args, **kwargs)

@tool
def outer(x: int) -> int:
    "Call."
    return inner()

with recording() as found:
    with pt.instance():
        list(Model(messages=iter([AIMessage("a b")])).stream("x"))
        outer.invoke({"x": 1})
    print(found.tree())
    print(pt.instrument("langchain")["langchain"].state)
"""


def test_imported_later():
    """Instrumented first and imported afterwards, the very first run is recorded, and current."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "Model complete",
        "  inner complete",
        "outer complete",
        "  inner complete",
        "on",
    ], done.stderr

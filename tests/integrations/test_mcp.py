"""MCP's SDK: a client sees the same with and without us, and what it asks of a server is a span."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import prefactor_trace as pt

mcp = pytest.importorskip("mcp")
pytest.importorskip("uvicorn")

from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402 - not without the SDK

from .mcp_server import OverHttp, picture  # noqa: E402

try:
    from mcp.client.streamable_http import streamable_http_client
except ImportError:
    from mcp.client.streamable_http import streamablehttp_client as streamable_http_client

IS_FIRST = not hasattr(mcp, "Client")
ERRORS = (getattr(mcp, "MCPError", None) or mcp.McpError,)


@pytest.fixture(scope="module")
def over_http():
    found = OverHttp()
    yield found
    found.close()


def over_stdio():
    program = str(Path(__file__).with_name("mcp_server.py"))
    return stdio_client(StdioServerParameters(command=sys.executable, args=[program]))


@pytest.fixture(params=["http", "stdio"])
def transport(request, over_http):
    return (lambda: streamable_http_client(over_http.url)) if request.param == "http" else over_stdio


@pytest.fixture
def http(over_http):
    return lambda: streamable_http_client(over_http.url)


async def within(transport, program):
    async with transport() as (read, write, *_), mcp.ClientSession(read, write) as session:
        await session.initialize()
        return await program(session)


async def ask_everything(session):
    tools = await session.list_tools()
    sunny = await session.call_tool("weather", {"city": "Paris"})
    failed = await session.call_tool("broken", arguments={"city": "Rome"})
    unknown = await outcome(session.call_tool("unheard of", {}))
    image = await session.call_tool("radar")
    uri = tools and (await session.list_resources()).resources[0].uri
    resource = await session.read_resource(uri)
    prompt = await session.get_prompt("forecast", {"city": "Paris"})
    missing = await outcome(session.get_prompt("unheard of"))
    return [tools, sunny, failed, unknown, image, resource, prompt, missing]


async def outcome(awaitable):
    try:
        return await awaitable
    except ERRORS as error:
        return type(error), str(error), error.args


def test_a_session_is_the_same(transport, recorded):
    """Results, their types, failures and exceptions, over both transports; and each request is a span."""

    async def twice(session):
        bare = await ask_everything(session)
        pt.instrument("mcp")
        with pt.instance():
            return bare, await ask_everything(session)

    bare, traced = asyncio.run(within(transport, twice))

    assert list(map(type, bare)) == list(map(type, traced))
    assert bare == traced
    names = [line for line in recorded.tree().splitlines() if not line.startswith("  ")]
    assert names[:4] == [
        "list tools complete",
        "tool weather complete",
        "tool broken failed",
        "tool unheard of failed",
    ]
    assert names[4:] == [
        "tool radar complete",
        "resource weather://stations complete",
        "prompt forecast complete",
        "prompt unheard of failed",
    ]


@pytest.fixture
def spans(http, recorded):
    """What is recorded of `ask_everything`, by name."""
    pt.instrument("mcp")
    with pt.instance():
        asyncio.run(within(http, ask_everything))
    return {span.name: span for span in recorded.spans}


def test_a_tool_is_a_span(spans):
    """Server, tool and arguments go in, what it says comes out."""
    span = spans["tool weather"]

    assert span.type == "mcp:tool"
    expected = {"server": "weather station", "tool": "weather", "arguments": {"city": "Paris"}}
    assert span.payload == expected
    assert span.result["text"] == "It is sunny in Paris for 1 days."
    assert span.token_usage is None


def test_a_tool_that_says_it_failed_has_failed(spans):
    """No exception leaves the call, yet the span is failed, in the tool's words."""
    span = spans["tool broken"]

    assert span.status == "failed"
    assert "no station in Rome" in span.error["message"]


def test_an_exception_of_the_server_is_the_spans(spans):
    """What the server refuses is the error of the span."""
    span = spans["prompt unheard of"]

    assert span.error["error_type"].endswith(ERRORS[0].__name__)


def test_an_image_is_its_digest(spans):
    """However small: kind, size and digest."""
    data = picture()
    (block,) = spans["tool radar"].result["content"]

    digest = hashlib.sha256(data).hexdigest()[:16]
    expected = {"$bytes": len(data), "sha256": digest, "media": "image/png"}
    assert block == {"type": "image", "data": expected}


def test_other_requests_are_spans(spans):
    """Tools by their names; a resource with its text; a prompt with its messages."""
    assert {"weather", "broken", "radar"} < set(spans["list tools"].result["tools"])
    resource = spans["resource weather://stations"]
    assert resource.payload == {"server": "weather station", "uri": "weather://stations"}
    assert resource.result["content"][0]["text"] == "Paris, Rome"
    prompt = spans["prompt forecast"]
    assert prompt.payload["arguments"] == {"city": "Paris"}
    assert prompt.result["messages"][0]["content"]["text"] == "How will the weather be in Paris?"


def test_a_cancelled_call_is_cancelled(http, recorded):
    """The user's cancellation goes through, and the span says so."""

    async def program(session):
        await asyncio.wait_for(session.call_tool("slow"), 0.2)

    pt.instrument("mcp")
    with pt.instance(), pytest.raises(BaseException) as raised:
        asyncio.run(within(http, program))
    assert "TimeoutError" in repr(raised.value)

    (span,) = recorded.spans
    assert span.status == "cancelled"


def test_a_timeout_is_the_same(http, recorded):
    """The SDK's own time limit ends the call as it did, and the span is failed."""
    limit = timedelta(seconds=0.1) if IS_FIRST else 0.1

    async def program(session):
        try:
            await session.call_tool("slow", read_timeout_seconds=limit)
        except ERRORS as error:
            return type(error), str(error)

    bare = asyncio.run(within(http, program))
    pt.instrument("mcp")
    with pt.instance():
        traced = asyncio.run(within(http, program))

    assert bare == traced
    (span,) = recorded.spans
    assert span.status == "failed"
    assert span.error["error_type"].endswith(ERRORS[0].__name__)


@pt.span
async def plan(session):
    return await session.call_tool("weather", {"city": "Rome"})


def test_the_server_is_known_from_before_the_run(http, recorded):
    """A session is opened once and used in many runs; each call hangs under the step that makes it."""

    async def program(session):
        with pt.instance():
            await plan(session)
        await plan(session)  # outside of any

    pt.instrument("mcp")
    asyncio.run(within(http, program))

    # The SDK lists the tools by itself to know what the answer of one must look like.
    assert recorded.tree().startswith("plan complete\n  tool weather complete")
    assert recorded.spans[1].payload["server"] == "weather station"


def test_spans_of_opentelemetry_are_not_ours(http, recorded):
    """The SDK's own spans go where they went, and ours are the same with and without them."""
    if IS_FIRST:
        pytest.skip("the first version has none of its own")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    import mcp.shared._otel as otel
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    pt.instrument("mcp")
    with pt.instance():
        asyncio.run(within(http, plan))
    without = recorded.tree()
    exporter = memory.InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before, otel._tracer = otel._tracer, provider.get_tracer("mcp-python-sdk")
    try:
        with pt.instance():
            asyncio.run(within(http, plan))
    finally:
        otel._tracer = before

    assert [span.name for span in exporter.get_finished_spans() if "tools/call" in span.name]
    assert recorded.tree() == f"{without}\n{without}"


def test_uninstrument_restores_the_functions(recorded):
    """Every method is the very same again."""
    names = ["call_tool", "list_tools", "read_resource", "get_prompt", "initialize"]
    before = [vars(mcp.ClientSession)[name] for name in names]

    assert pt.instrument("mcp")["mcp"].state == "on"
    tapped = [vars(mcp.ClientSession)[name] for name in names]
    pt.uninstrument("mcp")

    assert not any(map(lambda one, other: one is other, before, tapped))
    assert [vars(mcp.ClientSession)[name] for name in names] == before


def test_what_cannot_be_read_is_still_returned(recorded, monkeypatch):
    """An answer of another shape reaches the user; it is the record that knows less."""
    from prefactor_trace import _guard
    from prefactor_trace.integrations._tap import Switch, tapped
    from prefactor_trace.integrations.mcp import TAPS

    failures = []

    async def call_tool(self, name):
        return 3

    class Session:
        pass

    monkeypatch.setattr(_guard, "failed", failures.append)
    odd = tapped(call_tool, TAPS[0], Switch("mcp"))
    with pt.instance():
        assert asyncio.run(odd(Session(), "x")) == 3

    assert recorded.tree() == "tool x complete"
    assert failures == ["read an answer of mcp"]

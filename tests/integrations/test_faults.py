"""Real SDKs against a server of others that fails on demand: programs see the same with and without us.

The server is `llmock`. What it is told to do it does to the next request, so every program runs twice under the same
faults. Its texts depend on the request alone; its ids and times do not, and are left out.
"""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

import prefactor_trace as pt

from .differential import left_open, same
from .others import MOCK_FAULTS

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Tell me of the sea, at length."}]}
TALK = {**ASK, "model": "claude-haiku-5-5", "max_tokens": 500}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
CLAUDE_TOOLS = [{"name": "weather", "input_schema": CITY}]


# -- programs ------------------------------------------------------------------------------------------------


def gpt(server, kind=openai.OpenAI, **options):
    return kind(base_url=server.openai, api_key="key", **{"max_retries": 1, "timeout": 5, **options})


def claude(server, kind=anthropic.Anthropic, **options):
    return kind(base_url=server.anthropic, api_key="key", **{"max_retries": 1, "timeout": 5, **options})


def chat(server, **options):
    with gpt(server, **options) as client:
        yield client.chat.completions.create(**ASK)


def chat_tools(server, **options):
    with gpt(server, **options) as client:
        yield client.chat.completions.create(**ASK, tools=TOOLS)


def chat_stream(server, **options):
    with gpt(server, **options) as client:
        yield from client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})


def chat_stream_tools(server, **options):
    with gpt(server, **options) as client:
        yield from client.chat.completions.create(
            **ASK, stream=True, tools=TOOLS, stream_options={"include_usage": True}
        )


def chat_helper(server, **options):
    with gpt(server, **options) as client, client.chat.completions.stream(**ASK) as stream:
        yield from stream


def responses_stream(server, **options):
    with gpt(server, **options) as client:
        yield from client.responses.create(model="gpt-4o", input="Tell me of the sea.", stream=True)


def message(server, **options):
    with claude(server, **options) as client:
        yield client.messages.create(**TALK)


def message_tools(server, **options):
    with claude(server, **options) as client:
        yield client.messages.create(**TALK, tools=CLAUDE_TOOLS)


def message_stream(server, **options):
    with claude(server, **options) as client:
        yield from client.messages.create(**TALK, stream=True)


def message_helper(server, **options):
    with claude(server, **options) as client, client.messages.stream(**TALK) as stream:
        yield from stream
        yield stream.get_final_message()


def chat_stream_async(server, **options):
    async def main():
        async with gpt(server, openai.AsyncOpenAI, **options) as client:
            stream = await client.chat.completions.create(
                **ASK, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                seen.append(chunk)

    seen = []
    try:
        asyncio.run(main())
    finally:
        yield from seen


def message_stream_async(server, **options):
    async def main():
        async with claude(server, anthropic.AsyncAnthropic, **options) as client:
            async for event in await client.messages.create(**TALK, stream=True):
                seen.append(event)

    seen = []
    try:
        asyncio.run(main())
    finally:
        yield from seen


STREAMS = [
    chat_stream,
    chat_stream_tools,
    chat_helper,
    responses_stream,
    message_stream,
    message_helper,
    chat_stream_async,
    message_stream_async,
]
WHOLE = [chat, chat_tools, message, message_tools]
TOOL_USERS = [chat_tools, chat_stream_tools, message_tools]

ALWAYS = {"times": None}
# Each: a name, what the server does, options of the client, the programs, and whether they see an exception.
FAULTS = [
    ("nothing", [], {}, STREAMS + WHOLE, False),
    (
        "429, once",
        [{"type": "fail", "status": 429, "retry_after": 0.01}],
        {},
        [chat, chat_stream_async, message_stream, message_helper],
        False,
    ),
    (
        "429",
        [{"type": "fail", "status": 429, "retry_after": 0.01, **ALWAYS}],
        {},
        [chat_stream, message],
        True,
    ),
    (
        "500",
        [{"type": "fail", "status": 500}],
        {"max_retries": 0},
        [chat_helper, responses_stream, message_stream_async],
        True,
    ),
    ("529", [{"type": "fail", "status": 529}], {"max_retries": 0}, [message, message_stream], True),
    ("too long", [{"type": "fail", "status": 400}], {}, [chat, message_helper], True),
    ("slow", [{"type": "delay", "seconds": 0.2}], {}, [chat, message_stream], False),
    (
        "too slow",
        [{"type": "delay", "seconds": 0.6}],
        {"timeout": 0.2, "max_retries": 0},
        [chat, chat_stream_async, message_stream],
        True,
    ),
    (
        "stalled",
        [{"type": "stream_fault", "kind": "stall", "stall_seconds": 0.8, "after_chunks": 3}],
        {"timeout": 0.4},
        [chat_stream, message_stream, chat_stream_async],
        True,
    ),
    ("cut off", [{"type": "stream_fault", "kind": "disconnect", "after_chunks": 3}], {}, STREAMS, True),
    ("corrupt", [{"type": "stream_fault", "kind": "malformed", "after_chunks": 3}], {}, STREAMS, True),
    (
        "truncated",
        [{"type": "stream_fault", "kind": "truncate", "after_chunks": 3}],
        {},
        STREAMS,
        None,
    ),
    ("bad arguments", [{"type": "tool_fault", "kind": "malformed_arguments"}], {}, TOOL_USERS, False),
    ("unknown tool", [{"type": "tool_fault", "kind": "unknown_tool"}], {}, TOOL_USERS, False),
]
CASES = [(fault, program) for fault in FAULTS for program in fault[3]]


# Streams that are left to themselves, and so are their clients.
ASKED_GPT = lambda server: gpt(server).chat.completions.create(**ASK, stream=True)  # noqa: E731
ASKED_CLAUDE = lambda server: claude(server).messages.create(**TALK, stream=True)  # noqa: E731


# -- what they see -------------------------------------------------------------------------------------------

_VARYING = {"id", "created", "created_at", "item_id", "call_id", "request_id", "_request_id", "completed_at"}


def steady(value):
    """Return *value* as JSON without what differs from time to time."""
    if hasattr(value, "model_dump"):
        return type(value).__name__, steady(value.model_dump(warnings=False))
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if key not in _VARYING}
    if isinstance(value, (list, tuple)):
        return [steady(each) for each in value]
    return value if isinstance(value, (str, int, float, type(None))) else repr(type(value))


def seen(program, llmock, fault, options):
    """Return everything that a program is given, and the exception it ends with."""
    llmock.does(*fault)
    given = []
    try:
        for each in program(llmock, **options):
            given.append(each)
    except Exception as error:
        causes = [type(each) for each in (error.__cause__, error.__context__)]
        told = (type(error), str(error).split("'request_id'")[0], causes, getattr(error, "status_code", None))
        return given, error, told
    return given, None, None


def usage_of(given):
    """Return the prompt and completion tokens that an answer, or the pieces of one, has told last."""
    counts = {}
    for each in given:
        for holder in (each, getattr(each, "message", None), getattr(each, "response", None)):
            usage = getattr(holder, "usage", None)
            for ours, theirs in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
                count = getattr(usage, ours, None) or getattr(usage, theirs, None)
                if count is not None:
                    counts[ours] = count
    return counts


@pytest.mark.parametrize(
    ("fault", "program"), CASES, ids=[f"{fault[0]}-{program.__name__}" for fault, program in CASES]
)
def test_a_fault_is_what_it_is(fault, program, llmock, recorded):
    """The same pieces, the same exception; one span, which has ended as the program saw it, with the tokens told."""
    _, behaviors, options, _, raises = fault
    bare, _, bare_error = seen(program, llmock, behaviors, options)
    asked = len(llmock.requests())
    pt.instrument("openai", "anthropic")
    with pt.instance():
        given, error, told = seen(program, llmock, behaviors, options)

    assert steady(given) == steady(bare)
    assert told == bare_error
    assert len(llmock.requests()) == asked
    if raises is not None:
        assert (error is not None) is raises
    (span,) = recorded.spans
    assert span.status == ("complete" if error is None else "failed")
    if error is not None:
        assert span.error["error_type"].endswith(type(error).__name__)
    elif raises is None:
        assert span.metadata["incomplete"] is True
    tokens = usage_of(given)
    assert {name: (span.token_usage or {}).get(name) for name in tokens} == tokens
    assert tokens or error is not None or raises is None or program is chat_helper


@pytest.mark.parametrize("create", [ASKED_GPT, ASKED_CLAUDE], ids=["openai", "anthropic"])
@pytest.mark.parametrize("fault", [None, "disconnect", "truncate", "malformed"])
def test_a_stream_that_is_left_stays_open_no_longer(create, fault, llmock, recorded):
    """What is closed at once without us, is with us, too: nothing of ours holds it until the collector comes."""

    def program():
        llmock.does(*MOCK_FAULTS[fault])
        stream = create(llmock)
        next(iter(stream))

    same(lambda: left_open(program), "openai", "anthropic")
    gc.collect()
    assert [span.metadata["abandoned"] for span in recorded.spans] == [True]


@pytest.mark.parametrize("program", TOOL_USERS, ids=lambda each: each.__name__)
def test_a_broken_tool_call_is_recorded_as_it_came(program, llmock, recorded):
    """So that somebody can see what the model has said."""
    pt.instrument("openai", "anthropic")
    with pt.instance():
        for kind in ("malformed_arguments", "unknown_tool"):
            seen(program, llmock, [{"type": "tool_fault", "kind": kind}], {})

    malformed, unknown = (span.result["tool_calls"][0] for span in recorded.spans)
    assert malformed["name"] == "weather"
    assert unknown["name"] != "weather"
    if program is not message_tools:  # where the server leaves the arguments out
        assert type(malformed["arguments"]) is str
        with pytest.raises(ValueError, match="char"):
            json.loads(malformed["arguments"])

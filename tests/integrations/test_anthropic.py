"""Anthropic's SDK: what it returns is as without us, and every message is a span that says what happened."""

from __future__ import annotations

import asyncio
import gc

import pytest

import prefactor_trace as pt

from .differential import asked, is_raised, same
from .provider import MESSAGE_USAGE

anthropic = pytest.importorskip("anthropic")
pydantic = pytest.importorskip("pydantic")

MODEL = "claude-haiku-5-5"
KEY = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "How is the weather?"}]
ASK = {"model": MODEL, "messages": MESSAGES, "max_tokens": 100}
TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
# The prompt is all that went in: Anthropic counts what goes through its cache beside the input.
TOKENS = {
    "prompt_tokens": 17,
    "completion_tokens": 7,
    "total_tokens": 24,
    "cache_read_tokens": 4,
    "cache_write_tokens": 2,
}


class City(pydantic.BaseModel):
    city: str


def client_of(provider, kind=anthropic.Anthropic, **options):
    return kind(base_url=provider.url, api_key=KEY, **options)


def exact(value):
    """Return *value* with its exact type, as deep as it matters."""
    if isinstance(value, pydantic.BaseModel):
        return type(value), value.model_dump(warnings=False)
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    return type(value), value if isinstance(value, (str, bytes, int, type(None), dict)) else None


def left_early(client):
    with client.messages.create(**ASK, stream=True) as stream:
        for event in stream:
            return [type(stream), event, stream.response.is_closed]


def helper(client):
    with client.messages.stream(**ASK, tools=TOOLS) as stream:
        events = [(type(event), event.type) for event in stream]
        return [type(stream), str(events), stream.get_final_message(), stream.request_id]


def helper_text(client):
    with client.messages.stream(**ASK) as stream:
        return [*stream.text_stream, stream.get_final_text(), stream.current_message_snapshot]


def helper_until_done(client):
    with client.messages.stream(**ASK) as stream:
        stream.until_done()
        return stream.get_final_message()


def beta_helper(client):
    with client.beta.messages.stream(**ASK) as stream:
        return stream.get_final_message()


def raw(client):
    response = client.messages.with_raw_response.create(**ASK)
    return [type(response), response.status_code, response.parse(), response.request_id, response.text()]


def streaming_response(client):
    with client.messages.with_streaming_response.create(**ASK) as response:
        return [type(response), response.parse(), response.is_closed]


def streaming_lines(client):
    with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
        return [type(response), *response.iter_lines()]


PROGRAMS = {
    "message": lambda c: c.messages.create(**ASK, stop_sequences=["END"]),
    "tools": lambda c: c.messages.create(**ASK, tools=TOOLS, system="be short"),
    "stream": lambda c: list(c.messages.create(**ASK, stream=True)),
    "left early": left_early,
    "helper": helper,
    "helper text": helper_text,
    "helper until done": helper_until_done,
    "parse": lambda c: c.messages.parse(**ASK, output_format=City),
    "beta": lambda c: c.beta.messages.create(**ASK, betas=["a-beta"]),
    "beta stream": lambda c: list(c.beta.messages.create(**ASK, stream=True)),
    "beta helper": beta_helper,
    "raw": raw,
    "streaming response": streaming_response,
    "streaming lines": streaming_lines,
}
if not hasattr(anthropic.resources.messages.Messages, "parse"):
    del PROGRAMS["parse"]
FAULTS = {
    "429 once": [429],
    "429": [429, 429, 429],
    "disconnect": ["disconnect"],
    "truncate": ["truncate"],
    "corrupt": ["corrupt"],
    "error": ["error"],
    "gzip": ["gzip"],
    "bad arguments": ["bad arguments"],
}
UNIQUE = ("idempotency-key", "traceparent", "tracestate")


def outcome(program, provider, faults=()):
    """Run *program*; return all that it, and the provider, can see."""
    provider.requests.clear()
    provider.faults[:] = faults
    with client_of(provider) as client:
        try:
            result = exact(program(client))
        except Exception as error:
            result = (type(error), str(error), error.args, getattr(error, "status_code", None))
    return result, asked(provider, *UNIQUE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same(name, provider, recorded):
    """Types, values, events, helpers, headers and the bytes of the request: nothing differs; there is one span."""
    same(lambda: outcome(PROGRAMS[name], provider), "anthropic")

    (span,) = recorded.spans
    assert (span.type, span.status) == ("anthropic:messages", "complete")
    assert span.result is not None or name == "left early"  # after the first event nothing was said yet
    assert KEY not in repr(span)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["message", "stream", "helper"])
def test_a_fault_is_the_same(name, fault, provider, recorded):
    """Whatever goes wrong at the provider, the user meets exactly the same."""
    result, _ = same(lambda: outcome(PROGRAMS[name], provider, FAULTS[fault]), "anthropic")

    (span,) = recorded.spans
    if is_raised(result) and name != "helper":  # which also raises over an answer that is whole
        assert span.status == "failed"


async def async_programs(client, name):
    if name == "stream":
        return [event async for event in await client.messages.create(**ASK, stream=True)]
    if name == "helper":
        async with client.messages.stream(**ASK, tools=TOOLS) as stream:
            return [*[event.type async for event in stream], await stream.get_final_message()]
    if name == "raw":
        response = await client.messages.with_raw_response.create(**ASK)
        return [type(response), await response.parse(), response.request_id]
    if name == "streaming":
        async with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
            return [line async for line in response.iter_lines()]
    if name == "left early":
        stream = await client.messages.create(**ASK, stream=True)
        async for event in stream:
            await stream.close()
            return [type(stream), event, stream.response.is_closed]
    return await client.messages.create(**ASK)


async def async_outcome(name, provider, faults=()):
    provider.requests.clear()
    provider.faults[:] = faults
    async with client_of(provider, anthropic.AsyncAnthropic) as client:
        try:
            result = exact(await async_programs(client, name))
        except Exception as error:
            result = (type(error), str(error), getattr(error, "status_code", None))
    return result, [body for _, _, body in provider.requests]


@pytest.mark.parametrize("fault", [[], ["disconnect"], ["corrupt"], [429, 429, 429]])
@pytest.mark.parametrize("name", ["message", "stream", "helper", "streaming", "left early"])
def test_an_async_program_is_the_same(name, fault, provider, recorded):
    """The same for the asynchronous client."""
    same(lambda: asyncio.run(async_outcome(name, provider, fault)), "anthropic")

    assert len(recorded.spans) == 1


# -- what is recorded --------------------------------------------------------------------------------------


@pytest.fixture
def run(recorded):
    """A run that is open, with Anthropic's SDK tapped."""
    pt.instrument("anthropic")
    with pt.instance():
        yield recorded


@pytest.fixture
def client(provider):
    with client_of(provider) as found:
        yield found


def test_a_message_is_a_span(client, run):
    """Model, system, messages, parameters and tools go in; text, tokens, ids and the price come out."""
    client.messages.create(**ASK, system="be short", tools=TOOLS, stop_sequences=["END"])

    (span,) = run.spans
    assert span.name == f"message {MODEL}"
    assert span.payload == {
        "model": MODEL,
        "system": "be short",
        "messages": MESSAGES,
        "tools": TOOLS,
        "parameters": {"max_tokens": 100, "stop_sequences": ["END"]},
    }
    call = {"id": "toolu_1", "name": "weather", "arguments": {"city": "Paris"}}
    assert span.result == {"text": "It is sunny in Paris.", "tool_calls": [call], "finish_reason": "tool_use"}
    assert span.token_usage == TOKENS
    span.metadata.pop("cost", None)
    assert span.metadata == {
        "provider": "anthropic",
        "model": MODEL,
        "request_id": "req-7",
        "response_id": "msg_1",
        "http_status": 200,
        "provider_usage": MESSAGE_USAGE,
    }


def test_a_stream_is_a_span(client, run):
    """Its events build up the same message, and the last counts hold."""
    with client.messages.stream(**ASK, tools=TOOLS) as stream:
        stream.until_done()

    (span,) = run.spans
    call = {"id": "toolu_1", "name": "weather", "arguments": {"city": "Paris"}}
    assert span.result == {"text": "It is sunny in Paris.", "tool_calls": [call], "finish_reason": "tool_use"}
    assert span.token_usage == TOKENS
    assert span.metadata["time_to_first_token_ms"] > 0


def test_thoughts_are_kept_apart(client, run):
    """What the model thinks is not what it says; whole and as a stream."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    client.messages.create(**ASK, thinking=thinking)
    list(client.messages.create(**ASK, thinking=thinking, stream=True))

    for span in run.spans:
        assert span.result["reasoning"] == "Let me see."
        assert span.result["text"] == "It is sunny in Paris."


def test_messages_that_can_be_read_once_are_recorded(client, provider, run):
    """A generator of messages is the SDK's to read; it is recorded as it was sent."""
    client.messages.create(model=MODEL, max_tokens=100, messages=(each for each in MESSAGES))

    (span,) = run.spans
    assert span.payload["messages"] == MESSAGES
    assert b"weather" in provider.requests[0][2]


def test_images_are_kind_size_and_digest(client, run):
    """Not a byte of them is recorded."""
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA" * 1_000}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    client.messages.create(model=MODEL, max_tokens=100, messages=[{"role": "user", "content": content}])

    (span,) = run.spans
    shown = span.payload["messages"][0]["content"][0]["source"]
    assert shown["data"].keys() == {"$bytes", "sha256", "media"}
    assert (shown["data"]["$bytes"], shown["data"]["media"]) == (3_000, "image/png")


def test_counting_tokens_is_no_message(client, run):
    """Only what a model answers is recorded."""
    assert client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens == 11
    assert run.spans == []


def test_an_error_event_fails_the_call(client, provider, run):
    """With the words of the provider, and what had come before."""
    provider.faults[:] = ["error"]
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(**ASK, stream=True))

    (span,) = run.spans
    assert span.status == "failed"
    assert span.error["error_type"].startswith("anthropic.")
    assert span.result["text"].startswith("It")
    assert span.metadata["incomplete"] is True


def test_a_stream_left_early_is_abandoned(client, run):
    """Closed, dropped, or left by its block."""
    stream = client.messages.create(**ASK, stream=True)
    next(stream)
    stream.close()
    with client.messages.stream(**ASK) as stream:
        next(stream)
    stream = client.messages.create(**ASK, stream=True)
    next(stream)
    del stream
    gc.collect()

    for span in run.spans:
        assert (span.status, span.metadata["abandoned"]) == ("complete", True)


def test_middleware_is_undisturbed(provider, run):
    """The SDK's own hooks see what they see without us, and the call is recorded once."""
    if not hasattr(anthropic, "Middleware"):
        pytest.skip("this version has no middleware")
    seen = []

    def middleware(request, call_next):
        response = call_next(request)
        seen.append(type(response))
        return response

    with client_of(provider, middleware=[middleware]) as client:
        assert client.messages.create(**ASK).id == "msg_1"
        assert len(list(client.messages.create(**ASK, stream=True))) > 3

    assert len(seen) == 2
    assert [span.result["text"] for span in run.spans] == ["It is sunny in Paris."] * 2

"""OpenAI's SDK: what it returns is as without us, and every call is a span that says what happened."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import importlib
import json
import pickle
import threading
from decimal import Decimal

import pytest

import prefactor_trace as pt

from .differential import asked, is_raised, same
from .provider import CHAT_USAGE, RESPONSE_USAGE

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

MODEL = "gpt-4o"
KEY = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "How is the weather?"}]
ASK = {"model": MODEL, "messages": MESSAGES}
PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTION = {"name": "weather", "parameters": PARAMETERS, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT_TOOLS = [{"type": "function", **FUNCTION}]
WITH_USAGE = {"include_usage": True}
TOKENS = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "cache_read_tokens": 4,
    "reasoning_tokens": 2,
}


class City(pydantic.BaseModel):
    city: str


def client_of(provider, kind=openai.OpenAI, **options):
    return kind(base_url=f"{provider.url}/v1", api_key=KEY, **options)


# -- the same with and without -----------------------------------------------------------------------------


def exact(value):
    """Return *value* with its exact type, as deep as it matters."""
    if isinstance(value, pydantic.BaseModel):
        return type(value), value.model_dump(warnings=False)
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    return type(value), value if isinstance(value, (str, bytes, int, type(None), dict)) else None


def chunks_by_hand(client):
    stream = client.chat.completions.create(**ASK, stream=True)
    first = next(stream)
    rest = list(stream)
    return [type(stream), first, *rest, stream.response.status_code, stream.response.is_closed]


def left_early(client):
    with client.chat.completions.create(**ASK, stream=True) as stream:
        for chunk in stream:
            return [type(stream), chunk, stream.response.is_closed]


def helper(client):
    with client.chat.completions.stream(**ASK, tools=TOOLS, stream_options=WITH_USAGE) as stream:
        events = [(type(event), event.type) for event in stream]
        return [type(stream), str(events), stream.get_final_completion()]


def helper_until_done(client):
    with client.chat.completions.stream(**ASK, response_format=City) as stream:
        stream.until_done()
        return [stream.get_final_completion(), stream.get_final_completion().choices[0].message.parsed]


def responses_helper(client):
    with client.responses.stream(model=MODEL, input="hi") as stream:
        return [*stream, stream.get_final_response()]


def raw(client):
    response = client.chat.completions.with_raw_response.create(**ASK)
    found = [type(response), response.status_code, response.text, response.parse(), response.request_id]
    return [
        *found,
        type(response.http_response),
        dict(response.headers)["x-request-id"],
        response.retries_taken,
    ]


def raw_stream(client):
    response = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    return [type(response), type(response.parse()), *response.parse()]


def streaming_response(client):
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        return [type(response), response.parse(), response.is_closed]


def streaming_lines(client):
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        return [type(response), *response.iter_lines()]


def streaming_bytes(client):
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        return [b"".join(response.iter_bytes()), response.http_response.num_bytes_downloaded]


PROGRAMS = {
    "chat": lambda c: c.chat.completions.create(**ASK, temperature=0.5),
    "tools": lambda c: c.chat.completions.create(**ASK, tools=TOOLS),
    "many": lambda c: c.chat.completions.create(**ASK, n=2),
    "stream": lambda c: list(c.chat.completions.create(**ASK, stream=True)),
    "chunks by hand": chunks_by_hand,
    "left early": left_early,
    "parse": lambda c: c.chat.completions.parse(**ASK, response_format=City),
    "helper": helper,
    "helper until done": helper_until_done,
    "response": lambda c: c.responses.create(model=MODEL, input="hi", instructions="be short"),
    "response stream": lambda c: list(c.responses.create(model=MODEL, input="hi", stream=True)),
    "response parse": lambda c: c.responses.parse(model=MODEL, input="hi", text_format=City),
    "response helper": responses_helper,
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input=["a", "b"]),
    "completion": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="It"),
    "completion stream": lambda c: list(c.completions.create(model="m", prompt="It", stream=True)),
    "raw": raw,
    "raw stream": raw_stream,
    "streaming response": streaming_response,
    "streaming lines": streaming_lines,
    "streaming bytes": streaming_bytes,
}
FAULTS = {
    "429 once": [429],
    "429": [429, 429, 429],
    "500": [500, 500, 500],
    "disconnect": ["disconnect"],
    "truncate": ["truncate"],
    "corrupt": ["corrupt"],
    "error": ["error"],
    "gzip": ["gzip"],
    "bad arguments": ["bad arguments"],
}


def outcome(program, provider, faults=()):
    """Run *program*; return all that it, and the provider, can see."""
    provider.requests.clear()
    provider.faults[:] = faults
    with client_of(provider) as client:
        try:
            result = exact(program(client))
        except Exception as error:
            cause = type(error.__cause__)
            result = (type(error), str(error), error.args, getattr(error, "status_code", None), cause)
    return result, asked(provider, *UNIQUE)


UNIQUE = ("idempotency-key", "x-stainless-read-timeout")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same(name, provider, recorded):
    """Types, values, chunks, helpers, headers and the bytes of the request: nothing differs, and there is one span."""
    same(lambda: outcome(PROGRAMS[name], provider), "openai")

    (span,) = recorded.spans
    assert span.status == "complete"
    assert span.result is not None
    assert KEY not in repr(span)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["chat", "stream", "tools", "helper", "response stream", "streaming lines"])
def test_a_fault_is_the_same(name, fault, provider, recorded):
    """Whatever goes wrong at the provider, the user meets exactly the same."""
    result, _ = same(lambda: outcome(PROGRAMS[name], provider, FAULTS[fault]), "openai")

    (span,) = recorded.spans
    if is_raised(result) and name != "helper":  # which also raises over an answer that is whole
        assert span.status == "failed"


async def async_programs(client, name):
    if name == "stream":
        return [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
    if name == "helper":
        async with client.chat.completions.stream(**ASK, stream_options=WITH_USAGE) as stream:
            return [*[event.type async for event in stream], await stream.get_final_completion()]
    if name == "responses":
        async with client.responses.stream(model=MODEL, input="hi") as stream:
            return [*[event async for event in stream], await stream.get_final_response()]
    if name == "raw":
        response = await client.chat.completions.with_raw_response.create(**ASK)
        return [type(response), response.parse(), response.request_id]
    if name == "streaming":
        async with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
            return [line async for line in response.iter_lines()]
    if name == "left early":
        stream = await client.chat.completions.create(**ASK, stream=True)
        async for chunk in stream:
            await stream.close()
            return [type(stream), chunk, stream.response.is_closed]
    if name == "embeddings":
        return await client.embeddings.create(model="text-embedding-3-small", input="a")
    return await client.chat.completions.create(**ASK)


async def async_outcome(name, provider, faults=()):
    provider.requests.clear()
    provider.faults[:] = faults
    async with client_of(provider, openai.AsyncOpenAI) as client:
        try:
            result = exact(await async_programs(client, name))
        except Exception as error:
            result = (type(error), str(error), getattr(error, "status_code", None))
    return result, [body for _, _, body in provider.requests]


@pytest.mark.parametrize("fault", [[], ["disconnect"], ["corrupt"], [429, 429, 429]])
@pytest.mark.parametrize(
    "name", ["chat", "stream", "helper", "responses", "raw", "streaming", "left early", "embeddings"]
)
def test_an_async_program_is_the_same(name, fault, provider, recorded):
    """The same for the asynchronous client."""
    same(lambda: asyncio.run(async_outcome(name, provider, fault)), "openai")

    assert len(recorded.spans) == 1


# -- what is recorded --------------------------------------------------------------------------------------


@pytest.fixture
def run(recorded):
    """A run that is open, with OpenAI's SDK tapped."""
    pt.instrument("openai")
    with pt.instance():
        yield recorded


@pytest.fixture
def client(provider):
    with client_of(provider) as found:
        yield found


def test_a_chat_is_a_span(client, run):
    """Model, messages, parameters and tools go in; text, tokens, ids and the price come out."""
    client.chat.completions.create(**ASK, temperature=0.5, tools=TOOLS, user="me")

    (span,) = run.spans
    assert span.type == "openai:chat"
    assert span.name == "chat gpt-4o"
    assert span.payload == {
        "model": MODEL,
        "messages": MESSAGES,
        "tools": TOOLS,
        "parameters": {"temperature": 0.5, "user": "me"},
    }
    call = {"id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'}
    assert span.result == {"text": "", "tool_calls": [call], "finish_reason": "tool_calls"}
    assert span.token_usage == TOKENS
    span.metadata.pop("cost", None)
    assert span.metadata == {
        "provider": "openai",
        "model": MODEL,
        "request_id": "req-7",
        "response_id": "cmpl-1",
        "http_status": 200,
        "provider_usage": CHAT_USAGE,
    }


def test_the_price_is_right(client, run):
    """What was read from the cache costs less than the rest of the prompt."""
    pytest.importorskip("genai_prices")
    client.chat.completions.create(**ASK)

    (span,) = run.spans
    assert span.metadata["cost"].keys() == {"usd", "input_usd", "output_usd", "date", "source"}
    expected = (Decimal(7) * Decimal("2.5") + Decimal(4) * Decimal("1.25") + Decimal(7) * 10) / 1_000_000
    assert span.metadata["cost"]["usd"] == float(expected)


def test_a_stream_is_a_span(client, run):
    """Its pieces are put together, and it is known when the first one came."""
    list(client.chat.completions.create(**ASK, stream=True, stream_options=WITH_USAGE))

    (span,) = run.spans
    assert span.result == {"text": "It is sunny in Paris.", "finish_reason": "stop"}
    assert span.token_usage == TOKENS
    assert span.payload == ASK
    took = (span.finished_at - span.started_at) / 1e6
    assert 0 < span.metadata["time_to_first_token_ms"] <= took


def test_a_stream_without_usage_has_no_tokens(client, run):
    """The request is not changed to make the provider count."""
    list(client.chat.completions.create(**ASK, stream=True))

    (span,) = run.spans
    assert span.token_usage is None


def test_tool_calls_of_a_stream_are_joined(client, provider, run):
    """Their arguments come in pieces, and are kept as they are when they are no JSON."""
    list(client.chat.completions.create(**ASK, tools=TOOLS, stream=True))
    provider.faults[:] = ["bad arguments"]
    list(client.chat.completions.create(**ASK, tools=TOOLS, stream=True))

    calls = [span.result["tool_calls"][0] for span in run.spans]
    assert calls == [
        {"id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'},
        {"id": "call_1", "name": "weather", "arguments": '{"city":'},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_a_span(stream, client, run):
    """The Responses API, whole and as a stream: with tokens in both, as its last event has them."""
    answer = client.responses.create(
        model=MODEL, input="hi", instructions="be short", tools=FLAT_TOOLS, stream=stream
    )
    list(answer)

    (span,) = run.spans
    assert span.type == "openai:responses"
    assert span.payload["input"] == "hi"
    assert span.payload["instructions"] == "be short"
    assert span.payload["tools"] == FLAT_TOOLS
    assert span.result == {
        "text": "",
        "tool_calls": [{"id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'}],
        "finish_reason": "completed",
    }
    assert span.token_usage == TOKENS
    assert span.metadata["provider_usage"] == RESPONSE_USAGE


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_counted(encoding, client, run):
    """Of vectors only their number and their dimensions are recorded."""
    client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format=encoding)

    (span,) = run.spans
    assert span.type == "openai:embeddings"
    assert span.payload["input"] == ["a", "b"]
    assert span.result == {"count": 2, "dimensions": 3}
    assert span.token_usage == {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}


def test_several_choices_are_kept_apart(client, run):
    """One answer of many is a choice."""
    client.chat.completions.create(**ASK, n=2)

    (span,) = run.spans
    assert [each["text"] for each in span.result["choices"]] == ["It is sunny in Paris."] * 2


def test_images_and_audio_are_kind_size_and_digest(client, run):
    """Not a byte of them is recorded; what is small or lies elsewhere is."""
    data = bytes(range(256)) * 200
    packed = base64.b64encode(data).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}}
    elsewhere = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    audio = {"type": "input_audio", "input_audio": {"data": packed, "format": "wav"}}
    content = [{"type": "text", "text": "what is it?"}, image, elsewhere, audio]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])

    (span,) = run.spans
    mark = {"$bytes": len(data), "sha256": hashlib.sha256(data[: 16 * 1024]).hexdigest()[:16]}
    assert span.payload["messages"][0]["content"] == [
        content[0],
        {"type": "image_url", "image_url": {"url": {**mark, "media": "image/png"}}},
        elsewhere,
        {"type": "input_audio", "input_audio": {"data": {**mark, "media": "wav"}, "format": "wav"}},
    ]


def test_what_logs_in_elsewhere_is_not_recorded(client, provider, run):
    """A server that the model may use comes with its keys; they go to the provider alone."""
    headers = {"Authorization": "Bearer hush"}
    tool = {"type": "mcp", "server_label": "a", "server_url": "https://a.example", "authorization": "hush"}
    client.responses.create(model=MODEL, input="hi", tools=[{**tool, "headers": headers}])

    (span,) = run.spans
    assert b"hush" in provider.requests[0][2]
    assert "hush" not in repr(span)
    assert span.payload["tools"][0]["server_url"] == "https://a.example"


def test_inputs_are_of_the_moment_of_the_call(client, run):
    """An agent goes on with the same list: what is recorded is what was sent."""
    messages = list(MESSAGES)
    stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    messages.append({"role": "assistant", "content": "later"})
    list(stream)

    (span,) = run.spans
    assert span.payload["messages"] == MESSAGES


def test_an_error_says_what_happened(client, provider, run):
    """Type, status, request id and the number of retries."""
    provider.faults[:] = [429, 429, 429]
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**ASK)

    (span,) = run.spans
    assert span.status == "failed"
    assert span.error["error_type"] == "openai.RateLimitError"
    assert "slow down" in span.error["message"]
    facts = {"http_status": 429, "request_id": "req-7", "retries": 2}
    assert span.metadata == {"provider": "openai", **facts}


def test_retries_are_one_span(client, provider, run):
    """That the SDK had to ask three times is a number."""
    provider.faults[:] = [429, 500]
    client.chat.completions.create(**ASK)

    (span,) = run.spans
    assert span.status == "complete"
    assert span.metadata["retries"] == 2
    assert len(provider.requests) == 3


def test_nobody_listening_is_an_error(run):
    """No server at all: the SDK's own exception, and a span that failed."""
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(**ASK)

    (span,) = run.spans
    assert (span.status, span.error["error_type"]) == ("failed", "openai.APIConnectionError")


@pytest.mark.parametrize(
    ("fault", "status"),
    [("disconnect", "failed"), ("corrupt", "failed"), ("error", "failed"), ("truncate", "complete")],
)
def test_a_stream_that_breaks_keeps_its_beginning(fault, status, client, provider, run):
    """What had come is recorded, with the exception that the user saw, and that it is not all."""
    provider.faults[:] = [fault]
    seen = None
    try:
        list(client.chat.completions.create(**ASK, stream=True))
    except Exception as raised:
        seen = f"{type(raised).__module__}.{type(raised).__qualname__}"

    (span,) = run.spans
    assert span.status == status
    assert (seen is not None) is (status == "failed")
    assert (span.error or {}).get("error_type") == seen
    assert span.result == {"text": "It is sunny"}
    assert span.metadata["incomplete"] is True


def test_a_broken_stream_read_as_bytes_failed_as_well(client, provider, run):
    """Who reads the lines himself gets no exception for an event that says error; the record knows."""
    provider.faults[:] = ["error"]
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        list(response.iter_lines())

    (span,) = run.spans
    assert span.status == "failed"
    assert span.error["message"] == "overloaded_error: Overloaded"


def test_a_packed_answer_is_read(client, provider, run):
    """Content encodings are undone for the record, too."""
    provider.faults[:] = ["gzip"] * 3
    client.chat.completions.create(**ASK)
    list(client.chat.completions.create(**ASK, stream=True))
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        response.read()

    assert [span.result["text"] for span in run.spans] == ["It is sunny in Paris."] * 3


# -- how streams end ---------------------------------------------------------------------------------------


def early(stream):
    next(stream)
    stream.close()


def by_block(stream):
    with stream:
        next(stream)


def by_error(stream):
    with pytest.raises(ZeroDivisionError), stream:
        next(stream)
        raise ZeroDivisionError


@pytest.mark.parametrize("leave", [early, by_block, by_error])
def test_a_stream_left_early_is_abandoned(leave, client, run):
    """It is complete for as much as its consumer wanted, and says so."""
    leave(client.chat.completions.create(**ASK, stream=True))

    (span,) = run.spans
    assert span.status == "complete"
    assert span.metadata["abandoned"] is True
    assert span.metadata["items"] == 1


def test_a_stream_never_begun_is_cancelled(client, run):
    """Nothing was wanted of it."""
    client.chat.completions.create(**ASK, stream=True).close()

    (span,) = run.spans
    assert span.status == "cancelled"


def test_a_stream_dropped_is_ended(client, run):
    """Who forgets a stream, ends it when it is collected."""
    stream = client.chat.completions.create(**ASK, stream=True)
    next(stream)
    del stream
    gc.collect()

    (span,) = run.spans
    assert span.metadata["abandoned"] is True


def test_a_stream_that_was_whole_from_the_start_is_ended(run):
    """As from a cache or a mock below the SDK: read in part and dropped, its call ends too."""
    with openai.OpenAI(api_key=KEY) as plain:
        http = importlib.import_module(type(plain._client).__mro__[-2].__module__.split(".")[0])
    delta = {"index": 0, "delta": {"content": "hey"}, "finish_reason": None}
    data = f"data: {json.dumps({'id': 'x', 'model': MODEL, 'choices': [delta]})}\n\n".encode()
    transport = http.MockTransport(lambda request: http.Response(200, content=data * 2))
    with openai.OpenAI(api_key=KEY, http_client=http.Client(transport=transport)) as client:
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        stream.close()
        del stream
        gc.collect()

    (span,) = run.spans
    assert span.metadata["abandoned"] is True
    assert span.metadata["items"] == 1


def test_a_stream_makes_no_cycle_more(client, run):
    """What we put in refers to no stream, so what was collected at once still is."""
    stream = client.chat.completions.create(**ASK, stream=True)

    watcher = vars(stream)["_iterator"]
    assert all(each is not stream for each in gc.get_referents(watcher, *gc.get_referents(watcher)[1:]))
    stream.close()


def test_a_cancelled_task_is_a_cancelled_call(provider, run):
    """Cancelled while it waits for the provider; the cancellation goes on unchanged."""

    async def ask():
        async with client_of(provider, openai.AsyncOpenAI) as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            async for _ in stream:
                began.set()

    async def main():
        task = asyncio.create_task(ask())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    provider.faults[:] = ["hold"]
    began = asyncio.Event()
    asyncio.run(main())
    provider.release.set()

    (span,) = run.spans
    assert span.status == "cancelled"


def test_the_first_chunk_is_not_held_up(client, provider, run):
    """Nothing is read ahead: the first chunk is there while the provider holds the second one back."""
    provider.faults[:] = ["hold"]
    stream = client.chat.completions.create(**ASK, stream=True)

    assert next(stream).choices[0].delta.role == "assistant"
    assert not provider.release.is_set()
    provider.release.set()
    list(stream)

    (span,) = run.spans
    assert span.status == "complete"


def test_a_stream_can_be_read_in_another_thread(client, run):
    """Begun here, read there: it is one span of this run."""
    stream = client.chat.completions.create(**ASK, stream=True)
    reading = threading.Thread(target=lambda: list(stream))
    reading.start()
    reading.join()

    (span,) = run.spans
    assert span.result["text"] == "It is sunny in Paris."


def test_a_response_still_pickles(client, run):
    """What is in the response's place does not stay in its way."""
    response = client.chat.completions.with_raw_response.create(**ASK).http_response

    assert pickle.loads(pickle.dumps(response)).content == response.content


# -- where it works ----------------------------------------------------------------------------------------


def test_azure_is_the_same(provider, run):
    """Its client changes the address of a request on the way; the call is recorded as any other."""
    azure = openai.AzureOpenAI(azure_endpoint=provider.url, api_key=KEY, api_version="2024-10-21")
    with azure as client:
        client.chat.completions.create(**ASK)

    (span,) = run.spans
    assert span.type == "openai:chat"
    assert span.token_usage == TOKENS
    assert provider.requests[0][0].startswith("/openai/deployments/gpt-4o/chat/completions")


def test_what_is_added_to_the_body_is_recorded(client, run):
    """`extra_body` is a part of the request; headers are not recorded."""
    client.chat.completions.create(**ASK, extra_body={"top_k": 3}, extra_headers={"x-secret": "hush"})

    (span,) = run.spans
    assert span.payload["parameters"] == {"top_k": 3}
    assert "hush" not in repr(span)


def test_outside_of_a_run_nothing_is_recorded(client, provider, recorded):
    """The call goes through."""
    pt.instrument("openai")

    assert client.chat.completions.create(**ASK).id == "cmpl-1"
    assert recorded.spans == []


def test_spans_around_and_inside(client, run):
    """A call is a step of the step it is in, and its tokens are counted once."""
    with pt.span("agent:plan"):
        client.chat.completions.create(**ASK)

    assert run.tree() == "agent:plan complete\n  chat gpt-4o complete"


def test_a_terminated_run_asks_nobody_any_more(client, provider, recorded):
    """As with any span, the next call of a run that the platform has stopped raises."""
    pt.instrument("openai")
    with pytest.raises(pt.InstanceTerminated), pt.instance() as instance:
        instance.heard_terminated("too dear")
        client.chat.completions.create(**ASK)
    assert provider.requests == []


def test_what_is_declared_fits(client, provider, run):
    """The types are declared with schemas, and what is recorded is valid by them."""
    jsonschema = pytest.importorskip("jsonschema")
    for program in ("chat", "tools", "response", "embeddings", "completion"):
        PROGRAMS[program](client)

    spans = run.spans
    registered = run._exporter.records[0]
    types = {each["name"]: each for each in registered.schema.to_wire()["span_type_schemas"]}
    for span in spans:
        jsonschema.validate({"inputs": span.payload}, types[span.type]["params_schema"])
        jsonschema.validate(span.result, types[span.type]["result_schema"])
        assert "inputs.model" in types[span.type]["template"]

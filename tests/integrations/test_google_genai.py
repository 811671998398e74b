"""Google's SDK: what it returns is as without us, and every request to a model is a span that says what happened."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl

import pytest

import prefactor_trace as pt

from .differential import is_raised, left_open, same
from .gemini import PICTURE, USAGE
from .others import MOCK_FAULTS

genai = pytest.importorskip("google.genai")
pydantic = pytest.importorskip("pydantic")

from google.genai import types  # noqa: E402 - after the skip

# Some versions name their HTTP library's deprecated parts as they are imported or closed; none of it is ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("no_leftovers"),
]

MODEL = "gemini-2.5-flash"
KEY = "a-very-secret-key"
ASK = {"model": MODEL, "contents": "How is the weather?"}
CONTENTS = [{"parts": [{"text": "How is the weather?"}], "role": "user"}]
TEXT = "It is sunny in Paris."
TOKENS = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "cache_read_tokens": 4,
    "reasoning_tokens": 2,
    "input_audio_tokens": 1,
    "cache_audio_read_tokens": 0,
}
CALL = {"id": "call-1", "name": "weather", "arguments": {"city": "Paris"}}
TOOL = types.Tool(function_declarations=[{"name": "weather", "parameters": {"type": "OBJECT"}}])


class City(pydantic.BaseModel):
    city: str


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


# Older versions do not understand annotations that are texts.
weather.__annotations__ = {"city": str, "return": str}

# Without one of our own each client would read all certificates of the machine, which takes most of the time here.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def options_of(url):
    """Return how a client comes to a server; versions differ in what they let one say."""
    options = {"base_url": url}
    if "client_args" in types.HttpOptions.model_fields:
        options |= {
            "client_args": {"verify": CONTEXT},
            "async_client_args": {"verify": CONTEXT, "ssl": CONTEXT},
        }
    return options


def client_of(provider):
    return genai.Client(api_key=KEY, http_options=options_of(provider.url))


def vertex_of(provider):
    credentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
    credentials.token = KEY
    return genai.Client(
        vertexai=True,
        project="a-project",
        location="a-place",
        credentials=credentials,
        http_options=options_of(provider.url),
    )


def exact(value):
    """Return *value* with its exact type, as deep as it matters."""
    if isinstance(value, pydantic.BaseModel):
        found = value.model_dump(warnings=False)
        found.get("sdk_http_response", {}).get("headers", {}).pop("date", None)
        return type(value), found
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    return type(value), value if isinstance(value, (str, bytes, int, float, type(None), dict)) else None


def left_early(client):
    stream = client.models.generate_content_stream(**ASK)
    for chunk in stream:
        stream.close()
        return [type(stream), chunk, *stream]


def chat(client):
    talk = client.chats.create(model=MODEL)
    return [talk.send_message("one"), *talk.send_message_stream("two"), *talk.get_history()]


PROGRAMS = {
    "content": lambda c: c.models.generate_content(
        **ASK, config={"temperature": 0.5, "stop_sequences": ["END"]}
    ),
    "tools": lambda c: c.models.generate_content(
        **ASK, config={"tools": [TOOL], "system_instruction": "be short"}
    ),
    "json": lambda c: c.models.generate_content(
        **ASK, config={"response_mime_type": "application/json", "response_schema": City}
    ),
    "stream": lambda c: list(c.models.generate_content_stream(**ASK)),
    "left early": left_early,
    "functions": lambda c: c.models.generate_content(**ASK, config={"tools": [weather]}),
    "functions in a stream": lambda c: list(
        c.models.generate_content_stream(**ASK, config={"tools": [weather]})
    ),
    "chat": chat,
    "embeddings": lambda c: c.models.embed_content(model="gemini-embedding-001", contents=["a", "b"]),
}
SPANS = {"functions": 2, "functions in a stream": 2, "chat": 2}
FAULTS = {
    "429": [429],
    "500": [500],
    "disconnect": ["disconnect"],
    "truncate": ["truncate"],
    "corrupt": ["corrupt"],
    "error": ["error"],
    "gzip": ["gzip"],
}
# What differs from one call to the next, with or without us; `x-goog-api-client` counts nothing, so it stays.
UNIQUE = ("traceparent", "tracestate")


def asked(provider):
    return [
        (path, {name.lower(): value for name, value in headers.items() if name.lower() not in UNIQUE}, body)
        for path, headers, body in provider.requests
    ]


def outcome(program, provider, faults=(), client_of=client_of):
    """Run *program*; return all that it, and the provider, can see."""
    provider.requests.clear()
    provider.faults[:] = faults
    client = client_of(provider)
    try:
        result = exact(program(client))
    except Exception as error:
        result = (type(error), str(error).split(" at 0x")[0], getattr(error, "code", None))
    return result, asked(provider)


@pytest.mark.parametrize("kind", [client_of, vertex_of])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same(name, kind, provider, recorded):
    """Types, values, chunks, headers and the bytes of the requests: nothing differs; each request is a span."""

    def program():
        found = outcome(PROGRAMS[name], provider, client_of=kind)
        gc.collect()
        return found

    result, requests = same(program, "google_genai")

    assert not is_raised(result), result
    assert len(recorded.spans) == SPANS.get(name, 1) == len(requests)
    for span in recorded.spans:
        assert (span.status, span.result is not None) == ("complete", True)
        assert KEY not in repr(span)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["content", "stream", "functions", "embeddings"])
def test_a_fault_is_the_same(name, fault, provider, recorded):
    """Whatever goes wrong at the provider, the user meets exactly the same."""
    result, _ = same(lambda: outcome(PROGRAMS[name], provider, FAULTS[fault]), "google_genai")

    assert (recorded.spans[-1].status == "failed") is is_raised(result)


async def async_programs(client, name):
    models = client.aio.models
    if name == "stream":
        return [chunk async for chunk in await models.generate_content_stream(**ASK)]
    if name == "functions":
        return await models.generate_content(**ASK, config={"tools": [weather]})
    if name == "chat":
        talk = client.aio.chats.create(model=MODEL)
        return [await talk.send_message("one"), *talk.get_history()]
    if name == "embeddings":
        return await models.embed_content(model="gemini-embedding-001", contents=["a"])
    if name == "left early":
        stream = await models.generate_content_stream(**ASK)
        async for chunk in stream:
            await stream.aclose()
            return [type(stream), chunk]
    return await models.generate_content(**ASK)


async def async_outcome(name, provider, faults=()):
    provider.requests.clear()
    provider.faults[:] = faults
    client = client_of(provider)
    try:
        result = exact(await async_programs(client, name))
    except Exception as error:
        result = (type(error), str(error).split(" at 0x")[0], getattr(error, "code", None))
    finally:
        if hasattr(client.aio, "aclose"):
            await client.aio.aclose()
    return result, [body for _, _, body in provider.requests]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # its sessions of aiohttp, which old versions cannot close
@pytest.mark.parametrize("fault", [[], ["disconnect"], ["corrupt"], ["error"], [429]])
@pytest.mark.parametrize("name", ["content", "stream", "functions", "chat", "embeddings", "left early"])
def test_an_async_program_is_the_same(name, fault, provider, recorded):
    """The same for the asynchronous client, by whichever HTTP library it goes."""
    _, requests = same(lambda: asyncio.run(async_outcome(name, provider, fault)), "google_genai")

    assert len(recorded.spans) == (len(requests) or 1)


@pytest.mark.parametrize("fault", MOCK_FAULTS)
def test_a_server_of_others_is_served_the_same(fault, llmock, recorded):
    """With that server's own faults; the tokens are those of its count."""

    def program():
        options = {**options_of(llmock.gemini), "api_version": "v1beta"}
        client = genai.Client(api_key=KEY, http_options=options)
        llmock.does(*MOCK_FAULTS[fault])
        try:
            whole = client.models.generate_content(**ASK) if fault in (None, "fail") else None
            return exact([whole, *client.models.generate_content_stream(**ASK)])
        except Exception as error:
            return type(error), str(error)

    result = same(program, "google_genai")

    assert (recorded.spans[-1].status == "failed") is is_raised(result)
    if fault is None:
        whole, stream = recorded.spans
        assert whole.result == stream.result
        assert whole.token_usage == stream.token_usage
        assert whole.token_usage["total_tokens"] == result[0][1]["usage_metadata"]["total_token_count"]


@pytest.mark.parametrize("fault", MOCK_FAULTS)
def test_a_stream_that_is_left_stays_open_no_longer(fault, llmock, recorded):
    """The SDK leaves it to the collector; nothing of ours holds it beyond that."""

    def program():
        options = {**options_of(llmock.gemini), "api_version": "v1beta"}
        llmock.does(*MOCK_FAULTS[fault])
        with contextlib.suppress(Exception):
            next(genai.Client(api_key=KEY, http_options=options).models.generate_content_stream(**ASK))

    same(lambda: left_open(program), "google_genai")


# -- what is recorded --------------------------------------------------------------------------------------


@pytest.fixture
def run(recorded):
    """A run that is open, with Google's SDK tapped."""
    pt.instrument("google_genai")
    with pt.instance():
        yield recorded


@pytest.fixture
def client(provider):
    return client_of(provider)


def test_content_is_a_span(client, run):
    """Model, instruction, contents, tools and parameters go in; text, tokens, ids and the price come out."""
    config = {"temperature": 0.5, "system_instruction": "be short"}
    client.models.generate_content(**ASK, config=config)

    (span,) = run.spans
    assert (span.type, span.name) == ("google_genai:generate_content", f"generate {MODEL}")
    assert span.payload == {
        "model": MODEL,
        "systemInstruction": {"parts": [{"text": "be short"}], "role": "user"},
        "contents": CONTENTS,
        "parameters": {"temperature": 0.5},
    }
    assert span.result == {"text": TEXT, "finish_reason": "STOP"}
    assert span.token_usage == TOKENS
    span.metadata.pop("cost", None)
    assert span.metadata == {
        "provider": "google",
        "model": MODEL,
        "response_id": "resp-1",
        "provider_usage": USAGE,
    }


def test_the_price_is_known(client, run):
    """What was thought costs, too."""
    prices = pytest.importorskip("genai_prices")
    client.models.generate_content(**ASK)

    (span,) = run.spans
    usage = prices.Usage(
        input_tokens=11,
        cache_read_tokens=4,
        output_tokens=7,
        input_audio_tokens=1,
        cache_audio_read_tokens=0,
    )
    expected = prices.calc_price(usage, MODEL, provider_id="google").total_price
    assert span.metadata["cost"]["usd"] == pytest.approx(float(expected))


def test_a_stream_is_a_span(client, run):
    """Its chunks are joined, and the last counts hold."""
    assert len(list(client.models.generate_content_stream(**ASK))) == 6

    (span,) = run.spans
    assert span.result == {"text": TEXT, "finish_reason": "STOP"}
    assert span.token_usage == TOKENS
    assert span.metadata["time_to_first_token_ms"] > 0


def test_each_turn_of_automatic_function_calling_is_counted_once(client, run):
    """Two requests, two spans beside each other; the first says which function was called, the second what it gave."""
    answer = client.models.generate_content(**ASK, config={"tools": [weather]})

    assert answer.text == TEXT
    first, second = run.spans
    assert first.result == {"text": "", "tool_calls": [CALL], "finish_reason": "STOP"}
    assert first.payload["tools"][0]["functionDeclarations"][0]["name"] == "weather"
    given = second.payload["contents"][-1]["parts"][0]["functionResponse"]
    assert given["response"] == {"result": "sunny in Paris"}
    assert second.result["text"] == TEXT
    assert [span.token_usage["total_tokens"] for span in run.spans] == [18, 18]
    assert first.parent_id == second.parent_id


def test_thoughts_are_kept_apart(client, run):
    """What the model thinks is not what it says; whole and as a stream."""
    config = {"thinking_config": {"include_thoughts": True}}
    client.models.generate_content(**ASK, config=config)
    list(client.models.generate_content_stream(**ASK, config=config))

    for span in run.spans:
        assert (span.result["reasoning"], span.result["text"]) == ("Let me see.", TEXT)


def test_several_candidates_are_kept_apart(client, run):
    """They are choices."""
    client.models.generate_content(**ASK, config={"candidate_count": 2})

    (span,) = run.spans
    assert span.result == {"choices": [{"text": TEXT, "finish_reason": "STOP"}] * 2}


def test_pictures_and_sound_are_kind_size_and_digest(client, run):
    """Not a byte of them is recorded, neither of what goes in nor of what comes out."""
    picture = bytes(range(256)) * 12  # in which all letters of base64 are, of Google's alphabet
    contents = [
        types.Part.from_bytes(data=picture, mime_type="image/png"),
        types.Part.from_uri(file_uri="gs://a/b.wav", mime_type="audio/wav"),
        "What is it?",
    ]
    config = {"response_modalities": ["TEXT", "IMAGE"]}
    client.models.generate_content(model=MODEL, contents=contents, config=config)

    (span,) = run.spans
    parts = span.payload["contents"][0]["parts"]
    assert parts[0]["inlineData"]["data"].keys() == {"$bytes", "sha256", "media"}
    assert parts[0]["inlineData"]["data"] | {"sha256": 0} == {
        "$bytes": 3_072,
        "sha256": 0,
        "media": "image/png",
    }
    assert sorted(parts[1]["fileData"].values()) == ["audio/wav", "gs://a/b.wav"]
    (shown,) = span.result["other_content"]
    assert shown["inlineData"]["data"]["$bytes"] == len(PICTURE["data"]) // 4 * 3


def test_what_is_refused_says_why(client, run):
    """A prompt that was blocked has no candidate."""
    client.models.generate_content(model=MODEL, contents="something forbidden")

    (span,) = run.spans
    assert span.result == {"text": "", "finish_reason": "SAFETY"}
    assert span.token_usage == {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}


@pytest.mark.parametrize(("kind", "tokens"), [(client_of, None), (vertex_of, 6)])
def test_embeddings_are_counted(kind, tokens, provider, run):
    """How many, and of how many dimensions; Vertex tells the tokens with each."""
    client = kind(provider)  # which closes its connections when it is dropped
    client.models.embed_content(model="text-embedding-004", contents=["a", "b"])

    (span,) = run.spans
    assert (span.type, span.name) == ("google_genai:embed_content", "embed text-embedding-004")
    assert span.result == {"count": 2, "dimensions": 3}
    assert (span.token_usage or {}).get("total_tokens") == tokens
    assert "parts" in repr(span.payload) or "instances" in span.payload


def test_what_asks_no_model_for_content_is_no_span(client, run):
    """Only what a model answers is recorded."""
    assert client.models.count_tokens(**ASK).total_tokens == 9
    assert run.spans == []


def test_what_is_added_to_the_body_is_recorded(client, run):
    """By `extra_body`: it is sent as well."""
    if "extra_body" not in types.HttpOptions.model_fields:
        pytest.skip("this version has no extra_body")
    client.models.generate_content(**ASK, config={"http_options": {"extra_body": {"labels": {"a": "b"}}}})

    (span,) = run.spans
    assert span.payload["parameters"] == {"labels": {"a": "b"}}


def test_what_logs_in_elsewhere_is_not_recorded(provider, run):
    """Tools may be told how to log in."""
    login = {"api_auth": {"api_key_config": {"api_key_string": KEY}}}
    tool = {"retrieval": {"external_api": {"endpoint": "https://a", "api_spec": "SIMPLE_SEARCH", **login}}}
    client = vertex_of(provider)
    client.models.generate_content(**ASK, config={"tools": [tool]})

    (span,) = run.spans
    assert "https://a" in repr(span.payload)
    assert KEY.encode() in provider.requests[0][2]
    assert KEY not in repr(span)


def test_an_error_says_what_happened(client, provider, run):
    """With the HTTP status, and in a stream with what had come before."""
    provider.faults[:] = [429, "error"]
    with pytest.raises(genai.errors.ClientError):
        client.models.generate_content(**ASK)
    with pytest.raises(genai.errors.ServerError):
        list(client.models.generate_content_stream(**ASK))

    refused, broken = run.spans
    assert (refused.status, refused.metadata["http_status"]) == ("failed", 429)
    assert refused.error["error_type"].endswith("ClientError")
    assert (broken.status, broken.metadata["http_status"]) == ("failed", 503)
    assert broken.result["text"].startswith("It is")
    assert broken.metadata["incomplete"] is True


def test_a_stream_that_ends_too_soon_is_incomplete(client, provider, run):
    """The SDK says nothing about it."""
    provider.faults[:] = ["truncate"]
    list(client.models.generate_content_stream(**ASK))

    (span,) = run.spans
    assert (span.status, span.metadata["incomplete"]) == ("complete", True)


def test_a_stream_left_early_is_abandoned(client, run):
    """Closed, dropped, or left by a chat that is given up."""
    stream = client.models.generate_content_stream(**ASK)
    next(stream)
    stream.close()
    stream = client.models.generate_content_stream(**ASK)
    next(stream)
    del stream
    gc.collect()

    for span in run.spans:
        assert (span.status, span.metadata["abandoned"]) == ("complete", True)
        assert span.result["text"] == "It"


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # its sessions of aiohttp, which old versions cannot close
def test_a_cancelled_task_is_a_cancelled_call(provider, run):
    """In the middle of a stream; the cancellation goes through."""
    provider.faults[:] = ["hold"]

    async def read(client):
        async for _ in await client.aio.models.generate_content_stream(**ASK):
            pass

    async def main():
        client = client_of(provider)
        task = asyncio.create_task(read(client))
        assert await asyncio.to_thread(provider.released_first.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        provider.release.set()
        if hasattr(client.aio, "aclose"):
            await client.aio.aclose()

    asyncio.run(main())
    gc.collect()
    (span,) = run.spans
    assert span.status == "cancelled"


def test_spans_of_functions_stand_beside_the_calls(client, run):
    """A function that is called automatically is no part of the request before it."""
    function = pt.span("function")(weather)

    with pt.span("turn") as turn:
        client.models.generate_content(**ASK, config={"tools": [function]})

    assert {span.parent_id for span in run.spans if span.name != "turn"} == {turn.id}
    assert sorted(span.name for span in run.spans) == [
        "function",
        f"generate {MODEL}",
        f"generate {MODEL}",
        "turn",
    ]


def test_what_is_declared_fits(client, provider, run):
    """The types are declared with schemas, and what is recorded is valid by them."""
    jsonschema = pytest.importorskip("jsonschema")
    for program in ("content", "tools", "stream", "embeddings"):
        PROGRAMS[program](client)

    spans = run.spans
    registered = run._exporter.records[0]
    known = {each["name"]: each for each in registered.schema.to_wire()["span_type_schemas"]}
    for span in spans:
        declared = known[span.type]
        jsonschema.validate({"inputs": span.payload}, declared["params_schema"])
        jsonschema.validate(span.result, declared["result_schema"])
        assert "inputs.model" in declared["template"]

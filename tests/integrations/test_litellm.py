"""LiteLLM: what it returns is as without us, its calls are spans, and what an SDK counts inside is counted once."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
import warnings

import pytest

import prefactor_trace as pt

from .differential import asked, is_raised, same
from .others import MOCK_FAULTS

# It would fetch a list of prices as it is imported, and prints advice at errors: nothing leaves the machine here.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
pydantic = pytest.importorskip("pydantic")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # old forms of pydantic's and Python's, in itself
    litellm = pytest.importorskip("litellm", exc_type=ImportError)
litellm.telemetry = False
litellm.suppress_debug_info = True
litellm.disable_aiohttp_transport = True  # which leaves connections open, and says so at odd moments

from litellm import acompletion, completion  # noqa: E402 - after the skip, and before `instrument`

# It warns of its own answers as it serialises them, and its logging in the background outlives the event loop.
pytestmark = [pytest.mark.usefixtures("no_leftovers")] + [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "UserWarning",
        "DeprecationWarning",
        "ResourceWarning",
        "RuntimeWarning",
        "pytest.PytestUnraisableExceptionWarning",
    )
]

KEY = "sk-very-secret"
OPENAI = "openai/gpt-4o"
CLAUDE = "anthropic/claude-haiku-4-5"
GEMINI = "gemini/gemini-2.0-flash"
MESSAGES = [{"role": "user", "content": "How is the weather?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TEXT = "It is sunny in Paris."
# Of the provider on loopback, by its kinds of API.
TOKENS = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "cache_read_tokens": 4,
    "reasoning_tokens": 2,
}
CLAUDES_TOTAL = 24


def ask(provider, model=OPENAI, **more):
    return {"model": model, "messages": MESSAGES, "api_key": KEY, "api_base": provider.url, **more}


def given(provider, model=OPENAI, **more):
    return {"model": model, "api_key": KEY, "api_base": provider.url, **more}


def router(provider):
    named = {"model": OPENAI, "api_key": KEY, "api_base": provider.url}
    return litellm.Router(model_list=[{"model_name": "a-model", "litellm_params": named}], num_retries=0)


def left_early(provider):
    stream = completion(**ask(provider, stream=True))
    first = next(stream)
    asyncio.run(stream.aclose())
    return [type(stream), first]


def texts(provider, **more):
    return litellm.text_completion(**given(provider, "openai/gpt-3.5-turbo-instruct", prompt="Hi", **more))


PROGRAMS = {
    "chat": lambda p: completion(**ask(p, temperature=0.5, max_retries=0)),
    "tools": lambda p: completion(OPENAI, MESSAGES, tools=TOOLS, api_key=KEY, api_base=p.url),
    "stream": lambda p: list(completion(**ask(p, stream=True, max_retries=0))),
    "stream with usage": lambda p: list(
        completion(**ask(p, stream=True, stream_options={"include_usage": True}))
    ),
    "left early": left_early,
    "claude": lambda p: completion(**ask(p, CLAUDE, max_retries=0)),
    "claude's stream": lambda p: list(completion(**ask(p, CLAUDE, stream=True, max_retries=0))),
    "text": texts,
    "text stream": lambda p: list(texts(p, stream=True)),
    "embedding": lambda p: litellm.embedding(**given(p, "openai/text-embedding-3-small", input=["a", "b"])),
    "response": lambda p: litellm.responses(**given(p, input="Hi")),
    "response stream": lambda p: list(litellm.responses(**given(p, input="Hi", stream=True))),
    "router": lambda p: router(p).completion("a-model", MESSAGES),
    "mock": lambda p: completion(**ask(p, mock_response="Hello")),
}
ASYNC = {
    "chat": lambda p: acompletion(**ask(p, max_retries=0)),
    "stream": lambda p: acompletion(**ask(p, stream=True, max_retries=0)),
    "claude's stream": lambda p: acompletion(**ask(p, CLAUDE, stream=True, max_retries=0)),
    "text": lambda p: litellm.atext_completion(**given(p, "openai/gpt-3.5-turbo-instruct", prompt="Hi")),
    "embedding": lambda p: litellm.aembedding(**given(p, "openai/text-embedding-3-small", input=["a"])),
    "response": lambda p: litellm.aresponses(**given(p, input="Hi")),
    "response stream": lambda p: litellm.aresponses(**given(p, input="Hi", stream=True)),
    "router": lambda p: router(p).acompletion("a-model", MESSAGES),
}
FAULTS = {
    "429": [429],
    "500": [500],
    "disconnect": ["disconnect"],
    "truncate": ["truncate"],
    "corrupt": ["corrupt"],
    "error": ["error"],
}
# LiteLLM makes these up as it goes.
UNIQUE = ("id", "created", "created_at", "item_id")


def exact(value):
    """Return *value* with its exact type, as deep as it matters, without what differs from one call to the next."""
    if isinstance(value, pydantic.BaseModel):
        return type(value), exact(value.model_dump(warnings=False))
    if isinstance(value, dict):
        return {name: exact(each) for name, each in value.items() if name not in UNIQUE}
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    return type(value), value if isinstance(value, (str, bytes, int, float, type(None))) else None


def outcome(program, provider, faults=()):
    """Run *program*; return all that it, and the provider, can see."""
    provider.requests.clear()
    provider.faults[:] = faults
    try:
        result = exact(program(provider))
    except Exception as error:
        result = (type(error), str(error), getattr(error, "status_code", None))
    return result, asked(provider, "traceparent")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same(name, provider, recorded):
    """Types, values, chunks, headers and the bytes of the requests: nothing differs; there is one span of ours."""
    result, _ = same(lambda: outcome(PROGRAMS[name], provider), "litellm")

    assert not is_raised(result), result
    (span,) = recorded.spans
    assert span.status == "complete"
    assert span.result is not None
    assert KEY not in repr(span)
    assert provider.url not in repr(span.payload)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["chat", "stream", "claude's stream"])
def test_a_fault_is_the_same(name, fault, provider, recorded):
    """Whatever goes wrong at the provider, the user meets exactly the same."""
    result, _ = same(lambda: outcome(PROGRAMS[name], provider, FAULTS[fault]), "litellm", "openai")

    span = recorded.spans[0]
    assert (span.type, span.status == "failed") == ("litellm:chat", is_raised(result))


async def awaited(program, provider):
    result = await program(provider)
    return [each async for each in result] if hasattr(result, "__anext__") else result


@pytest.fixture(scope="module")
def loop():
    """One event loop for all: LiteLLM keeps its connections beyond the life of a loop, and then fails of them."""
    found = asyncio.new_event_loop()
    yield found
    found.close()


@pytest.mark.parametrize("fault", [[], [500]])
@pytest.mark.parametrize("name", ASYNC)
def test_an_async_program_is_the_same(name, fault, loop, provider, recorded):
    """The same for the asynchronous functions."""

    def program(provider):
        return loop.run_until_complete(awaited(ASYNC[name], provider))

    same(lambda: outcome(program, provider, fault * 4), "litellm")

    (span,) = recorded.spans
    assert span.status == ("failed" if fault else "complete")


@pytest.mark.parametrize("fault", MOCK_FAULTS)
@pytest.mark.parametrize(("model", "api"), [(OPENAI, "openai"), (CLAUDE, "anthropic"), (GEMINI, "gemini")])
def test_a_server_of_others_is_served_the_same(model, api, fault, llmock, recorded):
    """In several dialects, with that server's own faults; the tokens are those of its count."""
    if (model, fault) == (GEMINI, "malformed"):
        pytest.skip("LiteLLM reads it for ever")

    def program():
        url = getattr(llmock, api) + ("/v1beta" if api == "gemini" else "")
        llmock.does(*MOCK_FAULTS[fault])
        options = {"model": model, "messages": MESSAGES, "api_key": KEY, "api_base": url, "max_retries": 0}
        try:
            whole = completion(**options) if fault in (None, "fail") else None
            return exact([whole, *completion(**options, stream=True, stream_options={"include_usage": True})])
        except Exception as error:
            return type(error), str(error)

    result = same(program, "litellm", "openai")

    ours = [span for span in recorded.spans if span.type == "litellm:chat"]
    assert (ours[-1].status == "failed") is is_raised(result)
    if fault is None:
        counted = [span.token_usage for span in recorded.spans if span.token_usage]
        assert len(counted) == 2
        assert (
            counted[0]["total_tokens"]
            == counted[1]["total_tokens"]
            == result[0][1]["usage"]["total_tokens"][1]
        )


# -- what is recorded --------------------------------------------------------------------------------------


@pytest.fixture
def run(recorded):
    """A run that is open, with LiteLLM tapped."""
    pt.instrument("litellm")
    with pt.instance():
        yield recorded


def test_a_chat_is_a_span(provider, run):
    """Also for who had the function before it was tapped; arguments that may be keys are not recorded."""
    completion(**ask(provider, temperature=0.5, tools=TOOLS, extra_headers={"a": KEY}, metadata={"b": KEY}))

    (span,) = run.spans
    assert (span.type, span.name) == ("litellm:chat", f"chat {OPENAI}")
    assert span.payload == {
        "model": OPENAI,
        "messages": MESSAGES,
        "tools": TOOLS,
        "parameters": {"temperature": 0.5},
    }
    call = {"id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'}
    assert span.result == {"text": "", "tool_calls": [call], "finish_reason": "tool_calls"}
    assert span.token_usage == TOKENS
    assert span.metadata["provider"] == "openai"
    assert span.metadata["model"] == "gpt-4o"
    assert span.metadata["response_id"] == "cmpl-1"


@pytest.mark.parametrize("stream", [False, True])
def test_another_provider_has_its_name_its_tokens_and_its_price(stream, provider, run):
    """Those of the provider, also in a stream, where LiteLLM puts them beside the chunks."""
    answer = completion(**ask(provider, CLAUDE, stream=stream))
    list(answer) if stream else None

    (span,) = run.spans
    assert span.result == {"text": TEXT, "finish_reason": "stop"}
    assert (span.metadata["provider"], span.metadata["model"]) == ("anthropic", CLAUDE.partition("/")[2])
    assert span.token_usage["total_tokens"] == CLAUDES_TOTAL
    pytest.importorskip("genai_prices")
    assert span.metadata["cost"]["usd"] > 0


def test_what_litellm_estimates_is_not_counted(provider, run):
    """A stream has tokens if the provider sends them."""
    list(completion(**ask(provider, stream=True)))
    list(completion(**ask(provider, stream=True, stream_options={"include_usage": True})))

    without, with_usage = run.spans
    assert without.result == with_usage.result == {"text": TEXT, "finish_reason": "stop"}
    assert without.token_usage is None
    assert with_usage.token_usage["total_tokens"] == 18
    assert without.metadata["time_to_first_token_ms"] > 0


@pytest.mark.parametrize("name", ["chat", "stream with usage", "text", "embedding", "router"])
def test_an_sdk_inside_keeps_the_tokens(name, provider, run):
    """LiteLLM's span is around the SDK's and has no tokens: together they are the provider's own count."""
    pytest.importorskip("openai")
    pt.instrument("openai")
    PROGRAMS[name](provider)

    outer, inner = run.spans
    assert (outer.type.partition(":")[0], inner.type.partition(":")[0]) == ("litellm", "openai")
    assert inner.parent_id == outer.id
    assert outer.token_usage is None
    assert "cost" not in outer.metadata
    assert inner.token_usage["total_tokens"] == (9 if name == "embedding" else 18)


def test_an_sdk_inside_keeps_the_tokens_of_many_at_once(provider, run):
    """Calls go by threads and tasks; each SDK's call finds its own around it."""
    pytest.importorskip("openai")
    pt.instrument("openai")

    async def main():
        await asyncio.gather(*(acompletion(**ask(provider)) for _ in range(5)))

    with pt.span("turn") as turn:
        asyncio.run(main())
    outer = [span for span in run.spans if span.type == "litellm:chat"]
    inner = [span for span in run.spans if span.type == "openai:chat"]
    assert {span.parent_id for span in outer} == {turn.id}
    assert sorted(span.parent_id for span in inner) == sorted(span.id for span in outer)
    assert [span.token_usage for span in outer] == [None] * 5
    assert sum(span.token_usage["total_tokens"] for span in inner) == 5 * 18


def test_responses_of_another_provider_are_chats_inside(provider, run):
    """LiteLLM makes them of one; the one has the tokens."""
    litellm.responses(**given(provider, CLAUDE, input="Hi"))

    outer, inner = run.spans
    assert (outer.type, inner.type) == ("litellm:responses", "litellm:chat")
    assert inner.parent_id == outer.id
    assert (outer.token_usage, inner.token_usage["total_tokens"]) == (None, CLAUDES_TOTAL)


def test_what_stands_in_for_a_model_is_inside(provider, run):
    """Each model that was tried is a call of its own; the one that answers has the tokens."""
    provider.faults[:] = [500]
    completion(**ask(provider, max_retries=0, fallbacks=[CLAUDE]))

    spans = run.spans
    assert spans[0].status == "complete"
    assert {span.status for span in spans[1:]} == {"failed", "complete"}
    assert sum((span.token_usage or {}).get("total_tokens", 0) for span in spans) == CLAUDES_TOTAL


def test_embeddings_are_counted(provider, run):
    """How many, and of how many dimensions."""
    PROGRAMS["embedding"](provider)

    (span,) = run.spans
    assert (span.type, span.result) == ("litellm:embeddings", {"count": 2, "dimensions": 3})
    assert span.token_usage["prompt_tokens"] == 9


def test_what_the_cache_answers_is_no_call(provider, run, monkeypatch):
    """Nobody was asked."""
    monkeypatch.setattr(litellm, "cache", litellm.Cache(type="local"))
    monkeypatch.setattr(litellm, "success_callback", list(litellm.success_callback))
    try:
        for _ in range(2):
            completion(**ask(provider, caching=True, seed=7))
    except ImportError as error:
        pytest.skip(f"for its cache this version needs {error.name}")

    assert len(run.spans) == len(provider.requests) == 1


def test_callbacks_of_the_user_are_undisturbed(provider, run, monkeypatch):
    """They are called as without us."""
    seen = []
    monkeypatch.setattr(litellm, "input_callback", [seen.append])
    completion(**ask(provider))

    assert len(run.spans) == 1
    assert len(seen) == 1


def test_an_error_says_what_happened(provider, run):
    """With the HTTP status, and LiteLLM's own exception."""
    provider.faults[:] = [429]
    with pytest.raises(litellm.RateLimitError):
        completion(**ask(provider, max_retries=0))

    (span,) = run.spans
    assert (span.status, span.metadata["http_status"]) == ("failed", 429)
    assert span.error["error_type"].endswith("RateLimitError")


@pytest.mark.parametrize("model", [OPENAI, CLAUDE])
def test_a_stream_left_early_is_abandoned(model, provider, run):
    """Closed or dropped; LiteLLM itself holds its last stream until there is another, and has logged it in a thread."""
    stream = completion(**ask(provider, model, stream=True))
    next(stream)
    asyncio.run(stream.aclose())
    stream = completion(**ask(provider, model, stream=True))
    next(stream)
    del stream
    list(completion(**ask(provider, model, stream=True)))

    give_up_at = time.monotonic() + 10
    while run.spans[1].result is None and time.monotonic() < give_up_at:
        gc.collect()
    closed, dropped, whole = run.spans
    assert (closed.status, closed.metadata["abandoned"]) == ("complete", True)
    assert (dropped.status, dropped.metadata["abandoned"]) == ("complete", True)
    assert "abandoned" not in whole.metadata


def test_between_two_chunks_the_context_is_the_consumers(provider, run):
    """What is done with a chunk is no part of the call."""
    for number, _ in enumerate(completion(**ask(provider, stream=True))):
        with pt.span(f"use {number}"):
            pass

    assert {span.parent_id for span in run.spans} == {None}


def test_a_cancelled_task_is_a_cancelled_call(provider, run):
    """In the middle of a stream; the cancellation goes through."""
    provider.faults[:] = ["hold"]

    async def read():
        async for _ in await acompletion(**ask(provider, stream=True)):
            pass

    async def main():
        task = asyncio.create_task(read())
        assert await asyncio.to_thread(provider.released_first.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        provider.release.set()

    asyncio.run(main())
    (span,) = run.spans
    assert span.status == "cancelled"


def test_uninstrument_restores_identity():
    """Inside the decorated functions, too, which are the same all the time."""
    functions = [
        getattr(sys.modules[module], name)
        for module, names in (
            ("litellm.main", ("completion", "text_completion", "embedding")),
            ("litellm.responses.main", ("responses",)),
        )
        for each in names
        for name in (each, f"a{each}")
    ]

    def inside():
        found = []
        for each in functions:
            place_of = each.__code__.co_freevars.index("original_function")
            found.append(each.__closure__[place_of].cell_contents)
        return found

    before = inside()
    step = litellm.CustomStreamWrapper.__next__
    assert pt.instrument("litellm").taken == ("litellm",)
    assert not any(new is old for new, old in zip(inside(), before, strict=True))
    assert litellm.CustomStreamWrapper.__next__ is not step

    pt.uninstrument()
    assert all(new is old for new, old in zip(inside(), before, strict=True))
    assert litellm.CustomStreamWrapper.__next__ is step
    assert litellm.main.completion is functions[0]


def test_what_is_declared_fits(provider, run):
    """The types are declared with schemas, and what is recorded is valid by them."""
    jsonschema = pytest.importorskip("jsonschema")
    for program in ("chat", "text", "response", "embedding"):
        PROGRAMS[program](provider)

    spans = run.spans
    registered = run._exporter.records[0]
    known = {each["name"]: each for each in registered.schema.to_wire()["span_type_schemas"]}
    assert len({span.type for span in spans}) == 4
    for span in spans:
        jsonschema.validate({"inputs": span.payload}, known[span.type]["params_schema"])
        jsonschema.validate(span.result, known[span.type]["result_schema"])
        assert "inputs.model" in known[span.type]["template"]

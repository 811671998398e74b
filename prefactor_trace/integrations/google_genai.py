"""Google's SDK for Gemini, by its API key and by Vertex: contents, streams and embeddings, sync and async.

It is tapped where its client sends a request: there stands what goes over the wire, whichever helper the user has
called. Each request to a model is a span: a chat makes one for each message, automatic function calling one for each
turn, with the calls of the functions in its result. Counting tokens, batches, images of Imagen, live sessions and
interactions are not recorded.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace.integrations._span_types import ANY, LIST, TEXT, embeddings_type, model_type
from prefactor_trace.integrations._tap import Asked, Reply, Tap
from prefactor_trace.integrations._values import (
    as_dict,
    count,
    counts,
    present,
    some_dict,
    some_list,
    text,
    without_media,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefactor_trace._schema import SpanType

REQUIRES = "google-genai>=1.74,<4"

GENERATE = model_type(
    "google_genai:generate_content",
    "Gemini content",
    "Content that a Gemini model has generated.",
    {"model": TEXT, "systemInstruction": {}, "contents": {}, "tools": LIST, "parameters": ANY},
    "choices",
)
EMBED = embeddings_type(
    "google_genai:embed_content",
    "Gemini embeddings",
    "Contents become vectors; recorded is how many, and of how many dimensions.",
    {"model": TEXT, "requests": LIST, "instances": LIST, "content": {}, "parameters": ANY},
)
TYPES = (GENERATE, EMBED)


class _Content:
    """Reads generated content: whole, or the chunks of a stream, which have the same form."""

    def __init__(self, model: str) -> None:
        self.has_token = False
        self._model = model
        self._head: dict[str, Any] = {}
        self._candidates: dict[int, dict[str, Any]] = {}
        self._error: str | None = None
        self._is_done = False

    def whole(self, value: Any) -> None:
        self.add(value)
        self._is_done = bool(self._head)

    def add(self, event: Any) -> None:
        chunk = _body(event)
        self._error = _error(chunk) or self._error
        self._head |= present(**{name: chunk.get(name) for name in _HEAD})
        for place, candidate in enumerate(map(some_dict, some_list(chunk.get("candidates")))):
            index = count(candidate.get("index"))
            kept = self._candidates.setdefault(place if index is None else index, {"parts": []})
            parts = some_list(some_dict(candidate.get("content")).get("parts"))
            kept["parts"] += map(some_dict, parts)
            kept["finish_reason"] = text(candidate.get("finishReason")) or kept.get("finish_reason")
            self.has_token = self.has_token or bool(parts)

    def reply(self) -> Reply:
        blocked = some_dict(self._head.get("promptFeedback")).get("blockReason")
        found = [_shown(each) for _, each in sorted(self._candidates.items())]
        result: dict[str, Any] | None = None
        if found:
            result = found[0] if len(found) == 1 else {"choices": found}
        elif blocked:
            result = {"text": "", "finish_reason": blocked}
        usage = some_dict(self._head.get("usageMetadata"))
        model = text(self._head.get("modelVersion")) or self._model
        return Reply(
            result=result,
            usage=_usage(usage),
            metadata=present(
                provider="google",
                response_id=self._head.get("responseId"),
                model=model,
                provider_usage=usage,
            ),
            error=self._error,
            is_whole=self._is_done or bool(blocked) or _are_finished(found),
            priced_as=("google", model),
        )


class _Embeddings:
    """Reads embeddings: of the vectors only how many there are, and of how many dimensions."""

    has_token = False

    def __init__(self, model: str) -> None:
        self._model = model
        self._body: dict[str, Any] = {}

    def whole(self, value: Any) -> None:
        self._body = _body(value)

    def add(self, event: Any) -> None:
        """An answer of this kind is no stream."""

    def reply(self) -> Reply:
        predictions = [some_dict(each).get("embeddings") for each in some_list(self._body.get("predictions"))]
        given = some_list(self._body.get("embeddings")) or predictions or [self._body.get("embedding")]
        found = [each for each in map(some_dict, given) if each]
        dimensions = len(some_list(found[0].get("values"))) if found else 0
        usage = some_dict(self._body.get("usageMetadata")) or _counted(found)
        return Reply(
            result={"count": len(found), **present(dimensions=dimensions or None)} if found else None,
            usage=_usage({"candidatesTokenCount": 0, **usage} if usage else usage),
            metadata=present(provider="google", model=self._model, provider_usage=usage),
            error=_error(self._body),
            is_whole=bool(self._body),
            priced_as=("google", self._model),
        )


# -- parts of answers --------------------------------------------------------------------------------------

_NO_JSON = {"error": {"message": "the answer is no JSON"}}
_HEAD = ("responseId", "modelVersion", "usageMetadata", "promptFeedback")


def _body(value: Any) -> dict[str, Any]:
    """Return the JSON of an answer: newer versions of the SDK hold it as text, with its headers."""
    if type(value) is dict:
        return value
    body = vars(value).get("body")
    try:
        return some_dict(orjson.loads(body)) if body else {}
    except orjson.JSONDecodeError:  # which the SDK finds when the tapped call is over
        return _NO_JSON


def _error(body: Mapping[str, Any]) -> str | None:
    return text(some_dict(body.get("error")).get("message")) or None


def _shown(candidate: Mapping[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    others: list[Any] = []
    for part in candidate["parts"]:
        call = some_dict(part.get("functionCall"))
        if type(part.get("text")) is str:
            (thoughts if part.get("thought") else texts).append(part["text"])
        elif call:
            given = present(id=call.get("id"), name=call.get("name"))
            calls.append(given | {"arguments": some_dict(call.get("args"))})
        elif part.keys() - {"thoughtSignature"}:
            others.append(without_media(part))
    return {
        "text": "".join(texts),
        **present(
            reasoning="".join(thoughts),
            tool_calls=calls,
            other_content=others,
            finish_reason=candidate.get("finish_reason"),
        ),
    }


def _are_finished(found: list[dict[str, Any]]) -> bool:
    return bool(found) and all(each.get("finish_reason") for each in found)


def _usage(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the counts. Google counts thoughts beside what is said, and what tools bring beside the prompt."""
    fresh, brought = count(usage.get("promptTokenCount")), count(usage.get("toolUsePromptTokenCount"))
    said, thought = count(usage.get("candidatesTokenCount")), count(usage.get("thoughtsTokenCount"))
    total = count(usage.get("totalTokenCount"))
    if fresh is None and said is None and thought is None:
        return None
    cached, heard = count(usage.get("cachedContentTokenCount")), _sound(usage.get("promptTokensDetails"))
    prompt, completion = (fresh or 0) + (brought or 0), (said or 0) + (thought or 0)
    return counts(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if total is None else total,
        cache_read_tokens=cached,
        cache_audio_read_tokens=(_sound(usage.get("cacheTokensDetails")) or 0) if cached and heard else None,
        reasoning_tokens=thought,
        input_audio_tokens=heard,
        output_audio_tokens=_sound(usage.get("candidatesTokensDetails")),
    )


def _sound(details: Any) -> int | None:
    """Return the tokens of sound among *details*."""
    sounds = [each for each in map(some_dict, some_list(details)) if each.get("modality") == "AUDIO"]
    return sum(count(each.get("tokenCount")) or 0 for each in sounds) if sounds else None


def _counted(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the usage as Vertex has it: with each vector."""
    each = [count(some_dict(one.get("statistics")).get("token_count")) for one in found]
    return {"promptTokenCount": sum(one or 0 for one in each)} if any(one is not None for one in each) else {}


# -- requests ----------------------------------------------------------------------------------------------

_GENERATED = ("systemInstruction", "contents", "tools")
_EMBEDDED = ("requests", "instances", "content")
# What is asked of a model: the span type, the verb in its name, the fields that are no parameters, the reader.
_METHODS: dict[str, tuple[SpanType, str, tuple[str, ...], Any]] = {
    "generateContent": (GENERATE, "generate", _GENERATED, _Content),
    "streamGenerateContent": (GENERATE, "generate", _GENERATED, _Content),
    "batchEmbedContents": (EMBED, "embed", _EMBEDDED, _Embeddings),
    "embedContent": (EMBED, "embed", _EMBEDDED, _Embeddings),
    "predict": (EMBED, "embed", _EMBEDDED, _Embeddings),
}


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    where, _, method = given["path"].partition("?")[0].rpartition(":")
    known = _METHODS.get(method)
    body = given["request_dict"]
    if known is None or (method == "predict" and not _is_embedding(body)):
        return None
    span_type, verb, fields, reader = known
    model = where.rpartition("/")[2]
    options = (getattr(given["self"], "_http_options", None), given.get("http_options"))
    for each in options:  # what the user adds, the client puts over what the SDK has made
        body = {**body, **some_dict(getattr(each, "extra_body", None))}
    return Asked(
        span_type,
        f"{verb} {model}"[:200],
        functools.partial(_inputs, model, body, fields),
        reader(model),
    )


_ARGUMENTS = ("self", "http_method", "path", "request_dict", "http_options")


def _is_embedding(body: Mapping[str, Any]) -> bool:
    """Say whether a prediction is of vectors: pictures and films are predicted by the same method."""
    instances = some_list(body.get("instances"))
    return bool(instances) and "content" in some_dict(instances[0])


def _inputs(model: str, body: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    given = {name: body[name] for name in fields if body.get(name) is not None}
    rest = {name: body[name] for name in body if name not in fields and not name.startswith("_")}
    parameters = {**as_dict(rest.pop("generationConfig", None)), **rest}
    return {"model": model, **without_media(given), **present(parameters=without_media(parameters))}


def _failed(error: BaseException) -> dict[str, Any]:
    """Return what an exception of the SDK tells."""
    return counts(http_status=vars(error).get("code"))


TAPS = tuple(
    Tap(f"google.genai._api_client:BaseApiClient.{name}", asks=_asked, failed=_failed)
    for name in ("request", "request_streamed", "async_request", "async_request_streamed")
)

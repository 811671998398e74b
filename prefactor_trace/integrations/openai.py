"""OpenAI's SDK, and everything that is spoken to through it: Azure, and any compatible server.

Recorded are chat completions, responses, embeddings and the old completions, in all forms the SDK offers: sync and
async, streams, `parse`, the `stream` helpers, raw and streaming responses. See `_stainless` for where it is tapped.

Others give answers in OpenAI's form: LiteLLM those of every provider, the Agents SDK in what it traces. They are read
by what is here: the readers of `ENDPOINTS`, and `token_usage`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefactor_trace.integrations._span_types import ANY, LIST, TEXT, embeddings_type, model_type
from prefactor_trace.integrations._stainless import Endpoint, taps
from prefactor_trace.integrations._tap import Reply
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

REQUIRES = "openai>=1.99,<4"

_MORE = ("refusal", "choices")
CHAT = model_type(
    "openai:chat",
    "OpenAI chat",
    "A chat completion.",
    {"model": TEXT, "messages": LIST, "tools": LIST, "parameters": ANY},
    *_MORE,
)
COMPLETIONS = model_type(
    "openai:completions",
    "OpenAI completion",
    "A completion of a text, by the old interface.",
    {"model": TEXT, "prompt": {}, "parameters": ANY},
    *_MORE,
)
RESPONSES = model_type(
    "openai:responses",
    "OpenAI response",
    "A response of the Responses API.",
    {"model": TEXT, "instructions": {}, "input": {}, "tools": LIST, "parameters": ANY},
    *_MORE,
)
EMBEDDINGS = embeddings_type(
    "openai:embeddings",
    "OpenAI embeddings",
    "Texts become vectors; recorded is how many, and of how many dimensions.",
    {"model": TEXT, "input": {}, "parameters": ANY},
)
TYPES = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)


class _Chat:
    """Reads chat completions and the old completions: both have choices, and chunks of them."""

    def __init__(self) -> None:
        self.has_token = False
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] = {}
        self._error: str | None = None
        self._is_done = False

    def whole(self, value: Any) -> None:
        body = as_dict(value)
        self._note(body)
        self._is_done = True
        for index, choice in enumerate(map(some_dict, some_list(body.get("choices")))):
            message = some_dict(choice.get("message"))
            self._choices[index] = {
                "text": _content(message.get("content")) or text(choice.get("text")),
                "refusal": message.get("refusal"),
                "reasoning": message.get("reasoning_content") or message.get("reasoning"),
                "tool_calls": _tool_calls(message),
                "audio": without_media(message.get("audio")),
                "finish_reason": choice.get("finish_reason"),
            }

    def add(self, event: Any) -> None:
        # A stream has hundreds of these, nearly all of them a piece of text and nothing else.
        chunk = event if type(event) is dict else as_dict(event)
        if not self._head or chunk.get("usage") or chunk.get("error"):
            self._note(chunk)
        choices = chunk.get("choices")
        if type(choices) is list:
            for choice in choices:
                if type(choice) is dict:
                    self._add_choice(choice)
        elif chunk.get("type") == "[DONE]":
            self._is_done = True

    def _add_choice(self, choice: dict[str, Any]) -> None:
        delta = some_dict(choice.get("delta"))
        kept = self._choices.get(choice.get("index"))  # type: ignore[arg-type] # looked at if it is not there
        if kept is None:
            kept = self._choices.setdefault(count(choice.get("index")) or 0, {"texts": [], "calls": {}})
        piece = delta.get("content") or choice.get("text")
        if type(piece) is str:
            kept["texts"].append(piece)
            self.has_token = True
        if choice.get("finish_reason"):
            kept["finish_reason"] = choice["finish_reason"]
        if len(delta) > 1 or (delta and "content" not in delta):
            self._add_others(delta, kept)

    def _add_others(self, delta: dict[str, Any], kept: dict[str, Any]) -> None:
        """Add what is no text: refusals, thoughts, what was said aloud, tool calls."""
        pieces = {name: text(delta.get(name)) for name in ("refusal", "reasoning_content", "reasoning")}
        pieces["transcript"] = text(some_dict(delta.get("audio")).get("transcript"))
        calls = some_list(delta.get("tool_calls"))
        if delta.get("function_call"):  # the form before there were tools
            calls = [*calls, {"index": 0, "function": delta["function_call"]}]
        _add_calls(kept["calls"], calls)
        for name, piece in pieces.items():
            if piece:
                kept.setdefault(name, []).append(piece)
        self.has_token = self.has_token or bool(calls or any(pieces.values()))

    def reply(self) -> Reply:
        choices = [_joined(each) for _, each in sorted(self._choices.items())]
        result: dict[str, Any] | None = None
        if choices:
            result = choices[0] if len(choices) == 1 else {"choices": choices}
        model = text(self._head.get("model"))
        return Reply(
            result=result,
            usage=token_usage(self._usage),
            metadata=_about(self._head, self._usage),
            error=self._error,
            is_whole=self._is_done or bool(choices and all(each.get("finish_reason") for each in choices)),
            priced_as=("openai", model) if model else None,
        )

    def _note(self, body: dict[str, Any]) -> None:
        for name in ("id", "model", "service_tier", "system_fingerprint"):
            if text(body.get(name)):
                self._head[name] = body[name]
        self._usage = some_dict(body.get("usage")) or self._usage
        self._error = _error(body.get("error")) or self._error


class _Response:
    """Reads the Responses API: a stream is a series of events, and the last one holds everything."""

    def __init__(self) -> None:
        self.has_token = False
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        self._texts: list[str] = []
        self._error: str | None = None
        self._is_done = False

    def whole(self, value: Any) -> None:
        self._response = as_dict(value)
        self._is_done = True

    def add(self, event: Any) -> None:
        event = as_dict(event)
        kind = text(event.get("type"))
        if type(event.get("response")) is dict:
            self._response = event["response"]
        if kind.endswith(".delta"):
            self.has_token = True
            if kind == "response.output_text.delta":
                self._texts.append(text(event.get("delta")))
        elif kind == "response.output_item.done":
            self._items[count(event.get("output_index")) or 0] = some_dict(event.get("item"))
        elif kind == "error" or (not kind and event.get("error")):
            self._error = _error(event.get("error") or event)
        elif kind in ("response.completed", "response.failed", "response.incomplete", "[DONE]"):
            self._is_done = True

    def reply(self) -> Reply:
        body = self._response
        items = some_list(body.get("output")) or [item for _, item in sorted(self._items.items())]
        result = _output(items, self._texts) if items or self._texts else None
        reason = some_dict(body.get("incomplete_details")).get("reason")
        status = text(body.get("status"))
        if result is not None and self._is_done:
            result = {**result, **present(finish_reason=reason or status)}
        usage = some_dict(body.get("usage"))
        model = text(body.get("model"))
        return Reply(
            result=result,
            usage=token_usage(usage),
            metadata=_about(body, usage),
            error=self._error or _error(body.get("error")),
            is_whole=self._is_done,
            priced_as=("openai", model) if model else None,
        )


class _Embeddings:
    """Reads embeddings: of the vectors only how many there are, and of how many dimensions."""

    has_token = False

    def __init__(self) -> None:
        self._body: dict[str, Any] = {}

    def whole(self, value: Any) -> None:
        self._body = as_dict(value)

    def add(self, event: Any) -> None:
        """An answer of this kind is no stream."""

    def reply(self) -> Reply:
        vectors = some_list(self._body.get("data"))
        first = some_dict(vectors[0]).get("embedding") if vectors else None
        usage = some_dict(self._body.get("usage"))
        model = text(self._body.get("model"))
        return Reply(
            result={"count": len(vectors), **present(dimensions=_dimensions(first))} if vectors else None,
            usage=token_usage({"completion_tokens": 0, **usage} if usage else usage),
            metadata=_about(self._body, usage),
            error=_error(self._body.get("error")),
            is_whole=type(self._body.get("data")) is list,
            priced_as=("openai", model) if model else None,
        )


# -- parts of answers --------------------------------------------------------------------------------------


def _dimensions(vector: Any) -> int | None:
    if type(vector) is str:  # base64 of four bytes each: what the SDK asks for unless told otherwise
        return (len(vector) // 4 * 3 - vector[-2:].count("=")) // 4
    return len(vector) if type(vector) is list else None


def _content(content: Any) -> str:
    """Return the text of a message's content; some servers send parts."""
    if type(content) is list:
        return "".join(text(some_dict(part).get("text")) for part in content)
    return text(content)


def _tool_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = list(map(some_dict, some_list(message.get("tool_calls"))))
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    return [_tool_call(call) for call in calls]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = some_dict(call.get("function")) or some_dict(call.get("custom"))
    arguments = function.get("arguments", function.get("input"))
    return present(id=call.get("id"), name=function.get("name")) | {"arguments": arguments}


def _add_calls(calls: dict[Any, dict[str, Any]], pieces: list[Any]) -> None:
    """Add pieces of tool calls to those with the same index."""
    for place, piece in enumerate(map(some_dict, pieces)):
        function = some_dict(piece.get("function")) or some_dict(piece.get("custom"))
        index = piece.get("index")
        call = calls.setdefault(index if type(index) is int else place, {"arguments": []})
        call["id"] = piece.get("id") or call.get("id")
        call["name"] = function.get("name") or call.get("name")
        call["arguments"].append(text(function.get("arguments")) or text(function.get("input")))


def _joined(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice as it is shown, its pieces joined."""
    if "texts" not in choice:
        return {
            "text": choice["text"],
            **present(**{name: choice[name] for name in choice if name != "text"}),
        }
    calls = [
        present(id=call.get("id"), name=call.get("name")) | {"arguments": "".join(call["arguments"])}
        for _, call in sorted(choice["calls"].items())
    ]
    return {
        "text": "".join(choice["texts"]),
        **present(
            refusal="".join(choice.get("refusal", ())),
            reasoning="".join(choice.get("reasoning_content") or choice.get("reasoning") or ()),
            transcript="".join(choice.get("transcript", ())),
            tool_calls=calls,
            finish_reason=choice.get("finish_reason"),
        ),
    }


def _output(items: list[Any], texts: list[str]) -> dict[str, Any]:
    """Return the output items of a response as they are shown. *texts*: pieces, if it broke off."""
    found: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    others: list[Any] = []
    for item in map(some_dict, items):
        kind = item.get("type")
        parts = list(map(some_dict, some_list(item.get("content"))))
        if kind == "message":
            found += [text(part.get("text")) for part in parts]
            refusals += [text(part.get("refusal")) for part in parts]
        elif kind == "reasoning":
            thoughts += [text(some_dict(part).get("text")) for part in some_list(item.get("summary"))]
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item.get("arguments", item.get("input"))
            calls.append(present(id=item.get("call_id"), name=item.get("name")) | {"arguments": arguments})
        else:
            others.append(without_media(item))
    return {
        "text": "".join(found) or "".join(texts),
        **present(
            refusal="".join(refusals), reasoning="\n".join(thoughts), tool_calls=calls, other_output=others
        ),
    }


def token_usage(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the counts of either interface. What is read from a cache is part of the prompt."""
    if not usage:
        return None
    into = some_dict(usage.get("prompt_tokens_details")) or some_dict(usage.get("input_tokens_details"))
    out = some_dict(usage.get("completion_tokens_details")) or some_dict(usage.get("output_tokens_details"))
    prompt = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    completion = count(usage.get("completion_tokens", usage.get("output_tokens")))
    total = count(usage.get("total_tokens"))
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    found = counts(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cache_read_tokens=into.get("cached_tokens"),
        cache_write_tokens=into.get("cache_write_tokens"),
        reasoning_tokens=out.get("reasoning_tokens"),
        input_audio_tokens=into.get("audio_tokens"),
        output_audio_tokens=out.get("audio_tokens"),
    )
    return found or None


def _about(body: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    return present(
        provider="openai",
        response_id=body.get("id"),
        model=body.get("model"),
        service_tier=body.get("service_tier"),
        provider_usage=dict(usage),
    )


def _error(error: Any) -> str | None:
    """Return what an error object says."""
    if not error:
        return None
    fields = some_dict(error)
    words = [text(fields.get("code")) or text(fields.get("type")), text(fields.get("message")) or text(error)]
    return ": ".join(word for word in words if word) or "the provider says that it failed"


ENDPOINTS = {
    "/chat/completions": Endpoint(CHAT, "chat", ("model", "messages", "tools"), _Chat),
    "/responses": Endpoint(RESPONSES, "respond", ("model", "instructions", "input", "tools"), _Response),
    "/embeddings": Endpoint(EMBEDDINGS, "embed", ("model", "input"), _Embeddings),
    "/completions": Endpoint(COMPLETIONS, "complete", ("model", "prompt"), _Chat),
}
TAPS = taps("openai", ENDPOINTS)

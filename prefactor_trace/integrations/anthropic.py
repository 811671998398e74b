"""Anthropic's SDK, also for Bedrock, Vertex and Foundry: messages, beta messages too.

Recorded are `create`, `stream` and `parse`, sync and async, raw and streaming responses; counting tokens and batches are
not. See `_stainless` for where it is tapped. The spans of OpenTelemetry that the SDK makes itself are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace.integrations._span_types import ANY, LIST, TEXT, model_type
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

REQUIRES = "anthropic>=0.50,<3"

MESSAGES = model_type(
    "anthropic:messages",
    "Anthropic message",
    "A message by a Claude model.",
    {"model": TEXT, "system": {}, "messages": LIST, "tools": LIST, "parameters": ANY},
)
TYPES = (MESSAGES,)


class _Message:
    """Reads a message: whole, or from the events that build it up."""

    def __init__(self) -> None:
        self.has_token = False
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] = {}
        self._error: str | None = None
        self._is_done = False

    def whole(self, value: Any) -> None:
        self._message = as_dict(value)
        self._usage = some_dict(self._message.get("usage"))
        self._blocks = dict(enumerate(map(some_dict, some_list(self._message.get("content")))))
        self._error = _error(self._message)
        self._is_done = True

    def add(self, event: Any) -> None:
        event = as_dict(event)
        kind = event.get("type")
        if kind == "message_start":
            self._message = dict(some_dict(event.get("message")))
            self._usage = dict(some_dict(self._message.get("usage")))
        elif kind == "content_block_start":
            self._blocks[_index(event)] = {**some_dict(event.get("content_block")), "pieces": []}
        elif kind == "content_block_delta":
            self.has_token = True
            self._add_delta(_index(event), some_dict(event.get("delta")))
        elif kind == "message_delta":
            self._message |= some_dict(event.get("delta"))
            self._usage |= present(**some_dict(event.get("usage")))  # the counts so far, not what is added
        elif kind == "message_stop":
            self._is_done = True
        elif kind == "error":
            self._error = _error(event)

    def _add_delta(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {"pieces": []})
        piece = text(delta.get("text")) or text(delta.get("thinking")) or text(delta.get("partial_json"))
        block.setdefault("pieces", []).append(piece)

    def reply(self) -> Reply:
        message = self._message
        blocks = [block for _, block in sorted(self._blocks.items())]
        model = text(message.get("model"))
        result = None
        if blocks or message.get("stop_reason"):
            result = {**_content(blocks), **present(finish_reason=message.get("stop_reason"))}
        return Reply(
            result=result,
            usage=_usage(self._usage),
            metadata=present(
                provider="anthropic",
                response_id=message.get("id"),
                model=model,
                service_tier=self._usage.get("service_tier"),
                provider_usage=self._usage,
            ),
            error=self._error,
            is_whole=self._is_done,
            priced_as=("anthropic", model) if model else None,
        )


def _index(event: Mapping[str, Any]) -> int:
    return count(event.get("index")) or 0


def _content(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    others: list[Any] = []
    for block in blocks:
        kind, pieces = block.get("type"), "".join(block.get("pieces", ()))
        if kind == "text":
            texts.append(text(block.get("text")) + pieces)
        elif kind == "thinking":
            thoughts.append(text(block.get("thinking")) + pieces)
        elif kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
            given = _arguments(pieces) if pieces else block.get("input")
            calls.append(present(id=block.get("id"), name=block.get("name")) | {"arguments": given})
        else:
            others.append(without_media({name: block[name] for name in block if name != "pieces"}))
    return {
        "text": "".join(texts),
        **present(reasoning="\n".join(thoughts), tool_calls=calls, other_content=others),
    }


def _arguments(pieces: str) -> Any:
    """Return the arguments of a tool call; as the text they are, if that is no JSON, or not all of it."""
    try:
        return orjson.loads(pieces)
    except orjson.JSONDecodeError:
        return pieces


def _usage(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the counts. Anthropic counts what goes through the cache beside the input; here it is all the prompt."""
    fresh, completion = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if fresh is None and completion is None:
        return None
    read = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    prompt = (fresh or 0) + (read or 0) + (written or 0)
    return counts(
        prompt_tokens=prompt,
        completion_tokens=completion or 0,
        total_tokens=prompt + (completion or 0),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=some_dict(usage.get("output_tokens_details")).get("thinking_tokens"),
    )


def _error(body: Mapping[str, Any]) -> str | None:
    error = some_dict(body.get("error"))
    words = ": ".join(word for word in (text(error.get("type")), text(error.get("message"))) if word)
    return (words or "the provider says that it failed") if error or body.get("type") == "error" else None


TAPS = taps(
    "anthropic",
    {"/v1/messages": Endpoint(MESSAGES, "message", ("model", "system", "messages", "tools"), _Message)},
)

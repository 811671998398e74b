"""What LangChain passes around, as plain data: messages, documents, commands, and the answers of models. Pure.

Fields are read where the objects keep them: no property, and no other code of a class of the user's, is run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from prefactor_trace.integrations._tap import Reply
from prefactor_trace.integrations._values import count, counts, present, some_dict, text, without_media

if TYPE_CHECKING:
    from collections.abc import Mapping

# -- models ------------------------------------------------------------------------------------------------

# Parameters that say something about the call; whatever else there is could be a key.
_PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stop",
    "stop_sequences",
    "n",
    "seed",
    "stream",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "response_format",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "reasoning_effort",
    "thinking",
    "service_tier",
)
# LangChain's name of a provider → the one that has the prices.
_PROVIDERS = {
    "amazon_bedrock": "aws",
    "azure_openai": "azure",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "xai": "x-ai",
}


def asked(said: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    params = some_dict(facts.get("invocation_params"))
    model = _model_of(params, some_dict(facts.get("metadata")))
    parameters = {name: params[name] for name in _PARAMETERS if params.get(name) is not None}
    return {
        **present(model=model),
        **said,
        **present(tools=without_media(params.get("tools")), parameters=parameters),
    }


def _model_of(params: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    return text(params.get("model")) or text(params.get("model_name")) or text(metadata.get("ls_model_name"))


class Answer:
    """Reads an answer: an `LLMResult` of LangChain."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.has_token = False
        metadata = some_dict(facts.get("metadata"))
        self._provider = text(metadata.get("ls_provider"))
        self._model = _model_of(some_dict(facts.get("invocation_params")), metadata)
        self._result: Any = None

    def add(self, piece: Any) -> None:
        self.has_token = self.has_token or bool(piece)

    def whole(self, value: Any) -> None:
        self._result = value

    def reply(self) -> Reply:
        result = _fields(self._result)
        # Of one call there is one group; after an error there can be another, with nothing but the provider's answer.
        group = next((each for each in result.get("generations") or () if each), ())
        generations = [_fields(each) for each in group]
        messages = [_fields(each.get("message")) for each in generations]
        told = [
            {**some_dict(one.get("generation_info")), **some_dict(message.get("response_metadata"))}
            for one, message in zip(generations, messages, strict=True)
        ]
        if not generations:
            return Reply(is_whole=False, metadata=present(provider=self._provider))
        choices = [_choice(*each) for each in zip(generations, messages, told, strict=True)]
        usage, is_cached = _usage(messages, some_dict(result.get("llm_output")))
        model = text(told[0].get("model_name")) or text(told[0].get("model")) or self._model
        provider = text(told[0].get("model_provider")) or self._provider
        return Reply(
            result={**choices[0], **present(choices=choices[1:] and choices)},
            usage=None if is_cached else usage,
            metadata=present(
                provider=provider,
                model=model,
                response_id=told[0].get("id"),
                service_tier=told[0].get("service_tier"),
                cached=is_cached or None,
            ),
            priced_as=(_PROVIDERS.get(provider, provider), model) if provider and model else None,
        )


def _choice(
    generation: Mapping[str, Any], message: Mapping[str, Any], told: Mapping[str, Any]
) -> dict[str, Any]:
    content = message.get("content", generation.get("text"))
    blocks = [each for each in content if type(each) is not str] if type(content) is list else []
    texts = [each for each in content if type(each) is str] if type(content) is list else [text(content)]
    texts += [text(each.get("text")) for each in map(some_dict, blocks) if each.get("type") == "text"]
    others = [each for each in blocks if some_dict(each).get("type") not in ("text", "tool_use", "tool_call")]
    return {
        "text": "".join(texts),
        **present(
            reasoning=text(some_dict(message.get("additional_kwargs")).get("reasoning_content")),
            tool_calls=_tool_calls(message),
            finish_reason=told.get("finish_reason") or told.get("stop_reason"),
            other_content=without_media(others),
        ),
    }


def _usage(messages: list[dict[str, Any]], output: Mapping[str, Any]) -> tuple[dict[str, int] | None, bool]:
    """Return the counts, and whether the answer comes from a cache of LangChain's, so that nothing was used.

    Several answers to one call tell the same counts each.
    """
    usage = next((found for each in messages if (found := some_dict(each.get("usage_metadata")))), {})
    if usage:
        into = some_dict(usage.get("input_token_details"))
        out = some_dict(usage.get("output_token_details"))
        found = counts(
            prompt_tokens=usage.get("input_tokens"),
            completion_tokens=usage.get("output_tokens"),
            total_tokens=usage.get("total_tokens"),
            cache_read_tokens=into.get("cache_read"),
            cache_write_tokens=into.get("cache_creation"),
            reasoning_tokens=out.get("reasoning"),
        )
        return found or None, usage.get("total_cost") == 0
    usage = some_dict(output.get("token_usage")) or some_dict(output.get("usage"))
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: usage[name] for name in names if count(usage.get(name)) is not None} or None, False


# -- plain data --------------------------------------------------------------------------------------------

_ROLES = {"human": "user", "ai": "assistant"}
_MOST_VALUES = 2_000
_DEEPEST = 8
_ATOMS = frozenset(map(id, (str, int, float, bool, type(None))))
_bases_of = type.__dict__["__mro__"].__get__


def plain(value: Any) -> Any:
    """Return *value* with the messages, documents and commands in it as plain data. None of the user's code is run."""
    return _Plain().read(value, 0)


class _Plain:
    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def read(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if id(kind) in _ATOMS or depth > _DEEPEST:
            return value
        if kind is list or kind is tuple:
            self._left -= len(value)
            return value if self._left < 0 else [self.read(each, depth + 1) for each in value]
        if is_a(value, dict):
            self._left -= dict.__len__(value)
            if self._left < 0:
                return value
            return {key: self.read(each, depth + 1) for key, each in dict.copy(value).items()}
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        if is_a(value, loaded("langchain_core.messages.base", "BaseMessage")):
            return _message(_fields(value))
        if is_a(value, loaded("langchain_core.documents.base", "Document")):
            fields = _fields(value)
            own = self.read(fields.get("metadata"), depth + 1)
            return {
                "page_content": fields.get("page_content"),
                **present(id=fields.get("id"), metadata=own),
            }
        if is_a(value, loaded("langchain_core.prompt_values", "PromptValue")):
            fields = _fields(value)
            return {
                name: self.read(fields[name], depth + 1) for name in ("messages", "text") if name in fields
            }
        kind = type(value)
        if kind is loaded("langgraph.types", "Command"):
            given = {
                name: self.read(getattr(value, name), depth + 1) for name in ("update", "resume", "goto")
            }
            return {**given, "graph": value.graph}
        if kind is loaded("langgraph.types", "Send"):
            return {"node": value.node, "arg": self.read(value.arg, depth + 1)}
        if kind is loaded("langgraph.types", "Interrupt"):
            return {"value": self.read(value.value, depth + 1), "id": getattr(value, "id", None)}
        if kind is loaded("langgraph.types", "Overwrite"):
            return {"overwrite": self.read(value.value, depth + 1)}
        return value


def _message(fields: Mapping[str, Any]) -> dict[str, Any]:
    kind = text(fields.get("type")).removesuffix("MessageChunk").lower()
    content = fields.get("content")
    return {
        "role": text(fields.get("role")) or _ROLES.get(kind, kind),
        "content": content if type(content) is str else without_media(content),
        **present(
            name=fields.get("name"),
            tool_calls=_tool_calls(fields),
            tool_call_id=fields.get("tool_call_id"),
            status="error" if fields.get("status") == "error" else None,
        ),
    }


def _tool_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls, those too whose arguments are no JSON."""
    found = [*(message.get("tool_calls") or ()), *(message.get("invalid_tool_calls") or ())]
    return [
        present(id=call.get("id"), name=call.get("name"), error=call.get("error"))
        | {"arguments": call.get("args")}
        for call in map(some_dict, found)
    ]


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a model of pydantic's, without asking its class."""
    try:
        return some_dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}


def is_a(value: Any, kind: Any) -> bool:
    """Do what `isinstance` does, without asking *value* or a metaclass."""
    return kind is not None and any(base is kind for base in _bases_of(type(value)))


def loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)

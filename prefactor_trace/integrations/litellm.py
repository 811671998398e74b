"""LiteLLM, whichever provider it speaks to: completions, texts, embeddings and responses; its Router makes such calls.

Its own callbacks come in other threads, after the end, and not at all for a stream that is left, so they cannot hold
the call of an SDK that LiteLLM makes inside: they would be two calls beside each other, and count their tokens twice.
So it is tapped inside the decorator that all its functions have, which holds for those who have imported them already.
What LiteLLM answers from its own cache is no call. The OpenAI SDK inside, if it is instrumented, keeps the tokens.
A stream that is dropped ends its call late: LiteLLM itself keeps hold of the last one until there is another.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from prefactor_trace._schema import SpanType
from prefactor_trace.integrations import openai
from prefactor_trace.integrations._tap import Asked, Reply, Tap
from prefactor_trace.integrations._values import as_dict, counts, present, some_dict, text, without_media

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefactor_trace.integrations._stainless import Endpoint
    from prefactor_trace.integrations._tap import Reader

REQUIRES = "litellm>=1.83,<2"


def _as(path: str, kind: str, title: str, description: str) -> Endpoint:
    """Return what is asked at OpenAI's *path*, as a call of LiteLLM: it gives all answers OpenAI's form."""
    theirs = openai.ENDPOINTS[path]
    span_type = SpanType(
        f"litellm:{kind}",
        title=title,
        description=description,
        template=theirs.type.template,
        params_schema=theirs.type.params_schema,
        result_schema=theirs.type.result_schema,
        data_risk=theirs.type.data_risk,
    )
    return theirs._replace(type=span_type)


CHAT = _as("/chat/completions", "chat", "LiteLLM chat", "A chat completion of any provider.")
COMPLETIONS = _as(
    "/completions", "completions", "LiteLLM completion", "A completion of a text, by any provider."
)
RESPONSES = _as(
    "/responses", "responses", "LiteLLM response", "A response in the form of OpenAI's Responses API."
)
EMBEDDINGS = _as(
    "/embeddings",
    "embeddings",
    "LiteLLM embeddings",
    "Texts become vectors; recorded is how many, and of how many dimensions.",
)
TYPES = tuple(each.type for each in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS))

# What is recorded of the rest of the arguments. All others may hold keys: every provider has its own.
_PARAMETERS = (
    "temperature",
    "top_p",
    "n",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "best_of",
    "echo",
    "suffix",
    "seed",
    "response_format",
    "text",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "modalities",
    "reasoning",
    "reasoning_effort",
    "thinking",
    "verbosity",
    "prediction",
    "service_tier",
    "truncation",
    "previous_response_id",
    "dimensions",
    "encoding_format",
    "fallbacks",
)
# One function of LiteLLM calls another on its way, and says so by one of these.
_WITHIN = ("acompletion", "aembedding", "aresponses", "text_completion")


class _Answer:
    """Reads what OpenAI would have answered, and says who did."""

    def __init__(self, reader: Reader, model: str, given: Mapping[str, Any]) -> None:
        self.has_token = False
        self._reader = reader
        self._model = model
        self._given = given
        self._beside: Any = None

    def whole(self, value: Any) -> None:
        self._reader.whole(value)

    def add(self, event: Any) -> None:
        # The tokens of a stream are not in its chunks but beside them, none if the provider has not sent them. When it
        # ends, LiteLLM completes those that were sent; in the place of none it puts an estimate.
        hidden = some_dict(getattr(event, "_hidden_params", None))
        if _tokens(hidden):
            self._beside = hidden
        self._reader.add(event)
        self.has_token = self._reader.has_token

    def reply(self) -> Reply:
        reply = self._reader.reply()
        provider, _, named = self._model.rpartition("/")
        details = getattr(self._given.get("litellm_logging_obj"), "model_call_details", None)
        provider = text(some_dict(details).get("custom_llm_provider")) or provider.partition("/")[0]
        model = text(reply.metadata.get("model")) or named
        return reply._replace(
            usage=reply.usage or _tokens(self._beside),
            metadata={**reply.metadata, **present(provider=provider, model=model)},
            priced_as=(provider, model) if provider else None,
        )


def _tokens(hidden: Any) -> dict[str, int] | None:
    usage = openai.token_usage(as_dict(hidden.get("usage"))) if hidden else None
    return usage if usage and any(usage.values()) else None


def _taps(functions: str, names: tuple[str, str], endpoint: Endpoint) -> tuple[Tap, ...]:
    """Return the taps of a function and its asynchronous twin. *names*: of what stands first among its arguments."""

    def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if any(given.get(flag) for flag in _WITHIN):
            return None
        model = text(given.get("model")) or text(given.get("engine"))
        return Asked(
            endpoint.type,
            f"{endpoint.verb} {model}"[:200],
            functools.partial(_inputs, model, given, endpoint.fields),
            _Answer(endpoint.reader(), model, given),
        )

    module, name = functions.split(":")
    return tuple(Tap(f"{module}:{a}{name}/original_function", asks=asked, failed=_failed) for a in ("", "a"))


def _inputs(model: str, given: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    shown = {name: given[name] for name in fields if given.get(name) is not None}
    rest = {name: given[name] for name in _PARAMETERS if given.get(name) is not None}
    return {**without_media(shown), "model": model, **present(parameters=without_media(rest))}


def _failed(error: BaseException) -> dict[str, Any]:
    """Return what an exception of LiteLLM tells."""
    return counts(http_status=vars(error).get("status_code"))


def _steps(module: str, *names: str) -> tuple[Tap, ...]:
    """Return the taps of stream objects. Not every version has them all."""
    return tuple(
        tap
        for where in (f"{module}:{name}" for name in names)
        for tap in (
            Tap(f"{where}.__next__", stream="gives", is_optional=True),
            Tap(f"{where}.__anext__", stream="gives", is_optional=True),
            Tap(f"{where}.aclose", stream="closes", is_optional=True),
        )
    )


TAPS = (
    *_taps("litellm.main:completion", ("model", "messages"), CHAT),
    *_taps("litellm.main:text_completion", ("prompt", "model"), COMPLETIONS),
    *_taps("litellm.main:embedding", ("model", "input"), EMBEDDINGS),
    *_taps("litellm.responses.main:responses", ("input", "model"), RESPONSES),
    *_steps("litellm.litellm_core_utils.streaming_handler", "CustomStreamWrapper"),
    *_steps("litellm.utils", "TextCompletionStreamWrapper"),
    *_steps(
        "litellm.responses.streaming_iterator",
        "ResponsesAPIStreamingIterator",
        "SyncResponsesAPIStreamingIterator",
        "MockResponsesAPIStreamingIterator",
    ),
    *_steps(
        "litellm.responses.litellm_completion_transformation.streaming_iterator",
        "LiteLLMCompletionStreamingIterator",
    ),
)

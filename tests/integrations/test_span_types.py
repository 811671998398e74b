"""What integrations declare: the same words for the same things, whichever SDK it is."""

from __future__ import annotations

import importlib

import orjson
import pytest

from prefactor_trace import integrations

TYPES = {
    each.name: each
    for module in map(importlib.import_module, integrations._ours().values())
    for each in module.TYPES
}
MODELS = [
    *("openai:chat", "openai:completions", "openai:responses"),
    *("litellm:chat", "litellm:completions", "litellm:responses"),
    *("anthropic:messages", "google_genai:generate_content", "langchain:chat", "langchain:llm"),
]
ALSO = {"openai": ["refusal", "choices"], "litellm": ["refusal", "choices"], "google_genai": ["choices"]}


@pytest.mark.parametrize("name", MODELS)
def test_what_models_answer(name):
    """Who reads records of several SDKs finds text, tool calls and finish reason under the same names."""
    declared = TYPES[name].to_wire()
    text, objects = {"type": "string"}, {"type": "array", "items": {"type": "object"}}
    answer = {
        "text": text,
        "refusal": text,
        "reasoning": text,
        "tool_calls": objects,
        "finish_reason": text,
        "choices": objects,
    }
    for field in {"refusal", "choices"}.difference(ALSO.get(name.partition(":")[0], ())):
        del answer[field]
    assert orjson.dumps(declared["result_schema"]) == orjson.dumps({"type": "object", "properties": answer})
    assert declared["template"] == TYPES["openai:chat"].template
    assert declared["data_risk"]["action_profile"]["external_communication"] == "allowed"

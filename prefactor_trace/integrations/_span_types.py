"""How the calls of models and the steps of frameworks are declared: what all of them have in common.

In: what an SDK's own words add. Out: span types, whose schemas and readable lines agree wherever the SDKs do.
"""

from __future__ import annotations

from typing import Any

from prefactor_trace._schema import SpanType

ANY = {"type": "object"}
TEXT = {"type": "string"}
LIST = {"type": "array"}
OUTSIDE = {"action_profile": {"external_communication": "allowed"}}
"""The risk of a call that leaves the program."""

FAILED = "{{ message | truncate: 160 }}"
"""How each line ends: with the error's message, if there was one."""

_OBJECTS = {"type": "array", "items": ANY}
_COUNT = {"type": "integer"}
# What a model answers. The second column: whether all SDKs tell it.
_ANSWER = {
    "text": (TEXT, True),
    "refusal": (TEXT, False),
    "reasoning": (TEXT, True),
    "tool_calls": (_OBJECTS, True),
    "finish_reason": (TEXT, True),
    "choices": (_OBJECTS, False),  # all of them, if there are several
}


def model_type(name: str, title: str, description: str, inputs: dict[str, Any], *also: str) -> SpanType:
    """Return the type of a call of a model that answers; *also*: what of an answer only some SDKs tell."""
    answer = {field: schema for field, (schema, is_common) in _ANSWER.items() if is_common or field in also}
    return SpanType(
        name,
        title=title,
        description=description,
        template=(
            "{{ inputs.model }}: {{ text | truncate: 160 }}"
            "{% for call in tool_calls %} {{ call.name }}(…){% endfor %}" + FAILED
        ),
        params_schema={"type": "object", "properties": inputs},
        result_schema={"type": "object", "properties": answer},
        data_risk=OUTSIDE,
    )


def embeddings_type(name: str, title: str, description: str, inputs: dict[str, Any]) -> SpanType:
    """Return the type of a call of a model that makes vectors, of which only number and length are recorded."""
    return SpanType(
        name,
        title=title,
        description=description,
        template="{{ inputs.model }}: {{ count }} x {{ dimensions }}" + FAILED,
        params_schema={"type": "object", "properties": inputs},
        result_schema={"type": "object", "properties": {"count": _COUNT, "dimensions": _COUNT}},
        data_risk=OUTSIDE,
    )


def step_type(name: str, title: str, description: str, template: str, properties: dict[str, Any]) -> SpanType:
    """Return the type of a step that is a framework's own."""
    return SpanType(
        name,
        title=title,
        description=description,
        template=template + FAILED,
        params_schema={"type": "object", "properties": properties},
        result_schema={"type": "object"},
        data_risk={"action_profile": {}},
    )


def tool_type(name: str) -> SpanType:
    """Return the type of a tool that a framework calls."""
    template = "{{ inputs.tool }} {{ output | truncate: 160 }}"
    return step_type(name, "Tool", "A tool of an agent.", template, {"tool": TEXT, "arguments": {}})

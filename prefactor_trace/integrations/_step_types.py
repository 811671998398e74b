"""How a framework's steps are declared, the same for all of them."""

from __future__ import annotations

from typing import Any

from prefactor_trace._schema import SpanType

TEXT = {"type": "string"}


def step_type(name: str, title: str, description: str, template: str, properties: dict[str, Any]) -> SpanType:
    """Return the type of a step that is a framework's own; its line ends with the error's message, if it failed."""
    return SpanType(
        name,
        title=title,
        description=description,
        template=template + "{{ message | truncate: 160 }}",
        params_schema={"type": "object", "properties": properties},
        result_schema={"type": "object"},
        data_risk={"action_profile": {}},
    )

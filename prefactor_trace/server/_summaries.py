"""The readable line of a span: its type's Liquid template, rendered over payload and result (API contract section 7.2)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import orjson
from liquid import BoundTemplate, Environment

if TYPE_CHECKING:
    from prefactor_trace.server._fields import Json

_MOST_CHARACTERS = 1_000


class _Bounded(Environment):
    """Templates are an agent's: whatever they do, they do little of it."""

    loop_iteration_limit = 10_000
    output_stream_limit = 100_000
    local_namespace_limit = 100_000
    context_depth_limit = 20


_environment = _Bounded()


@functools.lru_cache(maxsize=500)
def _parsed(template: str) -> BoundTemplate | None:
    try:
        return _environment.from_string(template)
    except Exception:  # whatever is wrong with it, the span is shown without
        return None


def summary(template: str | None, payload: str | bytes, result: str | bytes | None) -> str | None:
    """Return the line for a span, None if there is nothing to say. Fields of the result go before the payload's.

    What the platform was told to be sensitive is not in it.
    """
    parsed = None if template is None else _parsed(template)
    if parsed is None:
        return None
    try:
        fields = {**_data(payload), **_data(result or b"{}")}
        text = parsed.render(fields)
    except Exception:  # a filter of a value that it is not for, say
        return None
    return " ".join(text.split())[:_MOST_CHARACTERS] or None


def _data(encoded: str | bytes) -> Json:
    found = orjson.loads(encoded)
    return _without_sensitive(found) if isinstance(found, dict) else {}


def _without_sensitive(value: Any) -> Any:
    if isinstance(value, dict):
        if "$sensitive" in value:
            return "[sensitive]"
        return {name: _without_sensitive(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_sensitive(each) for each in value]
    return value

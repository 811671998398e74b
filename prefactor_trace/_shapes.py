"""JSON Schemas of what capture writes, as far as no library is needed for them. Pure.

The simplest annotations (`str`, `list[int]`, `dict[str, Any] | None`) are described here: most functions have no others,
and a short program should not load pydantic for them. `_value_schema` says the same of them, and describes the rest.
"""

from __future__ import annotations

import types
import typing
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

_MARKER_REF = {"$ref": "#/$defs/$marker"}
ERROR_REF = {"$ref": "#/$defs/$error"}
OWN_DEFINITIONS: dict[str, Json] = {
    "$marker": {
        "description": "Cut, or no JSON: not recorded as it was, so not judged",
        # An object with such a name, an object that holds a marker, a list that does.
        "anyOf": [
            {"not": {"propertyNames": {"not": {"pattern": "^\\$"}}}},
            {"not": {"additionalProperties": {"not": _MARKER_REF}}},
            {"type": "array", "contains": _MARKER_REF},
        ],
    },
    "$error": {
        "description": "In place of the result, if the step has failed",
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("error_type", "message", "stacktrace")},
        "required": ["error_type", "message"],
    },
}
"""What the schemas of all types refer to, each if it does."""
BYTES = {
    "type": "object",
    "properties": {"$bytes": {"type": "integer"}, "sha256": {"type": "string"}},
    "required": ["$bytes"],
}
# What says something about a value to people; it stays beside the alternatives.
_WORDS = ("title", "description", "examples", "deprecated")
# The types of JSON whose values are never marked.
_ALWAYS_WHOLE: tuple[Json, ...] = ({}, {"type": "boolean"}, {"type": "null"}, {"type": "object"})
# What pydantic says of these takes it a millisecond each.
SIMPLE: dict[type, Json] = {
    str: {"type": "string"},
    int: {"type": ["integer", "boolean"]},  # as `True` is an int
    float: {"type": ["number", "boolean"]},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}
_SAFE_INT = 2**53 - 1
_NEVER_CUT = 32  # characters; nobody sets `max_input_length` lower


_UNIONS = (typing.Union, types.UnionType)
# Anything else may be an object of the user's, and answer with code of the user's.
_FORMS = {type(each) for each in (list[int], int | str, typing.List[int], typing.Optional[int])}  # noqa: UP006, UP045
_MOST_NESTED = 8


def plain(annotation: Any, depth: int = _MOST_NESTED) -> Json | None:
    """Return the JSON Schema of an annotation that is simple enough; None: it is not."""
    if type(annotation) is type and annotation in SIMPLE:
        return SIMPLE[annotation]
    if annotation is Any:
        return {}
    if annotation is None:
        return SIMPLE[type(None)]
    if annotation is list:
        return {"type": "array", "items": {}}
    if annotation is dict:
        return {"type": "object"}
    if type(annotation) not in _FORMS:
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    is_list, is_dict, is_union = origin is list, origin is dict, any(origin is each for each in _UNIONS)
    if not depth or not (is_list or is_dict or is_union):
        return None
    inner = [plain(each, depth - 1) for each in arguments]
    if None in inner or len(inner) < 1 + is_dict:
        return None
    if is_list:
        return {"type": "array", "items": inner[0]}
    if is_dict:
        return {"type": "object", "additionalProperties": inner[1]} if inner[1] else {"type": "object"}
    if any(each in inner[:at] for at, each in enumerate(inner)):  # such as `list | list[Any]`
        return None
    # As pydantic has it: null at the end.
    return {"anyOf": sorted(inner, key=lambda each: each is SIMPLE[type(None)])}


def with_markers(schema: Json) -> Json:
    """Return *schema* with the alternative that capture has put a marker somewhere in the value."""
    if _is_always_whole(schema):
        return schema
    words = {key: schema[key] for key in _WORDS if key in schema}
    rest = {key: value for key, value in schema.items() if key not in words}
    alternatives = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {**words, "anyOf": [*alternatives, _MARKER_REF]}


def _is_always_whole(schema: Json) -> bool:
    bare = {key: value for key, value in schema.items() if key not in _WORDS}
    if bare in _ALWAYS_WHOLE:
        return True
    if "enum" in bare or "const" in bare:
        return all(len(str(each)) <= _NEVER_CUT for each in bare.get("enum", [bare.get("const")]))
    if bare.get("type") == SIMPLE[int]["type"]:
        bounds = [bare.get(upper, bare.get(f"exclusive{upper.title()}")) for upper in ("minimum", "maximum")]
        return all(isinstance(bound, int) and abs(bound) <= _SAFE_INT for bound in bounds)
    return bare.keys() == {"anyOf"} and all(map(_is_always_whole, bare["anyOf"]))


def as_result(schema: Json, definitions: Json) -> Json:
    """Return the schema of a result that *schema* describes: an object stands for itself, the rest is an output."""
    alternatives = _alternatives(schema, definitions, 8)
    if alternatives is None:
        return {"type": "object"}
    words = {key: schema[key] for key in _WORDS if key in schema}
    objects = [each for each, is_object in alternatives if is_object]
    others = [each for each, is_object in alternatives if not is_object]
    is_wide = bool(objects) and any(_may_be_object(each, definitions) for each in others)
    if is_wide or {"type": "object"} in objects:
        return {**words, "type": "object"}
    if not objects:
        return {"type": "object", "properties": {"output": with_markers(schema)}}
    if others:
        output = with_markers(others[0] if len(others) == 1 else {"anyOf": others})
        objects.append({"type": "object", "properties": {"output": output}, "required": ["output"]})
    return {**words, "anyOf": [*objects, ERROR_REF, _MARKER_REF]}


def _may_be_object(schema: Json, definitions: Json) -> bool:
    said = _target(schema, definitions).get("type")
    return isinstance(said, list) and "object" in said


def _alternatives(schema: Json, definitions: Json, depth: int) -> list[tuple[Json, bool]] | None:
    """Split *schema* into what is an object and what is none. None: it does not say."""
    if depth and schema.keys() <= {"anyOf", *_WORDS} and "anyOf" in schema:
        parts = [_alternatives(each, definitions, depth - 1) for each in schema["anyOf"]]
        return None if None in parts else [each for part in parts for each in part or ()]
    target = _target(schema, definitions)
    if "type" not in target and target is not schema and "anyOf" in target and depth:
        return _alternatives(target, definitions, depth - 1)
    said = target.get("type")
    if said is None and ("enum" in target or "const" in target):
        values = target.get("enum", [target.get("const")])
        return None if any(isinstance(each, dict) for each in values) else [(schema, False)]
    if said is None:
        return None
    return [(schema, said == "object" and target != BYTES)]


def _target(schema: Json, definitions: Json) -> Json:
    steps = 8
    while "$ref" in schema and steps:
        schema, steps = definitions.get(schema["$ref"].removeprefix("#/$defs/"), {}), steps - 1
    return schema


def as_stream(item: Json, returned: Json | None, definitions: Json) -> Json:
    """Return the schema of what is kept of a stream of *item*: strings joined, others in a list.

    *returned*: of what a generator returns at its end, if that may be something.
    """
    if not item:
        return {}
    types = ["array", "null"] if _is_never_text(item, definitions) else ["string", "array", "null"]
    stream = {"type": types, "items": item}
    if returned is None:
        return stream
    return {"anyOf": [stream, returned]} if returned else {}


def _is_never_text(item: Json, definitions: Json) -> bool:
    item = _target(item, definitions)
    if "anyOf" in item:
        return all(_is_never_text(each, definitions) for each in item["anyOf"])
    return "string" not in item.get("type", "string")

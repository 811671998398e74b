"""What an agent declares about its spans: from the forms a client may write (contract section 7) to the one it reads.

Pure. Stored is what was declared, normalised to one entry per name; what the API adds on reading (defaults of
`data_risk`, the verdict on each JSON schema) is derived here every time, so it may grow without a migration.
"""

from __future__ import annotations

from typing import Any

from prefactor_trace.http.models.agent_instance import ActionProfile, DataCategories
from prefactor_trace.server._fields import Json, invalid, mapping, optional_mapping, optional_text, text

# The words of the platform (section 7.3), as the client's models have them.
_ACTIONS = tuple(ActionProfile.model_fields)
_CATEGORIES = tuple(DataCategories.model_fields)
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_HOLD_A_SCHEMA = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_HOLD_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_HOLD_NAMED_SCHEMAS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def declared_span_types(fields: Json) -> Json:
    """Read the span types of an `agent_schema_version`, in any of their three forms: name to entry.

    Raises a Refusal if none of the forms is there.
    """
    listed = fields.get("span_type_schemas")
    params = optional_mapping(fields, "span_schemas")
    results = optional_mapping(fields, "span_result_schemas")
    if listed is None and params is None and results is None:
        raise invalid(span_type_schemas="is required")
    types = {
        name: _span_type({"name": name, "params_schema": schema}) for name, schema in (params or {}).items()
    }
    for name, schema in (results or {}).items():
        types.setdefault(name, _span_type({"name": name, "params_schema": {}}))["result_schema"] = schema
    return types | _by_name(listed, "span_type_schemas", _span_type)


def declared_qualities(fields: Json) -> Json:
    """Read the `quality_schemas` of an `agent_schema_version`, which may be missing: name to entry."""
    return _by_name(fields.get("quality_schemas"), "quality_schemas", _quality)


def _by_name(listed: Any, field: str, read: Any) -> Json:
    if listed is None:
        return {}
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise invalid(**{field: "is not a list of objects"})
    return {entry["name"]: entry for entry in map(read, listed)}


def _span_type(fields: Json) -> Json:
    name = text(fields, "name")
    return {
        "name": name,
        **_description(fields, name),
        "params_schema": mapping(fields, "params_schema"),
        "result_schema": optional_mapping(fields, "result_schema") or {},
    }


def _quality(fields: Json) -> Json:
    name = text(fields, "name")
    return {"name": name, **_description(fields, name), "schema": mapping(fields, "schema")}


def _description(fields: Json, name: str) -> Json:
    return {
        "title": optional_text(fields, "title") or name,
        "description": optional_text(fields, "description"),
        "template": optional_text(fields, "template"),
        "data_risk": optional_mapping(fields, "data_risk"),
    }


def read_span_types(stored: Json) -> Json:
    """Return stored span types as the API shows them."""
    return {
        name: {
            **entry,
            "data_risk": _with_defaults(entry["data_risk"]),
            "params_schema_validation": _verdict(entry["params_schema"]),
            "result_schema_validation": _verdict(entry["result_schema"]),
        }
        for name, entry in stored.items()
    }


def read_qualities(stored: Json) -> Json:
    """Return stored quality schemas as the API shows them."""
    return {
        name: {
            **entry,
            "data_risk": _with_defaults(entry["data_risk"]),
            "schema_validation": _verdict(entry["schema"]),
        }
        for name, entry in stored.items()
    }


def _with_defaults(data_risk: Json | None) -> Json:
    said = data_risk or {}
    return {
        "action_profile": dict.fromkeys(_ACTIONS, "unknown") | _part(said, "action_profile"),
        "params_data_categories": dict.fromkeys(_CATEGORIES, "unknown")
        | _part(said, "params_data_categories"),
        "result_data_categories": dict.fromkeys(_CATEGORIES, "unknown")
        | _part(said, "result_data_categories"),
    }


def _part(said: Json, name: str) -> Json:
    part = said.get(name)
    return part if isinstance(part, dict) else {}


def _verdict(schema: Any) -> Json:
    wrong = mistake_in(schema)
    return {"status": "error" if wrong else "success", "message": wrong}


def mistake_in(schema: Any, path: str = "$") -> str | None:
    """Say what makes *schema* no JSON schema, or None. Looks at the keywords people write by hand, not at all."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return f"{path} is neither an object nor a boolean"
    return _mistake_in_keywords(schema, path) or _mistake_inside(schema, path)


def _mistake_in_keywords(schema: Json, path: str) -> str | None:
    kind = schema.get("type", "object")
    for name in kind if isinstance(kind, list) else [kind]:
        if name not in _TYPES:
            return f"{path}.type: {name!r} is not a type of JSON schema"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return f"{path}.required is not a list of names"
    if not isinstance(schema.get("enum", []), list):
        return f"{path}.enum is not a list"
    return None


def _mistake_inside(schema: Json, path: str) -> str | None:
    inside: list[tuple[str, Any]] = [(word, schema[word]) for word in _HOLD_A_SCHEMA if word in schema]
    for word in _HOLD_SCHEMAS:
        several = schema.get(word, [])
        if not isinstance(several, list):
            return f"{path}.{word} is not a list"
        inside += [(f"{word}[{place}]", schema_here) for place, schema_here in enumerate(several)]
    for word in _HOLD_NAMED_SCHEMAS:
        named = schema.get(word, {})
        if not isinstance(named, dict):
            return f"{path}.{word} is not an object"
        inside += [(f"{word}.{name}", schema_here) for name, schema_here in named.items()]
    for where, schema_here in inside:
        if wrong := mistake_in(schema_here, f"{path}.{where}"):
            return wrong
    return None

"""Type annotations become JSON Schema of what capture makes of their values.

In: annotations, and the names to resolve them with. Out: a JSON Schema for each, and the definitions they share. Loads
pydantic, so it is imported on first use, on the sender's thread. Nothing is raised: an annotation that cannot be
described is described as anything, alone.

pydantic describes what it would read from or write to JSON. What travels is something else: the value as it lies in
memory, copied by `_capture`. So names of fields count and not their aliases, a named tuple is an object, bytes are
their size. Default values are left out, as they can be secrets. And an object is open: a subclass has more fields.

Wherever capture could not write a value down as it was, it has put a marker, an object with a name that begins with
`$`. What holds one is not judged: `with_markers` adds that to a schema, by way of one shared definition.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections import abc
from typing import TYPE_CHECKING, Annotated, Any

import typing_extensions
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from prefactor_trace._marks import Omit, rules_of
from prefactor_trace._shapes import BYTES, SIMPLE, Json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TUPLE = ["array", "object"]  # an object: a named tuple is a tuple as well
# Since pydantic 2.10 an adapter can be told where to look for names; before, it looks into the callers' frames.
_IS_REBUILT = hasattr(TypeAdapter, "rebuild")


def describe(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[dict[str, Json], Json]:
    """Return the JSON Schema of each annotation, `{}` if it cannot be told, and the `$defs` they refer to.

    *names*: what forward references inside the annotated types may mean.
    """
    adapters = {}
    dicts: dict[Any, Any] = {}
    simple: dict[str, Json] = {}
    for key, annotation in annotations.items():
        if type(annotation) is type and annotation in SIMPLE:
            simple[key] = SIMPLE[annotation]
        elif (adapter := _adapter(annotation, names, dicts)) is not None:
            adapters[key] = adapter
    described, definitions = _together(adapters) if adapters else ({}, {})
    described.update(simple)
    return {key: described.get(key, {}) for key in annotations}, definitions


def _adapter(annotation: Any, names: Mapping[str, Any], dicts: dict[Any, Any]) -> TypeAdapter[Any] | None:
    # As an item of a list: pydantic wants no configuration beside that of a model, and a list has none.
    config = ConfigDict(arbitrary_types_allowed=True, defer_build=_IS_REBUILT)
    try:
        item = _readable(annotation, names, dicts)
        adapter = TypeAdapter(list[item], config=config)  # type: ignore[valid-type] # known when it runs
        if _IS_REBUILT:
            adapter.rebuild(raise_errors=True, _types_namespace=dict(names))
    except KeyboardInterrupt:
        raise
    except BaseException:  # types of the user's may run code here, and it may do anything
        return None
    return adapter


class _Or:
    """Marks a sequence that an object is as well, being a named tuple or a dict, and perhaps a text."""

    def __init__(self, *types_of_json: str) -> None:
        self._types = ["array", *types_of_json]

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Json:
        found: Json = handler(core_schema)
        return {**found, "type": self._types} if found.get("type") == "array" else found


def _readable(annotation: Any, names: Mapping[str, Any], known: dict[Any, Any]) -> Any:
    """Return *annotation* with what pydantic can read in place of what it cannot.

    It warns, on the user's standard error, of whatever is no type, such as `NoReturn` or the function `any`; a text
    is no sequence to it; and before Python 3.12 it takes `typing_extensions.TypedDict` and not `typing`'s.

    *known*: the dicts made so far; inside itself such a dict is anything.
    """
    if sys.version_info < (3, 12) and typing.is_typeddict(annotation):
        if annotation not in known:
            known[annotation] = Any
            hints = typing.get_type_hints(annotation, localns=dict(names), include_extras=True)
            fields = {}
            for name, hint in hints.items():
                bare = typing.get_args(hint)[0] if typing.get_origin(hint) in _PRESENCE else hint
                presence = _PRESENCE[0 if name in annotation.__required_keys__ else 1]
                fields[name] = presence[_readable(bare, names, known)]
            made = _make_dict(annotation.__name__, fields)
            made.__module__, made.__doc__ = annotation.__module__, annotation.__doc__
            known[annotation] = made
        return known[annotation]
    origin, before = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal or origin is abc.Callable:
        return annotation
    if type(annotation) in _NO_TYPES or (type(origin) in _NO_TYPES and origin not in _READ_FORMS):
        return _READ_AS.get(origin or annotation, Any)
    after = tuple(_readable(each, names, known) for each in before)
    if any(new is not old for new, old in zip(after, before, strict=True)):
        if origin is typing.Annotated:
            return Annotated[(after[0], *annotation.__metadata__)]
        if origin in _UNIONS:
            return typing.Union[after]  # noqa: UP007 - of many
        annotation = (
            origin[after] if isinstance(annotation, types.GenericAlias) else annotation.copy_with(after)
        )
    if (origin or annotation) in _LOOSE:
        return Annotated[annotation, _Or("object", *(["string"] if all(map(_takes_text, after)) else []))]
    return annotation


def _takes_text(item: Any) -> bool:
    """Say whether a text may be one of the items."""
    if typing.get_origin(item) in _UNIONS:
        return any(map(_takes_text, typing.get_args(item)))
    return item is str or item is Any or item is object or isinstance(item, typing.TypeVar)


_UNIONS = (typing.Union, types.UnionType)
_LOOSE = (abc.Sequence, abc.Iterable, typing.Sequence, typing.Iterable)
_READ_FORMS = (typing.Union, typing.Annotated, typing.Literal)
# The kinds of `NoReturn`, `Required[int]` and their like, on every Python, and of functions taken for types.
_NO_TYPES = (
    type(typing.NoReturn),
    type(typing_extensions.LiteralString),
    type(typing_extensions.TypeGuard),
    type(typing.Literal),
    typing.ParamSpec,
    typing_extensions.ParamSpec,
    types.FunctionType,
    types.BuiltinFunctionType,
)
_READ_AS: dict[Any, Any] = {
    typing_extensions.LiteralString: str,
    typing_extensions.TypeGuard: bool,
    typing_extensions.TypeIs: bool,
}


_make_dict: Any = typing_extensions.TypedDict
_PRESENCE = (typing_extensions.Required, typing_extensions.NotRequired)


def _together(adapters: dict[str, TypeAdapter[Any]]) -> tuple[dict[str, Json], Json]:
    """Describe all at once, so that what they share has one name; without those that spoil it."""
    try:
        return _generated(adapters)
    except KeyboardInterrupt:
        raise
    except BaseException:  # as above
        sound = {key: adapter for key, adapter in adapters.items() if _is_sound(adapter)}
    return _generated(sound) if len(sound) < len(adapters) else ({}, {})


def _is_sound(adapter: TypeAdapter[Any]) -> bool:
    try:
        _generated({"": adapter})
    except KeyboardInterrupt:
        raise
    except BaseException:  # as above
        return False
    return True


def _generated(adapters: dict[str, TypeAdapter[Any]]) -> tuple[dict[str, Json], Json]:
    inputs = [(key, "validation", adapter) for key, adapter in adapters.items()]
    schemas, common = TypeAdapter.json_schemas(
        inputs,  # type: ignore[arg-type] # a word of theirs
        by_alias=False,
        schema_generator=_Generator,
    )
    described = {str(key): schema.get("items", {}) for (key, _), schema in schemas.items()}
    return described, common.get("$defs", {})


class _Generator(GenerateJsonSchema):
    """Describes values as capture writes them."""

    @property
    def mode(self) -> Any:
        """Neither what goes in nor what comes out of JSON, but nearer to this one; whatever a model says."""
        return "validation"

    def generate_inner(self, schema: Any) -> Json:
        found = super().generate_inner(schema)
        if found.get("writeOnly") and found.get("format") == "password":
            return {"type": "string", "format": "password", "writeOnly": True}  # what is recorded is stars
        return found

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing: it is not the user who wants this schema."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Json:  # noqa: ARG002
        return {}

    # -- what capture writes in another way ----------------------------------------------------------------

    def bytes_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return dict(BYTES)

    def decimal_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {"type": "string", "description": "A decimal number"}

    def complex_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {"type": ["string", "number", "boolean"], "description": "A complex number"}

    def int_schema(self, schema: Any) -> Json:
        return {**super().int_schema(schema), **SIMPLE[int]}

    def float_schema(self, schema: Any) -> Json:
        return {**super().float_schema(schema), **SIMPLE[float]}

    def tuple_schema(self, schema: Any) -> Json:
        return {**super().tuple_schema(schema), "type": _TUPLE}

    def date_schema(self, schema: Any) -> Json:  # noqa: ARG002 - a datetime is a date as well
        return {"type": "string", "description": "A date, in ISO 8601"}

    # The formats of JSON Schema are RFC 3339's, which knows no time without a zone; capture keeps a naive one naive.
    def datetime_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {"type": "string", "description": "A moment, in ISO 8601"}

    def time_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {"type": "string", "description": "A time of day, in ISO 8601"}

    def timedelta_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {"type": "string", "description": "A duration, in ISO 8601"}

    def enum_schema(self, schema: Any) -> Json:
        kind = schema["cls"]
        values = [member._value_ for member in schema["members"]]  # `value` may be the user's code
        if issubclass(kind, enum.Flag):  # members can be joined
            return {"type": "integer"}
        if not _are_json(values):
            return {}
        doc = inspect.cleandoc(kind.__doc__ or "")
        words = {"title": kind.__name__, "description": doc}
        if not doc or doc == "An enumeration.":  # what Python before 3.11 says of all of them
            del words["description"]
        return {**words, "enum": values}

    def literal_schema(self, schema: Any) -> Json:
        values = [each._value_ if isinstance(each, enum.Enum) else each for each in schema["expected"]]
        if not _are_json(values):
            return {}
        return {"const": values[0]} if len(values) == 1 else {"enum": values}

    def named_tuple_schema(self, schema: Any) -> Json:
        return self._named_tuple(schema["fields"])

    def call_schema(self, schema: Any) -> Json:  # the same before pydantic 2.14
        return self._named_tuple(schema["arguments_schema"]["arguments_schema"])

    def _named_tuple(self, fields: Any) -> Json:
        properties = {field["name"]: self.generate_inner(field["schema"]) for field in fields}
        return {"type": "object", "properties": properties, "required": list(properties)}

    def callable_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {}

    def is_instance_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {}

    def is_subclass_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {}

    def set_schema(self, schema: Any) -> Json:
        return _without(super().set_schema(schema), "uniqueItems")  # different values can look the same

    def frozenset_schema(self, schema: Any) -> Json:
        return _without(super().frozenset_schema(schema), "uniqueItems")

    def dict_schema(self, schema: Any) -> Json:
        values = self.generate_inner(schema["values_schema"]) if "values_schema" in schema else {}
        found: Json = {"type": "object", "additionalProperties": values} if values else {"type": "object"}
        sizes = (("min_length", "minProperties"), ("max_length", "maxProperties"))
        return {**found, **{ours: schema[theirs] for theirs, ours in sizes if theirs in schema}}

    # -- open objects, by the names of their fields --------------------------------------------------------

    def model_schema(self, schema: Any) -> Json:
        return _as_recorded(super().model_schema(schema), schema)

    def typed_dict_schema(self, schema: Any) -> Json:
        return _as_recorded(super().typed_dict_schema(schema), schema)

    def dataclass_schema(self, schema: Any) -> Json:
        return _as_recorded(super().dataclass_schema(schema), schema)

    def field_is_present(self, field: Any) -> bool:
        return not (
            field.get("serialization_exclude")
            or field.get("serialization_exclude_if")
            or field.get("init_only")
        )

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False  # it only says the name again

    def default_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"])

    # -- values after validation, before serialization -----------------------------------------------------

    def function_before_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"])

    def function_wrap_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"])

    def function_plain_schema(self, schema: Any) -> Json:  # noqa: ARG002
        return {}

    def json_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"]) if "schema" in schema else {}

    def chain_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["steps"][-1])

    def tagged_union_schema(self, schema: Any) -> Json:
        choices = [self.generate_inner(each) for each in schema["choices"].values() if isinstance(each, dict)]
        return {"anyOf": [each for at, each in enumerate(choices) if each not in choices[:at]]}


def _as_recorded(found: Json, schema: Any) -> Json:
    """Return *found*, of an object, as open, and without the fields that are marked `Omit`."""
    rules = rules_of(schema["cls"]) if "cls" in schema else {}
    omitted = [name for name, rule in rules.items() if rule is Omit]
    found = _without(found, "additionalProperties")
    if omitted and "properties" in found:
        found["properties"] = {
            name: each for name, each in found["properties"].items() if name not in omitted
        }
        required = [name for name in found.pop("required", ()) if name not in omitted]
        found.update({"required": required} if required else {})
    return found


def _without(schema: Json, key: str) -> Json:
    return {each: value for each, value in schema.items() if each != key}


def _are_json(values: Sequence[Any]) -> bool:
    return all(value is None or type(value) in (str, int, float, bool) for value in values)

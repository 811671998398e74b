"""Span types, and the schema that an instance declares when it registers.

In: what the code says about its steps (decorating a function notes its type here, on import). Out: the
`agent_schema_version` object of the register call, built by the sender and not on the caller's thread.
A schema is a value: the same types give the same external identifier in every process, in whatever order modules are
imported, so two runs of the same code share one version on the platform. So names that only a block has brought up are
no part of it: which of them a run meets, and when, is chance, and each set of them would be a version. The platform
takes their spans all the same (API contract sections 7.1 and 13, no. 14).
"""

from __future__ import annotations

import atexit
import hashlib
import re
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import orjson

from prefactor_trace import _guard, _redact
from prefactor_trace._peek import clean
from prefactor_trace._types import Signature, note
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prefactor_trace.http.models.agent_instance import DataRisk

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Beyond that, what several functions of one type say is too much for anybody to read.
_FUNCTIONS_KEPT = 8
# A type that says more is declared without schemas: with hundreds of such a registration would be refused for its size.
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class SpanType:
    """A named kind of span: what goes in, what comes out, how to show it.

    Attributes:
        name: The type's name on the platform, such as `agent:plan`; `<package>:<kind>` by convention.
        title: What people read; the platform shows the name if there is none.
        description: One or two sentences about the step.
        template: Liquid text for the one-line summary; fields are addressed as `inputs.…`, results by name.
        params_schema: JSON Schema of the payload. Default: what the signature of the function says that the type
            decorates; else any object.
        result_schema: JSON Schema of the result. Default: as for the payload, by the return annotation.
        data_risk: What the step does and with what data (API contract section 7.3), as an object or as
            `prefactor_trace.http.models.DataRisk`. What is left out is `unknown` to the platform.
        envelope: True sends `{name, inputs, metadata, error}` with the payload under `inputs`, as the official
            adaptors do, and places `params_schema` there too. False sends payload and schema exactly as given,
            for agents whose schema exists on the platform already; metadata has no place there and is not sent.

    Raises:
        ConfigurationError: The name is empty, a text is none, or a schema is not a JSON object.
    """

    name: str
    title: str | None = None
    description: str | None = None
    template: str | None = None
    params_schema: Mapping[str, Any] | None = field(default=None, hash=False)
    result_schema: Mapping[str, Any] | None = field(default=None, hash=False)
    data_risk: Mapping[str, Any] | DataRisk | None = field(default=None, hash=False)
    envelope: bool = True

    def __post_init__(self) -> None:
        """Refuse here, where it is written, what the platform would refuse with the whole run."""
        _require_sound(self, {"params_schema": self.params_schema, "result_schema": self.result_schema})

    def to_wire(self) -> dict[str, Any]:
        """Return the item of `span_type_schemas` (API contract section 7.1)."""
        params = self.params_schema or _ANY_OBJECT
        return {
            "name": self.name,
            "params_schema": _in_envelope(params) if self.envelope else params,
            "result_schema": self.result_schema or _ANY_OBJECT,
            **_words(self),
        }

    def to_sketch(self) -> dict[str, Any]:
        """Return what is known without building anything: all of it."""
        return self.to_wire()

    @property
    def is_built(self) -> bool:
        """Whether `to_wire` has nothing left to build."""
        return True


def _words(said: SpanType | Said | QualityType) -> dict[str, Any]:
    """Return what is said about a type beside its schemas, as far as anything is."""
    words = {
        "title": said.title,
        "description": said.description,
        "template": said.template,
        "data_risk": _whole_risk(said.data_risk),
    }
    return {key: value for key, value in words.items() if value is not None}


class Said(NamedTuple):
    """What one decorated function says about its type.

    *has_payload*: its arguments are not what goes in; *has_gaps*: not all of them are; *has_fold*: its items are not
    what comes out.
    """

    signature: Signature
    title: str | None
    template: str | None
    data_risk: Mapping[str, Any] | DataRisk | None
    has_payload: bool
    has_gaps: bool
    has_fold: bool

    @property
    def description(self) -> str | None:
        """The first line of its docstring."""
        return self.signature.summary and _writable(self.signature.summary)

    @property
    def origin(self) -> tuple[str, str]:
        """Which function it is; the next one of that name takes its place."""
        return self.signature.module, self.signature.qualname


class DerivedType:
    """A span type that decorated functions have brought up; what a `SpanType` of its name says goes before.

    Attributes:
        name: The type's name on the platform.
        envelope: As in `SpanType`.
        given: The `SpanType`, if there is one.
        said: What each function says, ordered by their names.
    """

    __slots__ = ("__weakref__", "_wire", "envelope", "given", "name", "said")

    def __init__(self, name: str, given: SpanType | None, said: tuple[Said, ...]) -> None:
        self.name = name
        self.envelope = given is None or given.envelope
        self.given = given
        self.said = said
        self._wire: dict[str, Any] | None = None
        _derived.add(self)

    @property
    def is_built(self) -> bool:
        """Whether `to_wire` has nothing left to build."""
        return self._wire is not None

    def to_wire(self) -> dict[str, Any]:
        """Return the item of `span_type_schemas`. Builds it the first time, which loads pydantic. Never raises."""
        if self._wire is None:
            self._wire = self._build()
        return self._wire

    def let_go(self) -> None:
        """Forget the functions. What is known of them stays."""
        self._wire = self.to_sketch()
        self.said = ()

    def to_sketch(self) -> dict[str, Any]:
        """Return the same as far as it is known without building: where a schema is missing, any object."""
        return self._wire or self._item({"params_schema": _ANY_OBJECT, "result_schema": _ANY_OBJECT})

    def _build(self) -> dict[str, Any]:
        if not self.envelope or len(self.said) > _FUNCTIONS_KEPT:
            return self.to_sketch()
        try:
            described = [each.signature.describe() for each in self.said]
            params = [
                _ANY_OBJECT if said.has_payload else _without_required(params) if said.has_gaps else params
                for said, (params, _) in zip(self.said, described, strict=True)
            ]
            results = [
                _ANY_OBJECT if said.has_fold else result
                for said, (_, result) in zip(self.said, described, strict=True)
            ]
            item = self._item({"params_schema": _either(params), "result_schema": _either(results)})
            if len(orjson.dumps(item)) <= _MOST_BYTES:
                return item
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # types of the user's may run code, and it may do anything
            _guard.logger.debug("the schema of %r cannot be built: %r", self.name, type(error))
        return self.to_sketch()

    def _item(self, schemas: dict[str, Any]) -> dict[str, Any]:
        given = self.given
        if given is not None:
            own = {name: getattr(given, name) for name in schemas}
            schemas = {name: own[name] or schemas[name] for name in schemas}
        if self.envelope:
            schemas["params_schema"] = _in_envelope(schemas["params_schema"])
        words: dict[str, Any] = {}
        for each in reversed(self.said):
            words.update(_words(each))
        words = {"title": readable(self.name), **words, **(_words(given) if given else {})}
        return {"name": self.name, **schemas, **words}

    def joined(self, other: DerivedType) -> DerivedType:
        """Return what this type is after *other*, of the same name, has been declared; the same if that is no news."""
        said = {each.origin: each for each in self.said}
        given = other.given or self.given
        news = [each for each in other.said if not _is_same(said.get(each.origin), each)]
        if not news and given is self.given:
            return self
        said.update(
            (each.origin, each) for each in news if each.origin in said or len(said) <= _FUNCTIONS_KEPT
        )
        return DerivedType(self.name, given, tuple(said[origin] for origin in sorted(said)))


_derived: weakref.WeakSet[DerivedType] = weakref.WeakSet()
_Type: TypeAlias = "SpanType | DerivedType"


def _without_required(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "required"}


def _is_same(known: Said | None, said: Said) -> bool:
    return known is not None and known[1:] == said[1:] and known.signature.is_like(said.signature)


def _either(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a schema for what one of *schemas* describes; any object if their definitions contradict each other."""
    distinct = [each for at, each in enumerate(schemas) if each not in schemas[:at]]
    if len(distinct) == 1:
        return distinct[0]
    definitions: dict[str, Any] = {}
    for each in distinct:
        for name, definition in each.get("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                return _ANY_OBJECT
    bare = [{key: value for key, value in each.items() if key != "$defs"} for each in distinct]
    if _ANY_OBJECT in bare:
        return _ANY_OBJECT
    return {"anyOf": bare, **({"$defs": definitions} if definitions else {})}


@dataclass(frozen=True)
class QualityType:
    """A named kind of rating that a run can be given with `Instance.record_quality`.

    Attributes:
        name: The kind's name on the platform, such as `verdict`.
        schema: JSON Schema of the payload, which is always an object. Default: any object.
        title: What people read; the platform shows the name if there is none.
        description: One or two sentences about what is rated, and how.
        template: Liquid text for the one-line summary; fields of the payload are addressed by name.
        data_risk: What data the payload holds, as in `SpanType`.

    Raises:
        ConfigurationError: The name is empty, a text is none, or the schema is not a JSON object.
    """

    name: str
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    title: str | None = None
    description: str | None = None
    template: str | None = None
    data_risk: Mapping[str, Any] | DataRisk | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse here, where it is written, what the platform would refuse with the whole run."""
        _require_sound(self, {"the schema": self.schema})

    def to_wire(self) -> dict[str, Any]:
        """Return the item of `quality_schemas` (API contract section 7.4)."""
        return {"name": self.name, "schema": self.schema or _ANY_OBJECT, **_words(self)}


def _require_sound(declared: SpanType | QualityType, schemas: Mapping[str, object]) -> None:
    """Raise ConfigurationError for what the platform would refuse. *schemas*: those of the type, as they are called."""
    kind = type(declared).__name__
    if not isinstance(declared.name, str) or not declared.name:
        raise ConfigurationError(f"{kind}: the name must be a text that is not empty")
    for name in ("title", "description", "template"):
        if not isinstance(getattr(declared, name), str | None):
            raise ConfigurationError(f"{kind} {declared.name!r}: {name} must be a text")
    for name, schema in schemas.items():
        if not isinstance(schema, dict | None):
            raise ConfigurationError(f"{kind} {declared.name!r}: {name} must be a JSON object")
    if not _is_risk(declared.data_risk):
        raise ConfigurationError(f"{kind} {declared.name!r}: data_risk must be an object of objects")
    try:
        orjson.dumps(declared.to_wire())
    except TypeError as error:
        raise ConfigurationError(f"{kind} {declared.name!r} is not JSON: {error}") from None


_RISK_PARTS = ("action_profile", "params_data_categories", "result_data_categories")


def _is_risk(risk: object) -> bool:
    if isinstance(risk, dict):
        return all(isinstance(risk.get(part, {}), dict) for part in _RISK_PARTS)
    if risk is None:
        return True
    # Here, because it loads pydantic: only for those who use it.
    from prefactor_trace.http.models.agent_instance import DataRisk

    return isinstance(risk, DataRisk)


def _whole_risk(risk: Mapping[str, Any] | DataRisk | None) -> dict[str, Any] | None:
    """Return *risk* as an object with all its parts: the platform knows no half one."""
    if risk is None:
        return None
    given = risk if isinstance(risk, dict) else risk.model_dump()  # type: ignore[union-attr]
    return {**{part: {} for part in _RISK_PARTS}, **given}


def _in_envelope(params: Mapping[str, Any]) -> dict[str, Any]:
    """Place *params* where the payload is sent; what it refers to inside itself stays what it was."""
    inputs = dict(_moved(params))
    definitions = {key: inputs.pop(key) for key in _DEFINITIONS if key in inputs}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "inputs": inputs,
            "outputs": _ANY_OBJECT,
            "metadata": _ANY_OBJECT,
            "token_usage": _ANY_OBJECT,
            "error": _ANY_OBJECT,
        },
        **definitions,
    }


_DEFINITIONS = ("$defs", "definitions")
_STAYS = tuple(f"#/{each}/" for each in _DEFINITIONS)
_DATA = ("const", "default", "enum", "examples")


def _moved(schema: Any) -> Any:
    """Return *schema* with its references as they are from the envelope's root, where the definitions go."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _DATA else _moved(value) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#") and not reference.startswith(_STAYS):
        moved["$ref"] = "#/properties/inputs" + reference[1:]
    return moved


@dataclass(frozen=True)
class Schema:
    """The set of span types an instance declares, and the kinds of rating it can be given.

    Attributes:
        types: The span types; a later one replaces an earlier one of the same name.
        external_identifier: The version's name on the platform. Default: a hash of the types' content.
        quality: The kinds of rating; a later one replaces an earlier one of the same name.
    """

    types: tuple[SpanType, ...] = ()
    external_identifier: str | None = None
    quality: tuple[QualityType, ...] = ()

    def __post_init__(self) -> None:
        """Refuse here what would cost every run its registration. Raises ConfigurationError."""
        is_right = isinstance(self.quality, (tuple, list))
        if not is_right or not all(isinstance(each, QualityType) for each in self.quality):
            raise ConfigurationError("Schema: quality takes a tuple of QualityType")
        object.__setattr__(self, "quality", tuple(self.quality))

    @property
    def is_built(self) -> bool:
        """Whether `to_wire` has nothing left to build."""
        return all(each.is_built for each in self.types)

    def to_json(self) -> bytes:
        """Return as JSON what is known by now: `to_wire` if it is built, else with any object where a schema is missing.

        Each is made once, and nothing is built. Raises TypeError for what is not JSON.
        """
        key = "_json" if self.is_built else "_sketch"
        known: bytes | None = self.__dict__.get(key)
        if known is None:
            known = self.__dict__[key] = orjson.dumps(
                self._with([each.to_sketch() for each in self._sorted()])
            )
        return known

    def to_wire(self) -> dict[str, Any]:
        """Return the `agent_schema_version` object of the register call (API contract section 2.2).

        The first time, schemas are derived from type hints: this loads pydantic, and takes its time.
        """
        known: dict[str, Any] | None = self.__dict__.get("_wire")
        if known is None:
            known = self.__dict__["_wire"] = self._with([each.to_wire() for each in self._sorted()])
        return known

    def _sorted(self) -> list[SpanType]:
        # The platform refuses a register without any type, and an agent may have none but ad hoc spans.
        by_name = {each.name: each for each in self.types or (SpanType("span"),)}
        return [by_name[name] for name in sorted(by_name)]

    def _with(self, types: list[dict[str, Any]]) -> dict[str, Any]:
        types = _without_secrets(types)
        quality = {
            each.name: _without_secrets(each.to_wire())
            for each in sorted(self.quality, key=lambda each: each.name)
        }
        return {
            "external_identifier": self.external_identifier
            or _content_hash([*types, {"quality_schemas": quality}] if quality else types),
            "span_type_schemas": types,
            **({"quality_schemas": list(quality.values())} if quality else {}),
        }


class DeclaredSchema:
    """The schema of a run of an earlier process, as that process has written it down."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    is_built = True
    """What is written needs no building."""

    def to_json(self) -> bytes:
        """Return what was written."""
        return self._content

    def to_wire(self) -> dict[str, Any]:
        """Return the `agent_schema_version` object. Raises ValueError if it is none."""
        wire = orjson.loads(self._content)
        if not isinstance(wire, dict):
            raise ValueError("a schema that is not an object")  # noqa: TRY004 - of a file, not of a caller
        return wire


def _without_secrets(said: Any) -> Any:
    """Return *said*, JSON, without secrets in its texts: descriptions, examples, the values of an enum."""
    if type(said) is dict:
        return {name: _without_secrets(each) for name, each in said.items()}
    if type(said) is list:
        return [_without_secrets(each) for each in said]
    # A marker's hash is another one in each process, and would make each a version of its own.
    if type(said) is not str:
        return said
    return _HASH.sub(r"\1]", _redact.DEFAULT.text(said, seconds=_SECONDS_OF_TEXT))


_SECONDS_OF_TEXT = 1.0  # of CPU: to leave a part unsearched would make it another version each time
_HASH = re.compile(r"(\[redacted:\w+):[0-9a-f]{8}\]")


def _content_hash(types: list[dict[str, Any]]) -> str:
    content = orjson.dumps(_in_order(types), option=orjson.OPT_SORT_KEYS)
    return "pt-" + hashlib.sha256(content).hexdigest()[:24]


def _in_order(said: Any) -> Any:
    """Return *said*, a JSON Schema, with lists in which the order says nothing sorted.

    Which `Optional[Literal["a", "b"]]` a program means depends on which it has used first: `typing` takes those that
    differ in their order alone for the same, and gives out the first.
    """
    if type(said) is dict:
        found = {name: _in_order(each) for name, each in said.items()}
        for name in _UNORDERED:
            if type(found.get(name)) is list:
                found[name] = sorted(
                    found[name], key=lambda each: orjson.dumps(each, option=orjson.OPT_SORT_KEYS)
                )
        return found
    return [_in_order(each) for each in said] if type(said) is list else said


_UNORDERED = ("enum", "anyOf", "oneOf", "type", "required")


# A program that makes up type names as it runs must not grow the schema, or the memory, without end.
_DECLARED_KEPT = 1_000
_AD_HOC_KEPT = 200

_declared: dict[str, _Type] = {}
_ad_hoc: dict[str, SpanType] = {}
_schema = Schema()


def _let_go() -> None:
    """Forget what types are made of: it keeps the modules of the program, which could not be cleared at its end.

    Files that it has not closed would never be written to their end.
    """
    for each in list(_derived):
        each.let_go()


atexit.register(_let_go)  # before all others, so it comes after them


def derived(
    function: Any,
    type_: SpanType | str | None,
    *,
    title: str | None = None,
    template: str | None = None,
    data_risk: Mapping[str, Any] | DataRisk | None = None,
    has_payload: bool = False,
    has_gaps: bool = False,
    has_fold: bool = False,
) -> DerivedType:
    """Make a type of a decorated function, which is not kept. Never raises: what is not writable is escaped.

    *type_*: what was given for its type; default: the function's qualified name. *has_payload*,
    *has_gaps* and *has_fold*: as in `Said`.
    """
    signature = note(function)
    given = type_ if isinstance(type_, SpanType) else None
    name = given.name if given else _writable(type_ or signature.qualname)  # type: ignore[arg-type] # or a text
    said = Said(signature, title and _writable(title), template, data_risk, has_payload, has_gaps, has_fold)
    return DerivedType(name, given, (said,))


def of_block(name: str, template: str | None, data_risk: Mapping[str, Any] | DataRisk | None) -> SpanType:
    """Make a type of what is said about it where a block is opened. Never raises: what is not writable is escaped."""
    return SpanType(_writable(name), template=template, data_risk=data_risk)


def readable(name: str) -> str:
    """Return a type's name for people: "Search the docs" for `search_the_docs` and for `tool:search-the-docs`."""
    own = name.rpartition("<locals>.")[2].rpartition(":")[2]
    words = " ".join(own.translate(_AS_SPACES).split())
    return words[:1].upper() + words[1:] if words else name


_AS_SPACES = str.maketrans(dict.fromkeys("_-./<>", " "))


def is_about(template: object, data_risk: object) -> bool:
    """Say whether these can be declared as a type's template and data risk."""
    if not isinstance(template, str | None) or not _is_risk(data_risk):
        return False
    try:
        orjson.dumps([template, _whole_risk(data_risk)])  # type: ignore[arg-type] # it is one, as asked above
    except TypeError:
        return False
    return True


def _writable(text: str) -> str:
    return clean(str.__str__(text))  # of a subclass as well, without its code


def declare(span_type: _Type) -> _Type:
    """Note a type of this program; instances that start from now on declare it.

    Functions of one type each add what they say, and a `SpanType` goes before them; of two, the last one wins.
    """
    known = _declared.get(span_type.name)
    # Asked each time a block of such a type is entered.
    if known is span_type or (type(known) is DerivedType and known.given is span_type):
        return span_type
    if known is None and len(_declared) >= _DECLARED_KEPT:
        return span_type
    if type(known) is DerivedType or (known is not None and type(span_type) is DerivedType):
        span_type = _as_derived(known).joined(_as_derived(span_type))
    _declared[span_type.name] = span_type
    return span_type


def _as_derived(span_type: _Type) -> DerivedType:
    return span_type if isinstance(span_type, DerivedType) else DerivedType(span_type.name, span_type, ())


def by_name(name: str) -> _Type:
    """Return the type called *name*, for a block; if nobody has declared it, nobody does."""
    known = _declared.get(name) or _ad_hoc.get(name)
    if known is None:
        known = SpanType(_without_secrets(_writable(name)))
        if len(_ad_hoc) < _AD_HOC_KEPT:
            _ad_hoc[name] = known
    return known


def declared_by(is_wanted: Callable[[tuple[str, str]], bool]) -> tuple[_Type, ...]:
    """Return the types that functions have brought up of which *is_wanted* says so, by module and qualified name."""
    return tuple(
        each
        for each in _declared.values()
        if isinstance(each, DerivedType) and any(is_wanted(said.origin) for said in each.said)
    )


def declared(
    extra: Iterable[SpanType] = (),
    external_identifier: str | None = None,
    quality: tuple[QualityType, ...] = (),
) -> Schema:
    """Return the schema of all types declared so far, with *extra* over them, and *quality*."""
    global _schema  # noqa: PLW0603 - a cache of one, so that a program of many short runs builds it once
    types: Any = (*_declared.values(), *extra)
    is_same = _schema.types == types and _schema.quality == quality
    if not is_same or _schema.external_identifier != external_identifier:
        _schema = Schema(types, external_identifier, quality)
    return _schema

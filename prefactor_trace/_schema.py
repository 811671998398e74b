"""Span types, and the schema that an instance declares when it registers.

In: what the code says about its steps (decorating a function notes its type here, on import). Out: the
`agent_schema_version` object of the register call, built by the sender and not on the caller's thread.
A schema is a value: the same types give the same external identifier in every process, so two runs of the same
code share one version on the platform.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefactor_trace.http.models.agent_instance import DataRisk

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class SpanType:
    """A named kind of span: what goes in, what comes out, how to show it.

    Attributes:
        name: The type's name on the platform, such as `agent:plan`; `<package>:<kind>` by convention.
        title: What people read; the platform shows the name if there is none.
        description: One or two sentences about the step.
        template: Liquid text for the one-line summary; fields are addressed as `inputs.…`, results by name.
        params_schema: JSON Schema of the payload. Default: any object.
        result_schema: JSON Schema of the result. Default: any object.
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
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("SpanType: the name must be a text that is not empty")
        for name in ("title", "description", "template"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigurationError(f"SpanType {self.name!r}: {name} must be a text")
        for name in ("params_schema", "result_schema"):
            if not isinstance(getattr(self, name), dict | None):
                raise ConfigurationError(f"SpanType {self.name!r}: {name} must be a JSON object")
        if not _is_risk(self.data_risk):
            raise ConfigurationError(f"SpanType {self.name!r}: data_risk must be an object of objects")
        try:
            orjson.dumps(self.to_wire())
        except TypeError as error:
            raise ConfigurationError(f"SpanType {self.name!r} is not JSON: {error}") from None

    def to_wire(self) -> dict[str, Any]:
        """Return the item of `span_type_schemas` (API contract section 7.1)."""
        params = self.params_schema or _ANY_OBJECT
        optional = {
            "title": self.title,
            "description": self.description,
            "template": self.template,
            "data_risk": _whole_risk(self.data_risk),
        }
        return {
            "name": self.name,
            "params_schema": _in_envelope(params) if self.envelope else params,
            "result_schema": self.result_schema or _ANY_OBJECT,
            **{key: value for key, value in optional.items() if value is not None},
        }


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
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("QualityType: the name must be a text that is not empty")
        for name in ("title", "description", "template"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigurationError(f"QualityType {self.name!r}: {name} must be a text")
        if not isinstance(self.schema, dict | None):
            raise ConfigurationError(f"QualityType {self.name!r}: the schema must be a JSON object")
        if not _is_risk(self.data_risk):
            raise ConfigurationError(f"QualityType {self.name!r}: data_risk must be an object of objects")
        try:
            orjson.dumps(self.to_wire())
        except TypeError as error:
            raise ConfigurationError(f"QualityType {self.name!r} is not JSON: {error}") from None

    def to_wire(self) -> dict[str, Any]:
        """Return the item of `quality_schemas` (API contract section 7.4)."""
        optional = {
            "title": self.title,
            "description": self.description,
            "template": self.template,
            "data_risk": _whole_risk(self.data_risk),
        }
        return {
            "name": self.name,
            "schema": self.schema or _ANY_OBJECT,
            **{key: value for key, value in optional.items() if value is not None},
        }


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
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "inputs": params,
            "outputs": _ANY_OBJECT,
            "metadata": _ANY_OBJECT,
            "error": _ANY_OBJECT,
        },
    }


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

    def to_json(self) -> bytes:
        """Return `to_wire` as JSON; made once. Raises TypeError for what is not JSON."""
        known: bytes | None = self.__dict__.get("_json")
        if known is None:
            known = self.__dict__["_json"] = orjson.dumps(self.to_wire())
        return known

    def to_wire(self) -> dict[str, Any]:
        """Return the `agent_schema_version` object of the register call (API contract section 2.2)."""
        # The platform refuses a register without any type, and an agent may have none but ad hoc spans.
        by_name = {each.name: each for each in self.types or (SpanType("span"),)}
        types = [by_name[name].to_wire() for name in sorted(by_name)]
        quality = {each.name: each.to_wire() for each in sorted(self.quality, key=lambda each: each.name)}
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

    def to_json(self) -> bytes:
        """Return what was written."""
        return self._content

    def to_wire(self) -> dict[str, Any]:
        """Return the `agent_schema_version` object. Raises ValueError if it is none."""
        wire = orjson.loads(self._content)
        if not isinstance(wire, dict):
            raise ValueError("a schema that is not an object")  # noqa: TRY004 - of a file, not of a caller
        return wire


def _content_hash(types: list[dict[str, Any]]) -> str:
    content = orjson.dumps(types, option=orjson.OPT_SORT_KEYS)
    return "pt-" + hashlib.sha256(content).hexdigest()[:24]


# A program that makes up type names as it runs must not grow the schema, or the memory, without end.
_AD_HOC_KEPT = 200

_declared: dict[str, SpanType] = {}
_ad_hoc: dict[str, SpanType] = {}
_schema = Schema()


def of_program(name: str, title: str | None = None, description: str | None = None) -> SpanType:
    """Make a type of what stands in the program's text. Never raises: what is not writable is escaped."""
    return SpanType(
        _writable(name), title=title and _writable(title), description=description and _writable(description)
    )


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def declare(span_type: SpanType) -> SpanType:
    """Note a type of this program; instances that start from now on declare it. The last one of a name wins."""
    _declared[span_type.name] = span_type
    return span_type


def by_name(name: str) -> SpanType:
    """Return the type called *name*; if nobody has declared it, instances that start from now on do."""
    known = _declared.get(name) or _ad_hoc.get(name)
    if known is None:
        known = of_program(name)
        if len(_ad_hoc) < _AD_HOC_KEPT:
            _ad_hoc[name] = known
    return known


def declared(
    extra: Iterable[SpanType] = (),
    external_identifier: str | None = None,
    quality: tuple[QualityType, ...] = (),
) -> Schema:
    """Return the schema of all types declared so far, with *extra* over them, and *quality*."""
    global _schema  # noqa: PLW0603 - a cache of one, so that a program of many short runs builds it once
    types = (*_ad_hoc.values(), *_declared.values(), *extra)
    is_same = _schema.types == types and _schema.quality == quality
    if not is_same or _schema.external_identifier != external_identifier:
        _schema = Schema(types, external_identifier, quality)
    return _schema

"""Ratings of runs: a call of `record_quality` becomes the bytes that are sent, or the reason why it does not.

In comes what the caller gave, on their thread; out go a name that is declared and a payload that fits its schema. What
is checked is the payload as it was captured; what is sent is the same without secrets. None of the user's code runs, and no reference in a schema
is followed out of it, to a file or over the network.

The judge is `jsonschema-rs`, loaded with the first payload. Where it is not installed, or cannot read a schema that the
platform may well understand, payloads are sent as they are, and the log says so once for each kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace import _guard
from prefactor_trace._capture import capture_object
from prefactor_trace._peek import type_name
from prefactor_trace._redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefactor_trace._capture import Limits
    from prefactor_trace._schema import QualityType

    _Judge = Callable[[Any], "str | None"]

# What is no object comes back from capture under this key, and nothing but a dict of the user's begins with it else.
_NO_OBJECT = b"$value"
_AS_IT_IS = Redactor(is_on=False)
_NAMES_SHOWN = 10
_WORDS_SHOWN = 500  # characters of what the judge says


class Rating(NamedTuple):
    """What is to be recorded. *payload*: a JSON object; None takes back what was recorded under *name*."""

    name: str
    payload: bytes | None


class Mistake(NamedTuple):
    """Why nothing is recorded. *kind*: one of few, to be counted; *message*: what to do about it."""

    kind: str
    message: str


class Qualities:
    """The kinds of rating that a tracer's runs declare. Thread-safe; never raises."""

    def __init__(self, types: Iterable[QualityType]) -> None:
        self._types = {each.name: each for each in types}
        self._judges: dict[str, _Judge] = {}

    def rate(self, name: object, payload: object, limits: Limits) -> Rating | Mistake:
        """Return what a call of `record_quality` records, or what is wrong with the call."""
        if not issubclass(type(name), str):
            return Mistake("the name is no text", "record_quality takes the name of a QualityType, as text")
        known = str.__str__(name)  # of a subclass as well, without its code
        if known not in self._types:
            return Mistake("the name is not declared", self._undeclared(known))
        if payload is None:
            return Rating(known, None)
        # A string that was cut for its own length would not fit its schema any more; all of them together are bounded.
        # And it is judged as it is: where a secret was, a marker would not fit.
        redact, limits = limits.redact, limits._replace(max_string=limits.max_bytes, redact=_AS_IT_IS)
        encoded = capture_object(payload, limits, _NO_OBJECT)
        if type(payload) is not dict and encoded.startswith(b'{"%b":' % _NO_OBJECT):
            why = "the payload must be None or an object, such as a dict or a dataclass"
            is_ = f"it is of type {type_name(type(payload))}"
            return Mistake("the payload is no object", f"quality {known!r}: {why}; {is_}")
        wrong = self._judge(known)(orjson.loads(encoded))
        if wrong is not None:
            return Mistake("the payload does not fit its schema", f"quality {known!r}: {wrong}")
        return Rating(known, redact(encoded))

    def _undeclared(self, name: str) -> str:
        shown = sorted(self._types)
        names = ", ".join(map(repr, shown[:_NAMES_SHOWN])) + (", …" if len(shown) > _NAMES_SHOWN else "")
        return (
            f"quality {name[:100]!r} is not declared; declared are: {names or 'none'}. "
            "Declare it with configure(schema=Schema(quality=(QualityType(…),)))"
        )

    def _judge(self, name: str) -> _Judge:
        judge = self._judges.get(name)
        if judge is None:
            judge = self._judges[name] = _judge_of(self._types[name])
        return judge


def _judge_of(kind: QualityType) -> _Judge:
    """Return a function that says where a value does not fit, None if it fits."""
    if not kind.schema:
        return _anything
    try:
        import jsonschema_rs
    except ImportError:
        _guard.logger.warning("quality %r is not checked: jsonschema-rs is not installed", kind.name)
        return _anything
    try:
        schema = orjson.loads(orjson.dumps(kind.schema))
        validator = jsonschema_rs.validator_for(schema, retriever=_retrieve_nothing, mask="the value")
    except Exception as error:
        first_line = str(error).split("\n", maxsplit=1)[0]
        _guard.logger.warning(
            "quality %r is not checked, its schema cannot be read: %s", kind.name, first_line
        )
        return _anything

    def judge(value: Any) -> str | None:
        for error in validator.iter_errors(value):
            path = (f".{step}" if isinstance(step, str) else f"[{step}]" for step in error.instance_path)
            return f"at ${''.join(path)}: {error.message}"[:_WORDS_SHOWN]
        return None

    return judge


def _anything(_: Any) -> str | None:
    return None


def _retrieve_nothing(uri: str) -> Any:
    """Follow no reference: it could lead to any file, or anywhere in the network."""
    raise ValueError(f"{uri} is outside of the schema")

"""What a name in a text annotation means inside of functions, and that nothing leaks when nobody can say any more."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import attrs
import orjson
import pydantic
import pytest

import prefactor_trace as pt
from prefactor_trace._arguments import arguments_of
from prefactor_trace._capture import DEFAULT, capture
from prefactor_trace._enclosing import Enclosing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nowhere import Shared, Unknown

HIDDEN = {"$redacted": "Secret"}


def encoded(value):
    return orjson.loads(capture(value))


def payload(function, *args):
    return orjson.loads(arguments_of(function).read(args, {}, DEFAULT))


def classes():
    """Return a class of each kind, with fields whose types are known in here alone."""
    Password = Annotated[str, pt.Secret]
    Number = int

    @dataclasses.dataclass
    class Data:
        key: Password
        count: Number

    class Row(NamedTuple):
        key: Password
        count: Number

    @attrs.define
    class Attrs:
        key: Password
        count: Number

    return Data, Row, Attrs


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_a_function_that_has_returned(kind):
    """What only it knew can be a mark; so what it is for is hidden."""
    assert encoded(kind("canary", 1)) == {"key": HIDDEN, "count": HIDDEN}
    assert encoded([{"a": kind("canary", 1)}] * 9)[-1] == {"a": {"key": HIDDEN, "count": HIDDEN}}


def test_a_function_that_is_running():
    """What its names mean is seen, marks and all."""
    Password, Plain = Annotated[str, pt.Secret], str
    Mail = Annotated[str, pt.Sensitive("contact_information")]

    class Part(TypedDict):
        key: Password
        plain: Plain

    @dataclasses.dataclass
    class Whole:
        key: Password
        keys: list[Password] | None
        plain: Plain
        mail: Mail
        parts: list[Part]
        other: Whole | None = None

    parts = [Part(key="canary", plain="shown")]
    whole = Whole("canary", ["canary"], "shown", "a@b", parts, Whole("canary", None, "b", "c", []))
    found = encoded(whole)
    assert (found["key"], found["keys"], found["plain"]) == (HIDDEN, HIDDEN, "shown")
    assert found["mail"] == {"$sensitive": "string", "labels": ["contact_information"], "value": "a@b"}
    assert found["parts"] == [{"key": HIDDEN, "plain": "shown"}]
    assert (found["other"]["key"], found["other"]["plain"]) == (HIDDEN, "b")


def test_what_is_known_all_the_same():
    """Of a function that has returned, its classes are known, its code's closures, and what pydantic has found."""

    def make():
        Seen = str

        @dataclasses.dataclass
        class Inner:
            text: str

        @dataclasses.dataclass
        class Outer:
            inner: Inner
            seen: Seen
            some: Sequence[int]
            unknown: Unknown
            again: Outer | None = None

            def method(self):
                return Seen

        return Outer(Inner("shown"), "shown", [1], 2)

    shown = {"inner": {"text": "shown"}, "seen": "shown", "some": [1], "unknown": 2, "again": None}
    assert encoded(make()) == shown


def test_what_a_function_has_imported():
    """It is in its module still, a mark or none; but not if the name is, or may be, something else as well."""

    def make(given):
        import decimal
        from decimal import Decimal as Number
        from typing import Optional, Union

        from tests.test_enclosing import IMPORTED as Password  # noqa: TC001 - read when it is looked at

        def change():
            nonlocal Union
            Union = Annotated[str, pt.Secret]

        if given:
            from decimal import Decimal as given
        from decimal import Decimal as Twice

        Twice = Annotated[str, pt.Secret]  # noqa: F811

        @dataclasses.dataclass
        class Data:
            number: Number
            by_module: decimal.Decimal
            perhaps: Optional[int]  # noqa: UP045
            key: Password
            changed: Union[int, str]  # noqa: UP007
            parameter: given
            twice: Twice

        return Data, decimal.Decimal

    kind, _ = make(None)
    shown = {"number": 1, "by_module": 2, "perhaps": 3}
    assert encoded(kind(1, 2, 3, *["canary"] * 4)) == shown | dict.fromkeys(
        ("key", "changed", "parameter", "twice"), HIDDEN
    )


IMPORTED = Annotated[str, pt.Secret]


def test_long_functions_are_not_read():
    """The program waits for it, so of these a name that is gone can be anything."""
    long = "\n    ".join(["import types", *["int()"] * 2_000, "return types"])
    namespace = {}
    exec(f"def long():\n    {long}\ndef short():\n    import types", namespace)
    assert Enclosing(namespace, "short.<locals>.It").imported("types") is types
    assert Enclosing(namespace, "long.<locals>.It").imported("types") is not types


def test_what_pydantic_has_found():
    """It knows what its annotations mean, and so nothing of it is hidden without a reason."""

    def make():
        Password, Plain = Annotated[str, pt.Secret], str

        class Model(pydantic.BaseModel):
            key: Password
            plain: Plain

        return Model

    assert encoded(make()(key="canary", plain="shown")) == {"key": HIDDEN, "plain": "shown"}


def test_a_dict_says_nothing_of_itself():
    """So a class that may be that of a `TypedDict` is no reason to show what is in it."""

    def make():
        class Part(TypedDict):
            key: Annotated[str, pt.Secret]

        @dataclasses.dataclass
        class Whole:
            part: Part

        return Whole(Part(key="canary"))

    assert encoded(make()) == {"part": HIDDEN}


def test_in_a_method_and_under_a_decorator():
    """The function around is found wherever it stands; where it is not, any name that is missing can be its own."""
    assert encoded(Owner().make()) == {"key": HIDDEN, "some": [1]}
    assert encoded(Owner.make_too()) == {"key": HIDDEN, "some": [1]}
    value = gone()
    assert encoded(value) == {"key": HIDDEN, "some": [1], "unknown": HIDDEN, "plain": "shown"}


class Owner:
    def make(self):
        Password = Annotated[str, pt.Secret]

        @dataclasses.dataclass
        class Data:
            key: Password
            some: Sequence[int]

        return Data("canary", [1])

    @staticmethod
    @pt.span
    def make_too():
        return Owner().make()


def gone():
    Password = Annotated[str, pt.Secret]

    @dataclasses.dataclass
    class Data:
        key: Password
        some: Sequence[int]
        unknown: Unknown
        plain: str

    return Data("canary", [1], "canary", "shown")


def renamed(function):
    """Decorate without a trace of what is inside."""

    def other():
        return function()

    return other


gone = renamed(gone)


def test_a_name_for_type_checkers_alone(monkeypatch):
    """It is not where it is named, but somewhere; a mark that it has there counts."""

    @dataclasses.dataclass
    class Data:
        key: Shared
        keys: list[Shared]
        unknown: Unknown

    def step(key: Shared, keys: dict[str, Shared], unknown: Unknown):
        return key

    elsewhere = types.ModuleType("elsewhere")
    elsewhere.Shared = Annotated[str, pt.Secret]
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    assert encoded(Data("canary", ["canary"], 1)) == {"key": HIDDEN, "keys": HIDDEN, "unknown": 1}
    assert payload(step, "canary", {"a": "canary"}, 1) == {"key": HIDDEN, "keys": HIDDEN, "unknown": 1}


def test_an_argument():
    """The same holds for what a function is given, be some of the names in its annotation there or not."""

    def make():
        Password = Annotated[str, pt.Secret]

        def inner():
            def step(a: Password, b: dict[Password, Unknown], c: Unknown):
                return a

            return step

        return inner

    assert payload(make()(), "canary", "canary", 1) == {"a": HIDDEN, "b": HIDDEN, "c": 1}


def test_the_frames_of_others_are_let_be():
    """A function that does not know the name is not looked at, though it has that of the one around."""
    names = Enclosing(globals(), "looked_for.<locals>.It")

    def looked_for(mine):
        return names.value("mine"), names.value("other")

    value, missing = looked_for(7)
    assert value == 7
    assert missing is not None
    assert Enclosing(globals(), "It").value("mine") is missing
    assert Enclosing({}, "looked_for.<locals>.It").is_known is False

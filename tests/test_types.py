"""Schemas from type hints: what is said is what the code says, and what capture sends is what is said."""

# No `from __future__ import annotations`: both ways of writing a hint are tested.

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import gc
import pathlib
import re
import subprocess
import sys
import typing
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import jsonschema
import orjson
import pytest
import typing_extensions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, Json, RootModel, SecretStr, field_validator

from prefactor_trace._capture import Limits, capture, capture_exception, capture_object
from prefactor_trace._types import note

T = TypeVar("T")
MARKER = {"$ref": "#/$defs/$marker"}
# True and False are numbers, too.
INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Odd(enum.Enum):
    PAIR = (1, 2)
    DAY = dt.date(2026, 1, 1)


class Point(NamedTuple):
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Order:
    """What somebody wants."""

    item: str
    count: int = 1
    color: Color = Color.RED
    init: dataclasses.InitVar[int] = 0
    total: decimal.Decimal = dataclasses.field(init=False, default=decimal.Decimal(0))


class Hit(TypedDict, total=False):
    url: str
    score: float


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=0, le=9)] = 9


class Dog(BaseModel, extra="allow"):
    kind: Literal["dog"] = "dog"
    name: str = Field(alias="Name", description="What it hears to")


class Owner(BaseModel, extra="forbid"):
    """Has animals."""

    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    password: SecretStr = SecretStr("never-in-a-schema")
    token: str = "never-in-a-schema"
    hidden: str = Field(exclude=True)
    born: dt.datetime | None = None
    extra: Json[list[int]] | None = None

    @field_validator("pets", mode="before")
    @classmethod
    def check(cls, value):
        return value


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Names(RootModel[list[str]]):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T]


class Stranger:
    pass


class Trap:
    """Describing it runs code that means no good."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        raise SystemExit("no")


class LateTrap:
    """Can be described, but not as JSON."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        return handler(int)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema, handler):
        raise RuntimeError("no")


def described(function):
    """Return the schemas of arguments and result, after looking that both are JSON Schema and complete."""
    params, result = note(function).describe()
    for schema in (params, result):
        jsonschema.Draft202012Validator.check_schema(orjson.loads(orjson.dumps(schema)))
    return params, result


def properties(function):
    return described(function)[0].get("properties", {})


def plain(schema):
    """Return *schema* without the alternative that every value has."""
    rest = [each for each in schema.get("anyOf", ()) if each != MARKER]
    words = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**words, **rest[0]} if len(rest) == 1 else {**words, **({"anyOf": rest} if rest else {})}


def test_parameters():
    """Names, kinds and defaults: what has none is required, `*args` is a list, `**kwargs` are what else there is."""

    def function(a: int, /, b: str, c: float = 1.0, *rest: bool, d: int, e: int = 2, **more: str) -> None: ...

    params, _ = described(function)
    assert {name: plain(each) for name, each in params["properties"].items() if name[0] != "$"} == {
        "a": INTEGER,
        "b": {"type": "string"},
        "c": NUMBER,
        "d": INTEGER,
        "e": INTEGER,
        "rest": {"type": "array", "items": {"type": "boolean"}},
    }
    assert params["required"] == ["a", "b", "d"]
    assert plain(params["additionalProperties"]) == {"type": "string"}


def test_methods_have_no_self():
    """`self` and `cls` are no arguments, in whatever order the decorators stand."""

    class Tool:
        def method(self, a: int): ...

        @classmethod
        def of(cls, a: int): ...

        @staticmethod
        def static(a: int): ...

        @property
        def value(self) -> int: ...

    of_class = [vars(Tool)[name] for name in ("method", "of", "static")]
    assert [list(properties(each)) for each in of_class] == [["a"]] * 3
    assert list(properties(Tool().method)) == ["a"]
    assert plain(described(vars(Tool)["value"])[1]["properties"]["output"]) == INTEGER


def test_other_callables():
    """Partials, callable objects, wrapped functions, builtins: as far as they say what they take."""

    class Tool:
        def __call__(self, a: int): ...

    def base(a: int, b: str): ...

    @functools.wraps(base)
    def wrapper(*args, **kwargs): ...

    assert plain(properties(functools.partial(base, 1))["b"]) == {"type": "string"}
    assert plain(properties(Tool())["a"]) == INTEGER
    assert list(properties(wrapper)) == ["a", "b"]
    assert described(print)[1] == {"type": "object"}
    assert described(type("Odd", (), {"__call__": 5})()) == ({"type": "object"}, {"type": "object"})


def test_a_closure_made_again():
    """A closure that is made anew each time is like the one before, unless its hints mean something else."""

    def make(kind, default):
        def function(a: list[kind], b: "Stranger" = default): ...

        return note(function)

    assert make(int, 1).is_like(make(int, 2))
    assert not make(int, 1).is_like(make(str, 1))
    assert not make(int, 1).is_like(note(make))


def test_names_of_partials():
    """A partial has the name and the words of what is inside."""

    def base(a: int, b: str):
        """Words."""

    noted = note(functools.partial(base, 1))
    assert (noted.qualname.rpartition(".")[2], noted.summary) == ("base", "Words.")


def test_what_is_not_annotated_is_anything():
    """Without hints, the names are still told; nothing else is claimed."""

    def function(a, b=1): ...

    assert described(function) == (
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
        {"type": "object"},
    )


def test_words_and_constraints_are_kept():
    """`Annotated` with text and limits says so in the schema, where people look for it."""

    def function(
        query: Annotated[str, Field(description="Words", min_length=1)],
        top: Annotated[int, Field(ge=1, le=9)],
    ): ...

    found = properties(function)
    assert found["query"] == {"description": "Words", "anyOf": [{"type": "string", "minLength": 1}, MARKER]}
    assert found["top"] == {**INTEGER, "minimum": 1, "maximum": 9}


def test_defaults_are_never_told():
    """Default values can be secrets: neither those of functions nor those of models are in a schema."""

    def function(owner: Owner, key: str = "never-in-a-schema"): ...

    assert b"never-in-a-schema" not in orjson.dumps(described(function))


@pytest.mark.parametrize(
    "wrong", [Stranger, Trap, LateTrap, "Nowhere", "1 +", 5, Callable[[int], str], Generic[T], TypeVar("U")]
)
def test_one_bad_annotation_costs_no_neighbour(wrong):
    """What cannot be described is anything, and only that: its neighbours and the result keep their schemas."""

    def function(a: int, b, c: Node) -> str: ...

    function.__annotations__["b"] = wrong
    params, result = described(function)
    assert params["properties"]["b"] == {}
    assert plain(params["properties"]["a"]) == INTEGER
    assert plain(params["properties"]["c"]) == {"$ref": "#/$defs/Node"}
    assert plain(result["properties"]["output"]) == {"type": "string"}


def test_strangers_inside_known_types():
    """An arbitrary class inside a list leaves the list a list."""

    def function(a: list[Stranger]): ...

    assert plain(properties(function)["a"]) == {"type": "array", "items": {}}


def test_markers_of_other_libraries():
    """What else stands in `Annotated` does not matter."""

    class Secret: ...

    def function(a: Annotated[str, Secret], b: Annotated[int, Secret(), "omit", object()]): ...

    assert [plain(each)["type"] for each in properties(function).values()] == ["string", INTEGER["type"]]


def test_recursive_types():
    """A type that contains itself refers to a definition at the root of the schema, so the reference holds."""

    def function(tree: Node) -> Node: ...

    params, result = described(function)
    assert plain(params["properties"]["tree"]) == {"$ref": "#/$defs/Node"}
    assert params["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert result["anyOf"][0] == {"$ref": "#/$defs/Node"}
    assert set(result["$defs"]) == {"$error", "$marker", "Node"}


def test_two_classes_of_one_name():
    """Two classes with the same name have two definitions."""

    def make(kind):
        class Item(BaseModel):
            value: kind

        return Item

    def function(a, b): ...

    function.__annotations__ = {"a": make(int), "b": make(str)}
    assert len({each["anyOf"][0]["$ref"] for each in properties(function).values()}) == 2


def test_forward_references():
    """Text names what the function sees: its module, the functions around it, its class; also what comes later."""

    class Local(BaseModel):
        value: int

    class Tool:
        class Part(BaseModel):
            value: int

        def list(self, a: "Local", b: "Part", c: "list[Later]", d: "dict[str, Part]"): ...

        noted = note(list)  # noqa: A003 - as it happens

    params, _ = Tool.noted.describe()
    del params["properties"]["d"]
    assert [plain(each) for each in params["properties"].values()] == [
        {"$ref": "#/$defs/Local"},
        {"$ref": "#/$defs/Part"},
        {"type": "array", "items": {"$ref": "#/$defs/Later"}},
    ]


class Later(BaseModel):
    value: int


def outside(a: "Late.Inner", b: "Late"): ...


class Late(BaseModel):
    class Inner(BaseModel):
        value: int


def test_names_that_come_later():
    """A name is looked up when the schema is built, not when the function is decorated."""
    assert [plain(each) for each in properties(outside).values()] == [
        {"$ref": "#/$defs/Inner"},
        {"$ref": "#/$defs/Late"},
    ]


def test_fields_that_only_a_function_knows():
    """A local dataclass whose fields name other local classes is described."""

    @dataclasses.dataclass
    class Inner:
        value: int

    @dataclasses.dataclass
    class Outer:
        inner: "Inner"

    def function(a: "Outer") -> "Inner": ...

    assert plain(properties(function)["a"]) == {"$ref": "#/$defs/Outer"}


def stream_of(annotation):
    def function(): ...

    function.__annotations__ = {"return": annotation}
    return plain(described(function)[1]["properties"]["output"])


def test_streams():
    """Of a stream, what its items become is described: one text, or a list."""
    assert stream_of(Iterator[str]) == {"type": ["string", "array", "null"], "items": {"type": "string"}}
    assert stream_of(AsyncIterator[int]) == {"type": ["array", "null"], "items": INTEGER}
    assert stream_of(Generator[int, None, None]) == {"type": ["array", "null"], "items": INTEGER}
    assert stream_of(Generator[int, None, bool])["anyOf"][1] == {"type": "boolean"}
    assert stream_of(Iterable[Node]) == {"type": ["array", "null"], "items": {"$ref": "#/$defs/Node"}}
    for unclear in (Iterator, typing.Iterator, Generator[Any, None, None], Generator[int, None, Any]):
        function = lambda: None  # noqa: E731
        function.__annotations__ = {"return": unclear}
        assert described(function)[1] == {"type": "object"}


def test_results():
    """An object is the result itself, what is none is its output; a failed step has an error in its place."""

    def validates(annotation, value):
        function = lambda: None  # noqa: E731
        function.__annotations__ = {"return": annotation}
        return jsonschema.Draft202012Validator(described(function)[1]).is_valid(value)

    error = orjson.loads(capture_exception(ValueError("x")))
    for annotation in (int, Node, Hit, dict[str, int], int | Node, Node | None, None, Names):
        assert validates(annotation, error)
    assert validates(Node, {"value": 1, "children": []})
    assert not validates(Node, {"value": "x"})
    assert validates(int | Node, {"output": 5})
    assert validates(int | Node, {"value": 5})
    assert not validates(int | Node, {"output": "x"})
    assert not validates(int, {"output": "x"})
    assert validates(Node | None, {"output": None})
    assert not validates(dict[str, int], {"a": "x"})


# -- what is sent is what is described ---------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(["x" * 50, "é" * 200, "\ud800"])
zones = st.sampled_from([None, dt.timezone.utc, dt.timezone(dt.timedelta(hours=2))])
nodes = st.builds(
    Node, value=st.integers(), children=st.lists(st.builds(Node, value=st.integers()), max_size=2)
)
cats, dogs = st.builds(Cat), st.builds(lambda name, **more: Dog(Name=name, **more), texts, wild=st.integers())
VALUES = [
    (int, st.integers()),
    (float, st.floats() | st.integers()),
    (Annotated[int, Field(ge=0)], st.integers(0)),
    (bool, st.booleans()),
    (str, texts),
    (Annotated[str, Field(max_length=8, pattern=".?")], st.text(max_size=8)),
    (bytes, st.binary(max_size=9)),
    (bytearray, st.binary(max_size=9).map(bytearray)),
    (decimal.Decimal, st.decimals()),
    (complex, st.complex_numbers()),
    (dt.datetime, st.datetimes(timezones=zones)),
    (dt.date, st.dates()),
    (dt.time, st.times()),
    (dt.timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (pathlib.Path, texts.filter(lambda text: "\0" not in text).map(pathlib.Path)),
    (Color, st.sampled_from(Color)),
    (Mode, st.sampled_from([*Mode, Mode.READ | Mode.WRITE])),
    (Odd, st.sampled_from(Odd)),
    (Literal["a", 1, Color.RED], st.sampled_from(["a", 1, Color.RED])),
    (Point, st.builds(Point, st.integers(), st.floats())),
    (Order, st.builds(Order, texts, st.integers(), st.sampled_from(Color))),
    (Hit, st.fixed_dictionaries({}, optional={"url": texts, "score": st.floats()})),
    (
        Owner,
        st.builds(
            Owner,
            hidden=texts,
            pets=st.lists(cats | dogs, max_size=2),
            born=st.none() | st.datetimes(timezones=zones),
            extra=st.just("[1]"),
        ),
    ),
    (Cat | Dog, cats | dogs),
    (Node, nodes),
    (Names, st.builds(Names, st.lists(texts, max_size=2))),
    (Page[int], st.builds(Page[int], items=st.lists(st.integers(), max_size=2))),
    (list[int], st.lists(st.integers(), max_size=3)),
    (list[Stranger], st.lists(st.builds(Stranger), max_size=2)),
    (tuple[int, str], st.tuples(st.integers(), texts)),
    (tuple[int, float], st.builds(Point, st.integers(), st.floats())),
    (tuple[int, float] | Node, st.builds(Point, st.integers(), st.floats()) | nodes),
    (tuple, st.builds(Point, st.integers(), st.floats())),
    (list[Sequence[str]], st.lists(texts, max_size=2)),
    (Sequence[str | int], texts),
    (Annotated[Sequence[str], Field(max_length=9)], st.text(max_size=9)),
    (list[Iterable], st.lists(texts | st.lists(st.integers(), max_size=2), max_size=2)),
    (Iterator[Sequence[str]] | None, st.none()),
    (tuple[float, ...], st.lists(st.floats(), max_size=3).map(tuple)),
    (set[str], st.sets(texts, max_size=3)),
    (frozenset[Color], st.frozensets(st.sampled_from(Color))),
    (deque[int], st.lists(st.integers(), max_size=3).map(deque)),
    (Sequence[int], st.just(range(3)) | st.lists(st.integers(), max_size=2)),
    (Mapping[str, int], st.dictionaries(texts, st.integers(), max_size=3)),
    (dict[int, Node], st.dictionaries(st.integers(), nodes, max_size=2)),
    (dict[Color, float], st.dictionaries(st.sampled_from(Color), st.floats(), max_size=2)),
    (dict[str, Any], st.dictionaries(texts, st.integers() | st.binary(), max_size=2)),
    (int | None, st.none() | st.integers()),
    (int | str | None, st.none() | st.integers() | texts),
    (int | Node, st.integers() | nodes),
    (SecretStr, st.builds(SecretStr, texts)),
    (Annotated[SecretStr, Field(min_length=20)], st.builds(SecretStr, texts)),
    (type[int], st.just(int)),
    (Callable[[], int], st.just(lambda: 1)),
    (object, st.builds(Stranger) | st.integers()),
    (BaseException, st.builds(ValueError, texts)),
    (T, st.integers()),
    (None, st.none()),
]


def validator(schema):
    """Make a validator that looks at formats, too, as far as it can without more packages."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(orjson.loads(orjson.dumps(schema)), format_checker=checker)


@functools.cache
def validators(place):
    def function(value, *rest, named=None, **more): ...

    annotation = VALUES[place][0]
    function.__annotations__ = dict.fromkeys(("value", "rest", "named", "more", "return"), annotation)
    return tuple(map(validator, described(function)))


tight = Limits(max_string=40, max_bytes=200, max_depth=2)


@pytest.mark.parametrize("place", range(len(VALUES)), ids=lambda place: str(VALUES[place][0])[-30:])
@given(data=st.data(), limits=st.sampled_from([Limits(), Limits(), tight]))
@settings(max_examples=25, deadline=None)
def test_what_is_captured_is_what_is_described(place, data, limits):
    """Every value of a type, as it is captured, cut or whole, is valid by the schema that its hint becomes."""
    params, result = validators(place)
    strategy = VALUES[place][1]
    value = data.draw(strategy)
    arguments = {"value": value, "rest": (value,), "named": data.draw(strategy), "more": value}
    encoded = capture(arguments, limits)
    assume(b"\\\\u0000" not in encoded)  # an escaped NUL is longer than a hint may allow
    if b'"value"' in encoded[:10]:  # else not even that has found room
        params.validate(orjson.loads(encoded))
    result.validate(orjson.loads(capture_object(value, limits)))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "x"),
        (str, 5),
        (Node, {"value": "x"}),
        (list[int], ["x"]),
        (list[str], "x"),
        (Sequence[int], "x"),
        (Sequence[str], [1]),
        (tuple[int, str], ["x", 1]),
        (typing_extensions.LiteralString, 5),
        (Color, "green"),
        (bool, 1),
        (Point, [1, 2.0]),
    ],
)
def test_what_is_something_else_is_not_valid(annotation, value):
    """The schema is not so wide that it says nothing: a value of another type is found out."""

    def function(value): ...

    function.__annotations__ = {"value": annotation, "return": annotation}
    params, result = described(function)
    assert not validator(params).is_valid(orjson.loads(capture({"value": value})))
    assert not validator(result).is_valid(orjson.loads(capture_object(value)))


@pytest.mark.parametrize(
    "form",
    [
        typing.NoReturn,
        typing_extensions.Never,
        typing_extensions.LiteralString,
        typing_extensions.TypeGuard[int],
        typing_extensions.ParamSpec("P"),
        any,
        lambda: None,
    ],
    ids=lambda hint: re.sub(" at 0x.*", "", repr(hint)),
)
def test_what_is_no_type_warns_nobody(form, recwarn):
    """What pydantic would warn of, on the user's standard error, is described in silence, wherever it stands."""
    function = lambda: None  # noqa: E731
    annotations = {"a": form, "b": list[form], "c": dict[str, form] | None, "d": Annotated[form, "x"]}
    function.__annotations__ = {**annotations, "return": form}
    described(function)
    function.__annotations__ = {"return": Iterator[form]}
    described(function)
    assert not recwarn.list


def test_long_texts_and_lists():
    """What is cut because it is long is valid: everywhere, also deep inside."""

    def function(text: str, hits: list[Hit], tree: Node) -> list[str]: ...

    params, result = described(function)
    value = {"text": "x" * 20_000, "hits": [{"url": "u" * 20_000}], "tree": Node(value=2**60)}
    encoded = capture(value)
    assert encoded.count(b"$truncated") == 2
    validator(params).validate(orjson.loads(encoded))
    validator(result).validate(orjson.loads(capture_object(["x" * 9_000] * 100)))


# -- noting ------------------------------------------------------------------------------------------------


def test_a_function_is_not_kept():
    """Neither the function nor what it has closed over, nor its defaults, live on because it was noted."""
    big, default = Stranger(), Stranger()

    def function(a: "Stranger" = default):
        return big  # noqa: F821 - it is deleted below

    kept = [weakref.ref(each) for each in (function, big, default)]
    noted = note(function)
    del function, big, default
    gc.collect()
    assert [each() for each in kept] == [None] * 3
    assert noted.describe()[0]["properties"]["a"] == {}  # not required, and anything


def test_noting_loads_nothing():
    """Decorating a function loads no pydantic; the thread that describes it does."""
    program = (
        "import sys, prefactor_trace as pt\n"
        "@pt.span\ndef f(a: int) -> 'list[str]': ...\n"
        "with pt.instance(): pass\n"
        "print(sorted({'pydantic', 'jsonschema'} & set(sys.modules)))"
    )
    environment = {"PREFACTOR_DISABLED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

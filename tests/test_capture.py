"""Promises of `_capture`: any value becomes bounded JSON, quickly, and none of the user's code runs."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import gc
import io
import ipaddress
import json
import math
import pathlib
import re
import sys
import threading
import time
import types
import uuid
import weakref
import zoneinfo
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from unittest import mock

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import within

from prefactor_trace import _capture, _readers
from prefactor_trace._capture import DEFAULT, Limits, capture, capture_exception, capture_object
from prefactor_trace._peek import type_name
from prefactor_trace._redact import Redactor

OFF = Redactor(is_on=False)  # what looks like a secret among arbitrary values is for other tests
PATIENT = DEFAULT._replace(max_seconds=10.0, redact=OFF)  # for tests of other limits than the time
SMALL = Limits(max_string=20, max_bytes=2_000, max_depth=4, max_seconds=10.0, redact=OFF)


def read(value: Any, limits: Limits = PATIENT) -> Any:
    return json.loads(capture(value, limits))


class Stranger:
    """An object of no known kind. Beside a value, it makes that go the slow way."""


NAME = f"{__name__}.Stranger"


# ---- plain values ------------------------------------------------------------------------------------------

integers = st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
atoms = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts
plain_json = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(texts, inner, max_size=20)
        | st.lists(atoms, min_size=13)
    ),
    max_leaves=60,
)
quick = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@quick
@given(plain_json)
def test_json_round_trips(value):
    """JSON within the limits comes back exactly; but for NUL, see below."""
    assert read(value) == value


@quick
@given(plain_json)
def test_json_round_trips_beside_a_stranger(value):
    """The slow way keeps JSON as exactly as the fast one."""
    assert read({"value": value, "other": Stranger()}) == {"value": value, "other": {"$type": NAME}}


@pytest.mark.parametrize("count", [0, 1, 12, 13, 1_000])
def test_both_sides_of_the_bulk_threshold(count):
    """Short and long lists and dicts of every atom are kept alike."""
    for atom in (None, True, 7, 1.5, "text", [], {}, [1], {"a": 1}, ("t",)):
        expected = json.loads(json.dumps(atom))
        assert read([atom] * count) == [expected] * count
        assert read({str(n): atom for n in range(count)}) == {str(n): expected for n in range(count)}
        assert read([atom, *[None, "x", 2.5, {"k": []}] * count]) == [
            expected,
            *[None, "x", 2.5, {"k": []}] * count,
        ]


def test_a_snapshot_is_taken():
    """What the caller does to a value afterwards is not in the record."""
    messages = [{"role": "user", "content": "hello"}]
    captured = capture({"messages": messages})
    messages[0]["content"] = "changed"
    messages.append({})
    assert json.loads(captured) == {"messages": [{"role": "user", "content": "hello"}]}


# ---- limits ------------------------------------------------------------------------------------------------


def test_a_long_string_is_cut():
    """Its beginning and its length stay, at any depth, on both ways, and its neighbours are whole."""
    cut = {"$truncated": "x" * 20, "length": 21}
    assert read("x" * 20, SMALL) == "x" * 20
    assert read("x" * 21, SMALL) == cut
    assert read({"a": [["x" * 21], "y"]}, SMALL) == {"a": [[cut], "y"]}
    assert read([*["y"] * 20, "x" * 21], SMALL) == [*["y"] * 20, cut]


def test_a_long_string_keeps_its_end():
    """Of a string that is cut three quarters are its beginning and one its end: questions and errors stand there."""
    text = "a" * 9_000 + "\n" + "b" * 1_001
    assert read([text]) == [{"$truncated": "a" * 7_500, "tail": "b" * 1_001, "length": 10_002}]
    assert read("\ud800" * 9_000 + "\n" + "\ud800" * 1_000)["tail"] == "\\ud800" * 1_000


def test_an_end_begins_with_something_new():
    """Half a line is left out, or half a word: it could be the second half of a secret."""
    assert read("a" * 9_999 + " bc")["tail"] == "bc"
    assert read("a " * 10_000)["tail"] == "a " * 1_217
    assert "tail" not in read("a" * 10_001)


def test_nul_is_escaped_wherever_it_stands():
    """As a value and a key, in short and long containers and strings, on both ways, and its neighbours stay."""
    nul, escaped = "a\0b", "a\\u0000b"
    assert b"u0000" not in capture({"a\\\\": "\\ \n"})
    for value, expected in (
        (nul, escaped),
        ({nul: 1}, {escaped: 1}),
        ([[nul], {"k": {"k": nul}}], [[escaped], {"k": {"k": escaped}}]),
        (["x"] * 20 + [nul], ["x"] * 20 + [escaped]),
        ([{"k": "x"}] * 20 + [{nul: "x"}], [{"k": "x"}] * 20 + [{escaped: "x"}]),
        ([{"k": {"k": nul}}] * 20, [{"k": {"k": escaped}}] * 20),
        ({f"{n}": nul for n in range(20)}, {f"{n}": escaped for n in range(20)}),
        ({"a": "x" * 9_000 + nul, "b": [nul] * 20}, {"a": "x" * 9_000 + escaped, "b": [escaped] * 20}),
        ({nul: 1, escaped: 2}, {f"str:{escaped}": 2, escaped: 1}),
    ):
        assert read(value) == expected
        assert read([value, Stranger()]) == [expected, {"$type": NAME}]
        assert b"\\u0000" not in capture(value).replace(b"\\\\u0000", b"")
    assert read("\\u0000") == "\\u0000"  # who writes it so himself has it so
    assert b"\\u0000" not in capture_exception(ValueError(nul, {nul: nul})).replace(b"\\\\u0000", b"")


def test_a_long_list_is_cut():
    """The first items stay, then a marker names the length of the whole."""
    for value in (
        list(range(100_000)),
        tuple(range(100_000)),
        [Stranger()] * 100_000,
        [1, Stranger()] * 50_000,
    ):
        *kept, marker = read(value)
        assert marker == {"$truncated": "items", "length": 100_000}
        assert len(kept) > 1_000
        assert kept == [{"$type": NAME} if type(item) is Stranger else item for item in value[: len(kept)]]


def test_long_strings_together_are_cut():
    """Strings that are each short enough are kept only as far as `max_bytes` reaches."""
    for wrap in (list, lambda items: {str(n): item for n, item in enumerate(items)}):
        captured = capture(wrap(["x" * 9_000] * 40), PATIENT)
        assert 0.9 * DEFAULT.max_bytes < len(captured) < 1.1 * DEFAULT.max_bytes
        assert b'"length":40' in captured


def test_a_long_dict_is_cut():
    """The first entries stay, and a marker names the number of all."""
    kept = read({str(n): n for n in range(100_000)})
    assert kept.pop("$truncated") == {"length": 100_000}
    assert len(kept) > 1_000
    assert kept == {str(n): n for n in range(len(kept))}


def test_shallow_values_come_first():
    """A huge first argument does not push out the ones behind it."""
    captured = read({"huge": [[Stranger()] * 100] * 1_000, "query": "refund policy"})
    assert captured["query"] == "refund policy"
    assert captured["huge"][-1] == [{"$truncated": "items", "length": 100}]


def test_depth_is_limited():
    """Below `max_depth` containers the type's name stands, on both ways alike."""
    assert read([[[[1]]]], SMALL) == [[[[1]]]]
    assert read([[[[[]]]]], SMALL) == [[[[{"$truncated": "list"}]]]]
    assert read([[[{"a": {"b": 1}}]]], SMALL) == [[[{"a": {"$truncated": "dict"}}]]]
    assert read([[[[Stranger()]]]], SMALL) == [[[[{"$type": NAME}]]]]
    wide: Any = [[[[[1]] * 20] * 20] * 20] * 20
    assert read(wide, SMALL._replace(max_bytes=10**9))[0][0][0][0] == {"$truncated": "list"}


def test_time_is_limited():
    """With no time left the result says that it was cut."""
    assert read([Stranger()] * 9, DEFAULT._replace(max_seconds=0.0)) == [{"$truncated": "items", "length": 9}]
    assert read({1: Stranger()}, DEFAULT._replace(max_seconds=0.0)) == {"$truncated": {"length": 1}}
    assert read({"a": [{"b": 1}] * 9}, DEFAULT._replace(max_seconds=0.0)) == {"a": [{"b": 1}] * 9}


def test_new_classes_take_no_time():
    """What is learned of classes, once, is not counted: it can take longer than to read all their values."""
    fields = [(f"field_{index}", "an_unknown_module.Name | None") for index in range(50)]

    def new_values():
        wide = [dataclasses.make_dataclass(f"Wide{index}", fields)(*range(50)) for index in range(24)]
        return [
            each for value in wide for each in (value, *range(7))
        ]  # so that the clock is looked at after each

    def took(values, limits=PATIENT):
        began = time.thread_time()
        found = read(values, limits)
        return time.thread_time() - began, found

    values = new_values()
    at_first, whole = took(values)
    again, _ = took(values)
    _, found = took(new_values(), PATIENT._replace(max_seconds=(at_first + again) / 2))

    assert found == whole == [{f"field_{index}": index for index in range(50)}, *range(7)] * 24


@pytest.mark.parametrize("text", ["\0" * 9_000, "漢" * 9_000, "😀" * 9_000, '"' * 9_000, "\ud800" * 9_000])
def test_characters_that_grow_are_bounded(text):
    """The result is at most twice `max_bytes`, though a character can take six bytes."""
    for value in (
        [text] * 25,
        [text] * 40,
        {"a": [text] * 40, "b": Stranger()},
        {f"{n}{text}": n for n in range(40)},
    ):
        captured = capture(value, PATIENT)
        assert 5_000 < len(captured) <= 2 * DEFAULT.max_bytes
        assert json.loads(captured)


def test_a_long_list_inside_keeps_its_beginning():
    """A list that is too long for the room is kept as far as there is room and time, wherever it stands."""
    items = [{"a": "x" * 20}] * 15_000
    for value in ({"a": items, "b": Stranger()}, collections.UserList(items), collections.ChainMap(*items)):
        assert len(read(value, DEFAULT)["a"] if type(value) is dict else read(value, DEFAULT)) > 10
        captured = read(value)
        kept = captured["a"] if type(captured) is dict else captured
        assert kept[-1] == {"$truncated": "items", "length": 15_000}
        assert kept[:1_000] == items[:1_000]
        assert len(kept) > 1_000


def test_megabytes_in_keys_are_bounded():
    """Long keys that stand behind short ones are cut, and cost neither their neighbours nor the bound."""
    value = [{str(n): n} for n in range(13)] + [{f"{n}" * 200_000: n} for n in range(20)]
    captured = capture({"value": value, "other": 1}, PATIENT)
    assert len(captured) <= 2 * DEFAULT.max_bytes
    found = json.loads(captured)
    assert found["other"] == 1
    assert found["value"][:13] == value[:13]
    assert [*found["value"][13]] == [f"{'0' * 10_000}... (200000 characters)"]


def test_many_long_messages_are_bounded():
    """Messages of exceptions count like other texts: the first are kept, the rest is cut, nothing is lost whole."""
    captured = capture([ValueError("\0" * 900 + "x" * 200) for _ in range(3_000)], PATIENT)
    assert len(captured) <= 2 * DEFAULT.max_bytes
    assert len(json.loads(captured)) > 10
    assert read([ValueError("x" * 900)], SMALL) == [
        {"error_type": "ValueError", "message": "x" * 20 + "... (900 characters)"}
    ]


def test_a_tiny_budget_still_gives_json():
    """Even limits of nothing give valid JSON."""
    for value in ("x" * 1_000, ["x"] * 1_000, {"a": Stranger()}, 1, None, Stranger()):
        for size in (0, 1, 10, 100):
            assert json.loads(capture(value, Limits(size, size, size, 0.0))) is not NotImplemented


def test_a_list_in_itself_is_marked():
    """A cycle is named where it closes; what merely stands twice is kept twice."""
    loop: list[Any] = [1]
    loop.append({"again": loop})
    assert read(loop) == [1, {"again": {"$cycle": "list"}}]
    node = Node(1)
    node.next = node
    assert read(node) == {"value": 1, "next": {"$cycle": f"{__name__}.Node"}}
    twice = [Stranger()]
    assert read([twice, twice]) == [[{"$type": NAME}]] * 2


@dataclasses.dataclass
class Node:
    value: int
    next: Any = None


def test_a_lattice_does_not_explode():
    """Forty lists, each holding the next one twice, are not unfolded to 2**40."""
    lattice: list[Any] = []
    for _ in range(40):
        lattice = [lattice, lattice]
    assert len(capture(lattice)) <= 2 * DEFAULT.max_bytes


# ---- what each kind becomes --------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, "two")
    STRANGE = Stranger()


class Level(enum.IntEnum):
    HIGH = 3


class Word(str, enum.Enum):
    YES = "yes"


class Bits(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Slotted:
    __slots__ = ("name", "tags")
    name: str
    tags: list[str]


class Text(str):
    __slots__ = ()


class Bag(dict[str, Any]):
    pass


class Moment(dt.datetime):
    pass


class OwnZone(dt.tzinfo):
    def utcoffset(self, when):
        raise SystemExit


NOON = dt.datetime(2024, 5, 6, 12, 30, 0, 7)
KINDS = [
    (float("nan"), {"$float": "nan"}),
    (float("inf"), {"$float": "inf"}),
    ([1.5, float("-inf")], [1.5, {"$float": "-inf"}]),
    ([0.5] * 20 + [float("nan")], [0.5] * 20 + [{"$float": "nan"}]),
    (2**53 - 1, 2**53 - 1),
    (2**53, {"$int": str(2**53)}),
    (-(2**53), {"$int": str(-(2**53))}),
    (10**999, {"$int": str(10**999)}),
    (10**5_001, {"$int": {"bits": (10**5_001).bit_length()}}),
    ("nul\0", "nul\\u0000"),
    ({"nul\0": ["\0"] * 20}, {"nul\\u0000": ["\\u0000"] * 20}),
    ("a\ud800b", "a\\ud800b"),
    ({"\udfff": "😀"}, {"\\udfff": "😀"}),
    (b"abc", {"$bytes": 3, "sha256": "ba7816bf8f01cfea"}),
    (bytearray(b"abc"), {"$bytes": 3, "sha256": "ba7816bf8f01cfea"}),
    (memoryview(b"abc"), {"$bytes": 3, "sha256": "ba7816bf8f01cfea"}),
    ({"b", "a", "c"}, ["a", "b", "c"]),
    (frozenset({3, 1, 2}), [1, 2, 3]),
    ({1.5}, [1.5]),
    (range(3), [0, 1, 2]),
    (collections.deque([1, Stranger()]), [1, {"$type": NAME}]),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (collections.UserDict(a=1), {"a": 1}),
    (collections.UserList([1]), [1]),
    (collections.UserString("text"), "text"),
    (collections.ChainMap({"a": 1}, {"a": 2, "b": Stranger()}), {"a": 1, "b": {"$type": NAME}}),
    (collections.ChainMap({1: 1}, {"a": 2}), {"1": 1, "a": 2}),
    (types.SimpleNamespace(a=1, b=Stranger()), {"a": 1, "b": {"$type": NAME}}),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (types.MappingProxyType(collections.ChainMap({})), {"$type": "collections.ChainMap"}),
    (complex(1, -2), "(1-2j)"),
    (NOON, "2024-05-06T12:30:00.000007"),
    (NOON.replace(tzinfo=dt.timezone.utc), "2024-05-06T12:30:00.000007+00:00"),
    (NOON.replace(tzinfo=zoneinfo.ZoneInfo("UTC")), "2024-05-06T12:30:00.000007+00:00"),
    (
        NOON.replace(tzinfo=OwnZone()),
        {"$datetime": "2024-05-06T12:30:00.000007", "tzinfo": f"{__name__}.OwnZone"},
    ),
    (Moment(2024, 5, 6, tzinfo=dt.timezone.utc), "2024-05-06T00:00:00+00:00"),
    (NOON.date(), "2024-05-06"),
    (NOON.time(), "12:30:00.000007"),
    (dt.time(1, 2, tzinfo=OwnZone()), {"$datetime": "01:02:00", "tzinfo": f"{__name__}.OwnZone"}),
    (dt.timedelta(days=1, seconds=3.5), "P1DT3.5S"),
    (dt.timedelta(seconds=-10), "-P0DT10S"),
    (decimal.Decimal("1.10"), "1.10"),
    (decimal.Decimal("1" * 20_000), {"$type": "decimal.Decimal"}),
    (fractions.Fraction(1, 3), "1/3"),
    (fractions.Fraction(10**5_000, 3), {"$type": "fractions.Fraction"}),
    (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
    (ipaddress.ip_address("fe80::1%eth0"), "fe80::1%eth0"),
    (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (ipaddress.ip_interface("fe80::1/64"), "fe80::1/64"),
    (re.compile("a+"), {"$type": "re.Pattern", "pattern": "a+"}),
    (re.compile(b"a"), {"$type": "re.Pattern"}),
    (re.match("a", "a"), {"$type": "re.Match"}),
    (memoryview(b"abcdef")[::2], {"$bytes": 3}),
    (memoryview(b""), {"$bytes": 0}),
    (memoryview(b"abcd").cast("B", (2, 2)), {"$bytes": 4, "sha256": "88d4266fd4e6338d"}),
    (io.StringIO("text"), {"$type": "_io.StringIO"}),
    (weakref.proxy(Colour), {"$type": "weakref.CallableProxyType"}),
    (..., {"$type": "ellipsis"}),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (pathlib.PurePosixPath(Text("/a/b")), None),
    (Colour.RED, "red"),
    (Colour.PAIR, [1, "two"]),
    (Colour.STRANGE, {"$type": NAME}),
    (Level.HIGH, 3),
    (Word.YES, "yes"),
    (Bits.A | Bits.B, 3),
    (Point(1, [2]), {"x": 1, "y": [2]}),
    (Node(1), {"value": 1, "next": None}),
    (Slotted("a", ["b"]), {"name": "a", "tags": ["b"]}),
    (Text("text"), "text"),
    (Bag(a=Text("b")), {"a": "b"}),
    (ValueError("bad", 1), {"error_type": "ValueError", "message": "bad, 1"}),
    (int, {"$type": "type", "name": "int"}),
    (Colour, {"$type": "type", "name": f"{__name__}.Colour"}),
    (json, {"$type": "module", "name": "json"}),
    (json.loads, {"$type": "function", "name": "json.loads"}),
    (len, {"$type": "function", "name": "len"}),
    (NOON.isoformat, {"$type": "function", "name": "isoformat"}),
    (Stranger(), {"$type": NAME}),
    (threading.Lock(), None),
    ((n for n in ()), {"$type": "generator"}),
    (range(10**30), {"$unreadable": "range"}),
]


@pytest.mark.parametrize(("value", "expected"), KINDS, ids=lambda value: type(value).__name__)
def test_each_kind(value, expected):
    """Every known kind is data, text or a marker, at the top, in a list, and in a long list; never an error."""
    captured = read(value)
    assert captured == (captured if expected is None else expected)
    assert read([value, 1]) == [captured, 1]
    assert read({"a": [*[1] * 20, value]}) == {"a": [*[1] * 20, captured]}


def test_keys_become_text():
    """Keys that are no strings are readable and none is lost, whatever the order they clash in."""
    strange = {None: 1, True: 2, 1.5: 3, (1, "a"): 4, NOON.date(): 5, Colour.RED: 6, 2**60: 7, Text("t"): 8}
    assert read(strange) == {
        "null": 1,
        "true": 2,
        "1.5": 3,
        "(1, a)": 4,
        "2024-05-06": 5,
        "red": 6,
        str(2**60): 7,
        "t": 8,
    }
    assert read({1: "a", "1": "b"}) == read({"1": "b", 1: "a"}) == {"int:1": "a", "1": "b"}
    three = {Stranger(): 1, Stranger(): 2, Stranger(): 3}
    assert read(three) == {f"<{NAME}>": 1, f"{NAME}:<{NAME}>": 2, f"{NAME}:<{NAME}>#2": 3}
    cut = f"{'k' * 20}... (21 characters)"
    assert read({"k" * 21: 1, "k" * 20 + "x": 2, "k": 3}, SMALL) == {cut: 1, f"str:{cut}": 2, "k": 3}
    nested: Any = 1
    for _ in range(400):
        nested = (nested,)
    assert read({nested: 1, tuple(range(10)): 2}) == {"((<tuple>))": 1, "(0, 1, 2, 3, 4, 5, 6, 7)": 2}
    (bounded,) = read({(("x" * 9_000,) * 8,) * 8: 1})
    assert len(bounded) < 12_000


def test_objects_always_come_out_as_objects():
    """`capture_object` puts whatever is no JSON object under a key, also a marker that stands for a value."""
    assert json.loads(capture_object({"$type": "mine"})) == {"$type": "mine"}
    assert json.loads(capture_object(Node(1))) == {"value": 1, "next": None}
    for value in (1, None, "text", [1], "x" * 20_000, Stranger(), float("nan")):
        assert json.loads(capture_object(value)) == {"output": read(value)}
        assert json.loads(capture_object(value, key=b"input")) == {"input": read(value)}
    assert json.loads(capture_object({"a": 1}, key=b"input")) == {"a": 1}


def test_names_of_types_are_bounded():
    """A type's own name cannot be used to send megabytes."""
    kind = type("N" * 1_000_000, (), {"__module__": "m" * 1_000_000})
    assert len(capture([kind(), kind])) < 2_000


# ---- models of others --------------------------------------------------------------------------------------


def test_pydantic_models_are_read_without_running_them():
    """Fields come from the instance; validators, computed fields and serializers stay alone, secrets hidden."""
    pydantic = pytest.importorskip("pydantic")
    calls: list[str] = []

    class Inner(pydantic.BaseModel):
        when: dt.datetime

    class Model(pydantic.BaseModel):
        model_config = {"extra": "allow"}
        name: str
        key: pydantic.SecretStr
        keys: list[pydantic.SecretBytes]
        inner: Inner
        hidden: str = pydantic.Field("canary", exclude=True)
        _private: str = "canary"

        @pydantic.computed_field
        @property
        def computed(self) -> int:
            calls.append("computed")
            return 1

        @pydantic.field_serializer("name")
        def serialize_name(self, name: str) -> str:
            calls.append("serializer")
            return name

        @pydantic.model_serializer(mode="wrap")
        def serialize(self, handler: Any) -> Any:
            calls.append("model serializer")
            return handler(self)

        def model_dump(self, **_: Any) -> Any:
            calls.append("dump")

    model = Model(
        name="n", key="canary", keys=[b"canary"], inner={"when": "2024-05-06T12:30:00+02:00"}, extra_one=1
    )
    captured = capture([model, model.key])
    assert calls == []
    assert b"canary" not in captured
    fields = {
        "name": "n",
        "key": "**********",
        "keys": ["**********"],
        "inner": {"when": "2024-05-06T12:30:00+02:00"},
        "extra_one": 1,
    }
    assert json.loads(captured) == [fields, "**********"]


def test_what_else_pydantic_has():
    """A root model is what is in it; dataclasses and generics of pydantic are objects, with secrets however deep."""
    pydantic = pytest.importorskip("pydantic")
    root = pydantic.RootModel[list[int]]
    generic = TypeVar("generic")

    class Deep(pydantic.BaseModel, Generic[generic]):
        data: generic

    @pydantic.dataclasses.dataclass
    class Data:
        key: pydantic.SecretStr
        hidden: str = pydantic.Field("canary", exclude=True)

    deep = Deep[dict[str, list[pydantic.SecretBytes]]](data={"a": [b"canary"]})
    text = pydantic.RootModel[str]("x" * 20_000)
    assert read([root([1, 2]), deep, Data(key="canary")]) == [
        [1, 2],
        {"data": {"a": ["**********"]}},
        {"key": "**********"},
    ]
    assert read([text])[0]["length"] == 20_000


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="pydantic.v1 ends with Python 3.13")
def test_models_of_pydantic_1():
    """Their fields and extras are data; excluded ones stay out, secrets secret."""
    v1 = pytest.importorskip("pydantic.v1")

    class Config:
        extra = "allow"

    old_model = v1.create_model(
        "Old",
        __config__=Config,
        number=(int, ...),
        key=(v1.SecretStr, ...),
        codes=(list[v1.SecretBytes], []),
        hidden=(str, v1.Field("canary", exclude=True)),
    )
    old = old_model(number=1, key="canary", codes=[b"canary"], more=[2])
    assert read([old, old.key]) == [
        {"number": 1, "key": "**********", "codes": ["**********"], "more": [2]},
        "**********",
    ]


def test_msgspec_structs_are_objects():
    """Fields are read from where they are stored, for structs of any kind."""
    msgspec = pytest.importorskip("msgspec")
    plain = msgspec.defstruct("Plain", ["a", "b"])
    tagged = msgspec.defstruct("Tagged", [("a", int, 1)], tag=True, frozen=True)
    assert read([plain(1, Stranger()), tagged()]) == [{"a": 1, "b": {"$type": NAME}}, {"a": 1}]


def test_fields_that_exist_for_init_only():
    """InitVar and ClassVar are no data; slots of dataclasses are."""

    @dataclasses.dataclass
    class Data:
        __slots__ = ("a",)
        a: int
        given: dataclasses.InitVar[str]
        shared: ClassVar[str] = "canary"

        def __post_init__(self, given):
            pass

    assert read(Data(1, "canary")) == {"a": 1}


def test_conditional_fields_of_pydantic_are_left_out():
    """A condition for excluding a field is code, so the field is left out."""
    pydantic = pytest.importorskip("pydantic", minversion="2.12")

    class Model(pydantic.BaseModel):
        shown: int = 1
        maybe: str = pydantic.Field("canary", exclude_if=lambda _: sys.exit())

    assert read(Model()) == {"shown": 1}


class TestChangedClasses:
    """Nothing is remembered of a class but its rules: a field that is left out from now on is, at once."""

    @pytest.mark.parametrize("rebuilds", [0, 1, 2])
    def test_a_field_that_is_excluded_later(self, rebuilds):
        """However often the model is rebuilt, which makes all of it anew, often in the same place in memory."""
        pydantic = pytest.importorskip("pydantic", minversion="2.10")
        for _ in range(20):

            class Model(pydantic.BaseModel):
                shown: str = "yes"
                hidden: str = "canary"

            value = Model()
            assert read(value) == {"shown": "yes", "hidden": "canary"}
            Model.__pydantic_fields__["hidden"].exclude = True
            for _ in range(rebuilds):
                Model.model_rebuild(force=True)
            assert read(value) == {"shown": "yes"}

    def test_a_class_that_becomes_another(self):
        """Nothing but its type is told before it is decorated."""
        attrs = pytest.importorskip("attrs")

        class Later:
            first: int = 1

        class Other:
            second = attrs.field(default=2)

        values = [Later(), Other()]
        assert [list(each) for each in read(values)] == [["$type"], ["$type"]]
        dataclasses.dataclass(Later)
        attrs.define(slots=False)(Other)
        assert read([Later(), Other()]) == [{"first": 1}, {"second": 2}]

    def test_a_class_with_other_bases(self):
        """Its fields are those of the bases it has now."""

        @dataclasses.dataclass
        class One:
            one: int = 1

        @dataclasses.dataclass
        class Two:
            two: int = 2

        class Both(One):
            pass

        value = Both()
        assert read(value) == {"one": 1}
        Both.__bases__ = (Two,)
        value.two = 2
        assert read(value) == {"two": 2}

    @pytest.mark.parametrize("slots", [False, True])
    def test_nobody_is_kept_alive(self, slots):
        """A class that is made for one call is gone after it."""
        kind = dataclasses.make_dataclass("Fleeting", ["a"], slots=slots)
        assert read([kind(1), kind(2)]) == [{"a": 1}, {"a": 2}]
        assert read(kind(3)) == {"a": 3}
        gone = weakref.ref(kind)
        del kind
        gc.collect()
        assert gone() is None


def test_models_of_older_pydantic_are_objects():
    """Before pydantic 2.10 the fields of a model are in another place."""

    class Field:
        __slots__ = ("exclude",)

        def __init__(self, exclude):
            self.exclude = exclude

    class Model:
        __pydantic_core_schema__ = object()
        model_fields = {"shown": Field(None), "hidden": Field(True)}

        def __init__(self):
            self.shown, self.hidden = 1, 2

    assert read(Model()) == {"shown": 1}


def test_attrs_classes_are_objects():
    """Fields of attrs classes are read from dict or slots."""
    attrs = pytest.importorskip("attrs")
    slotted = attrs.make_class("S", ["a", "b"], slots=True)
    plain = attrs.make_class("P", ["a"], slots=False)
    assert read([slotted(1, [2]), plain(3)]) == [{"a": 1, "b": [2]}, {"a": 3}]


def test_fields_that_are_not_stored_are_left_out():
    """A property that poses as a field, a deleted field and a class variable are not asked for."""

    @dataclasses.dataclass
    class Data:
        name: str
        count: int = 0

    def ask(self):
        raise SystemExit

    data = Data("n")
    Data.count = property(ask)  # type: ignore[assignment]
    del data.__dict__["count"]
    assert read(data) == {"name": "n"}
    slotted = Slotted("a", [])
    del slotted.tags
    assert read(slotted) == {"name": "a"}


# ---- no code of the user is run ----------------------------------------------------------------------------


class Recorder:
    """Makes classes whose every method notes that it was called, and then raises what `except Exception` misses."""

    KEEP = frozenset(
        {
            "__new__",
            "__init__",
            "__init_subclass__",
            "__class_getitem__",
            "__subclasshook__",
            "__doc__",
            "__dict__",
        }
        | {"__slots__", "__module__", "__qualname__", "__weakref__", "__del__", "__mro_entries__", "__name__"}
    )
    MORE = frozenset(
        "__getattr__ __getattribute__ __class__ __len__ __iter__ __next__ __getitem__ __contains__ __bool__ __hash__"
        " __eq__ __ne__ __lt__ __repr__ __str__ __format__ __index__ __int__ __float__ __bytes__ __buffer__ __call__"
        " __length_hint__ __reversed__ __missing__ __dir__ __sizeof__ __reduce_ex__ __array__ __fspath__ __set_name__"
        " __instancecheck__ __subclasscheck__ __prepare__ __get__ items keys values model_dump dict json isoformat"
        " utcoffset dst tzname value name".split()
    )

    def __init__(self) -> None:
        self.armed = False
        self.calls: list[str] = []

    def trap(self, base: type, name: str) -> Any:
        original = getattr(base, name, None)

        def method(*args: Any, **options: Any) -> Any:
            if self.armed:
                self.calls.append(f"{base.__name__}.{name}")
                raise SystemExit(name)
            if original is None:
                raise AttributeError(name)
            return original(*args, **options)

        if name == "__class__":
            return property(lambda one: method(one) if self.armed else type(one))
        return method

    def subclass(self, base: Any, *, meta: Any = type, **more: Any) -> Any:
        names = (set(dir(base)) | self.MORE) - self.KEEP
        names = {name for name in names if callable(getattr(base, name, len)) or name in self.MORE}
        if issubclass(base, type):
            names -= {"__call__", "__prepare__", "__set_name__", "mro", "__get__"}
        if not hasattr(base, "__get__"):
            names -= {"__get__", "__set_name__", "__prepare__"}
        space = {name: self.trap(base, name) for name in names}
        return meta(f"Evil{base.__name__}", (base,), space | more)


@pytest.fixture
def recorder():
    made = Recorder()
    yield made
    made.armed = False


def hostile_values(recorder: Recorder) -> list[Any]:
    meta = recorder.subclass(type)
    bases: list[tuple[Any, tuple[Any, ...]]] = [
        (object, ()),
        (str, ("text",)),
        (int, (7,)),
        (float, (1.5,)),
        (complex, (1j,)),
        (bytes, (b"b",)),
        (bytearray, (b"b",)),
        (list, ([1, 2],)),
        (tuple, ((1, 2),)),
        (dict, ({"a": 1},)),
        (set, ({1},)),
        (frozenset, ({1},)),
        (collections.deque, ([1],)),
        (collections.OrderedDict, ({"a": 1},)),
        (collections.defaultdict, (int, {"a": 1})),
        (dt.datetime, (2024, 1, 1, 0, 0, 0, 0, zoneinfo.ZoneInfo("Europe/Berlin"))),
        (dt.date, (2024, 1, 1)),
        (dt.time, (1, 2)),
        (dt.timedelta, (1,)),
        (decimal.Decimal, ("1.5",)),
        (uuid.UUID, ("12345678123456781234567812345678",)),
        (pathlib.PurePosixPath, ("/a",)),
        (types.ModuleType, ("module",)),
        (ValueError, ("bad",)),
        (Node, (1,)),
        (Point, (1, 2)),
        (Slotted, ("a", [])),
    ]
    values = []
    for base, args in bases:
        values.append(recorder.subclass(base)(*args))
        values.append(recorder.subclass(base, meta=meta)(*args))
    zone = recorder.subclass(dt.tzinfo)()
    text, number = recorder.subclass(str)("role"), recorder.subclass(int)(5)
    evil_object, evil_error = recorder.subclass(object), recorder.subclass(KeyError)
    values += [
        recorder.subclass(object, meta=meta),
        meta,
        dt.datetime(2024, 1, 1, tzinfo=zone),
        dt.time(1, tzinfo=zone),
        {text: text, number: number, (text, number): 1, evil_object(): 2},
        [{"role": n} for n in range(20)] + [{text: 1}],
        {evil_object() for _ in range(3)},
        frozenset({text, number}),
        {evil_object, recorder.subclass(object, meta=meta)},
        evil_error(text, number, evil_object(), {text: evil_object()}),
        types.MappingProxyType(recorder.subclass(collections.UserDict)()),
        types.MappingProxyType(recorder.subclass(dict)(a=1)),
        Node(evil_object(), recorder.subclass(list)([1])),
        types.MethodType(evil_object(), evil_object()),
        pathlib.PurePosixPath(text),
        type("Named", (), {"__module__": evil_object(), "__qualname__": text})(),
        [1] * 20 + [evil_object()],
        [1.5] * 20 + [recorder.subclass(float)(1.5)],
        ["a"] * 20 + [recorder.subclass(str)("a")],
        [{"a": 1}] * 20 + [recorder.subclass(dict)(a=1)],
        [[1]] * 20 + [recorder.subclass(list)([1])],
    ]
    for enum_base, member in ((enum.Enum, "v"), (enum.IntEnum, 1), (enum.Flag, 1)):
        space = {
            "value": property(recorder.trap(object, "value")),
            "name": property(recorder.trap(object, "name")),
        }
        traps = {name: recorder.trap(object, name) for name in ("__repr__", "__str__", "__bool__", "__len__")}
        made = enum_base("Evil", {"ONE": member})  # type: ignore[call-overload]
        for name, trap in {**space, **traps}.items():
            type.__setattr__(made, name, trap)
        values += [made.ONE, [made.ONE], {"a": made.ONE}, {made.ONE: 1}]
    return values


def test_no_code_of_the_user_runs(recorder):
    """Every value of the corpus is captured in every position, and none of its methods is called."""
    values = hostile_values(recorder)
    holders = [
        {"neighbour": 1, "value": value, "list": [value], "deep": {"a": ({"b": value},)}} for value in values
    ]
    errors = [ValueError(value, "neighbour") for value in values]
    encoded = []
    recorder.armed = True
    for value, holder, error in zip(values, holders, errors, strict=True):
        encoded += [capture(value, PATIENT), capture(holder, PATIENT), capture_object(value, PATIENT)]
        encoded.append(capture_exception(error, PATIENT))
    together = capture(values, PATIENT)
    recorder.armed = False
    assert recorder.calls == []
    assert len(json.loads(together)) == len(values)
    assert all(isinstance(json.loads(one), (dict, list, str, int, float)) for one in encoded)
    assert b"$unreadable" not in b"".join([*encoded, together])


def test_no_function_of_the_user_is_entered(recorder):
    """The interpreter itself says so: while the corpus is captured, no code from outside the library is entered."""
    values = hostile_values(recorder)
    entered: list[str] = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == __file__ and frame.f_code is not watch.__code__:
            entered.append(frame.f_code.co_name)

    recorder.armed = True
    sys.setprofile(watch)
    try:
        for value in values:
            capture({"a": [value], "b": (value,), "c": Node(value), "d": Point(1, value)}, PATIENT)
            capture(ValueError(value), PATIENT)
        capture(values, PATIENT)
    finally:
        sys.setprofile(None)
        recorder.armed = False
    assert entered == recorder.calls == []


def test_values_made_of_hostile_parts(recorder):
    """Standard types that hold a user's number or text, and would ask it for their text, are told by their type."""
    number, text = recorder.subclass(int)(5), recorder.subclass(str)("eth0")
    address = ipaddress.ip_address("fe80::1")
    address._scope_id = text
    other, network = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_network("10.0.0.0/8")
    other._ip = network._prefixlen = number
    fraction, made = fractions.Fraction(1, 3), uuid.UUID(int=5)
    fraction._numerator = number
    object.__setattr__(made, "int", number)
    maps = [recorder.subclass(dict)(a=1), recorder.subclass(dict)({text: 1})]
    values = [address, other, network, fraction, made, collections.ChainMap(*maps)]
    users = [recorder.subclass(kind)(given) for kind, given in (
        (collections.UserDict, {"a": 1}), (collections.UserList, [1]), (collections.UserString, "text"),
    )]  # fmt: skip
    recorder.armed = True
    captured = json.loads(capture([*values, *users], PATIENT))
    recorder.armed = False
    assert recorder.calls == []
    assert [one.get("$type", "")[:9] for one in captured[:5]] == [
        "ipaddress", "ipaddress", "ipaddress", "fractions", "uuid.UUID",
    ]  # fmt: skip
    assert captured[5:] == [[{"a": 1}, {"eth0": 1}], {"a": 1}, [1], "text"]


def test_coroutines_and_generators_are_left_alone():
    """None is started, closed or awaited for it."""

    async def later():
        return 1

    async def items():
        yield 1

    waiting, stream, each = later(), (n for n in [1, 2]), items()
    assert read([waiting, stream, each]) == [
        {"$type": kind} for kind in ("coroutine", "generator", "async_generator")
    ]
    assert list(stream) == [1, 2]
    assert waiting.cr_frame is not None
    with pytest.raises(StopIteration) as ended:
        waiting.send(None)
    assert ended.value.value == 1


def test_subclasses_are_read_as_their_base(recorder):
    """The data in a subclass of a built-in is recorded, whatever its methods would say."""
    made = {
        recorder.subclass(str)("text"): "text",
        recorder.subclass(int)(7): 7,
        recorder.subclass(float)(1.5): 1.5,
        recorder.subclass(tuple)((1, 2)): [1, 2],
        recorder.subclass(dt.date)(2024, 1, 1): "2024-01-01",
    }
    lists = [recorder.subclass(list)([1]), recorder.subclass(dict)(a=1), recorder.subclass(Node)(1)]
    values, expected = [*made, *lists], [*made.values(), [1], {"a": 1}, {"value": 1, "next": None}]
    recorder.armed = True
    captured = capture(values, PATIENT)
    recorder.armed = False
    assert json.loads(captured) == expected


def test_mocks_are_left_alone():
    """A Mock, which answers to every attribute, is named and not asked."""
    for made in (mock.Mock(), mock.MagicMock(), mock.NonCallableMagicMock(spec=dict)):
        children = set(made.__dict__["_mock_children"])
        assert read({"a": made})["a"] == {"$type": f"unittest.mock.{type(made).__mro__[1].__name__}"}
        assert made.mock_calls == []
        assert set(made.__dict__["_mock_children"]) == children


def test_lazy_objects_are_not_evaluated():
    """A query set is not run: neither its length, items, truth nor text is asked for."""
    queries: list[str] = []

    class QuerySet:
        def run(self, *_: Any) -> Any:
            queries.append("SELECT")
            return iter([])

        __iter__ = __len__ = __bool__ = __getitem__ = __repr__ = __str__ = __getattr__ = run

    assert read({"rows": QuerySet()})["rows"]["$type"].endswith("QuerySet")
    assert queries == []


def test_iterators_are_not_consumed():
    """A generator passed as an argument still yields everything afterwards."""
    stream = (n for n in range(3))
    capture({"stream": stream, "map": map(str, stream)})
    assert list(stream) == [0, 1, 2]


def test_the_value_is_not_changed():
    """Capturing leaves the value as it was, also where it is cut or read in part."""
    value = {"a": [1, Stranger()], "b": {1: [2]}, "c": list(range(100_000))}
    copy = {"a": list(value["a"]), "b": {1: [2]}, "c": list(range(100_000))}
    capture(value)
    assert value == copy


# ---- never an exception ------------------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**60, max_value=2**4_000)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.text(min_size=30)
    | st.binary()
    | st.complex_numbers()
    | st.decimals()
    | st.uuids()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.datetimes().map(lambda when: when.replace(tzinfo=OwnZone()))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([Colour.RED, Level.HIGH, Word.YES, Stranger, Stranger(), json, len, print])
    | st.fractions()
    | st.ip_addresses()
    | st.text(st.sampled_from("\0a\\\n"), min_size=1, max_size=3_000)
    | st.builds(ValueError, st.text(), st.integers()),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, min_size=13)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.dates(), inner
        )
        | st.builds(Node, inner, inner)
        | st.builds(Point, st.integers(), inner)
        | st.builds(collections.deque, st.lists(inner))
        | st.builds(Bag, st.dictionaries(st.text(), inner))
        | st.builds(
            collections.ChainMap, st.dictionaries(st.text(), inner), st.dictionaries(st.text(), inner)
        )
        | st.builds(collections.UserList, st.lists(inner))
        | st.builds(lambda fields: types.SimpleNamespace(**fields), st.dictionaries(st.text(), inner))
        | st.sets(st.integers() | st.text())
        | st.builds(ValueError, inner)
    ),
    max_leaves=40,
)


@quick
@given(anything, st.sampled_from([SMALL, Limits(5, 300, 2, 10.0), PATIENT]))
def test_anything_gives_json_within_the_bound(value, limits):
    """Whatever comes in, valid UTF-8 JSON of at most twice `max_bytes` comes out, and no exception."""
    captured = capture(value, limits)
    assert len(captured) <= 2 * limits.max_bytes
    assert "$unreadable" not in captured.decode()
    json.loads(captured, parse_constant=pytest.fail)
    assert type(json.loads(capture_object(value, limits))) is dict


def test_deep_values():
    """5,000 containers inside each other end in a marker, without recursion."""
    for wrap in (lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner, Stranger()), Node):
        value: Any = None
        for _ in range(5_000):
            value = wrap(value)
        assert b'{"$truncated":"' in capture(value, PATIENT)
        while value is not None:  # by hand: not every Python frees so deep a chain without recursion
            value = (
                value.value
                if type(value) is Node
                else next(iter(value.values() if type(value) is dict else value))
            )


@pytest.mark.parametrize("value", [{"a": [1, "b"]}, [Stranger()], {"a": Node([Stranger()])}])
def test_an_exhausted_stack(value):
    """With hardly a frame left there is still a result."""

    def trivial(_: object) -> bytes:
        return b"{}"

    def call_at(depth: int, function: Any) -> bytes:
        return function(value) if depth == 0 else call_at(depth - 1, function)

    def capture_at(depth: int, error: BaseException) -> bytes:
        return capture_exception(error) if depth == 0 else capture_at(depth - 1, error)

    def reaches(depth: int) -> bool:
        try:
            call_at(depth, trivial)
        except RecursionError:
            return False
        return True

    call_at(10, capture)
    limit = sys.getrecursionlimit()
    deepest = next(depth for depth in range(limit, 0, -1) if reaches(depth))
    error = raised(ValueError("bad"), raised(KeyError("key")))
    for depth in range(deepest - 60, deepest + 1):
        json.loads(call_at(depth, capture))
        json.loads(capture_at(depth, error))


def test_another_thread_changes_the_value():
    """A dict and a list that change during the walk give valid JSON every time."""
    shared: dict[Any, Any] = {str(n): n for n in range(50)}
    items: list[Any] = list(range(50))
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            shared[number % 97] = [number]
            shared.pop((number * 7) % 97, None)
            items.append(Stranger())
            del items[: len(items) - 50]

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for _ in range(200):
            captured = json.loads(capture({"dict": shared, "items": items, "stranger": Stranger()}, PATIENT))
            assert captured["stranger"] == {"$type": NAME}
            assert len(captured["dict"]) >= 50
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_container_that_changes_while_it_is_read(failures):
    """It is read again in one go; if that fails too, it is marked and what surrounds it stays."""
    left = [failures]

    def entries(_: object) -> Any:
        yield ("a", 1)
        if left[0]:
            left[0] -= 1
            raise RuntimeError("dictionary changed size during iteration")
        yield ("b", 2)

    rebuild = _capture._Rebuild(PATIENT, PATIENT.max_bytes)
    opened = _readers.Open(object(), entries, 2, False)
    target: dict[str, Any] = {}
    rebuild.fill(_capture._Branch(object(), opened, target, 1, None))
    assert target == ({"a": 1, "b": 2} if failures == 1 else {"$truncated": {"length": 2}})


def test_one_bad_value_does_not_cost_its_neighbours():
    """A value that cannot be read is marked where it stands."""
    released = memoryview(bytearray(b"x"))
    released.release()
    assert read({"a": 1, "bad": [released, 2], "b": 3}) == {
        "a": 1,
        "bad": [{"$unreadable": "memoryview"}, 2],
        "b": 3,
    }
    assert read({released_key(): 1}) == {"<memoryview>": 1}


def released_key() -> memoryview:
    key = memoryview(b"x")
    hash(key)  # is remembered, so that it can still be a key
    key.release()
    return key


# ---- exceptions --------------------------------------------------------------------------------------------


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_an_exception_is_flat_text():
    """Type, message and the frames it passed, without source lines."""
    captured = json.loads(capture_exception(raised(ValueError("bad input"))))
    assert captured["error_type"] == "ValueError"
    assert captured["message"] == "bad input"
    first, frame, last = captured["stacktrace"].splitlines()
    assert first == "Traceback (most recent call last):"
    assert frame.startswith(f'  File "{__file__[-120:]}", line ')
    assert frame.endswith(", in raised")
    assert last == "ValueError: bad input"
    assert json.loads(capture_exception(ValueError()))["stacktrace"] == "ValueError: "


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("key"), "key"),
        (KeyError(5), "5"),
        (ValueError(), ""),
        (ValueError("a", 1, None), "a, 1, null"),
        (ValueError(Text("sub"), dt.date(2024, 5, 6)), "sub, 2024-05-06"),
        (ValueError({"code": 1}), '{"code":1}'),
        (FileNotFoundError(2, "No such file", "x.txt"), "[Errno 2] No such file: 'x.txt'"),
        (OSError(5, "I/O"), "[Errno 5] I/O"),
        (OSError("plain"), "plain"),
        (ValueError("x" * 20_000), f"{'x' * 10_000}... (20000 characters)"),
        (ValueError("lone \ud800"), "lone \\ud800"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), None),
    ],
)
def test_messages(error, message):
    """The message is made of the arguments: strings as they are, anything else as it is captured."""
    captured = json.loads(capture_exception(error))["message"]
    assert captured == (captured if message is None else message)


def test_exceptions_do_not_run_their_code(recorder):
    """Neither the text nor the truth of an exception, its cause or its arguments is asked for."""
    evil = recorder.subclass(ValueError, meta=recorder.subclass(type))
    errors = [evil("message"), evil("cause"), evil("context"), evil(recorder.subclass(object)())]
    errors[0].__cause__, errors[1].__context__, errors[2].__cause__ = errors[1], errors[2], errors[3]
    recorder.armed = True
    captured = capture_exception(errors[0])
    recorder.armed = False
    assert recorder.calls == []
    assert json.loads(captured)["message"] == "message"
    assert [line.split(":")[0] for line in json.loads(captured)["stacktrace"].splitlines()][1:] == [
        "caused by",
        "while handling",
        "caused by",
    ]


def test_an_exception_in_itself():
    """An exception that is its own argument, or its enum's value, ends in its type."""
    error = ValueError("x")
    error.args = (error,)
    assert read([error]) == [{"error_type": "ValueError", "message": "<ValueError>"}]
    assert (
        json.loads(capture_exception(error))["message"]
        == '{"error_type":"ValueError","message":"<ValueError>"}'
    )


def test_enums_of_enums_end():
    """Members whose values are each other are named, not followed."""
    one, two = enum.Enum("One", "X"), enum.Enum("Two", "Y")
    one.X._value_, two.Y._value_ = two.Y, one.X
    assert read([one.X]) == [{"$type": f"{__name__}.One"}]
    assert len(read({one.X: 1})) == 1


def test_causes_have_a_line_each():
    """The chain is followed as Python prints it, and ends where it turns in a circle or becomes long."""
    inner = raised(KeyError("inner\nline"))
    lines = json.loads(capture_exception(raised(ValueError("outer"), inner)))["stacktrace"].splitlines()
    assert lines[-1].startswith('caused by: KeyError: inner line | File "')
    hidden = raised(ValueError("outer"), None)
    hidden.__context__ = inner
    assert "inner" not in json.loads(capture_exception(hidden))["stacktrace"]
    inner.__context__ = inner.__cause__ = None
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert json.loads(capture_exception(first))["stacktrace"].count("caused by") == 1
    last: BaseException = ValueError()
    for _ in range(100):
        last = raised(ValueError("x"), last)
    assert json.loads(capture_exception(last))["stacktrace"].count("caused by") == 8


def test_long_tracebacks_are_bounded():
    """The first and the last frames stay, and their number is told."""
    source = f"def {'f' * 80}(n):\n    if n: {'f' * 80}(n - 1)\n    raise ValueError('bottom')"
    space: dict[str, Any] = {}
    exec(compile(source, "d" * 200, "exec"), space)
    with pytest.raises(ValueError, match="bottom") as caught:
        space["f" * 80](300)
    text = json.loads(capture_exception(caught.value))["stacktrace"]
    assert "  ... 272 more frames ..." in text
    assert text.count("File") == 30
    error: BaseException = ValueError("x" * 1_000)
    for _ in range(20):
        error = raised(ValueError("x" * 1_000), error)
    error.__traceback__ = caught.value.__traceback__
    assert len(json.loads(capture_exception(error))["stacktrace"]) == 8_000
    with pytest.raises(RecursionError) as endless:
        space["f" * 80](10**9)
    assert len(capture_exception(endless.value)) < 20_000


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the built-in groups are new in Python 3.11")
def test_groups_show_their_members():
    """A group's message is its own; its members, also those of inner groups, have a line each, bounded."""
    inner = ExceptionGroup("inner", [KeyError("b"), TypeError("c")])  # noqa: F821
    captured = json.loads(capture_exception(ExceptionGroup("outer", [ValueError("a"), inner])))  # noqa: F821
    assert captured["message"] == "outer"
    assert captured["stacktrace"].splitlines() == [
        "ExceptionGroup: outer",
        "in the group: ValueError: a",
        "in the group: KeyError: b",
        "in the group: TypeError: c",
    ]
    many = ExceptionGroup("many", [ValueError(str(n)) for n in range(100_000)])  # noqa: F821
    assert json.loads(capture_exception(many))["stacktrace"].count("in the group") == 8
    deep = many
    for _ in range(300):
        deep = ExceptionGroup("deep", [deep])  # noqa: F821
    assert "in the group" not in json.loads(capture_exception(deep))["stacktrace"]
    assert fastest(lambda: capture_exception(many), 5) < 5 * 2e-3


# ---- speed: five times the budget, so that a busy machine does not fail the test ---------------------------


def fastest(function: Any, repeats: int) -> float:
    """Return the least seconds of CPU one call took."""
    if sys.gettrace() is not None:
        pytest.skip("times mean nothing under a tracer, such as coverage's")
    best = math.inf
    for _ in range(repeats):
        start = time.thread_time()
        function()
        best = min(best, time.thread_time() - start)
    return best


def test_a_small_call_is_cheap():
    """Three small arguments: 1.3 µs."""
    arguments = {"query": "hello", "k": "abc", "opts": {"a": 1}}
    assert fastest(lambda: [capture(arguments) for _ in range(100)], 20) / 100 < 5 * 1.3e-6


def test_chat_messages_are_cheap():
    """200 chat messages, 50 KB: 45 µs."""
    arguments = {"messages": [{"role": "user", "content": "x" * 240} for _ in range(200)]}
    assert fastest(lambda: capture(arguments), 50) < 5 * 45e-6


HUGE = {
    "a list of ints": lambda: list(range(1_000_000)),
    "a list of strangers": lambda: [Stranger()] * 1_000_000,
    "a dict": lambda: dict.fromkeys(range(1_000_000)),
    "a dict of strings": lambda: {str(n): "x" for n in range(1_000_000)},
    "a set": lambda: set(range(1_000_000)),
    "a long string": lambda: "x" * 50_000_000,
    "a long string inside": lambda: [[{"a": ({"b": "x" * 50_000_000},)}]],
    "a long key": lambda: {"x" * 50_000_000: 1},
    "a million long keys' worth": lambda: {f"{n}" * 1_000: n for n in range(200)},
    "many small dicts": lambda: [{"a": "x\n"}] * 100_000,
    "a chain of maps": lambda: collections.ChainMap(*[{str(n): n} for n in range(10_000)]),
    "many types": lambda: [type(f"Kind{n}", (), {})() for n in range(5_000)],
    "wide and deep": lambda: wide(1_000, 32),
    "a deque": lambda: collections.deque(range(1_000_000)),
    "maps of maps": lambda: collections.ChainMap(*[dict.fromkeys(range(1_000))] * 1_000),
    "backslashes": lambda: [{"k": "\\" * 9_000}] * 200,
    "nul": lambda: [{"k": "\0" * 9_000}] * 200,
    "long bytes": lambda: bytes(50_000_000),
    "a module": lambda: sys,
    "embeddings": lambda: [[0.1 * n for n in range(1_536)]] * 20,
    "lists of strangers": lambda: [[1, *[Stranger()] * 10_000]] * 1_000,
}


def wide(width: int, depth: int) -> Any:
    value: Any = Stranger()
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize("name", HUGE)
def test_huge_values_take_bounded_time(name):
    """No single value takes more than 2 ms."""
    value = HUGE[name]()
    capture(b"")  # imports what it needs
    assert fastest(lambda: capture(value), 5) < 5 * 2e-3


def test_types_without_a_module():
    """A type that was made where no module has a name costs neither its value nor the neighbours."""
    made: dict[str, Any] = {}
    exec('List = type("List", (list,), {}); Error = type("Error", (Exception,), {})', made)
    turning = made["List"]([1])
    turning.append(turning)
    assert json.loads(capture([turning, made["List"], "neighbour"])) == [
        [1, {"$cycle": "List"}],
        {"$type": "type", "name": "List"},
        "neighbour",
    ]
    assert json.loads(capture_exception(made["Error"]("text")))["error_type"] == "Error"


def test_keys_of_strange_types_in_an_instance():
    """What the dict of an instance is asked for by name never meets the `__eq__` of a key."""
    asked = []

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            asked.append(other)
            return False

    @dataclasses.dataclass
    class Data:
        name: int

    value = Data(1)
    value.__dict__ = {Key("name"): 2, "name": 3}
    asked.clear()
    assert json.loads(capture([value])) == [{"name": 3}]
    assert asked == []


def test_values_that_are_slow_to_read():
    """No value makes its reader take long before there is anything to cut."""

    class Extra(pydantic.BaseModel):
        model_config = {"extra": "allow"}

    class Root(pydantic.RootModel[Any]):
        pass

    turning = Root(1)
    turning.root = turning
    slow = [
        {"a" * 300_000 + str(n) for n in range(900)},
        {(1 << 300_000) + n for n in range(900)},
        Extra.model_construct(**{f"k{n}": n for n in range(300_000)}),
        [turning, 1],
        ValueError(*[[{"a" * 3_000 + str(n) for n in range(1_000)}]] * 16),
    ]
    for value in slow:
        assert min(seconds_for(value) for _ in range(3)) < within(0.01)
    assert json.loads(capture([turning, 1])) == [{"$cycle": type_name(Root)}, 1]
    cut = json.loads(capture(slow[2]))
    assert (cut["k0"], cut["$truncated"]) == (0, {"length": 300_000})
    assert json.loads(capture(Root(Root([1])))) == [1]


def seconds_for(value):
    start = time.thread_time()
    (capture_exception if isinstance(value, BaseException) else capture)(value)
    return time.thread_time() - start


def test_errors_among_values():
    """What stands beside the name of a secret in an exception is hidden where the exception is a value, too."""
    (said,) = read([ValueError("password", "S3cretPw99")], DEFAULT)
    assert said["error_type"] == "ValueError"
    assert "S3cretPw99" not in said["message"]
    assert read([ValueError("one", "two")], DEFAULT)[0]["message"] == "one, two"


def test_errors_of_pydantic():
    """That a model refuses its values is told with the model's name, and without the values."""

    class Model(pydantic.BaseModel):
        number: int
        other: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Model(number="S3cretPw99", other=1)
    said = json.loads(capture_exception(caught.value))
    assert said["message"] == "1 validation error for Model"
    assert "S3cretPw99" not in json.dumps(said)

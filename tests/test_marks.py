"""Marks on the fields of classes are honoured wherever a value of the class is, and nothing of the user's is run."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import sys
import threading
import types
import typing
from collections.abc import Iterator, Mapping  # noqa: TC003 - read when they are looked at
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict

import attrs
import orjson
import pydantic
import pytest
import typing_extensions
from typing_extensions import NotRequired, TypeAliasType, Unpack

import prefactor_trace as pt
from prefactor_trace import _marks
from prefactor_trace._arguments import arguments_of
from prefactor_trace._capture import DEFAULT, capture
from prefactor_trace._marks import rules_of
from prefactor_trace.exporters import MemoryExporter
from prefactor_trace.testing import recording

HIDDEN = {"$redacted": "Secret"}
Password = Annotated[str, pt.Secret]


@dataclasses.dataclass
class Account:
    user: str
    key: Annotated[str, pt.Secret]
    image: Annotated[bytes, pt.Omit] = b""
    mail: Annotated[str, pt.Sensitive("contact_information")] = "a@b"
    named: Password = "canary"
    perhaps: Optional[Password] = "canary"  # noqa: UP045 - the old way must work
    some: list[Password] = dataclasses.field(default_factory=lambda: ["canary"])
    word: Literal["Secret"] = "Secret"


ACCOUNT = {
    "user": "ann",
    **dict.fromkeys(("key", "named", "perhaps", "some"), HIDDEN),
    "mail": {"$sensitive": "string", "labels": ["contact_information"], "value": "a@b"},
    "word": "Secret",
}


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    user: str
    key: Annotated[str, pt.Secret()]


class Row(NamedTuple):
    user: str
    key: Annotated[str, pt.Secret]


@attrs.define
class Attrs:
    user: str
    key: Annotated[str, pt.Secret]


class Model(pydantic.BaseModel):
    user: str
    key: Annotated[str, pt.Secret]


class Root(pydantic.RootModel[Annotated[str, pt.Secret]]):
    pass


class Node(TypedDict):
    user: str
    key: Annotated[str, pt.Secret]
    image: NotRequired[Annotated[str, pt.Omit]]
    children: NotRequired[list[Node]]


@dataclasses.dataclass
class Holder:
    nodes: dict[str, Node]


PATIENT = DEFAULT._replace(max_seconds=10.0)  # the time is not what these tests are about


def encoded(value):
    return orjson.loads(capture(value, PATIENT))


def payload(function, *args, **kwargs):
    return orjson.loads(arguments_of(function).read(args, kwargs, PATIENT))


@pytest.mark.parametrize(
    "value",
    [
        Slotted("ann", "canary"),
        Row("ann", "canary"),
        Attrs("ann", "canary"),
        Model(user="ann", key="canary"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_class(value):
    """A field that is marked is a marker, in whatever kind of class and however deep in a value."""
    plain = {"user": "ann", "key": HIDDEN}
    assert encoded(value) == plain
    assert encoded({"a": [(value, 1)]}) == {"a": [[plain, 1]]}


def test_each_mark_and_place():
    """Marks work as on arguments: by an alias, inside of Optional and lists, `Omit` without a trace."""
    assert encoded(Account("ann", "canary", b"canary")) == ACCOUNT
    assert encoded(Root("canary")) == HIDDEN


def test_a_subclass_may_say_otherwise():
    """Marks are inherited; a field that is declared again is as it is declared last."""

    class Same(Account):
        pass

    @dataclasses.dataclass
    class Other(Account):
        key: str

    assert encoded(Same("ann", "canary")) == ACCOUNT
    assert encoded(Other("ann", "x")) == {**ACCOUNT, "key": "x"}


def test_dicts_by_the_annotation_of_the_argument():
    """A TypedDict is a dict, so it is known by the annotation of the argument or field that it is in."""

    def step(a: Node, b: list[Node], c: Mapping[str, Node] | None, *rest: Node, **more: Node):
        return a, b, c, rest, more

    inner = {"user": "bob", "key": "canary", "image": "canary", 1: 2}
    node = {"user": "ann", "key": "canary", "children": [inner]}
    shown = {"user": "ann", "key": HIDDEN, "children": [{"user": "bob", "key": HIDDEN, "1": 2}]}
    assert payload(step, node, (node,), {"x": node}, node, y=node) == {
        "a": shown,
        "b": [shown],
        "c": {"x": shown},
        "rest": [shown],
        "y": shown,
    }
    assert payload(step, "no dict", None, 5) == {"a": "no dict", "b": None, "c": 5}
    assert encoded(Holder({"x": node})) == {"nodes": {"x": shown}}
    assert node["children"] == [inner]


def test_names_of_functions_around(recorded):
    """Annotations that are text may name what only the function or the class around the decorated one knows."""
    key = Annotated[str, pt.Secret]

    class Local(TypedDict):
        user: str
        key: Annotated[str, pt.Secret]

    @pt.span
    def step(a: key, b: Local, c: list[Local], *rest: Local) -> Local:
        return b

    class Owner:
        inside = Annotated[str, pt.Secret]

        @pt.span
        def method(self, a: inside, b: Local):
            return None

    given, shown = {"user": "ann", "key": "canary"}, {"user": "ann", "key": HIDDEN}
    step("canary", given, [given], given)
    Owner().method("canary", given)
    first, second = recorded.spans
    assert first.payload == {"a": HIDDEN, "b": shown, "c": [shown], "rest": [shown]}
    assert first.result == shown
    assert second.payload == {"a": HIDDEN, "b": shown}


def test_a_large_dict():
    """Where counting takes its time, what is omitted is marked; nothing of it is recorded either way."""

    def step(a: Node):
        return a

    large = {"image": "canary", **{str(n): n for n in range(2_000)}}
    assert payload(step, large)["a"]["image"] == HIDDEN


def test_results():
    """What a function returns, and what a generator yields, is recorded as the fields of its annotation say."""

    @pt.span("returned")
    def returned() -> Node:
        return {"user": "ann", "key": "canary"}

    @pt.span("items")
    def items() -> Iterator[Node]:
        yield {"user": "ann", "key": "canary"}

    @pt.span("folded", fold=lambda _, item: item)
    def folded() -> Iterator[Node]:
        yield {"user": "ann", "key": "canary"}

    exporter = MemoryExporter()
    tracer = pt.configure(exporter=exporter)
    with pt.instance():
        returned()
        assert next(items())["key"] == "canary"
        list(items())
        list(folded())
    tracer.shutdown()
    results = [orjson.loads(each.ended.result) for each in exporter.records if hasattr(each, "started")]
    shown = {"user": "ann", "key": HIDDEN}
    assert results == [shown, {"output": [shown]}, {"output": [shown]}, {"output": shown}]


class Item(TypedDict):
    user: str
    key: Annotated[str, pt.Secret]
    number: Annotated[int, pt.Omit]


class Field(str, enum.Enum):
    KEY = "key"


def test_keys_that_are_a_kind_of_text():
    """What a TypedDict says of a name holds for a key that is recorded under it."""

    def step(item: Item): ...

    read = arguments_of(step).read
    assert orjson.loads(read(({Field.KEY: "canary"},), {}, DEFAULT)) == {"item": {"key": HIDDEN}}


@pytest.mark.parametrize(
    ("fold", "folded"),
    [
        (lambda n, _: (n or 0) + 1, 3),
        (lambda text, item: f"{text or ''}{item['user']},", "user-0,user-1,user-2,"),
        (lambda _, item: f"<{item['key']}>", "<[redacted:Secret]>"),
        (
            lambda found, item: [*(found or []), {"in": [item]}],
            [{"in": [{"user": f"user-{n}", "key": HIDDEN}]} for n in range(3)],
        ),
        (lambda _, item: {item["key"]: item["number"]}, {"[redacted:Secret]": HIDDEN}),
        (lambda *_: None, None),
    ],
    ids=["count", "other text", "hidden text", "in a list", "name and number", "nothing"],
)
def test_what_is_folded(fold, folded):
    """What `fold` makes of marked items is recorded, without what the marks hide, wherever in it that stands."""

    def items() -> Iterator[Item]:
        for n in range(3):
            yield {"user": f"user-{n}", "key": f"canary-{n}", "number": 1_234_567 + n}

    exporter = MemoryExporter()
    tracer = pt.configure(exporter=exporter)
    with pt.instance():
        assert [item["key"] for item in pt.span(fold=fold)(items)()] == ["canary-0", "canary-1", "canary-2"]
    tracer.shutdown()
    (result,) = [orjson.loads(each.ended.result) for each in exporter.records if hasattr(each, "started")]
    assert result == {"output": folded}


def test_more_is_hidden_of_what_is_folded_than_is_remembered():
    """Where the items have more hidden texts than are remembered, nothing of what is made of them is recorded."""

    def items() -> Iterator[Node]:
        for n in range(100):
            yield {"user": "ann", "key": f"canary-{n}"}

    exporter = MemoryExporter()
    tracer = pt.configure(exporter=exporter)
    with pt.instance():
        list(pt.span(fold=lambda text, item: (text or "") + item["key"])(items)())
    tracer.shutdown()
    (result,) = [each.ended.result for each in exporter.records if hasattr(each, "started")]
    assert orjson.loads(result) == {"output": HIDDEN}


class Lost(Exception):
    pass


@pytest.fixture
def recorded():
    with recording() as recorded, pt.instance():
        yield recorded


@pytest.fixture
def said():
    """Run a function in a run of its own; return the texts of the errors of all its spans."""

    def of(function, *args, **kwargs):
        exporter = MemoryExporter()
        tracer = pt.configure(exporter=exporter)
        with pt.instance(), contextlib.suppress(Exception):
            list(function(*args, **kwargs) or ())
        tracer.shutdown()
        return b"".join(
            each.ended.error or b"" for each in exporter.records if hasattr(each, "started")
        ).decode()

    return of


class TestErrors:
    """What must not be recorded of an argument is not in what is recorded of the errors either."""

    def test_each_way_of_marking(self, said):
        """By a mark on the argument, on `**more`, or on a field of what it holds; other arguments are told."""

        @pt.span
        def step(
            a: Annotated[str, pt.Secret],
            b: Account,
            c: Node,
            d: list[Annotated[bytes, pt.Omit]],
            e: Row,
            f: str,
            **more: Annotated[int, pt.Secret],
        ):
            raise ValueError(f"{a} {b.key!r} {c['key']} {d[0]} {e.key} {f}", more)

        text = said(
            step,
            "canary-1",
            Account("ann", "canary-2"),
            {"user": "ann", "key": "canary-3"},
            [b"canary-4"],
            Row("ann", "canary-5"),
            "told",
            more=4111111111111111,
        )
        assert "told" in text
        assert "[redacted:Secret]" in text
        assert "canary-" not in text
        assert "4111111" not in text

    @pytest.mark.parametrize("options", [{}, {"capture": "none"}, {"payload": 1}])
    def test_whatever_is_recorded(self, said, options):
        """It counts for generators and for what is told by hand, also if the arguments are not recorded."""

        @pt.span(**options)
        def step(key: Annotated[str, pt.Secret]):
            pt.current_span().fail(f"by hand: {key}")
            yield 1

        @pt.span(**options)
        def raising(key: Annotated[str, pt.Secret]):
            yield 1
            raise KeyError(key)

        for each in (step, raising):
            text = said(each, "canary-1")
            assert "[redacted:Secret]" in text
            assert "canary" not in text

    def test_the_steps_around_and_inside(self, said):
        """Nor is it in the errors of the steps around, which have no mark, and of those inside."""

        @pt.span
        def outer(key):
            try:
                middle(key)
            except ValueError as error:
                raise Lost(f"lost: {error}") from None

        @pt.span
        def middle(key: Annotated[str, pt.Secret]):
            inner(key)

        @pt.span
        def inner(key):
            raise ValueError(f"no {key}")

        text = said(outer, "canary-1")
        assert text.count("lost: no [redacted:Secret]") == 2
        assert "canary" not in text

    @pytest.mark.parametrize("before", [0, 292, 296, 9_990, 9_994, 7_990])
    def test_cut_or_escaped(self, said, before):
        """It is found though it is cut, or written as `repr` or JSON write it."""
        key = "canary-1 'two' \"three\"\n" + "k" * 50

        @pt.span
        def step(key: Annotated[str, pt.Secret]):
            raise ValueError("x" * before + key)

        @pt.span
        def shown(key: Annotated[str, pt.Secret]):
            raise ValueError(f"{'x' * before}{key!r}", {"key": key}, [key])

        for each in (step, shown):
            assert "canary-" not in said(each, key)

    def test_by_the_name_beside_it(self, said):
        """An argument behind one that is the name of a secret is one; a sentence about it is none."""

        @pt.span
        def step(*args):
            raise RuntimeError(*args)

        assert "hunter2" not in said(step, "password", "hunter2")
        assert "hunter2" not in said(step, 1, ("password", "hunter2"), [("authorization", "hunter2")])
        assert "correct horse" not in said(step, "passphrase", "correct horse battery staple")
        assert "must not be empty" in said(step, "password", "must not be empty")
        assert "hunter2" in said(step, "user", "hunter2")


def test_names_that_only_a_function_knows():
    """An alias of a function that is running stands for its mark; of one that has returned, pydantic tells it."""
    own = Annotated[str, pt.Secret]

    class Local(pydantic.BaseModel):
        alias: own
        other: Optional[Annotated[str, pt.Omit]]  # noqa: UP045 - the old way must work

    @dataclasses.dataclass
    class Said:
        key: Annotated[own, pt.Sensitive]

    class Keys(TypedDict):
        key: Annotated[str, pt.Secret]

    def step(a: Keys):
        return a, Keys

    assert encoded(Local(alias="canary", other="canary")) == {"alias": HIDDEN}
    assert encoded(Said("canary")) == {"key": HIDDEN}
    assert payload(step, {"key": "canary"}) == {"a": {"key": HIDDEN}}


def test_beside_the_containers_of_typing():
    """As text these are read like all others, and what is declared after them as well."""

    @dataclasses.dataclass
    class Old:
        some: typing.List[int]  # noqa: UP006 - the old way must work
        bare: typing.Sequence
        call: typing.Callable[[int], str] | None
        keys: typing.Dict[str, Password]  # noqa: UP006
        key: Annotated[str, pt.Secret]

    found = encoded(Old([1], [2], None, {"a": "canary"}, "canary"))
    assert found == {"some": [1], "bare": [2], "call": None, "keys": HIDDEN, "key": HIDDEN}


T = typing.TypeVar("T")
Bound = typing.TypeVar("Bound", bound=Password)
Either = typing.TypeVar("Either", int, Password)
Alias = TypeAliasType("Alias", Password)
General = TypeAliasType("General", Annotated[T, pt.Secret], type_params=(T,))


@pytest.mark.parametrize(
    "hint",
    [
        Bound,
        Either,
        Alias,
        list[Alias],
        General[str],
        dict[int, General[str]],
        "General[str]",
        "*tuple[int, Alias]",
    ],
    ids=str,
)
def test_behind_aliases_and_variables(hint):
    """A mark counts in what a name stands for, be it an alias, with parameters or without, or a bound."""

    def step(a):
        return a

    step.__annotations__["a"] = hint
    kind = type("Kind", (), {"__annotations__": {"a": hint, "b": int}})
    assert payload(step, "canary") == {"a": HIDDEN}
    assert rules_of(kind) == {"a": pt.Secret}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no such statement")
def test_type_statements():
    """Of an alias that cannot be evaluated, nothing is recorded; one of a function that has returned is no class."""
    space = {"pt": pt, "Annotated": Annotated, "dataclass": dataclasses.dataclass, "__name__": __name__}
    exec(  # other versions cannot read it
        "type Pair[T] = tuple[T, Annotated[T, pt.Secret]]\n"
        "type Broken = Annotated[Missing, pt.Secret]\n"
        "def step[T: Pair[int]](a: Pair[str], b: list[Pair[str]], c: Broken, d: T, e: int): pass\n"
        "def make():\n"
        "    type Local = Annotated[str, pt.Secret]\n"
        "    @dataclass\n"
        "    class Data:\n"
        "        key: 'Local'\n"
        "    return Data('canary')\n",
        space,
    )
    given = dict.fromkeys("abcd", HIDDEN)
    assert payload(space["step"], *["canary"] * 4, 1) == {**given, "e": 1}
    kind = types.ModuleType("of_a_test")
    kind.__dict__.update(space)
    value = space["make"]()
    type(value).__module__ = "of_a_test"
    sys.modules["of_a_test"] = kind
    try:
        assert encoded(value) == {"key": HIDDEN}
    finally:
        del sys.modules["of_a_test"]


def test_a_kind_of_mark():
    """A mark of one's own is what it is made of."""

    class CardNumber(pt.Secret):
        pass

    class Picture(pt.Omit):
        pass

    class Mail(pt.Sensitive):
        def __init__(self):
            super().__init__("contact_information")

    class Careless(pt.Sensitive):
        def __init__(self):
            pass

    @dataclasses.dataclass
    class Data:
        a: Annotated[str, CardNumber]
        b: Annotated[str, CardNumber()]
        c: Annotated[str, Picture]
        d: Annotated[str, Mail()]
        e: Annotated[str, Careless()]

    mail = Annotated[str, Mail()]

    @pt.span
    def items() -> Iterator[mail]:
        yield "a@b"

    label = {"$sensitive": "string", "labels": ["contact_information"], "value": "a@b"}
    kind = Data("canary", "canary", "canary", "a@b", "shown")
    rules = dict(zip("abcde", (CardNumber, CardNumber(), Picture, Mail(), Careless()), strict=True))
    Data.__annotations__ = {name: Annotated[str, mark] for name, mark in rules.items()}
    shown = {"$sensitive": "string", "value": "shown"}
    assert encoded(kind) == {"a": HIDDEN, "b": HIDDEN, "d": label, "e": shown}
    with recording() as recorded, pt.instance():
        list(items())
    assert recorded.spans[0].result == {"output": label}


def test_keywords_by_a_typed_dict():
    """`Unpack` says it of each keyword by its name."""

    def step(**others: Unpack[Node]):
        return others

    def written(**others):
        return others

    written.__annotations__["others"] = Unpack[Node]
    for function in (step, written):
        given = {
            "user": "ann",
            "key": "canary",
            "image": b"canary",
            "children": [{"user": "bob", "key": "canary"}],
        }
        found = orjson.loads(arguments_of(function).read((), given, DEFAULT))
        assert found == {"user": "ann", "key": HIDDEN, "children": [{"user": "bob", "key": HIDDEN}]}
        assert "canary" in arguments_of(function).hidden((), {"key": "canary"})


def test_what_a_model_has_beside_its_fields():
    """pydantic lets their type be declared, with marks."""

    class Open(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        __pydantic_extra__: dict[str, Password]
        user: str

    class Dropping(Open):
        __pydantic_extra__: dict[str, Annotated[str, pt.Omit]]

    class Part(typing_extensions.TypedDict):
        user: str
        key: Annotated[str, pt.Secret]

    class OfDicts(Open):
        __pydantic_extra__: dict[str, Part]

    node = {"user": "bob", "key": "canary"}
    assert encoded(Open(user="ann", more="canary")) == {"user": "ann", "more": HIDDEN}
    assert encoded(Dropping(user="ann", more="canary")) == {"user": "ann"}
    assert encoded(OfDicts(user="ann", more=node)) == {"user": "ann", "more": {"user": "bob", "key": HIDDEN}}


def test_at_the_end_of_the_stack():
    """Where there is no room to read what is hidden, nothing is recorded; and nothing is remembered of it."""

    @dataclasses.dataclass
    class Deep:
        key: Annotated[str, pt.Secret]

    value, seen = Deep("canary"), []

    def deeper():
        with contextlib.suppress(RecursionError):
            deeper()
        with contextlib.suppress(RecursionError):
            seen.append(b"canary" in capture(value))

    deeper()
    assert seen
    assert not any(seen)
    assert encoded(value) == {"key": HIDDEN}


def test_two_threads_that_meet_a_class_at_once():
    """The second does not wait for the first, nor does it take what that has found so far for all of it."""

    @dataclasses.dataclass
    class Met:
        user: Annotated[str, pt.Omit]
        key: Annotated[str, pt.Secret]

    value, seen = Met("ann", "canary"), []

    def in_between(frame, _event, _arg):
        if frame.f_code is _marks._Reading.rule.__code__ and not seen:
            other = threading.Thread(target=lambda: seen.append(encoded(value)))
            other.start()
            other.join()

    def first():
        sys.settrace(in_between)
        seen.append(encoded(value))
        sys.settrace(None)

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    assert seen == [{"key": HIDDEN}] * 2


@dataclasses.dataclass
class Involved:
    last: Password | bytes | int | float | bool | list[int] | dict[str, int] | tuple[int, ...] | None
    word: (
        Annotated[str, pt.Secret] | bytes | int | float | bool | list[int] | dict[str, int] | set[int] | None
    )
    deep: dict[str, list[dict[str, list[tuple[Optional[list[Annotated[str, pt.Secret]]], int]]]]]  # noqa: UP045
    chosen: Annotated[str, pt.Secret if __debug__ else pt.Omit]
    shown: list[list[list[list[list[list[list[list[list[int]]]]]]]]] | int


def test_long_and_deep_annotations():
    """As text, a union of many is not too long, nor a nest too deep, for a mark in it to count."""
    assert set(rules_of(Involved)) == {"last", "word", "deep", "chosen"}
    assert "canary" not in str(encoded(Involved("canary", "canary", {"a": [{"b": ["canary"]}]}, "canary", 1)))


def test_a_name_that_comes_later():
    """What an annotation names may be defined after the class is first met."""

    @dataclasses.dataclass
    class Early:
        key: _Later  # noqa: F821

    try:
        assert encoded(Early("x")) == {"key": "x"}
        globals()["_Later"] = Annotated[str, pt.Secret]
        assert encoded(Early("x")) == {"key": HIDDEN}
    finally:
        globals().pop("_Later", None)


def test_nothing_of_the_users_is_run():
    """Annotations are read and not evaluated, whatever they hold."""
    calls = []

    class Nosy(type):
        def __getattribute__(cls, name):
            calls.append(name)
            return super().__getattribute__(name)

        def __hash__(cls):
            calls.append("hash")
            return 1

        def __eq__(cls, other):
            calls.append("eq")
            return True

    class Strange(metaclass=Nosy):
        def __getattr__(self, name):
            calls.append(name)
            raise AttributeError(name)

    holder = dataclasses.make_dataclass("Holder", ["a", "b", "c", "d", "e"])
    holder.__annotations__ = {
        "a": "calls.append(1)",
        "b": Strange,
        "c": Annotated[int, Strange()],
        "d": "Annotated[int, calls.append(2), Nosy()]",
        "e": "(" * 500,
        5: 6,
    }
    calls.clear()
    assert encoded(holder(1, 2, 3, 4, 5)) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert calls == []


def test_sensitive_holds_for_all_below():
    """What is below a sensitive field is wrapped once, searched for secrets, and comes to an end."""

    @dataclasses.dataclass
    class Person:
        data: Annotated[Any, pt.Sensitive]

    loop = Person(None)
    loop.data = [
        loop,
        {"password": "canary"},
        [["Authorization", "canary"], ["a", "b"]],
        Slotted("u", "canary"),
    ]
    text = capture(loop).decode()
    assert "canary" not in text
    assert '"$cycle"' in text
    assert '{"$redacted":"Secret"}' in text
    cut = encoded(Person("x" * 9_990 + "sk-ant-" + "y" * 50))["data"]["$truncated"]["value"]
    assert "sk-ant" not in cut


def test_a_class_is_looked_at_once(monkeypatch):
    """What was found is kept by the class, not by its id alone."""
    assert rules_of(Account) is rules_of(Account)
    looked_at = []
    found = _marks._declared
    monkeypatch.setattr(_marks, "_declared", lambda kind: looked_at.append(kind) or found(kind))
    for _ in range(20):
        made = type("Made", (), {"__annotations__": {"a": Password}})
        assert rules_of(made) == {"a": pt.Secret}
        del made
    rules_of(Account)
    assert len(looked_at) == 20


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")
def test_type_aliases():
    """A type alias is looked through."""
    names: dict[str, Any] = {"Annotated": Annotated, "pt": pt}
    exec("type Alias = Annotated[str, pt.Secret]", names)
    made = type("Made", (), {"__annotations__": {"a": names["Alias"]}})
    assert rules_of(made) == {"a": pt.Secret}

"""Schemas: what a run declares, the same in every process that runs the same code."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
import threading
from collections.abc import Iterator  # noqa: TC003 - looked up by what reads type hints
from typing import Annotated, Literal

import jsonschema
import orjson
import pytest
from pydantic import BaseModel

import prefactor_trace as pt
from prefactor_trace import _schema
from prefactor_trace._inventory import purge
from prefactor_trace._record import InstanceRegistered, SpanRecord
from prefactor_trace._spool import Folder, Segment
from prefactor_trace._wire import Learned, span_details
from prefactor_trace.http.models import ActionProfile, DataCategories, DataRisk
from prefactor_trace.testing import recording


def declared_by(recorded):
    """Return the schema of the last run, as it is sent."""
    registered = [each for each in recorded._exporter.records if isinstance(each, InstanceRegistered)]
    return registered[-1].schema.to_wire()


def test_decorated_functions_declare_their_type():
    """A decorated function's type is declared by the next run: name, title, description."""

    @pt.span("tool:search", title="Search")
    def search(query):
        pass

    @pt.span
    def plan():
        """Think ahead.

        At length.
        """

    with recording() as recorded:
        with pt.instance():
            pass
        recorded.tracer.flush()
        types = {each["name"]: each for each in declared_by(recorded)["span_type_schemas"]}

    name = "test_decorated_functions_declare_their_type.<locals>.plan"
    assert sorted(types) == [name, "tool:search"]
    assert types[name]["description"] == "Think ahead."
    assert types["tool:search"]["title"] == "Search"


def test_explicit_types():
    """A type of one's own is declared as given; its payload schema stands where the payload is sent."""
    kind = pt.SpanType(
        "tool:search",
        title="Search",
        description="Looks.",
        template="{{ inputs.q }}",
        params_schema={"type": "object", "properties": {"q": {"type": "string"}}},
        result_schema={"type": "object", "required": ["hits"]},
        data_risk={"action_profile": {"read_data": "allowed"}},
    )
    wire = kind.to_wire()

    assert wire["params_schema"]["properties"]["inputs"] == kind.params_schema
    assert wire["result_schema"] == kind.result_schema
    assert {key: wire[key] for key in ("title", "description", "template", "data_risk")} == {
        "title": "Search",
        "description": "Looks.",
        "template": "{{ inputs.q }}",
        "data_risk": {
            "action_profile": {"read_data": "allowed"},
            "params_data_categories": {},
            "result_data_categories": {},
        },
    }


def test_risk_may_be_a_model():
    """The client's `DataRisk` says the same as an object does, with every word spelled out."""
    risk = DataRisk(
        action_profile=ActionProfile(read_data="allowed"),
        params_data_categories=DataCategories(),
        result_data_categories=DataCategories(classification="secret"),
    )
    wire = pt.SpanType("tool:search", data_risk=risk).to_wire()["data_risk"]

    assert wire["action_profile"]["read_data"] == "allowed"
    assert wire["result_data_categories"]["classification"] == "secret"
    assert len(wire["params_data_categories"]) == 18


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 5},
        {"title": 5},
        {"template": b"x"},
        {"params_schema": {"x": {1, 2}}},
        {"params_schema": ["x"]},
        {"result_schema": "object"},
        {"data_risk": {"x": object()}},
        {"data_risk": {"action_profile": "read"}},
        {"data_risk": "high"},
    ],
)
def test_what_cannot_be_declared(wrong):
    """A type that the platform could not read is refused where it is written."""
    with pytest.raises(pt.ConfigurationError, match="SpanType"):
        pt.SpanType(**{"name": "a", **wrong})


def test_names_that_cannot_be_written():
    """A name with half a character or a NUL, in a decorator, block, run or setting, is escaped; the program goes on."""

    def step(): ...

    step.__doc__ = "\udc82"
    step = pt.span("half \udc80", title="\udc81")(step)

    with recording(agent_version="\udc86") as recorded, pt.instance(agent_name="\0\udc85"):
        step()
        with pt.span("\udc83\0", title="\udc84"):
            pass
        assert [span.type for span in recorded.spans] == ["half \\udc80", "\\udc83\\u0000"]
        version = recorded.instance().registered["agent_version"]
        assert (version["name"], version["external_identifier"]) == ("\\u0000\\udc85", "\\udc86")
        assert recorded.ledger.notes == {}


KEY = "ghp_aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAabcd"


class Keys(str, enum.Enum):
    FIRST = KEY


@dataclasses.dataclass
class Search:
    password: str = "canary"

    def __call__(self, query: str) -> str:
        return query


def test_secrets_are_not_told():
    """What looks like a secret is in no description, example or value of an enum, nor in the name of a step."""

    def step(key: Keys, other: Literal["ghp_aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAabcd"]): ...

    step.__doc__ = f"Search with {KEY}."
    pt.span("step")(step)
    pt.span("search")(Search())
    quality = pt.QualityType("rating", description=f"As {KEY} says.")
    declared = pt.Schema(
        (*_schema._declared.values(), pt.SpanType("given", description=KEY)), quality=(quality,)
    )
    said = orjson.dumps(declared.to_wire()).decode()
    assert KEY not in said
    assert "canary" not in said
    assert "Search with [redacted:github_token]." in said


def test_a_secret_as_a_name():
    """The name of a block is told without what looks like a secret."""
    with recording() as recorded, pt.instance(), pt.span(f"tool {KEY}"):
        pass
    assert recorded.spans[0].type == "tool [redacted:github_token]"


def test_without_an_envelope():
    """`envelope=False` declares the payload's schema exactly as given."""
    kind = pt.SpanType("x", params_schema={"type": "object", "required": ["q"]}, envelope=False)
    assert kind.to_wire()["params_schema"] == {"type": "object", "required": ["q"]}


def test_the_identifier_is_a_hash_of_the_content():
    """Same types, same identifier, in whatever order; any change, another."""
    a, b = pt.SpanType("a"), pt.SpanType("b")
    identifiers = [
        pt.Schema(types).to_wire()["external_identifier"]
        for types in ((a, b), (b, a), (a, a, b), (a,), (a, pt.SpanType("b", title="B")))
    ]
    assert identifiers[0] == identifiers[1] == identifiers[2]
    assert len(set(identifiers)) == 3


def test_an_empty_schema_has_a_type():
    """The platform refuses a run without any type, so there is always one."""
    assert [each["name"] for each in pt.Schema().to_wire()["span_type_schemas"]] == ["span"]


def test_configured_schema():
    """`configure(schema=...)` adds types, wins over decorated ones of the same name, and can name the version."""
    _schema.declare(pt.SpanType("a", title="decorated"))
    schema = _schema.declared((pt.SpanType("a", title="configured"),), "v7")

    assert schema.to_wire()["external_identifier"] == "v7"
    assert [each["title"] for each in schema.to_wire()["span_type_schemas"]] == ["configured"]


def test_names_that_a_block_makes_up_are_no_part_of_it():
    """What only a block brings up makes no other version of the schema, and its spans are recorded all the same."""
    with recording() as recorded:
        versions = set()
        for run in range(3):
            with pt.instance():
                for number in range(run * 200):
                    with pt.span(f"made-up-{number}"):
                        pass
            recorded.tracer.flush()
            versions.add(declared_by(recorded)["external_identifier"])
        assert len(versions) == 1
        assert len(recorded.spans) == 600
        assert len(_schema._ad_hoc) == 200


def test_types_met_while_running_are_declared_by_later_runs():
    """What is decorated, or given to a block as a type, while a run goes on is declared from the next run on."""
    with recording() as recorded:
        with pt.instance():

            @pt.span
            def late(): ...

            late()
            with pt.span(pt.SpanType("given")), pt.span("risky", risk={"action_profile": {}}, template="x"):
                pass
        recorded.tracer.flush()
        assert [each["name"] for each in declared_by(recorded)["span_type_schemas"]] == ["span"]
        with pt.instance():
            pass
        recorded.tracer.flush()
        types = {each["name"]: each for each in declared_by(recorded)["span_type_schemas"]}
    name = "test_types_met_while_running_are_declared_by_later_runs.<locals>.late"
    assert sorted(types) == ["given", "risky", name]
    assert types["risky"]["template"] == "x"


def test_building_it_once():
    """Many short runs of one program share one schema object, also if they decorate the same closure each time."""

    def decorate():
        @pt.span
        def step(a: int, b: list[str]) -> dict[str, int]: ...

    decorate()
    schema = _schema.declared()
    decorate()
    assert _schema.declared() is schema
    assert len(schema.types) == 1


# -- what decorated functions say --------------------------------------------------------------------------


def wire_of(name):
    """Return the declared type called *name*, as it is sent."""
    return {each["name"]: each for each in _schema.declared().to_wire()["span_type_schemas"]}[name]


def inputs_of(name):
    return wire_of(name)["params_schema"]["properties"]["inputs"]


def test_a_function_declares_what_it_takes_and_gives():
    """Arguments are described where they are sent; definitions stand at the root, where references find them."""

    @pt.span("tool:find-nodes", template="{{ inputs.name }}", risk=RISK)
    def find(name: str, under: Tree | None = None) -> list[Tree]:
        """Find nodes.

        At length.
        """
        return [under]

    wire = wire_of("tool:find-nodes")
    assert (wire["title"], wire["description"], wire["template"]) == (
        "Find nodes",
        "Find nodes.",
        "{{ inputs.name }}",
    )
    assert wire["data_risk"]["action_profile"]["read_data"] == "allowed"
    assert wire["params_schema"]["properties"]["inputs"]["required"] == ["name"]
    assert "Tree" in wire["params_schema"]["$defs"]
    assert wire["result_schema"]["properties"]["output"]["anyOf"][0]["items"] == {"$ref": "#/$defs/Tree"}
    with recording() as recorded, pt.instance():
        find("a" * 20_000, Tree(children=[Tree()]))
        record = next(each for each in recorded._indoors.records() if isinstance(each, SpanRecord))
    sent = orjson.loads(orjson.dumps(span_details(record, Learned(), None)))
    jsonschema.validate(sent["payload"], wire["params_schema"])
    jsonschema.validate(sent["result_payload"], wire["result_schema"])


class Tree(BaseModel):
    children: list[Tree] = []


RISK = DataRisk(
    action_profile=ActionProfile(read_data="allowed"),
    params_data_categories=DataCategories(),
    result_data_categories=DataCategories(),
)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("search_the_docs", "Search the docs"),
        ("tool:web-search", "Web search"),
        ("test.<locals>.Agent.run_all", "Agent run all"),
        ("<lambda>", "Lambda"),
        ("__", "__"),
        ("élan", "Élan"),
    ],
)
def test_titles(name, title):
    """A title is made of the name, for people to read."""
    assert _schema.readable(name) == title


def test_a_given_type_goes_before():
    """What a `SpanType` says is declared as it says; the function adds what it leaves out."""
    given = pt.SpanType("tool:x", title="Own", params_schema={"type": "object", "title": "own"})

    @pt.span(given, template="not this", title="nor this")
    def step(a: int) -> str:
        """Text."""

    wire = wire_of("tool:x")
    assert inputs_of("tool:x") == {"type": "object", "title": "own"}
    assert (wire["title"], wire["description"], wire["template"]) == ("Own", "Text.", "not this")
    assert wire["result_schema"]["properties"]["output"]["anyOf"][0] == {"type": "string"}

    with recording(), pt.instance(), pt.span(given):
        pass
    assert wire_of("tool:x") == wire  # the block has not taken away what the function said
    bare = pt.SpanType("tool:bare", envelope=False)
    pt.span(bare)(step)
    assert wire_of("tool:bare")["params_schema"] == {"type": "object"}


def test_a_payload_in_place_of_the_arguments():
    """A decorator with a payload of its own does not describe the arguments: they are not sent."""

    @pt.span("x", payload={"a": 1})
    def step(b: int) -> int: ...

    assert inputs_of("x") == {"type": "object"}
    assert "properties" in wire_of("x")["result_schema"]


def test_a_fold_in_place_of_the_items():
    """What a fold makes of a generator's items is not described by their type."""

    @pt.span("x", fold=lambda so_far, item: item)
    def step(b: int) -> Iterator[str]:
        yield "a"

    assert wire_of("x")["result_schema"] == {"type": "object"}
    assert "properties" in inputs_of("x")


def test_arguments_that_are_not_sent():
    """What is left out of the record is not asked for by the schema."""

    @pt.span("marked")
    def one(a: int, b: Annotated[str, pt.Omit]) -> None: ...

    @pt.span("chosen", capture="a")
    def two(a: int, b: str) -> None: ...

    assert inputs_of("marked")["required"] == ["a"]
    assert "required" not in inputs_of("chosen")


def test_several_functions_of_one_type():
    """What each says holds for its own calls; the order in which they come makes no difference."""

    def one(a: int) -> Tree: ...
    def two(b: str) -> int: ...
    def many(number):
        def function(a: int): ...

        function.__qualname__ = f"function{number}"
        return function

    pt.span("x")(one), pt.span("x")(two)
    first = wire_of("x")
    _schema._declared.clear()
    pt.span("x")(two), pt.span("x")(one)
    assert wire_of("x") == first
    assert [each["required"] for each in inputs_of("x")["anyOf"]] == [["a"], ["b"]]
    for number in range(20):
        pt.span("x")(many(number))
    assert inputs_of("x") == {"type": "object"}
    assert len(_schema._declared["x"].said) < 10


def test_mistakes_in_what_is_said_about_it(caplog):
    """What cannot be declared is left out with a warning: decorating never raises."""
    for wrong in ({"template": 5}, {"risk": "high"}, {"risk": {"action_profile": object}}):

        @pt.span("x", **wrong)
        def step(): ...

    assert caplog.text.count("span(template=...)") == 3
    assert "template" not in wire_of("x")


def test_made_up_types_do_not_pile_up():
    """A program that decorates under new names for ever keeps a bounded number of them."""
    for number in range(1_100):
        pt.span(f"x{number}")(len)
    assert len(_schema._declared) == 1_000


def test_a_type_that_says_too_much():
    """A schema of megabytes would have the whole run refused: it is declared as any object."""

    def step(a: int): ...

    step.__annotations__["a"] = Literal[tuple(f"{number:0100}" for number in range(1_000))]
    pt.span("x")(step)
    assert inputs_of("x") == {"type": "object"}


def test_references_of_an_own_schema():
    """A schema of one's own that refers to itself still does so where it is sent."""
    own = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/part"}, "b": {"$ref": "#"}, "c": {"$ref": "#/properties/a"}},
        "$defs": {"part": {"type": "integer"}},
        "default": {"$ref": "#"},
    }
    params = pt.SpanType("x", params_schema=own).to_wire()["params_schema"]
    valid = jsonschema.Draft202012Validator(params).is_valid
    assert valid({"inputs": {"a": 1, "b": {"a": 1}, "c": 1}})
    for wrong in ({"a": "x"}, {"b": {"a": "x"}}, {"c": "x"}, {"b": {"b": {"c": "x"}}}):
        assert not valid({"inputs": wrong})
    assert params["properties"]["inputs"]["default"] == {"$ref": "#"}


def test_it_is_built_off_the_callers_thread(monkeypatch):
    """Neither decorating nor beginning a run builds a schema: the sender does, once."""
    threads = []
    build = _schema.DerivedType._build
    monkeypatch.setattr(
        _schema.DerivedType, "_build", lambda self: threads.append(threading.get_ident()) or build(self)
    )

    @pt.span
    def step(a: int): ...

    tracer = pt.configure(api_token="t" * 40, api_url="http://127.0.0.1:9", allow_http=True)
    for _ in range(3):
        with pt.instance():
            step(1)
    tracer.shutdown(5)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


PROGRAM = """
import os, sys, time
import prefactor_trace as pt
sys.path.insert(0, {folder!r})
for name in {modules}:
    __import__(name)
"""
MODULE = """
from __future__ import annotations
import enum, typing, dataclasses
import prefactor_trace as pt
from pydantic import BaseModel

class Item{0}(BaseModel):
    "An item."
    tags: typing.Set[str] = {{"b", "a"}}
    more: dict[str, Item{0}] = {{}}

@dataclasses.dataclass
class Order:
    items: list[Item{0}]
    kind: typing.Literal["x", "y"] = "x"

@pt.span
def search_{0}(query: str, order: Order | None = None) -> typing.Iterator[Item{0}]:
    "Search."

@pt.span("tool:shared")
def shared(a{0}: int) -> frozenset[typing.Literal["a", "b"]]: ...
"""


@pytest.fixture
def modules(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(MODULE.format(name))
    return tmp_path


def run(folder, modules, then, **environment):
    """Run a program that imports *modules* of *folder*. Return what it prints."""
    program = PROGRAM.format(folder=str(folder), modules=modules) + then
    variables = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PREFACTOR_STATE_DIR": str(folder / "state"),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 9), done.stderr
    return done.stdout


SAY = "from prefactor_trace import _schema; print(_schema.declared().to_wire()['external_identifier'])"


def test_the_identifier_is_the_same_in_every_process(modules):
    """Other hash seeds and another order of imports change nothing; any change of the code does."""
    first = run(modules, ["one", "two"], SAY, PYTHONHASHSEED="1")
    assert run(modules, ["two", "one"], SAY, PYTHONHASHSEED="2") == first
    changed = (modules / "one.py").read_text().replace("list[Itemone]", "tuple[Itemone, ...]")
    (modules / "one.py").write_text(changed.replace('"x", "y"', '"x", "z"'))
    assert run(modules, ["one", "two"], SAY, PYTHONHASHSEED="1") != first


def test_the_order_in_which_typing_has_seen_it(tmp_path):
    """Of two types that differ in their order alone, `typing` knows the one that was used first; it is one version."""
    for name, kinds in (("one", ("asc", "desc")), ("two", ("desc", "asc"))):
        (tmp_path / f"{name}.py").write_text(
            "import prefactor_trace as pt\nfrom typing import Literal, Optional, Union\n"
            f"@pt.span\ndef search_{name}(order: Optional[Literal[{kinds[0]!r}, {kinds[1]!r}]], "
            f"some: {'Union[int, str]' if name == 'one' else 'Union[str, int]'}): ...\n"
        )
    assert run(tmp_path, ["one", "two"], SAY) == run(tmp_path, ["two", "one"], SAY)


RUN = """
with pt.instance():
    one.search_one
    {then}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without advisory locks there is no spool")
def test_a_program_that_is_killed(modules):
    """The schema is on disk as soon as it is built; before, the types are, by name."""
    built = "from prefactor_trace import _schema\n    until = time.monotonic() + 20\n    while not _schema.declared().is_built and time.monotonic() < until: time.sleep(0.01)"
    for then, is_whole in (
        ("os._exit(9)", False),
        (f"{built}\n    pt._api._default._worker._step(5); os._exit(9)", True),
    ):
        run(modules, ["one"], f"import one\n{RUN.format(then=then)}")
        folder = Folder(modules / "state" / "spool")
        facts = [fact for name in folder.segment_sizes() for fact in folder.read(Segment(name)).facts()]
        wire = next(each for each in facts if isinstance(each, InstanceRegistered)).schema.to_wire()
        types = {each["name"]: each for each in wire["span_type_schemas"]}
        assert sorted(types) == ["search_one", "tool:shared"]
        inputs = types["search_one"]["params_schema"]["properties"]["inputs"]
        assert (inputs != {"type": "object"}) is is_whole
        purge(modules / "state" / "spool")


class TestQuality:
    def test_what_is_declared(self):
        """Each kind as it was written, once, in the order of the names; the last one of a name wins."""
        kinds = (
            pt.QualityType(
                "verdict", {"type": "object"}, title="Verdict", description="Good?", template="{{ x }}"
            ),
            pt.QualityType("tone"),
            pt.QualityType("tone", data_risk={"action_profile": {"read_data": "allowed"}}),
        )
        assert pt.Schema(quality=kinds).to_wire()["quality_schemas"] == [
            {
                "name": "tone",
                "schema": {"type": "object"},
                "data_risk": {
                    "action_profile": {"read_data": "allowed"},
                    "params_data_categories": {},
                    "result_data_categories": {},
                },
            },
            {
                "name": "verdict",
                "schema": {"type": "object"},
                "title": "Verdict",
                "description": "Good?",
                "template": "{{ x }}",
            },
        ]

    def test_without_any(self):
        """A schema without kinds of quality does not mention them, and is the version that it was before."""
        wire = pt.Schema((pt.SpanType("a"),)).to_wire()
        assert "quality_schemas" not in wire
        assert wire["external_identifier"] == _schema._content_hash(wire["span_type_schemas"])

    def test_they_are_part_of_the_version(self):
        """Any change of a kind makes another version; their order, and where a list was given, do not."""
        a, b = pt.QualityType("a"), pt.QualityType("b")
        identifiers = [
            pt.Schema(quality=quality).to_wire()["external_identifier"]
            for quality in ((a, b), [b, a], (a,), (a, pt.QualityType("b", title="B")), ())
        ]
        assert identifiers[0] == identifiers[1]
        assert len(set(identifiers)) == 4

    def test_runs_declare_them(self):
        """They are registered with each run of the tracer that has them, beside the types of decorated functions."""
        _schema.declare(pt.SpanType("step"))
        schema = pt.Schema(quality=(pt.QualityType("verdict"),))
        with recording(schema=schema) as recorded:
            with pt.instance():
                pass
            with recording() as other:
                with pt.instance():
                    pass
                other.tracer.flush()
                assert "quality_schemas" not in declared_by(other)
            with pt.instance():
                pass
            recorded.tracer.flush()
            wire = declared_by(recorded)
            both = [
                each.schema for each in recorded._exporter.records if isinstance(each, InstanceRegistered)
            ]

        assert [each["name"] for each in wire["quality_schemas"]] == ["verdict"]
        assert [each["name"] for each in wire["span_type_schemas"]] == ["step"]
        assert [each.quality for each in both] == [schema.quality] * 2
        assert _schema.declared(quality=schema.quality) is _schema.declared(quality=schema.quality)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": ""},
            {"name": 5},
            {"name": "half \udc80"},
            {"title": 5},
            {"template": b"x"},
            {"schema": {"x": {1, 2}}},
            {"schema": ["x"]},
            {"schema": "object"},
            {"data_risk": "high"},
        ],
    )
    def test_what_cannot_be_declared(self, wrong):
        """A kind that the platform could not read is refused where it is written."""
        with pytest.raises(pt.ConfigurationError, match="QualityType"):
            pt.QualityType(**{"name": "a", **wrong})

    @pytest.mark.parametrize("wrong", [pt.QualityType("a"), ("a",), (pt.SpanType("a"),), "a", None, 5])
    def test_what_is_no_kind(self, wrong):
        """What would cost every run its registration is refused where it is written."""
        with pytest.raises(pt.ConfigurationError, match="tuple of QualityType"):
            pt.Schema(quality=wrong)

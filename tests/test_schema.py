"""Schemas: what a run declares, the same in every process that runs the same code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import prefactor_trace as pt
from prefactor_trace import _schema
from prefactor_trace._record import InstanceRegistered
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
    """A name with half a surrogate pair, in a decorator or a block, is escaped; the program goes on."""

    @pt.span("half \udc80", title="\udc81")
    def step():
        """\udc82"""

    with recording() as recorded, pt.instance():
        step()
        with pt.span("\udc83", title="\udc84"):
            pass
        assert [span.type for span in recorded.spans] == ["half \\udc80", "\\udc83"]
        assert recorded.ledger.notes == {}


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


def test_the_identifier_is_the_same_in_every_process():
    """Two processes with other hash seeds and the same code name the version alike."""
    program = (
        "import prefactor_trace as pt; "
        "print(pt.Schema((pt.SpanType('a', title='A'), pt.SpanType('b'))).to_wire()['external_identifier'])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_an_empty_schema_has_a_type():
    """The platform refuses a run without any type, so there is always one."""
    assert [each["name"] for each in pt.Schema().to_wire()["span_type_schemas"]] == ["span"]


def test_configured_schema():
    """`configure(schema=...)` adds types, wins over decorated ones of the same name, and can name the version."""
    _schema.declare(pt.SpanType("a", title="decorated"))
    schema = _schema.declared((pt.SpanType("a", title="configured"),), "v7")

    assert schema.to_wire()["external_identifier"] == "v7"
    assert [each["title"] for each in schema.to_wire()["span_type_schemas"]] == ["configured"]


def test_types_met_while_running_are_declared_by_later_runs():
    """A type that a block has brought up is declared from the next run on, and made-up names do not pile up."""
    with recording() as recorded:
        with pt.instance(), pt.span("ad-hoc"):
            pass
        with pt.instance():
            for number in range(300):
                with pt.span(f"made-up-{number}"):
                    pass
        recorded.tracer.flush()
        assert "ad-hoc" in [each["name"] for each in declared_by(recorded)["span_type_schemas"]]
        assert len(_schema.declared().types) == 200


def test_building_it_once():
    """Many short runs of one program share one schema object."""
    _schema.declare(pt.SpanType("a"))
    assert _schema.declared() is _schema.declared()


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

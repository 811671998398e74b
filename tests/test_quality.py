"""Ratings of runs: what is declared and fits arrives, in order and once; all else is said, and never hurts the agent."""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import signal
import subprocess
import sys
import threading

import orjson
import pydantic
import pytest
from hostile_server import HostileServer, always

import prefactor_trace as pt
from prefactor_trace import _api, _guard, _inventory
from prefactor_trace._quality import Mistake, Qualities, Rating
from prefactor_trace._record import InstanceFinished, QualityRecorded
from prefactor_trace.server import LocalPlatform
from prefactor_trace.testing import RecordedQuality, recording

VERDICT = pt.QualityType(
    "verdict",
    schema={
        "type": "object",
        "required": ["score"],
        "properties": {
            "score": {"type": "number", "maximum": 1},
            "why": {"type": "string"},
            "parts": {"type": "array", "items": {"type": "integer"}},
        },
        "additionalProperties": False,
    },
)
TONE = pt.QualityType("tone")
SCHEMA = pt.Schema(quality=(VERDICT, TONE))


def rated(recorded):
    """What was recorded, as names and payloads."""
    return [(each.name, each.payload) for each in recorded.quality]


class TestRecording:
    def test_what_is_recorded(self):
        """Each call is a record of its run, in order; None takes a rating back."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("verdict", {"score": 0.5})
                with pt.span("judge"):
                    pt.current_instance().record_quality("tone", {"kind": True})
            run.record_quality("verdict", {"score": 1})
            run.record_quality("tone", None)

            assert recorded.quality == [
                RecordedQuality(run.id, "verdict", {"score": 0.5}),
                RecordedQuality(run.id, "tone", {"kind": True}),
                RecordedQuality(run.id, "verdict", {"score": 1}),
                RecordedQuality(run.id, "tone", None),
            ]
            assert recorded.ledger == (8, 8, {}, 0, {})

    def test_before_the_finish(self):
        """What is recorded inside the block leaves before the finish of the run."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("tone", {})
            recorded.tracer.flush()
            kinds = [type(each) for each in recorded._exporter.records]

        assert kinds.index(QualityRecorded) < kinds.index(InstanceFinished)

    def test_equal_ratings_are_two(self):
        """The same payload given twice has two keys: or what was recorded between them would stay for good."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                for good in (True, False, True):
                    run.record_quality("tone", {"good": good})
            keys = [each.key for each in recorded._indoors.records() if isinstance(each, QualityRecorded)]

        assert len(set(keys)) == 3
        assert all(8 <= len(each) <= 64 for each in keys)

    def test_copied_now(self):
        """Later changes are not seen."""
        payload = {"parts": [1]}
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("tone", payload)
                payload["parts"].append(2)
            assert rated(recorded) == [("tone", {"parts": [1]})]

    def test_what_becomes_an_object(self):
        """Dataclasses and pydantic models are data; their fields are what is checked and sent."""

        @dataclasses.dataclass
        class Plain:
            score: float
            why: str = "good"

        class Model(pydantic.BaseModel):
            score: float

        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("verdict", Plain(0.1))
                run.record_quality("verdict", Model(score=0.2))
            assert rated(recorded) == [
                ("verdict", {"score": 0.1, "why": "good"}),
                ("verdict", {"score": 0.2}),
            ]
            assert recorded.ledger.notes == {}

    def test_judged_before_secrets_are_taken_out(self):
        """What fits is recorded, without its secrets: a marker in the place of one is no reason to refuse it."""
        keys = pt.QualityType(
            "keys", schema={"type": "object", "properties": {"api_key": {"type": "string", "maxLength": 9}}}
        )
        with recording(schema=pt.Schema(quality=(keys,))) as recorded, pt.instance() as run:
            run.record_quality("keys", {"api_key": "q1w2e3"})
            run.record_quality("keys", {"api_key": 5})
        ((_, payload),) = rated(recorded)
        assert payload["api_key"]["$redacted"] == "api_key"
        assert "q1w2e3" not in str(payload)

    def test_long_texts(self):
        """A text longer than other recorded texts may be is kept whole: cut, it would not fit its schema."""
        with recording(schema=SCHEMA, max_output_length=10) as recorded:
            with pt.instance() as run:
                run.record_quality("verdict", {"score": 1, "why": "x" * 50_000})
            assert rated(recorded)[0][1]["why"] == "x" * 50_000

    def test_bounded(self):
        """A payload without end is cut; that it does not fit any more is said, and it is not sent."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("verdict", {"score": 1, "why": "x" * 5_000_000})
                run.record_quality("tone", {"all": "x" * 5_000_000})
            assert [name for name, _ in rated(recorded)] == ["tone"]
            assert len(orjson.dumps(rated(recorded)[0][1])) < 600_000
            assert sum(recorded.ledger.notes.values()) == 1

    def test_names_from_an_enum(self):
        """A member of a text enum is its text, where it is declared and where it is used."""

        class Kind(str, enum.Enum):
            VERDICT = "verdict"
            TONE = "tone"

        schema = pt.Schema(quality=(pt.QualityType(Kind.VERDICT), TONE))
        with recording(schema=schema) as recorded:
            with pt.instance() as run:
                for name in (Kind.VERDICT, Kind.TONE, "verdict"):
                    run.record_quality(name, {})
            assert [type(name) for name, _ in rated(recorded)] == [str] * 3
            assert [name for name, _ in rated(recorded)] == ["verdict", "tone", "verdict"]

    @pytest.mark.parametrize("settings", [{"disabled": True}, {"sample_rate": 0.0}])
    def test_not_recorded(self, settings):
        """A run that is not recorded is not rated either, and a wrong call changes nothing."""
        with recording(schema=SCHEMA, on_error="raise", **settings) as recorded:
            with pt.instance() as run:
                run.record_quality("tone", {})
                run.record_quality("undeclared", 5)
            assert recorded.ledger == (0, 0, {}, 0, {})

    def test_after_shutdown(self):
        """What comes too late is counted."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                pass
            recorded.tracer.shutdown()
            run.record_quality("tone", {})
            assert recorded.ledger[:4] == (4, 3, {"after_shutdown": 1}, 0)

    def test_many_threads(self):
        """Threads may rate one run at once; none is lost."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:

                def work():
                    for number in range(100):
                        run.record_quality("verdict", {"score": number / 100})

                threads = [threading.Thread(target=work) for _ in range(8)]
                for each in threads:
                    each.start()
                for each in threads:
                    each.join()
            assert len(recorded.quality) == 800
            assert recorded.ledger[:4] == (803, 803, {}, 0)


WRONG = [
    ("vertict", {"score": 1}, "the name is not declared", "'vertict' is not declared; declared are: 'tone', 'verdict'"),
    (5, {}, "the name is no text", "as text"),
    ("tone", 5, "the payload is no object", "it is of type int"),
    ("tone", "good", "the payload is no object", "it is of type str"),
    ("tone", [("a", 1)], "the payload is no object", "it is of type list"),
    ("tone", object(), "the payload is no object", "it is of type object"),
    ("verdict", {}, "the payload does not fit its schema", 'at $: "score" is a required property'),
    ("verdict", {"score": "high"}, "the payload does not fit its schema", 'at $.score: the value is not of type "number"'),
    ("verdict", {"score": 2}, "the payload does not fit its schema", "at $.score: the value is greater than"),
    ("verdict", {"score": float("nan")}, "the payload does not fit its schema", "at $.score: "),
    ("verdict", {"score": 1, "parts": [1, "x"]}, "the payload does not fit its schema", "at $.parts[1]: "),
    ("verdict", {"score": 1, "other": 1}, "the payload does not fit its schema", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "payload", "kind", "message"), WRONG, ids=range(len(WRONG)))
class TestMistakes:
    def test_logged_and_counted(self, name, payload, kind, message, caplog):
        """By default a wrong call is counted each time, logged once, and the run goes on without it."""
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                for _ in range(3):
                    run.record_quality(name, payload)
            assert rated(recorded) == []
            assert recorded.ledger == (3, 3, {}, 0, {f"could not record a quality: {kind}": 3})
        (said,) = [each.getMessage() for each in caplog.records]
        assert said.startswith("could not record a quality: ")
        assert message in said

    def test_raised(self, name, payload, kind, message):
        """With `on_error="raise"` it raises where it stands, and says what to do."""
        with recording(schema=SCHEMA, on_error="raise") as recorded:
            with pytest.raises(pt.UsageError) as caught, pt.instance() as run:
                run.record_quality(name, payload)
            assert message in str(caught.value)
            assert caught.value.__context__ is None
            assert rated(recorded) == []
            assert recorded.instances[0].status == "failed"
            assert recorded.ledger.notes == {}


class TestJudging:
    def test_no_value_is_told(self, caplog):
        """What the payload held stands neither in the log nor in the error."""
        with recording(schema=SCHEMA), pt.instance() as run:
            run.record_quality("verdict", {"score": "secret-4711"})
        assert "secret-4711" not in caplog.text
        assert "at $.score" in caplog.text

    def test_no_code_of_the_user(self):
        """Neither the name nor the payload is asked to compare, to hash, to be true or to be text."""
        asked = []

        class Evil:
            def __getattribute__(self, name):
                asked.append(name)
                raise SystemExit

            __eq__ = __hash__ = __bool__ = __str__ = __repr__ = __iter__ = __len__ = __getattribute__

        class Text(str):  # noqa: SLOT000 - as users write it
            __hash__ = __eq__ = __str__ = __repr__ = __len__ = Evil.__getattribute__

        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality(Evil(), Evil())
                run.record_quality("tone", Evil())
                run.record_quality(Text("tone"), {"a": Evil(), "b": Text("c")})
                run.record_quality(Text("unknown"), {})
            assert [name for name, _ in rated(recorded)] == ["tone"]
        assert asked == []

    @pytest.mark.parametrize("where", ["server", "file"])
    def test_no_reference_is_followed(self, where, tmp_path, caplog):
        """A schema that refers to elsewhere is not checked against: nothing is read or asked; the log says so once."""
        file = tmp_path / "schema.json"
        file.write_text('{"type": "object", "required": ["x"]}')
        with HostileServer(always(200, b'{"required":["x"]}')) as server:
            elsewhere = f"{server.url}/schema.json" if where == "server" else file.as_uri()
            schema = pt.Schema(quality=(pt.QualityType("far", {"$ref": elsewhere}),))
            with recording(schema=schema, on_error="raise") as recorded:
                with pt.instance() as run:
                    run.record_quality("far", {"a": 1})
                    run.record_quality("far", {"a": 2})
                assert rated(recorded) == [("far", {"a": 1}), ("far", {"a": 2})]
            assert server.connections == 0
        assert len(caplog.records) == 1

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "nonsense"},
            {"$ref": "#/$defs/nothing"},
            {"pattern": "("},
            {"$schema": "https://example.com/none"},
            {"$ref": "#"},
            {"allOf": [{"$ref": "#"}]},
        ],
        ids=str,
    )
    def test_a_schema_that_cannot_be_used(self, schema, caplog):
        """The platform may know better: what cannot be checked is sent."""
        with recording(
            schema=pt.Schema(quality=(pt.QualityType("odd", schema),)), on_error="raise"
        ) as recorded:
            with pt.instance() as run:
                run.record_quality("odd", {"a": 1})
            assert rated(recorded) == [("odd", {"a": 1})]
        assert len(caplog.records) <= 1

    def test_without_the_package(self, monkeypatch, caplog):
        """Without `jsonschema-rs` names are still checked, payloads are sent as they are, and the log says so."""
        monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
        with recording(schema=SCHEMA) as recorded:
            with pt.instance() as run:
                run.record_quality("verdict", {"score": "high"})
                run.record_quality("verdict", {"score": "higher"})
                run.record_quality("undeclared", {})
            assert [name for name, _ in rated(recorded)] == ["verdict", "verdict"]
        assert [each.levelno for each in caplog.records] == [logging.WARNING, logging.ERROR]
        assert "jsonschema-rs is not installed" in caplog.text

    def test_loaded_with_the_first_payload(self):
        """Whoever rates nothing does not load the package that checks."""
        program = (
            "import sys, prefactor_trace as pt\n"
            "pt.configure(schema=pt.Schema(quality=(pt.QualityType('a', {'type': 'object', 'required': ['x']}),)),"
            " spool=False)\n"
            "with pt.instance() as run: print('jsonschema_rs' in sys.modules)\n"
            "run.record_quality('a', {'x': 1}); print('jsonschema_rs' in sys.modules)"
        )
        assert run_program(program).stdout.split() == ["False", "True"]

    def test_an_error_of_ours(self, monkeypatch):
        """If we fail, the agent does not notice, in either mode."""
        monkeypatch.setattr(_guard, "strict", False)
        with recording(schema=SCHEMA, on_error="raise") as recorded, pt.instance() as run:
            recorded.tracer.qualities = None
            run.record_quality("tone", {})
            assert recorded.ledger.notes == {"internal error: record a quality": 1}

    def test_of_what_was_given(self):
        """The judge's answer is a value: what is recorded, or what is wrong."""
        qualities = Qualities((VERDICT,))
        limits = recording_limits()

        assert qualities.rate("verdict", {"score": 1}, limits) == Rating("verdict", b'{"score":1}')
        assert qualities.rate("verdict", None, limits) == Rating("verdict", None)
        assert isinstance(qualities.rate("other", None, limits), Mistake)
        assert "declared are: none" in Qualities(()).rate("other", {}, limits).message
        many = Qualities(pt.QualityType(f"n{number:02}") for number in range(50)).rate(
            "x" * 10_000, {}, limits
        )
        assert len(many.message) < 500


def recording_limits():
    with recording() as recorded:
        return recorded.tracer.output_limits


def run_program(program, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PREFACTOR_STATE_DIR": os.environ["PREFACTOR_STATE_DIR"],
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- against the local platform ----------------------------------------------------------------------------


@pytest.fixture
def platform(tmp_path):
    with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path / "state") as platform:
        yield platform


def stored(platform):
    """Return all instances of the platform, oldest first."""
    found = [
        platform.store.instance(each["id"])
        for agent in platform.store.agents()
        for each in platform.store.instances(agent["id"])[0]
    ]
    return sorted(found, key=lambda each: each["id"])


class TestOnThePlatform:
    def test_during_and_after_the_run(self, platform):
        """What was recorded is stored, the last one of a name wins, None removes, and the ledger adds up."""
        pt.configure(schema=SCHEMA)
        with pt.instance() as run:
            run.record_quality("verdict", {"score": 0.1})
            with pt.span("step"):
                run.record_quality("tone", {"kind": True})
            run.record_quality("verdict", {"score": 0.2})
        pt.flush()
        run.record_quality("verdict", {"score": 0.3})
        run.record_quality("tone", None)
        ledger = pt.flush()

        assert ledger == (9, 9, {}, 0, {})
        (instance,) = stored(platform)
        assert (instance["id"], instance["status"]) == (run.id, "complete")
        assert instance["quality_payloads"] == {"verdict": {"score": 0.3}}

    def test_what_is_declared(self, platform):
        """The platform has each kind as it was written, null and all, and a schema that it can read."""
        schema = {"type": ["object", "null"], "default": None, "properties": {"x": {"enum": [None, 1]}}}
        kind = pt.QualityType(
            "verdict",
            schema=schema,
            title="Verdict",
            description="Was it good?",
            template="{{ x }}",
            data_risk={"params_data_categories": {"classification": "public"}},
        )
        pt.configure(schema=pt.Schema((pt.SpanType("step"),), quality=(kind,)))
        with pt.instance():
            pass
        pt.flush()
        (version,) = platform.store.schema_versions(stored(platform)[0]["agent_id"])
        declared = version["quality_schemas"]["verdict"]

        assert declared["schema"] == schema
        assert declared["schema_validation"]["status"] == "success"
        assert [declared[name] for name in ("title", "description", "template")] == [
            "Verdict",
            "Was it good?",
            "{{ x }}",
        ]
        assert declared["data_risk"]["params_data_categories"]["classification"] == "public"

    def test_refused_alone(self, platform, tmp_path):
        """What the platform will not have is counted and kept for people; the run is finished, and not held up."""
        wide = pt.Schema(external_identifier="v1", quality=(TONE,))
        pt.configure(schema=pt.Schema(external_identifier="v1")).shutdown()
        first = pt.configure(schema=pt.Schema(external_identifier="v1"))
        with pt.instance():
            pass
        first.shutdown()
        # The platform keeps a version as it was first declared: without qualities.
        pt.configure(schema=wide)
        with pt.instance() as run:
            run.record_quality("tone", {"kind": True})
        pt.flush()
        run.record_quality("tone", {"kind": False})
        ledger = pt.flush()

        assert ledger[:4] == (5, 3, {"refused: validation_errors": 2}, 0)
        assert [each["status"] for each in stored(platform)] == ["complete"] * 2
        letters = (tmp_path / "state" / "spool" / "rejected.jsonl").read_text().splitlines()
        assert [orjson.loads(each)["record"]["payload"]["kind"] for each in letters] == [True, False]

    def test_before_there_is_a_platform(self, tmp_path):
        """Recorded while nobody listens, delivered when somebody does: by the same process."""
        tracer = pt.configure(schema=SCHEMA)
        with pt.instance() as run:
            run.record_quality("tone", {"number": 1})
        run.record_quality("tone", {"number": 2})
        assert pt.flush(0.2).pending == 5
        with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path / "state") as platform:
            assert pt.flush()[:4] == (5, 5, {}, 0)
            assert [each["quality_payloads"] for each in stored(platform)] == [{"tone": {"number": 2}}]
        tracer.shutdown()

    def test_killed(self, platform, tmp_path):
        """What a process has recorded when it is killed, the next one delivers: a run that goes on, and one that is over."""
        program = (
            "import os, signal, prefactor_trace as pt\n"
            "pt.configure(batch_delay=60.0, schema=pt.Schema(quality=(pt.QualityType('tone'),)))\n"
            "with pt.instance() as over:\n"
            "    over.record_quality('tone', {'number': 1})\n"
            "over.record_quality('tone', {'number': 2})\n"
            "with pt.instance() as run:\n"
            "    run.record_quality('tone', {'number': 3})\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = run_program(program)
        assert done.returncode == -signal.SIGKILL, done.stderr
        waiting = sum(each.records for each in _inventory.survey(tmp_path / "state" / "spool"))
        ledger = pt.configure().take_over(10)

        assert waiting == 8
        assert ledger[:4] == (9, 9, {}, 0)
        assert [(each["status"], each["quality_payloads"]) for each in stored(platform)] == [
            ("complete", {"tone": {"number": 2}}),
            ("failed", {"tone": {"number": 3}}),
        ]
        assert list((tmp_path / "state" / "spool").glob("*.seg")) == []

    def test_killed_after_the_run_was_delivered(self, platform, tmp_path):
        """A rating alone, of a run that the platform has already, needs nothing else to be adopted."""
        program = (
            "import os, signal, prefactor_trace as pt\n"
            "pt.configure(batch_delay=60.0, schema=pt.Schema(quality=(pt.QualityType('tone'),)))\n"
            "with pt.instance() as run: pass\n"
            "assert pt.flush().pending == 0\n"
            "run.record_quality('tone', {'late': True})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = run_program(program)
        assert done.returncode == -signal.SIGKILL, done.stderr
        ledger = pt.configure().take_over(10)

        assert ledger[:4] == (1, 1, {}, 0)
        assert [(each["status"], each["quality_payloads"]) for each in stored(platform)] == [
            ("complete", {"tone": {"late": True}})
        ]

    def test_a_forked_child(self, platform):
        """A child rates the run it was born into; its rating is delivered, and the run is its parent's to finish."""
        program = (
            "import os, prefactor_trace as pt\n"
            "pt.configure(schema=pt.Schema(quality=(pt.QualityType('tone'), pt.QualityType('verdict'))))\n"
            "with pt.instance() as run:\n"
            "    run.record_quality('tone', {'parent': True})\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        run.record_quality('verdict', {'child': True})\n"
            "        pt.shutdown(5)\n"
            "        os._exit(0)\n"
            "    os.waitpid(child, 0)\n"
            "print(pt.flush())\n"
        )
        done = run_program(program)
        assert done.returncode == 0, done.stderr

        assert [(each["status"], each["quality_payloads"]) for each in stored(platform)] == [
            ("complete", {"tone": {"parent": True}, "verdict": {"child": True}})
        ]

    def test_terminated(self, platform):
        """A run that somebody has stopped may be rated all the same."""
        pt.configure(schema=SCHEMA)
        with pytest.raises(pt.InstanceTerminated), pt.instance() as run:
            pt.flush()
            platform.store.terminate(run.id, "policy")
            run.record_quality("tone", {"stopped": True})
            pt.flush()
            run.check()
        run.record_quality("verdict", {"score": 0})

        assert pt.flush()[1:4] == (4, {}, 0)
        (instance,) = stored(platform)
        assert instance["status"] == "terminated"
        assert instance["quality_payloads"] == {"tone": {"stopped": True}, "verdict": {"score": 0}}


def test_on_error_is_one_of_two(monkeypatch):
    """The knob takes two words, from the environment as well."""
    with pytest.raises(pt.ConfigurationError, match="on_error must be one of log, raise"):
        pt.configure(on_error="ignore")
    monkeypatch.setenv("PREFACTOR_ON_ERROR", " Raise ")
    assert pt.configure().settings.on_error == "raise"
    _api.set_default(None).shutdown(0)

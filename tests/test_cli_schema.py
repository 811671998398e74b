"""`prefactor-trace schema`: what a program declares is written as JSON, and the program does nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


COMMAND = [sys.executable, "-c", "from prefactor_trace.cli import main; main()"]
PROGRAM = '''
import atexit, functools, os
import prefactor_trace as pt

print("printed on import")
os.write(1, b"written on import")
atexit.register(print, "printed at the end")
tracer = pt.configure(schema=pt.Schema((pt.SpanType("agent:plan"),)), disabled=False, spool_dir="spool")
plan = pt.SpanType("plan")

@pt.span
def search(query: str) -> list[str]:
    """Ask the index."""

def add(a: int, b: int): ...

add_one = pt.span("tool:add-one")(functools.partial(add, 1))
first = pt.span("tool:first")(add)
second = pt.instance(pt.span("tool:second")(add))

class Tool:
    @pt.span("tool:fetch")
    def fetch(self, url: str): ...

    def other(self): ...

own = pt.Schema((pt.SpanType("own"),), "v7")

with pt.instance():
    search("x")
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "agent.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("raise SystemExit('no')")
    return tmp_path


def schema(folder, *arguments):
    environment = {"PREFACTOR_STATE_DIR": str(folder / "state"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, "schema", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def names(done):
    assert done.returncode == 0, done.stderr
    return [each["name"] for each in json.loads(done.stdout)["span_type_schemas"]]


def said_of(folder, *targets):
    """Return what is said of each target: the names of the types, or the mistake; all in one process."""
    program = (
        "import json, sys\n"
        "from prefactor_trace._program import schema_of\n"
        "from prefactor_trace.errors import ConfigurationError\n"
        "for target in sys.argv[1:]:\n"
        "    try: said = [each['name'] for each in schema_of(target).to_wire()['span_type_schemas']]\n"
        "    except ConfigurationError as error: said = str(error)\n"
        "    print(json.dumps(said), file=sys.stderr)\n"
    )
    environment = {"PREFACTOR_STATE_DIR": str(folder / "state"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *targets]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_module(folder):
    """All types of a module, and what it configures; what it prints goes elsewhere, and nothing is recorded."""
    done = schema(folder, "agent")

    assert names(done) == ["agent:plan", "search", "tool:add-one", "tool:fetch", "tool:first", "tool:second"]
    search = json.loads(done.stdout)["span_type_schemas"][1]
    assert (search["title"], search["description"]) == ("Search", "Ask the index.")
    assert search["params_schema"]["properties"]["inputs"]["required"] == ["query"]
    assert done.stdout.count("\n") == 1
    for text in ("printed on import", "written on import", "printed at the end"):
        assert text in done.stderr
    assert not (folder / "spool").exists()
    assert not (folder / "state").exists()


def test_a_file(folder):
    """A file is as good as a module, and it can be laid out for people."""
    done = schema(folder, "agent.py:Tool", "--pretty")
    assert names(done) == ["tool:fetch"]
    assert done.stdout.startswith("{\n  ")


def test_a_name_in_it(folder):
    """A function's, a method's, a class's, a schema's, a tracer's types alone."""
    targets = ("search", "Tool", "Tool.fetch", "own", "plan", "tracer")
    assert said_of(folder, *(f"agent:{each}" for each in targets)) == [
        ["search"],
        ["tool:fetch"],
        ["tool:fetch"],
        ["own"],
        ["plan"],
        ["agent:plan", "search", "tool:add-one", "tool:fetch", "tool:first", "tool:second"],
    ]


def test_the_type_of_this_one(folder):
    """Of a partial, and of a function that is decorated twice under two names, it is the type of what is named."""
    assert said_of(folder, "agent:add_one", "agent:first", "agent:second") == [
        ["tool:add-one"],
        ["tool:first"],
        ["tool:second"],
    ]


def test_mistakes(folder):
    """A mistake is told in a line that says what to do."""
    targets = ("nowhere", "nowhere.py", "broken", "agent:nothing", "agent:Tool.other")
    said = said_of(folder, *targets)
    assert said[0].startswith("nowhere cannot be imported: ModuleNotFoundError")
    assert said[1:4] == [
        "there is no file nowhere.py",
        "broken cannot be imported: SystemExit: no",
        "agent has no nothing",
    ]
    assert said[4].startswith("agent:Tool.other declares no span type: it takes @span")


def test_a_mistake_ends_with_an_error(folder):
    """The exit code is 1, there is nothing on standard output, and no traceback."""
    done = schema(folder, "broken")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "broken cannot be imported: SystemExit: no\n"


def test_it_is_what_is_registered(folder):
    """The command and a run in another process say the same, to the letter of the identifier."""
    program = PROGRAM.partition("with pt.instance")[0] + (
        "from prefactor_trace.exporters import FileExporter\n"
        "pt.configure(schema=pt.Schema((pt.SpanType('agent:plan'),)), exporter=FileExporter('out.jsonl'))\n"
        "with pt.instance(): pass\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    (folder / "agent.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "agent.py"], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    registered = json.loads((folder / "out.jsonl").read_text().splitlines()[0])["agent_schema_version"]
    assert json.loads(schema(folder, "agent").stdout) == registered

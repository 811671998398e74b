"""The README is true: every block runs, every command exists, the table is the settings."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prefactor_trace._settings import Settings
from prefactor_trace.server import LocalPlatform

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_block_is_of_a_known_kind():
    """Blocks are Python, shell or pictures, so none escapes the tests below."""
    assert {kind for kind, _ in BLOCKS} == {"python", "sh", "text"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_python_blocks_run(tmp_path):
    """All Python blocks, one after the other, run as a stranger would run them, and what they record is stored."""
    with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path) as platform:
        # The tracer has found the platform by itself before these are set; they are for the client.
        known = {"PREFACTOR_API_URL": platform.url, "PREFACTOR_API_TOKEN": platform.token}
        # The recipe for Celery, which need not be installed, is run by test_propagation.
        program = "\n\n".join(text for kind, text in BLOCKS if kind == "python" and "celery" not in text)
        assert program.count("\nconfig = Http") == 1
        program = program.replace("\nconfig = Http", f"\nos.environ.update({known})\nconfig = Http")
        program += "\n\nprint(tracer.shutdown())\n"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env={"PREFACTOR_STATE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"complete {platform.url}/instances/" in done.stdout
        agents = {agent["name"]: agent for agent in platform.store.agents()}
        assert set(agents) >= {"support-bot", "crawler", "Agent"}
        (run,), _ = platform.store.instances(agents["crawler"]["id"])
        assert [span["payload"]["name"] for span in platform.store.spans(run["id"])[0]] == [
            "Fetch a page"
        ] * 2


def test_shell_commands_exist():
    """Every command of a shell block is a target of the Makefile, an extra of the package, or a command of ours."""
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line]
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, command
        elif words[0] == "pip":
            assert command == "pip install '.[local]'"
            assert re.search(r"^local = \[", project, re.MULTILINE)
        else:
            assert f'{words[0]} = "prefactor_trace.cli:main"' in project
            own = words[1:2] if words[1] == "run" else words[1:]  # the rest is the program's
            shown = subprocess.run(
                [sys.executable, "-c", "from prefactor_trace.cli import main; main()", *own, "--help"],
                capture_output=True,
                check=True,
                env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
            )
            assert words[1].encode() in shown.stdout
    assert [command.split()[0] for command in commands].count("make") == 2


# Knobs whose defaults depend on the machine, or that belong to those.
LATER = ("log_level", "state_dir", "spool", "spool_dir")


def shown(value):
    """Write a default as the table does."""
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_settings_table_is_the_settings():
    """Each knob stands in the table once, with its variable and its default, and nothing else does."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \|", README, re.MULTILINE)
    knobs = [
        (knob.name, knob.metadata["env"], shown(knob.default))
        for knob in dataclasses.fields(Settings)
        if "env" in knob.metadata and knob.name not in LATER
    ]
    assert rows[: len(knobs)] == knobs
    assert tuple(row[0] for row in rows[len(knobs) :]) == LATER


@pytest.mark.parametrize("target", re.findall(r"`make (\w+)", README))
def test_make_targets_exist(target):
    """Whatever the README tells to make can be made."""
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()

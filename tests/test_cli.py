"""`prefactor-trace spool`: what waits is shown, sent, written out or thrown away, and no token is ever shown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import hostile_server
import pytest
from hostile_server import HostileServer
from patience import within

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from prefactor_trace.server import LocalPlatform

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="without advisory locks there is no spool")

COMMAND = [sys.executable, "-c", "from prefactor_trace.cli import main; main()"]
TOKEN = "a-token-that-nobody-must-see"
AGENT = """
import sys, time
import prefactor_trace as pt

with pt.instance(agent_name="agent"):
    for number in range(2):
        with pt.span("step", payload={"number": number}):
            pass
"""
RUNNING = AGENT + "    print('ready', flush=True)\n    time.sleep(60)\n"
RECORDS = 5  # registered, started, finished, and two spans


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def environment(state, **more):
    own = {"PREFACTOR_STATE_DIR": str(state), "PYTHONPATH": os.pathsep.join(sys.path)}
    return {"PATH": os.environ.get("PATH", ""), **own, **more}


def record(state, **more):
    """Let a program record a run and end. Return its process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT], env=environment(state, **more), stderr=subprocess.DEVNULL
    )
    assert process.wait(30) == 0
    return process.pid


@contextlib.contextmanager
def running(state, **more):
    """Let a program record a run without its end, and go on, for the block; it is for the block to end it."""
    with subprocess.Popen(
        [sys.executable, "-c", RUNNING],
        env=environment(state, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process


def spool(state, *arguments, answer=None, **more):
    """Run `prefactor-trace spool`; no token may be in what it says."""
    done = subprocess.run(
        [*COMMAND, "spool", *arguments],
        env=environment(state, **more),
        input=answer or "",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def segments(state):
    return sorted((state / "spool").glob("*.seg"))


def words(text):
    return re.sub(r"\s+", " ", text).strip()


@pytest.fixture
def platform(tmp_path):
    with LocalPlatform(tmp_path / "db") as running:
        yield running


@pytest.fixture
def there(platform):
    """The variables of a program whose platform can be reached."""
    return {"PREFACTOR_API_URL": platform.url, "PREFACTOR_API_TOKEN": platform.token}


class TestList:
    def test_nothing_waits(self, state):
        """With nothing there, and with no folder at all, one sentence says so, and no folder is made."""
        done = spool(state, "list")
        assert (done.returncode, done.stderr) == (0, "")
        assert words(done.stdout) == f"nothing waits in {state}/spool"
        assert not state.exists()

    def test_what_an_ended_program_left(self, state):
        """A line for each process: since when, which, for whom, and how much."""
        pid = record(state)
        (segment,) = segments(state)

        done = spool(state, "list")

        assert (done.returncode, done.stderr) == (0, "")
        head, line = done.stdout.splitlines()
        assert head.split() == ["since", "process", "runs", "records", "bytes", "destination"]
        size = f"{segment.stat().st_size:,}"
        assert line.split()[2:] == [str(pid), "ended", "1", str(RECORDS), size, "local"]

    def test_a_running_program(self, state):
        """What belongs to a program that is still running is shown as such."""
        with running(state) as process:
            done = spool(state, "list")
            process.kill()
        assert f"{process.pid} running 1 4 " in words(done.stdout)

    def test_destination_without_token(self, state):
        """A destination is an address and a digest; the token is nowhere in the spool."""
        url = f"http://127.0.0.1:{hostile_server.refused_port()}"
        record(state, PREFACTOR_API_URL=url, PREFACTOR_API_TOKEN=TOKEN, PREFACTOR_EXIT_TIMEOUT="0")
        done = spool(state, "list", PREFACTOR_API_TOKEN=TOKEN)
        assert re.search(rf" {re.escape(url)} [0-9a-f]{{16}}\n", done.stdout)
        for file in (state / "spool").iterdir():
            assert TOKEN.encode() not in file.read_bytes()

    def test_after_a_kill(self, state):
        """A program that was killed left what it had recorded until then."""
        with running(state) as process:
            process.send_signal(signal.SIGKILL)
        assert f"{process.pid} ended 1 4 " in words(spool(state, "list").stdout)


class TestSend:
    def test_delivers_what_waits(self, state, platform, there):
        """What programs left is delivered, counted, and gone from the spool."""
        for _ in range(2):
            record(state, **there, PREFACTOR_EXIT_TIMEOUT="0", PREFACTOR_BATCH_DELAY="60")
        assert len(segments(state)) == 2

        done = spool(state, "send", **there)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{2 * RECORDS} records delivered\n"
        assert segments(state) == []
        assert platform.token not in done.stdout + done.stderr
        assert "nothing waits" in spool(state, "list", **there).stdout

    def test_nothing_waits(self, state, there):
        """With nothing there it says so, at once."""
        began = time.monotonic()
        done = spool(state, "send", **there)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0 records delivered\n", "")
        assert time.monotonic() - began < within(5)

    def test_nowhere(self, state):
        """Without a platform nothing can be sent: exit code 1, how many wait, and that without the whole minute."""
        record(state)
        began = time.monotonic()
        done = spool(state, "send")
        assert done.returncode == 1
        assert done.stdout == "0 records delivered\n"
        assert f"{RECORDS} records still wait" in done.stderr
        assert time.monotonic() - began < within(10)
        assert len(segments(state)) == 1

    @pytest.mark.parametrize("name", ["refused", "silent", "token refused"])
    def test_a_platform_in_trouble(self, state, name):
        """Whatever the platform does, it ends in time, says how many wait, and all of them do."""
        manner = hostile_server.always(401, b"{}") if "token" in name else hostile_server.never_answering
        with HostileServer(manner) as server:
            url = f"http://127.0.0.1:{hostile_server.refused_port()}" if name == "refused" else server.url
            there = {"PREFACTOR_API_URL": url, "PREFACTOR_API_TOKEN": TOKEN, "PREFACTOR_REQUEST_TIMEOUT": "1"}
            record(state, **there, PREFACTOR_EXIT_TIMEOUT="0")
            began = time.monotonic()
            done = spool(state, "send", "--timeout", "3", **there)
        assert time.monotonic() - began < within(6)
        assert done.returncode == 1
        assert done.stdout == "0 records delivered\n"
        assert f"{RECORDS} records still wait" in done.stderr

    def test_other_destinations(self, state, there):
        """What waits for somebody else is neither sent nor counted."""
        record(state)
        done = spool(state, "send", **there)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0 records delivered\n", "")
        assert len(segments(state)) == 1

    def test_not_from_the_living(self, state, there):
        """What a running program holds is its own to send."""
        with running(state, **there, PREFACTOR_BATCH_DELAY="60") as process:
            done = spool(state, "send", "--timeout", "2", **there)
            process.kill()
        assert done.stdout == "0 records delivered\n"
        assert len(segments(state)) == 1

    def test_spool_switched_off(self, state):
        """PREFACTOR_SPOOL=off is about what is recorded: what waits is sent all the same."""
        record(state)
        with LocalPlatform(state / "db", state_dir=state):
            done = spool(state, "send", "--timeout", "5", PREFACTOR_SPOOL="off")
        assert (done.returncode, done.stdout) == (0, f"{RECORDS} records delivered\n")


class TestExport:
    def test_nothing_waits(self, state):
        """With nothing there, there is nothing to write."""
        done = spool(state, "export")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_lines(self, state):
        """One object a line, the items of the bulk call; nothing is taken away by it."""
        record(state)
        lines = [json.loads(line) for line in spool(state, "export").stdout.splitlines()]
        assert [line["_type"] for line in lines] == [
            "agent_instances/register",
            "agent_instances/start",
            "agent_spans/create",
            "agent_spans/create",
            "agent_instances/finish",
        ]
        assert [line["details"]["payload"]["inputs"] for line in lines[2:4]] == [{"number": 0}, {"number": 1}]
        assert len(segments(state)) == 1

    def test_reader_goes_away(self, state):
        """Piped into something that reads one line, it ends without a traceback."""
        for _ in range(3):
            record(state)
        process = subprocess.Popen(
            [*COMMAND, "spool", "export"],
            env=environment(state),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()
        assert b"Traceback" not in process.communicate(timeout=30)[1]


class TestPurge:
    @pytest.mark.parametrize(
        ("answer", "is_gone"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)]
    )
    def test_asks(self, state, answer, is_gone):
        """Only a yes throws anything away."""
        record(state)
        done = spool(state, "purge", answer=answer)
        assert f"Throw away what waits in {state}/spool?" in done.stdout
        assert (segments(state) == []) is is_gone
        assert (done.returncode == 0) is is_gone
        assert ("bytes removed" in done.stdout) is is_gone

    def test_does_not_ask(self, state):
        """With --yes it says how much that was."""
        record(state)
        (segment,) = segments(state)
        size = segment.stat().st_size
        done = spool(state, "purge", "--yes")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{size:,} bytes removed\n", "")
        assert [each.name for each in (state / "spool").iterdir()] == []

    def test_nothing_waits(self, state):
        """With nothing there it removes nothing."""
        assert spool(state, "purge", "--yes").stdout == "0 bytes removed\n"

    def test_not_the_living(self, state):
        """What a running program holds stays."""
        with running(state) as process:
            assert spool(state, "purge", "--yes").stdout == "0 bytes removed\n"
            assert len(segments(state)) == 1
            process.kill()


def test_a_bad_setting(state):
    """A variable that cannot work is one sentence."""
    done = spool(state, "list", PREFACTOR_API_URL="nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("PREFACTOR_API_URL ")


def test_help(state):
    """Without a command there is help, which names all of them."""
    done = spool(state)
    assert [
        each for each in ("list", "send", "export", "purge") if each not in done.stdout + done.stderr
    ] == []

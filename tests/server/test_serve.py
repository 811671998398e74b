"""Starting and stopping: in a thread for tests, from the command line for people."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from patience import within
from starlette.applications import Starlette

from prefactor_trace import _local
from prefactor_trace._version import __version__
from prefactor_trace.server import LocalPlatform, _serve

COMMAND = [sys.executable, "-c", "from prefactor_trace.cli import main; main()"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False, **options
    )


class TestLocalPlatform:
    def test_starts_and_stops(self, tmp_path, speak):
        """It answers inside the block, and leaves no thread, no socket and no open file behind."""
        before = set(threading.enumerate())
        platform = LocalPlatform(tmp_path / "db")
        for _ in range(2):
            with platform, speak(platform) as api:
                api.get("ping")
                assert (
                    httpx.get(platform.viewer_url, follow_redirects=True, trust_env=False).status_code == 200
                )
            with pytest.raises(httpx.ConnectError):
                httpx.get(platform.url, trust_env=False)
        left = [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
        assert left == []

    def test_stops_quickly(self, tmp_path, speak):
        """Connections that are kept open do not hold it up."""
        with LocalPlatform(tmp_path / "db") as platform:
            idle = [speak(platform) for _ in range(5)]
            mute = socket.create_connection((urlsplit(platform.url).hostname, urlsplit(platform.url).port))
            began = time.monotonic()
        assert time.monotonic() - began < within(1.5)
        mute.close()
        for api in idle:
            api.http.close()

    def test_stops_while_requests_come(self, tmp_path, speak):
        """Stopped under load, every request was either answered in full or not at all, and what was is kept."""
        answered: list[str] = []
        enough = threading.Event()
        with LocalPlatform(tmp_path / "db") as platform:

            def ask():
                with speak(platform) as api:
                    try:
                        while True:
                            answered.append(api.register()["id"])
                            if len(answered) > 20:
                                enough.set()
                    except httpx.TransportError:
                        pass

            asking = threading.Thread(target=ask)
            asking.start()
            assert enough.wait(30)
        asking.join(30)
        with LocalPlatform(tmp_path / "db") as platform:
            assert [each for each in answered if platform.store.instance(each) is None] == []

    def test_only_on_loopback(self, tmp_path):
        """It listens on 127.0.0.1 and on no other address of the machine."""
        with LocalPlatform(tmp_path / "db") as platform:
            port = urlsplit(platform.url).port
            assert urlsplit(platform.url).hostname == "127.0.0.1"
            with (
                pytest.raises(OSError, match="refused"),
                socket.create_connection(("127.0.0.2", port), timeout=5),
            ):
                pass

    def test_port_taken(self, tmp_path):
        """A port that somebody else has is an error at once, and nothing stays open."""
        with LocalPlatform(tmp_path / "a") as platform, pytest.raises(OSError, match="in use"):
            LocalPlatform(tmp_path / "b", port=urlsplit(platform.url).port).__enter__()
        assert not (tmp_path / "b").exists()

    def test_failing_to_start(self):
        """If the server cannot run, who started it gets the reason, at once."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.close()
        with pytest.raises(OSError, match="Bad file descriptor"), _serve._running(Starlette(), listener):
            pytest.fail("it runs")

    def test_announced(self, tmp_path):
        """With a state folder, the library finds it for as long as it runs, and only one is announced at a time."""
        state = tmp_path / "state"
        with LocalPlatform(tmp_path / "db", state_dir=state) as platform:
            assert _local.find(state) == (platform.url, platform.token)
            with pytest.raises(_local.AlreadyRunningError):
                LocalPlatform(tmp_path / "other", state_dir=state).__enter__()
            assert _local.find(state) == (platform.url, platform.token)
        assert _local.find(state) is None

    @pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
    def test_announcement_is_private(self, tmp_path):
        """The token in the announcement is readable for the user alone."""
        state = tmp_path / "state"
        with LocalPlatform(tmp_path / "db", state_dir=state):
            (file,) = state.iterdir()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(state.stat().st_mode) == 0o700

    def test_announcing_waits_for_a_reader(self, tmp_path):
        """Somebody who looks for a platform at the very moment one starts does not keep it from starting."""
        state = tmp_path / "state"
        with LocalPlatform(tmp_path / "db", state_dir=state):
            pass
        stop = threading.Event()

        def look():
            while not stop.is_set():
                _local.find(state)

        looking = [threading.Thread(target=look) for _ in range(3)]
        for thread in looking:
            thread.start()
        try:
            for _ in range(3):
                with LocalPlatform(tmp_path / "db", state_dir=state) as platform:
                    assert platform.url
        finally:
            stop.set()
            for thread in looking:
                thread.join(10)


class TestCommand:
    def test_says_where_it_is(self, serve, tmp_path):
        """The terminal shows the address to open, the file and how to stop, and nothing else."""
        server = serve(tmp_path / "my [db]")
        destination = _local.find(server.state_dir)
        assert destination == server.destination
        assert httpx.get(server.viewer_url, follow_redirects=True, trust_env=False).status_code == 200
        server.process.send_signal(signal.SIGINT)
        rest, errors = server.process.communicate(timeout=10)
        assert re.sub(r"\s+", " ", server.said + rest).split(" ", 1)[1].strip() == (
            f"Prefactor, on this machine {server.viewer_url} database {tmp_path / 'my [db]'} stop Ctrl+C"
        )
        assert errors == ""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stops_on_a_signal(self, serve, tmp_path, speak, number):
        """A signal ends it in order and at once, even with connections open: exit code 0, one file, no announcement."""
        server = serve(tmp_path / "db")
        with speak(server.destination) as api:
            api.run()
            began = time.monotonic()
            server.process.send_signal(number)
            assert server.process.wait(10) == 0
            assert time.monotonic() - began < within(2)
        assert _local.find(server.state_dir) is None
        assert not (tmp_path / "db-wal").exists()

    def test_default_file(self, serve):
        """Without --db the database is in the state folder."""
        server = serve(None)
        assert (server.state_dir / "local-platform.sqlite3").exists()

    def test_one_at_a_time(self, serve, tmp_path):
        """A second one says where the first is."""
        server = serve(tmp_path / "db")
        env = os.environ | {"PREFACTOR_STATE_DIR": str(server.state_dir)}
        second = run("serve", "--port", "0", "--db", str(tmp_path / "other"), env=env)
        assert second.returncode == 1
        assert server.destination.url in second.stderr
        assert server.destination.token not in second.stderr

    def test_what_cannot_start(self, tmp_path):
        """A taken port, a file that is no database or of a later version: one sentence each, no traceback."""
        (tmp_path / "notes").write_text("not a database, but long enough to be looked at " * 30)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = run("serve", "--port", str(taken.getsockname()[1]), "--db", str(tmp_path / "db"))
        notes = run("serve", "--port", "0", "--db", str(tmp_path / "notes"))
        for result in (port, notes):
            assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
            assert result.stderr.startswith("The local platform cannot start: ")

    def test_version(self):
        """--version prints the version."""
        assert run("--version").stdout == f"prefactor-trace {__version__}\n"

    def test_help(self):
        """Without arguments there is help, and serve tells its options."""
        assert "serve" in run().stdout + run().stderr
        told = run("serve", "--help").stdout
        assert "--port" in told
        assert "--db" in told
        assert "8700" in told

    @pytest.mark.parametrize("missing", ["typer", "uvicorn", "starlette", "rich"])
    def test_extra_not_installed(self, missing):
        """Without the packages of the extra, the command says which extra to install."""
        code = f"import sys; sys.modules[{missing!r}] = None; from prefactor_trace.cli import main; main()"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert "pip install 'prefactor-trace[local]'" in result.stderr

    def test_imports_nothing_of_the_extra(self):
        """The module itself can be imported without the extra, and loads none of it."""
        code = (
            "import sys; from prefactor_trace import cli; "
            "print({'typer', 'uvicorn', 'starlette', 'rich', 'sqlite3'} & set(sys.modules))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
        assert result.stdout == "set()\n"


AGENT = """
import sys, time
import prefactor_trace as pt

with pt.instance(external_identifier=sys.argv[1], agent_name="agent"):
    for number in range(int(sys.argv[2])):
        with pt.span("step", payload={"number": number}):
            pass
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def record(state_dir, name, *, spans=2, kill=False, **variables):
    """Let a program record a run with no token, and end, or be killed while the run goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, name, str(spans), "60" if kill else "0"],
        env=os.environ | {"PREFACTOR_STATE_DIR": str(state_dir), "PREFACTOR_EXIT_TIMEOUT": "0", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        if kill:
            process.kill()
    assert process.returncode == (-signal.SIGKILL if kill else 0)


def runs(api):
    """Return all runs that the platform knows."""
    agents = api.get("agent")["summaries"]
    return [run for agent in agents for run in api.get("agent_instance", agent_id=agent["id"])["summaries"]]


def wait_for_run(api, name, status, seconds):
    """Wait until the run called *name* has *status*, and return its spans."""
    deadline = time.monotonic() + seconds
    while True:
        found = [each for each in runs(api) if each["external_identifier"] == name]
        if [each["status"] for each in found] == [status]:
            return api.spans(found[0]["id"])
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="without advisory locks there is no spool")
class TestIntake:
    def test_what_waited(self, serve, tmp_path, speak):
        """Runs that were recorded with no platform anywhere are there soon after it has started."""
        state_dir = tmp_path / "state-0"
        for number in range(3):
            record(state_dir, f"run {number}")
        server = serve(tmp_path / "db")
        assert server.state_dir == state_dir
        with speak(server.destination) as api:
            for number in range(3):
                spans = wait_for_run(api, f"run {number}", "complete", 5)
                assert [each["status"] for each in spans] == ["complete"] * 2
        assert list((state_dir / "spool").glob("*.seg")) == []

    def test_what_a_killed_program_left(self, serve, tmp_path, speak):
        """A program that is killed while the platform runs is taken in within about ten seconds, its run as failed."""
        server = serve(tmp_path / "db")
        record(server.state_dir, "killed", kill=True, PREFACTOR_BATCH_DELAY="60")
        with speak(server.destination) as api:
            assert len(wait_for_run(api, "killed", "failed", 12)) == 2

    def test_not_what_waits_for_others(self, serve, tmp_path, speak):
        """What was recorded for a platform somewhere else does not go here."""
        state_dir = tmp_path / "state-0"
        elsewhere = {"PREFACTOR_API_URL": "http://127.0.0.1:9", "PREFACTOR_API_TOKEN": "t"}
        record(state_dir, "elsewhere", **elsewhere)
        record(state_dir, "here")
        server = serve(tmp_path / "db")
        with speak(server.destination) as api:
            wait_for_run(api, "here", "complete", 5)
            assert len(runs(api)) == 1
        assert len(list((state_dir / "spool").glob("*.seg"))) == 1

    def test_stops_while_it_takes_in(self, serve, tmp_path, speak):
        """Stopped in the middle of it, it ends at once and in silence, and the next one takes in the rest."""
        state_dir = tmp_path / "state-0"
        for number in range(3):
            record(state_dir, f"run {number}", spans=3_000)
        server = serve(tmp_path / "db")
        with speak(server.destination) as api:
            deadline = time.monotonic() + 10
            while not runs(api):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        _, errors = server.process.communicate(timeout=10)
        assert time.monotonic() - began < within(2)
        assert (server.process.returncode, errors) == (0, "")
        assert list((state_dir / "spool").glob("*.seg")) != [], "too fast for the test"

        second = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--db", str(tmp_path / "db")],
            env=os.environ | {"PREFACTOR_STATE_DIR": str(state_dir)},
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while list((state_dir / "spool").glob("*.seg")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with speak(_local.find(state_dir)) as api:
                for number in range(3):
                    wait_for_run(api, f"run {number}", "complete", 5)
        finally:
            second.send_signal(signal.SIGINT)
            assert second.wait(10) == 0

    def test_nothing_through_a_proxy(self, serve, tmp_path, speak, monkeypatch):
        """The platform's own token never goes to a proxy that is meant for somewhere else."""
        state_dir = tmp_path / "state-0"
        record(state_dir, "run")
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
            monkeypatch.setenv("PREFACTOR_API_TOKEN", "a-token-for-the-real-platform")
            server = serve(tmp_path / "db")
            with speak(server.destination) as api:
                wait_for_run(api, "run", "complete", 5)
            proxy.setblocking(False)
            with pytest.raises(BlockingIOError):
                proxy.accept()

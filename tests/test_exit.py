"""The end of the program is the program's: at most two seconds, whatever the server does, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import time

import hostile_server
import pytest
from hostile_server import HostileServer
from patience import within

from prefactor_trace import _inventory

AGENT = """
import sys
import prefactor_trace as pt

@pt.span
def step(x):
    return x

with pt.instance(agent_name="agent"):
    for number in range(20):
        step(number)
print("done")
sys.exit(7)
"""


def run(program, tmp_path, **environment):
    """Run *program*; return what it said, its exit code, and how long it took."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"PREFACTOR_STATE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.perf_counter() - started


@pytest.fixture(scope="module")
def untraced_seconds(tmp_path_factory):
    """How long the program takes when tracing is switched off."""
    return min(run(AGENT, tmp_path_factory.mktemp("s"), PREFACTOR_DISABLED="1")[1] for _ in range(3))


SERVERS = {
    "refusing": None,
    "never answering": hostile_server.never_answering,
    "dripping headers": hostile_server.dripping_headers,
    "dripping body": hostile_server.dripping_body,
    "retry after an hour": hostile_server.always(429, b"{}", {"Retry-After": "3600"}),
    "service unavailable": hostile_server.always(503),
    "html": hostile_server.always(200, b"<html>hello</html>"),
    "redirecting": hostile_server.redirecting_to("http://127.0.0.1:9/"),
    "token refused": hostile_server.always(401, b"{}"),
    "speaking no http": hostile_server.speaking_no_http,
    "closing at once": hostile_server.closing_at_once,
}


def run_against(name, tmp_path, **environment):
    """Run the agent against one of the servers."""
    if SERVERS[name] is None:
        url = f"http://127.0.0.1:{hostile_server.refused_port()}"
        return run(AGENT, tmp_path, PREFACTOR_API_URL=url, PREFACTOR_API_TOKEN="secret-token", **environment)
    with HostileServer(SERVERS[name]) as server:
        return run(
            AGENT, tmp_path, PREFACTOR_API_URL=server.url, PREFACTOR_API_TOKEN="secret-token", **environment
        )


def waiting(tmp_path):
    """Return how many records wait in the spool."""
    return sum(each.records for each in _inventory.survey(tmp_path / "spool"))


@pytest.mark.parametrize("name", SERVERS)
def test_exit_against_any_server(name, tmp_path, untraced_seconds):
    """Two seconds at most are added; exit code and output are the program's; what could not be sent waits."""
    done, seconds = run_against(name, tmp_path)

    assert (done.returncode, done.stdout) == (7, "done\n")
    assert seconds - untraced_seconds < within(2.9)  # the two seconds, and what a loaded machine adds
    assert "Traceback" not in done.stderr
    assert "secret-token" not in done.stderr
    assert "lost" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert waiting(tmp_path) == 23


@pytest.mark.parametrize("name", ["refusing", "never answering", "retry after an hour"])
def test_exit_without_spool(name, tmp_path, untraced_seconds):
    """In memory alone, the same holds, and the loss is one line in the log."""
    done, seconds = run_against(name, tmp_path, PREFACTOR_SPOOL="off")

    assert (done.returncode, done.stdout) == (7, "done\n")
    assert seconds - untraced_seconds < within(2.9)
    assert "Traceback" not in done.stderr
    assert "secret-token" not in done.stderr
    assert "23 records could not be delivered" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "spool").exists()


def test_exit_with_nowhere_to_send(tmp_path, untraced_seconds):
    """Without a token and without a platform nothing is waited for, one line says what to do, and all of it waits."""
    done, seconds = run(AGENT, tmp_path)

    assert (done.returncode, done.stdout) == (7, "done\n")
    assert seconds - untraced_seconds < within(1)
    assert "prefactor-trace serve" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert waiting(tmp_path) == 23


def test_exit_when_idle(tmp_path, untraced_seconds):
    """A program that imports and configures but records nothing ends as if we were not there."""
    done, seconds = run("import prefactor_trace as pt; pt.configure(); print(1)", tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert seconds - untraced_seconds < within(0.5)


def test_unhandled_exception(tmp_path):
    """The traceback is the program's own, and the exit code."""
    program = (
        "import prefactor_trace as pt\nwith pt.instance(), pt.span('a'):\n    raise ValueError('mine')\n"
    )
    done, _ = run(program, tmp_path)

    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr
    assert done.stderr.count("File ") == 1


def test_records_in_exit_handlers(tmp_path):
    """What the program records in its own exit handlers is taken along, or counted if it comes after us."""
    program = (
        "import atexit\n"
        "def late():\n    with pt.instance(), pt.span('late'):\n        pass\n    print(pt.stats().dropped)\n"
        "atexit.register(late)\n"
        "import prefactor_trace as pt\n"
        "atexit.register(late)\n"
        "with pt.instance():\n    pass\n"
    )
    done, _ = run(program, tmp_path)
    assert done.returncode == 0
    # The run of the first handler waits in the spool; that of the second came when all was over.
    assert done.stdout == "{}\n{'after_shutdown': 4}\n"
    assert waiting(tmp_path) == 7
    assert "Traceback" not in done.stderr


def test_an_abandoned_flush(tmp_path, untraced_seconds):
    """A flush that somebody gave up waiting for does not hold up the end."""
    program = (
        "import asyncio, prefactor_trace as pt\n"
        "async def main():\n"
        "    async with pt.instance():\n        pass\n"
        "    try:\n        await asyncio.wait_for(pt.aflush(30), 0.1)\n"
        "    except asyncio.TimeoutError:\n        print('gave up')\n"
        "asyncio.run(main())\n"
    )
    with HostileServer(hostile_server.never_answering) as server:
        done, seconds = run(program, tmp_path, PREFACTOR_API_URL=server.url, PREFACTOR_API_TOKEN="t")
    assert (done.returncode, done.stdout) == (0, "gave up\n")
    assert seconds - untraced_seconds < within(3.5)


def test_several_tracers(tmp_path, untraced_seconds):
    """Several tracers share the two seconds."""
    program = (
        "import prefactor_trace as pt\n"
        "for number in range(3):\n"
        "    with pt.configure(agent_name=str(number)).instance():\n        pass\n"
    )
    with HostileServer(hostile_server.never_answering) as server:
        done, seconds = run(program, tmp_path, PREFACTOR_API_URL=server.url, PREFACTOR_API_TOKEN="t")
    assert done.returncode == 0
    assert seconds - untraced_seconds < within(2.9)
    assert waiting(tmp_path) == 9


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_signal_handler_that_shuts_down(tmp_path):
    """The usual handler for SIGTERM, called wherever the program is, ends it in time."""
    program = (
        "import signal, sys, os, threading, prefactor_trace as pt\n"
        "def end(*_):\n    pt.shutdown()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "with pt.instance():\n"
        "    while True:\n"
        "        with pt.span('step', payload={'x': 'y' * 100}):\n            pass\n"
    )
    for _ in range(5):
        done, seconds = run(program, tmp_path)
        assert done.returncode == 0
        assert seconds < within(10)

"""The end of the program is the program's: at most two seconds, whatever the server does, and nothing else changes."""

from __future__ import annotations

import gzip
import signal
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


def run_against(name, tmp_path, program=AGENT, **environment):
    """Run a program against one of the servers."""
    if SERVERS[name] is None:
        url = f"http://127.0.0.1:{hostile_server.refused_port()}"
        return run(
            program, tmp_path, PREFACTOR_API_URL=url, PREFACTOR_API_TOKEN="secret-token", **environment
        )
    with HostileServer(SERVERS[name]) as server:
        return run(
            program, tmp_path, PREFACTOR_API_URL=server.url, PREFACTOR_API_TOKEN="secret-token", **environment
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


@pytest.mark.parametrize("server", [None, "never answering"])
def test_what_is_open_at_the_end_is_not_called_lost(tmp_path, server):
    """A run that nobody will end any more is ended by whoever delivers it; and its generators end without a trace."""
    program = (
        "import gc\nimport prefactor_trace as pt\n"
        "@pt.span\n"
        "def steps():\n    yield 1\n"
        "@pt.instance\n"
        "def agent():\n    for each in steps():\n        yield each\n"
        "gc.disable()\n"
        "running = agent()\nnext(running)\nitself = [running]\nitself.append(itself)\ndel running, itself\n"
        "pt.flush(0.3)\n"
    )
    if server is None:
        done, _ = run(program, tmp_path)
        assert len(done.stderr.splitlines()) == 1, done.stderr  # where records go, as above
    else:
        done, _ = run_against(server, tmp_path, program, PREFACTOR_EXIT_TIMEOUT="0.1")
    assert (done.returncode, done.stdout) == (0, "")
    assert "lost" not in done.stderr
    assert len(list((tmp_path / "spool").glob("*.seg"))) == 1
    assert waiting(tmp_path) == 3


def test_nothing_is_loaded_for_nowhere(tmp_path):
    """Without a destination, neither the network nor what the requests are checked with is loaded."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'h11', 'ssl', 'email', 'pydantic'} & set(sys.modules))))\n"
        "import prefactor_trace as pt\n"
        "with pt.instance(), pt.span('a'):\n    pass\n"
    )
    done, _ = run(program, tmp_path)

    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert waiting(tmp_path) == 4


def test_little_is_loaded_to_send(tmp_path, platform):
    """A run of functions with simple types is delivered without an HTTP client, and without pydantic."""
    program = (
        "import sys\n"
        "import prefactor_trace as pt\n"
        "@pt.span\n"
        "def f(a, b: str, c: list[int] | None = None) -> dict[str, int]:\n    return {b: a}\n"
        "with pt.instance():\n    f(1, 'b')\n"
        "assert pt.flush(20).delivered == 4, pt.stats()\n"
        "heavy = {'httpx', 'httpcore', 'ssl', 'email', 'asyncio', 'anyio', 'pydantic', 'urllib.request'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done, _ = run(program, tmp_path, PREFACTOR_API_URL=platform.url, PREFACTOR_API_TOKEN=platform.token)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_exit_when_idle(tmp_path, untraced_seconds):
    """A program that imports and configures but records nothing ends as if we were not there."""
    done, seconds = run("import prefactor_trace as pt; pt.configure(); print(1)", tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert seconds - untraced_seconds < within(0.5)


def test_no_signal_is_touched(tmp_path):
    """Unless it is asked for."""
    program = (
        "import signal\n"
        "before = [signal.getsignal(each) for each in signal.valid_signals()]\n"
        "import prefactor_trace as pt\n"
        "with pt.instance():\n    pass\n"
        "print(before == [signal.getsignal(each) for each in signal.valid_signals()])\n"
    )
    done, _ = run(program, tmp_path)
    assert done.stdout == "True\n"


def test_unhandled_exception(tmp_path):
    """The traceback is the program's own, and the exit code."""
    program = (
        "import prefactor_trace as pt\nwith pt.instance(), pt.span('a'):\n    raise ValueError('mine')\n"
    )
    done, _ = run(program, tmp_path)

    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr
    assert done.stderr.count("File ") == 1


INTERRUPTED = """
import prefactor_trace as pt

@pt.span
def step(x: int) -> list[str]:
    raise KeyboardInterrupt

with pt.instance():
    step(1)
"""
# What comes afterwards, before our own end, makes Python forget, as loading some modules does.
FORGETTING = "import atexit\nimport prefactor_trace\natexit.register(lambda: eval('1'))\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("is_run", [False, True], ids=["python", "prefactor-trace run"])
@pytest.mark.parametrize("server", [None, "never answering"])
def test_interrupted(tmp_path, server, is_run):
    """Ctrl-C ends the program as it would without us, also if much has to be loaded to deliver what is left."""
    file = tmp_path / "agent.py"
    file.write_text(FORGETTING + INTERRUPTED)
    way = "import sys, runpy; sys.argv[1:] = ['run', {0!r}]; runpy.run_module('prefactor_trace', None, '__main__')"
    program = way.format(str(file)) if is_run else FORGETTING + INTERRUPTED
    if server is None:
        done, _ = run(program, tmp_path)
    else:
        done, _ = run_against(server, tmp_path, program, PREFACTOR_EXIT_TIMEOUT="0.5")

    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert done.stderr.splitlines().count("KeyboardInterrupt") == 1
    assert done.stderr.count("Traceback") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_interrupted_at_a_prompt_that_was_opened(tmp_path):
    """That ended one line, and not the program."""
    program = (
        "import code, prefactor_trace as pt\n"
        "lines = iter(['raise KeyboardInterrupt', '1/0', 'raise KeyboardInterrupt'])\n"
        "class Console(code.InteractiveConsole):\n"
        "    def raw_input(self, prompt=''):\n"
        "        for line in lines:\n            return line\n"
        "        raise EOFError\n"
        "with pt.instance():\n    Console().interact(banner='', exitmsg='')\n"
        "import sys\nvars(sys).pop('ps1', None)\n"
    )
    done, _ = run(program, tmp_path)

    assert done.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_interrupted_while_we_deliver(tmp_path):
    """Whoever has no patience for our two seconds ends them with Ctrl-C, and nothing else changes."""
    program = (
        "import atexit, os, signal, sys, threading, time\n"
        "import prefactor_trace as pt\n"
        "def interrupt():\n    time.sleep(1)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(threading.Thread(target=interrupt, daemon=True).start)\n"
        "atexit.register(print, 'done')\n"
        "with pt.instance():\n    pass\n"
        "sys.exit(7)\n"
    )
    done, seconds = run_against("never answering", tmp_path, program, PREFACTOR_EXIT_TIMEOUT="30")

    assert (done.returncode, done.stdout) == (7, "done\n")
    assert "Traceback" not in done.stderr
    assert seconds < within(15)
    assert waiting(tmp_path) == 3


UNCLOSED = """
import gzip, sys
import prefactor_trace as pt

class Answer:
    text: str

@pt.span
def step(it: Answer) -> Answer:
    return it

class Last:
    def __del__(self):
        print("deleted")

if IS_RUN:
    with pt.instance():
        step(Answer())
last, file = Last(), gzip.open(PATH, "wt")
file.write("important")
"""


@pytest.mark.parametrize("is_run", [False, True], ids=["decorated", "in a run"])
def test_what_is_not_closed(tmp_path, is_run):
    """The program's modules are cleared as ever: files that it has not closed are written to their end."""
    path = tmp_path / "file.gz"
    done, _ = run(
        f"IS_RUN, PATH = {is_run}, {str(path)!r}{UNCLOSED}", tmp_path, PREFACTOR_LOG_LEVEL="CRITICAL"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("deleted\n", "", 0)
    assert gzip.open(path, "rt").read() == "important"


ENDLESS = """
import prefactor_trace as pt

@pt.span
def step(n):
    return step(n + 1)

with pt.instance():
    step(0)
"""


def test_endless_recursion(tmp_path):
    """A program that uses up its stack says so as ever: nothing of ours stands in what it says, nor in the log."""
    done, _ = run(ENDLESS, tmp_path, PREFACTOR_LOG_LEVEL="ERROR")
    assert done.stderr.count("RecursionError") == 1
    assert "During handling" not in done.stderr
    assert "could not" not in done.stderr
    assert done.returncode == 1


def test_records_in_exit_handlers(tmp_path):
    """What the program records in its own exit handlers is taken along, or kept if it comes after us.

    Without a disk that is not possible, and it is counted.
    """
    program = (
        "import atexit\n"
        "def late():\n    with pt.instance(), pt.span('late'):\n        pass\n    print(pt.stats().dropped)\n"
        "atexit.register(late)\n"
        "import prefactor_trace as pt\n"
        "atexit.register(late)\n"
        "with pt.instance():\n    pass\n"
    )
    done, _ = run(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "{}\n{}\n")
    assert "Traceback" not in done.stderr
    assert waiting(tmp_path) == 11

    done, _ = run(program, tmp_path, PREFACTOR_SPOOL="off")
    assert (done.returncode, done.stdout) == (0, "{}\n{'exit': 7, 'after_shutdown': 4}\n")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
@pytest.mark.parametrize(
    ("ending", "said", "left"),
    [("os._exit(0)", "", 4), ("print(pt.flush(10)[:4])", "(4, 4, {}, 0)\n", 0), ("pass", "", 0)],
)
def test_no_thread_can_be_started(tmp_path, platform, ending, said, left):
    """Where there is no room for a thread, records wait in the spool, and a flush or the end of the program sends them."""
    program = (
        "import os, resource, threading\n"
        "threading.stack_size(4 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "import prefactor_trace as pt\n"
        "with pt.instance(), pt.span('step'):\n    pass\n"
        "try:\n    threading.Thread(target=print).start()\nexcept RuntimeError as error:\n    print(error, flush=True)\n"
        + ending
    )
    done, _ = run(program, tmp_path, PREFACTOR_API_URL=platform.url, PREFACTOR_API_TOKEN=platform.token)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"can't start new thread\n{said}", "")
    assert waiting(tmp_path) == left


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

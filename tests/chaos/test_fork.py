"""Every process delivers its own spans once, in whatever way it came to be and ends: T4."""

from __future__ import annotations

import os
import signal
import sys
import time

import httpx
import pytest
from chaos.trial import Program


def check(trial, oracle, subject, *, lines=None):
    """Let the subject come to its end, send what is left, and compare."""
    subject.finish(60)
    assert lines in (None, len(subject.said("E"))), subject.errors
    # A child may be faster than the parent that registers its run: its spans are refused once, and come again.
    trial.require_whole(oracle, subject.errors, but="orphan")


@pytest.mark.parametrize("way", ["_exit", "exit", "kill"])
@pytest.mark.parametrize("settle", [0, 1], ids=["unknown run", "known run"])
def test_fork(trial, oracle, way, settle):
    """Children record in the run they were forked in and in their own, and lose nothing by how they leave."""
    subject = trial.start("fork", way=way, children=4, count=5, settle=settle)

    check(trial, oracle, subject, lines=1 + 4 + 4 * 10)


@pytest.mark.parametrize("way", ["_exit", "exit"])
def test_fork_in_the_middle_of_recording(trial, oracle, way):
    """A fork while four threads record at full speed leaves no lock held, in no process."""
    subject = trial.start("fork", way=way, children=12, count=5, settle=1, threads=4)

    check(trial, oracle, subject)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(trial, oracle, method):
    """Children of multiprocessing leave by `os._exit`, and still nothing is lost."""
    subject = trial.start("processes", method=method, children=3, count=5)

    check(trial, oracle, subject, lines=1 + 3 * (10 if method == "fork" else 5))


def test_fork_while_the_sender_is_loading(trial, oracle):
    """A child that is forked right after the first step does not inherit half a module, and delivers by itself."""
    subject = trial.start("fork", {"PREFACTOR_SPOOL": "off"}, way="exit", children=3, count=5)

    check(trial, oracle, subject, lines=1 + 3 + 3 * 10)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python warns since 3.12")
@pytest.mark.parametrize("is_nowhere", [False, True], ids=["a platform", "nowhere"])
def test_python_does_not_warn_of_our_thread(trial, oracle, is_nowhere):
    """A program with one thread of its own may fork, in a run and outside, and stderr stays as it is."""
    text = (
        "import os, prefactor_trace as pt\n"
        "def fork():\n"
        "    if os.fork() == 0:\n        os._exit(0)\n"
        "    os.wait()\n"
        "pt.configure(log_level='ERROR')\n"
        "with pt.instance():\n"
        "    fork()\n"
        "    for _ in range(3):\n"
        "        with pt.span('a'):\n            pass\n"
        "        fork()\n"
        "fork()\n"
    )
    environment = {"PREFACTOR_API_TOKEN": ""} if is_nowhere else {}
    program = Program(trial, text, **environment)

    assert (program.done.returncode, program.done.stderr) == (0, "")


def test_fork_while_unreachable(trial, proxy, oracle):
    """Parent and children end before the platform was ever reachable; whoever comes later delivers all of it."""
    proxy.refuse()
    subject = trial.start("fork", way="_exit", children=3, count=5)
    subject.finish(45)

    proxy.admit()
    check(trial, oracle, subject, lines=1 + 3 + 3 * 10)


def test_two_take_over_a_family(trial, proxy, oracle):
    """One process has what a child left, and waits for its run; another the run, and ends it only after that."""
    oracle.refuses_late = True
    proxy.refuse()
    subject = trial.start("parent", count=20)
    subject.wait_for("left")
    subject.process.send_signal(signal.SIGSTOP)  # it is alive, and sends nothing
    proxy.admit()
    of_child = trial.start("adopt", seconds=30)
    while not oracle.counts["orphan"]:
        assert of_child.process.poll() is None, of_child.errors
        time.sleep(0.005)
    subject.end()
    of_parent = trial.start("adopt", seconds=30)

    for each in (of_child, of_parent):
        each.finish(45)
    trial.require_whole(oracle, subject.errors, but="orphan")


def test_fork_of_a_fork(trial, oracle):
    """A grandchild records in the run of its grandparent."""
    subject = trial.start("generations", depth=3, count=5)

    check(trial, oracle, subject, lines=3 * 5)


def test_a_pool(trial, oracle):
    """Workers of a pool come and go, and are terminated at the end: every task's run is there."""
    subject = trial.start("pool", tasks=20, count=3)

    check(trial, oracle, subject, lines=1 + 20 * 3)


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_gunicorn(trial, oracle, tmp_path, kind):
    """A preloaded application in workers that are recycled, and of which one is killed: every request's run is there."""
    pytest.importorskip("gunicorn")
    socket = tmp_path / "web"
    subject = trial.start("web", socket=socket, kind=kind)
    subject.wait_for("ready")
    transport = httpx.HTTPTransport(uds=str(socket), retries=8)
    workers = set()
    with httpx.Client(transport=transport, base_url="http://web", headers={"Connection": "close"}) as client:
        for number in range(40):
            workers.add(pid := int(client.get("/").text))
            if number == 20:
                os.kill(pid, signal.SIGKILL)
    subject.process.terminate()

    check(trial, oracle, subject, lines=3 + 40 * 3)
    assert len(workers) > 3

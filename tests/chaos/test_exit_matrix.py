"""However a program ends and whatever the platform does: it ends as if nobody looked on, and nothing is lost: T3.

Every ending against a platform that is well and against one that never answers; and returning from
the program against the other servers as well. The time counts from the program's last own
statement; an untraced twin says what the program does by itself.
"""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import pytest
from chaos.oracle import drip, never, ok, status
from chaos.trial import Program
from patience import within

PRELUDE = """
import atexit, logging, multiprocessing, os, signal, sys, threading, time
sys.path.insert(0, os.environ["HERE"])
import subjects

logging.getLogger("prefactor_trace").disabled = True
log = os.open(os.environ["SAID"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
subjects.say = lambda line: os.write(log, line.encode() + b"\\n")
say = subjects.say
after_us = []
atexit.register(lambda: [each() for each in after_us])

def last():
    "What comes now is the end."
    print("the last words", flush=True)
    say(f"T {time.monotonic()}")

def run(count=3):
    block, name = subjects.run_block()
    with block:
        say(f"R {name}")
        for _ in range(count):
            subjects.record()
    say(f"F {name}")

run()
"""
# In a run that is going on: its beginning must be known, and its end is made up by whoever comes after.
IN_RUN = """
block, name = subjects.run_block()
with block:
    say(f"R {name}")
    subjects.record()
    last()
"""
IN_SPAN = (
    IN_RUN.replace("    last()\n", "")
    + """
    import prefactor_trace as pt
    own = subjects.new_name("span")
    with pt.span("open", payload=subjects.content(own, 20)):
        say(f"S {own}")
        last()
    """
)

ENDINGS = {
    "return": "last()",
    "exit code": "last(); sys.exit(7)",
    "exit message": "last(); sys.exit('so long')",
    "error": IN_RUN + "    raise ValueError('mine')",
    "SIGINT": IN_RUN + "    os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
    "SIGTERM": IN_SPAN + "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)",
    "SIGTERM with handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        + IN_RUN
        + "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)"
    ),
    "exit in a thread": (
        "def work():\n    run()\n    sys.exit(3)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); last()"
    ),
    "error in a thread": (
        "def work():\n    run()\n    raise ValueError('mine')\n"
        "thread = threading.Thread(target=work, name='w'); thread.start(); thread.join(); last()"
    ),
    "os._exit": IN_SPAN + "    os._exit(5)",
    "children": (
        "context = multiprocessing.get_context('fork')\n"
        "children = [context.Process(target=run) for _ in range(2)]\n"
        "[each.start() for each in children]; [each.join() for each in children]; last()"
    ),
    "exit handler": "import prefactor_trace as pt; atexit.register(run); atexit.register(last)",
    "exec": "last(); os.execv(sys.executable, [sys.executable, '-S', '-c', 'print(1); raise SystemExit(6)'])",
}


def refused(proxy, oracle):
    proxy.refuse()


def answering(manner):
    def begin(proxy, oracle):
        oracle.manner = manner

    return begin


SERVERS = {
    "ok": answering(ok),
    "never": answering(never),
    "refused": refused,
    "429": answering(status(429, {"Retry-After": "3600"})),
    "503": answering(status(503)),
    "drip": answering(drip),
}
CASES = [(ending, server) for ending in ENDINGS for server in ("ok", "never")] + [
    (ending, server)
    for ending in ("return", "children", "os._exit")
    for server in SERVERS
    if server not in ("ok", "never")
]


class Ended(NamedTuple):
    """What a program looked like from outside."""

    code: int
    out: str
    err: str


class Ending(Program):
    """A program that has come to its end, and the time from its last words until then."""

    def __init__(self, trial, text, **environment):
        super().__init__(trial, PRELUDE + text, **{"PREFACTOR_REQUEST_TIMEOUT": "10", **environment})
        until = time.monotonic()
        self.ended = Ended(self.done.returncode, self.done.stdout, self.done.stderr)
        self.seconds = until - float(self.said("T")[-1])


@pytest.mark.parametrize(("ending", "server"), CASES)
def test_ending(trial, proxy, oracle, ending, server):
    """Exit code and output are the program's; two seconds at most are added; afterwards everything arrives."""
    SERVERS[server](proxy, oracle)
    program = Ending(trial, ENDINGS[ending])
    trial.subjects.append(program)

    twin = Ending(trial, ENDINGS[ending], PREFACTOR_DISABLED="1")
    if server == "refused":
        proxy.admit()
    oracle.manner = ok

    assert program.ended == twin.ended
    assert program.seconds - twin.seconds < within(2.6)  # 2.3, and what a loaded machine adds
    trial.require_whole(oracle)
    assert len(oracle.spans) >= 3


@pytest.mark.parametrize("ending", ["return", "exit code"])
def test_nothing_pending(trial, oracle, ending):
    """When everything has been delivered, the end is not held up."""
    flush = "import prefactor_trace as pt; pt.flush()\n"
    text = ENDINGS[ending].replace("last()", f"\n{flush}last()")
    added = []
    for _ in range(5):
        program, twin = Ending(trial, text), Ending(trial, text, PREFACTOR_DISABLED="1")
        assert program.ended == twin.ended
        added.append(program.seconds - twin.seconds)
    assert min(added) < within(0.15), added  # whatever else the machine is doing


@pytest.mark.parametrize(
    "pause", ["time.sleep(0.001); run(1)", "long_run()"], ids=["short runs", "long runs"]
)
def test_a_daemon_thread_that_goes_on(trial, oracle, pause):
    """A thread that records while the program ends neither holds it up nor breaks it; what was said is delivered.

    Also the end of a run that it was in just then: nobody may call it interrupted who cannot know.
    """
    text = (
        "def long_run():\n"
        "    block, name = subjects.run_block()\n"
        "    with block:\n"
        "        say(f'R {name}')\n"
        "        subjects.record(); time.sleep(0.01); subjects.record()\n"
        "    say(f'F {name}')\n"
        "def work():\n"
        "    while True:\n"
        f"        {pause}\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.3); last(); sys.exit(9)"
    )
    program = Ending(trial, text)
    trial.subjects.append(program)

    assert program.ended == (9, "the last words\n", "")
    assert program.seconds < within(2.6)
    trial.require_whole(oracle)


def test_after_us(trial, oracle):
    """What is recorded when we have sent everything is kept: by exit handlers, and by threads that still run.

    A run of which half is with the platform already, half in the spool, and its end still to come, is one run.
    """
    text = (
        "has_begun, go_on, has_ended = (threading.Event() for _ in range(3))\n"
        "def work():\n"
        "    block, name = subjects.run_block()\n"
        "    with block:\n"
        "        say(f'R {name}')\n"
        "        subjects.record(); has_begun.set(); go_on.wait(20); subjects.record()\n"
        "    say(f'F {name}')\n"
        "    run(); has_ended.set()\n"
        "threading.Thread(target=work, daemon=True).start(); has_begun.wait(20)\n"
        "after_us += [run, go_on.set, lambda: has_ended.wait(20)]\n"
        "last(); sys.exit(9)"
    )
    program = Ending(trial, text)
    trial.subjects.append(program)

    assert program.ended == (9, "the last words\n", "")
    assert sorted(run["status"] for run in oracle.runs.values()) == ["active", "complete"]
    trial.require_whole(oracle)
    assert [run["status"] for run in oracle.runs.values()] == ["complete"] * 4


def test_flush_on_sigterm(trial, oracle):
    """If asked for, SIGTERM delivers first, and then does what it would have done: for a disk that goes with it."""
    program = Ending(trial, ENDINGS["SIGTERM"], PREFACTOR_FLUSH_ON_SIGTERM="1", PREFACTOR_EXIT_TIMEOUT="20")
    trial.subjects.append(program)

    assert program.ended == (-signal.SIGTERM, "the last words\n", "")
    found = trial.faults(oracle)
    assert not found, "\n".join(found)
    assert [run["status"] for run in oracle.runs.values()] == ["complete", "failed"]


def test_flush_on_sigterm_in_time(trial, oracle):
    """The two seconds hold there as well; what did not arrive waits."""
    oracle.manner = never
    program = Ending(trial, ENDINGS["SIGTERM"], PREFACTOR_FLUSH_ON_SIGTERM="1")
    trial.subjects.append(program)
    oracle.manner = ok

    assert program.ended == (-signal.SIGTERM, "the last words\n", "")
    assert program.seconds < within(2.6)
    trial.require_whole(oracle)


def test_flush_on_sigterm_leaves_handlers_alone(trial):
    """Who handles SIGTERM goes on to."""
    text = (
        "import prefactor_trace as pt\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pt.configure()\n"
        "print(signal.getsignal(signal.SIGTERM).name, flush=True)\n"
        "last()"
    )
    program = Ending(trial, text, PREFACTOR_FLUSH_ON_SIGTERM="1")
    assert program.ended.out == "SIG_IGN\nthe last words\n"

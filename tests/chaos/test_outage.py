"""While the platform is away, nobody is hurt and nothing is lost; when it is back, all of it arrives: T2."""

from __future__ import annotations

import os
import time

import pytest
from chaos.oracle import never, ok, slow_ack, status
from chaos.proxy import Fault
from patience import within

SECONDS = float(os.environ.get("CHAOS_OUTAGE_SECONDS", "4"))
RATE = 1_000
SIZE = 2_000
MEMORY_KIB = 32 * 1024
FAST_SECONDS = min(SECONDS, 20.0)  # at five times the rate: the quota holds no more
CATCHING_UP_SECONDS = 10 + SECONDS
CATCHING_UP_FAST_SECONDS = 20 + 4 * FAST_SECONDS


def _refused(proxy, oracle):
    proxy.refuse()
    return proxy.admit


def _black_hole(proxy, oracle):
    proxy.set(Fault("black hole"))
    return proxy.admit


def _answering(manner):
    def begin(proxy, oracle):
        oracle.manner = manner

        def end():
            oracle.manner = ok

        return end

    return begin


OUTAGES = {
    "refused": _refused,
    "black hole": _black_hole,
    "503": _answering(status(503)),
    "never answering": _answering(never),
}


# The others differ in how the connection ends, which tests of the exporter show as well.
ALWAYS = ("refused", "never answering")


@pytest.mark.parametrize("name", OUTAGES if os.environ.get("CHAOS_LONG") else ALWAYS)
def test_outage(trial, proxy, oracle, name):
    """Memory stays, probes are few, and afterwards everything arrives."""
    subject = start(trial)
    before = len(oracle.steps) + proxy.connections
    memory = int(subject.said("rss")[-1])

    end_outage = OUTAGES[name](proxy, oracle)
    time.sleep(SECONDS)
    probes = len(oracle.steps) + proxy.connections - before
    grown = max(map(int, subject.said("rss"))) - memory
    end_outage()
    stop(trial, subject)

    trial.require_whole(oracle, subject.errors, seconds=CATCHING_UP_SECONDS)
    assert len(oracle.spans) > SECONDS * RATE / 2, "the subject was held up"
    assert grown < MEMORY_KIB
    assert probes <= 2 * (2 + SECONDS)  # with the pauses of full jitter: below 1, 2, 4 ... seconds


def test_a_fresh_run_after_an_outage(trial, proxy, oracle):
    """A run that begins when the platform answers again is seen within 10 seconds, though older ones take longer."""
    subject = start(trial)
    proxy.refuse()
    time.sleep(SECONDS)
    asked = len(oracle.steps)
    # A little more than comes: what has piled up takes it far longer than 10 s.
    oracle.manner = slow_ack(0.035)
    proxy.admit()
    deadline = time.monotonic() + 65  # the longest pause between two attempts is 30 s
    while len(oracle.steps) < asked + 2:  # the answer to the first may come too late on a busy machine
        assert time.monotonic() < deadline
        time.sleep(0.01)

    seconds = seconds_until_a_fresh_run(subject, oracle, 20.0)
    oracle.manner = ok
    stop(trial, subject)

    trial.require_whole(oracle, subject.errors, seconds=CATCHING_UP_SECONDS)
    assert seconds < within(10)


def test_the_end_of_the_program_in_an_outage(trial, proxy, oracle):
    """What is on disk only, because memory was full, waits there for the next process."""
    proxy.refuse()
    subject = trial.start("paced", rate=5 * RATE, seconds=FAST_SECONDS, size=SIZE, length=500)
    subject.finish(FAST_SECONDS + 30)
    assert len(subject.said("E")) * SIZE > 16 * 1024 * 1024, "this machine is too slow for the test"

    proxy.admit()
    trial.require_whole(oracle, subject.errors, seconds=CATCHING_UP_FAST_SECONDS)


def test_the_end_of_the_program_while_it_catches_up(trial, proxy, oracle):
    """What has not come back from disk when the program ends stays there for the next process."""
    subject = start(trial, rate=5 * RATE, patience=0.0)
    proxy.refuse()
    time.sleep(FAST_SECONDS)
    asked = len(oracle.steps)
    proxy.admit()
    deadline = time.monotonic() + 35
    while len(oracle.steps) < asked + 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop(trial, subject)

    trial.require_whole(oracle, subject.errors, seconds=CATCHING_UP_FAST_SECONDS)


def start(trial, *, rate=RATE, patience=30.0):
    """Start a subject; it has registered a run, and found its pace."""
    until = trial.folder / "stop"
    subject = trial.start(
        "paced", rate=rate, seconds=SECONDS + 100.0, size=SIZE, length=500, patience=patience, until=until
    )
    subject.wait_for("ready")
    time.sleep(1.5)
    return subject


def stop(trial, subject):
    """Let it record for a moment more, and come to its end."""
    time.sleep(1)
    (trial.folder / "stop").touch()
    subject.finish(60)


def seconds_until_a_fresh_run(subject, oracle, patience):
    """Wait for a run that begins after now, and return how long it takes until the platform shows it."""
    known = len(subject.said("R"))
    while len(subject.said("R")) == known:
        assert subject.process.poll() is None, "it ended too early"
        time.sleep(0.01)
    fresh = subject.said("R")[known]
    began = time.monotonic()
    while oracle.run_called(fresh) is None and time.monotonic() - began < patience:
        time.sleep(0.02)
    return time.monotonic() - began

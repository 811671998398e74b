"""Whatever a recording call has returned for is delivered, though the process is killed: T1.

`CHAOS_SEEDS` seeds from `CHAOS_FIRST_SEED` on; each seed is one trial, and everything random in it follows from it
(when exactly the kill strikes, the machine decides).
"""

from __future__ import annotations

import os
import random
import time

import pytest
from chaos.oracle import ok, status
from chaos.proxy import NONE

FIRST = int(os.environ.get("CHAOS_FIRST_SEED", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("CHAOS_SEEDS", "60")))
VARIANTS = ("once", "unreachable", "twice", "adopter", "rotation", "announced")
SHAPES = ("threads", "tasks", "nested", "long_open")


def without_ids(spans):
    """A manner: the token may not ask for ids; *spans*: how calls about spans are dealt with."""

    def answer(oracle, peer, request):
        if request.target.endswith("pfid/generate"):
            return status(403, body=b'{"status":"error","code":"forbidden"}')(oracle, peer, request)
        return (spans if request.target.endswith(("/bulk", "/agent_spans")) else ok)(oracle, peer, request)

    return answer


def test_a_token_that_may_not_ask_for_ids(trial, oracle):
    """What is left of a run that an earlier process has registered is sent under ids of its account."""
    oracle.manner = without_ids(status(503))
    subject = trial.start("long_open", {"PREFACTOR_LIVE_AFTER": "60"}, count=5)
    subject.wait_for("E")
    while not ((trial.spool / "accounts.jsonl").exists() and any(oracle.runs)):
        time.sleep(0.01)
    subject.kill(0.2)
    oracle.manner = without_ids(ok)
    trial.require_whole(oracle)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill(seed, trial, proxy, oracle):
    """Nothing missing, nothing altered, nothing told twice in different words; what was going on has failed."""
    chance = random.Random(seed)
    variant = VARIANTS[seed % len(VARIANTS)]
    shape = chance.choice(SHAPES)
    options = {"threads": chance.randint(1, 4)}
    environment = {}
    if variant == "rotation":
        shape = "threads"
        options |= {"size": 9_000, "pause": 0, "count": 500, "length": 100}
    if variant == "announced":
        shape = chance.choice(("long_open", "nested"))
        environment["PREFACTOR_LIVE_AFTER"] = "0.01"
    if variant == "unreachable":
        proxy.refuse()
    else:
        proxy.play(seed)

    def kill(shape, **options):
        subject = trial.start(shape, environment, **options)
        subject.wait_for("ready")
        subject.kill(chance.uniform(0.02, 0.5))

    kill(shape, **options)
    if variant == "twice":
        kill(chance.choice(SHAPES))
    if variant == "unreachable":
        proxy.admit()
    if variant in ("adopter", "rotation") or chance.random() < 0.2:
        if chance.random() < 0.5:
            proxy.set(NONE)
        kill("adopt")
    proxy.set(NONE)

    trial.require_whole(oracle, f"seed {seed}: {variant}, {shape} {options}")

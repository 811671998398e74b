"""Processes do not know what run they work for, unless their pool is told when it is made: `pt.join`."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import prefactor_trace as pt


@pt.span
def count_letters(word: str) -> int:
    """Return the number of letters in *word*."""
    return len(word)


def main() -> None:
    """Run the agent once."""
    spawn = multiprocessing.get_context("spawn")
    with pt.instance(agent_name="letter-counter", agent_version="1.0.0") as run, pt.span("agent:count"):
        here = pt.current_handle()
        with ProcessPoolExecutor(2, spawn, initializer=pt.join, initargs=(here,)) as pool:
            print("letters:", sum(pool.map(count_letters, ["tea", "coffee", "milk"])))

    ledger = pt.shutdown()
    print("run:", run.id)
    print(ledger)


if __name__ == "__main__":
    main()

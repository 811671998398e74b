"""Threads do not know what run they work for, unless what they run is carried: `pt.carry(function)`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import prefactor_trace as pt


@pt.span
def count_letters(word: str) -> int:
    """Return the number of letters in *word*."""
    return len(word)


@pt.span
def note_done() -> None:
    """Stand for whatever a thread of your own does."""


def main() -> None:
    """Run the agent once."""
    with pt.instance(agent_name="letter-counter", agent_version="1.0.0") as run:
        with pt.span("agent:count"), ThreadPoolExecutor() as pool:
            print("letters:", sum(pool.map(pt.carry(count_letters), ["tea", "coffee", "milk"])))

        thread = threading.Thread(target=pt.carry(note_done))
        thread.start()
        thread.join()

    ledger = pt.shutdown()
    print("run:", run.id)
    print(ledger)


if __name__ == "__main__":
    main()

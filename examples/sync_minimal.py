"""The least there is: two decorated functions, one run. See it in `prefactor-trace serve`."""

from __future__ import annotations

import prefactor_trace as pt

PRICES = {"tea": 3, "coffee": 4}


@pt.span
def look_up(item: str) -> int:
    """Return what *item* costs."""
    return PRICES[item]


@pt.span
def add_up(items: list[str]) -> int:
    """Return what *items* cost together."""
    return sum(look_up(item) for item in items)


def main() -> None:
    """Run the agent once."""
    with pt.instance(agent_name="cashier", agent_version="1.0.0") as run:
        print("total:", add_up(["tea", "coffee", "tea"]))

    ledger = (
        pt.shutdown()
    )  # it would come by itself at the end of the program; here we want to see the ledger
    print("run:", run.id)
    if run.url:
        print("see it at:", run.url)
    print(ledger)


if __name__ == "__main__":
    main()

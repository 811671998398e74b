"""The same with asyncio: steps that run at once stand side by side in the record."""

from __future__ import annotations

import asyncio

import prefactor_trace as pt

PRICES = {"tea": 3, "coffee": 4}


@pt.span
async def look_up(item: str) -> int:
    """Return what *item* costs; the shop takes a moment."""
    await asyncio.sleep(0.01)
    return PRICES[item]


@pt.span
async def add_up(items: list[str]) -> int:
    """Return what *items* cost together."""
    return sum(await asyncio.gather(*map(look_up, items)))


async def main() -> None:
    """Run the agent once."""
    async with pt.instance(agent_name="cashier", agent_version="1.0.0") as run:
        print("total:", await add_up(["tea", "coffee", "tea"]))

    ledger = await pt.ashutdown()  # it would come by itself at the end of the program; here we want to see it
    print("run:", run.id)
    if run.url:
        print("see it at:", run.url)
    print(ledger)


if __name__ == "__main__":
    asyncio.run(main())

"""What it costs to capture a value: microseconds, and as a ratio to plain `orjson.dumps` of the same value.

Run it as `python benchmarks/capture.py`, with `--quick` to see only that it works. Each line is the least of many repeats, both sides interleaved in one run,
so that the ratio holds on a busy machine too. Values that `orjson.dumps` refuses have no ratio. The budget is that
of the library's design on its reference machine.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace._capture import capture, capture_exception

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 0.01 if "--quick" in sys.argv else 0.4  # for each value and side


class Stranger:
    pass


@dataclasses.dataclass
class Document:
    id: int
    text: str
    score: float
    tags: list[str]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def raised(depth: int) -> Exception:
    def recurse(left: int) -> None:
        if left:
            recurse(left - 1)
        raise ValueError("at the bottom")

    try:
        recurse(depth)
    except ValueError as error:
        return error
    raise AssertionError


def values() -> list[tuple[str, Any, float | None]]:
    """Return name, value and budget in µs."""
    chat = [{"role": "user" if n % 2 else "assistant", "content": f"{n:06} " * 34 + "ok"} for n in range(200)]
    long = [*chat[:100], {"role": "tool", "content": "x" * 20_000}, *chat[101:]]
    calls = [
        {"role": "assistant", "content": None, "calls": [{"id": str(n), "args": {"a": n}}]}
        for n in range(200)
    ]
    documents = [Document(n, "text " * 20, 0.5, ["a", "b"]) for n in range(100)]
    vectors = [[math.sin(n * row) for n in range(1_536)] for row in range(1, 21)]
    loop: list[Any] = [1]
    loop.append(loop)
    return [
        ("three small arguments", {"query": "hello", "k": "abc", "opts": {"a": 1}}, 1.3),
        ("200 chat messages, 50 KB", {"messages": chat}, 45),
        ("... beside a stranger", {"self": Stranger(), "messages": chat}, None),
        ("... one of them with 20 KB", {"messages": long}, None),
        ("200 messages with tool calls", {"messages": calls}, None),
        ("100 dataclasses", documents, None),
        ("an embedding, 1,536 floats", vectors[0], None),
        ("20 embeddings", vectors, 2_000),
        ("a string of 10 MB", {"a": "x" * 10_000_000}, 300),
        ("... 6 containers deep", [[{"a": ({"b": ["x" * 10_000_000]},)}]], 300),
        ("... as a key", {"x" * 10_000_000: 1}, 300),
        ("a string of 50 MB", "x" * 50_000_000, 2_000),
        ("a list of 1,000,000 ints", list(range(1_000_000)), 2_000),
        ("a list of 1,000,000 strangers", [Stranger()] * 1_000_000, 2_000),
        ("a dict of 1,000,000 keys", {str(n): n for n in range(1_000_000)}, 2_000),
        ("a set of 1,000,000 ints", set(range(1_000_000)), 2_000),
        ("a list 5,000 deep", nested(5_000), 2_000),
        ("a list in itself", loop, 2_000),
        ("a module", sys, 2_000),
        ("an int of 5,001 digits", 10**5_001, 2_000),
    ]


def least(sides: list[Callable[[], object]]) -> list[float]:
    """Return the least microseconds one call of each side took, the sides taking turns."""
    best = [math.inf] * len(sides)
    until = time.perf_counter() + SECONDS * len(sides)
    while time.perf_counter() < until:
        for index, side in enumerate(sides):
            repeats = max(1, min(1_000, int(1e-3 / best[index]))) if best[index] < math.inf else 1
            start = time.perf_counter()
            for _ in range(repeats):
                side()
            best[index] = min(best[index], (time.perf_counter() - start) / repeats)
    return [seconds * 1e6 for seconds in best]


def main() -> None:
    print(f"{'value':32} {'capture µs':>11} {'orjson µs':>11} {'ratio':>7} {'budget µs':>10} {'bytes':>8}")
    for name, value, budget in values():
        sides: list[Callable[[], object]] = [lambda value=value: capture(value)]  # type: ignore[misc]
        try:
            orjson.dumps(value)
            sides.append(lambda value=value: orjson.dumps(value))  # type: ignore[misc]
        except TypeError:
            pass
        ours, *theirs = least(sides)
        other = f"{theirs[0]:11.2f} {ours / theirs[0]:7.2f}" if theirs else f"{'':11} {'':7}"
        print(f"{name:32} {ours:11.2f} {other} {budget or '':>10} {len(capture(value)):8}")
    for depth in (5, 500):
        error = raised(depth)
        (ours,) = least([lambda error=error: capture_exception(error)])  # type: ignore[misc]
        print(f"{f'an exception through {depth} frames':32} {ours:11.2f} {len(capture_exception(error)):38}")


if __name__ == "__main__":
    main()

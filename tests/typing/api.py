"""The types that users see. Checked by mypy --strict and by pyright, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import assert_type

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
    from typing import Any


@pt.span
def bare(x: int, *, y: str = "") -> list[str]:
    return [y] * x


@pt.span("tool:named", title="Named", capture_inputs=False)
async def with_arguments(x: int) -> float:
    return x / 2


@pt.span
def generator(n: int) -> Generator[int, str, bool]:
    yield n
    return True


@pt.span
async def async_generator() -> AsyncGenerator[int, None]:
    yield 1


@pt.instance
def run(x: int) -> str:
    return str(x)


@pt.instance(agent_name="bot", purpose="eval")
async def async_run() -> bytes:
    return b""


class Tool:
    @pt.span
    def method(self, x: int) -> int:
        return x

    @classmethod
    @pt.span
    def below(cls, x: int) -> int:
        return x


def functions() -> None:
    assert_type(bare(1, y="a"), list[str])
    bare("1")  # type: ignore[arg-type]
    bare(1, z=2)  # type: ignore[call-arg]
    call: Coroutine[Any, Any, float] = with_arguments(1)
    call.close()
    assert_type(generator(1), "Generator[int, str, bool]")
    assert_type(async_generator(), "AsyncGenerator[int, None]")
    assert_type(run(1), str)
    assert_type(Tool().method(1), int)
    assert_type(Tool.below(1), int)
    carried: Callable[[int], str] = pt.carry(run)
    assert_type(carried(1), str)


async def blocks() -> None:
    with pt.instance(agent_id="a") as instance, pt.span("a", payload={"x": 1}) as span:
        assert_type(instance, pt.Instance)
        assert_type(span, pt.Span)
        assert_type(instance.url, "str | None")
    async with pt.instance() as instance, pt.span(pt.SpanType("b"), parent=instance) as span:
        assert_type(instance, pt.Instance)
        assert_type(span, pt.Span)
    assert_type(pt.current_instance(), "pt.Instance | None")
    assert_type(pt.current_span(), "pt.Span | None")
    assert_type(await pt.aflush(), pt.Ledger)
    assert_type(pt.flush(1.0).dropped, dict[str, int])
    pt.instance(purpose="fun")  # type: ignore[call-overload]


def tracers() -> None:
    tracer = pt.configure(sample_rate=0.5)
    assert_type(tracer, pt.Tracer)
    with tracer.instance() as instance:
        assert_type(instance, pt.Instance)


def quality_is_typed() -> None:
    """A run is rated with anything; what cannot be declared is seen by the type checker."""
    kind = pt.QualityType("verdict", schema={"type": "object"}, title="Verdict")
    assert_type(pt.Schema((pt.SpanType("a"),), quality=(kind,)).quality, tuple[pt.QualityType, ...])
    with pt.instance() as run:
        assert_type(run.record_quality("verdict", {"ok": True}), None)
        run.record_quality("verdict", None)
    pt.configure(on_error="raise")
    pt.configure(on_error="explode")  # type: ignore[arg-type]
    pt.QualityType(5)  # type: ignore[arg-type]


async def work(x: int) -> str:
    return str(x)


async def carried() -> None:
    assert_type(await pt.carry(work)(1), str)
    await pt.carry(work)("1")  # type: ignore[arg-type]


def handles() -> None:
    handle = pt.extract({"baggage": ""})
    with handle as run, pt.span("a", parent=handle):
        assert_type(run, pt.Instance | None)

"""Decorators keep the types of what they decorate. Checked by mypy --strict and by pyright, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error
# mypy: disable-error-code=prop-decorator
# (mypy knows no decorator above a property; it takes the property's type all the same)

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar, overload

from typing_extensions import assert_type

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@overload
def twice(x: int) -> int: ...
@overload
def twice(x: str) -> str: ...
@pt.span
def twice(x: int | str) -> int | str:
    return x * 2


@pt.span("generic")
def same(x: T, *rest: T, key: str = "") -> tuple[T, str]:
    return x, key


def logged(function: Callable[P, R]) -> Callable[P, R]:
    return pt.span(title="Logged")(function)


def retried(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    return pt.instance(pt.span(function))


@logged
def under(x: int, *, y: str) -> float:
    return x


@retried
async def under_async(x: int) -> str:
    return str(x)


@pt.span(fold=lambda so_far, item: item)
def items(n: int) -> Iterator[str]:
    yield str(n)


@pt.instance(agent_name="bot")
async def async_items() -> AsyncIterator[bytes]:
    yield b""


class Callee:
    def __call__(self, x: int) -> str:
        return str(x)


@pt.span
class Tool:
    def method(self, x: int) -> str:
        return str(x)

    @pt.span
    @classmethod
    def above_class(cls, x: int) -> int:
        return x

    @classmethod
    @pt.span("named")
    async def below_class(cls, x: int) -> int:
        return x

    @pt.span("named")
    @staticmethod
    def above_static(x: int) -> int:
        return x

    @staticmethod
    @pt.instance(agent_name="bot")
    def below_static(x: int) -> int:
        return x

    @property
    @pt.span
    def below_property(self) -> int:
        return 1

    @pt.span
    @property
    def above_property(self) -> int:
        return 1

    @pt.span
    @functools.cached_property
    def cached(self) -> int:
        return 1

    part = pt.span(functools.partialmethod(method, 1))


async def uses(tool: Tool) -> None:
    assert_type(twice(1), int)
    assert_type(twice("a"), str)
    assert_type(same(b"", key="a"), tuple[bytes, str])
    assert_type(under(1, y=""), float)
    under("1", y="")  # type: ignore[arg-type]
    under(1)  # type: ignore[call-arg]
    assert_type(await under_async(1), str)
    assert_type(list(items(1)), list[str])
    assert_type([item async for item in async_items()], list[bytes])
    assert_type(Tool(), Tool)
    assert_type(tool.method(1), str)
    tool.method("a")  # type: ignore[arg-type]
    assert_type(Tool.above_class(1), int)
    assert_type(await Tool.below_class(1), int)
    assert_type(Tool.above_static(1), int)
    assert_type(tool.below_static(1), int)
    assert_type(tool.below_property, int)
    assert_type(tool.above_property, int)
    assert_type(tool.cached, int)
    assert_type(tool.part(), str)


def objects() -> None:
    assert_type(pt.span(Callee()), Callee)
    assert_type(pt.span("named")(Callee())(1), str)
    assert_type(pt.span(functools.partial(under, 1))(y=""), float)
    assert_type(pt.span(Callee), type[Callee])
    double: Callable[[int], int] = pt.span(lambda x: x * 2)
    assert_type(double(1), int)
    pt.span(3)  # type: ignore[call-overload]
    pt.span("a")(3)  # type: ignore[type-var]
    pt.instance(3)  # type: ignore[call-overload]
    pt.span("a", fold=3)  # type: ignore[call-overload]
    pt.span("a", capture_inputs="no")  # type: ignore[call-overload]

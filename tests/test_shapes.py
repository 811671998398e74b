"""The schemas of simple annotations: what pydantic would have said, without pydantic."""

from __future__ import annotations

import subprocess
import sys
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefactor_trace._shapes import plain
from prefactor_trace._value_schema import describe

LEAVES = [str, int, float, bool, None, type(None), Any, list, dict]


def larger(inner):
    return st.one_of(
        inner.map(lambda each: list[each]),
        inner.map(lambda each: typing.List[each]),  # noqa: UP006 - as old code has it
        inner.map(lambda each: dict[str, each]),
        inner.map(lambda each: typing.Dict[int, each]),  # noqa: UP006
        inner.map(lambda each: typing.Optional[each]),  # noqa: UP045
        st.lists(inner, min_size=1, max_size=4).map(lambda each: typing.Union[tuple(each)]),  # noqa: UP007
    )


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.sampled_from(LEAVES), larger, max_leaves=6))
def test_as_pydantic_says(annotation):
    """Whoever is asked, a function's schema is the same: its hash names the version on the platform."""
    assert plain(annotation) in (None, describe({"it": annotation}, {})[0]["it"])


@pytest.mark.parametrize(
    "annotation",
    [str, None, list[str], dict[str, Any], typing.Optional[int], typing.Union[None, str, list[int]]],  # noqa: UP007, UP045
)
def test_what_is_simple(annotation):
    """What most functions have is."""
    assert plain(annotation) == describe({"it": annotation}, {})[0]["it"]


def test_of_types_in_new_writing():
    """`|` is a union like any other."""
    assert plain(list[int | None]) == describe({"it": list[int | None]}, {})[0]["it"]
    assert plain(str | dict[str, float]) == describe({"it": str | dict[str, float]}, {})[0]["it"]


class Asked:
    """An annotation that must not be asked anything."""

    def __getattribute__(self, name):
        raise AssertionError(name)

    def __eq__(self, other):
        raise AssertionError("compared")

    __hash__ = None


@pytest.mark.parametrize(
    "annotation", [tuple[int, str], "str", list["str"], typing.TypeVar("T"), set[int], typing.Literal["a"]]
)
def test_what_is_not_simple(annotation):
    """All else is left to pydantic."""
    assert plain(annotation) is None


def test_nothing_of_the_users_is_run():
    """Whatever an annotation is, it is not asked to find out."""
    assert plain(Asked()) is None


def test_nesting_ends():
    """A type that is nested deeper than anybody writes is not simple."""
    annotation = int
    for _ in range(10_000):
        annotation = list[annotation]
    assert plain(annotation) is None


PROGRAM = """
import sys
import prefactor_trace as pt

@pt.span
def bare(a, b=1, *rest, **named): ...

@pt.span
def simple(query: str, limit: int | None = None) -> list[dict[str, float]]: ...

with pt.instance():
    simple("x")
pt.shutdown()
print(sorted(each for each in sys.modules if each.partition(".")[0].startswith("pydantic")))
"""


def test_a_program_with_simple_types_and_nowhere_to_send_to_loads_no_pydantic(tmp_path):
    """Its end is not held up by a library that only describes types."""
    environment = {
        "PYTHONPATH": ":".join(each for each in sys.path if each),
        "PREFACTOR_STATE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("int | None", "'int'")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n", done.stderr
    assert list((tmp_path / "spool").glob("*.seg"))

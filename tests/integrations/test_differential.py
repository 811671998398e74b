"""What compares programs without us and with us finds a difference, and tells which."""

from __future__ import annotations

import itertools

import pytest

from prefactor_trace.instances import current_instance

from .differential import asked, is_raised, same


def test_what_is_equal_is_returned(recorded):
    """The second time in a run."""
    runs = []

    def program():
        runs.append(current_instance() is not None)
        return [1, 2]

    assert same(program) == [1, 2]
    assert runs == [False, True]


def test_a_difference_is_told(recorded):
    numbers = itertools.count(7)
    with pytest.raises(AssertionError, match=r"assert \['x', 7\] == \['x', 8\]"):
        same(lambda: ["x", next(numbers)])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((ValueError, "no"), True),
        ((KeyboardInterrupt,), True),
        ((int, 3), False),
        (("a",), False),
        ([], False),
    ],
)
def test_exceptions(result, expected):
    assert is_raised(result) is expected


def test_requests(provider):
    """Names of headers in any case; those that differ each time are left out."""
    provider.requests.append(("/chat", {"X-Unique": "1", "Accept": "*/*"}, b"{}"))
    assert asked(provider, "x-unique") == [("/chat", {"accept": "*/*"}, b"{}")]

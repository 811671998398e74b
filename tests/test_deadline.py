"""The time for a value is the thread's own; pauses that are not the value's doing are forgiven, a few."""

from __future__ import annotations

import pytest

from prefactor_trace._deadline import Deadline


class Clocks:
    """Two clocks that are set by hand, in seconds."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def pass_(self, wall, cpu):
        self.wall += wall
        self.cpu += cpu


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def deadline(clocks):
    return Deadline(1.0, lambda: clocks.wall, lambda: clocks.cpu)


def test_work_counts(clocks, deadline):
    """In small steps, the time is over when it is."""
    for _ in range(9):
        clocks.pass_(0.1, 0.1)
        assert not deadline.is_over()
    clocks.pass_(0.2, 0.2)
    assert deadline.is_over()


def test_waiting_does_not_count(clocks, deadline):
    """Other threads may take as long as they like."""
    clocks.pass_(50.0, 0.1)
    for _ in range(2):
        assert not deadline.is_over()
        clocks.pass_(0.4, 0.4)
    assert not deadline.is_over()
    clocks.pass_(0.2, 0.2)
    assert deadline.is_over()


def test_three_pauses_are_forgiven(clocks, deadline):
    """What was left before each is left after it; of a fourth one, nothing is."""
    for _ in range(3):
        clocks.pass_(0.2, 0.2)
        assert not deadline.is_over()
        clocks.pass_(30.0, 30.0)
        assert not deadline.is_over()
    clocks.pass_(0.3, 0.3)
    assert not deadline.is_over()
    clocks.pass_(30.0, 30.0)
    assert deadline.is_over()


def test_a_pause_that_leaves_little_is_forgiven_too(clocks, deadline):
    """It need not take all that was left."""
    clocks.pass_(0.2, 0.2)
    assert not deadline.is_over()
    clocks.pass_(0.7, 0.7)
    assert not deadline.is_over()
    for _ in range(7):
        clocks.pass_(0.1, 0.1)
        assert not deadline.is_over()
    clocks.pass_(0.2, 0.2)
    assert deadline.is_over()


def test_waiting_is_no_pause(clocks, deadline):
    """Who has waited for others can still be forgiven one."""
    clocks.pass_(0.6, 0.1)
    assert not deadline.is_over()
    clocks.pass_(5.0, 5.0)
    assert not deadline.is_over()


def test_a_pause_beside_the_work_of_others(clocks, deadline):
    """It is seen as one though there was such work since the last look."""
    clocks.pass_(0.8, 0.8)
    deadline.without(lambda: clocks.pass_(3.0, 3.0))
    clocks.pass_(0.1, 0.1)
    assert not deadline.is_over()
    for _ in range(8):
        clocks.pass_(0.1, 0.1)
        assert not deadline.is_over()


def test_once_over_it_stays_so(clocks, deadline):
    """A pause after the end does not bring it back."""
    for _ in range(11):
        clocks.pass_(0.1, 0.1)
        deadline.is_over()
    assert deadline.is_over()
    clocks.pass_(30.0, 30.0)
    assert deadline.is_over()


def test_what_is_left_out(clocks, deadline):
    """The work of others is not counted, whatever becomes of it."""

    def work():
        clocks.pass_(7.0, 7.0)
        raise ValueError

    with pytest.raises(ValueError):
        deadline.without(work)
    for _ in range(9):
        clocks.pass_(0.1, 0.1)
        assert not deadline.is_over()
    clocks.pass_(0.2, 0.2)
    assert deadline.is_over()

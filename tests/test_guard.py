"""Whatever of ours breaks, the agent notices nothing: it is counted, said once, and the program goes on."""

from __future__ import annotations

import asyncio

import pytest

import prefactor_trace as pt
from prefactor_trace import _guard
from prefactor_trace.testing import recording


class Broken(Exception):
    """What breaks."""


def breaks(*args, **kwargs):
    raise Broken


@pt.span
def double(number):
    return number * 2


@pt.span
def fails(number):
    raise ValueError(number)


@pt.span
async def later(number):
    await asyncio.sleep(0)
    return number + 1


@pt.span
def count(number):
    got = yield number
    yield got
    return "end"


def agent():
    """Take every way into the library; return all that a program can see of it."""
    seen = [double(3), asyncio.run(later(4))]
    try:
        fails(5)
    except ValueError as error:
        seen.append((type(error), error.args))
    counting = count(6)
    seen += [next(counting), counting.send(7)]
    try:
        next(counting)
    except StopIteration as stop:
        seen.append(stop.value)
    with pt.span("block", payload={"a": 1}) as step:
        step.set_payload(1)
        step.set_result({"b": 2})
        step.set_metadata({"c": 3})
    with pytest.raises(KeyError), pt.span("block"):
        raise KeyError
    return seen


SEEN = [6, 5, (ValueError, (5,)), 6, 7, "end"]


@pytest.fixture(autouse=True)
def as_for_users(house, monkeypatch):
    """Our own tests let errors of ours out; here they end where they end for users."""
    monkeypatch.setattr(_guard, "strict", False)


@pytest.mark.parametrize("part", ["put", "new_id", "ticks_ns"])
def test_a_part_of_a_span(part, monkeypatch, caplog):
    """Spans that can neither begin nor end are passed over: same values, same exceptions, nothing current afterwards."""
    with recording() as recorded, pt.instance() as run:
        good = getattr(run, part)
        setattr(run, part, breaks)
        assert agent() == SEEN
        assert pt.current_span() is None
        setattr(run, part, good)
        assert double(1) == 2

    assert recorded.ledger.notes["internal error: start a span"] == 6
    assert len([each for each in caplog.records if each.name == "prefactor_trace"]) == 1
    assert [span.name for span in recorded.spans] == ["double"]


def test_the_end_of_a_span(monkeypatch):
    """A span that cannot be ended as it should ends without its data."""
    with recording() as recorded, pt.instance() as run:
        good = run.ticks_ns
        with pt.span("block") as step:
            step.set_result({"a": 1})
            run.ticks_ns = breaks
        run.ticks_ns = good
        (span,) = recorded.spans

    assert (span.status, span.result) == ("complete", None)
    assert recorded.ledger.notes == {"internal error: end a span": 1}


@pytest.mark.parametrize("part", ["schema", "listen", "put", "new_id", "wall_ns"])
def test_a_part_of_a_run(part):
    """A run that cannot be registered goes on unrecorded, and so does what is in it."""
    with recording() as recorded:
        setattr(recorded.tracer, part, breaks)
        with pt.instance() as run:
            assert agent() == SEEN
            assert pt.current_instance() is run

    assert pt.current_instance() is None
    assert recorded.ledger.notes == {"internal error: start an instance": 1}


def test_the_end_of_a_run():
    """A run that cannot be finished leaves its block all the same, and lets its exception pass."""
    with recording() as recorded:
        with pytest.raises(KeyError), pt.instance() as run:
            run.put = breaks
            raise KeyError
        assert pt.current_instance() is None

    assert recorded.ledger.notes == {"internal error: finish an instance": 1}

"""Promises of `_conversions`: users say how their types are recorded, and what goes wrong in that hurts nobody."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import signal
import threading
import time

import pytest

import prefactor_trace as pt
from prefactor_trace import _capture, _conversions, _guard
from prefactor_trace._capture import DEFAULT, capture, capture_exception, capture_object
from prefactor_trace.testing import recording

NAME = f"{__name__}.Customer"
MARK = {"$type": NAME}


class Customer:
    def __init__(self, name="Ada"):
        self.name = name


class Special(Customer):
    pass


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(_conversions, "functions", {})


def read(value):
    return json.loads(capture(value, DEFAULT._replace(max_seconds=10.0)))


def test_a_type_is_recorded_as_its_function_says():
    """At the top, in containers, in attributes, in enums and as a key; neighbours and the fast way stay as they are."""

    class Held(enum.Enum):
        ONE = Customer()

    pt.register_capture(Customer, lambda one: {"name": one.name})
    ada = {"name": "Ada"}
    assert read(Customer()) == ada
    assert read([1, Customer(), {"a": (Customer(), 2)}]) == [1, ada, {"a": [ada, 2]}]
    assert read({"held": Held.ONE, "set": {Customer()}}) == {"held": ada, "set": [ada]}
    assert read([Customer("x" * 3)] * 50) == [{"name": "xxx"}] * 50
    assert json.loads(capture_object(Customer())) == ada
    assert json.loads(capture_exception(ValueError(Customer())))["message"] == '{"name":"Ada"}'
    pt.register_capture(Customer, lambda one: one.name)
    assert read({Customer(): 1, "Ada": 2}) == {f"{NAME}:Ada": 1, "Ada": 2}
    assert json.loads(capture_object(Customer())) == {"output": "Ada"}


def test_a_span_records_it():
    """The public way: registered once, seen in every span."""
    pt.register_capture(Customer, lambda one: {"name": one.name})

    @pt.span
    def greet(customer):
        return customer

    with recording() as recorded, pt.instance():
        greet(Customer())
    assert recorded.spans[0].payload == {"customer": {"name": "Ada"}}
    assert recorded.spans[0].result == {"name": "Ada"}


def test_the_nearest_base_wins():
    """Subclasses are meant too, unless they have a function of their own; the last one given holds."""
    pt.register_capture(Customer, lambda _: "customer")
    assert read([Customer(), Special()]) == ["customer", "customer"]
    pt.register_capture(Special, lambda _: "special")
    assert read([Customer(), Special()]) == ["customer", "special"]
    pt.register_capture(Special, lambda _: "other")
    assert read([Special()]) == ["other"]


def test_it_beats_what_is_built_in():
    """Data classes, models, enums, subclasses of built-in types, dates and exceptions can all be registered."""
    pydantic = pytest.importorskip("pydantic")

    @dataclasses.dataclass
    class Data:
        secret: str = "canary"

    class Model(pydantic.BaseModel):
        secret: str = "canary"

    class Text(str):
        __slots__ = ()

    class Word(enum.Enum):
        ONE = "canary"

    class Bag(dict):
        pass

    class Odd(Exception):
        pass

    values = [Data(), Model(), Text("canary"), Word.ONE, Bag(a="canary"), Odd("canary")]
    for value in values:
        pt.register_capture(type(value), lambda _: "shown")
    assert read(values) == ["shown"] * 6
    assert read({Text("canary"): 1}) == {"shown": 1}
    pt.register_capture(pydantic.BaseModel, lambda _: "any model")
    assert read([Model(), type("Other", (Model,), {})()]) == ["shown", "shown"]


@pytest.mark.parametrize(
    "error", [ValueError("canary"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), RecursionError()]
)
def test_a_function_that_raises(error, caplog):
    """The value is told by its type, what stands beside it is whole, it is counted and logged once, without the text."""

    def fail(_):
        raise error

    pt.register_capture(Customer, fail)
    for _ in range(3):
        assert read([1, Customer(), {"a": Customer()}]) == [1, MARK, {"a": MARK}]
    assert read({Customer(): 1}) == {f"<{NAME}>": 1}
    assert read(Customer()) == MARK
    (what,) = _guard.errors
    assert what == f"capture function for {NAME} raised {type(error).__name__}"
    assert _guard.errors[what] >= 8
    assert len([one for one in caplog.records if NAME in one.message]) == 1
    assert "canary" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "kill") or os.name == "nt", reason="needs signals")
def test_a_real_interrupt_passes():
    """Ctrl-C while the function runs is the user's wish, and stops the program as ever."""

    def wait(_):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**7):
            pass

    pt.register_capture(Customer, wait)
    with pytest.raises(KeyboardInterrupt):
        capture([Customer()])
    previous = signal.signal(signal.SIGINT, own_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="own"):
            capture([Customer()])
    finally:
        signal.signal(signal.SIGINT, previous)


def own_handler(number, frame):
    raise KeyboardInterrupt("own")


def test_a_function_that_leads_back_to_the_value():
    """What returns its value, another one of its type, or a container of it, comes to an end."""
    pt.register_capture(Customer, lambda one: one)
    assert read([Customer()]) == [MARK]
    assert list(_guard.errors) == [f"capture function for {NAME} returned the value itself"]
    pt.register_capture(Customer, lambda _: Customer())
    assert read([Customer(), 1]) == [MARK, 1]
    assert read({Customer(): 1}) == {f"<{NAME}>": 1}
    pt.register_capture(Customer, lambda one: {"me": one, "a": 1})
    assert read([Customer()]) == [{"me": {"$cycle": NAME}, "a": 1}]
    pt.register_capture(Customer, lambda _: [Customer(), Customer()])
    assert len(capture(Customer(), DEFAULT._replace(max_seconds=10.0))) <= 2 * DEFAULT.max_bytes
    pt.register_capture(Customer, lambda one: one.name)
    pt.register_capture(Special, lambda one: Customer(one.name))
    assert read(Special("Bob")) == "Bob"


def test_a_function_that_records_itself():
    """A span inside the function ends, and does not call the function again."""

    @pt.span
    def shown(customer):
        return "shown"

    pt.register_capture(Customer, shown)
    with recording() as recorded, pt.instance():
        shown(Customer())
    assert {span.name for span in recorded.spans} == {shown.__qualname__}
    assert 2 <= len(recorded.spans) <= 8


def test_its_result_is_bounded():
    """What a function returns is cut like everything else."""
    pt.register_capture(Customer, lambda _: "x" * 1_000_000)
    assert read([Customer()])[0]["length"] == 1_000_000
    pt.register_capture(Customer, lambda _: list(range(1_000_000)))
    assert read([Customer()])[0][-1] == {"$truncated": "items", "length": 1_000_000}
    pt.register_capture(Customer, lambda _: (n for n in ()))
    assert read([Customer()]) == [{"$type": "generator"}]


def test_a_slow_function_costs_the_others_nothing():
    """The time a function takes is not taken from the rest of the value, and is noted."""

    def work(_):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return "done"

    pt.register_capture(Customer, work)
    kept = json.loads(capture([Customer(), *[Special.__init__] * 50]))
    assert kept[0] == "done"
    assert len(kept) == 51
    assert kept[-1]["$type"] == "function"
    assert _guard.errors[f"capture function for {NAME} was slow"] >= 1
    rebuild = _capture._Rebuild(DEFAULT, DEFAULT.max_bytes)
    for _ in range(3):  # one pause would be forgiven, whoever's it was
        assert rebuild.read(Customer(), None) == "done"
        assert not rebuild.deadline.is_over()


@pytest.mark.parametrize("kind", [str, int, float, bool, type(None), list, tuple, dict, object])
def test_json_types_cannot_be_registered(kind):
    """Types of JSON, and the base of all, are refused by name."""
    with pytest.raises(pt.ConfigurationError, match=f"how {kind.__name__} is recorded"):
        pt.register_capture(kind, str)


def test_what_cannot_work_is_refused():
    """No class, no function, and a coroutine function, whose result nobody would wait for."""

    async def later(_):
        pass

    with pytest.raises(pt.ConfigurationError, match="a class first"):
        pt.register_capture("Customer", str)
    for function in (None, "name", later):
        with pytest.raises(pt.ConfigurationError, match="a function of one argument"):
            pt.register_capture(Customer, function)
    assert _conversions.functions == {}


def test_threads_register_at_once():
    """No registration is lost, and capturing goes on meanwhile."""
    kinds = [type(f"Kind{n}", (), {}) for n in range(200)]
    start = threading.Barrier(4)

    def register(part):
        start.wait()
        for kind in part:
            pt.register_capture(kind, lambda _: 1)
            capture([Customer()])

    threads = [threading.Thread(target=register, args=(kinds[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read([kind() for kind in kinds]) == [1] * 200


def test_nothing_is_asked_where_nothing_is_registered(recwarn):
    """A registered type costs values of other types nothing but a look at their bases: none of their code runs."""
    pt.register_capture(Customer, lambda _: pytest.fail("called"))
    assert read([Customer, {"a": 1}, type("Meta", (type,), {})("C", (), {})()])[1] == {"a": 1}

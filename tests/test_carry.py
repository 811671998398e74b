"""Carrying: whatever kind of function it is, its body runs in the context it was carried from, and in no other."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import threading

import pytest
import trio

import prefactor_trace as pt
from prefactor_trace.testing import recording

variable = contextvars.ContextVar("variable", default="nobody's")


async def coroutine(n):
    """Wait."""
    before = variable.get()
    await asyncio.sleep(0)
    after = variable.get()
    variable.set("changed")
    await asyncio.sleep(0)
    return before, after, variable.get(), n


def generator(n):
    sent = yield variable.get()
    variable.set("changed")
    yield sent
    yield variable.get()
    return n


async def async_generator(n):
    sent = yield variable.get()
    await asyncio.sleep(0)
    variable.set("changed")
    yield sent
    yield variable.get()


class Tool:
    async def method(self, n):
        return await coroutine(n)

    async def __call__(self, n):
        return await coroutine(n)


class Steps:
    def __call__(self, n):
        yield variable.get()


def carried_from(value, function):
    """Return *function*, carried from a context in which the variable has *value*."""

    def make():
        variable.set(value)
        return pt.carry(function)

    return contextvars.copy_context().run(make)


@pytest.mark.parametrize(
    "function",
    [coroutine, Tool().method, Tool(), functools.partial(coroutine), functools.partial(Tool())],
    ids=["function", "method", "object", "partial", "partial of an object"],
)
def test_a_coroutine_runs_in_the_context(function):
    """Its body does, wherever it is awaited; what it sets it sees again, and nobody else does."""
    carried = carried_from("mine", function)
    assert inspect.iscoroutinefunction(carried)

    async def main():
        variable.set("awaiter's")
        results = [await carried(1), *await asyncio.gather(carried(2), carried(3))]
        return results, variable.get()

    expected = [("mine", "mine", "changed", n) for n in (1, 2, 3)]
    assert asyncio.run(main()) == (expected, "awaiter's")


def test_a_coroutine_under_another_event_loop():
    """What awaits it may be another thread's loop, or another kind of loop."""

    async def work():
        await trio.sleep(0)
        return variable.get(), trio.lowlevel.current_task().name

    async def main():
        return await carried_from("mine", work)()

    value, task = trio.run(main)
    assert (value, task.endswith("main")) == ("mine", True)

    carried, results = carried_from("mine", coroutine), []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(carried(1))))
    thread.start()
    thread.join()
    assert results == [("mine", "mine", "changed", 1)]


def test_a_coroutine_is_of_the_task_that_awaits_it():
    """No task is made for it; cancelling and timing out reach it, and its own tasks have its context."""
    seen = []

    async def child():
        return variable.get()

    async def work(is_slow):
        seen.append(asyncio.current_task())
        try:
            if is_slow:
                await asyncio.sleep(60)
            return await asyncio.create_task(child())
        except asyncio.CancelledError:
            seen.append(variable.get())
            raise

    carried = carried_from("mine", work)

    async def main():
        assert await carried(False) == "mine"
        assert seen == [asyncio.current_task()]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(carried(True), 0.01)
        assert seen[-1] == "mine"

    asyncio.run(main())


def test_a_coroutine_that_is_closed():
    """Closed, or thrown away unfinished, it comes to its end in its own context; and one never awaited says so."""
    ends = []

    async def work():
        try:
            await asyncio.sleep(0)
        finally:
            ends.append(variable.get())

    carried = carried_from("mine", work)
    started = carried()
    started.send(None)
    started.close()
    started = carried()
    started.send(None)
    del started
    gc.collect()
    assert ends == ["mine", "mine"]
    with pytest.warns(RuntimeWarning, match=r"work' was never awaited"):
        carried()  # and dropped at once


def test_a_coroutine_that_fails():
    """The exception is the same object."""
    error = ValueError("no")

    async def work():
        await asyncio.sleep(0)
        raise error

    with pytest.raises(ValueError, match="no") as raised:
        asyncio.run(carried_from("mine", work)())
    assert raised.value is error


def test_a_generator_runs_in_the_context():
    """Each step does, between them the consumer's own holds; `send` and the value it returns pass."""
    carried = carried_from("mine", generator)
    assert inspect.isgeneratorfunction(carried)
    steps = carried(7)
    assert [next(steps), variable.get(), steps.send("sent"), next(steps)] == [
        "mine",
        "nobody's",
        "sent",
        "changed",
    ]
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert (stop.value.value, variable.get()) == (7, "nobody's")
    assert list(carried_from("mine", Steps())(1)) == ["mine"]


def test_a_generator_that_is_thrown_into_and_closed():
    """`throw` and `close` reach it, in its context."""
    seen = []

    def work():
        while True:
            try:
                yield
            except ValueError as error:
                seen.append((variable.get(), error))
            except GeneratorExit:
                seen.append(variable.get())
                raise

    steps, error = carried_from("mine", work)(), ValueError("no")
    next(steps)
    steps.throw(error)
    steps.close()
    assert seen == [("mine", error), "mine"]


def test_an_async_generator_runs_in_the_context():
    """The same for an asynchronous one."""
    carried = carried_from("mine", async_generator)
    assert inspect.isasyncgenfunction(carried)

    async def main():
        steps = carried(7)
        return [await anext(steps), variable.get(), await steps.asend("sent"), await anext(steps)]

    assert asyncio.run(main()) == ["mine", "nobody's", "sent", "changed"]


def test_an_async_generator_that_is_thrown_into_and_closed():
    """`athrow` and `aclose` reach it, in its context; a consumer that breaks off does so too."""
    seen = []

    async def work():
        try:
            while True:
                try:
                    yield variable.get()
                except ValueError as error:
                    seen.append(error)
        finally:
            await asyncio.sleep(0)
            seen.append(variable.get())

    carried, error = carried_from("mine", work), ValueError("no")

    async def main():
        steps = carried()
        await anext(steps)
        assert await steps.athrow(error) == "mine"
        await steps.aclose()

    asyncio.run(main())
    assert seen == [error, "mine"]


def test_an_async_generator_that_catches_being_closed():
    """`athrow(GeneratorExit)` reaches it, and what it yields then comes back."""

    async def work():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    async def main():
        steps = pt.carry(work)()
        return [await anext(steps), await steps.athrow(GeneratorExit), [each async for each in steps]]

    assert asyncio.run(main()) == [1, 2, []]


def test_spans_of_what_is_carried():
    """Spans in a body that runs later, elsewhere, hang where it was carried from, and leave nothing behind."""

    @pt.span
    async def inner():
        await asyncio.sleep(0)

    async def outer():
        await inner()
        with pt.span("block"):
            await asyncio.sleep(0)

    def items():
        with pt.span("item"):
            yield 1

    with recording() as recorded:
        with pt.instance():
            with pt.span("a"):
                carried, carried_items = pt.carry(outer), pt.carry(items)
        asyncio.run(carried())
        assert list(carried_items()) == [1]
        assert pt.current_instance() is None
        assert recorded.tree() == (
            "a complete\n  test_spans_of_what_is_carried.<locals>.inner complete\n"
            "  block complete\n  item complete"
        )


def test_what_a_function_returns_is_not_looked_at():
    """A plain function that returns a coroutine returns it as it is."""

    async def work():
        return variable.get()

    assert asyncio.run(carried_from("mine", lambda _: work())(None)) == "nobody's"
    assert isinstance(carried_from("mine", Tool)(), Tool)

"""Context: the right parent, in tasks, threads and executors, however many there are."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

import prefactor_trace as pt
from prefactor_trace.testing import recording


@pytest.fixture
def recorded():
    """Record in memory, inside of one run."""
    with recording() as recorded, pt.instance():
        yield recorded


def parents(recorded):
    """Return the parent's name of each span's name."""
    spans = recorded.spans
    names = {span.id: span.name for span in spans}
    return {span.name: names.get(span.parent_id) for span in spans}


def test_gather(recorded):
    """Spans of concurrent tasks hang under the span that made the tasks."""

    async def step(name):
        async with pt.span(name):
            await asyncio.sleep(0)
            with pt.span(f"{name}-inner"):
                await asyncio.sleep(0)

    async def main():
        with pt.span("outer"):
            await asyncio.gather(*(step(f"s{number}") for number in range(5)))

    asyncio.run(main())
    expected = {f"s{number}": "outer" for number in range(5)} | {f"s{n}-inner": f"s{n}" for n in range(5)}
    assert parents(recorded) == {"outer": None, **expected}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_task_groups_and_threads(recorded, backend):
    """The same in anyio's task groups and worker threads, on both event loops."""

    def work():
        with pt.span("in-thread"):
            pass

    async def step():
        with pt.span("in-task"):
            await anyio.to_thread.run_sync(work)

    async def main():
        with pt.instance(), pt.span("outer"):
            async with anyio.create_task_group() as group:
                group.start_soon(step)

    anyio.run(main, backend=backend)
    assert parents(recorded) == {"outer": None, "in-task": "outer", "in-thread": "in-task"}


def test_asyncio_to_thread(recorded):
    """`asyncio.to_thread` takes the context along."""

    def work():
        with pt.span("in-thread"):
            pass

    async def main():
        with pt.span("outer"):
            await asyncio.to_thread(work)

    asyncio.run(main())
    assert parents(recorded) == {"outer": None, "in-thread": "outer"}


def test_plain_threads_need_carry(recorded):
    """A plain thread begins outside of any run; `carry` takes it along."""

    def work(name):
        with pt.span(name):
            pass

    with pt.span("outer"):
        for function, name in ((work, "lost"), (pt.carry(work), "carried")):
            thread = threading.Thread(target=function, args=(name,))
            thread.start()
            thread.join()
    assert parents(recorded) == {"outer": None, "carried": "outer"}


def test_carry_in_an_executor(recorded):
    """A carried function can be called many times and at once, each in a copy of the context it was made in."""
    variable = contextvars.ContextVar("variable", default="thread's")
    variable.set("maker's")
    barrier = threading.Barrier(4, timeout=10)

    def work(number):
        barrier.wait()
        before = variable.get()
        variable.set("changed")
        with pt.span(f"s{number}"):
            return before, number

    with ThreadPoolExecutor(4) as pool, pt.span("outer"):
        results = list(pool.map(pt.carry(work), range(8)))

    assert results == [("maker's", number) for number in range(8)]
    assert variable.get() == "maker's"
    assert parents(recorded) == {"outer": None, **{f"s{number}": "outer" for number in range(8)}}


def test_carry_keeps_the_function():
    """The carried function has the name and arguments of the bare one, and its exceptions pass."""

    def work(a, *, b):
        """Work."""
        raise ValueError(a + b)

    carried = pt.carry(work)
    assert (carried.__name__, carried.__doc__) == ("work", "Work.")
    with pytest.raises(ValueError, match="3"):
        carried(1, b=2)


def test_ten_thousand_tasks(recorded):
    """Ten thousand concurrent tasks, three spans each: not one has a wrong parent."""

    async def step(number):
        with pt.span(f"a{number}") as a:
            await asyncio.sleep(0)
            with pt.span(f"b{number}", payload={"expected": a.id}) as b:
                await asyncio.sleep(0)
                with pt.span(f"c{number}", payload={"expected": b.id}):
                    await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(step(number) for number in range(10_000)))

    asyncio.run(main())
    spans = recorded.spans
    assert len(spans) == 30_000
    assert [span for span in spans if span.parent_id != (span.payload or {}).get("expected")] == []


def test_left_in_another_context(recorded):
    """A block that is left in another context than it was entered in makes no noise and leaves no trace."""
    block = pt.span("a")
    elsewhere = contextvars.copy_context()
    elsewhere.run(block.__enter__)
    block.__exit__(None, None, None)

    assert pt.current_span() is None
    assert recorded.tree() == "a complete"


def test_the_context_holds_no_user_data(recorded):
    """Copied contexts live long; they hold a handle and not what went in or out."""
    import gc
    import weakref

    class Big:
        pass

    big = Big()
    reference = weakref.ref(big)
    with pt.span("a", payload={"big": big}) as step:
        step.set_result([big])
        kept = contextvars.copy_context()
    del big
    gc.collect()
    assert reference() is None
    assert kept.run(pt.current_span) is step


def test_a_block_shared_with_a_task_that_is_not_recorded():
    """One block, entered in a run and outside of any at once: each leaves what it has entered itself."""
    step = pt.span("step")

    async def main():
        entered, left = asyncio.Event(), asyncio.Event()

        async def recorded_task():
            with pt.instance():
                with step as span:
                    entered.set()
                    await left.wait()
                    assert pt.current_span() is span
                    with pt.span("child"):
                        pass
                with pt.span("after"):
                    pass

        async def other_task():
            with step:
                await entered.wait()
            left.set()

        await asyncio.gather(other_task(), recorded_task())

    with recording() as recorded:
        asyncio.run(main())
        assert parents(recorded) == {"step": None, "child": "step", "after": None}

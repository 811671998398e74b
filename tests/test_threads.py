"""The opt-in patch of threads: spans find their parent, and nothing else about threads is different."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
import multiprocessing.pool
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import trio

import prefactor_trace as pt
from prefactor_trace.testing import recording

ORIGINALS = {
    "start": threading.Thread.start,
    "_bootstrap_inner": threading.Thread._bootstrap_inner,
    "submit": ThreadPoolExecutor.submit,
}


def in_place():
    """Return the three methods as they are now."""
    return {
        "start": threading.Thread.__dict__["start"],
        "_bootstrap_inner": threading.Thread.__dict__["_bootstrap_inner"],
        "submit": ThreadPoolExecutor.__dict__["submit"],
    }


@pytest.fixture
def patched():
    """Patch for the length of the test."""
    pt.carry_threads()
    yield
    pt.carry_threads(False)
    assert in_place() == ORIGINALS


@pytest.fixture
def recorded(patched):
    with recording() as recorded, pt.instance():
        yield recorded


def mark(name):
    with pt.span(name):
        pass


def run(thread):
    thread.start()
    thread.join(10)


def parents(recorded):
    spans = recorded.spans
    names = {span.id: span.name for span in spans}
    return {span.name: names.get(span.parent_id) for span in spans}


class Subclass(threading.Thread):
    def run(self):
        mark("subclass")


def test_threads_know_their_step(recorded):
    """Threads, subclasses that override `run`, timers and pools: each belongs where it was started or submitted."""
    timer = threading.Timer(0, mark, ("timer",))
    with pt.span("outer"):
        run(threading.Thread(target=mark, args=("thread",)))
        run(Subclass())
        run(timer)
        with ThreadPoolExecutor(2) as pool:
            assert pool.submit(mark, name="submit").result() is None
            assert list(pool.map(mark, ["map"])) == [None]
    assert parents(recorded) == {
        "outer": None,
        **dict.fromkeys(["thread", "subclass", "timer", "submit", "map"], "outer"),
    }


def test_threads_of_threads(recorded):
    """What a thread starts belongs to the step that it is in."""

    def work():
        with pt.span("in-thread"):
            run(threading.Thread(target=mark, args=("in-thread-of-thread",)))

    run(threading.Thread(target=work))
    assert parents(recorded) == {"in-thread": None, "in-thread-of-thread": "in-thread"}


def test_a_pool_keeps_nothing(recorded):
    """A pool's threads live on: each task has the step it was submitted in, and one from outside of a run has none."""
    seen = []

    def look():
        seen.append((pt.current_span(), pt.current_instance()))
        mark("task")

    with ThreadPoolExecutor(1) as pool:
        with pt.span("first") as first:
            pool.submit(look).result()
        with pt.span("second") as second:
            pool.submit(look).result()
        contextvars.Context().run(lambda: pool.submit(look).result())
    assert [span for span, _ in seen] == [first, second, None]
    assert [run is None for _, run in seen] == [False, False, True]
    assert len(recorded.spans) == 4


def test_exceptions_of_tasks(recorded):
    """What a task raises has the traceback it has without us; Python 3.10 puts a frame back."""

    def fails():
        raise LookupError

    with ThreadPoolExecutor(1) as pool, pytest.raises(LookupError) as caught:
        pool.submit(fails).result()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == (["run", "fails"] if sys.version_info >= (3, 11) else ["__call__", "fails"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_event_loops_and_their_threads(recorded, backend):
    """The threads that asyncio, anyio and trio keep do not stay in the step in which they were first needed."""
    library = {"asyncio": asyncio.to_thread, "trio": trio.to_thread.run_sync}[backend]

    async def main():
        with pt.span("first"):
            await anyio.to_thread.run_sync(mark, "anyio in first")
            await library(mark, "own in first")
        with pt.span("second"):
            await anyio.to_thread.run_sync(mark, "anyio in second")
            await library(mark, "own in second")
            if backend == "asyncio":
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, mark, "executor in second")
                await contextvars.Context().run(loop.run_in_executor, None, mark, "outside")

    anyio.run(main, backend=backend)
    found = parents(recorded)
    assert "outside" not in found
    assert {name: found[name] for name in found if " in " in name} == {
        name: name.rpartition(" ")[2] for name in found if " in " in name
    }
    assert len(found) == (7 if backend == "asyncio" else 6)


def test_threads_that_libraries_keep(recorded):
    """A pool of multiprocessing's threads, begun in a step, does not take all its later tasks for that step's."""
    with pt.span("outer"):
        pool = multiprocessing.pool.ThreadPool(1)
    with pool:
        assert pool.apply(pt.current_span) is None
    pool.join()


def test_the_sender_is_in_no_run(patched):
    """Our own thread, which the first span starts, holds nothing of a run."""

    class Exporter:
        def export(self, batch):
            seen.append(pt.current_instance())
            return pt._record.Outcome(delivered=frozenset(each.key for each in batch))

        def close(self):
            pass

    seen = []
    tracer = pt.Tracer(exporter=Exporter(), environ={})
    with tracer.instance(), pt.span("a"):
        mark("b")
        tracer.flush()
    tracer.shutdown()
    assert seen
    assert set(seen) == {None}


def test_idempotent_and_undone():
    """Twice is once; undone, all is what it was; undone twice as well."""
    pt.carry_threads()
    first = in_place()
    pt.carry_threads()
    assert in_place() == first
    assert [getattr(first[name], "__wrapped__", None) for name in first] == list(ORIGINALS.values())
    for _ in range(2):
        pt.carry_threads(False)
        assert in_place() == ORIGINALS


def test_undone_below_somebody_else(monkeypatch):
    """If another library has patched the same method since, its patch stays, and ours does nothing below it."""
    pt.carry_threads()
    ours = threading.Thread.start

    def theirs(self):
        calls.append(self)
        ours(self)

    calls = []
    monkeypatch.setattr(threading.Thread, "start", theirs)
    pt.carry_threads(False)
    assert threading.Thread.start is theirs
    seen = []
    with recording(), pt.instance():
        run(threading.Thread(target=lambda: seen.append(pt.current_instance())))
        pt.carry_threads()
        run(threading.Thread(target=lambda: seen.append(pt.current_instance())))
    assert [run is None for run in seen] == [True, False]
    assert len(calls) == 2
    monkeypatch.undo()
    pt.carry_threads(False)
    assert in_place() == ORIGINALS


def behaviour():
    """Do what threads and pools are used for, and return all that can be seen of it."""
    seen = []

    def fail():
        raise KeyError("no")

    def look(*args, **kwargs):
        return args, kwargs, threading.current_thread().daemon, threading.current_thread().name

    class Loud(threading.Thread):
        def __init__(self, value):
            super().__init__(name="loud", daemon=True)
            self.value = value

        def start(self):
            seen.append("start")
            super().start()

        def run(self):
            seen.append((self.value, self.daemon, self.is_alive(), sorted(vars(self))))

    thread = Loud(3)
    run(thread)
    seen.append((thread.is_alive(), sorted(vars(thread))))
    for broken in (thread, Loud.__new__(Loud)):
        with pytest.raises(RuntimeError) as raised:
            broken.start()
        seen.append(str(raised.value))
    seen.append(sorted(vars(thread)))

    hook, threading.excepthook = threading.excepthook, lambda args: seen.append(repr(args.exc_value))
    run(threading.Thread(target=fail))
    threading.excepthook = hook
    timer = threading.Timer(60, fail)
    timer.start()
    timer.cancel()
    timer.join(10)
    seen.append((timer.is_alive(), timer.args, timer.kwargs))
    run(threading.Thread(target=lambda: seen.append(decimal.getcontext().prec)))

    ready = threading.local()
    with ThreadPoolExecutor(1, "pool", lambda value: setattr(ready, "value", value), ("ready",)) as pool:
        seen.append(pool.submit(look, 1, fn=2, self=3).result())
        seen.append(pool.submit(lambda: ready.value).result())
        seen.append(repr(pool.submit(fail).exception()))
        seen.append(list(pool.map(pow, [2, 3], [3, 2])))
        try:
            list(pool.map(fail.__call__, [1]))
        except TypeError as error:
            seen.append(str(error))
        for wrong in ((), (None,)):
            try:
                seen.append(repr(pool.submit(*wrong).exception()).partition("object")[2])
            except TypeError as error:
                seen.append(str(error).partition(".")[2])
    with pytest.raises(RuntimeError) as raised:
        pool.submit(look)
    seen.append(str(raised.value))
    return seen


def test_everything_else_is_the_same():
    """Values, exceptions, attributes, daemon flags, messages: in a run and patched, as without."""
    bare = behaviour()
    pt.carry_threads()
    try:
        with decimal.localcontext() as context, recording(), pt.instance(), pt.span("outer"):
            context.prec = 5
            assert behaviour() == bare
    finally:
        pt.carry_threads(False)
    assert len(bare) > 15


def test_nothing_is_kept(recorded):
    """Once a task or thread is done, nothing of the step, the function or its arguments is held on to."""

    class Big:
        pass

    def task(big):
        return weakref.ref(big)

    with ThreadPoolExecutor(1) as pool, pt.span("outer") as outer:
        reference = pool.submit(task, Big()).result()
        thread = threading.Thread(target=mark, args=("inner",))
        run(thread)
        step = weakref.ref(outer)
        del outer
        gc.collect()
        assert reference() is None
    gc.collect()
    assert step() is None
    assert "_prefactor_trace_scope" not in vars(thread)


def test_a_thread_that_cannot_start(recorded, monkeypatch):
    """If the system has no thread left, the error passes, and nothing is left on the thread."""

    def no_more(*_args, **_kwargs):
        raise RuntimeError("can't start new thread")

    for name in ("_start_new_thread", "_start_joinable_thread"):
        if hasattr(threading, name):
            monkeypatch.setattr(threading, name, no_more)
    thread = threading.Thread(target=mark, args=("a",))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start()
    assert "_prefactor_trace_scope" not in vars(thread)

"""Wrapping: that nobody can tell a decorated program from the bare one. Every kind of callable meets every probe."""

from __future__ import annotations

import abc
import asyncio
import collections
import contextlib
import contextvars
import copy
import functools
import gc
import inspect
import logging
import pickle
import subprocess
import sys
import threading
import traceback
import types
import typing
import warnings
import weakref

import anyio
import pytest

import prefactor_trace as pt
from prefactor_trace import _parameters, _wrap
from prefactor_trace.testing import recording

PUT_BACK = int(sys.version_info < (3, 11))
"""Frames of ours that Python itself leaves in a traceback."""

DECORATORS = {
    "span": pt.span,
    "named span": pt.span("named", title="Named", capture_outputs=False),
    "instance": pt.instance,
    "instance of an agent": pt.instance(agent_name="bot"),
    "span in instance": lambda function: pt.instance(pt.span(function)),
}


@pytest.fixture(params=DECORATORS)
def decorate(request, recorded):
    """Give each decorator, inside of a run."""
    return DECORATORS[request.param]


# ---- the subjects: each kind of function, doing the same ---------------------------------------------------


class Stop(Exception):
    """What the subjects raise."""


VISIBLE = contextvars.ContextVar("VISIBLE", default=0)


def function(a, b=2, /, *rest, c: int = 3, **others) -> tuple:
    """Do it."""
    VISIBLE.set(a)
    if a == "raise":
        raise Stop(a)
    return a, b, rest, c, others


async def coroutine(a, b=2, /, *rest, c: int = 3, **others) -> tuple:
    """Do it, asynchronously."""
    await asyncio.sleep(0)
    return function(a, b, *rest, c=c, **others)


def generator(a, b=2, /, *rest, c: int = 3, **others) -> typing.Iterator:
    """Do it, item by item."""
    got = []
    try:
        for item in (a, b, *rest, c, *others):
            got.append((yield item))
    except KeyError as error:
        got.append((yield error.args))
    if a == "raise":
        raise Stop(a)
    return got


async def async_generator(a, b=2, /, *rest, c: int = 3, **others) -> typing.AsyncIterator:
    """Do it, asynchronously item by item."""
    try:
        for item in (a, b, *rest, c, *others):
            await asyncio.sleep(0)
            got = yield item
            if got:
                yield got
    except KeyError as error:
        yield error.args
    if a == "raise":
        raise Stop(a)


FUNCTIONS = [function, coroutine, generator, async_generator]
by_kind = pytest.mark.parametrize("bare", FUNCTIONS, ids=lambda each: each.__name__)


def drain(result):
    """Run what a call has returned to its end; return all that came out of it."""
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    if inspect.isasyncgen(result):

        async def all_items():
            return [item async for item in result]

        return asyncio.run(all_items())
    if inspect.isgenerator(result):
        items = []
        while True:
            try:
                items.append(next(result))
            except StopIteration as stop:
                return items, stop.value
    return result


def outcome(call):
    """Return what *call* returns or raises, and how many frames deep."""
    try:
        return "returned", drain(call())
    except Exception as error:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return "raised", type(error), str(error), error.__cause__, error.__context__, len(frames)


CALLS = [
    ((1,), {}),
    ((1, 5, 6, 7), {"c": 8, "d": 9}),
    (("raise",), {}),
    ((), {}),
    ((), {"a": 1}),
    ((1,), {"c": 2, "b": 3, "self": 4, "scope": 5, "function": 6, "args": 7, "kwargs": 8}),
]


class TestSameProgram:
    @by_kind
    @pytest.mark.parametrize("call", CALLS, ids=repr)
    def test_calls(self, bare, call, decorate):
        """Values, exceptions, messages and tracebacks are the bare function's; Python 3.10 puts a frame back."""
        args, kwargs = call
        traced = decorate(bare)
        expected, actual = outcome(lambda: bare(*args, **kwargs)), outcome(lambda: traced(*args, **kwargs))
        if expected[0] == "raised" and sys.version_info < (3, 11):
            layers = 2 if getattr(traced.__wrapped__, "__wrapped__", None) else 1
            assert actual[-1] - expected[-1] in (0, layers)
            actual, expected = actual[:-1], expected[:-1]
        assert actual == expected
        assert pt.current_span() is None

    @by_kind
    @pytest.mark.parametrize("call", [((), {}), ((1,), {"a": 1, "b": 2}), ((), {"a": 1})], ids=repr)
    def test_wrong_arguments(self, bare, call, recorded):
        """A wrong call is refused as it is made, like the bare function's, without a frame of ours or a step."""

        def strict(a, *, c=1):
            pass

        async def strict_async(a, *, c=1):
            pass

        def strict_generator(a, *, c=1):
            yield

        async def strict_async_generator(a, *, c=1):
            yield

        kinds = dict(
            zip(FUNCTIONS, [strict, strict_async, strict_generator, strict_async_generator], strict=True)
        )
        bare = kinds[bare]
        args, kwargs = call
        if kwargs == {"a": 1}:
            args = (0,)
        traced = pt.span(bare)
        raised = []
        for each in (bare, traced):
            with pytest.raises(TypeError) as caught:
                each(*args, **kwargs)
            raised.append((str(caught.value), len(traceback.extract_tb(caught.value.__traceback__))))
        assert raised[0] == raised[1]
        assert recorded.spans == []

    @by_kind
    def test_looks(self, bare, decorate):
        """Everything that can be asked of a function is answered alike."""
        traced = decorate(bare)
        probes = [
            inspect.signature,
            inspect.getfullargspec,
            typing.get_type_hints,
            inspect.isfunction,
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
            inspect.getsource,
            inspect.getdoc,
            lambda f: (f.__name__, f.__qualname__, f.__module__, f.__doc__, f.__annotations__),
            lambda f: (
                f.__defaults__,
                f.__kwdefaults__,
                f.__code__.co_argcount,
                f.__code__.co_posonlyargcount,
            ),
            lambda f: f.__code__.co_varnames[: f.__code__.co_argcount + f.__code__.co_kwonlyargcount],
            lambda f: inspect.iscoroutinefunction(functools.partial(f, 1)),
            type,
            lambda f: repr(f).split(" at ")[0],
        ]
        assert [probe(traced) for probe in probes] == [probe(bare) for probe in probes]
        assert inspect.unwrap(traced) is bare

    @pytest.mark.parametrize("bare", [coroutine, generator, async_generator], ids=lambda each: each.__name__)
    def test_objects_look_alike(self, bare, decorate):
        """The coroutine or generator that a call returns has the same type and names."""
        made = [each(1) for each in (bare, decorate(bare))]
        assert len({(type(each), each.__name__, each.__qualname__) for each in made}) == 1
        for each in made:
            getattr(each, "close", lambda: None)()

    @by_kind
    def test_nothing_is_held(self, bare, recorded):
        """What passes through a generator is not kept alive by us; nor is an exception, nor the function itself."""
        traced = pt.span(
            types.FunctionType(bare.__code__, bare.__globals__, "again", bare.__defaults__, None)
        )
        traced.__kwdefaults__ = bare.__kwdefaults__
        gone = weakref.ref(traced)
        outcome(functools.partial(traced, "raise"))
        del traced
        gc.collect()
        assert gone() is None

    def test_names_of_parameters(self, recorded):
        """Parameters may be called as anything in our own code is."""

        @pt.span
        def names(
            function, open_scope, scope, token, /, args, kwargs, result, *, error, _context, _0=1, _1=2
        ):
            return function, open_scope, scope, token, args, kwargs, result, error, _context, _0, _1

        @pt.span
        def items(generator, step, passing, has_items, *take, inside, **items):
            yield from (generator, step, passing, has_items, *take, inside, *items)

        assert names(1, 2, 3, 4, 5, 6, 7, error=8, _context=9) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2)
        assert list(items(1, 2, 3, 4, 5, inside=6, send=7)) == [1, 2, 3, 4, 5, 6, "send"]
        assert recorded.spans[1].payload["take"] == [5]
        assert len(set(names.__code__.co_varnames + names.__code__.co_freevars)) == len(
            names.__code__.co_varnames + names.__code__.co_freevars
        )

    def test_under_a_debugger(self, recorded):
        """A trace function that looks at all variables changes nothing."""

        @pt.span
        def looked_at(scope, token):
            return scope, token

        def look(frame, event, arg):
            dict(frame.f_locals)
            return look

        before = sys.gettrace()
        sys.settrace(look)
        try:
            assert looked_at(1, 2) == (1, 2)
        finally:
            sys.settrace(before)
        assert recorded.tree().endswith("looked_at complete")

    def test_without_source(self, recorded, monkeypatch):
        """Where our own source is not there, or not what runs, everything works but the early refusal."""
        for source in (
            lambda _code: (_ for _ in ()).throw(OSError),
            lambda _code: (["@", "    def wrapper(): 0"], 0),
        ):
            _parameters._shaped.cache_clear()
            _parameters._source_of.cache_clear()
            monkeypatch.setattr(inspect, "getsourcelines", source)
            traced = pt.span(function)
            assert traced.__code__.co_varnames[:2] == ("args", "kwargs")
            assert traced(1) == function(1)
            assert inspect.signature(traced) == inspect.signature(function)
        _parameters._shaped.cache_clear()
        _parameters._source_of.cache_clear()

    def test_code_without_source(self, recorded):
        """What was made by `exec`, as in a notebook, is decorated like all else."""
        names = {"pt": pt}
        exec(
            "@pt.span\nasync def typed(x: int) -> int:\n    return x\nsquare = pt.span(lambda x: x * x)",
            names,
        )
        assert (asyncio.run(names["typed"](1)), names["square"](3)) == (1, 9)
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
            names["typed"]()


class TestGenerators:
    def test_protocol(self, decorate):
        """The same sends, throws and closes, in any order, give the same from the bare and the decorated one."""

        def bare():
            value = 0
            while True:
                try:
                    value = yield value
                    if value == "stop":
                        return "done"
                except KeyError as error:
                    value = ("caught", error.args)
                except GeneratorExit:
                    return "closed"

        scripts = [
            ["next", "send 1", "throw KeyError", "send stop", "next"],
            ["throw KeyError", "next"],
            ["send 1", "next"],
            ["next", "throw Stop", "next", "close"],
            ["close", "next"],
            ["next", "close", "close", "next"],
            ["next", "throw GeneratorExit", "next"],
            ["next", "throw StopIteration"],
            ["next", "throw KeyboardInterrupt"],
        ]
        for script in scripts:
            assert played(decorate(bare)(), script) == played(bare(), script), script

    def test_frames_of_what_is_thrown(self, recorded):
        """What is thrown in and comes out again shows no frame of ours."""

        def bare():
            yield

        depths = []
        for each in (bare, pt.span(bare)):
            steps = each()
            next(steps)
            with pytest.raises(Stop) as caught:
                steps.throw(Stop())
            depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert depths[1] == depths[0] + PUT_BACK

    @pytest.mark.parametrize("in_a_run", [True, False])
    def test_lines_of_tracebacks(self, in_a_run):
        """Whatever is raised in, thrown into or closed in a function of any kind has the bare one's traceback."""

        async def drained(items):
            async for _ in items:
                pass

        async def thrown(items):
            await items.__anext__()
            await items.athrow(Stop())

        async def closed(items):
            await items.__anext__()
            await items.aclose()

        def plain():
            raise Stop

        async def coroutine():
            await asyncio.sleep(0)
            raise Stop

        def generator():
            yield 1
            raise Stop

        async def async_generator():
            try:
                yield 1
            finally:
                raise Stop

        ways = [
            (plain, lambda f: f()),
            (coroutine, lambda f: asyncio.run(f())),
            (generator, lambda f: list(f())),
            (async_generator, lambda f: asyncio.run(drained(f()))),
            (async_generator, lambda f: asyncio.run(thrown(f()))),
            (async_generator, lambda f: asyncio.run(closed(f()))),
        ]
        with recording(), pt.instance() if in_a_run else contextlib.nullcontext():
            for function, way in ways:
                seen = []
                for each in (function, pt.span(function)):
                    with pytest.raises(Stop) as caught:
                        way(each)
                    frames = traceback.extract_tb(caught.value.__traceback__)
                    seen.append([(frame.name, frame.lineno) for frame in frames if frame.name != "wrapper"])
                    assert sum(frame.name == "wrapper" for frame in frames) <= PUT_BACK
                assert seen[0] == seen[1]

    def test_items_are_let_go(self, decorate):
        """An item lives no longer, and a value sent in neither, than with the bare generator."""

        class Thing:
            pass

        def bare():
            while True:
                sent = yield Thing()
                sent = weakref.ref(sent) if sent else None
                yield sent

        for each in (bare, decorate(bare)):
            steps = each()
            gone = weakref.ref(next(steps))
            assert gone() is None
            gone = steps.send(Thing())
            assert gone() is None

    @pytest.mark.parametrize("how", ["thread", "context", "here"])
    def test_collected_elsewhere(self, recorded, how, capsys):
        """A generator left by its consumer is closed wherever it is collected, with nothing said or left behind."""
        closed = []

        @pt.span("numbers")
        def numbers():
            with pt.span("inner"):
                try:
                    yield from range(9)
                finally:
                    closed.append(pt.current_span() is not None)

        held = [numbers()]
        next(held[0])
        run = {
            "thread": lambda drop: (lambda thread: (thread.start(), thread.join()))(
                threading.Thread(target=drop)
            ),
            "context": lambda drop: contextvars.copy_context().run(drop),
            "here": lambda drop: drop(),
        }[how]
        run(held.clear)
        gc.collect()
        assert closed == [True]
        assert pt.current_span() is None
        assert recorded.tree() == "numbers complete\n  inner complete"
        assert capsys.readouterr().err == ""

    def test_goes_through_unrecorded(self):
        """Without a run each item takes a short way, and the protocol is the bare generator's.

        But not where a block can be open between two items: what is current in it is not the consumer's.
        """

        def answers():
            got = []
            while len(got) < 9:
                try:
                    got.append((yield got[-1:]))
                except (Stop, GeneratorExit) as error:
                    got.append(type(error).__name__)
            return got

        def with_block():
            with pt.instance():
                yield 1

        def said(items):
            begun = [next(items), items.send("a"), next(items)]
            thrown = [items.throw(Stop), items.send("b"), items.throw(GeneratorExit), next(items)]
            with pytest.raises(TypeError):
                items.throw("no exception")
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                items.close()
            with pytest.raises(StopIteration) as stopped:
                [items.send("c") for _ in range(9)]
            return begun, thrown, stopped.value.value

        assert said(pt.span(answers)()) == said(answers())
        with recording():
            items = pt.span(with_block)()
            assert next(items) == 1
            assert pt.current_instance() is None
            items.close()

    @pytest.mark.parametrize("error", [StopIteration(1), StopAsyncIteration(), Stop(), KeyError()], ids=repr)
    def test_passes_on_what_is_thrown_unrecorded(self, error):
        """A context manager made of such a generator raises what its block has raised, whatever that is."""

        @contextlib.contextmanager
        @pt.span
        def manager():
            yield

        with pytest.raises(type(error)) as raised, manager():
            raise error
        assert raised.value is error

    def test_fails_unrecorded(self):
        """What the generator itself raises comes out as it does of the bare one, after an item or before the first."""

        def fails(at):
            while at:
                at -= 1
                yield at
            raise Stop

        for at in (0, 2):
            seen = []
            for make in (fails, pt.span(fails)):
                with pytest.raises(Stop) as raised:
                    list(make(at))
                seen.append(len(traceback.extract_tb(raised.value.__traceback__)))
            assert seen[1] - seen[0] == PUT_BACK

    def test_of_coroutines(self, recorded):
        """A generator for `await` stays one, and its result is what it returns."""

        @types.coroutine
        def old(x):
            yield from asyncio.sleep(0).__await__()
            return x

        async def main(traced):
            return await traced(3)

        for bare in (old, functools.partial(old)):
            assert asyncio.run(main(pt.span("old")(bare))) == 3
            assert (recorded.spans[-1].result, recorded.spans[-1].metadata) == ({"output": 3}, None)

    def test_as_context_manager(self, decorate):
        """`contextlib` makes the same of both."""
        import contextlib

        @contextlib.contextmanager
        @decorate
        def manager():
            yield 1

        with manager() as value:
            assert value == 1
        with pytest.raises(Stop), manager():
            raise Stop

    def test_that_has_caught_being_closed(self, recorded):
        """It was not abandoned if it went on and was consumed to its end."""

        @pt.span
        def steps():
            try:
                yield 1
            except GeneratorExit:
                yield 2
            yield 3
            return "end"

        running = steps()
        assert (next(running), running.throw(GeneratorExit), list(running)) == (1, 2, [3])
        span = recorded.spans[0]
        assert span.result == {"output": [1, 2, 3], "returned": "end"}
        assert "abandoned" not in span.metadata

    @pytest.mark.parametrize("is_recorded", [True, False])
    @pytest.mark.parametrize("is_async", [True, False])
    def test_lets_go_of_its_arguments(self, is_recorded, is_async):
        """What the generator itself has let go of is gone, however long the stream is."""

        def bare(thing, *rest, named, **others):
            del thing, rest, named, others
            yield 1
            yield 2

        async def async_bare(thing, *rest, named, **others):
            del thing, rest, named, others
            yield 1
            yield 2

        async def first(steps):
            await anext(steps)
            gone.append(all(each() is None for each in seen))
            await steps.aclose()

        def things():
            for _ in range(4):
                thing = Tool()
                seen.append(weakref.ref(thing))
                yield thing

        seen, gone = [], []
        with recording(), pt.instance() if is_recorded else contextlib.nullcontext():
            made = things()
            steps = pt.span(async_bare if is_async else bare)(
                next(made), next(made), named=next(made), other=next(made)
            )
            made.close()
            if is_async:
                asyncio.run(first(steps))
            else:
                next(steps)
                gone.append(all(each() is None for each in seen))
        assert gone == [True]


def played(steps, script):
    """Do to a generator what *script* says; return what came of each."""
    results = []
    errors = {
        each.__name__: each for each in (KeyError, Stop, GeneratorExit, StopIteration, KeyboardInterrupt)
    }
    for word, _, argument in (line.partition(" ") for line in script):
        try:
            if word == "throw":
                results.append(steps.throw(errors[argument](7)))
            elif word == "send":
                results.append(steps.send(argument))
            else:
                results.append(next(steps) if word == "next" else steps.close())
        except BaseException as error:
            results.append((type(error), error.args, type(error.__cause__)))
        results.append((steps.gi_running, inspect.getgeneratorstate(steps)))
    return results


class TestAsyncGenerators:
    def test_that_catches_being_closed(self, decorate):
        """`athrow(GeneratorExit)` reaches it, and what it does then is what the bare one does."""

        async def goes_on():
            try:
                yield 1
            except GeneratorExit:
                yield 2
            yield 3

        async def ends():
            try:
                yield 1
            except GeneratorExit:
                return

        async def play(steps):
            seen = [await anext(steps)]
            for step in (lambda: steps.athrow(GeneratorExit), steps.__anext__, steps.aclose, steps.__anext__):
                try:
                    seen.append(await step())
                except (StopAsyncIteration, GeneratorExit) as error:
                    seen.append(type(error))
            return seen

        for bare in (goes_on, ends):
            assert asyncio.run(play(decorate(bare)())) == asyncio.run(play(bare()))

    def test_that_ends_when_it_is_closed(self, recorded):
        """It was abandoned all the same."""

        @pt.span
        async def steps():
            try:
                yield 1
            except GeneratorExit:
                return

        async def play():
            running = steps()
            await anext(running)
            await running.aclose()

        asyncio.run(play())
        assert recorded.spans[0].metadata["abandoned"] is True

    def test_protocol(self, decorate):
        """The same of `asend`, `athrow` and `aclose`."""

        async def bare():
            value = 0
            while True:
                try:
                    value = yield value
                    await asyncio.sleep(0)
                    if value == "stop":
                        return
                except KeyError as error:
                    value = ("caught", error.args)

        async def play(steps, script):
            results = []
            errors = {each.__name__: each for each in (KeyError, Stop, GeneratorExit, KeyboardInterrupt)}
            for word, _, argument in (line.partition(" ") for line in script):
                try:
                    if word == "throw":
                        results.append(await steps.athrow(errors[argument](7)))
                    elif word == "send":
                        results.append(await steps.asend(argument))
                    else:
                        results.append(await (steps.__anext__() if word == "next" else steps.aclose()))
                except BaseException as error:
                    depth = len(traceback.extract_tb(error.__traceback__))
                    results.append((type(error), error.args, depth))
                results.append(steps.ag_running)
            return results

        scripts = [
            ["next", "send 1", "throw KeyError", "send stop", "next"],
            ["throw KeyError", "next"],
            ["send 1"],
            ["next", "throw Stop", "next", "close"],
            ["close", "next"],
            ["next", "close", "close", "next"],
            ["next", "throw GeneratorExit", "next"],
        ]
        layers = 1 if decorate(bare).__wrapped__ is bare else 2
        for script in scripts:
            expected, actual = asyncio.run(play(bare(), script)), asyncio.run(play(decorate(bare)(), script))
            for one, other in zip(expected, actual, strict=True):
                if type(one) is tuple and len(one) == 3:
                    assert other[2] - one[2] in range(layers + 1)
                    assert one[:2] == other[:2], script
                else:
                    assert one == other, script

    @pytest.mark.parametrize(
        "how", ["break", "gc in another task", "aclose in another task", "cancel", "loop ends"]
    )
    def test_left(self, recorded, how, caplog, capsys):
        """However it is left, it is closed as the bare one, the context is clean, and nobody complains."""
        log = []

        async def bare():
            try:
                for number in range(99):
                    await asyncio.sleep(0)
                    yield number
            finally:
                log.append("closed")

        async def program(make):
            steps = make()
            async for number in steps:
                assert pt.current_span() is None
                if number == 2:
                    break
            if how == "gc in another task":

                async def drop():
                    nonlocal steps
                    del steps
                    gc.collect()
                    await asyncio.sleep(0)

                await asyncio.create_task(drop())
            elif how == "aclose in another task":
                await asyncio.create_task(steps.aclose())
            elif how == "cancel":
                task = asyncio.create_task(steps.__anext__())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert pt.current_span() is None
            if how == "loop ends":
                held.append(steps)

        held = []
        asyncio.run(program(bare))
        asyncio.run(program(pt.span("numbers")(bare)))
        gc.collect()
        assert log == ["closed", "closed"]
        assert recorded.tree() == f"numbers {'cancelled' if how == 'cancel' else 'complete'}"
        assert recorded.spans[0].metadata["items"] == 3
        assert caplog.records == []
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("bare", [coroutine, async_generator], ids=lambda each: each.__name__)
    def test_cancelled_at_every_await(self, bare, recorded):
        """Cancelled at any point, both do the same in as many steps of the loop."""

        async def program(make, at, steps):
            async def consume():
                result = make(1, 2, 3)
                return [item async for item in result] if inspect.isasyncgen(result) else await result

            task = asyncio.create_task(consume())
            for _ in range(at):
                await asyncio.sleep(0)
                steps.append(task.done())
            task.cancel()
            while not task.done():
                await asyncio.sleep(0)
                steps.append(task.done())
            return task.cancelled()

        for at in range(8):
            expected, actual = [], []
            same = asyncio.run(program(bare, at, expected)) == asyncio.run(program(pt.span(bare), at, actual))
            assert (same, actual) == (True, expected)
        assert {each.status for each in recorded.spans} <= {"complete", "cancelled"}
        assert pt.current_span() is None


class TestContext:
    @by_kind
    def test_is_the_callers(self, bare, decorate):
        """A variable set inside is seen outside, exactly as with the bare function; the task is the caller's."""

        async def main(make):
            VISIBLE.set(0)
            result = make(5)
            if inspect.isasyncgen(result):
                [item async for item in result]
            elif inspect.iscoroutine(result):
                await result
            elif inspect.isgenerator(result):
                list(result)
            return VISIBLE.get(), len(asyncio.all_tasks())

        assert asyncio.run(main(decorate(bare))) == asyncio.run(main(bare))

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit, GeneratorExit, Stop]
    )
    @pytest.mark.parametrize("kind", ["function", "coroutine", "generator", "async generator"])
    def test_is_clean_after(self, error, kind, recorded):
        """Whatever leaves a function, it is the same object, and what was current is current again."""
        raised = error("x")

        def raises():
            with pt.span("inner"):
                raise raised

        @pt.span
        async def raises_async():
            raises()

        @pt.span
        def raises_between():
            yield raises()

        @pt.span
        async def raises_async_between():
            yield raises()

        calls = {
            "function": pt.span(raises),
            "coroutine": lambda: raises_async().send(None),
            "generator": lambda: next(raises_between()),
            "async generator": lambda: raises_async_between().__anext__().send(None),
        }
        run = pt.current_instance()
        with pt.span("outer") as outer:
            with pytest.raises(error) as caught:
                calls[kind]()
            assert caught.value is raised
            assert (pt.current_span(), pt.current_instance()) == (outer, run)

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_between_yields(self, recorded, backend):
        """Steps that the consumer takes between two items are not the generator's."""

        @pt.span("stream")
        async def stream():
            for number in range(3):
                await anyio.sleep(0)
                with pt.span("inside"):
                    yield number

        async def main():
            with pt.instance():
                async for _ in stream():
                    with pt.span("outside"):
                        await anyio.sleep(0)

        anyio.run(main, backend=backend)
        lines = recorded.tree().splitlines()
        assert lines == ["stream complete", *["  inside complete"] * 3, *["outside complete"] * 3]


# ---- other things that can be decorated --------------------------------------------------------------------


class Tool:
    """A tool."""

    def __init__(self, factor=2):
        self.factor = factor

    def __call__(self, x: int, *, y=0) -> int:
        """Multiply."""
        return x * self.factor + y

    def __len__(self):
        return self.factor

    def __eq__(self, other):
        return isinstance(other, Tool) and self.factor == other.factor

    __hash__ = None

    def method(self, x):
        return x


class AsyncTool:
    async def __call__(self, x):
        return x


plain_tool = Tool()
tool = pt.span("tool")(Tool(3))


@pt.span
def at_module_level(x):
    return x


@pt.span
@functools.lru_cache
def cached(x):
    return x


class TestObjects:
    def test_that_asks_for_its_name(self):
        """An object that a class body tells its name is told it."""

        class Field:
            def __set_name__(self, owner, name):
                self.name = name

            def __call__(self):
                return self.name

        class Form:
            title = pt.span(Field())

        assert Form.title() == "title"

    def test_is_not_asked(self, recorded):
        """Neither as it is decorated nor as it is called does an object learn of it."""
        asked = []

        class Shy:
            def __call__(self, a, *, b=2):
                return a, b

            def __eq__(self, _other):
                asked.append("eq")
                return True

            def __repr__(self):
                asked.append("repr")
                return ""

            def __bool__(self):
                asked.append("bool")
                return False

            def __len__(self):
                asked.append("len")
                return 0

            __hash__ = None

        assert pt.span(Shy())(1) == (1, 2)
        assert asked == []
        assert recorded.spans[0].payload == {"a": 1, "b": 2}

    def test_callable_object(self, recorded):
        """It is still the object: attributes, operators, `isinstance`, copies and pickles; and its calls are steps."""
        made = [tool, copy.copy(tool), copy.deepcopy(tool), pickle.loads(pickle.dumps(tool))]
        for each in made:
            assert (each(2, y=1), len(each), each == Tool(3), Tool(3) == each, isinstance(each, Tool)) == (
                7,
                3,
                True,
                True,
                True,
            )
            assert (each.__doc__, each.__module__, inspect.signature(each)) == (
                "A tool.",
                __name__,
                inspect.signature(plain_tool),
            )
            assert vars(each) == {"factor": 3}
            with pytest.raises(TypeError, match="unhashable"):
                hash(each)
        made[2].factor = 10
        assert (made[2](1), tool(1)) == (10, 3)
        assert [span.payload for span in recorded.spans[:4]] == [{"x": 2, "y": 1}] * 4
        assert {span.type for span in recorded.spans} == {"tool"}

    def test_object_without_a_name(self, recorded):
        """It is called as its class is."""
        pt.span(Tool())(1)
        pt.span(functools.partial(Tool(), 1))()
        assert [span.type for span in recorded.spans] == ["Tool", "Tool"]

    def test_kinds(self, recorded):
        """Bound methods, partials, C functions and others keep their nature and attributes."""
        subjects = {
            "bound": (Tool().method, (1,)),
            "partial": (functools.partial(function, 1, c=4), (2,)),
            "partial coroutine": (functools.partial(coroutine, 1), (2,)),
            "builtin": (len, ([1],)),
            "method of C": (str.upper, ("a",)),
            "bound of C": ("a".upper, ()),
            "operator": (__import__("operator").itemgetter(0), ([5],)),
            "cached": (functools.lru_cache(function), (1,)),
            "dispatch": (functools.singledispatch(function), (1,)),
            "async object": (AsyncTool(), (1,)),
            "partial async object": (functools.partial(AsyncTool()), (1,)),
            "lambda": (lambda x: x, (1,)),
        }
        for name, (bare, args) in subjects.items():
            traced = pt.span(name)(bare)
            assert drain(traced(*args)) == drain(bare(*args)), name
            assert isinstance(traced, type(bare)), name
            assert inspect.iscoroutinefunction(traced) == inspect.iscoroutinefunction(bare), name
            try:
                signature = inspect.signature(bare)
            except ValueError:
                continue
            assert inspect.signature(traced) == signature, name
        assert [span.name for span in recorded.spans] == list(subjects)
        assert {span.status for span in recorded.spans} == {"complete"}
        results = {span.name: span.result for span in recorded.spans}
        assert results["partial async object"] == results["async object"]

    def test_cache(self, recorded):
        """The cache of a cached function can be reached, also of a method."""
        assert cached(1) == cached(1)
        assert cached.cache_info().hits >= 1
        cached.cache_clear()

        class Cached:
            @pt.span
            @functools.lru_cache  # noqa: B019 - it is about that
            def method(self, x):
                return x

        one = Cached()
        assert (one.method(1), one.method(1), Cached.method.cache_info().hits) == (1, 1, 1)
        assert recorded.spans[-1].payload == {"x": 1}

    def test_builtin_in_a_class(self, recorded):
        """What does not bind does not begin to."""

        class Holder:
            size = pt.span(len)

        assert Holder().size([1, 2]) == 2

    def test_awaitable_marks(self, recorded):
        """A function marked as a coroutine function stays one, and its step covers what it returns."""
        if not hasattr(inspect, "markcoroutinefunction"):
            pytest.skip("came with Python 3.12")

        def starts():
            return coroutine(1)

        traced = pt.span("marked")(inspect.markcoroutinefunction(starts))
        assert inspect.iscoroutinefunction(traced)
        assert asyncio.run(traced()) == (1, 2, (), 3, {})
        assert recorded.spans[0].result == {"output": [1, 2, [], 3, {}]}

    def test_object_that_cannot_be_asked(self):
        """An object that answers every question with an error of its own is refused with ours."""

        class Rude:
            def __getattribute__(self, name):
                raise RuntimeError(name)

            def __call__(self):
                return 1

        with pytest.raises(pt.ConfigurationError, match="Rude cannot be recorded"):
            pt.span(Rude())

    @pytest.mark.parametrize(
        "nothing", [3, None, "x", {}, object(), property(None, print)], ids=lambda each: type(each).__name__
    )
    @pytest.mark.parametrize("decorator", [pt.span("x"), pt.instance()], ids=["span", "instance"])
    def test_what_cannot_be_decorated(self, nothing, decorator):
        """It is refused where it is decorated, with its type and what to do."""
        with pytest.raises(pt.ConfigurationError, match="cannot be called.* decorate a function"):
            decorator(nothing)


class TestMethods:
    def test_descriptors(self, recorded):
        """Each kind of method in either order; properties keep their setters, abstract methods stay abstract."""

        class Base(abc.ABC):
            @pt.span
            @abc.abstractmethod
            def abstract(self): ...

            @pt.span
            @property
            @abc.abstractmethod
            def value(self): ...

        assert Base.__abstractmethods__ == {"abstract", "value"}

        class All(Base):
            abstract = pt.span(lambda self: 1)
            part = pt.span(functools.partialmethod(Tool.method, 7))

            def __init__(self):
                self._value = 0

            @pt.span
            @property
            def value(self):
                """The value."""
                return self._value

            @value.setter
            def value(self, value):
                self._value = value

            @value.deleter
            def value(self):
                self._value = None

            @pt.span
            @functools.cached_property
            def slow(self):
                return object()

            @pt.span
            @classmethod
            async def made(cls, x):
                return cls, x

            @classmethod
            @pt.span
            def items(cls):
                yield cls

            @pt.span
            @staticmethod
            def static(self):  # noqa: PLW0211 - a trap
                return self

        class Whole:
            value = pt.span(
                property(lambda self: self.x, lambda self, x: setattr(self, "x", x), doc="Whole.")
            )

        whole = Whole()
        whole.value = 3
        assert (whole.value, Whole.value.__doc__) == (3, "Whole.")

        one = All()
        one.value = 5
        assert (one.abstract(), one.part(), one.value, All.value.__doc__) == (1, 7, 5, "The value.")
        del one.value
        assert one.value is None
        assert one.slow is one.slow
        assert asyncio.run(All.made(1)) == asyncio.run(one.made(1)) == (All, 1)
        assert list(one.items()) == [All]
        assert one.static(4) == All.static(4) == 4
        names = [span.type.rpartition(".")[2] for span in recorded.spans]
        expected = "<lambda> <lambda> method value value slow made made items static static"
        assert names == expected.split()

    def test_class(self, recorded):
        """A class is itself afterwards; what is public, its own, and a method is recorded."""

        class Base:
            def inherited(self): ...

        class Agent(Base):
            count = 0
            tool = plain_tool
            also = pt.span("tool:also")(lambda self: None)

            def __init__(self, x=0):
                self.x = x

            def act(self, x):
                return x

            async def act_async(self): ...

            def stream(self):
                yield 1

            @classmethod
            def make(cls):
                return cls(1)

            @staticmethod
            def help(x): ...

            @property
            def value(self):
                return self.x

            def _private(self): ...

            class Inner:
                def method(self): ...

        bare = dict(vars(Agent))
        assert pt.span(Agent) is Agent
        changed = {name for name, value in vars(Agent).items() if value is not bare[name]}
        assert changed == {"act", "act_async", "stream", "make", "help"}
        one = Agent.make()
        assert (type(one), one.act(2), one.value, list(one.stream())) == (Agent, 2, 1, [1])
        asyncio.run(one.act_async())
        one.help(1), one.also(), one.inherited(), one._private(), Agent.Inner().method()
        names = [span.name.rpartition(".")[2] for span in recorded.spans]
        assert names == ["make", "act", "stream", "act_async", "help", "tool:also"]
        assert [span.payload for span in recorded.spans[:2]] == [{}, {"x": 2}]
        assert pt.span(Agent) is Agent
        one.act(3)
        assert len(recorded.spans) == 7

    @pytest.mark.parametrize(
        ("decorator", "kind"),
        [
            (pt.instance, Tool),
            (pt.span("a"), Tool),
            (pt.span(title="a"), Tool),
            (pt.span(payload=1), Tool),
            (pt.span(fold=print), Tool),
            (pt.span, int),
        ],
    )
    def test_what_a_class_cannot_have(self, decorator, kind):
        """What belongs to one function, and what cannot be changed, is refused."""
        before = dict(vars(kind))
        with pytest.raises(pt.ConfigurationError, match=kind.__name__):
            decorator(kind)
        assert dict(vars(kind)) == before


class TestGlobals:
    @pytest.mark.parametrize("bare", [*FUNCTIONS, Tool().__call__], ids=lambda f: f.__qualname__)
    def test_are_those_of_the_function(self, bare, decorate):
        """Who looks up names by a function's globals, as web frameworks do for annotations, finds them."""
        assert decorate(bare).__globals__ is bare.__globals__

    def test_a_warning_names_the_line_of_the_call(self, decorate):
        """Where frames above a function are counted, ours is none of them; `logging` knows so since Python 3.11."""
        logger, records = logging.getLogger("here"), []
        logger.setLevel(logging.INFO)
        said = lambda record: records.append((record.pathname, record.lineno))  # noqa: E731
        logger.addFilter(said)

        def warns():
            warnings.warn("near", UserWarning, stacklevel=2)
            logger.info("far", stacklevel=2)

        async def warns_later():
            warns()

        def warns_on_the_way():
            yield warns()

        class Owner:
            method = decorate(lambda self: warns())

        def calls():
            decorate(lambda: warnings.warn("near", UserWarning, stacklevel=2))()
            list(decorate(warns_on_the_way)())
            anyio.run(decorate(warns_later))
            Owner().method()
            decorate(warns)()

        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            calls()
        logger.removeFilter(said)
        own = [each for each in seen if each.filename == __file__]
        first = inspect.getsourcelines(calls)[1]
        assert len(own) == 5
        assert (own[0].lineno, own[-1].lineno) == (first + 1, first + 5)
        if sys.version_info >= (3, 11):
            assert records[-1] == (__file__, first + 5)

    def test_a_warning_is_of_the_users_script(self):
        """What a decorated function of a script warns its caller of is shown, as it is of the bare one."""
        program = (
            "import warnings, prefactor_trace as pt\n"
            "@pt.span\n"
            "def old(): warnings.warn('old() is old', DeprecationWarning, stacklevel=2)\n"
            "old()\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
        assert b"DeprecationWarning: old() is old" in done.stderr

    @pytest.mark.parametrize(
        "own", [{"StopIteration": KeyError, "BaseException": KeyError}, {"__builtins__": {}}]
    )
    def test_in_which_our_words_mean_something_else(self, own, recorded):
        """A module that has names of exceptions for itself, or none, is recorded all the same."""
        namespace = dict(own)
        exec("def steps(n):\n    yield n\n    return n\ndef fail(): 1 / 0", namespace)
        assert list(pt.span(namespace["steps"])(3)) == [3]
        with pytest.raises(ZeroDivisionError):
            pt.span(namespace["fail"])()
        assert [span.status for span in recorded.spans] == ["complete", "failed"]


class TestTwice:
    @pytest.mark.parametrize(
        "bare", [*FUNCTIONS, Tool(), functools.partial(function, 1)], ids=lambda f: type(f).__name__
    )
    def test_is_once(self, bare, recorded):
        """Decorated twice, there is one step; the outer decorator's choices hold over the inner one's."""
        inner = pt.span("inner", title="Inner", capture_outputs=False)(bare)
        for outer, expected in (
            (pt.span(inner), ("inner", "Inner", None)),
            (pt.span("outer", capture_outputs=True)(inner), ("outer", "Inner", {})),
        ):
            drain(outer(1))
            span = recorded.spans[-1]
            assert (span.type, span.name, span.result and {}) == expected
        assert len(recorded.spans) == 2
        assert pt.span(inner).__wrapped__ is inner.__wrapped__

    def test_runs(self):
        """The same of runs; a step and a run around one function are both kept."""
        with recording() as recorded:
            pt.instance(agent_name="outer")(pt.instance(agent_name="inner", agent_version="2")(function))(1)
            (run,) = recorded.instances
            version = run.registered["agent_version"]
            assert (version["name"], version["external_identifier"]) == ("outer", "2")
            pt.instance(pt.span(function))(1)
            assert (len(recorded.instances), recorded.tree()) == (2, "function complete")

    def test_what_was_put_on_it_in_between(self, recorded):
        """Marks, words and defaults that a function got between two decorators stay on it."""

        @pt.span
        def bare(a, b=1):
            return a, b

        bare.mark, bare.__doc__, bare.__name__, bare.__defaults__ = [1], "Later.", "other", (5,)
        outer = pt.span("outer")(bare)
        assert (outer.mark, outer.__doc__, outer.__name__, outer(1)) == ([1], "Later.", "other", (1, 5))
        assert outer.__wrapped__ is bare.__wrapped__
        assert [span.type for span in recorded.spans] == ["outer"]

    def test_with_another_decorator_between(self, recorded):
        """What somebody else has wrapped in between is a function of its own."""

        def other(function):
            @functools.wraps(function)
            def wrapper(*args):
                return *function(*args), 0

            return wrapper

        traced = pt.span(other(pt.span(function)))
        assert traced(1)[-1] == 0
        assert len(recorded.spans) == 2


# ---- other processes ---------------------------------------------------------------------------------------

_BY_VALUE = """
import asyncio, functools, sys, cloudpickle
import prefactor_trace as pt

class Local:
    def __call__(self, x): return x

@pt.span
def plain(x, y=2): return x + y
@pt.span(capture_inputs=False)
async def coroutine(x): return x
@pt.span(fold=lambda so_far, item: item)
def generator(x): yield x
@pt.span
async def async_generator(x): yield x
@pt.instance(agent_name="bot")
def run(x): return plain(x)
sys.stdout.buffer.write(cloudpickle.dumps(
    [plain, coroutine, generator, async_generator, run, pt.span(Local()), pt.span(functools.partial(plain, 1))]
))
"""


class TestTravel:
    @pytest.mark.parametrize(
        "thing", [at_module_level, cached, tool, pt.span(len), pt.span(functools.partial(max, 2))]
    )
    def test_pickle(self, thing):
        """What pickles bare pickles decorated: by reference if it is found under its name."""
        again = pickle.loads(pickle.dumps(thing))
        assert type(again).__name__ == type(thing).__name__
        if thing in (at_module_level, cached):
            assert again is thing
            assert copy.deepcopy(thing) is thing

    def test_process_pool(self, recorded):
        """A pool of processes takes a decorated function."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(_work, [1, 2])) == [2, 4]

    def test_by_value(self, recorded):
        """`cloudpickle` sends functions of a script by value; where they arrive they record."""
        cloudpickle = pytest.importorskip("cloudpickle")
        sent = subprocess.run([sys.executable, "-c", _BY_VALUE], capture_output=True, check=True, timeout=60)
        plain, coroutine, generator, async_generator, run, local, part = cloudpickle.loads(sent.stdout)
        assert (plain(1), asyncio.run(coroutine(2)), list(generator(3)), drain(async_generator(4))) == (
            3,
            2,
            [3],
            [4],
        )
        assert (run(5), local(6), part(7)) == (7, 6, 8)
        # Sorted: the clocks of the two runs need not agree.
        names = sorted(span.name for span in recorded.spans)
        assert names == [
            "Local",
            "async_generator",
            "coroutine",
            "generator",
            "plain",
            "plain",
            "plain",
            "plain",
        ]
        folded = next(span for span in recorded.spans if span.name == "generator")
        assert folded.result == {"output": 3}
        assert len(recorded.instances) == 2


@pt.span
def _work(x):
    return x * 2


def test_wrapped_is_ours():
    """Only what we have wrapped is taken for it."""
    assert _wrap.opener_of(function) is None
    assert _wrap.opener_of(at_module_level) is not None
    assert _wrap.opener_of(_wrap.wrap) is None


def test_classes_are_compared_with_nothing(recorded):
    """Values whose class has a class of its own, with an `==` and a hash, pass without either being called."""

    def never(*_):
        raise SystemExit

    class Meta(type):
        __eq__ = __hash__ = never

    class Odd(metaclass=Meta):
        __hash__ = object.__hash__

    class Item(typing.TypedDict):
        key: typing.Annotated[str, pt.Secret]

    @pt.span
    def items(value):
        yield value

    @pt.span
    def marked(value: Item, others: list[Item], hidden: typing.Annotated[object, pt.Secret]):
        raise Stop

    @pt.span
    def ends(value):
        raise SystemExit(value)

    odd = Odd()
    for value in (odd, Odd, [odd], {"a": odd}, collections.ChainMap({odd: 1})):
        (item,) = items(value)
        assert item is value
        with pytest.raises(Stop):
            marked(value, [value], value)
        with pytest.raises(SystemExit) as caught:
            ends(value)
        assert caught.value.code is value
    assert [span.status for span in recorded.spans] == ["complete", "failed", "failed"] * 5


def test_stand_ins_for_stand_ins(recorded):
    """An object that is decorated as a step and as a run passes for what it is."""

    class Adder:
        def __call__(self, a):
            return a + 1

    for thing, kind in ((Adder(), Adder), (functools.partial(max, 1), functools.partial)):
        assert isinstance(pt.instance(pt.span(thing)), kind)
        assert pt.instance(pt.span(thing)).__class__ is kind


@pytest.mark.parametrize("in_a_run", [True, False])
def test_exits_that_are_swallowed(in_a_run):
    """A GeneratorExit that is thrown in can be swallowed, by an item or by the end, whether it is recorded or not."""

    def goes_on():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    def swallows():
        with contextlib.suppress(GeneratorExit):
            yield 1

    with recording(), pt.instance() if in_a_run else contextlib.nullcontext():
        steps = pt.span(goes_on)()
        next(steps)
        assert steps.throw(GeneratorExit()) == 2
        with contextlib.contextmanager(pt.span(swallows))():
            raise GeneratorExit


def test_the_loop_knows_of_one_generator(recorded):
    """A loop that ends closes what its consumer has left, once: nothing is told to its exception handler."""
    said = []

    @pt.span
    async def left():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            said.append("closed")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context["message"]))
        kept.append(left())
        await kept[-1].__anext__()
        assert list(loop._asyncgens) == kept[-1:]

    kept = []
    for _ in range(5):
        asyncio.run(main())
    assert said == ["closed"] * 5

"""Spans: what is recorded of a step, and that nobody can tell."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import sys
import time
import traceback
from unittest import mock

import anyio
import pytest

import prefactor_trace as pt
from prefactor_trace.testing import recording


@pt.span
def add(a, b=2):
    """Add."""
    return a + b


class TestBlock:
    def test_with(self, recorded):
        """The block's type, payload, result and metadata are recorded; it is current inside."""
        with pt.span("agent:plan", payload={"hits": [1, 2]}, title="Plan") as step:
            assert pt.current_span() is step
            step.set_result({"plan": "answer"})
            step.set_metadata({"model": "m"})
        assert pt.current_span() is None
        (span,) = recorded.spans

        assert (span.id, span.type, span.name, span.status) == (step.id, "agent:plan", "Plan", "complete")
        assert (span.payload, span.result, span.metadata) == (
            {"hits": [1, 2]},
            {"plan": "answer"},
            {"model": "m"},
        )
        assert span.finished_at > span.started_at

    @pytest.mark.parametrize(
        ("title", "name"),
        [
            ("é" * 1_000, "é" * 1_000),
            ("x" * 5_000_000, "x" * 960 + "... (5000000 characters)"),
            ("\ud800 x\0", "\\ud800 x\\u0000"),
            (type("Own", (str,), {"__str__": None, "__len__": None, "__eq__": None})("own"), "own"),
            (5, "step"),
            (["a"], "step"),
        ],
        ids=["long", "longer", "surrogate", "own", "number", "list"],
    )
    def test_titles(self, recorded, title, name, caplog):
        """Any title leaves the span recorded, with text of a bounded length; what is no text is left out."""
        for _ in range(2):
            with pt.span("step", title=title):
                pass
        assert [span.name for span in recorded.spans] == [name, name]
        assert recorded.tree().count("\n") == 1  # testing can show it
        assert len(caplog.records) <= 1

    def test_a_secret_in_a_title(self, recorded):
        """A secret in a title is taken out, wherever it stands and even where the title was cut."""
        for before in ("", "\ud800", "\0", "x " * 475):
            with pt.span("step", title=f"{before}sk-ant-api03-Ab3dE5fG7hI9jK1lM2nO4" + " x" * 500):
                pass
        assert not [span for span in recorded.spans if "Ab3" in span.name]

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_async_with(self, recorded, backend):
        """The same, asynchronously."""

        async def main():
            with pt.instance():
                async with pt.span("a") as step:
                    await anyio.sleep(0)
                    assert pt.current_span() is step

        anyio.run(main, backend=backend)
        assert recorded.tree() == "a complete"

    def test_values_that_are_no_objects(self, recorded):
        """Payloads and results that are not JSON objects are put into one."""
        with pt.span("a", payload="text") as step:
            step.set_result([1])
        (span,) = recorded.spans
        assert (span.payload, span.result) == ({"input": "text"}, {"output": [1]})

    def test_none_is_a_payload(self, recorded):
        """`payload=None` is recorded; no payload is not."""
        with pt.span("a", payload=None), pt.span("b"):
            pass
        assert [span.payload for span in recorded.spans] == [{"input": None}, None]

    def test_set_payload(self, recorded):
        """The payload can be known late."""
        with pt.span("a", payload=1) as step:
            step.set_payload({"x": 2})
        assert recorded.spans[0].payload == {"x": 2}

    def test_snapshots(self, recorded):
        """What is recorded is what was there at the time; later changes are not seen."""
        messages = [{"role": "user"}]
        with pt.span("a", payload=messages):
            messages.append({"role": "assistant"})
        assert recorded.spans[0].payload == {"input": [{"role": "user"}]}

    def test_token_usage(self, recorded):
        """Counts are copied as they are set, and stand beside payload and result."""
        with pt.span("agent:llm") as step:
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            step.set_token_usage(usage)
            usage["total_tokens"] = 0

        (span,) = recorded.spans
        assert span.token_usage == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}

    def test_fail_and_cancel(self, recorded):
        """A step can be failed or cancelled without an exception; an exception overrules a cancel."""
        with pt.span("a") as step:
            step.set_result(1)
            step.fail("no luck")
        with pt.span("b") as step:
            step.fail(ValueError("wrong"))
        with pt.span("c") as step:
            step.cancel()
        with pytest.raises(KeyError), pt.span("d") as step:
            step.cancel()
            raise KeyError("x")

        assert recorded.tree() == "a failed\nb failed\nc cancelled\nd failed"
        errors = [span.error for span in recorded.spans]
        assert errors[0] == {"error_type": "Error", "message": "no luck", "stacktrace": ""}
        assert (errors[1]["error_type"], errors[1]["message"]) == ("ValueError", "wrong")
        assert errors[3]["error_type"] == "KeyError"
        assert recorded.spans[0].result == {"output": 1}

    def test_explicit_parent(self, recorded):
        """A step can hang under another span, or directly under the run, whatever is current."""
        with pt.span("a") as a, pt.span("b"):
            with pt.span("c", parent=a):
                pass
            with pt.span("d", parent=pt.current_instance()):
                pass
        assert recorded.tree() == "a complete\n  b complete\n  c complete\nd complete"

    def test_capture_switches(self):
        """Settings switch capturing off, and a span can decide for itself."""
        with recording(capture_inputs=False, capture_outputs=False) as recorded, pt.instance():
            add(1)
            pt.span(capture_inputs=True, capture_outputs=True)(add.__wrapped__)(1)
            with pt.span("c", payload=1) as step:
                step.set_payload(2)
                step.set_result(1)
            spans = recorded.spans
        assert [(span.payload, span.result) for span in spans] == [
            (None, None),
            ({"a": 1, "b": 2}, {"output": 3}),
            (None, None),
        ]

    def test_lengths(self):
        """Strings are cut at the settings' lengths, and say so."""
        with recording(max_input_length=5, max_output_length=3) as recorded, pt.instance():
            pt.span("x")(lambda text: text)("abcdefgh")
            (span,) = recorded.spans
        assert span.payload == {"text": {"$truncated": "abcde", "length": 8}}
        assert span.result == {"output": {"$truncated": "abc", "length": 8}} or span.result == {
            "$truncated": "abc",
            "length": 8,
        }

    def test_outside_of_any_run(self):
        """Spans outside of a run do nothing, quietly, and say so once at debug level."""
        with recording() as recorded:
            assert add(1) == 3
            with pt.span("a", payload=1) as step:
                step.set_payload(1)
                step.set_result(1)
                step.set_metadata({})
                step.fail("x")
                step.cancel()
                assert pt.current_span() is None
            assert step.id == ""
            assert recorded.ledger == (0, 0, {}, 0, {})

    def test_implicit_instances(self):
        """`implicit_instances` opens a run around an outermost span, and finishes it as the span ends."""
        with recording(implicit_instances=True) as recorded:
            add(1)
            with pytest.raises(ValueError, match="x"), pt.span("outer"), pt.span("inner"):
                raise ValueError("x")
            assert [each.status for each in recorded.instances] == ["complete", "failed"]
            assert recorded.tree() == "add complete\nouter failed\n  inner failed"

    def test_implicit_instances_by_environment(self, monkeypatch):
        """The variable alone is enough: the first span outside of a run looks at the settings."""
        monkeypatch.setenv("PREFACTOR_IMPLICIT_INSTANCES", "1")
        add(1)
        assert pt.stats().created == 4

    def test_implicit_instances_are_sampled_whole(self):
        """A step inside of one that was sampled out is not a run of its own."""
        with recording(implicit_instances=True, sample_rate=0.5) as recorded:
            for _ in range(200):
                with pt.span("outer"), pt.span("inner"):
                    pass
            names = [span.name for span in recorded.spans]
            assert 50 < names.count("outer") == names.count("inner") < 150
            assert len(recorded.instances) == names.count("outer")

    def test_span_types(self, recorded):
        """A `SpanType` names the type; without an envelope the payload is sent as it is."""
        kind = pt.SpanType("tool:search", title="Search", envelope=False)
        with pt.span(kind, payload={"q": 1}):
            pass
        assert recorded.spans[0].type == "tool:search"


class TestDecorator:
    def test_arguments_by_name(self, recorded):
        """Arguments are recorded by name, defaults and extra ones included, and the result beside them."""

        @pt.span
        def call(a, /, b, *rest, c=3, **others):
            return {"a": a}

        call(1, 2, 9, 8, d=4)
        (span,) = recorded.spans
        assert span.payload == {"a": 1, "b": 2, "rest": [9, 8], "c": 3, "d": 4}
        assert span.result == {"a": 1}

    def test_names(self, recorded):
        """The type is the function's qualified name, unless another is given."""
        add(1)
        pt.span("tool:add", title="Adding")(add.__wrapped__)(1)
        assert [(span.type, span.name) for span in recorded.spans] == [("add", "add"), ("tool:add", "Adding")]

    def test_a_clock_that_a_test_has_replaced(self, recorded):
        """The program's calls of the clock are the program's: a step takes none of the values given for them."""

        @pt.span
        def measured():
            began = time.time_ns()
            return time.time_ns() - began

        with (
            mock.patch("time.time_ns", side_effect=[100, 350]),
            mock.patch("time.monotonic_ns", side_effect=[]),
        ):
            assert measured() == 250
        assert len(recorded.spans) == 1

    def test_a_name_with_code_of_its_own(self, recorded):
        """Of a kind of text only the text counts."""

        class Name(str):
            __slots__ = ()
            __hash__ = None

            def __eq__(self, other):
                raise RuntimeError

            def __bool__(self):
                raise RuntimeError

        with pt.span(Name("plan")):
            pass
        assert recorded.spans[0].type == "plan"

    def test_methods(self, recorded):
        """Methods, class methods and static methods in either order, and properties; `self` is not a payload."""

        class Tool:
            @pt.span
            def method(self, x):
                return x

            @classmethod
            @pt.span
            def below_class(cls, x):
                return x

            @pt.span
            @classmethod
            def above_class(cls, x):
                return x

            @staticmethod
            @pt.span
            def below_static(x):
                return x

            @pt.span
            @staticmethod
            def above_static(x):
                return x

            @pt.span
            @property
            def prop(self):
                return 6

        tool = Tool()
        calls = [tool.method, tool.below_class, tool.above_class, tool.below_static, tool.above_static]
        assert [call(number) for number, call in enumerate(calls)] == [0, 1, 2, 3, 4]
        assert tool.prop == 6
        assert [span.payload for span in recorded.spans] == [*({"x": number} for number in range(5)), {}]

    def test_bound_methods_and_partials(self, recorded):
        """What is bound already is not recorded again; its arguments are."""
        import functools

        class Tool:
            def method(self, x):
                return x

        assert pt.span("bound")(Tool().method)(1) == 1
        assert pt.span("partial")(functools.partial(add.__wrapped__, 1))(b=5) == 6
        assert [span.payload for span in recorded.spans] == [{"x": 1}, {"b": 5}]

    def test_hostile_options(self, recorded, caplog):
        """Wrong and evil values for options are said in the log; none of their code runs, and the step is recorded."""

        class Evil:
            def __getattribute__(self, name):
                raise SystemExit(name)

        with pt.span("a", parent=Evil(), payload=Evil()) as step:
            step.set_result(Evil())
            step.fail(Evil())
        assert recorded.tree() == "a failed"
        assert "parent" in caplog.text

    def test_is_indistinguishable(self):
        """Signature, names, docstring, kind and pickling are the bare function's."""

        async def coroutine(x: int) -> int:
            return x

        def generator():
            yield

        async def async_generator():
            yield

        assert str(inspect.signature(add)) == "(a, b=2)"
        assert (add.__name__, add.__qualname__, add.__doc__, add.__module__) == (
            "add",
            "add",
            "Add.",
            __name__,
        )
        assert inspect.iscoroutinefunction(pt.span(coroutine))
        assert inspect.isgeneratorfunction(pt.span(generator))
        assert inspect.isasyncgenfunction(pt.span(async_generator))
        assert pickle.loads(pickle.dumps(add)) is add

    def test_wrong_arguments(self, recorded):
        """A call with wrong arguments raises what the bare function raises; as it never ran, it is no step."""
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            add()
        assert recorded.tree() == ""

    def test_exception(self, recorded):
        """The exception goes on unchanged, with no frame of ours, and is recorded with type, message and stack."""
        error = ValueError("broken")
        error.__cause__ = cause = KeyError()

        @pt.span
        def fails():
            raise error

        with pytest.raises(ValueError, match="broken") as caught:
            fails()
        assert caught.value is error
        assert error.__cause__ is cause
        assert len(traceback.extract_tb(error.__traceback__)) == (2 if sys.version_info >= (3, 11) else 3)
        (span,) = recorded.spans
        assert span.status == "failed"
        assert (span.error["error_type"], span.error["message"]) == ("ValueError", "broken")
        assert "fails" in span.error["stacktrace"]

    def test_exception_is_not_kept(self, recorded):
        """No reference to the exception, and so to its frames, stays behind."""

        class Odd(Exception):
            pass

        @pt.span
        def fails():
            raise Odd

        try:
            fails()
        except Odd:
            pass
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is Odd]

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_async(self, recorded, backend):
        """A coroutine function is recorded in the caller's task, cancelled as the task is."""

        @pt.span
        async def work(x):
            await anyio.sleep(0)
            return x

        @pt.span
        async def hangs():
            await anyio.sleep_forever()

        async def main():
            with pt.instance():
                assert await work(1) == 1
                with anyio.move_on_after(0):
                    await hangs()
                assert pt.current_span() is None

        anyio.run(main, backend=backend)
        names = ["TestDecorator.test_async.<locals>.work", "TestDecorator.test_async.<locals>.hangs"]
        assert recorded.tree() == f"{names[0]} complete\n{names[1]} cancelled"

    def test_contextvars_set_inside_are_visible_outside(self, recorded):
        """The function runs in the caller's context."""
        import contextvars

        variable = contextvars.ContextVar("variable", default=0)

        @pt.span
        async def sets():
            variable.set(1)

        async def main():
            await sets()
            return variable.get()

        assert asyncio.run(main()) == 1

    def test_double_decoration(self, recorded):
        """Decorated twice, a function is still one step."""
        assert pt.span(add)(1) == 3
        assert recorded.tree() == "add complete"

    def test_outside_of_any_run_generators_are_untouched(self):
        """All protocols work the same when nothing is recorded."""

        @pt.span
        async def numbers():
            got = yield 1
            yield got

        async def main():
            steps = numbers()
            return [await anext_(steps), await steps.asend(5)]

        async def anext_(steps):
            return await steps.__anext__()

        assert asyncio.run(main()) == [1, 5]


class TestGenerator:
    def test_protocol(self, recorded):
        """Sent and thrown values reach the generator, its return value comes back, its steps are children."""

        @pt.span("talk")
        def talk():
            with pt.span("inner"):
                try:
                    got = yield 1
                except KeyError:
                    got = "key error"
            again = yield got
            return again

        def outer():
            return (yield from talk())

        steps = outer()
        assert next(steps) == 1
        assert pt.current_span() is None
        assert steps.throw(KeyError()) == "key error"
        with pytest.raises(StopIteration) as stop:
            steps.send("end")
        assert stop.value.value == "end"
        assert recorded.tree() == "talk complete\n  inner complete"
        assert recorded.spans[0].metadata["items"] == 2
        assert recorded.spans[0].result == {"output": [1, "key error"], "returned": "end"}

    def test_left_by_its_consumer(self, recorded):
        """A generator that was left early is complete, marked as abandoned, with the count of items."""

        @pt.span("numbers")
        def numbers():
            yield from range(10)

        for number in numbers():
            if number == 2:
                break
        gc.collect()
        (span,) = recorded.spans
        assert (span.status, span.metadata["items"], span.metadata["abandoned"]) == ("complete", 3, True)
        assert span.result == {"output": [0, 1, 2]}

    def test_closing_is_the_generators_own_affair(self, recorded):
        """What a generator does when it is closed, it does decorated, too; and nothing of an error is kept."""

        @pt.span("stubborn")
        def stubborn():
            try:
                yield 1
            except GeneratorExit:
                yield 2

        steps = stubborn()
        next(steps)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            steps.close()

        @pt.span("polite")
        def polite():
            try:
                yield 1
            except GeneratorExit:
                return "bye"

        steps = polite()
        next(steps)
        with pytest.raises(StopIteration) as stop:
            steps.throw(GeneratorExit())
        assert stop.value.value == "bye"
        metadata = recorded.spans[-1].metadata
        assert (metadata["items"], metadata["abandoned"]) == (1, True)

    def test_failing(self, recorded):
        """An exception inside fails the span and goes on; later steps end as the bare generator's would."""

        @pt.span("numbers")
        def numbers():
            yield 1
            raise ValueError("x")

        steps = numbers()
        next(steps)
        with pytest.raises(ValueError, match="x"):
            next(steps)
        assert list(steps) == []
        assert recorded.tree() == "numbers failed"

    def test_block_inside_an_abandoned_generator(self, recorded):
        """A block left because its generator was closed is complete and marked as abandoned."""

        def numbers():
            with pt.span("block"):
                yield 1
                yield 2

        steps = numbers()
        next(steps)
        steps.close()
        (span,) = recorded.spans
        assert (span.status, span.metadata) == ("complete", {"abandoned": True})

    def test_blocks_inside(self, recorded):
        """A block that a generator has entered is current there after every yield, and nowhere else."""

        @pt.span("numbers")
        def numbers():
            with pt.span("inner"):
                yield 1
                with pt.span("second"):
                    yield 2
                with pt.span("third"):
                    pass
            with pt.span("after"):
                pass

        for _ in numbers():
            assert pt.current_span() is None
        assert pt.current_span() is None
        assert recorded.tree() == (
            "numbers complete\n  inner complete\n    second complete\n    third complete\n  after complete"
        )

    def test_metadata_of_the_user(self, recorded):
        """A name that the user's metadata has taken stays the user's."""

        @pt.span("numbers")
        def numbers():
            pt.current_span().set_metadata({"items": "mine"})
            yield 1

        list(numbers())
        assert recorded.spans[0].metadata["items"] == "mine"

    def test_metadata_that_only_looks_taken(self, recorded):
        """The same name further inside, or in a text, takes nothing."""

        @pt.span("numbers")
        def numbers():
            pt.current_span().set_metadata({"order": {"items": [1]}, "text": '"items":'})
            yield 1

        list(numbers())
        assert recorded.spans[0].metadata["items"] == 1


class TestAsyncGenerator:
    def test_blocks_inside(self, recorded):
        """A block that an asynchronous generator has entered is current there after every yield."""

        @pt.span("numbers")
        async def numbers():
            with pt.span("inner"):
                yield 1
                with pt.span("second"):
                    yield 2

        async def main():
            async for _ in numbers():
                assert pt.current_span() is None
            assert pt.current_span() is None

        asyncio.run(main())
        assert recorded.tree() == "numbers complete\n  inner complete\n    second complete"

    def test_protocol(self, recorded):
        """Sent and thrown values reach the generator, and between yields the consumer's context is its own."""

        @pt.span("talk")
        async def talk():
            try:
                got = yield 1
            except KeyError:
                got = "key error"
            again = yield got
            yield again

        async def main():
            steps = talk()
            assert await steps.__anext__() == 1
            assert pt.current_span() is None
            assert await steps.athrow(KeyError()) == "key error"
            assert await steps.asend("sent") == "sent"
            with pytest.raises(StopAsyncIteration):
                await steps.__anext__()

        asyncio.run(main())
        assert recorded.tree() == "talk complete"
        assert recorded.spans[0].metadata["items"] == 3

    @pytest.mark.parametrize("how", ["break", "aclose"])
    def test_left_by_its_consumer(self, recorded, how):
        """Left early it is complete and abandoned, and the original is closed."""
        closed = []

        @pt.span("numbers")
        async def numbers():
            try:
                for number in range(10):
                    yield number
            finally:
                closed.append(True)

        async def main():
            steps = numbers()
            async for number in steps:
                if number == 2:
                    break
            if how == "aclose":
                await steps.aclose()

        asyncio.run(main())
        gc.collect()
        assert closed == [True]
        (span,) = recorded.spans
        assert span.status == "complete"
        assert span.metadata["abandoned"] is True
        assert span.metadata["items"] == 3

    def test_left_before_the_first_item(self, recorded):
        """A consumer that goes away before the first item cancels the step."""

        class Wait:
            def __await__(self):
                yield

        @pt.span("numbers")
        async def numbers():
            await Wait()
            yield 1

        steps = numbers()
        first = steps.__anext__()
        first.send(None)
        with pytest.raises(GeneratorExit):
            first.throw(GeneratorExit())
        assert recorded.tree() == "numbers cancelled"

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_cancelled(self, recorded, backend):
        """Cancellation inside cancels the step, and the context is clean afterwards."""

        @pt.span("numbers")
        async def numbers():
            yield 1
            await anyio.sleep_forever()

        async def main():
            with pt.instance():
                with anyio.move_on_after(0):
                    async for _ in numbers():
                        pass
                assert pt.current_span() is None

        anyio.run(main, backend=backend)
        assert recorded.tree() == "numbers cancelled"


class TestEnding:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ValueError("x"), "failed"),
            (SystemExit(1), "failed"),
            (SystemExit(0), "complete"),
            (KeyboardInterrupt(), "cancelled"),
            (asyncio.CancelledError(), "cancelled"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize(
        "form", ["with", "async with", "function", "coroutine", "generator", "async generator"]
    )
    def test_by_an_exception(self, recorded, error, status, form):
        """In every form the exception decides the status and goes on as the same object."""

        def raises():
            raise error

        def through(generator):
            next(generator)

        @pt.span("step")
        def function():
            raises()

        @pt.span("step")
        async def coroutine():
            raises()

        @pt.span("step")
        def generator():
            raises()
            yield

        @pt.span("step")
        async def async_generator():
            raises()
            yield

        def block():
            with pt.span("step"):
                raises()

        async def async_block():
            async with pt.span("step"):
                raises()

        forms = {
            "with": block,
            "async with": lambda: async_block().send(None),
            "function": function,
            "coroutine": lambda: coroutine().send(None),
            "generator": lambda: next(generator()),
            "async generator": lambda: async_generator().__anext__().send(None),
        }
        with pytest.raises(type(error)) as caught:
            forms[form]()
        assert caught.value is error
        assert pt.current_span() is None
        assert recorded.tree() == f"step {status}"

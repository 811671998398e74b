"""Streams: what a generator yields becomes one result, bounded, as it was when it was yielded."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Generator, Iterator  # noqa: TC003 - read when they are looked at
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefactor_trace as pt
from prefactor_trace._capture import DEFAULT, Limits, capture
from prefactor_trace._stream import Stream
from prefactor_trace.testing import recording


def streamed(items, returned=None, limits=DEFAULT, fold=None):
    """Return the result of a stream of *items*."""
    ticks = iter(range(1, 9))
    stream = Stream(lambda: next(ticks), limits, fold)
    for item in items:
        stream.add(item)
    return json.loads(stream.result(returned))


def recorded_of(make, **options):
    """Return the span of a generator that is consumed to its end."""
    with recording() as recorded, pt.instance():
        list(pt.span("stream", **options)(make)())
        return recorded.spans[0]


class TestResult:
    @pytest.mark.parametrize(
        ("items", "output"),
        [
            ([], []),
            (["Hel", "", "lo"], "Hello"),
            ([""], ""),
            ([b"ab", b"c", bytearray(3)], {"$bytes": 6}),
            ([{"a": 1}, None, 2], [{"a": 1}, None, 2]),
            (["a", "", 1, "b"], ["a", "", 1, "b"]),
            ([1, "a"], [1, "a"]),
            ([b"a", "b"], [{"$bytes": 1, "sha256": "ca978112ca1bbdca"}, "b"]),
            (["", b"a"], ["", {"$bytes": 1, "sha256": "ca978112ca1bbdca"}]),
            (["\ud800", "\udc00"], "\\ud800\\udc00"),
        ],
        ids=repr,
    )
    def test_kinds(self, items, output):
        """Strings are joined, bytes are counted, everything else is listed."""
        assert streamed(items) == {"output": output}

    def test_return_value(self):
        """A return value stands beside the items; None is none."""
        assert streamed(["a"], returned={"usage": 3}) == {"output": "a", "returned": {"usage": 3}}
        assert streamed([], returned=0) == {"output": [], "returned": 0}

    def test_as_it_was(self):
        """An item that is changed later is recorded as it was when it was yielded."""

        def grows():
            message = {"text": ""}
            for letter in "abc":
                message["text"] += letter
                yield message

        assert recorded_of(grows).result == {"output": [{"text": "a"}, {"text": "ab"}, {"text": "abc"}]}

    @given(st.lists(st.text(max_size=30), max_size=60), st.integers(1, 80))
    def test_text_is_cut_like_any_string(self, texts, longest):
        """However a text comes in pieces, it is cut where the whole would be, and says how long it was."""
        whole = "".join(texts)
        expected = whole if len(whole) <= longest else {"$truncated": whole[:longest], "length": len(whole)}
        if not texts:
            expected = []
        if "\\" not in whole and whole.isprintable():
            assert streamed(texts, limits=Limits(max_string=longest)) == {"output": expected}

    @given(st.lists(st.text("ab \n", max_size=200), max_size=40), st.integers(390, 600))
    def test_text_has_the_end_of_any_string(self, texts, longest):
        """What stands for a text that was cut is what would stand for the whole of it, its end included."""
        limits, whole = Limits(max_string=longest), "".join(texts)
        assert streamed(texts, limits=limits) == {
            "output": json.loads(capture(whole, limits)) if texts else []
        }

    def test_a_cut_text_that_was_none(self):
        """Items that follow on texts too long to keep stand in no place but their own."""
        texts = ["x" * 9_000, "y" * 9_000, "z" * 9_000]
        assert streamed([*texts, {"end": 1}]) == {"output": [texts[0], {"$truncated": "items", "length": 4}]}
        assert streamed(["x" * 99, {"end": 1}]) == {"output": ["x" * 99, {"end": 1}]}

    def test_long_text(self):
        """A text that is allowed to be longer than there is room for ends where the room ends."""
        output = streamed(["é" * 1_000] * 40, limits=Limits(max_string=10**6, max_bytes=8_000))["output"]
        assert output["length"] == 40_000
        assert 1_000 < len(output["$truncated"]) <= 8_000

    @pytest.mark.parametrize("count", [999, 1_000, 1_001, 5_000])
    def test_many_short_strings(self, count):
        """Beyond the first thousand the text goes on, whole."""
        texts = [f"{number} " for number in range(count)]
        assert streamed(texts, limits=Limits(max_string=10**6)) == {"output": "".join(texts)}

    def test_a_list_is_cut(self):
        """A list ends after a thousand items, or when there is no room, and says how many there were."""
        assert streamed(range(1_200)) == {"output": [*range(1_000), {"$truncated": "items", "length": 1_200}]}
        output = streamed([["x" * 90]] * 50, limits=Limits(max_bytes=1_000))["output"]
        assert output[:5] == [["x" * 90]] * 5
        assert output[-1] == {"$truncated": "items", "length": 50}
        assert streamed([*["a"] * 2_000, 1])["output"] == ["a"] * 1_000 + [
            {"$truncated": "items", "length": 2_001}
        ]

    def test_hostile_items(self):
        """Items run no code, and one that cannot be read costs no other."""

        class Evil:
            def __getattribute__(self, name):
                raise SystemExit(name)

        class Text(str):  # noqa: SLOT000
            def __len__(self):
                raise SystemExit

        output = streamed([1, Evil(), Text("a"), float("nan")])["output"]
        assert [output[0], *output[2:]] == [1, "a", {"$float": "nan"}]
        assert output[1]["$type"].endswith("Evil")

    @pytest.mark.parametrize(
        "make", [lambda n: f"{n} token", lambda n: "", lambda n: b"bytes", lambda n: {"n": n}]
    )
    def test_memory_is_bounded(self, make):
        """A hundred thousand items take no more memory than what is kept of them."""
        stream = Stream(lambda: 0, DEFAULT)
        for number in range(3_000):
            stream.add(make(number))
        tracemalloc.start()
        for number in range(100_000):
            stream.add(make(number))
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown < 100_000
        assert stream.count == 103_000


class TestMetadata:
    def test_is_recorded(self):
        """The number of items, and the milliseconds until the first came, which no consumer's time is part of."""
        span = recorded_of(lambda: (yield 1))
        assert span.metadata["items"] == 1
        assert 0 < span.metadata["time_to_first_item_ms"] <= (span.finished_at - span.started_at) / 1e6

    def test_without_an_item(self):
        """Of nothing there is no first."""

        def nothing():
            return 1
            yield

        span = recorded_of(nothing)
        assert (span.metadata, span.result) == ({"items": 0}, {"output": [], "returned": 1})

    def test_what_has_come_before_a_failure(self):
        """A failure keeps what had come."""

        def fails():
            yield "a"
            raise ValueError

        with recording() as recorded, pt.instance():
            with pytest.raises(ValueError):
                list(pt.span(fails)())
            (span,) = recorded.spans
        assert (span.status, span.result, span.metadata["items"]) == ("failed", {"output": "a"}, 1)

    def test_nothing_is_kept_unless_wanted(self):
        """`capture_outputs=False` counts only, and folds nothing."""
        span = recorded_of(lambda: (yield "secret"), capture_outputs=False, fold=lambda *_: 1 / 0)
        assert (span.result, sorted(span.metadata)) == (None, ["items", "time_to_first_item_ms"])

    def test_what_the_user_sets(self):
        """A result that was set inside is the result."""

        def sets():
            pt.current_span().set_result({"mine": 1})
            yield "theirs"

        assert recorded_of(sets).result == {"mine": 1}


class TestFold:
    def test_makes_the_result(self):
        """`fold` gets what it made last, at first None, and each item as it is yielded."""

        def numbers():
            yield 1
            yield 2

        def total(so_far, item):
            return {"total": (so_far or {"total": 0})["total"] + item}

        assert recorded_of(numbers, fold=total).result == {"total": 3}
        assert streamed([1, 2], fold=lambda so_far, item: item) == {"output": 2}
        assert streamed([1], returned="r", fold=total) == {"output": {"total": 1}, "returned": "r"}

    def test_of_an_async_generator(self):
        """The same there."""

        async def words():
            yield "a"
            yield "b"

        async def main():
            return [
                word
                async for word in pt.span("words", fold=lambda so_far, word: [*(so_far or []), word])(words)()
            ]

        with recording() as recorded, pt.instance():
            assert asyncio.run(main()) == ["a", "b"]
            assert recorded.spans[0].result == {"output": ["a", "b"]}

    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), GeneratorExit()], ids=repr)
    def test_that_raises(self, error):
        """It costs nothing but the rest of the folding, and is said."""
        calls = []

        def fold(so_far, item):
            calls.append(item)
            if item == 2:
                raise error
            return item

        def numbers():
            yield from range(5)

        span = recorded_of(numbers, fold=fold)
        assert calls == [0, 1, 2]
        assert (span.status, span.result, span.metadata["items"]) == ("complete", {"output": 1}, 5)
        assert span.metadata["fold_error"]["error_type"] == type(error).__name__

    def test_lets_the_user_interrupt(self):
        """Ctrl-C is nobody's error."""

        def fold(so_far, item):
            raise KeyboardInterrupt

        with recording() as recorded, pt.instance():
            with pytest.raises(KeyboardInterrupt):
                list(pt.span("stream", fold=fold)(lambda: (yield 1))())
            assert recorded.tree() == "stream cancelled"

    def test_where_it_makes_no_sense(self):
        """What is no function, and what yields nothing, is refused where it is written."""
        with pytest.raises(pt.ConfigurationError, match="takes a function"):
            pt.span(fold=3)
        with pytest.raises(pt.ConfigurationError, match="for generators"):
            pt.span(fold=max)(lambda: 1)


class TestSensitive:
    SENSITIVE = pt.Sensitive("contact_information")

    def wrapped(self, value, kind="string"):
        return {"$sensitive": kind, "labels": ["contact_information"], "value": value}

    def test_strings(self):
        """They are joined, and wrapped as one; a return value is as well."""

        def texts() -> Generator[Annotated[str, self.SENSITIVE], None, str]:
            yield "a@"
            yield "b"
            return "c@d"

        found = recorded_of(texts).result
        assert found == {"output": self.wrapped("a@b"), "returned": self.wrapped("c@d")}

    def test_others(self):
        """In a list each leaf is wrapped; of bytes the size."""

        def items() -> Annotated[Iterator[Any], self.SENSITIVE]:
            yield "a"
            yield {"n": [1, None]}

        def binary() -> Iterator[Annotated[bytes, self.SENSITIVE]]:
            yield b"abc"

        assert recorded_of(items).result == {
            "output": [self.wrapped("a"), {"n": [self.wrapped(1, "number"), None]}]
        }
        assert recorded_of(binary).result == {"output": {"$bytes": self.wrapped(3, "number")}}

    def test_fold(self):
        """What is made of the items is wrapped; the function is given the items themselves."""

        def texts() -> Iterator[Annotated[str, self.SENSITIVE]]:
            yield "a@"
            yield "b"

        span = recorded_of(texts, fold=lambda text, item: (text or "") + item)
        assert span.result == {"output": self.wrapped("a@b")}

    def test_a_secret_in_a_text_that_is_cut(self):
        """It is taken out before the text is wrapped, as its end would not be seen as cut any more."""

        def texts() -> Iterator[Annotated[str, self.SENSITIVE]]:
            for _ in range(40):
                yield "token sk-ant-api03-" + "Ab3_" * 400

        assert "Ab3_Ab3_" not in str(recorded_of(texts).result)

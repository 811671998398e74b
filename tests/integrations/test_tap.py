"""The taps: what is placed is taken away exactly, what is odd is borne, and nothing of it reaches the caller."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import importlib
import importlib.metadata
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefactor_trace as pt
from prefactor_trace import _guard, integrations
from prefactor_trace._schema import SpanType, declared
from prefactor_trace.integrations import _patch, _price, _tap
from prefactor_trace.integrations._answer import Answer
from prefactor_trace.integrations._tap import Asked, Reply, Switch, Tap
from prefactor_trace.integrations._values import without_media
from prefactor_trace.server import LocalPlatform
from prefactor_trace.testing import recording

TYPE = SpanType("toy:call")


class Kept:
    """A reader that keeps what it is given."""

    def __init__(self):
        self.has_token = False
        self.values = []

    def whole(self, value):
        self.values.append(value)

    def add(self, event):
        self.has_token = True
        self.values.append(event)

    def reply(self):
        return Reply(result={"values": self.values}, usage={"total_tokens": 3})


def asks(args, kwargs):
    return Asked(TYPE, "toy", lambda: {"args": args[1:], **kwargs}, Kept())


TAP = Tap("toy:Toy.call", asks=asks)


class Toy:
    """An SDK with functions of every kind."""

    def call(self, value):
        if value == "bad":
            raise ValueError(value)
        return value * 2

    async def acall(self, value):
        await asyncio.sleep(0)
        return self.call(value)

    def later(self, value):
        return self.acall(value)

    def stream(self, count):
        got = []
        for number in range(count):
            got.append((yield number))
        return got

    async def astream(self, count):
        for number in range(count):
            yield number


def toy(name, switch=None):
    """Return a Toy whose method *name* is tapped."""
    switch = switch or Switch("toy")
    return type("Toy", (Toy,), {name: _tap.tapped(vars(Toy)[name], TAP, switch)})()


@pytest.fixture
def run(recorded):
    with pt.instance():
        yield recorded


# -- functions of every kind -------------------------------------------------------------------------------


def test_a_function(run):
    """Its value goes out and into the span; its exception goes through."""
    subject = toy("call")

    assert subject.call(4) == 8
    with pytest.raises(ValueError, match="bad"):
        subject.call("bad")
    first, second = run.spans
    assert (first.payload, first.result, first.token_usage) == (
        {"args": [4]},
        {"values": [8]},
        {"total_tokens": 3},
    )
    assert (second.status, second.error["error_type"]) == ("failed", "ValueError")


@pytest.mark.parametrize("name", ["acall", "later"])
def test_a_coroutine(name, run):
    """Declared as one, or merely returned."""
    subject = toy(name)

    assert asyncio.run(getattr(subject, name)(4)) == 8
    assert inspect.iscoroutinefunction(getattr(subject, name)) is (name == "acall")
    (span,) = run.spans
    assert span.result == {"values": [8]}


def test_a_generator(run):
    """It is a generator still: it takes what is sent, and returns what it returns."""
    stream = toy("stream").stream(2)

    assert type(stream) is types.GeneratorType
    assert [next(stream), stream.send("a")] == [0, 1]
    with pytest.raises(StopIteration) as stop:
        stream.send("b")
    assert stop.value.value == ["a", "b"]
    (span,) = run.spans
    assert (span.status, span.result) == ("complete", {"values": [0, 1]})
    assert span.metadata["time_to_first_token_ms"] >= 0


def test_a_generator_left_early(run):
    """Closed by its consumer, or thrown at."""
    stream = toy("stream").stream(9)
    next(stream)
    stream.close()
    stream = toy("stream").stream(9)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("x"))

    first, second = run.spans
    assert (first.status, first.metadata["abandoned"]) == ("complete", True)
    assert second.status == "failed"


def test_an_async_generator(run):
    """The same, asynchronously."""

    async def main():
        stream = toy("astream").astream(3)
        assert type(stream) is types.AsyncGeneratorType
        all_of_it = [each async for each in stream]
        stream = toy("astream").astream(3)
        await stream.__anext__()
        await stream.aclose()
        return all_of_it

    assert asyncio.run(main()) == [0, 1, 2]
    first, second = run.spans
    assert (first.status, first.result) == ("complete", {"values": [0, 1, 2]})
    assert (second.status, second.metadata["abandoned"]) == ("complete", True)


def test_between_two_items_the_context_is_the_consumers(run):
    """What the consumer does between two items is no part of the call; what the SDK does is."""
    stream = toy("stream").stream(2)
    for _ in stream:
        with pt.span("mine"):
            pass

    assert run.tree() == "toy complete\nmine complete\nmine complete"


def test_what_a_generator_has_entered_is_current_in_it_only(run):
    """A block that an SDK's generator holds open over an item: its own steps hang below, the consumer's do not."""

    class Chain(Toy):
        def stream(self, count):
            with pt.span("chain"):
                for number in range(count):
                    yield number
                    with pt.span("link"):
                        pass

    stream = _tap.tapped(Chain.stream, TAP, Switch("toy"))(Chain(), 1)
    assert (stream.__name__, stream.__qualname__) == ("stream", Chain.stream.__qualname__)
    for _ in stream:
        with pt.span("mine"):
            pass

    assert run.tree() == "toy complete\n  chain complete\n    link complete\nmine complete"


def test_how_many_items_were_there_is_told_of_a_call_that_was_left(run):
    """Of one that came to its end, the answer tells enough."""
    stream = toy("stream").stream(9)
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()

    assert run.spans[0].metadata.items() >= {"items": 2, "abandoned": True}.items()


# -- what is recorded --------------------------------------------------------------------------------------

CANARY = "sk-ant-api03-" + "c4n4rY" * 12


@pytest.mark.parametrize("way", ["answer", "error", "trouble"])
def test_no_secret_is_recorded(way, caplog):
    """Whatever part of a call holds one: name, inputs, answer, metadata, error. What tokens are counted is no secret."""

    class Telling(Kept):
        def reply(self):
            return Reply(
                result={"text": f"it is {CANARY}", "password": "hunter22"},
                usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
                metadata={"request_id": CANARY, "provider_usage": {"input_tokens": 3}},
                error=f"refused {CANARY}" if way == "trouble" else None,
            )

    def asks(args, kwargs):
        return Asked(TYPE, f"chat {CANARY}", lambda: {"messages": [CANARY], "api_key": "hunter22"}, Telling())

    def call():
        if way == "error":
            raise ValueError(f"not with {CANARY}")

    told = []
    with recording(redact=lambda value, place: told.append(place) or value) as found:
        with pt.instance(), contextlib.suppress(ValueError):
            _tap.tapped(call, Tap("toy:call", asks=asks), Switch("toy"))()
        (span,) = found.spans

    everything = repr((span, span.name, span.payload, span.result, span.error, span.metadata))
    assert CANARY not in everything
    assert "hunter22" not in everything
    assert CANARY not in caplog.text
    assert span.token_usage == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert {each.kind for each in told} >= {"payload", "metadata", "result"}
    assert all(each.span.startswith("chat") for each in told)


def test_a_name_that_cannot_be_sent_is_made_sendable(run):
    """A model's name comes from outside: it is text of a bounded length when it is recorded."""
    call = _tap.open_call(Asked(TYPE, "chat \ud800" + "x" * 5_000, dict, Kept()), Switch("toy"))
    call.ended()

    (span,) = run.spans
    assert span.name.encode()
    assert len(span.name) <= 1_000


def test_a_type_is_declared_where_a_call_is_opened():
    """An integration that makes its types as it goes has them in the schema of the next run, templates and all."""
    made = SpanType("toy:made-as-it-goes", template="{{ inputs.question }}")
    with recording(), pt.instance():
        _tap.open_call(Asked(made, "made", dict, Kept()), Switch("toy")).ended()

    (told,) = [each for each in declared().to_wire()["span_type_schemas"] if each["name"] == made.name]
    assert told["template"] == made.template
    assert "token_usage" in told["params_schema"]["properties"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_program_has_counted_its_tokens(tmp_path):
    """What was counted is on disk, and a call that was still waiting for its answer is one create: it was quiet."""
    program = f"""
        import os, signal, prefactor_trace as pt
        from prefactor_trace._schema import SpanType
        from prefactor_trace.integrations._tap import Asked, Reply, Switch, open_call

        class Reader:
            has_token = False
            def reply(self):
                return Reply(result={{"text": "hi"}}, usage={{"prompt_tokens": 3, "total_tokens": 4}})

        pt.configure(batch_delay=60.0, live_after=0.01)
        asked = Asked(SpanType("toy:call", template="{{{{ text }}}}"), "chat", lambda: {{"m": {CANARY!r}}}, Reader())
        with pt.instance():
            open_call(asked, Switch("toy")).ended()
            open_call(asked, Switch("toy"))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PREFACTOR_STATE_DIR": os.environ["PREFACTOR_STATE_DIR"],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = Path(os.environ["PREFACTOR_STATE_DIR"])
    assert all(CANARY.encode() not in file.read_bytes() for file in state.rglob("*") if file.is_file())
    with LocalPlatform(tmp_path / "platform.db", state_dir=state) as platform:
        ledger = pt.configure().take_over(10)
        (agent,) = platform.store.agents()
        ((run,), *_) = platform.store.instances(agent["id"])
        spans, _ = platform.store.spans(run["id"])

    assert (ledger.delivered, ledger.dropped, ledger.pending) == (5, {}, 0)
    assert [(each["status"], each["payload"].get("token_usage")) for each in spans] == [
        ("complete", {"prompt_tokens": 3, "total_tokens": 4}),
        ("failed", None),
    ]


def test_an_answer_that_never_began_is_incomplete(run):
    """Also if nothing of it is there to be shown; one that could not be read is not said to be so."""

    class Cut(Kept):
        def whole(self, value):
            if value == "odd":
                raise ValueError(value)

        def reply(self):
            return Reply(is_whole=False)

    tap = Tap("toy:call", asks=lambda args, kwargs: Asked(TYPE, "toy", dict, Cut()))
    function = _tap.tapped(lambda value: value, tap, Switch("toy"))
    function("cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_guard, "strict", False)
        function("odd")

    cut, odd = run.spans
    assert (cut.status, cut.result, cut.metadata) == ("complete", None, {"incomplete": True})
    assert (odd.status, odd.metadata) == ("complete", None)


# -- who has the tokens ------------------------------------------------------------------------------------


class Words:
    """A stream object of an SDK: it gives words, and one step can go by another."""

    def __init__(self, words, by_steps=False):
        self.words = iter(words)
        self.by_steps = by_steps
        self.is_closed = False

    def __iter__(self):
        return self

    def __aiter__(self):
        return self

    def __next__(self):
        if self.by_steps:
            self.by_steps = False
            return next(self)
        word = next(self.words)
        if word == "bad":
            raise ValueError(word)
        return word

    async def __anext__(self):
        await asyncio.sleep(0)
        try:
            return next(self.words)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self):
        self.is_closed = True
        return "closed"


@pytest.fixture
def words(monkeypatch):
    """Return a function of an SDK that returns streams of words, with taps at it and at its streams' steps."""
    switch = Switch("toy")
    for name, does in (("__next__", "gives"), ("__anext__", "gives"), ("close", "closes")):
        tap = Tap(f"toy:Words.{name}", stream=does)
        monkeypatch.setattr(Words, name, _tap.tapped(vars(Words)[name], tap, switch))
    return _tap.tapped(Words, TAP, switch)


def test_a_stream_object_whose_steps_are_tapped(words, run):
    """It is the very object, and its own; what it gives is added once, even if one step goes by another."""
    stream = words(["a", "b"], by_steps=True)

    assert type(stream) is Words
    assert list(stream) == ["a", "b"]
    assert list(words(["c"])) == ["c"]
    first, second = run.spans
    assert (first.status, first.result) == ("complete", {"values": ["a", "b"]})
    assert first.metadata["time_to_first_token_ms"] >= 0
    assert second.result == {"values": ["c"]}


def test_an_async_stream_object_whose_steps_are_tapped(words, run):
    """The same for an asynchronous one."""

    async def read():
        return [word async for word in words(["a", "b"])]

    assert asyncio.run(read()) == ["a", "b"]
    (span,) = run.spans
    assert (span.status, span.result) == ("complete", {"values": ["a", "b"]})


def test_a_stream_object_that_fails_is_left_or_was_nobodys(words, run, monkeypatch):
    """Exceptions go through; who closes or drops it, wants no more; one that no call has returned is left alone."""
    monkeypatch.setattr(Kept, "reply", lambda self: Reply(result={"values": self.values}, is_whole=False))
    with pytest.raises(ValueError, match="bad"):
        list(words(["a", "bad"]))
    stream = words(["a", "b"])
    next(stream)
    assert stream.close() == "closed"
    assert next(stream) == "b"
    dropped = words(["a", "b"])
    next(dropped)
    del dropped
    gc.collect()
    assert list(Words(["a"])) == ["a"]
    assert Words([]).close() == "closed"

    failed, closed, left = run.spans
    assert (failed.status, failed.result) == ("failed", {"values": ["a"]})
    for span in (closed, left):
        assert (span.status, span.result, span.metadata["abandoned"]) == ("complete", {"values": ["a"]}, True)


def test_between_two_steps_the_context_is_the_consumers(words, run):
    """As between the items of a generator."""
    for _ in words(["a", "b"]):
        with pt.span("between"):
            pass

    assert {span.parent_id for span in run.spans} == {None}


def test_the_innermost_call_has_the_tokens(run):
    """A framework's call around an SDK's keeps the structure and leaves the counting to it."""
    outer_type = toy("call")

    class Framework(Toy):
        def call(self, value):
            with pt.span("step"):
                return outer_type.call(value)

    Framework.call = _tap.tapped(Framework.call, TAP, Switch("framework"))
    Framework().call(1)

    spans = run.spans
    assert run.tree() == "toy complete\n  step complete\n    toy complete"
    assert [span.token_usage for span in spans] == [None, None, {"total_tokens": 3}]


def test_also_in_threads_and_in_runs_inside(run):
    """What hangs from a call is a part of it wherever it runs: its threads, and the runs of sub-agents."""
    inner = toy("call")

    class Framework(Toy):
        def call(self, value):
            thread = threading.Thread(target=inner.call, args=(value,))
            thread.start()
            thread.join()

        def later(self, value):
            with pt.instance():
                inner.call(value)

    for name in ("call", "later"):
        setattr(Framework, name, _tap.tapped(vars(Framework)[name], TAP, Switch("framework")))
    pt.carry_threads()
    try:
        Framework().call(1)
        Framework().later(1)
    finally:
        pt.carry_threads(False)

    assert [span.token_usage for span in run.spans] == [None, {"total_tokens": 3}] * 2


def test_a_call_that_is_over_keeps_nothing(run):
    """Contexts live long: the answer is not kept, nor is what comes late looked at."""
    reader = Kept()
    gone = weakref.ref(reader)
    call = _tap.open_call(Asked(TYPE, "by hand", dict, reader), Switch("framework"))
    call.add("piece")
    call.ended()
    del reader
    gc.collect()
    call.add("late")
    call.whole("late")

    assert gone() is None
    assert run.spans[0].result == {"values": ["piece"]}


def opened(name, **options):
    return _tap.open_call(Asked(TYPE, name, dict, Kept(), **options), Switch("framework"))


def test_what_is_no_model_takes_no_tokens(run):
    """A tool inside a model's call leaves them there; a model inside the tool takes those of all around it."""
    for names in (["model", "tool"], ["model", "tool", "inner"]):
        calls = []
        for name in names:
            calls.append(opened(name, is_model=name != "tool"))
            calls[-1].become_current()
        for call in reversed(calls):
            call.step_back()
            call.ended()

    counted = [(span.name, span.token_usage is not None) for span in run.spans]
    assert counted[:2] == [("model", True), ("tool", True)]
    assert counted[2:] == [("model", False), ("tool", False), ("inner", True)]


def test_a_call_steps_back_only_where_it_is_current(run):
    """In another context nothing changes; where it came along, what was so before is so again."""
    call = opened("by hand")
    elsewhere = contextvars.copy_context()
    call.become_current()
    along = contextvars.copy_context()
    elsewhere.run(call.step_back)
    assert elsewhere.run(pt.current_span) is None
    along.run(call.step_back)
    assert along.run(pt.current_span) is None
    with pt.span("inside") as inside:  # the user's, which is still open
        call.step_back()
        assert pt.current_span() is inside
    call.ended()

    assert run.tree() == "by hand complete\n  inside complete"


def test_a_call_driven_by_callbacks(run):
    """A framework with callbacks opens and ends calls by hand; what is called inside hangs below."""
    call = _tap.open_call(Asked(TYPE, "by hand", dict, Kept()), Switch("framework"))
    tokens = call.enter()
    with pt.span("inside"):
        pass
    call.leave(tokens)
    call.add("piece")
    call.ended()
    call.ended()

    assert run.tree() == "by hand complete\n  inside complete"
    assert run.spans[0].result == {"values": ["piece"]}


# -- what goes wrong in here -------------------------------------------------------------------------------


class Broken(Kept):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "__dict__").get("where"):
            raise RuntimeError("a reader that is out of its depth")
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["asks", "inputs", "whole", "reply"])
def test_a_reader_that_fails_is_borne(where, run, monkeypatch, caplog):
    """The call is as ever; after five failures in a row the taps do nothing more, and one line says so."""

    def failing(*_):
        raise RuntimeError("another shape than expected")

    def asks(args, kwargs):
        return Asked(TYPE, "toy", failing if where == "inputs" else dict, Broken(where))

    monkeypatch.setattr(_guard, "strict", False)
    switch = Switch("toy")
    tap = Tap("toy", asks=failing if where == "asks" else asks)
    function = _tap.tapped(lambda value: value * 2, tap, switch)

    with caplog.at_level(logging.WARNING, "prefactor_trace"):
        assert [function(each) for each in range(9)] == [each * 2 for each in range(9)]

    given_up = [each for each in caplog.records if "not recorded any more" in each.message]
    assert (len(given_up), switch.is_on) == (1, False)
    assert len(run.spans) == (0 if where == "asks" else 5)
    assert {span.status for span in run.spans} <= {"complete"}


def test_failures_must_be_in_a_row(run, monkeypatch):
    """Now and then a strange call is no reason to stop."""

    def asks(args, kwargs):
        return Asked(TYPE, "toy", dict, Broken("whole") if args[0] % 2 else Kept())

    monkeypatch.setattr(_guard, "strict", False)
    switch = Switch("toy")
    function = _tap.tapped(lambda value: value, Tap("toy", asks=asks), switch)
    for each in range(20):
        function(each)

    assert switch.is_on
    assert len(run.spans) == 20


# -- placing and taking away -------------------------------------------------------------------------------


def sdk_functions():
    import anthropic._base_client
    import openai._base_client

    return [
        vars(getattr(module, client))[name]
        for module in (anthropic._base_client, openai._base_client)
        for client in ("SyncAPIClient", "AsyncAPIClient")
        for name in ("request", "_process_response")
    ]


@pytest.fixture
def sdks():
    pytest.importorskip("anthropic")
    pytest.importorskip("openai")


def test_uninstrument_restores_identity(sdks):
    """Twice in, once out: the very same functions."""
    before = sdk_functions()
    assert pt.instrument("anthropic", "openai").taken == ("anthropic", "openai")
    pt.instrument("openai", "openai")
    assert not any(new is old for new, old in zip(sdk_functions(), before, strict=True))

    pt.uninstrument()
    assert all(new is old for new, old in zip(sdk_functions(), before, strict=True))
    pt.uninstrument()
    assert {each.state for each in integrations.report()} <= {"off", "missing"}


def test_what_others_have_put_over_ours_stays(sdks, run):
    """Their patch is theirs; ours below it lets everything through."""
    import openai._base_client

    owner = openai._base_client.SyncAPIClient
    original = vars(owner)["request"]
    pt.instrument("openai")
    ours = vars(owner)["request"]

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    owner.request = theirs
    try:
        pt.uninstrument()
        assert vars(owner)["request"] is theirs
    finally:
        owner.request = original


@pytest.fixture
def two(monkeypatch):
    """Two integrations that tap the same function: "one", and "two"."""
    module = types.ModuleType("toy_sdk")
    module.Toy = Toy
    module.REQUIRES, module.TYPES = "pytest>=8", (TYPE,)
    module.TAPS = (Tap("toy_sdk:Toy.call", asks=asks),)
    monkeypatch.setitem(sys.modules, "toy_sdk", module)
    monkeypatch.setattr(integrations, "_sources", lambda: {"one": "toy_sdk", "two": "toy_sdk"})
    monkeypatch.setattr(integrations, "_integrated", {})


@pytest.mark.parametrize("placed", [("one", "two"), ("two", "one")])
@pytest.mark.parametrize("taken", [(), ("one", "two"), ("two", "one")])
def test_two_that_tap_the_same_function_are_both_taken_away(placed, taken, two, run):
    """In whatever order they came, and go, together or one by one; each has recorded the call."""
    original = vars(Toy)["call"]
    for name in placed:
        pt.instrument(name)
    assert Toy().call(1) == 2
    for names in [(name,) for name in taken] or [()]:
        pt.uninstrument(*names)

    assert vars(Toy)["call"] is original
    assert len(run.spans) == 2


def test_a_tap_below_anothers_stays_off(two, run):
    """Taps that are placed again over what others have put over the old ones record a call once; all can go again."""
    original = vars(Toy)["call"]
    pt.instrument("one")
    ours = vars(Toy)["call"]
    Toy.call = theirs = passing(ours)
    pt.uninstrument()
    pt.instrument("one")
    assert Toy().call(1) == 2
    pt.uninstrument()
    assert vars(Toy)["call"] is theirs
    Toy.call = ours  # they have gone as well
    pt.uninstrument("one")

    assert vars(Toy)["call"] is original
    assert len(run.spans) == 1


def test_in_many_threads_at_once(sdks):
    """However often and from wherever it is said."""
    before = sdk_functions()
    threads = [
        threading.Thread(target=each) for each in (pt.instrument, pt.uninstrument, integrations.report) * 8
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    pt.uninstrument()

    assert all(new is old for new, old in zip(sdk_functions(), before, strict=True))


def test_a_call_that_is_open_is_recorded_to_its_end(run):
    """Taps come and go while calls are under way."""
    switch = Switch("toy")
    stream = toy("stream", switch).stream(2)
    next(stream)
    switch.is_on = False

    assert list(stream) == [1]
    (span,) = run.spans
    assert span.result == {"values": [0, 1]}


def test_a_real_call_that_is_open_is_recorded_to_its_end(sdks, provider, recorded):
    """Whatever is said meanwhile, from other threads too, it is one span; what is called between is recorded or not."""
    import openai

    before = sdk_functions()
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    pt.instrument()
    with pt.instance(), openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key") as client:
        stream = client.chat.completions.create(**ask, stream=True)
        next(stream)
        in_threads(pt.instrument, pt.instrument)
        client.chat.completions.create(**ask)
        pt.uninstrument()
        client.chat.completions.create(**ask)
        next(stream)
        pt.instrument("openai")
        text = "".join(each.choices[0].delta.content or "" for each in stream)
    pt.uninstrument()

    assert [span.status for span in recorded.spans] == ["complete", "complete"]
    assert recorded.spans[0].result["text"].endswith(text)
    assert recorded.spans[0].result["finish_reason"] == "stop"
    assert all(new is old for new, old in zip(sdk_functions(), before, strict=True))


def test_calls_go_on_while_taps_come_and_go(sdks, provider):
    """In other threads, and all the time: every call has its answer, and every span its end."""
    import openai

    before = sdk_functions()
    answers, done = [], threading.Event()
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    def call():
        with pt.instance(), openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key") as client:
            for _ in range(20):
                stream = client.chat.completions.create(**ask, stream=True)
                answers.append("".join(each.choices[0].delta.content or "" for each in stream))
                answers.append(client.chat.completions.create(**ask).choices[0].message.content)
        done.set()

    def turn():
        while not done.is_set():
            pt.instrument("openai")
            pt.uninstrument("openai")

    with recording() as found:
        in_threads(call, turn, turn)
    pt.uninstrument()

    assert answers == ["It is sunny in Paris."] * 40
    assert {span.status for span in found.spans} <= {"complete"}
    assert all(new is old for new, old in zip(sdk_functions(), before, strict=True))


def in_threads(*functions):
    threads = [threading.Thread(target=each) for each in functions]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def test_unknown_names_are_refused():
    """With a suggestion, or with all there are."""
    with pytest.raises(pt.ConfigurationError, match="did you mean 'openai'"):
        pt.instrument("opnai")
    with pytest.raises(pt.ConfigurationError, match="there are: anthropic"):
        pt.instrument("xyzzy")


def test_the_report_reads_well(sdks):
    """A line for each; by name, too."""
    done = pt.instrument("openai")

    version = importlib.metadata.version("openai")
    assert done["openai"] == done[0]
    assert done["openai"].state in ("on", "waiting")
    assert repr(done).split() == ["openai", "on", "openai", version]
    assert done.not_taken == {}


@pytest.mark.parametrize("name", ["openai-agents", "openai_agents", "OpenAI.Agents"])
def test_a_name_may_be_written_as_its_distribution(name):
    """As for package indexes, hyphens are underscores, and case does not matter."""
    done = pt.instrument(name)

    assert [each.name for each in done] == ["openai_agents"]
    assert done[name] == done["openai_agents"] == done["openai-agents"]
    assert pt.uninstrument(name)[name].state in ("off", "missing")
    assert integrations.claimed(name).startswith("openai-agents")


def summary(template, known):
    """Return *template* with the names of what is *known* in brackets, and nothing for the rest."""

    def put(found):
        name, _, filters = found[1].partition(" | ")
        is_known = name.startswith("inputs.") or name in known
        return f"[{name}{'' if filters else '!'}]" if is_known else ""

    text = re.sub(r"{% for .*?{% endfor %}", "", template)
    text = re.sub(r"{% if (\w+) %}(.*?){% endif %}", lambda found: found[2] * (found[1] in known), text)
    return re.sub(r"{{ (.*?) }}", put, text)


@pytest.mark.parametrize("framework", ["langchain", "mcp", "openai_agents", "pydantic_ai"])
def test_what_a_summary_says_can_be_read(framework):
    """There is something between the parts of it, and of what came out no more than its beginning."""
    for each in importlib.import_module(f"prefactor_trace.integrations.{framework}").TYPES:
        for known in ({"name", "output", "text", "tools", "documents.size"}, {"name", "message"}):
            shown = summary(each.template, known)
            assert "][" not in shown, each.name
            assert not {"[output!]", "[text!]", "[message!]"} & set(shown.split()), each.name
            assert "[" in shown, each.name


def test_what_is_installed_is_read_once():
    """For all integrations together: where much is installed, that is most of what `instrument` costs."""
    text = """
        import sys
        class Installed:
            asked = 0
            @staticmethod
            def find_spec(*_): return None
            @classmethod
            def find_distributions(cls, context):
                cls.asked += context.name is None
                return ()
        sys.meta_path.append(Installed)
        import prefactor_trace as pt
        pt.instrument()
        print(Installed.asked)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


PROGRAM = """
import sys
import prefactor_trace as pt
done = pt.instrument({names})
assert not {{"openai", "anthropic"}} & set(sys.modules), "an SDK was imported"
print([(each.name, each.state) for each in done])
finders = list(sys.meta_path)
{then}
"""


def program(then, *names):
    text = PROGRAM.format(names=", ".join(map(repr, names)), then=textwrap.dedent(then))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_an_sdk_that_is_imported_later_is_tapped(sdks):
    """And the finder is gone; loaders are as they were; nothing is imported for our sake."""
    lines = program(
        """
        import openai._base_client as module, anthropic
        print([(each.name, each.state) for each in pt.integrations.report() if each.is_taken])
        print(module.SyncAPIClient.request.__wrapped__.__qualname__, vars(module.__loader__).keys())
        print(len(finders) - len(sys.meta_path))
        """,
        "anthropic",
        "openai",
    )
    assert lines == [
        "[('anthropic', 'waiting'), ('openai', 'waiting')]",
        "[('anthropic', 'on'), ('openai', 'on')]",
        "SyncAPIClient.request dict_keys(['name', 'path'])",
        "1",
    ]


def test_an_sdk_that_is_just_being_imported_is_tapped(sdks):
    """In another thread, which may be anywhere in it."""
    lines = program(
        """
        import threading, time
        importing = threading.Thread(target=lambda: __import__("openai"))
        pt.uninstrument()
        importing.start()
        while "openai._base_client" not in sys.modules:
            time.sleep(0)
        print(pt.instrument("openai")["openai"].state)
        importing.join()
        import openai
        print(hasattr(openai._base_client.SyncAPIClient.request, "__wrapped__"))
        """,
        "openai",
    )
    assert lines[1:] == ["on", "True"]


def test_an_sdk_that_is_not_wanted_any_more_is_left_alone(sdks):
    """Taken back before it was imported."""
    lines = program(
        """
        pt.uninstrument()
        print(len(finders) - len(sys.meta_path))
        import openai._base_client as module
        print(hasattr(module.SyncAPIClient.request, "__wrapped__"))
        """,
        "openai",
    )
    assert lines == ["[('openai', 'waiting')]", "1", "False"]


def test_an_sdk_that_is_missing_is_said_so(sdks):
    """A clear answer, no error."""
    lines = program(
        """
        import importlib.metadata
        def version(name): raise importlib.metadata.PackageNotFoundError(name)
        importlib.metadata.version = version
        pt.uninstrument()
        print(pt.instrument("openai").not_taken, pt.instrument())
        """,
        "openai",
    )
    shown = "nothing to instrument: no SDK is installed that is known here"
    assert lines[1] == f"{{'openai': 'missing: openai is not installed'}} {shown}"


def test_an_sdk_of_another_build_is_said_so(monkeypatch, caplog):
    """A function that is not there is named, and the others are tapped."""
    module = types.ModuleType("toy_sdk")
    module.Toy = Toy
    monkeypatch.setitem(sys.modules, "toy_sdk", module)
    monkeypatch.setitem(sys.modules, "toy_integration", module)
    module.REQUIRES, module.TYPES = "pytest>=8", (TYPE,)
    module.TAPS = (Tap("toy_sdk:Toy.call", asks=asks), Tap("toy_sdk:Toy.gone", asks=asks))
    monkeypatch.setattr(integrations, "_sources", lambda: {"toy": "toy_integration"})
    monkeypatch.setattr(integrations, "_integrated", {})

    original = vars(Toy)["call"]
    done = pt.instrument("toy")
    assert done["toy"].state == "failed"
    assert "toy_sdk:Toy.gone" in done["toy"].detail
    assert vars(Toy)["call"] is not original
    pt.uninstrument()
    assert vars(Toy)["call"] is original


def passing(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


def test_inherited_and_static_functions():
    """What was inherited is so again; what was static or of the class stays that."""

    class Child(Toy):
        @staticmethod
        def static(value):
            return value

        @classmethod
        def of_class(cls, value):
            return cls, value

    module = types.ModuleType("toy_sdk")
    module.Child = Child
    sys.modules["toy_sdk"] = module
    try:
        patches = [_patch.place(f"toy_sdk:Child.{name}", passing) for name in ("call", "static", "of_class")]
        assert (Child().call(2), Child.static(3), Child.of_class(4)) == (4, 3, (Child, 4))
        assert all(patch.undo() for patch in patches)
    finally:
        del sys.modules["toy_sdk"]
    assert "call" not in vars(Child)
    assert isinstance(vars(Child)["static"], staticmethod)


README = Path(__file__).parents[2] / "README.md"
ACME = """
class Client:
    def ask(self, question, model="small", stream=False):
        return self._words() if stream else {"text": "forty-two", "tokens": 7}
    def _words(self):
        yield from ["forty", "two"]
class AsyncClient:
    async def ask(self, question, model="small"):
        return {"text": "forty-two", "tokens": 7}
"""
ASKING = """
import asyncio
import prefactor_trace as pt
from prefactor_trace.testing import recording
assert pt.integrations.available() == (*KNOWN, "acme")
assert pt.instrument("acme")["acme"].state == "waiting"
import acme
with recording() as recorded, pt.instance():
    assert acme.Client().ask("what?", model="large")["tokens"] == 7
    assert list(acme.Client().ask("what?", stream=True)) == ["forty", "two"]
    asyncio.run(acme.AsyncClient().ask("what?"))
for span in recorded.spans:
    print(span.name, span.payload["question"], span.result["text"], span.token_usage)
"""


def test_the_integration_of_the_readme(tmp_path):
    """It is one file of about 40 lines, found by its entry point, and records every form of a call."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "REQUIRES =" in block]
    assert len(block.splitlines()) <= 42
    (tmp_path / "prefactor_acme.py").write_text(block)
    (tmp_path / "acme.py").write_text(ACME)
    group = "[prefactor_trace.integrations]\nacme = prefactor_acme\n"
    for name, entry_points in (("acme", ""), ("prefactor_acme", group)):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entry_points)
    known = integrations.available()

    done = subprocess.run(
        [sys.executable, "-c", f"KNOWN = {known!r}\n{ASKING}"],
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path]), "PREFACTOR_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ask large what? forty-two {'total_tokens': 7}",
        "ask small what? forty two None",
        "ask small what? forty-two {'total_tokens': 7}",
    ]


def decorated(function):
    """Return a function that calls *function* by a variable of its closure."""

    def around(value):
        return function(value) + 1

    return around


def test_a_function_inside_a_decorated_one(monkeypatch):
    """It is tapped for those who have the decorated one already; what others have put over ours stays."""
    module = types.ModuleType("toys")
    monkeypatch.setitem(sys.modules, "toys", module)
    module.double = held = decorated(lambda value: value * 2)
    patch = _patch.place("toys:double/function", lambda function: lambda value: function(value) + 100)

    assert held(4) == 109
    assert patch.undo() is True
    assert held(4) == 9

    patch = _patch.place("toys:double/function", lambda function: lambda value: function(value) + 100)
    patch.cell.cell_contents = theirs = lambda value: value
    assert patch.undo() is False
    assert patch.cell.cell_contents is theirs
    with pytest.raises(AttributeError, match="has no 'wrong' inside"):
        _patch.place("toys:double/wrong", lambda function: function)


# -- what our own sending does -----------------------------------------------------------------------------


def test_what_an_exporter_does_is_not_recorded():
    """It would never come to an end."""
    subject = toy("call")

    class Chatty:
        batches = 0

        def export(self, batch):
            self.batches += 1
            subject.call("about the batch")
            with pt.span("of the exporter"):
                pass
            return pt.exporters.Outcome(delivered=frozenset(each.key for each in batch))

        def close(self):
            pass

    import prefactor_trace.exporters  # noqa: F401

    exporter = Chatty()
    tracer = pt.Tracer(exporter=exporter, threaded=False, environ={}, implicit_instances=True)
    with tracer.instance():
        subject.call("by the agent")
        ledger = tracer.flush()
    ledger = tracer.shutdown()

    assert (ledger.created, ledger.delivered) == (4, 4)
    assert exporter.batches > 1


def test_our_own_requests_are_not_recorded(sdks, tmp_path):
    """The exporter speaks HTTP as SDKs do; with all taps in place, it is not among what is recorded."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from prefactor_trace.server import LocalPlatform

    pt.instrument()
    with LocalPlatform(tmp_path / "db") as platform:
        settings = {"api_url": platform.url, "api_token": platform.token, "implicit_instances": True}
        tracer = pt.Tracer(environ={}, spool=False, **settings)
        with tracer.instance(), pt.span("step"):
            pass
        ledger = tracer.shutdown(10)

    assert (ledger.created, ledger.delivered) == (4, 4)  # the run has three records


# -- bytes -------------------------------------------------------------------------------------------------


class Listening:
    """What an answer tells."""

    def __init__(self):
        self.events = []
        self.documents = []
        self.awaits_token = False
        self.is_timed = True

    def add(self, event):
        self.events.append(event)

    def whole(self, value):
        self.documents.append(value)

    def failed_to_read(self, what):
        raise AssertionError(what)


json_values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(), st.lists, max_leaves=5)


@given(
    events=st.lists(st.dictionaries(st.text(), json_values)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 200)),
    comments=st.booleans(),
)
def test_events_are_read_however_they_are_cut(events, end, cuts, comments):
    """Whatever ends their lines, and wherever the network has cut them."""
    import orjson

    lines = []
    for event in events:
        lines += [":ping"] if comments else []
        lines += ["event: x", f"data: {orjson.dumps(event).decode()}", ""]
    data = "".join(line + end for line in lines).encode() + (b": end\n" if end == "\r" else b"")
    heard = Listening()
    answer = Answer(heard)
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        answer.feed(data[start:cut])
        start = max(start, min(cut, len(data)))
    answer.close()

    assert heard.events == events
    assert answer.trouble is None


def test_an_end_of_line_cut_in_two_is_one():
    """Between its two characters: the lines of one event stay together."""
    heard = Listening()
    answer = Answer(heard)
    for piece in (b'data: {"a":\r', b"\ndata: 1}\r", b"\n\r", b"\n"):
        answer.feed(piece)
    answer.close()

    assert (heard.events, answer.trouble) == ([{"a": 1}], None)


@given(st.lists(st.binary()))
def test_any_bytes_are_borne(pieces):
    """Whatever a server sends, reading it does not fail."""
    answer = Answer(Listening())
    for piece in pieces:
        answer.feed(piece)
    answer.close()


def test_a_document_is_told_by_its_beginning():
    """In pieces, behind a mark or white space; what is no JSON is trouble."""
    heard = Listening()
    for pieces in ([b'{"a"', b":1}"], [b"\xef\xbb\xbf \n", b'{"a":1}'], [b'{"a":']):
        answer = Answer(heard)
        for piece in pieces:
            answer.feed(piece)
        answer.close()

    assert heard.documents == [{"a": 1}, {"a": 1}]
    assert answer.trouble == "the answer has a part that is no JSON"


def test_what_is_too_large_is_not_kept(monkeypatch):
    """An answer of gigabytes is the user's, and not twice in memory."""
    monkeypatch.setattr("prefactor_trace.integrations._answer._LARGEST", 1_000)
    monkeypatch.setattr("prefactor_trace.integrations._answer._AT_ONCE", 100)
    for start in (b"{", b"data: "):
        answer = Answer(Listening())
        answer.feed(start)
        for _ in range(100):
            answer.feed(b"x" * 100)
        assert sum(map(len, answer._put_aside)) + len(answer._line) < 1_200
        answer.close()


# -- pure parts --------------------------------------------------------------------------------------------


@given(json_values)
def test_what_has_no_media_is_the_same_object(value):
    """Nothing is copied for nothing."""
    assert without_media(value) is value


def test_media_in_odd_shapes_are_borne():
    """Text that looks like it, a cycle, and depth."""
    text = "not base64 at all! " * 50
    cycle = []
    cycle.append(cycle)
    deep = []
    for _ in range(1_000):
        deep = [deep]
    for value in ({"data": text}, cycle, deep, {"data": None}, f"data:text/plain,{text}"):
        assert without_media(value) is value


def test_a_price_that_is_not_known_is_none():
    """Neither for a model of one's own, nor without a model."""
    assert _price.cost(("openai", "my-own-model"), {"prompt_tokens": 1, "completion_tokens": 1}) is None
    assert _price.cost(None, {"prompt_tokens": 1}) is None


def test_without_the_package_there_is_no_price(monkeypatch):
    """`genai-prices` is an extra."""
    monkeypatch.setattr(_price, "load", lambda: None)
    assert _price.cost(("openai", "gpt-4o"), {"prompt_tokens": 1, "completion_tokens": 1}) is None


def test_nothing_is_left_open(recorded):
    """A call whose response nobody ever reads ends with it."""
    openai = pytest.importorskip("openai")
    from .provider import Provider

    provider = Provider()
    pt.instrument("openai")
    with pt.instance(), openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key") as client:
        ask = {"model": "m", "messages": []}
        manager = client.chat.completions.with_streaming_response.create(**ask, stream=True)
        response = manager.__enter__()
        response.http_response.stream._inner.close()
        del response, manager
        gc.collect()
        assert [span.status for span in recorded.spans] == ["cancelled"]
    provider.close()


def test_two_recordings_do_not_mix():
    """Taps are of the process; where a call goes is where its run goes."""
    subject = toy("call")
    with recording() as outer, pt.instance():
        subject.call(1)
        with recording() as inner, pt.instance():
            subject.call(2)
    assert [len(each.spans) for each in (outer, inner)] == [1, 1]

"""Propagation: a run taken along in headers, variables, messages and pickles, and what hostile ones come to."""

from __future__ import annotations

import asyncio
import copy
import email.message
import gc
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, MutableHeaders

import prefactor_trace as pt
from prefactor_trace import _api, _ids
from prefactor_trace._record import InstanceFinished, InstanceRegistered, InstanceStarted, SpanRecord
from prefactor_trace.exporters import MemoryExporter
from prefactor_trace.propagation import _traceparent
from prefactor_trace.server import LocalPlatform
from prefactor_trace.testing import recording

RUN, STEP = "01jabcdefg" + "p" * 6 + "r" * 16, "01jabcdefh" + "p" * 6 + "s" * 16
BAGGAGE = f"prefactor-instance-id={RUN},prefactor-span-id={STEP}"
OTHERS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Elsewhere:
    """Another process, as far as the code can tell: a tracer of its own that knows nothing of the run."""

    def __init__(self, **settings):
        self.exporter = MemoryExporter()
        self.tracer = pt.Tracer(exporter=self.exporter, threaded=False, environ={}, **settings)

    def _of(self, *kinds):
        self.tracer.flush()
        return [each for each in self.exporter.records if isinstance(each, kinds)]

    @property
    def spans(self):
        """The steps, in the order they began."""
        spans = [each.started._replace(payload=None) for each in self._of(SpanRecord)]
        return sorted(spans, key=lambda each: each.started_at)

    @property
    def finished(self):
        """The runs that were finished here, with how."""
        return [(each.instance_id, each.status) for each in self._of(InstanceFinished)]

    def tree(self):
        """The steps as indented lines."""
        status = {each.id: each.ended.status for each in self._of(SpanRecord)}
        depths, lines = {None: -1}, []
        for each in self.spans:
            depths[each.id] = depths[each.parent_id] + 1
            lines.append(f"{'  ' * depths[each.id]}{each.name} {status[each.id]}")
        return "\n".join(lines)

    def __enter__(self):
        self._before = _api.set_default(self.tracer)
        return self

    def __exit__(self, *_):
        _api.set_default(self._before)
        self.tracer.shutdown()


@pytest.fixture
def elsewhere():
    with Elsewhere() as elsewhere:
        yield elsewhere


def in_a_run(function):
    """Call *function* in a step of a run, and return run, step and what it returned."""
    with recording(), pt.instance() as run, pt.span("outer") as step:
        return run, step, function()


# -- handles ---------------------------------------------------------------------------------------------------


def test_a_handle_names_the_place():
    """It names the run and the step, or the run alone, or outside of any nothing."""
    run, step, handle = in_a_run(pt.current_handle)
    assert (handle.instance_id, handle.span_id, handle.recording) == (run.id, step.id, True)
    assert (bool(handle), repr(handle)) == (True, f"<Handle {run.id}.{step.id}.1>")
    with recording(), pt.instance() as run:
        assert str(pt.current_handle()) == f"{run.id}..1"
    nothing = pt.current_handle()
    assert (bool(nothing), str(nothing), repr(nothing)) == (False, "", "<Handle (no run)>")


@pytest.mark.parametrize("text", [f"{RUN}.{STEP}.1", f"{RUN}..0", ""])
def test_a_handle_travels(text):
    """Pickled, copied, and as text, it is equal; it stays small, also while it is entered."""
    handle = pt.extract(text)
    assert str(handle) == text
    with recording(), handle:
        copies = [pickle.loads(pickle.dumps(handle, protocol)) for protocol in range(2, 6)]
        copies += [copy.copy(handle), copy.deepcopy(handle), pt.extract(json.loads(json.dumps(str(handle))))]
    assert copies == [handle] * 7
    assert len({handle, *copies}) == 1
    assert len(pickle.dumps(handle)) < 200
    assert handle != text


def test_steps_hang_from_the_handle(elsewhere):
    """What is recorded in the block is of that run, under that step; around it nothing changes."""
    handle = pt.extract(f"{RUN}.{STEP}.1")
    with handle as run:
        assert (run.id, run.status, pt.current_instance(), pt.current_span()) == (RUN, "active", run, None)
        with pt.span("a"), pt.span("b"):
            pass
    with pt.extract(f"{RUN}..1"), pt.span("c"):
        pass
    with pt.span("d", parent=handle):
        pass
    with pt.span("lost"):
        pass
    assert pt.current_instance() is None
    a, b, c, d = elsewhere.spans
    assert [(each.name, each.instance_id) for each in (a, b, c, d)] == [(name, RUN) for name in "abcd"]
    assert [each.parent_id for each in (a, b, c, d)] == [STEP, a.id, None, STEP]


def test_the_run_is_its_owners(elsewhere):
    """A process that joins adds steps and nothing else, however the block is left and whatever happens to it."""
    handle = pt.extract({"baggage": BAGGAGE})
    with handle as run:
        mark("a")
        run.returned(None)  # whoever should try
    for error in (ValueError("no"), KeyboardInterrupt(), pt.InstanceTerminated(RUN)):
        with pytest.raises(type(error)) as raised, handle, pt.span("a"):
            raise error
        assert raised.value is error
    elsewhere.tracer.shutdown()
    kinds = {type(each) for each in elsewhere.exporter.records}
    assert kinds.isdisjoint({InstanceRegistered, InstanceStarted, InstanceFinished})
    assert len(elsewhere.exporter.records) == 4


def test_async_with(elsewhere):
    """`async with` does the same."""

    async def main():
        async with pt.extract(f"{RUN}.{STEP}.1") as run:
            assert run.id == RUN
            await asyncio.gather(*(asyncio.to_thread(mark, str(n)) for n in range(3)))

    asyncio.run(main())
    assert {span.parent_id for span in elsewhere.spans} == {STEP}


def mark(name):
    with pt.span(name):
        pass


def test_one_handle_in_many_threads(elsewhere):
    """A handle may be entered by many at once, and again within itself; each finds what was there before."""
    handle, barrier = pt.extract(f"{RUN}.{STEP}.1"), threading.Barrier(8, timeout=10)

    def work(number):
        found = []
        with pt.instance() as own:
            barrier.wait()
            for _ in range(200):
                with handle as outer, handle as inner:
                    found.append(pt.current_instance() is inner is outer)
                found.append(pt.current_instance() is own)
        found.append(pt.current_instance() is None)
        return all(found)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8
    assert handle._entered == []


def test_in_the_same_process():
    """A run that comes back to its own process is itself: the same object, ids that match, its own tracer."""
    with Elsewhere() as mine:
        other = Elsewhere()
        with other.tracer.instance() as run, pt.span("outer"):
            headers = pt.inject()
        with pt.extract(headers) as again, pt.span("inner"):
            assert again is run
        assert other.tree() == "outer complete\n  inner complete"
        assert mine.spans == []
        other.tracer.shutdown()


def test_a_tracer_of_your_own(elsewhere):
    """`tracer=` says where to record."""
    other = Elsewhere()
    with pt.extract(f"{RUN}..1", tracer=other.tracer), pt.span("a"):
        pass
    assert (len(other.spans), len(elsewhere.spans)) == (1, 0)
    other.tracer.shutdown()


def test_a_sub_agent_in_a_joined_run(elsewhere):
    """An instance opened in the block is a run of its own, which is finished here."""
    with pt.extract(f"{RUN}.{STEP}.1"), pt.instance() as inner, pt.span("a"):
        pass
    assert elsewhere.finished == [(inner.id, "complete")]
    assert elsewhere.spans[0].instance_id == inner.id


def test_an_unsampled_run_stays_unrecorded(elsewhere):
    """A run that was sampled out is propagated as such: over any number of hops nothing of it is recorded."""
    with recording(sample_rate=0), pt.instance(), pt.span("outer"):
        headers, handle = pt.inject(), pt.current_handle()
    assert headers["baggage"].endswith(",prefactor-sampled=0")
    assert headers["traceparent"].endswith("-00")
    for each in (pt.extract(headers), pickle.loads(pickle.dumps(handle)), pt.extract(str(handle))):
        with each as run, pt.span("a"), pt.instance(), pt.span("b"):
            assert not run.recording
        with each:
            assert pt.extract(pt.inject()).recording is False
    assert elsewhere.exporter.records == []
    assert elsewhere.spans == []


def test_disabled_is_disabled():
    """Where tracing is disabled, nothing is injected, and nothing recorded of what comes in."""
    with recording(disabled=True) as recorded, pt.instance():
        assert (pt.inject(), bool(pt.current_handle())) == ({}, False)
        with pt.extract({"baggage": BAGGAGE}), pt.span("a"):
            pass
        assert recorded.ledger.created == 0


def test_termination_is_heard(elsewhere):
    """Once an answer to this process has said so, `check` raises and the next step does not begin."""

    class Terminating(MemoryExporter):
        def export(self, batch):
            return super().export(batch)._replace(terminated={RUN: "enough"})

    tracer = pt.Tracer(exporter=Terminating(), threaded=False, environ={})
    with pt.extract(f"{RUN}.{STEP}.1", tracer=tracer) as run:
        with pt.extract({"baggage": BAGGAGE}, tracer=tracer) as same:
            assert same is run, "or only one of them would hear it"
        mark("a")
        run.check()
        tracer.flush()
        assert run.status == "terminated"
        with pytest.raises(pt.InstanceTerminated, match="enough"):
            run.check()
        with pytest.raises(pt.InstanceTerminated), pt.span("b"):
            pass
    tracer.shutdown()


def test_times_are_counted_from_the_joining(elsewhere):
    """The clock of this machine holds from the moment the run was joined; a joined run is let go of afterwards."""
    tracer = elsewhere.tracer
    tracer.wall_ns, tracer.ticks_ns = lambda: 5_000, lambda: ticks[0]
    ticks = [70]
    with pt.extract(f"{RUN}.{STEP}.1") as run:
        ticks[0] = 72
        with pt.span("a"):
            ticks[0] = 75
        assert run.started_at.timestamp() == pytest.approx(5e-6)
    with pt.extract(f"{RUN}.{STEP}.1"):
        with pt.span("b"):
            ticks[0] = 80
    times = [(each.started.started_at, each.ended.finished_at) for each in elsewhere._of(SpanRecord)]
    assert times == [(5_002, 5_005), (5_005, 5_010)]
    del run
    gc.collect()
    assert tracer.listener(RUN) is None


def test_join_lasts(elsewhere):
    """As the initializer of a pool it makes the thread part of the run, once and for all; other threads not."""
    with ThreadPoolExecutor(1, initializer=pt.join, initargs=(f"{RUN}.{STEP}.1",)) as pool:
        for name in "ab":
            pool.submit(mark, name).result()
    pt.join(pt.extract(None))
    mark("c")
    assert [(span.name, span.parent_id) for span in elsewhere.spans] == [("a", STEP), ("b", STEP)]


# -- headers ---------------------------------------------------------------------------------------------------


def carriers(baggage):
    """Yield carriers of all shapes that hold *baggage*."""
    yield {"baggage": baggage}
    yield {"Baggage": baggage}
    yield {"BAGGAGE": baggage, "PATH": "/bin"}
    yield {"HTTP_BAGGAGE": baggage, "wsgi.version": (1, 0)}
    yield {"x": None, 5: 6, "baggage": baggage.encode()}
    yield [("Accept", "*/*"), ("BaGgAgE", baggage)]
    yield [(b"accept", b"*/*"), (b"baggage", baggage.encode())]
    yield ((b"baggage", baggage.encode()),)
    yield [["baggage", baggage], ("broken",), None]
    yield httpx.Headers({"Baggage": baggage})
    yield Headers({"baggage": baggage})
    yield Headers(scope={"headers": [(b"baggage", part.encode()) for part in baggage.split(",")]})
    yield httpx.Headers([("baggage", part) for part in baggage.split(",")])
    message = email.message.Message()
    message["BAGGAGE"] = baggage
    yield message
    yield os.environ | {"BAGGAGE": baggage}


@pytest.mark.parametrize("number", range(15))
def test_extract_reads_all_shapes(number):
    """Names in any case, bytes or text, headers that stand there twice, and pairs that are none beside them."""
    handle = pt.extract(list(carriers(f"a=1;x=y, {BAGGAGE},b=2"))[number])
    assert (handle.instance_id, handle.span_id, handle.recording) == (RUN, STEP, True)


def test_extract_reads_requests_headers():
    """The headers of requests as well."""
    structures = pytest.importorskip("requests.structures")
    assert pt.extract(structures.CaseInsensitiveDict({"Baggage": BAGGAGE})).instance_id == RUN


@pytest.mark.parametrize(
    ("baggage", "expected"),
    [
        (f" prefactor-instance-id = {RUN} ; secret=1 , prefactor-sampled = 0", f"{RUN}..0"),
        (f"prefactor-instance-id=%30{RUN[1:]}", f"{RUN}..1"),
        (f"prefactor-instance-id={RUN},prefactor-span-id=../../etc", f"{RUN}..1"),
        (f"prefactor-instance-id={RUN},prefactor-span-id={STEP}%0d%0aX: y", f"{RUN}..1"),
        (f"prefactor-instance-id={RUN.upper()}", ""),
        (f"prefactor-instance-id={RUN}/finish", ""),
        (f"prefactor-instance-id={RUN}%0A", ""),
        (f"prefactor-span-id={STEP}", ""),
        ("prefactor-instance-id", ""),
        (f"PREFACTOR-INSTANCE-ID={RUN}", ""),
        (",;=%,,%zz=%", ""),
        ("", ""),
    ],
)
def test_what_baggage_comes_to(baggage, expected):
    """Percent-encoding and spaces are read; a run that is none is none, and a step that is none leaves the run."""
    assert str(pt.extract({"baggage": baggage})) == expected


class Hostile:
    """Raises over everything that it is asked."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


class Endless(dict):
    def items(self):
        while True:
            yield "baggage", "a=1"


@pytest.mark.parametrize(
    "carrier",
    [None, 7, b"x", "x", "." * 10**6, f"{RUN}.{STEP}", f"{RUN}.{STEP}.1.1", object(), Hostile, Endless(), [None], {1: 2},
     {"baggage": "x" * 10**7}, {"baggage": f"{BAGGAGE}," + "x=1," * 10**6}, {"baggage": [BAGGAGE]}, {"baggage": object()},
     [("baggage", BAGGAGE, 1)], [("baggage" * 10**5, BAGGAGE)], {"traceparent": OTHERS}, {"baggage": b"\xff\x00"}, iter([]),
     lambda: {"baggage": Hostile()}, lambda: [(Hostile(), Hostile())]],
    ids=lambda carrier: type(carrier).__name__,
)  # fmt: skip
def test_what_cannot_be_read_is_no_run(carrier):
    """Whatever it is, nothing is raised, and the code goes on in whatever it was in, recorded if that was."""
    carrier = carrier() if callable(carrier) else carrier  # pytest would ask it as well
    with recording() as recorded, pt.instance() as run:
        handle = pt.extract(carrier)
        assert not handle
        with handle as joined, pt.span("a", parent=handle):
            assert (joined, pt.current_instance()) == (None, run)
        pt.join(carrier)
        assert pt.current_instance() is run
        assert recorded.tree() == "a complete"


@settings(max_examples=40)
@given(st.one_of(st.text(), st.binary(), st.lists(st.tuples(st.just("baggage"), st.text())), st.from_regex(
    r"\A(prefactor-(instance|span)-id|prefactor-sampled|[a-z;=%, ]*)(=|;|,|%[0-9a-f]{0,2}|[0-9a-hjkmnp-tv-z]{30,33})*\Z")))  # fmt: skip
def test_any_text_is_a_handle_or_none(found):
    """No text raises, and every handle that comes out holds ids that are ids."""
    for carrier in (found, {"baggage": found}, [("baggage", found)]):
        handle = pt.extract(carrier)
        assert not handle or _ids.is_pfid(handle.instance_id)
        assert handle.span_id is None or _ids.is_pfid(handle.span_id)
        assert pt.extract(str(handle)) == handle


def test_inject_writes_what_extract_reads():
    """Into all shapes, in the type that is there; a carrier of none is a new dict."""

    def inject_all():
        shapes = [None, {}, {b"a": b"b"}, [], [("a", "b")], [(b"a", b"b")], [["a", b"b"]], (), (("a", "b"),)]
        shapes += [httpx.Headers({"a": "b"}), MutableHeaders({"a": "b"}), email.message.Message()]
        return [(pt.inject(shape), shape) for shape in shapes]

    run, step, injected = in_a_run(inject_all)
    for carrier, before in injected:
        assert before is None or type(carrier) is type(before)
        assert (carrier is before) == (before is not None and type(before) is not tuple)
        handle = pt.extract(carrier)
        assert (handle.instance_id, handle.span_id) == (run.id, step.id)
        assert "a" in str(carrier)
    assert injected[0][0] == {
        "traceparent": _traceparent(pt.extract(injected[0][0])),
        "baggage": f"prefactor-instance-id={run.id},prefactor-span-id={step.id}",
    }
    assert {(type(key), type(value)) for key, value in injected[2][0].items()} == {(bytes, bytes)}
    assert {type(each) for each in injected[6][0]} == {list}
    assert {(type(key), type(value)) for key, value in injected[6][0]} == {(str, bytes)}


def test_inject_for_environments():
    """The names of variables are upper case; they stay so when they are written again."""
    run, _, environ = in_a_run(lambda: pt.inject({"PATH": "/bin"}, environ=True))
    assert set(environ) == {"PATH", "BAGGAGE", "TRACEPARENT"}
    assert pt.extract(environ).instance_id == run.id
    again, _, _ = in_a_run(lambda: pt.inject(environ))
    assert set(environ) == {"PATH", "BAGGAGE", "TRACEPARENT"}
    assert pt.extract(environ).instance_id == again.id


@pytest.mark.parametrize("shape", [dict, list, httpx.Headers, MutableHeaders])
def test_inject_keeps_what_is_others(shape):
    """Entries, properties and the traceparent of others stay as they are, once each."""
    pairs = {"Baggage": "user=al%20ice;ttl=1, k=v", "traceparent": OTHERS, "tracestate": "a=b"}
    carrier = list(pairs.items()) if shape is list else shape(pairs)
    run, step, _ = in_a_run(lambda: (pt.inject(carrier), pt.inject(carrier)))
    found = {name.lower(): value for name, value in (carrier if shape is list else carrier.items())}
    ours = f"prefactor-instance-id={run.id},prefactor-span-id={step.id}"
    assert found == {"baggage": f"user=al%20ice;ttl=1,k=v,{ours}", "traceparent": OTHERS, "tracestate": "a=b"}
    assert len(carrier) == 3


def test_inject_replaces_what_is_ours():
    """Headers used again name the new place; outside of any run, they name none any more, and others' stay."""
    headers = {"baggage": "k=v"}
    in_a_run(lambda: pt.inject(headers))
    first = dict(headers)
    run, step, _ = in_a_run(lambda: pt.inject(headers))
    assert headers["traceparent"] == _traceparent(pt.extract(headers)) != first["traceparent"]
    assert (pt.extract(headers).instance_id, pt.extract(headers).span_id) == (run.id, step.id)
    assert pt.inject(headers) == {"baggage": "k=v"}
    assert pt.inject(pt.inject({**first, "baggage": first["baggage"].removeprefix("k=v,")})) == {}
    assert pt.inject({"traceparent": OTHERS}) == {"traceparent": OTHERS}


@pytest.mark.parametrize(
    "baggage",
    [
        "k=" + "v" * 8_150,
        ",".join(f"k{n}=v" for n in range(63)),
        "x" * 100_000,
        b"\xff" * 40_000,
        ["a=1"],
        None,
    ],
    ids=["bytes", "entries", "far too long", "far too long, bytes", "no text", "nothing"],
)
def test_inject_leaves_full_baggage_alone(baggage, caplog):
    """If there is no room, or what is there is no text, others' baggage stays as it is, and the log says so."""
    headers = {"baggage": baggage}
    in_a_run(lambda: pt.inject(headers))
    assert headers["baggage"] == baggage
    assert "not taken along" in caplog.text


class Frozen:
    def items(self):
        return []


@pytest.mark.parametrize("carrier", [7, "text", Frozen(), Headers({"a": "b"}), Hostile, object()])
def test_inject_into_what_takes_nothing(carrier, caplog):
    """It comes back as it was, and the log says that the run is not taken along."""
    carrier = carrier() if callable(carrier) else carrier
    _, _, injected = in_a_run(lambda: pt.inject(carrier))
    assert injected is carrier
    assert "inject() cannot write" in caplog.text


def test_traceparent():
    """Its ids are made from ours: the same in every process, whatever the partition, valid by W3C, and different."""
    handle = pt.extract(f"{RUN}.{STEP}.1")
    moved = pt.extract(f"{_ids.with_partition(RUN, '000000')}.{_ids.with_partition(STEP, 'zzzzzz')}.1")
    assert _traceparent(handle) == _traceparent(moved)
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01", _traceparent(handle))
    milliseconds = int(_traceparent(handle)[3:15], 16)
    assert _ids.encode(milliseconds, 10) == RUN[:10]
    assert _traceparent(pt.extract(f"{'0' * 32}..1")) is None
    ids = [_ids.generate() for _ in range(2_000)]
    assert len({_traceparent(pt.extract(f"{each}..1")) for each in ids}) == 2_000


def test_opentelemetry_reads_it():
    """Its propagators read ours, pass our baggage on, and leave the run readable."""
    trace_context = pytest.importorskip("opentelemetry.trace.propagation.tracecontext")
    from opentelemetry import trace
    from opentelemetry.baggage.propagation import W3CBaggagePropagator

    run, step, headers = in_a_run(lambda: pt.inject({"baggage": "k=v"}))
    context = trace_context.TraceContextTextMapPropagator().extract(headers)
    span = trace.get_current_span(context).get_span_context()
    assert (f"{span.trace_id:032x}", f"{span.span_id:016x}", span.trace_flags) == (
        *headers["traceparent"].split("-")[1:3],
        1,
    )
    passed_on = {}
    W3CBaggagePropagator().inject(passed_on, W3CBaggagePropagator().extract(headers))
    assert (pt.extract(passed_on).instance_id, pt.extract(passed_on).span_id) == (run.id, step.id)


# -- processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def platform(tmp_path):
    with LocalPlatform(tmp_path / "platform.sqlite3", state_dir=tmp_path / "platform") as running:
        yield running


def python(program, platform, *arguments, **environ):
    """Start *program* with a state folder of its own unless one is given, sending to *platform*."""
    environ = {
        **os.environ,
        "PREFACTOR_API_URL": platform.url,
        "PREFACTOR_API_TOKEN": platform.token,
        **environ,
    }
    environ["PYTHONPATH"] = str(Path(pt.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, *([program] if isinstance(program, Path) else ["-c", program]), *arguments],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tree(platform):
    """The status of the one run, and how often each step hangs from each other."""
    (agent,) = platform.store.agents()
    (run,), _ = platform.store.instances(agent["id"])
    spans, _ = platform.store.spans(run["id"])
    names = {span["id"]: span["payload"]["name"] for span in spans}
    found = [(span["payload"]["name"], names.get(span["parent_span_id"])) for span in spans]
    return run["status"], {each: found.count(each) for each in found}


CHILD = """
import sys, prefactor_trace as pt, os
with pt.extract(os.environ), pt.span("child"):
    with pt.span("grandchild"):
        pass
print(pt.flush(1.0).pending, flush=True)
sys.stdin.read()
print(pt.flush(20).pending)
"""


def test_earlier_than_its_run(platform, tmp_path):
    """Steps from another host that come before their run is registered, and before their parent, wait for both."""
    tracer = pt.Tracer(
        api_url=platform.url,
        api_token=platform.token,
        environ={},
        state_dir=tmp_path / "owner",
        threaded=False,  # sends when it is told to
    )
    with tracer.instance(), pt.span("outer"):
        environ = pt.inject({}, environ=True)
        with python(CHILD, platform, PREFACTOR_STATE_DIR=str(tmp_path / "child"), **environ) as child:
            assert child.stdout.readline() == "2\n", "nothing of it can be stored yet"
            with pt.span("own"):
                pass
            tracer.flush()
            assert child.communicate(timeout=30)[0] == "0\n"
    tracer.shutdown(10)
    assert tree(platform) == (
        "complete",
        {("outer", None): 1, ("own", "outer"): 1, ("child", "outer"): 1, ("grandchild", "child"): 1},
    )


def test_killed_while_it_waits(platform, tmp_path):
    """What a joined process leaves when it is killed is delivered by another, and its run is not finished for it."""
    state = str(tmp_path / "state")
    with recording(), pt.instance() as run:
        handle = pt.current_handle()
    program = "import os, sys, prefactor_trace as pt\npt.join(sys.argv[1])\nwith pt.span('child'): pass\nos._exit(9)"
    with python(program, platform, str(handle), PREFACTOR_STATE_DIR=state) as child:
        assert child.wait(20) == 9
    tracer = pt.Tracer(api_url=platform.url, api_token=platform.token, environ={}, state_dir=state)
    with tracer.instance(id=run.own_id), pt.span("own"):
        tracer.flush()
        assert tree(platform) == ("active", {("child", None): 1})
    tracer.shutdown(10)
    assert tree(platform) == ("complete", {("child", None): 1, ("own", None): 1})


POOL = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import prefactor_trace as pt

@pt.span
def work(number):
    with pt.span("inner"):
        return number

def main():
    pt.configure(live_after=60.0)
    with pt.instance():
        pt.flush()
        for method in sys.argv[1].split():
            with pt.span(method):
                context = multiprocessing.get_context(method)
                handle = pt.current_handle()
                with ProcessPoolExecutor(2, context, initializer=pt.join, initargs=(handle,)) as pool:
                    assert list(pool.map(work, range(6))) == list(range(6))
                if sys.argv[2:]:
                    continue
                with context.Pool(1, pt.join, (str(handle),)) as pool:
                    assert pool.map(work, range(2)) == [0, 1]
                    pool.close()
                    pool.join()
    assert pt.shutdown().pending == 0

if __name__ == "__main__":
    main()
"""


def test_an_open_step_is_shown(platform, tmp_path):
    """What another process is about to hang steps from is known at once, though it is open; so those arrive at once."""
    settings = {"api_url": platform.url, "api_token": platform.token, "environ": {}, "live_after": 60.0}
    owner = pt.Tracer(**settings, state_dir=tmp_path / "a")
    with owner.instance(), pt.span("outer"), pt.span("inner"):
        carried = []
        for write in (pt.inject, pt.current_handle):
            before, place = time.monotonic(), write()
            service = pt.Tracer(**settings, state_dir=tmp_path / str(len(carried)))
            with pt.extract(place if write is pt.inject else str(place), tracer=service), pt.span("answer"):
                pass
            assert service.flush().pending == 0
            carried.append(time.monotonic() - before)
            service.shutdown()
        assert tree(platform) == (
            "active",
            {("outer", None): 1, ("inner", "outer"): 1, ("answer", "inner"): 2},
        )
    owner.shutdown(10)
    assert max(carried) < 5
    assert tree(platform)[0] == "complete"


@pytest.fixture
def pool_program(tmp_path):
    path = tmp_path / "pool_program.py"
    path.write_text(POOL)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="there is one way to start a process, and no spool")
def test_process_pools(platform, pool_program, tmp_path):
    """Every step of a pool's children arrives, under the step that made the pool, however they are started."""
    methods = "fork spawn forkserver"
    with python(pool_program, platform, methods, PREFACTOR_STATE_DIR=str(tmp_path)) as done:
        assert done.wait(60) == 0
    status, found = tree(platform)
    assert found == {
        **{(method, None): 1 for method in methods.split()},
        **{("work", method): 8 for method in methods.split()},
        ("inner", "work"): 24,
    }
    assert status == "complete"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_process_pools_without_a_spool(platform, pool_program, tmp_path):
    """With nothing on disk each child delivers before it ends: the step that is open here is known by then."""
    with python(
        pool_program, platform, "fork", "one", PREFACTOR_STATE_DIR=str(tmp_path), PREFACTOR_SPOOL="off"
    ) as done:
        assert done.wait(60) == 0
    assert tree(platform) == ("complete", {("fork", None): 1, ("work", "fork"): 6, ("inner", "work"): 6})


# -- queues ----------------------------------------------------------------------------------------------------


def leave_logging_alone(**_):
    """Keep Celery from taking over the logging of the tests."""


def test_celery(elsewhere):
    """The recipe of the README: tasks, wherever they run, are steps of the run that sent them."""
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (recipe,) = [each for each in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "celery" in each]
    scope = {"pt": pt}
    exec(recipe, scope)
    app = scope["app"]
    app.conf.update(broker_url="memory://", result_backend="cache+memory://")
    app.conf.update(worker_hijack_root_logger=False, worker_redirect_stdouts=False)
    celery.signals.setup_logging.connect(leave_logging_alone)
    app.task(mark, name="mark")
    with start_worker(app, perform_ping_check=False, pool="solo"), pt.instance():
        with pt.span("outer"):
            app.tasks["mark"].delay("a").get(timeout=10)
        app.tasks["mark"].apply_async(["b"], headers={"other": "1"}).get(timeout=10)
    app.tasks["mark"].delay("nobody takes it")
    app.conf.task_always_eager = True
    with pt.instance(), pt.span("eager"):
        app.tasks["mark"].delay("c").get()
    assert elsewhere.tree() == "outer complete\n  a complete\nb complete\neager complete\n  c complete"
    assert pt.current_instance() is None

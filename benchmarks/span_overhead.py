"""What a recorded call costs, beside other libraries, in one run (`make bench`).

The same calls are made undecorated, under `prefactor_trace`, under OpenTelemetry's SDK and under `prefactor-core`, in
rounds of all four, so that noise meets all alike. Everything is really sent, to a process of its own on loopback
(`_sink.py`), and counted there: a run that has lost a span stops. The garbage collector is left as it is.

    python benchmarks/span_overhead.py [--check] [--quick]

Ends with status 0; 1 if a budget is missed and `--check` is given; 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import inspect
import json
import os
import platform
import sys
import tempfile
import time
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from _sink import Sink

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GAP_SECONDS = 0.002  # between paced calls: about 500 a second
# OpenTelemetry drops spans when more wait than this; its default of 2,048 is less than a hot loop makes.
_OTEL_QUEUE = 100_000
_FLUSH_SECONDS = 60.0
_FLAT = 1.3  # what counts as flat: medians of a hot loop repeat within 30 % on shared processors


class Workload(NamedTuple):
    """What is called, how often in a round, and what recording may add to a call (design, section 6)."""

    title: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    hot_calls: int
    paced_calls: int
    budget: float


def search(query: str, customer: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"query": query, "customer": customer, "hits": options["limit"]}


def chat(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {"role": "assistant", "turns": len(messages)}


def read(document: str) -> dict[str, Any]:
    return {"characters": len(document)}


_QUERY = ("refund policy", "customer-17", {"limit": 5, "language": "en"})
_MESSAGES = [{"role": "user", "content": f"{n:03d} " + "all work and no play " * 10} for n in range(200)]
SMALL = Workload("small call", search, _QUERY, 2_000, 250, 16.0)
_IN_MEMORY_BUDGET = 10.0
WORKLOADS = (
    SMALL,
    Workload("200 chat messages, 50 KB", chat, (_MESSAGES,), 300, 100, 60.0),
    # Few, because OpenTelemetry sends them whole and takes at most 64 MiB in one request.
    Workload("one string of 10 MB", read, ("x" * 10_000_000,), 5, 5, 500.0),
)


class NotMeasuredError(Exception):
    """A number would be wrong: not everything that was recorded has arrived."""


# -- the four: each times calls, and returns when everything has arrived -----------------------------------------


class Undecorated:
    title = "undecorated"

    def time(self, workload: Workload, calls: int, gap: float) -> list[int]:
        """Return the nanoseconds that each of *calls* took, *gap* seconds apart."""
        return _time_calls(workload.function, workload.arguments, calls, gap)

    def close(self) -> None:
        pass


class Delivery(NamedTuple):
    """What it took to record spans as fast as possible and see them all delivered."""

    cpu: float  # µs of this process for a span, its sender included
    per_second: float


class _Decorating:
    """A library that records decorated calls and sends them from a thread of its own."""

    title: str
    spans_of_a_run = 0  # besides those of the calls

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def run(self) -> contextlib.AbstractContextManager[Any]:
        """Return the block in which calls are recorded."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait until the sink has acknowledged everything."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def delivered(self, calls: int) -> Iterator[None]:
        """Open a run for so many calls; at its end, see that everything has arrived."""
        before = self._sink.counts()["spans"]
        with self.run():
            yield
        self.flush()
        _require_all(self.title, calls + self.spans_of_a_run, self._sink.counts()["spans"] - before)

    def time(self, workload: Workload, calls: int, gap: float) -> list[int]:
        function = self.decorate(workload.function)
        with self.delivered(calls):
            return _time_calls(function, workload.arguments, calls, gap)

    def deliver(self, workload: Workload, calls: int) -> Delivery:
        function, arguments = self.decorate(workload.function), workload.arguments
        with self.delivered(calls):
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(calls):
                function(*arguments)
            self.flush()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Delivery(cpu / calls * 1e6, calls / wall)


class PrefactorTrace(_Decorating):
    title = "prefactor_trace"
    spool = True

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._folder = tempfile.TemporaryDirectory()
        self._tracer = pt.configure(
            api_url=sink.url,
            api_token="benchmark",
            agent_name="benchmark",
            spool=self.spool,
            state_dir=self._folder.name,
        )

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return pt.span(function)

    def run(self) -> contextlib.AbstractContextManager[Any]:
        return self._tracer.instance()

    def flush(self) -> None:
        ledger = self._tracer.flush(_FLUSH_SECONDS)
        if ledger.delivered != ledger.created or ledger.notes:  # a note can be: payload left out
            raise NotMeasuredError(f"{self.title} has not delivered everything as recorded: {ledger}")

    def close(self) -> None:
        self._tracer.shutdown()
        self._folder.cleanup()


class InMemory(PrefactorTrace):
    """Without the spool, as the others are: what waits is lost with the process."""

    title = "prefactor_trace, in memory"
    spool = False


class OpenTelemetry(_Decorating):
    """The SDK as decorators of instrumentations use it, recording what we record.

    Arguments by name, defaults included, and the result, as JSON in string attributes; the kind of the step, the
    types of the values and the status beside them: the attributes that the OpenInference conventions ask for.
    """

    title = "OpenTelemetry"
    spans_of_a_run = 1

    def __init__(self, sink: Sink) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        super().__init__(sink)
        exporter = OTLPSpanExporter(endpoint=f"{sink.url}/v1/traces")
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_OTEL_QUEUE))
        self._tracer = self._provider.get_tracer("benchmark")

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from opentelemetry.trace import Status, StatusCode

        tracer, name, signature = self._tracer, function.__qualname__, inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with tracer.start_as_current_span(name) as span:
                given = signature.bind(*args, **kwargs)
                given.apply_defaults()
                span.set_attribute("openinference.span.kind", "TOOL")
                span.set_attribute("input.value", json.dumps(given.arguments, default=str))
                span.set_attribute("input.mime_type", "application/json")
                result = function(*args, **kwargs)
                span.set_attribute("output.value", json.dumps(result, default=str))
                span.set_attribute("output.mime_type", "application/json")
                span.set_status(Status(StatusCode.OK))
                return result

        return wrapper

    def run(self) -> contextlib.AbstractContextManager[Any]:
        return self._tracer.start_as_current_span("run")

    def flush(self) -> None:
        self._provider.force_flush(int(_FLUSH_SECONDS * 1_000))

    def close(self) -> None:
        self._provider.shutdown()


class PrefactorCore:
    """The official SDK: the start of a span is a request that the caller waits for, its finish a queued one."""

    title = "prefactor-core"

    def __init__(self, sink: Sink) -> None:
        from prefactor_core import PrefactorCoreClient, PrefactorCoreConfig
        from prefactor_http import HttpClientConfig

        self._sink = sink
        http = HttpClientConfig(api_url=sink.url, api_token="benchmark")
        # A client for each measurement: it never forgets a span, and looks at all of them when it starts one.
        self._client = lambda: PrefactorCoreClient(PrefactorCoreConfig(http_config=http))

    def time(self, workload: Workload, calls: int, gap: float) -> list[int]:
        calls = max(3, calls // 10)  # it is slow enough to be measured with fewer
        before = self._sink.counts()["spans"]
        durations = asyncio.run(self._time(workload, calls, gap))
        _require_all(self.title, calls, self._sink.counts()["spans"] - before)
        return durations

    async def _time(self, workload: Workload, calls: int, gap: float) -> list[int]:
        clock, durations = time.perf_counter_ns, []
        function, arguments, names = workload.function, workload.arguments, _names(workload.function)
        version: dict[str, Any] = {"name": "benchmark", "external_identifier": "1"}
        schema = {"external_identifier": "1", "span_type_schemas": [{"name": "call", "params_schema": {}}]}
        async with self._client() as client:
            run = await client.create_agent_instance(version, schema, agent_id="benchmark")
            await run.start()
            for _ in range(calls):
                if gap:
                    await asyncio.sleep(gap)
                began = clock()
                async with run.span("call") as span:
                    await span.start(dict(zip(names, arguments, strict=True)))
                    span.set_result(function(*arguments))
                durations.append(clock() - began)
            await run.finish()
        return durations

    def close(self) -> None:
        pass


def _time_calls(function: Any, arguments: tuple[Any, ...], calls: int, gap: float) -> list[int]:
    clock, durations = time.perf_counter_ns, []
    for _ in range(calls):
        if gap:
            time.sleep(gap)
        began = clock()
        function(*arguments)
        durations.append(clock() - began)
    return durations


def _names(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _require_all(title: str, sent: int, arrived: int) -> None:
    if arrived != sent:
        raise NotMeasuredError(f"of {sent:,} spans recorded with {title}, {arrived:,} have arrived")


# -- what is measured --------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """How much is measured: a matter of how well, not of what."""

    rounds: int
    share: float  # of each workload's calls
    delivered: int
    recorded: tuple[int, ...]

    def of(self, calls: int) -> int:
        return max(5, int(calls * self.share))


FULL = Scale(rounds=7, share=1.0, delivered=20_000, recorded=(0, 10_000, 100_000))
QUICK = Scale(rounds=1, share=0.05, delivered=500, recorded=(0, 100, 1_000))
_DEPTHS = (1, 10, 100)


class Row(NamedTuple):
    """A line of the result. *values*: by library. *limit*: the budget; a lower one if *at_least*."""

    title: str
    values: dict[str, float]
    limit: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Say whether we keep the budget."""
        if self.limit is None:
            return ""
        ours = self.values[PrefactorTrace.title]
        return "ok" if (ours >= self.limit if self.at_least else ours <= self.limit) else "MISSED"


def overhead(peers: list[Any], workload: Workload, scale: Scale) -> Iterator[Row]:
    """Measure what recording adds to a call of *workload*, over the undecorated call."""
    hot, paced = scale.of(workload.hot_calls), scale.of(workload.paced_calls)
    rows = (
        ("hot loop, median", hot, 0.0, median, workload.budget),
        ("hot loop, mean", hot, 0.0, fmean, None),
        ("500 calls/s, median", paced, _GAP_SECONDS, median, None),
    )
    added: dict[tuple[str, str], list[float]] = {}
    for peer in peers:
        peer.time(workload, 5, 0.0)  # opens connections, fills caches
    for _ in range(scale.rounds):
        timed = {
            way: [peer.time(workload, *way) for peer in peers] for way in ((hot, 0.0), (paced, _GAP_SECONDS))
        }
        for title, calls, gap, average, _ in rows:
            bare, *recorded = map(average, timed[calls, gap])
            for peer, nanoseconds in zip(peers[1:], recorded, strict=True):
                added.setdefault((title, peer.title), []).append((nanoseconds - bare) / 1e3)
    for title, _, _, _, budget in rows:
        values = {peer.title: median(added[title, peer.title]) for peer in peers[1:]}
        yield Row(f"{workload.title}: {title}", values, budget)
        if InMemory.title in values and workload is SMALL:
            in_memory = {**values, PrefactorTrace.title: values[InMemory.title]}
            yield Row(f"  PREFACTOR_SPOOL=off: {title}", in_memory, budget and _IN_MEMORY_BUDGET)


def delivery(peers: list[Any], scale: Scale) -> Iterator[Row]:
    """Measure what the whole way takes, from the first call to the last acknowledgement."""
    able = [peer for peer in peers if isinstance(peer, _Decorating)]
    rounds = [[peer.deliver(SMALL, scale.delivered) for peer in able] for _ in range(scale.rounds)]
    found = {peer.title: each for peer, each in zip(able, zip(*rounds, strict=True), strict=True)}
    cpu = {title: median(one.cpu for one in each) for title, each in found.items()}
    rate = {title: median(one.per_second for one in each) for title, each in found.items()}
    yield Row("process CPU for a delivered span", cpu, 40.0)
    yield Row("delivered spans per second, to the sink", rate, 10_000.0, at_least=True)


def flatness(sink: Sink, scale: Scale) -> Iterator[Row]:
    """Measure whether a call costs more the more there is: spans recorded in the run, spans around the call."""
    after: list[list[float]] = []
    inside: list[list[float]] = []
    for _ in range(scale.rounds):
        peer = PrefactorTrace(sink)  # a new one: it has recorded nothing yet
        call = peer.decorate(SMALL.function)
        after.append(_after_recorded(peer, call, scale))
        inside.append([_inside(peer, call, scale, depth) for depth in _DEPTHS])
        peer.close()
    yield from _growth("after {:,} spans", scale.recorded, after)
    yield from _growth("at depth {:,}", _DEPTHS, inside)


def _after_recorded(peer: PrefactorTrace, call: Any, scale: Scale) -> list[float]:
    found, recorded = [], 0
    with peer.run():
        for goal in scale.recorded:
            while recorded < goal:
                lot = min(goal - recorded, 10_000)  # no more than the buffer holds
                for _ in range(lot):
                    call(*SMALL.arguments)
                peer.flush()
                recorded += lot
            found.append(_median_of_a_call(call, scale))
            peer.flush()
    return found


def _inside(peer: PrefactorTrace, call: Any, scale: Scale, depth: int) -> float:
    with peer.run(), contextlib.ExitStack() as around:
        for _ in range(depth - 1):
            around.enter_context(pt.span("level"))
        found = _median_of_a_call(call, scale)
    peer.flush()
    return found


def _median_of_a_call(call: Any, scale: Scale) -> float:
    return median(_time_calls(call, SMALL.arguments, scale.of(SMALL.hot_calls), 0.0)) / 1e3


def _growth(title: str, points: tuple[int, ...], rounds: list[list[float]]) -> Iterator[Row]:
    # The quietest round of each: a neighbour on the same processor looks just like growth.
    costs = [min(each) for each in zip(*rounds, strict=True)]
    for point, cost in zip(points, costs, strict=True):
        limit = None if point == points[0] else costs[0] * _FLAT
        yield Row(f"small call {title.format(point)}: hot loop, median", {PrefactorTrace.title: cost}, limit)


# -- the result --------------------------------------------------------------------------------------------------

_HEAD = f"""\
prefactor_trace {pt.__version__}, Python {platform.python_version()}, {os.cpu_count()} processors.
Times are in microseconds; those of calls are over the undecorated call. Medians of {{rounds}} rounds of all libraries.
x: times the value of prefactor_trace. A mean has in it what a median hides: the sender and the garbage collector.
OpenTelemetry has room for {_OTEL_QUEUE:,} spans instead of 2,048, else it would drop some; all else is its default.
OpenTelemetry and prefactor-core send a long string whole; prefactor_trace cuts it at 10,000 characters, its default.
"""
_LINE = "{:<51} {:>15} {:>13} {:>8} {:>14} {:>8} {:>9}  {}"


def _print_row(row: Row) -> None:
    ours = row.values[PrefactorTrace.title]
    cells = [row.title, _number(ours)]
    for title in (OpenTelemetry.title, PrefactorCore.title):
        value = row.values.get(title)
        cells += ["", ""] if value is None else [_number(value), f"{_number(value / ours)}x"]
    sign = ">=" if row.at_least else "<="
    cells += ["" if row.limit is None else f"{sign} {_number(row.limit)}", row.verdict]
    print(_LINE.format(*cells).rstrip(), flush=True)


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _open(kind: Any, sink: Sink) -> list[Any]:
    try:
        return [kind(sink)]
    except ImportError as error:
        print(f"{kind.title} is not measured: {error}. `make install` brings it.")
        return []


def _measure(scale: Scale) -> Iterator[Row]:
    with Sink() as sink:
        peers = [
            Undecorated(),
            PrefactorTrace(sink),
            InMemory(sink),
            *_open(OpenTelemetry, sink),
            *_open(PrefactorCore, sink),
        ]
        print(_HEAD.format(rounds=scale.rounds))
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
            print("Other programs are running here: expect up to twice the times of a quiet machine.\n")
        print(_LINE.format("", "prefactor_trace", "OpenTelemetry", "", "prefactor-core", "", "budget", ""))
        for workload in WORKLOADS:
            yield from overhead(peers, workload, scale)
        yield from delivery(peers, scale)
        for peer in peers:
            peer.close()
        yield from flatness(sink, scale)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a recorded call costs, beside other libraries.")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a budget is missed")
    parser.add_argument("--quick", action="store_true", help="measure little: shows that it works, no more")
    options = parser.parse_args()
    for name in list(os.environ):
        if name.startswith(("PREFACTOR_", "OTEL_")):  # what is measured are the defaults
            del os.environ[name]
    os.environ["NO_PROXY"] = "127.0.0.1"
    rows = []
    try:
        for row in _measure(QUICK if options.quick else FULL):
            _print_row(row)
            rows.append(row)
    except NotMeasuredError as error:
        print(f"not measured: {error}")
        return 2
    missed = sum(row.verdict == "MISSED" for row in rows)
    print(f"\n{missed} of {sum(row.limit is not None for row in rows)} budgets missed")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())

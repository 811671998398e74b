"""What a recorded call costs, beside other libraries, in one run (`make bench`).

The same calls are made undecorated, under `prefactor_trace`, under OpenTelemetry's SDK and under `prefactor-core`, in
rounds of all four, so that noise meets all alike. Everything is really sent, to a process of its own on loopback
(`_sink.py`), and counted there: a round that has lost a span stops the run. The garbage collector is left as it is.

    python benchmarks/span_overhead.py [--check] [--quick]

Ends with status 0; 1 if a budget is missed and `--check` is given; 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.metadata
import inspect
import json
import os
import platform
import sys
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


_MESSAGES = [{"role": "user", "content": f"{number:03d} " + "all work and no play " * 10} for number in range(200)]
SMALL = Workload(
    "small call", search, ("refund policy", "customer-17", {"limit": 5, "language": "en"}), 2_000, 250, 10.0
)
WORKLOADS = (
    SMALL,
    Workload("200 chat messages, 50 KB", chat, (_MESSAGES,), 300, 100, 60.0),
    # Few, because OpenTelemetry sends them whole and takes at most 64 MiB in one request.
    Workload("one string of 10 MB", read, ("x" * 10_000_000,), 5, 5, 500.0),
)


class NotMeasuredError(Exception):
    """A number would be wrong: not everything that was recorded has arrived."""


class Delivery(NamedTuple):
    """What it took to record spans as fast as possible and see them all delivered."""

    cpu: float  # µs of this process for a span, its sender included
    per_second: float


# -- the four: each times calls, and returns when everything has arrived -----------------------------------------


class Undecorated:
    title = "undecorated"

    def time(self, workload: Workload, calls: int, gap: float) -> list[int]:
        """Return the nanoseconds that each of *calls* took, *gap* seconds apart."""
        return _time_calls(workload.function, workload.arguments, calls, gap)

    def close(self) -> None:
        pass


class _Recorded:
    """A library with a decorator and a sender thread."""

    title: str

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def run(self) -> contextlib.AbstractContextManager[Any]:
        """Return the block in which calls are recorded."""
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    spans_of_a_run = 0

    @contextlib.contextmanager
    def delivered(self, calls: int) -> Iterator[None]:
        """Open a run for so many calls; at the end, see that everything has arrived."""
        before = self._sink.counts()["spans"]
        with self.run():
            yield
        self.flush()
        _require_all(self, calls + self.spans_of_a_run, self._sink.counts()["spans"] - before)

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


class PrefactorTrace(_Recorded):
    title = "prefactor_trace"

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._tracer = pt.configure(api_url=sink.url, api_token="benchmark", agent_name="benchmark")

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return pt.span(function)

    def run(self) -> contextlib.AbstractContextManager[Any]:
        return self._tracer.instance()

    def flush(self) -> None:
        ledger = self._tracer.flush(_FLUSH_SECONDS)
        if ledger.dropped or ledger.notes:
            raise NotMeasuredError(f"{self.title}: not everything was delivered whole: {ledger}")

    def close(self) -> None:
        self._tracer.shutdown()


class OpenTelemetry(_Recorded):
    """The SDK as instrumentations use it: arguments and result as JSON in string attributes."""

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
        tracer, name, names = self._tracer, function.__qualname__, _names(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with tracer.start_as_current_span(name) as span:
                given = {**dict(zip(names, args)), **kwargs}  # noqa: B905 - there may be fewer
                span.set_attribute("input.value", json.dumps(given, default=str))
                result = function(*args, **kwargs)
                span.set_attribute("output.value", json.dumps(result, default=str))
                return result

        return wrapper

    def run(self) -> contextlib.AbstractContextManager[Any]:
        return self._tracer.start_as_current_span("run")

    def flush(self) -> None:
        self._provider.force_flush(int(_FLUSH_SECONDS * 1_000))

    def close(self) -> None:
        self._provider.shutdown()


class PrefactorCore:
    """The official SDK: the start of a span is a request the caller waits for, its finish a queued one."""

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
        _require_all(self, calls, self._sink.counts()["spans"] - before)
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


def _time_calls(function: Callable[..., Any], arguments: tuple[Any, ...], calls: int, gap: float) -> list[int]:
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


def _require_all(peer: Any, sent: int, arrived: int) -> None:
    if arrived != sent:
        raise NotMeasuredError(f"{peer.title}: {sent:,} spans were recorded, {arrived:,} have arrived")


# -- what is measured --------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """How much is measured. Not a matter of what, only of how well."""

    rounds: int
    share: float  # of each workload's calls
    deliveries: int
    delivered: int
    recorded: tuple[int, ...]


FULL = Scale(rounds=7, share=1.0, deliveries=3, delivered=20_000, recorded=(0, 10_000, 100_000))
QUICK = Scale(rounds=2, share=0.05, deliveries=1, delivered=500, recorded=(0, 100, 1_000))
_DEPTHS = (1, 10, 100)


class Row(NamedTuple):
    """A line of the result. *values*: by library; *limit*: the budget, a lower one if *at_least*."""

    title: str
    values: dict[str, float]
    limit: float | None = None
    at_least: bool = False
    unit: str = "µs"

    @property
    def verdict(self) -> str:
        """Say whether we keep the budget."""
        if self.limit is None:
            return ""
        ours = self.values[PrefactorTrace.title]
        return "ok" if (ours >= self.limit if self.at_least else ours <= self.limit) else "MISSED"


def overhead(peers: list[Any], workload: Workload, scale: Scale) -> Iterator[Row]:
    """Measure what recording adds to a call of *workload*, over the undecorated call."""
    hot, paced = (max(5, int(calls * scale.share)) for calls in (workload.hot_calls, workload.paced_calls))
    ways: tuple[tuple[str, int, float, Callable[[list[int]], float], float | None], ...] = (
        ("hot loop, median", hot, 0.0, median, workload.budget),
        ("hot loop, mean", hot, 0.0, fmean, None),
        ("500 calls/s, median", paced, _GAP_SECONDS, median, None),
    )
    added: dict[str, dict[str, list[float]]] = {title: {peer.title: [] for peer in peers} for title, *_ in ways}
    for peer in peers:
        peer.time(workload, 5, 0.0)  # opens connections, fills caches
    for _ in range(scale.rounds):
        for calls, gap in ((hot, 0.0), (paced, _GAP_SECONDS)):
            durations = [peer.time(workload, calls, gap) for peer in peers]
            for title, _, its_gap, average, _ in ways:
                if its_gap == gap:
                    bare, *recorded = map(average, durations)
                    for peer, value in zip(peers[1:], recorded, strict=True):
                        added[title][peer.title].append((value - bare) / 1e3)
    for title, _, _, _, budget in ways:
        values = {peer.title: median(added[title][peer.title]) for peer in peers[1:]}
        yield Row(f"{workload.title}: {title}", values, budget)


def delivery(peers: list[Any], scale: Scale) -> Iterator[Row]:
    """Measure what the whole way takes, from the call to the acknowledgement."""
    able = [peer for peer in peers if isinstance(peer, _Recorded)]
    found: dict[str, list[Delivery]] = {peer.title: [] for peer in able}
    for _ in range(scale.deliveries):
        for peer in able:
            found[peer.title].append(peer.deliver(SMALL, scale.delivered))
    cpu = {title: median(each.cpu for each in all_) for title, all_ in found.items()}
    rate = {title: median(each.per_second for each in all_) for title, all_ in found.items()}
    yield Row("process CPU per delivered span", cpu, 40.0)
    yield Row("delivered spans per second", rate, 10_000.0, at_least=True, unit="/s")


def flatness(sink: Sink, scale: Scale) -> Iterator[Row]:
    """Measure whether a call costs more the more there is: spans recorded in the run, spans it is in."""
    calls = max(5, int(SMALL.hot_calls * scale.share))
    after: list[list[float]] = []
    inside: list[list[float]] = []
    for _ in range(scale.rounds):
        peer = PrefactorTrace(sink)  # nothing recorded yet
        call = peer.decorate(SMALL.function)
        after.append(_after_recorded(peer, call, calls, scale.recorded))
        inside.append([_inside(peer, call, calls, depth) for depth in _DEPTHS])
        peer.close()
    yield from _growth("after {:,} spans", scale.recorded, after)
    yield from _growth("{:,} deep", _DEPTHS, inside)


def _after_recorded(peer: PrefactorTrace, call: Any, calls: int, recorded: tuple[int, ...]) -> list[float]:
    found, so_far = [], 0
    with peer.run():
        for goal in recorded:
            while so_far < goal:
                lot = min(goal - so_far, 10_000)  # no more than the buffer holds
                for _ in range(lot):
                    call(*SMALL.arguments)
                peer.flush()
                so_far += lot
            found.append(median(_time_calls(call, SMALL.arguments, calls, 0.0)) / 1e3)
            so_far += calls
            peer.flush()
    return found


def _inside(peer: PrefactorTrace, call: Any, calls: int, depth: int) -> float:
    with peer.run(), contextlib.ExitStack() as around:
        for _ in range(depth - 1):
            around.enter_context(pt.span("level"))
        found = median(_time_calls(call, SMALL.arguments, calls, 0.0)) / 1e3
    peer.flush()
    return found


def _growth(title: str, points: tuple[int, ...], rounds: list[list[float]]) -> Iterator[Row]:
    costs = [median(each) for each in zip(*rounds, strict=True)]
    for point, cost in zip(points, costs, strict=True):
        limit = None if point == points[0] else costs[0] * _FLAT
        yield Row(f"small call {title.format(point)}: hot loop", {PrefactorTrace.title: cost}, limit)


# -- the result --------------------------------------------------------------------------------------------------


def _print_head(peers: list[Any], scale: Scale) -> None:
    versions = " ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("opentelemetry-sdk", "prefactor-core")
        if package.partition("-")[0] in {peer.title.lower().partition("-")[0] for peer in peers}
    )
    print(f"prefactor_trace {pt.__version__} beside {versions or 'nothing'}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, medians of {scale.rounds} rounds.")
    print(f"OpenTelemetry: queue of {_OTEL_QUEUE:,} spans instead of 2,048, else it would drop them; all else default.")
    print("It and prefactor-core send long strings whole; prefactor_trace cuts them, as configured by default.")
    print("Calls: microseconds over the undecorated call. x: times the cost of prefactor_trace.")
    print()
    print(_LINE.format("", "prefactor_trace", "OpenTelemetry", "", "prefactor-core", "", "budget", ""))


_LINE = "{:<49} {:>15} {:>14} {:>6} {:>14} {:>6} {:>9}  {}"


def _print_row(row: Row) -> None:
    ours = row.values[PrefactorTrace.title]
    cells = [row.title, _number(ours)]
    for title in (OpenTelemetry.title, PrefactorCore.title):
        value = row.values.get(title)
        cells += ["", ""] if value is None else [_number(value), f"{value / ours:.2g}x"]
    sign = ">=" if row.at_least else "<="
    cells += ["" if row.limit is None else f"{sign} {_number(row.limit)}", row.verdict]
    print(_LINE.format(*cells).rstrip(), flush=True)


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 1_000 else f"{value:,.0f}"


def _open_peers(sink: Sink) -> list[Any]:
    peers: list[Any] = [Undecorated(), PrefactorTrace(sink)]
    for peer in (OpenTelemetry, PrefactorCore):
        try:
            peers.append(peer(sink))
        except ImportError as error:
            print(f"{peer.title} is not measured: {error}. `pip install 'prefactor-trace[dev]'` brings it.")
    return peers


def _measure(scale: Scale) -> Iterator[Row]:
    with Sink() as sink:
        peers = _open_peers(sink)
        _print_head(peers, scale)
        for workload in WORKLOADS:
            yield from overhead(peers, workload, scale)
        yield from delivery(peers, scale)
        for peer in peers:
            peer.close()
        yield from flatness(sink, scale)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a recorded call costs, beside other libraries.")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a budget is missed")
    parser.add_argument("--quick", action="store_true", help="measure little: shows that it works, not what it costs")
    options = parser.parse_args()
    for name in list(os.environ):
        if name.startswith(("PREFACTOR_", "OTEL_")):  # settings of whoever starts this are not what is measured
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
    missed = [row.title for row in rows if row.verdict == "MISSED"]
    print()
    print(f"{len(missed)} of {sum(row.limit is not None for row in rows)} budgets missed")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())

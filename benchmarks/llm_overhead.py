"""What recording an LLM call costs, beside other libraries, in one run (`make bench-llm`).

OpenAI's SDK asks a server on loopback: a plain chat completion, and a streamed one of 500 chunks. It does so as it is,
under `prefactor_trace`, under OpenTelemetry's `opentelemetry-instrumentation-openai-v2` and under
`openinference-instrumentation-openai`, if they are installed, each in processes of its own: what one leaves behind in
the interpreter is no other's cost. Each records the contents of messages. Ours writes to its spool; OpenTelemetry's
spans go through its batch processor to an exporter that drops them. Measured is processor time of the calling thread,
of which a server in another process takes none: its tenth percentile, and of the rounds the least, because what other
programs do only ever adds.

    python benchmarks/llm_overhead.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNKS = 500
MESSAGES: Any = [
    {"role": "system", "content": "You are a helpful assistant. " * 20},
    {"role": "user", "content": "How is the weather in Paris? " * 10},
]
_SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from integrations.provider import Provider
provider = Provider()
provider.words = ["word "] * int(sys.argv[2])
provider.requests = type("Nowhere", (), {"append": lambda self, item: None})()
print(provider.url, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the provider of the tests in a process of its own; give its address."""
    folder = Path(__file__).parents[1] / "tests"
    command = [sys.executable, "-c", _SERVER, str(folder), str(CHUNKS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextlib.contextmanager
def bare() -> Iterator[None]:
    yield


@contextlib.contextmanager
def ours() -> Iterator[None]:
    import prefactor_trace as pt

    pt.instrument("openai")
    with pt.instance(agent_name="bench"):
        yield
    pt.uninstrument()


def _provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> Any:  # noqa: ARG002 - dropped
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def _logger_provider() -> Any:
    """Return what takes the contents of messages: OpenTelemetry's are no part of its spans."""
    from opentelemetry.sdk import _logs
    from opentelemetry.sdk._logs import export

    base: Any = getattr(export, "LogRecordExporter", None) or export.LogExporter  # its older name

    class Nowhere(base):  # type: ignore[misc] # whichever there is
        def export(self, batch: Any) -> None:
            """Drop them."""

        def shutdown(self) -> None:
            """Nothing is open."""

        def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - nothing waits
            return True

    provider = _logs.LoggerProvider()
    provider.add_log_record_processor(export.BatchLogRecordProcessor(Nowhere()))
    return provider


@contextlib.contextmanager
def _instrumented(instrumentor: Any, **more: Any) -> Iterator[None]:
    provider = _provider()
    instrumentor.instrument(tracer_provider=provider, **more)
    yield
    instrumentor.uninstrument()
    provider.shutdown()


def contestants() -> dict[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return who is there, by name."""
    found: dict[str, Any] = {"bare": bare, "prefactor_trace": ours}
    with contextlib.suppress(ImportError):
        from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor as OpenTelemetry

        found["opentelemetry openai-v2"] = lambda: _instrumented(
            OpenTelemetry(), logger_provider=_logger_provider()
        )
    with contextlib.suppress(ImportError):
        from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference

        found["openinference"] = lambda: _instrumented(OpenInference())
    return found


def _low(times: list[float]) -> float:
    return quantiles(times, n=10)[0]


def measure(url: str, name: str, calls: int) -> dict[str, float]:
    """Return microseconds of processor time for each kind of call of one contestant, in this process."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def plain() -> None:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    def streamed() -> None:
        for _ in client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True):
            pass

    kinds = {"plain call": (plain, calls), "streamed call": (streamed, max(2, calls // 8))}
    found = {}
    with contestants()[name](), client:
        for kind, (call, count) in kinds.items():
            for _ in range(max(1, count // 4)):  # what is loaded on first use
                call()
            times = []
            for _ in range(count):
                began = time.thread_time_ns()
                call()
                times.append((time.thread_time_ns() - began) / 1e3)
            found[kind] = _low(times)
    return found


def measure_apart(url: str, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Measure each contestant in processes of its own, in rounds of all; return the least of the rounds."""
    took: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name in contestants():
            command = [sys.executable, __file__, "--only", name, "--url", url, "--calls", str(calls)]
            said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            for kind, microseconds in json.loads(said).items():
                took.setdefault(name, {}).setdefault(kind, []).append(microseconds)
    return {name: {kind: min(each) for kind, each in kinds.items()} for name, kinds in took.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few calls, to see that it runs")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.url, given.only, given.calls)))
        return
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"
    with tempfile.TemporaryDirectory() as folder, serving() as url:
        os.environ["PREFACTOR_STATE_DIR"] = folder
        found = measure_apart(url, 1 if given.quick else 5, 4 if given.quick else 160)
    base = found["bare"]
    print(f"{'microseconds of processor time':<32}{'plain call':>12}{'streamed call':>16}{'per chunk':>12}")
    print(f"{'bare':<32}{base['plain call']:>12,.0f}{base['streamed call']:>16,.0f}", end="")
    print(f"{base['streamed call'] / CHUNKS:>12.1f}")
    for name, kinds in found.items():
        if name != "bare":
            plain, streamed = (kinds[kind] - base[kind] for kind in ("plain call", "streamed call"))
            each = (streamed - plain) / CHUNKS
            print(f"{'+ ' + name:<32}{plain:>12,.0f}{streamed:>16,.0f}{each:>12.2f}")


if __name__ == "__main__":
    main()

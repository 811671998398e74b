"""What arrives however a program ends, beside other libraries, in one run.

Each library records spans in a process of its own, at its default settings apart from address and credentials, against
a server on loopback that counts what it is sent. Then the process ends in some way, or the server fails for a while.
Behind the server of `prefactor_trace` is the local platform, and what counts is what that has stored. A second process
of the same user, the next one, may deliver what the first has left: the table has both numbers.

    python benchmarks/durability.py [--quick] [--outage SECONDS] [--only LIBRARY ...] [--check]

The others are measured if they are installed, which is best done in a virtual environment of its own:

    python -m venv durability
    durability/bin/pip install langfuse langsmith logfire sentry-sdk
    durability/bin/pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
    durability/bin/pip install '.[local]'
    durability/bin/python benchmarks/durability.py

Takes about six minutes; about a quarter of a minute with `--quick --only prefactor_trace`. Needs POSIX. Ends with
status 0; 1 if a span of ours is lost or sent twice and `--check` is given; 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MARKER = re.compile(rb"durable-(\d{6})")
_TOKEN = "durability"
_RATE = 100.0  # spans per second, where they are not recorded in a burst
_OF_PARENT = _OF_CHILD = 50
_NEXT = 900_000  # number of the one span that the next process records itself
_SETTLE_SECONDS = 0.5  # what a dead process has handed to the kernel is still on its way


def _marker(number: int) -> str:
    return f"durable-{number:06d}"


# -- the subjects: each is a program that records spans with one library -------------------------------------------


class PrefactorTrace:
    title, distributions = "prefactor_trace", ("prefactor-trace",)
    needs = ("prefactor_trace", "starlette", "uvicorn")  # the latter two are the local platform's

    def __init__(self, url: str) -> None:
        import prefactor_trace as pt

        pt.configure(api_url=url, api_token=_TOKEN)
        self._span = pt.span
        self.run = pt.instance  # however the program ends, it ends in the middle of the run

    def record(self, marker: str) -> None:
        with self._span("durable", payload={"marker": marker}):
            pass


class _Flat:
    """A library in which each span can stand for itself."""

    run = contextlib.nullcontext


class OpenTelemetry(_Flat):
    title, distributions = "OpenTelemetry", ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
    needs = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
        self._tracer = provider.get_tracer("durability")

    def record(self, marker: str) -> None:
        with self._tracer.start_as_current_span(marker, attributes={"marker": marker}):
            pass


class Langfuse(_Flat):
    title, distributions, needs = "Langfuse", ("langfuse",), ("langfuse",)

    def __init__(self, url: str) -> None:
        from langfuse import Langfuse as Client

        self._client = Client(public_key="pk-lf-durability", secret_key="sk-lf-durability", base_url=url)

    def record(self, marker: str) -> None:
        self._client.start_observation(name=marker, input={"marker": marker}).end()


class LangSmith(_Flat):
    title, distributions, needs = "LangSmith", ("langsmith",), ("langsmith",)

    def __init__(self, url: str) -> None:
        from langsmith import Client, uuid7

        self._client = Client(api_url=url, api_key="durability")
        self._new_id = uuid7

    def record(self, marker: str) -> None:
        # Begun and ended in one record, so that a span is in one request, not in one for its start and one for its end.
        from datetime import datetime, timezone

        run_id, now = self._new_id(), datetime.now(timezone.utc)
        self._client.create_run(
            marker,
            {"marker": marker},
            "tool",
            id=run_id,
            trace_id=run_id,
            dotted_order=f"{now:%Y%m%dT%H%M%S%f}Z{run_id}",
            start_time=now,
            end_time=now,
            outputs={"marker": marker},
        )


class Logfire(_Flat):
    title, distributions, needs = "Logfire", ("logfire",), ("logfire",)

    def __init__(self, url: str) -> None:
        import logfire

        logfire.configure(token="durability", advanced=logfire.AdvancedOptions(base_url=url))
        self._span = logfire.span

    def record(self, marker: str) -> None:
        with self._span(marker, marker=marker):
            pass


class Sentry(_Flat):
    title, distributions, needs = "Sentry", ("sentry-sdk",), ("sentry_sdk",)

    def __init__(self, url: str) -> None:
        import sentry_sdk

        # The rate is no default, but without one nothing is traced.
        sentry_sdk.init(dsn=url.replace("://", "://durability@") + "/1", traces_sample_rate=1.0)
        self._start = sentry_sdk.start_transaction

    def record(self, marker: str) -> None:
        with self._start(name=marker, op="tool") as transaction:
            transaction.set_data("marker", marker)


LIBRARIES: tuple[Any, ...] = (PrefactorTrace, OpenTelemetry, Langfuse, LangSmith, Logfire, Sentry)


def _subject(title: str, url: str, first: str, count: str, rate: str, ending: str) -> None:
    """Record spans *first* and following, say so, and end."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries talk on standard output
    library = next(each for each in LIBRARIES if each.title == title)(url)
    numbers = range(int(first), int(first) + int(count))
    with library.run():
        _record(library, numbers, float(rate))
        if ending == "fork":
            _record_in_child(library, range(numbers.stop, numbers.stop + _OF_CHILD))
        elif ending == "wait":
            print("recorded", file=said, flush=True)
            sys.stdin.readline()
        elif ending == "os._exit":
            os._exit(0)
        elif ending != "exit":
            os.kill(os.getpid(), signal.Signals[ending])
    print(time.monotonic(), file=said, flush=True)


def _record(library: Any, numbers: range, rate: float) -> None:
    begun = time.monotonic()
    for number in numbers:
        if rate:
            time.sleep(max(0.0, begun + (number - numbers.start) / rate - time.monotonic()))
        library.record(_marker(number))


def _record_in_child(library: Any, numbers: range) -> None:
    child = multiprocessing.get_context("fork").Process(target=_record, args=(library, numbers, 0.0))
    child.start()
    child.join(20)
    if child.is_alive():
        child.kill()


# -- the far side: a process of its own that takes everything, or fails as it is told ------------------------------


class _Answers(BaseHTTPRequestHandler):
    """Answers as the server's `mode` says; what it has taken, `ok` passes on to a platform, if there is one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Counting

    def _answer(self) -> None:
        body = self._body()
        mode = self.server.mode
        if mode == "silent":
            threading.Event().wait()
        if mode == "503":
            self._respond(503, b"{}", {"Connection": "close"})
            return
        self.server.take(body, self.headers.get("Content-Encoding", ""))
        if self.server.platform is None:
            self._respond(200, b"{}", {})
        else:
            self._pass_on(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _answer  # noqa: N815 - names that the standard library looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _pass_on(self, body: bytes) -> None:
        ours = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ours}
        connection = http.client.HTTPConnection(self.server.platform, timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            said = response.read()
        kept = {name: value for name, value in response.getheaders() if name.lower() == "retry-after"}
        self._respond(response.status, said, kept)

    def _respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            **headers,
            "Content-Type": "application/json",
            "Content-Length": len(body),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Counting(ThreadingHTTPServer):
    """Counts in how many requests each marker has come. Refuses connections until its `mode` is not `closed`."""

    daemon_threads = True
    request_queue_size = 128
    platform: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers, bind_and_activate=False)
        self.server_bind()
        self.mode = "closed"
        self.taken: Counter[int] = Counter()
        self.unreadable: set[str] = set()
        self._lock = threading.Lock()

    def behave(self, mode: str) -> None:
        was, self.mode = self.mode, mode
        if was == "closed" and mode != "closed":
            self.server_activate()
            threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self, body: bytes, encoding: str) -> None:
        try:
            body = _decode(body, encoding.lower())
        except Exception:  # whatever a library of compression says
            with self._lock:
                self.unreadable.add(encoding)
        markers = set(map(int, _MARKER.findall(body)))
        with self._lock:
            self.taken.update(markers)

    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone


def _decode(body: bytes, encoding: str) -> bytes:
    """Undo *encoding*. Raises if that cannot be done, ImportError if a package is missing."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        with contextlib.suppress(zlib.error):
            return zlib.decompress(body, 47)  # finds out whether it is gzip or zlib
        return zlib.decompress(body, -15)
    if encoding == "br":
        return importlib.import_module("brotli").decompress(body)  # type: ignore[no-any-return]
    if encoding == "zstd":
        return importlib.import_module("zstandard").ZstdDecompressor().decompressobj().decompress(body)  # type: ignore[no-any-return]
    if encoding not in ("", "identity"):
        raise ValueError(encoding)
    return body


def _stored(db: str) -> dict[int, int]:
    """Return which spans the platform has stored as complete."""
    with contextlib.closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT payload FROM agent_spans WHERE status = 'complete'")
        return dict(Counter(int(each) for (payload,) in rows for each in _MARKER.findall(payload.encode())))


def _serve(db: str) -> None:
    """Be the far side, until standard input ends. A line in it is a mode to take, or asks for the counts."""
    server = _Counting()
    with contextlib.ExitStack() as opened:
        if db:
            from prefactor_trace.server import LocalPlatform

            local = LocalPlatform(db)
            local.token = _TOKEN
            server.platform = opened.enter_context(local).url.removeprefix("http://")
        print(server.server_address[1], flush=True)
        for line in sys.stdin:
            if line.strip() == "counts":
                taken = dict(server.taken)
                stored = _stored(db) if db else taken
                unreadable = sorted(server.unreadable)
                print(json.dumps({"taken": taken, "stored": stored, "unreadable": unreadable}), flush=True)
            else:
                server.behave(line.strip())
                print(flush=True)


class Counts(NamedTuple):
    """How often each span has come, and which encodings could not be undone."""

    taken: dict[int, int]
    stored: dict[int, int]
    unreadable: list[str]


class FarSide:
    """The far side's process, from `with` to its end. The process ends with ours, however ours ends."""

    def __init__(self, folder: Path, *, is_platform: bool) -> None:
        self._command = _command("serve", str(folder / "platform.db") if is_platform else "")
        self._errors = folder / "far_side.txt"

    def __enter__(self) -> FarSide:  # noqa: PYI034 - `Self` is not in Python 3.10
        """Start the process; it refuses connections."""
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        if not port:
            raise NotMeasuredError(f"the far side did not start: {_last_line(self._errors)}")
        self.url = f"http://127.0.0.1:{int(port)}"
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def behave(self, mode: str) -> None:
        self._ask(mode)

    def counts(self) -> Counts:
        said = json.loads(self._ask("counts"))
        taken, stored = ({int(n): times for n, times in said[key].items()} for key in ("taken", "stored"))
        return Counts(taken, stored, said["unreadable"])

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


# -- the trials ----------------------------------------------------------------------------------------------------


class NotMeasuredError(Exception):
    """A number would be wrong, or there is none."""


class Scale(NamedTuple):
    """How much is measured."""

    burst: int
    paced: int
    outage: float
    healthy: float  # seconds at most after an outage
    works: float  # seconds, with a server that never answers
    next: float  # seconds at most for the next process
    limit: float  # seconds for an exit; then the process is ended
    at_once: int  # trials, outages apart
    in_stages: bool  # whether the outages come after the endings, all libraries at once


FULL = Scale(200, 200, 60.0, 30.0, 2.0, 5.0, 200.0, at_once=3, in_stages=True)
QUICK = Scale(100, 100, 5.0, 5.0, 1.0, 3.0, 20.0, at_once=9, in_stages=False)


ENDINGS = {
    "clean exit": "exit",
    "SIGTERM": "SIGTERM",
    "SIGKILL": "SIGKILL",
    "os._exit(0)": "os._exit",
    "fork child": "fork",
}
OUTAGES = {"port closed": "closed", "answers 503": "503"}
HEALTHY, NEVER_ANSWERS = "healthy", "never answers"


class Outcome(NamedTuple):
    """What came of a trial."""

    wanted: range
    by_end: set[int]
    after_next: set[int]
    taken: dict[int, int]
    exit_seconds: float  # infinite if it had to be ended
    unreadable: list[str]
    words: str  # the last that the program wrote to standard error

    def arrived(self, numbers: range) -> str:
        """Say how many of *numbers* arrived, with the process and with the next one."""
        return f"{len(self.by_end & set(numbers)):,} / {len(self.after_next & set(numbers)):,}"

    def twice(self, numbers: range) -> int:
        return sum(self.taken.get(number, 0) > 1 for number in numbers)


class Program:
    """A running subject, from its start to the end of a `with`. It is ended when it takes longer than it may."""

    def __init__(self, library: Any, far_side: FarSide, folder: Path, arguments: Sequence[str]) -> None:
        self._errors = folder / f"{arguments[0]}.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                _command("subject", library.title, far_side.url, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )

    def __enter__(self) -> Program:  # noqa: PYI034 - `Self` is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._kill()
            self._process.wait()

    def wait_until_recorded(self, seconds: float) -> None:
        """Wait until it has recorded everything; raises if it ends before."""
        assert self._process.stdout is not None
        with self._at_most(seconds):
            line = self._process.stdout.readline()
        if line.strip() != "recorded":
            raise NotMeasuredError(f"the program ended early: {self.words()}")

    def end(self, seconds: float) -> float:
        """Let it end. Return how long that took after its last statement; infinite if it had to be ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with self._at_most(seconds) as is_over:
            last = self._process.stdout.readline()
            status = self._process.wait()
        took = time.monotonic() - float(last or "nan")
        if status == 1:
            raise NotMeasuredError(f"the program failed: {self.words()}")
        return float("inf") if is_over.is_set() else took

    def words(self) -> str:
        return _last_line(self._errors)

    @contextlib.contextmanager
    def _at_most(self, seconds: float) -> Iterator[threading.Event]:
        is_over = threading.Event()

        def kill() -> None:
            is_over.set()
            self._kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield is_over
        finally:
            timer.cancel()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # not waited for yet, so the number is its own


def _try(library: Any, kind: str, scale: Scale) -> Outcome:
    """Let a program record and end, then let the next one run for a while."""
    with tempfile.TemporaryDirectory(prefix="durability-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with FarSide(folder, is_platform=library is PrefactorTrace) as far_side:
            return _try_in(library, kind, scale, folder, far_side)


def _try_in(library: Any, kind: str, scale: Scale, folder: Path, far_side: FarSide) -> Outcome:
    count, rate, ending = scale.burst, 0.0, ENDINGS.get(kind, "wait")
    if kind not in ENDINGS:
        seconds = {HEALTHY: scale.paced / _RATE, NEVER_ANSWERS: scale.works}.get(kind, scale.outage)
        count, rate = int(seconds * _RATE), _RATE
    if ending == "fork":
        count = _OF_PARENT
    wanted = range(count + _OF_CHILD if ending == "fork" else count)

    far_side.behave({NEVER_ANSWERS: "silent"}.get(kind) or OUTAGES.get(kind, "ok"))
    with Program(library, far_side, folder, ["0", str(count), str(rate), ending]) as program:
        if ending == "wait":
            program.wait_until_recorded(60.0 + 3 * count / _RATE)
        if kind in OUTAGES:
            far_side.behave("ok")
            _wait_for(far_side, wanted, scale.healthy)
        took = program.end(scale.limit)
    time.sleep(_SETTLE_SECONDS)
    by_end = set(far_side.counts().stored)
    if kind != NEVER_ANSWERS and not by_end.issuperset(wanted):
        _run_next(library, scale, wanted, folder, far_side)
    counts = far_side.counts()
    return Outcome(wanted, by_end, set(counts.stored), counts.taken, took, counts.unreadable, program.words())


def _run_next(library: Any, scale: Scale, wanted: range, folder: Path, far_side: FarSide) -> None:
    with Program(library, far_side, folder, [str(_NEXT), "1", "0", "wait"]) as following:
        following.wait_until_recorded(60.0)
        _wait_for(far_side, wanted, scale.next)
        following.end(scale.limit)
    time.sleep(_SETTLE_SECONDS)


def _wait_for(far_side: FarSide, wanted: range, seconds: float) -> None:
    """Wait until all have arrived, but not longer than *seconds*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not set(far_side.counts().stored).issuperset(wanted):
        time.sleep(0.25)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def _environment(folder: Path) -> dict[str, str]:
    """Return ours, without settings of any library and with a home of its own: what is measured are the defaults."""
    names = ("PREFACTOR_", "OTEL_", "LANGFUSE_", "LANGSMITH_", "LANGCHAIN_", "LOGFIRE_", "SENTRY_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    for name in [each for each in kept if each.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        del kept[name]
    if "PYTHONPATH" in kept:  # it works in another folder
        parts = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    return {**kept, "HOME": str(folder), "TMPDIR": str(folder), "NO_PROXY": "127.0.0.1"}


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "nothing was written to standard error"


# -- the table -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was found out about a library: an outcome for each trial, or why there is none."""

    library: Any
    version: str
    outcomes: dict[str, Outcome]
    trouble: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.library.title} {self.version}"


def _version(library: Any) -> str | None:
    """Return the version that is installed, None if not all that is needed is."""
    try:
        if not all(importlib.util.find_spec(each) for each in library.needs):
            return None
        if library is PrefactorTrace:  # runs from a checkout too
            import prefactor_trace

            return prefactor_trace.__version__
        return importlib.metadata.version(library.distributions[0])
    except ImportError:  # a parent package, or a dependency; PackageNotFoundError is one too
        return None


def _measure(libraries: list[Any], scale: Scale) -> list[Found]:
    """Try everything with every library that is installed and whose spans can be counted."""
    found = [Found(each, _version(each) or "", {}, {}) for each in libraries]
    able = [each for each in found if each.version]
    if not scale.in_stages:
        _try_all(able, [*OUTAGES, NEVER_ANSWERS, HEALTHY, *ENDINGS], scale, scale.at_once)
        for each in able:
            _require_countable(each, scale)
        return found
    _try_all(able, [HEALTHY], scale, scale.at_once)
    for each in able:
        _require_countable(each, scale)
    able = [each for each in able if not each.trouble]
    closed, answers_503 = OUTAGES
    _try_all(able, list(ENDINGS), scale, scale.at_once)
    _try_all(able, [closed, NEVER_ANSWERS], scale, 2 * len(able))
    _try_all(able, [answers_503], scale, len(able))
    return found


def _try_all(found: list[Found], kinds: list[str], scale: Scale, at_once: int) -> None:
    def run(each: Found, kind: str) -> None:
        try:
            each.outcomes[kind] = _try(each.library, kind, scale)
        except NotMeasuredError as error:
            each.trouble[kind] = str(error)

    print(f"measuring: {', '.join(kinds)}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(at_once or 1) as pool:
        for task in [pool.submit(run, each, kind) for kind in kinds for each in found]:
            task.result()


def _require_countable(found: Found, scale: Scale) -> None:
    """See that nothing is missing when nothing is the matter: else a loss would be ours, not the library's."""
    outcome = found.outcomes.get(HEALTHY)
    if outcome is None or _is_whole(outcome):
        return
    arrived = len(outcome.after_next & set(outcome.wanted))
    encodings = f"; cannot undo {', '.join(outcome.unreadable)}" if outcome.unreadable else ""
    found.trouble[HEALTHY] = (
        f"of {scale.paced} spans at {_RATE:.0f}/s to a healthy server, {arrived} were seen{encodings}; "
        f"its last words: {outcome.words}"
    )


def _cells_of_endings(found: Found) -> list[str]:
    cells = []
    for kind in ENDINGS:
        outcome = found.outcomes.get(kind)
        if outcome is None:
            cells += ["not measured"] * (1 + (kind == "fork child"))
        elif kind == "fork child":
            cells.append(outcome.arrived(range(_OF_PARENT, _OF_PARENT + _OF_CHILD)))
            cells.append(str(outcome.twice(range(_OF_PARENT))))
        else:
            cells.append(outcome.arrived(outcome.wanted))
    return cells


def _cells_of_outages(found: Found) -> list[str]:
    outcomes = [found.outcomes.get(kind) for kind in OUTAGES]
    cells = ["not measured" if each is None else each.arrived(each.wanted) for each in outcomes]
    ended = found.outcomes.get(NEVER_ANSWERS)
    if ended is None:
        return [*cells, "not measured"]
    took = ended.exit_seconds
    return [*cells, "over the limit" if took == float("inf") else f"{took:.1f} s"]


def _print_table(title: str, heads: list[str], found: list[Found], cells: Any) -> None:
    print(f"\n{title}\n")
    print(f"{'':<24}" + "".join(f"{head:>18}" for head in heads))
    for each in found:
        if not each.version:
            print(f"{each.library.title:<24}  not installed: {' '.join(each.library.distributions)}")
        elif HEALTHY in each.trouble:
            print(f"{each.title:<24}  not measured: {each.trouble[HEALTHY]}")
        else:
            print(f"{each.title:<24}" + "".join(f"{cell:>18}" for cell in cells(each)))


def _print_tables(found: list[Found], scale: Scale) -> None:
    heads = [*list(ENDINGS)[:-1], f"fork child of {_OF_CHILD}", f"twice of {_OF_PARENT}"]
    title = f"{scale.burst} spans in a burst, healthy server: arrived by the end of the process / after the next process"
    _print_table(title, heads, found, _cells_of_endings)
    count = int(scale.outage * _RATE)
    title = (
        f"{count:,} spans at {_RATE:.0f}/s while the server fails for {scale.outage:g} s, at most {scale.healthy:g} s "
        f"healthy, clean exit: arrived / after the next;\nand a clean exit after {scale.works:g} s of work with a server "
        f"that accepts and never answers (limit {scale.limit:g} s)"
    )
    _print_table(title, [*OUTAGES, "exit takes"], found, _cells_of_outages)
    print(
        "\nHow to read it: anything less than all in the second number is lost for ever; `twice` are the parent's spans "
        "that came in more\nthan one request after a fork. One run each, several programs at once: good for order of "
        "magnitude, not for ranking."
    )
    for each in found:
        for kind, why in each.trouble.items():
            if kind != HEALTHY:
                print(f"not measured: {each.title}, {kind}: {why}")


def _losses(found: Found) -> list[str]:
    """Name the trials in which a span of ours was lost, or sent twice after a fork."""
    kinds = [*ENDINGS, *OUTAGES]
    lost = [kind for kind in kinds if kind in found.outcomes and not _is_whole(found.outcomes[kind])]
    fork = found.outcomes.get("fork child")
    return [*lost, *(["fork child: twice"] if fork and fork.twice(fork.wanted) else [])]


def _is_whole(outcome: Outcome) -> bool:
    return outcome.after_next.issuperset(outcome.wanted)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure little: shows that it works, no more")
    parser.add_argument(
        "--outage", type=float, metavar="SECONDS", help="how long the server fails (default: 60)"
    )
    titles = [each.title for each in LIBRARIES]
    parser.add_argument(
        "--only", nargs="+", choices=titles, default=titles, metavar="LIBRARY", help=", ".join(titles)
    )
    parser.add_argument("--check", action="store_true", help="end with status 1 if a span of ours is lost")
    options = parser.parse_args()
    if os.name != "posix":
        print("not measured: needs signals and fork")
        return 2
    scale = QUICK if options.quick else FULL
    if options.outage is not None:
        scale = scale._replace(outage=options.outage)
    print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} processors")
    found = _measure([each for each in LIBRARIES if each.title in options.only], scale)
    _print_tables(found, scale)
    losses = [kind for each in found if each.library is PrefactorTrace for kind in _losses(each)]
    if losses:
        print(f"lost or sent twice by {PrefactorTrace.title}: {', '.join(losses)}")
    if any(each.trouble for each in found):
        return 2
    return 1 if losses and options.check else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["subject"]:
        _subject(*sys.argv[2:])
    elif sys.argv[1:2] == ["serve"]:
        _serve(sys.argv[2])
    else:
        sys.exit(main())

"""The benchmarks run and print every row, and the sink they measure against counts right. What they cost is no test."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORKLOADS = ("small call", "200 chat messages, 50 KB", "one string of 10 MB")
WAYS = ("hot loop, median", "hot loop, mean", "500 calls/s, median")
INSTANCE, SPAN = "0" * 31 + "1", "0" * 31 + "2"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("_sink", BENCHMARKS / "_sink.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def sink(module):
    with module.Sink() as running:
        yield running


def run(name, *options):
    """Run a benchmark on a small scale. Return what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def post(sink, path, body):
    request = urllib.request.Request(sink.url + path, body)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
        assert response.status == 200
        return response.read()


def test_every_row_of_span_overhead_is_measured():
    """Calls, delivery and flatness each have a line with a number of ours; each budget has a verdict."""
    printed = run("span_overhead.py")
    rows = {line[:51].rstrip(): line[51:].split() for line in printed.splitlines() if len(line) > 51}
    expected = [f"{workload}: {way}" for workload in WORKLOADS for way in WAYS]
    expected += ["process CPU for a delivered span", "delivered spans per second, to the sink"]
    expected += [f"small call after {n} spans: hot loop, median" for n in ("0", "100", "1,000")]
    expected += [f"small call at depth {n}: hot loop, median" for n in (1, 10, 100)]
    assert [title for title in expected if title not in rows] == []
    assert len([float(rows[title][0].replace(",", "")) for title in expected]) == 17
    assert sum(cells[-1] in ("ok", "MISSED") for cells in rows.values()) == 10
    assert "of 10 budgets missed" in printed


def test_nothing_of_ours_is_lost():
    """However a program ends, and in an outage: what was recorded has arrived after the next process."""
    printed = run("durability.py", "--only", "prefactor_trace", "--check")
    assert "not measured" not in printed
    ours = [line for line in printed.splitlines() if line.startswith("prefactor_trace ")]
    in_the_end = [re.findall(r"\d+ / (\d+)", line) for line in ours]
    assert in_the_end == [["100", "100", "100", "100", "50"], ["500", "500"]]


def test_every_row_of_import_time_is_measured():
    """Our import has a line with its budget, and the modules it must not load are named."""
    printed = run("import_time.py")
    (ours,) = [line.split() for line in printed.splitlines() if line.startswith("prefactor_trace ")]
    assert int(ours[1]) > 0
    assert ours[-3:-1] == ["<=", "80"]
    assert "loaded with it, though needed only later: nothing" in printed


def test_the_sink_names_each_item_of_a_bulk_request_and_counts_it_once(sink):
    """Delivery is believed because of these answers, and checked by this count; an open span is none yet."""
    items = [
        {
            "_type": "agent_spans/create",
            "idempotency_key": f"key-{number}",
            "details": {"id": SPAN[:-1] + str(number), "agent_instance_id": INSTANCE, "status": status},
        }
        for number, status in enumerate(["complete", "failed", "active"])
    ]
    body = json.dumps({"items": items}).encode()
    for _ in range(2):
        outputs = json.loads(post(sink, "/api/v1/bulk", body))["outputs"]
        assert {key: each["details"]["id"][-1] for key, each in outputs.items()} == {
            "key-0": "0",
            "key-1": "1",
            "key-2": "2",
        }
    assert sink.counts() == {"requests": 2, "bytes": 2 * len(body), "spans": 2}


def test_the_sink_takes_single_calls_as_the_official_sdk_makes_them(sink):
    """A span is created open under an id of the platform's, and counts when it is finished."""
    instance = json.loads(post(sink, "/api/v1/agent_instance/register", b"{}"))["details"]
    details = {"agent_instance_id": instance["id"], "schema_name": "call", "status": "active"}
    span = json.loads(post(sink, "/api/v1/agent_spans", json.dumps({"details": details}).encode()))["details"]
    assert (instance["status"], len(instance["id"]), len(span["id"])) == ("pending", 32, 32)
    assert sink.counts()["spans"] == 0
    finished = json.loads(post(sink, f"/api/v1/agent_spans/{span['id']}/finish", b"{}"))["details"]
    assert (finished["id"], finished["status"]) == (span["id"], "complete")
    assert sink.counts()["spans"] == 1


def field(number, content):
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_the_sink_counts_otlp_spans(sink):
    """It finds the spans in protobuf without knowing what is in them, and answers with an empty message."""
    scope = field(1, b"scope") + field(2, b"a span") + field(2, b"") + field(3, b"url")
    body = field(1, field(1, b"resource") + field(2, scope) + field(2, scope))
    assert post(sink, "/v1/traces", body) == b""
    assert sink.counts()["spans"] == 4


def test_the_sink_waits_for_the_whole_of_a_request(sink):
    """Requests come in pieces, and several can come in one piece."""
    port = int(sink.url.rpartition(":")[2])
    ping = b"POST /api/v1/ping HTTP/1.1\r\ncontent-length: 4\r\n\r\nnull"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(ping[:-2])
        assert sink.counts()["requests"] == 0
        connection.sendall(ping[-2:] + ping)
        received = b""
        while received.count(b'{"status":"success"}') < 2:
            piece = connection.recv(4096)
            assert piece, received
            received += piece
    assert sink.counts() == {"requests": 2, "bytes": 8, "spans": 0}


def test_what_an_llm_call_costs_is_measured():
    """A plain and a streamed call, bare and recorded, with what else is installed."""
    pytest.importorskip("openai")
    rows = run("llm_overhead.py").splitlines()
    assert [row[:20].strip() for row in rows[:3]] == ["microseconds of proc", "bare", "+ prefactor_trace"]
    assert all(len(row.split()) >= 4 for row in rows)


def test_redaction_finds_what_was_planted():
    """Every kind of secret has a line, all are found, and no look-alike is taken for one."""
    lines = run("redaction.py").splitlines()
    shares = {
        line[:24].rstrip(): line[24:].split()[0] for line in lines if line[24:].split()[0].endswith("%")
    }
    assert len(shares) == 48
    assert shares.pop("look-alikes taken") == "0%"
    # What nobody can tell from other text is in the corpus as well, and lowers the sum.
    assert [shares.pop(kind) for kind in ("bare password", "in .pgpass", "all")] == ["0%", "0%", "96%"]
    assert set(shares.values()) == {"100%"}
    assert [line[:24].rstrip() for line in lines[-4:]] == [
        "three small arguments",
        "200 messages, 50 KB",
        "... with one secret",
        "250 KB, all suspect",
    ]

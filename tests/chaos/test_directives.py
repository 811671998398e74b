"""Nothing counts as delivered that was not acknowledged by its id, and a server's wishes are followed, up to a point: T7."""

from __future__ import annotations

import logging
import time
from email.utils import formatdate

import hostile_server
import orjson
import pytest
from chaos.oracle import TOKEN, ok, status
from chaos.subjects import content, result_of
from hostile_server import HostileServer, response
from patience import within

import prefactor_trace as pt
from prefactor_trace import _ids, _outbox, _wire
from prefactor_trace._local import Destination
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._schema import Schema
from prefactor_trace.exporters import HttpExporter

STATUSES = (200, 302, 400, 401, 403, 404, 408, 413, 422, 425, 429, 500, 501, 503)
DIRECTIVES = ("none", "2", "date", "past", "-5", "NaN", "1000000000")
BODIES = ("ack", "empty", "html", "wrong id")
FINAL = (400, 413, 422)
CAP = 1.2


def header(directive):
    """Return the Retry-After header of a directive."""
    text = {
        "date": formatdate(time.time() + 30, usegmt=True),
        "past": formatdate(1_000_000_000, usegmt=True),
    }.get(directive, directive)
    return {} if directive == "none" else {"Retry-After": text}


def body(kind, request):
    """Return what a server says about *request*, whatever its status."""
    if kind == "empty":
        return b""
    if kind == "html":
        return b"<html>welcome</html>"
    asked = orjson.loads(request.body)
    path = request.target.removeprefix("/api/v1/")
    if path == "pfid/generate":
        return orjson.dumps({"status": "success", "pfids": [_ids.generate("4x99bm")]})
    if path == "bulk":
        return orjson.dumps(
            {
                "status": "success",
                "outputs": {
                    each["idempotency_key"]: {
                        "status": "success",
                        "details": named(kind, each["details"]["id"]),
                    }
                    for each in asked["items"]
                },
            }
        )
    known = asked.get("id") or asked.get("details", {}).get("id") or path.split("/")[1]
    return orjson.dumps({"status": "success", "details": named(kind, known)})


def named(kind, own_id):
    return {"id": own_id if kind == "ack" else "nobody", "type": "thing"}


def batch():
    """Return a run with two spans."""
    run, spans = _ids.generate("4x99bm"), [_ids.generate("4x99bm") for _ in range(2)]
    version = orjson.dumps({"agent_version": {"name": "a", "external_identifier": "1"}})
    return (
        InstanceRegistered(run, version, Schema()),
        InstanceStarted(run, 1_000),
        *(
            SpanRecord(
                SpanStarted(each, run, None, "t:a", "a", 2_000, b"{}", True),
                SpanEnded(each, "complete", 3_000),
            )
            for each in spans
        ),
        InstanceFinished(run, 4_000, "complete"),
    )


@pytest.fixture(scope="module")
def stranger():
    """A server that must never hear anything."""
    with HostileServer(hostile_server.always(200, b"{}")) as server:
        yield server


@pytest.mark.parametrize("number", STATUSES)
def test_matrix(number, stranger):
    """Only an acknowledgement by id is a delivery; only what is about the record itself refuses it; the rest waits."""
    answers = {}
    found = []
    with HostileServer(hostile_server.answering(lambda request: answers["now"](request))) as server:  # noqa: PLW0108 - it changes
        for kind in BODIES:
            for directive in DIRECTIVES:
                headers = header(directive) | ({"Location": stranger.url} if number == 302 else {})
                answers["now"] = lambda request, kind=kind, headers=headers: response(
                    number, body(kind, request), headers
                )
                exporter = HttpExporter(lambda: Destination(server.url, TOKEN), timeout=5.0)
                records = batch()
                outcome = exporter.export(records)
                exporter.close()
                about = f"{number} {directive} {kind}: {outcome}"
                if (number, kind) == (200, "ack"):
                    assert outcome.delivered == {each.key for each in records}, about
                    continue
                found += [about] if outcome.delivered else []
                if number in FINAL:
                    found += [about] if outcome.trouble or not outcome.refused else []
                    continue
                found += [about] if outcome.refused or outcome.dead or outcome.trouble is None else []
                if number in (401, 403):
                    wanted = 60.0
                elif number in (200, 302, 404, 501):  # whoever answers so is no Prefactor API
                    wanted = None
                else:
                    wanted = {"2": 2.0, "date": 30.0, "1000000000": 1e9}.get(directive)
                if outcome.retry_after != pytest.approx(wanted, abs=1.5 if directive == "date" else 0):
                    found.append(f"waits {outcome.retry_after}, not {wanted}: {about}")
    assert not found, "\n".join(found[:10])
    assert stranger.connections == 0


@pytest.mark.parametrize("directive", DIRECTIVES)
@pytest.mark.parametrize("number", [408, 429, 503])
def test_waiting(oracle, monkeypatch, number, directive):
    """The pause after a refusal is what the server asked for, no longer than the cap, and else our own."""
    monkeypatch.setattr(_outbox, "_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(_outbox, "_RETRY_AFTER_CAP_SECONDS", CAP)
    headers = {"Retry-After": "1"} if directive == "2" else header(directive)
    told = status(number, headers)

    def once(server, peer, request):
        server.manner = ok
        return told(server, peer, request)

    oracle.manner = once
    tracer = pt.configure(api_url=oracle.url, api_token=TOKEN, batch_delay=0.01)
    names = record()
    ledger = tracer.flush(5)

    assert (ledger.delivered, ledger.pending, ledger.dropped) == (5, 0, {})
    assert set(oracle.named) == set(names)
    pause = oracle.steps[1].at - oracle.steps[0].at
    wanted = {"2": 1.0, "date": CAP, "1000000000": CAP}.get(directive)
    if wanted is None:
        assert pause < within(0.3)
    else:
        assert wanted * 0.95 < pause < within(wanted * 1.2 + 0.1)
    assert oracle.wrongs == {}, oracle.remarks


def record():
    """Record a run with two spans. Return their names."""
    names = [_ids.generate("4x99bm") for _ in range(2)]
    with pt.instance():
        for name in names:
            with pt.span("step", payload=content(name, 20)) as span:
                span.set_result(result_of(name))
    return names


@pytest.mark.parametrize("kind", ["empty", "html", "wrong id"])
def test_silent_success(oracle, monkeypatch, kind):
    """A yes that names nothing of ours delivers nothing, and all arrives when the platform is itself again."""
    monkeypatch.setattr(_outbox, "_BACKOFF_SECONDS", 0.05)

    def lying(server, peer, request):
        peer.send(response(200, body(kind, request)))
        return True

    oracle.manner = lying
    tracer = pt.configure(api_url=oracle.url, api_token=TOKEN, batch_delay=0.01)
    names = record()
    assert tracer.flush(0.5)[:2] == (5, 0)
    oracle.manner = ok
    assert tracer.flush(10).delivered == 5
    assert set(oracle.named) == set(names)
    assert oracle.wrongs == {}, oracle.remarks


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_redirects(oracle, stranger, number):
    """Nobody follows a redirect, so nobody else sees the token; the records wait."""
    oracle.manner = status(number, {"Location": f"{stranger.url}/api/v1/bulk"})
    tracer = pt.configure(api_url=oracle.url, api_token=TOKEN, batch_delay=0.01)
    record()
    ledger = tracer.flush(0.3)
    tracer.shutdown(0.2)
    assert (ledger.delivered, ledger.pending, ledger.dropped) == (0, 5, {})
    assert stranger.connections == 0


@pytest.mark.parametrize("by", ["recording", "taking over"])
@pytest.mark.parametrize("number", [401, 403])
def test_a_new_token(oracle, monkeypatch, caplog, number, by):
    """A refused token pauses everything, says so once, keeps all; with the right one, what waited arrives."""
    monkeypatch.setattr(_wire, "_UNAUTHORIZED_PAUSE_SECONDS", 0.4)
    caplog.set_level(logging.WARNING, "prefactor_trace")
    oracle.manner = status(number)
    old = pt.configure(api_url=oracle.url, api_token="revoked", batch_delay=0.01)
    names = record()
    time.sleep(1)
    ledger = old.stats()
    assert (ledger.delivered, ledger.pending, ledger.dropped) == (0, 5, {})
    assert 1 <= len(oracle.steps) <= 8
    old.shutdown(0.1)
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 1
    assert "PREFACTOR_API_TOKEN" in told[0]
    assert "revoked" not in caplog.text

    oracle.manner = ok
    new = pt.configure(api_url=oracle.url, api_token=TOKEN, batch_delay=0.01)
    if by == "recording":
        names += record()
        new.flush(5)
        new.take_over(12)
    else:
        new.take_over(3)
    assert set(oracle.named) == set(names)
    assert oracle.wrongs == {}, oracle.remarks
    new.shutdown()

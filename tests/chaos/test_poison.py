"""A bad item hurts only itself: its neighbours arrive, and it ends in a file, with the reason: T6."""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path

import orjson
import pytest
from chaos.oracle import TOKEN, Refused, never, ok
from chaos.subjects import content, result_of
from hostile_server import response
from patience import within

import prefactor_trace as pt
from prefactor_trace import _outbox

COUNT = 200
PATIENCE = 5.0  # seconds that nobody waits behind a bad one
BY_WORD = {400: "bad_request", 413: "payload_too_large", 422: "validation_errors"}


@pytest.fixture
def tracer(oracle):
    return pt.configure(api_url=oracle.url, api_token=TOKEN, request_timeout=2.0)


def is_bad(details):
    return details["payload"]["inputs"]["name"].startswith("bad")


def has_bad(request):
    """Whether a request holds a bad span."""
    body = orjson.loads(request.body)
    items = body.get("items", [body])
    return any(is_bad(each["details"]) for each in items if "payload" in each.get("details", {}))


def failing(number):
    """A manner: answer *number* to all that has a bad span in it."""

    def answer(oracle, peer, request):
        if not has_bad(request):
            return ok(oracle, peer, request)
        body = orjson.dumps({"status": "error", "code": BY_WORD.get(number, "internal"), "message": "m"})
        peer.send(response(number, body))
        return True

    return answer


def breaking(oracle, peer, request):
    """Fall over what has a bad span in it."""
    if not has_bad(request):
        return ok(oracle, peer, request)
    peer.reset()
    return False


MANNERS = {
    "400": failing(400),
    "413": failing(413),
    "422": failing(422),
    "500": failing(500),
    "broken": breaking,
}


def record(bad, *, seed=1):
    """Record a run of COUNT spans, *bad* of them bad. Return the names of both."""
    places = set(random.Random(seed).sample(range(COUNT), bad))
    names = [f"{'bad' if number in places else 'good'}-{number}" for number in range(COUNT)]
    with pt.instance(external_identifier="poisoned"):
        for name in names:
            step(name)
    return [name for name in names if name.startswith("good")], [
        name for name in names if name.startswith("bad")
    ]


def step(name):
    with pt.span("step", payload=content(name, 20)) as span:
        span.set_result(result_of(name))


def wait_for(oracle, names, seconds):
    """Wait until all *names* have arrived. Return what has not."""
    began = time.monotonic()
    while missing := [name for name in names if name not in oracle.named]:
        if time.monotonic() - began > within(seconds):
            break
        time.sleep(0.02)
    return missing


def letters(tracer):
    """Return the objects in the file of what was refused."""
    text = (Path(tracer.settings.spool_dir) / "rejected.jsonl").read_text()
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        one, end = decoder.raw_decode(text)
        found.append(one)
        text = text[end:]
    return found


def span_requests(oracle):
    """Return how many requests were about spans."""
    return sum(each.path.endswith(("/bulk", "/agent_spans")) for each in oracle.steps)


def require_settled(tracer, oracle, bad, reason):
    """Everything is delivered but the bad ones, and those are in the file."""
    ledger = tracer.flush(30)
    assert (ledger.created, ledger.delivered, ledger.pending) == (COUNT + 3, COUNT + 3 - len(bad), 0)
    assert sum(ledger.dropped.values()) == len(bad)
    tracer.shutdown()  # a flush does not wait for the file
    found = letters(tracer)
    assert sorted(each["record"]["details"]["payload"]["inputs"]["name"] for each in found) == sorted(bad)
    for each in found:
        assert reason in f"{each['reason']} {each['said']}", each
        assert each["at"]
    assert oracle.wrongs == {}, oracle.remarks
    assert oracle.run_called("poisoned")["status"] == "complete"


@pytest.mark.parametrize("bad", [1, 3, 20])
@pytest.mark.parametrize("number", BY_WORD)
def test_refused_in_an_output(tracer, oracle, number, bad):
    """The platform names the bad one among the outputs of a bulk call, and does no more of it."""
    oracle.poison = lambda details: Refused(number, BY_WORD[number]) if is_bad(details) else None
    good, spoilt = record(bad)
    assert wait_for(oracle, good, PATIENCE) == []
    require_settled(tracer, oracle, spoilt, BY_WORD[number])
    assert span_requests(oracle) <= 1 + 2 * bad * math.ceil(math.log2(COUNT))


@pytest.mark.parametrize("bad", [1, 3, 20])
@pytest.mark.parametrize("name", ["400", "413", "422"])
def test_refused_as_a_whole(tracer, oracle, name, bad):
    """The platform refuses a bulk call because of one span in it: it is found by halves."""
    oracle.manner = MANNERS[name]
    good, spoilt = record(bad)
    assert wait_for(oracle, good, PATIENCE) == []
    require_settled(tracer, oracle, spoilt, name)
    assert span_requests(oracle) <= 1 + 2 * bad * math.ceil(math.log2(COUNT))


def test_letters_are_lines(tracer, oracle):
    """The file of what was refused holds one JSON object in each line."""
    oracle.manner = MANNERS["422"]
    _, spoilt = record(3)
    tracer.flush(10)
    tracer.shutdown()
    lines = (Path(tracer.settings.spool_dir) / "rejected.jsonl").read_bytes().splitlines()
    assert len([orjson.loads(line) for line in lines]) == len(spoilt)


# A kept connection that breaks off is no fault of the request yet: that is asked once more, over a new one.
@pytest.mark.parametrize(("name", "requests_a_step"), [("500", 2), ("broken", 3)])
def test_failing_over_it(tracer, oracle, monkeypatch, name, requests_a_step):
    """The platform fails over spans, as if it were down: while it takes others, they are given up after a while."""
    monkeypatch.setattr(_outbox, "_STRIKE_SECONDS", (0.1, 0.2, 0.4))
    oracle.manner = MANNERS[name]
    good, spoilt = record(3)
    assert wait_for(oracle, good, PATIENCE) == []
    asked = span_requests(oracle)
    deadline = time.monotonic() + 15
    number = 0
    while sum(tracer.stats().dropped.values()) < len(spoilt):
        assert time.monotonic() < deadline, tracer.stats()
        with pt.instance():
            step(f"good-late-{number}")
        number += 1
        time.sleep(0.3)
    ledger = tracer.flush(5)
    assert (ledger.pending, ledger.delivered) == (0, ledger.created - len(spoilt))
    tracer.shutdown()
    found = letters(tracer)
    assert sorted(each["record"]["details"]["payload"]["inputs"]["name"] for each in found) == sorted(spoilt)
    assert {each["reason"] for each in found} == {_outbox.POISON}
    assert oracle.wrongs == {}, oracle.remarks
    assert oracle.run_called("poisoned")["status"] == "complete"
    assert asked <= 1 + requests_a_step * len(spoilt) * (math.ceil(math.log2(COUNT)) + 4)


def falling_silent(oracle, peer, request):
    """Never answer what has a bad span in it."""
    return (never if has_bad(request) else ok)(oracle, peer, request)


def test_falling_silent_over_it(oracle, monkeypatch):
    """The platform never answers what holds one span: all others arrive, and that one stays pending."""
    monkeypatch.setattr(_outbox, "_BACKOFF_CAP_SECONDS", 0.1)
    monkeypatch.setattr(_outbox, "_SILENT_STRIKE_SECONDS", (0.5,) * 6)
    tracer = pt.configure(api_url=oracle.url, api_token=TOKEN, request_timeout=0.3)
    oracle.manner = falling_silent
    good, _ = record(1)
    assert wait_for(oracle, good, within(20)) == []
    with pt.instance():
        step("good-late")
    assert wait_for(oracle, ["good-late"], within(20)) == []
    assert not tracer.stats().dropped
    assert oracle.wrongs == {}, oracle.remarks


# A tenth of all records being poison is searched through at a few a second: too long for every run of the tests.
MANY = [(20, 4 * PATIENCE)] if os.environ.get("CHAOS_LONG") else []


@pytest.mark.parametrize(("bad", "patience"), [(1, PATIENCE), (3, PATIENCE), *MANY])
@pytest.mark.parametrize("name", ["500", "broken"])
def test_nobody_waits_behind_it(tracer, oracle, name, bad, patience):
    """With the real pauses: the neighbours, and a run that begins later, are there within five seconds, if few are bad."""
    oracle.manner = MANNERS[name]
    good, _ = record(bad)
    began = time.monotonic()
    with pt.instance(external_identifier="fresh"):
        step("good-fresh")
    missing = wait_for(oracle, [*good, "good-fresh"], 30)
    assert missing == []
    assert time.monotonic() - began < within(patience)
    assert oracle.wrongs == {}, oracle.remarks

"""The conversation about one batch, with plain values: no sockets, no clocks, no threads."""

from __future__ import annotations

import math
import os
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefactor_trace import _ids
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._schema import Schema, SpanType
from prefactor_trace._wire import Learned, Request, Response, Unreachable, deliver, iso, line_of

HERE = "4x99bm"  # the partition of the platform's account
ELSEWHERE = "3nqk8n"
NOWHERE = _ids.NO_PARTITION
SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND  # 2023-11-14T22:13:20Z
SCHEMA = Schema((SpanType("tool:search"),), external_identifier="s1")


def pfid(number, partition=HERE):
    """Make the PFID number so-and-so."""
    return _ids.encode(1_700_000_000_000, 10) + partition + f"{number:016}"


# -- records -----------------------------------------------------------------------------------------------


def registered(instance_id, body=b'{"agent_version":{"name":"bot"}}', schema=SCHEMA):
    return InstanceRegistered(instance_id, body, schema)


def started(instance_id, at=EPOCH):
    return InstanceStarted(instance_id, at)


def finished(instance_id, status="complete", at=EPOCH + 9 * SECOND):
    return InstanceFinished(instance_id, at, status)


def rated(number, instance_id, payload=b'{"ok":true}', name="verdict"):
    return QualityRecorded(pfid(number), instance_id, name, payload)


def span(
    span_id,
    instance_id,
    *,
    parent=None,
    status="complete",
    name="look up",
    payload=b'{"query":"refund"}',
    envelope=True,
    **ended,
):
    """Make the record of a span that has ended."""
    begun = SpanStarted(span_id, instance_id, parent, "tool:search", name, EPOCH + SECOND, payload, envelope)
    late = {"payload_after": "payload"}
    ended = {late.get(key, key): value for key, value in ended.items()}
    return SpanRecord(begun, SpanEnded(span_id, status, EPOCH + 2 * SECOND, **ended))


def announced(record):
    """Make the record that announces the span as active."""
    return record._replace(ended=None)


def closing(record):
    """Make the record that finishes the span after it was announced."""
    return record._replace(announced=True)


# -- the far side ------------------------------------------------------------------------------------------


def success(details, **more):
    return Response(200, orjson.dumps({"status": "success", "details": details, **more}))


def error(status, code, message="no"):
    return Response(status, orjson.dumps({"status": "error", "code": code, "message": message}))


class Platform:
    """The Prefactor API as the contract describes it, in memory.

    Attributes:
        instances: What is known of each instance, by id.
        spans: What is known of each span, by id.
        requests: Path and body of every request.
        keeps_ids: Whether it takes ids made by clients.
        has_bulk: Whether it has the bulk call.
        max_items: Items it takes in one bulk request.
        cancels_active: Whether it lets a running instance or span be finished as cancelled.
        has_generator: Whether it hands out ids.
        repeats: Its answer to a request whose key it has seen; None: the same as then.
        spoils: Span names that spoil a bulk request as a whole, with status and code.
        refuses: Span names that are wrong in its eyes, with status and code.
        terminated: Instances that are terminated, with the reason.
    """

    def __init__(self, partition=HERE):
        self.partition = partition
        self.instances = {}
        self.spans = {}
        self.requests = []
        self.keeps_ids = True
        self.has_bulk = True
        self.max_items = 100
        self.cancels_active = True
        self.has_generator = True
        self.repeats = None
        self.spoils = {}
        self.refuses = {}
        self.terminated = {}
        self._replies = {}
        self._made = 0

    @property
    def paths(self):
        """Last word of the path of every request: short to compare."""
        return [path.rpartition("/")[2] for path, _ in self.requests]

    def answer(self, request):
        body = orjson.loads(request.body)
        self.requests.append((request.path, body))
        return self._answer(request.path, body)

    def _answer(self, path, body):
        if path == "bulk":
            return self._bulk(body["items"]) if self.has_bulk else error(404, "not_found")
        if path == "pfid/generate":
            return self._generate(body["count"]) if self.has_generator else error(404, "not_found")
        key = body["idempotency_key"]
        assert 8 <= len(key) <= 64
        if key in self._replies:
            return self.repeats or self._replies[key]
        reply = self._act(path, body)
        if reply.status < 300:
            self._replies[key] = reply
        return reply

    def forget_replies(self):
        self._replies.clear()

    def _act(self, path, body):
        if path == "agent_instance/register":
            return self._register(body)
        if path == "agent_spans":
            return self._create(body["details"])
        noun, this_id, verb = path.split("/")
        known = (self.instances if noun == "agent_instance" else self.spans).get(this_id)
        if known is None:
            return error(404, "not_found")
        if verb == "record_quality":
            if body["name"] in self.refuses:
                return error(*self.refuses[body["name"]])
            known.setdefault("quality_payloads", {})[body["name"]] = body["payload"]
        elif verb == "start":
            if known["status"] != "pending":
                return error(409, "invalid_action")
            known["status"] = "active"
        elif known["status"] not in ("pending", "active"):
            return error(409, "invalid_action")
        elif body["status"] == "cancelled" and known["status"] == "active" and not self.cancels_active:
            return error(409, "invalid_action")
        else:
            known["status"] = body["status"]
            known["result_payload"] = body.get("result_payload", known.get("result_payload"))
        return success(known, **self._control(known.get("agent_instance_id")))

    def _generate(self, count):
        pfids = [self._id({}) for _ in range(count)]
        return Response(200, orjson.dumps({"status": "success", "account_id": pfid(0), "pfids": pfids}))

    def _register(self, body):
        if "id" in body and self._is_foreign(body["id"]):
            return error(422, "validation_errors")
        instance_id = self._id(body)
        known = {"type": "agent_instance", "id": instance_id, "status": "pending"}
        self.instances[instance_id] = {**body, **known}
        return success(known)

    def _create(self, details):
        name = details["payload"].get("name")
        if name in self.refuses:
            return error(*self.refuses[name])
        if details["agent_instance_id"] not in self.instances:
            return error(404, "not_found")
        if details.get("parent_span_id") not in {None, *self.spans}:
            return error(422, "validation_errors")
        if self._is_foreign(details["id"]) or details["id"] in self.spans:
            return error(422, "validation_errors")
        span_id = self._id(details)
        self.spans[span_id] = {**details, "id": span_id, "type": "agent_span"}
        return success(self.spans[span_id], **self._control(details["agent_instance_id"]))

    def _bulk(self, items):
        if len(items) > self.max_items:
            return error(413, "too_large")
        for item in items:
            if item["details"]["payload"].get("name") in self.spoils:
                return error(*self.spoils[item["details"]["payload"]["name"]])
        outputs = {}
        for item in items:
            assert item["_type"] == "agent_spans/create"
            reply = self._answer("agent_spans", {key: item[key] for key in ("details", "idempotency_key")})
            outputs[item["idempotency_key"]] = orjson.loads(reply.body)
            if reply.status != 200:
                break
        return Response(200, orjson.dumps({"status": "success", "outputs": outputs}))

    def _id(self, given):
        if self.keeps_ids and "id" in given:
            return given["id"]
        self._made += 1
        return pfid(9_000_000 + self._made, self.partition)

    def _is_foreign(self, some_id):
        return self.keeps_ids and _ids.partition_of(some_id) != self.partition

    def _control(self, instance_id):
        if instance_id not in self.terminated:
            return {}
        return {"control": {"terminate": True, "reason": self.terminated[instance_id]}}


LOST = pytest.mark.parametrize(
    "lost",
    [
        Unreachable("ReadError", broke_off=True),
        Unreachable("silence", is_silent=True),
        Unreachable("refused", is_second=True),
        Response(503, b""),
        Response(429, b"", is_second=True),
    ],
    ids=["broken off", "silent", "broken off and gone", "503", "broken off and busy"],
)


class Lossy:
    """Does what *platform* does, but in place of the answer to each request of *path* comes *lost*, the first time."""

    def __init__(self, platform, path, lost):
        self._platform = platform
        self._path = path
        self._lost = lost

    def answer(self, request):
        answer = self._platform.answer(request)
        if request.path != self._path or self._lost is None:
            return answer
        lost, self._lost = self._lost, None
        return lost


class Script:
    """Gives the answers of a list, one after the other, and notes the requests."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.requests = []

    def answer(self, request):
        self.requests.append((request.path, orjson.loads(request.body)))
        return self._answers.pop(0)


def converse(batch, far_side, learned=None):
    """Hold the conversation about *batch* with *far_side*; return the outcome."""
    conversation = deliver(batch, learned or Learned())
    try:
        request = next(conversation)
        while True:
            request = conversation.send(far_side.answer(request))
    except StopIteration as stop:
        return stop.value


def running(*instance_ids, **traits):
    """Make a platform on which these instances run."""
    platform = Platform()
    converse([each for i in instance_ids for each in (registered(i), started(i))], platform)
    platform.requests.clear()
    for name, value in traits.items():
        setattr(platform, name, value)
    return platform


def settled(learned=None):
    """What is known after the first register."""
    learned = learned or Learned()
    learned.partition = HERE
    return learned


def test_the_platform_of_these_tests():
    """The far side itself: states, ids, replays, parents, bulk, control, each as the contract says."""
    platform = Platform()

    def post(path, **body):
        reply = platform.answer(
            Request(path, orjson.dumps({"idempotency_key": f"key-{len(platform.requests):05}", **body}))
        )
        return reply.status, orjson.loads(reply.body)

    def details(number, **more):
        return {"id": pfid(number), "agent_instance_id": pfid(1), "payload": {}, "status": "active", **more}

    (made,) = post("pfid/generate", count=1)[1]["pfids"]
    assert _ids.partition_of(made) == HERE
    assert post("agent_instance/register", id=pfid(1, ELSEWHERE))[0] == 422
    assert post("agent_instance/register", id=pfid(1))[1]["details"]["status"] == "pending"
    assert _ids.partition_of(post("agent_instance/register")[1]["details"]["id"]) == HERE
    assert post(f"agent_instance/{pfid(1)}/start")[1]["details"]["status"] == "active"
    assert post(f"agent_instance/{pfid(1)}/start")[1]["code"] == "invalid_action"
    assert post(f"agent_instance/{pfid(7)}/start")[0] == 404
    assert post("agent_spans", details=details(2), idempotency_key="the same key")[0] == 200
    assert post("agent_spans", details=details(2), idempotency_key="the same key")[0] == 200
    assert post("agent_spans", details=details(2))[0] == 422
    assert post("agent_spans", details=details(3, parent_span_id=pfid(8)))[0] == 422
    assert post("agent_spans", details=details(3, agent_instance_id=pfid(8)))[0] == 404
    quality = {"name": "verdict", "payload": {"ok": True}}
    assert post(f"agent_instance/{pfid(1)}/record_quality", **quality)[0] == 200
    assert platform.instances[pfid(1)]["quality_payloads"] == {"verdict": {"ok": True}}
    platform.refuses = {"verdict": (422, "validation_errors")}
    assert post(f"agent_instance/{pfid(1)}/record_quality", **quality)[0] == 422
    assert post(f"agent_instance/{pfid(7)}/record_quality", **quality)[0] == 404
    platform.terminated[pfid(1)] = "stop"
    items = [
        {
            "_type": "agent_spans/create",
            "idempotency_key": f"item-000{number}",
            "details": details(number, **more),
        }
        for number, more in [(4, {"parent_span_id": pfid(2)}), (5, {"parent_span_id": pfid(9)}), (6, {})]
    ]
    status, body = post("bulk", items=items)
    assert status == 200
    assert [(key, each["status"]) for key, each in body["outputs"].items()] == [
        ("item-0004", "success"),
        ("item-0005", "error"),
    ]
    assert body["outputs"]["item-0004"]["control"] == {"terminate": True, "reason": "stop"}
    platform.cancels_active = False
    assert post(f"agent_spans/{pfid(4)}/finish", status="cancelled")[0] == 409
    assert post(f"agent_spans/{pfid(4)}/finish", status="failed")[0] == 200
    assert post(f"agent_spans/{pfid(4)}/finish", status="failed")[0] == 409
    platform.max_items, platform.has_bulk = 1, True
    assert post("bulk", items=items)[0] == 413
    platform.max_items, platform.spoils = 9, {"bad": (400, "bad_request")}
    items[2]["details"]["payload"] = {"name": "bad"}
    assert post("bulk", items=items)[0] == 400
    platform.has_bulk = platform.has_generator = False
    assert post("bulk", items=items)[0] == 404
    assert post("pfid/generate", count=1)[0] == 404


# -- order -------------------------------------------------------------------------------------------------


def test_order():
    """Registers come first, then starts, spans (all runs together), finishes; each once, and all is delivered."""
    platform = Platform()
    one, two = pfid(1), pfid(2)
    batch = [
        registered(one),
        started(one),
        span(pfid(11), one),
        registered(two),
        finished(one),
        started(two),
        span(pfid(21), two),
        span(pfid(22), two, parent=pfid(21)),
        finished(two, "failed"),
    ]
    outcome = converse(batch, platform)
    assert [path for path, _ in platform.requests] == [
        "agent_instance/register",
        "agent_instance/register",
        f"agent_instance/{one}/start",
        f"agent_instance/{two}/start",
        "bulk",
        f"agent_instance/{one}/finish",
        f"agent_instance/{two}/finish",
    ]
    assert list(platform.spans) == [pfid(11), pfid(21), pfid(22)]
    assert platform.instances[one]["status"] == "complete"
    assert platform.instances[two]["status"] == "failed"
    assert outcome == converse([], platform)._replace(
        delivered=frozenset(each.key for each in batch), partition=HERE
    )


def test_nothing_to_say():
    """An empty batch ends without a request and without trouble."""
    platform = Platform()
    outcome = converse([], platform)
    assert (outcome.delivered, outcome.refused, outcome.trouble, outcome.reachable) == (
        frozenset(),
        {},
        None,
        True,
    )
    assert platform.requests == []


def test_instance_requests():
    """The three calls of an instance say what the contract asks for, with their keys and UTC times."""
    platform = Platform()
    body = b'{"agent_id":"a","agent_version":{"name":"bot","external_identifier":"1"},"purpose":"eval"}'
    converse([registered(pfid(1), body), started(pfid(1), EPOCH + 1), finished(pfid(1))], platform, settled())
    (_, register), (_, start), (_, finish) = platform.requests
    assert register == {
        "id": pfid(1),
        "agent_id": "a",
        "agent_version": {"name": "bot", "external_identifier": "1"},
        "purpose": "eval",
        "agent_schema_version": SCHEMA.to_wire(),
        "idempotency_key": pfid(1) + "-register",
    }
    assert start == {"timestamp": "2023-11-14T22:13:20.000000Z", "idempotency_key": pfid(1) + "-start"}
    assert finish == {
        "status": "complete",
        "timestamp": "2023-11-14T22:13:29.000000Z",
        "idempotency_key": pfid(1) + "-finish",
    }


def test_quality_requests():
    """A quality is one call of its run, with its key; no payload is null, which removes the name."""
    platform = running(pfid(1))
    batch = [rated(2, pfid(1)), rated(3, pfid(1), None)]
    outcome = converse(batch, platform, settled())

    path = f"agent_instance/{pfid(1)}/record_quality"
    first = {"name": "verdict", "payload": {"ok": True}, "idempotency_key": pfid(2) + "-quality"}
    second = {"name": "verdict", "payload": None, "idempotency_key": pfid(3) + "-quality"}
    assert platform.requests == [(path, first), (path, second)]
    assert outcome.delivered == {each.key for each in batch}
    assert platform.instances[pfid(1)]["quality_payloads"] == {"verdict": None}


def test_qualities_go_before_finishes():
    """They stand between the spans and the finish of their run, in the order they were recorded."""
    platform = Platform()
    run = pfid(1)
    batch = [registered(run), rated(4, run), started(run), finished(run), span(pfid(2), run), rated(3, run)]
    outcome = converse(batch, platform, settled())

    assert platform.paths == [
        "register",
        "start",
        "agent_spans",
        "record_quality",
        "record_quality",
        "finish",
    ]
    keys = [body["idempotency_key"] for path, body in platform.requests if path.endswith("quality")]
    assert keys == [pfid(4) + "-quality", pfid(3) + "-quality"]
    assert outcome.delivered == {each.key for each in batch}


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_refused_quality_is_dropped_alone(status):
    """A conflict as well: unlike with a finish, it does not say that the platform holds it. The rest goes on."""
    platform = running(pfid(1), refuses={"verdict": (status, "no_such")})
    batch = [rated(2, pfid(1)), rated(3, pfid(1), name="tone"), finished(pfid(1))]
    outcome = converse(batch, platform, settled())

    assert outcome.refused == {batch[0].key: "refused: no_such"}
    assert outcome.said == {batch[0].key: f'{status} {{"code":"no_such","message":"no"}}'}
    assert outcome.delivered == {each.key for each in batch[1:]}
    assert outcome.trouble is None
    assert outcome.unknown == frozenset()


def test_a_quality_of_an_unknown_run():
    """404 says that perhaps only the run is not known yet; it kills nothing."""
    outcome = converse([rated(2, pfid(1))], Platform(), settled())

    assert outcome.refused == {pfid(2) + "-quality": "refused: not_found"}
    assert outcome.unknown == {pfid(2) + "-quality"}
    assert outcome.dead == {}


@pytest.mark.parametrize(("status", "blames"), [(429, False), (500, True), (503, False)])
def test_a_quality_in_trouble(status, blames):
    """Trouble is no verdict: this one and those behind it are sent again, in their order."""
    script = Script(Response(status, b"{}", "7" if status == 429 else None))
    outcome = converse([rated(2, pfid(1)), rated(3, pfid(1)), finished(pfid(1))], script, settled())

    assert outcome.delivered == frozenset()
    assert outcome.refused == {}
    assert outcome.blames_batch is blames
    assert outcome.retry_after == (7.0 if status == 429 else None)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_rate(status):
    """Deployment tokens may do all but this: the rating is refused, and what they may do goes on, now and later."""
    run, learned = pfid(1), settled()
    platform = running(run)

    class Strict:
        def answer(self, request):
            is_rating = request.path.endswith("record_quality")
            return error(status, "unauthorized") if is_rating else platform.answer(request)

    batch = [span(pfid(2), run), rated(3, run), finished(run)]
    outcome = converse(batch, Strict(), learned)
    assert outcome.delivered == {batch[0].key, batch[2].key}
    assert outcome.refused == {batch[1].key: "refused: this token may not record quality"}
    assert str(status) in outcome.said[batch[1].key]
    assert (outcome.trouble, outcome.unknown) == (None, frozenset())

    alone = rated(4, run)
    assert converse([alone], Strict(), learned).refused.keys() == {alone.key}


def test_a_token_that_was_refused_altogether():
    """Who knows of nothing that was taken under the token waits, as with every record: it may have been suspended."""
    run, learned = pfid(1), settled()
    for _ in range(2):
        outcome = converse([rated(3, run)], Script(error(401, "unauthorized")), learned)
        assert (outcome.refused, outcome.retry_after) == ({}, 60.0)
    converse([finished(run)], running(run), learned)
    assert learned.is_accepted
    converse([span(pfid(2), run)], Script(error(401, "unauthorized")), learned)
    outcome = converse([rated(3, run)], Script(error(401, "unauthorized")), learned)
    assert (outcome.refused, outcome.retry_after) == ({}, 60.0)


def test_a_quality_answered_about_another_run():
    """An answer counts only if it names the run."""
    outcome = converse([rated(2, pfid(1))], Script(success({"id": pfid(9)})), settled())

    assert outcome.delivered == frozenset()
    assert "without naming" in outcome.trouble


def test_a_quality_tells_that_the_run_was_terminated():
    """The answer holds the state of the run, and so does the outcome."""
    details = {"id": pfid(1), "status": "terminated", "termination_reason": "policy"}
    outcome = converse([rated(2, pfid(1))], Script(success(details)), settled())

    assert outcome.delivered == {pfid(2) + "-quality"}
    assert outcome.terminated == {pfid(1): "policy"}


def test_a_quality_goes_to_the_id_that_the_platform_uses():
    """Where the platform has made another id for the run, that is the one in the path; the key stays ours."""
    platform = Platform()
    platform.keeps_ids = False
    converse([registered(pfid(1)), rated(2, pfid(1))], platform)
    path, body = platform.requests[-1]

    assert path == f"agent_instance/{pfid(9_000_001)}/record_quality"
    assert body["idempotency_key"] == pfid(2) + "-quality"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (EPOCH, "2023-11-14T22:13:20.000000Z"),
        (EPOCH + 1_999, "2023-11-14T22:13:20.000001Z"),
        (EPOCH + 999_999_999, "2023-11-14T22:13:20.999999Z"),
    ],
)
def test_times(nanoseconds, text):
    """Times are UTC with Z and microseconds, exact, rounded down."""
    assert iso(nanoseconds) == text


# -- what a span says --------------------------------------------------------------------------------------


def created(record):
    """Return the body of the one request that creates the span of *record*."""
    platform = running(record.instance_id)
    outcome = converse([record], platform, settled())
    assert outcome.delivered == {record.key}
    ((path, body),) = platform.requests
    assert path == "agent_spans"
    return body


def test_a_span_in_one_create():
    """A finished span is one create: the envelope with the payload as inputs, the result beside it, key outside."""
    record = span(
        pfid(2), pfid(1), result=b'{"hits":3}', metadata=b'{"model":"m"}', usage=b'{"total_tokens":3}'
    )
    assert created(record) == {
        "idempotency_key": pfid(2),
        "details": {
            "id": pfid(2),
            "agent_instance_id": pfid(1),
            "schema_name": "tool:search",
            "status": "complete",
            "started_at": "2023-11-14T22:13:21.000000Z",
            "finished_at": "2023-11-14T22:13:22.000000Z",
            "payload": {
                "name": "look up",
                "inputs": {"query": "refund"},
                "metadata": {"model": "m"},
                "token_usage": {"total_tokens": 3},
            },
            "result_payload": {"hits": 3},
        },
    }


def test_bulk_items_say_the_same():
    """An item of a bulk request is the single request's body and its type."""
    records = [span(pfid(number), pfid(1), result=b'{"hits":3}') for number in (2, 3)]
    platform = running(pfid(1))
    converse(records, platform, settled())
    ((_, body),) = platform.requests
    assert body == {"items": [{"_type": "agent_spans/create", **created(each)} for each in records]}


def test_a_failed_span():
    """On failure the flat error is the result, and stands in the envelope too; what was set as result is kept there."""
    failure = b'{"error_type":"ValueError","message":"no","stacktrace":""}'
    details = created(span(pfid(2), pfid(1), status="failed", error=failure, result=b'{"hits":3}'))["details"]
    assert details["status"] == "failed"
    assert details["result_payload"] == orjson.loads(failure)
    assert details["payload"] == {
        "name": "look up",
        "inputs": {"query": "refund"},
        "error": orjson.loads(failure),
        "outputs": {"hits": 3},
    }


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
def test_a_span_that_says_little(status):
    """Nothing captured: no inputs, no result, and every status goes out in the one create."""
    details = created(span(pfid(2), pfid(1), status=status, payload=None))["details"]
    assert details["status"] == status
    assert details["payload"] == {"name": "look up"}
    assert "result_payload" not in details


def test_a_span_without_envelope():
    """`envelope=False` sends payload and result exactly as given; without payload, an empty object."""
    given = created(span(pfid(2), pfid(1), envelope=False, result=b'{"b":2}', metadata=b"{}"))["details"]
    assert (given["payload"], given["result_payload"]) == ({"query": "refund"}, {"b": 2})
    assert created(span(pfid(2), pfid(1), envelope=False, payload=None))["details"]["payload"] == {}


def test_a_payload_set_later_replaces_the_first():
    """What `set_payload` said last is what is sent."""
    record = span(pfid(2), pfid(1), payload_after=b'{"later":1}')
    assert created(record)["details"]["payload"]["inputs"] == {"later": 1}
    assert created(record._replace(started=record.started._replace(envelope=False)))["details"][
        "payload"
    ] == {"later": 1}


def test_captured_bytes_are_not_touched():
    """The user's data goes out byte for byte as it was captured."""
    payload = b'{"n": 1.50e+2, "big":123456789012345678901234567890, "t":"\xc3\xa9"}'
    conversation = deliver([span(pfid(2), pfid(1), payload=payload, result=payload)], Learned())
    assert next(conversation).body.count(payload) == 2


def test_parents():
    """A child names its parent; a root span names none."""
    platform = running(pfid(1))
    converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1), parent=pfid(2))], platform, settled())
    assert "parent_span_id" not in platform.spans[pfid(2)]
    assert platform.spans[pfid(3)]["parent_span_id"] == pfid(2)


# -- announced spans ---------------------------------------------------------------------------------------


def test_an_announced_span():
    """A span that is still open is created as active with its inputs only; its end is a second call."""
    platform = running(pfid(1))
    record = span(pfid(2), pfid(1), result=b'{"hits":3}')
    first = converse([announced(record)], platform, settled())
    second = converse([closing(record)], platform, settled())
    assert first.delivered == {pfid(2) + "-open"}
    assert second.delivered == {pfid(2) + "-end"}
    (_, opening), (path, end) = platform.requests
    assert opening == {
        "idempotency_key": pfid(2) + "-open",
        "details": {
            "id": pfid(2),
            "agent_instance_id": pfid(1),
            "schema_name": "tool:search",
            "status": "active",
            "started_at": "2023-11-14T22:13:21.000000Z",
            "payload": {"name": "look up", "inputs": {"query": "refund"}},
        },
    }
    assert path == f"agent_spans/{pfid(2)}/finish"
    assert end == {
        "idempotency_key": pfid(2) + "-end",
        "status": "complete",
        "timestamp": "2023-11-14T22:13:22.000000Z",
        "result_payload": {"hits": 3},
    }


FAILURE = b'{"error_type":"E","message":"","stacktrace":""}'


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        ({}, None),
        ({"result": b'{"a":1}'}, {"a": 1}),
        ({"usage": b'{"total_tokens":3}'}, {"$token_usage": {"total_tokens": 3}}),
        ({"metadata": b'{"m":1}'}, {"$metadata": {"m": 1}}),
        ({"result": b"{}", "metadata": b'{"m":1}'}, {"$metadata": {"m": 1}}),
        (
            {"result": b'{"a":1}', "metadata": b'{"m":1}', "payload_after": b'{"p":1}'},
            {"a": 1, "$metadata": {"m": 1}, "$inputs": {"p": 1}},
        ),
        (
            {"result": b'{"a":1}', "error": FAILURE},
            {**orjson.loads(FAILURE), "$outputs": {"a": 1}},
        ),
    ],
)
def test_what_came_late_goes_with_the_result(ended, result):
    """The payload of an announced span cannot be amended, so what was set afterwards goes with its result."""
    platform = running(pfid(1))
    record = span(pfid(2), pfid(1), **ended)
    converse([announced(record)], platform, settled())
    converse([closing(record)], platform, settled())
    assert platform.requests[-1][1].get("result_payload") == result


def test_creates_and_finishes_keep_their_order():
    """Between the finishes of announced spans, the creates before each of them go first, in bulk."""
    platform = running(pfid(1))
    outer = span(pfid(2), pfid(1))
    converse([announced(outer)], platform, settled())
    inner = [span(pfid(number), pfid(1), parent=pfid(2)) for number in (3, 4)]
    converse([*inner, closing(outer), span(pfid(5), pfid(1))], platform, settled())
    assert platform.paths == ["agent_spans", "bulk", "finish", "agent_spans"]


# -- bulk --------------------------------------------------------------------------------------------------


def names(*refused):
    return dict.fromkeys(refused, (422, "validation_errors"))


def test_a_refused_item_is_dropped_alone():
    """Bulk stops at the first error: that item is dropped and counted, the rest is sent again with the same keys."""
    platform = running(pfid(1), refuses=names("bad"))
    records = [
        span(pfid(number), pfid(1), name="bad" if number in (12, 15) else "good") for number in range(10, 20)
    ]
    outcome = converse(records, platform, settled())
    bad = {pfid(12), pfid(15)}
    assert outcome.delivered == {each.key for each in records} - bad
    assert outcome.refused == dict.fromkeys(bad, "refused: validation_errors")
    assert outcome.trouble is None
    assert list(platform.spans) == [each.id for each in records if each.id not in bad]
    sent = [[item["idempotency_key"] for item in body["items"]] for _, body in platform.requests]
    assert sent == [[pfid(number) for number in range(first, 20)] for first in (10, 13, 16)]


def test_items_without_an_output_were_not_attempted():
    """An item missing from the outputs is asked for again, even after one that succeeded."""
    records = [span(pfid(number), pfid(1)) for number in (2, 3, 4)]
    outputs = {pfid(2): orjson.loads(success({"id": pfid(2)}).body)}
    script = Script(
        Response(200, orjson.dumps({"status": "success", "outputs": outputs})),
        Response(
            200,
            orjson.dumps(
                {
                    "outputs": {
                        pfid(number): orjson.loads(success({"id": pfid(number)}).body) for number in (3, 4)
                    }
                }
            ),
        ),
    )
    outcome = converse(records, script, settled())
    assert outcome.delivered == {pfid(2), pfid(3), pfid(4)}
    assert [len(body["items"]) for _, body in script.requests] == [3, 2]


@pytest.mark.parametrize("is_open", [False, True])
def test_children_of_a_refused_span_hang_from_the_next_one_above(is_open):
    """A refused span does not take its children with it, whether it was refused as a whole or as an announcement."""
    platform = running(pfid(1), refuses=names("bad"))
    bad = [
        span(pfid(3), pfid(1), parent=pfid(2), name="bad"),
        span(pfid(4), pfid(1), parent=pfid(3), name="bad"),
    ]
    if is_open:
        bad = [announced(each) for each in bad]
    batch = [
        span(pfid(2), pfid(1)),
        *bad,
        span(pfid(5), pfid(1), parent=pfid(4)),
        span(pfid(6), pfid(1), parent=pfid(5)),
    ]
    outcome = converse(batch, platform, settled())
    assert outcome.delivered == {pfid(2), pfid(5), pfid(6)}
    assert outcome.refused.keys() == {each.key for each in bad}
    assert platform.spans[pfid(5)]["parent_span_id"] == pfid(2)
    assert platform.spans[pfid(6)]["parent_span_id"] == pfid(5)


def test_children_of_a_refused_root_become_roots():
    """Where nothing is above the refused span, its children hang from the run itself."""
    platform = running(pfid(1), refuses=names("bad"))
    converse(
        [span(pfid(2), pfid(1), name="bad"), span(pfid(3), pfid(1), parent=pfid(2))], platform, settled()
    )
    assert "parent_span_id" not in platform.spans[pfid(3)]


@pytest.mark.parametrize("has_bulk", [True, False])
def test_children_of_a_span_that_is_too_early_wait(has_bulk):
    """A span that hangs from another process's may be refused as too early: what is below it keeps its place."""
    platform = running(pfid(1), has_bulk=has_bulk)
    batch = [
        span(pfid(3), pfid(1), parent=pfid(2)),
        span(pfid(4), pfid(1), parent=pfid(3)),
        span(pfid(5), pfid(1), parent=pfid(4)),
        span(pfid(6), pfid(1)),
    ]
    far_side = Late(platform, span(pfid(2), pfid(1)))
    outcome = converse(batch, far_side, settled())
    assert (outcome.delivered, outcome.refused.keys()) == ({pfid(6)}, {pfid(3)})
    platform.forget_replies()
    outcome = converse(batch[:3], platform, settled())
    assert outcome.delivered == {pfid(3), pfid(4), pfid(5)}
    assert [platform.spans[pfid(n)]["parent_span_id"] for n in (3, 4, 5)] == [pfid(2), pfid(3), pfid(4)]


class Late:
    """A platform that is told of a span by somebody else as soon as it has refused something over it."""

    def __init__(self, platform, record):
        self.platform = platform
        self.record = record

    def answer(self, request):
        response = self.platform.answer(request)
        if self.record is not None and b"validation_errors" in response.body:
            record, self.record = self.record, None
            converse([record], self.platform, settled())
        return response


def test_a_refused_finish_keeps_the_span_as_parent():
    """A span whose finish is refused exists: its children stay where they are."""
    platform = running(pfid(1))
    outer = span(pfid(2), pfid(1))
    converse([announced(outer)], platform, settled())
    script = Script(error(422, "validation_errors"), success({"id": pfid(3)}))
    outcome = converse([closing(outer), span(pfid(3), pfid(1), parent=pfid(2))], script, settled())
    assert outcome.refused == {pfid(2) + "-end": "refused: validation_errors"}
    assert script.requests[1][1]["details"]["parent_span_id"] == pfid(2)


@pytest.mark.parametrize("code", ["something_new", None, 7, ["bad_request"], {"a": 1}])
def test_unknown_error_codes_are_asked_singly(code):
    """An output with an error nobody knows is no verdict: the single call, with its status, decides."""
    outputs = {pfid(2): {"status": "error", "code": code, "message": "?"}}
    puzzled = Response(200, orjson.dumps({"status": "success", "outputs": outputs}))
    script = Script(puzzled, success({"id": pfid(2)}), success({"id": pfid(3)}))
    outcome = converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], script, settled())
    assert outcome.delivered == {pfid(2), pfid(3)}
    assert [path for path, _ in script.requests] == ["bulk", "agent_spans", "agent_spans"]


@pytest.mark.parametrize(
    "output", [{"status": "success"}, {}, {"status": "success", "details": {"id": "another"}}]
)
def test_an_output_that_names_nobody_is_asked_singly(output):
    """A bulk output that does not name our span is not believed, and does not stop the rest either."""
    outputs = {pfid(2): output, pfid(3): orjson.loads(success({"id": pfid(3)}).body)}
    script = Script(Response(200, orjson.dumps({"outputs": outputs})), success({"id": pfid(2)}))
    outcome = converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], script, settled())
    assert outcome.delivered == {pfid(2), pfid(3)}
    assert [path for path, _ in script.requests] == ["bulk", "agent_spans"]


def test_an_error_in_the_outputs_is_one_even_if_it_names_us():
    """An output that says `error` delivers nothing, whatever stands beside it; one that does not, refuses nothing."""
    outputs = {
        pfid(2): {"status": "error", "code": "bad_request", "details": {"id": pfid(2)}},
        pfid(3): {"status": "success", "code": "bad_request"},
    }
    script = Script(Response(200, orjson.dumps({"outputs": outputs})), success({"id": pfid(3)}))
    outcome = converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], script, settled())
    assert outcome.refused == {pfid(2): "refused: bad_request"}
    assert outcome.delivered == {pfid(3)}


NO_BULK = {
    "not found, in the platform's words": error(404, "not_found"),
    "not found, in somebody's words": Response(404, b"<html>"),
    "method not allowed": Response(405, b""),
    "not implemented": Response(501, b""),
    "another format is wanted": error(422, "validation_errors"),
    "bad request": error(400, "bad_request"),
    "an answer without outputs": Response(200, b'{"status":"success"}'),
    "outputs of another shape": Response(200, b'{"status":"success","outputs":[]}'),
    "outputs under other names": Response(200, b'{"status":"success","outputs":{"0":{}}}'),
}


@pytest.mark.parametrize("answer", NO_BULK.values(), ids=NO_BULK.keys())
def test_bulk_is_given_up_where_it_is_not_to_be_had(answer):
    """The whole request refused, single calls taken: from then on there are only single calls."""
    learned = settled()
    records = [span(pfid(number), pfid(1)) for number in (2, 3)]
    script = Script(answer, success({"id": pfid(2)}), success({"id": pfid(3)}))
    outcome = converse(records, script, learned)
    assert outcome.delivered == {pfid(2), pfid(3)}
    assert [path for path, _ in script.requests] == ["bulk", "agent_spans", "agent_spans"]
    assert not learned.bulk
    script = Script(success({"id": pfid(4)}), success({"id": pfid(5)}))
    converse([span(pfid(number), pfid(1)) for number in (4, 5)], script, learned)
    assert [path for path, _ in script.requests] == ["agent_spans", "agent_spans"]


def test_bulk_is_kept_if_an_item_spoiled_it():
    """If the single calls refuse an item, that one was the reason, and bulk is tried again next time."""
    learned = settled()
    script = Script(
        error(422, "validation_errors"), error(422, "validation_errors"), success({"id": pfid(3)})
    )
    outcome = converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], script, learned)
    assert outcome.refused == {pfid(2): "refused: validation_errors"}
    assert outcome.delivered == {pfid(3)}
    assert learned.bulk


def test_bulk_is_kept_if_the_single_calls_end_in_trouble():
    """As long as the single calls have not all been taken, nothing is known about bulk."""
    learned = settled()
    script = Script(error(422, "validation_errors"), success({"id": pfid(2)}), Response(503, b""))
    outcome = converse([span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], script, learned)
    assert outcome.delivered == {pfid(2)}
    assert outcome.trouble == "the platform answered 503"
    assert learned.bulk


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_too_large_is_halved(limit):
    """413 halves the request until it fits; all arrives, in order, and nothing is said twice."""
    platform = running(pfid(1), max_items=limit)
    records = [
        span(pfid(number), pfid(1), parent=pfid(number - 1) if number > 10 else None)
        for number in range(10, 23)
    ]
    outcome = converse(records, platform, settled())
    assert outcome.delivered == {each.key for each in records}
    assert list(platform.spans) == [each.id for each in records]
    assert len(platform.requests) <= 2 * len(records)


def test_halves_are_sent_in_bulk():
    """Halving is not giving up: what fits goes in bulk, and the next batch begins with a whole one."""
    platform = running(pfid(1), max_items=4)
    learned = settled()
    converse([span(pfid(number), pfid(1)) for number in range(10, 18)], platform, learned)
    assert [len(body["items"]) for _, body in platform.requests] == [8, 4, 4]
    assert learned.bulk


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 64), st.data(), st.sampled_from([(400, "bad_request"), (413, "too_large")]))
def test_a_spoiled_bulk_is_halved(count, data, answer):
    """With k bad among n, all others arrive, in at most 1 + 2k * ceil(log2 n) requests, whatever the platform says."""
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=5))
    platform = running(pfid(1), spoils={"bad": answer}, refuses={"bad": answer})
    records = [
        span(pfid(100 + number), pfid(1), name="bad" if number in bad else "good") for number in range(count)
    ]
    learned = settled()
    outcome = converse(records, platform, learned)
    wrong = {pfid(100 + number) for number in bad}
    assert outcome.refused == dict.fromkeys(wrong, f"refused: {answer[1]}")
    assert outcome.delivered == {each.key for each in records} - wrong
    assert list(platform.spans) == [each.id for each in records if each.id not in wrong]
    assert len(platform.requests) <= 1 + 2 * len(bad) * math.ceil(math.log2(count))
    assert learned.bulk


@pytest.mark.parametrize("answer", [error(422, "x"), error(400, "x")])
def test_bulk_that_refuses_everything_is_given_up_soon(answer):
    """If no request of any size is taken, but every span alone, it is bulk that is not to be had."""
    platform, learned = running(pfid(1)), settled()
    platform._bulk = lambda items: answer
    records = [span(pfid(number), pfid(1)) for number in range(100, 150)]
    assert converse(records, platform, learned).delivered == {each.key for each in records}
    assert platform.paths.count("bulk") <= math.ceil(math.log2(50)) + 1
    assert not learned.bulk


def test_what_a_refusal_said():
    """The platform's words are handed on, by key: status and error of a single call, the error of an output."""
    words = orjson.dumps({"status": "error", "code": "c", "message": "m", "errors": {"a": ["b"]}, "x": 1})
    outcome = converse([span(pfid(2), pfid(1))], Script(Response(422, words)), settled())
    assert outcome.said == {pfid(2): '422 {"code":"c","message":"m","errors":{"a":["b"]}}'}
    outcome = converse([finished(pfid(1))], Script(Response(422, b"<html>")), settled())
    assert outcome.said == {pfid(1) + "-finish": "422"}
    outcome = converse([registered(pfid(1))], Script(error(409, "taken", "no")), settled())
    assert outcome.said == {pfid(1) + "-register": '409 {"code":"taken","message":"no"}'}
    platform = running(pfid(1), refuses=names("bad"))
    records = [span(pfid(2), pfid(1), name="bad"), span(pfid(3), pfid(1))]
    outcome = converse(records, platform, settled())
    assert outcome.said == {pfid(2): '{"code":"validation_errors","message":"no"}'}


def test_what_was_said_is_bounded():
    """A long lecture is cut."""
    outcome = converse([finished(pfid(1))], Script(error(422, "c", "\u00e4" * 9_000)), settled())
    assert len(outcome.said[pfid(1) + "-finish"]) <= 1_005


@pytest.mark.parametrize(
    ("answer", "blames"),
    [
        *((Response(status, b""), True) for status in (500, 502, 504, 507, 520)),
        *((Response(status, b""), False) for status in (401, 404, 408, 425, 429, 503, 302)),
        (Response(500, b"", "5"), False),
        (Response(200, b"<html>"), False),
        (Unreachable("refused"), False),
        (Unreachable("reset", broke_off=True), True),
        (Unreachable("no whole answer", is_silent=True), True),
    ],
)
def test_who_is_to_blame(answer, blames):
    """A failure over what was sent may be for one record; being overloaded, away or somebody else is not."""
    for record in (
        registered(pfid(1)),
        started(pfid(1)),
        span(pfid(2), pfid(1)),
        closing(span(pfid(2), pfid(1))),
    ):
        outcome = converse([record], Script(answer), settled())
        assert outcome.trouble
        assert outcome.blames_batch is blames
        assert outcome.is_silent is (isinstance(answer, Unreachable) and answer.is_silent)
    outcome = converse(
        [span(pfid(2), pfid(1)), span(pfid(3), pfid(1))], Script(answer, answer, answer), settled()
    )
    assert outcome.blames_batch is blames


def test_lines_for_people():
    """Each kind of record has a line of JSON that says what it is; what is not JSON has none."""
    outer = span(pfid(2), pfid(1), parent=pfid(9), result=b'{"a":1}')
    records = [
        registered(pfid(1)),
        started(pfid(1)),
        outer,
        announced(outer),
        closing(outer),
        finished(pfid(1)),
        rated(3, pfid(1)),
        rated(4, pfid(1), None),
    ]
    lines = [line_of(each) for each in records]
    assert all(each.endswith(b"\n") and each.count(b"\n") == 1 for each in lines)
    said = [orjson.loads(each) for each in lines]
    assert [each["_type"] for each in said] == [
        "agent_instances/register",
        "agent_instances/start",
        "agent_spans/create",
        "agent_spans/create",
        "agent_spans/finish",
        "agent_instances/finish",
        "agent_instances/record_quality",
        "agent_instances/record_quality",
    ]
    assert (
        said[6].items() >= {"name": "verdict", "payload": {"ok": True}, "agent_instance_id": pfid(1)}.items()
    )
    assert said[7]["payload"] is None
    assert [each["idempotency_key"] for each in said] == [each.key for each in records]
    assert said[2]["details"]["parent_span_id"] == pfid(9)
    assert line_of(span(pfid(2), pfid(1), name="half \udc80")) is None


def test_too_large_alone_is_refused():
    """A single span that is too large is refused, and the others arrive."""
    platform = running(pfid(1), max_items=1, refuses={"big": (413, "too_large")})
    records = [span(pfid(number), pfid(1), name="big" if number == 3 else "small") for number in (2, 3, 4)]
    outcome = converse(records, platform, settled())
    assert outcome.refused == {pfid(3): "refused: too_large"}
    assert outcome.delivered == {pfid(2), pfid(4)}


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_every_2xx_that_names_us_is_a_success(status):
    """Nobody has published which 2xx the platform uses; the record's id in the answer is what counts."""
    script = Script(success({"id": pfid(1)})._replace(status=status))
    assert converse([finished(pfid(1))], script, settled()).delivered == {pfid(1) + "-finish"}


# -- trouble -----------------------------------------------------------------------------------------------

NOW = 1_700_000_000.0
ALL = [
    registered(pfid(1)),
    started(pfid(1)),
    span(pfid(2), pfid(1)),
    span(pfid(3), pfid(1)),
    finished(pfid(1)),
]


def first_answer(answer):
    """Return the outcome of a whole batch whose first request is answered with *answer*."""
    return converse(ALL, Script(answer), settled())


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 520, 599])
@pytest.mark.parametrize("body", [b"", b"<html>", error(1, "overloaded").body])
def test_trouble_that_passes(status, body):
    """These statuses end the conversation; nothing is delivered or refused, and the outbox decides when to go on."""
    outcome = first_answer(Response(status, body))
    assert (outcome.delivered, outcome.refused, outcome.dead) == (frozenset(), {}, {})
    assert outcome.trouble == f"the platform answered {status}"
    assert outcome.retry_after is None
    assert outcome.reachable


def test_unreachable():
    """No answer at all is trouble of its own: nobody is there."""
    outcome = first_answer(Unreachable("ConnectError"))
    assert (outcome.delivered, outcome.refused) == (frozenset(), {})
    assert outcome.trouble == "the platform cannot be reached (ConnectError)"
    assert not outcome.reachable


def http_date(seconds):
    return format_datetime(datetime.fromtimestamp(NOW + seconds, timezone.utc), usegmt=True)


ASCTIME = (datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=90)).strftime("%a %b %d %H:%M:%S %Y")


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("1.5", 1.5),
        ("1000000000", 1e9),
        (http_date(90), 90.0),
        (http_date(0), 0.0),
        ("Tuesday, 14-Nov-23 22:14:50 GMT", 90.0),
        (ASCTIME, 90.0),
        ("Tue, 14 Nov 2023 22:14:50 -0000", 90.0),
        ("Wed, 15 Nov 2023 00:14:50 +0200", 90.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251_702_300_799 - 0.0),
        (http_date(-1), None),
        ("-1", None),
        ("NaN", None),
        ("inf", None),
        ("1e999", None),
        ("", None),
        ("soon", None),
        ("Tue, 99 Nov 2023 99:99:99 GMT", None),
        ("1, 2", None),
        ("\xe9", None),
        ("0" * 10_000, 0.0),
        ("9" * 10_000, None),
    ],
)
def test_retry_after(monkeypatch, zone, text, seconds):
    """`Retry-After` is read as seconds or as any of HTTP's dates, in every time zone; nonsense counts as none."""
    monkeypatch.setitem(os.environ, "TZ", zone)
    time.tzset()
    try:
        if text.startswith("Fri, 31 Dec 9999"):
            seconds = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp() - NOW
        outcome = first_answer(Response(503, b"", text, NOW))
        assert outcome.retry_after == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} \S+")
)
def test_retry_after_is_never_believed_blindly(text):
    """Whatever the header says, the pause is None or a finite number of seconds, not negative."""
    pause = first_answer(Response(429, b"", text, NOW)).retry_after
    assert pause is None or 0 <= pause < float("inf")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [b"", b"<html>", error(1, "bad_authtoken").body])
def test_a_refused_token(status, body):
    """401 and 403 pause for a minute and keep everything: a token may be suspended by mistake."""
    outcome = first_answer(Response(status, body))
    assert (outcome.delivered, outcome.refused, outcome.dead) == (frozenset(), {}, {})
    assert outcome.retry_after == 60
    assert outcome.reachable
    assert "PREFACTOR_API_TOKEN" in outcome.trouble


@pytest.mark.parametrize("status", [100, 101, 300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("body", [b"", success({"id": pfid(1)}).body, error(1, "x").body])
def test_a_redirect_is_never_a_success(status, body):
    """3xx and 1xx settle nothing, whatever their body says."""
    outcome = first_answer(Response(status, body))
    assert (outcome.delivered, outcome.refused, outcome.dead) == (frozenset(), {}, {})
    assert outcome.trouble == f"the platform answered {status}; is this the address of a Prefactor API?"


@pytest.mark.parametrize(
    "status", [402, 404, 405, 406, 407, 410, 411, 414, 415, 417, 418, 421, 426, 431, 451, 501, 505]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"message":"no Route matched with those values"}',
        b'{"detail":"Not Found"}',
        b'["status","error"]',
    ],
)
def test_somebody_elses_refusal_is_not_final(status, body):
    """A gateway that does not know the way must not cost a single record: only the platform's own words are final."""
    outcome = first_answer(Response(status, body))
    assert (outcome.delivered, outcome.refused, outcome.dead) == (frozenset(), {}, {})
    assert outcome.trouble == f"the platform answered {status}; is this the address of a Prefactor API?"


@pytest.mark.parametrize("status", [400, 404, 405, 409, 410, 413, 415, 422, 451, 501, 505])
def test_the_platforms_own_refusal_is_final(status):
    """In the platform's envelope every such status is final: the record is dropped alone, with status and code."""
    script = Script(error(status, "not_for_us"), success({"id": pfid(3)}))
    outcome = converse([span(pfid(2), pfid(1)), announced(span(pfid(3), pfid(1)))][:1], script, settled())
    assert outcome.refused == {pfid(2): "refused: not_for_us"}
    assert outcome.trouble is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refusals_about_what_was_sent_are_final_in_any_words(status):
    """400, 413 and 422 speak about the request itself, so that nothing would be better the next time."""
    outcome = converse([span(pfid(2), pfid(1))], Script(Response(status, b"<html>")), settled())
    assert outcome.refused == {pfid(2): f"refused: {status}"}


@pytest.mark.parametrize("code", ["a" * 1_000, "two\nlines", "\x1b[31m", "", 7, None, ["a"], {"a": 1}])
def test_a_reason_is_short_and_harmless(code):
    """The reason of a loss goes into log lines: no server can make it long, or break the line."""
    body = orjson.dumps({"status": "error", "code": code})
    (reason,) = converse([span(pfid(2), pfid(1))], Script(Response(422, body)), settled()).refused.values()
    assert reason in ("refused: 422", "refused: " + "a" * 40)


NOT_NAMING_US = {
    "HTML": b"<html>Welcome to the hotel</html>",
    "nothing": b"",
    "half": b'{"status":"success","details":{"id":"',
    "a list": b'[{"id":"%b"}]' % pfid(1).encode(),
    "a string": b'"%b"' % pfid(1).encode(),
    "null": b"null",
    "NaN": b'{"details":NaN}',
    "not UTF-8": b'{"details":"\xff"}',
    "too deep": b'{"a":' * 100_000,
    "no details": b'{"status":"success"}',
    "details that are none": b'{"status":"success","details":["%b"]}' % pfid(1).encode(),
    "no id": b'{"status":"success","details":{"type":"agent_instance"}}',
    "an id that is none": b'{"status":"success","details":{"id":7,"type":"agent_instance"}}',
    "another id": success({"id": pfid(77)}).body,
    "an error in a 200": orjson.dumps({"status": "error", "code": "x", "details": {"id": pfid(1)}}),
}


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("body", NOT_NAMING_US.values(), ids=NOT_NAMING_US.keys())
@pytest.mark.parametrize(
    "record",
    [
        registered(pfid(1)),
        started(pfid(1)),
        span(pfid(1), pfid(8)),
        announced(span(pfid(1), pfid(8))),
        closing(span(pfid(1), pfid(8))),
        finished(pfid(1)),
    ],
    ids=["register", "start", "create", "announce", "finish of a span", "finish"],
)
def test_a_success_that_does_not_name_us_is_none(record, body, status):
    """A captive portal, a proxy, a truncated answer: a 2xx that does not name our record never delivers it."""
    outcome = converse([record], Script(Response(status, body)), settled())
    assert (outcome.delivered, outcome.refused, outcome.dead) == (frozenset(), {}, {})
    assert outcome.trouble.startswith("the platform answered")
    assert outcome.reachable


@pytest.mark.parametrize("body", NOT_NAMING_US.values(), ids=NOT_NAMING_US.keys())
def test_nor_in_bulk(body):
    """The same in bulk: not believed, whether it ends the conversation or leads to single calls."""

    class Portal:
        def answer(self, request):
            return Response(200, body)

    outcome = converse([span(pfid(1), pfid(8)), span(pfid(2), pfid(8))], Portal(), settled())
    assert outcome.delivered == frozenset()
    assert outcome.refused == {}
    assert outcome.trouble is not None


def test_what_was_settled_before_the_trouble_stays_settled():
    """Trouble in the middle: what was acknowledged is delivered, the rest is named nowhere and sent again."""
    platform = Platform()

    class Dying:
        def answer(self, request):
            return Unreachable("reset") if platform.paths[-1:] == ["bulk"] else platform.answer(request)

    outcome = converse(ALL, Dying(), settled())
    assert outcome.delivered == {each.key for each in ALL[:-1]}
    assert outcome.trouble is not None
    assert not outcome.reachable
    again = converse(ALL, platform, settled())
    assert again.delivered == {each.key for each in ALL}
    assert len(platform.spans) == 2


# -- states ------------------------------------------------------------------------------------------------


def test_a_state_that_is_past_already():
    """409 on start and finish says that the platform holds the state, or a later one: that is delivered."""
    script = Script(*[error(409, "invalid_action")] * 3)
    outcome = converse(
        [started(pfid(1)), closing(span(pfid(2), pfid(1))), finished(pfid(1))], script, settled()
    )
    assert outcome.delivered == {pfid(1) + "-start", pfid(2) + "-end", pfid(1) + "-finish"}
    assert outcome.notes == ()


def test_a_create_that_conflicts_is_refused():
    """409 on a create means that the platform will not take the span, such as of a run that is over."""
    outcome = converse([span(pfid(2), pfid(1))], Script(error(409, "invalid_action")), settled())
    assert outcome.refused == {pfid(2): "refused: invalid_action"}


@pytest.mark.parametrize("status", [400, 409, 422])
@pytest.mark.parametrize(
    "record", [finished(pfid(1), "cancelled"), closing(span(pfid(1), pfid(8), status="cancelled"))]
)
def test_cancelled_becomes_failed_where_it_is_refused(record, status):
    """A platform that refuses `cancelled` gets `failed` under a key of its own, and the ledger a note."""
    script = Script(error(status, "invalid_action"), success({"id": pfid(1)}))
    outcome = converse([record], script, settled())
    assert outcome.delivered == {record.key}
    first, second = (body for _, body in script.requests)
    assert second == {**first, "status": "failed", "idempotency_key": record.key + "-failed"}
    (note,) = outcome.notes
    assert note.endswith("finished as failed: the platform refused cancelled")


@pytest.mark.parametrize(
    "record", [finished(pfid(1), "cancelled"), closing(span(pfid(1), pfid(8), status="cancelled"))]
)
def test_no_note_is_made_of_what_did_not_happen(record):
    """If the state was past already, nothing was finished as failed; if trouble came, nothing is known yet."""
    past = converse([record], Script(error(409, "invalid_action"), error(409, "invalid_action")), settled())
    assert (past.delivered, past.notes) == ({record.key}, ())
    troubled = converse([record], Script(error(409, "invalid_action"), Response(503, b"")), settled())
    assert (troubled.delivered, troubled.refused, troubled.notes) == (frozenset(), {}, ())


def test_cancelled_is_cancelled_where_it_may_be():
    """A platform that takes `cancelled` is asked once."""
    platform = running(pfid(1))
    outcome = converse([finished(pfid(1), "cancelled")], platform, settled())
    assert outcome.notes == ()
    assert platform.instances[pfid(1)]["status"] == "cancelled"
    assert len(platform.requests) == 1


# -- control -----------------------------------------------------------------------------------------------

CONTROL = {"terminate": True, "reason": "over budget"}


def test_control_is_heard_in_every_span_answer():
    """Single create, each output of a bulk, and a span's finish carry the word that stops the run."""
    one, two = pfid(1), pfid(2)
    platform = running(one, two, terminated={one: "over budget", two: None})
    single = converse([span(pfid(11), one)], platform, settled())
    bulk = converse(
        [span(pfid(12), one), span(pfid(21), two), announced(span(pfid(22), two))], platform, settled()
    )
    end = converse([closing(span(pfid(22), two))], platform, settled())
    assert single.terminated == {one: "over budget"}
    assert bulk.terminated == {one: "over budget", two: None}
    assert end.terminated == {two: None}
    assert single.delivered | bulk.delivered | end.delivered == {
        *map(pfid, (11, 12, 21)),
        pfid(22) + "-open",
        pfid(22) + "-end",
    }


@pytest.mark.parametrize(("second", "heard"), [(pfid(1), {pfid(1): "over budget"}), (pfid(7), {})])
def test_control_beside_the_outputs(second, heard):
    """Control at the top of a bulk answer is believed if the request was about one run; else nobody knows which."""
    records = [span(pfid(2), pfid(1)), span(pfid(3), second)]
    outputs = {each.key: orjson.loads(success({"id": each.id}).body) for each in records}
    script = Script(Response(200, orjson.dumps({"outputs": outputs, "control": CONTROL})))
    assert converse(records, script, settled()).terminated == heard


@pytest.mark.parametrize(
    "control",
    [None, True, [], {}, {"terminate": False}, {"terminate": "true"}, {"terminate": 1}, {"reason": "x"}],
)
def test_only_a_clear_word_stops_a_run(control):
    """Anything but `terminate: true` stops nothing."""
    script = Script(success({"id": pfid(2)}, control=control))
    assert converse([span(pfid(2), pfid(1))], script, settled()).terminated == {}


@pytest.mark.parametrize(
    ("given_reason", "heard"), [(7, None), (None, None), ("x" * 5_000, "x" * 1_000), ("", "")]
)
def test_reasons_are_text_of_bounded_length(given_reason, heard):
    """The reason reaches the user's exception: text only, and not without end."""
    script = Script(success({"id": pfid(2)}, control={"terminate": True, "reason": given_reason}))
    assert converse([span(pfid(2), pfid(1))], script, settled()).terminated == {pfid(1): heard}


@pytest.mark.parametrize("record", [started(pfid(1)), finished(pfid(1))])
def test_an_instance_that_is_terminated_already(record):
    """Instance calls carry no control, but their details say `terminated`."""
    script = Script(success({"id": pfid(1), "status": "terminated", "termination_reason": "over budget"}))
    assert converse([record], script, settled()).terminated == {pfid(1): "over budget"}


# -- instances that are not to be --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_an_instance_refused_at_register_is_dead(status):
    """None of its records is sent; those of other runs are."""
    dead = [
        registered(pfid(5)),
        started(pfid(5)),
        span(pfid(6), pfid(5)),
        closing(span(pfid(7), pfid(5))),
        finished(pfid(5)),
    ]
    script = Script(error(status, "no"), success({"id": pfid(21)}), success({"id": pfid(2)}))
    outcome = converse([*dead, span(pfid(21), pfid(2)), finished(pfid(2))], script, settled())
    assert outcome.refused == {pfid(5) + "-register": "refused: no"}
    assert outcome.dead == {pfid(5): "instance refused: no"}
    assert outcome.delivered == {pfid(21), pfid(2) + "-finish"}
    assert [path for path, _ in script.requests[1:]] == ["agent_spans", f"agent_instance/{pfid(2)}/finish"]


def test_an_instance_unknown_at_start_is_dead():
    """A start that is answered 404 by the platform: the run is not there, and nothing more is sent of it."""
    script = Script(error(404, "not_found"))
    outcome = converse([started(pfid(1)), span(pfid(2), pfid(1)), finished(pfid(1))], script, settled())
    assert outcome.refused == {pfid(1) + "-start": "refused: not_found"}
    assert outcome.dead == {pfid(1): "instance refused: not_found"}
    assert outcome.delivered == frozenset()


def test_a_start_refused_for_another_reason_kills_nothing():
    """Spans may be written to a run that is pending still."""
    script = Script(error(422, "validation_errors"), success({"id": pfid(2)}))
    outcome = converse([started(pfid(1)), span(pfid(2), pfid(1))], script, settled())
    assert outcome.dead == {}
    assert outcome.delivered == {pfid(2)}


# -- what JSON cannot say ----------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [True, False])
def test_a_name_that_is_no_text_costs_one_span(single):
    """Half a character in a span's name cannot be sent: that span is refused, its neighbours arrive."""
    platform = running(pfid(1))
    records = [
        span(pfid(2), pfid(1), name="half \udc80"),
        span(pfid(3), pfid(1)),
        span(pfid(4), pfid(1), parent=pfid(2)),
    ]
    if single:
        records = records[:1]
    outcome = converse(records, platform, settled())
    assert outcome.refused == {pfid(2): "not sendable: it cannot be written as JSON"}
    assert outcome.delivered == {each.key for each in records[1:]}
    assert outcome.trouble is None


def changed_later(**parts):
    """A span type whose parts have become something else after it was made, and looked at."""
    kind = SpanType("a")
    for name, value in parts.items():
        object.__setattr__(kind, name, value)
    return kind


@pytest.mark.parametrize(
    "schema",
    [
        Schema((changed_later(params_schema={"enum": {1, 2}}),)),
        Schema((changed_later(params_schema={"enum": {1, 2}}),), "named"),
        Schema((changed_later(description="half \udc80"),)),
        Schema((changed_later(data_risk={"when": object()}),)),
    ],
)
def test_a_schema_that_is_no_json_costs_one_run(schema):
    """A run whose schema cannot be sent is dead; the conversation goes on with the others."""
    platform = Platform()
    batch = [
        registered(pfid(1), schema=schema),
        registered(pfid(2)),
        span(pfid(11), pfid(1)),
        span(pfid(21), pfid(2)),
    ]
    outcome = converse(batch, platform, settled())
    assert outcome.dead == {pfid(1): "instance not sendable: it cannot be written as JSON"}
    assert outcome.refused.keys() == {pfid(1) + "-register"}
    assert outcome.delivered == {pfid(2) + "-register", pfid(21)}


def test_the_platform_is_the_judge():
    """A schema of a shape that our models do not know is sent all the same."""
    odd = SpanType("tool:x", data_risk={"action_profile": {"read_data": True}})
    platform, record = Platform(), registered(pfid(1))._replace(schema=Schema((odd,)))
    assert converse([record], platform).delivered == {record.key}
    (body,) = [body for path, body in platform.requests if path.endswith("register")]
    (sent,) = body["agent_schema_version"]["span_type_schemas"]
    assert sent["data_risk"]["action_profile"] == {"read_data": True}


# -- what comes again --------------------------------------------------------------------------------------


REPEATED = pytest.mark.parametrize(
    "repeated",
    [
        error(409, "invalid_action"),
        error(409, "a word of its own"),
        error(422, "validation_errors", "is taken"),
    ],
    ids=["409", "409 of its own", "422"],
)


@LOST
@REPEATED
@pytest.mark.parametrize(("path", "count"), [("agent_instance/register", 1), ("agent_spans", 1), ("bulk", 2)])
def test_what_is_refused_as_a_repetition_is_done(lost, repeated, path, count):
    """The answer was lost, and the platform refuses what it holds already: nothing is given up, nothing is twice."""
    platform, learned = Platform(), settled()
    platform.repeats = repeated
    run = pfid(1)
    spans = [span(pfid(10 + number), run) for number in range(count)]
    batch = [registered(run), started(run), *spans, finished(run)]
    first = converse(batch, Lossy(platform, path, lost), learned)
    assert first.trouble
    left = [each for each in batch if each.key not in first.delivered]
    second = converse(left, platform, learned)

    assert second.delivered == {each.key for each in left}
    assert (second.refused, second.dead, second.trouble) == ({}, {}, None)
    assert platform.instances.keys() == {run}
    assert platform.instances[run]["status"] == "complete"
    assert {key: each["status"] for key, each in platform.spans.items()} == {
        each.id: "complete" for each in spans
    }


@REPEATED
def test_a_repetition_over_a_second_connection(repeated):
    """The first of two has hung up, and the second refuses: within one request, a first attempt is none."""
    platform, learned = Platform(), settled()
    platform.repeats = repeated
    run = pfid(1)
    batch = [registered(run), started(run), span(pfid(2), run)]

    class Twice:
        def answer(self, request):
            platform.answer(request)
            return platform.answer(request)._replace(is_second=True)

    outcome = converse(batch, Twice(), learned)
    if repeated.status == 409:
        assert outcome.delivered == {each.key for each in batch}
    else:  # a start is not refused as wrong because it has been made
        assert outcome.delivered == {batch[0].key, batch[2].key}


def test_an_announcement_that_is_refused_as_a_repetition():
    """The span is there, and is finished later; that would be refused if it were not."""
    run, learned = pfid(1), settled()
    platform = running(run, repeats=error(409, "invalid_action"))
    record = span(pfid(2), run)
    assert converse([announced(record)], Lossy(platform, "agent_spans", Response(502, b"")), learned).trouble
    assert platform.spans[pfid(2)]["status"] == "active"
    assert converse([announced(record)], platform, learned).delivered == {record.key + "-open"}
    assert platform.spans[pfid(2)]["status"] == "active"
    assert converse([closing(record)], platform, learned).delivered == {record.key + "-end"}
    assert platform.spans[pfid(2)]["status"] == "complete"


@pytest.mark.parametrize("status", [409, 422])
def test_a_run_that_was_not_there_in_spite_of_a_lost_answer(status):
    """Its start tells; the run is given up, and for what its registration was refused for."""
    run, learned = pfid(1), settled()
    batch = [registered(run), started(run), span(pfid(2), run)]
    assert converse(batch, Script(Response(502, b"")), learned).trouble
    script = Script(error(status, "no", "your name is odd"), error(404, "not_found"))
    outcome = converse(batch, script, learned)

    assert outcome.dead == {run: "instance refused: no"}
    assert outcome.refused == {run + "-start": "refused: no"}
    assert "your name is odd" in outcome.said[run + "-start"]


@pytest.mark.parametrize("status", [409, 422])
def test_a_span_that_was_not_there_in_spite_of_a_lost_answer(status):
    """Its finish tells, which the platform makes of no span it does not know; and the span is refused as ever."""
    run, learned = pfid(1), settled()
    record = span(pfid(2), run)
    assert converse([record], Script(Response(502, b"")), learned).trouble
    script = Script(error(status, "no", "your name is odd"), error(404, "not_found"))
    outcome = converse([record], script, learned)

    assert outcome.refused == {record.key: "refused: no"}
    assert "your name is odd" in outcome.said[record.key]
    assert [path for path, _ in script.requests] == ["agent_spans", f"agent_spans/{pfid(2)}/finish"]


@pytest.mark.parametrize("status", [409, 422])
def test_a_first_attempt_that_is_refused_is_no_repetition(status):
    """Then the id is somebody else's, or the run is over; nothing is asked further."""
    run, learned = pfid(1), settled()
    record = span(pfid(2), run)
    for answer in (Unreachable("nobody there"), Response(429, b"")):  # of which nothing was lost
        assert converse([registered(run)], Script(answer), learned).trouble
        assert converse([record], Script(answer), learned).trouble
    assert converse([registered(run)], Script(error(status, "no")), learned).dead.keys() == {run}
    assert converse([record], Script(error(status, "no")), learned).refused.keys() == {record.key}


def test_a_wrong_id_is_no_repetition():
    """A registration whose answer was lost is refused, but its id was made for another account: it gets one of this."""
    platform, learned = Platform(), Learned()
    batch = [registered(pfid(1, ELSEWHERE)), started(pfid(1, ELSEWHERE))]
    assert converse(batch, Script(Response(503, b"")), learned).trouble
    outcome = converse(batch, platform, learned)
    assert outcome.delivered == {each.key for each in batch}
    assert outcome.partition == HERE


# -- ids ---------------------------------------------------------------------------------------------------


def test_the_partition_is_learned_from_the_first_register():
    """Where no ids are handed out, the first run is registered without id; all later ids are moved to the partition."""
    platform = Platform()
    platform.has_generator = False
    learned = Learned()
    one, two = pfid(1, NOWHERE), pfid(2, NOWHERE)
    batch = [
        registered(one),
        started(one),
        span(pfid(11, NOWHERE), one),
        span(pfid(12, NOWHERE), one, parent=pfid(11, NOWHERE)),
        finished(one),
        registered(two),
    ]
    outcome = converse(batch, platform, learned)
    assert outcome.delivered == {each.key for each in batch}
    assert outcome.partition == learned.partition == HERE
    (first, second) = [body for path, body in platform.requests if path.endswith("register")]
    assert "id" not in first
    assert first["idempotency_key"] == one + "-register-unnamed"
    assert second["id"] == pfid(2)
    theirs = pfid(9_000_001)
    assert outcome.renamed == {one: theirs, two: pfid(2)}
    assert platform.instances[theirs]["status"] == "complete"
    assert {key: each["agent_instance_id"] for key, each in platform.spans.items()} == {
        pfid(11): theirs,
        pfid(12): theirs,
    }
    assert platform.spans[pfid(12)]["parent_span_id"] == pfid(11)
    later = converse([span(pfid(13, NOWHERE), one, parent=pfid(12, NOWHERE))], platform, learned)
    assert later.delivered == {pfid(13, NOWHERE)}
    assert platform.spans[pfid(13)]["parent_span_id"] == pfid(12)


def test_a_known_partition_needs_no_mapping():
    """Ids of the account's own partition are sent and stay as they are."""
    platform = Platform()
    outcome = converse(ALL, platform)
    assert outcome.renamed == {}
    assert platform.requests[0][1]["id"] == pfid(1)


def test_ids_of_another_account():
    """A hint that was wrong, or a destination that changed: the run is registered anew and its spans are moved."""
    platform = Platform()
    batch = [
        registered(pfid(1, ELSEWHERE)),
        started(pfid(1, ELSEWHERE)),
        span(pfid(2, ELSEWHERE), pfid(1, ELSEWHERE)),
        span(pfid(3, ELSEWHERE), pfid(1, ELSEWHERE), parent=pfid(2, ELSEWHERE)),
        registered(pfid(4, ELSEWHERE)),
    ]
    outcome = converse(batch, platform)
    assert outcome.delivered == {each.key for each in batch}
    named, unnamed, *_, other = [body for path, body in platform.requests if path.endswith("register")]
    assert named["id"] == pfid(1, ELSEWHERE)
    assert unnamed == {
        **{key: value for key, value in named.items() if key != "id"},
        "idempotency_key": pfid(1, ELSEWHERE) + "-register-unnamed",
    }
    assert other["id"] == pfid(4)
    assert platform.spans[pfid(3)]["parent_span_id"] == pfid(2)
    assert outcome.partition == HERE


def test_a_register_that_is_really_wrong_is_asked_twice_at_most():
    """If it was not the id, the second refusal is final; and so is the first, if the id was made for this account."""
    script = Script(*[error(422, "validation_errors")] * 2)
    assert converse([registered(pfid(1))], script).dead.keys() == {pfid(1)}
    script = Script(error(422, "validation_errors"))
    assert converse([registered(pfid(1))], script, settled()).dead.keys() == {pfid(1)}
    script = Script(error(404, "not_found"), error(422, "validation_errors"))
    assert converse([registered(pfid(1, NOWHERE))], script).dead.keys() == {pfid(1, NOWHERE)}


def test_a_run_that_a_dead_process_has_registered_without_an_id():
    """Its answer was lost with the process. It is asked for again under the key of then, and the spans follow."""
    theirs, ours = pfid(77), pfid(1, NOWHERE)
    script = Script(
        error(422, "validation_errors", "this identifier is taken"),
        success({"id": theirs, "type": "agent_instance"}),
        success({"id": theirs, "type": "agent_instance", "status": "active"}),
    )
    batch = [registered(ours), started(ours)]
    learned = settled()
    outcome = converse(batch, script, learned)
    assert outcome.delivered == {each.key for each in batch}
    assert outcome.renamed == {ours: theirs}
    named, unnamed, start = script.requests
    assert named[1]["id"] == pfid(1)
    assert unnamed[1]["idempotency_key"] == ours + "-register-unnamed"
    assert "id" not in unnamed[1]
    assert theirs in start[0]


@LOST
def test_a_run_registered_without_an_id_of_which_the_answer_is_lost(lost):
    """It is asked for in the same way again, though the partition is known by then; else it would be two runs."""
    platform, learned = Platform(), Learned()
    platform.has_generator = False
    one = pfid(1, NOWHERE)
    script = Script(error(404, "not_found"), lost)
    assert converse([registered(one)], script, learned).trouble
    platform.answer(Request(script.requests[-1][0], orjson.dumps(script.requests[-1][1])))

    converse([registered(pfid(2))], platform, learned)
    assert learned.partition == HERE
    batch = [registered(one), started(one), span(pfid(11, NOWHERE), one), finished(one)]
    outcome = converse(batch, platform, learned)

    assert outcome.delivered == {each.key for each in batch}
    assert len(platform.instances) == 2
    assert platform.instances[outcome.renamed[one]]["status"] == "complete"


@pytest.mark.parametrize(
    "answer", [Unreachable("refused"), Response(429, b"")], ids=["nobody there", "too much"]
)
def test_a_run_that_was_certainly_not_registered_without_an_id(answer):
    """As soon as the partition is known, it is registered under the id that other processes know."""
    learned = Learned()
    one = pfid(1, NOWHERE)
    assert converse([registered(one)], Script(error(404, "not_found"), answer), learned).trouble
    platform = Platform()
    assert converse([registered(one)], platform, settled(learned)).delivered == {one + "-register"}
    assert platform.instances.keys() == {pfid(1)}


def test_lost_answers_are_not_remembered_for_ever():
    """Only the latest are, so that a long outage costs no memory."""
    learned = Learned()
    for number in range(10_010):
        learned.doubt(f"key-{number:05}")
    assert len(learned.doubtful) == 10_000
    assert next(iter(learned.doubtful)) == "key-00010"


def test_the_partition_is_asked_for_before_an_id_without_one_is_used():
    """All ids keep their random parts, so that other processes, which know only those, name the same run."""
    platform, learned = Platform(), Learned()
    one = pfid(1, NOWHERE)
    batch = [registered(one), started(one), span(pfid(11, NOWHERE), one), finished(one)]
    outcome = converse(batch, platform, learned)
    assert outcome.delivered == {each.key for each in batch}
    assert platform.requests[0] == ("pfid/generate", {"count": 1})
    assert platform.paths == ["generate", "register", "start", "agent_spans", "finish"]
    assert outcome.partition == HERE
    assert platform.requests[1][1]["id"] == pfid(1)
    assert platform.requests[1][1]["idempotency_key"] == one + "-register"
    converse([registered(pfid(2, NOWHERE))], platform, learned)
    assert platform.paths.count("generate") == 1


@pytest.mark.parametrize(
    "batch", [[], [registered(pfid(1))], [span(pfid(2), pfid(1))]], ids=["none", "run", "span"]
)
def test_the_partition_is_not_asked_for_in_vain(batch):
    """Ids with a partition need no other."""
    platform = running(pfid(1))
    converse(batch, platform)
    assert "generate" not in platform.paths


@pytest.mark.parametrize(
    "record",
    [
        span(pfid(2, NOWHERE), pfid(1), parent=pfid(3)),
        span(pfid(2), pfid(1, NOWHERE), parent=pfid(3)),
        span(pfid(2), pfid(1), parent=pfid(3, NOWHERE)),
    ],
    ids=["span", "run", "parent"],
)
def test_one_id_of_a_span_without_partition_is_reason_enough(record):
    """A process that sends only spans of somebody else's run, or those that a dead one has left, needs it, too."""
    platform = running(pfid(1))
    platform.spans[pfid(3)] = {}
    assert converse([record], platform).delivered == {record.key}
    assert platform.paths == ["generate", "agent_spans"]
    details = platform.requests[-1][1]["details"]
    ids = [details[name] for name in ("id", "agent_instance_id", "parent_span_id")]
    assert ids == [pfid(2), pfid(1), pfid(3)]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_ask(status):
    """The partition is not asked for again; whether the token is good for anything, the next request tells."""
    learned = Learned()
    record = registered(pfid(1, NOWHERE))
    theirs = success({"type": "agent_instance", "id": pfid(5), "status": "pending"})
    script = Script(Response(status, b""), theirs)
    assert converse([record], script, learned).delivered == {record.key}
    assert [path for path, _ in script.requests] == ["pfid/generate", "agent_instance/register"]
    script = Script(Response(401, b""))
    assert converse([registered(pfid(2, NOWHERE))], script, learned).retry_after == 60
    assert [path for path, _ in script.requests] == ["agent_instance/register"]


@pytest.mark.parametrize(
    "answer",
    [Response(500, b""), Response(404, b"<html>"), Response(200, b""), Response(429, b"", "3")],
    ids=["500", "404 of somebody", "200 of somebody", "429"],
)
def test_the_partition_is_asked_for_three_times_at_most(answer):
    """Trouble ends the conversation twice; then runs are registered without ids of ours, rather than never."""
    learned = Learned()
    record = registered(pfid(1, NOWHERE))
    for _ in range(2):
        script = Script(answer)
        outcome = converse([record], script, learned)
        assert outcome.trouble
        assert outcome.delivered == outcome.refused.keys() == set()
    script = Script(answer, success({"type": "agent_instance", "id": pfid(5), "status": "pending"}))
    outcome = converse([record], script, learned)
    assert outcome.delivered == {record.key}
    assert "id" not in script.requests[1][1]
    assert outcome.partition == HERE


def test_nobody_was_asked_while_nobody_was_there():
    """An outage at the start does not use up the tries: as soon as the platform is there, it is asked."""
    platform, learned = Platform(), Learned()
    record = registered(pfid(1, NOWHERE))
    for _ in range(10):
        script = Script(*[Unreachable("refused")] * 2)
        assert not converse([record], script, learned).reachable
    assert converse([record], platform, learned).delivered == {record.key}
    assert platform.paths == ["generate", "register"]


def test_asking_for_the_partition_blames_nobody():
    """If the platform fails over this question, it is not for the records of the batch."""
    assert not converse([registered(pfid(1, NOWHERE))], Script(Response(500, b""))).blames_batch


@pytest.mark.parametrize("pfids", [[], None, "x", [None], ["not an id"], {}])
def test_an_answer_without_an_id_teaches_nothing(pfids):
    """Then the run is registered without an id of ours, in the same conversation."""
    learned = Learned()
    reply = Response(200, orjson.dumps({"status": "success", "pfids": pfids}))
    script = Script(reply, success({"type": "agent_instance", "id": pfid(5)}))
    outcome = converse([registered(pfid(1, NOWHERE))], script, learned)
    assert outcome.renamed == {pfid(1, NOWHERE): pfid(5)}
    assert script.requests[1][1]["idempotency_key"].endswith("-register-unnamed")


def test_a_platform_that_makes_its_own_ids():
    """Where the platform answers with another id, all later requests use that one: parents, finishes, other runs."""
    platform = Platform()
    platform.keeps_ids = False
    learned = Learned()
    outer = span(pfid(2), pfid(1))
    first = converse([registered(pfid(1)), started(pfid(1)), announced(outer)], platform, learned)
    second = converse(
        [span(pfid(3), pfid(1), parent=pfid(2)), closing(outer), finished(pfid(1))], platform, learned
    )
    assert first.delivered | second.delivered == {
        *(pfid(1) + suffix for suffix in ("-register", "-start", "-finish")),
        pfid(2) + "-open",
        pfid(2) + "-end",
        pfid(3),
    }
    instance_id, outer_id, inner_id = (pfid(9_000_000 + number) for number in (1, 2, 3))
    assert first.renamed == {pfid(1): instance_id, pfid(2): outer_id}
    assert platform.instances[instance_id]["status"] == "complete"
    assert platform.spans[outer_id]["status"] == "complete"
    assert platform.spans[inner_id]["parent_span_id"] == outer_id
    assert platform.spans[inner_id]["agent_instance_id"] == instance_id


def test_an_answer_about_another_run_is_not_ours():
    """Another id is believed only if the answer names our run beside it."""
    for details in (
        {"id": pfid(9)},
        {"id": pfid(9), "agent_instance_id": pfid(8)},
        {"id": "x", "agent_instance_id": pfid(1)},
    ):
        outcome = converse([span(pfid(2), pfid(1))], Script(success(details)), settled())
        assert outcome.delivered == frozenset()
        assert outcome.renamed == {}
    for details in (
        {"id": pfid(9)},
        {"id": pfid(9), "type": "agent_span"},
        {"id": "x", "type": "agent_instance"},
        {"id": pfid(9, ELSEWHERE), "type": "agent_instance"},  # all ids of an account are in its partition
    ):
        outcome = converse([registered(pfid(1))], Script(success(details)), settled())
        assert outcome.delivered == frozenset()


def test_the_partition_never_changes():
    """An answer from a strange partition renames one record; ids that were sent before keep their meaning."""
    learned = settled()
    strange = pfid(9, ELSEWHERE)
    script = Script(
        success({"id": pfid(2)}),
        success({"id": strange, "agent_instance_id": pfid(1)}),
        success({"id": pfid(4)}),
    )
    records = [
        span(pfid(2, NOWHERE), pfid(1)),
        span(pfid(3, NOWHERE), pfid(1)),
        span(pfid(4, NOWHERE), pfid(1), parent=pfid(2, NOWHERE)),
    ]
    learned.bulk = False
    outcome = converse(records, script, learned)
    assert outcome.partition == HERE
    assert outcome.renamed == {pfid(3, NOWHERE): strange}
    assert script.requests[2][1]["details"]["id"] == pfid(4)
    assert script.requests[2][1]["details"]["parent_span_id"] == pfid(2)


def test_what_was_learned_is_bounded():
    """Mappings are forgotten when there are very many; never one that is still being asked for."""
    learned = Learned()
    learned.learn(pfid(1), pfid(9_000_001))
    for number in range(100, 60_100):
        learned.learn(pfid(number), pfid(9_000_000 + number))
        assert learned.wire_id(pfid(1)) == pfid(9_000_001)
    assert len(learned.renamed) == 50_000
    assert learned.wire_id(pfid(100)) == pfid(100)
    assert learned.wire_id(pfid(60_099)) == pfid(9_060_099)


# -- any server at all -------------------------------------------------------------------------------------

INSTANCES = [pfid(1), pfid(2, NOWHERE), pfid(3, ELSEWHERE)]
SPANS = [pfid(number, partition) for number in range(10, 16) for partition in (HERE, NOWHERE)]


@st.composite
def batches(draw):
    """Draw a batch: some facts of some runs, and a forest of spans, in an order that the outbox could bring."""
    batch = []
    runs = draw(st.lists(st.sampled_from(INSTANCES), unique=True, min_size=1))
    for run in runs:
        facts = [
            registered(run),
            started(run),
            finished(run, draw(st.sampled_from(["complete", "cancelled"]))),
        ]
        batch += draw(st.lists(st.sampled_from(facts), unique=True))
    ids = draw(st.lists(st.sampled_from(SPANS), unique=True))
    for place, span_id in enumerate(ids):
        record = span(
            span_id,
            draw(st.sampled_from(runs)),
            parent=draw(st.none() | st.sampled_from([*ids[:place], pfid(99)])),
            status=draw(st.sampled_from(["complete", "failed", "cancelled"])),
            name=draw(st.sampled_from(["good", "half \udc80"])),
            result=draw(st.sampled_from([None, b"{}", b'{"a":1}'])),
            error=draw(st.sampled_from([None, FAILURE])),
        )
        batch.append(draw(st.sampled_from([record, announced(record), closing(record)])))
    for number in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(["good", "half \udc80"]))
        quality = rated(30 + number, draw(st.sampled_from(runs)), draw(st.sampled_from([None, b"{}"])), name)
        batch.insert(draw(st.integers(0, len(batch))), quality)
    return batch


WORDS = [
    *INSTANCES,
    *SPANS,
    *(pfid(9_000_000 + number) for number in range(3)),
    *("success", "error", "terminated", "agent_instance", "bad_request", "not_found", "strange"),
]
KEYS = [
    "status",
    "details",
    "outputs",
    "control",
    "terminate",
    "reason",
    "code",
    "id",
    "agent_instance_id",
    "type",
]
KEYS += [record_id + suffix for record_id in SPANS for suffix in ("", "-open")]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
BODIES = JSON.map(orjson.dumps) | st.binary(max_size=20)
STATUSES = st.sampled_from([200, 200, 201, 204, 301, 400, 401, 404, 408, 409, 413, 422, 429, 500, 501, 503])
ANSWERS = st.one_of(
    st.sampled_from(["honest", "honest", "nameless", "partly"]),
    st.builds(Response, STATUSES, BODIES, st.none() | st.text(max_size=5), is_second=st.booleans()),
    st.just(Unreachable("gone")),
    st.just(Unreachable("reset", broke_off=True)),
)


class Fickle:
    """Answers from a list: an answer, or what an honest platform would say, whole or maimed. Notes everything."""

    def __init__(self, answers, traits):
        self.platform = Platform()
        for name, value in traits.items():
            setattr(self.platform, name, value)
        self._answers = list(answers)
        self.exchanges = []
        self.lost = set()  # keys of what was perhaps done, and nobody has heard of

    def answer(self, request):
        answer = self._answers.pop(0) if self._answers else "honest"
        if isinstance(answer, str):
            answer = self._maimed(self.platform.answer(request), answer)
        body = orjson.loads(request.body)
        self.exchanges.append((request.path, body, answer))
        is_heard = isinstance(answer, Response) and answer.status < 500
        if answer.is_second or not (is_heard or answer == Unreachable("gone")):
            self.lost.update(
                each["idempotency_key"] for each in body.get("items", [body]) if "idempotency_key" in each
            )
        return answer

    def _maimed(self, answer, how):
        body = orjson.loads(answer.body)
        if how == "nameless":
            body.get("details", {}).pop("id", None)
        if how == "partly" and body.get("outputs"):
            body["outputs"].popitem()
        return answer._replace(body=orjson.dumps(body))


def is_acknowledged(record, exchanges, lost):
    """Say whether one of *exchanges* lets us believe that the platform has *record*. *lost*: see `Fickle`."""
    return any(
        sent["idempotency_key"].startswith(record.key)
        and (
            says_so(path, sent, status, reply)
            or (sent["idempotency_key"] in lost and says_again(path, sent, status, reply))
        )
        for path, body, answer in exchanges
        if isinstance(answer, Response)
        if path != "pfid/generate"
        for sent, status, reply in parts(path, body, answer)
    )


def parts(path, body, answer):
    """Return what was sent, with what status it was answered, and the answer's JSON; one by one for a bulk."""
    try:
        reply = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        reply = None
    if path != "bulk":
        return [(body, answer.status, reply)]
    outputs = reply.get("outputs") if isinstance(reply, dict) else None
    if not isinstance(outputs, dict):
        return []
    return [(item, answer.status, outputs.get(item["idempotency_key"])) for item in body["items"]]


def says_again(path, sent, status, reply):
    """Say whether the refusal of a repetition can mean that the platform holds what it was about."""
    if path.endswith("register"):
        return status in (400, 409, 422)
    is_open = path in ("bulk", "agent_spans") and "finished_at" not in sent.get("details", sent)
    return is_open and (status == 409 or (isinstance(reply, dict) and reply.get("status") == "error"))


def says_so(path, sent, status, reply):
    if status == 409:
        return path.endswith(("/start", "/finish"))
    details = reply.get("details") if isinstance(reply, dict) and reply.get("status") != "error" else None
    if not 200 <= status < 300 or not isinstance(details, dict):
        return False
    theirs = details.get("id")
    if path.endswith(("/start", "/finish", "/record_quality")):
        return theirs == path.split("/")[1]
    if path.endswith("register"):
        ours, is_about_us = sent.get("id"), details.get("type") == "agent_instance"
    else:
        ours = sent["details"]["id"]
        is_about_us = details.get("agent_instance_id") == sent["details"]["agent_instance_id"]
    return theirs == ours or (is_about_us and isinstance(theirs, str) and _ids.is_pfid(theirs))


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.lists(ANSWERS, max_size=30),
    st.fixed_dictionaries(
        {},
        optional={
            "keeps_ids": st.just(False),
            "has_bulk": st.just(False),
            "max_items": st.integers(1, 4),
            "cancels_active": st.just(False),
            "refuses": st.just(names("good")),
            "spoils": st.just(names("good")),
            "has_generator": st.just(False),
        },
    ),
)
def test_any_conversation_ends_and_tells_the_truth(data, answers, traits):
    """Whatever the batch and the server: bounded requests, no exception, no record in two states, none invented."""
    far_side = Fickle(answers, traits)
    learned = Learned()
    for _ in range(3):  # what was learned in one conversation must not spoil the next
        batch = data.draw(batches())
        far_side.exchanges.clear()
        outcome = converse(batch, far_side, learned)
        keys = {each.key for each in batch}
        assert len(far_side.exchanges) <= 3 * len(batch) + 1
        assert outcome.delivered <= keys
        assert outcome.refused.keys() <= keys
        assert not outcome.delivered & outcome.refused.keys()
        assert outcome.said.keys() <= outcome.refused.keys()
        assert not (outcome.blames_batch and outcome.trouble is None)
        assert outcome.dead.keys() | outcome.terminated.keys() <= {each.instance_id for each in batch}
        left = [each for each in batch if each.key not in {*outcome.delivered, *outcome.refused}]
        if outcome.trouble is None:
            above = {*(each.id for each in left if type(each) is SpanRecord)}
            above |= {key.removesuffix("-open") for key in outcome.refused}
            assert all(each.instance_id in outcome.dead or each.started.parent_id in above for each in left)
        for record in batch:
            if record.key in outcome.delivered:
                assert is_acknowledged(record, far_side.exchanges, far_side.lost)

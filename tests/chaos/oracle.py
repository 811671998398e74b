"""A server that knows what it must be told: the Prefactor API as far as the library uses it, and a judge.

It recomputes each span's content from the name in it (`subjects.content`), stores what is new, and counts what is
wrong: see `Oracle.counts`. How it answers is its *manner*, which may change at any moment. Real sockets.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import orjson
from chaos.subjects import content, result_of
from hostile_server import HostileServer, Peer, Received, response

from prefactor_trace import _ids

PARTITION = "4x99bm"
TOKEN = "oracle-token"
FINAL = ("complete", "failed", "cancelled")

Manner: TypeAlias = Callable[["Oracle", Peer, Received], bool]
"""Deals with one request; says whether the connection goes on."""


class Refused(Exception):
    """An answer other than a success."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status = status
        self.body = {"status": "error", "code": code, "message": message or code}


class Step(NamedTuple):
    """A request that came in: when (monotonic), for what, and in which manner it was dealt with."""

    at: float
    path: str
    manner: str


class Oracle(HostileServer):
    """See the module's docstring.

    Attributes:
        runs: What is stored of runs, by id.
        spans: What is stored of spans, by id.
        named: Ids of spans by the name in their content; more than one is wrong.
        arrived: When a span was first stored, by its name.
        refuses_late: Whether a span of a run that has ended is refused; else it is stored, and counted.
        poison: Says how to refuse a span by its details, None: not at all.
        steps: Every request, in order.
        counts: `duplicate`: told again, the same; harmless. The rest is wrong:
            `altered`: told again under the same key, and not the same, or content that cannot be recomputed;
            `clash`: an id that is taken, under another key; `unknown`: a span without name; `malformed`: no HTTP, no
            JSON or no call of the API; `orphan`: a span before its run or its parent; `foreign`: a span's id of
            another account; `late`: a span that begins after its run has ended here, which forked children may do.
    """

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._behave, port=port)
        self.runs: dict[str, dict[str, Any]] = {}
        self.spans: dict[str, dict[str, Any]] = {}
        self.named: dict[str, list[str]] = {}
        self.arrived: dict[str, float] = {}
        self.poison: Callable[[dict[str, Any]], Refused | None] = lambda _details: None
        self.refuses_late = False
        self.manner: Manner = ok
        self.steps: list[Step] = []
        self.counts: Counter[str] = Counter()
        self.remarks: list[str] = []
        self._replies: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self._storing = threading.Lock()

    @property
    def wrongs(self) -> dict[str, int]:
        """The counts of what must not happen."""
        return {name: count for name, count in self.counts.items() if name not in ("duplicate", "late")}

    def run_called(self, name: str) -> dict[str, Any] | None:
        """Return the run with the external identifier *name*."""
        return next((each for each in self.runs.values() if each.get("external_identifier") == name), None)

    def span_called(self, name: str) -> dict[str, Any] | None:
        """Return the span with *name* in its content."""
        ids = self.named.get(name)
        return self.spans[ids[0]] if ids else None

    # -- HTTP ----------------------------------------------------------------------------------------------

    def _behave(self, peer: Peer) -> None:
        while self.manner is not accept_and_close:
            try:
                request = peer.receive()
            except ValueError:  # its first line or its length is not HTTP's
                self._wrong("malformed", "a request that is no HTTP")
                return
            if request is None:
                return
            self.requests.clear()  # they would weigh as much as everything that was sent
            manner = self.manner
            self.steps.append(
                Step(time.monotonic(), request.target, getattr(manner, "__name__", str(manner)))
            )
            if not manner(self, peer, request):
                return

    def answer(self, request: Received) -> bytes:
        """Store what *request* says, and return the honest answer."""
        with self._storing:
            try:
                return response(200, orjson.dumps(self._answer(request)))
            except Refused as refused:
                return response(refused.status, orjson.dumps(refused.body))

    def _answer(self, request: Received) -> dict[str, Any]:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "unauthorized")
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            body = None
        if request.method != "POST" or not isinstance(body, dict):
            raise self._malformed(f"{request.method} {request.target} with {request.body[:100]!r}")
        path = request.target.removeprefix("/api/v1/")
        if path == "bulk":
            return self._bulk(body)
        if path == "pfid/generate":
            return {"status": "success", "pfids": [_ids.generate(PARTITION) for _ in range(body["count"])]}
        if path == "agent_instance/register":
            return self._once(body, self._register)
        if path == "agent_spans":
            return self._once(body, self._create)
        if found := re.fullmatch(r"agent_instance/([0-9a-z]{32})/(start|finish)", path):
            call = self._start if found[2] == "start" else self._finish
            return self._once(body, lambda it: call(found[1], it))
        if found := re.fullmatch(r"agent_spans/([0-9a-z]{32})/finish", path):
            return self._once(body, lambda it: self._finish_span(found[1], it))
        raise self._malformed(f"there is no call {path}")

    def _bulk(self, body: dict[str, Any]) -> dict[str, Any]:
        items = body.get("items")
        if (
            not isinstance(items, list)
            or not items
            or len({each["idempotency_key"] for each in items}) < len(items)
        ):
            raise self._malformed("a bulk request without items, or with a key twice")
        outputs: dict[str, Any] = {}
        for item in items:
            if item.get("_type") != "agent_spans/create":
                raise self._malformed(f"a bulk item of type {item.get('_type')}")
            try:
                outputs[item["idempotency_key"]] = self._once(item, self._create)
            except Refused as refused:
                if refused.status >= 500:
                    raise
                outputs[item["idempotency_key"]] = refused.body
                break  # as the platform does: what comes behind is not attempted
        return {"status": "success", "outputs": outputs}

    def _once(self, body: dict[str, Any], call: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Do what *body* asks for, unless its key has been here: then the answer is what it was."""
        key = body.get("idempotency_key")
        if not isinstance(key, str) or not 8 <= len(key) <= 64:
            raise self._malformed(f"the idempotency key {key!r}")
        said = orjson.dumps(
            {name: value for name, value in body.items() if name != "_type"}, option=orjson.OPT_SORT_KEYS
        )
        if key in self._replies:
            before, reply = self._replies[key]
            if before == said:
                self.counts["duplicate"] += 1
            else:
                self._wrong("altered", f"{key}: {before.decode()[:1000]} and then {said.decode()[:1000]}")
            return reply
        details = call(body)
        reply = {"status": "success", "details": dict(details)}
        self._replies[key] = (said, reply)
        return reply

    # -- the API -------------------------------------------------------------------------------------------

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        if "agent_version" not in body or "agent_schema_version" not in body:
            raise self._malformed("a register without version or schema")
        own_id = body.get("id") or _ids.generate(PARTITION)
        if not _ids.is_pfid(own_id) or _ids.partition_of(own_id) != PARTITION:
            raise Refused(422, "validation_errors", "an id of another account")
        name = body.get("external_identifier")
        if own_id in self.runs or (name is not None and self.run_called(name) is not None):
            self._wrong("clash", f"the run {own_id} called {name}")
            raise Refused(422, "validation_errors", "this id is taken")
        run = {"type": "agent_instance", "id": own_id, "status": "pending", "external_identifier": name}
        self.runs[own_id] = run
        return run

    def _run(self, own_id: str) -> dict[str, Any]:
        if own_id not in self.runs:
            self._wrong("orphan", f"the run {own_id} is not registered")
            raise Refused(404, "not_found")
        return self.runs[own_id]

    def _start(self, own_id: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self._run(own_id)
        if run["status"] != "pending":
            raise Refused(409, "invalid_action")
        run.update(status="active", started_at=body["timestamp"])
        return run

    def _finish(self, own_id: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self._run(own_id)
        if run["status"] in FINAL:
            raise Refused(409, "invalid_action")
        run.update(status=body["status"], finished_at=body["timestamp"])
        return run

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        details = body.get("details")
        needed = {"id", "agent_instance_id", "schema_name", "status", "payload", "started_at"}
        if not isinstance(details, dict) or not needed <= details.keys():
            raise self._malformed(f"a span without {needed - (details or {}).keys()}")
        if (refused := self.poison(details)) is not None:
            raise refused
        own_id = details["id"]
        if own_id in self.spans:
            self._wrong(
                "clash", f"the span {own_id}: {self.spans[own_id]['status']}, then {details['status']}"
            )
            raise Refused(422, "validation_errors", "this id is taken")
        if not _ids.is_pfid(own_id) or _ids.partition_of(own_id) != PARTITION:
            self._wrong("foreign", f"the span {own_id}")
            raise Refused(422, "validation_errors", "an id of another account")
        if details["agent_instance_id"] not in self.runs:
            self._wrong(
                "orphan", f"a span of the run {details['agent_instance_id']}, which is not registered"
            )
            raise Refused(404, "not_found")
        if self.refuses_late and self.runs[details["agent_instance_id"]]["status"] in FINAL:
            raise Refused(409, "invalid_action")
        parent = details.get("parent_span_id")
        if parent is not None and parent not in self.spans:
            self._wrong("orphan", f"the span {own_id} below {parent}, which is not here")
            raise Refused(422, "validation_errors", "no such parent")
        span = {"type": "agent_span", **details}
        self._judge(span)
        self.spans[own_id] = span
        if self.runs[details["agent_instance_id"]]["status"] in FINAL:
            self.counts["late"] += 1
        return span

    def _finish_span(self, own_id: str, body: dict[str, Any]) -> dict[str, Any]:
        span = self.spans.get(own_id)
        if span is None:
            self._wrong("orphan", f"the finish of the span {own_id}, which is not here")
            raise Refused(404, "not_found")
        if span["status"] in FINAL:
            raise Refused(409, "invalid_action")
        span.update(status=body["status"], finished_at=body["timestamp"])
        if "result_payload" in body:
            span["result_payload"] = body["result_payload"]
        self._judge_result(span)
        return span

    # -- the judge -----------------------------------------------------------------------------------------

    def _judge(self, span: dict[str, Any]) -> None:
        """Recompute what the span must hold from the name in it."""
        inputs = span["payload"].get("inputs")
        name = inputs.get("name") if isinstance(inputs, dict) else None
        if not isinstance(name, str):
            self._wrong("unknown", f"a span without name: {orjson.dumps(span).decode()[:300]}")
            return
        ids = self.named.setdefault(name, [])
        ids.append(span["id"])
        self.arrived.setdefault(name, time.monotonic())
        if len(ids) > 1:
            self._wrong("clash", f"the span called {name} has the ids {ids}")
        if inputs != content(name, inputs.get("size", 0)):
            self._wrong("altered", f"the content of {name}")
        if span["status"] in FINAL:
            self._judge_result(span)

    def _judge_result(self, span: dict[str, Any]) -> None:
        name = span["payload"]["inputs"]["name"]
        result = span.get("result_payload", {})
        if span["status"] == "complete" and result != result_of(name):
            self._wrong("altered", f"the result of {name}")
        if span["status"] != "complete" and result.get("error_type") != "Interrupted":
            self._wrong("altered", f"{name} is {span['status']}: {result}")

    def _wrong(self, kind: str, remark: str) -> None:
        self.counts[kind] += 1
        if len(self.remarks) < 50:
            self.remarks.append(f"{kind}: {remark}")

    def _malformed(self, remark: str) -> Refused:
        self._wrong("malformed", remark)
        return Refused(400, "bad_request", remark)


# -- manners -----------------------------------------------------------------------------------------------


def ok(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Be honest."""
    peer.send(oracle.answer(request))
    return True


def status(number: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> Manner:
    """Answer everything with *number*."""

    def answer(oracle: Oracle, peer: Peer, request: Received) -> bool:
        peer.send(response(number, body, headers))
        return True

    answer.__name__ = f"status {number}"
    return answer


def redirect(url: str) -> Manner:
    """Send everybody elsewhere."""
    return status(302, {"Location": url}, b"")


def garbage(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Say yes to everything, as the login page of a hotel does."""
    peer.send(response(200, b"<html>welcome</html>", {"Content-Type": "text/html"}))
    return True


def half_then_reset(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Store, send half of the answer, and reset the connection."""
    answer = oracle.answer(request)
    peer.send(answer[: len(answer) // 2])
    peer.reset()
    return False


def never(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Take the request, and keep silent."""
    oracle.stopping.wait()
    return False


def drip(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Store, and answer byte by byte."""
    peer.drip(oracle.answer(request))
    return True


def accept_and_close(oracle: Oracle, peer: Peer, request: Received) -> bool:
    """Accept, and go."""
    return False


def slow_ack(seconds: float) -> Manner:
    """Store at once, and answer late: nobody can know by then whether it was stored."""

    def answer(oracle: Oracle, peer: Peer, request: Received) -> bool:
        honest = oracle.answer(request)
        oracle.stopping.wait(seconds)
        peer.send(honest)
        return True

    answer.__name__ = f"slow ack {seconds:g}"
    return answer


def in_turn(*manners: Manner) -> Manner:
    """Deal with each request in the next manner."""
    turns = itertools.cycle(manners)

    def answer(oracle: Oracle, peer: Peer, request: Received) -> bool:
        return next(turns)(oracle, peer, request)

    return answer

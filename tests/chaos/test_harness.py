"""The judge is fair, and the proxy breaks connections as it is told: both are needed to believe the other tests."""

from __future__ import annotations

import socket
import time

import httpcore
import orjson
import pytest
from chaos import oracle as o
from chaos.oracle import PARTITION, TOKEN, Refused
from chaos.proxy import KINDS, Fault, Proxy, drawn
from chaos.subjects import content, result_of
from hostile_server import HostileServer, always, answering, response

from prefactor_trace import _ids

AT = "2026-01-01T00:00:00.000000Z"


class Client:
    """Speaks to the oracle as the library does."""

    def __init__(self, url):
        self.url = url

    def post(self, path, body, token=TOKEN):
        timeout = {"connect": 2, "read": 2, "write": 2, "pool": 2}
        with httpcore.ConnectionPool() as pool:
            answer = pool.request(
                "POST",
                f"{self.url}/api/v1/{path}",
                headers={"Authorization": f"Bearer {token}"},
                content=body if isinstance(body, bytes) else orjson.dumps(body),
                extensions={"timeout": timeout},
            )
        return answer.status, orjson.loads(answer.content)

    def register(self, name="run-1", **more):
        versions = {"agent_version": {}, "agent_schema_version": {}}
        body = {**versions, "external_identifier": name, "idempotency_key": f"register-{name}", **more}
        return self.post("agent_instance/register", body)


def span(run, name="span-1", key=None, own_id=None, **more):
    own_id = own_id or _ids.generate(PARTITION)
    details = {
        "id": own_id,
        "agent_instance_id": run,
        "schema_name": "step",
        "status": "complete",
        "payload": {"name": "step", "inputs": content(name, 50)},
        "result_payload": result_of(name),
        "started_at": AT,
        **more,
    }
    return {"details": details, "idempotency_key": key or own_id}


@pytest.fixture
def client(oracle):
    return Client(oracle.url)


@pytest.fixture
def run(client):
    return client.register()[1]["details"]["id"]


# -- the oracle --------------------------------------------------------------------------------------------


def test_a_run_and_its_spans(oracle, client, run):
    """What is right is stored, found by name, and nothing is counted."""
    client.post(f"agent_instance/{run}/start", {"timestamp": AT, "idempotency_key": "start-run"})
    one, two = span(run, "one"), span(run, "two")
    items = [{"_type": "agent_spans/create", **each} for each in (one, two)]
    code, reply = client.post("bulk", {"items": items})
    client.post(
        f"agent_instance/{run}/finish", {"status": "failed", "timestamp": AT, "idempotency_key": "end-of-run"}
    )

    assert code == 200
    assert set(reply["outputs"]) == {one["idempotency_key"], two["idempotency_key"]}
    assert oracle.span_called("two")["id"] == two["details"]["id"]
    assert oracle.run_called("run-1")["status"] == "failed"
    assert oracle.counts == {}


def test_told_again(oracle, client, run):
    """The same again is a duplicate, answered as before; anything else under the same key is an alteration."""
    one = span(run)
    first, again = client.post("agent_spans", one), client.post("agent_spans", one)
    assert first == again
    assert oracle.wrongs == {}
    assert oracle.counts == {"duplicate": 1}

    one["details"]["started_at"] = AT.replace("01T", "02T")
    client.post("agent_spans", one)
    assert oracle.wrongs == {"altered": 1}
    assert len(oracle.spans) == 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("altered", {"payload": {"inputs": {**content("span-1", 50), "pad": "x"}}}),
        ("altered", {"payload": {"inputs": content("a", 50)}, "result_payload": result_of("b")}),
        ("altered", {"payload": {"inputs": content("a", 50)}, "status": "failed", "result_payload": {}}),
        ("unknown", {"payload": {"inputs": {"$truncated": "buffer full"}}}),
        ("orphan", {"parent_span_id": _ids.generate(PARTITION)}),
        ("orphan", {"agent_instance_id": _ids.generate(PARTITION)}),
        ("foreign", {"id": _ids.generate("000000")}),
        ("malformed", {"idempotency_key": "short"}),
    ],
)
def test_what_is_wrong(oracle, client, run, kind, change):
    """Each kind of wrong is told from the others."""
    body = span(run)
    if "idempotency_key" in change:
        body.update(change)
    else:
        body["details"].update(change)
    client.post("agent_spans", body)

    assert oracle.wrongs == {kind: 1}


def test_clashes(oracle, client, run):
    """An id, or a name, that comes under two keys is a clash."""
    one = span(run, "a")
    client.post("agent_spans", one)
    assert (
        client.post("agent_spans", span(run, "b", key="another-key", own_id=one["details"]["id"]))[0] == 422
    )
    client.post("agent_spans", span(run, "a"))
    client.register(idempotency_key="another-key-for-it")

    assert oracle.wrongs == {"clash": 3}


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"POST /api/v1/agent_spans HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
)
def test_no_http(oracle, data):
    """What is no HTTP is malformed."""
    with socket.create_connection(("127.0.0.1", oracle.port), 5) as sock:
        sock.sendall(data)
        assert sock.recv(10) == b""

    assert oracle.wrongs == {"malformed": 1}


def test_bulk_stops_at_the_first_error(oracle, client, run):
    """Items behind a bad one are not attempted, and one that is poison fails the request if it answers 500."""
    oracle.poison = lambda details: Refused(422, "validation_errors") if "bad" in str(details) else None
    spans = [span(run, name) for name in ("good", "bad", "behind")]
    items = [{"_type": "agent_spans/create", **each} for each in spans]
    outputs = client.post("bulk", {"items": items})[1]["outputs"]
    assert [each["status"] for each in outputs.values()] == ["success", "error"]

    oracle.poison = lambda details: Refused(500, "oops") if "bad" in str(details) else None
    assert client.post("bulk", {"items": items[1:]})[0] == 500
    assert list(oracle.named) == ["good"]


def test_states(oracle, client, run):
    """An announced span can be finished once; what is final stays."""
    active = span(run, "live", status="active")
    del active["details"]["result_payload"]
    client.post("agent_spans", active)
    finish = f"agent_spans/{active['details']['id']}/finish"
    body = {"status": "complete", "timestamp": AT, "result_payload": result_of("live")}

    assert client.post(finish, {**body, "idempotency_key": "finish-1"})[0] == 200
    assert client.post(finish, {**body, "idempotency_key": "finish-1"})[0] == 200
    assert client.post(finish, {**body, "idempotency_key": "finish-2"})[0] == 409
    assert oracle.span_called("live")["status"] == "complete"
    assert oracle.counts == {"duplicate": 1}


def test_manners(oracle, client, run):
    """It misbehaves as it is told, and is honest again when told so."""
    oracle.manner = o.status(503, {"Retry-After": "7"})
    assert client.post("agent_spans", span(run, "a"))[0] == 503
    oracle.manner = o.redirect("http://127.0.0.1:9/")
    with pytest.raises(orjson.JSONDecodeError):
        client.post("agent_spans", span(run, "b"))
    oracle.manner = o.garbage
    with pytest.raises(orjson.JSONDecodeError):
        client.post("agent_spans", span(run, "c"))
    assert oracle.named == {}

    lost = span(run, "d")
    oracle.manner = o.half_then_reset
    with pytest.raises((httpcore.NetworkError, httpcore.ProtocolError)):
        client.post("agent_spans", lost)
    oracle.manner = o.accept_and_close
    with pytest.raises((httpcore.NetworkError, httpcore.ProtocolError)):
        client.post("agent_spans", lost)
    for manner in (o.never, o.drip, o.slow_ack(5)):
        oracle.manner = manner
        with pytest.raises(httpcore.TimeoutException):
            Impatient(oracle.url).post("agent_spans", lost)
    oracle.manner = o.in_turn(o.ok, o.status(500))
    assert [client.post("agent_spans", lost)[0] for _ in range(3)] == [200, 500, 200]
    assert list(oracle.named) == ["d"]
    assert oracle.wrongs == {}


class Impatient(Client):
    """Waits a moment only, for all of the answer."""

    def post(self, path, body, token=TOKEN):
        raw = orjson.dumps(body)
        head = f"POST /api/v1/{path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(raw)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), 5) as sock:
            sock.settimeout(0.2)
            sock.sendall(head.encode() + raw)
            deadline = time.monotonic() + 0.3
            try:
                while sock.recv(1) and time.monotonic() < deadline:
                    pass
            except TimeoutError:
                pass
        raise httpcore.ReadTimeout


# -- the proxy ---------------------------------------------------------------------------------------------

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
BODY = b'{"status": "success", "padding": "' + b"a" * 5_000 + b'"}'


def ask(port, seconds=1.0):
    """Ask once; return what came, and how the connection ended."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), seconds) as sock:
            sock.sendall(REQUEST)
            deadline = time.monotonic() + seconds
            while len(received) < len(response(200, BODY)):
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                piece = sock.recv(65_536)
                if not piece:
                    return received, "closed"
                received += piece
    except TimeoutError:
        return received, "silent"
    except ConnectionRefusedError:
        return received, "refused"
    except ConnectionError:
        return received, "reset"
    return received, "whole"


@pytest.fixture(scope="module")
def behind():
    with HostileServer(always(200, BODY)) as server:
        yield server


@pytest.fixture(scope="module")
def between(behind):
    with Proxy(behind.port) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        (Fault(), "whole"),
        (Fault("delay", seconds=0.05), "whole"),
        (Fault("cut", after=1_000), "closed"),
        (Fault("reset"), "reset"),
        (Fault("black hole"), "silent"),
        (Fault("black hole", after=1_000), "silent"),
        (Fault("half-open"), "silent"),
        (Fault("drip", seconds=0.01), "silent"),
        (Fault("garbage"), "silent"),
        (Fault("corrupt"), "whole"),
    ],
    ids=str,
)
def test_faults(between, behind, fault, ending):
    """Each fault does to a connection what it says."""
    asked = len(behind.requests)
    between.set(fault)
    received, how = ask(between.port)
    honest = response(200, BODY)

    assert how == ending
    assert len(behind.requests) - asked == (
        0 if fault.kind in ("black hole", "reset", "garbage") and fault.after < len(REQUEST) else 1
    )
    if fault.kind in ("cut", "black hole"):
        assert received == honest[: max(0, fault.after - len(REQUEST))]
    elif fault.kind == "corrupt":
        assert len(received) == len(honest)
        assert sum(a != b for a, b in zip(received, honest, strict=True)) >= 1
        assert not received.isascii()
    elif fault.kind in ("none", "delay"):
        assert received == honest
    elif fault.kind == "drip":
        assert 0 < len(received) < 1_000
        assert honest.startswith(received)


def test_refuse_and_admit(between):
    """It can be gone, and come back under the same address."""
    between.refuse()
    assert ask(between.port) == (b"", "refused")
    between.admit()
    assert ask(between.port)[1] == "whole"


def test_a_change_ends_connections(between):
    """What is open when the fault changes is ended."""
    between.admit()
    with socket.create_connection(("127.0.0.1", between.port), 5) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
        time.sleep(0.1)
        between.set(Fault("black hole"))
        try:
            assert sock.recv(10) == b""
        except ConnectionError:
            pass


def test_seeds_replay(between):
    """The same seed gives the same faults, and all kinds come up."""
    assert [drawn(7, each) for each in range(50)] == [drawn(7, each) for each in range(50)]
    assert {drawn(7, each).kind for each in range(300)} == set(KINDS) - {"none"}
    taken = []
    for _ in range(2):
        between.play(7)
        before = len(between.faults)
        for _ in range(3):
            ask(between.port, 0.1)
        taken.append(between.faults[before:])
    assert taken[0] == taken[1] == [drawn(7, each) for each in (1, 2, 3)]


def test_content_is_its_names():
    """Two names never share content, and a name always gives the same."""
    assert content("a", 100) == content("a", 100)
    assert content("a", 100) != content("b", 100)
    assert len(content("a", 9_000)["pad"]) == 9_000


def test_answering_is_what_the_proxy_passes_on():
    """Requests arrive unharmed through an honest proxy."""
    with (
        HostileServer(answering(lambda request: response(200, request.body))) as server,
        Proxy(server.port) as proxy,
    ):
        assert ask(proxy.port)[0].endswith(b"abc")

"""Exporters: what becomes of a batch over real sockets, in a real file, and in memory."""

from __future__ import annotations

import logging
import threading

import orjson
import pytest
from hostile_server import (
    HostileServer,
    always,
    answering,
    closing_at_once,
    half_then_reset,
    never_answering,
    refused_port,
    response,
)

from prefactor_trace import _ids
from prefactor_trace._local import Destination, announced, find
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Outcome,
    QualityRecorded,
    SpanEnded,
    SpanRecord,
    SpanStarted,
)
from prefactor_trace._schema import Schema, SpanType
from prefactor_trace._version import __version__
from prefactor_trace.exporters import FileExporter, HttpExporter, MemoryExporter

TOKEN = "token-that-nobody-else-may-see"
RUN = _ids.generate("4x99bm")
SCHEMA = Schema((SpanType("tool:search"),), external_identifier="s1")
NANOSECONDS = 1_700_000_000_000_000_000


def span(parent_id=None, *, name="look up", ended=True, announced=False):
    span_id = _ids.generate("4x99bm")
    begun = SpanStarted(span_id, RUN, parent_id, "tool:search", name, NANOSECONDS, b'{"q":"\xc3\xa9"}', True)
    end = SpanEnded(span_id, "complete", NANOSECONDS + 1_000, b'{"hits":3}', metadata=b'{"m":1}')
    return SpanRecord(begun, end if ended else None, announced)


REGISTERED = InstanceRegistered(RUN, b'{"agent_version":{"name":"bot"}}', SCHEMA)
STARTED = InstanceStarted(RUN, NANOSECONDS)
FINISHED = InstanceFinished(RUN, NANOSECONDS + 2_000, "complete")


def a_run(spans=2):
    return [REGISTERED, STARTED, *(span() for _ in range(spans)), FINISHED]


def keys(batch):
    return frozenset(each.key for each in batch)


def honest(request):
    """Answer as the platform does, as far as an exporter can tell: say what was said to be so."""
    body = orjson.loads(request.body)
    path = request.target.removeprefix("/api/v1/")
    if path == "bulk":
        outputs = {each["idempotency_key"]: success(each["details"]) for each in body["items"]}
        return response(200, orjson.dumps({"status": "success", "outputs": outputs}))
    if path == "agent_instance/register":
        return response(200, orjson.dumps(success({"type": "agent_instance", "id": body.get("id")})))
    return response(200, orjson.dumps(success(body.get("details") or {"id": path.split("/")[1]})))


def success(details):
    return {"status": "success", "details": details}


@pytest.fixture
def platform():
    with HostileServer(answering(honest)) as server:
        yield server


@pytest.fixture
def make():
    """Make HTTP exporters, and close them when the test is over."""
    made = []

    def make_one(locate, **options):
        if not callable(locate):
            destination = Destination(locate, TOKEN)
            made.append(HttpExporter(lambda: destination, **options))
        else:
            made.append(HttpExporter(locate, **options))
        return made[-1]

    yield make_one
    for each in made:
        each.close()


# -- HTTP --------------------------------------------------------------------------------------------------


def test_delivers_over_http(platform, make):
    """A whole run reaches the platform over one connection, in the contract's order."""
    batch = a_run()
    assert make(platform.url).export(batch) == Outcome(delivered=keys(batch), partition="4x99bm")
    assert platform.connections == 1
    assert [each.target for each in platform.requests] == [
        "/api/v1/agent_instance/register",
        f"/api/v1/agent_instance/{RUN}/start",
        "/api/v1/bulk",
        f"/api/v1/agent_instance/{RUN}/finish",
    ]


def test_headers(platform, make):
    """Every request carries exactly the headers of the contract: token, content, SDK, and no encoding."""
    make(platform.url).export(a_run())
    for request in platform.requests:
        assert request.method == "POST"
        assert request.headers == {
            "host": f"127.0.0.1:{platform.port}",
            "authorization": f"Bearer {TOKEN}",
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"prefactor-trace/{__version__}",
            "x-prefactor-sdk": f"prefactor-trace@{__version__}",
            "content-length": str(len(request.body)),
        }


def test_an_empty_batch_says_nothing(platform, make):
    """Nothing to send is no request, no trouble and no exception."""
    assert make(platform.url).export([]) == Outcome()
    assert platform.requests == []


def test_a_batch_that_cannot_be_sent_at_all_is_no_exception(platform, make):
    """If nothing of a batch can be written as JSON, it is refused without a request."""
    record = span(name="half \udc80")
    outcome = make(platform.url).export([record])
    assert outcome.refused.keys() == {record.key}
    assert outcome.trouble is None
    assert platform.requests == []


@pytest.mark.parametrize("behaviour", [closing_at_once, half_then_reset, never_answering])
def test_a_hostile_server_settles_nothing(make, behaviour):
    """No answer: everything is to be sent again, and nobody counts as there."""
    with HostileServer(behaviour) as server:
        exporter = make(server.url, timeout=0.2)
        for _ in range(2):
            outcome = exporter.export(a_run())
            assert (outcome.delivered, outcome.refused, outcome.reachable) == (frozenset(), {}, False)
            assert outcome.trouble.startswith("the platform cannot be reached (")
        assert server.connections == 2  # a connection that failed is not kept


def test_a_captive_portal_settles_nothing(make):
    """A login page in place of the platform, with status 200: nothing is delivered, nothing is lost."""
    with HostileServer(always(200, b"<html>Welcome to the hotel</html>")) as server:
        outcome = make(server.url).export(a_run())
    assert (outcome.delivered, outcome.refused, outcome.dead, outcome.reachable) == (
        frozenset(),
        {},
        {},
        True,
    )
    assert outcome.trouble is not None


def test_no_outcome_shows_the_token(make):
    """Whatever goes wrong, no word of the token stands in what is logged about it."""
    exporter = make(lambda: Destination("http://127.0.0.1:1", TOKEN + "\nX-Injected: 1"))
    with HostileServer(always(401)) as server:
        outcomes = [exporter.export(a_run()), make(server.url).export(a_run())]
        outcomes.append(make(lambda: Destination(server.url, TOKEN + "\nX-Injected: 1")).export(a_run()))
    assert all(each.trouble for each in outcomes)
    assert TOKEN not in repr(outcomes)


# -- where to ----------------------------------------------------------------------------------------------


def test_nowhere(make):
    """Without a destination nothing is tried; when one appears, the batch goes there; when it goes, nothing again."""
    place = None
    exporter = make(lambda: place)
    batch = a_run()
    outcome = exporter.export(batch)
    assert (outcome.delivered, outcome.reachable, outcome.nowhere) == (frozenset(), False, True)
    assert "prefactor-trace serve" in outcome.trouble
    with HostileServer(answering(honest)) as server:
        place = Destination(server.url, TOKEN)
        assert exporter.export(batch).delivered == keys(batch)
        place = None
        assert exporter.export(batch).nowhere
        assert len(server.requests) == 4
        place = Destination(server.url, TOKEN)
        exporter.export(batch)
        assert server.connections == 2  # the first one was let go of


def test_a_platform_that_moves_is_found_again(platform, make):
    """Nobody answers at the old address: the next attempt goes where the destination is then."""
    place = Destination(f"http://127.0.0.1:{refused_port()}", TOKEN)
    exporter = make(lambda: place)
    batch = a_run()
    assert not exporter.export(batch).reachable
    place = Destination(platform.url, TOKEN)
    assert exporter.export(batch).delivered == keys(batch)


def test_a_platform_may_come_back_on_its_port(make):
    """An outage ends where it began: the same exporter delivers again, and keeps what it has learned."""
    asked = []

    def platform_without_ids(request):
        asked.append(orjson.loads(request.body))
        return response(200, orjson.dumps(success({"type": "agent_instance", "id": RUN})))

    with HostileServer(answering(platform_without_ids)) as server:
        exporter = make(server.url)
        nameless = REGISTERED._replace(instance_id=_ids.generate())
        assert exporter.export([nameless]).renamed == {nameless.instance_id: RUN}
        port = server.port
    assert not exporter.export([REGISTERED]).reachable
    with HostileServer(answering(honest), port=port) as server:
        outcome = exporter.export([nameless._replace(instance_id=_ids.generate())])
        assert "id" in orjson.loads(server.requests[0].body)  # in the partition known since before the outage
        assert outcome.partition == "4x99bm"


def test_a_new_token_is_used_at_once(platform, make):
    """A platform that comes back at the same address with another token never sees the old one."""
    place = Destination(platform.url, "old-token")
    exporter = make(lambda: place)
    exporter.export(a_run())
    seen = len(platform.requests)
    place = Destination(platform.url, "new-token")
    assert exporter.export(a_run()).trouble is None
    tokens = [each.headers["authorization"] for each in platform.requests]
    assert set(tokens[:seen]) == {"Bearer old-token"}
    assert set(tokens[seen:]) == {"Bearer new-token"}


def test_a_port_taken_over_sees_no_token(tmp_path, make):
    """When the local platform ends and a stranger takes its port, not even a connection is made to it."""
    with HostileServer(answering(honest)) as server:
        port = server.port
        with announced(tmp_path, Destination(server.url, TOKEN)):
            exporter = make(lambda: find(tmp_path))
            assert exporter.export(a_run()).trouble is None
    with HostileServer(answering(honest), port=port) as stranger:
        assert exporter.export(a_run()).nowhere
        assert stranger.connections == 0


@pytest.mark.parametrize("changed", ["url", "token"])
def test_another_destination_begins_afresh(make, changed, caplog):
    """What one account has taught says nothing about another: partition, ids and bulk are learned anew."""
    theirs = _ids.generate("3nqk8n")

    def renaming(request):
        return response(200, orjson.dumps(success({"type": "agent_instance", "id": theirs})))

    nameless = REGISTERED._replace(instance_id=_ids.generate())
    with HostileServer(answering(renaming)) as first, HostileServer(answering(renaming)) as second:
        place = Destination(first.url, TOKEN)
        exporter = make(lambda: place)
        with caplog.at_level(logging.INFO, "prefactor_trace"):
            exporter.export([nameless])
            place = Destination(second.url, TOKEN) if changed == "url" else Destination(first.url, "another")
            outcome = exporter.export([nameless])
        last = (second if changed == "url" else first).requests[-1]
    assert "id" not in orjson.loads(last.body)
    assert outcome.renamed == {nameless.instance_id: theirs}
    assert [each.message for each in caplog.records] == [
        f"records go to {first.url}",
        f"records go to {place.url}",
    ]
    assert TOKEN not in caplog.text


def test_a_new_database_takes_ids_of_the_old_one(tmp_path, make):
    """The local platform comes back with an empty database, so another account: runs and spans go on arriving."""
    serve = pytest.importorskip("prefactor_trace.server._serve")
    exporter = make(lambda: find(tmp_path))
    body = b'{"agent_version":{"name":"bot","external_identifier":"1"}}'
    for name in "first.db", "second.db":
        batch = [REGISTERED._replace(body=body), *a_run()[1:]]
        with serve.LocalPlatform(tmp_path / name, state_dir=tmp_path):
            outcome = exporter.export(batch)
        assert (outcome.delivered, outcome.refused) == (keys(batch), {})
        assert outcome.partition != "4x99bm"


def test_the_same_destination_keeps_its_connection(platform, make):
    """Batch after batch goes over one connection; the destination is told once in the log."""
    exporter = make(platform.url)
    for _ in range(5):
        exporter.export(a_run())
    assert platform.connections == 1


def test_a_proxy_is_handed_on(make):
    """The exporter's proxy gets the requests."""
    with HostileServer(answering(lambda request: response(503))) as proxy:
        outcome = make("http://platform.test", proxy=proxy.url).export(a_run())
        assert proxy.requests[0].target == "http://platform.test/api/v1/agent_instance/register"
    assert outcome.trouble == "the platform answered 503"


def test_closing_is_final_and_may_be_repeated(platform, make):
    """After `close` no socket is open; closing twice, or before anything was sent, is nothing special."""
    exporter = make(platform.url)
    exporter.close()
    exporter.export(a_run())
    exporter.close()
    exporter.close()


# -- a file ------------------------------------------------------------------------------------------------


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_writes_what_the_wire_would_send(tmp_path, platform, make):
    """Every line is a JSON object, equal to the request's body and with the type of the bulk call."""
    outer = span(ended=False)
    whole = outer._replace(ended=span().ended._replace(id=outer.id), announced=True)
    inner = [span(outer.id), span(outer.id)]
    batch = [REGISTERED, STARTED, outer, *inner, whole, FINISHED]
    path = tmp_path / "spans.jsonl"
    assert FileExporter(path).export(batch) == Outcome(delivered=keys(batch))
    make(platform.url).export(batch)
    register, start, bulk, end, finish = (orjson.loads(each.body) for each in platform.requests)
    assert lines(path) == [
        {"_type": "agent_instances/register", **register},
        {"_type": "agent_instances/start", "agent_instance_id": RUN, **start},
        *bulk["items"],
        {"_type": "agent_spans/finish", "agent_span_id": outer.id, **end},
        {"_type": "agent_instances/finish", "agent_instance_id": RUN, **finish},
    ]


def test_qualities(tmp_path, platform, make):
    """What a run was rated goes over HTTP, into a file and into memory like all its records."""
    rated = QualityRecorded(_ids.generate("4x99bm"), RUN, "verdict", b'{"ok":true}')
    file = tmp_path / "records.jsonl"
    for exporter in (make(lambda: Destination(platform.url, TOKEN)), FileExporter(file), MemoryExporter()):
        assert exporter.export([rated]).delivered == {rated.key}

    (request,) = platform.requests
    assert request.target == f"/api/v1/agent_instance/{RUN}/record_quality"
    body = {"name": "verdict", "payload": {"ok": True}, "idempotency_key": rated.key}
    assert orjson.loads(request.body) == body
    assert orjson.loads(file.read_bytes()).items() >= body.items()
    assert exporter.records == [rated]


def test_appends(tmp_path):
    """Batch follows batch, also from one exporter to the next; nothing that was written before is touched."""
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b'{"before":1}\n')
    exporter = FileExporter(str(path))
    exporter.export([STARTED])
    exporter.export([])
    exporter.close()
    FileExporter(path).export([FINISHED])
    assert [each.get("_type") for each in lines(path)] == [
        None,
        "agent_instances/start",
        "agent_instances/finish",
    ]


def test_a_record_that_is_no_json_is_refused_alone(tmp_path):
    """One bad name or schema does not keep the others from the file, nor from ever being settled."""
    path = tmp_path / "spans.jsonl"
    changed_later = SpanType("a", data_risk={})
    changed_later.data_risk["x"] = object()
    bad = [
        span(name="half \udc80"),
        REGISTERED._replace(schema=Schema((changed_later,))),
    ]
    outcome = FileExporter(path).export([STARTED, *bad, FINISHED])
    assert outcome.refused == dict.fromkeys(
        [each.key for each in bad], "not sendable: it cannot be written as JSON"
    )
    assert outcome.delivered == keys([STARTED, FINISHED])
    assert len(lines(path)) == 2


def test_a_full_disk_leaves_no_half_line(tmp_path):
    """If the file cannot take the whole batch it takes none of it, and the next attempt writes whole lines."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "spans.jsonl"
    exporter = FileExporter(path)
    exporter.export([STARTED])
    batch = [span() for _ in range(10)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            exporter.export(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each["_type"] for each in lines(path)] == ["agent_instances/start"]
    assert exporter.export(batch).delivered == keys(batch)
    assert len(lines(path)) == 11


def test_a_folder_that_is_not_there_is_reported(tmp_path):
    """A path that cannot be written raises: the sender counts it as trouble and tries again."""
    with pytest.raises(FileNotFoundError):
        FileExporter(tmp_path / "no" / "such" / "folder.jsonl").export([STARTED])


# -- memory ------------------------------------------------------------------------------------------------


def test_keeps_finished_spans_once():
    """Records stand there in order; an announced span appears when it has ended, and not before."""
    exporter = MemoryExporter()
    outer = span(ended=False)
    closing = outer._replace(ended=span().ended, announced=True)
    inner = span(outer.id)
    assert exporter.export([REGISTERED, STARTED, outer, inner]) == Outcome(
        delivered=keys([REGISTERED, STARTED, outer, inner])
    )
    exporter.export([closing, FINISHED])
    exporter.close()
    assert exporter.records == [REGISTERED, STARTED, inner, closing, FINISHED]


def test_records_are_a_copy():
    """Changing what was read changes nothing."""
    exporter = MemoryExporter()
    exporter.export([STARTED])
    exporter.records.clear()
    assert exporter.records == [STARTED]


def test_records_may_be_read_meanwhile():
    """Reading and keeping at the same time loses nothing."""
    exporter = MemoryExporter()
    writers = [
        threading.Thread(target=lambda: [exporter.export([STARTED]) for _ in range(500)]) for _ in range(4)
    ]
    for each in writers:
        each.start()
    seen = [len(exporter.records) for _ in range(500)]
    for each in writers:
        each.join()
    assert seen == sorted(seen)
    assert len(exporter.records) == 2_000

"""Ids are data: whatever stands in one, it is a single segment of the path, and never another call."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hostile_server import HostileServer, always

pytestmark = pytest.mark.anyio

CALLS = {
    "agents": {
        "get": (),
        "update": ("details",),
        "retire": (),
        "reinstate": (),
        "delete": (),
    },
    "agent_instances": {
        "start": (),
        "finish": (),
        "terminate": ("reason",),
        "record_quality": ("verdict", {}),
        "get": (),
        "agent_context": (),
    },
    "agent_spans": {"finish": (), "get": ()},
}
EVERY_CALL = [(endpoint, verb) for endpoint, verbs in CALLS.items() for verb in verbs]
ODD = [
    *(
        "../agent",
        "a/b?c=d#e",
        "/",
        "//evil.example/",
        "...",
        "%2e%2e%2f",
        "%",
        "a b",
        "ü/👩",
        "\r\nX-Injected: 1",
    ),
    *("\x00", "show?agent_id=1", "a;b=c&d", "\\..\\agent", "a/retire", "a/agent_context", "+"),
]
REFUSAL = b'{"status": "error", "code": "not_found", "message": "was not found"}'


async def call(client, models, endpoint, verb, an_id):
    more = CALLS[endpoint][verb]
    if more == ("details",):
        more = (models("agent").AgentForUpdate(name="B"),)
    return await getattr(getattr(client, endpoint), verb)(an_id, *more)


@pytest.fixture
def recorder():
    """A server that finds nothing, and notes what it was asked."""
    with HostileServer(always(404, REFUSAL)) as server:
        yield server


@pytest.mark.parametrize(("endpoint", "verb"), EVERY_CALL)
async def test_one_segment(ours, speaker, recorder, models, errors, endpoint, verb):
    """An odd id arrives as it was given, in the place where an id stands."""
    async with speaker.client(recorder.url, "token") as client:
        for an_id in ("plain", *ODD):
            with pytest.raises(errors.PrefactorNotFoundError):
                await call(client, models, endpoint, verb, an_id)
    plain, *odd = recorder.requests
    place = plain.target.split("/").index("plain")
    arrived = [request.target.split("/") for request in odd]
    assert [unquote(segments[place]) for segments in arrived] == ODD
    for segments in arrived:
        segments[place] = "plain"
    assert {"/".join(segments) for segments in arrived} == {plain.target}
    assert {request.method for request in odd} == {plain.method}


@pytest.mark.parametrize(("endpoint", "verb"), EVERY_CALL)
async def test_not_found(ours, models, errors, endpoint, verb):
    """To the platform it is an id like another one that nobody has."""
    for an_id in ODD:
        with pytest.raises(errors.PrefactorNotFoundError) as refused:
            await call(ours, models, endpoint, verb, an_id)
        assert (refused.value.status_code, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize("an_id", ["", ".", ".."])
async def test_no_id(ours, speaker, recorder, models, an_id):
    """What cannot stand in a path is refused before it is sent: it would ask about all there is, or about another thing.

    Two dots lead out of the path, and one dot vanishes; no encoding protects them.
    """
    async with speaker.client(recorder.url, "token") as client:
        for endpoint, verb in EVERY_CALL:
            with pytest.raises(ValueError, match="id"):
                await call(client, models, endpoint, verb, an_id)
    assert recorder.requests == []


@pytest.mark.parametrize("an_id", ["a&agent_id=b", "a b", "ü", "a#b", "+", "%26"])
async def test_in_a_query(ours, errors, models, ground, an_id):
    """The same holds for what stands in a query."""
    name = an_id + ground.new_name()
    made = await ours.agents.create(models("agent").AgentForCreate(name="A", external_identifier=name))
    assert await ours.agents.show(external_identifier=name) == made
    with pytest.raises(errors.PrefactorNotFoundError):
        await ours.agents.show(agent_id=an_id)

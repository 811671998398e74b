"""Idempotency keys as they arrive, over a line that loses answers: the platform acts, and its answer never comes.

So each call is made twice, and nothing may be done twice.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio

WRITES = [
    *(f"agents.{verb}" for verb in ("create", "update", "retire", "reinstate", "delete")),
    *(f"agent_instances.{verb}" for verb in ("register", "start", "finish", "terminate", "record_quality")),
    *("agent_spans.create", "agent_spans.finish"),
]


@pytest.fixture
async def lossy(speaker, ground, line):
    """Return a client whose first attempt of each call gets no good answer."""
    async with speaker.client(line.url, ground.token) as client:
        yield client


@pytest.fixture
def prepared(client, models, ground):
    """Return what prepares a call to be made: its method's name and its arguments without key."""

    async def prepare(write):
        agents, instances, spans = client.agents, client.agent_instances, client.agent_spans
        kinds = models("agent")
        if write == "agents.create":
            return (kinds.AgentForCreate(name=ground.new_name()),)
        if write.startswith("agents."):
            agent_id = (await agents.create(kinds.AgentForCreate(name="A"))).id
            if write == "agents.reinstate":
                await agents.retire(agent_id)
            return (agent_id, kinds.AgentForUpdate(name="B")) if write == "agents.update" else (agent_id,)
        if write == "agent_instances.register":
            return ground.version, ground.schema, ground.new_id()
        run = (await ground.register(client)).id
        if write == "agent_instances.start":
            return (run,)
        await instances.start(run)
        if write == "agent_spans.finish":
            return (await spans.create(run, "test:llm", "active")).id, "failed", {"a": 1}
        return {
            "agent_instances.finish": (run, "failed"),
            "agent_instances.terminate": (run, "reason"),
            "agent_instances.record_quality": (run, "verdict", {"a": 1}),
            "agent_spans.create": (run, "test:llm", "active"),
        }[write]

    return prepare


def method(client, write):
    endpoint, verb = write.split(".")
    return getattr(getattr(client, endpoint), verb)


def about(write, said, ground) -> str:
    """Return the id of what a call was about: of what it made, which must be one thing, or the id it was given."""
    ids = [said[0]]
    if write == "agents.create":
        ids = [agent["id"] for agent in ground.store.agents() if agent["name"] == said[0].name]
    elif write == "agent_instances.register":
        ids = [run["id"] for run in ground.store.instances(said[2])[0]]
    elif write == "agent_spans.create":
        ids = [span["id"] for span in ground.store.spans(said[0])[0]]
    (only,) = ids
    return only


class TestGiven:
    @pytest.mark.parametrize("write", [each for each in WRITES if each != "agent_instances.terminate"])
    async def test_kept_in_retries(self, lossy, line, prepared, ground, write):
        """The attempts of a call are the same to the byte, and the call succeeds as if made once."""
        said, key = await prepared(write), ground.new_key()
        done = await method(lossy, write)(*said, idempotency_key=key)
        assert done.id == about(write, said, ground)
        first, second = line.requests
        assert (first.method, first.target, first.body) == (second.method, second.target, second.body)
        body = line.bodies[0]
        assert key in (body.get("idempotency_key"), body.get("details", {}).get("idempotency_key"))

    @pytest.mark.parametrize("write", WRITES)
    async def test_beside_the_details(self, ours, lossy, line, prepared, ground, write):
        """Our keys stand at the top of the body, where the platform reads them, and nowhere else."""
        keys = [(ground.new_key() * 2)[:length] for length in (8, 64)]
        for key in keys:
            await method(lossy, write)(*await prepared(write), idempotency_key=key)
        assert [body["idempotency_key"] for body in line.bodies] == [keys[0]] * 2 + [keys[1]] * 2
        assert not any("idempotency_key" in body.get("details", {}) for body in line.bodies)
        assert not any("idempotency" in name for request in line.requests for name in request.headers)

    @pytest.mark.parametrize("key", ["", "x" * 7, "x" * 65])
    async def test_of_a_wrong_length(self, ours, lossy, line, prepared, key):
        """Ours have 8 to 64 characters; another one is the caller's mistake, and nothing is sent."""
        for write in WRITES:
            with pytest.raises(ValueError, match=f"8 to 64 characters, not {len(key)}"):
                await method(lossy, write)(*await prepared(write), idempotency_key=key)
        assert line.requests == []

    async def test_too_long_for_anybody(self, client, ground):
        """A key of more than 64 characters is refused by every client."""
        with pytest.raises(ValueError, match="64"):
            await client.agent_instances.finish(ground.new_id(), idempotency_key="x" * 65)


class TestMade:
    @pytest.mark.parametrize("write", WRITES)
    async def test_one_for_all_attempts(self, ours, lossy, line, prepared, ground, write):
        """Without a key, ours makes one that all attempts of the call share, so an answer may get lost."""
        said = await prepared(write)
        done = await method(lossy, write)(*said)
        assert done.id == about(write, said, ground)
        first, second = line.bodies
        assert first == second
        assert len(first["idempotency_key"]) in range(8, 65)

    async def test_another_for_each_call(self, ours, lossy, line, ground):
        """Two calls of the same content are two calls."""
        agent_id = ground.new_id()
        first, second = [await ground.register(lossy, agent_id) for _ in range(2)]
        assert first.id != second.id
        keys = [body["idempotency_key"] for body in line.bodies]
        assert keys[0] == keys[1] != keys[2] == keys[3]

    async def test_beginning(self, ours, speaker, line, ground):
        """The beginning of the keys can be chosen, up to 31 characters."""
        settings = {"default_idempotency_key": "p" * 31}
        async with speaker.client(line.url, ground.token, **settings) as client:
            for _ in range(2):
                await ground.register(client)
        keys = {body["idempotency_key"] for body in line.bodies}
        assert len(keys) == 2
        assert {(key[:32], len(key)) for key in keys} == {("p" * 31 + "-", 64)}

    async def test_none_for_reads(self, client, lossy, line, ground):
        """What only reads needs no key, and is tried again all the same."""
        run = await ground.run(client)
        assert (await lossy.agent_instances.get(run)).id == run
        assert [request.body for request in line.requests] == [b"", b""]


async def test_bulk(lossy, client, line, models, ground):
    """The items of a bulk request bring keys of their own, and the attempts are the same to the byte."""
    run, kinds = await ground.run(client), models("bulk")
    details = {"agent_instance_id": run, "schema_name": "test:llm", "status": "active", "payload": {}}
    items = [
        kinds.BulkItem(_type="agent_spans/create", idempotency_key=ground.new_key(), details=details)
        for _ in range(3)
    ]
    answer = await lossy.bulk.execute(kinds.BulkRequest(items=items))
    assert [output.status for output in answer.outputs.values()] == ["success"] * 3
    assert ground.store.spans(run)[1] == 3
    first, second = line.requests
    assert first.body == second.body
    assert line.bodies[0]["items"][0] == {
        "_type": "agent_spans/create",
        "idempotency_key": items[0].idempotency_key,
        "details": details,
    }

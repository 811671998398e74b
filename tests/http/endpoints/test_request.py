"""Any call of the API, made by hand, over real HTTP, with every client."""

from __future__ import annotations

import anyio
import pytest

pytestmark = pytest.mark.anyio


async def test_validate_token(client):
    """A good token is told so."""
    assert await client.validate_token() == {"status": "success"}


async def test_wrong_token(speaker, ground, errors):
    """A token that the platform does not know is refused, by each call alike."""
    async with speaker.client(ground.url, "wrong-token") as client:
        for call in (
            client.validate_token(),
            client.agents.list_agents(),
            client.agent_instances.start(ground.new_id()),
            client.agent_spans.finish(ground.new_id()),
        ):
            with pytest.raises(errors.PrefactorAuthError) as refused:
                await call
            assert (refused.value.status_code, refused.value.code) == (401, "bad_authtoken")
            assert "wrong-token" not in f"{refused.value} {refused.value!r}"


async def test_answers_come_as_they_are(client, ground):
    """Bodies go out and answers come back unchanged, envelope included."""
    body = {"details": {"name": "schön 🙂", "unknown": {"a": [None]}}, "unknown": 1}
    made = await client.request("POST", "/api/v1/agent", json_data=body)
    assert (made["status"], made["details"]["name"]) == ("success", "schön 🙂")
    path = f"/api/v1/agent/{made['details']['id']}"
    assert await client.request("GET", path) == made
    changed = await client.request("PUT", path, json_data={"details": {"name": "B"}})
    assert changed["details"]["name"] == "B"
    assert (await client.request("DELETE", path))["details"] == changed["details"]


async def test_no_such_call(client, errors):
    """A path that does not exist is not found; a method that a path does not know is an API error."""
    with pytest.raises(errors.PrefactorNotFoundError) as unknown:
        await client.request("GET", "/api/v1/nothing")
    assert unknown.value.code == "not_found"
    with pytest.raises(errors.PrefactorApiError) as refused:
        await client.request("DELETE", "/api/v1/ping")
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")


@pytest.mark.parametrize("kind", ["agent", "agent_instance", "agent_spans"])
@pytest.mark.parametrize(
    ("sorting", "backwards"),
    [
        ({"sorting": "inserted_at"}, False),
        ({"sorting": "-inserted_at"}, True),
        ({"sorting[field]": "inserted_at", "sorting[direction]": "asc"}, False),
        ({"sorting[field]": "inserted_at", "sorting[direction]": "desc"}, True),
        ({"sorting[field]": "inserted_at"}, False),
        ({"sorting": "-no_such_field"}, False),
        ({"sorting[field]": "no_such_field", "sorting[direction]": "desc"}, False),
    ],
    ids=str,
)
async def test_sorting(client, models, ground, kind, sorting, backwards):
    """Every list understands both spellings of the same order, and ignores fields it does not have."""
    if kind == "agent":
        of = {"team_id": ground.new_name()}
        made = [await client.agents.create(models("agent").AgentForCreate(name="A", **of)) for _ in range(3)]
    elif kind == "agent_instance":
        of = {"agent_id": ground.new_id()}
        made = [await ground.register(client, **of) for _ in range(3)]
    else:
        of = {"agent_instance_id": await ground.run(client)}
        made = [await client.agent_spans.create(**of, schema_name="s", status="active") for _ in range(3)]
    answer = await client.request("GET", f"/api/v1/{kind}", params={**of, **sorting})
    ids = [each.id for each in made]
    assert [each["id"] for each in answer["summaries"]] == (ids[::-1] if backwards else ids)
    assert answer["sorting"]["direction"] == ("desc" if backwards else "asc")


async def test_pages(client, ground):
    """Following `next_page_offset` until there is none sees each item once."""
    run = await ground.run(client)
    made = [(await client.agent_spans.create(run, "s", "active")).id for _ in range(5)]
    seen, offset = [], 0
    while offset is not None:
        params = {"agent_instance_id": run, "pagination[offset]": offset, "pagination[page_size]": 2}
        answer = await client.request("GET", "/api/v1/agent_spans", params=params)
        seen += [each["id"] for each in answer["summaries"]]
        offset = answer["pagination"]["next_page_offset"]
    assert seen == made


async def test_many_at_once(client, ground):
    """One client may be used by many tasks at the same time, and each gets its own answer."""
    run, got = await ground.run(client), {}

    async def record(n):
        got[n] = await client.agent_spans.create(run, "s", "complete", {"n": n})

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(record, n)
    assert {n: span.payload for n, span in got.items()} == {n: {"n": n} for n in range(20)}
    assert ground.store.spans(run)[1] == 20


async def test_after_close(speaker, ground):
    """A client that was closed opens new connections when it is used again."""
    client = speaker.client(ground.url, ground.token)
    await client.close()
    await client.validate_token()
    await client.close()
    await client.validate_token()
    await client.close()


async def test_key_of_ours(ours, ground):
    """The key of a call made by hand stands in its body, where the platform reads it."""
    name, key = ground.new_name(), ground.new_key()
    body = {"details": {"name": name}}
    first = await ours.request("POST", "/api/v1/agent", json_data=body, idempotency_key=key)
    assert await ours.request("POST", "/api/v1/agent", json_data=body, idempotency_key=key) == first
    assert [agent["name"] for agent in ground.store.agents()].count(name) == 1
    assert body == {"details": {"name": name}}

"""Many calls in one request, over real HTTP, with every client."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def item(models, ground):
    """Return what makes an item with a key of its own."""

    def make(kind, **parameters):
        return models("bulk").BulkItem(**{"_type": kind, "idempotency_key": ground.new_key(), **parameters})

    return make


@pytest.fixture
def execute(client, models):
    async def send(*items):
        return await client.bulk.execute(models("bulk").BulkRequest(items=list(items)))

    return send


def statuses(answer) -> list[str]:
    return [output.status for output in answer.outputs.values()]


async def test_a_whole_run(client, item, execute, ground):
    """A run can be told in one request; each answer is found under its key, field by field."""
    run, span = ground.new_id(), ground.new_id()
    payload = {"nothing": None, "text": "schön 🙂", "deep": [{"a": []}]}
    details = {"agent_instance_id": run, "schema_name": "test:llm", "status": "active", "payload": payload}
    items = [
        item(
            "agent_instances/register",
            id=run,
            agent_id=ground.new_id(),
            agent_version=ground.version,
            agent_schema_version=ground.schema,
        ),
        item("agent_instances/start", agent_instance_id=run, timestamp="2026-01-01T00:00:00Z"),
        item("agent_spans/create", details={**details, "id": span}),
        item("agent_spans/create", **details, parent_span_id=span),
        item("agent_spans/finish", agent_span_id=span, result_payload=payload),
        item("agent_instances/finish", agent_instance_id=run, status="failed"),
        item("agents/list", pagination={"page_size": 1}),
    ]
    answer = await execute(*items)
    assert (answer.status, statuses(answer)) == ("success", ["success"] * 7)
    assert list(answer.outputs) == [each.idempotency_key for each in items]
    outputs = list(answer.outputs.values())
    assert outputs[3].details["parent_span_id"] == span
    assert outputs[4].details["payload"] == outputs[4].details["result_payload"] == payload
    assert len(outputs[6].summaries) == 1
    instance = await client.agent_instances.get(run)
    assert (instance.status, instance.span_counts.total) == ("failed", 2)
    assert instance.started_at.year == 2026


async def test_first_failure_stops(client, item, execute, ground):
    """What came before the first refusal stays done, the refusal is told, the rest is missing and can be resent."""
    run = await ground.run(client)
    details = {"agent_instance_id": run, "schema_name": "test:llm", "status": "complete", "payload": {}}
    good = [item("agent_spans/create", details=details) for _ in range(4)]
    bad = item("agent_spans/create", details={**details, "payload": None})
    answer = await execute(*good[:2], bad, *good[2:])
    assert statuses(answer) == ["success", "success", "error"]
    assert list(answer.outputs) == [each.idempotency_key for each in (*good[:2], bad)]
    refused = answer.outputs[bad.idempotency_key]
    assert (refused.code, refused.errors) == ("validation_errors", {"payload": ["is required"]})
    assert refused.message == "the request is not valid"
    assert ground.store.spans(run)[1] == 2
    left = [each for each in good if each.idempotency_key not in answer.outputs]
    assert statuses(await execute(*left)) == ["success", "success"]
    assert ground.store.spans(run)[1] == 4


async def test_twice(client, item, execute, ground):
    """The same request again gives the same answers, and nothing is done twice."""
    run = await ground.run(client)
    details = {"agent_instance_id": run, "schema_name": "test:llm", "status": "complete", "payload": {}}
    items = [
        item("agent_spans/create", details=details),
        item("agent_spans/create", **details),
        item("agent_instances/finish", agent_instance_id=run, status="failed"),
    ]
    first = await execute(*items)
    assert statuses(first) == ["success"] * 3
    assert await execute(*items) == first
    assert ground.store.spans(run)[1] == 2


async def test_control(client, item, execute, ground):
    """The signal that a run was stopped is in the output of each of its steps."""
    run = await ground.run(client)
    ground.store.terminate(run, "r")
    details = {"agent_instance_id": run, "schema_name": "test:llm", "status": "complete", "payload": {}}
    (output,) = (await execute(item("agent_spans/create", details=details))).outputs.values()
    assert output.control == {"terminate": True, "reason": "r"}


async def test_the_documented_example(item, execute, ground):
    """The example of the official client's documentation, with the ids that it leaves to the reader."""
    register = item(
        "agent_instances/register",
        agent_id="bulk-agent",
        agent_version=ground.version,
        agent_schema_version=ground.schema,
        id=ground.new_id(),
    )
    span = item(
        "agent_spans/create",
        agent_instance_id=register.id,
        schema_name="test:llm",
        status="active",
        payload={},
    )
    assert statuses(await execute(register, span)) == ["success", "success"]


async def test_refused_as_a_whole(item, execute, errors, ground):
    """If an item is no call at all, nothing is done, and the place of the item is told."""
    name = ground.new_name()
    with pytest.raises(errors.PrefactorValidationError) as refused:
        await execute(item("agents/create", details={"name": name}), item("agents/nonsense"))
    assert refused.value.errors == {"items": {"1": {"_type": ["is not an operation"]}}}
    assert name not in [agent["name"] for agent in ground.store.agents()]


@pytest.mark.parametrize("keys", [["same-key-1", "same-key-1"], ["2short"], ["x" * 65], [], [None]], ids=str)
def test_refused_before_sending(models, keys):
    """Keys that stand twice, are too short or too long, and no items at all: there is no such request to send."""
    kinds = models("bulk")
    with pytest.raises(ValueError, match="key|items"):
        kinds.BulkRequest(items=[kinds.BulkItem(_type="agents/list", idempotency_key=key) for key in keys])


@pytest.mark.parametrize("key", ["x" * 8, "x" * 64])
async def test_shortest_and_longest_keys(item, execute, key):
    """Eight characters are enough, and 64 are not too many."""
    assert list((await execute(item("agents/list", idempotency_key=key))).outputs) == [key]


async def test_values_that_are_no_json(ours, models, item, execute, ground):
    """Dates and models among an item's parameters are written as JSON has them."""
    run, at = ground.new_id(), datetime(2026, 1, 1, tzinfo=timezone.utc)
    version = models("agent_instance").AgentVersionForRegister(name="n", external_identifier="1")
    register = item(
        "agent_instances/register", id=run, agent_version=version, agent_schema_version=ground.schema
    )
    start = item("agent_instances/start", agent_instance_id=run, timestamp=at)
    assert statuses(await execute(register, start)) == ["success", "success"]
    assert (await ours.agent_instances.get(run)).started_at == at

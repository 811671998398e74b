"""Bulk: many operations in one request, in order, up to the first that is refused."""

from __future__ import annotations

import uuid

import pytest


def item(kind: str, **fields) -> dict:
    return {"_type": kind, "idempotency_key": str(uuid.uuid4()), **fields}


def test_a_whole_run(api):
    """A run can be told in one request, and each item is answered under its key."""
    run, root = api.new_id(), api.new_id()
    items = [
        item("agent_instances/register", **api.registration(id=run)),
        item("agent_instances/start", agent_instance_id=run),
        item("agent_spans/create", details=api.details(run, id=root)),
        item("agent_spans/create", **api.details(run, parent_span_id=root, status="complete")),
        item("agent_spans/finish", agent_span_id=root, result_payload={"a": 1}),
        item("agent_instances/finish", agent_instance_id=run, status="failed"),
    ]
    outputs = api.bulk(*items)["outputs"]
    assert list(outputs) == [each["idempotency_key"] for each in items]
    assert [output["status"] for output in outputs.values()] == ["success"] * 6
    ended = outputs[items[-1]["idempotency_key"]]["details"]
    assert (ended["status"], ended["span_counts"]["complete"]) == ("failed", 2)
    assert (
        ended["last_activity_span_at"] == api.get(f"agent_instance/{run}")["details"]["last_activity_span_at"]
    )
    assert set(outputs[items[0]["idempotency_key"]]) == {
        "status",
        "details",
        "agent_version",
        "agent_schema_version",
    }


def test_agents_and_environments(api):
    """The documented operations on agents and environments work in bulk, reads included."""
    made = item("agents/create", details={"name": "bulk"})
    place = item("environments/create", details={"name": "bulk", "external_identifier": "bulk"})
    outputs = api.bulk(made, place)["outputs"]
    agent, environment = (outputs[each["idempotency_key"]]["details"]["id"] for each in (made, place))
    items = [
        item("agents/update", agent_id=agent, details={"name": "renamed"}),
        item("agents/show", agent_id=agent),
        item(
            "agents/list",
            pagination={"page_size": 1, "offset": 0},
            sorting={"field": "id", "direction": "desc"},
        ),
        item("environments/update", environment_id=environment, details={"name": "renamed"}),
        item("environments/show", environment_id=environment),
        item("environments/list", account_id=api.account["id"]),
    ]
    outputs = list(api.bulk(*items)["outputs"].values())
    assert [output["status"] for output in outputs] == ["success"] * 6
    assert outputs[1]["details"]["name"] == outputs[4]["details"]["name"] == "renamed"
    assert len(outputs[2]["summaries"]) == 1
    assert outputs[2]["sorting"] == {"field": "id", "direction": "desc", "nulls": "auto"}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"payload": None}, "validation_errors"),
        ({"agent_instance_id": "nobody"}, "not_found"),
        ({"parent_span_id": "01m80par2d2cn1gc6k8rp98rtbmh8dqd"}, "validation_errors"),
    ],
)
def test_stops_at_the_first_refusal(api, wrong, code):
    """Items before a refused one are kept, the refusal is told, and what follows is neither done nor mentioned."""
    run = api.run()
    items = [item("agent_spans/create", details=api.details(run)) for _ in range(4)]
    items[2]["details"] |= wrong
    outputs = api.bulk(*items)["outputs"]
    assert list(outputs) == [each["idempotency_key"] for each in items[:3]]
    assert [output["status"] for output in outputs.values()] == ["success", "success", "error"]
    assert outputs[items[2]["idempotency_key"]]["code"] == code
    assert len(api.spans(run)) == 2


def test_the_rest_can_be_sent_again(api):
    """After a refusal the whole request may be repeated with the item mended: nothing is there twice."""
    run = api.run()
    items = [item("agent_spans/create", details=api.details(run, id=api.new_id())) for _ in range(4)]
    items[2]["details"]["payload"] = "wrong"
    before = api.bulk(*items)["outputs"]
    items[2]["details"]["payload"] = {}
    after = api.bulk(*items)["outputs"]
    assert len(after) == 4
    for each in items[:2]:
        assert after[each["idempotency_key"]] == before[each["idempotency_key"]]
    assert len(api.spans(run)) == 4


def test_a_refused_registration_leaves_nothing(api):
    """A registration that is refused in the middle of a request makes neither agent nor version."""
    taken = api.register()["id"]
    name = api.new_name()
    version = {"name": name, "external_identifier": "1"}
    refused = item("agent_instances/register", **api.registration(id=taken, agent_version=version))
    outputs = api.bulk(item("agent_spans/create", details=api.details(taken)), refused)["outputs"]
    assert outputs[refused["idempotency_key"]]["code"] == "validation_errors"
    assert name not in [agent["name"] for agent in api.platform.store.agents()]


def test_control_in_each_output(api):
    """Each span of a terminated run is taken and carries the control signal; others do not."""
    stopped, other = api.run(), api.run()
    span = item("agent_spans/create", details=api.details(stopped, id=api.new_id()))
    items = [
        item("agent_spans/create", details=api.details(other)),
        item("agent_instances/terminate", agent_instance_id=stopped, reason="policy"),
        span,
        item("agent_spans/finish", agent_span_id=span["details"]["id"]),
    ]
    outputs = list(api.bulk(*items)["outputs"].values())
    control = {"terminate": True, "reason": "policy"}
    assert [output.get("control") for output in outputs] == [None, None, control, control]


def test_spans_after_the_end_of_their_run(api):
    """Within one request too, a run that has ended takes no more spans."""
    run = api.run()
    items = [
        item("agent_spans/create", details=api.details(run)),
        item("agent_instances/finish", agent_instance_id=run),
        item("agent_spans/create", details=api.details(run)),
    ]
    outputs = list(api.bulk(*items)["outputs"].values())
    assert [output.get("code") for output in outputs] == [None, None, "invalid_action"]


def test_500_items(api):
    """A request may carry 500 spans and more."""
    run = api.run()
    items = [item("agent_spans/create", details=api.details(run, status="complete")) for _ in range(500)]
    outputs = api.bulk(*items)["outputs"]
    assert [output["status"] for output in outputs.values()] == ["success"] * 500
    assert api.get(f"agent_instance/{run}")["details"]["span_counts"]["complete"] == 500


def test_malformed_requests(api):
    """If the frame of any item is wrong, the whole request is refused with the place, and nothing is done."""
    run = api.run()
    good = item("agent_spans/create", details=api.details(run))
    for bad, field in (
        (good, "idempotency_key"),
        (item("agent_spans/create") | {"idempotency_key": "short"}, "idempotency_key"),
        (item("agent_spans/create") | {"idempotency_key": "x" * 65}, "idempotency_key"),
        ({"_type": "agent_spans/create", "details": {}}, "idempotency_key"),
        (item("agent_spans/nonsense"), "_type"),
        (item("agent_spans/create") | {"_type": ["a"]}, "_type"),
        ({"method": "POST", "path": "/agent_spans", "body": {}}, "_type"),
        ("text", "_type"),
    ):
        refused = api.bulk(good, bad, status=422)
        assert refused["code"] == "validation_errors"
        assert list(refused["errors"]["items"]) == ["1"]
        assert field in refused["errors"]["items"]["1"]
        assert "outputs" not in refused
    for body in ({}, {"items": []}, {"items": {}}, {"details": {"items": [good]}}):
        assert "items" in api.post("bulk", body, 422)["errors"]
    assert api.spans(run) == []

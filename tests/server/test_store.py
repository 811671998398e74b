"""What the viewer reads: the resources with their extras, in the order it shows them."""

from __future__ import annotations

import contextlib

import pytest

from prefactor_trace.server._store import NotFound, Store


@pytest.fixture
def store(api):
    return api.platform.store


def test_agents(api, store):
    """Agents come with the most recently active first, each as the API shows it."""
    quiet, busy = api.register(), api.register()
    api.register()
    api.span(busy["id"], started_at="2199-01-01T00:00:00Z")
    agents = store.agents()
    assert agents[0]["id"] == busy["agent_id"]
    assert agents[0]["last_activity_span_at"] == "2199-01-01T00:00:00.000000Z"
    assert agents[0] == api.get(f"agent/{busy['agent_id']}")["details"] == store.agent(busy["agent_id"])
    assert quiet["agent_id"] in [agent["id"] for agent in agents]
    assert store.agent(api.new_id()) is None


def test_environments(api, store):
    """Environments come by name."""
    api.register(environment_id="zoo")
    api.register(environment_id="aquarium")
    names = [environment["name"] for environment in store.environments()]
    assert names == sorted(names)
    assert {"zoo", "aquarium", "local"} <= set(names)


def test_schema_versions(api, store):
    """An agent's schemas come newest first, as the API shows them."""
    agent = api.new_id()
    schema = {"external_identifier": "newer", "span_type_schemas": []}
    api.register(agent_id=agent)
    api.register(agent_id=agent, agent_schema_version=schema)
    found = store.schema_versions(agent)
    assert [each["external_identifier"] for each in found] == ["newer", "schema-1"]
    assert found[::-1] == api.get("agent_schema_version", agent_id=agent)["summaries"]


def test_instances(api, store):
    """An agent's instances come newest first, a page at a time, by environment and status, with their extras."""
    agent = api.new_id()
    runs = [api.run(agent_id=agent, environment_id=place) for place in ("here", "there", "here")]
    api.post(f"agent_instance/{runs[0]}/finish")
    api.span(runs[1])
    found, total = store.instances(agent)
    assert ([each["id"] for each in found], total) == (runs[::-1], 3)
    assert found[1]["span_counts"] == api.get(f"agent_instance/{runs[1]}")["details"]["span_counts"]
    assert (found[1]["environment_name"], found[1]["agent_version_identifier"]) == ("there", "1.0")
    here = found[0]["environment_id"]

    def ids(**wanted):
        page, total = store.instances(agent, **wanted)
        return [each["id"] for each in page], total

    assert ids(environment_id=here) == ([runs[2], runs[0]], 2)
    assert ids(environment_id=here, status="complete") == ([runs[0]], 1)
    assert ids(offset=1, limit=1) == ([runs[1]], 3)
    assert store.instances(api.new_id()) == ([], 0)


def test_instance(api, store):
    """One instance comes as the API shows it, with the names around it."""
    run = api.run(agent_version={"name": "Named", "external_identifier": "3"})
    found = store.instance(run)
    extras = {
        **{"agent_name": "Named", "agent_version_identifier": "3", "agent_version_name": "Named"},
        "environment_name": "local",
    }
    assert extras.items() <= found.items()
    assert api.get(f"agent_instance/{run}")["details"].items() <= found.items()
    assert store.schema_versions(found["agent_id"])[0]["id"] == found["agent_schema_version_id"]
    assert store.instance(api.new_id()) is None


def test_spans(api, store):
    """Spans come by start, then arrival, with objects as payloads and their readable lines."""
    run = api.run()

    def made(at):
        return {**api.span(run, started_at=at)["details"], "summary": "m"}

    late = made("2026-01-01T00:00:02Z")
    early = [made("2026-01-01T00:00:01Z") for _ in range(3)]
    found, total = store.spans(run)
    assert (found, total) == ([*early, late], 4)
    assert store.spans(run, offset=3, limit=5) == ([late], 4)
    assert store.spans(api.new_id()) == ([], 0)
    assert store.span(late["id"]) == late
    assert store.span(api.new_id()) is None


def test_terminate(api, store):
    """Terminating returns the instance, or says that there is none."""
    run = api.run()
    assert store.terminate(run, "r") == api.get(f"agent_instance/{run}")["details"]
    with pytest.raises(NotFound):
        store.terminate(api.new_id(), "r")


def test_partition(tmp_path):
    """Every database has an account of its own, made once."""
    accounts = []
    for name in ("a", "b", "a"):
        with contextlib.closing(Store(tmp_path / name)) as store:
            accounts.append(store.account)
    assert accounts[0] == accounts[2] != accounts[1]
    assert accounts[0].partition != accounts[1].partition

"""The API over real HTTP: every endpoint, every documented field, every kind of refusal."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
from logging.handlers import QueueHandler

import pytest

from prefactor_trace import _ids
from prefactor_trace.server import LocalPlatform
from prefactor_trace.server._operations import OPERATIONS

# The fields of each resource, as the API's documentation lists them.
ACCOUNT = {"type", "id", "name", "inserted_at", "updated_at"}
API_TOKEN = {
    *(
        "type",
        "id",
        "account_id",
        "token_scope",
        "status",
        "agent_id",
        "agent_deployment_id",
        "environment_id",
    ),
    *("created_by_admin_user_id", "expires_at", "last_used_at", "inserted_at", "updated_at"),
}
ENVIRONMENT = {
    *("type", "id", "account_id", "name", "description", "external_identifier", "purpose"),
    *("inserted_at", "updated_at"),
}
AGENT = {
    *("type", "id", "name", "description", "external_identifier", "status", "owner_person_id", "team_id"),
    *("risk_profile_id", "available_actions", "instance_counts", "last_activity_span_at"),
    *("inserted_at", "updated_at"),
}
AGENT_VERSION = {
    *("type", "id", "account_id", "agent_id", "agent_schema_version_id", "external_identifier"),
    *("external_identifier_repeats", "current_agent_deployment_refs", "observed_classification"),
    *("theoretical_classification", "inserted_at", "updated_at"),
    *("name", "description", "runtime_environment"),  # beyond the documented ones: what was declared
}
SCHEMA_VERSION = {
    *("type", "id", "account_id", "agent_id", "external_identifier", "external_identifier_repeats"),
    *("current_agent_deployment_refs", "span_type_schemas", "quality_schemas", "alert_schemas"),
    *("inserted_at", "updated_at"),
}
DEPLOYMENT = {
    *("type", "id", "account_id", "agent_id", "environment_id", "current_version_id"),
    *("inserted_at", "updated_at"),
}
INSTANCE_SUMMARY = {
    *("type", "id", "account_id", "agent_id", "agent_version_id", "environment_id", "external_identifier"),
    *("status", "purpose", "inserted_at", "updated_at", "started_at", "finished_at", "last_activity_span_at"),
    *("termination_reason", "risk_score", "raised_alert_count"),
}
INSTANCE = {
    *INSTANCE_SUMMARY,
    *("agent_deployment_id", "span_counts", "span_schema_counts", "cost_breakdown"),
    *("quality_payloads", "quality_summaries"),
}
SPAN = {
    *("type", "id", "account_id", "agent_id", "agent_instance_id", "parent_span_id", "schema_name"),
    *("schema_title", "status", "purpose", "payload", "result_payload", "payload_byte_size_estimate"),
    *("sensitive_encoding", "summary", "data_risk", "started_at", "finished_at", "inserted_at", "updated_at"),
}
PAGINATION = {
    *("item_count", "item_start", "item_end", "page_count", "page_index", "page_offset", "page_size"),
    *("next_page_offset", "previous_page_offset"),
}


class TestAround:
    """The account and what is made in it."""

    def test_ping(self, api):
        """A client finds out with one call whether its token is good."""
        assert api.get("ping") == {"status": "success"}

    def test_account_and_token(self, api):
        """There is one account and one token; neither shows a secret."""
        assert set(api.account) == ACCOUNT
        assert api.get(f"account/{api.account['id']}")["details"] == api.account
        (token,) = api.get("api_token")["summaries"]
        assert set(token) == API_TOKEN
        assert api.platform.token not in str(token)
        assert api.get(f"api_token/{token['id']}")["details"] == token

    def test_pfids(self, api):
        """The platform hands out ids of the account's partition."""
        answer = api.post("pfid/generate", {"count": 3})
        assert len(set(answer["pfids"])) == 3
        assert {_ids.partition_of(each) for each in answer["pfids"]} == {api.partition}
        assert answer["account_id"] == api.account["id"]

    @pytest.mark.parametrize("count", [None, 0, -1, 1001, "3", True, 1.5])
    def test_pfids_refuse_an_odd_count(self, api, count):
        """Only a sensible number of ids is made."""
        assert "count" in api.post("pfid/generate", {"count": count}, 422)["errors"]

    def test_environment(self, api):
        """Environments can be made, read, changed and listed; null clears a description."""
        details = {
            "name": "Staging",
            "description": "d",
            "purpose": "staging",
            "external_identifier": "stage",
        }
        made = api.post("environment", {"details": details})["details"]
        assert set(made) == ENVIRONMENT
        assert details.items() <= made.items()
        path = f"environment/{made['id']}"
        changed = api.call("PUT", path, json={"details": {"name": "Stage", "description": None}})["details"]
        assert (changed["name"], changed["description"], changed["purpose"]) == ("Stage", None, "staging")
        assert api.get(path)["details"] == changed
        assert api.get("environment/show", environment_id=made["id"])["details"] == changed
        assert changed in api.get("environment")["summaries"]

    def test_environment_refusals(self, api):
        """An environment needs a name, a known purpose, and an identifier of its own."""
        api.post("environment", {"details": {"name": "e", "external_identifier": "taken"}})
        for details, field in (
            ({}, "name"),
            ({"name": "e", "purpose": "fun"}, "purpose"),
            ({"name": "e", "external_identifier": "taken"}, "external_identifier"),
            ({"name": "e", "id": "nonsense"}, "id"),
        ):
            assert field in api.post("environment", {"details": details}, 422)["errors"]
        assert "details" in api.post("environment", {}, 422)["errors"]


class TestAgents:
    def test_create_and_read(self, api):
        """An agent is found by its id and by its external identifier."""
        details = {"name": "A", "description": "d", "external_identifier": api.new_name(), "id": api.new_id()}
        made = api.post("agent", {"details": details})["details"]
        assert set(made) == AGENT
        assert details.items() <= made.items()
        assert made["status"] == "pending"
        assert made["available_actions"] == {
            "update": True,
            "retire": True,
            "reinstate": False,
            "delete": True,
        }
        assert api.get(f"agent/{made['id']}")["details"] == made
        assert api.get("agent/show", agent_id=made["id"])["details"] == made
        assert api.get("agent/show", external_identifier=details["external_identifier"])["details"] == made
        assert made in api.get("agent", sorting="-inserted_at", **{"pagination[page_size]": 100})["summaries"]

    def test_update(self, api):
        """Only the fields given are changed, and null clears them."""
        agent = api.post("agent", {"details": {"name": "A", "description": "d", "team_id": "t"}})["details"]
        path = f"agent/{agent['id']}"
        changed = api.call("PUT", path, json={"details": {"description": None, "unknown": 1}})["details"]
        assert (changed["name"], changed["description"], changed["team_id"]) == ("A", None, "t")
        assert api.call("PUT", path, json={"details": {"name": "B"}})["details"]["name"] == "B"

    def test_retire_and_reinstate(self, api):
        """Retiring can be undone, and neither can be done twice."""
        agent = api.post("agent", {"details": {"name": "A"}})["details"]
        path = f"agent/{agent['id']}"
        assert api.post(f"{path}/reinstate", status=409)["code"] == "invalid_action"
        assert api.post(f"{path}/retire")["details"]["status"] == "retired"
        assert api.post(f"{path}/retire", status=409)["code"] == "invalid_action"
        assert api.post(f"{path}/reinstate")["details"]["status"] == "pending"

    def test_delete(self, api):
        """An agent can be deleted only as long as it has never run."""
        agent = api.post("agent", {"details": {"name": "A"}})["details"]
        assert api.call("DELETE", f"agent/{agent['id']}")["details"] == agent
        api.get(f"agent/{agent['id']}", 404)
        busy = api.register()["agent_id"]
        assert api.call("DELETE", f"agent/{busy}", 409)["code"] == "invalid_action"

    def test_counts(self, api):
        """An agent's counts and last activity follow its instances."""
        version = {"name": api.new_name(), "external_identifier": "1"}
        first = api.register(agent_version=version)
        api.run(agent_version=version)
        api.post(f"agent_instance/{first['id']}/finish", {"status": "cancelled"})
        api.span(first["id"], 409)
        agent = api.get(f"agent/{first['agent_id']}")["details"]
        assert agent["instance_counts"] == {
            **dict.fromkeys(("pending", "complete", "failed", "terminated"), 0),
            **{"total": 2, "active": 1, "cancelled": 1, "finished": 1},
        }
        assert (agent["status"], agent["last_activity_span_at"]) == ("active", None)

    def test_refusals(self, api):
        """Names, ids and identifiers are checked."""
        identifier = api.new_name()
        made = api.post("agent", {"details": {"name": "A", "external_identifier": identifier}})["details"]
        for details, field in (
            ({}, "name"),
            ({"name": 1}, "name"),
            ({"name": "A", "external_identifier": identifier}, "external_identifier"),
            ({"name": "A", "id": made["id"]}, "id"),
            ({"name": "A", "id": _ids.generate("000000")}, "id"),
        ):
            assert field in api.post("agent", {"details": details}, 422)["errors"]
        assert "agent_id" in api.get("agent/show", 422)["errors"]
        api.get("agent/show", 404, external_identifier="nobody")


class TestRegister:
    def test_answer(self, api):
        """Registering answers with the pending instance, its version and its schema."""
        answer = api.post("agent_instance/register", api.registration(purpose="eval"))
        details = answer["details"]
        assert set(details) == INSTANCE
        assert set(answer["agent_version"]) == AGENT_VERSION
        assert set(answer["agent_schema_version"]) == SCHEMA_VERSION
        assert (details["status"], details["purpose"], details["started_at"]) == ("pending", "eval", None)
        for name in (
            "id",
            "account_id",
            "agent_id",
            "agent_version_id",
            "agent_deployment_id",
            "environment_id",
        ):
            assert _ids.partition_of(details[name]) == api.partition

    def test_declared_types(self, api):
        """Span types are read as a map, with defaults filled in and each JSON schema judged."""
        answer = api.post("agent_instance/register", api.registration())
        (entry,) = answer["agent_schema_version"]["span_type_schemas"].values()
        assert set(entry) == {
            *("name", "title", "description", "template", "data_risk"),
            *("params_schema", "params_schema_validation", "result_schema", "result_schema_validation"),
        }
        assert entry["params_schema_validation"] == {"status": "success", "message": None}
        assert entry["data_risk"]["action_profile"]["read_data"] == "allowed"
        assert entry["data_risk"]["action_profile"]["create_data"] == "unknown"
        assert entry["data_risk"]["params_data_categories"]["classification"] == "secret"
        (quality,) = answer["agent_schema_version"]["quality_schemas"].values()
        assert quality["title"] == "verdict"
        assert quality["schema_validation"]["status"] == "success"

    def test_legacy_schema_forms(self, api):
        """Schemas may come as the older maps; a later list wins over them."""
        schema = {
            "external_identifier": "old",
            "span_schemas": {"a": {"type": "object"}, "b": {}},
            "span_result_schemas": {"a": {"type": "string"}, "c": {}},
            "span_type_schemas": [{"name": "b", "params_schema": {"type": "object"}, "title": "B"}],
        }
        answer = api.post("agent_instance/register", api.registration(agent_schema_version=schema))
        types = answer["agent_schema_version"]["span_type_schemas"]
        assert {name: entry["title"] for name, entry in types.items()} == {"a": "a", "b": "B", "c": "c"}
        assert types["a"]["result_schema"] == {"type": "string"}

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"type": "text"}, "$.type: 'text' is not a type of JSON schema"),
            ({"type": ["string", 3]}, "$.type: 3 is not a type of JSON schema"),
            ({"properties": []}, "$.properties is not an object"),
            (
                {"properties": {"a": {"type": "int"}}},
                "$.properties.a.type: 'int' is not a type of JSON schema",
            ),
            ({"items": "string"}, "$.items is neither an object nor a boolean"),
            ({"anyOf": [{}, 1]}, "$.anyOf[1] is neither an object nor a boolean"),
            ({"allOf": {}}, "$.allOf is not a list"),
            ({"required": "a"}, "$.required is not a list of names"),
            ({"enum": "a"}, "$.enum is not a list"),
            ({"additionalProperties": False, "items": True}, None),
        ],
    )
    def test_schema_mistakes(self, api, schema, message):
        """A JSON schema with a mistake is taken, and the mistake is shown where the schema is read."""
        types = [{"name": "t", "params_schema": schema}]
        version = {"external_identifier": "s", "span_type_schemas": types}
        answer = api.post("agent_instance/register", api.registration(agent_schema_version=version))
        verdict = answer["agent_schema_version"]["span_type_schemas"]["t"]["params_schema_validation"]
        assert verdict == {"status": "error" if message else "success", "message": message}

    def test_agent_by_version_name(self, api):
        """Without an agent id, the version's name decides whose run it is."""
        version = {"name": api.new_name(), "external_identifier": "1"}
        first, second = api.register(agent_version=version), api.register(agent_version=version)
        assert first["agent_id"] == second["agent_id"]
        assert first["agent_version_id"] == second["agent_version_id"]
        assert first["agent_deployment_id"] == second["agent_deployment_id"]

    def test_agent_by_plain_name(self, api):
        """An agent id that is no PFID is the external identifier of an agent, made on first sight."""
        first, second = api.register(agent_id="my-agent"), api.register(agent_id="my-agent")
        assert first["agent_id"] == second["agent_id"]
        found = api.get("agent/show", external_identifier="my-agent")["details"]
        assert found["id"] == first["agent_id"]

    def test_agent_by_own_id(self, api):
        """An unknown agent id of the account's partition is made with that id; one of another is refused."""
        own = api.new_id()
        assert api.register(agent_id=own)["agent_id"] == own
        foreign = api.registration(agent_id=_ids.generate("000000"))
        assert "agent_id" in api.post("agent_instance/register", foreign, 422)["errors"]

    def test_environment(self, api):
        """The environment is "local" unless one is named, by its id or by a name that may be new."""
        names = {each["id"]: each["name"] for each in api.get("environment")["summaries"]}
        local = api.register()["environment_id"]
        assert api.get(f"environment/{local}")["details"]["purpose"] == "development"
        assert names.get(local, "local") == "local"
        assert api.register(environment_id=local)["environment_id"] == local
        named = api.register(environment_id="my-laptop")["environment_id"]
        assert api.get(f"environment/{named}")["details"]["name"] == "my-laptop"
        unknown = api.registration(environment_id=api.new_id())
        assert "environment_id" in api.post("agent_instance/register", unknown, 422)["errors"]

    def test_pins_the_deployment(self, api):
        """A registration moves the deployment's current version unless it says not to."""
        agent = api.new_id()
        old = api.register(agent_id=agent)
        new = {"name": "n", "external_identifier": "2.0"}
        quiet = api.register(agent_id=agent, agent_version=new, update_current_version=False)
        deployment = f"agent_deployment/{old['agent_deployment_id']}"
        assert api.get(deployment)["details"]["current_version_id"] == old["agent_version_id"]
        api.register(agent_id=agent, agent_version=new)
        assert api.get(deployment)["details"]["current_version_id"] == quiet["agent_version_id"]

    def test_versions(self, api):
        """A version is known by its identifier and its schema: the same identifier with another schema is another."""
        agent = api.new_id()
        first = api.post("agent_instance/register", api.registration(agent_id=agent))
        schema = {"external_identifier": "schema-2", "span_type_schemas": []}
        second = api.post(
            "agent_instance/register", api.registration(agent_id=agent, agent_schema_version=schema)
        )
        third = api.post(
            "agent_instance/register", api.registration(agent_id=agent, agent_schema_version=schema)
        )
        versions = api.get("agent_version", agent_id=agent)["summaries"]
        assert [each["external_identifier_repeats"] for each in versions] == [0, 1]
        assert [each["id"] for each in versions] == [
            first["agent_version"]["id"],
            second["agent_version"]["id"],
        ]
        assert third["agent_version"]["id"] == second["agent_version"]["id"]
        schemas = api.get("agent_schema_version", agent_id=agent)["summaries"]
        assert [each["external_identifier"] for each in schemas] == ["schema-1", "schema-2"]
        for version in versions:
            assert set(version) == AGENT_VERSION
            assert api.get(f"agent_version/{version['id']}")["details"] == version
        for schema_version in schemas:
            assert set(schema_version) == SCHEMA_VERSION
            assert api.get(f"agent_schema_version/{schema_version['id']}")["details"] == schema_version
        (deployment,) = api.get("agent_deployment", agent_id=agent)["summaries"]
        assert set(deployment) == DEPLOYMENT
        assert versions[1]["current_agent_deployment_refs"] == [
            {"agent_deployment_id": deployment["id"], "environment_id": deployment["environment_id"]}
        ]

    def test_runtime_environment(self, api):
        """What the version says about its runtime is kept."""
        runtime = {"os": "linux", "runtime": "cpython@3.11", "prefactor_sdk": ["a@1"]}
        version = {
            "name": "n",
            "external_identifier": "1",
            "description": "d",
            "runtime_environment": runtime,
        }
        answer = api.post(
            "agent_instance/register", api.registration(agent_id=api.new_id(), agent_version=version)
        )
        assert answer["agent_version"]["runtime_environment"] == runtime
        assert answer["agent_version"]["description"] == "d"

    @pytest.mark.parametrize(
        ("change", "errors"),
        [
            ({"agent_version": None}, {"agent_version": ["is required"]}),
            ({"agent_version": {"name": "n"}}, {"agent_version": {"external_identifier": ["is required"]}}),
            ({"agent_version": {"external_identifier": "1"}}, {"agent_version": {"name": ["is required"]}}),
            ({"agent_schema_version": []}, {"agent_schema_version": ["is not an object"]}),
            (
                {"agent_schema_version": {"external_identifier": "s"}},
                {"agent_schema_version": {"span_type_schemas": ["is required"]}},
            ),
            (
                {"agent_schema_version": {"span_type_schemas": []}},
                {"agent_schema_version": {"external_identifier": ["is required"]}},
            ),
            (
                {"agent_schema_version": {"external_identifier": "s", "span_type_schemas": {}}},
                {"agent_schema_version": {"span_type_schemas": ["is not a list of objects"]}},
            ),
            (
                {"agent_schema_version": {"external_identifier": "s", "span_type_schemas": [{"name": "a"}]}},
                {"agent_schema_version": {"params_schema": ["is required"]}},
            ),
            ({"purpose": "fun"}, {"purpose": ["is not one of live, smoke_test, eval"]}),
            ({"update_current_version": "yes"}, {"update_current_version": ["is not a boolean"]}),
            ({"id": "my-run"}, {"id": ["is not a PFID"]}),
            ({"external_identifier": 7}, {"external_identifier": ["is not a string"]}),
        ],
    )
    def test_refusals(self, api, change, errors):
        """A wrong field is named, nothing is made, and the error has the documented shape."""
        before = api.get("agent")["pagination"]["item_count"]
        refused = api.post("agent_instance/register", api.registration(**change), 422)
        assert refused == {
            "status": "error",
            "code": "validation_errors",
            "message": "the request is not valid",
            "errors": errors,
        }
        assert api.get("agent")["pagination"]["item_count"] == before

    def test_taken(self, api):
        """An id is unique, an external identifier is unique for its agent."""
        first = api.register(external_identifier="run-1", agent_id="taken")
        again = api.registration(external_identifier="run-1", agent_id="taken")
        assert "external_identifier" in api.post("agent_instance/register", again, 422)["errors"]
        api.register(external_identifier="run-1", agent_id="other")
        same_id = api.registration(id=first["id"])
        assert "id" in api.post("agent_instance/register", same_id, 422)["errors"]


class TestInstances:
    def test_reads(self, api):
        """An instance is read by id, by query and by external identifier, and listed for its agent."""
        made = api.register(external_identifier=api.new_name())
        path = f"agent_instance/{made['id']}"
        assert api.get(path)["details"] == made
        assert api.get("agent_instance/show", agent_instance_id=made["id"])["details"] == made
        by_name = api.get("agent_instance/show", external_identifier=made["external_identifier"])
        assert by_name["details"] == made
        (summary,) = api.get("agent_instance", agent_id=made["agent_id"])["summaries"]
        assert set(summary) == INSTANCE_SUMMARY
        assert summary.items() <= made.items()
        assert api.get("agent_instance/show", 422)["errors"]
        api.get("agent_instance/show", 404, external_identifier="nobody")
        assert "agent_id" in api.get("agent_instance", 422)["errors"]

    def test_list_by_version(self, api):
        """Instances can be listed for one version."""
        agent = api.new_id()
        first = api.register(agent_id=agent)
        api.register(agent_id=agent, agent_version={"name": "n", "external_identifier": "2"})
        found = api.get("agent_instance", agent_id=agent, agent_version_id=first["agent_version_id"])
        assert [each["id"] for each in found["summaries"]] == [first["id"]]

    def test_counts(self, api):
        """An instance counts its spans by state and by type, and knows when it was last active."""
        run = api.run()
        api.span(run, started_at="2026-01-01T00:00:03Z")
        api.post("agent_spans", {"details": api.details(run, status="failed", schema_name="other")})
        later = api.details(run, status="complete", started_at="2030-01-01T00:00:00+01:00")
        api.post("agent_spans", {"details": later})
        details = api.get(f"agent_instance/{run}")["details"]
        assert details["span_counts"] == {
            **{
                "total": 3,
                "pending": 0,
                "active": 1,
                "complete": 1,
                "failed": 1,
                "cancelled": 0,
                "finished": 2,
            }
        }
        assert details["span_schema_counts"] == {"by_name": {"test:llm": 2, "other": 1}}
        assert details["last_activity_span_at"] == "2029-12-31T23:00:00.000000Z"

    def test_record_quality(self, api):
        """One named quality is set, others stay, null removes it, and it may come after the end."""
        schema = {
            "external_identifier": "q",
            "span_type_schemas": [],
            "quality_schemas": [{"name": "a", "schema": {}}, {"name": "b", "schema": {}}],
        }
        run = api.run(agent_schema_version=schema)
        path = f"agent_instance/{run}"
        api.post(f"{path}/finish")
        api.post(f"{path}/record_quality", {"name": "a", "payload": {"score": 1}})
        both = api.post(f"{path}/record_quality", {"name": "b", "payload": {}})["details"]
        assert both["quality_payloads"] == {"a": {"score": 1}, "b": {}}
        removed = api.post(f"{path}/record_quality", {"name": "a", "payload": None})["details"]
        assert removed["quality_payloads"] == {"b": {}}
        assert "name" in api.post(f"{path}/record_quality", {"name": "c", "payload": {}}, 422)["errors"]
        assert "payload" in api.post(f"{path}/record_quality", {"name": "a", "payload": 1}, 422)["errors"]

    def test_agent_context(self, api):
        """The digest of a run names its agent and its spans."""
        run = api.run()
        span = api.span(run)["details"]
        context = api.get(f"agent_instance/{run}/agent_context")["agent_context"]
        assert set(context) == {"body", "generated_at", "span_count"}
        assert context["span_count"] == 1
        assert context["body"]["spans"][0]["id"] == span["id"]
        assert context["body"]["spans"][0]["payload"] == {"model": "m"}


class TestSpans:
    def test_answer(self, api):
        """A span comes back with every documented field, its type's title and its declared risk."""
        run = api.run()
        parent = api.span(run)["details"]
        details = api.details(
            run,
            id=api.new_id(),
            status="complete",
            parent_span_id=parent["id"],
            payload={"model": "ü"},
            result_payload={"text": "hello"},
            started_at="2026-04-13T01:14:30.522Z",
            finished_at="2026-04-13T03:14:31+02:00",
            sensitive_encoding=True,
        )
        span = api.post("agent_spans", {"details": details})["details"]
        assert set(span) == SPAN
        assert span["schema_title"] == "LLM call"
        assert span["data_risk"]["params_data_categories"] == {"classification": "secret"}
        assert span["started_at"] == "2026-04-13T01:14:30.522000Z"
        assert span["finished_at"] == "2026-04-13T01:14:31.000000Z"
        changed = {"started_at", "finished_at"}
        assert {k: v for k, v in details.items() if k not in changed}.items() <= span.items()
        assert api.get(f"agent_spans/{span['id']}") == {"status": "success", "details": span}

    def test_defaults(self, api):
        """Only four fields are needed: ids and times are made, and an unknown type is taken as it is."""
        run = api.run()
        least = {"agent_instance_id": run, "schema_name": "unknown", "status": "complete", "payload": {}}
        span = api.post("agent_spans", {"details": least})["details"]
        assert span["schema_title"] == "unknown"
        assert span["data_risk"] is None
        assert span["started_at"] == span["finished_at"] == span["inserted_at"]
        assert _ids.partition_of(span["id"]) == api.partition

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"agent_instance_id": None}, "agent_instance_id"),
            ({"agent_instance_id": 1}, "agent_instance_id"),
            ({"schema_name": ""}, "schema_name"),
            ({"status": None}, "status"),
            ({"status": "terminated"}, "status"),
            ({"status": {}}, "status"),
            ({"payload": None}, "payload"),
            ({"payload": []}, "payload"),
            ({"status": "complete", "result_payload": "text"}, "result_payload"),
            ({"result_payload": {}}, "result_payload"),
            ({"finished_at": "2026-01-01T00:00:00Z"}, "finished_at"),
            ({"id": "x"}, "id"),
            ({"id": 5}, "id"),
            ({"id": _ids.generate("000000")}, "id"),
            ({"parent_span_id": 5}, "parent_span_id"),
            ({"started_at": "yesterday"}, "started_at"),
            ({"started_at": "2026-13-01T00:00:00.000000Z"}, "started_at"),
            ({"started_at": "2026-01-01T25:00:00Z"}, "started_at"),
            ({"started_at": "2026-01-01T00:00:00"}, "started_at"),
            ({"started_at": "0001-01-01T00:00:00+10:00"}, "started_at"),
            ({"started_at": 1700000000}, "started_at"),
            ({"sensitive_encoding": "no"}, "sensitive_encoding"),
        ],
    )
    def test_refusals(self, api, change, field):
        """A wrong field is named, and no span is made."""
        run = api.run()
        assert field in api.post("agent_spans", {"details": api.details(run) | change}, 422)["errors"]
        assert api.spans(run) == []

    def test_details_are_an_object(self, api):
        """What is no object describes no span."""
        assert "details" in api.post("agent_spans", {"details": []}, 422)["errors"]

    def test_parents(self, api):
        """A parent must exist in the same run; a parent that is no PFID is kept as it was given."""
        run, other = api.run(), api.run()
        for parent in (api.new_id(), api.span(other)["details"]["id"]):
            details = api.details(run, parent_span_id=parent)
            assert "parent_span_id" in api.post("agent_spans", {"details": details}, 422)["errors"]
        uuid = "6f1c2a34-7d0e-4a53-9a52-1f6f3d9f0c11"
        assert api.span(run, parent_span_id=uuid)["details"]["parent_span_id"] == uuid

    @pytest.mark.parametrize(
        ("said", "stored"),
        [
            ("2026-04-13T01:14:30.522000Z", "2026-04-13T01:14:30.522000Z"),
            ("2026-04-13T01:14:30Z", "2026-04-13T01:14:30.000000Z"),
            ("2026-04-13t01:14:30.5z", "2026-04-13T01:14:30.500000Z"),
            ("2026-04-13 01:14:30.123456789+00:00", "2026-04-13T01:14:30.123456Z"),
            ("2026-04-13T01:14:30.522000-05:30", "2026-04-13T06:44:30.522000Z"),
            ("0999-04-13T01:14:30Z", "0999-04-13T01:14:30.000000Z"),
        ],
    )
    def test_times(self, api, said, stored):
        """Every RFC 3339 spelling is understood, and answered in UTC with microseconds."""
        assert api.span(api.run(), started_at=said)["details"]["started_at"] == stored

    def test_payloads_come_back_unchanged(self, api):
        """Whatever JSON goes in comes out the same: text of all scripts, deep and wide values, numbers, null."""
        payload = {
            "text": '<script>"\\ \u2028 \U0001f469\u200d\U0001f4bb \x00',
            "numbers": [0, -1, 1.5, 1e-9, 2**53, 2**63],
            "nothing": None,
            "": {"deep": [[[{"a": [True, False]}]]]},
        }
        run = api.run()
        details = api.details(run, status="complete", payload=payload, result_payload=payload)
        span = api.post("agent_spans", {"details": details})["details"]
        assert (span["payload"], span["result_payload"]) == (payload, payload)
        assert api.spans(run)[0]["payload"] == payload
        (seen,), total = api.platform.store.spans(run)
        assert (seen["payload"], seen["result_payload"], total) == (payload, payload, 1)
        assert api.platform.store.span(span["id"]) == seen

    def test_list(self, api):
        """Spans are listed by start, for a run or an agent, and within a time."""
        run = api.register()
        times = [f"2026-01-01T00:00:0{second}.000000Z" for second in (3, 1, 2)]
        for at in times:
            api.span(run["id"], started_at=at)
        listed = api.spans(run["id"])
        assert [span["started_at"] for span in listed] == sorted(times)
        assert set(listed[0]) == {*SPAN, "risk_level", "risk_score"}
        assert api.get("agent_spans", agent_id=run["agent_id"])["summaries"] == listed
        within = api.get(
            "agent_spans", agent_instance_id=run["id"], start_time=times[2], end_time="2026-01-01T00:00:02.5Z"
        )
        assert within["summaries"] == [listed[1]]
        assert "agent_instance_id" in api.get("agent_spans", 422)["errors"]

    def test_summaries_are_rendered_for_those_who_ask(self, api):
        """By the template of the span's type; without being asked, and without a type, there is none."""
        run = api.run()
        api.span(run, payload={"model": "gpt-4o"})
        api.span(run, schema_name="test:undeclared")
        assert [span["summary"] for span in api.spans(run)] == [None, None]
        asked = api.get("agent_spans", agent_instance_id=run, include_summaries="true")["summaries"]
        assert sorted(span["summary"] or "" for span in asked) == ["", "gpt-4o"]

    def test_unknown_fields_are_dropped(self, api):
        """What the API does not know has no effect."""
        span = api.span(api.run(), tags=["a"], name="n", summary="s")["details"]
        assert set(span) == SPAN
        assert span["summary"] is None


class TestWhatClientsSendBesides:
    """Clients differ in what they send beyond the contract, and in how they write what is in it (contract section 12)."""

    def life(self, api, at, **more):
        """Send every change that a run's life knows, in one spelling, with *more* in each body; return the answers."""
        body = {name: {**block, **more} for name, block in api.registration().items()} | more
        run = api.post("agent_instance/register", body)["details"]["id"]
        path, when = f"agent_instance/{run}", {"timestamp": at, **more}
        span = {"details": api.details(run, started_at=at, **more), **more}
        return [
            api.get(path, **more)["details"],
            api.post(f"{path}/start", when)["details"],
            (first := api.post("agent_spans", span)["details"]),
            api.post(f"agent_spans/{first['id']}/finish", {"result_payload": {}, **when})["details"],
            *api.get("agent_spans", agent_instance_id=run, start_time=at, **more)["summaries"],
            api.post(f"{path}/record_quality", {"name": "verdict", "payload": {}, **more})["details"],
            api.post(f"{path}/terminate", {"reason": "r", **when})["details"],
        ]

    @pytest.mark.parametrize(
        "at",
        [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.000Z",
            "2026-01-01T00:00:00+00:00",
            "2026-01-01T00:00:00.000000+00:00",
            "2026-01-01T05:30:00+05:30",
        ],
    )
    def test_times(self, api, at):
        """Every call that takes a time takes it in the spellings of all clients, and answers in one."""
        for answer in self.life(api, at)[1:]:
            assert answer["started_at"] == "2026-01-01T00:00:00.000000Z"
            assert answer["finished_at"] in {None, "2026-01-01T00:00:00.000000Z"}

    def test_unknown_fields(self, api):
        """What is unknown has no effect, in whatever body, block or query it stands."""
        at = "2026-01-01T00:00:00Z"
        plain, more = self.life(api, at), self.life(api, at, nonsense="1", _type="agents/delete", limit="0")
        assert [set(answer) for answer in more] == [set(answer) for answer in plain]
        assert [answer["status"] for answer in more] == [answer["status"] for answer in plain]
        assert len(more) == 7

    def test_unknown_fields_of_items(self, api):
        """So in bulk."""
        run = api.run()
        item = {
            "_type": "agent_spans/create",
            "idempotency_key": api.new_id(),
            "method": "DELETE",
            "path": "/",
        }
        answer = api.post(
            "bulk", {"items": [{**item, "details": api.details(run, nonsense=1)}], "nonsense": 1}
        )
        (output,) = answer["outputs"].values()
        assert set(output["details"]) == SPAN


class TestPages:
    def test_loop(self, api):
        """Following `next_page_offset` to its end sees every item once, in order."""
        run = api.run()
        made = [
            api.span(run, started_at=f"2026-01-01T00:00:00.{number:06}Z")["details"]["id"]
            for number in range(7)
        ]
        seen, offset = [], 0
        while offset is not None:
            asked = {"pagination[offset]": offset, "pagination[page_size]": 3}
            page = api.get("agent_spans", agent_instance_id=run, **asked)
            seen += [span["id"] for span in page["summaries"]]
            offset = page["pagination"]["next_page_offset"]
        assert seen == made
        assert page["pagination"] == {
            **{"item_count": 7, "item_start": 7, "item_end": 7, "page_count": 3, "page_index": 3},
            **{"page_offset": 6, "page_size": 3, "next_page_offset": None, "previous_page_offset": 3},
        }

    def test_edges(self, api):
        """An empty list and an offset past the end have no next page; a size is cut to 100."""
        run = api.run()
        empty = api.get("agent_spans", agent_instance_id=run, **{"pagination[page_size]": 1000})["pagination"]
        assert set(empty) == PAGINATION
        assert (empty["item_count"], empty["page_size"], empty["next_page_offset"]) == (0, 100, None)
        api.span(run)
        past = api.get("agent_spans", agent_instance_id=run, **{"pagination[offset]": 9})
        assert past["summaries"] == []
        assert past["pagination"]["next_page_offset"] is None

    @pytest.mark.parametrize("wrong", [{"pagination[offset]": "-1"}, {"pagination[page_size]": "0"}])
    @pytest.mark.parametrize("more", [{}, {"pagination[offset]": "x"}, {"pagination[page_size]": "1.5"}])
    def test_refusals(self, api, wrong, more):
        """A page that makes no sense is refused."""
        assert api.get("agent", 422, **wrong | more)["code"] == "validation_errors"

    def test_sorting(self, api):
        """Both spellings sort; what is unknown, or no column at all, is ignored."""
        agent = api.new_id()
        made = [api.register(agent_id=agent)["id"] for _ in range(3)]

        def ids(**asked):
            answer = api.get("agent_instance", agent_id=agent, **asked)
            return [each["id"] for each in answer["summaries"]], answer["sorting"]["direction"]

        assert ids() == (made, "asc")
        assert ids(sorting="inserted_at") == (made, "asc")
        assert ids(sorting="-inserted_at") == (made[::-1], "desc")
        assert ids(**{"sorting[field]": "id", "sorting[direction]": "desc"}) == (made[::-1], "desc")
        assert ids(sorting="-nonsense") == (made, "asc")
        assert ids(sorting="id; DROP TABLE agent_spans; --") == (made, "asc")
        assert ids(**{"sorting[field]": "1) UNION SELECT 1"}) == (made, "asc")


class TestAlwaysJson:
    """Whatever is asked, the answer is a JSON object: the official clients take anything else for a broken server."""

    def test_unknown_ids(self, api):
        """Every address with an unknown id in it answers 404."""
        for operation in OPERATIONS.values():
            if "{" in operation.path:
                path = operation.path.partition("{")[0] + api.new_id() + operation.path.partition("}")[2]
                body = {"details": {}, "name": "a", "reason": "r"}
                options = {} if operation.is_read else {"json": body}
                assert api.call(operation.method, path[1:], 404, **options)["code"] == "not_found"

    @pytest.mark.parametrize(
        "path", ["", "nothing", "agent_spans/", "agent/a/b/c", "../v1", "%2e%2e", "bulk/x"]
    )
    def test_unknown_paths(self, api, path):
        """An address that does not exist answers 404."""
        assert api.get(path, 404)["code"] == "not_found"

    @pytest.mark.parametrize("slash", ["%2F", "%2f"])
    def test_slashes_in_ids(self, api, slash):
        """An encoded slash belongs to an id, which nobody has; it never makes the path of another call."""
        run = api.run()
        agent = api.post("agent", {"details": {"name": "A"}})["details"]["id"]
        for method, path in (
            ("GET", f"agent_instance/{run}/agent_context"),
            ("POST", f"agent_instance/{run}/finish"),
            ("POST", f"agent/{agent}/retire"),
        ):
            folder, hidden = path.split("/", 1)
            encoded = f"{folder}/{hidden.replace('/', slash)}"
            for attempt in (method, "GET", "POST", "PUT", "DELETE"):
                assert api.call(attempt, encoded, 404)["code"] == "not_found"
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "active"
        assert api.get(f"agent/{agent}")["details"]["status"] == "pending"

    def test_wrong_methods(self, api):
        """A method that an address does not know answers 405 and says which it knows."""
        response = api.http.patch("bulk", json={})
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        assert api.call("DELETE", "ping", 405)["status"] == "error"
        assert api.http.request("TRACE", "ping").json()["status"] == "error"

    @pytest.mark.parametrize(
        "body", [b"{", b"nonsense", b"[]", b"1", b'"text"', b"null", b'{"a":NaN}', b"\xff"]
    )
    def test_bodies_that_are_no_object(self, api, body):
        """A body that is no JSON object answers 400."""
        headers = {"Content-Type": "application/json"}
        assert api.call("POST", "agent_spans", 400, content=body, headers=headers)["code"] == "bad_request"

    def test_our_own_mistakes(self, tmp_path, speak):
        """An error of ours answers 500 without a traceback, which is in the log, and the server goes on."""
        logged: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        handler = QueueHandler(logged)
        logging.getLogger().addHandler(handler)
        try:
            with LocalPlatform(tmp_path / "db.sqlite3") as platform, speak(platform) as api:
                run = api.run()
                with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite3")) as other:
                    other.execute("DROP TABLE agent_spans")
                answer = api.span(run, 500)
                assert answer["code"] == "internal_error"
                assert "agent_spans" not in answer["message"]
                assert "no such table" in logged.get(timeout=10).getMessage()
                api.get("ping")
        finally:
            logging.getLogger().removeHandler(handler)

"""Instances, over real HTTP: what every client can do, and what only ours can."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest

pytestmark = pytest.mark.anyio

AT = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)
INDIA = timezone(timedelta(hours=5, minutes=30))


class TestRegister:
    async def test_keywords(self, client, ground):
        """Everything that can be said about a run comes back."""
        agent_id, instance_id = ground.new_id(), ground.new_id()
        environment_id = (await ground.register(client)).environment_id
        runtime = {"agent_sdk": ["a@1"], "os": "linux", "prefactor_sdk": ["p@1"], "runtime": "cpython@3.11"}
        made = await client.agent_instances.register(
            agent_id=agent_id,
            agent_version={**ground.version, "description": "ü", "runtime_environment": runtime},
            agent_schema_version=ground.schema,
            environment_id=environment_id,
            id=instance_id,
            idempotency_key=ground.new_key(),
            update_current_version=False,
            purpose="smoke_test",
            external_identifier="run-1",
        )
        assert (made.type, made.id, made.agent_id) == ("agent_instance", instance_id, agent_id)
        assert (made.status, made.purpose, made.external_identifier) == ("pending", "smoke_test", "run-1")
        assert made.environment_id == environment_id
        assert (made.started_at, made.finished_at, made.termination_reason) == (None, None, None)
        assert made.inserted_at == made.updated_at
        assert made.quality_payloads == {}
        assert set(made.span_counts.model_dump().values()) == {0}
        assert await client.agent_instances.get(made.id) == made

        version = (await client.request("GET", f"/api/v1/agent_version/{made.agent_version_id}"))["details"]
        assert (version["description"], version["runtime_environment"]) == ("ü", runtime)
        deployed = f"/api/v1/agent_deployment/{made.agent_deployment_id}"
        assert (await client.request("GET", deployed))["details"]["current_version_id"] is None

    async def test_least(self, client, ground):
        """Two versions are enough with a token that names the agent; the rest has defaults."""
        made = await client.agent_instances.register(
            agent_version={**ground.version, "name": ground.new_name()}, agent_schema_version=ground.schema
        )
        assert made.id[10:16] == ground.store.account.partition
        assert (made.status, made.purpose, made.external_identifier) == ("pending", "live", None)
        deployed = f"/api/v1/agent_deployment/{made.agent_deployment_id}"
        details = (await client.request("GET", deployed))["details"]
        assert details["current_version_id"] == made.agent_version_id

    async def test_positions_of_the_released_package(self, client, ground):
        """The order of the released package works with both, up to its last parameter."""
        environment_id = (await ground.register(client)).environment_id
        agent_id, instance_id, key = ground.new_id(), ground.new_id(), ground.new_key()
        said = (agent_id, environment_id, instance_id, key, True, "eval", "run-2")
        made = await client.agent_instances.register(ground.version, ground.schema, *said)
        assert (made.agent_id, made.environment_id, made.id) == (agent_id, environment_id, instance_id)
        assert (made.purpose, made.external_identifier) == ("eval", "run-2")
        assert await client.agent_instances.register(ground.version, ground.schema, *said) == made

    async def test_documented_positions(self, ours, ground):
        """The order of the documentation works with ours."""
        agent_id, instance_id, key = ground.new_id(), ground.new_id(), ground.new_key()
        said = (agent_id, ground.version, ground.schema, instance_id, key, False)
        made = await ours.agent_instances.register(*said)
        assert (made.agent_id, made.id) == (agent_id, instance_id)
        assert await ours.agent_instances.register(*said) == made
        unnamed = await ours.agent_instances.register(None, ground.version, ground.schema)
        assert unnamed.agent_id != agent_id

    async def test_models(self, ours, models, ground):
        """Versions may be models, whose fields that were not set are not sent."""
        kinds = models("agent_instance")
        risk = kinds.DataRisk(
            action_profile=kinds.ActionProfile(read_data="allowed"),
            params_data_categories=kinds.DataCategories(classification="secret"),
            result_data_categories=kinds.DataCategories(),
        )
        span_type = kinds.SpanTypeSchemaForCreate(
            name="t", params_schema={"type": "object"}, result_schema={}, title="T", data_risk=risk
        )
        quality = kinds.QualitySchemaForCreate(name="verdict", schema={"type": "object"})
        made = await ours.agent_instances.register(
            agent_id=ground.new_id(),
            agent_version=kinds.AgentVersionForRegister(name="n", external_identifier="1"),
            agent_schema_version=kinds.AgentSchemaVersionForRegister(
                external_identifier="s", span_type_schemas=[span_type], quality_schemas=[quality]
            ),
        )
        version = (await ours.request("GET", f"/api/v1/agent_version/{made.agent_version_id}"))["details"]
        path = f"/api/v1/agent_schema_version/{version['agent_schema_version_id']}"
        declared = (await ours.request("GET", path))["details"]
        assert declared["span_type_schemas"]["t"]["title"] == "T"
        assert declared["span_type_schemas"]["t"]["data_risk"] == risk.model_dump()
        assert declared["quality_schemas"]["verdict"]["schema"] == {"type": "object"}

    async def test_one_agent_many_runs(self, client, ground):
        """The same versions again are the same versions."""
        agent_id = ground.new_id()
        first, second = [await ground.register(client, agent_id) for _ in range(2)]
        assert first.id != second.id
        assert first.agent_version_id == second.agent_version_id
        assert first.agent_deployment_id == second.agent_deployment_id

    @pytest.mark.parametrize(
        ("change", "wrong"),
        [
            ({"agent_version": {}}, {"agent_version": {"external_identifier": ["is required"]}}),
            (
                {"agent_schema_version": {"external_identifier": "s"}},
                {"agent_schema_version": {"span_type_schemas": ["is required"]}},
            ),
            ({"id": "my-run"}, {"id": ["is not a PFID"]}),
            ({"purpose": "fun"}, {"purpose": ["is not one of live, smoke_test, eval"]}),
        ],
    )
    async def test_refusals(self, client, errors, ground, change, wrong):
        """What is wrong is said field by field, nested as the request was."""
        said = {"agent_version": ground.version, "agent_schema_version": ground.schema, **change}
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agent_instances.register(**said)
        assert (refused.value.status_code, refused.value.errors) == (422, wrong)

    async def test_taken(self, client, errors, ground):
        """An id that is taken is refused."""
        made = await ground.register(client)
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await ground.register(client, id=made.id)
        assert "id" in refused.value.errors


class TestLife:
    @pytest.mark.parametrize("status", ["complete", "failed"])
    async def test_positions(self, client, ground, status):
        """start and finish take what the documentation names, in its order."""
        made = await ground.register(client)
        started = await client.agent_instances.start(made.id, AT, ground.new_key())
        assert (started.status, started.started_at, started.finished_at) == ("active", AT, None)
        later = AT + timedelta(seconds=5)
        ended = await client.agent_instances.finish(made.id, status, later, ground.new_key())
        assert (ended.status, ended.started_at, ended.finished_at) == (status, AT, later)
        assert ended.updated_at >= ended.inserted_at
        assert await client.agent_instances.get(made.id) == ended

    async def test_keywords(self, client, ground):
        """And by name."""
        made = await ground.register(client)
        key = ground.new_key()
        started = await client.agent_instances.start(
            agent_instance_id=made.id, timestamp=AT, idempotency_key=key
        )
        assert started.started_at == AT
        ended = await client.agent_instances.finish(
            agent_instance_id=made.id, status="failed", timestamp=AT, idempotency_key=key
        )
        assert (ended.status, ended.finished_at) == ("failed", AT)

    async def test_defaults(self, client, ground):
        """Nothing but the id is needed: it is now, and the run is complete."""
        made = await ground.register(client)
        before = datetime.now(timezone.utc)
        started = await client.agent_instances.start(made.id)
        ended = await client.agent_instances.finish(made.id)
        assert ended.status == "complete"
        assert before <= started.started_at <= ended.finished_at <= datetime.now(timezone.utc)

    async def test_other_zones(self, client, ground):
        """A time of another zone is the same moment."""
        made = await ground.register(client)
        started = await client.agent_instances.start(made.id, AT.astimezone(INDIA))
        assert started.started_at == AT
        west = (AT + timedelta(hours=1)).astimezone(timezone(-timedelta(hours=9, minutes=15)))
        assert (await client.agent_instances.finish(made.id, timestamp=west)).finished_at == west

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a zone of the process")
    async def test_local_times(self, ours, ground, monkeypatch):
        """A time without a zone is local, and not in UTC."""
        made = await ground.register(ours)
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "XXX-05:30")
            time.tzset()
            try:
                started = await ours.agent_instances.start(made.id, datetime(2026, 1, 1, 18, 0, 15, 123456))
                ended = await ours.agent_instances.finish(made.id, timestamp=datetime(2026, 1, 1, 19))
            finally:
                elsewhere.undo()
                time.tzset()
        assert (started.started_at, ended.finished_at) == (AT, datetime(2026, 1, 1, 19, tzinfo=INDIA))

    async def test_cancelled(self, client, errors, ground):
        """A run that has not begun can be cancelled, and one that has cannot."""
        made = await ground.register(client)
        cancelled = await client.agent_instances.finish(made.id, status="cancelled", timestamp=AT)
        assert (cancelled.status, cancelled.started_at, cancelled.finished_at) == ("cancelled", AT, AT)
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agent_instances.finish(await ground.run(client), "cancelled")
        assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

    async def test_what_the_state_forbids(self, client, errors, ground):
        """Starting twice and finishing twice are a 409 with the code that says so."""
        run = await ground.run(client)
        with pytest.raises(errors.PrefactorApiError) as twice:
            await client.agent_instances.start(run)
        await client.agent_instances.finish(run)
        with pytest.raises(errors.PrefactorApiError) as after:
            await client.agent_instances.finish(run, "failed")
        for refused in (twice, after):
            assert type(refused.value) is errors.PrefactorApiError
            assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

    async def test_counts(self, client, ground):
        """A run counts its steps."""
        run = await ground.run(client)
        for status in ("active", "complete", "complete", "failed", "cancelled"):
            await client.agent_spans.create(run, "test:llm", status)
        counts = (await client.agent_instances.get(run)).span_counts
        assert (counts.total, counts.active, counts.complete, counts.failed) == (5, 1, 2, 1)
        assert (counts.cancelled, counts.finished) == (1, 4)

    @pytest.mark.parametrize("verb", ["get", "start", "finish"])
    async def test_unknown_id(self, client, errors, ground, verb):
        """An id that nobody has is not found."""
        with pytest.raises(errors.PrefactorNotFoundError) as refused:
            await getattr(client.agent_instances, verb)(ground.new_id())
        assert (refused.value.status_code, refused.value.code) == (404, "not_found")


class TestTwice:
    async def test_every_step(self, client, ground):
        """Every step, sent again with its key when the run is over, answers as it did then and does nothing."""
        instances, agent_id, instance_id = client.agent_instances, ground.new_id(), ground.new_id()
        keys = [ground.new_key() for _ in range(4)]

        async def do():
            return [
                await ground.register(client, agent_id, id=instance_id, idempotency_key=keys[0]),
                await instances.start(instance_id, AT, keys[1]),
                await instances.record_quality(instance_id, "verdict", {"a": 1}, keys[2]),
                await instances.finish(instance_id, "failed", None, keys[3]),
            ]

        first = await do()
        assert [each.status for each in first] == ["pending", "active", "active", "failed"]
        assert await do() == first
        assert [run["id"] for run in ground.store.instances(agent_id)[0]] == [instance_id]

    async def test_another_content(self, client, errors, ground):
        """A key that comes again with another content is refused, with a code of its own."""
        run, key = await ground.run(client), ground.new_key()
        await client.agent_instances.finish(run, "failed", idempotency_key=key)
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agent_instances.finish(run, "complete", idempotency_key=key)
        assert (refused.value.status_code, refused.value.code) == (409, "idempotency_conflict")


class TestQuality:
    async def test_record(self, client, ground):
        """An evaluation is set, those of other names stay, and None removes it; also after the end."""
        run = await ground.run(client)
        rate = client.agent_instances.record_quality
        payload = {"score": 0.5, "why": None, "said": ["schön", "🙂"], "deep": {"a": [{}]}}
        assert (await rate(run, "verdict", payload, ground.new_key())).quality_payloads == {
            "verdict": payload
        }
        await client.agent_instances.finish(run)
        both = await rate(agent_instance_id=run, name="tone", payload={}, idempotency_key=ground.new_key())
        assert both.quality_payloads == {"verdict": payload, "tone": {}}
        assert (await rate(run, "verdict")).quality_payloads == {"tone": {}}
        assert (await rate(run, "tone", None)).quality_payloads == {}

    async def test_refusals(self, client, errors, ground):
        """Only what was declared can be recorded, of a run that exists."""
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agent_instances.record_quality(await ground.run(client), "undeclared", {})
        assert list(refused.value.errors) == ["name"]
        with pytest.raises(errors.PrefactorNotFoundError):
            await client.agent_instances.record_quality(ground.new_id(), "verdict", {})


class TestTerminate:
    async def test_an_active_run(self, ours, ground):
        """A run that is active is stopped, for a reason; asked again with the same key, it answers the same."""
        run, key = await ground.run(ours), ground.new_key()
        stopped = await ours.agent_instances.terminate(run, "über budget", AT, key)
        assert (stopped.status, stopped.termination_reason) == ("terminated", "über budget")
        assert stopped.finished_at == AT
        again = await ours.agent_instances.terminate(
            agent_instance_id=run, reason="über budget", timestamp=AT, idempotency_key=key
        )
        assert again == stopped == await ours.agent_instances.get(run)

    async def test_refusals(self, ours, errors, ground):
        """Only a run that is active, only for a reason, and only one that exists."""
        terminate = ours.agent_instances.terminate
        pending = (await ground.register(ours)).id
        run = await ground.run(ours)
        for already in (pending, run):
            if already == run:
                await terminate(run, "first")
            with pytest.raises(errors.PrefactorApiError) as refused:
                await terminate(already, "second")
            assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")
        with pytest.raises(errors.PrefactorValidationError) as wrong:
            await terminate(await ground.run(ours), "")
        assert list(wrong.value.errors) == ["reason"]
        with pytest.raises(errors.PrefactorNotFoundError):
            await terminate(ground.new_id(), "r")

    async def test_finish_after(self, client, errors, ground):
        """The agent's own finish comes too late, and is told so."""
        run = await ground.run(client)
        ground.store.terminate(run, "r")
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agent_instances.finish(run)
        assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")
        seen = await client.agent_instances.get(run)
        assert (seen.status, seen.termination_reason) == ("terminated", "r")


class TestReads:
    async def test_show(self, ours, ground):
        """A run is shown by its id or by its name in another system."""
        name = ground.new_name()
        made = await ground.register(ours, external_identifier=name)
        await ours.agent_instances.start(made.id)
        await ours.agent_spans.create(made.id, "test:llm", "complete")
        whole = await ours.agent_instances.get(made.id)
        show = ours.agent_instances.show
        assert await show(agent_instance_id=made.id) == whole
        found = await show(
            external_identifier=name,
            include_counts=True,
            include_costs=True,
            include_risk_score=True,
            include_alert_count=True,
        )
        assert found == whole
        assert found.span_schema_counts == {"by_name": {"test:llm": 1}}
        assert found.raised_alert_count == 0

    async def test_show_refusals(self, ours, errors, ground):
        """To show, the platform must be told what, and it must exist."""
        with pytest.raises(errors.PrefactorValidationError):
            await ours.agent_instances.show()
        with pytest.raises(errors.PrefactorNotFoundError):
            await ours.agent_instances.show(agent_instance_id=ground.new_id())
        with pytest.raises(errors.PrefactorNotFoundError):
            await ours.agent_instances.show(external_identifier="nobody")

    async def test_list(self, ours, ground):
        """The runs of an agent, or of one version of it, come page by page, each once."""
        agent_id = ground.new_id()
        made = [await ground.register(ours, agent_id) for _ in range(5)]
        other = await ours.agent_instances.register(
            agent_id, {"name": "n", "external_identifier": "v2"}, ground.schema
        )
        seen, offset = [], 0
        while offset is not None:
            page = await ours.agent_instances.list(agent_id, None, "-inserted_at", offset, 4)
            assert (page.pagination.item_count, page.pagination.page_offset) == (6, len(seen))
            seen += page
            offset = page.pagination.next_page_offset
        assert [each.id for each in seen] == [each.id for each in (other, *reversed(made))]
        assert (page.sorting.field, page.sorting.direction) == ("inserted_at", "desc")
        shared = seen[0].model_dump()
        assert shared == {name: getattr(other, name) for name in shared}
        of_version = await ours.agent_instances.list(
            agent_id=agent_id, agent_version_id=other.agent_version_id, sorting="id", offset=0, page_size=9
        )
        assert [each.id for each in of_version] == [other.id]
        assert await ours.agent_instances.list(ground.new_id()) == []

    async def test_agent_context(self, ours, errors, ground):
        """The digest of a run tells how many steps are in it, and when it was made."""
        run = await ground.run(ours)
        await ours.agent_spans.create(run, "test:llm", "complete", {"a": "ü"})
        context = await ours.agent_instances.agent_context(run)
        assert (context.span_count, context.body["spans"][0]["payload"]) == (1, {"a": "ü"})
        assert context.generated_at.tzinfo is not None
        with pytest.raises(errors.PrefactorNotFoundError):
            await ours.agent_instances.agent_context(ground.new_id())

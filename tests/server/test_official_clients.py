"""The official Python packages against the local platform: every call of `prefactor-http`, `prefactor-core` as used."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
from datetime import datetime, timezone

import pytest

http = pytest.importorskip("prefactor_http")
core = pytest.importorskip("prefactor_core")

from prefactor_http.exceptions import (  # noqa: E402
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorNotFoundError,
    PrefactorValidationError,
)
from prefactor_http.models.agent import AgentForCreate, AgentForUpdate  # noqa: E402

AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
VERSION = {"name": "My Agent", "external_identifier": "v1.0.0"}
SCHEMA = {
    "external_identifier": "s1",
    "span_type_schemas": [{"name": "agent:llm", "params_schema": {"type": "object"}, "title": "LLM Call"}],
    "quality_schemas": [{"name": "verdict", "schema": {"type": "object"}}],
}


def with_http(api, use, **config):
    """Run *use* with a `prefactor-http` client."""

    async def main():
        settings = {"api_url": api.platform.url, "api_token": api.platform.token, **config}
        async with http.PrefactorHttpClient(http.HttpClientConfig(**settings)) as client:
            return await use(client)

    return asyncio.run(main())


def with_core(api, use):
    """Run *use* with a `prefactor-core` client."""
    registry = core.SchemaRegistry()
    registry.register_type(name="agent:llm", params_schema={"type": "object"}, title="LLM Call")

    async def main():
        config = core.PrefactorCoreConfig(
            http_config=http.HttpClientConfig(api_url=api.platform.url, api_token=api.platform.token),
            schema_registry=registry,
        )
        async with core.PrefactorCoreClient(config) as client:
            return await use(client)

    return asyncio.run(main())


class TestHttp:
    def test_agents(self, api):
        """create, get, show, update, list, retire, reinstate, delete."""

        async def use(client):
            agents = client.agents
            wanted = AgentForCreate(name="A", external_identifier=api.new_name(), description="d")
            made = await agents.create(wanted, idempotency_key=api.new_id())
            assert await agents.get(made.id) == made
            assert await agents.show(agent_id=made.id, include_counts=True, include_risk_rollup=True) == made
            assert await agents.show(external_identifier=wanted.external_identifier) == made
            changed = await agents.update(made.id, AgentForUpdate(name="B"), idempotency_key=api.new_id())
            assert (changed.name, changed.description) == ("B", "d")
            listed = await agents.list_agents(sorting="-id", offset=0, page_size=100)
            assert changed.id in [each.id for each in listed]
            assert (await agents.retire(made.id)).status == "retired"
            assert (await agents.reinstate(made.id, idempotency_key=api.new_id())).status == "pending"
            assert (await agents.delete(made.id)).id == made.id
            with pytest.raises(PrefactorNotFoundError):
                await agents.get(made.id)

        with_http(api, use)

    def test_instances_and_spans(self, api):
        """register, start, get, record_quality, finish; span create and finish."""

        async def use(client):
            instance_id = api.new_id()
            made = await client.agent_instances.register(
                agent_version=VERSION,
                agent_schema_version=SCHEMA,
                agent_id=api.new_id(),
                environment_id=api.register()["environment_id"],
                id=instance_id,
                idempotency_key=api.new_id(),
                purpose="smoke_test",
                external_identifier="run-1",
            )
            assert (made.id, made.status, made.purpose) == (instance_id, "pending", "smoke_test")
            started = await client.agent_instances.start(made.id, timestamp=AT, idempotency_key=api.new_id())
            assert (started.status, started.started_at) == ("active", AT)
            controls = []
            span = await client.agent_spans.create(
                agent_instance_id=made.id,
                schema_name="agent:llm",
                status="active",
                payload={"model": "m"},
                id=api.new_id(),
                started_at=AT,
                idempotency_key=api.new_id(),
                control_signal_callback=controls.append,
            )
            assert (span.schema_title, span.started_at) == ("LLM Call", AT)
            child = await client.agent_spans.create(
                made.id, "agent:llm", "complete", {}, {"a": 1}, parent_span_id=span.id, finished_at=AT
            )
            assert (child.parent_span_id, child.result_payload) == (span.id, {"a": 1})
            done = await client.agent_spans.finish(
                span.id,
                status="failed",
                result_payload={"error": "e"},
                timestamp=AT,
                idempotency_key=api.new_id(),
                control_signal_callback=controls.append,
            )
            assert (done.status, done.finished_at, controls) == ("failed", AT, [])
            rated = await client.agent_instances.record_quality(
                made.id, "verdict", {"ok": True}, api.new_id()
            )
            assert rated.quality_payloads == {"verdict": {"ok": True}}
            ended = await client.agent_instances.finish(made.id, idempotency_key=api.new_id())
            assert (ended.status, ended.span_counts.finished) == ("complete", 2)
            assert await client.agent_instances.get(made.id) == ended

        with_http(api, use)

    def test_bulk(self, api):
        """The example of the bulk client's own documentation, with the ids that it leaves to the reader."""

        async def use(client):
            register = http.BulkItem(
                _type="agent_instances/register",
                idempotency_key=f"register-{api.new_id()}",
                agent_id="bulk-agent",
                agent_version=VERSION,
                agent_schema_version=SCHEMA,
                id=api.new_id(),
            )
            span = http.BulkItem(
                _type="agent_spans/create",
                idempotency_key=f"span-{api.new_id()}",
                agent_instance_id=register.id,
                schema_name="agent:llm",
                status="active",
                payload={},
            )
            outputs = (await client.bulk.execute(http.BulkRequest(items=[register, span]))).outputs
            assert [output.status for output in outputs.values()] == ["success", "success"]

        with_http(api, use)

    def test_errors(self, api):
        """Every refusal becomes the client's right exception."""

        async def use(client):
            await client.validate_token()
            with pytest.raises(PrefactorNotFoundError):
                await client.agent_instances.get(api.new_id())
            with pytest.raises(PrefactorNotFoundError):
                await client.request("GET", "/api/v1/nothing")
            with pytest.raises(PrefactorValidationError) as refused:
                await client.agent_instances.register({}, {}, agent_id="a")
            assert refused.value.errors == {"agent_version": {"external_identifier": ["is required"]}}
            with pytest.raises(PrefactorApiError) as refused:
                await client.agent_instances.finish(api.register()["id"])
            assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

        async def knock(client):
            with pytest.raises(PrefactorAuthError) as refused:
                await client.validate_token()
            assert refused.value.code == "bad_authtoken"

        with_http(api, use)
        with_http(api, knock, api_token="wrong")


class TestCore:
    def test_quick_start(self, api):
        """The quick start of the README runs as it is printed, with nothing but address and token filled in."""
        readme = importlib.metadata.distribution("prefactor-core").read_text("METADATA")
        (code,) = [
            block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "asyncio.run" in block
        ]
        assert code.count("https://app.prefactorai.com") == code.count("your-token") == 1
        code = code.replace("https://app.prefactorai.com", api.platform.url).replace(
            "your-token", api.platform.token
        )
        before = set(runs_of(api, "my-agent"))

        async def call_llm():
            return "Hello back"

        exec(code, {"call_llm": call_llm, "__name__": "readme"})
        (run,) = set(runs_of(api, "my-agent")) - before
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "complete"
        (span,) = api.spans(run)
        assert (span["schema_title"], span["status"]) == ("LLM Call", "complete")
        assert span["payload"] == {"model": "gpt-4", "prompt": "Hello"}
        assert span["result_payload"] == {"response": "Hello back"}

    def test_shapes_of_runs(self, api):
        """Nested, failed, cancelled and never started spans, in several instances at once, are all recorded."""

        async def use(client):
            runs = [await client.create_agent_instance(VERSION, agent_id=f"core-{n}") for n in range(3)]
            for run in runs:
                await run.start()
            for run in runs:
                async with run.span("agent:llm") as outer:
                    await outer.start({"who": "outer"})
                    async with run.span("agent:llm") as inner:
                        await inner.start({"who": "inner"})
                        await inner.fail({"error": "e"})
                    async with run.span("agent:llm") as never:
                        await never.cancel()
                    async with run.span("agent:llm", payload={"who": "auto"}):
                        pass
                late, early = {"who": "late parent"}, {"who": "early child"}
                async with run.span("agent:llm", payload=late), run.span("agent:llm", payload=early):
                    pass
                open_span = await run.create_span("agent:llm", payload={"who": "open"})
                await run.finish_span(open_span, result_payload={"a": 1})
            await runs[0].finish()
            await runs[1].finish("failed")
            return [run.id for run in runs]

        ids = with_core(api, use)
        states = [api.get(f"agent_instance/{run}")["details"]["status"] for run in ids]
        assert states == ["complete", "failed", "active"]
        for run in ids:
            spans = {span["payload"].get("who", "cancelled"): span for span in api.spans(run)}
            assert {who: span["status"] for who, span in spans.items()} == {
                **dict.fromkeys(("outer", "auto", "late parent", "early child", "open"), "complete"),
                **{"inner": "failed", "cancelled": "cancelled"},
            }
            for child in ("inner", "cancelled", "auto"):
                assert spans[child]["parent_span_id"] == spans["outer"]["id"]
            # The client names a parent it has not sent yet by an id of its own; it is kept, and no span has it.
            assert len(spans["early child"]["parent_span_id"]) == 36
            assert spans["open"]["result_payload"] == {"a": 1}

    def test_termination(self, api):
        """A run that is terminated here is stopped there, with the reason."""

        async def use(client):
            run = await client.create_agent_instance(VERSION, agent_id="stopped")
            await run.start()
            span = await run.create_span("agent:llm")

            async def until_active():
                while (await client._http.agent_instances.get(run.id)).status != "active":
                    pass

            await asyncio.wait_for(until_active(), 10)
            api.post(f"agent_instance/{run.id}/terminate", {"reason": "over budget"})
            monitor = client._termination_monitor
            stopped = monitor.get_termination_event()
            await run.finish_span(span)
            await asyncio.wait_for(stopped.wait(), 10)
            assert monitor.termination_reason == "over budget"
            await run.finish()
            return run.id

        run = with_core(api, use)
        details = api.get(f"agent_instance/{run}")["details"]
        assert (details["status"], details["termination_reason"]) == ("terminated", "over budget")


def runs_of(api, agent: str) -> list[str]:
    found = [each["id"] for each in api.platform.store.agents() if each["external_identifier"] == agent]
    return [run["id"] for each in found for run in api.platform.store.instances(each)[0]]

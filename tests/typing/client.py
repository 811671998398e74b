"""The types that users of the client see. Checked by mypy --strict, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import assert_never, assert_type

from prefactor_trace.http import (
    AgentInstance,
    AgentSchemaVersionForRegister,
    AgentSpan,
    AgentStatus,
    AgentVersionForRegister,
    ApiResponse,
    BulkItem,
    BulkOutput,
    BulkRequest,
    BulkResponse,
    FinishStatus,
    HttpClientConfig,
    PrefactorApiError,
    PrefactorHttpClient,
    PrefactorHttpError,
    PrefactorResponseContractError,
    PrefactorRetryExhaustedError,
    PrefactorValidationError,
    QualitySchemaForCreate,
    SpanTypeSchemaForCreate,
)
from prefactor_trace.http.endpoints.agent_instance import AgentInstanceClient
from prefactor_trace.http.models import (
    Agent,
    AgentContext,
    AgentForCreate,
    AgentForUpdate,
    AgentInstanceSummary,
    AgentSpanSummary,
    AgentSummary,
    DataCategories,
    ListResponse,
    Page,
    PaginationOutput,
    Sorting,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


async def configuring() -> None:
    config = HttpClientConfig("https://app.prefactorai.com", "token", max_retries=5)
    assert_type(config.request_timeout, float)
    assert_type(config.retry_on_status_codes, tuple[int, ...])
    assert_type(config.default_idempotency_key, "str | None")
    HttpClientConfig("https://app.prefactorai.com")  # type: ignore[call-arg]
    HttpClientConfig("https://app.prefactorai.com", "token", retries=5)  # type: ignore[call-arg]
    async with PrefactorHttpClient(config, sdk_header="mine@1.0") as client:
        assert_type(client, PrefactorHttpClient)
        assert_type(client.agent_instances, AgentInstanceClient)
        assert_type(await client.validate_token(), dict[str, Any])
        assert_type(await client.request("GET", "/api/v1/account", params={"a": 1}), dict[str, Any])
        await client.request("GET", "/api/v1/account", {"a": 1})  # type: ignore[call-arg]
        client.agent_instances = AgentInstanceClient(client)  # type: ignore[misc]


class Client(PrefactorHttpClient):
    """A user's own."""


async def subclass(config: HttpClientConfig) -> None:
    async with Client(config) as client:
        assert_type(client, Client)


async def registering(
    runs: AgentInstanceClient,
    version: dict[str, Any],
    schema: Mapping[str, Any],
    either: str | None,
) -> None:
    # The documented order.
    assert_type(await runs.register("agent", version, schema), AgentInstance)
    await runs.register("agent", version, schema, "id", "the-key", False)
    await runs.register(either, version, schema, id=either, environment_id=either, purpose="eval")
    await runs.register(None, version, schema)
    # The released order.
    assert_type(await runs.register(version, schema), AgentInstance)
    await runs.register(version, schema, "agent", "environment", "id", "the-key", True, "live", "run-1")
    await runs.register(version, schema, either, either, update_current_version=False)
    # By name, as nearly everybody does.
    await runs.register(agent_id="agent", agent_version=version, agent_schema_version=schema)
    await runs.register(agent_version=version, agent_schema_version=schema, external_identifier="run-1")
    # Literal dicts, and models.
    await runs.register(
        "agent",
        {"name": "A", "external_identifier": "v1"},
        {"external_identifier": "s1", "span_type_schemas": [{"name": "a:b", "params_schema": {}}]},
    )
    types = [SpanTypeSchemaForCreate(name="a:b", params_schema={"type": "object"})]
    kinds = [QualitySchemaForCreate(name="verdict", schema={"type": "object"})]
    described = AgentVersionForRegister(name="A", external_identifier="v1")
    declared = AgentSchemaVersionForRegister(span_type_schemas=types, quality_schemas=kinds)
    await runs.register("agent", described, declared)
    await runs.register(described, declared, "agent")
    await runs.register(described, schema)

    await runs.register()  # type: ignore[call-overload]
    await runs.register("agent")  # type: ignore[call-overload]
    await runs.register("agent", version)  # type: ignore[call-overload]
    await runs.register(version)  # type: ignore[call-overload]
    await runs.register(schema, agent_id="agent")  # type: ignore[call-overload]
    await runs.register("agent", "v1", schema)  # type: ignore[call-overload]
    await runs.register("agent", version, schema, purpose="fun")  # type: ignore[call-overload]
    await runs.register("agent", version, schema, "id", "the-key", True, "environment")  # type: ignore[call-overload]
    await runs.register(version, schema, agent="agent")  # type: ignore[call-overload]


async def runs_of(runs: AgentInstanceClient, at: datetime) -> None:
    assert_type(await runs.start("id", at, "the-key"), AgentInstance)
    assert_type(await runs.finish("id", "failed", at), AgentInstance)
    assert_type(await runs.finish("id", status=None), AgentInstance)
    assert_type(await runs.terminate("id", "over budget"), AgentInstance)
    assert_type(await runs.record_quality("id", "verdict", {"ok": True}), AgentInstance)
    assert_type(await runs.get("id"), AgentInstance)
    assert_type(await runs.show(external_identifier="run-1", include_counts=True), AgentInstance)
    assert_type(await runs.agent_context("id"), AgentContext)
    await runs.start("id", "2026-01-01T00:00:00Z")  # type: ignore[arg-type]
    await runs.finish("id", "terminated")  # type: ignore[arg-type]
    await runs.finish("id", "done")  # type: ignore[arg-type]
    await runs.terminate("id")  # type: ignore[call-arg]
    await runs.show("id")  # type: ignore[call-arg]
    _ = runs.get("id").id  # type: ignore[attr-defined]


async def spans(client: PrefactorHttpClient, at: datetime, status: FinishStatus) -> None:
    def stop(reason: str | None) -> None:
        del reason

    span = await client.agent_spans.create(
        "run", "agent:llm", "active", {"a": 1}, started_at=at, control_signal_callback=stop
    )
    assert_type(span, AgentSpan)
    assert_type(span.payload, dict[str, Any])
    assert_type(span.result_payload, "dict[str, Any] | None")
    assert_type(span.finished_at, "datetime | None")
    await client.agent_spans.create("run", "agent:llm", status, sensitive_encoding=True)
    assert_type(await client.agent_spans.finish(span.id, status, {"a": 1}), AgentSpan)
    assert_type(await client.agent_spans.get(span.id, redacted=True), AgentSpan)
    await client.agent_spans.create("run", "agent:llm")  # type: ignore[call-arg]
    await client.agent_spans.create("run", "agent:llm", "running")  # type: ignore[arg-type]
    await client.agent_spans.finish(span.id, "active")  # type: ignore[arg-type]
    await client.agent_spans.finish(span.id, control_signal_callback=lambda: None)  # type: ignore[misc, arg-type]


async def agents(client: PrefactorHttpClient) -> None:
    agent = await client.agents.create(AgentForCreate(name="A", description="d"), "the-key")
    assert_type(agent, Agent)
    assert_type(agent.status, Literal["pending", "active", "dormant", "retired"])
    assert_type(await client.agents.update(agent.id, AgentForUpdate(team_id=None)), Agent)
    assert_type(await client.agents.show(external_identifier="a"), Agent)
    assert_type(await client.agents.list_agents(sorting="-id", page_size=100), Page[AgentSummary])
    for deed in (client.agents.retire, client.agents.reinstate, client.agents.delete, client.agents.get):
        assert_type(await deed(agent.id), Agent)
    await client.agents.create({"name": "A"})  # type: ignore[arg-type]
    AgentForCreate(description="d")  # type: ignore[call-arg]


async def pages(client: PrefactorHttpClient) -> None:
    page = await client.agent_instances.list("agent", page_size=100)
    assert_type(page, Page[AgentInstanceSummary])
    assert_type(page[0], AgentInstanceSummary)
    assert_type(page[:2], list[AgentInstanceSummary])
    assert_type([run.risk_score for run in page], "list[dict[str, Any] | None]")
    assert_type(page.pagination, PaginationOutput | None)
    assert_type(page.sorting, Sorting | None)
    if page.pagination is not None:
        assert_type(page.pagination.next_page_offset, "int | None")
    as_list: list[AgentInstanceSummary] = page
    as_list.sort(key=lambda run: run.inserted_at)
    for span in await client.agent_spans.list(agent_instance_id="run", include_risk_level=True):
        assert_type(span, AgentSpanSummary)
        assert_type(span.risk_score, "float | None")
        assert_type(span.risk_level, "Literal['low', 'medium', 'high', 'critical'] | None")
    await client.agent_instances.list()  # type: ignore[call-arg]
    _ = page[0].span_counts  # type: ignore[attr-defined]


async def bulk(client: PrefactorHttpClient, parameters: dict[str, Any]) -> None:
    item = BulkItem(_type="agents/show", idempotency_key="the-key-1", agent_id="agent", **parameters)
    assert_type(item.type, str)
    answer = await client.bulk.execute(BulkRequest(items=[item]))
    assert_type(answer, BulkResponse)
    assert_type(answer.outputs["the-key-1"], BulkOutput)
    assert_type(answer.outputs["the-key-1"].status, str)
    BulkItem(idempotency_key="the-key-1")  # type: ignore[call-arg]
    BulkItem(_type="agents/show")  # type: ignore[call-arg]
    BulkItem(_type="agents/show", idempotency_key=1)  # type: ignore[arg-type]
    await client.bulk.execute([item])  # type: ignore[arg-type]


def statuses(run: AgentInstance, span: AgentSpan) -> str:
    assert_type(run.status, AgentStatus)
    assert_type(span.status, AgentStatus)
    assert_type(run.purpose, "Literal['live', 'smoke_test', 'eval'] | None")
    assert_type(DataCategories().health_and_medical, Literal["unknown", "included", "excluded"])
    DataCategories(health_and_medical="yes")  # type: ignore[arg-type]
    if run.status == "ended":  # type: ignore[comparison-overlap]
        return "no such word"
    match run.status:
        case "pending" | "active":
            return "goes on"
        case "terminated":
            return run.termination_reason or "stopped"
        case "complete" | "failed" | "cancelled" as ended:
            finish: FinishStatus = ended
            return finish
        case _:
            assert_never(run.status)


def envelopes(response: ApiResponse[AgentSpan], listed: ListResponse[Agent]) -> None:
    assert_type(response.details, AgentSpan)
    assert_type(listed.summaries, list[Agent])


async def errors(client: PrefactorHttpClient) -> None:
    try:
        await client.agents.get("agent")
    except PrefactorValidationError as error:
        assert_type(error.errors, dict[str, Any])
        assert_type(error.code, str)
    except PrefactorApiError as error:
        assert_type(error.status_code, int)
        assert_type(error.retry_after, "float | None")
    except PrefactorResponseContractError as error:
        assert_type(error.status_code, "int | None")
    except PrefactorRetryExhaustedError as error:
        assert_type(error.last_error, "Exception | None")
    except PrefactorHttpError as error:
        _ = error.status_code  # type: ignore[attr-defined]

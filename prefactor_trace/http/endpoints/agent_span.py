"""The calls about spans, which are steps of runs (contract section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefactor_trace.http.endpoints._endpoint import (
    Endpoint,
    body_of,
    paging,
    rfc3339,
    segment,
)
from prefactor_trace.http.models.agent_span import (
    AgentSpan,
    AgentSpanSummary,
    CreateAgentSpanRequest,
    FinishSpanRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from prefactor_trace.http.models.base import Page
    from prefactor_trace.http.models.types import AgentStatus, FinishStatus

__all__ = ["AgentSpanClient"]


class AgentSpanClient(Endpoint):
    """The calls about spans.

    Every method may raise the errors of `PrefactorHttpClient.request`; an unknown id raises
    `PrefactorNotFoundError`, content that the platform refuses `PrefactorValidationError`, and what is not possible
    in the present state `PrefactorApiError` with the code `invalid_action`.
    An idempotency key has 8 to 64 characters; by default each call makes one of its own.
    Times without a time zone are local. Arguments that cannot be sent raise ValueError or TypeError.
    """

    async def create(
        self,
        agent_instance_id: str,
        schema_name: str,
        status: AgentStatus,
        payload: dict[str, Any] | None = None,
        result_payload: dict[str, Any] | None = None,
        id: str | None = None,
        parent_span_id: str | None = None,
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        idempotency_key: str | None = None,
        control_signal_callback: Callable[[str | None], None] | None = None,
        *,
        sensitive_encoding: bool | None = None,
    ) -> AgentSpan:
        """Record a step, open or ended.

        POST /api/v1/agent_spans

        Args:
            agent_instance_id: The run.
            schema_name: The type of the step.
            status: How it stands. A step that has ended already is recorded whole, in its final status.
            payload: What went in.
            result_payload: What came out; only with a final status.
            id: A PFID of the account's partition; by default the platform makes one.
            parent_span_id: The step around it.
            started_at: When it began; by default now.
            finished_at: When it ended.
            idempotency_key: Names the call.
            control_signal_callback: Called with the reason if the run has been terminated.
            sensitive_encoding: Whether values are wrapped as sensitive ones.
        """
        request = CreateAgentSpanRequest(
            agent_instance_id=agent_instance_id,
            schema_name=schema_name,
            status=status,
            payload=payload or {},
            result_payload=result_payload,
            id=id,
            parent_span_id=parent_span_id,
            started_at=rfc3339(started_at),
            finished_at=rfc3339(finished_at),
            sensitive_encoding=sensitive_encoding,
        )
        response = await self._write("POST", "agent_spans", {"details": body_of(request)}, idempotency_key)
        return self._heard(response, control_signal_callback, "agent_spans.create")

    async def finish(
        self,
        agent_span_id: str,
        status: FinishStatus | None = None,
        result_payload: dict[str, Any] | None = None,
        timestamp: datetime | None = None,
        idempotency_key: str | None = None,
        control_signal_callback: Callable[[str | None], None] | None = None,
        *,
        sensitive_encoding: bool | None = None,
    ) -> AgentSpan:
        """Say that an open step has ended.

        POST /api/v1/agent_spans/{agent_span_id}/finish

        Args:
            agent_span_id: The step.
            status: How; `complete` by default. By its OpenAPI the platform takes `cancelled` only from `pending`.
            result_payload: What came out.
            timestamp: When; by default now.
            idempotency_key: Names the call.
            control_signal_callback: Called with the reason if the run has been terminated.
            sensitive_encoding: Whether values are wrapped as sensitive ones.

        Raises:
            PrefactorApiError: It has ended already (409, `invalid_action`).
        """
        request = FinishSpanRequest(
            status=status,
            result_payload=result_payload,
            timestamp=rfc3339(timestamp),
            sensitive_encoding=sensitive_encoding,
        )
        path = f"agent_spans/{segment(agent_span_id)}/finish"
        response = await self._write("POST", path, body_of(request), idempotency_key)
        return self._heard(response, control_signal_callback, "agent_spans.finish")

    async def get(self, agent_span_id: str, *, redacted: bool = False) -> AgentSpan:
        """Return a step.

        GET /api/v1/agent_spans/{agent_span_id}

        Args:
            agent_span_id: The step.
            redacted: Without its sensitive values.
        """
        response = await self._read(f"agent_spans/{segment(agent_span_id)}", {"redacted": redacted})
        return self._details(response, AgentSpan, "agent_spans.get")

    async def list(
        self,
        agent_instance_id: str | None = None,
        agent_id: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        include_summaries: bool = False,
        include_risk_level: bool = False,
        sorting: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
    ) -> Page[AgentSpanSummary]:
        """Return a page of the steps of a run or of an agent: a list with `pagination` and `sorting`.

        GET /api/v1/agent_spans

        Args:
            agent_instance_id: The run; this or the agent must be given.
            agent_id: The agent.
            start_time: Only steps from then on.
            end_time: Only steps until then.
            include_summaries: Fill `summary`.
            include_risk_level: Fill `risk_level` and `risk_score`.
            sorting: Field to sort by, with a minus for descending.
            offset: Number of the first item, from zero.
            page_size: Items on the page, 1 to 100.
        """
        wanted = {
            "agent_instance_id": agent_instance_id,
            "agent_id": agent_id,
            "start_time": rfc3339(start_time),
            "end_time": rfc3339(end_time),
            "include_summaries": include_summaries,
            "include_risk_level": include_risk_level,
        }
        response = await self._read("agent_spans", {**wanted, **paging(sorting, offset, page_size)})
        return self._page(response, AgentSpanSummary, "agent_spans.list")

    def _heard(
        self, response: dict[str, Any], callback: Callable[[str | None], None] | None, operation: str
    ) -> AgentSpan:
        """Read an answer about a step, and pass on that the run has been terminated (contract section 3.4)."""
        control = response.get("control")
        if callback is not None and isinstance(control, dict) and control.get("terminate"):
            callback(control.get("reason"))
        return self._details(response, AgentSpan, operation)

"""Spans, which are steps of runs (contract section 3)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from prefactor_trace.http.models.base import ApiModel
from prefactor_trace.http.models.types import AgentStatus, FinishStatus, Words

__all__ = ["AgentSpan", "AgentSpanSummary", "CreateAgentSpanRequest", "FinishSpanRequest"]


class CreateAgentSpanRequest(ApiModel):
    """The `details` of a create call, and its key, which stands beside them (contract section 3.2).

    Attributes:
        agent_instance_id: The run.
        schema_name: The type of the step.
        status: How it stands; a step that has ended already is created in its final status.
        payload: What went in.
        result_payload: What came out; only with a final status.
        id: A PFID of the account's partition; by default the platform makes one.
        parent_span_id: The step around it.
        started_at: When it began, RFC 3339; by default now.
        finished_at: When it ended.
        sensitive_encoding: Whether values are wrapped as sensitive ones (contract section 3.8).
        idempotency_key: 8 to 64 characters.
    """

    agent_instance_id: str
    schema_name: str
    status: AgentStatus
    payload: dict[str, Any] = Field(default_factory=dict)
    result_payload: dict[str, Any] | None = None
    id: str | None = None
    parent_span_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: str | None = None


class FinishSpanRequest(ApiModel):
    """The body of a finish call (contract section 3.5).

    Attributes:
        status: How it ended; by default `complete`.
        result_payload: What came out.
        timestamp: When it ended, RFC 3339; by default now.
        sensitive_encoding: Whether values are wrapped as sensitive ones.
        idempotency_key: 8 to 64 characters.
    """

    status: FinishStatus | None = None
    result_payload: dict[str, Any] | None = None
    timestamp: str | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: str | None = None


def _empty_for_null(payload: Any) -> Any:
    return {} if payload is None else payload  # what a discarded payload looks like is not published


class AgentSpan(ApiModel):
    """A step.

    Attributes:
        type: Always `agent_span`.
        id: PFID, as all ids.
        account_id: The account.
        agent_id: The agent.
        agent_instance_id: The run.
        parent_span_id: The step around it, None at the top.
        schema_name: Its type.
        schema_title: What people call its type.
        status: How it stands.
        purpose: `activity`, `quality` or `alert`.
        payload: What went in.
        result_payload: What came out.
        payload_byte_size_estimate: How large both are, in bytes.
        sensitive_encoding: Whether values are wrapped as sensitive ones.
        summary: One line, made by the type's template.
        data_risk: How risky its type is.
        started_at: When it began.
        inserted_at: When the platform first heard of it.
        updated_at: When it was last changed.
        finished_at: When it ended, None before.
    """

    type: Literal["agent_span"]
    id: str
    account_id: str | None = None
    agent_id: str | None = None
    agent_instance_id: str
    parent_span_id: str | None = None
    schema_name: str
    schema_title: str | None = None
    status: Annotated[AgentStatus, Words()]
    purpose: Annotated[Literal["activity", "quality", "alert"], Words()] | None = None
    payload: Annotated[dict[str, Any], BeforeValidator(_empty_for_null)] = Field(default_factory=dict)
    result_payload: dict[str, Any] | None = None
    payload_byte_size_estimate: int | None = None
    sensitive_encoding: bool | None = None
    summary: str | None = None
    data_risk: dict[str, Any] | None = None
    started_at: datetime | None = None
    inserted_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None


class AgentSpanSummary(AgentSpan):
    """A step in a list.

    Attributes:
        risk_level: How risky it is, if that was asked for and can be told.
        risk_score: The same as a number.
    """

    risk_level: Annotated[Literal["low", "medium", "high", "critical"], Words()] | None = None
    risk_score: float | None = None

"""Instances, which are runs of agents, and the schemas they declare (contract sections 2 and 7)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from prefactor_trace.http.models.base import ApiModel
from prefactor_trace.http.models.types import AgentStatus, FinishStatus, InstancePurpose, Words

__all__ = [
    "ActionProfile",
    "AgentContext",
    "AgentInstance",
    "AgentInstanceRecordQuality",
    "AgentInstanceSpanCounts",
    "AgentInstanceSummary",
    "AgentSchemaVersionForRegister",
    "AgentVersionForRegister",
    "DataCategories",
    "DataRisk",
    "FinishInstanceRequest",
    "QualitySchemaDetails",
    "QualitySchemaForCreate",
    "RegisterAgentInstanceRequest",
    "RuntimeEnvironment",
    "SpanTypeSchemaForCreate",
    "TerminateInstanceRequest",
    "TimestampRequest",
]

_Action: TypeAlias = Annotated[Literal["unknown", "allowed", "disallowed"], Words()]
_Category: TypeAlias = Annotated[Literal["unknown", "included", "excluded"], Words()]
_Classification: TypeAlias = Annotated[
    Literal["unknown", "public", "internal", "confidential", "restricted", "secret"], Words()
]


# -- risk --------------------------------------------------------------------------------------------------


class ActionProfile(ApiModel):
    """What steps of a type do (contract section 7.3)."""

    create_data: _Action = "unknown"
    read_data: _Action = "unknown"
    update_data: _Action = "unknown"
    destroy_data: _Action = "unknown"
    financial_transactions: _Action = "unknown"
    external_communication: _Action = "unknown"


class DataCategories(ApiModel):
    """What kinds of data are in the payloads or results of a type, and how confidential they are at most."""

    personal_identifiers: _Category = "unknown"
    contact_information: _Category = "unknown"
    financial_information: _Category = "unknown"
    health_and_medical: _Category = "unknown"
    criminal_justice: _Category = "unknown"
    authentication_and_secrets: _Category = "unknown"
    organisational_confidential: _Category = "unknown"
    minors_data: _Category = "unknown"
    location_and_tracking: _Category = "unknown"
    behavioural_and_inferred: _Category = "unknown"
    gdpr_racial_or_ethnic_origin: _Category = "unknown"
    gdpr_political_opinions: _Category = "unknown"
    gdpr_religious_or_philosophical_beliefs: _Category = "unknown"
    gdpr_trade_union_membership: _Category = "unknown"
    gdpr_genetic_data: _Category = "unknown"
    gdpr_biometric_for_identification: _Category = "unknown"
    gdpr_sex_life_or_sexual_orientation: _Category = "unknown"
    classification: _Classification = "unknown"


class DataRisk(ApiModel):
    """How risky steps of a type are.

    Attributes:
        action_profile: What they do.
        params_data_categories: What is in their payloads.
        result_data_categories: What is in their results.
    """

    action_profile: ActionProfile
    params_data_categories: DataCategories
    result_data_categories: DataCategories


# -- schemas -----------------------------------------------------------------------------------------------


class SpanTypeSchemaForCreate(ApiModel):
    """A type of step, as it is declared.

    Attributes:
        name: Such as `agent:llm`.
        params_schema: JSON schema of the payloads.
        result_schema: JSON schema of the results.
        title: What people call it; by default the name.
        description: What it is for.
        template: Liquid template of the one-line summary; payload and result fields are in scope.
        data_risk: How risky it is.
    """

    name: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any] | None = None
    title: str | None = None
    description: str | None = None
    template: str | None = None
    data_risk: DataRisk | None = None


class QualitySchemaForCreate(ApiModel):
    """A kind of evaluation, as it is declared.

    Attributes:
        name: Under which evaluations are recorded.
        schema_: JSON schema of the evaluations; `schema` on the wire.
        title: What people call it; by default the name.
        description: What it is for.
        template: Liquid template of the one-line summary.
        data_risk: How risky it is.
    """

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    title: str | None = None
    description: str | None = None
    template: str | None = None
    data_risk: DataRisk | None = None


class QualitySchemaDetails(ApiModel):
    """A kind of evaluation, as the platform tells it.

    Attributes:
        name: Under which evaluations are recorded.
        title: What people call it.
        description: What it is for.
        template: Liquid template of the one-line summary.
        data_risk: How risky it is.
        schema_: JSON schema of the evaluations; `schema` on the wire.
        schema_validation: `status`, `success` or `error`, and `message`.
    """

    name: str
    title: str
    description: str | None = None
    template: str | None = None
    data_risk: DataRisk
    schema_: dict[str, Any] = Field(alias="schema")
    schema_validation: dict[str, Any]


class AgentSchemaVersionForRegister(ApiModel):
    """The types of steps that a run declares.

    Attributes:
        external_identifier: The version's name; the same name means the same content, for ever.
        span_schemas: Older form: type → JSON schema of the payloads.
        span_result_schemas: Older form: type → JSON schema of the results.
        span_type_schemas: The types.
        quality_schemas: The kinds of evaluation.
    """

    external_identifier: str | None = None
    span_schemas: dict[str, dict[str, Any]] | None = None
    span_result_schemas: dict[str, dict[str, Any]] | None = None
    span_type_schemas: list[SpanTypeSchemaForCreate] | None = None
    quality_schemas: list[QualitySchemaForCreate] | None = None


class RuntimeEnvironment(ApiModel):
    """What an agent version runs on.

    Attributes:
        agent_sdk: Agent frameworks, `name@version`.
        os: Such as `linux`.
        prefactor_sdk: Prefactor SDKs, `name@version`.
        runtime: Such as `cpython@3.11`.
    """

    agent_sdk: list[str] | None = None
    os: str | None = None
    prefactor_sdk: list[str] | None = None
    runtime: str | None = None


class AgentVersionForRegister(ApiModel):
    """The version of the agent that runs.

    Attributes:
        name: What people call the agent.
        external_identifier: The version's name, such as `v1.0.0`; the same name means the same content, for ever.
        description: What it is for.
        runtime_environment: What it runs on.
    """

    name: str | None = None
    external_identifier: str | None = None
    description: str | None = None
    runtime_environment: RuntimeEnvironment | None = None


# -- requests ----------------------------------------------------------------------------------------------


class RegisterAgentInstanceRequest(ApiModel):
    """The body of a register call (contract section 2.2).

    Attributes:
        agent_id: The agent; left out with a deployment token, which names it.
        environment_id: The environment; left out with a deployment token.
        agent_version: The version of the agent that runs.
        agent_schema_version: The types of steps it declares.
        id: A PFID of the account's partition; by default the platform makes one.
        external_identifier: The run's name in another system, unique for the agent.
        idempotency_key: 8 to 64 characters.
        update_current_version: Whether this becomes the deployment's current version.
        purpose: Why it runs.
    """

    agent_id: str | None = None
    environment_id: str | None = None
    agent_version: AgentVersionForRegister
    agent_schema_version: AgentSchemaVersionForRegister
    id: str | None = None
    external_identifier: str | None = None
    idempotency_key: str | None = None
    update_current_version: bool | None = None
    purpose: InstancePurpose | None = None


class TimestampRequest(ApiModel):
    """The body of a start call.

    Attributes:
        timestamp: When, RFC 3339; by default now.
        idempotency_key: 8 to 64 characters.
    """

    timestamp: str | None = None
    idempotency_key: str | None = None


class FinishInstanceRequest(ApiModel):
    """The body of a finish call.

    Attributes:
        status: How it ended; by default `complete`.
        timestamp: When, RFC 3339; by default now.
        idempotency_key: 8 to 64 characters.
    """

    status: FinishStatus | None = None
    timestamp: str | None = None
    idempotency_key: str | None = None


class TerminateInstanceRequest(ApiModel):
    """The body of a terminate call (contract section 2.8).

    Attributes:
        reason: Why; the agent is told.
        timestamp: When, RFC 3339; by default now.
        idempotency_key: 8 to 64 characters.
    """

    reason: str
    timestamp: str | None = None
    idempotency_key: str | None = None


class AgentInstanceRecordQuality(ApiModel):
    """The body of a record_quality call, without key.

    Attributes:
        name: Which of the declared kinds of evaluation.
        payload: The evaluation; None removes it.
    """

    name: str
    payload: dict[str, Any] | None = None


# -- answers -----------------------------------------------------------------------------------------------


class AgentInstanceSpanCounts(ApiModel):
    """How many steps a run has, in all, by status, and in any of the ended ones (`finished`)."""

    total: int = 0
    active: int = 0
    complete: int = 0
    failed: int = 0
    cancelled: int = 0
    finished: int = 0


class AgentInstanceSummary(ApiModel):
    """A run in a list (contract section 2.3).

    Attributes:
        type: Always `agent_instance`.
        id: PFID, as all ids.
        account_id: The account.
        agent_id: The agent.
        agent_version_id: The version of the agent.
        environment_id: The environment.
        status: How it stands.
        inserted_at: When it was registered.
        updated_at: When it was last changed.
        started_at: When it started, None before.
        finished_at: When it ended, None before.
        last_activity_span_at: When its last step was heard of.
        termination_reason: Why it was stopped, None if it was not.
        external_identifier: Its name in another system.
        purpose: Why it ran.
        risk_score: `total_score`, `risk_level` and how they come about; None without a risk profile.
        raised_alert_count: Alerts that are raised, if that was asked for.
    """

    type: Literal["agent_instance"]
    id: str
    account_id: str
    agent_id: str
    agent_version_id: str
    environment_id: str
    status: Annotated[AgentStatus, Words()]
    inserted_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    last_activity_span_at: datetime | None = None
    termination_reason: str | None = None
    external_identifier: str | None = None
    purpose: Annotated[InstancePurpose, Words()] | None = None
    risk_score: dict[str, Any] | None = None
    raised_alert_count: int | None = None


class AgentInstance(AgentInstanceSummary):
    """A run.

    Attributes:
        agent_deployment_id: The deployment of the agent in the environment.
        span_counts: How many steps it has.
        span_schema_counts: `by_name`: how many steps of each type.
        cost_breakdown: Tokens and their prices, in all and by model.
        quality_payloads: Kind of evaluation → what was recorded.
        quality_summaries: Kind of evaluation → its one-line summary.
    """

    agent_deployment_id: str
    span_counts: AgentInstanceSpanCounts | None = None
    span_schema_counts: dict[str, Any] | None = None
    cost_breakdown: dict[str, Any] | None = None
    quality_payloads: dict[str, dict[str, Any] | None] | None = None
    quality_summaries: dict[str, str | None] | None = None


class AgentContext(ApiModel):
    """A digest of a run for language models (contract section 2.9).

    Attributes:
        body: The digest; its shape is not published.
        generated_at: When it was made.
        span_count: How many steps are in it.
    """

    body: dict[str, Any]
    generated_at: datetime
    span_count: int

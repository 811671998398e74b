"""Agents (contract section 5)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from prefactor_trace.http.models.base import ApiModel
from prefactor_trace.http.models.types import Words

__all__ = [
    "Agent",
    "AgentAvailableActions",
    "AgentForCreate",
    "AgentForUpdate",
    "AgentInstanceCounts",
    "AgentSummary",
]

_Status: TypeAlias = Literal["pending", "active", "dormant", "retired"]


class AgentAvailableActions(ApiModel):
    """What may be done with an agent in its present status."""

    update: bool = False
    retire: bool = False
    reinstate: bool = False
    delete: bool = False


class AgentInstanceCounts(ApiModel):
    """How many runs an agent has, in all, by status, and in any of the ended ones (`finished`)."""

    total: int = 0
    pending: int = 0
    active: int = 0
    complete: int = 0
    failed: int = 0
    cancelled: int = 0
    terminated: int = 0
    finished: int = 0


class AgentSummary(ApiModel):
    """An agent in a list.

    Attributes:
        type: Always `agent`.
        id: PFID.
        name: What people call it.
        description: What it is for.
        external_identifier: Its name in another system, unique in the account.
        status: `pending` before its first run, `dormant` after a long time without one.
        owner_person_id: Who answers for it.
        team_id: The team it belongs to.
        available_actions: What may be done with it now.
        inserted_at: When it was made.
        updated_at: When it was last changed.
    """

    type: Literal["agent"]
    id: str
    name: str
    description: str | None = None
    external_identifier: str | None = None
    status: Annotated[_Status, Words()]
    owner_person_id: str | None = None
    team_id: str | None = None
    available_actions: AgentAvailableActions | None = None
    inserted_at: datetime | None = None
    updated_at: datetime | None = None


class Agent(AgentSummary):
    """An agent.

    Attributes:
        risk_profile_id: The profile by which its runs are scored.
        instance_counts: How many runs it has, if that was asked for.
        risk_rollup: `observed_risk` and `theoretical_risk`, if that was asked for.
        last_activity_span_at: When a step of one of its runs was last heard of.
    """

    risk_profile_id: str | None = None
    instance_counts: AgentInstanceCounts | None = None
    risk_rollup: dict[str, Any] | None = None
    last_activity_span_at: datetime | None = None


class AgentForCreate(ApiModel):
    """What a new agent is made of.

    Attributes:
        name: What people call it.
        description: What it is for.
        external_identifier: Its name in another system, unique in the account.
        id: A PFID of the account's partition; by default the platform makes one.
        owner_person_id: Who answers for it.
        risk_profile_id: The profile by which its runs are scored.
        team_id: The team it belongs to.
    """

    name: str
    description: str | None = None
    external_identifier: str | None = None
    id: str | None = None
    owner_person_id: str | None = None
    risk_profile_id: str | None = None
    team_id: str | None = None


class AgentForUpdate(ApiModel):
    """What is to change about an agent. What is left out stays; None, said explicitly, clears.

    Attributes:
        name: What people call it.
        description: What it is for.
        owner_person_id: Who answers for it.
        risk_profile_id: The profile by which its runs are scored.
        team_id: The team it belongs to.
    """

    name: str | None = None
    description: str | None = None
    owner_person_id: str | None = None
    risk_profile_id: str | None = None
    team_id: str | None = None

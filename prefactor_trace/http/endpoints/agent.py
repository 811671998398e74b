"""The calls about agents (contract section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefactor_trace.http.endpoints._endpoint import (
    Endpoint,
    body_of,
    paging,
    segment,
)
from prefactor_trace.http.models.agent import Agent, AgentForCreate, AgentForUpdate, AgentSummary

if TYPE_CHECKING:
    from prefactor_trace.http.models.base import Page

__all__ = ["AgentClient"]


class AgentClient(Endpoint):
    """The calls about agents. They need an account token.

    Every method may raise the errors of `PrefactorHttpClient.request`; an unknown id raises
    `PrefactorNotFoundError`, content that the platform refuses `PrefactorValidationError`.
    An idempotency key has 8 to 64 characters; by default each call makes one of its own. Arguments that cannot be
    sent raise ValueError or TypeError.
    """

    async def create(self, details: AgentForCreate, idempotency_key: str | None = None) -> Agent:
        """Make an agent.

        POST /api/v1/agent

        Args:
            details: What it is made of.
            idempotency_key: Names the call.
        """
        return await self._change("POST", "agent", "create", idempotency_key, details=body_of(details))

    async def get(self, agent_id: str) -> Agent:
        """Return an agent.

        GET /api/v1/agent/{agent_id}
        """
        return self._details(await self._read(f"agent/{segment(agent_id)}"), Agent, "agents.get")

    async def update(
        self, agent_id: str, details: AgentForUpdate, idempotency_key: str | None = None
    ) -> Agent:
        """Change an agent.

        PUT /api/v1/agent/{agent_id}

        Args:
            agent_id: The agent.
            details: What is to change. What was not set stays; None, set explicitly, clears.
            idempotency_key: Names the call.
        """
        path = f"agent/{segment(agent_id)}"
        changes = details.model_dump(exclude_unset=True)
        return await self._change("PUT", path, "update", idempotency_key, details=changes)

    async def list_agents(
        self,
        risk_profile_id: str | None = None,
        team_id: str | None = None,
        owner_person_id: str | None = None,
        sorting: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
    ) -> Page[AgentSummary]:
        """Return a page of agents: a list with `pagination` and `sorting`, as `models.Page` says.

        GET /api/v1/agent

        Args:
            risk_profile_id: Only those with this risk profile.
            team_id: Only those of this team.
            owner_person_id: Only those of this person.
            sorting: Field to sort by, with a minus for descending: `name`, `-id`.
            offset: Number of the first item, from zero.
            page_size: Items on the page, 1 to 100.
        """
        owners = {
            "risk_profile_id": risk_profile_id,
            "team_id": team_id,
            "owner_person_id": owner_person_id,
        }
        response = await self._read("agent", {**owners, **paging(sorting, offset, page_size)})
        return self._page(response, AgentSummary, "agents.list_agents")

    async def show(
        self,
        *,
        agent_id: str | None = None,
        external_identifier: str | None = None,
        environment_id: str | None = None,
        include_counts: bool = False,
        include_risk_rollup: bool = False,
    ) -> Agent:
        """Return the agent of an id or of an external identifier; one of them must be given.

        GET /api/v1/agent/show

        Args:
            agent_id: The agent.
            external_identifier: Its name in another system, letter by letter.
            environment_id: Where counts and risk are to be taken from; by default everywhere.
            include_counts: Fill `instance_counts`.
            include_risk_rollup: Fill `risk_rollup`.
        """
        wanted = {
            "agent_id": agent_id,
            "external_identifier": external_identifier,
            "environment_id": environment_id,
            "include_counts": include_counts,
            "include_risk_rollup": include_risk_rollup,
        }
        return self._details(await self._read("agent/show", wanted), Agent, "agents.show")

    async def retire(self, agent_id: str, idempotency_key: str | None = None) -> Agent:
        """Retire an agent.

        POST /api/v1/agent/{agent_id}/retire
        """
        return await self._change("POST", f"agent/{segment(agent_id)}/retire", "retire", idempotency_key)

    async def reinstate(self, agent_id: str, idempotency_key: str | None = None) -> Agent:
        """Take a retired agent back.

        POST /api/v1/agent/{agent_id}/reinstate
        """
        return await self._change(
            "POST", f"agent/{segment(agent_id)}/reinstate", "reinstate", idempotency_key
        )

    async def delete(self, agent_id: str, idempotency_key: str | None = None) -> Agent:
        """Delete an agent, and return what it was.

        DELETE /api/v1/agent/{agent_id}
        """
        return await self._change("DELETE", f"agent/{segment(agent_id)}", "delete", idempotency_key)

    async def _change(
        self, method: str, path: str, verb: str, idempotency_key: str | None, **body: object
    ) -> Agent:
        return self._details(await self._write(method, path, body, idempotency_key), Agent, f"agents.{verb}")

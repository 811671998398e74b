"""The calls about instances, which are runs of agents (contract section 2)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, overload

from prefactor_trace.http.endpoints._endpoint import (
    Endpoint,
    body_of,
    paging,
    plain,
    rfc3339,
    segment,
)
from prefactor_trace.http.models.agent_instance import (
    AgentContext,
    AgentInstance,
    AgentInstanceRecordQuality,
    AgentInstanceSummary,
    AgentSchemaVersionForRegister,
    AgentVersionForRegister,
    FinishInstanceRequest,
    TerminateInstanceRequest,
    TimestampRequest,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from prefactor_trace.http.models.base import Page
    from prefactor_trace.http.models.types import FinishStatus, InstancePurpose

__all__ = ["AgentInstanceClient"]

_Method = TypeVar("_Method", bound="Callable[..., Awaitable[AgentInstance]]")

# How the released prefactor-http 0.4 orders what its documentation orders as `register` below does.
_RELEASED_ORDER = (
    "agent_version",
    "agent_schema_version",
    "agent_id",
    "environment_id",
    "id",
    "idempotency_key",
    "update_current_version",
    "purpose",
    "external_identifier",
)


def _in_either_order(register: _Method) -> _Method:
    """Let positions be those of the released package too. They cannot be mistaken: an agent's id is no mapping."""

    @functools.wraps(register)
    async def call(self: AgentInstanceClient, *args: Any, **kwargs: Any) -> AgentInstance:
        if args and not isinstance(args[0], (str, type(None))):
            named = dict(zip(_RELEASED_ORDER, args, strict=False))
            twice = named.keys() & kwargs.keys()
            if twice or len(args) > len(_RELEASED_ORDER):
                raise TypeError(f"register() was given too much: {', '.join(sorted(twice)) or 'positions'}")
            return await register(self, **named, **kwargs)
        return await register(self, *args, **kwargs)

    return call  # type: ignore[return-value]


class AgentInstanceClient(Endpoint):
    """The calls about instances.

    Every method may raise the errors of `PrefactorHttpClient.request`; an unknown id raises
    `PrefactorNotFoundError`, content that the platform refuses `PrefactorValidationError`, and what is not possible
    in the present state `PrefactorApiError` with the code `invalid_action`.
    An idempotency key has 8 to 64 characters; by default each call makes one of its own.
    Times without a time zone are local. Arguments that cannot be sent raise ValueError or TypeError.
    """

    @overload
    async def register(
        self,
        agent_id: str | None,
        agent_version: AgentVersionForRegister | Mapping[str, Any],
        agent_schema_version: AgentSchemaVersionForRegister | Mapping[str, Any],
        id: str | None = None,
        idempotency_key: str | None = None,
        update_current_version: bool = True,
        *,
        environment_id: str | None = None,
        purpose: InstancePurpose | None = None,
        external_identifier: str | None = None,
    ) -> AgentInstance: ...

    @overload
    async def register(
        self,
        agent_version: AgentVersionForRegister | Mapping[str, Any],
        agent_schema_version: AgentSchemaVersionForRegister | Mapping[str, Any],
        agent_id: str | None = None,
        environment_id: str | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
        update_current_version: bool = True,
        purpose: InstancePurpose | None = None,
        external_identifier: str | None = None,
    ) -> AgentInstance: ...

    @_in_either_order  # type: ignore[misc] # which brings the second order into the first one
    async def register(
        self,
        agent_id: str | None = None,
        agent_version: AgentVersionForRegister | Mapping[str, Any] | None = None,
        agent_schema_version: AgentSchemaVersionForRegister | Mapping[str, Any] | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
        update_current_version: bool = True,
        *,
        environment_id: str | None = None,
        purpose: InstancePurpose | None = None,
        external_identifier: str | None = None,
    ) -> AgentInstance:
        """Register a run; it is `pending` until it starts.

        POST /api/v1/agent_instance/register

        Args:
            agent_id: The agent. Leave it out with a deployment token.
            agent_version: The version of the agent that runs: `name`, `external_identifier`, …
            agent_schema_version: The types of steps it declares: `external_identifier` and `span_type_schemas`.
            id: A PFID of the account's partition; by default the platform makes one.
            idempotency_key: Names the call.
            update_current_version: Whether this becomes the deployment's current version.
            environment_id: The environment. Leave it out with a deployment token.
            purpose: Why it runs; `live` by default.
            external_identifier: The run's name in another system, unique for the agent.

        Raises:
            TypeError: A version was not given.
        """
        if agent_version is None or agent_schema_version is None:
            raise TypeError("register() needs agent_version and agent_schema_version")
        given = {
            "agent_id": agent_id,
            "environment_id": environment_id,
            "id": id,
            "purpose": purpose,
            "external_identifier": external_identifier,
        }
        body = {
            "agent_version": plain(agent_version),
            "agent_schema_version": plain(agent_schema_version),
            "update_current_version": update_current_version,
            **{name: value for name, value in given.items() if value is not None},
        }
        response = await self._write("POST", "agent_instance/register", body, idempotency_key)
        return self._details(response, AgentInstance, "agent_instances.register")

    async def start(
        self,
        agent_instance_id: str,
        timestamp: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> AgentInstance:
        """Say that a run has begun; it is `active` from then on.

        POST /api/v1/agent_instance/{agent_instance_id}/start

        Args:
            agent_instance_id: The run.
            timestamp: When; by default now.
            idempotency_key: Names the call.
        """
        request = TimestampRequest(timestamp=rfc3339(timestamp))
        return await self._change(agent_instance_id, "start", body_of(request), idempotency_key)

    async def finish(
        self,
        agent_instance_id: str,
        status: FinishStatus | None = None,
        timestamp: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> AgentInstance:
        """Say that a run has ended.

        POST /api/v1/agent_instance/{agent_instance_id}/finish

        Args:
            agent_instance_id: The run.
            status: How; `complete` by default. By its OpenAPI the platform takes `cancelled` only from `pending`.
            timestamp: When; by default now.
            idempotency_key: Names the call.

        Raises:
            PrefactorApiError: It has ended already, or was terminated (409, `invalid_action`).
        """
        request = FinishInstanceRequest(status=status, timestamp=rfc3339(timestamp))
        return await self._change(agent_instance_id, "finish", body_of(request), idempotency_key)

    async def terminate(
        self,
        agent_instance_id: str,
        reason: str,
        timestamp: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> AgentInstance:
        """Stop a run that is active; the agent learns of it with its next step. Cannot be undone.

        POST /api/v1/agent_instance/{agent_instance_id}/terminate

        Args:
            agent_instance_id: The run.
            reason: Why; the agent is told.
            timestamp: When; by default now.
            idempotency_key: Names the call.
        """
        request = TerminateInstanceRequest(reason=reason, timestamp=rfc3339(timestamp))
        return await self._change(agent_instance_id, "terminate", body_of(request), idempotency_key)

    async def record_quality(
        self,
        agent_instance_id: str,
        name: str,
        payload: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AgentInstance:
        """Record an evaluation of a run. Those of other names stay.

        POST /api/v1/agent_instance/{agent_instance_id}/record_quality

        Args:
            agent_instance_id: The run.
            name: Which of the kinds of evaluation that its schema declares.
            payload: The evaluation; None removes it.
            idempotency_key: Names the call.
        """
        request = AgentInstanceRecordQuality(name=name, payload=payload)
        return await self._change(agent_instance_id, "record_quality", request.model_dump(), idempotency_key)

    async def get(self, agent_instance_id: str) -> AgentInstance:
        """Return a run.

        GET /api/v1/agent_instance/{agent_instance_id}
        """
        response = await self._read(f"agent_instance/{segment(agent_instance_id)}")
        return self._details(response, AgentInstance, "agent_instances.get")

    async def show(
        self,
        *,
        agent_instance_id: str | None = None,
        external_identifier: str | None = None,
        include_counts: bool = False,
        include_costs: bool = False,
        include_risk_score: bool = False,
        include_alert_count: bool = False,
    ) -> AgentInstance:
        """Return the run of an id or of an external identifier; one of them must be given.

        GET /api/v1/agent_instance/show

        Args:
            agent_instance_id: The run.
            external_identifier: Its name in another system, letter by letter.
            include_counts: Fill `span_counts` and `span_schema_counts`.
            include_costs: Fill `cost_breakdown`.
            include_risk_score: Fill `risk_score`.
            include_alert_count: Fill `raised_alert_count`.
        """
        wanted = {
            "agent_instance_id": agent_instance_id,
            "external_identifier": external_identifier,
            "include_counts": include_counts,
            "include_costs": include_costs,
            "include_risk_score": include_risk_score,
            "include_alert_count": include_alert_count,
        }
        response = await self._read("agent_instance/show", wanted)
        return self._details(response, AgentInstance, "agent_instances.show")

    async def list(
        self,
        agent_id: str,
        agent_version_id: str | None = None,
        sorting: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
    ) -> Page[AgentInstanceSummary]:
        """Return a page of an agent's runs: a list with `pagination` and `sorting`.

        GET /api/v1/agent_instance

        Args:
            agent_id: The agent.
            agent_version_id: Only those of this version.
            sorting: Field to sort by, with a minus for descending. The live platform has been seen to refuse any.
            offset: Number of the first item, from zero.
            page_size: Items on the page, 1 to 100.
        """
        wanted = {"agent_id": agent_id, "agent_version_id": agent_version_id}
        response = await self._read("agent_instance", {**wanted, **paging(sorting, offset, page_size)})
        return self._page(response, AgentInstanceSummary, "agent_instances.list")

    async def agent_context(self, agent_instance_id: str) -> AgentContext:
        """Return a digest of a run for language models.

        GET /api/v1/agent_instance/{agent_instance_id}/agent_context
        """
        response = await self._read(f"agent_instance/{segment(agent_instance_id)}/agent_context")
        return self._parsed(AgentContext, response.get("agent_context"), "agent_instances.agent_context")

    async def _change(
        self, agent_instance_id: str, verb: str, body: dict[str, Any], idempotency_key: str | None
    ) -> AgentInstance:
        path = f"agent_instance/{segment(agent_instance_id)}/{verb}"
        response = await self._write("POST", path, body, idempotency_key)
        return self._details(response, AgentInstance, f"agent_instances.{verb}")

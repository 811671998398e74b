"""The calls of the API, grouped by what they are about."""

from prefactor_trace.http.endpoints.agent import AgentClient
from prefactor_trace.http.endpoints.agent_instance import AgentInstanceClient
from prefactor_trace.http.endpoints.agent_span import AgentSpanClient
from prefactor_trace.http.endpoints.bulk import BulkClient

__all__ = ["AgentClient", "AgentInstanceClient", "AgentSpanClient", "BulkClient"]

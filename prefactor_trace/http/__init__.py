"""A typed client of the Prefactor API, async, for asyncio and trio.

The same names, parameters and defaults as the official `prefactor-http`, module for module:
`prefactor_http.endpoints.agent_instance` is `prefactor_trace.http.endpoints.agent_instance` here.

    from prefactor_trace.http import HttpClientConfig, PrefactorHttpClient

    async with PrefactorHttpClient(HttpClientConfig(api_url, api_token)) as client:
        page = await client.agent_instances.list(agent_id)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prefactor_trace._version import __version__

if TYPE_CHECKING:
    from prefactor_trace.http.client import PrefactorHttpClient
    from prefactor_trace.http.config import HttpClientConfig
    from prefactor_trace.http.exceptions import (
        PrefactorApiError,
        PrefactorAuthError,
        PrefactorClientError,
        PrefactorHttpError,
        PrefactorNotFoundError,
        PrefactorResponseContractError,
        PrefactorRetryExhaustedError,
        PrefactorTransportError,
        PrefactorValidationError,
    )
    from prefactor_trace.http.models import (
        AgentInstance,
        AgentInstanceRecordQuality,
        AgentInstanceSpanCounts,
        AgentSchemaVersionForRegister,
        AgentSpan,
        AgentStatus,
        AgentVersionForRegister,
        ApiResponse,
        BulkItem,
        BulkOutput,
        BulkRequest,
        BulkResponse,
        FinishInstanceRequest,
        FinishStatus,
        InstancePurpose,
        QualitySchemaDetails,
        QualitySchemaForCreate,
        RuntimeEnvironment,
        SpanTypeSchemaForCreate,
    )

__all__ = [
    "AgentInstance",
    "AgentInstanceRecordQuality",
    "AgentInstanceSpanCounts",
    "AgentSchemaVersionForRegister",
    "AgentSpan",
    "AgentStatus",
    "AgentVersionForRegister",
    "ApiResponse",
    "BulkItem",
    "BulkOutput",
    "BulkRequest",
    "BulkResponse",
    "FinishInstanceRequest",
    "FinishStatus",
    "HttpClientConfig",
    "InstancePurpose",
    "PrefactorApiError",
    "PrefactorAuthError",
    "PrefactorClientError",
    "PrefactorHttpClient",
    "PrefactorHttpError",
    "PrefactorNotFoundError",
    "PrefactorResponseContractError",
    "PrefactorRetryExhaustedError",
    "PrefactorTransportError",
    "PrefactorValidationError",
    "QualitySchemaDetails",
    "QualitySchemaForCreate",
    "RuntimeEnvironment",
    "SpanTypeSchemaForCreate",
    "__version__",
]

_SUBMODULES = ("client", "config", "endpoints", "exceptions", "models", "retry")

if not TYPE_CHECKING:  # so that a wrong name is an error to type checkers

    def __getattr__(name: str) -> object:
        """Load on first use: the library itself imports `_protocol` from here, and must stay light."""
        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        if name in __all__:
            for home in ("config", "exceptions", "models", "client"):
                module = import_module(f"{__name__}.{home}")
                if name in module.__all__:
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Name what can be had, loaded or not."""
        return sorted({*globals(), *__all__, *_SUBMODULES})

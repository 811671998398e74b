"""Two lines, and every run of a Python agent becomes a governed record in Prefactor.

import prefactor_trace as pt

@pt.span
def search(query: str) -> list[str]: ...

with pt.instance(agent_name="support-bot", agent_version="1.4.0"):
    search("refund policy")
"""

from prefactor_trace._api import Tracer, aflush, ashutdown, configure, flush, instance, shutdown, stats
from prefactor_trace._context import carry
from prefactor_trace._conversions import register_capture
from prefactor_trace._record import Ledger
from prefactor_trace._schema import Schema, SpanType
from prefactor_trace._version import __version__
from prefactor_trace.errors import ConfigurationError, InstanceTerminated, PrefactorTraceError
from prefactor_trace.instances import Instance, current_instance
from prefactor_trace.spans import Span, current_span, span

__all__ = [
    "ConfigurationError",
    "Instance",
    "InstanceTerminated",
    "Ledger",
    "PrefactorTraceError",
    "Schema",
    "Span",
    "SpanType",
    "Tracer",
    "__version__",
    "aflush",
    "ashutdown",
    "carry",
    "configure",
    "current_instance",
    "current_span",
    "flush",
    "instance",
    "register_capture",
    "shutdown",
    "span",
    "stats",
]

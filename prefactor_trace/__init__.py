"""Two lines, and every run of a Python agent becomes a governed record in Prefactor.

import prefactor_trace as pt

@pt.span
def search(query: str) -> list[str]: ...

with pt.instance(agent_name="support-bot", agent_version="1.4.0"):
    search("refund policy")
"""

from prefactor_trace._api import Tracer, aflush, ashutdown, configure, flush, instance, shutdown, stats
from prefactor_trace._arguments import Omit, Secret, Sensitive
from prefactor_trace._carry import carry
from prefactor_trace._conversions import register_capture
from prefactor_trace._record import Ledger
from prefactor_trace._redact import Place
from prefactor_trace._schema import QualityType, Schema, SpanType
from prefactor_trace._threads import carry_threads
from prefactor_trace._version import __version__
from prefactor_trace.errors import ConfigurationError, InstanceTerminated, PrefactorTraceError, UsageError
from prefactor_trace.instances import Instance, current_instance
from prefactor_trace.integrations import instrument, uninstrument
from prefactor_trace.propagation import Handle, current_handle, extract, inject, join
from prefactor_trace.spans import Span, current_span, span

__all__ = [
    "ConfigurationError",
    "Handle",
    "Instance",
    "InstanceTerminated",
    "Ledger",
    "Omit",
    "Place",
    "PrefactorTraceError",
    "QualityType",
    "Schema",
    "Secret",
    "Sensitive",
    "Span",
    "SpanType",
    "Tracer",
    "UsageError",
    "__version__",
    "aflush",
    "ashutdown",
    "carry",
    "carry_threads",
    "configure",
    "current_handle",
    "current_instance",
    "current_span",
    "extract",
    "flush",
    "inject",
    "instance",
    "instrument",
    "join",
    "register_capture",
    "shutdown",
    "span",
    "stats",
    "uninstrument",
]

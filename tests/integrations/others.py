"""Faults of `llmock`, a model server written by others, on demand."""

from __future__ import annotations

MOCK_FAULTS = [None, "fail", "disconnect", "truncate", "malformed"]


def mock_fault(server, fault):
    """Let *server* commit *fault* at the next request."""
    from llmock.scenarios import Fail, StreamFault

    server.state.scenarios.clear()
    if fault == "fail":
        server.state.scenarios.add(Fail(429))
    elif fault is not None:
        server.state.scenarios.add(StreamFault(fault, after_chunks=3))

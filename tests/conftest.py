"""What every test stands on: our own errors are never passed over, and nothing is left behind."""

from __future__ import annotations

import os
import threading

import pytest

import prefactor_trace as pt
from prefactor_trace import _api, _guard, _schema


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    """Isolate the test: no PREFACTOR variables, a state folder of its own, no default tracer before or after."""
    for name in [name for name in os.environ if name.startswith("PREFACTOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFACTOR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(_guard, "strict", True)
    monkeypatch.setattr(_schema, "_declared", {})
    monkeypatch.setattr(_schema, "_ad_hoc", {})
    _guard.errors.clear()
    threads = set(threading.enumerate())
    yield
    tracer = _api.set_default(None)
    if tracer is not None:
        tracer.shutdown(0.5)
    left = [each for each in threading.enumerate() if each not in threads and each.name == "prefactor-trace"]
    for each in left:
        each.join(5)
    assert not [each for each in left if each.is_alive()], "a sender thread was left running"
    assert pt.current_instance() is None

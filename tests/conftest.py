"""What every test stands on: our own errors are never passed over, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading

import hypothesis
import pytest
from patience import watch

import prefactor_trace as pt
from prefactor_trace import _api, _guard, _schema
from prefactor_trace.testing import recording

# How fast examples are made says nothing about us.
hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("here")

# A shell that starts the tests in the background has them, and all programs they start, ignore it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def watched():
    """Know when the machine stands still, for all bounds of time."""
    with watch:
        yield


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


@pytest.fixture
def recorded():
    """Record in memory, inside of one run."""
    with recording() as recorded, pt.instance():
        yield recorded


@pytest.fixture
def platform(tmp_path):
    """A local platform with a fresh database."""
    from prefactor_trace.server import LocalPlatform  # here, because it needs more packages than most tests

    with LocalPlatform(tmp_path / "platform.db") as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Make a self-signed certificate for 127.0.0.1; return the paths of certificate and key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    (folder / "openssl.cnf").write_text(
        "[req]\ndistinguished_name=name\nx509_extensions=extensions\nprompt=no\n"
        "[name]\nCN=127.0.0.1\n"
        "[extensions]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:TRUE\n"
        "keyUsage=critical,digitalSignature,keyCertSign\nsubjectKeyIdentifier=hash\n"
    )
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config openssl.cnf"
    subprocess.run(
        [openssl, *command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True, cwd=folder
    )
    return cert, key

"""`prefactor-trace doctor`: it says what holds, who answers, what time it is there, what waits, and which SDKs take."""

from __future__ import annotations

import dataclasses
import sys
import threading
import types
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefactor_trace as pt
from prefactor_trace import _doctor, _guard, integrations
from prefactor_trace._schema import SpanType
from prefactor_trace._settings import resolve
from prefactor_trace.integrations._tap import Asked, Tap

TOKEN = "a-token-that-nobody-must-see"


@pytest.fixture
def settings(tmp_path):
    return resolve({}, {"PREFACTOR_STATE_DIR": str(tmp_path)})


@pytest.fixture
def no_sdks(monkeypatch):
    """As if there were none: to import them all takes seconds."""
    monkeypatch.setattr(integrations, "_sources", dict)
    monkeypatch.setattr(integrations, "_integrated", {})


def found(settings):
    """Return what the doctor says, by what it is about."""
    findings = {each.about: each for each in _doctor.examine(settings)}
    assert TOKEN not in str(findings)
    return findings


class Platform(BaseHTTPRequestHandler):
    """Answers as its server is told to: a status, and a Date."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response_only(self.server.status)
        if self.server.date is not None:
            self.send_header("Date", self.server.date)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def platform(settings, no_sdks):
    with HTTPServer(("127.0.0.1", 0), Platform) as server:
        server.status, server.date = 200, formatdate(usegmt=True)
        server.settings = dataclasses.replace(
            settings, api_url=f"http://127.0.0.1:{server.server_port}", api_token=TOKEN
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_a_destination(settings, no_sdks):
    """It says that there is none, and what that means."""
    findings = found(settings)

    assert findings["destination"].is_trouble
    assert "records wait in the spool" in findings["destination"].text
    assert "clock" not in findings


def test_a_destination_that_answers(platform):
    """It takes the token, and has the same time."""
    findings = found(platform.settings)

    assert not findings["destination"].is_trouble
    assert "takes the token" in findings["destination"].text
    assert not findings["clock"].is_trouble


def test_a_destination_with_another_time(platform):
    """Told even if it refuses the token."""
    platform.status, platform.date = 401, formatdate(1_000_000_000, usegmt=True)
    findings = found(platform.settings)

    assert "refuses the token" in findings["destination"].text
    assert findings["clock"].is_trouble
    assert "ahead of the destination's" in findings["clock"].text


def test_a_destination_without_a_clock(platform):
    """Nothing is said of it."""
    platform.date = None

    assert "clock" not in found(platform.settings)


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (0, "as the destination's, to within 1 s"),
        (-9, "as the destination's, to within 9 s"),
        (11, "11 s ahead of the destination's"),
        (-3600, "3,600 s behind the destination's"),
    ],
)
def test_clocks(ahead, text):
    """A few seconds are no trouble: the answer took its time, and the header has whole seconds."""
    finding = _doctor.clocks(formatdate(1_700_000_000, usegmt=True), 1_700_000_000 + ahead)

    assert finding.text.startswith(text)
    assert finding.is_trouble == (abs(ahead) > 10)


@given(st.text())
def test_any_date_is_borne(told):
    """A server may send what it likes."""
    assert _doctor.clocks(told, 1_700_000_000.0).about == "clock"


# -- SDKs ----------------------------------------------------------------------------------------------------


class Toy:
    def call(self):
        pass

    def old_call(self):
        pass


def asks(args, kwargs):
    return Asked(TYPE, "toy", dict, None)


TYPE = SpanType("toy:call")


def toy(requires, *where, optional=False):
    """Return an integration."""
    return types.SimpleNamespace(
        REQUIRES=requires,
        TYPES=(TYPE,),
        TAPS=tuple(Tap(each, asks=asks, is_optional=optional) for each in where),
    )


@pytest.fixture
def toys(monkeypatch):
    sdk = types.ModuleType("toy_sdk")
    sdk.Toy = Toy
    known = {
        "good": toy("pytest>=8,<99", "toy_sdk:Toy.call"),
        "optional": toy("pytest>=8,<99", "toy_sdk:Toy.gone", optional=True),
        "elsewhere": toy("pytest>=8,<99", "toy_sdk.elsewhere:Toy.call", optional=True),
        "changed": toy("pytest>=8,<99", "toy_sdk:Toy.gone"),
        "moved": toy("pytest>=8,<99", "toy_sdk.elsewhere:Toy.call"),
        "old": toy("pytest>=0,<1", "toy_sdk:Toy.old_call"),
        "absent": toy("no-such-distribution>=1,<2", "absent:f"),
    }
    monkeypatch.setitem(sys.modules, "toy_sdk", sdk)
    for name, module in known.items():
        monkeypatch.setitem(sys.modules, f"toy_{name}", module)
    monkeypatch.setattr(integrations, "_sources", lambda: {name: f"toy_{name}" for name in known})
    monkeypatch.setattr(integrations, "_integrated", {})
    monkeypatch.setattr(_guard, "strict", False)
    yield
    pt.uninstrument()


def test_sdks(settings, toys):
    """Name, version, claimed range; what took, and what did not and why. Afterwards all is as it was."""
    original = Toy.call
    findings = found(settings)

    assert findings["good"].text.startswith("recorded: pytest ")
    assert findings["good"].text.endswith("; records pytest>=8,<99")
    assert findings["optional"].text.startswith("recorded")
    assert findings["elsewhere"].text.startswith("recorded")
    assert "failed" in findings["changed"].text
    assert "toy_sdk:Toy.gone" in findings["changed"].text
    assert "toy_sdk.elsewhere cannot be imported: ModuleNotFoundError" in findings["moved"].text
    assert "(tested with pytest>=0,<1)" in findings["old"].text
    assert findings["absent"].text == "not installed; records no-such-distribution>=1,<2"
    trouble = {name for name, each in findings.items() if each.is_trouble} - {"destination"}
    assert trouble == {"changed", "moved"}
    assert vars(Toy)["call"] is original
    assert {each.state for each in integrations.report()} == {"off", "missing"}


def test_only_what_is_not_as_expected_is_imported(settings, toys, tmp_path, monkeypatch):
    """To see what is wrong with it; with the others, all is in their source."""
    for name in ("fine_sdk", "odd_sdk"):
        (tmp_path / f"{name}.py").write_text("def call(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    for name, module in {"good": "fine_sdk:call", "changed": "odd_sdk:gone"}.items():
        monkeypatch.setattr(sys.modules[f"toy_{name}"], "TAPS", (Tap(module, asks=asks),))
    findings = found(settings)

    assert findings["good"].text.startswith("recorded: pytest ")
    assert "odd_sdk:gone" in findings["changed"].text
    assert "fine_sdk" not in sys.modules
    assert sys.modules.pop("odd_sdk")
    states = {each.name: each.state for each in integrations.report()}
    assert (states["good"], states["changed"]) == ("off", "off")


def test_what_starts_by_itself_says_what_it_needs(settings, toys, monkeypatch):
    """Its `start` is only tried if it says nothing, or if that is not there."""
    tried = []
    module = sys.modules["toy_good"]
    monkeypatch.setattr(module, "TAPS", ())
    monkeypatch.setattr(module, "MODULE", "json", raising=False)
    monkeypatch.setattr(module, "start", tried.append, raising=False)
    found(settings)
    assert len(tried) == 1
    monkeypatch.setattr(module, "NEEDS", ("json.decoder:JSONDecoder.decode",), raising=False)
    assert found(settings)["good"].text.startswith("recorded")
    assert len(tried) == 1
    monkeypatch.setattr(module, "NEEDS", ("json.decoder:gone",))
    found(settings)
    assert len(tried) == 2


def test_what_is_instrumented_stays_so(settings, toys):
    """The doctor takes away only what it has placed."""
    pt.instrument("good")
    found(settings)

    states = {each.name: each.state for each in integrations.report()}
    assert (states["good"], states["old"]) == ("on", "off")

"""Settings: arguments over environment over defaults; what cannot work is refused by name, secrets unseen."""

from __future__ import annotations

import dataclasses
import logging
import re

import pytest

import prefactor_trace as pt
from prefactor_trace._settings import Settings, is_loopback, resolve

SECRET = "pf_very-secret-token"


def test_defaults():
    """Nothing set means: the hosted platform's address, no token, everything recorded."""
    settings = resolve({}, {})

    assert settings.api_url == "https://app.prefactorai.com"
    assert settings.destination is None
    assert (settings.sample_rate, settings.capture_inputs, settings.capture_outputs) == (1.0, True, True)
    assert (settings.max_input_length, settings.max_output_length) == (10_000, 10_000)


VALUES = {
    "api_url": ("http://127.0.0.1:1", "http://127.0.0.1:1"),
    "api_token": ("t0ken", "t0ken"),
    "allow_http": ("yes", True),
    "agent_id": ("a", "a"),
    "agent_name": ("n", "n"),
    "agent_version": ("2", "2"),
    "environment_id": ("e", "e"),
    "sample_rate": ("0.25", 0.25),
    "capture_inputs": ("false", False),
    "capture_outputs": ("0", False),
    "max_input_length": ("5", 5),
    "max_output_length": ("6", 6),
    "redact": ("off", False),
    "redact_keys": ("ssn, -session", ("ssn", "-session")),
    "implicit_instances": ("on", True),
    "disabled": ("TRUE", True),
    "on_error": ("RAISE", "raise"),
    "live_after": ("1.5", 1.5),
    "batch_size": ("7", 7),
    "batch_delay": ("0.1", 0.1),
    "buffer_bytes": ("1000000", 1_000_000),
    "request_timeout": ("3", 3.0),
    "exit_timeout": ("0", 0.0),
    "flush_on_sigterm": ("on", True),
    "log_level": ("DEBUG", "debug"),
    "state_dir": ("/tmp/x", None),
    "spool": ("off", False),
    "spool_dir": ("/tmp/s", None),
}
KNOBS = {knob.name: knob.metadata["env"] for knob in dataclasses.fields(Settings) if "env" in knob.metadata}


def test_every_knob_has_a_value_here():
    """The table of this test knows every knob."""
    assert set(VALUES) == set(KNOBS)


@pytest.mark.parametrize("name", VALUES)
def test_every_knob_from_argument_and_environment(name):
    """Each knob can be given both ways, with one meaning; the argument wins."""
    text, meaning = VALUES[name]
    by_argument = getattr(
        resolve({name: text}, {KNOBS[name]: "" if name == "disabled" else "nonsense"}), name
    )
    by_environment = getattr(resolve({}, {KNOBS[name]: text}), name)

    assert by_argument == by_environment
    assert meaning is None or by_argument == meaning


def test_configure_takes_every_knob():
    """`configure` has a parameter for each knob."""
    import inspect

    assert set(KNOBS) <= set(inspect.signature(pt.configure).parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_url", "app.prefactorai.com"),
        ("api_url", "ftp://x"),
        ("api_url", "https://"),
        ("api_url", "https://user:pw@host"),
        ("api_url", "https://host:99999"),
        ("api_url", "https://host?x=1"),
        ("api_token", SECRET + "\n"),
        ("api_token", SECRET + " x"),
        ("api_token", SECRET + "é"),
        ("sample_rate", 3),
        ("sample_rate", -0.1),
        ("sample_rate", "nan"),
        ("sample_rate", "often"),
        ("capture_inputs", "perhaps"),
        ("max_input_length", 0),
        ("max_input_length", "1.5"),
        ("batch_size", True),
        ("log_level", "loud"),
        ("agent_id", "a\nb"),
        ("agent_name", "  "),
        ("exit_timeout", "inf"),
    ],
)
def test_wrong_values_are_refused(name, value, monkeypatch):
    """`configure` refuses what cannot work, naming argument or variable, and never showing a secret."""
    with pytest.raises(pt.ConfigurationError) as by_argument:
        pt.configure(**{name: value})
    assert name in str(by_argument.value)

    monkeypatch.setenv(KNOBS[name], str(value))
    with pytest.raises(pt.ConfigurationError) as by_environment:
        pt.configure()
    assert KNOBS[name] in str(by_environment.value) or name in str(by_environment.value)

    for error in (by_argument.value, by_environment.value):
        assert SECRET not in str(error)
        assert "pw" not in str(error)
        assert error.__cause__ is None


def test_the_token_is_not_shown():
    """Neither settings nor destination show the token."""
    settings = resolve({"api_token": SECRET}, {})

    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.destination)


def test_plain_http_to_another_machine():
    """The token goes unencrypted over no network, unless that is said to be meant."""
    with pytest.raises(pt.ConfigurationError, match="PREFACTOR_ALLOW_HTTP"):
        resolve({"api_url": "http://example.com", "api_token": "t"}, {})
    assert resolve({"api_url": "http://example.com", "api_token": "t", "allow_http": True}, {}).destination
    assert resolve({"api_url": "http://localhost:8700", "api_token": "t"}, {}).destination


@pytest.mark.parametrize("word", ["1", "true", "yes", "disabled", "please"])
def test_disabled_beats_everything(word):
    """The off-switch in the environment wins over arguments, in whatever words."""
    assert resolve({"disabled": False}, {"PREFACTOR_DISABLED": word}).disabled
    assert resolve({}, {"PREFACTOR_DISABLED": word, "PREFACTOR_SAMPLE_RATE": "3"}).disabled


def test_not_disabled():
    """The words for no mean no."""
    assert not resolve({}, {"PREFACTOR_DISABLED": "0"}).disabled
    assert not resolve({}, {"PREFACTOR_DISABLED": ""}).disabled


def test_url_forms():
    """A slash at the end and the API's prefix are understood."""
    assert resolve({"api_url": "https://x.example/api/v1/"}, {}).api_url == "https://x.example"


def test_proxy(monkeypatch):
    """The proxy everybody uses is used, except for loopback and for what NO_PROXY says."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    proxies = [
        resolve({"api_url": url, "api_token": "t"}, {}).proxy
        for url in ("https://app.example", "https://inside.example", "http://127.0.0.1:1", "http://[::1]:1")
    ]
    assert proxies == ["http://proxy:3128", None, None, None]


def test_a_scheme_may_be_written_in_any_case(monkeypatch):
    """Addresses are compared as the standard says."""
    monkeypatch.setenv("HTTPS_PROXY", "HTTP://proxy:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert resolve({"api_token": "t"}, {}).proxy == "HTTP://proxy:3128"


def test_other_proxies_are_refused(monkeypatch):
    """A proxy we cannot speak to is said to be one, not spoken to in the wrong protocol, and not shown."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:pw@proxy:1080")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(pt.ConfigurationError, match="HTTPS_PROXY") as caught:
        resolve({"api_token": "t"}, {})
    assert "proxy:" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost", "a.localhost"])
def test_loopback(host):
    """All names of this machine count as loopback, others do not."""
    assert is_loopback(f"http://{host}:80")
    assert not is_loopback("http://127.0.0.1.example.com")
    assert not is_loopback("http://10.0.0.1")


def test_spool_dir():
    """The spool is in the state folder, unless it is said where."""
    assert str(resolve({}, {"PREFACTOR_STATE_DIR": "/y"}).spool_dir) == "/y/spool"
    assert str(resolve({"state_dir": "/z"}, {}).spool_dir) == "/z/spool"
    assert str(resolve({}, {"PREFACTOR_SPOOL_DIR": "/s"}).spool_dir) == "/s"


def test_destinations_have_names():
    """What waits is bound to an address and a token, and the token cannot be read off."""
    names = {
        resolve({"api_token": token, "api_url": url}, {}).destination_name
        for token in ("pf_one", "pf_two")
        for url in ("https://a.test", "https://b.test")
    }
    assert len(names) == 4
    assert not any("pf_" in name for name in names)
    assert resolve({}, {}).destination_name == "local"


def test_state_dir():
    """State is kept where the system wants it, or where the user says."""
    assert str(resolve({}, {"XDG_STATE_HOME": "/x"}).state_dir) == "/x/prefactor"
    assert str(resolve({}, {"PREFACTOR_STATE_DIR": "/y"}).state_dir) == "/y"
    assert resolve({}, {}).state_dir.parts[-3:] == (".local", "state", "prefactor")


def test_no_home(monkeypatch):
    """A user without a home, as containers have, is no error: there is just no local platform to be found."""
    from pathlib import Path

    from prefactor_trace import _local

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert _local.find(resolve({}, {}).state_dir) is None


def test_log_level():
    """A level is set on our logger only, and handlers are added only where nobody has any."""
    logger = logging.getLogger("prefactor_trace")
    before = (logger.level, list(logger.handlers), logging.getLogger().level)
    try:
        pt.configure(log_level="error")
        assert logger.level == logging.ERROR
        assert logging.getLogger().level == before[2]
        assert logger.handlers == before[1]
    finally:
        logger.setLevel(before[0])


def test_only_this_module_reads_the_environment():
    """No other module of the library looks at the environment."""
    from pathlib import Path

    package = Path(pt.__file__).parent
    texts = {path.name: path.read_text() for path in package.rglob("*.py")}

    for name in ("_program.py", "cli.py"):  # set a variable for what they load, and read none
        texts.pop(name)
    code = {name: re.sub(r'""".*?"""', "", text, flags=re.DOTALL) for name, text in texts.items()}
    assert [name for name, text in code.items() if "os.environ" in text or "getenv" in text] == [
        "_settings.py"
    ]

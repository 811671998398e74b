"""The client's settings: the documented defaults, and what cannot work is refused without showing the token."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_trace.http import HttpClientConfig

URL = "https://app.prefactorai.com"
TOKEN = "pf_0123456789abcdefghij"


def test_documented_defaults():
    """Thirty seconds for a request, ten to connect, three retries after 1, 2 and 4 seconds, a minute at most."""
    assert dataclasses.asdict(HttpClientConfig(URL, TOKEN)) == {
        "api_url": URL,
        "api_token": TOKEN,
        "request_timeout": 30.0,
        "connect_timeout": 10.0,
        "max_retries": 3,
        "initial_retry_delay": 1.0,
        "max_retry_delay": 60.0,
        "retry_multiplier": 2.0,
        "retry_on_status_codes": (429, 500, 502, 503, 504),
        "default_idempotency_key": None,
    }


def test_same_fields_as_the_documented_package():
    """Same names, same order, same defaults: positional arguments mean the same too."""
    official = pytest.importorskip("prefactor_http").HttpClientConfig
    ours = [(field.name, field.default) for field in dataclasses.fields(HttpClientConfig)]
    assert ours == [(field.name, field.default) for field in dataclasses.fields(official)]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("api_url", "", "api_url"),
        ("api_url", None, "api_url"),
        ("api_url", "app.prefactorai.com", "http"),
        ("api_url", "ftp://app.prefactorai.com", "http"),
        ("api_url", "https://", "http"),
        ("api_url", "https://[::1", "IPv6"),
        ("api_url", "https://user@app.prefactorai.com", "user name"),
        ("api_url", "https://user:secret@app.prefactorai.com", "user name"),
        ("api_token", "", "api_token"),
        ("api_token", None, "api_token"),
        ("request_timeout", 0, "request_timeout"),
        ("request_timeout", -1.0, "request_timeout"),
        ("request_timeout", float("nan"), "request_timeout"),
        ("connect_timeout", 0, "connect_timeout"),
        ("connect_timeout", float("nan"), "connect_timeout"),
        ("max_retries", -1, "max_retries"),
        ("initial_retry_delay", 0, "initial_retry_delay"),
        ("initial_retry_delay", float("nan"), "initial_retry_delay"),
        ("initial_retry_delay", 61, "max_retry_delay"),
        ("max_retry_delay", 0.5, "max_retry_delay"),
        ("max_retry_delay", float("nan"), "max_retry_delay"),
        ("retry_multiplier", 0.5, "retry_multiplier"),
        ("retry_multiplier", float("nan"), "retry_multiplier"),
        ("default_idempotency_key", "k" * 32, "default_idempotency_key"),
    ],
)
def test_what_cannot_work_is_refused(field, value, said):
    """The message names the setting, and never shows a secret."""
    with pytest.raises(ValueError, match=said) as raised:
        HttpClientConfig(**{"api_url": URL, "api_token": TOKEN, field: value})
    assert TOKEN not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://app.prefactorai.com:99999",
        "https://app.prefactorai.com:port",
        "https://app.prefactorai.com/?x=1",
        "https://app.prefactorai.com/#x",
        "https://app prefactorai com",
    ],
)
def test_addresses_no_call_could_reach(url):
    """They are refused when they are given, not by every call after all its retries."""
    with pytest.raises(ValueError, match="api_url"):
        HttpClientConfig(url, TOKEN)


def test_part_of_a_retry_is_refused():
    """Attempts are counted: 1.5 retries would never be reached, and a failing call never end."""
    with pytest.raises((ValueError, TypeError), match="max_retries"):
        HttpClientConfig(URL, TOKEN, max_retries=1.5)


@pytest.mark.parametrize(
    "token",
    ["", " ", "two words", "secret-line\n", "secret\r\nX-Header: 1", "secret-é", "secret-\x00", "秘密"],
)
def test_tokens_that_no_header_can_hold(token):
    """They are refused here: the error of the HTTP library would quote them."""
    with pytest.raises(ValueError, match="api_token") as raised:
        HttpClientConfig(URL, token)
    assert "secret" not in str(raised.value)
    assert "秘密" not in str(raised.value)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_any_other_token_is_taken_as_it_is(token):
    """It is not parsed; it stands in the object and never in its repr."""
    config = HttpClientConfig(URL, "pf_" + token)
    assert config.api_token == "pf_" + token
    assert repr(config).count("pf_") == 0
    assert "api_token" not in repr(config)


def test_repr_shows_the_rest():
    """What is no secret helps to find a wrong setting."""
    shown = repr(HttpClientConfig(URL, TOKEN, max_retries=7))
    assert URL in shown
    assert "max_retries=7" in shown
    assert TOKEN not in shown


def test_longest_beginning_of_keys():
    """31 characters leave room for a hyphen and a UUID: 64, which the platform takes."""
    assert HttpClientConfig(URL, TOKEN, default_idempotency_key="k" * 31).default_idempotency_key == "k" * 31


def test_a_config_can_be_copied_and_sent_to_another_process():
    """It is plain data, and may be changed after it was made, like the documented one."""
    config = HttpClientConfig(URL, TOKEN, retry_on_status_codes=(503,))
    assert pickle.loads(pickle.dumps(config)) == config == dataclasses.replace(config)
    config.max_retries = 0
    assert config != dataclasses.replace(config, max_retries=1)

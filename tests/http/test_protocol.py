"""What every call has in common: headers, meanings, Retry-After; and that knowing it costs the library nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import subprocess
import sys
from datetime import datetime, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefactor_trace.http
from prefactor_trace import __version__
from prefactor_trace.http._protocol import (
    RETRIED_BY_DEFAULT,
    SDK_HEADER,
    Meaning,
    headers,
    is_sendable_token,
    meaning_of_code,
    meaning_of_status,
    retry_after_seconds,
    root_of,
)

NOW = 1_800_000_000.0
# Words of dates, and what has confused readers of dates before.
CONFUSING = "Sun, Sunday, 06 Nov 1994 94 08:49:37 GMT +9999 -0000 +24:00 6-Nov-94 1-jan-, -".split(" ")
CONFUSING += [",", ":", "::", ".", "0", "1", "9" * 30, "é", "٣", "\x00", "\n"]


class TestMeanings:
    @given(st.integers(0, 999))
    def test_every_status_has_one(self, status):
        """2xx alone is success, 5xx is transient but for the two that say "no such call", the rest is never raised."""
        meaning = meaning_of_status(status)
        assert isinstance(meaning, Meaning)
        assert (meaning is Meaning.SUCCESS) == (status // 100 == 2)
        if status >= 500:
            assert meaning is (Meaning.UNSUPPORTED if status in (501, 505) else Meaning.TRANSIENT)
        if status < 200 or 300 <= status < 400:
            assert meaning is Meaning.OTHER

    @pytest.mark.parametrize(
        ("meaning", "statuses"),
        [
            (Meaning.INVALID, {400, 422}),
            (Meaning.UNAUTHORIZED, {401, 403}),
            (Meaning.NOT_FOUND, {404}),
            (Meaning.UNSUPPORTED, {405}),
            (Meaning.CONFLICT, {409}),
            (Meaning.TOO_LARGE, {413}),
            (Meaning.TRANSIENT, {408, 425, 429}),
        ],
    )
    def test_of_refusals(self, meaning, statuses):
        """No other 4xx means the same."""
        assert {status for status in range(400, 500) if meaning_of_status(status) is meaning} == statuses

    def test_what_is_retried_is_transient(self):
        """The documented default names no status of another meaning."""
        assert {meaning_of_status(status) for status in RETRIED_BY_DEFAULT} == {Meaning.TRANSIENT}

    @pytest.mark.parametrize(
        ("code", "meaning"),
        [
            ("bad_request", Meaning.INVALID),
            ("validation_error", Meaning.INVALID),
            ("validation_errors", Meaning.INVALID),
            ("invalid_action", Meaning.CONFLICT),
            ("not_found", Meaning.NOT_FOUND),
        ],
    )
    def test_of_codes(self, code, meaning):
        """The codes of the contract mean what the statuses beside them mean."""
        assert meaning_of_code(code) is meaning

    @given(
        st.one_of(
            st.none(), st.integers(), st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text())
        )
    )
    def test_of_any_other_code(self, code):
        """Whatever stands where a code should be is read without an error."""
        assert isinstance(meaning_of_code(code), Meaning)
        assert meaning_of_code([code]) is Meaning.OTHER


class TestRetryAfter:
    @given(st.one_of(st.none(), st.text()))
    def test_never_raises(self, text):
        """What comes back can be waited for."""
        seconds = retry_after_seconds(text, NOW)
        assert seconds is None or (seconds >= 0 and math.isfinite(seconds))

    @given(
        st.lists(
            st.sampled_from(CONFUSING),
            max_size=8,
        )
    )
    def test_never_raises_for_what_looks_like_a_date(self, words):
        """The reader of dates in the standard library is given everything that has confused it before."""
        seconds = retry_after_seconds(" ".join(words), NOW)
        assert seconds is None or (seconds >= 0 and math.isfinite(seconds))

    @given(st.integers(0, 10**9))
    def test_seconds(self, seconds):
        """A number of seconds is that number."""
        assert retry_after_seconds(str(seconds), NOW) == seconds

    @pytest.mark.parametrize(
        "form",
        ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
    )
    def test_the_three_dates_of_http(self, form):
        """All of them are in UTC, whatever the time zone of this machine is."""
        moment = datetime(1994, 11, 6, 8, 49, 37, tzinfo=timezone.utc).timestamp()
        assert retry_after_seconds(form, moment - 90.5) == 90.5

    @given(st.integers(0, 3 * 365 * 24 * 3600))
    def test_any_later_date(self, ahead):
        """A date is read to the second."""
        then = datetime.fromtimestamp(NOW + ahead, timezone.utc)
        assert retry_after_seconds(format_datetime(then, usegmt=True), NOW) == ahead

    @pytest.mark.parametrize(
        "text", [None, "", " ", "soon", "-1", "nan", "inf", "-inf", "1e999", "Sun, 06 Nov 1994 08:49:37 GMT"]
    )
    def test_nothing_to_wait_for(self, text):
        """What is past, endless or makes no sense asks for nothing."""
        assert retry_after_seconds(text, NOW) is None


class TestHeaders:
    def test_what_every_request_says(self):
        """The contract's four, and who speaks."""
        assert headers("t-1") == {
            "Authorization": "Bearer t-1",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"prefactor-trace/{__version__}",
            "X-Prefactor-SDK": f"prefactor-trace@{__version__}",
        }
        assert SDK_HEADER == f"prefactor-trace@{__version__}"

    def test_a_library_on_top_of_this_one(self):
        """It says its own words, and only the one header changes."""
        said = headers("t-1", "mine@1 prefactor-trace@2")
        assert said.pop("X-Prefactor-SDK") == "mine@1 prefactor-trace@2"
        assert said.items() < headers("t-1").items()

    @given(st.text(max_size=8))
    def test_tokens_that_can_be_sent(self, token):
        """Exactly what is not empty and visible ASCII: no space, no line end, nothing a header cannot hold."""
        assert is_sendable_token(token) == (token != "" and all(33 <= ord(each) <= 126 for each in token))


class TestRoots:
    @pytest.mark.parametrize(
        "prefix", ["https://app.prefactorai.com", "http://127.0.0.1:8000", "https://h/p/q"]
    )
    @pytest.mark.parametrize("suffix", ["", "/", "//", "/api/v1", "/api/v1/", "/api/v1//"])
    def test_all_spellings_are_one_address(self, prefix, suffix):
        """With and without the API's path, with and without slashes at the end; a prefix before it stays."""
        assert root_of(prefix + suffix) == prefix

    def test_only_the_end_is_cut(self):
        """The API's path in the middle of an address belongs to it."""
        assert root_of("https://h/api/v1/proxy") == "https://h/api/v1/proxy"


class TestLight:
    @pytest.mark.parametrize("name", ["prefactor_trace.http", "prefactor_trace.http._protocol"])
    def test_importing_loads_nothing_heavy(self, name):
        """The library itself imports the protocol: a program that only traces pays for no client."""
        code = (
            f"import sys, {name}; "
            "print(sorted({'httpx', 'httpcore', 'pydantic', 'pydantic_core', 'anyio'} & sys.modules.keys()))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"

    @pytest.mark.parametrize("name", sorted(prefactor_trace.http.__all__))
    def test_every_promised_name_can_be_imported(self, name):
        """As the first thing a program does, each on its own."""
        module = importlib.import_module("prefactor_trace.http")
        before = vars(module).pop(name, None) if name != "__version__" else None
        value = getattr(module, name)
        assert vars(module)[name] is value
        assert before is None or before is value

    def test_all_names_at_once(self):
        """`from prefactor_trace.http import *` brings exactly what is promised."""
        space: dict[str, object] = {}
        exec("from prefactor_trace.http import *", space)
        assert space.keys() - {"__builtins__"} == set(prefactor_trace.http.__all__)

    def test_names_are_those_of_the_documented_package(self):
        """Whoever changes only the import finds everything that was there."""
        theirs = pytest.importorskip("prefactor_http")
        assert set(theirs.__all__) - set(prefactor_trace.http.__all__) == set()

    def test_a_wrong_name(self):
        """It is an AttributeError that says so, and an ImportError to `from`."""
        with pytest.raises(
            AttributeError, match=r"^module 'prefactor_trace.http' has no attribute 'Nothing'$"
        ):
            _ = prefactor_trace.http.Nothing
        with pytest.raises(ImportError, match="Nothing"):
            exec("from prefactor_trace.http import Nothing", {})

    def test_completion(self):
        """`dir` of the freshly imported package names all that can be had, so a prompt can complete it."""
        code = (
            "import prefactor_trace.http as http, sys; "
            "print(set(http.__all__) - set(dir(http)), 'pydantic' in sys.modules)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "set() False"

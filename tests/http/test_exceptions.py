"""The client's errors: their tree, what they carry, that they travel, and which of them mean "later"."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefactor_trace.errors import PrefactorTraceError
from prefactor_trace.http import HttpClientConfig, PrefactorHttpClient, exceptions
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
    api_error,
    is_permanent_http_error,
    is_transient_http_error,
)
from prefactor_trace.http.models import AgentSpan

PARENTS = {
    PrefactorHttpError: PrefactorTraceError,
    PrefactorApiError: PrefactorHttpError,
    PrefactorAuthError: PrefactorApiError,
    PrefactorNotFoundError: PrefactorApiError,
    PrefactorValidationError: PrefactorApiError,
    PrefactorClientError: PrefactorHttpError,
    PrefactorTransportError: PrefactorClientError,
    PrefactorResponseContractError: PrefactorHttpError,
    PrefactorRetryExhaustedError: PrefactorHttpError,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def unreadable() -> ValidationError:
    """An error of the library that reads the answers."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(int).validate_python("no number")
    return raised.value


def not_json() -> json.JSONDecodeError:
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads("<html>")
    return raised.value


def one_of_each() -> list[PrefactorHttpError]:
    api = PrefactorApiError("not now", "busy", 503)
    api.retry_after = 2.5
    contract = PrefactorResponseContractError(
        "no JSON", status_code=502, body_snippet="<html>", cause=not_json()
    )
    contract.retry_after = 1.0
    return [
        PrefactorHttpError("one", 2),
        api,
        PrefactorAuthError("who?", "unauthorized", 401),
        PrefactorNotFoundError("what?", "not_found", 404),
        PrefactorValidationError("no", "validation_errors", 422, {"name": ["is missing"]}),
        PrefactorClientError("no body"),
        PrefactorTransportError("no answer"),
        contract,
        PrefactorResponseContractError("no shape", cause=unreadable()),
        PrefactorResponseContractError("neither"),
        PrefactorRetryExhaustedError("never", contract),
        PrefactorRetryExhaustedError("never", api),
        PrefactorRetryExhaustedError("never"),
    ]


each_error = pytest.mark.parametrize("error", one_of_each(), ids=lambda error: type(error).__name__)


def facts(error):
    """What a handler can see of *error*, and of the errors in it."""
    attributes = {
        name: facts(value) if isinstance(value, Exception) else value
        for name, value in vars(error).items()
        if not name.startswith("__")
    }
    retry_after = getattr(error, "retry_after", None)
    return type(error), str(error), repr(error), retry_after, attributes


def report(error):
    """What `error` looks like in a log."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


class TestTree:
    def test_drawn_in_the_module(self):
        """Every class of the module is in the tree, under the parent that is promised."""
        classes = {
            each
            for each in vars(exceptions).values()
            if inspect.isclass(each) and issubclass(each, PrefactorHttpError)
        }
        assert {each: each.__mro__[1] for each in classes} == PARENTS
        assert {each.__name__ for each in classes} <= set(exceptions.__all__)
        for each in classes:
            assert each.__name__ in exceptions.__doc__

    def test_same_as_the_documented_one(self):
        """Who catches a class of the documented package's name catches what was caught there, and a base more."""
        theirs = pytest.importorskip("prefactor_http.exceptions")
        for ours, parent in PARENTS.items():
            official = getattr(theirs, ours.__name__, None)
            if ours is PrefactorTransportError:
                assert official is None  # there it is what the HTTP library raises
            elif ours is not PrefactorHttpError:
                assert official.__mro__[1].__name__ == parent.__name__

    @pytest.mark.parametrize(
        "name",
        [
            "PrefactorApiError",
            "PrefactorAuthError",
            "PrefactorNotFoundError",
            "PrefactorResponseContractError",
            "PrefactorRetryExhaustedError",
            "PrefactorValidationError",
        ],
    )
    def test_made_as_the_documented_ones(self, name):
        """Tests of a program make errors themselves: same parameters, same order, same defaults."""
        theirs = pytest.importorskip("prefactor_http.exceptions")
        ours, official = (
            [
                (each.name, each.kind, each.default)
                for each in inspect.signature(getattr(module, name)).parameters.values()
            ]
            for module in (exceptions, theirs)
        )
        assert ours == official


class TestAttributes:
    def test_of_a_refusal(self):
        """Message, code and status; nothing to wait for until an answer says so."""
        error = PrefactorApiError("not now", "busy", 503)
        assert (str(error), error.message, error.code, error.status_code) == (
            "not now",
            "not now",
            "busy",
            503,
        )
        assert error.retry_after is None

    def test_of_a_validation_error(self):
        """What is wrong with which field."""
        error = PrefactorValidationError("no", "validation_errors", 422, {"name": ["is missing"]})
        assert (error.errors, error.code, error.status_code) == (
            {"name": ["is missing"]},
            "validation_errors",
            422,
        )

    def test_of_a_broken_contract(self):
        """All of them may be unknown, and all can be given by name."""
        error = PrefactorResponseContractError("no")
        assert (error.status_code, error.body_snippet, error.cause, error.retry_after) == (None,) * 4
        cause = not_json()
        error = PrefactorResponseContractError("no", status_code=200, body_snippet="<p>", cause=cause)
        assert (error.status_code, error.body_snippet, error.cause) == (200, "<p>", cause)

    def test_of_an_exhausted_call(self):
        """How the last attempt failed."""
        last = PrefactorTransportError("no answer")
        assert PrefactorRetryExhaustedError("never", last).last_error is last
        assert PrefactorRetryExhaustedError("never").last_error is None


class TestTravelling:
    @each_error
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickling(self, error, protocol):
        """Everything a handler can see arrives: a pool that cannot unpickle an error hangs."""
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)

    @each_error
    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_copying(self, error, duplicate):
        """A copy is another object that says the same."""
        other = duplicate(error)
        assert other is not error
        assert facts(other) == facts(error)
        assert report(other) == report(error)

    def test_a_program_s_own_subclass(self):
        """Also with a constructor of its own, which is not called again."""
        error = Busy(5)
        error.retry_after = 1.5
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other), other.minutes, other.retry_after) == (Busy, "busy for 5 min", 5, 1.5)

    def test_notes(self):
        """What a program has added to an error travels with it."""
        error = PrefactorApiError("not now", "busy", 503)
        error.__notes__ = ["while saving"]
        assert pickle.loads(pickle.dumps(error)).__notes__ == ["while saving"]

    def test_out_of_another_process(self):
        """A pool hands on the error that its worker raised, with what could not be read."""
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            with pytest.raises(PrefactorResponseContractError, match="agent_spans.get") as raised:
                pool.apply_async(misread).get(30)
            pool.close()
            pool.join()
        assert "id" in str(raised.value)
        assert type(raised.value.cause) is ValidationError


def misread():
    """Read an answer that does not fit, as the client does."""
    client = PrefactorHttpClient(HttpClientConfig("http://127.0.0.1:1", "token"))
    client.agent_spans._parsed(AgentSpan, {"id": 5}, "agent_spans.get")


class Busy(PrefactorApiError):
    def __init__(self, minutes):
        super().__init__(f"busy for {minutes} min", "busy", 503)
        self.minutes = minutes


class TestLaterOrNever:
    @pytest.mark.parametrize(
        ("error", "is_transient", "is_permanent"),
        [
            (PrefactorTransportError("no answer"), True, False),
            (PrefactorClientError("no body"), False, False),
            (PrefactorHttpError("?"), False, False),
            (PrefactorResponseContractError("another shape"), False, True),
            (PrefactorRetryExhaustedError("never"), False, False),
            (ValueError("not ours"), False, False),
            (TimeoutError("not ours"), True, False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_errors_without_status(self, error, is_transient, is_permanent):
        """A call nobody answered in time, or at all, may work later; an answer of another shape will stay one."""
        for each in (error, PrefactorRetryExhaustedError("never", error)):
            assert (is_transient_http_error(each), is_permanent_http_error(each)) == (
                is_transient,
                is_permanent,
            )

    @pytest.mark.parametrize("kind", [PrefactorApiError, PrefactorResponseContractError])
    @given(status=st.integers(0, 999))
    def test_errors_with_status(self, kind, status):
        """Of an answer, exactly one of the two is true, and being exhausted changes nothing."""
        error = with_status(kind, status)
        assert is_transient_http_error(error) != is_permanent_http_error(error)
        assert is_transient_http_error(error) == (
            status in (408, 425, 429) or (status >= 500 and status not in (501, 505))
        )
        for judge in (is_transient_http_error, is_permanent_http_error):
            assert judge(PrefactorRetryExhaustedError("never", error)) == judge(error)

    # Where we differ from the documented package's functions, and why.
    DIFFERENCES = {
        408: "the server was tired of waiting for the request: the same one may work (RFC 9110, 15.5.9)",
        425: "too early: the same request may work later (RFC 8470)",
        501: "no such method: the same request will never work (RFC 9110, 15.6.2)",
        505: "no such version of HTTP: the same request will never work (RFC 9110, 15.6.6)",
    }

    @pytest.mark.parametrize("kind", [PrefactorApiError, PrefactorResponseContractError])
    def test_as_the_documented_functions(self, kind):
        """For every status from 400 to 599 both packages say the same, but for those in the table."""
        theirs = pytest.importorskip("prefactor_http.exceptions")
        different = set()
        for status in range(400, 600):
            ours, official = with_status(kind, status), with_status(getattr(theirs, kind.__name__), status)
            if is_transient_http_error(ours) != theirs.is_transient_http_error(official):
                different.add(status)
            if not is_transient_http_error(ours):
                assert is_permanent_http_error(ours)
        assert different == self.DIFFERENCES.keys()


def with_status(kind, status):
    if "Contract" in kind.__name__:
        return kind("no JSON", status_code=status)
    return kind("no", "code", status)


class TestApiError:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, PrefactorValidationError),
            (401, PrefactorAuthError),
            (403, PrefactorAuthError),
            (404, PrefactorNotFoundError),
            (405, PrefactorApiError),
            (409, PrefactorApiError),
            (413, PrefactorApiError),
            (418, PrefactorApiError),
            (422, PrefactorValidationError),
            (429, PrefactorApiError),
            (500, PrefactorApiError),
            (503, PrefactorApiError),
        ],
    )
    def test_class_by_status(self, status, kind):
        """As documented, and with what the platform said."""
        body = {"status": "error", "code": "c", "message": "m", "errors": {"name": ["is missing"]}}
        error = api_error(status, body)
        assert type(error) is kind
        assert (str(error), error.message, error.code, error.status_code) == ("m", "m", "c", status)
        if kind is PrefactorValidationError:
            assert error.errors == {"name": ["is missing"]}

    @given(
        st.integers(400, 599),
        st.dictionaries(st.sampled_from(["status", "code", "message", "errors", "other"]), json_values),
    )
    def test_hostile_bodies(self, status, body):
        """Whatever stands where message, code and errors should, the attributes have the types that are promised."""
        error = api_error(status, body)
        said = body.get("message")
        assert error.message == str(error) == (said if isinstance(said, str) else f"HTTP {status}")
        assert type(error.message) is str
        assert type(error.code) is str
        assert error.status_code == status
        if isinstance(error, PrefactorValidationError):
            assert type(error.errors) is dict
        assert facts(pickle.loads(pickle.dumps(error)))[:3] == facts(error)[:3]

    def test_an_empty_body(self):
        """The status speaks for it."""
        error = api_error(422, {})
        assert (str(error), error.code, error.errors) == ("HTTP 422", "unknown", {})

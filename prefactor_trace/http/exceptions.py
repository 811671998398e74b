"""The client's errors. The tree is that of `prefactor_http.exceptions`, with `PrefactorTransportError` added.

PrefactorHttpError
├── PrefactorApiError                 the platform refused the request
│   ├── PrefactorAuthError            401, 403
│   ├── PrefactorNotFoundError        404
│   └── PrefactorValidationError      400, 422; `errors` says what is wrong with which field
├── PrefactorClientError              the request could not be made
│   └── PrefactorTransportError       no answer came, or not a whole one
├── PrefactorResponseContractError    an answer that is not the Prefactor API's
└── PrefactorRetryExhaustedError      every attempt failed; `last_error` says how

None of them ever contains the token.
"""

from __future__ import annotations

from typing import Any

from prefactor_trace.errors import PrefactorTraceError
from prefactor_trace.http._protocol import Meaning, meaning_of_status

__all__ = [
    "PrefactorApiError",
    "PrefactorAuthError",
    "PrefactorClientError",
    "PrefactorHttpError",
    "PrefactorNotFoundError",
    "PrefactorResponseContractError",
    "PrefactorRetryExhaustedError",
    "PrefactorTransportError",
    "PrefactorValidationError",
    "api_error",
    "is_permanent_http_error",
    "is_transient_http_error",
]


class PrefactorHttpError(PrefactorTraceError):
    """Base of all errors of the client."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, whatever the arguments were: a pool that cannot unpickle an error hangs."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[PrefactorHttpError], args: tuple[Any, ...], state: dict[str, Any]
) -> PrefactorHttpError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class PrefactorApiError(PrefactorHttpError):
    """The platform refused the request.

    Attributes:
        message: What it says, for people.
        code: What it says, for programs: `not_found`, `invalid_action`, … `unknown` if it says none.
        status_code: HTTP status.
        retry_after: Seconds it asked to wait, None if it did not.
    """

    retry_after: float | None = None

    def __init__(self, message: str, code: str, status_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status_code = status_code


class PrefactorAuthError(PrefactorApiError):
    """The token is wrong, suspended, or may not do this (401, 403)."""


class PrefactorNotFoundError(PrefactorApiError):
    """There is nothing of this id (404)."""


class PrefactorValidationError(PrefactorApiError):
    """The content of the request is wrong (400, 422).

    Attributes:
        errors: Field → messages, as the platform gave them.
    """

    def __init__(self, message: str, code: str, status_code: int, errors: dict[str, Any]) -> None:
        super().__init__(message, code, status_code)
        self.errors = errors


class PrefactorRetryExhaustedError(PrefactorHttpError):
    """Every attempt failed.

    Attributes:
        last_error: How the last one failed.
    """

    def __init__(self, message: str, last_error: Exception | None = None) -> None:
        super().__init__(message)
        self.last_error = last_error


class PrefactorClientError(PrefactorHttpError):
    """The request could not be made: its body is not JSON, or nobody answered."""


class PrefactorTransportError(PrefactorClientError):
    """No answer came, or not a whole one: refused, reset, timed out, no such host."""


class PrefactorResponseContractError(PrefactorHttpError):
    """An answer that is not the Prefactor API's: no JSON, another shape, a page of a proxy.

    Attributes:
        status_code: HTTP status, if the answer was not even JSON.
        body_snippet: The beginning of the body, on one line.
        cause: What could not read it.
        retry_after: Seconds the answer asked to wait, None if it did not.
    """

    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        body_snippet: str | None = None,
        cause: Exception | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.body_snippet = body_snippet
        self.cause = cause


def api_error(status_code: int, body: dict[str, Any]) -> PrefactorApiError:
    """Return the error that an answer of *status_code* with the JSON object *body* is."""
    message, code = body.get("message"), body.get("code")
    message = message if isinstance(message, str) else f"HTTP {status_code}"
    code = code if isinstance(code, str) else "unknown"
    meaning = meaning_of_status(status_code)
    if meaning is Meaning.INVALID:
        errors = body.get("errors")
        return PrefactorValidationError(
            message, code, status_code, errors if isinstance(errors, dict) else {}
        )
    kinds = {Meaning.UNAUTHORIZED: PrefactorAuthError, Meaning.NOT_FOUND: PrefactorNotFoundError}
    return kinds.get(meaning, PrefactorApiError)(message, code, status_code)


def is_transient_http_error(error: Exception) -> bool:
    """Whether the same call may work later."""
    if isinstance(error, PrefactorRetryExhaustedError) and error.last_error is not None:
        return is_transient_http_error(error.last_error)
    return isinstance(error, (PrefactorTransportError, TimeoutError)) or _meaning(error) is Meaning.TRANSIENT


def is_permanent_http_error(error: Exception) -> bool:
    """Whether the same call will never work. Errors that are not of the API are neither transient nor permanent."""
    if isinstance(error, PrefactorRetryExhaustedError) and error.last_error is not None:
        return is_permanent_http_error(error.last_error)
    answered = isinstance(error, (PrefactorApiError, PrefactorResponseContractError))
    return answered and not is_transient_http_error(error)


def _meaning(error: Exception) -> Meaning:
    status = getattr(error, "status_code", None)
    return Meaning.OTHER if status is None else meaning_of_status(status)

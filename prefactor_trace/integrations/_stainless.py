"""Reads calls of the SDKs that Stainless generates: OpenAI's, Anthropic's, and others of the same build. Pure.

All their endpoints go through one `request` method of the client, which gets the finished request, and one
`_process_response`, which gets the HTTP response: whatever helper the user has called, and whatever it returns. Tapping
these two survives new endpoints and new helpers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace.integrations._tap import Asked, Heard, Tap
from prefactor_trace.integrations._values import some_dict, without_media

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefactor_trace._schema import SpanType
    from prefactor_trace.integrations._tap import Reader

# Request fields that say nothing about the call, or that stand elsewhere.
_LEFT_OUT = ("stream", "stream_options")
_NOT_GIVEN = ("Omit", "NotGiven", "NoneType")


class Endpoint(NamedTuple):
    """What is POSTed to one path.

    Attributes:
        type: The span type of such a call.
        verb: Stands before the model in the span's name.
        fields: The fields of the request that are no mere parameters, in the order in which they are shown.
        reader: Makes the reader of an answer.
    """

    type: SpanType
    verb: str
    fields: tuple[str, ...]
    reader: Callable[[], Reader]


def taps(package: str, endpoints: Mapping[str, Endpoint]) -> tuple[Tap, ...]:
    """Return the taps of the SDK *package*. *endpoints*: by path, as the SDK has it before it adds the base URL."""

    def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        options = kwargs.get("options") or args[2]
        endpoint = endpoints.get(options.url.partition("?")[0])
        if endpoint is None or options.method.lower() != "post":
            return None
        return _asked(endpoint, options)

    def heard(_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Heard | None:
        response, options = kwargs["response"], kwargs["options"]
        endpoint = endpoints.get(options.url.partition("?")[0])
        metadata = {"http_status": response.status_code, **_request_id(response.headers)}
        retries = kwargs.get("retries_taken")
        if retries:
            metadata["retries"] = retries
        fields = endpoint.fields if endpoint is not None else ()
        return Heard(response, metadata, lambda: _inputs(_body_of(options), fields))

    where = f"{package}._base_client:"
    return tuple(
        tap
        for client in ("SyncAPIClient", "AsyncAPIClient")
        for tap in (
            Tap(f"{where}{client}.request", asks=asked, failed=_failed, iterator="_iterator"),
            Tap(f"{where}{client}._process_response", hears=heard),
        )
    )


def _asked(endpoint: Endpoint, options: Any) -> Asked:
    body = _body_of(options)
    model = body.get("model")
    name = f"{endpoint.verb} {model}" if type(model) is str else endpoint.verb
    return Asked(
        endpoint.type,
        name[:200],
        lambda: _inputs(body, endpoint.fields),
        endpoint.reader(),
        is_partial=any(hasattr(body.get(field), "__next__") for field in endpoint.fields),
    )


def _body_of(options: Any) -> dict[str, Any]:
    """Return the request's body. What the user adds by `extra_body` stands over what the SDK has made."""
    body = {**some_dict(options.json_data), **some_dict(getattr(options, "extra_json", None))}
    return {name: value for name, value in body.items() if type(value).__name__ not in _NOT_GIVEN}


def _inputs(body: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    given = {name: without_media(body[name]) for name in fields if name in body}
    rest = {name: value for name, value in body.items() if name not in fields and name not in _LEFT_OUT}
    return {**given, "parameters": without_media(rest)} if rest else given


def _failed(error: BaseException) -> dict[str, Any]:
    """Return what the exception of an SDK tells about the last attempt."""
    found: dict[str, Any] = {}
    fields = vars(error)  # not by attribute: an HTTP library's own exceptions raise at theirs
    response = fields.get("response")
    if response is not None:
        found["http_status"] = response.status_code
        found |= _request_id(response.headers)
    # Every attempt tells the server its number.
    request = fields.get("request")
    retries = request.headers.get("x-stainless-retry-count") if request is not None else None
    if retries not in (None, "0"):
        found["retries"] = int(retries)
    return found


def _request_id(headers: Any) -> dict[str, str]:
    found = headers.get("x-request-id") or headers.get("request-id") or headers.get("apim-request-id")
    return {"request_id": found} if found else {}

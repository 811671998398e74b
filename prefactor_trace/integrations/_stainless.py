"""Reads calls of the SDKs that Stainless generates: OpenAI's, Anthropic's, and others of the same build. Pure.

All their endpoints go through one `request` method of the client, which gets the finished request, and one
`_process_response`, which gets the HTTP response: whatever helper the user has called, and whatever it returns. Tapping
these two survives new endpoints and new helpers.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as NotBase64
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace._capture import Limits, capture
from prefactor_trace._redact import Redactor
from prefactor_trace.integrations._tap import Asked, Heard, Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefactor_trace._schema import SpanType
    from prefactor_trace.integrations._tap import Reader

# Secrets are taken out later, of what is recorded, as the settings say.
_LARGE = Limits(max_string=1_000_000, max_bytes=4_000_000, max_seconds=0.02, redact=Redactor(is_on=False))
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


# -- values ------------------------------------------------------------------------------------------------


def as_dict(value: Any) -> dict[str, Any]:
    """Return *value*, JSON or a model of an SDK, as a dict; an empty one if it is none. Runs no code of it."""
    if type(value) is dict:
        return value
    if isinstance(value, (str, bytes, int, float, list, type(None))):
        return {}
    found = orjson.loads(capture(value, _LARGE))
    return found if type(found) is dict else {}


def some_dict(value: Any) -> dict[str, Any]:
    """Return *value* if it is a dict, else an empty one."""
    return value if type(value) is dict else {}


def some_list(value: Any) -> list[Any]:
    """Return *value* if it is a list, else an empty one."""
    return value if type(value) is list else []


def text(value: Any) -> str:
    """Return *value* if it is a text, else an empty one."""
    return value if type(value) is str else ""


def count(value: Any) -> int | None:
    """Return *value* if it is a count, else None."""
    return value if type(value) is int and value >= 0 else None


def counts(**given: Any) -> dict[str, int]:
    """Return those of *given* that are counts."""
    return {name: value for name, value in given.items() if count(value) is not None}


def present(**given: Any) -> dict[str, Any]:
    """Return those of *given* that say something."""
    return {name: value for name, value in given.items() if value not in (None, "", [], {})}


# -- images, audio and secrets --------------------------------------------------------------------------------------

# What holds base64, and the fields beside it that tell of what.
_BASE64_FIELDS = (
    "data",
    "file_data",
    "b64_json",
    "base64",
    "partial_image_b64",
    "result",
    "image_base64",
    "thoughtSignature",
    "thought_signature",
)
_KIND_FIELDS = ("media_type", "mime_type", "mimeType", "format", "output_format")
_DIGESTED = 16 * 1024  # as capture does: the digest is of so many bytes
_SHORT = 256  # what is shorter is shown
# The entries of a request that tell the provider of a server, and with what to log in there.
_SERVERS = ("mcp", "url")
_SECRETS = ("authorization", "authorization_token", "headers")
# Google's, which stand anywhere.
_CREDENTIALS = ("authConfig", "auth_config", "apiAuth", "api_auth")
_MASK = "**********"  # as capture has it for secrets
_MOST_VALUES = 50_000


def without_media(value: Any) -> Any:
    """Return *value*, JSON, with images, audio and files as kind, size and digest; the same one if it has none.

    What a provider is told to log in with elsewhere is left out, too.
    """
    return _Media().read(value)


class _Media:
    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def read(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind is str:
            return _of_data_url(value) if value.startswith("data:") and len(value) > _SHORT else value
        if (kind is not dict and kind is not list and kind is not tuple) or depth > 20:
            return value
        self._left -= len(value)
        if self._left < 0:
            return value
        if kind is dict:
            return self._read_dict(value, depth)
        items = [self.read(item, depth + 1) for item in value]
        return items if any(map(_is_other, items, value)) else value

    def _read_dict(self, value: dict[Any, Any], depth: int) -> Any:
        fields = {}
        is_server = value.get("type") in _SERVERS or ("url" in value and "headers" in value)
        for name, item in value.items():
            if item is not None and (name in _CREDENTIALS or (is_server and name in _SECRETS)):
                fields[name] = _MASK
                continue
            is_base64 = name in _BASE64_FIELDS and type(item) is str and len(item) > _SHORT
            found = of_base64(item, _kind_beside(value)) if is_base64 else self.read(item, depth + 1)
            if found is not item:
                fields[name] = found
        return {**value, **fields} if fields else value


def _is_other(one: object, other: object) -> bool:
    return one is not other


def _kind_beside(fields: Mapping[Any, Any]) -> str:
    found = next((fields[name] for name in _KIND_FIELDS if type(fields.get(name)) is str), None)
    return found or text(fields.get("type")) or "unknown"


def _of_data_url(url: str) -> Any:
    head, comma, data = url.partition(",")
    media_type, _, packing = head[5:].rpartition(";")
    if not comma or packing != "base64":
        return url
    return of_base64(data, media_type or "unknown")


def of_base64(data: str, media: str) -> Any:
    """Return the marker of capture for bytes, and their *media* kind."""
    data = data.partition(",")[2] if data.startswith("data:") else data
    try:
        # Google's alphabet, and by this the usual one, too
        beginning = b64decode(data[: _DIGESTED // 3 * 4 + 4], altchars=b"-_", validate=True)[:_DIGESTED]
    except (NotBase64, ValueError):
        return data
    padding = data[-2:].count("=")
    return {
        "$bytes": len(data) // 4 * 3 - padding,
        "sha256": sha256(beginning).hexdigest()[:16],
        "media": media[:100],
    }

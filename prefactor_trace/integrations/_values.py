"""Reads JSON values that come from outside, and may be of any shape: of requests and answers, whichever the SDK. Pure."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as NotBase64
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace._capture import Limits, capture
from prefactor_trace._redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Mapping

# Secrets are taken out later, of what is recorded, as the settings say.
_LARGE = Limits(max_string=1_000_000, max_bytes=4_000_000, max_seconds=0.02, redact=Redactor(is_on=False))


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

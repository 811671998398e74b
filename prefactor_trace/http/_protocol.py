"""What every call of the Prefactor API has in common: its headers, and what its statuses and codes mean.

The one place that knows; the client raises errors by it, and the exporter decides by it what to send again. Pure and
light: it is imported with the library. Section numbers refer to the API contract.
"""

from __future__ import annotations

import enum
import math
from datetime import timezone
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefactor_trace._version import __version__

if TYPE_CHECKING:
    import ssl

SDK_HEADER = f"prefactor-trace@{__version__}"
# The documented default of `HttpClientConfig.retry_on_status_codes`.
RETRIED_BY_DEFAULT = (429, 500, 502, 503, 504)


class Meaning(enum.Enum):
    """What an answer says about the request it answers (sections 1.5 and 13)."""

    SUCCESS = "done"
    UNAUTHORIZED = "the token is not accepted"
    NOT_FOUND = "there is no such thing, or no such call"
    UNSUPPORTED = "there is no such call"
    INVALID = "the content is wrong"
    CONFLICT = "not possible in the present state"
    TOO_LARGE = "the body is too large"
    TRANSIENT = "not now; the same request may work later"
    OTHER = "none of these"


_OF_STATUS = {
    400: Meaning.INVALID,
    401: Meaning.UNAUTHORIZED,
    403: Meaning.UNAUTHORIZED,
    404: Meaning.NOT_FOUND,
    405: Meaning.UNSUPPORTED,
    408: Meaning.TRANSIENT,
    409: Meaning.CONFLICT,
    413: Meaning.TOO_LARGE,
    422: Meaning.INVALID,
    425: Meaning.TRANSIENT,
    429: Meaning.TRANSIENT,
    501: Meaning.UNSUPPORTED,
    505: Meaning.UNSUPPORTED,
}
_OF_CODE = {
    "bad_request": Meaning.INVALID,
    "invalid_action": Meaning.CONFLICT,
    "not_found": Meaning.NOT_FOUND,
    "validation_error": Meaning.INVALID,
    "validation_errors": Meaning.INVALID,
}


def meaning_of_status(status: int) -> Meaning:
    """Return what an HTTP *status* means."""
    if 200 <= status < 300:
        return Meaning.SUCCESS
    return _OF_STATUS.get(status, Meaning.TRANSIENT if status >= 500 else Meaning.OTHER)


def meaning_of_code(code: object) -> Meaning:
    """Return what the `code` of an error object means; it is all that an output of a bulk answer says."""
    return _OF_CODE.get(code, Meaning.OTHER) if isinstance(code, str) else Meaning.OTHER


def headers(token: str, sdk: str = SDK_HEADER) -> dict[str, str]:
    """Return what is sent with every request (section 1.2). *sdk*: `name@version` words, the outermost first."""
    return {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"prefactor-trace/{__version__}",
        "X-Prefactor-SDK": sdk,
    }


def root_of(url: str) -> str:
    """Return the root address in *url*, which people write with `/api/v1` and without (section 1.1).

    Raises ValueError for what is no address, or more than one; the message never shows it.
    """
    text = url.strip().rstrip("/")
    parts = urlsplit(text)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or any(character <= " " for character in text):
        raise ValueError("is not an address; write it like https://app.prefactorai.com")
    if parts.username or parts.password:
        raise ValueError("contains a user name or password; the token goes into PREFACTOR_API_TOKEN")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError("contains a query or fragment; write only the root address")
    _ = parts.port  # raises ValueError for a port that is none
    root = text.removesuffix("/api/v1").rstrip("/")
    return parts.scheme + root[len(parts.scheme) :]  # in lower case, whatever was written


def is_sendable_token(token: object) -> bool:
    """Whether *token* can stand in a header: an error about one that cannot would quote it."""
    return isinstance(token, str) and bool(token) and all("!" <= character <= "~" for character in token)


def verifying_context() -> ssl.SSLContext:
    """Return what trusts the authorities of the system, of SSL_CERT_FILE, and Mozilla's.

    Reading them takes a twentieth of a second: to be kept.
    """
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


def is_loopback(url: str) -> bool:
    """Say whether *url* stays on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """Return the HTTP proxy for *url*, from the variables that all programs share; never for this machine itself.

    Raises ValueError for one that is no HTTP proxy. It is not shown: it may hold a password.
    """
    if is_loopback(url):
        return None
    import urllib.request  # slow to load: with it comes half of an HTTP client

    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is not None and "://" in proxy and not proxy.lower().startswith(("http://", "https://")):
        raise ValueError(f"{parts.scheme.upper()}_PROXY must be the address of an http proxy")
    return proxy


def retry_after_seconds(text: str | None, now: float) -> float | None:
    """Read a Retry-After header, seconds or a date. *now*: Unix seconds. None for what is past or makes no sense."""
    if text is None:
        return None
    try:
        seconds = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        from email.utils import parsedate_to_datetime  # slow to load, and rarely needed

        try:
            moment = parsedate_to_datetime(text)
            # The oldest of the three forms names no zone; all dates of HTTP are in UTC.
            moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
            seconds = moment.timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None

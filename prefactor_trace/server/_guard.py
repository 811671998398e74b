"""Keeps strangers out: pure ASGI middleware in front of everything, before routing and before parsing.

The server listens on loopback, which is not a border: every web page the user opens and every program on the
machine can talk to it. So, in this order, a request must

1. name us in Host (a page that rebinds its own name to 127.0.0.1 does not),
2. carry the token: the API as bearer, the viewer as a cookie that `/?token=...` hands out,
3. if it changes state, come from our own Origin or from no web page at all, and, for the API, be JSON,
4. have a body of bounded size, also after inflating, and of bounded depth.

An API path with an encoded slash names nothing, and is answered here, because routing would see it decoded: an id
`a/retire` must not become another call.

Runs on the event loop. Refusals are JSON objects; a viewer page without its cookie is answered in plain text.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import zlib
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from prefactor_trace.server._fields import NotFound, Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 16 * 1024 * 1024  # bytes on the wire; the API's own limit is unpublished
MAX_INFLATED = 64 * 1024 * 1024
MAX_RATIO = 100  # inflated to compressed; JSON of spans reaches about 30
MAX_DEPTH = 64
_RATIO_MATTERS_FROM = 1024 * 1024  # bytes; a small body may be all zeros

_log = logging.getLogger("prefactor_trace.server")

_READING = ("GET", "HEAD", "OPTIONS")
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")


class Guard:
    """The middleware. *port*: where we listen. *token*: what a client has to know."""

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._token = token.encode()
        self._session = hmac.new(self._token, b"viewer session", hashlib.sha256).hexdigest().encode()
        self._cookie = f"prefactor_trace_{port}"  # cookies are shared between the ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # the server is told to speak nothing else
        send = _with_security_headers(send)
        headers = Headers(scope=scope)
        try:
            response = self._admit(scope, headers)
            if response is None and scope["method"] not in _READING:
                self._check_change(scope, headers)
                body = await _read_body(receive, headers)
                if _is_api(scope):
                    check_depth(body)
                receive = _replaying(body, receive)
        except Refusal as refusal:
            response = refused(refusal)
        try:
            await (response or self._app)(scope, receive, send)
        except Exception:  # answered already; raised further it would only cost the client its connection
            _log.exception("cannot answer %s %s", scope["method"], scope["path"])

    def _admit(self, scope: Scope, headers: Headers) -> Response | None:
        """Check who asks. Return the answer if that settles the request."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise Refusal(421, "misdirected_request", "this server does not answer to that Host")
        if _is_api(scope):
            self._check_bearer(headers)
            if b"%2f" in scope["raw_path"].lower():
                raise NotFound("something with a slash in its id")
            return None
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
        if (
            given is not None
            and scope["method"] == "GET"
            and hmac.compare_digest(given.encode(), self._token)
        ):
            return self._open_session(scope)
        return None if self._has_session(headers) else _CLOSED

    def _check_bearer(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal(401, "unauthorized", "send the token as Authorization: Bearer <token>")
        if not hmac.compare_digest(given.strip().encode(), self._token):
            raise Refusal(
                401, "bad_authtoken", "this token is not the one that this server printed when it started"
            )

    def _open_session(self, scope: Scope) -> Response:
        """Swap the token in the address for a cookie, so that it stays out of history and screenshots."""
        query = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        page = "/" + quote(scope["path"].lstrip("/"))  # one slash: two would name another host
        response = RedirectResponse(f"{page}?{urlencode(query)}" if query else page, status_code=303)
        response.set_cookie(self._cookie, self._session.decode(), httponly=True, samesite="strict", path="/")
        return response

    def _has_session(self, headers: Headers) -> bool:
        # Split by hand: `http.cookies` gives up at the first odd cookie, and other programs on localhost set odd ones.
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        return any(
            name == self._cookie and hmac.compare_digest(value.encode(), self._session)
            for name, _, value in pairs
        )

    def _check_change(self, scope: Scope, headers: Headers) -> None:
        if any(origin.lower() not in self._origins for origin in headers.getlist("origin")):
            raise Refusal(403, "forbidden", "another web page may not change anything here")
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if _is_api(scope) and kind != "application/json" and (kind or has_body):
            raise Refusal(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")


def refused(refusal: Refusal) -> Response:
    """Return the answer for a refusal."""
    return Response(orjson.dumps(refusal.body()), refusal.status, media_type="application/json")


_CLOSED = PlainTextResponse(
    "This is the viewer of prefactor-trace. Open the address that `prefactor-trace serve` printed: it has the key.\n",
    401,
)


def _is_api(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/api" or path.startswith("/api/")


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers[name] = value
        await send(message)

    return send_with_headers


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out *body* and then what really comes, which is the client hanging up."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _read_body(receive: Receive, headers: Headers) -> bytes:
    """Read the whole body, inflating it while it comes; refuse it as soon as it is too much."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise Refusal(415, "unsupported_encoding", "send the body as it is, or with Content-Encoding: gzip")
    gunzip = _Gunzip() if encoding == "gzip" else None
    parts: list[bytes] = []
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "bad_request", "the request ended before its body did")
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(chunk)
        if received > MAX_BODY:
            raise _too_large(f"the body is larger than {MAX_BODY} bytes")
        parts += [chunk] if gunzip is None else gunzip.feed(chunk)
    if gunzip is not None:
        gunzip.finish()
    return b"".join(parts)


class _Gunzip:
    """Inflates gzip, all members of it, and counts what comes out while it does."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._read = 0
        self._made = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        parts = []
        self._read += len(chunk)
        while chunk:
            if self._member.eof:  # another member follows
                self._member = zlib.decompressobj(wbits=31)
            limit = min(MAX_INFLATED, max(_RATIO_MATTERS_FROM, MAX_RATIO * self._read)) - self._made
            try:
                parts.append(self._member.decompress(chunk, limit + 1))
            except zlib.error as error:
                raise Refusal(400, "bad_request", f"the body is not gzip: {error}") from None
            self._made += len(parts[-1])
            if len(parts[-1]) > limit:
                raise _too_large("the body inflates to too much")
            chunk = self._member.unused_data
        return parts

    def finish(self) -> None:
        if not self._member.eof:
            raise Refusal(400, "bad_request", "the gzip body is cut off")


def _too_large(message: str) -> Refusal:
    return Refusal(413, "payload_too_large", message)


def check_depth(body: bytes) -> None:
    """Refuse JSON nested deeper than MAX_DEPTH, before a parser follows it down.

    Takes away everything but the brackets outside of strings, then the innermost pairs, layer by layer: each pass is
    one run through the bytes in C, and ordinary JSON is gone after its few layers.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in body:  # so that every quote left is one that begins or ends a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(body.split(b'"')[::2]).translate(_BRACES_AS_BRACKETS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise Refusal(400, "bad_request", f"the body is not JSON, or nested deeper than {MAX_DEPTH} levels")

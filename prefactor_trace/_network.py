"""The sockets of the exporter: a connection pool whose requests end by a deadline, whatever the server does.

httpx and httpcore bound each read by a timeout; a server that drips one byte a second passes every one of them for
ever. Here one deadline covers connecting, sending and the whole answer. Loaded on first use, in the sender thread.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

import httpcore

from prefactor_trace._wire import Response, Unreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from prefactor_trace._wire import Answer

_ANSWER_BYTES = 1024 * 1024
_WRITE_BYTES = 16 * 1024  # small enough that no single write outlives the deadline by much
_IDLE_SECONDS = 4.0  # uvicorn closes idle connections after 5 s; a little earlier, we never meet a dying one


class Connection:
    """Requests to one server, one at a time, over kept-alive connections.

    Args:
        url: Root address of the API, without `/api/v1`.
        headers: Sent with every request.
        timeout: Seconds for one request, from connecting to the last byte of the answer.
        proxy: Address of an HTTP proxy, with user name and password if it wants them. None: no proxy.
    """

    def __init__(self, url: str, headers: dict[str, str], *, timeout: float, proxy: str | None) -> None:
        self._timeout = timeout
        self._deadline = _Deadline(timeout)
        self._base = httpcore.URL(url.rstrip("/") + "/api/v1/")
        self._headers = [("Host", _host_header(self._base)), *headers.items()]
        options: dict[str, Any] = {
            "network_backend": _Backend(self._deadline),
            "keepalive_expiry": _IDLE_SECONDS,
            "max_connections": 1,
        }
        if self._base.scheme == b"https":
            # Made once: reading the certificate authorities takes longer than everything else in a request.
            options["ssl_context"] = httpcore.default_ssl_context()
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        else:
            self._pool = _proxy_pool(proxy, options)

    def post(self, path: str, body: bytes) -> Answer:
        """Send *body* as JSON and return the answer, or why there is none. Never follows a redirect."""
        self._deadline.restart()
        url = httpcore.URL(
            scheme=self._base.scheme,
            host=self._base.host,
            port=self._base.port,
            target=self._base.target + path.encode("ascii"),
        )
        headers = [*self._headers, ("Content-Length", str(len(body)))]
        try:
            with self._pool.stream("POST", url, headers=headers, content=body) as response:
                return Response(
                    status=response.status,
                    body=_read(response.iter_stream()),
                    retry_after=_header(response.headers, b"retry-after"),
                    received_at=time.time(),
                )
        except _AnswerTooLargeError:
            return Unreachable(f"an answer over {_ANSWER_BYTES} bytes")
        except httpcore.TimeoutException:
            return Unreachable(f"no whole answer within {self._timeout:g} s")
        except httpcore.ConnectError as error:  # the words of the operating system or of the TLS library
            return Unreachable(str(error))
        except (httpcore.ReadError, httpcore.RemoteProtocolError) as error:
            return Unreachable(type(error).__name__, broke_off=True)
        except Exception as error:  # whatever the network does is one thing to us: no answer
            # Without the error's text: some quote the header they do not like, and so the token.
            return Unreachable(type(error).__name__)

    def close(self) -> None:
        """Close the sockets."""
        self._pool.close()


class _AnswerTooLargeError(Exception):
    pass


def _read(chunks: Iterable[bytes]) -> bytes:
    # Content-Encoding is never undone: we ask for none, and a bomb stays as small as it was sent.
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > _ANSWER_BYTES:
            raise _AnswerTooLargeError
    return bytes(body)


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def _host_header(url: httpcore.URL) -> str:
    host = url.host.decode()
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if url.port is None else f"{bracketed}:{url.port}"


def _proxy_pool(proxy: str, options: dict[str, Any]) -> httpcore.HTTPProxy:
    # HTTPS_PROXY often has no scheme; and httpcore takes user name and password only beside the address.
    address = proxy if "://" in proxy else "http://" + proxy
    parts = urlsplit(address)
    if parts.username is not None:
        options["proxy_auth"] = (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or ""))
    return httpcore.HTTPProxy(address, **options)


class _Deadline:
    """The moment by which the present request must be over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = 0.0

    def restart(self) -> None:
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        """Seconds left, never zero: zero would mean "do not wait" to a socket, and be no timeout error."""
        return max(0.001, self._end - time.monotonic())

    def check(self) -> None:
        if time.monotonic() >= self._end:
            raise httpcore.ReadTimeout


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: _Deadline) -> None:
        self._backend = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout  # the deadline stands in its place
        # One by one, because `socket.create_connection` would give each address the whole time; and with a share
        # for each, because a dead first one would leave no time for the others.
        addresses = _resolve(host, port)
        while True:
            address = addresses.pop(0)
            share = self._deadline.left() / (len(addresses) + 1)
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise
            else:
                return _Stream(stream, self._deadline)


def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of *host*. The resolver keeps its own time limits, a few seconds in most systems."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    return [str(each[4][0]) for each in found]


class _Stream(httpcore.NetworkStream):
    """A stream whose every wait is bounded by what is left until the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        self._deadline.check()
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._deadline.check()
            self._stream.write(buffer[start : start + _WRITE_BYTES], self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        inner = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _Stream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

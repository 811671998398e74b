"""The exporter's connection: requests that end by a deadline, whatever the server does.

h11 knows what HTTP/1.1 is; the sockets are ours. The usual clients bound each read by a timeout, so a server that drips
one byte a second passes every one of them for ever; here one deadline covers connecting, sending and the whole answer.
They also take ten times as long to load, and what watches a program's HTTP would show our requests as the program's.
Loaded on first use, in the sender thread.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

import h11

from prefactor_trace._wire import Response, Unreachable
from prefactor_trace.http._protocol import verifying_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from urllib.parse import SplitResult

    from prefactor_trace._wire import Answer

_ANSWER_BYTES = 1024 * 1024
_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024  # in one piece, as TLS makes a copy of it
_IDLE_SECONDS = 4.0  # uvicorn closes idle connections after 5 s; a little earlier, we never meet a dying one
_PORTS = {"http": 80, "https": 443}
# A program may have set SIGPIPE to end it, as command line tools do; a server that goes away must not.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

_Headers: TypeAlias = list[tuple[str, str]]
_T = TypeVar("_T")


class Connection:
    """Requests to one server, one at a time, over kept-alive connections.

    Args:
        url: Root address of the API, without `/api/v1`.
        headers: Sent with every request.
        timeout: Seconds for one request, from connecting to the last byte of the answer. Asking for the address of a
            name keeps the time limits of the system's resolver.
        proxy: Address of an HTTP proxy, with user name and password if it wants them. None: no proxy.
    """

    def __init__(self, url: str, headers: dict[str, str], *, timeout: float, proxy: str | None) -> None:
        self._url = url
        self._headers = headers
        self._timeout = timeout
        # HTTPS_PROXY often has no scheme.
        self._proxy_url = None if proxy is None else proxy if "://" in proxy else "http://" + proxy
        self._tls: ssl.SSLContext | None = None
        self._link: _Link | None = None

    def post(self, path: str, body: bytes) -> Answer:
        """Send *body* as JSON and return the answer, or why there is none. Never follows a redirect.

        What is sent must be harmless if it arrives twice.
        """
        deadline = _Deadline(self._timeout)
        kept = self._take_link()
        answer = self._try(kept, path, body, deadline)
        if kept is not None and isinstance(answer, Unreachable) and answer.broke_off:
            # The server may have closed it while the request was on its way, which says nothing about the request.
            return self._try(None, path, body, deadline)._replace(is_second=True)
        return answer

    def _try(self, link: _Link | None, path: str, body: bytes, deadline: _Deadline) -> Answer:
        try:
            request = self._request(path, len(body))
            link = link or _Link(self._connect(deadline))
            return link.exchange(request, body, deadline)
        except _AnswerTooLargeError:
            return Unreachable(f"an answer over {_ANSWER_BYTES} bytes")
        except TimeoutError:
            return Unreachable(f"no whole answer within {self._timeout:g} s", is_silent=link is not None)
        except (OSError, h11.RemoteProtocolError) as error:
            if link is None:  # the words of the operating system, the resolver or the TLS library
                return Unreachable(str(error))
            return Unreachable(type(error).__name__, broke_off=True)
        except Exception as error:  # whatever the network does is one thing to us: no answer
            # Without the error's text: some quote the header they do not like, and so the token.
            return Unreachable(type(error).__name__)
        finally:
            if link is not None and link.is_reusable:
                self._link = link
            elif link is not None:
                link.close()

    def close(self) -> None:
        """Close the socket."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    @functools.cached_property  # and not made with the object, as it may raise
    def _server(self) -> _Server:
        return _Server.of(self._url)

    @functools.cached_property
    def _proxy(self) -> _Server | None:
        return None if self._proxy_url is None else _Server.of(self._proxy_url)

    def _request(self, path: str, length: int) -> h11.Request:
        server, proxy = self._server, self._proxy
        target = f"{server.path}/api/v1/{path}"
        headers = [("Host", server.host_header), *self._headers.items(), ("Content-Length", str(length))]
        if proxy is not None and server.scheme == "http":
            target = f"http://{server.host_header}{target}"
            headers += proxy.authorization
        return h11.Request(method="POST", target=target, headers=headers)

    def _take_link(self) -> _Link | None:
        link, self._link = self._link, None  # until it has served: what is broken is not used again
        if link is not None and not link.is_usable():
            link.close()
            return None
        return link

    def _connect(self, deadline: _Deadline) -> _Stream:
        """Return a stream to the server, or to a proxy that knows the way."""
        server, proxy = self._server, self._proxy
        stream: _Stream = _Socket(_connected(proxy or server, deadline))
        try:
            if proxy is not None and proxy.scheme == "https":
                stream = _Tls(stream, self._tls_context(), proxy.host, deadline)
            if server.scheme == "https":
                if proxy is not None:
                    _Link(stream).tunnel(server, proxy.authorization, deadline)
                stream = _Tls(stream, self._tls_context(), server.host, deadline)
        except BaseException:
            stream.close()
            raise
        return stream

    def _tls_context(self) -> ssl.SSLContext:
        self._tls = self._tls or verifying_context()
        return self._tls


class _AnswerTooLargeError(Exception):
    pass


class _Deadline:
    """The moment by which a request must be over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, more than zero: zero would mean "do not wait" to a socket. Raises TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


# -- addresses ---------------------------------------------------------------------------------------------


class _Server(NamedTuple):
    """Who is at the other end of a connection, as an address says it."""

    scheme: str
    host: str
    port: int | None
    path: str
    authorization: _Headers
    """For a proxy: user name and password."""

    @classmethod
    def of(cls, url: str) -> _Server:
        """Read *url*. Raises OSError for one that cannot be used, without a word of it: it may hold a password."""
        try:
            parts = urlsplit(url)
            if parts.scheme not in _PORTS or not parts.hostname:
                raise OSError("an address begins with http:// or https://")
            path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
            return cls(parts.scheme, _ascii(parts.hostname), parts.port, path, _proxy_authorization(parts))
        except ValueError:
            raise OSError("an address that cannot be read") from None

    @property
    def host_header(self) -> str:
        return self._bracketed if self.port is None else f"{self._bracketed}:{self.port}"

    @property
    def authority(self) -> str:
        """Host and port, as a tunnel is asked for."""
        return f"{self._bracketed}:{self.port or _PORTS[self.scheme]}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    # Not Python's own: it knows the rules of 2003, by which faß.example is fass.example, and somebody else's.
    import idna

    return idna.encode(host).decode()


def _proxy_authorization(parts: SplitResult) -> _Headers:
    if parts.username is None:
        return []
    pair = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
    return [("Proxy-Authorization", "Basic " + base64.b64encode(pair).decode())]


def _connected(server: _Server, deadline: _Deadline) -> socket.socket:
    # One by one, and with a share of the time for each, because a dead first address would leave none for the others.
    port = server.port or _PORTS[server.scheme]
    addresses = socket.getaddrinfo(server.host, port, type=socket.SOCK_STREAM)
    while True:
        family, kind, protocol, _, address = addresses.pop(0)
        share = deadline.left() / (len(addresses) + 1)
        try:
            # The first line fails for IPv6 where a system has none, and names have such addresses there, too.
            sock = socket.socket(family, kind, protocol)
            return _reaching(sock, address, share)
        except OSError:
            if not addresses:
                raise


def _reaching(sock: socket.socket, address: Any, seconds: float) -> socket.socket:
    try:
        sock.settimeout(seconds)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


# -- bytes -------------------------------------------------------------------------------------------------


class _Stream(Protocol):
    """Bytes there and back, until a deadline; raises TimeoutError or another OSError."""

    def send(self, data: bytes, deadline: _Deadline) -> None: ...

    def receive(self, deadline: _Deadline) -> bytes:
        """Return what has come; nothing if nothing will come any more."""

    def is_readable(self) -> bool:
        """Whether something has come, or the end."""

    def close(self) -> None: ...


class _Socket:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes, deadline: _Deadline) -> None:
        left = memoryview(data)
        while left:
            self._sock.settimeout(deadline.left())
            left = left[self._sock.send(left, _NO_SIGNAL) :]

    def receive(self, deadline: _Deadline) -> bytes:
        self._sock.settimeout(deadline.left())
        return self._sock.recv(_READ_BYTES)

    def is_readable(self) -> bool:
        try:
            self._sock.settimeout(0)
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:  # an end, too
            return True
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):  # somebody has closed all files, as daemons do
            self._sock.close()


class _Tls:
    """TLS over another stream: one that may itself be TLS, to a proxy."""

    def __init__(self, below: _Stream, context: ssl.SSLContext, host: str, deadline: _Deadline) -> None:
        import ssl

        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._wants_more = ssl.SSLWantReadError
        self._do(self._tls.do_handshake, deadline)

    def send(self, data: bytes, deadline: _Deadline) -> None:
        left = memoryview(data)
        while left:
            piece = left[:_WRITE_BYTES]
            left = left[self._do(lambda: self._tls.write(piece), deadline) :]  # noqa: B023 - called at once

    def receive(self, deadline: _Deadline) -> bytes:
        # An end that the server has not sealed raises: somebody may have cut the answer.
        return self._do(lambda: self._tls.read(_READ_BYTES), deadline)

    def is_readable(self) -> bool:
        return bool(self._incoming.pending or self._tls.pending()) or self._below.is_readable()

    def close(self) -> None:
        self._below.close()

    def _do(self, step: Callable[[], _T], deadline: _Deadline) -> _T:
        """Do *step*, sending and receiving what it needs for that."""
        while True:
            try:
                done = step()
            except self._wants_more:
                self._send_outgoing(deadline)
            except OSError:
                with contextlib.suppress(OSError):  # why we hang up
                    self._send_outgoing(deadline)
                raise
            else:
                self._send_outgoing(deadline)
                return done
            if received := self._below.receive(deadline):
                self._incoming.write(received)
            else:
                self._incoming.write_eof()

    def _send_outgoing(self, deadline: _Deadline) -> None:
        if self._outgoing.pending:
            self._below.send(self._outgoing.read(), deadline)


# -- HTTP --------------------------------------------------------------------------------------------------


class _Link:
    """A stream, and what HTTP/1.1 has to say about it."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._idle_since = 0.0
        self.is_reusable = False

    def is_usable(self) -> bool:
        """Whether the server has likely not closed it in the meantime."""
        is_fresh = time.monotonic() - self._idle_since < _IDLE_SECONDS
        return is_fresh and not self._stream.is_readable()

    def exchange(self, request: h11.Request, body: bytes, deadline: _Deadline) -> Response:
        """Send *request* with *body*, and return the answer."""
        self.is_reusable = False
        http = self._http
        parts = http.send(request), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage())
        is_sent = True
        try:
            self._stream.send(b"".join(parts), deadline)
        except TimeoutError:
            raise
        except OSError:  # a server that refuses a body need not have read it; it may have said why
            is_sent = False
        head = self._head(deadline)
        answer = Response(
            status=head.status_code,
            body=self._body(deadline),
            retry_after=next(
                (value.decode("latin-1") for name, value in head.headers if name == b"retry-after"), None
            ),
            received_at=time.time(),
        )
        is_done = http.our_state is h11.DONE and http.their_state is h11.DONE
        if is_sent and is_done and http.trailing_data == (b"", False):
            http.start_next_cycle()
            self._idle_since = time.monotonic()
            self.is_reusable = True
        return answer

    def tunnel(self, server: _Server, headers: _Headers, deadline: _Deadline) -> None:
        """Ask a proxy for the way to *server*. Raises OSError if it does not show it."""
        headers = [("Host", server.authority), *headers]
        request = h11.Request(method="CONNECT", target=server.authority, headers=headers)
        self._stream.send(self._http.send(request), deadline)
        try:
            status = self._head(deadline).status_code
        except h11.RemoteProtocolError:  # quotes what came, and that may quote the password
            raise OSError("the proxy gave no answer in HTTP") from None
        if not 200 <= status < 300:
            raise OSError(f"the proxy answered {status}")

    def close(self) -> None:
        self._stream.close()

    def _head(self, deadline: _Deadline) -> h11.Response:
        while True:
            event = self._next_event(deadline)
            if isinstance(event, h11.Response):
                return event

    def _body(self, deadline: _Deadline) -> bytes:
        # Content-Encoding is never undone: we ask for none, and a bomb stays as small as it was sent.
        body = bytearray()
        while isinstance(event := self._next_event(deadline), h11.Data):
            body += event.data
            if len(body) > _ANSWER_BYTES:
                raise _AnswerTooLargeError
        return bytes(body)

    def _next_event(self, deadline: _Deadline) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(self._stream.receive(deadline))
            elif not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("no HTTP from here on")
            else:
                deadline.left()  # interim answers without end are no answer either
                return event

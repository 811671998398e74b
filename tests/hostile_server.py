"""A TCP server that answers as badly as a test asks it to. Real sockets, one thread for each connection.

A *behaviour* is a function that is given a `Peer`, one accepted connection, and does with it what it likes; when it
returns, or the peer goes away, the connection is closed. Below are the behaviours of servers that have made tracing
libraries hang, leak or lie. Nothing here outlives the `with` block of the server.
"""

from __future__ import annotations

import contextlib
import gzip
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

DRIP_SECONDS = 0.05
BOMB = gzip.compress(b" " * 100_000_000)  # 100 MB in 100 KB


class Received(NamedTuple):
    """A request as it came in. Header names in lower case; *raw*: the bytes of the head."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


class Peer:
    """One connection, as the server sees it."""

    def __init__(self, sock: socket.socket, server: HostileServer) -> None:
        self.sock = sock
        self.server = server
        self._buffer = b""

    def receive(self) -> Received | None:
        """Read a whole request and note it; None if the peer has gone."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._read_more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            if not self._read_more():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        received = Received(method, target, headers, body, head)
        self.server.requests.append(received)
        return received

    def _read_more(self) -> bool:
        chunk = self.sock.recv(65_536)
        self._buffer += chunk
        return bool(chunk)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def drip(self, data: bytes) -> None:
        """Send *data* byte by byte, for as long as the server lives."""
        for start in range(len(data)):
            self.send(data[start : start + 1])
            if self.server.stopping.wait(DRIP_SECONDS):
                return

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Behaviour: TypeAlias = Callable[[Peer], None]


class HostileServer:
    """Listens on a free port of the loopback device and lets *behaviour* deal with each connection.

    Attributes:
        requests: Every whole request that came in, in order.
        connections: How many connections were accepted.
        stopping: Set when the server is to end.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        host: str = "127.0.0.1",
        receive_buffer: int | None = None,
        port: int = 0,
    ) -> None:
        self._behaviour = behaviour
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if (
            receive_buffer is not None
        ):  # inherited by what is accepted; set later, it would not shrink the window
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind((host, port))
        self._listener.listen()
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[Received] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._peers: list[tuple[socket.socket, threading.Thread]] = []
        self._accepting = threading.Thread(target=self._accept, name=f"hostile-{self.port}")

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def __enter__(self) -> HostileServer:
        self._accepting.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        _hang_up(self._listener)  # wakes `accept` on Linux ...
        try:  # ... and a last connection wakes it elsewhere
            socket.create_connection((self.host, self.port), 0.1).close()
        except OSError:
            pass
        self._accepting.join()
        self._listener.close()
        for sock, thread in self._peers:
            _hang_up(sock)
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.stopping.is_set():
                sock.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), name=f"hostile-{self.port}-peer")
            self._peers.append((sock, thread))
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._behaviour(Peer(sock, self))
            except OSError:  # the client has gone, or the server is stopping
                pass


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def refused_port() -> int:
    """Return a port of the loopback device that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# -- behaviours --------------------------------------------------------------------------------------------


def response(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """Write down an HTTP response."""
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answering(answer: Callable[[Received], bytes]) -> Behaviour:
    """An honest HTTP server: every request of a connection is answered by *answer*."""

    def behave(peer: Peer) -> None:
        while (request := peer.receive()) is not None:
            peer.send(answer(request))

    return behave


def always(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Behaviour:
    """Answer every request with the same."""
    return answering(lambda _request: response(status, body, headers))


def redirecting_to(url: str) -> Behaviour:
    """Send every client elsewhere."""
    return always(307, headers={"Location": url})


def closing_after_each(answer: Callable[[Received], bytes]) -> Behaviour:
    """Answer one request as if the connection would be kept, and close it."""

    def behave(peer: Peer) -> None:
        if (request := peer.receive()) is not None:
            peer.send(answer(request))

    return behave


def closing_at_once(peer: Peer) -> None:
    """Accept, and go."""
    del peer


def never_answering(peer: Peer) -> None:
    """Take the request, and keep silent."""
    peer.receive()
    peer.server.stopping.wait()


def never_reading(peer: Peer) -> None:
    """Accept, and neither read nor answer."""
    peer.server.stopping.wait()


def reading_slowly(peer: Peer) -> None:
    """Read a little now and then: every single write of the client makes progress, and the request lasts."""
    while not peer.server.stopping.wait(DRIP_SECONDS / 5):
        if not peer.sock.recv(262_144):
            return


def dripping_headers(peer: Peer) -> None:
    """Answer one byte at a time, and never come to the body."""
    peer.receive()
    peer.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"a" * 10_000)


def dripping_body(peer: Peer) -> None:
    """Answer quickly, and let the body come one byte at a time."""
    peer.receive()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    peer.drip(b" " * 10_000)


def half_then_reset(peer: Peer) -> None:
    """Send half of an answer and reset the connection."""
    peer.receive()
    peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"status":')
    peer.reset()


def half_then_close(peer: Peer) -> None:
    """Send half of an answer and close the connection properly."""
    peer.receive()
    peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"status":')


def endless_body(peer: Peer) -> None:
    """Answer without end."""
    peer.receive()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    while not peer.server.stopping.is_set():
        peer.send(chunk)


def endless_headers(peer: Peer) -> None:
    """Send header lines without end."""
    peer.receive()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while not peer.server.stopping.is_set():
        peer.send(b"X-More: " + b"a" * 1_000 + b"\r\n")


def endless_interim(peer: Peer) -> None:
    """Promise an answer without end."""
    peer.receive()
    while not peer.server.stopping.is_set():
        peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")


def speaking_no_http(peer: Peer) -> None:
    """Be another kind of server."""
    peer.send(b"220 smtp.example ESMTP\r\n")
    peer.receive()


def gzip_bomb(peer: Peer) -> None:
    """Answer with little that claims to be much."""
    while peer.receive() is not None:
        peer.send(response(200, BOMB, {"Content-Encoding": "gzip", "Content-Type": "application/json"}))


def refusing_early(peer: Peer) -> None:
    """Answer 413 when the head is read, and read the rest only to throw it away."""
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        buffer += peer.sock.recv(65_536)
    peer.send(response(413, headers={"Connection": "close"}))
    peer.sock.shutdown(socket.SHUT_WR)
    while peer.sock.recv(65_536):
        pass


def answering_twice(peer: Peer) -> None:
    """Answer each request, and one more that nobody has sent."""
    while peer.receive() is not None:
        peer.send(response(200, b'{"asked":true}') + response(200, b'{"asked":false}'))


def hanging_up_on_the_second(peer: Peer) -> None:
    """Answer the first request of each connection, and hang up on the next one when it is there."""
    if peer.receive() is not None:
        peer.send(response(200))
        peer.receive()


def tunnelling(peer: Peer) -> None:
    """Be an honest proxy: open the tunnel that is asked for, and carry bytes."""
    request = peer.receive()
    if request is None:
        return
    host, _, port = request.target.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as there:
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        while True:
            # What TLS has read already is not seen by `select`.
            has_pending = isinstance(peer.sock, ssl.SSLSocket) and peer.sock.pending()
            ready = [peer.sock] if has_pending else select.select([peer.sock, there], [], [])[0]
            for source, sink in ((peer.sock, there), (there, peer.sock)):
                if source in ready:
                    data = source.recv(65_536)
                    if not data:
                        return
                    sink.sendall(data)


def over_tls(certificate, behaviour):
    """Let *behaviour* speak through TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def behave(peer):
        with context.wrap_socket(peer.sock, server_side=True) as peer.sock:
            behaviour(peer)

    return behave


def over_tls_at_once(certificate, *records, close_notify=False):
    """Answer each request over TLS with *records*, all in one piece of TCP; with *close_notify*, only the first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def behave(peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)

        def do(step, *arguments):
            while True:
                try:
                    return step(*arguments)
                except ssl.SSLWantReadError:
                    peer.send(outgoing.read())
                    chunk = peer.sock.recv(65_536)
                    if not chunk:
                        raise OSError("the client has gone") from None
                    incoming.write(chunk)

        do(tls.do_handshake)
        while do(tls.read, 65_536):
            for record in records:
                tls.write(record)
            if close_notify:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.unwrap()
            peer.send(outgoing.read())

    return behave

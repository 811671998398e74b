"""The hostile server does what its behaviours say, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from hostile_server import (
    BOMB,
    HostileServer,
    always,
    answering,
    closing_after_each,
    closing_at_once,
    dripping_body,
    dripping_headers,
    endless_body,
    endless_headers,
    endless_interim,
    gzip_bomb,
    half_then_close,
    half_then_reset,
    never_answering,
    never_reading,
    reading_slowly,
    redirecting_to,
    refused_port,
    refusing_early,
    response,
    speaking_no_http,
)

REQUEST = b"POST /path HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nbody"


def dial(server, request=REQUEST):
    sock = socket.create_connection((server.host, server.port), 5)
    sock.sendall(request)
    return sock


def read_until(sock, enough):
    data = b""
    while not enough(data):
        chunk = sock.recv(65_536)
        if not chunk:
            break
        data += chunk
    return data


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_notes_what_it_receives(host):
    """A test can look at every request: method, target, headers, body, raw head; and count the connections."""
    with HostileServer(always(200, b"{}"), host=host) as server:
        with dial(server) as sock:
            sock.sendall(REQUEST)
            assert read_until(sock, lambda data: data.count(b"{}") == 2) == response(200, b"{}") * 2
        first, second = server.requests
        assert server.connections == 1
    assert first == second
    assert first[:4] == ("POST", "/path", {"host": "here", "content-length": "4"}, b"body")
    assert first.raw.startswith(b"POST /path HTTP/1.1\r\n")


def test_writes_responses():
    """`response` writes a whole HTTP response with the right length."""
    assert (
        response(307, b"ab", {"Location": "x"})
        == b"HTTP/1.1 307 Words\r\nContent-Length: 2\r\nLocation: x\r\n\r\nab"
    )


@pytest.mark.parametrize(
    ("behaviour", "beginning", "ending"),
    [
        (closing_after_each(lambda request: response(200, request.body)), b"HTTP/1.1 200", b"body"),
        (answering(lambda request: response(201, request.body)), b"HTTP/1.1 201", b"body"),
        (redirecting_to("http://else.where/"), b"HTTP/1.1 307", b"Location: http://else.where/\r\n\r\n"),
        (half_then_close, b"HTTP/1.1 200", b'{"status":'),
        (gzip_bomb, b"HTTP/1.1 200", BOMB[-100:]),
        (speaking_no_http, b"220 smtp", b"ESMTP\r\n"),
        (refusing_early, b"HTTP/1.1 413", b"close\r\n\r\n"),
    ],
)
def test_answers_that_end(behaviour, beginning, ending):
    """Behaviours that answer send what they promise; those that close do close."""
    with HostileServer(behaviour) as server, dial(server) as sock:
        data = read_until(sock, lambda data: data.endswith(ending))
    assert data.startswith(beginning)
    assert data.endswith(ending)


def test_closes_at_once():
    """Whoever has said nothing yet sees a proper end."""
    with HostileServer(closing_at_once) as server, dial(server, b"") as sock:
        assert sock.recv(1) == b""


@pytest.mark.parametrize("behaviour", [endless_body, endless_headers, endless_interim])
def test_answers_without_end(behaviour):
    """Endless behaviours send as long as somebody reads."""
    with HostileServer(behaviour) as server, dial(server) as sock:
        assert len(read_until(sock, lambda data: len(data) > 3_000_000)) > 3_000_000


@pytest.mark.parametrize("behaviour", [dripping_headers, dripping_body])
def test_drips(behaviour):
    """Dripping behaviours keep the client busy with single bytes."""
    with HostileServer(behaviour) as server, dial(server) as sock:
        began = time.monotonic()
        head = read_until(sock, lambda data: b"\r\n\r\n" in data or data.endswith(b"HTTP"))
        more = [sock.recv(65_536) for _ in range(5)]
        assert time.monotonic() - began > 0.1
    assert head.startswith(b"HTTP")
    assert len(b"".join(more)) < 10


@pytest.mark.parametrize("behaviour", [never_answering, never_reading, reading_slowly])
def test_stays_silent(behaviour):
    """Silent behaviours keep the connection open and say nothing."""
    with HostileServer(behaviour) as server, dial(server) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_resets():
    """A reset is a reset, after half of an answer."""
    with HostileServer(half_then_reset) as server, dial(server) as sock, pytest.raises(ConnectionResetError):
        read_until(sock, lambda _data: False)


def test_nobody_listens_on_a_refused_port():
    """A refused port refuses."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", refused_port()), 5)


def test_leaves_nothing_behind():
    """After the block no thread runs and nobody listens, even if clients are still connected and waiting."""
    before = threading.active_count()
    with HostileServer(never_answering) as server:
        clients = [dial(server) for _ in range(5)]
    assert threading.active_count() == before
    for client in clients:
        with client, contextlib.suppress(ConnectionResetError):  # one that had not been accepted yet is reset
            assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), 5)

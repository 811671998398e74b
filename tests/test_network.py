"""The connection: whatever a server does, a request ends in time, in bounded memory, and without an exception."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
from hostile_server import (
    BOMB,
    DRIP_SECONDS,
    HostileServer,
    always,
    answering,
    answering_twice,
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
    hanging_up_on_the_second,
    never_answering,
    never_reading,
    over_tls,
    over_tls_at_once,
    reading_slowly,
    redirecting_to,
    refused_port,
    refusing_early,
    response,
    speaking_no_http,
    tunnelling,
)
from patience import within

from prefactor_trace._network import Connection
from prefactor_trace._wire import Response, Unreachable

TOKEN = "token-that-nobody-else-may-see"
TIMEOUT = 0.3
# A fifth over the deadline is what a request may take; the rest is for a busy machine's threads to wake up.
AT_MOST = TIMEOUT * 1.2 + 0.25
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "identity"}
BIG = b"x" * 32_000_000  # more than the buffers of both sides


@contextlib.contextmanager
def connected(url, *, timeout=TIMEOUT, proxy=None, headers=HEADERS):
    connection = Connection(url, headers, timeout=timeout, proxy=proxy)
    try:
        yield connection
    finally:
        connection.close()


def https(server):
    return server.url.replace("http", "https")


def timed_post(connection, body=b"{}"):
    began = time.monotonic()
    answer = connection.post("agent_spans", body)
    return answer, time.monotonic() - began


# -- what is sent ------------------------------------------------------------------------------------------


def test_sends_one_post():
    """A request is a POST below `/api/v1/` with our headers, the host, and the length of the body."""
    with HostileServer(always(200, b'{"a":1}')) as server, connected(server.url) as connection:
        answer = connection.post("agent_instance/register", b'{"b":2}')
    (request,) = server.requests
    assert request.method == "POST"
    assert request.target == "/api/v1/agent_instance/register"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": f"Bearer {TOKEN}",
        "accept-encoding": "identity",
        "content-length": "7",
    }
    assert request.body == b'{"b":2}'
    assert answer[:3] == (200, b'{"a":1}', None)
    assert abs(answer.received_at - time.time()) < 5


@pytest.mark.parametrize("prefix", ["/tenant/a", "/tenant/a/"])
def test_address_with_a_path(prefix):
    """An API below a path of its host is reached there."""
    with HostileServer(always(200)) as server, connected(server.url + prefix) as connection:
        connection.post("bulk", b"{}")
    assert server.requests[0].target == "/tenant/a/api/v1/bulk"


def test_ipv6():
    """An IPv6 address works, and the Host header writes it in brackets."""
    with HostileServer(always(200), host="::1") as server, connected(server.url) as connection:
        assert connection.post("bulk", b"{}").status == 200
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_ipv6_without_a_port():
    """An IPv6 address without a port is in brackets too, else its end would be read as the port."""
    with HostileServer(always(200)) as proxy, connected("http://[::1]", proxy=proxy.url) as connection:
        connection.post("bulk", b"{}")
    assert proxy.requests[0].headers["host"] == "[::1]"


def test_keeps_the_connection():
    """Many requests go over one TCP connection."""
    with HostileServer(always(200)) as server, connected(server.url) as connection:
        assert [connection.post("bulk", b"{}").status for _ in range(20)] == [200] * 20
        assert server.connections == 1


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ({}, None),
        ({"Retry-After": "7"}, "7"),
        ({"rEtRy-AfTeR": "Fri, 31 Dec 1999 23:59:59 GMT"}, "Fri, 31 Dec 1999 23:59:59 GMT"),
        ({"Retry-After": "\xe9"}, "\xe9"),
    ],
)
def test_hands_over_retry_after(headers, seen):
    """`Retry-After` is handed over as it came, however it is spelled."""
    with HostileServer(always(503, b"", headers)) as server, connected(server.url) as connection:
        assert connection.post("bulk", b"{}")[:3] == (503, b"", seen)


# -- deadlines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [never_answering, dripping_headers, dripping_body, endless_interim])
def test_answers_that_never_end_are_given_up_in_time(behaviour):
    """One deadline bounds the whole request: a byte now and then does not extend it."""
    with HostileServer(behaviour) as server, connected(server.url) as connection:
        answer, took = timed_post(connection)
    assert answer == Unreachable("no whole answer within 0.3 s", is_silent=True)
    assert TIMEOUT * 0.9 < took < within(AT_MOST)


@pytest.mark.parametrize("behaviour", [never_reading, reading_slowly])
@pytest.mark.parametrize("receive_buffer", [None, 65_536, 4_096])
def test_a_body_that_is_not_taken_is_given_up_in_time(behaviour, receive_buffer):
    """Sending is bounded by the same deadline, even if every single write makes progress."""
    with (
        HostileServer(behaviour, receive_buffer=receive_buffer) as server,
        connected(server.url) as connection,
    ):
        answer, took = timed_post(connection, BIG)
    assert answer == Unreachable("no whole answer within 0.3 s", is_silent=True)
    assert TIMEOUT * 0.9 < took < within(AT_MOST)


def test_each_request_has_its_own_deadline():
    """Time that an earlier request took is not taken from the next one."""

    def slow(_request):
        server.stopping.wait(0.3)
        return response(200)

    with HostileServer(answering(slow)) as server, connected(server.url, timeout=0.8) as connection:
        assert [connection.post("bulk", b"{}").status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(("names", "status"), [(["dead", "living"], 200), (["dead"] * 3, None)])
def test_a_dead_address_does_not_hide_a_living_one(monkeypatch, names, status):
    """A name with several addresses: each gets its share of the time, and all together no more than the deadline."""
    real = socket.getaddrinfo
    with HostileServer(always(200)) as server, black_hole(server.port) as hole:
        address = {"dead": hole, "living": server.host}
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address[each], server.port)) for each in names]

        def resolve(host, *more, **options):  # what a resolver says; the connections are real
            return found if host == "platform.test" else real(host, *more, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with connected(f"http://platform.test:{server.port}", timeout=0.6) as connection:
            answer, took = timed_post(connection)
    assert (answer.status if isinstance(answer, Response) else None) == status
    assert took < within(0.6 * 1.2 + 0.25)


def test_an_address_of_a_family_that_is_missing_does_not_hide_the_others(monkeypatch):
    """Names have IPv6 addresses even for a system that has no IPv6: the next address is tried."""
    with HostileServer(always(200)) as server:
        found = [
            (family, socket.SOCK_STREAM, 0, "", (server.host, server.port))
            for family in (12_345, socket.AF_INET)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with connected(f"http://platform.test:{server.port}") as connection:
            assert connection.post("bulk", b"{}").status == 200


@contextlib.contextmanager
def black_hole(port):
    """Yield an address where connecting neither succeeds nor fails: its queue is full and nobody accepts."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        try:
            listener.bind(("127.0.0.2", port))
        except OSError:
            pytest.skip("this system has one loopback address only")
        listener.listen(0)
        for _ in range(10):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(("127.0.0.2", port))
            except TimeoutError:
                break
        else:
            pytest.skip("this system takes connections that nobody accepts")
        yield "127.0.0.2"


# -- answers that are none ---------------------------------------------------------------------------------


def test_refused():
    """Nobody listens: the answer says so, in the operating system's words."""
    with connected(f"http://127.0.0.1:{refused_port()}") as connection:
        answer, took = timed_post(connection)
    assert isinstance(answer, Unreachable)
    assert "refused" in answer.why
    assert took < within(AT_MOST)


def test_unknown_host():
    """A name without an address is no exception."""
    with connected("http://no-such-host.invalid") as connection:
        answer = connection.post("bulk", b"{}")
    assert isinstance(answer, Unreachable)
    assert " " in answer.why  # the resolver's words, and not the name of a class


@pytest.mark.parametrize(
    "behaviour", [closing_at_once, half_then_reset, half_then_close, speaking_no_http, endless_headers]
)
def test_broken_answers_are_no_answers(behaviour):
    """Half an answer, none, or something that is not HTTP: reported at once, never raised, never taken for a success."""
    with HostileServer(behaviour) as server, connected(server.url, timeout=5) as connection:
        for _ in range(3):
            answer, took = timed_post(connection)
            assert isinstance(answer, Unreachable)
            assert took < within(2)
    assert server.connections == 3  # what is broken is not used again


@pytest.mark.parametrize(
    "behaviour", [half_then_close, half_then_reset, closing_at_once], ids=lambda each: each.__name__
)
def test_a_connection_that_breaks_off_says_so(behaviour):
    """Whoever hangs up after the request was sent may have failed over it."""
    with HostileServer(behaviour) as server, connected(server.url) as connection:
        answer = connection.post("bulk", b"{}")
    assert isinstance(answer, Unreachable)
    assert answer.broke_off


def test_being_slow_or_away_is_not_breaking_off(monkeypatch):
    """A time-out, a port that nobody listens on, and an answer without end are no failure over the request."""
    for behaviour in (never_answering, endless_body):
        with HostileServer(behaviour) as server, connected(server.url) as connection:
            answer = connection.post("bulk", b"{}")
        assert isinstance(answer, Unreachable)
        assert not answer.broke_off
    with connected(f"http://127.0.0.1:{refused_port()}") as connection:
        assert not connection.post("bulk", b"{}").broke_off


def test_an_endless_answer_is_cut_off():
    """A body over 1 MiB is no answer, and never held in memory."""
    with HostileServer(endless_body) as server, connected(server.url, timeout=5) as connection:
        connection.post("bulk", b"{}")  # what is loaded on first use is not counted
        tracemalloc.start()
        try:
            answer, took = timed_post(connection)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer == Unreachable("an answer over 1048576 bytes")
    assert took < within(2)
    assert peak < 8_000_000


@pytest.mark.parametrize(("length", "fits"), [(1_048_576, True), (1_048_577, False)])
def test_the_largest_answer(length, fits):
    """1 MiB is read whole; one byte more is not."""
    with HostileServer(always(200, b"a" * length)) as server, connected(server.url, timeout=5) as connection:
        answer = connection.post("bulk", b"{}")
    assert isinstance(answer, Response if fits else Unreachable)


def test_a_gzip_bomb_is_not_inflated():
    """Content-Encoding is never undone: we ask for none, and the body stays what was sent."""
    with HostileServer(gzip_bomb) as server, connected(server.url, timeout=5) as connection:
        assert connection.post("bulk", b"{}").body == BOMB


def test_an_early_refusal_is_heard():
    """A server that refuses a big body before it has read it is heard, not taken for a broken connection."""
    with HostileServer(refusing_early) as server, connected(server.url, timeout=5) as connection:
        assert connection.post("bulk", BIG).status == 413


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"a":1}',
        b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"a":1}',
        b'HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}',
    ],
    ids=["chunked", "1.0", "until closed", "behind an interim one"],
)
def test_all_shapes_of_an_answer(answer):
    """HTTP has several ways to say where an answer begins and ends."""
    with (
        HostileServer(closing_after_each(lambda _request: answer)) as server,
        connected(server.url) as connection,
    ):
        assert connection.post("bulk", b"{}")[:2] == (200, b'{"a":1}')


def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one():
    """What comes behind an answer ends the connection: it would be believed to be about the next request."""
    with HostileServer(answering_twice) as server, connected(server.url) as connection:
        assert [connection.post("bulk", b"{}").body for _ in range(3)] == [b'{"asked":true}'] * 3


def test_the_end_of_an_upgrade_is_no_answer():
    """A server that wants to go on in another protocol is not followed."""
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    with HostileServer(answering(lambda _request: upgrade)) as server, connected(server.url) as connection:
        answer, took = timed_post(connection)
    assert isinstance(answer, Unreachable)
    assert took < within(AT_MOST)


# -- connections that end ----------------------------------------------------------------------------------


def test_a_connection_closed_while_idle_is_replaced():
    """A server that closes after each answer, without saying so, costs a new connection, and no answer."""
    with HostileServer(closing_after_each(lambda _request: response(200))) as server:
        with connected(server.url) as connection:
            assert [connection.post("bulk", b"{}").status for _ in range(20)] == [200] * 20
        assert server.connections == 20


def test_a_request_on_its_way_to_a_connection_that_closes_is_sent_again():
    """Who hangs up on a kept connection may have meant to before: the request gets a second one, and no blame."""
    with HostileServer(hanging_up_on_the_second) as server:
        with connected(server.url) as connection:
            answers = [connection.post("bulk", b"{}") for _ in range(3)]
        assert [(each.status, each.is_second) for each in answers] == [(200, False), (200, True), (200, True)]
        assert (server.connections, len(server.requests)) == (3, 5)


def test_a_request_that_breaks_two_connections_is_to_blame():
    """Over a new connection, hanging up is an answer: the request is not sent a third time."""

    def behave(peer):
        while (request := peer.receive()) is not None and request.body == b"{}":
            peer.send(response(200))

    with HostileServer(behave) as server, connected(server.url) as connection:
        connection.post("bulk", b"{}")
        answer = connection.post("bulk", b"poison")
        assert (answer.broke_off, answer.is_second) == (True, True)
        assert [request.body for request in server.requests] == [b"{}", b"poison", b"poison"]


def test_a_connection_that_somebody_else_has_closed_is_replaced(monkeypatch):
    """A program that closes all files, to become a daemon, costs a new connection."""
    made = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda sock, to: (made.append(sock), connect(sock, to)))
    with HostileServer(always(200)) as server, connected(server.url) as connection:
        connection.post("bulk", b"{}")
        os.close(made[0].fileno())
        assert connection.post("bulk", b"{}").status == 200
        os.close(made[1].fileno())


@pytest.mark.skipif(not hasattr(socket, "MSG_NOSIGNAL"), reason="this system cannot send without the signal")
def test_a_server_that_goes_away_does_not_end_the_program():
    """A program that has SIGPIPE end it, as command line tools do, outlives a server that does not read."""
    program = (
        "import signal, sys; from prefactor_trace._network import Connection; "
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL); "
        "connection = Connection(sys.argv[1], {}, timeout=5, proxy=None); "
        "print(type(connection.post('bulk', b'x' * 32_000_000)).__name__)"
    )

    def behave(peer):
        peer.sock.recv(1)
        peer.sock.shutdown(socket.SHUT_WR)  # sending to who has said goodbye is what the signal is for
        peer.reset()

    with HostileServer(behave) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.url], capture_output=True, check=True, text=True
        )
    assert done.stdout == "Unreachable\n"


def test_a_connection_seen_closed_is_not_used():
    """Once the end of an idle connection has arrived, the next request goes over a new one and succeeds."""
    closed = threading.Event()

    def behave(peer):
        if peer.receive() is not None:
            peer.send(response(200))
            peer.sock.shutdown(socket.SHUT_WR)
            closed.set()
            peer.receive()

    with HostileServer(behave) as server, connected(server.url) as connection:
        for _ in range(5):
            closed.clear()
            assert connection.post("bulk", b"{}").status == 200
            assert closed.wait(5)


def test_a_server_may_come_back():
    """The same connection object serves before, during and after an outage."""
    with HostileServer(always(200)) as server:
        port = server.port
        with connected(server.url) as connection:
            assert connection.post("bulk", b"{}").status == 200
            server.__exit__()
            assert isinstance(connection.post("bulk", b"{}"), Unreachable)
            with HostileServer(always(201), port=port):
                assert connection.post("bulk", b"{}").status == 201


# -- redirects, proxies, TLS -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_never_followed(status):
    """A redirect is an answer like any other: where it points to is never contacted and never sees the token."""
    with HostileServer(always(200)) as elsewhere:
        location = {"Location": elsewhere.url + "/api/v1/bulk"}
        with HostileServer(always(status, b"", location)) as server, connected(server.url) as connection:
            assert connection.post("bulk", b"{}").status == status
        assert elsewhere.connections == 0


def test_redirecting_behaviour_is_not_followed():
    """Nor is one with everything a polite server adds."""
    with (
        HostileServer(always(200)) as elsewhere,
        HostileServer(redirecting_to(elsewhere.url)) as server,
        connected(server.url) as connection,
    ):
        assert connection.post("bulk", b"{}").status == 307
        assert elsewhere.connections == 0


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_is_used(scheme):
    """A proxy that is named gets the whole address; the server itself is not contacted. The scheme may be missing."""
    with HostileServer(always(200)) as server, HostileServer(always(202)) as proxy:
        address = scheme + f"127.0.0.1:{proxy.port}"
        with connected(server.url, proxy=address) as connection:
            assert connection.post("bulk", b"{}").status == 202
        assert server.connections == 0
    (request,) = proxy.requests
    assert request.target == f"{server.url}/api/v1/bulk"
    assert "proxy-authorization" not in request.headers


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [("ada:pass%40word", b"ada:pass@word"), ("ada", b"ada:"), ("%C3%A9:x", b"\xc3\xa9:x")],
)
def test_a_proxy_gets_its_password(userinfo, credentials):
    """User name and password in the proxy's address are sent to the proxy as Basic authorization."""
    with HostileServer(always(200)) as proxy:
        address = f"http://{userinfo}@127.0.0.1:{proxy.port}"
        with connected("http://platform.test", proxy=address) as connection:
            assert connection.post("bulk", b"{}").status == 200
    expected = "Basic " + base64.b64encode(credentials).decode()
    assert proxy.requests[0].headers["proxy-authorization"] == expected


def test_an_https_request_is_tunnelled_through_a_proxy():
    """A proxy between us and an https address is asked for a tunnel, and never sees the token."""
    with (
        HostileServer(always(407)) as proxy,
        connected("https://platform.test", proxy=proxy.url) as connection,
    ):
        assert isinstance(connection.post("bulk", b"{}"), Unreachable)
    (request,) = proxy.requests
    assert (request.method, request.target) == ("CONNECT", "platform.test:443")
    assert TOKEN not in request.raw.decode()


@pytest.mark.parametrize("is_proxy_tls", [False, True])
def test_a_tunnel_carries_many_requests(certificate, monkeypatch, is_proxy_tls):
    """Through a proxy, spoken to with or without TLS, an https address is reached in one tunnel."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    way = over_tls(certificate, tunnelling) if is_proxy_tls else tunnelling
    with (
        HostileServer(over_tls(certificate, always(200, BIG[:100_000]))) as server,
        HostileServer(way) as proxy,
    ):
        url, proxy_url = server.url.replace("http", "https"), proxy.url
        if is_proxy_tls:
            proxy_url = proxy_url.replace("http", "https")
        with connected(url, proxy=proxy_url, timeout=5) as connection:
            answers = [connection.post("bulk", BIG[:300_000]) for _ in range(3)]
        assert [answer[:2] for answer in answers] == [(200, BIG[:100_000])] * 3
        assert [len(request.body) for request in server.requests] == [300_000] * 3
        assert (server.connections, proxy.connections) == (1, 1)
    assert [request.method for request in proxy.requests] == ["CONNECT"]


def test_a_proxy_over_tls_is_used(certificate, monkeypatch):
    """A proxy whose address is https gets a request for an http address through TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with HostileServer(over_tls(certificate, always(202))) as proxy:
        address = proxy.url.replace("http", "https")
        with connected("http://platform.test", proxy=address, timeout=5) as connection:
            assert connection.post("bulk", b"{}").status == 202
    assert proxy.requests[0].target == "http://platform.test/api/v1/bulk"


@pytest.mark.parametrize(
    "proxy",
    [
        "gopher://127.0.0.1:1",
        "socks5://127.0.0.1:1",
        "http://",
        "http://[bad",
        "http://ada:secret@h:no",
        "http://ada\u2100:secret@h",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unusable_proxy_is_no_exception(scheme, proxy):
    """Nonsense as a proxy is reported like an unreachable one, without a word of it."""
    with connected(f"{scheme}://platform.test", proxy=proxy) as connection:
        answer = connection.post("bulk", b"{}")
    assert isinstance(answer, Unreachable)
    assert "an address" in answer.why
    assert "secret" not in answer.why


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\u00ad"])
def test_an_unusable_address_is_no_exception(host):
    """A host that cannot be a name is reported like an unreachable one."""
    with connected(f"http://{host}") as connection:
        assert isinstance(connection.post("bulk", b"{}"), Unreachable)


def test_a_name_in_other_letters():
    """A host is found by the rules that browsers and httpx know; by older ones, this would be `fass.example`."""
    with HostileServer(always(200)) as proxy:
        with connected("http://Faß.example", proxy=proxy.url) as connection:
            connection.post("bulk", b"{}")
    assert proxy.requests[0].target == "http://xn--fa-hia.example/api/v1/bulk"
    assert proxy.requests[0].headers["host"] == "xn--fa-hia.example"


def test_no_error_shows_the_password_of_a_proxy():
    """What a proxy says instead of HTTP, our own head for instance, is not repeated."""

    def echo(peer):
        peer.send(peer.receive().raw + b"\r\n\r\n")

    with HostileServer(echo) as proxy:
        address = f"http://ada:secret@127.0.0.1:{proxy.port}"
        with connected("https://platform.test", proxy=address) as connection:
            answer = connection.post("bulk", b"{}")
    assert answer == Unreachable("the proxy gave no answer in HTTP")


def test_little_is_loaded():
    """The first batch of a process loads no event loop, no HTTP client, no models."""
    program = (
        "import sys; from prefactor_trace._network import Connection; "
        "Connection('http://127.0.0.1:9', {}, timeout=1, proxy=None).post('bulk', b'');"
        "print(sorted({'httpcore', 'httpx', 'anyio', 'trio', 'asyncio', 'ssl', 'email', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_an_unknown_certificate_is_refused(certificate):
    """A certificate that nobody vouches for is no platform: nothing is sent, and the log line can say why."""
    with HostileServer(over_tls(certificate, always(200))) as server:
        with connected(https(server), timeout=5) as connection:
            answer = connection.post("bulk", b"{}")
        assert isinstance(answer, Unreachable)
        assert "certificate verify failed" in answer.why
        assert server.requests == []


def test_a_certificate_of_the_environment_is_trusted(certificate, monkeypatch):
    """`SSL_CERT_FILE` adds an authority, as company networks need; many requests share one handshake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with HostileServer(over_tls(certificate, always(200))) as server:
        with connected(https(server), timeout=5) as connection:
            assert [connection.post("bulk", b"{}").status for _ in range(3)] == [200] * 3
        assert server.connections == 1


def test_what_comes_behind_an_answer_over_tls_is_not_taken_for_the_next_one(certificate, monkeypatch):
    """It ends the connection as it does without TLS, though it is not to be seen in the socket any more."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    twice = over_tls_at_once(certificate, response(200, b'{"asked":true}'), response(200, b'{"asked":false}'))
    with HostileServer(twice) as server, connected(https(server), timeout=5) as connection:
        assert [connection.post("bulk", b"{}").body for _ in range(3)] == [b'{"asked":true}'] * 3


def test_an_end_that_comes_with_an_answer_over_tls_is_seen(certificate, monkeypatch):
    """A server that says goodbye right behind its answer gets no further request over that connection."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    once = over_tls_at_once(certificate, response(200), close_notify=True)
    with HostileServer(once) as server:
        with connected(https(server), timeout=5) as connection:
            assert [connection.post("bulk", b"{}").status for _ in range(3)] == [200] * 3
        assert server.connections == 3


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_answer_that_may_be_cut_is_none(certificate, monkeypatch, is_cut):
    """Over TLS, an answer that ends with the connection is whole only if the server says that this is the end."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    def behave(peer):
        peer.receive()
        peer.send(b'HTTP/1.1 200 OK\r\n\r\n{"a":1}')
        if not is_cut:
            peer.sock.unwrap()

    with HostileServer(over_tls(certificate, behave)) as server:
        with connected(https(server), timeout=5) as connection:
            assert isinstance(connection.post("bulk", b"{}"), Unreachable if is_cut else Response)


@pytest.mark.parametrize("behaviour", [never_answering, dripping_body, reading_slowly])
def test_deadlines_hold_over_tls(certificate, monkeypatch, behaviour):
    """TLS reads and writes end by the same deadline. There is time for the handshake, so that the request is sent."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with HostileServer(over_tls(certificate, behaviour), receive_buffer=65_536) as server:
        with connected(https(server), timeout=1.0) as connection:
            answer, took = timed_post(connection, BIG if behaviour is reading_slowly else b"{}")
    assert answer == Unreachable("no whole answer within 1 s", is_silent=True)
    assert took < within(AT_MOST) + 0.7


def test_a_handshake_that_never_ends_is_given_up_in_time():
    """A server that lets the TLS handshake starve is given up by the deadline."""

    def starve(peer):
        peer.sock.recv(65_536)
        peer.drip(b"\x16\x03\x03\x40\x00" + b"\x00" * 10_000)  # a record of 16 KiB, on its way

    with HostileServer(starve) as server, connected(https(server)) as connection:
        answer, took = timed_post(connection)
    assert isinstance(answer, Unreachable)
    assert took < within(AT_MOST + DRIP_SECONDS)


# -- secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["\n", "\r\n", "\0", "é", "\udc80", "€"])
def test_no_error_shows_the_token(character):
    """A token that HTTP cannot carry is reported without a word of it, and nothing is sent."""
    headers = {"Authorization": f"Bearer {TOKEN}{character}X-Injected: 1"}
    with HostileServer(always(200)) as server, connected(server.url, headers=headers) as connection:
        answer = connection.post("bulk", b"{}")
        assert isinstance(answer, Unreachable)
        assert TOKEN not in answer.why
        assert "Injected" not in answer.why
        assert server.requests == []

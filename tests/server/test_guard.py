"""What the server refuses, and that a refused request changes nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import tracemalloc
from urllib.parse import urlsplit

import httpx
import pytest

from prefactor_trace.server import LocalPlatform, _guard

JSON = {"Content-Type": "application/json"}
MEBIBYTE = 1024 * 1024


@pytest.fixture
def stranger(api):
    """Who knows the address and nothing else."""
    with httpx.Client(base_url=api.platform.url, trust_env=False) as client:
        yield client


@pytest.fixture
def viewer(api):
    """A browser that has opened the printed address."""
    with httpx.Client(base_url=api.platform.url, trust_env=False, follow_redirects=True) as client:
        assert client.get(api.platform.viewer_url).status_code == 200
        yield client


def raw(api, request: bytes) -> bytes:
    """Send bytes that no HTTP library would, and return the answer."""
    address = urlsplit(api.platform.url)
    with contextlib.closing(
        socket.create_connection((address.hostname, address.port), timeout=10)
    ) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            return answer.readline()


class TestHost:
    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
    def test_own_names(self, api, name):
        """The loopback names with our port are us."""
        port = urlsplit(api.platform.url).port
        api.call("GET", "ping", headers={"Host": f"{name}:{port}"})

    @pytest.mark.parametrize(
        "host",
        [
            *(
                "evil.example",
                "evil.example:{port}",
                "127.0.0.1",
                "127.0.0.1:1",
                "localhost",
                "127.0.0.1:{port}.",
            ),
            *(
                "127.0.0.2:{port}",
                "0.0.0.0:{port}",
                "localhost.evil.example:{port}",
                "localhost:{port}@evil.example",
            ),
            *("127.0.0.1:{port},evil.example", ""),
        ],
    )
    def test_other_names(self, api, host):
        """A page that points its own name at us is refused, even with the token, for API and viewer alike."""
        headers = {"Host": host.format(port=urlsplit(api.platform.url).port)}
        assert api.call("GET", "ping", 421, headers=headers)["code"] == "misdirected_request"
        answer = api.http.get(api.platform.viewer_url, headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (421, False)

    def test_no_host(self, api):
        """A request that does not say whom it means is refused."""
        assert b" 421 " in raw(api, b"GET /api/v1/ping HTTP/1.0\r\n\r\n")
        status = raw(api, b"GET /api/v1/ping HTTP/1.1\r\n\r\n").split()[1]
        assert status in (
            b"400",
            b"421",
        )  # by uvicorn with h11, or by us behind httptools, which lets it pass


class TestToken:
    @pytest.mark.parametrize(
        ("authorization", "code"),
        [
            (None, "unauthorized"),
            ("", "unauthorized"),
            ("Basic {token}", "unauthorized"),
            ("{token}", "unauthorized"),
            ("Bearer", "bad_authtoken"),
            ("Bearer {token}x", "bad_authtoken"),
            ("Bearer x", "bad_authtoken"),
            ("Bearer ü".encode(), "bad_authtoken"),
        ],
    )
    def test_refused(self, api, stranger, authorization, code):
        """Without the token nothing is read and nothing is written."""
        if isinstance(authorization, str):
            authorization = authorization.format(token=api.platform.token)
        headers = {} if authorization is None else {"Authorization": authorization}
        run = api.run()
        for method, path in (("GET", "ping"), ("GET", "agent"), ("GET", "nothing"), ("POST", "agent_spans")):
            options = {"json": {"details": api.details(run)}} if method == "POST" else {}
            answer = stranger.request(method, f"/api/v1/{path}", headers=headers, **options)
            assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert api.spans(run) == []

    def test_spelling(self, api, stranger):
        """The scheme may be written in any case, as HTTP says."""
        headers = {"Authorization": f"bearer  {api.platform.token}"}
        assert stranger.get("/api/v1/ping", headers=headers).status_code == 200

    def test_new_at_every_start(self, api, tmp_path):
        """Two platforms have two tokens, long enough that nobody guesses them."""
        tokens = {LocalPlatform(tmp_path / "db").token for _ in range(3)} | {api.platform.token}
        assert len(tokens) == 4
        assert min(map(len, tokens)) >= 40

    def test_cookie_is_no_token(self, api, viewer):
        """The viewer's cookie does not open the API."""
        assert viewer.get("/api/v1/ping").status_code == 401


class TestViewer:
    def test_session(self, api, stranger):
        """The printed address swaps its token for a cookie and is shown without it."""
        answer = stranger.get(f"/agents/x?page=2&token={api.platform.token}&a=b%26c")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/agents/x?page=2&a=b%26c"
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert api.platform.token not in cookie
        assert stranger.get("/").status_code == 200

    def test_redirect_stays_here(self, api):
        """A path with two slashes is no way to another host."""
        target = f"//evil.example/%2e%2e?token={api.platform.token}".encode()
        host = urlsplit(api.platform.url).netloc.encode()
        address = urlsplit(api.platform.url)
        with contextlib.closing(
            socket.create_connection((address.hostname, address.port), timeout=10)
        ) as connection:
            connection.sendall(
                b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            )
            with connection.makefile("rb") as answer:
                (location,) = [
                    line for line in answer.read().splitlines() if line.lower().startswith(b"location:")
                ]
        assert location == b"location: /evil.example/.."

    @pytest.mark.parametrize(
        "path", ["/", "/agents/x", "/static/viewer.css", "/nothing", "/?token=wrong", "/?token="]
    )
    def test_without_cookie(self, stranger, path):
        """Without the cookie there is a page that says where to find the key, and nothing else."""
        answer = stranger.get(path)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "Open the address that `prefactor-trace serve` printed" in answer.text
        assert "set-cookie" not in answer.headers

    def test_odd_cookies(self, api, viewer):
        """Cookies of other programs on this host do not get in the way, and a wrong one of ours does not open."""
        name, value = next(iter(viewer.cookies.items()))
        viewer.cookies.clear()
        odd = 'a={"json": "yes"}; =; ;b'
        assert viewer.get("/", headers={"Cookie": f"{odd}; {name}={value}; c=1"}).status_code == 200
        for wrong in (f"{name}={value}x", f"{name}=", f"{name}={api.platform.token}", f"other={value}", odd):
            assert viewer.get("/", headers={"Cookie": wrong}).status_code == 401

    def test_forms_need_our_origin(self, api, viewer):
        """A form of another page cannot terminate a run, even from another port of this host; our own can."""
        run = api.run()
        form = {"data": {"reason": "r"}}
        port = urlsplit(api.platform.url).port
        for origin in (
            "http://evil.example",
            "null",
            f"http://127.0.0.1:{port + 1}",
            f"https://127.0.0.1:{port}",
        ):
            answer = viewer.post(f"/instances/{run}/terminate", headers={"Origin": origin}, **form)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "active"
        answer = viewer.post(f"/instances/{run}/terminate", headers={"Origin": api.platform.url}, **form)
        assert answer.status_code == 200
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "terminated"

    def test_forms_need_the_cookie(self, api, stranger):
        """A form without the cookie changes nothing."""
        run = api.run()
        answer = stranger.post(f"/instances/{run}/terminate", data={"reason": "r"})
        assert answer.status_code == 401
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "active"


class TestChanges:
    def test_origin(self, api):
        """A page of another origin changes nothing, even if it has the token."""
        run = api.run()
        body = {"details": api.details(run)}
        refused = api.call("POST", "agent_spans", 403, json=body, headers={"Origin": "https://evil.example"})
        assert refused["code"] == "forbidden"
        assert api.spans(run) == []
        api.call("POST", "agent_spans", json=body, headers={"Origin": api.platform.url})

    def test_preflight(self, stranger):
        """A browser that asks on behalf of another page gets no permission."""
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answer = stranger.options("/api/v1/agent_spans", headers=headers)
        assert answer.status_code == 401
        assert not [name for name in answer.headers if name.startswith("access-control")]

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    )
    def test_content_type(self, api, kind):
        """What a web page can send without asking is not taken for JSON."""
        run = api.run()
        body = json.dumps({"details": api.details(run)})
        headers = {"Content-Type": kind} if kind else {}
        assert (
            api.call("POST", "agent_spans", 415, content=body, headers=headers)["code"]
            == "unsupported_media_type"
        )
        chunked = api.call("POST", "agent_spans", 415, content=iter([body.encode()]), headers=headers)
        assert chunked["code"] == "unsupported_media_type"
        assert api.spans(run) == []

    def test_json_by_any_spelling(self, api):
        """Parameters and case of the content type do not matter, and an empty body needs none."""
        run = api.register()["id"]
        api.call(
            "POST",
            f"agent_instance/{run}/start",
            content=b"{}",
            headers={"Content-Type": "Application/JSON; a=b"},
        )
        api.call("POST", f"agent_instance/{run}/finish")

    def test_headers(self, api, viewer):
        """Every answer forbids framing, sniffing, foreign scripts and keeping."""
        answers = [
            *(api.http.get("ping"), api.http.get("nothing"), api.http.patch("bulk", json={})),
            *(viewer.get("/"), viewer.get("/static/viewer.css"), viewer.get("/nothing")),
            httpx.get(api.platform.url, trust_env=False),
        ]
        for answer in answers:
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
            assert "'unsafe" not in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"
            assert "server" not in answer.headers


class TestBodies:
    def send(self, api, status, content, **headers):
        return api.call("POST", "agent_spans", status, content=content, headers={**JSON, **headers})

    def body(self, api, run, **payload) -> bytes:
        return json.dumps({"details": api.details(run, payload=payload)}).encode()

    def test_large_but_allowed(self, api):
        """A body of several MiB is taken."""
        run = api.run()
        self.send(api, 200, self.body(api, run, text="x" * 8 * MEBIBYTE))
        assert api.spans(run)[0]["payload_byte_size_estimate"] > 8 * MEBIBYTE

    def test_hanging_up(self, api):
        """A client that goes away in the middle of a body leaves nothing behind."""
        run = api.run()
        head = f"POST /api/v1/agent_spans HTTP/1.1\r\nHost: {urlsplit(api.platform.url).netloc}\r\n"
        head += f"Authorization: Bearer {api.platform.token}\r\nContent-Type: application/json\r\n"
        body = self.body(api, run)
        address = urlsplit(api.platform.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: {len(body) + 1}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # until the server has let go as well
        assert api.spans(run) == []

    @pytest.mark.parametrize("chunked", [False, True])
    def test_too_large(self, api, chunked):
        """A body over the limit is refused while it comes, whether or not it says its size, and is not kept."""
        run = api.run()
        body = self.body(api, run, text="x" * (_guard.MAX_BODY + 1))
        pieces = (body[at : at + MEBIBYTE] for at in range(0, len(body), MEBIBYTE))
        assert self.send(api, 413, pieces if chunked else body)["code"] == "payload_too_large"
        assert api.spans(run) == []
        self.send(api, 200, self.body(api, run))

    def test_gzip(self, api):
        """A gzip body is taken, in one member or several, and counted in full."""
        run = api.run()
        body = self.body(api, run, text="hello")
        self.send(api, 200, gzip.compress(body), **{"Content-Encoding": "gzip"})
        members = gzip.compress(body[:20]) + gzip.compress(b"") + gzip.compress(body[20:])
        self.send(api, 200, members, **{"Content-Encoding": "GZIP"})
        pieces = (members[at : at + 7] for at in range(0, len(members), 7))
        self.send(api, 200, pieces, **{"Content-Encoding": "gzip"})
        assert [span["payload"] for span in api.spans(run)] == [{"text": "hello"}] * 3

    def test_gzip_bomb(self, api):
        """A small body that inflates without end is refused, and never held in memory."""
        run = api.run()
        bomb = gzip.compress(b" " * 256 * MEBIBYTE, 9)
        assert len(bomb) < MEBIBYTE
        tracemalloc.start()
        try:
            assert self.send(api, 413, bomb, **{"Content-Encoding": "gzip"})["code"] == "payload_too_large"
            members = gzip.compress(b" " * MEBIBYTE, 9) * 300
            assert self.send(api, 413, members, **{"Content-Encoding": "gzip"})["code"] == "payload_too_large"
            assert tracemalloc.get_traced_memory()[1] < 80 * MEBIBYTE
        finally:
            tracemalloc.stop()
        assert api.spans(run) == []

    @pytest.mark.parametrize("broken", ["plain", "cut", "tail", "empty"])
    def test_broken_gzip(self, api, broken):
        """What is not gzip to its end is refused."""
        good = gzip.compress(self.body(api, api.run()))
        body = {"plain": b"{}", "cut": good[:-4], "tail": good + b"\0\0", "empty": b""}[broken]
        assert self.send(api, 400, body, **{"Content-Encoding": "gzip"})["code"] == "bad_request"

    @pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd", "nonsense"])
    def test_other_encodings(self, api, encoding):
        """An encoding we do not undo is refused, not guessed."""
        assert self.send(api, 415, b"{}", **{"Content-Encoding": encoding})["code"] == "unsupported_encoding"

    @pytest.mark.parametrize("shape", ["[]", "{}", "mixed"])
    def test_deep(self, api, shape):
        """Nesting is refused beyond its limit, before anything parses it, and taken up to it."""
        run = api.run()
        opening, closing = {"[]": ("[", "]"), "{}": ('{"a":', "}"), "mixed": ('[{"a":', "}]")}[shape]
        levels = len(opening.replace('"a":', ""))

        def nested(depth: int) -> bytes:
            times = (depth - 3) // levels  # the body, `details` and `payload` are three levels themselves
            value = opening * times + "1" + closing * times
            return self.body(api, run, a=0).replace(b'"a": 0', f'"a": {value}'.encode())

        self.send(api, 200, nested(_guard.MAX_DEPTH if levels == 1 else _guard.MAX_DEPTH - 1))
        for depth in (_guard.MAX_DEPTH + 2, 1_000, 100_000):
            assert self.send(api, 400, nested(depth))["code"] == "bad_request"
        assert len(api.spans(run)) == 1

    def test_brackets_in_text(self, api):
        """Brackets inside of strings are no nesting, whatever stands around them, and hide none."""
        run = api.run()
        text = "[{" * 500 + '"\\' + "]" * 7 + "\\\\" + '"[' * 80
        self.send(api, 200, self.body(api, run, text=text, more=[text, {text: text}]))
        assert api.spans(run)[0]["payload"] == {"text": text, "more": [text, {text: text}]}
        hidden = '["]",' * 200 + "1" + "]" * 200
        self.send(api, 400, self.body(api, run, a=0).replace(b'"a": 0', f'"a": {hidden}'.encode()))

    @pytest.mark.parametrize(
        "body", ["[" * 100, "]" * 100, "{" * 1_000_000, '"' + "[" * 100, '"\\' * 100 + "[" * 100]
    )
    def test_brackets_that_do_not_match(self, api, body):
        """Nonsense is refused as nonsense."""
        assert self.send(api, 400, body.encode())["code"] == "bad_request"

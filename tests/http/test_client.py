"""The client over real sockets: bad servers, answers that are none, the token's secrecy, headers, and its own life."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import anyio
import hostile_server as hostile
import pytest
from hostile_server import HostileServer, always, answering, closing_after_each, refused_port, response
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import within
from pydantic import BaseModel, ValidationError

from prefactor_trace import __version__
from prefactor_trace.http import (
    BulkItem,
    BulkRequest,
    HttpClientConfig,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorClientError,
    PrefactorHttpClient,
    PrefactorHttpError,
    PrefactorNotFoundError,
    PrefactorResponseContractError,
    PrefactorRetryExhaustedError,
    PrefactorTransportError,
    PrefactorValidationError,
)
from prefactor_trace.http.client import _Answer, _read, _verifying_context

TOKEN = "pf_0123456789abcdefghijklmnopqrstuvwxyz"
PING = "/api/v1/ping"
SNIPPET = 200 + len("...")

on_both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def config(url, **changes):
    """Settings that neither wait long nor try again."""
    return HttpClientConfig(url, **({"api_token": TOKEN, "request_timeout": 5.0, "max_retries": 0} | changes))


def using(backend, url, use, sdk_header=None, **changes):
    """Run *use* with a client."""

    async def main():
        async with PrefactorHttpClient(config(url, **changes), sdk_header) as client:
            return await use(client)

    try:
        return anyio.run(main, backend=backend)
    finally:
        gc.collect(1)  # what was left open says so now, and warnings are errors


def ping(backend, url, **changes):
    return using(backend, url, PrefactorHttpClient.validate_token, **changes)


def failure(kind, backend, behaviour, use=PrefactorHttpClient.validate_token, **changes):
    """Return the error that a call of a server with *behaviour* ends in."""
    with HostileServer(behaviour) as server, pytest.raises(kind) as raised:
        using(backend, server.url, use, **changes)
    assert type(raised.value) is kind
    return raised.value


def each_failure(backend, responses, **changes):
    """Return the errors that calls of one client end in, each answered with one of *responses*."""
    coming = iter(responses)

    async def use(client):
        errors = []
        for _ in responses:
            with pytest.raises(PrefactorHttpError) as raised:
                await client.validate_token()
            errors.append(raised.value)
        return errors

    with HostileServer(answering(lambda _: next(coming))) as server:
        return using(backend, server.url, use, **changes)


def echoing(
    answer=lambda request: {"status": "success", "target": request.target, "headers": request.headers},
):
    """A server that answers with what it was asked."""
    return answering(lambda request: response(200, json.dumps(answer(request)).encode()))


def echoing_body():
    return echoing(lambda request: {"status": "success", "body": json.loads(request.body or b"null")})


def receiving(then):
    """A server that takes a request and then does *then*."""

    def behave(peer):
        peer.receive()
        then(peer)

    return behave


# -- bad servers -------------------------------------------------------------------------------------------

ENDLESS = [
    hostile.dripping_body,
    hostile.dripping_headers,
    hostile.endless_interim,
    hostile.never_answering,
    hostile.never_reading,
]
BROKEN = [
    hostile.closing_at_once,
    hostile.endless_headers,
    hostile.half_then_close,
    hostile.half_then_reset,
    hostile.speaking_no_http,
    receiving(hostile.Peer.reset),
]


def name_of(behaviour):
    return getattr(behaviour, "__name__", str(behaviour))


class TestTimeLimits:
    @pytest.mark.parametrize("behaviour", ENDLESS, ids=name_of)
    @on_both
    def test_one_attempt(self, backend, behaviour):
        """However a server spends the time, an attempt ends when its time is over, and says so."""
        start = time.monotonic()
        error = failure(PrefactorTransportError, backend, behaviour, request_timeout=0.4)
        assert 0.4 <= time.monotonic() - start < within(3.0)
        assert str(error) == f"no whole answer from {PING} within 0.4 s"

    @on_both
    def test_all_attempts(self, backend):
        """Each attempt has the whole time; after the last one, the error says how it ended."""
        start = time.monotonic()
        error = failure(
            PrefactorRetryExhaustedError,
            backend,
            hostile.dripping_body,
            request_timeout=0.3,
            max_retries=2,
            initial_retry_delay=0.01,
        )
        assert 0.9 <= time.monotonic() - start < within(4.0)
        assert type(error.last_error) is PrefactorTransportError
        assert "3 attempts" in str(error)
        assert PING in str(error)
        assert "0.3 s" in str(error)

    @on_both
    def test_longer_than_our_own_default_reads(self, backend):
        """A slow answer that comes in time is an answer: what counts is the whole."""

        def behave(peer):
            peer.receive()
            for byte in response(200, b"{}"):
                peer.send(bytes([byte]))

        with HostileServer(behave) as server:
            assert ping(backend, server.url) == {}


class TestBrokenAnswers:
    @pytest.mark.parametrize("behaviour", BROKEN, ids=name_of)
    @on_both
    def test_no_whole_answer(self, backend, behaviour):
        """The error comes at once; it names the call and a reason, and can be waited out."""
        start = time.monotonic()
        error = failure(PrefactorTransportError, backend, behaviour)
        assert time.monotonic() - start < within(3.0)
        reason = str(error).removeprefix(f"no answer from {PING} (").removesuffix(")")
        assert reason[0].isupper()
        assert "Error" in reason
        assert error.__context__ is None  # the HTTP library's error may quote anything

    @pytest.mark.parametrize("behaviour", BROKEN, ids=name_of)
    @on_both
    def test_every_attempt(self, backend, behaviour):
        """After the last one: exhausted, with the last of them."""
        error = failure(
            PrefactorRetryExhaustedError, backend, behaviour, max_retries=1, initial_retry_delay=0.01
        )
        assert type(error.last_error) is PrefactorTransportError
        assert PING in str(error)

    @on_both
    def test_nobody_there(self, backend):
        """A port that nobody listens on."""
        with pytest.raises(PrefactorTransportError, match=rf"no answer from {PING} \(ConnectError: .+\)"):
            ping(backend, f"http://127.0.0.1:{refused_port()}")

    @on_both
    def test_no_such_host(self, backend):
        """A name that nobody has, and never will (RFC 2606)."""
        with pytest.raises(PrefactorTransportError, match=rf"no answer from {PING} \(Connect\w+: .+\)"):
            ping(backend, "http://nobody.invalid")

    @on_both
    def test_not_the_protocol_of_the_address(self, backend):
        """A server that speaks no TLS."""
        with HostileServer(lambda peer: peer.send(b"220 smtp.example ESMTP\r\n")) as server:
            with pytest.raises(PrefactorTransportError, match=rf"no answer from {PING} \(ConnectError.*\)"):
                ping(backend, server.url.replace("http:", "https:"))

    @on_both
    def test_a_connection_that_was_closed_meanwhile(self, backend):
        """A kept connection that the server has closed is replaced, without an attempt being lost."""

        async def use(client):
            for _ in range(5):
                await client.validate_token()

        with HostileServer(closing_after_each(lambda _: response(200, b"{}"))) as server:
            using(backend, server.url, use, max_retries=1, initial_retry_delay=0.01)
            assert len(server.requests) == 5

    @on_both
    def test_an_answer_without_end(self, backend):
        """It is given up long before the memory is full of it, and is no answer of a Prefactor API."""
        enough, sent = 200, []

        def behave(peer):
            peer.receive()
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while len(sent) < enough:
                peer.send(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
                sent.append("a megabyte")

        with HostileServer(behave) as server:
            with pytest.raises(PrefactorHttpError, match=PING):
                ping(backend, server.url)
        assert len(sent) < enough

    @on_both
    def test_a_long_reason(self, backend):
        """What a server says in place of HTTP is not quoted at length."""
        noise = receiving(
            lambda peer: peer.send(b"HTTP/1.1 200 OK\r\n" + b"no header " * 5_000 + b"\r\n\r\n")
        )
        error = failure(PrefactorTransportError, backend, noise)
        assert len(str(error)) < 500


# -- answers that are none ---------------------------------------------------------------------------------

DEEP = b'{"status": "success", "details": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


# Body → what is shown of it.
NO_OBJECTS = {
    b"<html>\n  <body>\r\n\tBad  gateway</body>\n</html>": "<html> <body> Bad gateway</body> </html>",
    b"": None,
    b" \n\t ": None,
    b'{"status": "success", "det': '{"status": "success", "det',
    b'[{"status": "success"}]': '[{"status": "success"}]',
    b'"success"': '"success"',
    b"null": "null",
    b"17": "17",
    b'{"a": ' + b"1" * 10_000 + b"}": '{"a": ' + "1" * 194 + "...",
    DEEP: '{"status": "success", "details": ' + "[" * 167 + "...",
    b"[" * 100_000: "[" * 200 + "...",
    b'{"a": "\xff\xfe"}': '{"a": "\ufffd\ufffd"}',
    "Ä".encode() * 500: "Ä" * 200 + "...",
    "🙂".encode() * 500: "🙂" * 200 + "...",
}


class TestOtherAnswers:
    @pytest.mark.parametrize("status", [200, 201, 404, 500])
    @on_both
    def test_no_json_object(self, backend, status):
        """Whatever the status: the error has it, names the call, and shows a short beginning on one line."""
        errors = each_failure(backend, [response(status, body) for body in NO_OBJECTS])
        for error, shown in zip(errors, NO_OBJECTS.values(), strict=True):
            assert type(error) is PrefactorResponseContractError
            assert (error.status_code, error.body_snippet) == (status, shown)
            assert PING in str(error)
            assert str(status) in str(error)
            assert (shown or str(status)) in str(error)
            assert len(shown or "") <= SNIPPET
            assert "\n" not in str(error)

    @on_both
    def test_cause(self, backend):
        """What could not read it is kept, and shown in a traceback; for JSON of another shape there is none."""
        error = failure(PrefactorResponseContractError, backend, always(200, b"<html>"))
        assert type(error.cause) is ValueError  # without the body, which the JSON library's error holds
        assert error.__cause__ is error.cause
        assert failure(PrefactorResponseContractError, backend, always(200, b"[]")).cause is None

    @pytest.mark.parametrize("body", [b"", b"<html>Moved</html>", b'{"status": "success"}', b"[]"])
    @on_both
    def test_redirects(self, backend, body):
        """They are not followed: the token is for nobody else. The error says what came."""
        statuses = [300, 301, 302, 303, 304, 307, 308]
        with HostileServer(always(200, b"{}")) as elsewhere:
            to = {"Location": elsewhere.url + PING}
            errors = each_failure(
                backend, [response(status, b"" if status == 304 else body, to) for status in statuses]
            )
            assert elsewhere.connections == 0
        for error, status in zip(errors, statuses, strict=True):
            assert type(error) is PrefactorResponseContractError
            assert error.status_code == status
            assert PING in str(error)
            assert str(status) in str(error)

    @on_both
    def test_no_content(self, backend):
        """204 has no body, and so no answer in it."""
        error = failure(PrefactorResponseContractError, backend, always(204))
        assert (error.status_code, error.body_snippet) == (204, None)

    @on_both
    def test_a_bomb(self, backend):
        """An answer that unpacks to far more than it is, is given up or read as none."""
        error = failure(PrefactorResponseContractError, backend, hostile.gzip_bomb, request_timeout=20.0)
        assert len(str(error)) < 500

    @on_both
    def test_broken_compression(self, backend):
        """What cannot be unpacked is no whole answer."""
        broken = always(200, b"no gzip", {"Content-Encoding": "gzip"})
        error = failure(PrefactorTransportError, backend, broken)
        assert "DecodingError" in str(error)

    @pytest.mark.parametrize("depth", [100, 300, 480, 700, 900, 3_000, 100_000])
    @pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
    @pytest.mark.parametrize("status", [200, 422])
    @on_both
    def test_deep_answers(self, backend, status, start, end, depth):
        """An answer as deep as can be read is read, a deeper one is none; there is no third way."""
        body = (
            b'{"status": "x", "message": "m", "errors": {"e": ' + start * depth + b"1" + end * depth + b"}}"
        )
        with HostileServer(always(status, body)) as server:
            try:
                answer, error = ping(backend, server.url), None
            except PrefactorHttpError as raised:
                answer, error = None, raised
        if type(error) is PrefactorResponseContractError:
            assert depth > 100
            assert error.status_code == status
            assert len(error.body_snippet) <= SNIPPET
        elif status == 422:
            assert type(error) is PrefactorValidationError
            assert str(error) == "m"
        else:
            assert answer["message"] == "m"

    @pytest.mark.parametrize(
        ("details", "field"),
        [
            ({"type": "agent_span", "agent_instance_id": "i", "schema_name": "s", "status": "active"}, "id"),
            ({"type": "agent_span", "id": 5}, "details.id"),
            ({"type": "agent"}, "details.type"),
            (
                {
                    "type": "agent_span",
                    "id": "s",
                    "agent_instance_id": "i",
                    "schema_name": "n",
                    "status": "active",
                    "started_at": "yesterday",
                },
                "details.started_at",
            ),
            (None, "details"),
            ([], "details"),
            ("agent_span", "details"),
        ],
        ids=str,
    )
    @on_both
    def test_another_shape(self, backend, details, field):
        """A success that is not about the thing that was asked for: the error names call and field, with the cause."""
        body = json.dumps({"status": "success", "details": details}).encode()
        error = failure(
            PrefactorResponseContractError,
            backend,
            always(200, body),
            lambda client: client.agent_spans.get("s"),
        )
        assert "agent_spans.get" in str(error)
        assert field in str(error)
        assert type(error.cause) is ValidationError

    @on_both
    def test_no_details(self, backend):
        """The error names what is missing."""
        error = failure(
            PrefactorResponseContractError,
            backend,
            always(200, b'{"status": "success"}'),
            lambda client: client.agent_spans.get("s"),
        )
        assert "details: Field required" in str(error)


class TestRefusals:
    @on_both
    def test_what_the_platform_says(self, backend):
        """Class by status; message, code and errors as they came."""
        kinds = {
            400: PrefactorValidationError,
            401: PrefactorAuthError,
            403: PrefactorAuthError,
            404: PrefactorNotFoundError,
            409: PrefactorApiError,
            422: PrefactorValidationError,
            500: PrefactorApiError,
        }
        body = b'{"status": "error", "code": "c", "message": "m", "errors": {"name": ["is missing"]}}'
        errors = each_failure(backend, [response(status, body, {"Retry-After": "3"}) for status in kinds])
        for error, (status, kind) in zip(errors, kinds.items(), strict=True):
            assert type(error) is kind
            assert (str(error), error.code, error.status_code, error.retry_after) == ("m", "c", status, 3.0)
            if kind is PrefactorValidationError:
                assert error.errors == {"name": ["is missing"]}


# -- the token ---------------------------------------------------------------------------------------------


def everything_about(error):
    """Yield all that a log or a report would show of *error* and of the errors behind it."""
    seen = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield from (str(each), repr(each), repr(each.args))
        yield from traceback.format_exception(type(each), each, each.__traceback__)
        waiting += [each.__cause__, each.__context__, *vars(each).values()]
        if isinstance(each, PrefactorHttpError):
            yield from (repr(value) for value in vars(each).values())


def remains(text, token=TOKEN):
    """Return the longest beginning of the token that stands in *text*."""
    return next(token[:length] for length in range(len(token), -1, -1) if token[:length] in text)


T = TOKEN.encode()
WAYS_TO_SPREAD_IT = {
    "message": always(401, b'{"status": "error", "code": "c", "message": "bad token %s"}' % T),
    "code": always(409, b'{"status": "error", "code": "%s", "message": "m"}' % T),
    "errors": always(422, b'{"message": "m", "errors": {"authorization": ["Bearer %s"]}}' % T),
    "deeper errors": always(400, b'{"message": "m", "errors": {"a": [{"b": {"c": ["%s"]}}]}}' % T),
    "key of errors": always(422, b'{"message": "m", "errors": {"%s": ["is wrong"]}}' % T),
    "escaped message": always(401, b'{"message": "bad \\u0070%s"}' % T[1:]),
    "retried": always(503, b'{"message": "not now, %s"}' % T),
    "page": always(502, b"<html>Authorization: Bearer %s</html>" % T),
    "page of success": always(200, b"<html>Authorization: Bearer %s</html>" % T),
    "list": always(200, b'["%s"]' % T),
    "redirect": always(302, b'{"token": "%s"}' % T),
    "cut JSON": always(200, b'{"%s": ' % T),
    "no UTF-8": always(200, b'{"token": "%s\xff"}' % T),
    "UTF-16": always(200, f'"{TOKEN}"'.encode("utf-16")),
    "UTF-16 page": always(200, f"<html>{TOKEN}".encode("utf-16")),
    "twice": always(401, b'{"message": "%s%s"}' % (T, T)),
    "header line": receiving(lambda peer: peer.send(b"HTTP/1.1 200 OK\r\nno header %s\r\n\r\n" % T)),
    "status line": receiving(lambda peer: peer.send(b"WHAT IS %s\r\n\r\n" % T)),
    "reason": receiving(lambda peer: peer.send(b"HTTP/1.1 401 %s\r\nContent-Length: 2\r\n\r\n{}" % T)),
    "length": always(401, b"{}", {"Content-Length": TOKEN}),
    "location": always(301, b"", {"Location": "/" + TOKEN}),
    "compression": always(200, b"%s" % T, {"Content-Encoding": "gzip"}),
    "details": always(200, b'{"status": "success", "details": {"type": "%s"}}' % T),
    "details as a text": always(200, b'{"status": "success", "details": "%s"}' % T),
    "key of details": always(200, b'{"status": "success", "details": {"%s": 1}}' % T),
}


@contextmanager
def listening(caplog):
    """Hear every logger at the lowest level, those of the HTTP library too."""
    with caplog.at_level(1):
        loggers = [
            each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)
        ]
        levels = [each.level for each in loggers]
        for each in loggers:
            each.setLevel(1)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def heard(caplog):
    return "\n".join(
        f"{each.name} {each.getMessage()} {each.args!r} {each.exc_text or ''}" for each in caplog.records
    )


class TestToken:
    @pytest.mark.parametrize("way", WAYS_TO_SPREAD_IT)
    @on_both
    def test_not_in_errors_or_logs(self, backend, way, caplog):
        """A server that quotes what it was sent does not spread it: not by an error, one behind it, or a log line."""
        with listening(caplog), HostileServer(WAYS_TO_SPREAD_IT[way]) as server:
            with pytest.raises(PrefactorHttpError) as raised:
                using(
                    backend,
                    server.url,
                    lambda client: client.agent_spans.get("s"),
                    max_retries=1,
                    initial_retry_delay=0.01,
                )
        for text in everything_about(raised.value):
            assert TOKEN not in text
        assert caplog.records
        if way not in ("location", "length", "reason", "header line", "status line"):
            # In its debug log, the HTTP library tells what heads of answers say.
            assert TOKEN not in heard(caplog)

    @on_both
    def test_not_as_a_key_of_bulk_outputs(self, backend):
        """The names in an answer are the server's words too."""
        request = BulkRequest(items=[BulkItem(_type="agents/list", idempotency_key="12345678")])
        spread = always(200, b'{"status": "success", "outputs": {"%s": {}}}' % T)
        error = failure(
            PrefactorResponseContractError, backend, spread, lambda client: client.bulk.execute(request)
        )
        for text in everything_about(error):
            assert TOKEN not in text

    @pytest.mark.parametrize("behaviour", [*BROKEN, hostile.never_answering], ids=name_of)
    @on_both
    def test_not_when_no_answer_comes(self, backend, behaviour, caplog):
        """Nor by the errors of sockets and of the HTTP library."""
        with listening(caplog):
            error = failure(
                PrefactorRetryExhaustedError,
                backend,
                behaviour,
                max_retries=1,
                initial_retry_delay=0.01,
                request_timeout=0.3,
            )
        for text in everything_about(error):
            assert TOKEN not in text
        assert caplog.records
        assert TOKEN not in heard(caplog)

    @on_both
    def test_not_in_the_log_of_good_calls(self, backend, caplog):
        """Nor when all is well; the platform has got it all the same."""
        with listening(caplog), HostileServer(always(200, b"{}")) as server:
            ping(backend, server.url)
            assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert {"httpx", "httpcore.http11"} <= {each.name for each in caplog.records}
        assert TOKEN not in heard(caplog)

    @on_both
    def test_not_in_reprs(self, backend):
        """Whoever prints the client or its settings shows no secret."""

        async def use(client):
            await client.validate_token()
            parts = [
                client,
                client.config,
                client.agents,
                client.agent_instances,
                client.agent_spans,
                client.bulk,
            ]
            return [text for each in parts for text in (repr(each), str(each), f"{each}")]

        with HostileServer(always(200, b"{}")) as server:
            assert [text for text in using(backend, server.url, use) if TOKEN in text] == []

    @on_both
    def test_not_in_pickled_errors(self, backend):
        """What travels to another process is only what is shown, so no secret is in it."""
        for way in ("message", "page", "cut JSON", "no UTF-8"):
            error = failure(KIND_OF[way], backend, WAYS_TO_SPREAD_IT[way])
            assert T not in pickle.dumps(error)
            assert TOKEN not in repr(vars(copy.deepcopy(error)))

    @given(
        before=st.integers(0, 900),
        filler=st.sampled_from([" ", "x", " x", "\n", "Ä", "🙂", None]),
        times=st.integers(0, 1_200),
        length=st.sampled_from([20, 39, 64, 200, 900]),
        after=st.sampled_from(["", "x", " ", "x" * 300]),
    )
    @settings(max_examples=300, deadline=None)
    def test_not_even_half_of_it(self, before, filler, times, length, after):
        """Wherever a page quotes the token, and however long it is: no more than a few characters of it are shown."""
        token = (TOKEN * 30)[:length]
        filler = token if filler is None else filler
        body = ("-" * before + filler * min(times, 60_000 // len(filler)) + token + after).encode()
        shown = snippet(token, body)
        assert len(shown) <= SNIPPET
        assert len(remains(shown, token)) <= 8

    @pytest.mark.parametrize(
        "body",
        [
            " " * (4 * (200 + len(TOKEN)) - len(TOKEN) + 1) + TOKEN,
            "x" + TOKEN * 100,
            "x" * 190 + TOKEN,
            "x" * (4 * (200 + len(TOKEN)) - 5) + TOKEN,
        ],
        ids=["after much space", "many times", "at the end of what is shown", "at the end of what is read"],
    )
    @on_both
    def test_not_where_a_page_is_cut(self, backend, body):
        """The places where a snippet is cut are no places to smuggle it through."""
        error = failure(PrefactorResponseContractError, backend, always(200, body.encode()))
        assert len(remains(str(error))) <= 8
        assert len(error.body_snippet or "") <= SNIPPET


KIND_OF = {
    "message": PrefactorAuthError,
    "page": PrefactorResponseContractError,
    "cut JSON": PrefactorResponseContractError,
    "no UTF-8": PrefactorResponseContractError,
}


def snippet(token, body):
    """Return what an error shows of a page, without a server: the answer is made by hand."""
    client = PrefactorHttpClient(config("http://127.0.0.1:1", api_token=token))
    with pytest.raises(PrefactorResponseContractError) as raised:
        _read(_Answer(200, body, None), PING, client.without_token)
    return raised.value.body_snippet or ""


# -- what is sent ------------------------------------------------------------------------------------------


class TestHeaders:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
    @on_both
    def test_every_request(self, backend, method):
        """Each of the contract's headers once, on requests with and without a body."""

        async def use(client):
            await client.request(method, PING, json_data={"a": 1} if method in ("POST", "PUT") else None)

        with HostileServer(echoing()) as server:
            using(backend, server.url, use)
            (request,) = server.requests
        names = [
            line.partition(b":")[0].lower().decode()
            for line in request.raw.split(b"\r\n")[1:]
            if b":" in line
        ]
        assert len(names) == len(set(names))
        assert request.method == method
        expected = {
            "authorization": f"Bearer {TOKEN}",
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"prefactor-trace/{__version__}",
            "x-prefactor-sdk": f"prefactor-trace@{__version__}",
        }
        assert expected.items() <= request.headers.items()
        assert "idempotency-key" not in request.headers

    @on_both
    def test_a_library_on_top_of_this_one(self, backend):
        """`sdk_header` is sent as it was given, and None or nothing means our own."""
        with HostileServer(echoing()) as server:
            using(backend, server.url, PrefactorHttpClient.validate_token, "mine@1 prefactor-trace@2")
            using(backend, server.url, PrefactorHttpClient.validate_token, "")
            said = [each.headers["x-prefactor-sdk"] for each in server.requests]
        assert said == ["mine@1 prefactor-trace@2", f"prefactor-trace@{__version__}"]

    @pytest.mark.parametrize(
        ("suffix", "target"),
        [
            ("", PING),
            ("/", PING),
            ("/api/v1", PING),
            ("/api/v1/", PING),
            ("/behind/a/proxy", "/behind/a/proxy" + PING),
            ("/behind/a/proxy/", "/behind/a/proxy" + PING),
            ("/behind/a/proxy/api/v1/", "/behind/a/proxy" + PING),
        ],
    )
    @on_both
    def test_addresses(self, backend, suffix, target):
        """All the ways in which people write the address of the API lead there."""
        with HostileServer(echoing()) as server:
            assert ping(backend, server.url + suffix)["target"] == target

    @on_both
    def test_a_token_that_was_renewed(self, backend):
        """The settings are read at each call, so a client may live longer than its token."""

        async def use(client):
            await client.validate_token()
            client.config.api_token = "pf_another"
            await client.validate_token()

        with HostileServer(always(200, b"{}")) as server:
            using(backend, server.url, use)
            sent = [each.headers["authorization"] for each in server.requests]
        assert sent == [f"Bearer {TOKEN}", "Bearer pf_another"]

    @on_both
    def test_no_cookies(self, backend):
        """What one answer sets is not sent with the next request: calls do not depend on each other."""

        async def use(client):
            await client.validate_token()
            await client.validate_token()

        with HostileServer(always(200, b"{}", {"Set-Cookie": "a=b"})) as server:
            using(backend, server.url, use)
            assert ["cookie" in each.headers for each in server.requests] == [False, False]


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    at: datetime


AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=timezone.utc)


class Odd:
    """Nothing that JSON has a word for."""


def cycle() -> Any:
    around: dict[str, Any] = {}
    around["again"] = [around]
    return around


def deep() -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


class TestRequests:
    @pytest.mark.parametrize(
        ("value", "sent"),
        [
            (AT, "2026-01-02T03:04:05.678000Z"),
            (date(2026, 1, 2), "2026-01-02"),
            (timedelta(seconds=90), "PT1M30S"),
            (UUID(int=5), str(UUID(int=5))),
            (Decimal("1.10"), "1.10"),
            (Colour.RED, "red"),
            (Point(x=1, at=AT), {"x": 1, "at": "2026-01-02T03:04:05.678000Z"}),
            ([{"p": Point(x=1, at=AT)}], [{"p": {"x": 1, "at": "2026-01-02T03:04:05.678000Z"}}]),
            ((1, "two", None, True), [1, "two", None, True]),
            (frozenset([7]), [7]),
            (b"bytes", "bytes"),
            (2**80, 2**80),
            (-1.5e300, -1.5e300),
            ("Ä🙂\x00\n", "Ä🙂\x00\n"),
            ("\ud800", "\ud800"),
            ({"\udfff": 1}, {"\udfff": 1}),
        ],
        ids=repr,
    )
    @on_both
    def test_bodies(self, backend, value, sent):
        """What JSON has no word for is written as pydantic does; all text arrives, lone surrogates too."""
        with HostileServer(echoing_body()) as server:
            answer = using(
                backend, server.url, lambda client: client.request("POST", PING, json_data={"v": value})
            )
        if isinstance(value, datetime):
            assert answer["body"]["v"] in (sent, sent.replace("678000", "678"))
        else:
            assert answer["body"] == {"v": sent} or "678" in repr(sent)

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            float("inf"),
            -float("inf"),
            {object()},
            Odd(),
            [Odd()],
            {("a", "key"): 1},
            b"\xff",
            10**5_000,
            cycle(),
            deep(),
            lambda: None,
        ],
        ids=lambda value: type(value).__name__,
    )
    @on_both
    def test_what_cannot_be_written(self, backend, value):
        """It is the caller's mistake: said at once, with the path, and nothing is sent or tried again."""
        with HostileServer(echoing_body()) as server:
            with pytest.raises(PrefactorClientError, match=PING) as raised:
                using(
                    backend,
                    server.url,
                    lambda client: client.request("POST", PING, json_data={"v": value}),
                    max_retries=3,
                )
            assert type(raised.value) is PrefactorClientError
            assert server.connections == 0

    def test_a_model_with_a_number_that_is_none(self):
        """Also inside of what pydantic writes."""

        class Measured(BaseModel):
            value: float

        async def use(client):
            await client.request("POST", PING, json_data={"v": Measured(value=float("nan"))})

        with HostileServer(echoing_body()) as server:
            with pytest.raises(PrefactorClientError, match=PING):
                using("asyncio", server.url, use)
            assert server.connections == 0

    @on_both
    def test_queries(self, backend):
        """Parameters stand in the address, each as one word; those that stand in the path already stay."""
        with HostileServer(echoing()) as server:

            async def use(client):
                told = []
                for path, params in [
                    ("/a", {"x": 1, "y": "ä b&c=d", "pagination[offset]": 0}),
                    ("/a", {"x": ["1", "2"]}),
                    ("/a", None),
                    ("/a", {}),
                    ("/a?z=1", None),
                    ("/a?z=1", {"x": 2}),
                ]:
                    told.append((await client.request("GET", path, params=params))["target"])
                return told

            told = using(backend, server.url, use)
        assert told[0] in (
            "/a?x=1&y=%C3%A4+b%26c%3Dd&pagination%5Boffset%5D=0",
            "/a?x=1&y=%C3%A4%20b%26c%3Dd&pagination%5Boffset%5D=0",
        )
        assert told[1:] == ["/a?x=1&x=2", "/a", "/a", "/a?z=1", "/a?z=1&x=2"]

    @pytest.mark.parametrize(
        ("method", "path", "params"),
        [
            ("GET", "/line\nend", None),
            ("GET", "/\ud800", None),
            ("GET", "/ok", {"x": "\ud800"}),
            ("GET", "/" + "a" * 70_000, None),
            ("GE T", "/ok", None),
            ("GET\r\nX: y", "/ok", None),
            ("GÉT", "/ok", None),
        ],
        ids=["line end", "surrogate", "surrogate in a query", "too long", "method", "methods", "accent"],
    )
    @on_both
    def test_addresses_that_cannot_be_asked(self, backend, method, path, params):
        """It is the caller's mistake: said at once, and neither sent nor tried again."""
        with HostileServer(echoing()) as server:
            start = time.monotonic()
            with pytest.raises(PrefactorClientError) as raised:
                using(
                    backend,
                    server.url,
                    lambda client: client.request(method, path, params=params),
                    max_retries=1,
                    initial_retry_delay=2.0,
                )
            assert type(raised.value) is PrefactorClientError
            assert time.monotonic() - start < within(1.5)
            assert server.requests == []

    @on_both
    def test_a_path_cannot_lead_elsewhere(self, backend):
        """The token goes to the configured host, or nowhere."""
        with HostileServer(echoing()) as server, HostileServer(echoing()) as elsewhere:
            for path in (
                f"@127.0.0.1:{elsewhere.port}/x",
                f"{elsewhere.url}/x",
                f"//127.0.0.1:{elsewhere.port}/x",
            ):
                with suppress(PrefactorHttpError):
                    using(backend, server.url, lambda client, path=path: client.request("GET", path))
            assert elsewhere.connections == 0

    @pytest.mark.parametrize("key", ["", "1234567", "k" * 65, "k" * 1_000])
    @on_both
    def test_keys_of_a_wrong_length(self, backend, key):
        """They are refused before anything is sent."""
        with HostileServer(echoing_body()) as server:
            with pytest.raises(ValueError, match=f"8 to 64 characters, not {len(key)}"):
                using(backend, server.url, lambda client: client.request("POST", PING, idempotency_key=key))
            assert server.connections == 0

    @pytest.mark.parametrize("key", ["12345678", "k" * 64, "schlüssel"])
    @on_both
    def test_keys(self, backend, key):
        """They stand in the body, beside what else is in it; the caller's object stays as it was."""
        body = {"a": 1}

        async def use(client):
            return [
                await client.request("POST", PING, json_data=json_data, idempotency_key=key)
                for json_data in (body, None, {})
            ]

        with HostileServer(echoing_body()) as server:
            answers = using(backend, server.url, use)
        assert [each["body"] for each in answers] == [
            {"a": 1, "idempotency_key": key},
            {"idempotency_key": key},
            {"idempotency_key": key},
        ]
        assert body == {"a": 1}

    @on_both
    def test_keys_of_reading_calls(self, backend):
        """A GET has no body: the key stands among the parameters, and those of the caller stay as they were."""
        params = {"a": 1}
        with HostileServer(echoing()) as server:
            target = using(
                backend,
                server.url,
                lambda client: client.request("GET", PING, params=params, idempotency_key="12345678"),
            )["target"]
            assert server.requests[0].body == b""
        assert target == f"{PING}?a=1&idempotency_key=12345678"
        assert params == {"a": 1}

    @pytest.mark.parametrize("prefix", [None, "", "run-7", "k" * 31])
    def test_new_keys(self, prefix):
        """Never the same twice, of a length the platform takes, and with the beginning that was asked for."""
        client = PrefactorHttpClient(config("http://127.0.0.1:1", default_idempotency_key=prefix))
        keys = [client.new_key() for _ in range(1_000)]
        assert len(set(keys)) == 1_000
        assert {8 <= len(key) <= 64 and key.startswith(prefix or "") for key in keys} == {True}

    @on_both
    def test_no_body(self, backend):
        """None is no body, an empty object is one."""

        async def use(client):
            await client.request("POST", PING)
            await client.request("POST", PING, json_data={})

        with HostileServer(always(200, b"{}")) as server:
            using(backend, server.url, use)
            assert [each.body for each in server.requests] == [b"", b"{}"]

    @on_both
    def test_the_answer_comes_as_it_is(self, backend):
        """Also a success that quotes the token: it is the caller's own, and what programs are told is not changed."""
        body = {"status": "success", "details": {"a": [1, None, "ä"]}, "control": {"terminate": True}}
        with HostileServer(always(200, json.dumps(body).encode())) as server:
            assert ping(backend, server.url) == body


# -- its life ----------------------------------------------------------------------------------------------


class TestLife:
    @on_both
    def test_without_a_block(self, backend):
        """The first call opens the connection, `close` closes it."""

        async def main():
            client = PrefactorHttpClient(config(server.url))
            first = await client.validate_token()
            await client.close()
            return first

        with HostileServer(always(200, b"{}")) as server:
            assert anyio.run(main, backend=backend) == {}
            gc.collect()

    @on_both
    def test_close_and_reuse(self, backend):
        """Closing is no end: twice does no harm, a call after it opens a new connection, a block may be entered again."""

        async def main():
            client = PrefactorHttpClient(config(server.url))
            await client.close()
            async with client:
                await client.validate_token()
            await client.close()
            await client.close()
            await client.validate_token()
            async with client as same:
                assert same is client
                await client.validate_token()
            await client.close()

        with HostileServer(always(200, b"{}")) as server:
            anyio.run(main, backend=backend)
            assert (len(server.requests), server.connections) == (3, 2)
            gc.collect()

    @on_both
    def test_a_block_without_calls(self, backend):
        """Nothing is opened."""
        with HostileServer(always(200, b"{}")) as server:

            async def use(client):
                assert client.config.api_url == server.url

            using(backend, server.url, use)
            assert server.connections == 0

    @on_both
    def test_an_error_in_the_block(self, backend):
        """It is the block's own, and the connection is closed all the same."""

        async def use(client):
            await client.validate_token()
            raise KeyError("mine")

        with HostileServer(always(200, b"{}")) as server, pytest.raises(KeyError, match="mine"):
            using(backend, server.url, use)

    @on_both
    def test_connections_are_kept(self, backend):
        """Calls one after another need one connection."""

        async def use(client):
            for _ in range(20):
                await client.validate_token()

        with HostileServer(always(200, b"{}")) as server:
            using(backend, server.url, use)
            assert (len(server.requests), server.connections) == (20, 1)

    @on_both
    def test_many_at_a_time(self, backend):
        """Each of many concurrent calls of one client gets its own answer."""

        async def use(client):
            got = {}

            async def call(number):
                answer = await client.request(
                    "POST", f"/{number}", params={"n": number}, json_data={"n": number}
                )
                got[number] = (answer["target"], answer["body"])

            async with anyio.create_task_group() as group:
                for number in range(250):
                    group.start_soon(call, number)
            return got

        def tell(request):
            return {"target": request.target, "body": json.loads(request.body)}

        with HostileServer(echoing(tell)) as server:
            got = using(backend, server.url, use, request_timeout=30.0)
        assert got == {number: (f"/{number}?n={number}", {"n": number}) for number in range(250)}

    @on_both
    def test_one_bad_call_among_good_ones(self, backend):
        """A call that hangs, one that is cancelled and one that fails do not touch the others."""
        asked = threading.Event()

        def behave(peer):
            while (request := peer.receive()) is not None:
                if request.target == "/hang":
                    asked.set()
                    peer.server.stopping.wait()
                    return
                if request.target == "/break":
                    return
                peer.send(response(200, json.dumps({"target": request.target}).encode()))

        async def use(client):
            async def expect(kind, path):
                with pytest.raises(kind):
                    await client.request("GET", path)

            async with anyio.create_task_group() as group:
                group.start_soon(client.request, "GET", "/hang")
                await anyio.to_thread.run_sync(asked.wait)
                for number in range(20):
                    group.start_soon(expect, PrefactorTransportError, "/break")
                    assert (await client.request("GET", f"/{number}"))["target"] == f"/{number}"
                group.cancel_scope.cancel()
            return await client.request("GET", "/after")

        with HostileServer(behave) as server:
            assert using(backend, server.url, use) == {"target": "/after"}

    @on_both
    def test_closing_under_a_call(self, backend):
        """A call that is under way ends with an error of ours, not with one of the HTTP library."""
        asked = threading.Event()

        def behave(peer):
            peer.receive()
            asked.set()
            peer.server.stopping.wait()

        async def main():
            client = PrefactorHttpClient(config(server.url))

            async def call():
                with pytest.raises(PrefactorTransportError):
                    await client.validate_token()

            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await anyio.to_thread.run_sync(asked.wait)
                await client.close()

        with HostileServer(behave) as server:
            anyio.run(main, backend=backend)
            gc.collect()

    @pytest.mark.parametrize(
        ("first", "second"), [("asyncio", "asyncio"), ("trio", "asyncio"), ("asyncio", "trio")]
    )
    def test_one_event_loop_after_another(self, first, second):
        """A client that was closed has forgotten the event loop it was used on."""
        with HostileServer(always(200, b"{}")) as server:
            client = PrefactorHttpClient(config(server.url))

            async def main():
                async with client:
                    return await client.validate_token()

            assert [anyio.run(main, backend=each) for each in (first, second)] == [{}, {}]
            gc.collect()

    def test_making_one_costs_nothing(self):
        """A client that is never used opens nothing, so it need not be closed."""
        client = PrefactorHttpClient(config("http://127.0.0.1:1"))
        assert client._http is None
        del client
        gc.collect()

    @on_both
    def test_endpoints_are_always_the_same(self, backend):
        """One object each, which can be kept."""

        async def use(client):
            kept = client.agents, client.agent_instances, client.agent_spans, client.bulk
            await client.validate_token()
            assert all(
                one is other
                for one, other in zip(
                    kept,
                    (client.agents, client.agent_instances, client.agent_spans, client.bulk),
                    strict=True,
                )
            )

        with HostileServer(always(200, b"{}")) as server:
            using(backend, server.url, use)


class TestWhereItGoes:
    @pytest.mark.parametrize("scheme", ["https", "HTTPS"])
    @on_both
    def test_certificates(self, backend, scheme, certificate, monkeypatch):
        """A certificate that nobody vouches for is no platform, however the address is written; a trusted one is."""
        with HostileServer(hostile.over_tls(certificate, always(200, b"{}"))) as server:
            url = server.url.replace("http", scheme)
            with pytest.raises(PrefactorTransportError, match="certificate"):
                ping(backend, url)
            assert server.requests == []
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            _verifying_context.cache_clear()
            assert ping(backend, url) == {}
        _verifying_context.cache_clear()

    @on_both
    def test_an_address_that_changes(self, backend, certificate):
        """A client that has begun without TLS trusts nobody with it."""

        async def use(client):
            await client.validate_token()
            client.config.api_url = secure.url.replace("http", "https")
            await client.close()
            with pytest.raises(PrefactorTransportError, match="certificate"):
                await client.validate_token()

        with (
            HostileServer(always(200, b"{}")) as plain,
            HostileServer(hostile.over_tls(certificate, always(200, b"{}"))) as secure,
        ):
            using(backend, plain.url, use)
            assert secure.requests == []

    @on_both
    def test_proxies(self, backend, monkeypatch):
        """The variables that all programs share name the proxy; this machine itself is never asked for through one."""
        with HostileServer(always(200, b"{}")) as server, HostileServer(always(200, b'{"via": 1}')) as proxy:
            for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            assert ping(backend, server.url) == {}
            assert ping(backend, "http://platform.test") == {"via": 1}
            assert proxy.requests[0].target == "http://platform.test/api/v1/ping"

    @on_both
    def test_an_unusable_proxy(self, backend, monkeypatch):
        """It is said, and its password is not."""
        monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(PrefactorClientError, match="HTTP_PROXY") as raised:
            ping(backend, "http://platform.test")
        assert "secret" not in str(raised.value)

    @on_both
    def test_answers_are_read_as_they_are(self, backend):
        """What the platform has stored is not touched, though our token stands in it."""
        body = b'{"status": "success", "agent": "the agent"}'
        with HostileServer(always(200, body)) as server:
            assert ping(backend, server.url, api_token="agent") == {"status": "success", "agent": "the agent"}

    @pytest.mark.parametrize("token", ['se"cret-token', "se\\cret-token", "secret-token\n", "", None])
    @on_both
    def test_a_renewed_token(self, backend, token):
        """One that is quoted is not shown, whatever is in it; one that is none is refused without being shown."""
        quoted = json.dumps(
            {"status": "error", "code": "c", "message": f"bad {token}", "errors": {"t": [token]}}
        )

        async def use(client):
            client.config.api_token = token
            with pytest.raises(PrefactorHttpError) as raised:
                await client.validate_token()
            return raised.value

        with HostileServer(always(422, quoted.encode())) as server:
            error = using(backend, server.url, use)
        for text in everything_about(error):
            assert "cret-token" not in text

    def test_a_second_event_loop(self):
        """A client outlives the event loop it was first used in; closing it in another one is no error."""
        with HostileServer(always(200, b"{}")) as server:
            client = PrefactorHttpClient(config(server.url))
            for backend in ("asyncio", "trio", "asyncio"):

                async def once():
                    assert await client.validate_token() == {}
                    await client.close()

                anyio.run(once, backend=backend)
            anyio.run(client.close)

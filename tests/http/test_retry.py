"""When a failed call is tried again: how often, for what, how long after; and that giving up is prompt and clean."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import anyio
import pytest
import trio
from hostile_server import HostileServer, always, answering, closing_at_once, response
from hypothesis import given
from hypothesis import strategies as st
from patience import within

from prefactor_trace.http import (
    HttpClientConfig,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorHttpClient,
    PrefactorNotFoundError,
    PrefactorResponseContractError,
    PrefactorRetryExhaustedError,
    PrefactorTransportError,
)
from prefactor_trace.http.retry import RetryHandler

TOKEN = "pf_0123456789abcdefghij"
PING = "/api/v1/ping"
GOOD = response(200, b'{"status": "success"}')

on_both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def config(url="http://127.0.0.1:1", **settings):
    """Settings that do not wait long."""
    quick = {"request_timeout": 5.0, "initial_retry_delay": 0.01, "max_retry_delay": 0.02}
    return HttpClientConfig(url, TOKEN, **(quick | settings))


def ping(backend, server, **settings):
    async def main():
        async with PrefactorHttpClient(config(server.url, **settings)) as client:
            return await client.validate_token()

    return anyio.run(main, backend=backend)


def refusing(status, times, headers=None):
    """Refuse so many requests, and then be kind."""
    number = itertools.count()
    body = json.dumps({"status": "error", "code": "c", "message": f"refused with {status}"}).encode()
    return answering(lambda _request: response(status, body, headers) if next(number) < times else GOOD)


class TestAttempts:
    @on_both
    @pytest.mark.parametrize("max_retries", [1, 2, 5])
    def test_one_more_than_retries(self, backend, max_retries):
        """The error says which call, how many attempts and how the last one failed; nothing else retries."""
        with HostileServer(refusing(503, 99)) as server:
            with pytest.raises(PrefactorRetryExhaustedError) as raised:
                ping(backend, server, max_retries=max_retries)
            assert len(server.requests) == max_retries + 1
        error = raised.value
        assert (type(error.last_error), error.last_error.status_code) == (PrefactorApiError, 503)
        assert error.__cause__ is error.last_error
        assert str(error) == f"GET {PING} failed after {max_retries + 1} attempts: refused with 503"

    @on_both
    def test_no_retries(self, backend):
        """The error itself is raised: there was nothing to be exhausted."""
        with HostileServer(refusing(503, 99)) as server:
            with pytest.raises(PrefactorApiError, match="^refused with 503$"):
                ping(backend, server, max_retries=0)
            assert len(server.requests) == 1

    @on_both
    def test_success_in_the_end(self, backend):
        """The caller never learns of the failures before it."""
        with HostileServer(refusing(503, 3)) as server:
            assert ping(backend, server, max_retries=3) == {"status": "success"}
            assert len(server.requests) == 4

    @on_both
    def test_every_attempt_is_the_same_request(self, backend):
        """Same method, address, body and key: what was done by an attempt whose answer was lost is not done twice."""

        async def main():
            async with PrefactorHttpClient(config(server.url)) as client:
                await client.agent_instances.start("some-id")

        with HostileServer(refusing(503, 2)) as server:
            with pytest.raises(PrefactorResponseContractError):  # the kind answer is not about an instance
                anyio.run(main, backend=backend)
            assert len(server.requests) == 3
            assert len({(each.method, each.target, each.body) for each in server.requests}) == 1
            assert 8 <= len(json.loads(server.requests[0].body)["idempotency_key"]) <= 64

    @on_both
    def test_each_call_has_attempts_of_its_own(self, backend):
        """What an earlier call used up does not count."""

        async def main():
            async with PrefactorHttpClient(config(server.url, max_retries=1)) as client:
                for _ in range(3):
                    with pytest.raises(PrefactorRetryExhaustedError):
                        await client.validate_token()

        with HostileServer(refusing(503, 99)) as server:
            anyio.run(main, backend=backend)
            assert len(server.requests) == 6

    @on_both
    def test_no_answer_is_tried_again(self, backend):
        """Whatever `retry_on_status_codes` is: no status came."""
        with HostileServer(closing_at_once) as server:
            with pytest.raises(PrefactorRetryExhaustedError) as raised:
                ping(backend, server, max_retries=2, retry_on_status_codes=())
            assert server.connections == 3
        assert type(raised.value.last_error) is PrefactorTransportError


class TestStatuses:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    @on_both
    def test_retried_by_default(self, backend, status):
        """The documented five."""
        with HostileServer(refusing(status, 1)) as server:
            assert ping(backend, server) == {"status": "success"}
            assert len(server.requests) == 2

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 413, 422, 425, 501, 505])
    @on_both
    def test_not_retried_by_default(self, backend, status):
        """No other status is, and its error comes as it is."""
        with HostileServer(refusing(status, 1)) as server:
            with pytest.raises(PrefactorApiError, match=f"^refused with {status}$"):
                ping(backend, server)
            assert len(server.requests) == 1

    @on_both
    def test_other_statuses_can_be_named(self, backend):
        """The setting is obeyed in both directions: what it names is retried, and nothing else."""
        with HostileServer(refusing(404, 2)) as server:
            assert ping(backend, server, retry_on_status_codes=(404, 501)) == {"status": "success"}
            assert len(server.requests) == 3
        with HostileServer(refusing(503, 2)) as server:
            with pytest.raises(PrefactorApiError, match="^refused with 503$"):
                ping(backend, server, retry_on_status_codes=(404, 501))
            assert len(server.requests) == 1

    @on_both
    def test_a_change_is_obeyed(self, backend):
        """The settings are read at each call."""

        async def main():
            async with PrefactorHttpClient(config(server.url, max_retries=0)) as client:
                with pytest.raises(PrefactorAuthError):
                    await client.validate_token()
                client.config.retry_on_status_codes = (401,)
                client.config.max_retries = 1
                return await client.validate_token()

        with HostileServer(refusing(401, 2)) as server:
            assert anyio.run(main, backend=backend) == {"status": "success"}

    @on_both
    def test_a_page_of_a_proxy(self, backend):
        """503 is 503, whoever says it in whatever language; a page with status 200 will not become JSON."""
        number = itertools.count()
        page = response(503, b"<html>Bad gateway</html>")
        with HostileServer(answering(lambda _: page if next(number) < 2 else GOOD)) as server:
            assert ping(backend, server) == {"status": "success"}
            assert len(server.requests) == 3
        with HostileServer(always(503, b"<html>Bad gateway</html>")) as server:
            with pytest.raises(PrefactorRetryExhaustedError, match="Bad gateway") as raised:
                ping(backend, server, max_retries=1)
            assert type(raised.value.last_error) is PrefactorResponseContractError
        with HostileServer(always(200, b"<html>Welcome</html>")) as server:
            with pytest.raises(PrefactorResponseContractError, match="Welcome"):
                ping(backend, server)
            assert len(server.requests) == 1


class TestRetryAfter:
    @on_both
    def test_seconds(self, backend):
        """At least that long is waited, though our own delay would be shorter."""
        with HostileServer(refusing(429, 1, {"Retry-After": "1"})) as server:
            start = time.monotonic()
            assert ping(backend, server, max_retry_delay=3.0) == {"status": "success"}
            assert 1.0 <= time.monotonic() - start < within(3.0)

    @on_both
    def test_date(self, backend):
        """Until that moment is waited."""
        moment = int(time.time()) + 2
        with HostileServer(refusing(503, 1, {"Retry-After": formatdate(moment, usegmt=True)})) as server:
            assert ping(backend, server, max_retry_delay=5.0) == {"status": "success"}
            assert moment <= time.time() + 0.01 < moment + 2

    @on_both
    def test_on_a_page_of_a_proxy(self, backend):
        """It counts whatever the body is."""
        number = itertools.count()
        page = response(503, b"<html>", {"Retry-After": "1"})
        with HostileServer(answering(lambda _: page if next(number) < 1 else GOOD)) as server:
            start = time.monotonic()
            assert ping(backend, server, max_retry_delay=3.0) == {"status": "success"}
            assert time.monotonic() - start >= 1.0

    @pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "Sun, 06 Nov 1994 08:49:37 GMT", ""])
    @on_both
    def test_nonsense(self, backend, text):
        """What asks for nothing changes nothing."""
        with HostileServer(refusing(503, 1, {"Retry-After": text})) as server:
            start = time.monotonic()
            assert ping(backend, server) == {"status": "success"}
            assert time.monotonic() - start < within(1.0)

    @pytest.mark.parametrize(
        "text", ["31", "86400", pytest.param(formatdate(4e9, usegmt=True), id="a date"), "1e300"]
    )
    @on_both
    def test_longer_than_we_wait(self, backend, text):
        """The call gives up at once, and the error says what was asked."""
        with HostileServer(refusing(429, 9, {"Retry-After": text})) as server:
            start = time.monotonic()
            with pytest.raises(PrefactorRetryExhaustedError, match=r"asked to wait \S+ s") as raised:
                ping(backend, server, max_retry_delay=30.0)
            assert time.monotonic() - start < within(5.0)
            assert len(server.requests) == 1
        assert raised.value.last_error.retry_after > 30.0

    @on_both
    def test_without_retries(self, backend):
        """The error carries what was asked, for who retries himself."""
        with HostileServer(refusing(429, 9, {"Retry-After": "7"})) as server:
            with pytest.raises(PrefactorApiError) as raised:
                ping(backend, server, max_retries=0)
        assert raised.value.retry_after == 7.0


class TestDelays:
    @given(
        st.integers(0, 10**9),
        st.floats(1e-3, 1e3),
        st.floats(1.0, 1e6),
        st.floats(1.0, 1e300) | st.integers(1, 10**9),
    )
    def test_within_a_quarter_and_never_above_the_longest(self, attempt, initial, ratio, multiplier):
        """For any setting that is taken, and however often it was tried before: nothing overflows."""
        longest = initial * ratio
        settings = config(initial_retry_delay=initial, max_retry_delay=longest, retry_multiplier=multiplier)
        delay = RetryHandler(settings)._delay(attempt)
        assert min(0.749 * initial, longest) <= delay <= longest
        if attempt * len(str(int(multiplier))) < 300:  # the documented formula can be computed
            exact = initial * float(multiplier) ** attempt
            assert min(0.749 * exact, longest) <= delay <= min(1.251 * exact, longest)

    def test_by_chance(self):
        """The delays fill the range of a quarter more or less evenly, so that clients do not come back together."""
        handler = RetryHandler(config(initial_retry_delay=8.0, max_retry_delay=1e9))
        delays = [handler._delay(2) / 32.0 for _ in range(4_000)]
        assert 0.75 <= min(delays) < within(0.76)
        assert 1.24 < max(delays) <= 1.25
        assert sum(delays) / len(delays) == pytest.approx(1.0, abs=0.02)

    def test_growth(self):
        """Between the attempts the documented delays pass, on a clock that needs no time: 1, 2, 4, 8, 8 s."""
        settings = config(max_retries=5, initial_retry_delay=1.0, max_retry_delay=8.0)
        moments = []

        async def fail():
            moments.append(trio.current_time())
            raise PrefactorTransportError("no answer")

        async def main():
            with pytest.raises(PrefactorRetryExhaustedError):
                await RetryHandler(settings).execute(fail, lambda _: True)

        clock = trio.testing.MockClock(autojump_threshold=0)
        anyio.run(main, backend="trio", backend_options={"clock": clock})
        passed = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert len(passed) == 5
        for delay, documented in zip(passed, [1.0, 2.0, 4.0, 8.0, 8.0], strict=True):
            assert 0.749 * documented <= delay <= min(1.251 * documented, 8.001)

    def test_asked_for_more(self):
        """The longer of the two is waited: ours, or what the platform asked for."""
        asked = iter([0.1, 5.0, None])
        moments = []

        async def fail():
            moments.append(trio.current_time())
            error = PrefactorApiError("not now", "busy", 503)
            error.retry_after = next(asked, None)
            raise error

        async def main():
            settings = config(max_retries=3, initial_retry_delay=1.0, max_retry_delay=60.0)
            with pytest.raises(PrefactorRetryExhaustedError):
                await RetryHandler(settings).execute(fail, lambda _: True)

        clock = trio.testing.MockClock(autojump_threshold=0)
        anyio.run(main, backend="trio", backend_options={"clock": clock})
        first, second, third = (later - earlier for earlier, later in itertools.pairwise(moments))
        assert 0.749 <= first <= 1.251
        assert second == pytest.approx(5.0)
        assert 2.999 <= third <= 5.001

    @on_both
    def test_a_seeded_program(self, backend):
        """The sequence a program has asked `random` for goes on as if we were not there."""
        random.seed(7)
        expected = [random.random() for _ in range(3)]
        random.seed(7)
        with HostileServer(refusing(503, 2)) as server:
            ping(backend, server)
        assert [random.random() for _ in range(3)] == expected


class TestHandler:
    @on_both
    def test_arguments_and_result(self, backend):
        """The operation is called with what was given, and its result handed on."""

        async def operation(*args, **kwargs):
            return args, kwargs

        async def main():
            return await RetryHandler(config()).execute(operation, lambda _: True, 1, 2, three=3)

        assert anyio.run(main, backend=backend) == ((1, 2), {"three": 3})

    @on_both
    def test_what_is_not_worth_another(self, backend):
        """It is raised as it is, at once."""
        calls = []

        async def operation():
            calls.append(1)
            raise PrefactorNotFoundError("no", "not_found", 404)

        async def main():
            await RetryHandler(config()).execute(operation, lambda _: False)

        with pytest.raises(PrefactorNotFoundError):
            anyio.run(main, backend=backend)
        assert len(calls) == 1

    @on_both
    def test_any_error_can_be_retried(self, backend):
        """The judge is the caller's, and so may the error be."""

        async def operation():
            raise OSError("disk")

        async def main():
            await RetryHandler(config(max_retries=1)).execute(
                operation, lambda error: isinstance(error, OSError)
            )

        with pytest.raises(PrefactorRetryExhaustedError, match="failed after 2 attempts: disk") as raised:
            anyio.run(main, backend=backend)
        assert type(raised.value.last_error) is OSError


@pytest.fixture
def clean():
    """Return what fails the test if a task or a connection was left: warnings are errors."""
    yield
    gc.collect()


@pytest.fixture
def silent():
    """A server that takes the request and says nothing; `asked` is set when it has it."""
    asked = threading.Event()

    def behave(peer):
        peer.receive()
        asked.set()
        peer.server.stopping.wait()

    with HostileServer(behave) as server:
        yield SimpleNamespace(server=server, asked=asked)


@pytest.mark.usefixtures("clean")
class TestCancellation:
    @on_both
    def test_during_an_attempt(self, backend, silent):
        """It ends the call at once, is no error of ours, and is not tried again; the client can be used after it."""

        async def main():
            async with PrefactorHttpClient(config(silent.server.url, request_timeout=30.0)) as client:
                async with anyio.create_task_group() as group:
                    group.start_soon(client.validate_token)
                    await anyio.to_thread.run_sync(silent.asked.wait)
                    start = time.monotonic()
                    group.cancel_scope.cancel()
                assert time.monotonic() - start < within(2.0)
                silent.asked.clear()
                async with anyio.create_task_group() as group:  # and the connections are as good as before
                    group.start_soon(client.validate_token)
                    await anyio.to_thread.run_sync(silent.asked.wait)
                    group.cancel_scope.cancel()

        anyio.run(main, backend=backend)
        assert len(silent.server.requests) == 2

    @on_both
    def test_during_a_delay(self, backend):
        """The delay of a minute is not waited for."""

        async def main():
            settings = config(initial_retry_delay=60.0, max_retry_delay=60.0)
            attempts = []

            async def fail():
                attempts.append(1)
                raise PrefactorTransportError("no answer")

            with anyio.CancelScope() as scope:

                def judge(_):  # the last thing asked before the delay
                    scope.cancel()
                    return True

                await RetryHandler(settings).execute(fail, judge)
            assert scope.cancelled_caught
            return len(attempts)

        start = time.monotonic()
        assert anyio.run(main, backend=backend) == 1
        assert time.monotonic() - start < within(5.0)

    def test_of_a_task_during_an_attempt(self, silent):
        """`asyncio.Task.cancel` is CancelledError, not an error of ours."""

        async def main():
            async with PrefactorHttpClient(config(silent.server.url, request_timeout=30.0)) as client:
                task = asyncio.create_task(client.validate_token())
                await asyncio.to_thread(silent.asked.wait)
                start = time.monotonic()
                task.cancel("enough")
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.monotonic() - start < within(2.0)
                assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        assert len(silent.server.requests) == 1

    def test_of_a_task_during_a_delay(self):
        """The same while it waits for the next attempt of a call that goes out over the wire."""

        async def main():
            client = PrefactorHttpClient(config(server.url, initial_retry_delay=60.0, max_retry_delay=60.0))
            async with client:
                task = asyncio.create_task(client.validate_token())
                judge = client._is_worth_another

                def judge_and_cancel(error):
                    task.cancel()
                    return judge(error)

                client._is_worth_another = judge_and_cancel
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert asyncio.all_tasks() == {asyncio.current_task()}

        with HostileServer(refusing(503, 99)) as server:
            start = time.monotonic()
            asyncio.run(main())
            assert time.monotonic() - start < within(5.0)
            assert len(server.requests) == 1

    @on_both
    def test_a_limit_of_the_caller(self, backend, silent):
        """The caller's own time limit is the caller's TimeoutError, and no answer of ours is made of it."""

        async def main():
            async with PrefactorHttpClient(config(silent.server.url, request_timeout=30.0)) as client:
                with anyio.fail_after(0.2):
                    await client.validate_token()

        start = time.monotonic()
        with pytest.raises(TimeoutError):
            anyio.run(main, backend=backend)
        assert time.monotonic() - start < within(3.0)
        assert len(silent.server.requests) <= 1

"""`PrefactorHttpClient`: the API's calls, typed, on asyncio and trio."""

from __future__ import annotations

import functools
import json
import time
import zlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from prefactor_trace.http._protocol import (
    SDK_HEADER,
    Meaning,
    headers,
    is_sendable_token,
    meaning_of_status,
    proxy_for,
    retry_after_seconds,
    root_of,
    verifying_context,
)
from prefactor_trace.http.endpoints.agent import AgentClient
from prefactor_trace.http.endpoints.agent_instance import AgentInstanceClient
from prefactor_trace.http.endpoints.agent_span import AgentSpanClient
from prefactor_trace.http.endpoints.bulk import BulkClient
from prefactor_trace.http.exceptions import (
    PrefactorApiError,
    PrefactorClientError,
    PrefactorResponseContractError,
    PrefactorRetryExhaustedError,
    PrefactorTransportError,
    api_error,
)
from prefactor_trace.http.retry import RetryHandler

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

    import httpx
    from typing_extensions import Self

    from prefactor_trace.http.config import HttpClientConfig

__all__ = ["DEFAULT_SDK_HEADER", "PrefactorHttpClient"]

DEFAULT_SDK_HEADER = SDK_HEADER
_SNIPPET_CHARACTERS = 200
_REASON_CHARACTERS = 200
_KEY_LENGTHS = range(8, 65)
# The largest page: 100 spans of what the platform is known to hold, many times over.
_ANSWER_BYTES = 64 * 1024 * 1024


class _Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    retry_after: str | None


class PrefactorHttpClient:
    """A client of the Prefactor API.

    Works on asyncio and trio; one client may be used by many tasks of an event loop. Connections are opened with
    the first call and closed by `close`, or at the end of the `async with` block; in another event loop, new ones
    are opened. No redirect is followed and no cookie kept. A proxy is taken from the variables that all programs
    share (HTTPS_PROXY, NO_PROXY), but never for this machine itself.

        async with PrefactorHttpClient(HttpClientConfig(url, token)) as client:
            instance = await client.agent_instances.get(instance_id)

    Every call may raise the errors of `prefactor_trace.http.exceptions`. What is transient is tried again, as the
    configuration says; the methods that change something do so under one idempotency key, so that it is done once.

    Args:
        config: Address, token, timeouts, retries. The token may be renewed at any time; address and timeouts hold
            from the first call on.
        sdk_header: Value of the header X-Prefactor-SDK, for libraries that stand on this one: `name@version`
            words, the outermost first.
    """

    def __init__(self, config: HttpClientConfig, sdk_header: str | None = None) -> None:
        self.config = config
        self._sdk_header = sdk_header or DEFAULT_SDK_HEADER
        self._http: httpx.AsyncClient | None = None
        self._loop: object = None
        self._retries = RetryHandler(config)
        self.server_time: str | None = None
        """The header Date of the last answer."""
        self._agents = AgentClient(self)
        self._agent_instances = AgentInstanceClient(self)
        self._agent_spans = AgentSpanClient(self)
        self._bulk = BulkClient(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def agents(self) -> AgentClient:
        """The calls about agents."""
        return self._agents

    @property
    def agent_instances(self) -> AgentInstanceClient:
        """The calls about instances, which are runs of agents."""
        return self._agent_instances

    @property
    def agent_spans(self) -> AgentSpanClient:
        """The calls about spans, which are steps of runs."""
        return self._agent_spans

    @property
    def bulk(self) -> BulkClient:
        """Many calls in one request."""
        return self._bulk

    async def close(self) -> None:
        """Close the connections. A call after that opens new ones."""
        from anyio.lowlevel import current_token

        http, self._http = self._http, None
        if (
            http is not None and self._loop == current_token()
        ):  # those of another event loop have ended with it
            await http.aclose()

    async def validate_token(self) -> dict[str, Any]:
        """Ask whether the token is good, and return the answer as it came.

        GET /api/v1/ping

        Raises:
            PrefactorAuthError: It is not.
        """
        return await self.request("GET", "/api/v1/ping")

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        json_data: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Make any call of the API, and return the JSON object of its answer.

        Args:
            method: HTTP method.
            path: Path from the root, such as `/api/v1/ping`, perhaps with a query.
            params: Query parameters.
            json_data: The body. What JSON has no word for, such as a date or a model, is written as pydantic does.
            idempotency_key: 8 to 64 characters; stands in the body, where the platform reads it (contract 1.7), or
                among the query parameters if there can be no body. Without one, what is tried again may be done twice.

        Raises:
            PrefactorApiError: The platform refused it; see its subclasses.
            PrefactorRetryExhaustedError: Every attempt failed.
            PrefactorResponseContractError: The answer is not the API's.
            PrefactorClientError: Such a request cannot be made: the body is not JSON, the path is none.
            ValueError: The idempotency key is too short or too long.
        """
        if idempotency_key is not None:
            key = {"idempotency_key": checked_key(idempotency_key)}
            if method.upper() == "GET":
                params = {**(params or {}), **key}
            else:
                json_data = {**(json_data or {}), **key}
        body = None if json_data is None else _encoded(json_data, path)
        try:
            answer: dict[str, Any] = await self._retries.execute(
                self._attempt, self._is_worth_another, method, path, params, body
            )
        except PrefactorRetryExhaustedError as error:
            raise PrefactorRetryExhaustedError(
                f"{method} {path} {error}", error.last_error
            ) from error.last_error
        return answer

    def new_key(self) -> str:
        """Return an idempotency key that nobody has used: 34 to 64 characters."""
        prefix = self.config.default_idempotency_key
        return f"{prefix}-{uuid4().hex}" if prefix else str(uuid4())

    def _open(self) -> httpx.AsyncClient:
        import httpx  # a tenth of a second; whoever never calls need not wait for it
        from anyio.lowlevel import current_token

        loop = current_token()
        if self._http is None or self._loop != loop:  # connections belong to the event loop that opened them
            config = self.config
            root = root_of(config.api_url)
            self._http = httpx.AsyncClient(
                base_url=root,
                timeout=httpx.Timeout(config.request_timeout, connect=config.connect_timeout),
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                verify=_tls_context(root),
                proxy=proxy_for(root),
                trust_env=False,
            )
            self._loop = loop
        return self._http

    def _is_worth_another(self, error: Exception) -> bool:
        if isinstance(error, (PrefactorApiError, PrefactorResponseContractError)):
            return error.status_code in self.config.retry_on_status_codes
        return isinstance(error, PrefactorTransportError)

    async def _attempt(
        self, method: str, path: str, params: dict[str, Any] | None, body: bytes | None
    ) -> dict[str, Any]:
        answer = await self._exchange(self._request(method, path, params, body), path)
        try:
            return _read(answer, path, self.without_token)
        except (PrefactorApiError, PrefactorResponseContractError) as error:
            error.retry_after = retry_after_seconds(answer.retry_after, time.time())
            raise

    def _request(
        self, method: str, path: str, params: dict[str, Any] | None, body: bytes | None
    ) -> httpx.Request:
        import httpx

        token = self.config.api_token  # asked for each time: it may be renewed while the client is in use
        if not is_sendable_token(token):  # the HTTP library would quote it
            raise PrefactorClientError(
                "api_token is no token: it has a space, a line end, or nothing at all in it"
            )
        # Anything but a path might name another host, which must not get the token.
        if not path.startswith("/") or not (method.isascii() and method.isalpha()):
            raise PrefactorClientError(f"{method!r} and {path!r} are not a method and a path")
        try:
            http = self._open()
            url = httpx.URL(root_of(str(http.base_url)) + path)
            if params:
                url = url.copy_merge_params(params)
            ours = headers(token, self._sdk_header) | {"Accept-Encoding": "gzip"}
            return http.build_request(method, url, content=body, headers=ours)
        except (httpx.InvalidURL, ValueError, TypeError, OSError) as error:
            reason = str(error)[:_REASON_CHARACTERS]
            raise PrefactorClientError(f"{path[:_REASON_CHARACTERS]} cannot be asked: {reason}") from None

    async def _exchange(self, request: httpx.Request, path: str) -> _Answer:
        import anyio
        import httpx

        limit = self.config.request_timeout
        too_late = f"no whole answer from {path} within {limit:g} s"
        raw = bytearray()
        trouble = None
        try:
            with anyio.move_on_after(limit) as scope:  # httpx bounds each read, but not the whole answer
                response = await self._open().send(request, stream=True)
                try:
                    async for chunk in response.aiter_raw():
                        raw += chunk
                        if len(raw) > _ANSWER_BYTES:
                            scope.cancel()  # and read on: so that everything below comes to its end properly
                finally:
                    await response.aclose()
        except httpx.TimeoutException:
            trouble = too_late
        except (httpx.HTTPError, OSError) as error:
            trouble = f"no answer from {path} ({self._reason(error)})"
        # Raised here, so that the error does not hang on it: it quotes what the server said, and so perhaps the token.
        if trouble is not None:
            raise PrefactorTransportError(trouble)
        if len(raw) > _ANSWER_BYTES:
            raise _too_large(path)
        if scope.cancelled_caught:
            raise PrefactorTransportError(too_late)
        self.server_time = response.headers.get("date")
        body = _unpacked(bytes(raw), response.headers.get("content-encoding"), path)
        return _Answer(response.status_code, body, response.headers.get("retry-after"))

    def without_token(self, text: str) -> str:
        """Return *text* without our token in it: a server that quotes what it was sent must not spread it."""
        return text.replace(self.config.api_token, "[token]")

    def _reason(self, error: BaseException) -> str:
        """Return what went wrong in the words of the deepest error: TLS hides its reason there."""
        name = type(error).__name__
        while not str(error) and (deeper := error.__cause__ or error.__context__) is not None:
            error = deeper
        words = self.without_token(str(error))
        return f"{name}: {words[:_REASON_CHARACTERS]}" if words else name


_verifying_context = functools.cache(verifying_context)


def _tls_context(root: str) -> ssl.SSLContext:
    import ssl

    # Without TLS nothing needs to be trusted; should it come to TLS all the same, nothing is.
    return _verifying_context() if root.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _unpacked(raw: bytes, encoding: str | None, path: str) -> bytes:
    coding = (encoding or "identity").lower()
    if coding == "identity":
        return raw
    if coding not in ("gzip", "x-gzip"):
        raise PrefactorResponseContractError(f"the answer from {path} is packed in a way we did not ask for")
    unpacking = zlib.decompressobj(wbits=31)
    try:
        body = unpacking.decompress(raw, _ANSWER_BYTES + 1)
    except zlib.error:
        raise PrefactorTransportError(
            f"no whole answer from {path} (DecodingError: it is not gzip)"
        ) from None
    if len(body) > _ANSWER_BYTES:
        raise _too_large(path)
    if not unpacking.eof:
        raise PrefactorTransportError(f"no whole answer from {path} (DecodingError: it is cut off)")
    return body


def _too_large(path: str) -> PrefactorResponseContractError:
    return PrefactorResponseContractError(f"the answer from {path} is over {_ANSWER_BYTES >> 20} MiB")


def _read(answer: _Answer, path: str, without_token: Callable[[str], str]) -> dict[str, Any]:
    status = answer.status
    unreadable = None
    try:
        body = json.loads(answer.body)
        if status >= 400 and isinstance(body, dict):
            body = _cleaned(body, without_token)
    except (ValueError, RecursionError) as error:
        # Without what it holds: the whole body.
        unreadable = ValueError(getattr(error, "msg", None) or getattr(error, "reason", None) or "too deep")
    if unreadable is not None:
        breach = _breach(f"expected JSON from {path}, but got {status}", answer, without_token)
        breach.cause = unreadable
        raise breach from unreadable
    if not isinstance(body, dict):
        raise _breach(f"expected a JSON object from {path}, but got {status}", answer, without_token)
    if meaning_of_status(status) is Meaning.SUCCESS:
        return body
    if status < 400:
        what = f"{path} answered {status}; is this the address of a Prefactor API?"
        raise _breach(what, answer, without_token)
    raise api_error(status, body)


def _cleaned(value: Any, without_token: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return without_token(value)
    if isinstance(value, dict):
        return {without_token(key): _cleaned(each, without_token) for key, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each, without_token) for each in value]
    return value


def _breach(
    message: str, answer: _Answer, without_token: Callable[[str], str]
) -> PrefactorResponseContractError:
    # First the token, then the cut: half a token is one, too.
    text = without_token(answer.body.decode("utf-8", "replace"))
    snippet = " ".join(text[: 8 * _SNIPPET_CHARACTERS].split())
    if len(snippet) > _SNIPPET_CHARACTERS:
        snippet = snippet[:_SNIPPET_CHARACTERS] + "..."
    return PrefactorResponseContractError(
        f"{message}: {snippet}" if snippet else message,
        status_code=answer.status,
        body_snippet=snippet or None,
    )


def checked_key(key: str) -> str:
    """Return *key*. Raises ValueError if its length is not 8 to 64 characters."""
    if len(key) not in _KEY_LENGTHS:
        raise ValueError(f"an idempotency key has 8 to 64 characters, not {len(key)}")
    return key


def _encoded(body: dict[str, Any], path: str) -> bytes:
    from pydantic_core import to_jsonable_python

    try:
        return json.dumps(body, default=to_jsonable_python, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PrefactorClientError(f"the body for {path} cannot be written as JSON: {error}") from error

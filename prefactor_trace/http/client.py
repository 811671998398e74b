"""`PrefactorHttpClient`: the API's calls, typed, on asyncio and trio."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefactor_trace.http._protocol import (
    SDK_HEADER,
    Meaning,
    headers,
    meaning_of_status,
    retry_after_seconds,
    root_of,
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
    from types import TracebackType

    import httpx
    from typing_extensions import Self

    from prefactor_trace.http.config import HttpClientConfig

__all__ = ["DEFAULT_SDK_HEADER", "PrefactorHttpClient"]

DEFAULT_SDK_HEADER = SDK_HEADER
_SNIPPET_CHARACTERS = 200
_KEY_LENGTHS = range(8, 65)


class PrefactorHttpClient:
    """A client of the Prefactor API.

    Works on asyncio and trio; one client may be used by many tasks of one event loop. Connections are opened with
    the first call and closed by `close`, or at the end of the `async with` block.

        async with PrefactorHttpClient(HttpClientConfig(url, token)) as client:
            instance = await client.agent_instances.get(instance_id)

    Every call may raise the errors of `prefactor_trace.http.exceptions`. What is transient is tried again, as the
    configuration says, and under the same idempotency key, so nothing is done twice.

    Args:
        config: Address, token, timeouts, retries.
        sdk_header: Value of the header X-Prefactor-SDK, for libraries that stand on this one: `name@version`
            words, the outermost first.
    """

    def __init__(self, config: HttpClientConfig, sdk_header: str | None = None) -> None:
        self.config = config
        self._sdk_header = sdk_header or DEFAULT_SDK_HEADER
        self._http: httpx.AsyncClient | None = None
        self._retries = RetryHandler(config)
        self._agents = AgentClient(self)
        self._agent_instances = AgentInstanceClient(self)
        self._agent_spans = AgentSpanClient(self)
        self._bulk = BulkClient(self)

    async def __aenter__(self) -> Self:
        self._open()
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
        if self._http is not None:
            http, self._http = self._http, None
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
            path: Path from the root, such as `/api/v1/ping`.
            params: Query parameters.
            json_data: The body. What JSON has no word for, such as a date or a model, is written as pydantic does.
            idempotency_key: 8 to 64 characters; stands in the body, where the platform reads it (contract 1.7).

        Raises:
            PrefactorApiError: The platform refused it; see its subclasses.
            PrefactorRetryExhaustedError: Every attempt failed.
            PrefactorResponseContractError: The answer is not the API's.
            PrefactorClientError: The body is not JSON.
            ValueError: The idempotency key is too short or too long.
        """
        if idempotency_key is not None:
            json_data = {**(json_data or {}), "idempotency_key": checked_key(idempotency_key)}
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
        """Return an idempotency key that nobody has used: 32 to 64 characters."""
        prefix = self.config.default_idempotency_key
        return f"{prefix}-{uuid4().hex}" if prefix else str(uuid4())

    def _open(self) -> httpx.AsyncClient:
        import httpx  # a tenth of a second; whoever never calls need not wait for it

        if self._http is None:
            config = self.config
            self._http = httpx.AsyncClient(
                headers=headers(config.api_token, self._sdk_header),
                timeout=httpx.Timeout(config.request_timeout, connect=config.connect_timeout),
            )
        return self._http

    def _is_worth_another(self, error: Exception) -> bool:
        if isinstance(error, (PrefactorApiError, PrefactorResponseContractError)):
            return error.status_code in self.config.retry_on_status_codes
        return isinstance(error, PrefactorTransportError)

    async def _attempt(
        self, method: str, path: str, params: dict[str, Any] | None, body: bytes | None
    ) -> dict[str, Any]:
        response = await self._exchange(method, path, params, body)
        try:
            return self._read(response, path)
        except (PrefactorApiError, PrefactorResponseContractError) as error:
            error.retry_after = retry_after_seconds(response.headers.get("retry-after"), time.time())
            raise

    async def _exchange(
        self, method: str, path: str, params: dict[str, Any] | None, body: bytes | None
    ) -> httpx.Response:
        import anyio
        import httpx

        http = self._open()
        url = root_of(self.config.api_url) + path
        limit = self.config.request_timeout
        try:
            with anyio.fail_after(limit):  # httpx bounds each read, but not the whole answer
                return await http.request(method, url, params=params, content=body)
        except (TimeoutError, httpx.TimeoutException):
            raise PrefactorTransportError(f"no whole answer from {path} within {limit:g} s") from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise PrefactorTransportError(f"no answer from {path} ({why})") from error

    def _read(self, response: httpx.Response, path: str) -> dict[str, Any]:
        status = response.status_code
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError) as error:
            raise self._breach(f"expected JSON from {path}, but got {status}", response, error) from error
        if not isinstance(body, dict):
            raise self._breach(f"expected a JSON object from {path}, but got {status}", response)
        meaning = meaning_of_status(status)
        if meaning is Meaning.SUCCESS:
            return body
        if status < 400:
            raise self._breach(f"{path} answered {status}; is this the address of a Prefactor API?", response)
        raise api_error(status, self._without_token(body))

    def _breach(
        self, message: str, response: httpx.Response, cause: Exception | None = None
    ) -> PrefactorResponseContractError:
        # Cut first: a page may be long. Some characters more than needed, so that no half token is left at the end.
        token = self.config.api_token
        text = response.content[: 4 * (_SNIPPET_CHARACTERS + len(token))].decode("utf-8", "replace")
        snippet = " ".join(text.replace(token, "[token]").split())
        if len(snippet) > _SNIPPET_CHARACTERS:
            snippet = snippet[:_SNIPPET_CHARACTERS] + "..."
        return PrefactorResponseContractError(
            f"{message}: {snippet}" if snippet else message,
            status_code=response.status_code,
            body_snippet=snippet or None,
            cause=cause,
        )

    def _without_token(self, body: Any) -> Any:
        """Return *body* without our token in it: a server that quotes what it was sent must not spread it."""
        if isinstance(body, str):
            return body.replace(self.config.api_token, "[token]")
        if isinstance(body, dict):
            return {self._without_token(key): self._without_token(value) for key, value in body.items()}
        if isinstance(body, list):
            return [self._without_token(each) for each in body]
        return body


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

"""What all endpoints do: make paths, bodies and keys, and read answers."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from prefactor_trace.http.exceptions import PrefactorResponseContractError
from prefactor_trace.http.models.base import ApiResponse, ListResponse, Page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefactor_trace.http.client import PrefactorHttpClient

Model = TypeVar("Model", bound=BaseModel)


class Endpoint:
    """Base of the endpoint clients."""

    def __init__(self, http_client: PrefactorHttpClient) -> None:
        self._client = http_client

    async def _read(self, path: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return await self._client.request("GET", "/api/v1/" + path, params=_query(parameters or {}))

    async def _write(
        self, method: str, path: str, body: Mapping[str, Any], idempotency_key: str | None
    ) -> dict[str, Any]:
        """Send *body* with a key beside its fields: the given one, or a new one for all attempts of this call."""
        key = self._client.new_key() if idempotency_key is None else idempotency_key
        return await self._client.request(
            method, "/api/v1/" + path, json_data=dict(body), idempotency_key=key
        )

    def _details(self, response: dict[str, Any], kind: type[Model], operation: str) -> Model:
        """Read the thing that an answer is about."""
        envelope = self._parsed(ApiResponse[kind], response, operation)  # type: ignore[valid-type]
        thing: Model = envelope.details
        return thing

    def _page(self, response: dict[str, Any], kind: type[Model], operation: str) -> Page[Model]:
        """Read a page of a list. The platform may leave out where it stands."""
        frame = {"pagination": None, "sorting": None, **response}
        return Page(self._parsed(ListResponse[kind], frame, operation))  # type: ignore[valid-type]

    def _parsed(self, kind: type[Model], answer: object, operation: str) -> Model:
        """Read *answer*. Raises PrefactorResponseContractError, with what is wrong, if it does not fit."""
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
            wrong = self._client.without_token("; ".join(mistakes[:3]))
            cause = error if self._client.without_token(str(error)) == str(error) else None
        raise PrefactorResponseContractError(
            f"the answer to {operation} is not what it should be: {wrong}", cause=cause
        ) from cause


def segment(identifier: str) -> str:
    """Return *identifier* as one segment of a path. Raises ValueError for what would lead to another call."""
    if identifier is None or str(identifier) in ("", ".", ".."):
        raise ValueError(f"an id is needed, not {identifier!r}")
    return quote(str(identifier), safe="")


def body_of(request: BaseModel) -> dict[str, Any]:
    """Return a request's fields that were given."""
    return request.model_dump(by_alias=True, exclude_none=True)


def plain(value: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return a model or a mapping as a mapping. What stands in a mapping is the caller's, and the platform's to judge."""
    return body_of(value) if isinstance(value, BaseModel) else dict(value)


def rfc3339(moment: datetime | None) -> str | None:
    """Write *moment* in UTC, with Z (contract section 1.8). Without a time zone it is local, as ever in Python."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise TypeError(f"a time is a datetime, not {type(moment).__name__}")
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def paging(sorting: str | None, offset: int | None, page_size: int | None) -> dict[str, Any]:
    """Return the query parameters that every list takes (contract section 5.1)."""
    return {"sorting": sorting, "pagination[offset]": offset, "pagination[page_size]": page_size}


def _query(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    given = {name: value for name, value in parameters.items() if value is not None and value is not False}
    return {name: "true" if value is True else value for name, value in given.items()} or None

"""The HTTP face of the operations: requests to fields, answers and refusals to JSON.

Runs on the event loop; the guard has checked and bounded the body before. Every answer is a JSON object, whatever
happens: the official clients take anything else for a broken server.

Changes are made on the event loop itself. They are short and one at a time in any case: a bulk of 500 spans takes about
15 ms, and 50 more when SQLite folds its log into the file, every 16 MB. Handing them to a thread was measured: it took a
third of the throughput of single calls (1,450 to 970 a second) and a fifth of that of bulk. Reads may be long, so they
go to Starlette's threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from prefactor_trace.server._fields import Json, Refusal, invalid
from prefactor_trace.server._guard import refused
from prefactor_trace.server._operations import OPERATIONS, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from prefactor_trace.server._store import Store

_PREFIX = "/api/v1"
_BULK_KEY_LENGTHS = range(8, 65)  # contract section 1.7
_CODES = {404: "not_found", 405: "method_not_allowed"}


def api_routes(store: Store) -> list[BaseRoute]:
    """Return the routes of the API over *store*."""
    routes: list[BaseRoute] = [
        Route(_PREFIX + operation.path, _endpoint(store, operation), methods=[operation.method])
        for operation in OPERATIONS.values()
    ]
    return [Route(f"{_PREFIX}/bulk", _bulk_endpoint(store), methods=["POST"]), *routes]


def _endpoint(store: Store, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            if operation.is_read:
                asked = {**request.query_params, **request.path_params}
                return _success(await run_in_threadpool(store.perform, operation, asked))
            said = {**await _body(request), **request.path_params}
            return _success(store.perform(operation, said))
        except Refusal as refusal:
            return refused(refusal)

    return answer


def _bulk_endpoint(store: Store) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            items = _bulk_items(await _body(request))
            return _success({"outputs": store.perform_all(items)})
        except Refusal as refusal:
            return refused(refusal)

    return answer


async def _body(request: Request) -> Json:
    raw = await request.body()
    if not raw:
        return {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "bad_request", f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "bad_request", "the body is not a JSON object")
    return body


def _bulk_items(body: Json) -> list[tuple[str, Operation, Json]]:
    """Check the items as a whole: if anything is wrong with their frame, none of them is done."""
    listed = body.get("items")
    if not isinstance(listed, list) or not listed:
        raise invalid(items="is not a list of at least one item")
    wrong: Json = {}
    items: dict[str, tuple[str, Operation, Json]] = {}
    for place, item in enumerate(listed):
        if said := _mistake_in_item(item, items):
            wrong[str(place)] = said
        else:
            items[item["idempotency_key"]] = (item["idempotency_key"], OPERATIONS[item["_type"]], item)
    if wrong:
        raise invalid(items=wrong)
    return list(items.values())


def _mistake_in_item(item: Any, seen: dict[str, Any]) -> Json | None:
    if not isinstance(item, dict):
        return {"_type": ["is required"]}
    if not isinstance(item.get("_type"), str) or item["_type"] not in OPERATIONS:
        return {"_type": ["is not an operation"]}
    key = item.get("idempotency_key")
    if not isinstance(key, str) or len(key) not in _BULK_KEY_LENGTHS:
        return {"idempotency_key": ["is not a string of 8 to 64 characters"]}
    if key in seen:
        return {"idempotency_key": ["is not unique in the request"]}
    return None


def _success(answer: Json) -> Response:
    return Response(orjson.dumps({"status": "success", **answer}), media_type="application/json")


async def no_such_page(_request: Request, error: Exception) -> Response:
    """Answer for a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "bad_request")
    response = refused(Refusal(error.status_code, code, error.detail))
    response.headers.update(error.headers or {})
    return response


async def failed(_request: Request, _error: Exception) -> Response:
    """Answer for a mistake of ours; the traceback is in the log, not in the answer."""
    return refused(Refusal(500, "internal_error", "the server made a mistake; its log tells more"))

"""Everything that can be asked of the platform: each operation of the API once, for single calls and bulk alike.

In: a `Transaction` and the request's fields: body, path and query parameters side by side, as bulk has them
(contract section 4). Out: the answer without its `status`. An operation raises its Refusal before it writes anything,
so nothing has to be undone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import orjson

from prefactor_trace.server import _catalogue, _fields, _instances, _spans
from prefactor_trace.server._catalogue import list_from, show_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace.server._fields import Json
    from prefactor_trace.server._transaction import Transaction


class Operation(NamedTuple):
    """One thing that can be asked.

    Attributes:
        name: Its `_type` in bulk.
        method: Its HTTP method.
        path: Its path below `/api/v1`.
        act: Does it.
        complete: Adds to the answer what can be read again, and so need not be kept for a repeated request.
        keeps_keys: It sees to idempotency by itself.
    """

    name: str
    method: str
    path: str
    act: Callable[[Transaction, Json], Json]
    complete: Callable[[Transaction, Json], Json] | None = None
    keeps_keys: bool = False

    @property
    def is_read(self) -> bool:
        """Whether it leaves everything as it is."""
        return self.method == "GET"


def perform(tx: Transaction, operation: Operation, fields: Json) -> Json:
    """Do *operation*; if its idempotency key came before, answer as the first time and do nothing.

    A key belongs to one operation: the same key may name a start and a finish (contract section 13 no. 7).
    """
    key = None if operation.is_read or operation.keeps_keys else _fields.idempotency_key(fields)
    answer = operation.act(tx, fields) if key is None else _act_once(tx, operation, fields, key)
    return answer if operation.complete is None else operation.complete(tx, answer)


def _act_once(tx: Transaction, operation: Operation, fields: Json, key: str) -> Json:
    request = _digest(fields)
    earlier = tx.execute(
        "SELECT request, answer FROM idempotency WHERE operation = ? AND key = ?", (operation.name, key)
    ).fetchone()
    if earlier is None:
        answer = operation.act(tx, fields)
        kept = (operation.name, key, request, orjson.dumps(answer).decode())
        tx.execute("INSERT INTO idempotency (operation, key, request, answer) VALUES (?, ?, ?, ?)", kept)
        return answer
    if earlier[0] != request:
        raise _fields.key_reused()
    first_answer: Json = orjson.loads(earlier[1])
    return first_answer


def _digest(fields: Json) -> bytes:
    said = {name: value for name, value in fields.items() if name not in {"_type", "idempotency_key"}}
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _ping(_tx: Transaction, _fields: Json) -> Json:
    return {}


_INSTANCE = "/agent_instance/{agent_instance_id}"
_SPAN = "/agent_spans/{agent_span_id}"
_SCHEMA = "/agent_schema_version/{agent_schema_version_id}"

_ALL = (  # where two paths match, the first one is taken
    Operation("ping", "GET", "/ping", _ping),
    Operation("agents/list", "GET", "/agent", _catalogue.list_agents),
    Operation("agents/show", "GET", "/agent/show", _catalogue.show_agent),
    Operation("agents/get", "GET", "/agent/{agent_id}", _catalogue.show_agent),
    Operation("agents/create", "POST", "/agent", _catalogue.create_agent),
    Operation("agents/update", "PUT", "/agent/{agent_id}", _catalogue.update_agent),
    Operation("agents/delete", "DELETE", "/agent/{agent_id}", _catalogue.delete_agent),
    Operation("agents/retire", "POST", "/agent/{agent_id}/retire", _catalogue.retire_agent),
    Operation("agents/reinstate", "POST", "/agent/{agent_id}/reinstate", _catalogue.reinstate_agent),
    Operation("agent_instances/list", "GET", "/agent_instance", _instances.list_),
    Operation("agent_instances/show", "GET", "/agent_instance/show", _instances.show),
    Operation(
        "agent_instances/register",
        "POST",
        "/agent_instance/register",
        _instances.register,
        _instances.with_versions,
    ),
    Operation("agent_instances/get", "GET", _INSTANCE, _instances.show),
    Operation("agent_instances/start", "POST", f"{_INSTANCE}/start", _instances.start),
    Operation("agent_instances/finish", "POST", f"{_INSTANCE}/finish", _instances.finish),
    Operation("agent_instances/terminate", "POST", f"{_INSTANCE}/terminate", _instances.terminate),
    Operation(
        "agent_instances/record_quality", "POST", f"{_INSTANCE}/record_quality", _instances.record_quality
    ),
    Operation("agent_instances/agent_context", "GET", f"{_INSTANCE}/agent_context", _instances.agent_context),
    Operation("agent_spans/list", "GET", "/agent_spans", _spans.list_),
    Operation("agent_spans/create", "POST", "/agent_spans", _spans.create, keeps_keys=True),
    Operation("agent_spans/get", "GET", _SPAN, _spans.get),
    Operation("agent_spans/finish", "POST", f"{_SPAN}/finish", _spans.finish, keeps_keys=True),
    Operation("environments/list", "GET", "/environment", list_from("environments")),
    Operation("environments/show", "GET", "/environment/show", show_from("environments")),
    Operation("environments/get", "GET", "/environment/{environment_id}", show_from("environments")),
    Operation("environments/create", "POST", "/environment", _catalogue.create_environment),
    Operation("environments/update", "PUT", "/environment/{environment_id}", _catalogue.update_environment),
    Operation("agent_versions/list", "GET", "/agent_version", list_from("agent_versions", of="agent_id")),
    Operation("agent_versions/get", "GET", "/agent_version/{agent_version_id}", show_from("agent_versions")),
    Operation(
        "agent_schema_versions/list",
        "GET",
        "/agent_schema_version",
        list_from("agent_schema_versions", of="agent_id"),
    ),
    Operation("agent_schema_versions/get", "GET", _SCHEMA, show_from("agent_schema_versions")),
    Operation(
        "agent_deployments/list", "GET", "/agent_deployment", list_from("agent_deployments", of="agent_id")
    ),
    Operation(
        "agent_deployments/get",
        "GET",
        "/agent_deployment/{agent_deployment_id}",
        show_from("agent_deployments"),
    ),
    Operation("accounts/list", "GET", "/account", list_from("accounts")),
    Operation("accounts/get", "GET", "/account/{account_id}", show_from("accounts")),
    Operation("api_tokens/list", "GET", "/api_token", list_from("api_tokens")),
    Operation("api_tokens/get", "GET", "/api_token/{api_token_id}", show_from("api_tokens")),
    Operation("pfids/generate", "POST", "/pfid/generate", _catalogue.generate_pfids),
)
OPERATIONS = {operation.name: operation for operation in _ALL}

"""Operations on what stands around the runs: agents, their versions and deployments, environments, the account."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace import _ids
from prefactor_trace.server import _fields, _resources
from prefactor_trace.server._fields import InvalidAction, Json, NotFound, Order, invalid
from prefactor_trace.server._transaction import (
    Listing,
    Transaction,
    first,
    insert,
    list_page,
    new_id,
    refuse_taken,
    update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_ENVIRONMENT_PURPOSES = ("development", "staging", "testing", "production")
_AGENT_TEXTS = ("description", "owner_person_id", "team_id", "risk_profile_id")
_MAX_PFIDS = 1000  # unpublished


def create_agent(tx: Transaction, fields: Json) -> Json:
    """Create an agent."""
    details = _fields.mapping(fields, "details")
    name = _fields.text(details, "name")
    external_identifier = _fields.optional_text(details, "external_identifier")
    texts = {field: _fields.optional_text(details, field) for field in _AGENT_TEXTS}
    refuse_taken(tx, "agents", external_identifier=external_identifier)
    agent_id = new_id(tx, "agents", details)
    insert(
        tx,
        "agents",
        id=agent_id,
        name=name,
        external_identifier=external_identifier,
        updated_at=tx.now,
        **texts,
    )
    return _agent_answer(tx, agent_id)


def update_agent(tx: Transaction, fields: Json) -> Json:
    """Change the fields that are given; null clears all but the name."""
    agent = _agent(tx, fields)
    details = _fields.mapping(fields, "details")
    changes = {field: _fields.optional_text(details, field) for field in _AGENT_TEXTS if field in details}
    name = agent["name"] if details.get("name") is None else _fields.text(details, "name")
    update(tx, "agents", agent["id"], name=name, **changes)
    return _agent_answer(tx, agent["id"])


def retire_agent(tx: Transaction, fields: Json) -> Json:
    """Mark an agent as retired."""
    return _set_retired(tx, _agent(tx, fields), retired=True)


def reinstate_agent(tx: Transaction, fields: Json) -> Json:
    """Undo a retirement."""
    return _set_retired(tx, _agent(tx, fields), retired=False)


def _set_retired(tx: Transaction, agent: Json, *, retired: bool) -> Json:
    if not agent["available_actions"]["retire" if retired else "reinstate"]:
        raise InvalidAction(f"the agent is {'already' if retired else 'not'} retired")
    update(tx, "agents", agent["id"], retired=retired)
    return _agent_answer(tx, agent["id"])


def delete_agent(tx: Transaction, fields: Json) -> Json:
    """Delete an agent that never ran, and return it as it was."""
    agent = _agent(tx, fields)
    if not agent["available_actions"]["delete"]:
        raise InvalidAction("the agent has instances, so it cannot be deleted; retire it")
    tx.execute("DELETE FROM agents WHERE id = ?", (agent["id"],))
    return {"details": agent}


def show_agent(tx: Transaction, fields: Json) -> Json:
    """Return one agent by its id or its external identifier."""
    if fields.get("agent_id") is not None:
        return {"details": _agent(tx, fields)}
    identifier = _fields.external_identifier(fields, instead_of="agent_id")
    found = first(tx, "SELECT id FROM agents WHERE external_identifier = ?", identifier)
    if found is None:
        raise NotFound(f"an agent with the external identifier {identifier}")
    return _agent_answer(tx, found)


def list_agents(tx: Transaction, fields: Json) -> Json:
    """Return a page of agents."""
    tx.settle()
    filters = ("risk_profile_id", "team_id", "owner_person_id")
    wanted = {f"a.{field} = ?": _fields.optional_text(fields, field) for field in filters}
    found, rest = list_page(tx, fields, _AGENTS, wanted)
    counts = _resources.instance_counts(tx.connection)
    return {"summaries": [_resources.agent(row, counts.get(row["id"], {})) for row in found], **rest}


_AGENTS = Listing(
    _resources.AGENTS,
    {name: f"a.{name}" for name in ("id", "name", "inserted_at", "updated_at")},
    Order("inserted_at", "asc"),
    "a.id",
)


def _agent(tx: Transaction, fields: Json) -> Json:
    resource: Json = _agent_answer(tx, _fields.text(fields, "agent_id"))["details"]
    return resource


def _agent_answer(tx: Transaction, agent_id: str) -> Json:
    tx.settle()
    found = _resources.row(tx.connection, f"{_resources.AGENTS} WHERE a.id = ?", agent_id)
    if found is None:
        raise NotFound(f"agent {agent_id}")
    counts = _resources.instance_counts(tx.connection, agent_id)
    return {"details": _resources.agent(found, counts.get(agent_id, {}))}


def create_environment(tx: Transaction, fields: Json) -> Json:
    """Create an environment."""
    details = _fields.mapping(fields, "details")
    columns = {
        "name": _fields.text(details, "name"),
        "description": _fields.optional_text(details, "description"),
        "purpose": _fields.one_of(details, "purpose", _ENVIRONMENT_PURPOSES, "development"),
    }
    external_identifier = _fields.optional_text(details, "external_identifier")
    refuse_taken(tx, "environments", external_identifier=external_identifier)
    environment_id = new_id(tx, "environments", details)
    insert(
        tx,
        "environments",
        id=environment_id,
        external_identifier=external_identifier,
        updated_at=tx.now,
        **columns,
    )
    return {"details": one(tx, "environments", environment_id)}


def update_environment(tx: Transaction, fields: Json) -> Json:
    """Change the fields that are given; null clears the description."""
    environment = one(tx, "environments", _fields.text(fields, "environment_id"))
    details = {**environment, **_fields.mapping(fields, "details")}
    update(
        tx,
        "environments",
        environment["id"],
        name=environment["name"] if details["name"] is None else _fields.text(details, "name"),
        description=_fields.optional_text(details, "description"),
        purpose=_fields.one_of(details, "purpose", _ENVIRONMENT_PURPOSES, environment["purpose"]),
    )
    return {"details": one(tx, "environments", environment["id"])}


def pin_version(tx: Transaction, deployment_id: str, version_id: str) -> None:
    """Make *version_id* the deployment's current version."""
    if (
        first(tx, "SELECT current_version_id FROM agent_deployments WHERE id = ?", deployment_id)
        != version_id
    ):
        update(tx, "agent_deployments", deployment_id, current_version_id=version_id)


def generate_pfids(tx: Transaction, fields: Json) -> Json:
    """Hand out new ids in the account's partition."""
    count = fields.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_PFIDS:
        raise invalid(count=f"is not a whole number of 1 to {_MAX_PFIDS}")
    return {"account_id": tx.account.id, "pfids": [_ids.generate(tx.account.partition) for _ in range(count)]}


class _Table(NamedTuple):
    """A table whose rows are read one by one or as a list, and nothing else."""

    noun: str
    select: str
    resource: Callable[[Transaction, Json], Json]

    @property
    def id_field(self) -> str:
        return f"{self.noun}_id"


_TABLES = {
    "accounts": _Table("account", "SELECT t.*\nFROM accounts t", lambda _tx, row: {"type": "account", **row}),
    "api_tokens": _Table(
        "api_token", "SELECT t.*\nFROM api_tokens t", lambda tx, row: _resources.api_token(row, tx.account.id)
    ),
    "environments": _Table(
        "environment",
        "SELECT t.*\nFROM environments t",
        lambda tx, row: _resources.environment(row, tx.account.id),
    ),
    "agent_deployments": _Table(
        "agent_deployment",
        "SELECT t.*\nFROM agent_deployments t",
        lambda tx, row: {"type": "agent_deployment", "account_id": tx.account.id, **row},
    ),
    "agent_versions": _Table(
        "agent_version",
        _resources.VERSIONS,
        lambda tx, row: _resources.version(tx.connection, row, tx.account.id),
    ),
    "agent_schema_versions": _Table(
        "agent_schema_version",
        _resources.SCHEMA_VERSIONS,
        lambda tx, row: _resources.schema_version(tx.connection, row, tx.account.id),
    ),
}


def one(tx: Transaction, table: str, row_id: str) -> Json:
    """Return one resource of a plain table."""
    kind = _TABLES[table]
    found = _resources.row(tx.connection, f"{kind.select} WHERE t.id = ?", row_id)
    if found is None:
        raise NotFound(f"{kind.noun.replace('_', ' ')} {row_id}")
    return kind.resource(tx, found)


def show_from(table: str) -> Callable[[Transaction, Json], Json]:
    """Return the operation that shows one resource of *table*."""

    def show(tx: Transaction, fields: Json) -> Json:
        return {"details": one(tx, table, _fields.text(fields, _TABLES[table].id_field))}

    return show


def list_from(table: str, of: str | None = None) -> Callable[[Transaction, Json], Json]:
    """Return the operation that lists *table*; *of*: a field that has to say whose rows are wanted."""
    kind = _TABLES[table]
    columns = {"id": "t.id", "inserted_at": "t.inserted_at"}
    listing = Listing(kind.select, columns, Order("inserted_at", "asc"), "t.id")

    def list_(tx: Transaction, fields: Json) -> Json:
        wanted = {} if of is None else {f"t.{of} = ?": _fields.text(fields, of)}
        found, rest = list_page(tx, fields, listing, wanted)
        return {"summaries": [kind.resource(tx, row) for row in found], **rest}

    return list_

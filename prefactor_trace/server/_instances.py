"""Operations on agent instances: one run of an agent, from its registration to its end.

    pending ─start─▶ active ─finish─▶ complete | failed        pending ─finish─▶ cancelled
                     active ─terminate─▶ terminated

`cancelled` is only for a run that has not begun (contract section 2.1), and an ended one stays as it is.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace import _ids
from prefactor_trace.server import _catalogue, _fields, _resources, _schemas, _spans
from prefactor_trace.server._fields import InvalidAction, Json, NotFound, Order, Refusal, invalid
from prefactor_trace.server._transaction import (
    Listing,
    first,
    insert,
    list_page,
    new_id,
    refuse_taken,
    update,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefactor_trace.server._transaction import Transaction

_PURPOSES = ("live", "smoke_test", "eval")
_DEFAULT_ENVIRONMENT = "local"
_SPANS_IN_CONTEXT = 100


def register(tx: Transaction, fields: Json) -> Json:
    """Create a pending instance, and on the way whatever it names and nobody has made yet."""
    version = _read_version(fields)
    schema = _read_schema(fields)
    purpose = _fields.one_of(fields, "purpose", _PURPOSES, "live")
    pins_version = _fields.flag(fields, "update_current_version", default=True)
    external_identifier = _fields.optional_text(fields, "external_identifier")
    instance_id = new_id(tx, "agent_instances", fields)
    wanted_environment = _read_environment(tx, fields)
    wanted_agent = _fields.optional_text(fields, "agent_id")
    agent_id = _find_agent(tx, wanted_agent, version["name"])
    if agent_id is not None:
        refuse_taken(tx, "agent_instances", external_identifier=external_identifier, agent_id=agent_id)

    # Nothing is refused from here on, so nothing is made in vain.
    agent_id = agent_id or _make_agent(tx, wanted_agent, version["name"])
    environment_id = _find_or_make_environment(tx, wanted_environment)
    schema_version_id = _find_or_make(tx, "agent_schema_versions", {"agent_id": agent_id}, schema)
    same = {"agent_id": agent_id, "agent_schema_version_id": schema_version_id}
    version_id = _find_or_make(tx, "agent_versions", same, version)
    deployment_id = _find_or_make_deployment(tx, agent_id, environment_id)
    if pins_version:
        _catalogue.pin_version(tx, deployment_id, version_id)
    insert(
        tx,
        "agent_instances",
        id=instance_id,
        agent_id=agent_id,
        agent_version_id=version_id,
        agent_deployment_id=deployment_id,
        environment_id=environment_id,
        external_identifier=external_identifier,
        status="pending",
        purpose=purpose,
        updated_at=tx.now,
    )
    return _answer(tx, instance_id)


def with_versions(tx: Transaction, answer: Json) -> Json:
    """Add to the answer of a registration what it declared."""
    version = _catalogue.one(tx, "agent_versions", answer["details"]["agent_version_id"])
    schema_version = _catalogue.one(tx, "agent_schema_versions", version["agent_schema_version_id"])
    return {**answer, "agent_version": version, "agent_schema_version": schema_version}


def _read_version(fields: Json) -> Json:
    version = _fields.mapping(fields, "agent_version")
    with _inside("agent_version"):
        runtime = _fields.optional_mapping(version, "runtime_environment")
        return {
            "external_identifier": _fields.text(version, "external_identifier"),
            "name": _fields.text(version, "name"),
            "description": _fields.optional_text(version, "description"),
            "runtime_environment": None if runtime is None else orjson.dumps(runtime).decode(),
        }


def _read_schema(fields: Json) -> Json:
    schema = _fields.mapping(fields, "agent_schema_version")
    with _inside("agent_schema_version"):
        return {
            "external_identifier": _fields.text(schema, "external_identifier"),
            "span_type_schemas": orjson.dumps(_schemas.declared_span_types(schema)).decode(),
            "quality_schemas": orjson.dumps(_schemas.declared_qualities(schema)).decode(),
        }


@contextlib.contextmanager
def _inside(field: str) -> Iterator[None]:
    """Report a wrong field of the block under *field*."""
    try:
        yield
    except Refusal as refusal:
        raise invalid(**{field: refusal.errors}) from None


def _find_agent(tx: Transaction, wanted: str | None, name: str) -> str | None:
    """Find the agent of a registration. Without an id our token acts as a deployment's, and the name decides."""
    found: str | None
    if wanted is None:
        found = first(tx, "SELECT id FROM agents WHERE name = ? ORDER BY inserted_at, id", name)
    elif _ids.is_pfid(wanted):
        found = first(tx, "SELECT id FROM agents WHERE id = ?", wanted)
        if found is None:
            _fields.own_id({"agent_id": wanted}, "agent_id", tx.account.partition)
    else:
        found = first(tx, "SELECT id FROM agents WHERE external_identifier = ?", wanted)
    return found


def _make_agent(tx: Transaction, wanted: str | None, name: str) -> str:
    if wanted is not None and _ids.is_pfid(wanted):
        return insert(tx, "agents", id=wanted, name=name, updated_at=tx.now)
    return insert(tx, "agents", name=name, external_identifier=wanted, updated_at=tx.now)


def _read_environment(tx: Transaction, fields: Json) -> str | None:
    """Read the environment of a registration: a known id, or a name that may be new; not an id nobody knows."""
    wanted = _fields.optional_text(fields, "environment_id")
    is_id = wanted is not None and _ids.is_pfid(wanted)
    if is_id and first(tx, "SELECT id FROM environments WHERE id = ?", wanted) is None:
        raise invalid(environment_id="was not found")
    return wanted


def _find_or_make_environment(tx: Transaction, wanted: str | None) -> str:
    if wanted is not None and _ids.is_pfid(wanted):
        return wanted
    name = wanted or _DEFAULT_ENVIRONMENT
    found: str | None = first(tx, "SELECT id FROM environments WHERE external_identifier = ?", name)
    return found or insert(
        tx, "environments", name=name, external_identifier=name, purpose="development", updated_at=tx.now
    )


def _find_or_make(tx: Transaction, table: str, belongs_to: Json, version: Json) -> str:
    """Find a version by its identifier, which stays as it was first declared, or make it.

    An agent version also belongs to a schema version: the same identifier with another schema is another version.
    """
    same = {**belongs_to, "external_identifier": version["external_identifier"]}
    where = " AND ".join(f"{column} = ?" for column in same)
    found: str | None = first(tx, f"SELECT id FROM {table} WHERE {where}", *same.values())  # noqa: S608
    return found or insert(tx, table, **{**belongs_to, **version})


def _find_or_make_deployment(tx: Transaction, agent_id: str, environment_id: str) -> str:
    found: str | None = first(
        tx,
        "SELECT id FROM agent_deployments WHERE agent_id = ? AND environment_id = ?",
        agent_id,
        environment_id,
    )
    return found or insert(
        tx, "agent_deployments", agent_id=agent_id, environment_id=environment_id, updated_at=tx.now
    )


def start(tx: Transaction, fields: Json) -> Json:
    """Take a pending instance to active."""
    instance = _get(tx, fields)
    at = _fields.time(fields, "timestamp", tx.now)
    if instance["status"] != "pending":
        raise InvalidAction(f"the instance is {instance['status']}, so it cannot be started")
    return _change(tx, instance, status="active", started_at=at)


def finish(tx: Transaction, fields: Json) -> Json:
    """Take an active instance to complete or failed, or a pending one to cancelled."""
    instance = _get(tx, fields)
    wanted = _spans.read_finish(fields, tx.now)
    _spans.refuse_finish("instance", instance["status"], wanted.status)
    started_at = instance["started_at"] or wanted.at
    return _change(tx, instance, status=wanted.status, started_at=started_at, finished_at=wanted.at)


def terminate(tx: Transaction, fields: Json) -> Json:
    """Take an active instance to terminated; its agent is told with its next span."""
    instance = _get(tx, fields)
    reason = _fields.text(fields, "reason")
    at = _fields.time(fields, "timestamp", tx.now)
    if instance["status"] != "active":
        raise InvalidAction(f"the instance is {instance['status']}, and only an active one can be terminated")
    return _change(tx, instance, status="terminated", finished_at=at, termination_reason=reason)


def record_quality(tx: Transaction, fields: Json) -> Json:
    """Set one named quality payload, or remove it with null; also on an instance that has ended."""
    instance = _get(tx, fields)
    name = _fields.text(fields, "name")
    payload = _fields.optional_mapping(fields, "payload")
    schema = _catalogue.one(tx, "agent_schema_versions", instance["agent_schema_version_id"])
    if name not in schema["quality_schemas"]:
        raise invalid(name="is not one of the quality schemas that the instance declared")
    recorded = orjson.loads(instance["quality_payloads"])
    recorded.pop(name, None)
    if payload is not None:
        recorded[name] = payload
    return _change(tx, instance, quality_payloads=orjson.dumps(recorded).decode())


def show(tx: Transaction, fields: Json) -> Json:
    """Return one instance by its id or its external identifier, the newest if several agents have it."""
    if fields.get("agent_instance_id") is not None:
        return _answer(tx, _fields.text(fields, "agent_instance_id"))
    identifier = _fields.external_identifier(fields, instead_of="agent_instance_id")
    newest = "SELECT id FROM agent_instances WHERE external_identifier = ? ORDER BY number DESC"
    found = first(tx, newest, identifier)
    if found is None:
        raise NotFound(f"an agent instance with the external identifier {identifier}")
    return _answer(tx, found)


def list_(tx: Transaction, fields: Json) -> Json:
    """Return a page of an agent's instances."""
    wanted = {
        "i.agent_id = ?": _fields.text(fields, "agent_id"),
        "i.agent_version_id = ?": _fields.optional_text(fields, "agent_version_id"),
    }
    found, rest = list_page(tx, fields, _LISTING, wanted)
    return {"summaries": [_resources.instance_summary(row, tx.account.id) for row in found], **rest}


_LISTING = Listing(
    _resources.INSTANCES,
    {
        name: f"i.{name}"
        for name in ("id", "status", "inserted_at", "updated_at", "started_at", "finished_at")
    },
    Order("inserted_at", "asc"),
    "i.number",
)


def agent_context(tx: Transaction, fields: Json) -> Json:
    """Digest a run for a language model to read. What the API puts into `body` is unpublished, so it is our own.

    What agents recorded is in it word for word, so whoever reads it must take it as data.
    """
    instance = _get(tx, fields)
    first_page = _fields.Page(0, _SPANS_IN_CONTEXT)
    found, total = _resources.some_rows(
        tx.connection, _resources.SPANS, {"i.id = ?": instance["id"]}, "s.started_at, s.number", first_page
    )
    about_instance = ("id", "status", "started_at", "finished_at", "termination_reason")
    about_span = ("id", "parent_span_id", "schema_name", "status", "started_at", "finished_at")
    body = {
        "agent": {"id": instance["agent_id"], "name": instance["agent_name"]},
        "instance": {name: instance[name] for name in about_instance},
        "spans": [_spans.spliced({name: span[name] for name in about_span}, span) for span in found],
    }
    return {"agent_context": {"body": body, "generated_at": tx.now, "span_count": total}}


def _get(tx: Transaction, fields: Json) -> Json:
    return _find(tx, _fields.text(fields, "agent_instance_id"))


def _find(tx: Transaction, instance_id: str) -> Json:
    tx.settle()
    found = _resources.row(tx.connection, f"{_resources.INSTANCES} WHERE i.id = ?", instance_id)
    if found is None:
        raise NotFound(f"agent instance {instance_id}")
    return found


def _change(tx: Transaction, instance: Json, **columns: Any) -> Json:
    update(tx, "agent_instances", instance["id"], **columns)
    return _answer(tx, instance["id"])


def _answer(tx: Transaction, instance_id: str) -> Json:
    return {"details": _resources.instance(tx.connection, _find(tx, instance_id), tx.account.id)}

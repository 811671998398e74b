"""Rows to resources: what the API answers and the viewer shows, field for field as in the contract (2.3, 3.3, 5).

Reads only. A function that takes a connection may be given the writer or a reader. Payloads stay JSON text until the
caller decides: the API splices it in as it is, the viewer wants objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace.server import _schemas
from prefactor_trace.server._summaries import summary

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from prefactor_trace.server._fields import Json, Page

FINISHED_SPAN = ("complete", "failed", "cancelled")
FINISHED_INSTANCE = (*FINISHED_SPAN, "terminated")


class Account(NamedTuple):
    """Whose the database is. Every id made here is in its partition."""

    id: str
    partition: str


def rows(connection: sqlite3.Connection, sql: str, *values: Any) -> list[Json]:
    """Run a SELECT and return its rows as dicts."""
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def row(connection: sqlite3.Connection, sql: str, *values: Any) -> Json | None:
    """Run a SELECT and return its first row as a dict, or None."""
    found = rows(connection, sql, *values)
    return found[0] if found else None


def some_rows(
    connection: sqlite3.Connection, select: str, wanted: Json, order: str, page: Page
) -> tuple[list[Json], int]:
    """Run a SELECT for one page; *wanted*: condition to value, None for any. Also returns how many rows there are.

    *select*, the conditions and *order* are ours, never a client's words.
    """
    asked = {condition: value for condition, value in wanted.items() if value is not None}
    where = " AND ".join(asked) or "1"
    _, table = select.rsplit("\nFROM ", 1)
    counting = f"SELECT count(*) FROM {table} WHERE {where}"  # noqa: S608
    total = connection.execute(counting, (*asked.values(),)).fetchone()[0]
    paging = f"{select} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
    return rows(connection, paging, *asked.values(), page.size, page.offset), total


# ------------------------------------------------------------------------------- what stands around agents and runs


def api_token(found: Json, account_id: str) -> Json:
    """Return the resource of the token that `serve` prints; its text is nowhere in the database."""
    return {
        "type": "api_token",
        "id": found["id"],
        "account_id": account_id,
        "token_scope": "account",
        "status": "active",
        "agent_id": None,
        "agent_deployment_id": None,
        "environment_id": None,
        "created_by_admin_user_id": None,
        "expires_at": None,
        "last_used_at": None,
        "inserted_at": found["inserted_at"],
        "updated_at": found["updated_at"],
    }


def environment(found: Json, account_id: str) -> Json:
    """Return an environment resource."""
    return {"type": "environment", "account_id": account_id, **found}


# ------------------------------------------------------------------------------------------------------------ agents

AGENTS = """
SELECT a.*, (SELECT max(last_activity_span_at) FROM agent_instances WHERE agent_id = a.id) AS last_activity_span_at
FROM agents a
"""


def agent(found: Json, counts: dict[str, int]) -> Json:
    """Return an agent resource; *counts*: its instances by status."""
    retired = bool(found["retired"])
    total = sum(counts.values())
    return {
        "type": "agent",
        "id": found["id"],
        "name": found["name"],
        "description": found["description"],
        "external_identifier": found["external_identifier"],
        "status": "retired" if retired else "active" if total else "pending",
        "owner_person_id": found["owner_person_id"],
        "team_id": found["team_id"],
        "risk_profile_id": found["risk_profile_id"],
        "available_actions": {
            "update": True,
            "retire": not retired,
            "reinstate": retired,
            "delete": not total,
        },
        "instance_counts": {
            "total": total,
            **{status: counts.get(status, 0) for status in ("pending", "active", *FINISHED_INSTANCE)},
            "finished": sum(counts.get(status, 0) for status in FINISHED_INSTANCE),
        },
        "last_activity_span_at": found["last_activity_span_at"],
        "inserted_at": found["inserted_at"],
        "updated_at": found["updated_at"],
    }


def instance_counts(connection: sqlite3.Connection, agent_id: str | None = None) -> dict[str, dict[str, int]]:
    """Count instances by status, for one agent or all: agent id to status to number."""
    where = "" if agent_id is None else "WHERE agent_id = ?"
    counts: dict[str, dict[str, int]] = {}
    for its_agent, status, number in connection.execute(
        f"SELECT agent_id, status, count(*) FROM agent_instances {where} GROUP BY agent_id, status",  # noqa: S608
        () if agent_id is None else (agent_id,),
    ):
        counts.setdefault(its_agent, {})[status] = number
    return counts


# ----------------------------------------------------------------------------------------- versions and deployments


SCHEMA_VERSIONS = """
SELECT t.*
FROM agent_schema_versions t
"""


def schema_version(connection: sqlite3.Connection, found: Json, account_id: str) -> Json:
    """Return an agent schema version resource."""
    return {
        "type": "agent_schema_version",
        "id": found["id"],
        "account_id": account_id,
        "agent_id": found["agent_id"],
        "external_identifier": found["external_identifier"],
        "external_identifier_repeats": 0,
        "current_agent_deployment_refs": _deployed(connection, "v.agent_schema_version_id", found["id"]),
        "span_type_schemas": _schemas.read_span_types(orjson.loads(found["span_type_schemas"])),
        "quality_schemas": _schemas.read_qualities(orjson.loads(found["quality_schemas"])),
        "alert_schemas": {},
        "inserted_at": found["inserted_at"],
        "updated_at": found["inserted_at"],
    }


def version(connection: sqlite3.Connection, found: Json, account_id: str) -> Json:
    """Return an agent version resource."""
    environment_of_runtime = found["runtime_environment"]
    return {
        "type": "agent_version",
        "id": found["id"],
        "account_id": account_id,
        "agent_id": found["agent_id"],
        "agent_schema_version_id": found["agent_schema_version_id"],
        "external_identifier": found["external_identifier"],
        "external_identifier_repeats": found["external_identifier_repeats"],
        "name": found["name"],
        "description": found["description"],
        "runtime_environment": environment_of_runtime and orjson.loads(environment_of_runtime),
        "current_agent_deployment_refs": _deployed(connection, "v.id", found["id"]),
        "observed_classification": None,
        "theoretical_classification": None,
        "inserted_at": found["inserted_at"],
        "updated_at": found["inserted_at"],
    }


VERSIONS = """
SELECT t.*, (
    SELECT count(*) FROM agent_versions AS same
    WHERE same.agent_id = t.agent_id AND same.external_identifier = t.external_identifier AND same.id < t.id
) AS external_identifier_repeats
FROM agent_versions t
"""


def _deployed(connection: sqlite3.Connection, column: str, version_id: str) -> list[Json]:
    return rows(
        connection,
        "SELECT d.id AS agent_deployment_id, d.environment_id FROM agent_deployments d "  # noqa: S608 - two callers above
        f"JOIN agent_versions v ON v.id = d.current_version_id WHERE {column} = ? ORDER BY d.id",
        version_id,
    )


# --------------------------------------------------------------------------------------------------------- instances

INSTANCES = """
SELECT i.*, v.agent_schema_version_id, v.external_identifier AS agent_version_identifier,
    v.name AS agent_version_name, a.name AS agent_name, e.name AS environment_name
FROM agent_instances i
JOIN agents a ON a.id = i.agent_id
JOIN agent_versions v ON v.id = i.agent_version_id
JOIN environments e ON e.id = i.environment_id
"""


def instance_summary(found: Json, account_id: str) -> Json:
    """Return an instance as it stands in a list."""
    return {
        "type": "agent_instance",
        "id": found["id"],
        "account_id": account_id,
        "agent_id": found["agent_id"],
        "agent_version_id": found["agent_version_id"],
        "environment_id": found["environment_id"],
        "external_identifier": found["external_identifier"],
        "status": found["status"],
        "purpose": found["purpose"],
        "started_at": found["started_at"],
        "finished_at": found["finished_at"],
        "last_activity_span_at": found["last_activity_span_at"],
        "termination_reason": found["termination_reason"],
        "risk_score": None,
        "raised_alert_count": 0,
        "inserted_at": found["inserted_at"],
        "updated_at": found["updated_at"],
    }


def instance(connection: sqlite3.Connection, found: Json, account_id: str) -> Json:
    """Return an instance resource with all its fields."""
    counts: dict[str, int] = {}
    names: dict[str, int] = {}
    for name, status, number in connection.execute(
        "SELECT schema_name, status, count(*) FROM agent_spans WHERE instance = ? GROUP BY schema_name, status",
        (found["number"],),
    ):
        counts[status] = counts.get(status, 0) + number
        names[name] = names.get(name, 0) + number
    return {
        **instance_summary(found, account_id),
        "agent_deployment_id": found["agent_deployment_id"],
        "span_counts": _span_counts(counts),
        "span_schema_counts": {"by_name": names},
        "cost_breakdown": None,
        "quality_payloads": orjson.loads(found["quality_payloads"]),
        "quality_summaries": {},
    }


def span_counts(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, Json]:
    """Count the spans of the instances with these *numbers*: number to a `span_counts` object."""
    counts: dict[int, dict[str, int]] = {number: {} for number in numbers}
    for number, status, how_many in connection.execute(
        "SELECT instance, status, count(*) FROM agent_spans "
        "WHERE instance IN (SELECT value FROM json_each(?)) GROUP BY instance, status",
        (orjson.dumps(list(counts)).decode(),),
    ):
        counts[number][status] = how_many
    return {number: _span_counts(by_status) for number, by_status in counts.items()}


def _span_counts(by_status: dict[str, int]) -> Json:
    return {
        "total": sum(by_status.values()),
        **{status: by_status.get(status, 0) for status in ("pending", "active", *FINISHED_SPAN)},
        "finished": sum(by_status.get(status, 0) for status in FINISHED_SPAN),
    }


# ------------------------------------------------------------------------------------------------------------- spans


class SpanType(NamedTuple):
    """What a span takes over from its declared type."""

    title: str
    data_risk: Json | None
    template: str | None


def span_types(connection: sqlite3.Connection, schema_version_id: str | None) -> dict[str, SpanType]:
    """Read the span types of a schema version by name; an undeclared name has none."""
    found = row(
        connection, "SELECT span_type_schemas FROM agent_schema_versions WHERE id = ?", schema_version_id
    )
    entries = orjson.loads(found["span_type_schemas"]) if found else {}
    return {
        name: SpanType(entry["title"], entry["data_risk"], entry["template"])
        for name, entry in entries.items()
    }


SPANS = """
SELECT s.*, i.id AS agent_instance_id, i.agent_id, v.agent_schema_version_id
FROM agent_spans s
JOIN agent_instances i ON i.number = s.instance
JOIN agent_versions v ON v.id = i.agent_version_id
"""


def spans(
    connection: sqlite3.Connection, found: list[Json], account_id: str, *, with_summaries: bool = False
) -> list[Json]:
    """Return span resources whose payloads are still JSON text. *with_summaries*: render their readable lines."""
    declared = {
        version: span_types(connection, version)
        for version in {row["agent_schema_version_id"] for row in found}
    }
    resources = []
    for each in found:
        span_type = declared[each["agent_schema_version_id"]].get(each["schema_name"])
        resource = span(each, account_id, span_type)
        if with_summaries and span_type is not None:
            resource["summary"] = summary(span_type.template, each["payload"], each["result_payload"])
        resources.append(resource)
    return resources


def span(found: Json, account_id: str, declared: SpanType | None) -> Json:
    """Return a span resource whose payloads are still JSON text."""
    payload, result = found["payload"], found["result_payload"]
    return {
        "type": "agent_span",
        "id": found["id"],
        "account_id": account_id,
        "agent_id": found["agent_id"],
        "agent_instance_id": found["agent_instance_id"],
        "parent_span_id": found["parent_span_id"],
        "schema_name": found["schema_name"],
        "schema_title": found["schema_name"] if declared is None else declared.title,
        "status": found["status"],
        "purpose": "activity",
        "payload": payload,
        "result_payload": result,
        "payload_byte_size_estimate": len(payload) + len(result or ""),
        "sensitive_encoding": bool(found["sensitive_encoding"]),
        "summary": None,
        "data_risk": None if declared is None else declared.data_risk,
        "started_at": found["started_at"],
        "finished_at": found["finished_at"],
        "inserted_at": found["inserted_at"],
        "updated_at": found["updated_at"],
    }

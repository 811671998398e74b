"""The database's shape, as numbered steps; step n takes a file from `user_version` n-1 to n.

A step that has been released is never edited: a change is a new step at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from prefactor_trace.server._usage import LATE_USAGE, USAGE, Usages, add_to_run, usage_of

if TYPE_CHECKING:
    import sqlite3

# Spans point at their instance by number, not by its 32-character id: both indexes of the largest table carry it.
_TABLES = """
CREATE TABLE accounts (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE environments (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT,
    external_identifier TEXT UNIQUE,
    purpose TEXT NOT NULL,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT,
    external_identifier TEXT UNIQUE,
    retired INTEGER NOT NULL DEFAULT 0,
    owner_person_id TEXT,
    team_id TEXT,
    risk_profile_id TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE agent_schema_versions (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    external_identifier TEXT NOT NULL,
    span_type_schemas TEXT NOT NULL,
    quality_schemas TEXT NOT NULL,
    inserted_at TEXT NOT NULL,
    UNIQUE (agent_id, external_identifier)
);
CREATE TABLE agent_versions (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    agent_schema_version_id TEXT NOT NULL,
    external_identifier TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    runtime_environment TEXT,
    inserted_at TEXT NOT NULL,
    UNIQUE (agent_id, external_identifier, agent_schema_version_id)
);
CREATE TABLE agent_deployments (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    current_version_id TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (agent_id, environment_id)
);
CREATE TABLE agent_instances (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    agent_id TEXT NOT NULL,
    agent_version_id TEXT NOT NULL,
    agent_deployment_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    external_identifier TEXT,
    status TEXT NOT NULL,
    purpose TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    last_activity_span_at TEXT,
    termination_reason TEXT,
    quality_payloads TEXT NOT NULL DEFAULT '{}',
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (agent_id, external_identifier)
);
CREATE TABLE agent_spans (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    create_key TEXT,
    finish_key TEXT,
    instance INTEGER NOT NULL REFERENCES agent_instances (number),
    parent_span_id TEXT,
    schema_name TEXT NOT NULL,
    created_as TEXT NOT NULL,
    status TEXT NOT NULL,
    payload TEXT NOT NULL,
    result_payload TEXT,
    sensitive_encoding INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    inserted_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE idempotency (
    operation TEXT NOT NULL,
    key TEXT NOT NULL,
    request BLOB NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (operation, key)
) WITHOUT ROWID;
"""

# Listings walk these, and counts read nothing else. Spans have one index for both: counting a run of 100,000 takes
# 40 ms instead of 10, and writing a span is a third cheaper than with two.
_INDEXES = """
CREATE UNIQUE INDEX agent_spans_by_create_key ON agent_spans (create_key) WHERE create_key IS NOT NULL;
CREATE INDEX agent_spans_in_time ON agent_spans (instance, started_at, schema_name, status);
CREATE INDEX agent_instances_by_status ON agent_instances (agent_id, status);
CREATE INDEX agent_instances_by_activity ON agent_instances (agent_id, last_activity_span_at);
"""

# What the calls of models in a run have used, in the words of `_usage.Usages`.
_USAGE = """
ALTER TABLE agent_instances ADD COLUMN calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN prompt_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN completion_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN total_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN priced_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_instances ADD COLUMN usd REAL NOT NULL DEFAULT 0;
"""

_STEPS = (_TABLES, _INDEXES, _USAGE)
LATEST = len(_STEPS)
_FIRST_WITH_USAGE = 3


class NewerDatabaseError(RuntimeError):
    """The file was written by a newer version of prefactor_trace, so this one does not touch it."""


def migrate(writer: sqlite3.Connection) -> None:
    """Bring the database up to date in one transaction: a crash leaves the file as it was."""
    writer.execute(
        "BEGIN EXCLUSIVE"
    )  # before reading the version: two processes may open a new file together
    try:
        version = _version(writer)
        for step in _STEPS[version:]:
            for statement in step.split(";"):
                writer.execute(statement)
        if 0 < version < _FIRST_WITH_USAGE:
            _count_usage(writer)
        writer.execute(f"PRAGMA user_version = {LATEST}")
    except BaseException:
        writer.execute("ROLLBACK")
        raise
    writer.execute("COMMIT")


def _count_usage(writer: sqlite3.Connection) -> None:
    """Count what the runs have used that are in the file already."""
    used: dict[int, Usages] = {}
    told = writer.execute(
        "SELECT instance, payload, coalesce(result_payload, 'null') FROM agent_spans "
        "WHERE instr(payload, ?) > 0 OR instr(result_payload, ?) > 0",
        (USAGE, LATE_USAGE),
    )
    for number, payload, result in told:
        usage = usage_of(orjson.loads(payload), orjson.loads(result))
        if usage is not None:
            used[number] = used.get(number, Usages()).plus(usage)
    for number, usages in used.items():
        add_to_run(writer, number, usages)


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > LATEST:
        raise NewerDatabaseError(
            f"the database has version {version}, this prefactor_trace knows {LATEST}: "
            "upgrade prefactor_trace, or use another file"
        )
    return version

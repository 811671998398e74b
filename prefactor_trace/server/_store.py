"""The platform's memory: what the viewer reads and the API does, over one SQLite file.

Every method may be called on any thread. Methods that read see the last committed state and never wait for a writer.
Dicts are the API's resources, field for field, plus the extras a method names.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace import _ids
from prefactor_trace.server import _fields, _operations, _resources
from prefactor_trace.server._database import Database
from prefactor_trace.server._fields import InvalidAction, Json, NotFound, Page, Refusal
from prefactor_trace.server._operations import OPERATIONS, Operation
from prefactor_trace.server._resources import Account
from prefactor_trace.server._transaction import Transaction
from prefactor_trace.server._usage import Usages

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["InvalidAction", "NotFound", "Refusal", "Store"]


class Store:
    """An open database file with the account in it. Close it when done."""

    def __init__(self, path: Path) -> None:
        """Open or create *path*. Raises `NewerDatabaseError` if a newer version wrote it."""
        self.path = path
        self._database = Database(path)
        try:
            with self._database.writing() as writer:
                self.account = _find_or_create_account(writer)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def agents(self) -> list[Json]:
        """Return all agents, the most recently active first."""
        with self._database.reading() as reader:
            counts = _resources.instance_counts(reader)
            newest_first = "ORDER BY max(coalesce(last_activity_span_at, ''), a.inserted_at) DESC, a.id"
            found = _resources.rows(reader, f"{_resources.AGENTS} {newest_first}")
            return [_resources.agent(row, counts.get(row["id"], {})) for row in found]

    def agent(self, agent_id: str) -> Json | None:
        """Return one agent."""
        with self._database.reading() as reader:
            found = _resources.row(reader, f"{_resources.AGENTS} WHERE a.id = ?", agent_id)
            if found is None:
                return None
            return _resources.agent(found, _resources.instance_counts(reader, agent_id).get(agent_id, {}))

    def environments(self) -> list[Json]:
        """Return all environments by name."""
        with self._database.reading() as reader:
            found = _resources.rows(reader, "SELECT * FROM environments ORDER BY name, id")
            return [_resources.environment(row, self.account.id) for row in found]

    def schema_versions(self, agent_id: str) -> list[Json]:
        """Return the schemas an agent has declared, newest first."""
        with self._database.reading() as reader:
            found = _resources.rows(
                reader, "SELECT * FROM agent_schema_versions WHERE agent_id = ? ORDER BY id DESC", agent_id
            )
            return [_resources.schema_version(reader, row, self.account.id) for row in found]

    def instances(
        self,
        agent_id: str,
        *,
        environment_id: str | None = None,
        status: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> tuple[list[Json], int]:
        """Return a page of an agent's instances, newest first, and how many there are.

        Extras: `agent_version_identifier`, `environment_name`, `span_counts`.
        """
        wanted = {"i.agent_id = ?": agent_id, "i.environment_id = ?": environment_id, "i.status = ?": status}
        with self._database.reading() as reader:
            found, total = _resources.some_rows(
                reader, _resources.INSTANCES, wanted, "i.inserted_at DESC, i.number DESC", Page(offset, limit)
            )
            counts = _resources.span_counts(reader, [row["number"] for row in found])
            return [
                _resources.instance_summary(row, self.account.id)
                | {
                    "agent_version_identifier": row["agent_version_identifier"],
                    "environment_name": row["environment_name"],
                    "span_counts": counts[row["number"]],
                }
                for row in found
            ], total

    def instance(self, instance_id: str) -> Json | None:
        """Return one instance.

        Extras: `agent_name`, `agent_version_identifier`, `agent_version_name`, `agent_schema_version_id`,
        `environment_name`, `usages` (a `Usages`).
        """
        with self._database.reading() as reader:
            found = _resources.row(reader, f"{_resources.INSTANCES} WHERE i.id = ?", instance_id)
            if found is None:
                return None
            extras = (
                "agent_name",
                "agent_version_identifier",
                "agent_version_name",
                "agent_schema_version_id",
                "environment_name",
            )
            usages = Usages(*(found[name] for name in Usages._fields))
            extra_fields = {name: found[name] for name in extras} | {"usages": usages}
            return _resources.instance(reader, found, self.account.id) | extra_fields

    def spans(self, instance_id: str, *, offset: int = 0, limit: int = 1000) -> tuple[list[Json], int]:
        """Return a page of an instance's spans by start, then arrival, and how many there are.

        `payload` and `result_payload` are objects, and `summary` is rendered.
        """
        with self._database.reading() as reader:
            found, total = _resources.some_rows(
                reader,
                _resources.SPANS,
                {"i.id = ?": instance_id},
                "s.started_at, s.number",
                Page(offset, limit),
            )
            spans = _resources.spans(reader, found, self.account.id, with_summaries=True)
            return [_parsed(span) for span in spans], total

    def span(self, span_id: str) -> Json | None:
        """Return one span. `payload` and `result_payload` are objects, and `summary` is rendered."""
        with self._database.reading() as reader:
            found = _resources.rows(reader, f"{_resources.SPANS} WHERE s.id = ?", span_id)
            spans = _resources.spans(reader, found, self.account.id, with_summaries=True)
            return _parsed(spans[0]) if spans else None

    def terminate(self, instance_id: str, reason: str) -> Json:
        """Stop an active instance and return it. Raises `NotFound`, or `InvalidAction` if it is not active."""
        asked = {"agent_instance_id": instance_id, "reason": reason}
        details: Json = self.perform(OPERATIONS["agent_instances/terminate"], asked)["details"]
        return details

    def perform(self, operation: Operation, fields: Json) -> Json:
        """Do one operation and return its answer. Raises a Refusal.

        What was written is in the file when this returns. Payloads in the answer are `orjson.Fragment`s.
        """
        if operation.is_read:
            with self._database.reading() as reader:
                return _operations.perform(Transaction(reader, self.account), operation, fields)
        with self._database.writing() as writer:
            transaction = Transaction(writer, self.account)
            answer = _operations.perform(transaction, operation, fields)
            transaction.settle()
            return answer

    def perform_all(self, items: list[tuple[str, Operation, Json]]) -> Json:
        """Do several operations in order, up to the first that is refused, and return their answers by key.

        Each item is a key, an operation and its fields. A refused item leaves nothing behind and undoes nothing.
        """
        outputs: Json = {}
        with self._database.writing() as writer:
            transaction = Transaction(writer, self.account)
            for key, operation, fields in items:
                outputs[key] = _output(transaction, operation, fields)
                if outputs[key]["status"] == "error":
                    break
            transaction.settle()
        return outputs


def _output(transaction: Transaction, operation: Operation, fields: Json) -> Json:
    try:
        return {"status": "success", **_operations.perform(transaction, operation, fields)}
    except Refusal as refusal:
        return refusal.body()


def _parsed(span: Json) -> Json:
    return span | {"payload": orjson.loads(span["payload"]), "result_payload": _loads(span["result_payload"])}


def _loads(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def _find_or_create_account(writer: sqlite3.Connection) -> Account:
    found = writer.execute("SELECT id FROM accounts").fetchone()
    if found is None:
        account_id = _ids.generate(_ids.encode(secrets.randbits(30), 6))
        now = _fields.now()
        writer.execute("INSERT INTO accounts VALUES (?, 'local', ?, ?)", (account_id, now, now))
        token_id = _ids.generate(_ids.partition_of(account_id))
        writer.execute("INSERT INTO api_tokens VALUES (?, ?, ?)", (token_id, now, now))
        found = (account_id,)
    return Account(found[0], _ids.partition_of(found[0]))

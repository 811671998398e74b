"""One request's work on the database, and the few ways in which operations touch rows.

In: a connection, which is the writer's for a change. Table, column and condition texts are ours throughout; what a
client said is only ever a bound value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace import _ids
from prefactor_trace.server import _fields, _resources
from prefactor_trace.server._fields import Json, NotFound, Order, invalid
from prefactor_trace.server._usage import Usages, add_to_run

if TYPE_CHECKING:
    import sqlite3

    from prefactor_trace.server._resources import Account, SpanType
    from prefactor_trace.server._usage import Usage


class InstanceHead(NamedTuple):
    """What writing a span has to know about its instance."""

    number: int
    id: str
    agent_id: str
    status: str
    control: Json | None
    types: dict[str, SpanType]


class Transaction:
    """A connection, the time, and what has been looked up already.

    It ends with the request and forgets everything, so another process may write to the same file.
    """

    def __init__(self, connection: sqlite3.Connection, account: Account) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.account = account
        self.now = _fields.now()
        self.instance_of_span: dict[str, int] = {}
        self._instances: dict[str, InstanceHead] = {}
        self._last_activity: dict[int, str] = {}
        self._used: dict[int, Usages] = {}

    def instance(self, instance_id: str) -> InstanceHead:
        """Look up the instance that a span belongs to."""
        known = self._instances.get(instance_id)
        if known is None:
            known = self._instances[instance_id] = self._read_instance(instance_id)
        return known

    def _read_instance(self, instance_id: str) -> InstanceHead:
        found = self.execute(
            "SELECT i.number, i.agent_id, i.status, i.termination_reason, v.agent_schema_version_id "
            "FROM agent_instances i JOIN agent_versions v ON v.id = i.agent_version_id WHERE i.id = ?",
            (instance_id,),
        ).fetchone()
        if found is None:
            raise NotFound(f"agent instance {instance_id}")
        number, agent_id, status, reason, schema_version_id = found
        control = {"terminate": True, "reason": reason} if status == "terminated" else None
        types = _resources.span_types(self.connection, schema_version_id)
        return InstanceHead(number, instance_id, agent_id, status, control, types)

    def note_activity(self, number: int, at: str) -> None:
        """Remember that a span of this instance began; `settle` writes it, once per instance."""
        if at > self._last_activity.get(number, ""):
            self._last_activity[number] = at

    def note_usage(self, number: int, usage: Usage) -> None:
        """Remember that a span of this instance tells what a model has used; as with `note_activity`."""
        self._used[number] = self._used.get(number, Usages()).plus(usage)

    def settle(self) -> None:
        """Write what was remembered, and forget what may change: called before an instance is read or changed."""
        self._instances.clear()
        for number, at in self._last_activity.items():
            self.execute(
                "UPDATE agent_instances SET last_activity_span_at = ?1 "
                "WHERE number = ?2 AND coalesce(last_activity_span_at, '') < ?1",
                (at, number),
            )
        self._last_activity.clear()
        for number, usages in self._used.items():
            add_to_run(self.connection, number, usages)
        self._used.clear()


def first(tx: Transaction, sql: str, *values: Any) -> Any:
    """Return the first column of the first row, or None."""
    found = tx.execute(sql, values).fetchone()
    return None if found is None else found[0]


def insert(tx: Transaction, table: str, **columns: Any) -> str:
    """Insert a row, with a new id unless it has one, and return its id."""
    row = {"id": _ids.generate(tx.account.partition), "inserted_at": tx.now, **columns}
    marks = ", ".join("?" * len(row))
    tx.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", (*row.values(),))  # noqa: S608
    return str(row["id"])


def update(tx: Transaction, table: str, row_id: str, **columns: Any) -> None:
    """Change a row, and note the time."""
    row = {**columns, "updated_at": tx.now}
    changes = ", ".join(f"{column} = ?" for column in row)
    tx.execute(f"UPDATE {table} SET {changes} WHERE id = ?", (*row.values(), row_id))  # noqa: S608


def new_id(tx: Transaction, table: str, fields: Json) -> str:
    """Read the id a client made, or make one."""
    row_id = _fields.own_id(fields, "id", tx.account.partition)
    refuse_taken(tx, table, id=row_id)
    return row_id


def refuse_taken(tx: Transaction, table: str, **columns: str | None) -> None:
    """Refuse the first of *columns* if a row with all these values exists; None is never taken."""
    field, value = next(iter(columns.items()))
    where = " AND ".join(f"{column} = ?" for column in columns)
    if value is not None and first(tx, f"SELECT id FROM {table} WHERE {where}", *columns.values()):  # noqa: S608
        raise invalid(**{field: "has already been taken"})


class Listing(NamedTuple):
    """What a list shows and how it may be asked for.

    Attributes:
        select: Without WHERE.
        columns: What may be sorted by: the API's name to ours.
        order: If nothing else is asked for.
        tie: A unique column, so that pages neither repeat nor miss a row.
    """

    select: str
    columns: dict[str, str]
    order: Order
    tie: str


def list_page(tx: Transaction, fields: Json, listing: Listing, wanted: Json) -> tuple[list[Json], Json]:
    """Return a page of rows, and the rest of the answer. *wanted*: condition to value, None for any."""
    page = _fields.page(fields)
    order = _fields.order(fields, tuple(listing.columns), listing.order)
    by = f"{listing.columns[order.field]} {order.direction}, {listing.tie} {order.direction}"
    found, total = _resources.some_rows(tx.connection, listing.select, wanted, by, page)
    return found, {"pagination": page.describe(total, len(found)), "sorting": order.describe()}

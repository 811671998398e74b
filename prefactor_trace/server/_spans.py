"""Operations on spans: one step of a run each.

    create: in any of the five states        active ─finish─▶ complete | failed        pending ─finish─▶ cancelled

`cancelled` is only for a span that has not begun (contract section 3.1), and a finished one stays as it is. A finished
instance takes no more spans; a terminated one does, and each answer carries `control`, which is how its agent learns.

Idempotency is in the span's own row: its id, the key that created it and the key that finished it. Nothing is looked
up first: a create that fails, on whatever, then looks whether it was done before. So being safe to repeat costs a
span one entry in an index. Payloads in answers are `orjson.Fragment`s: JSON text that is spliced in as it is.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import orjson

from prefactor_trace import _ids
from prefactor_trace.server import _fields, _resources
from prefactor_trace.server._fields import (
    InvalidAction,
    Json,
    NotFound,
    Order,
    Refusal,
    idempotency_key,
    invalid,
)
from prefactor_trace.server._transaction import Listing, list_page
from prefactor_trace.server._usage import LATE_USAGE, usage_of

if TYPE_CHECKING:
    from prefactor_trace.server._transaction import InstanceHead, Transaction

_STATUSES = ("pending", "active", *_resources.FINISHED_SPAN)


def create(tx: Transaction, fields: Json) -> Json:
    """Create a span, finished or not."""
    details = fields.get("details", fields)  # flat is what the docstring of prefactor-http shows for bulk
    if not isinstance(details, dict):
        raise invalid(details="is not an object")
    key = idempotency_key(fields)
    try:
        return _create_new(tx, details, key)
    except (Refusal, sqlite3.IntegrityError):
        earlier = _find_earlier(tx, details, key)
        if earlier is None:
            raise
    return _answer_again(tx, earlier, details, key)


def _create_new(tx: Transaction, details: Json, key: str | None) -> Json:
    instance = tx.instance(_fields.text(details, "agent_instance_id"))
    if instance.status in _resources.FINISHED_SPAN:
        raise InvalidAction(f"the instance is {instance.status}, so it takes no more spans")
    span = _read(tx, details, instance)
    tx.execute(
        "INSERT INTO agent_spans (id, create_key, instance, parent_span_id, schema_name, created_as, status, payload, "
        "result_payload, sensitive_encoding, started_at, finished_at, inserted_at, updated_at) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12)",
        (
            span["id"],
            key,
            instance.number,
            span["parent_span_id"],
            span["schema_name"],
            span["status"],
            span["payload"],
            span["result_payload"],
            span["sensitive_encoding"],
            span["started_at"],
            span["finished_at"],
            tx.now,
        ),
    )
    tx.instance_of_span[span["id"]] = instance.number
    tx.note_activity(instance.number, span["started_at"])
    usage = usage_of(details["payload"], details.get("result_payload"))
    if usage is not None:
        tx.note_usage(instance.number, usage)
    return _answer(tx, span, instance)


def _read(tx: Transaction, details: Json, instance: InstanceHead) -> Json:
    """Read the fields of a new span into a row."""
    status = _fields.one_of(details, "status", _STATUSES)
    is_finished = status in _resources.FINISHED_SPAN
    if not is_finished:
        _refuse_ending(details, status)
    return {
        "id": _fields.own_id(details, "id", tx.account.partition),
        "agent_id": instance.agent_id,
        "agent_instance_id": instance.id,
        "parent_span_id": _read_parent(tx, details, instance),
        "schema_name": _fields.text(details, "schema_name"),
        "status": status,
        "payload": orjson.dumps(_fields.mapping(details, "payload")).decode(),
        "result_payload": _read_result(details),
        "sensitive_encoding": _fields.flag(details, "sensitive_encoding", default=False),
        "started_at": _fields.time(details, "started_at", tx.now),
        "finished_at": _fields.time(details, "finished_at", tx.now) if is_finished else None,
        "inserted_at": tx.now,
        "updated_at": tx.now,
    }


def _refuse_ending(details: Json, status: str) -> None:
    for field in ("result_payload", "finished_at"):
        if details.get(field) is not None:
            raise invalid(**{field: f"is only for a finished span, and this one is {status}"})


def _read_result(fields: Json) -> str | None:
    result = _fields.optional_mapping(fields, "result_payload")
    return None if result is None else orjson.dumps(result).decode()


def _read_parent(tx: Transaction, details: Json, instance: InstanceHead) -> str | None:
    parent = _fields.optional_text(details, "parent_span_id")
    if parent is None or not _ids.is_pfid(parent):
        return (
            parent  # prefactor-core names a parent it has not sent yet by a UUID of its own: shown as a root
        )
    number = tx.instance_of_span.get(parent)
    if number is None:
        found = tx.execute("SELECT instance FROM agent_spans WHERE id = ?", (parent,)).fetchone()
        if found is None:
            raise invalid(parent_span_id="was not found; send parents before their children")
        number = tx.instance_of_span[parent] = found[0]
    if number != instance.number:
        raise invalid(parent_span_id="belongs to another instance")
    return parent


def _find_earlier(tx: Transaction, details: Json, key: str | None) -> Json | None:
    """Find the span that this create made before, by its key or else its id."""
    by_key = None if key is None else _find(tx, "s.create_key = ?", key)
    span_id = details.get("id")
    return by_key or (_find(tx, "s.id = ?", span_id) if isinstance(span_id, str) else None)


def _answer_again(tx: Transaction, earlier: Json, details: Json, key: str | None) -> Json:
    """Answer a repeated create as the first time; what its client left open may differ. Refuse another span."""
    created = _as_created(earlier)
    instance = tx.instance(_fields.text(details, "agent_instance_id"))
    wanted = _read(tx, details, instance)
    fixed = ["agent_instance_id", "parent_span_id", "schema_name", "status", "payload", "result_payload"]
    fixed += [name for name in ("id", "started_at", "finished_at") if details.get(name) is not None]
    if any(created[name] != wanted[name] for name in fixed):
        if key is not None and key == earlier["create_key"]:
            raise _fields.key_reused()
        raise invalid(id="has already been taken by another span")
    return _answer(tx, created, instance)


def _as_created(span: Json) -> Json:
    """Return a span's row as it was when it was created: finishing is all that ever changes one."""
    if span["created_as"] in _resources.FINISHED_SPAN:
        return span
    return {
        **span,
        "status": span["created_as"],
        "result_payload": None,
        "finished_at": None,
        "updated_at": span["inserted_at"],
    }


class Finish(NamedTuple):
    """What a finish call says, of a span or an instance."""

    status: str
    result: str | None
    at: str


def read_finish(fields: Json, default_time: str) -> Finish:
    """Read the body of a finish call."""
    status = _fields.one_of(fields, "status", _resources.FINISHED_SPAN, "complete")
    return Finish(status, _read_result(fields), _fields.time(fields, "timestamp", default_time))


def refuse_finish(noun: str, present: str, wanted: str) -> None:
    """Refuse a finish that the *present* status does not allow. Spans and instances have the same rule."""
    if present not in ("pending", "active"):
        raise InvalidAction(f"the {noun} is already {present}")
    if (wanted == "cancelled") != (present == "pending"):
        why = "only a pending one can be cancelled" if wanted == "cancelled" else "it has not started"
        raise InvalidAction(f"the {noun} is {present}, so it cannot become {wanted}: {why}")


def finish(tx: Transaction, fields: Json) -> Json:
    """Finish a span, or answer again if this very call did it before."""
    span = _get(tx, fields)
    key = idempotency_key(fields)
    if key is not None and key == span["finish_key"]:
        if read_finish(fields, span["finished_at"]) != (
            span["status"],
            span["result_payload"],
            span["finished_at"],
        ):
            raise _fields.key_reused()
        return _answer(tx, span)
    wanted = read_finish(fields, tx.now)
    refuse_finish("span", span["status"], wanted.status)
    is_sensitive = _fields.flag(fields, "sensitive_encoding", default=False)
    tx.execute(
        "UPDATE agent_spans SET status = ?, result_payload = ?, finished_at = ?, finish_key = ?, "
        "sensitive_encoding = sensitive_encoding OR ?, updated_at = ? WHERE id = ?",
        (*wanted, key, is_sensitive, tx.now, span["id"]),
    )
    _note_late_usage(tx, span, wanted.result)
    return _answer(tx, _get(tx, fields))


def _note_late_usage(tx: Transaction, span: Json, result: str | None) -> None:
    if result is None or LATE_USAGE not in result or usage_of(orjson.loads(span["payload"])) is not None:
        return
    usage = usage_of({}, orjson.loads(result))
    if usage is not None:
        tx.note_usage(span["instance"], usage)


def get(tx: Transaction, fields: Json) -> Json:
    """Return one span."""
    return {"details": _answer(tx, _get(tx, fields))["details"]}


def list_(tx: Transaction, fields: Json) -> Json:
    """Return a page of an instance's or an agent's spans."""
    wanted = {
        "i.id = ?": _fields.optional_text(fields, "agent_instance_id"),
        "i.agent_id = ?": _fields.optional_text(fields, "agent_id"),
    }
    if not any(wanted.values()):
        raise invalid(agent_instance_id="is required, or agent_id instead")
    for field, condition in (("start_time", "s.started_at >= ?"), ("end_time", "s.started_at <= ?")):
        wanted[condition] = _fields.time(fields, field, "") or None
    found, rest = list_page(tx, fields, _LISTING, wanted)
    with_summaries = fields.get("include_summaries") in (True, "true")
    spans = _resources.spans(tx.connection, found, tx.account.id, with_summaries=with_summaries)
    return {
        "summaries": [{**spliced(span, span), "risk_level": None, "risk_score": None} for span in spans],
        **rest,
    }


_LISTING = Listing(
    _resources.SPANS,
    {"started_at": "s.started_at", "finished_at": "s.finished_at", "inserted_at": "s.number", "id": "s.id"},
    Order("started_at", "asc"),
    "s.number",
)


def _find(tx: Transaction, condition: str, value: str) -> Json | None:
    return _resources.row(tx.connection, f"{_resources.SPANS} WHERE {condition}", value)


def _get(tx: Transaction, fields: Json) -> Json:
    span_id = _fields.text(fields, "agent_span_id")
    found = _find(tx, "s.id = ?", span_id)
    if found is None:
        raise NotFound(f"agent span {span_id}")
    return found


def _answer(tx: Transaction, span: Json, instance: InstanceHead | None = None) -> Json:
    instance = instance or tx.instance(span["agent_instance_id"])
    resource = _resources.span(span, tx.account.id, instance.types.get(span["schema_name"]))
    answer = {"details": spliced(resource, span)}
    if instance.control is not None:
        answer["control"] = instance.control
    return answer


def spliced(about: Json, span: Json) -> Json:
    """Put the payloads of *span*, which are JSON text, into *about*, so that they are spliced in as they are."""
    result = span["result_payload"]
    about["payload"] = orjson.Fragment(span["payload"])
    about["result_payload"] = None if result is None else orjson.Fragment(result)
    return about

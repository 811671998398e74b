"""Exporters take a batch and say what became of it. They run on the sender thread, one call at a time.

`HttpExporter` holds the wire's conversation with a Prefactor API; `FileExporter` writes JSON lines; `MemoryExporter`
keeps records for tests. Give one to `configure(exporter=...)`; any object with these two methods will do.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    Outcome,
    SpanRecord,
)
from prefactor_trace._wire import (
    NOT_SENDABLE,
    Learned,
    bulk_item,
    deliver,
    iso,
    register_body,
    span_details,
    span_end,
)
from prefactor_trace.http._protocol import headers as api_headers

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from prefactor_trace._local import Destination
    from prefactor_trace._network import Connection
    from prefactor_trace._record import Record

__all__ = ["Exporter", "FileExporter", "HttpExporter", "MemoryExporter"]


logger = logging.getLogger("prefactor_trace")

_NOWHERE = (
    "PREFACTOR_API_TOKEN is not set and no local platform is running: "
    "start `prefactor-trace serve` to keep runs on this machine"
)


class Exporter(Protocol):
    """The seam between the outbox and wherever records go."""

    def export(self, batch: Sequence[Record], /) -> Outcome:
        """Deliver *batch*, as far as possible. May block; an exception counts as trouble, and is retried."""

    def close(self) -> None:
        """Let go of sockets and files. No export follows."""


class HttpExporter:
    """Sends to a Prefactor API over HTTP.

    Args:
        locate: Says where to send; asked before each batch, so that a platform may come, go, and come back with
            another token, and no token is offered to whoever took over its port. None: nowhere for now.
        timeout: Seconds for one request, from connecting to the last byte of the answer.
        proxy: Address of an HTTP proxy to use.
    """

    def __init__(
        self, locate: Callable[[], Destination | None], *, timeout: float = 10.0, proxy: str | None = None
    ) -> None:
        self._locate = locate
        self._timeout = timeout
        self._proxy = proxy
        self._destination: Destination | None = None
        self._connection: Connection | None = None
        self._learned = Learned()

    def export(self, batch: Sequence[Record], /) -> Outcome:
        """Hold the conversation about *batch* with the platform."""
        destination = self._locate()
        if destination is None:
            self.close()
            return Outcome(trouble=_NOWHERE, reachable=False, nowhere=True)
        connection = self._connect(destination)
        conversation = deliver(batch, self._learned)
        try:
            request = next(conversation)
            while True:
                request = conversation.send(connection.post(request.path, request.body))
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    def close(self) -> None:
        """Close the connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, destination: Destination) -> Connection:
        from prefactor_trace._network import Connection

        if destination != self._destination:  # another account, perhaps: nothing learned holds there
            self.close()
            self._learned = Learned()
            self._destination = destination
            logger.info("records go to %s", destination.url)
        if self._connection is None:
            # Our answers are small; and one that is not packed cannot be a bomb.
            headers = api_headers(destination.token) | {"Accept-Encoding": "identity"}
            self._connection = Connection(destination.url, headers, timeout=self._timeout, proxy=self._proxy)
        return self._connection


class FileExporter:
    """Appends one JSON object a record to a file: the items of the bulk call, with `_type` and idempotency key."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def export(self, batch: Sequence[Record], /) -> Outcome:
        """Write *batch* and hand it to the operating system. Raises OSError if the file cannot take all of it."""
        lines = {each.key: _line(each) for each in batch}
        written = {key: line for key, line in lines.items() if line is not None}
        self._append(b"".join(written.values()))
        return Outcome(
            delivered=frozenset(written),
            refused=dict.fromkeys(lines.keys() - written.keys(), NOT_SENDABLE),
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _append(self, data: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)  # half a line would spoil the one that is written after it
                raise


def _line(record: Record) -> bytes | None:
    try:
        return orjson.dumps(_item(record), option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a schema or a name of what is not JSON
        return None


def _item(record: Record) -> dict[str, Any]:
    if isinstance(record, InstanceRegistered):
        return {"_type": "agent_instances/register", "id": record.instance_id, **register_body(record)}
    if isinstance(record, SpanRecord):
        if record.announced:
            ids = {"agent_span_id": record.id, "idempotency_key": record.key}
            return {"_type": "agent_spans/finish", **ids, **span_end(record)}
        return bulk_item(record, span_details(record, Learned(), record.started.parent_id))
    item = {
        "agent_instance_id": record.instance_id,
        "idempotency_key": record.key,
        "timestamp": iso(record.at),
    }
    if isinstance(record, InstanceFinished):
        return {"_type": "agent_instances/finish", **item, "status": record.status}
    return {"_type": "agent_instances/start", **item}


class MemoryExporter:
    """Keeps every record it is given, in order. Safe to read while records come in."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._lock = threading.Lock()

    @property
    def records(self) -> list[Record]:
        """A copy of what has arrived. A span appears once, when it has ended."""
        with self._lock:
            return list(self._records)

    def export(self, batch: Sequence[Record], /) -> Outcome:
        """Keep *batch*."""
        with self._lock:
            self._records += (
                each for each in batch if type(each) is not SpanRecord or each.ended is not None
            )
        return Outcome(delivered=frozenset(each.key for each in batch))

    def close(self) -> None:
        """Nothing to let go of."""

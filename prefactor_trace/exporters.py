"""Exporters take a batch and say what became of it. They run on the sender thread, one call at a time.

`HttpExporter` holds the wire's conversation with a Prefactor API; `FileExporter` writes JSON lines; `MemoryExporter`
keeps records for tests. Give one to `configure(exporter=...)`; any object with these two methods will do.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prefactor_trace import _guard
from prefactor_trace._record import Outcome, SpanRecord
from prefactor_trace._wire import NOT_SENDABLE, PARTITION_REQUEST, Learned, deliver, line_of, partition_in
from prefactor_trace.http._protocol import headers as api_headers

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from prefactor_trace._local import Destination
    from prefactor_trace._network import Connection
    from prefactor_trace._record import Record

__all__ = ["Exporter", "FileExporter", "HttpExporter", "MemoryExporter"]

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

    def warm_up(self) -> None:
        """Load what the first batch will need, so that the end of the program need not.

        Nothing as long as there is nowhere to send to: it would be for nothing.
        """
        if self._locate() is not None:
            import prefactor_trace._network  # noqa: F401

    def recall_partition(self, partition: str | None) -> None:
        """Note the account's partition as an earlier process has heard it, in case that the platform does not say."""
        self._learned.recalled = partition

    def account(self) -> str | None:
        """Ask the destination for the account's partition. None: it does not say, or cannot be reached."""
        destination = self._locate()
        if destination is None:
            return None
        return partition_in(self._connect(destination).post(*PARTITION_REQUEST))

    def close(self) -> None:
        """Close the connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, destination: Destination) -> Connection:
        from prefactor_trace._network import Connection

        if destination != self._destination:  # another account, perhaps: nothing learned holds there
            self.close()
            self._learned = Learned(self._learned.recalled)
            self._destination = destination
            _guard.logger.info("records go to %s", destination.url)
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
        lines = {each.key: line_of(each) for each in batch}
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

"""The SQLite file: who may write when, and how many read meanwhile.

One connection writes, under a lock, one transaction at a time. Readers are separate connections that see the last
committed state and never wait for the writer (WAL). Every method may be called on any thread.

Durability: a commit is in the file before `writing` returns, so it survives the death of the process. It is not
forced to the disk (`synchronous=NORMAL`): a power cut may take the last moments with it, and never corrupts the file.
That is the right price for a development tool: forcing costs milliseconds per request.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

from prefactor_trace.server import _migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WAIT_FOR_OTHERS_SECONDS = 5.0  # another process may be looking at the file, say with the sqlite3 shell
_PRAGMAS = ("synchronous = NORMAL", "cache_size = -65536", "temp_store = MEMORY")


class Database:
    """An open file. Close it when done."""

    def __init__(self, path: Path) -> None:
        """Open or create *path*, readable for its owner alone, and bring it up to date."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._path = path
        self._writer_lock = threading.Lock()
        self._readers_lock = threading.Lock()
        self._idle_readers: list[sqlite3.Connection] = []
        self._is_open = True
        self._writer = self._connect()
        try:
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; about every 16 MB
            _migrations.migrate(self._writer)
        except BaseException:
            self._writer.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=_WAIT_FOR_OTHERS_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the one writer for the block, which is a transaction: committed at its end, or undone if it raises."""
        with self._writer_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite has undone it already when the disk is full
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Hold a read-only connection for the block, which sees one state of the file throughout."""
        reader = self._take_reader()
        reader.execute("BEGIN")
        try:
            yield reader
        finally:
            reader.execute("ROLLBACK")
            self._put_back(reader)

    def _take_reader(self) -> sqlite3.Connection:
        with self._readers_lock:
            if self._idle_readers:
                return self._idle_readers.pop()
        reader = self._connect()
        reader.execute("PRAGMA query_only = ON")
        return reader

    def _put_back(self, reader: sqlite3.Connection) -> None:
        with self._readers_lock:
            if self._is_open:
                self._idle_readers.append(reader)
                return
        reader.close()

    def close(self) -> None:
        """Close the file; the last connection folds the write-ahead log into it. Who reads then may read to the end."""
        with self._readers_lock:
            self._is_open = False
            for reader in self._idle_readers:
                reader.close()
        with self._writer_lock:
            self._writer.close()

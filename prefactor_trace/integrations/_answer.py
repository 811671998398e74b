"""The bytes of one HTTP answer become what a reader reads: JSON events, or the one JSON document. Pure.

Bytes come as the user reads them. While the first token is awaited each piece is looked at at once, so that it is known
when it came; afterwards they are put aside and looked at by the many, which costs a stream almost nothing.

Server-sent events are told from a document by their first character: what servers say about it is not reliable.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace.integrations._tap import Call

_AT_ONCE = 64 * 1024
# What is larger is not read: it is no answer of a model, and two of it would be in memory.
_LARGEST = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class Answer:
    """See the module's docstring.

    Attributes:
        trouble: What is wrong with the answer, in words; None: nothing so far.
        is_over: Whether its last byte has been read.
        unpack: Undoes its content encoding, if it has one; it is looked at when all of it is here.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._put_aside: list[bytes] = []
        self._size = 0
        self._is_awaited = True  # the first token
        self._is_document: bool | None = None  # None: nothing has come yet
        self._line = b""
        self._data: list[bytes] = []
        self._is_closed = False
        self.unpack: Callable[[bytes], bytes] | None = None
        self.trouble: str | None = None
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Take what the user has just read. Never raises."""
        if self._is_closed:  # or too large to be read
            return
        self._put_aside.append(data)
        self._size += len(data)
        if self._is_awaited or self._size > _AT_ONCE:
            try:
                self._look()
            except Exception:
                self._drop()
                self._call.failed_to_read("an answer")

    def close(self) -> None:
        """Look at what is left."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.unpack is not None:
            data, self.unpack = self.unpack(b"".join(self._put_aside)), None
            self._call.is_timed = False
            self._put_aside = [data]
        self._look()
        if self._is_document and self._put_aside:
            self._read_document(b"".join(self._put_aside))
        self._put_aside = []

    def _drop(self) -> None:
        self._put_aside, self._size, self._line, self._data = [], 0, b"", []
        self._is_closed = True

    def _look(self) -> None:
        if self.unpack is not None or self._is_document:  # looked at when all of it is here
            self._is_awaited = False
            if self._size > _LARGEST:
                self._drop()
            return
        if self._is_document is None:
            start = b"".join(self._put_aside).removeprefix(_BOM).lstrip()
            if not start:
                return
            self._is_document = start.startswith((b"{", b"["))
            self._put_aside = [start]
            if self._is_document:
                self._is_awaited = False
                return
        data, self._put_aside, self._size = b"".join((self._line, *self._put_aside)), [], 0
        self._is_awaited = self._read_events(data) and self._is_awaited

    def _read_events(self, data: bytes) -> bool:
        """Read the lines in *data*, and keep what is left of the last one. Return whether a token is still awaited."""
        if b"\r" in data:
            held = data.endswith(b"\r")  # the other half of a line's end may follow
            data = (data[:-1] if held else data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            *lines, self._line = data.split(b"\n")
            self._line += b"\r" if held else b""
        else:
            *lines, self._line = data.split(b"\n")
        if len(self._line) > _LARGEST:
            self._drop()
        call, held_data = self._call, self._data
        for line in lines:
            if line.startswith(b"data:"):
                held_data.append(line[5:])
            elif not line and held_data:
                event = self._event(b"\n".join(held_data))
                held_data.clear()
                if event is not None:
                    call.add(event)
        return call.awaits_token

    def _event(self, text: bytes) -> Any:
        try:
            return orjson.loads(text)  # as nearly all are
        except orjson.JSONDecodeError:
            return _DONE if text.lstrip().startswith(b"[DONE]") else self._parsed(text)

    def _read_document(self, text: bytes) -> None:
        document = self._parsed(text)
        if document is not None:
            self._call.whole(document)

    def _parsed(self, text: bytes) -> Any:
        for loads in (orjson.loads, json.loads):  # json takes NaN, and half a character
            try:
                return loads(text)
            except (ValueError, RecursionError):
                pass
        self.trouble = self.trouble or "the answer has a part that is no JSON"
        return None


_DONE: dict[str, Any] = {"type": "[DONE]"}
"""The event that says there are no more; OpenAI's mark in a stream."""

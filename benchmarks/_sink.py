"""The far side of the benchmarks: a process of its own on loopback that takes everything at once and counts it.

Answers as the Prefactor API would (to `prefactor_trace` and `prefactor-core`) and as an OTLP/HTTP collector would (to
OpenTelemetry). It is no platform: nothing is checked or kept but the number of spans, because whatever it spends is
taken from the processors of those who are being measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

# An id the platform makes has the account's partition in it (characters 10 to 16), so that clients can learn it.
_ID = "0000000000bench0{:016d}"
_TIME = "2026-01-01T00:00:00.000000Z"
_OWNERS = ("account_id", "agent_id", "agent_version_id", "environment_id", "agent_deployment_id")
_NOT_ENDED = ("active", "pending")


class Sink:
    """The sink's process, from `with` to its end. The process ends with ours, however ours ends."""

    def __enter__(self) -> Sink:  # noqa: PYI034 - `Self` is not in Python 3.10
        """Start the process and wait until it listens."""
        command = [sys.executable, os.path.abspath(__file__)]  # noqa: PTH100 - a path for a command line
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.communicate(timeout=10)

    def counts(self) -> dict[str, int]:
        """Return how many requests, bytes of bodies and ended spans have come so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/counts", timeout=10) as response:
            counts: dict[str, int] = json.load(response)
            return counts


class Platform:
    """What the sink answers. Pure: requests in, bodies out."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.otlp_spans = 0
        self.ended: set[str] = set()
        self._numbers = itertools.count(1)

    def answer(self, path: str, body: bytes) -> bytes:
        """Return the body of the answer; its status is always 200."""
        if path == "/counts":
            spans = len(self.ended) + self.otlp_spans
            return orjson.dumps({"requests": self.requests, "bytes": self.bytes, "spans": spans})
        self.requests += 1
        self.bytes += len(body)
        if path == "/v1/traces":
            self.otlp_spans += count_otlp_spans(body)
            return b""
        return orjson.dumps(
            {"status": "success", **self._resource(path.removeprefix("/api/v1/").split("/"), body)}
        )

    def _resource(self, path: list[str], body: bytes) -> dict[str, Any]:
        said = orjson.loads(body) if body else {}
        match path:
            case ["bulk"]:
                items = said["items"]
                return {
                    "outputs": {
                        item["idempotency_key"]: {
                            "status": "success",
                            "details": self._span(item.get("details", item)),
                        }
                        for item in items
                    }
                }
            case ["agent_spans"]:
                return {"details": self._span(said["details"])}
            case ["agent_spans", span_id, "finish"]:
                return {"details": self._span({"id": span_id, "status": said.get("status", "complete")})}
            case ["agent_instance", "register"]:
                return {"details": self._instance(said.get("id") or self._new_id(), "pending")}
            case ["agent_instance", instance_id, *verb]:
                return {
                    "details": self._instance(instance_id, "complete" if verb == ["finish"] else "active")
                }
        return {}  # ping

    def _span(self, details: dict[str, Any]) -> dict[str, Any]:
        span_id = details.get("id") or self._new_id()
        if details["status"] not in _NOT_ENDED:
            self.ended.add(span_id)
        return {
            "type": "agent_span",
            "id": span_id,
            "agent_instance_id": details.get("agent_instance_id", ""),
            "schema_name": details.get("schema_name", ""),
            "status": details["status"],
        }

    def _instance(self, instance_id: str, status: str) -> dict[str, Any]:
        return {
            "type": "agent_instance",
            "id": instance_id,
            "status": status,
            "inserted_at": _TIME,
            "updated_at": _TIME,
            **dict.fromkeys(_OWNERS, _ID.format(0)),
        }

    def _new_id(self) -> str:
        return _ID.format(next(self._numbers))


def count_otlp_spans(body: bytes) -> int:
    """Count the spans in an `ExportTraceServiceRequest`: resource_spans (1), scope_spans (2), spans (2)."""
    scopes = (scope for resource in _parts(memoryview(body), 1) for scope in _parts(resource, 2))
    return sum(1 for scope in scopes for _ in _parts(scope, 2))


def _parts(message: memoryview, number: int) -> Iterator[memoryview]:
    """Find the parts of a protobuf message under field *number*. All its fields must have a length (wire type 2)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        length, at = _varint(message, at)
        if tag == number << 3 | 2:
            yield message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


class _Connection(asyncio.Protocol):
    """Just enough of HTTP/1.1: keep-alive, and bodies of a given length."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._received = bytearray()
        self._needed = 0  # bytes to wait for before it is worth looking again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= self._needed and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).decode("latin-1")
            start = end + 4
            self._needed = start + _length(head)
            if len(self._received) < self._needed:
                return
            body = bytes(self._received[start : self._needed])
            del self._received[: self._needed]
            self._needed = 0
            self._respond(head.split(" ", 2)[1].partition("?")[0], body)

    def _respond(self, path: str, body: bytes) -> None:
        answer = self._platform.answer(path, body)
        kind = b"application/x-protobuf" if path == "/v1/traces" else b"application/json"
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (kind, len(answer), answer)
        )


def _length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


async def _serve() -> None:
    platform = Platform()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(platform), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started us closes it, or is gone


if __name__ == "__main__":
    asyncio.run(_serve())

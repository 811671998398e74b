r"""The spool's file format: facts as bytes, and what can still be read of a damaged file. Pure.

A segment is a sequence of **frames**: magic, kind, number, length, CRC-32 of all that and the body, body. The magic
begins with a byte that no UTF-8 text contains, so it never stands in what was recorded; after damage, reading goes on
at the next one. Numbers count up from 0 in each segment, so it is known how many frames are missing.

A fact's body is one line of JSON, the small fields, and behind it the user's data as they were captured:

    ["013x…", "complete", 1700000000000000000, 17, null, null, null]\n{"output": "…"}
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanStarted,
)
from prefactor_trace._schema import DeclaredSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefactor_trace._record import Fact

FORMAT_VERSION = 1
"""Rises only when an older version could misread a file. A kind of frame that it does not know it passes over."""
MAGIC = b"\xf5PTR"
_HEAD = struct.Struct("<4sBIII")  # magic, kind, number, length of the body, checksum
_SALT = 0x5054521A  # so that zeros behind a magic, which a crash of the machine can leave, are no frame
_MAX_BODY = 256 * 1024 * 1024  # beyond what capture lets through by far: a larger length is damage

HEADER = 0
"""What the segment is: a JSON object. Always the first frame."""
SETTLED = 6
"""What the platform has, or never will: `{"delivered": [key, …], "dropped": {key: reason, …}}`."""
ANNOUNCED = 7
"""Spans the platform may have been told of while they were running: `[id, …]`."""
SCHEMA = 9
"""What runs declare, if that was not built yet when they were registered: a line `[id, …]`, and the schema."""
STRUCK = 10
"""Records over which the platform has failed, when each was sent alone: `{id or key: [key, strikes, tries], …}`."""


class Frame(NamedTuple):
    """One frame that is whole."""

    kind: int
    number: int
    body: bytes


class Damage(NamedTuple):
    """Bytes that are no frame."""

    start: int
    end: int


def frame(
    kind: int,
    number: int,
    body: bytes,
    _pack: Callable[..., bytes] = _HEAD.pack,
    _crc: Callable[[bytes, int], int] = zlib.crc32,
) -> bytes:
    """Return *body* as a frame. *number*: below 2**32."""
    length = len(body)
    # The checksum begins with what stands before it: a flipped bit there is another beginning, and another end.
    seed = (number ^ length << 8 ^ kind << 24 ^ _SALT) & 0xFFFFFFFF
    return _pack(MAGIC, kind, number, length, _crc(body, seed)) + body


def scan(data: bytes) -> Iterator[Frame | Damage]:
    """Yield what *data* holds, in order. Never raises; never yields a frame whose checksum is wrong."""
    position, end = 0, len(data)
    while position < end:
        found = _frame_at(data, position)
        if found is not None:
            position += _HEAD.size + len(found.body)
            yield found
            continue
        next_magic = data.find(MAGIC, position + 1)
        while next_magic >= 0 and _frame_at(data, next_magic) is None:
            next_magic = data.find(MAGIC, next_magic + 1)
        resumes = end if next_magic < 0 else next_magic
        yield Damage(position, resumes)
        position = resumes


def _frame_at(data: bytes, position: int) -> Frame | None:
    start = position + _HEAD.size
    if len(data) < start:
        return None
    magic, kind, number, length, checksum = _HEAD.unpack_from(data, position)
    if magic != MAGIC or length > _MAX_BODY or start + length > len(data):
        return None
    # No body contains the magic; and looking for it is what keeps many wrong lengths from taking for ever.
    if data.find(MAGIC, start, start + length) >= 0:
        return None
    body = data[start : start + length]
    seed = (number ^ length << 8 ^ kind << 24 ^ _SALT) & 0xFFFFFFFF
    return Frame(kind, number, body) if zlib.crc32(body, seed) == checksum else None


# -- facts -------------------------------------------------------------------------------------------------


def parts(fact: Fact) -> tuple[int, bytes]:
    """Return *fact* as the kind and the body of a frame. Raises TypeError for a schema that is not JSON."""
    kind, body_of = _ENCODE[type(fact)]
    return kind, body_of(fact)


def encode(fact: Fact, number: int) -> bytes:
    """Return *fact* as a frame."""
    kind, body = parts(fact)
    return frame(kind, number, body)


def decode(found: Frame) -> Fact | None:
    """Return the fact in a frame, None if it holds something else. Raises ValueError if it is none of ours."""
    fact_of = _DECODE.get(found.kind)
    if fact_of is None:
        return None
    try:
        line, _, blobs = found.body.partition(b"\n")
        return fact_of(_loads(line), blobs)
    except (TypeError, IndexError, KeyError, RecursionError) as error:
        raise ValueError(f"a frame of kind {found.kind} of another shape: {error}") from error


def _dumps(head: list[Any]) -> bytes:
    try:
        return orjson.dumps(head)
    except orjson.JSONEncodeError:  # a name with half a character; the wire will say that it cannot be sent
        return json.dumps(head).encode()


def _loads(line: bytes) -> list[Any]:
    try:
        head = orjson.loads(line)
    except orjson.JSONDecodeError:
        head = json.loads(line)
    if type(head) is not list:
        raise ValueError("not a list")
    return head


def _length(blob: bytes | None) -> int | None:
    return None if blob is None else len(blob)


def _encode_registered(fact: InstanceRegistered) -> bytes:
    head = orjson.dumps([fact.instance_id, len(fact.body)])
    return b"%b\n%b%b" % (head, fact.body, fact.schema.to_json())


def _encode_started(fact: InstanceStarted) -> bytes:
    return orjson.dumps([fact.instance_id, fact.at])


def _encode_finished(fact: InstanceFinished) -> bytes:
    return orjson.dumps([fact.instance_id, fact.at, fact.status])


def _encode_quality(fact: QualityRecorded) -> bytes:
    id_, instance_id, name, payload = fact
    return b"%b\n%b" % (_dumps([id_, instance_id, name, payload is not None]), payload or b"")


def _encode_span_started(fact: SpanStarted) -> bytes:
    id_, instance_id, parent_id, schema_name, name, at, payload, envelope, quiet = fact
    head = [id_, instance_id, parent_id, schema_name, name, at, envelope, payload is not None]
    if quiet:
        head.append(True)
    return b"%b\n%b" % (_dumps(head), payload or b"")


def _encode_span_ended(fact: SpanEnded) -> bytes:
    id_, status, at, result, error, metadata, payload, usage = fact
    if error is None and metadata is None and payload is None and usage is None:  # as most of them
        return b"%b\n%b" % (
            orjson.dumps([id_, status, at, _length(result), None, None, None]),
            result or b"",
        )
    blobs = (result, error, metadata, payload) if usage is None else (result, error, metadata, payload, usage)
    head = orjson.dumps([id_, status, at, *map(_length, blobs)])
    return head + b"\n" + b"".join(blob for blob in blobs if blob is not None)


def _decode_registered(head: list[Any], blobs: bytes) -> InstanceRegistered:
    instance_id, length = _id(head[0]), _whole(head[1])
    orjson.loads(blobs[:length])
    schema = DeclaredSchema(blobs[length:])
    schema.to_wire()
    return InstanceRegistered(instance_id, blobs[:length], schema)


def encode_schema(instance_ids: list[str], schema: bytes) -> bytes:
    """Return the body of a SCHEMA frame."""
    return b"%b\n%b" % (orjson.dumps(instance_ids), schema)


def decode_schema(body: bytes) -> dict[str, DeclaredSchema]:
    """Return what is in a SCHEMA frame, by instance. Raises ValueError if it is none of ours."""
    line, _, content = body.partition(b"\n")
    schema = DeclaredSchema(content)
    schema.to_wire()
    return {_id(each): schema for each in _loads(line)}


def _decode_started(head: list[Any], _: bytes) -> InstanceStarted:
    return InstanceStarted(_id(head[0]), _whole(head[1]))


def _decode_finished(head: list[Any], _: bytes) -> InstanceFinished:
    return InstanceFinished(_id(head[0]), _whole(head[1]), _status(head[2]))


def _decode_quality(head: list[Any], blobs: bytes) -> QualityRecorded:
    id_, instance_id, name, has_payload = head
    return QualityRecorded(_id(id_), _id(instance_id), _text(name), blobs if has_payload else None)


def _decode_span_started(head: list[Any], blobs: bytes) -> SpanStarted:
    id_, instance_id, parent_id, schema_name, name, at, envelope, has_payload, *quiet = head
    if len(quiet) > 1:
        raise ValueError("more than a span's beginning has")
    parent_id = None if parent_id is None else _id(parent_id)
    return SpanStarted(
        _id(id_),
        _id(instance_id),
        parent_id,
        _text(schema_name),
        _text(name),
        _whole(at),
        blobs if has_payload else None,
        bool(envelope),
        bool(quiet and quiet[0]),
    )


def _decode_span_ended(head: list[Any], blobs: bytes) -> SpanEnded:
    id_, status, at, *lengths = head
    parts: list[bytes | None] = []
    start = 0
    for length in lengths:
        end = start + (0 if length is None else _whole(length))
        parts.append(None if length is None else blobs[start:end])
        start = end
    if start != len(blobs):
        raise ValueError("data of another length than said")
    result, error, metadata, payload, *usage = parts
    return SpanEnded(_id(id_), _status(status), _whole(at), result, error, metadata, payload, *usage)


def _id(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("not an id")
    value.encode()  # half a character is a ValueError, too
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("not a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a whole number")
    return value


def _status(value: Any) -> Any:
    if value not in ("complete", "failed", "cancelled"):
        raise ValueError("not a final status")
    return value


_ENCODE: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    InstanceRegistered: (1, _encode_registered),
    InstanceStarted: (2, _encode_started),
    InstanceFinished: (3, _encode_finished),
    SpanStarted: (4, _encode_span_started),
    SpanEnded: (5, _encode_span_ended),
    QualityRecorded: (8, _encode_quality),
}
_DECODE: dict[int, Callable[[list[Any], bytes], Fact]] = {
    1: _decode_registered,
    2: _decode_started,
    3: _decode_finished,
    4: _decode_span_started,
    5: _decode_span_ended,
    8: _decode_quality,
}

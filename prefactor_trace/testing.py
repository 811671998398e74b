"""For the tests of people who trace: run code with recording in memory, and look at what was recorded.

    from prefactor_trace.testing import recording

    with recording() as recorded:
        with pt.instance():
            search("refund policy")
    assert [span.name for span in recorded.spans] == ["search"]

No thread, no network, nothing left behind: the default tracer before is the default tracer after.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace._api import Tracer, set_default
from prefactor_trace._record import InstanceFinished, InstanceRegistered, QualityRecorded, SpanRecord
from prefactor_trace.exporters import MemoryExporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefactor_trace._record import Ledger

__all__ = ["RecordedInstance", "RecordedQuality", "RecordedSpan", "Recording", "recording"]


class RecordedInstance(NamedTuple):
    """A run. *status* is None while it is open; *registered* is the request that registers it."""

    id: str
    status: str | None
    registered: dict[str, Any]


class RecordedSpan(NamedTuple):
    """A span that has ended. Payload, result, error and metadata are parsed; None where there was none."""

    id: str
    instance_id: str
    parent_id: str | None
    type: str
    name: str
    status: str
    payload: Any
    result: Any
    error: Any
    metadata: Any
    started_at: int
    finished_at: int


class RecordedQuality(NamedTuple):
    """A rating of a run. *payload* is None where a rating was taken back."""

    instance_id: str
    name: str
    payload: dict[str, Any] | None


class Recording:
    """What has been recorded so far."""

    def __init__(self, tracer: Tracer, exporter: MemoryExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    @property
    def instances(self) -> list[RecordedInstance]:
        """The runs, in the order they began."""
        records = self._records()
        ends = {each.instance_id: each.status for each in records if isinstance(each, InstanceFinished)}
        return [
            RecordedInstance(each.instance_id, ends.get(each.instance_id), orjson.loads(each.body))
            for each in records
            if isinstance(each, InstanceRegistered)
        ]

    @property
    def spans(self) -> list[RecordedSpan]:
        """The spans that have ended, in the order they began."""
        spans = [_read(each) for each in self._records() if isinstance(each, SpanRecord)]
        return sorted(spans, key=lambda span: span.started_at)

    @property
    def quality(self) -> list[RecordedQuality]:
        """The ratings of all runs, in the order they were recorded; the last one of a run and name is what stays."""
        return [
            RecordedQuality(each.instance_id, each.name, _parse(each.payload))
            for each in self._records()
            if isinstance(each, QualityRecorded)
        ]

    @property
    def ledger(self) -> Ledger:
        """The tracer's ledger."""
        return self.tracer.stats()

    def tree(self) -> str:
        """The spans as indented lines of name and status, for one-line assertions and for reading."""
        spans = self.spans
        known = {span.id for span in spans}
        children: dict[str | None, list[RecordedSpan]] = {}
        for span in spans:
            children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
        lines = []
        stack = [(span, 0) for span in reversed(children.get(None, []))]
        while stack:
            span, depth = stack.pop()
            lines.append(f"{'  ' * depth}{span.name} {span.status}")
            stack += ((child, depth + 1) for child in reversed(children.get(span.id, [])))
        return "\n".join(lines)

    def _records(self) -> list[Any]:
        self.tracer.flush()
        return self._exporter.records


def _read(record: SpanRecord) -> RecordedSpan:
    started, ended = record.started, record.ended
    assert ended is not None, "the exporter keeps spans that have ended"
    payload = started.payload if ended.payload is None else ended.payload
    return RecordedSpan(
        id=started.id,
        instance_id=started.instance_id,
        parent_id=started.parent_id,
        type=started.schema_name,
        name=started.name,
        status=ended.status,
        payload=_parse(payload),
        result=_parse(ended.result),
        error=_parse(ended.error),
        metadata=_parse(ended.metadata),
        started_at=started.started_at,
        finished_at=ended.finished_at,
    )


def _parse(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


@contextlib.contextmanager
def recording(**settings: Any) -> Iterator[Recording]:
    """Record in memory for the length of the block. *settings*: as for `configure`, without `exporter`.

    The environment's PREFACTOR variables are not looked at.
    """
    exporter = MemoryExporter()
    tracer = Tracer(exporter=exporter, threaded=False, environ={}, **settings)
    before = set_default(tracer)
    try:
        yield Recording(tracer, exporter)
    finally:
        set_default(before)
        tracer.shutdown()

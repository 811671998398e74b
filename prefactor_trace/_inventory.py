"""What waits in the spool, for people: who left it, how much it is, what is in it, and how to be rid of it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace._record import SpanEnded, SpanRecord, SpanStarted, identity
from prefactor_trace._spool import Folder, Segment, may_follow
from prefactor_trace._wire import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefactor_trace._record import Fact
    from prefactor_trace._spool import Contents


class Holding(NamedTuple):
    """What one process has in the spool.

    Attributes:
        owner: Its name in the folder.
        destination: Whose records these are: `local`, or an address and a digest of the token. None: it was written
            by a newer version, or cannot be read.
        pid: The process.
        since: When it began.
        is_alive: Whether it is still running.
        runs: Runs of which anything waits.
        records: Records that wait.
        size: Bytes on disk.
    """

    owner: str
    destination: str | None
    pid: int | None
    since: datetime | None
    is_alive: bool
    runs: int
    records: int
    size: int


def survey(path: Path) -> list[Holding]:
    """Return what all processes have in the spool, the oldest first."""
    folder = Folder(path)
    sizes = folder.segment_sizes()
    return [_holding(folder, name, sizes) for name in folder.owners()]


def waiting_for(path: Path, ours: str) -> tuple[int, dict[str, int]]:
    """Count the records that processes that have ended left.

    Returns:
        How many go where records for *ours* go, as far as can be told without asking the platform; and how many do
        not, by their destination.
    """
    folder = Folder(path)
    partition = folder.accounts().get(ours)
    own, others = 0, Counter[str]()
    for each in survey(path):
        if each.is_alive or not each.records:
            continue
        if may_follow(each.destination, ours, partition, folder) is False:
            others[each.destination or "a newer version"] += each.records
        else:
            own += each.records
    return own, dict(others)


def _holding(folder: Folder, name: str, sizes: dict[str, int]) -> Holding:
    said, is_alive = folder.look_at(name)
    said = said or {}
    # A span counts where it begins.
    runs = [fact.instance_id for fact in _waiting(folder, name) if not isinstance(fact, SpanEnded)]
    destination, pid, since = said.get("destination"), said.get("pid"), said.get("since")
    return Holding(
        name,
        destination if isinstance(destination, str) else None,
        pid if isinstance(pid, int) else None,
        datetime.fromtimestamp(since / 1e9, tz=timezone.utc) if isinstance(since, int) else None,
        is_alive=is_alive,
        runs=len(set(runs)),
        records=len(runs),
        size=sum(sizes.get(segment, 0) for segment in folder.segments_of(name)),
    )


def export(path: Path) -> Iterator[bytes]:
    """Yield what waits as lines of JSON, the items of the bulk call; a span that has not ended is `active`."""
    folder = Folder(path)
    for name in folder.owners():
        open_: dict[str, SpanStarted] = {}
        for fact in _waiting(folder, name):
            if isinstance(fact, SpanStarted):
                open_[fact.id] = fact
            elif isinstance(fact, SpanEnded):
                started = open_.pop(fact.id, None)
                if started is not None:
                    yield line_of(SpanRecord(started, fact)) or b""
            else:
                yield line_of(fact) or b""
        for started in open_.values():
            yield line_of(SpanRecord(started, None)) or b""


def purge(path: Path) -> int:
    """Remove what processes that have ended left, for whatever destination. Return how many bytes that were."""
    folder = Folder(path)
    sizes = folder.segment_sizes()
    removed = 0
    for name in folder.owners():
        owner = folder.claim(name)
        if owner is None:
            continue
        for segment in owner.segments():
            folder.remove(segment)
            removed += sizes.get(segment, 0)
        owner.leave()
    return removed


def _waiting(folder: Folder, name: str) -> Iterator[Fact]:
    """Yield the facts of an owner that are not settled, in whichever segment that is said."""
    segments = folder.segments_of(name)
    settled = {key for contents in _contents(folder, segments) for key in contents.settled}
    for contents in _contents(folder, segments):
        yield from (fact for fact in contents.facts() if identity(fact) not in settled)


def _contents(folder: Folder, segments: list[str]) -> Iterator[Contents]:
    """Yield what segments hold, one after the other: all at once they may be too much for the memory."""
    for segment in segments:
        contents = folder.read(Segment(segment))
        if contents is not None:
            yield contents

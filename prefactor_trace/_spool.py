"""The outbox's files: what is recorded is on disk before the recording call returns.

Every process is an **owner** with a random name. It holds a lock on `<owner>.lock` for as long as it lives, which the
kernel lets go of however it ends, and appends its facts to `<owner>.<number>.seg`, one write(2) each. A segment that is
full is sealed and a new one begun; one whose facts are all settled is removed whole, which needs no free space. What a
dead owner has left is its **estate**: whoever gets its lock first takes it over.

`write` may be called on any thread; everything else belongs to the sender. Nothing here raises for what a disk does:
when it fails, facts stay in memory, as without a spool, and another try is made after a while.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import orjson

from prefactor_trace import _frames
from prefactor_trace._outbox import Strike, interrupted
from prefactor_trace._record import (
    FINISH,
    REGISTER,
    START,
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    SpanEnded,
    SpanStarted,
    identity,
)
from prefactor_trace._shelf import Home, Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prefactor_trace._record import Fact
    from prefactor_trace._schema import DeclaredSchema

try:
    import fcntl
except ImportError:  # Windows: without advisory locks nobody could tell a dead owner from a living one
    fcntl = None  # type: ignore[assignment]

_T = TypeVar("_T")

SEGMENT_BYTES = 8 * 1024 * 1024
QUOTA_BYTES = 512 * 1024 * 1024
"""All segments of a user together; what is there already and a tenth of what is free, if that is less.

But one segment at least: a process writes so much in any case, and removing it would lose what can still be sent.
"""
_SMALL_BYTES = 4 * SEGMENT_BYTES
_ACCOUNTS = "accounts.jsonl"
LETTERS = "rejected.jsonl"
"""The file of what the platform would not have."""
_LETTERS_BYTES = 64 * 1024 * 1024
# After the disk has failed, facts stay in memory, and the next try waits.
_RETRY_SECONDS = 30.0
_OPENING_SECONDS = 0.5
_MOST_TRIES = 5  # of one fact, as others fill the next file or close it
# A run that was taken over is not finished for so long while a child of its process may have steps of it.
_FAMILY_SECONDS = 300.0
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_OWNER = re.compile("[0-9a-f]{16}-[0-9a-f]{16}")
_LOCK = ".lock"
# What somebody has put there in place of a file of ours, or has taken away.
_NOT_OURS = (errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOENT, errno.ENOTDIR)
_HIGH = 512
_SEGMENT = ".seg"

# Every fact goes through these three.
_parts, _frame, _write = _frames.parts, _frames.frame, os.write

is_possible = fcntl is not None
"""Whether this platform can have a spool."""


class Segment(Home):
    """One file of facts.

    Attributes:
        name: Its name in the folder.
        is_sealed: Nothing new goes into it.
        is_quiet: No thread is writing into it any more.
        is_noted: All its facts are counted in `unsettled`; it may go when that is 0.
        settled: What is settled of it, while it is being read.
        unwritten: What is settled of it, and could not be written down.
        notes: In which words that is to be written.
    """

    __slots__ = (
        "is_noted",
        "is_quiet",
        "is_sealed",
        "name",
        "notes",
        "numbers",
        "settled",
        "size",
        "unwritten",
    )

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.numbers = itertools.count()
        self.size = 0
        self.is_sealed = False
        self.is_quiet = False
        self.is_noted = False
        self.settled: set[str] | None = None
        self.unwritten: set[str] = set()
        self.notes: deque[bytes] = deque()


class _Pen:
    """What a segment is written with. Goes when the last thread that writes with it has let go of it."""

    __slots__ = ("fd", "segment")

    def __init__(self, fd: int, segment: Segment) -> None:
        self.fd = fd
        self.segment = segment

    # Closing by hand could close a descriptor under a thread that is about to write: it might be the program's by then.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        try:  # noqa: SIM105 - at the end of the program there may be no contextlib any more
            close(self.fd)
        except OSError:  # the program has closed all there were
            pass
        self.segment.is_quiet = True


class Found(NamedTuple):
    """A fact that was read back.

    Attributes:
        fact: The fact.
        segment: Where it is.
        is_known: The platform has it; it matters only because it says that its run goes on, or does no more.
        is_suspect: The platform may have been told of this span while it was running.
        strike: The platform has failed over it before.
    """

    fact: Fact
    segment: Segment
    is_known: bool = False
    is_suspect: bool = False
    strike: Strike | None = None


# What was removed for want of room: a segment, what was not settled in it, as keys and instances, and how many records
# were lost with it that have not been counted yet.
_Sacrificed: TypeAlias = tuple[Segment, list[tuple[str, str]], int]


class Spool:
    """See the module's docstring.

    Args:
        folder: Where the files are; made if it does not exist, for the user alone.
        destination: Whose records these are; those of others are left alone. An address, a space and a digest of
            the token; or one word.
        segment_bytes: When a new segment is begun.
        quota_bytes: What all segments of the folder may take together.
    """

    def __init__(
        self,
        folder: Path,
        destination: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self._folder = Folder(folder)
        self._destination = destination
        self._partition: str | None = None
        self._segment_bytes = segment_bytes
        self._quota_bytes = quota_bytes
        self._owner: Owner | None = None
        self._former_owners: list[Owner] = []
        self._may_take = quota_bytes
        self.is_small = False
        """Whether memory has more room than this disk: then it is for what a crash would lose, and no store."""
        self.is_unattended = False
        """Whether nobody calls `sacrifice` any more: then nothing is begun beyond the quota."""
        self._is_closed = False
        self._pen: _Pen | None = None
        self._segments: list[Segment] = []  # of our own, oldest first
        self._estates: list[Estate] = []
        self._opening = threading.Lock()
        self._unbuilt: deque[tuple[Segment, InstanceRegistered]] = deque()
        self._retry_at = 0.0
        self.failure: str | None = None
        """Why facts are in memory only, None while they are not."""
        self.notes: Counter[str] = Counter()
        """What happened to what dead owners left, for the ledger."""

    # -- any thread ----------------------------------------------------------------------------------------

    def write(self, fact: Fact, *, tries: int = 0) -> Segment | None:
        """Put *fact* on disk. Return where, None if that is not possible. Never raises."""
        pen = self._pen or self._take_new_pen(None)
        if pen is None:
            return None
        segment = pen.segment
        # Asked before it is written: the sender may be building it just now.
        is_unbuilt = type(fact) is InstanceRegistered and not fact.schema.is_built
        try:
            kind, body = _parts(fact)
        except TypeError:  # a schema that is not JSON: the wire will refuse it
            return None
        data = _frame(kind, next(segment.numbers), body)
        try:
            written = _write(pen.fd, data)
            failed = None if written == len(data) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except (
            OSError
        ) as error:  # without its frames: they keep the pen, which must go with the last who writes with it
            failed = OSError(error.errno, error.strerror)
        if failed is not None:
            self._fail(failed, pen)
            # Another file may have room: how large one may be is limited as well.
            is_full = failed.errno in (errno.EFBIG, errno.ENOSPC) and segment.size > 0
            if is_full:
                self._retry_at = 0.0
            if tries == _MOST_TRIES or not (is_full or failed.errno == errno.EBADF):
                return None
            return self.write(fact, tries=tries + 1)
        # Two threads may lose a little of it; the limit is a round number.
        segment.size = size = segment.size + written
        if is_unbuilt:
            self._unbuilt.append((segment, fact))  # type: ignore[arg-type] # a registration
        if size >= self._segment_bytes:
            self._take_new_pen(pen)
        return segment

    def _take_new_pen(self, old: _Pen | None) -> _Pen | None:
        """Begin a segment in place of *old*'s. If another thread is at it already, go on with what there is."""
        if time.monotonic() < self._retry_at:
            return self._pen
        # Whoever has something to write with goes on with that. The others wait; not for ever, because a signal
        # handler may have interrupted the thread that is at it.
        if not self._opening.acquire(timeout=_OPENING_SECONDS if old is None else 0):
            return self._pen
        try:
            if self._pen is old and not self._is_closed:
                pen = self._begin_segment(self._ourselves())
                self._segments.append(pen.segment)
                self._pen = pen
                self.failure = None
                if old is not None:
                    old.segment.is_sealed = True
        except OSError as error:
            if old is not None and error.errno in (errno.EMFILE, errno.ENFILE):
                self._retry_at = time.monotonic() + _RETRY_SECONDS  # and write on in the file there is
            else:
                self._fail(error)
        finally:
            self._opening.release()
        return self._pen

    def _ourselves(self) -> Owner:
        """Return the owner that we are, and become one if need be. Raises OSError, also beyond the quota."""
        if self.is_unattended and self._folder.used_bytes() > self._most_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        owner = self._owner  # another thread may find at any moment that it is gone
        if owner is None:
            former = self._former_owners[-1].name if self._former_owners else None
            self._owner = owner = self._folder.new_owner(self._destination, former)
            may_take = self._folder.used_bytes() + self._folder.free_bytes() // 10
            self._may_take = max(may_take, self._segment_bytes)
            self.is_small = may_take < _SMALL_BYTES
        return owner

    def _begin_segment(self, owner: Owner) -> _Pen:
        fd, name = owner.new_segment()
        pen = _Pen(fd, Segment(name))
        header = _frames.frame(_frames.HEADER, next(pen.segment.numbers), owner.description)
        try:
            _write_all(fd, header)
        except OSError:
            self._folder.remove(name)
            raise
        return pen

    def _fail(self, error: OSError, failing: _Pen | None = None) -> None:
        if error.errno == errno.EBADF and failing is not None:
            failing.fd = -1  # the number may be another file's by now
        if failing is not None and self._pen is not failing:  # another thread has taken a new one
            return
        pen, self._pen = self._pen, None
        if pen is not None:
            pen.segment.is_sealed = True
        is_closed = error.errno == errno.EBADF  # by the program, and so is the lock
        is_gone = is_closed or error.errno == errno.ENOENT
        if self._owner is not None and (is_gone or not self._folder.has(self._owner)):
            if is_closed:
                self._owner.renounce()
            self._former_owners.append(self._owner)  # its files are gone; a new folder needs a new lock
            self._owner = None
        self._retry_at = 0.0 if is_closed else time.monotonic() + _RETRY_SECONDS
        self.failure = error.strerror or type(error).__name__

    # -- the sender ----------------------------------------------------------------------------------------

    def build_schemas(self) -> None:
        """Build the schemas of runs that were written down before they were built, and write them down as well."""
        unbuilt: dict[tuple[Segment, int], list[InstanceRegistered]] = {}
        while self._unbuilt:
            segment, fact = self._unbuilt.popleft()
            unbuilt.setdefault((segment, id(fact.schema)), []).append(fact)
        for (segment, _), facts in unbuilt.items():
            schema = facts[0].schema
            schema.to_wire()
            body = _frames.encode_schema([each.instance_id for each in facts], schema.to_json())
            self._append(segment, _frames.SCHEMA, body)

    def settle(self, settled: Iterable[Settled], renamed: dict[str, str]) -> None:
        """Write down what need not be sent again, and remove the segments that are of no more use.

        *renamed*: ids of instances that the platform has changed.
        """
        for segment, group in _by_segment((each.home, each) for each in settled):
            if segment.settled is not None:
                segment.settled.update(each.key for each in group)
            segment.unwritten.update(each.key for each in group)
            segment.notes.append(_settled_body(group, renamed))
            self._write_notes(segment)
        self._remove_settled()

    def _write_notes(self, segment: Segment) -> None:
        """Write down what is settled, or as much of it as can be written just now."""
        while segment.notes and self._append(segment, _frames.SETTLED, segment.notes[0]):
            segment.notes.popleft()
        if not segment.notes:
            segment.unwritten.clear()

    def announce(self, spans: Iterable[tuple[Home, str]]) -> None:
        """Write down that the platform is about to be told of spans that are still running."""
        for segment, ids in _by_segment(spans):
            self._append(segment, _frames.ANNOUNCED, orjson.dumps(ids))

    def note_strikes(self, strikes: Iterable[tuple[Home, Strike]]) -> None:
        """Write down over what the platform has failed, so that the next process need not begin to count again."""
        for segment, group in _by_segment(strikes):
            latest = {strike.identity: strike[1:] for strike in group}
            self._append(segment, _frames.STRUCK, orjson.dumps(latest))

    def _append(self, segment: Segment, kind: int, body: bytes) -> bool:
        """Add to a segment, sealed or not. If that fails, more than needed will be sent again, and nothing is lost."""
        try:
            self._folder.append(segment.name, _frames.frame(kind, next(segment.numbers), body))
        except OSError:
            return False
        return True

    def _remove_settled(self) -> None:
        self._segments = [each for each in self._segments if not self._remove_if_settled(each)]
        for estate in list(self._estates):
            estate.segments = [each for each in estate.segments if not self._remove_if_settled(each)]
            if estate.is_read and not estate.segments:
                for owner in estate.owners:
                    owner.leave()
                self._estates.remove(estate)

    def _remove_if_settled(self, segment: Segment) -> bool:
        if segment.unsettled > 0 or not segment.is_noted:
            return False
        self._folder.remove(segment.name)
        return True

    def look_after(self) -> None:
        """Notice if the files have been removed under us: what is written into them would be lost."""
        owner = self._owner
        if owner is not None and self._pen is not None and not self._folder.has(owner):
            self._fail(FileNotFoundError(errno.ENOENT, "the folder has been removed"))
            self._retry_at = 0.0

    def note_quiet(self) -> list[Segment]:
        """Return the sealed segments into which nobody writes any more. Call before carrying over what waits."""
        return [each for each in self._segments if each.is_sealed and each.is_quiet and not each.is_noted]

    def next_deferred(self) -> Segment | None:
        """Return the oldest segment of our own with deferred facts, as soon as it can be read."""
        for segment in self._segments:
            if segment.deferred > 0:
                if not segment.is_sealed:
                    self._take_new_pen(self._pen)
                return segment if segment.is_noted else None
        return None

    @property
    def has_deferred(self) -> bool:
        """Whether any of our own facts are on disk only."""
        return any(segment.deferred > 0 for segment in self._segments)

    def read(self, segment: Segment) -> Iterator[Found] | None:
        """Return the facts of one of our own segments that are not settled; None if it cannot be read just now."""
        contents = self._folder.read(segment)
        return None if contents is None else self._facts_of(segment, contents)

    def _facts_of(self, segment: Segment, contents: Contents) -> Iterator[Found]:
        contents.settled |= segment.unwritten
        segment.settled = contents.settled
        for fact in contents.unsettled_facts():
            yield Found(fact, segment, is_suspect=identity(fact) in contents.announced)
        segment.settled = None

    def learn_account(self, partition: str) -> None:
        """Note which account our token belongs to, so that what waits for that account is known by any of its tokens."""
        if self._partition is None:
            self._partition = partition
            if self._folder.accounts().get(self._destination) != partition:
                self._folder.note_account(self._destination, partition)

    @property
    def account(self) -> str | None:
        """The partition of the account that our token belongs to, as far as any process has heard."""
        return self._partition or self._folder.accounts().get(self._destination)

    def _may_send(self, destination: object) -> bool:
        return may_follow(destination, self._destination, self._partition, self._folder) is True

    @property
    def wants_account(self) -> bool:
        """Whether something waits for our address under another token, and we do not know yet whose that is."""
        address = self._destination.rpartition(" ")[0]
        if self._partition is not None or not address:
            return False
        said = (self._folder.look_at(name)[0] or {} for name in self._folder.owners())
        others = {str(each.get("destination")) for each in said} - {self._destination}
        return any(each.rpartition(" ")[0] == address for each in others)

    def adopt(self, *, only_children: bool = False) -> Iterator[Found]:
        """Take over what dead owners have left, and yield it. Takes nothing over that is not asked for."""
        for estate in [] if only_children else list(self._estates):
            if not estate.is_read:  # a file of it could not be read
                yield from self._all_of(estate)
        own_pid = os.getpid()
        for line in self._lines():
            said = line[0][1]
            is_child = own_pid in (said.get("parent"), said.get("started_by"))
            if (only_children and not is_child) or not self._may_send(said.get("destination")):
                continue
            owners = self._claim([name for name, _ in line])
            if not owners:
                continue
            estate = Estate(owners, self._folder)
            if not estate.is_readable:  # perhaps another time: half of it would tell of spans without an end
                for owner in owners:
                    owner.close()
                continue
            self._estates.append(estate)
            yield from self._all_of(estate)

    def _all_of(self, estate: Estate) -> Iterator[Found]:
        yield from estate.facts()
        if estate.is_read and estate.damaged:
            self.notes["damaged in the spool"] += estate.damaged

    def _lines(self) -> list[list[tuple[str, dict[str, object]]]]:
        """Return the dead owners, by their names and what they said; those that one process was in turn, together."""
        found: dict[str, tuple[dict[str, object], bool]] = {}
        for name in self._folder.owners():
            said, is_alive = self._folder.look_at(name)
            if said is None and not is_alive:
                self._folder.sweep(name)
            if said is not None:
                found[name] = (said, is_alive)
        after = {said["follows"]: name for name, (said, _) in found.items() if said.get("follows") in found}
        lines = []
        for first in (name for name, (said, _) in found.items() if said.get("follows") not in found):
            line = [first]
            while line[-1] in after and len(line) < len(found):
                line.append(after[line[-1]])
            if not any(found[name][1] for name in line):
                lines.append([(name, found[name][0]) for name in line])
        return lines

    def _claim(self, names: list[str]) -> list[Owner]:
        """Take the place of all these owners, or of none."""
        owners: list[Owner] = []
        for name in names:
            owner = self._folder.claim(name)
            if owner is None:
                for each in owners:
                    each.close()
                return []
            owners.append(owner)
        return owners

    def has_family(self) -> bool:
        """Whether another process has files that may be of a run that we have taken over: a child of whoever died.

        It can be alive, or its estate another's. Not asked for longer than a few minutes after we have taken over.
        """
        now = time.monotonic()
        estates = [each for each in self._estates if now < each.waits_until]
        names = self._folder.listed() if estates else []
        if names is None:  # it cannot be told just now
            return True
        ours = {each.name for each in self._owners()}
        owners = [each.removesuffix(_LOCK) for each in names if each.endswith(_LOCK)]
        others = {
            name: said
            for name in owners
            if name not in ours and (said := self._folder.read_description(name)) is not None
        }
        # In containers, whoever comes next has often the same number; then children are not known by it.
        known = {os.getpid(), os.getppid(), *(said.get("pid") for said in others.values())}
        dead = {owner.pid: owner.since for each in estates for owner in each.owners if owner.pid not in known}
        for name, said in others.items():
            since = said.get("since")
            for parent in (said.get("parent"), said.get("started_by")):
                is_child = parent in dead and isinstance(since, int) and since >= dead[parent]
                if is_child and _segments_of(name, names):
                    return True
        return False

    @property
    def _most_bytes(self) -> int:
        return min(self._quota_bytes, self._may_take)

    def sacrifice(self) -> Iterator[_Sacrificed]:
        """Remove the oldest segments while the folder is over its quota; those of others only if they are dead."""
        sizes = self._folder.segment_sizes()
        excess = sum(sizes.values()) - self._most_bytes
        own = {each.name: each for each in self._segments}
        taken_over = {each.name: (estate, each) for estate in self._estates for each in estate.segments}
        for name in sorted(sizes):
            if excess <= 0:
                return
            if name in own:
                found = self._remove_own(own[name], self._segments)
            elif name in taken_over:
                found = self._remove_taken_over(*taken_over[name])
            else:
                found = self._remove_of_dead(name)
            if found is not None:
                yield found
                excess -= sizes[name]

    def _remove_own(self, segment: Segment, among: list[Segment]) -> _Sacrificed | None:
        """Remove a segment, of which everything has been counted; None: it is not time for that."""
        if not segment.is_noted or segment.settled is not None:
            return None
        contents = self._folder.read(segment)
        self._folder.remove(segment.name)
        among.remove(segment)
        return segment, contents.unsettled() if contents else [], 0

    def _remove_taken_over(self, estate: Estate, segment: Segment) -> _Sacrificed | None:
        """Remove a segment of an estate. What has not been read of it is lost, and so are the runs that it is of."""
        if segment.is_noted or segment.settled is not None:
            return self._remove_own(segment, estate.segments)
        segment.is_noted = True
        found = self._remove_own(segment, estate.segments)
        if found is None:
            return None
        records = found[1]
        estate.given_up.update(instance_id for _, instance_id in records)
        return segment, records, len(records)

    def _remove_of_dead(self, name: str) -> _Sacrificed | None:
        """Remove a segment of an owner that has died, and that nobody has taken over; None: it is not dead."""
        owner = self._folder.claim(name.split(".", maxsplit=1)[0])
        if owner is None:
            return None
        contents = self._folder.read(Segment(name))
        self._folder.remove(name)
        owner.leave()
        return Segment(name), [], len(contents.unsettled()) if contents else 0

    def reject(self, letters: Iterable[bytes]) -> None:
        """Keep records that the platform will never take in a file of JSON lines, for people to look at."""
        data = b"".join(letters)
        try:
            self._folder.append(LETTERS, data, os.O_CREAT, limit=_LETTERS_BYTES)
        except OSError:
            self.notes["rejected, and not kept in a file"] += data.count(b"\n")

    def seal(self, *, for_good: bool = True) -> None:
        """Write no more into what there is; and, if *for_good*, nowhere else."""
        self.is_unattended = True
        if for_good:
            self._is_closed = True
            self._retry_at = float("inf")
        pen, self._pen = self._pen, None
        if pen is not None:
            pen.segment.is_sealed = True

    def close(self, *, for_good: bool = True) -> None:
        """Leave: remove what is of no more use, and let others take over the rest.

        If not *for_good*, whoever still records writes on. Then nobody takes over our own files while the process lives:
        one half of a run, while a thread of ours writes the other.
        """
        if for_good:
            self.seal()
        self._remove_settled()
        for segment in [*self._segments, *(each for estate in self._estates for each in estate.segments)]:
            self._write_notes(segment)
        for each in self._owners():
            if for_good or each is not self._owner:
                each.leave()
        if not for_good:
            self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        if not self._opening.acquire(timeout=_OPENING_SECONDS):
            return
        try:
            owner = self._owner
            if owner is not None and self._pen is None and not owner.segments():
                self._owner = None
                owner.leave()
        finally:
            self._opening.release()

    def forget(self) -> None:
        """After a fork, in the child: let go of what is the parent's, without a trace in its files."""
        self._pen = None
        for owner in self._owners():
            owner.close()
        self._folder.forget()

    def _owners(self) -> list[Owner]:
        """Return those whose locks we hold."""
        own = [] if self._owner is None else [self._owner]
        return [*own, *self._former_owners, *(owner for each in self._estates for owner in each.owners)]


def may_follow(destination: object, ours: str, partition: str | None, folder: Folder) -> bool | None:
    """Say whether records for *destination* may go where *ours* go: another token of the same account, perhaps.

    A token that was never accepted belongs to no account; it was wrong, and ours is the right one.

    *partition*: of the account that our token belongs to. Without it, None for a token of the same address: the
    platform has to be asked.
    """
    if destination == ours:
        return True
    address = ours.rpartition(" ")[0]
    if not isinstance(destination, str) or not address or destination.rpartition(" ")[0] != address:
        return False
    if partition is None:
        return None
    return folder.accounts().get(destination, partition) == partition


class Estate:
    """What a dead owner has left, or one after the other the owners that a process has been."""

    def __init__(self, owners: list[Owner], folder: Folder) -> None:
        self.owners = owners
        self._folder = folder
        names = folder.listed()
        own = [name for owner in owners for name in _segments_of(owner.name, names or [])]
        are_ours = {name: folder.is_ours(name) for name in own}
        self.segments = [Segment(name) for name in own if are_ours[name] is not False]
        self.is_readable = names is not None and None not in are_ours.values()
        """Whether all files of it could be opened just now."""
        self.given_up: set[str] = set()
        """Instances of which a part was removed before it was read."""
        self.waits_until = time.monotonic() + _FAMILY_SECONDS
        self.is_read = False
        self.damaged = 0
        """Frames that are missing."""

    def facts(self) -> Iterator[Found]:
        """Yield what is not settled; at the end, the ends of what was going on when the owner died.

        It stops, with `is_read` False, if a file cannot be read: what is behind that cannot be understood without it.
        Asked again, it begins again.
        """
        renamed: dict[str, str] = {}
        open_: dict[str, SpanStarted] = {}
        running: dict[str, bool] = {}  # → whether it has been started
        latest = 0
        self.damaged = 0
        segments = list(self.segments)
        for segment in segments:
            if segment not in self.segments:  # sacrificed meanwhile
                continue
            contents = self._folder.read(segment)
            if contents is None and self._folder.is_ours(segment.name) is not False:
                return
            if contents is None:
                continue
            self.damaged += contents.missing
            segment.numbers = itertools.count(contents.last_number + 1)
            renamed.update(contents.renamed)
            contents.settled |= segment.unwritten
            segment.settled = contents.settled
            for fact in contents.facts():
                latest = max(latest, _time_of(fact))
                _follow(fact, open_, running, contents)
                found = _found(fact, segment, contents, running)
                if found is not None:
                    yield found._replace(fact=_renamed(fact, renamed))
            segment.settled = None
            segment.is_noted = segment is not segments[-1]
        if segments:
            yield from self._ends(segments[-1], open_, running, latest or self.owners[0].since, renamed)
        for segment in segments:
            segment.is_noted = True
        self.is_read = True

    def _ends(
        self,
        segment: Segment,
        open_: dict[str, SpanStarted],
        running: dict[str, bool],
        at: int,
        renamed: dict[str, str],
    ) -> Iterator[Found]:
        """Yield the end of all that was going on, and write it down first: told twice, it must be the same."""
        for each in self.given_up:
            running.pop(each, None)
        # What was never started cannot fail: the platform would leave it pending for ever.
        ends: list[Fact] = [
            InstanceStarted(each, at) for each, is_started in running.items() if not is_started
        ]
        ends += [
            interrupted(started, at)
            for started in reversed(open_.values())
            if started.instance_id not in self.given_up
        ]
        ends += [InstanceFinished(instance_id, at, "failed") for instance_id in sorted(running)]
        frames = [_frames.encode(fact, next(segment.numbers)) for fact in ends]
        with contextlib.suppress(OSError):
            self._folder.append(segment.name, b"".join(frames))
        for fact in ends:
            yield Found(_renamed(fact, renamed), segment)


def _follow(fact: Fact, open_: dict[str, SpanStarted], running: dict[str, bool], contents: Contents) -> None:
    """Keep the account of what is going on."""
    if isinstance(fact, (InstanceStarted, SpanStarted)) and fact.instance_id in running:
        running[fact.instance_id] = True
    if type(fact) is SpanStarted:
        if fact.id not in contents.settled:
            open_[fact.id] = fact._replace(payload=None)
    elif type(fact) is SpanEnded:
        open_.pop(fact.id, None)
    elif type(fact) is InstanceFinished:
        running.pop(fact.instance_id, None)
    elif type(fact) is InstanceRegistered:
        is_over = fact.instance_id + FINISH in contents.settled or fact.key in contents.dropped
        if not is_over:
            running[fact.instance_id] = fact.instance_id + START in contents.settled


def _found(fact: Fact, segment: Segment, contents: Contents, running: dict[str, bool]) -> Found | None:
    """Return what a fact means to whoever takes it over; None: nothing any more."""
    key = identity(fact)
    if key not in contents.settled:
        return Found(fact, segment, is_suspect=key in contents.announced, strike=contents.strikes.get(key))
    matters = type(fact) is InstanceFinished or (
        type(fact) is InstanceRegistered and fact.instance_id in running
    )
    return Found(fact, segment, is_known=True) if matters else None


def _renamed(fact: Fact, renamed: dict[str, str]) -> Fact:
    if not renamed or isinstance(fact, SpanEnded) or fact.instance_id not in renamed:
        return fact
    return fact._replace(instance_id=renamed[fact.instance_id])


def _time_of(fact: Fact) -> int:
    if isinstance(fact, SpanStarted):
        return fact.started_at
    if isinstance(fact, SpanEnded):
        return fact.finished_at
    return fact.at if isinstance(fact, (InstanceStarted, InstanceFinished)) else 0


def _by_segment(found: Iterable[tuple[Home, _T]]) -> Iterable[tuple[Segment, list[_T]]]:
    """Return what each segment is the home of."""
    groups: dict[Segment, list[_T]] = {}
    for home, each in found:
        if isinstance(home, Segment):
            groups.setdefault(home, []).append(each)
    return groups.items()


def _settled_body(group: list[Settled], renamed: dict[str, str]) -> bytes:
    body: dict[str, object] = {"delivered": [each.key for each in group if each.reason is None]}
    dropped = {each.key: each.reason for each in group if each.reason is not None}
    if dropped:
        body["dropped"] = dropped
    if renamed:
        ours = {each.key.removesuffix(REGISTER) for each in group}
        body["renamed"] = {our_id: wire_id for our_id, wire_id in renamed.items() if our_id in ours}
    return orjson.dumps(body)


class Contents:
    """What one segment holds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.settled: set[str] = set()
        self.dropped: set[str] = set()
        self.announced: set[str] = set()
        self.strikes: dict[str, Strike] = {}
        self.renamed: dict[str, str] = {}
        self.schemas: dict[str, DeclaredSchema] = {}
        numbers: set[int] = set()
        is_damaged = False
        for found in _frames.scan(data):
            if isinstance(found, _frames.Frame):
                numbers.add(found.number)
                self._note(found)
            else:
                is_damaged = True
        self.last_number = max(numbers, default=-1)
        self.missing = self.last_number + 1 - len(numbers) if numbers else int(is_damaged)

    def _note(self, found: _frames.Frame) -> None:
        if found.kind == _frames.SCHEMA:
            with contextlib.suppress(ValueError):
                self.schemas.update(_frames.decode_schema(found.body))
        if found.kind not in (_frames.SETTLED, _frames.ANNOUNCED, _frames.STRUCK):
            return
        try:
            body = orjson.loads(found.body)
        except orjson.JSONDecodeError:
            return
        if found.kind == _frames.ANNOUNCED:
            self.announced |= _texts(body)
        elif found.kind == _frames.STRUCK:
            self.strikes.update(_strikes(body))
        elif isinstance(body, dict):
            self.dropped |= _texts(body.get("dropped"))
            self.settled |= _texts(body.get("delivered")) | self.dropped
            renamed = body.get("renamed")
            if isinstance(renamed, dict):
                self.renamed.update(
                    (key, wire_id) for key, wire_id in renamed.items() if isinstance(wire_id, str)
                )

    def facts(self) -> Iterator[Fact]:
        """Yield the facts one by one: as objects they weigh many times as much as here."""
        for found in _frames.scan(self._data):
            if isinstance(found, _frames.Frame):
                try:
                    fact = _frames.decode(found)
                except ValueError:
                    continue
                if isinstance(fact, InstanceRegistered):
                    fact = fact._replace(schema=self.schemas.get(fact.instance_id, fact.schema))
                if fact is not None:
                    yield fact

    def unsettled_facts(self) -> Iterator[Fact]:
        """Yield the facts that are not settled; `settled` may grow meanwhile."""
        return (fact for fact in self.facts() if identity(fact) not in self.settled)

    def unsettled(self) -> list[tuple[str, str]]:
        """Return the records that are not settled, as keys and instances; a span stands where it begins."""
        facts = self.unsettled_facts()
        return [(identity(fact), fact.instance_id) for fact in facts if not isinstance(fact, SpanEnded)]


def _texts(value: object) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, (list, dict)) else set()


def _strikes(body: object) -> Iterator[tuple[str, Strike]]:
    """Yield what is in a STRUCK frame, by id or key; without what is of another shape."""
    for identity_, said in body.items() if isinstance(body, dict) else ():
        match said:
            case [str(key), int(strikes), int(tries)]:
                yield identity_, Strike(identity_, key, strikes, tries)


def _write_all(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Owner:
    """A process in the folder, by the lock that it holds."""

    def __init__(
        self, folder: Folder, name: str, fd: int, description: bytes, said: dict[str, object] | None = None
    ) -> None:
        self._folder = folder
        self._fd: int | None = fd
        self._numbers = itertools.count()
        self.name = name
        self.description = description
        since, pid = (said or {}).get("since"), (said or {}).get("pid")
        self.since = since if isinstance(since, int) else 0
        self.pid = pid if isinstance(pid, int) else 0

    def new_segment(self) -> tuple[int, str]:
        """Make the next file. Return its descriptor and its name. Raises OSError."""
        name = f"{self.name}.{next(self._numbers):06d}{_SEGMENT}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        return _aside(self._folder.open(name, flags)), name

    def segments(self) -> list[str]:
        """Return the names of its files, oldest first."""
        return self._folder.segments_of(self.name)

    def leave(self) -> None:
        """Let go of the lock; remove it if there is nothing left that it stands for."""
        names = self._folder.listed()
        if self._fd is not None and names is not None and not _segments_of(self.name, names):
            self._folder.remove(self.name + _LOCK)
        self.close()

    def renounce(self) -> None:
        """The lock has been closed by somebody else, and its number may be another file's by now."""
        self._fd = None

    def close(self) -> None:
        """Let go of the lock, or, in a forked child, of our share in it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._folder.let_go(fd)


class Folder:
    """The folder of all owners of a user. All files are opened through its descriptor, none through a link."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks: set[int] = set()  # descriptors of locks, and of what is looked at whether it is locked

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder for the block. Raises OSError if it is not a folder of our own that others cannot read."""
        fd = os.open(self._path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NOFOLLOW)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "the spool's folder belongs to another user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(fd, 0o700)
            yield fd
        finally:
            os.close(fd)

    def open(self, name: str, flags: int) -> int:
        """Open a file of ours. Raises OSError."""
        with self._opened() as folder:
            # Without O_NONBLOCK, a pipe that somebody has put there would hold us up for ever.
            fd = os.open(name, flags | _NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=folder)
        found = os.fstat(fd)
        # Backups are made by hard links; what is read through one does no harm.
        is_linked = found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode) or is_linked:
            os.close(fd)
            raise PermissionError(errno.EPERM, "a file in the spool's folder is not ours")
        if flags & os.O_CREAT:
            os.fchmod(fd, 0o600)  # whatever the umask
        return fd

    def is_ours(self, name: str) -> bool | None:
        """Whether there is a file of ours of that name; None: it cannot be opened just now."""
        try:
            os.close(self.open(name, os.O_RDONLY))
        except OSError as error:
            return False if error.errno in _NOT_OURS else None
        return True

    def listed(self) -> list[str] | None:
        """Return the names of all files; None if the folder cannot be read just now."""
        try:
            with self._opened() as folder:
                return os.listdir(folder)  # noqa: PTH208 - a path would be looked up again
        except OSError as error:
            return [] if error.errno in _NOT_OURS else None

    def names(self) -> list[str]:
        """Return the names of all files, none if the folder cannot be read."""
        return self.listed() or []

    def segment_sizes(self) -> dict[str, int]:
        """Return the names of all segments of all owners, and their sizes in bytes."""
        sizes: dict[str, int] = {}
        with contextlib.suppress(OSError), self._opened() as folder:
            for name in os.listdir(folder):  # noqa: PTH208 - as above
                if name.endswith(_SEGMENT):
                    with contextlib.suppress(OSError):
                        sizes[name] = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        return sizes

    def used_bytes(self) -> int:
        """Return what all segments take."""
        return sum(self.segment_sizes().values())

    def free_bytes(self) -> int:
        """Return what is free on the disk; as much as any spool may take if that cannot be told."""
        try:
            found = os.statvfs(self._path)
        except OSError:
            return 10 * QUOTA_BYTES
        return found.f_bavail * found.f_frsize

    def append(self, name: str, data: bytes, flags: int = 0, *, limit: int | None = None) -> None:
        """Add *data* to a file. Raises OSError, also if it would be larger than *limit*."""
        fd = self.open(name, os.O_WRONLY | os.O_APPEND | flags)
        try:
            if limit is not None and os.fstat(fd).st_size + len(data) > limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            _write_all(fd, data)
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is as good."""
        with contextlib.suppress(OSError), self._opened() as folder:
            os.unlink(name, dir_fd=folder)

    def read(self, segment: Segment) -> Contents | None:
        """Return what a segment holds, None if it cannot be read at all."""
        try:
            fd = self.open(segment.name, os.O_RDONLY)
            with os.fdopen(fd, "rb") as file:
                return Contents(file.read())
        except OSError:
            return None

    def new_owner(self, destination: str, former: str | None = None) -> Owner:
        """Become an owner. *former*: the one that this process was before. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self._path.mkdir(mode=0o700, parents=True)
            self._path.chmod(0o700)  # whatever the umask
        while True:
            name = f"{time.time_ns():016x}-{os.urandom(8).hex()}"
            fd = self.open(name + _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            # Somebody who looks for dead owners may have been faster.
            try:
                if _lock(fd) and os.fstat(fd).st_nlink:
                    break
            except OSError:
                os.close(fd)
                self.remove(name + _LOCK)
                raise
            os.close(fd)
            self.remove(name + _LOCK)
        description = orjson.dumps(
            {
                "format": _frames.FORMAT_VERSION,
                "destination": destination,
                "pid": os.getpid(),
                "parent": os.getppid(),
                "started_by": _started_by(),
                "since": time.time_ns(),
                **({"follows": former} if former else {}),
            }
        )
        try:
            _write_all(fd, description)
        except OSError:
            self.remove(name + _LOCK)
            os.close(fd)
            raise
        return Owner(self, name, _aside(fd), description)

    def has(self, owner: Owner) -> bool:
        """Whether the owner's lock is still where it was, as far as can be told."""
        try:
            (self._path / (owner.name + _LOCK)).lstat()  # which works without descriptors, too
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def owners(self) -> list[str]:
        """Return the names of all owners, the oldest first."""
        return sorted(each.removesuffix(_LOCK) for each in self.names() if each.endswith(_LOCK))

    def segments_of(self, name: str) -> list[str]:
        """Return the names of an owner's files, oldest first."""
        return _segments_of(name, self.names())

    @contextlib.contextmanager
    def _opened_lock(self, name: str, flags: int) -> Iterator[int]:
        """Open an owner's lock for the block; `forget` lets go of it in a child that is forked meanwhile."""
        fd = self.open(name + _LOCK, flags)
        self._locks.add(fd)
        try:
            yield fd
        finally:
            self.let_go(fd)

    def let_go(self, fd: int) -> None:
        """Close the descriptor of a lock."""
        self._locks.discard(fd)
        with contextlib.suppress(OSError):  # the program may have closed it
            os.close(fd)

    def forget(self) -> None:
        """After a fork, in the child: let go of the parent's locks, and of those that it was looking at."""
        for fd in list(self._locks):
            self.let_go(fd)

    def look_at(self, name: str) -> tuple[dict[str, object] | None, bool]:
        """Return what an owner says about itself (None: nothing that we understand), and whether it is alive."""
        with contextlib.suppress(OSError), self._opened_lock(name, os.O_RDONLY) as fd:
            try:
                return _description(fd), not _lock(fd)
            except OSError:
                return None, True
        return None, False

    def read_description(self, name: str) -> dict[str, object] | None:
        """Return what an owner says about itself, None if it says nothing that we understand."""
        with contextlib.suppress(OSError), self._opened_lock(name, os.O_RDONLY) as fd:
            return _description(fd)
        return None

    def claim(self, name: str) -> Owner | None:
        """Take a dead owner's place; None if it is alive, or of a newer version."""
        with contextlib.suppress(OSError), self._opened_lock(name, os.O_RDWR) as fd:
            said = _description(fd)
            if said is not None and _lock(fd):
                self._locks.add(kept := os.dup(fd))
                return Owner(self, name, kept, b"", said)
        return None

    def sweep(self, name: str) -> None:
        """Remove the lock of an owner that died before it had said or written anything."""
        if _OWNER.fullmatch(name) is None:
            return
        with contextlib.suppress(OSError), self._opened_lock(name, os.O_RDWR) as fd:
            # Asked when nobody else can be writing into it.
            if _lock(fd) and not os.fstat(fd).st_size and not self.segments_of(name):
                self.remove(name + _LOCK)

    def accounts(self) -> dict[str, str]:
        """Return which destination has turned out to be which account, by the account's partition."""
        try:
            with os.fdopen(self.open(_ACCOUNTS, os.O_RDONLY), "rb") as file:
                lines = file.read(1_000_000).splitlines()
        except OSError:
            return {}
        accounts: dict[str, str] = {}
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
                said = orjson.loads(line)
                accounts[str(said["destination"])] = str(said["partition"])
        return accounts

    def note_account(self, destination: str, partition: str) -> None:
        """Add to `accounts`."""
        said = {"destination": destination, "partition": partition}
        with contextlib.suppress(OSError):
            self.append(_ACCOUNTS, orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE), os.O_CREAT)


def _segments_of(owner: str, names: list[str]) -> list[str]:
    own = f"{owner}."
    return sorted(each for each in names if each.startswith(own) and each.endswith(_SEGMENT))


def _description(fd: int) -> dict[str, object] | None:
    """Return what an owner says about itself, None if it says nothing that we understand."""
    try:
        said = orjson.loads(os.pread(fd, 65_536, 0))
    except (OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(said, dict) or said.get("format") != _frames.FORMAT_VERSION:
        return None
    return said


def _started_by() -> int | None:
    """Return the process that has started this one by multiprocessing: a fork server is only its midwife."""
    process = sys.modules.get("multiprocessing.process")
    parent = None if process is None else process.parent_process()
    return None if parent is None else parent.pid


def _aside(fd: int) -> int:
    """Move a descriptor that stays open to where no file of the program's comes.

    Some programs close all descriptors. The next file that is opened would have the number of ours, and our records.
    """
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:  # there are not so many
        return fd
    os.close(fd)
    return high


def _lock(fd: int) -> bool:
    """Take the lock, if nobody holds it. Raises OSError where files cannot be locked at all."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Facts and records: what the agent's thread tells, and what travels.

A **fact** is told once, at the moment it happens, and never changes: an instance registered, started, rated or
finished; a span started or ended. A **record** is what the outbox makes of facts and the wire sends. Instance facts
travel as they are; the two facts of a span travel together as one `SpanRecord`.

Everything here is a value: small fields, and the user's data as JSON bytes already. Times are integers,
nanoseconds since the Unix epoch. Every record has a `key`, its idempotency key on the wire: made from its id, so
the same record has the same key in every attempt and in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from prefactor_trace._schema import DeclaredSchema, Schema

FinalStatus: TypeAlias = Literal["complete", "failed", "cancelled"]

# What a span weighs beside its data: the tuples, strings and table entries around it. Measured: 650 on CPython 3.11.
_OVERHEAD = 700

# How the keys of records end.
REGISTER = "-register"
START = "-start"
FINISH = "-finish"
QUALITY = "-quality"
OPEN = "-open"


class InstanceRegistered(NamedTuple):
    """A run came to be. *body*: the register request as a JSON object, without id and schema."""

    instance_id: str
    body: bytes
    schema: Schema | DeclaredSchema

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.instance_id + REGISTER


class InstanceStarted(NamedTuple):
    """A run began to work."""

    instance_id: str
    at: int

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.instance_id + START


class InstanceFinished(NamedTuple):
    """A run ended."""

    instance_id: str
    at: int
    status: FinalStatus

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.instance_id + FINISH


class QualityRecorded(NamedTuple):
    """A run was rated, while it was going on or afterwards.

    *id*: a PFID of its own, so that the same rating given twice is two records, whichever processes gave it.
    *payload*: a JSON object; None takes back what was recorded under *name*.
    """

    id: str
    instance_id: str
    name: str
    payload: bytes | None

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.id + QUALITY

    @property
    def size(self) -> int:
        """What it weighs in memory, in bytes."""
        return _OVERHEAD + len(self.payload or b"")


class SpanStarted(NamedTuple):
    """A step began. *payload*: a JSON object, None if it is not captured.

    *quiet*: it is not shown before it has ended, however long it takes, unless a child needs it to hang from. What
    matters most of it (the tokens of a model's call) is known at the end only, and an announced payload is final.
    """

    id: str
    instance_id: str
    parent_id: str | None
    schema_name: str
    name: str
    started_at: int
    payload: bytes | None
    envelope: bool
    quiet: bool = False

    @property
    def size(self) -> int:
        """What it weighs in memory, in bytes."""
        return _OVERHEAD + len(self.payload or b"")


class SpanEnded(NamedTuple):
    """A step ended. *payload* replaces the one it started with, unless None; all bytes are JSON objects."""

    id: str
    status: FinalStatus
    finished_at: int
    result: bytes | None = None
    error: bytes | None = None
    metadata: bytes | None = None
    payload: bytes | None = None
    usage: bytes | None = None

    @property
    def data(self) -> tuple[bytes | None, ...]:
        """What came from the user."""
        return self[3:]

    @property
    def size(self) -> int:
        """What it weighs in memory, in bytes."""
        size = len(self.result or b"")
        if self.error or self.metadata or self.payload or self.usage:
            size += sum(len(part or b"") for part in (self.error, self.metadata, self.payload, self.usage))
        return size


def identity(fact: Fact) -> str:
    """Return what a fact is counted and settled under: the id of its span, or the key of an instance fact."""
    return fact.id if isinstance(fact, (SpanStarted, SpanEnded)) else fact.key


class SpanRecord(NamedTuple):
    """A step on its way.

    Ended: one create call with everything. Not ended: announced as active, because somebody waits to see it.
    *announced* and ended: the finish call of a span that was announced before.
    """

    started: SpanStarted
    ended: SpanEnded | None
    announced: bool = False

    @property
    def id(self) -> str:
        """The span's id."""
        return self.started.id

    @property
    def instance_id(self) -> str:
        """The run the span belongs to."""
        return self.started.instance_id

    @property
    def key(self) -> str:
        """The idempotency key. A create with everything is keyed by the span's id alone."""
        if self.ended is None:
            return self.started.id + OPEN
        return self.started.id + "-end" if self.announced else self.started.id

    @property
    def size(self) -> int:
        """What it weighs in memory, in bytes."""
        return self.started.size + (self.ended.size if self.ended else 0)


InstanceRecord: TypeAlias = InstanceRegistered | InstanceStarted | InstanceFinished | QualityRecorded
Fact: TypeAlias = InstanceRecord | SpanStarted | SpanEnded
Record: TypeAlias = InstanceRecord | SpanRecord


class Outcome(NamedTuple):
    """What became of a batch. Records named neither delivered nor refused are to be sent again.

    Attributes:
        delivered: Keys of the records the platform has acknowledged by id.
        refused: Keys of the records it will never take, with the reason.
        dead: Instances it will never take, with the reason: all their records are pointless.
        trouble: Why the rest could not be sent, in words for a log line. None: no trouble.
        retry_after: Seconds the platform asked to wait; None: the outbox decides.
        reachable: False if nobody answered at all.
        blames_batch: Whether the platform is there, and failed over what it was sent: one record may be the reason.
        is_silent: Whether it gave no answer in time: as likely an outage as the fault of one record.
        nowhere: True if there is no destination to reach.
        terminated: Instances the platform has terminated, with the reason given.
        partition: The account's partition, as soon as an answer told it (PFID characters 10 to 16).
        renamed: Our id → the platform's, where it answered with another one.
        notes: Remarks for the ledger, such as a finish sent with another status.
        unknown: Keys of those refused records that perhaps only name what the platform does not know yet.
        said: Of refused records, by key: the status and the words of the answer.
    """

    delivered: frozenset[str] = frozenset()
    refused: dict[str, str] = {}
    dead: dict[str, str] = {}
    trouble: str | None = None
    retry_after: float | None = None
    reachable: bool = True
    blames_batch: bool = False
    is_silent: bool = False
    nowhere: bool = False
    terminated: dict[str, str | None] = {}
    partition: str | None = None
    renamed: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    said: dict[str, str] = {}

    @property
    def is_heard_to_fail(self) -> bool:
        """Whether the platform was heard as it failed over the batch: by an answer, or by breaking off."""
        return self.blames_batch and not self.is_silent


class Ledger(NamedTuple):
    """What was created and what became of it. Always `created == delivered + sum(dropped) + pending`.

    Counted are records: three for each run (registered, started, finished), one for each recorded quality, and one
    for each span, from the moment it starts.

    Attributes:
        created: Records that came to be.
        delivered: Records the platform has acknowledged.
        dropped: Records given up, by reason.
        pending: Records waiting or on their way, and spans that are still open.
        notes: What was delivered but not exactly as recorded, what a wrong call kept from being recorded, and
            internal errors, by remark.
    """

    created: int = 0
    delivered: int = 0
    dropped: dict[str, int] = {}
    pending: int = 0
    notes: dict[str, int] = {}

"""The conversation with the platform about one batch.

Pure: a generator that yields requests, is sent answers, and returns an `Outcome`. It knows nothing of sockets,
clocks or threads, so every behaviour of a server can be tested with plain values. All that is uncertain about the
Prefactor API lives in this file; section numbers refer to the API contract.

Instance calls go one by one, spans in bulk. Within a batch all registers come first, then starts, spans, qualities
and finishes: each instance keeps its order, and many small runs still share one bulk request. A record counts as
delivered only if a 2xx with a JSON object names it, or a 409 says that its instance or span is past it already. So it
may be refused only because it comes again: where the answer to an earlier attempt was lost, a refusal is looked into.

Every answer is one of three things: a success (its JSON object), a refusal (`_Refusal`: the record is dropped
alone, and counted) or trouble (`_TroubleError`: the conversation ends, and what is not settled is sent again).
`_judge` is where that is decided.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

import orjson

from prefactor_trace import _ids
from prefactor_trace._record import (
    REGISTER,
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    Outcome,
    QualityRecorded,
    SpanRecord,
)
from prefactor_trace.http._protocol import Meaning, meaning_of_code, meaning_of_status, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefactor_trace._record import InstanceRecord, Record, SpanEnded

# A refused token is tried again now and then: it may have been suspended by mistake.
_UNAUTHORIZED_PAUSE_SECONDS = 60.0
# What is about what we sent, whoever says it. Any other refusal must be in the platform's own words.
_FINAL = (Meaning.INVALID, Meaning.CONFLICT, Meaning.TOO_LARGE)
# Answers to a bulk request that say there is no such call here; nobody has seen the live platform take spans.
_NO_SUCH_CALL = (Meaning.NOT_FOUND, Meaning.UNSUPPORTED)
# Refusals of a finish after which another status is worth a try.
_REFUSED_STATE = (Meaning.INVALID, Meaning.CONFLICT)
# The platform is asked for the account's partition so often; then runs are registered without an id of ours.
_TIMES_ASKED = 3
_RENAMED_KEPT = 50_000
_UNNAMED = "-unnamed"  # another body needs another key
_DOUBTFUL_KEPT = 10_000
NOT_SENDABLE = "not sendable: it cannot be written as JSON"
NOT_ALLOWED = "refused: this token may not record quality"
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - in UTC; without saying so it is written without an offset


class Request(NamedTuple):
    """A POST of a JSON *body* to *path* below `/api/v1/`."""

    path: str
    body: bytes


PARTITION_REQUEST = Request("pfid/generate", b'{"count":1}')
"""Asks for an id, and so for the account's partition (section 5)."""


class Response(NamedTuple):
    """An answer.

    Attributes:
        status: The number.
        body: The raw body.
        retry_after: The raw header.
        received_at: Unix seconds, to read a date in that.
        is_second: The request was sent twice: whoever took it first hung up.
    """

    status: int
    body: bytes
    retry_after: str | None = None
    received_at: float = 0.0
    is_second: bool = False


class Unreachable(NamedTuple):
    """No answer came, or not a whole one.

    Attributes:
        why: Words for a log line.
        broke_off: Whoever took the request hung up.
        is_silent: Whoever took the request gave no whole answer in time.
        is_second: The request was sent twice: whoever took it first hung up.
    """

    why: str
    broke_off: bool = False
    is_silent: bool = False
    is_second: bool = False


Answer: TypeAlias = Response | Unreachable
Conversation: TypeAlias = Generator[Request, Answer, Outcome]


class Learned:
    """What earlier answers of one destination have taught; one conversation changes it at a time.

    Attributes:
        partition: The account's partition, None before the first answer. It never changes after that.
        recalled: The same, as an earlier process has heard it, in case that the platform does not say.
        renamed: Our id → the platform's, where it answered with another one. Bounded; what was not asked for
            longest is forgotten.
        doubtful: Keys of requests whose answer was lost, so that the platform may hold what they were about; and how a
            registration was refused that is taken for one of those. Bounded; the oldest is forgotten.
        bulk: Whether the platform takes spans in bulk.
        times_asked: How often the platform has been asked for the partition.
        is_accepted: Whether the token was good the last time: something was taken under it.
    """

    def __init__(self, recalled: str | None = None) -> None:
        self.partition: str | None = None
        self.recalled = recalled
        self.times_asked = 0
        self.renamed: dict[str, str] = {}
        self.doubtful: dict[str, _Refusal | None] = {}
        self.bulk = True
        self.is_accepted = False

    def wire_id(self, our_id: str) -> str:
        """Return the id under which the platform knows *our_id*."""
        if self.renamed and (known := self.renamed.pop(our_id, None)) is not None:
            self.renamed[our_id] = known  # moved to the end: a long run is asked for with each of its spans
            return known
        partition = self.partition
        # Ids made before the first answer have no partition, those made for another account have a wrong one.
        if partition is None or our_id.startswith(partition, 10):
            return our_id
        return _ids.with_partition(our_id, partition)

    def learn(self, our_id: str, wire_id: str) -> None:
        """Note the id that the platform gave to *our_id*, and the partition in it."""
        # Only once: every id sent so far was in it, and must be called the same again.
        self.partition = self.partition or _ids.partition_of(wire_id)
        if wire_id != self.wire_id(our_id):
            self.renamed[our_id] = wire_id
            if len(self.renamed) > _RENAMED_KEPT:
                del self.renamed[next(iter(self.renamed))]

    def doubt(self, key: str) -> None:
        """Note that the answer to a request was lost."""
        self.doubtful.setdefault(key, None)
        if len(self.doubtful) > _DOUBTFUL_KEPT:
            del self.doubtful[next(iter(self.doubtful))]


def deliver(batch: Sequence[Record], learned: Learned) -> Conversation:
    """Hold the conversation about *batch*."""
    return _Delivery(batch, learned).run()


class _Refusal(NamedTuple):
    """The platform understood the request and will not have it."""

    meaning: Meaning
    reason: str
    said: str = ""


_NOT_SENDABLE = _Refusal(Meaning.OTHER, NOT_SENDABLE)
_NO_BULK = _Refusal(Meaning.UNSUPPORTED, "no bulk")


class _TroubleError(Exception):
    """The conversation cannot go on; what is not settled yet is to be sent again later."""

    def __init__(
        self,
        why: str,
        *,
        retry_after: float | None = None,
        reachable: bool = True,
        blames_batch: bool = False,
        is_silent: bool = False,
    ) -> None:
        super().__init__(why)
        self.retry_after = retry_after
        self.reachable = reachable
        self.blames_batch = blames_batch
        self.is_silent = is_silent


class _UnauthorizedError(_TroubleError):
    """The platform did not take the token."""


_Reply: TypeAlias = "dict[str, Any] | _Refusal"
_Exchange: TypeAlias = Generator[Request, Answer, _Reply]
_Steps: TypeAlias = Generator[Request, Answer, None]


class _Delivery:
    """One conversation: the batch, and what is settled of it so far."""

    def __init__(self, batch: Sequence[Record], learned: Learned) -> None:
        self._batch = batch
        self._learned = learned
        self._delivered: set[str] = set()
        self._refused: dict[str, str] = {}
        self._dead: dict[str, str] = {}
        self._terminated: dict[str, str | None] = {}
        self._notes: list[str] = []
        self._said: dict[str, str] = {}
        self._unknown: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._parents = {each.id: each.started.parent_id for each in batch if type(each) is SpanRecord}
        self._lost: set[str] = set()  # spans refused: their children hang from the next span above
        self._early: set[str] = set()  # spans refused, perhaps as too early: children go when that is decided

    def run(self) -> Conversation:
        trouble: _TroubleError | None = None
        try:
            if self._learned.partition is None and self._learned.times_asked < _TIMES_ASKED:
                yield from self._ask_partition()
            for record in self._of(InstanceRegistered):
                yield from self._register(record)
            for record in self._of(InstanceStarted):
                yield from self._start(record)
            yield from self._spans()
            for record in self._of(QualityRecorded):
                yield from self._rate(record)
            for record in self._of(InstanceFinished):
                yield from self._finish(record)
        except _TroubleError as error:
            trouble = error
        if self._delivered or isinstance(trouble, _UnauthorizedError):
            self._learned.is_accepted = not isinstance(trouble, _UnauthorizedError)
        return Outcome(
            delivered=frozenset(self._delivered),
            refused=self._refused,
            dead=self._dead,
            trouble=None if trouble is None else str(trouble),
            retry_after=None if trouble is None else trouble.retry_after,
            reachable=trouble is None or trouble.reachable,
            blames_batch=trouble is not None and trouble.blames_batch,
            is_silent=trouble is not None and trouble.is_silent,
            terminated=self._terminated,
            partition=self._learned.partition,
            renamed=self._renamed,
            notes=tuple(self._notes),
            unknown=frozenset(self._unknown),
            said=self._said,
        )

    def _of(self, kind: type) -> Iterator[Any]:
        return (each for each in self._batch if type(each) is kind and each.instance_id not in self._dead)

    def _ask_partition(self) -> _Steps:
        """Learn the account's partition before any id without one is used (section 5: `pfid/generate`).

        Otherwise the platform would make an id in place of ours, and other processes, who know only ours, could not
        tell it anything about the run.
        """
        if not any(map(_lacks_partition, self._batch)):
            return
        answer = yield PARTITION_REQUEST
        if isinstance(answer, Response):
            if 400 <= answer.status < 500:
                # Not every token may ask. Ids of no account would be refused, with all that an earlier process left.
                self._learned.partition = self._learned.recalled
            self._learned.times_asked += 1
            is_refusal = meaning_of_status(answer.status) is Meaning.UNAUTHORIZED
            if is_refusal or self._learned.times_asked >= _TIMES_ASKED:
                self._learned.times_asked = _TIMES_ASKED
                return  # perhaps not for this token, or not to be had; it will show when the platform makes an id
        try:
            _judge(answer)
        except _TroubleError as trouble:
            trouble.blames_batch = False  # of which nothing has been sent yet
            raise
        self._learned.times_asked = _TIMES_ASKED
        self._learned.partition = partition_in(answer)

    # -- instances -----------------------------------------------------------------------------------------

    def _register(self, record: InstanceRegistered) -> _Steps:
        try:
            body = register_body(record)
        except TypeError:  # a schema of what is not JSON
            self._bury(record, _NOT_SENDABLE)
            return
        wire_id = self._learned.wire_id(record.instance_id)
        # An id without a partition is of no account: the platform makes one instead, and we learn from it. What was
        # asked for so once, and perhaps done, is asked for so again: by its id it would be a second run.
        is_unnamed = _ids.partition_of(wire_id) == _ids.NO_PARTITION
        if is_unnamed or record.key + _UNNAMED in self._learned.doubtful:
            body["idempotency_key"] += _UNNAMED
        else:
            body["id"] = wire_id
        reply = yield from self._post("agent_instance/register", body)
        is_invalid = isinstance(reply, _Refusal) and reply.meaning is Meaning.INVALID
        is_own_id = self._learned.partition is not None and wire_id == record.instance_id
        if (
            isinstance(reply, _Refusal)
            and "id" in body
            and self._is_repeated(record, reply, is_own_id=is_own_id)
        ):
            self._learned.doubtful[record.key] = reply
            self._learn(record.instance_id, wire_id)
            self._delivered.add(record.key)
            return
        if is_invalid and not is_own_id and body.pop("id", None):
            # Perhaps only our id is wrong: it was made for another account, by a hint or before the destination
            # changed (section 6). Or a process that was killed, and did not know the account either, has registered
            # the run without an id, and the platform says under this key which one it has made.
            body["idempotency_key"] += _UNNAMED
            reply = yield from self._post("agent_instance/register", body)
        if isinstance(reply, _Refusal):
            self._bury(record, reply)
            return
        details = reply.get("details")
        known = details.get("id") if isinstance(details, dict) else None
        if known != wire_id and not (
            _is_id(known) and details.get("type") == "agent_instance" and self._is_of_account(known)  # type: ignore[union-attr]
        ):
            raise _unverified("a register")
        self._learn(record.instance_id, str(known))
        self._delivered.add(record.key)

    def _is_repeated(self, record: InstanceRegistered, refusal: _Refusal, *, is_own_id: bool) -> bool:
        """Whether *record* is perhaps refused only because the platform holds it already (section 13, no. 17).

        The next call, the run's start, tells whether it does.
        """
        # A wrong content may be that of the id, if it was not made for this account.
        collides = refusal.meaning is Meaning.CONFLICT or (refusal.meaning is Meaning.INVALID and is_own_id)
        return collides and record.key in self._learned.doubtful

    def _is_of_account(self, pfid: str) -> bool:
        """Whether the platform may have made an id for this account: all of them are in one partition."""
        return self._learned.partition in (None, _ids.partition_of(pfid))

    def _start(self, record: InstanceStarted) -> _Steps:
        reply = yield from self._instance_call(record, "start", {"timestamp": iso(record.at)})
        if isinstance(reply, _Refusal) and reply.meaning is Meaning.NOT_FOUND:
            self._bury(record, self._learned.doubtful.get(record.instance_id + REGISTER) or reply)
        else:
            self._settle(record, reply)

    def _finish(self, record: InstanceFinished) -> _Steps:
        body = {"status": record.status, "timestamp": iso(record.at)}
        reply = yield from self._instance_call(record, "finish", body)
        if record.status == "cancelled" and _is_refused_state(reply):
            # By its OpenAPI the platform takes `cancelled` from `pending` only (section 2.1).
            reply = yield from self._instance_call(record, "finish", {**body, "status": "failed"}, "-failed")
            if not isinstance(reply, _Refusal):
                self._notes.append("instance finished as failed: the platform refused cancelled")
        self._settle(record, reply)

    def _rate(self, record: QualityRecorded) -> _Steps:
        try:
            reply = yield from self._instance_call(record, "record_quality", quality_body(record))
        except _UnauthorizedError as error:
            # Deployment tokens may do all but this (section 1.3); it must not keep what they may do from leaving.
            if not self._delivered and not self._learned.is_accepted:
                raise
            reply = _Refusal(Meaning.UNAUTHORIZED, NOT_ALLOWED, str(error))
        if not isinstance(reply, _Refusal):
            self._delivered.add(record.key)
            return
        # A conflict is a refusal here: the platform holds something else, or rates no runs in this state.
        self._refuse(record, reply)
        if reply.meaning is not Meaning.NOT_FOUND:  # then it is about the rating, and the run is known
            self._unknown.discard(record.key)

    def _instance_call(
        self, record: InstanceRecord, verb: str, body: dict[str, Any], key_suffix: str = ""
    ) -> _Exchange:
        wire_id = self._learned.wire_id(record.instance_id)
        body = {**body, "idempotency_key": record.key + key_suffix}
        reply = yield from self._post(f"agent_instance/{wire_id}/{verb}", body)
        if not isinstance(reply, _Refusal):
            _require_named(reply.get("details"), wire_id, f"a {verb}")
            if reply["details"].get("status") == "terminated":
                self._terminated[record.instance_id] = _reason(reply["details"].get("termination_reason"))
        return reply

    def _bury(self, record: InstanceRecord, refusal: _Refusal) -> None:
        self._refuse(record, refusal)
        self._dead[record.instance_id] = f"instance {refusal.reason}"

    # -- spans ---------------------------------------------------------------------------------------------

    def _spans(self) -> _Steps:
        creates: list[SpanRecord] = []
        for record in self._of(SpanRecord):
            if record.ended is None or not record.announced:
                creates.append(record)
                continue
            yield from self._create_all(creates)
            creates = []
            yield from self._finish_span(record)
        yield from self._create_all(creates)

    def _create_all(self, records: list[SpanRecord]) -> _Steps:
        while records := [each for each in records if not self._is_below_early(each)]:
            if len(records) == 1 or not self._learned.bulk:
                yield from self._create(records[0])
                records = records[1:]
                continue
            reply = yield from self._bulk_call(records)
            if not isinstance(reply, _Refusal):
                records = yield from self._settle_outputs(records, reply)
            elif reply is _NO_BULK:
                yield from self._create_singly(records)
                return
            else:  # one of them spoils it for all: by halves it is found soonest
                half = len(records) // 2
                yield from self._create_all(records[:half])
                yield from self._create_all(records[half:])
                if len(records) == 2 and reply.meaning is not Meaning.TOO_LARGE:
                    self._doubt_bulk(records)
                return

    def _bulk_call(self, records: list[SpanRecord]) -> _Exchange:
        """Ask for *records* at once. A success has an output for the first of them at least."""
        body = _encode({"items": [bulk_item(each, self._details(each)) for each in records]})
        if body is None:
            return _NOT_SENDABLE
        answer = yield Request("bulk", body)
        if _is_lost(answer):
            for each in records:
                self._learned.doubt(each.key)
        if isinstance(answer, Response) and meaning_of_status(answer.status) in _NO_SUCH_CALL:
            return _NO_BULK
        reply = _judge(answer)
        # An answer of another shape than we know tells nothing; single calls will.
        return reply if isinstance(reply, _Refusal) or _has_output(reply, records[0]) else _NO_BULK

    def _create_singly(self, records: list[SpanRecord]) -> _Steps:
        for record in records:
            yield from self._create(record)
        self._doubt_bulk(records)

    def _doubt_bulk(self, records: list[SpanRecord]) -> None:
        """Each of *records* was asked for alone: if all were taken, it was bulk that does not work here."""
        if not any(record.key in self._refused for record in records):
            self._learned.bulk = False

    def _settle_outputs(
        self, records: list[SpanRecord], reply: dict[str, Any]
    ) -> Generator[Request, Answer, list[SpanRecord]]:
        """Read a bulk answer. Return the records the platform has not attempted: it stops at the first error."""
        if len({record.instance_id for record in records}) == 1:
            self._hear(reply, records[0].instance_id)
        for done, record in enumerate(records):
            output = reply["outputs"].get(record.key)
            if not isinstance(output, dict):
                return records[done:]
            code = output.get("code")
            if output.get("status") != "error" and self._takes_created(record, output):
                continue
            if self._is_below_early(record):  # some go on after an error
                continue
            elif output.get("status") == "error" and meaning_of_code(code) in (*_FINAL, Meaning.NOT_FOUND):
                meaning = meaning_of_code(code)
                yield from self._refuse_created(record, _Refusal(meaning, f"refused: {code}", _words(output)))
            else:  # the single call is surer: it has a status
                yield from self._create(record)
        return []

    def _create(self, record: SpanRecord) -> _Steps:
        if self._is_below_early(record):
            return
        body = {"details": self._details(record), "idempotency_key": record.key}
        reply = yield from self._post("agent_spans", body)
        if isinstance(reply, _Refusal):
            yield from self._refuse_created(record, reply)
        elif not self._takes_created(record, reply):
            raise _unverified("a span")

    def _takes_created(self, record: SpanRecord, reply: dict[str, Any]) -> bool:
        """Note what *reply* says of *record*. False: the answer is not about it."""
        details = reply.get("details")
        if not isinstance(details, dict):
            return False
        known = details.get("id")
        if known != self._learned.wire_id(record.id):
            # Another id is ours only if everything else says that the answer is about our span (section 6).
            run_id = self._learned.wire_id(record.instance_id)
            if not _is_id(known) or details.get("agent_instance_id") != run_id:
                return False
            self._learn(record.id, known)
        self._hear(reply, record.instance_id)
        self._delivered.add(record.key)
        return True

    def _refuse_created(self, record: SpanRecord, refusal: _Refusal) -> _Steps:
        if (yield from self._is_created(record, refusal)):
            self._delivered.add(record.key)
            return
        self._refuse(record, refusal)
        parent = record.started.parent_id
        # Its run, or the span above it, may be another process's, and not known yet.
        hangs_elsewhere = parent is not None and parent not in self._parents
        is_early = refusal.meaning is Meaning.NOT_FOUND or (
            refusal.meaning is Meaning.INVALID and hangs_elsewhere
        )
        (self._early if is_early else self._lost).add(record.id)

    def _is_created(self, record: SpanRecord, refusal: _Refusal) -> Generator[Request, Answer, bool]:
        """Whether *record* is refused only because the platform holds it already (section 13, no. 17)."""
        if record.key not in self._learned.doubtful or refusal.meaning not in _REFUSED_STATE:
            return False
        if record.ended is None:
            return refusal.meaning is Meaning.CONFLICT  # if it does not, the span's finish will be refused
        reply = yield from self._span_finish_call(record, span_end(record), "-end")
        return not isinstance(reply, _Refusal) or reply.meaning is Meaning.CONFLICT

    def _is_below_early(self, record: SpanRecord) -> bool:
        """Whether *record* hangs from a span that may still be taken, so that it must not hang from another one now."""
        is_below = record.started.parent_id in self._early
        if is_below:
            self._early.add(record.id)
        return is_below

    def _finish_span(self, record: SpanRecord) -> _Steps:
        body = span_end(record)
        reply = yield from self._span_finish_call(record, body)
        if body["status"] == "cancelled" and _is_refused_state(reply):
            reply = yield from self._span_finish_call(record, {**body, "status": "failed"}, "-failed")
            if not isinstance(reply, _Refusal):
                self._notes.append("span finished as failed: the platform refused cancelled")
        self._settle(record, reply)

    def _span_finish_call(self, record: SpanRecord, body: dict[str, Any], key_suffix: str = "") -> _Exchange:
        wire_id = self._learned.wire_id(record.id)
        reply = yield from self._post(
            f"agent_spans/{wire_id}/finish", {**body, "idempotency_key": record.key + key_suffix}
        )
        if not isinstance(reply, _Refusal):
            self._hear(reply, record.instance_id)
            _require_named(reply.get("details"), wire_id, "a span's finish")
        return reply

    def _details(self, record: SpanRecord) -> dict[str, Any]:
        parent = record.started.parent_id
        while parent in self._lost:
            parent = self._parents[parent]
        return span_details(record, self._learned, parent)

    # -- common --------------------------------------------------------------------------------------------

    def _post(self, path: str, body: dict[str, Any]) -> _Exchange:
        encoded = _encode(body)
        if encoded is None:
            return _NOT_SENDABLE
        answer = yield Request(path, encoded)
        if _is_lost(answer):
            self._learned.doubt(body["idempotency_key"])
        return _judge(answer)

    def _settle(self, record: InstanceRecord | SpanRecord, reply: _Reply) -> None:
        """Close *record*. A conflict says that the platform holds the state already, or a later one (section 2.5)."""
        if isinstance(reply, _Refusal) and reply.meaning is not Meaning.CONFLICT:
            self._refuse(record, reply)
        else:
            self._delivered.add(record.key)

    def _refuse(self, record: InstanceRecord | SpanRecord, refusal: _Refusal) -> None:
        self._refused[record.key] = refusal.reason
        if refusal.meaning in (Meaning.NOT_FOUND, Meaning.INVALID):
            self._unknown.add(record.key)
        if refusal.said:
            self._said[record.key] = refusal.said

    def _learn(self, our_id: str, wire_id: str) -> None:
        self._learned.learn(our_id, wire_id)
        if wire_id != our_id:
            self._renamed[our_id] = wire_id

    def _hear(self, reply: dict[str, Any], instance_id: str) -> None:
        control = reply.get("control")
        if isinstance(control, dict) and control.get("terminate") is True:
            self._terminated[instance_id] = _reason(control.get("reason"))


# -- what is sent ------------------------------------------------------------------------------------------


def register_body(record: InstanceRegistered) -> dict[str, Any]:
    """Return the body of a register call (section 2.2), without id. Raises TypeError if the schema is not JSON."""
    # Not through the client's model: that would load pydantic into every program for its first request.
    return {
        **orjson.loads(record.body),
        "agent_schema_version": record.schema.to_wire(),
        "idempotency_key": record.key,
    }


def bulk_item(record: SpanRecord, details: dict[str, Any]) -> dict[str, Any]:
    """Return the item of a bulk request that creates a span (section 4)."""
    return {"_type": "agent_spans/create", "idempotency_key": record.key, "details": details}


def span_details(record: SpanRecord, learned: Learned, parent_id: str | None) -> dict[str, Any]:
    """Return the `details` of a span's create call (section 3.2), for orjson to encode."""
    started, ended = record.started, record.ended
    details: dict[str, Any] = {
        "id": learned.wire_id(started.id),
        "agent_instance_id": learned.wire_id(started.instance_id),
        "schema_name": started.schema_name,
        "status": "active" if ended is None else ended.status,
        "started_at": iso(started.started_at),
        "payload": _payload(record),
    }
    if parent_id is not None:
        details["parent_span_id"] = learned.wire_id(parent_id)
    if ended is not None:
        details["finished_at"] = iso(ended.finished_at)
        result = ended.error or ended.result
        if result is not None:
            details["result_payload"] = orjson.Fragment(result)
    if _is_sensitive(started.payload, ended):
        details["sensitive_encoding"] = True
    return details


# As a mark in an annotation makes them. In text the quotes would be escaped, so nothing else looks like this.
_WRAPPER = b'{"$sensitive":"'


def _is_sensitive(payload: bytes | None, ended: SpanEnded | None) -> bool:
    """Say whether values are wrapped as sensitive ones (section 3.8): the platform reads wrappers only if told."""
    if payload is not None and _WRAPPER in payload:
        return True
    if ended is None:
        return False
    for part in ended[3:]:  # noqa: SIM110 - it is asked of every span, and `any` takes three times as long
        if part is not None and _WRAPPER in part:
            return True
    return False


def _payload(record: SpanRecord) -> dict[str, Any] | orjson.Fragment:
    started, ended = record.started, record.ended
    inputs = started.payload if ended is None or ended.payload is None else ended.payload
    if not started.envelope:
        return orjson.Fragment(inputs or b"{}")
    envelope: dict[str, Any] = {"name": started.name}
    if inputs is not None:
        envelope["inputs"] = orjson.Fragment(inputs)
    if ended is None:
        return envelope
    if ended.metadata is not None:
        envelope["metadata"] = orjson.Fragment(ended.metadata)
    if ended.usage is not None:
        envelope["token_usage"] = orjson.Fragment(ended.usage)
    if ended.error is not None:
        envelope["error"] = orjson.Fragment(ended.error)
        if ended.result is not None:  # the error takes the place of the result; what was set is kept here
            envelope["outputs"] = orjson.Fragment(ended.result)
    return envelope


def quality_body(record: QualityRecorded) -> dict[str, Any]:
    """Return the body of a record_quality call (section 2.7), without key. The payload null removes the name."""
    payload = None if record.payload is None else orjson.Fragment(record.payload)
    return {"name": record.name, "payload": payload}


def span_end(record: SpanRecord) -> dict[str, Any]:
    """Return the body of an announced span's finish call (section 3.5), without key."""
    ended = record.ended
    assert ended is not None
    body: dict[str, Any] = {"status": ended.status, "timestamp": iso(ended.finished_at)}
    result = _late_result(ended, envelope=record.started.envelope)
    if result is not None:
        body["result_payload"] = orjson.Fragment(result)
    if _is_sensitive(None, ended):
        body["sensitive_encoding"] = True
    return body


def _late_result(ended: SpanEnded, *, envelope: bool) -> bytes | None:
    """The result of a span that was announced: its payload cannot be amended, so late parts go with the result."""
    result = ended.error or ended.result
    if not envelope:
        return result
    late = [
        (b'"$metadata":', ended.metadata),
        (b'"$inputs":', ended.payload),
        (b'"$token_usage":', ended.usage),
    ]
    if ended.error is not None:
        late.append((b'"$outputs":', ended.result))
    extra = b",".join(key + part for key, part in late if part is not None)
    if not extra:
        return result
    body = (result or b"{}")[1:-1]
    return b"{" + body + (b"," if body else b"") + extra + b"}"


def line_of(record: Record) -> bytes | None:
    """Return *record* as a line of JSON, an item of the bulk call; None if it cannot be written."""
    try:
        return orjson.dumps(item_of(record), option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a schema or a name of what is not JSON
        return None


def item_of(record: Record) -> dict[str, Any]:
    """Return *record* as an item of the bulk call, with `_type` and idempotency key (section 4)."""
    if isinstance(record, InstanceRegistered):
        return {"_type": "agent_instances/register", "id": record.instance_id, **register_body(record)}
    if isinstance(record, SpanRecord):
        if record.announced:
            ids = {"agent_span_id": record.id, "idempotency_key": record.key}
            return {"_type": "agent_spans/finish", **ids, **span_end(record)}
        return bulk_item(record, span_details(record, Learned(), record.started.parent_id))
    item = {"agent_instance_id": record.instance_id, "idempotency_key": record.key}
    if isinstance(record, QualityRecorded):
        return {"_type": "agent_instances/record_quality", **item, **quality_body(record)}
    item["timestamp"] = iso(record.at)
    if isinstance(record, InstanceFinished):
        return {"_type": "agent_instances/finish", **item, "status": record.status}
    return {"_type": "agent_instances/start", **item}


def iso(nanoseconds: int) -> str:
    """RFC 3339, UTC with Z and microseconds (section 1.8)."""
    digits = str(nanoseconds).zfill(10)  # quicker to cut than to divide
    return f"{_iso_second(digits[:-9])}.{digits[-9:-3]}Z"


@functools.lru_cache(maxsize=8)  # the moments of a batch lie in few seconds
def _iso_second(seconds: str) -> str:
    return (_EPOCH + timedelta(seconds=int(seconds))).isoformat()


def _encode(body: dict[str, Any]) -> bytes | None:
    """Return *body* as JSON; None if it holds what JSON cannot say, such as a name with half a character."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return None


# -- what is heard -----------------------------------------------------------------------------------------


def _judge(answer: Answer) -> _Reply:
    """Return the JSON object of a success, or the refusal; raise _TroubleError for everything to be retried."""
    if isinstance(answer, Unreachable):
        why = f"the platform cannot be reached ({answer.why})"
        blames = answer.broke_off or answer.is_silent
        raise _TroubleError(why, reachable=False, blames_batch=blames, is_silent=answer.is_silent)
    status, body = answer.status, _json_object(answer.body)
    meaning = meaning_of_status(status)
    if meaning is Meaning.SUCCESS:
        if body is None or body.get("status") == "error":
            raise _TroubleError(
                f"the platform answered {status} with something that is not the Prefactor API's"
            )
        return body
    if meaning is Meaning.UNAUTHORIZED:
        why = f"the platform refused the token ({status}); check PREFACTOR_API_TOKEN"
        raise _UnauthorizedError(why, retry_after=_UNAUTHORIZED_PAUSE_SECONDS)
    if meaning is Meaning.TRANSIENT:
        wait = retry_after_seconds(answer.retry_after, answer.received_at)
        # A server that is merely overloaded says so by 429 or 503.
        blames = status >= 500 and status != 503 and wait is None
        raise _TroubleError(f"the platform answered {status}", retry_after=wait, blames_batch=blames)
    # Anything between us and the platform may answer 404 or 3xx; only the platform's own word is final.
    is_final = meaning in _FINAL or (body is not None and body.get("status") == "error")
    if status < 400 or not is_final:
        raise _TroubleError(f"the platform answered {status}; is this the address of a Prefactor API?")
    code = body.get("code") if body else None
    # The code goes into log lines, so it must be a word.
    known = isinstance(code, str) and code.isidentifier()
    reason = f"refused: {code[:40]}" if known else f"refused: {status}"  # type: ignore[index]
    return _Refusal(meaning, reason, f"{status} {_words(body)}".rstrip())


def _is_lost(answer: Answer) -> bool:
    """Whether the platform may have done what it was asked for without our hearing of it."""
    if isinstance(answer, Unreachable):
        return answer.broke_off or answer.is_silent or answer.is_second
    # A gateway says 5xx, too, when it has waited for long enough.
    return answer.status >= 500 or answer.is_second


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _words(body: dict[str, Any] | None) -> str:
    """Return what an error object says, for people."""
    if body is None:
        return ""
    said = {name: body[name] for name in ("code", "message", "errors") if name in body}
    return orjson.dumps(said)[:1_000].decode("utf-8", "replace")


def _has_output(reply: dict[str, Any], record: SpanRecord) -> bool:
    outputs = reply.get("outputs")
    return isinstance(outputs, dict) and isinstance(outputs.get(record.key), dict)


def _is_refused_state(reply: _Reply) -> bool:
    return isinstance(reply, _Refusal) and reply.meaning in _REFUSED_STATE


def _require_named(details: object, wire_id: str, what: str) -> None:
    if not isinstance(details, dict) or details.get("id") != wire_id:
        raise _unverified(what)


def _unverified(what: str) -> _TroubleError:
    return _TroubleError(f"the platform answered {what} without naming our record")


def partition_in(answer: Answer) -> str | None:
    """Return the account's partition from the answer to PARTITION_REQUEST, None if it is not in it."""
    body = _json_object(answer.body) if isinstance(answer, Response) else None
    pfids = body.get("pfids") if body else None
    return _ids.partition_of(pfids[0]) if isinstance(pfids, list) and pfids and _is_id(pfids[0]) else None


def _lacks_partition(record: Record) -> bool:
    ids = [record.instance_id]
    if type(record) is SpanRecord:
        # Its parent can be older than the partition, and gone already: sent by a process that was killed.
        ids += [record.id, record.started.parent_id or record.id]
    return any(_ids.partition_of(each) == _ids.NO_PARTITION for each in ids)


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _ids.is_pfid(value)


def _reason(value: object) -> str | None:
    return value[:1_000] if isinstance(value, str) else None

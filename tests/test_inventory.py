"""What waits in the spool is counted, written out and thrown away as it is, whoever left it. Real files."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import orjson
import pytest

from prefactor_trace import _frames, _inventory
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanStarted,
)
from prefactor_trace._schema import Schema
from prefactor_trace._shelf import Settled
from prefactor_trace._spool import Spool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="without advisory locks there is no spool")

BODY = orjson.dumps({"agent_version": {"name": "a", "external_identifier": "1"}})


def run_of(run="run", spans=2, *, ends=True):
    """Return the facts of a run."""
    facts = [InstanceRegistered(run, BODY, Schema()), InstanceStarted(run, 1_000)]
    for number in range(spans):
        own = f"{run}-span-{number}"
        facts.append(SpanStarted(own, run, None, "type", own, 2_000, b'{"in":1}', True))
        facts.append(SpanEnded(own, "complete", 3_000, b'{"out":1}'))
    return [*facts, InstanceFinished(run, 9_000, "complete")] if ends else facts


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def living(folder):
    """Return what makes owners that live until the end of the test."""
    spools = []

    def make(*facts, destination="here", **options):
        spool = Spool(folder, destination, **options)
        spools.append(spool)
        for fact in facts:
            assert spool.write(fact) is not None
        return spool

    yield make
    for each in spools:
        each.close()


@pytest.fixture
def dead(living):
    """Return what makes owners that have ended."""

    def make(*facts, **options):
        spool = living(*facts, **options)
        spool.close()
        return spool

    return make


def settle(spool, segment, *keys, reason=None):
    segment.unsettled += 1  # the file stays
    spool.settle([Settled(segment, key, reason) for key in keys], {})


def lines(folder):
    return [orjson.loads(line) for line in _inventory.export(folder)]


def files(folder):
    return sorted(each.name for each in folder.iterdir())


class TestQuality:
    def test_counted_and_written_out(self, folder, living):
        """What a run was rated waits like everything else: counted, and a line of its own."""
        living(*run_of("a", 0), QualityRecorded("q", "a", "verdict", b'{"ok":true}'))
        (found,) = _inventory.survey(folder)

        assert (found.runs, found.records) == (1, 4)
        assert lines(folder)[-1] == {
            "_type": "agent_instances/record_quality",
            "agent_instance_id": "a",
            "idempotency_key": "q-quality",
            "name": "verdict",
            "payload": {"ok": True},
        }


class TestSurvey:
    def test_nothing(self, folder):
        """No folder, and an empty one, hold nothing; none is made."""
        assert _inventory.survey(folder) == []
        assert not folder.exists()
        folder.mkdir()
        assert _inventory.survey(folder) == []

    def test_the_living_and_the_dead(self, folder, living, dead):
        """Each owner by itself, the oldest first: whose it is, since when, and how much."""
        dead(*run_of("a", 2), *run_of("b", 1), destination="https://x.example 0123")
        living(*run_of("c", 3, ends=False))
        first, second = _inventory.survey(folder)
        assert (first.destination, first.is_alive, first.runs, first.records) == (
            "https://x.example 0123",
            False,
            2,
            9,
        )
        assert (second.destination, second.is_alive, second.runs, second.records) == ("here", True, 1, 5)
        assert {first.pid, second.pid} == {os.getpid()}
        assert abs(datetime.now(timezone.utc) - first.since).total_seconds() < 60
        sizes = {each.name: each.stat().st_size for each in folder.glob("*.seg")}
        assert first.size + second.size == sum(sizes.values())

    def test_what_is_settled(self, folder, living):
        """What was delivered or dropped does not wait; a span counts once, from its beginning."""
        spool = living()
        segment, *_ = [spool.write(each) for each in run_of("a", 3)]
        settle(spool, segment, "a-register", "a-start", "a-span-0")
        settle(spool, segment, "a-span-1", reason="quota")
        (found,) = _inventory.survey(folder)
        assert (found.runs, found.records) == (1, 2)

    def test_settled_in_another_segment(self, folder, living):
        """A fact may be settled in a later file than the one it is in."""
        spool = living(segment_bytes=300)
        segments = [spool.write(each) for each in run_of("a", 4)]
        assert len(set(segments)) > 2
        settle(spool, segments[-1], "a-register", "a-start")
        (found,) = _inventory.survey(folder)
        assert found.records == 5

    def test_an_open_span(self, folder, dead):
        """A span that has not ended is a record that waits."""
        dead(*run_of("a", 1, ends=False), SpanStarted("open", "a", None, "type", "open", 2_000, None, True))
        (found,) = _inventory.survey(folder)
        assert found.records == 4

    def test_newer_format(self, folder, dead):
        """What a newer version left is shown, as something that this one cannot read."""
        dead(*run_of())
        (lock,) = folder.glob("*.lock")
        lock.write_bytes(
            orjson.dumps({**orjson.loads(lock.read_bytes()), "format": _frames.FORMAT_VERSION + 1})
        )
        (found,) = _inventory.survey(folder)
        assert (found.destination, found.pid, found.is_alive) == (None, None, False)
        assert found.size > 0

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format":"1"}', b"9" * 70_000]
    )
    def test_a_damaged_lock(self, folder, dead, text):
        """An owner that says nothing sensible is shown without a name."""
        dead(*run_of())
        (lock,) = folder.glob("*.lock")
        lock.write_bytes(text)
        (found,) = _inventory.survey(folder)
        assert found.destination is None

    @pytest.mark.parametrize("since", [10**40, -(10**30), True, "x", None])
    def test_an_impossible_time(self, folder, dead, since):
        """A time that is none is left out."""
        dead(*run_of())
        (lock,) = folder.glob("*.lock")
        said = orjson.loads(lock.read_bytes())
        del said["since"]
        text = (
            orjson.dumps(said)[:-1]
            + b',"since":'
            + {10**40: b"9" * 18, -(10**30): b"-" + b"9" * 18}.get(
                since, orjson.dumps(since) if not isinstance(since, int) or isinstance(since, bool) else b"1"
            )
            + b"}"
        )
        lock.write_bytes(text)
        assert len(_inventory.survey(folder)) == 1

    def test_damage(self, folder, dead):
        """What is damaged is left out, and the rest is shown."""
        dead(*run_of("a", 20))
        (segment,) = folder.glob("*.seg")
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 0xFF
        segment.write_bytes(data)
        (found,) = _inventory.survey(folder)
        assert 21 <= found.records <= 23
        segment.write_bytes(os.urandom(5_000))
        (found,) = _inventory.survey(folder)
        assert found.records == 0

    def test_only_looking(self, folder, dead):
        """Looking changes nothing."""
        dead(*run_of())
        before = {each.name: each.read_bytes() for each in folder.iterdir()}
        _inventory.survey(folder)
        lines(folder)
        assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


class TestExport:
    def test_nothing(self, folder):
        """No folder, no lines."""
        assert lines(folder) == []

    def test_all_of_it(self, folder, living, dead):
        """A line for each record of the living and the dead, and for whatever destination; the facts of a span joined."""
        dead(*run_of("a", 1), destination="elsewhere")
        living(*run_of("b", 1, ends=False))
        found = lines(folder)
        assert [each["idempotency_key"] for each in found] == [
            "a-register",
            "a-start",
            "a-span-0",
            "a-finish",
            "b-register",
            "b-start",
            "b-span-0",
        ]
        details = found[2]["details"]
        assert (found[2]["_type"], details["status"]) == ("agent_spans/create", "complete")
        assert details["payload"] == {"name": "a-span-0", "inputs": {"in": 1}}
        assert details["result_payload"] == {"out": 1}

    def test_open_spans(self, folder, dead):
        """A span that has not ended is active."""
        dead(
            *run_of("a", 1, ends=False),
            SpanStarted("open", "a", "a-span-0", "type", "open", 2_000, None, True),
        )
        last = lines(folder)[-1]["details"]
        assert (last["id"], last["status"], last["parent_span_id"]) == ("open", "active", "a-span-0")
        assert "finished_at" not in last

    def test_over_several_files(self, folder, dead):
        """A span that begins in one file and ends in another is one line."""
        dead(*run_of("a", 10), segment_bytes=200)
        assert len(list(folder.glob("*.seg"))) > 5
        found = lines(folder)
        assert len(found) == 13
        assert {each["details"]["status"] for each in found if "details" in each} == {"complete"}

    def test_nothing_settled(self, folder, living):
        """What was delivered or dropped is not written out."""
        spool = living()
        segment, *_ = [spool.write(each) for each in run_of("a", 3)]
        settle(spool, segment, "a-register", "a-span-0")
        settle(spool, segment, "a-span-1", reason="quota")
        assert [each["idempotency_key"] for each in lines(folder)] == ["a-start", "a-span-2", "a-finish"]

    def test_what_is_no_json(self, folder, dead):
        """What cannot be written as JSON makes no empty line."""
        dead(*run_of("a", 0), SpanStarted("bad", "a", None, "type", "half \ud800", 2_000, None, True))
        found = list(_inventory.export(folder))
        assert all(each.endswith(b"\n") for each in found if each)


class TestPurge:
    def test_nothing(self, folder):
        """No folder, nothing to remove."""
        assert _inventory.purge(folder) == 0

    def test_only_the_dead(self, folder, living, dead):
        """What the dead left is gone, for whatever destination; the living keep theirs, to the byte."""
        spool = living(*run_of("b"))
        kept = {each.name: each.read_bytes() for each in folder.iterdir()}
        for destination in ("here", "elsewhere"):
            dead(*run_of("a", 5), destination=destination)
        size = sum(each.size for each in _inventory.survey(folder) if not each.is_alive)
        assert _inventory.purge(folder) == size > 0
        assert {each.name: each.read_bytes() for each in folder.iterdir()} == kept
        assert spool.write(InstanceRegistered("later", BODY, Schema())) is not None

    def test_newer_format(self, folder, dead):
        """What a newer version left is not touched."""
        dead(*run_of())
        (lock,) = folder.glob("*.lock")
        lock.write_bytes(
            orjson.dumps({**orjson.loads(lock.read_bytes()), "format": _frames.FORMAT_VERSION + 1})
        )
        before = files(folder)
        assert _inventory.purge(folder) == 0
        assert files(folder) == before

    def test_damaged(self, folder, dead):
        """Damaged files of the dead go like all others."""
        dead(*run_of())
        (segment,) = folder.glob("*.seg")
        segment.write_bytes(os.urandom(1_000))
        assert _inventory.purge(folder) == 1_000
        assert files(folder) == []

    def test_what_is_not_ours(self, folder, dead):
        """Nothing else in the folder is touched, and no link is followed."""
        dead(*run_of())
        (folder / "notes.txt").write_text("mine")
        outside = folder.parent / "outside.seg"
        outside.write_text("precious")
        (lock,) = folder.glob("*.lock")
        (folder / f"{lock.stem}.999999.seg").symlink_to(outside)
        _inventory.purge(folder)
        assert (outside.read_text(), (folder / "notes.txt").read_text()) == ("precious", "mine")


class TestWaitingFor:
    """What is told of whose records go where is what becomes of them."""

    OURS = "https://a.example 1111"

    def test_by_account(self, folder, living, dead):
        """A token that replaces another is of the same account, and takes what waits for that along."""
        dead(*run_of("a"), destination=self.OURS)
        living(*run_of("b"), destination=self.OURS)  # alive: it delivers itself
        same = dead(*run_of("c"), destination="https://a.example 2222")
        other = dead(*run_of("d"), destination="https://a.example 3333")
        dead(*run_of("e"), destination="https://a.example 4444")  # was never accepted
        dead(*run_of("f"), destination="https://b.example 1111")
        for spool, partition in ((same, "000001"), (other, "000002")):
            spool.learn_account(partition)
        # The platform has to say whose token ours is: until then, any of its address may be of the account.
        assert _inventory.waiting_for(folder, self.OURS) == (20, {"https://b.example 1111": 5})

        ours = living(destination=self.OURS)
        ours.learn_account("000001")

        assert _inventory.waiting_for(folder, self.OURS) == (
            15,
            {"https://a.example 3333": 5, "https://b.example 1111": 5},
        )
        assert {each.fact.instance_id for each in ours.adopt() if hasattr(each.fact, "instance_id")} == set(
            "ace"
        )

    def test_without_a_token(self, folder, dead):
        """What waits for a local platform goes to none other, nor to it what waits for another."""
        dead(*run_of("a"), destination="local")
        dead(*run_of("b"), destination=self.OURS)

        assert _inventory.waiting_for(folder, "local") == (5, {self.OURS: 5})
        assert _inventory.waiting_for(folder, self.OURS) == (5, {"local": 5})

"""The spool: on disk when the call returns, for nobody else, and for the next process when this one dies. Real files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from children import Child, in_child
from disks import mounted

from prefactor_trace import _frames, _spool
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanStarted,
)
from prefactor_trace._schema import Schema
from prefactor_trace._shelf import Settled, Shelf
from prefactor_trace._spool import Folder, Spool

HERE = "here"
is_root = os.getuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root can prepare this")


def registered(run="run"):
    return InstanceRegistered(run, b'{"agent_id":"a"}', Schema())


def began(run="run", at=1_000):
    return InstanceStarted(run, at)


def finished(run="run", at=9_000):
    return InstanceFinished(run, at, "complete")


def started(span, run="run", at=2_000, payload=b'{"in":1}'):
    return SpanStarted(span, run, None, "type", span, at, payload, True)


def rated(number, run="run", payload=b'{"ok":true}'):
    return QualityRecorded(f"q{number}", run, "verdict", payload)


def ended(span, at=3_000, result=b'{"out":1}'):
    return SpanEnded(span, "complete", at, result)


def key_of(fact):
    return fact.id if isinstance(fact, (SpanStarted, SpanEnded)) else fact.key


def told(facts):
    """Return what *facts* say, in a form that can be compared and sent through a pipe."""
    return [[type(each).__name__, key_of(each), getattr(each, "status", None)] for each in facts]


class House:
    """A spool with its shelf, as the worker keeps them, on one thread."""

    def __init__(self, folder, destination=HERE, **options):
        self.spool = Spool(folder, destination, **options)
        self.shelf = Shelf()

    def tell(self, *facts, has_room=True):
        for fact in facts:
            segment = self.spool.write(fact)
            assert segment is not None, self.spool.failure
            self.shelf.admit(fact, segment, has_room=has_room)
        return segment

    def note(self):
        for segment in self.spool.note_quiet():
            segment.is_noted = True

    def settle(self, *keys, reason=None, renamed=None):
        self.note()
        self.spool.settle(self.shelf.settle([(key, reason) for key in keys]), renamed or {})

    def end(self):
        """Leave, as the worker does."""
        self.spool.seal()
        self.note()
        self.spool.close()

    def adopt(self, **options):
        found = list(self.spool.adopt(**options))
        for each in found:
            if each.is_known and isinstance(each.fact, InstanceFinished):
                self.shelf.unpin(each.fact.instance_id)
            elif each.is_known:
                self.shelf.pin(each.fact.instance_id, each.segment)
            else:
                self.shelf.adopt(each.fact, each.segment)
        return found

    def facts(self):
        """Adopt, and return the facts that are to be sent."""
        return [each.fact for each in self.adopt() if not each.is_known]


def leave(folder, *facts, destination=HERE, settled=(), **options):
    """Let a process write *facts* and die. *settled*: keys that it has settled."""

    def work():
        house = House(folder, destination, **options)
        house.tell(*facts)
        if settled:
            house.settle(*settled)

    in_child(work)


def files(folder, suffix=""):
    return sorted(each.name for each in Path(folder).iterdir() if each.name.endswith(suffix))


def facts_in(folder, *names):
    """Return the facts that are in the files of *folder*, read without the spool."""
    found = []
    for name in names or files(folder, ".seg"):
        for each in _frames.scan((folder / name).read_bytes()):
            assert isinstance(each, _frames.Frame)
            fact = _frames.decode(each)
            found += [] if fact is None else [fact]
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "spool"


@pytest.fixture
def house(folder):
    house = House(folder)
    yield house
    house.end()


WRITING = """
import sys, itertools
from pathlib import Path
from prefactor_trace._record import SpanStarted
from prefactor_trace._spool import Folder, Spool
spool = Spool(Path(sys.argv[1]), "here", segment_bytes=5_000)
for number in itertools.count():
    assert spool.write(SpanStarted(f"span{number}", "run", None, "type", "name", number, b"{}", True))
    sys.stdout.write(f"span{number}\\n")
    sys.stdout.flush()
"""


class TestWriting:
    def test_on_disk_when_it_returns(self, house, folder):
        """Whatever is written can be read from the file at once, through another descriptor."""
        facts = [registered(), began(), started("a"), ended("a"), finished()]
        for number, fact in enumerate(facts):
            assert house.spool.write(fact) is not None
            assert told(facts[: number + 1]) == told(facts_in(folder))

    @pytest.mark.parametrize("seconds", [0.0, 0.02, 0.11])
    def test_killed_at_any_moment(self, folder, seconds):
        """After SIGKILL, every span whose call had returned is there, and comes to whoever takes over."""
        with subprocess.Popen(
            [sys.executable, "-c", WRITING, str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = [process.stdout.readline().strip()]
            time.sleep(seconds)
            process.kill()
            # The last line may be torn: it was not said then.
            said += process.stdout.read().split("\n")[:-1]

        found = [each.fact for each in Spool(folder, HERE).adopt()]

        begun = [each.id for each in found if isinstance(each, SpanStarted)]
        assert said == begun[: len(said)]
        assert len(begun) - len(said) <= 1
        assert Counter(begun) == Counter(each.id for each in found if isinstance(each, SpanEnded))

    def test_nothing_before_the_first_fact(self, house, folder):
        """A program that records nothing leaves nothing behind."""
        house.settle()
        assert [] == house.adopt()
        house.end()

        assert not folder.exists()

    def test_what_stands_first(self, house, folder):
        """Each segment says in its first frame what it is."""
        house.tell(began())

        (name,) = files(folder, ".seg")
        first = next(_frames.scan((folder / name).read_bytes()))
        header = orjson.loads(first.body)

        assert (_frames.HEADER, 0) == (first.kind, first.number)
        assert (_frames.FORMAT_VERSION, HERE, os.getpid()) == tuple(
            header[each] for each in ("format", "destination", "pid")
        )

    @pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077, 0o777])
    def test_for_the_user_alone(self, folder, umask):
        """Files are 0600 and their folder 0700 from the beginning, whatever the umask."""

        def work():
            os.umask(umask)
            house = House(folder, segment_bytes=300)
            folder.parent.mkdir(exist_ok=True)
            folder.parent.chmod(0o700)
            house.tell(registered(), began(), *(started(str(number)) for number in range(5)))
            house.spool.reject([b"{}\n"])
            return house.spool.failure

        folder.parent.mkdir()
        assert in_child(work) is None

        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}
        assert len(modes) > 3
        assert {0o600} == set(modes.values())
        assert 0o700 == stat.S_IMODE(folder.stat().st_mode)

    @pytest.mark.parametrize("mode", [0o777, 0o750, 0o704, 0o1777])
    def test_a_folder_that_others_can_read(self, house, folder, mode):
        """A folder of ours that is open to others is closed to them."""
        folder.mkdir(parents=True)
        folder.chmod(mode)

        house.tell(began())

        assert 0 == folder.stat().st_mode & 0o077

    def test_a_fact_that_is_not_json(self, house, folder):
        """What cannot be written stays in memory; the next fact is written, and nothing seems to be missing."""
        assert house.spool.write(began("\ud800")) is None
        assert house.spool.failure is None
        house.tell(registered(), finished())
        house.spool.forget()

        heir = House(folder)

        assert told([registered(), finished()]) == told(heir.facts())
        assert {} == heir.spool.notes

    def test_a_half_character_in_a_name(self, house, folder):
        """A name that UTF-8 cannot hold comes back as it was."""
        fact = started("a")._replace(name="\ud800", schema_name="\udfff")

        house.tell(fact)

        assert [fact] == facts_in(folder)

    def test_a_new_segment_when_one_is_full(self, folder):
        """No segment grows by more than one fact beyond its size, and their names tell their order."""
        house = House(folder, segment_bytes=1_000)
        facts = [started(f"{number:03}") for number in range(50)]

        house.tell(*facts)

        sizes = [(folder / name).stat().st_size for name in files(folder, ".seg")]
        assert len(sizes) > 3
        assert max(sizes) < 1_500
        assert facts == facts_in(folder)
        house.end()

    def test_the_first_facts_of_many_threads(self, folder):
        """Threads that begin at once all have their fact on disk, whoever opens the file."""
        for number in range(10):
            spool = Spool(folder / str(number), HERE)
            together = threading.Barrier(8)
            results = []

            def write(name, spool=spool, together=together, results=results):
                together.wait()
                results.append(spool.write(started(name)))

            self.run([threading.Thread(target=write, args=(str(each),)) for each in range(8)])

            spool.forget()
            assert None not in results

    def test_threads_while_segments_change(self, folder):
        """Of eight threads that fill many small segments, every fact is in the segment that was named, once."""
        spool = Spool(folder, HERE, segment_bytes=2_000)
        spool.write(began())
        written = {}

        def write(thread):
            for number in range(250):
                fact = started(f"{thread}-{number}")
                written[fact.id] = spool.write(fact)

        self.run([threading.Thread(target=write, args=(each,)) for each in range(8)])

        spool.forget()
        assert 8 * 250 == len(written)
        assert None not in written.values()
        by_name = {
            name: {each.key if hasattr(each, "key") else each.id for each in facts_in(folder, name)}
            for name in files(folder, ".seg")
        }
        assert len(by_name) > 10
        assert 8 * 250 + 1 == sum(map(len, by_name.values()))
        assert [] == [span for span, segment in written.items() if span not in by_name[segment.name]]
        done_with = {segment for segment in written.values() if segment.name != files(folder, ".seg")[-1]}
        assert all(segment.is_sealed and segment.is_quiet for segment in done_with)

    def test_no_descriptor_is_closed_under_a_writer(self, folder, tmp_path):
        """The program's own files, opened while segments change, hold what the program wrote and nothing else."""
        spool = Spool(folder, HERE, segment_bytes=500)
        spool.write(began())
        is_over = threading.Event()
        strange = []

        def write(thread):
            for number in range(300):
                assert spool.write(started(f"{thread}-{number}"))

        def program(thread):
            path = tmp_path / f"own{thread}"
            while not is_over.is_set():
                with path.open("wb", buffering=0) as file:
                    file.write(b"mine")
                    time.sleep(0)
                    file.write(b"mine")
                if path.read_bytes() != b"minemine":
                    strange.append(path.read_bytes())

        writers = [threading.Thread(target=write, args=(each,)) for each in range(4)]
        programs = [threading.Thread(target=program, args=(each,)) for each in range(2)]
        for each in programs:
            each.start()
        self.run(writers)
        is_over.set()
        for each in programs:
            each.join(10)

        spool.forget()
        assert [] == strange
        assert 4 * 300 + 1 == len(facts_in(folder))

    def test_after_the_end(self, house, folder):
        """After `close` nothing is written any more."""
        house.tell(began())
        house.end()

        assert house.spool.write(began("other")) is None
        assert [began()] == facts_in(folder)

    @staticmethod
    def run(threads):
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
        assert not any(each.is_alive() for each in threads)


def plant(path, kind, target):
    """Put at *path* what does not belong there."""
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target.with_name("nothing"))
    elif kind == "hard link":
        os.link(target, path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


PLANTED = ["symlink", "dangling", "hard link", "fifo", "folder"]


@pytest.fixture
def outside(tmp_path):
    """A file that is none of the spool's business."""
    path = tmp_path / "outside"
    path.write_bytes(b"precious")
    path.chmod(0o644)
    yield path
    assert b"precious" == path.read_bytes()
    assert 0o644 == stat.S_IMODE(path.stat().st_mode)
    assert not path.with_name("nothing").exists()


class TestWhole:
    """What is taken over of a process is taken over as a whole."""

    FACTS = (
        registered(),
        began(),
        *[each for n in range(40) for each in (started(f"{n}"), ended(f"{n}"))],
        finished(),
    )

    @pytest.mark.parametrize("free", range(2, 12))
    def test_files_that_cannot_be_opened(self, folder, free):
        """With too few descriptors to read a file of it, nothing of it is told, or all, and no end is made up."""
        leave(folder, *self.FACTS, segment_bytes=1_000)
        assert len(files(folder, ".seg")) > 3

        def work():
            house = House(folder)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(free)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
            for each in taken[: free // 3]:
                os.close(each)
            before = told(house.facts())
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return before, told(house.facts())

        before, after = in_child(work)
        assert before in ([], told(self.FACTS))
        assert [*before, *after] == told(self.FACTS)

    def test_a_file_that_goes_bad_while_it_is_read(self, folder, monkeypatch):
        """What was read is told, and the rest when it can be read: no end is made up in between."""
        leave(folder, *self.FACTS, segment_bytes=1_000)
        house, read, bad = House(folder), Folder.read, files(folder, ".seg")[2]
        monkeypatch.setattr(
            Folder, "read", lambda it, segment: None if segment.name == bad else read(it, segment)
        )
        before = house.facts()
        monkeypatch.undo()
        after = house.facts()

        assert told(before) == told(self.FACTS)[: len(before)]
        assert 0 < len(before) < len(self.FACTS)
        assert {*map(str, told(before)), *map(str, told(after))} == {*map(str, told(self.FACTS))}

    def test_a_backup_made_of_links(self, folder, tmp_path):
        """Files that have a second name elsewhere are read like others."""
        leave(folder, *self.FACTS, segment_bytes=1_000)
        for name in files(folder, ".seg"):
            os.link(folder / name, tmp_path / name)
        assert told(House(folder).facts()) == told(self.FACTS)

    def test_a_process_that_was_two_owners(self, folder):
        """A program that closes all files goes on as another owner: its facts are taken over as those of one."""

        def work():
            house = House(folder)
            house.tell(registered(), began(), started("a"))
            os.closerange(_spool._HIGH, 4_096)
            house.tell(ended("a"), finished())
            return len(House(folder).adopt())

        child = Child(work)
        assert child.said == 0
        assert len(files(folder, ".lock")) == 2
        assert House(folder).facts() == []  # it lives
        child.kill()
        assert told(House(folder).facts()) == told(
            [registered(), began(), started("a"), ended("a"), finished()]
        )

    def test_a_start_whose_segment_is_gone(self, folder):
        """A run that was started is not started again, though only its registration is left."""

        def work():
            house = House(folder, segment_bytes=400)
            house.tell(
                registered(),
                *[started(f"{n}") for n in range(3)],
                began(),
                *[ended(f"{n}") for n in range(3)],
            )
            house.settle("run-register", *[f"{n}" for n in range(3)], "run-start")
            house.tell(started("last"))

        in_child(work)
        assert [each for each in House(folder).facts() if isinstance(each, InstanceStarted)] == []


class TestFamily:
    """A run that was taken over waits for what the children of its process have of it."""

    def family(self, folder, then):
        """Let a process write, and its child, whose number it says. Return what *then* makes of that."""

        def work():
            house = House(folder)
            house.tell(registered(), began())

            def in_it():
                house.spool.forget()
                House(folder).tell(started("a"), ended("a"))
                return os.getpid()

            return Child(in_it).said

        parent = Child(work)
        try:
            return then(parent)
        finally:
            for pid in (parent.said, parent.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def test_a_child_that_lives(self, folder):
        """It may go on recording into the run, or be about to deliver."""

        def then(parent):
            parent.kill()
            house = House(folder)
            assert [] == [each for each in house.facts() if isinstance(each, SpanStarted)]
            return house.spool.has_family()

        assert self.family(folder, then)

    def test_a_child_that_another_process_has_taken_over(self, folder):
        """It is in its files still, and will be delivered from there."""

        def then(parent):
            os.kill(parent.said, signal.SIGKILL)
            other = House(folder)
            while not (found := other.facts()):  # until the kernel has let go of its lock
                time.sleep(0.001)
            assert told(found) == told([started("a"), ended("a")])
            parent.kill()
            house = House(folder)
            house.facts()
            before = house.spool.has_family()
            other.settle("a")
            return before, house.spool.has_family()

        assert self.family(folder, then) == (True, False)

    def test_not_for_ever(self, folder, monkeypatch):
        """After a few minutes the run is finished all the same."""
        monkeypatch.setattr(_spool, "_FAMILY_SECONDS", 0.0)

        def then(parent):
            parent.kill()
            house = House(folder)
            house.facts()
            return house.spool.has_family()

        assert not self.family(folder, then)

    def test_others(self, folder):
        """Processes that have nothing to do with it are not waited for."""
        leave(folder, registered())
        other, house = House(folder), House(folder)
        other.tell(registered("other"))
        house.facts()
        assert not house.spool.has_family()


def test_threads_that_meet_a_full_file(folder):
    """Threads that write when a file is full go on in the next, and no descriptor stays behind."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        whole = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, whole[1]))
        gc.disable()
        house, results = House(folder), []
        before = len(list(Path("/dev/fd").iterdir()))

        def write(name):
            for number in range(100):
                results.append(
                    house.spool.write(started(f"{name}-{number}", payload=b"x" * 3_000)) is not None
                )

        threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return results.count(False), len(list(Path("/dev/fd").iterdir())) - before

    lost, descriptors = in_child(work)
    assert lost <= 4  # of 400: who waits for another to make the next file does not wait for ever
    assert descriptors <= 3  # lock and segment


class TestPlanted:
    @pytest.mark.parametrize("exists", [True, False])
    def test_a_folder_that_is_a_link(self, folder, tmp_path, exists):
        """Nothing is written through a link."""
        elsewhere = tmp_path / "elsewhere"
        if exists:
            elsewhere.mkdir(mode=0o755)
        folder.parent.mkdir()
        folder.symlink_to(elsewhere)
        spool = Spool(folder, HERE)

        assert spool.write(began()) is None
        assert spool.failure
        assert [] == list(spool.adopt())
        spool.reject([b"{}\n"])
        spool.close()
        assert exists == elsewhere.exists()
        if exists:
            assert [] == files(elsewhere)
            assert 0o755 == stat.S_IMODE(elsewhere.stat().st_mode)

    def test_a_folder_that_is_a_file(self, folder):
        """Nor where a file is in the way."""
        folder.parent.mkdir()
        folder.write_text("a file")
        spool = Spool(folder, HERE)

        assert spool.write(began()) is None
        assert spool.failure
        assert [] == list(spool.adopt())
        assert "a file" == folder.read_text()

    @needs_root
    def test_a_folder_of_somebody_else(self, folder):
        """Nor in a folder that belongs to another user."""
        folder.mkdir(parents=True, mode=0o755)
        os.chown(folder, 65534, 65534)
        spool = Spool(folder, HERE)

        assert spool.write(began()) is None
        assert "another user" in spool.failure
        assert [] == files(folder)
        assert 0o755 == stat.S_IMODE(folder.stat().st_mode)

    @pytest.mark.parametrize("kind", PLANTED)
    def test_where_the_next_segment_would_be(self, folder, outside, kind):
        """A file that stands where the next segment would be is not written to; the program goes on."""

        def work():
            spool = Spool(folder, HERE, segment_bytes=1_000)
            name = spool.write(began()).name
            plant(folder / name.replace("000000", "000001"), kind, outside)
            results = [spool.write(started(str(number))) for number in range(20)]
            return [each and each.name for each in results], spool.failure

        names, failure = in_child(work)

        assert not [each for each in names if each and each.endswith("000001.seg")]
        assert failure or names[-1].endswith("000002.seg")

    @pytest.mark.parametrize("kind", PLANTED)
    def test_among_what_a_dead_process_left(self, folder, outside, kind):
        """What is planted among the segments of a dead process is not followed; the real ones are read."""
        leave(folder, registered(), finished())
        (name,) = files(folder, ".seg")
        plant(folder / name.replace("000000", "000001"), kind, outside)

        def work():
            house = House(folder)
            found = told(house.facts())
            house.settle("run-register", "run-finish")
            house.end()
            return found

        assert told([registered(), finished()]) == in_child(work)

    @pytest.mark.parametrize("kind", PLANTED)
    def test_as_a_lock(self, folder, outside, kind):
        """What is planted as a lock is no owner."""
        leave(folder, registered(), finished())
        plant(folder / "0000000000000000-0000000000000000.lock", kind, outside)

        assert told([registered(), finished()]) == in_child(lambda: told(House(folder).facts()))

    @pytest.mark.parametrize("kind", PLANTED)
    def test_as_the_file_of_rejected_records(self, folder, outside, kind):
        """What is planted as the file of rejected records gets none, and their number is noted."""
        folder.mkdir(parents=True)
        plant(folder / "rejected.jsonl", kind, outside)

        def work():
            spool = Spool(folder, HERE)
            spool.reject([b"{}\n", b"{}\n"])
            return sum(spool.notes.values())

        assert 2 == in_child(work)

    @pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo"])
    def test_in_place_of_our_own_segment(self, folder, outside, kind):
        """If our own segment is replaced, what is settled is not written elsewhere."""

        def work():
            house = House(folder)
            segment = house.tell(registered(), began())
            (folder / segment.name).unlink()
            plant(folder / segment.name, kind, outside)
            house.settle("run-register")
            house.end()

        in_child(work)


class TestSettling:
    def test_a_segment_goes_as_a_whole(self, folder):
        """A sealed segment is removed when all in it is settled, whatever waits in later ones."""
        house = House(folder, segment_bytes=500)
        spans = [f"{number:02}" for number in range(20)]
        for span in spans:
            house.tell(started(span), ended(span))
        before = files(folder, ".seg")

        house.settle(*spans[:10])

        after = files(folder, ".seg")
        assert before[-len(after) :] == after
        assert 1 < len(after) < len(before)
        assert {each.id for each in facts_in(folder)} >= set(spans[10:])
        house.settle(*spans[10:])
        assert before[-1:] == files(folder, ".seg")
        house.end()
        assert [] == files(folder)

    def test_nothing_is_left_when_all_is_settled(self, house, folder):
        """After `close`, neither segment nor lock is there."""
        house.tell(registered(), began(), started("a"), ended("a"), finished())
        house.settle("run-register", "run-start", "a", "run-finish")
        house.end()

        assert [] == files(folder)

    def test_what_is_not_settled_stays(self, house, folder):
        """After `close`, what was not sent can be taken over at once, by this process too."""
        house.tell(registered(), began(), started("a"), ended("a"), finished())
        house.settle("run-register", "run-start")
        house.end()

        heir = House(folder)

        assert told([started("a"), ended("a"), finished()]) == told(heir.facts())
        heir.settle("a", "run-finish")
        heir.end()
        assert [] == files(folder)

    def test_the_registration_of_a_run_that_goes_on(self, folder):
        """The segment with a run's registration stays until the run is finished."""
        house = House(folder, segment_bytes=300)
        first = house.tell(registered())
        house.tell(began(), *(each for span in "abcd" for each in (started(span), ended(span))))
        house.settle("run-register", "run-start", *"abcd")

        assert first.name in files(folder)
        house.tell(finished())
        house.settle("run-finish")
        assert first.name not in files(folder)
        house.end()
        assert [] == files(folder)

    def test_what_nobody_has_counted_yet(self, house, folder):
        """A fact that another thread has written just before `close`, and that nobody has counted, stays."""
        house.tell(started("a"), ended("a"))
        house.settle("a")
        assert house.spool.write(began("late")) is not None
        house.spool.close()

        assert [began("late")] == [
            each for each in House(folder).facts() if isinstance(each, InstanceStarted)
        ]

    def test_stepping_aside(self, house, folder):
        """Nothing is left of what is settled, and whoever writes after that begins anew."""
        house.tell(registered(), began(), finished())
        house.spool.seal(for_good=False)
        house.settle("run-register", "run-start", "run-finish")
        house.spool.close(for_good=False)
        assert [] == files(folder)

        house.tell(registered("late"), finished("late"))
        assert [] == House(folder).facts()
        house.spool.forget()
        assert told([registered("late"), finished("late")]) == told(House(folder).facts())

    def test_stepping_aside_from_a_run(self, house, folder):
        """Nobody takes over what is left while the rest of it may still be written; then they get all of it."""
        house.tell(registered(), began())
        house.spool.seal(for_good=False)
        house.settle()
        house.spool.close(for_good=False)

        assert [] == House(folder).facts()
        house.tell(finished())
        assert 2 == len([name for name in files(folder) if name.endswith(".seg")])
        house.spool.forget()
        assert told([registered(), began(), finished()]) == told(House(folder).facts())

    def test_what_was_dropped_is_settled_too(self, house, folder):
        """What the platform refused is not offered to it again by the next process."""
        house.tell(registered(), began(), started("a"), ended("a"), started("b"), ended("b"), finished())
        house.settle("a", reason="refused")
        house.settle("b")
        house.spool.forget()

        assert told([registered(), began(), finished()]) == told(House(folder).facts())

    def test_homes_of_others(self, house):
        """What is not in a file is nobody's business here."""
        from prefactor_trace._shelf import Home

        house.spool.settle([Settled(Home(), "a", None)], {})
        house.spool.announce([(Home(), "a")])

    def test_it_cannot_be_written_down(self, house, folder):
        """If it cannot be written down what is settled, the next process sends it again; nothing is raised or lost."""
        segment = house.tell(registered(), began())
        (folder / segment.name).rename(folder / "away")
        house.settle("run-register", "run-start")
        (folder / "away").rename(folder / segment.name)
        house.spool.forget()

        assert told([registered(), began()]) == told(House(folder).facts())[:2]

    def test_it_can_be_written_down_later(self, house, folder):
        """What could not be written down is written with what is settled next, or at the end."""
        segment = house.tell(registered(), began(), started("a"), ended("a"), started("b"))
        for keys in (["run-register"], ["run-start", "a"]):
            (folder / segment.name).rename(folder / "away")
            house.settle(*keys)
            (folder / "away").rename(folder / segment.name)
        house.settle("b")
        house.spool.forget()

        assert told([finished()])[0][:2] == told(House(folder).facts())[-1][:2]
        assert [each for each in House(folder).facts() if not isinstance(each, InstanceFinished)] == []


class TestReading:
    def test_what_was_deferred(self, folder):
        """What there was no room for is read back from our own segments, oldest first, as soon as nobody writes there."""
        house = House(folder, segment_bytes=600)
        facts = [
            registered(),
            *(each for span in "abcdefgh" for each in (started(span), ended(span))),
            finished(),
        ]
        house.tell(*facts, has_room=False)
        assert house.spool.has_deferred

        read = self.read_all(house)

        assert told(facts) == told(read)
        assert not house.spool.has_deferred
        assert house.spool.next_deferred() is None
        house.settle("run-register", *"abcdefgh", "run-finish")
        house.end()
        assert [] == files(folder)

    def test_the_segment_that_is_being_written(self, house, folder):
        """A segment with deferred facts that is not full yet is sealed, so that it can be read."""
        segment = house.tell(registered(), has_room=False)

        assert house.spool.next_deferred() is None
        house.note()
        assert segment is house.spool.next_deferred()
        assert house.spool.write(finished()) is not segment
        assert [registered().key] == [key_of(each.fact) for each in house.spool.read(segment)]

    def test_only_what_is_not_settled(self, house):
        """What was in memory meanwhile and is settled does not come again."""
        house.tell(started("a"), ended("a"))
        segment = house.tell(registered("other"), has_room=False)
        house.settle("a")
        house.spool.next_deferred()
        house.note()

        assert told([registered("other")]) == told(each.fact for each in house.spool.read(segment))

    def test_what_is_settled_while_it_is_read(self, house):
        """Nor what is settled between one fact and the next."""
        house.tell(started("a"), ended("a"))
        segment = house.tell(registered("other"), has_room=False)
        house.spool.next_deferred()
        house.note()
        reading = house.spool.read(segment)

        assert started("a") == next(reading).fact
        house.settle("a")
        assert told([registered("other")]) == told(each.fact for each in reading)

    def test_what_is_settled_and_could_not_be_written_down(self, house, folder, monkeypatch):
        """Nor what is settled though the disk was too full to say so: the account still adds up."""
        house.tell(started("a"), ended("a"))
        segment = house.tell(registered("other"), has_room=False)
        house.spool.next_deferred()
        house.note()
        (folder / segment.name).rename(folder / "away")
        house.settle("a")
        (folder / "away").rename(folder / segment.name)

        took = [each.fact for each in house.spool.read(segment) if house.shelf.load(each.fact, segment)]

        assert told([registered("other")]) == told(took)
        assert 0 == house.shelf.waiting

    def test_announced(self, house):
        """A span that the platform may have been told of while it was running is suspect."""
        house.tell(started("x", "other"))
        segment = house.tell(started("a"), started("b"), has_room=False)
        house.spool.announce([(segment, "a")])
        house.spool.next_deferred()
        house.note()

        found = {each.fact.id: each.is_suspect for each in house.spool.read(segment)}

        assert {"x": False, "a": True, "b": False} == found

    @staticmethod
    def read_all(house):
        read = []
        for _ in range(100):
            house.note()
            segment = house.spool.next_deferred()
            if segment is not None:
                found = [each.fact for each in house.spool.read(segment)]
                read += [each for each in found if house.shelf.load(each, segment)]
            elif not house.spool.has_deferred:
                break
        return read


class TestAdoption:
    def test_what_the_dead_left(self, folder):
        """Everything a dead process has written and not settled comes to the next, in order."""
        facts = [
            registered(),
            began(),
            *(each for span in "abcdefgh" for each in (started(span), ended(span))),
        ]
        leave(folder, *facts, finished(), segment_bytes=500, settled=["run-start", "c"])
        heir = House(folder)

        expected = [each for each in facts if key_of(each) not in ("run-start", "c")] + [finished()]
        assert told(expected) == told(heir.facts())
        heir.settle("run-register", "run-finish", *"abdefgh")
        heir.end()
        assert [] == files(folder)

    def test_qualities(self, folder):
        """What a run was rated comes along as it was, before the end that its death is, and goes when it is settled."""
        leave(
            folder,
            registered(),
            began(),
            rated(1),
            rated(2, payload=None),
            rated(3),
            settled=["run-register", "run-start", "q1-quality"],
        )
        heir = House(folder)

        assert [rated(2, payload=None), rated(3), InstanceFinished("run", 0, "failed")] == [
            each._replace(at=0) if isinstance(each, InstanceFinished) else each for each in heir.facts()
        ]
        heir.settle("q2-quality", "q3-quality", "run-finish", reason="refused")
        heir.end()
        assert [] == files(folder)

    def test_a_quality_of_a_run_that_is_over(self, folder):
        """It needs nothing else of its run to be there."""
        leave(folder, registered(), finished(), rated(1), settled=["run-register", "run-finish"])
        heir = House(folder)

        assert [rated(1)] == [each for each in heir.facts() if not isinstance(each, InstanceFinished)]
        heir.settle("q1-quality")
        heir.end()
        assert [] == files(folder)

    def test_a_kind_of_fact_of_a_newer_version(self, folder):
        """A frame that this version does not know is passed over: the facts beside it come, and nothing is damaged."""

        def work():
            house = House(folder)
            segment = house.tell(registered(), began())
            (folder / segment.name).open("ab").write(
                _frames.frame(77, next(segment.numbers), b'["what"]\n{}')
            )
            house.tell(finished())

        in_child(work)
        heir = House(folder)

        assert told([registered(), began(), finished()]) == told(heir.facts())
        assert {} == dict(heir.spool.notes)
        heir.settle("run-register", "run-start", "run-finish")
        heir.end()
        assert [] == files(folder)

    def test_many_dead(self, folder):
        """All who died are taken over, the oldest first."""
        for number in range(4):
            leave(folder, registered(f"run{number}"), finished(f"run{number}"))

        found = [each.instance_id for each in House(folder).facts()]

        assert [f"run{number}" for number in range(4) for _ in range(2)] == found

    def test_not_the_living(self, folder):
        """A process that lives keeps what is its own."""
        child = Child(lambda: House(folder).tell(registered(), finished()).name)
        try:
            house = House(folder)
            house.tell(registered("own"), finished("own"))
            assert [] == house.adopt()
        finally:
            child.kill()

        assert told([registered(), finished()]) == told(house.facts())
        house.end()

    def test_not_what_is_for_somewhere_else(self, folder):
        """Records for another destination are left alone."""
        leave(folder, registered(), finished(), destination="there")
        before = files(folder)
        house = House(folder)

        assert [] == house.adopt()
        house.settle()
        house.end()
        assert before == files(folder)
        assert told([registered(), finished()]) == told(House(folder, "there").facts())

    def test_a_process_that_died_at_its_first_step_leaves_nothing(self, folder):
        """A lock that says nothing yet goes, if nobody holds it."""
        Path(folder).mkdir(mode=0o700, parents=True)
        dead = folder / f"{'0' * 16}-{'1' * 16}.lock"
        beginning = folder / f"{'0' * 16}-{'2' * 16}.lock"
        dead.touch()
        with beginning.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert [] == House(folder).adopt()
            assert files(folder) == [beginning.name]
        assert [] == House(folder).adopt()
        assert files(folder) == []

    def test_a_lock_that_was_taken_for_a_dead_one(self, folder, monkeypatch):
        """Whoever has just made its lock makes another if somebody has tidied it away."""
        lock, names = _spool._lock, []

        def after_somebody_has_tidied(fd):
            names.extend(files(folder, ".lock"))
            if len(names) == 1:
                (folder / names[0]).unlink()
            return lock(fd)

        monkeypatch.setattr(_spool, "_lock", after_somebody_has_tidied)
        house = House(folder)
        house.tell(registered())

        assert len(set(names)) == 2
        assert files(folder, ".lock") == names[1:]
        assert house.spool.failure is None

    def test_not_what_a_newer_version_has_written(self, folder):
        """Nor what is of a format that we do not know."""
        leave(folder, registered(), finished())
        (lock,) = folder.glob("*.lock")
        lock.write_bytes(
            orjson.dumps({**orjson.loads(lock.read_bytes()), "format": _frames.FORMAT_VERSION + 1})
        )
        before = {each.name: each.read_bytes() for each in folder.iterdir()}
        house = House(folder, quota_bytes=0)

        assert [] == house.adopt()
        assert [] == list(house.spool.sacrifice())
        house.settle()
        house.end()
        assert before == {each.name: each.read_bytes() for each in folder.iterdir()}

    @pytest.mark.parametrize(
        "garbage",
        [
            b"",
            b"garbage",
            b"[]",
            b"null",
            b"1",
            b"[" * 50_000,
            b"\xff" * 100,
            b'{"format":[1]}',
            b'{"format":1}',
            b'{"format":1,"destination":[]}',
            b'{"format":1,"destination":{"a":1}}',
        ],
        ids=range(11),
    )
    def test_a_lock_that_is_garbage(self, folder, garbage):
        """A lock that says nothing we understand is left alone, and does not hide others."""
        leave(folder, registered(), finished())
        names = [
            f"{'0' * 16}-{'0' * 16}.lock",
            f"{'0' * 16}-{'0' * 16}.000000.seg",
            ".lock",
            "x.lock",
            "y.seg",
            ".seg",
        ]
        for name in names:
            (folder / name).write_bytes(garbage)
        house = House(folder, quota_bytes=10**12)

        assert told([registered(), finished()]) == told(house.facts())
        house.settle("run-register", "run-finish")
        house.end()
        assert sorted(names) == files(folder)

    @pytest.mark.parametrize("only_children", [True, False])
    def test_only_children(self, folder, only_children):
        """At the end of the program, only its own children's estates are taken over."""

        def work():  # a grandchild: its parent is not this process
            leave(folder, registered("grandchild"), finished("grandchild"))

        in_child(work)
        leave(folder, registered("child"), finished("child"))

        found = {each.fact.instance_id for each in House(folder).adopt(only_children=only_children)}

        assert ({"child"} if only_children else {"child", "grandchild"}) == found

    def test_each_estate_goes_to_one(self, folder):
        """Of processes that look for the dead at the same moment, each takes what no other has."""
        names = [f"run{number}" for number in range(12)]
        for name in names:
            leave(folder, registered(name), finished(name))
        start, go = os.pipe()
        children = []

        def work():
            os.read(start, 1)
            return [each.instance_id for each in House(folder).facts() if isinstance(each, InstanceFinished)]

        def child():
            children.append(Child(work))

        threads = [threading.Thread(target=child) for _ in range(3)]
        for each in threads:
            each.start()
        time.sleep(0.2)
        os.write(go, b"...")
        for each in threads:
            each.join(30)
        os.close(start)
        os.close(go)
        taken = [name for each in children for name in each.said]
        for each in children:
            each.kill()

        assert names == sorted(taken, key=lambda each: int(each[3:]))

    def test_renamed(self, folder):
        """If the platform gave a run another id, what is left of it comes under that id."""

        def work():
            house = House(folder, segment_bytes=400)
            house.tell(registered(), registered("other"))
            house.settle("run-register", renamed={"run": "theirs", "unheard of": "x"})
            house.tell(
                began(), started("a"), started("b"), ended("a"), *(started(f"{n}", "other") for n in range(9))
            )

        in_child(work)
        found = [each.fact for each in House(folder).adopt()]

        runs = {key_of(each): each.instance_id for each in found if isinstance(each, SpanStarted)}
        assert {"a": "theirs", "b": "theirs"}.items() <= runs.items()
        assert {"theirs", "other"} == set(runs.values())
        finishes = [each.instance_id for each in found if isinstance(each, InstanceFinished)]
        assert ["other", "theirs"] == sorted(finishes)

    def test_announced(self, folder):
        """A span that may have been announced by the one who died is suspect."""

        def work():
            house = House(folder)
            segment = house.tell(registered(), started("a"), started("b"))
            house.spool.announce([(segment, "b")])

        in_child(work)

        found = [each for each in House(folder).adopt() if isinstance(each.fact, SpanStarted)]
        assert [("a", False), ("b", True)] == [(each.fact.id, each.is_suspect) for each in found]

    def test_a_lazy_look(self, folder):
        """Nothing is taken over before it is asked for: the rest stays free for others."""
        for name in ("one", "two"):
            leave(folder, registered(name), finished(name))
        first, second = Spool(folder, HERE), Spool(folder, HERE)
        reading = first.adopt()

        assert "one" == next(reading).fact.instance_id
        assert ["two", "two"] == [each.fact.instance_id for each in second.adopt()]
        reading.close()
        first.close()
        second.close()

    def test_what_an_heir_has_not_sent_goes_to_the_next(self, folder):
        """An heir that leaves, or dies, lets go of what it has taken over."""
        leave(folder, registered(), began(), finished())
        first = House(folder)
        first.facts()
        first.settle("run-register")
        first.end()

        def die():
            second = House(folder)
            second.facts()
            second.settle("run-start")

        in_child(die)

        third = House(folder)
        assert told([finished()]) == told(third.facts())
        third.settle("run-finish")
        third.end()
        assert [] == files(folder)


class TestEnds:
    def test_what_was_going_on(self, folder):
        """Spans and runs that were going on end at the time of the last fact, the spans first, inner before outer."""
        leave(
            folder,
            registered(),
            began(),
            started("outer"),
            started("inner"),
            started("x"),
            ended("x", at=7_777),
        )

        found = House(folder).facts()

        ends = found[-3:]
        assert ["inner", "outer"] == [each.id for each in ends[:2]]
        assert {("failed", 7_777)} == {(each.status, each.finished_at) for each in ends[:2]}
        assert {"Interrupted"} == {orjson.loads(each.error)["error_type"] for each in ends[:2]}
        assert InstanceFinished("run", 7_777, "failed") == ends[2]

    def test_what_was_not(self, folder):
        """What had ended has ended."""
        facts = [registered(), began(), started("a"), ended("a"), finished()]
        leave(folder, *facts)

        assert told(facts) == told(House(folder).facts())

    def test_the_same_when_told_again(self, folder):
        """If the heir dies before all is sent, the next one tells the same ends, of the same time."""
        leave(folder, registered(), began(), started("a"), started("b", at=5_000), segment_bytes=300)
        kept = []

        def die_halfway(count):
            def work():
                house = House(folder)
                reading = house.spool.adopt()
                for _ in range(count):
                    house.shelf.adopt(next(reading).fact, house.spool.write(began(f"other{count}")))

            return work

        for count in (1, 3, 5, 6):
            in_child(die_halfway(count))
        in_child(lambda: len(House(folder).adopt()))
        for _ in range(2):
            house = House(folder)
            found = [each for each in house.facts() if "other" not in key_of(each)]
            kept.append(found)
            house.end()

        assert told(kept[0]) == told(kept[1])
        ends = [each for each in kept[1] if isinstance(each, (SpanEnded, InstanceFinished))]
        assert [("b", 5_000), ("a", 5_000)] == [(each.id, each.finished_at) for each in ends[:2]]
        assert [InstanceFinished("run", 5_000, "failed")] == ends[2:]

    def test_a_run_that_the_platform_knows(self, folder):
        """Of a run that was registered, the registration is known, and its finish comes."""
        leave(folder, registered(), began(), settled=["run-register", "run-start"])
        house = House(folder)

        found = house.adopt()

        assert [("InstanceRegistered", True), ("InstanceFinished", False)] == [
            (type(each.fact).__name__, each.is_known) for each in found
        ]
        house.settle("run-finish")
        house.end()
        assert [] == files(folder)

    def test_a_run_that_is_over(self, folder):
        """A run that is over and settled keeps no segment, whatever else is in it."""

        def work():
            house = House(folder)
            house.tell(registered(), began(), finished(), registered("other"), finished("other"))
            house.settle("run-register", "run-start", "run-finish")

        in_child(work)
        house = House(folder)

        assert told([registered("other"), finished("other")]) == told(house.facts())
        house.settle("other-register", "other-finish")
        house.end()
        assert [] == files(folder)

    def test_a_run_that_is_over_and_whose_end_is_gone(self, folder):
        """A run that is over is not ended a second time, as failed, because the segment with its end has gone."""

        def work():
            house = House(folder, segment_bytes=1_200)
            house.tell(registered(), began(), registered("other"))
            while len(files(folder, ".seg")) < 2:
                house.tell(began("filler"))
            house.tell(finished())
            while len(files(folder, ".seg")) < 3:
                house.tell(began("filler"))
            house.settle("run-register", "run-start", "filler-start", "run-finish")
            return files(folder, ".seg")

        assert len(in_child(work)) == 2
        house = House(folder)

        others = ["other-register", "other-start", "other-finish"]
        assert others == [key_of(each) for each in house.facts()]
        house.settle(*others)
        house.end()
        assert [] == files(folder)

    def test_a_run_that_the_platform_refused(self, folder):
        """A run that the platform never took is not known to it, and is not finished."""

        def work():
            house = House(folder)
            house.tell(registered(), began(), registered("other"))
            house.settle("run-register", "run-start", reason="refused")

        in_child(work)
        house = House(folder)

        assert {"other"} == {each.fact.instance_id for each in house.adopt()}
        house.settle("other-register", "other-start", "other-finish")
        house.end()
        assert [] == files(folder)

    def test_a_span_that_the_platform_refused(self, folder):
        """A span that was dropped while it was running does not end any more."""

        def work():
            house = House(folder)
            house.tell(registered(), started("a"), started("b"))
            house.settle("a", reason="refused")

        in_child(work)

        assert ["run-register", "b", "b", "run-finish"] == [key_of(each) for each in House(folder).facts()]

    def test_a_run_that_had_only_begun(self, folder):
        """A run that died between its registration and its start ends in this century; and to fail, it has to start."""
        before = time.time_ns()
        leave(folder, registered(), settled=["run-register"])

        start, finish = House(folder).facts()

        assert ("run-start", "run-finish", "failed") == (start.key, finish.key, finish.status)
        assert before <= start.at <= finish.at <= time.time_ns()

    def test_the_children_of_a_removed_beginning(self, folder):
        """A run whose first segments are settled and gone ends like any other."""

        def work():
            house = House(folder, segment_bytes=400)
            house.tell(registered())
            for span in "abcdefgh":
                house.tell(started(span), ended(span))
            house.settle("run-register", *"abcdefg")

        in_child(work)
        found = House(folder).adopt()

        assert [(True, "run-register"), (False, "h"), (False, "h"), (False, "run-finish")] == [
            (each.is_known, key_of(each.fact)) for each in found
        ]


class TestDamage:
    def test_in_the_middle(self, folder):
        """Of a damaged segment the rest is read, and it is counted how many frames are missing."""
        spans = "abcdefghij"
        facts = [registered(), *(each for span in spans for each in (started(span), ended(span))), finished()]
        leave(folder, *facts)
        (path,) = folder.glob("*.seg")
        data = bytearray(path.read_bytes())
        for span in "c", "f":
            at = data.index(b'{"in":1}', data.index(b'"%b"' % span.encode()))
            data[at] ^= 0xFF
        path.write_bytes(data)
        house = House(folder)

        found = house.facts()

        begun = [each.id for each in found if isinstance(each, SpanStarted)]
        assert [each for each in spans if each not in "cf"] == begun
        assert [2] == list(house.spool.notes.values())

    def test_a_torn_end(self, folder):
        """A last frame that was not finished is passed over."""
        leave(folder, registered(), finished(), started("a", payload=b'{"a":"%b"}' % (b"x" * 100)))
        (path,) = folder.glob("*.seg")
        path.write_bytes(path.read_bytes()[:-50])

        assert told([registered(), finished()]) == told(House(folder).facts())

    def test_nothing_can_be_read(self, folder):
        """A segment that holds nothing but garbage is not passed over in silence."""
        leave(folder, registered(), finished())
        (path,) = folder.glob("*.seg")
        path.write_bytes(os.urandom(3_000))
        house = House(folder)

        assert [] == house.adopt()
        assert sum(house.spool.notes.values()) >= 1

    def test_a_fact_that_stands_twice(self, folder):
        """A piece of a file that stands there twice does not hide that another is missing."""
        leave(folder, *(began(f"run{number}") for number in range(6)))
        (path,) = folder.glob("*.seg")
        frames = [_frames.frame(*each) for each in _frames.scan(path.read_bytes())]
        path.write_bytes(b"".join([*frames[:3], frames[2], *frames[4:]]))
        house = House(folder)

        found = house.facts()

        assert 5 == len({key_of(each) for each in found})
        assert [1] == list(house.spool.notes.values())

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            (_frames.HEADER, b"[]"),
            (_frames.SETTLED, b"null"),
            (_frames.SETTLED, b'{"delivered":5}'),
            (_frames.SETTLED, b'{"delivered":[[1],{}],"dropped":[{}]}'),
            (_frames.SETTLED, b'{"delivered":null}'),
            (_frames.SETTLED, b'{"renamed":["a"]}'),
            (_frames.SETTLED, b'{"renamed":{"run":5}}'),
            (_frames.ANNOUNCED, b"[[1]]"),
            (_frames.ANNOUNCED, b'{"a":1}'),
            (_frames.ANNOUNCED, b"[" * 5_000),
            (1, b'["x"'),
            (2, b"[" * 100_000),
            (2, b'["\\ud800",1]'),
            (2, b'["x",' + b"9" * 30 + b"]"),
            (4, b'["x","\\ud800",null,"t","n",1,true,false]\n'),
            (4, b'["\\ud800","run",null,"t","n",1,true,false]\n'),
            (5, b'["x",["failed"],1,null,null,null,null]\n'),
            (99, b"?"),
        ],
        ids=range(18),
    )
    def test_frames_of_another_shape(self, folder, kind, body):
        """What is whole but makes no sense is passed over; the facts around it are read, and nothing is raised."""
        leave(folder, registered(), began())
        (path,) = folder.glob("*.seg")
        number = 1 + max(each.number for each in _frames.scan(path.read_bytes()))
        path.write_bytes(path.read_bytes() + _frames.frame(kind, number, body))
        house = House(folder)

        found = [each for each in house.facts() if key_of(each).startswith("run-")]

        assert ["run-register", "run-start", "run-finish"] == [key_of(each) for each in found]
        assert {"run"} == {each.instance_id for each in found}
        assert sum(lost for _, _, lost in House(folder, quota_bytes=0).spool.sacrifice()) == 0

    def test_a_segment_that_cannot_be_read_now(self, folder, monkeypatch):
        """A segment that cannot be opened at the moment, for want of descriptors, is not thrown away."""
        leave(folder, registered(), finished())
        (name,) = files(folder, ".seg")
        real = os.open

        def fail(path, *args, **options):
            if path == name:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path, *args, **options)

        house = House(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            assert [] == house.adopt()
        house.settle()
        house.end()

        assert told([registered(), finished()]) == told(House(folder).facts())


class TestForks:
    def test_a_child_leaves_its_parent_alone(self, folder):
        """A child that lets go of its parent's spool, and ends, changes nothing in it."""
        house = House(folder)
        house.tell(registered(), began())
        before = {each.name: each.read_bytes() for each in folder.iterdir()}

        def work():
            house.spool.forget()
            own = House(folder)
            theirs = [key_of(each) for each in own.facts()]
            own.tell(registered("child"), finished("child"))
            own.settle("child-register", "child-finish")
            own.end()
            return theirs

        assert [] == in_child(work)
        assert before == {each.name: each.read_bytes() for each in folder.iterdir()}
        assert [] == in_child(
            lambda: [key_of(each) for each in (house.spool.forget(), House(folder).facts())[1]]
        )
        house.tell(finished())
        assert told([registered(), began(), finished()]) == told(facts_in(folder))
        house.end()

    def test_a_parent_that_dies_before_its_child(self, folder):
        """The lock of a parent that died is free, though its child lives on."""
        child_pid = []

        def work():
            house = House(folder)
            house.tell(registered(), finished())
            child = Child(house.spool.forget)
            child_pid.append(child.pid)
            return child.pid

        parent = Child(work)
        try:
            other = House(folder)
            assert [] == other.adopt()
            parent.kill()
            os.kill(parent.said, 0)  # the child is alive

            assert told([registered(), finished()]) == told(other.facts())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent.said, signal.SIGKILL)

    def test_a_program_that_is_started(self, folder):
        """Another program that is started inherits neither lock nor segment."""

        def work():
            house = House(folder)
            house.tell(registered(), finished())
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
            return process.pid

        pid = in_child(work)
        try:
            os.kill(pid, 0)
            assert told([registered(), finished()]) == told(House(folder).facts())
        finally:
            os.kill(pid, signal.SIGKILL)

    def test_estates_stay_with_the_parent(self, folder):
        """What the parent has taken over is not the child's."""
        leave(folder, registered(), finished())
        house = House(folder)
        house.facts()

        def work():
            house.spool.forget()
            return len(House(folder).facts())

        assert 0 == in_child(work)
        house.settle("run-register", "run-finish")
        house.end()
        assert [] == files(folder)


@pytest.fixture
def at_once(monkeypatch):
    """After a failure, the next try is made at once."""
    monkeypatch.setattr(_spool, "_RETRY_SECONDS", 0.0)


class TestDisk:
    def test_the_next_try_waits(self, folder):
        """After a failure, nothing is tried for a while, even if the disk is well again."""
        folder.parent.mkdir()
        folder.write_text("in the way")
        spool = Spool(folder, HERE)
        assert spool.write(began()) is None
        folder.unlink()

        assert spool.write(began()) is None
        assert spool.failure
        assert not folder.exists()

    def test_it_works_again(self, folder, at_once):
        """When the disk is well again, so is the spool."""
        folder.parent.mkdir()
        folder.write_text("in the way")
        spool = Spool(folder, HERE)
        assert spool.write(began()) is None
        assert spool.failure
        folder.unlink()

        assert spool.write(began()) is not None
        assert spool.failure is None
        assert [began()] == facts_in(folder)
        spool.close()

    def test_full_from_the_beginning(self, folder, at_once):
        """On a disk that is full, neither descriptors nor files pile up, and it works when there is room."""

        def work():
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
            house = House(folder)
            before = len(files("/proc/self/fd"))
            results = [house.spool.write(began()) for _ in range(20)]
            descriptors = len(files("/proc/self/fd")) - before
            left = len(files(folder))
            failure = house.spool.failure
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            house.tell(registered(), finished())
            house.settle("run-register", "run-finish")
            house.end()
            return results, descriptors, left, failure, files(folder)

        results, descriptors, left, failure, at_the_end = in_child(work)

        assert {None} == set(results)
        assert failure
        assert descriptors <= 2
        assert left <= 2
        assert [] == at_the_end

    @pytest.mark.parametrize("limit", [900, 1_000, 1_017, 2_000])
    def test_no_file_may_grow(self, folder, limit):
        """Where a file may not become larger, recording goes on in the next, and all of it is there."""

        def work():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            whole = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))  # of each file
            house = House(folder)
            house.tell(*[started(f"{number}") for number in range(60)])
            return house.spool.failure

        assert in_child(work) is None
        found = [each.id for each in House(folder).facts() if isinstance(each, SpanStarted)]
        assert [str(number) for number in range(60)] == found

    def test_not_even_one_fact(self, folder, at_once):
        """Where not even one fact has room in a file, facts stay in memory, and nothing is left behind."""

        def work():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            whole = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, whole[1]))
            spool = Spool(folder, HERE)
            return [
                spool.write(started(f"{number}", payload=b"x" * 400)) for number in range(20)
            ], spool.failure

        results, failure = in_child(work)
        assert failure
        assert [None] * 20 == results
        assert [] == House(folder).facts()

    def test_no_descriptor_for_the_next_segment(self, folder):
        """While there is none, facts go on into the segment there is."""

        def work():
            spool = Spool(folder, HERE, segment_bytes=2_000)
            house = [spool.write(started("0"))]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 100), hard))
            taken = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            house += [spool.write(started(f"{number}")) for number in range(1, 60)]
            return None not in house, spool.failure

        assert in_child(work) == [True, None]
        found = [each.id for each in House(folder).facts() if isinstance(each, SpanStarted)]
        assert [str(number) for number in range(60)] == found

    def test_a_disk_of_64_kilobytes(self, tmp_path, at_once):
        """A disk that is really full: nothing is raised, nothing that was written is lost, and room is made without room."""
        disk = tmp_path / "disk"
        with mounted(disk, "size=64k"):
            is_full, failure, read, left = in_child(lambda: self.fill(disk / "spool"))

        assert is_full
        assert os.strerror(errno.ENOSPC) == failure
        assert read
        assert [] == left

    @staticmethod
    def fill(folder):
        house = House(folder, segment_bytes=8_000)
        written = []
        for number in range(1_000):
            fact = started(f"{number}")
            segment = house.spool.write(fact)
            if segment is not None:
                house.shelf.admit(fact, segment, has_room=True)
                written.append(fact)
        is_full = len(written) < 1_000
        failure = house.spool.failure
        read = facts_of(folder) == [each.id for each in written]
        # The disk is full to the last byte, and yet all goes.
        house.settle(*(each.id for each in written))
        house.note()
        house.settle()
        assert house.spool.write(began()), house.spool.failure
        house.end()
        return is_full, failure, read, files(folder, ".seg")[1:]

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs somewhere that nobody can write to")
    def test_where_nothing_can_be_written(self):
        """Where no folder can be made, facts stay in memory, and it is said why."""
        spool = Spool(Path("/proc/spool"), HERE)

        assert spool.write(began()) is None
        assert spool.failure
        assert [] == list(spool.adopt())
        assert [] == list(spool.sacrifice())
        spool.close()

    def test_a_disk_that_becomes_read_only(self, tmp_path, at_once):
        """When a disk becomes read-only, facts stay in memory; when it is writable again, they go there."""
        disk = tmp_path / "disk"
        with mounted(disk, "size=1m,ro"):
            house = House(disk / "spool")
            assert house.spool.write(began()) is None
            assert os.strerror(errno.EROFS) == house.spool.failure
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            house.tell(registered(), finished())
            assert house.spool.failure is None
            house.settle("run-register", "run-finish")
            house.end()
            assert [] == files(disk / "spool")

    def test_a_folder_that_cannot_be_written_to(self, folder, tmp_path):
        """In a folder without the right to write nothing is made, and nothing is changed."""
        import shutil
        import tempfile

        place = Path(tempfile.mkdtemp())
        try:
            place.chmod(0o755)
            target = place / "spool"
            target.mkdir()

            def work():
                if is_root:
                    os.chown(target, 65534, 65534)
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                target.chmod(0o500)
                spool = Spool(target, HERE)
                return spool.write(began()) is None, spool.failure, len(list(spool.adopt()))

            assert [True, os.strerror(errno.EACCES), 0] == in_child(work)
            assert [] == files(target)
        finally:
            shutil.rmtree(place)

    def test_the_folder_is_deleted(self, folder, at_once):
        """When the folder is deleted, later facts come to lie in a new one, and the next process finds them."""
        import shutil

        def work():
            house = House(folder, segment_bytes=500)
            house.tell(registered(), began())
            shutil.rmtree(folder)
            results = [house.spool.write(started(f"{number}")) for number in range(20)]
            return [number for number, each in enumerate(results) if each and (folder / each.name).exists()]

        there = in_child(work)

        assert len(there) >= 10
        found = [each.id for each in House(folder).facts() if isinstance(each, SpanStarted)]
        assert [str(each) for each in there] == found

    def test_nothing_is_raised_when_the_folder_is_gone(self, folder):
        """Whatever is asked of a spool whose folder is gone, nothing is raised."""
        import shutil

        leave(folder, registered("dead"), finished("dead"))
        house = House(folder, quota_bytes=0)
        house.adopt()
        segment = house.tell(registered(), started("a"), has_room=False)
        shutil.rmtree(folder)
        house.spool.announce([(segment, "a")])
        house.spool.next_deferred()
        house.note()
        assert house.spool.read(segment) is None
        house.settle("dead-register")
        house.spool.reject([b"{}\n"])
        list(house.spool.sacrifice())
        assert [] == house.adopt()
        house.end()
        house.end()


def facts_of(folder):
    """Return the ids of all spans that begin in a folder, torn frames passed over."""
    found = []
    for name in files(folder, ".seg"):
        for each in _frames.scan((folder / name).read_bytes()):
            fact = _frames.decode(each) if isinstance(each, _frames.Frame) else None
            found += [fact.id] if isinstance(fact, SpanStarted) else []
    return found


class TestQuota:
    def test_when_nobody_looks_after_it(self, folder):
        """At the end of the program nothing is begun beyond the quota: nobody makes room any more."""
        house = House(folder, segment_bytes=1_000, quota_bytes=5_000)
        house.spool.is_unattended = True
        written = 0
        while house.spool.write(started(f"span{written}", payload=b'"' + b"x" * 200 + b'"')):
            written += 1
            assert house.spool._folder.used_bytes() < 7_000

        assert house.spool.failure
        assert written > 15
        house.end()

    def test_below_it(self, house, folder):
        """Below the quota nothing is given up."""
        leave(folder, registered(), finished())
        house.tell(registered("own"))

        assert [] == list(house.spool.sacrifice())
        assert 2 == len(files(folder, ".seg"))

    def test_the_oldest_first(self, folder):
        """Beyond it the oldest segments go, as many as needed, and what was not settled in them is counted."""
        for number in range(4):
            run = f"run{number}"
            leave(
                folder,
                registered(run),
                *(
                    each
                    for span in range(10)
                    for each in (started(f"{number}-{span}", run), ended(f"{number}-{span}"))
                ),
                finished(run),
                settled=[f"{number}-0"],
            )
        sizes = [(folder / name).stat().st_size for name in files(folder, ".seg")]
        spool = Spool(folder, HERE, quota_bytes=sum(sizes[2:]) + 10)
        before = files(folder)

        given_up = list(spool.sacrifice())

        assert [11, 11] == [lost for _, _, lost in given_up]  # the registration, nine spans, the finish
        assert before[4:] == files(folder)
        assert [] == list(spool.sacrifice())

    def test_whosever_they_are(self, folder):
        """What dead processes left for somewhere else takes room like anything else."""
        leave(folder, registered(), finished(), destination="elsewhere")

        assert [2] == [lost for _, _, lost in Spool(folder, HERE, quota_bytes=0).sacrifice()]
        assert [] == files(folder)

    def test_never_of_the_living(self, folder):
        """What belongs to a process that lives is not touched, however old it is."""
        child = Child(lambda: House(folder).tell(registered("living")).name)
        try:
            leave(folder, registered(), finished())
            spool = Spool(folder, HERE, quota_bytes=0)

            assert [2] == [lost for _, _, lost in spool.sacrifice()]
            assert [child.said] == files(folder, ".seg")
        finally:
            child.kill()

    def test_what_has_been_taken_over(self, folder):
        """A file of an estate goes like one of our own: what was read of it is in memory, and not lost with it."""
        leave(folder, registered(), finished())
        house = House(folder, quota_bytes=0)
        house.facts()

        ((_, records, lost),) = house.spool.sacrifice()
        assert ([key for key, _ in records], lost) == (["run-register", "run-finish"], 0)
        assert [] == files(folder, ".seg")
        house.end()
        assert [] == files(folder)

    def test_what_is_being_read(self, folder):
        """The file that is being read stays; those behind it are lost, and what was going on in them is not ended."""
        leave(folder, *[registered(f"run{number}") for number in range(20)], segment_bytes=1_000)
        house = House(folder, quota_bytes=0)
        reading = house.spool.adopt()
        first = next(reading)
        lost = sum(lost for _, _, lost in house.spool.sacrifice())
        rest = [each.fact for each in reading]

        assert [first.segment.name] == files(folder, ".seg")
        runs = {each.instance_id for each in rest} | {first.fact.instance_id}
        assert len(runs) + lost == 20
        ended = {each.instance_id for each in rest if isinstance(each, InstanceFinished)}
        assert ended == runs

    def test_our_own(self, folder):
        """Of our own, sealed segments go, the oldest first, with the names of their runs; never the one in use."""
        house = House(folder, segment_bytes=600, quota_bytes=0)
        for number in range(8):
            house.tell(registered(f"run{number}"), finished(f"run{number}"), has_room=False)
        house.note()
        before = files(folder, ".seg")

        given_up = list(house.spool.sacrifice())

        assert before[:-1] == [segment.name for segment, _, _ in given_up]
        assert before[-1:] == files(folder, ".seg")
        assert {0} == {lost for _, _, lost in given_up}
        lost = {instance_id for _, records, _ in given_up for _, instance_id in records}
        assert {f"run{number}" for number in range(7)} <= lost
        for segment, records, _ in given_up:
            house.shelf.give_up(segment, "quota", {instance_id for _, instance_id in records})
        in_use = facts_in(folder)
        assert 16 - sum(house.shelf.dropped.values()) == len(in_use) == house.shelf.waiting
        house.end()

    def test_settled_segments_are_not_counted(self, folder):
        """What was settled in a segment that is given up is not lost."""

        def work():
            house = House(folder)
            house.tell(registered(), began(), started("a"), ended("a"), started("b"))
            house.settle("run-register", "run-start")
            house.settle("a", reason="refused")

        in_child(work)

        assert [1] == [lost for _, _, lost in Spool(folder, HERE, quota_bytes=0).sacrifice()]


class TestRejected:
    def test_lines(self, house, folder):
        """What the platform will never take is kept as lines of JSON, behind what is there, for the user alone."""
        house.tell(began())
        house.spool.reject([b'{"a":1}\n', b'{"b":2}\n'])
        house.spool.reject([b'{"c":3}\n'])

        path = folder / "rejected.jsonl"
        assert [{"a": 1}, {"b": 2}, {"c": 3}] == [json.loads(each) for each in path.read_text().splitlines()]
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        assert {} == house.spool.notes

    def test_bounded(self, house, folder, monkeypatch):
        """The file does not grow without end; what has no place in it is noted."""
        monkeypatch.setattr(_spool, "_LETTERS_BYTES", 100)
        house.tell(began())
        for _ in range(10):
            house.spool.reject([b'{"a":"%b"}\n' % (b"x" * 20)])

        lines = (folder / "rejected.jsonl").read_text().splitlines()
        assert len(lines) * 30 <= 100
        assert 10 - len(lines) == sum(house.spool.notes.values())

    def test_it_stays(self, house, folder):
        """It is not removed with the segments, and nobody takes it for one."""
        house.tell(registered(), finished())
        house.spool.reject([b"{}\n"])
        house.settle("run-register", "run-finish")
        house.end()

        assert ["rejected.jsonl"] == files(folder)
        assert [] == House(folder).adopt()

    def test_no_folder(self, house):
        """Without a folder they are noted."""
        house.spool.reject([b"{}\n", b"{}\n"])

        assert 2 == sum(house.spool.notes.values())

"""The file format: what was written comes back as it was; of a damaged file, all that was not touched, and nothing else."""

from __future__ import annotations

import itertools
import json
import time

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from patience import within

from prefactor_trace import _frames
from prefactor_trace._frames import ANNOUNCED, HEADER, MAGIC, SETTLED, Damage, Frame
from prefactor_trace._record import (
    InstanceFinished,
    InstanceRegistered,
    InstanceStarted,
    QualityRecorded,
    SpanEnded,
    SpanStarted,
)
from prefactor_trace._schema import Schema, SpanType

HEAD_SIZE = len(_frames.frame(HEADER, 0, b""))
LATEST = 2**63 - 1

ids = st.text(min_size=1, max_size=32)  # no half characters
any_text = st.text(st.one_of(st.characters(), st.sampled_from('\ud800\udfff\n\0"\\\uffff')), max_size=30)
times = st.one_of(st.integers(0, LATEST), st.just(LATEST))
statuses = st.sampled_from(["complete", "failed", "cancelled"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
objects = st.one_of(
    st.dictionaries(st.text(max_size=5), values, max_size=3).map(orjson.dumps),
    st.dictionaries(st.text(max_size=5), values, max_size=3).map(
        lambda each: json.dumps(each, indent=2).encode()
    ),
    st.sampled_from([b"{}", b'{"a":"\\n"}', b"{\n}\n", b'{"half":"\\ud800"}']),
)
blobs = st.none() | objects
facts = st.one_of(
    st.builds(
        InstanceRegistered,
        ids,
        st.dictionaries(st.text(max_size=5), values, max_size=3).map(orjson.dumps),
        st.builds(lambda names: Schema(tuple(map(SpanType, names))), st.lists(ids, max_size=2)),
    ),
    st.builds(InstanceStarted, ids, times),
    st.builds(InstanceFinished, ids, times, statuses),
    st.builds(
        SpanStarted, ids, ids, st.none() | ids, any_text, any_text, times, blobs, st.booleans(), st.booleans()
    ),
    st.builds(SpanEnded, ids, statuses, times, blobs, blobs, blobs, blobs, blobs),
    st.builds(QualityRecorded, ids, ids, any_text, blobs),
)
other_frames = st.one_of(
    st.tuples(st.just(HEADER), st.sampled_from([b'{"format":1}', b'{"format":99,"what":[]}', b""])),
    st.tuples(st.just(SETTLED), st.just(b'{"delivered":["a"]}')),
    st.tuples(st.just(ANNOUNCED), st.just(b'["a","b"]')),
)


def comparable(fact):
    """Return *fact* so that a schema equals the one that was read back."""
    return fact._replace(schema=fact.schema.to_json()) if isinstance(fact, InstanceRegistered) else fact


def frames_in(data):
    return [each for each in _frames.scan(data) if isinstance(each, Frame)]


def positions(data):
    """Return what is in *data*, by position. The pieces lie side by side and leave nothing out."""
    found = {}
    position = 0
    for each in _frames.scan(data):
        if isinstance(each, Damage):
            assert each.start == position
            assert each.end > each.start
            position = each.end
        else:
            found[position] = each
            position += HEAD_SIZE + len(each.body)
    assert position == len(data)
    return found


class TestFacts:
    @given(facts, st.integers(0, 2**32 - 1))
    @settings(max_examples=300, deadline=None)
    def test_what_is_written_comes_back(self, fact, number):
        """Any fact of any kind is read as it was written, under its number."""
        (found,) = _frames.scan(_frames.encode(fact, number))

        assert number == found.number
        assert comparable(fact) == comparable(_frames.decode(found))

    @pytest.mark.parametrize("parts", list(itertools.product([None, b"{}", b'{"a":1}'], repeat=4)))
    def test_absent_and_empty_are_different(self, parts):
        """Each part of an end may be absent, whatever the others are."""
        fact = SpanEnded("id", "failed", 1, *parts)

        (found,) = _frames.scan(_frames.encode(fact, 0))

        assert fact == _frames.decode(found)

    @pytest.mark.parametrize("payload", [None, b"{}", b'{"a":"b\\n"}', b"{\n\n}"])
    def test_a_payload_that_is_absent(self, payload):
        """A payload that is not captured is not an empty one."""
        fact = SpanStarted("id", "run", None, "type", "two\nlines", LATEST, payload, False)

        (found,) = _frames.scan(_frames.encode(fact, 0))

        assert fact == _frames.decode(found)

    def test_what_an_older_version_does_not_know(self):
        """A kind of frame that is new is whole and numbered all the same: only the version that knows it reads it."""
        quality = QualityRecorded("id", "run", "verdict", b'{"ok":true}')
        data = _frames.encode(InstanceStarted("run", 1), 0) + _frames.encode(quality, 1)

        assert [(2, 0), (8, 1)] == [(each.kind, each.number) for each in frames_in(data)]
        assert 1 == _frames.FORMAT_VERSION

    def test_a_big_one(self):
        """Megabytes are one frame."""
        fact = SpanEnded("id", "complete", 1, b'{"a":"%b"}' % (b"x" * 3_000_000), b"{}")

        (found,) = _frames.scan(_frames.encode(fact, 0))

        assert fact == _frames.decode(found)

    def test_the_magic_is_in_no_text(self):
        """What is recorded is UTF-8, so nothing in it can look like the beginning of a frame."""
        with pytest.raises(UnicodeDecodeError):
            MAGIC.decode()
        assert MAGIC not in _frames.encode(SpanStarted("i", "r", None, "t", "\xf5PTR", 1, b"{}", True), 0)[1:]

    def test_other_frames_are_no_facts(self):
        """What stands between the facts is not one, and neither is a kind that a later version may bring."""
        for kind in (HEADER, SETTLED, ANNOUNCED, 9, 255):
            assert _frames.decode(Frame(kind, 0, b"[]")) is None


class TestStrangeBodies:
    @given(st.integers(0, 9), st.binary(max_size=200))
    @settings(max_examples=300, deadline=None)
    def test_bytes(self, kind, body):
        """Whatever stands in a frame, it is a fact, nothing, or a ValueError."""
        self.is_harmless(kind, body)

    @given(
        st.sampled_from([1, 2, 3, 4, 5, 8]),
        st.lists(values | times | statuses | st.sampled_from([-1, 2**64, 2**80, True, 1.5]), max_size=9),
        st.binary(max_size=8) | objects,
    )
    @settings(max_examples=300, deadline=None)
    def test_another_shape(self, kind, head, rest):
        """A line of JSON of another shape is a fact or a ValueError."""
        self.is_harmless(kind, json.dumps(head).encode() + b"\n" + rest)

    @pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 8])
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\n",
            b"null\n{}",
            b"{}\n{}",
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000 + b"\n",
            b'["\\ud800", 1]\n{}{}',
            b'["a", ' + b"1" * 10_000 + b"]\n",
            b'["a", 1e999, "failed"]\n',
            b'["a", NaN, "failed"]\n',
            b"\xff\xfe[\0]\0",
            b"\0\0\0[\n",
            b'["a", 2]\n{}' + b"[" * 100_000,
            b'["a", ' + b"9" * 300 + b', "failed"]\n',
            b'["a", "failed", 1, 5, 5, 5, 5]\nshort',
            b'["a", ["failed"], 1, null, null, null, null]\n',
            b'["a", "run", 5, true]\n{}',
        ],
        ids=range(17),
    )
    def test_one_by_one(self, kind, body):
        """So are nesting without end, numbers without end, half characters and lengths that lie."""
        self.is_harmless(kind, body)

    @staticmethod
    def is_harmless(kind, body):
        try:
            fact = _frames.decode(Frame(kind, 0, body))
        except ValueError:
            return
        kinds = (
            InstanceRegistered,
            InstanceStarted,
            InstanceFinished,
            SpanStarted,
            SpanEnded,
            QualityRecorded,
        )
        assert fact is None or isinstance(fact, kinds)

    @given(
        st.sampled_from([2, 3]),
        st.text(st.one_of(st.characters(), st.sampled_from("\ud800")), max_size=3),
        st.integers(0, 2**66),
        statuses,
    )
    @example(2, "a", 2**64, "failed")
    @example(3, "\ud800", 1, "failed")
    @settings(deadline=None)
    def test_what_can_be_read_can_be_written(self, kind, id_, at, status):
        """A fact that was read is one that could have been written: its id and times can go on."""
        head = [id_, at] if kind == 2 else [id_, at, status]
        try:
            fact = _frames.decode(Frame(kind, 0, json.dumps(head).encode()))
        except ValueError:
            return

        assert fact == _frames.decode(frames_in(_frames.encode(fact, 0))[0])


def segment_of(contents):
    """Return a segment and its frames, by position. *contents*: facts, and kinds with their bodies."""
    data = b""
    written = {}
    for number, each in enumerate(contents):
        is_fact = not isinstance(each, tuple) or hasattr(each, "_fields")
        encoded = _frames.encode(each, number) if is_fact else _frames.frame(each[0], number, each[1])
        written[len(data)] = frames_in(encoded)[0]
        data += encoded
    return data, written


segments = st.lists(facts | other_frames, min_size=1, max_size=8).map(segment_of)

HUGE = MAGIC + b"\x04" + b"\0\0\0\0" + b"\xff\xff\xff\x0f" + b"\0\0\0\0"


@st.composite
def damaged(draw):
    """Return bytes, and by position the frames that are whole in it.

    Every byte is carried along with where it is from, so it is known which frames nothing has happened to.
    """
    data, written = draw(segments)
    cells = [(byte, (0, position)) for position, byte in enumerate(data)]
    other_data, other_written = draw(segments)
    other_cells = [(byte, (1, position)) for position, byte in enumerate(other_data)]
    origins = {(0, position): frame for position, frame in written.items()}
    origins |= {(1, position): frame for position, frame in other_written.items()}

    def somewhere(extra=0):
        return draw(st.integers(0, max(0, len(cells) - 1 + extra)))

    for _ in range(draw(st.integers(0, 5))):
        what = draw(st.sampled_from(["flip", "cut tail", "cut out", "zero tail", "copy", "splice", "insert"]))
        at, until = sorted((somewhere(1), somewhere(1)))
        if what == "flip" and cells:
            at = somewhere()
            cells[at] = (cells[at][0] ^ draw(st.integers(1, 255)), None)
        elif what == "cut tail":
            cells = cells[:at]
        elif what == "cut out":
            cells = cells[:at] + cells[until:]
        elif what == "zero tail":
            cells = cells[:at] + [(0, None)] * (len(cells) - at)
        elif what == "copy":
            into = somewhere(1)
            cells = cells[:into] + cells[at:until] + cells[into:]
        elif what == "splice":
            cells = cells[:at] + other_cells[draw(st.integers(0, len(other_cells))) :]
        elif what == "insert":
            garbage = draw(
                st.binary(max_size=20) | st.sampled_from([MAGIC, MAGIC[:2], HUGE, HUGE[:-3], b"\0" * 20])
            )
            cells = cells[:at] + [(byte, None) for byte in garbage] + cells[at:]

    whole = {}
    for position, (_, origin) in enumerate(cells):
        frame = origins.get(origin)
        if frame is not None:
            size = HEAD_SIZE + len(frame.body)
            came_from = [each[1] for each in cells[position : position + size]]
            if came_from == [(origin[0], origin[1] + offset) for offset in range(size)]:
                whole[position] = frame
    return bytes(byte for byte, _ in cells), whole, set(origins.values())


class TestDamage:
    @pytest.mark.parametrize("filler", [b"\0", b"\xff"])
    def test_a_magic_before_a_blank_disk(self, filler):
        """What a file system leaves where nothing was written is no frame."""
        assert positions(MAGIC + filler * 200) == {}

    @given(damaged())
    @settings(max_examples=250, deadline=None)
    def test_what_was_not_touched_is_read(self, case):
        """Whatever happens to a segment, every frame of which no byte was touched is read, in order, and no other."""
        data, whole, written = case

        found = positions(data)

        assert {position: found.get(position) for position in whole} == whole
        assert set(found.values()) <= written

    @given(st.binary(max_size=400))
    @settings(max_examples=200, deadline=None)
    def test_anything(self, data):
        """Of what is no segment at all, nothing is read, and nothing is raised."""
        assert positions(data) == {}

    def test_every_single_bit(self):
        """Any one bit that has changed costs its frame, wherever it is, and no other."""
        facts = [
            InstanceStarted("run", 1),
            SpanStarted("a", "run", None, "t", "n", 2, b'{"in":1}', True),
            SpanEnded("a", "complete", 3),
        ]
        data, written = segment_of(facts)
        starts = sorted(written)
        for position, bit in itertools.product(range(len(data)), range(8)):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            touched = max(start for start in starts if start <= position)

            found = positions(bytes(broken))

            assert found == {start: frame for start, frame in written.items() if start != touched}, (
                position,
                bit,
            )

    def test_every_cut(self):
        """Wherever a segment is cut off, all frames before the cut are read."""
        data, written = segment_of([InstanceStarted(str(number), number) for number in range(5)])
        for end in range(len(data) + 1):
            whole = {
                start: frame for start, frame in written.items() if start + HEAD_SIZE + len(frame.body) <= end
            }

            assert positions(data[:end]) == whole

    def test_every_cut_at_the_front(self):
        """A segment that has lost its beginning is read from its first whole frame on."""
        data, written = segment_of([InstanceStarted(str(number), number) for number in range(5)])
        for begin in range(len(data) + 1):
            whole = [frame for start, frame in sorted(written.items()) if start >= begin]

            assert frames_in(data[begin:]) == whole

    def test_numbers_tell_what_is_missing(self):
        """Each frame carries its number, so a gap tells how many were lost."""
        data, written = segment_of([InstanceStarted(str(number), number) for number in range(10)])
        starts = sorted(written)

        left = frames_in(data[: starts[3]] + b"\0" * 40 + data[starts[7] :])

        assert [0, 1, 2, 7, 8, 9] == [each.number for each in left]

    def test_a_tail_of_zeros(self):
        """What a power cut leaves, a tail of zeros, is damage of one piece."""
        data, _ = segment_of([InstanceStarted("a", 1)])

        assert Damage(len(data), len(data) + 4096) == list(_frames.scan(data + b"\0" * 4096))[-1]

    def test_empty(self):
        """In nothing is nothing."""
        assert [] == list(_frames.scan(b""))


def seconds_for(data):
    """Return the shortest of three times for a scan of *data*."""
    shortest = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in _frames.scan(data):
            pass
        shortest = min(shortest, time.perf_counter() - started)
        if shortest > 2:
            break
    return shortest


class TestSpeed:
    def test_fast_enough_to_recover(self):
        """Frames of 1 KiB are read at 100 MiB/s; 30 leave room for a busy machine."""
        one = _frames.encode(SpanEnded("a" * 32, "complete", 1, b'{"a":"%b"}' % (b"x" * 920)), 1)
        data = one * (16 * 1024 * 1024 // len(one))

        assert len(data) / seconds_for(data) > 30 * 1024 * 1024

    @pytest.mark.parametrize(
        "damage",
        [
            MAGIC,
            MAGIC + b"\x04" + b"\0\0\0\0" + b"\0\0\x04\0" + b"\0\0\0\0",
            MAGIC + b"\x04" + b"\0\0\0\0" + b"\xff\xff\xff\xff" + b"\0\0\0\0",
            b"\xf5",
            b"\xf5P",
            b"\0",
        ],
        ids=["magic", "256 KiB each", "4 GiB each", "a byte of it", "two bytes of it", "zeros"],
    )
    def test_no_damage_makes_it_slow(self, damage):
        """However a segment is damaged, reading it takes time in proportion to its size, and finds what is whole."""
        size = 512 * 1024
        whole = _frames.encode(InstanceStarted("run", 1), 0)
        data = (damage * (size // len(damage))) + whole

        assert seconds_for(data) < within(0.5)
        assert seconds_for(data * 16) < within(8)
        assert [whole] == [_frames.frame(*each) for each in frames_in(data)]

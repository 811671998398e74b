"""PFIDs: the published encoding, sortable, unique, in any partition."""

from __future__ import annotations

import os
import threading
import time

import pytest
from children import fork_in_c, in_child
from hypothesis import given
from hypothesis import strategies as st

from prefactor_trace import _ids

pfid = pytest.importorskip("pfid", reason="the reference implementation needs Python 3.11")


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**30 - 1), st.binary(min_size=10, max_size=10))
def test_encoding_is_the_official_packages(timestamp, partition, randomness):
    """Timestamp and partition are written as the reference implementation writes them."""
    binary = timestamp.to_bytes(6, "big") + partition.to_bytes(4, "big") + randomness
    official = pfid.encode(binary)

    assert _ids.encode(timestamp, 10) + _ids.encode(partition, 6) == official[:16]
    assert _ids.is_pfid(official)


@pytest.mark.parametrize(
    ("number", "length", "text"),
    [
        (123456789, 6, "3nqk8n"),
        (1234567890000, 10, "013xrzp12g"),
        (2**48 - 1, 10, "7zzzzzzzzz"),
        (2**30 - 1, 6, "zzzzzz"),
    ],
)
def test_check_values(number, length, text):
    """The check values of the API contract hold."""
    assert _ids.encode(number, length) == text


def test_generate():
    """A new id is a PFID of the partition asked for, stamped with the present millisecond."""
    before = time.time_ns() // 1_000_000
    made = _ids.generate("3nqk8n")
    after = time.time_ns() // 1_000_000

    assert pfid.is_pfid(made)
    assert pfid.extract_partition(made) == 123456789
    assert _ids.encode(before, 10) <= made[:10] <= _ids.encode(after, 10)


def test_unique_across_threads():
    """Threads that make ids at once never make the same."""
    made: list[str] = []

    def work():
        made.extend([_ids.generate() for _ in range(5_000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    [each.start() for each in threads]
    [each.join() for each in threads]

    assert len(set(made)) == 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_unique_across_fork():
    """A forked child does not repeat its parent's randomness."""
    told = in_child(_ids.generate)

    assert told[16:] != _ids.generate()[16:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_unique_across_a_fork_that_python_was_not_told_of():
    """Nor does the child of a fork in C, of which no hook hears: neither what was in stock, nor what is made next."""
    _ids.generate()  # there is a stock to inherit
    count = 2 * _ids._STOCK
    told = in_child(lambda: [_ids.generate() for _ in range(count)], fork=fork_in_c)

    assert len({made[16:] for made in told} | {_ids.generate()[16:] for _ in range(count)}) == 2 * count


def test_partition():
    """An id can be moved to another partition and is otherwise the same."""
    moved = _ids.with_partition(_ids.generate(), "3nqk8n")

    assert _ids.partition_of(moved) == "3nqk8n"
    assert _ids.is_pfid(moved)


@pytest.mark.parametrize(
    "text", ["", "8" + "0" * 31, "0" * 31, "0" * 33, "0" * 31 + "i", "0" * 31 + "A", "0" * 31 + "\n"]
)
def test_is_pfid_refuses(text):
    """What is not exactly a PFID is none."""
    assert not _ids.is_pfid(text)

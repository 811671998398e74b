"""PFIDs, the ids of Prefactor: 32 characters that sort by time and name the account's partition.

    0         10     16               32
    timestamp partition randomness         lowercase Crockford base32, big-endian

Timestamp is Unix milliseconds (48 bits in 10 characters), partition 30 bits, randomness 80 bits
(API contract section 6; checked there against the 1,231 published fixtures).
"""

from __future__ import annotations

import os
import random
import re
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
NO_PARTITION = "000000"  # stands in until the platform's first answer names the account's own

_PFID = re.compile(r"[0-7][0-9abcdefghjkmnpqrstvwxyz]{31}")
_PARTITION = slice(10, 16)
_TEN_BITS = [a + b for a in ALPHABET for b in ALPHABET]
# 256 is a multiple of 32, so a uniform byte gives a uniform character.
_BYTE_TO_CHARACTER = bytes(ord(ALPHABET[byte & 31]) for byte in range(256))

_random = random.Random(os.urandom(32))  # noqa: S311 - ids must be unique, not secret; 3 times cheaper than urandom
_randomness: list[str] = []  # made in stock: taking one from a list is a fifth of making one
_STOCK = 256
_timestamp = (-1, "")
_getpid, _time_ns = (
    os.getpid,
    time.time_ns,
)  # tests of the program may put others in their place, and count the calls
_pid = _getpid()  # of the process to which the stock belongs


def _restock() -> str:
    text = _random.randbytes(16 * _STOCK).translate(_BYTE_TO_CHARACTER).decode()
    _randomness.extend([text[start : start + 16] for start in range(16, 16 * _STOCK, 16)])
    return text[:16]


def _begin_in_child() -> None:
    """After a fork, forget what the parent may use as well."""
    global _pid  # noqa: PLW0603 - last: until then every thread of the child begins, and none takes from the stock
    _randomness.clear()
    _random.seed(os.urandom(32))
    _pid = _getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def generate(partition: str = NO_PARTITION) -> str:
    """Make a new PFID in *partition* (six characters), stamped with the present time."""
    global _timestamp  # noqa: PLW0603 - a cache of one; a lost race only encodes the same millisecond twice
    now = _time_ns() // 1_000_000
    known, text = _timestamp
    if known != now:
        text = encode(now, 10)
        _timestamp = (now, text)
    if _getpid() != _pid:  # forked by something that does not tell Python
        _begin_in_child()
    try:
        return text + partition + _randomness.pop()
    except IndexError:
        return text + partition + _restock()


def randomness() -> float:
    """Return a random number in [0, 1), from a source of our own: the program's `random` stays as it would be."""
    return _random.random()


def encode(number: int, length: int) -> str:
    """Write *number* as *length* characters (an even count) of Crockford base32, big-endian."""
    shifts = range(length * 5 - 10, -1, -10)
    return "".join([_TEN_BITS[number >> shift & 1023] for shift in shifts])


def is_pfid(text: str) -> bool:
    """Say whether *text* has the shape of a PFID (lowercase only)."""
    return _PFID.fullmatch(text) is not None


def partition_of(pfid: str) -> str:
    """Read the six partition characters of *pfid*."""
    return pfid[_PARTITION]


def with_partition(pfid: str, partition: str) -> str:
    """Return *pfid* moved to *partition*; time and randomness stay, so it is the same id to us."""
    return pfid[:10] + partition + pfid[16:]

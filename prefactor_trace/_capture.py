r"""Any value becomes JSON bytes: on the caller's thread, once, bounded, and without running any code of the user.

Theory of operation. Nearly every value an agent passes is made of exact JSON types and is small. That is proven
first, mostly in C (`_room_left`), and then one call to orjson encodes it. Everything else is rebuilt
(`_Rebuild`): breadth first, so that what stands near the top is kept when the room or the time runs out; parts
of it that are plain again go to orjson whole. Types are told apart by identity alone (`type(x) is`, `id(type(x))`),
as hashing or comparing a class can run its metaclass, and `isinstance` can run a property. Subclasses are
read through the methods of the built-in base, attributes from the instance's own dict and slots.

What is no JSON, or not all of it, is marked:

    a string longer than `max_string`   {"$truncated": "<its beginning>", "length": characters}
    a list that was cut                 its first items, then {"$truncated": "items", "length": items}
    a dict or object that was cut       its first entries, and "$truncated": {"length": entries}
    deeper than `max_depth`             {"$truncated": "<type>"}
    a container inside itself           {"$cycle": "<type>"}
    NaN and the infinities              {"$float": "nan" | "inf" | "-inf"}
    an int beyond 2**53 - 1             {"$int": "<decimal>"}; beyond 1,000 digits {"$int": {"bits": n}}
    bytes, bytearray, memoryview        {"$bytes": size, "sha256": "<16 hex digits>"}, of the first 16 KiB
    a time in a zone that is user code  {"$datetime": "<naive ISO>", "tzinfo": "<type>"}
    a class, function or module         {"$type": "type" | "function" | "module", "name": "<its name>"}
    any other object                    {"$type": "<type>"}
    what could not be read              {"$unreadable": "<type>"}

As data: dataclasses, attrs classes, named tuples and pydantic models (objects, without excluded fields), enums
(their value), sets, deques and ranges (lists), exceptions ({"error_type", "message"}). As text: dates, times and
durations (ISO 8601; naive stays naive), Decimal, UUID, paths, complex. Secrets of pydantic are "**********".
Lone surrogates become backslash escapes. Keys become text, 1 -> "1", or on a clash "int:1"; of a tuple "(1, a)",
of a stranger "<type>"; a key longer than `max_string` is cut.
"""

from __future__ import annotations

import datetime as dt
import enum
import gc
import sys
import time
import types
from collections import deque
from itertools import chain, islice
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    _Reader = Callable[[Any], object]

__all__ = ["DEFAULT", "Limits", "capture", "capture_exception", "capture_object"]


class Limits(NamedTuple):
    """How much of one value is kept."""

    max_string: int = 10_000  # characters of one string
    max_bytes: int = 262_144  # of JSON, estimated on the way; the result is never more than twice as long
    max_depth: int = 32  # containers inside each other
    max_seconds: float = 0.0015  # of CPU of this thread for rebuilding; waiting for the GIL does not count


DEFAULT = Limits()


def capture(value: object, limits: Limits = DEFAULT) -> bytes:
    """Encode any *value* as JSON. Never raises; see the module for what becomes of values that are no JSON."""
    try:
        encoded = _encode_plain(value, limits, limits.max_bytes, limits.max_depth)
        if encoded is not None and len(encoded) <= limits.max_bytes << 1:
            return encoded
        # The estimate counts characters, which take up to 6 bytes: then less of the value is kept.
        for room in (limits.max_bytes, limits.max_bytes // 3, limits.max_bytes // 16):
            encoded = _Rebuild(limits, room).encode(value)
            if len(encoded) <= limits.max_bytes << 1:
                return encoded
    except Exception:  # noqa: S110 - the last line of defence, e.g. when the caller's stack is all but used up
        pass
    return _UNREADABLE


def capture_object(value: object, limits: Limits = DEFAULT) -> bytes:
    """Encode any *value* as a JSON object: what is none becomes `{"output": ...}`, markers included."""
    encoded = capture(value, limits)
    if encoded.startswith(b"{") and (type(value) is dict or not encoded.startswith(b'{"$')):
        return encoded
    return b'{"output":%b}' % encoded


def capture_exception(error: BaseException, limits: Limits = DEFAULT) -> bytes:
    """Encode *error* as `error_type`, `message` and `stacktrace`, all text, without calling its `__str__`.

    The message is made of the exception's arguments. The stack text has files, lines and functions but no source
    (reading it is slow and can run a loader), then causes and the members of a group, one line each.
    """
    try:
        found = {
            "error_type": _type_name(type(error)),
            "message": _shorten(_message(error, _argument), limits.max_string),
            "stacktrace": _clean("\n".join(_stack_lines(error))[:8_000]),
        }
        return orjson.dumps(found)
    except Exception:  # as in capture
        return b'{"error_type":"unknown","message":"","stacktrace":""}'


# ---- plain values: proven to be exact JSON types within the limits, then encoded in one call -------------------

# Without OPT_NON_STR_KEYS and a default, orjson refuses whatever is not JSON. The exception are members of enums:
# it would run their `value`. So types are checked before.
_OPTIONS = (
    orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)
_UNREADABLE = b'{"$unreadable":"value"}'
_FEW = 12  # entries from which tools in C beat a loop; measured with benchmarks/capture.py
_VALUE_BYTES = 16  # what a value costs besides its text: separators, digits, and the time to look at it
_CONTAINER_BYTES = 64  # what a small container costs: it is the slowest thing to look at
_SHORT_RUN, _LONG_RUN = 8, 256  # items of a list that are tried in one piece while it is rebuilt

_flat = chain.from_iterable
_dict_values = dict.values


def _encode_plain(value: object, limits: Limits, room: int, depth: int) -> bytes | None:
    """Encode *value* if it is plain and fits into *room* (bytes, estimated) and *depth*; else return None."""
    longest = limits.max_string
    texts: list[str] = []
    # Should another thread change the value just between the two steps, the second encodes what it finds.
    try:
        room = _room_left(value, room, depth, longest, texts)
        if room < 0 or (texts and not _fit(texts, room, longest)):
            return None
        return orjson.dumps(value, None, _OPTIONS)
    except Exception:  # a surrogate, a big int, a key that is no string, a dict changed by another thread
        return None


def _room_left(value: Any, room: int, depth: int, longest: int, texts: list[str]) -> int:
    """Return what plain *value* leaves of *room*, or a negative number if it is not plain or does not fit.

    Strings put into *texts* remain to be measured by the caller.
    """
    kind = type(value)
    if kind is dict:
        if len(value) > _FEW:
            return _room_left_by_many((value,), room, depth, longest, texts)
        for key in value:
            if type(key) is not str or len(key) > longest:
                return -1
        items = value.values()
    elif kind is list or kind is tuple:
        if len(value) > _FEW and depth > 0:
            return _room_left_by_many(value, room, depth - 1, longest, texts)
        items = value
    elif kind is str:
        return room - len(value) if len(value) <= longest else -1
    else:
        return room if _is_plain_atom(value) else -1
    room -= _CONTAINER_BYTES + len(items) * _VALUE_BYTES
    if room < 0 or depth <= 0:
        return -1
    for item in items:
        kind = type(item)
        if kind is str:
            size = len(item)
            if size > longest:
                return -1
            room -= size
        elif not (kind is int or kind is bool or item is None):
            room = _room_left(item, room, depth - 1, longest, texts)
            if room < 0:
                return -1
    return room


def _room_left_by_many(bag: Sequence[Any], room: int, depth: int, longest: int, texts: list[str]) -> int:
    """Do the same for a *bag* of many values, one level of all of them at a time.

    The values below all dicts and lists of a level are the next bag: 200 chat messages are two passes in C.
    """
    room -= len(bag) * _VALUE_BYTES
    if room < 0:
        return -1
    kind = type(bag[0])
    rest = [item for item in bag if type(item) is not kind]
    same = [item for item in bag if type(item) is kind] if rest else bag
    dicts: Any = same if kind is dict else []
    lists: Any = same if kind is list or kind is tuple else []
    if kind is str:
        texts += same
    elif kind is float:
        if not isfinite(sum(same)):
            return -1
    elif not (dicts or lists or _is_plain_atom(bag[0])):
        return -1
    for item in rest:
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif kind is dict:
            dicts.append(item)
        elif kind is list or kind is tuple:
            lists.append(item)
        elif not (item is None or kind is int or _is_plain_atom(item)):
            return -1
    if dicts:
        # The first dict's keys stand for all: to measure every key would cost as much as the values, and only
        # guards against megabytes in keys, of which none but the time is lost (orjson checks their type).
        if len(dicts[0]) * _VALUE_BYTES > room:
            return -1
        keys = list(dicts[0])
        if [key for key in keys if type(key) is not str]:
            return -1
        texts += keys
    elif not lists:
        return room
    if depth <= 0 or sum(map(len, lists)) * _VALUE_BYTES > room:
        return -1
    below = list(islice(chain(_flat(map(_dict_values, dicts)), _flat(lists)), room // _VALUE_BYTES + 1))
    return _room_left_by_many(below, room, depth - 1, longest, texts) if below else room


def _is_plain_atom(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return isfinite(value)
    return kind is int or kind is bool or value is None


def _fit(texts: list[str], room: int, longest: int) -> bool:
    """Say whether no text is longer than *longest*, and all together than *room*."""
    share = min(longest, room // len(texts))
    if not [text for text in texts if len(text) > share]:
        return True  # nobody has more than an even share: no need to add up
    return sum(map(len, texts)) <= room and max(map(len, texts)) <= longest


# ---- everything else: rebuilt from plain parts and markers -----------------------------------------------------


class _Open(NamedTuple):
    """How to read a container. Objects have become dicts of their fields."""

    source: Any
    entries: Callable[[Any], Iterable[Any]]  # the items of a list, the pairs of a dict
    length: int
    is_list: bool


class _Branch(NamedTuple):
    """A container that has its place in the result and waits to be filled."""

    value: object
    opened: _Open
    target: Any  # the list or dict to fill
    depth: int
    parent: _Branch | None


class _Rebuild:
    """One value on its way to plain JSON, with the room and the time that are left for it."""

    def __init__(self, limits: Limits, room: int) -> None:
        self.limits = limits
        self.room = room
        self.longest = min(limits.max_string, room)
        self.stop_at = time.thread_time() + limits.max_seconds
        self.look_at = time.perf_counter() + limits.max_seconds
        self.waiting: deque[_Branch] = deque()
        self.readers: dict[int, tuple[_Reader, type]] = {}  # with the type: its id is its own while it lives

    def encode(self, value: object) -> bytes:
        root = self.read(value, None)
        while self.waiting and self.room > 0:
            self.fill(self.waiting.popleft())
        return orjson.dumps(root, None, _OPTIONS)

    def read(self, value: Any, parent: _Branch | None) -> object:
        """Return what stands for *value*: JSON, or a container that is filled later."""
        kind = type(value)
        self.room -= _VALUE_BYTES
        if kind is str:
            return self.text(value)
        if kind is bool or value is None or (kind is int and -_SAFE_INT <= value <= _SAFE_INT):
            return value
        try:
            known = self.readers.get(id(kind))
            if known is None:
                known = self.readers[id(kind)] = (_reader_of(kind), kind)
            if known[0] is _string:
                return self.text(value)
            found = known[0](value)
            if type(found) is _Open:
                return self.place(value, found, parent)
            return self.text(found) if type(found) is str else found
        except Exception:  # one bad value must not cost its neighbours
            return {"$unreadable": _type_name(kind)}

    def text(self, value: str) -> object:
        if type(value) is str and len(value) <= self.longest and value.isascii():
            self.room -= len(value)
            return value
        length = str.__len__(value)
        kept = _clean(str.__getitem__(value, slice(self.longest)))
        self.room -= len(kept)
        return kept if length <= self.longest else {"$truncated": kept, "length": length}

    def place(self, value: object, opened: _Open, parent: _Branch | None) -> object:
        """Return the place of a container in the result. Until it is filled, it says that it was cut."""
        above, depth = parent, 1
        while above is not None:
            if above.value is value:
                return {"$cycle": _type_name(type(value))}
            above, depth = above.parent, depth + 1
        if depth > self.limits.max_depth:
            return {"$truncated": _type_name(type(value))}
        kind = type(opened.source)
        tried = parent is None and opened.source is value  # by capture
        if (kind is dict or kind is list or kind is tuple) and not tried:
            encoded = self.encode_plain(opened.source, depth)
            if encoded is not None:
                return orjson.Fragment(encoded)
        target: Any = [] if opened.is_list else {}
        if opened.length:
            _mark_cut(target, opened.length)
            self.waiting.append(_Branch(value, opened, target, depth, parent))
        return target

    def encode_plain(self, value: object, depth: int) -> bytes | None:
        """Encode *value*, a container in *depth*, if it is plain and there is room for all of it."""
        encoded = _encode_plain(value, self.limits, self.room, self.limits.max_depth - depth + 1)
        if encoded is None:
            self.look_at_clock()  # to find out can take as long as a thousand values
        else:
            self.room -= len(encoded)
        return encoded

    def fill(self, branch: _Branch) -> None:
        """Put its entries into *branch*, or as many as there is room for."""
        opened, target = branch.opened, branch.target
        most = self.room // _VALUE_BYTES + 1
        put = self.put_items if opened.is_list else self.put_pairs
        kept = 0
        for at_once in (False, True):
            target.clear()
            try:
                entries = islice(opened.entries(opened.source), most)
                kept = put(iter(list(entries)) if at_once else entries, branch)
                break
            except Exception:  # noqa: S112 - another thread changes it: next, take all before looking at any
                continue
        if kept < opened.length:
            _mark_cut(target, opened.length)

    def put_items(self, items: Iterator[Any], branch: _Branch) -> int:
        """Add *items* to the target of *branch*, in ever longer runs where they are plain. Return how many."""
        kept, length = 0, _SHORT_RUN
        while self.room > 0:
            run = list(islice(items, length))
            if not run:
                break
            pieces = len(branch.target)
            kept += self.put_run(run, branch)
            in_one = len(branch.target) == pieces + 1
            length = min(length << 1, _LONG_RUN) if in_one else _SHORT_RUN
        return kept

    def put_run(self, run: list[Any], branch: _Branch) -> int:
        encoded = self.encode_plain(run, branch.depth)
        if encoded is not None:
            branch.target.append(orjson.Fragment(encoded[1:-1]))  # without brackets it stands for all of them
            return len(run)
        if len(run) > _SHORT_RUN:
            half = len(run) >> 1
            return self.put_run(run[:half], branch) + self.put_run(run[half:], branch)
        for kept, item in enumerate(run):
            if self.room <= 0:
                return kept
            branch.target.append(self.read(item, branch))
        return len(run)

    def put_pairs(self, pairs: Iterator[tuple[Any, Any]], branch: _Branch) -> int:
        """Add *pairs* to the target of *branch*. Here every name meets its value."""
        target = branch.target
        others: dict[str, type] = {}  # of the key, for names that were no str
        for key, item in pairs:
            if not len(target) & 15:
                self.look_at_clock()
            if self.room <= 0:
                break
            kind = type(key)
            name = _label(key, self.longest)
            self.room -= len(name)
            if name in target:
                if kind is str and name in others:  # the string keeps its name
                    target[_other_name(others.pop(name), name, target)] = target.pop(name)
                else:
                    name = _other_name(kind, name, target)
            if kind is not str:
                others[name] = kind
            target[name] = self.read(item, branch)
        return len(target)

    def look_at_clock(self) -> None:
        now = time.perf_counter()
        if now >= self.look_at:  # the time of the thread, 10 times as slow to ask for, cannot be over earlier
            left = self.stop_at - time.thread_time()
            self.look_at = now + left
            if left <= 0:
                self.room = 0


def _mark_cut(target: Any, length: int) -> None:
    if type(target) is list:
        target.append(_cut_items(length))
    else:
        target["$truncated"] = {"length": length}


def _cut_items(length: int) -> dict[str, object]:
    return {"$truncated": "items", "length": length}


def _other_name(kind: type, name: str, taken: dict[str, object]) -> str:
    other = f"{_type_name(kind)}:{name}"
    return f"{other}#{len(taken)}" if other in taken else other


def _label(value: Any, longest: int, depth: int = 2) -> str:
    """Return a short text for *value* as a key or an argument; of a container or a stranger its type."""
    kind = type(value)
    if kind is str:
        return _shorten(value, longest)
    if kind is int and value.bit_length() <= _LONG_INT:
        return str(value)
    if kind is tuple and depth:
        return f"({', '.join([_label(item, longest >> 3, depth - 1) for item in value[:8]])})"
    read = _reader_of(kind)
    if read is _string:
        return _shorten(value, longest)
    try:
        found = {} if read is _error else read(value)  # errors read their arguments by this function
    except Exception:  # as in _Rebuild.read
        found = {}
    if type(found) is _Open or type(found) is dict:
        return f"<{_type_name(kind)}>"
    return _shorten(found if type(found) is str else orjson.dumps(found).decode(), longest)


def _shorten(text: str, longest: int) -> str:
    if type(text) is str and len(text) <= longest and text.isascii():
        return text
    length = str.__len__(text)
    kept = _clean(str.__getitem__(text, slice(longest)))
    return kept if length <= longest else f"{kept}... ({length} characters)"


def _clean(text: str) -> str:
    """Return *text* (exactly a str) with lone surrogates written as backslash escapes: JSON has no other way."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


# ---- how each kind is read: value -> JSON or _Open -------------------------------------------------------------

_SAFE_INT = 2**53 - 1  # what every JSON reader keeps exact
_LONG_INT = 3_322  # bits of 1,000 digits; more take quadratic time, and Python refuses from 4,300 on
_HASHED_BYTES = 16_384
# Zones whose code is known not to be the user's.
_ZONES = (("datetime", "timezone"), ("zoneinfo", "ZoneInfo"), ("pydantic_core", "TzInfo"))


_string: _Reader = (
    str.__str__
)  # used for what is short for sure; else whoever meets it cuts the string itself


def _same(value: object) -> object:
    return value


def _integer(value: int) -> object:
    number = int.__int__(value)
    if -_SAFE_INT <= number <= _SAFE_INT:
        return number
    bits = number.bit_length()
    return {"$int": str(number) if bits <= _LONG_INT else {"bits": bits}}


def _floating(value: float) -> object:
    number = float.__float__(value)
    return number if isfinite(number) else {"$float": repr(number)}


def _datetime(value: dt.datetime) -> object:
    zone = _get(dt.datetime, "tzinfo")(value)
    known = _is_known(zone)
    clock = dt.datetime.timetz(value) if known else dt.datetime.time(value)
    # Made anew, as zones ask a subclass for its parts.
    text = dt.datetime.combine(dt.datetime.date(value), clock).isoformat()
    return text if known else {"$datetime": text, "tzinfo": _type_name(type(zone))}


def _time(value: dt.time) -> object:
    zone = _get(dt.time, "tzinfo")(value)
    if _is_known(zone):
        return dt.time.isoformat(value)
    naive = dt.time(*[_get(dt.time, part)(value) for part in ("hour", "minute", "second", "microsecond")])
    return {"$datetime": naive.isoformat(), "tzinfo": _type_name(type(zone))}


def _is_known(zone: object) -> bool:
    return zone is None or any(type(zone) is _loaded(module, name) for module, name in _ZONES)


def _timedelta(value: dt.timedelta) -> str:
    days, seconds, micros = [_get(dt.timedelta, part)(value) for part in ("days", "seconds", "microseconds")]
    total = (days * 86_400 + seconds) * 1_000_000 + micros
    whole, fraction = divmod(abs(total), 1_000_000)
    clock = f"{whole % 86_400}.{fraction:06}".rstrip("0").rstrip(".")
    return f"{'-' if total < 0 else ''}P{whole // 86_400}DT{clock}S"


def _binary(kind: Any) -> _Reader:
    def read(value: Any) -> object:
        import hashlib  # 4 ms, and few agents pass bytes

        start = kind.__getitem__(value, slice(_HASHED_BYTES))
        return {"$bytes": kind.__len__(value), "sha256": hashlib.sha256(start).hexdigest()[:16]}

    return read


def _view(value: memoryview) -> object:
    start = bytes(value.cast("B")[:_HASHED_BYTES]) if value.c_contiguous else b""
    return {**_binary(bytes)(start), "$bytes": value.nbytes}  # type: ignore[dict-item]


def _exact_text(value: object) -> str:
    return str.__str__(str(value))


def _decimal(value: Any) -> object:
    return str(value) if value.__sizeof__() < 4_096 else _stranger(type(value))(value)


def _path(value: Any) -> object:
    raw = _own(value, "_raw_paths")  # since Python 3.12, what it was made of, which can be a user's str
    if type(raw) is list and not _are_all(raw, str):
        return _stranger(type(value))(value)
    return _exact_text(value)


def _error(value: BaseException) -> object:
    return {"error_type": _type_name(type(value)), "message": _shorten(_message(value), 1_000)}


def _function(value: Any) -> object:
    while type(value) is types.MethodType:
        value = value.__func__
    if type(value) is types.FunctionType:
        return _named("function", value.__module__, value.__qualname__)
    return _named("function", None, value.__name__ if type(value) is types.BuiltinFunctionType else None)


def _named(kind: str, *names: object) -> object:
    return {"$type": kind, "name": ".".join([_shorten(name, 200) for name in names if type(name) is str])}


def _enum(value: Any) -> object:
    inner = _own(value, "_value_")
    if _has(_bases(type(inner)), enum.Enum):  # not into an enum of enums: it can turn in a circle
        return {"$type": _type_name(type(value))}
    return _reader_of(type(inner))(inner)


def _proxy(value: Any) -> object:
    inner = gc.get_referents(value)[0]  # the mapping behind it, which can be anything
    return _pairs(inner) if _has(_bases(type(inner)), dict) else _stranger(type(inner))(inner)


def _stranger(kind: type) -> _Reader:
    return lambda _: {"$type": _type_name(kind)}


def _container(kind: Any, entries: Callable[[Any], Iterable[Any]] | None = None) -> _Reader:
    return lambda value: _Open(value, entries or kind.__iter__, kind.__len__(value), kind is not dict)


def _set(kind: Any) -> _Reader:
    def entries(value: Any) -> Iterable[Any]:
        if kind.__len__(value) > 1_000:
            return kind.__iter__(value)  # type: ignore[no-any-return]
        items = list(kind.__iter__(value))
        return sorted(items) if _are_all(items, str) or _are_all(items, int) else items

    return _container(kind, entries)


def _are_all(items: list[Any], kind: type) -> bool:
    return not [item for item in items if type(item) is not kind]


def _object(bases: tuple[type, ...], names: list[str]) -> _Reader:
    """Make the reader of objects with fields: from slots and the instance's dict, so no property is asked."""
    slots = [(name, _slot(bases, name)) for name in names]
    own_dict, extra = _dict_of(bases), _slot(bases, "__pydantic_extra__")

    def read(value: Any) -> object:
        own = own_dict(value)
        fields: dict[str, object] = {}
        for name, slot in slots:
            found = own.get(name, _UNSET) if slot is None else slot(value)
            if found is not _UNSET:
                fields[name] = found
        more = extra(value) if extra else None
        if type(more) is dict and _are_all(list(more), str):
            fields |= more
        return _pairs(fields)

    return read


def _named_tuple(names: tuple[str, ...]) -> _Reader:
    return lambda value: _pairs(dict(zip(names, tuple.__iter__(value), strict=False)))


_UNSET = object()
_pairs = _container(dict, dict.items)

# By the id of the type. Subclasses are read like the first of their bases that is here.
_READERS: dict[int, _Reader] = {
    id(kind): read
    for kind, read in (
        (str, _string),
        (bool, _same),
        (type(None), _same),
        (int, _integer),
        (float, _floating),
        (complex, complex.__repr__),
        (bytes, _binary(bytes)),
        (bytearray, _binary(bytearray)),
        (memoryview, _view),
        (dict, _pairs),
        (types.MappingProxyType, _proxy),
        (list, _container(list)),
        (tuple, _container(tuple)),
        (deque, _container(deque)),
        (range, _container(range)),
        (set, _set(set)),
        (frozenset, _set(frozenset)),
        (dt.datetime, _datetime),
        (dt.date, dt.date.isoformat),
        (dt.time, _time),
        (dt.timedelta, _timedelta),
        (enum.Enum, _enum),
        (BaseException, _error),
        (type, lambda value: _named("type", _type_name(value))),
        (types.ModuleType, lambda value: _named("module", _module_dict(value).get("__name__"))),
        (types.FunctionType, _function),
        (types.MethodType, _function),
        (types.BuiltinFunctionType, _function),
    )
}
# The same for kinds whose modules are not imported for this; these without their subclasses.
_LATE_READERS: tuple[tuple[str, tuple[str, ...], _Reader], ...] = (
    ("uuid", ("UUID",), _exact_text),
    ("decimal", ("Decimal",), _decimal),
    ("pathlib", ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"), _path),
)


def _reader_of(kind: type) -> _Reader:
    """Choose how values of type *kind* are read."""
    read = _READERS.get(id(kind))
    if read is not None:
        return read
    bases = _bases(kind)
    if _has(bases, enum.Enum):
        return _enum
    if _has(bases, _loaded("pydantic.types", "_SecretBase")):
        return lambda _: "**********"
    names = _field_names(bases)
    if names is not None:
        return _object(bases, names)
    fields = _class_attribute(bases, "_fields")
    if _has(bases, tuple) and type(fields) is tuple and _are_all(list(fields), str):
        return _named_tuple(fields)
    for base in bases:
        read = _READERS.get(id(base))
        if read is not None:
            return read
    for module, types_of_it, late in _LATE_READERS:
        if any(kind is _loaded(module, name) for name in types_of_it):
            return late
    return _stranger(kind)


def _field_names(bases: tuple[type, ...]) -> list[str] | None:
    """Return the names of the fields if this is a pydantic model, a dataclass or an attrs class."""
    fields = _class_attribute(bases, "__pydantic_fields__")
    if fields is None and _class_attribute(bases, "__pydantic_core_schema__") is not None:
        fields = _class_attribute(bases, "model_fields")  # pydantic before 2.10
    if type(fields) is dict:
        return [name for name, field in fields.items() if type(name) is str and not _is_excluded(field)]
    fields = _class_attribute(bases, "__dataclass_fields__")
    if type(fields) is dict:
        return [name for name in fields if type(name) is str]
    fields = _class_attribute(bases, "__attrs_attrs__")
    if fields is not None and _has(_bases(type(fields)), tuple):
        return [name for name in [_own(one, "name") for one in tuple.__iter__(fields)] if type(name) is str]
    return None


def _is_excluded(field: object) -> bool:
    # A condition for leaving a field out is the user's code: it is left out without asking.
    return _own(field, "exclude") is True or _own(field, "exclude_if") is not None


# ---- reading classes and instances without running code --------------------------------------------------------


def _get(kind: type, name: str) -> Callable[[Any], Any]:
    """Return what reads attribute *name* as *kind* itself defines it, whatever a subclass has made of it."""
    return kind.__dict__[name].__get__  # type: ignore[no-any-return]


_bases: Callable[[type], tuple[type, ...]] = _get(type, "__mro__")
_namespace = _get(type, "__dict__")
_qualname = _get(type, "__qualname__")
_module = _get(type, "__module__")
_module_dict: Callable[[Any], Any] = _get(types.ModuleType, "__dict__")


def _type_name(kind: type) -> str:
    """Return "module.QualName", or the name alone of what is built in."""
    module, name = _module(kind), _shorten(_qualname(kind), 200)
    return name if type(module) is not str or module == "builtins" else f"{_shorten(module, 200)}.{name}"


def _has(bases: tuple[type, ...], base: object) -> bool:
    return any(one is base for one in bases)


def _class_attribute(bases: tuple[type, ...], name: str) -> Any:
    """Return the raw attribute *name* of a class with *bases*: a property or descriptor is not called."""
    for base in bases:
        found = _namespace(base).get(name)
        if found is not None:
            return found
    return None


def _dict_of(bases: tuple[type, ...]) -> Callable[[Any], dict[str, Any]]:
    """Return what reads the dict of an instance, which is empty if the class has none or hides it."""
    own = _class_attribute(bases, "__dict__")
    if type(own) is not types.GetSetDescriptorType:
        return lambda _: {}
    read = own.__get__
    return lambda value: found if type(found := read(value)) is dict else {}


def _slot(bases: tuple[type, ...], name: str) -> Callable[[Any], Any] | None:
    """Return what reads the slot *name*, or `_UNSET` if it has no value; None if there is no such slot."""
    slot = _class_attribute(bases, name)
    if type(slot) is not types.MemberDescriptorType:
        return None

    def read(value: Any) -> Any:
        try:
            return slot.__get__(value)
        except AttributeError:
            return _UNSET

    return read


def _own(value: object, name: str) -> Any:
    """Return what *value* itself stores under *name*, in a slot or in its dict, or None."""
    bases = _bases(type(value))
    slot = _slot(bases, name)
    found = slot(value) if slot else _dict_of(bases)(value).get(name)
    return None if found is _UNSET else found


def _loaded(module: str, name: str) -> object:
    """Return attribute *name* of a module if that has been imported: if there is a value of it, it has."""
    found = sys.modules.get(module)
    return _module_dict(found).get(name, _UNSET) if type(found) is types.ModuleType else _UNSET


# ---- exceptions ------------------------------------------------------------------------------------------------

_ARGUMENT = Limits(max_string=1_000, max_bytes=2_000, max_depth=8, max_seconds=0.0002)
_FIRST_FRAMES, _LAST_FRAMES, _MOST_FRAMES = 10, 20, 10_000
_MOST_RELATED = 8  # causes, and members of a group


def _message(error: BaseException, read: Callable[[Any], str] | None = None) -> str:
    """Join the arguments of *error*, each as text by *read*."""
    args = _get(BaseException, "args")(error)[
        : 1 if _inner(error) else 16
    ]  # the rest of a group: its members
    if len(args) == 1 and type(args[0]) is str:
        return args[0]
    parts = [_label(one, 1_000) if read is None or type(one) is str else read(one) for one in args]
    if len(parts) == 2 and _has(_bases(type(error)), OSError):
        name = _get(OSError, "filename")(error)
        place = f": {_shorten(name, 1_000)!r}" if type(name) is str else ""
        return f"[Errno {parts[0]}] {parts[1]}{place}"
    return ", ".join(parts)


def _argument(value: object) -> str:
    encoded = capture(value, _ARGUMENT)
    return str(orjson.loads(encoded)) if encoded.startswith(b'"') else encoded.decode()


def _stack_lines(error: BaseException) -> list[str]:
    frames = _frames(error)
    lines = ["Traceback (most recent call last):", *frames] if frames else []
    lines += [_summary(error), *[f"in the group: {_summary(one)}" for one in _members(error)]]
    chain_of = [error]
    while len(chain_of) <= _MOST_RELATED:
        word, before = "caused by", _get(BaseException, "__cause__")(chain_of[-1])
        if before is None and not _get(BaseException, "__suppress_context__")(chain_of[-1]):
            word, before = "while handling", _get(BaseException, "__context__")(chain_of[-1])
        if before is None or any(before is one for one in chain_of):
            break
        place = [line.strip() for line in _frames(before)[-1:]]
        lines.append(f"{word}: {' | '.join([_summary(before), *place])}")
        chain_of.append(before)
    return lines


def _summary(error: BaseException) -> str:
    return f"{_type_name(type(error))}: {' '.join(_shorten(_message(error), 300).split())}"


def _frames(error: BaseException) -> list[str]:
    """Describe the first and the last frames of the traceback, a line each."""
    first: list[types.TracebackType] = []
    last: deque[types.TracebackType] = deque(maxlen=_LAST_FRAMES)
    traceback, count = _get(BaseException, "__traceback__")(error), 0
    while traceback is not None and count < _MOST_FRAMES:
        (first if count < _FIRST_FRAMES else last).append(traceback)
        traceback, count = traceback.tb_next, count + 1
    left_out = count - len(first) - len(last)
    gap = [f"  ... {left_out} more frames ..."] if left_out else []
    return [*map(_frame, first), *gap, *map(_frame, last)]


def _frame(traceback: types.TracebackType) -> str:
    code = traceback.tb_frame.f_code
    file = str.__getitem__(code.co_filename, slice(-120, None))
    name = str.__getitem__(getattr(code, "co_qualname", code.co_name), slice(-80, None))  # new in Python 3.11
    return f'  File "{file}", line {traceback.tb_lineno}, in {name}'


def _members(error: BaseException) -> list[BaseException]:
    """Return the first exceptions in the group *error*, instead of inner groups their members."""
    found: list[BaseException] = []
    waiting = _inner(error)
    for _ in range(100):  # also ends for groups inside groups inside groups
        if not waiting or len(found) == _MOST_RELATED:
            break
        inner = _inner(waiting[0])
        found += [] if inner else waiting[:1]
        waiting[:1] = inner
    return found


def _inner(error: BaseException) -> list[BaseException]:
    group: Any = _loaded("builtins", "BaseExceptionGroup")
    if _has(_bases(type(error)), group):
        inner = _get(group, "exceptions")(error)
    else:
        inner = _own(error, "_exceptions")  # where the package exceptiongroup for Python 3.10 has them
    first = inner[:_MOST_RELATED] if type(inner) is tuple else ()
    return [one for one in first if _has(_bases(type(one)), BaseException)]

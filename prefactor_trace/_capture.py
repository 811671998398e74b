r"""Any value becomes JSON bytes: on the caller's thread, once, bounded, and running none of the user's code.

In comes any object, out go bytes that are JSON, of at most twice `Limits.max_bytes`. Nothing is raised.

Theory of operation. Nearly every value an agent passes is made of exact JSON types and is small. That is
proven first, mostly in C (`_room_left`), and then one call to orjson encodes it. Everything else is rebuilt
(`_Rebuild`): breadth first, so that what stands near the top is kept when the room or the time runs out; parts
of it that are plain again go to orjson whole.

What keeps it safe: types are told apart by `type(x) is` alone, and what is of no exact JSON type is only
touched by the readers (`_readers`). Whatever is looked at costs room, so a value of any size comes to an end.
The one exception are functions that users have registered for types of theirs (`_conversions`).

What is no JSON, or not all of it, is marked:

    a string longer than `max_string`   {"$truncated": "<its beginning>", "tail": "<its end>", "length": characters},
                                        three quarters of it the beginning; no "tail" below 400 characters
    a list that was cut                 its first items, then {"$truncated": "items", "length": items}
    a dict or object that was cut       its first entries, and "$truncated": {"length": entries}
    deeper than `max_depth`             {"$truncated": "<type>"}
    a container inside itself           {"$cycle": "<type>"}
    NaN and the infinities              {"$float": "nan" | "inf" | "-inf"}
    an int beyond 2**53 - 1             {"$int": "<decimal>"}; beyond 1,000 digits {"$int": {"bits": n}}
    bytes, bytearray, memoryview        {"$bytes": size, "sha256": "<16 hex digits>"}, of the first 16 KiB
    arrays, tables, tensors, images     {"$array": "<type>", "dtype": ..., "shape": [...], "bytes": size}, see `_arrays`
    a time in a zone that is user code  {"$datetime": "<naive ISO>", "tzinfo": "<type>"}
    a class, function or module         {"$type": "type" | "function" | "module", "name": "<its name>"}
    a regular expression                {"$type": "re.Pattern", "pattern": "<its text>"}
    any other object                    {"$type": "<type>"}
    what could not be read              {"$unreadable": "<type>"}

As data: dataclasses, attrs and msgspec classes, named tuples and pydantic models (objects, without excluded
fields), simple namespaces, what the classes of `collections` hold, enums (their value), sets, deques and ranges
(lists), exceptions ({"error_type", "message"}), numpy's scalars (numbers). As text: dates, times and durations (ISO
8601; naive stays naive), Decimal, Fraction, UUID, paths, addresses of `ipaddress`, complex. Secrets of pydantic are
"**********". Lone surrogates and NUL, which some stores refuse, become backslash escapes: the six characters
\u0000. Keys become text, 1 -> "1", or on a clash "int:1"; of a tuple "(1, a)", of a stranger "<type>"; a key longer
than `max_string` is cut.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from itertools import chain, islice
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace._conversions import FAILED, convert, function_for
from prefactor_trace._deadline import Deadline
from prefactor_trace._error_text import MOST_STACK, describe_error, related
from prefactor_trace._hidden import LONGEST, hidden_in, remember, remembered
from prefactor_trace._marks import MARKED_SECRET, Plan, Ruled, time_but_learning, wrapped
from prefactor_trace._peek import clean, is_a, shorten, type_name
from prefactor_trace._readers import (
    SAFE_INT,
    Given,
    Open,
    arguments_of_error,
    followed,
    label,
    read_string,
    reader_of,
)
from prefactor_trace._redact import DEFAULT as BUILT_IN
from prefactor_trace._redact import HIDDEN, LONGEST_REACH, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefactor_trace._readers import Reader
    from prefactor_trace._redact import Kind, Redactor

__all__ = ["DEFAULT", "Limits", "capture", "capture_exception", "capture_object"]


class Limits(NamedTuple):
    """How much of one value is kept."""

    max_string: int = 10_000  # characters of one string
    max_bytes: int = 262_144  # of JSON, estimated on the way; the result is never more than twice as long
    max_depth: int = 32  # containers inside each other
    max_seconds: float = 0.001  # of CPU of this thread for rebuilding; waiting for the GIL does not count
    redact: Redactor = BUILT_IN  # takes the secrets out of what was kept


DEFAULT = Limits()
_KINDS: dict[bytes, Kind] = {b"output": "result", b"metadata": "metadata", b"usage": "metadata"}
_ARGUMENTS_SECONDS = 0.001  # of CPU for all arguments of an exception
_ARGUMENT_LIMITS = Limits(max_string=1_000, max_bytes=2_000, max_depth=8, max_seconds=0.0002)


def capture(value: object, limits: Limits = DEFAULT, kind: Kind = "payload", span: str = "") -> bytes:
    """Encode any *value* as JSON, without secrets. Never raises; see the module for what becomes of other values.

    *kind* and *span* are told to a redactor of the user's.
    """
    try:
        longest, most, depth, _, redact = limits
        encoded = _encode_plain(value, longest, most, depth)
        if encoded is not None and len(encoded) <= most << 1:
            return redact(encoded, kind, span)
        # The estimate counts characters, which take up to 7 bytes: then less of the value is kept.
        for room in (most, most // 3, most // 16):
            encoded = _Rebuild(limits, room).encode(value)
            if len(encoded) <= most << 1:
                return redact(encoded, kind, span)
    except Exception:  # noqa: S110 - the last line of defence, e.g. when the caller's stack is all but used up
        pass
    return _UNREADABLE


def capture_object(value: object, limits: Limits = DEFAULT, key: bytes = b"output", span: str = "") -> bytes:
    """Encode any *value* as a JSON object: what is none becomes `{"<key>": ...}`, markers included.

    The *key* is put in as it is: it must need no escapes in JSON.
    """
    encoded = capture(value, limits, _KINDS.get(key, "payload"), span)
    if encoded.startswith(b"{") and (type(value) is dict or not encoded.startswith(b'{"$')):
        return encoded
    return b'{"%b":%b}' % (key, encoded)


def capture_exception(
    error: BaseException, limits: Limits = DEFAULT, span: str = "", hidden: tuple[str, ...] = ()
) -> bytes:
    """Encode *error* as `error_type`, `message` and `stacktrace`, all text, without calling its `__str__`.

    The message is made of the exception's arguments; see `_error_text` for the stack text. *hidden*: texts that must
    not be in it, nor in what is recorded of *error* later, as it leaves the spans around.
    """
    try:
        arguments = _ARGUMENT_LIMITS._replace(redact=limits.redact.built_in)
        hidden = _to_be_hidden(error, hidden, limits.redact)
        clear = None
        if hidden:  # before anything is cut: the end of a long text would not be known as a part of it
            clear = partial(cleared, hidden=hidden)
            arguments = arguments._replace(max_string=_WITH_TAIL - 1)
        until = time.thread_time() + _ARGUMENTS_SECONDS

        def read(value: object) -> str:
            if time.thread_time() >= until:
                return f"<{type_name(type(value))}>"
            return _argument(value, arguments)

        texts = describe_error(error, read, limits.max_string, clear)
        if hidden:
            texts = {name: without(text, hidden) for name, text in texts.items()}
        stack = texts["stacktrace"]
        texts["stacktrace"] = limits.redact.text(stack, is_cut=len(stack) >= MOST_STACK)
        return limits.redact(trimmed(orjson.dumps(texts)), "error", span)
    except Exception:  # as in capture
        return b'{"error_type":"unknown","message":"","stacktrace":""}'


def _to_be_hidden(error: BaseException, hidden: tuple[str, ...], redact: Redactor) -> tuple[str, ...]:
    """Return what must not be said of *error*: *hidden*, what others have hidden of it, and secrets by their names."""
    all_of_them = related(error)
    before = [text for one in all_of_them for text in remembered(one)]
    if hidden:
        remember(error, dict.fromkeys([*hidden, *before]))
    named = [text for one in all_of_them for text in _named_in(one, redact)]
    return (*hidden, *before, *named)


def _named_in(error: Any, redact: Redactor) -> list[str]:
    """Return the texts in *error* that its class marks, and those that stand beside the name of a secret."""
    found: list[str] = []
    hidden_in(error, None, found)
    for group in _groups(arguments_of_error(error)):
        found += redact.beside_names(group)
    return found


def cleared(text: str, hidden: tuple[str, ...]) -> str:
    """Return *text*, of any length, without what is *hidden*, by `hidden_in`; cut if it is very long."""
    text = text[:_MOST_SEARCHED]
    for each in hidden:
        at = text.find(each) if len(each) == LONGEST else -1  # perhaps only how it begins
        if at >= 0:
            text = text[:at] + HIDDEN
    return without(text, hidden)


def _groups(arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return *arguments* and the tuples in them, in each of which a name can stand before a secret."""
    return [arguments, *[one for one in arguments if type(one) is tuple and len(one) <= _FEW]]


def _argument(value: object, limits: Limits) -> str:
    """Return *value*, an argument of an exception, as text: JSON, but a string as it is."""
    encoded = capture(value, limits)
    return str(orjson.loads(encoded)) if encoded.startswith(b'"') else encoded.decode()


# ---- plain values: proven to be exact JSON types within the limits, then encoded in one call ---------------

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
_MOST_TURNS = 8  # functions in turn, each of which returns a value that the next is registered for
_MOST_NAME = 64  # characters between a secret and the beginning of its name, in one line
_WITH_TAIL = 400  # characters from which on a cut string keeps its end, too
_GROWTH = 7  # bytes that a character takes at most; what has become longer has megabytes in keys
_SHORT_RUN, _LONG_RUN = 8, 256  # items of a list that are tried in one piece while it is rebuilt

_MOST_SEARCHED = 100_000  # characters of an argument of an exception in which it is looked for what is hidden
_TRIMMED = 16_384  # bytes up to which what is encoded is copied, see `trimmed`

_dumps = orjson.dumps
_flat = chain.from_iterable
_dict_values = dict.values


def _encode_plain(value: object, longest: int, room: int, depth: int) -> bytes | None:
    """Encode *value* if it is plain and fits into *room* (bytes, estimated) and *depth*; else return None."""
    bags: list[list[Any]] = []
    # Should another thread change the value just between the two steps, the second encodes what it finds.
    try:
        room = _room_left(value, room, depth, longest, bags)
        if room < 0 or (bags and not _fit(bags, room, longest)):
            return None
        encoded = _dumps(value, None, _OPTIONS)
        if bags and (len(encoded) > room * _GROWTH or (b"\\" in encoded and _has_nul_in_keys(bags))):
            return None
        return b"".join((encoded, b"")) if len(encoded) < _TRIMMED else encoded
    except Exception:  # a surrogate, a big int, a key that is no string, a dict changed by another thread
        return None


def trimmed(encoded: bytes) -> bytes:
    """Return *encoded* in no more memory than it needs.

    orjson 3.12 and later leave what they return in a buffer that is 4 KiB too large, and it waits long here
    (home-assistant/core#181245). Joined with nothing, it is copied; beyond 16 KiB the copy costs more than the waste.
    """
    return b"".join((encoded, b"")) if len(encoded) < _TRIMMED else encoded


def _room_left(value: Any, room: int, depth: int, longest: int, bags: list[list[Any]]) -> int:
    """Return what plain *value* leaves of *room*, or a negative number if it is not plain or does not fit.

    What is put into *bags*, lists of strings and of dicts, remains to be looked at by the caller: by `_fit` and,
    once more, by `_has_nul_in_keys`.
    """
    kind = type(value)
    if kind is dict:
        if len(value) > _FEW:
            return _room_left_by_many([value], room, depth, longest, bags)
        for key in value:
            if type(key) is not str or len(key) > longest or "\0" in key:
                return -1
        items = value.values()
    elif kind is list or kind is tuple:
        if len(value) > _FEW and depth > 0:
            if len(value) * _VALUE_BYTES > room:
                return -1
            return _room_left_by_many(list(value), room, depth - 1, longest, bags)
        items = value
    elif kind is str:
        return room - len(value) if len(value) <= longest and "\0" not in value else -1
    else:
        return room if _is_plain_atom(value) else -1
    room -= _CONTAINER_BYTES + len(items) * _VALUE_BYTES
    if room < 0 or depth <= 0:
        return -1
    for item in items:
        kind = type(item)
        if kind is str:
            size = len(item)
            if size > longest or "\0" in item:
                return -1
            room -= size
        elif not (kind is int or kind is bool or item is None):
            room = _room_left(item, room, depth - 1, longest, bags)
            if room < 0:
                return -1
    return room


def _room_left_by_many(bag: list[Any], room: int, depth: int, longest: int, bags: list[list[Any]]) -> int:
    """Do the same for a *bag* of many values, which is nobody else's, one level of all of them at a time.

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
        bags.append(same)
    elif kind is float:
        if not isfinite(sum(same)):
            return -1
    elif not (dicts or lists or _is_plain_atom(bag[0])):
        return -1
    texts: list[str] = []
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
    if texts:
        bags.append(texts)
    if dicts:
        # The first dict's keys stand for all: to measure every key would cost as much as the values, and only
        # guards against megabytes in keys, which are found when they are encoded (orjson checks their type).
        if len(dicts[0]) * _VALUE_BYTES > room:
            return -1
        keys = list(dicts[0])
        if [key for key in keys if type(key) is not str]:
            return -1
        if keys:
            bags.append(keys)
        if len(dicts) > 1:
            bags.append(dicts)
    elif not lists:
        return room
    if depth <= 0 or sum(map(len, lists)) * _VALUE_BYTES > room:
        return -1
    below = list(islice(chain(_flat(map(_dict_values, dicts)), _flat(lists)), room // _VALUE_BYTES + 1))
    return _room_left_by_many(below, room, depth - 1, longest, bags) if below else room


def _is_plain_atom(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return isfinite(value)
    return kind is int or kind is bool or value is None


def _fit(bags: list[list[Any]], room: int, longest: int) -> bool:
    """Say whether no text in *bags* is longer than *longest*, and all together than *room*, and none has a NUL."""
    texts: list[str] = []
    for bag in bags:
        if type(bag[0]) is str:
            texts += bag
    if not texts:
        return True
    share = min(longest, room // len(texts))
    if [text for text in texts if len(text) > share] and (
        # Somebody has more than an even share: then it is added up.
        sum(map(len, texts)) > room or max(map(len, texts)) > longest
    ):
        return False
    return "\0" not in "".join(texts)  # twice as fast as to look into each


def _has_nul_in_keys(bags: list[list[Any]]) -> bool:
    """Say whether a key of the dicts in *bags* has a NUL. What is encoded then has a backslash, which is a quick test."""
    return any("\0" in "".join(_flat(bag)) for bag in bags if type(bag[0]) is dict)


# ---- everything else: rebuilt from plain parts and markers -------------------------------------------------


class _Branch(NamedTuple):
    """A container that has its place in the result and waits to be filled."""

    value: object
    opened: Open
    target: Any  # the list or dict to fill
    depth: int
    parent: _Branch | None
    labels: tuple[str, ...] | None = None  # with which each leaf below is wrapped


def _from_a_new_word(tail: str) -> str:
    """Return *tail*, the end of a longer text, from where something new begins.

    What it begins with may be the second half of a secret, or one whose name was cut off: no search would find it.
    """
    key_ends = max(0, tail.rfind("-----END "))
    begins = tail.find("\n", key_ends) + 1 or tail.find(" ", key_ends + _MOST_NAME) + 1 or len(tail)
    has_lost_a_key = not key_ends and "-----BEGIN " in tail[:begins]
    return "" if has_lost_a_key else tail[begins:]


class _Rebuild:
    """One value on its way to plain JSON, with the room and the time that are left for it."""

    def __init__(self, limits: Limits, room: int) -> None:
        self.limits = limits
        self.room = room
        self.longest = min(limits.max_string, room)
        self.deadline = Deadline(limits.max_seconds, cpu=time_but_learning)
        self.waiting: deque[_Branch] = deque()
        self.readers: dict[int, tuple[Reader, type]] = {}  # with the type: its id is its own while it lives
        self.labels: tuple[str, ...] | None = None  # of what is being read

    def encode(self, value: object) -> bytes:
        root = self.read(value, None)
        while self.waiting and self.room > 0:
            self.fill(self.waiting.popleft())
        return trimmed(orjson.dumps(root, None, _OPTIONS))

    def read(self, value: Any, parent: _Branch | None, origin: object = None) -> object:
        """Return what stands for *value*: JSON, or a container that is filled later.

        *origin*: what the user's function has made *value* of, if it has.
        """
        kind = type(value)
        self.room -= _VALUE_BYTES
        if kind is str:
            return self.text(value)
        if kind is bool or value is None or (kind is int and -SAFE_INT <= value <= SAFE_INT):
            return value
        if kind is Ruled:
            return self.ruled(value, parent)
        try:
            known = self.readers.get(id(kind))
            if known is None:
                known = self.readers[id(kind)] = (reader_of(kind), kind)
            if known[0] is read_string:
                return self.text(value)
            found = known[0](value)
            if type(found) is Open:
                return self.place(value if origin is None else origin, found, parent)
            if type(found) is Given:
                return self.given(found, parent)
            if type(found) is Ruled:
                return self.ruled(found, parent)
            if type(found) is dict:
                return self.marked(found, value)
            return self.text(found) if type(found) is str else found
        except Exception:  # one bad value must not cost its neighbours
            return {"$unreadable": type_name(kind)}

    def text(self, value: str) -> object:
        """Return *value*, of str or a subclass, as it is or cut."""
        if type(value) is str and len(value) <= self.longest and value.isascii() and "\0" not in value:
            self.room -= len(value)
            return value
        length = str.__len__(value)
        if length <= self.longest:
            kept = clean(str.__getitem__(value, slice(None)))
            self.room -= len(kept)
            return kept
        # A prompt's question and a log's error are at the end.
        end = self.longest >> 2 if self.longest >= _WITH_TAIL else 0
        head = clean(str.__getitem__(value, slice(self.longest - end)))
        tail = self.tail(value, length - end) if end else ""
        self.room -= len(head) + len(tail)
        return {"$truncated": head, **({"tail": tail} if tail else {}), "length": length}

    def tail(self, value: str, start: int) -> str:
        """Return the end of *value* from *start* on, from where something new begins and no name before reaches."""
        before = clean(str.__getitem__(value, slice(max(0, start - LONGEST_REACH), start)))
        tail = clean(str.__getitem__(value, slice(start, None)))
        kept = _from_a_new_word(tail)
        free = self.limits.redact.built_in.first_free(before + tail, len(before)) - len(before)
        return kept if len(tail) - len(kept) >= free else tail[free:]

    def marked(self, found: dict[str, Any], value: object) -> object:
        """Return *found*, a marker. What is the user's text in it costs room, and is no longer than other texts."""
        if is_a(value, BaseException) and (named := _named_in(value, self.limits.redact)):
            found["message"] = without(found["message"], tuple(named))
        for name in ("message", "pattern"):
            text = found.get(name)
            if text is not None:
                found[name] = shorten(text, self.longest)
                self.room -= len(text)
        return found

    def given(self, given: Given, parent: _Branch | None) -> object:
        """Return what stands for what the user's function makes of a value. Its time is not taken from the others."""
        value, function = given
        self.room -= _CONTAINER_BYTES
        for _ in range(_MOST_TURNS):
            made = self.deadline.without(partial(convert, function, value))
            if made is FAILED:
                break
            again = function_for(type(made))
            if again is None:
                return self.read(made, parent, given.value)
            value, function = made, again
        return {"$type": type_name(type(given.value))}

    def ruled(self, given: Ruled, parent: _Branch | None) -> object:
        """Return what stands for a value as its rule says."""
        value, rule = given
        if type(rule) is Plan:
            try:
                found = reader_of(type(value))(value)
                if type(found) is Open:
                    return self.place(value, followed(found, rule), parent)
            except Exception:  # as in read
                return {"$unreadable": type_name(type(value))}
            return self.read(value, parent)
        before, self.labels = self.labels, rule.labels  # type: ignore[union-attr] # it is no plan
        try:
            return self.labelled(self.read(value, parent))
        finally:
            self.labels = before

    def labelled(self, found: Any) -> object:
        """Return *found*, as it was read, with what is no container of its own wrapped with the labels."""
        if self.labels is None or (self.waiting and self.waiting[-1].target is found):
            return found
        if type(found) is dict and type(found.get("$truncated")) is str:
            redact = self.limits.redact.built_in  # in the wrapper nobody sees that its end is not the text's
            found["$truncated"] = redact.text(found["$truncated"], is_cut=True)
        self.room -= _CONTAINER_BYTES
        return wrapped(found, self.labels)

    def place(self, value: object, opened: Open, parent: _Branch | None) -> object:
        """Return the place of a container in the result. Until it is filled, it says that it was cut."""
        if value is MARKED_SECRET:
            return value
        above, depth = parent, 1
        while above is not None:
            if above.value is value:
                return {"$cycle": type_name(type(value))}
            above, depth = above.parent, depth + 1
        if depth > self.limits.max_depth:
            return {"$truncated": type_name(type(value))}
        kind = type(opened.source)
        tried = parent is None and opened.source is value  # by capture
        # A long list is tried in runs, as it is filled: to find out that all of it is too much can take all the time.
        in_one = kind is dict or ((kind is list or kind is tuple) and opened.length <= _LONG_RUN)
        if in_one and not tried and self.labels is None:
            encoded = self.encode_plain(opened.source, depth)
            if encoded is not None:
                return orjson.Fragment(encoded)
        target: Any = [] if opened.is_list else {}
        if opened.length:
            _mark_cut(target, opened.length)
            self.waiting.append(_Branch(value, opened, target, depth, parent, self.labels))
        return target

    def encode_plain(self, value: object, depth: int) -> bytes | None:
        """Encode *value*, a container in *depth*, if it is plain and there is room for all of it."""
        encoded = _encode_plain(value, self.limits.max_string, self.room, self.limits.max_depth - depth + 1)
        if encoded is None:
            self.look_at_clock()  # to find out can take as long as a thousand values
        else:
            self.room -= len(encoded)
        return encoded

    def fill(self, branch: _Branch) -> None:
        """Put its entries into *branch*, or as many as there is room for."""
        opened, target = branch.opened, branch.target
        self.labels = branch.labels
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
            self.look_at_clock()
            pieces = len(branch.target)
            kept += self.put_run(run, branch)
            in_one = len(branch.target) == pieces + 1
            length = min(length << 1, _LONG_RUN) if in_one else _SHORT_RUN
        return kept

    def put_run(self, run: list[Any], branch: _Branch) -> int:
        """Add *run* in one piece if it is plain, else its halves, in the end item by item. Return how many."""
        encoded = self.encode_plain(run, branch.depth) if self.labels is None else None
        if encoded is not None:
            branch.target.append(orjson.Fragment(encoded[1:-1]))  # without brackets it stands for all of them
            return len(run)
        if len(run) > _SHORT_RUN:
            half = len(run) >> 1
            return self.put_run(run[:half], branch) + self.put_run(run[half:], branch)
        for kept, item in enumerate(run):
            if self.room <= 0:
                return kept
            branch.target.append(self.labelled(self.read(item, branch)))
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
            name = label(key, self.longest)
            self.room -= len(name)
            if name in target:
                if kind is str and name in others:  # the string keeps its name
                    target[_other_name(others.pop(name), name, target)] = target.pop(name)
                else:
                    name = _other_name(kind, name, target)
            if kind is not str:
                others[name] = kind
            target[name] = self.labelled(self.read(item, branch))
        return len(target)

    def look_at_clock(self) -> None:
        """Leave no room if the time is up."""
        if self.deadline.is_over():
            self.room = 0


def _mark_cut(target: Any, length: int) -> None:
    """Say in *target* that not all of its *length* entries are here."""
    if type(target) is list:
        target.append({"$truncated": "items", "length": length})
    else:
        target["$truncated"] = {"length": length}


def _other_name(kind: type, name: str, taken: dict[str, object]) -> str:
    """Return a name with the type of the key, for one whose plain *name* is taken."""
    other = f"{type_name(kind)}:{name}"
    return f"{other}#{len(taken)}" if other in taken else other

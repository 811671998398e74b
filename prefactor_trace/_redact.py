"""Secrets stay home: what looks like one is taken out of captured bytes before anything reaches queue or disk.

In comes JSON that `_capture` has made, on the caller's thread; out comes JSON in which each secret is a marker that
tells its kind and a short hash, keyed anew in every process, so that equal secrets can be recognised and nothing
else be learned:

    a whole value, by the name of its field     {"$redacted": "api_key", "hash": "1f9c03ab"}
    inside longer text, by its shape or a name  [redacted:github_token:1f9c03ab]
    what there was no time to look through      {"$redacted": "unsearched"}
    what a user's callable failed on            {"$redacted": "by a callable that failed"}

Nearly everything is clean, and is told so by one question to `_secrets`; what was found clean before is known by its
hash, in pieces, because agents send the same messages again with every call. The hash is Python's own, whose key
nobody knows; together with the length it stands for the piece, of which nothing is kept. Only what is suspected is
parsed and rebuilt. That takes at most `_MOST_SECONDS` or so of CPU: what is left then goes unseen, whole.
"""

from __future__ import annotations

import json
import os
import re
import threading
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import orjson

from prefactor_trace import _guard
from prefactor_trace._deadline import Deadline
from prefactor_trace._marks import MARKED_SECRET
from prefactor_trace._peek import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace._secrets import Found, Words

    Kind: TypeAlias = Literal["payload", "result", "error", "metadata"]

__all__ = ["DEFAULT", "Place", "Redactor"]

_PIECE = 8_192  # bytes that are looked at, and known, at once
# Bytes in which a secret across two pieces shows itself in one of them: 512 characters, escaped perhaps.
_OVERLAP = 1_024
_MOST_KNOWN = 8_192  # pieces; half a megabyte
_SHORTEST = 10  # bytes: less holds no secret and its name
_MOST_SECONDS = 0.001  # as capture takes as much, and any value is to cost less than 2 ms
_MOST_DEPTH = 64  # beyond what capture writes
_MOST_LATE = 4  # threads; until one of them comes back, values are removed at once
_MOST_GROWTH = 262_144  # bytes; markers can be longer than what they stand for
LONGEST_REACH = 512
"""Characters within which a secret and what tells of it stand."""
HOOK_SECONDS = 0.1
"""How long the caller waits for a user's callable. It runs on a thread of its own, so that it can be left behind."""


class Place(NamedTuple):
    """Where a value was captured.

    Attributes:
        kind: "payload", "result", "error" or "metadata".
        span: What the span is called, without secrets; empty outside of one.
    """

    kind: Kind
    span: str


class Redactor:
    """Takes secrets out of what is captured. One for each tracer, used by all threads.

    Args:
        keys: Names of fields that are secret, besides the built-in ones; "-name" takes one out, "-*" all.
        hook: Is given each value, decoded, with its `Place`, after the built-in search; returns what is recorded.
        is_on: Whether the built-in search is done.
    """

    def __init__(
        self,
        keys: tuple[str, ...] = (),
        hook: Callable[[Any, Place], Any] | None = None,
        *,
        is_on: bool = True,
    ) -> None:
        self._keys = keys
        self._hook = hook
        self._is_on = is_on
        self._words: Words | None = None
        self._known: dict[int, int] = {}
        self.built_in: Redactor = self if hook is None else Redactor(keys, is_on=is_on)
        """The same without the callable, for what becomes part of another value."""

    def __call__(self, encoded: bytes, kind: Kind = "payload", span: str = "") -> bytes:
        """Return *encoded* without secrets. Never raises but for what interrupts the program."""
        # The two most frequent cases first: known to be clean, and small enough to be so.
        if self._hook is None:
            size = len(encoded)
            if size < _SHORTEST or not self._is_on or self._known.get(hash(encoded)) == size:
                return encoded
        try:
            if self._is_on and not self._is_clean(encoded):
                encoded = self._rebuilt(encoded)
            return (
                encoded
                if self._hook is None
                else self._by_hook(encoded, Place(kind, self.built_in.text(span)))
            )
        except Exception:
            _guard.failed("redact a value")
            return _FAILED

    def text(self, text: str, *, is_cut: bool = False, seconds: float = _MOST_SECONDS) -> str:
        """Return *text* without secrets. *is_cut*: it went on, so its end may be the beginning of one."""
        if not self._is_on or (not is_cut and self._known.get(hash(text)) == len(text)):
            return text
        words = self._words or self._load()
        if is_cut or words.suspect(text):
            return _Rebuild(words, seconds).text(text, is_cut=is_cut)
        self._remember(text)
        return text

    def first_free(self, text: str, start: int) -> int:
        """Return where in *text*, from *start* on, what was kept can begin: behind what names before it make secret."""
        if not self._is_on:
            return start
        words = self._words or self._load()
        if not words.suspect(text[: start + 2 * LONGEST_REACH]):
            return start
        found = words.find(text, is_late=Deadline(_MOST_SECONDS).is_over)
        return max([start, *[one.end for one in found if one.start < start + LONGEST_REACH]])

    def hides(self, name: str) -> bool:
        """Whether the value of a field called *name* is secret, whatever it is."""
        return self._is_on and (self._words or self._load()).name(name) is not None

    def beside_names(self, texts: tuple[Any, ...]) -> list[str]:
        """Return of *texts* those that come behind one that is the name of a secret: `("password", "hunter2")`."""
        if len(texts) < 2 or not self._is_on:
            return []
        words = self._words or self._load()
        return [
            second
            for first, second in pairwise(texts)
            if type(first) is str
            and type(second) is str
            and len(first) <= _LONGEST_NAME
            and (kind := words.name(first)) is not None
            and len(second) >= _SHORTEST_VALUE
            and not words.is_prose(second)
            and _is_secret(kind, second, {}, words)
        ]

    def _load(self) -> Words:
        from prefactor_trace._secrets import Words  # 30 ms of patterns, for programs that record

        self._words = words = Words(self._keys)
        return words

    def _is_clean(self, encoded: bytes) -> bool:
        """Say whether there is certainly no secret in *encoded*, and remember it."""
        words, known, size = self._words or self._load(), self._known, len(encoded)
        pieces = []
        if size > _PIECE:
            pieces = [encoded[start : start + _PIECE] for start in range(0, size, _PIECE - _OVERLAP)]
        new = [piece for piece in pieces if known.get(hash(piece)) != len(piece)]
        # Each piece costs its overlap as well, so what is mostly new is looked at in one.
        if not pieces or len(new) > len(pieces) >> 1:
            if words.suspect(encoded):
                return False
        elif any(words.suspect(_whole_characters(piece)) for piece in new):
            return False
        for piece in new:
            self._remember(piece)
        self._remember(encoded)  # whole, as one function hands the same messages to the next
        return True

    def _remember(self, piece: bytes | str) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[hash(piece)] = len(piece)

    def _rebuilt(self, encoded: bytes) -> bytes:
        rebuild = _Rebuild(self._words or self._load())
        found = rebuild.value(orjson.loads(encoded))
        if not rebuild.has_found:
            self._remember(encoded)  # a closer look is not needed again
            return encoded
        rebuilt = orjson.dumps(found)
        # Markers in place of tiny values can be longer than they; what is recorded stays bounded.
        return rebuilt if len(rebuilt) <= len(encoded) + _MOST_GROWTH else orjson.dumps(_UNSEARCHED)

    def _by_hook(self, encoded: bytes, place: Place) -> bytes:
        """Return what the user's callable makes of *encoded*; if it fails in any way, a marker."""
        done: list[bytes] = []

        def work() -> None:
            try:
                done.append(orjson.dumps(self._hook(orjson.loads(encoded), place)))  # type: ignore[misc]
            except BaseException:  # it is the user's, on a thread of ours
                _guard.logger.debug("the callable given as redact= failed", exc_info=True)

        _late[:] = [thread for thread in _late if thread.is_alive()]
        if len(_late) < _MOST_LATE:
            thread = threading.Thread(target=work, name="prefactor-redact", daemon=True)
            thread.start()
            thread.join(HOOK_SECONDS)
            if thread.is_alive():
                _late.append(thread)
            elif done and len(done[0]) <= len(encoded) + _MOST_GROWTH:
                was_object, is_object = encoded.startswith(b"{"), done[0].startswith(b"{")
                return done[0] if is_object or not was_object else b'{"value":%b}' % done[0]
        _guard.errors["redact= failed, was late or gave no JSON: value removed"] += 1
        return orjson.dumps(_BY_HOOK)


def without(text: str, hidden: tuple[str, ...]) -> str:
    """Return *text* with a marker in place of each of *hidden*, however it is escaped or cut."""
    forms = {form for each in hidden for form in _forms(each, text)}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= _SHORTEST_VALUE and form[:_SHORTEST_BEGINNING] in text:
            text = text.replace(form, HIDDEN)
            text = _without_beginning(text, form)
    return text


def _forms(hidden: str, text: str) -> list[str]:
    """Return *hidden* as it can stand in *text*: by itself, in Python, in JSON and in a URL."""
    if _SAME.match(hidden):
        return [hidden]
    forms = [hidden, " ".join(hidden.split())]
    if "\\" in text:  # without one the forms are no others
        encoded = repr(hidden.encode("utf-8", "replace"))[2:-1]
        as_json = orjson.dumps(clean(hidden)).decode()[1:-1], json.dumps(hidden)[1:-1]
        forms += [repr(hidden)[1:-1], ascii(hidden)[1:-1], encoded, *as_json]
    if "%" in text or "+" in text:
        from urllib.parse import quote, quote_plus  # 3 ms, and few programs hide anything

        in_urls = [each(hidden, safe, errors="replace") for each in (quote, quote_plus) for safe in ("", "/")]
        forms += [*in_urls, *map(_lower_escapes, in_urls)]
    return forms


def without_in(encoded: bytes, hidden: tuple[str, ...]) -> bytes:
    """Return *encoded*, JSON, with a marker in place of each of *hidden* in its texts, names and numbers."""
    if not hidden:
        return encoded

    def cleared(value: Any) -> Any:
        if type(value) is str:
            return without(value, hidden)
        if type(value) is list:
            return [cleared(each) for each in value]
        if type(value) is dict:
            return {without(name, hidden): cleared(each) for name, each in value.items()}
        return MARKED_SECRET if type(value) is int and str(value) in hidden else value

    return orjson.dumps(cleared(orjson.loads(encoded)))


def _without_beginning(text: str, form: str) -> str:
    """Return *text* without the beginning of *form* where it was cut."""
    begins = form[:_SHORTEST_BEGINNING]
    position = text.find(begins)
    for _ in range(_MOST_BEGINNINGS):
        if position < 0:
            break
        here = text[position : position + len(form)]
        end = position + len(commonprefix((here, form)))  # noqa: RUF071 - of signs, not of folders
        if _CUT.match(text, end):
            text = f"{text[:position]}{HIDDEN}{text[end:]}"
        position = text.find(begins, position + 1)
    return text


def _lower_escapes(text: str) -> str:
    return _URL_ESCAPE.sub(lambda match: match.group().lower(), text)


_SAME = re.compile(r"[A-Za-z0-9_.~-]*\Z")  # what is written in the same way everywhere
_URL_ESCAPE = re.compile("%[0-9A-F]{2}")
HIDDEN = "[redacted:Secret]"
"""What stands in a text for what a mark hides."""
_SHORTEST_VALUE = 4  # characters behind a name; what is shorter stands in many a text by chance
_SHORTEST_BEGINNING = 6
# How a text ends that was cut: by its length, or as capture writes it, in JSON inside of the text.
_CUT = re.compile(r"\.\.\. \(|\\{0,15}\",\\{0,15}\"(?:tail|length)\\{0,15}\":|\Z")
_MOST_BEGINNINGS = 100
_LONGEST_NAME = 100
_SHORT = 32

_late: list[threading.Thread] = []  # those that still wait for a callable of the user's


class _Rebuild:
    """One value on its way: what was found in it, and the time that is left."""

    def __init__(self, words: Words, seconds: float = _MOST_SECONDS) -> None:
        self._words = words
        self._deadline = Deadline(seconds)
        self._names: dict[str, str | None] = {}
        self._clean: set[str] = set()  # short texts, such as the roles in a chat
        self.has_found = False

    def value(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind is str:
            if value in self._clean:
                return value
            if self._words.suspect(value):
                return self.text(value)
            if len(value) <= _SHORT:
                self._clean.add(value)
            return value
        if kind is dict:
            return self._dict(value, depth + 1)
        if kind is list:
            return self._list(value, depth + 1)
        return value

    def text(self, text: str, *, is_cut: bool = False) -> str:
        """Return *text* with markers in place of secrets."""
        if self._deadline.is_over():
            self.has_found = True
            return f"[redacted:unsearched:{len(text)} characters]"
        tail = _cut_tail(text)
        body = text[: len(text) - len(tail)]
        found = self._words.find(body, is_cut=is_cut or bool(tail), is_late=self._deadline.is_over)
        if not found:
            return text
        self.has_found = True
        return "".join([*_pieces(body, found), tail])

    def _dict(self, value: dict[str, Any], depth: int) -> Any:
        if self._deadline.is_over() or depth > _MOST_DEPTH:
            self.has_found = True
            return _UNSEARCHED
        cut = value.get("$truncated")
        if type(cut) is str and value.keys() <= _CUT_KEYS and type(value.get("length")) is int:
            # All other entries are searched like those of any dict: users can have one that looks like the marker.
            ends = {"tail": self.value(value["tail"], depth)} if "tail" in value else {}
            return {"$truncated": self.text(cut, is_cut=True), **ends, "length": value["length"]}
        fields: dict[str, Any] = {}
        for name, item in value.items():
            if self._deadline.is_over():
                self.has_found = True
                fields["$redacted"] = "unsearched"
                break
            kind = self._name(name)
            if kind is None and len(name) == 5 and name.lower() == "value":
                kind = self._named_beside(value)
            if kind is not None and type(item) is dict and _is_schema(item, _WORDS_OF_VALUES):
                fields[self._key(name)] = self._schema(kind, item, depth)
            elif kind is not None and self._is_secret(kind, item, value):
                self.has_found = True
                fields[self._key(name)] = marker(kind, item)
            else:
                fields[self._key(name)] = self.value(item, depth)
        return fields

    def _named_beside(self, fields: dict[str, Any]) -> str | None:
        """Return what a value is by the name beside it: headers are objects of name and value, too."""
        names = [_unwrapped(each) for name, each in fields.items() if name.lower() in _NAMES_BESIDE]
        return next((kind for each in names if type(each) is str and (kind := self._name(each))), None)

    def _schema(self, kind: str, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Rebuild what describes a field of *kind*: only the values in it are secret."""
        found: dict[str, Any] = {}
        for word, item in schema.items():
            is_secret = word in _WORDS_OF_VALUES and self._is_secret(kind, item, {})
            self.has_found = self.has_found or is_secret
            found[word] = marker(kind, item) if is_secret else self.value(item, depth)
        return found

    def _is_secret(self, kind: str, value: Any, fields: dict[str, Any]) -> bool:
        return _is_secret(kind, value, fields, self._words)

    def _name(self, name: str) -> str | None:
        if name not in self._names:
            self._names[name] = self._words.name(name)
        return self._names[name]

    def _key(self, name: str) -> str:
        return self.text(name) if len(name) > _SHORTEST and self._words.suspect(name) else name

    def _list(self, value: list[Any], depth: int, *, is_pair: bool = False) -> list[Any]:
        items: list[Any] = []
        in_key = False
        of_pairs = type(value[0] if value else None) is list and not [
            each for each in value if type(each) is not list or len(each) != 2
        ]
        hidden = self._words.arguments(value, self._deadline.is_over) if _is_command(value) else {}
        is_flat = _is_flat(value)
        for item in value:
            place = len(items)
            if not place & 63 and self._deadline.is_over():
                self.has_found = True
                items.append(_UNSEARCHED)
                break
            if type(item) is str and (in_key or _BEGIN in item):
                in_key = _END not in item
                self.has_found = True
                items.append(marker("private_key", item))  # a key that was split into lines
            elif of_pairs:
                items.append(self._list(item, depth + 1, is_pair=True))
            elif place in hidden:
                items.append(self._argument(item, *hidden[place]))
            elif (len(value) == 2 or is_flat) and place & 1:
                items.append(self._second(value[place - 1], item, depth, is_pair=is_pair))
            else:
                items.append(self.value(item, depth))
        return items

    def _argument(self, item: str, kind: str, start: int) -> Any:
        """Rebuild *item*, an argument of a command that is secret from *start* on."""
        self.has_found = True
        return f"{item[:start]}[redacted:{kind}:{_digest(item[start:])}]" if start else marker(kind, item)

    def _second(self, first: Any, item: Any, depth: int, *, is_pair: bool) -> Any:
        """Rebuild *item*, the second of two: headers are lists of [name, value], too.

        *is_pair*: the list is one of several such. Else it may be two names, of which a value is told by its looks.
        """
        name, text = _unwrapped(first), _unwrapped(item)
        if type(text) is str and type(name) is str:
            kind = self._name(name)
            if (
                kind is not None
                and (is_pair or self._words.is_no_word(text))
                and self._is_secret(kind, text, {})
            ):
                self.has_found = True
                return marker(kind, text)
        return self.value(item, depth)


def _is_command(items: list[Any]) -> bool:
    """Say whether *items* can be a command and its arguments."""
    return any(type(each) is str and _OPTION.match(each) for each in items)


def _is_flat(items: list[Any]) -> bool:
    """Say whether *items* are the names and values of headers by turns. Names alone are none."""
    if not 4 <= len(items) <= _MOST_FLAT or len(items) & 1 or any(type(each) is not str for each in items):
        return False
    return all(map(_HEADER.match, items[::2])) and not all(map(_HEADER.match, items[1::2]))


_OPTION = re.compile("--?[A-Za-z]")
_MOST_FLAT = 256  # items
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,60}\Z")
_CUT_KEYS = {"$truncated", "tail", "length"}
_BEGIN, _END = "PRIVATE KEY-----", "-----END"
_UNSEARCHED = {"$redacted": "unsearched"}
_BY_HOOK = {"$redacted": "by a callable that failed"}
_FAILED = orjson.dumps(_UNSEARCHED)
# What JSON Schema says of a field: tools that an agent offers to a model name such fields.
_TYPES = {"string", "number", "integer", "boolean", "object", "array", "null"}
_WORDS_OF_TEXT = {"title", "description", "format", "pattern", "$ref", "contentEncoding", "contentMediaType"}
_WORDS_OF_NUMBERS = {
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minItems",
    "maxItems",
    "nullable",
    "writeOnly",
    "readOnly",
    "deprecated",
    "additionalProperties",
}
_WORDS_OF_SCHEMAS = {"anyOf", "oneOf", "allOf"}
_WORDS_OF_VALUES = {"default", "const", "example", "examples"}


def _is_schema(value: Any, of_values: set[str] = set(), deepest: int = 4) -> bool:  # noqa: B006 - it is only read
    """Say whether *value* is a schema and nothing else; what is under the words *of_values* is not looked at."""
    if type(value) is not dict or not deepest:
        return False
    says_what = False
    for word, item in value.items():
        if word == "type":
            says_what = fits = all(
                type(each) is str and each in _TYPES for each in (item if type(item) is list else [item])
            )
        elif word in _WORDS_OF_SCHEMAS:
            says_what = fits = type(item) is list and all(
                _is_schema(each, deepest=deepest - 1) for each in item
            )
        elif word == "properties":
            inner = item.values() if type(item) is dict else [item]
            fits = all(_is_schema(each, deepest=deepest - 1) for each in inner)
        elif word == "items":
            fits = _is_schema(item, deepest=deepest - 1)
        elif word in ("enum", "required"):
            fits = type(item) is list and all(
                type(each) is not dict and type(each) is not list for each in item
            )
        elif word in _WORDS_OF_TEXT:
            fits = type(item) is str
            says_what = says_what or (word == "$ref" and fits and item.startswith("#"))
        else:
            fits = type(item) in (int, float, bool) if word in _WORDS_OF_NUMBERS else word in of_values
        if not fits:
            return False
    return says_what


# Names under which a number is a count, a flag or a place rather than a secret.
_COUNTED = ("token", "session", "auth", "cookie", "csrf", "bearer", "pass")
_NAMES_BESIDE = {"name", "key", "header", "field"}
# What models say of a piece of text, which they call a token.
_OF_PIECES = {"logprob", "logprobs", "top_logprobs", "prob", "probability", "token_logprob", "token_id"}


def _is_secret(kind: str, value: Any, fields: dict[str, Any], words: Words) -> bool:
    """Say whether *value* is a secret, being under a name of *kind* beside other *fields*."""
    if value is None or value is True or value is False or value in ("", [], {}):
        return False
    if type(value) in (int, float):
        return kind.rpartition("_")[2] not in _COUNTED
    if type(value) is dict and value == MARKED_SECRET:
        return False
    if kind == "token":
        return not _is_piece(value, fields, words)
    return not (kind == "pwd" and type(value) is str and value.startswith("/"))  # the working directory


def _is_piece(token: Any, fields: dict[str, Any], words: Words) -> bool:
    """Say whether *token* is a piece of text, as models return it."""
    if type(token) is dict:
        return type(token.get("text")) is str and not _OF_PIECES.isdisjoint(token)
    if "logprob" in fields:
        return True
    is_said = not _OF_PIECES.isdisjoint(fields) or "token" in (fields.get("event"), fields.get("type"))
    return is_said and type(token) is str and not words.looks_secret(token)


def _unwrapped(value: Any) -> Any:
    """Return what the mark `Sensitive` has wrapped, or *value* as it is."""
    return value.get("value") if type(value) is dict and "$sensitive" in value else value


def marker(kind: str, value: Any) -> dict[str, str]:
    """Return what is recorded in place of *value*, JSON."""
    return {"$redacted": kind, "hash": _digest(value if type(value) is str else orjson.dumps(value).decode())}


def _pieces(text: str, found: list[Found]) -> list[str]:
    pieces, position = [], 0
    for kind, start, end in found:
        pieces += [text[position:start], f"[redacted:{kind}:{_digest(text[start:end])}]"]
        position = end
    return [*pieces, text[position:]]


def _cut_tail(text: str) -> str:
    """Return what capture has put behind a text that it has cut: "... (12345 characters)"."""
    start = text.rfind("... (", -40)
    tail = text[start:] if start >= 0 else ""
    return tail if tail.endswith(" characters)") else ""


_key = os.urandom(32)


def _digest(text: str) -> str:
    import hashlib  # 4 ms, and few payloads hold a secret

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4, key=_key).hexdigest()


def _whole_characters(piece: bytes) -> bytes | str:
    """Return *piece*, cut out of UTF-8, as text: what was cut in the middle of a character is no UTF-8."""
    return piece if piece.isascii() else piece.decode("utf-8", "replace")


DEFAULT = Redactor()

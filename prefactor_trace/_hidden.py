"""The texts that marks hide: they are to be in nothing that is said of an error either.

In comes a value with its rule, out come texts: of a few values in it, those next to the top first, and of long ones the
beginning. What was hidden of an error is remembered for a while by the error, as it leaves the spans around. Nothing of
the user's is run.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace._marks import Omit, Plan, Secret, Sensitive, rules_of
from prefactor_trace._peek import bases_of, class_attribute, dict_of, is_a, namespace_of, own, slot_of
from prefactor_trace._readers import reader_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefactor_trace._marks import Rule

MOST_HIDDEN = 32
"""Texts of one call."""
LONGEST = 2_000
"""Characters of a text; of a longer one, this is how it begins."""
_SHORTEST = 6  # characters; what is shorter stands in many a text by chance
_MOST_LOOKED_AT = 256  # values of one argument
_DEEPEST = 8
_LONG_NUMBER = 256  # bits


def hidden_in(value: Any, rule: Rule | None, found: list[str]) -> None:
    """Add to *found* the texts in *value* that must not be recorded, as *rule* or the class of *value* says."""
    _Search(found).by_rule(value, rule, _DEEPEST)


class _Search:
    def __init__(self, found: list[str]) -> None:
        self._found = found
        self._left = _MOST_LOOKED_AT

    def by_rule(self, value: Any, rule: Rule | None, depth: int) -> None:
        """Find what *rule* hides, or what the class of *value* does."""
        if not depth or self._is_over or type(rule) is Sensitive:
            return
        if rule is Secret or rule is Omit:
            self._all_of(value)
        elif type(rule) is Plan and type(value) is dict:
            for key, item in self._some(value.items()):
                if (said := rule.rule(key)) is not None:
                    self.by_rule(item, said, depth - 1)
        elif type(rule) is Plan and _is_list(value):
            for item in self._some(value):
                self.by_rule(item, rule.others, depth - 1)
        else:
            for name, each in rules_of(type(value)).items():
                self.by_rule(_field(value, name), each, depth - 1)

    @property
    def _is_over(self) -> bool:
        return self._left <= 0 or len(self._found) >= MOST_HIDDEN

    def _some(self, entries: Iterable[Any]) -> list[Any]:
        """Return as many *entries* as may be looked at: in one go, as other threads may be changing them."""
        some = list(islice(entries, self._left))
        self._left -= len(some)
        return some

    def _all_of(self, value: Any) -> None:
        waiting = deque([value])
        while waiting and len(self._found) < MOST_HIDDEN:
            value = waiting.popleft()
            text = _text_of(value)
            if text is None and is_a(value, dict):
                for key, item in self._some(dict.items(value)):
                    waiting += (item, key)
            elif text is None:
                waiting += self._some(_parts(value))
            elif len(text) >= _SHORTEST:
                self._found.append(text)


def _text_of(value: Any) -> str | None:
    """Return *value* as a text that can be found in others; None if it is none."""
    kind = type(value)
    if kind is str or is_a(value, str):
        return str.__getitem__(value, slice(LONGEST))
    if kind is bytes or is_a(value, bytes):
        return bytes.__getitem__(value, slice(LONGEST)).decode(errors="ignore")
    if is_a(value, bytearray):
        return bytearray.__getitem__(value, slice(LONGEST)).decode(errors="ignore")
    if kind is int:
        return str(value) if value.bit_length() <= _LONG_NUMBER else ""
    return None


def _parts(value: Any) -> Iterable[Any]:
    """Return what *value* is made of: items, or fields and the text that is recorded of it."""
    for base in (list, tuple, set, frozenset, deque):
        if is_a(value, base):
            return base.__iter__(value)
    return _fields(value)


def _fields(value: Any) -> Iterator[Any]:
    bases = bases_of(type(value))
    yield from list(dict_of(bases)(value).values())
    for base in bases:
        names = namespace_of(base)
        for name in names if "__slots__" in names else ():
            if type(name) is str and name not in _NO_DATA and (read := slot_of(bases, name)) is not None:
                yield read(value)
    with contextlib.suppress(Exception):  # as in capture, where this is what is recorded
        read_it = reader_of(type(value))(value)
        if type(read_it) is str:
            yield read_it


_NO_DATA = ("__dict__", "__weakref__", "__pydantic_fields_set__")


def _is_list(value: Any) -> bool:
    kind = type(value)  # `in` would ask the class of the user's class
    return kind is list or kind is tuple or kind is set or kind is frozenset


def _field(value: Any, name: str) -> Any:
    """Return the field *name* of an object or a named tuple; None if it has none."""
    if not is_a(value, tuple):
        return own(value, name)
    names = class_attribute(bases_of(type(value)), "_fields")
    at = names.index(name) if type(names) is tuple and name in names else -1
    return tuple.__getitem__(value, at) if 0 <= at < tuple.__len__(value) else None


# ---- of errors on their way ------------------------------------------------------------------------------------


class _Left(NamedTuple):
    """What was hidden of an error that has left a span, and is on its way through those around it."""

    of: weakref.ref[BaseException] | type[BaseException]
    until: float
    hidden: tuple[str, ...]

    def is_of(self, error: BaseException) -> bool:
        """Say whether *error*, of the same id, is the one. Of built-in types only the type is known."""
        if type(self.of) is weakref.ref:
            return self.of() is error
        return self.of is type(error) and time.monotonic() < self.until

    def is_past(self, now: float) -> bool:
        """Say whether nobody will ask for it any more."""
        return self.of() is None if type(self.of) is weakref.ref else now >= self.until


_left: dict[int, _Left] = {}  # by the id of the error
_MOST_LEFT = 64
# Of one error: its own first. What is of another, that had its place and its type, falls off the end.
_MOST_TEXTS = 2 * MOST_HIDDEN
# A task's error can be waited for later; at worst, the same texts are hidden in another's.
_SECONDS_LEFT = 600


def remember(error: BaseException, hidden: Iterable[str]) -> None:
    """Note that these texts must not be said of *error* in the next few minutes."""
    try:
        of: Any = weakref.ref(error)
    except TypeError:
        of = type(error)
    now = time.monotonic()
    _left.pop(id(error), None)
    for key, left in list(_left.items()):
        if left.is_past(now):
            _left.pop(key, None)
    for oldest in list(_left)[: len(_left) - _MOST_LEFT + 1] if len(_left) >= _MOST_LEFT else ():
        _left.pop(oldest, None)
    _left[id(error)] = _Left(of, now + _SECONDS_LEFT, tuple(islice(hidden, _MOST_TEXTS)))


def remembered(error: BaseException) -> tuple[str, ...]:
    """Return what must not be said of *error*."""
    left = _left.get(id(error))
    return left.hidden if left is not None and left.is_of(error) else ()

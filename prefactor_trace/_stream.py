"""What a generator yields, folded into one result as it goes. Bounded, however many items there are.

In comes each item at the moment it is yielded, out comes one JSON object when the consumer is done:

    only strings              {"output": "<joined>"}; longer than `max_string` it is cut and marked like any string
    only bytes                {"output": {"$bytes": <size of all>}}
    anything else             {"output": [<item>, ...]}; the first 1,000, at most `max_bytes` of them, then
                              {"$truncated": "items", "length": <items>}
    with `fold`               what `fold(so_far, item)` has made of them; not an object -> {"output": ...}
    a return value, not None  beside it: {"output": ..., "returned": <value>}

`fold` is the user's code, called because they asked for it. If it raises, it is not called again, and the metadata
says why. It is given the items as they are; what annotations hide of their fields is hidden in what it makes of them:
in fields of the same names, and wherever such a text stands in it. Of items that are `Sensitive` the result is wrapped.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace import _guard
from prefactor_trace._capture import capture, capture_exception, capture_object, trimmed
from prefactor_trace._hidden import MOST_HIDDEN, hidden_in
from prefactor_trace._marks import MARKED_SECRET, Plan, Sensitive, ruled, wrapped
from prefactor_trace._redact import without_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace._capture import Limits

__all__ = ["Stream"]

_MOST_ITEMS = 1_000
_DEEPEST_PLAN = 4  # containers of what is folded in which fields of the items are looked for


class Stream:
    """The items of one generator. *limits*: of what is kept; None keeps nothing but their number.

    *rule*: what becomes of the items; of a `Plan`, only where they are folded: others are told to `add` as it will have
    them.

    Attributes:
        count: How many there were.
        first_at: What *ticks_ns* said as the first one came; 0 before.
        fold_error: What `fold` has raised, as JSON; None if it has not.
    """

    __slots__ = (
        "_binary_size",
        "_end",
        "_end_size",
        "_fold",
        "_folded",
        "_hidden",
        "_items",
        "_length",
        "_limits",
        "_longer",
        "_plan",
        "_room",
        "_sensitive",
        "_texts",
        "_ticks_ns",
        "count",
        "first_at",
        "fold_error",
    )

    def __init__(
        self,
        ticks_ns: Callable[[], int],
        limits: Limits | None,
        fold: Callable[[Any, Any], Any] | None = None,
        rule: Plan | Sensitive | None = None,
    ) -> None:
        self.count = 0
        self.first_at = 0
        self.fold_error: bytes | None = None
        self._ticks_ns = ticks_ns
        self._limits = limits
        self._fold = None if limits is None else fold
        self._folded: Any = None
        self._plan = rule if type(rule) is Plan else None
        self._sensitive = rule if type(rule) is Sensitive else None
        self._hidden: dict[str, None] = {}  # texts in the items that must not be recorded
        # As long as all are strings: the first ones singly, as they may turn out to be a list, and the rest joined.
        self._texts: list[str] | None = [] if limits is not None and fold is None else None
        self._longer: io.StringIO | None = None
        self._length = 0
        # One more than is kept, for `capture` to see that it is too long.
        self._room = 0 if limits is None else min(limits.max_string, limits.max_bytes) + 1
        # The end of what is not kept, as much as `capture` keeps of it.
        self._end = ""
        self._end_size = max(self._room >> 2, 1)
        # Otherwise: each as JSON.
        self._items: list[bytes] = []
        self._binary_size: int | None = 0

    def add(self, item: object) -> None:
        """Take the next item. Copied now: later changes to it are not seen. Never raises, but Ctrl-C passes."""
        self.count += 1
        if self.count == 1:
            self.first_at = self._ticks_ns()
        if self._texts is not None and type(item) is str:
            size = len(item)
            self._length += size
            if self._room > 0:
                self._room -= size
                if self.count <= _MOST_ITEMS:
                    self._texts.append(item if self._room >= 0 else item[: self._room])
                else:
                    self._add_longer(item)
                if self._room < 0:
                    self._end = item[self._room :][-self._end_size :]
            else:
                self._end = (self._end + item[-self._end_size :])[-self._end_size :]
        elif self._limits is not None:
            self._add_other(item, self._limits)

    def _add_longer(self, text: str) -> None:
        if self._longer is None:
            self._longer = io.StringIO(newline="")
        self._longer.write(text if self._room >= 0 else text[: self._room])

    def _add_other(self, item: object, limits: Limits) -> None:
        try:
            if self._fold is not None:
                self._call_fold(self._fold, item, limits)
            else:
                if self._texts is not None:
                    self._begin_list(self._texts, limits)
                self._add_item(item, limits)
        except Exception:
            _guard.failed("keep an item of a generator")

    def _call_fold(self, fold: Callable[[Any, Any], Any], item: object, limits: Limits) -> None:
        if self.fold_error is not None:
            return
        if self._plan is not None and len(self._hidden) < MOST_HIDDEN:
            found: list[str] = []
            hidden_in(item, self._plan, found)
            self._hidden.update(dict.fromkeys(found))
        try:
            self._folded = fold(self._folded, item)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it is not part of the program, so it cannot end it
            self.fold_error = capture_exception(error, limits, hidden=tuple(self._hidden))

    def _begin_list(self, texts: list[str], limits: Limits) -> None:
        """Make items of what was taken for one text."""
        is_cut = self._room <= 0
        if self._room < 0 and self._longer is None:
            texts = texts[:-1]  # a part of one only
        self._texts = self._longer = None
        self._end = ""
        self._room = limits.max_bytes
        if self._length or texts:
            self._binary_size = None
        for text in texts:
            self._add_item(text, limits)
        if is_cut:  # what came after them is not there, so nothing more is kept
            self._room = 0

    def _add_item(self, item: object, limits: Limits) -> None:
        """Keep *item* as JSON, if there is room for it. What stands in the list once stays whole."""
        if self._binary_size is not None:
            kind = type(item)  # told apart by `is`: `in` would ask the class of the user's class
            is_binary = kind is bytes or kind is bytearray
            self._binary_size = self._binary_size + len(item) if is_binary else None  # type: ignore[arg-type]
        if self._room <= 0 or len(self._items) >= _MOST_ITEMS:
            return
        limits = limits._replace(redact=limits.redact.built_in)  # a callable is given the whole result, later
        if self._sensitive is not None:
            item = ruled(item, self._sensitive)
        encoded = capture(item, limits)
        if len(encoded) > self._room:
            encoded = capture(item, limits._replace(max_bytes=self._room >> 1))
        self._room -= len(encoded) + 1
        if self._room >= 0:
            self._items.append(encoded)

    def result(self, returned: object, span: str = "") -> bytes | None:
        """Return all as a JSON object; None if nothing is kept. *returned*: the generator's return value."""
        limits = self._limits
        if limits is None:
            return None
        is_plain = self._plan is None and self._sensitive is None
        if self._fold is not None and is_plain and returned is None:
            return capture_object(self._folded, limits, b"output", span)
        inner = limits._replace(redact=limits.redact.built_in)
        beside = b"" if returned is None else b',"returned":%b' % capture(returned, inner)
        return limits.redact(b'{"output":%b%b}' % (self._output(inner), beside), "result", span)

    def _output(self, limits: Limits) -> bytes:
        if self._fold is not None:
            return self._of_fold(limits)
        if self._texts is not None:
            return self._labelled(self._text(self._texts, limits)) if self.count else b"[]"
        if self._binary_size is not None:
            return self._labelled(b'{"$bytes":%d}' % self._binary_size)
        items = self._items
        if len(items) < self.count:
            items = [*items, b'{"$truncated":"items","length":%d}' % self.count]
        return b"[" + b",".join(items) + b"]"

    def _labelled(self, encoded: bytes) -> bytes:
        """Return JSON that is no list, wrapped for the platform if the items are sensitive."""
        sensitive = self._sensitive
        return (
            encoded if sensitive is None else orjson.dumps(wrapped(orjson.loads(encoded), sensitive.labels))
        )

    def _of_fold(self, limits: Limits) -> bytes:
        plan = self._plan
        if self._sensitive is not None:
            return capture(ruled(self._folded, self._sensitive), limits)
        if plan is None:
            return capture(self._folded, limits)
        if len(self._hidden) >= MOST_HIDDEN:  # there may be more than are known
            return orjson.dumps(MARKED_SECRET)
        deep = plan
        for _ in range(_DEEPEST_PLAN):
            deep = Plan(plan.fields, deep)
        return without_in(capture(ruled(self._folded, deep), limits), tuple(self._hidden))

    def _text(self, texts: list[str], limits: Limits) -> bytes:
        kept = "".join(texts) + (self._longer.getvalue() if self._longer else "")
        if len(kept) == self._length:
            return capture(kept, limits)
        # `capture` cuts out the middle, and so the seam.
        cut = orjson.loads(capture(kept + self._end, limits))
        cut["length"] = self._length
        return trimmed(orjson.dumps(cut))

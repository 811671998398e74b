"""The spans of an instance: a table in the order of a tree, each row with its bar on a common time axis.

In: a `RunView`. Out: a table. What depends on the order of spans and on where a moment stands on the axis is worked
out in `_rows` and `_Axis`; the functions below them only draw.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace.server._html import Content, Html, cut, duration, element, moment, money
from prefactor_trace.server._parts import (
    NAME_LENGTH,
    Pages,
    badge,
    dict_or_empty,
    is_open,
    lasted,
    muted,
    now_microseconds,
    region,
    span_address,
    span_name,
    status_class,
)
from prefactor_trace.server._usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefactor_trace.server._fields import Json

# What a word in a span type says about the kind of step; the first one decides.
_KINDS = {
    "llm": "llm",
    "chat": "llm",
    "completion": "llm",
    "completions": "llm",
    "embedding": "llm",
    "embeddings": "llm",
    "embed_content": "llm",
    "generate_content": "llm",
    "generation": "llm",
    "responses": "llm",
    "tool": "tool",
    "agent": "agent",
    "subagent": "agent",
    "session": "agent",
    "retriever": "retrieval",
    "retrieval": "retrieval",
    "search": "retrieval",
}
# What its words would not say: `mail:messages` and `http:request` are calls of something else.
_KINDS_OF_TYPES = {"anthropic:messages": "llm", "pydantic-ai:request": "llm", "mcp:resource": "retrieval"}

_GUIDES = 12  # levels that are indented; deeper rows stand below each other and tell their level
_GUIDE = element("span", class_="guide")

_SECOND = 1_000_000  # microseconds
_LONG_STEPS = (10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200)  # seconds
_STEPS = [
    *(digit * 10**power for power in range(7) for digit in (1, 2, 5)),
    *(seconds * _SECOND for seconds in _LONG_STEPS),
    *(days * 86_400 * _SECOND for days in (1, 2, 5, 10, 20, 50, 100)),
]  # between two marks on the time axis, in microseconds


class RunView(NamedTuple):
    """What the page of an instance shows: some of its spans, *pages* saying which, and perhaps one in detail."""

    run: Json
    spans: list[Json]
    pages: Pages
    selected: Json | None

    def address_of(self, span: Json) -> str:
        """Make the address that selects *span* among the spans shown now."""
        page = self.pages.number + 1 if self.pages.number else None
        return span_address(self.run["id"], span["id"], page)


def span_table(view: RunView) -> Html:
    """Make the table of the spans. There must be at least one."""
    axis = _Axis.over(view.run, view.spans)
    return element(
        "table",
        element("caption", "Spans by start time, children below their parent", class_="unseen"),
        region("axis", "thead", _tree_head(axis)),
        element("tbody", [_span_row(view, axis, row) for row in _rows(view.spans)], data_rows=True),
        class_="spans",
        role="treegrid",
    )


# The order of the rows


class _Row(NamedTuple):
    """A span at its place in the tree."""

    span: Json
    depth: int
    has_children: bool


def _rows(spans: Sequence[Json]) -> list[_Row]:
    """Order *spans* as a tree. A span whose parent is not among them is a root; so is the first one of a ring."""
    known = {span["id"] for span in spans}
    children: dict[str | None, list[Json]] = defaultdict(list)
    for span in spans:
        parent = span.get("parent_span_id")
        children[parent if parent in known else None].append(span)
    placed: set[str] = set()
    ordered: list[tuple[Json, int]] = []
    # After the roots only rings are left: their spans are reached from the earliest of them.
    for top in chain(children[None], spans):
        open_branches = [(top, 0)]
        while open_branches:
            span, depth = open_branches.pop()
            if span["id"] not in placed:
                placed.add(span["id"])
                ordered.append((span, depth))
                open_branches.extend((child, depth + 1) for child in reversed(children[span["id"]]))
    depths = [depth for _, depth in ordered] + [0]
    return [_Row(span, depth, depths[index + 1] > depth) for index, (span, depth) in enumerate(ordered)]


# The time axis


class _Axis(NamedTuple):
    """The time that a run covers, in microseconds since 1970."""

    start: int
    end: int
    is_open: bool

    @classmethod
    def over(cls, run: Json, spans: Iterable[Json]) -> _Axis:
        moments = [run.get("started_at"), run.get("finished_at")]
        for span in spans:
            moments += (span.get("started_at"), span.get("finished_at"))
        known = [at for at in map(moment, moments) if at is not None]
        goes_on = is_open(run)
        if goes_on or not known:
            known.append(now_microseconds())
        return cls(min(known), max(known), goes_on)

    @property
    def now(self) -> int | None:
        """The present moment while the run goes on, None once it is over."""
        return self.end if self.is_open else None

    def place(self, at: int) -> float:
        """Say where *at* stands, in percent of the axis."""
        return 100 * (at - self.start) / max(self.end - self.start, 1)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the places to mark, three to six, and their times; no text where it would stand outside."""
        length = max(self.end - self.start, 1)
        step = next((step for step in _STEPS if length / step < 6), length // 5)
        for at in range(0, length, step):
            yield 100 * at / length, _tick(at) if at / length < 0.87 else ""


def _tick(microseconds: int) -> str:
    for unit, size in (("s", _SECOND), ("ms", 1_000), ("µs", 1)):
        if size <= microseconds < 60 * _SECOND:
            return f"{microseconds / size:g} {unit}"
    return duration(microseconds).removesuffix(" 0 s").removesuffix(" 0 m") if microseconds else "0"


# Drawing


def _tree_head(axis: _Axis) -> Html:
    names = [("name", "Name"), ("type", "Span type"), ("status", "Status"), ("number", "Duration")]
    marks = []
    labels = []
    for place, text in axis.ticks():
        x = f"{place:.3f}%"
        marks.append(element("line", x1=x, x2=x, y1="0", y2="100%"))
        if text:
            labels.append(element("text", text, x=x, dx="4", y="70%"))
    grid = element("g", marks, id="grid", class_="grid")
    scale = element("svg", grid, labels, class_="axis", role="img", aria_label="Time since the run started")
    heads = [element("th", text, scope="col", class_=name) for name, text in names]
    return element("tr", heads, element("th", scale, scope="col", class_="bar"))


def _span_row(view: RunView, axis: _Axis, row: _Row) -> Html:
    span = row.span
    is_selected = view.selected is not None and view.selected["id"] == span["id"]
    span_type = span["schema_name"]
    return element(
        "tr",
        _name_cell(row, view.address_of(span)),
        element("td", cut(span_type, 60), class_="type"),
        element("td", badge(span["status"]), class_="status"),
        element("td", lasted(span, axis.now), class_="number"),
        element("td", _bar(axis, span), class_="bar"),
        id=f"span-{span['id']}",
        class_=f"{status_class(span['status'])} {_kind_of(span_type)}",
        aria_level=row.depth + 1,
        aria_expanded="true" if row.has_children else None,
        aria_selected="true" if is_selected else "false",
    )


def _name_cell(row: _Row, address: str) -> Html:
    parts: Content = [
        [_GUIDE] * min(row.depth, _GUIDES),
        element("span", class_="twist"),
        row.depth > _GUIDES and muted(f"level {row.depth + 1} "),
        element("a", cut(span_name(row.span), NAME_LENGTH), href=address),
        _row_extras(row.span),
    ]
    return element("td", element("div", parts), class_="name")


def _row_extras(span: Json) -> Iterator[Html]:
    # Tokens and cost stand before what may be long: the summary and the name are cut before them.
    usage = usage_of(dict_or_empty(span.get("payload")), span.get("result_payload"))
    if usage is not None:
        cost = "" if usage.usd is None else f" · {money(usage.usd)}"
        yield element("span", f"{usage.total_tokens:,} tokens{cost}", class_="used")
    if summary := span.get("summary"):
        yield element("span", cut(summary, NAME_LENGTH), class_="summary")


def _bar(axis: _Axis, span: Json) -> Html | None:
    start = moment(span.get("started_at"))
    if start is None:
        return None
    goes_on = is_open(span)
    end = moment(span.get("finished_at")) or (axis.end if goes_on else start)
    x, right = axis.place(start), axis.place(max(end, start))
    stripes = None
    if goes_on or span["status"] == "cancelled":  # a dashed line over the bar: moving stripes, or hatching
        stripes = element("line", x1=f"{x:.3f}%", x2=f"{right:.3f}%", y1="50%", y2="50%")
    bar = element("rect", x=f"{x:.3f}%", width=f"{right - x:.3f}%", y="8", height="12", rx="2")
    since_start = duration(max(start - axis.start, 0))
    title = element("title", f"{lasted(span, axis.now)}, {since_start} after the start of the run")
    # The grid is drawn once, in the head of the table, and only referred to here.
    moving = "moving" if goes_on and axis.is_open else None
    return element("svg", title, element("use", href="#grid"), bar, stripes, role="img", class_=moving)


def _kind_of(span_type: str) -> str:
    """Read the kind of step from a span type such as `langchain:tool:search`, for its colour."""
    words = span_type.replace("-", ":").replace(".", ":").lower().split(":")
    by_words = next((_KINDS[word] for word in words if word in _KINDS), "step")
    return _KINDS_OF_TYPES.get(span_type, by_words)

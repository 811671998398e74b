"""Parts that several pages share: names, states and lengths of time, lists, facts and links to other pages of a list.

In: agents, instances and spans as the store returns them. Out: text, or elements to put into a page. No page is made
here, and nothing is read from the store; the only thing asked of the machine is the time, in `now_microseconds`.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace.server._html import NOTHING, Attribute, Content, Html, duration, element, moment, path
from prefactor_trace.server._resources import FINISHED_INSTANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefactor_trace.server._fields import Json

STATUSES = ("pending", "active", *FINISHED_INSTANCE)
NAME_LENGTH = 120  # characters of a name or summary in a row; the details have all of it


# Names


def agent_name(agent: Json) -> str:
    return str(agent.get("name") or agent["id"])


def run_name(run: Json) -> str:
    return str(run.get("agent_name") or run["agent_id"])


def span_name(span: Json) -> str:
    """Return the name that the payload gives, or else the span type."""
    name = dict_or_empty(span.get("payload")).get("name")
    return name if isinstance(name, str) and name.strip() else str(span["schema_name"])


def dict_or_empty(value: object) -> Json:
    return value if isinstance(value, dict) else {}


# States and times


@lru_cache(maxsize=32)
def badge(status: str) -> Html:
    return element("span", status, class_=f"badge {status_class(status)}")


def status_class(status: str) -> str:
    return status if status in STATUSES else "unknown"


def status_counts(counts: Json) -> list[Html]:
    """Show how many there are in each state, leaving out states without any."""
    return [
        element("span", f"{counts[status]:,} {status}", class_=f"count {status}")
        for status in STATUSES
        if counts.get(status)
    ]


def is_open(resource: Json) -> bool:
    """Say whether an instance or a span is still to end."""
    return resource["status"] in {"pending", "active"}


def now_microseconds() -> int:
    return time.time_ns() // 1_000


def present(run: Json) -> int | None:
    """Return the present moment while *run* goes on, None once it is over."""
    return now_microseconds() if is_open(run) else None


def lasted(resource: Json, until: int | None) -> str:
    """Write how long an instance or a span took, or, if it has no end, has taken *until* then (None: unknown)."""
    start = moment(resource.get("started_at"))
    end = moment(resource.get("finished_at")) or until
    return NOTHING if start is None or end is None else duration(max(end - start, 0))


# Pieces of a page


def region(key: str, tag: str, *content: Content, **attributes: Attribute) -> Html:
    """Make a part of the page that the script replaces as a whole, when it has changed."""
    return element(tag, content, data_region=key, **attributes)


def muted(text: str) -> Html:
    return element("span", text, class_="muted")


def fact_list(*facts: tuple[str, Content]) -> Html:
    """List names with their values, leaving out facts without a value."""
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts if value]
    return element("dl", pairs, class_="facts")


def list_table(columns: Sequence[tuple[str, str]], rows: Sequence[Html], caption: str) -> Html:
    """Make a list. *columns*: class and heading. The script keeps rows by their ids when it refreshes."""
    headings = [element("th", heading, scope="col", class_=name) for name, heading in columns]
    return element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", headings)),
        element("tbody", rows, data_rows=True),
        class_="list",
    )


# Pages of a list, and addresses


class Pages(NamedTuple):
    """Where a page of *size* stands among *total*; *number* counts from 0."""

    number: int
    size: int
    total: int

    @property
    def last(self) -> int:
        return max(self.total - 1, 0) // self.size

    def __str__(self) -> str:
        first = self.number * self.size + 1
        shown = f"{first:,} to {min(first + self.size - 1, self.total):,}" if first <= self.total else "none"
        return f"{shown} of {self.total:,}"


def page_number(query: Mapping[str, str]) -> int:
    """Read `?page=`, which counts from 1 for people, as a number from 0."""
    asked = query.get("page", "")
    return max(int(asked) - 1, 0) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0


def pager(pages: Pages, what: str, address: Callable[[int], str], words: tuple[str, str]) -> Html | None:
    """Say which part is shown, with links to what stands before and after it. *address* of a page counts from 1."""
    if pages.last == 0 and pages.number == 0:
        return None
    before, after = words
    links = []
    if pages.number > 0:
        previous = min(pages.number, pages.last + 1)
        links.append(element("a", f"← {before}", href=address(previous), rel="prev"))
    if pages.number < pages.last:
        links.append(element("a", f"{after} →", href=address(pages.number + 2), rel="next"))
    return element(
        "nav", element("span", f"Showing {what} {pages}"), links, class_="pager", aria_label="Pages"
    )


def span_address(run_id: str, span_id: str, page: int | None = None) -> str:
    """Make the address of a run with this span selected, and in sight. *page* counts from 1."""
    return f"{path('instances', run_id, page=page, span=span_id)}#span-{span_id}"

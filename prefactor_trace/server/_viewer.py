"""The web viewer: agents, an agent's instances, and one instance as a tree of spans on a time axis.

In: requests that the guard has let through, and the store's resources. Out: complete HTML pages, which need neither
script nor another request than the style sheet; `static/viewer.js` makes them pleasant (keyboard, live refresh,
collapsing) by asking for the same pages again. Every page is made from elements (`_html.py`), so nothing that an
agent recorded is ever markup. Nothing changes on GET. Pages are made on Starlette's worker threads.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from prefactor_trace._ids import is_pfid
from prefactor_trace.server._html import (
    Attribute,
    Content,
    Html,
    cut,
    document,
    duration,
    element,
    moment,
    path,
    pretty_json,
    time_of,
)
from prefactor_trace.server._store import InvalidAction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from starlette.requests import Request

    from prefactor_trace.server._store import Store

_STATIC = Path(__file__).parent / "static"
_STATUSES = ("pending", "active", "complete", "failed", "cancelled", "terminated")
_KINDS = {
    "llm": "llm",
    "chat": "llm",
    "tool": "tool",
    "agent": "agent",
    "subagent": "agent",
    "session": "agent",
    "retriever": "retrieval",
    "retrieval": "retrieval",
    "search": "retrieval",
}

_INSTANCES_PER_PAGE = 50
_SPANS_PER_PAGE = 1_000
_NAME_LENGTH = 120  # characters of a name or summary in a row; the details have all of it
_GUIDES = 12  # levels that are indented; deeper rows stand below each other and tell their level
_RUN_REFRESH_MILLISECONDS = 1_500
_LIST_REFRESH_MILLISECONDS = 4_000

_FIRST_RUN = """\
import prefactor_trace as pt

with pt.instance(agent_name="my-agent"):
    ...
"""

_SECOND = 1_000_000  # microseconds
_LONG_STEPS = (10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200)  # seconds
_STEPS = [
    *(digit * 10**power for power in range(7) for digit in (1, 2, 5)),
    *(seconds * _SECOND for seconds in _LONG_STEPS),
    *(days * 86_400 * _SECOND for days in (1, 2, 5, 10, 20, 50, 100)),
]  # between two marks on the time axis, in microseconds

_ENVELOPE = (
    "name",
    "inputs",
    "metadata",
    "token_usage",
    "error",
)  # keys of a payload; API contract section 3.7
_NOTHING = "\N{EN DASH}"  # stands where there is no value
_GUIDE = element("span", class_="guide")

Resource = dict[str, Any]


def viewer_routes(store: Store) -> list[BaseRoute]:
    """Return the viewer's routes over *store*. They do not authenticate: the guard stands in front of them."""
    viewer = _Viewer(store)
    return [
        Route("/", viewer.agents),
        Route("/agents/{agent_id}", viewer.agent),
        Route("/instances/{instance_id}", viewer.instance),
        Route("/instances/{instance_id}/spans/{span_id}", viewer.span),
        Route("/instances/{instance_id}/terminate", viewer.terminate, methods=["POST"]),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]


class _Viewer:
    """Reads what a request asks for from the store; the functions below turn it into pages."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def agents(self, _request: Request) -> Response:
        return _page(
            "Agents", [("Agents", None)], _agents(self._store.agents()), refresh=_LIST_REFRESH_MILLISECONDS
        )

    def agent(self, request: Request) -> Response:
        agent = self._found_agent(request.path_params["agent_id"])
        if agent is None:
            return _not_found("agent")
        environments = self._store.environments()
        wanted = _Filter.read(request, environments)
        instances, total = self._store.instances(
            agent["id"],
            environment_id=wanted.environment_id,
            status=wanted.status,
            offset=wanted.page * _INSTANCES_PER_PAGE,
            limit=_INSTANCES_PER_PAGE,
        )
        name = _name_of(agent)
        content = _agent(agent, environments, wanted, instances, total)
        return _page(name, [("Agents", path()), (name, None)], content, refresh=_LIST_REFRESH_MILLISECONDS)

    def instance(self, request: Request) -> Response:
        run = self._found_instance(request.path_params["instance_id"])
        if run is None:
            return _not_found("instance")
        page = _page_number(request)
        spans, total = self._store.spans(run["id"], offset=page * _SPANS_PER_PAGE, limit=_SPANS_PER_PAGE)
        selected = self._found_span(run, request.query_params.get("span", ""))
        view = _View(run, spans, _Pages(page, _SPANS_PER_PAGE, total), selected)
        return _page(
            f"{_agent_name(run)} · {run['status']}",
            [*_crumbs_to(run), (run["id"], None)],
            _instance(view),
            refresh=_RUN_REFRESH_MILLISECONDS if _is_open(run) else None,
        )

    def span(self, request: Request) -> Response:
        run = self._found_instance(request.path_params["instance_id"])
        span = self._found_span(run, request.path_params["span_id"]) if run else None
        if run is None or span is None:
            return _not_found("span")
        crumbs = [*_crumbs_to(run), (run["id"], path("instances", run["id"])), (_name_of_span(span), None)]
        return _page(_name_of_span(span), crumbs, _details(run, span))

    async def terminate(self, request: Request) -> Response:
        run = await run_in_threadpool(self._found_instance, request.path_params["instance_id"])
        if run is None:
            return _not_found("instance")
        reason = await _posted_reason(request)
        if not reason:
            return _problem(422, "A reason is needed", "Say why the run is stopped; the agent is told.", run)
        try:
            await run_in_threadpool(self._store.terminate, run["id"], reason)
        except InvalidAction:
            return _problem(409, "This run is not active", "Only an active run can be terminated.", run)
        return RedirectResponse(path("instances", run["id"]), status_code=303)

    def _found_agent(self, agent_id: str) -> Resource | None:
        return self._store.agent(agent_id) if is_pfid(agent_id) else None

    def _found_instance(self, instance_id: str) -> Resource | None:
        return self._store.instance(instance_id) if is_pfid(instance_id) else None

    def _found_span(self, run: Resource, span_id: str) -> Resource | None:
        span = self._store.span(span_id) if is_pfid(span_id) else None
        return span if span and span["agent_instance_id"] == run["id"] else None


# What a request asks for


class _Filter(NamedTuple):
    """Which of an agent's instances are wanted; what makes no sense in a query is left out."""

    environment_id: str | None
    status: str | None
    page: int

    @classmethod
    def read(cls, request: Request, environments: Iterable[Resource]) -> _Filter:
        environment_id = request.query_params.get("environment")
        status = request.query_params.get("status")
        known = {environment["id"] for environment in environments}
        return cls(
            environment_id if environment_id in known else None,
            status if status in _STATUSES else None,
            _page_number(request),
        )


class _Pages(NamedTuple):
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


def _page_number(request: Request) -> int:
    """Read `?page=`, which counts from 1 for people, as a number from 0."""
    asked = request.query_params.get("page", "")
    return max(int(asked) - 1, 0) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0


async def _posted_reason(request: Request) -> str:
    form = parse_qs((await request.body()).decode(errors="replace"))  # the guard has bounded the body
    return form.get("reason", [""])[0].strip()


# Every page


def _page(
    title: str,
    crumbs: Sequence[tuple[str, str | None]],
    content: Content,
    *,
    status: int = 200,
    refresh: int | None = None,
) -> HTMLResponse:
    """Make the answer. *refresh*: the script asks again after so many milliseconds, as long as a page says so."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # With "no-referrer" a browser posts the Terminate form as `Origin: null`, which the guard rightly refuses.
        element("meta", name="referrer", content="same-origin"),
        element("title", f"{cut(title, _NAME_LENGTH)} · Prefactor Trace"),
        element("link", rel="icon", href=path("static", "favicon.svg"), type="image/svg+xml"),
        element("link", rel="stylesheet", href=path("static", "viewer.css")),
        element("script", src=path("static", "viewer.js"), defer=True),
    ]
    body = [
        element("a", "Skip to content", class_="skip", href="#main"),
        element("header", _brand(), _breadcrumb(crumbs), class_="top"),
        element("main", content, id="main", tabindex=-1, data_refresh=refresh),
    ]
    return HTMLResponse(document(head, body), status)


def _brand() -> Html:
    mark = element("img", src=path("static", "favicon.svg"), alt="", width=20, height=20)
    return element("a", mark, element("span", "Prefactor Trace"), class_="brand", href=path())


def _breadcrumb(crumbs: Sequence[tuple[str, str | None]]) -> Html:
    items = [
        element("li", element("a", cut(text, 60), href=address) if address else _here(text))
        for text, address in crumbs
    ]
    return element("nav", element("ol", items), aria_label="Breadcrumb")


def _here(text: str) -> Html:
    return element("span", cut(text, 60), aria_current="page")


def _crumbs_to(run: Resource) -> list[tuple[str, str | None]]:
    return [("Agents", path()), (_agent_name(run), path("agents", run["agent_id"]))]


def _not_found(what: str) -> HTMLResponse:
    text = f"There is no {what} with this id here. It may belong to another database."
    content = [
        element("h1", "Not found"),
        element("p", text),
        element("p", element("a", "All agents", href=path())),
    ]
    return _page("Not found", [("Agents", path())], element("section", content, class_="message"), status=404)


def _problem(status: int, title: str, text: str, run: Resource) -> HTMLResponse:
    back = element("a", "Back to the run", href=path("instances", run["id"]))
    content = [element("h1", title), element("p", text), element("p", back)]
    return _page(title, _crumbs_to(run), element("section", content, class_="message"), status=status)


@lru_cache(maxsize=32)
def _badge(status: str) -> Html:
    return element("span", status, class_=f"badge {_class_of(status)}")


def _class_of(status: str) -> str:
    return status if status in _STATUSES else "unknown"


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Html], caption: str) -> Html:
    """Make a list. *columns*: class and heading. The script keeps rows by their ids when it refreshes."""
    headings = [element("th", heading, scope="col", class_=name) for name, heading in columns]
    return element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", headings)),
        element("tbody", rows, data_rows=True),
        class_="list",
    )


def _pager(pages: _Pages, what: str, address: Callable[[int], str], words: tuple[str, str]) -> Html | None:
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


# Agents


def _agents(agents: Sequence[Resource]) -> Content:
    if not agents:
        return [element("h1", "Agents"), _region("agents", "section", _no_agents(), class_="message")]
    columns = [
        ("name", "Agent"),
        ("number", "Instances"),
        ("states", "By status"),
        ("time", "Last activity (UTC)"),
        ("id", "Agent ID"),
    ]
    table = _table(columns, [_agent_row(agent) for agent in agents], "Agents, most recently active first")
    return [element("h1", "Agents"), table]


def _no_agents() -> Content:
    return [
        element("h2", "No agents yet"),
        element("p", "Run an agent with these two lines, and its run shows up here by itself:"),
        element("pre", element("code", _FIRST_RUN)),
        element(
            "p",
            "Decorate its steps with ",
            element("code", "@pt.span"),
            " to see what happens inside the run.",
        ),
    ]


def _agent_row(agent: Resource) -> Html:
    address = path("agents", agent["id"])
    about = agent.get("description")
    counts = agent.get("instance_counts") or {}
    return element(
        "tr",
        element(
            "td",
            element("a", cut(_name_of(agent), _NAME_LENGTH), href=address),
            about and _muted(cut(about, _NAME_LENGTH)),
        ),
        element("td", f"{counts.get('total', 0):,}", class_="number"),
        element("td", _states(counts), class_="states"),
        element("td", time_of(agent.get("last_activity_span_at")), class_="time"),
        element("td", agent["id"], class_="id"),
        id=f"agent-{agent['id']}",
    )


def _states(counts: Resource) -> list[Html]:
    """Show how many there are in each state, leaving out states without any."""
    return [
        element("span", f"{counts[status]:,} {status}", class_=f"count {status}")
        for status in _STATUSES
        if counts.get(status)
    ]


def _muted(text: str) -> Html:
    return element("span", text, class_="muted")


def _name_of(agent: Resource) -> str:
    return str(agent.get("name") or agent["id"])


def _region(key: str, tag: str, *content: Content, **attributes: Attribute) -> Html:
    """Make a part of the page that the script replaces as a whole, when it has changed."""
    return element(tag, content, data_region=key, **attributes)


# One agent


def _agent(
    agent: Resource,
    environments: Sequence[Resource],
    wanted: _Filter,
    instances: Sequence[Resource],
    total: int,
) -> Content:
    pages = _Pages(wanted.page, _INSTANCES_PER_PAGE, total)

    def address(page: int) -> str:
        return path("agents", agent["id"], environment=wanted.environment_id, status=wanted.status, page=page)

    return [
        element("h1", _name_of(agent)),
        agent.get("description") and element("p", agent["description"], class_="about"),
        element("p", "Agent ", element("code", agent["id"]), class_="muted"),
        _filters(agent, environments, wanted),
        _instance_table(instances)
        if instances
        else _region("none", "section", _no_instances(agent, wanted), class_="message"),
        _region("pager", "div", _pager(pages, "instances", address, ("Newer", "Older"))),
    ]


def _filters(agent: Resource, environments: Iterable[Resource], wanted: _Filter) -> Html:
    names = [
        (environment["id"], environment.get("name") or environment["id"]) for environment in environments
    ]
    clear = (
        element("a", "Clear", href=path("agents", agent["id"]))
        if wanted.environment_id or wanted.status
        else None
    )
    return element(
        "form",
        _select("environment", "Environment", names, wanted.environment_id),
        _select("status", "Status", [(status, status) for status in _STATUSES], wanted.status),
        element("button", "Apply", type="submit"),
        clear,
        method="get",
        action=path("agents", agent["id"]),
        class_="filters",
    )


def _select(name: str, label: str, options: Iterable[tuple[str, str]], chosen: str | None) -> Html:
    choices = [element("option", text, value=value, selected=value == chosen) for value, text in options]
    every = element("option", "All", value="")
    return element("label", label, element("select", every, choices, name=name))


def _no_instances(agent: Resource, wanted: _Filter) -> Content:
    if wanted == _Filter(None, None, 0):
        return [element("h2", "No instances yet"), element("p", "This agent is known, but it has not run.")]
    every = element("a", "Show all instances", href=path("agents", agent["id"]))
    return [element("h2", "No instances here"), element("p", "No run of this agent fits. ", every, ".")]


def _instance_table(instances: Iterable[Resource]) -> Html:
    columns = [
        ("id", "Instance"),
        ("status", "Status"),
        ("time", "Started (UTC)"),
        ("number", "Duration"),
        ("version", "Version"),
        ("environment", "Environment"),
        ("number", "Spans"),
        ("of-which", "Of which"),
    ]
    now = _now()
    return _table(columns, [_instance_row(run, now) for run in instances], "Instances, newest first")


def _instance_row(run: Resource, now: int) -> Html:
    counts = run.get("span_counts") or {}
    notable = {status: counts.get(status) for status in ("active", "failed", "cancelled")}
    return element(
        "tr",
        element("td", element("a", run["id"], href=path("instances", run["id"])), class_="id"),
        element("td", _badge(run["status"]), class_="status"),
        element("td", time_of(run.get("started_at") or run.get("inserted_at")), class_="time"),
        element("td", _lasted(run, now if _is_open(run) else None), class_="number"),
        element("td", cut(run.get("agent_version_identifier") or _NOTHING, 40), class_="version"),
        element("td", cut(run.get("environment_name") or _NOTHING, 40), class_="environment"),
        element("td", f"{counts.get('total', 0):,}", class_="number"),
        element("td", _states(notable), class_="of-which"),
        id=f"instance-{run['id']}",
    )


def _is_open(run: Resource) -> bool:
    return run["status"] in {"pending", "active"}


def _now() -> int:
    return time.time_ns() // 1_000


def _lasted(resource: Resource, now: int | None) -> str:
    """Write how long an instance or a span took, or has taken until *now* (None: nobody knows)."""
    start = moment(resource.get("started_at"))
    end = moment(resource.get("finished_at")) or now
    return _NOTHING if start is None or end is None else duration(max(end - start, 0))


# One instance


class _View(NamedTuple):
    """What the page of an instance shows."""

    run: Resource
    spans: list[Resource]
    pages: _Pages
    selected: Resource | None


def _instance(view: _View) -> Content:
    return [
        _run_header(view),
        element(
            "div",
            element("section", _activity(view), class_="tree", aria_label="Activity"),
            _details(view.run, view.selected) if view.selected else None,
            class_="activity split" if view.selected else "activity",
        ),
    ]


def _run_header(view: _View) -> Html:
    run = view.run
    title = _region(
        "title",
        "div",
        element("h1", _agent_name(run)),
        _badge(run["status"]),
        element("span", "live", class_="live") if _is_open(run) else None,
    )
    terminate = _terminate_form(run) if run["status"] == "active" else None
    return element(
        "header",
        element("div", title, _region("terminate", "div", terminate), class_="title"),
        _region("facts", "div", _run_facts(run), _span_counts(view)),
        class_="run",
    )


def _run_facts(run: Resource) -> Html:
    version, name = run.get("agent_version_identifier"), run.get("agent_version_name")
    if version and name and name not in (version, _agent_name(run)):
        version = f"{version} ({name})"
    return _facts(
        ("Started (UTC)", time_of(run.get("started_at"))),
        ("Finished (UTC)", time_of(run.get("finished_at"))),
        ("Duration", _lasted(run, _now() if _is_open(run) else None)),
        ("Version", version),
        ("Environment", run.get("environment_name")),
        ("Purpose", run.get("purpose")),
        ("Instance ID", element("code", run["id"])),
        ("External ID", run.get("external_identifier")),
        ("Terminated because", run.get("termination_reason")),
    )


def _facts(*facts: tuple[str, Content]) -> Html:
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts if value]
    return element("dl", pairs, class_="facts")


def _terminate_form(run: Resource) -> Html:
    reason = element("input", name="reason", required=True, maxlength=500, autocomplete="off", type="text")
    form = element(
        "form",
        element("p", "The agent is stopped at its next step. This cannot be undone."),
        element("label", "Reason, which the agent is told", reason),
        element("button", "Terminate this run", type="submit", class_="danger"),
        method="post",
        action=path("instances", run["id"], "terminate"),
    )
    return element("details", element("summary", "Terminate…"), form, class_="terminate")


def _span_counts(view: _View) -> Html:
    """Show the number of spans per state; failed ones lead to the first of them in the tree."""
    counts = dict(view.run.get("span_counts") or {})
    total = counts.get("total", view.pages.total)
    every = element("span", f"{total:,} span{'' if total == 1 else 's'}", class_="count")
    first_failed = next((span for span in view.spans if span["status"] == "failed"), None)
    if first_failed is None:
        return element("p", every, _states(counts), class_="counts")
    failed = _states({"failed": counts.pop("failed", 0)})
    link = element("a", failed, href=_span_address(view, first_failed), data_select=first_failed["id"])
    return element("p", every, link, _states(counts), class_="counts")


def _activity(view: _View) -> Content:
    if not view.spans:
        text = "Its spans show up here as they end." if _is_open(view.run) else "This run recorded no spans."
        return _region("none", "div", element("p", text), class_="message")
    axis = _Axis.over(view.run, view.spans)
    return [
        _region("pager", "div", _span_pager(view)),
        element(
            "table",
            element("caption", "Spans by start time, children below their parent", class_="unseen"),
            _region("axis", "thead", _tree_head(axis)),
            element("tbody", [_span_row(view, axis, row) for row in _rows(view.spans)], data_rows=True),
            class_="spans",
            role="treegrid",
        ),
    ]


def _span_pager(view: _View) -> Html | None:
    def address(page: int) -> str:
        return path("instances", view.run["id"], page=page)

    return _pager(view.pages, "spans", address, ("Earlier", "Later"))


# The tree


class _Row(NamedTuple):
    """A span at its place in the tree."""

    span: Resource
    depth: int
    has_children: bool


def _rows(spans: Sequence[Resource]) -> list[_Row]:
    """Order *spans* as a tree. A span whose parent is not among them is a root; so is the first one of a ring."""
    known = {span["id"] for span in spans}
    children: dict[str | None, list[Resource]] = defaultdict(list)
    for span in spans:
        parent = span.get("parent_span_id")
        children[parent if parent in known else None].append(span)
    placed: set[str] = set()
    ordered: list[tuple[Resource, int]] = []
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


class _Axis(NamedTuple):
    """The time that a run covers, in microseconds since 1970."""

    start: int
    end: int
    is_open: bool

    @classmethod
    def over(cls, run: Resource, spans: Iterable[Resource]) -> _Axis:
        moments = [run.get("started_at"), run.get("finished_at")]
        for span in spans:
            moments += (span.get("started_at"), span.get("finished_at"))
        known = [at for at in map(moment, moments) if at is not None]
        is_open = _is_open(run)
        if is_open or not known:
            known.append(_now())
        return cls(min(known), max(known), is_open)

    @property
    def now(self) -> int | None:
        """The present moment of a run that goes on."""
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


def _span_row(view: _View, axis: _Axis, row: _Row) -> Html:
    span = row.span
    is_selected = view.selected is not None and view.selected["id"] == span["id"]
    name = _name_of_span(span)
    kind = span["schema_name"]
    return element(
        "tr",
        element(
            "td",
            [_GUIDE] * min(row.depth, _GUIDES),
            element("span", class_="twist"),
            row.depth > _GUIDES and _muted(f"level {row.depth + 1} "),
            element("a", cut(name, _NAME_LENGTH), href=_span_address(view, span)),
            _row_extras(span),
            class_="name",
        ),
        element("td", cut(kind, 60), class_="type"),
        element("td", _badge(span["status"]), class_="status"),
        element("td", _lasted(span, axis.now), class_="number"),
        element("td", _bar(axis, span), class_="bar"),
        id=f"span-{span['id']}",
        class_=f"{_class_of(span['status'])} {_kind_of(kind)}",
        aria_level=row.depth + 1,
        aria_expanded="true" if row.has_children else None,
        aria_selected="true" if is_selected else "false",
    )


def _row_extras(span: Resource) -> Iterator[Html]:
    if summary := span.get("summary"):
        yield element("span", cut(summary, _NAME_LENGTH), class_="summary")
    tokens = _fields(_fields(span.get("payload")).get("token_usage")).get("total_tokens")
    if isinstance(tokens, int):
        yield element("span", f"{tokens:,} tokens", class_="tokens")


def _bar(axis: _Axis, span: Resource) -> Html | None:
    start = moment(span.get("started_at"))
    if start is None:
        return None
    is_active = span["status"] in {"active", "pending"}
    end = moment(span.get("finished_at")) or (axis.end if is_active else start)
    x, right = axis.place(start), axis.place(max(end, start))
    stripes = None
    if is_active or span["status"] == "cancelled":  # a dashed line over the bar: moving stripes, or hatching
        stripes = element("line", x1=f"{x:.3f}%", x2=f"{right:.3f}%", y1="50%", y2="50%")
    bar = element("rect", x=f"{x:.3f}%", width=f"{right - x:.3f}%", y="8", height="12", rx="2")
    title = element("title", f"{_lasted(span, axis.now)}, {_after(axis.start, start)}")
    # The grid is drawn once, in the head of the table, and only referred to here.
    moving = "moving" if is_active and axis.is_open else None
    return element("svg", title, element("use", href="#grid"), bar, stripes, role="img", class_=moving)


def _after(run_start: int, start: int) -> str:
    return f"{duration(max(start - run_start, 0))} after the start of the run"


def _span_address(view: _View, span: Resource) -> str:
    page = view.pages.number + 1 if view.pages.number else None
    return f"{path('instances', view.run['id'], page=page, span=span['id'])}#span-{span['id']}"


def _agent_name(run: Resource) -> str:
    return str(run.get("agent_name") or run["agent_id"])


def _name_of_span(span: Resource) -> str:
    name = _fields(span.get("payload")).get("name")
    return name if isinstance(name, str) and name.strip() else str(span["schema_name"])


def _kind_of(schema_name: str) -> str:
    """Read the kind of step from a span type such as `langchain:tool:search`, for its colour."""
    words = schema_name.replace("-", ":").replace(".", ":").lower().split(":")
    return next((_KINDS[word] for word in words if word in _KINDS), "step")


def _fields(value: object) -> Resource:
    return value if isinstance(value, dict) else {}


# The details of a span


def _details(run: Resource, span: Resource) -> Html:
    close = element(
        "a",
        "\N{MULTIPLICATION SIGN}",
        href=path("instances", run["id"]),
        class_="close",
        aria_label="Close details",
    )
    title = element("h2", _name_of_span(span))
    return _region(
        "details",
        "aside",
        element("header", title, _badge(span["status"]), close),
        _span_facts(run, span),
        _sections(span),
        class_="details",
        aria_label="Span details",
        data_span=span["id"],
    )


def _span_facts(run: Resource, span: Resource) -> Html:
    parent = span.get("parent_span_id")
    started, run_started = moment(span.get("started_at")), moment(run.get("started_at"))
    title = span.get("schema_title")
    return _facts(
        ("Started (UTC)", time_of(span.get("started_at"))),
        ("Finished (UTC)", time_of(span.get("finished_at"))),
        ("Duration", _lasted(span, _now() if _is_open(run) else None)),
        ("Into the run", duration(max(started - run_started, 0)) if started and run_started else None),
        ("Span type", element("code", span["schema_name"])),
        ("Title", title if title != span["schema_name"] else None),
        ("Summary", span.get("summary")),
        (
            "Span ID",
            element("a", element("code", span["id"]), href=path("instances", run["id"], "spans", span["id"])),
        ),
        ("Parent span", parent and _span_link(run, parent)),
    )


def _span_link(run: Resource, span_id: str) -> Html:
    if not is_pfid(span_id):  # an official SDK may name a parent by its own kind of id
        return element("code", span_id)
    address = f"{path('instances', run['id'], span=span_id)}#span-{span_id}"
    return element("a", element("code", span_id), href=address, data_select=span_id)


def _sections(span: Resource) -> list[Html]:
    """Show what went in and came out, each part under its own heading; parts that are not there are left out."""
    payload, result = _fields(span.get("payload")), span.get("result_payload")
    error = payload.get("error")
    if span["status"] == "failed" and error in (None, result) and "error_type" in _fields(result):
        error, result = result, None
    others = {key: value for key, value in payload.items() if key not in _ENVELOPE}
    is_enveloped = any(key in payload for key in _ENVELOPE)
    return [
        _section(key, title, content)
        for key, title, content in (
            ("error", "Error", error and _error(error)),
            ("inputs", "Inputs", _json(payload.get("inputs"))),
            ("result", "Result", _json(result)),
            ("tokens", "Token usage", _json(payload.get("token_usage"))),
            ("metadata", "Metadata", _json(payload.get("metadata"))),
            ("others", "Other payload fields" if is_enveloped else "Payload", _json(others or None)),
        )
        if content
    ]


def _section(key: str, title: str, content: Content) -> Html:
    return element(
        "details", element("summary", title), element("div", content), class_=key, data_section=key, open=True
    )


def _json(value: object) -> Html | None:
    return None if value is None else pretty_json(value)


def _error(error: object) -> Content:
    """Show an error as people know it: its type, its message, its stack trace; anything else it has as JSON."""
    fields = dict(_fields(error))
    texts = {
        key: fields.pop(key)
        for key in ("error_type", "message", "stacktrace")
        if isinstance(fields.get(key), str)
    }
    if not texts:
        return pretty_json(error)
    heading = element("strong", texts["error_type"]) if "error_type" in texts else None
    stack = texts.get("stacktrace")
    return [
        element("p", heading, ": " if heading and texts.get("message") else None, texts.get("message")),
        element("pre", element("code", stack), class_="stack") if stack else None,
        pretty_json(fields) if fields else None,
    ]

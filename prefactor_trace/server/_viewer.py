"""The web viewer: agents, an agent's instances, and one instance as a tree of spans on a time axis.

In: requests that the guard has let through, and the store's resources. Out: complete HTML pages, which need neither
script nor another request than the style sheet; `static/viewer.js` makes them pleasant (keyboard, live refresh,
collapsing) by asking for the same pages again. Every page is made from elements (`_html.py`), so nothing that an
agent recorded is ever markup. Nothing changes on GET. Pages are made on Starlette's worker threads.

Here are the routes, and the frame that every page has. What stands in it is made by `_lists.py`, and by `_run_page.py`
with `_tree.py` and `_details.py`; what these share is in `_parts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from prefactor_trace._ids import is_pfid
from prefactor_trace.server._details import span_details
from prefactor_trace.server._html import Content, Html, cut, document, element, path
from prefactor_trace.server._lists import Filter, agents_content, instances_content
from prefactor_trace.server._parts import (
    NAME_LENGTH,
    Pages,
    agent_name,
    is_open,
    page_number,
    run_name,
    span_name,
)
from prefactor_trace.server._run_page import run_content
from prefactor_trace.server._store import InvalidAction
from prefactor_trace.server._tree import RunView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from prefactor_trace.server._fields import Json
    from prefactor_trace.server._store import Store

_STATIC = Path(__file__).parent / "static"
_INSTANCES_PER_PAGE = 50
_SPANS_PER_PAGE = 1_000
_RUN_REFRESH_MILLISECONDS = 1_500
_LIST_REFRESH_MILLISECONDS = 4_000


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
            "Agents",
            [("Agents", None)],
            agents_content(self._store.agents()),
            refresh=_LIST_REFRESH_MILLISECONDS,
        )

    def agent(self, request: Request) -> Response:
        agent = self._found_agent(request.path_params["agent_id"])
        if agent is None:
            return _not_found("agent")
        environments = self._store.environments()
        wanted = Filter.read(request.query_params, environments)
        instances, total = self._store.instances(
            agent["id"],
            environment_id=wanted.environment_id,
            status=wanted.status,
            offset=wanted.page * _INSTANCES_PER_PAGE,
            limit=_INSTANCES_PER_PAGE,
        )
        name = agent_name(agent)
        pages = Pages(wanted.page, _INSTANCES_PER_PAGE, total)
        content = instances_content(agent, environments, wanted, instances, pages)
        return _page(name, [("Agents", path()), (name, None)], content, refresh=_LIST_REFRESH_MILLISECONDS)

    def instance(self, request: Request) -> Response:
        run = self._found_instance(request.path_params["instance_id"])
        if run is None:
            return _not_found("instance")
        page = page_number(request.query_params)
        spans, total = self._store.spans(run["id"], offset=page * _SPANS_PER_PAGE, limit=_SPANS_PER_PAGE)
        selected = self._found_span(run, request.query_params.get("span", ""))
        view = RunView(run, spans, Pages(page, _SPANS_PER_PAGE, total), selected)
        return _page(
            f"{run_name(run)} · {run['status']}",
            [*_crumbs_to(run), (run["id"], None)],
            run_content(view),
            refresh=_RUN_REFRESH_MILLISECONDS if is_open(run) else None,
        )

    def span(self, request: Request) -> Response:
        run = self._found_instance(request.path_params["instance_id"])
        span = self._found_span(run, request.path_params["span_id"]) if run else None
        if run is None or span is None:
            return _not_found("span")
        crumbs = [*_crumbs_to(run), (run["id"], path("instances", run["id"])), (span_name(span), None)]
        return _page(span_name(span), crumbs, span_details(run, span))

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

    def _found_agent(self, agent_id: str) -> Json | None:
        return self._store.agent(agent_id) if is_pfid(agent_id) else None

    def _found_instance(self, instance_id: str) -> Json | None:
        return self._store.instance(instance_id) if is_pfid(instance_id) else None

    def _found_span(self, run: Json, span_id: str) -> Json | None:
        span = self._store.span(span_id) if is_pfid(span_id) else None
        return span if span and span["agent_instance_id"] == run["id"] else None


async def _posted_reason(request: Request) -> str:
    form = parse_qs((await request.body()).decode(errors="replace"))  # the guard has bounded the body
    return form.get("reason", [""])[0].strip()


# The frame of every page


def _page(
    title: str,
    crumbs: Sequence[tuple[str, str | None]],
    content: Content,
    *,
    status: int = 200,
    refresh: int | None = None,
) -> HTMLResponse:
    """Make the answer. *refresh*: the script asks again after so many milliseconds, as long as a page says so."""
    body = [
        element("a", "Skip to content", class_="skip", href="#main"),
        element("header", _brand(), _breadcrumb(crumbs), class_="top"),
        element("main", content, id="main", tabindex=-1, data_refresh=refresh),
    ]
    return HTMLResponse(document(_head(title), body), status)


def _head(title: str) -> Content:
    return [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # With "no-referrer" a browser posts the Terminate form as `Origin: null`, which the guard rightly refuses.
        element("meta", name="referrer", content="same-origin"),
        element("title", f"{cut(title, NAME_LENGTH)} · Prefactor Trace"),
        element("link", rel="icon", href=path("static", "favicon.svg"), type="image/svg+xml"),
        element("link", rel="stylesheet", href=path("static", "viewer.css")),
        element("script", src=path("static", "viewer.js"), defer=True),
    ]


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


def _crumbs_to(run: Json) -> list[tuple[str, str | None]]:
    return [("Agents", path()), (run_name(run), path("agents", run["agent_id"]))]


# Pages that only say something


def _not_found(what: str) -> HTMLResponse:
    text = f"There is no {what} with this id here. It may belong to another database."
    content = [
        element("h1", "Not found"),
        element("p", text),
        element("p", element("a", "All agents", href=path())),
    ]
    return _page("Not found", [("Agents", path())], element("section", content, class_="message"), status=404)


def _problem(status: int, title: str, text: str, run: Json) -> HTMLResponse:
    back = element("a", "Back to the run", href=path("instances", run["id"]))
    content = [element("h1", title), element("p", text), element("p", back)]
    return _page(title, _crumbs_to(run), element("section", content, class_="message"), status=status)

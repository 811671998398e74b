"""The page of one instance: what it is and how it went above, its spans as a tree below, one span's details beside.

In: a `RunView`. Out: what stands in the main part of the page, in regions that the script replaces one by one while
the run goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefactor_trace.server._details import span_details
from prefactor_trace.server._html import Content, Html, element, money, path, pretty_json, time_of
from prefactor_trace.server._parts import (
    badge,
    fact_list,
    is_open,
    lasted,
    pager,
    present,
    region,
    run_name,
    status_counts,
)
from prefactor_trace.server._tree import RunView, span_table

if TYPE_CHECKING:
    from prefactor_trace.server._fields import Json
    from prefactor_trace.server._usage import Usages


def run_content(view: RunView) -> Content:
    return [
        _run_header(view),
        element(
            "div",
            element("section", _activity(view), class_="tree", aria_label="Activity"),
            span_details(view.run, view.selected) if view.selected else None,
            class_="activity split" if view.selected else "activity",
        ),
    ]


# What the instance is, and how it went


def _run_header(view: RunView) -> Html:
    run = view.run
    title = region(
        "title",
        "div",
        element("h1", run_name(run)),
        badge(run["status"]),
        element("span", "live", class_="live") if is_open(run) else None,
    )
    terminate = _terminate_form(run) if run["status"] == "active" else None
    return element(
        "header",
        element("div", title, region("terminate", "div", terminate), class_="title"),
        region("facts", "div", _run_facts(run), _span_counts(view)),
        region("quality", "div", _qualities(run)),
        class_="run",
    )


def _run_facts(run: Json) -> Html:
    version, name = run.get("agent_version_identifier"), run.get("agent_version_name")
    if version and name and name not in (version, run_name(run)):
        version = f"{version} ({name})"
    return fact_list(
        ("Started (UTC)", time_of(run.get("started_at"))),
        ("Finished (UTC)", time_of(run.get("finished_at"))),
        ("Duration", lasted(run, present(run))),
        ("Version", version),
        ("Environment", run.get("environment_name")),
        ("Purpose", run.get("purpose")),
        ("Instance ID", element("code", run["id"])),
        ("External ID", run.get("external_identifier")),
        ("Terminated because", run.get("termination_reason")),
        *_usage_facts(run["usages"]),
    )


def _usage_facts(usages: Usages) -> list[tuple[str, Content]]:
    """Show what the run has used, whichever page of its spans is shown. Nothing if no call of a model tells it."""
    if not usages.calls:
        return []
    kinds = f"{usages.prompt_tokens:,} prompt, {usages.completion_tokens:,} completion"
    calls = f"{usages.calls:,} model call{'' if usages.calls == 1 else 's'}"
    some = f" for {usages.priced_calls:,} of the calls" if usages.priced_calls < usages.calls else ""
    return [
        ("Tokens", f"{usages.total_tokens:,} ({kinds}) in {calls}"),
        ("Cost", f"{money(usages.usd)}{some}" if usages.priced_calls else None),
    ]


def _qualities(run: Json) -> list[Html]:
    """Show what the run was rated, by name, each behind a click."""
    return [
        element("details", element("summary", f"Quality: {name}"), pretty_json(payload))
        for name, payload in sorted((run.get("quality_payloads") or {}).items())
    ]


def _terminate_form(run: Json) -> Html:
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


def _span_counts(view: RunView) -> Html:
    """Show the number of spans per state; failed ones lead to the first of them in the tree."""
    counts = dict(view.run.get("span_counts") or {})
    total = counts.get("total", view.pages.total)
    every = element("span", f"{total:,} span{'' if total == 1 else 's'}", class_="count")
    first_failed = next((span for span in view.spans if span["status"] == "failed"), None)
    if first_failed is None:
        return element("p", every, status_counts(counts), class_="counts")
    failed = status_counts({"failed": counts.pop("failed", 0)})
    link = element("a", failed, href=view.address_of(first_failed), data_select=first_failed["id"])
    return element("p", every, link, status_counts(counts), class_="counts")


# What happened in it


def _activity(view: RunView) -> Content:
    if not view.spans:
        text = "Its spans show up here as they end." if is_open(view.run) else "This run recorded no spans."
        return region("none", "div", element("p", text), class_="message")
    return [region("pager", "div", _span_pager(view)), span_table(view)]


def _span_pager(view: RunView) -> Html | None:
    def address(page: int) -> str:
        return path("instances", view.run["id"], page=page)

    return pager(view.pages, "spans", address, ("Earlier", "Later"))

"""The two lists: all agents, and the instances of one agent with what they are filtered by.

In: agents, environments and instances as the store returns them, and the query of a request. Out: what stands in the
main part of a page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefactor_trace.server._html import NOTHING, Content, Html, cut, element, path, time_of
from prefactor_trace.server._parts import (
    NAME_LENGTH,
    STATUSES,
    Pages,
    agent_name,
    badge,
    lasted,
    list_table,
    muted,
    page_number,
    pager,
    present,
    region,
    status_counts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prefactor_trace.server._fields import Json

_FIRST_RUN = """\
import prefactor_trace as pt

with pt.instance(agent_name="my-agent"):
    ...
"""


# All agents


def agents_content(agents: Sequence[Json]) -> Content:
    """List *agents*, or tell who has none how to make one."""
    if not agents:
        return [element("h1", "Agents"), region("agents", "section", _no_agents(), class_="message")]
    columns = [
        ("name", "Agent"),
        ("number", "Instances"),
        ("states", "By status"),
        ("time", "Last activity (UTC)"),
        ("id", "Agent ID"),
    ]
    table = list_table(columns, [_agent_row(agent) for agent in agents], "Agents, most recently active first")
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


def _agent_row(agent: Json) -> Html:
    address = path("agents", agent["id"])
    about = agent.get("description")
    counts = agent.get("instance_counts") or {}
    return element(
        "tr",
        element(
            "td",
            element("a", cut(agent_name(agent), NAME_LENGTH), href=address),
            about and muted(cut(about, NAME_LENGTH)),
        ),
        element("td", f"{counts.get('total', 0):,}", class_="number"),
        element("td", status_counts(counts), class_="states"),
        element("td", time_of(agent.get("last_activity_span_at")), class_="time"),
        element("td", agent["id"], class_="id"),
        id=f"agent-{agent['id']}",
    )


# The instances of one agent


class Filter(NamedTuple):
    """Which of an agent's instances are wanted; what makes no sense in a query is left out."""

    environment_id: str | None
    status: str | None
    page: int

    @classmethod
    def read(cls, query: Mapping[str, str], environments: Iterable[Json]) -> Filter:
        environment_id = query.get("environment")
        status = query.get("status")
        known = {environment["id"] for environment in environments}
        return cls(
            environment_id if environment_id in known else None,
            status if status in STATUSES else None,
            page_number(query),
        )


def instances_content(
    agent: Json,
    environments: Sequence[Json],
    wanted: Filter,
    instances: Sequence[Json],
    pages: Pages,
) -> Content:
    def address(page: int) -> str:
        return path("agents", agent["id"], environment=wanted.environment_id, status=wanted.status, page=page)

    return [
        element("h1", agent_name(agent)),
        agent.get("description") and element("p", agent["description"], class_="about"),
        element("p", "Agent ", element("code", agent["id"]), class_="muted"),
        _filters(agent, environments, wanted),
        _instance_table(instances)
        if instances
        else region("none", "section", _no_instances(agent, wanted), class_="message"),
        region("pager", "div", pager(pages, "instances", address, ("Newer", "Older"))),
    ]


def _filters(agent: Json, environments: Iterable[Json], wanted: Filter) -> Html:
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
        _select("status", "Status", [(status, status) for status in STATUSES], wanted.status),
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


def _no_instances(agent: Json, wanted: Filter) -> Content:
    if wanted == Filter(None, None, 0):
        return [element("h2", "No instances yet"), element("p", "This agent is known, but it has not run.")]
    every = element("a", "Show all instances", href=path("agents", agent["id"]))
    return [element("h2", "No instances here"), element("p", "No run of this agent fits. ", every, ".")]


def _instance_table(instances: Iterable[Json]) -> Html:
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
    return list_table(columns, [_instance_row(run) for run in instances], "Instances, newest first")


def _instance_row(run: Json) -> Html:
    counts = run.get("span_counts") or {}
    notable = {status: counts.get(status) for status in ("active", "failed", "cancelled")}
    return element(
        "tr",
        element("td", element("a", run["id"], href=path("instances", run["id"])), class_="id"),
        element("td", badge(run["status"]), class_="status"),
        element("td", time_of(run.get("started_at") or run.get("inserted_at")), class_="time"),
        element("td", lasted(run, present(run)), class_="number"),
        element("td", cut(run.get("agent_version_identifier") or NOTHING, 40), class_="version"),
        element("td", cut(run.get("environment_name") or NOTHING, 40), class_="environment"),
        element("td", f"{counts.get('total', 0):,}", class_="number"),
        element("td", status_counts(notable), class_="of-which"),
        id=f"instance-{run['id']}",
    )

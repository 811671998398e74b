"""The details of one span: its facts, and what went in and came out.

In: a span and its run, as the store returns them. Out: one region of a page, all of it text that can be copied.
A payload may be anything; what our own library and the official SDKs put into theirs gets a heading of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefactor_trace._ids import is_pfid
from prefactor_trace.server._html import Content, Html, duration, element, moment, path, pretty_json, time_of
from prefactor_trace.server._parts import (
    badge,
    dict_or_empty,
    fact_list,
    lasted,
    present,
    region,
    span_address,
    span_name,
)

if TYPE_CHECKING:
    from prefactor_trace.server._fields import Json

# Keys of a payload that have a meaning; API contract section 3.7.
_ENVELOPE = ("name", "inputs", "metadata", "token_usage", "error")


def span_details(run: Json, span: Json) -> Html:
    close = element(
        "a",
        "\N{MULTIPLICATION SIGN}",
        href=path("instances", run["id"]),
        class_="close",
        aria_label="Close details",
    )
    title = element("h2", span_name(span))
    return region(
        "details",
        "aside",
        element("header", title, badge(span["status"]), close),
        _span_facts(run, span),
        _sections(span),
        class_="details",
        aria_label="Span details",
        data_span=span["id"],
    )


def _span_facts(run: Json, span: Json) -> Html:
    parent = span.get("parent_span_id")
    started, run_started = moment(span.get("started_at")), moment(run.get("started_at"))
    title = span.get("schema_title")
    page_of_its_own = path("instances", run["id"], "spans", span["id"])
    return fact_list(
        ("Started (UTC)", time_of(span.get("started_at"))),
        ("Finished (UTC)", time_of(span.get("finished_at"))),
        ("Duration", lasted(span, present(run))),
        ("Into the run", duration(max(started - run_started, 0)) if started and run_started else None),
        ("Span type", element("code", span["schema_name"])),
        ("Title", title if title != span["schema_name"] else None),
        ("Summary", span.get("summary")),
        ("Span ID", element("a", element("code", span["id"]), href=page_of_its_own)),
        ("Parent span", parent and _span_link(run, parent)),
    )


def _span_link(run: Json, span_id: str) -> Html:
    if not is_pfid(span_id):  # an official SDK may name a parent by its own kind of id
        return element("code", span_id)
    address = span_address(run["id"], span_id)
    return element("a", element("code", span_id), href=address, data_select=span_id)


# What went in and came out


def _sections(span: Json) -> list[Html]:
    """Show what went in and came out, each part under its own heading; parts that are not there are left out."""
    payload, result = dict_or_empty(span.get("payload")), span.get("result_payload")
    error = payload.get("error")
    if span["status"] == "failed" and error in (None, result) and "error_type" in dict_or_empty(result):
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
    fields = dict(dict_or_empty(error))
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

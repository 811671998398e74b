"""The viewer, through the real local platform: real HTTP, real database, pages parsed as a browser would."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sqlite3
import time
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from patience import within

from prefactor_trace import _ids, integrations
from prefactor_trace.server import LocalPlatform, _html, _tree, _viewer

pytestmark = pytest.mark.filterwarnings("error")

START = datetime(2026, 7, 20, 10, 15, 30, tzinfo=timezone.utc)
STATIC = Path(_viewer.__file__).parent / "static"

TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "script",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "aside",
        "div",
    ),
    *("h1", "h2", "p", "a", "span", "strong", "img", "ol", "li", "dl", "dt", "dd", "time", "code", "pre"),
    *(
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "form",
        "label",
        "select",
        "option",
        "input",
        "button",
    ),
    *("details", "summary", "svg", "g", "line", "rect", "text", "use"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "rel", "href", "type", "src", "defer", "class", "id", "tabindex"),
    *("aria-label", "aria-current", "aria-level", "aria-expanded", "aria-selected", "role", "scope"),
    *("alt", "width", "height", "datetime", "method", "action", "value", "selected", "required", "maxlength"),
    *("autocomplete", "open", "x", "y", "x1", "x2", "y1", "y2", "dx", "rx"),
    *("data-refresh", "data-region", "data-rows", "data-section", "data-select", "data-span"),
}

HOSTILE = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "</script><script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "` onload=alert(1) `",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "</svg><script>alert(1)</script>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<math><mtext></p><style><img src=x onerror=alert(1)></style></mtext></math>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=javascript:alert(1)>",
    "<embed src=javascript:alert(1)>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>*{background:url(//evil.example)}</style>",
    "<div style='background:url(javascript:alert(1))'>",
    "<form action=//evil.example><button>Terminate</button></form>",
    "<input onfocus=alert(1) autofocus>",
    "<details open ontoggle=alert(1)>",
    "<body onload=alert(1)>",
    "<marquee onstart=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<template><script>alert(1)</script></template>",
    "<textarea></textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</pre></code><b>bold</b>",
    "</td></tr></table><h1>Not found</h1>",
    "</main></body></html>",
    "<!-- --><script>alert(1)</script><!--",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><x/>",
    "<!doctype html>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "https://evil.example/?token=",
    "//evil.example",
    "[click](javascript:alert(1))",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)",
    "&amp;&amp;amp;",
    "&nbsp;&copy;&notanentity;",
    "{{constructor.constructor('alert(1)')()}}",
    "${alert(1)} <%= 7*7 %> #{7*7}",
    "\\u003cscript\\u003ealert(1)",
    "\\",
    '\\"',
    '","injected":"',
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "a\0b\x07c\x1bd\x7fe\x85f",
    "photo\u202egpj.exe",
    "\u2066right\u2069 \u200bzero \ufeffwidth",
    "tags \U000e0048\U000e0049",
    "line\u2028separator\u2029paragraph",
    "carriage\rreturn\r\nline\nfeed\ttab",
    "\ud7ff\ue000\uffff \U0001f469\u200d\U0001f4bb \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "a" * 5_000 + "<script>",
    "../../../etc/passwd",
    "'; DROP TABLE agent_spans; --",
]


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]
    text: list[str]

    def __str__(self) -> str:
        return "".join(self.text)


class Page(HTMLParser):
    """A parsed page. `elements` are in document order, each with all the text inside it."""

    VOID = ("meta", "link", "img", "input", "br", "col")

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(markup)
        self.close()
        assert self._open == [], f"not closed: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag, attrs):
        found = Element(tag, {name: value or "" for name, value in attrs}, [])
        assert len(found.attributes) == len(attrs), "an attribute appears twice"
        self.elements.append(found)
        if tag not in self.VOID:
            self._open.append(found)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        for element in self._open:
            element.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def handle_pi(self, data):
        raise AssertionError(f"a processing instruction: {data!r}")

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        return str(self.elements[0])

    def facts(self) -> dict[str, str]:
        names, values = self.all("dt"), self.all("dd")
        return {str(name): str(value) for name, value in zip(names, values, strict=True)}

    def rows(self) -> list[list[str]]:
        """The table's cells by row."""
        rows: list[list[str]] = []
        for element in self.elements:
            if element.tag == "tr":
                rows.append([])
            elif element.tag == "td":
                rows[-1].append(str(element))
        return rows[1:]

    def tree(self) -> list[tuple[int, str]]:
        """The span tree as level and name."""
        found, level = [], 0
        for element in self.elements:
            level = int(element.attributes.get("aria-level", level)) if element.tag == "tr" else level
            if (
                element.tag == "a"
                and "?" in element.attributes["href"]
                and "class" not in element.attributes
                and level
            ):
                found.append((level, str(element)))
        return found

    def section(self, key: str) -> str:
        """The text of a part of the details, without its heading."""
        whole = self.one("details", data_section=key)
        return "".join(whole.text[1:])


class World:
    """A running platform: `post` is an agent's side of it, `get` a person's."""

    def __init__(self, platform: LocalPlatform) -> None:
        self.platform = platform
        self._api = httpx.Client(
            base_url=f"{platform.url}/api/v1", headers={"Authorization": f"Bearer {platform.token}"}
        )
        self.browser = httpx.Client(base_url=platform.url)
        self.browser.get(platform.viewer_url)
        self._milliseconds = itertools.count(step=10)

    def close(self) -> None:
        self._api.close()
        self.browser.close()

    def post(self, path: str, **fields: Any) -> Any:
        response = self._api.post(
            path, content=json.dumps(fields), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200, response.text
        return response.json()

    def get(self, path: str, status: int = 200) -> Page:
        response = self.browser.get(path)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        return Page(response.text)

    def register(
        self,
        agent: str = "support-bot",
        version: str = "1.4.0",
        qualities: tuple[str, ...] = (),
        template: str = "",
        **fields: Any,
    ) -> str:
        answer = self.post(
            "/agent_instance/register",
            agent_version={"external_identifier": version, "name": agent},
            agent_schema_version={
                "external_identifier": "s1",
                "span_type_schemas": [{"name": "step", "params_schema": {}, "template": template}],
                "quality_schemas": [{"name": name, "schema": {}} for name in qualities],
            },
            **fields,
        )
        instance_id: str = answer["details"]["id"]
        return instance_id

    def start(self, agent: str = "support-bot", **fields: Any) -> str:
        instance_id = self.register(agent, **fields)
        self.post(f"/agent_instance/{instance_id}/start", timestamp=at(0))
        return instance_id

    def finish(self, instance_id: str, status: str = "complete", milliseconds: int = 1_000) -> None:
        self.post(f"/agent_instance/{instance_id}/finish", status=status, timestamp=at(milliseconds))

    def span(self, instance_id: str, name: str | None = None, **fields: Any) -> str:
        answer = self.post("/agent_spans", details=self.span_details(instance_id, name, **fields))
        span_id: str = answer["details"]["id"]
        return span_id

    def span_details(
        self,
        instance_id: str,
        name: str | None = None,
        *,
        payload: dict[str, Any] | None = None,
        begin: int | None = None,
        lasts: int = 5,
        status: str = "complete",
        **fields: Any,
    ) -> dict[str, Any]:
        begin = next(self._milliseconds) if begin is None else begin
        details = {
            "agent_instance_id": instance_id,
            "schema_name": "step",
            "status": status,
            "payload": {"name": name, **(payload or {})} if name is not None else payload or {},
            "started_at": at(begin),
        }
        if status != "active":
            details["finished_at"] = at(begin + lasts)
        return details | fields


def at(milliseconds: int) -> str:
    return (START + timedelta(milliseconds=milliseconds)).isoformat()


@pytest.fixture
def world(tmp_path):
    with LocalPlatform(tmp_path / "platform.db") as platform:
        world = World(platform)
        yield world
        world.close()


@pytest.fixture(scope="module")
def hostile_world(tmp_path_factory):
    """One platform for all the hostile texts: stopping it takes a fifth of a second."""
    with LocalPlatform(tmp_path_factory.mktemp("hostile") / "platform.db") as platform:
        world = World(platform)
        yield world
        world.close()


@pytest.fixture(scope="module")
def harmless_pages(hostile_world):
    return pages_with(hostile_world, "harmless")


# Agents


def test_an_empty_platform_tells_what_to_do(world):
    """Who opens the viewer before the first run sees the two lines that make one."""
    page = world.get("/")
    assert "import prefactor_trace as pt" in str(page.one("pre"))
    assert 'with pt.instance(agent_name="my-agent"):' in str(page.one("pre"))


def test_agents_are_listed_with_their_instances_by_status(world):
    """The most recently active agent stands first."""
    world.register("quiet-bot")
    run = world.start("busy-bot")
    world.span(run, "hello")
    world.finish(world.start("busy-bot"), "failed")

    busy, quiet = world.get("/").rows()

    assert busy[:3] == ["busy-bot", "2", "1 active1 failed"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", busy[3])
    assert quiet[:4] == ["quiet-bot", "1", "1 pending", "\N{EN DASH}"]


def test_an_agent_leads_to_its_page_and_back(world):
    """Every page is reached by links alone."""
    world.start()
    agents = world.get("/")
    (link,) = [link for link in agents.all("a") if str(link) == "support-bot"]
    page = world.get(link.attributes["href"])
    assert str(page.one("h1")) == "support-bot"
    assert page.one("a", href="/", class_="brand")


# An agent's instances


def agent_of(world: World, instance_id: str) -> str:
    instance = world.platform.store.instance(instance_id)
    assert instance is not None
    return f"/agents/{instance['agent_id']}"


def test_instances_are_listed_newest_first(world):
    """A row tells what a person looks for: how it ended, when, how long, which version, where, how much."""
    first = world.start(version="1.4.0")
    world.span(first, "one")
    world.span(first, "two", status="failed")
    world.finish(first, "failed", milliseconds=1_240)
    second = world.register(version="1.5.0")

    newest, oldest = world.get(agent_of(world, first)).rows()

    assert newest[:2] == [second, "pending"]
    assert newest[3:5] == ["\N{EN DASH}", "1.5.0"]
    environment = oldest.pop(5)
    assert environment
    assert oldest == [first, "failed", "2026-07-20 10:15:30.000", "1.24 s", "1.4.0", "2", "1 failed"]


def test_instances_are_filtered_by_status_and_environment(world):
    """The filters are one GET form, so a filtered list has an address."""
    production = world.post("/environment", details={"name": "production"})["details"]["id"]
    agent_id = world.post("/agent", details={"name": "bot"})["details"]["id"]
    local = world.post("/environment", details={"name": "laptop"})["details"]["id"]
    ids = {
        (environment, status): world.start("bot", agent_id=agent_id, environment_id=environment)
        for environment in (production, local)
        for status in ("complete", "failed")
    }
    for (_, status), instance_id in ids.items():
        world.finish(instance_id, status)

    def listed(**query: str) -> set[str]:
        return {row[0] for row in world.get(f"/agents/{agent_id}?{httpx.QueryParams(query)}").rows()}

    assert listed() == set(ids.values())
    assert listed(status="failed") == {ids[production, "failed"], ids[local, "failed"]}
    assert listed(environment=local, status="") == {ids[local, "complete"], ids[local, "failed"]}
    assert listed(environment=production, status="failed") == {ids[production, "failed"]}
    assert listed(status="terminated") == set()

    page = world.get(f"/agents/{agent_id}?environment={local}&status=failed")
    assert page.one("form").attributes["method"] == "get"
    assert {option.attributes["value"] for option in page.all("option", selected="")} == {local, "failed"}


def test_a_filter_that_makes_no_sense_is_left_out(world):
    """A mistyped address shows the whole list."""
    run = world.start()
    query = httpx.QueryParams({"status": "<b>", "environment": "'; --", "page": "-1"})
    page = world.get(f"{agent_of(world, run)}?{query}")
    assert [row[0] for row in page.rows()] == [run]
    assert page.all("option", selected="") == []


def test_a_filter_without_a_hit_offers_the_way_out(world):
    """An empty list is never a dead end."""
    run = world.start()
    page = world.get(f"{agent_of(world, run)}?status=failed")
    assert "No instances here" in page.text
    assert page.all("a", href=agent_of(world, run))


def test_an_agent_that_never_ran_says_so(world):
    """An agent may be created before its first run."""
    agent_id = world.post("/agent", details={"name": "new-bot"})["details"]["id"]
    assert "has not run" in world.get(f"/agents/{agent_id}").text


def test_many_instances_come_in_pages(world):
    """Fifty a page; the links keep the filter."""
    runs = [world.register() for _ in range(53)]
    agent = agent_of(world, runs[0])

    first = world.get(f"{agent}?status=pending")
    second = world.get(first.one("a", rel="next").attributes["href"])

    assert [row[0] for row in first.rows()] == runs[:-51:-1]
    assert [row[0] for row in second.rows()] == runs[2::-1]
    assert "Showing instances 51 to 53 of 53" in second.text
    assert second.all("a", rel="next") == []
    assert second.one("a", rel="prev").attributes["href"] == f"{agent}?status=pending&page=1"
    beyond = world.get(f"{agent}?page=9")
    assert beyond.one("a", rel="prev").attributes["href"] == f"{agent}?page=2"


# One instance


def test_the_header_tells_the_run(world):
    """Status, times, version, environment, purpose and id, without a click."""
    run = world.start(purpose="eval")
    world.finish(run, milliseconds=192_004)
    page = world.get(f"/instances/{run}")
    facts = page.facts()
    assert str(page.one("h1")) == "support-bot"
    assert "complete" in [str(badge) for badge in page.all("span")]
    assert facts["Started (UTC)"] == "2026-07-20 10:15:30.000"
    assert facts["Finished (UTC)"] == "2026-07-20 10:18:42.004"
    assert facts["Duration"] == "3 m 12 s"
    assert facts["Version"] == "1.4.0"
    assert facts["Purpose"] == "eval"
    assert facts["Instance ID"] == run
    assert facts["Environment"]


@pytest.mark.parametrize("name", ["verdict", *HOSTILE[:3]])
def test_what_a_run_was_rated_is_shown(world, name):
    """Each quality stands under its name, as text, in the order of the names; without any there is nothing."""
    run = world.start(qualities=(name, "a first one"))
    assert "Quality" not in " ".join(map(str, world.get(f"/instances/{run}").all("summary")))
    for rated, payload in ((name, {name: name}), ("a first one", {"score": 1})):
        world.post(f"/agent_instance/{run}/record_quality", name=rated, payload=payload)
    page = world.get(f"/instances/{run}")

    shown = [str(each) for each in page.all("summary") if str(each).startswith("Quality")]
    assert sorted(shown) == sorted([f"Quality: {_html.visible(name)}", "Quality: a first one"])
    assert [json.loads(str(each)) for each in page.all("pre")] == (
        [{"score": 1}, {name: name}] if name > "a first one" else [{name: name}, {"score": 1}]
    )
    assert_is_ours(page)


def test_spans_stand_below_their_parents_in_order_of_start(world):
    """The tree shows who called whom, and when."""
    run = world.start()
    root = world.span(run, "root", begin=0, lasts=100)
    late = world.span(run, "late", begin=50, parent_span_id=root)
    early = world.span(run, "early", begin=10, parent_span_id=root)
    world.span(run, "under late", begin=60, parent_span_id=late)
    world.span(run, "under early", begin=20, parent_span_id=early)
    world.span(run, "second root", begin=5)

    page = world.get(f"/instances/{run}")

    assert page.tree() == [
        (1, "root"),
        (2, "early"),
        (3, "under early"),
        (2, "late"),
        (3, "under late"),
        (1, "second root"),
    ]
    assert "aria-expanded" in page.one("tr", id=f"span-{root}").attributes
    assert page.one("table", role="treegrid")


def test_a_row_tells_what_ran(world):
    """Name, span type, status and duration; tokens if there were any, and what they cost if that is known."""
    run = world.start()
    world.span(
        run, "gpt-4.1", payload={"token_usage": {"total_tokens": 1643}}, schema_name="openai:llm", lasts=12
    )
    world.span(run, "gpt-4.1", payload=used(1_000, 643, usd=0.00124))
    world.span(run, schema_name="tool:search", status="failed")
    world.span(run, "   ", schema_name="blank")
    rows = world.get(f"/instances/{run}").rows()
    assert rows[0][:4] == ["gpt-4.11,643 tokens", "openai:llm", "complete", "12.0 ms"]
    assert rows[1][0] == "gpt-4.11,643 tokens · $0.0012"
    assert rows[2][:4] == ["tool:search", "tool:search", "failed", "5.00 ms"]
    assert rows[3][0] == "blank"


def used(prompt: int, completion: int, usd: float | None = None) -> dict[str, Any]:
    """What our integrations write into the payload of a call of a model."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"token_usage": usage} | ({} if usd is None else {"metadata": {"cost": {"usd": usd}}})


def test_tokens_and_cost_stand_before_a_long_line(world):
    """A row is cut at its end, so what must be seen stands before it."""
    run = world.start(template="{{ inputs.text }}")
    world.span(run, "gpt-4.1", payload={"inputs": {"text": "long " * 100}} | used(1, 2, usd=1.5))
    (row,) = world.get(f"/instances/{run}").rows()
    assert row[0].startswith("gpt-4.13 tokens · $1.50long long")


def test_the_header_adds_up_what_models_have_used(world):
    """Tokens and cost of all calls that tell them; nothing where none does."""
    run = world.start()
    world.span(run, "agent")
    assert {"Tokens", "Cost"}.isdisjoint(world.get(f"/instances/{run}").facts())
    world.span(run, "gpt-4.1", payload=used(1_200, 43, usd=0.0012))
    facts = world.get(f"/instances/{run}").facts()
    assert facts["Tokens"] == "1,243 (1,200 prompt, 43 completion) in 1 model call"
    assert facts["Cost"] == "$0.0012"
    world.span(run, "own model", payload=used(100, 0))
    world.span(run, "still open", status="active", payload=used(1, 1))
    facts = world.get(f"/instances/{run}").facts()
    assert facts["Tokens"] == "1,345 (1,301 prompt, 44 completion) in 3 model calls"
    assert facts["Cost"] == "$0.0012 for 1 of the calls"


def test_what_is_told_at_the_end_counts(world):
    """A span that was shown while it was running tells with its result what it has used; it is counted once."""
    run = world.start()
    late = {f"${name}": value for name, value in used(30, 12, usd=0.5).items()}
    for payload in ({"name": "slow"}, used(1, 2)):
        slow = world.span(run, "slow", status="active", payload=payload)
        for _ in range(2):
            world.post(
                f"/agent_spans/{slow}/finish",
                status="complete",
                timestamp=at(9_000),
                idempotency_key=slow,
                result_payload=late,
            )
    page = world.get(f"/instances/{run}")
    assert page.facts()["Tokens"] == "45 (31 prompt, 14 completion) in 2 model calls"
    assert page.facts()["Cost"] == "$0.5000 for 1 of the calls"
    assert [row[0] for row in page.rows()] == ["slow42 tokens · $0.5000", "slow3 tokens"]


@pytest.mark.parametrize("value", [None, "7", -1, 10**12, 10**30, 1.5, True, [7], {"n": 7}])
def test_a_count_that_is_none_is_not_added(world, value):
    """A payload may be anything; the totals stay right, and the run stays readable."""
    run = world.start()
    world.span(run, "odd", payload={"token_usage": {"total_tokens": value}, "metadata": {"cost": value}})
    odd = used(3, 4) | {"metadata": {"cost": {"usd": "free" if value == 1.5 else value}}}
    world.span(run, "odd cost", payload=odd)
    page = world.get(f"/instances/{run}")
    assert page.facts()["Tokens"] == "7 (3 prompt, 4 completion) in 1 model call"
    assert "Cost" not in page.facts()
    assert [row[0] for row in page.rows()] == ["odd", "odd cost7 tokens"]


def test_totals_are_those_of_all_pages(world):
    """What a run of many pages has used does not depend on the page, and is not read again from its spans."""
    run = world.start()
    for _ in range(5):
        bulk(world, run, 500, payload=used(10, 1, usd=0.001))
    own = [_ids.generate(_ids.partition_of(run)) for _ in range(2)]
    details = [world.span_details(run, "twice", id=each, payload=used(1, 0)) for each in own]
    create(world, own, details)
    create(world, own, details)  # sent again: nothing is counted twice
    pages = [world.get(f"/instances/{run}?page={number}").facts() for number in (1, 3)]
    assert [page["Tokens"] for page in pages] == [
        "27,502 (25,002 prompt, 2,500 completion) in 2,502 model calls"
    ] * 2
    assert [page["Cost"] for page in pages] == ["$2.50 for 2,500 of the calls"] * 2


def test_what_is_used_is_counted_once_beside_other_operations(world):
    """A run that is read or changed in the same request has what was used before, and no more."""
    run = world.start()
    created = {"_type": "agent_spans/create", "details": world.span_details(run, "one", payload=used(10, 1))}
    items = [
        created | {"idempotency_key": "first call"},
        {"_type": "agent_instances/finish", "idempotency_key": "the run ends", "agent_instance_id": run},
    ]
    outputs = world.post("/bulk", items=items)["outputs"]
    assert [each["status"] for each in outputs.values()] == ["success"] * 2
    facts = world.get(f"/instances/{run}").facts()
    assert facts["Tokens"] == "11 (10 prompt, 1 completion) in 1 model call"


KINDS = {
    "llm": {
        *("openai:chat", "openai:completions", "openai:responses", "openai:embeddings"),
        *("litellm:chat", "litellm:completions", "litellm:responses", "litellm:embeddings"),
        *("anthropic:messages", "google_genai:generate_content", "google_genai:embed_content"),
        *("langchain:chat", "langchain:llm", "openai-agents:generation", "pydantic-ai:request"),
        *("openai:llm", "my-app:embedding", "LLM"),
    },
    "tool": {"mcp:tool", "langchain:tool", "openai-agents:tool", "pydantic-ai:tool", "tool:search"},
    "agent": {"openai-agents:agent", "pydantic-ai:agent", "agent:plan", "claude:subagent"},
    "retrieval": {"langchain:retriever", "mcp:resource", "my-app:search"},
    "step": {
        *("langchain:chain", "langchain:prompt", "langchain:parser", "langgraph:node"),
        *("openai-agents:workflow", "openai-agents:handoff", "openai-agents:guardrail", "openai-agents:step"),
        *("openai-agents:list_tools", "pydantic-ai:output", "mcp:list_tools", "mcp:prompt"),
        *("mail:messages", "http:request", "openai", "agents", "step"),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_step_has_one_colour(kind):
    """Whichever library's it is: calls of models, tools, agents and what looks something up."""
    assert {_tree._kind_of(each) for each in KINDS[kind]} == {kind}


def test_every_type_of_ours_has_its_kind():
    """A new integration's types are given a colour, or none, on purpose."""
    modules = (importlib.import_module(name) for name in integrations._ours().values())
    ours = {each.name for module in modules for each in module.TYPES}
    assert ours <= set.union(*KINDS.values())


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (0, "$0"),
        (1234.5, "$1,234.50"),
        (0.99999, "$1.00"),
        (0.5, "$0.5000"),
        (0.00124, "$0.0012"),
        (0.00005, "$0.0001"),
        (0.0000499, "$0.000050"),
        (0.0000034, "$0.0000034"),
        (1e-7, "$0.00000010"),
        (9e-8, "<$0.0000001"),
    ],
)
def test_amounts(usd, expected):
    """A call costs parts of a cent, and must not look free."""
    assert _html.money(usd) == expected


def test_bars_stand_where_the_span_was_in_the_run(world):
    """The axis runs from the start of the run to its end."""
    run = world.start()
    world.span(run, "middle", begin=250, lasts=500)
    world.finish(run, milliseconds=1_000)
    page = world.get(f"/instances/{run}")
    bar = page.one("rect").attributes
    assert (bar["x"], bar["width"]) == ("25.000%", "50.000%")
    assert [str(text) for text in page.all("text")] == ["0", "200 ms", "400 ms", "600 ms", "800 ms"]


def test_an_open_span_moves_only_while_its_run_is_active(world):
    """What a dead run left open does not look alive."""
    run = world.start()
    world.span(run, "open", status="active")
    live = world.get(f"/instances/{run}")
    assert live.one("main").attributes["data-refresh"] == "1500"
    assert live.all("svg", class_="moving")
    world.finish(run, "failed")
    ended = world.get(f"/instances/{run}")
    assert "data-refresh" not in ended.one("main").attributes
    assert ended.all("svg", class_="moving") == []


def test_a_run_without_spans_says_so(world):
    """An empty tree explains itself."""
    run = world.start()
    assert "as they end" in world.get(f"/instances/{run}").text
    world.finish(run)
    assert "recorded no spans" in world.get(f"/instances/{run}").text


def test_a_span_whose_parent_is_elsewhere_is_a_root(world):
    """Nothing recorded is hidden for want of a parent."""
    run = world.start()
    orphan = world.span(run, "orphan", parent_span_id="7f9c1e0a-not-a-pfid")
    page = world.get(f"/instances/{run}?span={orphan}")
    assert page.tree() == [(1, "orphan")]
    assert page.facts()["Parent span"] == "7f9c1e0a-not-a-pfid"


def test_spans_in_a_ring_are_all_shown(world, tmp_path):
    """A broken database must not hang the page."""
    run = world.start()
    first = world.span(run, "first")
    second = world.span(run, "second", parent_span_id=first)
    world.span(run, "tail", parent_span_id=second)
    alone = world.span(run, "alone")
    database = sqlite3.connect(tmp_path / "platform.db", isolation_level=None)
    for child, parent in ((first, second), (alone, alone)):
        database.execute("UPDATE agent_spans SET parent_span_id = ? WHERE id = ?", (parent, child))
    database.close()
    assert world.get(f"/instances/{run}").tree() == [(1, "first"), (2, "second"), (3, "tail"), (1, "alone")]


def bulk(world: World, run: str, count: int, **fields: Any) -> list[str]:
    ids = [_ids.generate(_ids.partition_of(run)) for _ in range(count)]
    details = [world.span_details(run, f"step {number}", id=ids[number], **fields) for number in range(count)]
    return create(world, ids, details)


def create(world: World, ids: list[str], details: list[dict[str, Any]]) -> list[str]:
    items = [
        {"_type": "agent_spans/create", "idempotency_key": span_id, "details": its_details}
        for span_id, its_details in zip(ids, details, strict=True)
    ]
    assert all(
        output["status"] == "success" for output in world.post("/bulk", items=items)["outputs"].values()
    )
    return ids


def test_more_than_a_thousand_spans_come_in_pages(world):
    """The page says that there are more, and where."""
    run = world.start()
    ids = bulk(world, run, 1_100)
    first = world.get(f"/instances/{run}")
    assert "Showing spans 1 to 1,000 of 1,100" in first.text
    assert len(first.tree()) == 1_000
    second = world.get(first.one("a", rel="next").attributes["href"])
    assert "Showing spans 1,001 to 1,100 of 1,100" in second.text
    assert second.tree()[0] == (1, "step 1000")
    selected = world.get(
        second.one("tr", id=f"span-{ids[-1]}").attributes and f"/instances/{run}?span={ids[-1]}"
    )
    assert str(selected.one("h2")) == "step 1099"


def test_a_thousand_spans_are_rendered_in_time(world):
    """Under 300 ms of processor time for the whole request, so that live refresh stays light."""
    run = world.start()
    root = world.span(run, "root")
    bulk(world, run, 999, parent_span_id=root, payload={"inputs": {"text": "x" * 200}})

    # The server is a thread of this process; what else runs on this machine does not count.
    def seconds() -> float:
        begin = time.process_time()
        world.browser.get(f"/instances/{run}")
        return time.process_time() - begin

    assert min(seconds() for _ in range(5)) < within(0.3)


def test_a_deep_chain_is_shown_to_its_end(world):
    """Recursion in the agent is not recursion in the viewer."""
    run = world.start()
    ids = [_ids.generate(_ids.partition_of(run)) for _ in range(900)]
    parents = [None, *ids[:-1]]
    details = [
        world.span_details(run, f"level {level}", id=ids[level], parent_span_id=parent)
        for level, parent in enumerate(parents)
    ]
    create(world, ids, details)
    page = world.get(f"/instances/{run}")
    assert page.tree()[-1] == (900, "level 899")
    assert len(page.all("span", class_="guide")) < 900 * 20


# The details of a span


def test_details_show_what_went_in_and_came_out(world):
    """Every part of the envelope has its place, in full, and can be copied as JSON."""
    run = world.start()
    inputs = {"question": "Where is\nmy refund?", "ids": [1, 2.5, None, True], "nested": {"a": {"b": "ü €"}}}
    payload = {
        "inputs": inputs,
        "metadata": {"thread": "main"},
        "token_usage": {"prompt_tokens": 12, "total_tokens": 20},
        "custom": "kept",
    }
    parent = world.span(run, "parent")
    span = world.span(
        run, "answer", payload=payload, result_payload={"output": "x" * 5_000}, parent_span_id=parent
    )

    page = world.get(f"/instances/{run}?span={span}")

    assert json.loads(page.section("inputs")) == inputs
    assert json.loads(page.section("result")) == {"output": "x" * 5_000}
    assert json.loads(page.section("metadata")) == {"thread": "main"}
    assert json.loads(page.section("tokens")) == {"prompt_tokens": 12, "total_tokens": 20}
    assert json.loads(page.section("others")) == {"custom": "kept"}
    aside = page.one("aside", data_span=span)
    assert str(aside).startswith("answercomplete")
    assert page.one("tr", id=f"span-{span}").attributes["aria-selected"] == "true"
    facts = dict(list(page.facts().items())[-8:])
    assert facts["Span ID"] == span
    assert facts["Parent span"] == parent
    assert facts["Span type"] == "step"


@pytest.mark.parametrize("place", ["payload", "result", "both"])
def test_a_failure_shows_type_message_and_stack(world, place):
    """Once, wherever the client has put it."""
    error = {
        "error_type": "RefundError",
        "message": "no funds",
        "stacktrace": 'Traceback:\n  File "a.py", line 1\n',
    }
    run = world.start()
    span = world.span(
        run,
        "refund",
        status="failed",
        payload={} if place == "result" else {"error": error},
        result_payload={} if place == "payload" else error,
    )
    page = world.get(f"/instances/{run}?span={span}")
    assert page.section("error").startswith("RefundError: no funds")
    assert str(page.one("pre", class_="stack")) == error["stacktrace"]
    assert page.text.count("no funds") == 1


@pytest.mark.parametrize(
    "error", ["just a text", ["a", "list"], {"code": 7}, {"message": 7}, {"error_type": "E"}]
)
def test_an_error_of_another_shape_is_shown_too(world, error):
    """An adaptor of another make is not a reason for an empty page."""
    run = world.start()
    span = world.span(run, "refund", status="failed", payload={"error": error})
    shown = world.get(f"/instances/{run}?span={span}").section("error")
    assert shown == "E" if error == {"error_type": "E"} else json.loads(shown) == error


def test_a_payload_without_envelope_is_shown_as_it_is(world):
    """`SpanType(..., envelope=False)` and official adaptors send other shapes."""
    run = world.start()
    payload = {"model_name": "gpt", "temperature": 0}
    span = world.span(run, payload=payload)
    page = world.get(f"/instances/{run}?span={span}")
    assert json.loads(page.section("others")) == payload
    assert "Other payload fields" not in page.text


@pytest.mark.parametrize("value", [None, 7, "text", [], True, {"name": {"no": "text"}}])
def test_a_payload_with_unexpected_parts_does_not_break_the_page(world, value):
    """The platform stores any object as payload."""
    run = world.start()
    payload = {"name": value, "inputs": value, "metadata": value, "token_usage": value, "error": value}
    span = world.span(run, payload=payload)
    page = world.get(f"/instances/{run}?span={span}")
    assert page.tree() == [(1, "text" if value == "text" else "step")]
    if value is not None:
        assert json.loads(page.section("inputs")) == value


def test_every_row_leads_to_its_details_without_a_script(world):
    """The page is complete without JavaScript."""
    run = world.start()
    spans = [world.span(run, f"step {number}") for number in range(3)]
    page = world.get(f"/instances/{run}")
    links = [link.attributes["href"] for link in page.all("a") if str(link).startswith("step ")]
    assert links == [f"/instances/{run}?span={span}#span-{span}" for span in spans]
    assert str(world.get(links[1]).one("h2")) == "step 1"
    assert str(world.get(f"/instances/{run}/spans/{spans[2]}").one("h2")) == "step 2"


def test_failed_spans_are_one_click_away(world):
    """The count in the header leads to the first of them."""
    run = world.start()
    world.span(run, "fine")
    broken = world.span(run, "broken", status="failed")
    link = world.get(f"/instances/{run}").one("a", data_select=broken)
    assert str(link) == "1 failed"


# Not there


@pytest.mark.parametrize(
    "path",
    [
        "/agents/{unknown}",
        "/instances/{unknown}",
        "/instances/{unknown}/spans/{unknown}",
        "/instances/{run}/spans/{unknown}",
        "/instances/{run}/spans/{elsewhere}",
        "/instances/{run}/spans/nonsense",
        "/agents/nonsense",
        "/instances/01M80PAN",
        "/instances/%3Cimg%20src=x%20onerror=alert(1)%3E",
        "/agents/%00%ff",
    ],
)
def test_what_is_not_there_is_a_page_that_leads_back(world, path):
    """An old link explains itself, and says nothing of what it was given."""
    run, other = world.start(), world.start()
    elsewhere = world.span(other, "elsewhere")
    page = world.get(path.format(run=run, elsewhere=elsewhere, unknown=_ids.generate()), status=404)
    assert str(page.one("h1")) == "Not found"
    assert page.all("a", href="/")
    assert "alert(1)" not in page.text


def test_a_selection_that_is_not_there_is_left_out(world):
    """The page of the run is shown without details."""
    run = world.start()
    world.span(run, "step")
    assert world.get(f"/instances/{run}?span=<script>&page=x").all("aside") == []


# Terminate


def terminate(world: World, instance_id: str, **form: str) -> httpx.Response:
    origin = {"Origin": world.platform.url}
    return world.browser.post(f"/instances/{instance_id}/terminate", data=form, headers=origin)


def test_terminating_takes_a_second_step_and_a_reason(world):
    """The form is folded away, says that there is no way back, and leads back to the run."""
    run = world.start()
    page = world.get(f"/instances/{run}")
    form = page.one("form", method="post")
    assert form.attributes["action"] == f"/instances/{run}/terminate"
    assert "cannot be undone" in str(form)
    assert "required" in page.one("input", name="reason").attributes
    assert "open" not in page.one("details", class_="terminate").attributes

    response = terminate(world, run, reason="Too many <refunds> & more")

    assert (response.status_code, response.headers["location"]) == (303, f"/instances/{run}")
    after = world.get(f"/instances/{run}")
    assert after.all("form") == []
    assert after.facts()["Terminated because"] == "Too many <refunds> & more"


def test_the_agent_is_told_that_it_was_terminated(world):
    """The button really stops the agent: its next span brings the signal."""
    run = world.start()
    terminate(world, run, reason="enough")
    answer = world.post("/agent_spans", details=world.span_details(run, "next"))
    assert answer["control"] == {"terminate": True, "reason": "enough"}


def test_a_run_that_is_not_active_is_not_terminated(world):
    """Not by an old page either."""
    pending, ended = world.register(), world.start()
    world.finish(ended)
    for run in (pending, ended):
        assert world.get(f"/instances/{run}").all("form") == []
        response = terminate(world, run, reason="late")
        assert response.status_code == 409
        assert Page(response.text).all("a", href=f"/instances/{run}")


@pytest.mark.parametrize("form", [{}, {"reason": ""}, {"reason": "  \n"}, {"other": "x"}])
def test_terminating_needs_a_reason(world, form):
    """The reason is what the agent, and whoever reads the run later, is told."""
    run = world.start()
    assert terminate(world, run, **form).status_code == 422
    assert world.get(f"/instances/{run}").all("form") != []


def test_terminating_what_is_not_there_is_not_found(world):
    """Neither an unknown id nor nonsense is an error of ours."""
    for instance_id in (_ids.generate(), "nonsense"):
        assert terminate(world, instance_id, reason="x").status_code == 404


def test_looking_at_pages_changes_nothing(world):
    """A link, an image or a prefetch cannot terminate."""
    run = world.start()
    assert world.browser.get(f"/instances/{run}/terminate?reason=x").status_code == 405
    assert world.get(f"/instances/{run}").all("form") != []


def test_the_form_is_posted_with_its_origin(world):
    """Under the policy `no-referrer` browsers post `Origin: null`, which the guard refuses."""
    assert world.get("/").one("meta", name="referrer").attributes["content"] == "same-origin"


# What an agent recorded is text


def pages_with(world: World, text: str) -> list[Page]:
    """Return the pages of a run that has *text* wherever a client can put one."""
    agent_id = world.post("/agent", details={"name": text, "description": text})["details"]["id"]
    environment_id = world.post("/environment", details={"name": text})["details"]["id"]
    run = world.start(
        text, version=text, agent_id=agent_id, environment_id=environment_id, external_identifier=text
    )
    anything: Any = {text: [text, {text: text}]}
    error = {"error_type": text, "message": text, "stacktrace": text, text: text}
    span = world.span(
        run,
        text,
        payload={
            "inputs": anything,
            "metadata": anything,
            "token_usage": anything,
            "error": error,
            text: text,
        },
        result_payload=anything,
        status="failed",
        schema_name=text,
        parent_span_id=text,
    )
    pages = [
        world.get(f"/agents/{agent_id}?environment={environment_id}"),
        world.get(f"/instances/{run}"),
        world.get(f"/instances/{run}?span={span}"),
        world.get(f"/instances/{run}/spans/{span}"),
    ]
    world.post(f"/agent_instance/{run}/terminate", reason=text)
    return [*pages, world.get(f"/instances/{run}")]


def skeleton(page: Page) -> list[tuple[str, list[str]]]:
    """Return what the page is built of.

    Left out is what follows the data: the names to filter by, and the spans that colour JSON and break where it does.
    """
    return [
        (element.tag, sorted(element.attributes))
        for element in page.elements
        if element.tag not in ("span", "option") or "aria-current" in element.attributes
    ]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_what_an_agent_recorded_is_never_markup(hostile_world, harmless_pages, hostile):
    """Pages with a hostile text everywhere are built of the same elements as pages with a harmless one."""
    pages = pages_with(hostile_world, hostile)
    for page, harmless in zip(pages, harmless_pages, strict=True):
        assert skeleton(page) == skeleton(harmless)
        assert_is_ours(page)
    shown = _html.visible(hostile)
    agent, run, selected, alone, terminated = pages
    for page in (agent, run, selected):
        assert str(page.one("h1")) == shown
    for page in (selected, alone):
        assert str(page.one("h2")) == shown
        assert page.facts()["Span type"] == shown
        assert str(page.one("pre", class_="stack")) == shown
        for part in ("inputs", "result", "metadata", "tokens"):
            assert json.loads(page.section(part)) == {hostile: [hostile, {hostile: hostile}]}
    assert terminated.facts()["Terminated because"] == shown


def test_names_of_agents_are_never_markup(world):
    """The list of all of them is built of rows of ours."""
    for hostile in HOSTILE:
        world.post("/agent", details={"name": hostile, "description": hostile})
    page = world.get("/")
    assert_is_ours(page)
    assert len(page.rows()) == len(HOSTILE)
    shown = {_html.visible(_html.cut(hostile, 120)) for hostile in HOSTILE}
    assert {str(link) for link in page.all("a") if "/agents/" in link.attributes["href"]} == shown


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_addresses_are_never_markup(hostile_world, harmless_pages, hostile):
    """What a link can carry comes back as nothing but a page of ours."""
    parameters = httpx.QueryParams(dict.fromkeys(("span", "page", "status", "environment"), hostile[-200:]))
    for link in harmless_pages[0].all("a"):
        page = hostile_world.get(f"{link.attributes['href'].partition('?')[0]}?{parameters}")
        assert_is_ours(page)


def assert_is_ours(page: Page) -> None:
    """Check that the page holds only elements and attributes that the viewer makes, and stays on its server."""
    assert {element.tag for element in page.elements} <= TAGS
    assert {name for element in page.elements for name in element.attributes} <= ATTRIBUTES
    (script,) = page.all("script")
    assert (script.attributes["src"], str(script)) == ("/static/viewer.js", "")
    for element in page.elements:
        for name in ("href", "src", "action"):
            address = element.attributes.get(name, "/")
            assert re.fullmatch(r"/(?!/)[\w/.?=&#%+-]*|#\w+", address), address


# Assets


def test_pages_load_nothing_from_elsewhere(world):
    """Style sheet, script and icon come from this server, with the types that `nosniff` asks for."""
    page = world.get("/")
    links = [element.attributes["href"] for element in page.all("link")]
    for address, kind in zip(
        [*links, page.one("script").attributes["src"]],
        ["image/svg+xml", "text/css", "javascript"],
        strict=True,
    ):
        response = world.browser.get(address)
        assert response.status_code == 200
        assert kind in response.headers["content-type"]
        assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)\w+\.\w", response.text)


def test_pages_obey_the_content_security_policy(world):
    """No inline script, no inline style, no event attribute; the policy is sent."""
    run = world.start()
    world.span(run, "step")
    response = world.browser.get(f"/instances/{run}")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    page = Page(response.text)
    assert page.all("style") == []
    assert all(not re.match(r"on|style$", name) for element in page.elements for name in element.attributes)


def test_the_script_never_writes_markup():
    """Even the script has no way to make an element out of a text."""
    script = (STATIC / "viewer.js").read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML\s*=[^=]|insertAdjacentHTML|document\.write|\beval\b|new Function|\.cssText|\.srcdoc"
    assert re.findall(forbidden, script) == []


def test_a_stranger_sees_nothing(world):
    """The pages stand behind the guard."""
    run = world.start("secret-bot")
    for path in ("/", f"/instances/{run}", "/static/viewer.js"):
        response = httpx.get(world.platform.url + path)
        assert response.status_code == 401
        assert "secret-bot" not in response.text


# The pieces


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        (0, "0 µs"),
        (420, "420 µs"),
        (999, "999 µs"),
        (1_000, "1.00 ms"),
        (12_345, "12.3 ms"),
        (999_499, "999 ms"),
        (999_500, "1.00 s"),
        (1_240_000, "1.24 s"),
        (59_949_999, "59.9 s"),
        (59_950_000, "1 m 0 s"),
        (192_000_000, "3 m 12 s"),
        (3_599_400_000, "59 m 59 s"),
        (3_600_000_000, "1 h 0 m"),
        (86_399_000_000, "23 h 59 m"),
        (270_000_000_000, "3 d 3 h"),
    ],
)
def test_durations_are_written_for_people(microseconds, expected):
    """Three digits, then two units."""
    assert _html.duration(microseconds) == expected


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2026-07-20T10:15:30.123456Z", "2026-07-20 10:15:30.123"),
        ("2026-07-20T12:15:30+02:00", "2026-07-20 10:15:30.000"),
        ("2026-07-20T10:15:30", "2026-07-20 10:15:30.000"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+14:00"),
        ("yesterday <b>", "yesterday &lt;b&gt;"),
        (None, "\N{EN DASH}"),
    ],
)
def test_times_are_shown_in_utc_with_milliseconds(timestamp, expected):
    """What is no time is shown as it came."""
    shown = str(_html.element("p", _html.time_of(timestamp)))
    assert re.sub(r"</?(p|time)[^>]*>", "", shown) == expected


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        (0, "0"),
        (5, "5 µs"),
        (1_500, "1.5 ms"),
        (2_000_000, "2 s"),
        (90_000_000, "1 m 30 s"),
        (7_200_000_000, "2 h"),
    ],
)
def test_ticks_are_short(microseconds, expected):
    """A round time needs no zeros."""
    assert _tree._tick(microseconds) == expected


@pytest.mark.parametrize("power", range(15))
def test_the_axis_has_a_few_round_ticks_at_every_length(power):
    """From a microsecond to thirty years."""
    for factor in (1, 3, 7):
        ticks = list(_tree._Axis(0, factor * 10**power, is_open=False).ticks())
        assert 1 <= len(ticks) <= 6
        assert all(0 <= place < 100 for place, _ in ticks)


@pytest.mark.parametrize(
    "attributes",
    [
        {"onclick": "x"},
        {"style": "color:red"},
        {"srcdoc": "x"},
        {"href": "javascript:alert(1)"},
        {"href": "https://evil.example"},
        {"href": "//evil.example"},
        {"href": "/\\evil.example"},
        {"href": "/\t/evil.example"},
        {"src": "data:text/html,x"},
        {"action": ""},
        {"x y": "1"},
    ],
)
def test_an_element_that_could_do_harm_cannot_be_made(attributes):
    """Not even by a mistake of ours."""
    with pytest.raises(ValueError, match=r"attribute|stay on this server"):
        _html.element("a", **attributes)


@pytest.mark.parametrize("tag", ["script", "style"])
def test_inline_code_cannot_be_made(tag):
    """Escaping does not work inside these, so nothing goes there."""
    with pytest.raises(ValueError, match="static folder"):
        _html.element(tag, "x")


def test_half_a_character_is_shown_as_its_escape():
    """A lone surrogate would end the answer with an encoding error."""
    shown = str(_html.element("p", "a\ud800b", title="\udfff"))
    assert shown == '<p title="\\udfff">a\\ud800b</p>'
    assert json.loads(Page(str(_html.pretty_json(["\ud800"]))).text) == ["\ud800"]


@pytest.mark.parametrize(
    "value",
    [
        {"a": 'quote " and \\ backslash \\n not a break\nbreak'},
        ["\n", "a\n\nb", "", "true", "1e5", ":"],
        {"key: with colon": {"": [[], {}, -1.5e-7, 10**30, True, False, None]}},
        "x" * 300_000,
    ],
)
def test_pretty_json_is_still_json(value):
    """Colours and visible line breaks do not change the text that is copied."""
    assert json.loads(Page(str(_html.pretty_json(value))).text) == value

"""Runs repo_agent.py against a local platform of its own, shows the record, and checks it against the agent's journal.

    python examples/demo.py [--keep]

Exits with 0 if every step is recorded once, with its name, inputs, parent and status; else says what differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from repo_agent import QUESTION
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from prefactor_trace.server import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_AGENT = Path(__file__).with_name("repo_agent.py")
_COLOURS = {"complete": "green", "failed": "red", "cancelled": "yellow"}
_ANSWER_LINES = 4
_PAGE_SIZE = 10  # small, so that pages are turned

Json = dict[str, Any]


class Record(NamedTuple):
    """What the platform has: an agent, its run, and the run's spans in the order they began."""

    agent: Json
    run: Json
    spans: list[Json]


class Fact(NamedTuple):
    """A step, as the journal or the platform tells it."""

    id: Any
    parent: Any
    what: str
    status: str


def run_agent(platform: LocalPlatform, folder: Path) -> tuple[str, Json]:
    """Run the agent as a program of its own; return its answer and its journal. Raises CalledProcessError."""
    # Nothing of the user's own set-up: the demo is the same everywhere, and asks no model that costs money.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFACTOR_", "OPENAI_"))
    }
    environment |= {
        "PREFACTOR_API_URL": platform.url,
        "PREFACTOR_API_TOKEN": platform.token,
        "PREFACTOR_STATE_DIR": str(folder),
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",  # it beats the line above, so it must not be left as it was
    }
    journal = folder / "journal.json"
    command = [sys.executable, str(_AGENT), QUESTION, "--journal", str(journal)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return done.stdout, json.loads(journal.read_text(encoding="utf-8"))


def read_back(platform: LocalPlatform) -> Record:
    """Read the run from the platform, over HTTP like anybody else. Raises ValueError if it is not there, or not alone."""
    headers = {"Authorization": f"Bearer {platform.token}"}
    with httpx.Client(base_url=f"{platform.url}/api/v1/", headers=headers, trust_env=False) as client:
        agents = list(pages(client, "agent"))
        runs = [run for agent in agents for run in pages(client, "agent_instance", agent_id=agent["id"])]
        if len(agents) != 1 or len(runs) != 1:
            raise ValueError(f"one run happened, the platform has {len(runs)}, of {len(agents)} agents")
        agent, run = agents[0], runs[0]
        spans = pages(client, "agent_spans", agent_instance_id=run["id"])
        return Record(agent, run, sorted(spans, key=lambda span: str(span["started_at"])))


def pages(client: httpx.Client, path: str, **wanted: str) -> Iterator[Json]:
    """Yield everything in the list at *path*, page by page."""
    offset = 0
    while offset is not None:
        paging = {"pagination[offset]": offset, "pagination[page_size]": _PAGE_SIZE}
        answer = client.get(path, params={**wanted, **paging}).raise_for_status().json()
        yield from answer["summaries"]
        offset = answer["pagination"]["next_page_offset"]


def differences(journal: Json, record: Record) -> Iterator[str]:
    """Compare what the agent says it did with what the platform says it did."""
    happened = _by_path(
        Fact(step["number"], step["parent"], _call(step["name"], step["inputs"]), step["status"])
        for step in journal["steps"]
    )
    stored = _by_path(
        Fact(span["id"], span["parent_span_id"], _call_of(span), span["status"]) for span in record.spans
    )
    for path in sorted({*happened, *stored}):
        if happened[path] != stored[path]:
            yield f"{path}: happened {_all(happened[path])}, stored {_all(stored[path])}"
    if record.run["status"] != "complete":
        yield f"the run itself: complete, stored as {record.run['status']}"
    ledger = journal["ledger"]
    if ledger["pending"] or ledger["dropped"] or ledger["delivered"] != ledger["created"]:
        yield f"the ledger does not say that everything was delivered: {ledger}"


def _by_path(facts: Iterable[Fact]) -> defaultdict[str, list[str]]:
    """Return the statuses of all steps at the same place in the tree, by that place."""
    facts = list(facts)
    by_id = {fact.id: fact for fact in facts}
    statuses = defaultdict(list)
    for fact in facts:
        path, parent = fact.what, fact.parent
        while parent is not None:
            above = by_id.get(parent)
            path = f"{above.what if above else 'unknown'} > {path}"
            parent = above.parent if above else None
        statuses[path].append(fact.status)
        statuses[path].sort()
    return statuses


def _call(name: str, inputs: Json) -> str:
    return f"{name}({', '.join(json.dumps(given, sort_keys=True) for given in inputs.values())})"


def _call_of(span: Json) -> str:
    return _call(span["payload"].get("name", "?"), span["payload"].get("inputs", {}))


def _all(statuses: Sequence[str]) -> str:
    return " and ".join(statuses) or "never"


def picture(record: Record) -> Table:
    """Return the run as a tree, each step with its status, its start and its duration."""
    children = defaultdict(list)
    for span in record.spans:
        children[span["parent_span_id"]].append(span)
    shown = [record.run]

    def grow(branch: Tree, spans: Iterable[Json]) -> None:
        for span in spans:
            shown.append(span)
            grow(branch.add(_label(span)), children[span["id"]])

    tree = Tree(Text(record.agent["name"], style="bold"), guide_style="dim")
    grow(tree, children[None])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("step", min_width=30)
    table.add_column("status", no_wrap=True)
    table.add_column("start", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    began = _time(record.run["started_at"])
    table.add_row(
        tree,
        Group(*(Text(each["status"], style=_COLOURS.get(each["status"], "")) for each in shown)),
        Group(*(Text(f"{_time(each['started_at']) - began:+.3f} s") for each in shown)),
        Group(*(Text(_duration(each)) for each in shown)),
    )
    return table


def _label(span: Json) -> Text:
    label = Text(_shown(span["payload"].get("name", "?")), no_wrap=True, overflow="ellipsis")
    inputs = ", ".join(_shown(given) for given in span["payload"].get("inputs", {}).values())
    label.append(f"  {textwrap.shorten(inputs, 42, placeholder=' ...')}", style="dim")
    if span["status"] == "failed":
        label.append(f"  {(span['result_payload'] or {}).get('error_type', '')}", style="red")
    return label


def _shown(given: object) -> str:
    return given if isinstance(given, str) else json.dumps(given)


def _duration(span: Json) -> str:
    if span["finished_at"] is None:
        return "not ended"
    return f"{1000 * (_time(span['finished_at']) - _time(span['started_at'])):.1f} ms"


def _time(moment: str) -> float:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def show(say: Console, platform: LocalPlatform, folder: Path, *, keep: bool) -> int:
    """Run the agent, show its record and the verdict. Return the exit code."""
    say.print(
        Text("An agent answers a question about this repository, and its run is recorded.", style="bold")
    )
    say.print(
        Text("On its way a file is missing, and a slow scan is stopped: the record has to tell the same.\n")
    )
    say.print(Text(f"Platform  {platform.url}, on this machine, for this demo\nQuestion  {QUESTION}"))
    try:
        answer, journal = run_agent(platform, folder)
    except subprocess.CalledProcessError as error:
        say.print(Text(f"The agent did not come through:\n{error.stderr}", style="red"))
        return 1
    say.print(Text("\nIts answer", style="bold"))
    lines = answer.splitlines()
    more = len(lines) - _ANSWER_LINES
    for line in [*lines[:_ANSWER_LINES], *([f"... ({more} more lines)"] if more > 0 else [])]:
        indent = 2 + len(line) - len(line.lstrip())
        say.print(Padding(Text(line.strip()), (0, 0, 0, indent), expand=False))

    try:
        record = read_back(platform)
    except ValueError as error:
        say.print(Text(f"\nDiffers   {error}", style="red"))
        return 1
    say.print(Text("\nIts record, read back from the platform", style="bold"))
    say.print(picture(record))
    page = f"{platform.url}/instances/{record.run['id']}"
    if keep:
        say.print(Text(f"\nViewer    {page}?token={platform.token}\nFolder    {folder}"), soft_wrap=True)
    else:
        say.print(Text(f"\nViewer    {page}\n          (`make demo KEEP=1` leaves it open)"))
    wrong = list(differences(journal, record))
    for each in wrong:
        say.print(Text(f"Differs   {each}", style="red"))
    if not wrong:
        say.print(
            Text(f"Verdict   {len(record.spans)} steps recorded, all as they happened", style="bold green")
        )
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Return the exit code."""
    parser = argparse.ArgumentParser(description="Record a run of a real agent, show it and check it.")
    parser.add_argument("--keep", action="store_true", help="leave the platform running until Ctrl+C")
    keep = parser.parse_args(argv).keep
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may have an encoding that cannot draw a tree
    say = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="prefactor-demo-")
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        platform = stack.enter_context(LocalPlatform(Path(folder) / "platform.sqlite3"))
        code = show(say, platform, Path(folder), keep=keep)
        if keep:
            say.print(Text("\nThe platform goes on until Ctrl+C."))
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

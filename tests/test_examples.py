"""The examples do what they say: each runs as a program against a local platform, and what is stored is looked at."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from prefactor_trace.testing import recording

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIMAL = {
    "sync_minimal.py": "total: 10",
    "async_minimal.py": "total: 10",
    "threads.py": "letters: 13",
    "process_pool.py": "letters: 13",
    "two_services.py": "total: 7",
}
QUESTION = "When is the kettle switched off?"


@pytest.fixture
def kitchen(tmp_path):
    """A small repository to ask about, with something beside it that is none of the agent's business."""
    root = tmp_path / "kitchen"
    (root / "src").mkdir(parents=True)
    (root / "src" / "kettle.py").write_text(
        '"""Heats water. The kettle is switched off as soon as the water boils."""\n\n\n'
        'def fill():\n    """Fill the kettle."""\n',
        encoding="utf-8",
    )
    (root / "README.md").write_text(
        "# Kitchen\n\nFor tea: the kettle. For cake: the oven.\n", encoding="utf-8"
    )
    (root / "src" / "broken.py").write_text("kettle kettle kettle = (\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("the safe's code", encoding="utf-8")
    return root


@pytest.fixture
def demo(monkeypatch):
    """The demo as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("demo")


def run(script, *arguments, platform=None, folder=EXAMPLES, warnings="error", **environment):
    """Run an example as a program, with nothing of the developer's own set-up."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environ |= {"PYTHONUTF8": "1", "PYTHONPATH": str(EXAMPLES.parent), "NO_PROXY": "127.0.0.1"}
    if platform is not None:
        environ |= {"PREFACTOR_API_URL": platform.url, "PREFACTOR_API_TOKEN": platform.token}
    command = [sys.executable, "-W", warnings, str(folder / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environ | environment, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


class Stored:
    """The one run that a platform has, read over HTTP."""

    def __init__(self, platform):
        headers = {"Authorization": f"Bearer {platform.token}"}
        with httpx.Client(base_url=f"{platform.url}/api/v1/", headers=headers, trust_env=False) as client:
            (self.agent,) = client.get("agent").json()["summaries"]
            (self.run,) = client.get("agent_instance", params={"agent_id": self.agent["id"]}).json()[
                "summaries"
            ]
            wanted = {"agent_instance_id": self.run["id"], "pagination[page_size]": 100}
            listed = client.get("agent_spans", params=wanted).json()
        assert listed["pagination"]["next_page_offset"] is None
        self.spans = listed["summaries"]

    def tree(self):
        """The spans as nested lists of name and status, siblings by their start."""
        children = defaultdict(list)
        for span in self.spans:
            children[span["parent_span_id"]].append(span)

        def below(parent):
            return [
                [f"{span['payload']['name']} {span['status']}", *below(span["id"])]
                for span in children[parent]
            ]

        return below(None)

    def named(self, name):
        return [span for span in self.spans if span["payload"]["name"] == name]


# -- the minimal ones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["sync_minimal.py", "async_minimal.py"])
def test_a_minimal_example_is_recorded(script, platform):
    """Both say the same and store the same: a step with its three steps inside, with arguments and results."""
    done = run(script, platform=platform)
    assert (done.returncode, done.stderr) == (0, "")
    stored = Stored(platform)
    assert (stored.agent["name"], stored.run["status"]) == ("cashier", "complete")
    assert stored.tree() == [["add_up complete", *[["look_up complete"]] * 3]]
    assert sorted(
        (span["payload"]["inputs"]["item"], span["result_payload"]["output"])
        for span in stored.named("look_up")
    ) == [("coffee", 4), ("tea", 3), ("tea", 3)]
    assert stored.named("add_up")[0]["result_payload"] == {"output": 10}
    assert done.stdout.startswith(f"total: 10\nrun: {stored.run['id']}\n")
    assert f"see it at: {platform.url}/instances/{stored.run['id']}\n" in done.stdout
    assert "Ledger(created=7, delivered=7, dropped={}, pending=0" in done.stdout


def test_async_steps_run_side_by_side(platform):
    """What `gather` runs at once overlaps in the record."""
    run("async_minimal.py", platform=platform)
    looked_up = Stored(platform).named("look_up")
    assert max(span["started_at"] for span in looked_up) < min(span["finished_at"] for span in looked_up)


def test_threads_know_their_run(platform):
    """What a pool and a plain thread were handed carried is recorded below the step that handed it over."""
    done = run("threads.py", platform=platform)
    assert (done.returncode, done.stderr) == (0, "")
    stored = Stored(platform)
    assert stored.run["status"] == "complete"
    assert stored.tree() == [
        ["agent:count complete", *[["count_letters complete"]] * 3],
        ["note_done complete"],
    ]
    assert "letters: 13" in done.stdout


def test_processes_know_their_run(platform, tmp_path):
    """What a pool of processes did is recorded below the step that made the pool, and delivered with it."""
    done = run("process_pool.py", platform=platform, PREFACTOR_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    stored = Stored(platform)
    assert stored.run["status"] == "complete"
    assert stored.tree() == [["agent:count complete", *[["count_letters complete"]] * 3]]
    assert "letters: 13" in done.stdout
    assert "pending=0" in done.stdout


def test_services_know_their_run(platform, tmp_path):
    """Two processes that talk over HTTP record one run: each answer below the question."""
    done = run("two_services.py", platform=platform, PREFACTOR_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    stored = Stored(platform)
    assert (stored.agent["name"], stored.run["status"]) == ("shopper", "complete")
    assert stored.tree() == [["ask complete", ["service:price complete", ["look_up complete"]]]] * 2
    assert [span["payload"]["inputs"]["item"] for span in stored.named("look_up")] == ["tea", "coffee"]
    assert "total: 7" in done.stdout


def test_calls_of_a_model_are_steps(platform, tmp_path):
    """The model's calls stand beside the tool that it wanted, with their tokens; the agent's code says nothing of them."""
    pytest.importorskip("openai")
    done = run("llm_agent.py", platform=platform, PREFACTOR_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    stored = Stored(platform)
    assert stored.tree() == [
        ["chat gpt-4o-mini complete"],
        ["tool:weather complete"],
        ["chat gpt-4o-mini complete"],
    ]
    calls = stored.named("chat gpt-4o-mini")
    assert [call["payload"]["token_usage"]["total_tokens"] for call in calls] == [50, 50]
    assert "answer: It is 18 degrees and sunny in Paris." in done.stdout
    assert "pending=0" in done.stdout


@pytest.mark.parametrize("script", MINIMAL)
def test_a_minimal_example_needs_no_platform(script):
    """With nowhere to send to, the agent does its work all the same; a log line says what to start."""
    done = run(script)
    assert done.returncode == 0
    assert MINIMAL[script] in done.stdout
    assert "delivered=0" in done.stdout
    assert "see it at" not in done.stdout
    assert "prefactor-trace serve" in done.stderr
    assert "Traceback" not in done.stderr


# -- the repository agent --------------------------------------------------------------------------------------


def test_the_agent_answers_with_sources(platform, kitchen):
    """Without a model it quotes the sentence that answers, and where that stands; its whole work is recorded."""
    done = run("repo_agent.py", QUESTION, "--root", kitchen, platform=platform)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[:2]
    assert first == "src/kettle.py:1"
    assert second == "    The kettle is switched off as soon as the water boils."
    stored = Stored(platform)
    assert (stored.agent["name"], stored.run["status"]) == ("repo-agent", "complete")
    assert [step[0] for step in stored.tree()] == [
        "agent:plan complete",
        "agent:search complete",
        "agent:read complete",
        "agent:answer complete",
    ]
    assert stored.named("agent:plan")[0]["result_payload"] == {
        "words": ["kettle", "switched", "off"],
        "files": ["README.md", "docs/kettle.md"],
    }


def test_a_tool_that_fails_is_recorded_as_failed(platform, kitchen):
    """The step that handled the failure is complete, the failed one says why, and the run goes on."""
    run("repo_agent.py", QUESTION, "--root", kitchen, platform=platform)
    stored = Stored(platform)
    (failed,) = [span for span in stored.spans if span["status"] == "failed"]
    assert failed["payload"]["name"] == "Repository.read"
    assert failed["payload"]["inputs"] == {"file": "docs/kettle.md"}
    assert failed["result_payload"]["error_type"] == "FileNotFoundError"
    (above,) = [span for span in stored.spans if span["id"] == failed["parent_span_id"]]
    assert (above["payload"]["name"], above["status"]) == ("Repository.study", "complete")


def test_a_scan_that_finds_something_in_time_helps(platform, kitchen):
    """A line that reads like the question is quoted, though its file is not among the best."""
    (kitchen / "FAQ.md").write_text("when is the kettles' switch of?\n", encoding="utf-8")
    for number in range(5):
        (kitchen / "src" / f"kettle_{number}.py").write_text(
            '"""A kettle, switched off."""\n', encoding="utf-8"
        )
    done = run("repo_agent.py", QUESTION, "--root", kitchen, "--patience", 60, platform=platform)
    (scan,) = Stored(platform).named("Repository.scan")
    assert scan["status"] == "complete"
    assert [found["file"] for found in scan["result_payload"]["output"]] == ["FAQ.md"]
    assert "FAQ.md" not in json.dumps(Stored(platform).named("agent:read")[0]["payload"])
    assert "FAQ.md:1\n    when is the kettles' switch of?" in done.stdout


def test_a_scan_that_takes_too_long_is_recorded_as_cancelled(platform, kitchen):
    """At the limit the scan is stopped; what waited for it goes on, and so does the run."""
    (kitchen / "long.txt").write_text("nothing of interest\n" * 100_000, encoding="utf-8")
    done = run("repo_agent.py", QUESTION, "--root", kitchen, "--patience", 0.01, platform=platform)
    stored = Stored(platform)
    (scan,) = stored.named("Repository.scan")
    assert (done.returncode, scan["status"], stored.run["status"]) == (0, "cancelled", "complete")
    assert [span["status"] for span in stored.named("agent:search")] == ["complete"]


@pytest.mark.parametrize("question", ["Quo vadis?", "How is it?"])
def test_the_agent_says_when_it_finds_nothing(question, kitchen):
    """A question that the repository says nothing about gets that answer, and no platform is needed for it."""
    done = run("repo_agent.py", question, "--root", kitchen)
    assert done.returncode == 0
    assert done.stdout == "Nothing in this repository seems to answer that.\n"
    assert "prefactor-trace serve" in done.stderr


def test_the_agent_stops_when_its_run_is_terminated(kitchen, monkeypatch, capsys):
    """If the platform terminates the run, the next step does not begin, and the program says why it stops."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    repo_agent = importlib.import_module("repo_agent")

    class Stopped(repo_agent.Counting):
        async def plan(self):
            plan = await super().plan()
            repo_agent.pt.current_instance().heard_terminated("enough tea")
            return plan

    monkeypatch.setattr(repo_agent, "Counting", Stopped)
    with recording() as recorded:
        assert repo_agent.main([QUESTION, "--root", str(kitchen)]) == 1
    assert [span.name for span in recorded.spans] == ["agent:plan"]
    said = capsys.readouterr()
    assert (said.out, "terminated by the platform: enough tea" in said.err) == ("", True)


# -- with a language model -------------------------------------------------------------------------------------


@contextlib.contextmanager
def chat_completions(*replies):
    """Serve the chat completions API with these replies in turn; a number is an HTTP error. Yields the requests."""
    asked = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "authorization": self.headers["Authorization"], **body})
            reply = replies[len(asked) - 1]
            status, answer = (
                (reply, {"error": {"message": "no"}}) if isinstance(reply, int) else (200, completion(reply))
            )
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    def completion(text):
        return {
            "id": f"chatcmpl-{len(asked)}",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny-1",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


def run_with_model(base_url, kitchen, platform):
    pytest.importorskip("openai")
    return run(
        "repo_agent.py",
        QUESTION,
        "--root",
        kitchen,
        platform=platform,
        warnings="default",  # what the SDK warns of is not ours
        OPENAI_API_KEY="test-key",
        OPENAI_BASE_URL=base_url,
        OPENAI_MODEL="tiny",
    )


def test_a_model_plans_and_answers(platform, kitchen):
    """With a key, the model's plan is carried out and its answer printed; both calls are steps with their tokens."""
    plan = '```json\n{"words": ["Boils"], "files": ["src/kettle.py", "../secret.txt"]}\n```'
    with chat_completions(plan, "Once it boils (src/kettle.py:1).") as (base_url, asked):
        done = run_with_model(base_url, kitchen, platform)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Once it boils (src/kettle.py:1).\n"
    assert [(each["path"], each["model"], each["authorization"]) for each in asked] == [
        ("/v1/chat/completions", "tiny", "Bearer test-key")
    ] * 2
    stored = Stored(platform)
    assert stored.tree()[0] == ["agent:plan complete", ["llm:chat complete"]]
    assert stored.tree()[3] == ["agent:answer complete", ["llm:chat complete"]]
    assert [span["payload"]["inputs"]["prompt"] for span in stored.named("llm:chat")] == [
        each["messages"][0]["content"] for each in asked
    ]
    answered = stored.named("llm:chat")[1]
    assert answered["result_payload"] == {"text": "Once it boils (src/kettle.py:1)."}
    assert answered["payload"]["metadata"]["usage"]["total_tokens"] == 9
    assert [span["payload"]["inputs"] for span in stored.named("Repository.search")] == [{"word": "boils"}]


def test_a_model_cannot_read_outside_of_the_repository(platform, kitchen):
    """A plan that names a file elsewhere fails in that step, and nothing of the file leaves for the model."""
    plan = json.dumps({"words": ["code"], "files": ["../secret.txt", str(kitchen.parent / "secret.txt")]})
    with chat_completions(plan, "I do not know.") as (base_url, asked):
        done = run_with_model(base_url, kitchen, platform)
    assert done.returncode == 0, done.stderr
    failed = [span for span in Stored(platform).spans if span["status"] == "failed"]
    assert [span["result_payload"]["error_type"] for span in failed] == ["PermissionError"] * 2
    assert "safe" not in json.dumps(asked)


def test_a_useless_plan_is_replaced(platform, kitchen):
    """If the model replies with no plan, the words of the question are searched for."""
    with chat_completions("Let me think.", "Once it boils.") as (base_url, asked):
        done = run_with_model(base_url, kitchen, platform)
    assert done.returncode == 0, done.stderr
    assert "The kettle is switched off as soon as the water boils." in asked[1]["messages"][0]["content"]


def test_a_model_that_refuses_fails_the_run(platform, kitchen):
    """An error of the SDK passes through unchanged; the call, the step around it and the run are recorded as failed."""
    with chat_completions(401) as (base_url, _):
        done = run_with_model(base_url, kitchen, platform)
    assert done.returncode == 1
    assert "openai.AuthenticationError" in done.stderr
    stored = Stored(platform)
    assert (stored.run["status"], stored.tree()) == ("failed", [["agent:plan failed", ["llm:chat failed"]]])
    assert stored.named("llm:chat")[0]["result_payload"]["error_type"] == "openai.AuthenticationError"


# -- the demo --------------------------------------------------------------------------------------------------


def test_the_demo_shows_a_run_and_approves_it(tmp_path):
    """It prints question, answer, tree, address and verdict as plain text, exits with 0 and leaves nothing behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = run("demo.py", TMPDIR=str(folder), TEMP=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    assert "\x1b" not in shown
    assert "Question  How does the outbox decide when a batch leaves?" in shown
    assert re.search(r"^  \S+:\d+\n      \w", shown, re.MULTILINE), "a quotation, with where it stands"
    assert re.search(r"^repo-agent +complete +\+0\.000 s +\d+\.\d ms$", shown, re.MULTILINE)
    assert re.search(r"^├── agent:plan .* complete ", shown, re.MULTILINE)
    assert re.search(r"^│   └── Repository\.scan .* cancelled ", shown, re.MULTILINE)
    assert re.search(
        r"^│   │   └── Repository\.read  docs/outbox\.md  FileNotFoundError +failed ", shown, re.MULTILINE
    )
    assert re.search(r"^Viewer    http://127\.0\.0\.1:\d+/instances/\w{32}$", shown, re.MULTILINE)
    verdict = re.search(r"^Verdict   (\d+) steps recorded, all as they happened$", shown, re.MULTILINE)
    assert int(verdict[1]) == len(re.findall(r"── ", shown)) > 10
    assert list(folder.iterdir()) == []


def test_the_demo_does_not_need_a_terminal_that_can_draw():
    """An output that knows ASCII only gets a tree of ASCII."""
    done = run("demo.py", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "+-- agent:plan" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no Ctrl+C to send to another process")
def test_the_demo_stays_open_if_asked(tmp_path):
    """With --keep, the printed address opens the run in the viewer until Ctrl+C, which ends it in peace."""
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--keep"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as kept:
        try:
            shown = {}
            for line in kept.stdout:
                label, _, value = line.partition("    ")
                shown[label] = value.strip()
                if "until Ctrl+C" in line:
                    break
            page = httpx.get(shown["Viewer"], follow_redirects=True, trust_env=False)
            assert page.status_code == 200
            assert "Repository.scan" in page.text
            kept.send_signal(signal.SIGINT)
            assert (kept.wait(10), kept.stderr.read()) == (0, "")
            assert (Path(shown["Folder"]) / "platform.sqlite3").exists()
        finally:
            kept.kill()


@pytest.fixture
def told(demo, platform, kitchen, tmp_path):
    """What the agent says it did, and what the platform has."""
    journal = tmp_path / "journal.json"
    done = run("repo_agent.py", QUESTION, "--root", kitchen, "--journal", journal, platform=platform)
    assert done.returncode == 0
    return json.loads(journal.read_text(encoding="utf-8")), demo.read_back(platform)


def test_the_demo_finds_every_difference(demo, told):
    """A step lost, invented, doubled, renamed, moved, changed or ended otherwise is told; so is a run or a ledger."""
    journal, record = told
    assert list(demo.differences(journal, record)) == []

    def after(change):
        changed = copy.deepcopy(journal), copy.deepcopy(record)
        change(*changed)
        return list(demo.differences(*changed))

    plan = 'agent:plan("When is the kettle switched off?")'
    assert after(lambda journal, _: journal["steps"].pop(0)) == [f"{plan}: happened never, stored complete"]
    assert after(lambda _, record: record.spans.pop(0)) == [f"{plan}: happened complete, stored never"]
    for id_ in (record.spans[0]["id"], "another"):
        assert after(lambda _, record, id_=id_: record.spans.append({**record.spans[0], "id": id_})) == [
            f"{plan}: happened complete, stored complete and complete"
        ]
    assert after(lambda journal, _: journal["steps"][0].update(status="failed")) == [
        f"{plan}: happened failed, stored complete"
    ]
    assert len(after(lambda journal, _: journal["steps"][0].update(name="plan"))) == 2
    assert len(after(lambda journal, _: journal["steps"][0]["inputs"].update(question="Why?"))) == 2
    moved = after(lambda journal, _: journal["steps"][2].update(parent=journal["steps"][0]["number"]))
    assert len(moved) == 2
    assert moved[0].startswith(f"{plan} > Repository.")
    assert any(each.startswith("unknown > ") for each in after(lambda _, record: record.spans.pop(1))), (
        "a step whose parent is not stored"
    )
    assert after(lambda _, record: record.run.update(status="active")) == [
        "the run itself: complete, stored as active"
    ]
    for wrong in ({"pending": 1}, {"dropped": {"exit": 1}}, {"delivered": 0}):
        (said,) = after(lambda journal, _, wrong=wrong: journal["ledger"].update(wrong))
        assert said.startswith("the ledger does not say that everything was delivered")


@pytest.fixture
def own_copy(tmp_path):
    """A copy of the examples, to change."""
    return Path(
        shutil.copytree(EXAMPLES, tmp_path / "copy" / "examples", ignore=shutil.ignore_patterns("__*"))
    )


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_demo_fails_if_the_record_differs(own_copy):
    """An agent whose journal calls failures complete is found out: the difference is printed, the exit code is 1."""
    change(own_copy / "journal.py", 'step["status"] = "failed"', 'step["status"] = "complete"')
    done = run("demo.py", folder=own_copy)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Differs   agent:read" in done.stdout
    assert "happened complete, stored failed" in " ".join(done.stdout.split())
    assert "as they happened" not in done.stdout


def test_the_demo_fails_if_the_agent_does(own_copy):
    """If the agent cannot run, the demo says what the agent said, and the exit code is 1."""
    change(
        own_copy / "repo_agent.py",
        "    answer = asyncio.run",
        '    sys.exit("no kettle")\n        answer = asyncio.run',
    )
    done = run("demo.py", folder=own_copy)
    assert (done.returncode, done.stderr) == (1, "")
    assert "The agent did not come through:\nno kettle" in done.stdout


def test_the_demo_fails_if_nothing_is_recorded(own_copy):
    """If the run did not arrive at all, that is the difference."""
    change(own_copy / "demo.py", '"PYTHONUTF8": "1",', '"PREFACTOR_DISABLED": "1",')
    done = run("demo.py", folder=own_copy)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Differs   one run happened, the platform has 0, of 0 agents" in done.stdout

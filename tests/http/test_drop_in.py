"""Code written for `prefactor-http` works after its import is changed: the official core, and the official README."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
from hostile_server import HostileServer, always

import prefactor_trace.http
from prefactor_trace.server import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytest.importorskip("prefactor_http")

VERSION = {"name": "My Agent", "external_identifier": "v1.0.0"}
SCHEMA = {
    "external_identifier": "s1",
    "span_type_schemas": [{"name": "agent:llm", "title": "LLM Call", "params_schema": {"type": "object"}}],
}


class Platform:
    """A local platform of the test's own, and what it has stored, read over its API."""

    def __init__(self, platform: LocalPlatform) -> None:
        self.url, self.token = platform.url, platform.token

    def call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, trust_env=False) as http:
            return http.request(method, path, **options).raise_for_status().json()

    def get(self, path: str, **parameters: str) -> Any:
        return self.call("GET", path, params=parameters)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.call("POST", path, json=body)

    def run(self, run_id: str) -> dict[str, Any]:
        return self.get(f"agent_instance/{run_id}")["details"]

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs of all agents."""
        agents = [each["id"] for each in self.get("agent")["summaries"]]
        return [run for agent in agents for run in self.get("agent_instance", agent_id=agent)["summaries"]]

    def spans(self, run_id: str) -> list[dict[str, Any]]:
        return self.get("agent_spans", agent_instance_id=run_id)["summaries"]


@pytest.fixture
def platform(tmp_path):
    with LocalPlatform(tmp_path / "db.sqlite3") as platform:
        yield Platform(platform)


# -- the official core -------------------------------------------------------------------------------------


@pytest.fixture
def core(monkeypatch) -> Iterator[ModuleType]:
    """Return the official `prefactor_core`, loaded anew, unchanged, with our package where it finds `prefactor_http`."""
    pytest.importorskip("prefactor_core")
    packages = ("prefactor_core", "prefactor_http", "aiohttp")
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    ours = prefactor_trace.http
    monkeypatch.setitem(sys.modules, "prefactor_http", ours)
    for each in pkgutil.walk_packages(ours.__path__, ours.__name__ + "."):
        alias = each.name.replace(ours.__name__, "prefactor_http")
        monkeypatch.setitem(sys.modules, alias, importlib.import_module(each.name))
    version = ModuleType("prefactor_http._version")
    version.PACKAGE_NAME = "prefactor-trace"
    version.PACKAGE_VERSION = version.__version__ = ours.__version__
    monkeypatch.setitem(sys.modules, version.__name__, version)
    yield importlib.import_module("prefactor_core")
    loaded = {name.split(".")[0] for name in sys.modules}
    for name in [name for name in sys.modules if name.split(".")[0] == "prefactor_core"]:
        del sys.modules[name]
    assert "aiohttp" not in loaded, "the official client was used after all"


@pytest.fixture
def use_core(core, platform):
    """Return what runs a function with a client of the official core."""
    registry = core.SchemaRegistry()
    registry.register_type(name="agent:llm", params_schema={"type": "object"}, title="LLM Call")

    def use(function: Callable[[Any], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            config = core.PrefactorCoreConfig(
                http_config=prefactor_trace.http.HttpClientConfig(platform.url, platform.token),
                schema_registry=registry,
            )
            async with core.PrefactorCoreClient(config) as client:
                return await function(client)

        return asyncio.run(main())

    return use


def by_who(spans: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {span["payload"].get("who", "nobody"): span for span in spans}


class TestCore:
    def test_stands_on_ours(self, core):
        """What the official core holds for its client is ours."""
        assert (
            sys.modules["prefactor_core.client"].PrefactorHttpClient
            is prefactor_trace.http.PrefactorHttpClient
        )
        assert sys.modules["prefactor_core.config"].HttpClientConfig is prefactor_trace.http.HttpClientConfig

    def test_quick_start(self, core, platform):
        """The quick start of its README runs as it is printed, and its run is recorded."""
        (code,) = [block for block in readme_blocks("prefactor-core") if "asyncio.run" in block]
        code = filled(code, {"https://app.prefactorai.com": platform.url, "your-token": platform.token})

        async def call_llm() -> str:
            return "Hello back"

        exec(code, {"call_llm": call_llm, "__name__": "readme"})
        (run,) = platform.runs()
        (span,) = platform.spans(run["id"])

        assert run["status"] == "complete"
        assert (span["schema_title"], span["status"]) == ("LLM Call", "complete")
        assert span["payload"] == {"model": "gpt-4", "prompt": "Hello"}
        assert span["result_payload"] == {"response": "Hello back"}

    def test_nested_spans(self, use_core, platform):
        """Two nested spans are recorded, the inner one below the outer one, which fails."""

        async def use(client):
            run = await client.create_agent_instance(VERSION, agent_id="nested")
            await run.start()
            async with run.span("agent:llm") as outer:
                await outer.start({"who": "outer"})
                async with run.span("agent:llm") as inner:
                    await inner.start({"who": "inner"})
                    await inner.complete({"answer": 42})
                await outer.fail({"error": "too late"})
            await run.finish("failed")
            return run.id

        run = use_core(use)
        spans = by_who(platform.spans(run))

        assert platform.run(run)["status"] == "failed"
        assert {who: (span["status"], span["result_payload"]) for who, span in spans.items()} == {
            "outer": ("failed", {"error": "too late"}),
            "inner": ("complete", {"answer": 42}),
        }
        assert (spans["outer"]["parent_span_id"], spans["inner"]["parent_span_id"]) == (
            None,
            spans["outer"]["id"],
        )

    def test_several_runs(self, use_core, platform):
        """Runs at the same time are kept apart, and a span that never started is recorded as cancelled."""

        async def use(client):
            runs = [await client.create_agent_instance(VERSION, agent_id=f"agent-{n}") for n in range(3)]
            for run in runs:
                await run.start()
            for number, run in enumerate(runs):
                async with run.span("agent:llm", payload={"who": f"step of {number}"}):
                    pass
                async with run.span("agent:llm") as never:
                    await never.cancel()
            for run in runs:
                await run.finish()
            return [run.id for run in runs]

        ids = use_core(use)

        assert sorted(ids) == sorted(run["id"] for run in platform.runs())
        assert [platform.run(run)["status"] for run in ids] == ["complete"] * 3
        for number, run in enumerate(ids):
            states = {who: span["status"] for who, span in by_who(platform.spans(run)).items()}
            assert states == {f"step of {number}": "complete", "nobody": "cancelled"}

    def test_quality(self, use_core, platform):
        """An evaluation that is recorded through the official core is there."""
        schema = {**SCHEMA, "quality_schemas": [{"name": "verdict", "schema": {"type": "object"}}]}

        async def use(client):
            run = await client.create_agent_instance(VERSION, schema, agent_id="rated")
            await run.start()
            await run.record_quality("verdict", {"ok": True})
            await run.finish()
            return run.id

        assert platform.run(use_core(use))["quality_payloads"] == {"verdict": {"ok": True}}

    def test_termination(self, use_core, platform):
        """A run that is terminated is stopped with its next step, with the reason; to finish it is no error."""

        async def use(client):
            run = await client.create_agent_instance(VERSION, agent_id="stopped")
            await run.start()
            span = await run.create_span("agent:llm")

            async def until_active():
                while (await client._http.agent_instances.get(run.id)).status != "active":
                    pass

            await asyncio.wait_for(until_active(), 10)
            platform.post(f"agent_instance/{run.id}/terminate", {"reason": "over budget"})
            stopped = client._termination_monitor.get_termination_event()
            await run.finish_span(span)
            await asyncio.wait_for(stopped.wait(), 10)
            assert client._termination_monitor.termination_reason == "over budget"
            await run.finish()
            return run.id

        run = platform.run(use_core(use))

        assert (run["status"], run["termination_reason"]) == ("terminated", "over budget")

    def test_names_itself(self, core):
        """What speaks through the official core is named to the platform, even an adaptor that comes late."""

        async def main(url: str) -> None:
            config = core.PrefactorCoreConfig(http_config=prefactor_trace.http.HttpClientConfig(url, "token"))
            async with core.PrefactorCoreClient(config) as client:
                client._set_sdk_header_entry("adaptor@1.0")
                await client._http.validate_token()

        with HostileServer(always(200, b'{"status": "success"}')) as server:
            asyncio.run(main(server.url))
        early, late = (request.headers["x-prefactor-sdk"] for request in server.requests)

        assert early.startswith("prefactor-core@")
        assert late == f"adaptor@1.0 {early}"


# -- the official README -----------------------------------------------------------------------------------


def readme_blocks(distribution: str) -> list[str]:
    """Return the Python of an installed package's README, as it is printed there."""
    metadata = importlib.metadata.metadata(distribution)
    text = metadata.get_payload() or metadata["Description"]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def filled(code: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        code = code.replace(placeholder, value)
    return code


def execute(code: str, names: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run a block as a notebook does: its names stay for the next one, and it may await at its top level."""
    program = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(program, names)
    if inspect.iscoroutine(result):
        runner.run(result)


@pytest.mark.parametrize("package", ["prefactor_http", "prefactor_trace.http"])
def test_readme(package, platform, capsys):
    """All Python in the README of `prefactor-http` does the same with it and, the import changed, with ours."""
    http = importlib.import_module(package)
    agent = platform.post("agent", {"details": {"name": "A"}})["details"]["id"]
    versions = {"agent_version": VERSION, "agent_schema_version": SCHEMA}
    run = platform.post("agent_instance/register", {"agent_id": agent, **versions})["details"]["id"]
    platform.post(f"agent_instance/{run}/start", {})
    values = {
        "from prefactor_http import": f"from {package} import",
        "https://app.prefactorai.com": platform.url,
        "your-api-token": platform.token,
        "your-token": platform.token,
        "agent_123": agent,
        "instance_123": run,
        "{...}": "{}",
        "register(...)": "register(agent_version={}, agent_schema_version={})",
    }
    blocks = readme_blocks("prefactor-http")
    assert [each for each in values if not any(each in block for block in blocks)] == []

    with asyncio.Runner() as runner:
        config = http.HttpClientConfig(platform.url, platform.token)
        client = runner.run(http.PrefactorHttpClient(config).__aenter__())
        names = {"client": client, "config": config, "__name__": "readme"}
        for block in blocks:
            execute(filled(block, values), names, runner)
        runner.run(client.close())
    said = capsys.readouterr().out.splitlines()
    stored = {each["id"]: each["status"] for each in platform.runs()}

    # Quick Start, and the first of three in Agent Instances (the second is the one that goes on), and the bulk's.
    assert said[0].startswith("Registered instance: ")
    assert stored.pop(said[0].split()[-1]) == "pending"
    assert stored.pop(run) == "active"
    assert (stored.pop(names["instance"].id), names["instance"].status) == ("complete", "complete")
    assert sorted(stored.values()) == ["pending", "pending"]
    # Agent Spans
    (span,) = platform.spans(run)
    assert (
        (span["id"], span["status"]) == (names["span"].id, names["span"].status) == (span["id"], "complete")
    )
    assert span["payload"] == {"model": "gpt-4", "prompt": "Hello"}
    # Bulk Operations: the README leaves out the payload, which the API requires (section 3.2).
    assert said[1:3] == ["register-instance-001: success", "create-span-001: error"]
    assert names["response"].outputs["create-span-001"].code == "validation_errors"
    # Error Handling
    assert said[3:] == ["Validation error: {'agent_version': {'external_identifier': ['is required']}}"]
    # Configuration: what it spells out are the defaults.
    assert names["config"] == config
    # Types
    assert (
        names["AgentStatus"] == Literal["pending", "active", "complete", "failed", "cancelled", "terminated"]
    )
    assert names["FinishStatus"] == Literal["complete", "failed", "cancelled"]
    # And it was this package that did it.
    assert {
        type(names[each]).__module__.removeprefix(package) for each in ("instance", "span", "config")
    } == {
        ".models.agent_instance",
        ".models.agent_span",
        ".config",
    }


@pytest.mark.parametrize("package", ["prefactor_http", "prefactor_trace.http"])
def test_new_token(package):
    """A token that is changed in the config of an open client is the one of its next call."""
    http = importlib.import_module(package)

    async def main(url: str) -> None:
        async with http.PrefactorHttpClient(http.HttpClientConfig(url, "first")) as client:
            await client.validate_token()
            client.config.api_token = "second"
            await client.validate_token()

    with HostileServer(always(200, b'{"status": "success"}')) as server:
        asyncio.run(main(server.url))

    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer first",
        "Bearer second",
    ]

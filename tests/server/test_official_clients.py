"""The official `prefactor-core` against the local platform, as it is used.

The calls of `prefactor-http`, on which it stands, are in `tests/http/endpoints`, beside those of our own client.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re

import pytest

http = pytest.importorskip("prefactor_http")
core = pytest.importorskip("prefactor_core")

VERSION = {"name": "My Agent", "external_identifier": "v1.0.0"}


def with_core(api, use):
    """Run *use* with a `prefactor-core` client."""
    registry = core.SchemaRegistry()
    registry.register_type(name="agent:llm", params_schema={"type": "object"}, title="LLM Call")

    async def main():
        config = core.PrefactorCoreConfig(
            http_config=http.HttpClientConfig(api_url=api.platform.url, api_token=api.platform.token),
            schema_registry=registry,
        )
        async with core.PrefactorCoreClient(config) as client:
            return await use(client)

    return asyncio.run(main())


async def until_active(client, run):
    """Wait until the start, which the client sends on the side, has arrived."""
    async with asyncio.timeout(10):
        while (await client._http.agent_instances.get(run.id)).status != "active":
            pass


class TestCore:
    def test_quick_start(self, api):
        """The quick start of the README runs as it is printed, with nothing but address and token filled in."""
        readme = importlib.metadata.distribution("prefactor-core").read_text("METADATA")
        (code,) = [
            block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "asyncio.run" in block
        ]
        assert code.count("https://app.prefactorai.com") == code.count("your-token") == 1
        code = code.replace("https://app.prefactorai.com", api.platform.url).replace(
            "your-token", api.platform.token
        )
        before = set(runs_of(api, "my-agent"))

        async def call_llm():
            return "Hello back"

        exec(code, {"call_llm": call_llm, "__name__": "readme"})
        (run,) = set(runs_of(api, "my-agent")) - before
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "complete"
        (span,) = api.spans(run)
        assert (span["schema_title"], span["status"]) == ("LLM Call", "complete")
        assert span["payload"] == {"model": "gpt-4", "prompt": "Hello"}
        assert span["result_payload"] == {"response": "Hello back"}

    def test_shapes_of_runs(self, api):
        """Nested, failed, cancelled and never started spans, in several instances at once, are all recorded."""

        async def use(client):
            runs = [await client.create_agent_instance(VERSION, agent_id=f"core-{n}") for n in range(3)]
            for run in runs:
                await run.start()
            for run in runs:
                async with run.span("agent:llm") as outer:
                    await outer.start({"who": "outer"})
                    async with run.span("agent:llm") as inner:
                        await inner.start({"who": "inner"})
                        await inner.fail({"error": "e"})
                    async with run.span("agent:llm") as never:
                        await never.cancel()
                    async with run.span("agent:llm", payload={"who": "auto"}):
                        pass
                late, early = {"who": "late parent"}, {"who": "early child"}
                async with run.span("agent:llm", payload=late), run.span("agent:llm", payload=early):
                    pass
                open_span = await run.create_span("agent:llm", payload={"who": "open"})
                await run.finish_span(open_span, result_payload={"a": 1})
            await runs[0].finish()
            await runs[1].finish("failed")
            return [run.id for run in runs]

        ids = with_core(api, use)
        states = [api.get(f"agent_instance/{run}")["details"]["status"] for run in ids]
        assert states == ["complete", "failed", "active"]
        for run in ids:
            spans = {span["payload"].get("who", "cancelled"): span for span in api.spans(run)}
            assert {who: span["status"] for who, span in spans.items()} == {
                **dict.fromkeys(("outer", "auto", "late parent", "early child", "open"), "complete"),
                **{"inner": "failed", "cancelled": "cancelled"},
            }
            for child in ("inner", "cancelled", "auto"):
                assert spans[child]["parent_span_id"] == spans["outer"]["id"]
            # The client names a parent it has not sent yet by an id of its own; it is kept, and no span has it.
            assert len(spans["early child"]["parent_span_id"]) == 36
            assert spans["open"]["result_payload"] == {"a": 1}

    def test_runs_at_once(self, api):
        """Runs of concurrent tasks, ended in every way, are recorded side by side, each with its own nested spans."""
        ways = {"complete": None, "failed": None, "raised": LookupError, "cancelled": asyncio.CancelledError}

        async def use(client):
            all_are_inside = asyncio.Barrier(len(ways) + 1)
            ids = {}

            async def work(way):
                run = await client.create_agent_instance(VERSION, agent_id=f"at-once-{way}")
                ids[way] = run.id
                await run.start()
                try:
                    async with run.span("agent:llm") as outer:
                        await outer.start({"who": "outer"})
                        async with run.span("agent:llm") as inner:
                            await inner.start({"who": "inner"})
                            await until_active(client, run)
                            await all_are_inside.wait()
                            if way == "raised":
                                raise LookupError
                            if way == "cancelled":
                                await asyncio.Event().wait()
                            await (inner.fail if way == "failed" else inner.complete)({"way": way})
                finally:
                    await run.finish("complete" if way == "complete" else "failed")

            tasks = {way: asyncio.create_task(work(way)) for way in ways}
            await all_are_inside.wait()
            tasks["cancelled"].cancel()
            ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
            assert [type(each) for each in ended] == [kind or type(None) for kind in ways.values()]
            return ids

        ids = with_core(api, use)
        for way, run in ids.items():
            spans = {span["payload"]["who"]: span for span in api.spans(run)}
            assert spans["inner"]["parent_span_id"] == spans["outer"]["id"]
            assert spans["outer"]["parent_span_id"] is None
            # What an exception or a cancellation leaves open, the client ends as complete.
            assert spans["inner"]["status"] == ("failed" if way == "failed" else "complete")
            assert spans["inner"]["result_payload"] == ({"way": way} if ways[way] is None else None)
            details = api.get(f"agent_instance/{run}")["details"]
            assert details["status"] == ("complete" if way == "complete" else "failed")
            assert details["span_counts"]["finished"] == 2

    def test_termination_of_one_of_two(self, api):
        """The run that is terminated stays so, and its spans are taken all the same; the other one ends as it likes."""

        async def begin(client, n):
            run = await client.create_agent_instance(VERSION, agent_id=f"one-of-two-{n}")
            await run.start()
            await until_active(client, run)
            return run, await run.create_span("agent:llm")

        async def end(run, span):
            await run.finish_span(span)
            await run.create_span("agent:llm")
            await run.finish()

        async def use(
            client,
        ):  # a task for each: in one task, the client would nest a span in the other run's
            begun = await asyncio.gather(*(begin(client, n) for n in range(2)))
            api.post(f"agent_instance/{begun[0][0].id}/terminate", {"reason": "enough"})
            await asyncio.gather(*(end(*each) for each in begun))
            return [run.id for run, _ in begun]

        stopped, other = [api.get(f"agent_instance/{run}")["details"] for run in with_core(api, use)]
        assert (stopped["status"], stopped["termination_reason"]) == ("terminated", "enough")
        assert (other["status"], other["termination_reason"]) == ("complete", None)
        for details in (stopped, other):
            counts = details["span_counts"]
            assert (counts["total"], counts["active"], counts["complete"]) == (2, 1, 1)

    def test_termination(self, api):
        """A run that is terminated here is stopped there, with the reason."""

        async def use(client):
            run = await client.create_agent_instance(VERSION, agent_id="stopped")
            await run.start()
            span = await run.create_span("agent:llm")
            await until_active(client, run)
            api.post(f"agent_instance/{run.id}/terminate", {"reason": "over budget"})
            monitor = client._termination_monitor
            stopped = monitor.get_termination_event()
            await run.finish_span(span)
            await asyncio.wait_for(stopped.wait(), 10)
            assert monitor.termination_reason == "over budget"
            await run.finish()
            return run.id

        run = with_core(api, use)
        details = api.get(f"agent_instance/{run}")["details"]
        assert (details["status"], details["termination_reason"]) == ("terminated", "over budget")


def runs_of(api, agent: str) -> list[str]:
    found = [each["id"] for each in api.platform.store.agents() if each["external_identifier"] == agent]
    return [run["id"] for each in found for run in api.platform.store.instances(each)[0]]

"""The functions users call, from the first line to the stored record, over real HTTP into a real database."""

from __future__ import annotations

import logging
import sys
import threading

import anyio
import httpx
import pytest

import prefactor_trace as pt
from prefactor_trace import _ids
from prefactor_trace.exporters import FileExporter
from prefactor_trace.server import LocalPlatform


def read(platform, path, **parameters):
    """Read from the platform's API."""
    answer = httpx.get(
        f"{platform.url}/api/v1/{path}",
        params=parameters,
        headers={"Authorization": f"Bearer {platform.token}"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def spans_of(platform, run):
    """Return the stored spans of *run* by name."""
    found = read(platform, "agent_spans", agent_instance_id=run.id, **{"pagination[page_size]": 100})[
        "summaries"
    ]
    return {span["payload"]["name"]: span for span in found}


@pt.span
def search(query: str, limit: int = 3) -> list[str]:
    """Search the index."""
    return [query] * limit


class TestWithPlatform:
    def test_two_lines(self, platform):
        """From a decorated function and a block to the stored run: statuses, tree, payloads, results, times."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pt.instance(agent_name="support-bot", agent_version="1.4.0", purpose="eval") as run:
            hits = search("refund")
            with pt.span("agent:plan", payload={"hits": hits}) as step:
                search("policy", limit=1)
                step.set_result({"plan": "answer"})
        ledger = pt.flush()

        assert ledger == (6, 6, {}, 0, {})
        details = read(platform, f"agent_instance/{run.id}")["details"]
        assert (details["status"], details["purpose"]) == ("complete", "eval")
        found = read(platform, "agent_spans", agent_instance_id=run.id)["summaries"]
        by_payload = {(span["schema_name"], str(span["payload"]["inputs"])): span for span in found}
        plan = by_payload["agent:plan", "{'hits': ['refund', 'refund', 'refund']}"]
        child = by_payload["search", "{'query': 'policy', 'limit': 1}"]
        assert plan["result_payload"] == {"plan": "answer"}
        assert (child["parent_span_id"], child["result_payload"]) == (plan["id"], {"output": ["policy"]})
        assert plan["started_at"] <= child["started_at"] <= child["finished_at"] <= plan["finished_at"]

    def test_failure(self, platform):
        """A failed step is stored with type, message and stack, and the run with it."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pytest.raises(ValueError, match="no luck"), pt.instance() as run, pt.span("a"):
            raise ValueError("no luck")
        pt.flush()
        span = spans_of(platform, run)["a"]

        assert span["status"] == "failed"
        assert span["result_payload"]["message"] == span["payload"]["error"]["message"] == "no luck"
        assert read(platform, f"agent_instance/{run.id}")["details"]["status"] == "failed"

    def test_a_cancelled_run(self, platform):
        """The platform takes `cancelled` from pending only: the run is stored as failed, and the ledger says so."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pytest.raises(KeyboardInterrupt), pt.instance() as run, pt.span("a"):
            raise KeyboardInterrupt
        ledger = pt.flush()

        assert spans_of(platform, run)["a"]["status"] == "cancelled"
        assert read(platform, f"agent_instance/{run.id}")["details"]["status"] == "failed"
        assert ledger.notes == {"instance finished as failed: the platform refused cancelled": 1}

    def test_live(self, platform):
        """A long step is seen running, with its finished children, and is finished by a second call."""
        pt.configure(api_url=platform.url, api_token=platform.token, live_after=0.0)
        with pt.instance() as run, pt.span("long", payload=1) as step:
            search("x")
            pt.flush()
            seen = spans_of(platform, run)
            assert (seen["long"]["status"], seen["search"]["status"]) == ("active", "complete")
            assert seen["search"]["parent_span_id"] == step.id
            assert read(platform, f"agent_instance/{run.id}")["details"]["status"] == "active"
            step.set_result({"late": True})
        assert pt.flush().pending == 0
        assert spans_of(platform, run)["long"]["result_payload"] == {"late": True}

    def test_partition_is_learned(self, platform):
        """Ids made before the platform has named the account's partition are stored in it; later ones are made in it."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pt.instance() as first, pt.span("a"):
            made = first.id
        pt.flush()
        with pt.instance() as second:
            pass
        partition = _ids.partition_of(second.id)

        assert _ids.partition_of(made) == _ids.NO_PARTITION != partition
        assert read(platform, f"agent_instance/{first.id}")["details"]["status"] == "complete"
        agent = read(platform, "agent")["summaries"][0]
        runs = read(platform, "agent_instance", agent_id=agent["id"])["summaries"]
        assert first.url == f"{platform.url}/instances/{runs[0]['id']}"
        assert _ids.partition_of(runs[0]["id"]) == partition

    def test_terminate(self, platform):
        """Terminated on the platform, the agent is stopped at its next step, and the state stays terminated."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pytest.raises(pt.InstanceTerminated, match="enough"), pt.instance() as run:
            with pt.span("a"):
                pass
            pt.flush()
            wire_id = run.url.rpartition("/")[2]
            platform.store.terminate(wire_id, "enough")
            with pt.span("b"):
                pass
            pt.flush()
            with pt.span("c"):
                pytest.fail("must not run")
        assert pt.flush().pending == 0
        assert run.status == "terminated"
        assert read(platform, f"agent_instance/{wire_id}")["details"]["status"] == "terminated"

    def test_many_runs_at_once(self, platform):
        """Fifty concurrent runs of ten spans each are stored whole, each span in its own run."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        runs = []

        async def one(number):
            async with pt.instance(agent_name="many") as run:
                runs.append(run)
                for step in range(10):
                    async with pt.span("step", payload={"run": number, "step": step}):
                        await anyio.sleep(0)

        async def main():
            async with anyio.create_task_group() as group:
                for number in range(50):
                    group.start_soon(one, number)
            return await pt.aflush(20)

        ledger = anyio.run(main)
        assert ledger[:4] == (650, 650, {}, 0)
        agent = next(each for each in read(platform, "agent")["summaries"] if each["name"] == "many")
        for summary in platform.store.instances(agent["id"])[0]:
            spans, total = platform.store.spans(summary["id"])
            assert total == 10
            assert len({span["payload"]["inputs"]["run"] for span in spans}) == 1


class TestWithoutToken:
    def test_a_running_platform_is_found(self, tmp_path, monkeypatch, caplog):
        """With no token the library finds the local platform by the file it writes; one line says so."""
        caplog.set_level(logging.INFO, "prefactor_trace")
        monkeypatch.setenv("PREFACTOR_STATE_DIR", str(tmp_path))
        with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path) as platform:
            with pt.instance(agent_name="found") as run:
                search("x")
            assert pt.flush()[:4] == (4, 4, {}, 0)
            assert run.url.startswith(platform.url)
            assert [each["name"] for each in read(platform, "agent")["summaries"]] == ["found"]
        assert [record.message for record in caplog.records] == [f"records go to {platform.url}"]

    def test_a_platform_that_starts_later(self, tmp_path, monkeypatch, caplog):
        """Until a platform is there, records wait, and one line says what to do; then they are delivered."""
        monkeypatch.setenv("PREFACTOR_STATE_DIR", str(tmp_path))
        monkeypatch.setattr("prefactor_trace._outbox._BACKOFF_SECONDS", 0.05)
        with pt.instance() as run:
            search("x")
        assert pt.flush(60).pending == 4
        assert run.url is None
        with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path):
            assert pt.flush(10)[:4] == (4, 4, {}, 0)
        assert "prefactor-trace serve" in caplog.text
        assert len(caplog.records) == 2


class TestDefaultTracer:
    def test_environment(self, monkeypatch, platform):
        """Without `configure` the environment holds."""
        monkeypatch.setenv("PREFACTOR_API_URL", platform.url)
        monkeypatch.setenv("PREFACTOR_API_TOKEN", platform.token)
        monkeypatch.setenv("PREFACTOR_AGENT_NAME", "from-env")
        with pt.instance():
            pass
        assert pt.flush()[:2] == (3, 3)
        assert [each["name"] for each in read(platform, "agent")["summaries"]] == ["from-env"]

    def test_a_wrong_environment_does_not_stop_the_agent(self, monkeypatch, caplog):
        """If nobody called `configure`, a wrong variable is an error in the log, and nothing is recorded."""
        monkeypatch.setenv("PREFACTOR_SAMPLE_RATE", "3")
        with pt.instance() as run:
            assert search("x") == ["x"] * 3
        assert not run.recording
        assert "PREFACTOR_SAMPLE_RATE" in caplog.text
        assert len(caplog.records) == 1

    def test_who_interrupts_its_making_may_ask_for_it(self, monkeypatch):
        """A signal handler, or a destructor that is collected there, does not wait for the call it has interrupted."""
        monkeypatch.setenv("PREFACTOR_SPOOL", "off")
        interrupted = []

        def interrupt(frame, event, _):
            if event == "call" and frame.f_code is pt.configure.__code__ and not interrupted:
                interrupted.append(True)
                assert search("y") == ["y"] * 3

        def begin():
            sys.setprofile(interrupt)
            try:
                search("x")
            finally:
                sys.setprofile(None)

        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        thread.join(20)
        assert interrupted
        assert not thread.is_alive()

    def test_two_threads_share_one(self, monkeypatch):
        """Two threads that begin at once configure one tracer, not two."""
        barrier = threading.Barrier(8)
        tracers = set()

        def begin():
            barrier.wait()
            with pt.instance() as run:
                tracers.add(run._tracer)

        threads = [threading.Thread(target=begin) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(tracers) == 1

    def test_configure_again(self, tmp_path):
        """A new default tracer takes new runs; runs of the old one go on where they were."""
        first = pt.configure(exporter=FileExporter(tmp_path / "first"))
        with pt.instance():
            second = pt.configure(exporter=FileExporter(tmp_path / "second"))
            with pt.span("old"):
                pass
            with pt.instance(), pt.span("new"):
                pass
        assert first.shutdown()[:2] == second.shutdown()[:2] == (4, 4)
        assert '"old"' in (tmp_path / "first").read_text()
        assert '"new"' in (tmp_path / "second").read_text()

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_async_forms_do_not_block_the_loop(self, backend, tmp_path):
        """While `aflush` and `ashutdown` wait, other tasks run, and cancelling them is immediate."""
        release = threading.Event()

        class Slow(FileExporter):
            def export(self, batch):
                assert release.wait(10)
                return super().export(batch)

        pt.configure(exporter=Slow(tmp_path / "x"))

        async def main():
            async with pt.instance():
                pass
            with anyio.move_on_after(0.05) as scope:
                await pt.aflush(10)
            assert scope.cancelled_caught
            async with anyio.create_task_group() as group:
                group.start_soon(pt.aflush, 10)
                await anyio.sleep(0)
                release.set()
            assert (await pt.ashutdown())[:4] == (3, 3, {}, 0)

        anyio.run(main, backend=backend)

    def test_stats_add_up_at_every_moment(self, tmp_path):
        """created = delivered + dropped + pending, while spans are open, waiting, and gone."""
        tracer = pt.configure(exporter=FileExporter(tmp_path / "x"))
        seen = []
        with pt.instance(), pt.span("a"):
            seen.append(pt.stats())
            for _ in range(100):
                search("x")
            seen.append(pt.stats())
            pt.flush()
            seen.append(pt.stats())
        seen += [pt.stats(), tracer.shutdown(), pt.stats()]

        assert all(
            each.created == each.delivered + sum(each.dropped.values()) + each.pending for each in seen
        )
        assert [each.created for each in seen] == [3, 103, 103, 104, 104, 104]
        assert (seen[2].pending, seen[-1].pending) == (1, 0)

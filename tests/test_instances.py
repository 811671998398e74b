"""Instances: one run each, however it is opened, and the ending that the table says."""

from __future__ import annotations

import asyncio
import time
import traceback
from datetime import datetime, timedelta, timezone

import anyio
import pytest

import prefactor_trace as pt
from prefactor_trace import _ids
from prefactor_trace._record import Outcome
from prefactor_trace.exporters import MemoryExporter
from prefactor_trace.testing import recording


class TestOpening:
    def test_with(self):
        """The block is the run: registered, started, current inside, finished after."""
        with recording() as recorded:
            with pt.instance(agent_name="bot", agent_version="1.4.0") as run:
                assert pt.current_instance() is run
                assert (run.status, run.finished_at) == ("active", None)
            assert pt.current_instance() is None

            assert [(each.id, each.status) for each in recorded.instances] == [(run.id, "complete")]
            assert run.status == "complete"
            assert _ids.is_pfid(run.id)
            assert run.started_at <= run.finished_at
            assert abs(datetime.now(timezone.utc) - run.finished_at) < timedelta(minutes=1)

    def test_the_clock_is_set_back(self, monkeypatch):
        """When somebody sets the clock in the middle of a run, its times go on from where it started."""
        hour = 3_600 * 10**9
        with recording() as recorded:
            with pt.instance() as run, pt.span("outer"):
                early = time.time_ns() - hour
                monkeypatch.setattr(time, "time_ns", lambda: early)
                monkeypatch.setattr(run._tracer, "wall_ns", lambda: early)
                with pt.span("inner"):
                    pass
            outer, inner = recorded.spans

            assert run.started_at.timestamp() * 1e9 - 1_000 <= outer.started_at <= inner.started_at
            assert inner.started_at <= inner.finished_at <= outer.finished_at

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_async_with(self, backend):
        """The same, asynchronously, on both event loops."""

        async def main():
            async with pt.instance() as run:
                await anyio.sleep(0)
                assert pt.current_instance() is run
            assert pt.current_instance() is None

        with recording() as recorded:
            anyio.run(main, backend=backend)
            assert [each.status for each in recorded.instances] == ["complete"]

    def test_decorator(self):
        """Each call of a decorated function is a run of its own, and the function stays what it is."""

        @pt.instance
        def bare(x: int) -> int:
            """Double."""
            return 2 * x

        @pt.instance(agent_name="bot")
        async def with_options() -> str:
            return pt.current_instance().id

        with recording() as recorded:
            assert [bare(2), bare(3)] == [4, 6]
            ids = [asyncio.run(with_options()) for _ in range(2)]

            assert [each.id for each in recorded.instances][2:] == ids
            assert len(set(ids)) == 2
            assert (bare.__name__, bare.__doc__) == ("bare", "Double.")
            assert recorded.spans == []

    def test_decorated_generator(self):
        """A decorated generator is a run from its first step to its last."""

        @pt.instance
        def count():
            with pt.span("step"):
                yield 1
            yield 2

        with recording() as recorded:
            steps = count()
            assert next(steps) == 1
            assert pt.current_instance() is None
            assert list(steps) == [2]
            assert recorded.instances[0].status == "complete"
            assert recorded.tree() == "step complete"

    def test_what_is_registered(self):
        """Arguments win over settings; what nobody says is left out."""
        with recording(agent_name="a", agent_id="agent", environment_id="env") as recorded:
            with pt.instance(
                agent_name="b",
                description="d",
                purpose="eval",
                external_identifier="x1",
                environment_id="other",
            ):
                pass
            body = recorded.instances[0].registered

        version = body.pop("agent_version")
        runtime = version.pop("runtime_environment")
        assert body == {
            "agent_id": "agent",
            "environment_id": "other",
            "external_identifier": "x1",
            "purpose": "eval",
        }
        assert version == {"name": "b", "external_identifier": "v1.0.0", "description": "d"}
        assert runtime["prefactor_sdk"] == [f"prefactor-trace@{pt.__version__}"]

    def test_numbers_as_text(self):
        """A version given as a number is written as one."""
        with recording() as recorded:
            with pt.instance(agent_version=1.4):
                pass
            assert recorded.instances[0].registered["agent_version"]["external_identifier"] == "1.4"

    def test_a_number_of_too_many_digits(self, caplog):
        """What Python does not write as text counts as not given, and the run goes on."""
        with recording() as recorded:
            with pt.instance(agent_name="bot", agent_version=10**5_000):
                pass
            version = recorded.instances[0].registered["agent_version"]
            assert (version["name"], version["external_identifier"]) == ("bot", "v1.0.0")  # the default
        assert "instance(agent_version=...) takes a text" in caplog.text

    def test_evil_options(self):
        """No option is asked to compare, to be true or false, or to be text."""
        asked = []

        class Evil:
            def __eq__(self, other):
                asked.append("eq")
                raise SystemExit

            def __bool__(self):
                asked.append("bool")
                raise SystemExit

            __hash__ = None

        names = ["agent_id", "agent_name", "agent_version", "description", "environment_id", "purpose"]
        with recording() as recorded:
            with pt.instance(**dict.fromkeys([*names, "external_identifier", "id"], Evil())):
                pass
            assert recorded.instances[0].status == "complete"
        assert asked == []

    def test_given_id(self):
        """A PFID of the user's own is the run's id."""
        mine = _ids.generate("3nqk8n")
        with recording(), pt.instance(id=mine) as run:
            assert run.id == mine

    @pytest.mark.parametrize(
        "wrong",
        [
            {"id": "nonsense"},
            {"purpose": "fun"},
            {"agent_name": ["x"]},
            {"agent_version": b"1"},
            {"description": ""},
        ],
    )
    def test_wrong_options_do_not_stop_the_agent(self, wrong, caplog):
        """A value that cannot be used is said once in the log, and the run goes on without it."""
        with recording() as recorded:
            with pt.instance(**wrong) as run:
                pass
            assert _ids.is_pfid(run.id)
            assert recorded.instances[0].status == "complete"
        assert len(caplog.records) == 1

    def test_ids_are_in_the_agents_partition(self):
        """An agent id names the account's partition, so the ids are right from the start."""
        agent = _ids.generate("3nqk8n")
        with recording(agent_id=agent), pt.instance() as run:
            assert _ids.partition_of(run.id) == "3nqk8n"

    def test_a_block_can_be_entered_again_and_by_many_tasks(self):
        """One block object gives a run to each entry, also at the same time."""
        block = pt.instance()

        async def enter(first, second):
            await first.wait()
            with block as run:
                second.set()
                await asyncio.sleep(0)
                assert pt.current_instance() is run
            return run.id

        async def main():
            go, a, b = asyncio.Event(), asyncio.Event(), asyncio.Event()
            go.set()
            return await asyncio.gather(enter(go, a), enter(a, b), enter(b, asyncio.Event()))

        with recording() as recorded:
            ids = asyncio.run(main())
            assert sorted(ids) == sorted(each.id for each in recorded.instances)
            assert [each.status for each in recorded.instances] == ["complete"] * 3


ENDINGS = [
    (ValueError("x"), "failed"),
    (SystemExit(2), "failed"),
    (SystemExit(0), "complete"),
    (SystemExit(), "complete"),
    (KeyboardInterrupt(), "cancelled"),
    (asyncio.CancelledError(), "cancelled"),
]


class TestEnding:
    @pytest.mark.parametrize(("error", "status"), ENDINGS, ids=repr)
    def test_by_an_exception(self, error, status):
        """The exception decides the status and goes on: same object, no frame of ours, same cause and context."""
        cause = KeyError("cause")
        with recording() as recorded:
            with pytest.raises(BaseException) as caught, pt.instance() as run:
                raise error from cause
            assert caught.value is error
            assert error.__cause__ is cause
            assert error.__context__ is None or error.__context__ is cause
            assert len(traceback.extract_tb(error.__traceback__)) == 1
            assert recorded.instances[0].status == run.status == status

    @pytest.mark.parametrize(("error", "status"), ENDINGS, ids=repr)
    def test_by_an_exception_in_async_code(self, error, status):
        """The same in `async with`."""

        async def main():
            async with pt.instance():
                raise error

        with recording() as recorded:
            coroutine = main()
            with pytest.raises(type(error)) as caught:
                coroutine.send(None)
            assert caught.value is error
            assert recorded.instances[0].status == status

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_by_cancellation(self, backend):
        """A cancelled task's run is cancelled, on both event loops, and the cancellation is not delayed."""

        async def main():
            with anyio.move_on_after(0):
                async with pt.instance():
                    await anyio.sleep_forever()

        with recording() as recorded:
            anyio.run(main, backend=backend)
            assert recorded.instances[0].status == "cancelled"

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_by_a_task_group(self, backend):
        """A task group with one real error fails the run, whatever else it cancelled."""

        async def main():
            async def fails():
                raise ValueError("x")

            async with pt.instance(), anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                group.start_soon(fails)

        with recording() as recorded:
            with pytest.raises(BaseException):
                anyio.run(main, backend=backend)
            assert recorded.instances[0].status == "failed"


class TestNesting:
    def test_a_run_in_a_run_is_a_sub_agent(self):
        """It is a run of its own, spans in it are its own, and the outer one is current again afterwards."""
        with recording() as recorded:
            with pt.instance() as outer, pt.span("outer-step"):
                with pt.instance() as inner, pt.span("inner-step"):
                    assert pt.current_instance() is inner
                assert pt.current_instance() is outer
            spans = {span.name: span for span in recorded.spans}

            assert len(recorded.instances) == 2
            assert spans["inner-step"].instance_id == inner.id
            assert spans["inner-step"].parent_id is None
            assert spans["outer-step"].instance_id == outer.id

    def test_a_tracer_by_hand(self):
        """A tracer made by hand takes the settings of `configure`, and is not the default."""
        exporter = MemoryExporter()
        tracer = pt.Tracer(exporter=exporter, agent_name="second", threaded=False)
        with tracer.instance(), tracer.span("a"):
            pass
        assert tracer.shutdown()[:2] == (4, 4)
        with pytest.raises(pt.ConfigurationError, match="colour"):
            pt.Tracer(colour="red")

    def test_two_tracers(self):
        """A run goes to its tracer's destination, and spans go with their run."""
        with recording() as first, recording() as second:
            with first.tracer.instance(), pt.span("a"):
                pass
            with second.tracer.instance(), pt.span("b"):
                pass
            assert (first.tree(), second.tree()) == ("a complete", "b complete")


class TestNotRecording:
    def test_sampled_out(self):
        """With a rate of 0 nothing is recorded, the code runs the same, and sub-agents are part of their run."""
        with recording(sample_rate=0.0) as recorded:
            with pt.instance() as run, pt.span("a") as span:
                span.set_result(1)
                with pt.instance(), pt.span("b"):
                    pass
            assert run.status == "complete"
            assert recorded.ledger == (0, 0, {}, 0, {})

    def test_whole_runs_are_sampled(self):
        """Of many runs about the rate's share is recorded, each whole."""
        with recording(sample_rate=0.5) as recorded:
            for _ in range(400):
                with pt.instance(), pt.span("a"), pt.span("b"):
                    pass
            runs = len(recorded.instances)
            assert 120 < runs < 280
            assert len(recorded.spans) == 2 * runs

    def test_sub_agents_are_sampled_with_their_run(self):
        """A recorded run's sub-agents are recorded, too."""
        with recording(sample_rate=0.5) as recorded:
            for _ in range(100):
                with pt.instance(), pt.instance():
                    pass
            assert len(recorded.instances) % 2 == 0
            assert 50 < len(recorded.instances) < 150

    def test_the_programs_random_numbers_stay_as_they_are(self):
        """Sampling and ids take nothing from the program's own source of randomness."""
        import random

        random.seed(7)
        expected = [random.random() for _ in range(5)]
        random.seed(7)
        with recording(sample_rate=0.5):
            for _ in range(20):
                with pt.instance(), pt.span("a"):
                    pass
        assert [random.random() for _ in range(5)] == expected

    def test_disabled(self):
        """Disabled means: nothing recorded, nothing sent, nothing different for the program."""
        with recording(disabled=True) as recorded:
            with pt.instance() as run, pt.span("a"):
                pass
            assert not run.recording
            assert run.url is None
            assert recorded.ledger == (0, 0, {}, 0, {})


class TestTerminated:
    @pytest.fixture
    def terminate(self):
        """Return a function that lets the platform terminate a run."""

        def say(recorded, run, reason="policy"):
            recorded.tracer._heard(Outcome(terminated={run.id: reason}))

        return say

    def test_the_next_span_raises(self, terminate):
        """The agent is stopped where its next step begins; nothing is finished over the platform's state."""
        with recording() as recorded:
            with pytest.raises(pt.InstanceTerminated, match="policy") as caught:
                with pt.instance() as run:
                    terminate(recorded, run)
                    assert run.status == "terminated"
                    with pt.span("never"):
                        pytest.fail("must not run")
            assert caught.value.instance_id == run.id
            assert caught.value.reason == "policy"
            assert recorded.instances[0].status is None
            assert recorded.spans == []

    def test_decorated_functions_raise_too(self, terminate):
        """A decorated step does not begin, sync or async."""

        @pt.span
        def step():
            pytest.fail("must not run")

        @pt.span
        async def async_step():
            pytest.fail("must not run")

        with recording() as recorded, pt.instance() as run:
            terminate(recorded, run)
            with pytest.raises(pt.InstanceTerminated):
                step()
            with pytest.raises(pt.InstanceTerminated):
                asyncio.run(async_step())

    def test_check(self, terminate):
        """`check` raises for terminated runs only."""
        with recording() as recorded, pt.instance() as run:
            run.check()
            terminate(recorded, run, None)
            with pytest.raises(pt.InstanceTerminated) as caught:
                run.check()
            assert caught.value.reason is None

    def test_the_open_span_is_cancelled(self, terminate):
        """The step that was interrupted is recorded as cancelled."""
        with recording() as recorded:
            with pytest.raises(pt.InstanceTerminated), pt.instance() as run, pt.span("outer"):
                terminate(recorded, run)
                run.check()
            assert recorded.tree() == "outer cancelled"

    def test_a_sub_agents_termination_fails_the_outer_run(self, terminate):
        """Only the run that the platform terminated is left unfinished."""
        with recording() as recorded:
            with pytest.raises(pt.InstanceTerminated), pt.instance(), pt.instance() as inner:
                terminate(recorded, inner)
                inner.check()
            assert [each.status for each in recorded.instances] == ["failed", None]

"""What a recording shows, that it shows the same every time, and that nothing leaves it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prefactor_trace as pt
from prefactor_trace import _api, _context, _ids, _tracer, testing
from prefactor_trace.exporters import FileExporter
from prefactor_trace.server import LocalPlatform
from prefactor_trace.testing import RecordedSpan, recording


@pt.span
def search(query: str, limit: int = 3) -> list[str]:
    return [query] * limit


@pytest.fixture
def platform(tmp_path):
    with LocalPlatform(tmp_path / "platform.db") as platform:
        yield platform


class TestTree:
    def test_compact(self):
        """Names, statuses and nesting; what is open is running."""
        with recording() as recorded, pt.instance(), contextlib.suppress(ValueError):
            with pt.span("plan"):
                search("a")
                with pt.span("skip") as step:
                    step.cancel()
                assert recorded.tree() == "plan running\n  search complete\n  skip cancelled"
            with pt.span("answer"):
                raise ValueError("no luck")
        assert recorded.tree() == "plan complete\n  search complete\n  skip cancelled\nanswer failed"
        assert str(recorded) == recorded.tree()

    def test_show(self):
        """Each word shows one thing more, in the same place whatever the order of the words."""
        with recording() as recorded, pt.instance(agent_name="bot"), contextlib.suppress(ValueError):
            with pt.span("agent:plan", title="Plan", payload={"é": 1}) as step:
                step.set_metadata({"model": "small"})
                step.set_result("x")
            with pt.span("agent:answer"):
                raise ValueError("no luck")
        assert recorded.tree(show="inputs") == 'Plan complete inputs={"é": 1}\nagent:answer failed'
        assert recorded.tree(show=("result", "inputs", "type", "metadata")) == (
            'Plan complete type="agent:plan" inputs={"é": 1} result={"output": "x"} metadata={"model": "small"}\n'
            'agent:answer failed type="agent:answer"'
        )
        assert (
            recorded.tree(show=["error"]) == 'Plan complete\nagent:answer failed error="ValueError: no luck"'
        )
        assert recorded.tree(show=("instances",)) == "[bot] complete\n  Plan complete\n  agent:answer failed"
        with pytest.raises(ValueError, match="cannot show 'colour', only instances, type, inputs"):
            recorded.tree(show=("colour",))

    def test_generators(self):
        """The item count, and that the consumer has left, are metadata."""

        @pt.span("count")
        def count():
            yield from range(5)

        with recording() as recorded, pt.instance():
            list(count())
            for item in count():
                if item == 1:
                    break
            next(iter(()), count().close())
        assert recorded.tree(show="metadata") == (
            'count complete metadata={"items": 5}\ncount complete metadata={"abandoned": true, "items": 2}'
        )

    def test_sub_agents(self):
        """A run inside a run stands where it was opened, and has a line of its own if lines of runs are asked for."""
        with recording() as recorded:
            with pt.instance(agent_name="boss"), pt.span("ask"):
                with pt.instance(agent_name="clerk"):
                    search("a")
                search("b")
            with pt.instance(agent_name="idle"):
                pass
        assert recorded.tree() == "ask complete\n  search complete\n  search complete"
        assert recorded.tree(show="instances") == (
            "[boss] complete\n  ask complete\n    [clerk] complete\n      search complete\n    search complete\n"
            "[idle] complete"
        )
        ask = recorded.span("ask")
        (clerk,) = ask.instances
        assert clerk.parent == ask
        assert (ask.children, ask.parent) == ([recorded.instance("boss").spans[1]], None)
        assert (clerk.tree(), clerk.tree(show="instances")) == (
            "search complete", "[clerk] complete\n  search complete")  # fmt: skip
        assert recorded.instance("boss").children == [ask]
        assert recorded.instance("boss").parent is None

    def test_one_line_each(self):
        """A name or a value with a newline stays one line; nothing is an empty text."""
        with recording() as recorded:
            assert recorded.tree() == ""
            with pt.instance(), pt.span("a\nb", payload={"x": "1\n2"}):
                pass
        assert recorded.tree(show="inputs") == 'a\\nb complete inputs={"x": "1\\n2"}'

    def test_deep_nest(self):
        """A thousand steps in one another are shown."""
        with recording() as recorded, pt.instance(), contextlib.ExitStack() as stack:
            for _ in range(1_200):
                stack.enter_context(pt.span("x"))
        assert recorded.tree().splitlines()[-1] == "  " * 1_199 + "x complete"
        assert len(recorded.instance().spans) == 1_200


class TestOrder:
    """The same program gives the same tree, whoever is faster."""

    def jittery(self, name, seconds):
        with pt.span(name):
            if seconds:
                threading.Event().wait(seconds)
            with pt.span(f"{name} first"):
                pass
            with pt.span(f"{name} after"):
                pass

    def test_threads(self):
        """What threads do at once is sorted, each with its own steps in the order they began."""
        one = "{0} complete\n  {0} first complete\n  {0} after complete"
        for seed in range(12):
            chance = random.Random(seed)
            names = ["d", "a", "c", "b"]
            chance.shuffle(names)
            with recording() as recorded, pt.instance(), ThreadPoolExecutor(2) as pool:
                for _ in pool.map(pt.carry(self.jittery), names, [chance.choice((0, 0.001)) for _ in names]):
                    pass
            assert recorded.tree() == "\n".join(one.format(name) for name in "abcd")

    def test_stages(self):
        """What was handed to threads by a later call of `carry` comes after what was handed over before."""
        with recording() as recorded, pt.instance(), ThreadPoolExecutor(2) as pool:
            list(pool.map(pt.carry(search), ["b", "a"]))
            with pt.span("own"):
                pass
            first, second = pt.carry(self.jittery), pt.carry(self.jittery)
            pool.submit(second, "a", 0).result()
            pool.submit(first, "z", 0).result()
        assert [each.name for each in recorded.instance().children] == ["search", "search", "own", "z", "a"]
        assert [each.inputs["query"] for each in recorded.instance().children[:2]] == ["a", "b"]

    def test_runs_of_bare_threads(self):
        """Runs that a pool's threads open by themselves are sorted; the steps in each stay as they began."""

        def work(name):
            with pt.instance(agent_name=name):
                for step in ("z", "a"):
                    with pt.span(f"{name}-{step}"):
                        pass

        for names in (["b", "c", "a"], ["c", "a", "b"]):
            with recording() as recorded, ThreadPoolExecutor(2) as pool:
                list(pool.map(work, names))
            assert recorded.tree().split() == [
                word for name in "abc" for step in "za" for word in (f"{name}-{step}", "complete")
            ]

    def test_tasks_one_after_another(self):
        """Tasks of which each was made after the last one had ended stand in that order."""

        async def step(name):
            with pt.span(name):
                await asyncio.sleep(0)

        async def main():
            with pt.instance():
                await asyncio.gather(step("2b"), step("2a"))
                await asyncio.wait_for(step("1"), 5)
                await asyncio.create_task(step("0"))

        with recording() as recorded:
            asyncio.run(main())
        assert [each.name for each in recorded.instance().children] == ["2a", "2b", "1", "0"]
        assert [each.name for each in recorded.spans] == ["2b", "2a", "1", "0"]

    @given(st.lists(st.sampled_from("abcd"), max_size=40), st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_schedule(self, names, data):
        """However the steps of tasks are mixed, the tree is that of the program."""
        plan = {name: names.count(name) for name in sorted(set(names))}

        async def task(name, count, turn):
            for number in range(count):
                await turn.acquire()
                with pt.span(f"{name}{number % 2}", payload={"n": number}):
                    await turn.acquire()

        async def main(schedule):
            with pt.instance(), pt.span("all"):
                turns = {name: asyncio.Semaphore(0) for name in plan}
                tasks = [asyncio.create_task(task(name, plan[name], turns[name])) for name in plan]
                for name in schedule:
                    turns[name].release()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                await asyncio.gather(*tasks)

        def tree(schedule):
            with recording() as recorded:
                asyncio.run(main(schedule))
            return recorded.tree(show="inputs")

        plain = [name for name in plan for _ in range(2 * plan[name])]
        assert tree(data.draw(st.permutations(plain))) == tree(plain)

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_task_groups_and_workers(self, backend):
        """Task groups and worker threads of anyio, on both backends."""

        async def fetch(name):
            await anyio.sleep(random.random() / 1_000)
            with pt.span(name):
                await anyio.to_thread.run_sync(search, name)

        async def main():
            with pt.instance():
                with pt.span("before"):
                    pass
                async with anyio.create_task_group() as group:
                    for name in ("c", "a", "b"):
                        group.start_soon(fetch, name)
                with pt.span("after"):
                    pass

        with recording() as recorded:
            anyio.run(main, backend=backend)
        below = "".join(f"{name} complete\n  search complete\n" for name in "abc")
        assert recorded.tree() == f"before complete\n{below}after complete"


class TestValues:
    def test_span(self):
        """A span tells all that is known of it, and its relatives."""
        with recording(predictable=True) as recorded, pt.instance() as run, pt.span("plan"):
            recorded.clock.advance(1)
            with pt.span("tool:x", title="X", payload={"a": 1}) as step:
                recorded.clock.advance(0.25)
                step.set_result({"b": 2})
            plan = recorded.span("plan")
            assert (plan.status, plan.finished_at, plan.duration, plan.result) == (None, None, None, None)
        x = recorded.span("X")
        assert x == recorded.span("tool:x")
        assert isinstance(x, RecordedSpan)
        assert (x.inputs, x.payload, x.result, x.duration) == ({"a": 1}, {"a": 1}, {"b": 2}, 0.25)
        assert (x.error, x.metadata) == (None, None)
        assert (x.parent, x.parent_id) == (recorded.span("plan"), recorded.span("plan").id)
        assert x.instance == recorded.instance()
        assert (x.instance.id, x.instance.duration) == (run.id, 1.25)
        assert recorded.span("plan").children == [x]
        assert recorded.span("plan") != plan  # that was how it stood then
        assert recorded.span("plan").tree() == "plan complete\n  X complete"
        assert {x, recorded.span("X")} == {x}
        assert repr(x) == '<span X complete inputs={"a": 1} result={"b": 2}>'
        assert repr(x.instance) == "<[Agent] complete>"
        assert repr(recorded) == "<Recording: instances 1, spans 2>"

    def test_long_values_have_short_names(self):
        """A span with much in it is still read at a glance."""
        with recording() as recorded, pt.instance():
            search("x" * 5_000)
        assert len(repr(recorded.span("search"))) < 250

    def test_none_is_found(self):
        """What is not there is said, with what is, and what was perhaps meant."""
        with recording() as recorded:
            with pytest.raises(AssertionError) as none:
                recorded.span("search")
            with pytest.raises(AssertionError, match="no instance, where one was expected"):
                recorded.instance()
            with pt.instance():
                search("a")
            with pytest.raises(AssertionError) as other:
                recorded.span("serch")
            with pytest.raises(
                AssertionError, match=r"no instance of agent 'x'.*\n\[Agent\] complete\n  search"
            ):
                recorded.instance("x")
        assert "Nothing was recorded. Steps outside of any run are not" in str(none.value)
        assert str(other.value) == (
            "no span is called 'serch', where one was expected; did you mean 'search'?\nsearch complete"
        )

    def test_several_are_found(self):
        """One name that stands for several is refused; within a run or a step it may be the only one."""
        with recording() as recorded:
            for name in ("a", "b"):
                with pt.instance(agent_name=name), pt.span(f"step {name}"):
                    search(name)
            with pytest.raises(
                AssertionError, match="2 spans are called 'search', where one was expected\nstep a"
            ):
                recorded.span("search")
            with pytest.raises(AssertionError, match="2 instances, where one was expected"):
                recorded.instance()
            assert recorded.span("step b").span("search").inputs["query"] == "b"
            assert recorded.instance("a").span("search").inputs["query"] == "a"
            with pytest.raises(AssertionError, match="no span is called 'step a' in <span step b complete>"):
                recorded.span("step b").span("step a")

    def test_clear(self):
        """What has ended is forgotten; what is open stays, with what comes below it."""
        with recording() as recorded:
            with pt.instance(agent_name="old"):
                search("old")
            with pt.instance(agent_name="new"), pt.span("open"):
                search("old")
                recorded.clear()
                assert recorded.tree(show="instances") == "[new] running\n  open running"
                search("new")
            assert recorded.tree(show="instances") == "[new] complete\n  open complete\n    search complete"
            recorded.clear()
            assert (recorded.instances, recorded.spans, recorded.tree()) == ([], [], "")

    def test_clear_and_come_back(self):
        """A run that was forgotten is there again if a step of it follows, or a run of the same id."""
        own = _ids.generate()
        with recording() as recorded:
            with pt.instance(id=own, agent_name="run") as run:
                pass
            recorded.clear()
            with pt.span("late", parent=run):
                pass
            assert recorded.tree(show="instances") == "[run] complete\n  late complete"
            assert recorded.span("late").instance == recorded.instance()
            recorded.clear()
            with pt.instance(id=own):
                assert len(recorded.instances) == 1

    def test_ledger_adds_up(self):
        """All tracers of the recording are in the ledger."""
        with recording() as recorded:
            for _ in range(2):
                pt.configure()
                with pt.instance():
                    search("a")
            recorded.spans  # noqa: B018 - has everything delivered
            assert recorded.ledger == (8, 8, {}, 0, {})

    def test_reading_while_threads_record(self):
        """Whoever looks meanwhile sees whole spans, and in the end all of them."""
        stop = threading.Event()
        seen = []

        def look():
            while not stop.is_set():
                seen.append([each.status for each in recorded.spans])
                recorded.tree()

        with recording() as recorded, pt.instance():
            reader = threading.Thread(target=look)
            reader.start()
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(pt.carry(search), map(str, range(200))))
            stop.set()
            reader.join()
            assert len(recorded.spans) == 200
        assert all(status in ("complete", None) for each in seen for status in each)


class TestPredictable:
    def record(self, **options):
        with recording(predictable=True, **options) as recorded:
            with pt.instance(), pt.span("a"):
                recorded.clock.advance(1.5)
                search("x")
            with pt.instance():
                pass
        return recorded

    def test_same_every_time(self):
        """Two recordings of one program are equal to the last id and nanosecond."""
        first, second = self.record(), self.record()
        assert (first.spans, first.instances) == (second.spans, second.instances)
        assert first.spans[0].duration == 1.5
        assert first.spans[0].started_at == 1_704_067_200 * 10**9
        assert str(first.clock) == "<Clock 2024-01-01T00:00:01.500000+00:00>"

    def test_ids_are_pfids_that_count_up(self):
        """Ids sort by the order they were made in, have the account's partition, and end in a number."""
        account = _ids.generate("abc123")
        recorded = self.record(agent_id=account)
        ids = [each.id for each in (recorded.instances[0], *recorded.spans, recorded.instances[1])]
        assert [each[16:] for each in ids] == [f"{number:016}" for number in range(1, 5)]
        assert all(_ids.is_pfid(each) and _ids.partition_of(each) == "abc123" for each in ids)
        assert sorted(ids) == ids

    def test_the_clock(self):
        """It never goes back, and only a predictable recording has one."""
        with recording(predictable=True) as recorded:
            with pytest.raises(ValueError, match="forward only"):
                recorded.clock.advance(-1)
            with pytest.raises(ValueError, match="forward only"):
                recorded.clock.advance(float("nan"))
            with pt.instance() as run:
                pass
            assert run.started_at == recorded.clock.now
        with recording() as recorded, pytest.raises(RuntimeError, match=r"recording\(predictable=True\)"):
            recorded.clock  # noqa: B018

    def test_configure_inside(self):
        """A tracer that is configured inside counts on with the same ids and the same clock."""
        with recording(predictable=True) as recorded:
            for _ in range(2):
                pt.configure()
                with pt.instance():
                    pass
        assert [each.id[-2:] for each in recorded.instances] == ["01", "02"]


class TestNothingLeaves:
    def test_configure(self, platform, tmp_path):
        """What the code configures holds, except where records go: no request, no thread, no file."""
        state = tmp_path / "nobody"
        file = tmp_path / "spans.jsonl"
        threads = set(threading.enumerate())
        with recording() as recorded:
            pt.configure(
                api_url=platform.url, api_token=platform.token, agent_name="bot", capture_outputs=False,
                state_dir=state, live_after=0, batch_delay=0,
            )  # fmt: skip
            with pt.instance() as run:
                search("a")
                pt.flush()
            assert run.url is None
            tracer = pt.Tracer(exporter=FileExporter(file), agent_name="second", state_dir=state)
            with tracer.instance():
                search("b")
            tracer.shutdown()
            pt.shutdown()
            assert set(threading.enumerate()) == threads
        assert recorded.tree(show=("instances", "result")) == (
            "[bot] complete\n  search complete\n"
            '[second] complete\n  search complete result={"output": ["b", "b", "b"]}'
        )
        assert platform.store.agents() == []
        assert not state.exists()
        assert not file.exists()

    def test_tracers_made_before(self, platform):
        """A tracer that a module made on import records here for the while, and where it should afterwards."""
        before = pt.configure(api_url=platform.url, api_token=platform.token, agent_name="early")
        with recording() as recorded:
            with before.instance():
                search("inside")
            assert before.stats().created == 4
            before.flush()
            before.shutdown()
        assert recorded.tree(show="instances") == "[early] complete\n  search complete"
        assert platform.store.agents() == []
        assert before in _tracer._alive
        with pt.instance():
            search("after")
        assert pt.flush() == (4, 4, {}, 0, {})
        assert [each["name"] for each in platform.store.agents()] == ["early"]
        before.shutdown()

    def test_open_runs_go_on_where_they_were(self, platform):
        """A recording begins outside of any run, and a run from before continues after it."""
        pt.configure(api_url=platform.url, api_token=platform.token)
        with pt.instance() as run:
            with recording() as recorded:
                assert pt.current_instance() is None
                search("not recorded")
                with pt.instance():
                    search("inside")
            assert pt.current_instance() is run
            search("after")
        assert pt.flush().delivered == 4
        assert recorded.tree(show="inputs") == 'search complete inputs={"query": "inside", "limit": 3}'

    def test_environment_is_not_looked_at(self, monkeypatch):
        """What a shell or a CI has set changes no test, not even the off-switch."""
        monkeypatch.setenv("PREFACTOR_DISABLED", "1")
        monkeypatch.setenv("PREFACTOR_AGENT_NAME", "from the environment")
        with recording() as recorded:
            pt.configure()
            with pt.instance():
                search("a")
        assert recorded.tree(show="instances") == "[Agent] complete\n  search complete"

    def test_settings_of_the_test_win(self):
        """What the test asks for holds, whatever the code configures; the rest is the code's."""
        with recording(sample_rate=1.0, implicit_instances=True) as recorded:
            pt.configure(sample_rate=0.0, agent_name="bot")
            search("a")
            assert recorded.tree(show="instances") == "[bot] complete\n  search complete"
            pt.configure(disabled=True)
            search("b")
            assert len(recorded.spans) == 1
        with pytest.raises(pt.ConfigurationError, match="exporter"), recording(exporter=None):
            pass

    def test_everything_is_as_before(self):
        """The default tracer, the current run, the log's level: also if the block fails, or leaves runs open."""
        logger = logging.getLogger("prefactor_trace")
        before = (_api._default, _api.indoors, _context.noted_departure, logger.level, list(logger.handlers))
        alive = list(_tracer._alive)
        with pytest.raises(KeyError), recording() as recorded:
            pt.configure(log_level="debug")
            pt.instance().__enter__()
            pt.span("left open").__enter__()
            raise KeyError
        after = (_api._default, _api.indoors, _context.noted_departure, logger.level, list(logger.handlers))
        assert after == before
        assert alive == _tracer._alive
        assert pt.current_instance() is None
        assert recorded.tree(show="error") == (
            'left open failed error="Interrupted: the program ended while this was running"'
        )

    def test_nested(self):
        """The inner recording has what is begun in it, the outer one what is begun around it."""
        with recording() as outer, pt.instance():
            search("1")
            with recording() as inner:
                with pt.instance(), pt.span("inner"):
                    pass
            with pt.span("after"):
                pass
        assert (outer.tree(), inner.tree()) == ("search complete\nafter complete", "inner complete")

    def test_what_comes_too_late_is_nowhere(self):
        """A run that outlives its recording is in no later one."""
        with recording() as first:
            with contextlib.ExitStack() as stack:
                stack.enter_context(pt.instance())
                late = stack.pop_all()
        with recording() as second:
            search("late")
            late.close()
        assert (first.tree(), second.tree(), second.instances) == ("", "", [])

    def test_after_shutdown(self):
        """As in production, nothing is recorded after a shutdown."""
        with recording() as recorded:
            with pt.instance(), pt.span("before"):
                pt.shutdown()
                with pt.span("after"):
                    assert recorded.tree() == "before failed"
            assert recorded.ledger.dropped == {"after_shutdown": 2}  # the step and the end of the run

    def test_nothing_is_too_much(self):
        """More than any buffer holds is kept."""
        with recording(buffer_bytes=1_000) as recorded, pt.instance():
            for _ in range(100):
                search("x" * 1_000)
        assert (len(recorded.spans), recorded.ledger.dropped) == (100, {})


def test_order_of_what_is_no_text():
    """What spans are sorted by takes lone surrogates as well."""
    assert testing._digest("\ud800") != testing._digest("\ud801")

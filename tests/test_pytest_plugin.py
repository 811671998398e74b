"""The plugin in real little projects, each run by a pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
AGENT = """
    import prefactor_trace as pt

    @pt.span
    def search(query: str) -> list[str]:
        return [query]

    def main(query):
        pt.configure(api_url="https://prefactor.invalid", api_token="a-real-token", agent_name="bot")
        with pt.instance():
            return search(query)
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A project with an agent, in an environment where the plugin is installed, from what pyproject.toml says."""
    text = (ROOT / "pyproject.toml").read_text()
    entry = re.search(r"^\[project\.entry-points\.pytest11\]\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    info = pytester.path / "site" / "prefactor_trace_probe-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prefactor-trace-probe\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + entry[1].replace('"', ""))
    monkeypatch.setenv("PYTHONPATH", f"{info.parent}:{ROOT}")
    monkeypatch.setenv("PREFACTOR_STATE_DIR", str(pytester.path / "state"))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(agent=AGENT)
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:cacheprovider -W error")
    yield pytester
    assert not (pytester.path / "state").exists()


@pytest.fixture
def quick(project, monkeypatch):
    """The project, where only the plugins that are named are loaded."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p prefactor_trace")
    return project


def test_fixture_and_marker(project):
    """The fixture records, from one test to the next nothing is left, and the marker takes options and goes alone."""
    project.makepyfile("""
        import threading, unittest
        import pytest
        import prefactor_trace as pt
        from prefactor_trace import _api
        from agent import main, search

        def test_main(traced):
            assert main("a") == ["a"]
            assert traced.tree(show=("instances", "inputs")) == (
                '[bot] complete\\n  search complete inputs={"query": "a"}')
            assert not [each for each in threading.enumerate() if each.name == "prefactor-trace"]

        def test_nothing_is_left(traced):
            assert (traced.spans, _api.indoors is not None) == ([], True)

        def test_without():
            assert (_api.indoors, _api._default) == (None, None)

        @pytest.mark.traced(predictable=True)
        class TestMarked:
            @pytest.mark.traced(implicit_instances=True)
            def test_both(self, traced):
                search("a")
                assert traced.span("search").id.endswith("2")
                traced.clock.advance(1)

            @pytest.mark.traced(predictable=False)
            def test_closest(self, traced):
                with pytest.raises(RuntimeError):
                    traced.clock

            def test_alone(self):
                main("b")

        @pytest.mark.traced
        class TestUnit(unittest.TestCase):
            def test_unittest(self):
                main("c")

        @pytest.mark.parametrize("query", ["a", "b"])
        @pytest.mark.traced
        def test_parameters(query):
            main(query)
            assert _api.indoors is not None
    """)
    (block,) = re.findall(
        r"^```python\n(def test_.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    agent = (
        "import prefactor_trace as pt\n@pt.span\ndef search(query, limit=3): return [f'{query} 0'] * limit\n"
    )
    project.makepyfile(test_of_readme=agent + block)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=10)


def test_report_of_a_failure(quick):
    """A failed test shows what it recorded, a passed one and one without the fixture do not; long lines are cut."""
    quick.makepyfile("""
        import pytest
        import prefactor_trace as pt
        from agent import main

        def test_fails(traced):
            main("needle" + "x" * 1000)
            with pt.instance(), pt.span("open"):
                assert traced.span("serch")

        def test_empty(traced):
            assert 0

        def test_many(traced):
            with pt.instance():
                for number in range(300):
                    with pt.span(f"step{number}"):
                        pass
            assert 0

        def test_passes(traced):
            main("passes")

        def test_other():
            assert 0

        @pytest.fixture
        def broken(traced):
            yield
            main("in teardown")
            raise RuntimeError

        def test_teardown(broken):
            pass

        @pytest.mark.traced("positional")
        def test_misused():
            pass
    """)
    result = quick.runpytest_subprocess("-rP")
    result.assert_outcomes(failed=4, passed=2, errors=2)
    result.stdout.fnmatch_lines([
        "*broken*", "*- traced -*", "[[]bot[]] complete", '  search complete inputs={"query": "in teardown"}*',
        "*test_misused*", "the marker `traced` takes arguments by name, such as predictable=True",
        "*test_fails*",
        "E*AssertionError: no span is called 'serch', where one was expected; did you mean 'search'?",
        "E*search complete", "E*open running",
        "*- traced -*", "[[]bot[]] complete", '  search complete inputs={"query": "needlexxx* …',
        "[[]bot[]] failed", "  open failed error=*",
        "*test_empty*", "*- traced -*", "Nothing was recorded.",
        "*test_many*", "*- traced -*", "… and 101 lines more",
        "*test_other*",
    ])  # fmt: skip
    output = result.stdout.str()
    assert output.count("- traced -") == 4
    assert "passes" not in output.partition("= FAILURES =")[2].replace("test_passes", "")
    assert "testing.py" not in output  # the traceback ends in the test


def test_async(quick):
    """Async tests, by anyio's plugin on both backends, record the same; so do fixtures that need the fixture."""
    quick.makepyfile("""
        import anyio, pytest
        import prefactor_trace as pt
        from agent import search

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        async def run(traced):
            async with pt.instance() as run:
                yield run

        async def fetch(name):
            await anyio.sleep(0)
            async with pt.span(name):
                await anyio.to_thread.run_sync(search, name)

        async def test_group(traced):
            async with pt.instance():
                async with anyio.create_task_group() as group:
                    group.start_soon(fetch, "b")
                    group.start_soon(fetch, "a")
            assert traced.tree() == "a complete\\n  search complete\\nb complete\\n  search complete"

        async def test_fixture(run, traced):
            assert [each.status for each in traced.instances] == [None]
    """)
    quick.runpytest_subprocess("-p", "anyio").assert_outcomes(passed=4)


def test_in_workers(quick):
    """With pytest-xdist each worker records its own, and reports of failures come along."""
    pytest.importorskip("xdist")
    quick.makepyfile("""
        import pytest
        from agent import main

        @pytest.mark.parametrize("number", range(6))
        def test_one(traced, number):
            main(str(number))
            assert traced.span("search").inputs == {"query": str(number)}
            assert number != 3
    """)
    result = quick.runpytest_subprocess("-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["*- traced -*", "[[]bot[]] complete", '  search complete inputs={"query": "3"}*']
    )


def test_left_out(project, monkeypatch):
    """`-p no:prefactor_trace` leaves the plugin out; named by its entry point it comes without autoloading."""
    project.makepyfile("def test_one(traced): assert traced.tree() == ''")
    result = project.runpytest_subprocess("-p", "no:prefactor_trace")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'traced' not found*"])
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.runpytest_subprocess("-p", "prefactor_trace").assert_outcomes(passed=1)


def test_help(quick):
    """Fixture and marker say what they are for."""
    result = quick.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.traced(predictable=False, [*][*]settings): record in memory*"])
    result = quick.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(
        ["traced -- *", "    Record in memory what prefactor_trace records during this test*"]
    )


def test_is_light():
    """Loading the plugin loads nothing but the package itself: not even the recording."""
    program = (
        "import pytest, prefactor_trace, sys; before = set(sys.modules);"
        "import prefactor_trace.pytest_plugin; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["prefactor_trace.pytest_plugin"]
    program = "import sys, pytest, prefactor_trace.testing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert not {"httpx", "pydantic", "anyio", "sqlite3", "asyncio"} & set(done.stdout.split())


def test_the_marker_on_one_parameter(quick):
    """A marker on one parameter of a function is not that of the others."""
    quick.makepyfile("""
        import pytest
        from prefactor_trace import _api

        MARKED = pytest.param(2, marks=pytest.mark.traced(predictable=True))

        @pytest.mark.parametrize("number", [1, MARKED, 3])
        def test_it(number, request):
            assert ("traced" in request.fixturenames) == (number == 2) == (_api.indoors is not None)
    """)
    quick.runpytest_subprocess().assert_outcomes(passed=3)

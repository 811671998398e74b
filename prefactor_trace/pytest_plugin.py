"""The pytest plugin: the fixture `traced`, a `recording` for the length of a test.

    def test_search(traced):
        with pt.instance():
            search("refund policy")
        assert traced.tree() == "search complete"

pytest finds it by itself; `-p no:prefactor_trace` leaves it out. The marker `traced` takes the arguments of
`recording`, and records even if the test does not ask for the fixture. When a test fails, what it had recorded is
part of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from prefactor_trace.testing import Recording

_MARKER = (
    "traced(predictable=False, **settings): record in memory, as by the fixture `traced`. "
    "predictable=True gives ids and times that are the same in every run; settings are those of configure()."
)
_LINES = 200
_LINE_LENGTH = 300

_recordings = pytest.StashKey["Recording"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the marker imply the fixture."""
    names = getattr(item, "fixturenames", None)  # None: no test function, such as a doctest of another plugin
    if names is not None and "traced" not in names and item.get_closest_marker("traced") is not None:
        # A list of its own: the parameters of a function share theirs, and not all of them need have the marker.
        item.fixturenames = [*names, "traced"]  # type: ignore[attr-defined]


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> Iterator[Recording]:
    """Record in memory what prefactor_trace records during this test: no network, nothing on disk.

    Options come from the marker: @pytest.mark.traced(predictable=True, implicit_instances=True).
    """
    from prefactor_trace.testing import recording  # here, so that only those who use it pay for it

    with recording(**_options(request.node)) as recorded:
        request.node.stash[_recordings] = recorded
        yield recorded


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show in the report of a failed test what it had recorded."""
    report = yield
    recorded = item.stash.get(_recordings, None)
    if recorded is not None and report.failed:
        report.sections.append(("traced", _summary(recorded)))
    if recorded is not None and call.when == "teardown":
        del item.stash[_recordings]  # items live as long as the session
    return report


def _options(item: pytest.Item) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("traced"))):  # the closest wins
        if mark.args:
            pytest.fail(
                "the marker `traced` takes arguments by name, such as predictable=True", pytrace=False
            )
        options |= mark.kwargs
    return options


def _summary(recorded: Recording) -> str:
    try:
        tree = recorded.tree(show=("instances", "inputs", "result", "error", "metadata"))
    except Exception as error:  # a report must not fail over what it reports
        return f"cannot be shown: {error!r}"
    lines = tree.splitlines() or ["Nothing was recorded."]
    shown = [each if len(each) <= _LINE_LENGTH else each[:_LINE_LENGTH] + " …" for each in lines[:_LINES]]
    more = [f"… and {len(lines) - _LINES} lines more"] if len(lines) > _LINES else []
    return "\n".join([*shown, *more])

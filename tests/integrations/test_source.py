"""What is tapped is found in the source of an SDK, and nothing of the SDK runs for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_trace import integrations
from prefactor_trace.integrations._source import Sources

FILES = {
    "__init__.py": """
        from .client import Client as Public, missing
        from . import client
        raise SystemExit("imported")
        """,
    "client.py": """
        import typing
        from .base import Base, Generic
        from kit.deep.wraps import wraps
        from kit.ring import one

        try:
            import fast
        except ImportError:
            def fallback(): ...

        if typing.TYPE_CHECKING:
            class Client(Base[int], typing.Any): ...
        else:
            class Client(Base[int], typing.Any):
                alias = fallback
                hooks: list = []
                async def ask(self): ...

        @other.wrap()
        @wraps
        def asked(): ...

        @fallback
        def plain(): ...

        bare: int
        """,
    "base.py": """
        class Root:
            def close(self): ...
        class Base(Root):
            if True:
                def request(self): ...
        class Loop(Loop): ...
        """,
    "deep/wraps.py": """
        def wraps(original): ...
        """,  # `deep` is a namespace
    "ring.py": """
        from .gnir import one
        """,
    "gnir.py": """
        from kit.ring import one
        """,
    "later.py": """
        this is the Python of another year
        """,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Where `kit` is, which cannot be imported."""
    root = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        file = root / "kit" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    (root / "single.py").write_text("def function(): ...")
    sys.path.insert(0, str(root))
    yield Sources()
    sys.path.remove(str(root))
    assert "kit" not in sys.modules


@pytest.mark.parametrize(
    "where",
    [
        "kit.client:fallback",
        "kit.client:Client.ask",
        "kit.client:Client.alias",
        "kit.client:Client.hooks",
        "kit.client:Client.request",
        "kit.client:Client.close",
        "kit.client:bare",
        "kit.client:asked/original",
        "kit:Public.request",
        "kit.deep.wraps:wraps",
        "single:function",
    ],
)
def test_what_is_there_is_found(sources, where):
    """Defined, assigned, imported from elsewhere, inherited, or inside of what a decorator makes."""
    assert sources.has(where)


@pytest.mark.parametrize(
    "where",
    [
        "",
        ":",
        "kit",
        "kit:",
        "kit:missing",
        "kit:Public.missing",
        "kit.client:Client.ask.more",
        "kit.client:asked/other",
        "kit.client:plain/original",
        "kit.client:one",
        "kit.base:Loop.method",
        "kit.later:this",
        "kit.deep:wraps",
        "kit.nothing:at_all",
        "no_such_package.module:function",
        "sys:exit",
        "single.inner:function",
    ],
)
def test_what_is_not_there_is_not_found(sources, where):
    """Nor what cannot be read; it is never an error."""
    assert not sources.has(where)


@given(st.text(alphabet="kit.client:Asked/\0é ", max_size=30))
def test_any_place_is_borne(sources, where):
    """A place may be anything that an integration of others says."""
    assert sources.has(where) in (True, False)


@pytest.mark.parametrize("name", integrations.available())
def test_the_source_of_each_sdk_tells(name):
    """All that is tapped is found without importing it, so the doctor is quick."""
    assert integrations._known(name).fits(Sources())


def test_the_doctor_imports_no_sdk(tmp_path):
    """An SDK takes seconds to import, and may ask somebody on the network as it is."""
    program = """
        import os, sys
        from prefactor_trace import cli
        sys.argv[1:] = ["doctor"]
        try:
            cli.main()
        except SystemExit:
            pass
        print(os.environ["LITELLM_LOCAL_MODEL_COST_MAP"])  # if it had to be imported, it would ask nobody
        print(*sys.modules)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={"PREFACTOR_STATE_DIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))},
        timeout=60,
        check=True,
    )
    report, cost_map, modules = done.stdout.rstrip().rsplit("\n", 2)
    assert cost_map == "True"
    sdks = {
        "anthropic",
        "google.genai",
        "langchain_core",
        "litellm",
        "mcp",
        "openai",
        "agents",
        "pydantic_ai",
    }
    assert sdks.isdisjoint(modules.split())
    assert done.stderr == ""
    for name in integrations.available():
        assert f"{name} " in report
        assert "recorded: " in next(line for line in report.splitlines() if line.split()[0] == name)

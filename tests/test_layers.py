"""The corridor: data goes one way, imports go down. This table is the plan of the house (design, section 4)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefactor_trace

PACKAGE = Path(prefactor_trace.__file__).parent

LAYERS = [
    {"errors", "_deadline", "_guard", "_peek", "_secrets"},
    {"_enclosing"},
    {"_arrays", "_conversions", "_marks"},
    {"_readers", "_redact"},
    {"_error_text", "_hidden"},
    {"_version", "_clock", "_ids", "_capture", "_ending", "_local", "_shapes"},
    {"http", "_value_schema"},
    {"_types"},
    {"_schema", "_record"},
    {"_outbox", "_frames", "_shelf", "_quality"},
    {"_spool"},
    {"_wire"},
    {"exporters", "_network"},
    {"_worker", "_settings", "_inventory"},
    {"_stream", "_parameters"},
    {"_tracer", "_context", "_arguments"},
    {"_wrappers_importlib_bootstrap"},
    {"_wrap"},
    {"_decorate"},
    {"instances", "_carry", "_threads"},
    {"propagation"},
    {"spans"},
    {"_api", "integrations"},
    {"_strands"},
    {"testing", "__init__"},
    {"server", "_program", "_run", "_doctor", "pytest_plugin"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Files of one layer that may use each other, each with its reason.
BESIDE = {
    ("_record", "_schema"): "a registration carries its schema",
    ("exporters", "_network"): "loaded on first use: sockets are slow to import",
    ("_tracer", "_context"): "what an exporter does is not recorded",
}


def modules():
    """Yield each module of the package: its name in the table, and its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        yield relative.parts[0].removesuffix(".py"), path, ast.parse(path.read_text())


def imports(tree):
    """Yield what of ours a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.startswith("prefactor_trace"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefactor_trace":
            if node.module == "prefactor_trace":
                yield from (f"prefactor_trace.{each.name}" for each in node.names)
            else:
                yield node.module
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports hide the layer"


def test_every_module_has_a_place():
    """A new file must be put into the table."""
    assert {name for name, _, _ in modules()} == set(LEVEL)


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_go_down(name):
    """No module imports from a layer above it, nor from beside it without a reason."""
    wrong = []
    for own, path, tree in modules():
        if own != name:
            continue
        for imported in imports(tree):
            parts = imported.split(".")
            target = parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"
            inside = target == own
            down = LEVEL[target] < LEVEL[own]
            if not (inside or down or (own, target) in BESIDE):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert wrong == []


def test_sockets_only_where_they_belong():
    """Below the server, only the network module and the API client speak to sockets."""
    network = {"socket", "h11", "httpcore", "httpx", "http", "ssl", "urllib3", "requests"}
    users = {
        own
        for own, _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        )
        if name.split(".")[0] in network
    }
    assert users <= {"_network", "http", "server", "cli"}


def test_import_is_light():
    """`import prefactor_trace` loads no HTTP client, no event loop, no database, no SDK."""
    program = "import sys, prefactor_trace; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        .stdout.decode()
        .split()
    )
    heavy = {
        "httpx",
        "httpcore",
        "h11",
        "pydantic",
        "anyio",
        "asyncio",
        "sqlite3",
        "starlette",
        "jsonschema_rs",
        "openai",
        "wrapt",
        "ssl",
        "email",
    }

    assert loaded & heavy == set()

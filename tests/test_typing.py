"""Types: what `tests/typing` says about them holds for pyright as it does for mypy, which `make lint` asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_pyright():
    """Pyright sees the types that `assert_type` states, and an error wherever one is expected."""
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "tests/typing"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr

"""What is public: listed, documented, and nothing by accident."""

from __future__ import annotations

import importlib
import inspect

import pytest

import prefactor_trace as pt

PUBLIC_MODULES = ["prefactor_trace", "prefactor_trace.errors", "prefactor_trace.exporters", "prefactor_trace.testing",
                  "prefactor_trace.instances", "prefactor_trace.spans"]  # fmt: skip


def test_everything_public_is_listed():
    """`__all__` and what the package holds without an underscore are the same."""
    names = {
        name for name, value in vars(pt).items() if not name.startswith("_") and not inspect.ismodule(value)
    } | {"__version__"}

    assert names == set(pt.__all__)
    assert sorted(pt.__all__) == pt.__all__


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_everything_public_is_documented(module):
    """Every public name has a docstring, and every public method of it."""
    loaded = importlib.import_module(module)
    missing = []
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not value.__doc__:
            missing.append(name)
        if inspect.isclass(value):
            missing += [
                f"{name}.{attribute}"
                for attribute, member in vars(value).items()
                if not attribute.startswith("_") and callable(member) and not inspect.getdoc(member)
            ]
    assert missing == []

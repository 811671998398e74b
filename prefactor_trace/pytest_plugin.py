"""The pytest plugin inside the package, for `-p prefactor_trace.pytest_plugin`.

It stands outside of it, in `pytest_prefactor_trace`, where pytest finds it by itself: so a test run that does not use
it does not import the package.
"""

from pytest_prefactor_trace import pytest_configure, pytest_itemcollected, pytest_runtest_makereport, traced

__all__ = ["pytest_configure", "pytest_itemcollected", "pytest_runtest_makereport", "traced"]

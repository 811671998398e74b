"""A trial in front of an oracle behind a proxy."""

from __future__ import annotations

import sys

import pytest
from chaos.oracle import Oracle
from chaos.proxy import Proxy
from chaos.trial import Trial

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]  # no fork, no SIGKILL, no advisory locks


@pytest.fixture
def oracle():
    with Oracle() as server:
        yield server


@pytest.fixture
def proxy(oracle):
    with Proxy(oracle.port) as between:
        yield between


@pytest.fixture
def trial(tmp_path, proxy):
    one = Trial(tmp_path, proxy.url)
    yield one
    one.end()

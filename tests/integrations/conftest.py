"""What the tests of integrations share: a provider on loopback, and taps that are gone afterwards."""

from __future__ import annotations

import gc
import warnings

import pytest

import prefactor_trace as pt
from prefactor_trace import _guard
from prefactor_trace.testing import recording

from . import others
from .provider import Provider
from .scripted import Scripted

pytest.register_assert_rewrite(f"{__package__}.differential")


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_is_not_searched():
    """Collecting garbage looks at what a test has made: all that the SDKs have loaded takes most of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_collector():
    """Garbage waits for the end of the test. LiteLLM and Google's SDK leave streams open in cycles.

    If the collector closes one while httpcore holds the lock of its pool, which closing wants, the thread waits for
    itself for ever.
    """
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def no_leftovers():
    """What an SDK leaves open is dropped here, where nobody minds."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def server():
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def provider(server):
    """A provider that has been asked nothing yet."""
    server.forget()
    return server


@pytest.fixture(scope="module")
def scripted_server():
    provider = Scripted()
    yield provider
    provider.close()


@pytest.fixture
def scripted(scripted_server):
    """A provider that has been asked nothing yet, and has nothing to say."""
    scripted_server.forget()
    return scripted_server


@pytest.fixture
def nothing_unread():
    """At the end there is nothing that we could not read."""
    failures = dict(_guard.errors)
    yield
    assert dict(_guard.errors) == failures


@pytest.fixture(scope="session")
def llmock():
    """A model server that others have written."""
    pytest.importorskip("llmock")
    with others.serving() as found:
        yield found


@pytest.fixture(autouse=True)
def no_taps():
    yield
    pt.uninstrument()


@pytest.fixture
def recorded():
    """What is recorded of the test, in a run that is open already."""
    with recording() as found:
        yield found

"""The same program without us and with us: whatever it, and the provider, can see must be equal."""

from __future__ import annotations

import prefactor_trace as pt


def same(program, *names):
    """Call *program*, then again in a run that the integrations of these *names* record; return what came of it."""
    bare = program()
    pt.instrument(*names)
    with pt.instance():
        traced = program()
    assert bare == traced
    return bare


def is_raised(result):
    """Say whether a program has told of an exception: by a tuple that begins with its type."""
    return isinstance(result, tuple) and isinstance(result[0], type) and issubclass(result[0], BaseException)


def asked(provider, *unique):
    """Return the requests that *provider* has had, but for headers that differ each time."""
    return [
        (path, {name.lower(): value for name, value in headers.items() if name.lower() not in unique}, body)
        for path, headers, body in provider.requests
    ]

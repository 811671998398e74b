"""The same program without us and with us: whatever it, and the provider, can see must be equal."""

from __future__ import annotations

import gc

import prefactor_trace as pt


def same(program, *names):
    """Call *program*, then again in a run that the integrations of these *names* record; return what came of it."""
    bare = program()
    pt.instrument(*names)
    with pt.instance():
        traced = program()
    assert bare == traced
    return bare


def left_open(program):
    """Call *program*; return how many HTTP answers it leaves open that only the garbage collector would close.

    It would do so at any moment: if that is while httpcore holds the lock of its pool, which closing wants, for ever.
    """
    gc.collect()
    program()
    # Of httpx, whichever the SDK has brought.
    answers = [each for each in gc.get_objects() if type(each).__name__ == "Response"]
    return sum(getattr(each, "is_closed", None) is False for each in answers)


def is_raised(result):
    """Say whether a program has told of an exception: by a tuple that begins with its type."""
    return isinstance(result, tuple) and isinstance(result[0], type) and issubclass(result[0], BaseException)


def asked(provider, *unique):
    """Return the requests that *provider* has had, but for headers that differ each time."""
    return [
        (path, {name.lower(): value for name, value in headers.items() if name.lower() not in unique}, body)
        for path, headers, body in provider.requests
    ]

"""Where the local platform is: one small file in the user's state folder, written by it, read by the library.

The platform holds a lock on the file for as long as it lives, and the kernel lets go of it however it ends. So a
file left by a dead platform is never mistaken for a living one, and the token is never offered to whoever took
over its port.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; a stale file then costs one refused connection
    fcntl = None  # type: ignore[assignment]

_FILE = "local-platform.json"
_PATIENCE_SECONDS = 0.5  # who looks for a platform holds a shared lock for a moment


class Destination(NamedTuple):
    """Where records are sent: the platform's root address (without `/api/v1`) and the token it wants."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Destination(url={self.url!r}, token=***)"


class AlreadyRunningError(RuntimeError):
    """Another local platform of this user holds the file."""


def find(state_dir: Path) -> Destination | None:
    """Return the address of the local platform that is running now, or None. Never raises."""
    try:
        with open(state_dir / _FILE, "rb", opener=_open_own) as file:
            if not _is_locked(file):
                return None
            said = json.load(file)
            return Destination(str(said["url"]), str(said["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def announced(state_dir: Path, destination: Destination) -> Iterator[None]:
    """Tell the library, for the length of the block, that a platform is at *destination*.

    Raises AlreadyRunningError if another one is announced already, OSError if the folder cannot be written.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / _FILE
    with open(path, "a+b", opener=_open_own) as file:
        if not _lock(file):
            raise AlreadyRunningError(f"another local platform is running; {path} names it")
        file.truncate(0)
        file.write(json.dumps({**destination._asdict(), "pid": os.getpid()}).encode())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _open_own(path: str, flags: int) -> int:
    """Open without following a link and readable for the user alone; refuse a file somebody else owns."""
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    if hasattr(os, "getuid") and os.fstat(descriptor).st_uid != os.getuid():
        os.close(descriptor)
        raise PermissionError(f"{path} belongs to another user")
    return descriptor


def _lock(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > give_up_at:
                return False
            time.sleep(0.01)
        else:
            return True


def _is_locked(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False

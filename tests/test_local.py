"""Finding the local platform: only a living one of this user's is found, and its token stays private."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from prefactor_trace import _local
from prefactor_trace._local import AlreadyRunningError, Destination, announced, find

HERE = Destination("http://127.0.0.1:8700", "secret-token")


def test_found_while_it_lives(tmp_path):
    """The platform is found inside the block and not after it."""
    folder = tmp_path / "state"
    assert find(folder) is None
    with announced(folder, HERE):
        assert find(folder) == HERE
    assert find(folder) is None


def test_private(tmp_path):
    """Folder and file are for the user alone, and the token is not in a repr."""
    folder = tmp_path / "state"
    with announced(folder, HERE):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (file,) = folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in repr(HERE)


def test_one_at_a_time(tmp_path):
    """A second platform is told that one is running."""
    with announced(tmp_path, HERE), pytest.raises(AlreadyRunningError), announced(tmp_path, HERE):
        pass
    with announced(tmp_path, HERE):
        pass


def test_a_killed_platform_is_not_found(tmp_path):
    """The file that a killed platform left is not believed: its port may be anybody's now."""
    program = (
        "import sys, pathlib, time; from prefactor_trace._local import *;\n"
        f"with announced(pathlib.Path({str(tmp_path)!r}), Destination('http://127.0.0.1:1', 't')):\n"
        "    print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as platform:
        assert platform.stdout.readline() == b"up\n"
        assert find(tmp_path) is not None
        platform.kill()
    assert find(tmp_path) is None
    assert list(tmp_path.iterdir()) != []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"url": 1}', b"\xff"])
def test_damage_is_not_an_error(tmp_path, content):
    """A file that makes no sense means: no platform."""
    with announced(tmp_path, HERE):
        (file,) = tmp_path.iterdir()
        file.write_bytes(content)
        assert find(tmp_path) is None


def test_links_are_not_followed(tmp_path):
    """A link in the file's place is refused, reading and writing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps(HERE._asdict()))
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / _local._FILE).symlink_to(elsewhere)

    assert find(folder) is None
    with pytest.raises(OSError), announced(folder, HERE):
        pass
    assert elsewhere.read_text() == json.dumps(HERE._asdict())


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to give a file away")
def test_other_peoples_files_are_not_believed(tmp_path):
    """A file that belongs to somebody else is refused."""
    with announced(tmp_path, HERE):
        (file,) = tmp_path.iterdir()
        os.chown(file, 12345, 12345)
        assert find(tmp_path) is None

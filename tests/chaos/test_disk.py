"""Whatever the disk does, the program does not notice, and what was recorded is delivered from memory: T8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from itertools import pairwise

import pytest
from chaos.trial import Program, ledger_faults
from disks import mounted

PROGRAM = """
import json, os, sys, threading, time
sys.path.insert(0, os.environ["HERE"])
import subjects
log = os.open(os.environ["SAID"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
subjects.say = lambda line: os.writev(log, [line.encode() + b"\\n"])  # not write: some tests break that

import logging
import prefactor_trace as pt
logging.getLogger("prefactor_trace").disabled = True  # a broken stderr is the end of any program

def work(runs=4):
    for _ in range(runs):
        block, name = subjects.run_block()
        with block:
            subjects.say(f"R {name}")
            for _ in range(20):
                subjects.record(2_000)
        subjects.say(f"F {name}")

SABOTAGE
threads = [threading.Thread(target=work) for _ in range(2)]
[each.start() for each in threads]; [each.join() for each in threads]
subjects.say("ledger " + json.dumps(pt.flush(20)._asdict()))
"""
RECORDS = 2 * 4 * 23


class Recording(Program):
    """A program that records, and is sabotaged."""

    def __init__(self, trial, sabotage="", **options):
        super().__init__(trial, PROGRAM.replace("SABOTAGE", sabotage), seconds=40, **options)
        self.errors = self.done.stderr
        assert (self.done.returncode, self.done.stdout) == (0, ""), self.errors
        assert "Traceback" not in self.errors


def require_all(trial, oracle, program, records=RECORDS):
    """All that was recorded has been delivered by the program itself; who comes after it does no harm."""
    trial.subjects.append(program)
    ledger = json.loads(program.said("ledger")[-1])
    assert ledger_faults(ledger) == [], program.errors
    assert ledger["created"] == records
    assert [name for name in program.said("S") if name not in oracle.named] == []
    trial.adopt(1.0)
    found = [each for each in trial.faults(oracle) if not each.startswith("left in the spool")]
    assert not found, "\n".join(found)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    with mounted(folder, "size=64k"):
        yield folder


def test_full(trial, oracle, small_disk):
    """A disk that fills up while the program records."""
    program = Recording(trial, PREFACTOR_SPOOL_DIR=str(small_disk / "spool"))
    require_all(trial, oracle, program)


def test_full_from_the_start(trial, oracle, small_disk):
    """A disk on which there is no room for anything."""
    with (small_disk / "big").open("wb") as big:
        big.write(b"x" * 65_536)
    program = Recording(trial, PREFACTOR_SPOOL_DIR=str(small_disk / "spool"))
    require_all(trial, oracle, program)


def test_full_and_away(trial, proxy, oracle, small_disk):
    """A disk that fills up in an outage: what is on it and what is in memory arrives, each once."""
    proxy.refuse()
    admit = "threading.Timer(0.5, lambda: open(os.environ['GO'], 'w').close()).start()"
    go = trial.folder / "go"

    def look():
        while not go.exists():
            time.sleep(0.02)
        proxy.admit()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    program = Recording(trial, admit, PREFACTOR_SPOOL_DIR=str(small_disk / "spool"), GO=str(go))
    thread.join(5)
    require_all(trial, oracle, program)


def test_small_and_away(trial, proxy, oracle, tmp_path):
    """A disk smaller than memory is no store: in an outage nothing is kept on it alone, for the quota to take."""
    proxy.refuse()
    go = trial.folder / "go"
    admit = (
        "import prefactor_trace._worker as worker; worker._QUOTA_SECONDS = 0.05\n"
        "small = lambda: [subjects.record(20) for _ in range(20)]\n"
        "for _ in range(100):\n"
        "    with pt.instance(): small()\n"
        "    time.sleep(0.02)\n"
        "open(os.environ['GO'], 'w').close()\n"
    )

    def look():
        while not go.exists():
            time.sleep(0.02)
        proxy.admit()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    with mounted(tmp_path / "mebibyte", "size=1m"):
        program = Recording(trial, admit, PREFACTOR_SPOOL_DIR=str(tmp_path / "mebibyte/spool"), GO=str(go))
        thread.join(5)
        require_all(trial, oracle, program, RECORDS + 100 * 23)


def test_drains_a_full_disk(trial, oracle, small_disk):
    """What waits on a full disk is sent and removed, though nothing can be written there."""
    spool = {"PREFACTOR_SPOOL_DIR": str(small_disk / "spool")}
    kill = "work(1); os.kill(os.getpid(), 9)"
    with pytest.raises(AssertionError):
        Recording(trial, kill, **spool, PREFACTOR_BATCH_DELAY="60")
    left = list((small_disk / "spool").glob("*.seg"))
    assert left
    with (small_disk / "big").open("wb", buffering=0) as big:
        try:
            while big.write(b"x" * 4_096):
                pass
        except OSError:
            pass
    adopter = trial.start("adopt", spool, seconds=5)
    adopter.finish(20)
    assert ledger_faults(json.loads(adopter.said("ledger")[0])) == []
    said = (trial.folder / "said-0").read_text().split()
    assert [name for word, name in pairwise(said) if word == "S" and name not in oracle.named] == []
    assert list((small_disk / "spool").glob("*.seg")) == []
    assert oracle.wrongs == {}, oracle.remarks


def test_read_only(trial, oracle, small_disk):
    """A file system that cannot be written at all."""
    (small_disk / "spool").mkdir(mode=0o700)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    program = Recording(trial, PREFACTOR_SPOOL_DIR=str(small_disk / "spool"))
    require_all(trial, oracle, program)


def test_a_limit_for_files(trial, oracle):
    """No file may be larger than 20,000 bytes."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    # Its own log would be cut off as well.
    keep = "\nlines = []; subjects.say = lines.append"
    done = Recording(trial, "import resource", PREFACTOR_SPOOL="off")  # what it would be without: the same
    assert json.loads(done.said("ledger")[-1])["created"] == RECORDS
    (trial.folder / "said-0").unlink()
    end = "\nimport atexit\natexit.register(lambda: os.writev(log, ['\\n'.join(lines[-1:]).encode()]))"
    program = Recording(trial, limit + keep + end)
    ledger = json.loads(program.said("ledger")[-1])
    assert ledger_faults(ledger) == [], program.errors
    assert (ledger["created"], oracle.wrongs) == (RECORDS, {}), oracle.remarks
    assert len(oracle.spans) == 2 * 2 * 4 * 20


def test_the_folder_is_a_file(trial, oracle):
    """Where the folder should be there is a file."""
    place = trial.folder / "place"
    place.write_text("mine")
    program = Recording(trial, PREFACTOR_SPOOL_DIR=str(place))
    require_all(trial, oracle, program)
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    "what", ["os.path.join(os.environ['PREFACTOR_STATE_DIR'], 'spool')", "pt.configure().settings.spool_dir"]
)
def test_the_folder_is_deleted(trial, oracle, what):
    """Somebody tidies up under the program, again and again."""
    sabotage = (
        "import shutil\n"
        f"path = {what}\n"
        "def tidy():\n"
        "    for _ in range(20):\n"
        "        time.sleep(0.02); shutil.rmtree(path, ignore_errors=True)\n"
        "threading.Thread(target=tidy).start()\n"
    )
    program = Recording(trial, sabotage)
    require_all(trial, oracle, program)


def test_all_descriptors_are_closed(trial, oracle):
    """A program that closes all there are finds nothing of ours in its next files, and what it records is on disk."""
    close = (
        "work(1)\n"
        "os.closerange(3, log); os.closerange(log + 1, 4096)\n"
        "mine = [open(os.environ['MINE'] + str(number), 'wb') for number in range(10)]\n"
        "work(1); work(1); os.kill(os.getpid(), 9)\n"
    )
    text = PROGRAM.replace("SABOTAGE", close)
    program = Program(trial, text, PREFACTOR_BATCH_DELAY="60", MINE=str(trial.folder / "mine"))
    trial.subjects.append(program)
    trial.require_whole(oracle)
    assert len(program.said("S")) == 60
    assert all((trial.folder / f"mine{number}").read_bytes() == b"" for number in range(10))


@pytest.fixture(scope="module")
def strace():
    """The beginning of a command whose system calls can be broken."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    command = [path, "-f", "-qq", "-o", "/dev/null"]
    probe = subprocess.run(
        [*command, "-e", "inject=chdir:error=EIO", "true"], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("strace cannot be used here")
    return command


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"] if os.environ.get("CHAOS_LONG") else ["EIO"])
@pytest.mark.parametrize(
    "call",
    [
        "write:error={}:when=2+3",
        "write:error={}:when=9+",
        "write:error={}:when=30..40",
        "flock:error={}",
        "unlink,unlinkat:error={}",
        "fchmod,fchmodat,mkdir:error={}",
        "pread64:error={}:when=3+2",
        "statfs,fstatfs:error={}",
    ],
)
def test_failing_calls(trial, oracle, strace, call, error):
    """System calls that fail, at once, from some point on, now and then, or for a while."""
    broken = ["-e", "trace=" + call.split(":", 1)[0], "-e", "inject=" + call.format(error)]
    program = Recording(trial, prefix=[*strace, *broken])
    require_all(trial, oracle, program)

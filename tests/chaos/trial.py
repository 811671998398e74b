"""One trial: subjects in processes of their own, one spool, and what the oracle must know at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.oracle import FINAL, TOKEN, Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Told:
    """What a program says in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def lines(self) -> list[list[str]]:
        """What it has said so far, as words."""
        return [line.split(" ", 1) for line in self._file.read_text().splitlines()]

    def said(self, word: str) -> list[str]:
        """What stood behind *word* in its lines."""
        return [line[1] if len(line) > 1 else "" for line in self.lines if line[0] == word]


class Subject(Told):
    """A running subject. Its lines go to a file, so that it never waits for us."""

    def __init__(
        self, trial: Trial, shape: str, options: dict[str, object], environment: dict[str, str]
    ) -> None:
        super().__init__(trial.folder / f"out-{len(trial.subjects)}")
        self._err = trial.folder / f"err-{len(trial.subjects)}"
        words = [f"{key}={value}" for key, value in options.items()]
        with self._file.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "subjects.py"), shape, *words],
                env={**trial.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def errors(self) -> str:
        return self._err.read_text()

    def wait_for(self, word: str, seconds: float = 30.0) -> None:
        """Wait until it has said *word*."""
        deadline = time.monotonic() + seconds
        while not self.said(word):
            assert time.monotonic() < deadline, f"no {word!r} within {seconds} s: {self.errors}"
            assert self.process.poll() is None or self.said(word), self.errors
            time.sleep(0.005)

    def kill(self, after: float) -> None:
        """SIGKILL it, and all of its group, *after* seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(after)
        self.end()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def finish(self, seconds: float) -> None:
        """Wait for its end; it must come by itself, with code 0."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"it is still there after {seconds} s: {self.lines[-5:]} {self.errors}"
            ) from None
        assert code == 0, self.errors


class Program(Told):
    """A program in Python that has run to its end, in the form of a subject. What it says goes to the file SAID."""

    def __init__(
        self,
        trial: Trial,
        text: str,
        *,
        prefix: Sequence[str] = (),
        seconds: float = 60.0,
        **environment: str,
    ) -> None:
        super().__init__(trial.folder / f"said-{len(trial.subjects)}")
        self.done = subprocess.run(
            [*prefix, sys.executable, "-c", text],
            env={**trial.environment, "HERE": str(HERE), "SAID": str(self._file), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def end(self) -> None:
        """It has ended."""


class Trial:
    """See the module's docstring. *url*: where the subjects send to."""

    def __init__(self, folder: Path, url: str, **environment: str) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.subjects: list[Subject | Program] = []
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": f"{ROOT}:{HERE.parent}:{':'.join(each for each in sys.path if each)}",
            "PREFACTOR_API_URL": url,
            "PREFACTOR_API_TOKEN": TOKEN,
            "PREFACTOR_STATE_DIR": str(folder),
            "PREFACTOR_REQUEST_TIMEOUT": "1",
            "PREFACTOR_BATCH_DELAY": "0.05",
            **environment,
        }

    def start(self, shape: str, environment: dict[str, str] | None = None, **options: object) -> Subject:
        subject = Subject(self, shape, options, environment or {})
        self.subjects.append(subject)
        return subject

    def adopt(self, seconds: float = 10.0) -> dict[str, Any]:
        """Let a process that records nothing send what is left. Return its ledger."""
        subject = self.start("adopt", seconds=seconds)
        subject.finish(seconds + 15)
        ledger: dict[str, Any] = json.loads(subject.said("ledger")[0])
        return ledger

    def end(self) -> None:
        for each in self.subjects:
            each.end()

    # -- what must hold ------------------------------------------------------------------------------------

    @property
    def left(self) -> list[str]:
        """The files in the spool, but for the account of what was lost."""
        if not self.spool.exists():
            return []
        return sorted(each.name for each in self.spool.iterdir() if each.name != "accounts.jsonl")

    def require_whole(self, oracle: Oracle, *about: str, seconds: float = 10.0, but: str = "") -> None:
        """Let what is left be sent; then every promise is kept. *about*: words for who reads what is wrong."""
        ledger = self.adopt(seconds)
        found = self.faults(oracle, but=but) + ledger_faults(ledger)
        assert not found, "\n".join([*found, *about])

    def faults(self, oracle: Oracle, *, but: str = "") -> list[str]:
        """Return everything that is wrong, in words; empty: every promise was kept. *but*: a kind that may be."""
        found = [f"{count} {kind}" for kind, count in oracle.wrongs.items() if kind != but]
        found += [each for each in oracle.remarks if not (but and each.startswith(but))][:8]
        for each in self.subjects:
            found += [f"hung: {pid}" for pid in each.said("hung")]
            found += [f"a child failed: {error}" for error in each.said("error")]
        found += _few(self._missing(oracle))
        found += _few(
            f"{name} is {span['status']}" for name, span in _spans(oracle) if span["status"] not in FINAL
        )
        found += _few(
            f"the run {run['external_identifier']} is {run['status']}"
            for run in oracle.runs.values()
            if run["status"] not in FINAL
        )
        if self.left:
            found.append(f"left in the spool: {self.left}")
        return found

    def _missing(self, oracle: Oracle) -> Iterator[str]:
        runs = {run["external_identifier"]: run for run in oracle.runs.values()}
        for word, name in (line for each in self.subjects for line in each.lines if len(line) == 2):
            if word == "R" and name not in runs:
                yield f"missing: {name}"
            elif word == "F" and name in runs and runs[name]["status"] != "complete":
                yield f"{name} was finished, and is {runs[name]['status']}"
            elif word == "S" and name not in oracle.named:
                yield f"missing: {name}"
            elif word == "E" and name in oracle.named and oracle.span_called(name)["status"] != "complete":  # type: ignore[index]
                yield f"{name} was ended, and is {oracle.span_called(name)}"

    @property
    def obligations(self) -> int:
        return sum(len(each.said(word)) for each in self.subjects for word in "RFSE")


def ledger_faults(ledger: dict[str, Any]) -> list[str]:
    """Return what is wrong with the ledger of a process that had nothing left to do."""
    found = []
    if ledger["created"] != ledger["delivered"] + sum(ledger["dropped"].values()) + ledger["pending"]:
        found.append(f"the ledger does not add up: {ledger}")
    if ledger["pending"] or ledger["dropped"]:
        found.append(f"not everything was delivered: {ledger}")
    return found


def _spans(oracle: Oracle) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, oracle.spans[each]) for name, ids in oracle.named.items() for each in ids)


def _few(words: Any) -> list[str]:
    words = list(words)
    return words[:5] + ([f"... and {len(words) - 5} more"] if len(words) > 5 else [])

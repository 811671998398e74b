"""What `import prefactor_trace` costs, beside other libraries.

Each import is made in many fresh processes, in rounds of all; the best of each counts, less the best of an interpreter
that imports nothing. Also says which heavy modules it loads that should wait until they are needed.

    python benchmarks/import_time.py [--check] [--quick]

Ends with status 0; 1 if a budget is missed and `--check` is given; 2 if prefactor_trace cannot be imported.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time

_BUDGET = 80.0  # milliseconds (design, section 6)
_NOTHING = "an empty interpreter"
_OURS = "prefactor_trace"
_IMPORTS = {
    _NOTHING: "pass",
    _OURS: "import prefactor_trace",
    "opentelemetry.sdk.trace with the OTLP/HTTP exporter": (
        "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http.trace_exporter"
    ),
    "prefactor_core": "import prefactor_core",
}
_LATER = ("httpx", "httpcore", "h11", "pydantic", "anyio", "sqlite3", "starlette", "openai")
_LINE = "{:<53} {:>9} {:>8} {:>9}  {}"


def _run(code: str) -> tuple[float, str]:
    """Run *code* in a fresh interpreter. Return milliseconds and what it printed; raises ImportError if it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    milliseconds = (time.perf_counter() - began) * 1e3
    if done.returncode != 0:
        raise ImportError(done.stderr.strip().rpartition("\n")[2])
    return milliseconds, done.stdout


def _importable() -> dict[str, str]:
    """Return the imports that work; say which do not. The first run also compiles what is imported."""
    found = {}
    for title, code in _IMPORTS.items():
        try:
            _run(code)
        except ImportError as error:
            print(f"{title} is not measured: {error}. `make install` brings it.")
        else:
            found[title] = code
    return found


def _loaded_too_early() -> list[str]:
    _, printed = _run(
        f"import sys, prefactor_trace; print(*[each for each in {_LATER} if each in sys.modules])"
    )
    return printed.split()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="What `import prefactor_trace` costs, beside other libraries."
    )
    parser.add_argument("--check", action="store_true", help="end with status 1 if a budget is missed")
    parser.add_argument("--quick", action="store_true", help="few processes: shows that it works, no more")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process would compile anew
    rounds = 2 if options.quick else 25
    imports = _importable()
    if _OURS not in imports:
        return 2
    times: dict[str, list[float]] = {title: [] for title in imports}
    for _ in range(rounds):
        for title, code in imports.items():
            times[title].append(_run(code)[0])
    best = {title: min(each) - min(times[_NOTHING]) for title, each in times.items()}

    print(
        f"Python {platform.python_version()}. Milliseconds over an empty interpreter, best of {rounds} processes.\n"
    )
    print(_LINE.format("import of", "ms", "", "budget", "").rstrip())
    is_kept = best[_OURS] <= _BUDGET
    print(_LINE.format(_OURS, f"{best[_OURS]:.0f}", "", f"<= {_BUDGET:.0f}", "ok" if is_kept else "MISSED"))
    for title in list(imports)[2:]:
        print(_LINE.format(title, f"{best[title]:.0f}", f"{best[title] / best[_OURS]:.1f}x", "", "").rstrip())
    early = _loaded_too_early()
    print(f"\nloaded with it, though needed only later: {' '.join(early) or 'nothing'}")
    return 1 if options.check and (early or not is_kept) else 0


if __name__ == "__main__":
    sys.exit(main())

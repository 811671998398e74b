"""Run the tests of each SDK with the oldest and the newest version that its integration claims, and print a table.

    python tests/integrations/matrix.py [NAME ...]

What is claimed stands in each integration's file (`REQUIRES`) and nowhere else. Each version has an environment of its own
in `.venv-matrix`, made with uv if it is on PATH, else with pip, and brought up to date at each run. Warnings are no errors
here: an old SDK may use what is deprecated by now. Ends with status 1 if any test fails or nothing was tested.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-matrix"
TOOLS = ["pytest", "hypothesis", "trio", "jsonschema", "opentelemetry-sdk"]
# What the tests of an SDK need besides it, of whatever version fits.
COMPANIONS = {
    "langchain": ["langchain", "langchain-openai", "langgraph", "numpy"],
    "litellm": ["mcp"],  # imported for calls with tools, and not among its requirements
    "pydantic_ai": ["openai"],
}
# What the oldest version of an SDK does not go with any more, though it does not say so.
OF_ITS_TIME = {
    "langchain": ["langgraph-checkpoint<4", "langgraph-prebuilt<1.0.2"],
    "mcp": ["pydantic<2.12"],
}


def claims():
    """Return the requirement of each integration, by its name."""
    found = {}
    for file in sorted((ROOT / "prefactor_trace" / "integrations").glob("[!_]*.py")):
        told = re.search(r'^REQUIRES = "(.+)"', file.read_text(), re.MULTILINE)
        if told is not None:
            found[file.stem] = told[1]
    return found


def pinned(requirement):
    """Return the requirements of the oldest and the newest version: "x>=1.2,<4" begins with the series 1.2."""
    parts = re.fullmatch(r"([\w.-]+)>=([\d.]+),<([\d.]+)", requirement)
    if parts is None:
        raise ValueError(f"{requirement!r} is not of the form package>=oldest,<next")
    return {"oldest": f"{parts[1]}=={parts[2]}.*", "newest": requirement}


def environment(name, age, requirement):
    """Make the environment, or bring it up to date; return its interpreter."""
    folder = ENVIRONMENTS / f"{name}-{age}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if not python.exists():
        made_by = [uv, "venv", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        subprocess.run([*made_by, str(folder)], check=True)
    install = (
        [uv, "pip", "install", "-q", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "-qq"]
    )
    companions = [*COMPANIONS.get(name, ()), *(OF_ITS_TIME.get(name, ()) if age == "oldest" else ())]
    wanted = ["-e", f"{ROOT}[local,cost]", *TOOLS, *companions, requirement]
    subprocess.run([*install, "--upgrade", *wanted], check=True)
    return python


def tested(name, python):
    """Run the tests, and return whether they have passed, with their last line."""
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-o",
        "filterwarnings=default",
        f"tests/integrations/test_{name}.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
    summary = (done.stdout.strip().splitlines() or ["nothing was said"])[-1].strip("= ")
    return done.returncode == 0 and " passed" in summary, summary


def version_of(requirement, python):
    package = re.split(r"[<>=]", requirement)[0]
    asked = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return package, subprocess.run(
        [str(python), "-c", asked], capture_output=True, text=True, check=True
    ).stdout.strip()


def main(names):
    known = claims()
    if unknown := set(names) - set(known):
        sys.exit(f"there is no integration {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    rows = []
    for name in names or known:
        for age, requirement in pinned(known[name]).items():
            try:
                python = environment(name, age, requirement)
            except subprocess.CalledProcessError:
                rows.append((name, age, requirement, "failed", "cannot be installed"))
                continue
            passed, summary = tested(name, python)
            rows.append(
                (name, age, " ".join(version_of(requirement, python)), "ok" if passed else "failed", summary)
            )
            sys.stderr.write(f"{name} {age}: {summary}\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0 if all(row[3] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

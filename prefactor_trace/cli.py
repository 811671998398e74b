"""The command line: `prefactor-trace serve`, `run`, `doctor`, `schema`, `spool ...` and `--version`.

Importing this needs nothing but the standard library; what the commands need comes with the extra `local`, and who
has not installed it is told how to.
"""
# No `from __future__ import annotations` here: typer reads the annotations, and they name things imported inside.

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson

from prefactor_trace import _doctor, _inventory, _local, _program
from prefactor_trace._settings import Settings, resolve
from prefactor_trace._tracer import TracerCore
from prefactor_trace._version import __version__
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    import typer

_DATABASE = "local-platform.sqlite3"
_NEEDED = ("rich", "starlette", "typer", "uvicorn")


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == [
        "run"
    ]:  # first of all: the program is to find nothing of ours loaded that it can do without
        from prefactor_trace import _run

        _run.main(sys.argv[2:])
        return
    if not all(importlib.util.find_spec(name) for name in _NEEDED):
        sys.exit("The local platform needs more packages:\n\n    pip install 'prefactor-trace[local]'\n")
    try:
        settings = resolve({})
    except ConfigurationError as error:
        sys.exit(str(error))
    _application(settings)()


def _application(settings: Settings) -> "typer.Typer":
    import typer

    database = settings.state_dir / _DATABASE
    application = typer.Typer(
        add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"prefactor-trace {__version__}")
            raise typer.Exit

    @application.callback()
    def common(
        *,
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the version and exit.", callback=print_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        """Record what Python agents do, as governed runs in Prefactor."""

    @application.command()
    def serve(
        *,
        port: Annotated[
            int, typer.Option(help="Port on 127.0.0.1; 0 takes any free one.", min=0, max=65535)
        ] = 8700,
        db: Annotated[Path, typer.Option(help="Database file.", dir_okay=False)] = database,
    ) -> None:
        """Run the local platform: Prefactor's HTTP API and a web viewer, on this machine, over one SQLite file."""
        _serve(port, db, settings)

    @application.command()
    def doctor() -> None:
        """Say which settings hold, whether the destination answers and takes the token, and what waits."""
        # If it must be imported, it must not fetch its list of prices: nobody else is asked anything here.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        findings = list(_doctor.examine(settings))
        width = max(len(each.about) for each in findings)
        for each in findings:
            typer.echo(f"{'!' if each.is_trouble else ' '} {each.about:<{width}}  {each.text}")
        if any(each.is_trouble for each in findings):
            raise typer.Exit(1)

    @application.command(
        help="Run a program and record it: a run around all of it, and every LLM call in it."
    )
    def run() -> None:
        """Stand in the list of commands; `main` has gone another way already."""

    @application.command()
    def schema(
        target: Annotated[
            str, typer.Argument(help="A module or a file, and a name in it: package.module, agent.py:search.")
        ],
        *,
        pretty: Annotated[
            bool | None, typer.Option("--pretty/--compact", help="Default: pretty on a terminal.")
        ] = None,
    ) -> None:
        """Write what a run declares, as JSON: all types of a module, or those of one function, class or schema."""
        _write_schema(target, pretty)

    spool = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    application.add_typer(spool, name="spool", help="What waits on this machine to be delivered.")

    @spool.command("list")
    def list_() -> None:
        """Show what waits, for whom, and who left it."""
        _list_spool(settings)

    @spool.command()
    def send(
        *,
        timeout: Annotated[float, typer.Option(help="Seconds to try for.", min=0.0)] = 60.0,
    ) -> None:
        """Deliver what programs that have ended left, to the destination that the environment names."""
        _send_spool(settings, timeout)

    @spool.command()
    def export() -> None:
        """Write what waits to standard output, as lines of JSON."""
        for line in _inventory.export(settings.spool_dir):
            sys.stdout.buffer.write(line)

    @spool.command()
    def purge(*, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
        """Throw away what programs that have ended left."""
        if not yes:
            typer.confirm(f"Throw away what waits in {settings.spool_dir}?", abort=True)
        typer.echo(f"{_inventory.purge(settings.spool_dir):,} bytes removed")

    return application


def _write_schema(target: str, pretty: bool | None) -> None:
    is_pretty = sys.stdout.isatty() if pretty is None else pretty
    # Whatever the program writes as it is imported, or as it ends, goes beside the JSON.
    with os.fdopen(os.dup(1), "wb") as output:
        sys.stdout.flush()
        os.dup2(2, 1)
        try:
            wire = _program.schema_of(target).to_wire()
        except ConfigurationError as error:
            sys.exit(str(error))
        options = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if is_pretty else 0)
        output.write(orjson.dumps(wire, option=options))


def _list_spool(settings: Settings) -> None:
    holdings = _inventory.survey(settings.spool_dir)
    if not holdings:
        sys.stdout.write(f"nothing waits in {settings.spool_dir}\n")
        return
    rows = [("since", "process", "runs", "records", "bytes", "destination")]
    for each in holdings:
        since = each.since.astimezone().strftime("%Y-%m-%d %H:%M:%S") if each.since else "unknown"
        process = f"{each.pid} {'running' if each.is_alive else 'ended'}" if each.pid else "unknown"
        runs, records, size = (f"{number:,}" for number in (each.runs, each.records, each.size))
        rows.append((since, process, runs, records, size, each.destination or "not readable by this version"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # the longest at the end: nothing is cut, in a pipe or elsewhere
        cells = [
            cell.rjust(width) if 2 <= at <= 4 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _send_spool(settings: Settings, timeout: float) -> None:
    tracer = TracerCore(dataclasses.replace(settings, spool=True))
    ledger = tracer.take_over(timeout)
    tracer.shutdown(0.0)
    sys.stdout.write(f"{ledger.delivered:,} records delivered\n")
    for reason, count in ledger.dropped.items():
        sys.stdout.write(f"{count:,} dropped: {reason}\n")
    waiting, _ = _inventory.waiting_for(settings.spool_dir, settings.destination_name)
    if waiting:
        sys.exit(f"{waiting:,} records still wait")


def _serve(port: int, db: Path, settings: Settings) -> None:
    import sqlite3

    from prefactor_trace.server import NewerDatabaseError, serve

    if (running := _local.find(settings.state_dir)) is not None:
        sys.exit(
            f"A local platform is running already at {running.url}; stop it first (Ctrl+C in its terminal)."
        )
    try:
        serve(port, db, settings)
    except NewerDatabaseError as error:
        sys.exit(f"{error} (--db).")
    except (OSError, sqlite3.Error, _local.AlreadyRunningError) as error:
        sys.exit(
            f"The local platform cannot start: {error}. Choose another --port (0 takes a free one) or --db."
        )

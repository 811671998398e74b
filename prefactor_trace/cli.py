"""The command line: `prefactor-trace serve` and `prefactor-trace --version`.

Importing this needs nothing but the standard library; what the commands need comes with the extra `local`, and who
has not installed it is told how to.
"""
# No `from __future__ import annotations` here: typer reads the annotations, and they name things imported inside.

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prefactor_trace import _local
from prefactor_trace._settings import resolve
from prefactor_trace._version import __version__
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    import typer

_DATABASE = "local-platform.sqlite3"
_NEEDED = ("rich", "starlette", "typer", "uvicorn")


def main() -> None:
    """Run the command that the arguments name."""
    if not all(importlib.util.find_spec(name) for name in _NEEDED):
        sys.exit("The local platform needs more packages:\n\n    pip install 'prefactor-trace[local]'\n")
    try:
        settings = resolve({})
    except ConfigurationError as error:
        sys.exit(str(error))
    _application(settings.state_dir)()


def _application(state_dir: Path) -> "typer.Typer":
    import typer

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
        db: Annotated[Path, typer.Option(help="Database file.", dir_okay=False)] = state_dir / _DATABASE,
    ) -> None:
        """Run the local platform: Prefactor's HTTP API and a web viewer, on this machine, over one SQLite file."""
        _serve(port, db, state_dir)

    return application


def _serve(port: int, db: Path, state_dir: Path) -> None:
    import sqlite3

    from prefactor_trace.server import NewerDatabaseError, serve

    if (running := _local.find(state_dir)) is not None:
        sys.exit(
            f"A local platform is running already at {running.url}; stop it first (Ctrl+C in its terminal)."
        )
    try:
        serve(port, db, state_dir)
    except NewerDatabaseError as error:
        sys.exit(f"{error} (--db).")
    except (OSError, sqlite3.Error, _local.AlreadyRunningError) as error:
        sys.exit(
            f"The local platform cannot start: {error}. Choose another --port (0 takes a free one) or --db."
        )

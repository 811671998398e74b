"""Runs the local platform: in a thread for a block (`LocalPlatform`), or for a terminal until it is stopped (`serve`).

The server has a thread and an event loop of its own; who starts it waits until it answers. It listens on 127.0.0.1 and
nowhere else, and makes a new token at every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from rich.console import Console
from rich.markup import escape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from prefactor_trace import _local
from prefactor_trace._tracer import TracerCore
from prefactor_trace.server import _api
from prefactor_trace.server._guard import Guard
from prefactor_trace.server._store import Store
from prefactor_trace.server._viewer import viewer_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from starlette.types import ASGIApp
    from typing_extensions import Self

    from prefactor_trace._settings import Settings

_ADDRESS = "127.0.0.1"
_WINDOWS_LOOKS_FOR_SIGNALS_EVERY = 0.5  # seconds; elsewhere a signal ends the wait at once
_INTAKE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 1  # for answers under way; idle connections are closed at once


class LocalPlatform:
    """The local platform, running for the length of a `with` block.

    Attributes:
        store: What it knows.
        url: Its root address, without `/api/v1`.
        token: What its API wants as bearer.
        viewer_url: The address to open in a browser; whoever has it can read and terminate.
    """

    def __init__(self, db: str | os.PathLike[str], *, port: int = 0, state_dir: Path | None = None) -> None:
        """Take note; nothing is opened yet.

        Args:
            db: The database file, made if it does not exist.
            port: Where to listen; 0 for any free port.
            state_dir: Where to announce it, so that the library on this machine finds it; None for nowhere.
        """
        self.token = secrets.token_urlsafe(32)
        self._db = Path(db)
        self._port = port
        self._state_dir = state_dir

    def __enter__(self) -> Self:
        """Start. Raises OSError if the port is taken, `_local.AlreadyRunningError` if another one is announced."""
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(_listen(self._port))
            port = listener.getsockname()[1]
            self.url = f"http://{_ADDRESS}:{port}"
            self.viewer_url = f"{self.url}/?token={self.token}"
            self.store = opened.enter_context(contextlib.closing(Store(self._db)))
            application = Guard(_application(self.store), port=port, token=self.token)
            opened.enter_context(_running(application, listener))
            if self._state_dir is not None:
                destination = _local.Destination(self.url, self.token)
                opened.enter_context(_local.announced(self._state_dir, destination))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, within about a second, and close the database."""
        self._opened.close()


def serve(port: int, db: Path, settings: Settings) -> None:
    """Run the local platform until SIGINT or SIGTERM, and say on the terminal where it is.

    What waits in the spool for a local platform is taken in.

    Raises what `LocalPlatform.__enter__` raises.
    """
    with (
        _stop_signal() as wait_for_stop,
        LocalPlatform(db, port=port, state_dir=settings.state_dir) as platform,
        _taking_in(settings),
    ):
        say = Console(highlight=False, soft_wrap=True).print
        say(f"\n  [bold]Prefactor, on this machine[/]   [link]{platform.viewer_url}[/]")
        say(f"  [dim]database[/]   {escape(str(db))}")
        say("  [dim]stop[/]       Ctrl+C\n")
        wait_for_stop()


@contextlib.contextmanager
def _taking_in(settings: Settings) -> Iterator[None]:
    """Take in what ended programs have left in the spool: at once, and now and then."""
    # No time at the end of the program: what has not been taken in by then waits for the next platform.
    wanted = dataclasses.replace(settings, api_token=None, proxy=None, spool=True, exit_timeout=0.0)
    tracer = TracerCore(wanted)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            tracer.take_over(_INTAKE_SECONDS)
            stop.wait(_INTAKE_SECONDS)
        tracer.shutdown(
            0.0
        )  # on the thread that uses it: from another one it would come in between, or in vain

    thread = threading.Thread(target=run, name="prefactor-intake", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        tracer.leave_off()
        thread.join(_SHUTDOWN_SECONDS)


def _application(store: Store) -> ASGIApp:
    application = Starlette(
        routes=[*_api.api_routes(store), *viewer_routes(store)],
        exception_handlers={HTTPException: _api.no_such_page, Exception: _api.failed},
    )
    application.router.redirect_slashes = False  # a redirect has no JSON in it
    return application


def _listen(port: int) -> socket.socket:
    # The protocol is named, because asyncio sends small answers without delay only on sockets that say they are TCP:
    # left out, every answer would wait 40 ms for the client's acknowledgement of its head.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # on Windows it would let another program take the port over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_ADDRESS, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """Uvicorn's server, which can be waited for from another thread."""

    def __init__(self, application: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        self.settled = threading.Event()
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    def run_to_end(self, listener: socket.socket) -> None:
        """Serve on the calling thread until `should_exit`. `settled` is set when it answers, or never will."""
        try:
            asyncio.run(self.serve([listener]))
        except BaseException as failure:  # raised again on the thread that waits for this one
            self.failure = failure
        finally:
            self.settled.set()


@contextlib.contextmanager
def _running(application: ASGIApp, listener: socket.socket) -> Iterator[None]:
    server = _Server(application)
    thread = threading.Thread(target=server.run_to_end, args=(listener,), name="prefactor-local-platform")
    thread.daemon = True  # whoever forgets to leave the block still gets out of the program
    thread.start()
    server.settled.wait()
    try:
        if server.failure is None:
            yield
    finally:
        server.should_exit = True
        thread.join()
    if server.failure is not None:
        raise server.failure


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], None]]:
    """Turn SIGINT and SIGTERM into the end of a wait, so that everything is closed in order."""
    stop = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    def wait() -> None:
        while not stop.wait(_WINDOWS_LOOKS_FOR_SIGNALS_EVERY):
            pass

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

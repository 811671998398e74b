"""The functions users call: the same as a `Tracer`'s, over the one default tracer of the process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from prefactor_trace import _context, _guard
from prefactor_trace._settings import resolve
from prefactor_trace._tracer import TracerCore
from prefactor_trace.instances import InstanceBlock, open_instance
from prefactor_trace.spans import span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefactor_trace._decorate import Decorated
    from prefactor_trace._record import Ledger
    from prefactor_trace._redact import Place
    from prefactor_trace._schema import Schema
    from prefactor_trace.exporters import Exporter
    from prefactor_trace.instances import Purpose

__all__ = ["Tracer", "aflush", "ashutdown", "configure", "flush", "instance", "shutdown", "stats"]

F = TypeVar("F", bound="Decorated")


class Tracer(TracerCore):
    """One destination with its settings and its sender. Made by `configure`, or by hand for a second one.

    Spans always belong to the instance they are in, and go where it goes.

    Args:
        exporter: Where batches go, instead of over HTTP.
        schema: Span types to declare beside those of decorated functions, kinds of rating, and the schema version's
            name.
        threaded: False sends only inside `flush` and `shutdown`, on the caller's thread.
        environ: Variables to look at. Default: the process's.
        settings: As for `configure`.

    Raises:
        ConfigurationError: A setting does not exist, or its value cannot work.
    """

    def __init__(
        self,
        *,
        exporter: Exporter | None = None,
        schema: Schema | None = None,
        threaded: bool = True,
        environ: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        inside = indoors
        if inside is not None:
            exporter, environ, settings = inside.exporter, environ or {}, settings | inside.settings
        super().__init__(resolve(settings, environ), exporter=exporter, schema=schema, threaded=threaded)
        if inside is not None:
            inside.take_in(self)

    span = staticmethod(span)

    def instance(
        self,
        *,
        agent_id: str | None = None,
        agent_name: str | None = None,
        agent_version: str | None = None,
        description: str | None = None,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
        id: str | None = None,
    ) -> InstanceBlock:
        """Open a run that goes to this tracer's destination; see the function `instance`."""
        options = {name: value for name, value in locals().items() if name != "self"}
        return InstanceBlock(lambda: self, options)


class Indoors(Protocol):
    """A test that is recording: what tracers are made meanwhile keep everything in memory, whatever they are told."""

    exporter: Exporter
    settings: dict[str, Any]

    def take_in(self, tracer: Tracer) -> None: ...


indoors: Indoors | None = None
"""Set by `testing`, for as long as it records."""

# A signal handler, or a destructor that the collector calls here, may ask for the tracer while it is being made.
_lock = threading.RLock()
_configuring = threading.RLock()
_default: Tracer | None = None


def _begin_in_child() -> None:
    """After a fork, have locks that nobody holds."""
    global _lock, _configuring
    _lock, _configuring = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def configure(
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    allow_http: bool | None = None,
    agent_id: str | None = None,
    agent_name: str | None = None,
    agent_version: str | None = None,
    environment_id: str | None = None,
    sample_rate: float | None = None,
    capture_inputs: bool | None = None,
    capture_outputs: bool | None = None,
    max_input_length: int | None = None,
    max_output_length: int | None = None,
    redact: bool | Callable[[Any, Place], Any] | None = None,
    redact_keys: str | Sequence[str] | None = None,
    implicit_instances: bool | None = None,
    disabled: bool | None = None,
    on_error: Literal["log", "raise"] | None = None,
    live_after: float | None = None,
    batch_size: int | None = None,
    batch_delay: float | None = None,
    buffer_bytes: int | None = None,
    request_timeout: float | None = None,
    exit_timeout: float | None = None,
    flush_on_sigterm: bool | None = None,
    log_level: str | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    spool: bool | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    exporter: Exporter | None = None,
    schema: Schema | None = None,
) -> Tracer:
    """Set up the default tracer, and return it. Optional: without it, the environment and defaults hold.

    What is not given comes from the environment variable of that knob, else from its default; the README's table
    lists them all. `PREFACTOR_DISABLED` beats everything. An earlier default tracer goes on with the runs it has.

    Args:
        api_url: Root address of the API.
        api_token: Account or deployment token; without one, runs go to the local platform.
        allow_http: Let the token go unencrypted to another machine.
        agent_id: The agent's id; needed with an account token.
        agent_name: What people call the agent.
        agent_version: External identifier of the agent version (`PREFACTOR_AGENT_IDENTIFIER`).
        environment_id: The environment's id; needed with an account token.
        sample_rate: Share of runs that are recorded, 0 to 1, each whole or not at all.
        capture_inputs: Record payloads.
        capture_outputs: Record results.
        max_input_length: Characters kept of each string in a payload.
        max_output_length: Characters kept of each string in a result.
        redact: False: record secrets as they are. Or a callable, given each value as JSON data after the built-in
            search, and its `Place`; it returns what is recorded instead. If it raises, takes longer than 0.1 s or
            returns no JSON, the value is removed. It runs on a thread of its own.
        redact_keys: Names of fields that are secret, besides the built-in ones, in any way of writing; "-name" takes
            one out, "-*" all of them. Runs have two such fields: `description` and `external_identifier`.
        implicit_instances: Open a run around a span outside of any.
        disabled: Record and send nothing.
        on_error: What a call that cannot work does: "log" (the default) counts and logs it, "raise" raises UsageError.
        live_after: Seconds after which a running span is shown before it ends.
        batch_size: Records in a request.
        batch_delay: Seconds a record waits for company.
        buffer_bytes: Memory for records that wait, in bytes.
        request_timeout: Seconds for one request, all included.
        exit_timeout: Seconds the end of the program may wait for delivery.
        flush_on_sigterm: Let SIGTERM deliver first, within `exit_timeout`, where it would end the program at once:
            for containers whose disk goes with them. A handler of the program's own is left alone.
        log_level: Level of the logger `prefactor_trace`.
        state_dir: Folder for what outlives the process.
        spool: Have records on disk as soon as they are recorded. False: they wait in memory alone, as they do with
            `exporter`.
        spool_dir: Folder of the spool.
        exporter: Where batches go, instead of over HTTP.
        schema: Span types to declare beside those of decorated functions, kinds of rating, and the schema version's
            name.

    Raises:
        ConfigurationError: A value cannot work. The message names it, and never shows a token.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("exporter", "schema")}
    tracer = Tracer(exporter=exporter, schema=schema, **arguments)
    set_default(tracer)
    return tracer


def set_default(tracer: Tracer | None) -> Tracer | None:
    """Make *tracer* the default one (None: none, so that the next use configures one), and return the one before."""
    global _default
    with _lock:
        before, _default = _default, tracer
    return before


def _get_default() -> Tracer:
    tracer = _default
    if tracer is None:
        with _configuring:  # two threads that begin at once must share one tracer
            tracer = _default or _configure_from_environment()
    return tracer


def _configure_from_environment() -> Tracer:
    try:
        return configure()
    except Exception as error:  # nobody called configure, so nobody can catch this
        _guard.logger.error("%s; nothing is recorded", error)
    tracer = Tracer(disabled=True, environ={})
    set_default(tracer)
    return tracer


def default_schema() -> Schema:
    """Return what a run of the default tracer declares that starts now."""
    return _get_default().schema()


def _open_implicit() -> Any:
    tracer = _get_default()
    if tracer.settings.implicit_instances:
        return open_instance(tracer, {})
    return _context.no_implicit_instance()


_context.open_implicit = _open_implicit
_context.default_tracer = _get_default


@overload
def instance(function: F, /) -> F: ...
@overload
def instance(
    *,
    agent_id: str | None = None,
    agent_name: str | None = None,
    agent_version: str | None = None,
    description: str | None = None,
    environment_id: str | None = None,
    purpose: Purpose | None = None,
    external_identifier: str | None = None,
    id: str | None = None,
) -> InstanceBlock: ...
def instance(
    function: Any = None,
    /,
    *,
    agent_id: str | None = None,
    agent_name: str | None = None,
    agent_version: str | None = None,
    description: str | None = None,
    environment_id: str | None = None,
    purpose: Purpose | None = None,
    external_identifier: str | None = None,
    id: str | None = None,
) -> Any:
    """Record a run of an agent: as a `with` or `async with` block, which give the `Instance`, or as a decorator.

    Registers and starts the run; how the block is left decides how it finishes. A decorated function is a run at
    each call, decorated twice it is still one. A run inside a run is a sub-agent with a record of its own. Nothing
    here waits for the network.

    Args:
        function: The function to decorate, if used as `@instance` without arguments.
        agent_id: The agent's id; default: the setting.
        agent_name: What people call the agent; default: the setting.
        agent_version: External identifier of the agent version; default: the setting.
        description: A sentence about this version of the agent.
        environment_id: The environment's id; default: the setting.
        purpose: "live", "smoke_test" or "eval"; the platform's default is live.
        external_identifier: Your own name for this run, unique for the agent.
        id: A PFID for this run, if you have made one.
    """
    options = {name: value for name, value in locals().items() if name != "function"}
    block = InstanceBlock(_get_default, options)
    return block if function is None else block(function)


def flush(timeout: float = 10.0) -> Ledger:
    """Wait until everything recorded so far is delivered or dropped, at most *timeout* seconds; see `Tracer.flush`."""
    return _get_default().flush(timeout)


def shutdown(timeout: float | None = None) -> Ledger:
    """Deliver what can be delivered in time and stop; see `Tracer.shutdown`."""
    return _get_default().shutdown(timeout)


async def aflush(timeout: float = 10.0) -> Ledger:
    """Like `flush`, without holding up the event loop."""
    return await _get_default().aflush(timeout)


async def ashutdown(timeout: float | None = None) -> Ledger:
    """Like `shutdown`, without holding up the event loop."""
    return await _get_default().ashutdown(timeout)


def stats() -> Ledger:
    """Return the ledger: created, delivered, dropped by reason, pending, notes. It always adds up."""
    return _get_default().stats()

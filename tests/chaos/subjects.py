"""Programs that record, and say so: a line on stdout for each obligation, after the recording call has returned.

    python subjects.py SHAPE key=value ...

Lines: `R run`: it is registered; `F run`: it is finished; `S span`: it has begun; `E span`: it has ended; `ready`;
`done`; `ledger {...}`. Names are unique in all processes; a span's content follows from its name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def content(name: str, size: int) -> dict[str, Any]:
    """Return what goes into the span called *name*; about *size* characters."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    pad = (digest * (size // len(digest) + 1))[:size]
    return {"name": name, "size": size, "digest": digest, "pad": pad}


def result_of(name: str) -> dict[str, Any]:
    """Return what comes out of the span called *name*."""
    return {"name": name, "digest": hashlib.sha256(b"result of " + name.encode()).hexdigest()}


def say(line: str) -> None:
    """Write *line* at once, in one piece."""
    os.write(1, line.encode() + b"\n")


class Options:
    """What the command line says, `key=value`."""

    def __init__(self, words: list[str]) -> None:
        self._words = dict(word.split("=", 1) for word in words)

    def number(self, key: str, default: float) -> Any:
        return type(default)(self._words.get(key, default))

    def text(self, key: str, default: str = "") -> str:
        return self._words.get(key, default)


_main_pid = os.getpid()
_names = itertools.count()  # no lock: a fork could leave it held


def new_name(kind: str) -> str:
    """Return a name that no other process and no other call gets."""
    return f"{kind}-{os.getpid()}-{time.time_ns():x}-{next(_names)}"


def run_block() -> Any:
    """Return a run with a name, and the name."""
    import prefactor_trace as pt

    name = new_name("run")
    return pt.instance(external_identifier=name), name


def record(size: int = 20, pause: float = 0.0, parent: Any = None) -> None:
    """Record one span."""
    import prefactor_trace as pt

    name = new_name("span")
    with pt.span("step", payload=content(name, size), parent=parent) as span:
        say(f"S {name}")
        if pause:
            time.sleep(pause)
        span.set_result(result_of(name))
    say(f"E {name}")


# -- shapes ------------------------------------------------------------------------------------------------


def threads(options: Options) -> None:
    """Threads that record as fast as `pause` lets them, each in runs of `length` spans."""
    size, pause, count = (
        options.number("size", 20),
        options.number("pause", 0.0005),
        options.number("count", 800),
    )
    length = options.number("length", 40)

    def work() -> None:
        for _ in range(max(1, count // length)):
            block, name = run_block()
            with block:
                say(f"R {name}")
                for _ in range(min(count, length)):
                    record(size)
                    time.sleep(pause)
            say(f"F {name}")

    say("ready")
    workers = [threading.Thread(target=work) for _ in range(options.number("threads", 2))]
    for each in workers:
        each.start()
    for each in workers:
        each.join()


def tasks(options: Options) -> None:
    """Asyncio tasks, all in one run, each with a span that waits, and one below it."""
    import asyncio

    import prefactor_trace as pt

    size = options.number("size", 20)

    async def one() -> None:
        name = new_name("span")
        async with pt.span("outer", payload=content(name, size)) as span:
            say(f"S {name}")
            await asyncio.sleep(0.005)
            record(size)
            span.set_result(result_of(name))
        say(f"E {name}")

    async def main() -> None:
        for _ in range(options.number("count", 60)):
            block, name = run_block()
            async with block:
                say(f"R {name}")
                await asyncio.gather(*(one() for _ in range(10)))
            say(f"F {name}")

    say("ready")
    asyncio.run(main())


def nested(options: Options) -> None:
    """Spans in spans in spans, ten deep."""
    import prefactor_trace as pt

    size = options.number("size", 20)

    def descend(depth: int) -> None:
        name = new_name("span")
        with pt.span("level", payload=content(name, size)) as span:
            say(f"S {name}")
            time.sleep(0.001)
            if depth:
                descend(depth - 1)
            record(size)
            span.set_result(result_of(name))
        say(f"E {name}")

    say("ready")
    for _ in range(options.number("count", 40)):
        block, name = run_block()
        with block:
            say(f"R {name}")
            descend(10)
        say(f"F {name}")


def long_open(options: Options) -> None:
    """A few spans that go on for ever, and short ones below the innermost."""
    import contextlib

    import prefactor_trace as pt

    say("ready")
    block, name = run_block()
    with block, contextlib.ExitStack() as stack:
        say(f"R {name}")
        for _ in range(3):
            own = new_name("span")
            stack.enter_context(pt.span("long", payload=content(own, 20)))
            say(f"S {own}")
        for _ in range(options.number("count", 400)):
            record(options.number("size", 20), pause=0.001)
        time.sleep(30)


def paced(options: Options) -> None:
    """`rate` spans a second for `seconds`, or until there is a file `until`, in runs of `length`.

    Lines `rss KIB` say how much memory it takes. At the end it flushes for `patience` seconds at most.
    """
    import prefactor_trace as pt

    rate, seconds, length = (
        options.number("rate", 1000),
        options.number("seconds", 5.0),
        options.number("length", 500),
    )
    size, until = options.number("size", 2000), options.text("until")
    say("ready")
    began = time.monotonic()
    told, done = began, 0
    block, name = run_block()
    block.__enter__()
    say(f"R {name}")
    while (now := time.monotonic()) - began < seconds:
        if now - told >= 0.5:
            told = now
            say(f"rss {resident()}")
            if until and Path(until).exists():
                break
        if done >= (now - began) * rate:
            time.sleep(0.002)
            continue
        record(size)
        done += 1
        if done % length == 0:
            block.__exit__(None, None, None)
            say(f"F {name}")
            block, name = run_block()
            block.__enter__()
            say(f"R {name}")
    block.__exit__(None, None, None)
    say(f"F {name}")
    say(f"rss {resident()}")
    pt.flush(options.number("patience", 0.0))


def resident() -> int:
    """Return how much of this process is in memory, in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _leave(way: str) -> None:
    """End this forked child."""
    if way == "exit":
        sys.exit(0)
    if way == "kill":
        os.kill(os.getpid(), 9)
    os._exit(0)


def fork(options: Options) -> None:
    """`children` are forked in a run, one after the other, and record in that run and in one of their own."""
    import prefactor_trace as pt

    count, way = options.number("count", 5), options.text("way", "_exit")
    noisy = options.number("threads", 0)
    stop = threading.Event()
    block, name = run_block()
    children = []
    say("ready")
    with block as run:
        say(f"R {name}")
        record()
        if options.number("settle", 0):
            pt.flush(5)

        def noise() -> None:
            while not stop.is_set():
                record(parent=run)
                time.sleep(0.001)

        workers = [threading.Thread(target=noise) for _ in range(noisy)]
        for each in workers:
            each.start()
        for _ in range(options.number("children", 4)):
            with pt.span("forking", payload=content(own := new_name("span"), 20)) as span:
                say(f"S {own}")
                pid = os.fork()
                if pid == 0:
                    try:
                        child(count, run, is_in_run=True)
                    except BaseException as error:
                        say(f"error {error!r}")
                    _leave(way)
                span.set_result(result_of(own))
            say(f"E {own}")
            children.append(pid)
        stop.set()
        for each in workers:
            each.join()
        wait_for(children)
    say(f"F {name}")


def parent(options: Options) -> None:
    """A child records in the run and is gone, and the parent stays for `seconds`."""
    block, name = run_block()
    with block as run:
        say(f"R {name}")
        record()
        pid = os.fork()
        if pid == 0:
            for _ in range(options.number("count", 20)):
                record(parent=run)
            os._exit(0)
        wait_for([pid])
        say("left")
        time.sleep(options.number("seconds", 60.0))


def generations(options: Options) -> None:
    """A child of a child ... `depth` deep, each recording in the one run."""
    block, name = run_block()
    say("ready")
    with block as run:
        say(f"R {name}")
        for _ in range(options.number("depth", 3)):
            pid = os.fork()
            if pid:
                wait_for([pid])
                break
            for _ in range(options.number("count", 5)):
                record(parent=run)
        else:
            os._exit(0)
        if os.getpid() != _main_pid:
            os._exit(0)
    say(f"F {name}")


def child(count: int, run: Any = None, *, is_in_run: bool = False) -> None:
    """Record in the run around, and in a run of one's own."""
    if is_in_run:
        for _ in range(count):
            record(parent=run)
    block, name = run_block()
    with block:
        say(f"R {name}")
        for _ in range(count):
            record()
    say(f"F {name}")


def wait_for(pids: list[int], seconds: float = 15.0) -> None:
    """Wait until all children are gone; what hangs is named, and ended."""
    deadline = time.monotonic() + seconds
    left = set(pids)
    while left and time.monotonic() < deadline:
        left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0] == pid}
        time.sleep(0.01)
    for pid in left:
        say(f"hung {pid}")
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def processes(options: Options) -> None:
    """Children of multiprocessing, by `method`, that record in runs of their own; with fork, in ours as well."""
    import multiprocessing

    method, count = options.text("method", "fork"), options.number("count", 5)
    context: Any = multiprocessing.get_context(method)
    block, name = run_block()
    say("ready")
    with block as run:
        say(f"R {name}")
        record()
        keywords = {"run": run, "is_in_run": True} if method == "fork" else {}
        workers = [
            context.Process(target=child, args=(count,), kwargs=keywords)
            for _ in range(options.number("children", 3))
        ]
        for each in workers:
            each.start()
        for each in workers:
            each.join(20)
            if each.is_alive():
                say(f"hung {each.pid}")
                each.kill()
                each.join()
    say(f"F {name}")


def pool(options: Options) -> None:
    """A pool of processes that are replaced after a few tasks, and terminated at the end; each task is a run."""
    import multiprocessing

    block, name = run_block()
    say("ready")
    with block:  # so that the parent has a sender, a connection and open files to inherit
        say(f"R {name}")
        record()
    say(f"F {name}")
    with multiprocessing.get_context("fork").Pool(3, maxtasksperchild=4) as workers:
        workers.map(child, [options.number("count", 3)] * options.number("tasks", 20), chunksize=1)


def web(options: Options) -> None:
    """Become gunicorn: the master has recorded before its workers are forked; see `make_app`."""
    arguments = [
        "--preload",
        "--workers=3",
        "--max-requests=10",
        f"--worker-class={options.text('kind', 'sync')}",
    ]
    place = f"--bind=unix:{options.text('socket')}"
    os.execv(
        sys.executable, [sys.executable, "-m", "gunicorn", *arguments, place, "chaos.subjects:make_app()"]
    )


def make_app() -> Any:
    """Record a run, and return a WSGI application that records one in each request and answers with its pid."""
    child(3)

    def app(_environ: Any, start_response: Any) -> list[bytes]:
        child(3)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]

    say("ready")
    return app


def adopt(options: Options) -> None:
    """Record nothing, and send what others have left until the spool holds nothing, for `seconds` at most."""
    import json

    import prefactor_trace as pt

    tracer = pt.configure()
    say("ready")
    deadline = time.monotonic() + options.number("seconds", 20.0)
    while time.monotonic() < deadline:
        tracer.take_over(1.0)
        if not list(Path(tracer.settings.spool_dir).glob("*.seg")):
            break
        time.sleep(0.02)
    say(f"ledger {json.dumps(tracer.stats()._asdict())}")


SHAPES = {
    each.__name__: each
    for each in (
        threads,
        tasks,
        nested,
        long_open,
        paced,
        fork,
        parent,
        generations,
        processes,
        pool,
        web,
        adopt,
    )
}


def main() -> None:
    shape, *words = sys.argv[1:]
    SHAPES[shape](Options(words))
    say("done")


if __name__ == "__main__":
    main()

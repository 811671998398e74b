"""A TCP proxy that breaks connections: each by a *fault*, which may follow from a seed, so that failures replay.

It runs an asyncio loop in a thread of its own. `Proxy.fault` holds for every connection that is accepted from then on,
`Proxy.play` draws one for each. Changing either ends the connections there are, so that it takes hold at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
from typing import NamedTuple

KINDS = ("none", "delay", "cut", "reset", "black hole", "half-open", "drip", "garbage", "corrupt")


class Fault(NamedTuple):
    """What is wrong with a connection.

    Attributes:
        kind: One of KINDS. `delay` waits before each piece; `cut` and `reset` end the connection; `black hole` reads
            and passes nothing on; `half-open` passes requests on and no answers; `drip` passes answers on byte by
            byte; `garbage` answers with what is no HTTP; `corrupt` flips a bit in an answer, so that it is no ASCII.
        after: Bytes that pass unharmed before, both ways together.
        seconds: Of each pause.
    """

    kind: str = "none"
    after: int = 0
    seconds: float = 0.002


NONE = Fault()


def drawn(seed: object, number: int) -> Fault:
    """Return the fault of connection *number*; the same seed gives the same faults."""
    chance = random.Random(f"{seed}/{number}")
    kind = chance.choice(("none", *KINDS))
    after = chance.choice((0, 200, 2_000, 20_000, 200_000))
    if kind == "none":  # a connection that is kept would see no fault any more
        kind, after = "cut", after + 100_000
    return Fault(kind, chance.randrange(after + 1), chance.uniform(0.0005, 0.01))


class Proxy:
    """Listens on a free port of the loopback device and passes on to *port*. A context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._seed: object = None
        self._fault = NONE
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self.connections = 0
        self.faults: list[Fault] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, fault: Fault) -> None:
        """Let all connections from now on have *fault*."""
        self._seed, self._fault = None, fault
        self._do(self._hang_up())

    def play(self, seed: object) -> None:
        """Draw a fault for each connection from now on."""
        self._seed, self.connections = seed, 0
        self._do(self._hang_up())

    def refuse(self) -> None:
        """Listen no more: connecting is refused."""
        self._do(self._close())

    def admit(self) -> None:
        """Listen again, and pass everything on."""
        self._seed, self._fault = None, NONE
        self._do(self._open())

    def _do(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, reuse_address=True, limit=65_536
            )

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        fault = self._fault if self._seed is None else drawn(self._seed, self.connections)
        self.faults.append(fault)
        try:
            await _Link(fault, reader, writer).run(self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()


class _Link:
    """One connection, and the one behind it."""

    def __init__(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._fault = fault
        self._reader = reader
        self._writer = writer
        self._left = fault.after

    async def run(self, target: int) -> None:
        if self._fault.kind in ("black hole", "garbage") and not self._left:
            await self._be_useless()
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", target, limit=65_536)
        try:
            ways = (
                self._pass(self._reader, writer, is_answer=False),
                self._pass(reader, self._writer, is_answer=True),
            )
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            writer.transport.abort()

    async def _be_useless(self) -> None:
        if self._fault.kind == "garbage":
            self._writer.write(os.urandom(1_000))
            await self._writer.drain()
        await asyncio.Event().wait()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(16_384):
                unharmed, self._left = piece[: self._left], max(0, self._left - len(piece))
                if unharmed:
                    sink.write(unharmed)
                    await sink.drain()
                rest = piece[len(unharmed) :]
                if rest and not await self._harm(rest, sink, is_answer=is_answer):
                    return

    async def _harm(self, piece: bytes, sink: asyncio.StreamWriter, *, is_answer: bool) -> bool:
        """Pass *piece* on as the fault wants it. Return whether the connection goes on."""
        kind, _, seconds = self._fault
        if kind in ("cut", "reset"):
            if kind == "reset":
                linger = struct.pack("ii", 1, 0)
                self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if kind == "black hole" or (kind == "garbage" and not is_answer):
            await self._be_useless()
        if kind == "half-open" and is_answer:
            return True
        if kind == "delay":
            await asyncio.sleep(seconds)
        if kind == "corrupt" and is_answer:
            place = len(piece) // 2
            piece = piece[:place] + bytes([piece[place] ^ 0x80]) + piece[place + 1 :]
        if kind == "drip" and is_answer:
            for place in range(len(piece)):
                sink.write(piece[place : place + 1])
                await sink.drain()
                await asyncio.sleep(seconds)
            return True
        sink.write(piece)
        await sink.drain()
        return True

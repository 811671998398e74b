"""An MCP server, written as the SDK's tutorial does, for either version of it. As a program it speaks over stdio."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib

try:
    from mcp.server import MCPServer as Server
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server
    from mcp.server.fastmcp import Image
    from mcp.server.fastmcp.exceptions import ToolError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the first version's settings displease a later pydantic-settings
    server = Server("weather station")


def picture():
    """Return a PNG of one pixel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


@server.tool()
def weather(city: str, days: int = 1) -> str:
    """How the weather will be."""
    return f"It is sunny in {city} for {days} days."


@server.tool()
def broken(city: str) -> str:
    """A tool that fails."""
    raise ToolError(f"no station in {city}")


@server.tool()
def radar() -> Image:
    """A picture."""
    return Image(data=picture(), format="png")


@server.tool()
async def slow() -> str:
    """A tool that does not answer in time."""
    import anyio

    await anyio.sleep(30)
    return "late"


@server.resource("weather://stations")
def stations() -> str:
    """All stations."""
    return "Paris, Rome"


@server.prompt()
def forecast(city: str) -> str:
    """A question."""
    return f"How will the weather be in {city}?"


class OverHttp:
    """The server over streamable HTTP on loopback, on a thread."""

    def __init__(self):
        import uvicorn

        config = uvicorn.Config(
            server.streamable_http_app(), host="127.0.0.1", port=0, log_level="error", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/mcp"

    def close(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


if __name__ == "__main__":
    server.run()

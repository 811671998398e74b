"""Two processes, one run: the agent asks a service over HTTP, and the service's steps stand below the agent's.

The agent writes the run into the headers of its request (`pt.inject`); the service, which is called with
`two_services.py serve`, reads it from there (`pt.extract`). Only do that in a service that strangers cannot reach:
whoever may call it can add steps to the run that the headers name.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import httpx

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import Iterator

PRICES = {"tea": 3, "coffee": 4}


# -- the service -----------------------------------------------------------------------------------------------


@pt.span
def look_up(item: str) -> int:
    """Return the price of *item*."""
    return PRICES[item]


class Prices(BaseHTTPRequestHandler):
    """Answers GET /tea with the price of tea."""

    def do_GET(self) -> None:
        """Answer."""
        with pt.extract(self.headers), pt.span("service:price", payload={"path": self.path}) as step:
            answer = {"price": look_up(self.path.strip("/"))}
            step.set_result(answer)
        pt.flush()  # so that the steps have arrived before the agent can finish the run
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve() -> None:
    """Answer requests until standard input is closed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Prices) as server:
        Thread(target=server.serve_forever).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        server.shutdown()
    pt.shutdown()


# -- the agent -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service() -> Iterator[str]:
    """Have the service running for the block. Yields its address."""
    command = [sys.executable, __file__, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate()


@pt.span
def ask(client: httpx.Client, item: str) -> int:
    """Ask the service for the price of *item*."""
    answer = client.get(f"/{item}", headers=pt.inject())
    price: int = answer.raise_for_status().json()["price"]
    return price


def main() -> None:
    """Run the agent once."""
    with service() as url, httpx.Client(base_url=url, trust_env=False) as client:
        with pt.instance(agent_name="shopper", agent_version="1.0.0") as run:
            print("total:", sum(ask(client, item) for item in ("tea", "coffee")))
        ledger = pt.shutdown()
    print("run:", run.id)
    print(ledger)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()

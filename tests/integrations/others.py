"""`llmock`, a model server written by others, in a process of its own: it fails on demand.

What it is told to do it does to the next requests. Its texts depend on the request alone; its ids and times do not.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request

SERVER = """
import sys
from llmock.testing import LLMockServer
with LLMockServer() as server:
    print(*(server.base_url(api) for api in ("openai", "anthropic", "gemini")), flush=True)
    sys.stdin.read()
"""
# What can go wrong, by a name; each goes wrong once.
MOCK_FAULTS = {
    None: [],
    "fail": [{"type": "fail", "status": 429}],
    **{
        kind: [{"type": "stream_fault", "kind": kind, "after_chunks": 3}]
        for kind in ("disconnect", "truncate", "malformed")
    },
}


class Llmock:
    """The server: `openai`, `anthropic` and `gemini` are where to find it."""

    def __init__(self, process):
        self.openai, self.anthropic, self.gemini = process.stdout.readline().split()
        self._root = self.openai.removesuffix("/v1") + "/_llmock"

    def does(self, *behaviors):
        """Forget all that was, and do this to the next requests."""
        self._post("reset", {})
        if behaviors:
            self._post("scenario", {"behaviors": behaviors})

    def requests(self):
        with urllib.request.urlopen(f"{self._root}/requests", timeout=30) as answer:
            return json.load(answer)["requests"]

    def _post(self, where, body):
        asked = urllib.request.Request(f"{self._root}/{where}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(asked, timeout=30):
            pass


@contextlib.contextmanager
def serving():
    """Run the server."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Llmock(process)
        process.stdin.close()

"""An agent with a tool, by OpenAI's SDK. The one line that is for recording its model's calls is `pt.instrument()`.

With `OPENAI_API_KEY` (and `OPENAI_BASE_URL`, for any server of the same API) it asks a real model. Without, it asks
one that is played by this file, so that it runs anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from openai import OpenAI

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pt.span("tool:weather")
def weather(city: str) -> str:
    """Tell the weather in *city*."""
    return f"18 degrees and sunny in {city}"


def answer(client: OpenAI, question: str) -> str:
    """Let the model answer, and use the tool as often as it wants to."""
    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        reply = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0].message
        if not reply.tool_calls:
            return reply.content or ""
        messages.append(reply)
        for call in reply.tool_calls:
            if call.type == "function":
                said = weather(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": said})


class PlayedModel(BaseHTTPRequestHandler):
    """A model that asks for the weather in Paris, and then repeats what it was told."""

    def do_POST(self) -> None:
        """Answer a chat completion."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        told = asked["messages"][-1]
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if told["role"] == "tool":
            message["content"] = f"It is {told['content']}."
        else:
            function = {"name": "weather", "arguments": '{"city": "Paris"}'}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "stop" if message["content"] else "tool_calls",
        }
        usage = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
        body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        data = json.dumps({**body, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def model() -> Iterator[OpenAI]:
    """Give a client of a real model, or of the played one."""
    if "OPENAI_API_KEY" in os.environ:
        yield OpenAI()
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), PlayedModel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with OpenAI(base_url=f"http://127.0.0.1:{server.server_port}", api_key="none") as client:
            yield client
        server.shutdown()


def main() -> None:
    """Run the agent once."""
    pt.instrument()
    with model() as client, pt.instance(agent_name="weather-agent", agent_version="1.0.0") as run:
        print("answer:", answer(client, "What is the weather like in Paris?"))

    ledger = pt.shutdown()
    print("run:", run.id)
    print(ledger)


if __name__ == "__main__":
    main()

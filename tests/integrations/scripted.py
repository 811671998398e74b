"""A provider that says what it is told to, turn by turn: what an agent needs that is to come to an end.

Beside it a `Bench`, on which programs with agents are tried.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

from .provider import Provider, _Handler, chat, chat_events, response, response_events

ANSWERS = {"/chat/completions": (chat, chat_events), "/responses": (response, response_events)}


class Scripted(Provider):
    """The provider. *turns*: for each request a text, a tool's name and arguments, or a status to refuse with."""

    def __init__(self):
        super().__init__()
        self.turns = []
        provider = self

        class Handler(_ScriptedHandler):
            pass

        Handler.provider = provider
        self._server.RequestHandlerClass = Handler

    def forget(self):
        super().forget()
        self.turns = []


_MADE_UP = re.compile(r"pyd_ai_\w+")


class Bench:
    """What the programs of agents share: a provider, and clients that are closed in the end.

    Each public coroutine function of a class is a program; but for *parts*, which they are made of.
    """

    parts = ()

    def __init__(self, provider, api="chat"):
        self.provider, self.api = provider, api
        self._clients = []

    @classmethod
    def programs(cls):
        return [name for name in vars(cls) if not name.startswith("_") and name not in ("parts", *cls.parts)]

    def run(self, name):
        """Run the program of that name."""
        return self.finish(getattr(self, name)())

    def finish(self, coroutine):
        """Run *coroutine*, and close what it has used."""
        return asyncio.run(self._closing(coroutine))

    def client(self):
        """Return a client of OpenAI's SDK that asks the provider."""
        import openai

        found = openai.AsyncOpenAI(base_url=f"{self.provider.url}/v1", api_key="sk-secret", max_retries=0)
        self._clients.append(found)
        return found

    async def _closing(self, coroutine):
        try:
            return await coroutine
        finally:
            for client in self._clients:
                await client.close()
            self._clients = []

    def outcome(self, name):
        """Run a program; return what it gives or raises, and what the provider was asked."""
        self.provider.requests.clear()
        try:
            result = plain(self.run(name))
        except Exception as error:
            result = type(error), str(error), type(error.__cause__)
        return result, [_MADE_UP.sub("ID", body.decode()) for _, _, body in self.provider.requests]


def plain(value):
    """Return *value* without the ids that an SDK makes up."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if not dataclasses.is_dataclass(value) else type(value)


class _ScriptedHandler(_Handler):
    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.provider.requests.append((self.path, dict(self.headers), raw))
        body = json.loads(raw)
        turn = self.provider.turns.pop(0)
        if isinstance(turn, int):
            self.document({"error": {"message": "no", "type": "server_error", "code": "broken"}}, turn)
            return
        fault = None
        if isinstance(turn, dict):  # {fault: turn}
            ((fault, turn),) = turn.items()
        name, arguments = turn if isinstance(turn, tuple) else ("", "")
        words = [] if name else [word + " " for word in turn.split(" ")[:-1]] + [turn.split(" ")[-1]]
        asked = {key: body[key] for key in ("model", "stream_options") if key in body}
        if name:
            asked["tools"] = [name]
        whole, events = ANSWERS[next(path for path in ANSWERS if self.path.endswith(path))]

        def named(data):
            return data.replace('"name": "weather"', f'"name": {json.dumps(name)}')

        if body.get("stream"):
            self.stream([named(event) for event in events(asked, words, arguments)], fault)
        else:
            self.document(json.loads(named(json.dumps(whole(asked, words, arguments)))))

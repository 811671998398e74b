"""A provider that says what it is told to, turn by turn: what an agent needs that is to come to an end."""

from __future__ import annotations

import json

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

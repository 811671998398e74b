"""A model provider on loopback: real HTTP, in the wire formats of OpenAI, Anthropic and Google, with faults on demand.

What it answers depends on the request alone, so two programs that ask the same get the same, byte by byte. Faults are
handed to it one by one, each for one request:

    429, 500        refuse with that status; the SDK may try again at once
    "disconnect"    close the connection in the middle of the stream
    "truncate"      end the stream properly, but before the answer has ended
    "corrupt"       an answer that is no JSON, or an event in the middle of the stream
    "error"         the provider's own error event, in the middle of the stream
    "hold"          wait for `release` after the first event
    "gzip"          pack the body
    "bad arguments" a tool call whose arguments are no JSON
"""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import gemini

WORDS = ["It", " is", " sunny", " in", " Paris", "."]
CACHED = {"cached_tokens": 4}
CHAT_USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": CACHED,
    "completion_tokens_details": {"reasoning_tokens": 2},
}
RESPONSE_USAGE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "total_tokens": 18,
    "input_tokens_details": CACHED,
    "output_tokens_details": {"reasoning_tokens": 2},
}
MESSAGE_USAGE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 2,
}
FACTS = {"id": "cmpl-1", "created": 1_700_000_000}
TOOL = {"name": "weather", "arguments": '{"city":"Paris"}'}


class Provider:
    """The server: `url`, what it was asked (`requests`), and the faults it is to commit (`faults`)."""

    def __init__(self):
        self.requests = []
        self.faults = []
        self.words = WORDS
        self.release = threading.Event()
        self.released_first = threading.Event()
        provider = self

        class Handler(_Handler):
            pass

        Handler.provider = provider
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def forget(self):
        """Be as one that has been asked nothing yet."""
        self.requests.clear()
        self.faults.clear()
        self.release.clear()
        self.released_first.clear()

    def close(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *args):
        pass

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.provider.requests.append((self.path, dict(self.headers), raw))
        body = json.loads(raw)
        fault = self.provider.faults.pop(0) if self.provider.faults else None
        if isinstance(fault, int):
            error = {"message": "slow down", "type": "rate_limit_error", "code": "rate_limited"}
            self.document({"type": "error", "error": error}, fault)
            return
        kind = next(name for name in _ANSWERS if self.path.split("?")[0].endswith(name))
        whole, events = _ANSWERS[kind]
        arguments = '{"city":' if fault == "bad arguments" else TOOL["arguments"]
        if body.get("stream") or whole is None:
            self.stream(list(events(body, self.provider.words, arguments)), fault)
        else:
            self.document(whole(body, self.provider.words, arguments), fault=fault)

    def document(self, body, status=200, fault=None):
        data = json.dumps(body).encode()
        data = data.replace(b"{", b"{]", 1) if fault == "corrupt" else data
        self.start(status, "application/json", fault)
        data = gzip.compress(data, mtime=0) if fault == "gzip" else data
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start(self, status, kind, fault):
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("x-request-id", "req-7")
        self.send_header("retry-after-ms", "1")
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")

    def stream(self, events, fault):
        self.start(200, "text/event-stream", fault)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        middle = len(events) // 2
        if fault == "gzip":
            self.chunk(gzip.compress("".join(events).encode(), mtime=0))
            events = []
        for number, whole in enumerate(events):
            event = whole
            if number == middle and fault == "disconnect":
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            if number == middle and fault == "truncate":
                break
            if number == middle and fault == "corrupt":
                event = event.replace("{", "{]", 1)
            if number == middle and fault == "error":
                error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
                event = f"event: error\ndata: {json.dumps(error)}\n\n"
                if "GenerateContent" in self.path:
                    event = gemini.ERROR
            self.chunk(event.encode())
            if number == 0 and fault == "hold":
                self.wfile.flush()
                self.provider.released_first.set()
                self.provider.release.wait(10)
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _data(payload):
    name = f"event: {payload['type']}\n" if "type" in payload else ""
    return f"{name}data: {json.dumps(payload)}\n\n"


# -- OpenAI ------------------------------------------------------------------------------------------------


def wants_tool(body):
    """A tool is called once: when it has answered, so does the model."""
    said = body.get("messages")
    return body.get("tools") and not (said and said[-1]["role"] == "tool")


def chat(body, words, arguments):
    message = {"role": "assistant", "content": "".join(words), "refusal": None}
    reason = "stop"
    if wants_tool(body):
        call = {"id": "call_1", "type": "function", "function": {**TOOL, "arguments": arguments}}
        message |= {"content": None, "tool_calls": [call]}
        reason = "tool_calls"
    if body.get("response_format", {}).get("type") == "json_schema":
        message["content"] = '{"city":"Paris"}'
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    choices = [{**choice, "index": n} for n in range(body.get("n") or 1)]
    return {
        **FACTS,
        "object": "chat.completion",
        "model": body["model"],
        "choices": choices,
        "usage": CHAT_USAGE,
    }


def chat_events(body, words, arguments):
    def chunk(delta, reason=None, **more):
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        head = {**FACTS, "object": "chat.completion.chunk", "model": body["model"]}
        return _data({**head, "choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    if wants_tool(body):
        call = {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
        yield chunk({"tool_calls": [call]})
        for at in range(0, len(arguments), 5):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments[at : at + 5]}}]})
        yield chunk({}, "tool_calls")
    else:
        if body.get("response_format", {}).get("type") == "json_schema":
            words = ['{"city"', ':"Paris"}']
        for word in words:
            yield chunk({"content": word})
        yield chunk({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield chunk({}, choices=[], usage=CHAT_USAGE)
    yield "data: [DONE]\n\n"


def completion(body, words, arguments):
    choice = {"index": 0, "text": "".join(words), "finish_reason": "stop", "logprobs": None}
    return {
        **FACTS,
        "object": "text_completion",
        "model": body["model"],
        "choices": [choice],
        "usage": CHAT_USAGE,
    }


def completion_events(body, words, arguments):
    for word in words:
        choice = {"index": 0, "text": word, "finish_reason": None, "logprobs": None}
        yield _data({**FACTS, "object": "text_completion", "model": body["model"], "choices": [choice]})
    yield "data: [DONE]\n\n"


def _output(body, words, arguments):
    if body.get("tools"):
        call = {**TOOL, "arguments": arguments, "call_id": "call_1", "id": "fc_1"}
        return {"type": "function_call", "status": "completed", **call}
    shown = '{"city":"Paris"}' if body.get("text", {}).get("format") else "".join(words)
    part = {"type": "output_text", "text": shown, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def response(body, words, arguments):
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": body["model"],
        "status": "completed",
        "output": [_output(body, words, arguments)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSE_USAGE,
    }


def response_events(body, words, arguments):
    done = response(body, words, arguments)
    number = iter(range(1000))

    def event(kind, **fields):
        return _data({"type": kind, "sequence_number": next(number), **fields})

    begun = {**done, "status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    item = done["output"][0]
    if item["type"] == "message":
        place = {"item_id": "msg_1", "output_index": 0}
        part = item["content"][0]
        yield event("response.output_item.added", output_index=0, item={**item, "content": []})
        yield event("response.content_part.added", **place, content_index=0, part={**part, "text": ""})
        pieces = [part["text"]] if body.get("text") else words
        for word in pieces:
            yield event("response.output_text.delta", **place, content_index=0, delta=word, logprobs=[])
        yield event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
        yield event("response.content_part.done", **place, content_index=0, part=part)
    else:
        place = {"item_id": "fc_1", "output_index": 0}
        yield event("response.output_item.added", output_index=0, item={**item, "arguments": ""})
        yield event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        yield event(
            "response.function_call_arguments.done", **place, arguments=item["arguments"], name="weather"
        )
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=done)


def embeddings(body, words, arguments):
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    packed = "AACAPwAAAEAAAEBA"  # 1, 2, 3
    vector = packed if body.get("encoding_format") == "base64" else [1.0, 2.0, 3.0]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(given))]
    return {
        "object": "list",
        "model": body["model"],
        "data": data,
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


# -- Anthropic ---------------------------------------------------------------------------------------------


def message(body, words, arguments):
    content = [{"type": "text", "text": "".join(words)}]
    reason = "end_turn"
    if body.get("output_config") or body.get("output_format"):
        content = [{"type": "text", "text": '{"city":"Paris"}'}]
    if body.get("thinking"):
        content.insert(0, {"type": "thinking", "thinking": "Let me see.", "signature": "sig"})
    if body.get("tools"):
        content.append({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}})
        reason = "tool_use"
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": MESSAGE_USAGE,
    }


def message_events(body, words, arguments):
    done = message(body, words, arguments)
    begun = {**done, "content": [], "stop_reason": None, "usage": {**MESSAGE_USAGE, "output_tokens": 1}}
    yield _data({"type": "message_start", "message": begun})
    yield _data({"type": "ping"})
    for index, block in enumerate(done["content"]):
        place = {"index": index}
        if block["type"] == "tool_use":
            empty, kind, pieces = {**block, "input": {}}, "input_json", [arguments[:5], arguments[5:]]
            field = "partial_json"
        else:
            kind = field = block["type"]
            empty, pieces = (
                {**block, field: ""},
                words if block["text" if kind == "text" else kind] == "".join(words) else [block[kind]],
            )
        yield _data({"type": "content_block_start", **place, "content_block": empty})
        for piece in pieces:
            yield _data(
                {"type": "content_block_delta", **place, "delta": {"type": f"{kind}_delta", field: piece}}
            )
        yield _data({"type": "content_block_stop", **place})
    ending = {"stop_reason": done["stop_reason"], "stop_sequence": None}
    yield _data({"type": "message_delta", "delta": ending, "usage": {"output_tokens": 7}})
    yield _data({"type": "message_stop"})


_ANSWERS = {
    "/chat/completions": (chat, chat_events),
    "/completions": (completion, completion_events),
    "/responses": (response, response_events),
    "/embeddings": (embeddings, None),
    "/messages": (message, message_events),
    "/count_tokens": (lambda *_: {"input_tokens": 11}, None),
    **gemini.ANSWERS,
}

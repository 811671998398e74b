"""The Model Context Protocol's SDK: what a client asks of a server.

Recorded are calls of tools, and the listing of them, reading of resources and getting of prompts, over any transport.
What a server does is not recorded here. The spans of OpenTelemetry that the SDK makes itself are left alone, and so is
the trace context that it puts into requests.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prefactor_trace._schema import SpanType
from prefactor_trace.integrations._span_types import ANY, LIST, OUTSIDE, TEXT
from prefactor_trace.integrations._tap import Asked, Reply, Tap
from prefactor_trace.integrations._values import (
    as_dict,
    of_base64,
    present,
    some_dict,
    some_list,
    text,
    without_media,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefactor_trace.integrations._tap import Switch

REQUIRES = "mcp>=1.12,<3"

TOOL = SpanType(
    "mcp:tool",
    title="MCP tool",
    description="A tool of an MCP server.",
    template="{{ inputs.server }}: {{ inputs.tool }} {{ text | truncate: 160 }}{{ message | truncate: 160 }}",
    params_schema={
        "type": "object",
        "properties": {"server": TEXT, "tool": TEXT, "arguments": ANY},
    },
    result_schema={
        "type": "object",
        "properties": {"text": TEXT, "content": LIST, "structured_content": {}},
    },
    data_risk=OUTSIDE,
)
TOOLS = SpanType(
    "mcp:list_tools",
    title="MCP tools",
    description="Which tools an MCP server has.",
    template="{{ inputs.server }}: {{ tools | join: ', ' | truncate: 160 }}{{ message | truncate: 160 }}",
    params_schema={"type": "object", "properties": {"server": TEXT}},
    result_schema={"type": "object", "properties": {"tools": {"type": "array", "items": TEXT}}},
    data_risk=OUTSIDE,
)
RESOURCE = SpanType(
    "mcp:resource",
    title="MCP resource",
    description="A resource of an MCP server.",
    template="{{ inputs.server }}: {{ inputs.uri }} {{ message | truncate: 160 }}",
    params_schema={"type": "object", "properties": {"server": TEXT, "uri": TEXT}},
    result_schema={"type": "object", "properties": {"content": LIST}},
    data_risk=OUTSIDE,
)
PROMPT = SpanType(
    "mcp:prompt",
    title="MCP prompt",
    description="A prompt of an MCP server.",
    template="{{ inputs.server }}: {{ inputs.prompt }} {{ message | truncate: 160 }}",
    params_schema={
        "type": "object",
        "properties": {"server": TEXT, "prompt": TEXT, "arguments": ANY},
    },
    result_schema={"type": "object", "properties": {"messages": LIST}},
    data_risk=OUTSIDE,
)
TYPES = (TOOL, TOOLS, RESOURCE, PROMPT)


class _Answer:
    """Reads an answer of a server, which comes whole. *shown*: what is told of it."""

    has_token = False

    def __init__(self, shown: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self._shown = shown
        self._value: Mapping[str, Any] = {}
        self._kind = ""

    def whole(self, value: Any) -> None:
        self._value, self._kind = vars(value), type(value).__name__

    def add(self, event: Any) -> None:
        """No answer comes in pieces."""

    def reply(self) -> Reply:
        if self._kind == "InputRequiredResult":  # the client answers a question first, and asks again
            return Reply(result={"input_required": True})
        fields = self._value
        shown = self._shown(fields)
        has_failed = fields.get("is_error", fields.get("isError")) is True
        return Reply(
            result=shown,
            error=(text(shown.get("text")) or "the tool says that it has failed") if has_failed else None,
        )


def _tool_result(fields: Mapping[str, Any]) -> dict[str, Any]:
    blocks = list(map(_block, some_list(fields.get("content"))))
    texts = [text(block["text"]) for block in blocks if block.get("type") == "text"]
    others = [block for block in blocks if block.get("type") != "text"]
    structured = fields.get("structured_content", fields.get("structuredContent"))
    return {
        "text": "\n".join(texts),
        **present(content=others, structured_content=without_media(structured)),
    }


def _tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": [vars(tool).get("name") for tool in some_list(fields.get("tools"))]}


def _contents(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": [_contained(vars(each)) for each in some_list(fields.get("contents"))]}


def _messages(fields: Mapping[str, Any]) -> dict[str, Any]:
    messages = [vars(each) for each in some_list(fields.get("messages"))]
    return {"messages": [{"role": each.get("role"), "content": _block(each["content"])} for each in messages]}


def _block(block: Any) -> dict[str, Any]:
    """Return one piece of content: images, audio and files as kind, size and digest."""
    fields = vars(block)
    kind = text(fields.get("type"))
    if kind == "text":
        return {"type": kind, "text": fields.get("text")}
    if kind in ("image", "audio"):
        return {"type": kind, "data": of_base64(text(fields.get("data")), _media_type(fields) or kind)}
    if kind == "resource":
        return {"type": kind, "resource": _contained(vars(fields["resource"]))}
    return present(**as_dict(block))


def _contained(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is in a resource: a text, or bytes."""
    found = present(uri=_uri(fields.get("uri")), mime_type=_media_type(fields), text=fields.get("text"))
    if type(fields.get("blob")) is str:
        found["data"] = of_base64(fields["blob"], _media_type(fields) or "unknown")
    return found


def _uri(uri: Any) -> str:
    return str(uri) if type(uri).__module__.startswith("pydantic") else text(uri)


def _media_type(fields: Mapping[str, Any]) -> str:
    return text(fields.get("mime_type")) or text(fields.get("mimeType"))


# -- what is asked -----------------------------------------------------------------------------------------

_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""What the servers call themselves, by session: the SDK's first version does not keep it."""


def _naming(initialize: Any, _switch: Switch) -> Any:
    """Return `ClientSession.initialize`, which keeps the name of the server too; it may be before any run."""

    @functools.wraps(initialize)
    async def wrapper(session: Any, *args: Any, **kwargs: Any) -> Any:
        result = await initialize(session, *args, **kwargs)
        with contextlib.suppress(Exception):  # the second version names it otherwise, and keeps it
            _names[session] = result.serverInfo.name
        return result

    return wrapper


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any]:
    """Return the arguments of those names, the first ones after `self`."""
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    return [given.get(name) for name in names]


def _server(args: tuple[Any, ...]) -> dict[str, Any]:
    about = getattr(args[0], "server_info", None)
    return present(server=_names.get(args[0]) if about is None else about.name)


def _asked_tool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    name, arguments = _given(args, kwargs, "name", "arguments")

    def inputs() -> dict[str, Any]:
        return {**_server(args), "tool": name, "arguments": without_media(some_dict(arguments))}

    return Asked(TOOL, f"tool {name}"[:200], inputs, _Answer(_tool_result), is_model=False)


def _asked_tools(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    del kwargs  # where the listing goes on
    return Asked(TOOLS, "list tools", lambda: _server(args), _Answer(_tools), is_model=False)


def _asked_resource(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    uri = _uri(_given(args, kwargs, "uri")[0])
    return Asked(
        RESOURCE,
        f"resource {uri}"[:200],
        lambda: {**_server(args), "uri": uri},
        _Answer(_contents),
        is_model=False,
    )


def _asked_prompt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    name, arguments = _given(args, kwargs, "name", "arguments")
    return Asked(
        PROMPT,
        f"prompt {name}"[:200],
        lambda: {**_server(args), "prompt": name, **present(arguments=arguments)},
        _Answer(_messages),
        is_model=False,
    )


_SESSION = "mcp.client.session:ClientSession"
TAPS = (
    Tap(f"{_SESSION}.call_tool", asks=_asked_tool),
    Tap(f"{_SESSION}.list_tools", asks=_asked_tools),
    Tap(f"{_SESSION}.read_resource", asks=_asked_resource),
    Tap(f"{_SESSION}.get_prompt", asks=_asked_prompt),
    Tap(f"{_SESSION}.initialize", wraps=_naming),
)

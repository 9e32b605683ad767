"""Translates a ChatRequest, which has OpenAI's format, to the body of an Anthropic request.

Options that Anthropic does not have (`seed`, the penalties, names of speakers) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.request import ChatRequest, Message, ToolTurn
from halt.errors import UpstreamError


def bad_request(detail: str) -> UpstreamError:
    return UpstreamError("bad_request", detail)


def _call_id(text: str) -> str:
    """Return a call's ID with only the characters that Anthropic accepts.

    The ID may come from another provider.
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "call"


def tool_use(id_: str, name: str, arguments: Any) -> dict[str, Any]:
    """Return the block of a tool call."""
    tool_input = arguments
    if isinstance(arguments, str):
        try:
            tool_input = msgspec.json.decode(arguments or "{}")
        except UNREADABLE:
            tool_input = {}  # the model wrote no JSON; the tool's result tells the model
    if not isinstance(tool_input, dict):
        tool_input = {}
    return {"type": "tool_use", "id": _call_id(id_), "name": name, "input": tool_input}


def _text(text: str) -> list[dict[str, Any]]:
    """Return text as a list of blocks, empty for empty text: the API refuses empty blocks."""
    return [{"type": "text", "text": text}] if text.strip() else []


def _source(url: str, kind: str) -> dict[str, Any]:
    """Return the source of an image or a document from its URL. Raises UpstreamError."""
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        media_type, _, encoding = head.partition(";")
        if not comma or encoding.rpartition(";")[2] != "base64":
            raise bad_request(f"a data: URL of {kind} is not in base64")
        return {"type": "base64", "media_type": media_type, "data": data}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise bad_request(f"{kind} is neither a data: URL nor an http(s) URL")


def _content(content: Any) -> list[dict[str, Any]]:
    """Return a message's content as blocks. Raises UpstreamError if the API has none for it."""
    if content is None or isinstance(content, str):
        return _text(content or "")
    if not isinstance(content, list):
        raise bad_request("the content of a message is neither a text nor a list of parts")
    blocks: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, str):
            blocks += _text(part)
        elif isinstance(part, dict):
            blocks += _part(part)
        else:
            raise bad_request("a part of a message's content is not an object")
    return blocks


def _part(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a part as blocks, with its fields that OpenAI does not have (`cache_control`).

    A part of an unknown type is passed on unchanged: the API accepts it, or refuses it with its own
    message.
    """

    def block(kind: str, url: str, noun: str) -> list[dict[str, Any]]:
        other_fields = {k: v for k, v in part.items() if k not in {"type", "image_url", "file"}}
        return [{"type": kind, "source": _source(url, noun), **other_fields}]

    match part:
        case {"type": "text", "text": str(text)}:
            return [part] if text.strip() else []
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return block("image", url, "an image")
        case {"type": "file", "file": {"file_data": str(url)}}:
            name = part["file"].get("filename")
            title = {"title": name} if isinstance(name, str) and name else {}
            return [fields | title for fields in block("document", url, "a file")]
        case {"type": "image_url" | "file" | "input_audio"}:
            raise bad_request("Anthropic's API takes text, images and PDF files")
        case _:
            return [part]


def _calls(message: Message) -> list[dict[str, Any]]:
    """Return the tool calls of an assistant's message as blocks. Raises UpstreamError."""
    blocks = []
    calls = message.get("tool_calls") or []
    for call in calls if isinstance(calls, list) else [calls]:
        match call:
            case {"function": {"name": str(name), **function}}:
                id_ = str(call.get("id") or "")
                blocks.append(tool_use(id_, name, function.get("arguments") or "{}"))
            case _:
                raise bad_request("a tool call has no function with a name")
    return blocks


def to_messages(messages: Iterable[Message]) -> tuple[str | list[dict[str, Any]], list[Any]]:
    """Return the system prompt and the turns, whose roles alternate. Raises UpstreamError.

    An unknown role is passed on unchanged. Of a message's other fields, the API takes only
    `cache_control`, in the message's last block.
    """
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        if isinstance(message, ToolTurn) and message.opaque:
            blocks = message.opaque
        else:
            blocks = _content(message.content) + _calls(message)
        if message.role == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": _call_id(str(message.get("tool_call_id"))),
            }
            blocks = [result | ({"content": blocks} if blocks else {})]
        if blocks and (cached := message.get("cache_control")):
            blocks = [*blocks[:-1], {**blocks[-1], "cache_control": cached}]
        if role in {"system", "developer"}:
            system += [block for block in blocks if block.get("type") == "text"]
        elif not blocks:
            continue  # an answer that was stopped before its first word
        elif turns and turns[-1]["role"] == role:  # merge: results of parallel calls are one turn
            turns[-1]["content"] = [*turns[-1]["content"], *blocks]
        else:
            turns.append({"role": role, "content": blocks})
    if any(block.keys() != {"type", "text"} for block in system):
        return system, turns
    return "\n\n".join(block["text"] for block in system), turns


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a function in Anthropic's format; a tool of another type is returned unchanged."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    fields = {
        "name": function.get("name"),
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": tool.get("cache_control") or function.get("cache_control"),
    }
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {k: v for k, v in fields.items() if v} | {"input_schema": schema}


def _tool_choice(request: ChatRequest) -> dict[str, Any] | None:
    choice = request.tool_choice
    chosen: dict[str, Any] | None = None
    match choice:
        case None:
            pass
        case "auto" | "none":
            chosen = {"type": choice}
        case "required" | "any":
            chosen = {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            chosen = {"type": "tool", "name": name}
        case dict():
            chosen = choice  # passed on unchanged: the API accepts it, or refuses it
        case _:
            raise bad_request(f"tool_choice {choice!r} is unknown")
    if request.parallel_tool_calls is False and choice != "none":
        chosen = {"type": "auto", **(chosen or {}), "disable_parallel_tool_use": True}
    return chosen


def _output_config(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"format": {"type": "json_schema", "schema": schema}}
    raise bad_request("response_format must be text or a json_schema")


def may_think(messages: list[Message]) -> bool:
    """Whether the request may enable thinking.

    The API refuses it within a turn with tool calls if the turn's earlier thinking is missing.
    """
    for message in reversed(messages):
        if message.role == "user":
            break
        if message.get("tool_calls") and not (isinstance(message, ToolTurn) and message.opaque):
            return False
    return True


def body_of(request: ChatRequest, max_tokens: int) -> dict[str, Any]:
    """Return the body of the request without the model and its thinking. Raises UpstreamError.

    `max_tokens`: limit of the answer if the request sets none.
    """
    system, turns = to_messages(request.messages)
    tools = [_tool(tool) for tool in request.tools or ()]
    optional = {
        "system": system,
        "stop_sequences": [request.stop] if isinstance(request.stop, str) else request.stop,
        "tools": tools,
        "tool_choice": _tool_choice(request) if tools else None,
        "output_config": _output_config(request.response_format),
    }
    limit = request.max_completion_tokens or request.max_tokens or max_tokens
    return {"messages": turns, "max_tokens": limit} | {k: v for k, v in optional.items() if v}

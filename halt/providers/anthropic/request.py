"""Requests, which come in OpenAI's words, in Anthropic's.

What it has no word for (`seed`, the penalties, the names of speakers) is left out.
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
    """An ID of a call as Anthropic takes it, also where another provider made it."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "call"


def tool_use(id_: str, name: str, arguments: Any) -> dict[str, Any]:
    given = arguments
    if isinstance(arguments, str):
        try:
            given = msgspec.json.decode(arguments or "{}")
        except UNREADABLE:
            given = {}  # the model wrote no JSON; the tool's result tells it so
    if not isinstance(given, dict):
        given = {}
    return {"type": "tool_use", "id": _call_id(id_), "name": name, "input": given}


def _text(text: str) -> list[dict[str, Any]]:
    """Text as blocks; the API refuses empty ones."""
    return [{"type": "text", "text": text}] if text.strip() else []


def _source(url: str, kind: str) -> dict[str, Any]:
    """An image's or a document's source from a data: URL or an address. Raises UpstreamError."""
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        media, _, encoding = head.partition(";")
        if not comma or encoding.rpartition(";")[2] != "base64":
            raise bad_request(f"a data: URL of {kind} is not in base64")
        return {"type": "base64", "media_type": media, "data": data}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise bad_request(f"{kind} is neither a data: URL nor an address")


def _content(content: Any) -> list[dict[str, Any]]:
    """A message's content as blocks. Raises UpstreamError for what the API does not take."""
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
            raise bad_request("a part of a message's content is no object")
    return blocks


def _part(part: dict[str, Any]) -> list[dict[str, Any]]:
    """A part as blocks, with the fields that OpenAI's parts do not have (`cache_control`).

    One of another kind goes to the API as it is: its own, or one that it refuses in its own words.
    """

    def block(kind: str, url: str, noun: str) -> list[dict[str, Any]]:
        more = {k: v for k, v in part.items() if k not in {"type", "image_url", "file"}}
        return [{"type": kind, "source": _source(url, noun), **more}]

    match part:
        case {"type": "text", "text": str(text)}:
            return [part] if text.strip() else []
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return block("image", url, "an image")
        case {"type": "file", "file": {"file_data": str(url)}}:
            return block("document", url, "a file")
        case {"type": "image_url" | "file" | "input_audio"}:
            raise bad_request("Anthropic's API takes text, images and PDF files")
        case _:
            return [part]


def _calls(message: Message) -> list[dict[str, Any]]:
    """The tools that an assistant's message has called. Raises UpstreamError."""
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
    """The system prompt and the turns, which alternate. Raises UpstreamError.

    A role that is not OpenAI's goes to the API as it is. Of a message's own fields, the API has a
    place for `cache_control` alone: behind the message's last block.
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
        elif turns and turns[-1]["role"] == role:  # results of calls made together stay together
            turns[-1]["content"] = [*turns[-1]["content"], *blocks]
        else:
            turns.append({"role": role, "content": blocks})
    if any(block.keys() != {"type", "text"} for block in system):
        return system, turns
    return "\n\n".join(block["text"] for block in system), turns


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function in Anthropic's words; a tool of another kind goes to the API as it is."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    given = {
        "name": function.get("name"),
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": tool.get("cache_control") or function.get("cache_control"),
    }
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {k: v for k, v in given.items() if v} | {"input_schema": schema}


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
            chosen = choice  # the API's own, or one that it refuses in its own words
        case _:
            raise bad_request(f"tool_choice {choice!r} is not known")
    if request.parallel_tool_calls is False and choice != "none":
        chosen = {"type": "auto", **(chosen or {}), "disable_parallel_tool_use": True}
    return chosen


def _output_config(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"format": {"type": "json_schema", "schema": schema}}
    raise bad_request("response_format must be text or a json_schema")


def may_think(messages: list[Message]) -> bool:
    """Thinking can't be begun in the middle of a turn whose earlier thoughts are not here."""
    for message in reversed(messages):
        if message.role == "user":
            break
        if message.get("tool_calls") and not (isinstance(message, ToolTurn) and message.opaque):
            return False
    return True


def body_of(request: ChatRequest, max_tokens: int) -> dict[str, Any]:
    """What is asked, apart from the model and its thinking. Raises UpstreamError.

    `max_tokens`: of the answer, where the request sets no limit.
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

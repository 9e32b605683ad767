"""Anthropic's Messages API, and servers that speak it.

The anthropic client makes the request and reads refusals. Requests come in OpenAI's words and are
put into Anthropic's (`to_messages`); its events are decoded to the same deltas as those of every
provider. What it has no word for (`seed`, the penalties, the names of speakers) is left out.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import anthropic
import httpx2
import msgspec

from halt.config.providers import ProviderSettings
from halt.core.connection import Line, on_line
from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.core.finish_reasons import known_reason
from halt.core.request import ChatRequest, Message, Reply, ToolTurn, unfinished
from halt.errors import UpstreamError
from halt.providers.base import EventReply, Provider, begin, http_client, post, warm_up_client
from halt.providers.continuation import Way
from halt.providers.decoder import EventDecoder, Kind
from halt.providers.errors import error_of, fault
from halt.providers.gathering import Gathering
from halt.providers.loose_json import (
    clean,
    index_of,
    object_of,
    objects_of,
    text_of,
    usage_of,
    whole,
)
from halt.providers.tool_calls import CallAssembler
from halt.transport.pool import Transport

MESSAGES = "/v1/messages"
BLOCKS_MAX = 10_000  # of one answer
MODELS_MAX = 1000  # of one page of the list, as many as the API gives
#: What an address ends with that was copied with the path of a request.
ENDPOINT = re.compile(r"(?<!/)/++(?:v1(?:/++(?:messages|models|complete))?|messages)?/*+$")
BUDGET_MIN = 1024  # tokens of thought, the least that the API takes

#: OpenAI's efforts -> Anthropic's word for it, and tokens of thought for models without efforts.
EFFORTS = {
    "minimal": ("low", 1024),
    "low": ("low", 2048),
    "medium": ("medium", 8192),
    "high": ("high", 16_384),
    "xhigh": ("xhigh", 32_768),
    "max": ("max", 32_768),
}

#: Models that go on with a last message of the assistant's, as long as they are not to think.
#: Those from 4.6 on refuse it.
PREFIXED = re.compile(r"claude-(?:[23]|instant|(?:opus|sonnet|haiku)-4(?:-[015])?(?:-\d{8})?$)")

logger = logging.getLogger(__name__)


# --- the answer -----------------------------------------------------------------------------------


# The usual event: a piece of a block.


class _Piece(msgspec.Struct, forbid_unknown_fields=True):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["content_block_delta"]
    index: int
    delta: _Piece


class _Written:
    """A block of the answer, gathered to be given back as it was."""

    __slots__ = ("id", "json", "kind", "name", "opaque", "signature", "text", "type")

    def __init__(self, block: dict[str, Any]) -> None:
        self.type = str(block.get("type") or "text")
        self.kind: Kind = Reasoning if "thinking" in self.type else Content  # what its text is
        self.id = whole(text_of(block.get("id")))
        self.name = whole(text_of(block.get("name")))
        self.opaque = whole(text_of(block.get("data")))
        self.signature = whole(text_of(block.get("signature")))
        self.text: list[str] = []
        self.json: list[str] = []

    def native(self) -> dict[str, Any] | None:
        """The block in Anthropic's words. None: it must not be given back."""
        text = "".join(self.text)
        if self.type == "text":
            return {"type": "text", "text": text} if text.strip() else None
        if self.type == "thinking":
            return {"type": "thinking", "thinking": text, "signature": self.signature}
        if self.type == "redacted_thinking":
            return {"type": "redacted_thinking", "data": self.opaque}
        if self.type == "tool_use":
            return _tool_use(self.id, self.name, "".join(self.json))
        return None


_decode_delta = msgspec.json.Decoder(_Delta).decode


class MessagesDecoder(EventDecoder):
    """The stream of a message of Anthropic's, or a whole message."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[_Written] = []  # in the order in which they began
        self._blocks: dict[int, _Written] = {}  # the server's index -> the block it means now
        self._implied: set[int] = set()  # indexes of thoughts that were never begun
        self._newest = 0  # index of the block that was begun last
        self._into: _Written | None = None  # the block that text was written to last
        self._calls = CallAssembler()
        self._counts: dict[str, Any] = {}

    @property
    def opaque(self) -> list[dict[str, Any]] | None:
        """The whole answer with its signed thoughts, None where there are no thoughts."""
        if not any("thinking" in block.type for block in self._all):
            return None
        return [native for block in self._all if (native := block.native()) is not None]

    def _take(self, data: bytes, event: str | None, out: Gathering) -> None:
        try:
            usual = _decode_delta(data)
        except UNREADABLE:
            self._take_unusual(data, event, out)
            return
        written = self._blocks.get(usual.index)
        piece = usual.delta
        if self._halves or written is None or usual.index in self._implied:
            self._take_unusual(data, event, out)
        elif text := piece.text or piece.thinking:
            out.chunks += 1
            out.arrived += len(text)
            self._into = written
            self._give(written.kind if piece.text else Reasoning, text, out)
        elif piece.partial_json and written.type == "tool_use":
            self._add_input(usual.index, written, piece.partial_json, out)

    def _take_object(self, value: dict[str, Any], event: str | None, out: Gathering) -> None:
        kind = _kind_of(value, event)
        index = index_of(value.get("index"))
        delta = value.get("delta")
        if fault := error_of(value, event=event or ""):
            if not self._is_finished:
                raise fault
            return
        if kind in {"message_start", "message"}:
            message = object_of(value.get("message")) or value
            self._take_message(message, out)
            if kind == "message":
                self._is_whole = True
        elif kind == "content_block_start":
            block = object_of(value.get("content_block"))
            self._begin_block(self._next if index is None else index, block, out)
        elif kind == "content_block_delta":
            fields = delta if isinstance(delta, dict) else {"text": delta or value.get("text")}
            self._take_delta(self._newest if index is None else index, fields, out)
        elif kind in {"message_delta", "message_stop"}:
            self._understood = True
            fields = object_of(delta)
            self._take_end(fields)
            self._take_end(object_of(value.get("message")))
            self._take_end(value)
            if self._counts:
                self.usage = _usage(self._counts)
            self.ended = kind == "message_stop"
        # ping, content_block_stop, and what may come in later versions

    @property
    def _next(self) -> int:
        """The index of a block that comes without one."""
        return self._newest + 1 if self._blocks else 0

    def _take_message(self, message: dict[str, Any], out: Gathering) -> None:
        """The beginning of a message, or all of it."""
        self._understood = True
        model = message.get("model")
        if isinstance(model, str) and model:
            self.model = whole(model)
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for block in objects_of(content):
            self._begin_block(self._next, block, out)
        self._take_end(message)
        if self.finish_reason is not None and self._counts:
            self.usage = _usage(self._counts)

    def _take_end(self, fields: dict[str, Any]) -> None:
        """The reason of the end, and the counts."""
        for name, count in (usage_of(fields.get("usage")) or {}).items():
            known = self._counts.get(name)
            if not isinstance(known, int):
                self._counts[name] = count
            elif isinstance(count, int):
                self._counts[name] = max(count, known)  # it only grows; some end with zeros
        if reason := known_reason(fields.get("stop_reason")):
            self.finish_reason = reason

    def _begin_block(self, index: int, block: dict[str, Any], out: Gathering) -> None:
        self._understood = True
        if len(self._all) >= BLOCKS_MAX:
            raise UpstreamError("upstream_invalid", "too many blocks")
        written = self._blocks[index] = _Written(block)
        self._implied.discard(index)
        self._all.append(written)
        self._newest = index
        if written.type != "tool_use":
            self._take_piece(written, block, out)
            return
        out.chunks += 1
        self._splitter.called(out)
        self._calls.fragment(index, written.id, written.name, "", out)
        given = block.get("input")
        if given:  # some servers give the whole input here
            self._add_input(index, written, _json_text(given), out)

    def _take_delta(self, index: int, delta: dict[str, Any], out: Gathering) -> None:
        kind = str(delta.get("type"))
        written = self._blocks.get(index)
        if written is None:  # it was never begun
            about_thought = "thinking" in delta or "signature" in delta
            self._begin_block(index, {"type": "thinking" if about_thought else "text"}, out)
            written = self._blocks[index]
            if about_thought:
                self._implied.add(index)
        elif index in self._implied and kind == "text_delta":
            self._begin_block(index, {"type": "text"}, out)
            written = self._blocks[index]
        if kind == "input_json_delta" or "partial_json" in delta:
            if written.type == "tool_use":
                self._add_input(index, written, _json_text(delta.get("partial_json")), out)
            return
        if kind == "signature_delta":
            written.signature += whole(text_of(delta.get("signature")))
            return
        self._take_piece(written, delta, out)

    def _add_input(self, index: int, written: _Written, text: str, out: Gathering) -> None:
        text = self._joined(index, text)
        if text:
            out.chunks += 1
            written.json.append(text)
            self._calls.fragment(index, "", "", text, out)

    def _take_piece(self, written: _Written, piece: dict[str, Any], out: Gathering) -> None:
        """Thoughts, text and sources of a block, or of a piece of one."""
        thought = text_of(piece.get("thinking"))
        text = text_of(piece.get("text"))
        if not text and str(piece.get("type", "text")) in {"text", "text_delta"}:
            text = text_of(piece.get("content"))
        if thought:
            self._write(written, Reasoning, thought, out)
        if text:
            self._write(written, written.kind, text, out)
        sources = [*objects_of(piece.get("citations")), *objects_of(piece.get("citation"))]
        for name, source in map(_source_of, filter(None, sources)):
            out.add(Extra(delta={name: [source]}))

    def _write(self, written: _Written, kind: Kind, text: str, out: Gathering) -> None:
        out.chunks += 1
        out.arrived += len(text)
        self._into = written
        self._say(kind, text, out)

    def _give(self, kind: Kind, text: str, out: Gathering) -> None:
        if self._into is not None and self._into.kind is kind:
            self._into.text.append(text)
        super()._give(kind, text, out)

    def _last(self, out: Gathering) -> None:
        super()._last(out)
        waiting, self._halves = self._halves, {}
        for index, halves in waiting.items():
            self._add_input(index, self._blocks[index], halves.feed("", last=True), out)
        self._calls.finish(out)


def _json_text(given: Any) -> str:
    """A piece of JSON; some servers give the value itself."""
    if isinstance(given, dict | list):
        return msgspec.json.encode(clean(given)).decode()
    return text_of(given)


def _kind_of(value: dict[str, Any], event: str | None) -> str:
    """What an event is: by its type, else by its name, else by what it holds."""
    for name in (value.get("type"), event):
        if isinstance(name, str) and name:
            return name
    if "content_block" in value:
        return "content_block_start"
    if "delta" in value:
        return (
            "message_delta" if "stop_reason" in object_of(value["delta"]) else "content_block_delta"
        )
    return "message" if "content" in value and "role" in value else ""


def _source_of(citation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A source of a block's text, under OpenAI's name and in its words where it is an address."""
    source = clean(citation)
    if not isinstance(source.get("url"), str):
        return "citations", source
    told = {"url": source["url"], "title": text_of(source.get("title"))}
    if quoted := text_of(source.get("cited_text")):
        told["content"] = quoted
    return "annotations", {"type": "url_citation", "url_citation": told}


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's counts in OpenAI's terms: the prompt includes what came from the cache."""

    def count(name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) else 0

    cached = count("cache_read_input_tokens")
    prompt = count("input_tokens") + count("cache_creation_input_tokens") + cached
    answer = count("output_tokens")
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


# --- the request ----------------------------------------------------------------------------------


def _bad(detail: str) -> UpstreamError:
    return UpstreamError("bad_request", detail)


def _call_id(text: str) -> str:
    """An ID of a call as Anthropic takes it, also where another provider made it."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "call"


def _tool_use(id_: str, name: str, arguments: Any) -> dict[str, Any]:
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
            raise _bad(f"a data: URL of {kind} is not in base64")
        return {"type": "base64", "media_type": media, "data": data}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise _bad(f"{kind} is neither a data: URL nor an address")


def _content(content: Any) -> list[dict[str, Any]]:
    """A message's content as blocks. Raises UpstreamError for what the API does not take."""
    if content is None or isinstance(content, str):
        return _text(content or "")
    if not isinstance(content, list):
        raise _bad("the content of a message is neither a text nor a list of parts")
    blocks: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, str):
            blocks += _text(part)
        elif isinstance(part, dict):
            blocks += _part(part)
        else:
            raise _bad("a part of a message's content is no object")
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
            raise _bad("Anthropic's API takes text, images and PDF files")
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
                blocks.append(_tool_use(id_, name, function.get("arguments") or "{}"))
            case _:
                raise _bad("a tool call has no function with a name")
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
            raise _bad(f"tool_choice {choice!r} is not known")
    if request.parallel_tool_calls is False and choice != "none":
        chosen = {"type": "auto", **(chosen or {}), "disable_parallel_tool_use": True}
    return chosen


def _output_format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"type": "json_schema", "schema": schema}
    raise _bad("response_format must be text or a json_schema")


def _may_think(messages: list[Message]) -> bool:
    """Thinking can't be begun in the middle of a turn whose earlier thoughts are not here."""
    for message in reversed(messages):
        if message.role == "user":
            break
        if message.get("tool_calls") and not (isinstance(message, ToolTurn) and message.opaque):
            return False
    return True


def _warm_up() -> None:
    """See `halt.providers.base.warm_up_client`."""
    with anthropic.Anthropic(
        api_key="none",
        base_url="http://127.0.0.1:9",
        max_retries=0,
        http_client=warm_up_client({"/models": {"data": [{"id": "none", "type": "model"}]}}),
    ) as client:
        client.models.with_raw_response.list(limit=MODELS_MAX)
        with contextlib.suppress(anthropic.BadRequestError):
            post(
                client,
                MESSAGES,
                {"model": "none", "max_tokens": 1, "messages": [], "stream": True},
                anthropic.Stream[Any],
            )


_warm_up()


class AnthropicUpstream(Provider):
    """Anthropic, or a server that speaks its Messages API."""

    client_error = anthropic.APIError
    address_setting = "ANTHROPIC_BASE_URL"
    list_path = "/v1/models"
    usual_end = ""

    def __init__(self, settings: ProviderSettings, transport: Transport | None = None) -> None:
        super().__init__(settings, transport)
        self._base = ENDPOINT.sub("", settings.base_url)
        # No timeouts and no retries here, for the reasons that `halt.providers.openai` gives.
        self._client = anthropic.Anthropic(
            api_key=settings.key,
            base_url=self._base,
            max_retries=0,
            timeout=None,
            http_client=http_client(self._transport),
        )
        # Made here, in one thread, and not when it is first asked for.
        self._models = self._client.models.with_raw_response
        self._budgeted: set[str] = set()  # models that want a budget instead of an effort

    def open(self, request: ChatRequest, line: Line) -> Reply:
        model = request.model or self.default_model(line)
        if not unfinished(request):
            return self._send(model, request, line)

        def ask(asked: ChatRequest, _: Way) -> Reply:
            return self._send(model, asked, line)

        return self._go_on(request, model, self._way(model, request), ask)

    def _way(self, model: str, request: ChatRequest) -> Way:
        """How this model is asked to go on with an answer."""
        wish = self._settings.continues
        takes = PREFIXED.match(model) and (request.reasoning_effort or "none") == "none"
        return "trailing" if wish == "prefix" or (wish == "auto" and takes) else "instruction"

    def _send(self, model: str, request: ChatRequest, line: Line) -> EventReply:
        asked = self._asked(request) | {"model": model, "stream": True}
        with self._asking("POST", MESSAGES), on_line(line):
            try:
                response = self._create(model, asked, request)
            except anthropic.APIError as exc:
                raise fault(exc, self._secret) from exc
        return begin(
            response,
            MessagesDecoder(),
            model,
            self._secret,
            partial(self._hinted, "POST", MESSAGES),
        )

    def _asked(self, request: ChatRequest) -> dict[str, Any]:
        """What is asked, apart from the model and its thinking, in Anthropic's words."""
        system, turns = to_messages(request.messages)
        given = request.max_completion_tokens or request.max_tokens
        tools = [_tool(tool) for tool in request.tools or ()]
        output = _output_format(request.response_format)
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        optional = {
            "system": system,
            "stop_sequences": stop,
            "tools": tools,
            "tool_choice": _tool_choice(request) if tools else None,
            "output_config": {"format": output} if output else None,
        }
        asked = {"messages": turns, "max_tokens": given or self._settings.max_tokens}
        return asked | {k: v for k, v in optional.items() if v}

    def _extra(self, request: ChatRequest) -> dict[str, Any]:
        """Fields that are always sent, in the place of others of their names."""
        # Newer models have no such fields; older models and other servers take them.
        sampling = {"temperature": request.temperature, "top_p": request.top_p}
        extra = {k: v for k, v in sampling.items() if v is not None}
        return extra | {**self._settings.extra_body, **(request.extra_body or {})}

    def _create(self, model: str, asked: dict[str, Any], request: ChatRequest) -> httpx2.Response:
        """Send the request; models differ in how they are told to think, so perhaps twice."""
        extra = self._extra(request)

        def create(asked: dict[str, Any]) -> httpx2.Response:
            return post(self._client, MESSAGES, {**asked, **extra}, anthropic.Stream[Any])

        effort = request.reasoning_effort or "none"
        if effort not in {*EFFORTS, "none"}:
            raise _bad(f"reasoning_effort must be none or one of {', '.join(EFFORTS)}")
        if effort == "none" or not _may_think(request.messages):
            return create(asked)
        word, budget = EFFORTS[effort]
        if request.max_completion_tokens or request.max_tokens:
            budget = min(budget, asked["max_tokens"] // 2)  # thoughts count as well
        else:
            asked = {**asked, "max_tokens": asked["max_tokens"] + budget}
        if model not in self._budgeted:
            thinking = {"type": "adaptive", "display": "summarized"}
            output = {**asked.get("output_config", {}), "effort": word}
            try:
                return create({**asked, "thinking": thinking, "output_config": output})
            except anthropic.BadRequestError as exc:
                if not re.search("adaptive|effort|thinking", str(exc.body)):
                    raise
                logger.info("%s takes no effort; it is given a budget of thought", model)
                self._learn(self._budgeted, model)
        if budget >= BUDGET_MIN:
            asked = {**asked, "thinking": {"type": "enabled", "budget_tokens": budget}}
        return create(asked)

    def _list(self) -> httpx2.Response:
        return self._models.list(limit=MODELS_MAX).http_response

"""The request to a model, and the interface that every provider implements.

`Upstream.open(request, connection)` returns a `Reply`, which is read in Parts: each has the decoded
events of one read of the connection. Each fault of a provider becomes one UpstreamError with a code
of `halt.errors.CODES`; text that arrived before the fault is returned first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec

from halt.core.connection import UpstreamConnection
from halt.core.events import Content, Delta, ToolCall, ToolCallDelta
from halt.core.json_pieces import json_pieces
from halt.core.parts import FilePart, characters, has_data, is_image
from halt.model_info import ModelGroup

_NAME = "^[A-Za-z0-9_-]{8,64}"

#: The ID of a stream, made by clients or by Halt. JSON schemas write `$` for Python's `\Z`.
StreamId = Annotated[
    str, msgspec.Meta(pattern=rf"{_NAME}\Z", extra_json_schema={"pattern": f"{_NAME}$"})
]
Bounded = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class Message(dict[str, Any]):
    """One message of a conversation: a JSON object that is sent to the provider unchanged.

    `content` is text, a list of parts in OpenAI's form, or another value that the provider accepts.
    """

    def __init__(self, role: str, content: Any = None, /, **fields: Any) -> None:
        """Fields that are None are left out."""
        values = {"content": content, **fields}
        super().__init__(role=role, **{k: v for k, v in values.items() if v is not None})

    @classmethod
    def of(cls, fields: Any) -> Self:
        """A message from decoded JSON. Raises ValueError that names a missing field.

        A null field counts as absent, as in every request, except `content`: providers distinguish
        null from absent there. Tool calls without a type get the type "function".
        """
        if not isinstance(fields, dict):
            raise ValueError("Expected `object`")
        role = fields.get("role")
        if role is None:
            raise ValueError("Object missing required field `role`")
        if not isinstance(role, str):
            raise ValueError("invalid field `role`: Expected `str`")
        message = cls.__new__(cls)
        message.update(fields)
        if None in fields.values():
            for name in [k for k, v in fields.items() if v is None and k != "content"]:
                del message[name]
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [_typed(call) for call in calls]
        return message

    @property
    def role(self) -> str:
        """The role of its author: "user", "assistant", ..."""
        return str(self["role"])

    @property
    def content(self) -> Any:
        """The content, None if there is none."""
        return self.get("content")

    @property
    def size(self) -> int:
        """Its size in characters: of its texts, and of everything else as JSON.

        The data of images and files does not count: models do not read it as text.
        """
        content = self.get("content")
        if isinstance(content, str) and len(self) == 2:  # beside the role
            return len(content)
        if isinstance(content, list):
            others = {
                name: value for name, value in self.items() if name not in {"role", "content"}
            }
            return characters(content) + (len(msgspec.json.encode(others)) if others else 0)
        return len(msgspec.json.encode(self))


def files_as_text(messages: list[Message]) -> list[Message]:
    """The messages with the text of each FilePart; the same list where there is none.

    A content of texts alone becomes one text: some servers take nothing else.
    """
    changed = [_as_text(message) for message in messages]
    is_same = all(new is old for new, old in zip(changed, messages, strict=True))
    return messages if is_same else changed


def _as_text(message: Message) -> Message:
    content = message.content
    if not isinstance(content, list) or not any(isinstance(part, FilePart) for part in content):
        return message
    parts = [part.as_text() if isinstance(part, FilePart) else part for part in content]
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    whole = "\n\n".join(texts) if len(texts) == len(parts) else None
    return Message.of({**message, "content": parts if whole is None else whole})


def has_images(messages: Iterable[Message]) -> bool:
    """Whether one of the messages has an image part."""
    return any(
        is_image(part)
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


def has_files(message: Message) -> bool:
    """Whether a message has the data of images, files or sounds."""
    content = message.content
    return isinstance(content, list) and any(map(has_data, content))


#: Fields of an answer's message that some providers require in prompts, and others refuse. Clients
#: send answers back unchanged.
OF_ANSWERS = frozenset(
    {"refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content"}
)


class ToolTurn(Message):
    """The assistant's message of a round in which it called tools.

    `opaque` is `Reply.opaque`, which the provider requires back with the message, None for most. A
    run makes it, never a client, and it is never sent to another kind of provider.
    """

    def __init__(self, content: str | None, calls: list[ToolCall], opaque: Any = None) -> None:
        super().__init__("assistant", content, tool_calls=[openai_call(call) for call in calls])
        self.opaque = opaque


def fields_of(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    """The provider's other fields of a call, always with a `function` object."""
    extra = {} if call.extra is msgspec.UNSET else call.extra
    return extra if isinstance(extra.get("function", {}), dict) else {**extra, "function": {}}


def openai_call(call: ToolCall) -> dict[str, Any]:
    """A tool call of the model in OpenAI's JSON form."""
    more = fields_of(call)
    function = {**more.get("function", {}), "name": call.name, "arguments": call.arguments}
    return {**more, "id": call.id, "type": "function", "function": function}


def _typed(tool: Any) -> Any:
    """A tool or a tool call; one with a function but without a type gets that type."""
    if isinstance(tool, dict) and "function" in tool and tool.get("type") is None:
        return {**tool, "type": "function"}
    return tool


class ToolSpec(dict[str, Any]):
    """A tool that the model may call, or a provider's own tool: JSON that is sent unchanged."""

    @classmethod
    def of(cls, fields: Any) -> Self:
        """A tool from decoded JSON. Raises ValueError."""
        if not isinstance(fields, dict):
            raise ValueError("Expected `object`")
        return cls(_typed(fields))

    @classmethod
    def of_function(
        cls, name: str, description: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Self:
        """A function tool; `parameters` is the JSON schema of its arguments."""
        fields = {"name": name, "description": description, "parameters": parameters}
        return cls(type="function", function={k: v for k, v in fields.items() if v is not None})


#: Fields that Halt itself sends to the provider; `extra_body` cannot replace them.
OWN_FIELDS = frozenset({"messages", "model", "stream"})


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A request to a model. The optional fields have the meaning of OpenAI's API."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    id: StreamId | None = None
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    presence_penalty: Bounded | None = None
    frequency_penalty: Bounded | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    extra_body: dict[str, Any] | None = None  # other fields of the provider
    stream: Literal[True] = True  # accepted since clients send it; answers always stream

    def __post_init__(self) -> None:
        for name in OWN_FIELDS & (self.extra_body or {}).keys():
            raise ValueError(
                f"unknown field `extra_body.{name}`. Give {name} as a top-level field."
            )

    def size(self) -> int:
        """The size of all messages in characters."""
        return sum(message.size for message in self.messages)

    def options(self) -> dict[str, Any]:
        """The optional fields that were set, under OpenAI's names. Their values are not copied."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in values.items() if value is not None}


_OPTIONS = [name for name in ChatRequest.__struct_fields__ if name not in {"id", *OWN_FIELDS}]


def fingerprint(messages: list[Message]) -> str:
    """A hash of the messages, which identifies the prompt."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in json_pieces(messages):
        digest.update(piece)
    return digest.hexdigest()


class Unfinished(Message):
    """The shown part of the assistant's answer, which the model shall continue.

    The last message of a request. Halt makes it, never a client. `content` has the pictures, for
    the whole answer; `model_text` is sent to the model, with a word in place of each picture.
    """

    def __init__(self, content: str, model_text: str) -> None:
        super().__init__("assistant", content)
        self.model_text = model_text

    @property
    def size(self) -> int:
        """The number of characters that are sent to the model."""
        return len(self.model_text)


def unfinished(request: ChatRequest) -> str:
    """The text that this request continues, "" for a new answer."""
    last = request.messages[-1]
    return str(last.content) if isinstance(last, Unfinished) else ""


class Part(msgspec.Struct, frozen=True):
    """The events of one read, from `chunks` pieces of the provider; `ended`: it was the last.

    `arrived`: the number of characters of the model that arrived, including held and dropped ones.
    If a provider's code does not count them, the characters of the events count.
    """

    events: tuple[Delta, ...] = ()
    chunks: int = 0
    ended: bool = False
    arrived: int = 0

    @property
    def text(self) -> str:
        """The answer's own text in these events."""
        return "".join(event.content for event in self.events if isinstance(event, Content))


class Reply(Protocol):
    """An arriving answer. Used by one thread at a time, apart from its UpstreamConnection.

    Its socket blocks until `unblock`; after that the relay's selector waits for it.
    """

    @property
    def model(self) -> str:
        """The name of the answering model, as the provider reports it."""

    @property
    def finish_reason(self) -> str | None:
        """The reason of the answer's end, None before the end."""

    @property
    def usage(self) -> dict[str, Any] | None:
        """The provider's token count, None if it reported none."""

    @property
    def opaque(self) -> Any:
        """The value to send back with this answer's tool calls, None for most providers."""

    def fileno(self) -> int:
        """The file descriptor of its socket."""

    def unblock(self) -> None:
        """Make the socket non-blocking, so that `read` never waits."""

    @property
    def pending(self) -> bool:
        """Whether `read` has a result now, even if the socket is not readable."""

    @property
    def complete(self) -> bool:
        """Whether the whole response was read, so that `close` can keep the connection."""

    def read(self) -> Part:
        """The data that has arrived. Raises NoData if there is none, UpstreamError.

        A blocking socket raises NoData after halt.core.connection.TICK seconds of silence.
        """

    def close(self) -> None:
        """Keep the connection for the next request if it is reusable, else close it."""


class Upstream(Protocol):
    """A provider of models, or several of them."""

    @property
    def known_model(self) -> str:
        """The default model, "" if not known yet."""

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        """Send the request and wait for the head. Raises UpstreamError, Interrupted."""

    def models(self, connection: UpstreamConnection) -> list[str]:
        """The names of its models. Raises UpstreamError, Interrupted."""

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        """The models by provider. Raises UpstreamError, Interrupted."""

    def check(self, connection: UpstreamConnection) -> None:
        """Send the provider a request that costs nothing. Raises UpstreamError, Interrupted."""

    def close(self) -> None:
        """Close the idle connections."""

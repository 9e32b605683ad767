"""What a model is asked, and the seam behind which every provider stands.

`Upstream.open(request, line)` gives a `Reply`, which is read in Parts: everything that one read of
the connection brought, decoded. Each fault of a server becomes one UpstreamError with a code of
`halt.errors.CODES`; text that came before the fault is delivered first.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec

from halt.core.connection import UpstreamConnection
from halt.core.events import Content, Delta, ToolCall, ToolCallDelta

_NAME = "^[A-Za-z0-9_-]{8,64}"

#: How streams are named, by clients and by Halt. JSON schemas say `$` where Python says `\Z`.
StreamId = Annotated[
    str, msgspec.Meta(pattern=rf"{_NAME}\Z", extra_json_schema={"pattern": f"{_NAME}$"})
]
Bounded = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class Message(dict[str, Any]):
    """One message of a conversation: a JSON object whose fields go to the model's server as given.

    `content` is text, a list of parts as OpenAI defines them, or what else the server takes.
    """

    def __init__(self, role: str, content: Any = None, /, **fields: Any) -> None:
        """Fields that are None are left out."""
        given = {"content": content, **fields}
        super().__init__(role=role, **{k: v for k, v in given.items() if v is not None})

    @classmethod
    def of(cls, fields: Any) -> Self:
        """A message from decoded JSON. Raises ValueError that names a field which Halt needs.

        A field that is null counts as left out, as in every request; a content stays as it is:
        servers tell the two apart. Calls that have no type are calls of functions.
        """
        if not isinstance(fields, dict):
            raise ValueError("Expected `object`")
        if not isinstance(fields.get("role"), str):
            raise ValueError("missing required field `role`, which is a text")
        message = cls.__new__(cls)
        message.update(fields)
        if None in fields.values():
            for name in [k for k, v in fields.items() if v is None and k != "content"]:
                del message[name]
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [_typed(each) for each in calls]
        return message

    @property
    def role(self) -> str:
        """Whose message it is."""
        return str(self["role"])

    @property
    def content(self) -> Any:
        """None where there is none."""
        return self.get("content")

    @property
    def size(self) -> int:
        """Characters: of the text, and of everything else in it as JSON."""
        content = self.get("content")
        if isinstance(content, str) and len(self) == 2:  # beside the role
            return len(content)
        return len(msgspec.json.encode(self))


#: Fields of an answer's message that some servers want in a prompt's, and others refuse. Clients
#: send answers back as they came.
OF_ANSWERS = frozenset(
    {"refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content"}
)


class ToolTurn(Message):
    """The assistant's own message of a round in which it called tools.

    `opaque` is what its provider wants back with it, as its Reply gave it, None where there is
    nothing. Made by a run, never by a client, and never sent to another kind of provider.
    """

    def __init__(self, content: str | None, calls: list[ToolCall], opaque: Any = None) -> None:
        super().__init__("assistant", content, tool_calls=[openai_call(each) for each in calls])
        self.opaque = opaque


def fields_of(call: ToolCall | ToolCallDelta) -> dict[str, Any]:
    """The fields of its server's that came with a call, in its `function` too."""
    extra = {} if call.extra is msgspec.UNSET else call.extra
    return extra if isinstance(extra.get("function", {}), dict) else {**extra, "function": {}}


def openai_call(call: ToolCall) -> dict[str, Any]:
    """A call that the model has made, in OpenAI's form."""
    more = fields_of(call)
    function = {**more.get("function", {}), "name": call.name, "arguments": call.arguments}
    return {**more, "id": call.id, "type": "function", "function": function}


def _typed(tool: Any) -> Any:
    """A tool, or a call of one, with its type where that goes without saying."""
    if isinstance(tool, dict) and "function" in tool and tool.get("type") is None:
        return {**tool, "type": "function"}
    return tool


class ToolSpec(dict[str, Any]):
    """A tool that the model may call, or one of its server's own: a JSON object, sent as given."""

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
        """A function; `parameters` is the JSON schema of its arguments."""
        told = {"name": name, "description": description, "parameters": parameters}
        return cls(type="function", function={k: v for k, v in told.items() if v is not None})


#: Fields that Halt itself sends to the model's server; `extra_body` cannot replace them.
OWN_FIELDS = frozenset({"messages", "model", "stream"})


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a model is asked. The optional fields mean what they mean in OpenAI's API."""

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
    extra_body: dict[str, Any] | None = None  # fields of the model's server that are not named here
    stream: Literal[True] = True  # accepted because clients send it; an answer always streams

    def __post_init__(self) -> None:
        for name in OWN_FIELDS & (self.extra_body or {}).keys():
            raise ValueError(f"unknown field `extra_body.{name}`: it is a field of its own")

    def size(self) -> int:
        """Characters of all messages."""
        return sum(message.size for message in self.messages)

    def options(self) -> dict[str, Any]:
        """The optional fields that were set, under OpenAI's names. Their values are not copied."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in given.items() if value is not None}


_OPTIONS = [each for each in ChatRequest.__struct_fields__ if each not in {"id", *OWN_FIELDS}]


def fingerprint(messages: list[Message]) -> str:
    """Tells what was asked from what was asked otherwise."""
    return hashlib.blake2b(msgspec.json.encode(messages), digest_size=16).hexdigest()


class Unfinished(Message):
    """The assistant's answer as far as it was shown, which is to be gone on with.

    The last message of a request. Made by Halt, never by a client. Its pictures are kept here for
    the whole answer, and the model is told of them in a word: `told` is what it is sent.
    """

    def __init__(self, content: str, model_text: str) -> None:
        super().__init__("assistant", content)
        self.model_text = model_text

    @property
    def size(self) -> int:
        """Characters that the model is sent."""
        return len(self.model_text)


def unfinished(request: ChatRequest) -> str:
    """The text that this request goes on from; empty: it asks for an answer of its own."""
    last = request.messages[-1]
    return str(last.content) if isinstance(last, Unfinished) else ""


class Part(msgspec.Struct, frozen=True):
    """What one read brought, in how many pieces of the provider's, and whether it was the last.

    `arrived`: characters of the model's that came, also those that are held back for now, or were
    left out. Where a provider does not count them, those of the events count.
    """

    events: tuple[Delta, ...] = ()
    chunks: int = 0
    ended: bool = False
    arrived: int = 0

    @property
    def text(self) -> str:
        """The answer's own text in it."""
        return "".join(each.content for each in self.events if isinstance(each, Content))


class Reply(Protocol):
    """An answer that is coming in. Used by one thread at a time, apart from its UpstreamConnection.

    It is read from a socket, which blocks until `unblock`; the relay then waits for it.
    """

    @property
    def model(self) -> str:
        """The model that answers, as it names itself."""

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, None before."""

    @property
    def usage(self) -> dict[str, Any] | None:
        """The provider's own count, None where it reported none."""

    @property
    def opaque(self) -> Any:
        """What goes back with this answer when tools were called, None for most providers."""

    def fileno(self) -> int:
        """The descriptor of the socket that it is read from."""

    def unblock(self) -> None:
        """Let `read` wait for nothing from now on."""

    @property
    def pending(self) -> bool:
        """`read` has something to say now, whether or not the socket can be read."""

    @property
    def complete(self) -> bool:
        """All of the response was read, so that `close` can keep the connection."""

    def read(self) -> Part:
        """What has come. Raises NoData where that is nothing, UpstreamError.

        While the socket blocks, NoData comes after halt.core.connection.TICK seconds of silence.
        """

    def close(self) -> None:
        """Keep the connection for the next request where it is fit for one, else close it."""


class Upstream(Protocol):
    """A provider of answers, or several of them."""

    @property
    def known_model(self) -> str:
        """The model that answers by default, empty where it is not known yet."""

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        """Send the request, wait for the headers. Raises UpstreamError, Interrupted."""

    def models(self, connection: UpstreamConnection) -> list[str]:
        """The models that it offers. Raises UpstreamError, Interrupted."""

    def catalog(self, connection: UpstreamConnection) -> list[tuple[str, list[str]]]:
        """The models as requests name them, by provider: (its name, or none, and its models).

        Raises UpstreamError, Interrupted.
        """

    def check(self, connection: UpstreamConnection) -> None:
        """Ask the server something that costs nothing. Raises UpstreamError, Interrupted."""

    def close(self) -> None:
        """Close the idle connections."""

"""What a model is asked, and the seam behind which every provider stands.

`Upstream.open(request, line)` gives a `Reply`, which is read in Parts: everything that one read of
the connection brought, decoded. Each fault of a server becomes one UpstreamError with a code of
`halt.errors.CODES`; text that came before the fault is delivered first.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Protocol

import msgspec

from halt.bodies import TypeDecoder
from halt.events import Content, Delta
from halt.line import Line


def named(least: int) -> msgspec.Meta:
    r"""A name of letters, digits, _ and -. JSON schemas say `$` where Python has to say `\Z`."""
    pattern = f"^[A-Za-z0-9_-]{{{least},64}}"
    return msgspec.Meta(pattern=rf"{pattern}\Z", extra_json_schema={"pattern": f"{pattern}$"})


#: How streams are named, by clients and by Halt.
StreamId = Annotated[str, named(8)]
Bounded = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Text as a part of a message."""

    text: str


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where an image is, or the image itself as a data: URL."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """An image as a part of a message."""

    image_url: ImageUrl


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio", forbid_unknown_fields=True):
    """Sound as a part of a message."""

    input_audio: dict[str, str]


class FilePart(msgspec.Struct, tag_field="type", tag="file", forbid_unknown_fields=True):
    """A file as a part of a message."""

    file: dict[str, str]


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """The function that a tool call names, and its arguments as JSON text."""

    name: str
    arguments: str


class AskedTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call that the assistant made in an earlier message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a conversation. `content` may be a list of parts, as OpenAI defines them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | ImagePart | AudioPart | FilePart] | None = None
    name: str | None = None
    tool_calls: list[AskedTool] | None = None
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise ValueError("missing required field `content`")
        if (self.role == "tool") != (self.tool_call_id is not None):
            name = "unknown" if self.tool_call_id else "missing required"
            raise ValueError(f"{name} field `tool_call_id` in a message of the role {self.role}")


class ToolTurn(Message):
    """The assistant's own message of a round in which it called tools.

    `opaque` is what its provider wants back with it (its signed thoughts), None for most. Made by a
    run, never by a client, and never sent to another kind of provider.
    """

    opaque: Any = None


class ToolFunction(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a model is told of a function: `parameters` is a JSON schema."""

    name: Annotated[str, named(1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the model may call."""

    function: ToolFunction
    type: Literal["function"] = "function"


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
        return sum(
            len(m.content) if isinstance(m.content, str) else len(msgspec.json.encode(m))
            for m in self.messages
        )

    def options(self) -> dict[str, Any]:
        """The optional fields that were set, under OpenAI's names."""
        given = msgspec.to_builtins(self)
        return {k: v for k, v in given.items() if k not in {"messages", "id", "model", "stream"}}


CHAT_REQUEST = TypeDecoder(ChatRequest)


def fingerprint(messages: list[Message]) -> str:
    """Tells what was asked from what was asked otherwise."""
    return hashlib.blake2b(msgspec.json.encode(messages), digest_size=16).hexdigest()


class Part(msgspec.Struct, frozen=True):
    """What one read brought, in how many pieces of the provider's, and whether it was the last."""

    events: tuple[Delta, ...] = ()
    chunks: int = 0
    ended: bool = False

    @property
    def text(self) -> str:
        """The answer's own text in it."""
        return "".join(each.content for each in self.events if isinstance(each, Content))


class Reply(Protocol):
    """An answer that is coming in. Used by one thread at a time, apart from its Line."""

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

    def read(self, timeout: float) -> Part:
        """What comes next. Raises Quiet after `timeout` seconds of silence, UpstreamError."""

    def finish(self) -> None:
        """After the end: make the connection ready for the next request, or close it."""

    def close(self) -> None:
        """Close the connection, at any point."""


class Upstream(Protocol):
    """A provider of answers, or several of them."""

    @property
    def known_model(self) -> str:
        """The model that answers by default, empty where it is not known yet."""

    def open(self, request: ChatRequest, line: Line) -> Reply:
        """Send the request, wait for the headers. Raises UpstreamError, Interrupted."""

    def models(self, line: Line) -> list[str]:
        """The models that it offers. Raises UpstreamError, Interrupted."""

    def catalog(self, line: Line) -> list[tuple[str, list[str]]]:
        """The models as requests name them, by provider: (its name, or none, and its models).

        Raises UpstreamError, Interrupted.
        """

    def check(self, line: Line) -> None:
        """Ask the server something that costs nothing. Raises UpstreamError, Interrupted."""

    def close(self) -> None:
        """Close the idle connections."""

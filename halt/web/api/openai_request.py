"""Parses a request for OpenAI's chat completions into a ChatRequest and options of the response.

Fields that ChatRequest does not have are passed to the model's server; so are values that the
ChatRequest field would refuse, since the server knows what it accepts. Tools are the client's own;
`functions`, their older format, are sent to the server as tools.
"""

from __future__ import annotations

from typing import Any

import msgspec

from halt.core.decoding import CHAT_REQUEST, JSON_OBJECT, TypeDecoder, checked_id
from halt.core.request import OF_ANSWERS, ChatRequest
from halt.errors import RequestError
from halt.web.starts import OnDisconnect, grace_seconds

#: Fields of OpenAI's request that ChatRequest has. Fields that are only Halt's own are left out.
CHAT_FIELDS = frozenset(ChatRequest.__struct_fields__) - {"id", "extra_body", "stream"}

#: Decoders that check these values. Model and messages must be valid; others may pass unchecked.
FIELD_DECODERS = {
    field.name: TypeDecoder(field.type)
    for field in msgspec.structs.fields(ChatRequest)
    if field.name in CHAT_FIELDS - {"model", "messages"}
}

#: Options of the response. They are not passed to the model's server.
RESPONSE_FIELDS = frozenset({"on_disconnect", "stream", "stream_options", "n"})

#: Values that mean the same as an absent field.
EMPTY_VALUES: dict[str, tuple[Any, ...]] = {
    "model": ("",),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None,),
}


class CompletionRequest(msgspec.Struct, frozen=True):
    """A parsed request: the ChatRequest and the options of the response."""

    chat: ChatRequest
    stream: bool
    include_usage: bool
    functions: bool  # calls are returned as `function_call`
    grace: float | None  # as `GenerationService.start` takes it


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`. Halt ignores other fields."""

    include_usage: bool | None = None


class ResponseOptions(msgspec.Struct):
    """The options of the response, and the fields of the older format of calls."""

    on_disconnect: OnDisconnect | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    functions: Any = None
    function_call: Any = None


_RESPONSE_OPTIONS = TypeDecoder(ResponseOptions)


def parse_request(body: bytes, stream_id: str | None) -> CompletionRequest:
    """Parse a request's body. Raises RequestError that names the wrong field."""
    fields = JSON_OBJECT.decode(body)
    options = _RESPONSE_OPTIONS.convert(fields)
    if options.n not in {None, 1}:
        raise RequestError("n must be 1: a request has one answer.", field="n")
    if stream_id is not None:
        checked_id(stream_id, "X-Stream-Id")
    values = {
        name: value
        for name, value in fields.items()
        if name not in RESPONSE_FIELDS and value not in EMPTY_VALUES.get(name, ())
    }
    functions = _are_functions(options.functions) and not values.get("tools")
    if functions:
        values |= _tools(values.pop("functions"), values.pop("function_call", None))
    if "messages" in fields:
        values["messages"] = _cleaned(fields["messages"])
    chat_fields = {
        name: value for name, value in values.items() if name in CHAT_FIELDS and _fits(name, value)
    }
    extra_body = {name: values[name] for name in values if name not in chat_fields}
    stream_options = options.stream_options or StreamOptions()
    more = fields.get("stream_options") or {}
    if more.keys() - {"include_usage"}:
        # Halt always requests the usage.
        extra_body["stream_options"] = {**more, "include_usage": True}
    if extra_body:
        chat_fields["extra_body"] = extra_body
    if stream_id is not None:
        chat_fields["id"] = stream_id
    return CompletionRequest(
        CHAT_REQUEST.convert(chat_fields),
        stream=bool(options.stream),
        include_usage=bool(stream_options.include_usage),
        functions=functions,
        grace=grace_seconds(options.on_disconnect, "stop"),
    )


def _fits(name: str, value: Any) -> bool:
    """Whether the ChatRequest field accepts this value. Model and messages are not checked."""
    try:
        if name in FIELD_DECODERS:
            FIELD_DECODERS[name].convert(value)
    except RequestError:
        return False
    return True


def _are_functions(functions: Any) -> bool:
    all_are = isinstance(functions, list) and all(
        isinstance(function, dict) for function in functions
    )
    return all_are and bool(functions)


def _tools(functions: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """`functions` and `function_call` as the fields `tools` and `tool_choice`."""
    tools: dict[str, Any] = {"tools": [_typed(function) for function in functions]}
    if choice is not None:
        tools["tool_choice"] = _typed(choice) if isinstance(choice, dict) else choice
    return tools


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _cleaned(messages: Any) -> Any:
    """Messages with function calls converted to tool calls and without fields of responses.

    Malformed values are left unchanged: the decoder or the model's server refuses them.
    """
    if not isinstance(messages, list):
        return messages
    calls: list[tuple[str, str]] = []  # function name and ID of calls without a result so far
    return [
        _prompt(message, number, calls) if isinstance(message, dict) else message
        for number, message in enumerate(messages)
    ]


def _prompt(message: dict[str, Any], number: int, calls: list[tuple[str, str]]) -> dict[str, Any]:
    if message.get("role") == "function":
        return _result(message, calls)
    if message.get("role") != "assistant":
        return message
    # Clients send answers back unchanged: with empty fields, and with calls that still have their
    # `index` in a stream.
    cleaned = {k: v for k, v in message.items() if not (k in OF_ANSWERS and v in (None, []))}
    if isinstance(tool_calls := cleaned.get("tool_calls"), list):
        cleaned["tool_calls"] = [
            {k: v for k, v in call.items() if k != "index"} if isinstance(call, dict) else call
            for call in tool_calls
        ]
    function = cleaned.get("function_call")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        del cleaned["function_call"]
        if not cleaned.get("tool_calls"):
            call_id = f"call_{number}"  # the same for each request: a server may cache the prompt
            cleaned["tool_calls"] = [{"id": call_id, **_typed(function)}]
            calls.append((function["name"], call_id))
    return cleaned


def _result(message: dict[str, Any], calls: list[tuple[str, str]]) -> dict[str, Any]:
    """A function's result as a tool message for the newest call of that name without a result."""
    matching_calls = [call for call in calls if call[0] == message.get("name")]
    if not matching_calls:
        return message
    calls.remove(matching_calls[-1])
    cleaned = {name: value for name, value in message.items() if name != "name"}
    content = cleaned.get("content")
    tool_fields = {"role": "tool", "tool_call_id": matching_calls[-1][1]}
    return {**cleaned, **tool_fields, "content": "" if content is None else content}

"""A request for OpenAI's chat completions, read as a ChatRequest and the options of its answer.

What Halt has no field for is passed on to the model's server, and so is a value that no field of
Halt's own wire would take: the server knows what it takes. Tools are the client's own; `functions`,
their older form, go to the server as tools.
"""

from __future__ import annotations

from typing import Any

import msgspec

from halt.core.decoding import CHAT_REQUEST, JSON_OBJECT, TypeDecoder, checked_id
from halt.core.request import OF_ANSWERS, ChatRequest
from halt.errors import RequestError
from halt.web.starts import OnDisconnect, grace_seconds

#: Fields that ChatRequest has a place for; those of Halt's own wire are none of OpenAI's.
CHAT_FIELDS = frozenset(ChatRequest.__struct_fields__) - {"id", "extra_body", "stream"}

#: What each of them takes. The model and the messages have to fit; the others go on as they are.
FIELD_DECODERS = {
    each.name: TypeDecoder(each.type)
    for each in msgspec.structs.fields(ChatRequest)
    if each.name in CHAT_FIELDS - {"model", "messages"}
}

#: Fields that say how to answer, and go to no server.
RESPONSE_FIELDS = frozenset({"on_disconnect", "stream", "stream_options", "n"})

#: Values that say as much as a field that is left out.
EMPTY_VALUES: dict[str, tuple[Any, ...]] = {
    "model": ("",),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None,),
}


class CompletionRequest(msgspec.Struct, frozen=True):
    """A request as Halt understands it, and what only matters for how it is answered."""

    chat: ChatRequest
    stream: bool
    include_usage: bool
    functions: bool  # calls are given back as OpenAI's `function_call`
    grace: float | None  # as `GenerationService.start` takes it


class StreamOptions(msgspec.Struct):
    """Fields that are not named here change nothing for Halt."""

    include_usage: bool | None = None


class ResponseOptions(msgspec.Struct):
    """The fields that say how to answer, and those of the older form of calls."""

    on_disconnect: OnDisconnect | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    functions: Any = None
    function_call: Any = None


_RESPONSE_OPTIONS = TypeDecoder(ResponseOptions)


def parse_request(body: bytes, stream_id: str | None) -> CompletionRequest:
    """A request's body. Raises RequestError that names the field."""
    fields = JSON_OBJECT.decode(body)
    options = _RESPONSE_OPTIONS.convert(fields)
    if options.n not in {None, 1}:
        raise RequestError("n: one answer is given to a request; ask again for more.", field="n")
    if stream_id is not None:
        checked_id(stream_id, "X-Stream-Id")
    given = {
        name: value
        for name, value in fields.items()
        if name not in RESPONSE_FIELDS and value not in EMPTY_VALUES.get(name, ())
    }
    functions = _are_functions(options.functions) and not given.get("tools")
    if functions:
        given |= _tools(given.pop("functions"), given.pop("function_call", None))
    given["messages"] = _cleaned(fields.get("messages"))
    named = {
        name: given[name] for name in given if name in CHAT_FIELDS and _fits(name, given[name])
    }
    rest = {name: given[name] for name in given if name not in named}
    stream_options = options.stream_options or StreamOptions()
    more = fields.get("stream_options") or {}
    if more.keys() - {"include_usage"}:
        rest["stream_options"] = {**more, "include_usage": True}  # Halt counts in any case
    if rest:
        named["extra_body"] = rest
    if stream_id is not None:
        named["id"] = stream_id
    return CompletionRequest(
        CHAT_REQUEST.convert(named),
        stream=bool(options.stream),
        include_usage=bool(stream_options.include_usage),
        functions=functions,
        grace=grace_seconds(options.on_disconnect, "stop"),
    )


def _fits(name: str, value: Any) -> bool:
    """The field takes this value; where it has to, it is not asked."""
    try:
        if name in FIELD_DECODERS:
            FIELD_DECODERS[name].convert(value)
    except RequestError:
        return False
    return True


def _are_functions(functions: Any) -> bool:
    all_are = isinstance(functions, list) and all(isinstance(each, dict) for each in functions)
    return all_are and bool(functions)


def _tools(functions: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """The fields that say the same as `functions` and `function_call`."""
    tools: dict[str, Any] = {"tools": [_typed(each) for each in functions]}
    if choice is not None:
        tools["tool_choice"] = _typed(choice) if isinstance(choice, dict) else choice
    return tools


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _cleaned(messages: Any) -> Any:
    """Messages whose calls of functions are calls of tools, and that are no list of an answer's.

    What is malformed is left for the decoder, or for the model's server.
    """
    if not isinstance(messages, list):
        return messages
    calls: list[tuple[str, str]] = []  # function and ID of calls that have no result yet
    return [
        _prompt(message, number, calls) if isinstance(message, dict) else message
        for number, message in enumerate(messages)
    ]


def _prompt(message: dict[str, Any], number: int, calls: list[tuple[str, str]]) -> dict[str, Any]:
    if message.get("role") == "function":
        return _result(message, calls)
    if message.get("role") != "assistant":
        return message
    # Clients send answers back as they are: with fields that are empty, and calls that still have
    # their number in a stream.
    kept = {k: v for k, v in message.items() if not (k in OF_ANSWERS and v in (None, []))}
    if isinstance(called := kept.get("tool_calls"), list):
        kept["tool_calls"] = [
            {k: v for k, v in each.items() if k != "index"} if isinstance(each, dict) else each
            for each in called
        ]
    function = kept.get("function_call")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        del kept["function_call"]
        if not kept.get("tool_calls"):
            made_up = f"call_{number}"  # the same each time: a server may know it all again
            kept["tool_calls"] = [{"id": made_up, **_typed(function)}]
            calls.append((function["name"], made_up))
    return kept


def _result(message: dict[str, Any], calls: list[tuple[str, str]]) -> dict[str, Any]:
    """A function's result as that of the newest call of its name that has none, if there is one."""
    known = [call for call in calls if call[0] == message.get("name")]
    if not known:
        return message
    calls.remove(known[-1])
    kept = {name: value for name, value in message.items() if name != "name"}
    content = kept.get("content")
    told = {"role": "tool", "tool_call_id": known[-1][1]}
    return {**kept, **told, "content": "" if content is None else content}

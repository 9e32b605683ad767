"""The scenarios of the fake upstream, one function each.

A scenario calls the operations of `Reply`. Its keyword arguments are the arguments of a model name
(`count?n=40`), with their defaults and types; all scenarios also take those of `Pace`. The first
line of the docstring is printed in the list of scenarios. An unknown argument is refused with 400,
so that a typing error in a test is noticed.
"""

import base64
import inspect
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, zip_longest
from itertools import repeat as repeated
from math import inf
from typing import Any
from urllib.parse import parse_qsl

from halt.testing.attached import Attached, attached
from halt.testing.shapes import SHAPES
from halt.testing.wire import Framing, Pace, Reply, as_json

Scenario = Callable[..., None]
SCENARIOS: dict[str, Scenario] = {}

OVERRIDE = "/fake "  # selects a scenario on the chat page
PIECE = 4096  # bytes of the endless line in one send
CUT_PAUSE = 0.002  # seconds between the halves of a character, so that they arrive separately

MARKDOWN = """\
# A fixed answer

Some **bold**, some *italic*, `inline code` and a [link](https://example.org/?a=1&b=2).

## Lists

- one
- two
  - two and a *half*
    1. deeper
    2. still
- three

| name  | value |
|-------|------:|
| left  |     1 |
| right |    22 |

```python
def greet(name: str) -> str:
    return f"<b>Hello</b>, {name} & all"  # stays text
```

> Quoted, with a hostile <script>alert("script")</script> inside.

<img src=x onerror=alert("image")> and [a bad link](javascript:alert(1)).

"""

# With combining accents, right-to-left letters, and emoji joined by U+200D and U+FE0F.
WIDE = "naïve 中文字符 e\u0301a\u0308 👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 日本語 \u05d0\u05d1 😀!"


def choose(body: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The name and arguments of the scenario, from the last user message or from the model."""
    prompt = last_user_message(body)
    newest = prompt.rpartition("\n\n")[2]  # consecutive prompts are joined into one message
    if newest.startswith(OVERRIDE):
        prompt = newest
    words = prompt.split()
    spec = words[1] if prompt.startswith(OVERRIDE) and words[1:] else body.get("model")
    name, _, query = str(spec).partition("?")
    return name, dict(parse_qsl(query, keep_blank_values=True))


def play(reply: Reply, name: str, args: dict[str, str]) -> None:
    """Play a scenario, or respond with 400 if an argument is invalid."""
    scenario = SCENARIOS[name]
    remaining = dict(args)
    try:
        reply.pace = Pace(**_take_arguments(Pace, remaining))
        arguments = _take_arguments(scenario, remaining)
        if remaining:
            raise ValueError(f"no such argument: {', '.join(remaining)}")
    except ValueError as error:
        reply.error(400, f"fake {name}: {error}")
        return
    scenario(reply, **arguments)


def _take_arguments(function: Callable[..., object], args: dict[str, str]) -> dict[str, Any]:
    """Remove the function's arguments from args; return them in the types of its defaults."""
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {name: type(d)(args.pop(name)) for name, d in defaults.items() if name in args}


def last_user_message(body: dict[str, Any]) -> str:
    """The text of the last message whose role is user; "" without one."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content)
            return str(content or "")
    return ""


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def numbers(n: int, start: int = 0) -> Iterator[str]:
    return (f"{i} " for i in range(start, start + n))


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), max(1, size))]


# Complete answers


@scenario
def echo(reply: Reply) -> None:
    """The last user message, word by word."""
    prompt = last_user_message(reply.request)
    if prompt.startswith(OVERRIDE):
        prompt = " ".join(prompt.split(maxsplit=2)[2:])
    reply.tokens(re.findall(r"\s*\S+\s*|\s+", prompt))
    reply.finish()


@scenario
def count(reply: Reply, n: int = 100) -> None:
    """Numbered tokens."""
    reply.tokens(numbers(n))
    reply.finish()


@scenario
def long(reply: Reply, n: int = 100_000) -> None:
    """A very long answer, as fast as it is read. (default: burst=200)"""
    if reply.pace.burst == Pace.burst:
        reply.pace = replace(reply.pace, burst=200)
    count(reply, n)


@scenario
def markdown(reply: Reply, n: int = 1, piece: int = 4) -> None:
    """A fixed Markdown answer with hostile HTML, n times, in small pieces."""
    reply.tokens(pieces(MARKDOWN * n, piece))
    reply.finish()


@scenario
def text(reply: Reply, key: str = "", piece: int = 4) -> None:
    """The text that a test has put into `server.texts[key]`."""
    if key not in reply.texts:
        reply.error(400, f"fake text: server.texts has no {key!r}")
        return
    reply.tokens(pieces(reply.texts[key], piece))
    reply.finish()


@scenario
def repeat(
    reply: Reply,
    before: str = "",
    unit: str = "",
    times: int = 1,
    after: str = "",
    piece: int = 200,
) -> None:
    """`before`, then `unit` `times` times, then `after`, in pieces of `piece` characters."""
    if piece == len(unit):  # it may be endless, and is never built as a whole
        reply.tokens(chain(filter(None, [before]), repeated(unit, times), filter(None, [after])))
    else:
        reply.tokens(pieces(before + unit * times + after, piece))
    reply.finish()


@scenario
def go_on(
    reply: Reply, key: str = "", style: str = "tail", first: int = -1, refuse: int = 0
) -> None:
    """`texts[key]`, silent after `first` characters; continues a given beginning of the text.

    Continues after an assistant prefix (style=echo: repeats it first), or after an instruction,
    with a repetition in one of these styles: tail (as instructed), nothing, more, all, lead, fence.
    refuse=1: 400 for a prefix, 2: for both.
    """
    full_text = reply.texts.get(key, "")
    last = reply.request["messages"][-1]
    last_text = _text_of(last)
    is_instruction = "which are:\n\n" in last_text
    if (refuse and last["role"] == "assistant") or (refuse == 2 and is_instruction):
        reply.error(400, "This model does not support assistant message prefill.")
    elif last["role"] == "assistant":
        _send_rest(reply, full_text, last_text, last_text if style == "echo" else "")
    elif is_instruction:
        prefix = _text_of(reply.request["messages"][-2])
        tail = last_text.partition("which are:\n\n")[2].rpartition("\n\nand go on")[0]
        _send_rest(reply, full_text, prefix, _repeat(style, prefix, tail), bare=style == "nothing")
    else:
        reply.tokens(pieces(full_text if first < 0 else full_text[:first], 4))
        if first >= 0:
            reply.hold(inf)
        reply.finish()


def _send_rest(
    reply: Reply, full_text: str, prefix: str, repeat: str, *, bare: bool = False
) -> None:
    if not full_text.startswith(prefix):
        reply.error(400, f"fake go_on: {prefix!r} is not the beginning of the text")
        return
    rest = full_text[len(prefix) :]
    reply.tokens(pieces(repeat + (rest.lstrip() if bare else rest), 4))
    reply.finish()


def _text_of(message: dict[str, Any]) -> str:
    """The text of a message, also from Anthropic's blocks."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _repeat(style: str, prefix: str, tail: str) -> str:
    """The repetition of an instructed model before it continues."""
    return {
        "tail": tail,
        "nothing": "",
        "more": prefix[-len(tail) - 40 :],
        "all": prefix,
        "lead": f'Sure, here is the rest: "{tail}',
        "fence": f"```python\n{tail}",
    }[style]


@scenario
def reasoning(reply: Reply, thoughts: int = 20, n: int = 20) -> None:
    """Deltas with reasoning_content before those with content."""
    reply.tokens((f"thought{i} " for i in range(thoughts)), kind="reasoning_content")
    reply.tokens(numbers(n))
    reply.finish()


@scenario
def tools(reply: Reply, thoughts: int = 2, n: int = 3) -> None:
    """Reasoning and two calls (add, sub), arguments in pieces; after their results, an answer."""
    if _has_results(reply.request):
        reply.tokens(numbers(n))
        reply.finish()
        return
    reply.tokens((f"thought{i} " for i in range(thoughts)), kind="reasoning_content")
    reply.open()
    for index, (name, parts) in enumerate(
        {"add": ('{"a": 1, ', '"b": 2}'), "sub": ("{}",)}.items()
    ):
        function: dict[str, object] = {"name": name, "arguments": ""}
        call = {"index": index, "id": f"call_{name}", "type": "function", "function": function}
        reply.chunk({"tool_calls": [call]})
        for part in parts:
            reply.chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
            reply.record.sent(1)
    reply.finish("tool_calls")


def _has_results(body: dict[str, Any]) -> bool:
    last = body["messages"][-1]
    parts = last["content"] if isinstance(last["content"], list) else []
    return last["role"] == "tool" or any(part["type"] == "tool_result" for part in parts)


@scenario
def budgeted(reply: Reply) -> None:
    """400 for thinking without a budget, like Anthropic's older models; else reasoning."""
    thinking = reply.request.get("thinking", {})
    if thinking.get("type") == "adaptive":
        reply.error(400, "adaptive thinking is not supported on this model")
        return
    reasoning(reply, thoughts=int("budget_tokens" in thinking), n=1)


@scenario
def one_sampling(reply: Reply) -> None:
    """400 for a temperature together with top_p, like Anthropic's models since Claude 4.1."""
    if {"temperature", "top_p"} <= reply.request.keys():
        reply.error(
            400,
            "`temperature` and `top_p` cannot both be specified for this model. "
            "Please use only one.",
        )
        return
    count(reply, n=1)


@scenario
def shape(reply: Reply, name: str = "llamacpp") -> None:
    """A stream in the format of a server; the names are in halt/testing/shapes.py."""
    if name not in SHAPES or not reply.streaming:
        reply.error(400, f"fake shape: no such shape: {name}")
        return
    reply.begin()
    for event in SHAPES[name]:
        line = event.encode() if isinstance(event, str) else b"data: " + as_json(event)
        reply.write(line + b"\n\n")
    reply.end()


@scenario
def think(reply: Reply, thoughts: int = 5, n: int = 5, seconds: float = inf) -> None:
    """Reasoning, silence, more reasoning, then the answer."""
    reply.tokens((f"thought{i} " for i in range(thoughts)), kind="reasoning_content")
    reply.hold(seconds)
    reply.tokens(["<b>at last</b>"], kind="reasoning_content")
    reply.tokens(numbers(n))
    reply.finish()


@scenario
def think_end(reply: Reply, thoughts: int = 5, n: int = 5, seconds: float = inf) -> None:
    """Reasoning as text, silence, the tag that ends the reasoning, and the answer."""
    reply.tokens(f"thought{i} " for i in range(thoughts))
    reply.hold(seconds)
    reply.tokens(["<b>at last</b>", "</th", "ink>", "\n\n"])
    reply.tokens(numbers(n))
    reply.finish()


@scenario
def call(reply: Reply, seconds: float = 0.0, n: int = 3) -> None:
    """Some text, and a tool call whose arguments come in pieces with silence in between."""
    reply.tokens(numbers(n))
    for id_, name, arguments in [
        ("call_1", "look_up", ""),
        (None, None, '{"city": '),
        (None, None, '"<i>Oslo</i>"}'),
    ]:
        function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
        piece = {"index": 0, "function": function}
        reply.chunk({"tool_calls": [piece | ({"id": id_, "type": "function"} if id_ else {})]})
        reply.record.sent(1)
        if arguments.endswith(": "):
            reply.hold(seconds)
    reply.finish("tool_calls")


@scenario
def length(reply: Reply, n: int = 20, reason: str = "length") -> None:
    """An answer cut off by the token limit, or with another finish `reason`."""
    reply.tokens(numbers(n))
    reply.finish(reason)


@scenario
def empty(reply: Reply) -> None:
    """An answer without content."""
    reply.finish()


@scenario
def no_usage(reply: Reply, n: int = 20) -> None:
    """An answer without usage, even if it is requested."""
    reply.tokens(numbers(n))
    reply.finish(usage=False)


@scenario
def no_usage_option(reply: Reply, n: int = 20) -> None:
    """400 for the parameter stream_options, else an answer without usage."""
    if "stream_options" in reply.request:
        reply.error(
            400,
            "Unknown parameter: 'stream_options'.",
            code="unknown_parameter",
            param="stream_options",
        )
        return
    no_usage(reply, n)


#: Gemini sends this with a call and requires it back with the result.
SIGNATURE = {"google": {"thought_signature": "c2lnbmVk"}}

# Tool calls: each of these reports the results when the request has them


def tool_results(reply: Reply) -> list[str]:
    """The tool results since the last user message."""
    results: list[str] = []
    for message in reply.request.get("messages") or []:
        if message.get("role") == "user":
            results.clear()
        elif message.get("role") in {"tool", "function"}:
            results.append(str(message.get("content")))
    return results


def call_tools(reply: Reply, *calls: tuple[str, str], piece: int = 5, serial: int = 0) -> None:
    """Call tools (name, arguments), the arguments in pieces that alternate between the calls."""
    reply.open()
    for index, (name, _) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        call = {"index": index, "id": f"call_{serial}_{index}", "type": "function"}
        reply.chunk({"tool_calls": [call | {"function": function}]})
        reply.record.sent(1)
    for row in zip_longest(*(pieces(arguments, piece) for _, arguments in calls)):
        for index, part in enumerate(row):
            if part is not None:
                reply.chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
                reply.record.sent(1)
    reply.finish("tool_calls")


def _expression(text: str) -> str:
    return as_json({"expression": text}).decode()


def report_results(reply: Reply, results: list[str]) -> None:
    reply.tokens(pieces("The tools said: " + " | ".join(results), 8))
    reply.finish()


@scenario
def tool_call(
    reply: Reply, name: str = "current_time", args: str = "{}", say: str = "", piece: int = 5
) -> None:
    """Calls a tool after the text `say`, arguments in pieces; then reports its result."""
    if results := tool_results(reply):
        report_results(reply, results)
        return
    if say:
        reply.tokens(pieces(say, 4))
    call_tools(reply, (name, args), piece=piece)


@scenario
def parallel_calls(reply: Reply, n: int = 3, name: str = "calculator") -> None:
    """Calls a tool n times in one round, with 1*10, 2*10, ...; then reports the results."""
    if results := tool_results(reply):
        report_results(reply, results)
        return
    call_tools(reply, *((name, _expression(f"{i + 1}*10")) for i in range(n)))


@scenario
def tool_rounds(reply: Reply, n: int = 1_000_000) -> None:
    """Calls the calculator in n rounds, one after the other; without n, endlessly."""
    results = tool_results(reply)
    if len(results) >= n:
        report_results(reply, results)
        return
    done = len(results)
    reply.tokens([f"Round {done + 1}."])
    call_tools(reply, ("calculator", _expression(f"{done}+1")), serial=done)


@scenario
def function_call(
    reply: Reply, name: str = "calculator", args: str = '{"expression":"6*7"}'
) -> None:
    """A call in the old format, as function_call; then its result."""
    if results := tool_results(reply):
        report_results(reply, results)
        return
    reply.chunk({"function_call": {"name": name, "arguments": ""}})
    for part in pieces(args, 5):
        reply.chunk({"function_call": {"arguments": part}})
        reply.record.sent(1)
    reply.finish("function_call")


@scenario
def calls_unnumbered(reply: Reply, ids: int = 1) -> None:
    """Three whole calls, all with index 0 and different IDs; ids=0: one call without an ID."""
    if results := tool_results(reply):
        report_results(reply, results)
        return
    for i in range(3 if ids else 1):
        function = {"name": "calculator", "arguments": _expression(f"{i + 1}*10")}
        call = {"index": 0, "id": f"call_{i}" if ids else "", "type": "function"}
        reply.chunk({"tool_calls": [call | {"function": function}]})
        reply.record.sent(1)
    reply.finish("stop")  # the finish reason of such servers


@scenario
def wants_back(
    reply: Reply, field: str = "reasoning_content", refuses: int = 0, name: str = "calculator"
) -> None:
    """Reasoning in the field `field` and a signed call; 400 for a result without both of them.

    With refuses=1: 400 for assistant messages that have the field.
    """
    answers = [m for m in reply.request.get("messages") or [] if m.get("role") == "assistant"]
    if refuses and any(field in message for message in answers):
        detail = f"property '{field}' is unsupported"
        reply.error(400, f"'messages.1' : for 'role:assistant': ('messages.1' : {detail})")
    elif results := tool_results(reply):
        signed = [call.get("extra_content") for call in answers[-1]["tool_calls"]]
        if not refuses and (answers[-1].get(field) != "hm, six" or signed != [SIGNATURE]):
            reply.error(400, f"{field} or a thought_signature is missing in messages.1")
            return
        report_results(reply, results)
    else:
        for piece in ("hm, ", "six"):
            reply.chunk({field: piece})
        function = {"name": name, "arguments": _expression("6*7")}
        call = {"index": 0, "id": "c1", "type": "function", "function": function}
        reply.chunk({"tool_calls": [call | {"extra_content": SIGNATURE}]})
        reply.record.sent(1)
        reply.finish("tool_calls")


@scenario
def beside(reply: Reply) -> None:
    """Extra fields beside text and calls: sources, pictures, signatures, probabilities."""

    def chunk(delta: dict[str, Any], **more: Any) -> None:
        whole: dict[str, Any] = reply.chunk_object(delta)
        whole["choices"][0] |= more.pop("choice", {})
        reply.write(b"data: " + as_json(whole | more) + b"\n\n")
        reply.record.sent(1)

    reply.open()
    sources = ["https://a.example/one"]
    for number, word in enumerate(("Paris", "[1]")):
        odds = {"content": [{"token": word, "logprob": -0.5}]}
        chunk(
            {"content": word, "images": [{"image_url": {"url": f"data:,{number}"}}]},
            choice={"logprobs": odds, "verdict": {"harm": "none"}},
            citations=sources[: number + 1],
            halt={"state": "lost"},
        )
        sources.append("https://a.example/two")
    function = {"name": "x", "arguments": "{}", "note": 1}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    chunk({"tool_calls": [call | {"extra_content": SIGNATURE}], "reasoning_signature": "s"})
    reply.finish("tool_calls")


@scenario
def illustrated(reply: Reply, seconds: float = inf) -> None:
    """Text with a source and a picture in extra fields, then silence and the end."""
    reply.tokens(["Paris[1]"])
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoA"}}
    chunk = reply.chunk_object({"content": "", "images": [picture]})
    reply.event(as_json(chunk | {"citations": ["https://a.example/one"]}))
    reply.hold(seconds)
    reply.finish()


def png(side: int) -> str:
    """A PNG of noise in base64; a side of 100 pixels takes 40 kB."""
    noise = random.Random(side)  # noqa: S311 - the same picture each time
    rows = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )
    return base64.b64encode(data).decode()


@scenario
def draws(
    reply: Reply, side: int = 100, size: int = 400, until: int = 0, seconds: float = inf
) -> None:
    """A picture as a data: URL in the text, in pieces of `size` characters, between two lines.

    With `until`: silence after so many characters of it.
    """
    data = png(side)
    reply.tokens(["Here ", "it is:\n\n", "![a square](data:", "image/png;base64,"])
    reply.tokens(pieces(data[:until] if until else data, size))
    if until:
        reply.hold(seconds)
    else:
        reply.tokens([")\n\n", "Do you like it?"])
    reply.finish()


@scenario
def draws_beside(reply: Reply, side: int = 100, seconds: float = 0.0) -> None:
    """A picture in a delta's `images`, as OpenRouter sends them, after a word; then a pause."""
    reply.tokens(["Here you are."])
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(side)}"}}
    reply.event(as_json(reply.chunk_object({"content": "", "images": [picture]})))
    if seconds:
        reply.hold(seconds)
    reply.finish()


@scenario
def no_tools(reply: Reply, status: int = 400) -> None:
    """Refuses a request with tools, as Ollama does for models without tool support."""
    if "tools" in reply.request:
        reply.error(status, "registry.ollama.ai/library/gemma:2b does not support tools")
        return
    count(reply, 5)


@scenario
def asks_tools(reply: Reply, calls: int = 2, n: int = 0, late: int = 0) -> None:
    """n tokens, then calls of the offered tools, in fragments; after a result, an answer.

    With late=1 the chunk that ends the body comes late, or never.
    """
    offered = reply.request.get("tools")
    if not offered or reply.request.get("messages", [{}])[-1].get("role") == "tool":
        count(reply, 3)
        return
    reply.tokens(numbers(n))
    reply.open()
    for index in range(calls):
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        name = offered[index % len(offered)]["function"]["name"]
        reply.chunk({"tool_calls": [head | {"function": {"name": name, "arguments": ""}}]})
        for piece in ('{"city', '": "', f'town {index}"', "}"):
            reply.chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    reply.finish("tool_calls", end=not late)
    if late:
        reply.hold(inf)
        reply.end()


# Images and files

#: What the list of models says of these: all of them read images and PDFs.
LISTED = {
    name: {"architecture": {"input_modalities": ["text", "image", "file"]}}
    for name in ("vision", "no_files")
}

#: Refusals of images, by the server.
NO_IMAGES = {
    "llamacpp": (
        500,
        "image input is not supported - hint: if this is unexpected, you may need to provide the "
        "mmproj",
    ),
    "vllm": (400, "At most 0 image(s) may be provided in one prompt."),
    "ollama": (400, "this model does not support image input"),
    "lmstudio": (400, "Model does not support images. Please use a model that does."),
    "openrouter": (404, "No endpoints found that support image input"),
    "openai": (400, "Invalid content type. image_url is only supported by certain models."),
}


@scenario
def vision(reply: Reply) -> None:
    """Tells which images and files the request has, and the text of the last prompt."""
    items = attached(reply.request)
    sentences = [_listed(items, "image"), _listed(items, "file"), last_user_message(reply.request)]
    reply.tokens(re.findall(r"\s*\S+", " ".join(filter(None, sentences))))
    reply.finish()


def _listed(items: list[Attached], kind: str) -> str:
    """As in "2 images: image/png 64x48, image/jpeg 10x10."; "No images." without one."""
    matching = [str(item) for item in items if item.kind == kind]
    if not matching:
        return "No images." if kind == "image" else ""
    return f"{len(matching)} {kind}{'s' * (len(matching) > 1)}: {', '.join(matching)}."


@scenario
def no_images(reply: Reply, style: str = "llamacpp") -> None:
    """Refuses images as llamacpp, vllm, ollama, lmstudio, openrouter or openai; reads files."""
    if style not in NO_IMAGES:
        reply.error(400, f"fake no_images: no such style: {style}")
    elif any(item.kind == "image" for item in attached(reply.request)):
        reply.error(*NO_IMAGES[style])
    else:
        vision(reply)


@scenario
def no_files(reply: Reply, status: int = 400) -> None:
    """Refuses PDFs, though the list of models says that it reads them; reads images."""
    if any(item.kind == "file" for item in attached(reply.request)):
        message = "Invalid value: 'file'. Supported values are: 'text', 'image_url'."
        reply.error(status, message, param="messages[0].content[0].type")
    else:
        vision(reply)


# Answers in other framings


@scenario
def close_delimited(reply: Reply, n: int = 20) -> None:
    """Neither chunks nor a length: the body ends with the connection."""
    reply.open(Framing.CLOSE)
    count(reply, n)


@scenario
def content_length(reply: Reply, n: int = 20) -> None:
    """The whole stream at once, with Content-Length."""
    reply.open(Framing.LENGTH)
    count(reply, n)


@scenario
def late_terminator(reply: Reply, n: int = 20, seconds: float = inf) -> None:
    """[DONE], but the chunk that ends the body comes late, or never."""
    reply.tokens(numbers(n))
    reply.finish(end=False)
    reply.hold(seconds)
    reply.end()


# Silence, for `seconds` (default: for ever) or until the record is released


@scenario
def silent_connect(reply: Reply) -> None:
    """No connection: not possible as a model, see FakeOpenAI.unaccepting()."""
    reply.error(400, "fake silent_connect: use the address of FakeOpenAI.unaccepting()")


@scenario
def silent_headers(reply: Reply, seconds: float = inf, n: int = 20) -> None:
    """Silence before the headers."""
    reply.hold(seconds)
    count(reply, n)


@scenario
def silent_first_token(reply: Reply, seconds: float = inf, n: int = 20) -> None:
    """Headers and the role chunk, then silence."""
    reply.open()
    reply.hold(seconds)
    count(reply, n)


@scenario
def slow_titles(reply: Reply, n: int = 3) -> None:
    """n tokens at once; silence for the request of a title."""
    if last_user_message(reply.request).endswith("Title:"):
        reply.open()
        reply.hold(inf)
        reply.tokens(["A slow title"])
    else:
        reply.tokens(numbers(n))
    reply.finish()


@scenario
def stall(
    reply: Reply, n: int = 5, seconds: float = inf, rest: int = 5, reason: str = "stop"
) -> None:
    """n tokens, then silence, then the rest, and the end with this finish `reason`."""
    reply.tokens(numbers(n))
    reply.hold(seconds)
    reply.tokens(numbers(rest, start=n))
    reply.finish(reason)


# Broken ends


@scenario
def drop_headers(reply: Reply) -> None:
    """Closes the connection without a response."""
    reply.drop()


@scenario
def drop(reply: Reply, n: int = 5) -> None:
    """n tokens, then the connection closes within the body."""
    reply.tokens(numbers(n))
    reply.drop()


@scenario
def reset(reply: Reply, n: int = 5) -> None:
    """n tokens, then the connection is reset."""
    reply.tokens(numbers(n))
    reply.reset()


@scenario
def no_finish(reply: Reply, n: int = 5) -> None:
    """n tokens, then a clean end with neither finish_reason nor [DONE]."""
    reply.tokens(numbers(n))
    reply.end()


@scenario
def no_done(reply: Reply, n: int = 5) -> None:
    """finish_reason, then a clean end without [DONE]."""
    reply.tokens(numbers(n))
    reply.chunk({}, "stop")
    reply.end()


@scenario
def done_only(reply: Reply, n: int = 5) -> None:
    """[DONE] without a finish_reason."""
    reply.tokens(numbers(n))
    reply.event(b"[DONE]", last=True)


@scenario
def error_in_stream(
    reply: Reply,
    n: int = 5,
    message: str = "The server had an error while processing your request. Sorry about that!",
    kind: str = "server_error",
    code: str = "server_error",
    seconds: float = 0.0,
) -> None:
    """n tokens, silence, then an error object as an event."""
    if not reply.streaming:
        reply.error(500, message, kind, code=code)
        return
    reply.tokens(numbers(n))
    reply.hold(seconds)
    reply.event(as_json({"error": {"message": message, "type": kind, "code": code}}))
    reply.end()


@scenario
def key_in_stream(reply: Reply, n: int = 0) -> None:
    """n tokens, then an error object that contains the client's API key."""
    headers = reply.record.headers
    key = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    error_in_stream(reply, n, f"Bad key {key}, sorry.")


# Invalid or unusual bytes


@scenario
def garbage(reply: Reply, n: int = 5) -> None:
    """n tokens, then an event that is not JSON."""
    reply.tokens(numbers(n))
    reply.write(b"data: {not json\n\n")
    reply.end()


@scenario
def html(reply: Reply) -> None:
    """200 with a web page, like a captive portal or a wrong base URL."""
    page = b"<!doctype html><title>Welcome</title><h1>It works!</h1>"
    reply.whole(200, page, "text/html; charset=utf-8")


@scenario
def latin1_garbage(reply: Reply, n: int = 5) -> None:
    """n tokens, then one whose bytes are not UTF-8, then a normal end."""
    reply.tokens(numbers(n))
    good = as_json(reply.chunk_object({"content": "caf@ "}))
    reply.write(b"data: " + good.replace(b"caf@", b"caf\xe9\xff\xfe") + b"\n\n")
    reply.finish()


@scenario
def endless_line(reply: Reply) -> None:
    """One line of data that never ends, 4096 bytes per send."""
    if not reply.streaming:
        reply.open(Framing.CLOSE)
    reply.write(b'data: {"choices":[{"index":0,"delta":{"content":"')
    for _ in reply.paced(repeated(None)):
        reply.write(b"a" * PIECE)


@scenario
def half_utf8(reply: Reply, n: int = 1) -> None:
    """Emoji, Chinese and combining characters, each send ending inside a character."""
    if not reply.streaming:
        reply.tokens([WIDE] * n)
    for token in WIDE.split(" ") * (n if reply.streaming else 0):
        # The first byte of each character outside ASCII ends a send, its rest begins the next.
        event = b"data: " + as_json(reply.chunk_object({"content": token + " "})) + b"\n\n"
        for part in re.findall(rb"[^\xc2-\xf4]*(?:[\xc2-\xf4]|\Z)", event):
            reply.write(part)
            reply.pause(CUT_PAUSE)
        reply.record.sent(1)
    reply.finish()


@scenario
def odd_frames(reply: Reply) -> None:
    """Valid but unusual framing: CRLF, comments, no space, split and joined events, fields."""

    def data(word: str, indent: int | None = None) -> bytes:
        delta: dict[str, object] = {"content": word}
        return json.dumps(reply.chunk_object(delta), indent=indent).encode()

    if not reply.streaming:
        count(reply)
        return
    reply.write(b": OPENROUTER PROCESSING\n\n")
    no_choices = reply.chunk_object({}) | {"choices": []}
    reply.write(b"data: " + as_json(no_choices) + b"\n\n")  # Azure begins with one of these
    reply.write(b"data: " + data("crlf ") + b"\r\n\r\n")
    reply.write(b":\r\n\r\ndata:" + data("nospace ") + b"\n\n")
    reply.write(b"".join(b"data: " + data(word) + b"\n\n" for word in ("two ", "joined ")))
    for part in pieces((b"data: " + data("split ") + b"\n\n").decode(), 7):
        reply.write(part.encode())
        reply.pause(CUT_PAUSE)
    lines = data("multiline ", indent=1).splitlines()
    reply.write(b"".join(b"data: " + line + b"\n" for line in lines) + b"\n")
    reply.write(b"id: 7\nretry: 1000\nevent: message\ndata: " + data("fields") + b"\n\n")
    reply.record.sent(7)
    reply.finish()


@scenario
def odd_fields(reply: Reply, n: int = 5) -> None:
    """Blank lines and comments after an id, and blocks without data: valid, to be ignored.

    The decoder of openai 3.54 treats each of them as an event without data, and fails.
    """
    for word in numbers(n):
        reply.open()
        reply.write(b"retry: 1000\n\n")
        reply.write(b"id: 7\n")
        reply.token(word)
        reply.write(b"\n: comment\n\n")
    reply.finish()


# Refusals


STATUS_ERRORS: dict[int, dict[str, str]] = {
    400: {"message": "Invalid value for 'temperature'.", "param": "temperature"},
    401: {"message": "Incorrect API key provided: fake.", "code": "invalid_api_key"},
    403: {
        "message": "Country, region, or territory not supported",
        "kind": "request_forbidden",
        "code": "unsupported_country_region_territory",
    },
    404: {
        "message": "The model `fake` does not exist or you do not have access to it.",
        "code": "model_not_found",
    },
    422: {"message": "Unprocessable entity."},
    429: {
        "message": "Rate limit reached for requests. Please try again later.",
        "kind": "requests",
        "code": "rate_limit_exceeded",
    },
    500: {
        "message": "The server had an error while processing your request. Sorry about that!",
        "kind": "server_error",
    },
    503: {
        "message": "The server is currently overloaded with other requests. Please try again later",
        "kind": "server_error",
    },
    529: {"message": "Overloaded", "kind": "overloaded_error"},
}


def refuse(reply: Reply, status: int, retry_after: str = "") -> None:
    headers = {"Retry-After": retry_after} if retry_after else {}
    reply.error(status, **STATUS_ERRORS.get(status, STATUS_ERRORS[500]), headers=headers)


def _refusal(status: int) -> Scenario:
    def refusal(reply: Reply, retry_after: str = "") -> None:
        refuse(reply, status, retry_after)

    refusal.__doc__ = f"Error {status}: {STATUS_ERRORS[status]['message']}"
    return refusal


SCENARIOS |= {str(status): _refusal(status) for status in STATUS_ERRORS}


@scenario
def context(reply: Reply, style: str = "openai") -> None:
    """400 for a conversation that is too long, as openai, llamacpp, vllm or anthropic send it."""
    limit, token_count = 4096, 9412
    if style == "openai":
        words = f"However, your messages resulted in {token_count} tokens."
        reply.error(
            400,
            f"This model's maximum context length is {limit} tokens. {words} "
            "Please reduce the length of the messages.",
            code="context_length_exceeded",
            param="messages",
        )
    elif style == "llamacpp":
        words = (
            f"request ({token_count} tokens) exceeds the available context size ({limit} tokens)"
        )
        error = {"code": 400, "message": f"{words}, try increasing it"}
        error |= {
            "type": "exceed_context_size_error",
            "n_prompt_tokens": token_count,
            "n_ctx": limit,
        }
        reply.whole(400, as_json({"error": error}))
    elif style == "vllm":
        words = (
            f"However, you requested {token_count} tokens ({token_count - 200} in the messages, "
        )
        message = (
            f"This model's maximum context length is {limit} tokens. {words}200 in the "
            "completion). Please reduce the length of the messages or completion."
        )
        error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
        reply.whole(400, as_json({"error": error}))
    elif style == "anthropic":
        reply.error(400, f"prompt is too long: {token_count} tokens > {limit} maximum")
    else:
        reply.error(400, f"fake context: no such style: {style}")


@scenario
def flaky(reply: Reply, times: int = 1, status: str = "503", key: str = "", n: int = 20) -> None:
    """Fails the first `times` requests for a key (a status, or drop), then answers."""
    if reply.failures(key) > times:
        count(reply, n)
    elif status == "drop":
        reply.drop()
    else:
        refuse(reply, int(status))

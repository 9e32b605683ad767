"""Streams in the formats of common servers, as lists of events.

They are short and contain only what is special about a server: unused members are left out. A `str`
is sent unchanged, with its own field names; anything else as the JSON of a `data:` line.
"""

from __future__ import annotations

from typing import Any

Shape = list[Any]


def delta_chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """An ordinary chunk."""
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call_chunk(**members: Any) -> dict[str, Any]:
    """A chunk with one fragment of a tool call; `name` and `arguments` go into its function."""
    function = {k: members.pop(k) for k in ("name", "arguments") if k in members}
    return delta_chunk(tool_calls=[members | {"function": function}])


DONE = "data: [DONE]"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
COUNTED = {"model": "m-1", "choices": [], "usage": USAGE}

SHAPES: dict[str, Shape] = {
    # First the role alone, with content null; usage after the finish reason, with `timings`.
    "llamacpp": [
        delta_chunk(role="assistant", content=None),
        delta_chunk(reasoning_content="hm"),
        delta_chunk(content="Hello"),
        delta_chunk("stop"),
        COUNTED | {"timings": {"predicted_per_second": 90.1}},
        DONE,
    ],
    # Older versions send an error in the stream with a field name of its own.
    "llamacpp_old_error": [delta_chunk(content="Hel"), 'error: {"code":500,"message":"Boom."}'],
    "llamacpp_error": [
        delta_chunk(content="Hel"),
        {"error": {"code": 500, "message": "Boom.", "type": "server_error"}},
    ],
    # Usage so far in every chunk; empty strings for missing values.
    "vllm": [
        delta_chunk(role="assistant", content="") | {"usage": USAGE | {"completion_tokens": 0}},
        delta_chunk(reasoning="hm", reasoning_content="hm")
        | {"usage": USAGE | {"completion_tokens": 1}},
        delta_chunk(content="Hello", reasoning=None) | {"usage": USAGE},
        delta_chunk("stop", content="") | {"usage": USAGE},
        COUNTED,
        DONE,
    ],
    # Every piece of a call has a different ID; only the first has the name.
    "vllm_calls": [
        call_chunk(index=0, id="call-a", type="function", name="add", arguments=None),
        call_chunk(index=0, id="call-b", arguments='{"a": 1'),
        call_chunk(index=0, id="call-c", arguments="}"),
        call_chunk(index=1, id="call-d", type="function", name="sub", arguments=""),
        call_chunk(index=1, id="call-e", arguments='{"b": 2}'),
        delta_chunk("tool_calls", content=""),
        DONE,
    ],
    "vllm_error": [
        delta_chunk(content="Hel"),
        {"object": "error", "message": "Boom.", "type": "BadRequestError", "code": 400},
        DONE,
    ],
    # The role in every chunk; reasoning in `reasoning`.
    "ollama": [
        delta_chunk(role="assistant", content="", reasoning="hm"),
        delta_chunk(role="assistant", content="Hello"),
        delta_chunk("stop", role="assistant", content=""),
        COUNTED,
        DONE,
    ],
    # Whole calls, all with index 0 and with different IDs.
    "ollama_calls": [
        call_chunk(index=0, id="call_1", type="function", name="add", arguments='{"a": 1}'),
        call_chunk(index=0, id="call_2", type="function", name="sub", arguments='{"b": 2}'),
        delta_chunk("tool_calls", role="assistant", content=""),
        DONE,
    ],
    # Older versions: neither index nor ID.
    "ollama_old_calls": [
        call_chunk(name="add", arguments='{"a": 1}'),
        call_chunk(name="sub", arguments='{"b": 2}'),
        delta_chunk("stop", role="assistant", content=""),
        DONE,
    ],
    # No index, the ID with every piece.
    "calls_by_id": [
        call_chunk(id="c1", name="add", arguments=""),
        call_chunk(id="c1", arguments='{"a": '),
        call_chunk(id="c2", name="sub", arguments='{"b": 2}'),
        call_chunk(id="c1", arguments="1}"),
        delta_chunk("tool_calls"),
        DONE,
    ],
    # The name is repeated in every piece.
    "calls_named_often": [
        call_chunk(index=0, id="c1", name="add", arguments='{"a"'),
        call_chunk(index=0, id="c1", name="add", arguments=": 1}"),
        call_chunk(index=1, id="c1", name="sub", arguments='{"b": 2}'),
        delta_chunk("tool_calls"),
        DONE,
    ],
    # Arguments as an object instead of text.
    "calls_as_objects": [
        call_chunk(index=0, id="c1", name="add", arguments={"a": 1}),
        call_chunk(index=1, id="c2", name="sub", arguments={"b": 2}),
        delta_chunk("tool_calls"),
        DONE,
    ],
    "function_call": [
        delta_chunk(role="assistant", content=None, function_call={"name": "add", "arguments": ""}),
        delta_chunk(function_call={"arguments": '{"a": '}),
        delta_chunk(function_call={"arguments": "1}"}),
        delta_chunk("function_call"),
        DONE,
    ],
    # Nulls and empty strings for missing values; the finish reason is "" until there is one.
    "lmstudio": [
        delta_chunk("", role="assistant", content="", tool_calls=None, function_call=None),
        delta_chunk("", content=None, reasoning_content="hm", tool_calls=None),
        delta_chunk("", content="Hello", reasoning_content="", tool_calls=[]),
        delta_chunk("stop", content=""),
        COUNTED,
        DONE,
    ],
    "lmstudio_error": [
        delta_chunk(content="Hel"),
        'event: error\ndata: {"error":{"message":"Boom."}}',
    ],
    # Comments while waiting; details that repeat the reasoning; usage with an empty delta.
    "openrouter": [
        ": OPENROUTER PROCESSING",
        ": OPENROUTER PROCESSING",
        delta_chunk(
            role="assistant", content="", reasoning="hm", reasoning_details=[{"text": "hm"}]
        ),
        delta_chunk(role="assistant", content="Hello"),
        delta_chunk("stop", role="assistant", content=""),
        delta_chunk(role="assistant", content="") | {"usage": USAGE | {"cost": 0.01}},
        DONE,
    ],
    "openrouter_error": [
        delta_chunk(content="Hel"),
        delta_chunk("error", content="") | {"error": {"code": 502, "message": "Boom."}},
    ],
    "openrouter_limited": [
        ": OPENROUTER PROCESSING",
        delta_chunk("error", content="") | {"error": {"code": 429, "message": "Slow down."}},
    ],
    # Reasoning and text as parts of a list.
    "mistral": [
        delta_chunk(role="assistant", content=""),
        delta_chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        delta_chunk(content=[{"type": "text", "text": "Hello"}]),
        delta_chunk("stop", content="") | {"usage": USAGE},
        DONE,
    ],
    # Tags in the text, split like the model's tokens. The prompt template has already opened the
    # reasoning: DeepSeek-R1, QwQ, Qwen3 on a server without a reasoning parser.
    "think_end": [
        delta_chunk(content="h"),
        delta_chunk(content="m</th"),
        delta_chunk(content="ink>\n\nHello"),
        delta_chunk("stop"),
        COUNTED,
        DONE,
    ],
    # gpt-oss on a server without a parser.
    "harmony": [
        *(
            delta_chunk(content=piece)
            for piece in (
                "<|channel|>analysis<|mess",
                "age|>hm<|end|><|start|>assistant<|chan",
                "nel|>final<|message|>Hello<|ret",
                "urn|>",
            )
        ),
        delta_chunk("stop"),
        COUNTED,
        DONE,
    ],
    "think_tags": [
        delta_chunk(role="assistant", content=""),
        *[
            delta_chunk(content=piece)
            for piece in ("<th", "ink>", "\n", "hm</", "think>", "\n\n", "Hello")
        ],
        delta_chunk("stop"),
        COUNTED,
        DONE,
    ],
    # The end of the reasoning and the first text in one chunk.
    "both_at_once": [
        delta_chunk(content="Hello", reasoning_content="hm"),
        delta_chunk("stop") | {"usage": USAGE},
        DONE,
    ],
    # Filter results without choices first and last; the filter ends the answer.
    "azure_filtered": [
        {"model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        delta_chunk(content="Hel"),
        delta_chunk("content_filter"),
        {
            "model": "",
            "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}],
        },
        DONE,
    ],
}

"""Streams in the shapes in which common servers send them, as the data of their events.

Shortened to what is peculiar: members that nobody reads are left out, and words are few. A `str` is
sent as it is, with its own field names; anything else as the JSON of a `data:` line.
"""

from __future__ import annotations

from typing import Any

Shape = list[Any]


def said(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """An ordinary chunk."""
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(**members: Any) -> dict[str, Any]:
    """A chunk with one fragment of a tool call; `name` and `arguments` go into its function."""
    function = {k: members.pop(k) for k in ("name", "arguments") if k in members}
    return said(tool_calls=[members | {"function": function}])


DONE = "data: [DONE]"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
COUNTED = {"model": "m-1", "choices": [], "usage": USAGE}

SHAPES: dict[str, Shape] = {
    # A role alone at first, content null; usage behind the finish, with timings of its own.
    "llamacpp": [
        said(role="assistant", content=None),
        said(reasoning_content="hm"),
        said(content="Hello"),
        said("stop"),
        COUNTED | {"timings": {"predicted_per_second": 90.1}},
        DONE,
    ],
    # An error in mid-stream of older versions has a field of its own.
    "llamacpp_old_error": [said(content="Hel"), 'error: {"code":500,"message":"Boom."}'],
    "llamacpp_error": [
        said(content="Hel"),
        {"error": {"code": 500, "message": "Boom.", "type": "server_error"}},
    ],
    # Usage so far in every chunk, empty strings for what is not there.
    "vllm": [
        said(role="assistant", content="") | {"usage": USAGE | {"completion_tokens": 0}},
        said(reasoning="hm", reasoning_content="hm") | {"usage": USAGE | {"completion_tokens": 1}},
        said(content="Hello", reasoning=None) | {"usage": USAGE},
        said("stop", content="") | {"usage": USAGE},
        COUNTED,
        DONE,
    ],
    # Each piece of one call has another ID; only the first has the name.
    "vllm_calls": [
        call(index=0, id="call-a", type="function", name="add", arguments=None),
        call(index=0, id="call-b", arguments='{"a": 1'),
        call(index=0, id="call-c", arguments="}"),
        call(index=1, id="call-d", type="function", name="sub", arguments=""),
        call(index=1, id="call-e", arguments='{"b": 2}'),
        said("tool_calls", content=""),
        DONE,
    ],
    "vllm_error": [
        said(content="Hel"),
        {"object": "error", "message": "Boom.", "type": "BadRequestError", "code": 400},
        DONE,
    ],
    # The role in every chunk; thoughts under `reasoning`.
    "ollama": [
        said(role="assistant", content="", reasoning="hm"),
        said(role="assistant", content="Hello"),
        said("stop", role="assistant", content=""),
        COUNTED,
        DONE,
    ],
    # Whole calls, all with index 0, each with an ID of its own.
    "ollama_calls": [
        call(index=0, id="call_1", type="function", name="add", arguments='{"a": 1}'),
        call(index=0, id="call_2", type="function", name="sub", arguments='{"b": 2}'),
        said("tool_calls", role="assistant", content=""),
        DONE,
    ],
    # Older versions: neither index nor ID.
    "ollama_old_calls": [
        call(name="add", arguments='{"a": 1}'),
        call(name="sub", arguments='{"b": 2}'),
        said("stop", role="assistant", content=""),
        DONE,
    ],
    # No index, the ID with every piece.
    "calls_by_id": [
        call(id="c1", name="add", arguments=""),
        call(id="c1", arguments='{"a": '),
        call(id="c2", name="sub", arguments='{"b": 2}'),
        call(id="c1", arguments="1}"),
        said("tool_calls"),
        DONE,
    ],
    # The name again with every piece.
    "calls_named_often": [
        call(index=0, id="c1", name="add", arguments='{"a"'),
        call(index=0, id="c1", name="add", arguments=": 1}"),
        call(index=1, id="c1", name="sub", arguments='{"b": 2}'),
        said("tool_calls"),
        DONE,
    ],
    # Arguments as an object instead of text.
    "calls_as_objects": [
        call(index=0, id="c1", name="add", arguments={"a": 1}),
        call(index=1, id="c2", name="sub", arguments={"b": 2}),
        said("tool_calls"),
        DONE,
    ],
    "function_call": [
        said(role="assistant", content=None, function_call={"name": "add", "arguments": ""}),
        said(function_call={"arguments": '{"a": '}),
        said(function_call={"arguments": "1}"}),
        said("function_call"),
        DONE,
    ],
    # Nulls and empty strings where nothing is; a finish reason of "" until there is one.
    "lmstudio": [
        said("", role="assistant", content="", tool_calls=None, function_call=None),
        said("", content=None, reasoning_content="hm", tool_calls=None),
        said("", content="Hello", reasoning_content="", tool_calls=[]),
        said("stop", content=""),
        COUNTED,
        DONE,
    ],
    "lmstudio_error": [
        said(content="Hel"),
        'event: error\ndata: {"error":{"message":"Boom."}}',
    ],
    # Comments while it waits; details that repeat the reasoning; usage with an empty delta.
    "openrouter": [
        ": OPENROUTER PROCESSING",
        ": OPENROUTER PROCESSING",
        said(role="assistant", content="", reasoning="hm", reasoning_details=[{"text": "hm"}]),
        said(role="assistant", content="Hello"),
        said("stop", role="assistant", content=""),
        said(role="assistant", content="") | {"usage": USAGE | {"cost": 0.01}},
        DONE,
    ],
    "openrouter_error": [
        said(content="Hel"),
        said("error", content="") | {"error": {"code": 502, "message": "Boom."}},
    ],
    "openrouter_limited": [
        ": OPENROUTER PROCESSING",
        said("error", content="") | {"error": {"code": 429, "message": "Slow down."}},
    ],
    # Thoughts and text as parts of a list.
    "mistral": [
        said(role="assistant", content=""),
        said(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        said(content=[{"type": "text", "text": "Hello"}]),
        said("stop", content="") | {"usage": USAGE},
        DONE,
    ],
    # The model's own tags, cut as its tokens are.
    # The prompt's template has opened the thought: DeepSeek-R1, QwQ, Qwen3 without a parser.
    "think_end": [
        said(content="h"),
        said(content="m</th"),
        said(content="ink>\n\nHello"),
        said("stop"),
        COUNTED,
        DONE,
    ],
    # gpt-oss without a parser.
    "harmony": [
        *(
            said(content=piece)
            for piece in (
                "<|channel|>analysis<|mess",
                "age|>hm<|end|><|start|>assistant<|chan",
                "nel|>final<|message|>Hello<|ret",
                "urn|>",
            )
        ),
        said("stop"),
        COUNTED,
        DONE,
    ],
    "think_tags": [
        said(role="assistant", content=""),
        *[
            said(content=piece)
            for piece in ("<th", "ink>", "\n", "hm</", "think>", "\n\n", "Hello")
        ],
        said("stop"),
        COUNTED,
        DONE,
    ],
    # The last thought and the first word in one chunk.
    "both_at_once": [
        said(content="Hello", reasoning_content="hm"),
        said("stop") | {"usage": USAGE},
        DONE,
    ],
    # A verdict without choices first and last; the filter ends the answer.
    "azure_filtered": [
        {"model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        said(content="Hel"),
        said("content_filter"),
        {
            "model": "",
            "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}],
        },
        DONE,
    ],
}

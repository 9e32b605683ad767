"""Responses in which model servers report their load: llama.cpp's GET /slots, vLLM's GET /metrics.

Each function takes the number of running completions and returns status, content type and body.
"""

from __future__ import annotations

import json
from collections.abc import Callable

WorkReply = Callable[[int], tuple[int, str, bytes]]

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
SLOTS = 4


def slots(in_work: int) -> tuple[int, str, bytes]:
    """llama.cpp's slots, the first ones busy."""
    slot_list = [
        {"id": n, "n_ctx": 4096, "speculative": False, "is_processing": n < in_work}
        for n in range(max(SLOTS, in_work))
    ]
    return 200, JSON, json.dumps(slot_list).encode()


def old_slots(in_work: int) -> tuple[int, str, bytes]:
    """The slots of a llama.cpp of 2024: a number instead of a boolean."""
    slot_list = [{"id": n, "state": int(n < in_work), "prompt": "x"} for n in range(SLOTS)]
    return 200, JSON, json.dumps(slot_list).encode()


def metrics(in_work: int) -> tuple[int, str, bytes]:
    """vLLM's metrics, the requests spread over two engines."""
    name = "vllm:num_requests_running"
    model = 'model_name="a{b} c"'
    text = f"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{{generation="0"}} 9731.0
# HELP {name} Number of requests in model execution batches.
# TYPE {name} gauge
{name}{{engine="0",{model}}} {in_work - in_work // 2}.0
{name}{{engine="1",{model}}} {in_work // 2}.0
{name}_peak{{engine="0",{model}}} 77.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",{model}}} 5.0
"""
    return 200, TEXT, text.encode()


def disabled(_: int) -> tuple[int, str, bytes]:
    """llama.cpp with --no-slots."""
    error = {"code": 501, "message": "This server does not support slots endpoint.", "type": "x"}
    return 501, JSON, json.dumps({"error": error}).encode()


def locked(_: int) -> tuple[int, str, bytes]:
    """A server that requires another key for this."""
    return 401, JSON, b'{"error":{"code":401,"message":"Invalid API Key"}}'


def garbage(_: int) -> tuple[int, str, bytes]:
    """A response of some other program at this address."""
    return 200, "text/html", b"<html>\xff\xfe vllm:num_requests_running NaN </html>"


def strange(_: int) -> tuple[int, str, bytes]:
    """JSON that is not from llama.cpp."""
    return 200, JSON, b'[{"id": 1, "is_processing": "yes"}]'

"""CPU per token and delay of Stop for each API but POST /chat/stream and the page.

Also for the library, and for each kind of provider.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from bench.load import FASTAPI, PACED, RATE, System, per_token, source, steady
from bench.merging import STREAMS
from bench.phases import FLOWING, closings, wait_for
from bench.processes import PORT_WITHIN, Child, HaltProcess, fake_upstream
from bench.readers import TOGETHER
from bench.sizes import Sizes
from bench.table import Row, at_most, p50_p99, percentile
from halt import Halt as Library
from tests.support.raw_http import (
    Address,
    chat,
    connect,
    event_source,
    fetch,
    open_websocket,
    request,
    socket_message,
    stop,
)

RELAY = "FastAPI relay"
READ: dict[str, System] = {
    RELAY: FASTAPI,
    "POST /chat": ("halt", "json", "/chat"),
    "GET /stream": ("halt", "event source", "/stream"),
    "POST /v1/chat/completions": ("halt", "json", "/v1/chat/completions"),
    "WebSocket, a stream each": ("halt", "ws", "/ws"),
    f"WebSocket, {TOGETHER} streams each": ("halt", "ws together", "/ws"),
}
TOKENS = (2, 6)  # before a Stop, chosen at random
PROVIDERS = ("openai", "azure", "anthropic")

#: Starts a stream with this prompt, stops it, and returns the time when the Stop was sent.
Stopping = Callable[[str], float]


def apis(sizes: Sizes) -> Iterator[Row]:
    """Rows for each API, the library and each kind of provider."""
    yield from costs(sizes)
    yield from stops(sizes)


# --- cost -----------------------------------------------------------------------------------------


def costs(sizes: Sizes) -> Iterator[Row]:
    """Rows about the CPU per token of each API and of the library's merge."""
    window = replace(sizes, load_seconds=sizes.api_seconds)
    cost = {name: served(measured, window) for name, measured in READ.items()}
    relay = cost.pop(RELAY)
    note = (
        f"{sizes.load_streams} streams x {RATE} tokens/s for {sizes.api_seconds:g} s, once; "
        "user and system time of all the server's processes"
    )
    for name, api_cost in cost.items():
        yield _over_relay(f"CPU per token, {name}", api_cost, relay, note)
    yield _over_relay(
        f"CPU per token, library, {STREAMS} streams merged",
        merged(sizes),
        served(READ[RELAY], replace(window, load_streams=STREAMS)),
        f"{STREAMS} streams x {RATE} tokens/s for {sizes.api_seconds:g} s, once, in its own "
        "process; the relay has as many streams here",
    )


def _over_relay(figure: str, cost: float, relay: float, note: str) -> Row:
    return at_most(
        f"{figure}: Halt / FastAPI relay (JSON)",
        cost / relay,
        0.50,
        0.25,
        measured=f"{cost / relay:.2f} ({cost:.0f} µs / {relay:.0f} µs)",
        note=note,
    )


def served(measured: System, window: Sizes) -> float:
    """Microseconds of CPU per token in a server."""
    return per_token(steady(measured, window))


def merged(sizes: Sizes) -> float:
    """Microseconds of CPU per token in the library, including the consumer."""
    window = (sizes.load_settle, sizes.api_seconds)
    with (
        source() as (_, url),
        Child("bench.merging", url, PACED, *map(str, window)) as child,
    ):
        facts = child.read_json(PORT_WITHIN + sum(window))
    return float(facts["cpu"]) / int(facts["tokens"]) * 1e6


# --- Stop -----------------------------------------------------------------------------------------


def stops(sizes: Sizes) -> Iterator[Row]:
    """Rows about Stop through each API and with each kind of provider."""
    with fake_upstream() as upstream:
        at = urlsplit(upstream)
        origin = f"{at.scheme}://{at.netloc}"
        other_providers = {
            "AZURE_OPENAI_ENDPOINT": origin,
            "AZURE_OPENAI_API_KEY": "fake",
            "AZURE_OPENAI_DEPLOYMENT": FLOWING.model,
            "ANTHROPIC_BASE_URL": origin,
            "ANTHROPIC_API_KEY": "fake",
        }
        flowing = Library(base_url=upstream, api_key="fake", model=FLOWING.model)
        with HaltProcess(upstream, **other_providers) as halt, flowing as library:
            fetch(
                halt.address, request("GET", "/healthz")
            )  # loading the clients of its providers takes long
            post = partial(over_http, halt.address, chat)
            get = partial(over_http, halt.address, event_source)
            model = f"openai/{FLOWING.model}"
            ways: dict[str, Stopping] = {
                "POST /chat": partial(post, "/chat", model, b" \r\n"),
                "GET /stream": partial(get, "/stream", model, b'"type":"content"'),
                "POST /v1/chat/completions": partial(
                    post, "/v1/chat/completions", model, b'"delta":{"content"'
                ),
                "WebSocket": partial(over_websocket, halt.address, model),
                "library": partial(in_library, library),
            }
            for kind in PROVIDERS:
                model = f"{kind}/{FLOWING.model}"
                ways[f"provider {kind}"] = partial(post, "/chat/stream", model, b'"type":"content"')
            for name, stopping in ways.items():
                yield _stopped(name, stopping, upstream, sizes.api_stops)


def _stopped(name: str, stopping: Stopping, upstream: str, times: int) -> Row:
    stopping("start-up costs")
    prompts = [secrets.token_urlsafe(12) for _ in range(times)]
    stopped = {prompt: stopping(prompt) for prompt in prompts}
    values = list(closings(upstream, stopped).values())
    return at_most(
        f"Stop sent → upstream closed, {name}, p50 / p99",
        percentile(values, 99),
        50,
        10,
        " ms",
        f"{p50_p99(values)} ms",
        f"{times} Stops of a single stream that flows at 100 tokens/s",
    )


def over_http(
    address: Address, make: Callable[..., bytes], path: str, model: str, token: bytes, prompt: str
) -> float:
    """Stop a stream over HTTP. `token`: bytes that are in each piece of the stream."""
    stream_id = secrets.token_urlsafe(12)
    with connect(address) as sock:
        sock.sendall(make(path, model, prompt, stream_id))
        wait_for(sock, b"", token, random.randint(*TOKENS))
        at = time.monotonic()
        fetch(address, stop(stream_id))
        wait_for(sock, b"", b"0\r\n\r\n", 1)
    return at


def over_websocket(address: Address, model: str, prompt: str) -> float:
    """Stop a stream over a WebSocket, by a message on it."""
    stream_id = secrets.token_urlsafe(12)
    messages = [{"role": "user", "content": prompt}]
    with open_websocket(address, "/ws") as sock:
        sock.sendall(socket_message(type="start", id=stream_id, model=model, messages=messages))
        wait_for(sock, b"", b'"type":"content"', random.randint(*TOKENS))
        at = time.monotonic()
        sock.sendall(socket_message(type="stop", id=stream_id))
        wait_for(sock, b"", b'"type":"receipt"', 1)
    return at


def in_library(library: Library, prompt: str) -> float:
    """Stop a generation in this process."""
    generation = library.generate(prompt)
    pieces = generation.text_stream
    for _ in range(random.randint(*TOKENS)):
        next(pieces)
    at = time.monotonic()
    generation.stop()
    return at

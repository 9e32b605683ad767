"""The main class of the library, `Halt`: generations as in the server, without a server.

    from halt import Halt

    with Halt(base_url="http://127.0.0.1:11434/v1", model="llama3.2") as halt:
        gen = halt.generate("Why is the sky blue?")
        for piece in gen.text_stream:
            print(piece, end="", flush=True)
        print(gen.metrics.tokens_per_second)

`gen.stop()`, from any thread, stops the generation and closes its connection to the model. This
module is the composition root for programs, as `app.py` is for the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack, overload

import msgspec

from halt.config.environment import load
from halt.config.provider_setup import with_provider
from halt.config.providers import Kind
from halt.config.settings import Config, ConfigError
from halt.core.decoding import CHAT_REQUEST
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest, Message, Upstream
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.core.tools import Tool, Toolbox, ToolError  # noqa: F401 - exported by `halt`
from halt.errors import Draining, HaltError, RequestError
from halt.library.feed import Feed, Followers
from halt.library.handle import (  # noqa: F401 - exported by `halt`
    Callbacks,
    Generation,
    GenerationError,
    Result,
)
from halt.library.merge import Merged
from halt.providers.factory import make_upstream

#: A prompt: the text of one user message, a whole conversation, or a complete request.
Prompt = str | Sequence[Message | Mapping[str, Any]] | ChatRequest


#: Fields whose values may be any JSON; JSON has no NaN.
JSON_FIELDS = frozenset({"messages", "extra_body", "tools", "tool_choice", "response_format"})


class Options(TypedDict, total=False):
    """The optional fields of a request, as OpenAI's API defines them; `id` is the stream ID."""

    id: str
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    max_completion_tokens: int
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | list[str]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    reasoning_effort: str
    response_format: dict[str, Any]
    extra_body: dict[str, Any]


class Halt:
    """A model server (or several), and all generations on it. Thread-safe."""

    def __init__(
        self,
        *,
        provider: Kind | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        api_version: str | None = None,
        model: str | None = None,
        config: Config | None = None,
        upstream: Upstream | None = None,
        tools: Iterable[Tool | Callable[..., Any]] = (),
    ) -> None:
        """Values that are not given come from `config`, or from the environment without one.

        With `provider`, `base_url` or `api_key` there is one provider, of the kind `provider`
        (default: "openai"). An API key from the environment is then sent only to the server of the
        environment, never to another `base_url`. On Azure, `model` is the deployment, and
        `api_version` is used.

        `upstream` replaces the model server and is closed together with this object. `tools` are
        functions that the model may call. Raises ConfigError if a setting is wrong or there is no
        model server.
        """
        settings = with_provider(
            config or load(),
            provider=provider,
            base_url=base_url,
            api_key=api_key,
            api_version=api_version,
            model=model,
        )
        if upstream is None and not settings.has_provider and not settings.upstream_url:
            raise ConfigError(
                "There is no model server: give base_url or api_key, or set OPENAI_BASE_URL or "
                "OPENAI_API_KEY."
            )
        self._closed = False
        self._tools = Toolbox(tools)
        self._generations = GenerationService(
            settings, upstream or make_upstream(settings), StopRegistry()
        )
        self._graceful_timeout = settings.graceful_timeout
        self._followers = Followers(self._generations)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Iterable[Tool | Callable[..., Any]] | None = None,
        on_token: Callable[[str], object] | None = None,
        on_complete: Callable[[Result], object] | None = None,
        on_error: Callable[[HaltError], object] | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Start a generation and return at once. `tools` replace those of this Halt.

        Callbacks are called one after the other, in a thread that follows the generation:
        `on_token` with each piece of text, then one of the others, once. `on_complete` gets the
        Result, also after a Stop; `on_error` gets a GenerationError, or an OffsetLost if
        `on_token` is so slow that text was dropped.

        Raises RequestError, which names the invalid field, StreamInUse, AtCapacity, Draining.
        """
        if self._closed:
            raise Draining("This Halt is closed.")
        toolbox = self._tools if tools is None else Toolbox(tools)
        run = self._generations.start(build_request(prompt, options), tools=toolbox)
        generation = Generation(self._generations, self._followers, run)
        callbacks = Callbacks(on_token, on_complete, on_error)
        if callbacks:
            try:
                callbacks.follow(run, self._followers)
            except HaltError:
                generation.cancel()
                raise
        return generation

    @overload
    def merge(
        self, members: Mapping[str, Prompt | Generation], **options: Unpack[Options]
    ) -> Merged: ...

    @overload
    def merge(self, members: Iterable[Generation]) -> Merged: ...

    def merge(
        self,
        members: Mapping[str, Prompt | Generation] | Iterable[Generation],
        **options: Unpack[Options],
    ) -> Merged:
        """Read several generations as one stream of `(label, event)` pairs, as they arrive.

        A prompt is started here, with `options`; an existing generation is read from its beginning.
        The labels of a list are the stream IDs. Raises the errors of `generate`; the generations
        that were started here are then stopped.
        """
        if not isinstance(members, Mapping):
            members = {generation.id: generation for generation in members}
        feed = Feed()
        generations: dict[str, Generation] = {}
        started: list[Generation] = []
        try:
            for label, member in members.items():
                if isinstance(member, Generation):
                    generations[label] = member
                else:
                    generations[label] = self.generate(member, **options)
                    started.append(generations[label])
                generations[label].feed(feed, label)
        except HaltError:
            feed.close()
            for generation in started:
                generation.cancel()
            raise
        return Merged(self._generations, feed, generations)

    def get(self, stream_id: str) -> Generation:
        """A handle on a running generation, or an ended one still kept. Raises UnknownStream."""
        return Generation(
            self._generations, self._followers, self._generations.run(StreamKey("", stream_id))
        )

    def stop(self, stream_id: str) -> Receipt:
        """Stop a generation by its ID, also one that is started within the next 30 s."""
        return self._generations.stop(StreamKey("", stream_id))

    def close(self) -> None:
        """End every generation with a terminal event, and wait for their threads.

        The events up to then can still be read. If a callback does not return within
        `Config.graceful_timeout` seconds, this is logged and `close` returns. May be repeated.
        """
        self._closed = True
        self._generations.close()
        self._followers.close(self._graceful_timeout)


def build_request(prompt: Prompt, options: Options) -> ChatRequest:
    """Build and check a request. Raises RequestError, which names the invalid field."""
    fields: dict[str, Any]
    if isinstance(prompt, ChatRequest):
        fields = msgspec.to_builtins(prompt)
    elif isinstance(prompt, str):
        fields = {"messages": [{"role": "user", "content": prompt}]}
    else:
        fields = {"messages": prompt}
    try:
        fields = msgspec.to_builtins({**fields, **options})
    except (TypeError, RecursionError) as exc:  # a value that JSON cannot represent
        raise RequestError(
            f"The request cannot be converted to JSON: {exc}", field="body"
        ) from None
    for name, value in fields.items():
        try:
            # Rejects lone surrogates, NaN, and numbers that are too long.
            msgspec.json.encode(value)
            if name in JSON_FIELDS:
                json.dumps(value, allow_nan=False)
        except (ValueError, OverflowError, RecursionError) as exc:
            raise RequestError(f"{name}: {exc}", field=name) from None
    return CHAT_REQUEST.convert(fields)

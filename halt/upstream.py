"""OpenAI and every server that speaks its chat completions.

The openai client makes the request and reads refusals; the stream is decoded by `halt.decoder`.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx2
import msgspec
import openai

from halt.chat import ChatRequest, Part
from halt.config import Config
from halt.decoder import ChatDecoder
from halt.embedded import REQUEST_EXTRA
from halt.errors import UpstreamError
from halt.faults import fault
from halt.http1 import Body
from halt.line import TICK, Line, on_line
from halt.transport import Transport

logger = logging.getLogger(__name__)


class ChatReply:
    """The Reply of an OpenAI-compatible server."""

    def __init__(self, body: Body, model: str, secret: str = "") -> None:
        self._body = body
        self._secret = secret
        self._decoder = ChatDecoder()
        self._asked = model

    @property
    def model(self) -> str:
        return self._decoder.model or self._asked

    @property
    def finish_reason(self) -> str | None:
        return self._decoder.finish_reason

    @property
    def usage(self) -> dict[str, Any] | None:
        return self._decoder.usage

    @property
    def opaque(self) -> None:
        return None

    def read(self, timeout: float = TICK) -> Part:
        try:
            self._decoder.check()  # a fault that came with the last text waits for nothing more
            raw = self._body.read(timeout)
            return self._decoder.feed(raw) if raw else self._decoder.end()
        except UpstreamError as exc:
            raise exc.without(self._secret) from exc
        except httpx2.HTTPError as exc:
            if self.finish_reason is not None:  # only the farewell is missing
                return self._decoder.end()
            raise fault(exc, self._secret) from exc

    def finish(self) -> None:
        self._body.finish()

    def close(self) -> None:
        self._body.close()


class OpenAIUpstream:
    """OpenAI itself or any server that speaks its chat completions."""

    def __init__(self, config: Config, transport: Transport | None = None) -> None:
        self._config = config
        self._transport = transport or Transport(config.connect_timeout)
        # No timeouts and no retries here: the limits of a run are watched by `generation`, which
        # interrupts the line, and a retry inside the client could not be stopped.
        self._client = openai.OpenAI(
            api_key=config.upstream_key,
            base_url=config.upstream_url or "http://127.0.0.1:9/v1",
            max_retries=0,
            timeout=None,
            http_client=httpx2.Client(transport=self._transport, follow_redirects=True),
        )
        self._secret = config.upstream_key
        self._lock = threading.Lock()  # protects the two facts that are learnt on the way
        self._model = config.known_model
        self._asks_usage = True

    def open(self, request: ChatRequest, line: Line) -> ChatReply:
        if not self._config.upstream_url:
            raise UpstreamError("no_model")
        model = request.model or self.default_model(line)
        options = request.options()
        if self._config.on_openai and "max_tokens" in options:
            # OpenAI's current models only take the newer name.
            options["max_completion_tokens"] = options.pop("max_tokens")
        if self._config.wants_embedded:  # lets it notice a Stop while it reads a prompt
            options["extra_body"] = {**options.get("extra_body", {}), **REQUEST_EXTRA}
        messages = [
            {k: v for k, v in each.items() if k != "opaque"}
            for each in msgspec.to_builtins(request.messages)
        ]
        with on_line(line):
            try:
                response = self._create(model, messages, options)
            except openai.APIError as exc:
                raise fault(exc, self._secret) from exc
        body = response.extensions["halt.body"]
        assert isinstance(body, Body)  # noqa: S101 - our own transport put it there
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream") or "content-encoding" in response.headers:
            body.close()
            raise UpstreamError("upstream_invalid", f"an answer of type {kind[:80]!r}")
        return ChatReply(body, model, self._secret)

    def _create(self, model: str, messages: Any, options: dict[str, Any]) -> httpx2.Response:
        create = self._client.chat.completions.with_raw_response.create
        if self._asks_usage:
            try:
                return create(
                    model=model,
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                    **options,
                ).http_response
            except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                if "stream_options" not in str(exc.body):
                    raise
                logger.info("the model's server refuses stream_options; usage is estimated")
                with self._lock:
                    self._asks_usage = False
        return create(model=model, messages=messages, stream=True, **options).http_response

    def default_model(self, line: Line) -> str:
        """The model that answers when a request names none. Raises UpstreamError, Interrupted."""
        if not self._model:
            names = self.models(line)
            if not names:
                raise UpstreamError("model_not_found", "its list of models is empty")
            with self._lock:
                self._model = self._model or names[0]
        return self._model

    @property
    def known_model(self) -> str:
        """The default model, empty as long as it was never asked for."""
        return self._model

    def models(self, line: Line) -> list[str]:
        if not self._config.upstream_url:
            raise UpstreamError("no_model")
        with on_line(line):
            try:
                names = [model.id for model in self._client.models.list().data]
            except openai.NotFoundError as exc:
                raise UpstreamError("upstream_invalid", "it has no list of models") from exc
            except openai.APIError as exc:
                raise fault(exc, self._secret) from exc
            except (AttributeError, TypeError, ValueError) as exc:  # the client expects the shape
                raise UpstreamError("upstream_invalid", "its list of models is malformed") from exc
        if not all(isinstance(name, str) for name in names):
            raise UpstreamError("upstream_invalid", "its list of models is malformed")
        return names

    def close(self) -> None:
        self._transport.close()

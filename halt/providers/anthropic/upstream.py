"""The provider Anthropic: sends requests by its client and translates refusals."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Any

import anthropic
import httpx2

from halt.config.providers import ProviderSettings
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply
from halt.providers.anthropic.request import bad_request, body_of, may_think
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.base import Provider
from halt.providers.client_transport import http_client, post, warm_up
from halt.providers.continuation import ContinuationMode
from halt.transport.pool import Transport

MESSAGES = "/v1/messages"
MODELS_MAX = 1000  # of one page of the list, the API's maximum
#: The end of an address that was copied with the path of a request; it is removed.
ENDPOINT = re.compile(r"(?<!/)/++(?:v1(?:/++(?:messages|models|complete))?|messages)?/*+$")
BUDGET_MIN = 1024  # tokens of thinking, the API's minimum

#: OpenAI's efforts -> Anthropic's effort, and the thinking budget in tokens for older models.
EFFORTS = {
    "minimal": ("low", 1024),
    "low": ("low", 2048),
    "medium": ("medium", 8192),
    "high": ("high", 16_384),
    "xhigh": ("xhigh", 32_768),
    "max": ("max", 32_768),
}

#: Models that continue an assistant message at the end of the request, unless they think. Models
#: from 4.6 on refuse it.
PREFIXED = re.compile(r"claude-(?:[23]|instant|(?:opus|sonnet|haiku)-4(?:-[015])?(?:-\d{8})?$)")

logger = logging.getLogger(__name__)

warm_up(
    anthropic.Anthropic,
    MESSAGES,
    anthropic.Stream[Any],
    anthropic.BadRequestError,
    limit=MODELS_MAX,
)


class AnthropicUpstream(Provider):
    """Anthropic, or another server that implements its Messages API."""

    client_error = anthropic.APIError
    address_setting = "ANTHROPIC_BASE_URL"
    list_path = "/v1/models"
    usual_end = ""

    def __init__(self, settings: ProviderSettings, transport: Transport | None = None) -> None:
        super().__init__(settings, transport)
        self._base = ENDPOINT.sub("", settings.base_url)
        # No timeouts and no retries in the client, for the reasons in `halt.providers.openai`.
        self._client = anthropic.Anthropic(
            api_key=settings.key,
            base_url=self._base,
            max_retries=0,
            timeout=None,
            http_client=http_client(self._transport),
        )
        # The client creates it on first use: do that here, in one thread.
        self._models = self._client.models.with_raw_response
        self._budgeted: set[str] = set()  # models that take a budget instead of an effort

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        setting = self._settings.continues
        accepts_prefix = PREFIXED.match(model) and (request.reasoning_effort or "none") == "none"
        return (
            "trailing"
            if setting == "prefix" or (setting == "auto" and accepts_prefix)
            else "instruction"
        )

    def _send(
        self,
        model: str,
        request: ChatRequest,
        connection: UpstreamConnection,
        mode: ContinuationMode | None = None,
    ) -> Reply:
        body = body_of(request, self._settings.max_tokens)
        body |= {"model": model, "stream": True}
        create = partial(self._create, model, body, request)
        return self._open_stream(connection, model, MESSAGES, create, MessagesDecoder())

    def _create(self, model: str, body: dict[str, Any], request: ChatRequest) -> httpx2.Response:
        """Send the request, twice if the model refuses an effort and needs a thinking budget."""
        # Newer models do not have these fields; older models and other servers do.
        sampling = {"temperature": request.temperature, "top_p": request.top_p}
        # Always sent; they override fields of the same name:
        extra = {k: v for k, v in sampling.items() if v is not None}
        extra |= {**self._settings.extra_body, **(request.extra_body or {})}

        def create(body: dict[str, Any]) -> httpx2.Response:
            return post(self._client, MESSAGES, {**body, **extra}, anthropic.Stream[Any])

        effort = request.reasoning_effort or "none"
        if effort not in {*EFFORTS, "none"}:
            raise bad_request(f"reasoning_effort must be none or one of {', '.join(EFFORTS)}")
        if effort == "none" or not may_think(request.messages):
            return create(body)
        native_effort, budget = EFFORTS[effort]
        if request.max_completion_tokens or request.max_tokens:
            budget = min(budget, body["max_tokens"] // 2)  # thinking counts towards the limit
        else:
            body = {**body, "max_tokens": body["max_tokens"] + budget}
        if model not in self._budgeted:
            thinking = {"type": "adaptive", "display": "summarized"}
            output = {**body.get("output_config", {}), "effort": native_effort}
            try:
                return create({**body, "thinking": thinking, "output_config": output})
            except anthropic.BadRequestError as exc:
                if not re.search("adaptive|effort|thinking", str(exc.body)):
                    raise
                logger.info("%s refuses an effort; sending a thinking budget instead", model)
                self._remember(self._budgeted, model)
        if budget >= BUDGET_MIN:
            body = {**body, "thinking": {"type": "enabled", "budget_tokens": budget}}
        return create(body)

    def _request_models(self) -> httpx2.Response:
        return self._models.list(limit=MODELS_MAX).http_response

"""The provider Anthropic: sends requests by its client and translates refusals."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2

from halt.config.providers import ProviderSettings
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply
from halt.model_info import Abilities, ModelGroup, with_abilities
from halt.providers.anthropic.request import bad_request, body_of, may_think
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.base import Provider
from halt.providers.client_transport import http_client, post, warm_up
from halt.providers.continuation import ContinuationMode
from halt.transport.pool import Transport

MESSAGES = "/v1/messages"
#: A request has at most 32 MB, in base64: 1 MB of it for the texts.
ON_ANTHROPIC = Abilities(pdf=True, parts_bytes=23_000_000)
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

#: What Anthropic says of a temperature together with top_p on models from Claude 4.1 on.
BOTH_REFUSED = re.compile(r"temperature\W+and\W+top_p\W+cannot both")

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
            http_client=http_client(self._transport, settings.headers),
        )
        # The client creates it on first use: do that here, in one thread.
        self._models = self._client.models.with_raw_response
        self._budgeted: set[str] = set()  # models that take a budget instead of an effort
        self._without_both: set[str] = set()  # models that refuse temperature together with top_p

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        setting = self._continues(model)
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
        # Always sent; they override fields of the same name:
        always = {**self._extra_body(model), **(request.extra_body or {})}
        sampling = _sampling(request)

        def create(body: dict[str, Any]) -> httpx2.Response:
            """Send the body, again without top_p if the model refuses it with a temperature."""

            def send(sampling: dict[str, float]) -> httpx2.Response:
                full_body = {**body, **sampling, **always}
                return post(self._client, MESSAGES, full_body, anthropic.Stream[Any])

            if len(sampling) < 2 or "top_p" in always:
                return send(sampling)
            temperature_alone = {"temperature": sampling["temperature"]}
            if model in self._without_both:
                return send(temperature_alone)
            try:
                return send(sampling)
            except anthropic.BadRequestError as exc:
                if not BOTH_REFUSED.search(str(exc.body)):
                    raise
                logger.info("%s refuses top_p with a temperature; sending no top_p", model)
                self._remember(self._without_both, model)
            return send(temperature_alone)

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

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        """Anthropic's own server takes requests of 32 MB, and all its models read PDFs.

        https://docs.claude.com/en/api/overview#request-size-limits
        """
        groups = super().catalog(connection)
        is_own = urlsplit(self._base).hostname == "api.anthropic.com"
        return with_abilities(groups, ON_ANTHROPIC) if is_own else groups

    def _request_models(self) -> httpx2.Response:
        return self._models.list(limit=MODELS_MAX).http_response


def _sampling(request: ChatRequest) -> dict[str, float]:
    """The sampling fields that are set. Newer models do not have them; older ones do.

    OpenAI's scale of temperatures ends at 2, Anthropic's at 1: a higher value is sent as 1.
    """
    sampling: dict[str, float] = {}
    if request.temperature is not None:
        sampling["temperature"] = min(request.temperature, 1.0)
    if request.top_p is not None:
        sampling["top_p"] = request.top_p
    return sampling

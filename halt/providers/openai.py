"""The providers OpenAI, Azure OpenAI and all servers with an OpenAI-compatible API.

The openai client sends the request and raises refusals; `halt.providers.chat_completions` decodes
the stream.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import openai

from halt.config.addresses import is_openai_url
from halt.config.providers import ProviderSettings
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply
from halt.errors import UpstreamError
from halt.model_info import Abilities, ModelGroup, with_abilities
from halt.providers.base import REMEMBERED_MAX, Provider
from halt.providers.chat_completions import ChatDecoder
from halt.providers.client_transport import NOWHERE, http_client, post, warm_up
from halt.providers.continuation import (
    CONTINUE_LAST_MESSAGE,
    HOSTS,
    MODES_BY_OWNED_BY,
    REASONING_OFF,
    ContinuationMode,
    merge_unfinished,
)
from halt.providers.model_list import Model
from halt.providers.round_trip import outgoing_message, round_trip_names
from halt.transport.pool import Transport

DEEPSEEK_BETA = "https://api.deepseek.com/beta"  # the only address that accepts a prefix
COMPLETIONS = "/chat/completions"
#: The end of an address that was copied with the path of a request; it is removed.
ENDPOINT = re.compile(r"(?<!/)/++(?:chat/completions|completions|responses|embeddings|models)/*+$")
SEGMENT_SAFE = "!$&'()*+,;=:@"  # characters that need no escape in a segment of a path
AZURE_PATH = re.compile(r"(?<!/)/++openai(?:/++(?:deployments|v1)(?:/(?s:.*+))?)?/*+$")
USAGE = {"include_usage": True}
#: Options that a server may refuse -> the name to send instead; empty: send nothing.
OTHER_NAMES = {
    "stream_options": "",  # then the usage is estimated
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
#: Phrases of a server that does not know an option (and not of one that refuses its value).
UNKNOWN = re.compile(
    r"(?:un|not |n't )(?:supported|recogni[sz]ed|permitted|allowed|expected|accepted)"
    r"|\bnot (?:be )?(?:a )?(?:valid|known|used)|n.t (?:support|accept|recogni|allow)"
    r"|not (?:support|accept|recogni|allow)|unknown|extra_?forbidden|deprecated|\buse ['\"`\\]*max_"
    r"|no such|no longer",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)

warm_up(openai.OpenAI, COMPLETIONS, openai.Stream[Any], openai.BadRequestError)


class OpenAIUpstream(Provider):
    """OpenAI, or any server with an OpenAI-compatible API."""

    client_error = openai.APIError

    def __init__(self, settings: ProviderSettings, transport: Transport | None = None) -> None:
        super().__init__(settings, transport)
        self._base = self._address(settings)
        self._client = self._make_client(settings)
        # The client creates its resources on first use: do that here, in one thread.
        self._models = self._client.models.with_raw_response
        self._host = urlsplit(settings.base_url).hostname or ""
        self._on_openai = is_openai_url(settings.base_url)
        self._prefix_client = self._client  # for prefixes, which may need a different address
        if self._host == "api.deepseek.com":
            self._prefix_client = self._client.with_options(base_url=DEEPSEEK_BETA)
        self._owned_by: dict[str, str] | None = None  # model -> `owned_by` in the list of models
        # Model -> the options, and the fields of messages, that its server refuses.
        self._refused_options: dict[str, frozenset[str]] = {}
        self._refused_fields: dict[str, frozenset[str]] = {}

    def _address(self, settings: ProviderSettings) -> str:
        """Return the address to which paths are appended."""
        return ENDPOINT.sub("", settings.base_url)

    def _make_client(self, settings: ProviderSettings) -> openai.OpenAI:
        # No timeouts and no retries in the client: the run enforces its limits by interrupting the
        # connection, and could not stop a retry inside the client.
        return openai.OpenAI(
            api_key=settings.key,
            base_url=self._base or NOWHERE,
            max_retries=0,
            timeout=None,
            http_client=http_client(self._transport, settings.headers),
        )

    def _send(
        self,
        model: str,
        request: ChatRequest,
        connection: UpstreamConnection,
        mode: ContinuationMode | None = None,
    ) -> Reply:
        options = request.options()
        if self._on_openai and "max_tokens" in options:
            # OpenAI's current models accept only the newer name.
            options["max_completion_tokens"] = options.pop("max_tokens")
        extra = {**self._extra_body(model), **options.pop("extra_body", {})}
        if mode == "switched":
            extra = {**REASONING_OFF, **extra, **CONTINUE_LAST_MESSAGE}
        elif mode == "trailing":
            extra = {**REASONING_OFF, **extra}
        create = partial(self._create_without_refused, model, request, mode, options, extra)
        decoder = ChatDecoder(logprobs=bool(extra.get("logprobs")))
        return self._open_stream(connection, model, self._path(model), create, decoder)

    def _path(self, model: str) -> str:
        """Return the path of a model's requests after `_base`, for messages."""
        return COMPLETIONS

    def _client_path(self, model: str) -> str:
        """Return the path of a model's requests after the client's address."""
        return COMPLETIONS

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        setting = self._continues(model)
        if setting == "instruction" or (setting == "auto" and self._on_openai):
            return "instruction"
        if self._host in HOSTS:
            return HOSTS[self._host]
        return MODES_BY_OWNED_BY.get(
            self._server_kind(model, connection),
            "trailing" if setting == "prefix" else "instruction",
        )

    def _server_kind(self, model: str, connection: UpstreamConnection) -> str:
        """Return `owned_by` of a model in the server's list, empty if it is unknown.

        If all models have the same value, it holds for a model that is not in the list, too.
        """
        if self._owned_by is None:
            try:
                self._fetch_models(connection)
            except UpstreamError:
                with self._lock:
                    # Request the list only once here; any later list of models sets it.
                    self._owned_by = self._owned_by or {}
        owned_by = self._owned_by or {}
        distinct_values = set(owned_by.values())
        return owned_by.get(model) or (distinct_values.pop() if len(distinct_values) == 1 else "")

    def _create_without_refused(
        self,
        model: str,
        request: ChatRequest,
        mode: ContinuationMode | None,
        options: dict[str, Any],
        extra: dict[str, Any],
    ) -> httpx2.Response:
        """Send the request; if the server refuses round-trip fields by name, resend without them.

        The refused fields are remembered for the model, and not sent to it again.
        """
        unsent = merge_unfinished(request.messages)
        client = self._prefix_client if mode == "flagged" else self._client

        def create(refused: frozenset[str]) -> httpx2.Response:
            messages = [outgoing_message(message, refused) for message in unsent]
            if mode in {"flagged", "echoed"}:
                messages[-1] = {**messages[-1], "prefix": True}
            return self._create(client, model, messages, options, extra)

        known_refused = self._refused_fields.get(model, frozenset())
        try:
            return create(known_refused)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
            fields = {
                name for message in unsent for name in round_trip_names(message)
            } - known_refused
            refused = known_refused | fields.intersection(re.findall(r"\w+", refusal.response.text))
            if refused == known_refused:
                raise
            try:
                response = create(refused)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                raise refusal from None  # the refusal had another reason
        logger.info("Message fields refused by %s: %s", model, ", ".join(sorted(refused)))
        self._remember_refusals(self._refused_fields, model, lambda before: before | refused)
        return response

    def _create(
        self,
        client: openai.OpenAI,
        model: str,
        messages: list[dict[str, Any]],
        options: dict[str, Any],
        extra: dict[str, Any],
    ) -> httpx2.Response:
        """Send the request without the options that the server has refused for this model.

        A refusal is remembered only if the server accepts the request without that option.
        `extra`: fields that are always sent; they override others of the same name.
        """
        known_refused = self._refused_options.get(model, frozenset())
        refused, sent_names = set(known_refused), set[str]()
        path = self._client_path(model)
        fixed = {"model": model, "messages": messages, "stream": True}
        while True:
            sent_options = _renamed({**options, "stream_options": USAGE}, refused)
            sent_names |= sent_options.keys()
            try:
                response = post(
                    client, path, {**fixed, **sent_options, **extra}, openai.Stream[Any]
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                refused_names = (name for name in sent_options if _is_refused(name, exc.response))
                name = next(refused_names, "")
                if not name or OTHER_NAMES[name] in sent_names:
                    raise
                refused.add(name)
                refused.discard(OTHER_NAMES[name])  # the server has changed
            else:
                break
        for name in refused ^ known_refused:
            verdict = "refused" if name in refused else "accepted"
            logger.info("Option %s %s by %s", name, verdict, model)
        if refused != known_refused:
            self._remember_refusals(self._refused_options, model, lambda _: frozenset(refused))
        return response

    def _remember_refusals(
        self,
        table: dict[str, frozenset[str]],
        model: str,
        update: Callable[[frozenset[str]], frozenset[str]],
    ) -> None:
        """Set the refused names of a model to the result of `update` for the names before.

        `update` is called with the lock held.
        """
        with self._lock:
            if model in table or len(table) < REMEMBERED_MAX:
                table[model] = update(table.get(model, frozenset()))

    def _request_models(self) -> httpx2.Response:
        return self._models.list().http_response

    def _remember_models(self, models: list[Model]) -> None:
        with self._lock:
            self._owned_by = {model.name: model.owned_by for model in models}

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        """The list of OpenAI has no abilities: its models with vision read PDFs.

        https://platform.openai.com/docs/guides/pdf-files. One that refuses a file gets its text.
        """
        groups = super().catalog(connection)
        return with_abilities(groups, Abilities(pdf=True)) if self._on_openai else groups


def _renamed(options: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    """Return the options; refused ones get their other name, or are left out if there is none."""
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        other = OTHER_NAMES.get(name)
        if name not in refused:
            renamed[name] = value
        elif other:
            renamed[other] = options.get(other, value)
    return renamed


def _is_refused(name: str, response: httpx2.Response) -> bool:
    """Whether a refusal says that the server does not know an option of this name."""
    if name not in OTHER_NAMES or name not in response.text:
        return False
    return not OTHER_NAMES[name] or UNKNOWN.search(response.text) is not None


class AzureUpstream(OpenAIUpstream):
    """Azure OpenAI. Its models are the deployments of a resource; it has no list of them."""

    address_setting = "AZURE_OPENAI_ENDPOINT"
    list_path = "/openai/models"
    usual_end = ""

    def _address(self, settings: ProviderSettings) -> str:
        return AZURE_PATH.sub("", settings.base_url)

    def _make_client(self, settings: ProviderSettings) -> openai.OpenAI:
        return openai.AzureOpenAI(
            api_key=settings.key,
            azure_endpoint=self._base,
            api_version=settings.api_version,
            max_retries=0,
            timeout=None,
            http_client=http_client(self._transport, settings.headers),
        )

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        model = request.model or self._settings.first_model
        if not model.strip(".") or "/" in model:  # it would change the path
            raise UpstreamError("model_not_found", f"{model!r} is not a valid deployment name")
        return super().open(request, connection)

    def _path(self, model: str) -> str:
        return f"/openai/deployments/{model}{COMPLETIONS}"

    def _client_path(self, model: str) -> str:
        return f"/deployments/{quote(model, safe=SEGMENT_SAFE)}{COMPLETIONS}"

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        return "trailing" if self._continues(model) == "prefix" else "instruction"

    def models(self, connection: UpstreamConnection) -> list[str]:
        return list(self._settings.models)

    def check(self, connection: UpstreamConnection) -> None:
        try:
            super().check(connection)  # Azure lists models that could be deployed
        except UpstreamError as exc:
            if exc.code != "endpoint_not_found":  # a gateway may allow only deployments' paths
                raise

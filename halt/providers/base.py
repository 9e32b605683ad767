"""Base class of the providers: lists models, opens streams, continues unfinished answers.

Subclasses add the client, the body of the request and the decoder of the stream.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import msgspec

from halt.config.model_servers import server_title
from halt.config.providers import ModelSettings, ProviderSettings
from halt.core.connection import UpstreamConnection, use_connection
from halt.core.request import ChatRequest, Reply, files_as_text, unfinished
from halt.errors import UpstreamError
from halt.model_info import ModelGroup, ModelInfo
from halt.providers.client_transport import public_address
from halt.providers.continuation import (
    ContinuationMode,
    ContinuationReply,
    by_instruction,
    by_prefix,
    unfinished_text,
)
from halt.providers.continuation_joiner import ContinuationJoiner
from halt.providers.decoder import EventDecoder
from halt.providers.error_body import is_markup, page_text
from halt.providers.errors import parse_error, to_upstream_error
from halt.providers.file_refusals import may_refuse_files, refuses_all_files
from halt.providers.model_list import Model, default_model_name, parse_models
from halt.providers.reply import EventReply
from halt.transport.pool import Transport

REMEMBERED_MAX = 1000  # models in each set of remembered facts
API_PATH = re.compile(r"/(v\d+\w*|openai)/?")  # in the address of an API
#: Where the address of a connected provider is set, for errors.
ADDRESS_ON_PAGE = "its address on the page “Models”"
BAD_LIST = "The list of models from the model's server cannot be read."

logger = logging.getLogger(__name__)


class Provider:
    """A provider whose client sends its requests through Halt's transport."""

    #: Base class of the client's exceptions.
    client_error: type[Exception]
    #: The setting with the address, and the path of the list of models.
    address_setting = "OPENAI_BASE_URL"
    list_path = "/models"
    #: End of nearly all servers' addresses; empty: any address may be right.
    usual_end = "/v1"

    def __init__(self, settings: ProviderSettings, transport: Transport | None = None) -> None:
        self._settings = settings
        self._transport = transport or Transport(
            settings.connect_timeout, allow_link_local=settings.allow_link_local
        )
        password = urlsplit(settings.base_url).password or ""
        self._secrets = (*settings.secrets, unquote(password))
        self._lock = threading.Lock()  # protects the facts that replies teach about models
        self._model = settings.first_model
        self._base = settings.base_url  # address to which the paths of requests are appended
        self._refusing: set[str] = set()  # models that refuse to continue from a prefix
        self._without_files: set[str] = set()  # models that refuse parts with files
        self._chosen: Mapping[str, ModelSettings] = {}

    def use_models(self, settings: Mapping[str, ModelSettings]) -> None:
        """Use what was chosen for its models, by their names, from the next request on.

        For any thread: a request reads the mapping once, and nobody may change it afterwards.
        """
        self._chosen = settings

    def _extra_body(self, model: str) -> Mapping[str, Any]:
        """Further fields of each request for a model; the provider's settings win."""
        chosen = self._chosen.get(model)
        return {**(chosen.extra_body if chosen else {}), **self._settings.extra_body}

    def _continues(self, model: str) -> str:
        """How a model continues a stopped answer, one of CONTINUES; the provider's setting wins."""
        chosen = self._chosen.get(model)
        setting = self._settings.continues
        return (chosen.continues if chosen and setting == "auto" else "") or setting

    def _request_models(self) -> httpx2.Response:
        """Request the list of models with the client. Raises the client's errors."""
        raise NotImplementedError

    def _send(
        self,
        model: str,
        request: ChatRequest,
        connection: UpstreamConnection,
        mode: ContinuationMode | None = None,
    ) -> Reply:
        """Send a request; `mode`: how it continues an answer. Raises UpstreamError, Interrupted."""
        raise NotImplementedError

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        """Choose how this model continues an answer. Raises Interrupted."""
        raise NotImplementedError

    def _remember_models(self, models: list[Model]) -> None:
        """Store facts from a list of models."""

    @property
    def title(self) -> str:
        """Its name for people, "" if the settings give none."""
        return self._settings.title

    @property
    def address(self) -> str:
        """The base URL of its settings."""
        return self._settings.base_url

    @property
    def known_model(self) -> str:
        return self._model

    def default_model(self, connection: UpstreamConnection) -> str:
        """Return the model for requests that name none. Raises UpstreamError, Interrupted."""
        if not self._model:
            try:
                model = default_model_name(self._fetch_models(connection))
            except UpstreamError as exc:
                if exc.code not in {"upstream_invalid", "bad_request", "forbidden"}:
                    raise
                way = f"Set {models_setting(self._settings)} to use a model without the list."
                raise exc.with_hint(f"{exc.hint} {way}".strip()) from exc
            if not model:
                way = f"load one there, or set {models_setting(self._settings)}"
                sentence = f"The model's server lists no models: {way.rstrip(',')}."
                raise UpstreamError("model_not_found", sentence=sentence)
            with self._lock:
                self._model = self._model or model
        return self._model

    def models(self, connection: UpstreamConnection) -> list[str]:
        return list(self._settings.models) or [
            model.name for model in self._fetch_models(connection)
        ]

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        settings = self._settings
        if settings.models:
            return [ModelGroup.of(settings.title or server_title(self._base), settings.models)]
        models = self._fetch_models(connection)
        with self._lock:
            self._model = self._model or default_model_name(models)
        title = settings.title or server_title(self._base, [model.owned_by for model in models])
        return [ModelGroup(title, [ModelInfo(m.name, m.name, m.abilities) for m in models])]

    def check(self, connection: UpstreamConnection) -> None:
        self._fetch_models(connection)

    def close(self) -> None:
        self._transport.close()

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        """As `Upstream.open`. After a model has refused a prefix, it gets instructions instead."""
        if not self._settings.base_url:
            raise UpstreamError("no_model")
        model = request.model or self.default_model(connection)
        if not unfinished(request):
            return self._send_files(model, request, connection)
        text = unfinished_text(request)
        mode = (
            "instruction"
            if model in self._refusing
            else self._continuation_mode(model, request, connection)
        )
        if mode != "instruction":
            try:
                reply = self._send_files(model, by_prefix(request), connection, mode)
                return ContinuationReply(reply, ContinuationJoiner(text, echoes=mode == "echoed"))
            except UpstreamError as refusal:
                if refusal.code != "bad_request":
                    raise
        reply = self._send_files(model, by_instruction(request), connection, "instruction")
        if mode != "instruction":
            logger.info("%s refuses a prefix; continuing answers by instruction instead", model)
            self._remember(self._refusing, model)
        return ContinuationReply(reply, ContinuationJoiner(text, repeats=True))

    def _send_files(
        self,
        model: str,
        request: ChatRequest,
        connection: UpstreamConnection,
        mode: ContinuationMode | None = None,
    ) -> Reply:
        """As `_send`. A file whose request is refused is sent again as text.

        A server refuses files in general, or the pages of this one: too many, or protected. The
        error of the second request is the one to show: it speaks of the rest.
        """
        messages = files_as_text(request.messages)
        if messages is request.messages:
            return self._send(model, request, connection, mode)
        as_text = msgspec.structs.replace(request, messages=messages)
        if model in self._without_files:
            return self._send(model, as_text, connection, mode)
        try:
            return self._send(model, request, connection, mode)
        except UpstreamError as exc:
            refusal = exc
            if not may_refuse_files(refusal):
                raise
        reply = self._send(model, as_text, connection, mode)
        logger.info("%s refuses a file; sending its text instead", model)
        if refuses_all_files(refusal):
            self._remember(self._without_files, model)
        return reply

    def _remember(self, models: set[str], model: str) -> None:
        """Add a model to a set, up to REMEMBERED_MAX: clients may send any number of names."""
        with self._lock:
            if len(models) < REMEMBERED_MAX:
                models.add(model)

    def _fetch_models(self, connection: UpstreamConnection) -> list[Model]:
        """Request the server's list of models. Raises UpstreamError, Interrupted."""
        if not self._settings.base_url:
            raise UpstreamError("no_model")
        with self._translating_errors("GET", self.list_path, connection):
            try:
                body = self._request_models().content
            except self.client_error as exc:
                error = to_upstream_error(exc, self._secrets)
                is_refusal = error.upstream_status is not None  # and not a redirect
                if is_refusal and error.code in {"endpoint_not_found", "model_not_found"}:
                    raise error.with_code(
                        "endpoint_not_found", sentence=no_list(self._settings)
                    ) from exc
                raise
            models = _models(body, self._secrets)
        self._remember_models(models)
        return models

    def _open_stream(
        self,
        connection: UpstreamConnection,
        model: str,
        path: str,
        create: Callable[[], httpx2.Response],
        decoder: EventDecoder,
    ) -> EventReply:
        """Send a request for a stream with `create`. Raises UpstreamError, Interrupted."""
        with self._translating_errors("POST", path, connection):
            response = create()
        add_hint = partial(self._with_hint, "POST", path)
        return EventReply(response, decoder, model, self._secrets, add_hint)

    @contextlib.contextmanager
    def _translating_errors(
        self, method: str, path: str, connection: UpstreamConnection
    ) -> Iterator[None]:
        """Translate all errors but Interrupted to an UpstreamError with a hint."""
        try:
            with use_connection(connection):
                yield
        except UpstreamError as exc:
            raise self._with_hint(method, path, exc) from None  # a traceback would show secrets
        except (self.client_error, httpx2.HTTPError) as exc:  # HTTPError: a body may break off
            raise self._with_hint(method, path, to_upstream_error(exc, self._secrets)) from None

    def _with_hint(self, method: str, path: str, fault: UpstreamError) -> UpstreamError:
        """Return the error without the secrets, and with a hint if the address may be wrong.

        The hint names the request and the setting to check.
        """
        if self._settings.is_demo:
            fault = fault.marked_demo()
        address_codes = {"endpoint_not_found", "upstream_web_page"}
        setting = f"{self.address_setting}, or the address in the file"
        if self._settings.is_connected:
            setting = ADDRESS_ON_PAGE
        check = f"check {setting}."
        if self.usual_end and API_PATH.search(urlsplit(self._base).path) is None:
            address_codes |= {"model_not_found", "upstream_invalid"}
            check = f"on most servers the address must end with {self.usual_end}."
        if fault.code == "loop_detected":
            address_codes.add(fault.code)
            check = f"set {setting}, to that of a model server."
        if fault.hint or fault.code not in address_codes:
            return fault.with_secrets_removed(self._secrets)
        address = public_address(self._base.rstrip("/") + path)
        return fault.with_hint(f"The request was {method} {address}: {check}").with_secrets_removed(
            self._secrets
        )


def models_setting(settings: ProviderSettings) -> str:
    """What names the models of this provider, for errors."""
    if settings.is_connected:
        return "its models on the page “Models”"
    return "HALT_MODEL, or models in the file,"


def no_list(settings: ProviderSettings) -> str:
    """The sentence of the error of a server that has no list of models."""
    setting = models_setting(settings)
    return f"The model's server has no list of models: set {setting} to one that it has."


def _models(body: bytes, secrets: tuple[str, ...]) -> list[Model]:
    """Parse the body of a list of models. Raises UpstreamError without the secrets."""
    text = body.decode("utf-8", "replace")
    if is_markup(text):
        raise UpstreamError("upstream_web_page", page_text(text)).with_secrets_removed(secrets)
    try:
        value = json.loads(text)
        models = parse_models(value)
    except (ValueError, RecursionError) as exc:
        raise UpstreamError("upstream_invalid", sentence=BAD_LIST) from exc
    if models is None:
        if (error := parse_error(value)) is not None:
            raise error.with_secrets_removed(secrets)
        raise UpstreamError("upstream_invalid", sentence=BAD_LIST)
    return models

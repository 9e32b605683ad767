"""What all providers have in common: their models, and how they go on with an answer.

They differ in their client, in what they ask and in the decoder of what comes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

import httpx2

from halt.config.providers import ProviderSettings
from halt.core.connection import UpstreamConnection, use_connection
from halt.core.request import ChatRequest, Reply, unfinished
from halt.errors import UpstreamError
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
from halt.providers.model_list import Model, default_model_name, parse_models
from halt.providers.reply import EventReply
from halt.transport.pool import Transport

REMEMBERED_MAX = 1000  # models about which the same thing is remembered
API_PATH = re.compile(r"/(v\d+\w*|openai)/?")  # in an address that leads to an API
NO_MODEL = "HALT_MODEL, or models in the file, can name a model instead of the list."
BAD_LIST = "The list of models from the model's server cannot be read."
EMPTY_LIST = "The model's server lists no models: load one there, or set HALT_MODEL."
NO_LIST = (
    "The model's server has no list of models: set HALT_MODEL, or models in the file, to one that "
    "it has."
)

logger = logging.getLogger(__name__)


class Provider:
    """A provider whose client sends its requests through our transport."""

    #: What its client raises.
    client_error: type[Exception]
    #: The setting that holds its address, and how the address goes on to its models.
    address_setting = "OPENAI_BASE_URL"
    list_path = "/models"
    #: How the addresses of nearly all servers end; empty: any may be right.
    usual_end = "/v1"

    def __init__(self, settings: ProviderSettings, transport: Transport | None = None) -> None:
        self._settings = settings
        self._transport = transport or Transport(settings.connect_timeout)
        self._secret = settings.key
        self._lock = threading.Lock()  # protects what is learnt on the way
        self._model = settings.first_model
        self._base = settings.base_url  # as it is asked
        self._refusing: set[str] = set()  # models that do not go on with a prefix

    def _request_models(self) -> httpx2.Response:
        """Ask the client for the models. Raises what the client raises."""
        raise NotImplementedError

    def _send(
        self,
        model: str,
        request: ChatRequest,
        connection: UpstreamConnection,
        mode: ContinuationMode | None = None,
    ) -> Reply:
        """Send a request, `mode`: one that goes on so. Raises UpstreamError, Interrupted."""
        raise NotImplementedError

    def _continuation_mode(
        self, model: str, request: ChatRequest, connection: UpstreamConnection
    ) -> ContinuationMode:
        """How this model is asked to go on with an answer. Raises Interrupted."""
        raise NotImplementedError

    def _remember_models(self, models: list[Model]) -> None:
        """Keep what a list tells about its models."""

    @property
    def known_model(self) -> str:
        return self._model

    def default_model(self, connection: UpstreamConnection) -> str:
        """The model that answers when a request names none. Raises UpstreamError, Interrupted."""
        if not self._model:
            try:
                model = default_model_name(self._fetch_models(connection))
            except UpstreamError as exc:
                if exc.code not in {"upstream_invalid", "bad_request", "forbidden"}:
                    raise
                raise exc.hinting(f"{exc.hint} {NO_MODEL}".strip()) from exc
            if not model:
                raise UpstreamError("model_not_found", sentence=EMPTY_LIST)
            with self._lock:
                self._model = self._model or model
        return self._model

    def models(self, connection: UpstreamConnection) -> list[str]:
        return list(self._settings.models) or [
            model.name for model in self._fetch_models(connection)
        ]

    def catalog(self, connection: UpstreamConnection) -> list[tuple[str, list[str]]]:
        return [("", self.models(connection))]

    def check(self, connection: UpstreamConnection) -> None:
        self._fetch_models(connection)

    def close(self) -> None:
        self._transport.close()

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        """As `Upstream.open`. A model that refuses a prefix goes on by instruction from then on."""
        if not self._settings.base_url:
            raise UpstreamError("no_model")
        model = request.model or self.default_model(connection)
        if not unfinished(request):
            return self._send(model, request, connection)
        text = unfinished_text(request)
        mode = (
            "instruction"
            if model in self._refusing
            else self._continuation_mode(model, request, connection)
        )
        if mode != "instruction":
            try:
                reply = self._send(model, by_prefix(request), connection, mode)
                return ContinuationReply(reply, ContinuationJoiner(text, echoes=mode == "echoed"))
            except UpstreamError as refusal:
                if refusal.code != "bad_request":
                    raise
        reply = self._send(model, by_instruction(request), connection, "instruction")
        if mode != "instruction":
            logger.info("%s goes on with no prefix; it is asked in words", model)
            self._remember(self._refusing, model)
        return ContinuationReply(reply, ContinuationJoiner(text, repeats=True))

    def _remember(self, about: set[str], model: str) -> None:
        """Remember something about a model. Clients name the models, so there is an end to it."""
        with self._lock:
            if len(about) < REMEMBERED_MAX:
                about.add(model)

    def _fetch_models(self, connection: UpstreamConnection) -> list[Model]:
        """The models that the server lists. Raises UpstreamError, Interrupted."""
        if not self._settings.base_url:
            raise UpstreamError("no_model")
        with self._translating_errors("GET", self.list_path, connection):
            try:
                body = self._request_models().content
            except self.client_error as exc:
                error = to_upstream_error(exc, self._secret)
                if error.code in {"endpoint_not_found", "model_not_found"}:
                    raise error.instead("endpoint_not_found", sentence=NO_LIST) from exc
                raise
            models = _models(body, self._secret)
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
        """Send a request for a stream by `create`. Raises UpstreamError, Interrupted."""
        with self._translating_errors("POST", path, connection):
            response = create()
        add_hint = partial(self._with_hint, "POST", path)
        return EventReply(response, decoder, model, self._secret, add_hint)

    @contextlib.contextmanager
    def _translating_errors(
        self, method: str, path: str, connection: UpstreamConnection
    ) -> Iterator[None]:
        """All faults but Interrupted become an UpstreamError with what `_with_hint` adds."""
        try:
            with use_connection(connection):
                yield
        except UpstreamError as exc:
            raise self._with_hint(method, path, exc) from exc
        except (self.client_error, httpx2.HTTPError) as exc:  # a body may break off, too
            raise self._with_hint(method, path, to_upstream_error(exc, self._secret)) from exc

    def _with_hint(self, method: str, path: str, fault: UpstreamError) -> UpstreamError:
        """A fault that may be the address's, with what was asked and what to look at."""
        if self._settings.is_demo:
            fault = fault.demo()
        suspect = {"endpoint_not_found", "upstream_web_page"}
        check = f"check {self.address_setting}, or the address in the file."
        if self.usual_end and API_PATH.search(urlsplit(self._base).path) is None:
            suspect |= {"model_not_found", "upstream_invalid"}
            check = f"on most servers the address must lead up to and with {self.usual_end}."
        if fault.code == "loop_detected":
            suspect.add(fault.code)
            place = f"{self.address_setting}, or the address in the file"
            check = f"set {place}, to that of a model's server."
        if fault.hint or fault.code not in suspect:
            return fault.without(self._secret)
        address = public_address(self._base.rstrip("/") + path)
        return fault.hinting(f"The request was {method} {address}: {check}").without(self._secret)


def _models(body: bytes, secret: str) -> list[Model]:
    """The models of a list's body. Raises UpstreamError."""
    text = body.decode("utf-8", "replace")
    if is_markup(text):
        raise UpstreamError("upstream_web_page", page_text(text)).without(secret)
    try:
        value = json.loads(text)
        models = parse_models(value)
    except (ValueError, RecursionError) as exc:
        raise UpstreamError("upstream_invalid", sentence=BAD_LIST) from exc
    if models is None:
        if (error := parse_error(value)) is not None:
            raise error.without(secret)
        raise UpstreamError("upstream_invalid", sentence=BAD_LIST)
    return models

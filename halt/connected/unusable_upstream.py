"""Stands for a connected provider that cannot be used: each request says what to do."""

from __future__ import annotations

from halt.connected.settings import Unusable
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply
from halt.errors import UpstreamError
from halt.model_info import ModelGroup


class UnusableUpstream:
    """The Upstream of a provider that cannot be used."""

    def __init__(self, reason: Unusable) -> None:
        self.title, self._models, self._sentence = reason.title, reason.models, reason.sentence

    @property
    def known_model(self) -> str:
        return self._models[0] if self._models else ""

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        raise self._error

    def models(self, connection: UpstreamConnection) -> list[str]:
        if not self._models:
            raise self._error
        return list(self._models)

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        return [ModelGroup.of(self.title, self.models(connection))]

    def check(self, connection: UpstreamConnection) -> None:
        raise self._error

    def close(self) -> None:
        """Nothing is open."""

    @property
    def _error(self) -> UpstreamError:
        return UpstreamError("key_needed", sentence=self._sentence)

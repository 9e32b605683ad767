"""A connected provider whose key is missing: it has a name, and each request says what to do."""

from __future__ import annotations

from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply
from halt.errors import UpstreamError
from halt.model_info import ModelGroup


class Unusable:
    """The Upstream of a provider without a usable key. `models`: those that are named for it."""

    def __init__(self, title: str, models: tuple[str, ...], sentence: str) -> None:
        self.title, self._models, self._sentence = title, models, sentence

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

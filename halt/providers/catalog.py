"""The models that can be chosen, by provider: asked for in the background, and kept for a while.

A page never waits for a provider: it gets what is known, and a first page waits LOOK_WAIT at most.
"""

from __future__ import annotations

from halt.core.connection import Line
from halt.core.request import Upstream
from halt.errors import RequestError, UpstreamError
from halt.providers.cached_query import Question
from halt.providers.discovery import LOOK_AGAIN, Discovery
from halt.providers.model_list import NAME_MAX, is_name

FRESH_SECONDS = 60.0  # a list is not asked for again before
RETRY_SECONDS = 10.0  # nor after a failure
ASK_SECONDS = 20.0  # that a provider has to answer
LOOK_WAIT = 1.0  # seconds that a page waits after a question was asked
NAMES_MAX = 1000  # models that are shown

#: Codes of faults that say: this server gives no list, now and later. Others may pass.
NO_LIST = frozenset(
    {
        "bad_request",
        "endpoint_not_found",
        "model_not_found",
        "upstream_invalid",
        "upstream_web_page",
    }
)

Groups = list[tuple[str, list[str]]]


def checked_model(name: str) -> str:
    """A model's name as a client sent it. Raises RequestError."""
    if name and not is_name(name):
        raise RequestError(
            f"model must be a name of at most {NAME_MAX} printable characters.", field="model"
        )
    return name


class Catalog:
    """What the upstream offers."""

    def __init__(self, upstream: Upstream, discovery: Discovery | None = None) -> None:
        """`discovery`: what the upstream's providers are found by, if they are."""
        self._upstream = upstream
        self._discovery = discovery
        self._question = Question(
            "models",
            self._ask,
            kept=LOOK_AGAIN if discovery else FRESH_SECONDS,
            again=LOOK_AGAIN if discovery else RETRY_SECONDS,
            limit=ASK_SECONDS,
        )

    def look(self) -> Groups:
        """Groups of models, (provider, names); empty as long as nothing is known."""
        asked_at = self._question.begin()
        # Servers of this machine tell at once, and one may have been started just now.
        known, _ = self._question.wait(asked_at + LOOK_WAIT, fresh=self.is_discovered)
        return known or []

    @property
    def is_discovered(self) -> bool:
        """The list may be another one when it is looked at again."""
        return self._discovery is not None

    @property
    def notes(self) -> list[str]:
        """What is to be said below the list: servers that were found and want a key."""
        return [each.text for each in self._discovery.known.locked] if self._discovery else []

    @property
    def has_no_list(self) -> bool:
        """The upstream was asked, and gives no list of models. A server that is found gives one."""
        if self.is_discovered:
            return False
        known, fault = self._question.wait(0.0)
        return not known and fault is not None and fault.code in NO_LIST

    def _ask(self, line: Line) -> Groups:
        found = _bounded(self._upstream.catalog(line))
        if not found:
            raise UpstreamError("model_not_found", "its list of models is empty")
        return found


def _bounded(groups: Groups) -> Groups:
    """What can be shown and sent back."""
    out: Groups = []
    left = NAMES_MAX
    for provider, names in groups:
        fit = [name for name in names if is_name(name)]
        if fit := fit[:left]:
            out.append((provider, fit))
            left -= len(fit)
    return out

"""The models that can be chosen, by provider, as far as they are known.

A page never waits for a provider: it gets what is known, and a first page waits PAGE_WAIT at most.
"""

from __future__ import annotations

from halt.core.request import Upstream
from halt.errors import HaltError, RequestError, UpstreamError
from halt.providers.discovery import Discovery
from halt.providers.model_list import NAME_MAX, is_name
from halt.providers.router import Groups, as_providers

PAGE_WAIT = 1.0  # seconds that a page waits after the lists were asked for
NAMES_MAX = 1000  # models that are shown

#: Codes of faults that say: this server gives no list, now and later. Others may pass.
NO_LIST_CODES = frozenset(
    {
        "bad_request",
        "endpoint_not_found",
        "model_not_found",
        "upstream_invalid",
        "upstream_web_page",
    }
)


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
        self._providers = as_providers(upstream)
        self._discovery = discovery
        # What the last look has brought. Each is replaced at once, by any thread.
        self._known: Groups = []  # the last list that was not empty
        self._fault: HaltError | None = None

    def refresh(self) -> Groups:
        """Groups of models, (provider, names); empty as long as nothing is known."""
        fault: HaltError | None = None
        try:
            if groups := _bounded(self._providers.catalog_for_page(PAGE_WAIT)):
                self._known = groups  # else the one before is better than none
            else:
                fault = UpstreamError("model_not_found", "its list of models is empty")
        except HaltError as exc:
            fault = exc
        self._fault = fault
        return self._known

    @property
    def is_discovered(self) -> bool:
        """The list may be another one when it is looked at again."""
        return self._discovery is not None

    @property
    def notes(self) -> list[str]:
        """What is to be said below the list: servers that were found and want a key."""
        return [each.text for each in self._discovery.latest.locked] if self._discovery else []

    @property
    def has_no_list(self) -> bool:
        """The upstream was asked, and gives no list of models. A server that is found gives one."""
        if self.is_discovered:
            return False
        fault = self._fault
        return not self._known and fault is not None and fault.code in NO_LIST_CODES


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

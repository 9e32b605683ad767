"""The list of models for the model menu, grouped by provider.

A page does not wait for a slow provider: it gets the lists known so far. Only the first page waits,
up to PAGE_WAIT seconds.
"""

from __future__ import annotations

from halt.config.model_servers import origin
from halt.core.request import Upstream
from halt.errors import HaltError, RequestError, UpstreamError
from halt.providers.discovery import Discovery
from halt.providers.model_list import NAME_MAX, is_name
from halt.providers.router import ModelGroups, as_providers

PAGE_WAIT = 1.0  # seconds from the request for the lists until a page goes on without them
NAMES_MAX = 1000  # models in the menu

#: Error codes of a server that has no list of models. Other errors may be temporary.
NO_LIST_CODES = frozenset(
    {
        "bad_request",
        "endpoint_not_found",
        "model_not_found",
        "upstream_invalid",
        "upstream_web_page",
    }
)


def valid_model_name(name: str) -> str:
    """Return the model's name that a client sent. Raises RequestError if it is invalid."""
    if name and not is_name(name):
        raise RequestError(
            f"model must be a name of at most {NAME_MAX} printable characters.", field="model"
        )
    return name


class Catalog:
    """The models that the upstream offers. Threads may share a Catalog."""

    def __init__(self, upstream: Upstream, discovery: Discovery | None = None) -> None:
        """`discovery`: the Discovery that finds the upstream's providers, if there is one."""
        self._providers = as_providers(upstream)
        self._discovery = discovery
        self._first_servers = () if discovery is None else discovery.latest.servers
        # Result of the last `refresh`. Any thread replaces either attribute in one assignment.
        self._known: ModelGroups = []  # the last list that was not empty
        self._fault: HaltError | None = None

    def refresh(self) -> ModelGroups:
        """Return groups of models, (provider, names); empty until a list has arrived."""
        fault: HaltError | None = None
        try:
            if groups := _bounded(self._providers.catalog_for_page(PAGE_WAIT)):
                self._known = groups  # an empty list does not replace the one before
            else:
                fault = UpstreamError("model_not_found", "its list of models is empty")
        except HaltError as exc:
            fault = exc
        self._fault = fault
        return self._known

    @property
    def is_discovered(self) -> bool:
        """Whether the providers are discovered, so that the list may change at any time."""
        return self._discovery is not None

    @property
    def no_server_text(self) -> str:
        """The text for a page while none of the servers that Halt found at its start responds."""
        chat_servers = [server for server in self._first_servers if server.default]
        if len(chat_servers) != 1:
            return "No model server responds."
        (server,) = chat_servers
        return f"{server.title} at {origin(server.url)} no longer responds."

    @property
    def notes(self) -> list[str]:
        """Texts to show below the list: one for each discovered server that needs a key."""
        if self._discovery is None:
            return []
        return [server.text for server in self._discovery.latest.key_required]

    @property
    def has_no_list(self) -> bool:
        """Whether the upstream has answered and has no list of models.

        Always False with discovery: a server counts as discovered only if it gives a list.
        """
        if self.is_discovered:
            return False
        fault = self._fault
        return not self._known and fault is not None and fault.code in NO_LIST_CODES


def _bounded(groups: ModelGroups) -> ModelGroups:
    """Return the groups without invalid names, and with NAMES_MAX names at most."""
    bounded_groups: ModelGroups = []
    names_left = NAMES_MAX
    for provider, names in groups:
        valid_names = [name for name in names if is_name(name)][:names_left]
        if valid_names:
            bounded_groups.append((provider, valid_names))
            names_left -= len(valid_names)
    return bounded_groups

"""The list of models for the model menu, grouped by provider.

A page does not wait for a slow provider: it gets the lists known so far. Only the first page waits,
up to PAGE_WAIT seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from halt.config.model_servers import origin
from halt.core.request import Upstream
from halt.errors import HaltError, RequestError, UpstreamError
from halt.model_info import ModelGroup
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


class Note(NamedTuple):
    """A text to show below the list of models. `provider`: its title, or empty."""

    provider: str
    text: str
    is_fault: bool


class Catalog:
    """The models that the upstream offers. Threads may share a Catalog."""

    def __init__(self, upstream: Upstream, discovery: Discovery | None = None) -> None:
        """`discovery`: the Discovery that finds the upstream's providers, if there is one."""
        self._providers = as_providers(upstream)
        self._discovery = discovery
        self._first_servers = () if discovery is None else discovery.latest.servers
        # Result of the last `refresh`. Any thread replaces an attribute in one assignment.
        self._known: ModelGroups = []  # the last list that was not empty
        self._listed: dict[str, tuple[str, str]] = {}  # model -> its provider's title, its label
        self._fault: HaltError | None = None
        self._provider_faults: list[tuple[str, HaltError]] = []  # of some of several providers

    def refresh(self, retried: str | None = None) -> ModelGroups:
        """Return the models by provider; empty until a list has arrived.

        `retried`: the title of providers whose failed query runs again now, "" for all.
        """
        if retried is not None:
            self._providers.retry_lists(retried, PAGE_WAIT)
        fault: HaltError | None = None
        provider_faults: list[tuple[str, HaltError]] = []
        try:
            listed_groups, provider_faults = self._providers.catalog_for_page(PAGE_WAIT)
            if groups := _bounded(listed_groups):
                self._known = groups  # an empty list does not replace the one before
                self._listed = {
                    model.name: (group.title, model.label)
                    for group in groups
                    for model in group.models
                }
            else:
                fault = UpstreamError("model_not_found", "its list of models is empty")
        except HaltError as exc:
            fault = exc
        self._fault, self._provider_faults = fault, provider_faults
        return self._known

    def provider_of(self, model_name: str) -> str:
        """Return the title of the provider that lists a model, empty if it is not known.

        Reads the last list, and does not wait for one.
        """
        return self._listed.get(model_name, ("", ""))[0]

    def label_of(self, model_name: str) -> str:
        """Return a model's name at its provider; the name itself if no list has it."""
        return self._listed.get(model_name, ("", model_name))[1]

    @property
    def offers_several(self) -> bool:
        """Whether the last list has several models."""
        return len(self._listed) > 1

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
    def notes(self) -> list[Note]:
        """What failed, and which discovered server needs a key."""
        notes = [Note(title, fault.message, True) for title, fault in self._provider_faults]
        if self._fault is not None and self._fault.code not in NO_LIST_CODES | {"no_model"}:
            notes.append(Note("", self._fault.message, True))
        if self._discovery is not None:
            notes += [
                Note("", server.text, False) for server in self._discovery.latest.key_required
            ]
        return notes

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
    models_left = NAMES_MAX
    for group in groups:
        models = [model for model in group.models if is_name(model.name)][:models_left]
        if models:
            bounded_groups.append(ModelGroup(group.title, models))
            models_left -= len(models)
    return bounded_groups

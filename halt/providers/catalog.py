"""The list of models for the model menu, grouped by provider.

A page does not wait for a slow provider: it gets the lists known so far. Only the first page waits,
up to PAGE_WAIT seconds. A provider that fails keeps the list that it had before; one that is
removed is gone with the next request of any page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from halt.config.model_servers import KeyRequired, origin
from halt.core.request import Upstream
from halt.errors import HaltError, RequestError, UpstreamError
from halt.model_info import UNKNOWN, Abilities, ModelGroup
from halt.providers.discovery import Discovery
from halt.providers.model_list import NAME_MAX, is_name
from halt.providers.router import (
    ModelGroups,
    PageList,
    PageLists,
    State,
    as_providers,
    names_in,
)

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


class _Known(NamedTuple):
    """What is known of the lists. `state`: the providers at the time."""

    state: State
    groups: ModelGroups
    names: Mapping[str, tuple[str, str]]  # model -> its provider's title, its label
    abilities: Mapping[str, Abilities]  # of the models of which some are known
    providers: Sequence[PageList]


class Catalog:
    """The models that the upstream offers. Threads may share a Catalog."""

    def __init__(self, upstream: Upstream, discovery: Discovery | None = None) -> None:
        """`discovery`: the Discovery that finds the upstream's providers, if there is one."""
        self._providers = as_providers(upstream)
        self._discovery = discovery
        self._first_servers = () if discovery is None else discovery.latest.servers
        #: Of the last refresh. Any thread replaces it in one assignment; the last one wins.
        self._known = _Known(self._providers.state, [], {}, {}, ())

    def refresh(self, retried: str | None = None) -> ModelGroups:
        """Return the models by provider; empty until a list has arrived.

        `retried`: the title of providers whose failed query runs again now, "" for all.
        """
        if retried is not None:
            self._providers.retry_lists(retried, PAGE_WAIT)
        # Read before the lists, so that a change in between is seen by `_current`.
        state = self._providers.state
        self._known = known = _known(state, self._providers.lists_for_page(PAGE_WAIT))
        return known.groups

    def look_again(self) -> None:
        """Look everywhere for model servers of this machine. Waits half a second at most."""
        self._providers.look_again(everywhere=True)

    @property
    def has_model(self) -> bool:
        """Whether there is a provider that may have a model: set, connected, found, or the demo's.

        Where none is known, it looks for model servers of this machine before it says so.
        """
        if not self._providers.has_model:
            self._providers.look_again()
        return self._providers.has_model

    def require_model(self) -> None:
        """Raise UpstreamError unless there is a provider that may have a model."""
        if not self.has_model:
            raise UpstreamError("no_model")

    def provider_of(self, model_name: str) -> str:
        """Return the title of the provider that lists a model, empty if it is not known.

        Reads the last list, and does not wait for one. Hidden models are in it too.
        """
        return self._current.names.get(model_name, ("", ""))[0]

    def label_of(self, model_name: str) -> str:
        """Return a model's name for people; the name itself if no list has it."""
        return self._current.names.get(model_name, ("", model_name))[1]

    def abilities_of(self, model_name: str) -> Abilities:
        """What is known of a model, "" for the default one; waits for nothing."""
        known = self._current.abilities
        return known.get(model_name or self._providers.known_model, UNKNOWN)

    def shown_name(self, model_name: str) -> tuple[str, str]:
        """A model's name for people, and its provider's; waits for nothing."""
        provider, label = self._current.names.get(model_name, ("", model_name))
        return label, provider

    def is_hidden(self, model_name: str) -> bool:
        """Whether a provider lists a model that the menu hides."""
        known = self._current
        return model_name in known.names and not any(
            model.name == model_name for group in known.groups for model in group.models
        )

    @property
    def _current(self) -> _Known:
        """What is known of the providers of this moment."""
        known, state = self._known, self._providers.state
        if known.state is not state:
            self._known = known = _known(state, self._providers.known_lists)
        return known

    @property
    def offers_several(self) -> bool:
        """Whether the last list has several models."""
        return sum(len(group.models) for group in self._current.groups) > 1

    @property
    def is_discovered(self) -> bool:
        """Whether the providers are discovered, so that the list may change at any time."""
        return self._discovery is not None

    @property
    def no_server_text(self) -> str:
        """The text for a page while none of the servers that Halt found at its start responds.

        Empty if it found none.
        """
        chat_servers = [server for server in self._first_servers if server.default]
        if len(chat_servers) != 1:
            return "No model server responds." if chat_servers else ""
        (server,) = chat_servers
        return f"{server.title} at {origin(server.url)} no longer responds."

    @property
    def locked_servers(self) -> list[KeyRequired]:
        """The servers that were found and need a key, without those that are connected."""
        if self._discovery is None:
            return []
        connected = {urlsplit(address)[:2] for address in self._providers.addresses}
        return [
            server
            for server in self._discovery.latest.key_required
            if urlsplit(server.url)[:2] not in connected
        ]

    @property
    def empty_servers(self) -> list[str]:
        """The servers that were found and have no model that can chat, each as text."""
        servers = () if self._discovery is None else self._discovery.latest.servers
        return [
            f"{server.title} at {origin(server.url)}" for server in servers if not server.default
        ]

    @property
    def notes(self) -> list[Note]:
        """What failed, which server needs a key, and why HALT_MODEL is not used."""
        known = self._known
        is_single = len(known.providers) == 1 and not self.is_discovered
        notes = []
        for title, groups, fault in known.providers:
            if fault is not None and not (is_single and fault.code in NO_LIST_CODES):
                notes.append(Note("" if is_single else title, *_words_of(fault)))
            elif fault is None and groups is None and not known.groups:
                late = UpstreamError("upstream_unreachable", "it did not answer in time")
                notes.append(Note("" if is_single else title, late.message, True))
            elif fault is None and groups is not None and not (is_single or names_in(groups)):
                notes.append(Note(title, "Its list of models is empty.", False))
        notes += [Note("", server.text, False) for server in self.locked_servers]
        if text := self._providers.default_note:
            notes.append(Note("", f"{text}.", False))
        return notes

    @property
    def has_no_list(self) -> bool:
        """Whether the only provider has answered and has no list of models.

        Always False with discovery: a server counts as discovered only if it gives a list.
        """
        known = self._known
        if self.is_discovered or len(known.providers) != 1:
            return False
        ((_, groups, fault),) = known.providers
        if names_in(groups):
            return False
        return groups is not None if fault is None else fault.code in NO_LIST_CODES


def _known(state: State, lists: PageLists) -> _Known:
    names = {
        model.name: (group.title, model.label)
        for group in lists.with_hidden
        for model in group.models
    }
    abilities = {
        model.name: model.abilities
        for group in lists.with_hidden
        for model in group.models
        if model.abilities is not UNKNOWN
    }
    return _Known(state, _bounded(lists.groups), names, abilities, lists.providers)


def _words_of(fault: HaltError) -> tuple[str, bool]:
    """The text of a provider's note, and whether it is a fault that may pass."""
    if fault.code == "endpoint_not_found":
        return "It provides no list of models.", False
    return fault.message, True


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

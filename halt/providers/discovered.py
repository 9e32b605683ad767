"""Providers that Halt discovers at run time: model servers of this machine, and the demo model.

A discovered server's models are named PROVIDER/MODEL, even if it is the only server, so the names
stay valid when another server appears. The demo model keeps its plain name, and is the default when
nothing else has a model. Connected providers stand beside them. The models of a server that has
gone are no longer listed; a request for one fails with an error that says that this server cannot
be reached.

A request without a model goes to the model that was set, else to the one chosen on the page, else
to the one used last, else to one that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from halt.clock import now
from halt.config.model_servers import DiscoveryResult, Server
from halt.config.providers import DEMO
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError
from halt.model_info import UNKNOWN, ModelGroup, ModelInfo
from halt.providers.cached_query import CachedQuery
from halt.providers.discovery import Discovery
from halt.providers.last_model import LastModel
from halt.providers.router import (
    WAIT_SECONDS,
    ModelGroups,
    ModelLists,
    Providers,
    Route,
    State,
    names_in,
)


class DiscoveredProviders(Providers):
    """The Upstream of the servers that `discovery` finds."""

    def __init__(
        self,
        providers: Mapping[str, Upstream],
        discovery: Discovery,
        make: Callable[[Server], Upstream],
        *,
        demo: str = "",
        configured: str = "",
        last: LastModel,
    ) -> None:
        """`providers`: the demo model's and those found so far; `make` creates one for a server.

        `demo`: name of the demo model, empty if it does not run. `configured`: the default model if
        a server offers it; otherwise the model in `last` is.
        """
        super().__init__(providers)
        self._discovery = discovery
        self._make = make
        self._demo = demo
        self._configured = configured
        self._last = last

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        if request.model or connection.route is not None:
            reply = super().open(request, connection)
            if request.model:
                self._last.set(request.model)
            return reply
        result = self._discovery.latest
        if not (result.servers or self._demo) or any(
            server.models is None for server in result.servers
        ):
            result = self._refresh(connection.chain)
        name = self._default_name(result)
        reply = super().open(msgspec.structs.replace(request, model=name or None), connection)
        if name and name != self._demo:  # not stored: a server that appears must be the default
            self._last.set(name)
        return reply

    def models(self, connection: UpstreamConnection) -> list[str]:
        self._refresh(connection.chain)
        return super().models(connection)

    @property
    def has_model(self) -> bool:
        is_found = self._discovery.latest.has_chat_model
        return bool(is_found or self._demo or self._state.connected)

    def look_again(self, *, everywhere: bool = False) -> None:
        self._refresh((), missed=True, everywhere=everywhere)

    @property
    def default_note(self) -> str:
        if self._find_by_prefix(self._configured, self._state.connected):
            return ""
        return self._discovery.latest.ambiguity_text(self._configured)

    @property
    def known_model(self) -> str:
        return self._default_name(self._discovery.latest)

    @property
    def _single(self) -> Upstream | None:
        single = super()._single
        return single if DEMO in self._state.own else None

    def _full_name(self, name: str, model: str) -> str:
        return model if name == DEMO else f"{name}/{model}"

    def _refresh(
        self, chain: Chain, *, missed: bool = False, everywhere: bool = False
    ) -> DiscoveryResult:
        """Return the current discovery result, and add its new servers as providers.

        `missed`, `everywhere`: see `Discovery.refresh`. For a request from another Halt (`chain` is
        not empty), nothing is refreshed: the other Halt may be probing for servers itself, and each
        of the two would wait for the other.
        """
        result = (
            self._discovery.latest
            if chain
            else self._discovery.refresh(missed=missed, everywhere=everywhere)
        )
        for server in result.servers:
            if server.name not in self._state.own:
                self.add(server.name, self._make(server))
        return result

    def _start_lists(self) -> float:
        queries = self._queries(self._discovery.latest)
        return max([query.start() for query in queries.values()], default=now())

    def _queries(self, result: DiscoveryResult) -> dict[str, CachedQuery[ModelGroups]]:
        """The lists that the discovery does not bring: the demo model's, the connected ones'."""
        own, connected, _ = self._state
        queries = {name: member.models for name, member in connected.items()}
        if DEMO in own and (self._demo or not (result.servers or connected)):
            queries[DEMO] = own[DEMO].models
        return queries

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> ModelLists:
        result = self._refresh(chain) if seconds else self._discovery.latest
        lists: dict[str, tuple[ModelGroups | None, HaltError | None]] = {
            server.name: (_groups_of(server), None) for server in result.servers
        }
        return lists | self._query_all(self._queries(result), chain, seconds)

    def _resolve(self, model: str, chain: Chain) -> Route:
        if not model:
            return self._first
        if match := self._find_by_prefix(model, self._members):
            return match
        if not self._offered_name(model, self._discovery.latest):
            self._refresh(chain, missed=True)
        lists = self._lists(chain)
        # `_lists` may have added its provider.
        if match := self._find_by_prefix(model, self._members):
            return match
        if len(lists) == 1 and not any(model in names_in(groups) for groups, _ in lists.values()):
            # A server may accept names that it does not list: Ollama takes "x" for "x:latest".
            name = next(iter(lists))
            return Route(name, self._members[name].upstream, model)
        return self._find_by_list(model, lists)

    def _default_name(self, result: DiscoveryResult) -> str:
        """Return the model for requests that name none, empty if there is none."""
        for name in (self._configured, self._default_model, self._last.name):
            if full_name := self._offered_name(name, result):
                return full_name
        chat_servers = [server for server in result.servers if server.default]
        for server in sorted(chat_servers, key=lambda server: not server.is_loaded):
            return self._full_name(server.name, server.default)
        if connected := self._state.connected:
            name, member = next(iter(connected.items()))
            model = member.upstream.known_model
            return self._full_name(name, model) if model else ""
        return self._demo

    @property
    def _first(self) -> Route:
        """The first connected provider, else the demo model."""
        own, connected, _ = self._state
        return State(connected or own).first

    def _offered_name(self, name: str, result: DiscoveryResult) -> str:
        """Return a model's full name, empty unless one server offers it or it is the demo model."""
        if not name or name == self._demo or self._find_by_prefix(name, self._state.connected):
            return name
        full_names = result.full_names(name)
        return full_names[0] if len(full_names) == 1 else ""


def _groups_of(server: Server) -> ModelGroups | None:
    """Return the server's models, None if they are not known yet."""
    if server.models is None:
        return None
    models = [ModelInfo(name, name, server.abilities.get(name, UNKNOWN)) for name in server.models]
    return [ModelGroup(server.title, models)]

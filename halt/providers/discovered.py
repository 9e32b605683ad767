"""The providers that are found while Halt runs: model servers of this machine, and the demo model.

A found server's models are PROVIDER/MODEL, also where it is the only one, so that their names stay
valid when another server appears. The demo model has its own name, and answers where no server has
a model. A server that is gone is offered no more, and is named as the one that cannot be reached
where its models are asked for.

Where a request names no model, the one that was used last answers, else one that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from halt.clock import now
from halt.config.model_servers import Found, Server
from halt.config.providers import DEMO
from halt.core.connection import Line
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError
from halt.providers.discovery import Discovery
from halt.providers.last_model import LastModel
from halt.providers.router import WAIT_SECONDS, Groups, Lists, Providers, names_in


class DiscoveredProviders(Providers):
    """The Upstream of what `discovery` finds."""

    def __init__(
        self,
        providers: Mapping[str, Upstream],
        discovery: Discovery,
        make: Callable[[Server], Upstream],
        *,
        demo: str = "",
        wanted: str = "",
        last: LastModel,
    ) -> None:
        """`providers`: the demo model's, and those that were found; `make` makes further ones.

        `demo` is the demo model, empty where it does not run. `wanted` answers by default where it
        is offered; else the one that answered `last` does.
        """
        super().__init__(providers)
        self._discovery = discovery
        self._make = make
        self._demo = demo
        self._configured = wanted
        self._last = last

    def open(self, request: ChatRequest, line: Line) -> Reply:
        if request.model:
            reply = super().open(request, line)
            self._last.set(request.model)
            return reply
        found = self._discovery.latest
        if not (found.servers or self._demo) or any(each.models is None for each in found.servers):
            found = self._refresh(line.chain)
        name = self._default_name(found)
        reply = super().open(msgspec.structs.replace(request, model=name or None), line)
        if name != self._demo:  # which gives way to a server that appears
            self._last.set(name)
        return reply

    def models(self, line: Line) -> list[str]:
        self._refresh(line.chain)
        return super().models(line)

    @property
    def known_model(self) -> str:
        return self._default_name(self._discovery.latest)

    @property
    def _single(self) -> Upstream | None:
        single = super()._single
        return single if DEMO in self._members else None

    def _full_name(self, name: str, model: str) -> str:
        return model if name == DEMO else f"{name}/{model}"

    def _refresh(self, chain: Chain, *, missed: bool = False) -> Found:
        """What there is now; providers that are new are added. `missed`: see `Discovery.look`.

        What is known, where another Halt asks: it may be looking for servers itself, and each of
        the two would wait for the other.
        """
        found = self._discovery.latest if chain else self._discovery.refresh(missed=missed)
        for server in found.servers:
            if server.name not in self._members:
                self.add(server.name, self._make(server))
        return found

    def _start_lists(self) -> float:
        demo = self._members.get(DEMO)
        if demo is not None and (self._demo or not self._discovery.latest.servers):
            return demo.models.start()
        return now()  # `_lists` looks

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> Lists:
        found = self._refresh(chain) if seconds else self._discovery.latest
        lists: dict[str, tuple[Groups | None, HaltError | None]] = {
            server.name: (None if server.models is None else [("", list(server.models))], None)
            for server in found.servers
        }
        if DEMO in self._members and (self._demo or not lists):
            lists[DEMO] = self._query_all({DEMO: self._members[DEMO].models}, chain, seconds)[DEMO]
        return lists

    def _resolve(self, model: str, chain: Chain) -> tuple[Upstream, str]:
        if not model:
            return self._first, model
        if named := self._find_by_prefix(model):
            return named
        if not self._offered_name(model, self._discovery.latest):
            self._refresh(chain, missed=True)
        lists = self._lists(chain)
        if named := self._find_by_prefix(model):  # it was found just now
            return named
        if len(lists) == 1 and not any(model in names_in(groups) for groups, _ in lists.values()):
            # A server knows more than it lists: Ollama "x" where it lists "x:latest".
            return self._members[next(iter(lists))].upstream, model
        return self._find_by_list(model, lists)

    def _default_name(self, found: Found) -> str:
        """The model that answers where none is named, empty where there is none."""
        for name in (self._configured, self._last.name):
            if offered := self._offered_name(name, found):
                return offered
        chatting = [server for server in found.servers if server.default]
        for server in sorted(chatting, key=lambda server: not server.is_loaded):
            return self._full_name(server.name, server.default)
        return self._demo

    def _offered_name(self, name: str, found: Found) -> str:
        """The full name of a model that is offered, empty for any other."""
        if not name or name == self._demo:
            return name
        names = found.named(name)
        return names[0] if len(names) == 1 else ""

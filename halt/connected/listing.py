"""All providers as a person may see them: where each comes from, its state, its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from halt.clock import now
from halt.config.environment import variable
from halt.config.model_servers import Server, origin, server_title
from halt.config.provider_setup import setup
from halt.config.providers import DEMO, ModelSettings
from halt.config.settings import Config
from halt.connected.settings import SHARED
from halt.connected.vault import last_four
from halt.model_info import Abilities, ModelInfo
from halt.providers.cached_query import CachedQuery
from halt.providers.client_transport import public_address
from halt.providers.discovery import Discovery
from halt.providers.member import Member
from halt.providers.model_list import is_name
from halt.providers.model_view import DEFAULTS, ModelView
from halt.providers.router import Providers
from halt.store.connected import KeyRow, ProviderRow, Snapshot

SLOW_AFTER = 3.0  # seconds for an answer to a request that costs a server nothing

Source = Literal["variable", "file", "found", "demo", "page"]
State = Literal["ok", "slow", "asking", "fault"]

#: Kind -> the variables of its address and its key.
_VARIABLES = {
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "azure": ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"),
    "anthropic": ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
}


@dataclass(frozen=True)
class ModelLine:
    """A model of a provider, also a hidden one. `name`: at its provider."""

    name: str
    full_name: str  # in requests to Halt
    label: str
    abilities: Abilities  # as the server says; else as chosen
    chosen: ModelSettings
    is_default: bool


@dataclass(frozen=True)
class ProviderLine:
    """A provider. `key`: the end of its key, as in "…abcd", or other words; "" without one."""

    name: str
    title: str
    source: Source
    source_text: str  # where it is set
    kind: str = "openai"
    address: str = ""
    key: str = ""
    state: State = "asking"
    state_text: str = ""  # in the server's words, if it is a fault
    models: list[ModelLine] = field(default_factory=list)
    row: ProviderRow | None = None  # of a connected one
    header_names: tuple[str, ...] = ()
    takes_own_keys: bool = False
    own_key: str = ""  # as `key`, of the person who asks


class Listing:
    """Makes the lines of all providers. Any thread may use it."""

    def __init__(self, config: Config, upstream: Providers, discovery: Discovery | None) -> None:
        self._config, self._providers, self._discovery = config, upstream, discovery
        configured = setup(config)
        shown = configured.providers if config.has_provider else ()
        self._configured = {provider.name: provider for provider in shown}
        #: The default model of the settings, which wins over a chosen one; "" for none.
        self.fixed_default = configured.default

    def lines(self, snapshot: Snapshot, person: str, wait: float) -> list[ProviderLine]:
        """The providers in the order of the menu. Waits at most `wait` seconds for their answers.

        `snapshot`: of the connected ones. `person`: whose own keys are told.
        """
        rows = {row.name: row for row in snapshot.providers}
        keys = {(key.provider, key.person): key for key in snapshot.keys}
        servers = self._discovery.latest.servers if self._discovery is not None else ()
        found = {server.name: server for server in servers}
        members = self._members(found)
        for member in members.values():
            member.check.start()
            member.models.start()
        until = now() + wait
        lines = []
        for name, member in members.items():
            line = self._known_line(name, rows, found, keys, person)
            state, text = _state(member, until)
            if line.takes_own_keys and not (line.key or line.header_names) and state == "fault":
                state, text = "ok", "each person uses a key of their own"
            models = self._models(name, member, until)
            lines.append(replace(line, state=state, state_text=text, models=models))
        return lines

    def ask_again(self, wait: float, name: str = "") -> None:
        """Ask each provider that has failed anew, or only this one; wait at most `wait` seconds.

        Their faults are kept for some seconds else, and a person may have mended one meanwhile.
        """
        queries: list[CachedQuery[Any]] = []
        for other in self._providers.names:
            member = self._providers.member(other) if name in {"", other} else None
            both = () if member is None else (member.check, member.models)
            if any(query.wait(0.0)[1] is not None for query in both):
                queries += both
        for query in queries:
            query.expire()
            query.start()
        until = now() + wait
        for query in queries:
            query.wait(until, fresh=True)

    def _members(self, found: Mapping[str, Server]) -> dict[str, Member]:
        """All providers but servers that are gone, and the demo model where it does not run."""
        members: dict[str, Member] = {}
        for name in self._providers.names:
            if name == DEMO and not self._config.has_demo:
                continue
            member = self._providers.member(name)
            is_gone = (
                self._discovery is not None
                and name not in found
                and name not in self._configured
                and name != DEMO
                and not self._providers.is_connected(name)
            )
            if member is not None and not is_gone:
                members[name] = member
        return members

    def _known_line(
        self,
        name: str,
        rows: Mapping[str, ProviderRow],
        found: Mapping[str, Server],
        keys: Mapping[tuple[str, str], KeyRow],
        person: str,
    ) -> ProviderLine:
        """A provider's line with all that needs no answer of the provider."""
        row = rows.get(name)
        if row is not None and self._providers.is_connected(name):
            shared = keys.get((name, SHARED))
            own = keys.get((name, person)) if person else None
            return ProviderLine(
                name=name,
                title=row.title,
                source="page",
                source_text="connected on this page",
                kind=row.kind,
                address=row.base_url,
                key=_key_text(shared),
                row=row,
                header_names=shared.header_names if shared is not None else (),
                takes_own_keys=row.own_keys and self._config.own_keys,
                own_key=_key_text(own),
            )
        if (server := found.get(name)) is not None:
            return ProviderLine(
                name=name,
                title=server.title,
                source="found",
                source_text=f"found at {origin(server.url)}",
                address=server.url,
            )
        if name == DEMO:
            text = "started by Halt, because there is no other model"
            return ProviderLine(name=name, title="Demo model", source="demo", source_text=text)
        return self._configured_line(name)

    def _configured_line(self, name: str) -> ProviderLine:
        settings = self._configured.get(name)
        if settings is None:
            text = "set by the program"  # which gave its own upstream
            return ProviderLine(name=name, title="Model", source="variable", source_text=text)
        source: Source = "variable"
        text = " and ".join(filter(variable, _VARIABLES[settings.kind]))
        if self._config.config_file:
            source, text = "file", f"[providers.{settings.name}] of {self._config.config_file}"
        return ProviderLine(
            name=name,
            title=settings.title or server_title(settings.base_url),
            source=source,
            source_text=text,
            kind=settings.kind,
            address=public_address(settings.base_url),
            key="" if settings.key == "none" else _end_of(last_four(settings.key)),
        )

    def _models(self, name: str, member: Member, until: float) -> list[ModelLine]:
        """The models that a provider lists, also hidden ones.

        Without names that no request may have: longer ones, or with characters that reorder others.
        """
        groups, _ = member.models.wait(until, fresh=True)
        infos = [model for group in groups or () for model in group.models if is_name(model.name)]
        view, default = self._providers.view, self._providers.known_model
        return [
            self._line(name, model, view, default)
            for model in view.listed(name, infos, hidden=True)
        ]

    def _line(self, name: str, model: ModelInfo, view: ModelView, default: str) -> ModelLine:
        full_name = self._providers.full_name(name, model.name)
        return ModelLine(
            name=model.name,
            full_name=full_name,
            label=model.label,
            abilities=model.abilities,
            chosen=view.of(name).get(model.name, DEFAULTS),
            is_default=full_name == default,
        )


def _state(member: Member, until: float) -> tuple[State, str]:
    """The state by the health check that runs, or by the last one if it does not end in time."""
    answer, fault = member.check.wait(until, fresh=True)
    if fault is not None:
        return "fault", fault.message
    if answer is None:
        return "asking", "has not answered yet"
    took = member.check.took or 0.0
    if took > SLOW_AFTER:
        return "slow", f"answered after {took:.0f} s"
    return "ok", "reachable"


def _key_text(key: KeyRow | None) -> str:
    if key is None or not (key.last_four or not key.header_names):
        return ""
    return _end_of(key.last_four)


def _end_of(four: str) -> str:
    """A key by its end; a short one has none that is shown."""
    return f"…{four}" if four else "saved"

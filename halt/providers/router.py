"""Several providers as one Upstream: the model's name decides which provider gets a request.

The providers of the settings come first. One alone has models with their own names. Of several a
model is `PROVIDER/MODEL`, and its own name works as well if only one of them lists it. The models
of connected providers, which are added to these later, always have their provider's name before
them, so that they rename nothing.

Lists of models and health checks run in background threads, one for each provider and query at
most, and are cached here: a provider that is down or silent hides no other provider's models and
delays no page. The layers above do not cache them again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from halt.clock import now
from halt.config.model_servers import title_of_name
from halt.config.providers import DEMO, ModelSettings
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError, UpstreamError
from halt.model_info import ModelGroup
from halt.providers.base import Provider
from halt.providers.cached_query import CachedQuery
from halt.providers.member import QUERY_TIMEOUT, Member
from halt.providers.model_view import ModelView

WAIT_SECONDS = 1.5  # for the lists of all providers together

T = TypeVar("T")
ModelGroups = list[ModelGroup]
ModelLists = Mapping[str, tuple[ModelGroups | None, HaltError | None]]


class Route(NamedTuple):
    """Where a request goes: the provider's name, its upstream, and the model's name there."""

    name: str
    upstream: Upstream
    model: str


class PageList(NamedTuple):
    """What is known of a provider's list of models: the last one, and why the last query failed."""

    title: str
    groups: ModelGroups | None
    fault: HaltError | None


class PageLists(NamedTuple):
    """The lists of all providers, for the page."""

    groups: ModelGroups
    with_hidden: ModelGroups  # the same, with the models that the menu hides
    providers: list[PageList]


class State(NamedTuple):
    """The providers at one moment, and what was chosen for their models."""

    own: Mapping[str, Member] = {}  # of the settings, or found on this machine
    connected: Mapping[str, Member] = {}  # those of `Providers.connect`
    view: ModelView = ModelView()

    @property
    def members(self) -> Mapping[str, Member]:
        return {**self.own, **self.connected} if self.connected else self.own

    @property
    def first(self) -> Route:
        """The first provider, without a model; the demo model's only if there is no other one.

        Raises UpstreamError if there is none.
        """
        names = sorted(self.members, key=lambda name: name == DEMO)
        if not names:
            raise UpstreamError("no_model")
        return Route(names[0], self.members[names[0]].upstream, "")


def as_providers(upstream: Upstream) -> Providers:
    """Return `upstream` if it is a Providers, else a Providers with `upstream` alone."""
    return upstream if isinstance(upstream, Providers) else Providers({"": upstream})


def names_in(groups: ModelGroups | None) -> list[str]:
    """Return the names of the models of all groups."""
    return [model.name for group in groups or () for model in group.models]


class Providers:
    """The Upstream of any number of providers. Any thread may change them at any time."""

    #: Returns the upstream that a person uses instead of the provider with this name; None: the
    #: provider's own one. Set once, before the first request.
    own_upstream: Callable[[str, str], Upstream | None]

    def __init__(self, providers: Mapping[str, Upstream], default: str = "") -> None:
        """`default`: the model for requests that name none."""
        self._default = default
        self.own_upstream = lambda _name, _person: None
        self._lock = threading.Lock()  # held to replace the two attributes below, not to read them
        self._state = State()
        self._closed = False
        for name, upstream in providers.items():
            self.add(name, upstream)

    def add(self, name: str, upstream: Upstream) -> None:
        """Add a provider. Closes it at once if its name is taken, or after `close`."""
        member = Member(name, upstream)
        with self._lock:
            state = self._state
            if is_new := not self._closed and name not in state.own:
                _use_settings(member.upstream, state.view.of(name))
                self._state = state._replace(own={**state.own, name: member})
        if not is_new:
            upstream.close()

    def connect(self, upstreams: Mapping[str, Upstream], view: ModelView) -> None:
        """Replace the connected providers and the choices for models.

        An upstream that stays keeps its lists and its connections. One that does not is closed;
        runs that use it go on to their end. A name that another provider has is left out.
        """
        with self._lock:
            own, before, _ = self._state
            connected = {
                name: known
                if (known := before.get(name)) is not None and known.upstream is upstream
                else Member(name, upstream)
                for name, upstream in upstreams.items()
                if name not in own and not self._closed
            }
            for name, member in {**own, **connected}.items():
                _use_settings(member.upstream, view.of(name))
            self._state = State(own, connected, view)
        kept = {id(member.upstream) for member in connected.values()}
        gone = [member.upstream for member in before.values()] + list(upstreams.values())
        for upstream in gone:
            if id(upstream) not in kept:
                upstream.close()

    @property
    def state(self) -> State:
        """The providers and choices of this moment: another object after each change."""
        return self._state

    @property
    def has_model(self) -> bool:
        """Whether a request may get an answer, as far as that is known without waiting."""
        return bool(self._members)

    def look_again(self, *, everywhere: bool = False) -> None:
        """Look for providers that come and go, where there are such. Waits half a second at most.

        `everywhere`: also where none was found recently.
        """

    @property
    def addresses(self) -> set[str]:
        """The base URLs of the connected providers."""
        members = self._state.connected.values()
        return {getattr(member.upstream, "address", "") for member in members}

    @property
    def default_note(self) -> str:
        """Why the model that was set for requests without one is not used; "" if it is."""
        return ""

    @property
    def view(self) -> ModelView:
        """What was chosen for models."""
        return self._state.view

    @property
    def names(self) -> list[str]:
        """The names of all providers, those of the settings first."""
        return list(self._members)

    def member(self, name: str) -> Member | None:
        """The provider with this name."""
        return self._members.get(name)

    def is_connected(self, name: str) -> bool:
        """Whether this is one of the connected providers."""
        return name in self._state.connected

    def full_name(self, name: str, model: str) -> str:
        """The name of a provider's model in requests to Halt."""
        return self._full_name(name, model)

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        """As `Upstream.open`. A run's further requests go where its first one went."""
        if connection.route is None:
            wanted = request.model or self._default_model
            name, upstream, model = self._resolve(wanted, connection.chain)
            if connection.person and name in self._state.connected:
                own = self.own_upstream(name, connection.person)
                if own is not None:
                    _use_settings(own, self.view.of(name))
                    upstream = own
            connection.route = (upstream, model or None)
        upstream, model_there = connection.route
        if model_there != request.model:
            request = msgspec.structs.replace(request, model=model_there)
        reply: Reply = upstream.open(request, connection)
        return reply

    def models(self, connection: UpstreamConnection) -> list[str]:
        if single := self._single:
            return single.models(connection)
        lists = self._lists(connection.chain)
        names = names_in(self._grouped(lists))
        if not names:
            self._raise_first_fault(lists)
        return names

    def catalog(self, connection: UpstreamConnection) -> ModelGroups:
        """As `Upstream.catalog`, in the order of the providers.

        Waits WAIT_SECONDS at most, and not at all if the connection is interrupted. A provider that
        has not answered yet, or is down, has the models that it listed before, or none. Raises
        UpstreamError if no provider has a model; its code says whether there is a list.
        """
        if connection.interrupted:
            return self._grouped(self._lists(connection.chain, 0.0))
        return self._groups_or_raise(self._lists(connection.chain, WAIT_SECONDS))

    def lists_for_page(self, wait: float) -> PageLists:
        """The lists, as they are known `wait` seconds after the queries started.

        So the first page waits for a silent provider, and later pages do not.
        """
        started_at = self._start_lists()
        return self._page_lists(self._lists((), started_at + wait - now()))

    @property
    def known_lists(self) -> PageLists:
        """The lists as they are known now."""
        return self._page_lists(self._lists((), 0.0))

    def _page_lists(self, lists: ModelLists) -> PageLists:
        providers = [
            PageList(self._title(name, groups), groups, fault)
            for name, (groups, fault) in lists.items()
        ]
        return PageLists(self._grouped(lists), self._grouped(lists, hidden=True), providers)

    def retry_lists(self, title: str, wait: float) -> None:
        """Query failed lists again: of providers with this title, of all if it is empty.

        Returns when they have an answer, after `wait` seconds at the latest.
        """
        queries = []
        for name, (groups, fault) in self._lists((), 0.0).items():
            if fault and title in ("", self._title(name, groups)):
                query = self._members[name].models
                query.expire()
                query.start()
                queries.append(query)
        deadline = now() + wait
        for query in queries:
            query.wait(deadline, fresh=True)

    def _groups_or_raise(self, lists: ModelLists) -> ModelGroups:
        """Return the groups. Raises UpstreamError if no provider has a model."""
        if not any(names_in(groups) for groups, _ in lists.values()):
            if not lists:
                raise UpstreamError("no_model")
            if any(groups is None and fault is None for groups, fault in lists.values()):
                raise UpstreamError("upstream_unreachable", "it did not answer in time")
            self._raise_first_fault(lists)
        return self._grouped(lists)

    def _title(self, name: str, groups: ModelGroups | None) -> str:
        """The title of a provider with these models."""
        if groups and groups[0].title:
            return groups[0].title
        member = self._members.get(name)
        return title_of_name(name) if member is None else member.title

    def _grouped(self, lists: ModelLists, *, hidden: bool = False) -> ModelGroups:
        """Return one group for each provider, or the groups of a provider that has several.

        Providers with the same title have their name in it. `hidden`: also hidden models.
        """
        named_groups = [
            (name, group)
            for name, (groups, _) in lists.items()
            for group in groups or [ModelGroup(self._title(name, groups), [])]
        ]
        titles = [group.title or self._title(name, None) for name, group in named_groups]
        counts = Counter(titles)
        view = self.view
        return [
            ModelGroup(
                f"{title} ({name})" if counts[title] > 1 else title,
                [
                    model._replace(name=self._full_name(name, model.name))
                    for model in view.listed(name, group.models, hidden=hidden)
                ],
            )
            for title, (name, group) in zip(titles, named_groups, strict=True)
        ]

    def check(self, connection: UpstreamConnection) -> None:
        """Raise UpstreamError unless at least one provider answers."""
        if single := self._single:
            single.check(connection)
            return
        if not self._members:
            raise UpstreamError("no_model")
        checks = {name: member.check for name, member in self._members.items()}
        for seconds in (WAIT_SECONDS, QUERY_TIMEOUT):  # the long wait only if no check succeeds
            results = self._query_all(checks, connection.chain, seconds, fresh=True)
            if any(answer for answer, fault in results.values() if fault is None):
                return
        self._raise_first_fault(results)

    def start_checks(self) -> float:
        """Start each provider's health check that is not fresh; return the latest start time."""
        return max((member.check.start() for member in self._members.values()), default=0.0)

    def check_results(self, until: float) -> list[tuple[bool | None, HaltError | None]]:
        """Return each health check's (answer, error), as far as they are known at time `until`."""
        return [member.check.wait(until, fresh=True) for member in self._members.values()]

    @property
    def known_model(self) -> str:
        if default := self._default_model:
            return default
        if not self._members:
            return ""
        name, upstream, _ = self._first
        model = upstream.known_model
        return self._full_name(name, model) if model else ""

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for member in self._members.values():
            member.upstream.close()

    @property
    def _members(self) -> Mapping[str, Member]:
        return self._state.members

    @property
    def _default_model(self) -> str:
        """The model that was set or chosen for requests that name none, "" for none."""
        if self._default:
            return self._default
        chosen = self.view.default
        if chosen is None or chosen[0] not in self._members:
            return ""
        return self._full_name(*chosen)

    @property
    def _single(self) -> Upstream | None:
        """The only provider, if its models have their own names and nothing was chosen for them."""
        own, connected, view = self._state
        if len(own) != 1 or connected or view.settings or view.order:
            return None
        return self._first.upstream

    def _full_name(self, name: str, model: str) -> str:
        """Return the name of a provider's model in requests to Halt."""
        return model if name == self._bare else f"{name}/{model}"

    @property
    def _bare(self) -> str | None:
        """The provider whose models have their own names, None if there is none."""
        own = self._state.own
        return next(iter(own)) if len(own) == 1 else None

    def _start_lists(self) -> float:
        """Start each provider's list query that is not fresh; return the latest start time."""
        return max((member.models.start() for member in self._members.values()), default=0.0)

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> ModelLists:
        """Return each provider's list, as far as it is known after this many seconds.

        `chain`: of the request that needs the lists, see `halt.core.via`.
        """
        queries = {name: member.models for name, member in self._members.items()}
        return self._query_all(queries, chain, seconds)

    def _resolve(self, model: str, chain: Chain) -> Route:
        """Return where a request for a model goes. Raises UpstreamError."""
        if not model:
            return self._first
        own, connected, _ = self._state
        if len(own) == 1:
            if match := self._find_by_prefix(model, connected):
                return match
            ((name, member),) = own.items()
            return Route(name, member.upstream, model)
        return self._find_by_prefix(model, self._members) or self._find_by_list(
            model, self._lists(chain)
        )

    @property
    def _first(self) -> Route:
        """The first provider, without a model. Raises UpstreamError if there is none."""
        return self._state.first

    @staticmethod
    def _find_by_prefix(model: str, members: Mapping[str, Member]) -> Route | None:
        """Return the route of PROVIDER/MODEL; None if none of these providers has that prefix."""
        name, _, rest = model.partition("/")
        member = members.get(name) if rest else None
        return None if member is None else Route(name, member.upstream, rest)

    def _find_by_list(self, model: str, lists: ModelLists) -> Route:
        """Return the route to the only provider that lists a model. Raises UpstreamError.

        Connected providers are looked at last: they take no name from the others.
        """
        listing = [name for name, (groups, _) in lists.items() if model in names_in(groups)]
        own = self._state.own
        names = [name for name in listing if name in own] or listing
        if len(names) == 1:
            return Route(names[0], self._members[names[0]].upstream, model)
        if names:
            choice = " or ".join(f"{name}/{model}" for name in names)
            sentence = f"Several providers have the model {model!r}: use {choice}."
        elif self._members:
            sentence = (
                f"No provider lists the model {model!r}: choose another one. Requests name "
                "it PROVIDER/MODEL, PROVIDER being one of "
                f"{', '.join(self._members)}."
            )
        else:
            raise UpstreamError("no_model")
        raise UpstreamError("model_not_found", sentence=sentence)

    @staticmethod
    def _query_all(
        queries: Mapping[str, CachedQuery[T]],
        chain: Chain,
        seconds: float = WAIT_SECONDS,
        *,
        fresh: bool = False,
    ) -> dict[str, tuple[T | None, HaltError | None]]:
        """Run all queries; return each one's (answer, error) as known after this many seconds."""
        for query in queries.values():
            query.start(chain)
        until = now() + seconds
        return {name: query.wait(until, fresh=fresh) for name, query in queries.items()}

    @staticmethod
    def _raise_first_fault(results: Mapping[str, tuple[T | None, HaltError | None]]) -> None:
        for _, fault in results.values():
            if fault is not None:
                raise fault


def _use_settings(upstream: Upstream, settings: Mapping[str, ModelSettings]) -> None:
    """Let a provider send what was chosen for its models."""
    if isinstance(upstream, Provider):
        upstream.use_models(settings)

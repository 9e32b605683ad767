"""Several providers as one Upstream: the model's name decides which provider gets a request.

With one provider, its models have their own names. With several, a model is `PROVIDER/MODEL`, and
its own name works as well if only one provider lists it.

Lists of models and health checks run in background threads, one for each provider and query at
most, and are cached here: a provider that is down or silent hides no other provider's models and
delays no page. The layers above do not cache them again.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from halt.clock import now
from halt.config.model_servers import title_of_name
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError, UpstreamError
from halt.model_info import ModelGroup
from halt.providers.cached_query import CachedQuery

LIST_SECONDS = 60.0  # a list of models stays fresh
RECHECK_SECONDS = 10.0  # a failed query, and the result of a health check, stay fresh
QUERY_TIMEOUT = 9.0  # for one answer; after it the provider counts as unreachable
WAIT_SECONDS = 1.5  # for the lists of all providers together

T = TypeVar("T")
ModelGroups = list[ModelGroup]
ModelLists = Mapping[str, tuple[ModelGroups | None, HaltError | None]]


class _Member:
    """A provider with its cached list of models and its cached health check."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.upstream = upstream
        self.models = CachedQuery(
            name,
            self._list,
            answer_seconds=LIST_SECONDS,
            fault_seconds=RECHECK_SECONDS,
            timeout=QUERY_TIMEOUT,
        )
        self.check = CachedQuery(
            name,
            self._check,
            answer_seconds=RECHECK_SECONDS,
            fault_seconds=RECHECK_SECONDS,
            timeout=QUERY_TIMEOUT,
        )

    def _list(self, connection: UpstreamConnection) -> ModelGroups:
        return self.upstream.catalog(connection)

    def _check(self, connection: UpstreamConnection) -> bool:
        self.upstream.check(connection)
        return True


def as_providers(upstream: Upstream) -> Providers:
    """Return `upstream` if it is a Providers, else a Providers with `upstream` alone."""
    return upstream if isinstance(upstream, Providers) else Providers({"": upstream})


def names_in(groups: ModelGroups | None) -> list[str]:
    """Return the names of the models of all groups."""
    return [model.name for group in groups or () for model in group.models]


def _title(name: str, groups: ModelGroups | None) -> str:
    """Return the title of a provider with these models."""
    return groups[0].title if groups else title_of_name(name)


class Providers:
    """The Upstream of one or several providers. Any thread may add providers at any time."""

    def __init__(self, providers: Mapping[str, Upstream], default: str = "") -> None:
        """`default`: the model for requests that name none."""
        self._default = default
        self._lock = threading.Lock()  # held to replace the two attributes below, not to read them
        self._members: Mapping[str, _Member] = {}
        self._closed = False
        for name, upstream in providers.items():
            self.add(name, upstream)

    def add(self, name: str, upstream: Upstream) -> None:
        """Add a provider. Closes it at once if its name is taken, or after `close`."""
        member = _Member(name, upstream)
        with self._lock:
            if is_new := not self._closed and name not in self._members:
                self._members = {**self._members, name: member}
        if not is_new:
            upstream.close()

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> Reply:
        provider, model = self._resolve(request.model or self._default, connection.chain)
        if model != request.model:
            request = msgspec.structs.replace(request, model=model or None)
        return provider.open(request, connection)

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

    def catalog_for_page(self, wait: float) -> tuple[ModelGroups, list[tuple[str, HaltError]]]:
        """As `catalog`, but waits until `wait` seconds after the queries started.

        So the first page waits for a silent provider, and later pages do not. Also returns the
        errors of providers whose last query failed, each with the provider's title.
        """
        started_at = self._start_lists()
        lists = self._lists((), started_at + wait - now())
        faults = [(_title(name, groups), fault) for name, (groups, fault) in lists.items() if fault]
        return self._groups_or_raise(lists), faults

    def retry_lists(self, title: str, wait: float) -> None:
        """Query failed lists again: of providers with this title, of all if it is empty.

        Returns when they have an answer, after `wait` seconds at the latest.
        """
        queries = []
        for name, (groups, fault) in self._lists((), 0.0).items():
            if fault and title in ("", _title(name, groups)):
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
            if any(groups is None and fault is None for groups, fault in lists.values()):
                raise UpstreamError("upstream_unreachable", "it did not answer in time")
            self._raise_first_fault(lists)
        return self._grouped(lists)

    def _grouped(self, lists: ModelLists) -> ModelGroups:
        """Return one group for each provider, or the groups of a provider that has several.

        Providers with the same title have their name in it.
        """
        named_groups = [
            (name, group)
            for name, (groups, _) in lists.items()
            for group in groups or [ModelGroup(title_of_name(name), [])]
        ]
        counts = Counter(group.title for _, group in named_groups)
        return [
            ModelGroup(
                f"{group.title} ({name})" if counts[group.title] > 1 else group.title or name,
                [model._replace(name=self._full_name(name, model.name)) for model in group.models],
            )
            for name, group in named_groups
        ]

    def check(self, connection: UpstreamConnection) -> None:
        """Raise UpstreamError unless at least one provider answers."""
        if single := self._single:
            single.check(connection)
            return
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
        if self._default:
            return self._default
        name, member = next(iter(self._members.items()))
        model = member.upstream.known_model
        return self._full_name(name, model) if model else ""

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for member in self._members.values():
            member.upstream.close()

    @property
    def _single(self) -> Upstream | None:
        """The only provider, None if there are several."""
        return self._first if len(self._members) == 1 else None

    def _full_name(self, name: str, model: str) -> str:
        """Return the name of a provider's model in requests to Halt."""
        return model if self._single else f"{name}/{model}"

    def _start_lists(self) -> float:
        """Start each provider's list query that is not fresh; return the latest start time."""
        return max((member.models.start() for member in self._members.values()), default=0.0)

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> ModelLists:
        """Return each provider's list, as far as it is known after this many seconds.

        `chain`: of the request that needs the lists, see `halt.core.via`.
        """
        queries = {name: member.models for name, member in self._members.items()}
        return self._query_all(queries, chain, seconds)

    def _resolve(self, model: str, chain: Chain) -> tuple[Upstream, str]:
        """Return the provider of a model, and the model's name there. Raises UpstreamError."""
        if len(self._members) == 1 or not model:
            return self._first, model
        return self._find_by_prefix(model) or self._find_by_list(model, self._lists(chain))

    @property
    def _first(self) -> Upstream:
        return next(iter(self._members.values())).upstream

    def _find_by_prefix(self, model: str) -> tuple[Upstream, str] | None:
        """Return the provider of PROVIDER/MODEL and MODEL; None if no provider has that prefix."""
        name, _, rest = model.partition("/")
        member = self._members.get(name) if rest else None
        return None if member is None else (member.upstream, rest)

    def _find_by_list(self, model: str, lists: ModelLists) -> tuple[Upstream, str]:
        """Return the only provider that lists a model, and the model. Raises UpstreamError."""
        provider_names = [name for name, (groups, _) in lists.items() if model in names_in(groups)]
        if len(provider_names) == 1:
            return self._members[provider_names[0]].upstream, model
        if provider_names:
            choice = " or ".join(f"{name}/{model}" for name in provider_names)
            sentence = f"Several providers have the model {model!r}: use {choice}."
        else:
            sentence = (
                f"No provider lists the model {model!r}: use PROVIDER/MODEL, PROVIDER being one of "
                f"{', '.join(self._members)}."
            )
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

"""Several providers as one: a model's name says who answers.

With one provider its models have their own names. With several a model is `PROVIDER/MODEL`, and its
own name serves as well where only one provider lists it.

What the providers list, and whether they answer, is asked for in threads, one for each provider
and query at most, and kept for a while: a provider that is down or silent hides no other's models
and delays no page. Nothing above keeps it once more.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from halt.clock import now
from halt.core.connection import Line
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError, UpstreamError
from halt.providers.cached_query import CachedQuery

LIST_SECONDS = 60.0  # a list of models is asked for again after this time
RECHECK_SECONDS = 10.0  # one that could not be had, and whether a provider answers
QUERY_TIMEOUT = 9.0  # for one answer; then the provider is as good as unreachable
WAIT_SECONDS = 1.5  # that whoever wants the lists waits for all of them together

T = TypeVar("T")
Groups = list[tuple[str, list[str]]]
Lists = Mapping[str, tuple[Groups | None, HaltError | None]]


class _Member:
    """A provider, and what is known of it."""

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

    def _list(self, line: Line) -> Groups:
        return self.upstream.catalog(line)

    def _check(self, line: Line) -> bool:
        self.upstream.check(line)
        return True


def as_providers(upstream: Upstream) -> Providers:
    """This upstream, or the Providers of it alone."""
    return upstream if isinstance(upstream, Providers) else Providers({"": upstream})


def names_in(groups: Groups | None) -> list[str]:
    """The models of a provider's groups."""
    return [model for _, models in groups or () for model in models]


class Providers:
    """The Upstream of one or several providers. Providers may be added while it is used."""

    def __init__(self, providers: Mapping[str, Upstream], default: str = "") -> None:
        """`default` is the model that answers where none is named."""
        self._default = default
        self._lock = threading.Lock()  # held while the two below are replaced, not to read them
        self._members: Mapping[str, _Member] = {}
        self._closed = False
        for name, upstream in providers.items():
            self.add(name, upstream)

    def add(self, name: str, upstream: Upstream) -> None:
        """Offer one more provider. It is closed at once where the name is taken, or all are."""
        member = _Member(name, upstream)
        with self._lock:
            if is_new := not self._closed and name not in self._members:
                self._members = {**self._members, name: member}
        if not is_new:
            upstream.close()

    def open(self, request: ChatRequest, line: Line) -> Reply:
        provider, model = self._resolve(request.model or self._default, line.chain)
        if model != request.model:
            request = msgspec.structs.replace(request, model=model or None)
        return provider.open(request, line)

    def models(self, line: Line) -> list[str]:
        if single := self._single:
            return single.models(line)
        found = self._lists(line.chain)
        names = names_in(self._grouped(found))
        if not names:
            self._raise_first_fault(found)
        return names

    def catalog(self, line: Line) -> Groups:
        """As `Upstream.catalog` has it, in the order of the providers.

        Takes no longer than WAIT_SECONDS. A provider that has not told yet, or is down, has the
        models that it listed before, or none. An interrupted line waits for nothing. Raises
        UpstreamError where no provider has a model: which fault says whether there is a list.
        """
        if line.interrupted:
            return self._grouped(self._lists(line.chain, 0.0))
        return self._groups_or_raise(self._lists(line.chain, WAIT_SECONDS))

    def catalog_for_page(self, wait: float) -> Groups:
        """The same for a page, which waits until this many seconds after the lists were asked for.

        So one page waits for a silent provider, and later ones do not.
        """
        asked_at = self._start_lists()
        return self._groups_or_raise(self._lists((), asked_at + wait - now()))

    def _groups_or_raise(self, found: Lists) -> Groups:
        """The groups. Raises UpstreamError where no provider has a model."""
        if not any(names_in(groups) for groups, _ in found.values()):
            if any(groups is None and fault is None for groups, fault in found.values()):
                raise UpstreamError("upstream_unreachable", "it did not answer in time")
            self._raise_first_fault(found)
        return self._grouped(found)

    def _grouped(self, found: Lists) -> Groups:
        """A group for each provider; one that stands before several has theirs."""
        return [
            (group or name, [self._full_name(name, model) for model in models])
            for name, (groups, _) in found.items()
            for group, models in groups or [("", [])]
        ]

    def check(self, line: Line) -> None:
        """One provider that answers is enough."""
        if single := self._single:
            single.check(line)
            return
        checks = {name: member.check for name, member in self._members.items()}
        for seconds in (WAIT_SECONDS, QUERY_TIMEOUT):  # the silent ones are awaited only if need be
            found = self._query_all(checks, line.chain, seconds, fresh=True)
            if any(answer for answer, fault in found.values() if fault is None):
                return
        self._raise_first_fault(found)

    def start_checks(self) -> float:
        """Ask each provider whether it answers, where that is not known; when they were asked."""
        return max((each.check.start() for each in self._members.values()), default=0.0)

    def check_results(self, until: float) -> list[tuple[bool | None, HaltError | None]]:
        """Whether each provider answers, as far as it is known at this time."""
        return [each.check.wait(until, fresh=True) for each in self._members.values()]

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
        """The only provider, None where there are several."""
        return self._first if len(self._members) == 1 else None

    def _full_name(self, name: str, model: str) -> str:
        """The name by which requests ask for a provider's model."""
        return model if self._single else f"{name}/{model}"

    def _start_lists(self) -> float:
        """Ask each provider for its list, where it is not known; when they were asked."""
        return max((each.models.start() for each in self._members.values()), default=0.0)

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> Lists:
        """What each provider lists, as far as it is known after this many seconds.

        `chain`: that of the request for which they are asked, see `halt.core.via`.
        """
        queries = {name: member.models for name, member in self._members.items()}
        return self._query_all(queries, chain, seconds)

    def _resolve(self, model: str, chain: Chain) -> tuple[Upstream, str]:
        """Who answers for a model, and its name there. Raises UpstreamError."""
        if len(self._members) == 1 or not model:
            return self._first, model
        return self._find_by_prefix(model) or self._find_by_list(model, self._lists(chain))

    @property
    def _first(self) -> Upstream:
        return next(iter(self._members.values())).upstream

    def _find_by_prefix(self, model: str) -> tuple[Upstream, str] | None:
        """Who answers for PROVIDER/MODEL, and its name there; None where it is no such name."""
        name, _, rest = model.partition("/")
        member = self._members.get(name) if rest else None
        return None if member is None else (member.upstream, rest)

    def _find_by_list(self, model: str, found: Lists) -> tuple[Upstream, str]:
        """The one provider that lists a model, and its name there. Raises UpstreamError."""
        listing = [name for name, (groups, _) in found.items() if model in names_in(groups)]
        if len(listing) == 1:
            return self._members[listing[0]].upstream, model
        if listing:
            choice = " or ".join(f"{name}/{model}" for name in listing)
            raise UpstreamError(
                "model_not_found", f"several providers have {model!r}: use {choice}"
            )
        raise UpstreamError(
            "model_not_found",
            f"no provider lists {model!r}: use PROVIDER/MODEL, "
            f"PROVIDER being one of {', '.join(self._members)}",
        )

    @staticmethod
    def _query_all(
        queries: Mapping[str, CachedQuery[T]],
        chain: Chain,
        seconds: float = WAIT_SECONDS,
        *,
        fresh: bool = False,
    ) -> dict[str, tuple[T | None, HaltError | None]]:
        """What all of them answer, as far as it is known after this many seconds."""
        for query in queries.values():
            query.start(chain)
        until = now() + seconds
        return {name: query.wait(until, fresh=fresh) for name, query in queries.items()}

    @staticmethod
    def _raise_first_fault(found: Mapping[str, tuple[T | None, HaltError | None]]) -> None:
        for _, fault in found.values():
            if fault is not None:
                raise fault

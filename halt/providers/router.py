"""Several providers as one: a model's name says who answers.

With one provider its models have their own names. With several a model is `PROVIDER/MODEL`, and its
own name serves as well where only one provider lists it.

What the providers list is asked for in threads, one for each provider at most, and kept for a
minute, so that a provider that is down or silent hides nobody else's models and delays no page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from halt.clock import now
from halt.core.connection import Line
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.via import Chain
from halt.errors import HaltError, UpstreamError
from halt.providers.cached_query import Question

KEPT_SECONDS = 60.0  # a list of models is asked for again after this time
FAILED_SECONDS = 5.0  # and after this time where it could not be had
ASK_SECONDS = 9.0  # for one answer; then the provider is as good as unreachable
WAIT_SECONDS = 1.5  # that whoever wants the lists waits for all of them together

T = TypeVar("T")


def _question(name: str, ask: Callable[[Line], T], kept: float) -> Question[T]:
    return Question(name, ask, kept=kept, again=FAILED_SECONDS, limit=ASK_SECONDS)


class _Member(NamedTuple):
    upstream: Upstream
    models: Question[list[str]]
    check: Question[bool]


Lists = Mapping[str, tuple[list[str] | None, HaltError | None]]


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
        member = _Member(
            upstream,
            _question(name, upstream.models, KEPT_SECONDS),
            _question(name, self._checked(upstream), FAILED_SECONDS),
        )
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
        names = [
            self._full(name, model) for name, (models, _) in found.items() for model in models or ()
        ]
        if not names:
            self._raise_first(found)
        return names

    def catalog(self, line: Line) -> list[tuple[str, list[str]]]:
        """As `Upstream.catalog` has it, in the order of the providers.

        Takes no longer than WAIT_SECONDS. A provider that has not told yet, or is down, has the
        models that it listed before, or none. An interrupted line waits for nothing. Raises
        UpstreamError where no provider has a model: which fault says whether there is a list.
        """
        found = self._lists(line.chain, 0.0 if line.interrupted else WAIT_SECONDS)
        if not line.interrupted and not any(models for models, _ in found.values()):
            if any(models is None and fault is None for models, fault in found.values()):
                raise UpstreamError("upstream_unreachable", "it did not answer in time")
            self._raise_first(found)
        return [
            (name, [self._full(name, model) for model in models or ()])
            for name, (models, _) in found.items()
        ]

    def check(self, line: Line) -> None:
        """One provider that answers is enough."""
        if single := self._single:
            single.check(line)
            return
        checks = {name: member.check for name, member in self._members.items()}
        for seconds in (WAIT_SECONDS, ASK_SECONDS):  # the silent ones are awaited only if need be
            found = self._all(checks, line.chain, seconds, fresh=True)
            if any(answer for answer, fault in found.values() if fault is None):
                return
        self._raise_first(found)

    @property
    def known_model(self) -> str:
        if self._default:
            return self._default
        name, member = next(iter(self._members.items()))
        model = member.upstream.known_model
        return self._full(name, model) if model else ""

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for member in self._members.values():
            member.upstream.close()

    @property
    def _single(self) -> Upstream | None:
        """The only provider, None where there are several."""
        return self._first if len(self._members) == 1 else None

    def _full(self, name: str, model: str) -> str:
        """The name by which requests ask for a provider's model."""
        return model if self._single else f"{name}/{model}"

    def _lists(self, chain: Chain, seconds: float = WAIT_SECONDS) -> Lists:
        """What each provider lists, as far as it is known after this many seconds.

        `chain`: that of the request for which they are asked, see `halt.core.via`.
        """
        questions = {name: member.models for name, member in self._members.items()}
        return self._all(questions, chain, seconds)

    def _resolve(self, model: str, chain: Chain) -> tuple[Upstream, str]:
        """Who answers for a model, and its name there. Raises UpstreamError."""
        if len(self._members) == 1 or not model:
            return self._first, model
        return self._named(model) or self._listing(model, self._lists(chain))

    @property
    def _first(self) -> Upstream:
        return next(iter(self._members.values())).upstream

    def _named(self, model: str) -> tuple[Upstream, str] | None:
        """Who answers for PROVIDER/MODEL, and its name there; None where it is no such name."""
        name, _, rest = model.partition("/")
        member = self._members.get(name) if rest else None
        return None if member is None else (member.upstream, rest)

    def _listing(self, model: str, found: Lists) -> tuple[Upstream, str]:
        """The one provider that lists a model, and its name there. Raises UpstreamError."""
        listing = [name for name, (models, _) in found.items() if model in (models or ())]
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
    def _checked(provider: Upstream) -> Callable[[Line], bool]:
        def check(line: Line) -> bool:
            provider.check(line)
            return True

        return check

    @staticmethod
    def _all(
        questions: Mapping[str, Question[T]],
        chain: Chain,
        seconds: float = WAIT_SECONDS,
        *,
        fresh: bool = False,
    ) -> dict[str, tuple[T | None, HaltError | None]]:
        """What all of them answer, as far as it is known after this many seconds."""
        for question in questions.values():
            question.begin(chain)
        until = now() + seconds
        return {name: question.wait(until, fresh=fresh) for name, question in questions.items()}

    @staticmethod
    def _raise_first(found: Mapping[str, tuple[T | None, HaltError | None]]) -> None:
        for _, fault in found.values():
            if fault is not None:
                raise fault

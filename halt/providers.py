"""Several providers as one: a model's name says who answers.

With one provider its models have their own names. With several a model is `PROVIDER/MODEL`, and its
own name serves as well where only one provider lists it.

What the providers list is asked for in threads, one for each provider at most, and kept for a
minute, so that a provider that is down or silent hides nobody else's models and delays no page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from halt.chat import ChatRequest, Reply, Upstream
from halt.errors import HaltError, UpstreamError
from halt.line import Line
from halt.loop import Chain
from halt.metrics import now
from halt.question import Question

KEPT_SECONDS = 60.0  # a list of models is asked for again after this time
FAILED_SECONDS = 5.0  # and after this time where it could not be had
ASK_SECONDS = 9.0  # for one answer; then the provider is as good as unreachable
WAIT_SECONDS = 1.5  # that whoever wants the lists waits for all of them together

T = TypeVar("T")


def _question(name: str, ask: Callable[[Line], T], kept: float) -> Question[T]:
    return Question(name, ask, kept=kept, again=FAILED_SECONDS, limit=ASK_SECONDS)


class Providers:
    """The Upstream of one or several providers."""

    def __init__(self, providers: Mapping[str, Upstream], default: str = "") -> None:
        """At least one provider. `default` is the model that answers where none is named."""
        self._providers = dict(providers)
        self._first = next(iter(providers.values()))
        self._single = len(providers) == 1
        self._default = default
        self._lists = {
            name: _question(name, each.models, KEPT_SECONDS) for name, each in providers.items()
        }
        self._checks = {
            name: _question(name, self._checked(each), FAILED_SECONDS)
            for name, each in providers.items()
        }

    def open(self, request: ChatRequest, line: Line) -> Reply:
        provider, model = self._resolve(request.model or self._default, line.chain)
        if model != request.model:
            request = msgspec.structs.replace(request, model=model or None)
        return provider.open(request, line)

    def models(self, line: Line) -> list[str]:
        if self._single:
            return self._first.models(line)
        found = self._all(self._lists, line.chain)
        names = [f"{name}/{model}" for name, (models, _) in found.items() for model in models or ()]
        if not names:
            self._raise_first(found)
        return names

    def catalog(self, line: Line) -> list[tuple[str, list[str]]]:
        """As `Upstream.catalog` has it, in the order of the providers.

        Takes no longer than WAIT_SECONDS. A provider that has not told yet, or is down, has the
        models that it listed before, or none. An interrupted line waits for nothing. Raises
        UpstreamError where no provider has a model: which fault says whether there is a list.
        """
        found = self._all(self._lists, line.chain, 0.0 if line.interrupted else WAIT_SECONDS)
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
        if self._single:
            self._first.check(line)
            return
        for seconds in (WAIT_SECONDS, ASK_SECONDS):  # the silent ones are awaited only if need be
            found = self._all(self._checks, line.chain, seconds, fresh=True)
            if any(answer for answer, fault in found.values() if fault is None):
                return
        self._raise_first(found)

    @property
    def known_model(self) -> str:
        if self._default:
            return self._default
        name = next(iter(self._providers))
        model = self._first.known_model
        return self._full(name, model) if model else ""

    def close(self) -> None:
        for provider in self._providers.values():
            provider.close()

    def _full(self, name: str, model: str) -> str:
        return model if self._single else f"{name}/{model}"

    def _resolve(self, model: str, chain: Chain) -> tuple[Upstream, str]:
        """Who answers for a model, and its name there. Raises UpstreamError."""
        if self._single or not model:
            return self._first, model
        name, _, rest = model.partition("/")
        if rest and name in self._providers:
            return self._providers[name], rest
        found = self._all(self._lists, chain)
        listing = [name for name, (models, _) in found.items() if model in (models or ())]
        if len(listing) == 1:
            return self._providers[listing[0]], model
        if listing:
            choice = " or ".join(f"{name}/{model}" for name in listing)
            raise UpstreamError(
                "model_not_found", f"several providers have {model!r}: use {choice}"
            )
        raise UpstreamError(
            "model_not_found",
            f"no provider lists {model!r}: use PROVIDER/MODEL, "
            f"PROVIDER being one of {', '.join(self._providers)}",
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

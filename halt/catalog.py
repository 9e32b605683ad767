"""The models that can be chosen, by provider: asked for in the background, and kept for a while.

A page never waits for a provider: it gets what is known, and a first page waits LOOK_WAIT at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from halt.chat import Upstream
from halt.errors import HaltError, RequestError
from halt.line import Line, limited
from halt.metrics import now

FRESH_SECONDS = 60.0  # a list is not asked for again before
RETRY_SECONDS = 10.0  # nor after a failure
ASK_SECONDS = 20.0  # that a provider has to answer
LOOK_WAIT = 1.0  # seconds that a page waits after a question was asked
NAMES_MAX = 1000  # models that are shown
NAME_MAX = 200  # characters of a model's name

Groups = list[tuple[str, list[str]]]

logger = logging.getLogger(__name__)


def checked_model(name: str) -> str:
    """A model's name as a client sent it. Raises RequestError."""
    if len(name) > NAME_MAX or not name.isprintable():
        raise RequestError(
            f"model must be a name of at most {NAME_MAX} printable characters.", field="model"
        )
    return name


class Catalog:
    """What the upstream offers."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()  # protects everything below
        self._known: Groups = []
        self._asked_at = float("-inf")
        self._due_at = float("-inf")
        self._answered = threading.Event()

    def look(self) -> Groups:
        """Groups of models, (provider, names); empty as long as nothing is known."""
        with self._lock:
            at = now()
            if at >= self._due_at:
                self._asked_at = at
                self._due_at = at + ASK_SECONDS + RETRY_SECONDS  # until the answer says otherwise
                self._answered = threading.Event()
                threading.Thread(
                    target=self._ask, args=(self._answered,), name="halt-models", daemon=True
                ).start()
            answered, known = self._answered, self._known
            left = self._asked_at + LOOK_WAIT - at
        if known or left <= 0:
            return known
        answered.wait(left)
        return self._known

    def _ask(self, answered: threading.Event) -> None:
        found: Groups = []
        try:
            with limited(ASK_SECONDS) as line:
                found = _bounded(self._groups(line))
        except HaltError as fault:
            logger.info("no list of models: %s", fault.code)
        except Exception:
            logger.exception("the list of models")
        finally:
            with self._lock:
                self._known = found or self._known
                self._due_at = now() + (FRESH_SECONDS if found else RETRY_SECONDS)
            answered.set()

    def _groups(self, line: Line) -> Groups:
        by_provider: Callable[[Line], Groups] | None = getattr(self._upstream, "catalog", None)
        if by_provider is not None:
            return by_provider(line)
        return [("", self._upstream.models(line))]


def _bounded(groups: Groups) -> Groups:
    """What can be shown and sent back."""
    out: Groups = []
    left = NAMES_MAX
    for provider, names in groups:
        fit = [name for name in names if name and len(name) <= NAME_MAX and name.isprintable()]
        if fit := fit[:left]:
            out.append((provider, fit))
            left -= len(fit)
    return out

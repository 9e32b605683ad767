"""The upstreams with people's own keys: made for the first request, and kept for the next ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Container

from halt.config.providers import ProviderSettings
from halt.core.request import Upstream

KEPT_MAX = 100

#: The names of a provider and of a person.
Owner = tuple[str, str]


class OwnUpstreams:
    """At most KEPT_MAX upstreams, those that were used last. Any thread may use it.

    One that is not kept any more is closed; runs that use it go on to their end.
    """

    def __init__(self, make: Callable[[ProviderSettings], Upstream]) -> None:
        """`make` makes an upstream. Raises nothing."""
        self._make = make
        self._lock = threading.Lock()  # protects the table
        self._kept: OrderedDict[Owner, tuple[ProviderSettings, Upstream]] = OrderedDict()

    def upstream(self, owner: Owner, settings: ProviderSettings) -> Upstream:
        """The upstream with these settings: the kept one, or a new one in its place."""
        with self._lock:
            known = self._kept.pop(owner, None)
            if known is not None and known[0] == settings:
                self._kept[owner] = known
                return known[1]
            upstream = self._make(settings)
            gone = [known] if known is not None else []
            self._kept[owner] = settings, upstream
            if len(self._kept) > KEPT_MAX:
                gone.append(self._kept.popitem(last=False)[1])
        _close(gone)
        return upstream

    def keep_only(self, owners: Container[Owner]) -> None:
        """Close those of all others: their keys were removed."""
        with self._lock:
            gone = [self._kept.pop(owner) for owner in list(self._kept) if owner not in owners]
        _close(gone)


def _close(kept: list[tuple[ProviderSettings, Upstream]]) -> None:
    for _, upstream in kept:
        upstream.close()

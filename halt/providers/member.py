"""A provider among others: its upstream, its cached list of models, its cached health check."""

from __future__ import annotations

from halt.config.model_servers import title_of_name
from halt.core.connection import UpstreamConnection
from halt.core.request import Upstream
from halt.model_info import ModelGroup
from halt.providers.cached_query import CachedQuery

LIST_SECONDS = 60.0  # a list of models stays fresh
RECHECK_SECONDS = 10.0  # a failed query, and the result of a health check, stay fresh
QUERY_TIMEOUT = 9.0  # for one answer; after it the provider counts as unreachable


class Member:
    """One provider of a `Providers`. Both queries run in background threads, one each at most."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.upstream = upstream
        #: Its name for people, until a list has another one.
        self.title: str = getattr(upstream, "title", "") or title_of_name(name)
        self.models: CachedQuery[list[ModelGroup]] = CachedQuery(
            name,
            self._list,
            answer_seconds=LIST_SECONDS,
            fault_seconds=RECHECK_SECONDS,
            timeout=QUERY_TIMEOUT,
        )
        self.check: CachedQuery[bool] = CachedQuery(
            name,
            self._check,
            answer_seconds=RECHECK_SECONDS,
            fault_seconds=RECHECK_SECONDS,
            timeout=QUERY_TIMEOUT,
        )

    def _list(self, connection: UpstreamConnection) -> list[ModelGroup]:
        return self.upstream.catalog(connection)

    def _check(self, connection: UpstreamConnection) -> bool:
        self.upstream.check(connection)
        return True

"""Finds the person of a sign-in or an API token, at most once in FRESH seconds in the database.

A request must not wait for the database only because it is signed in, a Stop least of all. So a
result is used again for FRESH seconds, and for as long as the database does not answer. What has
ended or was revoked counts for at most that long; `halt.people.watch` ends what still runs by then.

Each worker has results of its own, and a connection may come to any worker. So while the database
does not answer, a worker without a result asks the other workers for theirs.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from halt.clock import now
from halt.errors import StoreUnavailable
from halt.people.names import name_key
from halt.people.person import Mode, Person
from halt.store.lookups import LOOKUP_WAIT, Lookups
from halt.store.people import PersonRow
from halt.store.sign_ins import SignIns

if TYPE_CHECKING:
    from halt.cluster.service import Who

FRESH = 2.0  # seconds
#: Seconds that a request with an unknown token waits for the database, which a new worker has to
#: open. While the database does not answer for longer, such requests are refused at once.
FIRST_WAIT = 1.0
CACHED_MAX = 10_000  # digests; the least recently looked up is dropped first
API_TOKEN_PREFIX = "halt_"  # noqa: S105 - by which scanners for secrets know one


def new_token() -> str:
    """A random token of a sign-in."""
    return secrets.token_urlsafe(32)


def new_api_token() -> str:
    """A random API token."""
    return API_TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the database knows of a token. It is random and long, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Known:
    """The people of the sign-ins and API tokens of one worker's requests. Threads may share it."""

    def __init__(
        self,
        sign_ins: SignIns,
        mode: Mode,
        admins: tuple[str, ...],
        lookups: Lookups,
        ask_others: Callable[[str], Who | None] = lambda _: None,
    ) -> None:
        """`lookups` asks the database in a thread of its own; it is used for nothing else.

        `ask_others` returns the other workers' result for a digest, within a short time.
        """
        self._ask_others = ask_others
        self._sign_ins, self._mode, self._admins = sign_ins, mode, admins
        self._lookups = lookups
        self._lock = threading.Lock()  # protects the order of `_cached` while it is bounded
        #: By digest: the person, and when the database said so (monotonic).
        self._cached: OrderedDict[str, tuple[Person, float]] = OrderedDict()
        self._seen: dict[str, float] = {}  # by digest: the last use, seconds since 1970

    def person(self, digest: str) -> Person | None:
        """The person who may use the token of this digest now. None: there is no such token.

        Raises StoreUnavailable if no worker knows it and the database does not answer.
        """
        cached = self._cached.get(digest)
        if cached is None or now() - cached[1] >= FRESH:
            answer = self._ask_database(digest, LOOKUP_WAIT)
            if answer is None and cached is None:
                if (who := self._ask_others(digest)) is not None:
                    cached = Person(*who), now() - FRESH  # the next request asks the database
                    self._keep(digest, cached)
                else:
                    answer = self._ask_database(digest, FIRST_WAIT)
            if answer is None:
                if cached is None:
                    raise StoreUnavailable(
                        "Whether you are signed in cannot be told now: the database does not "
                        "answer. Try again.",
                        "the database does not answer",
                    )
            elif answer[0] is None:
                self.forget(digest)
                return None
            else:
                cached = self._as_person(answer[0]), now()
                self._keep(digest, cached)
        self._seen[digest] = time.time()
        return cached[0]

    def who(self, digest: str) -> Who | None:
        """This worker's result for another one: from memory alone, also where it is not fresh."""
        cached = self._cached.get(digest)
        return None if cached is None else (cached[0].id, cached[0].name, cached[0].is_admin)

    def forget(self, digest: str) -> None:
        """Ask the database at the next request with this token."""
        with self._lock:
            self._cached.pop(digest, None)

    def take_seen(self) -> Mapping[str, float]:
        """The digests that were used since the last call, with the times (seconds since 1970)."""
        seen, self._seen = self._seen, {}
        return dict(seen)  # a thread may still add to `seen`; at worst one use is not noted

    def close(self, timeout: float) -> None:
        """End the thread that asks the database."""
        self._lookups.close(timeout)

    def _ask_database(self, digest: str, wait: float) -> tuple[PersonRow | None] | None:
        """What the database says of the digest. None: it does not answer within `wait` seconds."""
        return self._lookups.ask(lambda: (self._sign_ins.person(digest, self._mode),), wait)

    def _keep(self, digest: str, cached: tuple[Person, float]) -> None:
        with self._lock:
            self._cached[digest] = cached
            self._cached.move_to_end(digest)
            if len(self._cached) > CACHED_MAX:
                self._cached.popitem(last=False)

    def _as_person(self, row: PersonRow) -> Person:
        return Person(row.id, row.name, is_admin(self._mode, row, self._admins))


def is_admin(mode: Mode, row: PersonRow, admins: tuple[str, ...]) -> bool:
    """Whether the person may see the counts: HALT_ADMINS decides, else the first account has it."""
    if admins:
        if mode == "accounts":
            return name_key(row.name) in {name_key(name) for name in admins}
        return row.subject in admins
    return row.is_admin

"""Ends what people may no longer have: one thread in each worker, which looks every 2 s.

A request is let in by its sign-in or API token once, at its beginning; a stream may last for
minutes after that. So this thread ends, within 5 s:

- the readers whose sign-in or token has been revoked, has ended or is out of time, and the readers
  of a person who was disabled or removed. The run itself goes on for its person. As after any
  reader that has left, HALT_ORPHAN_GRACE or the run's own `on_disconnect` limits it then.
- the runs of a person who was disabled or removed, by a Stop.

How a reader is ended, and why nothing is lost between threads:

- `ReaderLimit` has every reader of this worker (`view` and `unview`, also those of another worker's
  run and those that the relay writes to) and every WebSocket (`connected`), each with its person
  and its credential. The thread of the request registers them, with one operation on a dictionary,
  before the first byte is sent. Nothing is added to the path of a token.
- This thread copies the table, asks the database, sets a flag at those to be ended, and wakes them.
  It removes nothing. The reader's own thread, or the relay, sees the flag before it sends the next
  events, sends a last frame with the reason, and removes the reader as at any end. If the reader
  ends by itself at the same moment, the flag has no effect.
- A reader that registers after its credential was revoked was let in by a check that is at most
  FRESH old (`halt.people.known`). The next look after its registration ends it. Together that is
  FRESH + EVERY, and the time of the queries.
- A WebSocket's thread closes the connection (4001) when it wakes; a request that it handles just
  then is answered first.
- While the database does not answer nothing is ended. The next look that reaches it decides.

It also saves when sign-ins and tokens were last used, and the rows of people whom a proxy's header
names. Nothing is asked or written where there is nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from halt.core.serial import Serial
from halt.core.service import GenerationService
from halt.counted import counted
from halt.errors import StoreUnavailable
from halt.people.known import Known
from halt.people.person import Mode
from halt.people.proxy_header import NamedPeople
from halt.store.sign_ins import SEEN_EVERY
from halt.store.store import Store

EVERY = 2.0  # seconds between two looks
#: The ways to know people in which Halt itself disables and removes them.
_KEEPS_PEOPLE = frozenset({"accounts", "oidc"})

logger = logging.getLogger(__name__)


class Watch:
    """See the module. Any thread may call `start`."""

    def __init__(
        self,
        mode: Mode,
        known: Known,
        store: Store,
        generations: GenerationService,
    ) -> None:
        self._mode = mode
        self._known = known
        self.named_people = NamedPeople()  # by a proxy's header
        self._people, self._sign_ins = store.people, store.sign_ins
        self._generations = generations
        # `Serial` logs the exception of a look, and the next look comes all the same.
        self._thread = Serial("halt-watch", EVERY, self.look)
        self._unsaved_uses: dict[str, float] = {}  # by digest: the last use
        self._saved_uses: dict[str, float] = {}  # those of the last SEEN_EVERY seconds

    def start(self) -> None:
        """Start the thread unless it runs. Raises RuntimeError if the system has none."""
        self._thread.start()

    def start_late(self) -> None:
        """The same, for a request. Without a thread in the system the next request tries again."""
        self._thread.start_late()

    def close(self, timeout: float) -> None:
        """End the thread; wait at most `timeout` seconds for it."""
        self._thread.close(timeout)

    def look(self) -> None:
        """Do what the module says, once."""
        steps: tuple[Callable[[], None], ...] = (
            self._end_refused,
            lambda: self.named_people.save(self._people),
            self._save_uses,
        )
        for step in steps:
            try:
                step()
            except StoreUnavailable:
                return  # the page tells of it, and the log

    def _end_refused(self) -> None:
        service = self._generations
        admitted = service.readers.admitted()
        owners = {owner for owner, _ in admitted} | service.owners_here()
        barred = self._people.barred(owners) if owners and self._mode in _KEEPS_PEOPLE else {}
        digests = {credential for _, credential in admitted if credential}
        refused = digests - self._sign_ins.usable(sorted(digests), self._mode) if digests else set()
        if not (barred or refused):
            return
        for digest in refused:
            self._known.forget(digest)
        count = service.readers.refuse(
            lambda owner, credential: owner in barred or credential in refused
        )
        if count:
            were = "was" if count == 1 else "were"
            logger.info("%s %s ended: no longer allowed to read", counted(count, "reader"), were)
        for owner, reason in barred.items():
            if count := len(service.stop_all_here(owner)):
                text = "%s of the person %s, who was %s, %s stopped"
                were = "was" if count == 1 else "were"
                logger.info(text, counted(count, "stream"), owner, reason, were)

    def _save_uses(self) -> None:
        """Save the times of use, for each sign-in and token at most once in SEEN_EVERY seconds."""
        uses = {**self._unsaved_uses, **self._known.take_seen()}
        if not uses:
            return
        self._unsaved_uses = uses
        newest = max(uses.values())
        self._saved_uses = {
            digest: at for digest, at in self._saved_uses.items() if newest - at < SEEN_EVERY
        }
        due = {digest: at for digest, at in uses.items() if digest not in self._saved_uses}
        if due:
            self._sign_ins.seen(due)
        self._saved_uses |= due
        self._unsaved_uses = {}

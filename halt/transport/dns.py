"""Name resolution with a deadline, in a thread, since `getaddrinfo` cannot be interrupted."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from halt.clock import now

CACHE_SECONDS = 30.0  # lifetime of an entry; getaddrinfo does not return the TTL of its records
CACHE_MAX = 100  # entries

#: An item of the result of `socket.getaddrinfo`.
Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]

_Name = tuple[str, int]
_Lookup = Future[Sequence[Address]]


class Resolver:
    """Resolves host names: a cache of addresses, and at most one running look-up for each name.

    A look-up takes 0.15 ms of CPU (its thread) and a round trip to the name server. Failures are
    not cached. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two below
        self._lookups: dict[_Name, _Lookup] = {}
        # With the time of the look-up.
        self._cache: dict[_Name, tuple[Sequence[Address], float]] = {}

    def addresses(self, host: str, port: int, deadline: float) -> Sequence[Address]:
        """The addresses of a host. Raises OSError, and TimeoutError at `deadline` (of `now`)."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            lookup = self._cached_or_lookup(host, port)
        else:
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        if not isinstance(lookup, Future):
            return lookup
        try:
            return lookup.result(max(0.001, deadline - now()))
        except TimeoutError:
            raise TimeoutError("the name server did not answer in time") from None

    def look_up(self, host: str, port: int) -> Future[Sequence[Address]]:
        """The look-up of a host, running or done. Raises OSError if it cannot be started.

        For a caller that must be able to leave while it runs. The future raises OSError.
        """
        found = self._cached_or_lookup(host, port)
        if isinstance(found, Future):
            return found
        lookup: _Lookup = Future()
        lookup.set_result(found)
        return lookup

    def forget(self, host: str, port: int) -> None:
        """Drop a host from the cache, as its addresses may have changed: connecting failed."""
        with self._lock:
            self._cache.pop((host, port), None)

    def _cached_or_lookup(self, host: str, port: int) -> _Lookup | Sequence[Address]:
        """The cached addresses, or the running look-up, which is started if needed."""
        name = host, port
        with self._lock:
            if name in self._cache:
                addresses, looked_up_at = self._cache[name]
                if now() - looked_up_at < CACHE_SECONDS:
                    return addresses
            lookup = self._lookups.get(name)
            if lookup is None:
                lookup = self._lookups[name] = Future()
                target = partial(self._look_up, name, lookup)
                try:
                    threading.Thread(target=target, name="halt-resolver", daemon=True).start()
                except RuntimeError as exc:  # the system has no more threads
                    del self._lookups[name]
                    raise OSError(str(exc)) from exc
        return lookup

    def _look_up(self, name: _Name, lookup: _Lookup) -> None:
        """Body of the thread: resolve a name, and set the result of its future."""
        outcome: Sequence[Address] | Exception
        try:
            outcome = socket.getaddrinfo(*name, 0, socket.SOCK_STREAM)
        except UnicodeError:  # a label of the name is empty or too long
            outcome = socket.gaierror(socket.EAI_NONAME, "not a valid host name")
        except Exception as exc:  # noqa: BLE001 - raised by each waiting thread
            outcome = exc
        with self._lock:
            del self._lookups[name]
            self._cache.pop(name, None)  # so that the newest is the last
            if not isinstance(outcome, Exception):
                self._cache[name] = outcome, now()
                if len(self._cache) > CACHE_MAX:
                    del self._cache[next(iter(self._cache))]
        if isinstance(outcome, Exception):
            lookup.set_exception(outcome)
        else:
            lookup.set_result(outcome)

"""Looking up a name within a limit. Nothing can wake a resolver, so it is asked in a thread."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from halt.clock import now

KEPT_SECONDS = 30.0  # that an answer of the resolver is valid; it does not tell its own time
KEPT_MAX = 100  # names

#: What `socket.getaddrinfo` says of an address.
Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]

_Name = tuple[str, int]
_Found = Future[Sequence[Address]]


class Resolver:
    """Addresses of hosts, kept for a while, and the look-ups under way: one for each name.

    A look-up takes 0.15 ms of CPU (its thread) and a round trip to the resolver. Failures are not
    kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects what follows
        self._asked: dict[_Name, _Found] = {}
        self._kept: dict[_Name, tuple[Sequence[Address], float]] = {}  # and when it was found

    def addresses(self, host: str, port: int, deadline: float) -> Sequence[Address]:
        """Where the host is. Raises OSError, TimeoutError when `now` comes to be `deadline`."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            found = self._asking(host, port)
        else:
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        if not isinstance(found, Future):
            return found
        try:
            return found.result(max(0.001, deadline - now()))
        except TimeoutError:
            raise TimeoutError("the resolver does not answer in time") from None

    def forget(self, host: str, port: int) -> None:
        """No connection could be made to the addresses of this host: it may have others by now."""
        with self._lock:
            self._kept.pop((host, port), None)

    def _asking(self, host: str, port: int) -> _Found | Sequence[Address]:
        """The addresses that are kept, or the look-up under way."""
        name = host, port
        with self._lock:
            if name in self._kept:
                addresses, found_at = self._kept[name]
                if now() - found_at < KEPT_SECONDS:
                    return addresses
            found = self._asked.get(name)
            if found is None:
                found = self._asked[name] = Future()
                ask = partial(self._ask, name, found)
                try:
                    threading.Thread(target=ask, name="halt-resolver", daemon=True).start()
                except RuntimeError as exc:  # the system has no more threads
                    del self._asked[name]
                    raise OSError(str(exc)) from exc
        return found

    def _ask(self, name: _Name, found: _Found) -> None:
        said: Sequence[Address] | Exception
        try:
            said = socket.getaddrinfo(*name, 0, socket.SOCK_STREAM)
        except UnicodeError:  # a part of it is empty, or longer than a name's may be
            said = socket.gaierror(socket.EAI_NONAME, "this is no name")
        except Exception as exc:  # noqa: BLE001 - raised by each thread that waits
            said = exc
        with self._lock:
            del self._asked[name]
            self._kept.pop(name, None)  # the newest is the last
            if not isinstance(said, Exception):
                self._kept[name] = said, now()
                if len(self._kept) > KEPT_MAX:
                    del self._kept[next(iter(self._kept))]
        if isinstance(said, Exception):
            found.set_exception(said)
        else:
            found.set_result(said)

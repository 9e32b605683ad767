"""Looking up a name within a limit. Nothing can wake a resolver, so it is asked in a thread."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from halt.metrics import now

#: What `socket.getaddrinfo` says of an address.
Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]

_Found = Future[Sequence[Address]]


class Names:
    """The look-ups under way: one for each name, however many wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects what follows
        self._asked: dict[tuple[str, int], _Found] = {}

    def addresses(self, host: str, port: int, deadline: float) -> Sequence[Address]:
        """Where the host is. Raises OSError, TimeoutError when `now` comes to be `deadline`."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            found = self._asking(host, port)
        else:
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        try:
            return found.result(max(0.001, deadline - now()))
        except TimeoutError:
            raise TimeoutError("the resolver does not answer in time") from None

    def _asking(self, host: str, port: int) -> _Found:
        with self._lock:
            found = self._asked.get((host, port))
            if found is None:
                found = self._asked[host, port] = Future()
                ask = partial(self._ask, host, port, found)
                try:
                    threading.Thread(target=ask, name="halt-resolver", daemon=True).start()
                except RuntimeError as exc:  # the system has no more threads
                    del self._asked[host, port]
                    raise OSError(str(exc)) from exc
        return found

    def _ask(self, host: str, port: int, found: _Found) -> None:
        said: Sequence[Address] | Exception
        try:
            said = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except UnicodeError:  # a part of it is empty, or longer than a name's may be
            said = socket.gaierror(socket.EAI_NONAME, "this is no name")
        except Exception as exc:  # noqa: BLE001 - whatever it was: nobody waits in vain
            said = exc
        with self._lock:
            del self._asked[host, port]
        if isinstance(said, Exception):
            found.set_exception(said)
        else:
            found.set_result(said)

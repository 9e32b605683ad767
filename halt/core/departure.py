"""Notices that a client has left, also in silence."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable

from halt.clock import now
from halt.core.relay import READ, Relay, contained

PIPELINED_LOOK = 1.0  # seconds between two looks at a client that has sent something behind


class Departure:
    """Calls `gone` when a client has left, for a reader whose thread waits at the log.

    The relay watches a duplicate of the descriptor, which it alone closes: the server may close its
    own at any time.
    """

    def __init__(self, relay: Relay, client: socket.socket, gone: Callable[[], None]) -> None:
        self._relay = relay
        self._gone = gone
        self._sock: socket.socket | None = socket.socket(fileno=os.dup(client.fileno()))
        relay.post(self._begin)

    def cancel(self) -> None:
        """Watch no more."""
        self._relay.post(self._end)

    @contained
    def _begin(self) -> None:
        if self._sock is not None:
            self._relay.watch(self._sock, READ, self._look)

    def broken(self, exc: Exception) -> None:
        """This client is watched no more; a write will find that it has left."""

    @contained
    def _end(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._relay.unwatch(sock)
            sock.close()

    @contained
    def _look(self, _: int = READ) -> None:
        if self._sock is None:
            return
        left = has_left(self._sock)
        if left:
            self._end()
            self._gone()
        elif left is None:  # it has sent something behind its request
            self._relay.unwatch(self._sock)
            self._relay.at(now() + PIPELINED_LOOK, self._begin)


def has_left(client: socket.socket) -> bool | None:
    """Whether the peer has closed its end; None: no, but bytes wait to be read."""
    try:
        if client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return True if _is_half_closed(client) else None
    except (BlockingIOError, InterruptedError):
        return False
    except (OSError, ValueError):
        pass
    return True


def _is_half_closed(client: socket.socket) -> bool:
    """The same behind bytes that wait, where the system has POLLRDHUP."""
    mask = getattr(select, "POLLRDHUP", 0)
    if not mask:
        return False
    poller = select.poll()
    poller.register(client, mask)
    return bool(poller.poll(0))

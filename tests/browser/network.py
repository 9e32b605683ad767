"""The way between a browser and a server: it can be lost, come back, and keep responses for a while."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

from tests.support.halt_server import RECORD_TIMEOUT, HaltServer
from tests.support.raw_server import Peer, RawServer


class Network(RawServer):
    """A TCP proxy. `requests` are the first lines of all requests that went through it."""

    def __init__(self, server: HaltServer) -> None:
        self._server = (server.host, server.port)
        self._there = True
        self.requests: list[str] = []
        self._held = re.compile("(?!)")  # the requests whose responses are kept
        self._holds = threading.Event()
        self._free = threading.Event()
        super().__init__(self._connect)
        self.url = f"http://127.0.0.1:{self.port}"

    def lose(self) -> None:
        """Break every connection, and let none through until `restore`."""
        self._there = False
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Let connections through again."""
        self._there = True

    def hold(self, requests: str) -> None:
        """Keep what the server sends in response to requests of this pattern, until `let_go`."""
        self._holds.clear()
        self._free.clear()
        self._held = re.compile(requests)

    def wait_held(self) -> None:
        """Wait until a response is being kept."""
        assert self._holds.wait(RECORD_TIMEOUT)

    def let_go(self) -> None:
        """Pass on what was kept."""
        self._held = re.compile("(?!)")
        self._free.set()

    def _connect(self, peer: Peer) -> None:
        if not self._there:
            return
        with socket.create_connection(self._server) as far:
            last = [""]
            back = threading.Thread(target=self._back, args=(far, peer.sock, last), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while data := peer.sock.recv(65_536):
                    if first := re.match(rb"[A-Z]+ \S+(?= HTTP/1.1\r\n)", data):
                        last[0] = first[0].decode()
                        self.requests.append(last[0])
                    far.sendall(data)
            _end(peer.sock, far)
            back.join()

    def _back(self, far: socket.socket, near: socket.socket, last: list[str]) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                if self._held.search(last[0]):
                    self._holds.set()
                    self._free.wait()
                near.sendall(data)
        _end(near, far)


def _end(*socks: socket.socket) -> None:
    for each in socks:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)

"""A TCP proxy between a browser and a server, which can break connections and hold responses."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

from tests.support.halt_server import RECORD_TIMEOUT, HaltServer
from tests.support.raw_server import Peer, RawServer


class Network(RawServer):
    """The proxy. `requests` has the method and path of every request that it has passed on."""

    def __init__(self, server: HaltServer) -> None:
        self._server = (server.host, server.port)
        self._connected = True
        self.requests: list[str] = []
        self._held = re.compile("(?!)")  # the requests whose responses are held
        #: The requests of which only the beginning is passed on.
        self._kept_back = re.compile("(?!)")
        self._holds = threading.Event()
        self._free = threading.Event()
        super().__init__(self._connect)
        self.url = f"http://127.0.0.1:{self.port}"

    def disconnect(self) -> None:
        """Break every connection, and refuse new ones until `reconnect`."""
        self._connected = False
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)

    def reconnect(self) -> None:
        """Accept connections again."""
        self._connected = True

    def hold(self, requests: str) -> None:
        """Hold the responses to requests that match this pattern, until `release`."""
        self._holds.clear()
        self._free.clear()
        self._held = re.compile(requests)

    def hold_bodies(self, requests: str) -> None:
        """Pass on only the beginning of requests that match this pattern, until `release`."""
        self._holds.clear()
        self._free.clear()
        self._kept_back = re.compile(requests)

    def wait_held(self) -> None:
        """Wait until a response or a request is held."""
        assert self._holds.wait(RECORD_TIMEOUT)

    def release(self) -> None:
        """Pass on what is held."""
        self._held = self._kept_back = re.compile("(?!)")
        self._free.set()

    def __exit__(self, *exc_info: object) -> None:
        self.release()  # a failing test may have left a hold
        super().__exit__(*exc_info)

    def _connect(self, peer: Peer) -> None:
        if not self._connected:
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
                    if self._kept_back.search(last[0]):
                        self._holds.set()
                        self._free.wait()
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
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

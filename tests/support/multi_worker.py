"""A Halt with several workers, and clients that talk to one of them.

The system gives each new connection to whichever worker is ready for it, and a connection stays
with its worker. So a client asks on each new connection who is there, and tries again until it is
the one that it wants.
"""

from __future__ import annotations

import http.client
import json
import signal
from typing import Any

from tests.support.halt_server import HaltServer, eventually
from tests.support.http_client import Client
from tests.support.websocket_client import WebSocket

START_TIMEOUT = 90.0  # seconds for all workers
TRIES = 1000  # connections until one is accepted by a certain worker


class WorkerClient(Client):
    """Each of its connections is to the worker of this name."""

    def __init__(self, server: HaltServer, worker: str, **headers: str) -> None:
        super().__init__(server.host, server.port, **headers)
        self.worker = worker

    def connect(self, receive_buffer: int | None = None) -> http.client.HTTPConnection:
        for _ in range(TRIES):
            connection = super().connect(receive_buffer)
            connection.request("GET", "/healthz")
            if json.loads(connection.getresponse().read())["worker"] == self.worker:
                return connection
            connection.close()
        raise AssertionError(f"no connection came to {self.worker}")


class MultiWorkerHalt(HaltServer):
    """Halt with so many workers, which are there."""

    def __init__(self, workers: int, env: dict[str, str]) -> None:
        super().__init__({**env, "WEB_CONCURRENCY": str(workers)})
        self.count = workers
        self.names = self.wait_workers()

    def wait_workers(self, other_than: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The names of the workers, once all of them serve and none of these is left."""
        found: set[str] = set()
        client = self.client()

        def complete() -> bool:
            try:
                health = client.get("/healthz").json
            except OSError:  # a worker that has left with the connection
                return False
            found.add(health["worker"])
            if found & {*other_than} or health["workers"] != self.count:
                found.clear()
            return len(found) == self.count

        eventually(complete, START_TIMEOUT)
        return tuple(sorted(found))

    def client_of(self, worker: str, like: Client | None = None, **headers: str) -> WorkerClient:
        """A client of this worker; with the session of another client."""
        client = WorkerClient(self, worker, **headers)
        if like is not None:
            client.cookies = like.cookies
        return client

    def websocket_of(self, worker: str, **more: Any) -> WebSocket:
        """A WebSocket to this worker."""
        connected = self.client_of(worker).connect().sock
        assert connected is not None
        return WebSocket(self, connected=connected, **more)


def worker_pid(worker: str) -> int:
    """The number of a worker's process, which its name begins with."""
    return int(worker.partition("-")[0])


#: Signals that suspend and resume a process.
SUSPEND, RESUME = signal.SIGSTOP, signal.SIGCONT

"""A Halt with several workers, and clients of one particular worker.

The kernel gives a new connection to any ready worker, and a connection stays with its worker. So a
client requests /healthz on each new connection, and reconnects until its worker answers.
"""

from __future__ import annotations

import http.client
import json
import signal
from typing import Any

from tests.support.halt_server import HaltServer
from tests.support.http_client import Client
from tests.support.waiting import wait_until
from tests.support.websocket_client import WebSocket

START_TIMEOUT = 90.0  # seconds for all workers
TRIES = 1000  # connections until the wanted worker accepts one


class WorkerClient(Client):
    """A client whose connections are all accepted by the worker of this name."""

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
    """A Halt with this number of workers; all of them serve when `__init__` returns."""

    def __init__(self, workers: int, env: dict[str, str]) -> None:
        super().__init__({**env, "WEB_CONCURRENCY": str(workers)})
        self.count = workers
        self.names = self.wait_workers()

    def wait_workers(self, other_than: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Wait until all workers serve and none of `other_than` is left; return their names."""
        names: set[str] = set()
        client = self.client()

        def complete() -> bool:
            try:
                health = client.get("/healthz").json
            except OSError:  # the worker has exited with the connection
                return False
            names.add(health["worker"])
            if names & {*other_than} or health["workers"] != self.count:
                names.clear()
            return len(names) == self.count

        wait_until(complete, START_TIMEOUT)
        return tuple(sorted(names))

    def client_of(self, worker: str, like: Client | None = None, **headers: str) -> WorkerClient:
        """A client of this worker, with the session of the client `like` if given."""
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
    """The PID of a worker, with which its name begins."""
    return int(worker.partition("-")[0])


#: Signals that suspend and resume a process.
SUSPEND, RESUME = signal.SIGSTOP, signal.SIGCONT

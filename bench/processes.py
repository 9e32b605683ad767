"""Starts and ends the processes of the benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, HaltServer
from tests.support.process_facts import tree

PORT_WITHIN = 20.0  # seconds for a child to start


class Child:
    """A Python module in its own process. It prints lines, and ends with the `with` block."""

    def __init__(self, module: str, *args: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._received = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_line(self, timeout: float) -> str:
        """The next line of its output. Raises TimeoutError, RuntimeError if it has ended."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        until = time.monotonic() + timeout
        while b"\n" not in self._received:
            left = until - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise TimeoutError(f"{self._name} printed nothing within {timeout:g} s")
            more = os.read(fd, 1 << 20)
            if not more:
                raise RuntimeError(f"{self._name} ended with status {self._process.wait(5)}")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def read_json(self, timeout: float) -> Any:
        """The next line, parsed as JSON."""
        return json.loads(self.read_line(timeout))

    def finish(self, timeout: float) -> Any:
        """Close its standard input; return the next line, parsed as JSON."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.read_json(timeout)

    def close(self) -> None:
        """End the process in any state."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


class StorelessServer(HaltServer):
    """See `bench.storeless`."""

    command = ("-m", "gunicorn", "bench.storeless:app")


class HaltProcess:
    """A Halt server to be measured, with its worker process."""

    kind: type[HaltServer] = HaltServer

    def __init__(self, upstream: str, **settings: object) -> None:
        env = {name: str(value) for name, value in settings.items()}
        try:
            self._server = self.kind({"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "fake"} | env)
        except pytest.fail.Exception as fault:  # not an Exception, and no test is running here
            raise RuntimeError(str(fault)) from None
        self.address = (self._server.host, self._server.port)
        self.url = self._server.url
        self.master = self._server.process.pid
        until = time.monotonic() + PORT_WITHIN
        while not (workers := tree(self.master)[1:]):
            if time.monotonic() > until:
                self._server.kill()
                raise TimeoutError("Halt has no worker")
            time.sleep(0.02)
        self.worker = workers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server: draining would only take time."""
        for pid in tree(self.master):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.kill()
        self._server.close()


@contextlib.contextmanager
def bare_flask(threads: int) -> Iterator[tuple[tuple[str, int], int]]:
    """Bare gunicorn and Flask with `threads` threads; yields its address and first process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"-c python:bench.bare_flask -k gthread --threads {threads} --keep-alive 30 --log-level warning"
    with Child(
        "gunicorn", *options.split(), "-b", f"127.0.0.1:{port}", "bench.bare_flask:app"
    ) as child:
        first_answer(("127.0.0.1", port), "/", time.monotonic() + PORT_WITHIN)
        yield ("127.0.0.1", port), child.pid


def first_answer(address: tuple[str, int], path: str, until: float) -> float:
    """Send requests until one gets a 200; return its time. Raises TimeoutError."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address, PORT_WITHIN) as sock,
        ):
            sock.sendall(request)
            if sock.recv(65536).startswith(b"HTTP/1.1 200"):
                return time.monotonic()
        time.sleep(0.005)
    raise TimeoutError(f"no answer from {address}")


class StorelessHaltProcess(HaltProcess):
    """A Halt server that stores nothing of its streams."""

    kind = StorelessServer


@contextlib.contextmanager
def fake_upstream() -> Iterator[str]:
    """The fake upstream in its own process; yields its base URL with /v1."""
    with Child("halt.testing.fake_openai", "--port", "0") as child:
        match = re.search(r"http://\S+/v1", child.read_line(PORT_WITHIN))
        if match is None:
            raise RuntimeError("the fake upstream did not print its address")
        yield match[0]


@contextlib.contextmanager
def fake_in_process() -> Iterator[FakeOpenAI]:
    """The fake upstream in this process, for figures that need more than its log."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server

"""Processes under measurement: how they are started and ended."""

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
    """A module of the tests in a process of its own. It talks in lines and ends with its `with`."""

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

    def line(self, timeout: float) -> str:
        """The next line that it prints. TimeoutError, RuntimeError when it has ended."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        until = time.monotonic() + timeout
        while b"\n" not in self._received:
            left = until - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise TimeoutError(f"{self._name} said nothing within {timeout:g} s")
            more = os.read(fd, 1 << 20)
            if not more:
                raise RuntimeError(f"{self._name} ended with status {self._process.wait(5)}")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def says(self, timeout: float) -> Any:
        """The next line, which is JSON."""
        return json.loads(self.line(timeout))

    def ends(self, timeout: float) -> Any:
        """End its standard input; the next line, which is JSON."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.says(timeout)

    def close(self) -> None:
        """End it, whatever it does."""
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


class Halt:
    """A Halt to be measured, and its worker process."""

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
        """End it at once: a drain would only cost time."""
        for pid in tree(self.master):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.kill()
        self._server.close()


@contextlib.contextmanager
def hello(threads: int) -> Iterator[tuple[tuple[str, int], int]]:
    """Bare gunicorn and Flask with so many threads: its address, and its first process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        f"-c python:bench.hello -k gthread --threads {threads} --keep-alive 30 --log-level warning"
    )
    with Child("gunicorn", *options.split(), "-b", f"127.0.0.1:{port}", "bench.hello:app") as child:
        first_answer(("127.0.0.1", port), "/", time.monotonic() + PORT_WITHIN)
        yield ("127.0.0.1", port), child.pid


def first_answer(address: tuple[str, int], path: str, until: float) -> float:
    """Ask until there is an answer of 200; when it was here. TimeoutError."""
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address, PORT_WITHIN) as sock,
        ):
            sock.sendall(asked)
            if sock.recv(65536).startswith(b"HTTP/1.1 200"):
                return time.monotonic()
        time.sleep(0.005)
    raise TimeoutError(f"no answer from {address}")


class Storeless(Halt):
    """One that writes down nothing of what its streams bring."""

    kind = StorelessServer


@contextlib.contextmanager
def fake_upstream() -> Iterator[str]:
    """The tests' fake upstream in a process of its own; its address, up to and with /v1."""
    with Child("halt.testing.fake_openai", "--port", "0") as child:
        match = re.search(r"http://\S+/v1", child.line(PORT_WITHIN))
        if match is None:
            raise RuntimeError("the fake upstream did not say where it is")
        yield match[0]


@contextlib.contextmanager
def own_fake() -> Iterator[FakeOpenAI]:
    """The same in this process, for figures that need more than its log."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server

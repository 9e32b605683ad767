"""Processes under measurement: starting and ending them, and what /proc says about them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, HaltServer

TICKS = os.sysconf("SC_CLK_TCK")
CPU_CLOCK = 2  # the kernel's number for the clock of a whole process (CPUCLOCK_SCHED)
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


# --- what /proc says ------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """The process and all that it has started, itself first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far, that of ended threads included.

    It is the sum that `getrusage` reports, read in nanoseconds, which works for any process.
    """
    return sum(time.clock_gettime(~pid << 3 | CPU_CLOCK) for pid in pids)


def machine_cpu_seconds() -> float:
    """Time that all processors together were not idle."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / TICKS


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status, such as VmRSS (kB) or Threads."""
    match = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(name)
    return int(match[1])


def megabytes(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process."""
    return status(pid, name) / 1024


def pss(pids: Sequence[int]) -> float:
    """Megabytes of these processes; memory that several of them share counts once (PSS)."""
    total = 0
    for pid in pids:
        match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        total += int(match[1]) if match else 0
    return total / 1024


KERNEL_EVENTS = {"futex calls": "syscalls:sys_enter_futex", "context switches": "context-switches"}


def kernel_events(pids: Sequence[int], seconds: float) -> dict[str, int]:
    """Futex calls and context switches of these processes; empty where `perf` cannot count them."""
    perf = shutil.which("perf")
    if perf is None:
        return {}
    command = [perf, "stat", "-x,", "-e", ",".join(KERNEL_EVENTS.values()), "-p"]
    command += [",".join(map(str, pids)), "--", "sleep", f"{seconds:g}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    counts = {}
    for name, event in KERNEL_EVENTS.items():
        match = re.search(rf"^(\d+),[^,]*,{re.escape(event)}", told, re.M)
        if match is None:
            return {}
        counts[name] = int(match[1])
    return counts


def descriptors(pid: int) -> int:
    """How many files and sockets it holds open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))

"""A small gunicorn master with the embedded model, in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from openai import OpenAI

from tests.support.halt_server import ROOT

LIMIT = 60.0  # seconds after which a step has failed; a loaded machine may take most of it

# A small gunicorn master: launches the model, forks a worker, closes when its stdin ends.
MASTER = """
import json, os, signal, sys, threading
import halt.providers.embedded_model as embedded

signal.signal(signal.SIGINT, signal.SIG_IGN)
supervisor = embedded.launch()
threads = threading.active_count()
worker = os.fork()
if worker == 0:
    supervisor.close_inherited_pipe()
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # the test waits for the end of stderr
    signal.pause()
print(json.dumps({
    "base_url": supervisor.embedded.base_url, "key": supervisor.embedded.api_key,
    "supervisor": supervisor._process.pid, "worker": worker, "threads": threads,
}), flush=True)
sys.stdin.read()
supervisor.close()
supervisor.close()
"""


class Master:
    """A running MASTER, the facts that it printed, and the log of it and its children."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MASTER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        facts = json.loads(self.process.stdout.readline())
        self.base_url: str = facts["base_url"]
        self.key: str = facts["key"]
        self.supervisor: int = facts["supervisor"]
        self.worker: int = facts["worker"]
        self.threads: int = facts["threads"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first unread line that matches; `\\Z` alone matches the end of the log."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line {pattern!r} in {LIMIT} s, but {self.log}")
            self.log.append(line)
            if match := re.match(pattern, line):
                return match
            if not line:
                pytest.fail(f"all processes left before a line {pattern!r}: {self.log}")

    def wait_until_ready(self) -> int:
        """The model's process ID, once it serves."""
        return int(self.wait_for(r"halt: demo model ready at \S+ in \S+ s \(pid (\d+)\)")[1])

    def wait_until_all_are_gone(self) -> None:
        """Wait until no process holds stderr: master, supervisor and model are dead."""
        self.wait_for(r"\Z")

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.key, max_retries=0, timeout=LIMIT)

    def busy_slots(self) -> list[dict[str, object]]:
        """The answers that the model is generating, as its server reports."""
        request = urllib.request.Request(
            self.base_url.removesuffix("/v1") + "/slots",
            headers={"Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return [slot for slot in json.load(answer) if slot["is_processing"]]

    def end(self) -> None:
        for pid in (self.worker, self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(LIMIT)  # every holder of stderr has left
        assert not self._reader.is_alive()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

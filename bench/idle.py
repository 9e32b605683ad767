"""Cost of an idle server, and time of a start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.processes import PORT_WITHIN, HaltProcess, bare_flask, first_answer
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number
from tests.support.halt_server import ROOT, halt_environment
from tests.support.process_facts import cpu_seconds, pss, tree
from tests.support.raw_http import fetch, request

THREADS = 232  # of the bare server; the default number of Halt
SETTLES = 3.0  # seconds after the first answer
UPSTREAM = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "fake", "HALT_MODEL": "m"}


def idle(sizes: Sizes) -> Iterator[Row]:
    """Rows about CPU and memory of an idle server, and the time to the first response."""
    seconds = sizes.idle_seconds
    with (
        HaltProcess(UPSTREAM["OPENAI_BASE_URL"], HALT_MODEL="m") as halt,
        bare_flask(THREADS) as (bare_address, bare_pid),
    ):
        fetch(halt.address, request("GET", "/"))
        fetch(bare_address, request("GET", "/"))
        time.sleep(SETTLES)
        own, bare = tree(halt.master), tree(bare_pid)
        memory, bare_memory = pss(own), pss(bare)
        before = cpu_seconds(own), cpu_seconds(bare)
        time.sleep(seconds)
        used, bare_used = (
            (after - start) * 60 / seconds
            for after, start in zip((cpu_seconds(own), cpu_seconds(bare)), before, strict=True)
        )
    note = (
        f"one page is loaded, then {SETTLES:g} s of rest; CPU is measured for {seconds:g} s and scaled to "
        f"a minute; memory is the PSS of all processes; bare gunicorn and Flask with {THREADS} "
        "threads beside it"
    )
    yield at_most(
        "Idle server: CPU in a minute",
        used,
        0.08,
        0.05,
        " s",
        f"{used:.3f} s (bare gunicorn and Flask {bare_used:.3f})",
        note,
    )
    yield at_most(
        "Idle server: memory",
        memory,
        100,
        85,
        " MB",
        f"{memory:.0f} MB (bare gunicorn and Flask {bare_memory:.0f})",
        note,
    )
    with tempfile.TemporaryDirectory(prefix="halt-bench-") as folder:
        first, *later = (_cold_start(folder) for _ in range(sizes.cold_starts + 1))
    yield at_most(
        "Start of the process → first answer",
        median(later),
        2,
        1,
        " s",
        f"{number(median(later))} s (in a new data folder {number(first)})",
        note=f"`python app.py` until GET /healthz is answered, polled every 5 ms; median of "
        f"{sizes.cold_starts} starts in an existing data folder",
    )


def _cold_start(folder: str) -> float:
    """Seconds from the start of a process to its first response."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = halt_environment(UPSTREAM | {"HALT_DATA": str(Path(folder) / "halt"), "PORT": str(port)})
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return first_answer(("127.0.0.1", port), "/healthz", began + PORT_WITHIN) - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""Clients that upload files: `python -m bench.uploader HOST PORT CLIENTS [COUNT] FILE...`.

Each client uploads the files in turn, every time with other bytes at the end, each on a new
connection and without pauses, until its standard input ends or all together have sent COUNT (0: no
end). It prints {"ready": true} when the first file was taken, and at the end {"seconds": duration,
"times": seconds of each upload}.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from bench.readers import stdin_ended
from tests.support.raw_http import Address

WITHIN = 120.0  # seconds for one upload


def take_turns(
    address: Address,
    turns: Iterator[tuple[int, Path, bytes]],
    lock: threading.Lock,
    over: threading.Event,
    times: list[float],
) -> None:
    """Upload the next file until `over` or the last; append the seconds of each to `times`."""
    while not over.is_set():
        with lock:
            turn = next(turns, None)
        if turn is None:
            return
        number, path, content = turn
        content += b"\n%d" % number
        began = time.perf_counter()
        connection = http.client.HTTPConnection(*address, timeout=WITHIN)
        try:
            connection.request("POST", f"/files?name={quote(f'{number}-{path.name}')}", content)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 201:
            raise RuntimeError(f"{path.name}: {response.status} {body[:200]!r}")
        times.append(time.perf_counter() - began)


def main() -> None:
    host, port, clients, count, *names = sys.argv[1:]
    files = [(path, path.read_bytes()) for path in map(Path, names)]
    turns = (
        (number, *file)
        for number, file in zip(
            range(int(count)) if int(count) else itertools.count(),
            itertools.cycle(files),
            strict=False,
        )
    )
    over, lock = threading.Event(), threading.Lock()
    times: list[float] = []
    faults: list[Exception] = []

    def client() -> None:
        try:
            take_turns((host, int(port)), turns, lock, over, times)
        except (OSError, RuntimeError) as fault:
            faults.append(fault)
            over.set()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(int(clients))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while not times and not over.is_set():
        over.wait(0.01)
    print(json.dumps({"ready": True}), flush=True)
    if int(count):
        for thread in threads:
            thread.join()
    else:
        while not over.is_set() and not stdin_ended(0.1):
            pass
        over.set()
        for thread in threads:
            thread.join(WITHIN)
    if faults:
        raise faults[0]
    print(json.dumps({"seconds": time.monotonic() - began, "times": times}), flush=True)


if __name__ == "__main__":
    main()

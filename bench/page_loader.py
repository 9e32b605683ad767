"""Clients that load pages: `python -m bench.page_loader HOST PORT CLIENTS`.

It creates a conversation of two turns, prints {"ready": true}, and loads an empty page and the
conversation in turns until its standard input ends, each client on its own connection and without
pauses. Then it prints {"seconds": duration, "times": milliseconds of each page}.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time

from bench.phases import wait_for
from bench.readers import stdin_ended
from tests.support.raw_http import Address, connect, fetch, form, receive, request


def visit(address: Address, paths: list[str], cookie: str, over: threading.Event) -> list[float]:
    """Load pages until `over`; return the milliseconds of each."""
    times: list[float] = []
    with connect(address) as sock:
        while not over.is_set():
            path = paths[len(times) % len(paths)]
            began = time.perf_counter()
            sock.sendall(request("GET", path, more=cookie))
            answer = receive(sock)
            times.append((time.perf_counter() - began) * 1000)
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {answer.body[:200]!r}")
    return times


def main() -> None:
    host, port, clients = sys.argv[1:]
    address = (host, int(port))
    conversation = secrets.token_urlsafe(12)
    home = fetch(address, request("GET", "/"))
    cookie = f"Cookie: {home.header('set-cookie').partition(';')[0]}\r\n"
    for _ in range(2):
        stream_id = secrets.token_urlsafe(12)
        fields = {"prompt": "hello", "id": stream_id, "model": "once"}
        with connect(address) as sock:
            sock.sendall(form(f"/c/{conversation}/messages", more=cookie, **fields))
            response = sock.recv(65536)
            if not response.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"no conversation: {response[:300]!r}")
        with connect(address) as sock:
            sock.sendall(request("GET", f"/streams/{stream_id}", more=cookie))
            wait_for(sock, b"", b"data: [DONE]", 1)
    print(json.dumps({"ready": True}), flush=True)
    over = threading.Event()
    times: list[float] = []

    def client() -> None:
        times.extend(visit(address, ["/", f"/c/{conversation}"], cookie, over))

    threads = [threading.Thread(target=client, daemon=True) for _ in range(int(clients))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while not stdin_ended(0.1):
        pass
    over.set()
    for thread in threads:
        thread.join(20)
    print(json.dumps({"seconds": time.monotonic() - began, "times": times}), flush=True)


if __name__ == "__main__":
    main()

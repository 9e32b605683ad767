"""Clients that load pages: `python -m bench.visitors HOST PORT CLIENTS`.

It makes a conversation of two turns, says {"ready": true}, loads an empty page and the conversation
in turns, each client on a connection of its own without a pause, until its standard input ends.
Then it says {"seconds": how long, "times": milliseconds of each page}.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time

from bench.phases import wait_for
from bench.readers import told_to_end
from tests.support.raw_http import Address, ask, connect, form, receive, request


def visit(address: Address, paths: list[str], cookie: str, over: threading.Event) -> list[float]:
    """Milliseconds of each page, until it is over."""
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
    home = ask(address, request("GET", "/"))
    cookie = f"Cookie: {home.header('set-cookie').partition(';')[0]}\r\n"
    for _ in range(2):
        stream_id = secrets.token_urlsafe(12)
        fields = {"prompt": "hello", "id": stream_id, "model": "once"}
        with connect(address) as sock:
            sock.sendall(form(f"/c/{conversation}/messages", more=cookie, **fields))
            said = sock.recv(65536)
            if not said.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"no conversation: {said[:300]!r}")
        with connect(address) as sock:
            sock.sendall(request("GET", f"/streams/{stream_id}", more=cookie))
            wait_for(sock, b"", b"data: [DONE]", 1)
    print(json.dumps({"ready": True}), flush=True)
    over = threading.Event()
    times: list[float] = []

    def client() -> None:
        mine = visit(address, ["/", f"/c/{conversation}"], cookie, over)
        times.extend(mine)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(int(clients))]
    began = time.monotonic()
    for each in threads:
        each.start()
    while not told_to_end(0.1):
        pass
    over.set()
    for each in threads:
        each.join(20)
    print(json.dumps({"seconds": time.monotonic() - began, "times": times}), flush=True)


if __name__ == "__main__":
    main()

"""Targets that need a whole server: gunicorn with Halt, and a fake model behind it."""

from __future__ import annotations

import http.client
import os
import random
import re
import time
from pathlib import Path

from halt.testing.fake_openai import FakeOpenAI
from tests.fuzz.target import Finding, Target
from tests.support.halt_server import HaltServer

ANSWER_TIMEOUT = 30.0  # seconds for an answer; the machine may be busy
CPU_SECONDS = 2.0  # of the server for one input
TICKS = os.sysconf("SC_CLK_TCK")
CHECKS_MAX = 5000  # inputs for one server; the fake keeps all its requests


class ServerTarget(Target):
    """Starts a server at the first check. After each check it must be healthy and log no error."""

    def __init__(self) -> None:
        self._fake: FakeOpenAI | None = None
        self._server: HaltServer | None = None
        self._checked = 0  # characters of its output that were checked
        self._checks = 0

    @property
    def server(self) -> HaltServer:
        if self._checks > CHECKS_MAX:
            self.close()
        if self._server is None or self._fake is None:
            self._fake = FakeOpenAI(unknown_model="echo")
            self._fake.__enter__()
            self._server = HaltServer(
                {
                    "OPENAI_BASE_URL": self._fake.base_url,
                    "OPENAI_API_KEY": "fake",
                    "HALT_MODEL": "count?n=2",
                    "HALT_ORPHAN_GRACE": "1",
                }
            )
            self._checked = self._checks = 0
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._fake is not None:
            self._fake.__exit__(None, None, None)
        self._server = self._fake = None

    def check(self, data: bytes) -> None:
        server = self.server
        self._checks += 1
        start = cpu_seconds(server)
        self.send(server, data)
        status, body = exchange(server, "GET", "/healthz")
        if status != 200:
            raise Finding("the server is not well", f"{status} {body[:200]!r}")
        seconds = cpu_seconds(server) - start
        printed, self._checked = server.printed[self._checked :], len(server.printed)
        if "Traceback" in printed or " [ERROR]" in printed or " CRITICAL" in printed:
            last = re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception)\b.*)$", printed, re.MULTILINE)
            kind = last[-1].partition(":")[0] if last else ""
            raise Finding(f"the server logs an error {kind}", printed[-1500:])
        if seconds > CPU_SECONDS:
            raise Finding("the server computes too long", f"{seconds:.1f} s of CPU")

    def send(self, server: HaltServer, data: bytes) -> None:
        """Send the input to the server. Raises Finding if its answer breaks a promise."""
        raise NotImplementedError


def exchange(
    server: HaltServer,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Send a request; return status and body of the response. Raises Finding without a response."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=ANSWER_TIMEOUT)
    start = time.monotonic()
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        answer = response.status, response.read()
    except (OSError, http.client.HTTPException) as exc:
        after = time.monotonic() - start
        raise Finding(f"no answer: {type(exc).__name__}", f"{exc} after {after:.1f} s") from exc
    finally:
        connection.close()
    return answer


def cpu_seconds(server: HaltServer) -> float:
    """Seconds of CPU so far of the server's processes, which are a session of their own."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended meanwhile
        if int(fields[3]) == server.process.pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """JSON with a field or value that no type expects."""
    kind = rng.randrange(8)
    if kind < 3:  # an unknown field with a long name, or very many of them
        objects = [match.end() for match in re.finditer(rb"\{", data)]
        at = rng.choice([objects[0], rng.choice(objects)]) if objects else 0
        unit, times = rng.choice(UNITS), rng.choice((1, 40, 8000, 15_000))
        if rng.random() < 0.2:
            fields = b"".join(b'"%d":1,' % number for number in range(times))
        else:
            fields = b'"' + unit * times + rng.choice((b"", b"\\n", b"\\n")) + b'":1,'
        return data[:at] + fields + data[at:]
    values = list(re.finditer(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null', data))
    if values and kind < 7:
        value = rng.choice(values)
        return data[: value.start()] + rng.choice(HOSTILE) + data[value.end() :]
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(HOSTILE) + data[at:]


#: Parts of field names: words of the decoder's messages, and texts that a pattern may repeat.
UNITS = (
    *(
        b" - at `$",
        b" - at `key in $.",
        b"`",
        b" ",
        b".",
        b"[0]",
        b"[...]",
        b"a",
        b"\\n",
        b"\\u0000",
        b"$.",
    ),
    *(b"Expected `", b" of ", b"' ", b"Object contains unknown field `", b"\xc3\xa9", b"<", b"{}"),
)
HOSTILE = (
    *(
        b"[" * 3000,
        b'{"a":' * 2000,
        b"1" * 5000,
        b"-99999999999999999999",
        b"1e400",
        b"null",
        b"-1",
        b"{}",
    ),
    *(
        b'"\\ud800"',
        b'"\xff"',
        b'{" - at `$`":1}',
        b'"' + b" - at `$" * 300 + b'"',
        b'"' + b" " * 50_000 + b'"',
    ),
)

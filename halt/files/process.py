"""A reading process: reads files in limited memory and time, for one worker of the server.

It is started without the worker's environment, which has keys, and with a lower priority, so that
ten uploads do not hold up a running answer. It ends after a file that took all of its memory,
because libraries in C may then be in any state, and after one that left it large. Where its worker
has ended, it ends after the file that it reads, at the latest by the limit of its CPU time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec

from halt import child_process
from halt.files import protocol, reading
from halt.files.protocol import CPU_MAX, MEMORY_MAX, Reply, Request, frame
from halt.files.reading.result import Limits, Refused

NICE = 10  # added to the priority's number
LARGE = 200_000_000  # bytes in memory after a file, with which no further file is read


def answer(request: Request, source: BinaryIO, out: BinaryIO) -> Reply:
    """Read a file and write what is kept of it to `out`."""
    try:
        result = reading.read(source, request.name, Limits(request.max_chars, request.max_bytes))
        text = result.text.encode()
        for data in (result.content, text, result.thumbnail):
            out.write(data)
        out.flush()
    except Refused as refused:
        return Reply(refused.code, refused.reason)
    except MemoryError:
        return Reply("too_large", "The file takes too much memory.", is_last=True)
    except Exception as exc:  # noqa: BLE001 - only the kind: the message may have the user's text
        return Reply("unreadable", "The file could not be read.", surprise=type(exc).__name__)
    return Reply(
        facts=result.facts,
        content=len(result.content),
        text=len(text),
        thumbnail=len(result.thumbnail),
    )


def _memory() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


def main() -> NoReturn:
    """Reply to requests until the worker's end of the socket is closed."""
    with child_process.begin() as worker:
        os.nice(NICE)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
        with contextlib.suppress(ConnectionError):  # the worker has ended
            worker.sendall(frame(Reply()))
            while _serve(worker):
                pass
    os._exit(0)


def _serve(worker: socket.socket) -> bool:
    """Reply to one request. False: the process must end. Raises ConnectionError."""
    body, descriptors = child_process.receive(worker, files=2)
    child_process.limit_cpu(CPU_MAX, time.process_time())
    source, out = descriptors
    with os.fdopen(source, "rb") as file, os.fdopen(out, "wb") as kept:
        reply = answer(protocol.requests.decode(body), file, kept)
    if _memory() > LARGE:
        reply = msgspec.structs.replace(reply, is_last=True)
    worker.sendall(frame(reply))
    return not reply.is_last


if __name__ == "__main__":
    main()

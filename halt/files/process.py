"""A reading process: reads files in limited memory and time, for one worker of the server.

It is started without the worker's environment, which has keys, and with a lower priority, so that
ten uploads do not hold up a running answer. It ends after a file that took all of its memory,
because libraries in C may then be in any state. Where its worker has ended, it ends after the file
that it reads, at the latest by the limit of its CPU time.
"""

from __future__ import annotations

import os
import resource
import time
from typing import BinaryIO, NoReturn

from halt import child_process
from halt.files import protocol, reading
from halt.files.protocol import CPU_MAX, MEMORY_MAX, Reply, Request, frame
from halt.files.reading.result import Limits, Refused

NICE = 10  # added to the priority's number


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


def main() -> NoReturn:
    """Reply to requests until the worker's end of the socket is closed."""
    with child_process.begin() as worker:
        os.nice(NICE)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
        worker.sendall(frame(Reply()))
        while True:
            body, descriptors = child_process.receive(worker, files=2)
            child_process.limit_cpu(CPU_MAX, time.process_time())
            source, out = descriptors
            with os.fdopen(source, "rb") as file, os.fdopen(out, "wb") as kept:
                reply = answer(protocol.requests.decode(body), file, kept)
            worker.sendall(frame(reply))
            if reply.is_last:
                os._exit(0)


if __name__ == "__main__":
    main()

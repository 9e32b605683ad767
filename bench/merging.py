"""Merges streams with the library: `python -m bench.merging UPSTREAM MODEL SETTLE SECONDS`.

Prints the tokens and the CPU time of the whole process in the window, including the counting.
"""

from __future__ import annotations

import json
import sys
import time

from halt import Halt, Merged
from halt.core.events import Content

STREAMS = 10


def spend(merged: Merged, seconds: float) -> int:
    """Read for `seconds`; return the number of tokens."""
    tokens = 0
    until = time.monotonic() + seconds
    for _, event in merged:
        if isinstance(event, Content):
            tokens += event.content.count("@")
        if time.monotonic() > until:
            return tokens
    raise RuntimeError("the streams have ended")


def main() -> None:
    upstream, model, settle, seconds = sys.argv[1:]
    with (
        Halt(base_url=upstream, api_key="fake", model=model) as halt,
        halt.merge({f"stream {n}": "hello" for n in range(STREAMS)}) as merged,
    ):
        spend(merged, float(settle))
        before = time.process_time()
        tokens = spend(merged, float(seconds))
        cpu = time.process_time() - before
        print(json.dumps({"tokens": tokens, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()

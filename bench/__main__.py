"""`python -m bench`: run the benchmarks, print the table; exit status 1 if a target is missed."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from bench import (
    apis,
    browser,
    burst,
    endurance,
    files,
    idle,
    installs,
    load,
    long_pages,
    many_streams,
    phases,
    rendering,
    sign_ins,
    starts,
    stop_under_load,
    stops,
    stored,
    tokens,
    workers,
)
from bench.sizes import FULL, QUICK, Sizes
from bench.table import Row, markdown, required

Group = Callable[[Sizes], Iterator[Row]]

GROUPS: dict[str, Group] = {
    "tokens": tokens.tokens,
    "saving": tokens.saving,
    "many-streams": many_streams.many_streams,
    "page-loads": many_streams.page_loads,
    "starts": starts.starts,
    "stops": stops.stops,
    "page": browser.page_turns,
    "idle": idle.idle,
    "no-reader": many_streams.no_reader,
    "phases": phases.phases,
    "full": phases.full,
    "stop-under-load": stop_under_load.stop_under_load,
    "answer": browser.page_answer,
    "paragraph": browser.page_paragraph,
    "page-long": long_pages.page_long,
    "rendering": rendering.rendering,
    "race": load.race,
    "burst": burst.burst,
    "install": installs.installs,
    "sign-ins": sign_ins.sign_ins,
    "apis": apis.apis,
    "workers": workers.workers,
    "store": stored.store,
    "lost": stored.lost_of_many_streams,
    "files": files.files,
    "leak": endurance.leak,
    "long": endurance.long,
}
LIBRARIES = (
    *("flask", "gunicorn", "openai", "httpx2", "msgspec", "markdown-it-py", "math-core", "nh3"),
    *("fastapi", "uvicorn", "playwright"),
)


def machine() -> str:
    """A description of this machine and the versions of the libraries."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, "
        f"Python {platform.python_version()}, {libraries}"
    )


def measure(names: list[str], sizes: Sizes) -> dict[str, list[Row]]:
    """Run these groups; return their rows. A group that fails has a row with a missed target."""
    groups: dict[str, list[Row]] = {}
    for name in names:
        rows = groups.setdefault(name, [])
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            rows.extend(GROUPS[name](sizes))
        except Exception as fault:  # noqa: BLE001  a failing group must not hide the others
            traceback.print_exc()
            rows.append(required(name, "", f"failed: {type(fault).__name__}: {fault}", met=False))
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return groups


def raise_file_limit() -> None:
    """Allow as many open files as possible, also for child processes: thousands are needed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=GROUPS, help=", ".join(GROUPS)
    )
    parser.add_argument(
        "--quick", action="store_true", help="few samples: for a quick check, not a result"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the table to this file"
    )
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("the benchmarks need /proc and run on Linux only")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through every `with`
    raise_file_limit()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    groups = measure(options.only or list(GROUPS), QUICK if options.quick else FULL)
    minutes = (time.monotonic() - began) / 60
    text = (
        f"{markdown(groups)}\n\n{machine()}. Measured in {minutes:.1f} minutes, from "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(time.time() - 60 * minutes))} UTC on; the "
        f"load of the machine before the start was {load_before:.1f}.\n"
    )
    if options.quick:
        text += "With few samples (--quick).\n"
    print(text, flush=True)
    if options.out is not None:
        options.out.write_text(text)
    return 0 if all(row.met is not False for rows in groups.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What Linux reports about running processes: children, processor time, memory, descriptors."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CPU_CLOCK = 2  # the kernel's number for the clock of a whole process (CPUCLOCK_SCHED)


def tree(pid: int) -> list[int]:
    """The process and its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    pids = [pid]
    for parent in pids:
        pids += children.get(parent, [])
    return pids


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes in seconds, ended threads included.

    It is the sum that `getrusage` reports, but exact to the nanosecond and for any process.
    """
    return sum(time.clock_gettime(~pid << 3 | CPU_CLOCK) for pid in pids)


def machine_cpu_seconds() -> float:
    """Seconds that all processors together were not idle."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / TICKS


def status(pid: int, name: str) -> int:
    """A number of /proc/PID/status, such as VmRSS (kB) or Threads."""
    match = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(name)
    return int(match[1])


def megabytes(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process."""
    return status(pid, name) / 1024


def pss(pids: Sequence[int]) -> float:
    """Megabytes of these processes; memory that several of them share counts once (PSS)."""
    total = 0
    for pid in pids:
        match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        total += int(match[1]) if match else 0
    return total / 1024


KERNEL_EVENTS = {"futex calls": "syscalls:sys_enter_futex", "context switches": "context-switches"}


def kernel_events(pids: Sequence[int], seconds: float) -> dict[str, int]:
    """Futex calls and context switches of these processes; empty where `perf` cannot count them."""
    perf = shutil.which("perf")
    if perf is None:
        return {}
    command = [perf, "stat", "-x,", "-e", ",".join(KERNEL_EVENTS.values()), "-p"]
    command += [",".join(map(str, pids)), "--", "sleep", f"{seconds:g}"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    counts = {}
    for name, event in KERNEL_EVENTS.items():
        match = re.search(rf"^(\d+),[^,]*,{re.escape(event)}", output, re.M)
        if match is None:
            return {}
        counts[name] = int(match[1])
    return counts


def descriptors(pid: int) -> int:
    """The number of open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))

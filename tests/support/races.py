"""Run functions at the same moment, to test races."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import TypeVar

from tests.support.waiting import WAIT_TIMEOUT, wait_until

T = TypeVar("T")

SWITCH_INTERVAL = 1e-5  # seconds; at Python's 5 ms most bodies would run without a thread switch


def together(*bodies: Callable[[], T]) -> list[T]:
    """Run the bodies at once, each in a thread behind one Barrier; return their results in order.

    Raises the exception of a body, and TimeoutError if a body does not end.
    """
    barrier = threading.Barrier(len(bodies))
    results: dict[int, T] = {}
    faults: list[BaseException] = []

    def run(index: int) -> None:
        try:
            barrier.wait(WAIT_TIMEOUT)
            results[index] = bodies[index]()
        except BaseException as fault:  # noqa: BLE001 - raised again below
            faults.append(fault)

    threads = [
        threading.Thread(target=run, args=(n,), name=f"race-{n}", daemon=True)
        for n in range(len(bodies))
    ]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_TIMEOUT)
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} does not end")
    finally:
        sys.setswitchinterval(usual)
    if faults:
        raise faults[0]
    return [results[n] for n in range(len(bodies))]


def interrupt_in(code: CodeType) -> None:
    """Send the main thread a Ctrl-C while it executes the function of this code.

    It does not interrupt a system call, like a signal that comes just before the call.
    """
    main = threading.main_thread().ident
    assert main is not None
    wait_until(lambda: sys._current_frames()[main].f_code is code)
    _thread.interrupt_main()

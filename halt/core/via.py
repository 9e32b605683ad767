"""The header Halt-Via identifies requests that a Halt sends to its provider, to prevent loops.

A Halt may be the provider of another Halt. It must not be its own provider, directly or through
another Halt: one chat would take every place for a stream.

The header's value is the chain of instance IDs of the Halts that a request has passed, the newest
last. A Halt appends its own ID to the chain of the request that it serves. It refuses a request
whose chain holds its ID, or too many IDs (see `halt.web.via`).

The chain of the request that a thread serves is a context variable. A run copies it to its
`halt.core.connection.UpstreamConnection`, and `halt.transport.pool` sends it. A program that uses
Halt as a library is no server: its requests have no header.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

HEADER = "Halt-Via"

Chain = tuple[str, ...]

_chain: ContextVar[Chain] = ContextVar("halt_chain", default=())


def current() -> Chain:
    """The chain of the request that this thread serves, empty outside of one."""
    return _chain.get()


@contextlib.contextmanager
def use_chain(chain: Chain) -> Iterator[None]:
    """Context manager: work done inside serves a request with this chain."""
    token = _chain.set(chain)
    try:
        yield
    finally:
        _chain.reset(token)

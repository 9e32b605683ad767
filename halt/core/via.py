"""A header that marks the requests a Halt makes to its model's server, so that no circle closes.

A Halt may be the model's server of another Halt. It must not be its own, whether it is named
directly or another Halt leads back to it: a single chat would take every place for a stream.

The header's value is the chain of marks of the Halts that a request has passed, the newest last.
A Halt adds its own mark to the chain of the request that it works for, and refuses a request whose
chain has that mark already, or has too many marks (see `halt.web.via`).

The chain of the request that a thread answers is a context variable. A run takes it to its
`halt.core.connection.Line`, and `halt.transport.pool` sends it on. A program that uses Halt as a
library is no server: its requests carry no header.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

HEADER = "Halt-Via"

Chain = tuple[str, ...]

_chain: ContextVar[Chain] = ContextVar("halt_chain", default=())


def current() -> Chain:
    """The chain of the request that this thread answers, empty outside of one."""
    return _chain.get()


@contextlib.contextmanager
def passing_on(chain: Chain) -> Iterator[None]:
    """What is done inside is done for a request with this chain."""
    token = _chain.set(chain)
    try:
        yield
    finally:
        _chain.reset(token)

"""Requests that a Halt makes to itself, directly or by way of other Halts, are refused.

`Chains` reads which Halts a request has passed (see `halt.core.via`), `check` refuses it. Text that
is no mark is ignored.
"""

from __future__ import annotations

import os
import re
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from halt.core.via import HEADER, current, passing_on
from halt.errors import LoopDetected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON = f"HTTP_{HEADER.upper().replace('-', '_')}"  # its name in a WSGI environment
MARKS_MAX = 8  # Halts that a request may have passed; a circle of hosts behind one address ends
MARK = re.compile(r"[0-9a-f]{16}")

#: Of the process and those that it forks: a master's workers have it from the master. Nothing of it
#: outlives the master, so no server can tell from a mark which installation it belongs to.
_KEY = secrets.token_bytes(16)


def mark_of(data_folder: Path) -> str:
    """The mark of the Halt with this data folder: the same in all workers of a master."""
    return blake2b(os.fsencode(data_folder.resolve()), key=_KEY, digest_size=8).hexdigest()


def check(mark: str) -> None:
    """Raise LoopDetected where the request that this thread answers must be refused."""
    chain = current()
    if chain and chain[-1] == mark:
        raise LoopDetected(
            "This Halt has been set up as its own model's server: set OPENAI_BASE_URL to the "
            "address of a model's server."
        )
    if mark in chain:
        raise LoopDetected(
            "The model's server of this Halt is a Halt that leads back to this one: set "
            "OPENAI_BASE_URL of one of them to the address of a model's server."
        )
    if len(chain) >= MARKS_MAX:
        raise LoopDetected(
            f"The request has passed {MARKS_MAX} Halts, and no more are allowed: set "
            "OPENAI_BASE_URL of one of them to the address of a model's server."
        )


class Chains:
    """A WSGI application that reads the chain of each request, around the one that answers it.

    The chain is `current` until the response's body is there, not while the body is read.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        value = environ.get(ENVIRON, "")
        if not value:
            return self._app(environ, start_response)
        parts = [part.strip() for part in value.split(",")]
        with passing_on(tuple(filter(MARK.fullmatch, parts))):
            return self._app(environ, start_response)

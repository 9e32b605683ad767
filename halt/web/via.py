"""Refuses requests that a Halt makes to itself, directly or through other Halts.

A header has the marks of the Halts that a request has passed (see `halt.core.via`). `chain_of`
reads it, `check` refuses the request. Text in the header that is no mark is ignored.
"""

from __future__ import annotations

import os
import re
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import Any

from halt.core.via import HEADER, Chain, current
from halt.errors import LoopDetected

ENVIRON = f"HTTP_{HEADER.upper().replace('-', '_')}"  # its name in a WSGI environment
MARKS_MAX = 8  # Halts that a request may have passed; also ends a loop over many hosts
MARK = re.compile(r"[0-9a-f]{16}")

#: Shared by this process and the processes that it forks: workers inherit it from their master. It
#: is not stored, so a server cannot tell from a mark which installation it belongs to.
_KEY = secrets.token_bytes(16)


def mark_of(data_folder: Path) -> str:
    """The mark of the Halt with this data folder: the same in all workers of a master."""
    return blake2b(os.fsencode(data_folder.resolve()), key=_KEY, digest_size=8).hexdigest()


def chain_of(environ: dict[str, Any]) -> Chain:
    """The marks in a request's header."""
    marks = environ.get(ENVIRON, "").split(",")
    return tuple(filter(MARK.fullmatch, map(str.strip, marks)))


def check(mark: str) -> None:
    """Raise LoopDetected if the current request has passed this Halt or too many Halts."""
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

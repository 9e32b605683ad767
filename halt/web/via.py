"""Refuses requests that a Halt makes to itself, directly or through other Halts.

A header has the instance IDs of the Halts that a request has passed (see `halt.core.via`).
`chain_of` reads it, `check` refuses the request. Text in the header that is no ID is ignored.
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
CHAIN_MAX = 8  # Halts that a request may have passed; also ends a loop over many hosts
INSTANCE_ID = re.compile(r"[0-9a-f]{16}")

#: Shared by this process and the processes that it forks: workers inherit it from their master. It
#: is not stored, so a server cannot tell from an ID which installation it belongs to.
_KEY = secrets.token_bytes(16)


def instance_id_of(data_folder: Path) -> str:
    """The instance ID of the Halt with this data folder: the same in all its workers."""
    return blake2b(os.fsencode(data_folder.resolve()), key=_KEY, digest_size=8).hexdigest()


def chain_of(environ: dict[str, Any]) -> Chain:
    """The instance IDs in a request's header."""
    values = environ.get(ENVIRON, "").split(",")
    return tuple(filter(INSTANCE_ID.fullmatch, map(str.strip, values)))


def check(instance_id: str) -> None:
    """Raise LoopDetected if the current request has passed this Halt or too many Halts."""
    chain = current()
    if chain and chain[-1] == instance_id:
        raise LoopDetected(
            "This Halt has been set up as its own model's server: set OPENAI_BASE_URL to the "
            "address of a model's server."
        )
    if instance_id in chain:
        raise LoopDetected(
            "The model's server of this Halt is a Halt that leads back to this one: set "
            "OPENAI_BASE_URL of one of them to the address of a model's server."
        )
    if len(chain) >= CHAIN_MAX:
        raise LoopDetected(
            f"The request has passed {CHAIN_MAX} Halts, and no more are allowed: set "
            "OPENAI_BASE_URL of one of them to the address of a model's server."
        )

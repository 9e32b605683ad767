"""How a program asks a Halt in what way its requests arrive, and the answer.

`halt.web.proxies` answers; the doctor asks.
"""

from __future__ import annotations

import msgspec

#: A request with this header is answered with a `Seen`, whatever its path and method.
INSPECT = "X-Halt-Inspect"


class Seen(msgspec.Struct, frozen=True):
    """How a request has arrived. It names no address, neither the client's nor a proxy's."""

    trusted_proxies: int  # HALT_TRUSTED_PROXIES
    forwarded: int  # values in X-Forwarded-For, the client's own among them
    secure: bool  # the client's connection counts as HTTPS
    max_import_bytes: int

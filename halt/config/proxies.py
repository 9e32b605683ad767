"""The request by which a client asks how its requests reach a Halt server through proxies.

`halt-chat doctor` sends it, `halt.web.proxies` responds.
"""

from __future__ import annotations

import msgspec

#: A request with this header gets a `ReceivedRequest` as JSON, for every path and method.
INSPECT = "X-Halt-Inspect"


class ReceivedRequest(msgspec.Struct, frozen=True):
    """How the server received a request. Contains no address of a client or proxy."""

    trusted_proxies: int  # HALT_TRUSTED_PROXIES
    forwarded: int  # values in X-Forwarded-For, including the client's own
    secure: bool  # the server takes the client's connection for HTTPS
    max_import_bytes: int  # size of the largest upload, which proxies should let through

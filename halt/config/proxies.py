"""What a Halt server reports about a request that reached it through proxies.

`halt-chat doctor` requests the report, `halt.web.proxies` makes it.
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

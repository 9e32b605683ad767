"""How a client finds out which proxies its requests to a Halt server pass.

`halt-chat doctor` sends such a request, `halt.web.proxies` replies.
"""

from __future__ import annotations

import msgspec

#: The response to a request with this header is a `Seen` as JSON, for every path and method.
INSPECT = "X-Halt-Inspect"


class Seen(msgspec.Struct, frozen=True):
    """How the server received a request. Contains no address of a client or proxy."""

    trusted_proxies: int  # HALT_TRUSTED_PROXIES
    forwarded: int  # values in X-Forwarded-For, including the client's own
    secure: bool  # the server takes the client's connection for HTTPS
    max_import_bytes: int

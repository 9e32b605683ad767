"""The address by which limits tell one client from another."""

from __future__ import annotations

import ipaddress

from flask import request

NETWORK = 64  # bits that tell one client's IPv6 network from another's; the rest it picks itself


def address() -> str:
    """The client's address (see `halt.web.proxies`) as far as it tells clients apart."""
    found = request.remote_addr or ""
    try:
        known = ipaddress.ip_address(found)
    except ValueError:
        return found
    if isinstance(known, ipaddress.IPv4Address):
        return found
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), NETWORK), strict=False))

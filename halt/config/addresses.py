"""Predicates for strings: base URLs, browsers' origins, loopback hosts, header values."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def ip_address(text: str) -> IpAddress | None:
    """The IP address, None if the text is none. An IPv4 address that is mapped to IPv6 is IPv4.

    A socket for both families names IPv4 peers so.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether this host name or IP address is loopback: it reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Whether this is a host name as browsers send it, or an IP address: without a port."""
    try:
        return bool(_HOST_NAME.fullmatch(text) or ipaddress.ip_address(text))
    except ValueError:
        return False


def is_network(text: str) -> bool:
    """Whether this is an IP address or a network, as in 10.0.0.0/24."""
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def is_base_url(text: str) -> bool:
    """Whether this is an http(s) URL to which a path can be appended: without ? and #."""
    try:
        url = urlsplit(text)
        is_http = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        return is_http and not {"?", "#"} & set(text)
    except ValueError:
        return False


def is_openai_url(url: str) -> bool:
    """Whether this URL is OpenAI's API, in any region."""
    return f".{urlsplit(url).hostname or ''}".endswith(".api.openai.com")


def is_origin(text: str) -> bool:
    """Whether this is an origin as browsers send it: lower case, no path, no default port."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    return (
        is_base_url(text)
        and fits_header(text)
        and text == f"{url.scheme}://{url.netloc}".lower()
        and not url.netloc.endswith(":")
        and "@" not in url.netloc
        and "*" not in url.netloc
        and port != {"http": 80, "https": 443}[url.scheme]
    )


def fits_header(text: str) -> bool:
    """Whether a key or token can be sent in a header: printable ASCII without spaces."""
    return text.isascii() and text.isprintable() and not any(c.isspace() for c in text)

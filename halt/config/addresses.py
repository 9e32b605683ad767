"""What addresses are: of servers, of browsers' origins, of this machine; and what fits a header."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether this names the machine itself and reaches no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(text: str) -> bool:
    """Whether this is the address of an HTTP server, to which paths can be added."""
    try:
        url = urlsplit(text)
        known = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        return known and not {"?", "#"} & set(text)
    except ValueError:
        return False


def is_openai(url: str) -> bool:
    """Whether an address is OpenAI's own, in any region."""
    return f".{urlsplit(url).hostname or ''}".endswith(".api.openai.com")


def is_origin(text: str) -> bool:
    """Whether a browser would name an origin so: in lower case, without path and usual port."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    return (
        is_address(text)
        and fits_header(text)
        and text == f"{url.scheme}://{url.netloc}".lower()
        and not url.netloc.endswith(":")
        and "@" not in url.netloc
        and "*" not in url.netloc
        and port != {"http": 80, "https": 443}[url.scheme]
    )


def fits_header(text: str) -> bool:
    """Whether a key or token can be sent in a header."""
    return text.isascii() and text.isprintable() and not any(c.isspace() for c in text)

"""Which requests go through a proxy, by the environment or the system's settings."""

from __future__ import annotations

import base64
import ipaddress
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import httpx2

from halt.config.addresses import ip_address


class Proxies:
    """The proxies of the environment, or of the system if the environment has none.

    Uses HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, and reads them once: a search through 35
    environment variables takes 0.1 ms, a fifth of the CPU time of a request.
    """

    def __init__(self) -> None:
        from_environment = getproxies_environment()
        self._from_system = not from_environment
        self._proxies = from_environment or getproxies()

    def proxy_for(self, url: httpx2.URL) -> httpx2.URL | None:
        """The proxy for this URL; None: the request goes directly to the server."""
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy or _is_loopback(url.host):
            return None
        port = url.port or (443 if url.scheme == "https" else 80)
        if bypasses_proxy(self._proxies.get("no", ""), url.host, port):
            return None
        # The system settings of macOS and Windows have their own exceptions.
        if self._from_system and proxy_bypass(url.host):
            return None
        return httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")


def proxy_for(url: str) -> str | None:
    """The proxy for a URL, without user name and password; None: the request goes directly."""
    proxy = Proxies().proxy_for(httpx2.URL(url))
    if proxy is None:
        return None
    return str(proxy.copy_with(username="", password="", path="/", query=None)).rstrip("/")


def bypasses_proxy(entries: str, host: str, port: int) -> bool:
    """Whether the entries of NO_PROXY make a request to this host and port bypass the proxy.

    An entry is `*`, a host (which includes its subdomains, whether or not it begins with `.` or
    `*.`), an address, or a range of addresses such as 192.168.0.0/16; `:PORT` may follow a host or
    an address. Names are not resolved, so a range matches addresses only.
    """
    host = host.lower().strip("[]").rstrip(".")
    address = ip_address(host)
    for entry in entries.lower().replace(",", " ").split():
        name, entry_port = _split_port(entry)
        if entry_port is not None and entry_port != port:
            continue
        if name == "*":
            return True
        if address is not None:
            network = _network(name)
            if network is not None and address in network:
                return True
            continue
        name = name.removeprefix("*").removeprefix(".").rstrip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _split_port(entry: str) -> tuple[str, int | None]:
    """The host or range of an entry, and its port, None if it has none."""
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return entry.replace("[", "").replace("]", ""), None


def _network(name: str) -> _Network | None:
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, for which no proxy is used."""
    address = ip_address(host.strip("[]"))
    return address.is_loopback if address else host.lower().rstrip(".") == "localhost"


def proxy_credentials(proxy: httpx2.URL) -> list[bytes]:
    """The header lines that sign in to a proxy; none if its URL has no user name."""
    if not proxy.username:
        return []
    pair = f"{proxy.username}:{proxy.password}".encode()
    return [b"Proxy-Authorization: Basic " + base64.b64encode(pair)]

"""Addresses to which Halt connects only if a setting allows it: link-local ones, and those where
clouds give credentials to any program that asks ("metadata").

Python's `is_link_local` knows neither an IPv4 address within an IPv6 one nor the metadata addresses
of other ranges. Sources:

- Link-local: 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291, 2.5.6).
- IPv4 within IPv6: ::ffff:0:0/96 and ::/96 (RFC 4291, 2.5.5), ::ffff:0:0:0/96 (RFC 2765),
  64:ff9b::/96 (RFC 6052), 64:ff9b:1::/48 (RFC 8215, where a network chooses the prefix's length),
  6to4 2002::/16 (RFC 3056), Teredo 2001::/32 (RFC 4380), ISATAP (RFC 5214, 6.1).
- AWS: 169.254.169.254 and fd00:ec2::254, for containers 169.254.170.2 and fd00:ec2::23, the clock
  fd00:ec2::123 ("Access instance metadata", EC2 User Guide; EKS Pod Identity).
- Google Cloud: 169.254.169.254 and fd20:ce::254 ("About VM metadata", Compute Engine).
- Azure: 169.254.169.254 and 168.63.129.16 ("What is IP address 168.63.129.16?").
- Alibaba Cloud: 100.100.100.200 and fd00:100::100:200 ("Instance metadata", ECS).
- Oracle Cloud: 169.254.169.254 and fd00:c1::a9fe:a9fe; its former platform: 192.0.0.192 ("Retrieve
  Predefined Instance Metadata").
- Scaleway: 169.254.42.42 and fd00:42::42. Akamai: 169.254.169.254 and fd00:a9fe:a9fe::1.

Unknown remain a network's own NAT64 prefix, and names that a proxy resolves.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import httpx2

from halt.config.addresses import IpAddress
from halt.transport.dns import Address

LINK_LOCAL = "link-local address"
METADATA = "metadata address"  # of a cloud
ALLOW_LINK_LOCAL = "HALT_ALLOW_LINK_LOCAL"  # the setting, for messages

#: Ranges of both versions, and what to call an address in them.
REFUSED_NETWORKS = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in {
        "169.254.0.0/16": LINK_LOCAL,
        "fe80::/10": LINK_LOCAL,
        "fd00:ec2::/32": METADATA,
        "fd20:ce::254/128": METADATA,
        "fd00:c1::a9fe:a9fe/128": METADATA,
        "fd00:100::100:200/128": METADATA,
        "fd00:42::42/128": METADATA,
        "fd00:a9fe:a9fe::1/128": METADATA,
        "100.100.100.200/32": METADATA,
        "168.63.129.16/32": METADATA,
        "192.0.0.192/32": METADATA,
    }.items()
)
#: IPv6 ranges that hold an IPv4 address, and the bytes of an address in which it is.
_HOLDERS = tuple(
    (ipaddress.IPv6Network(network), places)
    for network, places in {
        "::/96": [(12, 13, 14, 15)],
        "::ffff:0:0/96": [(12, 13, 14, 15)],
        "::ffff:0:0:0/96": [(12, 13, 14, 15)],
        "64:ff9b::/96": [(12, 13, 14, 15)],
        # Prefixes of 48, 56, 64 and 96 bits; the byte 8 is skipped (RFC 6052, 2.2).
        "64:ff9b:1::/48": [(6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15)],
        "2002::/16": [(2, 3, 4, 5)],
        "2001::/32": [(4, 5, 6, 7)],  # Teredo's server
    }.items()
)
_TEREDO = ipaddress.IPv6Network("2001::/32")
_ISATAP = frozenset({b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"})  # bytes 8 to 11


class AddressRefused(httpx2.ConnectError):
    """Halt does not connect to the addresses of this host."""

    def __init__(self, host: str, address: str) -> None:
        kind = refused_kind(address)
        article = "an" if kind[0] in "aeiou" else "a"
        what = (
            f"{address} is {article} {kind}, to which Halt does not connect."
            if host == address
            else f"{host} resolves to the {kind} {address}, to which Halt does not connect."
        )
        super().__init__(f"{what} {ALLOW_LINK_LOCAL}=1 allows it.")


def is_refused(address: str | IpAddress) -> bool:
    """Whether Halt does not connect to this address. Raises ValueError if it is none."""
    return bool(refused_kind(address))


def refused_kind(address: str | IpAddress) -> str:
    """LINK_LOCAL or METADATA if Halt does not connect to this address, else empty.

    An IPv6 address may have a zone, as in fe80::1%eth0. Raises ValueError if it is no address.
    """
    if isinstance(address, str):
        address = ipaddress.ip_address(address.partition("%")[0])
    for candidate in (address, *_embedded(address)):
        for network, kind in REFUSED_NETWORKS:
            if candidate in network:
                return kind
    return ""


def literal_address(host: str) -> str:
    """The address that a host stands for without a name server, empty if it is a name.

    Also for the spellings that the system's resolver and many proxies take: 2852039166, 0xa9fea9fe,
    169.254.43518, a dot at the end, or characters as in %31.
    """
    host = unquote(host.partition("%25")[0]).rstrip(".")  # %25 begins a zone
    if ":" in host:
        host = host.partition("%")[0]  # the zone may be one of another machine
    try:
        found = socket.getaddrinfo(host, None, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return ""
    return str(found[0][4][0]) if host and found else ""


def check_literal(host: str) -> None:
    """Raises AddressRefused if a host is such an address itself; names are not looked up."""
    address = literal_address(host)
    if address and refused_kind(address):
        raise AddressRefused(host, address)


def allowed_addresses(host: str, resolved: Sequence[Address]) -> Sequence[Address]:
    """The addresses to which Halt connects. Raises AddressRefused if there are only others."""
    allowed = [address for address in resolved if not refused_kind(address[4][0])]
    if resolved and not allowed:
        raise AddressRefused(host, resolved[0][4][0])
    return allowed


def _embedded(address: IpAddress) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses within an IPv6 address, by every rule that fits it."""
    if not isinstance(address, ipaddress.IPv6Address):
        return
    packed = address.packed
    for network, places in _HOLDERS:
        if address in network:
            for place in places:
                yield ipaddress.IPv4Address(bytes(packed[index] for index in place))
    if address in _TEREDO:  # its client, inverted
        yield ipaddress.IPv4Address(bytes(byte ^ 0xFF for byte in packed[12:]))
    if packed[8:12] in _ISATAP:
        yield ipaddress.IPv4Address(packed[12:])

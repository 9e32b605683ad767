"""Link-local and metadata addresses: which they are, and that nothing connects to them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from halt.providers.errors import to_upstream_error
from halt.transport import address_policy
from halt.transport.address_policy import (
    LINK_LOCAL,
    METADATA,
    AddressRefused,
    is_refused,
    literal_address,
    refused_kind,
)
from halt.transport.pool import Transport
from tests.support.raw_server import HELLO, RawServer, answering
from tests.support.transport_calls import fetch, get
from tests.support.waiting import WAIT_TIMEOUT

METADATA_IPV4 = "169.254.169.254"
CONTEXT = httpx2.create_ssl_context()  # loading it takes 20 ms


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies of this machine's environment."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


def made(allow_link_local: bool = False) -> contextlib.closing[Transport]:
    return contextlib.closing(Transport(WAIT_TIMEOUT, CONTEXT, allow_link_local=allow_link_local))


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        (METADATA_IPV4, LINK_LOCAL),
        ("169.254.0.0", LINK_LOCAL),
        ("169.254.255.255", LINK_LOCAL),
        ("169.254.170.2", LINK_LOCAL),
        ("fe80::1", LINK_LOCAL),
        ("fe80::1%eth0", LINK_LOCAL),
        ("febf:ffff::1", LINK_LOCAL),
        ("::ffff:169.254.169.254", LINK_LOCAL),
        ("::169.254.169.254", LINK_LOCAL),
        ("::ffff:0:169.254.169.254", LINK_LOCAL),
        ("64:ff9b::a9fe:a9fe", LINK_LOCAL),
        ("64:ff9b:1::a9fe:a9fe", LINK_LOCAL),
        ("64:ff9b:1:a9fe:a9:fe00::", LINK_LOCAL),
        ("64:ff9b:1:7a9:fe:a9fe::", LINK_LOCAL),
        ("64:ff9b:1:7:a9:fea9:fe00:0", LINK_LOCAL),
        ("2002:a9fe:a9fe::1", LINK_LOCAL),
        ("2001:0:a9fe:a9fe:0:1:2:3", LINK_LOCAL),
        ("2001:0:102:304:0:1:5601:5601", LINK_LOCAL),
        ("2001:db8::5efe:169.254.169.254", LINK_LOCAL),
        ("2001:db8::200:5efe:169.254.169.254", LINK_LOCAL),
        ("fd00:ec2::254", METADATA),
        ("fd00:ec2::23", METADATA),
        ("fd20:ce::254", METADATA),
        ("fd00:c1::a9fe:a9fe", METADATA),
        ("fd00:100::100:200", METADATA),
        ("fd00:42::42", METADATA),
        ("fd00:a9fe:a9fe::1", METADATA),
        ("100.100.100.200", METADATA),
        ("::ffff:100.100.100.200", METADATA),
        ("64:ff9b::168.63.129.16", METADATA),
        ("168.63.129.16", METADATA),
        ("192.0.0.192", METADATA),
    ],
)
def test_link_local_and_metadata_addresses_are_refused(address: str, kind: str) -> None:
    """They are refused in each form, also as an IPv4 address within an IPv6 one."""
    assert refused_kind(address) == kind
    assert is_refused(ipaddress.ip_address(address.partition("%")[0]))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"),
        *("10.0.0.1", "172.17.0.1", "192.168.65.254", "100.64.0.1", "fd00::2", "fec0::1"),
        *("169.253.255.255", "169.255.0.0", "100.100.100.100", "168.63.129.17", "fd00:ec3::254"),
        *("64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808:0:1:f7f7:f7f7"),
        *("2606:4700:4700::1111", "2001:db8::a9fe:a9fe"),
    ],
)
def test_other_addresses_are_allowed(address: str) -> None:
    """Loopback, private networks and the Internet are allowed: model servers stand there."""
    assert not is_refused(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("2852039166", METADATA_IPV4),
        ("0xa9fea9fe", METADATA_IPV4),
        ("169.254.43518", METADATA_IPV4),
        ("0251.0376.0251.0376", METADATA_IPV4),
        ("169.254.169.254.", METADATA_IPV4),
        ("fe80::1%25nowhere", "fe80::1"),
        ("::FFFF:169.254.169.254", "::ffff:169.254.169.254"),
        ("model.example", ""),
        ("localhost", ""),
        ("", ""),
        ("x" * 70, ""),
    ],
)
def test_literal_address_reads_each_spelling(host: str, address: str) -> None:
    """A number is an address in all spellings of the system; a name is none."""
    assert literal_address(host) == address


@pytest.mark.parametrize(
    "host",
    [
        *(METADATA_IPV4, "2852039166", "0xA9FEA9FE", "169.254.43518", "169。254。169。254"),
        *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "[fe80::1]"),
    ],
)
def test_no_spelling_of_an_address_is_connected_to(host: str) -> None:
    """The error says what the host resolves to and which setting allows it; it is final."""
    with made() as transport, pytest.raises(AddressRefused) as caught:
        get(transport, f"http://{host}/v1/models")
    error = to_upstream_error(caught.value, ())
    assert (error.code, error.retryable, error.status) == ("address_refused", False, 502)
    assert "to which Halt does not connect" in error.message
    assert "HALT_ALLOW_LINK_LOCAL=1 allows it." in error.message
    assert "address" in error.message


def test_message_names_host_kind_and_address() -> None:
    """A name and the address it resolves to are both named, an address alone once."""
    assert str(AddressRefused("model.example", METADATA_IPV4)).startswith(
        "model.example resolves to the link-local address 169.254.169.254, to which"
    )
    assert str(AddressRefused("fd00:ec2::254", "fd00:ec2::254")).startswith(
        "fd00:ec2::254 is a metadata address, to which"
    )


# --- with servers: 127.0.0.2 stands for a link-local address --------------------------------------


class Names:
    """The addresses of `model.example`, and how often it was looked up."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.look_ups = 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names()
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *options: Any) -> Any:
        if host != "model.example":
            return real(host, port, *options)
        found.look_ups += 1
        return [item for address in found.addresses for item in real(address, port, *options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    refused = (ipaddress.ip_network("127.0.0.2"), LINK_LOCAL)
    monkeypatch.setattr(
        address_policy, "REFUSED_NETWORKS", (*address_policy.REFUSED_NETWORKS, refused)
    )
    return found


@pytest.fixture
def forbidden() -> Iterator[RawServer]:
    """A server at 127.0.0.2."""
    with RawServer(answering(HELLO), host="127.0.0.2") as server:
        yield server


def test_name_with_refused_addresses_alone_is_refused(names: Names, forbidden: RawServer) -> None:
    """Nothing connects to a server at a refused address."""
    names.addresses = ["127.0.0.2", "::ffff:127.0.0.2"]
    with made() as transport, pytest.raises(AddressRefused, match=r"model\.example resolves to"):
        get(transport, f"http://model.example:{forbidden.port}/")
    assert forbidden.accepted == 0


def test_allowed_addresses_of_a_name_alone_are_connected_to(
    names: Names, forbidden: RawServer
) -> None:
    """Of a name's addresses only the allowed ones are tried, wherever they stand."""
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    with RawServer(answering(HELLO), port=forbidden.port) as server, made() as transport:
        assert fetch(transport, f"http://model.example:{server.port}/") == b"hello"
        assert (server.accepted, forbidden.accepted) == (1, 0)


def test_checked_address_is_connected_to_without_a_second_look_up(
    names: Names, forbidden: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to something else later is checked again before each connection."""
    monkeypatch.setattr("halt.transport.dns.CACHE_SECONDS", -1.0)
    monkeypatch.setattr("halt.transport.pool.IDLE_MAX", 0)
    names.addresses = ["127.0.0.1"]
    with RawServer(answering(HELLO), port=forbidden.port) as server, made() as transport:
        assert fetch(transport, f"http://model.example:{server.port}/") == b"hello"
        assert names.look_ups == 1
        names.addresses = ["127.0.0.2"]
        with pytest.raises(AddressRefused):
            get(transport, f"http://model.example:{server.port}/")
        assert names.look_ups == 2
        assert forbidden.accepted == 0


def test_setting_allows_link_local_addresses(names: Names) -> None:
    """With the setting the same address is connected to."""
    names.addresses = ["127.0.0.2"]
    with RawServer(answering(HELLO), host="127.0.0.2") as server:
        with made(allow_link_local=True) as transport:
            assert fetch(transport, f"http://model.example:{server.port}/") == b"hello"
        with made() as transport, pytest.raises(AddressRefused):
            get(transport, server.url)
        assert server.accepted == 1


# --- behind a proxy -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["2852039166", "169.254.169.254.", "[fe80::1%25lo]", "%31%36%39.254.169.254"]
)
def test_address_is_refused_behind_a_proxy(
    scheme: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is not asked for an address that Halt refuses, however it is written."""
    with RawServer(answering(HELLO)) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.port}")
        with made() as transport, pytest.raises(AddressRefused):
            get(transport, f"{scheme}://{host}/v1/models")
        assert proxy.accepted == 0


def test_name_behind_a_proxy_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy resolves names, so Halt cannot check them."""
    with RawServer(answering(HELLO)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        with made() as transport:
            assert fetch(transport, "http://model.invalid/v1/models") == b"hello"


def test_proxy_at_a_refused_address_is_used(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's address is the choice of whoever sets the environment."""
    names.addresses = ["127.0.0.2"]
    with RawServer(answering(HELLO), host="127.0.0.2") as proxy:
        monkeypatch.setenv("http_proxy", f"http://model.example:{proxy.port}")
        with made() as transport:
            assert fetch(transport, "http://model.invalid/v1/models") == b"hello"

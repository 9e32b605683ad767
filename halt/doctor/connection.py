"""Checks the connection to an address: DNS name, TCP and TLS. Behind a proxy nothing is checked."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx2

from halt.clock import now
from halt.core.connection import UpstreamConnection
from halt.doctor.report import Report, milliseconds
from halt.errors import Interrupted
from halt.providers.errors import PLAIN
from halt.transport.address_policy import (
    AddressRefused,
    allowed_addresses,
    is_refused,
    literal_address,
)
from halt.transport.dns import Address, Resolver
from halt.transport.proxies import proxy_for

LOOKUP_TIMEOUT = 10.0  # seconds for the look-up of a name
FEW_DAYS = 14  # a certificate that expires in fewer days gives a warning
UNCHECKED = "Halt cannot check which address the proxy connects to"


def destination(address: str) -> tuple[str, int, bool]:
    """Host and port of this URL, and whether it uses TLS."""
    url = urlsplit(address)
    is_tls = url.scheme == "https"
    return url.hostname or "", url.port or (443 if is_tls else 80), is_tls


def check_connection(
    report: Report,
    address: str,
    connect_timeout: float,
    setting: str,
    *,
    allow_link_local: bool = True,
) -> bool:
    """Check the name, TCP and TLS. Returns whether a connection can be made.

    True, without a check, if requests go through a proxy. `setting` is the name of the setting
    with the address, for remedies. `allow_link_local`: connect also to the addresses that
    `halt.transport.address_policy` refuses. Raises ChecksEnded.
    """
    host, port, is_tls = destination(address)
    proxy = proxy_for(address)
    if proxy is not None:
        return _check_proxied(report, host, proxy, setting, allow_link_local=allow_link_local)
    addresses = _resolve(report, host, port, setting, allow_link_local=allow_link_local)
    if not addresses:
        return False
    connection = UpstreamConnection()
    with report.cancellation.interrupting(connection.interrupt):
        try:
            sock = _connect(report, connection, addresses, host, port, connect_timeout, setting)
            if sock is None:
                return False
            try:
                if not is_tls:
                    return True
                sock = httpx2.create_ssl_context().wrap_socket(
                    sock, server_hostname=host, do_handshake_on_connect=False
                )
                return _check_tls(report, connection, sock)
            finally:
                connection.close(sock)
        except Interrupted:
            return False  # unread: ChecksEnded replaces it


def _check_proxied(
    report: Report, host: str, proxy: str, setting: str, *, allow_link_local: bool
) -> bool:
    text = f"requests to {host} go through {proxy} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)"
    literal = "" if allow_link_local else literal_address(host)
    if literal and is_refused(literal):
        report.fail("proxy", str(AddressRefused(host, literal)), f"Correct {setting}.")
        return False
    unchecked = "" if literal or allow_link_local else f"; {UNCHECKED}"
    report.ok("proxy", f"{text}; hosts in NO_PROXY do not{unchecked}")
    return True


def _resolve(
    report: Report, host: str, port: int, setting: str, *, allow_link_local: bool
) -> Sequence[Address]:
    """The addresses to connect to; none after a failure. Raises ChecksEnded."""
    began = now()
    try:
        addresses = _look_up(report, host, port)
        if not allow_link_local:
            addresses = allowed_addresses(host, addresses)
    except AddressRefused as exc:
        report.fail("name", str(exc), f"Correct {setting}.")
        return ()
    except OSError as exc:
        report.fail("name", f"{host}: {exc.strerror or exc}.", f"Correct the name in {setting}.")
        return ()
    spent = milliseconds(now() - began)
    report.ok("name", f"{host} is {addresses[0][4][0]} ({spent})")
    return addresses


def _look_up(report: Report, host: str, port: int) -> Sequence[Address]:
    """Resolve a name. Raises OSError, ChecksEnded."""
    done = threading.Event()
    lookup = Resolver().look_up(host, port)
    lookup.add_done_callback(lambda _: done.set())
    with report.cancellation.interrupting(done.set):
        done.wait(LOOKUP_TIMEOUT)
    if not lookup.done():
        raise TimeoutError("the name server did not answer in time")
    return lookup.result()


def _connect(
    report: Report,
    connection: UpstreamConnection,
    addresses: Sequence[Address],
    host: str,
    port: int,
    connect_timeout: float,
    setting: str,
) -> socket.socket | None:
    """Connect to the first address that accepts. None after a failure. Raises Interrupted."""
    began = now()
    try:
        sock = _dial(connection, addresses, began + connect_timeout)
    except ConnectionRefusedError:
        report.fail(
            "connection",
            f"{host}:{port} refuses connections.",
            f"Start the server that should listen there, or correct {setting}.",
        )
    except TimeoutError:
        report.fail(
            "connection",
            f"{host}:{port} did not accept a connection within {connect_timeout:g} s.",
            f"Correct {setting}, or look for a firewall that blocks the connection.",
        )
    except OSError as exc:
        report.fail("connection", f"{host}:{port}: {exc}.", f"Correct {setting}.")
    else:
        report.ok(
            "connection", f"{host}:{port} accepts connections ({milliseconds(now() - began)})"
        )
        return sock
    return None


def _dial(
    connection: UpstreamConnection, addresses: Sequence[Address], deadline: float
) -> socket.socket:
    """Connect to one of these very addresses. Raises OSError of the last one, Interrupted."""
    fault: OSError = OSError("the name has no address")
    for family, kind, proto, _, target in addresses:
        sock = socket.socket(family, kind, proto)
        try:
            connection.attach(sock, connected=False)
            sock.settimeout(max(0.001, deadline - now()))
            sock.connect(target)
            sock.getpeername()  # fails after an interrupt just before `connect`
        except OSError as exc:
            connection.close(sock)
            fault = exc
        except Interrupted:
            sock.close()
            raise
        else:
            return sock
    raise fault


def _check_tls(report: Report, connection: UpstreamConnection, sock: ssl.SSLSocket) -> bool:
    """Do the TLS handshake and check the certificate's end. Returns whether TLS works.

    Raises Interrupted.
    """
    began = now()
    try:
        connection.attach(sock)
        sock.do_handshake()
        certificate = sock.getpeercert() or {}
        version = sock.version()
    except OSError as exc:  # also ssl.SSLError
        reason = getattr(exc, "verify_message", "") or exc
        if isinstance(exc, TimeoutError):
            reason = "the server did not begin TLS in time"
        elif isinstance(exc, ssl.SSLError) and exc.reason in PLAIN:
            reason = "the server does not speak TLS"
        distrusted = isinstance(exc, ssl.SSLCertVerificationError)
        remedy = report.remedy("upstream_tls" if distrusted else "upstream_no_tls")
        report.fail("TLS", f"no trusted TLS connection: {reason}.", remedy)
        return False
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < FEW_DAYS:
        report.warn("TLS", f"the certificate expires in {days} days.", "Renew it.")
    else:
        spent = milliseconds(now() - began)
        report.ok("TLS", f"{version}, the certificate is valid for {days} days ({spent})")
    return True

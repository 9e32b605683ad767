"""Checks the connection to an address: DNS name, TCP and TLS. Behind a proxy nothing is checked."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx2

from halt.clock import now
from halt.doctor.report import Report, milliseconds
from halt.transport.dns import Resolver
from halt.transport.proxies import proxy_for

LOOKUP_TIMEOUT = 10.0  # seconds for the look-up of a name
FEW_DAYS = 14  # a certificate that expires in fewer days gives a warning


def destination(address: str) -> tuple[str, int, bool]:
    """Host and port of this URL, and whether it uses TLS."""
    url = urlsplit(address)
    is_tls = url.scheme == "https"
    return url.hostname or "", url.port or (443 if is_tls else 80), is_tls


def check_connection(report: Report, address: str, connect_timeout: float, setting: str) -> bool:
    """Check the name, TCP and TLS. Returns whether a connection can be made.

    True, without a check, if requests go through a proxy. `setting` is the name of the setting
    with the address, for remedies.
    """
    host, port, is_tls = destination(address)
    proxy = proxy_for(address)
    if proxy is not None:
        text = f"requests to {host} go through {proxy} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)"
        report.ok("proxy", f"{text}; hosts in NO_PROXY do not")
        return True
    sock = _connect(report, host, port, connect_timeout, setting)
    if sock is None:
        return False
    with sock:
        return not is_tls or _check_tls(report, sock, host)


def _connect(
    report: Report, host: str, port: int, connect_timeout: float, setting: str
) -> socket.socket | None:
    """Resolve the name and connect. Returns the socket, None after a failure."""
    began = now()
    try:
        ip_address = Resolver().addresses(host, port, now() + LOOKUP_TIMEOUT)[0][4][0]
    except OSError as exc:
        report.fail("name", f"{host}: {exc.strerror or exc}.", f"Correct the name in {setting}.")
        return None
    spent = milliseconds(now() - began)
    report.ok("name", f"{host} is {ip_address} ({spent})")
    began = now()
    try:
        sock = socket.create_connection((host, port), timeout=connect_timeout)
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


def _check_tls(report: Report, sock: socket.socket, host: str) -> bool:
    """Do the TLS handshake and check the certificate's end. Returns whether TLS works."""
    began = now()
    try:
        with httpx2.create_ssl_context().wrap_socket(sock, server_hostname=host) as secure:
            certificate = secure.getpeercert() or {}
            version = secure.version()
    except OSError as exc:  # also ssl.SSLError
        reason = getattr(exc, "verify_message", "") or exc
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

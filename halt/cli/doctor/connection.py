"""Looks at the connection to an address: proxy, name, TCP, TLS."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx2

from halt.cli.doctor.report import Report, milliseconds
from halt.cli.source import ANSWER_WITHIN
from halt.clock import now
from halt.transport.dns import Resolver
from halt.transport.pool import proxy_for

FEW_DAYS = 14  # days until a certificate ends that call for a warning


def destination(address: str) -> tuple[str, int, bool]:
    """Host and port that a connection to this URL leads to, and whether it has TLS."""
    url = urlsplit(address)
    is_tls = url.scheme == "https"
    return url.hostname or "", url.port or (443 if is_tls else 80), is_tls


def reach(report: Report, address: str, connect_timeout: float, setting: str) -> bool:
    """Whether the address leads to a server, or a proxy is asked for it.

    `setting` is what is to be corrected where it does not.
    """
    host, port, is_tls = destination(address)
    proxy = proxy_for(address)
    if proxy is not None:
        text = f"requests to {host} go through {proxy} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)"
        report.ok("proxy", f"{text}; what NO_PROXY names does not")
        return True
    sock = _connect(report, host, port, connect_timeout, setting)
    if sock is None:
        return False
    with sock:
        return not is_tls or _trusts(report, sock, host)


def _connect(
    report: Report, host: str, port: int, connect_timeout: float, setting: str
) -> socket.socket | None:
    """Look up a name and connect; the connection, None where there is none."""
    began = now()
    try:
        found = Resolver().addresses(host, port, now() + ANSWER_WITHIN)[0][4][0]
    except OSError as exc:
        report.fail("name", f"{host}: {exc.strerror or exc}.", f"Correct the name in {setting}.")
        return None
    spent = milliseconds(now() - began)
    report.ok("name", f"{host} is {found} ({spent})")
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
            f"{host}:{port} does not accept a connection within {connect_timeout:g} s.",
            f"Look for a firewall on the way, or correct {setting}.",
        )
    except OSError as exc:
        report.fail("connection", f"{host}:{port}: {exc}.", f"Correct {setting}.")
    else:
        report.ok("connection", f"{host}:{port} accepts ({milliseconds(now() - began)})")
        return sock
    return None


def _trusts(report: Report, sock: socket.socket, host: str) -> bool:
    """Shake hands and look at the certificate."""
    began = now()
    try:
        with httpx2.create_ssl_context().wrap_socket(sock, server_hostname=host) as secure:
            certificate = secure.getpeercert() or {}
            version = secure.version()
    except (ssl.SSLError, OSError) as exc:
        reason = getattr(exc, "verify_message", "") or exc
        distrusted = isinstance(exc, ssl.SSLCertVerificationError)
        remedy = report.remedy("upstream_tls" if distrusted else "upstream_no_tls")
        report.fail("TLS", f"no trusted connection: {reason}.", remedy)
        return False
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < FEW_DAYS:
        report.warn("TLS", f"the certificate ends in {days} days.", "Renew it.")
    else:
        spent = milliseconds(now() - began)
        report.ok("TLS", f"{version}, the certificate holds {days} days ({spent})")
    return True

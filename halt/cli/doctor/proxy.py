"""The checks of `doctor URL`: a running Halt at its public address, then the proxies before it."""

from __future__ import annotations

import re
from contextlib import closing
from html import unescape
from http.cookies import SimpleCookie
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec

from halt.cli.doctor import proxy_checks
from halt.cli.doctor.proxy_streams import check_streams
from halt.cli.source import Remote, RemoteError
from halt.clock import now
from halt.doctor.connection import check_connection
from halt.doctor.report import Report, milliseconds
from halt.transport.proxies import proxy_for

ROOT_ADVICE = (
    "Give Halt a host name of its own, such as https://halt.example.org/: a path below a host name "
    "is not supported yet."
)


def check_proxy(
    report: Report, url: str, token: str, timeout: float, connect_timeout: float
) -> None:
    """Check the Halt at this public address; `timeout` is for one answer, in seconds."""
    try:
        remote = Remote(url, token, connect_timeout)
    except RemoteError as fault:
        report.fail("address", fault.message, "Give Halt's public address.")
        return
    with closing(remote):
        if _check_connection(report, remote, connect_timeout) and _check_health(report, remote):
            session = _check_page(report, remote)
            proxy_checks.check_client_address(report, remote, connect_timeout)
            proxy_checks.check_websocket(report, remote, connect_timeout)
            if check_streams(report, remote, timeout):
                proxy_checks.check_departure(report, remote, session, connect_timeout)


def _check_connection(report: Report, remote: Remote, connect_timeout: float) -> bool:
    if not check_connection(report, remote.url, connect_timeout, "the address"):
        return False
    url = urlsplit(remote.url)
    is_near = url.hostname in {"localhost", "127.0.0.1", "::1"}
    if url.scheme != "https" and not is_near and proxy_for(remote.url) is None:
        report.warn(
            "HTTPS",
            "without TLS others can read the access token and all messages.",
            "Put a proxy with a certificate in front of Halt: docs/deployment.md has recipes.",
        )
    return True


class _Health(msgspec.Struct):
    status: str
    version: str
    upstream: str = "unknown"


_health = msgspec.json.Decoder(_Health)


def _check_health(report: Report, remote: Remote) -> bool:
    began = now()
    try:
        health = _health.decode(remote.request("GET", "/healthz").content)
    except RemoteError as fault:
        remedy = "Start Halt, and let the proxy forward to its HOST and PORT."
        report.fail("Halt", fault.message, _with_root_advice(remote, remedy))
        return False
    except msgspec.MsgspecError:
        remedy = "Let the proxy forward to Halt."
        report.fail(
            "Halt", "another server answers at this address.", _with_root_advice(remote, remedy)
        )
        return False
    spent = milliseconds(now() - began)
    report.ok("Halt", f"version {health.version} answers ({spent}), its model is {health.upstream}")
    try:
        if remote.accepts_token():
            return True
    except RemoteError as fault:
        report.fail("token", fault.message, "Look at the proxy's log.")
        return False
    remedy = "Set HALT_TOKEN here to the token of that Halt, or give --token."
    detail = "the access token is wrong." if remote.token else "an access token is needed."
    report.fail("token", detail, remedy)
    return False


def _with_root_advice(remote: Remote, remedy: str) -> str:
    """The remedy and, if the address has a path, the advice not to use one."""
    return f"{remedy} {ROOT_ADVICE}" if urlsplit(remote.url).path else remedy


# --- the page -------------------------------------------------------------------------------------


def _check_page(report: Report, remote: Remote) -> str:
    """Check the page; return the cookies that it sets, as a Cookie header; empty on failure."""
    try:
        page = remote.request("GET", "/")
    except RemoteError as fault:
        report.fail("page", fault.message, "Look at the proxy's log.")
        return ""
    _check_files(report, remote, page)
    policy = page.headers.get_list("content-security-policy")
    if not any("default-src 'self'" in value for value in policy):
        report.fail(
            "headers",
            "the page's Content-Security-Policy is missing.",
            "Remove the proxy's rules for this header.",
        )
    elif len(policy) > 1:
        report.warn(
            "headers",
            "the proxy adds a second Content-Security-Policy.",
            "Remove it: a browser applies both, and the page may break.",
        )
    else:
        report.ok("headers", "the page's Content-Security-Policy arrives")
    cookies = [SimpleCookie(value) for value in page.headers.get_list("set-cookie")]
    morsels = [morsel for jar in cookies for morsel in jar.values()]
    if remote.url.startswith("https") and morsels:
        if all(morsel["secure"] for morsel in morsels):
            report.ok("cookies", "they are sent over HTTPS only")
        else:
            report.warn(
                "cookies",
                "the session cookie would also be sent without HTTPS.",
                "Let the proxy send X-Forwarded-Proto "
                "(nginx: `proxy_set_header X-Forwarded-Proto $scheme;`), "
                "and start Halt with HALT_TRUSTED_PROXIES=1.",
            )
    return "; ".join(f"{morsel.key}={morsel.value}" for morsel in morsels)


def _check_files(report: Report, remote: Remote, page: httpx2.Response) -> None:
    """Request a stylesheet as a browser does: by the page's link, at the root of the host name."""
    link = re.search(r'<link rel="stylesheet" href="(/[^"]+)"', page.text)
    if link is None:
        return
    path = urlsplit(remote.url).path
    root = Remote(urljoin(remote.url, "/"))
    try:
        style = root.request("GET", unescape(link[1]))
        kind = style.headers.get("content-type", "")
        fault = "" if kind.startswith("text/css") else f"Content-Type {kind or 'missing'}"
    except RemoteError as exc:
        fault = f"status {exc.status}" if exc.status else exc.message
    finally:
        root.close()
    place = f"{urlsplit(remote.url).netloc}{path}/"
    if path and fault:
        text = f"Halt is below a path here ({place}), but its page requests styles and scripts at "
        report.fail(
            "path", f"{text}the root of the host, where they are missing ({fault}).", ROOT_ADVICE
        )
    elif path:
        text = f"Halt is below a path here ({place}), but its page uses the root of the host."
        report.warn("path", text, f"Use only {root.url}/. {ROOT_ADVICE}")
    elif fault:
        text = f"the page's styles and scripts do not arrive ({link[1]}: {fault})."
        report.fail("files", text, "Let the proxy forward every path of this host name to Halt.")

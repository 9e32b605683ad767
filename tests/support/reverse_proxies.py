"""Run the proxies of `deploy/` in front of a Halt by their recipes: nginx, Caddy, HAProxy, Apache.

Only addresses, ports and the paths of certificates are replaced. The parts that a recipe leaves to
the distribution (modules, temporary folders) are added.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.support.halt_server import ROOT
from tests.support.http_client import READ_TIMEOUT, Client
from tests.support.ports import free_port

NAME = "chat.example.org"
BINARIES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
APACHE_MODULES = Path("/usr/lib/apache2/modules")
#: Debian's default modules that the recipe needs, and the modules that it enables.
APACHE_LOADS = (
    "mpm_event authz_core alias env headers setenvif socache_shmcb ssl http2 proxy proxy_http"
)

host_numbers = itertools.count(2)


def binary(*names: str) -> str:
    """The path of a program; skip the test if no program of these names is installed."""
    for name in names:
        path = shutil.which(name, path=BINARIES)
        if path is not None:
            return path
    pytest.skip(f"{names[0]} is not installed (apt install {names[0]})")


@dataclass(frozen=True)
class Addresses:
    """The addresses and paths that replace those of a recipe."""

    folder: Path
    port: int
    http_port: int
    halt: str  # HOST:PORT

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"


def replace_all(text: str, *pairs: tuple[str, object]) -> str:
    """The text with these strings replaced; every string must occur."""
    for recipe_text, test_text in pairs:
        assert recipe_text in text, f"the recipe has no {recipe_text!r}"
        text = text.replace(recipe_text, str(test_text))
    return text


def nginx_around(folder: Path, servers: str) -> str:
    """A complete nginx configuration that uses its folder alone."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.getuid() == 0 else ""  # its workers write to the test's own folder
    return (
        f"{user}daemon off; pid {folder}/pid; error_log stderr crit; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{servers}\n}}"
    )


def nginx(recipe: str, addresses: Addresses) -> list[str]:
    servers = replace_all(
        recipe,
        ("listen 80", f"listen 127.0.0.1:{addresses.http_port}"),
        ("listen 443", f"listen 127.0.0.1:{addresses.port}"),
        ("127.0.0.1:8000", addresses.halt),
        (f"/etc/ssl/{NAME}.pem", addresses.certificate),
        (f"/etc/ssl/{NAME}.key", addresses.key),
    )
    conf = addresses.folder / "nginx.conf"
    conf.write_text(nginx_around(addresses.folder, servers))
    return [binary("nginx"), "-p", str(addresses.folder), "-c", str(conf), "-e", "stderr"]


def caddy(recipe: str, addresses: Addresses) -> list[str]:
    site = replace_all(
        recipe,
        ("127.0.0.1:8000", addresses.halt),
        (
            f"# tls /etc/ssl/{NAME}.pem /etc/ssl/{NAME}.key",
            f"tls {addresses.certificate} {addresses.key}",
        ),
    )
    conf = addresses.folder / "Caddyfile"
    conf.write_text(
        f"{{\nadmin off\nhttp_port {addresses.http_port}\n"
        f"https_port {addresses.port}\ndefault_bind 127.0.0.1\n}}\n{site}"
    )
    return [binary("caddy"), "run", "--config", str(conf), "--adapter", "caddyfile"]


def haproxy(recipe: str, addresses: Addresses) -> list[str]:
    certificate_and_key = addresses.folder / "both.pem"
    certificate_and_key.write_text(addresses.certificate.read_text() + addresses.key.read_text())
    conf = addresses.folder / "haproxy.cfg"
    conf.write_text(
        replace_all(
            recipe,
            ("bind :80", f"bind 127.0.0.1:{addresses.http_port}"),
            ("bind :443", f"bind 127.0.0.1:{addresses.port}"),
            ("127.0.0.1:8000", addresses.halt),
            (f"/etc/haproxy/{NAME}.pem", certificate_and_key),
        )
    )
    return [binary("haproxy"), "-db", "-f", str(conf)]


def apache(recipe: str, addresses: Addresses) -> list[str]:
    program = binary("apache2")
    modules = "".join(
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n"
        for name in APACHE_LOADS.split()
    )
    site = replace_all(
        recipe,
        ("*:80", f"127.0.0.1:{addresses.http_port}"),
        ("*:443", f"127.0.0.1:{addresses.port}"),
        ("127.0.0.1:8000", addresses.halt),
        (f"/etc/ssl/{NAME}.pem", addresses.certificate),
        (f"/etc/ssl/{NAME}.key", addresses.key),
    )
    conf = addresses.folder / "apache.conf"
    user = "User www-data\nGroup www-data\n" if os.getuid() == 0 else ""
    conf.write_text(
        f"{modules}{user}ServerRoot {addresses.folder}\nDefaultRuntimeDir {addresses.folder}\n"
        f"ServerName {NAME}\nPidFile {addresses.folder}/pid\nErrorLog /dev/stderr\nLogLevel crit\n"
        f"Listen 127.0.0.1:{addresses.http_port}\nListen 127.0.0.1:{addresses.port}\n{site}"
    )
    return [program, "-f", str(conf), "-D", "FOREGROUND"]


Command = Callable[[str, Addresses], list[str]]
#: Proxy -> its recipe in `deploy/`, and the function that makes its command.
RECIPES: dict[str, tuple[str, Command]] = {
    "nginx": ("nginx.conf", nginx),
    "caddy": ("Caddyfile", caddy),
    "haproxy": ("haproxy.cfg", haproxy),
    "apache": ("apache.conf", apache),
}


def _carry_bytes(plain: socket.socket, secure: ssl.SSLSocket) -> None:
    """Carry bytes in both directions, until either side ends."""
    poller = select.poll()
    poller.register(plain, select.POLLIN)
    poller.register(secure, select.POLLIN)
    with contextlib.suppress(OSError), plain, secure:
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == plain.fileno():
                    if not (data := plain.recv(65_536)):
                        return
                    secure.settimeout(READ_TIMEOUT)
                    secure.sendall(data)
                    continue
                secure.settimeout(0)  # what has come may be TLS's own, with no data behind it
                with contextlib.suppress(ssl.SSLWantReadError):
                    while data := secure.recv(65_536):
                        plain.sendall(data)
                    return


class ProxyClient(Client):
    """A user agent that knows Halt by its public name, with an address of its own."""

    def __init__(self, proxy: Proxy, **headers: str) -> None:
        super().__init__(NAME, proxy.port, **headers)
        self._proxy = proxy
        self.source = f"127.0.1.{next(host_numbers)}"

    def secure_socket(self) -> ssl.SSLSocket:
        """A connection through TLS."""
        raw = socket.create_connection(
            ("127.0.0.1", self._proxy.port), READ_TIMEOUT, (self.source, 0)
        )
        return self._proxy.context.wrap_socket(raw, server_hostname=NAME)

    @contextlib.contextmanager
    def plain_socket(self) -> Iterator[socket.socket]:
        """A socket for a client that reads and writes in two threads, which TLS does not allow."""
        client_end, pump_end = socket.socketpair()
        secure = self.secure_socket()
        pump = threading.Thread(target=_carry_bytes, args=(pump_end, secure), daemon=True)
        pump.start()
        with client_end, pump_end, secure:
            yield client_end
            client_end.close()
            pump.join(READ_TIMEOUT)

    def connect(self, receive_buffer: int | None = None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*self.address, timeout=READ_TIMEOUT)
        connection.sock = self.secure_socket()
        return connection


class Proxy:
    """A running proxy."""

    def __init__(
        self, kind: str, addresses: Addresses, context: ssl.SSLContext, authority: Path
    ) -> None:
        self.kind = kind
        self.host, self.port, self.http_port = NAME, addresses.port, addresses.http_port
        self.context = context
        self.authority = authority  # the certificate to trust

    def client(self, **headers: str) -> ProxyClient:
        """A new client of the proxy."""
        return ProxyClient(self, **headers)


@contextlib.contextmanager
def started_program(command: list[str], folder: Path, *ports: int) -> Iterator[None]:
    """Run the program; the block begins when it listens on these ports."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)},
    )
    output_lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=output_lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        for port in ports:
            _wait_listening(port, process, output_lines)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)
        process.stderr.close()


def _wait_listening(port: int, process: subprocess.Popen[str], output_lines: list[str]) -> None:
    pause = threading.Event()
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            pause.wait(0.025)
    pytest.fail(f"{process.args!r} does not listen: {''.join(output_lines)}")


@contextlib.contextmanager
def proxied(
    kind: str, halt: str, folder: Path, names: tuple[str, ...] = (NAME,)
) -> Iterator[Proxy]:
    """Run this proxy by its recipe in front of the Halt at HOST:PORT."""
    addresses = Addresses(folder, free_port(), free_port(), halt)
    authority = trustme.CA()
    certificate = authority.issue_cert(*names)
    certificate.private_key_pem.write_to_path(addresses.key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(addresses.certificate, append=True)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    recipe, command = RECIPES[kind]
    program = command((ROOT / "deploy" / recipe).read_text(), addresses)
    with started_program(program, folder, addresses.port, addresses.http_port):
        yield Proxy(kind, addresses, context, folder / "authority.pem")


@contextlib.contextmanager
def nginx_below_path(folder: Path, halt_url: str) -> Iterator[str]:
    """Run an nginx that maps /halt/ to a Halt, and /kept/ with its path; yield its address."""
    port = free_port()
    settings = (
        "proxy_http_version 1.1; proxy_buffering off; client_max_body_size 0; "
        "proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; "
        "proxy_set_header Connection upgrade;"
    )
    conf = folder / "nginx.conf"
    conf.write_text(
        nginx_around(
            folder,
            f"server {{ listen 127.0.0.1:{port}; "
            f"location /halt/ {{ proxy_pass {halt_url}/; {settings} }} "
            f"location /kept/ {{ proxy_pass {halt_url}; {settings} }} "
            "location / { return 404; } }",
        )
    )
    command = [binary("nginx"), "-p", str(folder), "-c", str(conf), "-e", "stderr"]
    with started_program(command, folder, port):
        yield f"http://127.0.0.1:{port}"

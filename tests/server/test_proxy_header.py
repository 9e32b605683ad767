"""A proxy's header names the person: on every device, and from nowhere but the proxy."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, StartHalt, refused_start, settings
from tests.support.http_client import READ_TIMEOUT, Client
from tests.support.people import make_api_token, make_person, store_at
from tests.support.ports import free_port
from tests.support.raw_http import RawAnswer, receive, request
from tests.support.reverse_proxies import binary, nginx_around, started_program
from tests.support.websocket_client import WebSocket

FORM = "application/x-www-form-urlencoded"
PROXY, ELSEWHERE = "127.0.3.1", "127.0.4.1"  # the addresses from which clients connect
MODEL = "count?n=100000&gap_ms=20"  # answers for longer than a test takes
#: Headers by which a client pretends to be the proxy.
FORGED = {"X-Forwarded-For": PROXY, "X-Real-Ip": PROXY, "Forwarded": f"for={PROXY}"}


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose proxy connects from PROXY; it believes X-Forwarded-For too."""
    env = settings(
        shared_fake,
        HALT_USER_HEADER="Remote-User",
        HALT_USER_NAME_HEADER="Remote-Name",
        HALT_PROXY_ADDRESSES=PROXY,
        HALT_TRUSTED_PROXIES=1,
        HALT_HOSTS="chat.example.org",
        HALT_CORS_ORIGINS="https://other.example",
    )
    server = HaltServer(env)
    yield server
    server.close()


class ClientFrom(Client):
    """A client that connects from this address."""

    def __init__(self, server: HaltServer, source: str, **headers: str) -> None:
        super().__init__(server.host, server.port, **headers)
        self._source = source

    def connect(self, receive_buffer: int | None = None) -> http.client.HTTPConnection:
        connection = super().connect(receive_buffer)
        assert connection.sock is not None
        connection.sock.close()
        connection.sock = connected(self.address, self._source)
        return connection


def connected(address: tuple[str, int], source: str) -> socket.socket:
    """A connection from this address."""
    return socket.create_connection(address, READ_TIMEOUT, (source, 0))


def through_proxy(server: HaltServer, user: str, **headers: str) -> Client:
    """A client whom the proxy names so."""
    return ClientFrom(server, PROXY, **{"Remote-User": user, **headers})


def raw(server: HaltServer, *lines: str, source: str = PROXY) -> RawAnswer:
    """The response to a request for the running streams with these header lines."""
    more = "".join(f"{line}\r\n" for line in lines)
    with closing(connected((server.host, server.port), source)) as sock:
        sock.sendall(request("GET", "/streams", more=more))
        return receive(sock)


def send_message(browser: Client, conversation_id: str) -> None:
    """Send a message in a new conversation, as the page does."""
    path = f"/c/{conversation_id}/messages"
    assert browser.post(path, b"prompt=Hello&model=count?n=1", Content_Type=FORM).status == 200


def test_person_has_the_same_conversations_on_every_device(halt: HaltServer) -> None:
    """Two browsers without a common cookie share the list of one value, and no other value sees it.

    The host name in HALT_HOSTS may be used, and no other.
    """
    first = through_proxy(halt, "alice")
    send_message(first, "of-alice-1")
    second = through_proxy(halt, "alice", Host="chat.example.org")
    assert b"/c/of-alice-1" in second.get("/").body
    other = through_proxy(halt, "bob")
    assert b"/c/of-alice-1" not in other.get("/").body
    assert other.get("/c/of-alice-1").status == 404
    foreign = through_proxy(halt, "alice", Host="rebound.example").get("/")
    assert foreign.status == 403
    assert b"HALT_TOKEN" not in foreign.body


def test_header_from_elsewhere_is_nobodys(halt: HaltServer) -> None:
    """A forged header, with forged addresses too, gets a 401 page with the reason on every route.

    The log tells of it, not once for each request.
    """
    forger = ClientFrom(halt, ELSEWHERE, **{"Remote-User": "alice", **FORGED})
    for _ in range(3):
        page = forger.get("/", Accept="text/html")
        assert page.status == 401
        assert b"HALT_PROXY_ADDRESSES" in page.body
        assert b"Not signed in" in page.body
    for method, path in (("GET", "/streams"), ("POST", "/stop/none-such-1"), ("GET", "/ws")):
        refused = forger.request(method, path)
        assert refused.status == 401
        assert refused.error["code"] == "unauthorized"
        assert refused.headers["www-authenticate"] == "Bearer"
    assert forger.get("/login", Accept="text/html").status == 401
    halt.wait_printed(f"{ELSEWHERE}.*was ignored|was ignored.*{ELSEWHERE}")
    lines = [line for line in halt.printed.splitlines() if "was ignored" in line]
    assert len(lines) < 7  # requests; a second line comes after a minute
    assert "alice" not in "".join(lines)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Remote-User: alice"], 200),
        (["REMOTE-USER:   alice  "], 200),
        (["Remote-User: alice", "Remote-User: root"], 400),
        (["Remote-User: alice,root"], 400),
        (["Remote-User:"], 400),
        (["Remote-User: " + "a" * 201], 400),
        ([], 401),
        (["Remote_User: root"], 401),
        (["Remote User: root"], 400),
    ],
)
def test_one_plain_value_is_needed(halt: HaltServer, lines: list[str], status: int) -> None:
    """Two values, an empty one, and a long or malformed one are refused with the reason.

    A header with an underscore in place of the hyphen counts as none.
    """
    assert raw(halt, *lines).status == status


def test_underscore_does_not_replace_the_proxys_value(halt: HaltServer) -> None:
    """A client's Remote_User, which the proxy passes on, changes nothing beside the proxy's own."""
    with through_proxy(halt, "carol").chat(MODEL, id="stream-of-carol") as stream:
        stream.until_text("1")
        answer = raw(halt, "Remote-User: carol", "Remote_User: root", "HTTP_REMOTE_USER: root")
        assert b"stream-of-carol" in answer.body
        assert b"stream-of-carol" not in raw(halt, "Remote-User: root").body


def test_api_token_works_from_any_peer(halt: HaltServer) -> None:
    """An API token is its person's from anywhere, also beside a header of another person.

    A revoked or unknown token is refused even where the proxy names a person. A page of another
    origin is known by a token alone.
    """
    store = store_at(halt.data_folder)
    person = make_person(store, "header", "dave")
    token = make_api_token(store, person)
    send_message(through_proxy(halt, "dave"), "of-dave-1")
    store.database.close()
    bearer = {"Authorization": f"Bearer {token}"}
    for client in (
        ClientFrom(halt, ELSEWHERE, **bearer),
        ClientFrom(halt, ELSEWHERE, **bearer, **{"Remote-User": "eve"}),
        through_proxy(halt, "eve", **bearer),
    ):
        assert b"/c/of-dave-1" in client.get("/").body
    unknown = through_proxy(halt, "dave", Authorization="Bearer halt_unknown").get("/streams")
    assert unknown.status == 401
    assert "revoked" in unknown.error["message"]
    origin = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    assert through_proxy(halt, "dave", **origin).get("/streams").status == 401
    assert through_proxy(halt, "dave", **origin, **bearer).get("/streams").status == 200


def test_connection_over_a_unix_socket_is_the_proxys(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """With `unix` in HALT_PROXY_ADDRESSES the header counts over a Unix socket, and not over TCP."""
    path = tmp_path / "halt.sock"
    server = HaltServer(
        settings(shared_fake, HALT_USER_HEADER="Remote-User", HALT_PROXY_ADDRESSES="unix"),
        "--bind=127.0.0.1:0",
        f"--bind=unix:{path}",
    )
    try:
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(READ_TIMEOUT)
            sock.connect(str(path))
            sock.sendall(request("GET", "/streams", more="Remote-User: alice\r\n"))
            assert receive(sock).status == 200
        assert server.client(**{"Remote-User": "alice"}).get("/streams").status == 401
    finally:
        server.close()


@pytest.mark.slow
def test_nginx_names_the_person(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """Behind a real nginx that asks for a password, a client is who nginx says, whatever it sends.

    Streams and WebSockets belong to that person.
    """
    port, halt_port = free_port(), free_port()
    (tmp_path / "users").write_text("alice:{PLAIN}secret-of-alice\nbob:{PLAIN}secret-of-bob\n")
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        nginx_around(
            tmp_path,
            f"server {{ listen 127.0.0.1:{port}; auth_basic halt; "
            f"auth_basic_user_file {tmp_path}/users; underscores_in_headers on; "
            f"location / {{ proxy_pass http://127.0.0.1:{halt_port}; proxy_http_version 1.1; "
            "proxy_buffering off; proxy_set_header Host $http_host; "
            "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; "
            "proxy_set_header Authorization ''; proxy_set_header Remote-User $remote_user; } }",
        )
    )
    env = settings(shared_fake, HALT_USER_HEADER="Remote-User", HALT_PROXY_ADDRESSES="127.0.0.1")
    server = HaltServer({**env, "PORT": str(halt_port)})
    command = [binary("nginx"), "-p", str(tmp_path), "-c", str(conf), "-e", "stderr"]
    try:
        with started_program(command, tmp_path, port):
            address = ServerAt("127.0.0.1", port)
            alice, bob = (
                {"Authorization": basic(name), "Remote-User": "bob", "Remote_User": "bob"}
                for name in ("alice", "bob")
            )
            with WebSocket(address, Authorization=basic("alice"), Remote_User="bob") as ws:
                stream_id = ws.start(MODEL)
                running = Client(address.host, address.port, **alice).get("/streams")
                assert [stream["id"] for stream in running.json["streams"]] == [stream_id]
                assert (
                    Client(address.host, address.port, **bob).get("/streams").json["streams"] == []
                )
                assert (
                    Client(address.host, address.port, **bob).get(f"/streams/{stream_id}").status
                    == 404
                )
                receipt = Client(address.host, address.port, **alice).stop(stream_id).json
                assert receipt["status"] == "stopped"
            assert (
                Client(address.host, address.port, **{"Remote-User": "alice"})
                .get("/streams")
                .status
                == 401
            )
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (
            "--header-map=dangerous",
            "--header-map=dangerous and --forwarder-headers are not allowed",
        ),
        (
            "--forwarder-headers=REMOTE_USER",
            "--header-map=dangerous and --forwarder-headers are not",
        ),
        ("--proxy-protocol=auto", "--proxy-protocol is not allowed with HALT_USER_HEADER"),
    ],
)
def test_option_that_lets_clients_forge_the_header_is_refused(option: str, reason: str) -> None:
    """Options of gunicorn that let another header or address through are refused at the start."""
    status, output = refused_start(
        option, HALT_USER_HEADER="Remote-User", HALT_PROXY_ADDRESSES="127.0.0.1"
    )
    assert status == 1
    assert output.startswith(f"halt: {reason}")
    assert output.count("\n") == 1


class ServerAt(NamedTuple):
    """The address of a server."""

    host: str
    port: int


def basic(name: str) -> str:
    """The value of an Authorization header with the name's password."""
    return f"Basic {base64.b64encode(f'{name}:secret-of-{name}'.encode()).decode()}"

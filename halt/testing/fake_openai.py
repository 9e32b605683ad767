"""A fake OpenAI-compatible upstream that can do whatever a real one does, and does wrong.

    GET  /v1/models              the scenarios as models, "echo" first
    POST /v1/chat/completions    streamed or whole; `model` is `NAME` or `NAME?key=value&...`
    POST /v1/messages            the same in Anthropic's words, always streamed
    POST /openai/deployments/NAME/chat/completions?api-version=...    the same as Azure does it
    GET  /slots, GET /metrics    what it works on, where a test has set `work`
    GET  /_log                   what was recorded, as a JSON list (of /v1 alone)
    POST /_release               lets every silent answer go on
    POST /_clear                 forgets what was recorded

A last user message that begins with `/fake NAME?key=value` overrides the model.
In a test: `with FakeOpenAI() as fake: ... fake.wait_request() ...`.
By hand: `python -m halt.testing.fake_openai`. Scenarios: `halt/testing/scenarios.py`.
HTTP/1.1 with keep-alive, one thread for each connection, no pipelining, request bodies with
Content-Length only.
"""

import argparse
import contextlib
import inspect
import json
import re
import select
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from halt.testing.dialects import AzureReply, MessagesReply, listed
from halt.testing.scenarios import SCENARIOS, choose, play
from halt.testing.wire import Gone, Pace, Peer, Record, Reply, ServerClosing, as_json
from halt.testing.work import WorkReply

__all__ = ["FakeOpenAI", "Record", "scenarios"]

BACKLOG = 1024  # connections that wait to be accepted
JOIN_TIMEOUT = 10.0  # seconds for a thread to end after its connection was interrupted
AZURE = re.compile(r"/openai/deployments/([^/]+)/chat/completions")
FILL_TIMEOUT = 100  # milliseconds after which a local connection is not going to be completed


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    keep_alive: bool
    query: str


class FakeOpenAI:
    """The server. `texts` feeds the scenario "text"; `requests` is all that was asked of /v1.

    An unknown model answers 404, or plays the scenario `unknown_model` when one is given.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: bool = False,
        unknown_model: str | None = None,
        owner: str = "fake",
        places: int | None = None,
    ) -> None:
        """`places`: so many completions are written at a time; further ones wait unanswered."""
        self.host = host
        self.port = port  # 0 until start() has found one
        self.scheme = "https" if tls else "http"
        self.ca_pem_path = ""  # the certificate authority to trust, while the server runs on TLS
        self.texts: dict[str, str] = {}
        self.work: dict[str, WorkReply] = {}  # what /slots and /metrics answer, by path
        self.works_on = 0.0  # seconds that a model writes on after its client has gone
        self.others = 0  # requests of other clients that are in work all the time
        self._unknown_model = unknown_model
        self.owner = owner  # as the list of models has it: "llamacpp", "vllm"
        self._tls: ssl.SSLContext | None = None
        self._bell, self._rope = socket.socketpair()
        self._places = threading.Semaphore(places or 1_000_000)
        self._accepting: threading.Thread | None = None
        self._accepted = 0  # used by the accepting thread alone
        # Guards everything below, and tells of new requests.
        self._changed = threading.Condition()
        self._requests: list[Record] = []
        self._failures: Counter[str] = Counter()
        self._peers: dict[Peer, threading.Thread] = {}
        self._answered = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/v1"

    @property
    def origin(self) -> str:
        """The address without a path, as Azure's and Anthropic's clients want it."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Record]:
        """A copy of the records, in the order in which the requests were read."""
        with self._changed:
            return list(self._requests)

    @property
    def in_work(self) -> int:
        """Completions that the model writes at, those that it writes for a client that has gone."""
        since = time.monotonic() - self.works_on
        running = [
            record
            for record in self.requests
            if record.scenario
            and (
                not record.ended.is_set()
                or (record.closed_at is not None and record.closed_at > since)
            )
        ]
        return len(running) + self.others

    @property
    def open_connections(self) -> int:
        with self._changed:
            return len(self._peers)

    def start(self) -> Self:
        listener = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self.port = listener.getsockname()[1]
        if self.scheme == "https":
            self._tls, self.ca_pem_path = _certify(self.host)
        self._accepting = _thread("fake-accept", self._accept, listener)
        self._accepting.start()
        return self

    def close(self) -> None:
        """End every connection, whatever it is doing, and wait for all threads. May be repeated."""
        with contextlib.suppress(OSError):
            self._rope.send(b"!")
        _join(self._accepting)
        with self._changed:
            peers = dict(self._peers)
        for peer in peers:
            peer.interrupt()
        for thread in peers.values():
            _join(thread)
        self._bell.close()
        self._rope.close()
        if self.ca_pem_path:
            Path(self.ca_pem_path).unlink(missing_ok=True)

    def wait_request(
        self, which: int | Callable[[Record], bool] = 0, timeout: float = 20.0, nth: int = 0
    ) -> Record:
        """The record at this index, or the nth that fits; TimeoutError if it does not come."""

        def found() -> Record | None:
            if isinstance(which, int):
                return self._requests[which] if which < len(self._requests) else None
            return next(islice(filter(which, self._requests), nth, None), None)

        with self._changed:
            record = self._changed.wait_for(found, timeout)
            if record is None:
                raise TimeoutError(f"no such request within {timeout} s, but {self._requests}")
            return record

    def release(self) -> int:
        """Let every answer that is or will be silent go on; how many are being given now."""
        open_records = [record for record in self.requests if not record.ended.is_set()]
        for record in open_records:
            record.release()
        return len(open_records)

    def clear(self) -> None:
        """Forget the records and the failures that `flaky` has counted."""
        with self._changed:
            self._requests.clear()
            self._failures.clear()

    @staticmethod
    @contextlib.contextmanager
    def unaccepting(host: str = "127.0.0.1") -> Iterator[str]:
        """A base URL where connecting hangs: its backlog is full and nobody accepts."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind((host, 0))
            listener.listen(0)
            connected = True
            while connected:
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
                poller = select.poll()
                poller.register(filler, select.POLLOUT)
                connected = bool(poller.poll(FILL_TIMEOUT))
            yield f"http://{host}:{listener.getsockname()[1]}/v1"

    def _accept(self, listener: socket.socket) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        with listener:
            while self._bell.fileno() not in dict(poller.poll()):
                sock, _ = listener.accept()
                self._accepted += 1
                peer = Peer(sock, self._accepted)
                thread = _thread(f"fake-{peer.number}", self._serve, peer)
                with self._changed:
                    self._peers[peer] = thread
                thread.start()

    def _serve(self, peer: Peer) -> None:
        """A connection's life: requests, one after the other, until either side has enough."""
        try:
            if self._tls is not None:
                peer.secure(self._tls)
            while (request := _read_request(peer)) and self._answer(peer, request):
                pass
        except Gone:
            pass
        finally:
            peer.close()
            with self._changed:
                del self._peers[peer]

    def _answer(self, peer: Peer, request: Request) -> bool:
        """Answer a request; may the connection be used again?"""
        record = Record(
            connection=peer.number,
            method=request.method,
            path=request.path,
            headers=request.headers,
            query=request.query,
            body=_parsed(request.content),
            received_at=time.monotonic(),
            wake=peer.wake,
        )
        dialect = _dialect(request) if request.method == "POST" else None
        if dialect is not None:
            self._choose(record)
        with self._changed:
            self._answered += 1
            reply = (dialect or Reply)(
                peer,
                record,
                serial=self._answered,
                keep_alive=request.keep_alive,
                texts=self.texts,
                failures=self._count_failure,
            )
            if not request.path.startswith("/_"):
                self._requests.append(record)
                self._changed.notify_all()
        try:
            if dialect is not None:
                with self._places:
                    self._complete(reply)
            else:
                self._serve_facts(reply)
            if reply.complete:
                record.finished.set()
        except ServerClosing:
            raise
        except Gone:
            record.closed_at = time.monotonic()
            record.closed.set()
            raise
        finally:
            record.ended.set()
        return reply.keep_alive

    def _choose(self, record: Record) -> None:
        if isinstance(record.body, dict):
            record.scenario, record.args = choose(record.body)
            if record.scenario not in SCENARIOS and self._unknown_model:
                record.scenario, record.args = self._unknown_model, {}

    def _complete(self, reply: Reply) -> None:
        name = reply.record.scenario
        missing = _missing(reply)
        if missing:
            reply.error(400, missing)
        elif not reply.request:
            reply.error(400, "We could not parse the JSON body of your request.")
        elif "model" not in reply.request:
            reply.error(400, "you must provide a model parameter")
        elif name not in SCENARIOS:
            message = f"The model `{name}` does not exist or you do not have access to it."
            reply.error(404, message, code="model_not_found")
        else:
            play(reply, name, reply.record.args)

    def _serve_facts(self, reply: Reply) -> None:
        """Everything that is no completion."""
        answer: object
        match reply.record.method, reply.record.path:
            case "GET", "/v1/models":
                fixed = {"object": "model", "created": 0, "owned_by": self.owner}
                if "anthropic-version" in reply.record.headers:
                    answer = listed(SCENARIOS)
                else:
                    data = [{"id": name} | fixed for name in SCENARIOS]
                    answer = {"object": "list", "data": data}
            case "GET", "/openai/models":
                answer = {"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]}
            case "GET", path if path in self.work:
                status, content_type, content = self.work[path](self.in_work)
                reply.whole(status, content, content_type)
                return
            case "GET", "/_log":
                answer = [record.as_json() for record in self.requests]
            case "POST", "/_release":
                answer = {"released": self.release()}
            case "POST", "/_clear":
                self.clear()
                answer = {"cleared": True}
            case method, path:
                reply.error(404, f"Invalid URL ({method} {path})")
                return
        reply.whole(200, as_json(answer))

    def _count_failure(self, key: str) -> int:
        with self._changed:
            self._failures[key] += 1
            return self._failures[key]


def _dialect(request: Request) -> type[Reply] | None:
    """In which tongue this completion is asked for; None: it is no completion."""
    if request.path == "/v1/chat/completions":
        return Reply
    if request.path == "/v1/messages":
        return MessagesReply
    return AzureReply if AZURE.fullmatch(request.path) else None


def _missing(reply: Reply) -> str:
    """What every request must have in this tongue, and this one lacks."""
    record = reply.record
    if isinstance(reply, AzureReply):
        named = AZURE.fullmatch(record.path)
        if named is None or unquote(named[1]) != reply.request.get("model"):
            return "The deployment in the path is another one than the model"
        if "api-version" not in record.query or "api-key" not in record.headers:
            return "api-version or api-key is missing"
    if isinstance(reply, MessagesReply):
        for name in ("authorization", "anthropic-version"):
            if name not in record.headers:
                return f"{name}: header is required"
        if "max_tokens" not in reply.request:
            return "max_tokens: Field required"
    return ""


def scenarios() -> dict[str, str]:
    """Name and description of everything that can be asked for, arguments included."""
    return {name: _described(function) for name, function in SCENARIOS.items()}


def _described(function: Callable[..., None]) -> str:
    purpose = (inspect.getdoc(function) or "").partition("\n")[0]
    parameters = list(inspect.signature(function).parameters.values())[1:]
    shown = [f"{p.name}={p.default}"[:24] for p in parameters]
    return f"{purpose} ({', '.join(shown)})" if shown else purpose


def _read_request(peer: Peer) -> Request | None:
    head = peer.read_until(b"\r\n\r\n")
    if head is None:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    if len(parts := first.split(" ")) != 3:
        return None
    method, target, version = parts
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    content = peer.read_exactly(int(headers.get("content-length", "0")))
    if content is None:
        return None
    wish = headers.get("connection", "").lower()
    keep_alive = wish != "close" if version == "HTTP/1.1" else wish == "keep-alive"
    path, _, query = target.partition("?")
    return Request(method, path, headers, content, keep_alive, query)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except ValueError:
        return content.decode(errors="replace")


def _certify(host: str) -> tuple[ssl.SSLContext, str]:
    """A server's TLS context, and the file with the authority that vouches for it."""
    import trustme  # noqa: PLC0415  only TLS needs it

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, "localhost", "127.0.0.1").configure_cert(context)
    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as file:
        file.write(authority.cert_pem.bytes())
    return context, file.name


def _thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    return threading.Thread(target=target, args=args, name=name, daemon=True)


def _join(thread: threading.Thread | None) -> None:
    if thread is not None:
        thread.join(JOIN_TIMEOUT)
        if thread.is_alive():
            raise RuntimeError(f"{thread.name} does not end")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m halt.testing.fake_openai", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100, help="0: any free port")
    parser.add_argument("--tls", action="store_true", help="with a certificate made for this run")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both leave through the `with`
    fake = FakeOpenAI(options.host, options.port, tls=options.tls, unknown_model="echo")
    with fake, FakeOpenAI.unaccepting() as unaccepting, contextlib.suppress(KeyboardInterrupt):
        trust = f"SSL_CERT_FILE={fake.ca_pem_path} " if options.tls else ""
        print(f"Fake upstream at {fake.base_url}, until Ctrl-C. Try Halt against it:\n")
        print(f"    {trust}OPENAI_BASE_URL={fake.base_url} OPENAI_API_KEY=fake make run\n")
        print(f"An address that never accepts a connection: {unaccepting}\n")
        print("Choose a scenario as the model, or in the chat: /fake count?n=40&gap_ms=50\n")
        for name, description in scenarios().items():
            print(f"    {name:<19}{description}")
        pace = ", ".join(f"{name}={value}" for name, value in vars(Pace()).items())
        print(f"\nEvery scenario takes also: {pace}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

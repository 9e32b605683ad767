"""A fake OpenAI-compatible upstream that behaves like real ones, including their faults.

    GET  /v1/models              the scenarios as models, "echo" first
    POST /v1/chat/completions    streamed or not; `model` is `NAME` or `NAME?key=value&...`
    POST /v1/messages            the same in Anthropic's format, always streamed
    POST /openai/deployments/NAME/chat/completions?api-version=...    the same in Azure's format
    GET  /slots, GET /metrics    its load, if a test has set `work`
    GET  /_log                   the recorded requests to /v1, as a JSON list
    POST /_release               ends the silence of all responses
    POST /_clear                 deletes the records

A last user message that begins with `/fake NAME?key=value` overrides the model.
In a test: `with FakeOpenAI() as fake: ... fake.wait_request() ...`.
By hand: `python -m halt.testing.fake_openai`. Scenarios: `halt/testing/scenarios.py`.
HTTP/1.1 with keep-alive, one thread per connection, no pipelining, request bodies only with
Content-Length.
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

from halt.testing.dialects import AzureReply, MessagesReply, model_list
from halt.testing.scenarios import LISTED, SCENARIOS, choose, play
from halt.testing.wire import ClientGone, Pace, Peer, Record, Reply, ServerClosing, as_json
from halt.testing.work import WorkReply

__all__ = ["FakeOpenAI", "Record", "scenarios"]

BACKLOG = 1024  # connections that wait to be accepted
JOIN_TIMEOUT = 10.0  # seconds for a thread to end after its connection was interrupted
AZURE = re.compile(r"/openai/deployments/([^/]+)/chat/completions")
FILL_TIMEOUT = 100  # milliseconds after which a local connection will not be accepted any more


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    keep_alive: bool
    query: str


class FakeOpenAI:
    """The server. `texts` holds the texts of the scenario "text"; `requests` the records.

    The response for an unknown model is 404, or the scenario `unknown_model` if it is given.
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
        """`places`: completions written at the same time; further ones wait without a response."""
        self.host = host
        self.port = port  # 0 before start()
        self.scheme = "https" if tls else "http"
        self.ca_pem_path = ""  # certificate authority for clients, while the server uses TLS
        self.texts: dict[str, str] = {}
        self.work: dict[str, WorkReply] = {}  # responses of /slots and /metrics, by path
        self.works_on = 0.0  # seconds for which the model continues after its client has gone
        self.others = 0  # requests of other clients, always in work
        self._unknown_model = unknown_model
        self.owner = owner  # `owned_by` in the model list: "llamacpp", "vllm"
        self._tls: ssl.SSLContext | None = None
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._places = threading.Semaphore(places or 1_000_000)
        self._accepting: threading.Thread | None = None
        self._accepted = 0  # used only by the accepting thread
        # Protects everything below; notified at each new request.
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
        """The URL without a path, for clients of Azure and Anthropic."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Record]:
        """A copy of the records, in the order in which the requests arrived."""
        with self._changed:
            return list(self._requests)

    @property
    def in_work(self) -> int:
        """Running completions, including those whose client has gone (see `works_on`)."""
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
            self._tls, self.ca_pem_path = _make_tls_context(self.host)
        self._accepting = _thread("fake-accept", self._accept, listener)
        self._accepting.start()
        return self

    def close(self) -> None:
        """End every connection in any state, and wait for all threads. May be repeated."""
        with contextlib.suppress(OSError):
            self._wake_sender.send(b"!")
        _join(self._accepting)
        with self._changed:
            peers = dict(self._peers)
        for peer in peers:
            peer.interrupt()
        for thread in peers.values():
            _join(thread)
        self._wake_receiver.close()
        self._wake_sender.close()
        if self.ca_pem_path:
            Path(self.ca_pem_path).unlink(missing_ok=True)

    def wait_request(
        self, which: int | Callable[[Record], bool] = 0, timeout: float = 20.0, nth: int = 0
    ) -> Record:
        """Wait for the record at this index, or the nth that matches. Raises TimeoutError."""

        def matching_record() -> Record | None:
            if isinstance(which, int):
                return self._requests[which] if which < len(self._requests) else None
            return next(islice(filter(which, self._requests), nth, None), None)

        with self._changed:
            record = self._changed.wait_for(matching_record, timeout)
            if record is None:
                raise TimeoutError(f"no such request within {timeout} s, but {self._requests}")
            return record

    def release(self) -> int:
        """End the silence of all running responses, also future silence; return their number."""
        open_records = [record for record in self.requests if not record.ended.is_set()]
        for record in open_records:
            record.release()
        return len(open_records)

    def clear(self) -> None:
        """Delete the records and the failures counted by `flaky`."""
        with self._changed:
            self._requests.clear()
            self._failures.clear()

    @staticmethod
    @contextlib.contextmanager
    def unaccepting(host: str = "127.0.0.1") -> Iterator[str]:
        """A base URL where connecting hangs: the backlog is full and nothing accepts."""
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
        poller.register(self._wake_receiver, select.POLLIN)
        with listener:
            while self._wake_receiver.fileno() not in dict(poller.poll()):
                sock, _ = listener.accept()
                self._accepted += 1
                peer = Peer(sock, self._accepted)
                thread = _thread(f"fake-{peer.number}", self._serve, peer)
                with self._changed:
                    self._peers[peer] = thread
                thread.start()

    def _serve(self, peer: Peer) -> None:
        """Body of a connection's thread: serve requests until either side ends the connection."""
        try:
            if self._tls is not None:
                peer.secure(self._tls)
            while (request := _read_request(peer)) and self._answer(peer, request):
                pass
        except ClientGone:
            pass
        finally:
            peer.close()
            with self._changed:
                del self._peers[peer]

    def _answer(self, peer: Peer, request: Request) -> bool:
        """Respond to a request; True if the connection can be used again."""
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
        dialect = _dialect_of(request) if request.method == "POST" else None
        if dialect is not None:
            self._set_scenario(record)
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
                    self._send_completion(reply)
            else:
                self._send_other(reply)
            if reply.complete:
                record.finished.set()
        except ServerClosing:
            raise
        except ClientGone:
            record.closed_at = time.monotonic()
            record.closed.set()
            raise
        finally:
            record.ended.set()
        return reply.keep_alive

    def _set_scenario(self, record: Record) -> None:
        if isinstance(record.body, dict):
            record.scenario, record.args = choose(record.body)
            if record.scenario not in SCENARIOS and self._unknown_model:
                record.scenario, record.args = self._unknown_model, {}

    def _send_completion(self, reply: Reply) -> None:
        name = reply.record.scenario
        missing = _missing_part(reply)
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

    def _send_other(self, reply: Reply) -> None:
        """Respond to a request that is no completion."""
        answer: object
        match reply.record.method, reply.record.path:
            case "GET", "/v1/models":
                fixed = {"object": "model", "created": 0, "owned_by": self.owner}
                if "anthropic-version" in reply.record.headers:
                    answer = model_list(SCENARIOS)
                else:
                    data = [{"id": name} | fixed | LISTED.get(name, {}) for name in SCENARIOS]
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


def _dialect_of(request: Request) -> type[Reply] | None:
    """The reply class for a completion request; None: it is no completion."""
    if request.path == "/v1/chat/completions":
        return Reply
    if request.path == "/v1/messages":
        return MessagesReply
    return AzureReply if AZURE.fullmatch(request.path) else None


def _missing_part(reply: Reply) -> str:
    """An error message if the request lacks something required in this dialect, else ""."""
    record = reply.record
    if isinstance(reply, AzureReply):
        deployment = AZURE.fullmatch(record.path)
        if deployment is None or unquote(deployment[1]) != reply.request.get("model"):
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
    """Names and descriptions of all scenarios, with their arguments."""
    return {name: _description(function) for name, function in SCENARIOS.items()}


def _description(function: Callable[..., None]) -> str:
    purpose = (inspect.getdoc(function) or "").partition("\n")[0]
    parameters = list(inspect.signature(function).parameters.values())[1:]
    arguments = [f"{p.name}={p.default}" for p in parameters]
    return f"{purpose} ({', '.join(arguments)})" if arguments else purpose


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
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    path, _, query = target.partition("?")
    return Request(method, path, headers, content, keep_alive, query)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content) if content else None
    except ValueError:
        return content.decode(errors="replace")


def _make_tls_context(host: str) -> tuple[ssl.SSLContext, str]:
    """A TLS context for the server, and the path of its certificate authority."""
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
    parser.add_argument(
        "--tls", action="store_true", help="use TLS, with a certificate made for this run"
    )
    options = parser.parse_args(argv)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # both signals leave through the `with`
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
        print(f"\nAll scenarios also take: {pace}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

"""POST /stop in every phase of a run, judged by the close that the model's server sees."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.support.answer_phases import ANSWER_PHASES
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, StartHalt, new_id, request_record
from tests.support.http_client import Client, EventStream
from tests.support.waiting import SERVER_TIMEOUT, wait_until

REUSE_ATTEMPTS = 20  # to get a connection that is back in the pool
FORM = "application/x-www-form-urlencoded"


class Provider:
    """A fake provider with a Halt in front of it."""

    def __init__(self, fake: FakeOpenAI, halt: HaltServer) -> None:
        self.fake = fake
        self.client = halt.client()

    def start(self, model: str, text: str) -> tuple[EventStream, str]:
        """Start a stream and wait until it is in its phase, as both ends see it."""
        prompt = new_id()
        events = self.client.chat(model, prompt).until_text(text)
        request_record(self.fake, prompt)
        return events, prompt


@pytest.fixture(scope="module")
def tls_provider() -> Iterator[Provider]:
    """A provider over TLS, whose certificate Halt trusts by SSL_CERT_FILE."""
    with FakeOpenAI(tls=True, unknown_model="echo") as fake:
        server = HaltServer(
            {
                "OPENAI_BASE_URL": fake.base_url,
                "OPENAI_API_KEY": "fake",
                "SSL_CERT_FILE": fake.ca_pem_path,
            }
        )
        yield Provider(fake, server)
        server.close()


@pytest.fixture(params=["http", "tls"])
def provider(request: pytest.FixtureRequest, halt: HaltServer, shared_fake: FakeOpenAI) -> Provider:
    """A provider over HTTP, and one over TLS."""
    if request.param == "http":
        return Provider(shared_fake, halt)
    fixture = request.getfixturevalue("tls_provider")
    assert isinstance(fixture, Provider)
    return fixture


def check_stop(provider: Provider, phase: str) -> Record:
    """Stop a stream in a phase; check receipt, end and close; return the provider's record."""
    model, text = ANSWER_PHASES[phase]
    events, prompt = provider.start(model, text)
    record = request_record(provider.fake, prompt)
    receipt = provider.client.stop(events.id)
    events.to_end()
    assert receipt.status == 200
    assert receipt.json["id"] == events.id
    assert (receipt.json["status"], receipt.json["upstream"]) == ("stopped", "closed")
    assert receipt.json["elapsed_ms"] >= 0
    assert record.closed.wait(RECORD_TIMEOUT), "the provider goes on"
    cancelled = events.terminal
    assert (cancelled["type"], cancelled["reason"]) == ("cancelled", "stop")
    assert cancelled["content"] == ""
    assert text in events.text
    assert "".join(f"{n} " for n in range(len(events.text))).startswith(events.text)
    return record


@pytest.mark.parametrize("phase", ANSWER_PHASES)
def test_stop_in_each_phase_closes_stream_and_upstream(provider: Provider, phase: str) -> None:
    """In each phase the receipt says stopped and closed, the reader gets the end, and the upstream
    sees the close.
    """
    check_stop(provider, phase)


@pytest.mark.parametrize("phase", ANSWER_PHASES)
def test_stop_on_a_reused_connection_closes_the_upstream(provider: Provider, phase: str) -> None:
    """A Stop works as well on an upstream connection that has carried another answer."""
    for _ in range(REUSE_ATTEMPTS):
        first, prompt = provider.start("count?n=1", "0 ")
        first.to_end()
        earlier_connection = request_record(provider.fake, prompt).connection
        if check_stop(provider, phase).connection == earlier_connection:
            return  # else the answer's end was sent before its connection was back in the pool
    pytest.fail(f"no connection was reused in {REUSE_ATTEMPTS} tries")


def test_stop_while_connecting_ends_the_stream(start_halt: StartHalt) -> None:
    """A Stop works while the provider does not accept the connection."""
    with FakeOpenAI.unaccepting() as address:
        client = start_halt(address, HALT_CONNECT_TIMEOUT=60).client()
        events = client.chat("echo").until_comment(1)
        receipt = client.stop(events.id)
        assert receipt.json["status"] == "stopped"
        assert receipt.json["upstream"] == "none"
        assert events.to_end().terminal["type"] == "cancelled"
        wait_until(lambda: client.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)


def has_request(fake: FakeOpenAI, prompt: str, nth: int, timeout: float) -> bool:
    """Whether the nth request with this prompt arrives within `timeout` seconds."""
    try:
        request_record(fake, prompt, nth, timeout)
    except TimeoutError:
        return False
    return True


def test_stop_during_back_off_sends_no_further_request(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """After a Stop during the wait for a retry no further request reaches the provider."""
    client = halt.client()
    prompt = new_id()
    events = client.chat("429?retry_after=5", prompt).until_comment(1)
    halt.wait_printed(f"stream {events.id}: .*, trying again in")
    receipt = client.stop(events.id)
    assert (receipt.json["status"], receipt.json["upstream"]) == ("stopped", "none")
    assert events.to_end().terminal["type"] == "cancelled"
    # On a slow machine retries may have come before the Stop. None comes after its receipt.
    count = 0
    while has_request(shared_fake, prompt, count, timeout=0):
        count += 1
    assert count >= 1
    assert not has_request(shared_fake, prompt, count, timeout=5.5)  # longer than the cut wait


def test_stop_takes_the_id_from_form_json_or_path(halt: HaltServer) -> None:
    """`POST /stop` takes the ID from a form or JSON, `POST /stop/ID` from its path."""
    client = halt.client()
    form = "application/x-www-form-urlencoded"
    with ExitStack() as stack:
        streams = [stack.enter_context(client.chat("stall?n=1")) for _ in range(3)]
        for stream in streams:
            stream.until_text("0 ")
        first_id, second_id, third_id = (stream.id for stream in streams)
        receipts = [
            client.post(f"/stop/{first_id}"),
            client.post("/stop", {"stream_id": second_id}),
            client.post("/stop", f"stream_id={third_id}".encode(), Content_Type=form),
        ]
        for stream, receipt in zip(streams, receipts, strict=True):
            assert receipt.status == 200
            assert (receipt.json["id"], receipt.json["status"]) == (stream.id, "stopped")
            assert stream.to_end().terminal["type"] == "cancelled"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("path", ["/stop/ID", "/stop"])
def test_stop_takes_a_chunked_body(halt: HaltServer, path: str, kind: str) -> None:
    """The body of a Stop may be chunked: `seen` counts, and the later text is not kept."""
    client = halt.client()
    with client.chat("stall?n=9&gap_ms=5").until_text("8 ") as events:
        fields = {"stream_id": events.id, "seen": "2"}
        body = json.dumps(fields) if kind.endswith("json") else urlencode(fields)
        connection = client.connect()
        connection.request(
            "POST",
            path.replace("ID", events.id),
            iter([body[:9].encode(), body[9:].encode()]),
            {"Content-Type": kind},
            encode_chunked=True,
        )
        assert connection.getresponse().status == 200
        connection.close()
        assert events.to_end().terminal["type"] == "cancelled"
    refused = client.connect()
    refused.request(
        "POST", f"/stop/{events.id}", iter([b"seen=x"]), {"Content-Type": FORM}, encode_chunked=True
    )
    assert refused.getresponse().status == 400
    refused.close()


def test_second_stop_finds_the_stream_finished(halt: HaltServer) -> None:
    """The second Stop finds the stream finished and changes nothing."""
    client = halt.client()
    events = client.chat("stall?n=2").until_text("1 ")
    assert client.stop(events.id).json["status"] == "stopped"
    events.to_end()
    second_receipt = client.stop(events.id)
    assert second_receipt.status == 200
    assert second_receipt.json["status"] == "finished"
    assert client.follow(events.id).to_end().seen == events.seen


def test_concurrent_stops_have_one_winner(halt: HaltServer) -> None:
    """Of concurrent Stops one receipt says stopped, the others finished, and the stream has one
    end.
    """
    client = halt.client()
    for _ in range(5):
        events = client.chat("count?n=100000&gap_ms=2").until_text("3 ")
        barrier = threading.Barrier(8)
        statuses: list[str] = []

        def send_stop(stream_id: str = events.id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            statuses.append(client.stop(stream_id).json["status"])

        threads = [threading.Thread(target=send_stop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == ["finished"] * 7 + ["stopped"]
        assert events.to_end().terminal["type"] == "cancelled"


def test_stop_before_the_start_cancels_the_stream(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A Stop before its stream is pending; the stream then ends at once, without a request."""
    client = halt.client()
    stream_id, prompt = new_id(), new_id()
    receipt = client.stop(stream_id)
    assert receipt.status == 202
    assert (receipt.json["status"], receipt.json["upstream"]) == ("pending", "none")
    events = client.chat("count", prompt, id=stream_id).to_end()
    assert [m.json["type"] for m in events.seen[:-1]] == ["cancelled"]
    later_prompt = new_id()
    client.chat(
        "count?n=1", later_prompt
    ).to_end()  # what had been sent before would be there by now
    request_record(shared_fake, later_prompt)
    assert not [r for r in shared_fake.requests if prompt in str(r.body)]


def test_pending_stop_affects_its_stream_alone(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A pending Stop affects no stream with another ID."""
    client = halt.client()
    client.stop(new_id())
    assert client.chat("count?n=3").to_end().terminal["type"] == "done"


def test_stop_of_a_finished_stream_keeps_the_answer(halt: HaltServer) -> None:
    """The answer of a finished stream stays, and the receipt says finished."""
    client = halt.client()
    events = client.chat("count?n=3").to_end()
    receipt = client.stop(events.id)
    assert (receipt.status, receipt.json["status"]) == (200, "finished")
    assert receipt.json["upstream"] == "none"
    assert client.follow(events.id).to_end().seen == events.seen


@pytest.mark.parametrize("stream_id", ["short", "x" * 65, "with%20a%20space", "caf%C3%A9-abcdef"])
def test_stop_with_an_invalid_id_in_the_path_is_refused(halt: HaltServer, stream_id: str) -> None:
    """An invalid ID in the path is refused with 400 and the field."""
    refused = halt.client().stop(stream_id)
    assert refused.status == 400
    assert refused.error["field"] == "stream_id"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", ""),
        (b"{}", "application/json"),
        (b"[]", "application/json"),
        (b"not json", "application/json"),
        (b'{"stream_id": 12345678}', "application/json"),
        (b'{"stream_id": "0123456789", "seen": -1}', "application/json"),
        (b'{"stream_id": "0123456789", "seen": -1}', FORM),
        (b'{"stream_id": "0123456789"', FORM),
        (b"stream=0123456789", "application/x-www-form-urlencoded"),
        (b"stream_id=0123456789&seen=x", "application/x-www-form-urlencoded"),
    ],
)
def test_stop_without_a_valid_id_is_refused(halt: HaltServer, body: bytes, kind: str) -> None:
    """A Stop without a valid ID in its body is refused with 400 and the field."""
    refused = halt.client().post("/stop", body, Content_Type=kind)
    assert refused.status == 400
    assert refused.error["field"] in {"stream_id", "body", "seen"}


@pytest.mark.parametrize("kind", ["application/json", FORM])
@pytest.mark.parametrize("path", ["/stop", "/stop/0123456789"])
def test_stop_as_json_names_an_unknown_field(halt: HaltServer, path: str, kind: str) -> None:
    """An unknown field of JSON is refused by name, also with the content type of `curl -d`."""
    for body in (b'{"stream_id": "0123456789", "sen": 1}', b'{"sen": 1}'):
        refused = halt.client().post(path, body, Content_Type=kind)
        assert (refused.status, refused.error["field"]) == (400, "sen")
        assert refused.error["message"] == "sen: unknown field"


@pytest.mark.parametrize("path", ["/stop", "/stop/ID"])
def test_stop_reads_json_of_plain_curl(halt: HaltServer, path: str) -> None:
    """JSON with the content type of a form is read as JSON, as by /chat."""
    client, stream_id = halt.client(), new_id()
    path = path.replace("ID", stream_id)
    body = json.dumps({"stream_id": stream_id, "seen": 2}).encode()
    assert client.post(path, body, Content_Type=FORM).json["id"] == stream_id
    wrong = json.dumps({"stream_id": stream_id, "seen": "x"}).encode()
    assert client.post(path, wrong, Content_Type=FORM).error["field"] == "seen"


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/stop/ID", b"", ""),
        ("/stop/ID?seen=1", b"", "application/json"),
        ("/stop/ID", b"seen=1&more=2", FORM),
        ("/stop", b"stream_id=ID&seen=1&more=2", FORM),
        ("/stop?stream_id=ID", b"", FORM),
        ("/stop?stream_id=ID&more=2", b"{}", FORM),
        ("/stop/ID", b"seen=1", "text/plain;charset=UTF-8"),
        ("/stop/ID", b'{"more": 2}', "text/plain;charset=UTF-8"),
        ("/stop/ID", b'{"seen": "x"', "text/plain;charset=UTF-8"),
        ("/stop?stream_id=ID&more=2", b"stopped", "text/plain;charset=UTF-8"),
        ("/stop/ID", b"\xff\x00", "application/octet-stream"),
        (
            "/stop",
            b'--x\r\nContent-Disposition: form-data; name="stream_id"\r\n\r\nID\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_stop_accepts_every_form_of_a_browser(
    halt: HaltServer, path: str, body: bytes, kind: str
) -> None:
    """A Stop of a page, of `fetch` or of `navigator.sendBeacon` is never refused for more fields."""
    stream_id = new_id()
    receipt = halt.client().post(
        path.replace("ID", stream_id), body.replace(b"ID", stream_id.encode()), Content_Type=kind
    )
    assert (receipt.status, receipt.json["status"]) == (202, "pending")
    assert receipt.json["id"] == stream_id


def test_stop_releases_the_place_before_its_receipt(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The place of a stopped run is free when the receipt arrives."""
    client: Client = start_halt(fake, HALT_MAX_STREAMS=1).client()
    for turn in range(5):
        events = client.chat("silent_first_token")
        assert events.status == 200
        fake.wait_request(turn)
        assert client.stop(events.id).json["upstream"] == "closed"
        events.to_end()

"""OpenAIUpstream: requests, answers, the code of every fault, and the secrecy of the key."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import msgspec
import pytest

from halt.config.provider_setup import setup
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Message
from halt.errors import CODES, UpstreamError
from halt.providers.openai import OpenAIUpstream
from halt.testing.fake_openai import FakeOpenAI
from halt.transport.pool import Transport
from tests.support.ports import free_port
from tests.support.provider_answers import HI, KEY, Answer, read, refusal_of, request_answer
from tests.support.raw_server import CHUNKED, OK, Handler, Peer, RawServer, answering
from tests.support.waiting import WAIT_TIMEOUT

EVENTS = b"Content-Type: text/event-stream\r\n"


Make = Callable[..., OpenAIUpstream]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes providers with these settings; closes them at the end."""
    upstreams: list[OpenAIUpstream] = []

    def make(base_url: str, transport: Transport | None = None, **settings: Any) -> OpenAIUpstream:
        config = Config(**{"base_url": base_url, "api_key": KEY, "model": "echo"} | settings)
        upstreams.append(OpenAIUpstream(setup(config).providers[0], transport))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        upstream.close()


@pytest.fixture
def upstream(make: Make, fake: FakeOpenAI) -> OpenAIUpstream:
    return make(fake.base_url)


def refused_list(outcome: Answer) -> UpstreamError:
    """Return the fault of a server that has no list of models."""
    assert outcome.fault is not None
    assert outcome.fault.code == "endpoint_not_found"
    return outcome.fault


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "text", "reason"),
    [
        ("count?n=3", "0 1 2 ", "stop"),
        ("echo", "hi", "stop"),
        ("length?n=2", "0 1 ", "length"),
        ("empty", "", "stop"),
        ("reasoning?n=2", "0 1 ", "stop"),
        ("no_done?n=2", "0 1 ", "stop"),
        ("done_only?n=2", "0 1 ", None),
        ("close_delimited?n=2", "0 1 ", "stop"),
        ("content_length?n=2", "0 1 ", "stop"),
        ("odd_fields?n=2", "0 1 ", "stop"),
        ("odd_frames", "crlf nospace two joined split multiline fields", "stop"),
    ],
)
def test_answer_is_the_same_in_every_framing(
    upstream: OpenAIUpstream, model: str, text: str, reason: str | None
) -> None:
    """In every framing of a server the text and its finish reason are the same."""
    answer = request_answer(upstream, model)
    assert (answer.text, answer.ended, answer.fault) == (text, True, None)
    assert answer.reply is not None
    assert answer.reply.finish_reason == reason


def test_characters_cut_between_reads_are_whole(upstream: OpenAIUpstream) -> None:
    """Emoji and Chinese characters are whole, wherever the network cuts them."""
    answer = request_answer(upstream, "half_utf8")
    assert "中文字符" in answer.text
    assert "\ufffd" not in answer.text


def test_usage_is_requested_and_returned_as_received(
    upstream: OpenAIUpstream, fake: FakeOpenAI
) -> None:
    """The provider's own token count is returned, or None if it sends none."""
    answer = request_answer(upstream, "count?n=7")
    assert answer.reply is not None
    assert answer.reply.usage is not None
    assert answer.reply.usage["completion_tokens"] == answer.chunks == 7
    assert fake.requests[0].body["stream_options"] == {"include_usage": True}
    silent = request_answer(upstream, "no_usage")
    assert silent.reply is not None
    assert silent.reply.usage is None


def test_refused_stream_options_are_left_out_for_that_model(
    upstream: OpenAIUpstream, fake: FakeOpenAI
) -> None:
    """After one refusal the option is not sent to that model again, but to others."""
    for _ in range(2):
        answer = request_answer(upstream, "no_usage_option?n=2")
        assert (answer.text, answer.fault) == ("0 1 ", None)
    request_answer(upstream, "count?n=1")
    assert ["stream_options" in r.body for r in fake.requests] == [True, False, False, True]
    assert {r.connection for r in fake.requests} == {1}


def test_other_refusal_keeps_stream_options(upstream: OpenAIUpstream, fake: FakeOpenAI) -> None:
    """A refusal that does not name stream_options keeps the option."""
    refusal_of(request_answer(upstream, "400"), "bad_request")
    request_answer(upstream, "count?n=1")
    assert ["stream_options" in r.body for r in fake.requests] == [True, True]


def test_messages_and_options_are_passed_on_unchanged(
    upstream: OpenAIUpstream, fake: FakeOpenAI
) -> None:
    """Content parts, names and every option are in the request's body, and nothing more."""
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "AAAA", "filename": "a.pdf"}},
    ]
    mixed = Message("user", parts, name="anna")
    messages = [Message("developer", "Be brief."), mixed]
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "seed": 42,
        "stop": ["\n\n", "END"],
    }
    request_answer(upstream, "count?n=1", messages=messages, id="a-stream-id", **options)
    assert fake.requests[0].body == {
        "model": "count?n=1",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "anna"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_openai_itself_gets_max_completion_tokens(make: Make) -> None:
    """OpenAI itself gets `max_completion_tokens`, which other servers do not all know."""
    requests: list[Any] = []

    class RecordingTransport(Transport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            requests.append((str(request.url), msgspec.json.decode(request.read())))
            raise httpx2.ConnectError("not today", request=request)

    upstream = make("", RecordingTransport(1.0), model="")
    refusal_of(request_answer(upstream, max_tokens=7), "upstream_unreachable")
    (url, body) = requests[0]
    assert url == "https://api.openai.com/v1/chat/completions"
    assert (body["max_completion_tokens"], "max_tokens" in body) == (7, False)
    assert body["model"] == upstream.known_model != ""


# --- the model ------------------------------------------------------------------------------------


def test_first_listed_model_answers_without_a_configured_one(make: Make, fake: FakeOpenAI) -> None:
    """Without a setting the first listed model is used; the list is requested once."""
    upstream = make(fake.base_url, model="")
    assert upstream.known_model == ""
    assert request_answer(upstream).text == "hi"
    assert request_answer(upstream).text == "hi"
    assert upstream.known_model == "echo"
    assert [r.path for r in fake.requests] == [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions",
    ]


def test_named_model_is_used(make: Make, fake: FakeOpenAI) -> None:
    """The request's model precedes the setting, the setting precedes the list."""
    upstream = make(fake.base_url, model="count?n=1")
    assert request_answer(upstream).text == "0 "
    assert request_answer(upstream, "count?n=2").text == "0 1 "
    assert {r.path for r in fake.requests} == {"/v1/chat/completions"}


def test_reply_names_the_requested_model_before_the_server_does(upstream: OpenAIUpstream) -> None:
    """Until the server has named its model, the reply has the requested name."""
    reply = upstream.open(ChatRequest(HI, model="count?n=1"), UpstreamConnection())
    assert reply.model == "count?n=1"
    answer = read(reply)
    assert answer.reply is not None
    assert answer.reply.model == "count?n=1"


def test_models_are_listed_in_the_servers_order(upstream: OpenAIUpstream) -> None:
    """The list has the server's order."""
    assert upstream.models(UpstreamConnection())[:2] == ["echo", "count"]


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (b"Content-Type: application/json\r\nContent-Length: 11\r\n\r\n"
         b'{"data":[]}', "model_not_found"),
        (b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "upstream_invalid"),
        (b"Content-Type: application/json\r\nContent-Length: 4\r\n\r\n[{}]", "upstream_invalid"),
        (b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
         b'{"data":[null]}', "upstream_invalid"),
        (b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n"
         b'{"data":[{}]}', "upstream_invalid"),
        (b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n{nope", "upstream_invalid"),
        (b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n\xff\xfe",
         "upstream_invalid"),
        (b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", "upstream_web_page"),
        (b"Content-Length: 0\r\n\r\n", "upstream_invalid"),
    ],
    ids=["empty", "no-list", "a-list", "null", "no-id", "no-json", "no-utf8", "html", "nothing"],
)  # fmt: skip
def test_malformed_model_list_is_an_upstream_fault(make: Make, response: bytes, code: str) -> None:
    """A wrong address that answers with something else is a fault of the server."""
    with RawServer(answering(OK + response)) as server:
        upstream = make(server.url, model="")
        with pytest.raises(UpstreamError) as caught:
            upstream.default_model(UpstreamConnection())
        upstream.close()
    assert caught.value.code == code
    assert code == "upstream_web_page" or "HALT_MODEL" in caught.value.message


def test_missing_model_list_is_endpoint_not_found(make: Make, fake: FakeOpenAI) -> None:
    """A 404 for the list is reported as a wrong address, not as a missing model."""
    fault = refused_list(request_answer(make(f"{fake.base_url}/nope", model="")))
    assert "HALT_MODEL" in fault.message
    assert f"The request was GET {fake.base_url}/nope/models" in fault.message


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("400", "bad_request", "Invalid value for 'temperature'."),
        ("context?style=openai", "context_too_long", "9412 tokens"),
        ("context?style=llamacpp", "context_too_long", "9412 tokens"),
        ("context?style=vllm", "context_too_long", "9412 tokens"),
        ("401", "unauthorized", "It said: Incorrect API key provided"),
        ("403", "region_not_supported", "It said: Country, region"),
        ("404", "model_not_found", "does not exist"),
        ("422", "bad_request", "Unprocessable entity."),
        ("429", "rate_limited", "Try again in a moment."),
        ("500", "upstream_server_error", "It said: The server had an error"),
        ("503", "upstream_server_error", "overloaded. It said: The server is currently overloaded"),
        ("html", "upstream_web_page", "check OPENAI_BASE_URL"),
        ("drop_headers", "upstream_dropped", None),
    ],
)
def test_refusal_has_its_code_and_the_servers_words(
    upstream: OpenAIUpstream, model: str, code: str, words: str | None
) -> None:
    """A refusal has Halt's sentence, and the server's words if they help the user."""
    fault = refusal_of(request_answer(upstream, model), code)
    assert fault.retry_after is None
    if words is None:
        assert fault.message == CODES[code][0]
    else:
        assert words in fault.message


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("garbage?n=3", "upstream_invalid"),
        ("drop?n=3", "upstream_dropped"),
        ("reset?n=3", "upstream_dropped"),
        ("no_finish?n=3", "upstream_incomplete"),
        ("error_in_stream?n=3", "upstream_error"),
    ],
)
def test_fault_in_the_stream_comes_after_its_text(
    upstream: OpenAIUpstream, fake: FakeOpenAI, model: str, code: str
) -> None:
    """Text before a fault is delivered, then the fault is raised."""
    reply = upstream.open(ChatRequest(HI, model=model), UpstreamConnection())
    fake.requests[0].wait_tokens(3)
    answer = read(reply)
    refusal_of(answer, code)
    if not model.startswith("reset"):  # a reset may discard received data that was not read
        assert answer.text == "0 1 2 "


def test_endless_line_is_invalid_and_closes_the_connection(
    upstream: OpenAIUpstream, fake: FakeOpenAI
) -> None:
    """After LINE_MAX bytes of one line the connection is closed."""
    refusal_of(request_answer(upstream, "endless_line"), "upstream_invalid")
    assert fake.requests[0].closed.wait(WAIT_TIMEOUT)


@pytest.mark.parametrize(
    ("kind", "code"), [("rate_limit_error", "rate_limited"), ("server_error", "upstream_error")]
)
def test_error_object_in_the_stream_has_its_own_code(
    upstream: OpenAIUpstream, kind: str, code: str
) -> None:
    """The type of an error event selects its code, as for refusals."""
    refusal_of(request_answer(upstream, f"error_in_stream?n=1&kind={kind}&message=Sorry"), code)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-1", None),
        ("soon", None),
        ("999999", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_used_if_sensible(
    upstream: OpenAIUpstream, header: str, seconds: float | None
) -> None:
    """A sensible number of seconds is kept with the error; anything else is None."""
    fault = refusal_of(request_answer(upstream, f"429?retry_after={header}"), "rate_limited")
    assert fault.retry_after == seconds


def test_rate_limit_message_has_the_wait_of_retry_after(upstream: OpenAIUpstream) -> None:
    """The message of a rate limit has the server's wait, or "in a moment" if there is none."""
    fault = refusal_of(request_answer(upstream, "429?retry_after=6.5"), "rate_limited")
    assert "Try again in 7 s. It said: Rate limit reached" in fault.message
    fault = refusal_of(request_answer(upstream, "429"), "rate_limited")
    assert "Try again in a moment. It said: Rate limit reached" in fault.message


def test_closed_port_is_upstream_refused(make: Make) -> None:
    """A port on which no process listens is upstream_refused."""
    refusal_of(request_answer(make(f"http://127.0.0.1:{free_port()}/v1")), "upstream_refused")


def test_unknown_host_name_is_upstream_dns(make: Make) -> None:
    """A host name that does not resolve is upstream_dns."""
    refusal_of(
        request_answer(make("http://halt-test.invalid/v1", connect_timeout=5.0)), "upstream_dns"
    )


def test_untrusted_certificate_is_upstream_tls(make: Make) -> None:
    """A certificate of an unknown CA is upstream_tls, and no request is sent."""
    with FakeOpenAI(tls=True) as fake:
        refusal_of(request_answer(make(fake.base_url)), "upstream_tls")
        assert fake.requests == []


@pytest.mark.parametrize(
    ("first_bytes", "code", "retryable"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "upstream_no_tls", False),
     (b"", "upstream_tls_timeout", True)],
    ids=["refuses", "waits"],
)  # fmt: skip
def test_plain_http_server_at_an_https_address_is_reported(
    make: Make, first_bytes: bytes, code: str, retryable: bool
) -> None:
    """A server without TLS at an https address is reported, whether it answers in plain text or
    waits.
    """

    def serve_plain_http(peer: Peer) -> None:
        peer.sock.recv(4096)
        if first_bytes:
            peer.sock.sendall(first_bytes)
        while peer.sock.recv(4096):
            pass

    with RawServer(serve_plain_http) as server:
        address = server.url.replace("http://", "https://")
        timeout = WAIT_TIMEOUT if first_bytes else 0.5  # a busy machine may be slow to refuse
        fault = refusal_of(request_answer(make(address, connect_timeout=timeout)), code)
    assert fault.retryable is retryable
    assert "TLS" in fault.message


def test_server_that_does_not_accept_is_a_connect_timeout(make: Make) -> None:
    """A server that does not accept is a connect timeout."""
    with FakeOpenAI.unaccepting() as url:
        refusal_of(request_answer(make(url, connect_timeout=0.1)), "upstream_connect_timeout")


def test_silent_tls_handshake_is_a_tls_timeout(make: Make) -> None:
    """A silent TLS handshake ends after the connect timeout as upstream_tls_timeout."""
    with RawServer(answering()) as server:
        url = server.url.replace("http:", "https:")
        refusal_of(request_answer(make(url, connect_timeout=0.5)), "upstream_tls_timeout")


def test_server_of_another_protocol_is_invalid(make: Make) -> None:
    """A response of another protocol is upstream_invalid."""
    with RawServer(answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")) as server:
        refusal_of(request_answer(make(server.url)), "upstream_invalid")


def test_missing_configuration_is_no_model(make: Make) -> None:
    """Without any provider the fault is no_model, and no request is sent."""
    refusal_of(request_answer(make("", api_key="")), "no_model")


def test_trusted_tls_server_answers(make: Make) -> None:
    """Over TLS with a trusted CA an answer is the same as without."""
    with FakeOpenAI(tls=True) as fake:
        context = ssl.create_default_context(cafile=fake.ca_pem_path)
        upstream = make(fake.base_url, Transport(WAIT_TIMEOUT, context))
        assert request_answer(upstream, "count?n=3").text == "0 1 2 "
        upstream.close()


def event(data: bytes) -> bytes:
    frame = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def silent_after(*events: bytes) -> Handler:
    """Sends these events in one packet, then keeps the connection open."""

    def handle(peer: Peer) -> None:
        peer.request()
        head = CHUNKED.replace(OK, OK + EVENTS)
        peer.send(head + b"".join(event(data) for data in events))
        peer.wait_client_left()

    return handle


@pytest.mark.parametrize("broken_data", [b'{"error":{"message":"Boom."}}', b"{not json"])
def test_fault_is_raised_at_once_on_an_open_connection(make: Make, broken_data: bytes) -> None:
    """A fault in the packet of the last text is raised at once, while the connection stays open."""
    with RawServer(silent_after(b'{"choices":[{"delta":{"content":"a"}}]}', broken_data)) as server:
        reply = make(server.url).open(ChatRequest(HI), UpstreamConnection())
        try:
            assert reply.read().text == "a"
            with pytest.raises(UpstreamError):
                reply.read()
        finally:
            reply.close()


def test_error_object_precedes_the_fault_of_a_broken_connection(make: Make) -> None:
    """An error object followed by a broken connection is the fault that is raised."""

    def handle(peer: Peer) -> None:
        peer.request()
        head = CHUNKED.replace(OK, OK + EVENTS)
        text, error_data = (
            b'{"choices":[{"delta":{"content":"a"}}]}',
            b'{"error":{"message":"Boom."}}',
        )
        peer.send(head + event(text) + event(error_data))

    with RawServer(handle) as server:
        answer = request_answer(make(server.url))
        assert answer.text == "a"
        refusal_of(answer, "upstream_error")


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "401",
        "echo",
        "garbage",
        "drop",
        f"error_in_stream?n=0&message=Bad key {KEY}, sorry",
        f"error_in_stream?n=2&message=Bad key {KEY}, sorry",
    ],
    ids=["refused", "answered", "garbage", "dropped", "quoted", "quoted-behind-text"],
)
def test_key_is_in_no_error_log_or_repr(
    make: Make, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    """Errors, logs and reprs do not hold the key, also if the server quotes it."""
    caplog.set_level(logging.DEBUG)
    config = Config(base_url=fake.base_url, api_key=KEY)
    upstream = make(fake.base_url)
    answer = request_answer(upstream, model)
    texts = [repr(upstream), repr(config), repr(answer), str(answer.fault)]
    if answer.fault is not None:
        texts += [answer.fault.message, answer.fault.detail, repr(answer.fault)]
    texts += [record.getMessage() for record in caplog.records]
    texts += [repr(record.args) for record in caplog.records]
    assert [text for text in texts if KEY in text] == []


@pytest.mark.parametrize("status", [b"400 Bad Request", b"401 Unauthorized", b"500 Oops"])
def test_key_quoted_in_a_refusal_is_masked(make: Make, status: bytes) -> None:
    """A proxy that repeats the key in its refusal does not put it into the message."""
    body = b'{"error":{"message":"Invalid key: %b."}}' % KEY.encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n"
    with RawServer(answering(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as server:
        upstream = make(server.url)
        fault = request_answer(upstream).fault
        upstream.close()
    assert fault is not None
    assert KEY not in f"{fault.message} {fault.detail} {fault!r}"

"""The Content-Type and Content-Encoding of a response and its contents: the contents decide.

A hand-made server sends each body with the labels under test, to a provider as a user sets it up.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator

import pytest

from halt.config.provider_setup import setup
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest
from halt.errors import UpstreamError
from halt.providers.openai import OpenAIUpstream
from tests.support.provider_answers import HI, Answer, read, request_answer
from tests.support.raw_server import OK, Peer, RawServer, answering
from tests.support.waiting import WAIT_TIMEOUT

A = b'data: {"choices":[{"index":0,"delta":{"content":"A"}}]}\n\n'
STREAM = (
    A + A.replace(b'"A"', b'"B"') + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
)
STREAM += b"data: [DONE]\n\n"
WHOLE = json.dumps({"choices": [{"message": {"content": "AB"}, "finish_reason": "stop"}]}).encode()
PAGE = b"<!doctype html><html><title>Sign in, please</title></html>"


@pytest.fixture
def received_answer(request: pytest.FixtureRequest) -> Iterator[Answer]:
    """The answer to a request, from a server that sends the test's headers and body."""
    labels, body, status = (*request.param, OK)[:3]
    head = status + labels + b"Content-Length: %d\r\n\r\n" % len(body)
    with RawServer(answering(head + body)) as server:
        provider = OpenAIUpstream(setup(Config(base_url=server.url, api_key="k" * 20)).providers[0])
        yield request_answer(provider, "m-1")
        provider.close()


def kind(value: bytes) -> bytes:
    return b"Content-Type: " + value + b"\r\n"


def coding(value: bytes) -> bytes:
    return kind(b"text/event-stream") + b"Content-Encoding: " + value + b"\r\n"


RAW_ZLIB = zlib.compress(STREAM)


@pytest.mark.parametrize(
    "received_answer",
    [
        (kind(b"text/event-stream"), STREAM),
        (kind(b"Text/Event-Stream; Charset=UTF-8"), STREAM),
        (kind(b"text/plain"), STREAM),
        (kind(b"text/html; charset=utf-8"), STREAM),
        (kind(b"application/json"), STREAM),
        (kind(b"application/octet-stream"), STREAM),
        (b"", STREAM),
        (kind(b""), STREAM),
        (kind(b"text/event-stream"), WHOLE),
        (kind(b"text/html"), WHOLE),
        (kind(b"application/json"), WHOLE),
        (kind(b"application/json") + b"Content-Encoding: gzip\r\n", gzip.compress(WHOLE)),
        (coding(b"identity"), STREAM),
        (coding(b"none"), STREAM),
        (coding(b"utf-8"), STREAM),
        (coding(b"gzip"), STREAM),
        (coding(b"deflate"), STREAM),
        (coding(b"br"), STREAM),
        (coding(b"gzip"), gzip.compress(STREAM)),
        (coding(b"GZIP"), gzip.compress(STREAM)),
        (coding(b"x-gzip"), gzip.compress(A) + gzip.compress(STREAM[len(A) :]) + b"\0" * 8),
        (coding(b"deflate"), RAW_ZLIB),
        (coding(b"identity"), gzip.compress(STREAM)),
        (kind(b"text/event-stream"), gzip.compress(STREAM)),
    ],
    indirect=True,
)
def test_answer_is_read_under_any_content_type_and_coding(received_answer: Answer) -> None:
    """The contents of an answer decide, whatever type and coding its headers name."""
    assert (received_answer.text, received_answer.ended, received_answer.fault) == (
        "AB",
        True,
        None,
    )


@pytest.mark.parametrize(
    "received_answer",
    [
        (kind(b"text/html"), PAGE),
        (kind(b"application/json"), PAGE),
        (kind(b"text/event-stream"), b"\r\n" + PAGE),
        (coding(b"gzip"), gzip.compress(PAGE)),
    ],
    indirect=True,
)
def test_web_page_is_reported_under_any_content_type(received_answer: Answer) -> None:
    """A web page is an upstream_web_page fault with its title and the setting; no retry."""
    fault = received_answer.fault
    assert fault is not None
    assert (fault.code, fault.retryable) == ("upstream_web_page", False)
    assert "Sign in, please" in fault.message
    assert "OPENAI_BASE_URL" in fault.message


@pytest.mark.parametrize(
    ("received_answer", "label"),
    [
        ((coding(b"br"), b"\x8b\x00\x80\x02\xff\xfe\x91"), "'br'"),
        ((kind(b"image/png"), b"\x89PNG\r\n\x1a\n"), "'image/png'"),
        ((kind(b"application/json"), b"{}"), "'application/json'"),
    ],
    indirect=["received_answer"],
)
def test_unreadable_body_is_reported_with_its_content_type(
    received_answer: Answer, label: str
) -> None:
    """A body without an answer or an error is reported with its type or coding."""
    assert received_answer.fault is not None
    assert received_answer.fault.code == "upstream_invalid"
    assert label in received_answer.fault.detail


@pytest.mark.parametrize(
    "received_answer",
    [
        (coding(b"gzip"), gzip.compress(b'{"error":{"message":"Boom 7"}}'), b"HTTP/1.1 400 No\r\n"),
        (coding(b"gzip"), b'{"error":{"message":"Boom 7"}}', b"HTTP/1.1 400 No\r\n"),
        (kind(b"text/plain"), b'{"error":{"message":"Boom 7"}}'),
        (kind(b"text/plain"), b"Boom 7"),
    ],
    indirect=True,
)
def test_error_is_read_under_any_content_type_and_coding(received_answer: Answer) -> None:
    """The words of an error are read under any type and coding that its headers name."""
    assert received_answer.fault is not None
    assert "Boom 7" in received_answer.fault.message


def test_compressed_model_list_is_read() -> None:
    """A compressed list of models is inflated."""
    body = gzip.compress(b'{"data":[{"id":"m-1"}]}')
    head = OK + kind(b"application/json") + b"Content-Encoding: gzip\r\n"
    with RawServer(answering(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as server:
        provider = OpenAIUpstream(setup(Config(base_url=server.url, api_key="none")).providers[0])
        assert provider.models(UpstreamConnection()) == ["m-1"]
        provider.close()


def test_compressed_events_are_read_before_the_stream_ends() -> None:
    """A token of a compressed stream is read as soon as its bytes have arrived."""
    packed = zlib.compressobj(wbits=31)
    first_part = packed.compress(A) + packed.flush(zlib.Z_SYNC_FLUSH)
    last_part = packed.compress(STREAM[len(A) :]) + packed.flush()
    release = threading.Event()

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(OK + coding(b"gzip") + b"Connection: close\r\n\r\n", first_part)
        assert release.wait(WAIT_TIMEOUT)
        peer.send(last_part)

    with RawServer(serve) as server:
        provider = OpenAIUpstream(setup(Config(base_url=server.url, api_key="none")).providers[0])
        reply = provider.open(ChatRequest(HI, model="m-1"), UpstreamConnection())
        assert reply.read().text == "A"
        release.set()
        assert read(reply).text == "B"
        provider.close()


def test_broken_compression_is_an_invalid_answer() -> None:
    """A broken compressed stream is an upstream_invalid fault."""
    packed = zlib.compressobj(wbits=31)
    body = packed.compress(A) + packed.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 40
    head = OK + coding(b"gzip") + b"Content-Length: %d\r\n\r\n" % len(body)
    with RawServer(answering(head + body)) as server:
        provider = OpenAIUpstream(setup(Config(base_url=server.url, api_key="none")).providers[0])
        answer = request_answer(provider, "m-1")
        provider.close()
    assert isinstance(answer.fault, UpstreamError)
    assert answer.fault.code == "upstream_invalid"

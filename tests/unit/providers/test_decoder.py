"""Bytes of a chat completion stream to text: every legal framing, any cut, and each kind of fault.

`chunk_of` makes a chunk as OpenAI sends it; `run` feeds a decoder and returns its output.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.errors import UpstreamError
from halt.providers.chat_completions import ChatDecoder
from halt.providers.decoder import LINE_MAX

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
DONE = b"data: [DONE]\n\n"


def chunk_of(content: str | None = None, **fields: Any) -> bytes:
    """A chunk's JSON. `fields` are further members of the choice."""
    delta = {} if content is None else {"content": content}
    chunk = {"model": "m-1", "choices": [{"index": 0, "delta": delta, **fields}]}
    return json.dumps(chunk, ensure_ascii=False).encode()


def data(payload: bytes, end: bytes = b"\n") -> bytes:
    return b"data: " + payload + end + end


FINISH = data(chunk_of(finish_reason="stop"))
REPORT = data(json.dumps({"choices": [], "usage": USAGE}).encode())


@dataclass
class Outcome:
    """What a stream was decoded to."""

    text: str = ""
    chunks: int = 0
    ended: bool = False
    fault: str | None = None
    facts: tuple[object, ...] = field(default=())


def run(pieces: Iterable[bytes], *, end: bool = True) -> Outcome:
    """Feed the pieces as a reply does: stop at the end or at a fault; then the body's end."""
    decoder, out = ChatDecoder(), Outcome()
    try:
        for piece in pieces:
            part = decoder.feed(piece)
            out.text += part.text
            out.chunks += part.chunks
            out.ended = part.ended
            if part.ended:
                break
        if end and not out.ended:
            out.ended = decoder.end().ended
    except UpstreamError as fault:
        out.fault = fault.code
    out.facts = (decoder.finish_reason, decoder.usage, decoder.model)
    return out


def test_ordinary_stream_gives_text_count_and_facts() -> None:
    """Role chunk, text, finish reason, usage and [DONE] give text, count and facts."""
    stream = (
        data(chunk_of("")) + data(chunk_of("Hel")) + data(chunk_of("lo")) + FINISH + REPORT + DONE
    )
    assert run([stream], end=False) == Outcome("Hello", 2, True, None, ("stop", USAGE, "m-1"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_every_line_end_of_the_specification_is_read(end: bytes) -> None:
    """LF, CRLF and CR end a line, also mixed, also in single bytes."""
    stream = (
        data(chunk_of("one "), end) + data(chunk_of("two "), b"\n") + data(chunk_of("three"), end)
    )
    stream += data(chunk_of(finish_reason="stop"), end) + data(b"[DONE]", end)
    whole, split = run([stream]), run(stream[i : i + 1] for i in range(len(stream)))
    assert whole == split
    assert (whole.text, whole.ended, whole.fault) == ("one two three", True, None)


WHATWG = [
    pytest.param(b"data: %b\n\ndata: %b\nid: 1\n\ndata:%b\nid\n\ndata:  %b\n\n", id="comments-ids"),
    pytest.param(
        b": test stream\n\ndata: %b\nid: 1\n\n:%%\n\ndata:%b\n\ndata: %b\n\ndata:%b\n\n", id="test"
    ),
    pytest.param(
        b"event: add\ndata: %b\n\nevent: remove\ndata: %b\n\nretry: 10000\n\n"
        b"foo: bar\ndata: %b\n\nbare\ndata:%b\n\n",
        id="event-names-and-unknown-fields",
    ),
    pytest.param(
        b"\n\n\n%%\n\nid: 7\n\ndata: %b\n:x\n\ndata:%b\n\ndata:%b\n\ndata:%b\n\n", id="id"
    ),
]


@pytest.mark.parametrize("template", WHATWG)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_examples_of_the_specification_keep_their_text(template: bytes, end: bytes) -> None:
    """Comments, IDs, names, unknown fields and blocks without data change no text."""
    stream = template % tuple(chunk_of(word) for word in ("a", "b", "c", "d"))
    outcome = run([stream.replace(b"\n", end) + FINISH + DONE])
    assert (outcome.text, outcome.fault) == ("abcd", None)


def test_data_lines_of_one_event_are_joined() -> None:
    """The `data` lines of one event are joined by line breaks, with or without a space."""
    lines = json.dumps(json.loads(chunk_of("joined")), indent=1).encode().split(b"\n")
    spaced = b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
    bare = b"".join(b"data:" + line + b"\n" for line in lines) + b"\n"
    assert run([spaced + bare + DONE]).text == "joinedjoined"


def test_only_one_leading_space_belongs_to_the_framing() -> None:
    """JSON that begins with spaces after `data:` is read."""
    assert run([b"data:    " + chunk_of("x") + b"\n\n" + DONE]).text == "x"


def test_unfinished_event_is_discarded() -> None:
    """Data without the empty line that ends it is discarded, as the specification requires."""
    outcome = run([data(chunk_of("kept")) + FINISH + b"data: " + chunk_of(" lost") + b"\n"])
    assert (outcome.text, outcome.fault) == ("kept", None)


def test_byte_order_mark_at_the_beginning_is_skipped() -> None:
    """One BOM before the first line is skipped, and the first event is read."""
    stream = b"\xef\xbb\xbf" + data(chunk_of("first")) + FINISH + DONE
    assert run([stream]).text == "first"
    assert run(stream[i : i + 1] for i in range(len(stream))).text == "first"


WIDE = 'naïve 中文 e\u0301 👩\u200d👩\u200d👧 \u05d0 \u2028 \\ " \n 😀'
LINE_ENDS = (b"\n", b"\r\n", b"\r")


@given(
    words=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=6),
    ends=st.lists(st.sampled_from(LINE_ENDS), min_size=8, max_size=8),
    cuts=st.lists(st.integers(0, 10_000)),
)
@example(words=[WIDE], ends=[b"\n"] * 8, cuts=list(range(10_000)))
@example(words=["a", "b"], ends=[b"\r\n"] * 8, cuts=list(range(10_000)))
def test_stream_is_the_same_in_any_cut(
    words: list[str], ends: list[bytes], cuts: list[int]
) -> None:
    """Any cut of the bytes, within characters too, gives the same outcome."""
    # A bare CR directly before an LF would read as one CRLF, so only one kind follows another CR.
    kinds = ends if b"\r" not in ends else [b"\r"] * 8
    stream = b"".join(data(chunk_of(word), end) for word, end in zip(words, kinds, strict=False))
    stream += data(chunk_of(finish_reason="stop"), kinds[0]) + data(REPORT[6:-2], kinds[0])
    stream += data(b"[DONE]", kinds[0])
    edges = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    expected = Outcome("".join(words), len(words), True, None, ("stop", USAGE, "m-1"))
    assert run(pieces) == expected


@pytest.mark.parametrize("form", [b"data: [DONE]", b"data:[DONE]", b"data: [DONE] "])
def test_done_ends_the_answer_in_any_form(form: bytes) -> None:
    """[DONE] ends the answer, with and without the space; nothing after it is read."""
    outcome = run(
        [data(chunk_of("a")) + FINISH + form + b"\n\n" + data(chunk_of("never"))], end=False
    )
    assert (outcome.text, outcome.ended) == ("a", True)


def test_done_without_a_finish_reason_ends_without_a_reason() -> None:
    """[DONE] completes the answer; no reason is invented for it."""
    outcome = run([data(chunk_of("a")) + DONE], end=False)
    assert (outcome.ended, outcome.fault, outcome.facts[0]) == (True, None, None)


def test_finish_reason_without_done_ends_the_answer() -> None:
    """A body that ends after its finish reason is complete, with [DONE] or without."""
    outcome = run([data(chunk_of("a")) + FINISH])
    assert (outcome.text, outcome.ended, outcome.fault) == ("a", True, None)


def test_body_without_done_or_finish_reason_is_incomplete() -> None:
    """A body that ends in the middle of an answer is a fault; the text before it stays."""
    outcome = run([data(chunk_of("a"))])
    assert (outcome.text, outcome.fault) == ("a", "upstream_incomplete")


@pytest.mark.parametrize(
    ("broken_data", "code"),
    [
        (b"data: {not json\n\n", "upstream_invalid"),
        (b'data: {"error": {"message": "Boom.", "type": "server_error"}}\n\n', "upstream_error"),
        (b'data: {"error": "Boom."}\n\n', "upstream_error"),
        (b'data: {"error": {"code": "rate_limit_exceeded"}}\n\n', "rate_limited"),
        (b'data: {"error": {"code": 429, "message": "Slow down"}}\n\n', "rate_limited"),
        (b'data: {"error": {"code": "context_length_exceeded"}}\n\n', "context_too_long"),
        (b'data: {"error": {"type": "exceed_context_size_error"}}\n\n', "context_too_long"),
    ],
)
def test_text_before_a_fault_is_delivered_before_it(broken_data: bytes, code: str) -> None:
    """Text is delivered even if garbage or an error follows in the same bytes."""
    decoder = ChatDecoder()
    part = decoder.feed(data(chunk_of("kept")) + broken_data + data(chunk_of("never")))
    assert (part.text, part.ended) == ("kept", False)
    with pytest.raises(UpstreamError) as first:
        decoder.feed(data(chunk_of("never")))
    with pytest.raises(UpstreamError) as again:
        decoder.end()
    assert first.value.code == again.value.code == code
    assert run([broken_data]).fault == code


def test_message_of_an_error_object_is_quoted_and_shortened() -> None:
    """The message of an error object is quoted, shortened to 500 characters."""
    decoder = ChatDecoder()
    with pytest.raises(UpstreamError) as caught:
        decoder.feed(b'data: {"error": {"message": "%b"}}\n\n' % (b"Boom. " * 500))
    assert "Boom." in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("error", [b"null", b"{}", b'""'])
def test_empty_error_member_is_no_error(error: bytes) -> None:
    """A chunk with an empty or null `error` is read as a chunk."""
    chunk = b'data: {"error": %b, "choices": [{"delta": {"content": "ok"}}]}\n\n' % error
    assert run([chunk + DONE]).text == "ok"


@pytest.mark.parametrize(
    "chunk",
    [
        b"{}",
        b'{"choices": []}',
        b'{"choices": null, "usage": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"delta": {"content": null, "reasoning_content": "hm"}}]}',
        b'{"choices": [{"delta": {"role": "assistant", "tool_calls": []}}]}',
        b'{"choices": [{"index": 1, "delta": {"content": "another"}, "finish_reason": "stop"}]}',
    ],
)
def test_chunks_without_text_of_the_first_choice_add_nothing(chunk: bytes) -> None:
    """Empty choices, reasoning, tools and a second choice add no text and end nothing."""
    outcome = run([data(chunk) + data(chunk_of("x"))], end=False)
    assert (outcome.text, outcome.ended, outcome.facts[0]) == ("x", False, None)


@pytest.mark.parametrize("line", [b"data: ", b"nothing that ends ", b": "])
def test_endless_line_is_refused_after_line_max(line: bytes) -> None:
    """An endless line is an invalid stream, so that memory is bounded."""
    outcome = run([line, *[b"a" * 65_536] * (LINE_MAX // 65_536 + 2)])
    assert outcome.fault == "upstream_invalid"


@pytest.mark.parametrize("line", [b"data: aaaaaaa\n", b"data:\n"], ids=["full", "empty"])
def test_endless_event_is_refused(line: bytes) -> None:
    """An event of endless lines is an invalid stream, also if its lines are empty."""
    piece = line * (65_536 // len(line))
    outcome = run([piece] * (4 * LINE_MAX // 65_536), end=False)
    assert outcome.fault == "upstream_invalid"


def test_long_event_below_the_limit_is_read() -> None:
    """An event of half of LINE_MAX is read as any other."""
    text = "x" * (LINE_MAX // 2)
    stream = data(chunk_of(text)) + DONE
    pieces = [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)]
    assert run(pieces).text == text

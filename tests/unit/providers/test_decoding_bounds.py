"""What a model writes is decoded in linear time, counted as it arrives, and never breaks a decoder.

Bounds on CPU time are wide: what is linear stays far below them on a machine that is ten times
slower, and what is quadratic far above.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import pytest

from halt.core.events import Content, encode
from halt.core.notes import NOTES, NoteFilter
from halt.errors import UpstreamError
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.chat_completions import ChatDecoder
from halt.providers.continuation_joiner import ContinuationJoiner
from halt.providers.decoder import EventDecoder
from halt.providers.part_builder import PartBuilder
from halt.providers.reply import LINES_MAX, split_batch
from halt.providers.tool_calls import CallAssembler
from halt.transport.http1 import READ_SIZE

CALL = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a": 1}'}}


def chunk(**delta: object) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


def arrived(decoder: EventDecoder, reads: Iterable[bytes]) -> int:
    return sum(decoder.feed(read).arrived for read in reads)


# --- all that arrives is counted, and costs the same ----------------------------------------------

BLANKS = (" ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\r\n", " " * 5_000)
BEGINNINGS = (
    "",
    "a",
    "<think>",
    "<think>a</think>",
    "<think>a</think><|response|>",
    "</think>",
    "<|channel>thought\n",
    "<|channel|>analysis<|message|>",
    "<|channel|>analysis<|message|>a<|end|>",
    "[",
    "a</thi",
    NOTES[0],
    "```\n",
)


@pytest.mark.parametrize("blank", BLANKS, ids=[ascii(blank[:2]) for blank in BLANKS])
@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_blanks_are_counted_as_they_arrive(blank: str, field: str) -> None:
    """White space counts as it arrives, whether it is shown, held back or dropped."""
    for beginning in BEGINNINGS:
        reads = [chunk(**{field: beginning})] + [chunk(**{field: blank})] * 300
        assert arrived(ChatDecoder(), reads) == len(beginning) + 300 * len(blank)


def test_empty_pieces_of_a_call_are_counted() -> None:
    """Blanks before or after a call's arguments count, and repeated empty ones."""
    for pieces in (" ", "{}", "null", "\n\n"):
        decoder = ChatDecoder()
        decoder.feed(chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f"}}]))
        arguments_chunk = chunk(tool_calls=[{"index": 0, "function": {"arguments": pieces}}])
        assert arrived(decoder, [arguments_chunk] * 100) >= 100
    block_delta = {"type": "content_block_delta", "index": 0}
    tool = {"type": "tool_use", "id": "a", "name": "b"}
    start = {"type": "content_block_start", "index": 0, "content_block": tool}
    blank = {**block_delta, "delta": {"type": "input_json_delta", "partial_json": " "}}
    reads = [b"data: %b\n\n" % json.dumps(piece).encode() for piece in (start, *[blank] * 100)]
    assert arrived(MessagesDecoder(), reads) >= 100


def _seconds(work: Iterable[object]) -> float:
    start_time = time.process_time()
    for _ in work:
        pass
    return time.process_time() - start_time


@pytest.mark.parametrize(
    "pieces", [" ", "]", "}", "{}", ",{}", '"}"'], ids=["blank", "]", "}", "{}", ",{}", "string"]
)
def test_pieces_after_a_calls_arguments_take_linear_time(pieces: str) -> None:
    """A call's arguments are parsed once, not again with each later piece.

    With a parse for each piece, 200,000 blanks took 16 s.
    """
    calls, out = CallAssembler(), PartBuilder()
    calls.add_fragment(0, "call_1", "f", json.dumps({"a": ["x"] * 20_000}), out)
    start_time = time.process_time()
    for _ in range(20_000):
        calls.add_fragment(0, "", "", pieces, out)
    assert time.process_time() - start_time < 3.0


def test_name_with_each_piece_of_a_call_takes_linear_time() -> None:
    """Arguments are compared with earlier ones only where they may be repeated."""
    calls, out = CallAssembler(), PartBuilder()
    start_time = time.process_time()
    for _ in range(40_000):
        calls.add_fragment(0, "call_1", "f", "x" * 50, out)
    assert time.process_time() - start_time < 3.0


@pytest.mark.parametrize("arguments", ['{"a":' + "[" * 5_000 + "]" * 5_000 + "}", '{"\ud800": 1}'])
def test_unparsable_arguments_are_passed_on(arguments: str) -> None:
    """Arguments that are too deep or hold half a character are passed on unchanged."""
    calls, out = CallAssembler(), PartBuilder()
    for pieces in (arguments, " ", "{}"):
        calls.add_fragment(0, "call_1", "f", pieces, out)
    calls.finish(out)
    assert out.build(ended=True).events[-1].arguments == arguments + " {}"  # type: ignore[union-attr]


@pytest.mark.parametrize("prefix", [" ", "\n", " \n"])
def test_blanks_at_a_seam_take_linear_time(prefix: str) -> None:
    """Blanks after an answer that ends in many blanks take linear time."""
    blank = prefix * (60_000 // len(prefix))
    seam = ContinuationJoiner(f"a{blank}")
    output = ""
    seconds = _seconds(seam.feed(character) for character in blank[:-1] + "\t")
    assert seconds < 3.0
    output = seam.feed("b")
    assert output.endswith("b")


def test_note_filter_takes_linear_time_for_brackets() -> None:
    """Brackets, of which most begin no note, take linear time."""
    notes = NoteFilter(lambda: False, str)
    seconds = _seconds(notes.feed("[" * 64) for _ in range(8_000))
    assert seconds < 4.0


def test_long_line_takes_linear_time() -> None:
    """A long line is not scanned again with each piece or mark in it."""
    for piece in ("x", "`", '"', "<", "</think> "):
        decoder = ChatDecoder()
        reads = [chunk(content="a")] + [chunk(content=piece * 1_000)] * 2_000
        seconds = _seconds(map(decoder.feed, reads))
        assert seconds < 5.0, piece


# --- one event, and one turn ----------------------------------------------------------------------


def _in_reads(body: bytes) -> Iterable[bytes]:
    return (body[at : at + READ_SIZE] for at in range(0, len(body), READ_SIZE))


@pytest.mark.parametrize(
    "item", [b"[],", b'{"a":1},', b"1,", b'"a",'], ids=["lists", "objects", "numbers", "texts"]
)
@pytest.mark.parametrize("framed", [True, False])
def test_event_with_too_many_values_is_refused_unparsed(item: bytes, framed: bool) -> None:
    """An event of too many values is an invalid stream, before any object is made.

    After the finish reason it takes nothing from the answer.
    """
    count = 6_000_000 // len(item)
    event_start = b'{"choices":[{"index":0,"delta":{"x":['
    event = (b"data: " if framed else b"") + event_start + item * count + b"1]}}]}\n\n"
    start_time = time.process_time()
    with pytest.raises(UpstreamError) as fault:
        list(map(ChatDecoder().feed, _in_reads(event)))
    assert fault.value.code == "upstream_invalid"
    assert time.process_time() - start_time < 2.0
    finished = ChatDecoder()
    end = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    parts = [finished.feed(b"data: %b\n\n" % json.dumps(end).encode()), finished.feed(event)]
    assert ("".join(part.text for part in parts), finished.ended) == ("Hi", True)


def test_image_of_20_megabytes_is_passed_on() -> None:
    """A data URL of 20 MB is one value and is passed on."""
    url = "data:image/png;base64," + "A" * 20_000_000
    part = ChatDecoder().feed(chunk(images=[url]))
    assert part.events[0].delta["images"] == [url]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "line", [b"x\n", b"<p>\n", b"data:\n", b":\n", b"{}\n", b"data: x\n\n", b"event: a\n", b"\r"]
)
def test_short_lines_are_decoded_in_batches_of_lines_max(line: bytes) -> None:
    """A read of short lines is split in batches, so that other streams proceed."""
    rest, batch_count = line * (65_536 // len(line)), 0
    joined_batches = b""
    while rest:
        batch, rest = split_batch(rest)
        assert batch
        assert batch.count(b"\n") <= LINES_MAX
        joined_batches += batch
        batch_count += 1
    assert joined_batches == line * (65_536 // len(line))
    assert batch_count >= joined_batches.count(b"\n") // LINES_MAX


def test_batch_ends_after_a_whole_event() -> None:
    """A batch ends after a whole event where it can, since that costs less to decode."""
    event = chunk(content="a")
    batch, rest = split_batch(b"a\n\n" + event * 1_000)
    assert batch.endswith(b"\n\n")
    assert rest.startswith(b"data: ")
    text = "".join(part.text for part in map(ChatDecoder().feed, [batch.removeprefix(b"a\n\n")]))
    assert set(text) == {"a"}


# --- random bytes ---------------------------------------------------------------------------------

NUMBERS = {
    "huge": b"1e999999",
    "minus": b"-1e999999",
    "digits": b"9" * 100_000,
    "fraction": b"0." + b"1" * 100_000,
    "exponent": b"1e" + b"9" * 5_000,
    "infinity": b"-Infinity",
    "nan": b"NaN",
    "deep": b"[" * 100_000,
    "closed": b"[" * 50_000 + b"]" * 50_000,
    "objects": b'{"data":' * 400 + b"1" + b"}" * 400,
    "lists": b"[" * 900 + b"]" * 900,
}
NAMES = [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf0\x9f",
    b"\\ud83d",
    b"\\udc80",
    b"\\u0000",
    b"\0",
]
CHAT = [
    b'{"choices":[{"index":0,"delta":{"content":"hi","K":V}}]}',
    b'{"K":V,"choices":[{"index":V,"finish_reason":"K","delta":{"content":"K"},"K":V}]}',
    b'{"choices":[{"index":0,"delta":{"content":V}}],"model":"K","usage":{"K":V,"total_tokens":V}}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":V,"id":"K","function":{"name":"K",'
    b'"arguments":"K"},"K":V}]}}]}',
    b'{"error":{"message":"K","code":V,"K":V,"retry_after":V}}',
    b'{"data":V}',
    b'{"error":"K"}',
    b'"K"',
    b"V",
    b"{'error': 'K', 'code': V}",
]
ANTHROPIC = [
    b'{"type":"message_start","message":{"model":"K","K":V,"usage":{"K":V,"input_tokens":V}}}',
    b'{"type":"content_block_start","index":V,"content_block":{"type":"K","text":"K","K":V}}',
    b'{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"K",'
    b'"name":"K","input":{"K":V}}}',
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":V,"K":V}}',
    b'{"type":"content_block_delta","index":0,"delta":{"citation":{"url":"K","title":V,"K":V}}}',
    b'{"type":"message_delta","delta":{"stop_reason":"K"},"usage":{"output_tokens":V,"K":V}}',
    b'{"type":"K","error":{"K":V}}',
]


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_any_bytes_give_deltas_or_an_upstream_error(value: bytes) -> None:
    """Any value gives deltas or an UpstreamError, which can be encoded as JSON."""
    for kind, shapes in ((ChatDecoder, CHAT), (MessagesDecoder, ANTHROPIC)):
        for name in NAMES if value == NUMBERS["huge"] else NAMES[:1]:
            for shape in shapes:
                event = shape.replace(b"V", value).replace(b"K", name)
                for frame in (b"data: %b\n\n", b"%b\n", b"event: error\ndata: %b\n\n"):
                    _play(kind(), frame % event)


def _play(decoder: EventDecoder, raw: bytes) -> None:
    try:
        for part in (decoder.feed(b"\n"), decoder.feed(raw), decoder.end()):
            for event in part.events:
                encode(event)
    except UpstreamError as fault:
        encode([fault.message, fault.detail])
    encode([decoder.usage, decoder.model, decoder.finish_reason, decoder.opaque])


def test_reasoning_is_split_off_a_long_text() -> None:
    """Reasoning is split off a long text that is scanned in slices."""
    text = "<think>" + "t " * 50_000 + "</think>\n\n" + "a\n" * 50_000
    part = ChatDecoder().feed(chunk(content=text))
    assert part.text == "a\n" * 50_000
    assert sum(isinstance(event, Content) for event in part.events) == 1

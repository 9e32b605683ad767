"""Continue: the request for the rest of an answer, and the joined text without a seam."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.config.providers import Kind, ModelSettings, ProviderSettings
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.events import Content, Done, Extra, Reasoning, ReasoningEnd, ToolCall
from halt.core.request import (
    ChatRequest,
    Message,
    Part,
    ToolTurn,
    Unfinished,
    Upstream,
    openai_call,
    unfinished,
)
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.errors import RequestError, UpstreamError
from halt.providers import openai as module
from halt.providers.base import Provider
from halt.providers.continuation import (
    ContinuationReply,
    by_instruction,
    continuation_request,
    merge_unfinished,
)
from halt.providers.continuation_joiner import LEAD_MAX, WINDOW, ContinuationJoiner, last_words
from halt.providers.factory import make_provider
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record
from tests.support.embedded_master import Master
from tests.support.provider_answers import KEY, Answer, read
from tests.support.scripted_upstream import HI, Reader, ScriptedReply

#: Texts that are typical of models, and random ones.
WORDS = st.lists(
    st.sampled_from(
        [
            *(
                "the ",
                "cat ",
                "sat. ",
                "on",
                "\n",
                "\n\n",
                "- item ",
                "```",
                "```python\n",
                "3.14 ",
            ),
            *(
                "x = 1\n    ",
                "中文字符",
                "e\u0301a\u0308 ",
                "👩\u200d👩\u200d👧",
                "\u05d0\u05d1 ",
                "\u00a0",
            ),
            *("**bold** ", "| a | b |\n"),
        ]
    ),
    min_size=1,
    max_size=60,
).map("".join)
TEXTS = st.one_of(WORDS, st.text(max_size=300), st.text("ab \n", max_size=300))


def joined(prefix: str, pieces: list[str], **options: bool) -> str:
    """The prefix and the text that the joiner passes on of these new pieces."""
    joiner = ContinuationJoiner(prefix, **options)
    return prefix + "".join(joiner.feed(piece) for piece in pieces) + joiner.end()


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A text that was cut anywhere behind its first visible character."""
    text = draw(TEXTS.filter(str.strip))
    first_cut = len(text) - len(text.lstrip()) + 1
    cut = draw(st.integers(first_cut, len(text)))
    return text[:cut], text[cut:]


@st.composite
def in_pieces(draw: st.DrawFn, text: str) -> list[str]:
    """A text as it arrives, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# --- the seam -------------------------------------------------------------------------------------


@given(st.data(), cut_texts())
@example(None, ("a" * 50, "a" * 50))
def test_repeated_last_words_leave_no_seam(data: Any, cut: tuple[str, str]) -> None:
    """Any cut and any pieces of a repeat of the last words give the original text."""
    prefix, rest = cut
    visible = prefix.rstrip()
    new_text = last_words(visible) + prefix[len(visible) :] + rest
    pieces = data.draw(in_pieces(new_text)) if data else list(new_text)
    assert joined(prefix, pieces, repeats=True) == prefix + rest


@given(st.data(), cut_texts())
def test_longer_repeat_leaves_no_seam(data: st.DataObject, cut: tuple[str, str]) -> None:
    """A repeat may begin before the last words, if these occur once in the window."""
    prefix, rest = cut
    visible = prefix.rstrip()
    tail = last_words(visible)
    max_size = min(len(visible), WINDOW)
    size = data.draw(st.integers(len(tail), max_size))
    repeat = visible[-size:]
    if visible[-WINDOW:].count(tail) > 1:  # in several places the requested words count
        return
    new_text = repeat + prefix[len(visible) :] + rest
    assert joined(prefix, data.draw(in_pieces(new_text)), repeats=True) == prefix + rest


@given(st.data(), cut_texts())
def test_continued_prefix_leaves_no_seam(data: st.DataObject, cut: tuple[str, str]) -> None:
    """White space that was cut from the prefix is taken from the model's text."""
    prefix, rest = cut
    new_text = prefix[len(prefix.rstrip()) :] + rest
    assert joined(prefix, data.draw(in_pieces(new_text))) == prefix + rest


@given(st.data(), cut_texts())
def test_echoed_prefix_is_shown_once(data: st.DataObject, cut: tuple[str, str]) -> None:
    """A prefix that the model repeats, as Mistral's do, is shown once."""
    prefix, rest = cut
    assert joined(prefix, data.draw(in_pieces(prefix + rest)), echoes=True) == prefix + rest


@given(cut_texts(), st.text(max_size=400), st.booleans())
def test_joiner_drops_nothing_but_a_repeat(
    cut: tuple[str, str], new_text: str, repeats: bool
) -> None:
    """The joiner drops nothing but a repeat: its text is an end of the new text, with blanks
    between at most.
    """
    prefix, _ = cut
    added_text = joined(prefix, [new_text], repeats=repeats)[len(prefix) :]
    assert new_text.endswith(added_text.lstrip())


@given(cut_texts(), st.text("abc d\n", min_size=1, max_size=900))
def test_joiner_holds_back_a_few_hundred_characters(cut: tuple[str, str], new_text: str) -> None:
    """The joiner passes text that is no repeat on within a few hundred characters."""
    seam = ContinuationJoiner(cut[0], repeats=True)
    added_text = "".join(seam.feed(char) for char in new_text)
    assert len(new_text) - len(added_text) <= WINDOW + LEAD_MAX + 200


def test_repeat_of_a_whole_long_answer_is_dropped() -> None:
    """A repeat of a long answer is dropped in linear time."""
    prefix = "".join(f"{number} is a number, and so on.\n" for number in range(5_000)).rstrip()
    pieces = [(prefix + " The end.")[start : start + 4] for start in range(0, len(prefix) + 9, 4)]
    assert joined(prefix, pieces, repeats=True) == prefix + " The end."
    assert joined(prefix, pieces, echoes=True) == prefix + " The end."


def test_restart_of_a_long_answer_is_kept() -> None:
    """Text that only begins like the old answer is kept."""
    prefix = "".join(f"{number} is a number, and so on.\n" for number in range(100)).rstrip()
    new_text = prefix[:2000] + "But no."
    pieces = [new_text[start : start + 4] for start in range(0, len(new_text), 4)]
    assert joined(prefix, pieces, echoes=True) == prefix + new_text
    assert joined(prefix, pieces, repeats=True).endswith(new_text)


@pytest.mark.parametrize(
    ("prefix", "new_text", "expected"),
    [
        # No repeat: a blank where words would run together, and none where one is there.
        ("The cat sat on", "the mat.", "The cat sat on the mat."),
        ("The cat sat on ", "the mat.", "The cat sat on the mat."),
        ("The cat sat on", " the mat.", "The cat sat on the mat."),
        ("The cat sat.", "It slept.", "The cat sat. It slept."),
        ("A computer? This comput", "er is", "A computer? This computer is"),
        ("He is into it, or in", "to it", "He is into it, or into it"),
        ("He is in, into it, or in", "to it", "He is in, into it, or in to it"),
        ("It is 3.", "14 or so", "It is 3.14 or so"),
        ("In 19", "84 it", "In 1984 it"),
        ("你好", "世界", "你好世界"),
        ("- one\n- two", "- three", "- one\n- two\n- three"),
        ("The end.", "## More", "The end.\n\n## More"),
        ("a `code", "` b", "a `code` b"),
        # A short repeat of whole words, and of a word that was cut.
        ("The cat sat on the", "the mat.", "The cat sat on the mat."),
        ("The cat uses a comput", "computer.", "The cat uses a computer."),
        ("Take an", "another one", "Take an another one"),
        # In front of the repeat: an introduction, quotation marks, three points, a new fence.
        ("Once there was a small cat", "Sure! Here I go on:\n\nOnce there was a small cat that", "Once there was a small cat that"),
        ("Once there was a small cat", '"Once there was a small cat that', "Once there was a small cat that"),
        ("Once there was a small cat", "…Once there was a small cat that", "Once there was a small cat that"),
        ("```python\ndef main():\n    total = 0", "```python\n    total = 0\n    return", "```python\ndef main():\n    total = 0\n    return"),
        ("```python\ndef main():\n", "```python\n    return 1", "```python\ndef main():\n    return 1"),
        ("```python\nx = 1", "```python\ny = 2", "```python\nx = 1\ny = 2"),
        ("```python\nx = 1\n", "```\nThat is all.", "```python\nx = 1\n```\nThat is all."),
        # The model repeats the requested words, and then ends.
        ("Once there was a small cat", "Once there was a sm", "Once there was a small cat"),
    ],
)  # fmt: skip
def test_joiner_guesses_the_seam_without_a_proper_repeat(
    prefix: str, new_text: str, expected: str
) -> None:
    """Without the requested repeat, the most likely seam is chosen."""
    assert joined(prefix, [new_text], repeats=True) == expected
    assert joined(prefix, list(new_text), repeats=True) == expected


@pytest.mark.parametrize(
    ("prefix", "new_text", "expected"),
    [
        ("A line.\n", " Another", "A line.\nAnother"),
        ("A line.\n\n", "\n\nAnother", "A line.\n\nAnother"),
        ("A line.\n", "\n\nAnother", "A line.\n\nAnother"),
        ("A line. ", "\n\nAnother", "A line. \n\nAnother"),
        ("if x:\n", "\n    y()", "if x:\n    y()"),
        ("if x:\n  ", "\n    y()", "if x:\n    y()"),
        ("A word ", "and", "A word and"),
        ("A line.\n\n", "\nAnother", "A line.\n\nAnother"),
        ("if x:\n  ", "\ny()", "if x:\n  \ny()"),
        ("A word", "s", "A words"),
        ("A word \n", " \n ", "A word \n "),
    ],
)
def test_white_space_at_a_prefix_occurs_once(prefix: str, new_text: str, expected: str) -> None:
    """White space at a prefix occurs once, as in the model's text, where it was shown before."""
    assert joined(prefix, [new_text]) == expected
    assert joined(prefix, list(new_text)) == expected


def test_instruction_asks_for_the_last_words_and_no_visible_seam() -> None:
    """The instruction has exactly these words: a change of them changes how well models
    continue.
    """
    request = by_instruction(continuation_request(ChatRequest(HI), "One two "))
    answer, instruction = request.messages[-2:]
    assert (answer.role, answer.content) == ("assistant", "One two")
    assert (instruction.role, instruction.content) == (
        "user",
        "Your last message broke off. Go on with it exactly where it ends, in the same language, "
        "style and format, so that both are one text without a seam.\n"
        "Begin with a repeat, character for character, of its last words, which are:\n\n"
        "One two\n\n"
        "and go on from there at once, also within a word, a line, a list, a table or a block of "
        "code. Write no introduction, no comment, no quotation marks and no new code fence; repeat "
        "nothing else.",
    )


@given(TEXTS.map(str.rstrip).filter(bool))
def test_last_words_are_an_end_without_outer_blanks(text: str) -> None:
    """`last_words` returns an end of the text without outer blanks, at most WINDOW long."""
    tail = last_words(text)
    assert text.endswith(tail)
    assert tail == tail.strip()
    assert len(tail) <= WINDOW


def test_last_words_are_unique_in_the_text() -> None:
    """In a list of similar lines the last words are as long as they must be to be unique."""
    text = "".join(f"{number}. a line like all the others\n" for number in range(9)).rstrip()
    assert "8. a line" in last_words(text)
    assert text.count(last_words(text)) == 1


# --- the reply ------------------------------------------------------------------------------------


@pytest.fixture
def reply() -> Iterator[ScriptedReply]:
    scripted_reply = ScriptedReply()
    yield scripted_reply
    scripted_reply.dispose()


OLD = "Once there was a small cat"


def test_held_back_pieces_are_counted_when_shown(reply: ScriptedReply) -> None:
    """Pieces that are held back count as soon as their text is shown."""
    joined_reply = ContinuationReply(reply, ContinuationJoiner(OLD, repeats=True))
    reply.feed("there was a ", "small cat", " that", " slept")
    parts = [joined_reply.read() for _ in range(4)]
    assert [part.text for part in parts] == ["", "", " that", " slept"]
    assert [part.chunks for part in parts] == [0, 0, 3, 1]


def test_reasoning_passes_and_calls_follow_held_back_text(reply: ScriptedReply) -> None:
    """Reasoning is passed on at once; a call comes after the text that was held back."""
    joined_reply = ContinuationReply(reply, ContinuationJoiner(OLD, repeats=True))
    thought, call, fields = Reasoning("hm"), ToolCall("1", "add", "{}"), Extra({"citations": []})
    reply.feed(Part((thought, Content("Let me see"), fields), 2), Part((call,), 1, ended=True))
    assert joined_reply.read().events == (thought, fields)
    assert joined_reply.read().events == (Content(" Let me see"), call)


def test_seam_is_after_a_late_reasoning_end(reply: ScriptedReply) -> None:
    """If only the end of new reasoning is marked, the seam is after that mark."""
    joined_reply = ContinuationReply(reply, ContinuationJoiner(OLD, repeats=True))
    reply.feed("I go on", Part((Content(" here."), ReasoningEnd(), Content("a small cat")), 3))
    reply.feed(" that", " slept")
    events = [event for _ in range(4) for event in joined_reply.read().events]
    assert events == [
        Content(" I go on here."), ReasoningEnd(), Content(" that"), Content(" slept"),
    ]  # fmt: skip


def test_held_back_text_comes_before_a_fault(reply: ScriptedReply) -> None:
    """Text that was held back when the server failed comes before the fault."""
    joined_reply = ContinuationReply(reply, ContinuationJoiner(OLD, repeats=True))
    reply.feed("Well", UpstreamError("upstream_dropped"))
    assert joined_reply.read().events == ()
    assert joined_reply.read().text == " Well"
    with pytest.raises(UpstreamError) as caught:
        joined_reply.read()
    assert caught.value.code == "upstream_dropped"


# --- the request ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_continuation_of_an_empty_answer_is_refused(text: str) -> None:
    """An answer without visible text cannot be continued."""
    with pytest.raises(RequestError, match="no text"):
        continuation_request(ChatRequest(HI), text)


def test_last_assistant_message_of_a_client_is_no_continuation() -> None:
    """A client's last assistant message is passed on as it is."""
    request = ChatRequest([*HI, Message("assistant", "Once")])
    assert unfinished(request) == ""
    assert unfinished(continuation_request(ChatRequest(HI), "Once ")) == "Once "


def test_tool_calls_in_a_continuation_join_one_assistant_message() -> None:
    """Text before and after the seam is one message when tool results are sent."""
    call, back = ToolCall("1", "add", "{}"), {"content": "<think>", "reasoning": "Hm."}
    tool_turn = ToolTurn("there", [call], back)
    messages = merge_unfinished([*HI, Unfinished("Once", "Once"), tool_turn])
    assert [(message.role, message.content) for message in messages] == [
        ("user", "hi"),
        ("assistant", "Once there"),
    ]
    assert messages[1]["tool_calls"] == [openai_call(call)]
    assert isinstance(messages[1], ToolTurn)
    assert messages[1].opaque == {"reasoning": "Hm."}
    assert tool_turn.opaque == back


# --- providers ------------------------------------------------------------------------------------

TEXT = """\
# A tale of two servers

They were *young*, and the one said to the other: "Who am I?" Nobody knew it then.

```python
def answer(question: str) -> str:
    return question.upper()
```

- one, and then
- two 中文字符 👩\u200d👩\u200d👧.
"""

Make = Callable[..., Upstream]


@pytest.fixture
def fake_with_text(fake: FakeOpenAI) -> FakeOpenAI:
    fake.texts["tale"] = TEXT
    return fake


@pytest.fixture
def make(fake_with_text: FakeOpenAI) -> Iterator[Make]:
    """Providers of any kind that ask the fake; closed at the end."""
    upstreams: list[Upstream] = []

    def make(kind: Kind = "openai", style: str = "tail", **settings: Any) -> Upstream:
        base_url = fake_with_text.base_url if kind == "openai" else fake_with_text.origin
        model = f"go_on?key=tale&style={style}"
        defaults: dict[str, Any] = {"name": kind, "kind": kind, "base_url": base_url, "key": KEY}
        defaults |= {"api_version": "2024-10-21", "default_model": model}
        upstreams.append(make_provider(ProviderSettings(**defaults | settings)))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        upstream.close()


CUTS = [1, 24, 25, 60, 108, TEXT.index("def") + 2, TEXT.index("return") - 2, len(TEXT) - 8]


def ask(upstream: Upstream, request: ChatRequest) -> Answer:
    """The text of the answer, or its fault."""
    try:
        return read(upstream.open(request, UpstreamConnection()))
    except UpstreamError as fault:
        return Answer(fault=fault)


def rest_of(upstream: Upstream, cut: int) -> str:
    """What a model adds to the beginning of the text."""
    return ask(upstream, continuation_request(ChatRequest(HI), TEXT[:cut])).text


def completions(fake: FakeOpenAI) -> list[Record]:
    return [request for request in fake.requests if request.method == "POST"]


def roles(record: Record) -> list[str]:
    return [message["role"] for message in record.body["messages"]]


@pytest.mark.parametrize("style", ["tail", "more", "all", "lead"])
@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
def test_every_provider_continues_by_instruction(make: Make, kind: Kind, style: str) -> None:
    """Every provider continues by instruction after its last word, whatever part of the text the
    model repeats.
    """
    upstream = make(kind, style, continues="instruction")
    for cut in CUTS:
        assert TEXT[:cut] + rest_of(upstream, cut) == TEXT


def test_instruction_has_the_answer_and_its_last_words(
    make: Make, fake_with_text: FakeOpenAI
) -> None:
    """The answer is the assistant's message; the instruction quotes its last words."""
    rest_of(make(continues="instruction"), 60)
    record = completions(fake_with_text)[0]
    assert roles(record) == ["user", "assistant", "user"]
    assert record.body["messages"][1]["content"] == TEXT[:60].rstrip()
    assert last_words(TEXT[:60].rstrip()) in record.body["messages"][2]["content"]


def test_continuation_without_a_repeat_gets_a_blank(make: Make) -> None:
    """If the model repeats nothing, the missing blank is added."""
    upstream = make(style="nothing", continues="instruction")
    for cut in (TEXT.index("*young*"), TEXT.index(" said")):
        assert TEXT[:cut] + rest_of(upstream, cut) == TEXT


@pytest.mark.parametrize("owner", ["llamacpp", "vllm"])
def test_llamacpp_and_vllm_are_known_by_their_list_and_get_a_prefix(
    make: Make, fake_with_text: FakeOpenAI, owner: str
) -> None:
    """llama.cpp and vLLM are recognised by their list, requested once, and get the answer so far as
    last message.
    """
    fake_with_text.owner = owner
    upstream = make()
    for cut in CUTS:
        assert TEXT[:cut] + rest_of(upstream, cut) == TEXT
    requests = completions(fake_with_text)
    assert len(fake_with_text.requests) == len(requests) + 1
    assert all(roles(record) == ["user", "assistant"] for record in requests)
    assert all(
        record.body.get("continue_final_message", False) == (owner == "vllm") for record in requests
    )
    assert all(
        record.body.get("add_generation_prompt", True) == (owner != "vllm") for record in requests
    )
    assert all("prefix" not in record.body["messages"][-1] for record in requests)


def test_unknown_server_is_continued_by_instruction(make: Make, fake_with_text: FakeOpenAI) -> None:
    """An unknown server is continued by instruction: it may take a last assistant message for a
    finished answer.
    """
    rest_of(make(), 60)
    assert roles(completions(fake_with_text)[0]) == ["user", "assistant", "user"]


@pytest.mark.parametrize("prefix_style", ["echoed", "flagged"])
def test_mistral_and_deepseek_get_a_marked_prefix(
    make: Make, fake_with_text: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, prefix_style: str
) -> None:
    """Mistral and DeepSeek get a marked prefix without a list; only Mistral's answer begins with
    it.
    """
    monkeypatch.setattr(module, "HOSTS", {"127.0.0.1": prefix_style})
    new_upstream = make(style="echo" if prefix_style == "echoed" else "tail")
    for cut in CUTS:
        assert TEXT[:cut] + rest_of(new_upstream, cut) == TEXT
    assert len(fake_with_text.requests) == len(CUTS)
    assert all(
        completion.body["messages"][-1]["prefix"] is True
        for completion in completions(fake_with_text)
    )


def test_deepseek_prefix_goes_to_its_beta_address(
    make: Make, fake_with_text: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a continuation goes to the beta address."""
    monkeypatch.setattr(module, "DEEPSEEK_BETA", fake_with_text.base_url)
    assert rest_of(make(base_url="https://api.deepseek.com/v1"), 60) == TEXT[60:]
    (record,) = fake_with_text.requests
    assert record.body["messages"][-1]["prefix"] is True


@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
@pytest.mark.parametrize(
    ("setting", "chosen", "is_prefixed"),
    [
        ("auto", "prefix", True),
        ("auto", "instruction", False),
        ("auto", "", False),
        ("instruction", "prefix", False),
        ("prefix", "instruction", True),
    ],
)
def test_choice_for_a_model_applies_where_the_setting_is_auto(
    make: Make,
    fake_with_text: FakeOpenAI,
    kind: Kind,
    setting: str,
    chosen: Literal["", "prefix", "instruction"],
    *,
    is_prefixed: bool,
) -> None:
    """How a model continues can be chosen for it; what the provider's settings say wins."""
    upstream = make(kind, continues=setting)
    assert isinstance(upstream, Provider)
    upstream.use_models({upstream.known_model: ModelSettings(continues=chosen)})
    assert TEXT[:60] + rest_of(upstream, 60) == TEXT
    (record,) = completions(fake_with_text)
    assert roles(record) == ["user", "assistant"] + ([] if is_prefixed else ["user"])


@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
def test_refused_prefix_falls_back_to_instruction_for_later_requests(
    make: Make, fake_with_text: FakeOpenAI, kind: Kind
) -> None:
    """After one refused prefix, later continuations use the instruction at once."""
    upstream = make(kind, "tail&refuse=1", continues="prefix")
    for cut in CUTS[:2]:
        assert TEXT[:cut] + rest_of(upstream, cut) == TEXT
    words = ["user", "assistant", "user"]
    assert [roles(record) for record in completions(fake_with_text)] == [words[:2], words, words]


def test_refusal_of_prefix_and_instruction_is_not_remembered(
    make: Make, fake_with_text: FakeOpenAI
) -> None:
    """If both are refused, the next continuation begins with the prefix again."""
    upstream = make(style="tail&refuse=2", continues="prefix")
    for _ in range(2):
        decoded_events = ask(upstream, continuation_request(ChatRequest(HI), TEXT[:60]))
        assert decoded_events.fault is not None
        assert decoded_events.fault.code == "bad_request"
    assert [len(roles(record)) for record in completions(fake_with_text)] == [2, 3, 2, 3]


@pytest.mark.parametrize(
    ("model", "effort", "prefixed"),
    [
        ("claude-haiku-4-5", None, True),
        ("claude-haiku-4-5-20251001", None, True),
        ("claude-3-5-sonnet-latest", None, True),
        ("claude-opus-4-1-20250805", "none", True),
        ("claude-opus-4-1-20250805", "high", False),
        ("claude-opus-4-6", None, False),
        ("claude-sonnet-5", None, False),
        ("another", None, False),
    ],
)
def test_anthropic_prefix_depends_on_model_and_effort(
    make: Make, fake_with_text: FakeOpenAI, model: str, effort: str | None, prefixed: bool
) -> None:
    """Older models without thinking get a prefix, without white space at its end."""
    upstream = make("anthropic", default_model=model)
    ask(upstream, continuation_request(ChatRequest(HI, reasoning_effort=effort), "Once \n"))
    messages = completions(fake_with_text)[0].body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"][
        : 2 if prefixed else 3
    ]
    assert messages[1]["content"] == [{"type": "text", "text": "Once"}]


def test_stopped_run_continues_to_the_whole_text(fake_with_text: FakeOpenAI, make: Make) -> None:
    """A run that is stopped and continued gives the whole text, each word once."""
    config = Config(base_url=fake_with_text.base_url, api_key=KEY)
    generations = GenerationService(config, make(style="tail&first=40"), StopRegistry())
    run = generations.start(ChatRequest(HI))
    reader = Reader(run)
    reader.wait_text(TEXT[:40])
    generations.stop(run.key)
    reader.finish()
    stopped_text = run.answer()[1]
    assert stopped_text == TEXT[:40]
    second_run = generations.start(continuation_request(ChatRequest(HI), stopped_text))
    events = Reader(second_run).finish()
    assert second_run.prefix == stopped_text
    assert second_run.answer()[1] == TEXT
    assert isinstance(events[-1][1], Done)
    generations.close()


def test_demo_model_continues_its_answer(running: Master) -> None:
    """The embedded model's server is known by its list and continues the message."""
    settings = ProviderSettings(
        name="demo", kind="openai", base_url=running.base_url, key=running.key
    )
    upstream = make_provider(settings)
    request = ChatRequest([Message("user", "Count from 1 to 20.")], max_tokens=24, temperature=0)
    text = "1, 2, 3, 4, 5, 6, 7, "
    decoded_events = ask(upstream, continuation_request(request, text))
    upstream.close()
    assert decoded_events.fault is None
    assert decoded_events.text.startswith("8, 9"), decoded_events.text
    assert json.dumps(text + decoded_events.text)  # whole characters only


def test_interrupted_connection_sends_no_request_of_a_continuation(
    make: Make, fake_with_text: FakeOpenAI
) -> None:
    """An interrupt prevents every request of a continuation: the list, a refused prefix and the
    second way.
    """
    fake_with_text.owner = "llamacpp"
    connection = UpstreamConnection()
    connection.interrupt()
    with pytest.raises(Exception, match="stopped"):
        make().open(continuation_request(ChatRequest(HI), "Once"), connection)
    assert fake_with_text.requests == []

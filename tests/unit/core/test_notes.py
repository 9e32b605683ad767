"""Notes about unfinished answers: removed where a model imitates them, and nowhere else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.events import Content, Reasoning
from halt.core.notes import (
    BROKEN,
    EDITED,
    NOTES,
    STOPPED,
    NoteFilter,
    are_discussed,
    without_notes,
)

OLD = "[The user stopped this answer here.]"


def filtered(pieces: list[str], *, is_discussed: bool = False, earlier_text: str = "") -> str:
    """The shown text of an answer in these pieces."""
    texts = [earlier_text]

    def last_line() -> str:
        return "".join(texts).rpartition("\n")[2]

    notes = NoteFilter(lambda: is_discussed, last_line)
    for piece in pieces:
        texts.append(notes.feed(piece))
    texts.append(notes.end())
    return "".join(texts[1:])


REMOVED = [
    (f"Hello.\n\n{OLD}", "Hello.\n\n"),
    (f"Hello. {OLD}", "Hello. "),
    (f"Hello.\n{OLD}\n\n ", "Hello.\n\n "),
    (f"Hello.\n\n{STOPPED}\n\nMore.", "Hello.\n\n\nMore."),
    (f"{BROKEN}\n\nHello.", "\nHello."),
    (f"{EDITED}\n\nHello.", "\nHello."),
    (f"a\n  {OLD}  \nb", "a\n  b"),
    (f"a\n{OLD}\n{OLD}\nb", "a\nb"),
    ("Hello.\n[the user STOPPED this answer here]", "Hello.\n"),
    (f"x [ [a] {OLD}", "x [ [a] "),
    (f"[[The user stopped this {OLD}", "[[The user stopped this "),
    (OLD, ""),
]
KEPT = [
    "Hello.",
    "A [link](https://example.org), a list[0] and [The user] itself",
    f"It says “{OLD}”.",
    f'"{OLD}"',
    f"`{OLD}`",
    f"The note {OLD} means that you pressed Stop.",
    f"{OLD} is what it says.",
    f"Text {OLD}\nmore text",
    "[The user stopped this answer there.]",
    "[",
    "[Note: the user stopped",
    "",
]


@pytest.mark.parametrize(("text", "expected"), [*REMOVED, *((text, text) for text in KEPT)])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_note_filter_removes_a_note_at_the_end_or_alone_on_a_line(
    text: str, expected: str, size: int
) -> None:
    """A note is removed however it is cut into pieces; in quotes and within a sentence it stays."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert filtered(pieces) == expected


@pytest.mark.parametrize("text", [text for text, _ in REMOVED])
def test_note_filter_in_a_talk_about_notes_removes_none(text: str) -> None:
    """If the prompt is about the note, every note in the answer stays."""
    assert filtered([text], is_discussed=True) == text


def test_note_filter_regards_text_before_the_first_piece() -> None:
    """Text that came before, in this part or an earlier one, belongs to the line."""
    assert filtered([f"{OLD}\nb"], earlier_text="a ") == f"{OLD}\nb"
    assert filtered([f"{OLD}\nb"], earlier_text="a\n") == "b"


@given(st.lists(st.sampled_from([*NOTES, "[", "]", "\n", " ", "a", "[The user ", "[Note: "])))
def test_note_filter_result_does_not_depend_on_the_pieces(pieces: list[str]) -> None:
    """Property: what is removed depends on the text alone."""
    text = "".join(pieces)
    assert filtered(pieces) == filtered([text]) == filtered(list(text))


def test_note_filter_releases_held_text_before_thoughts_and_in_silence() -> None:
    """Held text comes before a later event, and a link's bracket is not held for ever."""
    notes = NoteFilter(lambda: False, str)
    assert notes.filtered([Content("a [The user"), Reasoning("hm")]) == [
        Content("a "),
        Content("[The user"),
        Reasoning("hm"),
    ]
    assert notes.feed("a [") == "a "
    assert notes.waited() == "["
    assert notes.feed(f"a {OLD}") == "a "
    assert notes.waited() == ""
    assert notes.end() == ""


def test_are_discussed_is_true_for_notes_of_the_user() -> None:
    """Notes of the user make `are_discussed` true; a note that Halt put before the prompt
    does not.
    """
    assert not are_discussed(
        ["Hello", f"{STOPPED}\n\nGo on.", f"{BROKEN}\n\nGo on.", f"{EDITED}\n\nGo on."]
    )
    assert are_discussed([f"What is {OLD}?"])
    assert are_discussed([f"{STOPPED}\n\nWhat is {STOPPED}?"])


@pytest.mark.parametrize(("text", "expected"), [*REMOVED, *((text, text) for text in KEPT)])
def test_without_notes_removes_the_same_from_a_whole_text(text: str, expected: str) -> None:
    """A whole text loses the same notes as one in pieces."""
    assert without_notes(text).split() == expected.split()


def test_without_notes_of_many_blanks_takes_bounded_time() -> None:
    """200,000 blanks before a note take under a second of CPU time."""
    start = time.thread_time()
    assert without_notes(f"{' ' * 200_000}x{STOPPED}").strip() == "x"
    assert time.thread_time() - start < 1

"""Notes about answers that are not whole: cut where a model imitates them, and nowhere else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.events import Content, Reasoning
from halt.core.notes import BROKEN, NOTES, STOPPED, NoteFilter, are_discussed, without_notes

OLD = "[The user stopped this answer here.]"


def through(pieces: list[str], *, discussed: bool = False, before: str = "") -> str:
    """What is shown of an answer in these pieces."""
    shown = [before]

    def last() -> str:
        return "".join(shown).rpartition("\n")[2]

    notes = NoteFilter(lambda: discussed, last)
    for piece in pieces:
        shown.append(notes.feed(piece))
    shown.append(notes.end())
    return "".join(shown[1:])


CUT = [
    (f"Hello.\n\n{OLD}", "Hello.\n\n"),
    (f"Hello. {OLD}", "Hello. "),
    (f"Hello.\n{OLD}\n\n ", "Hello.\n\n "),
    (f"Hello.\n\n{STOPPED}\n\nMore.", "Hello.\n\n\nMore."),
    (f"{BROKEN}\n\nHello.", "\nHello."),
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


@pytest.mark.parametrize(("text", "shown"), [*CUT, *((text, text) for text in KEPT)])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_note_is_cut_at_the_end_and_alone_on_a_line(text: str, shown: str, size: int) -> None:
    """However it comes in pieces; in quotes and within a sentence it stays."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert through(pieces) == shown


@pytest.mark.parametrize("text", [text for text, _ in CUT])
def test_a_note_that_is_talked_about_stays(text: str) -> None:
    """A user who asks about it gets answers about it."""
    assert through([text], discussed=True) == text


def test_what_stands_before_a_line_is_known() -> None:
    """Text that came before, perhaps in an earlier part, belongs to the line."""
    assert through([f"{OLD}\nb"], before="a ") == f"{OLD}\nb"
    assert through([f"{OLD}\nb"], before="a\n") == "b"


@given(st.lists(st.sampled_from([*NOTES, "[", "]", "\n", " ", "a", "[The user ", "[Note: "])))
def test_pieces_make_no_difference(pieces: list[str]) -> None:
    """What is cut depends on the text alone."""
    text = "".join(pieces)
    assert through(pieces) == through([text]) == through(list(text))


def test_thoughts_and_silence_let_go_of_what_is_held() -> None:
    """Text never comes behind what came after it, and a link's bracket is not held for ever."""
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


def test_prompts_that_are_about_notes() -> None:
    """Those that begin with one of ours are not."""
    assert not are_discussed(["Hello", f"{STOPPED}\n\nGo on.", f"{BROKEN}\n\nGo on."])
    assert are_discussed([f"What is {OLD}?"])
    assert are_discussed([f"{STOPPED}\n\nWhat is {STOPPED}?"])


@pytest.mark.parametrize(("text", "shown"), [*CUT, *((text, text) for text in KEPT)])
def test_saved_answers_are_told_without(text: str, shown: str) -> None:
    """The same, of a text that is whole."""
    assert without_notes(text).split() == shown.split()


def test_blanks_take_bounded_time() -> None:
    """An answer of blanks, or with a note behind a great many of them."""
    start = time.process_time()
    assert without_notes(f"{' ' * 200_000}x{STOPPED}").strip() == "x"
    assert time.process_time() - start < 1

"""One question through a pipe, and its answer as plain text."""

from __future__ import annotations

import contextlib
from typing import TextIO

from halt.chat.figures import answer_figures
from halt.cli.answer import STOPPED, TerminalAnswer, model_of
from halt.cli.screen import PlainScreen
from halt.cli.source import Source
from halt.core.events import Cancelled, Failed
from halt.core.request import ChatRequest
from halt.errors import HaltError, RequestError


def read_question(file: TextIO, longest: int, *, is_needed: bool = True) -> str:
    """The question from the standard input. Raises RequestError if it is too long.

    `is_needed`: an empty one is an error, too.
    """
    question = file.read(longest + 1).strip()
    if is_needed and not question:
        raise RequestError("The standard input has no question.")
    if len(question) > longest:
        raise RequestError(f"The question is longer than {longest:,} characters.")
    return question


def print_answer(
    source: Source, request: ChatRequest, out: TextIO, err: TextIO, *, metrics: bool, slow: bool
) -> int:
    """Print the answer as plain text; return the exit status."""
    screen = PlainScreen(out, err, quiet=True, typewriter=slow)
    try:
        outcome = TerminalAnswer(source, request, screen).run()
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        with contextlib.suppress(HaltError):
            source.stop(request.id or "", 0)
        raise
    ended, fault = outcome.ended, outcome.fault
    if fault or outcome.note:
        screen.note(fault or outcome.note, bad=bool(fault))
    if metrics:
        screen.note(" · ".join(answer_figures(ended, model_of(source, request))))
    if isinstance(ended, Cancelled):
        return STOPPED
    return 1 if fault or isinstance(ended, Failed) else 0

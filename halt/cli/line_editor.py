"""Reads the chat's input line, with a history file; keeps keys pressed during an answer for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from halt.cli.paths import completions
from halt.config.data_dir import make_folder, open_private

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

WITH_PATHS = frozenset({"/attach", "/save"})  # commands whose arguments are paths
HISTORY_MAX = 1_048_576  # bytes of the history file; half of it is kept when it grows beyond


@contextlib.contextmanager
def keys_kept_unread() -> Iterator[None]:
    """Keys pressed during the block are not echoed and stay unread for the next prompt.

    Ctrl-C still sends a signal. In the terminal's line mode Ctrl-D would be consumed as an end of
    input and never reach the prompt.
    """
    import termios  # noqa: PLC0415 - not on every platform

    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    quiet = list(before)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def input_line(history: Path | None, commands: list[str]) -> Callable[[str], str]:
    """A function that reads an edited line; the history is in this file (None: in memory)."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only where there is a terminal
    from prompt_toolkit.completion import (  # noqa: PLC0415
        CompleteEvent,
        Completer,
        Completion,
        WordCompleter,
    )
    from prompt_toolkit.document import Document  # noqa: PLC0415
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415
    from prompt_toolkit.output.vt100 import Vt100_Output  # noqa: PLC0415

    class PathsOrCommands(Completer):
        """Completes the paths of the commands that have some, and the commands."""

        words = WordCompleter(commands, sentence=True)

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            command, _, argument = document.text_before_cursor.partition(" ")
            if not argument and command not in WITH_PATHS:
                yield from self.words.get_completions(document, event)
            elif command in WITH_PATHS:
                for word, name, length in completions(argument):
                    yield Completion(word, -length, display=name)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    output = create_output()
    if isinstance(output, Vt100_Output):
        # Cursor position requests print a warning if the terminal answers late, and after Enter
        # they would consume a Ctrl-C that was meant for the answer.
        output.enable_cpr = False
    session: PromptSession[str] = PromptSession(
        "> ",
        output=output,
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=PathsOrCommands(),
        complete_while_typing=False,
        enable_history_search=True,
        key_bindings=keys,
    )
    return lambda draft: session.prompt(default=draft)


def plain_line(out: TextIO) -> Callable[[str], str]:
    """A function that reads a line without editing or history, if the output is no terminal."""

    def read(draft: str) -> str:
        out.write("> ")
        out.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read


def history_file(folder: Path) -> Path | None:
    """The history file, readable only by its owner; None if it cannot be written."""
    path = folder / "chat-history"
    try:
        make_folder(folder)
        with os.fdopen(open_private(path, os.O_RDWR | os.O_APPEND), "r+b") as file:
            if file.seek(0, os.SEEK_END) > HISTORY_MAX:
                file.seek(-HISTORY_MAX // 2, os.SEEK_END)
                newest_entries = file.read().partition(b"\n#")[2]  # from the beginning of an entry
                file.truncate(0)
                file.write(b"\n#" + newest_entries)
    except OSError:
        return None
    return path

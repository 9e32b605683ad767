"""The line that the user writes in, its history, and the keys pressed while an answer comes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from halt.config.data_dir import make_folder, open_private

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

HISTORY_MAX = 1_048_576  # bytes of the history file; half of it is kept when it grows beyond


@contextlib.contextmanager
def unread_keys() -> Iterator[None]:
    """Keys pressed meanwhile are kept for the next prompt as they are, and not shown.

    Ctrl-C is a signal still. Line by line the system would take Ctrl-D for an end of its own, and
    the prompt would never hear of it.
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
    """The line that the user writes in, with a history in this file (None: of this chat alone)."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only where there is a terminal
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415
    from prompt_toolkit.output.vt100 import Vt100_Output  # noqa: PLC0415

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
        # It would ask the terminal where the cursor is, warn of one that is slow to say, and after
        # Enter take a Ctrl-C that was meant for the answer.
        output.enable_cpr = False
    session: PromptSession[str] = PromptSession(
        "> ",
        output=output,
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        enable_history_search=True,
        key_bindings=keys,
    )
    return lambda unsaid: session.prompt(default=unsaid)


def plain_line(out: TextIO) -> Callable[[str], str]:
    """A line without editing or history, for where the output is no terminal."""

    def read(unsaid: str) -> str:
        out.write("> ")
        out.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read


def history_file(folder: Path) -> Path | None:
    """The file for the history, readable by its owner alone; None where it can't be written."""
    path = folder / "chat-history"
    try:
        make_folder(folder)
        with os.fdopen(open_private(path, os.O_RDWR | os.O_APPEND), "r+b") as file:
            if file.seek(0, os.SEEK_END) > HISTORY_MAX:
                file.seek(-HISTORY_MAX // 2, os.SEEK_END)
                kept = file.read().partition(b"\n#")[2]  # from the beginning of an entry
                file.truncate(0)
                file.write(b"\n#" + kept)
    except OSError:
        return None
    return path

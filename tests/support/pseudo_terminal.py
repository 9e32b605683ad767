"""A program in a real pseudo-terminal, and an emulator of its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from typing import Any

import pyte
import pytest

WAIT_SECONDS = 60.0  # seconds; two are usual
#: The program becomes the master of its terminal, so that Ctrl-C becomes a signal to it.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class _Screen(pyte.HistoryScreen):
    """A screen that answers the program's queries, such as the position of the cursor."""

    answers: int

    def write_process_input(self, data: str) -> None:
        os.write(self.answers, data.encode())


class Terminal:
    """A program that runs in its own terminal."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        cwd: str,
        *,
        rows: int = 30,
        columns: int = 100,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen = _Screen(columns, rows, history=5000, ratio=0.5)
        self._screen.answers = self._master
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()  # protects the screen and `raw`
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """The text of the screen and of the lines that were scrolled away."""
        with self._changed:
            return self._text()

    def type(self, keys: str) -> None:
        """Press keys; Enter is a carriage return."""
        os.write(self._master, keys.encode())

    def enter(self, line: str) -> None:
        """Wait for the program's prompt, type a line and press Enter.

        Enter is pressed once the line is displayed, so that this prompt is not taken for the next.
        """
        self.wait(r"(?m)^> *\Z")
        self.type(line)
        # A long line is wrapped anywhere; a space at the end of a row is not in the text.
        shown = "".join(
            r"(?: \n?|\n)" if char == " " else rf"{re.escape(char)}\n?" for char in line
        )
        self.wait(rf"> {shown}\Z")
        self.type("\r")

    def press_ctrl_d(self) -> int:
        """Wait for the program's prompt, press Ctrl-D and return the exit status."""
        self.wait(r"(?m)^> *\Z")
        self.type("\x04")
        return self.wait_exit()

    def wait(self, pattern: str) -> re.Match[str]:
        """Wait until the text matches; return the match."""
        with self._changed:
            self._changed.wait_for(lambda: re.search(pattern, self._text()), WAIT_SECONDS)
            match = re.search(pattern, self._text())
        if match is None:
            pytest.fail(f"no {pattern!r} in the terminal:\n{self.text}")
        return match

    def wait_exit(self) -> int:
        """Wait for the program's end; return its exit status."""
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        """Kill the program if it runs; close the terminal."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            with self._changed:
                self.raw += data
                self._stream.feed(data)
                self._changed.notify_all()

    def _text(self) -> str:
        scrolled_lines = [_line(row, self._screen.columns) for row in self._screen.history.top]
        return "\n".join(
            [*scrolled_lines, *(line.rstrip() for line in self._screen.display)]
        ).rstrip()


def _line(row: Any, columns: int) -> str:
    return "".join(row[x].data for x in range(columns)).rstrip()

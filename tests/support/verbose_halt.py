"""Starts Halt as `app.py` does, with every line of its log."""

from __future__ import annotations

import logging
import runpy


class Verbose(logging.Logger):
    """A logger without a level of its own choice."""

    def setLevel(self, level: int | str) -> None:
        super().setLevel(logging.DEBUG)


if __name__ == "__main__":
    logging.setLoggerClass(Verbose)
    runpy.run_path("app.py", run_name="__main__")

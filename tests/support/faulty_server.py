"""A Halt whose relay fails on request and whose time limits a test sets."""

from __future__ import annotations

from tests.support.halt_server import HaltServer


class FaultyServer(HaltServer):
    """Runs `tests.support.faulty_app`."""

    command = ("-m", "gunicorn", "tests.support.faulty_app:app")

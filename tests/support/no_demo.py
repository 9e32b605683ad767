"""A Halt whose demo model cannot run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.halt_server import HaltServer

ENGINE = 'raise ImportError("this engine is for another processor")\n'


@contextmanager
def without_demo() -> Iterator[dict[str, str]]:
    """The settings of a Halt in which the demo model's engine cannot be imported."""
    with tempfile.TemporaryDirectory(prefix="halt-engine-") as folder:
        Path(folder, "xllamacpp.py").write_text(ENGINE)
        yield {"PYTHONPATH": folder, "HALT_ALLOW_ANONYMOUS": ""}


@contextmanager
def halt_without_model() -> Iterator[HaltServer]:
    """A Halt of one person, without a model, which looks for none."""
    with without_demo() as environment:
        server = HaltServer({**environment, "HALT_DISCOVER": "0"})
        yield server
        server.close()

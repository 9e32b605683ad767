"""A Halt whose demo model cannot run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENGINE = 'raise ImportError("this engine is for another processor")\n'


@contextmanager
def without_demo() -> Iterator[dict[str, str]]:
    """The settings of a Halt in which the demo model's engine cannot be imported."""
    with tempfile.TemporaryDirectory(prefix="halt-engine-") as folder:
        Path(folder, "xllamacpp.py").write_text(ENGINE)
        yield {"PYTHONPATH": folder, "HALT_ALLOW_ANONYMOUS": ""}

"""Reading processes for the tests of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.files.facts import Role
from halt.files.readers import Readers, temporary_file
from tests.support.files import Read, ReadBytes


@pytest.fixture(scope="session")
def readers() -> Iterator[Readers]:
    readers = Readers()
    yield readers
    readers.close()


@pytest.fixture
def read(readers: Readers, tmp_path: Path) -> Read:
    """Read a file of these bytes and this name. Raises FileError."""

    def read_bytes(
        content: bytes, name: str = "file", max_chars: int = 10_000, max_bytes: int = 10**8
    ) -> ReadBytes:
        with temporary_file(tmp_path) as source, temporary_file(tmp_path) as kept:
            source.write(content)
            source.flush()
            file = readers.read(source, kept, name, max_chars=max_chars, max_bytes=max_bytes)
            roles: tuple[Role, ...] = ("content", "text", "thumbnail")
            return ReadBytes(file.facts, file.hash, *(b"".join(file.parts(r)) for r in roles))

    return read_bytes

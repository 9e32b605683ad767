"""What Halt keeps in its folder is for its owner's eyes, and made once."""

from __future__ import annotations

import os
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest

from halt.config import ConfigError
from halt.data_folder import mark, prepare, run_folder, secret_key, socket_folder
from tests.races import together


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_is_made_once_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    """The second start finds the first one's; folder and file are closed to others."""
    folder = tmp_path / "new" / "halt"
    first = secret_key(folder)
    assert len(first) >= 32
    assert secret_key(folder) == first
    assert mode(folder) == 0o700
    assert mode(folder / "secret_key") == 0o600
    assert secret_key(tmp_path / "other") != first


def test_starters_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Whoever comes first makes it; nobody reads half of it, and nothing else is left behind."""
    for number in range(50):
        folder = tmp_path / str(number)
        keys = together(*[partial(secret_key, folder)] * 4)
        assert len(set(keys)) == 1
        assert [each.name for each in folder.iterdir()] == ["secret_key"]


def test_a_key_that_cannot_be_one_is_a_clear_error(tmp_path: Path) -> None:
    """The file is named, its content is not, and it is left as it is."""
    for content in (b"", b"short-key\n", b"\xff\xfe\x00"):
        (tmp_path / "secret_key").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            secret_key(tmp_path)
        assert "secret_key" in str(caught.value)
        assert "short-key" not in str(caught.value)
        assert (tmp_path / "secret_key").read_bytes() == content


def test_a_folder_has_a_mark_of_its_own(tmp_path: Path) -> None:
    """It stays as it is; one that was damaged is a clear error."""
    marks = together(*[partial(mark, tmp_path)] * 4)
    assert len(set(marks)) == 1
    assert mark(tmp_path / "other") not in marks
    (tmp_path / "mark").write_text("mine\n")
    with pytest.raises(ConfigError, match="mark"):
        mark(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    """One line that says which setting is wrong."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="HALT_DATA"):
        prepare(tmp_path / "file" / "halt")


def test_sockets_are_elsewhere_where_their_path_would_be_too_long(tmp_path: Path) -> None:
    """All workers of a data folder find the same place, and nobody else can look into it."""
    run = run_folder(tmp_path)
    assert socket_folder(run_folder(Path("/tmp") / f"halt-test-{os.getpid()}")).name == "run"  # noqa: S108
    shutil.rmtree(f"/tmp/halt-test-{os.getpid()}")  # noqa: S108
    deep = run_folder(tmp_path / ("x" * 100))
    found = socket_folder(deep)
    try:
        assert found not in {run, deep}
        assert found == socket_folder(deep)
        assert mode(found) == 0o700
        found.chmod(0o755)
        with pytest.raises(ConfigError, match="halt-"):
            socket_folder(deep)
    finally:
        found.rmdir()

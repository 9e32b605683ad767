"""The folder where Halt keeps what outlives a process: the session key, and the workers' meeting.

secret_key   signs session cookies; made at the first start, for its owner's eyes only
mark         tells this folder's workers from those of another one that use the same database
run/         lock files and sockets of the workers that run now (see `halt.peers`)
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from hashlib import blake2b
from pathlib import Path

from halt.config import ConfigError

SECRET_MIN = 16  # characters
SOCKET_PATH_MAX = 103  # bytes that every system takes for a Unix socket's path
LONGEST_NAME = 32  # characters of a worker's socket in its folder


def prepare(folder: Path) -> Path:
    """Make the folder if it is not there, for nobody else to look into. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as exc:
        raise ConfigError(
            f"HALT_DATA={str(folder)!r} is no folder that can be written to: {exc.strerror}."
        ) from None
    return folder


def secret_key(folder: Path) -> str:
    """The key that is kept in the folder; made where there is none. Raises ConfigError."""
    path, key = _kept(folder, "secret_key", "session key", size=32)
    if len(key) < SECRET_MIN:
        raise ConfigError(f"The session key in {path} is too short: delete the file for a new one.")
    return key


def mark(folder: Path) -> str:
    """The folder's mark, as random as needed and no secret; made where there is none.

    Raises ConfigError.
    """
    path, found = _kept(folder, "mark", "mark", size=4)
    if not re.fullmatch("[0-9a-f]{8}", found):
        raise ConfigError(f"The mark in {path} is none: delete the file for a new one.")
    return found


def _kept(folder: Path, name: str, what: str, size: int) -> tuple[Path, str]:
    """A file of the folder and what it holds; made of so many random bytes where there is none.

    Of several that start at once the first one's is everybody's. Raises ConfigError.
    """
    path = prepare(folder) / name
    try:
        if not path.exists():
            _write_new(path, secrets.token_hex(size))
        return path, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it holds no text"
        raise ConfigError(f"The {what} in {path} cannot be read or made: {reason}.") from None


def _write_new(path: Path, text: str) -> None:
    """Put a whole file where there is none; one that came there first stays."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def run_folder(folder: Path) -> Path:
    """Where the workers of this data folder meet. Raises ConfigError."""
    return prepare(prepare(folder) / "run")


def socket_folder(run: Path) -> Path:
    """Where their sockets are: there too, unless the path would be too long for a socket.

    Then in a folder of the same user's under the system's one for temporary files, whose name
    follows from the path. Raises ConfigError.
    """
    if len(os.fsencode(run.absolute())) + 1 + LONGEST_NAME <= SOCKET_PATH_MAX:
        return run
    place = blake2b(os.fsencode(run.resolve()), digest_size=8).hexdigest()
    found = Path(tempfile.gettempdir()) / f"halt-{os.getuid()}-{place}"
    with contextlib.suppress(FileExistsError):
        found.mkdir(mode=0o700)
    known = found.lstat()
    if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid() or known.st_mode & 0o077:
        raise ConfigError(f"{found} is not a folder of this user's alone: remove it.")
    return found

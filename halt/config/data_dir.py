"""The folder where Halt keeps what outlives a process: the session key, and the workers' meeting.

secret_key   signs session cookies; made at the first start, for its owner's eyes only
mark         tells this folder's workers from those of another one that use the same database
run/         lock files and sockets of the workers that run now (see `halt.cluster.membership`)

Not every file system has hard links, locks, Unix sockets, modes or fsync. Nothing here needs hard
links; without fsync a key is made all the same; where locks or sockets are missing the workers meet
in a folder for temporary files. What cannot be had at all is one line that names the setting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from halt.config.settings import ConfigError

PRIVATE = 0o600  # the mode of every file and socket here, whatever the process's umask
FOLDER = 0o700  # that of every folder
SECRET_MIN = 16  # characters
ATTEMPTS = 100  # to make a file where other processes make it too; two are enough, usually
SOCKET_PATH_MAX = 103  # bytes that every system takes for a Unix socket's path
LONGEST_NAME = 32  # characters of a worker's socket in its folder

#: How file systems and kernels say that they do not have something.
UNSUPPORTED = frozenset(
    {
        errno.EACCES,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
        errno.ENODEV,
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EPERM,
    }
)


def prepare(folder: Path) -> Path:
    """Make the folder if it is not there, for nobody else to look into. Raises ConfigError."""
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as exc:
        raise ConfigError(
            f"HALT_DATA={str(folder)!r} is no folder that can be written to: {exc.strerror}."
        ) from None
    return folder


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing, each for its owner alone.

    One that is there stays as it is. Raises OSError.
    """
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        with contextlib.suppress(FileExistsError):  # another process has made it
            each.mkdir(mode=FOLDER)
            _set_mode(each, FOLDER)
    folder.mkdir(exist_ok=True)  # says so where it is a file


def open_private(path: Path, flags: int) -> int:
    """Open a file, made where it is missing; for its owner alone. Raises OSError."""
    file = os.open(path, flags | os.O_CREAT, PRIVATE)
    _set_mode(file, PRIVATE)
    return file


def bind_private(sock: socket.socket, path: Path) -> None:
    """Bind a Unix socket to a path, for its owner alone. Raises OSError.

    On Linux a socket that is not bound yet gives its mode to the file, so at no time is the file
    open to others. Other systems refuse that call; there the mode is set afterwards.
    """
    _set_mode(sock.fileno(), PRIVATE)
    sock.bind(os.fspath(path))
    _set_mode(path, PRIVATE)


def _set_mode(file: int | Path, mode: int) -> None:
    """Set a mode where the file system has modes. Raises OSError for any other reason."""
    try:
        os.chmod(file, mode)
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise


#: What Halt makes in the data folder, beside the folder `run`.
_OWN = (
    "halt.db* rates.db* migrate.lock wal-probe.db* probe-*.db* secret_key* mark mark.* chat-history"
)


def mend_modes(folder: Path) -> None:
    """Close to others what an earlier Halt, or a loose umask, has left open. Never raises.

    Files are not opened: to close a database's file would take from this process SQLite's locks.
    The folder itself stays as it is: its owner may share it on purpose.
    """
    run = folder / "run"
    for path in (run, *run.glob("*"), *(path for own in _OWN.split() for path in folder.glob(own))):
        with contextlib.suppress(OSError):  # it has gone, or is another user's
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            wanted = FOLDER if stat.S_ISDIR(mode) else PRIVATE
            if stat.S_IMODE(mode) & ~wanted:
                path.chmod(wanted)


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
    first = path.with_name(f"{name}.first")
    try:
        for _ in range(ATTEMPTS):
            if path.exists():
                break
            _propose(path, first, secrets.token_hex(size))
        if first.exists():
            _remove(first)
        return path, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it holds no text"
        raise ConfigError(f"The {what} in {path} cannot be read or made: {reason}.") from None


def _propose(path: Path, first: Path, text: str) -> None:
    """Put a whole file where there is none; one that came there first stays. Raises OSError.

    File systems without hard links (FAT, some shares) have one step that puts a whole file in place
    unless another one is there: a folder is renamed, which fails where the new name is a folder
    that holds something. The folder `first` is proposed in this way, and its text is then put at
    `path`, by whichever process comes to it: all of them put the same text there. The folder is
    removed when the file is there, never before. So a process that finds the folder and, after it
    has read it, no file, has read the first proposal.

    May return without the file where another process was just removing the folder; the file is
    there then, or the next attempt makes it.
    """
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    own.mkdir(mode=FOLDER)
    try:
        _write(own / "text", text)
        try:
            own.rename(first)
        except OSError:
            if not first.is_dir():
                if path.exists():
                    return
                raise
    finally:
        _remove(own)
    try:
        proposed = (first / "text").read_text().strip()
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            first.rmdir()  # only if it is empty, after a process that ended while it removed it
        return
    if not path.exists():
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            _write(part, proposed)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Make a file for its owner alone. Raises OSError."""
    with os.fdopen(open_private(path, os.O_WRONLY | os.O_EXCL), "w") as file:
        file.write(text + "\n")
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise


def _remove(folder: Path) -> None:
    """Remove a proposal. Several processes may do so at once."""
    with contextlib.suppress(OSError):
        (folder / "text").unlink(missing_ok=True)
        folder.rmdir()


def run_folder(folder: Path) -> Path:
    """Where the workers of this data folder meet. Raises ConfigError.

    It is in the data folder, unless the file system there cannot lock files: then in a folder of
    the same user's under the system's one for temporary files, whose name follows from the path.
    """
    run = prepare(prepare(folder) / "run")
    mend_modes(folder)
    return _able(run, _lock_a_file, "lock files")


def socket_folder(run: Path) -> Path:
    """Where their sockets are: there too, unless that cannot be. Raises ConfigError.

    The path may be too long for a socket, or the file system may have none. Then they are in such a
    folder as `run_folder` describes.
    """
    return _able(run, _bind_a_socket, "hold Unix sockets")


def _able(run: Path, attempt: Callable[[Path], None], what: str) -> Path:
    """The folder `run`, or the first for temporary files that can do this. Raises ConfigError."""
    if not (why := _tried(run, attempt)):
        return run
    place = blake2b(os.fsencode(run.resolve()), digest_size=8).hexdigest()
    reason = ""
    for temporary in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - see below
        found = Path(temporary) / f"halt-{os.getuid()}-{place}"
        try:
            with contextlib.suppress(FileExistsError):
                found.mkdir(mode=FOLDER)
            known = found.lstat()
        except OSError as exc:
            reason = exc.strerror or str(exc)
            continue
        if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid() or known.st_mode & 0o077:
            raise ConfigError(f"{found} is not a folder of this user's alone: remove it.")
        reason = _tried(found, attempt)
        if not reason:
            return found
    raise ConfigError(
        f"HALT_DATA={str(run.parent)!r} cannot {what} ({why}), nor can {tempfile.gettempdir()} "
        f"({reason}): set HALT_DATA or TMPDIR to a folder of a local disk."
    )


def _tried(folder: Path, attempt: Callable[[Path], None]) -> str:
    """Why the file system there cannot do this, empty where it can.

    Raises ConfigError for any other reason: all processes must come to the same answer, and a full
    disk, for example, may have room again for the next one.
    """
    try:
        attempt(folder)
    except FileNotFoundError:
        return ""  # it was removed just now, which says nothing about the file system
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in UNSUPPORTED:
            return reason
        raise ConfigError(
            f"The folder {str(folder)!r} of HALT_DATA cannot be used: {reason}."
        ) from None
    return ""


def _lock_a_file(folder: Path) -> None:
    """Lock a file in both of the ways that workers use. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)


def _bind_a_socket(folder: Path) -> None:
    """Make a socket with a name as long as any. Raises OSError."""
    path = folder.absolute() / secrets.token_hex(LONGEST_NAME // 2)
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise OSError(errno.EINVAL, "the path is too long")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            bind_private(sock, path)
        finally:
            path.unlink(missing_ok=True)


def make_private(path: Path) -> None:
    """Make the file if it is not there: for its owner alone, also in a folder that is not.

    One that is there is not even opened: to close it would take from this process SQLite's locks.
    """
    with contextlib.suppress(FileExistsError):
        os.close(open_private(path, os.O_WRONLY | os.O_EXCL))


def can_log_ahead(path: Path) -> bool:
    """Whether SQLite can write ahead in a new file at this path, which is removed. Never raises."""
    try:
        make_private(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as probe:
            if probe.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                return False
            probe.execute("CREATE TABLE probe (n)")
            with contextlib.closing(sqlite3.connect(path)) as reader:
                (count,) = reader.execute("SELECT count(*) FROM probe").fetchone()
            return bool(count == 0)
    except (sqlite3.Error, OSError):
        return False
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)

"""The data folder: its files and their modes, the session key, and the folders of the workers.

secret_key   signs session cookies, and encrypts the keys of providers; created at the first start,
             readable by its owner alone
mark         an ID of the folder: distinguishes its workers from those of others on one database
run/         lock files and sockets of the running workers (see `halt.cluster.membership`)

Some file systems lack hard links, locks, Unix sockets, modes or fsync. Nothing here needs hard
links; without fsync a key is created all the same; without locks or sockets the workers use a
folder for temporary files. If nothing works, ConfigError is one line that names the setting.
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

FILE_MODE = 0o600  # the mode of every file and socket here, for any umask of the process
FOLDER_MODE = 0o700  # the mode of every folder
SESSION_KEY_MIN = 16  # characters
#: Attempts to create a file that other processes create at the same time; two are usually enough.
ATTEMPTS = 100
SOCKET_PATH_MAX = 103  # bytes of a Unix socket's path that every system accepts
LONGEST_NAME = 32  # characters of the file name of a worker's socket

#: The errors by which file systems and kernels report a missing feature.
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
    """Create the folder if it is missing, closed to other users. Raises ConfigError."""
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as exc:
        raise ConfigError(
            f"HALT_DATA={str(folder)!r} cannot be used: {exc.strerror}. Use a writable folder."
        ) from None
    return folder


def make_folder(folder: Path) -> None:
    """Create the folder and its missing parents, each closed to other users.

    An existing folder is not changed. Raises OSError.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process has created it
            path.mkdir(mode=FOLDER_MODE)
            _set_mode(path, FOLDER_MODE)
    folder.mkdir(exist_ok=True)  # raises if it is a file


def open_private(path: Path, flags: int) -> int:
    """Open a file with mode FILE_MODE, created if it is missing. Raises OSError."""
    file = os.open(path, flags | os.O_CREAT, FILE_MODE)
    _set_mode(file, FILE_MODE)
    return file


def bind_private(sock: socket.socket, path: Path) -> None:
    """Bind a Unix socket to a path with mode FILE_MODE. Raises OSError.

    On Linux the file gets the mode that the socket has before it is bound, so other users can never
    open it. Other systems refuse to set that mode; there it is set afterwards.
    """
    _set_mode(sock.fileno(), FILE_MODE)
    sock.bind(os.fspath(path))
    _set_mode(path, FILE_MODE)


def _set_mode(file: int | Path, mode: int) -> None:
    """Set a mode; does nothing on a file system without modes. Raises OSError."""
    try:
        os.chmod(file, mode)
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise


#: The files that Halt creates in the data folder, apart from the folder `run`.
_OWN = (
    "halt.db* rates.db* migrate.lock wal-probe.db* probe-*.db* secret_key* mark mark.* "
    "chat-history last_model*"
)


def restrict_modes(folder: Path) -> None:
    """Remove other users' rights to Halt's files, left by an earlier version or a loose umask.

    Never raises. Files are not opened: closing a database's file would release SQLite's locks of
    this process. The data folder itself is not changed: its owner may share it on purpose.
    """
    run = folder / "run"
    for path in (
        run,
        *run.glob("*"),
        *(path for pattern in _OWN.split() for path in folder.glob(pattern)),
    ):
        with contextlib.suppress(OSError):  # it is gone, or belongs to another user
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            wanted = FOLDER_MODE if stat.S_ISDIR(mode) else FILE_MODE
            if stat.S_IMODE(mode) & ~wanted:
                path.chmod(wanted)


def secret_key(folder: Path) -> str:
    """The session key in this folder, created if it is missing. Raises ConfigError."""
    path, key = _read_or_create(folder, "secret_key", "session key", size=32)
    if len(key) < SESSION_KEY_MIN:
        raise ConfigError(
            f"The session key in {path} is too short: delete the file for a new one, or set "
            "HALT_SECRET_KEY."
        )
    return key


def folder_id(folder: Path) -> str:
    """The ID of the folder: 8 random hexadecimal digits, not secret. Created if it is missing.

    Raises ConfigError.
    """
    path, text = _read_or_create(folder, "mark", "folder ID", size=4)
    if not re.fullmatch("[0-9a-f]{8}", text):
        raise ConfigError(f"The folder ID in {path} is not valid: delete the file for a new one.")
    return text


def _read_or_create(folder: Path, name: str, noun: str, size: int) -> tuple[Path, str]:
    """The path and text of this file in the folder, created from `size` random bytes if missing.

    Processes that create it at the same time all get the text of the first one. `noun` names the
    file in errors. Raises ConfigError.
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
        reason = getattr(exc, "strerror", None) or "it is not text"
        raise ConfigError(f"The {noun} in {path} cannot be read or created: {reason}.") from None


def _propose(path: Path, first: Path, text: str) -> None:
    """Create the file `path` with one text, of which the first proposal wins. Raises OSError.

    File systems without hard links (FAT, some shares) have one atomic step that creates a complete
    file only if there is none: to rename a folder fails if the new name is a folder that is not
    empty. Each process proposes its text as the folder `first` in this way. Then every process that
    reads the winning folder writes its text to `path`: all of them write the same text. The folder
    is removed only after the file exists. So a process that has read the folder and then finds no
    file has read the first proposal.

    May return without the file if another process was removing the folder at this moment; then the
    file exists, or the next attempt creates it.
    """
    new_folder = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    new_folder.mkdir(mode=FOLDER_MODE)
    try:
        _write(new_folder / "text", text)
        try:
            new_folder.rename(first)
        except OSError:
            if not first.is_dir():
                if path.exists():
                    return
                raise
    finally:
        _remove(new_folder)
    try:
        proposed = (first / "text").read_text().strip()
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            first.rmdir()  # if it is empty: left by a process that ended while it removed it
        return
    if not path.exists():
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            _write(part, proposed)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Create a file with mode FILE_MODE. Raises OSError."""
    with os.fdopen(open_private(path, os.O_WRONLY | os.O_EXCL), "w") as file:
        file.write(text + "\n")
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise


def _remove(folder: Path) -> None:
    """Remove a proposal. Several processes may do this at the same time."""
    with contextlib.suppress(OSError):
        (folder / "text").unlink(missing_ok=True)
        folder.rmdir()


def run_folder(folder: Path) -> Path:
    """The folder for the workers' lock files, created if it is missing. Raises ConfigError.

    It is in the data folder, unless the file system there cannot lock files: then it is a folder
    of the same user in the system's folder for temporary files, named by a hash of the path.
    Also removes other users' rights to Halt's files in the data folder (`restrict_modes`).
    """
    run = prepare(prepare(folder) / "run")
    restrict_modes(folder)
    return _folder_with_feature(run, _lock_a_file, "lock files")


def socket_folder(run: Path) -> Path:
    """The folder for the workers' sockets. Raises ConfigError.

    It is `run`, unless the path is too long for a socket or the file system has no sockets: then it
    is a temporary folder as in `run_folder`.
    """
    return _folder_with_feature(run, _bind_a_socket, "hold Unix sockets")


def _folder_with_feature(run: Path, probe: Callable[[Path], None], ability: str) -> Path:
    """The folder `run` if `probe` succeeds there, else the first such temporary folder.

    `ability` completes the error "HALT_DATA cannot ...". Raises ConfigError.
    """
    if not (run_reason := _missing_feature(run, probe)):
        return run
    path_hash = blake2b(os.fsencode(run.resolve()), digest_size=8).hexdigest()
    reason = ""
    for temporary in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - see below
        substitute = Path(temporary) / f"halt-{os.getuid()}-{path_hash}"
        try:
            with contextlib.suppress(FileExistsError):
                substitute.mkdir(mode=FOLDER_MODE)
            info = substitute.lstat()
        except OSError as exc:
            reason = exc.strerror or str(exc)
            continue
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise ConfigError(
                f"{substitute} is not a folder that this user alone can open: remove it."
            )
        reason = _missing_feature(substitute, probe)
        if not reason:
            return substitute
    raise ConfigError(
        f"HALT_DATA={str(run.parent)!r} cannot {ability} ({run_reason}), nor can "
        f"{tempfile.gettempdir()} ({reason}): set HALT_DATA or TMPDIR to a folder of a local disk."
    )


def _missing_feature(folder: Path, probe: Callable[[Path], None]) -> str:
    """The error's text if the file system lacks the feature that `probe` uses, else empty.

    Raises ConfigError for any other error: all processes must choose the same folder, and a full
    disk, for example, may have space again for the next process.
    """
    try:
        probe(folder)
    except FileNotFoundError:
        return ""  # the folder was just removed: the feature may exist
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in UNSUPPORTED:
            return reason
        raise ConfigError(
            f"The folder {str(folder)!r} of HALT_DATA cannot be used: {reason}."
        ) from None
    return ""


def _lock_a_file(folder: Path) -> None:
    """Lock a file with flock and with lockf, as workers do. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)


def _bind_a_socket(folder: Path) -> None:
    """Bind a socket with a file name of LONGEST_NAME characters. Raises OSError."""
    path = folder.absolute() / secrets.token_hex(LONGEST_NAME // 2)
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise OSError(errno.EINVAL, "the path is too long")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            bind_private(sock, path)
        finally:
            path.unlink(missing_ok=True)


def create_private_file(path: Path) -> None:
    """Create the file with mode FILE_MODE if it is missing.

    An existing file is neither changed nor opened: closing it would release SQLite's locks of this
    process.
    """
    with contextlib.suppress(FileExistsError):
        os.close(open_private(path, os.O_WRONLY | os.O_EXCL))


def supports_wal(path: Path) -> bool:
    """Whether SQLite can use a write-ahead log in a new file here. Removes it; never raises."""
    try:
        create_private_file(path)
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

"""A data folder on which some system calls fail, as on a limited file system.

`failing_calls` writes a module that Python loads at its start, in all processes of Halt. With it
system calls on paths of one folder fail as on such a file system.
"""

from __future__ import annotations

import os
from pathlib import Path

MODULE = """
import errno, fcntl, os, socket

FOLDER, CALLS = {folder!r}, {calls!r}

def inside(path):
    path = os.readlink(f"/proc/self/fd/{{path}}") if isinstance(path, int) else os.fspath(path)
    return os.path.abspath(path).startswith(FOLDER)

def number(file):
    return file if isinstance(file, int) else file.fileno()

def fails(name, original, code, which):
    def call(*args, **more):
        if name in CALLS and inside(which(args)):
            raise OSError(code, os.strerror(code))
        return original(*args, **more)
    return call

os.link = fails("link", os.link, errno.EPERM, lambda args: args[1])
os.fsync = fails("fsync", os.fsync, errno.EINVAL, lambda args: number(args[0]))
os.chmod = fails("chmod", os.chmod, errno.EPERM, lambda args: args[0])
fcntl.flock = fails("flock", fcntl.flock, errno.ENOLCK, lambda args: number(args[0]))
fcntl.lockf = fails("flock", fcntl.lockf, errno.ENOLCK, lambda args: number(args[0]))

class Socket(socket.socket):
    def bind(self, address):
        if "bind" in CALLS and self.family == socket.AF_UNIX and inside(address):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        super().bind(address)

socket.socket = Socket
"""


def failing_calls(folder: Path, *calls: str, inside: Path | None = None) -> dict[str, str]:
    """The environment in which these calls fail for paths below `inside`; `folder` gets the module."""
    module_folder = folder / "limits"
    module_folder.mkdir()
    limited_path = os.fspath(inside if inside is not None else folder)
    (module_folder / "sitecustomize.py").write_text(MODULE.format(folder=limited_path, calls=calls))
    return {"PYTHONPATH": str(module_folder)}

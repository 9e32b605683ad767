"""The limit on open files (RLIMIT_NOFILE): raise it, and compute the streams that it allows.

A part of the files is reserved; clients' connections may use the rest. A stream needs a reserved
file for its connection to the model, and one of the rest for its client. In both parts FILES_BESIDE
files are left for other uses, such as Stop.
"""

from __future__ import annotations

import bisect
import logging
import resource

#: The limit that a process of the server sets. A high limit costs nothing by itself.
WANTED = 65_536

#: The share FILES_KEPT / FILES_KEPT_OF of the open files, and at least FILES_KEPT_MIN, is not
#: used for clients' connections: it is reserved.
FILES_KEPT, FILES_KEPT_OF, FILES_KEPT_MIN = 3, 8, 96
#: The number of files of each part that streams do not use.
FILES_BESIDE = 64

logger = logging.getLogger(__name__)


def reserved_files(files: int) -> int:
    """Number of open files not used for clients' connections, for a limit of `files`."""
    return max(FILES_KEPT_MIN, files * FILES_KEPT // FILES_KEPT_OF)


def streams_for(files: int) -> int:
    """Number of streams for which a limit of `files` is enough, with Stop still served."""
    reserved = reserved_files(files)
    return max(0, min(reserved, files - reserved) - FILES_BESIDE)


def files_for(streams: int) -> int:
    """The lowest limit up to WANTED with which this number of streams is possible."""
    return bisect.bisect_left(range(WANTED), streams, key=streams_for)


def highest_limit() -> int:
    """The highest limit up to WANTED that this process can set, or its current one if higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit(), WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED))


def limit() -> int:
    """This process's current limit; WANTED if it has none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def raise_limit(wanted_streams: int) -> int:
    """Raise the limit of this process and its children. Returns the number of streams it allows.

    That is 1 to `wanted_streams`. A lower number is logged: further streams would use the files
    that Stop needs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = highest_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    streams = min(wanted_streams, max(1, streams_for(files)))
    if streams < wanted_streams:
        logger.warning(
            "The system allows %d open files, enough for %d streams at once in place of %d "
            "(HALT_MAX_STREAMS), which need %d. Raise the limit (ulimit -Hn; LimitNOFILE= of "
            "systemd).",
            files,
            streams,
            wanted_streams,
            files_for(wanted_streams),
        )
    return streams

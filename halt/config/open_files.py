"""The limit on open files (RLIMIT_NOFILE): raise it, and compute the streams that it allows."""

from __future__ import annotations

import logging
import resource

#: The limit that a process of the server sets. A high limit costs nothing by itself.
WANTED = 65_536

#: The share FILES_KEPT / FILES_KEPT_OF of the open files, and at least FILES_KEPT_MIN, is not
#: used for clients' connections: it is reserved for connections to models, files, and Stop.
FILES_KEPT, FILES_KEPT_OF, FILES_KEPT_MIN = 3, 8, 96
#: The number of reserved files that streams' connections to models do not use.
FILES_BESIDE = 64

logger = logging.getLogger(__name__)


def kept(files: int) -> int:
    """Number of open files not used for clients' connections, for a limit of `files`."""
    return max(FILES_KEPT_MIN, files * FILES_KEPT // FILES_KEPT_OF)


def streams(files: int) -> int:
    """Number of streams for which a limit of `files` is enough, with Stop still served."""
    return kept(files) - FILES_BESIDE


def needed(count: int) -> int:
    """The limit on open files that `count` streams need, with Stop still served."""
    return -(-(count + FILES_BESIDE) * FILES_KEPT_OF // FILES_KEPT)


def allowed() -> int:
    """The highest limit up to WANTED that this process can set, or its current one if higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit(), WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED))


def limit() -> int:
    """This process's current limit; WANTED if it has none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def allow(wanted: int) -> int:
    """Raise the limit of this process and its children. Returns the number of streams it allows.

    That is at most `wanted`. A lower number is logged: further streams would use the files that
    Stop needs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed(), hard))
    count = min(wanted, streams(allowed()))
    if count < wanted:
        logger.warning(
            "The system allows %d open files, enough for %d streams at once in place of %d "
            "(HALT_MAX_STREAMS), which need %d. Raise the limit (ulimit -Hn; LimitNOFILE= of "
            "systemd).",
            allowed(),
            count,
            wanted,
            needed(wanted),
        )
    return count

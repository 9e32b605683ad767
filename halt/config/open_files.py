"""The limit on open files (RLIMIT_NOFILE): raise it, and say whether it is enough."""

from __future__ import annotations

import logging
import resource

#: Open files that a process of the server asks for. They cost nothing before they are open.
WANTED = 65_536

#: Of the open files, so many in FILES_KEPT_OF, and at least FILES_KEPT_MIN, are kept from clients:
#: for connections to models, for files, and for Stop.
FILES_KEPT, FILES_KEPT_OF, FILES_KEPT_MIN = 3, 8, 96
#: Of those, the ones that no stream's connection to its model takes.
FILES_BESIDE = 64

logger = logging.getLogger(__name__)


def kept(files: int) -> int:
    """Open files that are kept from clients, where the limit is `files`."""
    return max(FILES_KEPT_MIN, files * FILES_KEPT // FILES_KEPT_OF)


def streams(files: int) -> int:
    """Streams for which that many open files are enough, and Stop beside them."""
    return kept(files) - FILES_BESIDE


def needed(count: int) -> int:
    """Open files that this many streams need, and Stop beside them."""
    return -(-(count + FILES_BESIDE) * FILES_KEPT_OF // FILES_KEPT)


def allowed() -> int:
    """The highest limit that this process can set, up to WANTED; or its own, if that is higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit(), WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED))


def limit() -> int:
    """The limit of this process now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def allow(wanted: int) -> int:
    """Raise the limit of this process and its children. The streams that there is room for.

    Fewer than `wanted` are logged: with more, the last ones would take the files that Stop needs.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed(), hard))
    found = min(wanted, streams(allowed()))
    if found < wanted:
        logger.warning(
            "The system allows %d open files, enough for %d streams at once in place of %d "
            "(HALT_MAX_STREAMS), which need %d. Raise the limit (ulimit -Hn; LimitNOFILE= of "
            "systemd).",
            allowed(),
            found,
            wanted,
            needed(wanted),
        )
    return found

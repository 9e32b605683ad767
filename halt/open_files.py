"""The limit on open files (RLIMIT_NOFILE): raise it, and say whether it is enough."""

from __future__ import annotations

import logging
import resource

#: Open files that a process of the server asks for. They cost nothing before they are open.
WANTED = 65_536

#: Open files of each stream: the client's connection and the one to the model.
A_STREAM = 2
#: Other open files: waiting connections, other workers, the database.
BESIDE = 200

logger = logging.getLogger(__name__)


def needed(streams: int) -> int:
    """Open files that this many streams need, and Stop beside them."""
    return A_STREAM * streams + BESIDE


def allowed() -> int:
    """The highest limit that this process can set, up to WANTED; or its own, if that is higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit(), WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED))


def limit() -> int:
    """The limit of this process now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def allow(streams: int) -> None:
    """Raise the limit of this process and its children; log a warning where it stays too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed(), hard))
    if allowed() < needed(streams):
        logger.warning(
            "The system allows %d open files; %d streams (HALT_MAX_STREAMS) and other connections "
            "need %d. Raise the limit (ulimit -Hn; LimitNOFILE= of systemd).",
            allowed(),
            streams,
            needed(streams),
        )

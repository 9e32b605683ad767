"""The system's limit on open files: as far as it lets, and whether that is enough."""

from __future__ import annotations

import logging
import resource

#: Open files that a process of the server asks for. They cost nothing before they are open.
WANTED = 65_536

#: Of these, files that each stream takes: its client's connection and the one to the model.
A_STREAM = 2
#: And further ones: connections that wait, other workers, the database.
BESIDE = 200

logger = logging.getLogger(__name__)


def needed(streams: int) -> int:
    """Open files that this many streams need, and Stop beside them."""
    return A_STREAM * streams + BESIDE


def allowed() -> int:
    """How many the system allows this process, or would if it were asked."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit(), WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED))


def limit() -> int:
    """How many this process may have at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def allow(streams: int) -> None:
    """Raise the limit of this process and its children; say so where it stays too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed(), hard))
    if allowed() < needed(streams):
        logger.warning(
            "The system allows %d open files: %d streams (HALT_MAX_STREAMS) and what is beside "
            "them need %d. Raise the limit (ulimit -Hn; LimitNOFILE= of systemd).",
            allowed(),
            streams,
            needed(streams),
        )

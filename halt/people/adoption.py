"""What earlier versions of Halt kept for each browser becomes a person's.

In those versions each browser was an owner. On loopback without a token the one person has used all
of them. With a token, behind a proxy or under further host names several people may have, each with
a list of their own: then nothing is merged until `halt-chat adopt`.
"""

from __future__ import annotations

import logging

from halt.config.settings import Config
from halt.counted import counted
from halt.errors import HaltError
from halt.people.person import MINE, mode_of
from halt.store.database import Database
from halt.store.owners import Owners

logger = logging.getLogger(__name__)


def at_start(config: Config, database: Database) -> None:
    """In the mode `mine`, give its person what browsers of an earlier version have.

    Raises ConfigError if the database cannot be used.
    """
    if mode_of(config) != "mine":
        return
    owners = Owners(database)
    try:
        browsers = owners.browsers()
        if not browsers:
            return
        if len(browsers) > 1 and _may_be_a_team(config):
            logger.warning(
                "the conversations of %d browsers of an earlier version are not shown: "
                "`halt-chat adopt` lists them and makes them yours",
                len(browsers),
            )
            return
        count = owners.give(browsers, MINE.id, also_running=True)
    except HaltError as fault:
        logger.error("conversations of an earlier version are not shown yet: %s", fault.message)
        return
    logger.info(
        "%s of an earlier version %s shown in each browser now",
        counted(count, "conversation"),
        "is" if count == 1 else "are",
    )


def _may_be_a_team(config: Config) -> bool:
    """Whether several people may have used this Halt: others can reach it."""
    return bool(config.token or config.trusted_proxies or config.named_hosts)

"""All parts of the store, over one database."""

from __future__ import annotations

from halt.store.conversations import Conversations
from halt.store.database import Database
from halt.store.generations import Generations
from halt.store.search import Search
from halt.store.transfer import Transfer
from halt.store.turns import Turns


class Store:
    """Conversations and the logs of generations. Safe to use from any thread and process.

    Every method of a part raises StoreUnavailable where the database can't be reached, is locked,
    read-only or full; then nothing of what was asked for has happened. Structure (`turns`) is
    written at once, by the request that asks for it; what a generation produces is written behind,
    in batches, by `generations`.
    """

    def __init__(self, database: Database, events_days: float = 7.0) -> None:
        """`events_days`: how long the events of generations that have ended are kept."""
        self.database = database
        self.conversations = Conversations(database)
        self.turns = Turns(database)
        self.search = Search(database)
        self.transfer = Transfer(database)
        self.generations = Generations(database, events_days)

    def close(self) -> None:
        """Close all connections to the database."""
        self.database.close()

"""Combines the parts of the store over one database."""

from __future__ import annotations

from halt.store.accounts import AccountRows
from halt.store.connected import ConnectedRows
from halt.store.conversations import Conversations
from halt.store.database import Database
from halt.store.files import Files
from halt.store.generations import Generations
from halt.store.models import NamedPrompt, Preset
from halt.store.named_rows import NamedRows
from halt.store.owners import Owners
from halt.store.people import People
from halt.store.pictures import Pictures
from halt.store.search import Search
from halt.store.sign_ins import SignIns
from halt.store.tables import named_prompts, presets
from halt.store.transfer import Transfer
from halt.store.turns import Turns

PROMPTS_MAX, PRESETS_MAX = 100, 50  # of one owner


class Store:
    """Conversations and the events of generations. Any thread and process may use it.

    Every method of a part raises StoreUnavailable if the database cannot be reached, is locked,
    read-only or full; the call has then changed nothing. The request thread itself writes changes
    of a conversation (`turns`); `halt.store.writer` writes the events of generations later, in
    batches, through `generations`.
    """

    def __init__(self, database: Database, events_days: float = 7.0) -> None:
        """`events_days`: days for which the events of ended generations are kept."""
        self.database = database
        self.conversations = Conversations(database)
        self.turns = Turns(database)
        self.search = Search(database)
        self.transfer = Transfer(database)
        self.generations = Generations(database, events_days)
        self.named_prompts = NamedRows(database, named_prompts, NamedPrompt, PROMPTS_MAX, "prompts")
        self.people = People(database)
        self.owners = Owners(database)
        self.sign_ins = SignIns(database)
        self.accounts = AccountRows(database)
        self.connected = ConnectedRows(database)
        self.files = Files(database)
        self.pictures = Pictures(database)
        self.presets = NamedRows(database, presets, Preset, PRESETS_MAX, "presets")

    def close(self) -> None:
        """Close all connections to the database."""
        self.database.close()

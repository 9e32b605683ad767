"""The tables of the store. The migrations in `halt/store/migrations` create them.

`owner` is the ID of a person. A conversation is a tree of messages: `parent_id` refers to the
parent; `chosen_id`, and `first_id` of the conversation, refer to the next message of the path that
is shown. `generations` has a row for each stream. While a stream runs its events are rows of
`chunks`; afterwards they are in the column `events`, compressed.

The code refers to a column by its `key` where that differs from the name in the database.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)

from halt.config.providers import ModelSettings
from halt.core.events import Terminal
from halt.core.steps import Step
from halt.files.facts import Facts, Role


def storable(value: str) -> str:
    """A text that every database accepts: NUL and lone surrogates are replaced."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Storable(TypeDecorator[str]):
    """A text of a user or a model; `storable` is applied when it is written."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else storable(value)


class Json(TypeDecorator[Any]):
    """A value as JSON bytes, read with `decoder`; `empty` for a missing one."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, decoder: msgspec.json.Decoder[Any], empty: Any = None) -> None:
        super().__init__()
        self.decoder, self.empty = decoder, empty

    def process_bind_param(self, value: Any, dialect: Any) -> bytes | None:
        return None if value is None else _encode(value)

    def process_result_value(self, value: bytes | None, dialect: Any) -> Any:
        return self.decoder.decode(value) if value else self.empty


class LenientJson(Json):
    """The same, where `fallback` also replaces what is not understood, as of a newer version."""

    cache_ok = True

    def __init__(self, decoder: msgspec.json.Decoder[Any], fallback: Any) -> None:
        super().__init__(decoder)
        self._fallback = fallback  # not hashable: SQLAlchemy tells the types by their decoders

    def process_result_value(self, value: bytes | None, dialect: Any) -> Any:
        try:
            return self.decoder.decode(value) if value else self._fallback
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._fallback


_encode = msgspec.json.Encoder().encode

#: SQLite numbers rows automatically only in a column of the type INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")

#: The last migration, which results in these tables.
REVISION = "0006"

metadata = MetaData()  # all times in its tables: seconds since 1970


def _owner(context: Any) -> Any:
    """The owner in the row that is inserted."""
    return context.get_current_parameters()["owner"]


def _partial(name: str, columns: str | tuple[str, ...], condition: str) -> Index:
    """An index of the rows that meet the condition."""
    part = text(condition)
    names = (columns,) if isinstance(columns, str) else columns
    return Index(name, *names, sqlite_where=part, postgresql_where=part)


conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),  # the ID of a person
    #: The owner in the index of words. It stays when another person takes the conversation over,
    #: because indexing takes 8 us for each character of a Chinese text.
    Column("indexed_as", Text, nullable=False, default=_owner),
    Column("title", Storable, nullable=False, default=""),
    Column("titled_by", Text, nullable=False, default="words"),  # words, model, user
    Column("model", Storable, nullable=False, default=""),
    Column("system_prompt", Storable),
    Column("prompt_name", Storable),  # of the named prompt that `system_prompt` is a copy of
    Column("temperature", Double),
    Column("top_p", Double),
    Column("max_tokens", Integer),
    Column("first_id", BigInteger),  # the first message of the path
    Column("created_at", Double, nullable=False, default=time.time),
    Column("updated_at", Double, nullable=False, default=time.time),
    Column("pinned_at", Double),
    Column("archived_at", Double),
    Column("deleted_at", Double),
    _partial("conversations_listed", ("owner", "updated_at", "id"), "archived_at IS NULL"),
    _partial("conversations_archived", ("owner", "updated_at", "id"), "archived_at IS NOT NULL"),
    _partial("conversations_pinned", ("owner", "pinned_at"), "pinned_at IS NOT NULL"),
    _partial("conversations_deleted", "deleted_at", "deleted_at IS NOT NULL"),
    _partial("conversations_empty", "updated_at", "first_id IS NULL"),
    Index("conversations_indexed", "owner", "indexed_as"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("conversation_id", Text, ForeignKey("conversations.id"), nullable=False),
    Column("parent_id", BigInteger),
    Column("chosen_id", BigInteger),  # the child that the path leads to
    Column("depth", Integer, nullable=False, default=0),
    Column("role", Text, nullable=False),  # user, assistant
    Column("asked_model", Storable, key="requested_model", nullable=False, default=""),
    Column("model", Storable, nullable=False, default=""),
    Column("stream_id", Text, nullable=False, default=""),  # of its last generation
    Column("state", Text, nullable=False),  # halt.store.models.State
    #: Alternatives share this number, the ID of the first.
    Column("rivals", BigInteger, key="first_alternative_id"),
    #: Selected among its alternatives.
    Column("picked", Boolean, key="selected", nullable=False, default=False),
    Column("edited", Boolean, nullable=False, server_default=false()),  # the user wrote this answer
    Column("created_at", Double, nullable=False, default=time.time),
    Column("ended", Json(msgspec.json.Decoder(Terminal))),
    Column("folds", Json(msgspec.json.Decoder(tuple[Step, ...]), ()), key="steps"),
    Column("trigrams", Storable),  # indexed in place of the content: see `halt.store.search`
    Column("content", Storable, nullable=False),
    Index("messages_tree", "conversation_id", "parent_id"),
    Index("messages_newest", "created_at", "id"),
    _partial("messages_running", "conversation_id", "state = 'running'"),
    sqlite_autoincrement=True,  # no ID is used twice: open pages keep IDs
)

generations = Table(
    "generations",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("id", Text, primary_key=True),  # the stream ID
    Column("conversation_id", Text),
    Column("message_id", BigInteger),
    Column("worker", Text, nullable=False),
    Column("state", Text, nullable=False, default="running"),
    Column("asked_model", Storable, key="requested_model", nullable=False),
    Column("model", Text, nullable=False, default=""),
    Column("prefix_chars", Integer, nullable=False, default=0),  # of the text before it
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("last_seq", Integer, nullable=False, default=0),
    Column("seen", Integer),
    Column("prompt_tokens", Integer, nullable=False, default=0),
    Column("completion_tokens", Integer, nullable=False, default=0),
    Column("estimated", Boolean, nullable=False, default=False),
    Column("usage", LargeBinary),  # as the provider reported it, JSON
    Column("ended", LargeBinary),  # the terminal event, JSON
    Column("events", LargeBinary),  # all events, compressed; only after the end, until they expire
    Index("generations_conversation", "conversation_id"),
    Index("generations_message", "message_id"),
    _partial("generations_running", "worker", "state = 'running'"),
    _partial("generations_kept", "ended_at", "events IS NOT NULL"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("generation_id", Text, primary_key=True),
    Column("first_seq", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),  # [[milliseconds, event], ...], JSON
)

#: The files of a person, under the hash of their content: so no hash tells what others have.
files = Table(
    "files",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("hash", Text, primary_key=True),  # SHA-256, hexadecimal
    Column("facts", Json(msgspec.json.Decoder(Facts)), nullable=False),
    Column("sizes", Json(msgspec.json.Decoder(dict[Role, int])), nullable=False),  # bytes
    Column("size", BigInteger, nullable=False),  # bytes of all its parts
    Column("complete", Boolean, nullable=False, default=False),  # all its parts are there
    Column("uploaded_at", Double, nullable=False, default=time.time),  # the last time
    Column("unused_since", Double, default=time.time),  # NULL: a message has it
    _partial("files_unused", "unused_since", "unused_since IS NOT NULL"),
)

#: The bytes of files, in rows of at most `halt.store.files.PART`.
file_parts = Table(
    "file_parts",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("hash", Text, primary_key=True),
    Column("role", Text, primary_key=True),  # halt.files.facts.Role
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

#: The files of messages: those of a prompt, and the images of an answer.
attachments = Table(
    "attachments",
    metadata,
    Column("message_id", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("name", Storable, nullable=False),  # of the file in this message
    Index("attachments_file", "owner", "hash"),
)

#: System prompts that a person has saved under a name.
named_prompts = Table(
    "named_prompts",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("name", Storable, primary_key=True),
    Column("content", Storable, nullable=False),
    Column("updated_at", Double, nullable=False, default=time.time),
)

#: Sampling settings that a person has saved under a name; NULL: the model's default.
presets = Table(
    "presets",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("name", Storable, primary_key=True),
    Column("temperature", Double),
    Column("top_p", Double),
    Column("max_tokens", Integer),
    Column("updated_at", Double, nullable=False, default=time.time),
)

#: The people who have used this Halt (`halt.people`).
people = Table(
    "people",
    metadata,
    Column("id", Text, primary_key=True),
    Column("mode", Text, nullable=False),  # halt.people.person.Mode, or "browser"
    Column("issuer", Storable, nullable=False, default=""),
    Column("subject", Storable, nullable=False, default=""),
    Column("name", Storable, nullable=False, default=""),  # for display
    Column("is_admin", Boolean, nullable=False, default=False),
    Column("created_at", Double, nullable=False, default=time.time),
    Column("disabled_at", Double),
    Column("removed_at", Double),  # its streams are being stopped; then its rows go
)

#: What a person of the mode `accounts` signs in with.
accounts = Table(
    "accounts",
    metadata,
    Column("person_id", Text, ForeignKey("people.id"), primary_key=True),
    Column("name", Text, nullable=False, unique=True),  # normalized
    Column("password", Text),  # scrypt; NULL: only the link works
    Column("link_digest", Text, unique=True),  # SHA-256 of the one-time link's token
    Column("link_until", Double),
)

#: The signed-in browsers of the modes `accounts` and `oidc`.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column("digest", Text, primary_key=True),  # SHA-256 of the token in the browser's cookie
    Column("person_id", Text, ForeignKey("people.id"), nullable=False),
    Column("created_at", Double, nullable=False, default=time.time),
    Column("seen_at", Double, nullable=False, default=time.time),
    Column("until", Double, nullable=False),
    Column("agent", Storable, nullable=False, default=""),  # User-Agent at the sign-in
    Column("address", Text, nullable=False, default=""),  # at the sign-in
    Column("id_token", Text),  # of the provider, for the sign-out there
    Index("sign_ins_person", "person_id"),
    Index("sign_ins_until", "until"),
)

#: The API tokens that people have made for their programs.
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("digest", Text, primary_key=True),  # SHA-256 of the token
    Column("person_id", Text, ForeignKey("people.id"), nullable=False),
    Column("name", Storable, nullable=False),
    Column("created_at", Double, nullable=False, default=time.time),
    Column("used_at", Double),
    Index("api_tokens_person", "person_id"),
)

_names = LenientJson(msgspec.json.Decoder(tuple[str, ...]), ())

#: The providers that were connected on the page.
connected_providers = Table(
    "connected_providers",
    metadata,
    Column("name", Storable, primary_key=True),
    Column("kind", Text, nullable=False),  # halt.config.providers.Kind
    Column("preset", Storable, nullable=False),  # "" for none
    Column("title", Storable, nullable=False),
    Column("base_url", Storable, nullable=False),
    Column("api_version", Storable, nullable=False),
    Column("max_tokens", Integer),
    Column("models", _names, nullable=False),  # empty: those of the server's list
    Column("own_keys", Boolean, nullable=False),  # people may save keys of their own for it
    Column("created_at", Double, nullable=False),
)

#: The keys of providers, and the values of their headers: encrypted (`halt.connected.vault`).
provider_keys = Table(
    "provider_keys",
    metadata,
    Column("provider", Storable, primary_key=True),  # also of one in the settings
    Column("person", Text, primary_key=True),  # "": for everybody
    Column("sealed", LargeBinary, nullable=False),
    Column("last_four", Storable, nullable=False),  # characters of the key
    Column("header_names", _names, nullable=False),
    Column("updated_at", Double, nullable=False, default=time.time),
    Index("provider_keys_person", "person"),
)

#: What was chosen on the page for a model of any provider.
model_settings = Table(
    "model_settings",
    metadata,
    Column("provider", Storable, primary_key=True),
    Column("model", Storable, primary_key=True),
    Column(
        "settings",
        LenientJson(msgspec.json.Decoder(ModelSettings), ModelSettings()),
        nullable=False,
    ),
    Column("position", Integer),  # in the list of its provider's models, from 0
)

#: Single values, as JSON.
site_values = Table(
    "site_values",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Storable, nullable=False),
)

"""The providers that were connected on the page, their sealed keys, and the settings of models.

Every change adds 1 to a version, by which the workers of all hosts notice it. The row of the
version is also the lock of the changes: each one writes it first, so that they happen one after the
other, on PostgreSQL too.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, func, insert, select, update

from halt.config.providers import Kind, ModelSettings
from halt.errors import RequestError, SignInEnded
from halt.store import model_rows
from halt.store.database import Database, execute, upsert
from halt.store.tables import (
    connected_providers,
    model_settings,
    people,
    provider_keys,
    site_values,
    storable,
)

PROVIDERS_MAX = 100
OWN_KEYS_MAX = 100  # of one person


class UnknownProvider(RequestError):
    """The provider was removed, or has another address than the one that the key is meant for."""

    code = "unknown_provider"
    status = 404


@dataclass(frozen=True)
class ProviderRow:
    """A connected provider. The names of the fields are those of `ProviderSettings`."""

    name: str
    kind: Kind
    preset: str = ""
    title: str = ""
    base_url: str = ""
    api_version: str = ""
    max_tokens: int | None = None
    models: tuple[str, ...] = ()  # that were typed; empty: those of the server's list
    own_keys: bool = False  # people may save keys of their own for it
    created_at: float = 0.0  # seconds since 1970; set by `ConnectedRows.add`


@dataclass(frozen=True)
class KeyRow:
    """The sealed secrets for a provider; those of the person "" are for everybody."""

    provider: str
    person: str
    sealed: bytes = field(repr=False)
    last_four: str = ""  # characters of the key, "" for a short one
    header_names: tuple[str, ...] = ()
    updated_at: float = 0.0  # seconds since 1970; set when it is saved


@dataclass(frozen=True)
class ModelRow:
    """What was chosen for a model of any provider."""

    provider: str
    model: str
    settings: ModelSettings
    position: int | None = None  # in the list of the provider's models, from 0


@dataclass(frozen=True)
class Snapshot:
    """All rows, at one version."""

    version: int
    providers: tuple[ProviderRow, ...]  # in the order in which they were added
    keys: tuple[KeyRow, ...]
    models: tuple[ModelRow, ...]
    default: tuple[str, str] | None  # provider and model


class ConnectedRows:
    """The tables of connected providers. Any thread and process may use it.

    Every method raises StoreUnavailable like those of `Store`; the call has then changed nothing.
    Changes return the new version.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- reading ----------------------------------------------------------------------------------

    def version(self) -> int:
        """The number of changes so far. Another number, also a smaller one, means other rows.

        It is smaller after a backup of the database was put back.
        """
        with self._database.reading() as connection:
            return _version(connection)

    @property
    def file_state(self) -> tuple[int, ...]:
        """Another value after a commit of any process, empty where there is no file to ask.

        Two commits within a tick of the file system's clock, 4 ms, may look like one.
        """
        return self._database.file_state

    def snapshot(self) -> Snapshot:
        """All rows, as they were at one moment."""
        order = (connected_providers.c.created_at, connected_providers.c.name)
        with self._database.reading() as connection:
            return Snapshot(
                _version(connection),
                tuple(_all(connection, connected_providers, ProviderRow, *order)),
                tuple(_all(connection, provider_keys, KeyRow)),
                tuple(_all(connection, model_settings, ModelRow)),
                _default(connection),
            )

    # --- providers --------------------------------------------------------------------------------

    def add(self, row: ProviderRow, key: KeyRow | None = None) -> int:
        """Add a provider, the last in the order, with the key for everybody.

        Keys that are left of a provider of this name in the settings are removed: they were meant
        for another address. Raises RequestError if the name is taken, also by a simultaneous call,
        or if there are PROVIDERS_MAX.
        """
        row = replace(row, name=storable(row.name))
        with self._changing() as (connection, version):
            query = select(connected_providers.c.name, connected_providers.c.created_at)
            created = {each.name: each.created_at for each in connection.execute(query)}
            if row.name in created:
                raise RequestError(
                    f"There is a provider with the name {row.name!r} already.", field="name"
                )
            if len(created) >= PROVIDERS_MAX:
                raise RequestError(
                    f"{PROVIDERS_MAX} providers are connected already. Remove one of them first.",
                    field="name",
                )
            # The order is right for a clock that was set back, too.
            latest = math.nextafter(max(created.values(), default=0.0), math.inf)
            values = _values(replace(row, created_at=max(time.time(), latest)))
            connection.execute(insert(connected_providers).values(values))
            _remove_keys(connection, row.name)
            if key is not None:
                _save_key(connection, replace(key, provider=row.name, person=""))
            return version

    def change(self, row: ProviderRow, key: KeyRow | None = None, *, drop_keys: bool) -> int:
        """Change everything of a provider but its name and its place in the order.

        Without `key` the key for everybody stays. `drop_keys`: first remove it and all people's own
        keys, because the address has changed. Raises UnknownProvider if it was removed meanwhile.
        """
        row = replace(row, name=storable(row.name))
        with self._changing() as (connection, version):
            values = _values(row)
            del values["created_at"]
            statement = update(connected_providers).where(connected_providers.c.name == row.name)
            if connection.execute(statement.values(values)).rowcount == 0:
                raise _unknown(row.name)
            if drop_keys:
                _remove_keys(connection, row.name)
            if key is not None:
                _save_key(connection, replace(key, provider=row.name, person=""))
            return version

    def remove(self, name: str) -> int | None:
        """Remove a provider with its keys and its models' settings. None if there is none.

        If the default model is one of its models, there is no default any more.
        """
        with self._changing() as (connection, version):
            default = _default(connection)
            if default is not None and default[0] == storable(name):
                connection.execute(delete(site_values).where(site_values.c.name == "default_model"))
            _remove_keys(connection, name)
            connection.execute(delete(model_settings).where(model_settings.c.provider == name))
            statement = delete(connected_providers).where(connected_providers.c.name == name)
            return version if connection.execute(statement).rowcount else None

    # --- keys -------------------------------------------------------------------------------------

    def save_key(self, key: KeyRow, *, base_url: str | None = None) -> int:
        """Save a key for everybody, or a person's own; it replaces the one before.

        `base_url`: the address that it is meant for; if the provider was removed meanwhile, or has
        another address, UnknownProvider is raised. Leave it out for a provider of the settings,
        which has no row. Raises SignInEnded if the person has no row or is being removed, and
        RequestError beyond OWN_KEYS_MAX own keys.
        """
        key = replace(key, provider=storable(key.provider))
        with self._changing() as (connection, version):
            if base_url is not None or not key.person:
                query = select(connected_providers.c.base_url)
                found = connection.scalar(query.where(connected_providers.c.name == key.provider))
                if found is None or (base_url is not None and found != storable(base_url)):
                    raise _unknown(key.provider)
            if key.person:
                _check_person(connection, key)
            _save_key(connection, key)
            return version

    def remove_key(self, provider: str, person: str) -> int | None:
        """Remove a key. None if there is none."""
        with self._changing() as (connection, version):
            statement = delete(provider_keys).where(
                provider_keys.c.provider == provider, provider_keys.c.person == person
            )
            return version if connection.execute(statement).rowcount else None

    def reseal(self, provider: str, person: str, old_sealed: bytes, new_sealed: bytes) -> bool:
        """Replace sealed secrets by the same ones, sealed anew. The version stays.

        False, and nothing is changed, if another key was saved meanwhile.
        """
        statement = (
            update(provider_keys)
            .where(
                provider_keys.c.provider == provider,
                provider_keys.c.person == person,
                provider_keys.c.sealed == old_sealed,
            )
            .values(sealed=new_sealed)
        )
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount == 1

    # --- models -----------------------------------------------------------------------------------

    def set_model(self, provider: str, model: str, settings: ModelSettings) -> int:
        """Save the settings of a model of any provider; its position stays.

        Raises RequestError if `model_rows.MODELS_MAX` other models have settings or a position.
        """
        with self._changing() as (connection, version):
            model_rows.save_settings(connection, provider, model, settings)
            return version

    def order_models(self, provider: str, models: Sequence[str]) -> int:
        """Give these models the positions from 0, and the provider's other models none.

        Raises RequestError for more than `model_rows.ORDER_MAX`, and as `set_model` does.
        """
        names = model_rows.checked_order(models)
        with self._changing() as (connection, version):
            model_rows.save_order(connection, provider, names)
            return version

    def set_default(self, default: tuple[str, str] | None) -> int:
        """Set the default model: its provider and its name. None: there is none any more."""
        with self._changing() as (connection, version):
            if default is None:
                connection.execute(delete(site_values).where(site_values.c.name == "default_model"))
                return version
            value = msgspec.json.encode(list(map(storable, default))).decode()
            statement = upsert(connection, site_values).values(name="default_model", value=value)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
            )
            return version

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Connection, int]]:
        """A transaction and the version that it makes. Others wait for its end."""
        with self._database.writing() as connection:
            yield connection, _next_version(connection)


def remove_keys_of(connection: Connection, person: str) -> None:
    """Remove a person's own keys, within the transaction that removes the person."""
    _next_version(connection)  # no key of the person is being saved after this
    connection.execute(delete(provider_keys).where(provider_keys.c.person == person))


_read_default = msgspec.json.Decoder(tuple[str, str]).decode

# Plain SQL, which SQLAlchemy need not build: each worker reads the version every second.
_VERSION = "SELECT value FROM site_values WHERE name = 'version'"
_NEXT_VERSION = """
    INSERT INTO site_values (name, value) VALUES ('version', '1')
    ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(site_values.value AS BIGINT) + 1 AS TEXT)
    RETURNING value
"""


def _version(connection: Connection) -> int:
    row = execute(connection, _VERSION, ()).fetchone()
    return int(row[0]) if row else 0


def _next_version(connection: Connection) -> int:
    """Add 1 to the version; its row is locked from now on."""
    ((version,),) = execute(connection, _NEXT_VERSION, ()).fetchall()
    return int(version)


def _default(connection: Connection) -> tuple[str, str] | None:
    query = select(site_values.c.value).where(site_values.c.name == "default_model")
    value = connection.scalar(query)
    try:
        return None if value is None else _read_default(value)
    except msgspec.DecodeError:  # of a newer version
        return None


def _all(connection: Connection, table: Table, kind: type[Any], *order: Any) -> Iterator[Any]:
    """The rows of a table, as dataclasses whose fields are its columns."""
    columns = [table.c[item.name] for item in fields(kind)]
    query = select(*columns).order_by(*(order or table.primary_key))
    return (kind(*row) for row in connection.execute(query))


def _values(row: ProviderRow | KeyRow) -> dict[str, Any]:
    """The values of a row's columns; tuples of texts become storable."""
    values = {item.name: getattr(row, item.name) for item in fields(row)}
    return {
        name: tuple(map(storable, value)) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _save_key(connection: Connection, key: KeyRow) -> None:
    values = _values(replace(key, updated_at=time.time()))
    statement = upsert(connection, provider_keys).values(values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["provider", "person"], set_=values)
    )


def _remove_keys(connection: Connection, provider: str) -> None:
    """Remove the keys of all people for a provider."""
    connection.execute(delete(provider_keys).where(provider_keys.c.provider == provider))


def _check_person(connection: Connection, key: KeyRow) -> None:
    """Raise for a person who is not known any more, or who has as many keys as are allowed."""
    known = select(people.c.id).where(people.c.id == key.person, people.c.removed_at.is_(None))
    if connection.scalar(known) is None:
        raise SignInEnded
    others = select(func.count()).where(
        provider_keys.c.person == key.person, provider_keys.c.provider != key.provider
    )
    if (connection.scalar(others) or 0) >= OWN_KEYS_MAX:
        raise RequestError(
            f"You have saved {OWN_KEYS_MAX} keys already. Remove one of them first.", field="key"
        )


def _unknown(name: str) -> UnknownProvider:
    return UnknownProvider(
        f"The provider {name!r} was removed or changed meanwhile. Reload the page.", field="name"
    )

"""Connected providers for the terminal's commands, read from the database, if there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.connected.service import ConnectedProviders
from halt.connected.settings import Unusable, connected_settings
from halt.connected.vault import make_vault
from halt.providers.factory import make_provider
from halt.providers.router import Providers
from halt.store.connected import ConnectedRows, Snapshot
from halt.store.migrate import existing_database

NOTHING = Snapshot(0, (), (), (), None)


@contextlib.contextmanager
def _rows(config: Config) -> Iterator[ConnectedRows | None]:
    """The rows; None if no database exists. Raises ConfigError, StoreUnavailable."""
    database = existing_database(config.data_folder, config.database_url)
    if database is None:
        yield None
        return
    with contextlib.closing(database):
        yield ConnectedRows(database)


def saved_settings(config: Config) -> dict[str, ProviderSettings | Unusable]:
    """The settings of each connected provider by its name. Raises ConfigError, StoreUnavailable."""
    with _rows(config) as rows:
        if rows is None:
            return {}
        return connected_settings(config, make_vault(config), rows.snapshot())


def connect_saved(config: Config, providers: Providers) -> Snapshot:
    """Add the connected providers, and what was chosen for models, to `providers`.

    Returns the rows. Raises ConfigError, StoreUnavailable; `providers` is then unchanged.
    """
    with _rows(config) as rows:
        if rows is None:
            return NOTHING
        connected = ConnectedProviders(config, rows, make_vault(config), providers, make_provider)
        connected.load()
        return connected.snapshot

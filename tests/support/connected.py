"""Connect providers to a running server, as the terminal's commands do: through its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halt.config.environment import load
from halt.connected.details import Details
from halt.connected.service import ConnectedProviders
from halt.connected.vault import make_vault
from halt.providers.factory import make_provider
from halt.providers.router import Providers
from tests.support.people import store_at


@contextmanager
def connected_at(folder: Path, url: str = "", **variables: str) -> Iterator[ConnectedProviders]:
    """The connected providers of a server with this data folder, in this process."""
    config = load({"HALT_DATA": str(folder), "DATABASE_URL": url, **variables})
    store, providers = store_at(folder, url), Providers({})
    connected = ConnectedProviders(
        config, store.connected, make_vault(config), providers, make_provider
    )
    connected.look()
    try:
        yield connected
    finally:
        connected.close(1.0)
        providers.close()
        store.close()


@contextmanager
def removed_at_the_end(folder: Path) -> Iterator[ConnectedProviders]:
    """The same; at the end all of them are removed, for a server that several tests share."""
    with connected_at(folder) as service:
        yield service
        for row in service.snapshot.providers:
            service.remove(row.name)


def details(address: str, **more: Any) -> Details:
    """An OpenAI-compatible server at this address."""
    return Details(**{"preset": "compatible", "title": "Second", "base_url": address, **more})

"""Rows that this version of Halt does not understand: all other providers go on."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from halt.config.providers import ModelSettings
from halt.config.settings import Config
from halt.connected.details import Details
from halt.connected.service import ConnectedProviders
from halt.connected.vault import Vault
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Message
from halt.errors import RequestError, UpstreamError
from halt.providers.factory import make_provider, make_upstream
from halt.store.store import Store
from halt.store.tables import connected_providers, model_settings, site_values
from halt.testing.fake_openai import FakeOpenAI
from tests.support.provider_answers import read

#: Values of a column that no version so far writes.
FOREIGN = [{"kind": "telepathy"}, {"base_url": "http://[::1]x/v1"}, {"base_url": "no address"}]


def service_of(store: Store) -> ConnectedProviders:
    config = Config(discover="0", own_keys=True)
    upstream = make_upstream(config)
    return ConnectedProviders(config, store.connected, Vault(["a" * 32]), upstream, make_provider)


def ask(connected: ConnectedProviders, model: str) -> str:
    request = ChatRequest([Message("user", "Hello")], model=model)
    return read(connected.providers.open(request, UpstreamConnection())).text


def details(fake: FakeOpenAI, title: str) -> Details:
    return Details(
        preset="compatible", title=title, base_url=fake.base_url, key="sk-a-long-key", own_keys=True
    )


@pytest.mark.parametrize("values", FOREIGN)
def test_other_providers_go_on(store: Store, fake: FakeOpenAI, values: dict[str, str]) -> None:
    """The one that is not understood says so, gets no request, and can be removed."""
    before = service_of(store)
    before.add(details(fake, "Foreign"))
    before.add(details(fake, "Good"))
    with store.database.writing() as connection:
        query = update(connected_providers).where(connected_providers.c.name == "foreign")
        connection.execute(query.values(values))
    connected = service_of(store)
    connected.look()
    assert ask(connected, "good/echo")
    sent = len(fake.requests)
    with pytest.raises(UpstreamError, match=r"not understood by this version|enter the key again"):
        ask(connected, "foreign/echo")
    assert len(fake.requests) == sent
    connected.add(details(fake, "Third"))  # a change is applied
    assert ask(connected, "third/echo")
    connected.remove("foreign")
    assert "foreign" not in connected.providers.names
    for each in (before, connected):
        each.close(1.0)
        each.providers.close()


def test_foreign_settings_of_models_count_as_none(store: Store, fake: FakeOpenAI) -> None:
    """So does a default model in another form."""
    connected = service_of(store)
    connected.add(details(fake, "Good"))
    with store.database.writing() as connection:
        for model, text in {"echo": b'{"continues":"telepathy"}', "text": b"\xff{"}.items():
            row = {"provider": "good", "model": model, "settings": ModelSettings()}
            connection.execute(insert(model_settings).values(row))
            connection.exec_driver_sql(
                "UPDATE model_settings SET settings = ? WHERE model = ?", (text, model)
            )
        connection.execute(insert(site_values).values(name="default_model", value='{"a":1}'))
    connected.load()
    assert connected.snapshot.default is None
    assert [row.settings.continues for row in connected.snapshot.models] == ["", ""]
    assert ask(connected, "good/echo")
    connected.close(1.0)
    connected.providers.close()


@pytest.mark.parametrize(
    "address", ["http://0251.0376.0251.0376/v1", "http://[::1]x/v1", "http://[v1.x]/v1"]
)
def test_address_that_cannot_be_dialled_is_not_saved(store: Store, address: str) -> None:
    """The HTTP client refuses it, so nothing could be sent there."""
    connected = service_of(store)
    with pytest.raises(RequestError) as caught:
        connected.add(Details(preset="compatible", title="Bad", base_url=address))
    assert caught.value.field == "base_url"
    assert not store.connected.snapshot().providers
    connected.close(1.0)
    connected.providers.close()

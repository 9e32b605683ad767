"""Connected providers in a server: every worker has them, and runs outlive their change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halt.config.providers import ModelSettings
from halt.connected.service import ConnectedProviders
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import connected_at, details
from tests.support.halt_server import new_id, settings
from tests.support.http_client import Client
from tests.support.multi_worker import MultiWorkerHalt
from tests.support.simple_model_server import ModelRequest, serving
from tests.support.waiting import wait_until

KEY = "sk-connected-0123456789"


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI) -> Iterator[MultiWorkerHalt]:
    """A Halt with two workers and one provider of the settings."""
    server = MultiWorkerHalt(2, settings(shared_fake))
    yield server
    server.close()


@pytest.fixture
def connected(halt: MultiWorkerHalt) -> Iterator[ConnectedProviders]:
    """The server's connected providers, none at the beginning, changed by this process."""
    with connected_at(halt.data_folder) as service:
        for row in service.snapshot.providers:
            service.remove(row.name)
        yield service


def clients(halt: MultiWorkerHalt) -> list[Client]:
    """A client of each worker."""
    return [halt.client_of(name) for name in halt.names]


def models(client: Client) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json["data"]]


def test_every_worker_takes_up_a_change(
    halt: MultiWorkerHalt, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """A provider that another process connects, changes and removes, without a restart."""
    before = models(clients(halt)[0])
    connected.add(details(fake.base_url, key=KEY, models=("count?n=2", "echo")))
    for client in clients(halt):
        wait_until(lambda: models(client)[len(before) :] == ["second/count?n=2", "second/echo"])
        assert models(client)[: len(before)] == before
        assert client.chat("second/count?n=2").to_end().text == "0 1 "
        assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    connected.set_model("second", "echo", ModelSettings(hidden=True))
    for client in clients(halt):
        wait_until(lambda: models(client)[len(before) :] == ["second/count?n=2"])
    connected.remove("second")
    for client in clients(halt):
        wait_until(lambda: models(client) == before)


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_answer_goes_on_after_a_change(
    halt: MultiWorkerHalt, connected: ConnectedProviders, fake: FakeOpenAI, change: str
) -> None:
    """A run of a provider that was changed or removed is read to its end, and Stop closes it."""
    connected.add(details(fake.base_url, key=KEY, models=("held",)))
    client = clients(halt)[0]
    wait_until(lambda: "second/held" in models(client))
    stream_id = new_id()
    with client.chat("second/count?n=100000&gap_ms=20", id=stream_id) as stream:
        stream.until_text("1 ")
        if change == "edit":
            connected.change("second", details("http://127.0.0.1:9/v1", models=("other",)))
            wait_until(lambda: "second/other" in models(client))
        else:
            connected.remove("second")
            wait_until(lambda: "second/held" not in models(client))
        stream.until_text("30 ")
        (record,) = [r for r in fake.requests if r.scenario]
        assert not record.ended.is_set()
        assert client.stop(stream_id).json["upstream"] == "closed"
        assert stream.to_end().terminal["type"] == "cancelled"


def quoting(request: ModelRequest) -> None:
    """Refuse the key, and quote it, as several servers do."""
    key = request.headers["Authorization"].removeprefix("Bearer ")
    request.reply({"error": {"message": f"The key {key} is unknown at Example."}}, 401)


def test_broken_key_is_told_in_the_words_of_the_server(
    halt: MultiWorkerHalt, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """The server's own words reach the client, without the key; a mended key works at once."""
    client = clients(halt)[0]
    with serving(quoting, quoting) as address:
        connected.add(details(address, key=KEY, models=("count?n=1",)))
        wait_until(lambda: "second/count?n=1" in models(client))
        error = client.chat("second/count?n=1").to_end().terminal["error"]
        assert error["code"] == "unauthorized"
        assert "The key [key] is unknown at Example." in error["message"]
    connected.change("second", details(fake.base_url, key=KEY, models=("count?n=2",)))
    wait_until(lambda: "second/count?n=2" in models(client))
    assert client.chat("second/count?n=2").to_end().text == "0 1 "
    assert KEY not in halt.printed

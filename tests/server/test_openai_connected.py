"""OpenAI's own client at a Halt with a provider of the settings and connected ones."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from halt.config.providers import ModelSettings
from halt.connected.service import ConnectedProviders
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import connected_at, details
from tests.support.halt_server import HaltServer, settings
from tests.support.no_demo import without_demo
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def client_of(halt: HaltServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{halt.url}/v1", api_key="any", max_retries=0)


def names(llm: openai.OpenAI) -> list[str]:
    return [model.id for model in llm.models.list()]


def answer(llm: openai.OpenAI, model: str) -> str | None:
    completion = llm.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello"}]
    )
    return completion.choices[0].message.content


@pytest.fixture
def halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    server = HaltServer(settings(shared_fake))
    yield server
    server.close()


@pytest.fixture
def connected(halt: HaltServer) -> Iterator[ConnectedProviders]:
    with connected_at(halt.data_folder) as service:
        yield service


def test_connected_models_are_listed_after_the_ones_that_keep_their_names(
    halt: HaltServer, connected: ConnectedProviders, fake: FakeOpenAI, shared_fake: FakeOpenAI
) -> None:
    """Bare names stay and go where they went. A hidden model is not listed, and answers by name."""
    with client_of(halt) as llm:
        before = names(llm)
        connected.add(details(fake.base_url, models=("count?n=2", "count?n=3")))
        wait_until(
            lambda: names(llm) == [*before, "second/count?n=2", "second/count?n=3"], SERVER_TIMEOUT
        )
        assert answer(llm, "count?n=1") == "0 "
        assert answer(llm, "second/count?n=2") == "0 1 "
        assert [r.body["model"] for r in fake.requests if r.scenario] == ["count?n=2"]
        connected.set_model("second", "count?n=2", ModelSettings(hidden=True, label="Two"))
        wait_until(lambda: names(llm) == [*before, "second/count?n=3"], SERVER_TIMEOUT)
        assert answer(llm, "second/count?n=2") == "0 1 "
        assert llm.models.retrieve("second/count?n=3").id == "second/count?n=3"
        with pytest.raises(openai.NotFoundError):
            llm.models.retrieve("second/count?n=2")


def test_chosen_default_answers_requests_without_a_model(
    halt: HaltServer, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """The default that was chosen for all people is also that of programs."""
    connected.add(details(fake.base_url, models=("count?n=2", "count?n=3")))
    connected.set_default(("second", "count?n=3"))
    with client_of(halt) as llm:
        wait_until(lambda: "second/count?n=3" in names(llm), SERVER_TIMEOUT)
        # The list may show the first of the two changes alone.
        wait_until(lambda: answer(llm, "") == "0 1 2 ", SERVER_TIMEOUT)
        connected.remove("second")
        wait_until(lambda: "second/count?n=3" not in names(llm), SERVER_TIMEOUT)
        assert answer(llm, "")  # of the first provider again
        assert [r.body["model"] for r in fake.requests if r.scenario] == ["count?n=3"]


def test_without_a_provider_the_list_is_empty_and_requests_are_refused() -> None:
    """Without any provider the list is empty, and a request is refused as `no_model`."""
    with without_demo() as environment:
        halt = HaltServer({**environment, "HALT_DISCOVER": "0"})
        try:
            with client_of(halt) as llm:
                assert names(llm) == []
                with pytest.raises(openai.InternalServerError) as refused:
                    answer(llm, "")
                assert refused.value.code == "no_model"
        finally:
            halt.close()

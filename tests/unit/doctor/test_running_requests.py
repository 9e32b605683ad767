"""ServerLoad of the doctor: the running requests of a model's server, as llama.cpp and vLLM report
them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from halt.config.providers import ProviderSettings
from halt.doctor.running_requests import PAUSES, ServerLoad, busy_slots, running_requests
from halt.testing import work as fake_work
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.work import WorkReply


@pytest.fixture
def load(fake: FakeOpenAI) -> Iterator[ServerLoad]:
    """The load of the fake server, which has a key."""
    settings = ProviderSettings(
        name="openai", kind="openai", base_url=fake.base_url + "/", key="key-1"
    )
    load = ServerLoad(settings, "a/b c")
    yield load
    load.close()


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/slots", fake_work.slots),
        ("/slots", fake_work.old_slots),
        ("/metrics", fake_work.metrics),
    ],
)
def test_count_is_that_of_all_clients_on_one_connection(
    fake: FakeOpenAI, load: ServerLoad, path: str, answer: WorkReply
) -> None:
    """The count includes all clients; its requests have key and model and share one connection."""
    fake.work[path] = answer
    counts = []
    for fake.others in (0, 1, 3):
        counts.append(load.count())
    assert counts == [0, 1, 3]
    assert load.source == f"GET {path}"
    records = [record for record in fake.requests if record.path == path]
    assert [record.headers["authorization"] for record in records] == ["Bearer key-1"] * 3
    assert [record.query for record in records] == ["model=a%2Fb+c"] * 3
    assert {record.connection for record in fake.requests} == {1}


@pytest.mark.parametrize(
    "work",
    [
        {},
        {"/slots": fake_work.disabled},
        {"/slots": fake_work.locked, "/metrics": fake_work.locked},
        {"/slots": fake_work.garbage, "/metrics": fake_work.garbage},
        {"/slots": fake_work.strange},
    ],
    ids=["missing", "disabled", "locked", "garbage", "strange"],
)
def test_count_of_a_server_without_a_report_is_none(
    fake: FakeOpenAI, load: ServerLoad, work: dict[str, WorkReply]
) -> None:
    """The count is None, not 0, if the endpoint is missing, refuses or answers something else."""
    fake.work.update(work)
    assert load.count() is None
    assert load.wait_idle(5.0).running is None


def test_count_of_a_silent_server_is_none_after_its_timeout(
    load: ServerLoad, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of a silent server is None after the timeout of each request; so is that of one
    that is gone.
    """
    monkeypatch.setattr("halt.doctor.running_requests.LOAD_TIMEOUT", 0.1)
    may_end = threading.Event()

    def answer(_: int) -> tuple[int, str, bytes]:
        may_end.wait(30)
        return fake_work.slots(0)

    fake.work["/slots"] = answer
    assert load.count() is None
    may_end.set()
    fake.close()
    assert load.count() is None


def test_wait_idle_returns_at_zero_or_after_its_time(fake: FakeOpenAI, load: ServerLoad) -> None:
    """`wait_idle` returns 0 as soon as the server is idle, or the count when the time is over."""
    counts = iter([2, 1, 0])
    fake.work["/slots"] = lambda _: fake_work.slots(next(counts))
    result = load.wait_idle(60.0)
    assert result.running == 0
    assert 0 < result.last_busy_at < result.ended_at < 60
    fake.work["/slots"] = lambda _: fake_work.slots(2)
    assert load.wait_idle(0.0).running == 2


def test_pauses_between_counts_grow_beyond_a_second() -> None:
    """Pauses grow beyond a second, which a llama.cpp that reads a prompt needs to notice a Stop."""
    assert PAUSES[-1] > 1.0


@pytest.mark.parametrize("kind", ["azure", "anthropic", "openai"])
def test_count_sends_nothing_to_providers_without_the_endpoint(fake: FakeOpenAI, kind: str) -> None:
    """Azure, Anthropic and OpenAI itself get no request."""
    url = "https://api.openai.com/v1" if kind == "openai" else fake.origin
    settings = ProviderSettings(name="x", kind=kind, base_url=url, key="key-1")  # type: ignore[arg-type]
    load = ServerLoad(settings, "m")
    assert load.count() is None
    load.close()
    assert fake.requests == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"[1]", b'[{"id":1}]', b'[{"state":"x"}]', b"\xff", b"[" * 100_000],
)
def test_busy_slots_of_other_json_is_none(body: bytes) -> None:
    """`busy_slots` is None unless there is a slot and each has a state."""
    assert busy_slots(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"# vllm:num_requests_running 1",
        b"vllm:num_requests_running x",
        b"vllm:num_requests_running NaN",
        b"vllm:num_requests_running +Inf",
        b"vllm:num_requests_running -1",
        b"vllm:num_requests_running_total 1",
        b"\xff\xfe",
    ],
)
def test_running_requests_of_another_text_is_none(body: bytes) -> None:
    """`running_requests` is None unless the gauge of that name has a possible number."""
    assert running_requests(body) is None

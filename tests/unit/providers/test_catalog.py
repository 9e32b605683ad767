"""The list of models: asked for in the background, kept for a while, never waited for for long."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.core.connection import UpstreamConnection
from halt.errors import RequestError, UpstreamError
from halt.providers import catalog
from halt.providers.catalog import NAMES_MAX, Catalog, valid_model_name
from halt.providers.model_list import NAME_MAX
from halt.providers.router import Groups
from halt.web.services import services
from tests.support.raw_server import Peer, RawServer
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until


class Offering(ScriptedUpstream):
    """An upstream whose list a test decides."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        super().__init__()
        self.answers = list(answers)
        self.questions = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def models(self, connection: UpstreamConnection) -> list[str]:
        self.questions += 1
        assert self.go_on.wait(WAIT_TIMEOUT)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class ByProvider(Offering):
    """One that stands before several providers."""

    def catalog(self, connection: UpstreamConnection) -> Groups:
        return [("one", self.models(connection)), ("two", []), ("three", ["c"])]


def test_a_list_is_asked_for_once_and_kept() -> None:
    """Many pages, one question."""
    offering = Offering(["a", "b"])
    found = Catalog(offering)
    assert [found.refresh() for _ in range(5)] == [[("", ["a", "b"])]] * 5
    assert offering.questions == 1


def test_models_are_grouped_by_provider_where_there_are_several() -> None:
    """A provider without models is no group."""
    assert Catalog(ByProvider(["a"])).refresh() == [("one", ["a"]), ("three", ["c"])]


def test_a_silent_provider_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages get nothing, later ones at once; and the list when it has come."""
    monkeypatch.setattr(catalog, "PAGE_WAIT", 0.01)
    offering = Offering(["a"])
    offering.go_on.clear()
    found = Catalog(offering)
    assert found.refresh() == []
    monkeypatch.setattr(catalog, "PAGE_WAIT", -1.0)
    assert found.refresh() == []
    offering.go_on.set()
    wait_until(lambda: found.refresh() == [("", ["a"])])
    assert offering.questions == 1


@pytest.mark.parametrize("fault", [UpstreamError("unauthorized"), RuntimeError("surprise")])
def test_a_failure_is_no_list_and_is_not_asked_again_at_once(fault: Exception) -> None:
    """And it does not take away what was known."""
    offering = Offering(["a"], fault, ["b"])
    found = Catalog(offering)
    assert found.refresh() == [("", ["a"])]
    query = found._providers._members[""].models
    query._fresh_until = 0.0
    asked_at = query.start()
    assert query.wait(asked_at + WAIT_TIMEOUT, fresh=True)[1] is not None
    assert found.refresh() == [("", ["a"])]
    assert offering.questions == 2


@pytest.mark.parametrize(
    ("answer", "none"),
    [
        (["a"], False),
        ([], True),
        (UpstreamError("upstream_invalid", "it has no list of models"), True),
        (UpstreamError("upstream_web_page"), True),
        (UpstreamError("endpoint_not_found"), True),
        (UpstreamError("unauthorized"), False),
        (UpstreamError("upstream_refused"), False),
    ],
)
def test_a_server_without_a_list_is_told_from_one_that_fails(
    answer: list[str] | Exception, none: bool
) -> None:
    """Before anything is known, nothing is said."""
    found = Catalog(Offering(answer))
    assert not found.has_no_list
    found.refresh()
    assert found.has_no_list == none


@pytest.mark.parametrize(
    ("status", "none"), [(401, False), (500, False), (404, True)], ids=["key", "fault", "none"]
)
def test_the_picker_says_that_there_is_no_list_only_where_there_is_none(
    tmp_path: Path, status: int, none: bool
) -> None:
    """A server that refuses the key or has a fault is not said to give no list of models."""

    def refuse(peer: Peer) -> None:
        peer.request()
        peer.send(
            f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )

    with RawServer(refuse) as server:
        environ = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "fake"}
        application = create_app(load({**environ, "HALT_MODEL": "m", "HALT_DATA": str(tmp_path)}))
        page = application.test_client().get("/models").text
        services(application).generations.upstream.close()
    assert "Default: m" in page
    assert ("The server provides no list of models." in page) == none


def test_names_that_cannot_be_sent_back_are_left_out() -> None:
    """And no list fills a page without end."""
    offering = Offering(["ok", "", "bad\nname", "x" * (NAME_MAX + 1), *map(str, range(5000))])
    ((_, names),) = Catalog(offering).refresh()
    assert names[:2] == ["ok", "0"]
    assert len(names) == NAMES_MAX


@pytest.mark.parametrize("name", ["x" * (NAME_MAX + 1), "a\nb", "a\0"])
def test_a_name_from_a_client_is_checked(name: str) -> None:
    """The field at fault is named."""
    with pytest.raises(RequestError) as fault:
        valid_model_name(name)
    assert fault.value.field == "model"
    assert valid_model_name("openai/gpt-5-mini:free") == "openai/gpt-5-mini:free"

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


def test_list_is_requested_once_and_cached() -> None:
    """Five refreshes send one request."""
    offering = Offering(["a", "b"])
    found = Catalog(offering)
    assert [found.refresh() for _ in range(5)] == [[("", ["a", "b"])]] * 5
    assert offering.questions == 1


def test_models_of_several_providers_are_grouped() -> None:
    """Models are grouped by provider; a provider without models has no group."""
    assert Catalog(ByProvider(["a"])).refresh() == [("one", ["a"]), ("three", ["c"])]


def test_silent_provider_is_awaited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page waits, later ones do not, and the list is shown once it has arrived."""
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
def test_failed_refresh_keeps_the_list_and_is_cached(fault: Exception) -> None:
    """A failed request keeps the known list and is not repeated at once."""
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
def test_has_no_list_is_true_for_permanent_faults_alone(
    answer: list[str] | Exception, none: bool
) -> None:
    """A server without a list is distinguished from one that fails for now."""
    found = Catalog(Offering(answer))
    assert not found.has_no_list
    found.refresh()
    assert found.has_no_list == none


@pytest.mark.parametrize(
    ("status", "none"), [(401, False), (500, False), (404, True)], ids=["key", "fault", "none"]
)
def test_model_menu_says_no_list_only_if_there_is_none(
    tmp_path: Path, status: int, none: bool
) -> None:
    """After a refused key or a server fault the menu does not say that there is no list."""

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


def test_invalid_names_are_dropped_and_the_list_is_bounded() -> None:
    """Names that no request may have are dropped; the menu has NAMES_MAX at most."""
    offering = Offering(["ok", "", "bad\nname", "x" * (NAME_MAX + 1), *map(str, range(5000))])
    ((_, names),) = Catalog(offering).refresh()
    assert names[:2] == ["ok", "0"]
    assert len(names) == NAMES_MAX


@pytest.mark.parametrize("name", ["x" * (NAME_MAX + 1), "a\nb", "a\0"])
def test_valid_model_name_refuses_invalid_names(name: str) -> None:
    """An invalid model name is a RequestError that names the field."""
    with pytest.raises(RequestError) as fault:
        valid_model_name(name)
    assert fault.value.field == "model"
    assert valid_model_name("openai/gpt-5-mini:free") == "openai/gpt-5-mini:free"

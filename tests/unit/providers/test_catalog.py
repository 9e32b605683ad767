"""Catalog: the list of models, requested in the background, cached, with a bounded wait."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from halt.app import create_app
from halt.clock import now
from halt.config.environment import load
from halt.config.model_servers import DiscoveryResult, Server
from halt.config.providers import DEMO, ModelSettings
from halt.connected.settings import Unusable
from halt.connected.unusable_upstream import UnusableUpstream
from halt.core.connection import UpstreamConnection
from halt.core.request import Upstream
from halt.errors import RequestError, UpstreamError
from halt.model_info import ModelGroup
from halt.providers import cached_query, catalog, member, router
from halt.providers.catalog import NAMES_MAX, Catalog, Note, valid_model_name
from halt.providers.discovery import Discovery
from halt.providers.model_list import NAME_MAX
from halt.providers.model_view import ModelView
from halt.providers.router import ModelGroups, Providers
from halt.web.services import services
from tests.support.raw_server import Peer, RawServer
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until


@pytest.fixture(autouse=True)
def patient_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page waits for the lists as long as a busy machine may take."""
    monkeypatch.setattr(catalog, "PAGE_WAIT", WAIT_TIMEOUT)


class ListUpstream(ScriptedUpstream):
    """An upstream with these lists, one for each request."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        super().__init__()
        self.answers = list(answers)
        self.list_requests = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def models(self, connection: UpstreamConnection) -> list[str]:
        self.list_requests += 1
        assert self.go_on.wait(WAIT_TIMEOUT)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class GroupedUpstream(ListUpstream):
    """An upstream with several providers."""

    def catalog(self, connection: UpstreamConnection) -> ModelGroups:
        names = {"one": self.models(connection), "two": [], "three": ["c"]}
        return [ModelGroup.of(title, model_names) for title, model_names in names.items()]


def listed(catalog: Catalog) -> list[tuple[str, list[str]]]:
    """The titles of the providers and the names of their models, refreshed."""
    return [(group.title, [model.name for model in group.models]) for group in catalog.refresh()]


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        (["m"], "Server 0 at http://127.0.0.1:9000 no longer responds."),
        (["", "m"], "Server 1 at http://127.0.0.1:9001 no longer responds."),
        (["m", "n"], "No model server responds."),
        ([], ""),
    ],
)
def test_missing_server_is_named_if_it_was_the_only_one(defaults: list[str], text: str) -> None:
    """A single server that could chat is named with its address; several are not."""
    servers = tuple(
        Server(
            name=f"s{n}",
            title=f"Server {n}",
            url=f"http://127.0.0.1:{9000 + n}/v1",
            default=default,
        )
        for n, default in enumerate(defaults)
    )
    discovery = Discovery(DiscoveryResult(servers=servers))
    assert Catalog(ListUpstream(), discovery).no_server_text == text


def test_list_is_requested_once_and_cached() -> None:
    """The list is cached: five refreshes send one request."""
    upstream = ListUpstream(["a", "b"])
    models = Catalog(upstream)
    assert [listed(models) for _ in range(5)] == [[("", ["a", "b"])]] * 5
    assert upstream.list_requests == 1


def test_models_of_several_providers_are_grouped() -> None:
    """Models are grouped by provider; a provider without models has no group."""
    assert listed(Catalog(GroupedUpstream(["a"]))) == [("one", ["a"]), ("three", ["c"])]


def test_silent_provider_is_awaited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent provider delays the first page alone, and its list is shown once it has arrived."""
    monkeypatch.setattr(catalog, "PAGE_WAIT", 0.01)
    upstream = ListUpstream(["a"])
    upstream.go_on.clear()
    models = Catalog(upstream)
    assert models.refresh() == []
    monkeypatch.setattr(catalog, "PAGE_WAIT", -1.0)
    assert models.refresh() == []
    upstream.go_on.set()
    wait_until(lambda: listed(models) == [("", ["a"])])
    assert upstream.list_requests == 1


@pytest.mark.parametrize("fault", [UpstreamError("unauthorized"), RuntimeError("surprise")])
def test_failed_refresh_keeps_the_list_and_is_cached(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed request keeps the known list and is not repeated at once."""
    skipped_seconds = 0.0
    for module in (cached_query, router):
        monkeypatch.setattr(module, "now", lambda: now() + skipped_seconds)
    upstream = ListUpstream(["a"], fault, ["b"])
    models = Catalog(upstream)
    assert listed(models) == [("", ["a"])]
    skipped_seconds = member.LIST_SECONDS
    earlier_threads = set(threading.enumerate())
    models.refresh()  # starts the request that fails
    wait_until(lambda: set(threading.enumerate()) <= earlier_threads)  # it has failed
    assert listed(models) == [("", ["a"])]
    assert upstream.list_requests == 2


@pytest.mark.parametrize(
    ("answer", "has_no_list"),
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
    answer: list[str] | Exception, has_no_list: bool
) -> None:
    """`has_no_list` is true of a server without a list, and false while a server fails for now."""
    models = Catalog(ListUpstream(answer))
    assert not models.has_no_list
    models.refresh()
    assert models.has_no_list == has_no_list


@pytest.mark.parametrize(
    ("status", "has_no_list"),
    [(401, False), (500, False), (404, True)],
    ids=["key", "fault", "none"],
)
def test_model_menu_says_no_list_only_if_there_is_none(
    tmp_path: Path, status: int, has_no_list: bool
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
    assert ("The server provides no list of models." in page) == has_no_list


def test_notes_have_the_words_of_what_failed() -> None:
    """A provider that fails beside others is named; with a single one its words are enough."""
    fault = UpstreamError("upstream_refused")
    models = Catalog(Providers({"openai": ListUpstream(fault), "b": ListUpstream(["m"])}))
    assert listed(models) == [("b", ["b/m"])]
    assert models.notes == [Note("OpenAI", fault.message, True)]
    assert (models.provider_of("b/m"), models.label_of("b/m")) == ("b", "m")
    assert (models.provider_of("other"), models.label_of("other")) == ("", "other")
    single = Catalog(ListUpstream(fault))
    single.refresh()
    assert single.notes == [Note("", fault.message, True)]
    without_list = Catalog(ListUpstream(UpstreamError("endpoint_not_found")))
    without_list.refresh()
    assert without_list.notes == []


def test_invalid_names_are_dropped_and_the_list_is_bounded() -> None:
    """Names that no request may have are dropped; the menu has NAMES_MAX at most."""
    upstream = ListUpstream(["ok", "", "bad\nname", "x" * (NAME_MAX + 1), *map(str, range(5000))])
    ((_, names),) = listed(Catalog(upstream))
    assert names[:2] == ["ok", "0"]
    assert len(names) == NAMES_MAX


@pytest.mark.parametrize("name", ["x" * (NAME_MAX + 1), "a\nb", "a\0"])
def test_valid_model_name_refuses_invalid_names(name: str) -> None:
    """An invalid model name is a RequestError that names the field."""
    with pytest.raises(RequestError) as fault:
        valid_model_name(name)
    assert fault.value.field == "model"
    assert valid_model_name("openai/gpt-5-mini:free") == "openai/gpt-5-mini:free"


# --- providers that change ------------------------------------------------------------------------


def test_removed_provider_is_gone_from_the_next_list() -> None:
    """The models of a removed provider are neither listed nor named, though its list was known."""
    gone = ListUpstream(["m"])
    upstream = Providers({})
    upstream.connect({"new": gone}, ModelView())
    models = Catalog(upstream)
    assert models.has_model
    assert listed(models) == [("new", ["new/m"])]
    upstream.connect({}, ModelView())
    assert models.label_of("new/m") == "new/m"
    assert listed(models) == []
    assert not models.has_model
    assert not models.notes


def test_renamed_and_hidden_models_change_at_once() -> None:
    """A label is new without another list; a hidden model is not listed, and keeps its label."""
    own, second = ListUpstream(["a"]), ListUpstream(["b", "c"])
    upstream = Providers({"own": own})
    upstream.connect({"second": second}, ModelView())
    models = Catalog(upstream)
    assert listed(models) == [("own", ["a"]), ("second", ["second/b", "second/c"])]
    assert models.offers_several
    settings = {
        "second": {"b": ModelSettings(hidden=True, label="Bee"), "c": ModelSettings(hidden=True)}
    }
    upstream.connect({"second": second}, ModelView(settings=settings))
    assert models.label_of("second/b") == "Bee"
    assert models.provider_of("second/b") == "second"
    assert models.is_hidden("second/b")
    assert not models.is_hidden("a")
    assert not models.offers_several
    assert listed(models) == [("own", ["a"])]
    everything = {"own": {"a": ModelSettings(hidden=True)}, **settings}
    upstream.connect({"second": second}, ModelView(settings=everything))
    assert listed(models) == []
    assert not models.has_no_list
    assert models.has_model
    assert (own.list_requests, second.list_requests) == (1, 1)


def test_models_keep_the_chosen_order() -> None:
    """Moved models stand first, in their order."""
    upstream = Providers({})
    order = {"second": {"c": 0, "b": 1}}
    upstream.connect({"second": ListUpstream(["a", "b", "c"])}, ModelView(order=order))
    assert listed(Catalog(upstream)) == [("second", ["second/c", "second/b", "second/a"])]


def test_each_provider_has_a_note_of_its_own() -> None:
    """Beside a list that is there: one without a list, one with an empty one, a refused key."""

    class Titled(ListUpstream):
        title = "My Groq"

    refused, none = UpstreamError("unauthorized"), UpstreamError("endpoint_not_found")
    needed = UnusableUpstream(Unusable("Team", (), "Team has no key: enter one."))
    upstream = Providers({"own": ListUpstream(none)})
    connected: dict[str, Upstream] = {
        "groq": Titled(refused),
        "empty": ListUpstream([]),
        "team": needed,
        "good": ListUpstream(["m"]),
    }
    upstream.connect(connected, ModelView())
    models = Catalog(upstream)
    assert listed(models) == [("good", ["good/m"])]
    assert models.notes == [
        Note("own", "It provides no list of models.", False),
        Note("My Groq", refused.message, True),
        Note("empty", "Its list of models is empty.", False),
        Note("Team", "Team has no key: enter one.", True),
    ]
    assert not models.has_no_list


def test_demo_model_is_the_default_only_if_it_is_alone() -> None:
    """A connected provider takes the default from the demo model, which stays listed."""
    demo, second = ListUpstream(["tiny"]), ListUpstream(["m"])
    demo.known_model, second.known_model = "tiny", "m"
    upstream = Providers({DEMO: demo})
    assert upstream.known_model == "tiny"
    upstream.connect({"second": second}, ModelView())
    assert upstream.known_model == "second/m"
    assert listed(Catalog(upstream)) == [("demo", ["tiny"]), ("second", ["second/m"])]

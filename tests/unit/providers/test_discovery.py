"""Discovery of local model servers without a provider: which responses count, and which models are
offered.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from halt.config.environment import load
from halt.config.model_servers import USUAL_URLS, DiscoveryResult, Names, decoded, product_of
from halt.config.providers import ProviderSettings
from halt.config.settings import Config, ConfigError
from halt.core.connection import UpstreamConnection
from halt.errors import UpstreamError
from halt.library.halt import Halt
from halt.model_info import Abilities
from halt.providers import discovery
from halt.providers.discovery import (
    Discovery,
    discover_at_start,
    discovery_addresses,
    make_discovery,
)
from halt.providers.factory import make_provider, make_upstream
from halt.providers.last_model import LastModel
from halt.providers.model_view import ModelView
from halt.providers.router import Providers
from tests.support.halt_server import ROOT, StartHalt
from tests.support.model_servers import (
    LOADING,
    LOCKED,
    NOT_OFFERED,
    OFFERED,
    OLLAMA,
    listing,
    models,
)
from tests.support.ports import free_port
from tests.support.provider_answers import refusal_of, request_answer
from tests.support.raw_server import Peer, RawServer
from tests.support.waiting import SERVER_TIMEOUT, BackgroundCall, wait_until

Serve = Callable[..., RawServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server. A look has all the time that a busy machine needs."""
    monkeypatch.setattr(discovery, "PROBE_SECONDS", 5.0)
    with contextlib.ExitStack() as stack:
        yield lambda *handlers, port=0: stack.enter_context(RawServer(*handlers, port=port))


def discover(*urls: str) -> DiscoveryResult:
    """One look at these addresses."""
    return Discovery(DiscoveryResult(addresses=urls)).refresh_now()


def down() -> str:
    """An address where nothing listens."""
    return f"http://127.0.0.1:{free_port()}/v1"


# --- addresses that are probed --------------------------------------------------------------------

LOCAL = ("127.0.0.1", 9000)


def test_usual_ports_are_probed_if_halt_is_local() -> None:
    """The usual ports are probed if Halt listens locally or on a Unix socket, without Halt's own
    port.
    """
    config = load({})
    assert discovery_addresses(config, [LOCAL]) == USUAL_URLS
    assert discovery_addresses(config, [("::1", 1), "/run/halt.sock"]) == USUAL_URLS
    addresses = discovery_addresses(config, [("127.0.0.1", 8000)])
    assert set(USUAL_URLS) - set(addresses) == {"http://127.0.0.1:8000/v1"}
    for listens in ([("0.0.0.0", 9000)], [LOCAL, ("192.168.0.7", 9000)], [3], [None]):
        assert discovery_addresses(config, listens) == ()


def test_configured_addresses_are_always_probed() -> None:
    """Configured addresses are always probed, once each, after the usual ports and without Halt's
    own.
    """
    config = load(
        {
            "HALT_DISCOVER": "box:11434, http://127.0.0.1:8080/v1/, https://m.example:443, "
            "http://BOX:11434, LocalHost:1234, https://m.example, [FE80::1]:80"
        }
    )
    assert discovery_addresses(config, [("0.0.0.0", 9000)]) == (
        "http://box:11434/v1",
        "http://127.0.0.1:8080/v1",
        "https://m.example/v1",
        "http://127.0.0.1:1234/v1",
        "http://[fe80::1]/v1",
    )
    addresses = discovery_addresses(config, [("127.0.0.1", 8080)])
    assert addresses[-3:-1] == ("http://box:11434/v1", "https://m.example/v1")
    assert "http://127.0.0.1:8080/v1" not in addresses
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize(
    "environ",
    [
        {"HALT_DISCOVER": "0"},
        {"OPENAI_API_KEY": "k", "HALT_DISCOVER": "box:1"},
        {"OPENAI_BASE_URL": "http://h/v1"},
        {"HALT_CONFIG": "halt.toml"},
        {"ANTHROPIC_API_KEY": "k"},
    ],
)
def test_discovery_is_off_with_a_provider_or_by_setting(
    environ: dict[str, str],
) -> None:
    """With a provider or HALT_DISCOVER=0 no address is probed, not even a configured one."""
    assert discovery_addresses(load(environ), [LOCAL]) == ()
    assert make_discovery(load(environ)) is None


def test_unknown_listen_address_probes_no_usual_port() -> None:
    """No usual port is probed where it is unknown on which address Halt listens, outside gunicorn's
    master.
    """
    assert make_discovery(load({})) is None
    result = make_discovery(load({"HALT_DISCOVER": "box:11434"}))
    assert result is not None
    assert result.latest.addresses == ("http://box:11434/v1",)


@pytest.mark.parametrize(
    "value",
    ["2", "box", "box:port", "http://", "http://box/api", "ftp://box:1", "box:1?x", "a b:1"],
)
def test_wrong_discover_value_is_refused_in_one_line(value: str) -> None:
    """A wrong HALT_DISCOVER is refused in one line with the variable, the value and what is
    allowed.
    """
    with pytest.raises(ConfigError) as caught:
        load({"HALT_DISCOVER": value})
    assert str(caught.value).startswith(f"HALT_DISCOVER={value!r} is not allowed: use 1, 0, or")
    assert "\n" not in str(caught.value)


def test_discover_address_with_a_password_is_refused_and_not_shown() -> None:
    """An address with a password is refused and not shown; the number of addresses is bounded."""
    with pytest.raises(ConfigError) as caught:
        load({"HALT_DISCOVER": "http://user:hush@box:1"})
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="more than 16 addresses"):
        load({"HALT_DISCOVER": ",".join(f"box:{port}" for port in range(1, 18))})


# --- which answers count --------------------------------------------------------------------------


def test_known_servers_are_discovered_with_their_loaded_model(serve: Serve) -> None:
    """Known servers are discovered with their loaded model, all probed at once; an embedding model
    is never the default.
    """
    servers = {kind: serve(handler) for kind, handler in OFFERED.items()}
    servers_by_url = {
        found_server.url: found_server
        for found_server in discover(*(server.url for server in servers.values())).servers
    }
    servers_by_kind = {kind: servers_by_url[details.url] for kind, details in servers.items()}
    assert {
        kind: (details.default, details.is_loaded) for kind, details in servers_by_kind.items()
    } == {
        "ollama": ("qwen3:8b", True),
        "empty-ollama": ("", False),
        "llama.cpp": ("gemma.gguf", True),
        "router": ("b", True),
        "vllm": ("meta/llama", True),
        "lmstudio": ("gpt-oss", True),
        "koboldcpp": ("koboldcpp/dolphin", True),
        "other": ("m", False),
    }
    assert servers_by_kind["ollama"].models == (
        "nomic-embed-text:latest",
        "llama3.2:latest",
        "qwen3:8b",
    )
    titles = {
        kind: details.title
        for kind, details in servers_by_kind.items()
        if kind not in {"other", "router"}
    }
    assert {**titles, "empty-ollama": ""} == {
        "ollama": "Ollama",
        "empty-ollama": "",
        "llama.cpp": "llama.cpp",
        "vllm": "vLLM",
        "lmstudio": "LM Studio",
        "koboldcpp": "KoboldCpp",
    }
    assert (
        servers_by_kind["ollama"].name == f"ollama-{servers['ollama'].port}"
    )  # it is not Ollama's port
    assert servers_by_kind["other"].name == f"local-{servers['other'].port}"


def test_other_servers_are_probed_once_a_minute(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent or endless server gets one connection until BACKOFF_SECONDS have passed.

    A worker does not probe an address that the master has probed.
    """
    monkeypatch.setattr(discovery, "PROBE_SECONDS", 1.0)
    servers = {kind: serve(handler) for kind, handler in NOT_OFFERED.items()}
    looking = Discovery(DiscoveryResult(addresses=tuple(server.url for server in servers.values())))
    for _ in range(2):
        result = looking.refresh_now()
        assert (result.servers, result.key_required) == ((), ())
        looking = Discovery(decoded(result.encoded()))
    assert {kind for kind, raw_server in servers.items() if raw_server.accepted != 1} == set()
    monkeypatch.setattr(discovery, "BACKOFF_SECONDS", 0.0)
    looking = Discovery(DiscoveryResult(addresses=(servers["airplay"].url,)))
    for _ in range(2):
        looking.refresh_now()
    assert servers["airplay"].accepted == 3


def test_server_that_needs_a_key_is_named(serve: Serve) -> None:
    """A server that needs a key is named by its address, with the settings to use."""
    server = serve(LOCKED)
    looking = Discovery(DiscoveryResult(addresses=(server.url,)))
    for _ in range(2):
        result = looking.refresh_now()
        assert result.servers == ()
        assert result.text == (
            f"http://127.0.0.1:{server.port} needs a key: connect it on the page “Models”, or set "
            "OPENAI_BASE_URL and OPENAI_API_KEY"
        )
    assert server.accepted == 1
    assert decoded(result.encoded()) == result


def test_probe_has_no_key_cookie_body_or_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe is one GET without key, cookie or body, through no proxy."""
    requests: list[bytes] = []
    proxy = serve(lambda peer: None)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")

    def handle(peer: Peer) -> None:
        requests.append(peer.request())
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    server = serve(handle)
    discover(server.url, "http://models.invalid/v1")
    assert proxy.accepted == 0
    (request,) = requests
    head = request.lower()
    assert head.startswith(b"get /v1/models http/1.1\r\n")
    assert head.endswith(b"\r\n\r\n")
    for name in (b"authorization", b"cookie", b"api-key", b"hush"):
        assert name not in head


def test_endless_answer_is_read_up_to_a_megabyte(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endless answer is read up to a megabyte, then its connection is closed."""
    monkeypatch.setattr(discovery, "PROBE_SECONDS", 60.0)
    discovery_call = BackgroundCall(lambda: discover(serve(NOT_OFFERED["endless"]).url))
    assert discovery_call.end() is None


def test_closed_port_and_loading_server_are_probed_again(serve: Serve) -> None:
    """A closed port and a loading server are probed again: new servers are added, closed ones
    removed.
    """
    url = down()
    loading = serve(LOADING, OLLAMA)
    looking = Discovery(DiscoveryResult(addresses=(url, loading.url)))
    assert looking.refresh_now().servers == ()
    with RawServer(OLLAMA, port=urlsplit(url).port or 0):
        assert [server.url for server in looking.refresh_now().servers] == [url, loading.url]
    assert [server.url for server in looking.refresh_now().servers] == [loading.url]


def test_known_server_that_does_not_answer_is_kept(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known server that listens but does not answer keeps its models."""
    server = serve(listing(models("m")), lambda peer: None)
    looking = Discovery(DiscoveryResult(addresses=(server.url,)))
    before = looking.refresh_now()
    assert looking.refresh_now() == before
    assert server.accepted == 2


def test_refused_address_is_not_probed(caplog: pytest.LogCaptureFixture) -> None:
    """A link-local address is no server, and the log says which setting allows it."""
    assert not discover("http://2852039166:11434/v1").servers
    assert "HALT_ALLOW_LINK_LOCAL=1 allows it" in caplog.text


def test_concurrent_refreshes_share_one_probe(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that refresh at the same time share one probe, and the next one is due later."""
    monkeypatch.setattr(discovery, "REFRESH_INTERVAL", 3600.0)
    may_answer = threading.Event()

    def handle(peer: Peer) -> None:
        assert may_answer.wait(10)
        OLLAMA(peer)

    server = serve(handle)
    probed = Discovery(DiscoveryResult(addresses=(server.url,)))
    results: list[DiscoveryResult] = []
    threads = [threading.Thread(target=lambda: results.append(probed.refresh())) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_answer.set()
    for thread in threads:
        thread.join()
    assert [len(result.servers) for result in results] == [1] * 8
    probed.refresh()
    assert server.accepted == 1


def test_discover_at_start_leaves_no_thread(serve: Serve) -> None:
    """Discovery at the start leaves no thread: a child process returns the whole result, also a
    long one.
    """
    names = [f"model-{number}-{'x' * 80}" for number in range(3000)]
    server = serve(listing(models(*names)))
    before = threading.active_count()
    result = discover_at_start((server.url,))
    assert threading.active_count() <= before + 1  # the server's own, of that connection
    assert result.servers[0].models == tuple(names)
    assert (
        result.text == f"3000 models of 127.0.0.1:{server.port} at http://127.0.0.1:{server.port}"
    )
    assert len(result.encoded()) < 1000  # it becomes an environment variable
    assert discover_at_start(()) == DiscoveryResult()


def test_abilities_are_read_from_the_requests_that_find_the_loaded_model(serve: Serve) -> None:
    """The servers' own APIs say what a model can do. Workers get that from their own probes."""
    urls = serve(OLLAMA).url, serve(OFFERED["lmstudio"]).url, serve(OFFERED["vllm"]).url
    result = discover(*urls)
    ollama, lmstudio, vllm = result.servers
    assert ollama.abilities == {"qwen3:8b": Abilities(context=4096)}
    assert lmstudio.abilities == {
        "qwen2-vl": Abilities(context=32768, images=True),
        "gpt-oss": Abilities(images=False, tools=True),
    }
    assert vllm.abilities == {"meta/llama": Abilities(context=4096)}
    assert not any(server.abilities for server in decoded(result.encoded()).servers)


def test_names_that_no_request_may_have_are_dropped(serve: Serve) -> None:
    """Invalid model names are dropped, are no default, and do not prevent the result's encoding."""
    names = ("a\ud800", "a\nb", "", "\x1b[31m", "\u202ea", "x" * 300_000)
    raw_server, ollama = serve(listing(models(*names, "<b>'\"/ok"))), serve(OLLAMA)
    result = discover_at_start((raw_server.url, ollama.url))
    assert result.servers[0].models == ("<b>'\"/ok",)
    assert [server.default for server in result.servers] == ["<b>'\"/ok", "qwen3:8b"]
    result_of_one = discover(serve(listing(models(*names))).url)
    assert (result_of_one.servers[0].models, result_of_one.has_chat_model) == ((), False)


# --- names ----------------------------------------------------------------------------------------


def test_provider_name_depends_on_its_address_alone() -> None:
    """The name of a discovered provider is the same in every worker and order."""
    names = Names(
        [
            *USUAL_URLS,
            "http://127.0.0.1:8081/v1",
            "http://host.docker.internal:11434/v1",
            "http://box:9/v1",
        ]
    )
    assert [names.of(url)[0] for url in USUAL_URLS] == [
        "ollama",
        "llama.cpp",
        "vllm",
        "lmstudio",
        "jan",
        "koboldcpp",
        "text-generation-webui",
    ]
    assert names.of("http://127.0.0.1:8000/v1", ["llamacpp"])[0] == "llama.cpp-8000"
    assert names.of("http://127.0.0.1:8081/v1", ["llamacpp"])[0] == "llama.cpp-8081"
    other_name = names.of("http://host.docker.internal:11434/v1", ["library"])[0]
    assert other_name == "ollama-host-docker-internal-11434"
    assert names.of("http://box:9/v1") == ("box-9", "box:9")
    single_names = Names(["http://host.docker.internal:11434/v1"])
    assert single_names.of("http://host.docker.internal:11434/v1")[0] == "ollama"
    urls = [f"{text}/v1" for text in ("http://a.b:9", "https://a.b:9", "http://a-b:9")]
    assert [Names(urls).of(url)[0] for url in urls] == ["a-b-9", "a-b-9-2", "a-b-9-3"]
    product = product_of("http://127.0.0.1:1337/v1")
    assert product is not None
    assert product.title == "Jan"


# --- models that are offered ----------------------------------------------------------------------


@pytest.fixture
def offer() -> Iterator[Callable[..., Providers]]:
    """Makes an upstream from discovered URLs, settings and the name of the last model."""
    with contextlib.ExitStack() as stack:

        def make(*urls: str, last: str = "", **settings: Any) -> Providers:
            result = DiscoveryResult(addresses=urls)
            config = Config(discovered=result.encoded(), **settings)
            model = LastModel()
            model.set(last)
            upstream = make_upstream(config, discovery=Discovery(result), last=model)
            stack.callback(upstream.close)
            return upstream

        yield make


OfferOf = Callable[..., Providers]


def use_product_names(
    names: Sequence[str], urls: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name the servers at these URLs, as if their ports were the usual ones of products."""
    names_by_url = dict(zip(urls, names, strict=True))
    monkeypatch.setattr(
        Names, "of", lambda self, url, owners=(): (names_by_url[url], names_by_url[url])
    )


@pytest.fixture
def two_urls(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The addresses of an Ollama and of another server with one model of the same name."""
    urls = serve(OLLAMA).url, serve(listing(models("qwen3:8b", "m"))).url
    use_product_names(["ollama", "other"], urls, monkeypatch)
    return urls


def test_models_of_all_servers_are_offered_with_prefix(
    offer: OfferOf, two_urls: tuple[str, str]
) -> None:
    """Models are grouped by server, each with its server's prefix, so that names stay valid."""
    upstream = offer(*two_urls, down())
    groups = {
        "ollama": ["nomic-embed-text:latest", "llama3.2:latest", "qwen3:8b"],
        "other": ["qwen3:8b", "m"],
    }
    catalog = upstream.catalog(UpstreamConnection())
    assert catalog[0].models[2].abilities == Abilities(context=4096)
    assert {group.title: [m.label for m in group.models] for group in catalog} == groups
    names = [f"{title}/{label}" for title, labels in groups.items() for label in labels]
    assert [model.name for group in catalog for model in group.models] == names
    assert upstream.models(UpstreamConnection()) == names
    assert request_answer(upstream, "ollama/qwen3:8b").text == "qwen3:8b answers."
    assert request_answer(upstream, "m").text == "m answers."
    assert "use ollama/qwen3:8b or other/qwen3:8b" in refused_model(upstream, "qwen3:8b")
    assert "PROVIDER being one of" in refused_model(upstream, "none")


def refused_model(upstream: Providers, model: str) -> str:
    """The message of model_not_found, in Halt's own words: no server was asked."""
    fault = request_answer(upstream, model).fault
    assert fault is not None
    assert (fault.code, fault.retryable) == ("model_not_found", False)
    return fault.message


def test_single_server_has_a_prefix_and_takes_unlisted_names(
    offer: OfferOf, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single server has a prefix too, and answers for an unlisted name such as "llama3.2" for
    "llama3.2:latest".
    """
    server = serve(OLLAMA)
    use_product_names(["ollama"], [server.url], monkeypatch)
    upstream = offer(server.url)
    assert upstream.models(UpstreamConnection())[-1] == "ollama/qwen3:8b"
    assert request_answer(upstream, "llama3.2").text == "llama3.2 answers."
    assert upstream.known_model == "ollama/llama3.2"


def test_new_server_is_offered_after_the_next_refresh(
    offer: OfferOf, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new server is offered after the next refresh; so is one whose model is requested before."""
    monkeypatch.setattr(discovery, "REFRESH_INTERVAL", 0.0)
    urls = down(), down()
    use_product_names(["one", "two"], urls, monkeypatch)
    upstream = offer(*urls)
    refusal_of(request_answer(upstream), "no_model")
    with pytest.raises(UpstreamError) as caught:
        upstream.catalog(UpstreamConnection())
    assert caught.value.code == "no_model"
    serve(listing(models("a")), port=urlsplit(urls[0]).port or 0)
    assert request_answer(upstream).text == "a answers."
    serve(listing(models("b")), port=urlsplit(urls[1]).port or 0)
    assert request_answer(upstream, "two/b").text == "b answers."
    assert [group.title for group in upstream.catalog(UpstreamConnection())] == ["one", "two"]


def test_request_for_an_unlisted_model_refreshes_at_once(
    offer: OfferOf, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for an unlisted model refreshes at once, since another worker may have discovered
    its server.
    """
    monkeypatch.setattr(discovery, "REFRESH_INTERVAL", 3600.0)
    monkeypatch.setattr(discovery, "MISSED_INTERVAL", 0.0)
    urls = serve(listing(models("a"))).url, down()
    use_product_names(["one", "two"], urls, monkeypatch)
    upstream = offer(*urls)
    assert upstream.models(UpstreamConnection()) == ["one/a"]
    serve(listing(models("b")), port=urlsplit(urls[1]).port or 0)
    assert upstream.models(UpstreamConnection()) == ["one/a"]
    assert request_answer(upstream, "two/b").text == "b answers."
    assert upstream.models(UpstreamConnection()) == ["one/a", "two/b"]


def test_server_that_has_gone_is_no_longer_offered(
    offer: OfferOf, two_urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has gone is no longer offered; its model is refused with the reason, and
    another is the default.
    """
    monkeypatch.setattr(discovery, "REFRESH_INTERVAL", 0.0)
    url = down()
    use_product_names(["gone", "ollama"], [url, two_urls[0]], monkeypatch)
    upstream = offer(url, two_urls[0])
    with RawServer(listing(models("a", owner="vllm")), port=urlsplit(url).port or 0):
        assert request_answer(upstream, "gone/a").text == "a answers."
        assert upstream.known_model == "gone/a"
    assert [group.title for group in upstream.catalog(UpstreamConnection())] == ["ollama"]
    assert upstream.known_model == "ollama/qwen3:8b"
    assert not refusal_of(request_answer(upstream, "gone/a"), "upstream_refused").of_demo


def test_demo_model_is_offered_beside_discovered_servers(
    offer: OfferOf, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo model is offered under its own name; a server's model is the default as soon as
    there is one.
    """
    monkeypatch.setattr(discovery, "REFRESH_INTERVAL", 0.0)
    demo, url = serve(listing(models("Smol"))), down()
    use_product_names(["ollama"], [url], monkeypatch)
    upstream = offer(url, embedded_url=demo.url, embedded_model="Smol")
    assert (upstream.known_model, upstream.models(UpstreamConnection())) == ("Smol", ["Smol"])
    upstream.check(UpstreamConnection())
    assert request_answer(upstream).text == "Smol answers."
    assert (
        request_answer(upstream, "gpt-4o").text == "gpt-4o answers."
    )  # a single server takes every name
    serve(OLLAMA, port=urlsplit(url).port or 0)
    assert upstream.models(UpstreamConnection())[-2:] == ["ollama/qwen3:8b", "Smol"]
    assert upstream.known_model == "ollama/qwen3:8b"
    assert request_answer(upstream, "Smol").text == "Smol answers."
    assert upstream.known_model == "Smol"  # it was chosen


def connect(upstream: Providers, default: tuple[str, str] | None = None, **urls: str) -> None:
    """Connect a server to each name; `default`: the model that was chosen on the page."""
    settings = {
        name: ProviderSettings(name=name, kind="openai", title=name, base_url=url)
        for name, url in urls.items()
    }
    upstreams = {name: make_provider(one) for name, one in settings.items()}
    upstream.connect(upstreams, ModelView(default=default))


def test_connected_provider_stands_beside_discovered_servers(
    offer: OfferOf, serve: Serve, two_urls: tuple[str, str]
) -> None:
    """It is listed after them, takes no name from them, and is the default only if it is chosen."""
    upstream, groq = offer(*two_urls), serve(listing(models("qwen3:8b", "big"))).url
    found = upstream.models(UpstreamConnection())
    connect(upstream, groq=groq)
    assert upstream.models(UpstreamConnection()) == [*found, "groq/qwen3:8b", "groq/big"]
    assert request_answer(upstream, "groq/qwen3:8b").text == "qwen3:8b answers."
    assert request_answer(upstream, "big").text == "big answers."
    assert request_answer(upstream, "groq/big").text == "big answers."
    assert upstream.known_model == "groq/big"  # it was used last
    assert request_answer(upstream, "m").text == "m answers."
    assert upstream.known_model == "other/m"
    connect(upstream, ("groq", "big"), groq=groq)
    assert upstream.known_model == "groq/big"
    connect(upstream)
    assert upstream.models(UpstreamConnection()) == found
    assert upstream.known_model == "other/m"


def test_connected_provider_is_the_default_where_nothing_is_found(
    offer: OfferOf, serve: Serve
) -> None:
    """It comes before the demo model; without both there is no model."""
    demo, url = serve(listing(models("Smol"))), down()
    groq = serve(listing(models("big"))).url
    upstream = offer(url)
    refusal_of(request_answer(upstream), "no_model")
    connect(upstream, groq=groq)
    assert request_answer(upstream).text == "big answers."
    with_demo = offer(url, embedded_url=demo.url, embedded_model="Smol")
    connect(with_demo, groq=groq)
    assert request_answer(with_demo).text == "big answers."
    assert with_demo.models(UpstreamConnection()) == ["groq/big", "Smol"]
    assert request_answer(with_demo, "Smol").text == "Smol answers."
    connect(with_demo)
    assert with_demo.models(UpstreamConnection()) == ["Smol"]


def test_default_is_configured_else_last_used_else_loaded_model(
    offer: OfferOf, two_urls: tuple[str, str]
) -> None:
    """The default is the configured, else the last used, else the loaded model; one not offered is
    skipped.
    """
    upstream = offer(*two_urls, last="other/m")
    assert request_answer(upstream).text == "m answers."
    request_answer(upstream, "ollama/llama3.2:latest")
    assert upstream.known_model == "ollama/llama3.2:latest"
    assert request_answer(upstream).text == "llama3.2:latest answers."
    for removed_name in ("ollama/deleted", "gone/x"):
        assert request_answer(offer(*two_urls, last=removed_name)).text == "qwen3:8b answers."
    for model_name in ("llama3.2", "ollama/llama3.2"):
        assert (
            request_answer(offer(*two_urls, last="other/m", model=model_name)).text
            == "llama3.2 answers."
        )
    assert request_answer(offer(*two_urls, model="not-there")).text == "qwen3:8b answers."
    reversed_upstream = offer(two_urls[1], two_urls[0])
    reversed_upstream.models(UpstreamConnection())
    assert (
        reversed_upstream.known_model == "ollama/qwen3:8b"
    )  # the other one is not known to be loaded
    assert (
        request_answer(offer(two_urls[1])).text == "qwen3:8b answers."
    )  # the first: none is known to be loaded


def test_last_model_is_shared_by_workers_and_kept(tmp_path: Path) -> None:
    """The last model is shared by all workers and kept over a restart."""
    first_worker, second_worker = (LastModel(tmp_path / "last_model") for _ in range(2))
    assert (first_worker.name, second_worker.name) == ("", "")
    first_worker.set("a")
    assert (first_worker.name, second_worker.name) == ("a", "a")
    second_worker.set("b/é")
    assert (first_worker.name, second_worker.name, LastModel(tmp_path / "last_model").name) == (
        "b/é",
    ) * 3
    assert [path.name for path in tmp_path.iterdir()] == ["last_model"]


def test_last_model_without_a_file_is_kept_in_memory(tmp_path: Path) -> None:
    """Without its folder or file the last model is kept in memory, and no answer ends."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "last_model", tmp_path / "file" / "last_model", None):
        last_model = LastModel(path)
        last_model.set("a")
        assert last_model.name == "a"


def test_result_of_the_master_is_used_without_a_probe(
    serve: Serve,
) -> None:
    """Workers use the master's result without a probe: the default is known at once, without a
    list.
    """
    server = serve(OLLAMA)
    result = discover_at_start((server.url,))
    config = Config(discovered=result.encoded())
    upstream = make_upstream(config, discovery=make_discovery(config))
    assert upstream.known_model == f"ollama-{server.port}/qwen3:8b"
    accepted = server.accepted
    assert request_answer(upstream, upstream.known_model).text == "qwen3:8b answers."
    assert server.accepted == accepted + 1
    upstream.close()


def test_library_discovers_no_servers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library discovers no servers: a program has to configure its own."""
    server = serve(OLLAMA)
    for config in (load({}), load({"HALT_DISCOVER": f"127.0.0.1:{server.port}"})):
        with pytest.raises(ConfigError, match="There is no model server"):
            Halt(config=config)
    assert server.accepted == 0


# --- a whole Halt ---------------------------------------------------------------------------------

IN_A_NAMESPACE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@pytest.mark.slow
def test_halt_without_settings_offers_local_servers() -> None:
    """Without settings Halt offers the servers on their usual ports.

    It runs in its own network namespace: see `tests.support.discovery_check`.
    """
    try:
        subprocess.run([*IN_A_NAMESPACE, "ip", "link", "set", "lo", "up"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system makes no network namespace")
    inside = shlex.join([sys.executable, "-m", "tests.support.discovery_check"])
    done = subprocess.run(
        [*IN_A_NAMESPACE, "sh", "-c", f"ip link set lo up && exec {inside}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_unlisted_halt_model_is_named_at_the_start(start_halt: StartHalt) -> None:
    """A HALT_MODEL that no server lists is named at the start, since another model then answers."""
    with RawServer(OLLAMA) as server:
        for model_name, is_listed in (("qwen9:70b", False), ("llama3.2", True)):
            halt = start_halt(HALT_DISCOVER=f"127.0.0.1:{server.port}", HALT_MODEL=model_name)
            model_server = halt.wait_printed(r"Model server: (.*)\n")[1]
            assert (
                model_server.endswith(f"HALT_MODEL='{model_name}' is in none of their lists")
                != is_listed
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        (
            "AZURE_OPENAI_API_KEY",
            "k-azure",
            "set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_DEPLOYMENT too",
        ),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9", "set ANTHROPIC_API_KEY too"),
    ],
)
def test_start_names_a_variable_of_an_incomplete_provider(
    start_halt: StartHalt, name: str, value: str, advice: str
) -> None:
    """The start says that the variable is unused, and what is missing."""
    with RawServer(OLLAMA) as server:
        halt = start_halt(**{"HALT_DISCOVER": f"127.0.0.1:{server.port}", name: value})
        model_server = halt.wait_printed(r"Model server: (.*)\n")[1]
    assert model_server.endswith(f"; {name} is not used: {advice}")
    assert load({name: value, "OPENAI_API_KEY": "k"}).unused_provider == ""


@pytest.mark.slow
def test_master_passes_its_discovery_to_workers(start_halt: StartHalt) -> None:
    """The master passes its discovery to workers; the page says when the last server has
    gone.

    If other machines reach Halt, only the configured addresses are probed.
    """
    with RawServer(OLLAMA) as server:
        halt = start_halt(
            HALT_DISCOVER=f"127.0.0.1:{server.port}", HOST="0.0.0.0", HALT_ALLOW_ANONYMOUS=1
        )
        origin = f"http://127.0.0.1:{server.port}"
        assert halt.wait_printed(r"Model server: (.*)\n")[1] == f"3 models of Ollama at {origin}"
        client = halt.client()
        names = [model["id"] for model in client.get("/v1/models").json["data"]]
        assert names[-1] == f"ollama-{server.port}/qwen3:8b"
        assert client.chat(names[1]).to_end().text == "llama3.2:latest answers."
    wait_until(
        lambda: f"Ollama at {origin} no longer responds." in client.get("/models").body.decode(),
        SERVER_TIMEOUT,
    )
    assert "no list" not in client.get("/models").body.decode()

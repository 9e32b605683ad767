"""The library's arguments provider, address and key: which server gets a request, with which key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halt import Halt
from halt.config.environment import load
from halt.config.provider_setup import setup, with_provider
from halt.config.providers import ProviderSettings
from halt.config.settings import Config, ConfigError
from halt.testing.fake_openai import FakeOpenAI
from tests.support.library_halt import wait_no_threads
from tests.support.waiting import WAIT_TIMEOUT

VERSION = "2024-10-21"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the providers of this shell's environment."""
    for item in Config.__dataclass_fields__.values():
        if item.metadata["env"].startswith(("OPENAI_", "AZURE_", "ANTHROPIC_", "HALT_MODEL")):
            monkeypatch.delenv(item.metadata["env"], raising=False)
    yield
    wait_no_threads()


def arguments(fake: FakeOpenAI, provider: str) -> dict[str, Any]:
    """The arguments of `Halt` for the fake as this provider, without a model."""
    common_arguments = {"provider": provider, "api_key": "key-of-program", "base_url": fake.origin}
    if provider == "openai":
        return common_arguments | {"base_url": fake.base_url}
    return common_arguments | ({"api_version": VERSION} if provider == "azure" else {})


def only_provider(config: Config) -> ProviderSettings:
    """The one provider of these settings."""
    (provider,) = setup(config).providers
    return provider


# --- requests to a server -------------------------------------------------------------------------

PATHS = {
    "openai": ("/v1/chat/completions", ""),
    "azure": ("/openai/deployments/count%3Fn=5/chat/completions", f"api-version={VERSION}"),
    "anthropic": ("/v1/messages", ""),
}


@pytest.mark.parametrize("provider", PATHS)
def test_provider_argument_selects_dialect_key_and_model(fake: FakeOpenAI, provider: str) -> None:
    """The request has the provider's path and version, the given key and the given model."""
    with Halt(**arguments(fake, provider), model="count?n=5") as halt:
        result = halt.generate("hello").result()
    assert (result.text, result.finish_reason) == ("0 1 2 3 4 ", "stop")
    record = fake.wait_request(lambda request: request.method == "POST")
    assert (record.path, record.query) == PATHS[provider]
    assert "key-of-program" in str(record.headers)


@pytest.mark.parametrize("provider", PATHS)
@pytest.mark.parametrize("model", ["silent_headers", "stall?n=1"])
def test_stop_closes_the_connection_of_each_provider(
    fake: FakeOpenAI, provider: str, model: str
) -> None:
    """A Stop before the headers and in a stall closes the connection, and the receipt says so."""
    with Halt(**arguments(fake, provider), model=model) as halt:
        gen = halt.generate("hello")
        record = fake.wait_request(lambda request: request.method == "POST")
        if model.startswith("stall"):
            record.wait_tokens(1)
        receipt = gen.stop()
        assert (receipt.status, receipt.upstream) == ("stopped", "closed")
        assert record.closed.wait(WAIT_TIMEOUT)


def test_environment_key_is_not_sent_to_a_given_address(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of a given address gets the given key or none, and no key of the environment."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret-of-environment")
    with Halt(base_url=fake.base_url, model="count?n=2") as halt:
        assert halt.generate("hello").result().text == "0 1 "
    assert "secret-of-environment" not in str([request.headers for request in fake.requests])


# --- precedence -----------------------------------------------------------------------------------

ENVIRONMENT = {
    "OPENAI_API_KEY": "k-openai",
    "OPENAI_BASE_URL": "http://127.0.0.1:9999/v1",
    "ANTHROPIC_API_KEY": "k-anthropic",
    "AZURE_OPENAI_API_KEY": "k-azure",
    "AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com",
    "AZURE_OPENAI_DEPLOYMENT": "gpt",
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"provider": "openai"}, ("openai", "http://127.0.0.1:9999/v1", "k-openai")),
        ({"provider": "anthropic"}, ("anthropic", "https://api.anthropic.com", "k-anthropic")),
        ({"provider": "azure"}, ("azure", "https://x.openai.azure.com", "k-azure")),
        ({"api_key": "mine"}, ("openai", "http://127.0.0.1:9999/v1", "mine")),
        ({"base_url": "http://h/v1"}, ("openai", "http://h/v1", "none")),
        ({"base_url": "http://h/v1", "api_key": ""}, ("openai", "http://h/v1", "none")),
        ({"base_url": "http://127.0.0.1:9998/v1"}, ("openai", "http://127.0.0.1:9998/v1", "none")),
        (
            {"base_url": "http://127.0.0.1:9999/v2"},
            ("openai", "http://127.0.0.1:9999/v2", "k-openai"),
        ),
        (
            {"provider": "anthropic", "base_url": "https://h", "api_key": "mine"},
            ("anthropic", "https://h", "mine"),
        ),
        (
            {"provider": "azure", "base_url": "https://X.openai.azure.com:443/"},
            ("azure", "https://X.openai.azure.com:443/", "k-azure"),
        ),
    ],
)
def test_arguments_override_the_environment(
    options: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    """The arguments leave one provider, with the environment's key for its own server alone."""
    provider = only_provider(with_provider(load(ENVIRONMENT), **options))
    assert (provider.kind, provider.base_url, provider.key) == expected


def test_provider_arguments_override_the_provider_file(tmp_path: Path) -> None:
    """The providers of HALT_CONFIG are used only where no argument names one."""
    path = tmp_path / "halt.toml"
    path.write_text('[providers.a]\nkind = "openai"\nbase_url = "http://h/v1"\n')
    config = load({"HALT_CONFIG": str(path)})
    assert only_provider(with_provider(config, model="m")).name == "a"
    assert (
        only_provider(with_provider(config, base_url="http://mine/v1")).base_url == "http://mine/v1"
    )


def test_azure_model_and_version_arguments_override_the_environment() -> None:
    """On Azure the given model is the deployment; a given version replaces the environment's."""
    config = load(ENVIRONMENT | {"OPENAI_API_VERSION": "2024-06-01"})
    provider_settings = only_provider(with_provider(config, provider="azure", model="mine"))
    assert (
        provider_settings.models,
        provider_settings.first_model,
        provider_settings.api_version,
    ) == (("mine",), "mine", "2024-06-01")
    provider_settings = only_provider(
        with_provider(config, provider="azure", api_version="2025-01-01")
    )
    assert (provider_settings.first_model, provider_settings.api_version) == ("gpt", "2025-01-01")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message_start"),
    [
        ({"provider": "ollama"}, "provider='ollama' is not allowed: use one of \"openai\", "),
        (
            {"provider": "openai"},
            'api_key is missing: provider="openai" needs a key for api.openai',
        ),
        (
            {"provider": "anthropic"},
            'api_key is missing: provider="anthropic" needs a key for api.',
        ),
        ({"provider": "azure", "api_key": "k", "model": "m"}, "base_url is missing: "),
        ({"provider": "azure", "base_url": "https://h", "model": "m"}, "api_key is missing: "),
        ({"provider": "azure", "base_url": "https://h", "api_key": "k"}, "model is missing: "),
        ({"api_version": VERSION}, 'api_version is for provider="azure" alone'),
        ({"api_version": VERSION, "base_url": "http://h"}, "api_version is for "),
        ({"api_version": VERSION, "provider": "anthropic", "api_key": "k"}, "api_version is for "),
        ({"base_url": "example.org"}, "base_url is not an address: use http(s)://"),
        ({"base_url": "http://h/v1?key=secret-1"}, "base_url is not an address: "),
        ({"api_key": "secret-1 "}, "api_key holds a space or a character "),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    options: dict[str, Any], message_start: str
) -> None:
    """Wrong arguments are refused in one line with the argument and what is needed,
    without a key.
    """
    with pytest.raises(ConfigError) as error_info:
        Halt(**options)
    message = str(error_info.value)
    assert message.startswith(message_start)
    assert "\n" not in message
    assert "secret-1" not in message


def test_given_address_without_a_key_is_refused() -> None:
    """Anthropic's key of the environment is not used for another address: a key is required."""
    with pytest.raises(ConfigError, match=r"api_key is missing: .* needs a key for h:8443"):
        with_provider(load(ENVIRONMENT), provider="anthropic", base_url="https://h:8443")

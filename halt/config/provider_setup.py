"""Builds the providers from the environment, the providers' file, or a program's arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from halt.config.addresses import fits_header, is_base_url
from halt.config.checks import override
from halt.config.environment import variable
from halt.config.model_servers import Server, decoded, title_of_name
from halt.config.provider_file import read_file
from halt.config.providers import DEMO, DEMO_EXTRA, KINDS, ProviderSettings, Setup
from halt.config.settings import ANTHROPIC_URL, OPENAI_URL, Config, ConfigError

#: Kind -> (setting of its address, setting of its key, default address).
_SETTINGS = {
    "openai": ("base_url", "api_key", OPENAI_URL),
    "azure": ("azure_endpoint", "azure_key", ""),
    "anthropic": ("anthropic_url", "anthropic_key", ANTHROPIC_URL),
}


def setup(config: Config, lookup: Callable[[str], str] = variable) -> Setup:
    """The providers by the settings, at least one. Raises ConfigError.

    `lookup` returns the value of an environment variable that the file names.
    """
    if config.config_file:
        return read_file(config, lookup)
    make_provider = _provider_factory(config)
    providers = []
    if not config.has_provider:
        providers += [
            discovered_provider(server, config) for server in decoded(config.discovered).servers
        ]
    is_demo = config.has_demo or not (config.has_provider or providers)
    if is_demo or config.api_key or config.base_url:
        providers.append(
            make_provider(
                name=DEMO if is_demo else "openai",
                kind="openai",
                base_url=config.upstream_url,
                key=config.upstream_key,
                default_model=config.known_model,
                extra_body=DEMO_EXTRA if is_demo else {},
                title="Demo model" if is_demo else "",
                is_demo=is_demo,
            )
        )
    if config.azure_endpoint:
        providers.append(
            make_provider(
                name="azure",
                kind="azure",
                title=title_of_name("azure"),
                base_url=config.azure_endpoint,
                key=config.azure_key,
                models=(config.azure_deployment,),
                api_version=config.azure_version,
            )
        )
    if config.anthropic_key:
        providers.append(
            make_provider(
                name="anthropic",
                kind="anthropic",
                base_url=config.anthropic_url or ANTHROPIC_URL,
                key=config.anthropic_key,
            )
        )
    return Setup(providers=tuple(providers), default=config.model)


def discovered_provider(server: Server, config: Config) -> ProviderSettings:
    """The provider for a discovered model server."""
    return _provider_factory(config)(
        name=server.name,
        kind="openai",
        title=server.title,
        base_url=server.url,
        default_model=server.default,
    )


def _provider_factory(config: Config) -> partial[ProviderSettings]:
    """A constructor of providers, with the settings that are the same for all of them."""
    return partial(
        ProviderSettings,
        connect_timeout=config.connect_timeout,
        continues=config.continues,
        allow_link_local=config.allow_link_local,
    )


# --- a program's arguments ------------------------------------------------------------------------


def with_provider(
    config: Config,
    *,
    provider: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    api_version: str | None = None,
    model: str | None = None,
) -> Config:
    """A copy of these settings with one provider, given by the arguments. Raises ConfigError.

    With no argument other than `model`, the providers stay as they are. An empty argument counts as
    omitted; omitted ones are taken from the settings of the same kind of provider. The key of the
    settings is used only for the server of the settings.
    """
    _check_arguments(provider, base_url, api_key)
    kind = provider or "openai"
    if api_version and kind != "azure":
        raise ConfigError('api_version is for provider="azure" alone: omit it.')
    if not (provider or base_url or api_key):
        return override(config, model=model)
    url_setting, key_setting, default_url = _SETTINGS[kind]
    configured_url = getattr(config, url_setting) or default_url
    url = base_url or configured_url
    is_configured = _origin(url) == _origin(configured_url)
    key = api_key or (getattr(config, key_setting) if is_configured else "")
    deployment = model or config.azure_deployment
    if kind == "azure" and not url:
        raise ConfigError(
            'base_url is missing: provider="azure" needs https://NAME.openai.azure.com.'
        )
    if not key and (kind != "openai" or _origin(url) == _origin(OPENAI_URL)):
        server = urlsplit(url).netloc.rpartition("@")[2]
        raise ConfigError(f'api_key is missing: provider="{kind}" needs a key for {server}.')
    if kind == "azure" and not deployment:
        raise ConfigError('model is missing: provider="azure" needs the name of a deployment.')
    names = [name for address, secret, _ in _SETTINGS.values() for name in (address, secret)]
    chosen = dict.fromkeys([*names, "azure_deployment", "config_file"], "")
    chosen |= {url_setting: url, key_setting: key}
    if kind == "azure":
        chosen |= {"azure_deployment": deployment}
        chosen |= {"azure_version": api_version or config.azure_version}
    return override(config, **chosen, model=model)


def _check_arguments(provider: str | None, base_url: str | None, api_key: str | None) -> None:
    if provider and provider not in KINDS:
        choice = ", ".join(f'"{kind}"' for kind in KINDS)
        raise ConfigError(f"provider={provider!r} is not allowed: use one of {choice}.")
    if base_url and not is_base_url(base_url):  # it may hold a key, so the error does not show it
        raise ConfigError(
            "base_url is not an address: use http(s)://HOST[:PORT]/PATH, without ? or #."
        )
    if api_key and not fits_header(api_key):
        raise ConfigError(
            "api_key holds a space or a character that no header can carry: use visible ASCII."
        )


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL. Two URLs with the same ones are the same server."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port

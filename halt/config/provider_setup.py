"""Which providers there are: those of the environment, of the file, or of a program's arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from halt.config.addresses import fits_header, is_address
from halt.config.checks import override
from halt.config.environment import variable
from halt.config.model_servers import Server, decoded
from halt.config.provider_file import read_file
from halt.config.providers import DEMO, DEMO_EXTRA, KINDS, ProviderSettings, Setup
from halt.config.settings import ANTHROPIC_URL, OPENAI_URL, Config, ConfigError

#: For each kind the settings with its address and its key, and the address where none is set.
_SETTINGS = {
    "openai": ("base_url", "api_key", OPENAI_URL),
    "azure": ("azure_endpoint", "azure_key", ""),
    "anthropic": ("anthropic_url", "anthropic_key", ANTHROPIC_URL),
}


def setup(config: Config, lookup: Callable[[str], str] = variable) -> Setup:
    """The providers that the settings ask for; at least one. Raises ConfigError.

    `lookup` gives the value of an environment variable that the file names.
    """
    if config.config_file:
        return read_file(config, lookup)
    provider = _provider_of(config)
    found = []
    if not config.has_provider:
        found += [of_server(server, config) for server in decoded(config.discovered).servers]
    is_demo = config.has_demo or not (config.has_provider or found)
    if is_demo or config.api_key or config.base_url:
        found.append(
            provider(
                name=DEMO if is_demo else "openai",
                kind="openai",
                base_url=config.upstream_url,
                key=config.upstream_key,
                default_model=config.known_model,
                extra_body=DEMO_EXTRA if is_demo else {},
                is_demo=is_demo,
            )
        )
    if config.azure_endpoint:
        found.append(
            provider(
                name="azure",
                kind="azure",
                base_url=config.azure_endpoint,
                key=config.azure_key,
                models=(config.azure_deployment,),
                api_version=config.azure_version,
            )
        )
    if config.anthropic_key:
        found.append(
            provider(
                name="anthropic",
                kind="anthropic",
                base_url=config.anthropic_url or ANTHROPIC_URL,
                key=config.anthropic_key,
            )
        )
    return Setup(providers=tuple(found), default=config.model)


def of_server(server: Server, config: Config) -> ProviderSettings:
    """The provider that a model server becomes which was found."""
    return _provider_of(config)(
        name=server.name, kind="openai", base_url=server.url, default_model=server.default
    )


def _provider_of(config: Config) -> partial[ProviderSettings]:
    """Makes a provider with what the environment sets for all of them."""
    return partial(
        ProviderSettings, connect_timeout=config.connect_timeout, continues=config.continues
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
    """These settings with the one provider that the arguments name. Raises ConfigError.

    Without an argument but `model` the providers of the settings stay. An empty argument counts as
    not given; what is not given is taken from the settings of the same kind of provider. A key of
    the settings is sent to no other server than the one of the settings.
    """
    _check_arguments(provider, base_url, api_key)
    kind = provider or "openai"
    if api_version and kind != "azure":
        raise ConfigError('api_version is for provider="azure" alone: leave it out.')
    if not (provider or base_url or api_key):
        return override(config, model=model)
    url_setting, key_setting, usual_url = _SETTINGS[kind]
    own_url = getattr(config, url_setting) or usual_url
    url = base_url or own_url
    key = api_key or (getattr(config, key_setting) if _origin(url) == _origin(own_url) else "")
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
    if base_url and not is_address(base_url):  # it may hold a key, so it is not quoted
        raise ConfigError(
            "base_url is not an address: use http(s)://HOST[:PORT]/PATH, without ? or #."
        )
    if api_key and not fits_header(api_key):
        raise ConfigError("api_key holds a space or a character that no header can carry.")


def _origin(url: str) -> tuple[str, str, int]:
    """The server of an address: two of one origin are the same server."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port

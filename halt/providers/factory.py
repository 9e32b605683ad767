"""Creates the upstream of a server or a program from its settings."""

from __future__ import annotations

from functools import partial

from halt.config.provider_setup import discovered_provider, setup
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.request import Upstream
from halt.providers.discovered import DiscoveredProviders
from halt.providers.discovery import Discovery
from halt.providers.last_model import LastModel
from halt.providers.openai import AzureUpstream, OpenAIUpstream
from halt.providers.router import Providers
from halt.transport.pool import Transport


def make_provider(
    settings: ProviderSettings, transport: Transport | None = None, *, instance_id: str = ""
) -> Upstream:
    """Create a provider of the kind in `settings`, with its own transport if none is given.

    `instance_id`: see `halt.core.via`.
    """
    transport = transport or Transport(
        settings.connect_timeout,
        instance_id=instance_id,
        allow_link_local=settings.allow_link_local,
    )
    if settings.kind == "anthropic":
        # Imported only here: the client is slow to load, and few installations use it.
        from halt.providers.anthropic.upstream import AnthropicUpstream  # noqa: PLC0415

        return AnthropicUpstream(settings, transport)
    kind = AzureUpstream if settings.kind == "azure" else OpenAIUpstream
    return kind(settings, transport)


def make_upstream(
    config: Config,
    instance_id: str = "",
    discovery: Discovery | None = None,
    last: LastModel | None = None,
) -> Providers:
    """Create all providers of the settings. Raises ConfigError.

    If the settings name no provider, those that `discovery` finds are used, and the default model
    is the one in `last`. `instance_id`: see `halt.core.via`.
    """
    configured = setup(config)

    make = partial(make_provider, instance_id=instance_id)
    # Without an address there is none: `Providers` says so, and others may be connected later.
    usable = [settings for settings in configured.providers if settings.base_url]
    providers = {settings.name: make(settings) for settings in usable}
    if discovery is None:
        return Providers(providers, configured.default)
    return DiscoveredProviders(
        providers,
        discovery,
        lambda server: make(discovered_provider(server, config)),
        demo=config.embedded_model if config.has_demo else "",
        configured=config.model,
        last=last or LastModel(),
    )

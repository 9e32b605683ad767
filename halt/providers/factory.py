"""Which providers answer: from the settings to the upstream of a server or a program."""

from __future__ import annotations

from halt.config.provider_setup import of_server, setup
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.request import Upstream
from halt.providers.discovered import DiscoveredProviders
from halt.providers.discovery import Discovery
from halt.providers.last_model import LastModel
from halt.providers.openai import AzureUpstream, OpenAIUpstream
from halt.providers.router import Providers
from halt.transport.pool import Transport


def make_provider(settings: ProviderSettings, transport: Transport | None = None) -> Upstream:
    """The provider of this kind, with a transport of its own where none is given."""
    if settings.kind == "anthropic":
        # Its client takes a while to load and is needed by few.
        from halt.providers.anthropic.upstream import AnthropicUpstream  # noqa: PLC0415

        return AnthropicUpstream(settings, transport)
    kind = AzureUpstream if settings.kind == "azure" else OpenAIUpstream
    return kind(settings, transport)


def make_upstream(
    config: Config,
    only: str = "",
    mark: str = "",
    discovery: Discovery | None = None,
    last: LastModel | None = None,
) -> Providers:
    """All providers that the settings ask for, or only the one of this name. Raises ConfigError.

    Where none is set, those that `discovery` finds, and the model that answered `last` by default.
    `mark`: of the server that asks them, see `halt.core.via`.
    """
    wanted = setup(config)
    if only:
        wanted = wanted.alone(only)

    def make(settings: ProviderSettings) -> Upstream:
        return make_provider(settings, Transport(settings.connect_timeout, mark=mark))

    providers = {each.name: make(each) for each in wanted.providers}
    if only or discovery is None:
        return Providers(providers, wanted.default)
    return DiscoveredProviders(
        providers,
        discovery,
        lambda server: make(of_server(server, config)),
        demo=config.embedded_model if config.has_demo else "",
        wanted=config.model,
        last=last or LastModel(),
    )

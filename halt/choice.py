"""Which providers answer: from the settings to the upstream of a server or a program."""

from __future__ import annotations

from halt.chat import Upstream
from halt.config import Config
from halt.provider_settings import ProviderSettings, setup
from halt.providers import Providers
from halt.transport import Transport
from halt.upstream import AzureUpstream, OpenAIUpstream


def make_provider(settings: ProviderSettings, transport: Transport | None = None) -> Upstream:
    """The provider of this kind, with a transport of its own where none is given."""
    if settings.kind == "anthropic":
        # Its client takes a while to load and is needed by few.
        from halt.anthropic_upstream import AnthropicUpstream  # noqa: PLC0415

        return AnthropicUpstream(settings, transport)
    kind = AzureUpstream if settings.kind == "azure" else OpenAIUpstream
    return kind(settings, transport)


def make_upstream(config: Config, only: str = "", mark: str = "") -> Providers:
    """All providers that the settings ask for, or only the one of this name. Raises ConfigError.

    `mark`: of the server that asks them, see `halt.loop`.
    """
    wanted = setup(config)
    if only:
        wanted = wanted.alone(only)
    providers = {
        each.name: make_provider(each, Transport(each.connect_timeout, mark=mark))
        for each in wanted.providers
    }
    return Providers(providers, wanted.default)

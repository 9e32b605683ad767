"""Checks each provider of the settings (connection, key, models, answer, Stop, tools, reasoning).

It also checks the limit on open files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from halt.config import open_files
from halt.config.provider_setup import setup
from halt.config.providers import ProviderSettings, Setup
from halt.config.settings import Config
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.doctor.answers import check_answer, check_extras
from halt.doctor.connection import check_connection
from halt.doctor.models import check_models
from halt.doctor.remedies import ADDRESS_PHRASES, CONNECTED, ENVIRONMENT
from halt.doctor.report import Report
from halt.doctor.running_requests import ServerLoad
from halt.doctor.stop import check_stop
from halt.providers.client_transport import public_address
from halt.providers.factory import make_provider
from halt.providers.openai import ENDPOINT
from halt.transport.pool import Transport

#: Makes a GenerationService from settings, for one provider.
Make = Callable[[Config, ProviderSettings], GenerationService]


def service_of(
    config: Config, provider: ProviderSettings, instance_id: str = ""
) -> GenerationService:
    """A GenerationService without a store for this provider alone: a `Make`.

    `instance_id`: of the server that makes the checks, see `halt.core.via`; empty: no server.
    """
    transport = Transport(
        provider.connect_timeout,
        instance_id=instance_id,
        allow_link_local=provider.allow_link_local,
    )
    return GenerationService(config, make_provider(provider, transport), StopRegistry())


def _setting_names(config: Config, provider: ProviderSettings) -> Mapping[str, str]:
    if not config.config_file:
        return ENVIRONMENT[provider.kind]
    table = f"[providers.{provider.name}]"
    return {
        "address": f"{'endpoint' if provider.kind == 'azure' else 'base_url'} of {table}",
        "key": f"the variable that key_env of {table} names",
        "model": f"default, or models of {table},",
    }


def check_providers(
    report: Report,
    config: Config,
    make: Make,
    timeout: float,
    connected: Sequence[ProviderSettings] = (),
) -> None:
    """Check each provider of these settings, then the connected ones.

    `timeout` is the longest silence, in seconds.
    """
    limits = {
        f"{setting} sets this limit": "--timeout sets this limit"
        for setting, seconds in (
            ("HALT_FIRST_BYTE_TIMEOUT", config.first_byte_timeout),
            ("HALT_GAP_TIMEOUT", config.gap_timeout),
        )
        if timeout < seconds
    }
    config = replace(
        config,
        retries=0,
        first_byte_timeout=min(timeout, config.first_byte_timeout),
        gap_timeout=min(timeout, config.gap_timeout),
    )
    _check_open_files(report, config.max_streams)
    configured = setup(config)
    # Without a provider in the settings there is one without an address.
    own = [provider for provider in configured.providers if provider.base_url or not connected]
    has_several = len(own) + len(connected) > 1
    for provider in own:
        _begin(report, provider, _setting_names(config, provider), has_several=has_several)
        report.phrases = limits
        _check_provider(report, config, _with_default(configured, provider), make)
    for provider in connected:
        _begin(report, provider, CONNECTED, has_several=has_several)
        report.phrases = limits | dict.fromkeys(ADDRESS_PHRASES, CONNECTED["address"])
        _check_provider(report, config, provider, make)
    report.part = ""


def _begin(
    report: Report, provider: ProviderSettings, names: Mapping[str, str], *, has_several: bool
) -> None:
    """Prepare the report for the findings of this provider."""
    report.part = f"{provider.name}: " if has_several else ""
    report.names = names
    report.secrets = provider.secrets
    report.is_listed = False


def _with_default(configured: Setup, provider: ProviderSettings) -> ProviderSettings:
    """The provider, with the default model of all providers if it is one of its models."""
    limited = configured.limited_to(provider.name)
    (single,) = limited.providers
    return replace(single, default_model=limited.default) if limited.default else single


def _check_provider(report: Report, config: Config, provider: ProviderSettings, make: Make) -> None:
    if not check_address(report, provider):
        return
    with closing(make(config, provider)) as generations:
        if not (check_models(report, provider, generations) and check_answer(report, generations)):
            return
        model = generations.upstream.known_model
        with closing(ServerLoad(provider, model, report.cancellation)) as load:
            check_stop(report, generations, load)
        check_extras(report, generations)


def _check_open_files(report: Report, streams: int) -> None:
    """Check that the system allows as many open files as the streams need."""
    allowed, needed = open_files.highest_limit(), open_files.files_for(streams)
    text = f"{allowed:,} allowed, {needed:,} needed for {streams} streams"
    if allowed >= needed:
        report.ok("open files", text)
    else:
        remedy = "Raise the limit (ulimit -Hn; LimitNOFILE= of systemd), or lower HALT_MAX_STREAMS."
        report.warn("open files", f"{text}.", remedy)


def check_address(report: Report, provider: ProviderSettings) -> bool:
    """Check the form of the address, then the connection to it. Returns whether there is one.

    Raises ChecksEnded.
    """
    base = ENDPOINT.sub("", provider.base_url)
    if provider.kind == "openai" and base != provider.base_url:
        report.warn(
            "address",
            f"{provider.base_url.removeprefix(base)} is the path of a request; Halt adds it to "
            "the address by itself.",
            f"Remove it: set {report.names['address']} to {public_address(base)}.",
        )
    return check_connection(
        report,
        provider.base_url,
        provider.connect_timeout,
        report.names["address"],
        allow_link_local=provider.allow_link_local,
    )

"""Checks each provider of the settings (connection, key, models, answer, Stop, tools, reasoning).

It also checks the limit on open files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace

from halt.config import open_files
from halt.config.provider_setup import setup
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.service import GenerationService
from halt.doctor.answers import check_answer, check_extras
from halt.doctor.connection import check_connection
from halt.doctor.models import check_models
from halt.doctor.report import ENVIRONMENT, Report
from halt.doctor.running_requests import ServerLoad
from halt.doctor.stop import check_stop
from halt.providers.client_transport import public_address
from halt.providers.openai import ENDPOINT

Make = Callable[[Config, str], GenerationService]


def _setting_names(config: Config, provider: ProviderSettings) -> Mapping[str, str]:
    if not config.config_file:
        return ENVIRONMENT[provider.kind]
    table = f"[providers.{provider.name}]"
    return {
        "address": f"{'endpoint' if provider.kind == 'azure' else 'base_url'} of {table}",
        "key": f"the variable that key_env of {table} names",
        "model": f"default, or models of {table},",
    }


def check_providers(report: Report, config: Config, make: Make, timeout: float) -> None:
    """Check each provider of these settings; `timeout` is the longest silence, in seconds.

    `make` makes a GenerationService from settings for the provider with the given name.
    """
    report.limit_options = {
        setting: "--timeout"
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
    providers = setup(config).providers
    for provider in providers:
        report.part = f"{provider.name}: " if len(providers) > 1 else ""
        report.names = _setting_names(config, provider)
        report.is_listed = False
        _check_provider(report, config, provider, make)
    report.part = ""


def _check_provider(report: Report, config: Config, provider: ProviderSettings, make: Make) -> None:
    if not _check_connection(report, provider):
        return
    with closing(make(config, provider.name)) as generations:
        if not (check_models(report, provider, generations) and check_answer(report, generations)):
            return
        with closing(ServerLoad(provider, generations.upstream.known_model)) as load:
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


def _check_connection(report: Report, provider: ProviderSettings) -> bool:
    """Check the form of the address, then the connection to it."""
    base = ENDPOINT.sub("", provider.base_url)
    if provider.kind == "openai" and base != provider.base_url:
        report.warn(
            "address",
            f"{provider.base_url.removeprefix(base)} is the path of a request; Halt adds it to "
            "the address by itself.",
            f"Remove it: set {report.names['address']} to {public_address(base)}.",
        )
    return check_connection(
        report, provider.base_url, provider.connect_timeout, report.names["address"]
    )

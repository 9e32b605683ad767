"""Checks of the settings, and copies with changed ones.

A check raises ConfigError: the variable, what is wrong, what is allowed."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from halt.config.addresses import fits_header, is_base_url, is_host, is_loopback, is_origin
from halt.config.people_checks import check_people
from halt.config.settings import CONTINUES, DISCOVER_MAX, SHIPPED_TOOLS, TITLES, Config, ConfigError

#: One limit of HALT_RATE_SESSION and HALT_RATE_ADDRESS: 30/minute, 5 per 10 seconds.
_RATE = re.compile(
    r"[1-9][0-9]{0,5} *(/| per ) *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?", re.IGNORECASE
)


def override(config: Config, **values: Any) -> Config:
    """A checked copy with these settings replaced; None replaces nothing. Raises ConfigError."""
    changed = replace(
        config, **{name: value for name, value in values.items() if value is not None}
    )
    check(changed)
    return changed


def check(config: Config) -> None:
    """Check everything but the bounds of numbers, which `halt.config.environment` checks.

    Raises ConfigError.
    """
    for name, address, example in (
        ("OPENAI_BASE_URL", config.base_url, "http://127.0.0.1:11434/v1"),
        ("ANTHROPIC_BASE_URL", config.anthropic_url, "https://api.anthropic.com"),
        ("AZURE_OPENAI_ENDPOINT", config.azure_endpoint, "https://NAME.openai.azure.com"),
    ):
        if {"?", "#"} & set(address):  # it may hold a key, so the error does not show it
            raise ConfigError(
                f"{name} holds a ? or a #, but Halt appends paths to it: "
                f"use http(s)://HOST[:PORT]/PATH, as in {example}."
            )
        if address and not is_base_url(address):
            raise ConfigError(
                f"{name}={address!r} is not an address: "
                f"use http(s)://HOST[:PORT]/PATH, as in {example}."
            )
    azure = {
        "AZURE_OPENAI_ENDPOINT": config.azure_endpoint,
        "AZURE_OPENAI_API_KEY": config.azure_key,
        "AZURE_OPENAI_DEPLOYMENT": config.azure_deployment,
    }
    missing = [name for name, value in azure.items() if not value]
    if missing and (config.azure_endpoint or config.azure_deployment) and not config.config_file:
        raise ConfigError(f"{missing[0]} is missing: Azure OpenAI needs {', '.join(azure)}.")
    for name, value, min_length in (
        ("HALT_TOKEN", config.token, 8),
        ("HALT_SECRET_KEY", config.secret_key, 16),
        ("HALT_SECRET_KEY_OLD", config.secret_key_old, 16),
    ):
        if value and len(value) < min_length:
            raise ConfigError(f"{name} is too short: use at least {min_length} characters.")
    for name, value in (
        ("OPENAI_API_KEY", config.api_key),
        ("ANTHROPIC_API_KEY", config.anthropic_key),
        ("AZURE_OPENAI_API_KEY", config.azure_key),
        ("HALT_TOKEN", config.token),
        ("HALT_OIDC_CLIENT_ID", config.oidc_client_id),
        ("HALT_OIDC_CLIENT_SECRET", config.oidc_client_secret),
    ):
        if not fits_header(value):
            raise ConfigError(
                f"{name} holds a space or a character that no header can carry: use visible ASCII."
            )
    if len(config.system_prompt) >= config.max_prompt_chars:
        raise ConfigError(
            f"HALT_SYSTEM_PROMPT has {len(config.system_prompt)} characters: use fewer than "
            f"HALT_MAX_PROMPT_CHARS={config.max_prompt_chars}, which counts them in each request."
        )
    _check_lists(config)
    check_people(config)
    check_reachable(config, f"HOST={config.host!r}", config.host)


def _check_lists(config: Config) -> None:
    if len(config.discover_addresses) > DISCOVER_MAX:
        raise ConfigError(f"HALT_DISCOVER names more than {DISCOVER_MAX} addresses: use fewer.")
    for name, rates in (
        ("HALT_RATE_SESSION", config.rate_session),
        ("HALT_RATE_ADDRESS", config.rate_address),
    ):
        if rates and not all(_RATE.fullmatch(rate.strip()) for rate in rates.split(";")):
            raise ConfigError(
                f"{name}={rates!r} is not a rate: use NUMBER/UNIT, as in 30/minute, "
                "with second, minute, hour or day as UNIT, and ; between several."
            )
    for name, value, choice in (
        ("HALT_CONTINUE", config.continues, CONTINUES),
        ("HALT_TITLES", config.titles, TITLES),
    ):
        if value not in choice:
            raise ConfigError(f"{name}={value!r} is not allowed: use {' or '.join(choice)}.")
    for tool in config.tools:
        if tool not in SHIPPED_TOOLS:
            raise ConfigError(
                f"HALT_TOOLS={','.join(config.tools)!r}: there is no tool named {tool!r}; "
                f"use {', '.join(SHIPPED_TOOLS)}."
            )
    for host in config.named_hosts:
        if not is_host(host):
            raise ConfigError(
                f"HALT_HOSTS={config.hosts!r}: {host!r} is not a host name: use names such as "
                "halt.example or addresses, without http:// and without a port."
            )
    for origin in config.cors_origins:
        if origin != "*" and not is_origin(origin):
            raise ConfigError(
                f"HALT_CORS_ORIGINS={','.join(config.cors_origins)!r}: {origin!r} is not an "
                "origin: use http(s)://host[:port] in lower case, without a path and without the "
                "default port, or *."
            )


def check_reachable(config: Config, setting: str, host: str) -> None:
    """Check that only people who are known can reach the address, or anonymous access is set.

    `setting` is the setting and its value, for the error. Raises ConfigError.
    """
    known = config.token or config.users or config.user_header or config.oidc_issuer
    if not is_loopback(host) and not known and not config.allow_anonymous:
        raise ConfigError(
            f"{setting} is reachable from other machines and no HALT_TOKEN is set: "
            "set HALT_TOKEN or another way to sign in, or HALT_ALLOW_ANONYMOUS=1 to allow everyone."
        )


def check_proxies_and_certificates(env: Mapping[str, str]) -> None:
    """Check the variables for proxies and certificates to models. Raises ConfigError."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in (*names, *map(str.lower, names)):
        proxy = env.get(name, "").strip()
        try:
            url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            fits = fits_header(proxy) and bool(url.hostname) and url.port != 0
        except ValueError:
            fits = False
        if proxy and not fits:  # it may hold a password, so the error does not show it
            raise ConfigError(f"{name} is not the address of a proxy: use http://HOST:PORT.")
    bundle = env.get("SSL_CERT_FILE", "")
    try:
        if bundle:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(bundle)
    except OSError as exc:
        reason = "it holds no certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError(
            f"SSL_CERT_FILE={bundle!r} cannot be used: {reason}. Use a file of certificates (PEM)."
        ) from None

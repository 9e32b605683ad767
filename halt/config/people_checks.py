"""Checks of the settings that say how this Halt knows its people (`halt.people.person.Mode`).

Each check raises ConfigError. A setting that has no effect is refused too: one that was meant to
keep people out must not be passed over in silence.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from halt.config.addresses import fits_header, is_base_url, is_host, is_loopback, is_network
from halt.config.settings import Config, ConfigError

_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
#: Headers that clients send themselves, or that a proxy sets for another purpose.
_NOT_FOR_NAMES = re.compile(
    r"accept.*|authorization|connection|content-.*|cookie|forwarded|host|origin|referer|sec-.*|"
    r"te|transfer-encoding|upgrade.*|user-agent|x-forwarded-(for|host|port|prefix|proto)|x-real-ip",
    re.IGNORECASE,
)
_WELL_KNOWN = "/.well-known/openid-configuration"


def check_people(config: Config) -> None:
    """Check that at most one way to know people is set, with all that it needs and no more."""
    ways = {
        "HALT_TOKEN": config.token,
        "HALT_ALLOW_ANONYMOUS": config.allow_anonymous and not config.token,
        "HALT_USERS": config.users,
        "HALT_USER_HEADER": config.user_header,
        "HALT_OIDC_ISSUER": config.oidc_issuer,
    }
    chosen = [name for name, value in ways.items() if value]
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(chosen)} are set, but people can be known in one way at a time: "
            "set one of them. Programs use the API tokens that people make on the page."
        )
    _check_needed(config)
    _check_header(config)
    _check_oidc(config)


def _check_needed(config: Config) -> None:
    """Check that no setting is without the one that it belongs to."""
    header, issuer = "HALT_USER_HEADER", "HALT_OIDC_ISSUER"
    owners = {header: config.user_header, issuer: config.oidc_issuer, "HALT_USERS": config.users}
    for name, value, belongs_to in (
        ("HALT_USER_NAME_HEADER", config.user_name_header, (header,)),
        ("HALT_PROXY_ADDRESSES", config.proxy_addresses, (header,)),
        ("HALT_OIDC_CLIENT_ID", config.oidc_client_id, (issuer,)),
        ("HALT_OIDC_CLIENT_SECRET", config.oidc_client_secret, (issuer,)),
        ("HALT_OIDC_GROUPS", config.oidc_groups, (issuer,)),
        ("HALT_OIDC_DOMAINS", config.oidc_domains, (issuer,)),
        ("HALT_OIDC_SCOPES", config.oidc_scopes, (issuer,)),
        ("HALT_SIGN_IN_HOURS", config.sign_in_hours, ("HALT_USERS", issuer)),
        ("HALT_ADMINS", config.admins, ("HALT_USERS", header, issuer)),
    ):
        if value and not any(owners[owner] for owner in belongs_to):
            needed = " or ".join(belongs_to)
            raise ConfigError(f"{name} is set, but {needed}, which it belongs to, is not.")


def _check_header(config: Config) -> None:
    for name, value in (
        ("HALT_USER_HEADER", config.user_header),
        ("HALT_USER_NAME_HEADER", config.user_name_header),
    ):
        if value and not _HEADER.fullmatch(value):
            raise ConfigError(
                f"{name}={value!r} is not the name of a header: use letters, digits and -."
            )
        if _NOT_FOR_NAMES.fullmatch(value):
            raise ConfigError(
                f"{name}={value!r} has another purpose: use the header in which your proxy names "
                "the person, as in Remote-User."
            )
    if config.user_header and not config.proxy_addresses:
        raise ConfigError(
            "HALT_USER_HEADER is set, but everybody could send that header: set "
            "HALT_PROXY_ADDRESSES to the proxy's address, as in 127.0.0.1, or to unix."
        )
    for address in config.proxy_addresses:
        setting = f"HALT_PROXY_ADDRESSES={','.join(config.proxy_addresses)!r}"
        if address != "unix" and not is_network(address):
            raise ConfigError(
                f"{setting}: {address!r} is no address or network: use as in 127.0.0.1, "
                "10.0.0.0/24 or ::1, or unix."
            )
        if address.endswith("/0"):
            raise ConfigError(
                f"{setting}: {address!r} is every address, so everybody could send "
                "HALT_USER_HEADER: use the proxy's own address."
            )


def _check_oidc(config: Config) -> None:
    issuer = config.oidc_issuer
    if not issuer:
        return
    if not (
        is_base_url(issuer)
        and fits_header(issuer)
        and "@" not in urlsplit(issuer).netloc
        and (issuer.startswith("https://") or is_loopback(urlsplit(issuer).hostname or ""))
        and not issuer.endswith(_WELL_KNOWN)
    ):
        shown = "" if "@" in issuer else f"={issuer!r}"  # it may hold a password
        raise ConfigError(
            f"HALT_OIDC_ISSUER{shown} is not an issuer: use https://HOST[/PATH], as the "
            f"provider's {_WELL_KNOWN} names it."
        )
    if not config.oidc_client_id:
        raise ConfigError("HALT_OIDC_CLIENT_ID is missing: HALT_OIDC_ISSUER needs it.")
    for domain in config.oidc_domains:
        if not is_host(domain) or "." not in domain:
            raise ConfigError(
                f"HALT_OIDC_DOMAINS={','.join(config.oidc_domains)!r}: {domain!r} is not a domain: "
                "use the part of an email address after the @, as in example.org."
            )

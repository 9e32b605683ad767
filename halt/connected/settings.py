"""The settings of connected providers, from their rows and their opened secrets."""

from __future__ import annotations

from dataclasses import dataclass

from halt.config.providers import KINDS, MAX_TOKENS, ProviderSettings
from halt.config.settings import Config
from halt.connected.presets import PRESETS
from halt.connected.vault import SealBroken, Secrets, Vault
from halt.store.connected import KeyRow, ProviderRow, Snapshot

SHARED = ""  # the person of a key that all people use

ENTER_AGAIN = "The saved key of {title} cannot be read any more: enter the key again."
NO_KEY = "{title} has no key: enter one."
OWN_KEY_NEEDED = "{title} needs a key of your own: add one."
NOT_UNDERSTOOD = (
    "What is saved for {title} is not understood by this version of Halt: update Halt, or remove "
    "the provider and connect it again."
)


@dataclass(frozen=True)
class Unusable:
    """Why a connected provider cannot be used."""

    title: str
    models: tuple[str, ...]  # those that are named for it
    sentence: str
    takes_own_keys: bool = False  # people with a key of their own can use it


def connected_settings(
    config: Config, vault: Vault, snapshot: Snapshot
) -> dict[str, ProviderSettings | Unusable]:
    """The settings of each connected provider by its name. Raises ConfigError."""
    return {row.name: _settings_of(config, vault, snapshot, row) for row in snapshot.providers}


def usable_rows(config: Config, vault: Vault, snapshot: Snapshot) -> list[ProviderRow]:
    """The connected providers that somebody can use. Raises ConfigError."""
    made = connected_settings(config, vault, snapshot)
    return [row for row in snapshot.providers if _is_usable(made[row.name])]


def _is_usable(made: ProviderSettings | Unusable) -> bool:
    return isinstance(made, ProviderSettings) or made.takes_own_keys


def _settings_of(
    config: Config, vault: Vault, snapshot: Snapshot, row: ProviderRow
) -> ProviderSettings | Unusable:
    if row.kind not in KINDS:  # of a newer version; no key may be sent in a way that is a guess
        return not_understood(row)
    key = key_of(snapshot, row.name, SHARED)
    if key is not None:
        try:
            return provider_settings(config, row, opened(vault, row, key))
        except SealBroken:
            return Unusable(row.title, row.models, ENTER_AGAIN.format(title=row.title))
    if row.own_keys and config.own_keys:
        return Unusable(
            row.title,
            row.models,
            OWN_KEY_NEEDED.format(title=row.title),
            takes_own_keys=True,
        )
    if row.preset in PRESETS and PRESETS[row.preset].needs_key:
        return Unusable(row.title, row.models, NO_KEY.format(title=row.title))
    return provider_settings(config, row, Secrets())


def not_understood(row: ProviderRow | ProviderSettings) -> Unusable:
    """For a row that this version of Halt cannot use, such as one of a newer version."""
    return Unusable(row.title, row.models, NOT_UNDERSTOOD.format(title=row.title))


def provider_settings(config: Config, row: ProviderRow, secrets: Secrets) -> ProviderSettings:
    """The settings of a provider with these secrets."""
    return ProviderSettings(
        name=row.name,
        kind=row.kind,
        base_url=row.base_url,
        title=row.title,
        key=secrets.key or "none",
        models=row.models,
        api_version=row.api_version,
        max_tokens=row.max_tokens or MAX_TOKENS,
        connect_timeout=config.connect_timeout,
        continues=config.continues,
        headers=secrets.headers,
        allow_link_local=config.allow_link_local,
        is_connected=True,
    )


def opened(vault: Vault, row: ProviderRow, key: KeyRow) -> Secrets:
    """The secrets of a row. Raises SealBroken, also where they are for another address."""
    return vault.unseal(row.name, key.person, key.sealed, address=row.base_url)


def key_of(snapshot: Snapshot, provider: str, person: str) -> KeyRow | None:
    """The row of a key; None if there is none."""
    return next(
        (key for key in snapshot.keys if (key.provider, key.person) == (provider, person)), None
    )

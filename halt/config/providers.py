"""The providers of models: from the environment, or from one TOML file that HALT_CONFIG names.

    default = "local/qwen3"

    [providers.local]
    kind = "openai"
    base_url = "http://127.0.0.1:11434/v1"

    [providers.claude]
    kind = "anthropic"
    key_env = "ANTHROPIC_API_KEY"
    models = ["claude-sonnet-5", "claude-haiku-4-5"]

Keys stand in the environment only; the file names the variable. A wrong value raises ConfigError,
one line that names the file, the key, its value and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from halt.config.model_servers import Server, decoded
from halt.config.settings import (
    AZURE_VERSION,
    CONTINUES,
    OPENAI_URL,
    Config,
    ConfigError,
    fits_header,
    is_address,
    is_openai,
    override,
    variable,
)

Kind = Literal["openai", "azure", "anthropic"]

ANTHROPIC_URL = "https://api.anthropic.com"
MAX_TOKENS = 4096  # of an answer, where a provider must be told and the request does not say

DEMO = "demo"  # the provider that the demo model is
# Belongs in the body of every streamed request to the demo model. Its server looks whether a
# connection is open when it writes to it, or after a second in which it wrote to nobody at all:
# without this, a Stop while it reads a long prompt beside other streams is heard up to 12 s late;
# with it, in 0.6 s.
DEMO_EXTRA = {"return_progress": True}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
KINDS = ("openai", "azure", "anthropic")


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """One provider. `connect_timeout` in seconds."""

    name: str
    kind: Kind
    base_url: str  # Azure: the resource's endpoint; empty: no model is set up
    key: str = field(default="none", repr=False)  # the clients insist on some word
    models: tuple[str, ...] = ()  # empty: the server is asked
    default_model: str = ""
    api_version: str = ""  # Azure
    max_tokens: int = MAX_TOKENS  # Anthropic
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request
    connect_timeout: float = 5.0
    continues: str = "auto"  # how a model goes on with a stopped answer, one of CONTINUES
    is_demo: bool = False  # the demo model, which Halt starts

    @property
    def first_model(self) -> str:
        """The model that answers where a request names none; empty: the first of the server's."""
        return self.default_model or (self.models[0] if self.models else "")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All providers, in order. `default` is a model as a request names it, empty: any."""

    providers: tuple[ProviderSettings, ...]
    default: str = ""

    def alone(self, name: str) -> Setup:
        """The provider of this name by itself, with its share of the default."""
        (one,) = (each for each in self.providers if each.name == name)
        if len(self.providers) == 1:
            return self
        owner, _, model = self.default.partition("/")
        if owner == name:
            return Setup(providers=(one,), default=model)
        if any(owner == each.name for each in self.providers) and one.default_model == self.default:
            one = replace(one, default_model="")
        return Setup(providers=(one,), default=self.default if self.default in one.models else "")


def setup(config: Config, lookup: Callable[[str], str] = variable) -> Setup:
    """The providers that the settings ask for; at least one. Raises ConfigError.

    `lookup` gives the value of an environment variable that the file names.
    """
    if config.config_file:
        return _of_file(config, lookup)
    return _of_environment(config)


# --- the environment ------------------------------------------------------------------------------


def _of_environment(config: Config) -> Setup:
    provider = _provider_of(config)
    found = []
    if not config.has_provider:
        found += [of_server(server, config) for server in decoded(config.discovered).servers]
    if config.has_demo or not (config.has_provider or found):
        found.append(
            provider(
                name=DEMO,
                kind="openai",
                base_url=config.embedded_url,
                key=config.upstream_key,
                default_model=config.known_model,
                extra_body=DEMO_EXTRA,
                is_demo=True,
            )
        )
    if config.api_key or config.base_url:
        found.append(
            provider(
                name="openai",
                kind="openai",
                base_url=config.upstream_url,
                key=config.upstream_key,
                default_model=config.known_model,
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
        name=server.name,
        kind="openai",
        base_url=server.url,
        default_model=server.default,
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
    own_url, own_key = {
        "openai": (config.base_url or OPENAI_URL, config.api_key),
        "azure": (config.azure_endpoint, config.azure_key),
        "anthropic": (config.anthropic_url or ANTHROPIC_URL, config.anthropic_key),
    }[kind]
    url = base_url or own_url
    key = api_key or (own_key if _origin(url) == _origin(own_url) else "")
    deployment = model or config.azure_deployment
    if kind == "azure" and not url:
        raise ConfigError(
            'base_url is missing: provider="azure" needs https://NAME.openai.azure.com.'
        )
    if not key and (kind != "openai" or _origin(url) == _origin(OPENAI_URL)):
        raise ConfigError(f'api_key is missing: provider="{kind}" needs a key for {_server(url)}.')
    if kind == "azure" and not deployment:
        raise ConfigError('model is missing: provider="azure" needs the name of a deployment.')
    chosen = {
        "openai": {"base_url": url, "api_key": key},
        "azure": {
            "azure_endpoint": url,
            "azure_key": key,
            "azure_version": api_version or config.azure_version,
            "azure_deployment": deployment,
        },
        "anthropic": {"anthropic_url": url, "anthropic_key": key},
    }[kind]
    return override(config, **dict.fromkeys(_OF_PROVIDERS, "") | chosen, model=model)


#: The settings that say which providers there are.
_OF_PROVIDERS = (
    "base_url",
    "api_key",
    "azure_endpoint",
    "azure_key",
    "azure_deployment",
    "anthropic_url",
    "anthropic_key",
    "config_file",
)


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


def _server(url: str) -> str:
    """The host of an address and its port, as an address has them."""
    return urlsplit(url).netloc.rpartition("@")[2]


# --- the file -------------------------------------------------------------------------------------


def _of_file(config: Config, lookup: Callable[[str], str]) -> Setup:
    path = config.config_file
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8"
        raise ConfigError(f"HALT_CONFIG={path!r} can't be read: {reason}.") from exc
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: it is no TOML: {exc}.") from exc
    top = _Table(path, "", table, {"providers", "default"})
    found = top.table("providers")
    if not found:
        raise ConfigError(f"{path}: providers is missing: name at least one, as [providers.NAME].")
    providers = tuple(_provider(path, name, value, config, lookup) for name, value in found.items())
    where = "HALT_MODEL" if config.model else f"{path}: default"
    default = config.model or top.text("default")
    if len(providers) == 1:  # its models need no prefix, and may have one
        return Setup(providers=providers, default=default.removeprefix(f"{providers[0].name}/"))
    name, _, model = default.partition("/")
    bare = sum(default in each.models for each in providers) == 1
    if default and not bare and not (model and name in found):
        raise ConfigError(
            f"{where} = {default!r} is not allowed: use NAME/MODEL, "
            f"NAME being one of {', '.join(found)}."
        )
    return Setup(providers=providers, default=default)


_ALLOWED = {
    "openai": {"base_url"},
    "azure": {"endpoint", "api_version"},
    "anthropic": {"base_url", "max_tokens"},
}
_COMMON = {"kind", "key_env", "models", "extra_body", "continue"}


def _provider(
    path: str, name: str, value: Any, config: Config, lookup: Callable[[str], str]
) -> ProviderSettings:
    where = f"providers.{name}"
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: {where} is not allowed: use up to 32 of a-z, 0-9, _ and - as a name."
        )
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} = {value!r} is not allowed: use [providers.{name}].")
    kind = value.get("kind")
    if kind not in KINDS:
        said = "is missing" if kind is None else f"= {kind!r} is not allowed"
        choice = ", ".join(f'"{each}"' for each in KINDS)
        raise ConfigError(f"{path}: {where}.kind {said}: use one of {choice}.")
    table = _Table(path, where, value, _COMMON | _ALLOWED[kind])
    models = table.texts("models")
    if kind == "azure":
        base_url = table.address("endpoint", "")
        if not models:
            raise ConfigError(f"{path}: {where}.models is missing: list your deployments' names.")
    else:
        base_url = table.address("base_url", ANTHROPIC_URL if kind == "anthropic" else OPENAI_URL)
    on_openai = is_openai(base_url)
    return ProviderSettings(
        name=name,
        kind=kind,
        base_url=base_url,
        key=table.key(lookup, needed=kind != "openai" or on_openai),
        models=models,
        api_version=table.text("api_version") or (AZURE_VERSION if kind == "azure" else ""),
        max_tokens=table.number("max_tokens", MAX_TOKENS, 1, 10_000_000),
        extra_body=table.table("extra_body"),
        connect_timeout=config.connect_timeout,
        continues=table.choice("continue", config.continues, CONTINUES),
    )


class _Table:
    """A table of the file, whose values are taken by type. Every method raises ConfigError."""

    def __init__(self, path: str, where: str, table: dict[str, Any], allowed: set[str]) -> None:
        self._path = path
        self._prefix = f"{where}." if where else ""
        self._table = table
        for key in table:
            if key in {"key", "api_key"} and where:
                raise ConfigError(
                    f"{path}: {where}.{key}: a key does not belong into a file; put it into an "
                    f'environment variable and name that one: key_env = "NAME".'
                )
            if key not in allowed:
                raise ConfigError(
                    f"{path}: {self._prefix}{key} is not known here: "
                    f"use {', '.join(sorted(allowed))}."
                )

    def _wrong(self, key: str, use: str) -> ConfigError:
        value = self._table.get(key)
        said = "is missing" if value is None else f"= {value!r} is not allowed"
        return ConfigError(f"{self._path}: {self._prefix}{key} {said}: use {use}.")

    def table(self, key: str) -> dict[str, Any]:
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "a table")
        return value

    def text(self, key: str) -> str:
        value = self._table.get(key, "")
        if not isinstance(value, str) or (key in self._table and not value.strip()):
            raise self._wrong(key, "text in quotes")
        return value.strip()

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value: Any = self._table.get(key, default)
        if value not in allowed:
            raise self._wrong(key, "one of " + ", ".join(f'"{each}"' for each in allowed))
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._table.get(key, [])
        fits = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
        if not fits or len(set(value)) != len(value) or (key in self._table and not value):
            raise self._wrong(key, 'a list of different names, as in ["one", "two"]')
        return tuple(value)

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self._table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def address(self, key: str, default: str) -> str:
        value = self._table.get(key, default)
        if not isinstance(value, str) or not is_address(value):
            raise self._wrong(key, "http(s)://HOST[:PORT][/PATH], without ? or #")
        return value

    def key(self, lookup: Callable[[str], str], *, needed: bool) -> str:
        """The key that the variable `key_env` holds."""
        name = self.text("key_env")
        if not name:
            if needed:
                raise self._wrong("key_env", "the name of an environment variable with the key")
            return "none"
        value = lookup(name)
        if not value:
            raise ConfigError(
                f"{self._path}: {self._prefix}key_env = {name!r}: that variable is not set."
            )
        if not fits_header(value):
            raise ConfigError(f"{name} holds a space or a character that no header can carry.")
        return value

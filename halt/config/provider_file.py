"""Reads the TOML file of providers that HALT_CONFIG names. An example:

    default = "local/qwen3"

    [providers.local]
    kind = "openai"
    base_url = "http://127.0.0.1:11434/v1"

    [providers.claude]
    kind = "anthropic"
    key_env = "ANTHROPIC_API_KEY"
    models = ["claude-sonnet-5", "claude-haiku-4-5"]

    [prompts]
    "Code reviewer" = "You review code. Name the line of each fault."

`prompts` are system prompts that each user of the page can choose by name. API keys are in
environment variables alone, which the file names. A wrong value raises ConfigError: one line with
the file, the TOML key, its value and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from halt.config.addresses import fits_header, is_base_url, is_openai_url
from halt.config.model_servers import title_of_name
from halt.config.providers import KINDS, MAX_TOKENS, ProviderSettings, Setup
from halt.config.settings import (
    ANTHROPIC_URL,
    AZURE_VERSION,
    CONTINUES,
    OPENAI_URL,
    SAVED_NAME_MAX,
    SYSTEM_PROMPT_MAX,
    Config,
    ConfigError,
)

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_TEXT = "text in quotes"
_ADDRESS = "http(s)://HOST[:PORT][/PATH], without ? or #"
#: TOML key -> the allowed values, as the text of an error.
_ALLOWED = {
    "providers": "a table",
    "prompts": "a table",
    "default": _TEXT,
    "kind": "one of " + ", ".join(f'"{kind}"' for kind in KINDS),
    "base_url": _ADDRESS,
    "endpoint": _ADDRESS,
    "api_version": _TEXT,
    "key_env": _TEXT,
    "models": 'a list of different names, as in ["one", "two"]',
    "max_tokens": "a whole number from 1 to 10,000,000",
    "extra_body": "a table",
    "continue": "one of " + ", ".join(f'"{value}"' for value in CONTINUES),
}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    providers: dict[str, Any] = {}
    prompts: dict[str, Any] = {}
    default: Text = ""


class _Provider(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """The keys that tables of all kinds have. `__post_init__` raises ValueError with the key."""

    base_url: str
    key_env: Text = ""
    models: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)] = ()
    extra_body: dict[str, Any] = {}
    continues: Literal["auto", "prefix", "instruction"] | None = msgspec.field(
        name="continue", default=None
    )

    def __post_init__(self) -> None:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models")
        if not is_base_url(self.base_url):
            raise ValueError("endpoint" if isinstance(self, _Azure) else "base_url")


class _OpenAI(_Provider, tag="openai"):
    base_url: str = OPENAI_URL


class _Azure(_Provider, tag="azure"):
    base_url: str = msgspec.field(name="endpoint")
    api_version: Text = AZURE_VERSION


class _Anthropic(_Provider, tag="anthropic"):
    base_url: str = ANTHROPIC_URL
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = MAX_TOKENS


_TABLES = {"openai": _OpenAI, "azure": _Azure, "anthropic": _Anthropic}
_Table = _OpenAI | _Azure | _Anthropic
# Built at import, by one thread: msgspec prepares each type at its first use.
_built = [msgspec.json.Decoder(kind) for kind in (_File, _Provider, _Table)]


def read_file(config: Config, lookup: Callable[[str], str]) -> Setup:
    """The file's providers; `lookup` returns a variable's value. Raises ConfigError."""
    path = config.config_file
    file = _file(path)
    _prompts(path, file.prompts)
    tables = file.providers
    if not tables:
        raise ConfigError(f"{path}: providers is missing: name at least one, as [providers.NAME].")
    providers = tuple(
        _provider(path, name, value, config, lookup) for name, value in tables.items()
    )
    setting = "HALT_MODEL" if config.model else f"{path}: default"
    default = config.model or file.default.strip()
    if len(providers) == 1:  # its models need no prefix, but may have one
        return Setup(providers=providers, default=default.removeprefix(f"{providers[0].name}/"))
    name, _, model = default.partition("/")
    is_unique = sum(default in provider.models for provider in providers) == 1
    if default and not is_unique and not (model and name in tables):
        raise ConfigError(
            f"{setting} = {default!r} is not allowed: use NAME/MODEL, "
            f"NAME being one of {', '.join(tables)}."
        )
    return Setup(providers=providers, default=default)


def read_prompts(config: Config) -> dict[str, str]:
    """The file's system prompts by name; none without a file. Raises ConfigError."""
    path = config.config_file
    return _prompts(path, _file(path).prompts) if path else {}


def _file(path: str) -> _File:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(f"HALT_CONFIG={path!r} can't be read: {reason}.") from exc
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}.") from exc
    file: _File = _checked(_File, table, f"{path}: ")
    return file


def _prompts(path: str, table: dict[str, Any]) -> dict[str, str]:
    """The checked prompts, without white space around them."""
    prompts = {}
    for name, value in table.items():
        at = f"{path}: prompts.{name[:SAVED_NAME_MAX]!r}"
        if not 0 < len(name) <= SAVED_NAME_MAX or name != " ".join(name.split()):
            raise ConfigError(
                f"{at} is not allowed: use 1 to {SAVED_NAME_MAX} characters on one line as a name."
            )
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{at} = {value!r} is not allowed: use {_TEXT}.")
        if len(value) > SYSTEM_PROMPT_MAX:
            raise ConfigError(f"{at} is longer than {SYSTEM_PROMPT_MAX:,} characters.")
        prompts[name] = value.strip()
    return prompts


def _provider(
    path: str, name: str, value: Any, config: Config, lookup: Callable[[str], str]
) -> ProviderSettings:
    at = f"{path}: providers.{name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{at} is not allowed: use up to 32 of a-z, 0-9, _ and - as a name.")
    if not isinstance(value, dict):
        raise ConfigError(f"{at} = {value!r} is not allowed: use [providers.{name}].")
    table: _Provider = _checked(_Table, value, f"{at}.")
    if isinstance(table, _Azure) and not table.models:
        raise ConfigError(f"{at}.models is missing: list your deployments' names.")
    settings: dict[str, Any] = {
        field: text.strip() if isinstance(text, str) else text
        for field, text in msgspec.structs.asdict(table).items()
    }
    settings["continues"] = table.continues or config.continues
    variable = settings.pop("key_env")
    key = lookup(variable) if variable else "none"
    if not variable and (not isinstance(table, _OpenAI) or is_openai_url(table.base_url)):
        raise ConfigError(
            f"{at}.key_env is missing: use the name of an environment variable with the key."
        )
    if not key:
        raise ConfigError(f"{at}.key_env = {variable!r}: that variable is not set.")
    if not fits_header(key):
        raise ConfigError(
            f"{variable} holds a space or a character that no header can carry: use visible ASCII."
        )
    return ProviderSettings(
        name=name,
        kind=value["kind"],
        title=title_of_name(name),
        key=key,
        connect_timeout=config.connect_timeout,
        allow_link_local=config.allow_link_local,
        **settings,
    )


def _checked(kind: Any, table: dict[str, Any], at: str) -> Any:
    """The table as a struct of this kind. Raises ConfigError that begins with `at` and the key."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as exc:
        raise ConfigError(at + _fault(kind, table, str(exc))) from None


def _fault(kind: Any, table: dict[str, Any], error: str) -> str:
    """The key, its wrong value and the allowed ones, from msgspec's error about the table."""
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", error, re.DOTALL):
        if kind is not _File and unknown[1] in {"key", "api_key"}:
            return (
                f"{unknown[1]}: a file must not contain a key; put it into an environment "
                'variable and name that: key_env = "NAME".'
            )
        struct = _File if kind is _File else _TABLES[table["kind"]]
        known_keys = sorted(struct.__struct_encode_fields__ + (() if kind is _File else ("kind",)))
        return f"{unknown[1]} is not known here: use {', '.join(known_keys)}."
    place = error.rpartition(" - at `$.")[2].rpartition("missing required field `")[2]
    match = re.match(r"\w+", place)
    key = match[0] if match else error
    value = table.get(key)
    wrong = "is missing" if value is None else f"= {value!r} is not allowed"
    return f"{key} {wrong}: use {_ALLOWED[key]}."

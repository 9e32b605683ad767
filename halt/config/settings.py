"""Halt's settings: each is defined once, in `Config`, with default, bounds and description."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from halt.config.addresses import fits_header, is_base_url, is_loopback, is_openai_url

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
OPENAI_MODEL = "gpt-5-mini"  # OpenAI's current small chat model
SHIPPED_TOOLS = ("calculator", "current_time")  # those of `halt.chat.builtin_tools`
CONTINUES = ("auto", "prefix", "instruction")
TITLES = ("model", "words")
AZURE_VERSION = "2024-10-21"  # of Azure's API: the newest stable one
DISCOVER_MAX = 16  # addresses of HALT_DISCOVER; each is probed by a thread of its own
DEMO_SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly, in plain English."
SYSTEM_PROMPT_MAX = 100_000  # characters
SAVED_NAME_MAX = 60  # characters of the name of a prompt or a preset
#: Threads beyond HALT_MAX_STREAMS, for requests for streams that are refused at once.
REFUSING_THREADS = 32

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}


class ConfigError(Exception):
    """A setting is wrong. The message is one line that a program can print before it exits."""


def _setting(
    env: str,
    doc: str,
    default: Any = "",
    *,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
) -> Any:
    return field(
        default=default,
        repr=not secret,
        metadata={"env": env, "doc": doc, "low": low, "high": high, "secret": secret},
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Halt's settings. Times are in seconds; sizes in bytes or characters, as the name says."""

    host: str = _setting("HOST", "Address to listen on", "127.0.0.1")
    port: int = _setting("PORT", "Port to listen on", 8000, low=0, high=65535)
    token: str = _setting(
        "HALT_TOKEN", "Access token for the page and the API (at least 8 characters)", secret=True
    )
    hosts: str = _setting(
        "HALT_HOSTS",
        "Host names, separated by commas, that requests to a Halt without a token may use "
        "in addition to those of loopback",
    )
    cors_origins: tuple[str, ...] = _setting(
        "HALT_CORS_ORIGINS",
        "Origins, separated by commas, whose pages may use the API: `https://HOST[:PORT]`, "
        "or `*` for every page",
        (),
    )
    allow_anonymous: bool = _setting(
        "HALT_ALLOW_ANONYMOUS", "Allow addresses other than loopback without a token", False
    )
    users: bool = _setting(
        "HALT_USERS", "Accounts with names and passwords; `halt-chat user add` makes them", False
    )
    user_header: str = _setting(
        "HALT_USER_HEADER",
        "Header in which a proxy names the person, such as `Remote-User`; needs "
        "HALT_PROXY_ADDRESSES",
    )
    user_name_header: str = _setting(
        "HALT_USER_NAME_HEADER",
        "Header in which that proxy gives the person's name for display, such as `Remote-Name`",
    )
    proxy_addresses: tuple[str, ...] = _setting(
        "HALT_PROXY_ADDRESSES",
        "Addresses and networks, separated by commas, whose HALT_USER_HEADER is believed; `unix`: "
        "connections over a Unix socket",
        (),
    )
    oidc_issuer: str = _setting(
        "HALT_OIDC_ISSUER", "Sign-in by OpenID Connect: the provider's issuer, an https:// address"
    )
    oidc_client_id: str = _setting("HALT_OIDC_CLIENT_ID", "Halt's client ID at that provider")
    oidc_client_secret: str = _setting(
        "HALT_OIDC_CLIENT_SECRET", "Halt's client secret there", secret=True
    )
    oidc_groups: tuple[str, ...] = _setting(
        "HALT_OIDC_GROUPS",
        "Groups, separated by commas, whose members may sign in; unset: everybody whom the "
        "provider lets in",
        (),
    )
    oidc_domains: tuple[str, ...] = _setting(
        "HALT_OIDC_DOMAINS",
        "Domains, separated by commas, of verified email addresses that may sign in",
        (),
    )
    oidc_scopes: tuple[str, ...] = _setting(
        "HALT_OIDC_SCOPES",
        "Scopes, separated by commas, requested besides `openid`; unset: `profile` and `email`",
        (),
    )
    admins: tuple[str, ...] = _setting(
        "HALT_ADMINS",
        "Administrators, separated by commas: names of accounts, values of HALT_USER_HEADER, or "
        "OpenID Connect's subjects; unset: the first account",
        (),
    )
    sign_in_hours: float = _setting(
        "HALT_SIGN_IN_HOURS",
        "Hours after which a browser must sign in again; 0: 720 with accounts, 24 with OpenID "
        "Connect",
        0.0,
        low=0,
        high=8760,
    )
    secret_key: str = _setting(
        "HALT_SECRET_KEY",
        "Key that signs session cookies and encrypts the keys of providers (at least 16 "
        "characters); unset: created at the first start and kept in the data folder",
        secret=True,
    )
    secret_key_old: str = _setting(
        "HALT_SECRET_KEY_OLD",
        "The former HALT_SECRET_KEY, still accepted after a change (at least 16 characters)",
        secret=True,
    )
    workers: int = _setting(
        "WEB_CONCURRENCY", "Worker processes that serve the same streams", 1, low=1, high=64
    )

    data: str = _setting(
        "HALT_DATA",
        "Folder for conversations and keys; unset: `halt` in the platform's folder for a user's "
        "data",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "PostgreSQL for the conversations instead of SQLite: `postgresql://USER:PASSWORD@HOST/NAME`",
        secret=True,
    )
    events_days: float = _setting(
        "HALT_EVENTS_DAYS",
        "Days during which a finished stream can be replayed event by event; its text is kept",
        7.0,
        low=0,
        high=3650,
    )

    api_key: str = _setting("OPENAI_API_KEY", "Key for the model's server", secret=True)
    base_url: str = _setting(
        "OPENAI_BASE_URL", "Base URL of any OpenAI-compatible server, including `/v1`"
    )
    model: str = _setting(
        "HALT_MODEL", f"Model; unset: `{OPENAI_MODEL}` on OpenAI, else the server's first"
    )
    anthropic_key: str = _setting("ANTHROPIC_API_KEY", "Key for Anthropic's API", secret=True)
    anthropic_url: str = _setting(
        "ANTHROPIC_BASE_URL", "Address of a server that speaks Anthropic's Messages API"
    )
    azure_key: str = _setting("AZURE_OPENAI_API_KEY", "Key for Azure OpenAI", secret=True)
    azure_endpoint: str = _setting(
        "AZURE_OPENAI_ENDPOINT", "Azure OpenAI: `https://RESOURCE.openai.azure.com`"
    )
    azure_version: str = _setting(
        "OPENAI_API_VERSION", "Azure OpenAI: version of the API", AZURE_VERSION
    )
    azure_deployment: str = _setting(
        "AZURE_OPENAI_DEPLOYMENT", "Azure OpenAI: the deployment that answers"
    )
    config_file: str = _setting(
        "HALT_CONFIG", "TOML file with several providers; replaces the variables above"
    )
    discover: str = _setting(
        "HALT_DISCOVER",
        "Discover model servers on this machine if no provider is set; 0: off; addresses, "
        "separated by commas: probe these too",
        "1",
    )
    allow_link_local: bool = _setting(
        "HALT_ALLOW_LINK_LOCAL",
        "Connect to link-local addresses, and to those where clouds give credentials to programs",
        False,
    )
    own_keys: bool = _setting(
        "HALT_OWN_KEYS",
        "Each person may save a key of their own for the providers where an administrator allows "
        "it",
        False,
    )
    system_prompt: str = _setting("HALT_SYSTEM_PROMPT", "System prompt of the page's conversations")

    connect_timeout: float = _setting(
        "HALT_CONNECT_TIMEOUT",
        "Seconds to connect to the model's server, including TLS",
        5.0,
        low=0.05,
        high=600,
    )
    first_byte_timeout: float = _setting(
        "HALT_FIRST_BYTE_TIMEOUT",
        "Seconds from the request to the first token",
        900.0,
        low=0.05,
        high=86400,
    )
    gap_timeout: float = _setting(
        "HALT_GAP_TIMEOUT", "Seconds between two pieces of an answer", 300.0, low=0.05, high=86400
    )
    run_timeout: float = _setting(
        "HALT_RUN_TIMEOUT", "Seconds for one whole answer", 1800.0, low=0.05, high=86400
    )
    continues: str = _setting(
        "HALT_CONTINUE",
        "How Halt requests the continuation of a stopped answer: `prefix`, `instruction`, "
        "or `auto`: what its server supports",
        "auto",
    )
    titles: str = _setting(
        "HALT_TITLES",
        "Titles of conversations: `model`: generated in the background; `words`: first words",
        "model",
    )
    exact_usage: bool = _setting(
        "HALT_EXACT_USAGE",
        "After a Stop on the page, read the model's answer to its end for its token count; all of "
        "it is billed",
        False,
    )
    orphan_grace: float = _setting(
        "HALT_ORPHAN_GRACE",
        "Seconds that a generation continues without a viewer",
        60.0,
        low=0,
        high=86400,
    )
    retries: int = _setting(
        "HALT_RETRIES", "Retries of a request that fails before its first token", 2, low=0, high=10
    )

    relay_writes: bool = _setting(
        "HALT_RELAY_WRITES",
        "One thread writes to all clients; 0: each stream has a thread that writes; costs more",
        True,
    )
    max_streams: int = _setting(
        "HALT_MAX_STREAMS", "Streams open at once, in all workers together", 500, low=1, high=2000
    )
    max_messages: int = _setting(
        "HALT_MAX_MESSAGES", "Messages in one request", 10_000, low=1, high=100_000
    )
    max_prompt_chars: int = _setting(
        "HALT_MAX_PROMPT_CHARS",
        "Characters of all messages of one request",
        400_000,
        low=1,
        high=50_000_000,
    )
    max_answer_chars: int = _setting(
        "HALT_MAX_ANSWER_CHARS", "Characters of one answer", 2_000_000, low=1, high=50_000_000
    )
    max_body_bytes: int = _setting(
        "HALT_MAX_BODY_BYTES", "Bytes of one request's body", 4_194_304, low=1024, high=268_435_456
    )
    max_import_bytes: int = _setting(
        "HALT_MAX_IMPORT_BYTES",
        "Bytes of an imported file of conversations",
        67_108_864,
        low=1024,
        high=1_073_741_824,
    )
    max_file_bytes: int = _setting(
        "HALT_MAX_FILE_BYTES", "Bytes of one file", 20_000_000, low=1024, high=1_000_000_000
    )
    max_files: int = _setting("HALT_MAX_FILES", "Files of one message", 10, low=0, high=100)
    max_files_bytes: int = _setting(
        "HALT_MAX_FILES_BYTES",
        "Bytes of the files of one message, as they are kept, and of those in one request to a "
        "model",
        50_000_000,
        low=1024,
        high=1_000_000_000,
    )
    max_file_chars: int = _setting(
        "HALT_MAX_FILE_CHARS",
        "Characters of one file's text that a model gets",
        120_000,
        low=100,
        high=10_000_000,
    )
    max_person_bytes: int = _setting(
        "HALT_MAX_PERSON_BYTES",
        "Bytes of all files of one person",
        2_000_000_000,
        low=1024,
        high=1_000_000_000_000,
    )
    log_seconds: float = _setting(
        "HALT_LOG_SECONDS",
        "Seconds that a finished stream stays in memory; later it is read from the store",
        600.0,
        low=0,
        high=86400,
    )
    log_bytes: int = _setting(
        "HALT_LOG_BYTES",
        "Memory of one stream's event log, in bytes; beyond it the oldest events are dropped",
        16_777_216,
        low=1024,
        high=1_073_741_824,
    )
    kept_bytes: int = _setting(
        "HALT_KEPT_BYTES",
        "Memory of the event logs of all finished streams of a worker, in bytes. Beyond it the "
        "oldest are dropped, saved or not: an unsaved one ends after its last saved event",
        134_217_728,
        low=1024,
        high=17_179_869_184,
    )
    tools: tuple[str, ...] = _setting(
        "HALT_TOOLS",
        f"Tools offered to every model, separated by commas: `{'`, `'.join(SHIPPED_TOOLS)}`",
        (),
    )
    tool_rounds: int = _setting(
        "HALT_TOOL_ROUNDS", "Rounds of tool calls in one answer", 8, low=0, high=100
    )
    heartbeat: float = _setting(
        "HALT_HEARTBEAT",
        "Seconds between two comments that a silent stream sends",
        10.0,
        low=0.05,
        high=300,
    )
    rate_session: str = _setting(
        "HALT_RATE_SESSION",
        "Rate at which one browser session may start streams, such as `30/minute`; `;` separates "
        "several",
    )
    rate_address: str = _setting(
        "HALT_RATE_ADDRESS", "Rate at which one client address may start streams, in the same form"
    )
    trusted_proxies: int = _setting(
        "HALT_TRUSTED_PROXIES",
        "Number N of proxies in front of Halt: the client's address is the Nth value from the end "
        "of `X-Forwarded-For`, the scheme the last value of `X-Forwarded-Proto`",
        0,
        low=0,
        high=10,
    )
    graceful_timeout: int = _setting(
        "HALT_GRACEFUL_TIMEOUT", "Seconds for open requests at a shutdown", 10, low=1, high=3600
    )

    # Set by Halt's own gunicorn configuration, beside a HALT_SECRET_KEY that it read from the file.
    secret_key_in_folder: bool = _setting(
        "HALT_SECRET_KEY_IN_FOLDER",
        "Internal: HALT_SECRET_KEY is the key of the data folder",
        False,
    )
    # Set by Halt's own gunicorn configuration: the discovered model servers, or the embedded model.
    discovered: str = _setting("HALT_DISCOVERED", "Internal: the result of the discovery, JSON")
    embedded_url: str = _setting("HALT_EMBEDDED_URL", "Internal: base URL of the embedded model")
    embedded_key: str = _setting("HALT_EMBEDDED_KEY", "Internal: its key", secret=True)
    embedded_model: str = _setting("HALT_EMBEDDED_MODEL", "Internal: its model")
    embedded_fault: str = _setting("HALT_EMBEDDED_FAULT", "Internal: why it is unavailable")
    # Set by `halt-chat`, once for each start.
    open_page: bool = _setting("HALT_OPEN_PAGE", "Internal: open the page in a browser", False)

    @property
    def data_folder(self) -> Path:
        """The data folder, absolute; it may not exist yet."""
        return Path(self.data).expanduser().absolute() if self.data else user_data_folder()

    @property
    def has_provider(self) -> bool:
        """Whether a key, a model server's address or a providers' file is set."""
        return any(
            (self.api_key, self.base_url, self.azure_endpoint, self.anthropic_key, self.config_file)
        )

    @property
    def unused_provider(self) -> str:
        """Why variables of a provider are unused where none is set; "" if there are none."""
        if self.has_provider:
            return ""
        if self.azure_key:
            return (
                "AZURE_OPENAI_API_KEY is not used: set AZURE_OPENAI_ENDPOINT and "
                "AZURE_OPENAI_DEPLOYMENT too"
            )
        if self.anthropic_url:
            return "ANTHROPIC_BASE_URL is not used: set ANTHROPIC_API_KEY too"
        return ""

    @property
    def has_demo(self) -> bool:
        """Whether the demo model runs. It answers if no other provider is set."""
        return not self.has_provider and bool(self.embedded_url)

    @property
    def discovers(self) -> bool:
        """Whether model servers are discovered."""
        return not self.has_provider and self.discover.lower() not in FALSE

    @property
    def discover_addresses(self) -> tuple[str, ...]:
        """The base URLs that HALT_DISCOVER names, including `/v1`. Raises ConfigError."""
        if self.discover.lower() in TRUE | FALSE:
            return ()
        addresses = [address for part in self.discover.split(",") if (address := part.strip())]
        return tuple(dict.fromkeys(_base_url(self.discover, address) for address in addresses))

    @property
    def upstream_url(self) -> str:
        """The base URL of requests by the settings alone; empty: that of a discovered server."""
        if not self.has_provider:
            return self.embedded_url
        return self.base_url or OPENAI_URL

    @property
    def upstream_key(self) -> str:
        """The key sent there. Many local servers need none, but client libraries require one."""
        return (self.api_key if self.has_provider else self.embedded_key) or "none"

    @property
    def known_model(self) -> str:
        """The default model; empty: the first in the server's list."""
        if not self.has_provider:
            return self.embedded_model
        return self.model or (OPENAI_MODEL if is_openai_url(self.upstream_url) else "")

    def default_system_prompt(self, model: str) -> str:
        """The system prompt of the page's conversations with this model.

        The demo model has a default one, since it does not keep to the subject without one.
        """
        is_demo = self.has_demo and model == self.embedded_model
        return self.system_prompt or (DEMO_SYSTEM_PROMPT if is_demo else "")

    @cached_property
    def trusted_hosts(self) -> list[str] | None:
        """The host names that requests may use; None: any.

        A foreign web page can make its own host name resolve to this machine and then send requests
        to a server without a token (DNS rebinding). The browser still sends that host name, so it
        can be refused.
        """
        if self.token or self.users or self.oidc_issuer:
            return None  # such a page has no login
        if not is_loopback(self.host) and not (self.user_header and self.named_hosts):
            return None
        return ["localhost", "127.0.0.1", "::1", self.host.strip("[]"), *self.named_hosts]

    @property
    def named_hosts(self) -> list[str]:
        """The hosts of HALT_HOSTS, as `urlsplit` returns them: lower case, without brackets."""
        return [
            name.strip("[]").lower() for part in self.hosts.split(",") if (name := part.strip())
        ]

    @property
    def threads(self) -> int:
        """gunicorn's threads for streams: HALT_MAX_STREAMS, and some for requests that are refused.

        Other requests have their own threads, see `halt.server.thread_pools`.
        """
        return self.max_streams + REFUSING_THREADS


def _base_url(setting: str, text: str) -> str:
    """The base URL of one address in HALT_DISCOVER. Raises ConfigError."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_whole = is_base_url(url) and fits_header(text) and ("://" in text or bool(parts.port))
    except ValueError:
        is_whole = False
    if not is_whole or "@" in parts.netloc or parts.path.rstrip("/") not in {"", "/v1"}:
        value_text = "" if "@" in setting else f"={setting!r}"  # it may hold a password
        raise ConfigError(
            f"HALT_DISCOVER{value_text} is not allowed: use 1, 0, or addresses of model servers "
            "separated by commas, as in 127.0.0.1:11434 or http://models.example:8080/v1."
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    is_usual = parts.port in {None, {"http": 80, "https": 443}[parts.scheme]}
    return f"{parts.scheme}://{host}{'' if is_usual else f':{parts.port}'}/v1"


def user_data_folder() -> Path:
    """Halt's folder in the platform's place for a user's data; it may not exist yet."""
    return platformdirs.user_data_path("halt", appauthor=False)

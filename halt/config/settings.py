"""All of Halt's settings: each stands once in `Config`, with its default, bounds and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from halt.config.addresses import fits_header, is_address, is_loopback, is_openai

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
OPENAI_MODEL = "gpt-5-mini"  # OpenAI's current small chat model
SHIPPED_TOOLS = ("calculator", "current_time")  # what `halt.chat.builtin_tools` has
CONTINUES = ("auto", "prefix", "instruction")
TITLES = ("model", "words")
AZURE_VERSION = "2024-10-21"  # of Azure's API, the newest that is no preview
DISCOVER_MAX = 16  # addresses of HALT_DISCOVER: each gets a thread while it is asked
DEMO_SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly, in plain English."
#: Threads for requests of streams beyond the places that there are, each refused at once.
REFUSING_THREADS = 32

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}


class ConfigError(Exception):
    """A setting is wrong. The message is one line, fit to be the last thing a program prints."""


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
    """All of Halt's settings. Times in seconds, sizes in bytes or characters as named."""

    host: str = _setting("HOST", "Address to listen on", "127.0.0.1")
    port: int = _setting("PORT", "Port to listen on", 8000, low=0, high=65535)
    token: str = _setting(
        "HALT_TOKEN", "Access token that page and API ask for (at least 8 characters)", secret=True
    )
    hosts: str = _setting(
        "HALT_HOSTS",
        "Names, with commas between, under which a Halt without a token may be reached "
        "beside those of loopback",
    )
    cors_origins: tuple[str, ...] = _setting(
        "HALT_CORS_ORIGINS",
        "Origins, with commas between, whose pages may use the API: `https://HOST[:PORT]`, "
        "or `*` for every page there is",
        (),
    )
    allow_anonymous: bool = _setting(
        "HALT_ALLOW_ANONYMOUS", "Listen on other addresses than loopback without a token", False
    )
    secret_key: str = _setting(
        "HALT_SECRET_KEY",
        "Signs session cookies (at least 16 characters); unset: one that is made at the first "
        "start and kept in the data folder",
        secret=True,
    )
    workers: int = _setting(
        "WEB_CONCURRENCY", "Worker processes that serve the same streams", 1, low=1, high=64
    )

    data: str = _setting(
        "HALT_DATA",
        "Folder of everything that is kept: conversations, keys; unset: `halt` in the folder "
        "where the platform keeps a user's data",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "PostgreSQL for the conversations instead of SQLite: `postgresql://USER:PASSWORD@HOST/NAME`",
        secret=True,
    )
    events_days: float = _setting(
        "HALT_EVENTS_DAYS",
        "Days that a finished stream can be replayed event by event; its text stays",
        7.0,
        low=0,
        high=3650,
    )

    api_key: str = _setting("OPENAI_API_KEY", "Key for the model's server", secret=True)
    base_url: str = _setting(
        "OPENAI_BASE_URL", "Address of any OpenAI-compatible server, up to and with `/v1`"
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
        "HALT_CONFIG", "TOML file with several providers, instead of the variables above"
    )
    discover: str = _setting(
        "HALT_DISCOVER",
        "Look for model servers on this machine where no provider is set; 0: do not; addresses, "
        "with commas between: look there too",
        "1",
    )
    system_prompt: str = _setting(
        "HALT_SYSTEM_PROMPT", "System prompt of conversations on the page"
    )

    connect_timeout: float = _setting(
        "HALT_CONNECT_TIMEOUT",
        "To connect to the model's server, TLS included",
        5.0,
        low=0.05,
        high=600,
    )
    first_byte_timeout: float = _setting(
        "HALT_FIRST_BYTE_TIMEOUT",
        "From the request to the first token",
        900.0,
        low=0.05,
        high=86400,
    )
    gap_timeout: float = _setting(
        "HALT_GAP_TIMEOUT", "Between two pieces of an answer", 300.0, low=0.05, high=86400
    )
    run_timeout: float = _setting(
        "HALT_RUN_TIMEOUT", "For one answer as a whole", 1800.0, low=0.05, high=86400
    )
    continues: str = _setting(
        "HALT_CONTINUE",
        "How a model is asked to go on with a stopped answer: `prefix`, `instruction`, "
        "or `auto`: as its server can",
        "auto",
    )
    titles: str = _setting(
        "HALT_TITLES",
        "Titles of conversations: made by the `model` in the background, or the first `words`",
        "model",
    )
    exact_usage: bool = _setting(
        "HALT_EXACT_USAGE",
        "After a Stop the model writes on unseen, and bills, for the sake of its own token count",
        False,
    )
    orphan_grace: float = _setting(
        "HALT_ORPHAN_GRACE", "A run goes on this long with nobody watching", 60.0, low=0, high=86400
    )
    retries: int = _setting(
        "HALT_RETRIES", "Retries of a run that failed before its first token", 2, low=0, high=10
    )

    relay_writes: bool = _setting(
        "HALT_RELAY_WRITES",
        "One thread writes to all clients; 0: each stream's own thread does, which costs more",
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
        "Bytes of a file of conversations that is imported",
        67_108_864,
        low=1024,
        high=1_073_741_824,
    )
    log_seconds: float = _setting(
        "HALT_LOG_SECONDS",
        "A finished stream is kept in memory this long; then it is read from the store",
        600.0,
        low=0,
        high=86400,
    )
    log_bytes: int = _setting(
        "HALT_LOG_BYTES",
        "Memory of one stream's log; older events are let go beyond it",
        16_777_216,
        low=1024,
        high=1_073_741_824,
    )
    kept_bytes: int = _setting(
        "HALT_KEPT_BYTES",
        "Memory of all finished logs; the oldest go first",
        134_217_728,
        low=1024,
        high=17_179_869_184,
    )
    tools: tuple[str, ...] = _setting(
        "HALT_TOOLS",
        f"Tools that every model is offered, with commas between: `{'`, `'.join(SHIPPED_TOOLS)}`",
        (),
    )
    tool_rounds: int = _setting(
        "HALT_TOOL_ROUNDS", "Times that a model may call tools in one answer", 8, low=0, high=100
    )
    heartbeat: float = _setting(
        "HALT_HEARTBEAT", "A silent stream sends a comment this often", 10.0, low=0.05, high=300
    )
    rate_session: str = _setting(
        "HALT_RATE_SESSION",
        "Streams that one browser session may start, such as `30/minute`; several with `;` between",
    )
    rate_address: str = _setting(
        "HALT_RATE_ADDRESS", "Streams that may be started from one address, in the same words"
    )
    trusted_proxies: int = _setting(
        "HALT_TRUSTED_PROXIES",
        "Proxies in front of Halt: so many values of `X-Forwarded-For` and the last of "
        "`X-Forwarded-Proto` count",
        0,
        low=0,
        high=10,
    )
    graceful_timeout: int = _setting(
        "HALT_GRACEFUL_TIMEOUT", "For open requests to end at a shutdown", 10, low=1, high=3600
    )

    # Set by Halt's own gunicorn configuration: the model servers found, or the embedded model.
    discovered: str = _setting("HALT_DISCOVERED", "Internal: what was found, JSON")
    embedded_url: str = _setting("HALT_EMBEDDED_URL", "Internal: where the embedded model listens")
    embedded_key: str = _setting("HALT_EMBEDDED_KEY", "Internal: its key", secret=True)
    embedded_model: str = _setting("HALT_EMBEDDED_MODEL", "Internal: its model")
    embedded_fault: str = _setting("HALT_EMBEDDED_FAULT", "Internal: why it can't be had")
    # Set by `halt-chat`, once for each start.
    open_page: bool = _setting("HALT_OPEN_PAGE", "Internal: open the page in a browser", False)

    @property
    def data_folder(self) -> Path:
        """Where everything is kept; it may not exist yet."""
        return Path(self.data).expanduser().absolute() if self.data else user_data_folder()

    @property
    def has_provider(self) -> bool:
        """A key, or the address of a model's server, is set."""
        return any(
            (self.api_key, self.base_url, self.azure_endpoint, self.anthropic_key, self.config_file)
        )

    @property
    def has_demo(self) -> bool:
        """The demo model runs; it answers where no other does."""
        return not self.has_provider and bool(self.embedded_url)

    @property
    def discovers(self) -> bool:
        """Model servers are looked for."""
        return not self.has_provider and self.discover.lower() not in FALSE

    @property
    def discover_addresses(self) -> tuple[str, ...]:
        """The base URLs that HALT_DISCOVER names, up to and with `/v1`. Raises ConfigError."""
        if self.discover.lower() in TRUE | FALSE:
            return ()
        given = [word for each in self.discover.split(",") if (word := each.strip())]
        return tuple(dict.fromkeys(_server_address(self.discover, each) for each in given))

    @property
    def upstream_url(self) -> str:
        """Where the requests go by the settings alone; empty: to a server that is found."""
        if not self.has_provider:
            return self.embedded_url
        return self.base_url or OPENAI_URL

    @property
    def upstream_key(self) -> str:
        """The key sent there. Many local servers want none; the client insists on some word."""
        return (self.api_key if self.has_provider else self.embedded_key) or "none"

    @property
    def known_model(self) -> str:
        """The model that answers by default; empty: the first that the server offers."""
        if not self.has_provider:
            return self.embedded_model
        return self.model or (OPENAI_MODEL if is_openai(self.upstream_url) else "")

    def default_system_prompt(self, model: str) -> str:
        """The system prompt of the page's conversations with a model.

        The demo model needs one to keep on.
        """
        is_demo = self.has_demo and model == self.embedded_model
        return self.system_prompt or (DEMO_SYSTEM_PROMPT if is_demo else "")

    @cached_property
    def trusted_hosts(self) -> list[str] | None:
        """Names that a request may be made to; None: any.

        A page of anybody's can point its own name at this machine and then talk to a server that
        asks for nothing (DNS rebinding). It cannot make the browser say another name.
        """
        if self.token or not is_loopback(self.host):
            return None
        more = [name.strip() for name in self.hosts.split(",") if name.strip()]
        return ["localhost", "127.0.0.1", "::1", self.host.strip("[]"), *more]

    @property
    def threads(self) -> int:
        """gunicorn's threads for streams: one for each, and some for those that are refused.

        Other requests have threads of their own, see `halt.server.thread_pools`.
        """
        return self.max_streams + REFUSING_THREADS


def _server_address(setting: str, text: str) -> str:
    """The base URL of one address of HALT_DISCOVER. Raises ConfigError."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_whole = is_address(url) and fits_header(text) and ("://" in text or bool(parts.port))
    except ValueError:
        is_whole = False
    if not is_whole or "@" in parts.netloc or parts.path.rstrip("/") not in {"", "/v1"}:
        shown = "" if "@" in setting else f"={setting!r}"  # it may hold a password
        raise ConfigError(
            f"HALT_DISCOVER{shown} is not allowed: use 1, 0, or addresses of model servers "
            "with commas between, as in 127.0.0.1:11434 or http://models.example:8080/v1."
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    is_usual = parts.port in {None, {"http": 80, "https": 443}[parts.scheme]}
    return f"{parts.scheme}://{host}{'' if is_usual else f':{parts.port}'}/v1"


def user_data_folder() -> Path:
    """Where this platform keeps what belongs to one user; it may not exist yet."""
    return platformdirs.user_data_path("halt", appauthor=False)

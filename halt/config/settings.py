"""Environment to one frozen, validated `Config`; the only reader of `os.environ`.

Every setting stands once in `Config`, with its default, its bounds and its meaning. A wrong value
raises `ConfigError`, one line that names the variable, its value and what is allowed.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
OPENAI_MODEL = "gpt-5-mini"  # OpenAI's current small chat model
SHIPPED_TOOLS = ("calculator", "current_time")  # what `halt.chat.builtin_tools` has
CONTINUES = ("auto", "prefix", "instruction")
TITLES = ("model", "words")
AZURE_VERSION = "2024-10-21"  # of Azure's API, the newest that is no preview
DISCOVER_MAX = 16  # addresses of HALT_DISCOVER: each gets a thread while it is asked
DEMO_SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly, in plain English."


class ConfigError(Exception):
    """A setting is wrong. The message is one line, fit to be the last thing a program prints."""


def _setting(
    env: str,
    default: Any,
    doc: str,
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

    host: str = _setting("HOST", "127.0.0.1", "Address to listen on")
    port: int = _setting("PORT", 8000, "Port to listen on", low=0, high=65535)
    token: str = _setting(
        "HALT_TOKEN",
        "",
        "Access token that page and API ask for (at least 8 characters)",
        secret=True,
    )
    hosts: str = _setting(
        "HALT_HOSTS",
        "",
        "Names, with commas between, under which a Halt without a token may be reached "
        "beside those of loopback",
    )
    cors_origins: tuple[str, ...] = _setting(
        "HALT_CORS_ORIGINS",
        (),
        "Origins, with commas between, whose pages may use the API: `https://HOST[:PORT]`, "
        "or `*` for every page there is",
    )
    allow_anonymous: bool = _setting(
        "HALT_ALLOW_ANONYMOUS", False, "Listen on other addresses than loopback without a token"
    )
    secret_key: str = _setting(
        "HALT_SECRET_KEY",
        "",
        "Signs session cookies (at least 16 characters); unset: one that is made at the first "
        "start and kept in the data folder",
        secret=True,
    )
    workers: int = _setting(
        "WEB_CONCURRENCY", 1, "Worker processes that serve the same streams", low=1, high=64
    )

    data: str = _setting(
        "HALT_DATA",
        "",
        "Folder of everything that is kept: conversations, keys; unset: `halt` in the folder "
        "where the platform keeps a user's data",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "",
        "PostgreSQL for the conversations instead of SQLite: `postgresql://USER:PASSWORD@HOST/NAME`",
        secret=True,
    )
    events_days: float = _setting(
        "HALT_EVENTS_DAYS",
        7.0,
        "Days that a finished stream can be replayed event by event; its text stays",
        low=0,
        high=3650,
    )

    api_key: str = _setting("OPENAI_API_KEY", "", "Key for the model's server", secret=True)
    base_url: str = _setting(
        "OPENAI_BASE_URL", "", "Address of any OpenAI-compatible server, up to and with `/v1`"
    )
    model: str = _setting(
        "HALT_MODEL", "", f"Model; unset: `{OPENAI_MODEL}` on OpenAI, else the server's first"
    )
    anthropic_key: str = _setting("ANTHROPIC_API_KEY", "", "Key for Anthropic's API", secret=True)
    anthropic_url: str = _setting(
        "ANTHROPIC_BASE_URL", "", "Address of a server that speaks Anthropic's Messages API"
    )
    azure_key: str = _setting("AZURE_OPENAI_API_KEY", "", "Key for Azure OpenAI", secret=True)
    azure_endpoint: str = _setting(
        "AZURE_OPENAI_ENDPOINT", "", "Azure OpenAI: `https://RESOURCE.openai.azure.com`"
    )
    azure_version: str = _setting(
        "OPENAI_API_VERSION", AZURE_VERSION, "Azure OpenAI: version of the API"
    )
    azure_deployment: str = _setting(
        "AZURE_OPENAI_DEPLOYMENT", "", "Azure OpenAI: the deployment that answers"
    )
    config_file: str = _setting(
        "HALT_CONFIG", "", "TOML file with several providers, instead of the variables above"
    )
    discover: str = _setting(
        "HALT_DISCOVER",
        "1",
        "Look for model servers on this machine where no provider is set; 0: do not; addresses, "
        "with commas between: look there too",
    )
    system_prompt: str = _setting(
        "HALT_SYSTEM_PROMPT", "", "System prompt of conversations on the page"
    )

    connect_timeout: float = _setting(
        "HALT_CONNECT_TIMEOUT",
        5.0,
        "To connect to the model's server, TLS included",
        low=0.05,
        high=600,
    )
    first_byte_timeout: float = _setting(
        "HALT_FIRST_BYTE_TIMEOUT",
        900.0,
        "From the request to the first token",
        low=0.05,
        high=86400,
    )
    gap_timeout: float = _setting(
        "HALT_GAP_TIMEOUT", 300.0, "Between two pieces of an answer", low=0.05, high=86400
    )
    run_timeout: float = _setting(
        "HALT_RUN_TIMEOUT", 1800.0, "For one answer as a whole", low=0.05, high=86400
    )
    continues: str = _setting(
        "HALT_CONTINUE",
        "auto",
        "How a model is asked to go on with a stopped answer: `prefix`, `instruction`, "
        "or `auto`: as its server can",
    )
    titles: str = _setting(
        "HALT_TITLES",
        "model",
        "Titles of conversations: made by the `model` in the background, or the first `words`",
    )
    exact_usage: bool = _setting(
        "HALT_EXACT_USAGE",
        False,
        "After a Stop the model writes on unseen, and bills, for the sake of its own token count",
    )
    orphan_grace: float = _setting(
        "HALT_ORPHAN_GRACE", 60.0, "A run goes on this long with nobody watching", low=0, high=86400
    )
    retries: int = _setting(
        "HALT_RETRIES", 2, "Retries of a run that failed before its first token", low=0, high=10
    )

    relay_writes: bool = _setting(
        "HALT_RELAY_WRITES",
        True,
        "One thread writes to all clients; 0: each stream's own thread does, which costs more",
    )
    max_streams: int = _setting(
        "HALT_MAX_STREAMS", 500, "Streams open at once, in all workers together", low=1, high=2000
    )
    max_messages: int = _setting(
        "HALT_MAX_MESSAGES", 10_000, "Messages in one request", low=1, high=100_000
    )
    max_prompt_chars: int = _setting(
        "HALT_MAX_PROMPT_CHARS",
        400_000,
        "Characters of all messages of one request",
        low=1,
        high=50_000_000,
    )
    max_answer_chars: int = _setting(
        "HALT_MAX_ANSWER_CHARS", 2_000_000, "Characters of one answer", low=1, high=50_000_000
    )
    max_body_bytes: int = _setting(
        "HALT_MAX_BODY_BYTES", 4_194_304, "Bytes of one request's body", low=1024, high=268_435_456
    )
    max_import_bytes: int = _setting(
        "HALT_MAX_IMPORT_BYTES",
        67_108_864,
        "Bytes of a file of conversations that is imported",
        low=1024,
        high=1_073_741_824,
    )
    log_seconds: float = _setting(
        "HALT_LOG_SECONDS",
        600.0,
        "A finished stream is kept in memory this long; then it is read from the store",
        low=0,
        high=86400,
    )
    log_bytes: int = _setting(
        "HALT_LOG_BYTES",
        16_777_216,
        "Memory of one stream's log; older events are let go beyond it",
        low=1024,
        high=1_073_741_824,
    )
    kept_bytes: int = _setting(
        "HALT_KEPT_BYTES",
        134_217_728,
        "Memory of all finished logs; the oldest go first",
        low=1024,
        high=17_179_869_184,
    )
    tools: tuple[str, ...] = _setting(
        "HALT_TOOLS",
        (),
        f"Tools that every model is offered, with commas between: `{'`, `'.join(SHIPPED_TOOLS)}`",
    )
    tool_rounds: int = _setting(
        "HALT_TOOL_ROUNDS",
        8,
        "Times that a model may call tools in one answer",
        low=0,
        high=100,
    )
    heartbeat: float = _setting(
        "HALT_HEARTBEAT", 10.0, "A silent stream sends a comment this often", low=0.05, high=300
    )
    rate_session: str = _setting(
        "HALT_RATE_SESSION",
        "",
        "Streams that one browser session may start, such as `30/minute`; several with `;` between",
    )
    rate_address: str = _setting(
        "HALT_RATE_ADDRESS", "", "Streams that may be started from one address, in the same words"
    )
    trusted_proxies: int = _setting(
        "HALT_TRUSTED_PROXIES",
        0,
        "Proxies in front of Halt: so many values of `X-Forwarded-For` and the last of "
        "`X-Forwarded-Proto` count",
        low=0,
        high=10,
    )
    graceful_timeout: int = _setting(
        "HALT_GRACEFUL_TIMEOUT", 10, "For open requests to end at a shutdown", low=1, high=3600
    )

    # Set by Halt's own gunicorn configuration when it has looked for model servers.
    discovered: str = _setting("HALT_DISCOVERED", "", "Internal: what was found, JSON")
    # Set by Halt's own gunicorn configuration when it has started the embedded model.
    embedded_url: str = _setting(
        "HALT_EMBEDDED_URL", "", "Internal: where the embedded model listens"
    )
    embedded_key: str = _setting("HALT_EMBEDDED_KEY", "", "Internal: its key", secret=True)
    embedded_model: str = _setting("HALT_EMBEDDED_MODEL", "", "Internal: its model")
    embedded_fault: str = _setting("HALT_EMBEDDED_FAULT", "", "Internal: why it can't be had")
    # Set by `halt-chat`, once for each start.
    open_page: bool = _setting("HALT_OPEN_PAGE", False, "Internal: open the page in a browser")

    @property
    def data_folder(self) -> Path:
        """Where everything is kept; it may not exist yet."""
        return Path(self.data).expanduser().absolute() if self.data else user_data_folder()

    @property
    def has_provider(self) -> bool:
        """A key, or the address of a model's server, is set."""
        return any(
            (
                self.api_key,
                self.base_url,
                self.azure_endpoint,
                self.anthropic_key,
                self.config_file,
            )
        )

    @property
    def has_demo(self) -> bool:
        """The demo model runs; it answers where no other does."""
        return not self.has_provider and bool(self.embedded_url)

    @property
    def discovers(self) -> bool:
        """Model servers are looked for."""
        return not self.has_provider and self.discover.lower() not in _FALSE

    @property
    def discover_addresses(self) -> tuple[str, ...]:
        """The base URLs that HALT_DISCOVER names, up to and with `/v1`. Raises ConfigError."""
        if self.discover.lower() in _TRUE | _FALSE:
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
        return self.model or (OPENAI_MODEL if self.on_openai else "")

    def told_system_prompt(self, model: str) -> str:
        """The system prompt of the page's conversations with a model.

        The demo model needs one to keep on.
        """
        is_demo = self.has_demo and model == self.embedded_model
        return self.system_prompt or (DEMO_SYSTEM_PROMPT if is_demo else "")

    @property
    def on_openai(self) -> bool:
        """The requests go to OpenAI itself."""
        return is_openai(self.upstream_url)

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


#: Threads for requests of streams beyond the places that there are, each refused at once.
REFUSING_THREADS = 32

#: One limit of HALT_RATE_SESSION and HALT_RATE_ADDRESS: 30/minute, 5 per 10 seconds.
_RATE = re.compile(
    r"[1-9][0-9]{0,5} *(/| per ) *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?", re.IGNORECASE
)

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def _parse(name: str, raw: str, kind: str, low: float | None, high: float | None) -> Any:
    if kind == "str":
        return raw
    if kind == "tuple[str, ...]":
        return tuple(dict.fromkeys(word for each in raw.split(",") if (word := each.strip())))
    if kind == "bool":
        if raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        raise ConfigError(f"{name}={raw!r} is not a switch: use 1 or 0.")
    noun = "a whole number" if kind == "int" else "a number"
    try:
        value = int(raw) if kind == "int" else float(raw)
    except ValueError:
        value = float("nan")
    if low is not None and high is not None and low <= value <= high:
        return value
    raise ConfigError(f"{name}={raw!r} is not allowed: use {noun} from {low:g} to {high:g}.")


def check_reachable(config: Config, setting: str, host: str) -> None:
    """An address that other machines reach needs a token, or the word that none is wanted.

    `setting` is where the address was set, as an error shows it. Raises ConfigError.
    """
    if not is_loopback(host) and not config.token and not config.allow_anonymous:
        raise ConfigError(
            f"{setting} is reachable from other machines and no HALT_TOKEN is set: "
            "set HALT_TOKEN, or HALT_ALLOW_ANONYMOUS=1 to let anyone in."
        )


def is_loopback(host: str) -> bool:
    """Whether this names the machine itself and reaches no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(text: str) -> bool:
    """Whether this is the address of an HTTP server, to which paths can be added."""
    try:
        url = urlsplit(text)
        known = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        return known and not {"?", "#"} & set(text)
    except ValueError:
        return False


def is_openai(url: str) -> bool:
    """Whether an address is OpenAI's own, in any region."""
    return f".{urlsplit(url).hostname or ''}".endswith(".api.openai.com")


def is_origin(text: str) -> bool:
    """Whether a browser would name an origin so: in lower case, without path and usual port."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    return (
        is_address(text)
        and fits_header(text)
        and text == f"{url.scheme}://{url.netloc}".lower()
        and not url.netloc.endswith(":")
        and "@" not in url.netloc
        and "*" not in url.netloc
        and port != {"http": 80, "https": 443}[url.scheme]
    )


def fits_header(text: str) -> bool:
    """Whether a key or token can be sent in a header."""
    return text.isascii() and text.isprintable() and not any(c.isspace() for c in text)


def _validate(config: Config) -> None:
    for name, address, example in (
        ("OPENAI_BASE_URL", config.base_url, "http://127.0.0.1:11434/v1"),
        ("ANTHROPIC_BASE_URL", config.anthropic_url, "https://api.anthropic.com"),
        ("AZURE_OPENAI_ENDPOINT", config.azure_endpoint, "https://NAME.openai.azure.com"),
    ):
        if {"?", "#"} & set(address):  # which may hold a key, so it is not quoted
            raise ConfigError(
                f"{name} holds a ? or a #: paths are put behind it, "
                f"so use http(s)://HOST[:PORT]/PATH alone, as in {example}."
            )
        if address and not is_address(address):
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
    for name, value, least in (
        ("HALT_TOKEN", config.token, 8),
        ("HALT_SECRET_KEY", config.secret_key, 16),
    ):
        if value and len(value) < least:
            raise ConfigError(f"{name} is too short: use at least {least} characters.")
    for name, value in (
        ("OPENAI_API_KEY", config.api_key),
        ("ANTHROPIC_API_KEY", config.anthropic_key),
        ("AZURE_OPENAI_API_KEY", config.azure_key),
        ("HALT_TOKEN", config.token),
    ):
        if not fits_header(value):
            raise ConfigError(f"{name} holds a space or a character that no header can carry.")
    if len(config.system_prompt) >= config.max_prompt_chars:
        raise ConfigError(
            f"HALT_SYSTEM_PROMPT has {len(config.system_prompt)} characters: use fewer than "
            f"HALT_MAX_PROMPT_CHARS={config.max_prompt_chars}, which counts them in each request."
        )
    _validate_lists(config)
    check_reachable(config, f"HOST={config.host!r}", config.host)


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


def _validate_lists(config: Config) -> None:
    if len(config.discover_addresses) > DISCOVER_MAX:
        raise ConfigError(f"HALT_DISCOVER names more than {DISCOVER_MAX} addresses: use fewer.")
    for name, rates in (
        ("HALT_RATE_SESSION", config.rate_session),
        ("HALT_RATE_ADDRESS", config.rate_address),
    ):
        if rates and not all(_RATE.fullmatch(each.strip()) for each in rates.split(";")):
            raise ConfigError(
                f"{name}={rates!r} is not a rate: use NUMBER/UNIT, as in 30/minute, "
                "with second, minute, hour or day, and ; between several."
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
                f"the tools are {', '.join(SHIPPED_TOOLS)}."
            )
    for origin in config.cors_origins:
        if origin != "*" and not is_origin(origin):
            raise ConfigError(
                f"HALT_CORS_ORIGINS={','.join(config.cors_origins)!r}: {origin!r} is not an "
                "origin: use http(s)://host[:port] in lower case, without a path and without the "
                "usual port, or *."
            )


def _validate_way(env: Mapping[str, str]) -> None:
    """What is taken from the environment on the way to the model: proxies and certificates."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for variable_name in (name, name.lower()):
            proxy = env.get(variable_name, "").strip()
            try:
                url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
                fits = fits_header(proxy) and bool(url.hostname) and url.port != 0
            except ValueError:
                fits = False
            if proxy and not fits:  # it may hold a password, so it is not shown
                raise ConfigError(
                    f"{variable_name} is not the address of a proxy: use http://HOST:PORT."
                )
    bundle = env.get("SSL_CERT_FILE", "")
    try:
        if bundle:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(bundle)
    except OSError as exc:
        reason = "there is no certificate in it" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError(
            f"SSL_CERT_FILE={bundle!r} cannot be used: {reason}. Use a file of certificates (PEM)."
        ) from None


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings from `environ` (default: the process's).

    An empty variable counts as unset. Raises ConfigError.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Config):
        meta = item.metadata
        raw = env.get(meta["env"], "").strip()
        if raw:
            values[item.name] = _parse(meta["env"], raw, str(item.type), meta["low"], meta["high"])
    config = Config(**values)
    _validate(config)
    _validate_way(env)
    return config


def variable(name: str) -> str:
    """The value of a variable that a configuration file names, empty where it is unset."""
    return os.environ.get(name, "").strip()


def override(config: Config, **values: Any) -> Config:
    """These settings with others in place of some; None changes nothing. Raises ConfigError."""
    changed = replace(config, **{name: each for name, each in values.items() if each is not None})
    _validate(changed)
    return changed


def user_data_folder() -> Path:
    """Where this platform keeps what belongs to one user; it may not exist yet."""
    return platformdirs.user_data_path("halt", appauthor=False)


def at_a_desktop() -> bool:
    """Whether a person sits at this terminal and a browser can show a window beside it."""
    env = os.environ
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or env.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def drop_empty(name: str) -> None:
    """Take a variable away that is empty, and so counts as unset, from others that read it."""
    if not os.environ.get(name, "?").strip():
        del os.environ[name]


def publish(values: Mapping[str, str]) -> None:
    """Hand settings to the worker processes that this process will fork."""
    os.environ.update(values)


def take_notify() -> tuple[str, float]:
    """The socket on which systemd awaits reports of this process, and the seconds of its watchdog.

    Empty and 0 where there is none. The variables are removed: with them gunicorn would report that
    it is ready before a worker is, and processes that Halt starts would take them for their own.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    process = os.environ.pop("WATCHDOG_PID", "")
    is_time = microseconds.isdecimal() and len(microseconds) <= 20  # of 64 bits
    if not is_time or process not in {"", str(os.getpid())}:
        return address, 0.0
    return address, int(microseconds) / 1_000_000

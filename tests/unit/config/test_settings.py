"""Every setting: its default, its bounds, and the one line that refuses a wrong value.

The settings are read from `Config`, so that a new one is tested, and must be in DEFAULTS, at once.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from halt.config.addresses import is_openai_url
from halt.config.environment import load, publish
from halt.config.settings import REFUSING_THREADS, Config, ConfigError
from halt.people.person import mode_of


class Setting(NamedTuple):
    """One field of `Config`."""

    name: str
    env: str
    kind: str
    default: Any
    doc: str
    low: float | None
    high: float | None
    secret: bool


SETTINGS = [
    Setting(f.name, kind=str(f.type), default=f.default, **f.metadata) for f in fields(Config)
]
NUMBERS = [s for s in SETTINGS if s.kind in {"int", "float"}]
SWITCHES = [s for s in SETTINGS if s.kind == "bool"]
PUBLIC = [s for s in SETTINGS if not s.doc.startswith("Internal")]

#: The documented defaults. A change here is a change for users.
DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": 8000,
    "HALT_TOKEN": "",
    "HALT_HOSTS": "",
    "HALT_ALLOW_ANONYMOUS": False,
    "HALT_USERS": False,
    "HALT_USER_HEADER": "",
    "HALT_USER_NAME_HEADER": "",
    "HALT_PROXY_ADDRESSES": (),
    "HALT_OIDC_ISSUER": "",
    "HALT_OIDC_CLIENT_ID": "",
    "HALT_OIDC_CLIENT_SECRET": "",
    "HALT_OIDC_GROUPS": (),
    "HALT_OIDC_DOMAINS": (),
    "HALT_OIDC_SCOPES": (),
    "HALT_ADMINS": (),
    "HALT_SIGN_IN_HOURS": 0.0,
    "HALT_SECRET_KEY": "",
    "HALT_SECRET_KEY_OLD": "",
    "HALT_DATA": "",
    "WEB_CONCURRENCY": 1,
    "OPENAI_API_KEY": "",
    "OPENAI_BASE_URL": "",
    "HALT_MODEL": "",
    "ANTHROPIC_API_KEY": "",
    "ANTHROPIC_BASE_URL": "",
    "AZURE_OPENAI_API_KEY": "",
    "AZURE_OPENAI_ENDPOINT": "",
    "OPENAI_API_VERSION": "2024-10-21",
    "AZURE_OPENAI_DEPLOYMENT": "",
    "DATABASE_URL": "",
    "HALT_EVENTS_DAYS": 7.0,
    "HALT_CONFIG": "",
    "HALT_DISCOVER": "1",
    "HALT_ALLOW_LINK_LOCAL": False,
    "HALT_OWN_KEYS": False,
    "HALT_SYSTEM_PROMPT": "",
    "HALT_CONNECT_TIMEOUT": 5.0,
    "HALT_FIRST_BYTE_TIMEOUT": 900.0,
    "HALT_GAP_TIMEOUT": 300.0,
    "HALT_RUN_TIMEOUT": 1800.0,
    "HALT_CONTINUE": "auto",
    "HALT_TITLES": "model",
    "HALT_EXACT_USAGE": False,
    "HALT_ORPHAN_GRACE": 60.0,
    "HALT_RETRIES": 2,
    "HALT_RELAY_WRITES": True,
    "HALT_MAX_STREAMS": 500,
    "HALT_MAX_MESSAGES": 10_000,
    "HALT_MAX_PROMPT_CHARS": 400_000,
    "HALT_MAX_ANSWER_CHARS": 2_000_000,
    "HALT_MAX_BODY_BYTES": 4_194_304,
    "HALT_MAX_FILE_BYTES": 20_000_000,
    "HALT_MAX_FILES": 10,
    "HALT_MAX_FILES_BYTES": 50_000_000,
    "HALT_MAX_FILE_CHARS": 120_000,
    "HALT_MAX_PERSON_BYTES": 2_000_000_000,
    "HALT_MAX_IMPORT_BYTES": 67_108_864,
    "HALT_LOG_SECONDS": 600.0,
    "HALT_LOG_BYTES": 16_777_216,
    "HALT_KEPT_BYTES": 134_217_728,
    "HALT_CORS_ORIGINS": (),
    "HALT_TOOLS": (),
    "HALT_TOOL_ROUNDS": 8,
    "HALT_HEARTBEAT": 10.0,
    "HALT_RATE_SESSION": "",
    "HALT_RATE_ADDRESS": "",
    "HALT_TRUSTED_PROXIES": 0,
    "HALT_GRACEFUL_TIMEOUT": 10,
}


def name(setting: Setting) -> str:
    return setting.env


def refused_message(**environ: str) -> str:
    """Return the one line that refuses this environment."""
    with pytest.raises(ConfigError) as error_info:
        load(environ)
    message = str(error_info.value)
    assert "\n" not in message
    assert "\r" not in message
    return message


def test_empty_environment_gives_the_documented_defaults() -> None:
    """An empty environment gives the documented defaults, and DEFAULTS has every setting."""
    config = load({})
    assert {s.env: s.default for s in PUBLIC} == DEFAULTS
    for setting in SETTINGS:
        assert getattr(config, setting.name) == setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=name)
def test_empty_variable_counts_as_unset(setting: Setting) -> None:
    """An empty or blank variable gives the default, as `NAME=` in a shell or compose file."""
    for raw in ("", "  "):
        assert getattr(load({setting.env: raw}), setting.name) == setting.default


@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_number_at_its_bounds_is_allowed(setting: Setting) -> None:
    """Both bounds of a number are allowed values, also with blanks around them."""
    assert setting.low is not None
    assert setting.high is not None
    for bound in (setting.low, setting.high):
        raw = f"{bound:.0f}" if setting.kind == "int" else str(bound)
        environ = {setting.env: f" {raw} "} | NEEDED.get(setting.env, {})
        assert getattr(load(environ), setting.name) == bound


@pytest.mark.parametrize("raw", ["beyond", "below", "many", "nan", "inf", "-inf", "1e999", "0x10"])
@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_wrong_number_is_refused_in_one_line(setting: Setting, raw: str) -> None:
    """A wrong number is refused in one line with the variable, the value and the bounds."""
    assert setting.low is not None
    assert setting.high is not None
    raw = {"beyond": str(int(setting.high) + 1), "below": str(int(setting.low) - 1)}.get(raw, raw)
    message = refused_message(**{setting.env: raw})
    for part in (setting.env, repr(raw), f" from {setting.low:,} to {setting.high:,}."):
        assert part in message


@pytest.mark.parametrize("setting", [s for s in NUMBERS if s.kind == "int"], ids=name)
def test_whole_number_with_a_fraction_is_refused(setting: Setting) -> None:
    """A fraction of a whole number is refused rather than rounded."""
    assert "a whole number" in refused_message(**{setting.env: "1.5"})


@pytest.mark.parametrize("setting", SWITCHES, ids=name)
@pytest.mark.parametrize(
    ("raw", "value"),
    [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("off", False)],
)
def test_switch_accepts_its_usual_spellings(setting: Setting, raw: str, value: bool) -> None:
    """A switch accepts 1, true, yes, on and their opposites, in any case."""
    assert getattr(load({setting.env: raw}), setting.name) is value


@pytest.mark.parametrize("setting", SWITCHES, ids=name)
def test_misspelt_switch_is_refused(setting: Setting) -> None:
    """A misspelt switch is refused by name and never turns a protection off."""
    message = refused_message(**{setting.env: "ture"})
    assert setting.env in message
    assert "'ture'" in message
    assert "1 or 0" in message


@pytest.mark.parametrize(
    "url",
    [
        "example.org/v1",
        "ftp://example.org/v1",
        "http://",
        "http:///v1",
        "https://:443/v1",
        "http://example.org:port/v1",
        "http://example.org:99999/v1",
        "http://[::1/v1",
        "two\nlines",
    ],
)
def test_wrong_address_is_refused(url: str) -> None:
    """A wrong address is refused in one line with the variable, the value and the form of an
    address.
    """
    message = refused_message(OPENAI_BASE_URL=url)
    assert f"OPENAI_BASE_URL={url!r}" in message
    assert "http(s)://HOST[:PORT]/PATH" in message


@pytest.mark.parametrize("end", ["?key=hidden-word", "?", "#top"])
def test_address_with_a_query_is_refused_without_being_shown(end: str) -> None:
    """An address with ? or # is refused, and not shown since it may hold a secret."""
    message = refused_message(OPENAI_BASE_URL=f"https://example.org/v1{end}")
    assert "OPENAI_BASE_URL holds a ? or a #" in message
    assert "hidden-word" not in message


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:11434/v1", "https://api.example.org/v1", "http://[::1]:8080/v1"]
)
def test_valid_address_is_used_unchanged(url: str) -> None:
    """The address of the model's server is used unchanged."""
    assert load({"OPENAI_BASE_URL": url}).upstream_url == url


@pytest.mark.parametrize(
    ("env", "min_length"),
    [("HALT_TOKEN", 8), ("HALT_SECRET_KEY", 16), ("HALT_SECRET_KEY_OLD", 16)],
)
def test_short_secret_is_refused_without_being_shown(env: str, min_length: int) -> None:
    """A secret that can be guessed is refused; the line has the least length, not the text."""
    message = refused_message(**{env: "x" * (min_length - 1)})
    assert env in message
    assert str(min_length) in message
    assert "xxx" not in message
    load({env: "x" * min_length})


@pytest.mark.parametrize("env", ["OPENAI_API_KEY", "HALT_TOKEN"])
@pytest.mark.parametrize("value", ["two words", "a\nline", "schlüssel", "tab\there", "nul\0nul"])
def test_secret_that_no_header_can_carry_is_refused(env: str, value: str) -> None:
    """A key with a line break, blank or non-ASCII character is refused and not shown."""
    message = refused_message(**{env: f"sk-{value}-secret"})
    assert env in message
    assert "secret" not in message


@pytest.mark.parametrize("env", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "wrong_value", ["::::", "http://", "http://hush:pass@:99999", "http://hush host"]
)
def test_proxy_without_an_address_is_refused_without_being_shown(
    env: str, wrong_value: str
) -> None:
    """A proxy without an address is refused at the start, and its password is not shown."""
    message = refused_message(**{env: wrong_value})
    assert env in message
    assert "hush" not in message
    for right_value in (
        "proxy.example:3128",
        "http://hush:pass@10.0.0.1:80",
        "socks5://[::1]:9",
        "",
    ):
        load({env: right_value})


@pytest.mark.parametrize(
    "hosts", ["http://x/", "halt.example:8000", "halt.example,*", "a b", "a..b", "café.example"]
)
def test_wrong_host_name_is_refused(hosts: str) -> None:
    """A value that no browser sends as a host name is refused with the form of a name."""
    message = refused_message(HALT_HOSTS=hosts)
    assert f"HALT_HOSTS={hosts!r}" in message
    assert "without http:// and without a port" in message


def test_host_names_are_compared_in_lower_case() -> None:
    """Host names and addresses are allowed in each form that a user may write."""
    hosts = load({"HALT_HOSTS": "Halt.Example, my_box,,10.0.0.7, [fe80::1]"}).trusted_hosts
    assert hosts is not None
    assert hosts[-4:] == ["halt.example", "my_box", "10.0.0.7", "fe80::1"]


def test_system_prompt_that_fills_the_prompt_limit_is_refused() -> None:
    """A system prompt that makes every message too long is refused."""
    message = refused_message(HALT_SYSTEM_PROMPT="x" * 20, HALT_MAX_PROMPT_CHARS="20")
    assert "HALT_SYSTEM_PROMPT" in message
    assert "HALT_MAX_PROMPT_CHARS=20" in message
    load({"HALT_SYSTEM_PROMPT": "x" * 20, "HALT_MAX_PROMPT_CHARS": "21"})


def test_default_system_prompt_is_for_the_demo_model_alone() -> None:
    """The demo model has a default system prompt; the model of another server has none."""
    environment = {"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1", "HALT_EMBEDDED_MODEL": "Smol"}
    assert load(environment).default_system_prompt("Smol").startswith("You are")
    assert load(environment).default_system_prompt("ollama/m") == ""
    assert load({"OPENAI_API_KEY": "k", **environment}).default_system_prompt("Smol") == ""
    assert load({"HALT_SYSTEM_PROMPT": "Be.", **environment}).default_system_prompt("Smol") == "Be."


def test_unreadable_certificates_are_refused(tmp_path: Path) -> None:
    """An unreadable file of certificates is refused in one line with the file and its fault."""
    for name, reason in (("missing.pem", "No such file"), ("empty.pem", "no certificate")):
        path = tmp_path / name
        if name == "empty.pem":
            path.write_text("nothing")
        message = refused_message(SSL_CERT_FILE=str(path))
        assert name in message
        assert reason in message


def test_config_repr_hides_every_secret() -> None:
    """A configuration in a log or on a screen shows no key, token or secret."""
    secrets: dict[str, Any] = {s.name: f"hush-{s.name}-0123456789" for s in SETTINGS if s.secret}
    text = repr(Config(**secrets))
    assert [secret for secret in secrets.values() if secret in text] == []


NEEDED = {"HALT_SIGN_IN_HOURS": {"HALT_USERS": "1"}}  # by settings that belong to another one
HEADER = {"HALT_USER_HEADER": "Remote-User", "HALT_PROXY_ADDRESSES": "127.0.0.1"}
OIDC = {"HALT_OIDC_ISSUER": "https://id.example/realm", "HALT_OIDC_CLIENT_ID": "halt"}


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        (
            {"HALT_TOKEN": "long-enough", "HALT_USERS": "1"},
            ["HALT_TOKEN and HALT_USERS are set", "one way at a time", "API tokens"],
        ),
        ({"HALT_TOKEN": "long-enough", **HEADER}, ["HALT_TOKEN and HALT_USER_HEADER are set"]),
        ({"HALT_TOKEN": "long-enough", **OIDC}, ["HALT_TOKEN and HALT_OIDC_ISSUER are set"]),
        ({"HALT_USERS": "1", **OIDC}, ["HALT_USERS and HALT_OIDC_ISSUER are set"]),
        ({**HEADER, **OIDC}, ["HALT_USER_HEADER and HALT_OIDC_ISSUER are set"]),
        (
            {"HALT_ALLOW_ANONYMOUS": "1", "HALT_USERS": "1"},
            ["HALT_ALLOW_ANONYMOUS and HALT_USERS are set"],
        ),
        (
            {"HALT_USER_HEADER": "Remote-User"},
            ["HALT_USER_HEADER is set", "HALT_PROXY_ADDRESSES", "unix"],
        ),
        ({**HEADER, "HALT_USER_HEADER": "Remote_User"}, ["HALT_USER_HEADER='Remote_User'"]),
        ({**HEADER, "HALT_USER_HEADER": "Remote-User:"}, ["letters, digits and -"]),
        ({**HEADER, "HALT_USER_NAME_HEADER": "a b"}, ["HALT_USER_NAME_HEADER='a b'"]),
        ({"HALT_USER_NAME_HEADER": "Remote-Name"}, ["HALT_USER_NAME_HEADER is set, but"]),
        ({"HALT_PROXY_ADDRESSES": "127.0.0.1"}, ["HALT_PROXY_ADDRESSES is set, but"]),
        ({"HALT_OIDC_CLIENT_ID": "halt"}, ["HALT_OIDC_CLIENT_ID is set, but HALT_OIDC_ISSUER"]),
        ({"HALT_OIDC_GROUPS": "staff"}, ["HALT_OIDC_GROUPS is set, but HALT_OIDC_ISSUER"]),
        ({"HALT_OIDC_DOMAINS": "a.example"}, ["HALT_OIDC_DOMAINS is set, but HALT_OIDC_ISSUER"]),
        ({"HALT_SIGN_IN_HOURS": "8"}, ["HALT_SIGN_IN_HOURS is set, but HALT_USERS or HALT_OIDC"]),
        ({"HALT_ADMINS": "ada"}, ["HALT_ADMINS is set, but HALT_USERS or HALT_USER_HEADER or"]),
        ({**OIDC, "HALT_OIDC_GROUPS": ","}, ["HALT_OIDC_GROUPS=',' names nothing"]),
        ({**OIDC, "HALT_OIDC_DOMAINS": "@a.example"}, ["'@a.example' is not a domain"]),
        ({**OIDC, "HALT_OIDC_ISSUER": "https://me:pw@id.example"}, ["HALT_OIDC_ISSUER is not"]),
        (
            {**OIDC, "HALT_OIDC_ISSUER": "https://id.example/.well-known/openid-configuration"},
            ["is not an issuer"],
        ),
        ({**HEADER, "HALT_PROXY_ADDRESSES": "0.0.0.0/0"}, ["'0.0.0.0/0' is every address"]),
        ({**HEADER, "HALT_PROXY_ADDRESSES": "::/0"}, ["'::/0' is every address"]),
        ({**HEADER, "HALT_USER_HEADER": "Cookie"}, ["HALT_USER_HEADER='Cookie' has another"]),
        ({**HEADER, "HALT_USER_NAME_HEADER": "user-agent"}, ["'user-agent' has another purpose"]),
        (
            {**HEADER, "HALT_PROXY_ADDRESSES": "127.0.0.1,proxy"},
            ["HALT_PROXY_ADDRESSES='127.0.0.1,proxy'", "'proxy' is no address or network"],
        ),
        ({**HEADER, "HALT_PROXY_ADDRESSES": "10.0.0.1/8"}, ["'10.0.0.1/8' is no address"]),
        ({"HALT_OIDC_ISSUER": "https://id.example"}, ["HALT_OIDC_CLIENT_ID is missing"]),
        ({**OIDC, "HALT_OIDC_ISSUER": "http://id.example"}, ["HALT_OIDC_ISSUER=", "https://HOST"]),
        ({**OIDC, "HALT_OIDC_ISSUER": "id.example"}, ["is not an issuer"]),
        ({**OIDC, "HALT_OIDC_ISSUER": "https://id.example/?realm=1"}, ["is not an issuer"]),
    ],
)
def test_wrong_way_to_know_people_is_refused(environ: dict[str, str], parts: list[str]) -> None:
    """Two ways at once, and a way without all that it needs, are refused with the next step."""
    message = refused_message(**environ)
    for part in parts:
        assert part in message
    assert "long-enough" not in message


@pytest.mark.parametrize(
    ("environ", "mode", "checks_hosts"),
    [
        ({}, "mine", True),
        ({"HALT_TOKEN": "long-enough"}, "mine", False),
        ({"HALT_TOKEN": "long-enough", "HALT_ALLOW_ANONYMOUS": "1"}, "mine", False),
        ({"HALT_ALLOW_ANONYMOUS": "1"}, "anonymous", True),
        ({"HALT_ALLOW_ANONYMOUS": "1", "HOST": "10.0.0.1"}, "anonymous", False),
        ({"HALT_USERS": "1", "HOST": "10.0.0.1"}, "accounts", False),
        (HEADER, "header", True),
        ({**HEADER, "HOST": "10.0.0.1"}, "header", False),
        ({**HEADER, "HOST": "10.0.0.1", "HALT_HOSTS": "chat.example"}, "header", True),
        ({**HEADER, "HALT_PROXY_ADDRESSES": "unix,10.0.0.0/8,::1"}, "header", True),
        (OIDC, "oidc", False),
        ({**OIDC, "HALT_OIDC_ISSUER": "http://127.0.0.1:9000"}, "oidc", False),
    ],
)
def test_settings_choose_the_way_to_know_people(
    environ: dict[str, str], mode: str, checks_hosts: bool
) -> None:
    """Each way is chosen by its settings. With a header, host names are checked on loopback, and where
    HALT_HOSTS is set: a page that makes its own name lead here could send the header.
    """
    config = load(environ)
    assert mode_of(config) == mode
    assert (config.trusted_hosts is not None) is checks_hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_host_needs_no_token(host: str) -> None:
    """Listening on loopback needs neither token nor permission."""
    assert load({"HOST": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "halt.example.org", "10.0.0.1"])
def test_reachable_host_needs_a_token_or_permission(host: str) -> None:
    """An address that others reach is refused without a token; the line names both settings."""
    message = refused_message(HOST=host)
    for part in (repr(host), "HALT_TOKEN", "HALT_ALLOW_ANONYMOUS=1"):
        assert part in message
    assert load({"HOST": host, "HALT_TOKEN": "long enough"[:4] + "-enough"}).host == host
    assert load({"HOST": host, "HALT_ALLOW_ANONYMOUS": "1"}).host == host
    refused_message(HOST=host, HALT_ALLOW_ANONYMOUS="0")


@pytest.mark.parametrize(
    ("environ", "url", "key"),
    [
        ({"OPENAI_API_KEY": "sk-1"}, "https://api.openai.com/v1", "sk-1"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, "http://127.0.0.1:1/v1", "none"),
        ({}, "", "none"),
        ({"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1", "HALT_EMBEDDED_KEY": "k"}, None, "k"),
        (
            {"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1", "OPENAI_API_KEY": "sk-1"},
            "https://api.openai.com/v1",
            "sk-1",
        ),
    ],
)
def test_upstream_follows_from_key_address_and_demo_model(
    environ: dict[str, str], url: str | None, key: str
) -> None:
    """A key means OpenAI, an address its server; without either the demo model answers."""
    config = load(environ)
    assert config.upstream_url == (environ["HALT_EMBEDDED_URL"] if url is None else url)
    assert config.upstream_key == key
    assert config.has_provider is bool(
        environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL")
    )
    assert config.has_demo is (url is None)


def test_threads_exceed_the_stream_limit() -> None:
    """There are more threads than streams, so that a stream beyond the limit is refused at once."""
    config = load({"HALT_MAX_STREAMS": "7"})
    assert config.threads == 7 + REFUSING_THREADS > 7


def test_config_is_frozen() -> None:
    """A loaded configuration cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).port = 1  # type: ignore[misc]


def test_published_settings_are_loaded_by_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings that the master publishes are in its workers' environment."""
    monkeypatch.setattr(os, "environ", {"PORT": "1234"})
    publish({"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1"})
    assert (load().embedded_url, load().port) == ("http://127.0.0.1:2/v1", 1234)


def test_data_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` is the home folder as in a shell; unset, the data folder is that of the user's data."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert load({"HALT_DATA": "~/mine"}).data_folder == tmp_path / "mine"
    assert load({"HALT_DATA": "mine"}).data_folder == tmp_path / "mine"
    assert load({}).data_folder.is_absolute()
    assert load({}).data_folder.name == "halt"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://us.api.openai.com:443/v1/", True),
        ("https://api.openai.com.example.org/v1", False),
        ("https://notapi.openai.com/v1", False),
        ("http://127.0.0.1:8080/api.openai.com", False),
        ("", False),
    ],
)
def test_is_openai_includes_regional_addresses(url: str, expected: bool) -> None:
    """OpenAI's regional addresses count as OpenAI, which gets its newer field names."""
    assert is_openai_url(url) == expected

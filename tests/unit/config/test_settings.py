"""Every setting: its default, its bounds, and the one line with which a wrong value is refused.

The table of settings is read from `Config` itself, so that a new setting is tested, and has to be
documented, from its first day.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from halt.config.addresses import is_openai
from halt.config.environment import load, publish
from halt.config.settings import REFUSING_THREADS, Config, ConfigError


class Setting(NamedTuple):
    """What `Config` says of one setting."""

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

#: The defaults, as they are promised. A change here is a change for users.
DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": 8000,
    "HALT_TOKEN": "",
    "HALT_HOSTS": "",
    "HALT_ALLOW_ANONYMOUS": False,
    "HALT_SECRET_KEY": "",
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


def refused(**environ: str) -> str:
    """The message with which this environment is refused: one line."""
    with pytest.raises(ConfigError) as caught:
        load(environ)
    message = str(caught.value)
    assert "\n" not in message
    assert "\r" not in message
    return message


def test_the_defaults_are_those_that_were_promised() -> None:
    """An empty environment gives the documented defaults, and no setting is left out here."""
    config = load({})
    assert {s.env: s.default for s in PUBLIC} == DEFAULTS
    for setting in SETTINGS:
        assert getattr(config, setting.name) == setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=name)
def test_an_empty_variable_is_an_unset_one(setting: Setting) -> None:
    """`NAME=` in a shell or a compose file means the default, and so do blanks."""
    for raw in ("", "  "):
        assert getattr(load({setting.env: raw}), setting.name) == setting.default


@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_a_number_may_be_all_that_its_bounds_allow(setting: Setting) -> None:
    """Both bounds are allowed values, blanks around them too."""
    assert setting.low is not None
    assert setting.high is not None
    for bound in (setting.low, setting.high):
        raw = f"{bound:.0f}" if setting.kind == "int" else str(bound)
        assert getattr(load({setting.env: f" {raw} "}), setting.name) == bound


@pytest.mark.parametrize("raw", ["beyond", "below", "many", "nan", "inf", "-inf", "1e999", "0x10"])
@pytest.mark.parametrize("setting", NUMBERS, ids=name)
def test_a_wrong_number_is_refused_in_one_line(setting: Setting, raw: str) -> None:
    """The line names the variable, the value and the bounds."""
    assert setting.low is not None
    assert setting.high is not None
    raw = {"beyond": str(int(setting.high) + 1), "below": str(int(setting.low) - 1)}.get(raw, raw)
    message = refused(**{setting.env: raw})
    for fact in (setting.env, repr(raw), f"{setting.low:g}", f"{setting.high:g}"):
        assert fact in message


@pytest.mark.parametrize("setting", [s for s in NUMBERS if s.kind == "int"], ids=name)
def test_a_whole_number_has_no_fraction(setting: Setting) -> None:
    """Half a stream is refused rather than rounded."""
    assert "a whole number" in refused(**{setting.env: "1.5"})


@pytest.mark.parametrize("setting", SWITCHES, ids=name)
@pytest.mark.parametrize(
    ("raw", "value"),
    [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("off", False)],
)
def test_a_switch_is_read_as_people_write_it(setting: Setting, raw: str, value: bool) -> None:
    """1, true, yes, on and their opposites, in any case."""
    assert getattr(load({setting.env: raw}), setting.name) is value


@pytest.mark.parametrize("setting", SWITCHES, ids=name)
def test_anything_else_is_no_switch(setting: Setting) -> None:
    """A typing error never turns a protection off: it is refused, and named."""
    message = refused(**{setting.env: "ture"})
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
def test_a_wrong_address_is_refused(url: str) -> None:
    """The line names the variable, its value, and shows an address that would do."""
    message = refused(OPENAI_BASE_URL=url)
    assert f"OPENAI_BASE_URL={url!r}" in message
    assert "http(s)://HOST[:PORT]/PATH" in message


@pytest.mark.parametrize("end", ["?key=hidden-word", "?", "#top"])
def test_an_address_with_a_query_is_refused_and_not_quoted(end: str) -> None:
    """Nothing could be put behind it; and it may hold a secret."""
    message = refused(OPENAI_BASE_URL=f"https://example.org/v1{end}")
    assert "OPENAI_BASE_URL holds a ? or a #" in message
    assert "hidden-word" not in message


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:11434/v1", "https://api.example.org/v1", "http://[::1]:8080/v1"]
)
def test_an_address_is_taken_as_it_is(url: str) -> None:
    """The address of the model's server is used unchanged."""
    assert load({"OPENAI_BASE_URL": url}).upstream_url == url


@pytest.mark.parametrize(("env", "least"), [("HALT_TOKEN", 8), ("HALT_SECRET_KEY", 16)])
def test_a_short_secret_is_refused_and_not_shown(env: str, least: int) -> None:
    """A secret that can be guessed is refused; the line says how long it must be, not its text."""
    message = refused(**{env: "x" * (least - 1)})
    assert env in message
    assert str(least) in message
    assert "xxx" not in message
    load({env: "x" * least})


@pytest.mark.parametrize("env", ["OPENAI_API_KEY", "HALT_TOKEN"])
@pytest.mark.parametrize("bad", ["two words", "a\nline", "schlüssel", "tab\there", "nul\0nul"])
def test_a_secret_that_no_header_can_carry_is_refused(env: str, bad: str) -> None:
    """A key that was pasted with a line break is refused at the start, and not repeated."""
    message = refused(**{env: f"sk-{bad}-secret"})
    assert env in message
    assert "secret" not in message


@pytest.mark.parametrize("env", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("bad", ["::::", "http://", "http://hush:pass@:99999", "http://hush host"])
def test_a_proxy_that_has_no_address_is_refused_and_not_shown(env: str, bad: str) -> None:
    """It would fail each request, long after the start; its address may hold a password."""
    message = refused(**{env: bad})
    assert env in message
    assert "hush" not in message
    for good in ("proxy.example:3128", "http://hush:pass@10.0.0.1:80", "socks5://[::1]:9", ""):
        load({env: good})


def test_a_system_prompt_that_leaves_no_room_is_refused() -> None:
    """With it, every message on the page would be too long."""
    message = refused(HALT_SYSTEM_PROMPT="x" * 20, HALT_MAX_PROMPT_CHARS="20")
    assert "HALT_SYSTEM_PROMPT" in message
    assert "HALT_MAX_PROMPT_CHARS=20" in message
    load({"HALT_SYSTEM_PROMPT": "x" * 20, "HALT_MAX_PROMPT_CHARS": "21"})


def test_the_demo_model_alone_has_a_prompt_of_its_own() -> None:
    """A server's model that answers beside it is not told to be brief."""
    demo = {"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1", "HALT_EMBEDDED_MODEL": "Smol"}
    assert load(demo).default_system_prompt("Smol").startswith("You are")
    assert load(demo).default_system_prompt("ollama/m") == ""
    assert load({"OPENAI_API_KEY": "k", **demo}).default_system_prompt("Smol") == ""
    assert load({"HALT_SYSTEM_PROMPT": "Be.", **demo}).default_system_prompt("Smol") == "Be."


def test_certificates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """The line names the file and what is wrong with it."""
    for name, reason in (("missing.pem", "No such file"), ("empty.pem", "no certificate")):
        path = tmp_path / name
        if name == "empty.pem":
            path.write_text("nothing")
        message = refused(SSL_CERT_FILE=str(path))
        assert name in message
        assert reason in message


def test_secrets_do_not_show_in_the_configuration() -> None:
    """Whoever prints or logs the configuration prints no key, token or secret."""
    secrets = {s.env: f"hush-{s.name}-0123456789" for s in SETTINGS if s.secret}
    shown = repr(load(secrets))
    assert [word for word in secrets.values() if word in shown] == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_token(host: str) -> None:
    """Listening on loopback needs neither token nor permission."""
    assert load({"HOST": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "halt.example.org", "10.0.0.1"])
def test_other_machines_need_a_token(host: str) -> None:
    """An address that others reach is refused without a token; the line names both ways out."""
    message = refused(HOST=host)
    for fact in (repr(host), "HALT_TOKEN", "HALT_ALLOW_ANONYMOUS=1"):
        assert fact in message
    assert load({"HOST": host, "HALT_TOKEN": "long enough"[:4] + "-enough"}).host == host
    assert load({"HOST": host, "HALT_ALLOW_ANONYMOUS": "1"}).host == host
    refused(HOST=host, HALT_ALLOW_ANONYMOUS="0")


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
def test_where_the_requests_go(environ: dict[str, str], url: str | None, key: str) -> None:
    """A key means OpenAI, an address that server, nothing the embedded model where there is one."""
    config = load(environ)
    assert config.upstream_url == (environ["HALT_EMBEDDED_URL"] if url is None else url)
    assert config.upstream_key == key
    assert config.has_provider is bool(
        environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL")
    )
    assert config.has_demo is (url is None)


def test_every_stream_has_a_thread_and_a_refusal_too() -> None:
    """There are more threads for streams than places, so that one too many is refused at once."""
    config = load({"HALT_MAX_STREAMS": "7"})
    assert config.threads == 7 + REFUSING_THREADS > 7


def test_the_configuration_does_not_change() -> None:
    """What was validated at the start stays as it was."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).port = 1  # type: ignore[misc]


def test_published_settings_are_read_by_whoever_loads_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the master hands over is found by its workers in their environment."""
    monkeypatch.setattr(os, "environ", {"PORT": "1234"})
    publish({"HALT_EMBEDDED_URL": "http://127.0.0.1:2/v1"})
    assert (load().embedded_url, load().port) == ("http://127.0.0.1:2/v1", 1234)


def test_the_data_folder_is_a_whole_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` means what it means in a shell; unset, it is the folder of the user's data."""
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
def test_openais_own_addresses_are_those_of_its_regions_too(url: str, expected: bool) -> None:
    """They are asked in OpenAI's newer words from the first request on."""
    assert is_openai(url) == expected

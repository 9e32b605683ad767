"""The session cookie's name: a prefix over HTTPS, and which cookies count there."""

from __future__ import annotations

from http.cookies import Morsel, SimpleCookie
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from halt.app import create_app
from halt.config.environment import load
from halt.web.services import services
from halt.web.sessions import browser_id

KEY = "a key of sixteen characters"
HTTPS = "https://halt.example"


def application(folder: Path, **settings: str) -> Flask:
    """A Halt with this data folder, for requests under any name."""
    return create_app(load({"HALT_DATA": str(folder), "HALT_SECRET_KEY": KEY, **settings}))


@pytest.fixture
def anonymous(tmp_path: Path) -> Flask:
    """A Halt whose visitors are known by their cookie alone."""
    return application(tmp_path, HALT_ALLOW_ANONYMOUS="1", HOST="10.0.0.1")


def set_cookie(client: FlaskClient, url: str, path: str = "", cookie: str = "") -> Morsel[str]:
    """The session cookie that the page sets at this address, for a browser with this cookie."""
    headers = {"Accept": "text/html", **({"Cookie": cookie} if cookie else {})}
    environ = {"SCRIPT_NAME": path} if path else {}
    response = client.get("/", base_url=url, headers=headers, environ_overrides=environ)
    jar: SimpleCookie = SimpleCookie(response.headers["Set-Cookie"])
    (morsel,) = jar.values()
    return morsel


def browser_of(app: Flask, url: str, cookie: str) -> str:
    """The browser's ID in a request with this cookie; "" for a new one."""
    with app.test_request_context("/", base_url=url, headers={"Cookie": cookie}):
        return browser_id()


@pytest.mark.parametrize(
    ("url", "path", "prefix"),
    [
        ("http://halt.example", "", ""),
        ("http://halt.example", "/halt", ""),
        (HTTPS, "", "__Host-"),
        (HTTPS, "/halt", "__Secure-"),
    ],
)
def test_cookie_has_a_prefix_over_https(anonymous: Flask, url: str, path: str, prefix: str) -> None:
    """Over HTTPS the name says that only this host sets it (`__Host-`), or that it is Secure."""
    morsel = set_cookie(anonymous.test_client(use_cookies=False), url, path)
    plain_name = anonymous.session_interface.get_cookie_name(anonymous)
    assert morsel.key == f"{prefix}{plain_name}"
    assert bool(morsel["secure"]) is bool(prefix)
    assert (morsel["path"], morsel["domain"]) == ("/", "")
    assert (morsel["samesite"], bool(morsel["httponly"])) == ("Lax", True)


@pytest.mark.parametrize("mode", [{"HALT_TOKEN": "long-enough"}, {"HALT_USERS": "1"}])
def test_cookie_without_the_prefix_is_nothing_over_https(
    tmp_path: Path, mode: dict[str, str]
) -> None:
    """A sibling host could set a cookie without the prefix, so that it does not sign in."""
    app = application(tmp_path, **mode)
    services(app).sessions.prepare(app)
    serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
    value = serializer.dumps({"owner": "planted-browser"})
    name = app.session_interface.get_cookie_name(app)
    for cookie_name in (name, f"__Secure-{name}", "halt_session_8000"):
        assert browser_of(app, HTTPS, f"{cookie_name}={value}") == ""
    assert browser_of(app, HTTPS, f"__Host-{name}={value}") == "planted-browser"
    assert browser_of(app, "http://halt.example", f"{name}={value}") == "planted-browser"
    assert browser_of(app, "http://halt.example", f"__Host-{name}={value}") == ""


def test_stranger_keeps_the_list_at_an_upgrade(anonymous: Flask) -> None:
    """In the mode `anonymous` a browser's earlier cookie continues under the prefixed name; once
    there is one, the earlier cookie no longer counts.
    """
    client = anonymous.test_client(use_cookies=False)
    first = set_cookie(client, "http://halt.example")
    other = set_cookie(client, "http://halt.example")
    earlier = f"{first.key}={first.value}"
    known = browser_of(anonymous, HTTPS, earlier)
    assert known
    upgraded = set_cookie(client, HTTPS, cookie=f"halt_session_8000={other.value}; {earlier}")
    assert upgraded.key == f"__Host-{first.key}"
    cookies = f"{first.key}={other.value}; {upgraded.key}={upgraded.value}"
    assert browser_of(anonymous, HTTPS, cookies) == known
    assert browser_of(anonymous, HTTPS, f"halt_session_8000={first.value}") == known


def test_cookies_of_two_halts_on_one_host_stand_side_by_side(tmp_path: Path) -> None:
    """Halts with one key and two data folders neither replace nor read each other's cookie."""
    morsels = []
    apps = [
        application(tmp_path / name, HALT_ALLOW_ANONYMOUS="1", HOST="10.0.0.1")
        for name in ("first", "second")
    ]
    for app in apps:
        morsels.append(set_cookie(app.test_client(use_cookies=False), HTTPS))
    assert morsels[0].key != morsels[1].key
    cookies = "; ".join(f"{morsel.key}={morsel.value}" for morsel in morsels)
    known = [browser_of(app, HTTPS, cookies) for app in apps]
    assert len(set(known) - {""}) == 2
    assert browser_of(apps[1], HTTPS, f"{morsels[0].key}={morsels[0].value}") == ""

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
from halt.web.sessions import browser_id, ensure_browser_id

KEY = "a key of sixteen characters"
NEW_KEY = "another key of sixteen characters"
HTTPS = "https://halt.example"


def application(folder: Path, **settings: str) -> Flask:
    """A Halt with this data folder, for requests under any name."""
    return create_app(load({"HALT_DATA": str(folder), "HALT_SECRET_KEY": KEY} | settings))


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


@pytest.mark.parametrize(
    ("url", "path"), [("http://halt.example", ""), (HTTPS, ""), (HTTPS, "/halt")]
)
@pytest.mark.parametrize("mode", [{"HALT_USERS": "1"}, {"HALT_ALLOW_ANONYMOUS": "1"}])
def test_session_goes_on_when_the_key_is_changed(
    tmp_path: Path, mode: dict[str, str], url: str, path: str
) -> None:
    """With HALT_SECRET_KEY_OLD a browser keeps its session, and gets a cookie of the new key."""
    environ = {"SCRIPT_NAME": path} if path else {}

    def known(app: Flask, cookie: str) -> str:
        with app.test_request_context(
            "/", base_url=url, headers={"Cookie": cookie}, environ_overrides=environ
        ):
            return browser_id()

    def renewed(app: Flask, cookie: str) -> str:
        """The session's cookie after a response that sets it."""
        with app.test_request_context(
            "/", base_url=url, headers={"Cookie": cookie}, environ_overrides=environ
        ):
            response = app.process_response(app.response_class())
        jar: SimpleCookie = SimpleCookie(response.headers.get("Set-Cookie"))
        return "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())

    first = application(tmp_path, **mode)
    with first.test_request_context("/", base_url=url, environ_overrides=environ):
        session_id = ensure_browser_id()
        response = first.process_response(first.response_class())
    former = response.headers["Set-Cookie"].partition(";")[0]

    rotating = application(tmp_path, **mode, HALT_SECRET_KEY=NEW_KEY, HALT_SECRET_KEY_OLD=KEY)
    assert known(rotating, former) == session_id
    new = renewed(rotating, former)
    assert new.partition("=")[0] != former.partition("=")[0]
    assert known(rotating, f"{new}; {former}") == session_id
    assert renewed(rotating, f"{new}; {former}") == ""  # it is renewed once

    after = application(tmp_path, **mode, HALT_SECRET_KEY=NEW_KEY)
    assert known(after, new) == session_id
    assert known(after, former) == ""
    assert known(after, f"{former.replace(former.partition('=')[0], new.partition('=')[0])}") == ""
    # A host that has the former key alone still gets its own cookie.
    assert known(first, f"{new}; {former}") == session_id


def test_unprefixed_cookie_of_the_former_key_is_nothing_over_https(tmp_path: Path) -> None:
    """What a sibling host could set does not sign in during a change of the key either."""
    former = application(tmp_path, HALT_USERS="1")
    name = former.session_interface.get_cookie_name(former)
    serializer = former.session_interface.get_signing_serializer(former)  # type: ignore[attr-defined]
    value = serializer.dumps({"owner": "planted-browser"})
    app = application(tmp_path, HALT_USERS="1", HALT_SECRET_KEY=NEW_KEY, HALT_SECRET_KEY_OLD=KEY)
    assert browser_of(app, HTTPS, f"{name}={value}") == ""
    assert browser_of(app, HTTPS, f"__Host-{name}={value}") == "planted-browser"
    assert browser_of(app, "http://halt.example", f"{name}={value}") == "planted-browser"


def test_cookie_of_a_third_key_is_no_session(tmp_path: Path) -> None:
    """A cookie under any of the names, signed with a key that is not set, is no session."""
    third = application(tmp_path, HALT_USERS="1", HALT_SECRET_KEY="a third key of 16 characters")
    serializer = third.session_interface.get_signing_serializer(third)  # type: ignore[attr-defined]
    value = serializer.dumps({"owner": "planted-browser"})
    former = application(tmp_path, HALT_USERS="1")
    app = application(tmp_path, HALT_USERS="1", HALT_SECRET_KEY=NEW_KEY, HALT_SECRET_KEY_OLD=KEY)
    for each in (third, former, app):
        name = each.session_interface.get_cookie_name(each)
        assert browser_of(app, "http://halt.example", f"{name}={value}") == ""

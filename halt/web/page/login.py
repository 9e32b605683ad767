"""How a browser signs in and out, by the way in which this Halt knows its people."""

from __future__ import annotations

from flask import Response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import API_TOKEN_WRONG
from halt.store.sign_ins import SignIn
from halt.web.access import count_wrong_token, has_login, login_digest, token_matches
from halt.web.identity import identify, refusal_response
from halt.web.page import accounts, oidc
from halt.web.responses import RequestRefused, error_response
from halt.web.return_path import return_path, return_url
from halt.web.services import services
from halt.web.sign_ins import end_sign_in, sign_in_digest
from halt.web.token_failures import too_many_message

Answer = BaseResponse | tuple[str, int] | str


def login() -> Answer:
    """The page on which a browser signs in, and what its form sends."""
    return _OF_MODE[services().mode]()


def logout() -> Answer:
    """End the sign-in of this browser. Its session stays.

    The route is public: a browser signs out also while it cannot be told whose sign-in it has.
    """
    return left(end_sign_in()) if has_sign_in() else redirect(url_for("pages.login"))


def left(ended: SignIn | None) -> Answer:
    """The response after the end of the browser's sign-in, which its cookie loses."""
    session.pop("sign_in", None)
    session.pop("login", None)
    if services().mode == "oidc":
        return oidc.signed_out(ended)
    return redirect(url_for("pages.login"))


def has_sign_in() -> bool:
    """Whether the browser is signed in, so that it can sign out."""
    return bool(sign_in_digest()) or (bool(services().config.token) and has_login())


def _with_token() -> Answer:
    if not services().config.token:
        return redirect(url_for("pages.index"))
    if request.method != "POST":
        return _token_form()
    token = request.form.get("token", "").strip()
    if token_matches(token):
        session["login"] = login_digest()
        session.permanent = True
        return redirect(return_url())
    if token and (wait := count_wrong_token()):
        response = Response(_token_form(too_many_message(wait)), 429)
        response.headers["Retry-After"] = str(wait)
        return response
    return _token_form("That is not the token. Try again."), 401


def _token_form(fault: str = "") -> str:
    return render_template("login.html", fault=fault, next=return_path())


def _without() -> Answer:
    return redirect(url_for("pages.index"))


def _by_proxy() -> Answer:
    """There is no sign-in: the proxy names the person in each request, or has to."""
    if identify():
        return redirect(return_url())
    return refusal_response() or error_response(
        RequestRefused(401, "unauthorized", API_TOKEN_WRONG)
    )


_OF_MODE = {
    "mine": _with_token,
    "anonymous": _without,
    "accounts": accounts.login,
    "header": _by_proxy,
    "oidc": oidc.login,
}

"""The login page, which takes the access token, and the end of a login."""

from __future__ import annotations

from flask import Response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.web.access import count_wrong_token, login_digest, token_matches
from halt.web.services import services
from halt.web.token_failures import too_many_message


def login() -> BaseResponse | tuple[str, int] | str:
    if not services().config.token:
        return redirect(url_for("pages.index"))
    if request.method != "POST":
        return render_template("login.html")
    token = request.form.get("token", "").strip()
    if token_matches(token):
        session["login"] = login_digest()
        session.permanent = True
        return redirect(url_for("pages.index"))
    if token and (wait := count_wrong_token()):
        response = Response(render_template("login.html", fault=too_many_message(wait)), 429)
        response.headers["Retry-After"] = str(wait)
        return response
    return render_template("login.html", fault="That is not the token. Try again."), 401


def logout() -> BaseResponse:
    """End the login of this browser. Its session stays: the next login shows the same chats."""
    session.pop("login", None)
    return redirect(url_for("pages.login"))

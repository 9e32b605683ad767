"""Sign-in and sign-out by OpenID Connect."""

from __future__ import annotations

from flask import redirect, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.store.sign_ins import SignIn
from halt.web.responses import RequestRefused


def login() -> BaseResponse | tuple[str, int] | str:
    """The page with the link to the provider. It returns to `return_path()`."""
    raise RequestRefused(503, "sign_in_unavailable", "Nobody can sign in yet.")


def signed_out(ended: SignIn | None) -> BaseResponse | tuple[str, int] | str:
    """After the end of the sign-in here: the page whose link ends the one at the provider."""
    return redirect(url_for("pages.login"))

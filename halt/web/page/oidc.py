"""Sign-in and sign-out by OpenID Connect: the links, and the way back from the provider.

A browser's session holds the sign-ins that it has begun, so that several tabs can sign in at once.
Each is used once. The cookie is signed, not encrypted: it has only the state of each. The nonce and
PKCE's verifier, which must stay secret, follow from the state and the key of the signatures.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING

from flask import (
    Blueprint,
    current_app,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import HaltError
from halt.people.oidc.attempt import OVER, Attempt, ProviderFault, SignInRefused, readable
from halt.store.people import PersonRow
from halt.store.sign_ins import SignIn
from halt.web.identity import identify
from halt.web.requests import wants_page
from halt.web.responses import error_page, error_response
from halt.web.return_path import return_path, return_url
from halt.web.services import services
from halt.web.sign_ins import begin_sign_in

if TYPE_CHECKING:
    from halt.people.oidc.provider import Provider

BEGUN_MAX = 5  # sign-ins that a browser has begun; a cookie has 4 kB at most
BEGUN_SECONDS = 600
PATH_MAX = 250  # characters of a path to return to; a longer one is forgotten

Answer = BaseResponse | tuple[str, int] | str

logger = logging.getLogger(__name__)

blueprint = Blueprint("oidc", __name__)


def login() -> Answer:
    """The page with the link to the provider. It returns to `return_path()`."""
    if identify():
        return redirect(return_url())
    return render_template("sign_in.html", host=_provider().host, next=return_path() or None)


@blueprint.get("/login/oidc")
def start() -> Answer:
    """Begin a sign-in: lead the browser to the provider. `again`: maybe as another person."""
    state, path = secrets.token_urlsafe(16), return_path()
    prompt = "login" if request.args.get("again") else ""
    try:
        url = _provider().authorization_url(_attempt(state), _callback_url(), prompt=prompt)
    except ProviderFault as fault:
        return _refused(fault, path)
    begun = [state, int(time.time()), path if len(path) <= PATH_MAX else ""]
    session["oidc"] = [*_begun()[1 - BEGUN_MAX :], begun]
    session.permanent = True
    return redirect(url)


@blueprint.get("/login/oidc/callback")
def callback() -> Answer:
    """The provider sends the browser here, with a code or an error."""
    state = request.args.get("state", "")
    all_begun = _begun()
    mine = [begun for begun in all_begun if begun[0] == state]
    if not mine and identify():  # opened again, by Back or a reload
        return redirect(url_for("pages.index"))
    if not mine:  # any client can cause this, so the log has no line of it
        return _page(SignInRefused(OVER), "")
    session["oidc"] = [begun for begun in all_begun if begun not in mine]
    path = mine[0][2]
    try:
        _sign_in(_attempt(mine[0][0]))
    except HaltError as fault:
        return _refused(fault, path)
    return redirect(f"{request.script_root}{path}" if path else url_for("pages.index"))


def signed_out(ended: SignIn | None) -> Answer:
    """After the end of the sign-in here: the page whose link ends the one at the provider."""
    back = url_for("pages.login", _external=True)
    try:
        url = _provider().end_session_url(ended.id_token if ended else None, back)
    except ProviderFault as fault:
        logger.warning("no sign-out at the provider: %s", fault.message)
        url = ""
    return render_template("signed_out.html", host=_provider().host, url=url)


def _sign_in(attempt: Attempt) -> None:
    """Sign the browser in as the person whom the provider names. Raises HaltError."""
    provider, arguments = _provider(), request.args
    if "error" in arguments:
        words = [readable(arguments.get(key)) for key in ("error", "error_description")]
        quoted = ": ".join(filter(None, words))
        raise SignInRefused(f"{provider.host} did not sign you in.", quoted=quoted)
    issuer = arguments.get("iss")
    if issuer is not None and issuer != provider.issuer:
        raise SignInRefused(f"The answer does not come from {provider.host}.")
    if not (code := arguments.get("code", "")):
        raise SignInRefused(f"{provider.host} sent neither a code nor an error.")
    signed_in = provider.sign_in(attempt, _callback_url(), code)
    people = services().store.people
    people.ensure(signed_in.person)
    row: PersonRow | None = people.get(signed_in.person.id)
    if row is None or row.disabled_at is not None or row.removed_at is not None:
        raise SignInRefused("This Halt's administrator does not let you in.")
    begin_sign_in(row, id_token=signed_in.id_token)


def _provider() -> Provider:
    provider = services().oidc
    assert provider is not None  # noqa: S101 - the routes exist in this mode alone
    return provider


def _callback_url() -> str:
    """Where the provider sends the browser: the address must be registered there."""
    return url_for("oidc.callback", _external=True)


def _begun() -> list[tuple[str, int, str]]:
    """The sign-ins that this browser has begun and can still end; the oldest first."""
    since = time.time() - BEGUN_SECONDS
    return [(state, at, path) for state, at, path in session.get("oidc", ()) if at >= since]


def _attempt(state: str) -> Attempt:
    """The secret values of the sign-in with this state, computed with the application's key."""
    key = services().sessions.key(current_app).encode()

    def derived(name: str) -> str:
        digest = hmac.new(key, f"oidc {name} {state}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    return Attempt(state, derived("nonce"), derived("verifier"))


def _refused(fault: HaltError, path: str) -> Answer:
    """The page about a refused sign-in, and one line in the log."""
    quoted = getattr(fault, "quoted", "")
    logger.warning("a sign-in was refused: %s%s", fault.message, f" ({quoted})" if quoted else "")
    return _page(fault, path)


def _page(fault: HaltError, path: str) -> Answer:
    if not wants_page():
        return error_response(fault)
    page = render_template(
        "sign_in_refused.html",
        message=fault.message,
        quoted=getattr(fault, "quoted", ""),
        status=fault.status,
        next=path or None,
    )
    return error_page(page, fault)

"""The account page: who a person is, the person's sign-ins and API tokens.

The page works without scripts: each change is a form of `/account`, whose field `do` names it. The
response to a change is a redirect to the page, which says what was done, or the page with the
error. A new API token is shown in the response to its form, and nowhere else.

Sign-ins and API tokens are looked for among the person's own, so another person's ID behaves as one
that does not exist. Administrators have a further page with the counts of all people.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from flask import (
    Blueprint,
    Flask,
    abort,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from halt.core.decoding import is_number
from halt.errors import HaltError, RequestError
from halt.people.accounts import check_repeated
from halt.people.attempts import WrongPassword
from halt.people.known import digest_of, new_api_token
from halt.people.names import NAME_MAX, checked_name
from halt.people.passwords import PASSWORD_MIN
from halt.store.sign_ins import ApiToken, SignIn
from halt.web.identity import credential, owner, person, person_tag, save_person
from halt.web.page import accounts
from halt.web.page.login import left, logout
from halt.web.page.user_agents import browser_name
from halt.web.requests import is_plain_form_post
from halt.web.responses import RequestRefused, error_page, error_response
from halt.web.services import services
from halt.web.sign_ins import sign_in_digest

PEOPLE_SHOWN = 100  # on one page of the counts
PAGE_MAX = 1_000_000
FORMS_KNOWN = 10  # forms of a browser that have made a token
_FORM_ID = re.compile(r"[\w-]{8,32}", re.ASCII)

#: What the page says after a change.
DONE = {
    "password": "Password changed. Your other sign-ins have ended.",
    "end": "Sign-in ended. That browser is asked to sign in again at its next click.",
    "revoke": "API token revoked. Programs that use it are refused within 2 seconds.",
}

Answer = BaseResponse | str | tuple[str, int]

blueprint = Blueprint("account", __name__)


@dataclass(frozen=True)
class SignInView:
    """A signed-in browser as the page shows it."""

    id: str
    name: str  # of the browser and its system
    address: str
    created_at: float
    seen_at: float
    is_this: bool  # the browser that requests the page


@dataclass(frozen=True)
class Fault:
    """An error on the page: the change that was refused, the field of its form, and the text."""

    action: str
    field: str | None
    message: str


def install(app: Flask) -> None:
    """Install the routes, and the functions that templates use, in the application."""
    app.jinja_env.globals["has_account"] = has_account
    app.jinja_env.globals["person_name"] = lambda: person().name
    app.jinja_env.globals["person_tag"] = person_tag
    app.register_blueprint(blueprint)


def has_account() -> bool:
    """Whether there is an account page: people sign in, or have API tokens."""
    return services().known is not None


@blueprint.before_request
def _check() -> None:
    """Refuse the page where there is none, and to programs.

    A token that has become known must end when it is revoked. So it cannot make further tokens, and
    cannot end its person's sign-ins.
    """
    if not has_account():
        abort(404)
    if is_program():
        raise RequestRefused(
            403, "browsers_only", "The account page is for browsers: no API token may use it."
        )


def is_program() -> bool:
    """Whether the request has an API token."""
    return bool(credential()) and credential() != sign_in_digest()


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> Answer:
    """The page with the error, if a person's browser has sent a form and the page can be made."""
    if "person" not in g or is_program() or not is_plain_form_post():  # the guard's error
        return error_response(error)
    if (action := request.form.get("do", "")) not in _ACTIONS:
        return error_response(error)
    try:
        field = "old" if isinstance(error, WrongPassword) else error.field
        page = _page(fault=Fault(action, field, error.message))
    except HaltError:  # the database does not answer
        return error_response(error)
    return error_page(page, error)


@blueprint.get("/account")
def show() -> str:
    """The account page. `done` names the change that was made last."""
    return _page(done=DONE.get(request.args.get("done", ""), ""))


@blueprint.post("/account")
def change() -> Answer:
    """Make the change that the form names. Raises RequestError."""
    action = _ACTIONS.get(request.form.get("do", ""))
    if action is None:
        raise RequestError(f"do must be one of {', '.join(_ACTIONS)}.", field="do")
    return action()


@blueprint.get("/account/people")
def people() -> str:
    """How much each person has, for administrators."""
    if not person().is_admin:
        abort(404)
    number = request.args.get("page", "1")
    page = min(max(1, int(number)), PAGE_MAX) if is_number(number) else 1
    rows = services().store.people.counts(
        services().mode, limit=PEOPLE_SHOWN + 1, offset=(page - 1) * PEOPLE_SHOWN
    )
    return render_template(
        "account_people.html", people=rows[:PEOPLE_SHOWN], page=page, more=len(rows) > PEOPLE_SHOWN
    )


def public_id(digest: str) -> str:
    """By what forms name a sign-in or an API token: its digest stays on the server."""
    return blake2b(digest.encode(), digest_size=9, person=b"halt account").hexdigest()


def _signs_in() -> bool:
    return services().mode in {"accounts", "oidc"}


def _page(
    *, done: str = "", fault: Fault | None = None, new_token: str = "", token_name: str = ""
) -> str:
    store, owner_id = services().store, owner()
    signed_in = store.sign_ins.of_person(owner_id) if _signs_in() else []
    return render_template(
        "account.html",
        config=services().config,
        mode=services().mode,
        name=person().name or "You",
        row=store.people.get(owner_id),
        is_admin=person().is_admin,
        sign_ins=[_view(sign_in) for sign_in in signed_in],
        has_sign_ins=_signs_in(),
        tokens=[(public_id(token.digest), token) for token in store.sign_ins.tokens(owner_id)],
        name_max=NAME_MAX,
        password_min=PASSWORD_MIN,
        form_id=secrets.token_urlsafe(12),
        typed_name=request.form.get("name", "") if fault and fault.action == "make" else "",
        done=done,
        fault=fault,
        new_token=new_token,
        token_name=token_name,
    )


def _view(sign_in: SignIn) -> SignInView:
    return SignInView(
        id=public_id(sign_in.digest),
        name=browser_name(sign_in.agent),
        address=sign_in.address,
        created_at=sign_in.created_at,
        seen_at=sign_in.seen_at,
        is_this=sign_in.digest == credential(),
    )


def _done(action: str) -> BaseResponse:
    return redirect(url_for("account.show", done=action), 303)


def _forget(digest: str) -> None:
    """Let this worker's requests with the token ask the database at once."""
    known = services().known
    assert known is not None  # noqa: S101 - there is an account page
    known.forget(digest)


# --- the changes ----------------------------------------------------------------------------------


def _password() -> Answer:
    """Change the person's password and end the other sign-ins."""
    if services().accounts is None:
        abort(404)
    form = request.form
    check_repeated(form.get("new", ""), form.get("repeated", ""))
    accounts.change_password(form.get("old", ""), form.get("new", ""))
    return _done("password")


def _end() -> Answer:
    """End one of the person's sign-ins; this browser's own one as signing out does."""
    store, chosen = services().store.sign_ins, request.form.get("id", "")
    signed_in = store.of_person(owner()) if _signs_in() else []
    ended = next((one for one in signed_in if public_id(one.digest) == chosen), None)
    if ended is None:
        raise RequestRefused(404, "unknown_entry", "This sign-in has already ended.")
    if ended.digest == credential():
        return logout()
    store.end(ended.digest, person_id=owner())
    _forget(ended.digest)
    return _done("end")


def _end_all() -> Answer:
    """End all sign-ins of the person, this browser's own one too. API tokens stay."""
    if not _signs_in():
        abort(404)
    store = services().store.sign_ins
    signed_in = store.of_person(owner())
    store.end_all(owner())
    for sign_in in signed_in:
        _forget(sign_in.digest)
    return left(next((one for one in signed_in if one.digest == credential()), None))


def _make() -> Answer:
    """Make an API token and show it. The same form makes no second one."""
    name = checked_name(" ".join(request.form.get("name", "").split()))
    form_id = request.form.get("form", "")
    forms = [form for form in session.get("forms", ()) if isinstance(form, str)]
    if form_id in forms:
        raise RequestRefused(
            409,
            "token_made",
            "This form has already made a token. Its text was shown once. If you have not kept it, "
            "revoke that token and make another one.",
        )
    token = new_api_token()
    save_person()
    services().store.sign_ins.add_token(owner(), digest_of(token), name)
    if _FORM_ID.fullmatch(form_id):
        session["forms"] = [form_id, *forms][:FORMS_KNOWN]
    return _page(new_token=token, token_name=name)


def _revoke() -> Answer:
    """Revoke one of the person's API tokens."""
    store, chosen = services().store.sign_ins, request.form.get("id", "")
    tokens: list[ApiToken] = store.tokens(owner())
    token = next((one for one in tokens if public_id(one.digest) == chosen), None)
    if token is None or not store.remove_token(owner(), token.digest):
        raise RequestRefused(404, "unknown_entry", "This API token has already been revoked.")
    _forget(token.digest)
    return _done("revoke")


#: By the value of the field `do`.
_ACTIONS: dict[str, Callable[[], Answer]] = {
    "end": _end,
    "end-all": _end_all,
    "make": _make,
    "password": _password,
    "revoke": _revoke,
}

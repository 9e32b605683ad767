"""The pages of accounts: a sign-in with name and password, and one-time links."""

from __future__ import annotations

from flask import Response, abort, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import HaltError, StoreUnavailable
from halt.people.accounts import WRONG, Accounts, LinkGone, check_repeated
from halt.people.attempts import Origin, WrongPassword
from halt.people.names import NAME_MAX
from halt.web.identity import identify, person
from halt.web.requests import client_address
from halt.web.responses import error_page, error_response
from halt.web.return_path import return_path, return_url
from halt.web.services import services
from halt.web.sessions import browser_id, ensure_browser_id
from halt.web.sign_ins import begin_sign_in, end_sign_in, renew_sign_in

KNOWN_MAX = 5  # people whom a browser's cookie remembers; the one before them is forgotten


def login() -> BaseResponse:
    """The form that asks for name and password, and what it sends."""
    if request.method != "POST":
        return redirect(return_url()) if identify() else _form()
    accounts = _accounts()
    name, password = request.form.get("name", ""), request.form.get("password", "")
    try:
        account = accounts.sign_in(name, password, _origin())
        begin_sign_in(account.person)
        try:
            if not accounts.is_current(account):
                raise WrongPassword(WRONG)
        except HaltError:
            end_sign_in()
            raise
        _remember(account.person.id)
    except HaltError as fault:
        return _form(fault, name)
    return redirect(return_url())


def link() -> BaseResponse:
    """A one-time link's form for a new password, and what it sends. To open it uses nothing up."""
    if services().accounts is None:
        abort(404)
    accounts, token = _accounts(), request.values.get("key", "")
    try:
        name = accounts.link_account(token).person.name
        if request.method != "POST":
            return _link_form(token, name)
        password = request.form.get("password", "")
        try:
            check_repeated(password, request.form.get("repeated", ""))
            account_person = accounts.use_link(token, password)
        except LinkGone:
            raise
        except HaltError as fault:
            return _link_form(token, name, fault)
        begin_sign_in(account_person)
        _remember(account_person.id)
    except LinkGone as fault:
        return error_response(
            LinkGone(f"{fault.message} Ask the operator of this Halt for a new link.")
        )
    return redirect(url_for("pages.index"))


def change_password(old: str, new: str) -> None:
    """Change the requesting person's password; see `Accounts.change_password`.

    The other sign-ins end, and this browser's one gets a new token: a copied cookie ends too.
    """

    def change(keep: str, renewed: str) -> None:
        _accounts().change_password(
            person().id, old, new, origin=_origin(), keep=keep, renewed=renewed
        )

    renew_sign_in(change)


def _accounts() -> Accounts:
    accounts = services().accounts
    assert accounts is not None  # noqa: S101 - the mode is `accounts`
    return accounts


def _origin() -> Origin:
    return Origin(client_address(), browser_id(), frozenset(_known_to()))


def _known_to() -> list[str]:
    """The IDs of the people who have signed in with this browser; the last one first."""
    known = session.get("known")
    return [item for item in known if isinstance(item, str)] if isinstance(known, list) else []


def _remember(person_id: str) -> None:
    ensure_browser_id()
    others = [item for item in _known_to() if item != person_id]
    session["known"] = [person_id, *others][:KNOWN_MAX]


def _form(fault: HaltError | None = None, name: str = "") -> Response:
    page = render_template(
        "sign_in_password.html",
        fault=fault,
        name=name[:NAME_MAX].replace("\0", ""),
        next=return_path(),
        has_accounts=fault is not None or _has_accounts(),
    )
    return Response(page) if fault is None else error_page(page, fault)


def _has_accounts() -> bool:
    """Whether there is an account; True while the database does not answer."""
    try:
        return _accounts().has_any()
    except StoreUnavailable:
        return True  # the form shows the fault when it is sent


def _link_form(token: str, name: str, fault: HaltError | None = None) -> Response:
    page = render_template("link.html", fault=fault, name=name, key=token)
    response = Response(page) if fault is None else error_page(page, fault)
    # No request has the address with the token in its `Referer`. With `no-referrer` the form's
    # `Origin` would be `null`, and on a network without TLS nothing else says where it comes from.
    response.headers["Referrer-Policy"] = "strict-origin"
    return response

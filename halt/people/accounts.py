"""Accounts: a name and a password, kept in the database (HALT_USERS)."""

from __future__ import annotations

import secrets
import time

from halt.errors import HaltError, RequestError
from halt.people.attempts import Attempts, Origin, WrongPassword
from halt.people.known import digest_of, new_token
from halt.people.names import NAME_MAX, checked_name, name_key
from halt.people.passwords import Passwords, checked_password, is_same
from halt.people.person import person_id
from halt.store.accounts import AccountRow, AccountRows, Link
from halt.store.people import PersonRow

LINK_SECONDS = 3 * 86_400.0  # for which a one-time link is valid

WRONG = "There is no account with this name and password. Try again."


class Disabled(HaltError):
    """The account exists, and may not be used now."""

    code = "account_disabled"
    status = 403


class LinkGone(HaltError):
    """The one-time link does not exist, has been used, or is out of time."""

    code = "link_gone"
    status = 410


class Accounts:
    """The accounts of one application, for its pages. Threads may share it.

    Every method raises StoreUnavailable if the database does not answer.
    """

    def __init__(self, rows: AccountRows, attempts: Attempts) -> None:
        self._rows, self._attempts, self._passwords = rows, attempts, Passwords()
        self._has_any = False  # accounts are seldom removed: once True it stays

    def has_any(self) -> bool:
        """Whether there is an account to sign in with."""
        self._has_any = self._has_any or self._rows.has_any()
        return self._has_any

    def sign_in(self, name: str, password: str, origin: Origin) -> AccountRow:
        """The account with this name and password.

        A wrong name and a wrong password are the same and take the same time. Raises WrongPassword,
        TooManyRequests, NotCounted, AtCapacity, Disabled.
        """
        key = name_key(name[: 2 * NAME_MAX])
        account = self._rows.find(key)
        if account is not None and account.person.removed_at is not None:
            account = None
        self._compare(key, account, password, origin, WRONG)
        assert account is not None  # noqa: S101 - `_compare` has refused the attempt
        if account.person.disabled_at is not None:
            raise Disabled("This account is disabled. The one who runs this Halt can enable it.")
        return account

    def is_current(self, account: AccountRow) -> bool:
        """Whether the password is still this one: it may have been set since it was compared."""
        now_saved = self._rows.of_person(account.person.id)
        return now_saved is not None and now_saved.password == account.password

    def change_password(
        self,
        person_id: str,
        old: str,
        new: str,
        *,
        origin: Origin,
        keep: str = "",
        renewed: str = "",
    ) -> int:
        """Change one's own password; end all of the person's sign-ins but `keep`, a digest.

        That one has the digest `renewed` from then on, where given.

        Returns the number of ended sign-ins; API tokens stay. Wrong old passwords are counted like
        those of sign-ins. Raises RequestError (field `new`), WrongPassword, TooManyRequests,
        NotCounted, AtCapacity.
        """
        checked_password(new, "new")
        if is_same(old, new):
            raise RequestError("The new password is the old one. Choose another one.", field="new")
        account = self._rows.of_person(person_id)
        wrong = "The old password is wrong. Nothing was changed."
        key = "" if account is None else name_key(account.person.name)
        self._compare(key, account, old, origin, wrong)
        assert account is not None  # noqa: S101 - as above
        ended = self._rows.set_password(
            person_id,
            self._passwords.hash(new),
            replaced=account.password,
            keep=keep,
            renewed=renewed,
        )
        if ended is None:
            raise WrongPassword(wrong)
        return ended

    def link_account(self, token: str) -> AccountRow:
        """The account that a one-time link is for. Raises LinkGone."""
        account = self._rows.of_link(digest_of(token))
        if account is None or account.person.removed_at is not None:
            raise LinkGone("This link has been used, or it was replaced or is incomplete.")
        if (account.link_until or 0) <= time.time():
            raise LinkGone("This link is out of time.")
        if account.person.disabled_at is not None:
            raise LinkGone("The account of this link is disabled.")
        return account

    def use_link(self, token: str, password: str) -> PersonRow:
        """Set the password of the link's account; the link is used up.

        Raises LinkGone, RequestError (field `password`), AtCapacity.
        """
        self.link_account(token)
        password_hash = self._passwords.hash(checked_password(password))
        person = self._rows.use_link(digest_of(token), password_hash)
        if person is None:
            raise LinkGone("This link has been used, or it was replaced or is incomplete.")
        return person

    def _compare(
        self, key: str, account: AccountRow | None, password: str, origin: Origin, wrong: str
    ) -> None:
        """Raises WrongPassword with that message, TooManyRequests, NotCounted, AtCapacity."""
        known_id = None if account is None else account.person.id
        with self._attempts.counted(key, known_id, origin):
            saved = None if account is None else account.password
            if not self._passwords.matches(saved, password):
                raise WrongPassword(wrong)


def new_person(name: str) -> PersonRow:
    """A person with a new account. Added again after a removal it is a new person.

    Raises RequestError.
    """
    subject = secrets.token_urlsafe(16)
    return PersonRow(
        person_id("accounts", "", subject), "accounts", "", subject, checked_name(name)
    )


def new_link() -> tuple[str, Link]:
    """A one-time link's token and what the database knows of it."""
    token = new_token()
    return token, Link(digest_of(token), time.time() + LINK_SECONDS)


def check_repeated(password: str, repeated: str) -> None:
    """Check that a new password was typed twice. Raises RequestError."""
    if password != repeated:
        raise RequestError("The two passwords are not the same.", field="repeated")

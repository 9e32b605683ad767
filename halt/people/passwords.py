"""Computes and compares scrypt hashes of passwords, a few at once: each takes 0.14 s of CPU."""

from __future__ import annotations

import contextlib
import threading
import unicodedata
from collections.abc import Iterator

from werkzeug.security import check_password_hash, generate_password_hash

from halt.errors import AtCapacity, RequestError

PASSWORD_MIN, PASSWORD_MAX = 8, 1_000  # characters
METHOD = "scrypt:32768:8:1"
#: Compared where there is no account, or one without a password, so that the time tells nothing.
NO_HASH = f"{METHOD}${'0' * 16}${'0' * 128}"
AT_ONCE = 2  # computations of one worker
WAITING_MAX = 8  # threads that compute or wait; the others must be free, for a Stop above all
WAIT = 2.0  # seconds that a thread waits for its turn


def checked_password(password: str, field: str = "password") -> str:
    """A password that can be set. Raises RequestError."""
    if len(password) < PASSWORD_MIN:
        raise RequestError(f"A password has at least {PASSWORD_MIN} characters.", field=field)
    if len(password) > PASSWORD_MAX:
        raise RequestError(f"A password has at most {PASSWORD_MAX:,} characters.", field=field)
    if not _is_text(password):
        raise RequestError("The password is not valid UTF-8.", field=field)
    return password


def is_same(one: str, other: str) -> bool:
    """Whether two typed passwords count as the same one."""
    return _composed(one) == _composed(other)


class Passwords:
    """The computations of one worker. Threads share it."""

    def __init__(self) -> None:
        self._entered = threading.BoundedSemaphore(WAITING_MAX)
        self._computing = threading.BoundedSemaphore(AT_ONCE)

    def hash(self, password: str) -> str:
        """The salted hash of a password that `checked_password` has passed. Raises AtCapacity."""
        with self._turn():
            return generate_password_hash(_composed(password), METHOD)

    def matches(self, password_hash: str | None, password: str) -> bool:
        """Compare a password, which may be any text. Raises AtCapacity.

        Takes the same time where there is no hash, and for a text that cannot be a password.
        """
        is_possible = len(password) <= PASSWORD_MAX and _is_text(password)
        with self._turn():
            matches = check_password_hash(
                password_hash or NO_HASH, _composed(password) if is_possible else ""
            )
        return matches and is_possible and password_hash is not None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._entered.acquire(blocking=False):
            raise _too_many()
        try:
            if not self._computing.acquire(timeout=WAIT):
                raise _too_many()
            try:
                yield
            finally:
                self._computing.release()
        finally:
            self._entered.release()


def _composed(password: str) -> str:
    """The same for keyboards that compose letters and for those that do not (NFC)."""
    return unicodedata.normalize("NFC", password)


def _is_text(password: str) -> bool:
    try:
        password.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def _too_many() -> AtCapacity:
    return AtCapacity("Many people are signing in now. Try again in a moment.", retry_after=1)

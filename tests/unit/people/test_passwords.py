"""Hashes of passwords, and how many are computed at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from halt.errors import AtCapacity, RequestError
from halt.people import passwords
from halt.people.passwords import NO_HASH, Passwords, checked_password


def test_password_matches_its_hash_alone() -> None:
    """A password matches however the keyboard composes its letters; nothing matches no hash."""
    computing = Passwords()
    saved = computing.hash("Grüße an alle")
    assert computing.matches(saved, "Gru\u0308ße an alle")
    assert not computing.matches(saved, "Grusse an alle")
    assert not computing.matches(None, "Grüße an alle")
    assert not computing.matches(NO_HASH, "")


@pytest.mark.parametrize("password", ["", "x" * 1_001, "a lone \ud800 surrogate"])
def test_text_that_cannot_be_a_password_is_compared_and_matches_nothing(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password of any kind takes the time of a comparison."""
    compared: list[str] = []

    def compare(saved: str, text: str) -> bool:
        compared.append(text)
        return True

    monkeypatch.setattr(passwords, "check_password_hash", compare)
    assert Passwords().matches(NO_HASH, password) is (password == "")
    assert compared == [""]
    with pytest.raises(RequestError):
        checked_password(password)


@pytest.mark.parametrize(
    "limits",
    [{"WAITING_MAX": 1, "WAIT": 60.0}, {"AT_ONCE": 1, "WAIT": 0.0}],
    ids=["too many wait", "none ends in time"],
)
def test_computation_beyond_the_limits_is_refused(
    limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt for which there is no thread or no time is refused with `Retry-After`."""
    may_end, began = threading.Event(), threading.Event()

    def compare(*_: Any) -> bool:
        began.set()
        return may_end.wait()

    monkeypatch.setattr(passwords, "check_password_hash", compare)
    for name, value in limits.items():
        monkeypatch.setattr(passwords, name, value)
    computing = Passwords()
    thread = threading.Thread(target=computing.matches, args=(NO_HASH, "a password"))
    thread.start()
    began.wait()
    try:
        with pytest.raises(AtCapacity) as refused:
            computing.matches(NO_HASH, "a password")
        assert refused.value.retry_after
    finally:
        may_end.set()
        thread.join()
    assert not computing.matches(None, "a password")  # its turn has come

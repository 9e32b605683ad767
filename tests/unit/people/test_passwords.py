"""Hashes of passwords, and how many are computed at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from halt.errors import AtCapacity, RequestError
from halt.people import passwords
from halt.people.passwords import NO_HASH, WAITING_MAX, Passwords, checked_password
from tests.support.waiting import wait_until


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


def test_few_are_computed_at_once_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the threads that compute or wait, an attempt is refused at once."""
    may_go, entered = threading.Event(), threading.Semaphore(0)
    running: list[int] = [0, 0]
    lock = threading.Lock()

    def compare(*_: Any) -> bool:
        with lock:
            running[0] += 1
            running[1] = max(running)
        entered.release()
        may_go.wait()
        with lock:
            running[0] -= 1
        return True

    monkeypatch.setattr(passwords, "check_password_hash", compare)
    monkeypatch.setattr(passwords, "WAIT", 60.0)
    computing = Passwords()
    threads = [
        threading.Thread(target=computing.matches, args=(NO_HASH, "a password"))
        for _ in range(WAITING_MAX)
    ]
    for thread in threads:
        thread.start()
    entered.acquire()
    entered.acquire()
    try:
        wait_until(lambda: computing._entered._value == 0)  # the others have entered, and wait
        with pytest.raises(AtCapacity) as refused:
            computing.matches(NO_HASH, "a password")
        assert refused.value.retry_after
    finally:
        may_go.set()
        for thread in threads:
            thread.join()
    assert running == [0, 2]

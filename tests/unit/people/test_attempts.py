"""Limits of wrong passwords: whom they refuse, and whom not."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from halt.errors import TooManyRequests
from halt.people.attempts import Attempts, NotCounted, Origin, WrongPassword
from halt.store.rate_counters import counters_in

OF_ADDRESS, OF_NAME = 10, 50
ANN = "p_ann"


def attempt(attempts: Attempts, origin: Origin, *, right: bool = False, name: str = "ann") -> str:
    """The result of an attempt: right, wrong, or refused."""
    try:
        with attempts.counted(name, ANN if name == "ann" else None, origin):
            if not right:
                raise WrongPassword("wrong")
    except WrongPassword:
        return "wrong"
    except TooManyRequests as refused:
        return "refused" if refused.retry_after else "refused without a time"
    return "right"


def test_address_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    """After ten wrong passwords an address is refused for all names, by every process."""
    here = Origin("192.0.2.1")
    attempts = Attempts(counters_in(tmp_path))
    assert [attempt(attempts, here) for _ in range(OF_ADDRESS)] == ["wrong"] * OF_ADDRESS
    assert attempt(attempts, here, right=True) == "refused"
    again = Attempts(counters_in(tmp_path))
    assert attempt(again, here, name="nobody") == "refused"
    assert attempt(again, Origin("192.0.2.2"), right=True) == "right"


def test_full_window_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first refused attempt of an address and of a name is logged, by one of all processes. A
    name without an account is not: it may be a password in the wrong field.
    """
    here = Origin("192.0.2.1\n")
    several = [Attempts(counters_in(tmp_path)) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "halt"):
        for attempts in several:
            for _ in range(OF_ADDRESS + 2):
                attempt(attempts, here)
        for name in ("ann", "my-password"):
            for number in range(OF_NAME + 2):
                attempt(several[0], Origin(f"198.51.100.{number}"), name=name)
    refused = "wrong passwords in {} s; further ones are refused with 429"
    assert [record.getMessage() for record in caplog.records] == [
        f"192.0.2.1\\n: more than 10 {refused.format(300)}",
        f"the name 'ann': more than 50 {refused.format(900)}",
        f"the name of no account: more than 50 {refused.format(900)}",
    ]


def test_right_passwords_do_not_count(tmp_path: Path) -> None:
    """Any number of right passwords is accepted, and faults on the way do not count either."""
    here, attempts = Origin("192.0.2.1"), Attempts(counters_in(tmp_path))
    for _ in range(OF_ADDRESS + 1):
        assert attempt(attempts, here, right=True) == "right"
        with pytest.raises(KeyError), attempts.counted("ann", ANN, here):
            raise KeyError
    assert attempt(attempts, here) == "wrong"


def test_one_address_cannot_use_up_a_name(tmp_path: Path) -> None:
    """A thousand attempts from one address leave the name open to all others."""
    attempts = Attempts(counters_in(tmp_path))
    results = [attempt(attempts, Origin("192.0.2.1")) for _ in range(1_000)]
    assert results.count("wrong") == OF_ADDRESS
    assert attempt(attempts, Origin("192.0.2.2"), right=True) == "right"


def test_many_addresses_use_up_a_name_but_not_for_a_known_browser(tmp_path: Path) -> None:
    """Where many addresses guess one name's password, the person's own browser still signs in."""
    attempts = Attempts(counters_in(tmp_path))
    results = [attempt(attempts, Origin(f"192.0.2.{n}")) for n in range(OF_NAME + 5)]
    assert results.count("wrong") == OF_NAME
    assert attempt(attempts, Origin("198.51.100.1"), right=True) == "refused"
    assert attempt(attempts, Origin("198.51.100.1"), right=True, name="bob") == "right"
    known = Origin("192.0.2.1", "a browser", frozenset({ANN}))
    assert attempt(attempts, known, right=True) == "right"
    assert [attempt(attempts, known) for _ in range(11)] == ["wrong"] * 10 + ["refused"]
    of_another = Origin("192.0.2.1", "a browser", frozenset({"p_bob"}))
    assert attempt(attempts, of_another, right=True) == "refused"


def test_many_attempts_at_once_are_not_too_many(tmp_path: Path) -> None:
    """Of attempts that are made at the same time only as many are compared as the limit allows."""
    attempts = Attempts(counters_in(tmp_path))
    all_began = threading.Barrier(30)
    results: list[str] = []

    def run() -> None:
        all_began.wait()
        results.append(attempt(attempts, Origin("192.0.2.1")))

    threads = [threading.Thread(target=run) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 20 + ["wrong"] * OF_ADDRESS


def test_attempt_that_cannot_be_counted_is_not_made(tmp_path: Path) -> None:
    """Without counts nobody could be refused, so no password is compared."""
    (tmp_path / "rates.db").write_bytes(b"not a database" * 100)
    attempts = Attempts(counters_in(tmp_path))
    with pytest.raises(NotCounted), attempts.counted("ann", ANN, Origin("192.0.2.1")):
        pytest.fail("the attempt was made")

"""The ways to know people, and their IDs."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from halt.config.settings import Config
from halt.people.person import ANYONE, MINE, Mode, mode_of, person_id

TOKEN = "a-long-access-token"


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "mine"),
        ({"token": TOKEN}, "mine"),
        ({"token": TOKEN, "host": "192.0.2.1", "allow_anonymous": True}, "mine"),
        ({"allow_anonymous": True}, "anonymous"),
        ({"allow_anonymous": True, "host": "192.0.2.1"}, "anonymous"),
        ({"users": True, "host": "192.0.2.1"}, "accounts"),
        ({"user_header": "Remote-User"}, "header"),
        ({"oidc_issuer": "https://id.example"}, "oidc"),
    ],
)
def test_mode_follows_from_the_settings(settings: dict[str, Any], mode: Mode) -> None:
    """One person is the default and with a token; each other way to know people has a setting."""
    assert mode_of(Config(**settings)) == mode


def test_person_id_is_of_mode_issuer_and_subject() -> None:
    """A person's ID is the same each time, and differs with mode, issuer and subject."""
    people: list[tuple[Mode, str, str]] = [
        ("oidc", "https://id.example", "1"),
        ("oidc", "https://id.example", "2"),
        ("oidc", "https://id.example/", "1"),
        ("oidc", "", "https://id.example\x001"),
        ("header", "https://id.example", "1"),
        ("header", "", "\ud800"),
    ]
    ids = [person_id(*person) for person in people]
    assert ids == [person_id(*person) for person in people]
    for one, other in combinations([*ids, MINE.id, ANYONE.id], 2):
        assert one != other
    assert all(re.fullmatch(r"p_[A-Za-z0-9_-]{22}", one) for one in ids)

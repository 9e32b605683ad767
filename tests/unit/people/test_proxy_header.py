"""The person that a proxy's header names: which connections it is read from, and which values."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from halt.errors import StoreUnavailable
from halt.people.person import person_id
from halt.people.proxy_header import NamedPeople, ProxyHeader, Refusal
from halt.store.migrate import open_database
from halt.store.people import People, PersonRow


def header_of(*addresses: str) -> ProxyHeader:
    """The header Remote-User of proxies at these addresses."""
    return ProxyHeader("Remote-User", addresses)


def person_of(value: str, name: str | None = None) -> PersonRow:
    """The person whom the proxy names by these headers."""
    person = header_of("127.0.0.1").read("127.0.0.1", value, name)
    assert isinstance(person, PersonRow), person
    return person


@pytest.mark.parametrize(
    ("addresses", "peer"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.1"], "::ffff:127.0.0.1"),
        (["::1"], "::1"),
        (["10.1.0.0/16", "fd00::/8"], "10.1.255.9"),
        (["10.1.0.0/16", "fd00::/8"], "fd12::1"),
        (["fe80::/10"], "fe80::1%eth0"),
        (["unix"], ""),
    ],
)
def test_header_from_a_proxy_names_the_person(addresses: list[str], peer: str) -> None:
    """The header counts from an address or network in HALT_PROXY_ADDRESSES, or a Unix socket."""
    person = header_of(*addresses).read(peer, "alice")
    assert person == PersonRow(person_id("header", "", "alice"), "header", "", "alice", "alice")


@pytest.mark.parametrize(
    ("addresses", "peer"),
    [
        (["127.0.0.1"], "127.0.0.2"),
        (["127.0.0.1"], ""),
        (["127.0.0.1"], "unix"),
        (["127.0.0.1"], "127.0.0.1, 10.0.0.1"),
        (["127.0.0.1"], "::1"),
        (["::ffff:0:0/96"], "127.0.0.1"),
        (["10.1.0.0/16"], "10.2.0.1"),
        (["unix"], "127.0.0.1"),
        (["unix"], "<local>"),
    ],
)
def test_header_from_elsewhere_names_nobody(addresses: list[str], peer: str) -> None:
    """From any other peer the header is ignored, and the refusal says how to reach Halt."""
    for value in ("alice", None):
        refusal = header_of(*addresses).read(peer, value)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (401, "unauthorized")
        assert "HALT_PROXY_ADDRESSES" in refusal.message
        assert "alice" not in refusal.message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("alice,root", "has a comma, or was sent twice"),
        ("alice,", "has a comma, or was sent twice"),
        ("alice\x00", "has a control character"),
        ("alice\r\nX: 1", "has a control character"),
        ("\u00c2\u0085alice", "has a control character"),  # U+0085 as UTF-8
        ("a" * 201, "has more than 200 characters"),
        ("al\u00efce", "is not UTF-8"),  # as Latin-1
    ],
)
def test_value_that_is_not_one_name_is_refused(value: str, reason: str) -> None:
    """A value that is empty, double, too long or unprintable is refused with the reason."""
    refusal = header_of("127.0.0.1").read("127.0.0.1", value)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "invalid_request")
    assert f"Remote-User header {reason}." in refusal.message


def test_request_of_the_proxy_without_the_header_is_refused() -> None:
    """Where the proxy sends no header, the refusal names the header that it must send."""
    refusal = header_of("127.0.0.1").read("127.0.0.1", None)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401
    assert "Remote-User" in refusal.message


def test_values_are_compared_as_they_are() -> None:
    """Each value is a person: case counts, and letters come as UTF-8 in WSGI's Latin-1."""
    assert person_of("a" * 200).subject == "a" * 200
    assert person_of("Zo\u00c3\u00ab").subject == "Zo\u00eb"
    assert len({person_of(value).id for value in ("alice", "Alice", "alice@example.org")}) == 3


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (None, "alice"),
        ("", "alice"),
        ("Zo\u00c3\u00ab Doe, PhD", "Zo\u00eb Doe, PhD"),
        ("Zo\u00eb", "Zo\u00eb"),
        ("=?utf-8?q?Zo=C3=AB_Doe?=", "Zo\u00eb Doe"),  # as Tailscale sends it
        ("=?nonsense?q?Zo=C3=AB?=", "alice"),
        ("=?utf-8?b?broken", "=?utf-8?b?broken"),
        ("A\x1b[31m", "A [31m"),
        ("=?utf-8?q?Zo=E2=80=AEe?=", "Zoe"),
        ("=?utf-8?q?=E2=80=8B?=", "alice"),
        ("x" * 300, "x" * 200),
    ],
)
def test_name_for_display_is_decoded_and_bounded(name: str | None, shown: str) -> None:
    """The name is decoded and cut to 200 characters; without one the value is shown."""
    assert person_of("alice", name).name == shown


def test_refused_headers_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Forged headers write one line with the peer, never one for each request, nor the value. The
    line about a proxy without the header does not take its place.
    """
    header = header_of("10.0.0.1")
    with caplog.at_level(logging.WARNING, "halt"):
        for number in range(50):
            header.read("10.0.0.1", None)
            header.read(f"10.0.0.{number + 2}", "forged-value")
    assert [record.getMessage() for record in caplog.records] == [
        "the proxy has sent a request without Remote-User",
        "Remote-User from 10.0.0.2 was ignored: HALT_PROXY_ADDRESSES does not name that address",
    ]


def test_named_person_gets_a_row_and_the_new_name(tmp_path: Path) -> None:
    """A named person's row is saved once; another name in the header replaces the one in it."""
    people = People(open_database(tmp_path))
    named = NamedPeople()
    for name in ("", "Alice", "Alice"):
        named.note(person_of("alice", name))
        named.save(people)
    row = people.get(person_of("alice").id)
    assert row is not None
    assert (row.mode, row.subject, row.name) == ("header", "alice", "Alice")


class FailingPeople(People):
    """A table of people whose database does not answer."""

    def ensure(self, person: PersonRow) -> None:
        raise StoreUnavailable("The database does not answer.", "it is away")


def test_row_is_saved_later_where_the_database_fails(tmp_path: Path) -> None:
    """A person whose row could not be saved is saved by the next attempt."""
    database = open_database(tmp_path)
    named = NamedPeople()
    named.note(person_of("alice"))
    with pytest.raises(StoreUnavailable):
        named.save(FailingPeople(database))
    named.save(People(database))
    assert People(database).get(person_of("alice").id) is not None

"""The person whom a proxy names in a header (HALT_USER_HEADER, HALT_PROXY_ADDRESSES).

Any client can send a header. So it counts only where the connection itself comes from the proxy: by
the address of the socket's other end, never by what a header says about addresses.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from functools import lru_cache
from typing import TypeVar

from halt.clock import now
from halt.config.addresses import ip_address
from halt.people.names import shown_name
from halt.people.person import person_id
from halt.store.people import People, PersonRow

VALUE_MAX = 200  # characters of a value, and of a name for display
PEERS_MAX = 1024  # cached peers
LOG_EVERY = 60.0  # seconds between two log lines of one kind about refused headers
UNIX = "unix"  # in HALT_PROXY_ADDRESSES: connections over a Unix socket
SAVED_SECONDS = 600.0  # after which a person's row is made again, in case that it was removed
SAVED_MAX = 10_000  # people whose rows are known to exist, or wait to be made

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why a request has no person."""

    status: int
    code: str
    message: str


class ProxyHeader:
    """The settings of one Halt. Threads may share it."""

    def __init__(self, header: str, addresses: tuple[str, ...]) -> None:
        """`header`: HALT_USER_HEADER. `addresses`: HALT_PROXY_ADDRESSES."""
        self.header = header
        self._takes_unix = UNIX in addresses
        self._networks = [ipaddress.ip_network(address) for address in addresses if address != UNIX]
        self._is_proxy = lru_cache(PEERS_MAX)(self._find_network)
        self._log_at: dict[str, float] = {}  # by text: no such log line before this time

    def read(self, peer: str, value: str | None, name: str | None = None) -> PersonRow | Refusal:
        """The person of a request, or why it has none.

        `peer`: the address of the socket's other end, "" for a Unix socket. `value` and `name`: the
        headers as WSGI has them (UTF-8, decoded as Latin-1; two headers of one name joined by a
        comma), None where there is none.
        """
        if not self._is_proxy(peer):
            if value is not None:
                self._log(
                    "%s from %s was ignored: HALT_PROXY_ADDRESSES does not name that address",
                    self.header,
                    ascii(peer)[1:-1] or "a Unix socket",
                )
            return Refusal(
                401,
                "unauthorized",
                "Open Halt through its proxy, which signs you in: this connection does not come "
                "from an address in HALT_PROXY_ADDRESSES. Programs may send an API token instead.",
            )
        if value is None:
            self._log("the proxy has sent a request without %s", self.header)
            return Refusal(
                401,
                "unauthorized",
                f"The proxy did not say who you are: it must send {self.header} with each "
                "request. Programs may send an API token instead.",
            )
        subject = _decoded(value)
        if (fault := _fault(subject)) is not None:
            self._log("the proxy's %s was refused: it %s", self.header, fault)
            return Refusal(
                400,
                "invalid_request",
                f"The proxy's {self.header} header {fault}. It must have one value, with at most "
                f"{VALUE_MAX} characters and without a comma.",
            )
        assert subject is not None  # noqa: S101 - `_fault` has found none
        name_text = display_name(name or "") or subject
        return PersonRow(person_id("header", "", subject), "header", "", subject, name_text)

    def _find_network(self, peer: str) -> bool:
        if not peer:
            return self._takes_unix
        address = ip_address(peer)
        return address is not None and any(address in network for network in self._networks)

    def _log(self, text: str, *values: str) -> None:
        """Log a refusal, at most one with this text in LOG_EVERY seconds. Two threads may both log.

        So a proxy that is set up wrongly does not hide a forged header.
        """
        at = now()
        if at >= self._log_at.get(text, at):
            self._log_at[text] = at + LOG_EVERY
            logger.warning(text, *values)


def _fault(subject: str | None) -> str | None:
    """What is wrong with the value, as the end of a sentence."""
    if subject is None:
        return "is not UTF-8"
    if not subject:
        return "is empty"
    if "," in subject:
        return "has a comma, or was sent twice"
    if not subject.isprintable():
        return "has a control character"
    return f"has more than {VALUE_MAX} characters" if len(subject) > VALUE_MAX else None


def display_name(value: str) -> str:
    """The name in a header's value: UTF-8, or encoded words (RFC 2047). "" where it has none."""
    text = _decoded(value)
    if text is None:
        text = value
    if text.startswith("=?"):  # Tailscale sends names that are not ASCII so
        try:
            text = str(make_header(decode_header(text)))
        except (HeaderParseError, LookupError, ValueError):
            return ""
    return shown_name(text, VALUE_MAX)


def _decoded(value: str) -> str | None:
    """The text of a header's value, None if it is not UTF-8."""
    try:
        return value.strip(" \t").encode("latin-1").decode()
    except UnicodeError:
        return None


class NamedPeople:
    """The people whom the proxy has named, until their rows are saved. Threads may share it.

    A request does not wait for the database to make its person's row: ID and name are in the
    header. `halt.people.watch` saves the rows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two below
        self._unsaved: OrderedDict[str, PersonRow] = OrderedDict()
        #: By ID: the name in the row, and when it was saved.
        self._saved: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def note(self, person: PersonRow) -> None:
        """Have the person's row saved, unless it was a short while ago. Does not wait."""
        saved = self._saved.get(person.id)
        if saved is not None and saved[0] == person.name and now() - saved[1] < SAVED_SECONDS:
            return
        with self._lock:
            _put(self._unsaved, person.id, person)

    def save(self, people: People) -> None:
        """Save the rows. Raises StoreUnavailable; then they are saved the next time."""
        with self._lock:
            unsaved = list(self._unsaved.values())
        for person in unsaved:
            people.ensure(person)
            with self._lock:
                _put(self._saved, person.id, (person.name, now()))
                if self._unsaved.get(person.id) is person:  # else it has another name by now
                    del self._unsaved[person.id]


def _put(table: OrderedDict[str, Value], key: str, value: Value) -> None:
    """Set a value; beyond SAVED_MAX the oldest goes."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > SAVED_MAX:
        table.popitem(last=False)

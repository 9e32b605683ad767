"""People of a running server, put into its database, and browsers that are signed in as them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flask import Flask
from sqlalchemy import insert, update

from halt.config.environment import load
from halt.people.accounts import new_link, new_person
from halt.people.known import digest_of, new_token
from halt.people.names import name_key
from halt.people.passwords import Passwords
from halt.people.person import Mode, person_id
from halt.store.accounts import AccountRows
from halt.store.migrate import open_database
from halt.store.people import People, PersonRow
from halt.store.sign_ins import SignIn, SignIns
from halt.store.tables import accounts, people
from halt.web.sessions import Sessions
from tests.support.halt_server import HaltServer, new_id
from tests.support.http_client import Client

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
HOUR = 3600.0


class ServerPeople:
    """The people of a server in one mode. It has opened the server's database; close it."""

    def __init__(self, server: HaltServer, mode: Mode = "accounts") -> None:
        self._server, self._mode = server, mode
        self.database = open_database(server.data_folder)
        self.sign_ins = SignIns(self.database)
        self.accounts = AccountRows(self.database)
        self._app = Flask(__name__)
        self._sessions = Sessions(load({"HALT_DATA": str(server.data_folder)}))

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def add(self, name: str, *, is_admin: bool = False) -> str:
        """Make a person, of whom there may be several with the same name; returns the ID."""
        subject = new_id()
        person = person_id(self._mode, "", subject)
        People(self.database).ensure(PersonRow(person, self._mode, "", subject, name))
        with self.database.writing() as connection:
            connection.execute(
                update(people).where(people.c.id == person).values(is_admin=is_admin)
            )
        return person

    def set_password(self, person: str, password: str) -> None:
        """Give the person of the mode `accounts` an account with this password."""
        values = {"person_id": person, "name": person, "password": Passwords().hash(password)}
        with self.database.writing() as connection:
            connection.execute(insert(accounts).values(values))

    def add_account(self, name: str, password: str) -> str:
        """Make a person with an account; returns the person's ID."""
        person = new_person(name)
        hashed = Passwords().hash(password)
        return self.accounts.add(person, name_key(person.name), password=hashed).id

    def add_link(self, name: str) -> str:
        """Make a person with an account without a password; returns the token of its link."""
        person = new_person(name)
        token, link = new_link()
        self.accounts.add(person, name_key(person.name), link=link)
        return token

    def disable(self, person: str) -> None:
        """The person is unknown from now on."""
        with self.database.writing() as connection:
            connection.execute(
                update(people).where(people.c.id == person).values(disabled_at=time.time())
            )

    def cookie(
        self, person: str, agent: str = AGENT, address: str = "127.0.0.1", age: float = 0.0
    ) -> tuple[str, str]:
        """The name and value of the cookie of a new sign-in, which began `age` seconds ago."""
        token, at = new_token(), time.time() - age
        sign_in = SignIn(digest_of(token), at, at, time.time() + HOUR, agent, address)
        self.sign_ins.begin(person, sign_in)
        with self._app.test_request_context():
            serializer = self._sessions.get_signing_serializer(self._app)
            assert serializer is not None
            value = serializer.dumps({"sign_in": token, "_permanent": True})
            return self._sessions.get_cookie_name(self._app), str(value)

    def sign_in(self, context: BrowserContext, person: str) -> None:
        """Give a browser the cookie of a new sign-in."""
        name, value = self.cookie(person)
        context.add_cookies([{"name": name, "value": value, "url": self._server.url}])

    def client(self, person: str, agent: str = AGENT) -> Client:
        """A browser that is signed in as the person."""
        client = self._server.client(Accept="text/html", **{"User-Agent": agent})
        name, value = self.cookie(person, agent)
        client.cookies[name] = value
        return client

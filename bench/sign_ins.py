"""Cost of finding out who makes a request."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, session

from bench.sizes import Sizes
from bench.table import Row, at_most, median
from halt.app import create_app
from halt.config.environment import load
from halt.people.known import FRESH, digest_of, new_api_token
from halt.people.person import person_id
from halt.store.people import PersonRow
from halt.web.identity import identify, owner
from halt.web.services import services
from halt.web.sign_ins import begin_sign_in

REQUESTS = 2000
UPSTREAM = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "fake", "HALT_MODEL": "m"}
HEADER = {"HALT_USER_HEADER": "Remote-User", "HALT_PROXY_ADDRESSES": "127.0.0.1"}


def sign_ins(sizes: Sizes) -> Iterator[Row]:
    """A row about the check of a sign-in, an API token and a proxy's header."""
    with tempfile.TemporaryDirectory(prefix="halt-bench-") as folder:
        app = _app(folder, {"HALT_USERS": "1"})
        ada = PersonRow(person_id("accounts", "", "ada"), "accounts", "", "ada", "ada")
        store, token = services(app).store, new_api_token()
        store.people.ensure(ada)
        store.sign_ins.add_token(ada.id, digest_of(token), "bench")
        with app.test_request_context("/"):
            begin_sign_in(ada)
            response = Response()
            app.session_interface.save_session(app, session, response)
            cookie = response.headers["Set-Cookie"].partition(";")[0]
        by_session = _microseconds(app, {"Cookie": cookie}, ada.id)
        by_token = _microseconds(app, {"Authorization": f"Bearer {token}"}, ada.id)
        first = median([_first(app, token, ada.id) for _ in range(200)])
        services(app).close()
        app = _app(folder, HEADER)
        by_header = _microseconds(app, {"Remote-User": "ada"}, person_id("header", "", "ada"))
        services(app).close()
        app = _app(folder, {})
        nothing = _microseconds(app, {}, "mine")
        services(app).close()
    worst = max(by_session, by_token, by_header)
    yield at_most(
        "Who makes a request: a signed-in browser / an API token / a proxy's header",
        worst,
        200,
        50,
        " µs",
        f"{by_session:.1f} / {by_token:.1f} / {by_header:.1f} µs "
        f"(one person without a sign-in {nothing:.1f} µs)",
        f"median of {REQUESTS} requests, cookie included; once in {FRESH:g} s the database is asked, "
        f"which takes {first:.0f} µs",
    )


def _app(folder: str, settings: dict[str, str]) -> Flask:
    return create_app(load(UPSTREAM | {"HALT_DATA": str(Path(folder) / "halt")} | settings))


def _microseconds(app: Flask, headers: dict[str, str], person: str) -> float:
    """The median time of opening the session and finding the person."""
    times = []
    for _ in range(REQUESTS):
        context = app.test_request_context(
            "/streams", headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"}
        )
        began = time.perf_counter()
        with context:
            found = identify()
            times.append(time.perf_counter() - began)
            if not found or owner() != person:
                raise RuntimeError(f"the request is not {person}'s")
    return median(times) * 1e6


def _first(app: Flask, token: str, person: str) -> float:
    """The time of a check that asks the database, in microseconds."""
    known = services(app).known
    if known is None:
        raise RuntimeError("nobody can sign in")
    known.forget(digest_of(token))
    began = time.perf_counter()
    found = known.person(digest_of(token))
    used = time.perf_counter() - began
    if found is None or found.id != person:
        raise RuntimeError(f"the token is not {person}'s")
    return used * 1e6

"""Stops and streams of one client beside hostile loads of other clients, models and databases.

Each test has the same bystander (`tests.resilience.bystander`) and another load
(`tests.resilience.loads`). Stops must be answered during the load. The bounds on time hold on a
slow machine; `python -m bench --only stop-under-load` has the targets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.resilience import loads
from tests.resilience.bystander import NEVER, STOP_WITHIN, Address, Bystander
from tests.resilience.servers import (
    LimitedServer,
    Postgres,
    descriptors_limited,
    postgres_programs,
    workers,
)
from tests.support.halt_server import HaltServer, StartHalt, new_id, request_record, settings
from tests.support.process_facts import cpu_seconds, tree
from tests.support.waiting import SERVER_TIMEOUT, wait_until

pytestmark = pytest.mark.slow

ANSWERS: list[Mapping[str, object]] = loads.CASES["answers"]
REQUESTS: list[Mapping[str, object]] = loads.CASES["requests"]


def address(server: HaltServer) -> Address:
    return server.host, server.port


def check_responsive(bystander: Bystander, stops: int = 3) -> None:
    """Require that Stops are answered and the bystander's stream flows."""
    for _ in range(stops):
        assert bystander.stop() < STOP_WITHIN
    assert not bystander.end_reason
    assert bystander.longest_gap < STOP_WITHIN


# --- hostile requests -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", REQUESTS, ids=[str(case["name"]) for case in REQUESTS])
def test_hostile_field_name_is_refused_at_once(
    default_server: HaltServer, case: Mapping[str, object]
) -> None:
    """Each route that takes messages refuses a hostile field name at once, with an error of normal
    length.
    """
    requests = loads.unknown_field(case)
    with Bystander(address(default_server)) as bystander:
        with loads.repeated(address(default_server), *requests, clients=3) as load:
            check_responsive(bystander)
            answers = load.wait(3, NEVER)
    refusals = [answer for answer in answers if answer.status == 400]
    assert refusals
    assert all(len(refusal.body) < 2000 for refusal in refusals)


def test_body_of_many_fields_is_refused_at_once(default_server: HaltServer) -> None:
    """Forms and JSON with many fields get a status between 400 and 499."""
    requests = loads.many_fields()
    with Bystander(address(default_server)) as bystander:
        with loads.repeated(address(default_server), *requests, clients=4) as load:
            check_responsive(bystander)
            answers = load.wait(len(requests))
    statuses = [answer.status for answer in answers]
    assert all(400 <= status < 500 for status in statuses), statuses


def test_stop_with_a_large_body_is_refused(default_server: HaltServer) -> None:
    """A Stop with a body over 64 kB is refused, and not even its beginning is parsed."""
    client = default_server.client()
    for path in ("/stop", "/stop/0123456789"):
        for body in (b'{"stream_id":"0123456789","x":"' + b"a" * 70_000 + b'"}', b" " * 70_000):
            answer = client.request("POST", path, body, loads.JSON)
            assert answer.status == 413, path
    small_body = b'{"stream_id":"0123456789"}' + b" " * 60_000
    assert client.request("POST", "/stop", small_body, loads.JSON).status == 202


@pytest.mark.parametrize("name", loads.LAST_REQUESTS)
def test_clients_that_do_not_close_delay_nothing(default_server: HaltServer, name: str) -> None:
    """A Stop is answered while clients keep their connections open after the response and new ones
    come.
    """
    with Bystander(address(default_server)) as bystander:
        with loads.lingering(address(default_server), loads.LAST_REQUESTS[name], clients=8) as load:
            check_responsive(bystander)
            assert len(load.sockets) >= 8


def test_slow_heads_delay_nothing(default_server: HaltServer) -> None:
    """A hundred heads of 30 kB that come byte by byte delay no Stop and no stream."""
    with Bystander(address(default_server)) as bystander, loads.slow_heads(address(default_server)):
        check_responsive(bystander)


@pytest.mark.parametrize("kind", range(3), ids=["chunked", "long", "expect"])
@pytest.mark.parametrize("path", ["/chat/stream", "/import", "/stop", "/v1/chat/completions"])
def test_slow_bodies_take_no_thread_from_stop(
    few_streams_server: HaltServer, path: str, kind: int
) -> None:
    """More slow bodies than threads, of each kind on each class of route, delay no Stop."""
    media = "multipart/form-data; boundary=x" if path == "/import" else "application/json"
    head = loads.body_heads(path, media)[kind]
    with Bystander(address(few_streams_server)) as bystander:
        with loads.slow_bodies(address(few_streams_server), [head]) as load:
            check_responsive(bystander)
            assert not load.over.is_set()


@pytest.fixture(scope="module")
def large_conversation(few_streams_server: HaltServer) -> tuple[dict[str, str], str]:
    """Cookies, and the path of a conversation of 8 MB."""
    client = few_streams_server.client()
    client.get("/")
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    data = loads.upload("/import", loads.import_file(8_000_000), cookies)
    with loads.repeated(address(few_streams_server), data, clients=1) as load:
        (answer, *_) = load.wait(1)
    return cookies, loads.imported(answer)


def test_unread_pages_take_no_thread_from_stop(
    few_streams_server: HaltServer, large_conversation: tuple[dict[str, str], str]
) -> None:
    """60 clients that request 8 MB and read nothing delay no Stop."""
    cookies, page_path = large_conversation
    requests = [loads.message("GET", f"{page_path}/export", headers=cookies)]
    with Bystander(address(few_streams_server)) as bystander:
        with loads.unread(address(few_streams_server), requests) as load:
            check_responsive(bystander)
            assert load.open


def test_unread_whole_answers_take_no_thread_from_stop(few_streams_server: HaltServer) -> None:
    """Unread JSON answers of some megabytes each delay no Stop."""
    body = loads.chat_body(model="repeat?unit=aaaaaaaa&times=800000&piece=20000")
    request = loads.message("POST", "/chat", body, loads.JSON)
    with (
        Bystander(address(few_streams_server)) as bystander,
        loads.unread(address(few_streams_server), [request], 20),
    ):
        check_responsive(bystander)


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n"], ids=["nothing", "half a head"]
)
def test_silent_connections_cost_no_stream(shared_fake: FakeOpenAI, first: bytes) -> None:
    """With more silent connections than descriptors streams continue and Stop works."""
    server = LimitedServer(settings(shared_fake, HALT_MAX_STREAMS=20), descriptors_limited(256))
    with contextlib.closing(server), Bystander(address(server)) as bystander:
        earlier_workers = workers(server)
        with loads.silent(address(server), 400, first):
            check_responsive(bystander)
            assert workers(server) == earlier_workers
    assert "Traceback" not in server.printed


@pytest.fixture(scope="module")
def short_answer_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose answers are short."""
    server = HaltServer(settings(shared_fake, HALT_MAX_ANSWER_CHARS=10_000))
    yield server
    server.close()


# --- costly answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ANSWERS[:7], ids=[str(case["name"]) for case in ANSWERS[:7]])
def test_costly_answer_is_rendered_in_time(
    default_server: HaltServer, case: Mapping[str, object]
) -> None:
    """Three readers get the whole answer on the page while other streams flow."""
    model = loads.repeated_text(case)
    pages: list[str] = []
    with Bystander(address(default_server)) as bystander:
        read = lambda: pages.extend(loads.read_page(address(default_server), model, 3))  # noqa: E731
        with loads.calls(read) as results:
            while not results:  # each reader gives up after `loads.ANSWER_TIMEOUT`
                check_responsive(bystander, 1)
            check_responsive(bystander, 1)
    assert results == [None], results
    assert len(pages) == 3
    for page in pages:
        assert "</article>" in page


def test_ended_answer_is_rendered_once(default_server: HaltServer) -> None:
    """After the first rendering the rendering process does no work for further readers."""
    case = next(case for case in ANSWERS if case["name"] == "quotes-lazy-lines")
    (worker,) = workers(default_server)
    model = loads.repeated_text({**case, "times": 30})
    client, page_path = loads.answered_page(address(default_server), model)

    def rendering_seconds() -> float:
        return cpu_seconds(tree(worker)[1:])

    def page_costs_no_rendering() -> bool:
        before = rendering_seconds()
        page = client.get(page_path)
        assert page.status == 200
        assert page.body.count(b"b<br>") > 1000
        return rendering_seconds() == before

    # The rendering process may have been killed by an earlier test's text: wait for a new one.
    wait_until(lambda: client.get(page_path).status == 200 and rendering_seconds() > 0, NEVER)
    wait_until(page_costs_no_rendering, NEVER)


@pytest.mark.parametrize(
    "text",
    [
        "unit=%20",
        "before=a&unit=%20",
        "before=%3Cthink%3Ex%3C/think%3E&unit=%0A",
        "before=%3Cthink%3E&unit=%0A",
        "before=%60%60%60%0A&unit=%09",
    ],
    ids=[
        "spaces at the start",
        "spaces after a letter",
        "newlines after a thought",
        "newlines in a thought",
        "tabs in a code block",
    ],
)
def test_white_space_counts_towards_the_answer_limit(
    short_answer_server: HaltServer, shared_fake: FakeOpenAI, text: str
) -> None:
    """White space counts as characters of the answer, in any place."""
    server, prompt = short_answer_server, new_id()
    model = f"repeat?{text}&times=100000000&piece=1&burst=100"
    with Bystander(address(server)) as bystander, server.client().chat(model, prompt) as events:
        record = request_record(shared_fake, prompt)
        assert record.ended.wait(NEVER), f"{record.tokens_sent} blanks and no end"
        check_responsive(bystander)
        terminal = events.to_end().terminal
    assert terminal["type"] == "error"
    assert record.tokens_sent < 1_000_000


@pytest.mark.parametrize(
    "model",
    ["endless_line", "repeat?unit=a&times=100000000&piece=1&burst=200", "long?n=100000000"],
    ids=["a line without an end", "a character at a time", "words"],
)
def test_flooding_model_delays_nothing(default_server: HaltServer, model: str) -> None:
    """A model that writes as fast as it is read delays no Stop and no stream."""
    with Bystander(address(default_server)) as bystander, default_server.client().chat(model):
        check_responsive(bystander)


# --- databases that do not answer -----------------------------------------------------------------


def test_locked_database_delays_no_stop(few_streams_server: HaltServer) -> None:
    """While the database is locked, streams flow; more prompts than threads wait, and get 200 or
    503.
    """
    client = few_streams_server.client()
    client.get("/")
    send_functions = [
        loads.send_prompt(address(few_streams_server), client.cookies) for _ in range(200)
    ]
    with (
        Bystander(address(few_streams_server)) as bystander,
        loads.lock_database(few_streams_server.data_folder),
    ):
        with loads.calls(*send_functions) as statuses:
            wait_until(lambda: statuses, SERVER_TIMEOUT)  # the first is refused
            check_responsive(bystander)
    assert set(statuses) <= {200, 503}, statuses
    wait_until(lambda: client.get("/conversations").status == 200, SERVER_TIMEOUT)


@pytest.mark.skipif(postgres_programs() is None, reason="there is no PostgreSQL")
def test_frozen_postgres_delays_no_stop(shared_fake: FakeOpenAI) -> None:
    """While PostgreSQL is frozen, Stops of streams work, and Stops of unknown IDs are `pending`."""
    with Postgres() as postgres:
        env = settings(shared_fake, DATABASE_URL=postgres.url, HALT_MAX_STREAMS=20)
        with contextlib.closing(HaltServer(env)) as server, Bystander(address(server)) as bystander:
            client = server.client()
            client.get("/")
            send_functions = [
                loads.send_prompt(address(server), client.cookies) for _ in range(100)
            ]
            with postgres.frozen(), loads.calls(*send_functions) as statuses:
                wait_until(lambda: statuses, SERVER_TIMEOUT)  # the first is refused
                check_responsive(bystander)
                assert bystander.stop(unknown=True) < STOP_WITHIN
                postgres.thaw()
            wait_until(lambda: client.get("/conversations").status == 200, SERVER_TIMEOUT)


# --- tokens ---------------------------------------------------------------------------------------


def test_wrong_tokens_are_slowed_and_the_right_one_works(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Wrong tokens are limited by address with one log line for all; the right token
    still works.
    """
    token = "the-right-token"
    server = start_halt(fake, HALT_TOKEN=token, HALT_RATE_ADDRESS="5/minute")
    right_headers = {"Authorization": f"Bearer {token}"}
    wrong_request = loads.message(
        "GET", "/conversations", headers={"Authorization": "Bearer wrong-one"}
    )
    form = loads.message("POST", "/login", b"token=wrong-one&next=/", loads.FORM)
    with Bystander(address(server), 3, right_headers) as bystander:
        with loads.repeated(address(server), wrong_request, form, clients=8) as load:
            load.wait(60)
            check_responsive(bystander)
            assert server.client(**right_headers).get("/conversations").status == 200
    assert set(load.statuses) <= {401, 429}
    assert load.statuses.count(429) > load.statuses.count(401)
    lines = [line for line in server.printed.splitlines() if "token" in line.lower()]
    assert 1 <= len(lines) <= 3, lines
    assert "wrong-one" not in server.printed

"""Routes hide the streams and conversations of other sessions."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest

from halt.app import create_app
from halt.config.settings import Config
from tests.resilience.loads import FORM
from tests.support.halt_server import HaltServer, new_id
from tests.support.waiting import SERVER_TIMEOUT, wait_until

pytestmark = pytest.mark.slow


def routes_with_ids() -> list[tuple[str, str]]:
    """Every route that names a stream or a conversation, from the application itself."""
    routes = []
    for rule in create_app(
        Config(base_url="http://127.0.0.1:9/v1", api_key="x")
    ).url_map.iter_rules():
        if {"stream_id", "conversation_id"} & rule.arguments:
            routes += [
                (method, rule.rule)
                for method in sorted(rule.methods or ())
                if method in {"GET", "POST"}
            ]
    return sorted(set(routes))


def without_numbers(page: bytes) -> str:
    """A page without digits: times differ from one request to the next."""
    return re.sub(r"\d+", "", page.decode())


def test_every_route_hides_other_sessions(halt: HaltServer) -> None:
    """Each route answers as for an ID that does not exist, and changes nothing."""
    owner = halt.client()
    owner.get("/")
    stream_id, conversation_id = new_id(), new_id()
    secret = "a-secret-of-theirs"
    form = urlencode({"prompt": f"/fake count?n=2 {secret}", "id": new_id()}).encode()
    assert owner.request("POST", f"/c/{conversation_id}/messages", form, FORM).status == 200
    # The list of conversations has the end once it is saved, a moment after the answer.
    wait_until(
        lambda: b"data-running" not in owner.get(f"/c/{conversation_id}").body, SERVER_TIMEOUT
    )
    page = without_numbers(owner.get(f"/c/{conversation_id}").body)
    assert secret in page
    assert 'data-state="done"' in page
    running = owner.chat("stall?n=2", secret, id=stream_id).until_text("1 ")
    other = halt.client()
    other.get("/")

    def request_route(method: str, rule: str, stream: str, conversation: str) -> tuple[int, str]:
        path = rule.replace("<stream_id>", stream).replace("<conversation_id>", conversation)
        fields = {"message": 1, "answer": 1, "of": 1, "after": 0}
        body = urlencode(fields).encode() if method == "POST" else None
        response = other.request(method, path, body, FORM)
        text = response.body.decode()
        assert secret not in text
        text = re.sub(r"req_\w+", "", text.replace(stream, "").replace(conversation, ""))
        return response.status, re.sub(r"[\d.]+", "", text)

    routes = routes_with_ids()
    assert len(routes) > 15
    for method, rule in routes:
        if "messages" in rule or (method == "POST" and "settings" in rule):
            continue  # creates a missing conversation: the next test covers these
        answer = request_route(method, rule, stream_id, conversation_id)
        assert answer == request_route(method, rule, new_id(), new_id()), (method, rule)
    assert without_numbers(owner.get(f"/c/{conversation_id}").body) == page
    assert owner.stop(stream_id).json["status"] == "stopped"
    assert running.to_end().terminal["type"] == "cancelled"


@pytest.mark.parametrize("route", ["messages", "settings"])
def test_other_sessions_conversations_are_read_only(halt: HaltServer, route: str) -> None:
    """Prompts and settings for another session's conversation are refused and leave no trace."""
    owner, other = halt.client(), halt.client()
    owner.get("/")
    other.get("/")
    page_path = f"/c/{new_id()}"
    form = urlencode({"prompt": "/fake count?n=2", "id": new_id()}).encode()
    assert owner.request("POST", f"{page_path}/messages", form, FORM).status == 200
    fields = {"prompt": "mine", "id": new_id(), "system_prompt": "mine", "model": "mine"}
    answer = other.request("POST", f"{page_path}/{route}", urlencode(fields).encode(), FORM)
    assert answer.status == 404
    assert other.get(page_path).status == 404
    wait_until(lambda: b'data-state="done"' in owner.get(page_path).body, SERVER_TIMEOUT)
    assert b"mine" not in owner.get(page_path).body + owner.get(f"{page_path}/settings").body

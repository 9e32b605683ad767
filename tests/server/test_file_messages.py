"""Which message has which files: forms without scripts, versions, comparison, deletion; and what
models get of them."""

from __future__ import annotations

import base64
import contextlib
import html
import re
import secrets
import sqlite3
from typing import Any
from urllib.parse import urljoin

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.files import image, pdf
from tests.support.halt_server import HaltServer
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import PAGE_HEADERS
from tests.support.uploads import multipart, send, shown_files, upload, uploaded
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PICTURE = image()


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A person of their own."""
    client = halt.client()
    client.get("/")
    return client


def prompt_ids(page: HttpResponse) -> list[str]:
    """The IDs of the prompts that a page shows."""
    return re.findall(r'data-prompt="(\d+)"', page.body.decode())


def wait_done(client: Client, path: str) -> HttpResponse:
    """Wait until no answer of a conversation runs; its page."""
    wait_until(lambda: b'data-state="running"' not in client.get(path).body, SERVER_TIMEOUT)
    return client.get(path)


def change(client: Client, path: str, **fields: str) -> HttpResponse:
    body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
    return client.request("POST", path, body, PAGE_HEADERS)


# --- a form without scripts -----------------------------------------------------------------------


def send_form(
    client: Client, files: list[tuple[str, bytes]], **fields: str
) -> tuple[str, HttpResponse]:
    """Send a form with files as a browser without scripts; the conversation's ID."""
    conversation = secrets.token_urlsafe(16)
    body, kind = multipart(fields, files)
    accepts = kind | {"Accept": "text/html"}
    return conversation, client.request("POST", f"/files/messages/{conversation}", body, accepts)


def test_form_without_scripts_sends_its_files(client: Client, halt: HaltServer) -> None:
    """It leads to the conversation, which shows them."""
    conversation, sent = send_form(
        client, [("a.png", PICTURE), ("b c.txt", b"text")], prompt="What is it?"
    )
    assert sent.status == 303, sent
    target = urljoin(f"/files/messages/{conversation}", sent.headers["location"])
    assert target == f"/c/{conversation}"
    page = wait_done(client, target)
    assert [name for _, name in shown_files(page)] == ["a.png", "b c.txt"]
    assert "What is it?" in page.body.decode()


def test_form_without_chosen_files_sends_its_prompt(client: Client) -> None:
    """A browser sends a part without a name then."""
    conversation, sent = send_form(client, [("", b"")], prompt="Only words")
    assert sent.status == 303
    assert shown_files(wait_done(client, f"/c/{conversation}")) == []


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ([(f"{n}.txt", b"text") for n in range(11)], 400, "A message has at most 10 files."),
        ([("a.txt", b"text"), ("b.txt", b"")], 422, "b.txt: The file is empty."),
        ([("a.txt", b"x" * 20_000_001)], 413, "a.txt: The file is larger than 20 MB."),
        ([("", b"")], 400, "Write a message first."),
    ],
)
def test_form_with_a_wrong_file_is_refused_whole(
    client: Client, files: list[tuple[str, bytes]], status: int, message: str
) -> None:
    """With a page that says why; no conversation begins."""
    conversation, refused = send_form(client, files, prompt="")
    assert refused.status == status
    assert message in html.unescape(refused.body.decode())
    assert client.get(f"/c/{conversation}").status == 404


def test_form_with_many_fields_is_refused(client: Client) -> None:
    """Its parser has a limit."""
    _, refused = send_form(client, [], prompt="Hello", **{f"n{n}": "x" for n in range(2_000)})
    assert refused.status in {400, 413}


# --- what a model gets ----------------------------------------------------------------------------


def test_model_gets_the_image_and_the_text_of_files(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """The image as a part, a PDF as text under its name, before the prompt."""
    prompt = f"Compare {secrets.token_hex(8)}"
    files = [
        (uploaded(client, PICTURE, "a.png")["id"], "a.png"),
        (uploaded(client, pdf(["First page", "Second page"]), "b.pdf")["id"], "b.pdf"),
    ]
    send(client, prompt, files)
    record = shared_fake.wait_request(lambda record: prompt in str(record.body), SERVER_TIMEOUT)
    picture, text = record.body["messages"][-1]["content"]
    data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert text["text"].startswith("# b.pdf\n\n[Page 1]\nFirst page")
    assert text["text"].endswith(f"\n\n{prompt}")


def test_refused_image_is_not_sent_again(client: Client, shared_fake: FakeOpenAI) -> None:
    """To the model that refused it; the conversation goes on. Another model gets it."""
    mark = secrets.token_hex(8)
    files = [(uploaded(client, PICTURE)["id"], "a.png")]
    path, _ = send(client, f"Look {mark}", files, model="no_images")
    assert b"This model reads no images" in wait_done(client, path).body
    for model in ("no_images", "vision"):
        send(client, f"Then tell me {model}", [], path, model=model)
        wait_done(client, path)
    refused, named, seen = (r.body for r in list(shared_fake.requests) if mark in str(r.body))
    assert has_image(refused)
    assert not has_image(named)
    assert named["messages"][-1]["content"].startswith(f"[image: a.png]\n\nLook {mark}\n\n")
    assert has_image(seen)


def has_image(body: Any) -> bool:
    """Whether a request has an image."""
    return "image_url" in str(body)


# --- versions -------------------------------------------------------------------------------------


def parts_of(fake: FakeOpenAI, prompt: str, nth: int) -> list[str]:
    """The kinds of the parts of the last message in the nth request with this prompt."""

    def requests() -> list[Any]:
        return [record.body for record in list(fake.requests) if prompt in str(record.body)]

    wait_until(lambda: len(requests()) > nth, SERVER_TIMEOUT)
    content = requests()[nth]["messages"][-1]["content"]
    return [part["type"] for part in content] if isinstance(content, list) else [content]


def test_regenerated_answer_gets_the_files_again(client: Client, shared_fake: FakeOpenAI) -> None:
    """And they stay at the prompt."""
    prompt = f"Again {secrets.token_hex(8)}"
    files = [(uploaded(client, PICTURE)["id"], "a.png")]
    path, _ = send(client, prompt, files)
    (prompt_id,) = prompt_ids(wait_done(client, path))
    again = change(client, f"{path}/regenerate", prompt_id=prompt_id)
    assert again.status == 200
    assert shown_files(again) == files
    assert shown_files(wait_done(client, path)) == files
    for number in range(2):
        assert parts_of(shared_fake, prompt, number) == ["image_url", "text"]


def test_edited_prompt_has_the_files_of_its_form(client: Client, shared_fake: FakeOpenAI) -> None:
    """Each version has its own: kept, removed or added ones."""
    kept, gone, added = (uploaded(client, image(n, 9))["id"] for n in (11, 12, 13))
    path, _ = send(client, "One", [(kept, "kept.png"), (gone, "gone.png")])
    (first,) = prompt_ids(wait_done(client, path))
    _, edited = send(client, "Two", [(kept, "kept.png"), (added, "added.png")], path, edit_of=first)
    assert edited.status == 200
    assert shown_files(edited) == [(kept, "kept.png"), (added, "added.png")]
    page = wait_done(client, path)
    assert shown_files(page) == [(kept, "kept.png"), (added, "added.png")]
    back = change(client, f"{path}/show", message_id=first)
    assert back.status == 200, back
    assert shown_files(client.get(path)) == [(kept, "kept.png"), (gone, "gone.png")]


def test_compared_models_get_the_same_files(client: Client, shared_fake: FakeOpenAI) -> None:
    """The prompt has them once."""
    prompt = f"Both {secrets.token_hex(8)}"
    file = uploaded(client, PICTURE)["id"]
    path = f"/c/{secrets.token_urlsafe(16)}"
    body = f"prompt={prompt}&model=echo&model=echo-2&file={file}&file_name=a.png".encode()
    sent = client.request("POST", f"{path}/messages", body, PAGE_HEADERS)
    assert sent.status == 200
    assert shown_files(wait_done(client, path)) == [(file, "a.png")]
    for number in range(2):
        assert parts_of(shared_fake, prompt, number) == ["image_url", "text"]


def test_discarded_prompt_returns_its_files(client: Client) -> None:
    """They can be sent again: they are kept for a day."""
    file = uploaded(client, PICTURE, "a.png")
    files = [(file["id"], "a.png")]
    path, _ = send(client, "One", files)
    (prompt_id,) = prompt_ids(wait_done(client, path))
    discarded = change(client, f"{path}/discard", prompt_id=prompt_id)
    assert discarded.status == 200
    assert shown_files(client.get(path)) == []
    assert client.get(f"/files/{file['id']}").status == 200
    _, again = send(client, "One", files, path)
    assert again.status == 200
    assert shown_files(again) == files


def test_withdrawn_prompt_returns_its_files(client: Client, shared_fake: FakeOpenAI) -> None:
    """A Stop before any text returns the prompt: the next one replaces it, with the same files."""
    prompt = f"/fake silent_first_token {secrets.token_hex(8)}"
    file = uploaded(client, image(14, 9))["id"]
    stream_id = secrets.token_urlsafe(16)
    path, sent = send(client, prompt, [(file, "a.png")], id=stream_id)
    assert sent.status == 200
    assert client.stop(stream_id).json["status"] == "stopped"
    assert shown_files(wait_done(client, path)) == []
    assert client.get(f"/files/{file}").status == 200
    _, again = send(client, "Another", [(file, "again.png")], path)
    assert again.status == 200
    assert shown_files(wait_done(client, path)) == [(file, "again.png")]
    assert client.get(f"/files/{file}").status == 200


def test_later_prompt_sends_the_files_of_earlier_ones(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A model remembers nothing by itself."""
    word = secrets.token_hex(8)
    path, _ = send(client, f"First {word}", [(uploaded(client, PICTURE)["id"], "a.png")])
    wait_done(client, path)
    send(client, f"Second {word}", [], path)
    record = shared_fake.wait_request(
        lambda record: f"Second {word}" in str(record.body), SERVER_TIMEOUT
    )
    first = record.body["messages"][0]["content"]
    assert [part["type"] for part in first] == ["image_url", "text"]


# --- the end of a file ----------------------------------------------------------------------------


def test_file_stays_while_a_conversation_has_it(client: Client, halt: HaltServer) -> None:
    """Also one that was deleted a moment ago, because that can be undone."""
    file = uploaded(client, secrets.token_hex(40).encode(), "a.txt")["id"]
    paths = [send(client, "Hello", [(file, "a.txt")])[0] for _ in range(2)]
    for path in paths:
        wait_done(client, path)
        deleted = change(client, "/conversations", do="delete", id=path.removeprefix("/c/"))
        assert deleted.status == 200, deleted
        assert client.get(path).status == 404
        assert client.get(f"/files/{file}/download").status == 200
    undone = change(client, f"{paths[0]}/undelete")
    assert undone.status == 200, undone
    assert shown_files(client.get(paths[0])) == [(file, "a.txt")]


def test_file_that_is_gone_is_told_when_it_is_sent(client: Client, halt: HaltServer) -> None:
    """The page still showed it; what was typed is not sent without it."""
    file = uploaded(client, secrets.token_hex(40).encode(), "a.txt")["id"]
    with contextlib.closing(sqlite3.connect(halt.data_folder / "halt.db", timeout=20)) as database:
        database.execute("DELETE FROM file_parts WHERE hash = ?", (file,))
        database.execute("DELETE FROM files WHERE hash = ?", (file,))
        database.commit()
    path, refused = send(client, "Hello", [(file, "a.txt")])
    assert refused.status == 404
    assert "A file of this message is no longer here. Attach it again." in refused.body.decode()
    assert client.get(path).status == 404
    assert upload(client, b"text").status == 201

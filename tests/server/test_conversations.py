"""Routes beside the page's messages: list, search, settings, files and undo; access by session."""

from __future__ import annotations

import html
import io
import json
import re
import secrets
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from halt.server.request_buffer import FILE_BODY_MAX
from halt.testing.fake_openai import FakeOpenAI
from halt.web.page.exports import file_stem
from tests.support.export_files import export_file, exported_conversation
from tests.support.files import image, pdf
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, new_id, request_record
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import FORM_HEADERS, PAGE_HEADERS
from tests.support.uploads import send, uploaded
from tests.support.waiting import SERVER_TIMEOUT, wait_until


class Person:
    """A browser with its own session, and the requests of its page."""

    def __init__(self, server: HaltServer) -> None:
        self.client: Client = server.client()
        self.client.get("/")

    def get(self, path: str, **headers: str) -> HttpResponse:
        return self.client.get(path, **headers)

    def send(self, path: str, page: bool = True, **fields: Any) -> HttpResponse:
        return self.client.request(
            "POST", path, urlencode(fields).encode(), PAGE_HEADERS if page else FORM_HEADERS
        )

    def ask(self, prompt: str, conversation: str = "", model: str = "") -> str:
        """Send a prompt; return the ID of the conversation, a new one by default."""
        conversation = conversation or new_id()
        answer = self.send(f"/c/{conversation}/messages", prompt=prompt, model=model)
        assert answer.status == 200, answer.body.decode()
        return conversation

    def wait_idle(self, conversation: str) -> None:
        """Wait until the list marks the conversation as not running."""
        wait_until(lambda: not self.item(conversation)["running"], SERVER_TIMEOUT)

    def items(self, path: str = "/conversations") -> list[dict[str, Any]]:
        """The items of the list on the page, of all its parts."""
        items: list[dict[str, Any]] = []
        while path:
            body = self.get(path).body.decode()
            for part in re.findall(r'<li id="c-.*?</li>', body, re.DOTALL):
                (title,) = re.findall(r'<span class="title"[^>]*>(.*?)</span>', part)
                items.append(
                    {
                        "id": re.findall(r'data-id="(.*?)"', part)[0],
                        "title": html.unescape(title),
                        "running": "data-running" in part,
                        "current": "aria-current" in part,
                    }
                )
            next_paths = re.findall(r'class="further" hx-get="(.*?)"', body)
            path = html.unescape(next_paths[0]) if next_paths else ""
        return items

    def item(self, conversation: str) -> dict[str, Any]:
        (listed_item,) = [item for item in self.items() if item["id"] == conversation]
        return listed_item

    def titles(self, path: str = "/conversations") -> list[str]:
        return [item["title"] for item in self.items(path)]

    def change(self, operation: str, *conversations: str, **fields: str) -> HttpResponse:
        """Change several conversations at once."""
        body = urlencode(
            [("do", operation), *(("id", one) for one in conversations), *fields.items()]
        )
        return self.client.request("POST", "/conversations", body.encode(), PAGE_HEADERS)

    def import_file(self, data: bytes, *, page: bool = False) -> HttpResponse:
        """Upload a file to import."""
        line = secrets.token_hex(8)
        head = 'Content-Disposition: form-data; name="file"; filename="a.json"'
        body = f"--{line}\r\n{head}\r\n\r\n".encode() + data + f"\r\n--{line}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={line}"}
        return self.client.request(
            "POST", "/import", body, headers | ({"HX-Request": "true"} if page else {})
        )

    def add(self, *conversations: dict[str, Any]) -> None:
        """Add these conversations by an import, without a model."""
        answer = self.import_file(export_file(*conversations))
        assert answer.status == 200, answer.body.decode()


@pytest.fixture
def anna(halt: HaltServer) -> Person:
    return Person(halt)


@pytest.fixture(scope="module")
def configured_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with settings that differ from the defaults."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_TITLES": "model",
            "HALT_SYSTEM_PROMPT": "Be kind.",
            "HALT_MAX_STREAMS": "2",
            "HALT_MAX_BODY_BYTES": "20000",
            "HALT_MAX_ANSWER_CHARS": "5000",
            "HALT_MAX_IMPORT_BYTES": "9000000",
        }
    )
    yield server
    server.close()


@pytest.fixture
def carla(configured_halt: HaltServer) -> Person:
    return Person(configured_halt)


@pytest.fixture
def boris(halt: HaltServer) -> Person:
    return Person(halt)


# --- the list -------------------------------------------------------------------------------------


def test_list_is_ordered_by_last_use(anna: Person) -> None:
    """A title is the prompt's first words; a new message moves its conversation to the top."""
    first = anna.ask("The first  of\nall talks")
    anna.wait_idle(first)
    second = anna.ask("Another one")
    assert [item["id"] for item in anna.items()] == [second, first]
    assert anna.titles()[1].startswith("The first of")
    anna.wait_idle(second)
    anna.ask("And on", first)
    assert [item["id"] for item in anna.items()] == [first, second]


def test_long_list_is_paged(anna: Person) -> None:
    """The pages of the list hold each conversation once, in order; the last has no next link."""
    conversations = [
        exported_conversation("Hi", "Ho", title=f"Talk {n}", at=1_760_000_000.0 + n)
        for n in range(300)
    ]
    anna.add(*conversations)
    assert anna.titles() == [f"Talk {n}" for n in reversed(range(300))]
    assert len(re.findall("<li id=", anna.get("/").body.decode())) <= 50
    assert anna.get("/conversations?cursor=nonsense", Accept="*/*").status == 400
    for seconds in ("1e18", "-1e18", "inf", "nan"):  # no date
        assert anna.get(f"/conversations?cursor={seconds}~x", Accept="*/*").status < 500


def test_list_marks_running_and_open_conversations(anna: Person, shared_fake: FakeOpenAI) -> None:
    """The list marks the open conversation, and those whose answer is being written."""
    prompt = f"/fake stall {new_id()}"
    running_id, idle_id = anna.ask(prompt), anna.ask("Hello")
    anna.wait_idle(idle_id)
    assert anna.item(running_id)["running"]
    assert [
        item["id"] for item in anna.items(f"/conversations?current={idle_id}") if item["current"]
    ]
    assert 'aria-current="page"' in anna.get(f"/c/{running_id}").body.decode()
    stream = re.findall(r'data-stream="(.*?)"', anna.get(f"/c/{running_id}").body.decode())[-1]
    assert anna.client.stop(stream).status == 200
    anna.wait_idle(running_id)


def test_rename_stores_and_escapes_the_title(anna: Person) -> None:
    """A title is stored as written and escaped; an empty or too long one is refused."""
    conversation = anna.ask("Hello")
    field = anna.get(f"/c/{conversation}/title").body.decode()
    assert 'value="Hello"' in field
    answer = anna.send(f"/c/{conversation}/title", title=' <b>שלום</b>  "x" ')
    assert answer.status == 200
    assert "<b>" not in answer.body.decode()
    assert anna.titles() == ['<b>שלום</b> "x"']
    anna.wait_idle(conversation)
    anna.ask("More", conversation)
    assert anna.titles() == ['<b>שלום</b> "x"']
    for title in ("", "  ", "x" * 201):
        refused = anna.send(f"/c/{conversation}/title", title=title, page=False)
        assert (refused.status, refused.error["field"]) == (400, "title")
    assert anna.titles() == ['<b>שלום</b> "x"']


def test_undelete_restores_a_deleted_conversation(anna: Person) -> None:
    """A deleted conversation is in no list, search or export; Undo restores it unchanged."""
    anna.add(exported_conversation("Question", "Answer zebra", title="Kept"))
    (conversation_id,) = [item["id"] for item in anna.items()]
    deletion = anna.send(f"/c/{conversation_id}/delete")
    assert f'hx-post="/c/{conversation_id}/undelete"' in deletion.body.decode()
    assert anna.titles() == []
    assert anna.get(f"/c/{conversation_id}").status == 404
    assert "zebra" not in anna.get("/conversations/search?q=zebra").body.decode()
    assert json.loads(anna.get("/export").body)["conversations"] == []
    assert anna.send(f"/c/{conversation_id}/delete").status == 404
    assert "is back" in anna.send(f"/c/{conversation_id}/undelete").body.decode()
    assert anna.titles() == ["Kept"]
    assert "Answer zebra" in anna.get(f"/c/{conversation_id}").body.decode()


def test_delete_of_the_open_conversation_redirects(anna: Person) -> None:
    """Deletion of the open conversation leads to a new one that offers Undo; Undo opens the deleted
    one.
    """
    anna.add(exported_conversation("Question", "Answer"))
    (conversation_id,) = [item["id"] for item in anna.items()]
    headers = PAGE_HEADERS | {"HX-Current-URL": f"http://halt.example/c/{conversation_id}"}
    deletion = anna.client.request("POST", f"/c/{conversation_id}/delete", b"", headers)
    assert deletion.headers["hx-redirect"] == f"/?deleted={conversation_id}"
    assert (
        f'hx-post="/c/{conversation_id}/undelete"'
        in anna.get(f"/?deleted={conversation_id}").body.decode()
    )
    restored = anna.send(f"/c/{conversation_id}/undelete", back="1")
    assert restored.headers["hx-redirect"] == f"/c/{conversation_id}"
    page = anna.get("/?deleted=" + quote('"><b>x')).body.decode()
    assert "<b>x" not in page


@pytest.mark.parametrize("page", [True, False], ids=["page", "program"])
def test_delete_stops_a_running_answer(anna: Person, shared_fake: FakeOpenAI, page: bool) -> None:
    """A deletion closes the upstream; Undo restores the text received so far."""
    prompt = new_id()
    conversation = anna.ask(prompt, model="stall?n=10")
    record = request_record(shared_fake, prompt)
    wait_until(lambda: "8 9" in anna.get(f"/c/{conversation}").body.decode(), SERVER_TIMEOUT)
    deletion = anna.send(f"/c/{conversation}/delete", page=page)
    assert "deleted, and its answer stopped" in deletion.body.decode()
    assert record.closed.wait(RECORD_TIMEOUT)
    anna.send(f"/c/{conversation}/undelete")
    anna.wait_idle(conversation)
    restored_page = anna.get(f"/c/{conversation}").body.decode()
    assert 'data-state="stopped"' in restored_page
    assert "8 9" in restored_page


def test_several_are_pinned_archived_and_deleted_at_once(anna: Person) -> None:
    """One request pins, archives or deletes several; what it says offers one Undo for all."""
    talks = [exported_conversation("Q", "A", title=f"Talk {n}", at=1e9 + n) for n in range(5)]
    anna.add(*talks)
    ids = [talk["id"] for talk in talks]
    assert anna.change("pin", ids[0], ids[2]).status == 204
    assert anna.titles()[:2] == ["Talk 2", "Talk 0"]
    archived = anna.change("archive", ids[1], ids[2]).body.decode()
    assert "2 chats were moved to the archive." in archived
    assert archived.count('name="id"') == 2
    assert anna.titles() == ["Talk 0", "Talk 4", "Talk 3"]
    assert anna.titles("/conversations?archived=1") == ["Talk 2", "Talk 1"]
    found = anna.get("/conversations/search?q=A").body.decode()
    assert found.count("Archived · Answer") == 2
    assert "moved back" in anna.change("unarchive", ids[2]).body.decode()
    assert anna.titles()[:2] == ["Talk 2", "Talk 0"]
    deleted = anna.change("delete", *ids[2:], new_id()).body.decode()
    assert "3 chats were deleted." in deleted
    assert anna.titles() == ["Talk 0"]
    (undo,) = re.findall(r'hx-post="(/c/.*?/undelete)"', deleted)
    assert "3 chats are back." in anna.send(undo).body.decode()
    assert anna.titles() == ["Talk 2", "Talk 0", "Talk 4", "Talk 3"]


def test_deletion_of_several_stops_their_answers(anna: Person, shared_fake: FakeOpenAI) -> None:
    """The running answers of deleted conversations are stopped, and the toast says how many."""
    prompts = [f"/fake stall {new_id()}" for _ in range(2)]
    ids = [anna.ask(prompt) for prompt in prompts]
    records = [request_record(shared_fake, prompt) for prompt in prompts]
    anna.add(exported_conversation("Q", "A", title="Idle"))
    ids.append(anna.items()[-1]["id"])
    headers = PAGE_HEADERS | {"HX-Current-URL": f"http://halt.example/c/{ids[0]}"}
    body = urlencode([("do", "delete"), *(("id", one) for one in ids)]).encode()
    deletion = anna.client.request("POST", "/conversations", body, headers)
    for record in records:
        assert record.closed.wait(RECORD_TIMEOUT)
    place = deletion.headers["hx-redirect"]
    page = html.unescape(anna.get(place).body.decode())
    assert "3 chats were deleted, and 2 of their answers stopped." in page
    assert anna.send(f"/c/{ids[0]}/undelete", back="1").headers["hx-redirect"] == f"/c/{ids[0]}"
    assert len(anna.titles()) == 3


@pytest.mark.parametrize(
    ("operation", "ids", "field"),
    [
        ("pin", [], "id"),
        ("delete", ["conversation"] * 2 + [f"conversation-{n}" for n in range(500)], "id"),
        ("delete", ["no ID"], "id"),
        ("publish", ["conversation"], "do"),
    ],
    ids=["none", "501", "no ID", "unknown change"],
)
def test_wrong_change_of_several_is_refused_by_field(
    anna: Person, operation: str, ids: list[str], field: str
) -> None:
    """A change of none, of more than 500, or of an unknown kind is refused."""
    body = urlencode([("do", operation), *(("id", one) for one in ids)]).encode()
    refused = anna.client.request("POST", "/conversations", body, FORM_HEADERS)
    assert (refused.status, refused.error["field"]) == (400, field)


def test_list_has_a_heading_for_each_day(anna: Person) -> None:
    """The list has headings by the day of last use, each once, also across its parts."""
    now, day = time.time(), 86_400
    ages = [0, *[1] * 50, 3, 20, 400]
    anna.add(
        *(
            exported_conversation("Q", "A", title=f"Talk {n}", at=now - age * day - n)
            for n, age in enumerate(ages)
        )
    )
    anna.change("pin", anna.items()[-1]["id"])
    path, headings = "/conversations", []
    while path:
        body = anna.get(path).body.decode()
        headings += re.findall(r"<h2>(.*?)</h2>", body)
        next_paths = re.findall(r'class="further" hx-get="(.*?)"', body)
        path = html.unescape(next_paths[0]) if next_paths else ""
    assert headings[0] == "Pinned"
    assert headings[-2:] == ["Last 7 days", "Last 30 days"]
    assert len(headings) == len(set(headings))


def test_title_from_model_replaces_first_words_only(carla: Person, shared_fake: FakeOpenAI) -> None:
    """The model's title replaces the first words, but never the owner's title."""
    key = new_id()
    shared_fake.texts[key] = "A fine title"
    model = f"text?key={key}&gap_ms=50"
    renamed, unchanged = carla.ask("Some words", model=model), carla.ask("Some words", model=model)
    assert carla.titles() == ["Some words"] * 2
    assert carla.send(f"/c/{renamed}/title", title="My own").status == 200
    wait_until(lambda: carla.item(unchanged)["title"] == "A fine title", SERVER_TIMEOUT)
    assert carla.item(renamed)["title"] == "My own"


# --- search ---------------------------------------------------------------------------------------


def test_search_marks_escaped_matches(anna: Person) -> None:
    """Words and prefixes match in any order; matches are marked, all else is escaped."""
    anna.add(
        exported_conversation(
            "Tell me of <i>zebras</i>", "A zebra has stripes & hooves.", title="<Animals>"
        ),
        exported_conversation("Nothing", "here", title="Other"),
    )
    page = anna.get("/conversations/search?q=" + quote("STRIPES zeb")).body.decode()
    assert "<mark>zebra</mark>" in page
    assert "<mark>stripes</mark> &amp; hooves" in page
    assert "&lt;Animals&gt;" in page
    (conversation,) = [e["id"] for e in anna.items() if e["title"] == "<Animals>"]
    assert re.search(rf'href="/c/{conversation}\?at=\d+&amp;q=STRIPES', page)
    both = anna.get("/conversations/search?q=zebra").body.decode()
    assert both.count("<mark>") == 2
    assert "&lt;i&gt;<mark>zebras</mark>&lt;/i&gt;" in both
    for query in ("zebra nothing", '"', "AND OR", "zebra*", "' OR 1=1 --", "<script>"):
        answer = anna.get("/conversations/search?q=" + quote(query))
        assert answer.status == 200
        assert "<script" not in answer.body.decode()
    assert "<mark>" not in anna.get("/conversations/search?q=").body.decode()
    assert anna.get("/conversations/search?q=" + "x" * 501, Accept="*/*").status == 400


def test_search_results_are_paged(anna: Person) -> None:
    """The pages of many search results hold each result once, the newest first."""
    prompts = [f"walrus {n}" for n in range(90)]
    anna.add(exported_conversation(*prompts))
    path, results = "/conversations/search?q=walrus", []
    while path:
        body = anna.get(path).body.decode()
        results += re.findall(r"<mark>walrus</mark> (\d+)", body)
        next_paths = re.findall(r'data-further="(.*?)"', body)
        path = html.unescape(next_paths[0]) if next_paths else ""
    assert results == [str(n) for n in reversed(range(90))]


# --- long conversations ---------------------------------------------------------------------------


#: A numbered message in the HTML of a page or of a part of it.
NUMBERED_MESSAGE = re.compile(r'(?:<p>|<div class="text">)said-(\d+)\.')


def test_long_conversation_is_paged(anna: Person) -> None:
    """The page shows the last messages; earlier parts are loaded on demand, each message once."""
    anna.add(exported_conversation(*(f"said-{n}." for n in range(2000))))
    (conversation_id,) = [item["id"] for item in anna.items()]
    body = anna.get(f"/c/{conversation_id}").body.decode()
    numbers = [int(n) for n in NUMBERED_MESSAGE.findall(body)]
    assert numbers[-1] == 1999
    assert len(numbers) < 150
    while True:
        before = re.findall(rf'hx-get="(/c/{conversation_id}/exchanges\?before=\d+)"', body)
        if not before:
            break
        body = anna.get(before[0]).body.decode()
        numbers = [int(n) for n in NUMBERED_MESSAGE.findall(body)] + numbers
    assert numbers == list(range(2000))


def test_search_result_opens_the_conversation_around_it(anna: Person) -> None:
    """A search result opens the messages around it, with links to the rest."""
    texts = [f"said-{n}." for n in range(1000)]
    texts[500] = "said-500. pelican"
    anna.add(exported_conversation(*texts))
    page = anna.get("/conversations/search?q=pelican").body.decode()
    (link,) = re.findall(r'href="(/c/[^"]*)"', page)
    body = anna.get(html.unescape(link)).body.decode()
    assert "pelican" in body
    assert "said-999." not in body
    assert re.search(r"/exchanges\?before=\d+", body)
    (after,) = re.findall(r'hx-get="(/c/[^"]*/exchanges\?after=\d+)"', body)
    last = max(map(int, re.findall(r"said-(\d+)\.", body)))
    assert f"said-{last + 1}." in anna.get(after).body.decode()
    for query in ("at=x", "at=-1", "at=99999999999999999999"):
        assert anna.get(f"{html.unescape(link).partition('?')[0]}?{query}").status == 200
    assert anna.get(after.partition("?")[0] + "?before=x", Accept="*/*").status == 400


def test_search_result_in_another_version_selects_it(anna: Person) -> None:
    """A search result in an alternative answer opens the conversation with that alternative."""
    export = exported_conversation("Question", "An ostrich", title="Two")
    alternative = {"id": 3, "parent": 1, "role": "assistant", "content": "A flamingo"}
    export["messages"].append(alternative)
    anna.add(export)
    for word in ("flamingo", "ostrich"):
        page = anna.get(f"/conversations/search?q={word}").body.decode()
        (link,) = re.findall(r'href="(/c/[^"]*)"', page)
        assert word in anna.get(html.unescape(link)).body.decode()


# --- editing an answer ----------------------------------------------------------------------------


def test_edited_answer_is_on_the_page_and_in_exports(carla: Person, boris: Person) -> None:
    """The page shows the edited version, marked as such; an import of its export does too."""
    carla.add(exported_conversation("Question", "An ostrich", "And?", "It runs"))
    (conversation,) = [item["id"] for item in carla.items()]
    page = carla.get(f"/c/{conversation}").body.decode()
    prompt_id, stream_id = (
        re.findall(rf'{name}="(.*?)"', page)[0] for name in ("data-prompt", "data-stream")
    )
    fields = {"prompt_id": prompt_id, "stream_id": stream_id}

    def edit(text: str) -> HttpResponse:
        return carla.send(f"/c/{conversation}/edit-answer", text=text, **fields)

    for text, status, message in (
        (" \r\n ", 400, "Write the answer's text first."),
        ("x" * 5_001, 413, "The answer is longer than 5,000 characters."),
    ):
        refusal = edit(text)
        assert refusal.status == status
        assert message in html.unescape(refusal.body.decode())
    assert edit("An ostrich").body.decode().count("<section") == 2  # unchanged
    answer = edit("\r\nA <flamingo>\r\n").body.decode()
    assert answer.count("<section") == 1
    assert "A &lt;flamingo&gt;" in answer
    assert '<p class="edited">' in answer
    boris.import_file(carla.get("/export").body)
    (imported,) = boris.items()
    assert '<p class="edited">' in boris.get(f"/c/{imported['id']}").body.decode()


# --- settings -------------------------------------------------------------------------------------


def test_settings_apply_to_all_answers_of_one_conversation(
    anna: Person, shared_fake: FakeOpenAI
) -> None:
    """Settings apply to every answer of their conversation, and to no other conversation."""
    conversation, prompt = new_id(), f"Hello {new_id()}"
    saved = anna.send(
        f"/c/{conversation}/settings",
        model="count?n=2",
        system_prompt="Be short.",
        temperature="0.25",
        top_p="0.75",
        max_tokens="77",
    )
    assert saved.status == 200
    assert saved.headers["hx-push-url"] == f"/c/{conversation}"
    assert anna.titles() == []
    anna.ask(prompt, conversation, "count?n=2")
    for nth in range(2):
        body = request_record(shared_fake, prompt, nth).body
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.25, 0.75, 77)
        assert body["messages"][0] == {"role": "system", "content": "Be short."}
        anna.wait_idle(conversation)
        if not nth:
            page = anna.get(f"/c/{conversation}").body.decode()
            (prompt_id,) = re.findall(r'data-prompt="(\d+)"', page)
            regeneration = anna.send(f"/c/{conversation}/regenerate", prompt_id=prompt_id)
            assert regeneration.status == 200
    panel = anna.get(f"/c/{conversation}/settings").body.decode()
    assert "Be short.</textarea>" in panel
    assert 'value="0.25"' in panel
    assert 'value="77"' in panel
    other_prompt = f"Hello {new_id()}"
    anna.ask(other_prompt)
    body = request_record(shared_fake, other_prompt).body
    assert "temperature" not in body
    assert "top_p" not in body
    assert "max_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "2.1"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "hot"),
        ("top_p", "1.1"),
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("max_tokens", "10000001"),
        ("model", "x" * 201),
        ("model", "a\nb"),
        ("system_prompt", "x" * 100_001),
    ],
)
def test_invalid_settings_are_refused_by_field(anna: Person, field: str, value: str) -> None:
    """Invalid settings are not saved; the panel shows an error that names the field."""
    conversation = anna.ask("Hello")
    path = f"/c/{conversation}/settings"
    fields: dict[str, Any] = {"temperature": "1", field: value}
    refused = anna.send(path, False, **fields)
    assert refused.status in {400, 413}
    assert refused.error["field"] == field
    page = anna.send(path, True, **fields)
    assert page.headers["hx-retarget"] == f"#fault-{field}"
    assert 'value="1"' not in anna.get(path).body.decode()


def test_system_prompt_default_is_kept_until_changed(
    carla: Person, shared_fake: FakeOpenAI
) -> None:
    """An unchanged system prompt stays the server's default; an empty one sends none."""
    conversation = new_id()
    path = f"/c/{conversation}/settings"
    assert "Be kind.</textarea>" in carla.get("/settings").body.decode()
    system_messages, selected = [], list[str]()
    for system_prompt in ("Be kind.", "", "Be wise."):
        prompt = new_id()
        assert carla.send(path, system_prompt=system_prompt).status == 200
        carla.ask(prompt, conversation)
        messages = request_record(shared_fake, prompt).body["messages"]
        system_messages.append(
            [message["content"] for message in messages if message["role"] == "system"]
        )
        carla.wait_idle(conversation)
        panel = carla.get(path).body.decode()
        selected += re.findall(r'<option value="" data-kind="(\w+)" selected>', panel)
    assert selected == ["none", "written"]  # the first one, the default, needs no mark
    assert system_messages == [["Be kind."], [], ["Be wise."]]


# --- files ----------------------------------------------------------------------------------------


def test_export_can_be_imported_by_another_session(anna: Person, boris: Person) -> None:
    """An export holds settings, versions and titles; after an import the same export results."""
    settings = {"model": "m", "system_prompt": "s", "temperature": 0.5, "max_tokens": 9}
    settings |= {"prompt_name": "p", "top_p": 0.25}
    export = exported_conversation("Hi", "Hello **you**", title="Title: a/b", settings=settings)
    export["messages"].append({"id": 9, "parent": 1, "role": "assistant", "content": "Other"})
    anna.add(export, exported_conversation("Second", "Two", title="Zwei", at=1_750_000_000.0))
    full_export = anna.get("/export")
    assert full_export.headers["content-type"] == "application/json"
    assert re.fullmatch(
        r"attachment; filename=Halt-\d{4}-\d\d-\d\d\.json; .*",
        full_export.headers["content-disposition"],
    )
    assert boris.import_file(full_export.body).status == 200
    assert boris.titles() == anna.titles()

    def comparable(data: bytes) -> list[Any]:
        conversations = json.loads(data)["conversations"]
        for conversation in conversations:
            conversation.pop("id")
            positions = {m["id"]: n for n, m in enumerate(conversation["messages"])}
            for message in conversation["messages"]:
                message["parent"] = positions.get(message.get("parent"))
                del message["id"]
            conversation["chosen"] = sorted(positions[n] for n in conversation["chosen"])
        return sorted(conversations, key=lambda conversation: str(conversation["title"]))

    assert comparable(boris.get("/export").body) == comparable(full_export.body)
    assert boris.import_file(full_export.body).status == 200
    assert len(boris.titles()) == 4
    (conversation_id,) = [item["id"] for item in anna.items() if item["title"] == "Zwei"]
    single_export = anna.get(f"/c/{conversation_id}/export?format=json")
    assert [
        conversation["title"] for conversation in json.loads(single_export.body)["conversations"]
    ] == ["Zwei"]


def test_markdown_export_holds_authors_and_texts(anna: Person) -> None:
    """A Markdown export has prompts and answers in order, unescaped, and marks a stopped answer."""
    export = exported_conversation(
        "What is **2+2**?", "# Four\n\n```py\n4\n```", title="Grüße & <Küsse>"
    )
    export["messages"][1] |= {"state": "stopped", "model": "m-1"}
    anna.add(export, exported_conversation("Second", "Two"))
    (conversation_id,) = [item["id"] for item in anna.items() if item["title"].startswith("Gr")]
    answer = anna.get(f"/c/{conversation_id}/export?format=markdown")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["content-disposition"].endswith("Gr%C3%BC%C3%9Fe-K%C3%BCsse.md")
    text = answer.body.decode()
    assert text.startswith("# Grüße & <Küsse>\n")
    assert text.index("## You") < text.index("What is **2+2**?") < text.index("## m-1")
    assert text.index("```py\n4\n```") < text.lower().index("stopped")
    full_text = anna.get("/export?format=markdown").body.decode()
    assert "Second" in full_text
    assert "What is **2+2**?" in full_text
    refused = anna.get("/export?format=pdf")
    assert (refused.status, refused.error["field"]) == (400, "format")


def ask_with_files(person: Person, **files: bytes) -> str:
    """Send a prompt with these files, and wait for the answer; the ID of the conversation."""
    taken = [(uploaded(person.client, data, name)["id"], name) for name, data in files.items()]
    path, answer = send(person.client, "", taken)
    assert answer.status == 200, answer.body.decode()
    conversation = path.removeprefix("/c/")
    person.wait_idle(conversation)
    return conversation


def test_export_with_files_can_be_imported_by_another_session(anna: Person, boris: Person) -> None:
    """JSON has the files; another session gets them under the same addresses."""
    text = b"x" * 1_000_000  # the export is read from the disk
    conversation = ask_with_files(anna, **{"photo.jpg": image(kind="JPEG"), "long.txt": text})
    exported = anna.get(f"/c/{conversation}/export?format=json").body
    files = {file["type"]: file["hash"] for file in json.loads(exported)["files"]}
    assert boris.get(f"/files/{files['image/jpeg']}").status == 404
    answer = boris.import_file(exported, page=True)
    assert "1 chat was imported." in answer.body.decode()
    page = boris.get(f"/c/{boris.items()[0]['id']}").body.decode()
    assert re.findall(r'data-file="(\w+)" data-name="([^"]*)"', page) == [
        (files["image/jpeg"], "photo.jpg"),
        (files["text/plain"], "long.txt"),
    ]
    for path in (f"/files/{files['image/jpeg']}", f"/files/{files['text/plain']}/download"):
        assert boris.get(path).body == anna.get(path).body
    again = json.loads(boris.get("/export").body)
    assert again["files"] == json.loads(exported)["files"]


def test_import_names_the_files_that_are_not_there(anna: Person) -> None:
    """The chat is imported, and the toast says what is missing."""
    talk = exported_conversation("Look.", "I see.")
    names = [f"{number}.png" for number in range(5)]
    talk["messages"][0]["files"] = [{"hash": secrets.token_hex(32), "name": name} for name in names]
    answer = anna.import_file(export_file(talk), page=True).body.decode()
    assert (
        "1 chat was imported. 5 files were not imported, only named in the text: "
        "0.png, 1.png, 2.png and 2 more." in answer
    )
    assert "[file: 4.png]" in anna.get(f"/c/{anna.items()[0]['id']}").body.decode()


@pytest.mark.parametrize("path", ["/c/{}/export?", "/export?"])
def test_markdown_export_with_files_is_an_archive(anna: Person, path: str) -> None:
    """One with files is a ZIP of the Markdown and a folder; one without stays Markdown."""
    anna.add(exported_conversation("Hello", "Hello."))
    (plain,) = [item["id"] for item in anna.items()]
    without = anna.get(f"{path.format(plain)}format=markdown")
    assert without.headers["content-type"] == "text/markdown; charset=utf-8"
    picture = image()
    conversation = ask_with_files(anna, **{"a photo.png": picture})
    answer = anna.get(f"{path.format(conversation)}format=markdown")
    assert answer.headers["content-type"] == "application/zip"
    name = re.search(r"filename=(.*)\.zip;", answer.headers["content-disposition"])
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert name is not None
        assert archive.namelist() == [f"{name[1]}.md", "files/1-a photo.png"]
        assert archive.read("files/1-a photo.png") == picture
        text = archive.read(f"{name[1]}.md").decode()
    assert "## You\n\n![a photo.png](files/1-a%20photo.png)\n" in text
    assert (
        anna.import_file(answer.body)
        .error["message"]
        .startswith("This file can't be imported: it is a ZIP archive.")
    )


def test_search_finds_a_file_by_its_name(anna: Person) -> None:
    """The hit opens the chat at the message; the name is marked."""
    conversation = ask_with_files(anna, **{"Floorplan 2.pdf": pdf(["Doors"])})
    found = anna.get("/conversations/search?q=plan").body.decode()
    assert re.search(rf'href="/c/{conversation}\?at=\d+&amp;q=plan"', found)
    assert "Floor<mark>plan</mark> 2.pdf" in found


def test_selected_conversations_are_exported_as_one_file(anna: Person) -> None:
    """The selected conversations are in one file, and no others."""
    anna.add(*(exported_conversation("Q", "A", title=f"Talk {n}", at=1e9 + n) for n in range(3)))
    ids = [item["id"] for item in anna.items()]
    body = urlencode([("format", "json"), ("id", ids[0]), ("id", ids[2])]).encode()
    exported = anna.client.request("POST", "/export", body, FORM_HEADERS)
    assert "attachment" in exported.headers["content-disposition"]
    titles = sorted(talk["title"] for talk in json.loads(exported.body)["conversations"])
    assert titles == ["Talk 0", "Talk 2"]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A plain one", "A-plain-one"),
        ("../../etc/passwd", "etc-passwd"),
        ('a"b\r\nSet-Cookie: x', "a-b-Set-Cookie-x"),
        ("שלום עולם", "שלום-עולם"),
        ("💬", "conversation"),
        ("x" * 500, "x" * 60),
    ],
)
def test_export_file_name_is_safe(title: str, name: str) -> None:
    """The file name is the title without characters that are special in paths or headers."""
    assert file_stem(title) == name


CONVERSATION = exported_conversation("Hi", "Ho")


def test_import_of_a_file_without_conversations_says_so(anna: Person) -> None:
    """The page says that the file has no conversations; none is added."""
    page = anna.import_file(export_file(), page=True)
    assert page.status == 200
    assert "The file has no chats. Nothing was imported." in page.body.decode()
    assert anna.items() == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Choose the JSON file"),
        (b"no JSON", "JSON"),
        (b"\xff\xfe", "file"),
        (
            b"[]",
            "it is not an export of Halt. Choose the JSON file that “Export all as JSON” made.",
        ),
        (b'{"format": "halt-conversations", "version": 1}', "conversations"),
        (
            export_file(CONVERSATION).replace(b"halt-conversations", b"somebody-elses"),
            "somebody-elses",
        ),
        (export_file(CONVERSATION).replace(b'"version": 1', b'"version": 99'), "99"),
        (
            export_file(CONVERSATION, {**exported_conversation("a", "b"), "messages": 5}),
            "in conversation 2, the field “messages” must be",
        ),
        (export_file(CONVERSATION, {**CONVERSATION, "id": "../x"}), "“id” must be 8 to 64 letters"),
        (
            export_file(CONVERSATION).replace(b'"user"', b'"system"'),
            "“role” must be one of user, assistant",
        ),
        (export_file(CONVERSATION).replace(b'"parent": 1', b'"parent": 7'), "7"),
        (export_file(CONVERSATION).replace(b'"parent": 1', b'"parent": null'), "answer"),
        (
            export_file({**CONVERSATION, "settings": {"temperature": 9}}),
            "temperature” must be 2.0 or less",
        ),
        (b"[" * 100_000, ""),
    ],
)
def test_invalid_import_is_refused_whole(anna: Person, data: bytes, reason: str) -> None:
    """An invalid file is refused with the reason, and no conversation of it is imported."""
    refused = anna.import_file(data)
    assert (refused.status, refused.error["field"]) == (400, "file")
    assert re.search(reason, refused.error["message"]), refused.error["message"]
    assert anna.titles() == []
    page = anna.import_file(data, page=True)
    assert page.headers["hx-retarget"] == "#toast"


def test_import_has_its_own_size_limit(carla: Person) -> None:
    """A file may be larger than a message; above its limit the error names limit and variable."""
    assert carla.import_file(export_file(exported_conversation("x" * 100_000, "y"))).status == 200
    connection = carla.client.connect()
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "9000001"}
    carla.client.send(connection, "POST", "/import", bytes(FILE_BODY_MAX), headers)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["field"]) == (413, "file")
    assert "9,000,000 bytes (HALT_MAX_IMPORT_BYTES)" in error["message"]
    assert len(carla.titles()) == 1


def test_export_takes_a_reader_place_until_it_ends(carla: Person) -> None:
    """A streamed export takes a reader's place and gives it back when it ends or is abandoned."""
    carla.add(*(exported_conversation("x" * 400_000, "y" * 400_000) for _ in range(10)))
    for _ in range(2):
        with ExitStack() as readers:
            for _ in range(2):
                wait_until(lambda: begins_export(carla.client, readers), SERVER_TIMEOUT)
            assert carla.get("/export").status == 503
        for method in ("GET", "HEAD", "GET"):
            wait_until(
                lambda: carla.client.request(method, "/export").status == 200, SERVER_TIMEOUT
            )


def begins_export(client: Client, readers: ExitStack) -> bool:
    """Whether an export starts; it stays unread until `readers` ends.

    An earlier reader's place becomes free only after that reader's last byte.
    """
    connection = client.connect(receive_buffer=2048)
    readers.callback(connection.close)
    client.send(connection, "GET", "/export")
    response = connection.getresponse()
    readers.callback(response.close)
    return response.status == 200 and bool(response.read(1000))


# --- other sessions -------------------------------------------------------------------------------

READS = ["", "/item", "/title", "/export", "/settings", "/exchanges?before=1", "/usage"]
WRITES = [
    "/title",
    "/delete",
    "/undelete",
    "/settings",
    "/regenerate",
    "/messages",
    "/edit-answer",
]


@pytest.fixture(scope="module")
def other_id(halt: HaltServer) -> Iterator[str]:
    """The ID of a conversation of another session."""
    person = Person(halt)
    person.add(exported_conversation("Secret", "giraffe", title="Hers"))
    (conversation,) = [item["id"] for item in person.items()]
    yield conversation
    assert person.titles() == ["Hers"]


@pytest.mark.parametrize("path", READS)
def test_conversation_of_another_session_is_not_found(
    halt: HaltServer, other_id: str, path: str
) -> None:
    """Every route to another session's conversation answers 404, with a session and without."""
    for client in (Person(halt).client, halt.client()):
        answer = client.get(f"/c/{other_id}{path}", Accept="*/*")
        if path != "/usage":
            assert answer.status == 404
        assert b"giraffe" not in answer.body


@pytest.mark.parametrize("path", WRITES)
def test_conversation_of_another_session_cannot_be_changed(
    halt: HaltServer, other_id: str, path: str
) -> None:
    """No other session and no program can change a conversation, even with its ID."""
    for client in (Person(halt).client, halt.client()):
        body = urlencode({"title": "Mine", "prompt": "Hi", "prompt_id": "1", "text": "Hi"}).encode()
        assert client.request("POST", f"/c/{other_id}{path}", body, FORM_HEADERS).status == 404


@pytest.mark.parametrize("operation", ["pin", "archive", "delete"])
def test_several_of_another_session_cannot_be_changed(
    halt: HaltServer, other_id: str, operation: str
) -> None:
    """No other session and no program can pin, archive, delete or export a conversation."""
    for client in (Person(halt).client, halt.client()):
        body = urlencode({"do": operation, "id": other_id}).encode()
        assert client.request("POST", "/conversations", body, FORM_HEADERS).status == 404
        exported = client.request("POST", "/export", body, FORM_HEADERS)
        assert json.loads(exported.body)["conversations"] == []


def test_conversation_is_not_listed_for_another_session(
    halt: HaltServer, other_id: str, anna: Person
) -> None:
    """List, search and export of one session hold no conversation of another."""
    for client in (anna.client, halt.client()):
        assert other_id.encode() not in client.get("/conversations").body
        assert b"giraffe" not in client.get("/conversations/search?q=giraffe").body
        assert json.loads(client.get("/export").body)["conversations"] == []


def test_import_with_a_used_id_gets_a_new_id(anna: Person, other_id: str) -> None:
    """An import whose conversation has an ID of another session is stored under a new ID."""
    anna.add(exported_conversation("Mine", "all mine", title="Mine", id=other_id))
    (imported_id,) = [item["id"] for item in anna.items()]
    assert imported_id != other_id


def test_concurrent_changes_leave_a_valid_conversation(anna: Person) -> None:
    """Concurrent renames and deletions leave the conversation in one of the requested states."""
    anna.add(exported_conversation("Hi", "Ho"))
    (conversation_id,) = [item["id"] for item in anna.items()]
    statuses: list[int] = []

    def rename(n: int) -> None:
        statuses.append(anna.send(f"/c/{conversation_id}/title", title=f"Name {n}").status)

    threads = [threading.Thread(target=rename, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert re.fullmatch(r"Name \d", anna.titles()[0])

"""Routes beside the page's messages: list, search, settings, files and undo; access by session."""

from __future__ import annotations

import html
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from halt.web.page.files import file_name
from tests.support.export_files import export_file, exported_conversation
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, new_id, request_record
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import FORM_HEADERS, PAGE_HEADERS
from tests.support.waiting import SERVER_TIMEOUT, wait_until


class Person:
    """A browser with a session, and what it does on the page."""

    def __init__(self, server: HaltServer) -> None:
        self.client: Client = server.client()
        self.client.get("/")

    def get(self, path: str, **headers: str) -> HttpResponse:
        return self.client.get(path, **headers)

    def send(self, path: str, page: bool = True, **fields: Any) -> HttpResponse:
        return self.client.request(
            "POST", path, urlencode(fields).encode(), PAGE_HEADERS if page else FORM_HEADERS
        )

    def ask(self, said: str, conversation: str = "", model: str = "") -> str:
        """Ask; the ID of the conversation, which is begun where none is given."""
        conversation = conversation or new_id()
        answer = self.send(f"/c/{conversation}/messages", prompt=said, model=model)
        assert answer.status == 200, answer.body.decode()
        return conversation

    def settled(self, conversation: str) -> None:
        """Wait until the list says that nothing is being written in it."""
        wait_until(lambda: not self.item(conversation)["running"], SERVER_TIMEOUT)

    def items(self, path: str = "/conversations") -> list[dict[str, Any]]:
        """The list as a person sees it, all parts of it."""
        out: list[dict[str, Any]] = []
        while path:
            body = self.get(path).body.decode()
            for part in re.findall(r'<li id="c-.*?</li>', body, re.DOTALL):
                (title,) = re.findall(r'<span class="title"[^>]*>(.*?)</span>', part)
                out.append(
                    {
                        "id": re.findall(r'data-id="(.*?)"', part)[0],
                        "title": html.unescape(title),
                        "running": "data-running" in part,
                        "current": "aria-current" in part,
                    }
                )
            further = re.findall(r'class="further" hx-get="(.*?)"', body)
            path = html.unescape(further[0]) if further else ""
        return out

    def item(self, conversation: str) -> dict[str, Any]:
        (listed_item,) = [item for item in self.items() if item["id"] == conversation]
        return listed_item

    def titles(self) -> list[str]:
        return [item["title"] for item in self.items()]

    def import_(self, data: bytes, *, page: bool = False) -> HttpResponse:
        """Choose a file to import."""
        line = secrets.token_hex(8)
        head = 'Content-Disposition: form-data; name="file"; filename="a.json"'
        body = f"--{line}\r\n{head}\r\n\r\n".encode() + data + f"\r\n--{line}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={line}"}
        return self.client.request(
            "POST", "/import", body, headers | ({"HX-Request": "true"} if page else {})
        )

    def keep(self, *conversations: dict[str, Any]) -> None:
        """Have these conversations, without asking a model."""
        answer = self.import_(export_file(*conversations))
        assert answer.status == 200, answer.body.decode()


@pytest.fixture
def anna(halt: HaltServer) -> Person:
    return Person(halt)


@pytest.fixture(scope="module")
def unusual(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with settings that are not the usual ones."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_TITLES": "model",
            "HALT_SYSTEM_PROMPT": "Be kind.",
            "HALT_MAX_STREAMS": "2",
            "HALT_MAX_BODY_BYTES": "20000",
            "HALT_MAX_IMPORT_BYTES": "9000000",
        }
    )
    yield server
    server.close()


@pytest.fixture
def carla(unusual: HaltServer) -> Person:
    return Person(unusual)


@pytest.fixture
def boris(halt: HaltServer) -> Person:
    return Person(halt)


# --- the list -------------------------------------------------------------------------------------


def test_list_is_ordered_by_last_use(anna: Person) -> None:
    """A title is the prompt's first words; a new message moves its conversation to the top."""
    first = anna.ask("The first  of\nall talks")
    anna.settled(first)
    second = anna.ask("Another one")
    assert [item["id"] for item in anna.items()] == [second, first]
    assert anna.titles()[1].startswith("The first of")
    anna.settled(second)
    anna.ask("And on", first)
    assert [item["id"] for item in anna.items()] == [first, second]


def test_long_list_is_paged(anna: Person) -> None:
    """The pages of the list hold each conversation once, in order; the last has no next link."""
    talks = [
        exported_conversation("Hi", "Ho", title=f"Talk {n}", at=1_760_000_000.0 + n)
        for n in range(300)
    ]
    anna.keep(*talks)
    assert anna.titles() == [f"Talk {n}" for n in reversed(range(300))]
    assert len(re.findall("<li id=", anna.get("/").body.decode())) <= 50
    assert anna.get("/conversations?cursor=nonsense", Accept="*/*").status == 400


def test_list_marks_running_and_open_conversations(anna: Person, shared_fake: FakeOpenAI) -> None:
    """The list marks the open conversation, and those whose answer is being written."""
    prompt = f"/fake stall {new_id()}"
    runs, rests = anna.ask(prompt), anna.ask("Hello")
    anna.settled(rests)
    assert anna.item(runs)["running"]
    assert [item["id"] for item in anna.items(f"/conversations?current={rests}") if item["current"]]
    assert 'aria-current="page"' in anna.get(f"/c/{runs}").body.decode()
    stream = re.findall(r'data-stream="(.*?)"', anna.get(f"/c/{runs}").body.decode())[-1]
    assert anna.client.stop(stream).status == 200
    anna.settled(runs)


def test_rename_stores_and_escapes_the_title(anna: Person) -> None:
    """A title is stored as written and escaped; an empty or too long one is refused."""
    conversation = anna.ask("Hello")
    field = anna.get(f"/c/{conversation}/title").body.decode()
    assert 'value="Hello"' in field
    answer = anna.send(f"/c/{conversation}/title", title=' <b>שלום</b>  "x" ')
    assert answer.status == 200
    assert "<b>" not in answer.body.decode()
    assert anna.titles() == ['<b>שלום</b> "x"']
    anna.settled(conversation)
    anna.ask("More", conversation)
    assert anna.titles() == ['<b>שלום</b> "x"']
    for title in ("", "  ", "x" * 201):
        refused = anna.send(f"/c/{conversation}/title", title=title, page=False)
        assert (refused.status, refused.error["field"]) == (400, "title")
    assert anna.titles() == ['<b>שלום</b> "x"']


def test_undelete_restores_a_deleted_conversation(anna: Person) -> None:
    """A deleted conversation is in no list, search or export; Undo restores it unchanged."""
    anna.keep(exported_conversation("Question", "Answer zebra", title="Kept"))
    (kept,) = [item["id"] for item in anna.items()]
    gone = anna.send(f"/c/{kept}/delete")
    assert f'hx-post="/c/{kept}/undelete"' in gone.body.decode()
    assert anna.titles() == []
    assert anna.get(f"/c/{kept}").status == 404
    assert "zebra" not in anna.get("/conversations/search?q=zebra").body.decode()
    assert json.loads(anna.get("/export").body)["conversations"] == []
    assert anna.send(f"/c/{kept}/delete").status == 404
    assert "is back" in anna.send(f"/c/{kept}/undelete").body.decode()
    assert anna.titles() == ["Kept"]
    assert "Answer zebra" in anna.get(f"/c/{kept}").body.decode()


def test_delete_of_the_open_conversation_redirects(anna: Person) -> None:
    """The page moves to a new conversation that offers Undo; Undo opens the deleted one."""
    anna.keep(exported_conversation("Question", "Answer"))
    (kept,) = [item["id"] for item in anna.items()]
    open_now = PAGE_HEADERS | {"HX-Current-URL": f"http://halt.example/c/{kept}"}
    gone = anna.client.request("POST", f"/c/{kept}/delete", b"", open_now)
    assert gone.headers["hx-redirect"] == f"/?deleted={kept}"
    assert f'hx-post="/c/{kept}/undelete"' in anna.get(f"/?deleted={kept}").body.decode()
    back = anna.send(f"/c/{kept}/undelete", back="1")
    assert back.headers["hx-redirect"] == f"/c/{kept}"
    hostile = anna.get("/?deleted=" + quote('"><b>x')).body.decode()
    assert "<b>x" not in hostile


@pytest.mark.parametrize("page", [True, False], ids=["page", "program"])
def test_delete_stops_a_running_answer(anna: Person, shared_fake: FakeOpenAI, page: bool) -> None:
    """A deletion closes the upstream; Undo restores the text received so far."""
    prompt = new_id()
    conversation = anna.ask(prompt, model="stall?n=10")
    record = request_record(shared_fake, prompt)
    wait_until(lambda: "8 9" in anna.get(f"/c/{conversation}").body.decode(), SERVER_TIMEOUT)
    gone = anna.send(f"/c/{conversation}/delete", page=page)
    assert "deleted, and its answer stopped" in gone.body.decode()
    assert record.closed.wait(RECORD_TIMEOUT)
    anna.send(f"/c/{conversation}/undelete")
    anna.settled(conversation)
    back = anna.get(f"/c/{conversation}").body.decode()
    assert 'data-state="stopped"' in back
    assert "8 9" in back


def test_title_from_model_replaces_first_words_only(carla: Person, shared_fake: FakeOpenAI) -> None:
    """The model's title replaces the first words, but never the owner's title."""
    key = new_id()
    shared_fake.texts[key] = "A fine title"
    model = f"text?key={key}&gap_ms=50"
    own, named = carla.ask("Some words", model=model), carla.ask("Some words", model=model)
    assert carla.titles() == ["Some words"] * 2
    assert carla.send(f"/c/{own}/title", title="My own").status == 200
    wait_until(lambda: carla.item(named)["title"] == "A fine title", SERVER_TIMEOUT)
    assert carla.item(own)["title"] == "My own"


# --- search ---------------------------------------------------------------------------------------


def test_search_marks_escaped_matches(anna: Person) -> None:
    """Words and prefixes match in any order; matches are marked, all else is escaped."""
    anna.keep(
        exported_conversation(
            "Tell me of <i>zebras</i>", "A zebra has stripes & hooves.", title="<Animals>"
        ),
        exported_conversation("Nothing", "here", title="Other"),
    )
    page = anna.get("/conversations/search?q=" + quote("STRIPES zeb")).body.decode()
    assert "<mark>zebra</mark>" in page
    assert "<mark>stripes</mark> &amp; hooves" in page
    assert "&lt;Animals&gt;" in page
    assert "1 message found" in page
    (conversation,) = [e["id"] for e in anna.items() if e["title"] == "<Animals>"]
    assert re.search(rf'href="/c/{conversation}\?at=\d+&amp;q=STRIPES', page)
    both = anna.get("/conversations/search?q=zebra").body.decode()
    assert both.count("<mark>") == 2
    assert "&lt;i&gt;<mark>zebras</mark>&lt;/i&gt;" in both
    for query in ("zebra nothing", '"', "AND OR", "zebra*", "' OR 1=1 --", "<script>"):
        answer = anna.get("/conversations/search?q=" + quote(query))
        assert answer.status == 200
        assert "<script" not in answer.body.decode()
    assert anna.get("/conversations/search?q=").body.strip() == b""
    assert anna.get("/conversations/search?q=" + "x" * 501, Accept="*/*").status == 400


def test_search_results_are_paged(anna: Person) -> None:
    """The pages of many search results hold each result once, the newest first."""
    prompts = [f"walrus {n}" for n in range(90)]
    anna.keep(exported_conversation(*prompts))
    path, results = "/conversations/search?q=walrus", []
    while path:
        body = anna.get(path).body.decode()
        results += re.findall(r"<mark>walrus</mark> (\d+)", body)
        further = re.findall(r'class="further" hx-get="(.*?)"', body)
        path = html.unescape(further[0]) if further else ""
    assert results == [str(n) for n in reversed(range(90))]


# --- long conversations ---------------------------------------------------------------------------


#: Where a page or a part of it shows a numbered message.
SAID = re.compile(r'(?:<p>|<div class="text">)said-(\d+)\.')


def test_long_conversation_is_paged(anna: Person) -> None:
    """The page shows the last messages; earlier parts are loaded on demand, each message once."""
    anna.keep(exported_conversation(*(f"said-{n}." for n in range(2000))))
    (long,) = [item["id"] for item in anna.items()]
    body = anna.get(f"/c/{long}").body.decode()
    numbers = [int(n) for n in SAID.findall(body)]
    assert numbers[-1] == 1999
    assert len(numbers) < 150
    while True:
        before = re.findall(rf'hx-get="(/c/{long}/exchanges\?before=\d+)"', body)
        if not before:
            break
        body = anna.get(before[0]).body.decode()
        numbers = [int(n) for n in SAID.findall(body)] + numbers
    assert numbers == list(range(2000))


def test_search_result_opens_the_conversation_around_it(anna: Person) -> None:
    """A search result opens the messages around it, with links to the rest."""
    texts = [f"said-{n}." for n in range(1000)]
    texts[500] = "said-500. pelican"
    anna.keep(exported_conversation(*texts))
    page = anna.get("/conversations/search?q=pelican").body.decode()
    (link,) = re.findall(r'href="(/c/[^"]*)"', page)
    body = anna.get(html.unescape(link)).body.decode()
    assert "pelican" in body
    assert "said-999." not in body
    assert re.search(r"/exchanges\?before=\d+", body)
    (after,) = re.findall(r'hx-get="(/c/[^"]*/exchanges\?after=\d+)"', body)
    last = max(map(int, re.findall(r"said-(\d+)\.", body)))
    assert f"said-{last + 1}." in anna.get(after).body.decode()
    for wrong in ("at=x", "at=-1", "at=99999999999999999999"):
        assert anna.get(f"{html.unescape(link).partition('?')[0]}?{wrong}").status == 200
    assert anna.get(after.partition("?")[0] + "?before=x", Accept="*/*").status == 400


def test_search_result_in_another_version_selects_it(anna: Person) -> None:
    """A search result in an alternative answer opens the conversation with that alternative."""
    export = exported_conversation("Question", "An ostrich", title="Two")
    other = {"id": 3, "parent": 1, "role": "assistant", "content": "A flamingo"}
    export["messages"].append(other)
    anna.keep(export)
    for word in ("flamingo", "ostrich"):
        page = anna.get(f"/conversations/search?q={word}").body.decode()
        (link,) = re.findall(r'href="(/c/[^"]*)"', page)
        assert word in anna.get(html.unescape(link)).body.decode()


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
        max_tokens="77",
    )
    assert saved.status == 200
    assert saved.headers["hx-push-url"] == f"/c/{conversation}"
    assert anna.titles() == []
    anna.ask(prompt, conversation, "count?n=2")
    for nth in range(2):
        body = request_record(shared_fake, prompt, nth).body
        assert (body["temperature"], body["max_tokens"]) == (0.25, 77)
        assert body["messages"][0] == {"role": "system", "content": "Be short."}
        anna.settled(conversation)
        if not nth:
            page = anna.get(f"/c/{conversation}").body.decode()
            (prompt_id,) = re.findall(r'data-prompt="(\d+)"', page)
            again = anna.send(f"/c/{conversation}/regenerate", prompt_id=prompt_id)
            assert again.status == 200
    panel = anna.get(f"/c/{conversation}/settings").body.decode()
    assert "Be short.</textarea>" in panel
    assert 'value="0.25"' in panel
    assert 'value="77"' in panel
    other = f"Hello {new_id()}"
    anna.ask(other)
    body = request_record(shared_fake, other).body
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "2.1"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "hot"),
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("max_tokens", "10000001"),
        ("model", "x" * 201),
        ("model", "a\nb"),
        ("system_prompt", "x" * 100_001),
    ],
)
def test_invalid_settings_are_refused_by_field(anna: Person, field: str, value: str) -> None:
    """The error names the field and is shown in the panel; nothing is saved."""
    conversation = anna.ask("Hello")
    path = f"/c/{conversation}/settings"
    fields: dict[str, Any] = {"temperature": "1", field: value}
    refused = anna.send(path, False, **fields)
    assert refused.status in {400, 413}
    assert refused.error["field"] == field
    page = anna.send(path, True, **fields)
    assert page.headers["hx-retarget"] == "#settings-fault"
    assert 'value="1"' not in anna.get(path).body.decode()


def test_system_prompt_default_is_kept_until_changed(
    carla: Person, shared_fake: FakeOpenAI
) -> None:
    """An unchanged system prompt stays the server's default; an empty one sends none."""
    conversation = new_id()
    path = f"/c/{conversation}/settings"
    assert "Be kind.</textarea>" in carla.get("/settings").body.decode()
    system_messages = []
    for system_prompt in ("Be kind.", "", "Be wise."):
        prompt = new_id()
        assert carla.send(path, system_prompt=system_prompt).status == 200
        carla.ask(prompt, conversation)
        messages = request_record(shared_fake, prompt).body["messages"]
        system_messages.append(
            [message["content"] for message in messages if message["role"] == "system"]
        )
        carla.settled(conversation)
    assert system_messages == [["Be kind."], [], ["Be wise."]]


# --- files ----------------------------------------------------------------------------------------


def test_export_can_be_imported_by_another_session(anna: Person, boris: Person) -> None:
    """An export holds settings, versions and titles; after an import the same export results."""
    settings = {"model": "m", "system_prompt": "s", "temperature": 0.5, "max_tokens": 9}
    export = exported_conversation("Hi", "Hello **you**", title="Title: a/b", settings=settings)
    export["messages"].append({"id": 9, "parent": 1, "role": "assistant", "content": "Other"})
    anna.keep(export, exported_conversation("Second", "Two", title="Zwei", at=1_750_000_000.0))
    whole = anna.get("/export")
    assert whole.headers["content-type"] == "application/json"
    assert re.fullmatch(
        r"attachment; filename=Halt-\d{4}-\d\d-\d\d\.json; .*",
        whole.headers["content-disposition"],
    )
    assert boris.import_(whole.body).status == 200
    assert boris.titles() == anna.titles()

    def told(data: bytes) -> list[Any]:
        conversations = json.loads(data)["conversations"]
        for each in conversations:
            each.pop("id")
            places = {m["id"]: n for n, m in enumerate(each["messages"])}
            for message in each["messages"]:
                message["parent"] = places.get(message.get("parent"))
                del message["id"]
            each["chosen"] = sorted(places[n] for n in each["chosen"])
        return sorted(conversations, key=lambda each: str(each["title"]))

    assert told(boris.get("/export").body) == told(whole.body)
    assert boris.import_(whole.body).status == 200
    assert len(boris.titles()) == 4
    (one,) = [item["id"] for item in anna.items() if item["title"] == "Zwei"]
    only = anna.get(f"/c/{one}/export?format=json")
    assert [conversation["title"] for conversation in json.loads(only.body)["conversations"]] == [
        "Zwei"
    ]


def test_markdown_export_holds_authors_and_texts(anna: Person) -> None:
    """A Markdown export has prompts and answers in order, unescaped, and marks a stopped answer."""
    export = exported_conversation(
        "What is **2+2**?", "# Four\n\n```py\n4\n```", title="Grüße & <Küsse>"
    )
    export["messages"][1] |= {"state": "stopped", "model": "m-1"}
    anna.keep(export, exported_conversation("Second", "Two"))
    (one,) = [item["id"] for item in anna.items() if item["title"].startswith("Gr")]
    answer = anna.get(f"/c/{one}/export?format=markdown")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["content-disposition"].endswith("Gr%C3%BC%C3%9Fe-K%C3%BCsse.md")
    text = answer.body.decode()
    assert text.startswith("# Grüße & <Küsse>\n")
    assert text.index("## You") < text.index("What is **2+2**?") < text.index("## m-1")
    assert text.index("```py\n4\n```") < text.lower().index("stopped")
    whole = anna.get("/export?format=markdown").body.decode()
    assert "Second" in whole
    assert "What is **2+2**?" in whole
    refused = anna.get("/export?format=pdf")
    assert (refused.status, refused.error["field"]) == (400, "format")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A plain one", "A-plain-one.md"),
        ("../../etc/passwd", "etc-passwd.md"),
        ('a"b\r\nSet-Cookie: x', "a-b-Set-Cookie-x.md"),
        ("שלום עולם", "שלום-עולם.md"),
        ("💬", "conversation.md"),
        ("x" * 500, "x" * 60 + ".md"),
    ],
)
def test_export_file_name_is_safe(title: str, name: str) -> None:
    """The file name is the title without characters that are special in paths or headers."""
    assert file_name(title, "md") == name


GOOD = exported_conversation("Hi", "Ho")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Choose a file"),
        (b"no JSON", "JSON"),
        (b"\xff\xfe", "file"),
        (b"[]", "it is not an export of Halt. Halt reads JSON files that it has exported"),
        (b'{"format": "halt-conversations", "version": 1}', "conversations"),
        (export_file(GOOD).replace(b"halt-conversations", b"somebody-elses"), "somebody-elses"),
        (export_file(GOOD).replace(b'"version": 1', b'"version": 99'), "99"),
        (
            export_file(GOOD, {**exported_conversation("a", "b"), "messages": 5}),
            "in conversation 2, the field “messages” must be",
        ),
        (export_file(GOOD, {**GOOD, "id": "../x"}), "“id” must be 8 to 64 letters"),
        (
            export_file(GOOD).replace(b'"user"', b'"system"'),
            "“role” must be one of user, assistant",
        ),
        (export_file(GOOD).replace(b'"parent": 1', b'"parent": 7'), "7"),
        (export_file(GOOD).replace(b'"parent": 1', b'"parent": null'), "answer"),
        (export_file({**GOOD, "settings": {"temperature": 9}}), "temperature” must be 2.0 or less"),
        (b"[" * 100_000, ""),
    ],
)
def test_invalid_import_is_refused_whole(anna: Person, data: bytes, said: str) -> None:
    """An invalid file is refused with the reason, and no conversation of it is imported."""
    refused = anna.import_(data)
    assert (refused.status, refused.error["field"]) == (400, "file")
    assert re.search(said, refused.error["message"]), refused.error["message"]
    assert anna.titles() == []
    page = anna.import_(data, page=True)
    assert page.headers["hx-retarget"] == "#toast"


def test_import_has_its_own_size_limit(carla: Person) -> None:
    """A file may be larger than a message; above its limit the error names limit and variable."""
    assert carla.import_(export_file(exported_conversation("x" * 100_000, "y"))).status == 200
    connection = carla.client.connect()
    announced = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "9000001"}
    carla.client.send(connection, "POST", "/import", b"", announced)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["field"]) == (413, "file")
    assert "9,000,000 bytes (HALT_MAX_IMPORT_BYTES)" in error["message"]
    assert len(carla.titles()) == 1


def test_export_takes_a_reader_place_until_it_ends(carla: Person) -> None:
    """A streamed export takes a reader's place and gives it back when it ends or is abandoned."""
    carla.keep(*(exported_conversation("x" * 400_000, "y" * 400_000) for _ in range(10)))
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
    """Whether an export begins; if so it is left unread until `readers` ends.

    The place of the reader before is given back only after that reader's last byte.
    """
    connection = client.connect(receive_buffer=2048)
    readers.callback(connection.close)
    client.send(connection, "GET", "/export")
    response = connection.getresponse()
    readers.callback(response.close)
    return response.status == 200 and bool(response.read(1000))


# --- whose they are -------------------------------------------------------------------------------

READS = ["", "/item", "/title", "/export", "/settings", "/exchanges?before=1", "/usage"]
WRITES = ["/title", "/delete", "/undelete", "/settings", "/regenerate", "/messages"]


@pytest.fixture(scope="module")
def hers(halt: HaltServer) -> Iterator[str]:
    """A conversation of somebody else."""
    person = Person(halt)
    person.keep(exported_conversation("Secret", "giraffe", title="Hers"))
    (conversation,) = [item["id"] for item in person.items()]
    yield conversation
    assert person.titles() == ["Hers"]


@pytest.mark.parametrize("path", READS)
def test_conversation_of_another_session_is_not_found(
    halt: HaltServer, hers: str, path: str
) -> None:
    """Every route to another session's conversation answers 404, with a session and without."""
    for client in (Person(halt).client, halt.client()):
        answer = client.get(f"/c/{hers}{path}", Accept="*/*")
        if path != "/usage":
            assert answer.status == 404
        assert b"giraffe" not in answer.body


@pytest.mark.parametrize("path", WRITES)
def test_conversation_of_another_session_cannot_be_changed(
    halt: HaltServer, hers: str, path: str
) -> None:
    """No other session and no program can change a conversation, even with its ID."""
    for client in (Person(halt).client, halt.client()):
        body = urlencode({"title": "Mine", "prompt": "Hi", "prompt_id": "1"}).encode()
        assert client.request("POST", f"/c/{hers}{path}", body, FORM_HEADERS).status == 404


def test_conversation_is_not_listed_for_another_session(
    halt: HaltServer, hers: str, anna: Person
) -> None:
    """List, search and export of one session hold no conversation of another."""
    for client in (anna.client, halt.client()):
        assert hers.encode() not in client.get("/conversations").body
        assert b"giraffe" not in client.get("/conversations/search?q=giraffe").body
        assert json.loads(client.get("/export").body)["conversations"] == []


def test_import_with_a_used_id_gets_a_new_id(anna: Person, hers: str) -> None:
    """An import whose conversation has an ID of another session is stored under a new ID."""
    anna.keep(exported_conversation("Mine", "all mine", title="Mine", id=hers))
    (mine,) = [item["id"] for item in anna.items()]
    assert mine != hers


def test_concurrent_changes_leave_a_valid_conversation(anna: Person) -> None:
    """Concurrent renames and deletions leave the conversation in one of the requested states."""
    anna.keep(exported_conversation("Hi", "Ho"))
    (one,) = [item["id"] for item in anna.items()]
    statuses: list[int] = []

    def work(n: int) -> None:
        statuses.append(anna.send(f"/c/{one}/title", title=f"Name {n}").status)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for each in threads:
        each.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert re.fullmatch(r"Name \d", anna.titles()[0])

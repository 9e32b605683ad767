"""A first start on the database of an earlier version, in which each browser had its own chats."""

from __future__ import annotations

from pathlib import Path

from halt.core.events import Content
from halt.core.stream_key import StreamKey
from halt.store.batches import Batch, Chunk
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.earlier_database import make_earlier_database
from tests.support.halt_server import StartHalt
from tests.support.stores import Chat, new_generation, write_end
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def fill(store: Store) -> None:
    """Chats of two browsers, an answer whose server was killed, and a stream of a program."""
    Chat(store, "chat-of-bert", "bert").add_exchange("okapi?", "1")
    chat = Chat(store)
    chat.add_exchange("zebra?", "giraffe")
    chunk = Chunk(chat.ask("And?"), 1, [(1.0, Content("It stands"))])
    store.generations.write(Batch(chunks=(chunk,)))
    key = StreamKey("", "program-1")
    store.generations.write(Batch(new=(new_generation(key),)))
    write_end(store, key, "Hello.")


def test_first_start_shows_every_browser_the_earlier_chats(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """On loopback each browser sees what all browsers had, also after a start on another port."""
    make_earlier_database(tmp_path, "", "0003", fill)
    for _ in range(2):
        server = start_halt(fake, HALT_DATA=tmp_path, HALT_ALLOW_ANONYMOUS="")
        for _ in range(2):
            client = server.client()
            sidebar = client.get("/").body.decode()
            assert "zebra?" in sidebar
            assert "okapi?" in sidebar
            wait_until(lambda: b"data-running" not in client.get("/c/talk").body, SERVER_TIMEOUT)
            page = client.get("/c/talk").body.decode()
            assert "giraffe" in page
            assert "It stands" in page
            assert client.follow("program-1").to_end().text == "Hello."
            assert client.stop("program-1").json["status"] == "finished"
            hits = client.get("/conversations/search?q=okapi").body
            assert b"/c/chat-of-bert" in hits
            assert b"halt-chat adopt" not in client.get("/c/never-was-1", Accept="text/html").body
        server.terminate()
        assert server.wait() == 0

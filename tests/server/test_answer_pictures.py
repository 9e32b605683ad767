"""Pictures of answers by HTTP: whose they are, and what a killed server leaves."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import png
from tests.support.export_files import export_file, exported_conversation
from tests.support.halt_server import HaltServer, StartHalt, new_id
from tests.support.http_client import Client
from tests.support.page_requests import PAGE_HEADERS
from tests.support.stores import saved_events
from tests.support.waiting import SERVER_TIMEOUT, wait_until

DATA = f"![a cat](data:image/png;base64,{png(20)})"
IMAGE = re.compile(r'<img src="(/files/[0-9a-f]{64})" alt="a cat" width="20" height="20"')
REQUEST = re.compile(r'hx-get="(/streams/[^"]+/pictures[^"]*)"')


def imported(client: Client, *texts: str) -> str:
    """The path of a conversation with this text, which was imported."""
    client.get("/")
    body = export_file(exported_conversation(*texts))
    headers = {"Content-Type": "multipart/form-data; boundary=b", "HX-Request": "true"}
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n\r\n'
    assert client.request("POST", "/import", part + body + b"\r\n--b--\r\n", headers).status < 400
    match = re.search(r'href="(/c/[^"]+)"', client.get("/conversations").body.decode())
    assert match
    return match[1]


def pictures_of(client: Client, path: str) -> str:
    """The response to the request that the page at `path` makes for its answer's pictures."""
    page = client.get(path).body.decode()
    match = REQUEST.search(page)
    assert match, page
    response = client.get(match[1])
    assert response.status == 200
    return response.body.decode()


def test_imported_picture_is_kept_when_it_is_shown(halt: HaltServer) -> None:
    """The page of an answer with data requests its pictures; the next page has them. Another
    person gets neither the answer nor the file."""
    client, other = halt.client(), halt.client()
    path = imported(client, "Draw.", f"Here: {DATA}")
    page = client.get(path).body.decode()
    assert "[Picture (PNG," in page
    assert "iVBOR" not in page
    match = REQUEST.search(page)
    assert match
    other.get("/")
    assert "<img" not in other.get(match[1]).body.decode()
    response = pictures_of(client, path)
    image = IMAGE.search(response)
    assert image
    assert "iVBOR" not in response
    again = client.get(path).body.decode()
    assert IMAGE.search(again)
    assert REQUEST.search(again) is None
    assert client.get(image[1]).headers["content-type"] == "image/png"
    assert other.get(image[1]).status == 404


def test_unknown_answer_has_no_pictures(halt: HaltServer) -> None:
    """The element that requested them is removed."""
    client = halt.client()
    client.get("/")
    stream_id = new_id()
    assert client.get(f"/streams/{stream_id}/pictures").body.decode() == (
        f'<hx-partial hx-target="#pictures-{stream_id}" hx-swap="outerHTML"></hx-partial>'
    )
    assert client.get(f"/streams/{stream_id}/pictures?message_id=x").status == 400
    assert client.get("/streams/%20x/pictures").status == 400


def test_server_killed_in_a_picture_leaves_a_label(
    fake: FakeOpenAI, start_halt: StartHalt, tmp_path: Path
) -> None:
    """What was saved of the picture is shown as a line after the next start."""
    server = start_halt(fake, HALT_DATA=tmp_path)
    client = server.client()
    client.get("/")
    place, stream_id = f"/c/{new_id()}", new_id()
    prompt = quote("/fake draws?side=60&until=9000&size=500&gap_ms=5")
    body = f"prompt={prompt}&id={stream_id}".encode()
    assert client.request("POST", f"{place}/messages", body, PAGE_HEADERS).status == 200
    wait_until(lambda: saved_events(tmp_path, stream_id) > 3, SERVER_TIMEOUT)
    server.kill()
    later = start_halt(fake, HALT_DATA=tmp_path).client()
    later.cookies = client.cookies
    pictures = pictures_of(later, place)
    assert re.search(r"\[Picture \(PNG, \d+ kB, incomplete\)\]", pictures)
    page = later.get(place).body.decode()
    assert "iVBOR" not in page
    assert REQUEST.search(page) is None

"""Files of messages: what the server takes and refuses, how it serves them, and which message has
which."""

from __future__ import annotations

import io
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from PIL import Image

from halt.testing.fake_openai import FakeOpenAI
from tests.support.files import docx, huge_png, image, packed, pdf
from tests.support.halt_server import HaltServer, StartHalt, settings
from tests.support.http_client import Client
from tests.support.page_requests import PAGE_HEADERS
from tests.support.uploads import multipart, send, shown_files, upload, uploaded
from tests.support.waiting import SERVER_TIMEOUT, wait_until

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"
JPEG = image(40, 30, "JPEG")
MEGABYTE = 1_000_000
#: The headers that no response with a file may lack.
SAFE = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A person of their own."""
    client = halt.client()
    client.get("/")
    return client


@pytest.fixture(scope="module")
def small(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with small limits."""
    limits = {
        "HALT_MAX_FILE_BYTES": 2 * MEGABYTE,
        "HALT_MAX_FILES": 3,
        "HALT_MAX_FILES_BYTES": 3 * MEGABYTE,
        "HALT_MAX_PERSON_BYTES": 5 * MEGABYTE,
        "HALT_MAX_FILE_CHARS": 1_000,
    }
    server = HaltServer(settings(shared_fake, **limits))
    yield server
    server.close()


def text_file(size: int) -> bytes:
    """A text of this many bytes, another one each time."""
    line = f"{secrets.token_hex(20)}\n".encode()
    return (line * (size // len(line) + 1))[:size]


def attached(client: Client, *datas: bytes) -> list[tuple[str, str]]:
    """Upload files; their hashes with names."""
    return [
        (uploaded(client, data, f"file {number}")["id"], f"file {number}")
        for number, data in enumerate(datas)
    ]


# --- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        pytest.param(image(), "a.png", ("image", "PNG", "40 x 30"), id="PNG"),
        pytest.param(JPEG, "a.jpg", ("image", "JPEG", "40 x 30"), id="JPEG"),
        pytest.param(JPEG, "a.png", ("image", "JPEG", "40 x 30"), id="a JPEG called PNG"),
        pytest.param(JPEG, "a.txt", ("image", "JPEG", "40 x 30"), id="a JPEG called text"),
        pytest.param(pdf(["One", "Two"]), "a.pdf", ("pdf", "PDF", "2 pages"), id="PDF"),
        pytest.param(docx(["Text"]), "a.docx", ("text", "DOCX", "4 characters"), id="DOCX"),
        pytest.param(b"a,b\n1,2\n", "a.csv", ("text", "CSV", "8 characters"), id="CSV"),
        pytest.param(SVG, "a.svg", ("text", "SVG", "71 characters"), id="SVG"),
        pytest.param(SVG, "a.png", ("text", "PNG", "71 characters"), id="SVG called PNG"),
        pytest.param(HTML, "a.html", ("text", "HTML", "40 characters"), id="HTML"),
    ],
)
def test_file_is_what_its_content_is(
    client: Client, data: bytes, name: str, expected: tuple[str, str, str]
) -> None:
    """Its name decides nothing. Only images are shown; all others can be downloaded alone."""
    file = uploaded(client, data, name)
    extent = file["detail"].partition(" · ")[0]
    assert (file["kind"], file["label"], extent) == expected
    for path in (f"/files/{file['id']}", f"/files/{file['id']}/thumbnail"):
        shown = client.get(path)
        assert shown.status == (200 if file["kind"] == "image" else 404)
        if file["kind"] == "image":
            assert shown.headers["content-type"] in {"image/png", "image/jpeg"}
            assert Image.open(io.BytesIO(shown.body)).format in {"PNG", "JPEG"}
            assert SAFE.items() <= shown.headers.items()


@pytest.mark.parametrize(
    ("data", "name", "status", "code"),
    [
        pytest.param(b"", "a.txt", 422, "file_unreadable", id="empty"),
        pytest.param(b" \n\n", "a.txt", 422, "file_unreadable", id="blank"),
        pytest.param(b"MZ\x90\0\3\0\0\0", "a.txt", 415, "file_kind", id="a program"),
        pytest.param(b"\x89PNG\r\n\x1a\nnot", "a.png", 422, "file_unreadable", id="no PNG"),
        pytest.param(image()[:50], "a.png", 422, "file_unreadable", id="half a PNG"),
        pytest.param(huge_png(50_000, 50_000), "a.png", 413, "file_too_large", id="many pixels"),
        pytest.param(b"%PDF-1.7\n" + b"x" * 5000, "a.pdf", 422, "file_unreadable", id="no PDF"),
        pytest.param(
            packed({"word/document.xml": bytes(250 * MEGABYTE)}),
            "bomb.docx",
            413,
            "file_too_large",
            id="a bomb",
        ),
        pytest.param(packed({"a.txt": b"a"}), "a.docx", 415, "file_kind", id="a ZIP called DOCX"),
        pytest.param(
            packed({"xl/workbook.xml": b"a"}), "a.xlsx", 415, "file_kind", id="a spreadsheet"
        ),
    ],
)
def test_file_that_cannot_be_read_is_refused(
    client: Client, data: bytes, name: str, status: int, code: str
) -> None:
    """With a message that names it; and the next file is read."""
    refused = upload(client, data, name)
    assert (refused.status, refused.error["code"]) == (status, code)
    assert refused.error["message"].startswith(f"{name}: ")
    assert refused.error["field"] == "file"
    assert refused.error["retryable"] is False
    assert upload(client, b"The next file.").status == 201


def pdf_objects(*objects: str) -> bytes:
    """A PDF with these objects, without its table of them: readers search for the objects."""
    body = "".join(f"{n} 0 obj\n{text}\nendobj\n" for n, text in enumerate(objects, 1))
    return f"%PDF-1.4\n{body}trailer<</Root 1 0 R/Size {len(objects) + 1}>>\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            pdf_objects("<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[2 0 R]/Count 9>>"),
            id="pages in themselves",
        ),
        pytest.param(
            pdf_objects(
                "<</Type/Catalog/Pages 2 0 R>>",
                "<</Type/Pages/Kids[3 0 R]/Count 2000000000>>",
                "<</Type/Page/Parent 2 0 R>>",
            ),
            id="two billion pages",
        ),
        pytest.param(
            pdf_objects(
                "<</Type/Catalog/Pages 2 0 R>>",
                "<</Type/Pages/Kids[3 0 R]/Count 1>>",
                "<</Type/Page/Parent 2 0 R/Contents 4 0 R>>",
                "<</Length 5 0 R>>stream\nBT",
                "5 0 R",
            ),
            id="a length that is itself",
        ),
        pytest.param(b"%PDF-1.4\n" + b"1 0 obj\n<<" * 500_000, id="objects without an end"),
        pytest.param(b"%PDF-1.4\nxref\n0 1\ntrailer<</Prev 9>>\nstartxref\n9\n", id="a loop"),
    ],
)
def test_pdf_without_an_end_has_one(client: Client, data: bytes) -> None:
    """It is refused, or what can be read of it is taken; the next file is read at once."""
    answer = upload(client, data, "a.pdf")
    assert answer.status in {201, 422}
    if answer.status == 422:
        assert answer.error["code"] == "file_unreadable"
    assert upload(client, b"The next file.").status == 201


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("a\r\nSet-Cookie: x=1.txt", "a Set-Cookie: x=1.txt"),
        ("a\0b.txt", "ab.txt"),
        ("annex\u202etxt.exe", "annex txt.exe"),
        ("x" * 300 + ".txt", "x" * 196 + ".txt"),
        ('quo"te; filename=b.html', 'quo"te; filename=b.html'),
        ("Übersicht 日本 🎉.txt", "Übersicht 日本 🎉.txt"),
        ("<b>&amp;.txt", "<b>&amp;.txt"),
        ("..", "file"),
        ("", "file"),
    ],
)
def test_names_are_one_harmless_line_everywhere(client: Client, given: str, shown: str) -> None:
    """In the answer to the upload, on the page and in the download's header."""
    file = uploaded(client, b"text", given)
    assert file["name"] == shown
    path, sent = send(client, "Hello", [(file["id"], given)])
    assert sent.status == 200
    page = client.get(path)
    for response in (sent, page):
        assert shown_files(response) == [(file["id"], shown)]
    download = client.get(f"/files/{file['id']}/download?name={quote(given)}")
    assert download.status == 200
    header = download.headers["content-disposition"]
    assert header.startswith("attachment; filename=")
    assert f"filename*=UTF-8''{quote(shown)}" in header
    assert "set-cookie" not in download.headers or "x=1" not in download.headers["set-cookie"]


# --- how it is served -----------------------------------------------------------------------------


def test_image_is_served_for_its_person_alone_and_asked_for_again(client: Client) -> None:
    """Caches of others keep nothing; the browser's own asks each time, and gets 304."""
    file = uploaded(client, image(4000, 3000), "a.png")
    shown, thumbnail = (client.get(f"/files/{file['id']}{part}") for part in ("", "/thumbnail"))
    assert Image.open(io.BytesIO(shown.body)).size == (2048, 1536)
    assert Image.open(io.BytesIO(thumbnail.body)).size == (320, 240)
    assert shown.headers["etag"] != thumbnail.headers["etag"]
    for response, path in ((shown, ""), (thumbnail, "/thumbnail")):
        assert response.headers["cache-control"] == "private, no-cache"
        again = client.get(f"/files/{file['id']}{path}", If_None_Match=response.headers["etag"])
        assert (again.status, again.body) == (304, b"")
        assert SAFE.items() <= again.headers.items()
    part = client.get(f"/files/{file['id']}", Range="bytes=0-9")
    assert (part.status, part.body) in ((200, shown.body), (206, shown.body[:10]))
    head = client.request("HEAD", f"/files/{file['id']}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == shown.headers["content-type"]


@pytest.mark.parametrize("data", [SVG, HTML, pdf(["Text"]), docx(["Text"]), JPEG])
def test_download_is_the_file_as_it_came_and_never_shown(client: Client, data: bytes) -> None:
    """A browser saves it: it has no page's rights, whatever is in it."""
    file = uploaded(client, data, "a b.html")
    download = client.get(f"/files/{file['id']}/download?name=a%20b.html")
    assert download.body == data
    assert download.headers["content-length"] == str(len(data))
    assert download.headers["content-disposition"].startswith("attachment;")
    assert "html" not in download.headers["content-type"]
    assert "svg" not in download.headers["content-type"]
    assert download.headers["cache-control"] == "no-store"
    assert SAFE.items() <= download.headers.items()


@pytest.mark.parametrize("wrong", ["0" * 64, "x", "A" * 64, "%00", "..%2f..", "a" * 3000, "é"])
@pytest.mark.parametrize("part", ["", "/thumbnail", "/download"])
def test_unknown_hash_is_404(client: Client, wrong: str, part: str) -> None:
    """Whatever it is."""
    assert client.get(f"/files/{quote(wrong, safe='%')}{part}").status == 404


def test_page_shows_only_pictures_of_its_own_server(client: Client) -> None:
    """Its policy admits Halt's pictures, and those that are being attached."""
    policy = client.get("/").headers["content-security-policy"]
    assert "img-src 'self' blob:;" in f"{policy};"
    assert "data:" not in policy


def test_files_are_taken_from_no_other_site(client: Client) -> None:
    """Neither an upload nor a form with files of another site is accepted."""
    body, kind = multipart({"prompt": "Hello"}, [("a.txt", b"text")])
    other = {"Origin": "https://evil.example"}
    for path, headers in (("/files?name=a.txt", other), ("/files/messages/c", kind | other)):
        refused = client.request("POST", path, body, headers)
        assert refused.status == 403


def test_download_gives_its_place_back(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """A download holds a reader's place: also of a client that leaves in its middle."""
    client = start_halt(fake, HALT_MAX_STREAMS=1).client()
    client.get("/")
    path = f"/files/{uploaded(client, text_file(15 * MEGABYTE))['id']}/download"
    slow = client.connect(receive_buffer=4096)
    client.send(slow, "GET", path)
    assert slow.getresponse().read(10)
    assert client.get(path).error["code"] == "at_capacity"
    slow.close()
    wait_until(lambda: client.request("HEAD", path).status == 200, SERVER_TIMEOUT)
    wait_until(lambda: client.get(path).status == 200, SERVER_TIMEOUT)


# --- limits ---------------------------------------------------------------------------------------


def test_file_over_the_limit_is_refused(small: HaltServer) -> None:
    """By its length before it has arrived, and without a length once it is over the limit."""
    client = small.client()
    refused = upload(client, text_file(2 * MEGABYTE + 1), "long.txt")
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    assert refused.error["message"] == "long.txt: The file is larger than 2 MB."
    assert upload(client, text_file(2 * MEGABYTE)).status == 201
    claimed = 10**12
    head = f"POST /files?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {claimed}\r\n\r\n"
    with socket.create_connection((small.host, small.port), timeout=20) as sock:
        sock.sendall(head.encode() + text_file(2 * MEGABYTE))
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_chunked_file_over_the_limit_is_refused(small: HaltServer) -> None:
    """It may have no end."""
    head = b"POST /files?name=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = text_file(65_536)
    with socket.create_connection((small.host, small.port), timeout=20) as sock:
        sock.sendall(head)
        for _ in range(45):
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_chunked_file_is_taken(client: Client) -> None:
    """As one with a length."""
    connection = client.connect()
    pieces = iter([b"The ", b"text."])
    connection.request(
        "POST", "/files?name=a.txt", pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True
    )
    response = connection.getresponse()
    assert response.status == 201
    assert b'"9 characters' in response.read()
    connection.close()


def test_large_file_is_taken(client: Client) -> None:
    """One of the usual limit, which is more than of other requests."""
    data = text_file(20 * MEGABYTE)
    file = uploaded(client, data, "long.log")
    assert file["detail"].startswith("the first ")
    assert client.get(f"/files/{file['id']}/download").body == data


def test_same_file_may_come_many_times_at_once(client: Client) -> None:
    """Each upload is answered; the file is kept once."""
    data = text_file(2 * MEGABYTE)
    names = [f"{n}.txt" for n in range(6)]
    with ThreadPoolExecutor(len(names)) as threads:
        files = list(threads.map(lambda name: uploaded(client, data, name), names))
    assert {file["id"] for file in files} == {files[0]["id"]}
    assert client.get(f"/files/{files[0]['id']}/download").body == data


def test_message_has_few_files(small: HaltServer) -> None:
    """Of too many, or of too many bytes, none is sent."""
    client = small.client()
    files = attached(client, *(text_file(1000) for _ in range(4)))
    path, refused = send(client, "Hello", files)
    assert refused.status == 400
    assert "A message has at most 3 files." in refused.body.decode()
    large = attached(client, text_file(1_600_000), text_file(1_600_000))
    path, refused = send(client, "Hello", large)
    assert refused.status == 413
    assert "The files of a message have at most 3 MB." in refused.body.decode()
    assert client.get(path).status == 404
    assert send(client, "Hello", [*files[:2], large[0]])[1].status == 200


def test_person_has_few_bytes(small: HaltServer) -> None:
    """The error says what to do; other persons have room of their own."""
    client = small.client()
    for _ in range(2):  # a text is kept twice: whole, and the part that a model gets
        assert upload(client, text_file(2 * MEGABYTE)).status == 201
    refused = upload(client, text_file(MEGABYTE), "one more.txt")
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    assert "Delete conversations with files first." in refused.error["message"]
    assert upload(small.client(), text_file(MEGABYTE)).status == 201


def test_files_can_be_switched_off(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """With HALT_MAX_FILES=0 no file is taken, and no message has one."""
    client = start_halt(fake, HALT_MAX_FILES=0).client()
    client.get("/")
    for data in (b"text", text_file(2 * MEGABYTE)):
        refused = upload(client, data)
        assert (refused.status, refused.error["code"]) == (400, "invalid_request")
    assert send(client, "Hello", [("0" * 64, "a.txt")])[1].status == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("file", "0" * 64)], 400),
        ([("file", "0" * 64), ("file_name", "a"), ("file_name", "b")], 400),
        ([("file_name", "a")], 400),
        ([("file", "0" * 64), ("file_name", "a")], 404),
        ([("file", "\0"), ("file_name", "a")], 404),
        ([("file", "a" * 10_000), ("file_name", "a")], 404),
    ],
)
def test_wrong_files_of_a_prompt_are_refused(
    client: Client, fields: list[tuple[str, str]], status: int
) -> None:
    """And no conversation begins."""
    path = f"/c/{secrets.token_urlsafe(16)}"
    body = "&".join(f"{name}={quote(value)}" for name, value in [("prompt", "Hello"), *fields])
    refused = client.request("POST", f"{path}/messages", body.encode(), PAGE_HEADERS)
    assert refused.status == status
    assert client.get(path).status == 404


# --- messages -------------------------------------------------------------------------------------


def test_prompt_with_files_alone_is_sent(client: Client) -> None:
    """Without words; the same file may be attached twice, under two names."""
    file = uploaded(client, text_file(100))["id"]
    path, sent = send(client, "", [(file, "a.txt"), (file, "b.txt")])
    assert sent.status == 200
    assert shown_files(client.get(path)) == [(file, "a.txt"), (file, "b.txt")]

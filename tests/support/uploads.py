"""Uploads of files to a server, and prompts with files."""

from __future__ import annotations

import html
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import PAGE_HEADERS


def upload(client: Client, data: bytes, name: str = "note.txt") -> HttpResponse:
    """Upload a file."""
    return client.request("POST", f"/files?name={quote(name)}", data)


def uploaded(client: Client, data: bytes, name: str = "note.txt") -> dict[str, Any]:
    """Upload a file; what the server says of it."""
    response = upload(client, data, name)
    assert response.status == 201, response
    return response.json


def send(
    client: Client,
    prompt: str,
    files: Iterable[tuple[str, str]],
    path: str = "",
    **fields: str,
) -> tuple[str, HttpResponse]:
    """Send a prompt with these files (hash, name); the conversation's path, and the response."""
    path = path or f"/c/{secrets.token_urlsafe(16)}"
    pairs = [("prompt", prompt), *fields.items()]
    for file_hash, name in files:
        pairs += [("file", file_hash), ("file_name", name)]
    body = urlencode(pairs).encode()
    return path, client.request("POST", f"{path}/messages", body, PAGE_HEADERS)


def shown_files(page: HttpResponse) -> list[tuple[str, str]]:
    """The files (hash, name) that a page shows, in their order."""
    marks = re.findall(r'<li data-file="(\w+)" data-name="([^"]*)"', page.body.decode())
    return [(file_hash, html.unescape(name)) for file_hash, name in marks]


def multipart(
    fields: Mapping[str, str], files: Iterable[tuple[str, bytes]], field: str = "files"
) -> tuple[bytes, dict[str, str]]:
    """A form as a browser sends it without scripts: its body and its headers."""
    boundary = secrets.token_hex(16)
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in files:
        escaped = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'Content-Disposition: form-data; name="{field}"; filename="{escaped}"\r\n'
        parts.append(
            f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + b"\r\n"
        )
    mark = f"--{boundary}".encode()
    body = b"".join(mark + b"\r\n" + part for part in parts) + mark + b"--\r\n"
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}

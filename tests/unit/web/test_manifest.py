"""The web app manifest and its icons."""

from __future__ import annotations

import json
import struct
from urllib.parse import urljoin

import pytest

from halt.app import create_app
from halt.config.settings import Config


@pytest.mark.parametrize("prefix", ["", "/chat"])
def test_manifest_makes_the_page_installable(prefix: str) -> None:
    """Without a login, and below a path too, the manifest starts the page and has its icons."""
    app = create_app(Config(base_url="http://127.0.0.1:9/v1", api_key="x", token="secret"))
    client = app.test_client()
    base_url = f"http://host{prefix}/"
    response = client.get("/manifest.webmanifest", base_url=base_url)
    assert response.status_code == 200
    assert response.mimetype == "application/manifest+json"
    manifest = json.loads(response.data)
    address = f"{base_url}manifest.webmanifest"
    assert manifest["name"] == "Halt"
    assert manifest["display"] == "standalone"
    assert urljoin(address, manifest["start_url"]) == base_url
    assert urljoin(address, manifest["scope"]) == base_url
    kinds = set()
    for icon in manifest["icons"]:
        url = urljoin(address, icon["src"])
        assert url.startswith(base_url)
        path = url.removeprefix(base_url)
        picture = client.get(f"/{path}", base_url=base_url, buffered=True).data
        width, height = struct.unpack_from(">II", picture, 16)
        assert icon["sizes"] == f"{width}x{height}"
        kinds.add((icon["purpose"], width))
    assert kinds == {("any", 192), ("any", 512), ("maskable", 512)}

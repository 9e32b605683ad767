"""A browser on the page Models, which sees to it that no response holds a secret."""

from __future__ import annotations

import html
import re
from urllib.parse import urlencode

from tests.support.http_client import Client, EventStream, HttpResponse
from tests.support.page_requests import FORM_HEADERS

PATH = "/settings/models"
ADD = f"{PATH}/add/compatible"
TRY = f"{PATH}/try/add/compatible"
KEY = "sk-first-secret-0123456789wxyz"
OTHER_KEY = "sk-other-secret-9876543210lmno"
HEADER_VALUE = "header-secret-13579"
SECRETS = (KEY, OTHER_KEY, HEADER_VALUE)

Field = tuple[str, str]


class ModelsBrowser:
    """A browser on the page. No response may hold one of SECRETS."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.headers["Accept"] = "text/html"

    def get(self, path: str = PATH) -> str:
        """The page at this path, which must exist."""
        response = self._seen(self.client.get(path))
        assert response.status == 200, response
        return response.body.decode()

    def send(self, path: str, *more: Field, **fields: str) -> HttpResponse:
        """Send a form; `more` are fields whose names occur several times."""
        body = urlencode([*fields.items(), *more]).encode()
        return self._seen(self.client.request("POST", path, body, FORM_HEADERS))

    def try_(self, path: str, *more: Field, **fields: str) -> EventStream:
        """Send a form as the page's script does to try a provider; the results come as events."""
        body = urlencode([*fields.items(), *more]).encode()
        headers = FORM_HEADERS | {"Accept": "text/event-stream"}
        return self.client.stream("POST", path, body, headers)

    def connect(self, address: str, *more: Field, **fields: str) -> str:
        """Connect a provider; returns the path of its page."""
        fields = {"preset": "compatible", "base_url": address, **fields}
        return self.place(self.send(ADD, *more, do="connect", **fields))

    def place(self, response: HttpResponse) -> str:
        """The path that a redirect leads to, without what follows it."""
        assert response.status == 303, response
        return re.split("[?#]", response.headers["location"])[0]

    def refused(self, response: HttpResponse, field: str = "") -> str:
        """The text of the error on the page, which must be at this field."""
        page = response.body.decode()
        match = re.search(r'role="alert"[^>]*>(.*?)</p>', page)
        assert match is not None, page
        if field:
            assert f'id="fault-{field}"' in page
        return html.unescape(match[1])

    def _seen(self, response: HttpResponse) -> HttpResponse:
        for secret in SECRETS:
            assert secret not in response.body.decode()
            assert secret not in str(response.headers)
        return response

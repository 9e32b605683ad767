"""Requests of a page that a test holds before they reach the server."""

from __future__ import annotations

from playwright.sync_api import Route

from tests.browser.chat import Chat
from tests.support.waiting import SERVER_TIMEOUT, wait_until


class HeldRequests:
    """Holds the requests of a page for a path, until the test lets them continue."""

    def __init__(self, chat: Chat, path: str) -> None:
        """Hold requests from now on. `path` is a glob pattern for their URL."""
        self._chat = chat
        self._path = path
        self._is_open = False
        self._held: list[Route] = []
        chat.page.route(path, self._hold)

    def wait(self) -> None:
        """Wait until a request is held."""
        wait_until(self._has_request, SERVER_TIMEOUT)

    def release(self) -> None:
        """Continue the held requests, and all later ones. Each continues once."""
        self._is_open = True
        while self._held:
            self._held.pop().continue_()
        self._chat.page.unroute(self._path)  # last: it continues requests that are still held

    def respond(self, status: int, body: str) -> None:
        """Respond to the held requests instead of the server; later ones continue."""
        self._is_open = True
        while self._held:
            self._held.pop().fulfill(status=status, body=body)
        self._chat.page.unroute(self._path)

    def _has_request(self) -> bool:
        self._chat.frames(1)  # Playwright calls `_hold` only while it waits for the browser
        return bool(self._held)

    def _hold(self, route: Route) -> None:
        if self._is_open:
            route.continue_()
        else:
            self._held.append(route)

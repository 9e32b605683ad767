"""A selector that counts its waits and lists its sockets, for tests of the relay."""

from __future__ import annotations

import selectors

import pytest

from halt.core.relay import Relay


class WatchedSelector(selectors.DefaultSelector):
    """The usual selector, which counts the calls of `select`: one for each turn of the relay."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)

    def watches(self, fileobj: object) -> bool:
        """Whether the object is registered."""
        return fileobj in {key.fileobj for key in list(self.get_map().values())}


def start_watched(relay: Relay) -> WatchedSelector:
    """Start a relay that has not been started, with a watched selector."""
    new_selectors: list[WatchedSelector] = []

    def make_selector() -> WatchedSelector:
        new_selectors.append(WatchedSelector())
        return new_selectors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halt.core.relay.selectors.DefaultSelector", make_selector)
        relay.start()
    (selector,) = new_selectors
    return selector

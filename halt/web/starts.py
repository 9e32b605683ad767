"""Requests that start runs: decoding, time without a reader, and the limits on their number."""

from __future__ import annotations

from typing import Literal

from halt.core.decoding import TypeDecoder
from halt.core.request import ChatRequest
from halt.web.services import services

#: What happens to a run when its last reader leaves: it stops, or it runs on for the grace.
OnDisconnect = Literal["stop", "continue"]


class StartRequest(ChatRequest):
    """A request to start a stream.

    `on_disconnect`: what happens when the last reader leaves. "stop" ends the stream at once;
    "continue" lets it run on for up to HALT_ORPHAN_GRACE seconds.
    """

    on_disconnect: OnDisconnect | None = None

    def chat_request(self) -> ChatRequest:
        """The request without `on_disconnect`."""
        names = ChatRequest.__struct_fields__
        return ChatRequest(**{name: getattr(self, name) for name in names})

    @property
    def grace(self) -> float | None:
        """As `grace_seconds`. A client that chose no ID cannot resume, so its default is "stop"."""
        return grace_seconds(self.on_disconnect, "stop" if self.id is None else "continue")


START_REQUEST = TypeDecoder(StartRequest)


def grace_seconds(choice: OnDisconnect | None, default: OnDisconnect) -> float | None:
    """The `grace` of `GenerationService.start`: 0.0 for "stop", None (default) for "continue"."""
    return 0.0 if (choice or default) == "stop" else None


def count_starts(starts: int = 1, *, hit: bool = True) -> None:
    """Count starts of this request's session and address. Call it before streams are started.

    With `hit=False` the limits are checked and nothing is counted. Raises TooManyRequests.
    """
    rates = services().rate_limits
    if rates is not None:
        rates.count(starts, hit=hit)

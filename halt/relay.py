"""From a run's log to the bytes of one client's response.

`EventStream` is a WSGI response body: it holds a reader's place for as long as it is open, sends a
comment at once (headers leave with the first bytes) and after each `heartbeat` of silence, and what
`present` makes of the events in between. It serves every kind of Server-Sent Events; `present`
decides whether they carry JSON or HTML.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from halt.errors import OffsetLost
from halt.events import FINAL_FRAME, HEARTBEAT, Event, encode, is_terminal, sse
from halt.generation import Generations
from halt.metrics import now
from halt.run import Run, Viewer

Present = Callable[[list[tuple[int, Event]]], bytes]

#: For every proxy on the way: this is a stream, do not keep, change or gather it.
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def json_frames(events: list[tuple[int, Event]]) -> bytes:
    """Events as JSON Server-Sent Events, `[DONE]` behind the terminal one."""
    frames = [sse(seq, event) for seq, event in events]
    if is_terminal(events[-1][1]):
        frames.append(FINAL_FRAME)
    return frames[0] if len(frames) == 1 else b"".join(frames)


class EventStream:
    """The body of one streaming response. `close` is called by the server in every case."""

    def __init__(
        self,
        generations: Generations,
        run: Run,
        client: socket.socket | None,
        after: int,
        present: Present,
        *,
        interval: float = 0.0,
        brief: bool = False,
        nothing: bytes = b"",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Take a reader's place. Raises AtCapacity, OffsetLost.

        `interval`: the least time between two frames, in seconds. `brief`: end after the events
        that are there now; the client comes back for more. `nothing` is sent to a reader that has
        every event of an ended stream already.
        """
        run.log.read(after)  # an offset that is lost is told before the headers
        self._generations = generations
        self._run = run
        self._after = after
        self._present = present
        self._interval = interval
        self._brief = brief
        self._nothing = nothing
        self._on_close = on_close
        self._open = True
        self._viewer: Viewer = generations.view(run, client)

    def __iter__(self) -> Iterator[bytes]:
        return self._brief_frames() if self._brief else self._frames()

    def _brief_frames(self) -> Iterator[bytes]:
        yield HEARTBEAT
        events = self._run.log.read(self._after)
        if events:
            yield self._present(events)

    def _frames(self) -> Iterator[bytes]:
        yield HEARTBEAT
        heartbeat = self._generations.config.heartbeat
        spoke_at = now()
        if self._run.log.ended is not None and self._after >= self._run.log.last:
            yield self._nothing
        viewer = self._viewer
        try:
            for events in self._run.follow(self._after, viewer, self._interval):
                if events:
                    frame = self._present(events)
                elif now() - spoke_at >= heartbeat:
                    frame = HEARTBEAT
                else:
                    continue
                viewer.writing_since = spoke_at = now()
                yield frame
                viewer.writing_since = None
        except OffsetLost as lost:
            # The reader was slower than the log is long. It is told, never given a gap.
            error = {"code": lost.code, "message": lost.message, "retryable": False}
            body = encode({"type": "error", "done": True, "content": "", "error": error})
            yield b"data: %b\n\n" % body + FINAL_FRAME

    def close(self) -> None:
        """Give the place back. The run goes on."""
        if self._open:
            self._open = False
            self._generations.unview(self._run, self._viewer)
            if self._on_close is not None:
                self._on_close()

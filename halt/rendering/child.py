"""The worker's side of a rendering process."""

from __future__ import annotations

import logging

import msgspec

from halt.child_process import ChildProcess, ProcessDied
from halt.rendering.protocol import Reply, Request, frame, replies

logger = logging.getLogger(__name__)


class Child(ChildProcess):
    """A rendering process."""

    def request(self, request: Request) -> Reply:
        """Send a request and return the reply. Logs a fault that the reply names."""
        body = self.exchange(frame(request), request.deadline)
        try:
            reply = replies.decode(body)
        except msgspec.MsgspecError as exc:
            raise ProcessDied from exc
        if reply.fault:
            logger.error("a text cannot be rendered: %s", reply.fault)
        return reply

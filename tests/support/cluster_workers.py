"""Workers that share a data folder, in one process, with scripted upstreams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from halt.cluster.bus import Bus
from halt.cluster.membership import Membership
from halt.cluster.service import Workers
from halt.config.settings import Config
from halt.core.request import ChatRequest
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from tests.support.scripted_upstream import HI, ScriptedReply, ScriptedUpstream
from tests.support.waiting import wait_until

ENDLESS = {"run_timeout": 1e9, "first_byte_timeout": 1e9, "gap_timeout": 1e9, "orphan_grace": 1e9}


class Worker:
    """One worker with a scripted upstream."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.upstream = ScriptedUpstream()
        self.died: list[str] = []
        config = Config(**{**ENDLESS, **settings})
        registry = StopRegistry()
        self.membership = Membership(folder, self.died.append)
        self.bus = Bus(self.membership)
        self.workers = Workers(self.bus, registry)
        self.service = self.workers.service = GenerationService(
            config, self.upstream, registry, other_workers=self.workers
        )
        self.service.begin()

    def start(
        self, stream_id: str, *texts: str, number: int = 0, **more: Any
    ) -> tuple[Run, ScriptedReply]:
        """Start a run and return it once its log has the texts.

        `number`: how many runs of this worker have started before.
        """
        run = self.service.start(ChatRequest(HI, id=stream_id), **more)
        reply = self.upstream.reply(number)
        reply.feed(*texts)
        wait_until(lambda: run.log.last >= len(texts))
        return run, reply

    def close(self) -> None:
        self.service.close()
        self.upstream.dispose()


StartWorker = Callable[..., Worker]

"""The state that the parts of a run (`halt.core.run`) share: request, figures, connection."""

from __future__ import annotations

from halt.core import via
from halt.core.connection import UpstreamConnection
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.request import ChatRequest, Reply, fingerprint, has_files, unfinished
from halt.core.request_ids import current
from halt.core.stream_key import StreamKey


class LiveGeneration(Generation):
    """A generation that this process produces.

    The thread that has the run changes it; any thread may read.
    """

    def __init__(self, key: StreamKey, request: ChatRequest, log_bytes: int) -> None:
        self.meter = Meter()
        super().__init__(
            key,
            EventLog(log_bytes),
            requested_model=request.model or "",
            prefix=unfinished(request),
            started_at=self.meter.started_at,
        )
        self.request = request  # with the messages of later rounds
        self.request_id = current()  # of the HTTP request that started it, "" for none
        self.connection = UpstreamConnection(via.current(), key.owner)
        self.reply: Reply | None = None  # of this round
        self.question = request.messages  # without later rounds; [] after `forget_request`
        #: Its log has ended, and its upstream is read for the usage (`halt.core.exact_usage`).
        self.reads_usage = False
        #: Of the question, set by `forget_request`; at once for one with megabytes of data, which
        #: would hold up the relay.
        self._fingerprint = (
            fingerprint(request.messages) if any(map(has_files, request.messages)) else ""
        )
        self._model = ""  # the name in the last round's reply

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known yet."""
        reply = self.reply
        return (reply.model if reply is not None else self._model) or self.request.model or ""

    @property
    def fingerprint(self) -> str:
        question = self.question  # read first: it is emptied after `_fingerprint` is set
        return self._fingerprint or fingerprint(question)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes after `forget_request`, estimated."""
        return self.log.size + len(self.prefix)

    @property
    def chunks(self) -> int:
        return self.meter.chunks

    @property
    def characters(self) -> int:
        return self.meter.characters

    def end_round(self) -> None:
        """Drop the round's closed reply, and keep the model's name."""
        self._model, self.reply = self.model, None

    def forget_request(self) -> None:
        """Drop the prompt, which is not needed after the end."""
        self._fingerprint = self.fingerprint
        self.end_round()
        self.request = ChatRequest([], id=self.id, model=self.request.model)
        self.question = []

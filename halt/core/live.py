"""A generation that this process makes: what the parts of its run (`halt.core.run`) share."""

from __future__ import annotations

from halt.core import via
from halt.core.connection import UpstreamConnection
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.request import ChatRequest, Reply, fingerprint, unfinished
from halt.core.request_ids import current


class LiveGeneration(Generation):
    """A recording with its request, its figures and its connection to the model.

    Changed by the thread that has the run, read by any.
    """

    def __init__(
        self, stream_id: str, request: ChatRequest, owner: str | None, log_bytes: int
    ) -> None:
        self.meter = Meter()
        super().__init__(
            stream_id,
            owner,
            EventLog(log_bytes),
            requested_model=request.model or "",
            prefix=unfinished(request),
            started_at=self.meter.started_at,
        )
        self.request = request  # with the messages of later rounds
        self.request_id = current()  # of the request that starts it, "" where there is none
        self.connection = UpstreamConnection(via.current())
        self.reply: Reply | None = None  # of this round
        self.question = request.messages  # as it was asked, without later rounds; [] once settled
        #: Its log has ended, and its upstream is read on for its usage (`halt.core.exact_usage`).
        self.reads_usage = False
        self._fingerprint = ""  # of the question, once settled
        self._model = ""  # as the last round's reply named it

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known by now."""
        reply = self.reply
        return (reply.model if reply is not None else self._model) or self.request.model or ""

    @property
    def fingerprint(self) -> str:
        question = self.question  # read first: it is emptied after `_fingerprint` is set
        return self._fingerprint or fingerprint(question)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes once it is settled, roughly."""
        return self.log.size + len(self.prefix)

    @property
    def chunks(self) -> int:
        return self.meter.chunks

    @property
    def characters(self) -> int:
        return self.meter.characters

    def end_round(self) -> None:
        """The round's reply is closed; the model keeps the name that it gave."""
        self._model, self.reply = self.model, None

    def forget_request(self) -> None:
        """Let go of the prompt, which a generation that is over does not need."""
        self._fingerprint = self.fingerprint
        self.end_round()
        self.request = ChatRequest([], id=self.id, model=self.request.model)
        self.question = []

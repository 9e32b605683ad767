"""How long answers usually are, so that an estimate can be shown of how far one has come."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from statistics import median

HISTORY = 20  # answers of each model that are remembered
MODELS_MAX = 100  # models that are remembered; the least recently used go first
ENOUGH = 3  # answers that make a usual length
STEADY = 0.8  # up to this share the estimate is taken as it is; beyond, it slows down
STEP = 5  # percent


class Lengths:
    """The usual lengths of each model's complete answers, and those expected of the open ones.

    What is expected of an answer is decided when it begins, so that its progress never goes back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two below
        self._usual: OrderedDict[str, deque[int]] = OrderedDict()
        self._expected: dict[str, float] = {}  # of open streams

    def begin(self, stream_id: str, model: str, max_tokens: int | None = None) -> float | None:
        """An answer begins; to be followed by `end` in every case. How long it is expected to be,
        in tokens; None: who knows?"""
        with self._lock:
            lengths = self._usual.get(model, ())
            known = [median(lengths)] if len(lengths) >= ENOUGH else []
            known += [max_tokens] if max_tokens else []
            if known:
                self._expected[stream_id] = max(1, min(known))
            return self._expected.get(stream_id)

    def end(self, stream_id: str, model: str, tokens: int | None = None) -> None:
        """An answer is over. `tokens`: its length, None where that tells nothing of the usual one.

        Harmless when repeated.
        """
        with self._lock:
            self._expected.pop(stream_id, None)
            if tokens:
                self._usual.setdefault(model, deque(maxlen=HISTORY)).append(tokens)
                self._usual.move_to_end(model)
                if len(self._usual) > MODELS_MAX:
                    self._usual.popitem(last=False)

    def percent(self, stream_id: str, tokens: int, elsewhere: float | None = None) -> int | None:
        """About how far an open answer of so many tokens is, from 0 to 95; None: who knows?

        `elsewhere`: what is expected of it where it began in another process.
        """
        expected = self._expected.get(stream_id, elsewhere)
        if expected is None:
            return None
        share = tokens / expected
        if share > STEADY:  # longer than usual: it comes ever nearer to the end, and never there
            share = STEADY + (1 - STEADY) * (1 - STEADY / share)
        return int(share * 100) // STEP * STEP

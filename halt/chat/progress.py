"""Estimates how far a running answer is, from the usual length of the model's answers."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from statistics import median

from halt.core.stream_key import StreamKey

HISTORY = 20  # lengths that are kept of each model
MODELS_MAX = 100  # models whose lengths are kept; the least recently used is dropped first
ANSWERS_MIN = 3  # lengths of a model from which an estimate is made
LINEAR_SHARE = 0.8  # share of the expected length up to which progress grows with the tokens
STEP = 5  # percent; progress is rounded down to a multiple of it


class AnswerProgress:
    """Lengths, in tokens, of each model's complete answers, and expected ones of running answers.

    The expected length of an answer is set when the answer begins and does not change, so its
    progress never goes back. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two below
        self._lengths: OrderedDict[str, deque[int]] = OrderedDict()  # by model, in tokens
        self._expected: dict[StreamKey, float] = {}  # tokens, by running stream

    def begin(self, key: StreamKey, model: str) -> float | None:
        """Register a new answer; return its expected length in tokens, None where it is unknown.

        The caller must call `end` afterwards in every case.
        """
        with self._lock:
            lengths = self._lengths.get(model, ())
            if len(lengths) >= ANSWERS_MIN:
                self._expected[key] = max(1, median(lengths))
            return self._expected.get(key)

    def end(self, key: StreamKey, model: str, tokens: int | None = None) -> None:
        """Forget an answer that has ended, and record its length. May be repeated.

        `tokens`: the length; None where the answer is not complete and so not recorded.
        """
        with self._lock:
            self._expected.pop(key, None)
            if tokens:
                self._lengths.setdefault(model, deque(maxlen=HISTORY)).append(tokens)
                self._lengths.move_to_end(model)
                if len(self._lengths) > MODELS_MAX:
                    self._lengths.popitem(last=False)

    def percent(
        self, key: StreamKey, tokens: int, remote_length: float | None = None
    ) -> int | None:
        """Return the progress of a running answer from 0 to 95 percent, None where it is unknown.

        `tokens`: its length so far. `remote_length`: its expected length, where another process has
        started it.
        """
        expected = self._expected.get(key, remote_length)
        if expected is None:
            return None
        share = tokens / expected
        if share > LINEAR_SHARE:  # beyond it progress slows down and never reaches 100 percent
            share = LINEAR_SHARE + (1 - LINEAR_SHARE) * (1 - LINEAR_SHARE / share)
        return int(share * 100) // STEP * STEP

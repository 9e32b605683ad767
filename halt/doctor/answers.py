"""Checks answers of a model: arrival, speed, streaming, usage, tools and reasoning.

The requests go through the same core as those of users, so the findings hold for users' answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from halt.clock import now
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    Event,
    Failed,
    Reasoning,
    Terminal,
    ToolCallDelta,
    is_terminal,
)
from halt.core.metrics import Metrics
from halt.core.request import ChatRequest, Message, ToolSpec
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.doctor.report import Report

SHORT, LONG = "Count from 1 to 20.", "Count from 1 to 500, one number a line."
#: An answer in fewer pieces is too short to show buffering.
PIECES_MIN = 8
ENOUGH_SECONDS = 20.0  # after which an answer that shall not be read to its end is stopped
#: Pieces count as buffered if a read brings at least this many on average.
GATHERED = 5


@contextlib.contextmanager
def watched(
    report: Report, generations: GenerationService, prompt: str, **options: Any
) -> Iterator[tuple[Run, Watch]]:
    """Start an answer with a viewer; stop it at the end of the block if it still runs.

    A cancellation of the report's checks stops it, too. `options` are further fields of the
    request.
    """
    run = generations.start(ChatRequest([Message("user", prompt)], **options))
    viewer = generations.readers.view(run)
    watch = Watch(run.follow(0, viewer))
    try:
        with report.cancellation.interrupting(partial(generations.stop, run.key)):
            yield run, watch
    finally:
        generations.stop(run.key)
        for _ in watch.groups:  # reads the rest, so that its connection is released
            pass
        generations.readers.unview(run, viewer)


@dataclass
class Watch:
    """Reads an answer and counts what arrives."""

    groups: Iterator[list[tuple[int, Event]]]
    reads: int = 0  # events with text or a piece of a tool call; each comes from one read
    began: bool = False
    ended: Terminal | None = None

    def wait_until_begun(self) -> None:
        """Read until the first content arrives or the answer ends."""
        while not self.began and self.ended is None:
            self.next()

    def next(self) -> None:
        """Read the next group of events."""
        for _, event in next(self.groups):
            if is_terminal(event):
                self.ended = event
            elif isinstance(event, (Content, Reasoning, ToolCallDelta)):
                self.began = True
                self.reads += 1


def check_answer(
    report: Report, generations: GenerationService, enough: int | None = None
) -> Metrics | None:
    """Request a short answer and check it; None if it failed or is empty, else its figures.

    It is stopped after `enough` pieces, or ENOUGH_SECONDS; None: it is read to its end.
    """
    until = inf if enough is None else now() + ENOUGH_SECONDS
    with watched(report, generations, SHORT) as (run, watch):
        while watch.ended is None:
            watch.next()
            if watch.began and (watch.reads >= (enough or inf) or now() > until):
                generations.stop(run.key)
    ended = watch.ended
    if isinstance(ended, Failed):
        report.fail("answer", ended.error.message, report.remedy(ended.error.code))
        return None
    figures = ended.metrics
    if not figures.chunks:
        report.fail(
            "answer", "the answer is empty.", "Look at the model's server, or try another model."
        )
        return None
    rate = figures.tokens_per_second
    pace = f", {rate:.0f} tokens/s" if rate else ""
    model = generations.upstream.known_model
    first = f"first token after {figures.ttft_ms or 0:.0f} ms{pace}"
    report.ok("answer", f"{model}: {first}" if model else first)
    _check_streaming(report, figures, watch.reads)
    if isinstance(ended, Done) and ended.usage and enough is None:
        report.ok("usage", f"reported: {figures.tokens} tokens")
    elif isinstance(ended, Done) and enough is None:
        report.warn(
            "usage",
            "the server reports no usage, so token counts are estimated.",
            "No action is needed; newer servers support stream_options.include_usage.",
        )
    return figures


def _check_streaming(report: Report, figures: Metrics, reads: int) -> None:
    pieces = figures.chunks
    if pieces == 1:
        report.warn(
            "streaming",
            "the server does not stream: the whole answer came in 1 piece.",
            "Turn on streaming in the model's server or in the gateway before it, so that text "
            "appears while it is written. A very short answer may also come in 1 piece.",
        )
    elif pieces < PIECES_MIN:
        report.warn(
            "streaming",
            f"the whole answer came in {pieces} pieces.",
            "Turn on streaming in the model's server. A very short answer may also be the reason.",
        )
    elif pieces / max(1, reads) >= GATHERED:
        report.warn(
            "streaming",
            f"{pieces} pieces came in {reads} batches: a proxy before the model buffers them.",
            "Turn off buffering in the proxy before the model (nginx: `proxy_buffering off;`).",
        )
    else:
        gap = figures.gap_p50_ms or 0.0
        report.ok("streaming", f"{pieces} pieces, one by one, {gap:.0f} ms apart")


def check_extras(report: Report, generations: GenerationService) -> None:
    """Check whether the model's server accepts tools and reasoning; both are optional."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = ToolSpec.of_function("weather", "The weather in a city.", parameters)
    for name, setting, value in (
        ("tools", "tools", [tool]),
        ("reasoning", "reasoning_effort", "low"),
    ):
        with watched(report, generations, SHORT, **{setting: value}) as (_, watch):
            watch.wait_until_begun()
        if isinstance(watch.ended, Failed):
            message = watch.ended.error.message
            report.warn(name, message, f"Do not use `{setting}`, or use another model.")
        elif not isinstance(watch.ended, Cancelled):
            report.ok(name, f"`{setting}` is accepted")

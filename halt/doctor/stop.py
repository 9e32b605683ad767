"""Checks the effect of a Stop on the connection and on the model's server."""

from __future__ import annotations

from halt.core.events import Failed
from halt.core.service import GenerationService
from halt.doctor.answers import LONG, watched
from halt.doctor.report import Report, milliseconds
from halt.doctor.running_requests import ServerLoad

SLOW_STOP = 1000.0  # milliseconds
IDLE_WITHIN = 1.0  # seconds in which a server becomes idle after a complete answer
WATCHED_AFTER_STOP = 5.0  # seconds for which the model's server is observed after a Stop


def check_stop(report: Report, generations: GenerationService, load: ServerLoad) -> None:
    """Stop a running answer; check that the connection is closed and the model stops."""
    before = load.wait_idle(IDLE_WITHIN).running
    with watched(report, generations, LONG) as (run, watch):
        watch.wait_until_begun()
        if isinstance(watch.ended, Failed):
            report.fail("stop", watch.ended.error.message, "Try again.")
            return
        during = None if before is None else load.count()
        receipt = generations.stop(run.key)
    spent = f"{receipt.elapsed_ms:.0f} ms"
    if receipt.status == "finished":
        remedy = report.worded(
            "A server that does not stream sends an answer only when complete. If this one "
            "streams, {again}."
        )
        report.warn("stop", "the answer was complete before the Stop was sent.", remedy)
    elif receipt.upstream == "closed":
        report.ok("stop", f"the connection to the model was closed after {spent}")
        _check_model_stop(report, load, before, during)
    else:
        report.fail(
            "stop",
            f"the connection to the model is still {receipt.upstream} after {spent}.",
            "Report this with the name of the model's server.",
        )


def _check_model_stop(
    report: Report, load: ServerLoad, before: int | None, during: int | None
) -> None:
    """Check when the model's server becomes idle, if it reports its running requests.

    `before` and `during` are the running requests before and during the answer.
    """
    name = "model stop"
    remedy = "See docs/stop.md for this server and for proxies before it."
    if (before, during) == (0, 1):
        running, last_busy_at, ended_at = load.wait_idle(WATCHED_AFTER_STOP)
    else:
        running, last_busy_at, ended_at = None, 0.0, 0.0
    if any(count and count > limit for count, limit in ((before, 0), (during, 1), (running, 1))):
        text = f"not known: the server has other requests at the same time ({load.source})"
        report.ok(name, text)
    elif running is None:
        report.ok(
            name, "not known: this server does not report its running requests (docs/stop.md)"
        )
    elif running:
        text = f"the model continues: {ended_at:.1f} s after Stop the server still has a request"
        report.warn(name, f"{text} ({load.source}).", remedy)
    elif ended_at * 1000 > SLOW_STOP:
        text = (
            f"the model stopped {last_busy_at:.1f} to {ended_at:.1f} s after Stop ({load.source})."
        )
        report.warn(name, text, remedy)
    else:
        text = f"the model had stopped {milliseconds(ended_at)} after Stop ({load.source})"
        report.ok(name, text)

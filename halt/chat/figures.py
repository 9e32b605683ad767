"""Formats token usage, metrics and the reason of a stop as texts for the page and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from halt.core.events import Cancelled, Done, Failed, Terminal
from halt.core.finish_reasons import CONTENT_FILTER, FUNCTION_CALL, LENGTH, STOP, TOOL_CALLS
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt
from halt.store.models import Usage


@dataclass(frozen=True)
class Figures:
    """The figures of an answer for the page: a short line, and all of them by name."""

    short: str = ""
    more: str = ""  # continues `short` where there is room
    rows: tuple[tuple[str, str], ...] = ()


#: How an answer ended, by its finish reason; another one is quoted.
_ENDS = {
    None: "without a reason given",
    STOP: "by the model",
    LENGTH: "at the token limit",
    TOOL_CALLS: "with a tool call",
    FUNCTION_CALL: "with a tool call",
    CONTENT_FILTER: "by the provider's filter",
}


def usage_text(usage: Usage) -> str:
    """The token usage of a conversation as a sentence; "" where it is unknown."""
    parts = []
    if usage.prompt_tokens:
        parts.append(f"{usage.prompt_tokens:,} read")
    if usage.completion_tokens:
        about = "about " if usage.estimated else ""
        parts.append(f"{about}{usage.completion_tokens:,} written")
    if not parts:
        return ""
    estimated = " (in part estimated)" if usage.estimated else ""
    return f"Tokens of this conversation: {', '.join(parts)}{estimated}"


def answer_figures(ended: Terminal, model: str, usage: Usage | None = None) -> tuple[str, ...]:
    """The metrics of one answer as short texts. `usage`: replaces an estimated number of tokens."""
    m = counted(ended.metrics, usage)
    parts = []
    if m.ttft_ms is not None:
        parts.append(f"first token after {duration_text(m.ttft_ms)}")
    if m.tokens_per_second is not None:
        parts.append(f"{m.tokens_per_second:.0f} tokens/s")
    if m.tokens:
        count = tokens_text(m.tokens)
        parts.append(f"about {count} (estimated)" if m.tokens_estimated else count)
    if m.duration_ms:  # 0 for imported answers
        parts.append(f"{duration_text(m.duration_ms)} in all")
    if isinstance(ended, Done):
        parts.append(f"finish reason: {ended.finish_reason or 'none given'}")
    if model:
        parts.append(model)
    return tuple(parts)


def page_figures(
    ended: Terminal,
    model: str,
    usage: Usage | None = None,
    receipt: Receipt | None = None,
    requested_model: str = "",
) -> Figures:
    """The figures of one answer.

    `usage`: of all its parts. `receipt`: of the Stop that ended it. `requested_model`: its name in
    the request, which has the provider's name where there are several.
    """
    m = counted(ended.metrics, usage)
    if isinstance(ended, Failed) and not m.tokens:
        return Figures()  # its note says all
    more = []
    if m.ttft_ms is not None:
        more.append(f"{duration_text(m.ttft_ms)} to the first")
    if m.tokens_per_second is not None:
        more.append(f"{m.tokens_per_second:,.0f}/s")
    requested = requested_model if requested_model != model else ""
    rows = [
        ("Model", model),
        ("Requested as", requested),
        *_token_rows(ended, m, usage),
        *_time_rows(m),
    ]
    if isinstance(ended, Done) and m.duration_ms:
        reason = ended.finish_reason
        rows.append(("Ended", _ENDS.get(reason, f"“{reason}”")))
    if receipt is not None and receipt.status == "stopped" and receipt.upstream != "none":
        is_closed = receipt.upstream == "closed"
        connection = (
            f"closed in {receipt.elapsed_ms:.0f}\u00a0ms" if is_closed else "not closed yet"
        )
        rows.append(("Connection", connection))
    rows = [(name, text) for name, text in rows if text]
    if m.tokens:
        # At a stopped answer the note has the same count.
        is_rough = m.tokens_estimated and not isinstance(ended, Cancelled)
        short = f"about {tokens_text(m.tokens)}" if is_rough else tokens_text(m.tokens)
    else:
        short = f"{duration_text(m.duration_ms)} in all" if m.duration_ms else model
    return Figures(short, " · ".join(more), tuple(rows))


def _token_rows(ended: Terminal, m: Metrics, usage: Usage | None) -> list[tuple[str, str]]:
    """The counts of tokens by name; "" for an unknown one."""
    reported = ended.usage or {} if isinstance(ended, Done) else {}
    read = (usage and usage.prompt_tokens) or _number(reported, "prompt_tokens", "input_tokens")
    thought = _number(reported.get("completion_tokens_details"), "reasoning_tokens") or _number(
        reported.get("output_tokens_details"), "reasoning_tokens"
    )
    written = f"about {tokens_text(m.tokens)}, estimated" if m.tokens_estimated else None
    return [
        ("Read", tokens_text(read) if read else ""),
        ("Written", (written or tokens_text(m.tokens)) if m.tokens else ""),
        ("Of these for thoughts", tokens_text(thought) if thought else ""),
    ]


def _time_rows(m: Metrics) -> list[tuple[str, str]]:
    """The times by name; "" for an unknown one."""
    rate = m.tokens_per_second
    return [
        ("First token after", "" if m.ttft_ms is None else duration_text(m.ttft_ms)),
        ("Thinking", duration_text(m.reasoning_ms) if m.reasoning_ms else ""),
        ("In all", duration_text(m.duration_ms) if m.duration_ms else ""),  # 0: imported
        ("Speed", "" if rate is None else f"{rate:,.0f} tokens/s"),
    ]


def tokens_text(count: int) -> str:
    """A count such as "1 token" or "1,234 tokens"."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def counted(metrics: Metrics, usage: Usage | None) -> Metrics:
    """The metrics with the count of `usage` in place of an estimated one."""
    if usage and metrics.tokens_estimated and usage.completion_tokens and not usage.estimated:
        tokens = usage.completion_tokens
        return msgspec.structs.replace(metrics, tokens=tokens, tokens_estimated=False)
    return metrics


def _number(usage: object, *names: str) -> int:
    """The first of these counts that a provider's usage has; 0 for none and for other values."""
    if isinstance(usage, dict):
        for name in names:
            value = usage.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0


def unwatched_text(ended: Cancelled) -> str:
    """The note at an answer that was stopped because no page was open."""
    seconds = ended.unwatched
    if isinstance(seconds, msgspec.UnsetType):
        return "Stopped: no page was open (HALT_ORPHAN_GRACE)."
    unit = "second" if seconds == 1 else "seconds"
    return f"Stopped: no page was open for {seconds:g} {unit} (HALT_ORPHAN_GRACE)."


def duration_text(milliseconds: float) -> str:
    """A duration to two digits, without a space at which a line may break: 42 ms, 0.21 s, 3.2 s."""
    if milliseconds < 99.5:
        return f"{milliseconds:.0f}\u00a0ms"
    seconds = milliseconds / 1000
    digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
    return f"{seconds:.{digits}f}\u00a0s"

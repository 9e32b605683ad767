"""Formats token usage, metrics and the reason of a stop as texts for the page and the terminal."""

from __future__ import annotations

import msgspec

from halt.core.events import Cancelled, Done, Terminal
from halt.store.models import Usage


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
    m = ended.metrics
    if usage and m.tokens_estimated and usage.completion_tokens and not usage.estimated:
        m = msgspec.structs.replace(m, tokens=usage.completion_tokens, tokens_estimated=False)
    parts = []
    if m.ttft_ms is not None:
        parts.append(f"first token after {_seconds(m.ttft_ms)}")
    if m.tokens_per_second is not None:
        parts.append(f"{m.tokens_per_second:.0f} tokens/s")
    if m.tokens:
        count = f"{m.tokens:,} token{'' if m.tokens == 1 else 's'}"
        parts.append(f"about {count} (estimated)" if m.tokens_estimated else count)
    if m.duration_ms:  # 0 for imported answers
        parts.append(f"{_seconds(m.duration_ms)} in all")
    if isinstance(ended, Done):
        parts.append(f"finish reason: {ended.finish_reason or 'none given'}")
    if model:
        parts.append(model)
    return tuple(parts)


def unwatched_text(ended: Cancelled) -> str:
    """The note at an answer that was stopped because no page was open."""
    seconds = ended.unwatched
    if isinstance(seconds, msgspec.UnsetType):
        return "Stopped: no page was open (HALT_ORPHAN_GRACE)."
    unit = "second" if seconds == 1 else "seconds"
    return f"Stopped: no page was open for {seconds:g} {unit} (HALT_ORPHAN_GRACE)."


def _seconds(milliseconds: float) -> str:
    return (
        f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
    )

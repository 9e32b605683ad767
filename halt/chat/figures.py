"""The figures of an answer and of a conversation in words, for the page and the terminal."""

from __future__ import annotations

import msgspec

from halt.core.events import Cancelled, Done, Terminal
from halt.store.models import Usage


def usage_text(usage: Usage) -> str:
    """What a conversation took, in words; nothing where nothing is known."""
    out = []
    if usage.prompt_tokens:
        out.append(f"{usage.prompt_tokens:,} read")
    if usage.completion_tokens:
        about = "about " if usage.estimated else ""
        out.append(f"{about}{usage.completion_tokens:,} written")
    if not out:
        return ""
    estimated = " (in part estimated)" if usage.estimated else ""
    return f"Tokens of this conversation: {', '.join(out)}{estimated}"


def answer_figures(ended: Terminal, model: str, usage: Usage | None = None) -> tuple[str, ...]:
    """What one answer took, in words. `usage`: what is known of it by now, where more is."""
    m = ended.metrics
    if usage and m.tokens_estimated and usage.completion_tokens and not usage.estimated:
        m = msgspec.structs.replace(m, tokens=usage.completion_tokens, tokens_estimated=False)
    out = []
    if m.ttft_ms is not None:
        out.append(f"first token after {_seconds(m.ttft_ms)}")
    if m.tokens_per_second is not None:
        out.append(f"{m.tokens_per_second:.0f} tokens/s")
    if m.tokens:
        count = f"{m.tokens:,} token{'' if m.tokens == 1 else 's'}"
        out.append(f"about {count} (estimated)" if m.tokens_estimated else count)
    if m.duration_ms:  # not of what was imported
        out.append(f"{_seconds(m.duration_ms)} in all")
    if isinstance(ended, Done):
        out.append(f"finish reason: {ended.finish_reason or 'none given'}")
    if model:
        out.append(model)
    return tuple(out)


def unwatched_text(ended: Cancelled) -> str:
    """What is said of an answer that was stopped as nobody was watching."""
    seconds = ended.unwatched
    if isinstance(seconds, msgspec.UnsetType):
        return "Stopped: no page was open (HALT_ORPHAN_GRACE)."
    unit = "second" if seconds == 1 else "seconds"
    return f"Stopped: no page was open for {seconds:g} {unit} (HALT_ORPHAN_GRACE)."


def _seconds(milliseconds: float) -> str:
    return (
        f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
    )

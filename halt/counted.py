"""Numbers with their nouns, for the terminal and the log."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """As in "1 chat", "1,200 chats"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

"""The element of an answer's open block."""

from __future__ import annotations

import html

from halt.rendering.streaming.blocks import BlockStep, Patch


def tail_box(stream_id: str, patch: Patch | BlockStep, text: str) -> str:
    """The element in the form of the open block, with `text`, its HTML."""
    key = f'id="tail-{stream_id}"'
    if patch.form == "item":
        number, joins = patch.number, ' class="next"' if patch.is_close else ""
        tag, start = ("ul", "") if number is None else ("ol", f' start="{number}"')
        return f'<{tag} {key}{start}{joins} dir="auto"><li class="tail">{text}</li></{tag}>'
    if patch.form == "quote":
        return f'<blockquote class="tail" {key} dir="auto">{text}</blockquote>'
    if patch.form in ("text", "code"):
        language = f' data-language="{html.escape(patch.language)}"' if patch.language else ""
        return f'<div class="tail {patch.form}" {key}{language}>{text}</div>'
    return f'<{patch.form} class="tail" {key}>{text}</{patch.form}>'


def tail_selector(stream_id: str, patch: Patch | BlockStep) -> str:
    """The selector of the element to which later text of the block is appended."""
    return f"#tail-{stream_id}{' > li' if patch.form == 'item' else ''}"

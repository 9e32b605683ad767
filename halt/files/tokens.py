"""About how many tokens a text or an image takes in a prompt.

Tokenizers differ by tens of percent, so these are estimates to choose by, before sending.
"""

from __future__ import annotations

import math
import re

#: Characters of one token: of English text and code, of other alphabets, of Chinese and Japanese.
ASCII_CHARS, OTHER_CHARS, IDEOGRAPHS = 4.0, 2.5, 1.0
#: Anthropic's documentation: width x height / 750, after the image was made to fit 1,568 px. The
#: image parts of OpenAI's models take 255 to 1,105.
PIXELS, SIDE_MAX = 750, 1_568

_OTHER = re.compile(r"[^\x00-\x7f]")
_IDEOGRAPH = re.compile(r"[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")


def of_text(text: str) -> int:
    """About how many tokens a text takes."""
    others = len(_OTHER.findall(text))
    ideographs = len(_IDEOGRAPH.findall(text)) if others else 0
    ascii_chars = len(text) - others
    return math.ceil(
        ascii_chars / ASCII_CHARS + (others - ideographs) / OTHER_CHARS + ideographs / IDEOGRAPHS
    )


def of_image(width: int, height: int) -> int:
    """About how many tokens an image of this size in pixels takes."""
    scale = min(1.0, SIDE_MAX / max(width, height))
    return max(1, math.ceil(width * scale * height * scale / PIXELS))

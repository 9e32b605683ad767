"""The HTML of a code block: a bar with its name, and the code with or without colours."""

import html
from typing import Protocol

import nh3

from halt.rendering.code_names import NAME_MAX, code_name
from halt.rendering.lines import LABEL_MAX


class Colours(Protocol):
    """Colours for code blocks; see `halt.rendering.highlighting`."""

    @property
    def cleaner(self) -> nh3.Cleaner: ...

    def highlight(self, code: str, label: str) -> tuple[str, str | None]:
        """The language of a fence's label ("": unknown) and the code as HTML (None: uncoloured)."""


def code_box(code: str, info: str, colours: Colours | None) -> str:
    """The HTML of a code block: a bar with the file's path or the language, and the code.

    A block without a line of code and without a name is nothing.

    The page's scripts add buttons to the bar; `data-name` is the name for a download.
    """
    label, path, name, suffix_language = code_name(info, code)
    if not (code or path):  # a model that repeats itself writes thousands of empty blocks
        return ""
    language, coloured = colours.highlight(code, label) if colours is not None else ("", None)
    if not language and suffix_language and colours is not None:
        language, coloured = colours.highlight(code, suffix_language)
    body = html.escape(code, quote=False) if coloured is None else coloured
    classes = f"highlight language-{language}" if language else "highlight"
    file = f' data-name="{name}"' if name else ""
    return (
        f'<div class="code"><div class="code-bar"{file}>'
        f"{html.escape(path[-NAME_MAX:] or label[:LABEL_MAX])}</div>"
        f'<pre tabindex="0"><code class="{classes}">{body}</code></pre></div>\n'
    )

"""Pictures and sources below an answer, and links from the marks in its text to the sources.

The addresses and titles are untrusted. Nothing is loaded from them. A link shows the host that the
browser would ask, in ASCII.

HTML is made of plain strings, because the response to a Stop must not wait for a template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from halt.core.steps import Step
from halt.store.models import Attachment
from halt.web.page.answer_pictures import image_at, picture_html

UNFOLDED = 5  # sources that are shown before the others are unfolded
HOST_MAX = 40  # characters of a host that surely fit into the line of an address
_LINK = 'target="_blank" rel="noopener noreferrer nofollow"'

_SCHEME = re.compile(r"(https?):/*", re.IGNORECASE)
#: Tags in sanitized HTML, and marks of sources: `[1]`, `[1, 2]`, `[^1^]`, `[citation:1]`,
#: `【1†source】`.
_MARKS = re.compile(
    r'<(?P<tag>/?[a-z0-9]++(?: class="math")?+)[^<>]*+>'
    r"|\[(?P<numbers>[0-9]{1,3}(?:,[ ]?[0-9]{1,3}){0,20})\]"
    r"|\[(?:\^|citation:[ ]?)(?P<number>[0-9]{1,3})\^?\]"
    r"|【(?P<dagger>[0-9]{1,3})(?:[:†][^<>【】]{0,80})?】"
)
#: Elements in which a mark stays text, and the end of each.
_ENDS = {name: f"/{name}" for name in ("a", "code", "pre", "math")} | {'span class="math"': "/span"}


@dataclass(frozen=True)
class Source:
    """A source below an answer."""

    words: str  # its title, else its address
    url: str = ""  # "": it has none
    host: str = ""  # "" where the words begin with it


@dataclass(frozen=True)
class BelowView:
    """What is below the text of an answer."""

    #: Each with its words and its address, which may be "", or the picture.
    pictures: tuple[tuple[str, str | Attachment], ...] = ()
    sources: tuple[Source, ...] = ()
    #: Whether a number in the text is the place of a source here. It is not if parts of a continued
    #: answer have lists of their own.
    is_numbered: bool = True


def below_view(answer_steps: Sequence[Step], images: Sequence[Attachment] = ()) -> BelowView:
    """The pictures and sources of all parts of an answer. `images`: its pictures that are kept."""
    pictures: list[tuple[str, str | Attachment]] = []
    pairs: list[tuple[str, str]] = []
    is_numbered = True
    for step in answer_steps:
        if step.kind == "picture":
            is_address = step.result.startswith(("http:", "https:"))
            address = step.result if is_address else ""
            pictures.append((step.text, image_at(step.result, images) or address))
        elif step.kind == "sources":
            part = [_url_and_title(line) for line in step.text.split("\n")]
            is_same = all(pair[0] == other[0] for pair, other in zip(pairs, part, strict=False))
            is_numbered = is_numbered and is_same
            pairs = _merged(pairs, part) if is_same else list(dict.fromkeys([*pairs, *part]))
    return BelowView(tuple(pictures), tuple(_source(*pair) for pair in pairs), is_numbered)


def _url_and_title(line: str) -> tuple[str, str]:
    url, _, title = line.partition(" ")
    return url, title


def _merged(pairs: list[tuple[str, str]], part: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Two lists of which one begins with the other; with the titles of both."""
    both = [(url, title or other) for (url, title), (_, other) in zip(pairs, part, strict=False)]
    return both + pairs[len(both) :] + part[len(both) :]


def _source(url: str, title: str) -> Source:
    if not url:
        return Source(title)
    host = shown_host(url)
    if title and title != url:
        return Source(title, url, host)
    rest = _SCHEME.sub("", url, count=1).partition("/")[2]
    words = f"{host}/{rest}".rstrip("/") if host else url
    return Source(words, url, host if len(host) > HOST_MAX else "")


def shown_host(url: str) -> str:
    """The host of an address in ASCII, without `www.`; "" if it cannot be read."""
    try:
        host = urlsplit(_SCHEME.sub(r"\1://", url, count=1)).hostname or ""
    except ValueError:
        return ""
    try:
        host = host.encode("idna").decode("ascii")
    except UnicodeError:
        host = ".".join(map(_ascii_label, host.split(".")))
    return host.removeprefix("www.")


def _ascii_label(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"


def below_html(below: BelowView) -> Markup:
    """The pictures and sources as HTML."""
    parts = [
        f"<p>{picture_html(at, words)}</p>"
        if isinstance(at, Attachment)
        else f'<p class="picture">[{_link(at, words) if at else escape(words)}]</p>'
        for words, at in below.pictures
    ]
    if sources := below.sources:
        shown = len(sources) if len(sources) <= UNFOLDED + 1 else UNFOLDED
        folded = ""
        if more := len(sources) - shown:
            items = "".join(map(_item, sources[shown:]))
            folded = (
                f'<details class="folded"><summary>{more} more sources</summary>'
                f'<ol start="{shown + 1}">{items}</ol></details>'
            )
        parts.append(
            '<section class="sources" aria-label="Sources"><p>Sources</p>'
            f"<ol>{''.join(map(_item, sources[:shown]))}</ol>{folded}</section>"
        )
    return Markup("".join(parts))  # noqa: S704 - escaped


def _item(source: Source) -> str:
    words = _link(source.url, source.words) if source.url else escape(source.words)
    host = f' <span class="host">{escape(source.host)}</span>' if source.host else ""
    return f"<li>{words}{host}</li>"


def _link(url: str, words: str) -> str:
    return f'<a href="{escape(url)}" {_LINK}>{escape(words)}</a>'


def with_links(html: str, below: BelowView) -> str:
    """The HTML of an answer's text, in which each mark of a known source is a link to it.

    A mark of an unknown source stays text, as does a mark in code, in a formula or in a link.
    """
    sources = below.sources
    if not sources or not below.is_numbered:
        return html

    def link(number: int) -> str:
        source = sources[number - 1] if 0 < number <= len(sources) else Source("")
        if not source.url:
            return f"[{number}]"
        title = f"{source.words} ({source.host})" if source.host else source.words
        return (
            f'<a class="cite" href="{escape(source.url)}" title="{escape(title)}" {_LINK}>'
            f"[{number}]</a>"
        )

    end = ""  # of the element that is open and in which a mark stays text

    def replaced(match: re.Match[str]) -> str:
        nonlocal end
        if tag := match["tag"]:
            end = ("" if tag == end else end) if end else _ENDS.get(tag, "")
            return match[0]
        digits = match["numbers"] or match["number"] or match["dagger"]
        numbers = [int(part) for part in digits.split(",")]
        is_known = not end and any(0 < number <= len(sources) for number in numbers)
        return "".join(map(link, numbers)) if is_known else match[0]

    return _MARKS.sub(replaced, html)

"""The pictures of an answer: only files that belong to it are shown, all others are words.

An answer that has just ended still has the data of its pictures, and labels in their places. Its
element `pictures-ID` requests them (`halt.web.page.streams.pictures`, which waits until they are
kept).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape

from markupsafe import escape

from halt.store.models import Attachment

#: What `halt.rendering.page_parser` writes for a picture that is kept.
_MARK = re.compile(r'<span data-file="([0-9a-f]{64})">([^<>]*+)</span>')
_ADDRESS = re.compile(r"/files/([0-9a-f]{64})")
WIDTH_MAX = 512  # pixels of a picture on the page, as in formats.css


def with_pictures(html: str, images: Sequence[Attachment]) -> str:
    """The HTML of an answer's text with its pictures."""
    if 'data-file="' not in html:
        return html
    known = {image.file.hash: image for image in images}

    def shown(match: re.Match[str]) -> str:
        alt = unescape(match[2])
        image = known.get(match[1])
        return str(escape(f"[{alt}]")) if image is None else picture_html(image, alt)

    return _MARK.sub(shown, html)


def picture_html(image: Attachment, alt: str) -> str:
    """A picture, which links to its full size."""
    address, facts = f"/files/{image.file.hash}", image.file.facts
    return (
        f'<a href="{address}" target="_blank"><img src="{address}" '
        f'alt="{escape(alt)}" width="{facts.width}" height="{facts.height}" loading="lazy"></a>'
    )


def image_at(address: str, images: Sequence[Attachment]) -> Attachment | None:
    """The picture with this address, if it belongs to the answer."""
    match = _ADDRESS.fullmatch(address)
    return next((image for image in images if match and image.file.hash == match[1]), None)


def height(images: Sequence[Attachment]) -> int:
    """Pixels that the pictures take on a wide page."""
    sizes = [image.file.facts for image in images]
    return sum(
        round(facts.height * min(1.0, WIDTH_MAX / max(facts.width, 1))) + 12 for facts in sizes
    )

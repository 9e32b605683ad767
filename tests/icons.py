"""Draws the icons of the installed page: `python -m tests.icons`, after a change of the drawing.

`static/icon.svg`, an octagon, is the only drawing. Icons with a ground have it where the system cuts
their edges: a maskable icon keeps its inner 80 %, Apple's home screen rounds the corners.
"""

from __future__ import annotations

import struct
import zlib

from playwright.sync_api import Page

from halt.assets import STATIC
from tests.browser.launched import launched_browser

GROUND = "#fbfaf8"
#: File -> its size in pixels, the octagon's share of it, whether it has a ground.
ICONS = {
    "icon-192.png": (192, 1.0, False),
    "icon-512.png": (512, 1.0, False),
    "maskable-512.png": (512, 0.62, True),
    "apple-touch-icon.png": (180, 0.72, True),
}


def main() -> None:
    folder = STATIC / "icons"
    folder.mkdir(exist_ok=True)
    with launched_browser() as browser:
        page = browser.new_page()
        for name, (size, share, has_ground) in ICONS.items():
            (folder / name).write_bytes(drawn(page, size, share, has_ground))
            print(f"{name}: {(folder / name).stat().st_size} bytes")


def drawn(page: Page, size: int, share: float, has_ground: bool) -> bytes:
    """The octagon as a PNG."""
    drawing = (STATIC / "icon.svg").read_text().replace("<svg ", f'<svg width="{size * share}" ')
    ground = f"background: {GROUND};" if has_ground else ""
    page.set_viewport_size({"width": size, "height": size})
    page.set_content(
        f'<body style="margin: 0; {ground} display: grid; place-content: center; height: 100vh">'
        f"{drawing.strip()}"
    )
    return repacked(page.screenshot(omit_background=not has_ground))


def repacked(png: bytes) -> bytes:
    """The same picture, its data compressed as small as zlib can, without other chunks."""
    parts: dict[bytes, bytes] = {}
    position = 8
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind = png[position + 4 : position + 8]
        parts[kind] = parts.get(kind, b"") + png[position + 8 : position + 8 + length]
        position += 12 + length
    parts[b"IDAT"] = zlib.compress(zlib.decompress(parts[b"IDAT"]), 9)
    return png[:8] + b"".join(
        struct.pack(">I", len(parts[kind]))
        + kind
        + parts[kind]
        + struct.pack(">I", zlib.crc32(kind + parts[kind]))
        for kind in (b"IHDR", b"IDAT", b"IEND")
    )


if __name__ == "__main__":
    main()

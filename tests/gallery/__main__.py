"""Writes the gallery: `python -m tests.gallery FOLDER [--pictures]`.

Rewrites `tests/gallery/expected/`, and writes FOLDER/gallery.html: each text and what the page
shows for it, with the page's own style sheets. `--pictures` also draws it in Chromium, a few texts
in a picture, at two widths, light and dark: FOLDER/WIDTH-THEME-FIRST.png begins with text FIRST.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page

from halt.assets import STATIC, TEMPLATES
from tests.browser.launched import launched_browser
from tests.gallery import EXPECTED, KINDS, Answer, answers_of, expected_path, joined_html

WIDTHS = {"desktop": 1280, "phone": 390}
HEIGHT_MAX = 1500  # pixels of a picture, unless a single text is higher
STYLE = """\
body { display: block; padding: 0 var(--s4); --rail-space: 0px; }
section { display: grid; grid-template-columns: minmax(0, 1fr); gap: var(--s2) var(--s5); padding: var(--s3) 0; }
section { border-bottom: 2px dashed var(--edge); }
section > h2 { grid-column: 1 / -1; margin: 0; font-size: .8rem; color: var(--accent); }
.source { font: .72rem/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.source { padding: 0; background: none; color: var(--soft); }
@media (width < 64rem) { .source { display: none; } }
@media (width >= 64rem) { section { grid-template-columns: minmax(0, 1fr) var(--measure); } }
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gallery", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", action="store_true", help="draw the texts too")
    parser.add_argument("--kind", action="append", choices=KINDS, help="instead of all kinds")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    EXPECTED.mkdir(exist_ok=True)
    answers: list[Answer] = []
    for kind in options.kind or KINDS:
        answers_of_kind = answers_of(kind)
        expected_path(kind).write_text(joined_html(answers_of_kind), "utf-8")
        answers += answers_of_kind
    page_path: Path = options.folder / "gallery.html"
    page_path.write_text(page_of(answers), "utf-8")
    print(f"{len(answers)} texts: {page_path}")
    if options.pictures:
        draw(page_path.resolve())


def style_sheets() -> list[str]:
    """The names of the style sheets of the chat's page."""
    base = (TEMPLATES / "base.html").read_text("utf-8")
    chat = (TEMPLATES / "chat.html").read_text("utf-8")
    lists = re.search(r"set sheets = \[(.*?)\]", base), re.search(r"set styles = (.*?)%}", chat)
    return [name for found in lists if found for name in re.findall(r'"(\w+)"', found[1])]


def page_of(answers: list[Answer]) -> str:
    """The page: each text, its source at the left."""
    links = "".join(
        f'<link rel="stylesheet" href="{(STATIC / "css" / f"{name}.css").as_uri()}">\n'
        for name in style_sheets()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Gallery</title>\n{links}<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "".join(map(section_of, answers))
        + "</body>\n</html>\n"
    )


def section_of(answer: Answer) -> str:
    """A text and its result, whose details are open so that they are seen."""
    result = re.sub("<details(?! open)", "<details open", answer.html)
    return (
        f'<section id="t{answer.number}"><h2>{answer.title} ({answer.family})</h2>\n'
        f'<pre class="source">{html.escape(answer.source)}</pre>\n'
        f'<article class="answer"><div class="text"><div>{result}</div></div>'
        "</article></section>\n"
    )


def draw(page_path: Path) -> None:
    """Write the pictures beside the page."""
    with launched_browser() as browser:
        for width_name, width in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(page_path.as_uri())
            page.evaluate("() => document.fonts.ready.then(() => null)")
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
                for first, top, bottom in parts_of(page):
                    page.screenshot(
                        path=page_path.with_name(f"{width_name}-{theme}-{first}.png"),
                        full_page=True,
                        clip={"x": 0, "y": top, "width": width, "height": bottom - top},
                    )
            page.close()


def parts_of(page: Page) -> Iterator[tuple[str, float, float]]:
    """Groups of texts that one picture has: the first number, the upper and the lower edge."""
    boxes: list[tuple[str, float, float]] = page.evaluate(
        "() => [...document.querySelectorAll('section')].map((section) => {"
        " const box = section.getBoundingClientRect();"
        " return [section.id.slice(1), box.top + scrollY, box.bottom + scrollY]; })"
    )
    first, top, bottom = boxes[0]
    for number, box_top, box_bottom in boxes[1:]:
        if box_bottom - top > HEIGHT_MAX:
            yield first, top, bottom
            first, top = number, box_top
        bottom = box_bottom
    yield first, top, bottom


if __name__ == "__main__":
    main()

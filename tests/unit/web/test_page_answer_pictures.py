"""Pictures of answers on the page: only those that belong to the answer are loaded."""

from __future__ import annotations

from halt.core.steps import Step
from halt.files.facts import Facts
from halt.store.models import Attachment, StoredFile
from halt.web.page.answer_pictures import height, with_pictures
from halt.web.page.sources import below_html, below_view

HASH, OTHER = "ab" * 32, "cd" * 32
IMAGE = Attachment(
    "a.png", StoredFile(HASH, Facts("image", "image/png", "PNG", 1, width=1024, height=600), {})
)
SHOWN = (
    f'<a href="/files/{HASH}" target="_blank"><img src="/files/{HASH}" alt="{{}}" width="1024" '
    'height="600" loading="lazy"></a>'
)


def mark(file_hash: str, words: str) -> str:
    return f'<p>a <span data-file="{file_hash}">{words}</span> b</p>'


def test_picture_of_the_answer_is_shown_and_others_are_words() -> None:
    """The alt text is escaped as an attribute and as text."""
    words = 'x &lt;b&gt; " onload=alert(1)'
    alt = "x &lt;b&gt; &#34; onload=alert(1)"
    assert with_pictures(mark(HASH, words), [IMAGE]) == f"<p>a {SHOWN.format(alt)} b</p>"
    assert with_pictures(mark(OTHER, words), [IMAGE]) == f"<p>a [{alt}] b</p>"
    assert with_pictures(mark(HASH, words), []) == f"<p>a [{alt}] b</p>"
    assert with_pictures("<p>plain</p>", [IMAGE]) == "<p>plain</p>"


def test_picture_below_the_text() -> None:
    """A kept one is shown; data, a file of another answer and an address are words."""
    results = (
        f"/files/{HASH}",
        f"/files/{OTHER}",
        "data:image/png;base64,AA",
        "https://a.example/",
    )
    steps = [
        Step(n, "picture", "done", text=f"Picture {n}", result=result)
        for n, result in enumerate(results)
    ]
    html = below_html(below_view(steps, [IMAGE]))
    assert html.count("<img") == 1
    assert f"<p>{SHOWN.format('Picture 0')}</p>" in html
    assert '<p class="picture">[Picture 1]</p><p class="picture">[Picture 2]</p>' in html
    assert '<a href="https://a.example/"' in html


def test_height_is_that_of_the_page() -> None:
    """At most 512 pixels wide, with a margin."""
    assert height([IMAGE]) == 312
    assert height([]) == 0

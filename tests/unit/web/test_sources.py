"""Sources below an answer, and the links from the marks in its text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from halt.core.steps import Step
from halt.rendering.markdown import render
from halt.rendering.plain import plain
from halt.web.page.sources import (
    UNFOLDED,
    BelowView,
    Source,
    below_html,
    below_view,
    shown_host,
    with_links,
)
from tests.support.linear_time import check_linear

A, B = "https://a.example/one?x=1&y=2", "https://b.example/two"
BELOW = BelowView((), (Source("One & <i>", A, "a.example"), Source("b.example/two", B)))
LINK = 'target="_blank" rel="noopener noreferrer nofollow"'
FIRST = (
    '<a class="cite" href="https://a.example/one?x=1&amp;y=2" '
    f'title="One &amp; &lt;i&gt; (a.example)" {LINK}>[1]</a>'
)
SECOND = f'<a class="cite" href="https://b.example/two" title="b.example/two" {LINK}>[2]</a>'


def step(*lines: str) -> Step:
    """The step of these sources."""
    return Step(1, "sources", "done", text="\n".join(lines))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a[1].", f"a{FIRST}."),
        ("a [2][1]", f"a {SECOND}{FIRST}"),
        ("a [1, 2]", f"a {FIRST}{SECOND}"),
        ("a [2,9]", f"a {SECOND}[9]"),
        ("a[^1^]", f"a{FIRST}"),
        ("a[citation:2]", f"a{SECOND}"),
        ("a\u30101\u2020source\u3011", f"a{FIRST}"),
        ("**a [1]**", f"<strong>a {FIRST}</strong>"),
        # No mark of a known source:
        ("a[0] [3] [99]", "a[0] [3] [99]"),
        ("a[1000]", "a[1000]"),
        ("`a[1]`", "<code>a[1]</code>"),
        ("[x] [1 [one]", "[x] [1 [one]"),
    ],
)
def test_with_links_marks_of_known_sources_become_links(text: str, shown: str) -> None:
    """Each way to write the number of a source links to it; other brackets stay text."""
    assert with_links(render(text), BELOW) == f"<p>{shown}</p>\n"


@pytest.mark.parametrize(
    "text",
    [
        "```\na[1]\n```",
        "[a[1]](https://c.example)",
        '[a](https://c.example "b > [1]")',
        "[1]: https://c.example\n\n[1]",
        "$x[1]$",
        "<https://c.example/[1]>",
    ],
)
def test_with_links_code_formulas_and_links_stay_as_they_are(text: str) -> None:
    """A mark in code, in a formula, in a link or in its title is no link to a source."""
    assert with_links(render(text), BELOW) == render(text)


@pytest.mark.parametrize("text", ["a[1]", "a[1] <b>[2]", "| a |\n|---|\n| [1] |"])
def test_with_links_changes_no_character_of_the_text(text: str) -> None:
    """The text of the page is the same with links."""

    def text_of(markup: str) -> str:
        parts: list[str] = []
        parser = HTMLParser()
        parser.handle_data = parts.append  # type: ignore[assignment, method-assign]
        parser.feed(markup)
        return "".join(parts)

    for rendered in (render(text), plain(text)):
        assert text_of(with_links(rendered, BELOW)) == text_of(rendered)


def test_with_links_without_sources_or_numbers_leaves_the_text() -> None:
    """Without sources, and where numbers could mean several sources, marks stay text."""
    assert with_links("a[1]", BelowView()) == "a[1]"
    assert with_links("a[1]", BelowView((), BELOW.sources, is_numbered=False)) == "a[1]"


def test_below_view_parts_with_lists_of_their_own_are_not_numbered() -> None:
    """Parts of an answer with the same list have one numbering, with other lists none."""
    same = below_view([step(A, f"{B} Two"), step(f"{A} One")])
    assert [(source.words, source.url) for source in same.sources] == [("One", A), ("Two", B)]
    assert same.is_numbered
    other = below_view([step(A), step(B, A)])
    assert [source.url for source in other.sources] == [A, B]
    assert not other.is_numbered


def test_below_view_repeated_and_nameless_sources_keep_their_places() -> None:
    """A source that is listed twice counts twice, and one without an address counts too."""
    view = below_view([step(A, " doc_1", A, B)])
    assert [source.url for source in view.sources] == [A, "", A, B]
    assert f'href="{B}"' in with_links("[4]", view)
    assert with_links("[2]", view) == "[2]"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.example.org/a", "example.org"),
        ("https://b\u00fccher.example", "xn--bcher-kva.example"),
        ("https://\u0430pple.example/", "xn--pple-43d.example"),
        ("https://bank.example@evil.example:8080/", "evil.example"),
        ("https:///evil.example/a", "evil.example"),
        ("HTTPS://EVIL.example", "evil.example"),
        ("https://\u202eevil.example", None),
        ("https://" + "\u00fc" * 300 + ".example", None),
        ("https://[::1/", ""),
    ],
)
def test_shown_host_is_the_one_that_the_browser_asks_in_ascii(url: str, host: str | None) -> None:
    """The host has no name of another script, no user and no port; None: any ASCII text."""
    assert shown_host(url) == host if host is not None else shown_host(url).isascii()


def test_below_html_many_sources_fold_and_keep_their_numbers() -> None:
    """The first sources are shown, the others unfold; their titles are text."""
    few = below_html(BelowView((), (Source("<b>", A),) * (UNFOLDED + 1)))
    assert "<details" not in few
    assert few.count("<li>") == UNFOLDED + 1
    assert f'<a href="https://a.example/one?x=1&amp;y=2" {LINK}>&lt;b&gt;</a>' in few
    many = below_html(BelowView((), (Source("a", A, "a.example"),) * 50))
    assert f"<summary>{50 - UNFOLDED} more sources</summary>" in many
    assert f'<ol start="{UNFOLDED + 1}">' in many
    assert many.count('<span class="host">a.example</span>') == 50


@pytest.mark.parametrize(
    "unit", ["[1", "[1,", "[1, 1", "\u3010" + "1", "<", '<a href="x">', "[^1", '"', "<code>", "[1]"]
)
def test_with_links_takes_linear_time(unit: str) -> None:
    """Marks, also those that do not close, take time in proportion to the text."""
    check_linear(lambda text: with_links(f"{text}</a></code>", BELOW), unit, 20_000)

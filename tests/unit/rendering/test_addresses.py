"""Addresses in a text."""

import re

import pytest

from halt.rendering.markdown import render
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


@pytest.mark.parametrize(
    ("source", "links"),
    [
        ("see https://x.org/a_b_c.", ["https://x.org/a_b_c"]),
        ("http://localhost:8080/a?b=1&c=2#d", ["http://localhost:8080/a?b=1&amp;c=2#d"]),
        ("www.x.org/a, HTTPS://X.ORG!", ["www.x.org/a", "HTTPS://X.ORG"]),
        ("(https://x.org/a_(b)) https://x.org/c).", ["https://x.org/a_(b)", "https://x.org/c"]),
        ("**https://x.org** *https://x.org/a*", ["https://x.org", "https://x.org/a"]),
        ('"https://x.org" \u201chttps://x.org/a\u201d', ["https://x.org", "https://x.org/a"]),
        (
            "\uff08https://x.org/a\uff09 https://x.org/b\u3002\u4e0b",
            ["https://x.org/a", "https://x.org/b"],
        ),
        ("\u8bbf\u95eehttps://x.org\u83b7\u53d6", ["https://x.org"]),
        ("https://x.org/\u4e2d\u6587", ["https://x.org/\u4e2d\u6587"]),
        ("https://m\u00fcller.de/\u00e4", ["https://m\u00fcller.de/\u00e4"]),
        ("https://x.org/a&lt; https://x.org/b;", ["https://x.org/a", "https://x.org/b"]),
        ("[https://x.org/a][1] [https://x.org]", ["https://x.org/a", "https://x.org"]),
        ("| a |\n|---|\n| https://x.org/a |", ["https://x.org/a"]),
        ("[a](https://x.org) <https://x.org/a>", ["a", "https://x.org/a"]),
        ("[https://x.org/a](https://x.org)", ["https://x.org/a"]),
        ("`https://x.org` $https://x.org$", []),
        ("a@www.x.org xhttps://x.org https:// www.x ftp://x.org", []),
        ("https://user:password@x.org git+https://x.org javascript://x.org", []),
        ("https://x.org/<name>/a https://x.org/{name}", []),
        ("https://x.org/a<br>b", ["https://x.org/a"]),
        ("https://x.org/" + "a" * 3_000, []),
    ],
)
def test_address_is_a_link_without_the_marks_around_it(source: str, links: list[str]) -> None:
    """An address is a link; punctuation, brackets and marks at its end stay outside."""
    rendered = gate(render(source))
    assert re.findall("<a [^>]*>(.*?)</a>", rendered) == links


def test_address_links_to_what_it_shows() -> None:
    """`www.` links by https, and `&amp;` in an address is an ampersand."""
    targets = re.findall('href="(.*?)"', gate(render("www.x.org https://x.org/?a&amp;b")))
    assert targets == ["https://www.x.org", "https://x.org/?a&amp;b"]


@pytest.mark.parametrize(
    "unit",
    [
        "https://a",
        "https://a.b/ ",
        "www.",
        "www.a.b,",
        "https://a.b/),",
        "https://a.b/" + ")" * 50,
        "https://a.b/&lt;",
        ",https://a.b/c",
        "[https://a.b ",
        ":",
        "h",
    ],
)
def test_addresses_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)

"""The sanitizer for all HTML of answers: its lists of allowed tags, attributes and classes."""

from collections.abc import Set as AbstractSet

import nh3

TAGS = (
    "a blockquote br code div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong"
    " table tbody td th thead tr ul wbr"
)
DIRECTED = (
    "blockquote",
    "ol",
    "table",
    "ul",
)  # marks and columns follow the script


def cleaner(
    languages: AbstractSet[str] = frozenset(), token_classes: AbstractSet[str] = frozenset()
) -> nh3.Cleaner:
    """A sanitizer for the HTML of this package, with the given classes for highlighted code."""
    return nh3.Cleaner(
        tags=set(TAGS.split()),
        attributes={"a": {"href", "title"}, "div": {"data-name"}, "ol": {"start"}},
        tag_attribute_values={
            **{tag: {"dir": {"auto"}} for tag in DIRECTED},
            "div": {"tabindex": {"0"}},  # tables, which scroll sideways
            "pre": {"tabindex": {"0"}},
        },
        allowed_classes={
            "code": {"highlight", *(f"language-{name}" for name in languages)},
            "div": {"code", "code-bar", "table"},
            "span": {"math", *token_classes},
            "td": {"left", "center", "right"},
            "th": {"left", "center", "right", "short"},
        },
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
    )


CLEANER = cleaner()

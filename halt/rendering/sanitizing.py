"""The sanitizer for all HTML of answers: its lists of allowed tags, attributes and classes."""

from collections.abc import Set as AbstractSet

import nh3

from halt.rendering.mathml.styles import COLOURS, MATH_CLASSES

TAGS = (
    "a blockquote br code details div em h1 h2 h3 h4 h5 h6 hr input kbd li mark ol p pre s small"
    " span strong sub summary sup table tbody td th thead tr u ul wbr"
)
#: The elements of formulas and their attributes: what halt.rendering.mathml writes.
MATH = {
    "math": "display",
    "menclose": "notation",
    "mfrac": "displaystyle linethickness scriptlevel",
    "mi": "mathvariant",
    "mmultiscripts": "",
    "mn": "",
    "mo": "form lspace mathsize maxsize minsize rspace stretchy symmetric",
    "mover": "accent",
    "mpadded": "height width",
    "mphantom": "",
    "mprescripts": "",
    "mroot": "",
    "mrow": "displaystyle scriptlevel",
    "mspace": "width",
    "msqrt": "",
    "msub": "",
    "msubsup": "",
    "msup": "",
    "mtable": "displaystyle scriptlevel",
    "mtd": "",
    "mtext": "",
    "mtr": "",
    "munder": "accentunder",
    "munderover": "",
}
#: Elements whose marks, indentation or columns follow the direction of their first text.
DIRECTED_BOXES = frozenset({"blockquote", "details", "li", "ol", "table", "ul"})
#: Elements of text, each of which follows its own first letter.
DIRECTED_TEXTS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "p", "summary", "td", "th"})


def cleaner(
    languages: AbstractSet[str] = frozenset(), token_classes: AbstractSet[str] = frozenset()
) -> nh3.Cleaner:
    """A sanitizer for the HTML of this package, with the given classes for highlighted code."""
    return nh3.Cleaner(
        tags={*TAGS.split(), *MATH},
        attributes={
            "a": {"href", "title"},
            "div": {"data-name"},
            "ol": {"start"},
            "span": {"data-file"},  # a picture that is kept here
            **{tag: set(names.split()) for tag, names in MATH.items() if names},
        },
        tag_attribute_values={
            **{tag: {"dir": {"ltr", "rtl"}} for tag in DIRECTED_BOXES - {"table"}},
            "details": {"dir": {"ltr", "rtl"}, "open": {""}},
            "ol": {"dir": {"ltr", "rtl"}, "aria-label": {"Footnotes"}},
            **{tag: {"dir": {"auto"}} for tag in DIRECTED_TEXTS},
            "div": {"dir": {"ltr", "rtl"}, "tabindex": {"0"}},  # tables, which scroll sideways
            "input": {  # the checkbox of a task
                "type": {"checkbox"},
                "disabled": {""},
                "checked": {""},
                "aria-label": {"Done"},
            },
            "mrow": {"mathcolor": set(COLOURS)},
            "pre": {"tabindex": {"0"}},
            "span": {"tabindex": {"0"}},  # wide formulas
        },
        allowed_classes={
            "code": {"highlight", *(f"language-{name}" for name in languages)},
            "div": {"code", "code-bar", "table"},
            "li": {"note", "task"},
            "mtable": set(MATH_CLASSES),
            "mtd": set(MATH_CLASSES),
            "ol": {"notes"},
            "span": {"display", "inline", "math", *token_classes},
            "sup": {"back", "note"},
            "td": {"left", "center", "right"},
            "th": {"left", "center", "right", "short"},
        },
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
    )


CLEANER = cleaner()

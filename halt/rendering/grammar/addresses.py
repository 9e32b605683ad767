"""Addresses in a text that become links: `https://…`, `http://…` and `www.…`.

The rule of mdit-py-plugins copies the rest of the text at each colon, and its address goes on over
Chinese punctuation.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

from halt.rendering.grammar.tags import ELEMENTS
from halt.rendering.open_text import WIDE

ADDRESS_MAX = 2_000  # characters

#: Letters and marks of scripts without blanks between words end a host.
_HOST = rf"[^\W_{WIDE}][^\W{WIDE}]*(?:[.-]+[^\W{WIDE}]+)*"
#: Not Markdown's marks and brackets, quotation marks, nor the punctuation of East Asian scripts.
_PATH = r"[^\s<>\[\]{}|\\^`\"\u2018-\u201f\u2026\u3000-\u303f\uff00-\uffef]"
_TAGS = "|".join(ELEMENTS)
#: Not with a placeholder in it: `https://x.org/{name}/`, `https://x.org/<name>`.
_ADDRESS = re.compile(
    rf"(?>https?://{_HOST}|www\.{_HOST})(?::[0-9]{{1,5}})?+(?![:@]\S)"
    rf"(?:[/?#]{_PATH}*+)?+(?!\{{|<(?!(?:br|{_TAGS})\b)[a-z][\w-]*>)",
    re.IGNORECASE,
)
_START = r"(?<![A-Za-z0-9_.@/:+-])(?:[Hh][Tt]{2}[Pp][Ss]?://|www\.)(?=\w)"
_BEGINNING = re.compile(_START)
_ENTITY = re.compile(r"&[A-Za-z0-9]{1,30};\Z")


def add_addresses(parser: MarkdownIt) -> None:
    """Add the rule for addresses to a parser."""
    inline = parser.inline
    inline.terminator_re = re.compile(f"{inline.terminator_re.pattern}|{_START}")
    inline.ruler.before("newline", "address", _address)


def _address(state: StateInline, silent: bool) -> bool:
    """Inline rule for an address outside of links."""
    if state.src[state.pos] not in "hHw" or state.linkLevel or silent:
        return False
    if not _BEGINNING.match(state.src, state.pos, state.posMax):
        return False
    limit = state.pos + ADDRESS_MAX
    match = _ADDRESS.match(state.src, state.pos, min(state.posMax, limit))
    if not match or match.end() == limit:
        return False
    text = _without_punctuation(match[0])
    if text[0] == "w" and "." not in text[4:]:
        return False
    url = text.replace("&amp;", "&")
    url = state.md.normalizeLink(f"https://{url}" if url[0] == "w" else url)
    if not state.md.validateLink(url):
        return False
    state.push("link_open", "a", 1).attrs = {"href": url}
    state.tokens[-1].markup = "autolink"
    state.push("text", "", 0).content = text
    state.push("link_close", "a", -1)
    state.tokens[-1].markup = "autolink"
    state.pos += len(text)
    return True


def _without_punctuation(address: str) -> str:
    """The address without marks and closing brackets at its end that belong to the sentence."""
    surplus = address.count(")") - address.count("(")
    end = len(address)
    while end:
        last = address[end - 1]
        if last == ";" and (entity := _ENTITY.search(address, max(0, end - 32), end)):
            end = entity.start()
        elif last in "?!.,:;*_~'\u00b7":
            end -= 1
        elif last == ")" and surplus > 0:
            surplus -= 1
            end -= 1
        else:
            break
    return address[:end]

"""Markdown to safe HTML, as a whole and while it streams."""

import html
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from halt.rendering import highlighting, markdown
from halt.rendering.grammar import tables
from halt.rendering.grammar.formulas import FORMULA_LINES_MAX
from halt.rendering.lines import LABEL_MAX
from halt.rendering.page_parser import PARSER
from tests.support.answer_html import gate
from tests.support.open_tail import text_of_tail
from tests.unit.rendering.page import TEXTS, page_of, render

# --- A page, an allow-list, and texts -----------------------------------------------------------


# --- Whole texts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# One\n\n### Three", "<h1>One</h1>\n<h3>Three</h3>\n"),
        ("a *b* **c** `d` ~~e~~", None),
        ("- a\n- b\n", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("> quoted", "<blockquote>\n<p>quoted</p>\n</blockquote>\n"),
        ("a  \nb\nc", "<p>a<br>\nb<br>\nc</p>\n"),
        ("---", "<hr>\n"),
        ("a &amp; b < c", "<p>a &amp; b &lt; c</p>\n"),
        ("", ""),
    ],
)
def test_render_follows_commonmark(source: str, expected: str | None) -> None:
    """Headings, emphasis, lists, quotes, breaks and rules are as CommonMark has them."""
    if expected is None:
        expected = "<p>a <em>b</em> <strong>c</strong> <code>d</code> <s>e</s></p>\n"
    assert gate(render(source)) == expected


def test_render_link_opens_a_new_tab_without_referrer_or_opener() -> None:
    """A link opens a new tab, sends no referrer and gives its target no handle on the page."""
    assert render('[a](https://x.org/?a=1&b=2 "t") <mailto:a@b.org>') == (
        '<p><a href="https://x.org/?a=1&amp;b=2" title="t" target="_blank" '
        'rel="noopener noreferrer nofollow">a</a> '
        '<a href="mailto:a@b.org" target="_blank" rel="noopener noreferrer nofollow">'
        "mailto:a@b.org</a></p>\n"
    )


def test_render_reference_link_uses_a_later_definition() -> None:
    """A definition at the end serves a link at the beginning."""
    assert 'href="https://x.org"' in render("see [it]\n\nmore\n\n[it]: https://x.org")


@pytest.mark.parametrize(
    ("source", "text", "links"),
    [
        ("![a *cat*](https://x.org/c.png)", "a cat", ["https://x.org/c.png"]),
        ("![](https://x.org/c.png)", "https://x.org/c.png", ["https://x.org/c.png"]),
        ("[![badge](https://i.org/b)](https://x.org)", "badge", ["https://x.org"]),
        ("![a](data:image/png;base64,AAAA)", None, []),
        ("![a](/local.png)", None, []),
    ],
)
def test_render_image_is_a_link(source: str, text: str | None, links: list[str]) -> None:
    """An image is never loaded: it is a link with its alt text, or only text."""
    rendered = gate(render(source))
    assert re.findall('href="(.*?)"', rendered) == links
    if text is not None:
        assert re.sub("<.*?>", "", rendered).strip() == text


def test_render_table_has_a_box_and_alignment_classes() -> None:
    """A table is in its own scrolling box, and its alignment is a class."""
    rendered = gate(render("| a | b | c |\n|:--|--:|:-:|\n| 1 | `x` | ~~3~~ |\n"))
    assert rendered.startswith('<div class="table" tabindex="0"><table>')
    assert rendered.endswith("</table></div>\n")
    assert '<th class="left short">a</th>' in rendered
    assert '<td class="left">1</td>\n<td class="right"><code>x</code></td>' in rendered
    assert "style" not in rendered


def test_render_fence_has_language_and_colours() -> None:
    """A fence has its language, and the code in spans with classes."""
    assert gate(render("```python\nif x < 1:\n```\n")) == (
        '<div class="code"><div class="code-bar">python</div>'
        '<pre tabindex="0"><code class="highlight language-python">'
        '<span class="k">if</span> x <span class="o">&lt;</span> <span class="m">1</span>:\n'
        "</code></pre></div>\n"
    )


@pytest.mark.parametrize(
    ("info", "classes", "label"),
    [
        ("", "highlight", ""),
        ("PY title=x", "highlight language-python", "PY"),
        ("c++", "highlight language-cpp", "c++"),
        ("no-such-language", "highlight", "no-such-language"),
        ("x" * 500, "highlight", "x" * LABEL_MAX),
        ('"><script>alert(1)</script>', "highlight", '"><script>alert(1)</scri'),
        ("</code><script>", "highlight", "</code><script>"),
    ],
)
def test_render_fence_language_is_known_or_shown_as_text(
    info: str, classes: str, label: str
) -> None:
    """Aliases are known, unknown names are shown without colours, and no name is markup."""
    rendered = gate(render(f"~~~{info}\nx = 1\n~~~"))
    assert f'<code class="{classes}">' in rendered
    assert f'<div class="code-bar">{html.escape(label, quote=False)}</div>' in rendered


@pytest.mark.parametrize("language", sorted(set(highlighting.ALIASES.values())))
def test_highlighting_changes_no_character_of_the_code(language: str) -> None:
    """For each highlighted language the code's text stays the same."""
    code = "\n\n\tx = \"a\\n\" + 'b' # <c> & /* d */\n--- e\n@f(0x1F) {{ g }} $h\n\n\nlast"
    rendered = gate(render(f"```{language}\n{code}\n```"))
    body = re.search(r"<code.*?>(.*)</code>", rendered, re.DOTALL)
    assert body
    assert html.unescape(re.sub("<.*?>", "", body[1])) == code + "\n"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<svg onload=alert(1)><a xlink:href="javascript:1">',
    "<div style='position:fixed'><b>unclosed <i",
    "<!-- comment --> <!DOCTYPE x> <?php ?> <![CDATA[x]]>",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:1) [c](  javascript&#58;alert(1))",
    "[a](data:text/html;base64,PHNjcmlwdD4=) [b](vbscript:x) [c](file:///etc/passwd)",
    "[a](/logout) [b](//x.org) [c](#top) [d](?q) [e](\\\\x)",
    "<javascript:alert(1)> <data:text/html,x>",
    '[a](https://x.org "t\\" onclick=alert(1)")',
    '![x" onerror="alert(1)](https://x.org/"onload=")',
    "```\n</code></pre><script>alert(1)</script>\n```",
    "```html\n</code></pre></div><script>alert(1)</script><style>\n```",
    "```js\n`${</script><script>}`\n```",
    "    </code><script>alert(1)</script>",
    "`</code><script>`",
    "| <script> | a |\n|---|---|\n| <img src=x onerror=1> | [x](javascript:1) |",
    "[a]: javascript:alert(1)\n\n[a]",
    "<a href='https://x.org' onclick='x'>a</a>",
    '<button class="copy" onclick=x formaction=//x>',
]


@pytest.mark.parametrize("source", HOSTILE)
def test_render_hostile_markup_stays_text(source: str) -> None:
    """Hostile markup of the model stays text, as a whole and while it streams."""
    rendered = gate(render(source))
    assert "<script" not in rendered
    assert all(link.startswith("https://x.org") for link in re.findall('<a href="(.*?)"', rendered))
    page = page_of(*source, "\n\n")
    gate(page.finished)
    for length in range(len(source)):
        tail = text_of_tail(page_of(source[:length]).tail)
        assert "<" not in tail
        assert '"' not in tail


def test_render_normalises_newlines_nul_and_surrogates() -> None:
    """Every newline is \\n; NUL and lone surrogates become the replacement character."""
    assert render("a\r\nb\rc\0\ud83d") == "<p>a<br>\nb<br>\nc\ufffd\ufffd</p>\n"
    assert page_of("a\ud83d", "\udc00\0").tail == "a\ufffd\ufffd\ufffd"


# --- where models differ from CommonMark ------------------------------------------------


def visible_text(source: str) -> str:
    """The rendered text without tags, with its lines."""
    return html.unescape(re.sub("<.*?>", "", render(source))).strip()


def parsed_text(source: str) -> str:
    """The text that the parser finds, with the source of each formula."""
    inlines = [token.children for token in PARSER.parse(source, {}) if token.children]
    return "\n".join("".join(token.content or "\n" for token in line) for line in inlines)


FORMULAS = [
    r"\(e^{i\pi}+1=0\)",
    r"\[ \int_0^1 x_1 \, dx \]",
    "$a*b$ and $c*d$, then $$\\frac{a}{b}\\\\ c$$",
    "$x_1$, $x_2$; ($y^*$) and [$z^*$]",
    "$f^{**}$ and $g^{**}$",
    "$a<b$ & $c>d$ & $e&f$",
    "函数$f(x)*g(x)*h$的值",
    r"$\$5 * x * y$",
    r"\( \text{(\$5)} * a * b \)",
    r"$$\text{if $x$} * a * b$$",
    r"\[a_1 \\[2pt] b_1 * c * d\]",
    "\\[\nx\n=\n- y \\\\\n+ z\n1. a\n> b\n\\]",
    "$$\na_1\n\n- b_1\n$$",
    "\\begin{align*}\na &= b_1 \\\\\n- c &= d_1\n\\end{align*}",
    r"\begin{pmatrix}a & b \\ c_1 & d_1\end{pmatrix}",
    r"\(\triangle ABC\) and \(AB\)",
]


@pytest.mark.parametrize("source", FORMULAS)
@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("Text: ", " text."), ("# ", ""), ("- ", "\n- b"), ("> ", ""), ("1. **a** ", "")],
)
def test_render_formula_stays_unchanged(source: str, before: str, after: str) -> None:
    """A formula stays unchanged in paragraphs, headings, lists and quotes."""
    if "\n" in source and before:
        source = source.replace("\n", "\n> " if before == "> " else "\n   ")
        if before in {"# ", "Text: "} or "\n\n" in source.replace(" ", ""):
            return
    assert "<em>" not in gate(render(before + source + after))
    lines = [line.removeprefix("> ").strip() for line in source.split("\n")]
    read = parsed_text(before + source + after)
    assert [line.strip() for line in read.split("\n") if line.strip()][: len(lines)] != []
    for line in lines:
        assert line in read


@pytest.mark.parametrize(
    "source", ["| a | b |\n|---|---|\n| $x_1 * y_1$ | \\(a*b*c\\) |", "[$a*b*c$](https://x.org)"]
)
def test_render_formula_in_a_cell_or_link_is_no_emphasis(source: str) -> None:
    """Stars and underscores of a formula in a cell or a link are no emphasis."""
    rendered = gate(render(source))
    assert "<em>" not in rendered
    assert rendered.count("<math>") == source.count("$") // 2 + source.count("\\(")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("$5 and *$10*", "$5 and <em>$10</em>"),
        ("**$5** or **$6**", "<strong>$5</strong> or <strong>$6</strong>"),
        ("$5-$10 *a* $20", "$5-$10 <em>a</em> $20"),
        ("5$ *or* 6$", "5$ <em>or</em> 6$"),
        ("US$5 *or* US$6", "US$5 <em>or</em> US$6"),
        ("$5 *a* and 10$ *b*", "$5 <em>a</em> and 10$ <em>b</em>"),
        ("$HOME *and* $PATH", "$HOME <em>and</em> $PATH"),
        ("`$a*b*$`", "<code>$a*b*$</code>"),
        ("$a `x*y*z` b$", "$a <code>x*y*z</code> b$"),
        (r"\$a *b* c\$", "$a <em>b</em> c$"),
        ("Luigi: $$, **Mario**: $$$", "Luigi: $$, <strong>Mario</strong>: $$$"),
        (r"Dear \[Your Name\], \[x\] \[ \] \[1\]", "Dear [Your Name], [x] [ ] [1]"),
        (r"\[text\](/x)", "[text](/x)"),
        (r"a \( b *c*", "a ( b <em>c</em>"),
        (r"1\. \* \_ \# \` \,", "1. * _ # ` ,"),
        ("$ a *b* c $", "$ a <em>b</em> c $"),
    ],
)
def test_render_money_variables_and_code_are_no_formulas(source: str, expected: str) -> None:
    """Dollars of money, shell variables and code, and escaped brackets stay text."""
    assert gate(render(source)) == f"<p>{expected}</p>\n"


def test_unclosed_formula_ends_at_the_next_block_or_limit() -> None:
    """A fence, a heading, a rule or too many lines end text that began like a formula."""
    for end in ("```\nx\n```", "# Title", "***"):
        text = f"$$\n\n**a**\n\n{end}\n\nb"
        assert "<strong>a</strong>" in render(text)
        assert page_of(*text).tail == "b"
    long = "$$\n\n" + "**a**\n\n" * FORMULA_LINES_MAX + "b"
    assert "<strong>a</strong>" in render(long)
    assert page_of(*long).tail == "b"


@pytest.mark.parametrize(
    ("source", "bold"),
    [
        ("**注意\uff1a**请看。这是**“重点”**的内容。", ["注意\uff1a", "“重点”"]),
        ("**注意(重要)**内容", ["注意(重要)"]),
        ("他说**《书》**很好。**第一\uff0c**做", ["《书》", "第一\uff0c"]),
        ("日本語の**「強調」**です。**注意!**次", ["「強調」", "注意!"]),
        ('한국어**강조(Korean)**는 **"인용"**을 **뜻:**이다', ["강조(Korean)", '"인용"', "뜻:"]),
        ("**หมายเหตุ:**โปรดดู", ["หมายเหตุ:"]),
        ("中文**bold.**中文", ["bold."]),
        ("**a** *b* **c.** d", ["a", "c."]),
    ],
)
def test_emphasis_in_scripts_without_blanks_needs_none(source: str, bold: list[str]) -> None:
    """Emphasis in a script without blanks needs none: its punctuation counts as letters."""
    assert re.findall("<strong>(.*?)</strong>", html.unescape(gate(render(source)))) == bold
    assert "**" not in visible_text(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("*Note:*text", "*Note:*text"),
        ("2 * 3 * 4 和 5 ** 6", "2 * 3 * 4 和 5 ** 6"),
        ("snake_case_名字_x", "snake_case_名字_x"),
        ("é*«x»*é", "é*«x»*é"),
    ],
)
def test_emphasis_between_latin_letters_follows_commonmark(source: str, expected: str) -> None:
    """Emphasis between Latin letters follows CommonMark's rules."""
    assert render(source).replace('"', "&quot;") == f"<p>{expected}</p>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\nb", "a<br>\nb"),
        ("a<br>b<BR/>c<br />d</br>e", "a<br>b<br>c<br>d<br>e"),
        ("a<br>\nb", "a<br>b"),
        ("*a<br>b*", "<em>a<br>b</em>"),
        ("`a<br>b`", "<code>a&lt;br&gt;b</code>"),
        ("a<br", "a&lt;br"),
        ("<br onclick=x><hr>", "&lt;br onclick=x&gt;&lt;hr&gt;"),
    ],
)
def test_line_breaks_are_newlines_and_br_tags(source: str, expected: str) -> None:
    """A newline is a break, and so is each spelling of `<br>`."""
    assert gate(render(source)) == f"<p>{expected}</p>\n"


def test_line_breaks_in_lists_quotes_cells_and_code() -> None:
    """Newlines are breaks in items and quotes; code keeps its lines; a cell has `<br>`."""
    assert "<li>a<br>\nb</li>" in render("- a\n  b")
    assert "<p>a<br>\nb</p>" in render("> a\n> b")
    assert "<td>one<br>two</td>" in render("| a |\n|---|\n| one<br>two |")
    assert "<br>" not in render("```\na\nb<br>\n```\n\n    c\n    d")


@pytest.mark.parametrize(
    "source",
    [
        "\\(" * 20_000,
        "\\[\n" * 15_000,
        "$$\n" * 15_001,
        "$" * 45_000,
        "$a " * 15_000,
        "\\begin{a}\n" * 4_000,
        "".join(f"\\begin{{{'a' * (n % 40 + 1)}}}\n" for n in range(1_500)),
        "\\begin{a}\n" * 4_000 + "\\end{a}",
        "\\begin{a}" * 4_000 + "\\end{b}",
        "\\" * 45_000,
        "- \\[\n" * 8_000,
        "<br>" * 12_000,
        "**中\uff0c**" * 7_000,
    ],
)
def test_unclosed_marks_take_bounded_time(source: str) -> None:
    """Repeated or unclosed marks of formulas, breaks and emphasis take under 8 s of CPU time."""
    start = time.thread_time()
    gate(render(source))
    page_of(source)
    assert time.thread_time() - start < 8


def test_unclosed_environment_is_text() -> None:
    """An environment without its end is no formula."""
    assert render("\\begin{align}\nx") == "<p>\\begin{align}<br>\nx</p>\n"


# --- Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [">" * 30 + " word", "- " * 30 + "word", "> - " * 15 + "word"])
def test_deep_nesting_is_shown_as_text(source: str) -> None:
    """Nesting beyond the parser's limit is shown as text, and nothing is lost."""
    paragraph, text = f"<p>{html.escape(source)}</p>\n", source.removeprefix("- ")
    item = f"<ul>\n<li>{text}</li>\n</ul>\n"
    assert render(source) == (paragraph if source[0] == ">" else item)


def test_block_over_the_parsing_limit_is_shown_as_text() -> None:
    """In a text that is rendered block by block, a block over the parsing limit is escaped text,
    and the blocks around it are rendered.
    """
    long = "*a* <q>\n" * (markdown.TEXT_MAX // 8 + 1)
    rendered = gate(render(f"# Title\n\n{long}\n*end*"))
    assert rendered.startswith("<h1>Title</h1>\n<p>*a* &lt;q&gt;<br>\n*a*")
    assert rendered.endswith("<p><em>end</em></p>\n")


def test_code_block_over_the_limits_is_code_without_colours() -> None:
    """A fence over the limits is code without colours."""
    code = "x = 1\n" * 10_000
    rendered = gate(render(f"```python\n{code}```\n"))
    assert rendered.count("<pre") == 1
    assert code in rendered


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "[" * 40_000,
        "![" * 20_000,
        "*a **b " * 6_000,
        "*" * 20_000 + "a" + "*" * 20_000,
        "[a][" * 10_000,
        ">" * 40_000,
        "- " * 20_000 + "a",
        ">" * 19 + " a\n" + "b\n" * 5_000,
        "[\n" * 20_000,
        ("|" + "a|" * 200 + "\n|" + "-|" * 200 + "\n" + "a\n" * 250 + "\n") * 20,
        ("a|b\n-|-\n# c\n") * 3_000,
    ],
)
def test_hostile_text_takes_bounded_time(source: str) -> None:
    """The worst known texts take seconds of CPU time, where they took minutes without limits.
    Colours have another limit: see test_renderer.py."""
    start = time.thread_time()
    gate(render(source))
    page_of(source)
    assert time.thread_time() - start < 8


def test_table_with_too_many_columns_is_text() -> None:
    """A table with too many columns, which would grow many times, is text; an ordinary ragged one
    is a table.
    """
    max_columns = tables.COLUMNS_MAX
    for columns, is_table in ((max_columns, True), (max_columns + 1, False)):
        row = "|".join(["a"] * columns)
        dashes = "|".join(["-"] * columns)
        assert ("<table" in render(f"{row}\n{dashes}\n{row}\n")) is is_table
    wide = "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n" + "a\n" * 200
    assert len(render(wide)) < 4 * len(wide)
    assert "<table" in render("| a | b | c |\n|---|---|---|\n| 1 |\n| 2 | 3 |\n")


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_render_gives_only_listed_tags_and_attributes(text: str) -> None:
    """Property: for any text only listed tags, attributes and values are rendered."""
    gate(render(text))
    gate(page_of(*text).finished)
    assert not set(text_of_tail(page_of(text).tail)) & set("<>\"'\r\0")


# --- Colours ------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_stylesheet_colours_every_token_class_readably() -> None:
    """The stylesheet colours exactly the classes in use, in light and dark, with a contrast of at
    least 4.5.
    """
    folder = Path(__file__).parents[3] / "static" / "css"
    tokens = (folder / "tokens.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--([a-z-]+): light-dark\((#\w{6}, #\w{6})\);", tokens))
    css = (folder / "code.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"\.highlight \.([a-z]+) \{ color: var\(--([a-z-]+)\);", css))
    assert set(colours) == set(highlighting.TOKEN_CLASSES.values()) - {""}
    for token in colours.values():
        for colour, background in zip(
            *(pairs[t].split(", ") for t in (token, "code")), strict=True
        ):
            brighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (token, colour)

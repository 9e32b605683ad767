"""Formulas of TeX as MathML: what is converted, what stays source, limits, and safety."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from halt.rendering.markdown import render
from halt.rendering.mathml.formula import NESTING_MAX, SOURCE_MAX, math_html
from halt.rendering.mathml.styles import COLOURS, MATH_CLASSES
from halt.rendering.sanitizing import MATH, TAGS
from tests.support.answer_html import gate

STYLES = Path(__file__).parents[3] / "static" / "css"

#: Formulas that together use each element and each style of the converter.
FORMULAS = r"""
x=\frac{-b\pm\sqrt{b^2-4ac}}{2a}
\int_{-\infty}^{\infty} e^{-x^2}\,dx = \sqrt[3]{\pi}
\sum_{n=1}^{\infty} \frac{1}{n^2} \quad \lim\limits_{n\to\infty} a_n
\begin{pmatrix} a & b \\ c & d \end{pmatrix} \begin{vmatrix} a & b \\ c & d \end{vmatrix}
f(x) = \begin{cases} x^2 & \text{if } x \ge 0 \\ -x & \text{sonst, 否则} \end{cases}
\begin{align} (x+1)^2 &= x^2 + 2x + 1 \\[4pt] &= (x+1)(x+1) \end{align}
\begin{equation} \begin{split} a &= b \\ &= c \end{split} \label{eq:e} \end{equation}
\begin{gather*} a = b \\ c = d + e + f \end{gather*}
E = mc^2 \tag{1}
\begin{align} a &= b \tag{1} \\ c &= d \end{align}
\begin{array}{|l|c|r|}\hline a & b & c \\ \hline d & e & f \\ \hline \end{array}
\begin{array}{l:r}\hdashline a&b\\\hdashline c&d\end{array}
\left. \frac{df}{dx} \right|_{x=0} \left\{ \frac{a}{b} \right\} \Bigl| x \Bigr|
\mathbb{R} \mathcal{L} \mathfrak{g} \mathbf{v} \boldsymbol{\alpha} \mathrm{d}x \mathsf{x}
\vec{v} \hat{x} \overline{AB} \overbrace{a+b}^{n} \underbrace{x}_{m} \underline{x}
A \xrightarrow{f} B \xleftarrow[g]{h} C \xmapsto{x}
\operatorname{argmax}_x \operatorname*{argmin}\limits_{\theta} f'(x) f''(x)
\overset{!}{=} |x| \lvert x \rvert \sim n! 50\%, \$5, \#1, a\_b, \{1,2,3\}, \text{\$5}
\boxed{x = 42} \cancel{x} \binom{n}{k} \tfrac{1}{2} \cfrac{1}{2} \genfrac{[}{]}{0pt}{0}{n}{k}
\sum_{\substack{0<i<m \\ 0<j<n}} P(i,j)
\color{red} x + \textcolor{blue}{y}
\phantom{x} \hphantom{b} \vphantom{c} \mathstrut \displaystyle\sum \mathrel{R}
{}^{14}_{6}\mathrm{C} \prescript{14}{6}{C} \textbf{bold} \textit{it} \texttt{tt}
a = b \\ c = d
""".strip().split("\n")


@pytest.mark.parametrize("display", [True, False])
def test_math_lists_allow_exactly_what_is_written(display: bool) -> None:
    """The sanitizer keeps each element and attribute of the formulas, and lists no others."""
    written: dict[str, set[str]] = {}
    for tex in FORMULAS:
        math = math_html(tex, display=display)
        assert math is not None or (not display and "\\tag" in tex), tex
        if math is None:
            continue
        for tag, attributes in re.findall(r"<(\w+)([^>]*?)/?>", math):
            names = set(re.findall(r'([\w-]+)="', attributes))
            written.setdefault(tag, set()).update(names - {"class", "mathcolor"})
        kept = gate(render(f"$${tex}$$" if display else f"${tex}$"))
        assert len(re.findall(r"<m\w+", kept)) == len(re.findall(r"<m\w+", math)), tex
    if display:
        listed = {tag: set(names.split()) for tag, names in MATH.items()}
        assert {tag: names for tag, names in written.items() if tag not in TAGS.split()} == listed


def test_math_has_classes_of_the_style_sheet_and_no_styles() -> None:
    """A style of the converter is a class that the style sheet has."""
    math = "".join(math_html(tex, display=True) or "" for tex in FORMULAS)
    assert " style=" not in math
    assert set(" ".join(re.findall(r'<mt\w+ [^>]*?class="([^"]*)"', math)).split()) == MATH_CLASSES
    css = "".join((STYLES / f"{name}.css").read_text("utf-8") for name in ("answer", "formats"))
    assert all(re.search(rf"\.{name} ", css) for name in MATH_CLASSES)


@pytest.mark.parametrize(
    "tex",
    [
        r"\ce{H2O}",
        r"\SI{3}{m}",
        r"\unknown{x}",
        r"\href{javascript:alert(1)}{x}",
        r"\def\a{xx}\a",
        r"\newcommand{\a}{" + "x" * 500 + "}" + r"\a" * 99,
        r"\eqref{a}",
        r"x\hspace{9999em}y",
        r"\frac{a",
        "",
        "x" * (SOURCE_MAX + 1),
        "{" * (NESTING_MAX + 1) + "}" * (NESTING_MAX + 1),
        r"\lgroup" * 60,
        r"\pmod \hat " * 60,
        r"\qty{3}{m}",
        r"\DeclareMathOperator{\a}{a} \a",
        r"\text{if $x}",
        r"\text{a \textbf{b $x$} c}",
    ],
)
def test_math_that_is_not_known_or_too_large_is_source(tex: str) -> None:
    """An unknown command, a definition, or too much of anything gives None."""
    assert math_html(tex, display=True) is None


def test_formula_that_is_not_known_is_shown_as_source() -> None:
    """The page shows the source of a formula that cannot be converted."""
    assert gate(render(r"$\ce{H2O}$")) == '<p><span class="math">$\\ce{H2O}$</span></p>\n'


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\begin{align} a &= b \\ &= c \end{align}", "a=b=c"),
        (r"\begin{equation} a \label{x} \end{equation}", "a"),
        (r"a \tag{7}", "a(7)"),
        (
            r"f(a) g(b) h(-c) k(d) l(e) m(f) n(g) \{1\} \text{(so)}",
            "f(a)g(b)h(\u2212c)k(d)l(e)m(f)n(g){1}(so)",
        ),
        (r"a \\[2pt] b", "ab"),
        (r"\mathds{1}", "\U0001d7d9"),
    ],
)
def test_math_keeps_its_signs(tex: str, text: str) -> None:
    """No number, label or length is shown that TeX would not show, and each sign is kept."""
    assert re.sub(r"<.*?>|\s", "", math_html(tex, display=True) or "") == text


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\text{if $x > 0$, else}", "if_x&gt;0,_else"),
        (r"\mbox{if \(x\) and \(y\)}", "if_x_and_y"),
        (r"\textbf{Case $n=1$:} x", "Case_n=1:x"),
        (r"\begin{cases} 1 & \text{if $x$} \end{cases}", "{1if_x"),
        (r"\underbrace{a}_{\text{sum of $b_{1}$}}", "a\u23dfsum_of_b1"),
        (r"\text{learning_rate, R&D, 50%, \#1}", "learning_rate,_R&amp;D,_50%,_#1"),
        (r"\text{m/s^2 and CO_2}", "m/s2_and_CO2"),
    ],
)
def test_text_in_a_formula_has_formulas_and_plain_signs(tex: str, text: str) -> None:
    """Dollar signs in a text mean a formula, blanks beside it stay, other signs need no escape."""
    written = re.sub(r"<.*?>|\u2063", "", math_html(tex, display=True) or "")
    assert written.replace("\u00a0", "_") == text


#: What models write and the converter does not know, and the signs that it shows.
WRITTEN = {
    r"x = 50% \cdot y": "x=50%\u22c5y",
    r"\sfrac{1}{2} \nicefrac{a}{b}": "12ab",
    r"\abs{x} \norm{y} \dv{f}{x} \pdv{x} \dd x": "|x|\u2016y\u2016dfdx\u2202\u2202xdx",
    r"a &lt; b &amp;= c": "a&lt;b=c",
    r"\mathop{\mathrm{argmax}}\limits_x f": "argmaxxf",
    r"\begin{array}[t]{@{}l*{2}{c}p{2cm}} a & b \\ \hline\hline c & d \end{array}": "abcd",
    r"\begin{bmatrix}[c|c] a & b \end{bmatrix}": "[ab]",
    r"\left< x \right>": "\u27e8x\u27e9",
    r"\large \require{cancel} \vspace{1cm} \displaylines{a \\ b}": "ab",
    r"a &= b": "a=b",
    r"√2 + √x": "2+x",
}


@pytest.mark.parametrize("tex", WRITTEN)
def test_math_rewrites_what_models_write(tex: str) -> None:
    """A formula with commands of common packages is set, with the signs that TeX would show."""
    written = math_html(tex, display=True) or ""
    assert re.sub(r"<.*?>|\s|&ApplyFunction;", "", written) == WRITTEN[tex]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (r"\langle a | b \rangle ", "\u27e8a|b\u27e9"),
        (r"[0,1] \cup \lfloor x \rfloor \lceil y \rceil", "[0,1]\u222a\u230ax\u230b\u2308y\u2309"),
        (r"\lvert x \rvert \lVert y \rVert \{z\} ", "|x|\u2016y\u2016{z}"),
        (r"\ket{\psi_{0}}\bra{1}\braket{a|b}", "|\u03c80\u27e9\u27e81|\u27e8a|b\u27e9"),
        (r"\bigl( x \bigr) \Bigl| y \Bigr| \biggl\langle z \biggr\rangle ", "(x)|y|\u27e8z\u27e9"),
        (r"\sqrt[3]{(a)} \text{ (b [c])} \left[ d \right]", "(a)3(b[c])[d]"),
        (r"\begin{matrix} [a & (b \\ c] & d) \end{matrix}", "[a(bc]d)"),
    ],
)
def test_math_with_many_brackets_is_set(unit: str, text: str) -> None:
    """A formula may have any number of brackets, of any kind, closed or not."""
    written = math_html(12 * unit, display=True) or ""
    assert re.sub(r"<.*?>|\s", "", written) == 12 * text
    assert not re.search(r'stretchy="false"[^<>]* minsize', written)  # \bigl( is as large as \bigr)


def test_colours_of_formulas_are_legible() -> None:
    """Each colour has a contrast of 4.5 or more on the paper of its theme."""
    css = (STYLES / "tokens.css").read_text(encoding="utf-8")
    papers = re.search(r"--paper: light-dark\((#\w{6}), (#\w{6})\)", css)
    assert papers
    for colour in COLOURS:
        for text, paper in zip(re.findall(r"#\w{6}", colour), papers.groups(), strict=True):
            dark, light = sorted(luminance(shade) for shade in (text, paper))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, paper)
    assert 'mathcolor="light-dark(#b3261e,' in gate(render(r"$\textcolor{#ff5733}{x}$"))


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG defines it."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_formula_on_its_own_is_a_scrolling_box() -> None:
    """A formula in display marks has its own box, and so has a wide one; the keyboard reaches wide ones."""
    assert '<span class="display"><math display="block"><mi>x</mi></math></span>' in render("$$x$$")
    assert '<span class="display" tabindex="0">' in render(f"\\[ {'x + ' * 20} y \\]")
    assert '<span class="inline" tabindex="0">' in render(f"\\( {'x + ' * 20} y \\)")
    assert "<span" not in render("$x + y$")
    assert render("a $x$ b") == "<p>a <math><mi>x</mi></math> b</p>\n"


def test_formula_in_dollar_signs_may_have_a_text_with_a_formula() -> None:
    """The dollar signs within a text of a formula do not end that formula."""
    assert render(r"a $x = 1 \text{ if $y > 0$ or $z$}$ b $c$").count("<math>") == 2
    assert render(r"a $x = 1 \text{ if $y > 0} b").count("<math") == 0


def test_formula_with_the_ending_of_a_word_is_a_formula() -> None:
    """The ending of an ordinal or a plural may follow a formula; other letters may not."""
    assert render("the $n$th of the $x$s") == (
        "<p>the <math><mi>n</mi></math>th of the <math><mi>x</mi></math>s</p>\n"
    )
    assert "<math" not in render("$HOME/$USER and $A$B and $x$1 and $5/$10")


@pytest.mark.parametrize(
    "tex",
    [
        r"\text{<img src=x onerror=alert(1)>}",
        r"</math><script>alert(1)</script>",
        r"\text{</mtext></math><style><img src onerror=alert(1)>}",
        r"\operatorname{<svg onload=alert(1)>}",
        r"\tag{<a href=javascript:1>}",
        r"\color{red;background:url(x)} x",
        r"\mathrm{<!--} \text{--><script>}",
        r"\begin{array}{c\"onclick=alert(1)}a\end{array}",
    ],
)
def test_hostile_formula_is_text(tex: str) -> None:
    """Tags and attributes within a formula are text; only listed ones are rendered."""
    for source in (f"$${tex}$$", f"${tex}$"):
        rendered = gate(render(source))
        assert not re.search(r"<(?:img|script|svg|style|a)\b", rendered)


#: Texts of the greatest length, of kinds that have ended or slowed the converter.
LONGEST = [
    "{" * NESTING_MAX + "}" * NESTING_MAX,
    r"\left(" * NESTING_MAX + r"\right)" * NESTING_MAX,
    *(
        unit * (SOURCE_MAX // len(unit) - 1) + " x"
        for unit in (r"\hat", r"\bm", r"\not", r"\frac1")
    ),
    *(
        unit * (SOURCE_MAX // len(unit))
        for unit in ("(x^)", r"\overset{a})(", r"(\frac1)", "'", "~")
    ),
    r"\log(" * 6 + "a" * 1900,
    "[" * 6 + "a" * 1900,
    r"\begin{array}{" + "|c" * 800 + r"}a\\b\end{array}",
    r"\begin{array}{c}\hline\end{array}" * 60,
    r"\\[" * 600,
    r"\substack{" * 90 + "}" * 90,
    *(
        unit * (SOURCE_MAX // len(unit))
        for unit in (
            r"\langle",
            r"\bigl(",
            r"\text{$",
            r"\text{a$(x$b}",
            r"\log[",
            r"\lvert\frac",
            "{(",
            r"\ket{",
            r"\abs{",
        )
    ),
]


def test_math_of_the_greatest_size_neither_ends_the_process_nor_takes_long() -> None:
    """The longest formulas take 30 ms each at most, in a thread with a stack of 1 MB."""
    script = (
        "import sys, threading, time\n"
        "from halt.rendering.mathml.formula import math_html\n"
        "from tests.unit.rendering.test_math import LONGEST\n"
        "def convert():\n"
        "    for tex in LONGEST:\n"
        "        start = time.thread_time()\n"
        "        math = math_html(tex, display=True) or ''\n"
        "        assert time.thread_time() - start < 0.03, tex[:20]\n"
        "        assert len(math) <= 2_000 + 60 * len(tex), tex[:20]\n"
        "    print('converted')\n"
        "threading.stack_size(2 ** 20)\n"
        "thread = threading.Thread(target=convert)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.stdout == "converted\n", (done.returncode, done.stderr)


@pytest.mark.parametrize(
    "unit",
    ["$x$ ", "$(((($ ", r"$\frac{a}{b}$ ", "$$'''''''''$$\n\n", r"\(\log(\) ", r"$\text{$a$"],
)
def test_many_formulas_take_linear_time(unit: str) -> None:
    """Four times the formulas take about four times as long."""
    times = []
    for size in (10_000, 40_000):
        text, runs = unit * (size // len(unit)), []
        for _ in range(3):  # another program on the same core may double a figure
            start = time.process_time()
            render(text)
            runs.append(time.process_time() - start)
        times.append(min(runs))
    assert times[1] < max(8 * times[0], 0.1)


def test_math_is_the_same_in_many_threads() -> None:
    """Threads may convert at once."""
    results: list[list[str | None]] = []
    threads = [
        threading.Thread(
            target=lambda: results.append([math_html(tex, display=True) for tex in FORMULAS])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("f'(x)", '<mrow><mi>f</mi><mo lspace="0" rspace="0">\u2032</mo></mrow>'),
        (r"\vec{v}", '<mi>v</mi><mo stretchy="false" mathsize="70%">\u2192</mo>'),
        (r"\overline{A}", '<mi>A</mi><mo stretchy="false">\u00af</mo>'),
        (r"\underline{x}", '<mi>x</mi><mo stretchy="false">_</mo>'),
        (r"\overline{AB}", '<mo stretchy="true">\u0332</mo>'),
    ],
)
def test_math_accents_are_signs_that_browsers_place_rightly(tex: str, expected: str) -> None:
    """An accent is not a combining sign, and a prime is not made small twice."""
    assert expected in str(math_html(tex, display=False))

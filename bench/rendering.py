"""Time of rendering: ordinary Markdown, hostile texts, and formulas.

Each text goes from a worker to its rendering process and back, as it does for a page. The time is
real time of an idle machine; no text is rendered twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, without_target
from halt.rendering.renderer import Renderer
from tests.support.hostile_texts import HOSTILE_TEXTS, of_size, text_of

SIZE = 200_000  # characters of a text
FORMULAS = 300

#: A part of an ordinary answer; `{n}` makes each one different.
SECTION = """\
## Step {n}: read the file

A **context manager** closes the file, also after an error. `open` takes an *encoding*; see
[the documentation](https://docs.example.org/io#{n}) for the rest of its arguments, of which most
programs need none. The example reads line {n} of a text and counts its words.

- **Simple**: the loop reads one line at a time, so a long file takes no more memory than a short one.
- **Safe**: an error names the line where it happened, and nothing is left open.
  - A nested point with `code` in it, and a few more words.

1. Open the file.
2. Count the words of each line.

```python
def count_words(path: str, number: int = {n}) -> int:
    \"\"\"The number of words in one line.\"\"\"
    with open(path, encoding="utf-8") as lines:
        for at, line in enumerate(lines, start=1):
            if at == number:
                return len(line.split())
    raise LookupError(f"there is no line {{number}}")
```

| Way | Time | Memory |
|:----|-----:|-------:|
| whole file | {n} ms | 120 MB |
| line by line | 48 ms | 0.1 MB |

> Measure before you decide: the difference is small for files below one megabyte.

"""
FORMULA = (
    r"$\frac{{-b \pm \sqrt{{b^2 - {n}ac}}}}{{2a}} = \sum_{{i=1}}^{{n}} x_i \cdot \alpha_{{{n}}}$"
)


def rendering(sizes: Sizes) -> Iterator[Row]:
    """Rows for ordinary Markdown, the slowest hostile text, and a page of formulas."""
    with contextlib.closing(Renderer()) as renderer:
        _milliseconds(renderer, SECTION)  # the process has started, its lexer is loaded
        ordinary = "".join(SECTION.format(n=n) for n in range(1 + SIZE // len(SECTION)))[:SIZE]
        yield _ordinary("200 kB of ordinary Markdown", ordinary, 150, 75, renderer, sizes)
        yield _uncached(ordinary)
        yield _hostile(renderer)
        formulas = "\n\n".join(f"Term {n} is {FORMULA.format(n=n)}." for n in range(FORMULAS))
        yield _ordinary(f"{FORMULAS} formulas", formulas, 100, 50, renderer, sizes)


def _ordinary(
    name: str, text: str, target: float, goal: float, renderer: Renderer, sizes: Sizes
) -> Row:
    _milliseconds(renderer, text)
    times = [
        _milliseconds(renderer, f"{text}\n\nRound {at}.") for at in range(sizes.rendered_texts)
    ]
    return at_most(
        f"Rendering of {name}, p50",
        median(times),
        target,
        goal,
        " ms",
        note=f"{sizes.rendered_texts} times, from the worker to its rendering process and back, as "
        "when an answer ends: its code was highlighted while it was written",
    )


def _uncached(text: str) -> Row:
    with contextlib.closing(Renderer()) as renderer:
        _milliseconds(renderer, SECTION)
        milliseconds = _milliseconds(renderer, text)
    return without_target(
        "The same with its code, 28 % of it, highlighted for the first time",
        f"{number(milliseconds)} ms",
    )


def _hostile(renderer: Renderer) -> Row:
    times: dict[str, float] = {}
    for name, case in HOSTILE_TEXTS.items():
        times[name] = _milliseconds(renderer, f"{text_of(of_size(case, SIZE))[:SIZE]}\n")
    slowest, next_slowest, *_ = sorted(times, key=lambda name: -times[name])
    return at_most(
        "Rendering of a hostile text of 200 kB, the slowest",
        times[slowest],
        500,
        250,
        " ms",
        f"{number(times[slowest])} ms ({slowest}; then {next_slowest}, "
        f"{number(times[next_slowest])}; median {number(median(times.values()))})",
        note=f"the {len(times)} kinds of tests/cases/hostile_texts.json; what is not rendered "
        "within its share of CPU time is shown plain",
    )


def _milliseconds(renderer: Renderer, text: str) -> float:
    began = time.perf_counter()
    renderer.submit_text(text).result()
    return (time.perf_counter() - began) * 1000

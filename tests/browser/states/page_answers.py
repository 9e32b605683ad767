"""Prompts and what a fake model answers to them: the content of the page's states.

A model that the fake does not know plays the scenario `written`, which looks the last prompt up
here. So the model's name on the page is one that a user would see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from halt.testing.scenarios import (
    SCENARIOS,
    call_tools,
    last_user_message,
    pieces,
    png,
    tool_results,
)
from halt.testing.wire import Pace, Reply, as_json

SCENARIO = "written"
PIECE = 6  # characters of a token


@dataclass(frozen=True)
class Answer:
    """The actions of the model. `hold` is a word of the text or thought before which it is silent."""

    text: str = ""
    thought: str = ""
    hold: str = ""
    reason: str = "stop"  # the finish reason
    refusal: str = ""  # an error's message instead of an answer
    tools: tuple[tuple[str, str], ...] = ()  # names and arguments, called before the text
    is_silent: bool = False  # before its first text
    gap_ms: float = 0.0  # between tokens
    has_extras: bool = False  # a picture and a source
    source_count: int = 0


SLOW_PARSER = (
    "The parser got slow. How do I find out where the time goes, and what can I expect to gain?"
)
MEASURE_FIRST = """\
Measure first, then change **one** thing at a time. The log shows two hot spots:

| step | now | after |
|---|--:|--:|
| split lines | 12.0 ms | 3.1 ms |
| decode | 40.2 ms | 11.4 ms |

```python
def mean(xs: list[float]) -> float:
    \"\"\"The arithmetic mean.\"\"\"
    return sum(xs) / len(xs)
```

Run it a hundred times and look at the mean, not at the best run.
"""
THOUGHT = "The log has two columns of times. The second is the larger one, so I begin there."
SECOND = "Show me the second one in detail."
DECODE_ONCE = """\
Decode once and keep the buffer. The idea: the bytes that arrive are appended to a single array, \
and only whole lines are handed on, so that no byte is looked at twice.

1. Keep one `bytearray` for each connection.
2. Find the last line break in it.
3. Decode what is before it, and delete that.
"""
LONG_TITLE = ("Why does the parser of the older release need so much more time " * 6)[:300].strip()
LONG_LINE = "One line of code, please."
WIDE_TABLE = "A table of thirty columns, please."
EVERYTHING = "Show me every kind of text."
CODE_LINE = "values = [" + ", ".join(str(n) for n in range(1100)) + "]"
COLUMNS = 30
TABLE = "\n".join(
    "|" + "|".join(row) + "|"
    for row in (
        [f"column {n}" for n in range(1, COLUMNS + 1)],
        ["---"] * COLUMNS,
        *([f"{row}.{n}" for n in range(1, COLUMNS + 1)] for row in range(1, 5)),
    )
)
ALL_KINDS = """\
# First heading

Text with **bold**, *italic*, ~~struck~~, `code` and a [link](https://example.org/).

## Second heading

- one
  - two
    1. deeper
- [x] done
- [ ] to do

* [x] done

* [ ] to do

1) \u05d0\u05d1

<details open>
<summary>A summary</summary>

Its content.

</details>

### Third heading

> Quoted text.
>
> ```
> quoted code
> ```

- Press <kbd>Ctrl</kbd>, or write:
  ```
  exit
  ```

The mean is $\\bar{x} = \\frac{1}{n} \\sum_{i=1}^{n} x_i$, and

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

A statement with a note.[^1]

---

```diff
diff --git a/values.py b/values.py
- old = 1
+ new = 2
```

```html
<p class="note">Text</p>
```

| left | centre | right |
|:--|:-:|--:|
| a | b | c |

```python
import re

@cache
class Reader(Base):  # a comment
    \"\"\"A docstring.\"\"\"

    def read(self, n: int = 0x1F) -> str:
        raise ValueError(f"{n!r} is {len(self.text) + 1.5:g}\\n") from None
```

[^1]: The note.

## Formulas

The sum $\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}$ stands in a line, $1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 = 78$ is wide, and $\\ce{H2O}$ is source.

\\[
f(x) = \\begin{cases} \\left( \\frac{1}{x} \\right)^2 & \\text{if } x > 0 \\\\ 0 & \\text{otherwise} \\end{cases}
\\]

\\begin{align} a &= \\boxed{b} + \\cancel{c} \\tag{1} \\\\ &= \\sum_{\\substack{i < n \\\\ j < n}} d_{ij} \\end{align}

$$\\begin{array}{|c|c|}\\hline p & \\neg p \\\\ \\hline 1 & 0 \\\\ \\hline \\end{array}$$
"""
HOSTILE = (
    """\
<script>alert("script")</script><img src=x onerror=alert("image")> \u202egnirts\u202c \
<style>body{display:none}</style> [link](javascript:alert(1)) Z̴̡̢͓̳̜͉̯̟̞̈́̿̈́͌̕͝a̷̢̛͙̰̫̪̔̈́̽l̶̺̏g̵̪̈́o \
&lt;b&gt; \u0000\ufeff """
    + "long" * 200
)

NAMED_CODE = f"""\
Two files, and a word about each.

```python title="src/values/reader.py"
# It reads {CODE_LINE[:200]}
def read(path: str) -> list[int]:
    with open(path) as file:
        return [int(line) for line in file]
```

```
// src/app/main.ts
export const main = () => {{ console.log("one line"); }};
```

```mermaid
graph LR
  A --> B
```
"""

SOURCES = (
    ("Nagle\u2019s algorithm", "https://en.wikipedia.org/wiki/Nagle%27s_algorithm"),
    ("The title of a page that is " + "much " * 20 + "longer", "https://www.example.org/a"),
    ("", "https://b\u00fccher.example/" + "long/" * 30),
)
CITED = """\
Nagle\u2019s algorithm joins small packets.[1] It waits for an acknowledgement[2][3], which another \
machine may delay for 200 ms.[1, 2] What has no source stays as it is.[99]<sup>[2]</sup>

- It is switched off with `TCP_NODELAY`, as `flags[1]` shows.\u30101\u2020source\u3011
"""

STEPS = """\
## Three steps

They *follow* each other:
1. **First**: call `mean(values)`.
   - A part of it.
2. **Second**: write two lines,
   the other one below it.
3. **Third in bold** and the rest.
"""

ROWS = """\
The delays, in **milliseconds**:

| Setting | Median | Worst |
|---|--:|--:|
| `TCP_NODELAY` | 0.3 | 1.2 |
| The **default** | 40.1 | 204 |
| A `proxy` between them | 41 | 210 |
"""

ANSWERS: dict[str, Answer] = {
    SLOW_PARSER: Answer(MEASURE_FIRST, thought=THOUGHT),
    SECOND: Answer(DECODE_ONCE),
    LONG_LINE: Answer(f"```python\n{CODE_LINE}\n```\n\nThat was the line."),
    WIDE_TABLE: Answer(f"Thirty columns:\n\n{TABLE}\n\nThat was the table."),
    EVERYTHING: Answer(ALL_KINDS),
    "Write two files.": Answer(NAMED_CODE),
    "Name three sources.": Answer(CITED, source_count=3),
    "Name thirty sources.": Answer(CITED, source_count=30),
    "Write code slowly.": Answer(MEASURE_FIRST, hold="return"),
    "Write a list slowly.": Answer(STEPS, hold="bold**"),
    "Write a table slowly.": Answer(ROWS, hold="between"),
    "Show a picture and its source.": Answer("Here it is.[1]", has_extras=True),
    "Write one long paragraph.": Answer(
        DECODE_ONCE.partition("\n")[0] * 30 + " This is the end of it", hold="end of it"
    ),
    "Divide by zero.": Answer(
        "That cannot be divided.", tools=(("calculator", '{"expression": "1/0"}'),)
    ),
    "Write the second one down.": Answer(DECODE_ONCE, hold="so that"),
    "Think before you write.": Answer(MEASURE_FIRST, thought=THOUGHT, hold="larger"),
    "Wait before you write.": Answer(DECODE_ONCE, is_silent=True),
    "Write until the limit.": Answer(DECODE_ONCE[:140], reason="length"),
    "Spend what I do not have.": Answer(
        refusal="Your credit balance is too low to access the API."
    ),
    "Refuse at length.": Answer(refusal="This field is not permitted here. " * 60),
    "What are 17 times 23, and what time is it in Oslo?": Answer(
        "17 times 23 are **391**, and the time in Oslo is above.",
        thought="Both need a tool.",
        tools=(
            ("calculator", '{"expression": "17*23"}'),
            ("current_time", '{"time_zone": "Europe/Oslo"}'),
        ),
    ),
    "Write slowly.": Answer(DECODE_ONCE * 100, gap_ms=40),
    "Calculate it slowly.": Answer(tools=(("calculator", '{"expression": "17*'),), hold="*"),
}


def _written(reply: Reply) -> None:
    """The answer to the last prompt; to a prompt without one, the prompt."""
    prompt = last_user_message(reply.request).rpartition("\n\n")[2]
    answer = ANSWERS.get(prompt, Answer(prompt))
    reply.pace = Pace(gap_ms=answer.gap_ms)
    if answer.refusal:
        reply.error(400, answer.refusal, code="insufficient_quota")
        return
    if answer.is_silent:
        reply.open()
        reply.hold(inf)
    if answer.tools and not tool_results(reply):
        _send(reply, answer.thought, "", kind="reasoning_content")
        _call(reply, answer)
        return
    for kind, text in (("reasoning_content", answer.thought), ("content", answer.text)):
        if not answer.tools or kind == "content":
            _send(reply, text, answer.hold, kind)
    if answer.has_extras:
        url = f"data:image/png;base64,{png(40)}"
        chunk = reply.chunk_object({"images": [{"type": "image_url", "image_url": {"url": url}}]})
        reply.event(as_json(chunk | {"citations": ["https://example.org/a-source"]}))
    if answer.source_count:
        results = [
            {"title": title, "url": url}
            for title, url in (SOURCES * answer.source_count)[: answer.source_count]
        ]
        reply.event(as_json(reply.chunk_object({}) | {"search_results": results}))
    reply.finish(answer.reason)


def _send(reply: Reply, text: str, hold: str, kind: str) -> None:
    position = text.find(hold) if hold else -1
    reply.tokens(pieces(text[: max(position, 0)], PIECE), kind=kind)
    if position >= 0:
        reply.hold(inf)
    reply.tokens(pieces(text[max(position, 0) :], PIECE), kind=kind)


def _call(reply: Reply, answer: Answer) -> None:
    if not answer.hold:
        call_tools(reply, *answer.tools)
        return
    ((name, arguments),) = answer.tools
    function = {"name": name, "arguments": arguments}
    reply.open()
    reply.chunk({"tool_calls": [{"index": 0, "id": "call", "type": "function", "function": function}]})  # fmt: skip
    reply.record.sent(1)
    reply.hold(inf)
    reply.finish("tool_calls")


@contextmanager
def written_answers() -> Iterator[None]:
    """Let fakes with `unknown_model=SCENARIO` answer from `ANSWERS`."""
    SCENARIOS[SCENARIO] = _written
    try:
        yield
    finally:
        del SCENARIOS[SCENARIO]

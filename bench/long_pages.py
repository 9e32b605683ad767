"""Long answers and conversations in a real browser: time to open them, and frames at their end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from playwright.sync_api import FilePayload, Page

from bench.browser import (
    LINGER,
    WITHIN,
    measured_page,
    paragraph_text,
    rich_text,
    wait_seen,
)
from bench.processes import HaltProcess
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, percentile
from halt.testing.fake_openai import FakeOpenAI
from tests.support.export_files import export_file, exported_conversation

PARAGRAPH = 200_000  # characters
CODE_BLOCKS = 500
MESSAGES = 2_000
LISTED = 10_000  # conversations

TOKENS = 1_500
RATE = 250
PIECE = 4  # characters of a token

METRICS = {
    "work": "TaskDuration",
    "scripts": "ScriptDuration",
    "styles": "RecalcStyleDuration",
    "layout": "LayoutDuration",
}

#: Loads every part of the conversation above the first one that is shown.
LOAD_ALL = """async () => {
  for (;;) {
    const part = document.querySelector("#messages > .earlier");
    if (!part) return;
    await new Promise(done => {
      new MutationObserver((_, observer) => {
        if (part.isConnected) return;
        observer.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(done));
      }).observe(document.querySelector("#messages"), { childList: true });
      part.querySelector("button").click();
    });
  }
}"""


@dataclass(frozen=True)
class Opened:
    """The times of one navigation, in milliseconds, and the size of its page."""

    usable: float  # the scripts have run, and the end of the last exchange has been drawn
    painted: float  # first contentful paint
    answered: float  # first byte of the page
    work: float  # CPU time of the main thread until then
    html_bytes: int
    elements: int


@dataclass(frozen=True)
class Followed:
    """An answer that streams at the end of the page."""

    gaps: list[float]  # milliseconds between two frames
    seconds: float
    costs: dict[str, float]  # milliseconds of the main thread, by the names of METRICS


def code_blocks(count: int) -> str:
    """Markdown of `count` short code blocks with a line of text before each."""
    draw = random.Random(7)
    return "\n\n".join(
        f"Step {index}: call `run_{index}`.\n\n```python\ndef run_{index}(total: int) -> int:\n"
        f'    """Add a number."""\n    if total > {draw.randint(0, 99)}:  # enough\n'
        f'        return total + {draw.randint(0, 99)}\n    return int("{draw.randint(0, 999)}")\n```'
        for index in range(count)
    )


def long_conversation(messages: int) -> list[str]:
    """Questions and answers in turn; an answer has two blocks, some with much code."""
    blocks = rich_text(messages * 1_500).split("\n\n")
    return [
        f"question {n}" if n % 2 == 0 else "\n\n".join(blocks[n - 1 : n + 1])
        for n in range(messages)
    ]


def conversation(title: str, *texts: str) -> dict[str, Any]:
    """A conversation to import."""
    return exported_conversation(*texts, title=title, at=time.time() - 3600)


def page_long(sizes: Sizes) -> Iterator[Row]:
    """Rows about long answers and conversations: opening them, and frames at their end."""
    cases = {
        f"an answer of one paragraph of {PARAGRAPH:,} characters": conversation(
            "Paragraph", "question", paragraph_text(PARAGRAPH)
        ),
        f"an answer with {CODE_BLOCKS} code blocks": conversation(
            "Blocks", "question", code_blocks(CODE_BLOCKS)
        ),
        f"a conversation of {MESSAGES:,} messages": conversation(
            "Long", *long_conversation(MESSAGES)
        ),
    }
    with measured_page(HALT_MAX_PROMPT_CHARS=10_000_000) as (page, halt, fake):
        fake.texts["rich"] = rich_text(TOKENS * PIECE)
        page.goto(halt.url)
        _import(page, halt, export_file(*cases.values()))
        for name, exported in cases.items():
            url = f"{halt.url}/c/{exported['id']}"
            yield _open_row(name, [_open(page, url) for _ in range(sizes.page_opens + 1)])
            yield _frames_row(name, _follow(page, fake))
            if name.startswith("a conversation"):
                _open(page, url)
                page.evaluate(LOAD_ALL)
                count = page.locator(".exchange").count()
                yield _frames_row(f"{name}, {count:,} exchanges loaded", _follow(page, fake))
        few = [_open(page, halt.url, end=False) for _ in range(sizes.page_opens + 1)]
        listed = (conversation(f"Conversation {n}", "Hi", "Hello") for n in range(LISTED))
        _import(page, halt, export_file(*listed))
        many = [_open(page, halt.url, end=False) for _ in range(sizes.page_opens + 1)]
        yield _list_row(few[1:], many[1:])


def _import(page: Page, halt: HaltProcess, file: bytes) -> None:
    payload: FilePayload = {"name": "a.json", "mimeType": "application/json", "buffer": file}
    response = page.request.post(f"{halt.url}/import", multipart={"file": payload}, timeout=120_000)
    if not response.ok:
        raise RuntimeError(f"import: {response.status} {response.text()[:200]}")


def _open(page: Page, url: str, *, end: bool = True) -> Opened:
    page.goto("about:blank")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(url, wait_until="commit")
    wait_seen(page, "opened" if end else "ready")
    costs = _costs(session)
    session.detach()
    page.wait_for_load_state()
    times: dict[str, Any] = page.evaluate(
        """() => {
          const [navigation] = performance.getEntriesByType("navigation");
          const [paint] = performance.getEntriesByName("first-contentful-paint");
          return {
            opened: bench.opened, ready: bench.ready, painted: paint?.startTime ?? NaN,
            answered: navigation.responseStart, bytes: navigation.decodedBodySize,
            elements: document.querySelectorAll("*").length,
          };
        }"""
    )
    return Opened(
        times["opened" if end else "ready"],
        times["painted"],
        times["answered"],
        costs["work"],
        times["bytes"],
        times["elements"],
    )


def _costs(session: Any) -> dict[str, float]:
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    return {name: 1000 * float(metrics[metric]) for name, metric in METRICS.items()}


def _follow(page: Page, fake: FakeOpenAI) -> Followed:
    """Send a prompt at the end of this page, and follow the answer."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(
        "() => { window.benchWatchesText = false;"
        " Object.assign(bench, { shown: null, done: null, frames: [] }) }"
    )
    page.fill("#prompt", f"/fake text?key=rich&piece={PIECE}&rate={RATE} at the end")
    page.press("#prompt", "Enter")
    wait_seen(page, "shown")
    before, began = _costs(session), time.monotonic()
    time.sleep(TOKENS / RATE)  # repeated queries would take CPU time from the page
    wait_seen(page, "done", 60_000)
    after, seconds = _costs(session), time.monotonic() - began
    session.detach()
    time.sleep(LINGER)
    frames: list[float] = page.evaluate("bench.frames")
    state = page.get_attribute(".exchange:last-child .answer", "data-state", timeout=WITHIN)
    if state != "done":
        raise RuntimeError(f"the answer at the end is {state}")
    costs = {name: after[name] - before[name] for name in METRICS}
    return Followed([b - a for a, b in pairwise(frames)], seconds, costs)


def _open_row(name: str, opened: list[Opened]) -> Row:
    first, *others = opened
    usable = median(load.usable for load in others)
    work, html = median(load.work for load in others), others[-1].html_bytes
    return at_most(
        f"Page: open {name}, navigation → usable, p50",
        usable,
        300,
        150,
        " ms",
        f"{number(usable)} ms (first time {number(first.usable)}; first byte "
        f"{number(median(load.answered for load in others))}, first paint "
        f"{number(median(load.painted for load in others))}, work {number(work)}; "
        f"HTML {number(html / 1000)} kB, {others[-1].elements:,} elements)",
        f"headless Chromium, {len(others)} times after the first; usable: the scripts have run and "
        "the frame with the end of the last exchange has been drawn; work is the main thread's "
        "CPU time until then",
    )


def _frames_row(name: str, followed: Followed) -> Row:
    p99 = percentile(followed.gaps, 99)
    per_second = {cost: value / followed.seconds for cost, value in followed.costs.items()}
    return at_most(
        f"Page: frames while an answer streams at the end of {name}, p99",
        p99,
        50,
        34,
        " ms",
        f"{number(p99)} ms (median {number(median(followed.gaps))}, longest "
        f"{number(max(followed.gaps))}; work {number(per_second['work'])} ms/s, of it scripts "
        f"{number(per_second['scripts'])}, styles {number(per_second['styles'])}, layout "
        f"{number(per_second['layout'])})",
        f"{TOKENS:,} tokens of {PIECE} characters at {RATE} a second, markdown; frames from the "
        f"first text until {LINGER} s after the end; work is the main thread's CPU time",
    )


def _list_row(few: list[Opened], many: list[Opened]) -> Row:
    usable = median(load.usable for load in many), median(load.usable for load in few)
    answered = median(load.answered for load in many), median(load.answered for load in few)
    return at_most(
        f"Page: open an empty chat, {LISTED:,} conversations in the list / 3",
        usable[0] - usable[1],
        50,
        10,
        " ms more",
        f"{number(usable[0])} / {number(usable[1])} ms (first byte {number(answered[0])} / "
        f"{number(answered[1])}; {many[-1].elements:,} / {few[-1].elements:,} elements)",
        f"headless Chromium, medians of {len(many)}; usable: the scripts have run and a frame has been drawn",
    )

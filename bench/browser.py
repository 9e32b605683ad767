"""The page in a real browser: delay of the first text and of Stop, and smoothness of the text."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from bench.processes import HaltProcess, fake_in_process
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, p50_p99, percentile
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "chromium-headless-shell",
)
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SCRIPT = Path(__file__).with_suffix(".js")
WITHIN = 15_000.0  # milliseconds for short operations on the page
LINGER = 0.3  # seconds after the end in which the page may still change

FIRST_MS = (0, 20, 50)  # delays of the upstream's first token
WARM_TURNS = 4
FLOW = "count?n=100000&rate=100"

TOKENS = 4000
RATE = 500
PIECE = 4  # characters of a token
PARAGRAPH_PIECE = 40  # characters of a token of the long paragraph
PARAGRAPH_RATE = 500  # such tokens a second
WORDS = "the quick brown fox `jumps` over a **lazy** dog *and* sleeps"


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """An installed Chromium or Chrome, or the one of Playwright."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def measured_page(**settings: object) -> Iterator[tuple[Page, HaltProcess, FakeOpenAI]]:
    """A page with the script that measures it, its Halt with these settings, and the upstream."""
    with (
        fake_in_process() as fake,
        HaltProcess(fake.base_url, HALT_MODEL="echo", **settings) as halt,
        browser() as chromium,
    ):
        page = chromium.new_page()
        page.add_init_script(path=SCRIPT)
        yield page, halt, fake


class Clock:
    """Converts times of the page's clock to this process's monotonic clock."""

    def __init__(self, page: Page) -> None:
        """Read the page's time repeatedly; the fastest reading is the most precise."""
        self.error = float("inf")
        for _ in range(10):
            before = time.monotonic()
            page_time = float(page.evaluate("performance.now()")) / 1000
            after = time.monotonic()
            if after - before < self.error * 2:
                self.error = (after - before) / 2
                self._offset = (before + after) / 2 - page_time
        # Both clocks are the same clock in the kernel. The time of day gives their exact offset,
        # unless it is set in between.
        origin = float(page.evaluate("performance.timeOrigin")) / 1000
        exact = origin - (time.time() - time.monotonic())
        if abs(exact - self._offset) < self.error:
            self._offset = exact

    def monotonic(self, page_ms: float) -> float:
        """Convert a time of the page to seconds of `time.monotonic()`."""
        return page_ms / 1000 + self._offset


@dataclass(frozen=True)
class Turn:
    """The times of one message and its Stop, in milliseconds."""

    first_ms: int
    shown: float  # Enter to text on the page, without the upstream's delay
    painted: float  # the same until the next frame
    still: float  # click on Stop to the last change of the text
    closed: float  # click on Stop to the close of the upstream connection


def wait_seen(page: Page, key: str, within: float = WITHIN) -> None:
    """Wait until `bench[key]` is set. Playwright's method violates the page's security policy."""
    until = time.monotonic() + within / 1000
    while page.evaluate(f"bench.{key}") is None:
        if time.monotonic() > until:
            raise TimeoutError(f"{key} was not seen on the page")
        time.sleep(0.02)


def send(page: Page, halt: HaltProcess, prompt: str, *, watch_text: bool = True) -> None:
    """Send the first message of a new conversation and wait for the first text."""
    page.goto(halt.url)
    page.evaluate("on => { window.benchWatchesText = on }", watch_text)
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    wait_seen(page, "shown")


def turn(page: Page, halt: HaltProcess, fake: FakeOpenAI, first_ms: int, number: int) -> Turn:
    """Send a message, stop its answer, and measure at the page and the upstream."""
    send(page, halt, f"/fake {FLOW}&first_ms={first_ms} turn {number}")
    record = fake.wait_request(lambda r: _prompt_of(r).endswith(f"turn {number}"))
    time.sleep(random.uniform(0.2, 0.4))
    clock = Clock(page)
    page.click("#stop", timeout=WITHIN)
    wait_seen(page, "done")
    if not record.closed.wait(WITHIN / 1000):
        raise TimeoutError("the upstream connection was not closed")
    time.sleep(LINGER)
    times = page.evaluate("bench")
    assert record.first_token_at is not None
    assert record.closed_at is not None
    own = (record.first_token_at - record.received_at) * 1000
    return Turn(
        first_ms,
        times["shown"] - times["sent"] - own,
        times["painted"] - times["sent"] - own,
        max(0.0, times["changed"] - times["clicked"]),
        (record.closed_at - clock.monotonic(times["clicked"])) * 1000,
    )


def _prompt_of(record: Record) -> str:
    return str(record.body["messages"][-1]["content"]) if record.body else ""


#: Returns the bytes of a page's files before compression, by kind, and the number of other origins.
WEIGHT = """() => {
  const files = performance.getEntriesByType("resource");
  const sum = list => list.reduce((bytes, file) => bytes + file.decodedBodySize, 0);
  const [scripts, styles] = [/\\.js$/, /\\.css$/].map(
    ending => files.filter(file => ending.test(new URL(file.name).pathname)));
  const own = scripts.filter(file => !file.name.includes("/vendor/"));
  return {
    html: sum(performance.getEntriesByType("navigation")), all: sum(files),
    scripts: sum(own), styles: sum(styles), vendor: sum(scripts) - sum(own), count: files.length,
    foreign: files.filter(file => new URL(file.name).origin !== location.origin).length,
  };
}"""


def _weight_rows(page: Page, halt: HaltProcess) -> Iterator[Row]:
    """Rows about the size of an empty chat. The page is loaded for the first time."""
    page.goto(halt.url, wait_until="networkidle")
    sizes: dict[str, int] = page.evaluate(WEIGHT)
    kilobytes = {kind: size / 1000 for kind, size in sizes.items()}
    total = kilobytes["html"] + kilobytes["all"]
    note = "first load of an empty chat, bytes before compression, 1 kB is 1,000 bytes"
    yield at_most(
        "Page: all that an empty chat loads",
        total,
        200,
        150,
        " kB",
        f"{number(total)} kB (HTML {number(kilobytes['html'])}, htmx "
        f"{number(kilobytes['vendor'])}; {sizes['count'] + 1} requests, "
        f"{sizes['foreign']} to other servers)",
        note,
    )
    yield at_most("Page: own scripts", kilobytes["scripts"], 90, 60, " kB", note=note)
    yield at_most("Page: styles", kilobytes["styles"], 45, 30, " kB", note=note)


def page_turns(sizes: Sizes) -> Iterator[Row]:
    """Rows about the page's weight, and about Send and Stop."""
    turns: list[Turn] = []
    with measured_page() as (page, halt, fake):
        yield from _weight_rows(page, halt)
        kinds = cycle(FIRST_MS)
        turns += [
            turn(page, halt, fake, next(kinds), index)
            for index in range(WARM_TURNS + sizes.page_stops * len(FIRST_MS))
        ]
    del turns[:WARM_TURNS]  # without start-up costs
    note = (
        f"{len(turns)} messages in headless Chromium. Text counts when it is in the document and "
        "visible (the screen shows it with the next frame, at 60 a second); it stands still after "
        "the last change of readable text since the click; the upstream sends 100 tokens/s"
    )
    for first_ms in FIRST_MS:
        with_delay = [t for t in turns if t.first_ms == first_ms]
        delays = [t.shown for t in with_delay]
        painted = number(median(t.painted for t in with_delay))
        yield at_most(
            f"Page: Enter → first text, less the upstream's own {first_ms} ms, p50",
            median(delays),
            25,
            15,
            " ms",
            f"{number(median(delays))} ms (p99 {number(percentile(delays, 99))}; "
            f"next frame {painted})",
            note,
        )
    for figure, values, target, goal in (
        ("Page: Stop clicked → text stands still", [t.still for t in turns], 50, 17),
        ("Page: Stop clicked → upstream closed", [t.closed for t in turns], 10, 5),
    ):
        yield at_most(
            f"{figure}, p50 / p99",
            median(values),
            target,
            goal,
            " ms",
            f"{p50_p99(values)} ms",
            note,
        )


# --- a long answer --------------------------------------------------------------------------------


def rich_text(size: int) -> str:
    """Markdown of `size` characters: paragraphs, lists, tables, short and long fences."""
    draw = random.Random(7)
    parts: list[str] = []
    length = 0
    for kind in cycle(
        ("paragraph", "list", "paragraph", "table", "code", "long code", "paragraph")
    ):
        if length >= size:
            break
        part = _block(kind, draw)
        parts.append(part)
        length += len(part) + 2
    return "\n\n".join(parts)[:size]


def _block(kind: str, draw: random.Random) -> str:
    def text(count: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=count))

    if kind == "list":
        return "\n".join(f"- {text(12)}" for _ in range(8))
    if kind == "table":
        rows = (f"| {text(2)} | {draw.randint(0, 999)} | {text(3)} |" for _ in range(10))
        return "\n".join(("| name | value | remark |", "|---|---:|---|", *rows))
    if kind.endswith("code"):
        lines = (
            f"    total_{i} = compute(total_{i}, {draw.randint(0, 99)})  # step {i}"
            for i in range(120 if kind == "long code" else 8)
        )
        return "\n".join(("```python", "def run(total_0: int) -> int:", *lines, "```"))
    return text(70)


def page_answer(sizes: Sizes) -> Iterator[Row]:
    """Rows about an answer of TOKENS tokens at RATE a second: the delay of the page at its end."""
    delays: list[float] = []
    gaps: list[list[float]] = []
    with measured_page() as (page, halt, fake):
        fake.texts["rich"] = rich_text(TOKENS * PIECE)
        send(page, halt, "/fake count?n=20&rate=100")  # start-up costs
        for index in range(sizes.page_answers):
            delay, frames = _follow(page, halt, fake, index)
            delays.append(delay)
            gaps.append([b - a for a, b in pairwise(frames)])
    note = (
        f"{TOKENS} tokens at {RATE} a second, {TOKENS * PIECE:,} characters of markdown; median of "
        f"{len(delays)} answers; frames from the first text until {LINGER} s after the end"
    )
    yield at_most(
        "Page: upstream's last token → answer complete on the page",
        median(delays),
        300,
        100,
        " ms",
        note=note,
    )
    p99 = [percentile(answer_gaps, 99) for answer_gaps in gaps]
    yield at_most(
        "Page: gap between two frames while it streams, p99",
        median(p99),
        50,
        34,
        " ms",
        f"{number(median(p99))} ms (median {number(median(gap for answer_gaps in gaps for gap in answer_gaps))}, "
        f"longest {number(max(map(max, gaps)))})",
        note,
    )


# --- a long paragraph -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Paragraph:
    """The times of drawing an answer of one paragraph, in milliseconds."""

    gaps: list[float]  # between two frames, from the first text to the last
    end: float  # the frame in which the finished answer replaces the open one
    halves: tuple[float, float]  # task time of the main thread for each half of the text
    delay: float  # last token of the upstream to the complete answer


def page_paragraph(sizes: Sizes) -> Iterator[Row]:
    """Rows about an answer of one paragraph: whether the cost of a token grows with it."""
    size = sizes.paragraph
    with measured_page() as (page, halt, fake):
        fake.texts["paragraph"] = paragraph_text(size)
        send(page, halt, "/fake count?n=20&rate=100")  # start-up costs
        drawn = _follow_paragraph(page, halt, fake, size // PARAGRAPH_PIECE)
    note = (
        f"one paragraph of {size:,} characters at {PARAGRAPH_PIECE * PARAGRAPH_RATE:,} characters "
        "a second; frames from the first text to the last; the end is the one frame in which the "
        "finished answer is laid out; work is the main thread's task time while the first and the "
        "second half of the text came"
    )
    p99 = percentile(drawn.gaps, 99)
    yield at_most(
        f"Page: gap between two frames in a paragraph of {size:,} characters, p99",
        p99,
        50,
        34,
        " ms",
        f"{number(p99)} ms (median {number(median(drawn.gaps))}, longest "
        f"{number(max(drawn.gaps))}; the end {number(drawn.end)}, "
        f"{number(drawn.delay)} after the last token)",
        note,
    )
    first, second = drawn.halves
    yield at_most(
        "Page: work for a long paragraph, second half over first",
        second / first,
        2,
        1.5,
        "",
        f"{number(second / first)} ({number(first)} and {number(second)} ms)",
        note,
    )


def paragraph_text(size: int) -> str:
    """One paragraph of `size` characters."""
    draw = random.Random(7)
    words = WORDS.replace("`", "").replace("*", "").split()
    return " ".join(draw.choices(words, k=size // 4))[:size].rstrip().ljust(size, ".")


def _follow_paragraph(page: Page, halt: HaltProcess, fake: FakeOpenAI, tokens: int) -> Paragraph:
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def work() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(float(m["value"]) for m in metrics if m["name"] == "TaskDuration")

    prompt = (
        f"/fake text?key=paragraph&piece={PARAGRAPH_PIECE}&rate={PARAGRAPH_RATE} long paragraph"
    )
    send(page, halt, prompt, watch_text=False)
    begun = work()
    record = fake.wait_request(lambda r: _prompt_of(r).endswith("long paragraph"))
    within = 2 * tokens / PARAGRAPH_RATE + 10
    record.wait_tokens(tokens // 2, within)
    half = work()
    record.wait_tokens(tokens, within)
    last_sent = time.monotonic()
    whole = work()
    wait_seen(page, "done", 60_000)
    time.sleep(LINGER)
    times: dict[str, Any] = page.evaluate("bench")
    if page.get_attribute(".answer", "data-state") != "done":
        raise RuntimeError("the long paragraph did not end normally")
    delay = Clock(page).monotonic(times["done"]) - last_sent
    frames = list(pairwise(times["frames"]))
    return Paragraph(
        [b - a for a, b in frames if b <= times["done"]],
        max(b - a for a, b in frames if b > times["done"]),
        (half - begun, whole - half),
        delay * 1000,
    )


def _follow(
    page: Page, halt: HaltProcess, fake: FakeOpenAI, index: int
) -> tuple[float, list[float]]:
    """Follow an answer; return the page's delay at its end in ms, and the times of its frames."""
    last_sent: list[float] = []
    records: list[Record] = []

    def watch() -> None:
        mark = f"answer {index}"
        record = fake.wait_request(lambda r: _prompt_of(r).endswith(mark), WITHIN / 1000)
        records.append(record)
        record.wait_tokens(TOKENS, 60)
        last_sent.append(time.monotonic())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    prompt = f"/fake text?key=rich&piece={PIECE}&rate={RATE} answer {index}"
    send(page, halt, prompt, watch_text=False)
    clock = Clock(page)
    # Wait for the end first: repeated queries would take CPU time from the page.
    watcher.join(60)
    wait_seen(page, "done", 60_000)
    time.sleep(LINGER)
    times: dict[str, Any] = page.evaluate("bench")
    if page.get_attribute(".answer", "data-state") != "done":
        raise RuntimeError("the long answer did not end normally")
    return (clock.monotonic(times["done"]) - last_sent[0]) * 1000, times["frames"]

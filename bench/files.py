"""Files: how long people wait for them, and what others notice while they are taken."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Page

from bench.browser import Clock, measured_page, wait_seen
from bench.load import HALT, PACED, source, steady_reader
from bench.load import system as start_system
from bench.processes import PORT_WITHIN, Child, HaltProcess, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, p50_p99, percentile
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record
from tests.resilience.bystander import Bystander
from tests.support.files import docx, pdf
from tests.support.process_facts import pss
from tests.support.raw_http import Address

STREAMS = 30
CLIENTS = 10  # uploads at once
SENDERS = 4  # of the uploads whose memory is measured
LARGE = 20_000_000  # bytes of these uploads
PAGES = 200
LINES = "\n".join(
    "the quick brown fox jumps over a lazy dog and sleeps until noon" for _ in range(45)
)
ALL_WITHIN = 600.0


def photo(path: Path, megabytes: float) -> Path:
    """Write a JPEG with the noise of a camera, at least this large."""
    side = int((megabytes * 1e6 / 0.95) ** 0.5)  # 0.95 bytes a pixel at this quality
    noise = Image.effect_noise((side, side), 60)
    Image.merge("RGB", (noise, noise.transpose(Image.Transpose.ROTATE_90), noise)).save(
        path, quality=92
    )
    return path


@contextlib.contextmanager
def uploads(
    address: Address, *paths: Path, clients: int = CLIENTS, count: int = 0
) -> Iterator[Child]:
    """Clients that upload these files in turn, in a process of their own; the first was taken."""
    with Child("bench.uploader", *map(str, (*address, clients, count, *paths))) as child:
        child.read_json(PORT_WITHIN + 60)
        yield child


#: Sets, in milliseconds of the page's clock: bench.chosen; bench.thumbnail, the frame in which the
#: picture of the last file is decoded; bench.known, the moment when the server has told of it.
WATCH = """() => {
  const list = document.querySelector("#attached");
  const look = () => {
    const card = list.lastElementChild, picture = card?.querySelector("img");
    if (!card) return;
    if (picture && bench.thumbnail === undefined) {
      bench.thumbnail = null;
      picture.decode().then(() => requestAnimationFrame(() => {
        bench.thumbnail = performance.now();
      }));
    }
    if (!card.querySelector("progress")) bench.known ??= performance.now();
  };
  Object.assign(bench, { chosen: null, thumbnail: undefined, known: null, fault: null });
  document.querySelector("#picker").addEventListener("change", event => {
    bench.chosen = event.timeStamp;
    new MutationObserver(look).observe(list, { childList: true, subtree: true });
  }, { capture: true, once: true });
}"""


class Choice(NamedTuple):
    """The times of a file that was chosen and sent, in seconds."""

    thumbnail: float | None  # chosen to drawn
    known: float  # chosen to the server's word of it
    sent: float  # Enter to the request at the upstream


def files(sizes: Sizes) -> Iterator[Row]:
    """Rows about files: at the page, beside streams and Stops, and in memory."""
    with tempfile.TemporaryDirectory(prefix="halt-bench-") as name:
        folder = Path(name)
        mixed = [photo(folder / "photo.jpg", 10), folder / "pages.pdf", folder / "words.docx"]
        mixed[1].write_bytes(pdf([LINES] * PAGES))
        mixed[2].write_bytes(docx([LINES] * 200))
        yield from _page(sizes, folder)
        yield _relay(sizes, mixed)
        yield _stops(sizes, mixed)
        yield _memory(sizes, folder)


def _page(sizes: Sizes, folder: Path) -> Iterator[Row]:
    images, pages = [], []
    with measured_page() as (page, halt, fake):
        for index in range(sizes.chosen + 1):
            path = photo(folder / f"page-{index}.jpg", 10)
            images.append(_choose(page, halt, fake, path))
            path = folder / f"page-{index}.pdf"
            path.write_bytes(pdf([f"document {index}\n{LINES}"] * PAGES))
            pages.append(_choose(page, halt, fake, path))
    del images[0], pages[0]  # with the start of the reading process
    note = f"headless Chromium, {len(images)} different files, after a first one"
    drawn = [choice.thumbnail for choice in images if choice.thumbnail is not None]
    known = median(choice.known for choice in images)
    yield at_most(
        "Page: an image of 10 MB: chosen → thumbnail drawn, p50",
        median(drawn),
        1,
        0.3,
        " s",
        f"{number_of(drawn)} s (the server has read it after {number(known)} s)",
        note,
    )
    yield at_most(
        "Page: Send with an image of 10 MB → request at the upstream, p50",
        median(choice.sent for choice in images),
        1.5,
        0.7,
        " s",
        f"{number_of([choice.sent for choice in images])} s",
        f"{note}; sent when it was read",
    )
    yield at_most(
        f"Page: a PDF of {PAGES} pages of text: chosen → its tokens are known, p50",
        median(choice.known for choice in pages),
        3,
        1,
        " s",
        f"{number_of([choice.known for choice in pages])} s",
        note,
    )


def _texts_of(record: Record) -> str:
    """The texts of the last message of a request."""
    content = record.body["messages"][-1]["content"] if record.body else ""
    parts = [{"text": content}] if isinstance(content, str) else content
    return " ".join(part.get("text", "") for part in parts)


def number_of(times: list[float]) -> str:
    """The median and the longest."""
    return f"{number(median(times))} (longest {number(max(times))})"


def _choose(page: Page, halt: HaltProcess, fake: FakeOpenAI, path: Path) -> Choice:
    page.goto(halt.url)
    page.evaluate(WATCH)
    page.set_input_files("#picker", path)
    wait_seen(page, "known")
    if page.query_selector("#attached .failed"):
        raise RuntimeError(f"{path.name} was refused: {page.inner_text('#attached')}")
    is_image = path.suffix == ".jpg"
    if is_image:
        wait_seen(page, "thumbnail")
    page.fill("#prompt", path.name)
    page.press("#prompt", "Enter")
    wait_seen(page, "shown")
    record = fake.wait_request(lambda r: path.name in _texts_of(r))
    times = page.evaluate("bench")
    return Choice(
        (times["thumbnail"] - times["chosen"]) / 1000 if is_image else None,
        (times["known"] - times["chosen"]) / 1000,
        record.received_at - Clock(page).monotonic(times["sent"]),
    )


def _relay(sizes: Sizes, paths: list[Path]) -> Row:
    few = replace(sizes, load_streams=STREAMS)
    with source() as (upstream, url), start_system("halt", url, STREAMS) as (address, pid):
        watched = {"server": pid, "source": upstream.pid}
        with steady_reader(HALT, address, watched, PACED, few) as (_, alone):
            pass
        with (
            uploads(address, *paths) as child,
            steady_reader(HALT, address, watched, PACED, few) as (_, facts),
        ):
            done = child.finish(PORT_WITHIN + 60)
    return at_most(
        f"Relay latency at {STREAMS} streams during {CLIENTS} uploads at once, p50 / p99",
        facts["p99"],
        20,
        10,
        " ms",
        f"{number(facts['p50'])} / {number(facts['p99'])} ms (without uploads {number(alone['p50'])} / "
        f"{number(alone['p99'])}); {len(done['times']) / done['seconds']:.1f} uploads/s, "
        f"{number(percentile(done['times'], 50))} s each",
        note=f"{CLIENTS} clients upload without a pause: a JPEG of 10 MB, a PDF of {PAGES} pages, a DOCX; "
        "reading them takes all of the cores that streams leave",
    )


def _stops(sizes: Sizes, paths: list[Path]) -> Row:
    victims = sizes.stops_under_load
    with (
        fake_upstream() as upstream,
        HaltProcess(upstream) as halt,
        Bystander(halt.address, victims) as bystander,
        uploads(halt.address, *paths) as child,
    ):
        bystander.mark()
        for _ in range(victims):
            bystander.stop()
            time.sleep(0.03)
        gap = bystander.longest_gap * 1000
        child.finish(PORT_WITHIN + 60)
    times = [seconds * 1000 for seconds in bystander.stops]
    return at_most(
        f"Stop of another client during {CLIENTS} uploads at once, p50 / p99",
        percentile(times, 99),
        100,
        50,
        " ms",
        f"{p50_p99(times)} ms (longest gap of a stream with 50 tokens/s {number(gap)} ms)",
        note=f"{victims} Stops of running streams, each on a new connection, during the same uploads",
    )


def _memory(sizes: Sizes, folder: Path) -> Row:
    paths = [photo(folder / "large.jpg", 0.97 * LARGE / 1e6), folder / "large.txt"]
    paths[1].write_bytes((LINES.encode() + b"\n") * ((LARGE - 100) // (len(LINES) + 1)))
    with fake_upstream() as upstream, HaltProcess(upstream, HALT_MAX_PERSON_BYTES=10**10) as halt:
        with uploads(halt.address, *paths, clients=1, count=2) as child:
            child.read_json(ALL_WITHIN)
        before = pss([halt.worker])
        with uploads(halt.address, *paths, clients=SENDERS, count=sizes.uploads) as child:
            done = child.read_json(ALL_WITHIN)
        after = pss([halt.worker])
    return at_most(
        f"Memory of a worker after {sizes.uploads} uploads of {LARGE / 1e6:.0f} MB, over before",
        after - before,
        60,
        30,
        " MB",
        f"{after - before:.1f} MB ({before:.0f} MB before; {number(percentile(done['times'], 50))} s an upload)",
        note=f"half of them JPEGs, half texts, {SENDERS} at a time; before: two such uploads",
    )

"""Files: how long people wait for them, and what others notice while they are taken."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from bench.load import HALT, PACED, source, steady_reader
from bench.load import system as start_system
from bench.processes import PORT_WITHIN, Child, HaltProcess, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, at_most, number, p50_p99, percentile
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


def files(sizes: Sizes) -> Iterator[Row]:
    """Rows about files."""
    with tempfile.TemporaryDirectory(prefix="halt-bench-") as name:
        folder = Path(name)
        mixed = [photo(folder / "photo.jpg", 10), folder / "pages.pdf", folder / "words.docx"]
        mixed[1].write_bytes(pdf([LINES] * PAGES))
        mixed[2].write_bytes(docx([LINES] * 200))
        yield _relay(sizes, mixed)
        yield _stops(sizes, mixed)
        yield _memory(sizes, folder)


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

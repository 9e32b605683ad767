"""Texts that take long are rendered in a separate process, in limited time, and once."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from halt import child_process
from halt.clock import now
from halt.rendering import cache, markdown, pool, protocol
from halt.rendering import renderer as renderer_module
from halt.rendering.child import Child
from halt.rendering.highlighting import Colours
from halt.rendering.plain import plain
from halt.rendering.pool import PROCESSES
from halt.rendering.protocol import Reply, Request
from halt.rendering.renderer import SHORT, Renderer
from halt.rendering.streaming.stream import BlockStream
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, StartHalt, new_id
from tests.support.hostile_texts import HOSTILE_TEXTS, text_of
from tests.support.page_requests import STREAM_HEADERS
from tests.support.process_facts import tree
from tests.support.waiting import SERVER_TIMEOUT, wait_until

LONG = 60.0  # seconds that a test waits for work that takes milliseconds

CODE = "Look *here*:\n\n```python\nif x < 1:\n    pass\n```\n"
COLOURED = '<span class="k">if</span>'


@pytest.fixture(autouse=True)
def _long_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise all limits, so that a slow machine exceeds none; `hurried` restores them."""
    monkeypatch.setattr(renderer_module, "TEXT_WAIT", LONG)
    monkeypatch.setattr(renderer_module, "BLOCK_WAIT", LONG)
    monkeypatch.setattr(child_process, "START_MAX", LONG)
    monkeypatch.setattr(protocol, "GRACE", LONG)


@pytest.fixture
def usual_limits(monkeypatch: pytest.MonkeyPatch, _long_limits: None) -> None:
    """Restore the usual limits."""
    monkeypatch.undo()


@pytest.fixture(scope="module")
def shared_renderer() -> Iterator[Renderer]:
    """A renderer for tests that do not change it."""
    new_renderer = Renderer()
    yield new_renderer
    new_renderer.close()


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    """A renderer of this test's own."""
    new_renderer = Renderer()
    yield new_renderer
    new_renderer.close()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests to rendering processes."""
    recorded: list[Request] = []
    send = Child.request

    def record_request(process: Child, request: Request) -> Reply:
        recorded.append(request)
        return send(process, request)

    monkeypatch.setattr(Child, "request", record_request)
    return recorded


def html_of(renderer: Renderer, text: str) -> str:
    """The text rendered, however long it takes."""
    return renderer.with_deadline(LONG).text_html(text)


def ends(pid: int, seconds: float = LONG) -> bool:
    """Wait until a process has ended, also one that is no child of this process."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


# --- the result -----------------------------------------------------------------------------------

ORDINARY = [
    "",
    "Hello *you*.",
    CODE,
    "# A\n\n- one\n- two\n\n  ```sh\n  ls | wc\n  ```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "See [it].\r\n\r\n" + "many words " * 100 + "\r\n\r\n[it]: https://example.org",
    "a\0b\ud800c " * 100,
    "```\nno language\n```",
    "![a](data:image/png;base64," + "AAAA" * 5_000 + ")",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_renderer_gives_the_same_html_as_one_process(shared_renderer: Renderer, text: str) -> None:
    """The HTML of a text, whole and streamed, is as without a second process."""
    colours = Colours()
    assert html_of(shared_renderer, text) == markdown.render(text, colours)
    step = BlockStream().feed(f"{text}\n\n")
    patch = shared_renderer.with_deadline(LONG).patch(step)
    assert patch == step.patch(markdown.render_block(block, colours) for block in step.blocks)


def test_renderer_renders_short_texts_without_a_process(
    renderer: Renderer, requests: list[Request]
) -> None:
    """A short paragraph is rendered without the process; code, formulas, long and deeply nested
    texts with it.
    """
    for text in ("Hello *you*.", "word " * (SHORT // 5), "- a\n- b\n- c\n", "> a\n\n"):
        assert renderer.submit_text(text).done()
        assert all(
            block.html
            for block in renderer.submit_blocks(BlockStream().feed(text).blocks).result(0)
        )
    assert renderer.pids == []
    for text in ("```sh\nls\n```", "word " * SHORT, "> > > > a\nb", "> - > 1. a", "$x$", r"\(x\)"):
        before = len(requests)
        html_of(renderer, text)
        assert len(requests) == before + 1


def test_renderer_sends_a_text_with_all_its_code_as_one_request(
    renderer: Renderer, requests: list[Request]
) -> None:
    """A text with all its code is one request, and so are blocks that are finished at the same
    time.
    """
    html_of(renderer, f"{CODE}\n\nand\n\n{CODE}")
    assert len(requests) == 1
    renderer.with_deadline(LONG).patch(BlockStream().feed("```sh\nls\n```\n```sh\nwc\n```\n"))
    assert len(requests) == 2


@pytest.mark.parametrize("text", [*ORDINARY, "a <b>\nc & d\n\n- e\n", "~~~py x\n<i>\n~~~\nand"])
def test_plain_has_every_line_escaped(text: str) -> None:
    """Plain text has every line escaped, and code in its box with its label."""
    rendered = plain(text)
    assert not re.search(r"<(?!/?(p|ul|ol|li|br|wbr|div|pre|code)\b)", rendered)
    if "```python" in text:
        assert "if x &lt; 1:\n    pass\n</code>" in rendered
        assert '<div class="code-bar">python</div>' in rendered
        assert "<p>Look *here*:</p>" in rendered
    if text.startswith("a <b>"):
        assert rendered.startswith("<p>a &lt;b&gt;<br>\nc &amp; d</p>\n")
    if text.startswith("~~~"):
        assert "&lt;i&gt;\n</code>" in rendered
        assert rendered.endswith("<p>and</p>\n")


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_renderer_of_a_hostile_text_costs_the_worker_nothing(
    name: str, shared_renderer: Renderer
) -> None:
    """A hostile text costs the worker next to no CPU time; its process gives up in time and is not
    replaced.
    """
    text = text_of(HOSTILE_TEXTS[name])
    html_of(shared_renderer, CODE)  # it is ready
    pids = shared_renderer.pids
    start_cpu = time.process_time()
    rendered = shared_renderer.submit_text(text).result(LONG)
    assert time.process_time() - start_cpu < 2
    wait_until(
        lambda: shared_renderer.is_immediate(text), SERVER_TIMEOUT
    )  # the process has given up by itself, and was not killed
    assert shared_renderer.pids[:1] == pids[:1]
    assert rendered.html or not text.strip("`~\n")  # empty code blocks are nothing


def test_renderer_shows_only_the_slow_code_block_plain(shared_renderer: Renderer) -> None:
    """A slow code block alone is plain; the text keeps its Markdown and its other blocks their
    colours.
    """
    hostile = text_of(HOSTILE_TEXTS["bash-backslashes"])
    rendered = html_of(shared_renderer, f"{CODE}\n{hostile}\n{CODE}")
    assert rendered.count(COLOURED) == 2
    assert rendered.count("<em>here</em>") == 2
    assert '<code class="highlight language-bash">echo $' in rendered
    assert shared_renderer.submit_text(f"{CODE}\n{hostile}\n{CODE}").result(LONG).timed_out


def test_renderer_shows_only_the_slow_markdown_block_plain() -> None:
    """A slow Markdown block alone is plain: a text that takes too long is rendered block
    by block.
    """
    program = (  # a tenth of the text's time on a usual machine
        "import sys; sys.path.insert(0, sys.argv[1]); import halt.rendering.process as render_process, halt.rendering.protocol as render_protocol\n"
        "render_protocol.TEXT_LIMIT_A_CHARACTER = 0; render_protocol.RETRY_SHARE = 1; render_process.main()"
    )
    renderer = Renderer((sys.executable, "-c", program, str(ROOT)))
    text = f"# Title\n\n{HOSTILE_TEXTS['quotes-lazy-lines']['before']}" + "b\n" * 20_000
    rendered = html_of(renderer, text)
    renderer.close()
    assert rendered.startswith("<h1>Title</h1>\n<p>&gt; &gt; ")
    assert rendered.count("<br>") == 20_000


def test_renderer_highlights_a_block_once() -> None:
    """A code block that was highlighted while its answer was written is not highlighted again."""
    calls: list[int] = []

    def count(size: int, work: Callable[[], str]) -> str | None:
        calls.append(size)
        return work()

    kept = cache.Cache(1000)
    blocks = [Colours(count, kept).highlight("if x: pass\n", label) for label in ("py", "python")]
    assert blocks[0] == blocks[1]
    assert len(calls) == 1


def test_limit_of_highlighting_does_not_count_for_the_text() -> None:
    """The CPU time of work within limited work does not count for its limit."""
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from halt.rendering.process import Timer\n"
        "def work(seconds):\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
        "    return 'done'\n"
        "timer = Timer()\n"
        "def outer(inner_seconds):\n"
        "    return [timer.run_limited(0.3, lambda: work(inner_seconds)), work(0.01)]\n"
        "print(timer.run_limited(0.1, lambda: outer(0.2)), timer.run_limited(0.1, lambda: outer(9)),"
        " timer.run_limited(0.1, lambda: work(9)))\n"
    )
    command = [sys.executable, "-c", program, str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "['done', 'done'] [None, 'done'] None"


def test_many_small_blocks_are_one_request(renderer: Renderer, requests: list[Request]) -> None:
    """A step with many small blocks does not hold the calling thread."""
    blocks = BlockStream().feed("- a\n" * 200).blocks
    rendered = renderer.submit_blocks(blocks).result(LONG)
    assert [block.html for block in rendered] == ["<ul>\n<li>a</li>\n</ul>\n"] * len(blocks)
    assert len(requests) == 1


def test_renderer_does_not_retry_a_kind_of_block_that_timed_out(
    renderer: Renderer, requests: list[Request]
) -> None:
    """A kind of block that timed out is not tried again while its answer streams."""
    hostile = BlockStream().feed(text_of(HOSTILE_TEXTS["bash-backslashes"])).blocks
    (rendered,) = renderer.submit_blocks(hostile).result(LONG)
    assert rendered.timed_out
    before = len(requests)
    (rendered,) = renderer.submit_blocks(
        BlockStream().feed("```sh\nls\n```\n").blocks, {True}
    ).result(0)
    assert "<span class=" not in rendered.html.partition("<pre")[2]
    assert len(requests) == before


def test_renderer_caches_a_text_that_timed_out(renderer: Renderer, requests: list[Request]) -> None:
    """A text that timed out is cached, so that the next reader waits for nothing."""
    text = text_of(HOSTILE_TEXTS["bash-backslashes"])
    assert renderer.submit_text(text).result(LONG).timed_out
    assert renderer.submit_text(text).result(0).timed_out
    assert len(requests) == 1


# --- once for all readers -------------------------------------------------------------------------


def test_renderer_renders_once_for_concurrent_readers(
    renderer: Renderer, requests: list[Request]
) -> None:
    """Concurrent readers wait for one rendering, and later ones find it."""
    text = "A paragraph with *emphasis* and `code`.\n\n" * 2_500
    start, rendered = threading.Barrier(3), list[str]()

    def read() -> None:
        start.wait()
        rendered.append(html_of(renderer, text))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert rendered == [markdown.render(text)] * 3
    assert html_of(renderer, text) == rendered[0]
    assert len(requests) == 1


def test_renderer_cache_is_limited_and_keeps_recent_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is limited and keeps the texts that were used last."""
    monkeypatch.setattr(renderer_module, "KEPT_MAX", 30_000)
    renderer = Renderer()
    texts = [f"{n} " + "word " * 1_000 for n in range(10)]
    for text in texts:
        html_of(renderer, text)
        html_of(renderer, texts[0])
    is_cached = [renderer.is_immediate(text) for text in texts]
    assert is_cached[0]
    assert is_cached[-1]
    assert 2 <= sum(is_cached) < 8
    renderer.close()


def test_renderer_starts_at_most_its_number_of_processes(renderer: Renderer) -> None:
    """At most PROCESSES processes are started, however many threads come first."""
    start, other_children = threading.Barrier(12), children()
    rendered: list[str] = []

    def read(number: int) -> None:
        start.wait()
        rendered.append(html_of(renderer, f"```python\nif {number}:\n```"))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    max_count = 0
    for thread in threads:
        thread.join(LONG)
        max_count = max(max_count, len(children() - other_children))
    assert max_count <= PROCESSES
    assert all(COLOURED in text for text in rendered)


def children() -> set[int]:
    """The rendering processes that this process has started."""
    pids = set()
    for pid in tree(os.getpid())[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"halt.rendering.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.add(pid)
    return pids


def test_renderer_does_short_work_beside_long_work(renderer: Renderer) -> None:
    """While long texts are rendered, blocks are coloured by the other process."""
    html_of(renderer, CODE)
    lazy = HOSTILE_TEXTS["quotes-lazy-lines"]["before"] + "b\n" * 20_000
    long = [renderer.submit_text(f"{number}\n\n{lazy}") for number in range(20)]
    done: list[int] = []
    for future in long:
        future.add_done_callback(lambda _: done.append(1))
    assert COLOURED in renderer.with_deadline(LONG).patch(BlockStream().feed(CODE)).finished
    assert len(done) < len(long) // 2


# --- processes that fail --------------------------------------------------------------------------


def test_renderer_replaces_a_killed_process(renderer: Renderer) -> None:
    """A killed process is replaced: the next text has its colours."""
    html_of(renderer, CODE)
    (pid,) = renderer.pids
    os.kill(pid, signal.SIGKILL)
    assert COLOURED in html_of(renderer, f"{CODE}\nAgain.")
    (new_pid,) = renderer.pids
    assert new_pid != pid
    assert ends(pid)


@pytest.mark.usefixtures("usual_limits")
def test_renderer_replaces_a_hanging_process(renderer: Renderer) -> None:
    """A hanging process is replaced: its text is plain in time, and the next has its colours."""
    html_of(renderer, CODE)
    (pid,) = renderer.pids
    os.kill(pid, signal.SIGSTOP)
    text = f"{CODE}\nIt hangs."
    rendered = renderer.submit_text(text).result(LONG)
    assert rendered.html == plain(text)
    assert not rendered.timed_out
    assert ends(pid)
    wait_until(lambda: COLOURED in html_of(renderer, f"{CODE}\nOne more."), SERVER_TIMEOUT)
    assert COLOURED in html_of(renderer, text)  # it was no fault of the text


def test_renderer_reader_waits_no_longer_than_its_time(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader without time left gets plain text and starts no work."""
    html_of(renderer, CODE)
    (pid,) = renderer.pids
    os.kill(pid, signal.SIGSTOP)
    submitted, submit = list[Request](), pool.Pool.submit

    def record_request(own_pool: pool.Pool, key: bytes, request: Request, *rest: Any) -> Any:
        submitted.append(request)
        return submit(own_pool, key, request, *rest)

    monkeypatch.setattr(pool.Pool, "submit", record_request)
    try:
        page = renderer.with_deadline(0.5)
        assert page.text_html(f"{CODE}\na") == plain(f"{CODE}\na")
        assert page.text_html(f"{CODE}\nb") == plain(f"{CODE}\nb")
        assert page.text_html(CODE) == html_of(renderer, CODE)  # it is there
        assert len(submitted) == 1
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("stopped", [False, True])
def test_rendering_process_ends_with_its_worker(stopped: bool) -> None:
    """The process ends with its worker, also if the worker is killed or the process hangs."""
    program = (
        "import time; from halt.rendering.renderer import Renderer; r = Renderer(); r.warm_up()\n"
        "while not r.pids: time.sleep(0.01)\n"
        "print(r.pids[0], flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout
        pid = int(worker.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        worker.kill()
        assert ends(pid)


def test_rendering_process_inherits_no_descriptors(renderer: Renderer, tmp_path: Path) -> None:
    """The process inherits no listening socket and no open file of the worker."""
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        html_of(renderer, CODE)
        (pid,) = renderer.pids
        descriptors = {link.name: os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    assert set(descriptors) == {"0", "1", "2"}
    assert descriptors["0"].startswith("socket:")
    assert descriptors["1"] == "/dev/null"


def test_renderer_without_a_process_gives_plain_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process texts are plain, with one line in the log; a process that can start later
    is used.
    """
    monkeypatch.setattr(pool, "RETRY_FIRST", 3600.0)
    skipped = [0.0]
    for module in (pool, child_process, renderer_module):
        monkeypatch.setattr(module, "now", lambda: now() + skipped[0])
    python = tmp_path / "python"
    renderer = Renderer((str(python), *pool.COMMAND[1:]))
    with caplog.at_level(logging.ERROR):
        for number in range(20):
            text = f"{CODE}\n{number}"
            assert html_of(renderer, text) == plain(text)
            assert not renderer.is_immediate(text)
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert COLOURED not in html_of(renderer, CODE)
    skipped[0] = 3600.0
    assert COLOURED in html_of(renderer, CODE)
    renderer.close()


@pytest.mark.parametrize("program", ["exit 3", "cat"])
def test_renderer_notices_a_program_that_never_gets_ready(
    program: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that ends at once, or never reports that it is ready, is noticed."""
    monkeypatch.setattr(child_process, "START_MAX", 0.2)
    other_children = children()
    renderer = Renderer(("sh", "-c", program))
    assert html_of(renderer, CODE) == plain(CODE)
    assert "no rendering process can be started" in caplog.text
    renderer.close()
    wait_until(lambda: children() <= other_children, SERVER_TIMEOUT)


def test_exception_in_the_rendering_process_gives_plain_text(
    caplog: pytest.LogCaptureFixture, requests: list[Request]
) -> None:
    """An exception in the process gives plain text to all readers; the log names it without the
    text.
    """
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import halt.rendering.process as process\n"
        "def render(text, colours=None):\n    if colours: raise KeyError(text)\n"
        "process.render = render; process.main()"
    )
    renderer = Renderer((sys.executable, "-c", program, str(ROOT)))
    assert html_of(renderer, CODE) == plain(CODE)
    assert html_of(renderer, CODE) == plain(CODE)
    assert len(requests) == 1
    assert "KeyError" in caplog.text
    assert "Look" not in caplog.text
    assert len(renderer.pids) == 1
    renderer.close()


def test_rendering_process_without_work_ends() -> None:
    """A process without work ends, and the next text starts one again."""

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "halt-renderer"}

    other_threads = threads()
    renderer = Renderer(idle=0.05)
    html_of(renderer, CODE)
    wait_until(lambda: not renderer.pids and not threads() - other_threads, SERVER_TIMEOUT)
    assert COLOURED in html_of(renderer, f"{CODE}\nAgain.")
    renderer.close()


def test_close_leaves_no_process_and_gives_plain_texts(renderer: Renderer) -> None:
    """After `close` no process is left, and waiting and later texts are plain."""
    other_children = children()
    html_of(renderer, CODE)
    (pid,) = renderer.pids
    os.kill(pid, signal.SIGSTOP)
    futures = [renderer.submit_text(f"{CODE}\n{number}") for number in range(3)]
    renderer.close()
    assert [future.result(LONG).html for future in futures] == [
        plain(f"{CODE}\n{number}") for number in range(3)
    ]
    assert ends(pid)
    wait_until(lambda: children() <= other_children, SERVER_TIMEOUT)
    assert html_of(renderer, f"{CODE}\nlater") == plain(f"{CODE}\nlater")


# --- in a server ----------------------------------------------------------------------------------


def test_stop_is_answered_during_hostile_answers(fake: FakeOpenAI, start_halt: StartHalt) -> None:
    """A Stop is answered while hostile answers are rendered, whose pages end in plain text."""
    server = start_halt(fake, HALT_RATE_SESSION="1000/minute", HALT_RATE_ADDRESS="1000/minute")
    pages: list[str] = []

    def read(name: str) -> None:
        prompt = f"{text_of(HOSTILE_TEXTS[name])}\n\nend"
        body = urlencode({"prompt": prompt, "model": "echo", "id": new_id()}).encode()
        page = server.client().request("POST", f"/c/{new_id()}/messages", body, STREAM_HEADERS)
        pages.append(page.body.decode())

    names = ["bash-backslashes", "c-blanks", "docker-newlines"]
    readers = [threading.Thread(target=read, args=(name,)) for name in names]
    for reader in readers:
        reader.start()
    stopped_meanwhile = 0
    while any(reader.is_alive() for reader in readers):
        running = server.client().chat("count?n=100000&rate=50")
        running.until_text("1 ")
        server.client().stop(running.id)
        stopped_meanwhile += any(reader.is_alive() for reader in readers)
        running.close()
    assert stopped_meanwhile, "no Stop was answered before the hostile answers had ended"
    assert len(pages) == len(names)
    for page in pages:
        assert 'data-state="done"' in page
        assert "<p>end</p>" in page
    server.close()
    assert server.gone

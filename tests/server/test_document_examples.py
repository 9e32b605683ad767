"""The Python and curl examples in the documents run as they are, against a real Halt.

Only addresses change: the Halt and the model's server of the documents become those of the test.
A new example runs without an entry here; EXPECTED says what an example prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.documents import ROOT, Example, examples
from tests.support.halt_server import HaltServer, halt_environment, settings

#: Examples that cannot run, with the reason.
NOT_RUN = {
    ("msgspec-race.md", "Reproduction"): "it crashes its process, on purpose",
}

#: Parts of what the examples under a heading print, in their order.
EXPECTED = {
    ("README.md", "Use it from a program"): [
        "Count to ten.",
        "Count to ten.",
        "Why is the sky blue?",
    ],
    ("api.md", "Streams"): ["data: [DONE]", '"status":"finished"', "data: [DONE]"],
    ("api.md", "Text"): ["Count to ten."],
    ("api.md", "OpenAI clients"): ["Count to ten."],
    ("api.md", "Images and files"): ["What is this?"],
    ("protocol.md", "WebSocket"): ["'type': 'done'"],
    ("using.md", "Export and import"): ["1 chat was imported."],
    ("tools.md", "Your own tools"): ["21.5 °C ['The first note']"],
    ("library.md", "Python library"): ["Why is the sky blue?stop"],
    ("library.md", "Stop"): ["stopped closed\nTrue 0 "],
    ("library.md", "Callbacks"): ["\nstop\n"],
    ("library.md", "Tools"): ["20 degrees"],
    ("library.md", "Images and files"): ["1 image: image/png 1x1."],
    ("library.md", "asyncio"): ["Why is the sky blue?And the sea?\n"],
    ("library.md", "Several models as one stream"): ["large Done("],
}

#: Prompts of the documents that need another answer than the fake server's echo.
PROMPTS = {
    "Write a long story.": "/fake stall?n=1",
    "Describe Rome.": "/fake stall",
    "What is in this picture?": "/fake vision",
    "How warm is it in Paris?": "/fake tool_call?name=warmth&args=%7B%22city%22:%22Paris%22%7D",
}

#: Commands that run before an example.
SET_UP = {
    ("api.md", "Images and files"): 'open("photo.jpg", "wb").close()\n',
    ("using.md", "Export and import"): (
        "curl -s -o answer.html -H 'HX-Request: true' -d prompt=Hello "
        "http://127.0.0.1:8000/c/conversation-1/messages\n"
    ),
    ("library.md", "Images and files"): (
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "Image.new('L', (1, 1)).save('photo.png')\n"
        "Path('notes.txt').write_text('Taken on Monday.\\n\\n')\n"
    ),
}

#: Lines that are added to an example that only defines something.
LAST_LINES = {
    ("tools.md", "Your own tools"): (
        'print(weather("Oslo"), search("first", threading.Event()))\n'
    ),
}

RUNNABLE = [example for example in examples() if example.language in {"python", "sh"}]


@pytest.fixture(scope="module")
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with the default settings, for all examples."""
    server = HaltServer(settings(shared_fake, HALT_ALLOW_ANONYMOUS=""))
    yield server
    server.close()


def adapted_code(example: Example, halt: HaltServer, fake: FakeOpenAI) -> str:
    """The example's code with the addresses of this test and with stream IDs of its document."""
    key = (example.document, example.heading)
    code = SET_UP.get(key, "") + example.code + LAST_LINES.get(key, "")
    code = code.replace("my-stream", f"{Path(example.document).stem}-stream")
    for address, replacement in (
        ("http://127.0.0.1:8000", halt.url),
        ("ws://127.0.0.1:8000", halt.url.replace("http", "ws")),
        ("http://127.0.0.1:11434/v1", fake.base_url),
        *PROMPTS.items(),
    ):
        code = code.replace(address, replacement)
    return code


def output_of(example: Example, code: str, folder: Path, data: Path) -> str:
    """Run an example in a folder; return its output. It must succeed without a warning."""
    file = folder / "example"
    file.write_text(code)
    command = [sys.executable, "-W", "error"] if example.language == "python" else ["sh", "-e"]
    process = subprocess.run(
        [*command, str(file)],
        cwd=folder,
        env=halt_environment({"PYTHONPATH": str(ROOT), "HALT_DATA": str(data)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    if example.language == "python":
        assert process.stderr == ""
    return process.stdout


@pytest.mark.parametrize("document", sorted({example.document for example in RUNNABLE}))
def test_examples_of_a_document_run_in_order(
    document: str, server: HaltServer, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """The examples of a document run in order in one folder."""
    counts: dict[tuple[str, str], int] = {}
    for example in RUNNABLE:
        key = (example.document, example.heading)
        if example.document != document or key in NOT_RUN:
            continue
        code = adapted_code(example, server, shared_fake)
        printed = output_of(example, code, tmp_path, tmp_path / "data")
        expected = EXPECTED.get(key, [])
        number = counts[key] = counts.get(key, 0) + 1
        if number <= len(expected):
            assert expected[number - 1] in printed, key
    assert all(counts.get(key, 0) >= len(EXPECTED[key]) for key in EXPECTED if key[0] == document)


def test_skipped_examples_exist() -> None:
    """Each example with a reason not to run is still in its document."""
    headings_of_examples = {(example.document, example.heading) for example in RUNNABLE}
    assert set(NOT_RUN) | set(EXPECTED) | set(SET_UP) | set(LAST_LINES) <= headings_of_examples
    assert all(re.search(r"\w", reason) for reason in NOT_RUN.values())

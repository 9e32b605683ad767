"""Files in the terminal: `/attach`, `/detach` and `--attach`, in real terminals and pipes."""

from __future__ import annotations

import base64
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from halt.cli import attachments
from halt.cli.attachments import AttachedFiles, ReadingStopped
from halt.cli.paths import completions, split_paths
from halt.config.settings import Config
from halt.files import readers
from halt.testing.fake_openai import FakeOpenAI
from tests.support.chat_command import Environment, Open, run_piped
from tests.support.files import image, pdf, with_reading
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.process_facts import tree
from tests.support.pseudo_terminal import Terminal
from tests.support.waiting import SERVER_TIMEOUT, BackgroundCall, wait_until

pytestmark = pytest.mark.usefixtures("ctrl_c")


def parts(fake: FakeOpenAI, prompt: str, nth: int = 0) -> Any:
    """The content of the last message of the request with this prompt."""

    def has_prompt(record: Any) -> bool:
        content = (record.body or {}).get("messages", [{}])[-1].get("content", "")
        texts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        return any(prompt in text for text in texts)

    return fake.wait_request(has_prompt, SERVER_TIMEOUT, nth).body["messages"][-1]["content"]


def reading_processes(terminal: Terminal) -> list[int]:
    """The processes that the chat has started."""
    return tree(terminal.process.pid)[1:]


@pytest.fixture
def chat(chat: Open) -> Open:
    """A chat whose terminal wraps no path: where it would, depends on the folder of the tests."""
    return partial(chat, columns=600)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with files; its names need quotes."""
    folder = tmp_path / "some files"
    folder.mkdir()
    (folder / "the photo.png").write_bytes(image(30, 20))
    (folder / "report.pdf").write_bytes(pdf(["First words", "Second words"]))
    (folder / "notes.md").write_text("# Notes\n\nRemember the milk.\n")
    (folder / "data.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    return folder


def test_chat_sends_attached_files_with_the_next_message(
    chat: Open, shared_fake: FakeOpenAI, files: Path
) -> None:
    """Images are parts, texts and PDFs stand in the message; they stay in the conversation."""
    prompt, second = new_id(), new_id()
    terminal = chat("--model", "echo", "--no-history")
    terminal.enter(f"/attach '{files}/the photo.png' ~/some\\ files/report.pdf")
    terminal.wait(r"1  the photo\.png · PNG · 30 x 20 · about 1 token\b")
    terminal.wait(r"2  report\.pdf · PDF · 2 pages · about \d+ tokens")
    terminal.enter(f"/attach {files}/notes.md")
    terminal.wait(r"3  notes\.md · MD · \d+ characters · about \d+ tokens")
    terminal.enter(prompt)
    terminal.wait(rf"(?m)^{prompt}")
    picture, text = parts(shared_fake, prompt)
    data = picture["image_url"]["url"].partition(";base64,")[2]
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert text["text"].startswith("# report.pdf\n\n[Page 1]\nFirst words\n\n[Page 2]")
    assert text["text"].endswith(f"Remember the milk.\n\n\n{prompt}")
    terminal.enter("/attach")
    terminal.wait(r"No file is attached\.")
    terminal.enter(second)
    messages = request_record(shared_fake, second).body["messages"]
    assert messages[0]["content"] == [picture, text]
    assert terminal.press_ctrl_d() == 0


def test_chat_says_why_a_file_is_not_attached(chat: Open, files: Path) -> None:
    """Each error is a sentence, the other files are attached, and the chat goes on."""
    terminal = chat("--model", "echo", "--no-history", HALT_MAX_FILES="2")
    terminal.enter(f"/attach {files}/nothing.txt")
    terminal.wait(r"nothing\.txt cannot be read: No such file or directory\.")
    terminal.enter(f"/attach '{files}' '{files}/data.zip' '{files}/notes.md'")
    terminal.wait(r"some files is a folder\.\s+Give the name of a file\.")
    terminal.wait(r"data\.zip: The file is damaged\.")
    terminal.wait(r"1  notes\.md")
    terminal.enter("/attach it's")
    terminal.wait(r"it's cannot be read: No such file or directory\.")
    terminal.enter(f"/attach {files}/report.pdf")
    terminal.enter(f"/attach {files}/the photo.png")
    terminal.wait(r"A message has at most 2 files\.")
    terminal.enter("/detach 3")
    terminal.wait(r"No attached file has the number 3\.")
    terminal.enter("/detach 1")
    terminal.wait(r"number 3\.(.|\n)*1  report\.pdf")
    terminal.enter("/detach")
    terminal.wait(r"No file is attached\.")
    assert terminal.press_ctrl_d() == 0


def test_chat_completes_paths(chat: Open, files: Path, tmp_path: Path) -> None:
    """Tab completes a name with a space so that it can be sent."""
    terminal = chat("--model", "echo", "--no-history")
    terminal.wait(r"(?m)^> *\Z")
    terminal.type("/att\t")
    terminal.wait(r"> /attach\Z")
    terminal.type(" ~/some\t")
    terminal.wait(r"> /attach ~/some\\ files/\Z")
    terminal.type("the\t")
    terminal.wait(r"the\\ photo\.png\Z")
    terminal.type("\r")
    terminal.wait(r"1  the photo\.png")


def test_chat_ctrl_c_before_any_text_restores_the_files(
    chat: Open, shared_fake: FakeOpenAI, files: Path
) -> None:
    """The prompt is in the input line again, and its files are attached again."""
    prompt = new_id()
    terminal = chat(
        "--model", "silent_first_token", "--no-history", "--attach", f"{files}/notes.md"
    )
    terminal.wait(r"1  notes\.md")
    terminal.enter(prompt)
    parts(shared_fake, prompt)
    terminal.type("\x03")
    terminal.wait(rf"Stopped\.\n> {prompt}\Z")
    terminal.type("\x15/model echo\r")
    terminal.enter("/attach")
    terminal.wait(r"echo\.(.|\n)*1  notes\.md")
    terminal.enter(prompt)
    assert "Remember the milk" in parts(shared_fake, prompt, 1)


def test_chat_with_a_model_that_refuses_images_loses_nothing(
    chat: Open, shared_fake: FakeOpenAI, files: Path
) -> None:
    """Another model gets the image with /retry; the refusing one gets the name from then on."""
    prompt, later = new_id(), new_id()
    terminal = chat("--model", "no_images", "--no-history", "--attach", f"{files}/the photo.png")
    terminal.enter(prompt)
    terminal.wait(r"refused the image(.|\n)*/model NAME chooses another model, /retry sends it")
    terminal.enter("/model echo")
    terminal.enter("/retry")
    terminal.wait(rf"(?m)^{prompt}")
    assert [part["type"] for part in parts(shared_fake, prompt, 1)] == ["image_url", "text"]
    terminal.enter("/model no_images")
    terminal.enter(later)
    first = request_record(shared_fake, later).body["messages"][0]["content"]
    assert first == f"[image: the photo.png]\n\n{prompt}"


def test_reading_processes_end_with_the_chat(chat: Open, files: Path) -> None:
    """They are gone after its end, also after it was killed."""
    for is_killed in (False, True):
        terminal = chat("--model", "echo", "--no-history", "--attach", f"{files}/notes.md")
        terminal.wait(r"(?m)^> *\Z")
        pids = reading_processes(terminal)
        assert pids
        if is_killed:
            terminal.process.kill()
            terminal.wait_exit()
        else:
            terminal.press_ctrl_d()
        wait_until(partial(have_ended, pids), SERVER_TIMEOUT)


def have_ended(pids: list[int]) -> bool:
    """Whether none of the processes runs."""
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def test_chat_with_a_running_halt_sends_files(
    chat: Open, halt: HaltServer, shared_fake: FakeOpenAI, files: Path
) -> None:
    """The terminal reads them, and sends them in the message."""
    prompt = new_id()
    paths = ("--attach", f"{files}/the photo.png", "--attach", f"{files}/report.pdf")
    terminal = chat("--url", halt.url, "--model", "echo", "--no-history", *paths)
    terminal.enter(prompt)
    terminal.wait(rf"(?m)^{prompt}")
    assert [part["type"] for part in parts(shared_fake, prompt)] == ["image_url", "text"]


def test_chat_with_a_running_halt_sends_no_more_than_it_takes(
    chat: Open, halt: HaltServer, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """Of more images than fit into a request the newest go first, and the chat goes on."""
    first, second = new_id(), new_id()
    for name in ("old", "new"):
        Image.effect_noise((500, 500), 100).save(tmp_path / f"{name}.png")
        assert 180_000 < (tmp_path / f"{name}.png").stat().st_size < 340_000
    options = ("--url", halt.url, "--model", "vision", "--attach", f"{tmp_path}/old.png")
    terminal = chat(*options, HALT_MAX_BODY_BYTES="500000")
    terminal.enter(first)
    terminal.wait(rf"1 image: .*\s+{first}")
    terminal.enter(f"/attach {tmp_path}/new.png")
    terminal.enter(second)
    terminal.wait(rf"1 image: .*\s+{second}")
    record = request_record(shared_fake, second)
    assert record.body["messages"][0]["content"] == f"[image: old.png]\n\n{first}"


# --- in a pipe ------------------------------------------------------------------------------------


def test_pipe_sends_files(env: Environment, shared_fake: FakeOpenAI, files: Path) -> None:
    """A file may be all of the question."""
    prompt = new_id()
    process = run_piped(env, prompt, "--model", "echo", "--attach", f"{files}/notes.md")
    assert (process.returncode, process.stderr) == (0, "")
    assert "Remember the milk" in parts(shared_fake, prompt)
    (files / "own.txt").write_text(f"text {prompt}")
    process = run_piped(env, "", "--model", "echo", "--attach", f"{files}/own.txt")
    assert (process.returncode, process.stderr) == (0, "")
    assert parts(shared_fake, f"text {prompt}") == f"# own.txt\n\ntext {prompt}"


def test_pipe_with_a_wrong_file_starts_nothing(env: Environment, files: Path) -> None:
    """The error is a sentence, and the exit status is 1."""
    process = run_piped(env, "Hello", "--attach", f"{files}/data.zip")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "Error: data.zip: The file is damaged.\n"
    process = run_piped(
        {**env, "HALT_MAX_FILE_BYTES": "1024"}, "Hello", "--attach", "/proc/self/exe"
    )
    assert process.returncode == 1
    assert "exe: The file is larger than" in process.stderr


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, ReadingStopped), (signal.SIGTERM, SystemExit)]
)
def test_signal_ends_the_reading_of_a_file(
    number: int,
    expected: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C ends the process that hangs with a file; the next file has another one."""
    held = readers.Readers(with_reading("import threading; threading.Event().wait()"))
    made = iter([held, readers.Readers()])
    monkeypatch.setattr(attachments, "Readers", lambda: next(made))
    monkeypatch.setattr(attachments, "NOTE_AFTER", 0.0)
    path = tmp_path / "a.txt"
    path.write_text("text")
    files = AttachedFiles(Config())
    notes: list[str] = []
    handler = signal.getsignal(number)

    def press() -> None:
        wait_until(lambda: held.pids and notes, SERVER_TIMEOUT)
        os.kill(os.getpid(), number)

    presser = BackgroundCall(press)
    with pytest.raises(expected):
        files.added(str(path), [], notes.append)
    assert presser.end() is None
    assert notes == [f"Reading {path}. Ctrl-C stops it."]
    wait_until(lambda: not held.pids, SERVER_TIMEOUT)
    assert signal.getsignal(number) == handler
    assert files.added(str(path), [], notes.append)[0].name == "a.txt"
    files.close()


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a b", ["a", "b"]),
        ("'a b' c", ["a b", "c"]),
        (r"a\ b", ["a b"]),
        ('"it\'s" x', ["it's", "x"]),
        ("it's", ["it's"]),
        ("with space.txt", ["with space.txt"]),
        ("", []),
        ("\0", ["\0"]),
    ],
)
def test_paths_of_a_line(
    text: str, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes are as in a shell; an existing name needs none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "with space.txt").touch()
    assert split_paths(text) == paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", [r"it\'s", "sub/"]),
        (".", [".hidden"]),
        ("s", ["sub/"]),
        ("'it", [r"it\'s"]),
        ("sub/", [r"sub/a\ b", "sub/ä"]),
        ("one sub/a", [r"sub/a\ b"]),
        (r"sub/a\ ", [r"sub/a\ b"]),
        ('one "sub/a b', [r"sub/a\ b"]),
        ("~/s", ["~/sub/"]),
        ("nothing/", []),
        ("a\\" * 10_000 + " x", []),
    ],
)
def test_completions_of_a_path(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word is completed, with quotes where the name needs them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("sub/a b", "sub/ä", "it's", ".hidden"):
        (tmp_path / name).touch()
    found = completions(text)
    assert [word for word, _, _ in found] == words
    for word, _, length in found:
        line = text[: len(text) - length] + word
        (path,) = split_paths(line)[-1:]
        assert os.path.exists(os.path.expanduser(path)), re.escape(line)

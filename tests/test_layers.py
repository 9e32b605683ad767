"""The house keeps its plan: layers without circles, one reader of the environment, no singletons.

And what the browser loads is what was vendored, from here and from nowhere else.
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

from halt.generation import Generations
from halt.line import Line
from halt.provider import Provider
from halt.providers import Providers
from halt.run import Run
from halt.slots import Slots
from halt.stops import StopRegistry, StopSwitch
from halt.store import SqlStore
from halt.transport import Transport

ROOT = Path(__file__).parent.parent
VENDOR = ROOT / "static" / "vendor"

#: Each module's layer. A module imports from its own layer or from below, never in a circle.
LAYERS = {
    "embedded": 0,
    "errors": 0,
    "json_size": 0,
    "loose_json": 0,
    "error_body": 0,
    "error_code": 0,
    "model_list": 0,
    "metrics": 0,
    "events": 0,
    "request_ids": 0,
    "open_text": 0,
    "pictures": 0,
    "attachments": 1,
    "rendering": 0,
    "colours": 0,
    "render_protocol": 0,
    "render_process": 0,
    "renderer": 0,
    "config": 1,
    "counts": 1,
    "data_folder": 1,
    "provider_settings": 1,
    "slots": 1,
    "stops": 1,
    "finish_reasons": 0,
    "folds": 1,
    "notes": 1,
    "lengths": 1,
    "loop": 1,
    "last_model": 1,
    "line": 2,
    "names": 2,
    "http1": 2,
    "client_socket": 0,
    "open_files": 0,
    "systemd": 0,
    "request_buffer": 2,
    "thread_pools": 2,
    "transport": 2,
    "exchange": 2,
    "server_load": 2,
    "chat": 2,
    "starts": 2,
    "continuing": 2,
    "unheard": 2,
    "retries": 2,
    "usage": 0,
    "titles": 3,
    "faults": 2,
    "decoder": 2,
    "gathering": 2,
    "think_tags": 2,
    "extras": 2,
    "returned": 2,
    "tool_calls": 2,
    "tools": 2,
    "builtin_tools": 3,
    "provider": 2,
    "question": 2,
    "bodies": 2,
    "upstream": 2,
    "anthropic_upstream": 2,
    "providers": 2,
    "model_servers": 0,
    "discovery": 2,
    "found_providers": 2,
    "choice": 3,
    "journal": 2,
    "catalog": 3,
    "json_items": 0,
    "portable": 1,
    "tables": 1,
    "database": 2,
    "admission": 1,
    "postgres_timeout": 0,
    "lookups": 2,
    "server_check": 2,
    "snippets": 0,
    "headings": 0,
    "tree": 2,
    "records": 2,
    "conversations": 2,
    "settings": 3,
    "store": 2,
    "recording": 2,
    "recorder": 3,
    "archive": 3,
    "peers": 2,
    "mirror": 3,
    "relay": 2,
    "serial": 2,
    "departure": 2,
    "sink": 3,
    "run": 3,
    "generation": 4,
    "workers": 4,
    "readers": 4,
    "feed": 4,
    "aio": 4,
    "handle": 4,
    "merge": 4,
    "library": 4,
    "__init__": 4,  # loads the library when it is asked for, and nothing before
    "answers": 4,
    "ended_html": 4,
    "client_address": 5,
    "token_failures": 5,
    "cors": 5,
    "web": 5,
    "proxies": 5,
    "proxy_checks": 5,
    "rates": 5,
    "client": 5,
    "screen": 5,
    "rich_screen": 5,
    "terminal": 5,
    "doctor": 5,
    "public": 5,
    "pages": 6,
    "shelf": 6,
    "streams": 6,
    "sockets": 6,
    "api": 6,
    "plain": 6,
    "openai_api": 6,
    "openapi": 6,
    "cli": 6,
    "assets": 0,
    "template_cache": 5,
    "page_opener": 0,
    "app": 7,
    "wsgi": 7,
    "gunicorn_conf": 8,
    "serve": 7,
    "commands": 8,
    "__main__": 9,
}

#: Taken by gunicorn by its name; nothing of Halt imports it.
APART = {"worker"}

#: Run in processes of their own, without the rest.
ALONE = ["embedded"]

#: What a browser is given that others wrote. An update is a decision, and changes this table.
VENDORED = {
    "htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "hx-sse-4.0.1.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
}

FILES = {path.stem: path for path in sorted((ROOT / "halt").glob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
TEMPLATES = sorted((ROOT / "templates").glob("*.html"))


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that are imported anywhere in this tree."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what a module needs"
            names.add(node.module or "")
            if node.module == "halt":
                names |= {f"halt.{alias.name}" for alias in node.names}
    return names


def ours(name: str) -> set[str]:
    """The modules of the package that this one imports."""
    found = {each.removeprefix("halt.") for each in imported(TREES[name]) if "halt." in each}
    return found & FILES.keys()


def test_every_module_has_its_place() -> None:
    """A new module is put into a layer here before it is used anywhere."""
    assert FILES.keys() == LAYERS.keys() | APART


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_down(name: str) -> None:
    """A module never imports one of a layer above its own, nor one that stands apart."""
    assert {m for m in ours(name) if LAYERS.get(m, 99) > LAYERS[name]} == set()


def test_colours_are_made_in_a_process_of_their_own() -> None:
    """No pattern of pygments runs in a worker: it could hold the interpreter's lock for minutes."""
    roots = {name: {each.partition(".")[0] for each in imported(TREES[name])} for name in FILES}
    assert [name for name in FILES if "pygments" in roots[name]] == ["colours"]
    assert [name for name in FILES if "colours" in ours(name)] == ["render_process"]
    assert [name for name in FILES if "render_process" in ours(name)] == []


def test_there_is_no_circle() -> None:
    """Taking away modules that need nothing of what is left ends with nothing left."""
    left = {name: ours(name) for name in FILES}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("name", ALONE)
def test_what_runs_alone_knows_nothing_of_the_rest(name: str) -> None:
    """The embedded model's processes need nothing else of Halt."""
    assert ours(name) == set()


@pytest.mark.parametrize("name", [n for n in FILES if LAYERS.get(n, 0) < 5])
def test_flask_is_the_upper_floors_matter(name: str) -> None:
    """Below layer 5 nothing imports Flask or Werkzeug: all of it runs without a request."""
    roots = {each.partition(".")[0] for each in imported(TREES[name])}
    assert roots & {"flask", "flask_limiter", "flask_sock", "werkzeug"} == set()


@pytest.mark.parametrize("name", [n for n, layer in LAYERS.items() if layer == 6])
def test_the_three_views_do_not_know_each_other(name: str) -> None:
    """Pages, streams and API never import one another, and only the root imports them."""
    views = {n for n, layer in LAYERS.items() if layer == 6}
    assert ours(name) & views == set()


def test_only_the_composition_root_chooses_implementations() -> None:
    """No module makes a store, a provider or a stop registry: `app` does, for programs `library`."""
    chosen = {
        "SqlStore": {"store", "app"},
        "OpenAIUpstream": {"upstream", "choice"},
        "AzureUpstream": {"upstream", "choice"},
        "AnthropicUpstream": {"anthropic_upstream", "choice"},
        "Providers": {"providers", "choice"},
        "FoundProviders": {"choice"},
        "StopRegistry": {"stops", "library", "app", "cli"},
    }
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert name in chosen.get(node.func.id, {name}), f"{name} makes a {node.func.id}"


def test_only_config_reads_the_environment() -> None:
    """`os.environ` and `os.getenv` stand in config.py alone, in app.py and gunicorn's file too."""
    sources = {**{f"halt/{n}.py": t for n, t in TREES.items()}}
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
    assert readers == {"halt/config.py"}
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
    Generations,
    Line,
    SqlStore,
    Provider,
    Providers,
    Run,
    Slots,
    StopRegistry,
    StopSwitch,
    Transport,
)


#: Locks for what a library keeps once for the whole process.
PROCESS_WIDE = {"colours": ["_making_lexer"]}


@pytest.mark.parametrize("name", [n for n in FILES if n != "__init__"])
def test_no_module_holds_state(name: str) -> None:
    """No module has a lock, a registry or an empty table to be filled: all of it is passed in."""
    module = importlib.import_module(f"halt.{name}")
    held = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    stateful = [k for k, v in held.items() if isinstance(v, STATEFUL)]
    assert stateful == PROCESS_WIDE.get(name, [])
    assert [k for k, v in held.items() if isinstance(v, (dict, list, set)) and not v] == []
    rebound = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Global)]
    assert rebound == []


# --- what the browser is given --------------------------------------------------------------------


def test_vendored_files_are_what_their_authors_published() -> None:
    """Each vendored script is listed with its digest, and nothing else lies beside them."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")
    }
    assert found == VENDORED


@pytest.mark.parametrize("file", VENDORED)
def test_a_vendored_file_says_the_version_of_its_name(file: str) -> None:
    """The version in a script agrees with its name, and all scripts of one project with another."""
    (named,) = re.findall(r"-(\d+\.\d+\.\d+)\.", file)
    inside = re.findall(r'version\s*[=:]\s*"([\d.]+)"', (VENDOR / file).read_text())
    assert set(inside) <= {named}
    assert inside or not file.startswith("htmx")
    assert named == "4.0.1"


def test_the_licence_of_what_is_vendored_is_there() -> None:
    """The vendored project's licence is shipped beside its scripts."""
    text = (VENDOR / "htmx-LICENSE.txt").read_text()
    assert "Permission to use, copy, modify, and/or distribute this software" in text


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
def test_no_template_has_script_or_style_of_its_own(path: Path) -> None:
    """The strict policy holds: scripts are files, there is no inline style and no `on...`."""
    for tag, attributes in Page(path).elements:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert "style" not in attributes
        assert [a for a in attributes if a.startswith(("on", "hx-on"))] == []
        assert [v for v in attributes.values() if v.lstrip().startswith("javascript:")] == []
    source = path.read_text()
    assert re.findall(r"<script\b[^>]*>\s*[^<\s]", source) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_only_rendered_answers_are_put_in_unescaped(path: Path) -> None:
    """What users and models wrote is escaped, apart from what the renderer has made safe."""
    source = path.read_text()
    trusted = re.findall(r"([\w.]+)\s*\|\s*safe\b", source)
    assert set(trusted) <= {"a.patch.finished", "a.patch.tail"}
    assert "autoescape" not in source


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_load_from_here_only(path: Path) -> None:
    """Whatever a page loads, links to or asks for comes from Halt itself."""
    for tag, attributes in Page(path).elements:
        for name, value in attributes.items():
            assert not re.match(r"\s*(?:[a-z]+:)?//", value), f"<{tag} {name}={value!r}>"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_what_templates_load_exists(path: Path) -> None:
    """Each static file that a template names is there."""
    for file in re.findall(r"filename='([^']+)'", path.read_text()):
        assert (ROOT / "static" / file).is_file()


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "static").glob("*.*")) if p.suffix in {".js", ".css", ".svg"}],
    ids=lambda path: path.name,
)
def test_scripts_and_styles_load_from_here_only(path: Path) -> None:
    """Own scripts, styles and images name no other origin, by any scheme or by none."""
    source = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"""(?:https?|wss?):|@import|["'(`]//\w""", source) == []

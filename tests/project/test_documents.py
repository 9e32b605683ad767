"""Documents agree with the code: links, settings, routes, error codes, fields and file names.

The examples in documents are run by `tests/server/test_document_examples.py` and
`tests/browser/test_document_examples.py`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import get_args

import grimp
import pytest

from halt.app import create_app
from halt.config.provider_setup import setup
from halt.config.providers import KINDS
from halt.config.settings import Config
from halt.core.events import CancelReason, Event
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt
from halt.errors import CODES, STATUSES
from halt.web.cors import API
from halt.web.schemas import Health
from halt.web.starts import StartRequest
from tests.support.documents import DOCUMENTS, ROOT, anchor, examples, headings, table_rows

README_LINES_MAX = 250

#: Fenced blocks that are not run, by language: the test that checks them, or a reason.
CHECKED_ELSEWHERE = {
    "nginx": "tests/server/test_deployment.py compares it with deploy/nginx.conf and runs that",
    "toml": "test_provider_file_examples_are_accepted in this file",
}
#: Languages of examples that a test runs.
RUN = {"python", "sh", "js"}

#: Rows of docs/configuration.md about variables that are not settings of Halt's own.
OTHER_VARIABLES = {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"}

#: Codes that werkzeug's names of HTTP errors become.
HTTP_CODES = {"not_found", "method_not_allowed"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def names_in(cell: str) -> list[str]:
    """The names in backticks in a cell of a table."""
    return re.findall(r"`([^`]+)`", cell)


# --- links and form -------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_link_has_a_target(document: Path) -> None:
    """Each relative link names an existing file, and each anchor an existing heading."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text("utf-8")):
        path, _, fragment = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if fragment:
            assert fragment in map(anchor, headings(file.read_text("utf-8"))), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_headings_have_unique_anchors(document: Path) -> None:
    """Headings of a document have different anchors, except in the changelog, which repeats its
    headings.
    """
    anchors = [anchor(heading) for heading in headings(document.read_text("utf-8"))]
    if document.name != "CHANGELOG.md":
        assert len(anchors) == len(set(anchors))


def test_readme_is_short_and_links_every_document() -> None:
    """The README is short and links every document of docs/."""
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= README_LINES_MAX
    linked = set(re.findall(r"\]\(([\w./-]+\.md)", readme))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked
    assert "CONTRIBUTING.md" in linked
    for command in ("make run", "make test", "make check"):
        assert command in readme


def test_fenced_example_is_run_or_checked() -> None:
    """Each fenced example is run or checked; text, output and other commands are indented."""
    for example in examples():
        is_checked = example.language in RUN or example.language in CHECKED_ELSEWHERE
        assert is_checked, (example.document, example.heading, example.language)


def test_provider_file_examples_are_accepted(tmp_path: Path) -> None:
    """Halt accepts the TOML example as its file of providers."""
    (example,) = (example for example in examples() if example.language == "toml")
    file = tmp_path / "halt.toml"
    file.write_text(example.code)
    provider_setup = setup(Config(config_file=str(file)), lambda name: f"value-of-{name}")
    assert {provider.kind for provider in provider_setup.providers} == set(KINDS)


# --- settings -------------------------------------------------------------------------------------


def documented_settings() -> dict[str, list[str]]:
    """Variable -> default, allowed values and meaning, from docs/configuration.md."""
    rows = table_rows(text_of("docs/configuration.md"))
    return {cells[0].strip("`"): cells[1:] for cells in rows if cells[0].startswith("`")}


SETTINGS = [field for field in fields(Config) if not field.metadata["doc"].startswith("Internal")]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: str(setting.metadata["env"]))
def test_setting_is_documented(setting: Field[object]) -> None:
    """Each setting is documented with its default, its bounds and its meaning."""
    row = documented_settings().get(setting.metadata["env"])
    assert row is not None, f"{setting.metadata['env']} has no row in docs/configuration.md"
    default, allowed, meaning = row
    assert meaning
    documented_default = default.strip("`")
    if setting.type == "bool":
        assert (documented_default, allowed) == (str(int(setting.default is True)), "0 or 1")
    elif setting.type in {"int", "float"}:
        assert float(documented_default) == setting.default
        low, _, high = allowed.replace(",", "").partition(" to ")
        assert (float(low), float(high)) == (setting.metadata["low"], setting.metadata["high"])
    elif isinstance(setting.default, tuple):
        assert documented_default == ",".join(setting.default)
    else:
        assert documented_default == (setting.default or "")


def test_documented_setting_exists() -> None:
    """Each setting in docs/configuration.md exists."""
    setting_names = {str(setting.metadata["env"]) for setting in SETTINGS}
    named = {name for key in documented_settings() for name in re.split(r"`, `", key)}
    assert named - OTHER_VARIABLES == setting_names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_variable_exists(document: Path) -> None:
    """Each variable named in running text exists, except for older ones in the changelog."""
    setting_names = {str(setting.metadata["env"]) for setting in SETTINGS}
    if document.name != "CHANGELOG.md":
        assert set(re.findall(r"\bHALT_[A-Z_]+\b", document.read_text("utf-8"))) <= setting_names


def test_readme_defaults_match_the_configuration() -> None:
    """A default in the README's short table is that of docs/configuration.md."""
    documented = documented_settings()
    for cells in table_rows(text_of("README.md")):
        for env, default in zip(names_in(cells[0]), names_in(cells[1]), strict=False):
            if env in documented:
                assert default == documented[env][0].strip("`"), env


# --- routes, fields and codes ---------------------------------------------------------------------


def test_api_routes_are_documented(tmp_path: Path) -> None:
    """docs/api.md has a row for each route of the application's API, and no other."""
    app = create_app(Config(base_url="http://127.0.0.1:9/v1", api_key="fake", data=str(tmp_path)))
    routes = set()
    for rule in app.url_map.iter_rules():
        if rule.rule == "/docs" or {rule.endpoint, rule.endpoint.partition(".")[0]} & API:
            path = re.sub(r"<[^<>]*>", "ID", rule.rule)
            routes |= {f"{method} {path}" for method in rule.methods or set()}
    routes = {route for route in routes if route.startswith(("GET ", "POST "))}
    section = text_of("docs/api.md").partition("\n## Routes\n")[2].partition("\n## ")[0]
    named = {name.partition("?")[0] for cells in table_rows(section) for name in names_in(cells[0])}
    assert named == routes


def test_start_fields_are_documented() -> None:
    """The table under Streams names each field of POST /chat/stream, and no other."""
    section = text_of("docs/api.md").partition("\n## Streams\n")[2].partition("\n## ")[0]
    named = {name for cells in table_rows(section) for name in names_in(cells[0])}
    assert named == set(StartRequest.__struct_fields__)


def section_of(name: str, heading: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"\n#+ ", text_of(name).partition(f"{heading}\n")[2])[0]


def first_names(section: str) -> set[str]:
    """The names in the first cells of a section's tables."""
    return {name for cells in table_rows(section) for name in names_in(cells[0])}


def test_events_and_their_fields_are_documented() -> None:
    """docs/protocol.md has each type of event with its fields, and the fields of metrics."""
    section = section_of("docs/protocol.md", "\n## Events")
    types = {str(kind.__struct_config__.tag): kind for kind in get_args(Event)}
    assert first_names(section) == set(types)
    event_examples = [
        json.loads(line.replace("{...}", "{}")) for line in re.findall(r"    (\{.*)", section)
    ]
    for tag, kind in types.items():
        fields_shown = set().union(*(event for event in event_examples if event["type"] == tag)) - {
            "type"
        }
        optional = {"extra"}  # in the text below the table
        assert fields_shown == set(kind.__struct_fields__) - optional, tag
    assert first_names(section_of("docs/protocol.md", "\n### Metrics")) == set(
        Metrics.__struct_fields__
    ) - {"tokens_estimated"}  # named in the row of `tokens`


def test_receipt_and_health_fields_are_documented() -> None:
    """The documents name each field of a receipt and of the health report."""
    receipt = first_names(section_of("docs/protocol.md", "\n## Receipts"))
    assert receipt == set(Receipt.__struct_fields__) - {"id"}
    assert first_names(section_of("docs/api.md", "\n## Health")) == set(Health.__struct_fields__)


def defined_codes() -> set[str]:
    """Error codes in the source: of classes of errors, of refusals, and of CODES."""
    codes = set(CODES)
    for path in (ROOT / "halt").rglob("*.py"):
        text = path.read_text("utf-8")
        codes |= set(re.findall(r'^    code = "([a-z_]+)"', text, re.MULTILINE))
        codes |= set(re.findall(r'Refused\(\s*\d+,\s*"([a-z_]+)"', text))
        codes |= set(re.findall(r'_refusal\("[^"]+", "([a-z_]+)"', text))
        codes |= set(re.findall(r'name, message = "([a-z_]+)"', text))
    return codes


def documented_codes() -> Iterator[tuple[str, list[str]]]:
    """Each code in the tables of docs/api.md under Errors, with its row."""
    section = text_of("docs/api.md").partition("\n## Errors\n")[2].partition("\n## ")[0]
    for cells in table_rows(section):
        is_refusal = cells[0][:3].isdigit()
        for code in names_in(cells[1 if is_refusal else 0]):
            if code != "/v1":
                yield code, cells


def test_error_code_is_documented() -> None:
    """Each error code of the source is in docs/api.md, and no other."""
    assert {code for code, _ in documented_codes()} - HTTP_CODES == defined_codes()


def test_documented_error_example_has_the_real_message() -> None:
    """The error of a limit in docs/api.md is the one that Halt sends."""
    (message,) = re.findall(r'"message": "(.*?):? 30 per minute', text_of("docs/api.md"))
    assert message in text_of("halt/web/rate_limits.py")


def test_error_status_and_retryability_are_documented() -> None:
    """The second table gives for each code of CODES its status and whether it is retryable."""
    rows = {code: cells for code, cells in documented_codes() if not cells[0][:3].isdigit()}
    assert set(rows) == set(CODES)
    for code, (_, is_retryable) in CODES.items():
        _, _, status, retryable = rows[code]
        assert status.startswith(str(STATUSES.get(code, 502))), code
        assert retryable == ("yes" if is_retryable else "no"), code


def test_library_document_names_each_provider_kind() -> None:
    """The document on the library names each kind of provider."""
    for kind in KINDS:
        assert f'"{kind}"' in text_of("docs/library.md")


@pytest.mark.parametrize(
    "label",
    [
        *(
            "Compare",
            "Continue",
            "Delete",
            "Discard",
            "Display",
            "Edit answer",
            "Export all as JSON",
        ),
        *("Import JSON…", "Write again", "Rename", "Saving is delayed", "Use this answer"),
        *("Send now", "Thinking…", "Thought for", "Undo", "Waiting for the model"),
    ],
)
def test_documents_use_the_labels_of_the_page(label: str) -> None:
    """Labels quoted in docs/using.md and docs/storage.md are on the page."""
    assert label in text_of("docs/using.md") + text_of("docs/storage.md")
    sources = [
        *ROOT.glob("templates/*.html"),
        *ROOT.glob("static/js/**/*.js"),
        *ROOT.glob("halt/**/*.py"),
    ]
    assert any(label in source.read_text("utf-8") for source in sources)


# --- figures and file names -----------------------------------------------------------------------


def test_documented_core_size_is_right() -> None:
    """The README's size of the core is that of the generation service with all modules that it
    imports.
    """
    stated = re.search(r"is about ([\d,]+)\s+lines", text_of("README.md"))
    assert stated is not None
    graph = grimp.build_graph("halt", cache_dir=None)
    modules = {"halt.core.service", *graph.find_upstream_modules("halt.core.service")}
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in modules]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert lines == pytest.approx(int(stated[1].replace(",", "")), rel=0.03)


def test_files_in_the_architecture_exist() -> None:
    """Each file that docs/architecture.md names is in the package, in the named folder."""
    named = set(re.findall(r"(?<![\w/])[a-z_/]+\.py\b", text_of("docs/architecture.md")))
    present = {path.relative_to(ROOT / "halt").as_posix() for path in ROOT.glob("halt/**/*.py")}
    assert len(named) > 30
    assert {n for n in named if not any(f"/{path}".endswith(f"/{n}") for path in present)} == set()


def defined_names() -> set[str]:
    """Names of classes, functions, methods and attributes in halt/, also those annotated alone."""
    names = set()
    for path in (ROOT / "halt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    names.add(name)
    return names


def test_names_in_the_architecture_exist() -> None:
    """Each class, function, module and script in backticks in docs/architecture.md exists."""
    quoted = names_in(text_of("docs/architecture.md"))
    identifiers = {name for name in quoted if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)}
    scripts = {name for name in identifiers if name.endswith(".js")}
    assert scripts <= {path.name for path in (ROOT / "static" / "js").rglob("*.js")}
    identifiers = {name for name in identifiers - scripts if not name.endswith(".py")}
    identifiers -= {str(kind.__struct_config__.tag) for kind in get_args(Event)}
    identifiers -= set(get_args(CancelReason))
    assert len(identifiers) > 10
    modules = {path.stem for path in (ROOT / "halt").rglob("*.py")}
    packages = {path.name for path in (ROOT / "halt").rglob("*") if path.is_dir()}
    known_names = defined_names() | modules | packages
    assert {name for name in identifiers if name.rpartition(".")[2] not in known_names} == set()


def test_files_in_contributing_exist() -> None:
    """Each path in backticks in CONTRIBUTING.md that names a folder of the repository exists."""
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", text_of("CONTRIBUTING.md"))
    assert len(named) > 30
    paths = {path for path in named if "NAME" not in path and "PACKAGE" not in path}
    assert {path for path in paths if not (ROOT / path.lstrip("/")).exists()} == set()


def test_documents_do_not_promise_that_the_model_stops() -> None:
    """No document says that a closed connection stops the model or its billing."""
    for document in (*DOCUMENTS, ROOT / "halt/web/api/openapi.yaml"):
        if document.name == "CHANGELOG.md":  # quotes claims of earlier versions
            continue
        text = " ".join(document.read_text("utf-8").split()).lower()
        for claim in ("nothing more is generated", "nothing more is billed", "really stops"):
            assert claim not in text, (document.name, claim)

"""What README and docs say of the code, where a list, a number or a link can be compared with it."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

from halt.config.providers import KINDS
from halt.web.starts import StartRequest
from tests.support.halt_server import ROOT

README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def heading_anchor(heading: str) -> str:
    """The anchor that a heading of Markdown gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each link within the project names a file that is there, or a heading."""
    text = document.read_text("utf-8")
    anchors = {heading_anchor(each) for each in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert not path or (document.parent / path).exists(), target
        assert path or anchor in anchors, target


def test_the_fields_of_a_request_are_those_that_are_taken() -> None:
    """The row of POST /chat/stream names each field of a request, and no other."""
    row = next(line for line in README.splitlines() if line.startswith("| `POST /chat/stream` |"))
    named = set(re.findall(r"`([a-z_]+)`", row.split("|")[2]))
    assert named - {"true"} == set(StartRequest.__struct_fields__)


def test_the_core_has_the_size_that_is_told() -> None:
    """The service of generations, with all modules of Halt that it imports, by any way."""
    said = re.search(r"core \(run, generation, .*\n.*\) is about ([\d,]+) lines", README)
    assert said is not None
    graph = grimp.build_graph("halt", cache_dir=None)
    modules = {"halt.core.service", *graph.find_upstream_modules("halt.core.service")}
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in modules]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert lines == pytest.approx(int(said[1].replace(",", "")), rel=0.03)


def test_the_picture_of_the_house_names_files_that_are_there() -> None:
    """Each file that docs/architecture.md names is in the package, in the folder that it names."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"(?<![\w/])[a-z_/]+\.py\b", text))
    there = {path.relative_to(ROOT / "halt").as_posix() for path in (ROOT / "halt").rglob("*.py")}
    assert len(named) > 30
    missing = {n for n in named if not any(f"/{each}".endswith(f"/{n}") for each in there)}
    assert missing == set()


def test_no_document_claims_what_only_the_models_server_knows() -> None:
    """A closed connection is no promise that the model stops, or that nothing is billed."""
    for document in DOCUMENTS:
        text = " ".join(document.read_text("utf-8").split()).lower()
        for claim in ("nothing more is generated", "nothing more is billed", "really stops"):
            assert claim not in text, (document.name, claim)


def test_the_library_names_each_kind_of_provider() -> None:
    """As an argument, in README's section on the library."""
    section = README.partition("## Halt as a Python library")[2].partition("\n## ")[0]
    for kind in KINDS:
        assert f'"{kind}"' in section

"""Tests and benchmarks use public names, except for the uses listed here, each with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The uses that remain: file -> private name -> why no public way serves the test.
ALLOWED = {
    "bench/storeless.py": {
        "_writer": "Halt has no setting for an application that saves nothing; this measures one.",
    },
    "tests/fuzz/lexers.py": {
        "_tokens": "pygments keeps a lexer's compiled rules there, and nowhere else.",
    },
    "tests/server/test_health.py": {
        "_request": "The request to the other workers fails as if they hung; the rest is real.",
    },
    "tests/server/test_openai_api.py": {
        "_request_id": "It is a documented attribute of the openai client's answers.",
    },
    "tests/server/test_via.py": {
        "_KEY": "A new key stands for a restart of the server, in the same process.",
    },
    "tests/support/library_halt.py": {
        "_generations": "A program does not see the service; tests count its places and readers.",
    },
    "tests/unit/cli/test_chat.py": {
        "_show": "Ctrl-C is pressed inside this function, at the start of the wait for an answer.",
    },
    "tests/unit/core/test_metrics.py": {
        "_counts": "The bound of the memory is the number of buckets, which no figure reports.",
    },
    "tests/unit/store/test_admission.py": {
        "_await_place": "A call must have its place in the queue before the test makes the next.",
    },
    "tests/unit/web/test_page_writer.py": {
        "_seen_events": "It sets how much had been seen of a log that is complete already.",
    },
}

#: `self` and `cls` are a class's own; the rest are the standard library's modules: `os._exit` and
#: `sys._current_frames` are documented, and the parser of patterns, `re._parser`, has no other name.
OWN = {"self", "cls", "os", "re", "sys"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in OWN


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private names of other objects that a file reads, sets, patches or imports from Halt."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            if not is_own(node.value):
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] == "halt":
                names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else ""
            called = function.id if isinstance(function, ast.Name) else called
            is_foreign = bool(node.args) and not is_own(node.args[0])
            if is_foreign and called in {"setattr", "getattr", "delattr", "hasattr"}:
                names = [
                    argument.value.rpartition(".")[2]
                    for argument in node.args[:2]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                ]
        yield from filter(is_private, names)


def test_private_names_in_tests_are_the_listed_ones() -> None:
    """A new use of a private name fails; so does a listed one that no file has any more."""
    uses: dict[str, set[str]] = {}
    for folder in ("bench", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = set(private_names(ast.parse(path.read_text(), str(path))))
            if names:
                uses[path.relative_to(ROOT).as_posix()] = names
    assert uses == {file: set(reasons) for file, reasons in ALLOWED.items()}


@pytest.mark.parametrize(
    "source",
    [
        "thing._name",
        "thing.other()._name = 1",
        "super()._name()",
        "from halt.core.run import _name",
        "monkeypatch.setattr(thing, '_name', 1)",
        "monkeypatch.setattr('halt.core.run._name', 1)",
        "getattr(thing, '_name')",
    ],
)
def test_private_names_finds_each_kind_of_use(source: str) -> None:
    """Attributes, imports from Halt and names in strings are found."""
    assert set(private_names(ast.parse(source))) == {"_name"}


@pytest.mark.parametrize(
    "source",
    [
        "self._name",
        "hasattr(self, '_name')",
        "cls._name",
        "os._exit(0)",
        "thing.__class__",
        "from re import _parser",
        "monkeypatch.setattr(thing, 'name', '_value')",
    ],
)
def test_private_names_ignores_own_and_documented_names(source: str) -> None:
    """A class's own names, dunder names and other libraries' modules are no uses."""
    assert set(private_names(ast.parse(source))) == set()

"""Regular expressions of Halt take linear time, also for texts that are made to defeat them.

The texts are made from the pattern itself: for each repeat, the text before it, its repeated part
many times, and an end at which the match fails; and all of that many times, so that the search
begins again at each place.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from re import _constants as op  # as the parser has them
from re import _parser as parser
from typing import Any

import pytest

import halt

pytestmark = pytest.mark.slow

ROOT = Path(halt.__file__).parent
METHODS = frozenset({"match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"})

#: Lengths at which a text is tried. An exponential pattern is seen at the first ones, a quadratic
#: one at the last.
LENGTHS = (12, 18, 24, 300, 4_096, 40_960)
#: Texts that took longest at the last length but one; they alone are tried at the last.
SUSPECTS = 10
#: Seconds of CPU time. A linear pattern takes up to 0.03 at the last length but one.
SECONDS = 0.6
#: At the last length, ten times the one before, a pattern may take longer than that, but not so many
#: times what it took before: 10 where it is linear, 100 where it is quadratic.
GROWTH = 30

#: Characters that classes of characters are tried with.
ALPHABET = " \n\ta1A_<>/-.:;,\"'`[](){}|=*#$\\\u4e00~+&?!"
TAILS = ("", "\x00", "\n", "`", "a")
PAIRS_MAX = 6  # of repeats in one sequence that are filled together

#: Module -> names in it that make patterns of words as they come, escaped and of bounded number.
DYNAMIC = {"store.search", "store.import_faults"}


def patterns() -> dict[tuple[str, int], tuple[str, set[str]]]:
    """Text and flags of each pattern -> where it stands, and the methods that are called of it."""
    found: dict[tuple[str, int], tuple[str, set[str]]] = {}
    called = _called()
    for module in _modules():
        for name, value in vars(module).items():
            for pattern in _inside(value, 0):
                used = called.get((module.__name__, name), set())
                _, known = found.setdefault(
                    (pattern.pattern, pattern.flags), (f"{module.__name__}.{name}", set())
                )
                known |= used
    for where, text, method in _inline():
        flags = re.compile(text).flags
        _, known = found.setdefault((text, flags), (where, set()))
        known.add(method if method != "compile" else "search")
    # Of a pattern that is taken out of a list or handed on, either may be called.
    return {key: (name, used or {"search", "match"}) for key, (name, used) in found.items()}


def _modules() -> Iterator[Any]:
    for each in pkgutil.walk_packages(halt.__path__, "halt."):
        if not each.name.endswith("__main__") and not each.name.startswith("halt.testing"):
            yield importlib.import_module(each.name)


def _inside(value: object, depth: int) -> Iterator[re.Pattern[Any]]:
    """The patterns that a value is or holds."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 4 and isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _inside(each, depth + 1)
    elif depth < 4 and isinstance(value, dict):
        yield from _inside([*value, *value.values()], depth)
    elif isinstance(value, type) and value.__module__.startswith("halt"):
        yield from _inside(list(vars(value).values()), depth + 1)


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        stem = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not stem.startswith("testing."):  # the fake model server reads nothing from strangers
            yield stem, ast.parse(path.read_text())


def _called() -> dict[tuple[str, str], set[str]]:
    """Module and name -> methods of patterns that are called of it, there or where it is imported."""
    called: dict[tuple[str, str], set[str]] = {}
    for stem, tree in _trees():
        nodes = list(ast.walk(tree))
        homes = {
            alias.asname or alias.name: (str(node.module), alias.name)
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in nodes:  # a pattern of several, in a loop through them
            if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Name):
                name = getattr(node.target, "id", "")
                homes.setdefault(name, homes.get(node.iter.id, (f"halt.{stem}", node.iter.id)))
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                of = node.value
                name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
                home = homes.get(name, (f"halt.{stem}", name))
                called.setdefault(home, set()).add(node.attr)
    return called


def _inline() -> Iterator[tuple[str, str, str]]:
    """Calls of `re` with a pattern that is written there: where, the pattern, the function."""
    for stem, tree in _trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr in METHODS
            ):
                given = node.args[0]
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield f"halt.{stem}:{node.lineno}", given.value, node.func.attr
                else:
                    assert stem in DYNAMIC, f"{stem}:{node.lineno} makes a pattern as it goes"


# --- texts from a pattern -------------------------------------------------------------------------


def _chars(items: Iterable[tuple[Any, Any]]) -> list[str]:
    """Some characters that a class takes."""
    items = list(items)
    pattern = parser.SubPattern(parser.State(), [(op.IN, items)])
    compiled = re._compiler.compile(pattern, 0)  # type: ignore[attr-defined]
    named = [chr(v) for k, v in items if k is op.LITERAL]
    named += [chr(v[0]) for k, v in items if k is op.RANGE]
    return [c for c in [*ALPHABET, *named] if compiled.match(c)] or named


def samples(nodes: Any, most: int = 3) -> list[str]:
    """Some short texts that these nodes match, or nearly."""
    texts = [""]
    for kind, value in nodes:
        parts = _sample(kind, value)
        texts = [text + part for text in texts for part in parts][:most]
    return texts


def _sample(kind: Any, value: Any) -> list[str]:
    if kind is op.LITERAL:
        return [chr(value)]
    if kind is op.NOT_LITERAL:
        return [c for c in "a \n" if ord(c) != value]
    if kind is op.ANY:
        return ["a", " "]
    if kind is op.IN:
        return _spread(_chars(value))
    if kind is op.BRANCH:
        return [text for branch in value[1] for text in samples(branch, 1)][:4]
    if kind is op.SUBPATTERN:
        return samples(value[3])
    if kind is op.ATOMIC_GROUP:
        return samples(value)
    if kind in {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}:
        least, _, inner = value
        return [text * least for text in samples(inner)] if least else ["", *samples(inner, 1)]
    return [""]


def _spread(chars: list[str]) -> list[str]:
    """A few of these that are unlike each other: blanks, letters and digits, signs."""
    kinds = (str.isspace, str.isalnum, lambda c: not (c.isspace() or c.isalnum()))
    return [c for kind in kinds for c in list(filter(kind, chars))[:2]]


def repeats(nodes: Any, before: list[str]) -> Iterator[tuple[str, str]]:
    """For each repeat: what stands before it, and the part that is repeated."""
    for kind, value in nodes:
        if kind in {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}:
            _, most, inner = value
            if most > 16:
                for prefix in before[:2]:
                    for unit in samples(inner, 6):
                        if unit:
                            yield prefix, unit
            yield from repeats(inner, before)
        elif kind is op.SUBPATTERN:
            yield from repeats(value[3], before)
        elif kind is op.ATOMIC_GROUP:
            yield from repeats(value, before)
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from repeats(branch, before)
        elif kind in {op.ASSERT, op.ASSERT_NOT}:
            yield from repeats(value[1], before)
        before = [text + part for text in before for part in _sample(kind, value)[:3]][:3] or before


def hostile(pattern: str, flags: int) -> Iterator[tuple[str, str, str]]:
    """Beginning, part to repeat and end of texts on which a match may take long."""
    parsed = parser.parse(pattern, flags & ~re.DEBUG)
    texts: dict[tuple[str, str, str], None] = {}
    wholes = samples(parsed, 2)
    for before, unit in dict.fromkeys(repeats(parsed, [""])):
        for tail in TAILS:
            texts[before, unit, tail] = None
        texts["", before + unit, ""] = texts["", before + unit, "\x00"] = None
        texts["", unit, "\x00"] = texts["", before, "\x00"] = None
        texts["", unit + before, "\n"] = None
    for text in wholes:
        texts["", text, "\x00"] = texts["", text[:-1], "\x00"] = texts[text, " ", "\x00"] = None
    for char in ALPHABET:
        texts["", char, "\x00"] = None
    return iter([each for each in texts if each[1]])


def slowest(pattern: str, flags: int, methods: Iterable[str]) -> str:
    """The text that takes too long, as words; "" where there is none."""
    compiled = re.compile(pattern, flags)
    suspects: list[tuple[float, str, tuple[str, str, str]]] = []
    for text in hostile(pattern, flags):
        for method in methods:
            for length in LENGTHS[:-1]:
                took = _seconds(compiled, method, text, length)
                if took > SECONDS:
                    return f"{method} of {text}, {length} characters: {took:.1f} s"
            suspects.append((took, method, text))
    for _, method, text in sorted(suspects, reverse=True)[:SUSPECTS]:
        took = _seconds(compiled, method, text, LENGTHS[-1])
        if took > max(SECONDS, GROWTH * _seconds(compiled, method, text, LENGTHS[-2])):
            return f"{method} of {text}, {LENGTHS[-1]} characters: {took:.1f} s"
    return ""


def _seconds(
    compiled: re.Pattern[Any], method: str, text: tuple[str, str, str], size: int
) -> float:
    """CPU time that a method takes for a text of this length."""
    before, unit, tail = text
    whole: Any = before + unit * (size // len(unit) + 1) + tail
    nothing: Any = ""
    if isinstance(compiled.pattern, bytes):
        whole, nothing = whole.encode("utf-8", "replace"), b""
    run = getattr(compiled, method)
    given = (nothing, whole) if method in {"sub", "subn"} else (whole,)
    began = time.process_time()
    result = run(*given)
    if method == "finditer":
        list(result)
    return time.process_time() - began


PATTERNS = patterns()


@pytest.mark.parametrize("key", PATTERNS, ids=lambda key: PATTERNS[key][0])
def test_pattern_takes_linear_time(key: tuple[str, int]) -> None:
    """Each pattern takes linear time for text from a model, its server or a client."""
    assert slowest(*key, sorted(PATTERNS[key][1])) == ""


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r" - at `(?:key in )?\$\.?(.*)`$", "search"),
        (r"(?:a+)+b", "match"),
        (r"(?:\w+\s?)*:", "fullmatch"),
    ],
)
def test_backtracking_patterns_are_found(pattern: str, method: str) -> None:
    """The hostile texts are slow for patterns that are known to backtrack."""
    assert slowest(pattern, re.compile(pattern).flags, [method])


def test_patterns_of_all_modules_are_collected() -> None:
    """The patterns of all modules are collected."""
    assert len(PATTERNS) > 100, sys.version

"""Regular expressions of Halt take linear time, also for texts that are made to defeat them.

The texts are made from the pattern itself: for each repeat, the text before it, its repeated part
many times, and an end at which the match fails; and all of that many times, so that the search
begins again at each place.
"""

from __future__ import annotations

import ast
import gc
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
AGAIN = 0.3  # from which a time is measured again
#: At the last length a pattern may exceed SECONDS, but not GROWTH times its time at a tenth of the
#: length: a linear pattern takes 10 times that time, a quadratic one 100 times.
GROWTH = 30

#: Characters that classes of characters are tried with.
ALPHABET = " \n\ta1A_<>/-.:;,\"'`[](){}|=*#$\\\u4e00~+&?!"
TAILS = ("", "\x00", "\n", "`", "a")
PAIRS_MAX = 6  # of repeats in one sequence that are filled together

#: Module -> names in it that make patterns of words as they come, escaped and of bounded number.
DYNAMIC = {"rendering.data_urls", "store.search", "store.import_faults", "web.page.sidebar"}


def patterns() -> dict[tuple[str, int], tuple[str, set[str]]]:
    """Text and flags of each pattern -> its place in the code, and the methods called on it."""
    methods_by_pattern: dict[tuple[str, int], tuple[str, set[str]]] = {}
    called = _called()
    for module in _modules():
        for name, value in vars(module).items():
            for pattern in _inside(value, 0):
                used_methods = called.get((module.__name__, name), set())
                _, methods = methods_by_pattern.setdefault(
                    (pattern.pattern, pattern.flags), (f"{module.__name__}.{name}", set())
                )
                methods |= used_methods
    for place, text, method in _inline():
        flags = re.compile(text).flags
        _, methods = methods_by_pattern.setdefault((text, flags), (place, set()))
        methods.add(method if method != "compile" else "search")
    # On a pattern of a list or an argument, `search` or `match` may be called.
    return {
        key: (name, used_methods or {"search", "match"})
        for key, (name, used_methods) in methods_by_pattern.items()
    }


def _modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(halt.__path__, "halt."):
        if not info.name.endswith("__main__") and not info.name.startswith("halt.testing"):
            yield importlib.import_module(info.name)


def _inside(value: object, depth: int) -> Iterator[re.Pattern[Any]]:
    """The patterns that a value is or holds."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 4 and isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _inside(item, depth + 1)
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
    """Calls of `re` with a literal pattern: (place, pattern, name of the function)."""
    for stem, tree in _trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr in METHODS
            ):
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield f"halt.{stem}:{node.lineno}", argument.value, node.func.attr
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


def samples(nodes: Any, limit: int = 3) -> list[str]:
    """Some short texts that these nodes match, or nearly."""
    texts = [""]
    for kind, value in nodes:
        parts = _sample(kind, value)
        texts = [text + part for text in texts for part in parts][:limit]
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
        count, _, inner = value
        return [text * count for text in samples(inner)] if count else ["", *samples(inner, 1)]
    return [""]


def _spread(chars: list[str]) -> list[str]:
    """A few of these of different kinds: blanks, letters and digits, signs."""
    kinds = (str.isspace, str.isalnum, lambda c: not (c.isspace() or c.isalnum()))
    return [c for kind in kinds for c in list(filter(kind, chars))[:2]]


def repeats(nodes: Any, prefixes: list[str]) -> Iterator[tuple[str, str]]:
    """For each repeat: a text before it, and the part that is repeated."""
    for kind, value in nodes:
        if kind in {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}:
            _, max_count, inner = value
            if max_count > 16:
                for prefix in prefixes[:2]:
                    for unit in samples(inner, 6):
                        if unit:
                            yield prefix, unit
            yield from repeats(inner, prefixes)
        elif kind is op.SUBPATTERN:
            yield from repeats(value[3], prefixes)
        elif kind is op.ATOMIC_GROUP:
            yield from repeats(value, prefixes)
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from repeats(branch, prefixes)
        elif kind in {op.ASSERT, op.ASSERT_NOT}:
            yield from repeats(value[1], prefixes)
        longer = [text + part for text in prefixes for part in _sample(kind, value)[:3]]
        prefixes = longer[:3] or prefixes


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
    return iter([parts for parts in texts if parts[1]])


def slowest(pattern: str, flags: int, methods: Iterable[str]) -> str:
    """The text that takes too long, as words; "" where there is none."""
    compiled = re.compile(pattern, flags)
    suspects: list[tuple[float, str, tuple[str, str, str]]] = []
    for text in hostile(pattern, flags):
        for method in methods:
            for length in LENGTHS[:-1]:
                seconds = _seconds(compiled, method, text, length)
                if seconds > SECONDS:
                    return f"{method} of {text}, {length} characters: {seconds:.1f} s"
            suspects.append((seconds, method, text))
    for _, method, text in sorted(suspects, reverse=True)[:SUSPECTS]:
        seconds = _seconds(compiled, method, text, LENGTHS[-1])
        if seconds > max(SECONDS, GROWTH * _seconds(compiled, method, text, LENGTHS[-2])):
            return f"{method} of {text}, {LENGTHS[-1]} characters: {seconds:.1f} s"
    return ""


def _seconds(
    compiled: re.Pattern[Any], method: str, text: tuple[str, str, str], size: int
) -> float:
    """CPU time that a method takes for a text of this length.

    A long time is measured again: on a machine under load a single one may be many times as long.
    """
    seconds = _measured(compiled, method, text, size)
    return seconds if seconds < AGAIN else min(seconds, _measured(compiled, method, text, size))


def _measured(
    compiled: re.Pattern[Any], method: str, text: tuple[str, str, str], size: int
) -> float:
    prefix, unit, tail = text
    full_text: Any = prefix + unit * (size // len(unit) + 1) + tail
    empty_text: Any = ""
    if isinstance(compiled.pattern, bytes):
        full_text, empty_text = full_text.encode("utf-8", "replace"), b""
    run = getattr(compiled, method)
    arguments = (empty_text, full_text) if method in {"sub", "subn"} else (full_text,)
    gc.disable()  # its time depends on all objects of the tests
    try:
        start_time = time.process_time()
        result = run(*arguments)
        if method == "finditer":
            list(result)
        return time.process_time() - start_time
    finally:
        gc.enable()


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

"""The time of highlighting: code in every highlighted language, built from its lexer's patterns.

A lexer's rules are parsed (`re._parser`) and written out: a text that leads to a state, a match of a
rule in which one repeat is very long, and an end at which the match fails.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from pygments import lexers  # type: ignore[import-untyped, unused-ignore]

from halt.rendering.highlighting import ALIASES, HIGHLIGHTED_MAX
from halt.rendering.renderer import TEXT_WAIT, Renderer
from tests.fuzz.markdown import checked_html
from tests.fuzz.target import Finding, Target

parser: Any = re._parser  # there is no public module
codes: Any = re._constants

LONG = (30, 60, 300, 1000, 3000, 9000)  # counts of a repeat
ENDS = ("", "\0", "!", "\n", "a", " ", "'", '"', "\\", ")", ";")
SECONDS = 0.5  # of CPU in the calling process for one block
LATE = 10.0  # seconds beyond the renderer's own limit, for a busy machine
REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}
Rules = dict[str, list[tuple[Any, Any]]]  # state -> pattern and new state of each rule


@cache
def rules_of(language: str) -> tuple[Rules, dict[str, str]]:
    """A lexer's rules by state, and for each state a text that leads to it."""
    lexer = lexers.get_lexer_by_name(language)
    states: Rules = {}
    for name, rules in getattr(lexer, "_tokens", {}).items():
        matches = [(getattr(match, "__self__", None), new) for match, _, new in rules]
        states[name] = [
            (pattern, new) for pattern, new in matches if isinstance(pattern, re.Pattern)
        ]
    ways = {"root": ""} if "root" in states else {}
    waiting = list(ways)
    while waiting:
        state = waiting.pop(0)
        for pattern, new in states[state]:
            names = new if isinstance(new, tuple) else (new,)
            target = names[-1] if names and isinstance(names[-1], str) else None
            if target in states and target not in ways:
                ways[target] = ways[state] + Writer(random.Random(target), {}).pattern(pattern)
                waiting.append(target)
    return states, ways


class Writer:
    """Writes texts that a pattern matches, or nearly."""

    def __init__(self, rng: random.Random, times: dict[int, int]) -> None:
        """`times`: how often the repeat with this number, counted from 0, is written."""
        self._rng = rng
        self._times = times
        self._groups: dict[int, str] = {}
        self.repeats = 0

    def pattern(self, pattern: re.Pattern[str]) -> str:
        try:
            return self._all(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
        except (re.error, RecursionError, OverflowError):
            return ""

    def _all(self, nodes: Any) -> str:
        return "".join(self._one(kind, value) for kind, value in nodes)

    def _one(self, kind: Any, value: Any) -> str:
        if kind in REPEATS:
            return self._repeat(*value)
        if kind is codes.SUBPATTERN:
            group, _, _, inner = value
            text = self._all(inner)
            if group:
                self._groups[group] = text
            return text
        if kind is codes.BRANCH:
            return self._all(self._rng.choice(value[1]))
        if kind is codes.GROUPREF:
            return self._groups.get(value, "")
        if kind is codes.ATOMIC_GROUP:
            return self._all(value)
        if kind is codes.GROUPREF_EXISTS:
            return self._all(value[1])
        if kind is codes.ASSERT and value[0] > 0:
            return self._all(value[1]) if self._rng.random() < 0.3 else ""
        return self._character(kind, value)

    def _repeat(self, least: int, most: Any, inner: Any) -> str:
        rng = self._rng
        number, self.repeats = self.repeats, self.repeats + 1
        times = self._times.get(number)
        if times is None:
            times = rng.randrange(least, min(int(most), least + 2) + 1)
        times = max(least, min(times, int(most)))
        if times > 8:  # the same again, or two kinds of it in turn
            some = [self._all(inner) for _ in range(rng.choice((1, 1, 2)))]
            return "".join(some) * (times // len(some))
        return "".join(self._all(inner) for _ in range(times))

    def _character(self, kind: Any, value: Any) -> str:
        rng = self._rng
        if kind is codes.LITERAL:
            return chr(value)
        if kind is codes.IN:
            return self._in(value)
        if kind is codes.NOT_LITERAL:
            return next(char for char in rng.sample("ab1 \n-", 6) if ord(char) != value)
        return rng.choice("a1 ") if kind is codes.ANY else ""

    def _in(self, items: Any) -> str:
        rng = self._rng
        if items[0][0] is codes.NEGATE:
            excluded = "".join(map(self._member, items[1:]))
            choices = [char for char in "a1 \t\n-_.;\\'\"(" if char not in excluded]
            return rng.choice(choices or ["\u00e9"])
        return self._member(rng.choice(items))

    def _member(self, item: Any) -> str:
        kind, value = item
        if kind is codes.RANGE:
            return chr(self._rng.choice((value[0], value[1])))
        if kind is codes.CATEGORY:
            return {
                codes.CATEGORY_SPACE: self._rng.choice(" \t\n"),
                codes.CATEGORY_DIGIT: "1",
                codes.CATEGORY_WORD: self._rng.choice("a1_"),
            }.get(value, self._rng.choice("a;"))
        return chr(value) if kind is codes.LITERAL else ""


def repeats_in(pattern: re.Pattern[str]) -> int:
    """The number of repeats in a pattern, counted as Writer does."""
    writer = Writer(random.Random(0), {})
    writer.pattern(pattern)
    return writer.repeats


@cache
def repeating(language: str) -> list[tuple[str, re.Pattern[str], int]]:
    """A lexer's patterns with repeats: a text that leads to it, the pattern, the number of repeats."""
    states, ways = rules_of(language)
    return [
        (ways[state], pattern, count)
        for state in ways
        for pattern, _ in states[state]
        if (count := repeats_in(pattern))
    ]


class Lexers(Target):
    """A block of code in any language is rendered in time, and not by the calling process."""

    name = "lexers"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        languages = sorted(set(ALIASES.values()))
        while True:
            language = rng.choice(languages)
            if not (rules := repeating(language)):
                continue
            way, pattern, count = rng.choice(rules)
            times = {rng.randrange(count): rng.choice(LONG)}
            text = Writer(rng, times).pattern(pattern)
            if rng.random() < 0.5:
                text = text[: -rng.randrange(1, 4)]
            text = way + text + rng.choice(ENDS)
            if rng.random() < 0.3:
                text += (text[len(way) :] or "a") * 3
            yield json.dumps(packed(language, text[:HIGHLIGHTED_MAX])).encode()

    def __init__(self) -> None:
        self._renderer: Renderer | None = None

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()

    def check(self, data: bytes) -> None:
        block = unpacked(data)
        if block is None:
            return
        language, text = block
        renderer = self._renderer = self._renderer or Renderer()
        start, cpu = time.monotonic(), time.process_time()
        try:
            rendered = renderer.submit_text(text).result(TEXT_WAIT + LATE)
        except TimeoutError:
            after = time.monotonic() - start
            raise Finding(
                f"{language} is not rendered in time", f"nothing after {after:.1f} s"
            ) from None
        cpu_seconds = time.process_time() - cpu
        if cpu_seconds > SECONDS:
            detail = f"{cpu_seconds:.1f} s of CPU for {len(text)} characters"
            raise Finding(f"{language} is highlighted in the calling process", detail)
        checked_html(rendered.html)
        if "<code" not in rendered.html:
            raise Finding(f"{language} lost its code element", rendered.html[:300])


def packed(language: str, text: str) -> dict[str, Any]:
    """A text with its longest repeat written as a number."""
    best = max(
        re.finditer(r"(.{1,40}?)\1{8,}", text, re.DOTALL),
        key=lambda match: len(match[0]),
        default=None,
    )
    fields: dict[str, Any] = {
        "language": language,
        "before": text,
        "unit": "",
        "times": 0,
        "after": "",
    }
    if best is not None:
        unit = best[1]
        fields |= {
            "before": text[: best.start()],
            "unit": unit,
            "times": len(best[0]) // len(unit),
            "after": text[best.end() :],
        }
    return fields


def unpacked(data: bytes) -> tuple[str, str] | None:
    """The language and the Markdown of an input; None for an invalid input."""
    try:
        fields = json.loads(data)
        code = fields["before"] + fields["unit"] * min(fields["times"], 10**6) + fields["after"]
        language = fields["language"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(code, str) and isinstance(language, str)):
        return None
    return language, f"~~~~~~~~ {language}\n{code[:HIGHLIGHTED_MAX]}\n~~~~~~~~\n"

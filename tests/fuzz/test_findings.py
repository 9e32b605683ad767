"""Replays the fuzzer's fixed findings, and tests the fuzzer itself."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.__main__ import FINDINGS, fuzz, main
from tests.fuzz.target import Finding, Target, cpu_limit
from tests.fuzz.targets import TARGETS


def target_name(path: Path) -> str:
    """The target of a finding: the prefix of its file name."""
    return next(name for name in sorted(TARGETS, reverse=True) if path.name.startswith(f"{name}-"))


@pytest.fixture(scope="module")
def target_of() -> Iterator[Callable[[str], Target]]:
    """A function that returns a target by name; each is created once and closed at the end."""
    targets: dict[str, Target] = {}

    def of(name: str) -> Target:
        if name not in targets:
            targets[name] = TARGETS[name]()
        return targets[name]

    yield of
    for target in targets.values():
        target.close()


@pytest.mark.parametrize(
    "path", sorted(path for path in FINDINGS.iterdir()), ids=lambda path: path.name
)
def test_saved_finding_is_fixed(path: Path, target_of: Callable[[str], Target]) -> None:
    """A saved input that once failed now passes the check of its target."""
    finding = target_of(target_name(path)).attempt(path.read_bytes())
    assert finding is None, str(finding)


@pytest.mark.parametrize("name", ["chat", "http1", "markdown", "import"])
def test_same_seed_gives_the_same_inputs(name: str) -> None:
    """The same seed gives the same inputs, so that a finding can be reproduced."""
    first, second = (list(islice(TARGETS[name]().inputs(random.Random(7)), 5)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["chat", "anthropic", "http1", "markdown", "open-text"])
def test_quick_targets_pass_some_inputs(name: str) -> None:
    """The first inputs of a fixed seed pass, so the target works."""
    target = TARGETS[name]()
    for data in islice(target.inputs(random.Random(1)), 12):
        finding = target.attempt(data)
        assert finding is None, str(finding)


class Brittle(Target):
    """Fails for an `x` with a later `y`, and for every `z`."""

    name = "brittle"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            yield bytes(rng.choices(b"abcxyz", k=8))

    def check(self, data: bytes) -> None:
        if b"z" in data:
            raise ValueError("a z")
        if b"y" in data.partition(b"x")[2]:
            raise Finding("an x and a y", repr(data))


def test_finding_is_minimised_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are minimised and saved, one of each kind, whether the check or the tested code
    raises them.
    """
    assert fuzz(Brittle(), 1, 1.0, tmp_path) == 2
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"xy", b"z"]
    assert all(path.name.startswith("brittle-") for path in tmp_path.iterdir())
    assert "2 findings" in capsys.readouterr().out


def test_check_over_its_cpu_limit_is_a_finding() -> None:
    """A check over its limit of CPU time is a finding, also within a regular expression."""

    class Endless(Brittle):
        cpu_max = 0.1

        def check(self, data: bytes) -> None:
            re.fullmatch(r"(a*)*b", data.decode())

    finding = Endless().attempt(b"a" * 40)
    assert finding is not None
    assert finding.kind == "too long"
    with cpu_limit(60.0):
        pass  # an earlier limit does not reach a later block


def test_command_prints_seed_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints its seed, ends with status 0 if nothing is found, and lists the targets
    for an unknown one.
    """
    assert main(["--seconds", "0.3", "--seed", "3", "open-text"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("seed 3, 0.3 s for open-text\n")
    assert re.search(r"^open-text: \d+ inputs, 0 findings$", printed, re.MULTILINE)
    with pytest.raises(SystemExit) as refused:
        main(["nonsense"])
    assert refused.value.code == 2
    error_output = capsys.readouterr().err
    assert all(name in error_output for name in TARGETS)

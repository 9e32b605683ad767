"""`python -m tests.fuzz [--seconds N] [--seed S] [TARGET...]`; status 1 if there are findings."""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from functools import partial
from pathlib import Path

from tests.fuzz.target import Finding, Target, minimised, same_kind
from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
SECONDS = 600.0
KINDS_MAX = 100  # findings of one target in one run
MINIMISING = 10.0  # seconds for minimising one finding


def fuzz(target: Target, seed: int, seconds: float, folder: Path) -> int:
    """Try inputs for `seconds`, save each finding in the folder; the number of findings."""
    rng = random.Random(f"{seed} {target.name}")
    end = time.monotonic() + seconds
    findings: list[Finding] = []
    count = 0
    for data in target.inputs(rng):
        if time.monotonic() > end or len(findings) >= KINDS_MAX:
            break
        count += 1
        finding = target.attempt(data)
        if finding is None or any(same_kind(earlier, finding) for earlier in findings):
            continue
        findings.append(finding)
        minimised_input = minimised(
            data,
            partial(_is_same, target, finding),
            partial(_is_past, time.monotonic() + MINIMISING),
        )
        path = folder / f"{target.name}-{hashlib.sha256(minimised_input).hexdigest()[:10]}"
        path.write_bytes(minimised_input)
        reproduced = target.attempt(minimised_input) or finding
        print(
            f"\n{target.name}: input {count}, saved as {path}\n{minimised_input[:300]!r}\n{reproduced}\n"
        )
    print(f"{target.name}: {count:,} inputs, {len(findings)} findings", flush=True)
    return len(findings)


def _is_same(target: Target, finding: Finding, data: bytes) -> bool:
    return same_kind(finding, target.attempt(data))


def _is_past(end: float) -> bool:
    return time.monotonic() > end


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None, help="printed, and random by default")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="where findings are saved")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}. There are: {', '.join(TARGETS)}")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    names = options.targets or list(TARGETS)
    print(f"seed {seed}, {options.seconds:g} s for {', '.join(names)}", flush=True)
    options.findings.mkdir(exist_ok=True)
    count = 0
    for name in names:
        target = TARGETS[name]()
        try:
            count += fuzz(target, seed, options.seconds / len(names), options.findings)
        finally:
            target.close()
    if count:
        print(f"{count} findings. Each file in {options.findings} is replayed by the tests.")
        print(f"The same inputs again: python -m tests.fuzz --seed {seed} {' '.join(names)}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())

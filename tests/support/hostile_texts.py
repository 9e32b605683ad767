"""Texts of models that take long to render: the kinds of tests/cases/hostile_texts.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Each kind by its name: `unit` is repeated `times` between `before` and `after`.
HOSTILE_TEXTS: dict[str, dict[str, Any]] = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "cases/hostile_texts.json").read_text())
}


def text_of(case: Mapping[str, Any]) -> str:
    """The text of a case, as a model writes it; a fenced code block if the case has a language."""
    text = f"{case['before']}{case['unit'] * case['times']}{case['after']}"
    language = case.get("language")
    return f"```{language}\n{text}\n```\n" if language else text


def of_size(case: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The case with its unit repeated until it has about `size` characters."""
    return {**case, "times": size // len(case["unit"])}

"""The findings of a run of checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from halt.doctor.cancellation import Cancellation
from halt.doctor.remedies import COMMAND, ENVIRONMENT, LISTED_REMEDIES, REMEDIES
from halt.redaction import without_secrets
from halt.rendering.plain_lines import one_line

TEXT_MAX = 400  # characters of a finding

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check; `remedy` is None if the status is "ok"."""

    name: str
    status: Status
    text: str
    remedy: str | None = None

    @property
    def line(self) -> str:
        """The finding as a line of text."""
        end = "" if not self.remedy or self.text.endswith((".", "!", "?", "…")) else "."
        remedy = f"{end} {self.remedy}" if self.remedy else ""
        return f"{self.status:<4}  {self.name}: {self.text}{remedy}"


class Report:
    """The findings of a run of checks. Calls `on_finding` with each, unless it is None.

    The checks look at `cancellation` wherever they wait. Findings hold none of `secrets`.
    """

    def __init__(
        self,
        on_finding: Callable[[Finding], object] | None,
        cancellation: Cancellation | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self.cancellation = cancellation or Cancellation()
        self.part = ""  # prefix of the findings' names, if there are several providers
        self.names: Mapping[str, str] = ENVIRONMENT["openai"]  # names of settings, for remedies
        self.phrases: Mapping[str, str] = {}  # words of errors -> words that replace them
        self.secrets: tuple[str, ...] = ()
        self.is_listed = False  # the address has returned a list of models
        self._on_finding = on_finding
        self._folded: list[Finding] | None = None  # findings that become one

    @property
    def is_well(self) -> bool:
        """Whether no check has failed."""
        return all(finding.status != "fail" for finding in self.findings)

    def ok(self, name: str, text: str) -> None:
        """Add a check that passed."""
        self._add(name, "ok", text)

    def warn(self, name: str, text: str, remedy: str) -> None:
        """Add a check that found a limitation; the installation works."""
        self._add(name, "warn", text, remedy)

    def fail(self, name: str, text: str, remedy: str) -> None:
        """Add a check that failed."""
        self._add(name, "fail", text, remedy)

    def remedy(self, code: str) -> str:
        """The remedy for an error of this code, with the names of the settings to change."""
        general = REMEDIES.get(code, "Look at the log of the model's server.")
        return self.worded(LISTED_REMEDIES.get(code, general) if self.is_listed else general)

    def worded(self, remedy: str) -> str:
        """A remedy with the names of settings, and words, in place of its placeholders."""
        return remedy.format_map({**COMMAND, **self.names})

    @contextlib.contextmanager
    def folded(
        self, name: str, is_left_out: Callable[[Finding], bool] = lambda _: False
    ) -> Iterator[None]:
        """Context manager: the findings of the block become one, if there are any.

        After a failure it is that; else it has the texts of all, except the good findings of which
        `is_left_out` is true.
        """
        group: list[Finding] = []
        self._folded = group
        try:
            yield
        finally:
            self._folded = None
        failed = [finding for finding in group if finding.status == "fail"]
        shown = failed[:1] or [
            finding for finding in group if finding.status != "ok" or not is_left_out(finding)
        ]
        if shown:
            status: Status = "fail" if failed else "warn" if _has_warning(shown) else "ok"
            text = "; ".join(finding.text.removesuffix(".") for finding in shown)
            remedy = " ".join(finding.remedy for finding in shown if finding.remedy)
            self._add(name, status, failed[0].text if failed else text, remedy or None)

    def as_json(self) -> str:
        """All findings as a JSON object."""
        return msgspec.json.encode({"ok": self.is_well, "findings": self.findings}).decode()

    def without_secrets(self, text: str) -> str:
        """The text with "[key]" in place of each secret."""
        return without_secrets(text, self.secrets)

    def _add(self, name: str, status: Status, text: str, remedy: str | None = None) -> None:
        for words, replacement in self.phrases.items():
            text = text.replace(words, replacement)
        text = one_line(self.without_secrets(text), TEXT_MAX)
        remedy = remedy and self.without_secrets(remedy)
        if self._folded is not None:
            self._folded.append(Finding(name, status, text, remedy))
            return
        finding = Finding(self.part + name, status, text, remedy)
        self.findings.append(finding)
        if self._on_finding is not None:
            self._on_finding(finding)


def _has_warning(findings: Sequence[Finding]) -> bool:
    return any(finding.status == "warn" for finding in findings)


def milliseconds(spent: float) -> str:
    """A duration in seconds as text in milliseconds: "120 ms"."""
    return f"{spent * 1000:.0f} ms"

"""The command `doctor`, run in this process, and its findings."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from halt.app import create_app
from halt.config.environment import load

PACED = "count?rate=60&n=30"  # slow enough to detect a buffer on the way
#: Prompts that make the fake ignore its model. Delays of a busy machine are short beside two seconds.
TWO_SECONDS = "/fake count?rate=15&n=30"
ENDLESS = "/fake count?rate=60&n=1000000"


class DoctorReport(NamedTuple):
    """The result of one run of the command."""

    exit_code: int
    findings: dict[str, Any]
    text: str

    def remedy(self, name: str) -> str:
        """The remedy of this finding."""
        return str(self.findings[name]["remedy"])

    def text_of(self, name: str) -> str:
        """The text of this finding."""
        return str(self.findings[name]["text"])

    def statuses(self) -> dict[str, str]:
        """The status of each finding, by name."""
        return {name: str(f["status"]) for name, f in self.findings.items()}


def doctor(*args: str, **settings: str) -> DoctorReport:
    """Run the command with these settings."""
    application = create_app(load({"OPENAI_API_KEY": "fake-key-of-tests", **settings}))
    result = application.test_cli_runner().invoke(args=["doctor", *args, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "fake-key-of-tests" not in result.output
    report = json.loads(result.output)
    assert report["ok"] == (result.exit_code == 0)
    findings = {f["name"]: f for f in report["findings"]}
    assert all(f["remedy"] for f in findings.values() if f["status"] != "ok")
    return DoctorReport(result.exit_code, findings, result.output)


def doctor_of_proxy(url: str, *args: str) -> DoctorReport:
    """Run the command with the address of a Halt, and no model set up here."""
    return doctor(url, *args, OPENAI_API_KEY="")

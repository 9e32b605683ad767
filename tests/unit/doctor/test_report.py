"""The report of a run of checks: folded findings, hidden secrets, words; and the checks' end."""

from __future__ import annotations

import contextlib
import threading

import pytest

from halt.doctor import remedies
from halt.doctor.cancellation import Cancellation, ChecksEnded
from halt.doctor.models import FINAL, UNREACHED
from halt.doctor.report import Finding, Report
from halt.errors import CODES
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

# --- findings -------------------------------------------------------------------------------------


def test_folded_findings_become_one() -> None:
    """Good texts are joined, except those left out; a warning keeps the good ones beside it."""
    report = Report(None)
    with report.folded("one", lambda finding: finding.name == "b"):
        report.ok("a", "first")
        report.ok("b", "second")
        report.ok("c", "third")
    with report.folded("two"):
        report.ok("a", "first")
        report.warn("b", "second.", "Mend it.")
    assert report.findings == [
        Finding("one", "ok", "first; third"),
        Finding("two", "warn", "first; second", "Mend it."),
    ]


def test_folded_failure_stands_alone() -> None:
    """A failure is the whole finding; without findings, and after an exception, there is none."""
    report = Report(None)
    with report.folded("none"):
        pass
    with contextlib.suppress(ChecksEnded), report.folded("ended"):
        report.ok("a", "first")
        raise ChecksEnded
    with report.folded("one"):
        report.ok("a", "first")
        report.fail("b", "second.", "Mend it.")
    report.ok("after", "apart")
    assert report.findings == [
        Finding("one", "fail", "second.", "Mend it."),
        Finding("after", "ok", "apart"),
    ]


def test_secrets_are_in_no_text_and_no_remedy() -> None:
    """Each secret is replaced, also where it is quoted for a URL, and one that contains another."""
    report = Report(None)
    report.secrets = ("secret/word", "secret/word-and-more", "none")
    report.fail("a", "secret/word-and-more secret%2Fword none", "Not secret/word.")
    assert report.findings == [Finding("a", "fail", "[key] [key] none", "Not [key].")]


@pytest.mark.parametrize(
    "names", [*remedies.ENVIRONMENT.values(), remedies.CONNECTED, remedies.PAGE]
)
def test_every_remedy_has_words_for_its_placeholders(names: dict[str, str]) -> None:
    """No placeholder remains, and on the page no remedy speaks of the command."""
    report = Report(None)
    report.names = names
    for code in CODES:
        for report.is_listed in (False, True):
            remedy = report.remedy(code)
            assert not {"{", "}"} & set(remedy)
            if names is remedies.PAGE:
                assert "doctor" not in remedy
                assert "--timeout" not in remedy


def test_codes_of_models_and_remedies_exist() -> None:
    """Each code that the checks know is one of an error."""
    assert (FINAL | UNREACHED | remedies.REMEDIES.keys()) <= CODES.keys()
    assert remedies.LISTED_REMEDIES.keys() <= remedies.REMEDIES.keys()
    assert {code for code in CODES if code.startswith("upstream_tls")} <= UNREACHED


# --- their end ------------------------------------------------------------------------------------


def test_cancel_ends_what_is_under_way() -> None:
    """Every block that has been entered is interrupted, the inner one first."""
    cancellation, order = Cancellation(), list[str]()
    with pytest.raises(ChecksEnded), cancellation.interrupting(lambda: order.append("outer")):
        with cancellation.interrupting(lambda: order.append("inner")):
            cancellation.cancel()
    assert order == ["inner", "outer"]
    with pytest.raises(ChecksEnded), cancellation.interrupting(lambda: order.append("late")):
        pytest.fail("it was entered")
    assert order == ["inner", "outer"]


def test_cancel_replaces_the_fault_of_a_block() -> None:
    """What an interrupted block raises is no fault of the server."""
    cancellation = Cancellation()

    def read() -> None:
        with cancellation.interrupting(bool):
            cancellation.cancel()
            raise OSError("interrupted")

    with pytest.raises(ChecksEnded):
        read()


def test_cancel_wakes_a_pause() -> None:
    """A pause ends at once; one that begins later does not begin."""
    cancellation, began = Cancellation(), threading.Event()

    def pause() -> None:
        began.set()
        cancellation.pause(60.0)

    call = BackgroundCall(pause)
    assert began.wait(WAIT_TIMEOUT)
    cancellation.cancel()
    assert isinstance(call.end(), ChecksEnded)
    with pytest.raises(ChecksEnded):
        cancellation.pause(60.0)

"""Tries a provider before it is saved: a finding about each of address, key, models, answer, stop.

A trial requests the list of models and two answers, both of which it stops early: the first after
PIECES pieces, the second at its first. It takes TRIAL_SECONDS at most.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace

from halt.config.addresses import is_base_url
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.service import GenerationService
from halt.doctor.answers import check_answer
from halt.doctor.cancellation import Cancellation, ChecksEnded
from halt.doctor.models import check_models
from halt.doctor.providers import Make, check_address
from halt.doctor.remedies import ADDRESS_PHRASES, PAGE
from halt.doctor.report import Finding, Report
from halt.doctor.running_requests import ServerLoad
from halt.doctor.stop import check_stop
from halt.errors import HaltError

TRIAL_SECONDS = 60.0  # a whole trial
SILENCE_MAX = 15.0  # seconds without anything from the server
PIECES = 60  # of the first answer: enough to see whether they arrive one by one
ADDRESS_FORM = "use http(s)://HOST[:PORT]/PATH, without ? or #"

#: Words of errors that name settings, which a trial does not have, and what replaces them.
PHRASES = {
    f": {setting} sets this limit": ""
    for setting in ("HALT_FIRST_BYTE_TIMEOUT", "HALT_GAP_TIMEOUT", "HALT_RUN_TIMEOUT")
}
PHRASES[": HALT_CONNECT_TIMEOUT."] = "."

logger = logging.getLogger(__name__)


def try_provider(
    settings: ProviderSettings,
    config: Config,
    make: Make,
    on_finding: Callable[[Finding], object],
    cancellation: Cancellation,
    model: str = "",
    names: Mapping[str, str] = PAGE,
) -> bool:
    """Check this provider, which need not be saved; return whether no check has failed.

    `on_finding` is called in this thread with each finding, and must not raise. `model` answers;
    empty: the provider's first. `cancellation` ends the trial at once, without a finding about it;
    the result is False. `names`: of the fields or arguments that hold the settings. Raises nothing:
    an unexpected exception is logged and becomes a finding.
    """
    report = Report(on_finding, cancellation)
    report.names, report.secrets = names, settings.secrets
    report.phrases = PHRASES | dict.fromkeys(ADDRESS_PHRASES, names["address"])
    settings = replace(
        settings,
        default_model=model or settings.default_model,
        connect_timeout=min(settings.connect_timeout, SILENCE_MAX),
    )
    config = replace(
        config,
        retries=0,
        first_byte_timeout=min(config.first_byte_timeout, SILENCE_MAX),
        gap_timeout=min(config.gap_timeout, SILENCE_MAX),
        exact_usage=False,  # it would read a stopped answer to its end
    )
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        cancellation.cancel()

    try:
        limit = threading.Timer(TRIAL_SECONDS, end)
        limit.daemon = True
        limit.start()
        try:
            _check(report, settings, config, make)
        finally:
            limit.cancel()
    except ChecksEnded:
        if is_late.is_set():
            text = f"the checks took longer than {TRIAL_SECONDS:g} s, so the rest was not checked."
            report.fail("time", text, "Look at the log of the model's server, then try again.")
        return False
    except HaltError as error:
        report.fail("trial", error.message, "Try again.")
    except Exception as exc:  # noqa: BLE001 - logged
        text = report.without_secrets("".join(traceback.format_exception(exc)))
        logger.error("a trial of a provider failed: %s", text)
        report.fail("trial", "Halt had an internal error.", "Look at Halt's log.")
    return report.is_well


def _check(report: Report, settings: ProviderSettings, config: Config, make: Make) -> None:
    """The checks in their order, up to the first that fails. Raises ChecksEnded."""
    if not is_base_url(settings.base_url):
        report.fail("address", "this is no address.", f"Correct Address: {ADDRESS_FORM}.")
        return
    with report.folded("address", lambda finding: finding.name == "name"):
        if not check_address(report, settings):
            return
    with closing(make(config, settings)) as generations:
        if check_models(report, settings, generations):
            _check_answers(report, settings, generations)


def _check_answers(
    report: Report, settings: ProviderSettings, generations: GenerationService
) -> None:
    with report.folded("answer"):
        figures = check_answer(report, generations, PIECES)
    if figures is None:
        return
    if not any(finding.name == "key" for finding in report.findings):  # there was no list
        report.ok("key", "none is needed" if settings.key == "none" else "accepted")
    if figures.chunks == 1:  # the second answer would have to be written, and paid for, to its end
        text = "not checked: the answer came in 1 piece, so there is nothing to stop."
        report.warn("stop", text, "Turn on streaming in the model's server, then try again.")
        return
    load = ServerLoad(settings, generations.upstream.known_model, report.cancellation)
    with closing(load), report.folded("stop", _is_unknown):
        check_stop(report, generations, load)


def _is_unknown(finding: Finding) -> bool:
    """Whether the finding is that it is not known whether the model stops."""
    return finding.text.startswith("not known")

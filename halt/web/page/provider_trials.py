"""Try: the checks of a provider that is not saved yet, each result as a line.

The page's script asks for an event stream, and shows each line as it comes. Without the script the
response is the page with all lines. The typed secrets are in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, current_app, request

from halt.connected.details import Details
from halt.doctor.report import Finding
from halt.errors import Draining, RequestError
from halt.web.event_stream import SSE_HEADERS
from halt.web.requests import client_socket
from halt.web.services import services
from halt.web.trials import Trial

COMMENT = ":\n\n"  # of an event stream: makes the server send the head, and notice a departure


def start(details: Details, name: str = "") -> Trial:
    """Try what was typed; `name`: of the provider that is changed. Raises RequestError."""
    connected = services().connected
    row, secrets = connected.prepared(details, name)
    saved = next((each for each in connected.snapshot.providers if each.name == row.name), None)
    is_kept = saved is not None and saved.base_url == row.base_url and not details.without_key
    if saved is not None and is_kept and not details.key and connected.is_key_lost(saved):
        raise RequestError("The saved key cannot be read any more: type it again.", field="key")
    settings = connected.settings_for(row, secrets)
    return services().trials.start(settings, services().config, services().instance_id)


def results(trial: Trial, page: Callable[..., str]) -> Response | str:
    """The results of a trial: for the page's script as they come, else on `page` with the form."""
    if "text/event-stream" in request.headers.get("Accept", ""):
        return _lines(trial)
    findings = _all_findings(trial)
    return page(findings=findings, is_well=trial.is_well)


def _lines(trial: Trial) -> Response:
    """The findings as events, each with the HTML of its line; the last one tells the result."""
    found = _findings(trial)
    macros: Any = current_app.jinja_env.get_template("providers_trial.html").module

    def frames() -> Iterator[str]:
        yield COMMENT
        for finding in found:
            yield COMMENT if finding is None else _event(macros.line(finding))
        if not trial.is_cancelled:
            yield _event(macros.end(trial.is_well))

    response = Response(frames(), headers=SSE_HEADERS)
    response.call_on_close(trial.cancel)
    return response


def _all_findings(trial: Trial) -> list[Finding]:
    """The findings, when all are there. Raises Draining where the server ended the trial."""
    found = [finding for finding in _findings(trial) if finding is not None]
    if trial.is_cancelled:  # nobody reads the response where the client has left
        raise Draining("The server is about to restart. Try again.")
    return found


def _findings(trial: Trial) -> Any:
    return trial.findings(services().generations, client_socket())


def _event(html: str) -> str:
    return f"data: {' '.join(html.split())}\n\n"

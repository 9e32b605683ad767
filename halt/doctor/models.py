"""Checks the key and the list of models of a provider."""

from __future__ import annotations

from urllib.parse import urlsplit

from halt.clock import now
from halt.config.providers import ProviderSettings
from halt.core.connection import limited_connection
from halt.core.service import GenerationService
from halt.doctor.report import Report, milliseconds
from halt.errors import HaltError
from halt.providers import base

NO_LIST = "the server has no list of models."
LIST_TIMEOUT = 10.0  # seconds for the list of models


def check_models(
    report: Report, provider: ProviderSettings, generations: GenerationService
) -> bool:
    """Check the key and the list of models; whether an answer can be requested."""
    upstream = generations.upstream
    model = upstream.known_model
    began = now()
    try:
        with (
            limited_connection(
                min(LIST_TIMEOUT, generations.config.first_byte_timeout)
            ) as connection,
            report.cancellation.interrupting(connection.interrupt),
        ):
            if provider.models:  # named in the settings; the server may have no list
                upstream.check(connection)
            names = upstream.models(connection)
    except HaltError as error:
        if connection.interrupted:
            remedy = report.remedy("first_byte_timeout")
            report.fail("models", "no response to the request for the list of models.", remedy)
            return False
        return _no_list(report, provider, model, error)
    report.is_listed = True
    report.ok(
        "key", "none is needed" if provider.key == "none" else "accepted for the list of models"
    )
    spent = milliseconds(now() - began)
    if not names and model:
        remedy = f"No action is needed if {report.names['model']} is correct."
        report.warn("models", "the server's list is empty.", remedy)
    elif not names and provider.kind == "azure":  # its list does not say what is deployed
        remedy = f"Set {report.names['model']} to the name of a deployment."
        report.fail("models", "no deployment is named.", remedy)
        return False
    elif not names:
        remedy = f"Load a model on the server, or set {report.names['model']} to one."
        report.fail("models", "the server has no models.", remedy)
        return False
    elif model and model not in names:
        report.warn(
            "models",
            f"{model} is not among the {len(names)} models of the list.",
            f"Set {report.names['model']} to one of them, for example {names[0]}.",
        )
    else:
        report.ok("models", f"{len(names)} ({spent}){f'; {model} answers' if model else ''}")
    return True


#: Codes of list errors after which a request for an answer would fail too, so none is made.
FINAL = frozenset({"unauthorized", "no_model"})
UNREACHED = frozenset(
    {
        "upstream_refused",
        "upstream_dns",
        "upstream_tls",
        "upstream_no_tls",
        "upstream_tls_timeout",
        "upstream_connect_timeout",
        "upstream_unreachable",
        "address_refused",
    }
)


def _no_list(report: Report, provider: ProviderSettings, model: str, error: HaltError) -> bool:
    """Report why there is no list of models; whether an answer can be requested all the same."""
    name = "key" if error.code in {"unauthorized", "forbidden"} else "models"
    setting = report.names["model"]
    sentence = base.no_list(provider)
    is_missing = sentence in error.message  # else for example a redirect
    if model and error.code not in FINAL and error.code not in UNREACHED:
        remedy = f"No action is needed if {setting} is correct: {model} is used."
        report.warn(name, NO_LIST if is_missing else error.message, remedy)
        return True
    if is_missing:
        is_whole = provider.kind != "openai" or base.API_PATH.search(
            urlsplit(provider.base_url).path
        )
        what = f"et {setting} to a model that the server has."
        remedy = f"S{what}" if is_whole else f"{report.remedy(error.code)} If it does: s{what}"
        # The error's sentence names a setting that the remedy names too.
        report.fail(name, error.message.replace(sentence, NO_LIST), remedy)
    else:
        remedy = report.remedy(error.code)
        if error.code == "upstream_dropped" and provider.base_url.startswith("http:"):
            remedy = (
                f"If the server uses TLS, begin {report.names['address']} with https://. {remedy}"
            )
        report.fail(name, error.message, remedy)
    return False

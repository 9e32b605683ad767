"""The findings of `doctor`, and the remedy for each error code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from halt.rendering.plain_lines import one_line

TEXT_MAX = 400  # characters of a finding

Status = Literal["ok", "warn", "fail"]

_LOOK_AT_LOGS = "Look at the log of the model's server, and at proxies before it."
_NO_TLS = "Correct {address}: the address of a server without TLS begins with http://."
_WRONG_ADDRESS = (
    "Correct {address}: it must be the address of the API, up to and with /v1 if its paths have it."
)
#: Remedy for each code of an UpstreamError. Placeholders in braces are names of settings.
REMEDIES = {
    "upstream_refused": "Start the model's server, or correct {address}.",
    "upstream_dns": "Correct the name in {address}, or this machine's DNS settings.",
    "upstream_tls": "Give the server a certificate for this name; for your own certificate "
    "authority set SSL_CERT_FILE.",
    "upstream_no_tls": _NO_TLS,
    "upstream_tls_timeout": _NO_TLS,
    "upstream_connect_timeout": "Correct {address}, or look for a firewall that blocks it.",
    "upstream_unreachable": "Correct {address}, or look for a firewall or proxy that blocks it.",
    "address_refused": "Correct {address}, or set HALT_ALLOW_LINK_LOCAL=1 if the model's server is "
    "there.",
    "upstream_dropped": _LOOK_AT_LOGS,
    "upstream_incomplete": _LOOK_AT_LOGS,
    "bad_request": "Correct what the server's message names, or set {model} to another model.",
    "context_too_long": "Load the model with a longer context.",
    "unauthorized": "Set {key} to a key of this server.",
    "forbidden": "Use a key that is allowed to do this, or set {model} to another model.",
    "region_not_supported": "Another key does not help. Use a provider for this country: set "
    "{address}, {key} and {model}.",
    "content_filter": "Check the content rules of the server, or set {model} to another model.",
    "quota_exceeded": "Add credit to the account of this key, or raise its limit.",
    "model_not_found": "Set {model} to a model of this server.",
    "endpoint_not_found": _WRONG_ADDRESS,
    "model_loading": "Wait until the model is loaded, then run doctor again, or raise --timeout.",
    "rate_limited": "Wait and run doctor again, or raise the limits of your account.",
    "upstream_invalid": _WRONG_ADDRESS,
    "upstream_web_page": f"{_WRONG_ADDRESS} If the network requires a sign-in, sign in first.",
    "first_byte_timeout": "Check whether the model's server has loaded the model and is not busy, "
    "or raise --timeout.",
    "stalled": "Look at the log of the model's server, and at proxies before it.",
    "no_model": "Set OPENAI_API_KEY or OPENAI_BASE_URL.",
}
#: Remedies that replace those of REMEDIES if the address has returned a list of models.
LISTED_REMEDIES = {
    "endpoint_not_found": "The list of models is at {address}, but chat completions are not. See "
    "the server's documentation for the address of its OpenAI-compatible API.",
    "upstream_invalid": "{address} is correct. Look at the server's log and version, and at "
    "gateways before it.",
}

#: Names of a provider's settings in the environment, by kind of provider.
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "openai": {"address": "OPENAI_BASE_URL", "key": "OPENAI_API_KEY", "model": "HALT_MODEL"},
    "azure": {
        "address": "AZURE_OPENAI_ENDPOINT",
        "key": "AZURE_OPENAI_API_KEY",
        "model": "AZURE_OPENAI_DEPLOYMENT",
    },
    "anthropic": {
        "address": "ANTHROPIC_BASE_URL",
        "key": "ANTHROPIC_API_KEY",
        "model": "HALT_MODEL",
    },
}


@dataclass(frozen=True)
class Finding:
    """The result of one check; `remedy` is None if the status is "ok"."""

    name: str
    status: Status
    text: str
    remedy: str | None = None


class Report:
    """Collects findings and calls `print_line` with each as a line; None prints nothing."""

    def __init__(self, print_line: Callable[[str], object] | None) -> None:
        self.findings: list[Finding] = []
        self.part = ""  # prefix of the findings' names, if there are several providers
        self.names: Mapping[str, str] = ENVIRONMENT["openai"]  # names of settings, for remedies
        self.limit_options: Mapping[str, str] = {}  # setting of a limit -> option that replaces it
        self.is_listed = False  # the address has returned a list of models
        self._print_line = print_line

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
        remedy = LISTED_REMEDIES.get(code, general) if self.is_listed else general
        return remedy.format_map(self.names)

    def as_json(self) -> str:
        """All findings as a JSON object."""
        return msgspec.json.encode({"ok": self.is_well, "findings": self.findings}).decode()

    def _add(self, name: str, status: Status, text: str, remedy: str | None = None) -> None:
        for setting, option in self.limit_options.items():
            text = text.replace(f"{setting} sets this limit", f"{option} sets this limit")
        finding = Finding(self.part + name, status, one_line(text, TEXT_MAX), remedy)
        self.findings.append(finding)
        if self._print_line is not None:
            end = "" if not finding.remedy or finding.text.endswith((".", "!", "?", "…")) else "."
            remedy_text = f"{end} {finding.remedy}" if finding.remedy else ""
            self._print_line(f"{finding.status:<4}  {finding.name}: {finding.text}{remedy_text}")


def milliseconds(spent: float) -> str:
    """A duration in seconds as text in milliseconds: "120 ms"."""
    return f"{spent * 1000:.0f} ms"

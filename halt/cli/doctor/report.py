"""The doctor's findings, one after the other, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from halt.cli.screen import one_line

TEXT_MAX = 400  # characters of a finding

Status = Literal["ok", "warn", "fail"]

_LOOK_AT_LOGS = "Look at the server's own log, and at proxies on the way."
_NO_TLS = "Correct {address}: a server without TLS has one with http://."
_WRONG_ADDRESS = (
    "Correct {address}: it must lead to the API, up to and with /v1 where the API's paths begin so."
)
#: What to do about each code of an UpstreamError, beside what its sentence says and what the server
#: said; in braces the names of settings.
REMEDIES = {
    "upstream_refused": "Start the model's server, or correct {address}.",
    "upstream_dns": "Correct the name in {address}, or this machine's resolver.",
    "upstream_tls": "Give the server a certificate for this name; for an authority of your own "
    "set SSL_CERT_FILE.",
    "upstream_no_tls": _NO_TLS,
    "upstream_tls_timeout": _NO_TLS,
    "upstream_connect_timeout": "Look for a firewall on the way; correct {address}.",
    "upstream_unreachable": "Correct {address}; look for a firewall or proxy on the way.",
    "upstream_dropped": _LOOK_AT_LOGS,
    "upstream_incomplete": _LOOK_AT_LOGS,
    "bad_request": "Change what the server names in its answer, or set {model} to another model.",
    "context_too_long": "Load the model with a longer context.",
    "unauthorized": "Set {key} to a key of this server.",
    "forbidden": "Use a key that may do this, or set {model} to another model.",
    "region_not_supported": "No other key helps. Use a provider that serves this country: set "
    "{address}, {key} and {model}.",
    "content_filter": "Look at the rules of the server, or set {model} to another model.",
    "quota_exceeded": "Add credit to the account of this key, or raise its limit.",
    "model_not_found": "Set {model} to a model of this server.",
    "endpoint_not_found": _WRONG_ADDRESS,
    "model_loading": "Wait until the model is loaded, then ask again; or allow more with "
    "--timeout.",
    "rate_limited": "Wait, or raise the limits of your account.",
    "upstream_invalid": _WRONG_ADDRESS,
    "upstream_web_page": f"{_WRONG_ADDRESS} Where the network wants a sign-in, sign in.",
    "first_byte_timeout": "Look at the model's server: is the model loaded, is it busy? "
    "Or allow more with --timeout.",
    "stalled": "Look at the model's server and at proxies on the way.",
    "no_model": "Set OPENAI_API_KEY or OPENAI_BASE_URL.",
}
#: The same for an answer, where the list of models has come from the address.
LISTED_REMEDIES = {
    "endpoint_not_found": "The list of models is at {address}, chat completions are not: look in "
    "the server's documentation for the address of its OpenAI-compatible API.",
    "upstream_invalid": "{address} leads to the server: look at its own log, at its version, and "
    "at gateways on the way.",
}

#: What the settings of a provider are called in the environment, and in a file.
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
    """One thing that was looked at, in plain words; `remedy` where it is not well."""

    name: str
    status: Status
    text: str
    remedy: str | None = None


class Report:
    """Findings as they come. `say` is given a line for each, None for silence."""

    def __init__(self, say: Callable[[str], object] | None) -> None:
        self.findings: list[Finding] = []
        self.part = ""  # put before the names of findings, where several things are looked at
        self.names: Mapping[str, str] = ENVIRONMENT["openai"]  # of the settings, for remedies
        self.is_listed = False  # the address has brought a list of models
        self._say = say

    @property
    def is_well(self) -> bool:
        """Nothing has failed."""
        return all(each.status != "fail" for each in self.findings)

    def ok(self, name: str, text: str) -> None:
        """All is well with this."""
        self._add(name, "ok", text)

    def warn(self, name: str, text: str, remedy: str) -> None:
        """It works, not as well as it could."""
        self._add(name, "warn", text, remedy)

    def fail(self, name: str, text: str, remedy: str) -> None:
        """It does not work."""
        self._add(name, "fail", text, remedy)

    def remedy(self, code: str) -> str:
        """What to do about an error of this code, in the names of the settings at fault."""
        usual = REMEDIES.get(code, "Look at the server's own log.")
        chosen = LISTED_REMEDIES.get(code, usual) if self.is_listed else usual
        return chosen.format_map(self.names)

    def as_json(self) -> str:
        """All of it for a machine."""
        return msgspec.json.encode({"ok": self.is_well, "findings": self.findings}).decode()

    def _add(self, name: str, status: Status, text: str, remedy: str | None = None) -> None:
        finding = Finding(self.part + name, status, one_line(text, TEXT_MAX), remedy)
        self.findings.append(finding)
        if self._say is not None:
            end = "" if not finding.remedy or finding.text.endswith((".", "!", "?", "…")) else "."
            cure = f"{end} {finding.remedy}" if finding.remedy else ""
            self._say(f"{finding.status:<4}  {finding.name}: {finding.text}{cure}")


def milliseconds(spent: float) -> str:
    """Seconds as milliseconds, in words."""
    return f"{spent * 1000:.0f} ms"

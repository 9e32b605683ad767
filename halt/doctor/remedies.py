"""The remedy for each error code, and the words for a provider's settings in remedies."""

from __future__ import annotations

from collections.abc import Mapping

from halt.providers.base import ADDRESS_ON_PAGE

_LOOK_AT_LOGS = "Look at the log of the model's server, and at proxies before it."
_NO_TLS = "Correct {address}: the address of a server without TLS begins with http://."
_WRONG_ADDRESS = (
    "Correct {address}: it must be the address of the API, up to and with /v1 if its paths have it."
)
#: Remedy for each code of an UpstreamError. Placeholders in braces are names of settings, or words
#: of COMMAND.
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
    "loop_detected": "Set {address} to that of a model's server.",
    "model_loading": "Wait until the model is loaded, then {again}{longer}.",
    "rate_limited": "Wait and {again}, or raise the limits of your account.",
    "upstream_invalid": _WRONG_ADDRESS,
    "upstream_web_page": f"{_WRONG_ADDRESS} If the network requires a sign-in, sign in first.",
    "first_byte_timeout": "Check whether the model's server has loaded the model and is not busy, "
    "then {again}{longer}.",
    "stalled": _LOOK_AT_LOGS,
    "no_model": "Connect one (halt-chat connect URL), or set OPENAI_API_KEY or OPENAI_BASE_URL.",
}
#: Remedies that replace those of REMEDIES if the address has returned a list of models.
LISTED_REMEDIES = {
    "endpoint_not_found": "The list of models is at {address}, but chat completions are not. See "
    "the server's documentation for the address of its OpenAI-compatible API.",
    "upstream_invalid": "{address} is correct. Look at the server's log and version, and at "
    "gateways before it.",
}

#: Words for the command `doctor`; the names of a provider's settings may replace them.
COMMAND: Mapping[str, str] = {"again": "run doctor again", "longer": ", or raise --timeout"}

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
#: Names of the fields of a connected provider, for `doctor`.
CONNECTED: Mapping[str, str] = {
    "address": "Address on the page “Models”",
    "key": "Key on the page “Models”",
    "model": "Models on the page “Models”",
}
#: Names of the fields of the page's form, and words for the page.
PAGE: Mapping[str, str] = {
    "address": "Address",
    "key": "Key",
    "model": "Models",
    "again": "try again",
    "longer": "",
}
#: Names of the arguments of `halt-chat connect`.
TERMINAL: Mapping[str, str] = {
    "address": "URL",
    "key": "the key",
    "model": "--model",
    "again": "try again",
    "longer": "",
}
#: How errors name the address of a provider, whatever its kind.
ADDRESS_PHRASES = (
    ADDRESS_ON_PAGE,
    *(f"{names['address']}, or the address in the file" for names in ENVIRONMENT.values()),
)

"""What a person types to connect a provider, and the checks of it.

Each check raises RequestError with the name of the field, which is also that of the form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import httpx2

from halt.config.addresses import fits_header, is_base_url, is_openai_url
from halt.config.model_servers import PRODUCTS, server_title
from halt.config.provider_file import NAME
from halt.config.providers import DEMO, MAX_TOKENS
from halt.connected.presets import COMPATIBLE, PRESETS, Preset
from halt.errors import RequestError
from halt.providers.model_list import NAME_MAX, is_name

TITLE_MAX = 60  # characters
ADDRESS_MAX = 2_000
KEY_MAX = 4_000  # characters of a key, and of a header's value
HEADERS_MAX = 20
MODELS_MAX = 1_000  # that may be typed
TOKENS_MAX = 10_000_000

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
#: Headers that the HTTP client sets, or that concern the connection alone (RFC 9110, 7.6.1).
_OWN_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"),
        *("proxy-authorization", "proxy-connection", "expect", "content-length", "content-type"),
        *("content-encoding", "accept-encoding"),
    }
)
_PRODUCT_NAMES = tuple(product.name.replace(".", "-") for product in PRODUCTS)


@dataclass(frozen=True, kw_only=True)
class Details:
    """A provider as typed. Empty values of `key` and `headers` keep what is saved."""

    preset: str
    title: str  # for people; its short name, which begins the names of its models, comes from it
    base_url: str
    key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: tuple[str, ...] = ()  # empty: those of the server's list
    api_version: str = ""  # Azure
    max_tokens: int = MAX_TOKENS  # Anthropic
    own_keys: bool = False  # each person may save an own key
    without_key: bool = False  # drop the saved key

    @property
    def chosen_preset(self) -> Preset:
        """The preset. Raises RequestError if there is none with this ID."""
        preset = PRESETS.get(self.preset)
        if preset is None:
            raise RequestError(f"preset must be one of {', '.join(PRESETS)}.", field="preset")
        return preset


def checked(details: Details) -> Details:
    """The details in their usual form. Raises RequestError."""
    preset = details.chosen_preset
    address = _checked_address(details.base_url.strip() or preset.base_url, preset)
    usual_title = server_title(address) if preset is COMPATIBLE else preset.title
    return replace(
        details,
        title=_checked_title(details.title.strip() or usual_title[:TITLE_MAX]),
        base_url=address,
        key=checked_key(details.key),
        headers=_checked_headers(details.headers),
        models=_checked_models(details.models, preset),
        api_version=_checked_version(details.api_version.strip() or preset.api_version),
        max_tokens=_checked_tokens(details.max_tokens),
    )


def check_secrets(details: Details, *, has_key: bool, person_keys: bool) -> None:
    """Check that the provider has what it needs. Raises RequestError.

    `has_key`: a key is typed or kept. `person_keys`: this Halt allows own keys.
    """
    preset = details.chosen_preset
    needs_key = preset.needs_key or is_openai_url(details.base_url)
    if has_key or details.headers or not needs_key:
        return
    if not (details.own_keys and person_keys):
        raise RequestError(f"{preset.title} needs a key.", field="key")
    if not details.models:
        raise RequestError(
            "Without a key for all people Halt cannot request the list of models: name the models.",
            field="models",
        )


def short_name(title: str, taken: Collection[str]) -> str:
    """The name of a provider in the names of its models. Raises RequestError if it is taken."""
    plain = unicodedata.normalize("NFKD", title.casefold()).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:28].rstrip("-_")
    if not name:
        raise RequestError("Use a name with at least one of a-z and 0-9.", field="title")
    # Servers that are found on this machine have the names of their products.
    if name == DEMO or name.startswith(_PRODUCT_NAMES):
        name = f"my-{name}"
    if name in taken:
        raise RequestError(
            f"There is a provider with the name {name} already: choose another one.", field="title"
        )
    assert NAME.fullmatch(name)  # noqa: S101 - by the lines above
    return name


def _checked_title(text: str) -> str:
    title = " ".join(text.split())
    if not 0 < len(title) <= TITLE_MAX or not title.isprintable():
        raise RequestError(f"A name has 1 to {TITLE_MAX} printable characters.", field="title")
    return title


def _checked_address(address: str, preset: Preset) -> str:
    if not address:
        raise RequestError("Type the address of the server.", field="base_url")
    if len(address) > ADDRESS_MAX:
        raise RequestError(f"An address has at most {ADDRESS_MAX:,} characters.", field="base_url")
    if "@" in address:
        raise RequestError(
            "The address must not contain a user name or password: put the key into its own field, "
            "or into a header.",
            field="base_url",
        )
    if not (is_base_url(address) and fits_header(address) and _can_be_dialled(address)):
        example = preset.example or preset.base_url
        raise RequestError(
            "This is not an address of an API: use http(s)://HOST[:PORT][/PATH], without ? or #, "
            f"as in {example}.",
            field="base_url",
        )
    return address.rstrip("/")


def _can_be_dialled(address: str) -> bool:
    """Whether the HTTP client takes this address: it is stricter than `is_base_url`."""
    try:
        return bool(httpx2.URL(address).host)
    except httpx2.InvalidURL:
        return False


def checked_key(text: str) -> str:
    """A typed key without the space around it. Raises RequestError."""
    key = text.strip()
    if len(key) > KEY_MAX or not fits_header(key):
        raise RequestError(
            f"A key has at most {KEY_MAX:,} visible ASCII characters, without spaces.", field="key"
        )
    return key


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for typed_name, typed_value in headers.items():
        name, value = typed_name.strip(), typed_value.strip()
        if not _HEADER_NAME.fullmatch(name):
            raise RequestError(f"{name[:100]!r} is not a header's name.", field="headers")
        if name.lower() in _OWN_HEADERS:
            raise RequestError(f"Halt sets the header {name} itself.", field="headers")
        if len(value) > KEY_MAX or not (value.isascii() and value.isprintable()):
            raise RequestError(
                f"The value of {name} has at most {KEY_MAX:,} visible ASCII characters.",
                field="headers",
            )
        if name.lower() in (known.lower() for known in result):
            raise RequestError(f"The header {name} is named twice.", field="headers")
        result[name] = value
    if len(result) > HEADERS_MAX:
        raise RequestError(f"At most {HEADERS_MAX} headers are allowed.", field="headers")
    return result


def _checked_models(typed: tuple[str, ...], preset: Preset) -> tuple[str, ...]:
    models = tuple(dict.fromkeys(name for text in typed if (name := text.strip())))
    if len(models) > MODELS_MAX:
        raise RequestError(f"At most {MODELS_MAX:,} models can be named.", field="models")
    for name in models:
        if not is_name(name):
            raise RequestError(
                f"A model's name has at most {NAME_MAX} printable characters.", field="models"
            )
    if preset.kind == "azure" and not models:
        raise RequestError("Name your deployments, one a line.", field="models")
    return models


def _checked_version(version: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,40}", version):
        raise RequestError("An API version looks like 2024-10-21.", field="api_version")
    return version


def _checked_tokens(tokens: int) -> int:
    if not 1 <= tokens <= TOKENS_MAX:
        raise RequestError(f"Use a whole number from 1 to {TOKENS_MAX:,}.", field="max_tokens")
    return tokens

"""Settings of one provider (`ProviderSettings`), and of all of them (`Setup`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import msgspec

Kind = Literal["openai", "azure", "anthropic"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_TOKENS = 4096  # of an answer, for providers that require it and requests that do not set it

DEMO = "demo"  # the name of the demo model's provider
# Sent in every streamed request to the demo model. Its server notices a closed connection only when
# it writes to it, or after a second without any write to any client. Without this field a Stop
# during the reading of a long prompt, beside other streams, takes effect up to 12 s late; with it
# within 0.6 s.
DEMO_EXTRA = {"return_progress": True}


class ModelSettings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was chosen on the page for one model. It applies where the settings do not say.

    Prices in US dollars per million tokens.
    """

    label: str = ""  # its name for people; empty: its own
    hidden: bool = False  # left out of lists; requests may still name it
    input_price: float | None = None
    cached_price: float | None = None  # of prompt tokens that the provider had cached
    output_price: float | None = None
    context: int | None = None  # tokens of a prompt and its answer
    extra_body: dict[str, Any] = {}  # further fields of each request
    continues: Literal["", "prefix", "instruction"] = ""  # empty: as its provider


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """One provider. `connect_timeout` in seconds."""

    name: str
    kind: Kind
    base_url: str  # Azure: the resource's endpoint; empty: no model is set up
    title: str = ""  # for people; empty: that of its server
    key: str = field(default="none", repr=False)  # the client libraries require a text
    models: tuple[str, ...] = ()  # empty: those of the server's list
    default_model: str = ""
    api_version: str = ""  # Azure
    max_tokens: int = MAX_TOKENS  # Anthropic
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request
    connect_timeout: float = 5.0
    continues: str = "auto"  # how a model continues a stopped answer, one of CONTINUES
    is_demo: bool = False  # the demo model, which Halt starts
    is_connected: bool = False  # on the page, not by a variable or in the file
    #: Sent with each request. The values are secret.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_link_local: bool = False  # connect to link-local addresses too

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no error, log or page may show."""
        return (self.key, *self.headers.values())

    @property
    def first_model(self) -> str:
        """The model for requests that name none; empty: the first of the server's list."""
        return self.default_model or (self.models[0] if self.models else "")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All providers, in order. `default` is a model as requests name it; empty: not set."""

    providers: tuple[ProviderSettings, ...]
    default: str = ""

    def limited_to(self, name: str) -> Setup:
        """A setup of this provider alone. `default` is kept if it is one of its models."""
        (single,) = (provider for provider in self.providers if provider.name == name)
        if len(self.providers) == 1:
            return self
        prefix, _, model = self.default.partition("/")
        if prefix == name:
            return Setup(providers=(single,), default=model)
        has_prefix = any(prefix == provider.name for provider in self.providers)
        if has_prefix and single.default_model == self.default:
            single = replace(single, default_model="")
        default = self.default if self.default in single.models else ""
        return Setup(providers=(single,), default=default)

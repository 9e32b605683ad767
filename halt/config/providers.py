"""The providers of models as they are set up: each one's settings, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Kind = Literal["openai", "azure", "anthropic"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_TOKENS = 4096  # of an answer, where a provider must be told and the request does not say

DEMO = "demo"  # the provider that the demo model is
# Belongs in the body of every streamed request to the demo model. Its server looks whether a
# connection is open when it writes to it, or after a second in which it wrote to nobody at all:
# without this, a Stop while it reads a long prompt beside other streams is heard up to 12 s late;
# with it, in 0.6 s.
DEMO_EXTRA = {"return_progress": True}


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """One provider. `connect_timeout` in seconds."""

    name: str
    kind: Kind
    base_url: str  # Azure: the resource's endpoint; empty: no model is set up
    key: str = field(default="none", repr=False)  # the clients insist on some word
    models: tuple[str, ...] = ()  # empty: the server is asked
    default_model: str = ""
    api_version: str = ""  # Azure
    max_tokens: int = MAX_TOKENS  # Anthropic
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request
    connect_timeout: float = 5.0
    continues: str = "auto"  # how a model goes on with a stopped answer, one of CONTINUES
    is_demo: bool = False  # the demo model, which Halt starts

    @property
    def first_model(self) -> str:
        """The model that answers where a request names none; empty: the first of the server's."""
        return self.default_model or (self.models[0] if self.models else "")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All providers, in order. `default` is a model as a request names it, empty: any."""

    providers: tuple[ProviderSettings, ...]
    default: str = ""

    def alone(self, name: str) -> Setup:
        """The provider of this name by itself, with its share of the default."""
        (one,) = (each for each in self.providers if each.name == name)
        if len(self.providers) == 1:
            return self
        owner, _, model = self.default.partition("/")
        if owner == name:
            return Setup(providers=(one,), default=model)
        if any(owner == each.name for each in self.providers) and one.default_model == self.default:
            one = replace(one, default_model="")
        return Setup(providers=(one,), default=self.default if self.default in one.models else "")

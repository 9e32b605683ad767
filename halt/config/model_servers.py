"""Discovered model servers: the known products, the result of a discovery, and servers' names.

The master discovers them before it forks, and passes the result to the workers in an environment
variable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from halt.model_info import Abilities

LOOPBACK = "127.0.0.1"


class Product(NamedTuple):
    """A known model server. `port` is its usual one."""

    name: str
    title: str
    port: int


#: In the order in which the menu lists them.
PRODUCTS = (
    Product("ollama", "Ollama", 11434),
    Product("llama.cpp", "llama.cpp", 8080),
    Product("vllm", "vLLM", 8000),
    Product("lmstudio", "LM Studio", 1234),
    Product("jan", "Jan", 1337),
    Product("koboldcpp", "KoboldCpp", 5001),
    Product("text-generation-webui", "text-generation-webui", 5000),
)
_BY_NAME = {product.name: product for product in PRODUCTS}
_BY_PORT = {product.port: product for product in PRODUCTS}
#: Values of `owned_by` in a list of models that identify a product.
_BY_OWNED_BY = {
    "library": _BY_NAME["ollama"],
    "llamacpp": _BY_NAME["llama.cpp"],
    "vllm": _BY_NAME["vllm"],
    "organization_owner": _BY_NAME["lmstudio"],
    "koboldcpp": _BY_NAME["koboldcpp"],
}
#: Titles of providers by the host of their API, or by the end of its name.
_HOST_TITLES = {
    "api.openai.com": "OpenAI",
    "api.anthropic.com": "Anthropic",
    "openrouter.ai": "OpenRouter",
    "generativelanguage.googleapis.com": "Google Gemini",
    "api.mistral.ai": "Mistral",
    "api.groq.com": "Groq",
    "api.deepseek.com": "DeepSeek",
    "api.x.ai": "xAI",
    "api.together.xyz": "Together AI",
    "api.together.ai": "Together AI",
    "api.fireworks.ai": "Fireworks AI",
    "api.cerebras.ai": "Cerebras",
    "router.huggingface.co": "Hugging Face",
    "models.github.ai": "GitHub Models",
    "integrate.api.nvidia.com": "NVIDIA",
}
#: Titles of providers by the name that a providers' file may give them.
_TITLES_BY_NAME = {
    **{title.lower().partition(" ")[0]: title for title in _HOST_TITLES.values()},
    **{product.name: product.title for product in PRODUCTS},
    "azure": "Azure OpenAI",
}
#: Products that list only the models in memory.
LISTS_LOADED = frozenset({"llama.cpp", "vllm", "koboldcpp"})

#: The base URLs of the products' APIs on this machine.
USUAL_URLS = tuple(f"http://{LOOPBACK}:{product.port}/v1" for product in PRODUCTS)


#: The tag that Ollama adds to the name of a model without one.
LATEST_TAG = ":latest"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A discovered model server. `models` is None after `DiscoveryResult.encoded`."""

    name: str  # of its provider
    title: str  # for people
    url: str  # ends with /v1
    models: tuple[str, ...] | None = None
    abilities: dict[str, Abilities] = {}  # of the models of which some are known
    default: str = ""  # the model for requests that name none, empty if none can chat
    is_loaded: bool = False  # the default was in memory

    def has_model(self, model: str) -> bool:
        """Whether the server's list has this model, also with Ollama's tag."""
        model_names = self.models or ()
        return model in model_names or model + LATEST_TAG in model_names


class KeyRequired(msgspec.Struct, frozen=True, kw_only=True):
    """A server that needs a key. Only its port indicates the product."""

    url: str

    @property
    def place(self) -> str:
        """Where it is, and what it may be."""
        product = product_of(self.url)
        return origin(self.url) + (f" (the port of {product.title})" if product else "")

    @property
    def text(self) -> str:
        """A sentence for users on what it is and what it needs."""
        return (
            f"{self.place} needs a key: connect it on the page “Models”, or set "
            "OPENAI_BASE_URL and OPENAI_API_KEY"
        )


class DiscoveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a discovery. `addresses` are those that each refresh probes.

    `skipped_until`: address -> time of `halt.clock.now` before which it is not probed.
    """

    addresses: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()
    key_required: tuple[KeyRequired, ...] = ()
    skipped_until: dict[str, float] = {}

    def full_names(self, model: str) -> list[str]:
        """Return the models with this name as PROVIDER/MODEL; a short name may match several."""
        provider, _, model_name = model.partition("/")
        for server in self.servers:
            if (
                model_name
                and server.name == provider
                and (server.models is None or server.has_model(model_name))
            ):
                return [model]
        return [f"{server.name}/{model}" for server in self.servers if server.has_model(model)]

    def ambiguity_text(self, model: str) -> str:
        """Why HALT_MODEL with this name is not used: several servers have it. "" otherwise."""
        if not model or len(full_names := self.full_names(model)) < 2:
            return ""
        return f"HALT_MODEL={model!r} is in several lists: set it to {' or '.join(full_names)}"

    @property
    def has_chat_model(self) -> bool:
        """Whether a server has a model that can chat."""
        return any(server.default for server in self.servers)

    def encoded(self) -> str:
        """Return it as JSON for an environment variable, without the models, which may be many."""
        servers = tuple(
            msgspec.structs.replace(server, models=None, abilities={}) for server in self.servers
        )
        return msgspec.json.encode(msgspec.structs.replace(self, servers=servers)).decode()

    @property
    def text(self) -> str:
        """The servers as text, such as: 4 models of Ollama at http://127.0.0.1:11434."""
        parts: list[str] = []
        for server in self.servers:
            count = len(server.models or ())
            models = "" if parts else " model" if count == 1 else " models"
            parts.append(f"{count}{models} of {server.title} at {origin(server.url)}")
        key_texts = (server.text for server in self.key_required)
        return "; ".join(filter(None, [", ".join(parts), *key_texts]))


_result_decoder = msgspec.json.Decoder(DiscoveryResult)


def decoded(value: str) -> DiscoveryResult:
    """Decode the value of `DiscoveryResult.encoded`; an empty value gives an empty result."""
    return _result_decoder.decode(value) if value else DiscoveryResult()


def origin(url: str) -> str:
    """Return a base URL without its path."""
    return url.removesuffix("/v1")


def product_of(url: str, owned_by: Sequence[str] = ()) -> Product | None:
    """Return the product of a server, by `owned_by` of its models, else by its port."""
    products = (_BY_OWNED_BY[value] for value in owned_by if value in _BY_OWNED_BY)
    return next(products, None) or _BY_PORT.get(urlsplit(url).port or 0)


def server_title(url: str, owned_by: Sequence[str] = ()) -> str:
    """Return a server's title for people: of its provider or product, else its host and port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    for known_host, title in _HOST_TITLES.items():
        if host == known_host or host.endswith(f".{known_host}"):
            return title
    product = next((_BY_OWNED_BY[value] for value in owned_by if value in _BY_OWNED_BY), None)
    return product.title if product else parts.netloc.rpartition("@")[2]


def title_of_name(name: str) -> str:
    """Return the title of a provider that has this name in the providers' file."""
    return _TITLES_BY_NAME.get(name, name)


class Names:
    """Assigns names to the servers at some addresses.

    A name depends only on the addresses, their order and the product, so that all workers assign
    the same names, in whatever order the servers appear.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._suffixes = _suffixes(addresses)

    def of(self, url: str, owned_by: Sequence[str] = ()) -> tuple[str, str]:
        """Return a server's name and title; `owned_by`: the values of its models."""
        product = product_of(url, owned_by)
        suffix = self._suffixes[url]
        if product is None:
            return suffix.host_and_port, origin(url).partition("://")[2]
        if suffix.is_first and urlsplit(url).port == product.port:
            return product.name, product.title
        return f"{product.name}-{suffix.suffix}", product.title


class _Suffix(NamedTuple):
    is_first: bool  # of the addresses with its port
    suffix: str  # distinguishes it from other servers of its product
    host_and_port: str


def _suffixes(addresses: Sequence[str]) -> Mapping[str, _Suffix]:
    parts = {url: urlsplit(url) for url in addresses}
    counts = Counter(part.port for part in parts.values())
    suffixes: dict[str, _Suffix] = {}
    ports: set[int | None] = set()
    for url, part in parts.items():
        port = part.port or (443 if part.scheme == "https" else 80)
        host = "local" if part.hostname == LOOPBACK else part.hostname or ""
        base = slug = re.sub(r"[^a-z0-9]+", "-", f"{host}-{port}".lower()).strip("-")
        used_slugs = [suffix.host_and_port for suffix in suffixes.values()]
        number = 1
        while slug in used_slugs:  # hosts a-b and a.b, or http and https on the same port
            number += 1
            slug = f"{base}-{number}"
        text = str(port) if counts[part.port] == 1 else slug
        suffixes[url] = _Suffix(part.port not in ports, text, slug)
        ports.add(part.port)
    return suffixes

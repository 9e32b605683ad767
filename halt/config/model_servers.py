"""Model servers that were found: what is known of them, and how they are named.

The master finds them before it forks, and hands them to the workers in an environment variable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

LOOPBACK = "127.0.0.1"


class Product(NamedTuple):
    """A model server that people run. `port` is its usual one."""

    name: str
    title: str
    port: int


#: In the order in which they are offered.
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
#: What a list of models says in `owned_by`, where that is the server's own.
_BY_OWNER = {
    "library": _BY_NAME["ollama"],
    "llamacpp": _BY_NAME["llama.cpp"],
    "vllm": _BY_NAME["vllm"],
    "organization_owner": _BY_NAME["lmstudio"],
    "koboldcpp": _BY_NAME["koboldcpp"],
}
#: Products that list what is in memory and nothing else.
LISTS_LOADED = frozenset({"llama.cpp", "vllm", "koboldcpp"})

#: The addresses at which the products listen on this machine, as base URLs of their API.
USUAL = tuple(f"http://{LOOPBACK}:{product.port}/v1" for product in PRODUCTS)


#: What Ollama adds to the name of a model that has no tag.
LATEST = ":latest"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A model server that answered. `models` is None where they were not handed on."""

    name: str  # of the provider that it becomes
    title: str  # for people
    url: str  # up to and with /v1
    models: tuple[str, ...] | None = None
    default: str = ""  # the model that answers where none is named, empty where none can chat
    is_loaded: bool = False  # the default was in memory

    def lists(self, model: str) -> bool:
        """Whether this model is in its list."""
        listed = self.models or ()
        return model in listed or model + LATEST in listed


class Locked(msgspec.Struct, frozen=True, kw_only=True):
    """A server that wants a key. Its port is all that tells what it is."""

    url: str

    @property
    def text(self) -> str:
        """What it is and what it needs, in words."""
        product = product_of(self.url)
        port = f" (the port of {product.title})" if product else ""
        return f"{origin(self.url)}{port} needs OPENAI_BASE_URL and OPENAI_API_KEY"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found. `addresses` are those that are asked, again and again.

    `left_until`: the addresses that are not asked before a time, as `halt.clock.now` tells
    it.
    """

    addresses: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()
    locked: tuple[Locked, ...] = ()
    left_until: dict[str, float] = {}

    def named(self, model: str) -> list[str]:
        """The models that a name means, as PROVIDER/MODEL; several where it is no full name."""
        provider, _, rest = model.partition("/")
        for server in self.servers:
            if rest and server.name == provider and (server.models is None or server.lists(rest)):
                return [model]
        return [f"{server.name}/{model}" for server in self.servers if server.lists(model)]

    @property
    def chats(self) -> bool:
        """Whether a model was found that holds a conversation."""
        return any(server.default for server in self.servers)

    def encoded(self) -> str:
        """This without the names of models, which may be many, as the value of a variable."""
        brief = tuple(msgspec.structs.replace(server, models=None) for server in self.servers)
        return msgspec.json.encode(msgspec.structs.replace(self, servers=brief)).decode()

    @property
    def text(self) -> str:
        """The servers in words, as in: 4 models of Ollama at http://127.0.0.1:11434."""
        parts: list[str] = []
        for server in self.servers:
            count = len(server.models or ())
            models = "" if parts else " model" if count == 1 else " models"
            parts.append(f"{count}{models} of {server.title} at {origin(server.url)}")
        return "; ".join(filter(None, [", ".join(parts), *(each.text for each in self.locked)]))


_found = msgspec.json.Decoder(Found)


def decoded(value: str) -> Found:
    """What `Found.encoded` has made; nothing where the variable is empty."""
    return _found.decode(value) if value else Found()


def origin(url: str) -> str:
    """A base URL without its path."""
    return url.removesuffix("/v1")


def product_of(url: str, owners: Sequence[str] = ()) -> Product | None:
    """The product of a server that answers as one; `owners`: `owned_by` of the models it lists."""
    named = next((_BY_OWNER[owner] for owner in owners if owner in _BY_OWNER), None)
    return named or _BY_PORT.get(urlsplit(url).port or 0)


class Names:
    """Names of the servers at these addresses.

    A name depends on the addresses, their order and the product alone, so that all workers give the
    same names, in whatever order servers appear.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._suffixes = _suffixes(addresses)

    def of(self, url: str, owners: Sequence[str] = ()) -> tuple[str, str]:
        """A server's name and title; `owners`: what its models have in `owned_by`."""
        product = product_of(url, owners)
        place = self._suffixes[url]
        if product is None:
            return place.host_and_port, origin(url).partition("://")[2]
        if place.is_first and urlsplit(url).port == product.port:
            return product.name, product.title
        return f"{product.name}-{place.suffix}", product.title


class _Place(NamedTuple):
    is_first: bool  # of the addresses with its port
    suffix: str  # that tells it from others of its product
    host_and_port: str


def _suffixes(addresses: Sequence[str]) -> Mapping[str, _Place]:
    parts = {url: urlsplit(url) for url in addresses}
    counts = Counter(part.port for part in parts.values())
    places: dict[str, _Place] = {}
    ports: set[int | None] = set()
    for url, part in parts.items():
        port = part.port or (443 if part.scheme == "https" else 80)
        host = "local" if part.hostname == LOOPBACK else part.hostname or ""
        base = slug = re.sub(r"[^a-z0-9]+", "-", f"{host}-{port}".lower()).strip("-")
        taken = [place.host_and_port for place in places.values()]
        number = 1
        while slug in taken:  # a-b and a.b, or http and https at one port
            number += 1
            slug = f"{base}-{number}"
        suffix = str(port) if counts[part.port] == 1 else slug
        places[url] = _Place(part.port not in ports, suffix, slug)
        ports.add(part.port)
    return places

"""The terminal's command `models`: the providers and their models. Works while Halt runs or not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import click
import msgspec
from rich.cells import cell_len

from halt.cli.commands import accept_any_text
from halt.cli.saved import connect_saved
from halt.config.environment import load
from halt.config.model_servers import KeyRequired
from halt.config.settings import Config, ConfigError
from halt.connected.listing import Listing, ModelLine, ProviderLine
from halt.errors import HaltError
from halt.model_info import ability_words
from halt.providers.catalog import Catalog
from halt.providers.discovery import discover_for, make_discovery
from halt.providers.factory import make_upstream
from halt.providers.member import QUERY_TIMEOUT
from halt.rendering.plain_lines import one_line

NAME_COLUMN = 40  # cells of the longest name that the others are aligned to
STATE_MAX = 400  # characters

NOTHING = "No provider is set up or connected{found}. To connect one: halt-chat connect URL"


class Found(NamedTuple):
    """The lines of all providers, and the servers on this machine that need a key."""

    lines: list[ProviderLine]
    key_required: Sequence[KeyRequired]  # without those that are connected

    @property
    def is_well(self) -> bool:
        """Whether there is a provider, and each one answers."""
        return bool(self.lines) and all(line.state in {"ok", "slow"} for line in self.lines)


@click.command(short_help="List the providers and their models.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def models(as_json: bool) -> None:
    """List every provider: where it is set, its state in the server's words, and its models.

    These are the providers of the settings, those found on this machine, and the connected ones.
    The exit status is 1 if one of them does not answer, or if there is none.
    """
    logging.basicConfig(level="CRITICAL")  # every fault is a state
    accept_any_text()
    try:
        config = load()
        found = _found(config)
    except ConfigError as fault:
        raise click.ClickException(str(fault)) from None
    except HaltError as fault:
        raise click.ClickException(fault.message) from None
    if as_json:
        click.echo(_as_json(found))
    else:
        for text in _texts(found, config):
            click.echo(text)
    raise SystemExit(0 if found.is_well else 1)


def _found(config: Config) -> Found:
    """Ask all providers. Raises ConfigError, StoreUnavailable."""
    discovered = discover_for(config)
    config = replace(config, discovered=discovered.encoded())
    discovery = make_discovery(config)
    with contextlib.closing(make_upstream(config, discovery=discovery)) as providers:
        snapshot = connect_saved(config, providers)
        lines = Listing(config, providers, discovery).lines(snapshot, "", QUERY_TIMEOUT + 1)
        return Found(lines, Catalog(providers, discovery).locked_servers)


# --- text -----------------------------------------------------------------------------------------


def _texts(found: Found, config: Config) -> Iterator[str]:
    if not found.lines:
        looked = ", and no model server was found on this machine" if config.discovers else ""
        yield NOTHING.format(found=looked)
    for number, line in enumerate(found.lines):
        if number:
            yield ""
        yield from _provider_texts(line)
    for server in found.key_required:
        yield f"\n{server.url} needs a key. To connect it: halt-chat connect {server.url}"


def _provider_texts(line: ProviderLine) -> Iterator[str]:
    yield click.style(f"{line.name}: {line.title}" if line.name else line.title, bold=True)
    for name, value in (
        ("source", _source(line)),
        ("address", line.address),
        ("key", line.key),
        ("headers", ", ".join(line.header_names)),
        ("state", one_line(line.state_text, STATE_MAX)),
        ("models", f"{len(line.models):,}" if line.models else "none listed"),
    ):
        if value:
            yield f"  {name:9}{value}"
    names = [model.full_name for model in line.models]
    width = max((size for name in names if (size := cell_len(name)) <= NAME_COLUMN), default=0)
    for model in line.models:
        yield _model_text(model, width)


def _source(line: ProviderLine) -> str:
    """Where the provider is set, in words."""
    return "connected" if line.source == "page" else line.source_text


def _model_text(model: ModelLine, width: int) -> str:
    gap = " " * max(0, width - cell_len(model.full_name))
    label = f"“{model.label}”" if model.label != model.name else ""
    marks = [
        mark
        for mark, is_so in (("default", model.is_default), ("hidden", model.chosen.hidden))
        if is_so
    ]
    words = [label, ability_words(model.abilities), ", ".join(marks) and f"({', '.join(marks)})"]
    return f"    {model.full_name}{gap}  {'  '.join(filter(None, words))}".rstrip()


# --- JSON -----------------------------------------------------------------------------------------


def _as_json(found: Found) -> str:
    value = {
        "ok": found.is_well,
        "providers": [_provider_object(line) for line in found.lines],
        "key_required": [server.url for server in found.key_required],
    }
    return msgspec.json.encode(value).decode()


def _provider_object(line: ProviderLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "title": line.title,
        "kind": line.kind,
        "source": line.source,
        "source_text": _source(line),
        "address": line.address,
        "key": line.key,
        "headers": line.header_names,
        "state": line.state,
        "state_text": line.state_text,
        "models": [
            {
                "name": model.full_name,
                "label": model.label,
                "abilities": model.abilities,
                "default": model.is_default,
                "hidden": model.chosen.hidden,
            }
            for model in line.models
        ],
    }

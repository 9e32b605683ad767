"""The terminal's commands `connect` and `disconnect`. They work while Halt runs or not.

A running Halt looks for such changes in the database each second. No key and no value of a header
is ever an argument: other users of the machine can read those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import click

from halt.cli.commands import accept_any_text
from halt.cli.people import opened
from halt.config.environment import load, variable
from halt.config.provider_setup import setup
from halt.config.settings import Config
from halt.connected.details import Details, checked, checked_key, short_name
from halt.connected.presets import COMPATIBLE, PRESETS, preset_for
from halt.connected.service import ConnectedProviders
from halt.connected.vault import Secrets, Vault, make_vault
from halt.doctor.cancellation import Cancellation
from halt.doctor.providers import service_of
from halt.doctor.remedies import TERMINAL
from halt.doctor.trial import try_provider
from halt.errors import HaltError, RequestError
from halt.providers.discovery import discover_for, make_discovery
from halt.providers.factory import make_provider, make_upstream
from halt.providers.router import WAIT_SECONDS, Providers
from halt.store.connected import ConnectedRows
from halt.store.database import Database
from halt.store.migrate import existing_database, has_database

#: Fields of errors -> the arguments that they concern.
ARGUMENTS = {
    "title": "--name",
    "name": "--name",
    "base_url": "URL",
    "preset": "--preset",
    "key": "key",
    "headers": "--header",
    "models": "--model",
    "api_version": "--api-version",
}
MAY_NOT_OPEN = (
    "Its key is encrypted with the key in the data folder, which is new. If Halt runs with "
    "HALT_SECRET_KEY, it cannot read it: set the same HALT_SECRET_KEY for this command."
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


@click.command(short_help="Connect a provider.")
@click.argument("address", metavar="URL")
@click.option("--name", metavar="NAME", default="", help="What to call it. [default: by its host]")
@click.option("--preset", metavar="ID", type=click.Choice(list(PRESETS)), help="Its kind.")
@click.option("--key-env", metavar="VAR", help="Read its key from this environment variable.")
@click.option("--key-stdin", is_flag=True, help="Read its key from the standard input.")
@click.option("--no-key", is_flag=True, help="It needs no key: do not ask.")
@click.option("--header", "headers", metavar="NAME", multiple=True, help="Ask for this header.")
@click.option(
    "--header-env",
    "header_variables",
    metavar="NAME=VAR",
    multiple=True,
    help="Send this header with the value of that variable.",
)
@click.option("--model", "models", metavar="NAME", multiple=True, help="Offer this model alone.")
@click.option("--api-version", metavar="DATE", default="", help="Azure's version of the API.")
@click.option("--try/--no-try", "tries", default=True, help="Whether to check it first.")
@click.option("--force", is_flag=True, help="Save it even if a check fails.")
def connect(
    address: str,
    name: str,
    preset: str | None,
    key_env: str | None,
    key_stdin: bool,
    no_key: bool,
    headers: tuple[str, ...],
    header_variables: tuple[str, ...],
    models: tuple[str, ...],
    api_version: str,
    tries: bool,
    force: bool,
) -> None:
    """Connect the provider at URL, which may also be the name of a service, such as groq.

    Asks for its key. Checks that it answers, streams and stops, and saves it, with the key
    encrypted. Halt need not be restarted. `halt-chat models` lists what is connected.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level="ERROR")
    accept_any_text()
    with _faults_with_arguments():
        details = checked(
            replace(
                _named(address, preset),
                title=name,
                models=models,
                api_version=api_version,
            )
        )
        values = {name: _of_variable(name, rest) for name, rest in map(_parted, header_variables)}
        for header in headers:
            _check_header_to_type(header)
        key = _given_key(key_env, from_input=key_stdin, none=no_key)
        has_no_key = _has_no_secret_key(load())
        with _connected(opened()) as (config, vault, providers, connected):
            _check_name(details, config, providers)
            if key != "" and not vault.can_seal:
                vault.seal("", "", Secrets())  # raises the reason
            values |= {name: _typed(f"Value of {name}", str.strip) for name in headers}
            key = _typed_key(details) if key is None else key
            details = replace(details, key=key, headers=values)
            # Its lists have the names of models that the new name may begin.
            providers.lists_for_page(WAIT_SECONDS)
            if tries:
                _try(connected, config, details, force=force)
            row = connected.add(details)
    click.echo(
        f"Connected {row.title}: its models are named {row.name}/MODEL. "
        "A running Halt uses it within a second."
    )
    if has_no_key and (key or values):
        click.echo(MAY_NOT_OPEN, err=True)


@click.command(short_help="Remove a connected provider.")
@click.argument("name", metavar="NAME")
def disconnect(name: str) -> None:
    """Remove the connected provider NAME with its keys. `halt-chat models` lists the names.

    Answers that it is writing go on to their end.
    """
    with _faults_with_arguments():
        config = load()
        database = existing_database(config.data_folder, config.database_url)
        if database is None:
            raise click.ClickException(_unknown(name, config))
        database.close()
        with _connected(opened()) as (config, _, _, connected):
            row = next((row for row in connected.snapshot.providers if row.name == name), None)
            if row is None:
                raise click.ClickException(_unknown(name, config))
            connected.remove(name)
    click.echo(f"Removed {row.title} with its keys. A running Halt drops it within a second.")


def _unknown(name: str, config: Config) -> str:
    configured = {provider.name for provider in setup(config).providers if provider.base_url}
    if name in configured:
        return f"{name} is set by the settings: change it there."
    return f"No connected provider has the name {name!r}. `halt-chat models` lists them."


def _has_no_secret_key(config: Config) -> bool:
    """Whether a Halt may have used the folder with a HALT_SECRET_KEY that is not set here."""
    folder = config.data_folder
    return (
        has_database(folder, config.database_url)
        and not config.secret_key
        and not os.path.exists(folder / "secret_key")
    )


@contextlib.contextmanager
def _connected(
    opening: contextlib.AbstractContextManager[tuple[Config, Database]],
) -> Iterator[tuple[Config, Vault, Providers, ConnectedProviders]]:
    """The settings, the vault, all providers and the connected ones. The folder may be created."""
    with opening as (settings, database):
        config = replace(settings, discovered=discover_for(settings).encoded())
        upstream = make_upstream(config, discovery=make_discovery(config))
        with contextlib.closing(upstream) as providers:
            vault = make_vault(config)
            connected = ConnectedProviders(
                config, ConnectedRows(database), vault, providers, make_provider
            )
            connected.load()
            with _faults_with_arguments():
                yield config, vault, providers, connected


@contextlib.contextmanager
def _faults_with_arguments() -> Iterator[None]:
    """Context manager: an error of a field begins with the argument that it concerns."""
    try:
        yield
    except RequestError as fault:
        argument = ARGUMENTS.get(fault.field or "", "")
        raise click.ClickException(": ".join(filter(None, (argument, fault.message)))) from None
    except HaltError as fault:
        raise click.ClickException(fault.message) from None


# --- arguments ------------------------------------------------------------------------------------


def _named(address: str, preset: str | None) -> Details:
    """The preset and the address of the argument. Raises UsageError."""
    if address in PRESETS:
        chosen = PRESETS[address]
        if preset not in {None, chosen.id}:
            raise click.UsageError(f"{address} is a service: leave out --preset.")
        if not chosen.base_url:
            raise click.UsageError(
                f"Give its address: halt-chat connect {chosen.example} --preset {chosen.id}"
            )
        return Details(preset=chosen.id, title="", base_url=chosen.base_url)
    if "://" not in address:
        services = ", ".join(one.id for one in PRESETS.values() if one.base_url)
        raise click.UsageError(
            f"URL must be an address, such as {COMPATIBLE.example}, or one of {services}."
        )
    return Details(preset=preset or preset_for(address).id, title="", base_url=address)


def _check_name(details: Details, config: Config, providers: Providers) -> None:
    """Raise RequestError if the name is taken, before anything is typed."""
    configured = {provider.name for provider in setup(config).providers}
    short_name(details.title, {*configured, *providers.names})


def _parted(text: str) -> tuple[str, str]:
    """The header and the variable of NAME=VAR. The error does not show what may be a secret."""
    header, _, name = text.partition("=")
    if not (_HEADER.fullmatch(header) and _VARIABLE.fullmatch(name)):
        raise click.UsageError(
            "--header-env takes NAME=VAR: the header's name, and the name of the variable that "
            "holds its value."
        )
    return header, name


def _of_variable(what: str, name: str) -> str:
    """The value of a variable. Raises ClickException if it is not set."""
    value = variable(name)
    if not value:
        raise click.ClickException(f"{what}: the variable {name} is not set.")
    return value


def _check_header_to_type(name: str) -> None:
    """Raise UsageError or ClickException unless the value of this header can be asked for."""
    if not _HEADER.fullmatch(name):  # it may hold the value, so the error does not show it
        raise click.UsageError("--header takes the name of a header alone: its value is asked for.")
    if not sys.stdin.isatty():
        raise click.ClickException(
            f"There is no terminal to type the value of {name}: use --header-env {name}=VAR."
        )


def _given_key(key_env: str | None, *, from_input: bool, none: bool) -> str | None:
    """The key by the options, "" for none; None if it is to be typed. Raises ClickException."""
    if (key_env is not None) + from_input + none > 1:
        raise click.UsageError("Use only one of --key-env, --key-stdin and --no-key.")
    if none:
        return ""
    if key_env is not None:
        if not _VARIABLE.fullmatch(key_env):  # it may be the key, so the error does not show it
            raise click.UsageError("--key-env takes the name of a variable, not the key itself.")
        return _of_variable("key", key_env)
    if from_input:
        key = sys.stdin.readline().strip()
        if not key:
            raise click.ClickException("No key came on the standard input.")
        return key
    if not sys.stdin.isatty():
        raise click.ClickException(
            "There is no terminal to type the key: use --key-env VAR, --key-stdin, or --no-key."
        )
    return None


def _typed_key(details: Details) -> str:
    """The key that is typed; "" for none."""
    chosen = details.chosen_preset
    if chosen.key_page:
        click.echo(f"Keys are made at {chosen.key_page}", err=True)
    ending = "" if chosen.needs_key else " (Enter for none)"
    return _typed(f"Key of {details.title}{ending}", checked_key, needed=chosen.needs_key)


def _typed(question: str, check: Callable[[str], str], *, needed: bool = True) -> str:
    """What is typed at the terminal, which does not show it."""

    def value(text: str) -> str:
        try:
            return check(text)
        except RequestError as fault:
            raise click.UsageError(fault.message) from None

    default = None if needed else ""
    text: str = click.prompt(
        question, hide_input=True, err=True, default=default, show_default=False, value_proc=value
    )
    return text


# --- trial ----------------------------------------------------------------------------------------


def _try(connected: ConnectedProviders, config: Config, details: Details, *, force: bool) -> None:
    """Check the provider, with a line for each finding.

    Raises ClickException if a check fails, Abort after Ctrl-C.
    """
    row, secrets = connected.prepared(details)
    cancellation = Cancellation()
    with _cancelling_on_ctrl_c(cancellation) as pressed:
        is_well = try_provider(
            connected.settings_for(row, secrets),
            config,
            service_of,
            lambda finding: click.echo(finding.line),
            cancellation,
            names=TERMINAL,
        )
    if pressed.is_set():
        raise click.Abort
    if not is_well and not force:
        raise click.ClickException("Nothing was saved, since a check has failed. --force saves it.")


@contextlib.contextmanager
def _cancelling_on_ctrl_c(cancellation: Cancellation) -> Iterator[threading.Event]:
    """Cancel, and set the event, on Ctrl-C within the block.

    An exception at any place would not do: where Python ignores exceptions, it would be lost. The
    handler may run while this thread holds a lock that `cancel` needs, so another thread calls it.
    """
    pressed = threading.Event()

    def cancel(_number: int, _frame: object) -> None:
        pressed.set()
        threading.Thread(target=cancellation.cancel, name="halt-cancel", daemon=True).start()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)

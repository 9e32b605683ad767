"""The terminal's commands about accounts: `halt-chat user`. They work while Halt runs or not."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click

from halt.cli.columns import in_column
from halt.cli.people import opened
from halt.cli.removal import new_export, wait_stopped
from halt.config.settings import Config
from halt.counted import counted
from halt.errors import HaltError
from halt.people.accounts import new_link, new_person
from halt.people.known import is_admin
from halt.people.names import name_key
from halt.people.passwords import Passwords, checked_password
from halt.store.accounts import AccountRow, AccountRows, AccountSummary, Link
from halt.store.people import PersonRow
from halt.store.store import Store


class _Command(click.Command):
    """A command about a name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as fault:
            hint = f"A name that begins with - comes last, after --: {ctx.command_path} -- NAME"
            raise click.UsageError(f"{fault.format_message()} {hint}", ctx) from None


class _Commands(click.Group):
    command_class = _Command


@click.group(cls=_Commands)
def user() -> None:
    """Manage the accounts of people who sign in with a name and a password (HALT_USERS=1).

    No password is ever an argument. The database is the one of HALT_DATA or DATABASE_URL.
    """


_name = click.argument("name", metavar="NAME")
_link = click.option(
    "--link", is_flag=True, help="Print a one-time link, valid for 3 days, to set the password."
)
_url = click.option("--url", metavar="URL", help="The address of Halt in that link.")


@user.command(short_help="Add an account.")
@_name
@_link
@_url
def add(name: str, link: bool, url: str | None) -> None:
    """Add an account for NAME: asks for its password, or prints a one-time link.

    Without a terminal the password is the first line of the standard input. The first account's
    person is administrator, unless HALT_ADMINS is set.
    """
    with _accounts() as (config, rows):
        _base(config, url)  # before anything is saved
        person = new_person(name)
        key = name_key(person.name)
        if (account := rows.find(key)) is not None:
            raise click.ClickException(_taken(account))
        if link:
            token, saved_link = new_link()
            person = rows.add(person, key, link=saved_link)
        else:
            person = rows.add(person, key, password=_new_password())
        role = ", an administrator" if is_admin("accounts", person, config.admins) else ""
        click.echo(f"Added {person.name}{role}.")
        if link:
            _print_link(config, url, token, saved_link)
        if not config.users:
            click.echo("Set HALT_USERS=1 for Halt, so that people sign in with accounts.", err=True)


@user.command("list", short_help="List all accounts.")
def list_() -> None:
    """List all accounts: counts and times, no texts."""
    with _accounts() as (config, rows):
        accounts = rows.summaries()
        if not accounts:
            click.echo("There are no accounts. To add one: halt-chat user add NAME")
            return
        click.echo(
            f"{'NAME':24}  {'ADMIN':5}  {'CHATS':>6}  {'SIGNED IN':>9}  {'TOKENS':>6}  "
            f"{'LAST USED':16}  STATE"
        )
        for account in accounts:
            admin = "yes" if _is_admin(account, config) else "no"
            click.echo(
                f"{in_column(account.name, 24)}  {admin:5}  {account.conversations:>6,}  "
                f"{account.sign_ins:>9,}  {account.api_tokens:>6,}  "
                f"{_moment(account.used_at):16}  {_state(account)}"
            )


@user.command(short_help="Refuse an account until it is enabled.")
@_name
def disable(name: str) -> None:
    """Disable NAME's account: until it is enabled its browsers and programs are refused.

    Answers that are being written for them are stopped.
    """
    with _accounts() as (_, rows):
        account = _known(rows, name)
        rows.set_disabled(account.person.id, disabled=True)
        click.echo(f"Disabled {account.person.name}.")


@user.command(short_help="Let a disabled account be used again.")
@_name
def enable(name: str) -> None:
    """Enable NAME's account again, with its sign-ins and API tokens."""
    with _accounts() as (_, rows):
        account = _known(rows, name)
        rows.set_disabled(account.person.id, disabled=False)
        click.echo(f"Enabled {account.person.name}.")


@user.command(short_help="Set a new password.")
@_name
@_link
@_url
@click.option("--tokens", is_flag=True, help="Revoke the person's API tokens too.")
def reset(name: str, link: bool, url: str | None, tokens: bool) -> None:
    """Set a new password for NAME, or print a one-time link to set one.

    Ends all sign-ins of the person. The old password works no longer, with --link from now on.
    API tokens stay, unless --tokens is given.
    """
    with _accounts() as (config, rows):
        _base(config, url)  # before anything is changed
        account = _known(rows, name)
        person_id = account.person.id
        if link:
            token, saved_link = new_link()
            ended = rows.set_link(person_id, saved_link)
        else:
            ended = rows.set_password(person_id, _new_password()) or 0
        text = f"Reset {account.person.name}: {counted(ended, 'sign-in')} ended"
        if tokens:
            text += f", {counted(rows.revoke_tokens(person_id), 'API token')} revoked"
        click.echo(f"{text}.")
        if link:
            _print_link(config, url, token, saved_link)


@user.command(short_help="Remove an account and all that its person has.")
@_name
@click.option(
    "--export",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="First write all chats to a new file, as the page's Export all as JSON does.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, file: Path | None, yes: bool) -> None:
    """Remove NAME's account with all of its chats, settings, sign-ins and API tokens, for good.

    Running servers stop the person's streams first, within 10 seconds.
    """
    with opened() as (config, database):
        store = Store(database)
        rows = store.accounts
        account = _known(rows, name, also_removed=True)
        person = account.person
        chats = _chats(rows, person.id)
        question = f"Remove {person.name} with {chats} for good?"
        if not yes and not _confirmed(question):
            raise SystemExit(1)
        with new_export(file) as write:
            ended = rows.begin_removal(person.id)
            wait_stopped(config, store, person.id, has_been_known=ended > 0)
            chats = _chats(rows, person.id)
            write(store, person.id)
        if file is not None:
            click.echo(f"Wrote {chats} to {file}.")
        rows.remove(person.id)
        click.echo(f"Removed {person.name} with {chats}.")


@contextlib.contextmanager
def _accounts() -> Iterator[tuple[Config, AccountRows]]:
    """The settings and the accounts. An error ends the command with one line."""
    with opened() as (config, database):
        yield config, AccountRows(database)


def _known(rows: AccountRows, name: str, *, also_removed: bool = False) -> AccountRow:
    """The account with this name. Raises ClickException."""
    account = rows.find(name_key(name))
    if account is None:
        raise click.ClickException(
            f"There is no account with the name {name!r}. `halt-chat user list` lists them."
        )
    if account.person.removed_at is not None and not also_removed:
        raise click.ClickException(_taken(account))
    return account


def _taken(account: AccountRow) -> str:
    name = account.person.name
    if account.person.removed_at is not None:
        return f"{name!r} is being removed. `halt-chat user remove` finishes it."
    return f"There is an account with the name {name!r} already."


# --- passwords and links --------------------------------------------------------------------------


def _new_password() -> str:
    """The hash of the password that is typed, or of the input's first line. Raises HaltError."""
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, err=True, value_proc=_checked)
        if click.prompt("The same again", hide_input=True, err=True) != password:
            raise click.ClickException("The two passwords are not the same. Nothing was changed.")
    else:
        line = sys.stdin.readline()
        if not line:
            raise click.ClickException(
                "There is no terminal to type a password, and none came on the standard input. "
                "Use --link, or write the password to the input."
            )
        password = checked_password(line.rstrip("\r\n"))
    return Passwords().hash(password)


def _checked(password: str) -> str:
    """For a prompt, which asks again after a refused password."""
    try:
        return checked_password(password)
    except HaltError as fault:
        raise click.UsageError(fault.message) from None


def _print_link(config: Config, url: str | None, token: str, link: Link) -> None:
    base = _base(config, url)
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(link.until))
    click.echo(f"One-time link to set a password, valid until {until}:\n{base}/link?key={token}")
    if not url:
        click.echo("If people open Halt at another address, say which: --url URL.", err=True)


def _base(config: Config, url: str | None) -> str:
    """The address of Halt before the link's path. Raises ClickException."""
    if url is None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        return f"http://{host}:{config.port}"
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment:
        raise click.ClickException(f"--url {url!r} is no address: use as in https://halt.example.")
    return url.rstrip("/")


# --- list -----------------------------------------------------------------------------------------


def _is_admin(account: AccountSummary, config: Config) -> bool:

    row = PersonRow(account.person_id, "accounts", "", "", account.name, account.is_admin)
    return is_admin("accounts", row, config.admins)


def _state(account: AccountSummary) -> str:
    if account.removed_at is not None:
        return "being removed"
    if account.disabled_at is not None:
        return "disabled"
    if account.has_password:
        return "active"
    return "link sent" if (account.link_until or 0) > time.time() else "link out of time"


def _moment(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "-"


def _chats(rows: AccountRows, person_id: str) -> str:
    """The number of the person's chats, as in "2 chats"; deleted and empty ones do not count."""
    summary = next(summary for summary in rows.summaries() if summary.person_id == person_id)
    return counted(summary.conversations, "chat")


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.ClickException("There is no terminal to ask at: give --yes to remove.")
    return click.confirm(question)

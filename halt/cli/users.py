"""The terminal's commands about accounts: `halt-chat user`. They work while Halt runs or not."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from halt.cli.people import opened
from halt.clock import now
from halt.config.settings import Config
from halt.errors import HaltError

if TYPE_CHECKING:
    from halt.store.accounts import AccountRow, AccountRows, AccountSummary, Link
    from halt.store.store import Store

STOP_WAIT = 10.0  # seconds that `remove` waits for servers to stop what runs
POLL = 0.2  # seconds between two looks while it waits


@click.group(short_help="Add, list and remove accounts (HALT_USERS).")
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
    from halt.people.accounts import new_person  # noqa: PLC0415
    from halt.people.known import is_admin  # noqa: PLC0415
    from halt.people.names import name_key  # noqa: PLC0415

    with _accounts() as (config, rows):
        _base(config, url)  # before anything is saved
        person = new_person(name)
        key = name_key(person.name)
        if (account := rows.find(key)) is not None:
            raise click.ClickException(_taken(account))
        if link:
            token, saved_link = _new_link()
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
                f"{account.name:24}  {admin:5}  {account.conversations:>6,}  "
                f"{account.sign_ins:>9,}  {account.api_tokens:>6,}  "
                f"{_moment(account.used_at):16}  {_state(account)}"
            )


@user.command(short_help="Let nobody use an account for now.")
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
            token, saved_link = _new_link()
            ended = rows.set_link(person_id, saved_link)
        else:
            ended = rows.set_password(person_id, _new_password()) or 0
        text = f"Reset {account.person.name}: {_count(ended, 'sign-in')} ended"
        if tokens:
            text += f", {_count(rows.revoke_tokens(person_id), 'API token')} revoked"
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
    from halt.store.store import Store  # noqa: PLC0415

    with opened() as (config, database):
        store = Store(database)
        rows = store.accounts
        account = _known(rows, name, also_removed=True)
        person = account.person
        chats = next(a.conversations for a in rows.summaries() if a.person_id == person.id)
        question = f"Remove {person.name} with {_count(chats, 'chat')} for good?"
        if not yes and not _confirmed(question):
            raise SystemExit(1)
        with _new_file(file) as write:
            ended = rows.begin_removal(person.id)
            _wait_stopped(config, store, person.id, has_been_known=ended > 0)
            write(store, person.id)
        if file is not None:
            click.echo(f"Wrote {_count(chats, 'chat')} to {file}.")
        count = rows.remove(person.id)
        click.echo(f"Removed {person.name} with {_count(count, 'chat')}.")


@contextlib.contextmanager
def _accounts() -> Iterator[tuple[Config, AccountRows]]:
    """The settings and the accounts. An error ends the command with one line."""
    from halt.store.accounts import AccountRows  # noqa: PLC0415

    with opened() as (config, database):
        yield config, AccountRows(database)


def _known(rows: AccountRows, name: str, *, also_removed: bool = False) -> AccountRow:
    """The account with this name. Raises ClickException."""
    from halt.people.names import name_key  # noqa: PLC0415

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
    from halt.people.passwords import Passwords, checked_password  # noqa: PLC0415

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
    from halt.people.passwords import checked_password  # noqa: PLC0415

    try:
        return checked_password(password)
    except HaltError as fault:
        raise click.UsageError(fault.message) from None


def _new_link() -> tuple[str, Link]:
    from halt.people.accounts import new_link  # noqa: PLC0415

    return new_link()


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
    from halt.people.known import is_admin  # noqa: PLC0415
    from halt.store.people import PersonRow  # noqa: PLC0415

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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- remove ---------------------------------------------------------------------------------------


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.ClickException("There is no terminal to ask at: give --yes to remove.")
    return click.confirm(question)


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[Callable[[Store, str], None]]:
    """Create the file before anything is removed; yield the function that writes the export.

    The file is removed again after an exception. Raises ClickException.
    """
    if path is None:
        yield lambda store, person_id: None
        return
    from halt.store.portable import to_json  # noqa: PLC0415

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(
            f"{path} exists. Choose a new file. Nothing was removed."
        ) from None
    except OSError as exc:
        raise click.ClickException(
            f"{path} cannot be written: {exc.strerror}. Nothing was removed."
        ) from None
    with os.fdopen(descriptor, "wb") as file:

        def write(store: Store, person_id: str) -> None:
            try:
                file.writelines(to_json(store.transfer.export(person_id)))
                file.flush()
                os.fsync(file.fileno())
            except OSError as exc:
                raise click.ClickException(
                    f"{path} cannot be written: {exc.strerror}. No chat was removed. The person "
                    "cannot sign in any more; run the command again to finish."
                ) from None

        try:
            yield write
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _wait_stopped(config: Config, store: Store, person_id: str, *, has_been_known: bool) -> None:
    """Wait until no server runs a stream of a person who is marked as removed.

    A server may admit a request of the person for FRESH seconds more if it knows a sign-in or an
    API token. Raises ClickException after STOP_WAIT.
    """
    from halt.cluster.membership import Membership  # noqa: PLC0415
    from halt.people.known import FRESH  # noqa: PLC0415
    from halt.store.replay import Replay  # noqa: PLC0415

    membership = Membership(config.data_folder)
    membership.look()
    replay = Replay(store.generations, membership.is_alive, config.run_timeout)
    began = now()
    may_serve = bool(config.database_url) or membership.has_live_worker()
    earliest = began + (FRESH + 1 if has_been_known and may_serve else 0)
    while True:
        replay.recover()  # what dead servers have left
        running = store.accounts.running(person_id)
        if not running and now() >= earliest:
            return
        if now() - began > STOP_WAIT:
            what = f"{_count(running, 'answer')} of this person still run{'s' * (running == 1)}"
            raise click.ClickException(
                f"{what} in a server. No chat was removed. The person cannot sign in any more; run "
                "the command again to finish."
            )
        time.sleep(POLL)

"""The terminal's commands about people. They use the database directly, also while Halt runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import click

from halt.cli.columns import in_column
from halt.config.environment import load
from halt.config.settings import Config, ConfigError
from halt.counted import counted
from halt.errors import HaltError
from halt.people.person import MINE, mode_of
from halt.store.database import Database
from halt.store.migrate import open_database
from halt.store.owners import BROWSER, Owner, Owners

#: What the list calls owners without a name. Those without a row are browsers, too.
KINDS = {BROWSER: "browser", "": "browser"}


@contextlib.contextmanager
def opened() -> Iterator[tuple[Config, Database]]:
    """The settings and the database. An error ends the command with one line."""
    try:
        config = load()
        database = open_database(config.data_folder, config.database_url)
        try:
            yield config, database
        finally:
            database.close()
    except ConfigError as fault:
        raise click.ClickException(str(fault)) from None
    except HaltError as fault:
        raise click.ClickException(fault.message) from None


@click.command(
    context_settings={"ignore_unknown_options": True},  # an ID may begin with -
)
@click.argument("owners", nargs=-1, metavar="[OWNER]...")
@click.option("--all", "every", is_flag=True, help="All that no person has.")
@click.option("--to", metavar="NAME", help="The person who gets them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(owners: tuple[str, ...], every: bool, to: str | None, yes: bool) -> None:
    """List who has chats here, or give the chats of OWNERs to a person.

    Earlier versions of Halt kept chats for each browser. An OWNER is an ID of the list, or the
    beginning of one.
    """
    if owners and every:
        raise click.UsageError("Name OWNERs, or say --all.")
    with opened() as (config, database):
        store = Owners(database)
        known = store.all()
        if not owners and not every:
            _print(known, "you" if mode_of(config) == "mine" else "mine")
            return
        target = _target(config, known, to)
        sources = _browsers(known) if every else [_owner(known, part).id for part in owners]
        sources = [owner for owner in dict.fromkeys(sources) if owner != target]
        if not sources:
            click.echo("There is nothing to take over.")
            return
        count = sum(owner.conversations for owner in known if owner.id in sources)
        question = (
            f"Give {counted(count, 'chat')} of {counted(len(sources), 'owner')} to {to or 'you'}?"
        )
        if not yes and not click.confirm(question):
            raise SystemExit(1)
        click.echo(f"{counted(store.give(sources, target), 'chat')} taken over.")


def _print(known: Sequence[Owner], mine: str) -> None:
    """Print the list. `mine` is what it calls the person of the mode `mine`."""
    if not known:
        click.echo("No owner has chats here.")
        return
    click.echo(f"{'OWNER':24}  {'IS':20}  {'CHATS':>6}  {'MESSAGES':>8}  {'FROM':10}  UNTIL")
    for owner in known:
        name = owner.name or (mine if owner.id == MINE.id else KINDS.get(owner.mode, owner.mode))
        click.echo(
            f"{owner.id:24}  {in_column(name, 20)}  {owner.conversations:>6,}  "
            f"{owner.messages:>8,}  {_day(owner.began_at):10}  {_day(owner.used_at)}"
        )
    if _browsers(known):
        click.echo("\nTo take over all that is of browsers: halt-chat adopt --all")


def _browsers(known: Sequence[Owner]) -> list[str]:
    return [owner.id for owner in known if owner.mode in {"", BROWSER} and owner.id != MINE.id]


def _owner(known: Sequence[Owner], part: str) -> Owner:
    """The owner whose ID begins so. Raises ClickException."""
    found = [owner for owner in known if owner.id.startswith(part)]
    exact = [owner for owner in found if owner.id == part]
    if len(exact or found) != 1:
        what = "No owner's ID begins" if not found else f"{len(found)} owners' IDs begin"
        raise click.ClickException(f"{what} with {part!r}. `halt-chat adopt` lists them.")
    return (exact or found)[0]


def _target(config: Config, known: Sequence[Owner], to: str | None) -> str:
    """The ID of the person who gets the chats. Raises ClickException."""
    mode = mode_of(config)
    if to is None:
        if mode == "mine":
            return MINE.id
        raise click.ClickException("Say who gets them: --to NAME.")
    people = [owner for owner in known if owner.mode == mode and to in {owner.name, owner.id}]
    if len(people) != 1:
        raise click.ClickException(f"{len(people) or 'No'} people here have the name {to!r}.")
    return people[0].id


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at)) if at else "-"

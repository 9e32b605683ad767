"""The parts of `halt-chat user remove`: the export, and the wait for the servers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from halt.clock import now
from halt.cluster.membership import Membership
from halt.config.settings import Config
from halt.counted import counted
from halt.people.known import FRESH
from halt.store.exports import to_json
from halt.store.replay import Replay
from halt.store.store import Store

STOP_WAIT = 10.0  # seconds to wait for servers to stop what runs
POLL = 0.2  # seconds between two looks while it waits


@contextlib.contextmanager
def new_export(path: Path | None) -> Iterator[Callable[[Store, str], None]]:
    """Create the file before anything is removed; yield the function that writes the export.

    The file is removed again after an exception. Raises ClickException.
    """
    if path is None:
        yield lambda store, person_id: None
        return
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
                contents = store.files.contents(person_id)
                file.writelines(to_json(store.transfer.export(person_id), contents))
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


def wait_stopped(config: Config, store: Store, person_id: str, *, has_been_known: bool) -> None:
    """Wait until no server runs a stream of a person who is marked as removed.

    A server may admit a request of the person for FRESH seconds more if it knows a sign-in or an
    API token. Raises ClickException after STOP_WAIT.
    """
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
            what = f"{counted(running, 'answer')} of this person still run{'s' * (running == 1)}"
            raise click.ClickException(
                f"{what} in a server. No chat was removed. The person cannot sign in any more; run "
                "the command again to finish."
            )
        time.sleep(POLL)

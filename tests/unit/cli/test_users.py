"""The command `halt-chat user`: accounts are added, listed, disabled, reset and removed."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from halt.cli.users import user
from halt.people.accounts import new_link
from halt.people.known import digest_of
from halt.people.passwords import Passwords
from halt.store.accounts import AccountRow
from tests.support.files import save
from tests.support.halt_server import ROOT, halt_environment
from tests.support.pseudo_terminal import Terminal
from tests.support.stores import WORKER, Chat, open_store

PASSWORD = "a good password"


class Users:
    """`halt-chat user` with a data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *args: str, input: str = "", **settings: str) -> Result:
        env = {"HALT_DATA": str(self.folder), "HALT_USERS": "1", "HALT_ADMINS": "", **settings}
        return CliRunner().invoke(user, args, input=input, env=env)

    def account(self, key: str) -> AccountRow:
        with open_store(self.folder) as store:
            account = store.accounts.find(key)
        assert account is not None
        return account


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "data")


def test_password_comes_from_the_input_and_the_first_account_is_administrator(
    users: Users,
) -> None:
    """Without a terminal the input's first line is the password; the list has no secret."""
    assert users.run("add", "Ann", input=f"{PASSWORD}\n").output == "Added Ann, an administrator.\n"
    assert users.run("add", "Bob", input=f"{PASSWORD}\r\nmore").output == "Added Bob.\n"
    for key in ("ann", "bob"):
        saved = users.account(key).password
        assert Passwords().matches(saved, PASSWORD)
        assert str(saved) not in users.run("list").output
    listed = users.run("list", HALT_ADMINS="BOB").output.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["Ann", "no"], ["Bob", "yes"]]


@pytest.mark.parametrize(
    ("args", "text", "message"),
    [
        (("add", "Bob"), "", "none came on the standard input"),
        (("add", "Bob"), "short\n", "at least 8 characters"),
        (("add", "aNN"), f"{PASSWORD}\n", "There is an account with the name 'Ann' already."),
        (("add", "a\nb"), f"{PASSWORD}\n", "no control characters"),
        (("add", "a\u202eb"), f"{PASSWORD}\n", "no invisible ones"),
        (("add", "Bob", "--link", "--url", "halt.example"), "", "is no address"),
        (("reset", "Bob"), f"{PASSWORD}\n", "There is no account with the name 'Bob'."),
        (("remove", "Ann"), "y\n", "There is no terminal to ask at"),
        (("remove", "Ann", "--yes", "--export", "/nowhere/a.json"), "", "cannot be written"),
        (("remove", "Ann", "--yes", "--export", __file__), "", "exists. Choose a new file."),
    ],
)
def test_wrong_input_changes_nothing(
    users: Users, args: tuple[str, ...], text: str, message: str
) -> None:
    """Bad input is named in one line, and nothing is changed."""
    users.run("add", "Ann", input=f"{PASSWORD}\n")
    before = users.run("list").output
    refused = users.run(*args, input=text)
    assert refused.exit_code == 1
    assert message in refused.output
    assert len(refused.output.splitlines()) == 1
    assert users.run("list").output == before


def test_link_is_kept_as_a_digest(users: Users) -> None:
    """The one-time link is printed once, under the address of Halt that is given."""
    output = users.run("add", "Ann", "--link", "--url", "https://halt.example/chat/").output
    match = re.search(r"^https://halt\.example/chat/link\?key=([\w-]{43})$", output, re.MULTILINE)
    assert match is not None
    with open_store(users.folder) as store:
        account = store.accounts.of_link(digest_of(match[1]))
    assert account == users.account("ann")
    assert account is not None
    assert account.password is None
    assert "link sent" in users.run("list").output


def test_reset_sets_a_password_and_revokes_tokens_if_told(users: Users) -> None:
    """The old password works no longer; API tokens stay unless `--tokens` is given."""
    users.run("add", "Ann", input=f"{PASSWORD}\n")
    person = users.account("ann").person
    with open_store(users.folder) as store:
        store.sign_ins.add_token(person.id, "a digest", "A script")
    reset = users.run("reset", "ann", input="another password\n")
    assert reset.output == "Reset Ann: 0 sign-ins ended.\n"
    assert Passwords().matches(users.account("ann").password, "another password")
    output = users.run("reset", "ann", "--link", "--tokens").output
    assert output.startswith("Reset Ann: 0 sign-ins ended, 1 API token revoked.\n")
    assert users.account("ann").password is None


def test_disabled_account_is_listed_as_such(users: Users) -> None:
    """`disable` and `enable` change the state that the list shows."""
    users.run("add", "Ann", input=f"{PASSWORD}\n")
    assert users.run("disable", "ann").output == "Disabled Ann.\n"
    assert users.account("ann").person.disabled_at is not None
    assert "disabled" in users.run("list").output
    assert users.run("enable", "Ann").output == "Enabled Ann.\n"
    assert "active" in users.run("list").output


def test_removal_exports_first_and_finishes_one_that_was_interrupted(
    users: Users, tmp_path: Path
) -> None:
    """The export has all chats and is private; a removal that was begun before is finished."""
    users.run("add", "Ann", input=f"{PASSWORD}\n")
    person = users.account("ann").person
    with open_store(users.folder) as store:
        Chat(store, "chat-of-ann", person.id).add_exchange("Pineapple?", "Yes.")
        Chat(store, "died-of-ann", person.id).ask("Its worker has died")
        file_hash = save(store, b"pineapple", person.id).hash
        chat = Chat(store, "files-of-ann", person.id)
        store.turns.add_prompt(
            chat.name, person.id, "", [("a", "")], worker=WORKER, files=[(file_hash, "a.txt")]
        )
        chat.end(chat.key("a"), "Yes.")
        store.accounts.begin_removal(person.id)
        _, link = new_link()
        store.accounts.set_link(person.id, link)
    assert "is being removed" in users.run("disable", "Ann").output
    assert "is being removed" in users.run("add", "Ann", input=f"{PASSWORD}\n").output
    file = tmp_path / "ann.json"
    removed = users.run("remove", "Ann", "--yes", "--export", str(file))
    assert removed.output.splitlines() == [f"Wrote 3 chats to {file}.", "Removed Ann with 3 chats."]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    exported = json.loads(file.read_bytes())
    assert exported["format"] == "halt-conversations"
    assert {chat["id"] for chat in exported["conversations"]} == {
        "chat-of-ann",
        "died-of-ann",
        "files-of-ann",
    }
    assert exported["files"] == [
        {"hash": file_hash, "type": "text/plain", "data": b64encode(b"pineapple").decode()}
    ]
    assert users.run("list").output.startswith("There are no accounts.")


def test_removal_while_an_answer_runs_removes_nothing_yet(
    users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a server does not stop an answer in time, all chats stay and the person is locked out."""
    monkeypatch.setattr("halt.cli.removal.STOP_WAIT", 0.0)
    users.run("add", "Ann", input=f"{PASSWORD}\n")
    person = users.account("ann").person
    with open_store(users.folder) as store:
        chat = Chat(store, "chat-of-ann", person.id)
        stream = chat.new_stream()
        another_host = "1-0123abcd-another-folder"  # nothing tells whether this worker is alive
        store.turns.add_prompt(
            chat.name, chat.owner, "Hello", [(stream.id, "")], worker=another_host
        )
    file = tmp_path / "ann.json"
    refused = users.run("remove", "Ann", "--yes", "--export", str(file))
    assert refused.exit_code == 1
    assert "1 answer of this person still runs in a server. No chat was removed." in refused.output
    assert not file.exists()
    assert users.account("ann").person.removed_at is not None
    with open_store(users.folder) as store:
        chat.store = store
        chat.end(stream, "Hello.")
    assert "Removed Ann with 1 chat." in users.run("remove", "Ann", "--yes").output


def test_terminal_asks_twice_and_shows_no_password(users: Users) -> None:
    """At a terminal the password is asked for twice, again if it is too short, and not shown."""
    terminal = Terminal(
        [sys.executable, "-m", "halt", "user", "add", "Ann"],
        halt_environment({"HALT_DATA": str(users.folder)}),
        str(ROOT),
    )
    try:
        for prompt, password in (
            (r"Password:\s*\Z", "short"),
            (r"at least 8 characters\.\s+Password:\s*\Z", PASSWORD),
            (r"The same again:\s*\Z", PASSWORD),
        ):
            terminal.wait(prompt)
            terminal.type(f"{password}\r")
        terminal.wait("Added Ann, an administrator.")
        assert terminal.wait_exit() == 0
        assert PASSWORD not in terminal.text
    finally:
        terminal.close()
    assert Passwords().matches(users.account("ann").password, PASSWORD)


def test_name_that_begins_with_a_dash_needs_a_hint(users: Users) -> None:
    """Such a name is taken for options; the error says how to give it."""
    refused = users.run("add", "--link", "-dash")
    assert refused.exit_code == 2
    assert "comes last, after --: user add -- NAME" in refused.output
    assert users.run("add", "--link", "--", "-dash").exit_code == 0


def test_list_keeps_its_columns_for_long_and_wide_names(users: Users) -> None:
    """A name longer than its column is cut with an ellipsis; a wide character takes two cells."""
    for name in ("Bo", "A name that is longer than its column", "\u65e5\u672c\u8a9e" * 6):
        assert users.run("add", "--link", "--", name).exit_code == 0
    header, *lines = users.run("list").output.splitlines()
    assert {cell_len(line.split(" yes ")[0].split(" no ")[0]) for line in lines} == {25}
    assert header.index("ADMIN") == 26
    assert sum("\u2026" in line for line in lines) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_output_that_cannot_be_written_ends_the_command_with_one_line(users: Users) -> None:
    """A full disk behind the standard output is named without a traceback."""
    users.run("add", "--link", "Ann")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "halt", "user", "list"],
            cwd=ROOT,
            env=halt_environment({"HALT_DATA": str(users.folder), "HALT_USERS": "1"}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "halt: the output cannot be written: No space left on device\n"

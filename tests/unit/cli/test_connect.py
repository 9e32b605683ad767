"""`halt-chat connect`, `disconnect` and `models`: providers are connected, listed and removed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from halt.cli.connect import connect, disconnect
from halt.cli.models import models
from halt.config.providers import ModelSettings
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import connected_at, details
from tests.support.doctor_command import doctor
from tests.support.halt_server import ROOT, HaltServer, StartHalt, halt_environment
from tests.support.model_servers import LOCKED, listing
from tests.support.model_servers import models as models_of
from tests.support.multi_worker import MultiWorkerHalt
from tests.support.pseudo_terminal import Terminal
from tests.support.raw_server import RawServer
from tests.support.simple_model_server import (
    ModelRequest,
    list_models,
    reply_with,
    serving,
    stream_answer,
)
from tests.support.stores import POSTGRES, postgres_schema
from tests.support.waiting import SERVER_TIMEOUT, wait_until

KEY = "sk-connected-0123456789"
TEAM = "team-of-the-header-42"
COMMANDS = {"connect": connect, "disconnect": disconnect, "models": models}


class Halt:
    """The commands with a data folder. `run` runs in this process, `start` in its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        return halt_environment({"HALT_DATA": str(self.folder), **settings})

    def run(self, name: str, *args: str, input: str = "", **settings: str) -> Result:
        """Run a command without a terminal."""
        env: dict[str, str | None] = {"KEY": KEY, "TEAM": TEAM}
        env |= self._environment(settings)
        env |= dict.fromkeys(os.environ.keys() - env.keys())
        return CliRunner().invoke(COMMANDS[name], args, input=input, env=env)

    def start(self, *args: str, input: str = "", **settings: str) -> tuple[int, str, str]:
        """Run `halt-chat`; return its exit status and what it printed and reported."""
        done = subprocess.run(
            [sys.executable, "-m", "halt", *args],
            cwd=ROOT,
            env=self._environment(settings),
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    def listed(self, **settings: str) -> list[dict[str, Any]]:
        """The providers that `models --json` prints."""
        providers: list[dict[str, Any]] = json.loads(
            self.run("models", "--json", **settings).stdout
        )["providers"]
        return providers


@pytest.fixture
def halt(tmp_path: Path) -> Halt:
    return Halt(tmp_path / "data")


@pytest.fixture
def second(shared_fake: FakeOpenAI, halt: Halt) -> str:
    """The address of a connected provider with the name `second`, and two models."""
    done = halt.run(
        *("connect", shared_fake.base_url, "--name", "Second", "--key-env", "KEY", "--no-try"),
        *("--header-env", "X-Team=TEAM", "--model", "echo", "--model", "count?n=2"),
    )
    assert done.exit_code == 0, done.output
    return shared_fake.base_url


def lines_of(result: Result) -> list[str]:
    return str(result.output).splitlines()


# --- connect --------------------------------------------------------------------------------------


def test_connected_provider_is_tried_used_and_removed(halt: Halt, fake: FakeOpenAI) -> None:
    """All commands use it, its key is in no output and no file, and it can be removed."""
    key_options = ("--key-stdin", "--header-env", "X-Team=TEAM")
    status, printed, reported = halt.start(
        *("connect", fake.base_url, "--name", "Second", "--model", "echo", *key_options),
        input=f"{KEY}\n",
        TEAM=TEAM,
    )
    assert (status, reported) == (0, "")
    *findings, sentence = printed.splitlines()
    assert [line.split(": ")[0].split()[1] for line in findings] == [
        *("address", "key", "models", "answer", "stop"),
    ]
    assert sentence == (
        "Connected Second: its models are named second/MODEL. "
        "A running Halt uses it within a second."
    )
    assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    status, printed, reported = halt.start("chat", "--model", "second/echo", input="Hello?")
    assert (status, printed, reported) == (0, "Hello?\n", "")
    assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert fake.requests[-1].headers["x-team"] == TEAM
    status, printed, _ = halt.start("models")
    assert status == 0
    assert "\n  key      …6789\n" in printed
    assert "\n  headers  X-Team\n" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())
    for file in halt.folder.rglob("*"):
        if file.is_file():
            assert not any(secret.encode() in file.read_bytes() for secret in (KEY, TEAM)), file
    assert halt.start("disconnect", "second")[:2] == (
        0,
        "Removed Second with its keys. A running Halt drops it within a second.\n",
    )
    assert halt.listed() == []


def test_typed_key_is_not_shown_and_no_process_has_it(halt: Halt) -> None:
    """A typed key is in no argument and no environment while it is used; a wrong one is asked
    for again.
    """
    seen: list[bytes] = []

    def look(request: ModelRequest) -> None:
        if f"Bearer {KEY}" == request.headers["Authorization"]:
            for path in Path("/proc").glob("[0-9]*/*"):
                if path.name in {"cmdline", "environ"}:
                    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                        seen.append(path.read_bytes())
        list_models(request)

    with serving(look, stream_answer) as url:
        terminal = Terminal(
            [sys.executable, "-m", "halt", "connect", url, "--name", "Typed", "--header", "X-Team"],
            halt_environment({"HALT_DATA": str(halt.folder)}),
            str(ROOT),
        )
        try:
            terminal.wait(r"Value of X-Team:\s*\Z")
            terminal.type(f"{TEAM}\r")
            terminal.wait(r"Key of Typed \(Enter for none\):\s*\Z")
            terminal.type("a key with spaces\r")
            terminal.wait(r"without spaces\.\s+Key of Typed \(Enter for none\):\s*\Z")
            terminal.type(f"{KEY}\r")
            terminal.wait("Connected Typed")
            assert terminal.wait_exit() == 0
        finally:
            terminal.close()
    assert KEY.encode() not in terminal.raw
    assert TEAM.encode() not in terminal.raw
    assert seen
    assert not any(KEY.encode() in text or TEAM.encode() in text for text in seen)
    (provider,) = halt.listed()
    assert (provider["key"], provider["headers"]) == ("…6789", ["X-Team"])


def test_ctrl_c_ends_a_trial_and_saves_nothing(halt: Halt) -> None:
    """A server that does not answer delays the end by nothing."""
    asked, over = threading.Event(), threading.Event()

    def wait(request: ModelRequest) -> None:
        asked.set()
        over.wait(SERVER_TIMEOUT)

    with serving(wait, stream_answer) as url:
        terminal = Terminal(
            [sys.executable, "-m", "halt", "connect", url, "--no-key"],
            halt_environment({"HALT_DATA": str(halt.folder)}),
            str(ROOT),
        )
        try:
            assert asked.wait(SERVER_TIMEOUT)
            terminal.type("\x03")
            assert terminal.wait_exit() == 1
            assert "Traceback" not in terminal.text
        finally:
            over.set()
            terminal.close()
    assert terminal.text.endswith("Aborted!")
    assert halt.listed() == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("grok",), "URL must be an address, such as http://127.0.0.1:11434/v1, or one of openai,"),
        (("groq", "--preset", "azure"), "groq is a service: leave out --preset."),
        (("azure",), "connect https://NAME.openai.azure.com --preset azure"),
        (("http://host/v1?a", "--no-key"), "URL: This is not an address of an API"),
        (("http://secret-of-a:b@host/v1", "--no-key"), "must not contain a user name or password"),
        (("http://host/v1",), "There is no terminal to type the key: use --key-env VAR"),
        (("http://host/v1", "--key-env", "NO_SUCH"), "key: the variable NO_SUCH is not set."),
        (("http://host/v1", "--key-env", "sk-secret-of-a"), "takes the name of a variable"),
        (("http://host/v1", "--key-stdin"), "No key came on the standard input."),
        (("http://host/v1", "--key-stdin", "--no-key"), "Use only one of --key-env"),
        (("http://host/v1", "--header-env", "X=sk-secret-of-a"), "--header-env takes NAME=VAR"),
        (("http://host/v1", "--header", "X: secret-of-a"), "takes the name of a header alone"),
        (("http://host/v1", "--no-key", "--header", "X"), "use --header-env X=VAR."),
        (("http://host/v1", "--no-key", "--name", "x" * 61), "--name: A name has 1 to 60"),
        (("http://host/v1", "--preset", "azure", "--no-key"), "--model: Name your deployments"),
        (("http://host/v1", "--preset", "none"), "'none' is not one of 'compatible'"),
    ],
)
def test_wrong_input_is_named_and_makes_no_folder(
    halt: Halt, args: tuple[str, ...], message: str
) -> None:
    """The error says what is wrong, without what may be a secret."""
    refused = halt.run("connect", *args)
    assert refused.exit_code in {1, 2}
    assert message in refused.output
    assert "secret-of-a" not in refused.output
    assert not halt.folder.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("groq", "--no-key"), "key: Groq needs a key."),
        (("http://host/v1", "--name", "Second", "--no-key"), "--name: There is a provider with"),
        (("http://host/v1", "--name", "OpenAI", "--no-key"), "--name: There is a provider with"),
        (
            ("http://host/v1", "--name", "count", "--no-key"),
            "--name: Models of openai have names that begin with count/",
        ),
        (
            ("http://host/v1", "--header-env", "Host=TEAM", "--no-key", "--no-try"),
            "--header: Halt sets the header Host itself.",
        ),
    ],
)
def test_refused_provider_is_not_saved(
    halt: Halt, second: str, args: tuple[str, ...], message: str
) -> None:
    """Names that are taken, in the settings too, and missing keys are named before a trial."""
    with serving(reply_with({"data": [{"id": "count/1"}]}), stream_answer) as url:
        refused = halt.run("connect", *args, OPENAI_BASE_URL=url)
    assert refused.exit_code == 1
    assert lines_of(refused)[0].startswith(f"Error: {message}")
    assert [provider["name"] for provider in halt.listed()] == ["second"]


def test_failed_check_saves_only_if_forced(halt: Halt) -> None:
    """The finding is printed, and why nothing was saved."""
    with socket.socket() as silent:  # bound, and refuses connections
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        refused = halt.run("connect", url, "--no-key", "--name", "Gone")
        assert refused.exit_code == 1
        finding, error = lines_of(refused)
        assert finding.startswith("fail  address: ")
        assert finding.endswith("or correct URL.")
        assert error == "Error: Nothing was saved, since a check has failed. --force saves it."
        assert halt.listed() == []
        assert halt.run("connect", url, "--no-key", "--name", "Gone", "--force").exit_code == 0
        (provider,) = halt.listed()
    assert (provider["state"], provider["models"]) == ("fault", [])


@pytest.mark.skipif(not POSTGRES, reason="TEST_DATABASE_URL names no PostgreSQL")
def test_postgresql_without_a_common_key_saves_no_key(halt: Halt, fake: FakeOpenAI) -> None:
    """The reason is said before a key is used; a provider without a key is saved."""
    with postgres_schema() as url:
        names = ("--name", "Second")
        refused = halt.run("connect", fake.base_url, "--key-env", "KEY", *names, DATABASE_URL=url)
        assert refused.exit_code == 1
        assert "key: No key can be saved here" in refused.output
        assert "Set HALT_SECRET_KEY to one value" in refused.output
        assert fake.requests == []
        for options, settings in (
            (("--no-key",), {}),
            (("--key-env", "KEY", "--name", "Third"), {"HALT_SECRET_KEY": "k" * 20}),
        ):
            done = halt.run(
                "connect", fake.base_url, *names, *options, DATABASE_URL=url, **settings
            )
            assert done.exit_code == 0, done.output
        listed = halt.listed(DATABASE_URL=url, HALT_SECRET_KEY="k" * 20)
        assert [(one["name"], one["key"]) for one in listed] == [("second", ""), ("third", "…6789")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "No connected provider has the name 'nobody'."),
        ("openai", "openai is set by the settings: change it there."),
    ],
)
def test_disconnect_names_what_it_cannot_remove(
    halt: Halt, second: str, tmp_path: Path, name: str, message: str
) -> None:
    """Providers of the settings stay; without a database none is made."""
    for where in (halt, Halt(tmp_path / "new")):
        refused = where.run("disconnect", name, OPENAI_BASE_URL=second)
        assert refused.exit_code == 1
        assert message in refused.output
    assert not (tmp_path / "new").exists()
    assert len(halt.listed()) == 1


# --- models ---------------------------------------------------------------------------------------


def test_models_without_any_provider_makes_no_folder(halt: Halt) -> None:
    """It says so, with the next step, and the exit status is that of a failure."""
    result = halt.run("models")
    assert result.exit_code == 1
    assert result.output == (
        "No provider is set up or connected. To connect one: halt-chat connect URL\n"
    )
    assert halt.listed() == []
    assert not halt.folder.exists()


def test_models_lists_all_providers_with_what_was_chosen(halt: Halt, second: str) -> None:
    """Each provider has its source, key and state; each model its abilities and marks."""
    with connected_at(halt.folder) as connected:
        connected.set_model("second", "echo", ModelSettings(label="Parrot", context=131_072))
        connected.set_model("second", "count?n=2", ModelSettings(hidden=True))
        connected.set_default(("second", "echo"))
    with serving(list_models, stream_answer) as url:
        result = halt.run("models", OPENAI_BASE_URL=url, OPENAI_API_KEY="sk-set-0123456789")
    assert result.exit_code == 0
    assert result.output == (
        f"openai: {url.removeprefix('http://').removesuffix('/v1')}\n"
        "  source   OPENAI_BASE_URL and OPENAI_API_KEY\n"
        f"  address  {url}\n"
        "  key      …6789\n"
        "  state    reachable\n"
        "  models   1\n"
        "    good\n"
        "\n"
        "second: Second\n"
        "  source   connected\n"
        f"  address  {second}\n"
        "  key      …6789\n"
        "  headers  X-Team\n"
        "  state    reachable\n"
        "  models   2\n"
        "    second/echo       “Parrot”  128k context  (default)\n"
        "    second/count?n=2  (hidden)\n"
    )


def test_models_shows_faults_in_the_servers_words(halt: Halt, second: str) -> None:
    """A refused key, and a key that was lost; control characters do not reach the terminal."""
    refusal = reply_with({"error": {"message": "No \x1b[2Jsuch key \u202eyek"}}, 401)
    with serving(refusal, stream_answer) as url:
        result = halt.run("models", OPENAI_BASE_URL=url, HALT_SECRET_KEY="another key of Halt")
    assert result.exit_code == 1
    assert "No [2Jsuch key yek" in result.output
    assert "\x1b" not in result.output
    lost = "  state    The saved key of Second cannot be read any more: enter the key again.\n"
    assert lost in result.output


def test_models_lists_servers_that_were_found(halt: Halt) -> None:
    """One offers its models; another one needs a key, and the next step is named until then."""
    with RawServer(listing(models_of("gemma"))) as found, RawServer(LOCKED) as locked:
        urls = [f"http://127.0.0.1:{server.port}" for server in (found, locked)]
        result = halt.run("models", HALT_DISCOVER=",".join(urls))
        halt.run("connect", f"{urls[1]}/v1", "--no-key", "--no-try")
        after = halt.run("models", HALT_DISCOVER=",".join(urls))
    assert result.exit_code == 0, result.output
    name = f"local-{found.port}"
    assert f"{name}: 127.0.0.1:{found.port}\n  source   found at {urls[0]}\n" in result.output
    assert f"    {name}/gemma  (default)\n" in result.output
    assert result.output.endswith(
        f"\n{urls[1]}/v1 needs a key. To connect it: halt-chat connect {urls[1]}/v1\n"
    )
    assert f"  address  {urls[1]}/v1\n" in after.output
    assert "needs a key" not in after.output


def test_terminal_without_unicode_gets_question_marks(halt: Halt, second: str) -> None:
    """What an encoding lacks is no error."""
    status, printed, reported = halt.start("models", PYTHONIOENCODING="latin-1")
    assert (status, reported) == (0, "")
    assert "  key      ?6789\n" in printed


def test_damaged_database_is_named_in_a_line(halt: Halt, second: str) -> None:
    """`models` and `doctor` report it; a chat with another provider works, and says so."""
    (halt.folder / "halt.db").write_bytes(b"no database" * 1000)
    result = halt.run("models", OPENAI_BASE_URL=second)
    assert result.exit_code == 1
    assert result.output == (
        "Error: Reading from the database failed: the database is damaged. Try again later.\n"
    )
    settings = {"OPENAI_BASE_URL": second, "HALT_DATA": str(halt.folder)}
    status, printed, reported = halt.start("chat", "--model", "echo", input="Hi", **settings)
    assert (status, printed) == (0, "Hi\n")
    assert reported.startswith("The connected providers are not used: Reading from the database")
    assert len(reported.splitlines()) == 1
    report = doctor(**settings, HALT_MODEL="count?rate=60&n=30")
    assert report.findings["connected providers"]["status"] == "fail"


# --- the other commands, and the server -----------------------------------------------------------


def test_doctor_checks_connected_providers(halt: Halt, second: str) -> None:
    """Without another provider too; a key that was lost is a fault with its remedy."""
    folder = {"HALT_DATA": str(halt.folder), "OPENAI_API_KEY": ""}
    report = doctor(**folder)
    assert report.findings["answer"]["status"] == "ok"
    assert "streaming" in report.findings
    report = doctor(**folder, OPENAI_BASE_URL=second, HALT_MODEL="echo")
    assert report.findings["second: answer"]["status"] == "ok"
    assert report.findings["openai: answer"]["status"] == "ok"
    report = doctor(**folder, OPENAI_BASE_URL=second, HALT_SECRET_KEY="another key of Halt")
    assert report.exit_code == 1
    assert report.text_of("second: key").endswith("cannot be read any more: enter the key again.")
    assert "halt-chat disconnect second" in report.remedy("second: key")


@pytest.fixture
def server(halt: Halt) -> Iterator[MultiWorkerHalt]:
    """A Halt without any provider, with two workers and the commands' data folder."""
    running = MultiWorkerHalt(2, {"HALT_DATA": str(halt.folder)})
    yield running
    running.close()


def test_every_worker_of_a_running_halt_follows(
    halt: Halt, server: MultiWorkerHalt, fake: FakeOpenAI
) -> None:
    """The key that the command has sealed is used by each worker, until it is removed."""
    clients = [server.client_of(name) for name in server.names]

    def listed(client: Any) -> list[str]:
        response = client.get("/v1/models")
        return [model["id"] for model in response.json.get("data", [])]

    arguments = ("connect", fake.base_url, "--name", "Second", "--model", "echo")
    assert halt.start(*arguments, "--key-env", "SECOND_KEY", SECOND_KEY=KEY)[0] == 0
    for client in clients:
        wait_until(lambda: "second/echo" in listed(client), SERVER_TIMEOUT)
        assert client.chat("second/echo").to_end().terminal["type"] == "done"
        assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert halt.start("disconnect", "second")[0] == 0
    for client in clients:
        wait_until(lambda: "second/echo" not in listed(client), SERVER_TIMEOUT)
    assert KEY not in server.printed


def test_start_names_a_connected_provider_and_needs_no_demo_model(
    halt: Halt, fake: FakeOpenAI
) -> None:
    """The command came first and has made the folder and its key."""
    assert halt.run("connect", fake.base_url, "--name", "Second", "--key-env", "KEY").exit_code == 0
    server = HaltServer({"HALT_DATA": str(halt.folder)})
    try:
        printed = server.wait_printed(r"Model server: (.*)\n")[1]
        assert printed == f"connected: Second at {fake.base_url}"
        assert server.client().chat("second/echo").to_end().terminal["type"] == "done"
        assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
        assert "demo model" not in server.printed
    finally:
        server.close()


def test_start_without_the_key_says_that_there_is_no_model(halt: Halt, second: str) -> None:
    """A provider whose key was lost does not replace the demo model."""
    server = HaltServer({"HALT_DATA": str(halt.folder), "HALT_SECRET_KEY": "another key of Halt"})
    try:
        assert "demo model" in server.wait_printed(r"Model server: (.*)\n")[1].lower()
    finally:
        server.close()


def test_provider_of_the_settings_comes_first_at_the_start(halt: Halt, second: str) -> None:
    """The line names both, and a default model that was chosen if the settings have none."""
    with connected_at(halt.folder) as connected:
        connected.add(details(second, title="Third"))
        connected.set_default(("third", "echo"))
    connected_text = f"connected: Second at {second}, Third at {second}"
    for model, text in (
        ("echo", f"echo at {second}; {connected_text}"),
        ("", f"{second}; {connected_text}; default model: third/echo"),
    ):
        settings = {"HALT_DATA": str(halt.folder), "OPENAI_BASE_URL": second, "HALT_MODEL": model}
        server = HaltServer(settings)
        try:
            assert server.wait_printed(r"Model server: (.*)\n")[1] == text
        finally:
            server.close()


def test_connect_warns_if_halt_may_have_another_secret_key(
    halt: Halt, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A Halt with HALT_SECRET_KEY has used the folder; the command has none, then the same."""
    secret = {"HALT_SECRET_KEY": "the secret key of Halt"}
    server = start_halt(HALT_DATA=str(halt.folder), **secret)
    arguments = ("connect", fake.base_url, "--no-try", "--key-env", "KEY", "--name")
    same = halt.run(*arguments, "Same", **secret)
    assert (same.exit_code, same.stderr) == (0, "")
    wait_until(
        lambda: server.client().chat("same/echo").to_end().terminal["type"] == "done",
        SERVER_TIMEOUT,
    )
    assert "set the same HALT_SECRET_KEY" in halt.run(*arguments, "Other").stderr

"""Which providers there are, as the environment or a file says, and who answers for a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from halt.config.environment import load
from halt.config.provider_setup import setup
from halt.config.providers import ProviderSettings, Setup
from halt.config.settings import Config, ConfigError
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest
from halt.errors import UpstreamError
from halt.providers import router
from halt.providers.factory import make_provider
from halt.providers.router import Providers
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import StartHalt, new_id, refused_start, request_record
from tests.support.provider_answers import HI, ask, closed_port, refused
from tests.support.raw_server import Peer, RawServer
from tests.support.waiting import WAIT_TIMEOUT

Make = Callable[..., Providers]

FILE = """\
default = "local/count?n=2"

[providers.local]
kind = "openai"
base_url = "{fake.base_url}"

[providers.claude]
kind = "anthropic"
base_url = "{fake.origin}"
key_env = "CLAUDE_KEY"
models = ["count?n=3", "echo", "stall?n=1"]

[providers.work]
kind = "azure"
endpoint = "{fake.origin}"
key_env = "WORK_KEY"
models = ["count?n=4", "silent_headers"]
"""


@pytest.fixture
def file(tmp_path: Path, fake: FakeOpenAI) -> Path:
    """A file with one provider of each kind, all of them the fake."""
    path = tmp_path / "halt.toml"
    path.write_text(FILE.format(fake=fake))
    return path


def of_file(path: Path, model: str = "", **environ: str) -> Setup:
    return setup(Config(config_file=str(path), model=model), lambda name: environ.get(name, ""))


# --- how answers are gone on with -----------------------------------------------------------------


def test_how_models_go_on_is_a_setting_and_a_key_of_the_file(tmp_path: Path) -> None:
    """HALT_CONTINUE holds for all providers; a provider of the file may have its own way."""
    path = tmp_path / "halt.toml"
    path.write_text(
        '[providers.a]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[providers.b]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\ncontinue = "prefix"\n'
    )
    told = setup(load({"HALT_CONFIG": str(path), "HALT_CONTINUE": "instruction"}))
    assert [each.continues for each in told.providers] == ["instruction", "prefix"]
    told = setup(load({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "HALT_CONTINUE": "prefix"}))
    assert [each.continues for each in told.providers] == ["prefix", "prefix"]
    assert [each.continues for each in setup(Config(api_key="k")).providers] == ["auto"]
    with pytest.raises(ConfigError, match="HALT_CONTINUE='no' is not allowed: use auto or prefix"):
        load({"HALT_CONTINUE": "no"})


# --- the environment ------------------------------------------------------------------------------

AZURE = {
    "AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com",
    "AZURE_OPENAI_API_KEY": "k-azure",
    "AZURE_OPENAI_DEPLOYMENT": "gpt",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [("demo", "openai", "", "none")]),
        ({"OPENAI_API_KEY": "k"}, [("openai", "openai", "https://api.openai.com/v1", "k")]),
        ({"OPENAI_BASE_URL": "http://h/v1"}, [("openai", "openai", "http://h/v1", "none")]),
        (
            {"ANTHROPIC_API_KEY": "k"},
            [("anthropic", "anthropic", "https://api.anthropic.com", "k")],
        ),
        (
            {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "http://h"},
            [("anthropic", "anthropic", "http://h", "k")],
        ),
        (AZURE, [("azure", "azure", "https://x.openai.azure.com", "k-azure")]),
        (
            AZURE | {"OPENAI_API_KEY": "k1", "ANTHROPIC_API_KEY": "k2"},
            [
                ("openai", "openai", "https://api.openai.com/v1", "k1"),
                ("azure", "azure", "https://x.openai.azure.com", "k-azure"),
                ("anthropic", "anthropic", "https://api.anthropic.com", "k2"),
            ],
        ),
    ],
)
def test_variables_make_providers(environ: dict[str, str], expected: list[Any]) -> None:
    """Each provider whose variables are set is there, in a fixed order."""
    found = setup(load(environ)).providers
    assert [(each.name, each.kind, each.base_url, each.key) for each in found] == expected


def test_azures_variables() -> None:
    """The deployment is its only model, the version has a default."""
    (azure,) = setup(load(AZURE)).providers
    assert (azure.models, azure.first_model, azure.api_version) == (("gpt",), "gpt", "2024-10-21")
    (azure,) = setup(load(AZURE | {"OPENAI_API_VERSION": "2025-01-01-preview"})).providers
    assert azure.api_version == "2025-01-01-preview"


@pytest.mark.parametrize("missing", AZURE)
def test_half_of_azure_is_refused(missing: str) -> None:
    """One line names the variable that is missing."""
    with pytest.raises(ConfigError) as caught:
        load({name: value for name, value in AZURE.items() if name != missing})
    assert str(caught.value).startswith(f"{missing} is missing: ")


@pytest.mark.parametrize("name", ["ANTHROPIC_BASE_URL", "AZURE_OPENAI_ENDPOINT"])
def test_an_address_that_is_none_is_refused(name: str) -> None:
    """The line names variable and value, and shows what an address looks like."""
    with pytest.raises(ConfigError, match=rf"^{name}='nope' is not an address: use http"):
        load(AZURE | {name: "nope"})


# --- the file -------------------------------------------------------------------------------------


def test_a_file_names_several_providers(file: Path, fake: FakeOpenAI) -> None:
    """Kinds, addresses, models and the default are taken; keys come from the environment."""
    found = of_file(file, CLAUDE_KEY="k1", WORK_KEY="k2")
    assert found.default == "local/count?n=2"
    assert [(each.name, each.kind, each.base_url, each.key) for each in found.providers] == [
        ("local", "openai", fake.base_url, "none"),
        ("claude", "anthropic", fake.origin, "k1"),
        ("work", "azure", fake.origin, "k2"),
    ]
    assert "k1" not in repr(found)
    assert of_file(file, "claude/echo", CLAUDE_KEY="k1", WORK_KEY="k2").default == "claude/echo"


def test_the_example_is_a_file_that_works() -> None:
    """What is shipped to be copied is accepted as it is, once its keys are there."""
    path = Path(__file__).parents[3] / "providers.example.toml"
    found = setup(Config(config_file=str(path)), lambda name: f"value-of-{name}")
    assert {each.kind for each in found.providers} == {"openai", "azure", "anthropic"}
    assert [each.key for each in found.providers if each.name == "router"] == [
        "value-of-OPENROUTER_API_KEY"
    ]


def test_one_providers_models_need_no_prefix(tmp_path: Path) -> None:
    """In a file with one provider the default may be written in both ways."""
    path = tmp_path / "halt.toml"
    for default in ("a/m", "m"):
        path.write_text(f'default = "{default}"\n[providers.a]\nkind="openai"\nbase_url="http://h"')
        assert of_file(path).default == "m"


GOOD = '[providers.a]\nkind = "openai"\nbase_url = "http://h/v1"\n'
TWO = GOOD + '[providers.b]\nkind = "openai"\nbase_url = "http://h/v2"\n'
CLAUDE = '[providers.c]\nkind = "anthropic"\nkey_env = "K"\n'
AZURE_TABLE = '[providers.z]\nkind = "azure"\nendpoint = "https://h"\nkey_env = "K"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "providers is missing: name at least one, as [providers.NAME]."),
        ("providers = 7", "providers = 7 is not allowed: use a table."),
        ("[providers", "not valid TOML: "),
        ("x = 1\n" + GOOD, "x is not known here: use default, providers."),
        ("default = 7\n" + GOOD, "default = 7 is not allowed: use text in quotes."),
        ('default = "x/y"\n' + TWO, "default = 'x/y' is not allowed: use NAME/MODEL, NAME being one of a, b."),
        ('default = "a/"\n' + TWO, "default = 'a/' is not allowed: "),
        ("[providers]\na = 1", "providers.a = 1 is not allowed: use [providers.a]."),
        ("[providers.'A b']\nkind = 'openai'", "providers.A b is not allowed: use up to 32 of"),
        ("[providers.a]\nmodels = ['x']", 'providers.a.kind is missing: use one of "openai", "azure", "anthropic".'),
        ("[providers.a]\nkind = 'ollama'", "providers.a.kind = 'ollama' is not allowed: use one of"),
        (GOOD + "key = 'sk-secret'", "providers.a.key: a file must not contain a key;"),
        (GOOD + "api_key = 'sk-secret'", "providers.a.api_key: a file must not contain a key;"),
        (GOOD + "token = 'x'", "providers.a.token is not known here: use base_url, continue, extra_body, key_env, kind, models."),
        (GOOD + "api_version = 'x'", "providers.a.api_version is not known here: "),
        (GOOD + "key_env = 'NOT_SET'", "providers.a.key_env = 'NOT_SET': that variable is not set."),
        (GOOD + "key_env = 7", "providers.a.key_env = 7 is not allowed: use text in quotes."),
        (GOOD + "models = 'x'", "providers.a.models = 'x' is not allowed: use a list of different names"),
        (GOOD + "models = []", "providers.a.models = [] is not allowed: "),
        (GOOD + "models = ['x', 'x']", "providers.a.models = ['x', 'x'] is not allowed: "),
        (GOOD + "models = ['x', 1]", "providers.a.models = ['x', 1] is not allowed: "),
        (GOOD + 'continue = "yes"', 'providers.a.continue = \'yes\' is not allowed: use one of "auto", "prefix", "instruction".'),
        (GOOD + "extra_body = 1", "providers.a.extra_body = 1 is not allowed: use a table."),
        ("[providers.a]\nkind = 'openai'", "providers.a.key_env is missing: use the name of an environment variable"),
        ("[providers.a]\nkind = 'openai'\nbase_url = 'nope'", "providers.a.base_url = 'nope' is not allowed: use http(s)://"),
        ("[providers.a]\nkind = 'openai'\nbase_url = 7", "providers.a.base_url = 7 is not allowed: "),
        ("[providers.c]\nkind = 'anthropic'", "providers.c.key_env is missing: "),
        (CLAUDE + "max_tokens = 0", "providers.c.max_tokens = 0 is not allowed: use a whole number from 1 to"),
        (CLAUDE + "max_tokens = true", "providers.c.max_tokens = True is not allowed: "),
        (AZURE_TABLE, "providers.z.models is missing: list your deployments' names."),
        (AZURE_TABLE.replace("endpoint", "base_url"), "providers.z.base_url is not known here: use api_version, continue, endpoint,"),
        (AZURE_TABLE.replace("https://h", "h") + "models = ['x']", "providers.z.endpoint = 'h' is not allowed: "),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    """The line names the file, the key, its value and what is allowed; never a key's text."""
    path = tmp_path / "halt.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        of_file(path, K="k")
    message = str(caught.value)
    assert message.startswith(f"{path}: {said}")
    assert "\n" not in message
    assert "sk-secret" not in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The line names the variable and the path."""
    with pytest.raises(ConfigError, match=r"^HALT_CONFIG='.*none.toml' can't be read: No such"):
        of_file(tmp_path / "none.toml")


def test_a_key_that_no_header_can_carry_is_refused(tmp_path: Path) -> None:
    """A key with a line break would fail at the first request: it fails at the start."""
    path = tmp_path / "halt.toml"
    path.write_text(GOOD + 'key_env = "K"')
    with pytest.raises(ConfigError) as caught:
        of_file(path, K="sk-secret\nx")
    assert (
        str(caught.value)
        == "K holds a space or a character that no header can carry: use visible ASCII."
    )


# --- who answers ----------------------------------------------------------------------------------


@pytest.fixture
def make() -> Iterator[Make]:
    """Several providers, each given as its name and settings; closed at the end."""
    made: list[Providers] = []

    def make(default: str = "", **providers: dict[str, Any]) -> Providers:
        settings = {
            name: ProviderSettings(**{"name": name, "kind": "openai"} | each)
            for name, each in providers.items()
        }
        made.append(Providers({n: make_provider(s) for n, s in settings.items()}, default))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def down() -> dict[str, str]:
    return {"base_url": f"http://127.0.0.1:{closed_port()}/v1"}


def test_a_name_with_its_provider_goes_there(make: Make, fake: FakeOpenAI) -> None:
    """The prefix chooses the provider and is not told to it; further slashes are the model's."""
    both = {
        "a": {"base_url": fake.base_url, "key": "key-of-a"},
        "b": {"base_url": fake.base_url, "key": "key-of-b"},
    }
    upstream = make(**both)
    assert ask(upstream, "b/count?n=1").text == "0 "
    assert ask(upstream, "a/b/echo").text == "hi"  # the fake answers unknown names with an echo
    told = [(r.body["model"], r.headers["authorization"]) for r in fake.requests]
    assert told == [("count?n=1", "Bearer key-of-b"), ("b/echo", "Bearer key-of-a")]


def test_a_bare_name_is_answered_by_the_one_that_lists_it(
    make: Make, fake: FakeOpenAI, down: dict[str, str]
) -> None:
    """One that lists it answers, also while another provider is down."""
    upstream = make(x=down | {"models": ("m",)}, gone=down, f={"base_url": fake.base_url})
    assert ask(upstream, "count").fault is None
    refused(ask(upstream, "m"), "upstream_refused")


def test_a_name_of_two_providers_must_be_told_apart(make: Make, down: dict[str, str]) -> None:
    """The answer says which full names there are."""
    upstream = make(a=down | {"models": ("m",)}, b=down | {"models": ("m", "n")})
    fault = refused(ask(upstream, "m"), "model_not_found")
    assert "use a/m or b/m" in fault.message


@pytest.mark.parametrize("name", ["none", "c/m", "a/"])
def test_a_name_that_nobody_lists_is_not_found(make: Make, down: dict[str, str], name: str) -> None:
    """The answer says which providers there are."""
    upstream = make(a=down | {"models": ("m",)}, b=down | {"models": ("n",)})
    fault = refused(ask(upstream, name), "model_not_found")
    assert "PROVIDER being one of a, b" in fault.message


def test_one_provider_needs_no_prefix(make: Make, fake: FakeOpenAI) -> None:
    """With one provider a name is passed on as it is, slashes and all."""
    upstream = make(only={"base_url": fake.base_url})
    ask(upstream, "only/count?n=1")
    assert fake.requests[0].body["model"] == "only/count?n=1"
    assert upstream.models(UpstreamConnection())[:2] == ["echo", "count"]
    assert upstream.catalog(UpstreamConnection())[0][0] == "only"
    assert upstream.catalog(UpstreamConnection())[0][1][:2] == ["echo", "count"]


def test_the_default_answers_where_none_is_named(make: Make, fake: FakeOpenAI) -> None:
    """The default may be another provider's; without one it is the first provider's first."""
    both = {"a": {"base_url": fake.base_url}, "b": {"base_url": fake.base_url}}
    chosen = make("b/count?n=2", **both)
    assert (ask(chosen).text, chosen.known_model) == ("0 1 ", "b/count?n=2")
    first = make("", a={"base_url": fake.base_url, "models": ("count?n=1",)}, b=both["b"])
    assert (ask(first).text, first.known_model) == ("0 ", "a/count?n=1")


def test_all_models_are_listed_and_who_is_down_hides_nobody(
    make: Make, fake: FakeOpenAI, down: dict[str, str]
) -> None:
    """Lists come in the order of the providers; the catalog has a group for each of them."""
    upstream = make(gone=down, f={"base_url": fake.base_url}, fixed=down | {"models": ("x", "y")})
    models = upstream.models(UpstreamConnection())
    assert models[:2] == ["f/echo", "f/count"]
    assert models[-2:] == ["fixed/x", "fixed/y"]
    (gone, none), (f, listed), fixed = upstream.catalog(UpstreamConnection())
    assert (gone, none, f, listed[0]) == ("gone", [], "f", "f/echo")
    assert fixed == ("fixed", ["fixed/x", "fixed/y"])
    assert len(fake.requests) == 1  # kept for a minute
    upstream.check(UpstreamConnection())


def test_nobody_there_is_told_as_the_first_fault(make: Make, down: dict[str, str]) -> None:
    """Where no provider answers, the lists and the check fail with the reason."""
    upstream = make(a=down, b=down)
    for question in (upstream.models, upstream.catalog, upstream.check):
        with pytest.raises(UpstreamError) as caught:
            question(UpstreamConnection())
        assert caught.value.code == "upstream_refused"


def test_a_silent_provider_delays_nobody(make: Make, fake: FakeOpenAI) -> None:
    """Its models are missing, those of the others are there, and it is request_record only once."""
    left = threading.Event()

    def silent(peer: Peer) -> None:
        peer.request()
        peer.see_leave()
        left.set()

    with RawServer(silent) as server:
        upstream = make(mute={"base_url": server.url}, f={"base_url": fake.base_url})
        for _ in range(2):
            (mute, none), (f, listed) = upstream.catalog(UpstreamConnection())
            assert (mute, none, f, listed[0]) == ("mute", [], "f", "f/echo")
        upstream.check(UpstreamConnection())
        assert ask(upstream, "f/count?n=1").text == "0 "
        assert server.accepted <= 2  # one for the list, one for the check
    assert left.wait(WAIT_TIMEOUT)


def test_a_list_that_is_late_is_not_taken_for_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the only provider has not told yet, the catalog fails as it may pass."""

    def silent(peer: Peer) -> None:
        peer.see_leave()

    monkeypatch.setattr(router, "WAIT_SECONDS", 0.01)
    with RawServer(silent) as server:
        upstream = make(mute={"base_url": server.url})
        with pytest.raises(UpstreamError) as caught:
            upstream.catalog(UpstreamConnection())
        assert caught.value.code == "upstream_unreachable"
        upstream.close()


def test_an_interrupted_line_waits_for_no_list(make: Make, fake: FakeOpenAI) -> None:
    """Whoever was stopped already gets what is known."""
    connection = UpstreamConnection()
    connection.interrupt()
    upstream = make(a={"base_url": fake.base_url, "models": ("m",)}, b={"base_url": fake.base_url})
    assert [name for name, _ in upstream.catalog(connection)] == ["a", "b"]


# --- a whole Halt ---------------------------------------------------------------------------------


def test_three_providers_behind_one_halt(
    file: Path, fake: FakeOpenAI, start_halt: StartHalt
) -> None:
    """Each kind answers by its name, each is stopped at its upstream, and health is told."""
    halt = start_halt(HALT_CONFIG=file, CLAUDE_KEY="k-claude", WORK_KEY="k-work")
    client = halt.client()
    assert client.chat("claude/count?n=3").to_end().text == "0 1 2 "
    assert client.chat("work/count?n=4").to_end().text == "0 1 2 3 "
    assert client.chat("local/count?n=1").to_end().text == "0 "
    assert client.chat("count?n=3").to_end().text == "0 1 2 "  # only claude lists it
    unknown = client.chat("nobody/x").to_end().terminal
    assert unknown["error"]["code"] == "model_not_found"
    assert client.get("/healthz").json["upstream"] == "reachable"
    for model, text in (("claude/stall?n=1", "0 "), ("work/silent_headers", "")):
        said = new_id()
        with client.chat(model, said) as events:
            record = request_record(fake, said)
            events.until_text(text)
            assert client.stop(events.id).json["upstream"] == "closed"
            assert events.to_end().terminal["type"] == "cancelled"
            assert record.closed.wait(WAIT_TIMEOUT)
    assert "k-claude" not in halt.printed


def test_a_wrong_file_ends_the_program_with_its_line(tmp_path: Path) -> None:
    """Halt does not start on a file that is wrong, and says why, as for a wrong variable."""
    path = tmp_path / "halt.toml"
    path.write_text(GOOD + 'key = "sk-secret"')
    status, printed = refused_start(HALT_CONFIG=path)
    assert status != 0
    assert printed.strip().splitlines()[-1].startswith(f"halt: {path}: providers.a.key: ")
    assert "sk-secret" not in printed


def test_a_request_is_not_changed_by_its_way(make: Make, fake: FakeOpenAI) -> None:
    """The request that a run keeps still names the model as the user chose it."""
    upstream = make(a={"base_url": fake.base_url}, b={"base_url": fake.base_url})
    request = ChatRequest(HI, model="b/echo")
    upstream.open(request, UpstreamConnection()).close()
    assert request.model == "b/echo"

"""Providers from the environment or a file, and the provider that answers for a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from halt.config.environment import load
from halt.config.provider_file import read_prompts
from halt.config.provider_setup import setup
from halt.config.providers import ProviderSettings, Setup
from halt.config.settings import Config, ConfigError
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest
from halt.errors import UpstreamError
from halt.providers import router
from halt.providers.factory import make_provider
from halt.providers.router import Providers, names_in
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import StartHalt, new_id, refused_start, request_record
from tests.support.ports import free_port
from tests.support.provider_answers import HI, refusal_of, request_answer
from tests.support.raw_server import Peer, RawServer
from tests.support.waiting import WAIT_TIMEOUT, wait_until

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


# --- how answers are continued -----------------------------------------------------------------


def test_continue_is_a_setting_and_a_key_of_the_file(tmp_path: Path) -> None:
    """HALT_CONTINUE applies to all providers, and the key `continue` of the file to its
    provider.
    """
    path = tmp_path / "halt.toml"
    path.write_text(
        '[providers.a]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[providers.b]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\ncontinue = "prefix"\n'
    )
    result = setup(load({"HALT_CONFIG": str(path), "HALT_CONTINUE": "instruction"}))
    assert [provider.continues for provider in result.providers] == ["instruction", "prefix"]
    result = setup(
        load({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "HALT_CONTINUE": "prefix"})
    )
    assert [provider.continues for provider in result.providers] == ["prefix", "prefix"]
    assert [provider.continues for provider in setup(Config(api_key="k")).providers] == ["auto"]
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
def test_environment_variables_make_providers(environ: dict[str, str], expected: list[Any]) -> None:
    """Each provider whose variables are set exists, in a fixed order."""
    providers = setup(load(environ)).providers
    assert [(p.name, p.kind, p.base_url, p.key) for p in providers] == expected


def test_azure_variables_set_deployment_and_version() -> None:
    """The deployment is the only model; the version has a default."""
    (azure,) = setup(load(AZURE)).providers
    assert (azure.models, azure.first_model, azure.api_version) == (("gpt",), "gpt", "2024-10-21")
    (azure,) = setup(load(AZURE | {"OPENAI_API_VERSION": "2025-01-01-preview"})).providers
    assert azure.api_version == "2025-01-01-preview"


@pytest.mark.parametrize("missing", AZURE)
def test_missing_azure_variable_is_refused(missing: str) -> None:
    """A missing variable for Azure is refused in one line that names it."""
    with pytest.raises(ConfigError) as caught:
        load({name: value for name, value in AZURE.items() if name != missing})
    assert str(caught.value).startswith(f"{missing} is missing: ")


@pytest.mark.parametrize("name", ["ANTHROPIC_BASE_URL", "AZURE_OPENAI_ENDPOINT"])
def test_invalid_provider_address_is_refused(name: str) -> None:
    """An invalid address is refused with the variable, the value and the form of an address."""
    with pytest.raises(ConfigError, match=rf"^{name}='nope' is not an address: use http"):
        load(AZURE | {name: "nope"})


# --- the file -------------------------------------------------------------------------------------


def test_file_defines_several_providers(file: Path, fake: FakeOpenAI) -> None:
    """Kinds, addresses, models and the default are read; keys come from the environment."""
    result = of_file(file, CLAUDE_KEY="k1", WORK_KEY="k2")
    assert result.default == "local/count?n=2"
    assert [(p.name, p.kind, p.base_url, p.key) for p in result.providers] == [
        ("local", "openai", fake.base_url, "none"),
        ("claude", "anthropic", fake.origin, "k1"),
        ("work", "azure", fake.origin, "k2"),
    ]
    assert "k1" not in repr(result)
    assert of_file(file, "claude/echo", CLAUDE_KEY="k1", WORK_KEY="k2").default == "claude/echo"


def test_example_file_is_valid() -> None:
    """The shipped example is accepted as it is, once its keys are set."""
    path = Path(__file__).parents[3] / "providers.example.toml"
    result = setup(Config(config_file=str(path)), lambda name: f"value-of-{name}")
    assert {provider.kind for provider in result.providers} == {"openai", "azure", "anthropic"}
    assert [provider.key for provider in result.providers if provider.name == "router"] == [
        "value-of-OPENROUTER_API_KEY"
    ]


def test_default_of_a_single_provider_needs_no_prefix(tmp_path: Path) -> None:
    """In a file with one provider the default may have the prefix or not."""
    path = tmp_path / "halt.toml"
    for default in ("a/m", "m"):
        path.write_text(f'default = "{default}"\n[providers.a]\nkind="openai"\nbase_url="http://h"')
        assert of_file(path).default == "m"


GOOD = '[providers.a]\nkind = "openai"\nbase_url = "http://h/v1"\n'
TWO = GOOD + '[providers.b]\nkind = "openai"\nbase_url = "http://h/v2"\n'
CLAUDE = '[providers.c]\nkind = "anthropic"\nkey_env = "K"\n'
AZURE_TABLE = '[providers.z]\nkind = "azure"\nendpoint = "https://h"\nkey_env = "K"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "providers is missing: name at least one, as [providers.NAME]."),
        ("providers = 7", "providers = 7 is not allowed: use a table."),
        ("[providers", "not valid TOML: "),
        ("x = 1\n" + GOOD, "x is not known here: use default, prompts, providers."),
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
        ("prompts = 1\n" + GOOD, "prompts = 1 is not allowed: use a table."),
        (GOOD + "[prompts]\nA = 1", "prompts.'A' = 1 is not allowed: use text in quotes."),
        (GOOD + "[prompts]\nA = ' '", "prompts.'A' = ' ' is not allowed: use text in quotes."),
        (GOOD + "[prompts]\n'' = 'x'", "prompts.'' is not allowed: use 1 to 60 characters on one line as a name."),
        (GOOD + '[prompts]\n"A\\nB" = "x"', "prompts.'A\\nB' is not allowed: use 1 to 60 characters"),
        (GOOD + f"[prompts]\n{'a' * 61} = 'x'", f"prompts.'{'a' * 60}' is not allowed: use 1 to 60 characters"),
        (GOOD + f"[prompts]\nA = '{'x' * 100_001}'", "prompts.'A' is longer than 100,000 characters."),
        (AZURE_TABLE, "providers.z.models is missing: list your deployments' names."),
        (AZURE_TABLE.replace("endpoint", "base_url"), "providers.z.base_url is not known here: use api_version, continue, endpoint,"),
        (AZURE_TABLE.replace("https://h", "h") + "models = ['x']", "providers.z.endpoint = 'h' is not allowed: "),
    ],
)  # fmt: skip
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    """A wrong file is refused in one line: file, key, value and what is allowed, never a key's
    text.
    """
    path = tmp_path / "halt.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        of_file(path, K="k")
    message = str(caught.value)
    assert message.startswith(f"{path}: {words}")
    assert "\n" not in message
    assert "sk-secret" not in message


def test_file_defines_named_prompts(tmp_path: Path) -> None:
    """The prompts of the file are read by name in their order; a file may have none."""
    path = tmp_path / "halt.toml"
    path.write_text(
        GOOD + '[prompts]\nPlain = "Be brief."\n"Code reviewer" = """\nYou\nreview.\n"""'
    )
    prompts = {"Plain": "Be brief.", "Code reviewer": "You\nreview."}
    assert list(read_prompts(Config(config_file=str(path))).items()) == list(prompts.items())
    assert [provider.name for provider in of_file(path).providers] == ["a"]
    path.write_text(GOOD)
    assert read_prompts(Config(config_file=str(path))) == read_prompts(Config()) == {}


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A missing file is refused in one line with the variable and the path."""
    with pytest.raises(ConfigError, match=r"^HALT_CONFIG='.*none.toml' can't be read: No such"):
        of_file(tmp_path / "none.toml")


def test_key_that_no_header_can_carry_is_refused(tmp_path: Path) -> None:
    """A key with a line break is refused at the start, not at the first request."""
    path = tmp_path / "halt.toml"
    path.write_text(GOOD + 'key_env = "K"')
    with pytest.raises(ConfigError) as caught:
        of_file(path, K="sk-secret\nx")
    assert (
        str(caught.value)
        == "K holds a space or a character that no header can carry: use visible ASCII."
    )


# --- the provider of a model ----------------------------------------------------------------------------------


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes a Providers of names and settings; closes it at the end."""
    routers: list[Providers] = []

    def make(default: str = "", **providers: dict[str, Any]) -> Providers:
        settings = {
            name: ProviderSettings(**{"name": name, "title": name, "kind": "openai"} | fields)
            for name, fields in providers.items()
        }
        routers.append(Providers({n: make_provider(s) for n, s in settings.items()}, default))
        return routers[-1]

    yield make
    for fields in routers:
        fields.close()


def wait_listed(upstream: Providers, model: str) -> None:
    """Wait until a model is listed: a list may take longer than WAIT_SECONDS on a busy machine."""
    wait_until(lambda: model in names_in(upstream.catalog(UpstreamConnection())))


@pytest.fixture
def down() -> dict[str, str]:
    return {"base_url": f"http://127.0.0.1:{free_port()}/v1"}


def test_provider_prefix_selects_the_provider_and_is_removed(make: Make, fake: FakeOpenAI) -> None:
    """The prefix selects the provider and is not sent; further slashes are the model's."""
    providers = {
        "a": {"base_url": fake.base_url, "key": "key-of-a"},
        "b": {"base_url": fake.base_url, "key": "key-of-b"},
    }
    upstream = make(**providers)
    assert request_answer(upstream, "b/count?n=1").text == "0 "
    assert (
        request_answer(upstream, "a/b/echo").text == "hi"
    )  # the fake answers unknown names with an echo
    sent_requests = [(r.body["model"], r.headers["authorization"]) for r in fake.requests]
    assert sent_requests == [("count?n=1", "Bearer key-of-b"), ("b/echo", "Bearer key-of-a")]


def test_bare_name_selects_the_provider_that_lists_it(
    make: Make, fake: FakeOpenAI, down: dict[str, str]
) -> None:
    """The provider that lists a model answers, also while another one is down."""
    upstream = make(x=down | {"models": ("m",)}, gone=down, f={"base_url": fake.base_url})
    wait_listed(upstream, "f/count")
    assert request_answer(upstream, "count").fault is None
    refusal_of(request_answer(upstream, "m"), "upstream_refused")


def test_bare_name_of_two_providers_is_refused(make: Make, down: dict[str, str]) -> None:
    """A bare name of two providers is refused with the two full names."""
    upstream = make(a=down | {"models": ("m",)}, b=down | {"models": ("m", "n")})
    fault = request_answer(upstream, "m").fault
    assert fault is not None
    assert fault.code == "model_not_found"
    assert fault.message == "Several providers have the model 'm': use a/m or b/m."


@pytest.mark.parametrize("name", ["none", "c/m", "a/"])
def test_unlisted_name_is_not_found(make: Make, down: dict[str, str], name: str) -> None:
    """A name that no provider lists is not found, and the message names the providers."""
    upstream = make(a=down | {"models": ("m",)}, b=down | {"models": ("n",)})
    fault = request_answer(upstream, name).fault
    assert fault is not None
    assert fault.code == "model_not_found"
    assert fault.message == (
        f"No provider lists the model {name!r}: choose another one. "
        "Requests name it PROVIDER/MODEL, PROVIDER being one of a, b."
    )


def test_single_provider_gets_names_unchanged(make: Make, fake: FakeOpenAI) -> None:
    """With one provider a name is passed on as it is, with its slashes."""
    upstream = make(only={"base_url": fake.base_url})
    request_answer(upstream, "only/count?n=1")
    assert fake.requests[0].body["model"] == "only/count?n=1"
    assert upstream.models(UpstreamConnection())[:2] == ["echo", "count"]
    (group,) = upstream.catalog(UpstreamConnection())
    assert [(model.name, model.label) for model in group.models[:2]] == [
        ("echo", "echo"),
        ("count", "count"),
    ]


def test_default_answers_a_request_without_a_model(make: Make, fake: FakeOpenAI) -> None:
    """The default may be any provider's; without one it is the first provider's first model."""
    providers = {"a": {"base_url": fake.base_url}, "b": {"base_url": fake.base_url}}
    with_default = make("b/count?n=2", **providers)
    assert (request_answer(with_default).text, with_default.known_model) == ("0 1 ", "b/count?n=2")
    without_default = make(
        "", a={"base_url": fake.base_url, "models": ("count?n=1",)}, b=providers["b"]
    )
    assert (request_answer(without_default).text, without_default.known_model) == (
        "0 ",
        "a/count?n=1",
    )


def test_provider_that_is_down_does_not_hide_other_models(
    make: Make, fake: FakeOpenAI, down: dict[str, str]
) -> None:
    """Lists are in the order of the providers; the catalog has a group for each."""
    upstream = make(gone=down, f={"base_url": fake.base_url}, fixed=down | {"models": ("x", "y")})
    wait_listed(upstream, "f/count")
    models = upstream.models(UpstreamConnection())
    assert models[:2] == ["f/echo", "f/count"]
    assert models[-2:] == ["fixed/x", "fixed/y"]
    catalog = upstream.catalog(UpstreamConnection())
    assert [group.title for group in catalog] == ["gone", "f", "fixed"]
    assert [[model.name for model in group.models[:2]] for group in catalog] == [
        [],
        ["f/echo", "f/count"],
        ["fixed/x", "fixed/y"],
    ]
    assert catalog[1].models[0].label == "echo"
    assert len(fake.requests) == 1  # kept for a minute
    upstream.check(UpstreamConnection())


def test_providers_with_the_same_title_have_their_name_in_it(make: Make, fake: FakeOpenAI) -> None:
    """A title is the one of the settings, else the server's; equal ones get the name."""
    fields = {"base_url": fake.base_url, "models": ("m",), "title": ""}
    upstream = make(a=fields, b=fields, c=fields | {"title": "Other"})
    groups = upstream.catalog(UpstreamConnection())
    address = fake.base_url.removeprefix("http://").removesuffix("/v1")
    assert [group.title for group in groups] == [f"{address} (a)", f"{address} (b)", "Other"]


def test_lists_and_check_fail_with_the_first_fault_if_all_are_down(
    make: Make, down: dict[str, str]
) -> None:
    """If no provider answers, lists and health check fail with the reason."""
    upstream = make(a=down, b=down)
    for query in (upstream.models, upstream.catalog, upstream.check):
        with pytest.raises(UpstreamError) as caught:
            query(UpstreamConnection())
        assert caught.value.code == "upstream_refused"


def test_silent_provider_does_not_hide_other_models(make: Make, fake: FakeOpenAI) -> None:
    """A silent provider's models are missing and the others are listed; it gets one request."""
    client_left = threading.Event()

    def silent(peer: Peer) -> None:
        peer.request()
        peer.wait_client_left()
        client_left.set()

    with RawServer(silent) as server:
        upstream = make(mute={"base_url": server.url}, f={"base_url": fake.base_url})
        wait_listed(upstream, "f/count")
        for _ in range(2):
            mute_group, listed_group = upstream.catalog(UpstreamConnection())
            assert (mute_group.title, list(mute_group.models)) == ("mute", [])
            assert (listed_group.title, listed_group.models[0].name) == ("f", "f/echo")
        upstream.check(UpstreamConnection())
        assert request_answer(upstream, "f/count?n=1").text == "0 "
        assert server.accepted <= 2  # one for the list, one for the check
    assert client_left.wait(WAIT_TIMEOUT)


def test_late_list_is_a_temporary_fault(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of an only provider that has not answered yet fails as unreachable."""

    def silent(peer: Peer) -> None:
        peer.wait_client_left()

    monkeypatch.setattr(router, "WAIT_SECONDS", 0.01)
    with RawServer(silent) as server:
        upstream = make(mute={"base_url": server.url})
        with pytest.raises(UpstreamError) as caught:
            upstream.catalog(UpstreamConnection())
        assert caught.value.code == "upstream_unreachable"
        upstream.close()


def test_interrupted_connection_does_not_wait_for_lists(make: Make, fake: FakeOpenAI) -> None:
    """An interrupted connection gets the lists that are known."""
    connection = UpstreamConnection()
    connection.interrupt()
    upstream = make(a={"base_url": fake.base_url, "models": ("m",)}, b={"base_url": fake.base_url})
    assert [group.title for group in upstream.catalog(connection)] == ["a", "b"]


# --- a whole Halt ---------------------------------------------------------------------------------


def test_halt_with_three_providers_answers_and_stops_each(
    file: Path, fake: FakeOpenAI, start_halt: StartHalt
) -> None:
    """Each kind answers by its name and is stopped at its upstream."""
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
        prompt = new_id()
        with client.chat(model, prompt) as events:
            record = request_record(fake, prompt)
            events.until_text(text)
            assert client.stop(events.id).json["upstream"] == "closed"
            assert events.to_end().terminal["type"] == "cancelled"
            assert record.closed.wait(WAIT_TIMEOUT)
    assert "k-claude" not in halt.printed


def test_wrong_file_ends_the_program_with_its_line(tmp_path: Path) -> None:
    """Halt does not start with a wrong file, and its last line gives the reason."""
    path = tmp_path / "halt.toml"
    path.write_text(GOOD + 'key = "sk-secret"')
    status, printed = refused_start(HALT_CONFIG=path)
    assert status != 0
    assert printed.strip().splitlines()[-1].startswith(f"halt: {path}: providers.a.key: ")
    assert "sk-secret" not in printed


def test_routing_does_not_change_the_request(make: Make, fake: FakeOpenAI) -> None:
    """The request of a run keeps the model's full name."""
    upstream = make(a={"base_url": fake.base_url}, b={"base_url": fake.base_url})
    request = ChatRequest(HI, model="b/echo")
    upstream.open(request, UpstreamConnection()).close()
    assert request.model == "b/echo"

"""The settings panel: named prompts of the server and of a person, and presets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import FORM_HEADERS, PAGE_HEADERS


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HaltServer]:
    """A Halt whose file of providers has two named prompts."""
    file: Path = tmp_path_factory.mktemp("config") / "halt.toml"
    file.write_text(
        f'[providers.local]\nkind = "openai"\nbase_url = "{shared_fake.base_url}"\n'
        '[prompts]\n"Code <b>reviewer</b>" = "Review <i>code</i>."\nPoet = "Rhyme."\n'
    )
    server = HaltServer({"HALT_CONFIG": str(file)})
    yield server
    server.close()


@pytest.fixture
def client(halt: HaltServer) -> Client:
    client = halt.client()
    client.get("/")
    return client


def send(client: Client, path: str, page: bool = True, **fields: Any) -> HttpResponse:
    return client.request(
        "POST", path, urlencode(fields).encode(), PAGE_HEADERS if page else FORM_HEADERS
    )


def options(html: str, select: str) -> tuple[list[str], list[str]]:
    """The options of the panel's menu, and the selected ones."""
    (menu,) = re.findall(rf'<select id="{select}".*?</select>', html, re.DOTALL)
    return (
        re.findall(r"<option[^>]*>(.*?)</option>", menu),
        re.findall(r"<option[^>]* selected>(.*?)</option>", menu),
    )


def prompts(client: Client, path: str = "/settings") -> tuple[list[str], list[str]]:
    return options(client.get(path).body.decode(), "settings-prompt-name")


def test_prompt_of_the_file_is_chosen_by_name(client: Client, shared_fake: FakeOpenAI) -> None:
    """The prompts of the TOML file are offered; a chat gets a copy of the text, and the name."""
    assert prompts(client) == (
        ["None", "Code &lt;b&gt;reviewer&lt;/b&gt;", "Poet", "Written for this chat"],
        [],
    )
    name = "Code <b>reviewer</b>"
    part = client.get(f"/settings/prompts/text?{urlencode({'prompt_name': name})}").body.decode()
    assert "Review &lt;i&gt;code&lt;/i&gt;.</textarea>" in part
    assert "cannot be changed here" in part
    conversation, prompt = new_id(), new_id()
    fields: dict[str, Any] = {"prompt_name": name, "system_prompt": "Review <i>code</i>."}
    saved = send(client, f"/c/{conversation}/settings", **fields)
    assert saved.status == 200
    assert "Code &lt;b&gt;reviewer&lt;/b&gt;" in saved.body.decode()
    selected = prompts(client, f"/c/{conversation}/settings")[1]
    assert selected == ["Code &lt;b&gt;reviewer&lt;/b&gt;"]
    assert send(client, f"/c/{conversation}/messages", prompt=prompt).status == 200
    message = request_record(shared_fake, prompt).body["messages"][0]
    assert message == {"role": "system", "content": "Review <i>code</i>."}


def test_prompt_of_a_person_is_saved_replaced_and_deleted(client: Client) -> None:
    """A used name is answered with the question whether to replace it; after a deletion the text
    stays in the panel and in the chats.
    """
    path, conversation = "/settings/prompts", new_id()
    saved = send(client, path, name=" My <prompt> ", system_prompt="One.").body.decode()
    assert options(saved, "settings-prompt-name")[1] == ["My &lt;prompt&gt;"]
    fields: dict[str, Any] = {"prompt_name": "My <prompt>", "system_prompt": "One."}
    assert send(client, f"/c/{conversation}/settings", **fields).status == 200
    taken = send(client, path, name="My <prompt>", system_prompt="Two.")
    assert (taken.status, taken.headers["hx-retarget"]) == (409, "#fault-prompt-name")
    assert 'form="prompt-saver" name="replace" value="1">Replace it<' in taken.body.decode()
    assert send(client, path, page=False, name="My <prompt>", system_prompt="x").status == 409
    replaced = send(client, path, name="My <prompt>", system_prompt="Two.", replace="1")
    assert "Two.</textarea>" in replaced.body.decode()
    panel = client.get(f"/c/{conversation}/settings").body.decode()
    assert "One.</textarea>" in panel
    assert options(panel, "settings-prompt-name")[1] == ["My &lt;prompt&gt;"]
    kept = send(client, f"{path}/delete", prompt_name="My <prompt>", system_prompt="Three.")
    assert options(kept.body.decode(), "settings-prompt-name")[1] == ["Written for this chat"]
    assert "Three.</textarea>" in kept.body.decode()
    gone = client.get("/settings/prompts/text?prompt_name=My+%3Cprompt%3E", **PAGE_HEADERS)
    assert (gone.status, gone.headers["hx-retarget"]) == (400, "#fault-system_prompt")
    assert prompts(client, f"/c/{conversation}/settings")[1] == ["My &lt;prompt&gt;"]
    refused = send(client, f"{path}/delete", prompt_name="Poet", system_prompt="x")
    assert (refused.status, refused.headers["hx-retarget"]) == (400, "#fault-prompt-name")


def test_named_prompts_belong_to_one_session(client: Client, halt: HaltServer) -> None:
    """Another session sees no prompt and no preset of this one."""
    assert send(client, "/settings/prompts", name="Mine", system_prompt="x").status == 200
    assert send(client, "/settings/presets", name="Mine", temperature="1").status == 200
    other = halt.client()
    other.get("/")
    assert "Mine" not in other.get("/settings").body.decode()
    assert other.get("/settings/prompts/text?prompt_name=Mine", **PAGE_HEADERS).status == 400


def test_changed_text_of_a_prompt_loses_its_name(client: Client) -> None:
    """A chat whose system prompt differs from the named one has no name."""
    conversation = new_id()
    fields: dict[str, Any] = {"prompt_name": "Poet", "system_prompt": "Rhyme well."}
    assert send(client, f"/c/{conversation}/settings", **fields).status == 200
    assert prompts(client, f"/c/{conversation}/settings")[1] == ["Written for this chat"]


def test_preset_is_saved_applied_and_deleted(client: Client) -> None:
    """A preset keeps its values; the panel selects the preset that a chat's values equal."""
    path, conversation = "/settings/presets", new_id()
    panel = client.get("/settings").body.decode()
    assert options(panel, "settings-preset") == (
        ["Model defaults", "Precise", "Creative", "Set for this chat"],
        ["Model defaults"],
    )
    values: dict[str, Any] = {"temperature": "0.35", "top_p": "0.9", "max_tokens": "500"}
    saved = send(client, path, name="Tight", **values).body.decode()
    assert options(saved, "settings-preset")[1] == ["Tight"]
    assert 'data-temperature="0.35" data-top_p="0.9" data-max_tokens="500"' in saved
    assert send(client, path, name="Tight", temperature="1").status == 409
    assert send(client, f"/c/{conversation}/settings", **values).status == 200
    panel = client.get(f"/c/{conversation}/settings").body.decode()
    assert options(panel, "settings-preset")[1] == ["Tight"]
    wrong = send(client, path, name="x", temperature="3")
    assert (wrong.status, wrong.headers["hx-retarget"]) == (400, "#fault-temperature")
    reserved = send(client, path, name="precise", temperature="1", replace="1")
    assert (reserved.status, reserved.headers["hx-retarget"]) == (400, "#fault-preset-name")
    deleted = send(client, f"{path}/delete", preset="Tight", **values).body.decode()
    assert options(deleted, "settings-preset")[1] == ["Set for this chat"]
    assert 'value="0.35"' in deleted


def test_long_prompt_fits_the_limit_of_the_body(client: Client) -> None:
    """A system prompt of 100,000 characters is saved under a name, and a longer one is refused."""
    saved = send(client, "/settings/prompts", name="Long", system_prompt="é" * 100_000)
    assert saved.status == 200
    refused = send(client, "/settings/prompts", name="Longer", system_prompt="é" * 100_001)
    assert (refused.status, refused.headers["hx-retarget"]) == (413, "#fault-system_prompt")

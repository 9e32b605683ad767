"""Named prompts and presets of persons, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halt.chat.presets import Presets
from halt.chat.prompts import PromptNames, Prompts
from halt.errors import NameTaken, RequestError, TooLarge
from halt.store.models import NamedPrompt, Preset, Settings
from halt.store.store import Store


def test_named_rows_belong_to_one_owner(store: Store) -> None:
    """An owner sees, replaces and deletes the own rows alone, sorted without regard to case."""
    rows = store.presets
    for name in ("beta", "Alpha", "été"):
        assert rows.save("anna", Preset(name, 0.5, 0.9, 100))
    assert rows.save("bert", Preset("beta", 1.0))
    assert not rows.save("anna", Preset("beta", 2.0))
    assert rows.save("anna", Preset("beta", None, 0.1), replace=True)
    assert rows.names("anna") == ["Alpha", "beta", "été"]
    assert rows.all("anna") == [
        Preset("Alpha", 0.5, 0.9, 100),
        Preset("beta", None, 0.1),
        Preset("été", 0.5, 0.9, 100),
    ]
    assert rows.get("bert", "beta") == Preset("beta", 1.0)
    assert rows.get("bert", "Alpha") is None
    assert not rows.delete("bert", "Alpha")
    assert rows.delete("anna", "beta")
    assert rows.names("anna") == ["Alpha", "été"]
    assert rows.names("bert") == ["beta"]


def test_named_rows_are_limited_for_each_owner(store: Store) -> None:
    """At the limit a new name is refused, and a saved one may still be replaced."""
    rows = store.presets
    for n in range(rows.limit):
        assert rows.save("anna", Preset(f"{n}"))
    with pytest.raises(RequestError, match="You have saved 50 presets already"):
        rows.save("anna", Preset("new"))
    assert rows.save("anna", Preset("7", 1.0), replace=True)
    assert rows.save("bert", Preset("new"))


def test_prompts_of_the_server_cannot_be_changed(store: Store) -> None:
    """A server's prompt is not replaced or deleted; an own one with its name hides it."""
    prompts = Prompts(store.named_prompts, {"Reviewer": "Review.", "Poet": "Rhyme."})
    for change in (
        lambda: prompts.save("anna", " Reviewer ", "Mine.", replace=True),
        lambda: prompts.delete("anna", "Reviewer"),
    ):
        with pytest.raises(RequestError, match="is a prompt of this server") as caught:
            change()
        assert caught.value.field == "name"
    store.named_prompts.save("anna", NamedPrompt("Poet", "Sing."))
    assert prompts.names("anna") == PromptNames(("Reviewer",), ("Poet",))
    assert [prompts.text("anna", name) for name in ("Poet", "Reviewer", "x")] == [
        "Sing.",
        "Review.",
        None,
    ]
    assert prompts.delete("anna", "Poet")
    assert prompts.text("anna", "Poet") == "Rhyme."


def test_prompt_is_replaced_only_on_request(store: Store) -> None:
    """A used name is refused unless the request says to replace; names and texts are checked."""
    prompts = Prompts(store.named_prompts)
    assert prompts.save("anna", "  My \n prompt ", "One\r\ntwo ") == "My prompt"
    with pytest.raises(NameTaken):
        prompts.save("anna", "My prompt", "Three")
    assert prompts.text("anna", "My prompt") == "One\ntwo"
    prompts.save("anna", "My prompt", "Three", replace=True)
    assert prompts.text("anna", "My prompt") == "Three"
    for name, text, error, field in (
        (" ", "x", RequestError, "name"),
        ("x" * 61, "x", RequestError, "name"),
        ("x", " ", RequestError, "system_prompt"),
        ("x", "x" * 100_001, TooLarge, "system_prompt"),
    ):
        with pytest.raises(error) as caught:
            prompts.save("anna", name, text)
        assert caught.value.field == field


def test_name_of_a_prompt_stays_with_its_text(store: Store) -> None:
    """A name is kept with the text of its prompt or with the saved copy, else it is removed."""
    prompts = Prompts(store.named_prompts, {"Reviewer": "Review."})
    before = Settings(system_prompt="Review code.", prompt_name="Reviewer")  # an older text
    current = Settings(system_prompt="Review.", prompt_name="Reviewer")
    for settings, expected in (
        (before, "Reviewer"),
        (current, "Reviewer"),
        (replace(before, system_prompt="Review all."), None),
        (replace(before, prompt_name="x"), None),
        (Settings(system_prompt="Be kind."), None),
    ):
        assert prompts.with_valid_name("anna", settings, before).prompt_name == expected


def test_preset_of_halt_cannot_be_replaced(store: Store) -> None:
    """The names of the built-in presets are reserved in any case; values are checked."""
    presets = Presets(store.presets)
    saved = presets.save("anna", Preset(" Mine ", 0.5, 1, 10))
    assert saved == Preset("Mine", 0.5, 1, 10)
    assert presets.own.all("anna") == [saved]
    with pytest.raises(NameTaken):
        presets.save("anna", Preset("Mine"))
    assert presets.save("anna", Preset("Mine"), replace=True) == Preset("Mine")
    for preset, field in (
        (Preset("MODEL Defaults"), "name"),
        (Preset("x", 2.1), "temperature"),
        (Preset("x", top_p=1.1), "top_p"),
        (Preset("x", max_tokens=0), "max_tokens"),
    ):
        with pytest.raises(RequestError) as caught:
            presets.save("anna", preset, replace=True)
        assert caught.value.field == field

"""The vault of providers' secrets: what opens them, what does not, and what is never shown."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from halt.config import data_dir
from halt.config.environment import load
from halt.config.settings import ConfigError
from halt.connected.vault import SealBroken, Secrets, Vault, last_four, make_vault
from halt.errors import RequestError
from halt.store.connected import KeyRow
from tests.support.halt_server import ROOT
from tests.support.races import together

NEW, OLD = "a new key of 16 characters", "an old key of 16 characters"
SECRETS = Secrets("sk-very-secret-1234", {"X-Team": "secret-team-value"})
ADDRESS = "https://api.example/v1"
POSTGRES = "postgresql://halt:password@db.example/halt"


@pytest.fixture
def vault() -> Vault:
    return Vault([NEW])


def test_sealed_secrets_are_opened_again(vault: Vault) -> None:
    """Key and headers come back; the sealed bytes show neither, and differ each time."""
    sealed = [vault.seal("groq", "", SECRETS, address=ADDRESS) for _ in range(2)]
    assert sealed[0] != sealed[1]
    for each in sealed:
        assert vault.unseal("groq", "", each, address=ADDRESS) == SECRETS
        assert b"secret" not in urlsafe_b64decode(each)
    hostile = Secrets("clé \0 \U0001f511", {})
    assert vault.unseal("p", "anna", vault.seal("p", "anna", hostile)) == hostile


@pytest.mark.parametrize(
    "other",
    [("mistral", "", ADDRESS), ("groq", "anna", ADDRESS), ("groq", "", "https://x.example")],
)
def test_secrets_are_for_one_provider_person_and_address(
    vault: Vault, other: tuple[str, str, str]
) -> None:
    """A row that was exchanged with another one, or given another address, is not opened."""
    sealed = vault.seal("groq", "", SECRETS, address=ADDRESS)
    provider, person, address = other
    with pytest.raises(SealBroken, match="meant for another"):
        vault.unseal(provider, person, sealed, address=address)


def test_changed_bytes_are_not_opened(vault: Vault) -> None:
    """Whichever byte was changed, and whatever else is there, the seal is broken."""
    sealed = vault.seal("groq", "", SECRETS)
    raw = urlsafe_b64decode(sealed)
    changed = [
        urlsafe_b64encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        for at in range(0, len(raw), 7)
    ]
    for each in (*changed, sealed[:-4], b"", b"\xff\0", b"plain text", b'{"key": "x"}'):
        for opened in (partial(vault.unseal, "groq", "", each), partial(vault.resealed, each)):
            with pytest.raises(SealBroken):
                opened()
        assert vault.is_old(each)


def test_lost_key_is_a_broken_seal(vault: Vault) -> None:
    """With another HALT_SECRET_KEY alone nothing is opened, and nothing else happens."""
    sealed = vault.seal("groq", "", SECRETS)
    other = Vault(["another key of 16 characters"])
    with pytest.raises(SealBroken) as caught:
        other.unseal("groq", "", sealed)
    assert caught.value.__cause__ is None
    assert other.unseal("p", "", other.seal("p", "", SECRETS)) == SECRETS


def test_rotation_opens_with_both_keys_and_seals_with_the_new_one() -> None:
    """After a rotation secrets are sealed anew; then the former key is needed no more."""
    before, rotating, after = Vault([OLD]), Vault([NEW, OLD]), Vault([NEW])
    sealed = before.seal("groq", "anna", SECRETS, address=ADDRESS)
    opened = partial(rotating.unseal, "groq", "anna", address=ADDRESS)
    assert opened(sealed=sealed) == SECRETS
    assert rotating.is_old(sealed)
    assert not before.is_old(sealed)
    for resealed in (rotating.resealed(sealed), rotating.seal("groq", "anna", SECRETS)):
        assert not rotating.is_old(resealed)
        with pytest.raises(SealBroken):
            before.unseal("groq", "anna", resealed, address=ADDRESS)
    assert after.unseal("groq", "anna", rotating.resealed(sealed), address=ADDRESS) == SECRETS
    with pytest.raises(SealBroken):
        after.unseal("groq", "anna", sealed, address=ADDRESS)


def test_keys_of_the_settings_rotate(tmp_path: Path) -> None:
    """HALT_SECRET_KEY seals; HALT_SECRET_KEY_OLD opens, also beside a key of the data folder."""
    environ = {"HALT_DATA": str(tmp_path)}
    sealed = make_vault(load({**environ, "HALT_SECRET_KEY": OLD})).seal("p", "", SECRETS)
    for keys in ({"HALT_SECRET_KEY": NEW}, {}):
        rotating = make_vault(load({**environ, **keys, "HALT_SECRET_KEY_OLD": OLD}))
        assert rotating.unseal("p", "", sealed) == SECRETS
        alone = make_vault(load({**environ, **keys}))
        assert alone.unseal("p", "", rotating.resealed(sealed)) == SECRETS
        with pytest.raises(SealBroken):
            alone.unseal("p", "", sealed)
    former = (tmp_path / "secret_key").read_text().strip()
    copied = {"HALT_SECRET_KEY": NEW, "HALT_SECRET_KEY_OLD": former}
    of_folder = make_vault(load(environ)).seal("p", "", SECRETS)
    assert make_vault(load({**environ, **copied})).unseal("p", "", of_folder) == SECRETS


def test_key_of_the_data_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    """Without a saved key nothing is read or made; then the file is the owner's alone."""
    folder = tmp_path / "data"
    vault = make_vault(load({"HALT_DATA": str(folder)}))
    assert vault.can_seal
    assert not folder.exists()
    vault.seal("p", "", SECRETS)
    file = folder / "secret_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["secret_key"]
    assert data_dir.secret_key(folder) == file.read_text().strip()


@pytest.mark.parametrize(
    ("settings", "can_seal"),
    [
        ({"DATABASE_URL": POSTGRES}, False),
        # In a worker of gunicorn, whose master has published the folder's key.
        (
            {
                "DATABASE_URL": POSTGRES,
                "HALT_SECRET_KEY": NEW,
                "HALT_SECRET_KEY_IN_FOLDER": "1",
            },
            False,
        ),
        ({"DATABASE_URL": POSTGRES, "HALT_SECRET_KEY": NEW}, True),
        ({"HALT_SECRET_KEY": NEW, "HALT_SECRET_KEY_IN_FOLDER": "1"}, True),
    ],
)
def test_hosts_with_a_shared_database_need_a_common_key(
    tmp_path: Path, settings: dict[str, str], can_seal: bool
) -> None:
    """With PostgreSQL and a key of the folder nothing is sealed; what is sealed is still opened."""
    vault = make_vault(load({"HALT_DATA": str(tmp_path), **settings}))
    assert vault.can_seal is can_seal
    if can_seal:
        assert vault.unseal("p", "", vault.seal("p", "", SECRETS)) == SECRETS
        return
    with pytest.raises(RequestError, match="Set HALT_SECRET_KEY") as caught:
        vault.seal("p", "", SECRETS)
    assert caught.value.field == "key"
    key = settings.get("HALT_SECRET_KEY") or data_dir.secret_key(tmp_path)
    assert vault.unseal("p", "", Vault([key]).seal("p", "", SECRETS)) == SECRETS


def test_hosts_without_a_common_key_seal_nothing_again(tmp_path: Path) -> None:
    """With PostgreSQL and a key of the folder, what HALT_SECRET_KEY_OLD has sealed stays."""
    sealed = Vault([OLD]).seal("p", "", SECRETS)
    environ = {"HALT_DATA": str(tmp_path), "DATABASE_URL": POSTGRES, "HALT_SECRET_KEY_OLD": OLD}
    vault = make_vault(load(environ))
    assert vault.unseal("p", "", sealed) == SECRETS
    assert not vault.is_old(sealed)
    with pytest.raises(RequestError, match="Set HALT_SECRET_KEY"):
        vault.resealed(sealed)


def test_key_that_is_copied_from_the_file_counts_as_set(tmp_path: Path) -> None:
    """Whether hosts have a common key does not depend on the text of a host's file."""
    key = data_dir.secret_key(tmp_path)
    environ = {"HALT_DATA": str(tmp_path), "DATABASE_URL": POSTGRES, "HALT_SECRET_KEY": key}
    assert make_vault(load(environ)).can_seal


def test_library_is_imported_by_the_first_use_alone() -> None:
    """A Halt without saved keys does not load the library of 8 MB."""
    code = """
import sys
from halt.config.settings import ConfigError
from halt.connected.vault import Secrets, Vault
vault = Vault(["a key of sixteen characters"])
assert vault.can_seal
assert not any(name.startswith("cryptography") for name in sys.modules)
vault.prepare()
assert "cryptography.fernet" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_simultaneous_first_uses_read_the_keys_once() -> None:
    """Of threads that need the keys at once one derives them, and all use the same."""
    calls: list[int] = []

    def keys() -> list[str]:
        calls.append(1)
        return [NEW]

    sealed = Vault([NEW]).seal("p", "", SECRETS)
    for _ in range(5):
        vault = Vault(keys)
        calls.clear()
        uses: list[Callable[[], object]] = [
            vault.prepare,
            partial(vault.unseal, "p", "", sealed),
            partial(vault.seal, "p", "", SECRETS),
            partial(vault.is_old, sealed),
        ]
        together(*uses)
        assert calls == [1]


def test_failed_preparation_is_repeated() -> None:
    """After a fault in reading the keys the next use tries again."""
    faults = [ConfigError("unreadable")]

    def keys() -> list[str]:
        if faults:
            raise faults.pop()
        return [NEW]

    vault = Vault(keys)
    with pytest.raises(ConfigError, match="unreadable"):
        vault.seal("p", "", SECRETS)
    assert vault.unseal("p", "", vault.seal("p", "", SECRETS)) == SECRETS


def test_no_secret_is_in_a_repr_an_error_or_the_log(
    vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    """What a traceback or the log may show has no secret, neither open nor sealed."""
    caplog.set_level(logging.DEBUG)
    sealed = vault.seal("groq", "", SECRETS)
    shown = [
        repr(SECRETS),
        str(SECRETS),
        repr(vault),
        repr(vars(vault)),
        repr(KeyRow("p", "", sealed)),
    ]
    with pytest.raises(SealBroken) as caught:
        vault.unseal("mistral", "", sealed)
    shown += [repr(caught.value), caplog.text]
    for secret in (SECRETS.key, *SECRETS.headers.values(), sealed.decode()):
        assert not any(secret in text for text in shown)


@pytest.mark.parametrize(
    ("key", "shown"),
    [("sk-0123456789", "6789"), ("0123456789ab", "89ab"), ("0123456789a", ""), ("", "")],
)
def test_last_four_characters_of_long_keys_are_shown(key: str, shown: str) -> None:
    """Of a key under 12 characters nothing is shown: the rest could be guessed."""
    assert last_four(key) == shown

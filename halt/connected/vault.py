"""Seals the secrets of providers for the database: their keys, and the values of their headers.

They are encrypted and authenticated by Fernet, with a key that HKDF makes of HALT_SECRET_KEY. The
former one, HALT_SECRET_KEY_OLD, still opens what it sealed.
"""

from __future__ import annotations

import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from halt.config import data_dir
from halt.config.settings import Config
from halt.errors import RequestError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

SHOWN_MIN = 12  # characters; of a shorter key not even the last four are shown
_INFO = b"halt provider keys v1"

_NO_COMMON_KEY = (
    "No key can be saved here: several servers may use this database, and HALT_SECRET_KEY, which "
    "encrypts keys, is not set. Set HALT_SECRET_KEY to one value for all of them."
)


class SealBroken(Exception):
    """The secrets cannot be read: HALT_SECRET_KEY was lost or changed, or the row was changed."""


class Secrets(msgspec.Struct, frozen=True):
    """The secrets for a provider; "" and no headers where there are none."""

    key: str = ""
    headers: dict[str, str] = {}

    def __repr__(self) -> str:
        return "Secrets(...)"


class _Sealed(msgspec.Struct, frozen=True):
    """The secrets, and what they are for."""

    provider: str
    person: str
    address: str
    secrets: Secrets


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Sealed).decode


class Vault:
    """Seals secrets with the first of its keys, and opens those that were sealed with any of them.

    What was sealed for one provider, person and address is not opened for another: a changed row of
    the database cannot send a key elsewhere. Any thread may use it.
    """

    def __init__(
        self, keys: Sequence[str] | Callable[[], Sequence[str]], *, refusal: str = ""
    ) -> None:
        """`keys`: at least one, or what reads them at the first use; that may raise ConfigError.

        `refusal`: why this vault opens but does not seal.
        """
        self._keys = keys
        self._refusal = refusal
        #: Held while the library is imported and the keys are derived: a second thread that needs
        #: them waits for the first one. Protects `_opener` and `_sealer` until they are set.
        self._preparing = threading.Lock()
        self._opener: MultiFernet | None = None
        self._sealer: Fernet | None = None

    def __repr__(self) -> str:
        return "Vault(...)"

    @property
    def can_seal(self) -> bool:
        """Whether secrets can be saved; if not, `seal` says why."""
        return not self._refusal

    def prepare(self) -> None:
        """Import the library, 8 MB in 30 ms, and derive the keys, once. Raises ConfigError.

        Every method does this if it is necessary: a Halt without saved keys never does it.
        """
        self._fernets()

    def seal(self, provider: str, person: str, secrets: Secrets, *, address: str = "") -> bytes:
        """The sealed secrets; `unseal` needs the same `provider`, `person` and `address`.

        Raises RequestError where this vault does not seal, and ConfigError.
        """
        if self._refusal:
            raise RequestError(self._refusal, field="key")
        sealer, _ = self._fernets()
        return sealer.encrypt(_encode(_Sealed(provider, person, address, secrets)))

    def unseal(self, provider: str, person: str, sealed: bytes, *, address: str = "") -> Secrets:
        """The secrets. Raises SealBroken, and ConfigError."""
        _, opener = self._fernets()
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - see `prepare`

        try:
            opened = _decode(opener.decrypt(sealed))
        except (InvalidToken, msgspec.DecodeError, UnicodeDecodeError):
            raise SealBroken("The saved key cannot be read.") from None
        if (opened.provider, opened.person, opened.address) != (provider, person, address):
            raise SealBroken("The saved key was meant for another provider, person or address.")
        return opened.secrets

    def is_old(self, sealed: bytes) -> bool:
        """Whether the secrets are to be sealed again with the first key. Raises ConfigError.

        True also for those that no key opens. Never where this vault does not seal: the other hosts
        could not open them any more.
        """
        if self._refusal:
            return False
        sealer, _ = self._fernets()
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            sealer.decrypt(sealed)
        except InvalidToken:
            return True
        return False

    def resealed(self, sealed: bytes) -> bytes:
        """The same secrets, sealed with the first key.

        Raises SealBroken, RequestError where this vault does not seal, and ConfigError.
        """
        if self._refusal:
            raise RequestError(self._refusal, field="key")
        _, opener = self._fernets()
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            return opener.rotate(sealed)
        except InvalidToken:
            raise SealBroken("The saved key cannot be read.") from None

    def _fernets(self) -> tuple[Fernet, MultiFernet]:
        with self._preparing:
            if self._sealer is None or self._opener is None:
                self._sealer, self._opener = _derived(
                    self._keys() if callable(self._keys) else self._keys
                )
            return self._sealer, self._opener


def _derived(keys: Sequence[str]) -> tuple[Fernet, MultiFernet]:
    """The Fernet of the first key, and one of all keys."""
    from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    fernets = [
        Fernet(urlsafe_b64encode(HKDF(SHA256(), 32, None, _INFO).derive(key.encode())))
        for key in keys
    ]
    return fernets[0], MultiFernet(fernets)


def make_vault(config: Config) -> Vault:
    """The vault of these settings. It reads the data folder's key only when it is first used.

    Where HALT_SECRET_KEY is not set, a Halt on PostgreSQL does not seal: each host has another key
    in its folder, and could not open what another one has sealed.
    """

    def keys() -> Sequence[str]:
        first = config.secret_key or data_dir.secret_key(config.data_folder)
        return [first, config.secret_key_old] if config.secret_key_old else [first]

    is_in_folder = not config.secret_key or config.secret_key_in_folder
    return Vault(keys, refusal=_NO_COMMON_KEY if config.database_url and is_in_folder else "")


def last_four(key: str) -> str:
    """The last four characters of a key, by which its owner knows it; "" for a short one."""
    return key[-4:] if len(key) >= SHOWN_MIN else ""

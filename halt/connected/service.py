"""The providers that were connected on the page: kept in the database, used by every worker.

A change is written to the database with a new version. The worker that wrote it applies it at once
and wakes the others; each looks at the version every second all the same, so that a change by
another process, or a lost wake-up, takes effect within a second.

How a change is applied: all rows are read, and each provider is compared with the one in use. One
that is unchanged keeps its upstream, with its connections and lists. The others get a new one, and
`Providers.connect` swaps all of them in one assignment. Runs that use a former upstream go on to
their end, as its connections are closed one by one as they become idle.

Two changes at once: the database orders them, and each is whole. Two threads that apply: the lock
orders them, and each reads the newest rows, so the last one is right.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from halt.config.model_servers import server_title
from halt.config.provider_setup import setup
from halt.config.providers import KINDS, ModelSettings, ProviderSettings
from halt.config.settings import Config
from halt.connected.details import Details, check_secrets, checked, checked_key, short_name
from halt.connected.own_upstreams import OwnUpstreams
from halt.connected.settings import (
    ENTER_AGAIN,
    SHARED,
    Unusable,
    connected_settings,
    key_of,
    not_understood,
    opened,
    provider_settings,
)
from halt.connected.unusable_upstream import UnusableUpstream
from halt.connected.vault import SealBroken, Secrets, Vault, last_four
from halt.core.request import Upstream
from halt.core.serial import Serial
from halt.errors import RequestError, StoreUnavailable
from halt.providers.model_view import ModelView
from halt.providers.router import Providers, names_in
from halt.store.connected import ConnectedRows, KeyRow, ProviderRow, Snapshot

EVERY = 1.0  # seconds between two looks at the version
SKIPPED_MAX = 9  # looks in a row that an unchanged file saves
_UNKNOWN = -1  # the version of rows that could not be read

logger = logging.getLogger(__name__)


class ConnectedProviders:
    """See the module. Any thread may call it."""

    def __init__(
        self,
        config: Config,
        rows: ConnectedRows,
        vault: Vault,
        providers: Providers,
        make: Callable[[ProviderSettings], Upstream],
        wake_others: Callable[[], object] = bool,
    ) -> None:
        """`make` makes the upstream of a provider; `wake_others` lets the other workers look."""
        self._config = config
        self._rows = rows
        self._vault = vault
        self.providers = providers
        self._make = make
        self._wake_others = wake_others
        self.snapshot = Snapshot(0, (), (), (), None)
        self._failed_version: int | None = None  # rows that this version of Halt cannot apply
        self._applying = threading.Lock()  # held while rows are read and applied
        #: By name: what an upstream was made of, and the upstream, which is kept while that is the
        #: same. Used by the lock's holder.
        self._made: dict[str, tuple[ProviderSettings | Unusable, Upstream]] = {}
        self._own = OwnUpstreams(self._upstream)
        # `Serial` logs the exception of a look, and the next look comes all the same.
        self._thread = Serial("halt-connected", EVERY, self._look_if_changed)
        self._seen_file: tuple[int, ...] = ()  # used by the thread
        self._skipped_looks = 0
        providers.own_upstream = self.own_upstream

    # --- apply ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread unless it runs. Raises RuntimeError if the system has none."""
        self._thread.start()

    def start_late(self) -> None:
        """The same, for a request. Without a thread in the system the next request tries again."""
        self._thread.start_late()

    def close(self, timeout: float) -> None:
        """End the thread; wait at most `timeout` seconds for it."""
        self._thread.close(timeout)
        self._own.keep_only(())

    def wake(self) -> None:
        """Look soon, in the thread: another worker has made a change."""
        self._thread.put(self.look)

    def _look_if_changed(self) -> None:
        """Look, but not where no commit has changed the file: a look takes 0.6 ms when idle."""
        state = self._rows.file_state  # before the look: a commit after it is seen next time
        if state and state == self._seen_file and self._skipped_looks < SKIPPED_MAX:
            self._skipped_looks += 1
            return
        self._seen_file, self._skipped_looks = state, 0
        self.look()

    def look(self) -> None:
        """Apply what is in the database if its version is another one than before."""
        version = _UNKNOWN
        try:
            version = self._rows.version()
            if version in (self.snapshot.version, self._failed_version):
                return
            self.load()
        except StoreUnavailable:
            return  # what was applied stays in use; the page tells of the fault, and the log
        except Exception:
            if version != self._failed_version:  # a look each second must not fill the log
                logger.exception("the connected providers cannot be read")
            self._failed_version = version

    def load(self) -> None:
        """Read all rows and apply them. Raises StoreUnavailable, ConfigError."""
        with self._applying:
            snapshot = self._rows.snapshot()
            if snapshot.keys:
                self._reseal(snapshot.keys)
            made = connected_settings(self._config, self._vault, snapshot)
            upstreams: dict[str, Upstream] = {}
            for row in snapshot.providers:
                known = self._made.get(row.name)
                if known is not None and known[0] == made[row.name]:
                    upstreams[row.name] = known[1]
                else:
                    upstreams[row.name] = self._upstream(made[row.name])
            self._made = {name: (made[name], upstream) for name, upstream in upstreams.items()}
            self.snapshot = snapshot
            self.providers.connect(upstreams, _view(snapshot))
            self._own.keep_only({(key.provider, key.person) for key in snapshot.keys})

    def _upstream(self, made: ProviderSettings | Unusable) -> Upstream:
        """Never raises: a row that this version of Halt cannot use must not end the others."""
        if isinstance(made, Unusable):
            return UnusableUpstream(made)
        try:
            return self._make(made)
        except Exception:
            logger.exception("the connected provider %s cannot be used", made.name)
            return UnusableUpstream(not_understood(made))

    def _reseal(self, keys: Sequence[KeyRow]) -> None:
        """Seal again, with the present key, what was sealed with HALT_SECRET_KEY_OLD."""
        for key in keys:
            if self._vault.is_old(key.sealed):
                with contextlib.suppress(SealBroken, StoreUnavailable):
                    sealed = self._vault.resealed(key.sealed)
                    self._rows.reseal(key.provider, key.person, key.sealed, sealed)

    def own_upstream(self, name: str, person: str) -> Upstream | None:
        """The upstream with a person's own key for a provider; None if the person has none."""
        snapshot = self.snapshot
        row = _row_of(snapshot, name)
        key = key_of(snapshot, name, person)
        if row is None or key is None or not (row.own_keys and self._config.own_keys):
            return None
        if row.kind not in KINDS:
            return UnusableUpstream(not_understood(row))
        try:
            settings = provider_settings(self._config, row, opened(self._vault, row, key))
        except SealBroken:
            sentence = ENTER_AGAIN.format(title=f"{row.title} (yours)")
            return UnusableUpstream(Unusable(row.title, row.models, sentence))
        return self._own.upstream((name, person), settings)

    # --- change -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Apply the change that this thread has written, and let the other workers do the same.

        Raises nothing: the change is saved, and where it cannot be applied the next look tries.
        """
        self.look()
        self._wake_others()

    def add(self, details: Details) -> ProviderRow:
        """Connect a provider. Raises RequestError that names the field, StoreUnavailable."""
        row, secrets = self.prepared(details)
        self._rows.add(row, self._sealed(row, SHARED, secrets))
        logger.info("connected the provider %s at %s", row.name, server_title(row.base_url))
        self._changed()
        return row

    def change(self, name: str, details: Details) -> ProviderRow:
        """Change a provider. Raises RequestError that names the field, StoreUnavailable.

        A new address needs the key anew: it must not reach a server that nobody typed it for.
        """
        row, secrets = self.prepared(details, name)
        before = self._row(name)
        moved = row.base_url != before.base_url
        key = self._sealed(row, SHARED, secrets)
        # A key that cannot be read stays, so that the provider goes on to ask for it.
        is_dropped = key is None and (details.without_key or self._secrets(before) is not None)
        self._rows.change(row, key, drop_keys=moved)
        if is_dropped:
            self._rows.remove_key(name, SHARED)
        logger.info("changed the provider %s at %s", name, server_title(row.base_url))
        self._changed()
        return row

    def remove(self, name: str) -> None:
        """Remove a provider with its keys. Raises RequestError, StoreUnavailable."""
        self._row(name)
        self._rows.remove(name)
        logger.info("removed the provider %s", name)
        self._changed()

    def prepared(self, details: Details, name: str = "") -> tuple[ProviderRow, Secrets]:
        """The checked row and secrets for what was typed. Raises RequestError.

        `name`: of the provider that is changed; its key and values of headers are kept where none
        are typed and the address stays the same.
        """
        details = checked(details)
        kept, before = Secrets(), None
        if name:
            before = self._row(name)
            if details.base_url == before.base_url:
                kept = self._secrets(before) or kept
        missing = [n for n, value in details.headers.items() if not (value or kept.headers.get(n))]
        if missing:
            raise RequestError(f"The value of the header {missing[0]} is missing.", field="headers")
        secrets = Secrets(
            details.key or ("" if details.without_key else kept.key),
            {n: value or kept.headers[n] for n, value in details.headers.items()},
        )
        check_secrets(details, has_key=bool(secrets.key), person_keys=self._config.own_keys)
        row = ProviderRow(
            name=name or short_name(details.title, self._taken()),
            kind=details.chosen_preset.kind,
            preset=details.preset,
            title=details.title,
            base_url=details.base_url,
            api_version=details.api_version,
            max_tokens=details.max_tokens,
            models=details.models,
            own_keys=details.own_keys,
        )
        if before is None:
            self._check_prefix(row.name)
        return row, secrets

    def settings_for(self, row: ProviderRow, secrets: Secrets) -> ProviderSettings:
        """The settings of a provider that is tried before it is saved."""
        return provider_settings(self._config, row, secrets)

    def save_own_key(self, provider: str, person: str, key: str) -> None:
        """Save a person's own key. Raises RequestError, StoreUnavailable."""
        row = self._row(provider)
        if not (row.own_keys and self._config.own_keys):
            raise RequestError(f"{row.title} takes no key of your own.", field="key")
        key = checked_key(key)
        if not key:
            raise RequestError("Type the key.", field="key")
        sealed = self._sealed(row, person, Secrets(key))
        assert sealed is not None  # noqa: S101 - there is a key
        self._rows.save_key(sealed, base_url=row.base_url)
        self._changed()

    def remove_own_key(self, provider: str, person: str) -> None:
        """Remove a person's own key. Raises StoreUnavailable."""
        if self._rows.remove_key(provider, person) is not None:
            self._changed()

    def set_model(self, provider: str, model: str, settings: ModelSettings) -> None:
        """Save what was chosen for a model. Raises RequestError, StoreUnavailable."""
        self._rows.set_model(provider, model, settings)
        self._changed()

    def order_models(self, provider: str, models: Sequence[str]) -> None:
        """Save the order of a provider's models, by their names there."""
        self._rows.order_models(provider, models)
        self._changed()

    def set_default(self, default: tuple[str, str] | None) -> None:
        """Save the model for requests that name none: (provider, model)."""
        self._rows.set_default(default)
        self._changed()

    # --- look up ----------------------------------------------------------------------------------

    def _row(self, name: str) -> ProviderRow:
        row = _row_of(self.snapshot, name)
        if row is None:
            raise RequestError("This provider is no longer connected.", field="name")
        return row

    def is_key_lost(self, row: ProviderRow) -> bool:
        """Whether the saved secrets that all people use cannot be read any more."""
        return self._secrets(row) is None

    def _secrets(self, row: ProviderRow) -> Secrets | None:
        """The saved secrets that all people use; None if they cannot be read."""
        key = key_of(self.snapshot, row.name, SHARED)
        try:
            return Secrets() if key is None else opened(self._vault, row, key)
        except SealBroken:
            return None

    def _sealed(self, row: ProviderRow, person: str, secrets: Secrets) -> KeyRow | None:
        """The row of a key; None if there is nothing to keep. Raises RequestError."""
        if not (secrets.key or secrets.headers):
            return None
        return KeyRow(
            provider=row.name,
            person=person,
            sealed=self._vault.seal(row.name, person, secrets, address=row.base_url),
            last_four=last_four(secrets.key),
            header_names=tuple(secrets.headers),
        )

    def _taken(self) -> set[str]:
        """The names that no further provider may have."""
        configured = {provider.name for provider in setup(self._config).providers}
        return {*configured, *self.providers.names}

    def _check_prefix(self, name: str) -> None:
        """Refuse a name that begins the names of another provider's models. Raises RequestError."""
        for other in self.providers.names:
            member = self.providers.member(other)
            groups = member.models.wait(0.0)[0] if member is not None else None
            if any(model.startswith(f"{name}/") for model in names_in(groups)):
                raise RequestError(
                    f"Models of {other} have names that begin with {name}/: choose another name.",
                    field="title",
                )


def _row_of(snapshot: Snapshot, name: str) -> ProviderRow | None:
    return next((row for row in snapshot.providers if row.name == name), None)


def _view(snapshot: Snapshot) -> ModelView:
    settings: dict[str, dict[str, ModelSettings]] = {}
    order: dict[str, dict[str, int]] = {}
    for row in snapshot.models:
        settings.setdefault(row.provider, {})[row.model] = row.settings
        if row.position is not None:
            order.setdefault(row.provider, {})[row.model] = row.position
    return ModelView(settings=settings, order=order, default=snapshot.default)

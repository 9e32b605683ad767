"""The lines of all providers: their state at the moment, and where they are set."""

from __future__ import annotations

from contextlib import closing

from halt.config.settings import Config
from halt.connected.listing import Listing
from halt.connected.service import ConnectedProviders
from halt.connected.vault import Vault
from halt.errors import UpstreamError
from halt.providers.factory import make_provider, make_upstream
from halt.providers.member import Member
from halt.providers.router import Providers
from halt.store.connected import Snapshot
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import details
from tests.support.scripted_upstream import ScriptedUpstream


class Changeable(ScriptedUpstream):
    """An upstream whose health check fails once it has a fault."""

    fault: UpstreamError | None = None

    def check(self, _: object) -> None:
        if self.fault is not None:
            raise self.fault


def test_state_is_that_of_the_moment() -> None:
    """An answer that is not fresh any more is replaced by the one of the check that runs."""
    upstream = Changeable()
    providers = Providers({"one": upstream})
    listing = Listing(Config(discover="0"), providers, None)

    def state() -> tuple[str, str]:
        (line,) = listing.lines(Snapshot(0, (), (), (), None), "", 5.0)
        return line.state, line.state_text

    assert state() == ("ok", "reachable")
    upstream.fault = UpstreamError("unauthorized")
    member = providers.member("one")
    assert isinstance(member, Member)
    member.check.expire()
    assert state() == ("fault", upstream.fault.message)


def test_provider_of_the_settings_is_shown_as_such(store: Store, fake: FakeOpenAI) -> None:
    """Also if one was connected before under the name that the settings use now."""
    vault = Vault(["a" * 32])
    with closing(Providers({})) as providers:
        config = Config(discover="0")
        earlier = ConnectedProviders(config, store.connected, vault, providers, make_provider)
        earlier.add(details(fake.base_url, title="Anthropic"))
    config = Config(discover="0", anthropic_key="sk-of-the-settings", anthropic_url=fake.base_url)
    with closing(make_upstream(config)) as providers:
        connected = ConnectedProviders(config, store.connected, vault, providers, make_provider)
        connected.load()
        (line,) = Listing(config, providers, None).lines(connected.snapshot, "", 0.0)
    assert (line.name, line.source, line.kind) == ("anthropic", "variable", "anthropic")
    assert line.key == "…ings"
    assert line.row is None

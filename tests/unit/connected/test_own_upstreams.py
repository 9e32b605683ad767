"""The upstreams with people's own keys: kept for the next request, closed when they are not."""

from __future__ import annotations

from halt.config.providers import ProviderSettings
from halt.connected.own_upstreams import KEPT_MAX, OwnUpstreams
from tests.support.scripted_upstream import ScriptedUpstream


class CountedUpstream(ScriptedUpstream):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def upstream_of(upstreams: OwnUpstreams, person: str, key: str) -> CountedUpstream:
    """The upstream of this person, who has this key for the provider `team`."""
    settings = ProviderSettings(name="team", kind="openai", base_url="http://x/v1", key=key)
    upstream = upstreams.upstream(("team", person), settings)
    assert isinstance(upstream, CountedUpstream)
    return upstream


def test_same_settings_have_the_same_upstream() -> None:
    """Another key replaces and closes it."""
    upstreams = OwnUpstreams(lambda _: CountedUpstream())
    kept = upstream_of(upstreams, "ann", "sk-1")
    assert upstream_of(upstreams, "ann", "sk-1") is kept
    assert upstream_of(upstreams, "bob", "sk-1") is not kept
    assert kept.closed == 0
    assert upstream_of(upstreams, "ann", "sk-2") is not kept
    assert kept.closed == 1


def test_those_used_last_are_kept() -> None:
    upstreams = OwnUpstreams(lambda _: CountedUpstream())
    used, *others = (upstream_of(upstreams, f"p{number}", "sk-1") for number in range(KEPT_MAX))
    assert upstream_of(upstreams, "p0", "sk-1") is used
    upstream_of(upstreams, "new", "sk-1")
    assert [used.closed, others[0].closed, others[1].closed] == [0, 1, 0]


def test_those_of_removed_keys_are_closed() -> None:
    upstreams = OwnUpstreams(lambda _: CountedUpstream())
    ann = upstream_of(upstreams, "ann", "sk-1")
    bob = upstream_of(upstreams, "bob", "sk-2")
    upstreams.keep_only({("team", "ann")})
    assert [ann.closed, bob.closed] == [0, 1]
    assert upstream_of(upstreams, "ann", "sk-1") is ann

"""Sizes of the benchmarks: for the published table, and for a quick check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples, streams, tokens; times in seconds."""

    stops_alone: int = 30
    stops_with_others: int = 100
    open_streams: int = 100  # open streams, including the one that is stopped
    idle_connections: int = 50
    stops_full: int = 60
    stops_in_a_round: int = 20  # before new idle connections are opened
    load_streams: int = 100
    load_settle: float = 1.0
    load_seconds: float = 6.0
    load_rounds: int = 1
    stream_tokens: int = 150  # of a stream that is read as a whole
    many_streams: tuple[int, ...] = (300, 1_000)
    starts: int = 150
    ended_stops: int = 2_000
    live_stops: int = 100  # in each round
    stop_rounds: int = 5
    stops_at_once: int = 50
    stops_at_once_rounds: int = 10
    stops_at_full_speed: int = 100
    stops_under_load: int = 100  # during each load
    idle_seconds: float = 20.0
    cold_starts: int = 5
    race_streams: int = 300
    race_tokens: int = 1000
    race_tokens_relay: int = 300
    race_rounds: int = 1
    page_stops: int = 16  # of each kind
    page_answers: int = 3
    page_opens: int = 7  # of each long conversation, after the first
    paragraph: int = 200_000  # characters
    rendered_texts: int = 9
    warm_generations: int = 1000  # until the allocator and the pools are stable
    generations: int = 1000
    long_tokens: int = 50_000
    long_rounds: int = 5
    api_seconds: float = 4.0
    api_stops: int = 30  # through each API, and with each kind of provider
    worker_stops: int = 100  # through a worker other than the producer
    worker_follows: int = 10  # streams that are read through another worker
    worker_tokens: int = 300  # of each of these streams
    store_rounds: int = 3
    kills: int = 20
    many_stream_kills: int = 6  # of a worker with LOST_STREAMS streams
    burst_starts: int = 30
    messages: int = 1_000_000
    long_conversation: int = 2_000  # of these messages
    lookups: int = 100  # of each kind
    uploads: int = 100  # of large files
    chosen: int = 9  # files of each kind that are chosen on the page


FULL = Sizes()
QUICK = Sizes(
    stops_alone=5,
    stops_with_others=8,
    stops_full=6,
    stops_in_a_round=6,
    load_seconds=3.0,
    stream_tokens=50,
    starts=30,
    ended_stops=300,
    live_stops=50,
    stop_rounds=1,
    stops_at_once_rounds=2,
    stops_at_full_speed=10,
    stops_under_load=20,
    idle_seconds=4.0,
    cold_starts=2,
    race_tokens=200,
    race_tokens_relay=50,
    page_stops=3,
    page_answers=1,
    page_opens=3,
    paragraph=100_000,
    rendered_texts=3,
    warm_generations=40,
    generations=100,
    long_rounds=2,
    api_seconds=2.0,
    api_stops=5,
    worker_stops=20,
    worker_follows=2,
    store_rounds=1,
    many_stream_kills=2,
    kills=4,
    burst_starts=4,
    messages=50_000,
    lookups=20,
    uploads=10,
    chosen=3,
)

"""Generations in an event loop: reading, cancellation at any moment, and merges."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from halt import Generation, GenerationError, Halt, Merged
from halt.core.events import Content, Done, Event, Failed, is_terminal, text_of
from halt.errors import AtCapacity, OffsetLost
from halt.library.aio import AsyncStream
from halt.library.feed import BUFFERED_MAX
from halt.testing.fake_openai import FakeOpenAI
from tests.support import library_halt
from tests.support.library_halt import complete_text, scripted_halt, service_of, wait_no_threads
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until


@pytest.fixture
def program(fake: FakeOpenAI) -> Iterator[Halt]:
    """A Halt as in a program; afterwards none of its threads is running."""
    with Halt(config=library_halt.fake_config(fake)) as halt:
        yield halt
    wait_no_threads()


async def collect(stream: AsyncStream[Event]) -> list[Event]:
    """Read a stream to its end; all events."""
    async with stream as events:
        return [event async for event in events]


async def first_text(stream: AsyncStream[Event], has_text: asyncio.Event) -> None:
    """Read to the end, and set `has_text` at the first text."""
    async for event in stream:
        if isinstance(event, Content):
            has_text.set()


async def wait_ended(gen: Generation) -> None:
    """Wait until the generation has ended."""
    async with asyncio.timeout(WAIT_TIMEOUT):
        while gen.state == "running":
            await asyncio.sleep(0.001)


# --- reading --------------------------------------------------------------------------------------


def test_aiter_yields_every_event_to_several_readers(program: Halt) -> None:
    """Each of several readers gets every event in order, the terminal one last."""

    async def main() -> list[list[Event]]:
        gen = program.generate("x", model="count?n=300")
        return list(await asyncio.gather(*[collect(gen.aiter()) for _ in range(3)]))

    first, second, third = asyncio.run(main())
    assert first == second == third
    assert complete_text(first) == "".join(f"{n} " for n in range(300))
    assert isinstance(first[-1], Done)


def test_aresult_of_many_generations_in_one_loop(program: Halt) -> None:
    """Twenty generations in one loop end with their own texts."""

    async def main() -> list[str]:
        results = await asyncio.gather(
            *[program.generate(f"this is number {n}").aresult() for n in range(20)]
        )
        return [result.text for result in results]

    assert asyncio.run(main()) == [f"this is number {n}" for n in range(20)]


def test_aiter_during_silence_leaves_the_loop_running(program: Halt, fake: FakeOpenAI) -> None:
    """While a model is silent other tasks run; one of them ends the silence here."""

    async def main() -> Any:
        gen = program.generate("x", model="stall?n=1&rest=1")
        has_text = asyncio.Event()
        task = asyncio.create_task(first_text(gen.aiter(), has_text))
        await has_text.wait()
        fake.wait_request().release()
        await task
        return await gen.aresult()

    assert asyncio.run(main()).text == "0 1 "


def test_aiter_of_many_events_lets_other_tasks_run() -> None:
    """A reader that always has events to take still lets other tasks run."""
    upstream = ScriptedUpstream()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main(program: Halt) -> None:
        gen = program.generate("x")
        upstream.reply().feed(*["word "] * (BUFFERED_MAX * 8))
        upstream.reply().end()
        assert gen.result().metrics.chunks == BUFFERED_MAX * 8
        task = asyncio.create_task(count_turns())
        assert complete_text(await collect(gen.aiter())) == "word " * (BUFFERED_MAX * 8)
        task.cancel()

    with scripted_halt(upstream) as program:
        asyncio.run(main(program))
    assert turns > 2
    wait_no_threads()
    upstream.dispose()


def test_failure_ends_aiter_and_is_raised_by_aresult(program: Halt) -> None:
    """A failure is the last event of an iteration and a GenerationError of `aresult`."""

    async def main() -> list[Event]:
        gen = program.generate("x", model="drop?n=3")
        with pytest.raises(GenerationError) as caught:
            await gen.aresult()
        assert (caught.value.code, caught.value.text) == ("upstream_dropped", "0 1 2 ")
        return await collect(gen.aiter())

    events = asyncio.run(main())
    assert isinstance(events[-1], Failed)
    assert complete_text(events) == "0 1 2 "


def test_aiter_without_a_place_or_with_lost_events_raises() -> None:
    """Without a place, or where events are no longer kept, `aiter` raises and leaves no thread."""
    upstream = ScriptedUpstream()

    async def main(program: Halt) -> None:
        gen = program.generate("x")
        upstream.reply().feed(*["x" * 300] * 10)
        upstream.reply().end()
        gen.result()
        with pytest.raises(OffsetLost):
            await collect(gen.aiter())
        wait_until(lambda: service_of(program).open_streams == 0)
        other = program.generate("y")
        merged = program.merge([other])
        with pytest.raises(AtCapacity):
            await collect(gen.aiter())
        merged.stop()

    with scripted_halt(upstream, max_streams=1, log_bytes=1024) as program:
        asyncio.run(main(program))
    wait_no_threads()
    upstream.dispose()


# --- cancellation and close -----------------------------------------------------------------------


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token", "stall?n=2"])
def test_cancelled_task_stops_its_generation(program: Halt, fake: FakeOpenAI, model: str) -> None:
    """Cancelling a task that waits stops its generation and closes the upstream connection."""

    async def main() -> None:
        gen = program.generate("x", model=model)
        task = asyncio.create_task(collect(gen.aiter()))
        await asyncio.sleep(0)  # a task cancelled before it begins runs no code
        while fake.requests == [] or (model.startswith("stall") and gen.text != "0 1 "):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_asyncio_timeout_stops_the_generation(program: Halt, fake: FakeOpenAI) -> None:
    """A timeout around `aiter` or `aresult` stops the generation."""

    async def main() -> None:
        for wait in (lambda gen: collect(gen.aiter()), lambda gen: gen.aresult()):
            gen = program.generate("x", model="stall?n=1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wait(gen)
            assert gen.state == "cancelled"

    asyncio.run(main())
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


def test_task_group_failure_stops_its_generations(program: Halt, fake: FakeOpenAI) -> None:
    """A task that fails in a task group stops the generations that the other tasks read."""

    async def main() -> list[str]:
        members = [program.generate("x", model="stall?n=1") for _ in range(3)]
        text_events = [asyncio.Event() for _ in members]

        async def fails() -> None:
            for event in text_events:
                await event.wait()
            raise ZeroDivisionError

        async def grouped() -> None:
            async with asyncio.TaskGroup() as group:
                for gen, event in zip(members, text_events, strict=True):
                    group.create_task(first_text(gen.aiter(), event))
                group.create_task(fails())

        with pytest.raises(ExceptionGroup) as caught:
            await grouped()
        assert caught.group_contains(ZeroDivisionError)
        return [gen.state for gen in members]

    assert asyncio.run(main()) == ["cancelled"] * 3
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
def test_leaving_async_with_stops_the_generation(
    program: Halt, fake: FakeOpenAI, is_read: bool
) -> None:
    """Leaving `async with` stops a running generation, whether it was read or not."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        async with gen.aiter() as events:
            fake.wait_request()
            if is_read:
                assert text_of(await anext(events)) == "0 "
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_dropped_async_reader_stops_the_generation(program: Halt, fake: FakeOpenAI) -> None:
    """A `break` out of a bare `async for` stops the generation when the reader is collected."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        async for _ in gen.aiter():
            break
        gc.collect()
        await wait_ended(gen)
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_aclose_stops_the_generation_and_may_be_repeated(program: Halt) -> None:
    """`aclose` ends a reader that waits in another task, may be repeated, and leaves an ended
    run."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        stream, has_text = gen.aiter(), asyncio.Event()
        task = asyncio.create_task(first_text(stream, has_text))
        await has_text.wait()
        await stream.aclose()
        await task
        await stream.aclose()
        assert gen.state == "cancelled"
        done = program.generate("hello")
        await collect(stream := done.aiter())
        await stream.aclose()
        assert done.state == "done"

    asyncio.run(main())


def test_aiter_without_ownership_leaves_the_generation_running(
    program: Halt, fake: FakeOpenAI
) -> None:
    """With `owner=False` the generation goes on when its reader leaves."""

    async def main() -> str:
        gen = program.generate("x", model="stall?n=1&rest=1")
        async with gen.aiter(owner=False) as events:
            await anext(events)
        assert gen.state == "running"
        fake.wait_request().release()
        return (await gen.aresult()).text

    assert asyncio.run(main()) == "0 1 "


def test_task_cancelled_at_any_moment_leaves_one_terminal_event(
    program: Halt, fake: FakeOpenAI
) -> None:
    """Property: whenever a task is cancelled, there is one terminal event and no connection or
    thread."""

    async def run_task(turns: int) -> None:
        gen = program.generate("x", model="count?n=40&gap_ms=1")
        task = asyncio.create_task(collect(gen.aiter()))
        for _ in range(turns):
            await asyncio.sleep(0.0005 * (turns % 3))
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            del task
            await wait_ended(gen)  # by the Stop, or by itself at the same moment
        events = list(gen.events())
        assert [is_terminal(event) for _, event in events].count(True) == 1

    async def main() -> None:
        for turns in range(60):
            await run_task(turns)

    asyncio.run(main())
    assert all(record.ended.wait(WAIT_TIMEOUT) for record in fake.requests)
    wait_until(lambda: sorted(library_halt.halt_threads()) == ["halt-keeper", "halt-relay"])


def test_closed_loop_leaves_the_run_readable(fake: FakeOpenAI) -> None:
    """A run whose reader's loop was closed goes on, and can be read and closed."""
    upstream = ScriptedUpstream()
    with scripted_halt(upstream) as program:
        gen = program.generate("x")
        loop = asyncio.new_event_loop()
        stream = gen.aiter(owner=False)
        upstream.reply().feed("a")
        assert text_of(loop.run_until_complete(anext(stream))) == "a"
        with pytest.raises(TimeoutError):
            loop.run_until_complete(asyncio.wait_for(anext(stream), 0.01))
        loop.close()
        upstream.reply().feed("b")
        upstream.reply().end()
        assert gen.result().text == "ab"
    wait_no_threads()
    upstream.dispose()


# --- merged ---------------------------------------------------------------------------------------


def test_merged_aiter_yields_labelled_events_to_their_ends(program: Halt) -> None:
    """A merge yields the labelled events of each generation up to its end."""

    async def main() -> list[tuple[str, Event]]:
        merged = program.merge({"a": "first text", "b": "second text"})
        async with merged.aiter() as events:
            return [event async for event in events]

    events = asyncio.run(main())
    for label, text in (("a", "first text"), ("b", "second text")):
        assert complete_text([event for name, event in events if name == label]) == text


def test_cancelled_reader_of_a_merge_stops_all_generations(program: Halt, fake: FakeOpenAI) -> None:
    """Cancelling the task that reads a merge stops all of its generations."""

    async def read_merged(merged: Merged) -> None:
        async for _ in merged.aiter():
            pass

    async def main() -> list[str]:
        merged = program.merge({"a": "x", "b": "y"}, model="stall?n=1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_merged(merged), 0.1)
        return [merged[label].state for label in merged.labels]

    assert asyncio.run(main()) == ["cancelled", "cancelled"]
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)

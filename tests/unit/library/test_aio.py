"""Generations in an event loop: read, cancelled at any moment, ended together with their tasks."""

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
from tests.support.library_halt import complete_text, scripted_halt, wait_no_threads
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until


@pytest.fixture
def program(fake: FakeOpenAI) -> Iterator[Halt]:
    """A Halt as a program has it. Nothing of it is left afterwards."""
    with Halt(config=library_halt.fake_config(fake)) as made:
        yield made
    wait_no_threads()


async def collect(stream: AsyncStream[Event]) -> list[Event]:
    """All of it."""
    async with stream as events:
        return [event async for event in events]


async def first_text(stream: AsyncStream[Event], begun: asyncio.Event) -> None:
    """Read for ever, and say when the first text has come."""
    async for event in stream:
        if isinstance(event, Content):
            begun.set()


async def over(gen: Generation) -> None:
    """Wait until it has ended."""
    async with asyncio.timeout(WAIT_TIMEOUT):
        while gen.state == "running":
            await asyncio.sleep(0.001)


# --- reading --------------------------------------------------------------------------------------


def test_events_as_they_come(program: Halt) -> None:
    """`async for` gives every event, the terminal one last; so do several readers at once."""

    async def main() -> list[list[Event]]:
        gen = program.generate("x", model="count?n=300")
        return list(await asyncio.gather(*[collect(gen.aiter()) for _ in range(3)]))

    one, two, three = asyncio.run(main())
    assert one == two == three
    assert complete_text(one) == "".join(f"{n} " for n in range(300))
    assert isinstance(one[-1], Done)


def test_many_generations_in_one_loop(program: Halt) -> None:
    """Twenty at once, each with its own text; the loop is never blocked by any of them."""

    async def main() -> list[str]:
        results = await asyncio.gather(
            *[program.generate(f"this is number {n}").aresult() for n in range(20)]
        )
        return [result.text for result in results]

    assert asyncio.run(main()) == [f"this is number {n}" for n in range(20)]


def test_the_loop_runs_on_in_silence(program: Halt, fake: FakeOpenAI) -> None:
    """While a model is silent other tasks run; what they do may end the silence."""

    async def main() -> Any:
        gen = program.generate("x", model="stall?n=1&rest=1")
        begun = asyncio.Event()
        task = asyncio.create_task(first_text(gen.aiter(), begun))
        await begun.wait()
        fake.wait_request().release()
        await task
        return await gen.aresult()

    assert asyncio.run(main()).text == "0 1 "


def test_a_flood_leaves_the_loop_to_others() -> None:
    """A reader that has more to take, each time that it looks, still lets other tasks run."""
    upstream = ScriptedUpstream()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main(program: Halt) -> None:
        gen = program.generate("x")
        upstream.reply().feed(*["word "] * (BUFFERED_MAX * 8))
        upstream.reply().end()
        assert gen.result().metrics.chunks == BUFFERED_MAX * 8
        task = asyncio.create_task(other())
        assert complete_text(await collect(gen.aiter())) == "word " * (BUFFERED_MAX * 8)
        task.cancel()

    with scripted_halt(upstream) as program:
        asyncio.run(main(program))
    assert turns > 2
    wait_no_threads()
    upstream.dispose()


def test_a_failure_ends_an_iteration_and_is_raised_by_a_result(program: Halt) -> None:
    """As in threads: the event for who iterates, the typed error for who wants the result."""

    async def main() -> list[Event]:
        gen = program.generate("x", model="drop?n=3")
        with pytest.raises(GenerationError) as caught:
            await gen.aresult()
        assert (caught.value.code, caught.value.text) == ("upstream_dropped", "0 1 2 ")
        return await collect(gen.aiter())

    events = asyncio.run(main())
    assert isinstance(events[-1], Failed)
    assert complete_text(events) == "0 1 2 "


def test_what_can_t_be_had_is_raised_in_the_task() -> None:
    """No place for another reader, or events that are no longer kept: told, and nothing is left."""
    upstream = ScriptedUpstream()

    async def main(program: Halt) -> None:
        gen = program.generate("x")
        upstream.reply().feed(*["x" * 300] * 10)
        upstream.reply().end()
        gen.result()
        with pytest.raises(OffsetLost):
            await collect(gen.aiter())
        viewer = program._generations.readers.view(gen._run)
        with pytest.raises(AtCapacity):
            await collect(gen.aiter())
        program._generations.readers.unview(gen._run, viewer)

    with scripted_halt(upstream, max_streams=1, log_bytes=1024) as program:
        asyncio.run(main(program))
    wait_no_threads()
    upstream.dispose()


# --- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token", "stall?n=2"])
def test_cancelling_the_task_stops_the_generation(
    program: Halt, fake: FakeOpenAI, model: str
) -> None:
    """A task that is cancelled while it waits: stopped at once, the upstream sees it."""

    async def main() -> None:
        gen = program.generate("x", model=model)
        task = asyncio.create_task(collect(gen.aiter()))
        await asyncio.sleep(0)  # a task that is cancelled before it begins runs nothing at all
        while fake.requests == [] or (model.startswith("stall") and gen.text != "0 1 "):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_a_timeout_stops_the_generation(program: Halt, fake: FakeOpenAI) -> None:
    """`asyncio.timeout` around a reader, and around a result, ends what it waits for."""

    async def main() -> None:
        for wait in (lambda gen: collect(gen.aiter()), lambda gen: gen.aresult()):
            gen = program.generate("x", model="stall?n=1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wait(gen)
            assert gen.state == "cancelled"

    asyncio.run(main())
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


def test_a_task_group_takes_its_generations_with_it(program: Halt, fake: FakeOpenAI) -> None:
    """One task that fails cancels the others, and with them what they were waiting for."""

    async def main() -> list[str]:
        members = [program.generate("x", model="stall?n=1") for _ in range(3)]
        begun = [asyncio.Event() for _ in members]

        async def fails() -> None:
            for each in begun:
                await each.wait()
            raise ZeroDivisionError

        async def grouped() -> None:
            async with asyncio.TaskGroup() as group:
                for gen, event in zip(members, begun, strict=True):
                    group.create_task(first_text(gen.aiter(), event))
                group.create_task(fails())

        with pytest.raises(ExceptionGroup) as caught:
            await grouped()
        assert caught.group_contains(ZeroDivisionError)
        return [gen.state for gen in members]

    assert asyncio.run(main()) == ["cancelled"] * 3
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


@pytest.mark.parametrize("begun", [False, True])
def test_leaving_the_with_stops_what_is_not_over(
    program: Halt, fake: FakeOpenAI, begun: bool
) -> None:
    """By `break`, by an exception, or without having read anything."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        async with gen.aiter() as events:
            fake.wait_request()
            if begun:
                assert text_of(await anext(events)) == "0 "
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_a_reader_that_is_dropped_stops_it_too(program: Halt, fake: FakeOpenAI) -> None:
    """A `break` out of a bare `async for` is noticed when the reader is let go of."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        async for _ in gen.aiter():
            break
        gc.collect()
        await over(gen)
        assert gen.state == "cancelled"

    asyncio.run(main())
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_aclose_stops_and_can_be_repeated(program: Halt) -> None:
    """Also while another task waits in it: that one gets the end."""

    async def main() -> None:
        gen = program.generate("x", model="stall?n=1")
        stream, begun = gen.aiter(), asyncio.Event()
        task = asyncio.create_task(first_text(stream, begun))
        await begun.wait()
        await stream.aclose()
        await task
        await stream.aclose()
        assert gen.state == "cancelled"
        done = program.generate("hello")
        await collect(stream := done.aiter())
        await stream.aclose()
        assert done.state == "done"

    asyncio.run(main())


def test_a_reader_that_does_not_own_leaves_it_running(program: Halt, fake: FakeOpenAI) -> None:
    """With `owner=False` a reader comes and goes, as in threads."""

    async def main() -> str:
        gen = program.generate("x", model="stall?n=1&rest=1")
        async with gen.aiter(owner=False) as events:
            await anext(events)
        assert gen.state == "running"
        fake.wait_request().release()
        return (await gen.aresult()).text

    assert asyncio.run(main()) == "0 1 "


def test_cancel_at_any_moment(program: Halt, fake: FakeOpenAI) -> None:
    """Law: whenever a task is cancelled, one terminal event, upstream closed, no thread left."""

    async def one(turns: int) -> None:
        gen = program.generate("x", model="count?n=40&gap_ms=1")
        task = asyncio.create_task(collect(gen.aiter()))
        for _ in range(turns):
            await asyncio.sleep(0.0005 * (turns % 3))
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            del task
            await over(gen)  # by the Stop, if it did not end by itself at the same moment
        events = list(gen.events())
        assert [is_terminal(event) for _, event in events].count(True) == 1

    async def main() -> None:
        for turns in range(60):
            await one(turns)

    asyncio.run(main())
    assert all(record.ended.wait(WAIT_TIMEOUT) for record in fake.requests)
    wait_until(lambda: sorted(library_halt.halt_threads()) == ["halt-keeper", "halt-relay"])


def test_a_loop_that_is_gone_holds_nobody(fake: FakeOpenAI) -> None:
    """A loop that was closed in the middle: the run can be read and closed as if it never was."""
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


def test_a_merge_in_a_loop(program: Halt) -> None:
    """Labelled events in a loop, each label to its one end."""

    async def main() -> list[tuple[str, Event]]:
        merged = program.merge({"a": "first text", "b": "second text"})
        async with merged.aiter() as events:
            return [each async for each in events]

    events = asyncio.run(main())
    for label, text in (("a", "first text"), ("b", "second text")):
        assert complete_text([event for name, event in events if name == label]) == text


def test_cancelling_the_reader_of_a_merge_stops_all(program: Halt, fake: FakeOpenAI) -> None:
    """The task owns what it merges."""

    async def read(merged: Merged) -> None:
        async for _ in merged.aiter():
            pass

    async def main() -> list[str]:
        merged = program.merge({"a": "x", "b": "y"}, model="stall?n=1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(merged), 0.1)
        return [merged[label].state for label in merged.labels]

    assert asyncio.run(main()) == ["cancelled", "cancelled"]
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)

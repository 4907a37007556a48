"""Bytes between the event loop and whoever takes them: nothing is lost or reordered, and nothing piles up."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_server.errors import BodyTooLargeError, UpstreamUnreachableError
from etl_server.runtime.flow import (
    HIGH_WATER,
    THREAD_HIGH_WATER,
    AsyncReader,
    Batch,
    Inflow,
    Outflow,
    ThreadReader,
    buffered,
)

GONE = UpstreamUnreachableError("gone")
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=20)
SIZES = st.lists(st.integers(-1, 60), max_size=30)


class Sender:
    """Counts how often it is told to pause and to resume."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.resumed = threading.Event()

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")
        self.resumed.set()

    def inflow(self) -> Inflow:
        return Inflow(self.pause, self.resume)


@pytest.fixture
def sender() -> Sender:
    return Sender()


# Inflow


async def test_a_body_is_received_as_it_comes_and_then_ends(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"a")
    body.feed(b"b")
    assert await body.receive() == [b"a", b"b"]
    waiting = asyncio.ensure_future(body.receive())
    await asyncio.sleep(0)
    body.feed(b"c")
    assert await waiting == [b"c"]
    body.finish()
    assert await body.receive() == []
    assert sender.told == []


async def test_a_consumer_that_waits_learns_of_the_end(sender: Sender) -> None:
    body = sender.inflow()
    waiting = asyncio.ensure_future(body.receive())
    await asyncio.sleep(0)
    body.finish()
    assert await waiting == []


async def test_a_sender_that_is_too_fast_is_paused_once_until_its_bytes_are_taken(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(bytes(HIGH_WATER))
    assert sender.told == []
    body.feed(b"x")
    body.feed(b"y")
    assert sender.told == ["pause"]
    await body.receive()
    assert sender.told == ["pause", "resume"]
    assert body.size == 0


async def test_what_came_before_a_failure_is_received_before_it_is_raised(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"part")
    body.fail(GONE)
    assert body.failure is GONE
    assert await body.receive() == [b"part"]
    with pytest.raises(UpstreamUnreachableError):
        await body.receive()


async def test_a_body_that_came_in_whole_cannot_fail_any_more(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"whole")
    body.finish()
    body.fail(GONE)
    assert body.failure is None
    assert await body.read() == b"whole"


@pytest.mark.parametrize("chunks", [[], [b"one"], [b"one", b"two", b"three"]])
async def test_a_body_is_read_whole_and_its_sender_never_waits(sender: Sender, chunks: list[bytes]) -> None:
    body = sender.inflow()
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    for chunk in [*chunks, bytes(HIGH_WATER + 1)]:
        body.feed(chunk)
    body.finish()
    assert await reading == b"".join(chunks) + bytes(HIGH_WATER + 1)
    assert sender.told == []


async def test_a_paused_sender_goes_on_when_the_body_is_read_whole(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(bytes(HIGH_WATER + 1))
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    assert sender.told == ["pause", "resume"]
    body.finish()
    assert len(await reading) == HIGH_WATER + 1


async def test_a_part_of_a_body_is_never_read_as_the_whole(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"part")
    body.fail(GONE)
    with pytest.raises(UpstreamUnreachableError):
        await body.read()


@pytest.mark.parametrize("limit", [0, 3])
async def test_a_body_that_is_too_large_is_refused_before_its_end(sender: Sender, limit: int) -> None:
    body = sender.inflow()
    reading = asyncio.ensure_future(body.read(limit))
    await asyncio.sleep(0)
    body.feed(b"four")
    with pytest.raises(BodyTooLargeError):
        await reading


async def test_a_body_as_large_as_the_limit_is_read(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"four")
    body.finish()
    assert await body.read(4) == b"four"


# ThreadReader


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@given(chunks=CHUNKS, sizes=SIZES)
@settings(deadline=None)
def test_a_thread_reads_exactly_what_a_file_of_the_same_bytes_would_give(chunks: list[bytes], sizes: list[int]) -> None:
    loop = asyncio.new_event_loop()
    try:
        raw = ThreadReader(loop, lambda: None, None)
        for chunk in chunks:
            raw.feed(chunk)
        raw.finish()
        reader, oracle = buffered(raw), io.BytesIO(b"".join(chunks))
        for size in sizes:
            assert reader.read(size) == oracle.read(size)
        assert reader.read() == oracle.read()
    finally:
        loop.close()


@given(lines=st.lists(st.sampled_from([b"\n", b"a", b"line\n", b"no end", b"\r\n"]), max_size=20))
@settings(deadline=None)
def test_a_thread_reads_lines_across_the_borders_of_chunks(lines: list[bytes]) -> None:
    loop = asyncio.new_event_loop()
    try:
        raw = ThreadReader(loop, lambda: None, None)
        for line in lines:
            raw.feed(line)
        raw.finish()
        assert list(buffered(raw)) == list(io.BytesIO(b"".join(lines)))
    finally:
        loop.close()


def test_a_reader_has_all_that_a_binary_file_has(loop: asyncio.AbstractEventLoop) -> None:
    raw = ThreadReader(loop, lambda: None, None)
    raw.feed(b"one\ntwo\n")
    raw.feed(b"three")
    raw.finish()
    reader = buffered(raw)
    assert reader.readable()
    assert not reader.writable()
    assert reader.readline() == b"one\n"
    buffer = bytearray(6)
    assert reader.readinto(buffer) == 6
    assert buffer == b"two\nth"
    assert reader.read1(2) == b"re"
    assert reader.read(100) == b"e"
    assert reader.read(1) == b""
    reader.close()
    assert raw.closed


def test_read1_does_not_wait_for_more_than_has_come(loop: asyncio.AbstractEventLoop) -> None:
    raw = ThreadReader(loop, lambda: None, None)
    raw.feed(b"first")
    assert buffered(raw).read1(1000) == b"first"


async def test_a_thread_that_waits_gets_what_comes_and_what_goes_wrong(sender: Sender) -> None:
    body = sender.inflow()
    reader = buffered(body.thread_reader())
    first = asyncio.ensure_future(asyncio.to_thread(reader.read, 4))
    await asyncio.sleep(0.01)
    body.feed(b"he")
    body.feed(b"re, and more")
    assert await first == b"here"
    rest = asyncio.ensure_future(asyncio.to_thread(reader.read))
    await asyncio.sleep(0.01)
    body.fail(GONE)
    with pytest.raises(UpstreamUnreachableError):
        await rest


async def test_what_waits_for_a_thread_is_bounded_and_goes_on_once_it_is_read(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(bytes(THREAD_HIGH_WATER + 1))
    reader = body.thread_reader()
    assert sender.told == ["pause"]
    assert await asyncio.to_thread(reader.read, THREAD_HIGH_WATER) == bytes(THREAD_HIGH_WATER)
    await asyncio.to_thread(sender.resumed.wait, 30)
    assert sender.told == ["pause", "resume"]
    body.feed(bytes(THREAD_HIGH_WATER))
    assert sender.told == ["pause", "resume", "pause"]


async def test_a_thread_reader_gets_what_came_before_it_was_made(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"all of ")
    body.feed(b"it")
    body.finish()
    assert buffered(body.thread_reader()).read() == b"all of it"


async def test_a_thread_reader_made_after_a_failure_raises_it(sender: Sender) -> None:
    body = sender.inflow()
    body.fail(GONE)
    with pytest.raises(UpstreamUnreachableError):
        body.thread_reader().read(1)


async def test_a_thread_reader_refuses_what_is_too_large_and_keeps_saying_so(sender: Sender) -> None:
    body = sender.inflow()
    body.feed(b"four")
    body.finish()
    reader = body.thread_reader(3)
    for _ in range(2):
        with pytest.raises(BodyTooLargeError):
            reader.read(1)
    assert isinstance(reader.failure, BodyTooLargeError)


# Outflow


async def test_pieces_come_over_in_order_with_their_end() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 1000)

    def produce() -> None:
        for number in range(500):
            outflow.put(b"%d," % number)
        outflow.finish()

    producing = asyncio.ensure_future(asyncio.to_thread(produce))
    taken: Batch = []
    ended = False
    while not ended:
        batch, ended = await outflow.take()
        taken += batch
    await producing
    assert b"".join(taken) == b"".join(b"%d," % number for number in range(500))


async def test_a_producer_waits_while_its_consumer_is_behind() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 10)
    outflow.put(bytes(10))
    ahead = asyncio.ensure_future(asyncio.to_thread(outflow.put, b"next"))
    await asyncio.wait([ahead], timeout=0.05)
    assert not ahead.done()
    assert await outflow.take() == ([bytes(10)], False)
    await ahead
    assert await outflow.take() == ([b"next"], False)


async def test_a_producer_that_nobody_listens_to_is_told_so() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 10)
    outflow.put(bytes(10))
    waiting = asyncio.ensure_future(asyncio.to_thread(outflow.put, b"next"))
    await asyncio.wait([waiting], timeout=0.05)
    outflow.cancel()
    with pytest.raises(BrokenPipeError):
        await waiting
    with pytest.raises(BrokenPipeError):
        outflow.put(b"and again")


async def test_an_error_takes_the_place_of_the_end() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 10)
    taking = asyncio.ensure_future(outflow.take())
    await asyncio.sleep(0)
    await asyncio.to_thread(outflow.finish, ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await taking


async def test_what_was_put_before_an_error_does_not_look_whole() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 10)
    outflow.put(b"half")
    outflow.finish(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await outflow.take()


async def test_a_consumer_that_gave_up_waiting_leaves_nothing_behind() -> None:
    outflow = Outflow(asyncio.get_running_loop(), 10)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(outflow.take(), 0.001)
    await asyncio.to_thread(outflow.put, b"late")
    assert await outflow.take() == ([b"late"], False)


# AsyncReader


def async_reader(batches: list[Batch]) -> AsyncReader:
    rest = iter([*batches, []])

    async def receive() -> Batch:
        return next(rest)

    return AsyncReader(receive)


BATCHES = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=10)


@given(batches=BATCHES, sizes=SIZES)
@settings(deadline=None)
def test_an_async_reader_reads_exactly_what_a_file_of_the_same_bytes_would_give(
    batches: list[Batch], sizes: list[int]
) -> None:
    async def check() -> None:
        reader, oracle = async_reader(batches), io.BytesIO(b"".join(b"".join(batch) for batch in batches))
        for size in sizes:
            assert await reader.read(size) == oracle.read(size)
        assert await reader.read() == oracle.read()
        assert await reader.read(1) == b""

    asyncio.run(check())


@given(batches=BATCHES, start=st.integers(0, 60))
@settings(deadline=None)
def test_iterating_goes_on_where_reading_stopped_and_never_gives_an_empty_piece(
    batches: list[Batch], start: int
) -> None:
    async def check() -> None:
        reader = async_reader(batches)
        first = await reader.read(start)
        rest = [piece async for piece in reader]
        assert all(rest)
        assert first + b"".join(rest) == b"".join(b"".join(batch) for batch in batches)
        assert [piece async for piece in reader] == []

    asyncio.run(check())


async def test_an_async_reader_does_not_ask_for_more_than_was_wanted() -> None:
    async def receive() -> Batch:
        asked.append(len(asked))
        return [b"abc"]

    asked: list[int] = []
    reader = AsyncReader(receive)
    assert await reader.read(0) == b""
    assert asked == []
    assert await reader.read(3) == b"abc"
    assert asked == [0]


async def test_an_async_reader_passes_on_what_went_wrong_each_time() -> None:
    async def receive() -> Batch:
        raise GONE

    reader = AsyncReader(receive)
    for _ in range(2):
        with pytest.raises(UpstreamUnreachableError):
            await reader.read()

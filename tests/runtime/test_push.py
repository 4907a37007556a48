"""PUT of an object: the result is the answer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

import pytest

from etl_server import AsyncReader, ETLServer
from etl_server.testing import Driver, Target
from tests.conftest import Serve
from tests.raw_client import RawClient
from tests.testing.odd_names import ODD_NAMES

from .conftest import Drive
from .transforms import (
    ALL_EMPTY,
    ALL_TOLD,
    ALL_UPPER,
    EAGER_STREAMS,
    SWALLOWING,
    AsyncUpperStream,
    Told,
    Upper,
    UpperStream,
)

# What goes in and what comes out


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_pushed_object_is_answered_transformed(serve: Serve, drive: Drive, cls: type[ETLServer]) -> None:
    driver = await drive(serve(cls))
    large = os.urandom(3 << 20)
    reply = await driver.push("src", "a.txt", data=b"hello")
    assert (reply.status, reply.body) == (200, b"HELLO")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert (await driver.push("src", "large", data=large)).body == large.upper()


async def test_an_answer_whose_size_is_known_has_a_length(serve: Serve, drive: Drive) -> None:
    reply = await (await drive(serve(Upper))).push("src", "a.txt", data=b"hello")
    assert reply.headers["content-length"] == "5"


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_chunked_body_is_taken(serve: Serve, drive: Drive, cls: type[ETLServer]) -> None:
    pieces = [os.urandom(size) for size in (1, 100_000, 7, 1 << 20)]

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    reply = await (await drive(serve(cls))).push("src", "a", data=body())
    assert (reply.status, reply.body) == (200, b"".join(pieces).upper())


@pytest.mark.parametrize("cls", ALL_TOLD)
async def test_a_transform_is_told_path_and_arguments(serve: Serve, drive: Drive, cls: type[ETLServer]) -> None:
    driver = await drive(serve(cls))
    arguments = '{"size": [1, 2], "q": "a&b=c+d %20#é"}'
    reply = await driver.push("src", "dir/a b.txt", data=b"12345", etl_args=arguments)
    assert json.loads(reply.body) == [5, "src/dir/a b.txt", arguments]
    assert json.loads((await driver.push("src", "x", data=b"")).body) == [0, "src/x", ""]


async def test_every_name_reaches_the_transform_as_it_is(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Told))
    told = {name: json.loads((await driver.push("src", name, data=b"")).body)[1] for name in ODD_NAMES}
    assert told == {name: f"src/{name}" for name in ODD_NAMES}


async def test_a_name_that_was_not_escaped_is_refused_or_right(serve: Serve, target: Target) -> None:
    async with RawClient(serve(Told).port) as client:
        await client.put("/src/naïve".encode().decode("latin-1"), b"x")
        answer = await client.answer()
    assert answer.status == 400 or json.loads(answer.body)[1] == "src/naïve"


async def test_the_mime_type_is_that_of_the_class(serve: Serve, drive: Drive) -> None:
    class Png(Upper):
        def get_mime_type(self) -> str:
            return "image/png"

    assert (await (await drive(serve(Png))).push("src", "a", data=b"x")).headers["content-type"] == "image/png"


async def test_any_bytes_like_result_is_an_object(serve: Serve, drive: Drive) -> None:
    kinds: dict[str, Callable[[bytes], Any]] = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}

    class Whole(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> Any:
            return kinds[etl_args](data)

    class Pieces(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[Any]:
            yield kinds[etl_args](reader.read())

    for cls in (Whole, Pieces):
        driver = await drive(serve(cls))
        for kind in kinds:
            assert (await driver.push("src", "a", data=b"content", etl_args=kind)).body == b"content"


async def test_a_buffer_may_be_used_again_for_the_next_piece(serve: Serve, drive: Drive) -> None:
    class Reusing(ETLServer):
        def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[Any]:
            buffer = bytearray(1000)
            while count := reader.readinto(buffer):
                yield memoryview(buffer)[:count]

    content = os.urandom(1 << 20)
    assert (await (await drive(serve(Reusing))).push("src", "a", data=content)).body == content


# Nothing is an object too


@pytest.mark.parametrize("cls", ALL_EMPTY)
async def test_an_empty_result_is_chunked(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls).port) as client:
        for body in (b"content", b""):
            await client.put("/src/a", body)
            answer = await client.answer()
            assert (answer.status, answer.body, answer.whole) == (200, b"", True)
            assert answer.headers["transfer-encoding"] == "chunked"
            assert "content-length" not in answer.headers


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_an_empty_object_is_transformed(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls).port) as client:
        await client.put("/src/a", b"")
        assert (await client.answer())[::2] == (200, b"")
        await client.start_chunked("/src/a")
        await client.chunk(b"")
        assert (await client.answer())[::2] == (200, b"")
        await client.send("PUT /src/a HTTP/1.1\r\nHost: x\r\n\r\n")  # no length at all
        assert (await client.answer())[::2] == (200, b"")


# Connections


async def test_one_connection_serves_many_objects(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        for number in range(5):
            await client.put(f"/src/{number}", b"body %d" % number)
            assert (await client.answer()).body == b"BODY %d" % number


async def test_requests_sent_ahead_are_answered_in_order(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        for number in range(20):
            await client.put(f"/src/{number}", b"body %d" % number)
        assert [(await client.answer()).body for _ in range(20)] == [b"BODY %d" % number for number in range(20)]


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_client_may_wait_for_consent_to_its_body(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls).port) as client:
        await client.send("PUT /src/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.head())[0] == 100
        await client.send(b"body")
        assert (await client.answer()).body == b"BODY"


@pytest.mark.parametrize("size", [10, 8 << 20])
async def test_an_answer_may_come_before_the_body_was_read(serve: Serve, size: int) -> None:
    class Start(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            yield reader.read(4)

    async with RawClient(serve(Start).port) as client:
        for _ in range(2):
            sending = asyncio.create_task(client.put("/src/a", b"body" + bytes(size)))
            answer = await client.answer()
            await sending
            assert (answer.status, answer.body, answer.whole) == (200, b"body", True)


# Streams


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_the_first_output_leaves_before_the_last_input_has_come(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls).port) as client:
        await client.start_chunked("/src/a")
        await client.chunk(b"first")
        assert (await client.head())[0] == 200
        assert await client.next_chunk() == b"first"
        await client.chunk(b"last")
        assert await client.next_chunk() == b"last"
        await client.chunk(b"")
        assert await client.next_chunk() == b""


@pytest.mark.parametrize("cls", [UpperStream, AsyncUpperStream])
async def test_a_client_that_does_not_read_its_answer_is_not_read_from(serve: Serve, cls: type[ETLServer]) -> None:
    size = 256 << 20
    async with RawClient(serve(cls).port) as client:
        await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n")
        assert await upload_until_stuck(client, size) < size // 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_is_held_up_while_nobody_reads_its_object(serve: Serve, asynchronous: bool) -> None:
    gate = threading.Event()

    class Late(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            gate.wait(30)
            yield from iter(lambda: reader.read(1 << 20), b"")

    class AsyncLate(ETLServer):
        async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
            await asyncio.to_thread(gate.wait, 30)
            async for piece in reader:
                yield piece

    size = 64 << 20
    async with RawClient(serve(AsyncLate if asynchronous else Late).port) as client:
        await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n")
        sent = await upload_until_stuck(client, size)
        gate.set()
        assert sent < size // 2
        rest = asyncio.create_task(client.send(bytes(size - sent)))
        answer = await client.answer()
        await rest
    assert (len(answer.body), answer.whole) == (size, True)


async def upload_until_stuck(client: RawClient, size: int) -> int:
    """Send as much of a body of zeros as the server takes; returns how much that was."""
    piece = bytes(1 << 20)
    sent = 0
    while sent < size:
        client.writer.write(piece)
        sent += len(piece)
        try:
            await asyncio.wait_for(client.writer.drain(), 0.3)
        except asyncio.TimeoutError:
            break
    return sent


# Where a transform runs


async def test_transforms_that_wait_hold_up_nobody(serve: Serve, drive: Drive) -> None:
    gate = threading.Event()

    class Waiting(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            assert gate.wait(30)
            return data

    live = serve(Waiting)
    driver = await drive(live)
    pushes = [asyncio.create_task(driver.push("src", str(number), data=b"%d" % number)) for number in range(64)]
    await driver.wait_until_ready(20)
    async with RawClient(live.port) as client:
        await client.get("/health")
        assert (await client.answer())[::2] == (200, b"Running")
    assert not any(push.done() for push in pushes)
    gate.set()
    assert [(await push).body for push in pushes] == [b"%d" % number for number in range(64)]


async def test_a_transform_whose_arguments_make_it_wait_after_many_fast_ones_holds_up_nobody(
    serve: Serve, drive: Drive
) -> None:
    gate = threading.Event()

    class Moody(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            if etl_args == "wait":
                gate.wait(3)
            return data

    live = serve(Moody)
    driver = await drive(live)
    for _ in range(20):
        await driver.push("src", "a", data=b"same")
    waiting = asyncio.create_task(driver.push("src", "a", data=b"same", etl_args="wait"))
    async with RawClient(live.port) as client:
        await client.get("/health")
        health = asyncio.create_task(client.answer())
        await asyncio.wait([health, waiting], return_when="FIRST_COMPLETED")
        held_up = not health.done()
        gate.set()
        assert (await health).body == b"Running"
    await waiting
    assert not held_up


async def test_a_fast_transform_needs_no_thread(serve: Serve, drive: Drive) -> None:
    class Where(ETLServer):
        async def setup(self) -> None:
            self.loop_thread = threading.get_ident()

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return b"loop" if threading.get_ident() == self.loop_thread else b"thread"

    driver = await drive(serve(Where))
    places = [(await driver.push("src", "a", data=b"x")).body for _ in range(100)]
    assert b"loop" in places


@pytest.mark.parametrize("stream", [False, True])
async def test_max_concurrency_bounds_the_calls_at_once(serve: Serve, drive: Drive, stream: bool) -> None:
    lock = threading.Lock()
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        started.release()
        proceed.acquire(timeout=30)
        with lock:
            running -= 1

    started, proceed = threading.Semaphore(0), threading.Semaphore(0)

    class Whole(ETLServer):
        max_concurrency = 2

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            work()
            return data

    class Stream(ETLServer):
        max_concurrency = 2

        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            work()
            yield reader.read()

    driver = await drive(serve(Stream if stream else Whole))
    pushes = [asyncio.create_task(driver.push("src", "a", data=b"x")) for _ in range(8)]
    for _ in range(8):
        assert await asyncio.to_thread(started.acquire, timeout=30)
        if most == 2:
            proceed.release()
    proceed.release(8)
    assert [(await push).body for push in pushes] == [b"x"] * 8
    assert most == 2


# What is no object


async def test_health_says_running(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        await client.get("/health")
        assert (await client.answer())[::2] == (200, b"Running")
        await client.put("/src/a", b"x")
        assert (await client.answer()).body == b"X"
        await client.get("/health")
        assert (await client.answer()).body == b"Running"


async def test_other_methods_are_not_allowed(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        for method in ("POST", "DELETE", "HEAD", "PATCH", "OPTIONS"):
            await client.send(f"{method} /src/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
            answer = await client.answer(method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, PUT")
            assert method == "HEAD" or method in json.loads(answer.body)["detail"]
            await client.put("/src/a", b"x")
            assert (await client.answer()).body == b"X"


async def test_a_path_without_an_object_is_refused(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        await client.put("/", b"x")
        answer = await client.answer()
    assert answer.status == 400
    assert "detail" in json.loads(answer.body)


# ETL_MAX_BODY


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_an_object_that_is_too_large_is_refused(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls, max_body=10).port) as client:
        await client.put("/src/a", bytes(11))
        answer = await client.answer()
        assert answer.status == 413
        assert "ETL_MAX_BODY=10" in json.loads(answer.body)["detail"]
        await client.put("/src/a", b"exactly 10")
        assert (await client.answer()).body == b"EXACTLY 10"
        await client.start_chunked("/src/a")
        await client.chunk(bytes(6))
        await client.chunk(bytes(6))
        await client.chunk(b"")
        assert (await client.answer()).status == 413
        await client.put("/src/a", b"x")
        assert (await client.answer()).body == b"X"


async def test_a_stream_that_turns_out_too_large_is_cut(serve: Serve) -> None:
    for cls in EAGER_STREAMS:
        async with RawClient(serve(cls, max_body=10).port) as client:
            await client.start_chunked("/src/a")
            await client.chunk(b"1234567890")
            assert (await client.head())[0] == 200
            assert await client.next_chunk() == b"1234567890"
            await client.chunk(b"1")
            await client.chunk(b"")
            assert await client.closed() == b""


@pytest.mark.parametrize("cls", SWALLOWING)
async def test_a_transform_cannot_make_do_with_a_part(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls, max_body=10).port) as client:
        await client.start_chunked("/src/a")
        await client.chunk(bytes(6))
        await client.chunk(bytes(6))
        await client.chunk(b"")
        answer = await client.answer()
        assert answer.status == 413 or not answer.whole


@pytest.mark.parametrize("cls", [Upper, UpperStream, AsyncUpperStream])
async def test_a_refused_object_frees_its_place(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    class OneAtATime(cls):  # type: ignore[misc, valid-type]
        max_concurrency = 1

    live = serve(OneAtATime, max_body=10)
    async with RawClient(live.port) as client:
        for _ in range(3):
            # Chunked and in one piece: the body is here in whole when the object is taken on.
            await client.send(
                b"PUT /src/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n"
            )
            assert (await client.answer()).status == 413
    async with Driver(live.url, target, object_timeout=10) as driver:
        assert (await driver.push("src", "a", data=b"x")).body == b"X"

"""Bodies of known length that are read into their own place, past the parser."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from etl_server import ETLServer
from etl_server.runtime.flow import Inflow
from tests.conftest import Serve
from tests.helpers import health
from tests.raw_client import RawClient

from .transforms import Upper

MIB = 1 << 20


class Digest(ETLServer):
    """The object's hash."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        assert type(data) is bytes
        return hashlib.sha256(data).hexdigest().encode()


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 256 * 1024, 256 * 1024 + 1, 5 * MIB + 3])
@pytest.mark.parametrize("piece", [1000, 65536, 300_001])
async def test_however_it_comes_it_arrives_as_it_was_sent(serve: Serve, size: int, piece: int) -> None:
    body = os.urandom(size)
    async with RawClient(serve(Digest).port) as client:
        await client.send(f"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n")
        await asyncio.sleep(0.01)
        for start in range(0, size, piece):
            await client.send(body[start : start + piece])
            if start < 5 * piece:
                await asyncio.sleep(0.001)
        assert (await client.answer()).body == hashlib.sha256(body).hexdigest().encode()


async def test_what_comes_behind_a_large_body_is_the_next_request(serve: Serve) -> None:
    bodies = [os.urandom(size) for size in (MIB, 10, 3 * MIB, 0, 100_000, 300_000)]
    async with RawClient(serve(Digest).port) as client:
        everything = b"".join(
            b"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
        )
        sending = asyncio.create_task(client.send(everything))
        answers = [(await client.answer()).body for _ in bodies]
        await sending
    assert answers == [hashlib.sha256(body).hexdigest().encode() for body in bodies]


async def test_one_that_breaks_off_is_never_given_to_the_transform(serve: Serve) -> None:
    seen: list[int] = []

    class Seen(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            seen.append(len(data))
            return data

    live = serve(Seen)
    for sent in (0, 1000, 70_000, MIB - 1):
        async with RawClient(live.port) as client:
            await client.send(f"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n\r\n")
            await asyncio.sleep(0.02)
            await client.send(b"x" * sent)
            await asyncio.sleep(0.02)
    async with RawClient(live.port) as client:
        await client.put("/b/o", b"y" * MIB)
        assert (await client.answer()).body == b"y" * MIB
    assert seen == [MIB]
    assert (await health(live.port))[0] == 200


async def test_a_connection_that_is_to_close_closes_after_it(serve: Serve) -> None:
    body = os.urandom(MIB)
    async with RawClient(serve(Upper).port) as client:
        await client.put("/b/o", body, "Connection: close\r\n")
        assert (await client.answer()).body == body.upper()
        assert await client.closed() == b""


async def test_a_body_that_was_given_away_does_not_change_any_more() -> None:
    inflow = Inflow(lambda: None, lambda: None)
    inflow.feed(b"a" * 10)
    reading = asyncio.ensure_future(inflow.read(None, 100_000))
    await asyncio.sleep(0)
    assert inflow.room is not None
    assert len(inflow.room) == 100_000 - 10
    room = inflow.room
    inflow.feed(b"b" * 99_980)
    inflow.room[:10] = b"c" * 10
    assert inflow.filled(10)
    del room
    body = await reading
    assert body == b"a" * 10 + b"b" * 99_980 + b"c" * 10
    assert inflow.room is None

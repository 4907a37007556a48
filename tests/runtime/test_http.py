"""What a connection may cost: heads that do not end or do not come, and clients that neither read nor send."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from etl_server import ETLServer
from etl_server.runtime import http
from etl_server.runtime.http import LONGEST_HEAD
from tests.conftest import Live, Serve
from tests.helpers import eventually
from tests.raw_client import PATIENCE, RawClient

from .transforms import Upper, UpperStream

pytestmark = pytest.mark.parametrize("transport", ["protocol"])

SIZE = 32 * 1024**2
"""Bytes of a result: more than all the buffers between a server and its client."""


class Large(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return bytes(SIZE)


class LargeStream(ETLServer):
    def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes]:
        for _ in range(SIZE // 65536):
            yield bytes(65536)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are looked at again and again."""
    monkeypatch.setattr(http, "CHECK_INTERVAL", 0.05)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of failures."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def send_without_end(client: RawClient, data: bytes, pause: float = 0.0) -> None:
    """Send until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        while not client.writer.transport.is_closing():
            await client.send(data)
            await asyncio.sleep(pause)


# Heads


@pytest.mark.parametrize("line", [b"x-more: 1\r\n", b"x" * 11], ids=["many", "one"])
async def test_a_head_that_does_not_end_is_refused(serve: Serve, line: bytes) -> None:
    async with RawClient(serve(Upper).port) as client:
        await client.send(b"PUT /b/o HTTP/1.1\r\n" + line * (LONGEST_HEAD // len(line)))
        sending = asyncio.create_task(send_without_end(client, line * 100, 0.05))  # so slowly that all of it is read
        answer = await client.answer()
        sending.cancel()
        assert (answer.status, answer.headers.get("connection")) == (431, "close")


async def test_a_long_head_within_the_limit_is_served(serve: Serve) -> None:
    headers = "".join(f"x-{number}: {'y' * 1000}\r\n" for number in range(LONGEST_HEAD // 1100))
    async with RawClient(serve(Upper).port) as client:
        for _ in range(3):  # none counts for the next
            await client.put("/b/o", b"hello", headers)
            assert (await client.answer()).body == b"HELLO"


@pytest.mark.parametrize("dripping", [False, True])
async def test_a_head_that_does_not_come_in_time_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, often: None, dripping: bool
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.3)
    async with RawClient(serve(Upper).port) as client:
        await client.send(b"PUT /b/o HTTP/1.1\r\nx-more: ")
        sending = asyncio.create_task(send_without_end(client, b"x", 0.05)) if dripping else None
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        if sending is not None:
            sending.cancel()


# Chunked bodies


@pytest.mark.parametrize("line", [b"x-more: 1\r\n", b"x" * 1000], ids=["many", "one"])
@pytest.mark.parametrize("cls", [Upper, UpperStream])
async def test_trailers_that_do_not_end_fail_the_object(
    serve: Serve, caplog: pytest.LogCaptureFixture, cls: type[ETLServer], line: bytes
) -> None:
    live = serve(cls)
    async with RawClient(live.port) as client:
        await client.start_chunked("/b/o")
        await client.chunk(b"hello")
        await client.send(b"0\r\n")
        sending = asyncio.create_task(send_without_end(client, line * 10))
        assert b"HELLO" not in await client.closed()
        sending.cancel()
    await eventually(lambda: live.worker.admission.in_flight == 0)
    assert any("Request header fields too large." in line for line in told(caplog))


async def test_the_extension_of_a_chunk_that_does_not_end_fails_the_object(serve: Serve) -> None:
    live = serve(Upper)
    async with RawClient(live.port) as client:
        await client.start_chunked("/b/o")
        await client.send(b"5;")
        sending = asyncio.create_task(send_without_end(client, b"x" * 10_000))
        assert await client.closed() == b""
        sending.cancel()
    await eventually(lambda: live.worker.admission.in_flight == 0)


async def test_trailers_that_come_too_slowly_fail_the_object(serve: Serve, often: None) -> None:
    live = serve(Upper, io_timeout=0.3)
    async with RawClient(live.port) as client:
        await client.start_chunked("/b/o")
        await client.chunk(b"hello")
        await client.send(b"0\r\nx-more: ")
        sending = asyncio.create_task(send_without_end(client, b"x", 0.05))
        assert await client.closed() == b""
        sending.cancel()
    await eventually(lambda: live.worker.admission.in_flight == 0)


async def test_chunks_may_be_many_and_have_extensions_and_trailers(serve: Serve) -> None:
    count = LONGEST_HEAD // 50  # what is no body is more than the limit, in sum
    async with RawClient(serve(Upper).port) as client:
        for _ in range(2):
            await client.start_chunked("/b/o")
            await client.send((b"1;%s\r\nx\r\n" % (b"y" * 50)) * count + b"0\r\nx-more: 1\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"X" * count)


# Idle connections


@pytest.mark.parametrize("requests", [0, 1])
async def test_an_idle_connection_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, often: None, requests: int
) -> None:
    monkeypatch.setattr("etl_server.runtime.serve.KEEP_ALIVE", 0.3)
    async with RawClient(serve(Upper).port) as client:
        for _ in range(requests):
            await client.put("/b/o", b"hello")
            assert (await client.answer()).body == b"HELLO"
        assert await client.closed() == b""


async def test_a_connection_that_waits_for_its_answer_is_not_idle(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    monkeypatch.setattr("etl_server.runtime.serve.KEEP_ALIVE", 0.1)

    class Slow(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            await asyncio.sleep(0.5)
            return data

    async with RawClient(serve(Slow, io_timeout=0.1).port) as client:
        await client.put("/b/o", b"hello")
        assert (await client.answer()).body == b"hello"


# Clients that stand still


@pytest.mark.parametrize("head", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("cls", [Upper, UpperStream])
async def test_a_client_that_stops_sending_fails_its_object(
    serve: Serve, caplog: pytest.LogCaptureFixture, often: None, cls: type[ETLServer], head: str
) -> None:
    live = serve(cls, io_timeout=0.3)
    async with RawClient(live.port) as client:
        await client.send(f"PUT /b/o HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n5\r\nhello\r\n")
        await client.closed()
    await eventually(lambda: live.worker.admission.in_flight == 0)
    assert any("The client has sent nothing for ETL_IO_TIMEOUT=0.3 s" in line for line in told(caplog))


async def test_a_client_that_sends_slowly_is_waited_for(serve: Serve, often: None) -> None:
    async with RawClient(serve(Upper, io_timeout=1).port) as client:
        await client.start_chunked("/b/o")
        for _ in range(15):
            await client.chunk(b"x")
            await asyncio.sleep(0.1)
        await client.chunk(b"")
        assert (await client.answer()).body == b"X" * 15


@contextlib.asynccontextmanager
async def not_reading(live: Live) -> AsyncIterator[None]:
    """A client has sent an object, and does not read its answer, which has begun to come."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", live.port))
        await loop.sock_sendall(connection, b"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        assert await asyncio.wait_for(loop.sock_recv(connection, 1), PATIENCE) == b"H"
        yield


@pytest.mark.parametrize("cls", [Large, LargeStream])
async def test_a_client_that_does_not_take_its_answer_is_given_up(
    serve: Serve, caplog: pytest.LogCaptureFixture, often: None, cls: type[ETLServer]
) -> None:
    live = serve(cls, io_timeout=0.3)
    async with not_reading(live):
        await eventually(lambda: live.worker.admission.in_flight == 0)
    assert live.worker.admission.memory.used == 0
    assert any("The client has taken nothing for ETL_IO_TIMEOUT=0.3 s" in line for line in told(caplog))


class LargeAtOnce(Large):
    execution = "inline"


@pytest.mark.parametrize("cls", [Large, LargeAtOnce])
async def test_an_answer_takes_up_memory_until_it_is_taken(serve: Serve, cls: type[ETLServer]) -> None:
    live = serve(cls)
    async with not_reading(live):
        assert live.worker.admission.memory.used >= SIZE
    await eventually(lambda: live.worker.admission.memory.used == 0)


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(serve: Serve, often: None) -> None:
    async with RawClient(serve(LargeStream, io_timeout=1).port) as client:
        await client.put("/b/o", b"x")
        assert (await client.head())[0] == 200
        taken = 0
        while piece := await client.next_chunk():
            taken += len(piece)
            if taken % 1024**2 == 0:
                await asyncio.sleep(0.1)
    assert taken == SIZE

"""Messages over a WebSocket, of all sizes and however they are cut: large ones are read another way than small ones."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from websockets.frames import CloseCode, Frame, Opcode

from etl_server import ETLServer
from etl_server.runtime.ws_reading import LARGE, LARGEST, SMALL_FRAMES
from tests.conftest import Live, Serve
from tests.peak_memory import memory_of
from tests.raw_client import RawClient

SIZES = (0, 1, 125, 126, 65535, 65536, LARGE - 1, LARGE, LARGE + 1, 300_000, 1 << 20, LARGEST, LARGEST + 1)


class Echo(ETLServer):
    execution = "inline"

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data


class Socket(RawClient):
    """A WebSocket whose bytes are sent as they are."""

    async def open(self) -> None:
        await self.send(
            "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert (await self.head())[0] == 101

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: its opcode, and what it has."""
        first, second = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80
        size = second
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        return first & 0x0F, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """Wait for the end of the connection; the code that the server closed it with."""
        opcode, payload = await self.receive()
        assert opcode == Opcode.CLOSE
        return int.from_bytes(payload[:2], "big")


@asynccontextmanager
async def connected(live: Live) -> AsyncIterator[Socket]:
    async with Socket(live.port) as socket:
        await socket.open()
        yield socket


def frame(data: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=mask)


def of(data: bytes) -> bytes:
    """An object, as a target sends it."""
    return frame(b'{"path": "o"}') + frame(data)


async def exchange(socket: Socket, sent: bytes, cuts: list[int], expected: list[tuple[int, bytes]]) -> None:
    """Send bytes, cut into pieces; every answer has to be right."""
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        await socket.send(sent[start:end])
    for opcode, data in expected:
        got = await socket.receive()
        assert got[0] == opcode
        assert got[1] == data  # apart from the line above, as a difference of megabytes takes minutes to show


@pytest.mark.parametrize("size", SIZES)
async def test_an_object_of_any_size_is_answered(serve: Serve, size: int) -> None:
    data = os.urandom(size)
    async with connected(serve(Echo)) as socket:
        for _ in range(3):
            await exchange(socket, of(data), [], [(Opcode.BINARY, data)])


@pytest.mark.parametrize("first", [b"small", b"x" * LARGE])
async def test_a_message_may_be_cut_anywhere_in_its_head(serve: Serve, first: bytes) -> None:
    data = os.urandom(LARGE + 3)
    sent = of(first) + of(data) + of(b"last")
    begin = len(of(first)) + len(frame(b'{"path": "o"}'))
    expected = [(int(Opcode.BINARY), message) for message in (first, data, b"last")]
    async with connected(serve(Echo)) as socket:
        for cut in range(begin - 3, begin + 18):
            await exchange(socket, sent, [cut], expected)
            await exchange(socket, sent, [cut, cut + 1], expected)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_comes_is_answered_in_order(serve: Serve, seed: int) -> None:
    dice = random.Random(seed)
    sent, expected = b"", []
    for _ in range(dice.randrange(1, 60)):
        kind = dice.choice(["object", "object", "object", "ping", "parts"])
        data = dice.randbytes(dice.choice([0, 3, 126, 5000, 70_000, LARGE, LARGE + 5, 400_000]))
        if kind == "ping":
            sent += frame(data[:125], Opcode.PING)
            expected.append((int(Opcode.PONG), data[:125]))
            continue
        expected.append((int(Opcode.BINARY), data))
        if kind == "object":
            sent += of(data)
        else:
            middle = len(data) // 2
            sent += frame(b'{"path": "o"}') + frame(data[:middle], fin=False) + frame(b"pi", Opcode.PING)
            sent += frame(data[middle:], Opcode.CONT)
            expected.insert(-1, (int(Opcode.PONG), b"pi"))
    cuts = sorted(dice.sample(range(1, len(sent)), min(len(sent) - 1, dice.randrange(40))))
    async with connected(serve(Echo)) as socket:
        answers = {
            opcode: [data for kind, data in expected if kind == opcode] for opcode in (Opcode.BINARY, Opcode.PONG)
        }
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            socket.writer.write(sent[start:end])
        for _ in expected:
            opcode, data = await socket.receive()
            assert answers[Opcode(opcode)].pop(0) == data


async def test_after_many_small_objects_a_large_one_is_still_whole(serve: Serve) -> None:
    data = os.urandom(1 << 20)
    async with connected(serve(Echo)) as socket:
        for _ in range(SMALL_FRAMES):
            await exchange(socket, of(b"small"), [], [(Opcode.BINARY, b"small")])
        await exchange(socket, of(b"a") + of(data) + of(b"b"), [30], [(Opcode.BINARY, d) for d in (b"a", data, b"b")])


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"{}") + frame(b"x" * LARGE, mask=False), CloseCode.PROTOCOL_ERROR),
        (frame(b"{}") + b"\xc2" + frame(b"x" * LARGE)[1:], CloseCode.PROTOCOL_ERROR),
        (frame(b"{}") + b"\x82\xff" + b"\xff" * 8 + b"mask", CloseCode.PROTOCOL_ERROR),
        (frame(b"{}") + b"\x82\xff" + bytes(6) + b"\x00\x01mask!", CloseCode.PROTOCOL_ERROR),
        (frame(b"{}") + frame(b"x" * LARGE, Opcode.TEXT), CloseCode.INTERNAL_ERROR),
    ],
    ids=["no mask", "an extension", "no size", "a size in too many bytes", "text"],
)
@pytest.mark.parametrize("transport", ["protocol"])  # other servers take some of them
async def test_a_large_message_that_may_not_be_ends_the_connection(serve: Serve, sent: bytes, code: CloseCode) -> None:
    async with connected(serve(Echo)) as socket:
        socket.writer.write(sent)
        assert await socket.close_code() == code


@pytest.mark.parametrize("size", [4, LARGE])
@pytest.mark.parametrize(
    ("before", "first"),
    [(b"", 0xA2), (b"", 0x92), (b"part", 0x82), (b"part", 0x81), (b"", 0x80), (b"", 0x00)],
    ids=[
        "second bit",
        "third bit",
        "within another",
        "text within another",
        "end without beginning",
        "part of nothing",
    ],
)
async def test_a_frame_that_may_not_be_ends_the_connection(serve: Serve, size: int, before: bytes, first: int) -> None:
    part = frame(before, fin=False) if before else b""
    async with connected(serve(Echo)) as socket:
        socket.writer.write(frame(b"{}") + part + bytes((first,)) + frame(b"x" * size)[1:])
        assert await socket.close_code() == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("transport", ["protocol"])
async def test_nothing_is_taken_behind_a_frame_that_may_not_be(serve: Serve) -> None:
    seen: list[int] = []

    class Seen(Echo):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            seen.append(len(data))
            return data

    async with connected(serve(Seen)) as socket:
        socket.writer.write(frame(b"{}") + frame(b"", Opcode.PING, mask=False) + frame(b"x" * LARGE))
        assert await socket.close_code() == CloseCode.PROTOCOL_ERROR
        await socket.closed()
    assert seen == []


async def test_a_large_message_within_the_parts_of_another_is_no_object(serve: Serve) -> None:
    async with connected(serve(Echo)) as socket:
        socket.writer.write(frame(b"{}") + frame(b"part", fin=False) + frame(b"x" * LARGE) + frame(b"y", Opcode.CONT))
        opcode, data = await socket.receive()
        assert (opcode, data[:4]) != (Opcode.BINARY, b"xxxx")


async def test_a_client_that_leaves_within_a_large_message_leaves_nothing_behind(serve: Serve) -> None:
    live = serve(Echo)
    async with connected(live) as socket:
        await socket.send(of(b"x" * (1 << 20))[:-1])
    async with connected(live) as socket:
        await exchange(socket, of(b"x"), [], [(Opcode.BINARY, b"x")])


async def test_the_head_of_a_large_message_costs_no_memory(serve: Serve) -> None:
    live = serve(Echo)
    head = b"\x82\xff" + LARGEST.to_bytes(8, "big") + b"mask"
    async with AsyncExitStack() as clients:
        sockets = [await clients.enter_async_context(connected(live)) for _ in range(30)]
        before = memory_of(os.getpid(), "VmRSS")
        for socket in sockets:
            await exchange(socket, frame(b"{}") + frame(b"", Opcode.PING) + head, [], [(Opcode.PONG, b"")])
        async with connected(live) as socket:  # by its answer, all that came before has been seen to
            await exchange(socket, of(b"x"), [], [(Opcode.BINARY, b"x")])
        assert memory_of(os.getpid(), "VmRSS") - before < len(sockets) * LARGEST // 4


@pytest.mark.parametrize("transport", ["protocol"])
async def test_nothing_is_taken_behind_a_handshake_that_fails(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with Socket(serve(Echo).port) as socket:
        await socket.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
            + frame(b"x" * LARGE)[:100]
        )
        assert (await socket.head())[0] == 400
        await socket.closed()
    assert not [record for record in caplog.records if record.name == "asyncio"]

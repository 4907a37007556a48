"""Objects that are served in one step, because they are here in whole and their transform runs inline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from etl_server import ETLServer
from etl_server.testing import Driver, Message, Target
from tests.conftest import Serve
from tests.raw_client import RawClient

from .test_websocket import by_hand, closing


class Inline(ETLServer):
    """Does what the object says."""

    execution = "inline"

    def transform(self, data: bytes, path: str, etl_args: str) -> Any:
        if data == b"raise":
            raise ValueError(f"cannot do {path}")
        if data == b"exit":
            raise SystemExit(3)
        results = {b"none": None, b"view": memoryview(b"viewed"), b"empty": b"", b"array": bytearray(b"array")}
        if data == b"later":
            return self.later()
        return results.get(data, data.upper())

    def later(self) -> Awaitable[bytes]:
        async def finish() -> bytes:
            await asyncio.sleep(0.01)
            return b"finished"

        return finish()


class BadMimeType(Inline):
    def get_mime_type(self) -> str:
        return "näive/ŧype"


class NoMimeType(Inline):
    def get_mime_type(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("body", "answer"),
    [(b"x", b"X"), (b"view", b"viewed"), (b"array", b"array"), (b"empty", b""), (b"later", b"finished")],
)
async def test_whatever_an_inline_transform_returns_is_the_answer(serve: Serve, body: bytes, answer: bytes) -> None:
    async with RawClient(serve(Inline).port) as client:
        for _ in range(2):
            await client.put("/b/o", body)
            got = await client.answer()
            assert (got.status, got.body, got.whole) == (200, answer, True)
            assert ("content-length" in got.headers) == bool(answer)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"raise", "Processing error: cannot do b/o"),
        (b"exit", "Processing error: SystemExit: 3"),
        (b"none", "Processing error: transform() returned NoneType, expected bytes, bytearray or memoryview"),
    ],
)
async def test_an_inline_transform_that_fails_fails_its_object_alone(serve: Serve, body: bytes, detail: str) -> None:
    async with RawClient(serve(Inline).port) as client:
        await client.put("/b/o", body)
        got = await client.answer()
        assert (got.status, json.loads(got.body)) == (500, {"detail": detail})
        await client.put("/b/o", b"next")
        assert (await client.answer()).body == b"NEXT"


@pytest.mark.parametrize("cls", [BadMimeType, NoMimeType])
async def test_a_mime_type_that_cannot_be_sent_fails_the_object(serve: Serve, cls: type[ETLServer]) -> None:
    async with RawClient(serve(cls).port) as client:
        await client.put("/b/o", b"x")
        got = await client.answer()
        assert got.status == 500
        assert "get_mime_type()" in json.loads(got.body)["detail"]


async def test_what_the_whole_way_guards_is_guarded(serve: Serve) -> None:
    async with RawClient(serve(Inline, max_body=10).port) as client:
        await client.put("/b/o", b"x" * 10)
        assert (await client.answer()).status == 200
        await client.put("/", b"x")
        assert (await client.answer()).status == 400
    async with RawClient(serve(Inline, max_body=10).port) as client:
        await client.put("/b/o", b"x" * 11)
        assert (await client.answer()).status == 413


async def test_many_requests_at_once_are_answered_in_order(serve: Serve) -> None:
    bodies = [b"%d" % number * 100 for number in range(300)]
    async with RawClient(serve(Inline).port) as client:
        await client.send(
            b"".join(b"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b) for b in bodies)
        )
        assert [(await client.answer()).body for _ in bodies] == bodies


async def test_a_large_inline_result_waits_for_its_taker(serve: Serve) -> None:
    class Grow(ETLServer):
        execution = "inline"

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return data * (8 << 20)

    async with RawClient(serve(Grow).port) as client:
        await client.put("/b/o", b"g")
        got = await client.answer()
        assert got.whole
        assert got.body == b"g" * (8 << 20)


async def test_over_a_websocket_order_and_errors_are_kept(serve: Serve, target: Target) -> None:
    async with Driver(serve(Inline).url, target) as driver, driver.websocket() as socket:
        for body in (b"a", b"later", b"b", b"empty", b"view"):
            await socket.send("o", body)
        got = [await socket.receive() for _ in range(5)]
        assert got == [Message("binary", data) for data in (b"A", b"finished", b"B", b"", b"viewed")]


async def test_over_a_websocket_what_is_quick_does_not_overtake_a_delivery(serve: Serve, target: Target) -> None:
    live = serve(Inline, host_target=target.url)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        for number in range(20):
            await socket.send("o", b"delivered", pipeline=target.destination("dst", f"{number}"))
            await socket.send("o", b"quick")
            assert await socket.receive() == Message("text", "9")
            assert await socket.receive() == Message("binary", b"QUICK")


@pytest.mark.parametrize("body", [b"raise", b"none"])
async def test_over_a_websocket_a_failure_closes_after_what_was_due(serve: Serve, body: bytes) -> None:
    async with by_hand(serve(Inline)) as socket:
        for data in (b"a", body, b"never"):
            await socket.send(b'{"path": "o"}')
            await socket.send(data)
        messages, code, reason = await closing(socket)
        assert messages == [b"A"]
        assert code == 1011
        assert reason is not None
        assert reason.startswith("Processing error: ")


async def test_over_a_websocket_the_largest_body_is_bounded(serve: Serve) -> None:
    async with by_hand(serve(Inline, max_body=10)) as socket:
        await socket.send(b"{}")
        await socket.send(b"x" * 11)
        _, code, reason = await closing(socket)
        assert code == 1011
        assert "ETL_MAX_BODY=10" in str(reason)

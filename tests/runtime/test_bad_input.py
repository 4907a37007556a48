"""What clients, transforms and next stages do wrong: each gets its answer, no part ever passes for a whole object, the
server lives, and the next request works."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, BinaryIO

import pytest

from etl_server import AsyncReader, ETLError, ETLServer, Settings
from etl_server.runtime.http import HttpExchange
from etl_server.testing import Driver, Reply, Target
from etl_server.wire.names import encode_uname
from tests.conftest import Live, Serve, Transport
from tests.helpers import eventually
from tests.raw_client import RawAnswer, RawClient
from tests.stages import STORED, Stage, answering, hanging_up, refusing, resetting, response, saying, stalling

from .conftest import Drive
from .transforms import ALL_UPPER, EAGER_STREAMS, STREAMS, SWALLOWING, AsyncUpper, EagerStream, Upper, UpperStream


@asynccontextmanager
async def connected(live: Live) -> AsyncIterator[RawClient]:
    """A client; afterwards the server still serves, on another connection."""
    async with RawClient(live.port) as client:
        yield client
    async with RawClient(live.port) as client:
        await client.get("/health")
        assert (await client.answer()).body == b"Running"


ERRORS: dict[str, tuple[BaseException, str]] = {
    "text": (ValueError("not an image: “é”\n"), "not an image: “é”\n"),
    "no text": (RuntimeError(), "RuntimeError"),
    "key": (KeyError("missing"), "'missing'"),
    "stop": (StopIteration("x"), "x"),
    "async stop": (StopAsyncIteration("x"), "x"),
    "exit": (SystemExit(3), "3"),
    "timeout": (TimeoutError("the model is busy"), "the model is busy"),
}
"""By the arguments that ask for it: what is raised, and what is told of it."""


def fresh(name: str) -> BaseException:
    """A new error: one that is raised again keeps its old traceback."""
    error = ERRORS[name][0]
    return type(error)(*error.args)


class Raising(ETLServer):
    """Raises, before its first byte, the error that the arguments ask for. So does each of the following."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        raise fresh(etl_args)


class InlineRaising(Raising):
    execution = "inline"


class AsyncRaising(ETLServer):
    async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        raise fresh(etl_args)


class RaisingStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        reader.read()
        raise fresh(etl_args)
        yield b""


class InlineRaisingStream(RaisingStream):
    execution = "inline"


class RaisingNoGenerator(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        raise fresh(etl_args)


class AsyncRaisingStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        await reader.read()
        raise fresh(etl_args)
        yield b""


ALL_RAISING = [
    Raising,
    InlineRaising,
    AsyncRaising,
    RaisingStream,
    InlineRaisingStream,
    RaisingNoGenerator,
    AsyncRaisingStream,
]


# A transform that raises


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("cls", ALL_RAISING)
async def test_a_transform_that_raises_is_told_with_its_message(
    serve: Serve, cls: type[ETLServer], timeout: float | None
) -> None:
    async with connected(serve(cls, object_timeout=timeout)) as client:
        for name, (error, message) in ERRORS.items():
            for _ in range(6):  # a fast one may change places
                await client.put(f"/src/a?etl_args={name.replace(' ', '+')}", b"content")
                answer = await client.answer()
                assert (answer.status, answer.headers["content-type"]) == (500, "application/json"), name
                detail = json.loads(answer.body)["detail"]
                assert detail.startswith("Processing error: "), name
                if name.endswith(("stop", "exit")):  # no ordinary errors: their kind may be told too, or reworded
                    assert message in detail or isinstance(error, StopIteration | StopAsyncIteration), name
                else:
                    assert detail == f"Processing error: {message}"


@pytest.mark.parametrize("cls", ALL_RAISING)
async def test_a_raising_transform_leaves_its_place_to_the_next(serve: Serve, cls: type[ETLServer]) -> None:
    class OneAtATime(cls):  # type: ignore[misc, valid-type]
        max_concurrency = 1

    async with connected(serve(OneAtATime)) as client:
        for _ in range(8):
            await client.put("/src/a?etl_args=text", b"content")
            assert (await client.answer()).status == 500


@pytest.mark.parametrize("cls", ALL_RAISING)
async def test_an_error_before_the_first_byte_reaches_no_next_stage(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(answering(STORED)) as stage, connected(serve(cls)) as client:
        await client.put("/src/a?etl_args=text", b"content", f"ais-node-url: {stage.url}\r\n")
        assert (await client.answer()).status == 500
    assert not any(request.complete for request in stage.requests)


# A transform that makes no object


RESULTS: dict[str, Any] = {"NoneType": None, "str": "text", "int": 7, "list": ["a"], "object": object()}
"""By the name of their type, which is to be told."""


class Wrong(ETLServer):
    """Makes what the arguments ask for, and what is no object. So does each of the following."""

    def transform(self, data: bytes, path: str, etl_args: str) -> Any:
        return RESULTS[etl_args]


class AsyncWrong(ETLServer):
    async def transform(self, data: bytes, path: str, etl_args: str) -> Any:
        return RESULTS[etl_args]


class WrongStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[Any]:
        yield RESULTS[etl_args]


class AsyncWrongStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[Any]:
        yield RESULTS[etl_args]


class NoStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        return b"" if etl_args == "bytes" else RESULTS[etl_args]


@pytest.mark.parametrize("cls", [Wrong, AsyncWrong, WrongStream, AsyncWrongStream])
async def test_what_is_no_object_is_named(serve: Serve, cls: type[ETLServer]) -> None:
    async with connected(serve(cls)) as client:
        for kind in RESULTS:
            for _ in range(6):
                await client.put(f"/src/a?etl_args={kind}", b"content")
                answer = await client.answer()
                assert answer.status == 500
                detail = json.loads(answer.body)["detail"]
                assert detail.startswith("Processing error: ")
                assert kind in detail


async def test_a_stream_that_is_no_iterator_is_named(serve: Serve) -> None:
    async with connected(serve(NoStream)) as client:
        for kind in ("NoneType", "str", "int", "object", "bytes"):
            for _ in range(6):
                await client.put(f"/src/a?etl_args={kind}", b"content")
                answer = await client.answer()
                assert answer.status == 500
                assert kind in json.loads(answer.body)["detail"]


# A transform that fails in the middle


def breaking(second: Any) -> list[type[ETLServer]]:
    """Streams that yield half of an object, wait for it to be on its way, then raise an error or yield nonsense."""

    class Stream(ETLServer):
        def setup(self) -> None:
            self.go_on = threading.Event()

        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[Any]:
            yield b"half"
            assert self.go_on.wait(10)
            if isinstance(second, Exception):
                raise second
            yield second

    class AsyncStream(ETLServer):
        def setup(self) -> None:
            self.go_on = threading.Event()

        async def transform_stream(self, reader: Any, path: str, etl_args: str) -> AsyncIterator[Any]:
            yield b"half"
            assert await asyncio.to_thread(self.go_on.wait, 10)
            if isinstance(second, Exception):
                raise second
            yield second

    return [Stream, AsyncStream]


@pytest.mark.parametrize("second", [ValueError("bad frame"), "text", None], ids=["raises", "str", "None"])
@pytest.mark.parametrize("kind", [0, 1])
async def test_half_an_object_ends_in_a_cut(serve: Serve, second: Any, kind: int) -> None:
    live = serve(breaking(second)[kind])
    async with connected(live) as client:
        await client.put("/src/a", b"content")
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await client.next_chunk() == b"half"
        live.server.go_on.set()  # type: ignore[attr-defined]
        assert await client.closed() == b""


@pytest.mark.parametrize("second", [ValueError("bad frame"), "text"], ids=["raises", "str"])
@pytest.mark.parametrize("kind", [0, 1])
async def test_half_an_object_is_cut_for_an_old_client_too(serve: Serve, second: Any, kind: int) -> None:
    """HTTP/1.0 knows no chunks: there the end of the connection is the end of the object, unless it is a reset."""
    live = serve(breaking(second)[kind])
    async with connected(live) as client:
        await client.send("PUT /src/a HTTP/1.0\r\nHost: x\r\nContent-Length: 7\r\n\r\ncontent")
        status, headers = await client.head()
        assert (status, await client.reader.read(1)) == (200, b"h") or "chunked" in headers["transfer-encoding"]
        live.server.go_on.set()  # type: ignore[attr-defined]
        if "transfer-encoding" in headers:
            assert b"0\r\n\r\n" not in await client.closed()
        else:
            with pytest.raises(ConnectionResetError):
                await client.reader.read()


@pytest.mark.parametrize("second", [ValueError("bad frame"), "text"], ids=["raises", "str"])
@pytest.mark.parametrize("kind", [0, 1])
async def test_half_an_object_never_arrives_at_the_next_stage(serve: Serve, second: Any, kind: int) -> None:
    live = serve(breaking(second)[kind])
    async with Stage(answering(STORED)) as stage:
        async with connected(live) as client:
            await client.put("/src/a", b"content", f"ais-node-url: {stage.url}\r\n")
            await stage.until(lambda: bool(stage.requests) and stage.requests[0].body == b"half")
            live.server.go_on.set()  # type: ignore[attr-defined]
            answer = await client.answer()
            assert answer.status == 500
            assert json.loads(answer.body)["detail"].startswith("Processing error: ")
        await stage.left()
        assert [request.complete for request in stage.requests] == [False]


async def test_half_a_result_of_the_next_stage_is_cut(serve: Serve) -> None:
    for half in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):
        go_on = asyncio.Event()

        async def breaking_off(connection: Any, half: bytes = half, go_on: asyncio.Event = go_on) -> None:
            await connection.request()
            await connection.send(half)
            await go_on.wait()

        async with Stage(breaking_off) as stage, connected(serve(Upper)) as client:
            await client.put("/src/a", b"content", f"ais-node-url: {stage.url}\r\n")
            status, _ = await client.head()
            assert status == 200
            go_on.set()
            assert b"0\r\n\r\n" not in await client.closed()


# A transform that hangs


@pytest.mark.parametrize("execution", ["thread", "async", "stream", "async stream"])
async def test_a_transform_that_hangs_is_given_up(serve: Serve, execution: str) -> None:
    let_go = threading.Event()

    class Hanging(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            let_go.wait(20)
            return data

    class AsyncHanging(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            await asyncio.Event().wait()
            return data

    class HangingStream(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            let_go.wait(20)
            yield b""

    class AsyncHangingStream(ETLServer):
        async def transform_stream(self, reader: Any, path: str, etl_args: str) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    kinds: dict[str, type[ETLServer]] = {
        "thread": Hanging,
        "async": AsyncHanging,
        "stream": HangingStream,
        "async stream": AsyncHangingStream,
    }
    try:
        async with connected(serve(kinds[execution], object_timeout=0.2)) as client:
            for _ in range(2):
                await client.put("/src/a", b"content")
                answer = await client.answer()
                assert answer.status == 500
                detail = json.loads(answer.body)["detail"]
                assert detail.startswith("Processing error: ")
                assert "ETL_OBJECT_TIMEOUT=0.2" in detail
    finally:
        let_go.set()


async def test_a_stream_that_hangs_in_the_middle_is_cut(serve: Serve) -> None:
    for cls in breaking(b"never"):
        live = serve(cls, object_timeout=0.2)
        async with connected(live) as client:
            await client.put("/src/a", b"content")
            assert (await client.head())[0] == 200
            assert await client.next_chunk() == b"half"
            assert await client.closed() == b""
        live.server.go_on.set()  # type: ignore[attr-defined]


async def test_many_that_hang_leave_room_for_the_next(serve: Serve, drive: Drive) -> None:
    let_go = threading.Event()

    class Moody(ETLServer):
        execution = "thread"

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            if data == b"hang":
                let_go.wait(20)
            return data

    try:
        driver = await drive(serve(Moody, object_timeout=0.5))
        hung = await asyncio.gather(*(driver.push("src", "a", data=b"hang") for _ in range(40)))
        assert {reply.status for reply in hung} == {500}
        assert (await driver.push("src", "a", data=b"content")).body == b"content"
    finally:
        let_go.set()


# A client that breaks off


CUT_BODIES = {
    "shorter than its length": "Content-Length: 100\r\n\r\nonly this",
    "no body at all": "Content-Length: 100\r\n\r\n",
    "chunks cut": "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
    "a chunk cut": "Transfer-Encoding: chunked\r\n\r\n100\r\npart",
    "no last chunk": "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n0\r\n",
    "bad chunk": "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\nxyz\r\n",
    "chunk of a negative size": "Transfer-Encoding: chunked\r\n\r\n-4\r\npart\r\n",
}


@pytest.mark.parametrize("cls", [Upper, *SWALLOWING, *EAGER_STREAMS])
async def test_a_body_that_is_cut_is_no_object(serve: Serve, cls: type[ETLServer]) -> None:
    live = serve(cls)
    in_flight = live.worker.admission
    for cut, rest in CUT_BODIES.items():
        for ending in (RawClient.go_away, RawClient.reset):
            async with Stage(answering(STORED)) as stage:
                async with connected(live) as client:
                    await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\nais-node-url: {stage.url}\r\n{rest}")
                    closed = asyncio.create_task(client.closed())
                    await eventually(lambda: in_flight.in_flight == 1 or closed.done())  # noqa: B023
                    ending(client)
                    await closed
                await eventually(lambda: in_flight.in_flight == 0)
                assert not any(request.complete for request in stage.requests), cut
                async with RawClient(live.port) as client:
                    await client.put("/src/b", b"whole", f"ais-node-url: {stage.url}\r\n")
                    assert (await client.answer()).status == 204
                assert [request.target for request in stage.requests if request.complete] == ["/src/b"], cut


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_that_goes_away_in_its_upload_ends_the_transform(serve: Serve, asynchronous: bool) -> None:
    closed = threading.Event()

    class Watched(EagerStream):
        def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes]:
            yield from _watch(super().transform_stream(reader, path, etl_args), closed)

    class AsyncWatched(ETLServer):
        async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
            try:
                async for piece in reader:
                    yield piece
            finally:
                closed.set()

    async with connected(serve(AsyncWatched if asynchronous else Watched)) as client:
        await client.start_chunked("/src/a")
        await client.chunk(b"part")
        assert (await client.head())[0] == 200
        client.go_away()
        assert await asyncio.to_thread(closed.wait, 10)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_that_goes_away_in_its_download_ends_the_transform(serve: Serve, asynchronous: bool) -> None:
    closed = threading.Event()

    class Endless(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            yield from _watch(iter(lambda: bytes(1000), b""), closed)

    class AsyncEndless(ETLServer):
        async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1000)
                    await asyncio.sleep(0)
            finally:
                closed.set()

    async with connected(serve(AsyncEndless if asynchronous else Endless)) as client:
        await client.put("/src/a", b"x")
        assert (await client.head())[0] == 200
        client.reset()
        assert await asyncio.to_thread(closed.wait, 10)


def _watch(pieces: Iterator[bytes], closed: threading.Event) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        closed.set()


async def test_a_client_that_goes_away_ends_an_async_transform(serve: Serve) -> None:
    started, cancelled = threading.Event(), threading.Event()

    class Waiting(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return data

    async with connected(serve(Waiting)) as client:
        await client.put("/src/a", b"x")
        assert await asyncio.to_thread(started.wait, 10)
        client.go_away()
        assert await asyncio.to_thread(cancelled.wait, 10)


@pytest.mark.parametrize("transport", ["protocol"])
async def test_a_client_that_goes_away_before_the_first_step_leaves_nothing_behind(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HttpExchange.start

    def start_and_lose(exchange: HttpExchange) -> None:
        start(exchange)
        exchange.disconnect("The client went away")

    live = serve(AsyncUpper)
    async with connected(live) as client:
        with monkeypatch.context() as patched:
            patched.setattr(HttpExchange, "start", start_and_lose)
            await client.put("/src/a", b"x")
            await eventually(lambda: live.worker.counts.push.outcomes.get("gone"))
    await eventually(lambda: live.worker.admission.in_flight == 0)


async def test_a_client_that_goes_away_leaves_its_place_to_the_next(serve: Serve, target: Target) -> None:
    class OneAtATime(EagerStream):
        max_concurrency = 1

    live = serve(OneAtATime)
    for _ in range(5):
        async with RawClient(live.port) as client:
            await client.start_chunked("/src/a")
            await client.chunk(b"part")
            assert (await client.head())[0] == 200
    async with Driver(live.url, target, object_timeout=10) as driver:
        assert (await driver.push("src", "a", data=b"x")).body == b"x"


# What is no HTTP


NO_HTTP = [
    "NONSENSE\r\n\r\n",
    "PUT\r\n\r\n",
    "PUT /a HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "PUT /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "PUT /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "PUT /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nno colon\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


async def test_what_is_no_http_is_refused(serve: Serve) -> None:
    live = serve(Upper)
    for nonsense in NO_HTTP:
        async with connected(live) as client:
            await client.send(nonsense)
            assert (await client.answer()).status == 400, nonsense
            assert await client.closed() == b""


# Nothing, each way


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_an_empty_object_goes_every_way(serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]) -> None:
    file = target.path("src", "empty")
    file.parent.mkdir()
    file.touch()
    second = serve(cls, host_target=target.url).url
    driver = await drive(serve(cls, host_target=target.url, fqn_roots=(file.parent,)))
    ways: list[Callable[..., Awaitable[Reply]]] = [driver.push, driver.pull, partial(driver.push, fqn=str(file))]
    for stages in ([], [second]):
        for way in ways:
            reply = await way("src", "empty", pipeline=stages)
            assert (reply.status, reply.body) == (200, b"")
            assert reply.headers["transfer-encoding"] == "chunked"
            reply = await way("src", "empty", pipeline=[*stages, target.destination("dst", "empty")])
            assert (reply.status, reply.delivered) == (204, 0)
            assert target.read("dst", "empty") == b""
            target.path("dst", "empty").unlink()


# Secrets


SECRET = "s3cr3t-0f-test"
TOKEN = "t0ken-0f-test"


async def ways_to_fail(live: Live, target: Target, netloc: str) -> AsyncIterator[RawAnswer]:
    """Every way of the data path, with everything that can go wrong on the target's side."""
    uname = encode_uname(target.uname("src", "a"))
    async with RawClient(live.port) as client:
        await client.get(f"/{uname}")
        yield await client.answer()
        await client.put("/src/a", b"content", f"ais-node-url: http://{netloc}/{uname}\r\n")
        yield await client.answer()
        await client.get("/..%2f..%2f?etl_fqn=/etc/passwd")
        yield await client.answer()


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_no_secret_is_told(
    serve: Serve, target: Target, backoffs: list[float], caplog: pytest.LogCaptureFixture, cls: type[ETLServer]
) -> None:
    caplog.set_level(logging.DEBUG, logger="etl_server")
    path = f"/v1/etl/_object/dev/{SECRET}"
    leak = f"GET {path}/x with Bearer {TOKEN}".encode()
    faults = [
        answering(response(500, leak)),
        answering(response(404, leak, chunked=True)),
        resetting,
        hanging_up,
        stalling,
        saying(leak),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x"),
    ]
    answers: list[RawAnswer] = []
    with refusing() as netloc:
        live = serve(cls, host_target=f"http://{netloc}{path}", authn_token=TOKEN, direct_put_retries=1)
        answers += [answer async for answer in ways_to_fail(live, target, netloc)]
    for fault in faults:
        async with Stage(fault) as stage:
            live = serve(cls, host_target=stage.url + path, authn_token=TOKEN, direct_put_retries=1, io_timeout=0.3)
            answers += [answer async for answer in ways_to_fail(live, target, stage.netloc)]
    for answer in answers:
        assert SECRET.encode() not in answer.body
        assert TOKEN.encode() not in answer.body
    assert {answer.status for answer in answers} >= {502, 500, 404, 403}
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text
    shown = f"{live.server.settings} {live.server.settings!r} {vars(live.server)} {live.worker!r} {live.app!r}"
    assert SECRET not in shown
    assert TOKEN not in shown


@pytest.mark.parametrize("stream", [False, True])
async def test_a_transform_that_tells_a_secret_does_not_get_it_out(
    serve: Serve, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    class Telling(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            try:
                raise OSError(f"GET {self.host_target}/x")
            except OSError as error:
                raise ValueError(f"cannot read {self.host_target}/x with {TOKEN}") from error

    class TellingStream(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            yield b"half" if etl_args else b""
            reader.read()
            raise ValueError(f"cannot read {self.host_target}/x with {TOKEN}")

    live = serve(
        TellingStream if stream else Telling,
        host_target=f"http://target:1/v1/etl/_object/dev/{SECRET}",
        authn_token=TOKEN,
    )
    async with connected(live) as client:
        await client.put("/src/a", b"x")
        answer = await client.answer()
        assert answer.status == 500
        assert "cannot read" in json.loads(answer.body)["detail"]
        assert SECRET.encode() not in answer.body
        assert TOKEN.encode() not in answer.body
        await client.start_chunked("/src/a?etl_args=late")
        await client.chunk(b"x")
        if stream:
            assert (await client.head())[0] == 200
        await client.chunk(b"")
        await client.closed() if stream else await client.answer()
    assert "cannot read" in caplog.text
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text


async def test_libraries_that_log_everything_tell_no_secret(
    serve: Serve, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    live = serve(UpperStream, host_target=target.url, authn_token=TOKEN)
    statuses = [answer.status async for answer in ways_to_fail(live, target, target.netloc)]
    assert statuses == [404, 204, 403]
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text


def test_no_error_of_ours_has_a_secret_in_its_repr() -> None:
    settings = Settings.load(host_target=f"http://t:1/v1/etl/_object/dev/{SECRET}", authn_token=TOKEN)
    for text in (repr(settings), str(settings), settings.redact(f"{SECRET} {TOKEN}"), repr(ETLError("x"))):
        assert SECRET not in text
        assert TOKEN not in text


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("body", [b"hello", b"x" * 100_000], ids=["small", "large"])
@pytest.mark.parametrize("wanted", ["h2c", "foo"])
async def test_a_request_that_offers_another_protocol_keeps_its_body(
    serve: Serve, transport: Transport, together: bool, body: bytes, wanted: str
) -> None:
    head = f"PUT /b/o HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {wanted}\r\n"
    head += f"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: {len(body)}\r\n\r\n"
    async with RawClient(serve(Upper).port) as client:
        await client.send(head.encode() + (body if together else b""))
        if not together:
            await client.send(body)
        answer = await client.answer()
        if transport == "asgi":
            assert answer.status == 400  # the ASGI server has lost it
            return
        assert (answer.status, answer.body) == (200, body.upper())
        await client.put("/b/o", b"next")
        assert (await client.answer()).body == b"NEXT"


async def test_a_chunked_body_is_kept_too(serve: Serve, transport: Transport) -> None:
    head = b"PUT /b/o HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with RawClient(serve(Upper).port) as client:
        await client.send(head + b"5\r\nhello\r\n0\r\n\r\n")
        answer = await client.answer()
    assert (answer.status, answer.body) == (200, b"HELLO") if transport == "protocol" else answer.status == 400


@pytest.mark.parametrize("transport", ["protocol"])
async def test_what_is_no_request_behind_two_others_ends_them(serve: Serve) -> None:
    cancelled = asyncio.Event()

    class Slow(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
            return data

    live = serve(Slow)
    async with RawClient(live.port) as client:
        request = b"PUT /b/o HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        await client.send(request + request + b"no request\r\n\r\n")
    await eventually(cancelled.is_set)
    await eventually(lambda: live.worker.admission.in_flight == 0)

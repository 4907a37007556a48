"""Running the user's transform: in whichever form it is written, wherever it runs, and whatever it does."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, BinaryIO

import aiohttp
import httpx
import pytest

from etl_server import AsyncReader, ETLServer, Settings
from etl_server.testing import Driver, Reply, Target
from tests.conftest import Serve
from tests.helpers import eventually, health, no_logs
from tests.raw_client import PATIENCE, RawClient

ETLClass = type[ETLServer]

one_transport = pytest.mark.parametrize("transport", ["protocol"])
"""For what happens behind the transport, whichever that is."""


def detail(reply: Reply) -> str:
    text: str = json.loads(reply.body)["detail"]
    return text


class Crowd:
    """Counts who is in it at once."""

    def __init__(self) -> None:
        self.now = self.most = self.came = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Crowd:
        with self._lock:
            self.came += 1
            self.now += 1
            self.most = max(self.most, self.now)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


# In which form it is written


def upper(data: bytes, path: str, etl_args: str) -> bytes:
    return data.upper()


async def async_upper(data: bytes, path: str, etl_args: str) -> bytes:
    await asyncio.sleep(0)
    return data.upper()


class CallableObject:
    def __call__(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper()


class AsyncCallable:
    async def __call__(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper()


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def wrapped_without_a_trace(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: function(*args)


def with_prefix(prefix: bytes, data: bytes, path: str, etl_args: str) -> bytes:
    return prefix + data.upper()


async def async_with_prefix(prefix: bytes, data: bytes, path: str, etl_args: str) -> bytes:
    return prefix + data.upper()


@one_transport
@pytest.mark.parametrize(
    "transform",
    [
        staticmethod(upper),
        staticmethod(async_upper),
        staticmethod(functools.partial(with_prefix, b"")),
        staticmethod(functools.partial(async_with_prefix, b"")),
        CallableObject(),
        AsyncCallable(),
        staticmethod(wrapped(upper)),
        staticmethod(wrapped(async_upper)),
        staticmethod(wrapped_without_a_trace(upper)),
        staticmethod(wrapped_without_a_trace(async_upper)),
    ],
    ids=[
        "function",
        "async function",
        "partial",
        "partial of async",
        "callable",
        "async callable",
        "decorated",
        "decorated async",
        "wrapper",
        "wrapper of async",
    ],
)
async def test_a_transform_may_be_any_callable(serve: Serve, target: Target, transform: object) -> None:
    live = serve(type("Form", (ETLServer,), {"transform": transform}))
    async with Driver(live.url, target) as driver:
        for _ in range(8):  # the first in threads, the last on the loop
            reply = await driver.push("src", "a", data=b"hello")
            assert (reply.status, reply.body) == (200, b"HELLO")


class Generator(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        for line in reader:
            yield line.upper()


class ReturnsList(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        return [line.upper() for line in reader]


class WrappedGenerator(ETLServer):
    transform_stream = wrapped(Generator.transform_stream)


class AsyncGenerator(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        async for piece in reader:
            yield piece.upper()


class WrappedAsyncGenerator(ETLServer):
    transform_stream = wrapped(AsyncGenerator.transform_stream)


class AsyncReturnsIterator(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> Any:  # type: ignore[override]
        return iter([(await reader.read()).upper()])


class MutatesItsBuffer(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        buffer = bytearray(1)
        while byte := reader.read(1):
            buffer[:] = byte.upper()
            yield buffer
            yield memoryview(b"")


@one_transport
@pytest.mark.parametrize(
    "cls",
    [
        Generator,
        ReturnsList,
        WrappedGenerator,
        AsyncGenerator,
        WrappedAsyncGenerator,
        AsyncReturnsIterator,
        MutatesItsBuffer,
    ],
)
async def test_a_stream_may_be_any_iterator_of_pieces(serve: Serve, target: Target, cls: ETLClass) -> None:
    live = serve(cls)
    async with Driver(live.url, target) as driver:
        for _ in range(8):
            reply = await driver.push("src", "a", data=b"hel\nlo")
            assert (reply.status, reply.body) == (200, b"HEL\nLO")


@one_transport
async def test_transform_wins_over_transform_stream(serve: Serve, target: Target) -> None:
    class Both(Generator):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return b"whole"

    async with Driver(serve(Both).url, target) as driver:
        assert (await driver.push("src", "a", data=b"hello")).body == b"whole"


def test_a_class_with_neither_cannot_be_instantiated() -> None:
    class Neither(ETLServer):
        pass

    with pytest.raises(TypeError, match=r"Neither.*transform\(\).*transform_stream\(\)"):
        Neither(settings=Settings.load())


@one_transport
async def test_a_transform_is_given_name_and_arguments(serve: Serve, target: Target) -> None:
    class Given(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return repr((data, path, etl_args)).encode()

    async with Driver(serve(Given).url, target) as driver:
        reply = await driver.push("src", "dir/a b.txt", data=b"x", etl_args='{"n": 1}')
    assert reply.body == repr((b"x", "src/dir/a b.txt", '{"n": 1}')).encode()


# What it returns


@one_transport
@pytest.mark.parametrize("execution", ["inline", "thread"])
@pytest.mark.parametrize(
    ("result", "body"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (memoryview(b"s-t-r-i-d-e")[::2], b"stride"),
        (type("Name", (bytes,), {})(b"subclass"), b"subclass"),
        (b"", b""),
        (bytearray(), b""),
    ],
)
async def test_a_transform_may_return_any_bytes(
    serve: Serve, target: Target, execution: str, result: object, body: bytes
) -> None:
    live = serve(type("Returns", (ETLServer,), {"transform": lambda *_: result, "execution": execution}))
    async with Driver(live.url, target) as driver:
        reply = await driver.push("src", "a", data=b"x")
    assert (reply.status, reply.body) == (200, body)


@one_transport
@pytest.mark.parametrize("execution", ["inline", "thread"])
@pytest.mark.parametrize(("result", "name"), [(None, "NoneType"), ("text", "str"), (7, "int"), ([b"x"], "list")])
async def test_any_other_result_is_an_error_that_names_its_type(
    serve: Serve, target: Target, execution: str, result: object, name: str
) -> None:
    live = serve(type("Returns", (ETLServer,), {"transform": lambda *_: result, "execution": execution}))
    async with Driver(live.url, target) as driver:
        reply = await driver.push("src", "a", data=b"x")
    assert reply.status == 500
    assert detail(reply).startswith("Processing error: ")
    assert f"returned {name}" in detail(reply)


class YieldsStr(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        yield "text"


class AsyncYieldsStr(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> Any:
        yield "text"


class ReturnsStr(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        return "text"


class ReturnsNone(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Any:
        return None


class AsyncReturnsNone(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> Any:  # type: ignore[override]
        return None


@one_transport
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (YieldsStr, "str"),
        (AsyncYieldsStr, "str"),
        (ReturnsStr, "str"),
        (ReturnsNone, "NoneType"),
        (AsyncReturnsNone, "NoneType"),
    ],
)
async def test_a_stream_of_anything_else_is_an_error_that_names_its_type(
    serve: Serve, target: Target, cls: ETLClass, name: str
) -> None:
    live = serve(cls)
    async with Driver(live.url, target) as driver:
        for _ in range(6):
            reply = await driver.push("src", "a", data=b"x")
            assert reply.status == 500
            assert detail(reply).startswith("Processing error: ")
            assert name in detail(reply)


# What it raises


class CustomBaseError(BaseException):
    pass


ERRORS = [
    ValueError("no such colour"),
    ValueError(),
    ValueError('quotes " and ünïcödé'),
    ValueError("lone surrogate \udce9"),
    RecursionError("too deep"),
    MemoryError(),
    TimeoutError("mine"),
    ConnectionResetError("mine"),
    StopIteration("value"),
    StopAsyncIteration(),
    SystemExit(3),
    SystemExit(),
    CustomBaseError("base"),
]


def raising(kind: str, errors: Sequence[BaseException] = ERRORS) -> ETLClass:
    """A class with a transform of that kind, which raises the error whose index the arguments are."""

    class Raising(ETLServer):
        execution = "inline" if kind.startswith("inline") else "thread"

    def transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        if etl_args:
            raise errors[int(etl_args)]
        return data

    async def async_transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        return transform(self, data, path, etl_args)

    async def late_async_transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        await asyncio.sleep(0.001)
        return transform(self, data, path, etl_args)

    def stream(self: ETLServer, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield transform(self, reader.read(), path, etl_args)

    async def async_stream(self: ETLServer, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield transform(self, await reader.read(), path, etl_args)

    made = {
        "transform": transform,
        "async transform": async_transform,
        "late async transform": late_async_transform,
        "stream": stream,
        "async stream": async_stream,
    }
    name = "transform_stream" if kind.endswith("stream") else "transform"
    setattr(Raising, name, made[kind.removeprefix("inline ")])
    return Raising


RAISING_KINDS = [
    "transform",
    "inline transform",
    "async transform",
    "late async transform",
    "stream",
    "inline stream",
    "async stream",
]


@pytest.mark.parametrize("kind", RAISING_KINDS)
async def test_whatever_a_transform_raises_fails_its_object_and_nothing_else(
    serve: Serve, target: Target, kind: str
) -> None:
    answers: dict[str, str] = {}
    live = serve(raising(kind))
    with no_logs():
        async with Driver(live.url, target, object_timeout=5) as driver:
            for index, error in enumerate(ERRORS):
                try:
                    reply = await driver.push("src", "a", data=b"x", etl_args=str(index))
                    well = await driver.push("src", "a", data=b"x")
                except (aiohttp.ClientError, asyncio.TimeoutError) as failure:
                    answers[repr(error)] = repr(failure)
                    continue
                told = detail(reply) if reply.headers["content-type"] == "application/json" else reply.body.decode()
                message = str(error) or type(error).__name__
                is_told = told.startswith("Processing error: ") and (message in told or "StopIteration" in told)
                answers[repr(error)] = f"{reply.status} {'told' if is_told else told}, then {well.status}"
    assert answers == {repr(error): "500 told, then 200" for error in ERRORS}


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("kind", RAISING_KINDS)
async def test_a_transform_that_raises_what_is_python_s_own_fails_its_object_and_nothing_else(
    serve: Serve, kind: str, error: BaseException
) -> None:
    live = serve(raising(kind, [error]))
    async with RawClient(live.port) as client:
        await client.put("/src/a?etl_args=0", b"x")
        reply = await asyncio.wait_for(client.answer(), 5)
        assert reply.status == 500 or not reply.whole  # cut: the target learns of it, too
    async with RawClient(live.port) as client:
        await client.put("/src/a", b"x")
        assert (await client.answer()).body == b"x"


@one_transport
async def test_no_secret_is_in_what_a_transform_says_of_its_failure(serve: Serve, target: Target) -> None:
    class Tells(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise ValueError(f"cannot reach {self.host_target} with t0ken-of-mine")

    live = serve(Tells, host_target=target.url, authn_token="t0ken-of-mine")
    async with Driver(live.url, target) as driver:
        reply = await driver.push("src", "a", data=b"x")
    assert reply.status == 500
    assert b"cannot reach" in reply.body
    assert b"s3cr3t-0f-test" not in reply.body
    assert b"t0ken-of-mine" not in reply.body


@pytest.mark.parametrize("kind", ["transform", "async transform", "stream", "async stream"])
async def test_a_transform_that_hangs_fails_after_the_time_that_is_allowed(
    serve: Serve, target: Target, kind: str
) -> None:
    release = threading.Event()

    class Hangs(ETLServer):
        pass

    def transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        if etl_args == "hang":
            assert release.wait(60)
        return data

    async def async_transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        while etl_args == "hang" and not release.is_set():
            await asyncio.sleep(0.01)
        return data

    def stream(self: ETLServer, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield transform(self, reader.read(), path, etl_args)

    async def async_stream(self: ETLServer, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield await async_transform(self, await reader.read(), path, etl_args)

    made = {"transform": transform, "stream": stream, "async transform": async_transform, "async stream": async_stream}
    setattr(Hangs, "transform_stream" if kind.endswith("stream") else "transform", made[kind])
    live = serve(Hangs, object_timeout=0.2)
    try:
        async with Driver(live.url, target) as driver:
            reply = await driver.push("src", "a", data=b"x", etl_args="hang")
            assert reply.status == 500
            assert "ETL_OBJECT_TIMEOUT=0.2" in detail(reply)
            assert (await driver.push("src", "a", data=b"x")).body == b"x"
    finally:
        release.set()


@one_transport
async def test_a_timeout_of_the_transforms_own_is_told_as_such(serve: Serve, target: Target) -> None:
    class TimesOut(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise asyncio.TimeoutError("the model did not answer")

    async with Driver(serve(TimesOut, object_timeout=60).url, target) as driver:
        assert "the model did not answer" in detail(await driver.push("src", "a", data=b"x"))


async def needs_task(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
    assert asyncio.current_task() is not None
    return await asyncio.wait_for(asyncio.sleep(0, data), 60)


async def stream_needs_task(self: ETLServer, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
    yield await needs_task(self, await reader.read(), path, etl_args)


@pytest.mark.parametrize(
    "members",
    [
        {"transform": needs_task},
        {"transform": wrapped_without_a_trace(needs_task)},
        {"transform_stream": stream_needs_task},
    ],
    ids=["transform", "wrapper", "stream"],
)
async def test_an_async_transform_may_use_what_needs_a_task(
    serve: Serve, target: Target, members: dict[str, object]
) -> None:
    async with Driver(serve(type("NeedsTask", (ETLServer,), members)).url, target) as driver:
        for _ in range(3):
            reply = await driver.push("src", "a", data=b"x")
            assert (reply.status, reply.body) == (200, b"x")
        async with driver.websocket() as socket:
            await socket.send("a", b"y")
            assert (await socket.receive()).data == b"y"


async def test_an_async_transform_is_cancelled_when_its_client_goes_away(serve: Serve) -> None:
    started, cancelled = threading.Event(), threading.Event()

    class Waits(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return data

    live = serve(Waits)
    async with RawClient(live.port) as client:
        await client.put("/src/a", b"x")
        await eventually(started.is_set)
    await eventually(cancelled.is_set)
    assert await health(live.port) == (200, b"Running")


# How many at once


def crowding(kind: str, crowd: Crowd, most: int | None) -> ETLClass:
    """A class that lets its crowd stay for a moment."""

    class Crowding(ETLServer):
        max_concurrency = most
        execution = "thread"

    def transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        with crowd:
            time.sleep(0.005)
            return data

    async def async_transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        with crowd:
            await asyncio.sleep(0.005)
            return data

    def stream(self: ETLServer, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        with crowd:
            yield reader.read(1)
            time.sleep(0.005)
            yield reader.read()

    async def async_stream(self: ETLServer, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        with crowd:
            yield await reader.read(1)
            await asyncio.sleep(0.005)
            yield await reader.read()

    made: dict[str, Any] = {
        "transform": transform,
        "async transform": async_transform,
        "wrapper of async transform": wrapped_without_a_trace(async_transform),
        "stream": stream,
        "async stream": async_stream,
    }
    setattr(Crowding, "transform_stream" if kind.endswith("stream") else "transform", made[kind])
    return Crowding


KINDS = ["transform", "async transform", "wrapper of async transform", "stream", "async stream"]


@one_transport
@pytest.mark.parametrize("kind", KINDS)
async def test_max_concurrency_is_reached_and_never_exceeded(serve: Serve, target: Target, kind: str) -> None:
    crowd = Crowd()
    live = serve(crowding(kind, crowd, 3))
    async with Driver(live.url, target) as driver:
        replies = await asyncio.gather(*(driver.push("src", "a", data=b"some") for _ in range(30)))
    assert {(reply.status, reply.body) for reply in replies} == {(200, b"some")}
    assert crowd.came == 30
    assert crowd.most == 3


@one_transport
@pytest.mark.parametrize("kind", KINDS)
async def test_without_max_concurrency_transforms_overlap(serve: Serve, target: Target, kind: str) -> None:
    crowd = Crowd()
    live = serve(crowding(kind, crowd, None))
    async with Driver(live.url, target) as driver:
        await asyncio.gather(*(driver.push("src", "a", data=b"some") for _ in range(30)))
    assert crowd.most > 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_whose_client_went_away_still_counts_until_it_ends(
    serve: Serve, target: Target, stream: bool
) -> None:
    crowd, release = Crowd(), threading.Event()

    def transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        with crowd:
            assert path == "src/second" or release.wait(60)
            return data

    def transform_stream(self: ETLServer, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield transform(self, reader.read(), path, etl_args)

    members = {"transform_stream": transform_stream} if stream else {"transform": transform}
    live = serve(type("OneByOne", (ETLServer,), {"max_concurrency": 1, "execution": "thread", **members}))
    async with RawClient(live.port) as client:
        await client.put("/src/first", b"x")
        await eventually(lambda: crowd.now)
    await eventually(lambda: live.worker.admission.in_flight == 0)
    async with Driver(live.url, target) as driver:
        second = asyncio.ensure_future(driver.push("src", "second", data=b"y"))
        await asyncio.wait([second], timeout=0.1)
        assert not second.done()
        release.set()
        assert (await second).body == b"y"
    assert crowd.most == 1


@one_transport
@pytest.mark.parametrize("kind", RAISING_KINDS)
async def test_a_transform_that_failed_makes_room_for_the_next(serve: Serve, target: Target, kind: str) -> None:
    cls = raising(kind)
    cls.max_concurrency = 1
    async with Driver(serve(cls).url, target, object_timeout=5) as driver:
        for _ in range(2):
            assert (await driver.push("src", "a", data=b"x", etl_args="0")).status == 500
        assert (await driver.push("src", "a", data=b"x")).body == b"x"


@pytest.mark.parametrize("cls", [Generator, AsyncGenerator])
async def test_an_object_that_is_too_large_makes_room_for_the_next(serve: Serve, target: Target, cls: ETLClass) -> None:
    live = serve(type("OneByOne", (cls,), {"max_concurrency": 1}), max_body=8)
    async with Driver(live.url, target, object_timeout=5) as driver:
        for _ in range(3):
            assert (await driver.push("src", "a", data=b"nine byte")).status == 413
        assert (await driver.push("src", "a", data=b"in eight")).body == b"IN EIGHT"


async def test_a_stream_whose_mime_type_fails_makes_room_for_the_next(serve: Serve, target: Target) -> None:
    class NoType(ETLServer):
        max_concurrency = 1
        fails = True

        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            for _ in range(64):
                yield bytes(1 << 20)

        def get_mime_type(self) -> str:
            if self.fails:
                type(self).fails = False
                raise RuntimeError("which type?")
            return "text/plain"

    async with Driver(serve(NoType).url, target, object_timeout=5) as driver:
        assert (await driver.push("src", "a", data=b"x")).status == 500
        assert (await driver.push("src", "a", data=b"x")).status == 200


# Where it runs


class TellsThread(ETLServer):
    """Answers whether it ran on the event loop; it takes its time for objects that say `slow`."""

    def setup(self) -> None:
        self.loop_thread = threading.current_thread()

    def where(self, data: bytes | str) -> bytes:
        if data == b"slow":
            time.sleep(0.005)
        return b"loop" if threading.current_thread() is self.loop_thread else b"thread"

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        return self.where(data)


class StreamTellsThread(TellsThread):
    transform = ETLServer.transform  # type: ignore[assignment]

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield self.where(reader.read())


class AsyncTellsThread(TellsThread):
    async def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:  # type: ignore[override]
        return self.where(b"")


def running(cls: ETLClass, where: str) -> ETLClass:
    return type(cls.__name__, (cls,), {"execution": where})


async def settle_on_the_loop(driver: Driver) -> None:
    """Send objects until one was transformed on the loop; a busy machine may need more of them."""
    deadline = time.monotonic() + PATIENCE
    while not (await driver.push("src", "a", data=b"fast")).body.startswith(b"loop"):
        assert time.monotonic() < deadline, "a fast transform never came to run on the loop"


@one_transport
@pytest.mark.parametrize(
    ("cls", "where"),
    [
        (running(TellsThread, "inline"), b"loop"),
        (running(StreamTellsThread, "inline"), b"loop"),
        (running(TellsThread, "thread"), b"thread"),
        (running(StreamTellsThread, "thread"), b"thread"),
        (AsyncTellsThread, b"loop"),
    ],
)
async def test_a_transform_runs_where_it_says(serve: Serve, target: Target, cls: ETLClass, where: bytes) -> None:
    async with Driver(serve(cls).url, target) as driver:
        assert {(await driver.push("src", "a", data=b"fast")).body for _ in range(10)} == {where}


@one_transport
@pytest.mark.parametrize("cls", [TellsThread, StreamTellsThread])
async def test_a_fast_transform_comes_to_run_on_the_loop_and_a_slow_one_leaves_it_at_once(
    serve: Serve, target: Target, cls: ETLClass
) -> None:
    async with Driver(serve(cls).url, target) as driver:
        assert (await driver.push("src", "a", data=b"fast")).body == b"thread"
        await settle_on_the_loop(driver)
        for _ in range(100):
            await driver.push("src", "a", data=b"fast")
        await settle_on_the_loop(driver)
        await driver.push("src", "a", data=b"slow")
        assert (await driver.push("src", "a", data=b"slow")).body == b"thread"
        assert (await driver.push("src", "a", data=b"fast")).body == b"thread"


@one_transport
@pytest.mark.parametrize("cls", [TellsThread, StreamTellsThread])
async def test_a_slow_transform_never_comes_to_run_on_the_loop(serve: Serve, target: Target, cls: ETLClass) -> None:
    async with Driver(serve(cls).url, target) as driver:
        replies = [await driver.push("src", "a", data=b"slow") for _ in range(12)]
    assert {reply.body for reply in replies} == {b"thread"}


@one_transport
@pytest.mark.parametrize(("data", "etl_args"), [(bytes(100_000), ""), (b"fast", "other=1")])
async def test_being_fast_says_nothing_of_larger_objects_or_of_other_arguments(
    serve: Serve, target: Target, data: bytes, etl_args: str
) -> None:
    async with Driver(serve(TellsThread).url, target) as driver:
        await settle_on_the_loop(driver)
        assert (await driver.push("src", "a", data=data, etl_args=etl_args)).body == b"thread"


@one_transport
async def test_a_stream_that_turns_out_slow_goes_on_in_a_thread(serve: Serve, target: Target) -> None:
    class Turns(StreamTellsThread):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            data = reader.read(4)
            yield self.where(b"")
            if data == b"slow":
                yield b", then " + self.where(data)
                yield b", then " + self.where(b"")
                yield b", with " + reader.read()

    async with Driver(serve(Turns).url, target) as driver:
        await settle_on_the_loop(driver)
        reply = await driver.push("src", "a", data=b"slow...")
    assert reply.body == b"loop, then loop, then thread, with ..."


# What else goes on meanwhile


@pytest.mark.parametrize("stream", [False, True])
async def test_health_answers_while_many_transforms_wait(serve: Serve, target: Target, stream: bool) -> None:
    crowd, release = Crowd(), threading.Event()

    class Sleeps(ETLServer):
        pass

    def transform(self: ETLServer, data: bytes, path: str, etl_args: str) -> bytes:
        with crowd:
            assert release.wait(60)
            return data

    def transform_stream(self: ETLServer, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield transform(self, reader.read(), path, etl_args)

    members = {"transform_stream": transform_stream} if stream else {"transform": transform}
    live = serve(type("Sleeps", (ETLServer,), members))
    async with Driver(live.url, target) as driver:
        pushes = [asyncio.ensure_future(driver.push("src", "a", data=b"x")) for _ in range(64)]
        try:
            await eventually(lambda: crowd.now == 64)
            assert await health(live.port) == (200, b"Running")
            assert crowd.now == 64
        finally:
            release.set()
        assert {(await push).body for push in pushes} == {b"x"}


@one_transport
async def test_health_answers_while_transforms_compute(serve: Serve, target: Target) -> None:
    enough = threading.Event()

    class Computes(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            for number in itertools.count():
                if enough.is_set():
                    return b"%d" % number
            raise AssertionError

    live = serve(Computes)
    async with Driver(live.url, target) as driver:
        pushes = [asyncio.ensure_future(driver.push("src", "a", data=b"x")) for _ in range(16)]
        try:
            await eventually(lambda: live.worker.admission.in_flight == 16)
            assert await health(live.port) == (200, b"Running")
            assert not any(push.done() for push in pushes)
        finally:
            enough.set()
        assert all([(await push).body.isdigit() for push in pushes])


# setup and teardown


@one_transport
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_setup_comes_once_before_and_teardown_once_after_all_objects(
    serve: Serve, target: Target, asynchronous: bool
) -> None:
    events: list[str] = []

    class Sync(ETLServer):
        def setup(self) -> Any:
            events.append("setup")

        def teardown(self) -> Any:
            events.append("teardown")

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            events.append("transform")
            return data

    class Async(Sync):
        async def setup(self) -> None:
            await asyncio.sleep(0)
            events.append("setup")

        async def teardown(self) -> None:
            await asyncio.sleep(0)
            events.append("teardown")

    live = serve(Async if asynchronous else Sync)
    assert events == ["setup"]
    async with Driver(live.url, target) as driver:
        await asyncio.gather(*(driver.push("src", "a", data=b"x") for _ in range(3)))
    await asyncio.to_thread(live.stop)
    assert events == ["setup", "transform", "transform", "transform", "teardown"]


async def test_setup_comes_once_under_a_server_without_lifespan() -> None:
    events: list[str] = []

    class Counts(ETLServer):
        async def setup(self) -> None:
            await asyncio.sleep(0)
            events.append("setup")

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return data

    transport = httpx.ASGITransport(app=Counts(settings=Settings.load()).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        replies = await asyncio.gather(*(client.put("/src/a", content=b"x") for _ in range(5)))
    assert {reply.content for reply in replies} == {b"x"}
    assert events == ["setup"]


async def test_a_user_may_add_routes_to_the_app(serve: Serve) -> None:
    live = serve(Generator)

    async def version() -> str:
        return "7"

    live.app.add_api_route("/version", version)
    async with RawClient(live.port) as client:
        await client.get("/version")
        assert (await client.answer()).body == b'"7"'

"""Objects over a WebSocket: in order, many at once, and never a failure that looks like success."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import pytest
from aiohttp import ClientError, web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode

from etl_server import AsyncReader, ETLError, ETLServer
from etl_server.testing import Driver, DriverSocket, Message, Target, pipeline
from tests.conftest import Live, Serve
from tests.helpers import ais_file, eventually, health, no_logs
from tests.raw_client import PATIENCE, RawClient
from tests.runtime.transforms import ALL_EMPTY, ALL_UPPER, AsyncUpper, Told, Upper, UpperStream

T = TypeVar("T")

MIB = 1 << 20


class Fails(ETLServer):
    """Fails with the arguments as its message, if there are any."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        if etl_args:
            raise ValueError(etl_args)
        return data.upper()


class FailsMidway(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield b"half of it"
        if etl_args:
            raise ValueError(etl_args)


class AsyncFailsMidway(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield b"half of it"
        await asyncio.sleep(0)
        if etl_args:
            raise ValueError(etl_args)


class InlineUpper(Upper):
    execution = "inline"


class Gated(ETLServer):
    """Lets an object pass when its gate is opened. Gates are events by the object's name; without one it passes."""

    gates: dict[str, threading.Event]
    entered: list[str]
    execution = "thread"

    def setup(self) -> None:
        self.loop = asyncio.get_running_loop()

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        self.entered.append(path)
        if path in self.gates:
            assert self.gates[path].wait(60), f"the gate of {path} was never opened"
        return data.upper()


class AsyncGated(Gated):
    async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:  # type: ignore[override]
        self.entered.append(path)
        while path in self.gates and not self.gates[path].is_set():
            await asyncio.sleep(0.001)
        return data.upper()


class GatedStream(Gated):
    transform = ETLServer.transform  # type: ignore[assignment]

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield Gated.transform(self, reader.read(), path, etl_args)


def gated(cls: type[Gated], *names: str) -> type[Gated]:
    """A class of its own, with closed gates for the names."""
    return type(cls.__name__, (cls,), {"gates": {name: threading.Event() for name in names}, "entered": []})


async def on_loop(live: Live, function: Callable[[], T]) -> T:
    """Call a function on the event loop of a server whose class is `Gated`."""

    async def call() -> T:
        return function()

    assert isinstance(live.server, Gated)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), live.server.loop))


def by_hand(live: Live) -> connect:
    """A connection for what no target would send."""
    return connect(f"ws://127.0.0.1:{live.port}/ws", compression=None, max_size=None, ping_interval=None)


async def closing(socket: ClientConnection) -> tuple[list[bytes | str], int | None, str | None]:
    """The messages that come until the connection is closed, and the close's code and reason."""
    messages: list[bytes | str] = []
    try:
        while True:
            messages.append(await asyncio.wait_for(socket.recv(), PATIENCE))
    except ConnectionClosed as closed:
        end = closed.rcvd
        return (messages, None, None) if end is None else (messages, end.code, end.reason)


async def answers(socket: DriverSocket, count: int) -> list[Message]:
    return [await socket.receive() for _ in range(count)]


def binary(data: bytes) -> Message:
    return Message("binary", data)


def error_of(message: Message) -> str:
    assert message.kind == "binary"
    error = json.loads(message.data)
    assert list(error) == ["detail"]
    return str(error["detail"])


# Answers, and their order


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_an_object_is_answered_by_one_binary_message(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    async with Driver(serve(cls).url, target) as driver, driver.websocket() as socket:
        for data in (b"hello", b"", bytes(range(256)) * 4096, b"again"):
            await socket.send("a", data)
            assert await socket.receive() == binary(data.upper())


async def test_a_transform_is_given_name_and_arguments_of_each_object(serve: Serve, target: Target) -> None:
    async with Driver(serve(Told).url, target) as driver, driver.websocket() as socket:
        await socket.send("dir/a b#%20.txt", b"four", etl_args='{"size": 7}')
        await socket.send("ünï", b"")
        told = [json.loads((await socket.receive()).data) for _ in range(2)]
    assert told == [[4, "dir/a b#%20.txt", '{"size": 7}'], [0, "ünï", ""]]


@pytest.mark.parametrize("cls", [Gated, AsyncGated, GatedStream])
async def test_answers_come_in_the_order_of_requests_though_later_ones_finish_first(
    serve: Serve, target: Target, cls: type[Gated]
) -> None:
    names = [f"{number}" for number in range(12)]
    made = gated(cls, *names)
    live = serve(made)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        for name in names:
            await socket.send(name, f"object {name}".encode())
        await eventually(lambda: len(made.entered) == len(names))
        for name in reversed(names):
            made.gates[name].set()
        assert await answers(socket, 12) == [binary(f"OBJECT {name}".encode()) for name in names]


async def test_far_more_objects_than_are_worked_on_at_once_are_all_answered_in_order(
    serve: Serve, target: Target
) -> None:
    names = [f"{number}" for number in range(300)]
    made = gated(Gated, "0", "150")
    async with Driver(serve(made).url, target) as driver, driver.websocket() as socket:
        for name in names:
            await socket.send(name, name.encode())
        made.gates["0"].set()
        made.gates["150"].set()
        assert await answers(socket, len(names)) == [binary(name.encode()) for name in names]


async def test_many_connections_do_not_mix(serve: Serve, target: Target) -> None:
    async with Driver(serve(AsyncUpper).url, target) as driver:

        async def talk(letter: str) -> list[Message]:
            async with driver.websocket() as socket:
                for number in range(20):
                    await socket.send("a", f"{letter}{number}".encode())
                return await answers(socket, 20)

        talks = await asyncio.gather(*(talk(letter) for letter in "abcdefgh"))
    assert talks == [[binary(f"{letter}{number}".encode()) for number in range(20)] for letter in "ABCDEFGH"]


@pytest.mark.parametrize("cls", ALL_EMPTY)
async def test_an_empty_result_is_an_empty_binary_message(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    async with Driver(serve(cls).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"something")
        assert await socket.receive() == binary(b"")


async def test_a_message_may_come_in_fragments(serve: Serve) -> None:
    async with by_hand(serve(Upper)) as socket:
        await socket.send([b'{"pa', b'th": "a"}', b""])
        await socket.send([b"", b"in ", b"", b"fragments"])
        await socket.ping()
        await socket.send(b"{}")
        await socket.send(b"and whole")
        assert await asyncio.wait_for(socket.recv(), PATIENCE) == b"IN FRAGMENTS"
        assert await asyncio.wait_for(socket.recv(), PATIENCE) == b"AND WHOLE"


async def test_a_ping_is_answered(serve: Serve) -> None:
    async with by_hand(serve(Upper)) as socket:
        await asyncio.wait_for(await socket.ping(b"are you there"), PATIENCE)


@pytest.mark.parametrize("cls", [Upper, UpperStream])
async def test_a_large_object_goes_through(serve: Serve, target: Target, cls: type[ETLServer]) -> None:
    data = bytes(range(256)) * (20 * MIB // 256)
    async with Driver(serve(cls).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", data)
        assert (await socket.receive()).data == data.upper()


async def test_a_client_that_does_not_take_its_answers_is_not_served_without_end(serve: Serve, target: Target) -> None:
    made = gated(Gated)
    async with by_hand(serve(made)) as socket:

        async def send() -> None:
            for _ in range(100):
                await socket.send(b"{}")
                await socket.send(bytes(MIB))

        socket.transport.pause_reading()
        sending = asyncio.ensure_future(send())
        before = -1
        while before != len(made.entered):
            before = len(made.entered)
            await asyncio.wait([sending], timeout=0.3)
        assert not sending.done()
        assert before < 80
        socket.transport.resume_reading()
        for _ in range(100):
            assert len(await asyncio.wait_for(socket.recv(), PATIENCE)) == MIB
        await sending


# Files


@pytest.mark.parametrize("cls", [Upper, UpperStream, AsyncUpper])
async def test_an_object_may_be_a_local_file(
    serve: Serve, target: Target, tmp_path: Path, cls: type[ETLServer]
) -> None:
    file = ais_file(tmp_path, "100% #1 ü.txt", b"in a file")
    async with Driver(serve(cls).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", None, fqn=str(file))
        await socket.send("b", b"in a message")
        assert await answers(socket, 2) == [binary(b"IN A FILE"), binary(b"IN A MESSAGE")]


async def test_under_direct_fqn_the_transform_is_given_the_path(serve: Serve, target: Target, tmp_path: Path) -> None:
    class TellsPath(ETLServer):
        def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
            return repr(data).encode()

    file = ais_file(tmp_path, "a.txt", b"in a file")
    async with Driver(serve(TellsPath, direct_fqn=True).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", None, fqn=str(file))
        await socket.send("b", b"bytes")
        assert await answers(socket, 2) == [binary(repr(str(file)).encode()), binary(b"b'bytes'")]


@pytest.mark.parametrize("path", ["%ob/nothing-there", "../secret", "plain"])
async def test_a_file_that_may_not_be_read_or_is_not_there_is_an_error(
    serve: Serve, target: Target, tmp_path: Path, path: str
) -> None:
    (tmp_path / "plain").write_bytes(b"not an object's file")
    ais_file(tmp_path, "a.txt", b"")
    fqn = tmp_path / "plain" if path == "plain" else tmp_path / "@ais" / "src" / path
    async with Driver(serve(Upper).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", None, fqn=str(fqn))
        message = await socket.receive()
    assert (message.kind, message.code) == ("close", 1011)
    assert "NOT AN OBJECT" not in message.reason.upper()


# Direct put


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_what_a_target_stored_is_acknowledged_by_text_which_is_its_size(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    live = serve(cls, host_target=target.url)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"hello", pipeline=target.destination("dst", "a b#ü"))
        await socket.send("b", b"between")
        await socket.send("c", b"", pipeline=target.destination("dst", "empty"))
        assert await answers(socket, 3) == [Message("text", "5"), binary(b"BETWEEN"), Message("text", "0")]
    assert target.read("dst", "a b#ü") == b"HELLO"
    assert target.read("dst", "empty") == b""


async def test_acknowledgements_keep_the_order_of_requests(serve: Serve, target: Target) -> None:
    names = [f"{number}" for number in range(8)]
    made = gated(Gated, *names)
    live = serve(made, host_target=target.url)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        for name in names:
            stages = target.destination("dst", name) if int(name) % 2 else ""
            await socket.send(name, b"x" * (int(name) + 1), pipeline=stages)
        await eventually(lambda: len(made.entered) == len(names))
        for name in reversed(names):
            made.gates[name].set()
        sizes = [Message("text", str(n + 1)) if n % 2 else binary(b"X" * (n + 1)) for n in range(8)]
        assert await answers(socket, 8) == sizes


async def test_an_object_goes_through_several_servers(serve: Serve, target: Target) -> None:
    first, second = serve(Told, host_target=target.url), serve(Upper, host_target=target.url)
    async with Driver(first.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"12345", pipeline=pipeline(second.url))
        await socket.send("b", b"12345", pipeline=pipeline(second.url, destination=target.destination("dst", "b")))
        assert await answers(socket, 2) == [binary(b'[5, "A", ""]'), Message("text", "12")]
    assert target.read("dst", "b") == b'[5, "B", ""]'


async def test_an_empty_object_from_a_second_server_is_no_acknowledgement(serve: Serve, target: Target) -> None:
    first, second = serve(Upper), serve(ALL_EMPTY[0])
    async with Driver(first.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"12345", pipeline=second.url)
        assert await socket.receive() == binary(b"")


# Failures where an acknowledgement was due


@pytest.mark.parametrize("ws_error", ["close", "text"])
@pytest.mark.parametrize("cls", [Fails, FailsMidway, AsyncFailsMidway])
async def test_where_an_acknowledgement_was_due_a_failed_transform_is_a_binary_message(
    serve: Serve, target: Target, cls: type[ETLServer], ws_error: str
) -> None:
    live = serve(cls, host_target=target.url, ws_error=ws_error)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", etl_args="not today", pipeline=target.destination("dst", "a"))
        await socket.send("b", b"x", pipeline=target.destination("dst", "b"))
        assert error_of(await socket.receive()) == "Processing error: not today"
        assert (await socket.receive()).kind == "text"
    assert target.names("dst") == ["b"]


async def test_where_an_acknowledgement_was_due_a_failed_delivery_is_a_binary_message(
    serve: Serve, tmp_path: Path
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=507, text="disk is full") if "full" in request.path else None

    with Target({"dst": tmp_path}, on_request=refuse) as target:
        live = serve(Upper, host_target=target.url)
        async with Driver(live.url, target) as driver, driver.websocket() as socket:
            await socket.send("a", b"x", pipeline=target.destination("dst", "full"))
            await socket.send("b", b"x", pipeline=target.destination("dst", "b"))
            assert "disk is full" in error_of(await socket.receive())
            assert await socket.receive() == Message("text", "1")


async def test_where_an_acknowledgement_was_due_a_failure_of_a_later_stage_is_a_binary_message(
    serve: Serve, target: Target
) -> None:
    first, second = serve(Upper, host_target=target.url), serve(Fails, host_target=target.url)
    async with Driver(first.url, target) as driver, driver.websocket() as socket:
        stages = pipeline(second.url, destination=target.destination("dst", "a"))
        await socket.send("a", b"x", etl_args="later", pipeline=stages)
        await socket.send("a", b"x", pipeline=stages)
        assert "Processing error: later" in error_of(await socket.receive())
        assert await socket.receive() == Message("text", "1")


async def test_where_an_acknowledgement_was_due_a_missing_target_url_is_a_binary_message(
    serve: Serve, target: Target
) -> None:
    async with Driver(serve(Upper).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", pipeline=target.destination("dst", "a"))
        assert "AIS_TARGET_URL" in error_of(await socket.receive())


async def test_where_an_acknowledgement_was_due_a_malformed_pipeline_is_a_binary_message(
    serve: Serve, target: Target
) -> None:
    async with Driver(serve(Upper, host_target=target.url).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", pipeline=f"http://ok:1,,{target.destination('dst', 'a')}")
        assert error_of(await socket.receive()).startswith("Invalid pipeline header: ")


# Failures where the object was due


@pytest.mark.parametrize("cls", [Fails, FailsMidway, AsyncFailsMidway])
async def test_otherwise_a_failed_transform_closes_the_connection(
    serve: Serve, target: Target, cls: type[ETLServer]
) -> None:
    async with Driver(serve(cls).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", etl_args="not today")
        assert await socket.receive() == Message("close", b"", 1011, "Processing error: not today")


async def test_the_answers_that_were_due_before_a_failure_are_sent_first(serve: Serve, target: Target) -> None:
    made = gated(Gated, "0", "1")
    Failing = type("Failing", (made,), {"transform": _fails_for("2")})  # noqa: N806 - a class
    live = serve(Failing, host_target=target.url)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        await socket.send("0", b"first")
        await socket.send("1", b"second", pipeline=target.destination("dst", "1"))
        await socket.send("2", b"third")
        await socket.send("3", b"never answered")
        await eventually(lambda: {"0", "1", "2"} <= set(made.entered))
        made.gates["1"].set()
        made.gates["0"].set()
        assert await socket.receive() == binary(b"FIRST")
        assert await socket.receive() == Message("text", "6")
        assert await socket.receive() == Message("close", b"", 1011, "Processing error: no 2")


def _fails_for(name: str) -> Callable[..., bytes]:
    def transform(self: Gated, data: bytes, path: str, etl_args: str) -> bytes:
        result = Gated.transform(self, data, path, etl_args)
        if path == name:
            raise ValueError(f"no {name}")
        return result

    return transform


@pytest.mark.parametrize("message", ["long " * 1000, "ü" * 200, "x" + "😀" * 100, "lone \udce9 surrogate", "\0"])
async def test_a_reason_is_at_most_123_bytes_and_never_broken(serve: Serve, target: Target, message: str) -> None:
    class Raises(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise ValueError(message)

    live = serve(Raises)
    with no_logs():
        async with Driver(live.url, target, object_timeout=5) as driver, driver.websocket() as socket:
            await socket.send("a", b"x")
            closed = await socket.receive()
    assert (closed.kind, closed.code) == ("close", 1011)
    assert closed.reason.startswith("Processing error: ")
    assert len(closed.reason.encode()) <= 123
    start = "Processing error: " + message.encode(errors="replace").decode()
    assert start.startswith(closed.reason) or "surrogate" in message
    assert len(closed.reason.encode()) > 119 or "surrogate" in message or message == "\0"


async def test_a_failure_on_the_way_to_another_server_closes_the_connection(serve: Serve, target: Target) -> None:
    first, second = serve(Upper), serve(Fails)
    async with Driver(first.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", etl_args="later", pipeline=second.url)
        closed = await socket.receive()
    assert (closed.kind, closed.code) == ("close", 1011)
    assert "Processing error: later" in closed.reason


@pytest.mark.parametrize("stages", [",", "http://ok:1,", "not a url", "ftp://else:1", "http://"])
async def test_a_malformed_pipeline_closes_the_connection(serve: Serve, target: Target, stages: str) -> None:
    async with Driver(serve(Upper).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", pipeline=stages)
        closed = await socket.receive()
    assert (closed.kind, closed.code) == ("close", 1011)
    assert closed.reason.startswith("Invalid pipeline header: ")


async def test_an_object_that_is_too_large_closes_the_connection(serve: Serve, target: Target) -> None:
    async with Driver(serve(Upper, max_body=4).url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"four")
        await socket.send("a", b"fives")
        assert await socket.receive() == binary(b"FOUR")
        closed = await socket.receive()
    assert (closed.kind, closed.code) == ("close", 1011)
    assert "ETL_MAX_BODY=4" in closed.reason


async def test_no_secret_is_in_a_reason(serve: Serve, target: Target) -> None:
    class Tells(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise ValueError(f"cannot reach {self.host_target}")

    live = serve(Tells, host_target=target.url)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        await socket.send("a", b"x", pipeline=target.destination("dst", "a"))
        assert "s3cr3t" not in error_of(await socket.receive())
        await socket.send("a", b"x")
        closed = await socket.receive()
    assert closed.code == 1011
    assert "s3cr3t" not in closed.reason


@pytest.mark.parametrize("message", ["not today", "lone \udce9 surrogate"])
async def test_errors_may_be_asked_for_as_text(serve: Serve, target: Target, message: str) -> None:
    class Raises(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            if path == "bad":
                raise ValueError(message)
            return data

    live = serve(Raises, ws_error="text")
    with no_logs():
        async with Driver(live.url, target, object_timeout=5) as driver, driver.websocket() as socket:
            await socket.send("bad", b"x")
            await socket.send("good", b"y")
            told, next_one = await answers(socket, 2)
    assert told.kind == "text"
    assert str(told.data).startswith("Processing error: ")
    assert next_one == binary(b"y")


class OddError(BaseException):
    pass


ODD_ERRORS = [SystemExit(3), StopIteration(7), OddError("odd"), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("kind", ["thread", "inline", "async", "late async"])
async def test_no_failure_whatsoever_looks_like_an_object_or_an_acknowledgement(
    serve: Serve, target: Target, kind: str
) -> None:
    class Raises(ETLServer):
        execution = "inline" if kind == "inline" else "thread"

        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise ODD_ERRORS[int(etl_args)]

    class AsyncRaises(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            if kind == "late async":
                await asyncio.sleep(0.001)
            raise ODD_ERRORS[int(etl_args)]

    live = serve(AsyncRaises if "async" in kind else Raises, host_target=target.url)
    wrong: list[object] = []
    async with Driver(live.url, target, object_timeout=5) as driver:
        for index, error in enumerate(ODD_ERRORS):
            for stages in ("", target.destination("dst", "a")):
                try:
                    async with driver.websocket() as socket:
                        await socket.send("a", b"x", etl_args=str(index), pipeline=stages)
                        answer = await socket.receive()
                except (ConnectionError, ClientError, asyncio.TimeoutError) as failure:
                    answer = Message("close", reason=repr(failure))
                is_told = (answer.kind, answer.code) == ("close", 1011)
                if stages and isinstance(answer.data, bytes):
                    is_told = answer.data.startswith(b'{"detail": "Processing error: ')
                if not is_told:
                    wrong.append((error, bool(stages), answer))
    assert wrong == []
    assert target.names("dst") == []


# Malformed control messages


MALFORMED: list[tuple[bytes | str, str]] = [
    ('{"path": "a"}', "text"),
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"hello", "JSON"),
    (b'{"path": "caf\xe9"}', "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"null", "object"),
    (b"7", "object"),
    (b'["path", "a"]', "object"),
    (b'"path"', "object"),
    (b'{"path": 7}', "path"),
    (b'{"pipeline": ["http://a:1"]}', "pipeline"),
    (b'{"fqn": false}', "fqn"),
    (b'{"etl_args": {"a": 1}}', "etl_args"),
]


async def test_a_malformed_control_message_closes_the_connection_after_the_answers_that_were_due(serve: Serve) -> None:
    made = gated(Gated)
    live = serve(made)
    wrong: list[object] = []
    for message, reason in MALFORMED:
        made.gates["first"] = threading.Event()
        made.entered.clear()
        async with by_hand(live) as socket:
            await socket.send(b'{"path": "first"}')
            await socket.send(b"hello")
            await eventually(lambda: made.entered)
            await socket.send(message)
            await socket.send(b"what this belongs to is unknown")
            made.gates["first"].set()
            messages, code, why = await closing(socket)
        if (messages, code) != ([b"HELLO"], 1011) or reason not in (why or ""):
            wrong.append((message[:40], messages, code, why))
    assert wrong == []
    assert await health(live.port) == (200, b"Running")


async def test_an_object_that_comes_as_text_closes_the_connection(serve: Serve) -> None:
    async with by_hand(serve(Upper)) as socket:
        await socket.send(b"{}")
        await socket.send("text")
        messages, code, why = await closing(socket)
    assert (messages, code) == ([], 1011)
    assert "text" in (why or "")


@pytest.mark.parametrize(
    "control", [b"{}", b'{"path": "", "etl_args": "", "pipeline": "", "fqn": ""}', b'{"path": null}', b'{"new": [1]}']
)
async def test_every_field_may_be_left_out_and_unknown_ones_are_passed_over(serve: Serve, control: bytes) -> None:
    async with by_hand(serve(Told)) as socket:
        await socket.send(control)
        await socket.send(b"four")
        assert json.loads(await asyncio.wait_for(socket.recv(), PATIENCE)) == [4, "", ""]


# The end of a connection


@pytest.mark.parametrize("cls", [Gated, AsyncGated, GatedStream])
async def test_a_client_that_vanishes_leaves_nothing_behind(serve: Serve, target: Target, cls: type[Gated]) -> None:
    made = gated(cls, "0", "1", "2")
    live = serve(made, host_target=target.url)
    async with by_hand(live) as socket:
        for name in made.gates:
            control = {"path": name, "pipeline": target.destination("dst", name)}
            await socket.send(json.dumps(control).encode())
            await socket.send(b"x")
        await eventually(lambda: len(made.entered) == 3)
        socket.transport.abort()
        await eventually(lambda: live.worker.admission.in_flight == 0)
    for gate in made.gates.values():
        gate.set()
    async with Driver(live.url, target) as driver, driver.websocket() as again:
        for _ in range(10):
            await again.send("next", b"next", pipeline=target.destination("dst", "next"))
            assert await again.receive() == Message("text", "4")
    assert target.names("dst") == ["next"]


async def test_a_client_that_vanishes_within_an_object_leaves_nothing_behind(serve: Serve) -> None:
    made = gated(Gated)
    live = serve(made)
    async with by_hand(live) as socket:
        await socket.send(b'{"path": "half"}')
        await socket.ping()
        await eventually(lambda: live.worker.admission.in_flight == 1)
        socket.transport.abort()
        await eventually(lambda: live.worker.admission.in_flight == 0)
    assert made.entered == []


async def test_a_client_that_closes_is_answered_and_ends_its_session(serve: Serve) -> None:
    live = serve(Upper)
    async with by_hand(live) as socket:
        await socket.send(b"{}")
        await socket.send(b"x")
        await socket.recv()
        await socket.close(1000, "done")
        assert socket.close_code == 1000
    await eventually(lambda: live.worker.admission.in_flight == 0)


@pytest.mark.parametrize("transport", ["protocol"])  # the ASGI server's own protocol answers a close at once
async def test_a_client_that_closes_behind_its_objects_gets_their_answers_first(serve: Serve) -> None:
    live = serve(InlineUpper)
    async with by_hand(live) as socket:
        await socket.send(b"{}")
        await socket.send(b"warm")
        assert await socket.recv() == b"WARM"
        # Below the client's own interface, which takes no message any more once it has closed.
        frames = [Frame(Opcode.BINARY, data) for data in (b"{}", b"x", b"{}", b"y")]
        frames.append(Frame(Opcode.CLOSE, Close(1000, "").serialize()))
        socket.transport.write(b"".join(frame.serialize(mask=True) for frame in frames))
        messages, code, _ = await closing(socket)
    assert (messages, code) == ([b"X", b"Y"], 1000)


@pytest.mark.parametrize("count", [0, 1, 40])
async def test_a_server_that_stops_finishes_what_it_took_and_then_says_so(
    serve: Serve, target: Target, count: int
) -> None:
    names = [f"{number}" for number in range(count)]
    made = gated(Gated, *names)
    live = serve(made)
    async with Driver(live.url, target) as driver, driver.websocket() as socket:
        await socket.send("warm", b"up")
        assert await socket.receive() == binary(b"UP")
        for name in names:
            await socket.send(name, name.encode())
        await eventually(lambda: len(made.entered) > min(count, 10))
        await on_loop(live, live.worker.admission.drain)
        for gate in made.gates.values():
            gate.set()
        received = [await socket.receive()]
        while received[-1].kind != "close":
            received.append(await socket.receive())
        await eventually(lambda: not live.worker.admission.in_flight)
    closed = received.pop()
    assert closed.code == 1001
    # What it had taken is a beginning of what was sent, all of it answered, nothing worked on in vain.
    assert received == [binary(name.encode()) for name in names[: len(received)]]
    assert sorted(made.entered) == sorted(["warm", *names[: len(received)]])
    assert len(received) >= min(count, 10)


async def test_a_server_that_stops_still_takes_the_object_whose_control_message_it_has(serve: Serve) -> None:
    made = gated(Gated)
    live = serve(made)
    async with by_hand(live) as socket:
        await socket.send(b'{"path": "half"}')
        await asyncio.wait_for(await socket.ping(), PATIENCE)
        await on_loop(live, live.worker.admission.drain)
        await socket.send(b"and half")
        messages, code, _ = await closing(socket)
    assert (messages, code) == ([b"AND HALF"], 1001)


@pytest.mark.parametrize("transport", ["protocol"])
async def test_a_client_that_takes_its_answers_slowly_gets_them_all_from_a_server_that_stops(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_server.runtime.ws.CLOSE_TIMEOUT", 0.2)

    class Large(Gated):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return bytes(8 * MIB)

    live = serve(Large)
    async with by_hand(live) as socket:
        socket.transport.pause_reading()
        for _ in range(4):
            await socket.send(b"{}")
            await socket.send(b"x")
        await eventually(lambda: live.worker.counts.websocket.outcomes[200] > 0)
        await on_loop(live, live.worker.admission.drain)
        await asyncio.sleep(1)  # the server would like to be closed with by now
        socket.transport.resume_reading()
        messages, code, _ = await closing(socket)
    assert (set(map(len, messages)), code) == ({8 * MIB}, 1001)
    assert len(messages) == live.worker.counts.websocket.outcomes[200]


async def test_ws_is_no_object(serve: Serve) -> None:
    live = serve(Upper)
    for method in ("GET", "PUT"):
        async with RawClient(live.port) as client:
            await client.send(f"{method} /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert (await client.answer()).status in range(400, 500)


class UnfinishedError(ETLError):
    """An error of the user's own, made in a way that leaves out what ours have."""

    status = 200

    def __init__(self) -> None:
        pass


async def test_an_answer_never_takes_the_place_of_another_whatever_is_raised(serve: Serve) -> None:
    class Raises(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            if data == b"bad":
                raise UnfinishedError
            return data

    async with by_hand(serve(Raises)) as socket:
        for data in (b"bad", b"b", b"c"):
            await socket.send(b"{}")
            await socket.send(data)
        messages, code, _ = await closing(socket)
    assert (messages, code) == ([], 1011)


async def test_a_failure_that_cannot_be_told_ends_the_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    live = serve(Fails, ws_error="text")
    monkeypatch.setattr(live.worker, "log_failure", lambda *_: 1 / 0)
    async with by_hand(live) as socket:
        for data in (b'{"etl_args": "bad"}', b"a", b"{}", b"b"):
            await socket.send(data)
        messages, code, _ = await closing(socket)
    assert (messages, code) == ([], 1011)
